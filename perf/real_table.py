"""Every method on a real model: edits of facts that it knows, and records of CounterFact.

    python perf/real_table.py --model smollm2|gemma3|FOLDER [--methods rome,ft-m] [--facts 30]
        [--records 50] [--regimes single,batch,sequence,records] [--minutes M] [--limit 30]
        [--data FOLDER] [--text FILE] [--again] [--write]

The facts are drawn from those that the model knows (`corrigenda exam`), none about a subject that
presets of the model were tuned on. Shares are of greedy answers, with intervals of 95 %: efficacy
and paraphrase say the new object, neighbours and other facts of the subject keep their answer; in
the chat template too, where the model has one. `records` are edits of CounterFact alone, with its
scores; DATA holds `counterfact/counterfact.json` and `text/wikitext-2-raw-test.txt`, and what is
not there is left out. Perplexity is that of ordinary text, over that of the unedited model.

Each method runs in a process of its own, for at most --limit minutes of the processor; a method
that fails has a row that says why. With --write each row goes into `real_table.json` beside this
file as soon as it is there, and into the tables of `docs/measured-real.md`; rows measured with
other weights, options, facts or versions are dropped, and what is there already is not measured
again (--again: what failed is). --minutes ends the run in time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from figures import publish
from real_trial import MethodRun, RunOptions, find_records, list_labels, plan_methods
from table_rows import (
    REGIMES,
    Origins,
    TableRow,
    add_row,
    drop_stale,
    find_missing,
    read_rows,
    replace_block,
    write_tables,
)

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "measured-real.md"
_GRACE_SECONDS = 120


def main() -> None:
    """Measure and print."""
    options = read_options()
    torch.set_num_threads(options.threads)
    own = vars(options)
    settings = RunOptions(**{name: own[name] for name in RunOptions._fields})
    if options.worker:
        run_method(settings, options.worker, options.regimes.split(","), write=options.write)
        return
    started = time.monotonic()
    labels = list_labels(options.methods.split(",") if options.methods else None)
    plan = plan_methods(settings, labels)
    origins = {label: one.origin for label, one in plan.items()}
    if not find_records(settings).is_file():
        print(f"{find_records(settings)} is not there: no records", flush=True)
    if options.write:
        record([], settings.model, origins)
    measured = 0
    for label in labels:
        rows = drop_stale(read_rows(ROWS), settings.model, origins)
        regimes = find_missing(
            rows if options.write else [],
            settings.model,
            label,
            [one for one in plan[label].regimes if one in options.regimes.split(",")],
            settings.facts_by_regime(),
            again=options.again,
        )
        left = options.minutes * 60 - (time.monotonic() - started)
        if not regimes or left <= 0:
            continue
        measured += 1
        start_worker(label, regimes, settings, origins, left, write=options.write)
    rows = [row for row in read_rows(ROWS) if row["model"] == settings.model]
    publish(
        {
            "model": settings.model,
            "methods_measured": measured,
            "rows": len(rows),
            "rows_failed": sum("error" in row for row in rows),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }
    )


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name or a folder")
    parser.add_argument("--methods", default="", help="with commas; all if not given")
    parser.add_argument("--facts", type=int, default=30)
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of the whole run")
    parser.add_argument("--limit", type=float, default=30.0, help="CPU minutes of a method")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--text", type=Path, default=None, help="text for statistics")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="measure again what failed")
    parser.add_argument("--write", action="store_true", help="put the rows into the tables")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def start_worker(
    label: str,
    regimes: Sequence[str],
    settings: RunOptions,
    origins: Origins,
    seconds: float,
    *,
    write: bool,
) -> None:
    """Run a method in a process of its own; where that fails, its missing rows say why."""
    command = [sys.executable, __file__, *settings.to_arguments(), "--worker", label]
    command += ["--regimes", ",".join(regimes), *(["--write"] if write else [])]
    # Other work on the machine makes it slower than its processor time.
    longest = min(seconds, 3 * 60 * settings.limit + _GRACE_SECONDS)
    try:
        ran = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, timeout=longest, check=False
        )
    except subprocess.TimeoutExpired:
        if longest == seconds:
            print(f"{label}: stopped at the end of --minutes", flush=True)
            return
        reason = f"not done after {longest / 60:.0f} minutes"
    else:
        if ran.returncode == 0:
            return
        last = (ran.stderr or "").strip().splitlines() or [""]
        reason = f"the process ended with {ran.returncode}: {last[-1][:200]}"
    rows = drop_stale(read_rows(ROWS), settings.model, origins)
    facts = settings.facts_by_regime()
    for regime in find_missing(rows, settings.model, label, regimes, facts):
        row = TableRow(
            model=settings.model,
            label=label,
            regime=regime,
            facts=facts[regime],
            origin=dict(origins[label]),
            error=reason,
        )
        publish_row(row, origins, write=write)


def run_method(settings: RunOptions, label: str, regimes: Sequence[str], *, write: bool) -> None:
    """Measure one method, row by row."""
    run = MethodRun(settings, label)
    for row in run.measure(regimes):
        publish_row(row, {label: run.origin}, write=write)


def publish_row(row: TableRow, origins: Origins, *, write: bool) -> None:
    """Print a row, and with `write` put it into the file and the page."""
    print(json.dumps(row), flush=True)
    if write:
        record([row], row["model"], origins)


def record(new: Sequence[TableRow], model: str, origins: Origins) -> None:
    """Drop stale rows of a model, add new ones, and write the file and the page anew."""
    with Path(__file__).open() as own:
        # Two models may be measured at once.
        fcntl.flock(own, fcntl.LOCK_EX)
        rows = drop_stale(read_rows(ROWS), model, origins)
        for row in new:
            rows = add_row(rows, row)
        ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        if f"<!-- {model}: begin -->" in PAGE.read_text(encoding="utf-8"):
            own_rows = [row for row in rows if row["model"] == model]
            replace_block(PAGE, model, write_tables(own_rows))


if __name__ == "__main__":
    main()
