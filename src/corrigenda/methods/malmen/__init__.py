"""MALMEN."""
