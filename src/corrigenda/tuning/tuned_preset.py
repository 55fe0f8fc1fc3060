"""A preset that was found by search, with its evidence; written as the presets of methods are."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from corrigenda.files import write_text
from corrigenda.knowledge.edit_trial import FactOutcome
from corrigenda.methods.presets import Preset
from corrigenda.metrics.estimate import AnswerValue, over_cases
from corrigenda.tuning.evaluation import Outcomes
from corrigenda.tuning.scores import WEIGHTS, list_answers


@dataclass(frozen=True)
class TunedPreset:
    """Options of a method for a model, with what was measured.

    Attributes:
        method: Name of the method.
        options: Options.
        model: Name, digest, dtype and shape of the model.
        evidence: How the search went, and figures on facts that it did not use.
    """

    method: str
    options: Mapping[str, object]
    model: Mapping[str, object]
    evidence: Mapping[str, object]

    @property
    def source(self) -> str:
        """Return where the options come from, in a line."""
        found = self.evidence
        how = f"score {found['score']} on {found['facts']} facts"
        if found["is_present"]:
            how += ", that of the options used before"
        else:
            how += f", that of those used before {found['score_of_present']}"
        return (
            f"corrigenda tune {self.model['name']} --method {self.method}, version "
            f"{found['version']}, {found['date']}: {found['trials']} trials in {found['minutes']} "
            f"minutes; {how}. Figures on other facts are in [evidence]"
        )

    @property
    def preset(self) -> Preset:
        """Return it as a preset."""
        return Preset(
            str(self.model["name"]),
            self.options,
            self.source,
            method=self.method,
            base=self.model,
        )

    def save(self, path: str | Path) -> Path:
        """Write the TOML file, which `--preset FILE` and `load(presets=...)` read.

        Raises:
            WriteFailed (CG601): it cannot be written.
        """
        head = {"source": self.source, "method": self.method}
        tables = {"options": self.options, "model": self.model, "evidence": self.evidence}
        return write_text(
            path,
            "\n".join([_write_table(head), *map(_write_named, *zip(*tables.items(), strict=True))]),
        )

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "model": dict(self.model),
            "evidence": dict(self.evidence),
            "source": self.source,
        }


def summarise(outcomes: Outcomes) -> dict[str, object]:
    """Return figures with intervals: of single edits and of many at once, plain and in chat."""
    found: dict[str, object] = {}
    regimes = (
        ("single", outcomes.single, outcomes.single_drift),
        ("at_once", outcomes.batch, [outcomes.batch_drift or 0.0]),
    )
    for regime, rows, drift in regimes:
        for chat in (False, True):
            asked = [row for row in rows if row.chat is chat]
            if asked:
                name = f"{regime}_in_chat" if chat else regime
                found[name] = _summarise(asked)
        if rows:
            found[f"{regime}_drift"] = round(statistics.fmean(drift), 5) if drift else 0.0
    if outcomes.seconds:
        found["seconds_per_fact"] = round(statistics.median(outcomes.seconds), 2)
    return found


def _summarise(rows: Sequence[FactOutcome]) -> dict[str, object]:
    """Return the share of each kind of prompt with the interval over facts."""
    figures: dict[str, object] = {"facts": len(rows)}
    for kind in WEIGHTS:
        values = [
            AnswerValue(case=row.fact, value=float(right), kind=kind)
            for row in rows
            for right in list_answers(row, kind)
        ]
        if values:
            one = over_cases(kind, values)
            ends = {"low": one.low, "high": one.high} if not math.isnan(one.low) else {}
            figures[kind] = {"value": one.value, **ends, "prompts": len(values)}
    return figures


def _write_named(name: str, table: Mapping[str, object]) -> str:
    return f"[{name}]\n{_write_table(table)}"


def _write_table(table: Mapping[str, object]) -> str:
    return "".join(f"{name} = {_write_value(value)}\n" for name, value in table.items())


def _write_value(value: object) -> str:
    """Return a value as TOML; tables within are inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(round(value, 6)) if abs(value) > 1e-3 or not value else repr(value)
        case int():
            return str(value)
        case Mapping():
            named = cast("Mapping[str, object]", value)
            inner = ", ".join(
                f"{_write_key(key)} = {_write_value(one)}" for key, one in named.items()
            )
            return f"{{ {inner} }}"
        case list() | tuple():
            return f"[{', '.join(map(_write_value, cast('Sequence[object]', value)))}]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def _write_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)
