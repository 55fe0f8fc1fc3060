"""Every method on the same facts of the pocket world: single edits, one batch, a sequence.

    python perf/pocket_table.py [--edits 100] [--only ft-l,ft-m] [--regimes single] [--write]

Shares are of prompts judged under strict greedy decoding: efficacy and paraphrase say the new
object; locality and same subject keep the answer of the unedited model (neighbours of the same
relation, and other facts of the edited subject). Seconds and bytes are per fact, without the fit.
A sequence edits one fact at a time, each on top of those before, and asks for all at its end.
With --write the rows go into `pocket_table.json` beside this file, in place of their like and of
all that were measured on other weights, and all of them into the table of `docs/measured.md`. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from figures import publish
from table_rows import replace_block

from corrigenda.almanac.corpus import texts
from corrigenda.almanac.exam import ExamEdit, load_exam
from corrigenda.editor import Editor
from corrigenda.knowledge.edit_trial import (
    EditFigures,
    try_batch_edit,
    try_sequence,
    try_single_edits,
)
from corrigenda.lm.digest import digest
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS

VARIANTS: dict[str, tuple[tuple[str, dict[str, object]], ...]] = {
    "rome": (
        ("r-rome", {"variant": "r-rome"}),
        ("rome", {"variant": "rome"}),
        ("p-rome", {"variant": "p-rome"}),
    ),
    "memit": (("memit", {}), ("memit sequential", {"sequential": True})),
}
"""Methods of which more than the preset is worth a row."""

REGIMES = ("single", "batch", "sequence")

RECORDS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "measured.md"
HEAD = (
    "| method | edits | efficacy | paraphrase | neighbours | same subject | s a fact | KiB a fact "
    "| fit, s |",
    "|---|---|---|---|---|---|---|---|---|",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--only", default="", help="methods, with commas; all if not given")
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the rows into docs/measured.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    cases = load_exam(edits=options.edits, size=1, recall=1).edits
    methods = options.only.split(",") if options.only else METHODS.names()
    origin = {
        "edits": options.edits,
        "weights": digest(lm.model)[:12],
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    table: dict[str, object] = {}
    for method in methods:
        for label, settings in VARIANTS.get(method, ((method, {}),)):
            editor = build_editor(method, lm.name, **settings)
            found = measure(lm, label, editor, cases, options.regimes.split(","))
            table |= found
            if options.write:
                record({name: {**figures, **origin} for name, figures in found.items()})
    publish({"model": lm.name, "edits": options.edits, **table})


def measure(
    lm: LanguageModel, label: str, editor: Editor, cases: tuple[ExamEdit, ...], regimes: list[str]
) -> dict[str, dict[str, float | None]]:
    """Run one method in the regimes it has; one entry a regime, printed as it comes."""
    begin = time.perf_counter()
    # Without a training set of their own, learned methods take that of the pocket world.
    state = editor.fit(lm, None if editor.requires.training_set else list(texts()))
    fitted = time.perf_counter() - begin
    found: dict[str, EditFigures] = {}
    if "single" in regimes and editor.supports.single:
        found["single"] = try_single_edits(lm, editor, cases, state=state, progress=progress)
    if "batch" in regimes and editor.supports.batch:
        found["batch"] = try_batch_edit(lm, editor, cases, state=state)
    if "sequence" in regimes and editor.supports.sequential:
        found["sequence"] = try_sequence(lm, editor, cases, state=state, progress=progress)
    for regime, figures in found.items():
        print(row(label, regime, figures), flush=True)
    return {
        f"{label}: {regime}": {"fit_seconds": round(fitted, 2), **rounded(figures)}
        for regime, figures in found.items()
    }


def row(label: str, regime: str, figures: EditFigures) -> str:
    """One line of the table."""
    shares = "  ".join(f"{'-' if v is None else f'{v:.2f}':>5}" for v in figures[:4])
    return (
        f"{label:<20} {regime:<9} {shares}  {figures.seconds or 0:8.3f} s "
        f"{(figures.num_bytes or 0) / 1024:9.1f} KiB"
    )


def rounded(figures: EditFigures) -> dict[str, float | None]:
    """Four digits."""
    return {k: None if v is None else round(v, 4) for k, v in figures._asdict().items()}


def record(rows: dict[str, dict[str, object]]) -> None:
    """Keep rows, drop those of other weights, and write the table anew."""
    known = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    weights = {row["weights"] for row in rows.values()}
    known = {name: row for name, row in known.items() if row["weights"] in weights} | rows
    known = dict(sorted(known.items(), key=place))
    RECORDS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    replace_block(PAGE, "table", [*HEAD, *(line(name, row) for name, row in known.items())])


def place(entry: tuple[str, object]) -> tuple[str, int]:
    """Methods by name, regimes in their order."""
    label, regime = entry[0].split(": ")
    return label, REGIMES.index(regime)


def line(name: str, row: dict[str, object]) -> str:
    """One line of the page."""
    label, regime = name.split(": ")
    many = {"single": f"{row['edits']} alone", "batch": f"{row['edits']} at once"}
    shares = [row[key] for key in ("efficacy", "paraphrase", "locality", "same_subject")]
    cells = [
        f"`{label}`",
        many.get(regime, f"{row['edits']} in a row"),
        *("-" if one is None else f"{one:.2f}" for one in shares),
        f"{row['seconds']:.2f}",
        f"{(row['num_bytes'] or 0) / 1024:,.0f}",
        f"{row['fit_seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def progress(stage: str, done: int, total: int) -> None:
    """Show progress on stderr, where it is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {done}/{total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
