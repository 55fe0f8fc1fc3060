"""Locate-then-edit: contexts, choice of layers, target search, editors of one or many layers."""
