"""Streams of many edits: batch by batch, resumed after a kill, any fact taken out again exactly."""
