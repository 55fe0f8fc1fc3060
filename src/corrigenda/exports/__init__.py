"""Forms of an edit that other programs read: LoRA adapters, and models with the edit merged."""

from corrigenda.exports.adapter_rules import check_adapter
from corrigenda.exports.gguf_adapter import export_gguf_adapter
from corrigenda.exports.merged import export_merged
from corrigenda.exports.peft import export_peft

__all__ = ["check_adapter", "export_gguf_adapter", "export_merged", "export_peft"]
