"""What the mask does: a pocket model trained with it beside one trained on the same text without.

    python perf/pocket_control.py MASKED_FOLDER CONTROL_FOLDER [--facts 40] [--threads N] [--write]

Each folder is what `corrigenda pocket train -o FOLDER --set masked_share=SHARE` wrote. Injection is
measured on facts that both models know. With --write the figures go into the model card. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from figures import publish, with_versions
from pocket_card import CARD
from table_rows import replace_block

from corrigenda.almanac.exam import load_exam
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.pocket import card

SHOWN = ("recall", "recall_held_out", "injection_by_layer", "injection_transfer_by_layer")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masked", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true", help="put the figures into the model card")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = {"masked": options.masked, "control": options.control}
    models = {
        name: LanguageModel.load(folder, dtype=torch.float32) for name, folder in folders.items()
    }
    exam = load_exam(edits=10 * options.facts)
    facts = [item.fact for item in exam.edits if item.fact.before]
    pairs = [(fact.prompt, fact.before or "") for fact in facts]
    known = [
        fact
        for fact, *said in zip(facts, *(score(lm, pairs) for lm in models.values()), strict=True)
        if all(all(one.correct) for one in said)
    ][: options.facts]
    figures: dict[str, object] = {"facts": len(known)}
    for name, lm in models.items():
        training = json.loads((folders[name] / "training.json").read_text(encoding="utf-8"))
        figures |= {
            f"{name}_share": training["recipe"]["masked_share"],
            f"{name}_tokens": training["tokens"],
            f"{name}_minutes": round(training["seconds"] / 60, 1),
        }
        measured: dict[str, object] = {
            "recall": card.measure_right(lm, exam.recall),
            "recall_held_out": card.measure_right(lm, exam.recall_held_out),
            **card.summarise_injection(lm, known, exam.contexts[:3]),
        }
        figures |= {f"{name}_{key}": rounded(measured[key]) for key in SHOWN}
    if options.write:
        write(with_versions(figures))
    publish(figures)


def rounded(value: object) -> object:
    """Four digits."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def write(figures: dict[str, object]) -> None:
    """Replace the block of the control in the card."""
    rows = ["| figure | measured |", "|---|---|"]
    rows += [
        f"| `{name}` | {', '.join(map(str, value)) if isinstance(value, list) else value} |"
        for name, value in figures.items()
    ]
    replace_block(CARD, "control", rows)


if __name__ == "__main__":
    main()
