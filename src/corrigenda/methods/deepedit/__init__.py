"""DeepEdit."""
