"""AdaLoRA, LoRA."""
