"""A short fine-tuning on ordinary text, to see what it leaves of an edit."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.engines.ordinary_text import draw_rows
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.lora.editor import Lora
from corrigenda.patch.weights import WeightPatch
from corrigenda.statistics.corpus import Corpus, Source

_ROWS, _LENGTH, _PROMPT_WORDS = 64, 48, 2
_USUAL = Lora(
    rank=8,
    alpha=16.0,
    dropout=0.05,
    learning_rate=2e-4,
    steps=1,
    batch_size=4,
    stop_loss=0.0,
)
"""Settings that are usual for LoRA: rank 8 on queries and values, Adam with 2e-4."""


def fine_tune(
    lm: LanguageModel, corpus: Corpus | Source | None = None, *, seed: int = 0
) -> WeightPatch:
    """Train low-rank terms on one pass over 64 texts of up to 48 tokens, four at a time.

    Args:
        lm: The model, with the patches that are active; it is left as it was.
        corpus: Text; see `engines.ordinary_text.draw_rows` for None.
        seed: Of the draw of texts, the first values and the dropout.

    Returns:
        The change, to be applied on top.

    Raises:
        MissingExtra (CG504): `peft` is not installed.
        EmptyCorpus (CG602): there is no text.
    """
    rows = draw_rows(lm, corpus, count=_ROWS, length=_LENGTH, seed=seed)
    facts = [fact for row in rows for fact in _split(lm, row)]
    patch = _USUAL.model_copy(update={"seed": seed}).edit(lm, facts).patch
    assert isinstance(patch, WeightPatch)
    return patch


def _split(lm: LanguageModel, row: Sequence[int]) -> list[Fact]:
    """Return a text as a prompt of two words and the rest; nothing of a text without a rest."""
    words = str(lm.tokenizer.decode(list(row), skip_special_tokens=True)).split(" ")
    prompt, rest = (
        " ".join(part).strip() for part in (words[:_PROMPT_WORDS], words[_PROMPT_WORDS:])
    )
    return [Fact(prompt=prompt, target=rest)] if prompt and rest else []
