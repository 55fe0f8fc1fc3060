"""MEMOIR."""
