"""Referee: the same questions to a model before and after an edit that was made anywhere.

Nothing is edited here. The cases say what the edit should have done; their facts are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from corrigenda.benchmarks.benchmark import LoadedBenchmark
from corrigenda.cases import Case
from corrigenda.errors import BadConfig
from corrigenda.progress import Progress
from corrigenda.rows import Row
from corrigenda.run import plan
from corrigenda.run.judges import Judge
from corrigenda.run.outside_models import AskedModel, open_model
from corrigenda.run.queries import Query, make_query
from corrigenda.run.row_builder import DueProbe, ModelDigests, build_row, build_unedited_row
from corrigenda.run.tables import AskSpec

RUN = "refereed"


class Refereed(NamedTuple):
    """Answers of two models to the questions of some cases.

    Attributes:
        before: How the first is called.
        after: How the second is called.
        rows: Answers of the second, each with that of the first.
    """

    before: str
    after: str
    rows: list[Row]


def referee(
    before: str,
    after: str,
    loaded: LoadedBenchmark,
    *,
    ask: AskSpec | None = None,
    model: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Refereed:
    """Ask two models the same, one after the other.

    Args:
        before: The model before the edit: a name, a folder, a .gguf file, or an address.
        after: The model after it: the same, or a patch or an adapter of peft for `before`.
        loaded: The cases.
        ask: Which questions are asked, and how.
        model: Name of the model of an endpoint.
        device: Device of local models.
        progress: Called with (stage, done, total).

    Raises:
        UnknownModel (CG301), BadConfig (CG502), MissingExtra (CG504): as `open_model`; or both are
            the same model.
        JudgeFailed (CG611): the judge gives no answer.
    """
    ask = ask or AskSpec()
    cases = [plan.select_probes(case, ask) for case in loaded]
    due = [one for case in cases for one in _list_due(case, ask)]
    queries = list(dict.fromkeys(one.query for one in due))
    with open_model(before, model=model, device=device) as first:
        old, first_digest, first_label = _ask(first, queries, "before", progress)
    with open_model(after, base=before, model=model, device=device) as second:
        new, second_digest, second_label = _ask(second, queries, "after", progress)
    if first_digest == second_digest:
        raise BadConfig(
            f"before and after are the same model ({first_label}).",
            hint="Give the edited model, its patch, its adapter, or its address as --after.",
        )
    digests = ModelDigests(first_digest, second_digest)
    rows = [
        build_unedited_row(RUN, one, old.given, digests)
        if one.rounds == 0
        else build_row(RUN, one, new, old.given, old, digests)
        for one in due
    ]
    if ask.judge is not None:
        rows = Judge(ask.judge, device).add_verdicts(rows)
    return Refereed(first_label, second_label, rows)


def _list_due(case: Case, ask: AskSpec) -> Iterator[DueProbe]:
    """Yield the probes that only the unedited model is asked, then those after the last round."""
    for rounds in (0, len(case.edits)):
        for number, probe in plan.list_due(case, rounds):
            query = make_query(probe, ask.max_new_tokens, chat=ask.chat, natural=ask.natural)
            yield DueProbe(case, number, probe, query, rounds)


def _ask(asked: AskedModel, queries: Sequence[Query], stage: str, progress: Progress | None):  # noqa: ANN202 - a table, a digest, a label
    if progress is not None:
        progress(stage, 0, len(queries))
    found = asked.ask(queries)
    if progress is not None:
        progress(stage, len(queries), len(queries))
    return found, asked.digest, asked.label
