"""MEMIT."""
