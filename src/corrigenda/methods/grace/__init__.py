"""GRACE."""
