"""The facts of the almanac that a model knows, and edits of them. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast

from corrigenda.almanac.exam import ExamEdit, Phrasings, draw_edit
from corrigenda.almanac.world import Triple, World, load_world
from corrigenda.errors import MalformedRecords
from corrigenda.text_files import UnreadableText, parse_json

_FORMAT = 1
_INVENTED = ("person", "company")
# An edit of the one may rightly change the other.
_ENTANGLED = (
    frozenset({"P17", "P1376"}),
    frozenset({"P17", "P131"}),
    frozenset({"P103", "P1412"}),
    frozenset({"P101", "P106"}),
)
_FEWEST_NEIGHBOURS = 2
_FEWEST_OBJECTS = 2


class RelationCount(NamedTuple):
    """How many facts of a relation were asked, and how many of them are known."""

    relation: str
    name: str
    asked: int
    known: int


@dataclass(frozen=True, repr=False)
class KnownFacts:
    """Facts that a model was asked for, and the phrasings under which it answers them right.

    A fact is known where the answer is right under two phrasings or more, a statement among them:
    then it can be edited under one and asked under another.

    Attributes:
        model: Name of the model.
        digest: Its digest.
        chat: Whether it was asked in its chat template.
        asked: Subject and relation of every fact that was asked.
        right: For each fact, the places in `Relation.phrasings` with a right answer.
    """

    model: str
    digest: str
    chat: bool
    asked: tuple[tuple[str, str], ...]
    right: Mapping[tuple[str, str], tuple[int, ...]]

    def __repr__(self) -> str:
        """Return the numbers of facts."""
        form = ", in chat" if self.chat else ""
        return f"<{self.model} knows {len(self)} of {len(self.asked)} facts asked{form}>"

    def __len__(self) -> int:
        """Return the number of known facts."""
        return len(self.triples())

    def triples(self) -> list[Triple]:
        """Return the known facts, in the order asked."""
        world = load_world()
        found = (world.get(*name) for name in self.asked if name in self.right)
        return [one for one in found if one is not None and self._is_known(one)]

    def phrasings(self, triple: Triple) -> Phrasings:
        """Return the phrasings of a fact that are answered right; none if it is not known."""
        texts = load_world().relations[triple.relation].phrasings
        right = [texts[place] for place in self.right.get((triple.subject, triple.relation), ())]
        questions = tuple(text for text in right if text.endswith("?"))
        clozes = tuple(text for text in right if not text.endswith("?"))
        known = bool(clozes) and len(right) > 1
        return Phrasings(clozes, questions) if known else Phrasings((), ())

    def by_relation(self) -> list[RelationCount]:
        """Return counts by relation, most known facts first."""
        world = load_world()
        asked = Counter(relation for _, relation in self.asked)
        known = Counter(one.relation for one in self.triples())
        rows = [
            RelationCount(relation, world.relations[relation].name, number, known[relation])
            for relation, number in asked.items()
        ]
        return sorted(rows, key=lambda row: (-row.known, -row.asked, row.relation))

    def cases(
        self, count: int, seed: int = 0, *, exclude: Iterable[ExamEdit] = ()
    ) -> list[ExamEdit]:
        """Draw edits of known facts: a new object, and prompts that the model answers right now.

        Relations take turns. The new object is one that the model has named for some other fact,
        where the relation has two such objects. Paraphrases, neighbours and other facts of the
        subject are known ones. Facts of several objects, and of relations with too few known
        facts, are left out.

        Args:
            count: How many; fewer where there are no more.
            seed: Decides the draw.
            exclude: Edits whose subjects are left out.
        """
        world, known = load_world(), self.triples()
        draw = random.Random(f"known/{seed}")
        taken = {case.fact.subject for case in exclude}
        named = frozenset(one.object for one in known)
        pools: dict[str, list[Triple]] = defaultdict(list)
        for one in known:
            pools[one.relation].append(one)
        turns = {
            relation: [one for one in pool if len(one.objects) == 1 and one.subject not in taken]
            for relation, pool in sorted(pools.items())
            if len(pool) > _FEWEST_NEIGHBOURS
        }
        order = [relation for relation, left in turns.items() if left]
        draw.shuffle(order)
        for left in turns.values():
            draw.shuffle(left)
        cases: list[ExamEdit] = []
        subjects: set[str] = set()
        while order and len(cases) < count:
            for relation in [*order]:
                triple = turns[relation].pop()
                if not turns[relation]:
                    order.remove(relation)
                if triple.subject in subjects:
                    continue
                objects = _list_sayable(world, triple, named)
                if objects and len(cases) < count:
                    subjects.add(triple.subject)
                    cases.append(self._draw(world, triple, draw, pools[relation], objects))
        return cases

    def _draw(
        self,
        world: World,
        triple: Triple,
        draw: random.Random,
        pool: list[Triple],
        objects: list[str],
    ) -> ExamEdit:
        def phrase(one: Triple) -> Phrasings:
            other = one.subject == triple.subject and one.relation != triple.relation
            if other and are_entangled(one.relation, triple.relation):
                return Phrasings((), ())
            return self.phrasings(one)

        return draw_edit(world, triple, draw, pool=pool, objects=objects, phrase=phrase)

    def _is_known(self, triple: Triple) -> bool:
        return bool(self.phrasings(triple).clozes)

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, which `parse_known_facts` reads."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "digest": self.digest,
            "chat": self.chat,
            "questions": hash_questions(),
            "facts": [
                {
                    "subject": subject,
                    "relation": relation,
                    "right": [*self.right.get((subject, relation), ())],
                }
                for subject, relation in self.asked
            ],
        }


def parse_known_facts(text: str, *, where: str) -> KnownFacts:
    """Return what a model knows from the text of a file that `corrigenda exam` wrote.

    Args:
        text: The text.
        where: Name of the file, for messages.

    Raises:
        MalformedRecords (CG603): it is no such text, or of other questions than ours are now.
    """
    try:
        found = parse_json(text)
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise UnreadableText("not what an exam of a model writes")
        if found.get("questions") != hash_questions():
            raise UnreadableText("its questions are not those of this version")
        facts = cast("list[dict[str, object]]", found["facts"])
        right = {
            (str(one["subject"]), str(one["relation"])): tuple(
                map(int, cast("list[int]", one["right"]))
            )
            for one in facts
        }
        return KnownFacts(
            model=str(found["model"]),
            digest=str(found["digest"]),
            chat=bool(found["chat"]),
            asked=tuple(right),
            right={name: places for name, places in right.items() if places},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedRecords(
            f"the known facts cannot be read: {error}.",
            where=where,
            hint="`corrigenda exam MODEL -o FILE` writes them.",
        ) from error


def are_entangled(first: str, second: str) -> bool:
    """Return whether an edit of a fact of one relation may rightly change the other."""
    return frozenset({first, second}) in _ENTANGLED


def list_askable(*, invented: bool, seed: int = 0) -> list[Triple]:
    """Return the facts to ask for, in an order drawn by a seed.

    Facts whose object is in the subject's name are left out: they can be read off the prompt.

    Args:
        invented: Whether facts about invented people and companies are among them.
        seed: Decides the order, so that the first are a sample.
    """
    world = load_world()
    found = [
        one
        for one in world.triples()
        if (invented or world.groups[one.subject] not in _INVENTED)
        and not any(name.lower() in one.subject.lower() for name in one.objects)
    ]
    random.Random(f"askable/{seed}").shuffle(found)
    return found


def list_places(relation: str) -> tuple[list[int], list[int]]:
    """Return the places in `Relation.phrasings` of clozes and of questions."""
    texts = load_world().relations[relation].phrasings
    clozes = [place for place, text in enumerate(texts) if text.endswith(" {o}")]
    return clozes, [place for place, text in enumerate(texts) if text.endswith("?")]


def list_spellings(triple: Triple) -> tuple[str, ...]:
    """Return every accepted answer of a fact: its objects, and other names they have."""
    aliases = load_world().aliases
    return (*triple.objects, *(aliases[name] for name in triple.objects if name in aliases))


@cache
def hash_questions() -> str:
    """Return a hash of every fact and phrasing, the version of the questions."""
    world = load_world()
    texts = [[one.id, *one.phrasings] for one in world.relations.values()]
    facts = [[one.subject, one.relation, *one.objects] for one in world.triples()]
    return hashlib.sha256(json.dumps([texts, facts]).encode()).hexdigest()[:16]


def _list_sayable(world: World, triple: Triple, named: frozenset[str]) -> list[str]:
    """Return objects for an edit: those that the model has named, or all where they are few."""
    old = list_spellings(triple)
    # "Lake" next to "Lake Victoria" could not be told apart by the beginning of an answer.
    others = [
        name
        for name in world.objects(triple.relation)
        if name != triple.subject
        and not any(name.startswith(one) or one.startswith(name) for one in old)
    ]
    known = [name for name in others if name in named]
    return known if len(known) >= _FEWEST_OBJECTS else others
