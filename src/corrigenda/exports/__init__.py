"""Forms of an edit that other programs read: a LoRA adapter, a merged checkpoint."""

from corrigenda.exports.merged import export_merged
from corrigenda.exports.peft import export_peft

__all__ = ["export_merged", "export_peft"]
