"""Corrections to the facts a language model states: made, measured, undone to the bit, shipped.

```python
import corrigenda as cg

lm = cg.load("pocket")
fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
patch = cg.edit(lm, fact)
with patch.apply(lm):
    print(cg.answer(lm, fact.prompt))
```

Every name below is imported when it is first used, so that `import corrigenda` stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corrigenda.api import (
        answer,
        ask,
        correct,
        edit,
        export,
        fit,
        load,
        restore_merged,
        transform,
    )
    from corrigenda.catalogue import list_methods, list_models
    from corrigenda.correction import Correction
    from corrigenda.errors import CorrigendaError
    from corrigenda.facts import Fact, Span, read_facts
    from corrigenda.lm.model import LanguageModel
    from corrigenda.lm.sites import Site
    from corrigenda.patch import load_patch
    from corrigenda.run.health import perplexity_ratio

__version__ = "0.1.0"

_HOMES = {
    "Correction": "corrigenda.correction",
    "CorrigendaError": "corrigenda.errors",
    "Fact": "corrigenda.facts",
    "LanguageModel": "corrigenda.lm.model",
    "Site": "corrigenda.lm.sites",
    "Span": "corrigenda.facts",
    "answer": "corrigenda.api",
    "ask": "corrigenda.api",
    "correct": "corrigenda.api",
    "edit": "corrigenda.api",
    "export": "corrigenda.api",
    "fit": "corrigenda.api",
    "list_methods": "corrigenda.catalogue",
    "list_models": "corrigenda.catalogue",
    "load": "corrigenda.api",
    "load_patch": "corrigenda.patch",
    "perplexity_ratio": "corrigenda.run.health",
    "read_facts": "corrigenda.facts",
    "restore_merged": "corrigenda.api",
    "transform": "corrigenda.api",
}

__all__ = [
    "Correction",
    "CorrigendaError",
    "Fact",
    "LanguageModel",
    "Site",
    "Span",
    "answer",
    "ask",
    "correct",
    "edit",
    "export",
    "fit",
    "list_methods",
    "list_models",
    "load",
    "load_patch",
    "perplexity_ratio",
    "read_facts",
    "restore_merged",
    "transform",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
