"""EMMET."""
