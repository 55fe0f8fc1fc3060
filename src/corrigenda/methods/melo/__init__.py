"""MELO."""
