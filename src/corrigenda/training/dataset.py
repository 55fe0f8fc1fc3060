"""Training sets of learned methods: facts with paraphrases and neighbours."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

from corrigenda.errors import BadConfig, MissingState
from corrigenda.facts import Fact, read_facts
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.statistics.corpus import Corpus, Source

TrainingSet = Corpus | Source | Sequence[Fact]
"""Material that `Editor.fit` learns from: text for statistics, or facts for trained methods.

Facts are given as such, or as the path of a JSONL file that `corrigenda.facts.read_facts` reads.
"""

_FEWEST = 2
_MOST_FOR_VALIDATION = 0.2


class TrainingSplit(NamedTuple):
    """Facts to learn from, and facts of other subjects to validate on.

    Attributes:
        training: At least one.
        validation: At least one; with a single subject, the training facts themselves.
    """

    training: tuple[Fact, ...]
    validation: tuple[Fact, ...]


def load_training_set(
    lm: LanguageModel, material: TrainingSet | None, *, where: str
) -> tuple[Fact, ...]:
    """Return the facts to train on: those given, or those shipped for a pocket model.

    Args:
        lm: The model; its name tells whether facts are shipped for it.
        material: Facts, or the path of a file of facts; None takes the shipped ones.
        where: How messages refer to the method.

    Raises:
        MissingState (CG503): nothing was given, and nothing is shipped for this model.
        BadConfig (CG502): text, or fewer than two facts.
        MalformedFacts (CG101): the file cannot be read.
    """
    hint = (
        "Give `corpus`, a list of facts with paraphrases and neighbours, or a JSONL file of such "
        "facts (--training-set FILE)."
    )
    if material is None:
        if lm.name not in SHIPPED:
            raise MissingState(
                f"{where} is trained on facts before the first edit, and none were given.",
                where=f"method {where} on {lm.name}",
                hint=hint,
            )
        from corrigenda.almanac.training_facts import training_facts

        return tuple(training_facts())
    if isinstance(material, str | Path):
        material = read_facts(material)
    if not is_facts(material):
        raise BadConfig(
            "facts are needed to train on, not text.", where=f"method {where}", hint=hint
        )
    facts = tuple(cast("Sequence[Fact]", material))
    if len(facts) < _FEWEST:
        raise BadConfig(
            f"{len(facts)} fact(s) to train on; at least {_FEWEST} are needed.",
            where=f"method {where}",
            hint=hint,
        )
    return facts


def is_facts(material: TrainingSet | None) -> bool:
    """Whether these are facts and not text; an empty list counts as facts."""
    return isinstance(material, list | tuple) and all(isinstance(one, Fact) for one in material)


def text_only(material: TrainingSet | None, *, where: str) -> Corpus | Source | None:
    """Return the text given to a method that learns from text.

    Raises:
        BadConfig (CG502): facts were given.
    """
    if material is not None and is_facts(material):
        raise BadConfig(
            "this method learns from text, not from facts.",
            where=f"method {where}",
            hint="Give texts or files as `corpus`, or leave it out.",
        )
    return cast("Corpus | Source | None", material)


def split(facts: Sequence[Fact], *, validation: int, seed: int) -> TrainingSplit:
    """TrainingSplit facts by subject, so that no subject is on both sides.

    Args:
        facts: At least one.
        validation: Facts to validate on, more or less: subjects stay together, and at most a fifth
            of the facts are taken.
        seed: Seed of the choice.

    Example:
        >>> facts = [Fact(prompt=f"{i} is", subject=str(i), target="odd") for i in range(10)]
        >>> [len(part) for part in split(facts, validation=3, seed=0)]
        [8, 2]
    """
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.subject or fact.prompt, []).append(fact)
    subjects = sorted(groups)
    random.Random(f"split/{seed}").shuffle(subjects)
    room = min(validation, int(_MOST_FOR_VALIDATION * len(facts)))
    judged: set[str] = set()
    taken = 0
    for subject in subjects[:-1]:
        if taken >= max(1, room):
            break
        judged.add(subject)
        taken += len(groups[subject])
    training = tuple(fact for fact in facts if (fact.subject or fact.prompt) not in judged)
    validating = tuple(fact for fact in facts if (fact.subject or fact.prompt) in judged)
    return TrainingSplit(training, validating or training)


def draw_unrelated_prompt(facts: Sequence[Fact], index: int, chance: random.Random) -> str:
    """Draw a prompt whose answer should not change when one of the facts is edited.

    It is one of its neighbours; where it names none, the prompt of a fact about something else.

    Args:
        facts: At least two, where the fact names no neighbours.
        index: Which one is edited.
        chance: Generator of the draw.
    """
    own = facts[index]
    if own.neighbours:
        return chance.choice(own.neighbours)
    others = [fact for fact in facts if fact.subject != own.subject] if own.subject else []
    others = others or [fact for fact in facts if fact.prompt != own.prompt] or [own]
    return chance.choice(others).prompt


def digest(facts: Sequence[Fact]) -> str:
    """Hash the content of facts, in order; their names are left out."""
    contents = [{key: one for key, one in asdict(fact).items() if key != "name"} for fact in facts]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
