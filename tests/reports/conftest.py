"""Small recorded runs, made by hand: what each answers is said by a function."""

import pytest

from corrigenda.cases import Protocol
from corrigenda.rows import Measurement, Row, Stage
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Manifest, RunPart, Store, load

TARGET, OLD, NEIGHBOUR = "Rome", "Paris", "Berlin"


def rows_of(run, right, kept, *, moments=(0,), cases=6):
    """Rows of some cases: `right(case, edits)` and `kept(case, edits)` say what the model does."""
    found = []
    for edits in moments:
        for case in range(cases):
            position = case + 1 if edits else 0
            if edits and position > edits:
                continue
            common = {
                "run": run,
                "case": f"c{case}",
                "protocol": Protocol.GREEDY,
                "stage": Stage.AFTER,
                "position": position,
                "edits": edits,
                "model": f"{run}-{edits}",
                "model_before": "base",
            }
            said = f" {TARGET}." if right(case, edits) else " Los York & sons | x_y"
            neighbour = f" {NEIGHBOUR}" if kept(case, edits) else f" {TARGET}"
            found += [
                Row(
                    role="reliability",
                    probe=0,
                    prompt="The capital of France is",
                    expected=[[TARGET]],
                    answer=said,
                    answer_before=f" {OLD}",
                    **common,
                ),
                Row(
                    role="locality/relation_specificity",
                    probe=1,
                    against="unedited",
                    prompt="The capital of Germany is",
                    expected=[[NEIGHBOUR]],
                    answer=neighbour,
                    answer_before=f" {NEIGHBOUR}",
                    **common,
                ),
            ]
    return found


@pytest.fixture
def recorded(tmp_path):
    """Write a run and read it: `recorded(method, right, kept, moments=(0,))`."""

    def make(method, right, kept, *, moments=(0,), cases=6, skipped=0, benchmark="pocketedit"):
        kind = "sequential" if moments != (0,) else "single"
        spec = RunSpec(
            editor={"name": method}, benchmark={"name": benchmark}, regime={"kind": kind}
        )
        run = spec.digest()
        rows = rows_of(run, right, kept, moments=moments, cases=cases)
        rows += [
            Row(run=run, case=f"bad{i}", role="reliability", protocol="greedy", skipped="CG105")
            for i in range(skipped)
        ]
        cost = [Measurement(run=run, case="u", name="cost/edit_seconds", values=[0.5])]
        store = Store(tmp_path / "runs" / run)
        store.begin(
            Manifest(
                run=run,
                spec=spec.model_dump(mode="json"),
                model="pocket",
                model_digest="abc",
                versions={"torch": "2"},
            )
        )
        store.add(RunPart("000", rows, cost))
        store.finish(["000"])
        return load(run, tmp_path / "runs")

    return make
