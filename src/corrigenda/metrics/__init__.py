"""Metrics: pure functions from rows to estimates. No torch.

One module per group of metrics; `registry` lists them by name with their protocol.
"""
