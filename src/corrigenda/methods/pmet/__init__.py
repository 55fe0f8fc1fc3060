"""PMET."""
