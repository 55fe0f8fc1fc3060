"""Corrections to the facts a language model states: made, measured, undone to the bit, shipped."""

__version__ = "0.1.0"
