"""UltraEdit."""
