"""Retrieval over the edited facts: the nearest are written before the question."""
