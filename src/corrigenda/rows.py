"""Records of a run: answers to probes, and measurements. Plain values, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin, get_type_hints

from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRows

if TYPE_CHECKING:
    import polars


class Stage(StrEnum):
    """Which model answered."""

    BEFORE = "before"
    """The unedited model."""

    AFTER = "after"
    """The edited model."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer to one probe in one run.

    An answer of the edited model carries that of the unedited model to the same prompt, under the
    same protocol, in the fields that end in `_before`. Log-probabilities are natural, computed in
    float32 or wider. The argmax of equal logits is the lowest token id.

    Attributes:
        run: Id of the run.
        case: Id of the case.
        probe: Place of the probe in its case, from 0.
        role: Role of the probe.
        protocol: How the answer was taken.
        against: What the answer is compared with.
        prompt: Everything the model read.
        expected: Groups of accepted spellings; every group must be met, by any of its spellings.
        rivals: Answers that must not win.
        test: Test the probe belongs to, among the probes of its role in the case.
        every: Whether a test passes only if all its probes do.
        stage: Which model answered.
        rounds: Rounds of the case (see `Case.rounds`) done when it was asked; 0 before.
        position: Place of the case in a sequence of edits, from 1; 0 outside a sequence.
        edits: Edits of the sequence made when it was asked, those taken back included; 0 outside a
            sequence.
        answer: What the model generated: the continuation alone, never the prompt.
        answer_before: The same of the unedited model.
        token_ids: Tokens of the first expected spelling.
        predicted: Teacher forced: the argmax at each of `token_ids`. Greedy: the tokens generated.
        predicted_before: The same of the unedited model.
        log_probs: log p of each of `token_ids` given all before it.
        log_probs_before: The same of the unedited model.
        rival_log_probs: For each of `rivals`, log p of each of its tokens.
        rival_log_probs_before: The same of the unedited model.
        divergence: KL(unedited || edited) in nats, of the next token at each position compared.
        divergence_reversed: KL(edited || unedited) in nats.
        vocabulary: Number of logits that a divergence sums over.
        ended: Whether a natural answer ended by itself, before the limit on its tokens.
        judge: Who judged the answer: the name of the judge and its settings.
        judge_prompt: What the judge was asked about the answer.
        verdict: What the judge said, as it said it.
        verdict_before: The same of the answer of the unedited model.
        model: What answered: digest of the weights, and of the patch where one was applied.
        model_before: What gave the fields that end in `_before`.
        tags: What reports group by, as `key=value`: relation, number of hops, ...
        skipped: Why there is no answer; empty where there is one.
    """

    run: str = ""
    case: str
    probe: int = 0
    role: str
    protocol: Protocol
    against: Against = Against.TARGET
    prompt: str = ""
    expected: list[list[str]] = field(default_factory=list[list[str]])
    rivals: list[str] = field(default_factory=list[str])
    test: str = ""
    every: bool = True
    stage: Stage = Stage.AFTER
    rounds: int = 1
    position: int = 0
    edits: int = 0
    answer: str | None = None
    answer_before: str | None = None
    token_ids: list[int] | None = None
    predicted: list[int] | None = None
    predicted_before: list[int] | None = None
    log_probs: list[float] | None = None
    log_probs_before: list[float] | None = None
    rival_log_probs: list[list[float]] | None = None
    rival_log_probs_before: list[list[float]] | None = None
    divergence: list[float] | None = None
    divergence_reversed: list[float] | None = None
    vocabulary: int | None = None
    ended: bool | None = None
    judge: str = ""
    judge_prompt: str = ""
    verdict: str | None = None
    verdict_before: str | None = None
    model: str = ""
    model_before: str = ""
    tags: list[str] = field(default_factory=list[str])
    skipped: str = ""

    def __post_init__(self) -> None:
        self._require_lengths()
        if self.stage == Stage.AFTER and self.model and self.model == self.model_before:
            raise MalformedRows(
                f'the answers "before" were given by the edited model itself ({self.model}).',
                where=self.label,
                hint="Ask the unedited model before the patch is applied, and keep its answers.",
            )

    def _require_lengths(self) -> None:
        if self.token_ids is None:
            return
        names = ["log_probs", "log_probs_before"]
        if self.protocol == Protocol.TEACHER_FORCED:
            names += ["predicted", "predicted_before"]
        for name in names:
            values: Sequence[float] | None = getattr(self, name)
            if values is not None and len(values) != len(self.token_ids):
                raise MalformedRows(
                    f"`{name}` has {len(values)} entries for {len(self.token_ids)} tokens of the "
                    "expected answer.",
                    where=self.label,
                    hint="Give one entry for each of `token_ids`.",
                )

    @property
    def label(self) -> str:
        """How messages refer to this row."""
        return f"case {self.case}, probe {self.probe}, {self.role}@{self.protocol}"

    @property
    def family(self) -> str:
        """The role up to its slash."""
        return self.role.partition("/")[0]

    @property
    def kind(self) -> str:
        """The role after its slash; empty where there is none."""
        return self.role.partition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Numbers measured in a run other than answers: cost, drift, places, task scores.

    Attributes:
        run: Id of the run.
        case: Case, text, task item or unit of work that was measured.
        name: What was measured, such as `cost/edit_seconds` or `drift/4`; the metric that reads it
            defines what `values` holds.
        values: The numbers.
        stage: Which model was measured.
        edits: Edits in force.
        skipped: Why there is nothing; empty where there is something.
    """

    run: str = ""
    case: str = ""
    name: str
    values: list[float] = field(default_factory=list[float])
    stage: Stage = Stage.AFTER
    edits: int = 0
    skipped: str = ""

    @property
    def family(self) -> str:
        """The name up to its slash."""
        return self.name.partition("/")[0]

    @property
    def kind(self) -> str:
        """The name after its slash; empty where there is none."""
        return self.name.partition("/")[2]


Record = TypeVar("Record", Row, Measurement)


def tags(meta: Mapping[str, object]) -> list[str]:
    """Return the scalars of a case's `meta`, and those in its lists, as tags.

    Example:
        >>> tags({"relation": "P36", "hops": 2, "flags": ["no-op"]})
        ['relation=P36', 'hops=2', 'flags=no-op']
    """
    found: list[str] = []
    for key, value in meta.items():
        several: list[object] = [*value] if isinstance(value, list | tuple) else [value]
        found += [f"{key}={one}" for one in several if isinstance(one, str | int | float)]
    return found


def to_frame(records: Iterable[Record], kind: type[Record]) -> polars.DataFrame:
    """Return a table with one row per record and one column per field, ready for Parquet.

    Args:
        records: Rows or measurements.
        kind: `Row` or `Measurement`: the columns are there even without records.
    """
    import polars

    hints = get_type_hints(kind)
    names = [one.name for one in dataclasses.fields(kind)]
    columns = {name: _column_type(hints[name]) for name in names}
    return polars.DataFrame([vars(record) for record in records], schema=columns)


def from_frame(frame: polars.DataFrame, kind: type[Record]) -> list[Record]:
    """Return the records of a table that `to_frame` made.

    Raises:
        MalformedRows (CG507): columns are missing or unknown.
    """
    hints = get_type_hints(kind)
    names = {one.name for one in dataclasses.fields(kind)}
    if names != set(frame.columns):
        raise MalformedRows(
            f"these columns do not make {kind.__name__}s: missing "
            f"{sorted(names - set(frame.columns))}, unknown {sorted(set(frame.columns) - names)}.",
            hint="Read a table written by this version, or run again.",
        )
    enums = {
        name: hints[name]
        for name in names
        if isinstance(hints[name], type) and issubclass(hints[name], StrEnum)
    }
    found: list[Record] = []
    for record in frame.iter_rows(named=True):
        plain = {
            name: enums[name](value) if name in enums else value for name, value in record.items()
        }
        found.append(kind(**plain))
    return found


def _column_type(hint: object) -> polars.DataType:
    """The polars type of an annotation: str, bool, int, float, lists of them, each or None."""
    import polars

    plain: dict[object, polars.DataType] = {
        bool: polars.Boolean(),
        int: polars.Int64(),
        float: polars.Float64(),
    }
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and issubclass(hint, str):
        return polars.String()
    inner = next(one for one in get_args(hint) if one is not type(None))
    return polars.List(_column_type(inner)) if get_origin(hint) is list else _column_type(inner)
