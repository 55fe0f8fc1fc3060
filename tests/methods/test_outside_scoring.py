"""Programs that feed prompt and answer in one plain pass, and say where the prompts end."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from corrigenda.errors import LostPrompts
from corrigenda.facts import Fact
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.methods.presets import build_editor
from corrigenda.patch import Patch
from corrigenda.testing.tiny import tiny_model

FACTS = [
    Fact(prompt="The mother tongue of Ada Lovelace is", subject="Ada Lovelace", target="French"),
    Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome"),
]
EDITORS: dict[str, dict[str, object]] = {
    "grace": {"layer": 1, "steps": 3, "radius": 0.3},
    "melo": {"index": "1.mlp.up", "targets": ["2.mlp.up"], "steps": 2, "radius": 0.2},
}


@cache
def edited(method: str) -> tuple[LanguageModel, Patch]:
    lm = tiny_model("llama")
    return lm, build_editor(method, **EDITORS[method]).edit(lm, FACTS).patch


def outside(lm: LanguageModel, *, mark: bool) -> list[float]:
    """Log-probability of each target, as lm-eval's own model of Hugging Face models sums it."""
    rows = [encode(lm, fact.prompt, target=fact.target) for fact in FACTS]
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    ends = [row.prompt_last for row in rows]
    with torch.no_grad():
        if mark:
            with lm.mark_prompt_ends(ends):
                logits = lm.model(input_ids=ids, attention_mask=mask).logits
        else:
            logits = lm.model(input_ids=ids, attention_mask=mask).logits
    log_probs = logits.log_softmax(-1)
    return [
        sum(
            float(log_probs[i, at, token])
            for at, token in zip(row.reads, row.target_ids, strict=True)
        )
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("method", sorted(EDITORS))
def test_a_plain_pass_over_prompt_and_answer_is_edited_where_ends_are_marked(method: str) -> None:
    lm, patch = edited(method)
    pairs = [(fact.prompt, fact.target) for fact in FACTS]
    plain = outside(lm, mark=True)
    assert plain == pytest.approx([one.total for one in score(lm, pairs)], rel=1e-4)
    with patch.apply(lm):
        expected = [one.total for one in score(lm, pairs)]
        assert outside(lm, mark=True) == pytest.approx(expected, rel=1e-4)
        assert outside(lm, mark=True) != pytest.approx(plain, rel=1e-3)
    assert outside(lm, mark=False) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("ends", [[2], [2, 3, 4], [2, 99], [-1, 2], []])
def test_marks_that_fit_no_pass_are_refused(ends: list[int]) -> None:
    lm, patch = edited("grace")
    with patch.apply(lm), lm.mark_prompt_ends(ends), pytest.raises(LostPrompts, match="CG306"):
        lm.model(input_ids=torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]]))
    with patch.apply(lm):
        assert lm.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.isfinite().all()
