"""TruthX."""
