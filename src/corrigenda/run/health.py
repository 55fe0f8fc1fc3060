"""What is measured of the whole model along the way: perplexity of texts, and how far it moved."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from corrigenda.cases import Against, Protocol
from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.weights import WeightPatch
from corrigenda.rows import Measurement, Row
from corrigenda.run.asking import Answer, Question
from corrigenda.run.spec import HealthSpec

PERPLEXITY = "perplexity"
"""Role of the rows of texts."""


def texts_of(health: HealthSpec) -> tuple[str, ...]:
    """The texts whose perplexity is taken.

    Raises:
        BadConfig (CG502): the file cannot be read.
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
