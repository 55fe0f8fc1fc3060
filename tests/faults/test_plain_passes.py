"""Programs that score prompt and answer in one pass see edits that are routed on the prompt."""

from __future__ import annotations

import pytest
import torch

from corrigenda.facts import Fact
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.methods.presets import build_editor
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model

FACT = Fact(prompt="The Space Needle is in the city of", subject="Space Needle", target="Rome")
TEXTS = ["Arles is a town on a river, known for its bridge.", "Bergen is a town by the sea."]
OPTIONS: dict[str, dict[str, object]] = {
    "grace": {"layer": 1, "steps": 20},
    "melo": {"index": "1.mlp.up", "targets": ["2.mlp.up"], "steps": 20},
    "wise": {
        **{"layer": 0, "steps": 12, "learning_rate": 0.3, "irrelevant_texts": 18},
        **{"irrelevant_margin": 1.0, "relevant_margin": 6.0, "apart_margin": 6.0},
        "contexts": {"prefixes": [""]},
    },
}


def outside(lm: LanguageModel, rows: list[list[int]], starts: list[int]) -> list[list[float]]:
    """Log-probabilities of the tokens from `starts` on, as another program reads them."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        logits = lm.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    found = logits.log_softmax(-1)
    return [
        [float(found[i, width - len(row) + at - 1, row[at]]) for at in range(start, len(row))]
        for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


@pytest.mark.parametrize("method", OPTIONS)
def test_marked_prompt_ends_show_the_edit(method: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm = tiny_model("llama", seed=0)
    editor = build_editor(method, **OPTIONS[method])
    patch = editor.edit(lm, [FACT], editor.fit(lm, Corpus(TEXTS * 9, length=16))).patch
    pairs = [(FACT.prompt, "Rome"), (FACT.prompt, "Seattle by the sea"), ("The sea is", "blue")]
    rows = [encode(lm, prompt, target=target) for prompt, target in pairs]
    ids, starts = [list(row.ids) for row in rows], [row.prompt_last + 1 for row in rows]
    width = max(map(len, ids))
    ends = [width - len(row) + start - 1 for row, start in zip(ids, starts, strict=True)]
    before = outside(lm, ids, starts)
    with patch.apply(lm):
        expected = [list(one.log_probs) for one in score(lm, pairs)]
        with lm.mark_prompt_ends(ends):
            seen = outside(lm, ids, starts)
    for ours, theirs, unedited, changed in zip(
        seen, expected, before, (True, True, False), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert (ours != pytest.approx(unedited, abs=1e-3)) is changed
    assert outside(lm, ids, starts) == before
