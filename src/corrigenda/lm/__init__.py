"""All knowledge of architectures, tokenizers and devices."""
