"""The space in which TruthX separates meaning from truth."""
