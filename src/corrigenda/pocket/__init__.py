"""The pocket models: small trained transformers with a known world, shipped inside the package."""

from corrigenda.pocket.exam import related_prompts

__all__ = ["related_prompts"]
