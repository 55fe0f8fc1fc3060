"""Forms of an edit that other programs read: LoRA adapters, and models with the edit merged."""
