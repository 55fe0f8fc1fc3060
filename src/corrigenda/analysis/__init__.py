"""Analyses of a model: where a fact passes through it, and where a vector can change it."""
