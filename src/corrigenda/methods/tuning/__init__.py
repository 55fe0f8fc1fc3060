"""Fine-tuning of a few blocks or of adapters, with only the blocks run that matter."""
