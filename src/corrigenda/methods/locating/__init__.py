"""Finding where a fact is written, what to write there, and spreading it over layers."""
