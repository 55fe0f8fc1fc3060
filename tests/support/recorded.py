"""Runs of a model that answers every probe of a benchmark as expected."""

from __future__ import annotations

from pathlib import Path

from corrigenda import benchmarks
from corrigenda.cases import Probe, Protocol
from corrigenda.rows import Row, Stage
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Manifest, Recorded


def answer_probe(case: str, number: int, probe: Probe) -> Row:
    """Return the row of an answer as expected; without an expectation, of some text."""
    text = " and ".join(group[0] for group in probe.expected) or "Rain fell on the old town."
    before = bool(probe.after) and 0 in probe.after
    values: dict[str, object] = {
        "case": case,
        "probe": number,
        "role": probe.role,
        "protocol": probe.protocol,
        "against": probe.against,
        "prompt": probe.prompt,
        "expected": [list(group) for group in probe.expected],
        "rivals": list(probe.rivals),
        "test": probe.test,
        "every": probe.every,
        "stage": Stage.BEFORE if before else Stage.AFTER,
        "rounds": 0 if before else 1,
    }
    if probe.protocol is Protocol.GREEDY:
        values |= {"answer": f" {text}.", "predicted": [1, 2]}
        if not before:
            values |= {"answer_before": f" {text}.", "predicted_before": [1, 2]}
    else:
        values |= {"token_ids": [1, 2], "log_probs": [-0.1, -0.1]}
        values |= {"rival_log_probs": [[-1.0]] * len(probe.rivals)}
        if probe.protocol is Protocol.TEACHER_FORCED:
            values |= {"predicted": [1, 2], "predicted_before": [1, 2]}
    return Row(**values)  # type: ignore[arg-type]  # names of fields


def record_run(name: str, source: Path) -> Recorded:
    """Return the run of a model that answers every probe of a benchmark as expected."""
    spec = RunSpec(editor={"name": "rome"}, benchmark={"name": name})  # type: ignore[arg-type]
    rows = [
        answer_probe(case.id, number, probe)
        for case in benchmarks.load(name, source)
        for number, probe in enumerate(case.probes)
    ]
    manifest = Manifest(run="1", spec=spec.model_dump(mode="json"))
    return Recorded(rows, [], spec, manifest, Path())
