"""Passes of a model for training: gradients as factors, and no block run that does not matter."""
