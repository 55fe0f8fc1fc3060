"""Editing methods: one folder each, with editor, card and presets."""
