"""Data sets whose edits are texts: UnKE and AKEW."""
