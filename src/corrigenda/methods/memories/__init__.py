"""Memories beside the weights: what they keep, how a prompt is routed to it, how it is trained."""
