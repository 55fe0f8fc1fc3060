"""Thousands of edits in a stream on the pocket model, and facts taken out of it again.

    python perf/stream.py [--edits 2000] [--methods ultraedit,memit] [--removals 1000]

Subjects are real and invented ones of the pocket world, in batches of 100. By method:

- `facts_per_second`: of each tenth of the stream, in processor seconds of the process (other work
  on the machine does not count), and `last_over_first`, the last tenth over the first;
- `holding`: share of all facts so far that the model gives when the stream ends;
- `exact`, `downdate`: seconds to take out edit 317 and then ten more at once, from a stream of
  `--removals` edits, and to have the changes of the weights;
- `bit_equal`: whether what is left by exact removal is to the bit a stream that never had them;
- `difference`: greatest difference of a weight between the two ways, `stated` the error that the
  down-date states, and `largest` the largest change of a weight.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from figures import publish
from torch import Tensor

from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.presets import build_editor
from corrigenda.prompt_answers import check_targets
from corrigenda.streaming.batches import StreamBatch
from corrigenda.streaming.edit_stream import EditStream, How
from corrigenda.streaming.stream import stream

TENTHS = 10
FIRST_OUT = 317


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a name or a folder")
    parser.add_argument("--methods", default="ultraedit,memit", help="with commas")
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--removals", type=int, default=1000, help="edits of that stream")
    parser.add_argument("--steps", type=int, help="of the target search; the preset's if not given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = LanguageModel.load(options.model, dtype=torch.float32)
    facts = draw_facts(options.edits)
    found: dict[str, object] = {}
    for name in options.methods.split(","):
        method, _, variant = name.partition(":")
        settings: dict[str, object] = {variant: True} if variant else {}
        if options.steps and method != "ultraedit":
            settings["steps"] = options.steps
        one = measure(lm, method, settings, facts, options.batch, options.removals)
        found |= {f"{name}: {figure}": value for figure, value in one.items()}
        print(name, one, flush=True)
    goals = {name: 0.9 for name in found if name.endswith("last_over_first")}
    publish({"model": lm.name, "edits": len(facts), "batch": options.batch, **found}, goals)


def draw_facts(count: int) -> list[Fact]:
    """Counterfactual edits of different facts of the world, in a random order."""
    drawn = draw_edits(load_world(), count, seed=11)
    facts = [case.training_fact for case in drawn]
    assert len({fact.prompt for fact in facts}) == len(facts), "no fact comes twice"
    return facts


def measure(
    lm: LanguageModel,
    method: str,
    settings: dict[str, object],
    facts: Sequence[Fact],
    batch: int,
    removals: int,
) -> dict[str, object]:
    """Figures of one method."""
    editor = build_editor(method, lm.name, **settings)
    state = editor.fit(lm, None)
    clock = [time.process_time()]

    def note(_: EditStream) -> None:
        clock.append(time.process_time())

    edits = stream(lm, editor, facts, batch_size=batch, state=state, check=note, progress=False)
    rates = tenths(clock, [len(one.facts) for one in edits.batches])
    with edits.apply(lm):
        holding = sum(check_targets(lm, facts)) / len(facts)
    return {
        "facts_per_second": [round(rate, 2) for rate in rates],
        "last_over_first": round(rates[-1] / rates[0], 3),
        "holding": round(holding, 3),
        **take_out(edits, removals, batch),
    }


def tenths(clock: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Facts per second of each tenth of the batches; of each batch where they are fewer."""
    parts = min(TENTHS, len(counts))
    ends = [round(len(counts) * part / parts) for part in range(parts + 1)]
    return [sum(counts[begin:end]) / (clock[end] - clock[begin]) for begin, end in pairwise(ends)]


def take_out(edits: EditStream, removals: int, batch: int) -> dict[str, object]:
    """Seconds and exactness of two removals from the first edits of a stream."""
    batches = edits.batches[: max(1, removals // batch)]
    shorter = EditStream.of(edits.editor, edits.state, edits.base, batches)
    changes(shorter)
    first = min(FIRST_OUT, len(shorter) - 1)
    others = [place for place in range(len(shorter)) if place != first]
    ten = random.Random(0).sample(others, min(10, len(others) - 1))
    times: dict[How, list[float]] = {"recompute": [], "downdate": []}
    left: dict[How, EditStream] = {}
    for how, seconds in times.items():
        left[how] = shorter
        for places in ([first], ten):
            begin = time.process_time()
            left[how] = left[how].without(places, how=how)
            changes(left[how])
            seconds.append(round(time.process_time() - begin, 3))
    exact, near = changes(left["recompute"]), changes(left["downdate"])
    never = changes(never_had(shorter, frozenset([first, *ten])))
    return {
        "removals_from": len(shorter),
        "exact": times["recompute"],
        "downdate": times["downdate"],
        "bit_equal": all(torch.equal(exact[site], never[site]) for site in exact),
        "difference": max(float((exact[site] - near[site]).abs().max()) for site in exact),
        "stated": left["downdate"].error,
        "largest": max(float(one.abs().max()) for one in exact.values()),
    }


def changes(edits: EditStream) -> dict[Site, Tensor]:
    """Changes of the weights, computed."""
    return {site: one.delta for site, one in edits.solution.changes().items()}


def never_had(edits: EditStream, places: frozenset[int]) -> EditStream:
    """A stream made batch by batch from the records of the other facts alone."""
    made = EditStream.empty(edits.editor, edits.state, edits.base)
    for batch in edits.batches:
        kept = [place for place in batch.places if place not in places]
        index = [place - batch.first for place in kept]
        first = len(made)
        number = {place: first + new for new, place in enumerate(kept)}
        records = {}
        for site, own in batch.only(frozenset(kept)).items():
            owners = torch.tensor([number[place] for place in own.owners.tolist()])
            records[site] = own._replace(owners=owners)
        one = StreamBatch(
            first,
            tuple(batch.facts[one] for one in index),
            tuple(batch.statuses[one] for one in index),
            records,
        )
        made = made.added(one)
        changes(made)
    return made


if __name__ == "__main__":
    main()
