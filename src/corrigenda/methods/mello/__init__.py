"""MeLLo."""
