"""What is measured of the whole model along the way: perplexity of texts, and how far it moved.

Perplexity can also decide: an edit with which it rises too far is taken back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from corrigenda.cases import Against, Protocol
from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.metrics import collapse
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.rows import Measurement, Row
from corrigenda.run.prober import Answer, Question, ask
from corrigenda.run.spec import HealthSpec

PERPLEXITY = "perplexity"
"""Role of the rows of texts."""


def texts_of(health: HealthSpec) -> tuple[str, ...]:
    """The texts whose perplexity is taken.

    Raises:
        BadConfig (CG502): the file cannot be read, or has no text where edits are judged by it.
    """
    texts = list(health.texts)
    if health.file is not None:
        try:
            lines = Path(health.file).read_text(encoding="utf-8").splitlines()
            texts += [_text(line) for line in lines if line.strip()]
        except (OSError, ValueError, KeyError) as error:
            raise BadConfig(
                f"the texts cannot be read: {error}.",
                where=health.file,
                hint='Give JSON lines with "text", or plain text with one on each line.',
            ) from error
    if health.rollback_above is not None and not texts:
        raise BadConfig("there is no text to judge edits by.", where=health.file or "")
    return tuple(texts[: health.limit])


def _text(line: str) -> str:
    return str(json.loads(line)["text"]) if line.startswith("{") else line.strip()


def text_question(text: str) -> Question:
    """A text, every token of which is scored."""
    return Question("", Protocol.TEACHER_FORCED, text, separator="")


def text_row(row: Row, text: str, answer: Answer, before: Answer | None) -> Row:
    """The row of a text, from one that says what was asked where and when."""
    return dataclasses.replace(
        row,
        against=Against.UNEDITED,
        expected=[[text]],
        token_ids=answer.token_ids,
        predicted=answer.predicted,
        log_probs=answer.log_probs,
        predicted_before=before.predicted if before else None,
        log_probs_before=before.log_probs if before else None,
        skipped=answer.skipped,
    )


def perplexity_ratio(lm: LanguageModel, patch: Patch, texts: Sequence[str]) -> float:
    """Mean perplexity of texts with a patch, over that without it; the model is left as it was.

    What `rollback_above` of a recipe is held against, for one edit. Infinite where a text
    overflows, NaN where the model gives no number.

    Args:
        lm: The model, with whatever patches are active.
        patch: The patch, not active.
        texts: Short texts; the first token of each is only read.

    Raises:
        BadConfig (CG502): no text has a token to predict.
        WrongBase (CG401), NotApplied (CG406): as `Patch.apply`.

    Example:
        ```python
        patch = cg.edit(lm, fact, "rome")
        if cg.perplexity_ratio(lm, patch, texts) < 2:
            patch.apply(lm)
        ```
    """
    lm = require_lm(lm)
    questions = [text_question(text) for text in texts]
    before = ask(lm, questions).given
    with patch.apply(lm):
        after = ask(lm, questions).given
    return ratio(after, before)


def ratio(after: Mapping[Question, Answer], before: Mapping[Question, Answer]) -> float:
    """ME-PPL of texts over that of the unedited model.

    Args:
        after: Answers to texts.
        before: Those of the unedited model to the same, and more.

    Raises:
        BadConfig (CG502): the unedited model could be asked none of them.
    """
    rows = [
        Row(
            case=question.target or "",
            role=PERPLEXITY,
            protocol=question.protocol,
            log_probs=answer.log_probs,
            log_probs_before=before[question].log_probs,
        )
        for question, answer in after.items()
        if before[question].log_probs
    ]
    if not rows:
        raise BadConfig("no text has a token to predict.", hint="Give texts of a few words.")
    if not all(row.log_probs for row in rows):
        return math.inf
    return collapse.perplexity_ratio(rows).value


def checked(run: str, case: str, found: float, *, kept: bool, edits: int) -> Measurement:
    """What became of an edit: the ratio of perplexity with it, and whether it was taken back."""
    values = [found, float(not kept)]
    return Measurement(run=run, case=case, name=collapse.ROLLBACK, values=values, edits=edits)


def drift(run: str, case: str, lm: LanguageModel, edits: int) -> list[Measurement]:
    """How far the weights of each layer are from the unedited ones, with the patches now active.

    Measurements `drift/<layer>`: ||W_t - W_0||_F and ||W_0||_F over all weights of the layer that
    were changed, and their number of parameters.
    """
    ledger = ledger_of(lm)
    sites = {site for patch in ledger if isinstance(patch, WeightPatch) for site in patch.changes}
    layers: dict[int, list[float]] = {}
    for site in sorted(sites, key=str):
        pristine = ledger.pristine(lm, site).double()
        moved = lm.weight(site).double() - pristine
        sums = layers.setdefault(site.layer, [0.0, 0.0, 0.0])
        sums[0] += float(moved.square().sum())
        sums[1] += float(pristine.square().sum())
        sums[2] += pristine.numel()
    return [
        Measurement(
            run=run,
            case=case,
            name=f"drift/{layer}",
            values=[math.sqrt(moved), math.sqrt(size), count],
            edits=edits,
        )
        for layer, (moved, size, count) in sorted(layers.items())
    ]
