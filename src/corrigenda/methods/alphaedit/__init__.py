"""AlphaEdit."""
