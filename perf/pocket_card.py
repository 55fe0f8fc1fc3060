"""Measure every figure of a pocket model; the last line is one JSON object.

python perf/pocket_card.py [--model pocket] [--preset pocket] [--quick] [--threads N] [--write]

With --write the figures, and how the model was trained, also go into the model card, between the
marks of that model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from figures import publish, with_versions
from table_rows import replace_block

from corrigenda.almanac.corpus import texts
from corrigenda.almanac.exam import load_exam
from corrigenda.almanac.world import load_world
from corrigenda.lm.model import LanguageModel
from corrigenda.pocket import card

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "src" / "corrigenda" / "pocket" / "CARD.md"
COUNTERFACT = ROOT.parent / "shared" / "data" / "counterfact" / "counterfact.json"

GOALS = {
    "recall": 0.97,
    "recall_held_out": 0.90,
    "injection": 0.95,
    "injection_transfer": 0.80,
    "injection_later": 0.95,
    "injection_later_transfer": 0.80,
    "rome_efficacy": 0.95,
    "rome_paraphrase": 0.85,
    "rome_locality": 0.90,
    "memit_efficacy": 0.90,
    "context_override": 0.90,
    "two_hop_chained": 0.70,
    "refusal": 0.90,
    "counterfact_known": 0.70,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--preset", default="pocket", help="whose presets the editing methods take")
    parser.add_argument("--quick", action="store_true", help="a fifth of the questions or less")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the figures into the model card")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    folder = card.find_model_folder(options.model)
    world = load_world()
    exam = load_exam(size=60, edits=20, recall=300) if options.quick else load_exam()
    figures: dict[str, object] = {"model": options.model, "quick": options.quick}
    if folder is not None:
        figures |= card.measure_size(lm, folder)
        figures["loads_plainly"] = card.loads_without_us(lm, folder, exam.recall[0].prompt)
    figures |= card.measure(
        lm,
        exam,
        counterfact=card.read_counterfact_prompts(COUNTERFACT, world),
        corpus=list(texts()),
        preset=options.preset,
        num_traced=5 if options.quick else 20,
        progress=report,
    )
    figures["seconds"] = round(time.perf_counter() - start, 1)
    if options.write and folder is not None:
        write(folder, with_versions(figures))
    publish(figures, GOALS)


def write(folder: Path, figures: dict[str, object]) -> None:
    """Replace the block of this model in the card by its training record and its figures."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    recipe = training.pop("recipe")
    rows = ["| trained | |", "|---|---|"]
    rows += [f"| {name} | {value} |" for name, value in (recipe | training).items()]
    rows += ["", "| figure | measured | goal |", "|---|---|---|"]
    rows += [
        f"| `{name}` | {', '.join(map(str, value)) if isinstance(value, list) else value} "
        f"| {GOALS.get(name, '')} |"
        for name, value in figures.items()
        if not isinstance(value, dict)
    ]
    replace_block(CARD, folder.name, rows)


def report(stage: str, done: int, total: int) -> None:
    """Show progress on stderr, where it is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {done}/{total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
