"""For authors of methods: tiny models of every family, tokenizers, and the laws of editing."""
