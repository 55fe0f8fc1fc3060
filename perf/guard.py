"""Verdicts of the guard on twelve edits of known kind, and its false alarms.

    python perf/guard.py [--edits 100] [--only rome,identity] [--repeats 200] [--write]

Each edit is judged on one draw of prompts, and measured again on another, larger one. False alarms:
verdicts on draws of prompts from one large set, of the edit that changes nothing, of GRACE where no
question is in its scope, and of damage that is exactly what is free. With --write the table goes
into docs/guard.md. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import torch
from figures import publish
from table_rows import replace_block

import corrigenda as cg
from corrigenda.almanac.exam import ExamEdit, load_exam
from corrigenda.guarding.baseline import ANSWERS, Baseline
from corrigenda.guarding.damage import GuardVerdict, PairedValue, decide, estimate_damage
from corrigenda.guarding.limits import LIMITS, Measure
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch, WeightPatch
from corrigenda.patch.changes import Dense
from corrigenda.patch.header import Header

PAGE = Path(__file__).parents[1] / "docs" / "guard.md"
CHECK = 150
"""Prompts of each kind by which a verdict is checked."""
PARTS = ("mlp.down", "mlp.up", "mlp.gate", "attn.out")
"""Weights that get noise."""
POOL = 200
"""Prompts of each kind from which repeats draw."""


def make_identity(lm: LanguageModel, facts: list[cg.Fact]) -> list[Patch]:
    return [WeightPatch({}, Header(method="none"))]


def make_noise(share: float) -> Callable[[LanguageModel, list[cg.Fact]], list[Patch]]:
    """Gaussian noise on the weights of every block, by its share of the norm."""

    def make(lm: LanguageModel, facts: list[cg.Fact]) -> list[Patch]:
        generator = torch.Generator().manual_seed(0)
        changes = {}
        for layer, part in itertools.product(range(lm.num_layers), PARTS):
            site = cg.Site(layer, part)
            weight = lm.weight(site).detach().float()
            noise = torch.randn(weight.shape, generator=generator)
            changes[site] = Dense(noise * (share * weight.norm() / noise.norm()))
        return [WeightPatch(changes, Header(method=f"noise {share:g}"))]

    return make


def make_together(
    method: str, **options: object
) -> Callable[[LanguageModel, list[cg.Fact]], list[Patch]]:
    def make(lm: LanguageModel, facts: list[cg.Fact]) -> list[Patch]:
        return [cg.edit(lm, facts, method, progress=False, **options)]

    return make


def make_in_a_row(lm: LanguageModel, facts: list[cg.Fact]) -> list[Patch]:
    editor = cg.build_editor(lm, "rome")
    state = editor.fit(lm)
    patches = []
    with ExitStack() as active:
        for fact in facts:
            patch, state = editor.edit(lm, [fact], state)
            active.enter_context(patch.apply(lm))
            patches.append(patch)
    return patches


OVERFIT = {"steps": 60, "learning_rate": 1e-2, "stop_loss": 0.0, "layers": [0, 1, 2, 3, 4, 5]}

EDITS: dict[str, tuple[int, Callable[[LanguageModel, list[cg.Fact]], list[Patch]]]] = {
    "identity": (1, make_identity),
    "rome": (1, make_together("rome")),
    "memit of 16": (16, make_together("memit")),
    "memit of 100": (100, make_together("memit")),
    "alphaedit of 100": (100, make_together("alphaedit")),
    "rome, 100 in a row": (100, make_in_a_row),
    "ft-l of 100": (100, make_together("ft-l")),
    "noise 1 %": (1, make_noise(0.01)),
    "noise 10 %": (1, make_noise(0.1)),
    "noise 50 %": (1, make_noise(0.5)),
    "grace of 16": (16, make_together("grace")),
    "lora that overfits": (8, make_together("lora", **OVERFIT)),
}
"""Facts, and how the patches of an edit are made."""


def judge(
    lm: LanguageModel, patches: list[Patch], cases: Sequence[ExamEdit], sample: int, seed: int
) -> dict[str, object]:
    start = time.process_time()
    facts = [case.training_fact for case in cases]
    report = cg.guard(
        lm, patches, facts, sample=sample, seed=seed, causes=sample != CHECK, progress=False
    )
    return {
        "verdict": str(report.verdict),
        "decided_by": report.reason,
        "damage": {
            str(one.measure): round(one.value, 4)
            for one in report.damages
            if one.value == one.value
        },
        "causes": [text for text, _ in report.list_causes()[:3]],
        "seconds": round(time.process_time() - start, 1),
    }


def draw_values(values: Sequence[PairedValue], size: int, seed: int) -> list[PairedValue]:
    """Draw so many values of each measure, with replacement, each a case of its own."""
    draw = random.Random(seed)
    found = []
    for measure in Measure:
        own = [one for one in values if one.measure is measure]
        drawn = draw.choices(own, k=size) if own else []
        found += [one._replace(case=f"draw {place}") for place, one in enumerate(drawn)]
    return found


def raise_to_limits(values: Sequence[PairedValue]) -> list[PairedValue]:
    """Return values whose mean damage is, by every measure, what the table calls free."""
    found = []
    for measure in dict.fromkeys(one.measure for one in values):
        own, free = [one for one in values if one.measure is measure], LIMITS[measure].free
        if measure in ANSWERS:
            lost = round(free * len(own))
            found += [one._replace(after=float(place >= lost)) for place, one in enumerate(own)]
        elif measure is Measure.DIVERGENCE:
            mean = fmean(one.after for one in own)
            found += [one._replace(after=one.after * free / mean) for one in own]
    return found


def count_alarms(values: Sequence[PairedValue], repeats: int, size: int) -> float:
    """Return the share of draws on which the verdict is not free."""
    alarms = 0
    for seed in range(repeats):
        damages = estimate_damage(draw_values(values, size, seed), LIMITS, seed=seed)
        alarms += decide(damages)[0] is not GuardVerdict.FREE
    return alarms / repeats


def measure_alarms(
    lm: LanguageModel, cases: Sequence[ExamEdit], repeats: int, size: int
) -> dict[str, float]:
    facts = [case.training_fact for case in cases[:16]]
    baseline = Baseline(lm, facts, sample=POOL, seed=2)
    identity = baseline.measure(lm)
    with cg.edit(lm, facts, "grace", progress=False).apply(lm):
        grace = baseline.measure(lm)
    with cg.edit(lm, facts, "memit", progress=False).apply(lm):
        memit = baseline.measure(lm)
    return {
        "identity": count_alarms(identity, repeats, size),
        "grace out of scope": count_alarms(grace, repeats, size),
        # Divergences of a real edit, so that their distribution is as skewed as it is.
        "damage at the limits": count_alarms(raise_to_limits(memit), repeats, size),
    }


def write_table(
    found: dict[str, dict[str, object]], alarms: dict[str, float], repeats: int
) -> None:
    """Put verdicts and false alarms between the markers of the page."""
    columns = [str(one) for one in Measure if one is not Measure.TASKS]
    shown = (
        (name, one["verdict"], one["again"]["verdict"], *(one["damage"].get(c) for c in columns))
        for name, one in found.items()
    )
    lines = [
        f"| edit | verdict | again | {' | '.join(columns)} |",
        "|---" * (3 + len(columns)) + "|",
        *("| " + " | ".join(map(format_cell, row)) + " |" for row in shown),
        "",
        f"Not free, of {repeats} draws: "
        + ", ".join(f"{name} {share:.1%}" for name, share in alarms.items())
        + ".",
    ]
    replace_block(PAGE, "guard", lines)


def format_cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=100, help="most facts of an edit")
    parser.add_argument("--only", default="", help="edits, with commas; all if not given")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--sample", type=int, default=48)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lm = cg.load(options.model)
    cases = load_exam(edits=options.edits, size=1, recall=1).edits
    found: dict[str, dict[str, object]] = {}
    agreed = []
    for name in options.only.split(",") if options.only else EDITS:
        count, make = EDITS[name]
        own = cases[: min(count, options.edits)]
        patches = make(lm, [case.training_fact for case in own])
        first = judge(lm, patches, own, options.sample, seed=0)
        second = judge(lm, patches, own, CHECK, seed=1)
        agreed.append(first["verdict"] == second["verdict"])
        found[name] = {**first, "again": second}
        print(
            f"{name:>20}  {first['verdict']:<8} again {second['verdict']:<8} "
            f"{first['decided_by']}  [{first['seconds']} s]",
            flush=True,
        )
    alarms = measure_alarms(lm, cases, options.repeats, options.sample)
    if options.write:
        write_table(found, alarms, options.repeats)
    publish({"edits": found, "agreed": fmean(agreed), "alarms": alarms})


if __name__ == "__main__":
    main()
