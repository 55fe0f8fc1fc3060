"""ROME."""
