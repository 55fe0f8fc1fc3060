"""Questions of two hops after an edit of the first or second fact: memories against weights.

    python perf/multihop.py [--questions 50] [--model pocket] [--seed 7]

Every question is about a person of the registry whom documents of chains left out. The edits of all
questions agree with one another, so the answer is the same whether one of them or all are made.
MeLLo and DeepEdit hold all edits in one memory. MEMIT and FT-M write all of them at once; ROME
writes the one edit of each question and is taken off again. Everybody is asked the bare question,
and that is what is compared. Models with changed weights are asked again behind a worked example,
so that they write out sub-questions as well: `..._worked`, reported beside it, not compared.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import corrigenda
from corrigenda.almanac.documents import Author, assemble, fill_template
from corrigenda.almanac.skill_documents import write_chain, write_chain_question
from corrigenda.almanac.world import Triple, World, load_world
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor

sys.path.insert(0, str(Path(__file__).parent))

from figures import publish

MEMORIES = ("mello", "deepedit")
TOGETHER = ("memit", "ft-m")
ALONE = "rome"
FINAL = "Final answer:"


class Asked(NamedTuple):
    """A question, the fact edited for it, its answer afterwards, and the hop that is edited."""

    question: str
    worked: str
    fact: Fact
    answers: tuple[str, ...]
    hop: int


def questions(world: World, count: int, seed: int) -> list[Asked]:
    """Draw questions whose edits leave each other's answers alone, half of them for each hop."""
    draw = random.Random(f"multihop/{seed}")
    author = Author(world, draw)
    people = [name for name, group in world.groups.items() if group == "person"]
    asked_about = [name for name in people if world.skill_held_out(name)]
    examples = [
        walk for name in people if not world.skill_held_out(name) for walk in world.chains(name, 2)
    ]
    draw.shuffle(asked_about)
    edited: set[tuple[str, str]] = set()
    walked: set[tuple[str, str]] = set()
    found: list[Asked] = []
    for person in asked_about * 2:
        if len(found) == count:
            break
        hop = 1 + len(found) % 2
        for walk in draw.sample(walks := list(world.chains(person, 2)), len(walks)):
            triple = walk[hop - 1]
            changed = _changed(world, draw, walk, hop)
            if changed is None or _clash(walk, changed, hop, edited, walked):
                continue
            edited.add((triple.subject, triple.relation))
            walked |= {(one.subject, one.relation) for one in changed}
            template = draw.choice(world.relations[triple.relation].clozes)
            fact = Fact(
                prompt=assemble(fill_template(template, triple.subject, None)).text,
                target=changed[hop - 1].object,
                subject=triple.subject,
                subject_start=template.index("{s}"),
                before=triple.object,
            )
            question = assemble(write_chain_question(author, walk)).text
            example = assemble(write_chain(author, draw.choice(examples), "plain")).text
            worked = f"{example}\n\nQuestion: {question}\nSubquestion:"
            found.append(Asked(question, worked, fact, changed[-1].objects, hop))
            break
    return found


def _changed(
    world: World, draw: random.Random, walk: Sequence[Triple], hop: int
) -> tuple[Triple, ...] | None:
    """The walk after the edit; None where the answer would not be known, or would stay."""
    first, second = walk
    others = [one for one in world.objects(walk[hop - 1].relation) if one not in walk[hop - 1][2]]
    draw.shuffle(others)
    for new in others:
        if hop == 2:
            return first, Triple(second.subject, second.relation, (new,))
        then = world.get(new, second.relation)
        if then and not set(then.objects) & set(second.objects) and new != first.subject:
            return Triple(first.subject, first.relation, (new,)), then
    return None


def _clash(
    walk: Sequence[Triple],
    changed: Sequence[Triple],
    hop: int,
    edited: set[tuple[str, str]],
    walked: set[tuple[str, str]],
) -> bool:
    """Whether another question's edit lies on this walk, or this edit on another's walk."""
    own = {(one.subject, one.relation) for one in (*walk, *changed)}
    return bool(own & edited) or (walk[hop - 1].subject, walk[hop - 1].relation) in walked


def right(said: Sequence[str], asked: Sequence[Asked]) -> list[bool]:
    """Whether each answer is one that holds after the edit."""
    return [
        text.strip().removesuffix(".") in one.answers for text, one in zip(said, asked, strict=True)
    ]


def bare(lm: LanguageModel, asked: Sequence[Asked]) -> list[bool]:
    """Asked the question alone."""
    return right(answer(lm, [one.question for one in asked], max_new_tokens=16), asked)


def worked(lm: LanguageModel, asked: Sequence[Asked]) -> list[bool]:
    """Asked behind a worked example; what follows the final answer's mark counts."""
    texts = greedy(
        lm, [one.worked for one in asked], max_new_tokens=64, stop=("\n\n", "\nQuestion:")
    )
    return right([text.partition(FINAL)[2].strip().partition("\n")[0] for text in texts], asked)


def share(hits: Sequence[bool]) -> float:
    """Share of questions answered right."""
    return round(sum(hits) / len(hits), 3)


def by_hop(name: str, hits: Sequence[bool], asked: Sequence[Asked]) -> Iterator[tuple[str, float]]:
    """Shares over all questions, and by the hop that is edited."""
    yield name, share(hits)
    for hop in (1, 2):
        own = [hit for hit, one in zip(hits, asked, strict=True) if one.hop == hop]
        yield f"{name}_hop_{hop}", share(own)


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--memories-only", action="store_true")
    options = parser.parse_args()
    lm = corrigenda.load(options.model, dtype="float32")
    asked = questions(load_world(), options.questions, options.seed)
    facts = [one.fact for one in asked]
    figures: dict[str, object] = {"questions": len(asked), "memory": len(facts)}
    figures |= by_hop("unedited_worked", worked(lm, asked), asked)
    for method in MEMORIES:
        began = time.process_time()
        with build_editor(method, lm.name).edit(lm, facts).patch.apply(lm):
            figures |= by_hop(method, bare(lm, asked), asked)
        figures[f"{method}_seconds"] = round(time.process_time() - began, 1)
    for method in () if options.memories_only else (*TOGETHER, ALONE):
        editor = build_editor(method, lm.name)
        state = editor.fit(lm)
        began = time.process_time()
        hits: dict[str, list[bool]] = {"bare": [], "worked": []}
        groups = [[one] for one in asked] if method == ALONE else [asked]
        for group in groups:
            with editor.edit(lm, [one.fact for one in group], state).patch.apply(lm):
                hits["bare"] += bare(lm, group)
                hits["worked"] += worked(lm, group)
        for way, own in hits.items():
            figures |= by_hop(f"{method}_{way}", own, asked)
        figures[f"{method}_seconds"] = round(time.process_time() - began, 1)
    shares = [value for name, value in figures.items() if name.endswith("_bare")]
    best = max((value for value in shares if isinstance(value, float)), default=0.0)
    figures["best_of_weights_bare"] = best
    publish(figures, {method: max(0.7, best + 0.1) for method in MEMORIES})


if __name__ == "__main__":
    main()
