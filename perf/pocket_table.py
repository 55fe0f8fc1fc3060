"""Every method on the same facts of the pocket world: single edits, one batch, a sequence.

    python perf/pocket_table.py [--model pocket] [--edits 100] [--only ft-l,ft-m] [--regimes single]

Shares are of prompts judged under strict greedy decoding: efficacy and paraphrase say the new
object; locality and same subject keep the answer of the unedited model (neighbours of the same
relation, and other facts of the edited subject). Seconds and bytes are per fact, without the fit.
A sequence edits one fact at a time, each on top of those before, and asks for all at its end.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from figures import publish

from corrigenda import registry
from corrigenda.editor import Editor
from corrigenda.lm.model import LanguageModel
from corrigenda.pocket.corpus import texts
from corrigenda.pocket.exam import EditItem, load_exam
from corrigenda.pocket.trial import EditFigures, batch_edit, sequence_of_edits, single_edits

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--only", default="", help="methods, with commas; all if not given")
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    cases = load_exam(edits=options.edits, size=1, recall=1).edits
    methods = options.only.split(",") if options.only else registry.names()
    table: dict[str, object] = {}
    for method in methods:
        for label, settings in VARIANTS.get(method, ((method, {}),)):
            editor = registry.build(method, lm.name, **settings)
            table |= measure(lm, label, editor, cases, options.regimes.split(","))
    publish({"model": lm.name, "edits": options.edits, **table})


def measure(
    lm: LanguageModel, label: str, editor: Editor, cases: tuple[EditItem, ...], regimes: list[str]
) -> dict[str, object]:
    """Run one method in the regimes it has; one entry a regime, printed as it comes."""
    begin = time.perf_counter()
    # Without a training set of their own, learned methods take that of the pocket world.
    state = editor.fit(lm, None if editor.needs.training_set else list(texts()))
    fitted = time.perf_counter() - begin
    found: dict[str, EditFigures] = {}
    if "single" in regimes and editor.gives.single:
        found["single"] = single_edits(lm, editor, cases, state=state, progress=progress)
    if "batch" in regimes and editor.gives.batch:
        found["batch"] = batch_edit(lm, editor, cases, state=state)
    if "sequence" in regimes and editor.gives.sequential:
        found["sequence"] = sequence_of_edits(lm, editor, cases, state=state, progress=progress)
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


def progress(stage: str, done: int, total: int) -> None:
    """Show progress on stderr, where it is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {done}/{total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
