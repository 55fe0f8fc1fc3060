"""Neurons added to feed-forward blocks."""
