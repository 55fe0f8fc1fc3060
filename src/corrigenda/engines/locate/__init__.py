"""Locate-then-edit: contexts, layer probe, target search, editors of one and several layers."""
