"""Exam of a model: which facts of the almanac it knows, and under which phrasings."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.exam import ExamEdit, draw_edits
from corrigenda.almanac.known_facts import (
    KnownFacts,
    hash_questions,
    list_askable,
    list_places,
    list_spellings,
)
from corrigenda.almanac.world import Triple, load_world
from corrigenda.errors import BadConfig
from corrigenda.files import write_text
from corrigenda.lm.decoding import answer, begins, continuations
from corrigenda.lm.loading import SHIPPED
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.progress import Progress, show_progress
from corrigenda.statistics.cache import hash_settings, read_texts, write_texts

_VERSION = 1
"""Of the rule by which facts are asked and answers judged."""

FIRST = 3
"""Statements asked of every fact; the other phrasings are asked only where one was answered."""

_FACTS_AT_ONCE = 200
_FIRST_SAMPLE = 4 * _FACTS_AT_ONCE
_NEW_TOKENS = 12
_CHAT_TOKENS = 24


class _Question(NamedTuple):
    """A prompt with its accepted answers, and the fact and phrasing it belongs to."""

    fact: int
    place: int
    prompt: str
    answers: tuple[str, ...]


def exam(
    lm: LanguageModel,
    sample: int | None = None,
    *,
    seed: int = 0,
    chat: bool = False,
    progress: Progress | bool | None = None,
) -> KnownFacts:
    """Ask a model for the facts of the almanac, and return those it knows.

    Every fact is asked under three statements up to the object; where one is answered right, under
    all other statements and six questions too. An answer is right where the greedy continuation
    begins with the object or another name of it; in a chat template, where its first sentence
    holds one. Facts about invented people and companies are asked of the pocket models only, and
    facts whose object is in the name of the subject of none.

    Results are kept in the cache by the model's digest, 200 facts at a time: an exam that was
    stopped goes on, and a larger sample asks only the rest.

    Args:
        lm: The model.
        sample: How many facts; all 4,343 if None (8,742 of a pocket model).
        seed: Decides which come first.
        chat: Ask in the model's chat template, where statements are turns of the user.
        progress: A callback with (stage, done, total), or False for no progress bar.

    Raises:
        BadConfig (CG502): a sample of less than one fact, or `chat` without a template.

    Example:
        ```python
        known = cg.exam(lm, sample=700)
        cases = known.cases(30)
        ```
    """
    lm = require_lm(lm)
    if sample is not None and sample < 1:
        raise BadConfig(f"a sample of {sample} facts.", where="exam", hint="Ask for one or more.")
    facts = list_askable(invented=lm.name in SHIPPED, seed=seed)[:sample]
    digest = lm.digest()
    right: dict[tuple[str, str], tuple[int, ...]] = {}
    with show_progress(progress) as report:
        for start in range(0, len(facts), _FACTS_AT_ONCE):
            part = facts[start : start + _FACTS_AT_ONCE]
            if report is not None:
                report("exam: facts asked", start, len(facts))
            for triple, places in zip(part, _ask_cached(lm, digest, part, chat), strict=True):
                if places:
                    right[triple.subject, triple.relation] = places
    asked = tuple((one.subject, one.relation) for one in facts)
    return KnownFacts(model=lm.name, digest=digest, chat=chat, asked=asked, right=right)


def write_known_facts(known: KnownFacts, path: str | Path) -> Path:
    """Write what a model knows as JSON, which PocketEdit reads.

    Raises:
        WriteFailed (CG601): it cannot be written.
    """
    return write_text(path, json.dumps(known.to_json(), ensure_ascii=False) + "\n")


def find_known_facts(
    lm: LanguageModel, count: int, *, progress: Progress | bool | None = None
) -> KnownFacts:
    """Return an exam large enough for a number of edits, and twice as many where there are.

    Args:
        lm: The model.
        count: How many edits are to be drawn.
        progress: As for `exam`.
    """
    most = len(list_askable(invented=lm.name in SHIPPED))
    sample = 0
    while True:
        sample = min(sample + _FIRST_SAMPLE, most)
        known = exam(lm, sample, progress=progress)
        if sample == most or len(known.cases(2 * count)) == 2 * count:
            return known


def draw_cases(
    lm: LanguageModel,
    count: int,
    *,
    seed: int = 0,
    exclude: Sequence[ExamEdit] = (),
    progress: Progress | bool | None = None,
) -> list[ExamEdit]:
    """Draw edits of facts that a model knows.

    For the pocket models they are those of their own exam (`almanac.exam`), else those of `exam`.

    Args:
        lm: The model.
        count: How many; fewer where there are no more.
        seed: Decides the draw.
        exclude: Edits whose subjects are left out.
        progress: As for `exam`.
    """
    if lm.name not in SHIPPED:
        known = find_known_facts(lm, count + len(exclude), progress=progress)
        return known.cases(count, seed, exclude=exclude)
    world = load_world()
    if not exclude:
        return draw_edits(world, count, seed=seed)
    taken = {case.fact.subject for case in exclude}
    drawn = draw_edits(world, 2 * (count + len(taken)), seed=seed)
    return [case for case in drawn if case.fact.subject not in taken][:count]


def _ask_cached(
    lm: LanguageModel, digest: str, facts: Sequence[Triple], chat: bool
) -> list[tuple[int, ...]]:
    """Return the places of phrasings answered right, fact by fact, from the cache where there."""
    settings = {
        "kind": "exam",
        "version": _VERSION,
        "questions": hash_questions(),
        "model": digest,
        "chat": chat,
        "facts": [[one.subject, one.relation] for one in facts],
    }
    name = hash_settings(settings)
    cached = None if lm.patches else read_texts(name)
    if cached is not None:
        return [tuple(map(int, json.loads(line))) for line in cached]
    found = _ask(lm, facts, chat)
    if not lm.patches:
        write_texts(name, [json.dumps(places) for places in found])
    return found


def _ask(lm: LanguageModel, facts: Sequence[Triple], chat: bool) -> list[tuple[int, ...]]:
    """Ask a few statements of every fact, and all other phrasings of those answered right."""
    right: list[set[int]] = [set() for _ in facts]
    later: list[list[int]] = []
    first: list[_Question] = []
    for index, triple in enumerate(facts):
        clozes, questions = list_places(triple.relation)
        draw = random.Random(f"exam/{triple.subject}/{triple.relation}")
        opening = draw.sample(clozes, min(FIRST, len(clozes)))
        first += _write_questions(index, triple, opening)
        later.append([place for place in (*clozes, *questions) if place not in opening])
    _judge(lm, first, right, chat)
    second = [
        question
        for index, triple in enumerate(facts)
        if right[index]
        for question in _write_questions(index, triple, later[index])
    ]
    _judge(lm, second, right, chat)
    return [tuple(sorted(places)) for places in right]


def _write_questions(index: int, triple: Triple, places: Iterable[int]) -> list[_Question]:
    texts = load_world().relations[triple.relation].phrasings
    answers = list_spellings(triple)
    return [
        _Question(index, place, write_prompt(texts[place], triple.subject), answers)
        for place in places
    ]


def _judge(
    lm: LanguageModel, questions: Sequence[_Question], right: Sequence[set[int]], chat: bool
) -> None:
    """Ask, and note which phrasings of which facts are answered right."""
    prompts = [one.prompt for one in questions]
    if chat:
        said = answer(lm, prompts, max_new_tokens=_CHAT_TOKENS, chat=True)
        good = [
            any(names(text, one) for one in asked.answers)
            for text, asked in zip(said, questions, strict=True)
        ]
    else:
        found = continuations(
            lm,
            prompts,
            max_new_tokens=_NEW_TOKENS,
            finished=lambda row, text: _is_decided(text.lstrip(), questions[row].answers),
        )
        good = [
            any(begins(one.text.lstrip(), name) for name in asked.answers)
            for one, asked in zip(found, questions, strict=True)
        ]
    for asked, true in zip(questions, good, strict=True):
        if true:
            right[asked.fact].add(asked.place)


def names(text: str, target: str) -> bool:
    """Tell whether a text holds a target, as whole words."""
    return re.search(rf"(?<!\w){re.escape(target)}(?!\w)", text) is not None


def _is_decided(text: str, answers: Iterable[str]) -> bool:
    """Tell whether it is certain that a text, however it goes on, is right or wrong."""
    return not any(one.startswith(text) for one in answers)
