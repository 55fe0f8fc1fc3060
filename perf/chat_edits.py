"""Edits of a chat model, plain and in the chat form, with and without chat contexts.

    python perf/chat_edits.py [--model smollm2] [--facts 10] [--layer 5] [--tokens 1000]

Facts about countries that the model knows in the plain form get the object of another country. Each
is edited alone by ROME, with the prefixes of MEMIT, once with the chat form among the contexts and
once without, and asked in both forms: shares are those of `cg.assess`. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from figures import publish

import corrigenda as cg
from corrigenda.almanac.world import load_world
from corrigenda.engines.locate.contexts import generate_contexts
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.prompt_answers import PromptAnswers, Role

CLOZES = {
    "P36": "The capital of {} is",
    "P37": "The official language of {} is",
    "P30": "{} is located on the continent of",
}
PARAPHRASES = {
    "P36": "The capital city of {} is called",
    "P37": "In {}, the official language is",
    "P30": "{} is a country on the continent of",
}
QUESTIONS = {
    "P36": "What is the capital of {}?",
    "P37": "What is the official language of {}?",
    "P30": "On which continent is {} located?",
}
NEIGHBOURS = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name or a folder")
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1000, help="of text for second moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = cg.load(options.model)
    facts = draw_facts(lm, options.facts, options.seed)
    ids = lm.tokenizer(topics["assignment"]).input_ids[: options.tokens]
    text = [str(lm.tokenizer.decode(ids))]
    prefixes = generate_contexts(lm, "memit", seed=options.seed)
    found: dict[str, dict[str, float | None]] = {}
    begin = time.process_time()
    for label, weight in (("without", 0.0), ("with", 0.5)):
        contexts = type(prefixes)(prefixes.prefixes, prefixes.groups, chat=weight)
        editor = cg.Rome(layer=options.layer, contexts=contexts)
        state = editor.fit(lm, text)
        answers: list[tuple[Fact, PromptAnswers]] = []
        for fact in facts:
            patch = editor.edit(lm, [fact], state).patch
            own = cg.assess(lm, patch, [fact], chat=True)
            answers += [(fact, item) for item in own.answers]
            print(label, fact.subject, fact.target, own, flush=True)
        found[label] = summarise(answers)
        print(label, found[label], flush=True)
    seconds = time.process_time() - begin
    publish({"model": lm.name, **vars(options), "cpu_seconds": round(seconds, 1), **found})


def summarise(answers: list[tuple[Fact, PromptAnswers]]) -> dict[str, float | None]:
    """Shares over all prompts of a kind."""
    table: dict[str, float | None] = {"facts": len({fact.subject for fact, _ in answers})}
    for form in (False, True):
        own = [(fact, item) for fact, item in answers if item.chat is form]
        kinds = {
            str(role): [item.is_wanted(fact) for fact, item in own if item.role is role]
            for role in Role
        }
        subjects = [item.keeps_subject(fact) for fact, item in own]
        kinds["subject kept"] = [one for one in subjects if one is not None]
        for name, right in kinds.items():
            share = round(sum(right) / len(right), 3) if right else None
            table[f"{name}, chat" if form else name] = share
    return table


def draw_facts(lm: LanguageModel, count: int, seed: int) -> list[Fact]:
    """Known facts of countries with new objects, asked about in other words and elsewhere."""
    world, draw = load_world(), random.Random(seed)
    known: dict[str, dict[str, str]] = {}
    for relation, cloze in CLOZES.items():
        triples = [
            one
            for one in world.of_relation(relation)
            if world.groups[one.subject] == "country" and len(one.objects) == 1
        ]
        prompts = [cloze.format(one.subject) for one in triples]
        given = cg.answer(lm, prompts, max_new_tokens=8)
        known[relation] = {
            one.subject: one.object
            for one, text in zip(triples, given, strict=True)
            if text.startswith(one.object)
        }
        print(relation, "known:", len(known[relation]), "of", len(triples), flush=True)
    return list(_write_facts(known, count, draw))


def _write_facts(
    known: dict[str, dict[str, str]], count: int, draw: random.Random
) -> Iterator[Fact]:
    pairs = [(relation, name) for relation, own in known.items() for name in own]
    draw.shuffle(pairs)
    for relation, name in pairs[:count]:
        own = known[relation]
        others = [one for one in own if own[one] != own[name]]
        target = own[draw.choice(others)]
        neighbours = draw.sample([one for one in own if one != name], NEIGHBOURS)
        yield Fact(
            prompt=CLOZES[relation].format(name),
            subject=name,
            target=target,
            before=own[name],
            paraphrases=(
                PARAPHRASES[relation].format(name),
                QUESTIONS[relation].format(name),
            ),
            neighbours=tuple(CLOZES[relation].format(one) for one in neighbours),
            same_subject=tuple(
                cloze.format(name)
                for other, cloze in CLOZES.items()
                if other != relation and name in known[other]
            ),
        )


if __name__ == "__main__":
    main()
