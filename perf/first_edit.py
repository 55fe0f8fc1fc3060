"""Cost of a first edit on a real model, stage by stage, in seconds and in units.

    python perf/first_edit.py --model FOLDER [--cold] [--warm] [--layer N] [--text FILE]

The model is smollm2, gemma3 or a folder. One unit is a forward pass over 1,024 tokens without the
head, in the same process: the median of several, taken before and after. Seconds are those of the
processor, so that only work counts, on one thread. `--cold` begins with an empty cache of its own,
`--warm` edits once in another process with the same cache before; the default is both, one after
the other. The edit is "The capital of France is" -> Rome. Loading is shown and not counted. Last
line: the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from figures import publish

TOKENS = 1024
PASSES = 3
LIMITS = {("smollm2", "cold"): 10.0, ("smollm2", "warm"): 6.0, ("gemma3", "cold"): 14.0}
PROMPT, TARGET = "The capital of France is", "Rome"
# A wording that both models answer with Paris before the edit.
PARAPHRASE = "The city that is the capital of France is"
NEIGHBOUR, KEPT = "The capital of Germany is", "Berlin"
CACHE = "CORRIGENDA_CACHE"


class Clock:
    """Progress callback that adds up processor seconds by stage."""

    def __init__(self) -> None:
        """Start the clock."""
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._last = time.process_time()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Charge the time since the last report to the innermost stage that runs."""
        self.charge()
        names = [name for name, _ in self._open]
        if stage not in names and done < total:
            self._open.append((stage, 0.0))
        if stage in names and done >= total:
            del self._open[names.index(stage) :]

    def charge(self) -> None:
        """Add the time since the last report to the stage that runs."""
        now = time.process_time()
        stage = self._open[-1][0] if self._open else "other"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@contextmanager
def charged(clock: Clock, stage: str) -> Generator[None]:
    """Count a part of the script as a stage."""
    clock(stage, 0, 1)
    yield
    clock(stage, 1, 1)


def time_unit(lm: object) -> list[float]:
    """Return processor seconds of passes over 1,024 tokens without the head."""
    import torch

    ids = torch.arange(TOKENS)[None] % 1000 + 100
    times = []
    for _ in range(PASSES):
        start = time.process_time()
        with torch.inference_mode():
            lm.model.base_model(input_ids=ids, use_cache=False)  # type: ignore[attr-defined]
        times.append(time.process_time() - start)
    return times


def edit_once(options: argparse.Namespace) -> dict[str, object]:
    """Edit in this process, and return what it cost and what became of the fact."""
    start = time.process_time()
    import torch

    import corrigenda as cg

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lm = cg.load(options.model)
    loading = time.process_time() - start
    time_unit(lm)
    passes = time_unit(lm)
    fact = cg.Fact(prompt=PROMPT, target=TARGET, paraphrases=(PARAPHRASE,), neighbours=(NEIGHBOUR,))
    clock = Clock()
    made = cg.correct(
        lm,
        fact,
        options.method,
        layer=options.layer,
        corpus=options.text,
        progress=clock,
    )
    clock.charge()
    passes += time_unit(lm)
    unit = statistics.median(passes)
    answers = {item.prompt: item.after for item in made.answers if not item.chat}
    in_chat = {item.prompt: item.after for item in made.answers if item.chat}
    total = sum(clock.seconds.values())
    return {
        "units": round(total / unit, 2),
        "seconds": round(total, 2),
        "seconds_of_a_unit": round(unit, 3),
        "spread_of_a_unit": [round(min(passes), 3), round(max(passes), 3)],
        "seconds_of_loading": round(loading, 2),
        "stages": {name: round(value, 2) for name, value in clock.seconds.items()},
        "units_of_stages": {name: round(value / unit, 2) for name, value in clock.seconds.items()},
        "took": made.succeeded,
        "other_wording_follows": answers[PARAPHRASE].startswith(TARGET),
        "neighbour_kept": KEPT in answers[NEIGHBOUR] and TARGET not in answers[NEIGHBOUR],
        "answers": answers,
        "answers_in_chat": in_chat,
        "changed": [change.site for change in made.changes],
        "search_steps": [len(one["losses"]) for one in made.patch.header.notes.get("search", [])],
    }


def edit_in_process(arguments: list[str], cache: str) -> dict[str, object]:
    """Run this script once more, for one edit with a cache folder."""
    command = [sys.executable, __file__, *arguments, "--once"]
    environment = {**os.environ, CACHE: cache, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cold", action="store_true", help="only with an empty cache")
    parser.add_argument("--warm", action="store_true", help="only with a filled cache")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--text", default=None)
    parser.add_argument("--once", action="store_true", help="one edit in this process and cache")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(edit_once(options)))
        return
    arguments = [one for one in sys.argv[1:] if one not in ("--cold", "--warm")]
    kinds = [kind for kind in ("cold", "warm") if getattr(options, kind)] or ["cold", "warm"]
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", *(["warm"] if "warm" in kinds else [])):
            found[kind] = edit_in_process(arguments, cache)
            show(kind, found[kind])
    name = Path(options.model).name
    limits = {
        ("units" if len(kinds) == 1 else f"units_{kind}"): LIMITS[name, kind]
        for kind in kinds
        if (name, kind) in LIMITS
    }
    report: dict[str, object] = {"model": name, "method": options.method}
    for kind in kinds:
        report |= found[kind] if len(kinds) == 1 else {f"units_{kind}": found[kind]["units"]}
    if len(kinds) > 1:
        report |= {"units": found["cold"]["units"], **{kind: found[kind] for kind in kinds}}
    publish(report, limits=limits)


def show(kind: str, found: dict[str, object]) -> None:
    """Print a table of the stages."""
    seconds, units = found["stages"], found["units_of_stages"]
    assert isinstance(seconds, dict)
    assert isinstance(units, dict)
    print(f"{kind}: loading {found['seconds_of_loading']} s, not counted")
    for stage, value in seconds.items():
        print(f"  {stage:24} {value:8.2f} s {units[stage]:7.2f} units")
    print(f"  {'in all':24} {found['seconds']:8.2f} s {found['units']:7.2f} units")


if __name__ == "__main__":
    main()
