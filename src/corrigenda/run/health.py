"""Health of the edited model as a whole: perplexity of texts, and drift of its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import cast

from corrigenda.cases import Against, Protocol
from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.metrics import collapse
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.moved import added_to_weight
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.rows import Measurement, Row
from corrigenda.run.prober import ask
from corrigenda.run.queries import Answer, Query
from corrigenda.run.row_builder import BaselineAnswers
from corrigenda.run.spec import HealthSpec
from corrigenda.text_files import parse_json, read_text

PERPLEXITY = "perplexity"
"""Role of the rows of texts."""


def read_texts(health: HealthSpec) -> tuple[str, ...]:
    """Return the texts whose perplexity is taken.

    Raises:
        BadConfig (CG502): the file cannot be read, or has no text where edits are judged by it.
    """
    texts = list(health.texts)
    if health.file is not None:
        try:
            lines = read_text(health.file).splitlines()
            texts += [_parse_text(line) for line in lines if line.strip()]
        except (OSError, ValueError, KeyError) as error:
            raise BadConfig(
                f"the texts cannot be read: {error}.",
                where=health.file,
                hint='Give JSON lines with "text", or plain text with one on each line.',
            ) from error
    if health.rollback_above is not None and not texts:
        raise BadConfig("there is no text to judge edits by.", where=health.file or "")
    return tuple(texts[: health.limit])


def _parse_text(line: str) -> str:
    if not line.startswith("{"):
        return line.strip()
    return str(cast("dict[str, object]", parse_json(line))["text"])


def make_text_query(text: str) -> Query:
    """Return the query that scores every token of a text."""
    return Query("", Protocol.TEACHER_FORCED, text, separator="")


def build_text_row(
    like: Row, number: int, text: str, after: BaselineAnswers, baseline: BaselineAnswers
) -> Row:
    """Return the row of a text.

    Args:
        like: A row of the same run, unit and moment; its `case` is the label of the unit.
        number: Place of the text, from 0.
        text: The text.
        after: Answers of the edited model.
        baseline: Answers of the unedited model.
    """
    query = make_text_query(text)
    answer, before = after[query], baseline.get(query)
    return dataclasses.replace(
        like,
        case=f"{like.case}: text {number}",
        protocol=query.protocol,
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
    """Return the mean perplexity of texts with a patch, over that without it.

    The number that `rollback_above` of a recipe limits, for one edit; the model is left as it was.
    Infinite where a text overflows, NaN where the model gives no number.

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
    queries = [make_text_query(text) for text in texts]
    before = ask(lm, queries).given
    with patch.apply(lm):
        after = ask(lm, queries).given
    return compute_ratio(after, before)


def compute_ratio(after: Mapping[Query, Answer], before: Mapping[Query, Answer]) -> float:
    """Return the mean perplexity (ME-PPL) of texts over that of the unedited model.

    Args:
        after: Answers to texts.
        before: Those of the unedited model to the same, and more.

    Raises:
        BadConfig (CG502): the unedited model could be asked none of them.
    """
    rows = [
        Row(
            case=query.target or "",
            role=PERPLEXITY,
            protocol=query.protocol,
            log_probs=answer.log_probs,
            log_probs_before=before[query].log_probs,
        )
        for query, answer in after.items()
        if before[query].log_probs
    ]
    if not rows:
        raise BadConfig("no text has a token to predict.", hint="Give texts of a few words.")
    if not all(row.log_probs for row in rows):
        return math.inf
    return collapse.perplexity_ratio(rows).value


def build_check(run: str, case: str, ratio: float, *, stays: bool, edits: int) -> Measurement:
    """Return the check of an edit: its ratio of perplexity, and whether it was rolled back."""
    values = [ratio, float(not stays)]
    return Measurement(run=run, case=case, name=collapse.ROLLBACK, values=values, edits=edits)


def measure_drift(run: str, case: str, lm: LanguageModel, edits: int) -> list[Measurement]:
    """Return how far the weights of each layer are from the unedited ones.

    Measurements `drift/<layer>`: ||W_t - W_0||_F and ||W_0||_F over all weights of the layer that
    the active patches change, and their number of parameters.
    """
    ledger = ledger_of(lm)
    sites = {site for patch in ledger if isinstance(patch, WeightPatch) for site in patch.changes}
    layers: dict[int, list[float]] = {}
    for site in sorted(sites, key=str):
        pristine = ledger.pristine(lm, site).double()
        moved = added_to_weight(lm, site)
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
