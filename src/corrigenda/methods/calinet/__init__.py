"""CaliNET."""
