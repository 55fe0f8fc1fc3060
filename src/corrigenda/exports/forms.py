"""Names of the forms in which a patch leaves this library."""

from __future__ import annotations

from enum import StrEnum


class Form(StrEnum):
    """Form of a patch that another program reads."""

    PEFT = "peft"
    """A LoRA adapter for `peft`, vLLM and SGLang."""
    GGUF_ADAPTER = "gguf-adapter"
    """A LoRA adapter for llama.cpp."""
    GGUF = "gguf"
    """The model with the patch merged, for llama.cpp and Ollama."""
    MERGED = "merged"
    """The model with the patch merged, for `transformers` and what reads its folders."""
