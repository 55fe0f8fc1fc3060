"""Defaults of a first edit: blocks, texts and clamps, by real edits of facts that a model knows.

    python perf/first_edit_defaults.py --model FOLDER --layers 3 5 8 --facts 10
    python perf/first_edit_defaults.py --model FOLDER --texts own documents book.txt --clamps 1.5 4

For each combination single R-ROME edits: shares of prompts that give the new object (efficacy,
other wording) and of other subjects that keep theirs, each with a bootstrap interval of 95 %.
Last line: the figures as JSON.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from figures import publish

import corrigenda as cg
from corrigenda.almanac.exam import draw_edit
from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.lm.decoding import gives
from corrigenda.lm.model import LanguageModel
from corrigenda.statistics.corpus import OWN_TEXT

RELATIONS = ("P17", "P30", "P36", "P37", "P103", "P176", "P178", "P1376")
MEASURES = ("efficacy", "paraphrase", "neighbours")


class Known(NamedTuple):
    """A fact to change, with the prompts of it and of others that the model answers rightly."""

    fact: Fact
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]


def find_known(lm: LanguageModel, count: int, seed: int) -> list[Known]:
    """Find facts that the model knows in two wordings, with two neighbours that it knows."""
    world, draw = load_world(), random.Random(seed)
    triples = [t for relation in RELATIONS for t in world.of_relation(relation)]
    triples = [t for t in triples if world.groups[t.subject] in ("almanac", "country", "city")]
    draw.shuffle(triples)
    objects = {(t.subject, t.relation): t.object for t in triples}
    known: list[Known] = []
    for triple in triples:
        if len(known) == count:
            break
        fact = draw_edit(world, triple, draw).fact
        wordings = [fact.prompt, *fact.paraphrases[:3]]
        right = gives(lm, [(prompt, triple.object) for prompt in wordings])
        if not right[0] or not any(right[1:]):
            continue
        others = [t for t in world.of_relation(triple.relation) if t.subject != triple.subject]
        others = [
            t for t in others if objects.get((t.subject, t.relation)) not in (None, fact.target)
        ]
        asked = [
            (fact.prompt.replace(triple.subject, t.subject), t.object)
            for t in draw.sample(others, min(12, len(others)))
        ]
        kept = [pair for pair, yes in zip(asked, gives(lm, asked), strict=True) if yes][:4]
        if len(kept) < 2:
            continue
        wordings = [text for text, yes in zip(wordings[1:], right[1:], strict=True) if yes]
        known.append(Known(fact, tuple(wordings[:2]), tuple(kept)))
    return known


def measure(
    lm: LanguageModel, editor: cg.Rome, text: str | Path | None, known: list[Known]
) -> list[list[float]]:
    """Return efficacy, paraphrases and neighbours of each single edit."""
    state = editor.fit(lm, text)
    rows = []
    for one in known:
        with editor.edit(lm, [one.fact], state).patch.apply(lm):
            prompts = [one.fact.prompt, *one.paraphrases]
            took = gives(lm, [(prompt, one.fact.target) for prompt in prompts])
            kept = gives(lm, list(one.neighbours))
        rows.append([float(took[0]), sum(took[1:]) / len(took[1:]), sum(kept) / len(kept)])
    return rows


def interval(values: list[float]) -> str:
    """Return the mean with its bootstrap interval."""
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(1000))
    return f"{sum(values) / len(values):.2f} [{means[25]:.2f}, {means[974]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument(
        "--texts", nargs="*", default=["documents"], help="documents, own, or files"
    )
    parser.add_argument("--clamps", type=float, nargs="*", default=[])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    lm = cg.load(given.model)
    known = find_known(lm, given.facts, given.seed)
    table = []
    for layer in given.layers or [None]:
        for text in given.texts:
            source = {"documents": None, "own": OWN_TEXT}.get(text, Path(text))
            for clamp in given.clamps or [None]:
                start = time.process_time()
                editor = cg.Rome(layer=layer, clamp=clamp)
                rows = measure(lm, editor, source, known)
                found = {
                    name: interval([row[place] for row in rows])
                    for place, name in enumerate(MEASURES)
                }
                used = editor.sites(lm)[0].layer
                cpu = round(time.process_time() - start, 1)
                table.append({"layer": used, "text": text, "clamp": clamp, **found, "cpu_s": cpu})
    publish({"model": given.model, "facts": len(known), "rows": table})


if __name__ == "__main__":
    main()
