"""MEND."""
