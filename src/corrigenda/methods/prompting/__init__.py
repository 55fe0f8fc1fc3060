"""Edits that are shown to the model, not written into it."""
