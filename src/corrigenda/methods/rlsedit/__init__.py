"""RLSEdit."""
