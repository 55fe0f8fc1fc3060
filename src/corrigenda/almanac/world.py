"""The pocket world: a knowledge graph of real and of invented facts.

Everything the pocket models are meant to know is here as data, so the consequences of an edit
(aliases, inverses, two and three hops, competing objects) are known exactly. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from corrigenda.almanac import invented_names as names

WORLD_SEED = 20260101
# Relations whose inverse is also taught, so that a phrasing held out here may be seen there.
TOLD_FROM_BOTH_ENDS = frozenset({"P26", "P36", "P1376"})
# One name for each attribute that chains of questions can walk along.
NOUNS: Mapping[str, str] = {
    "P17": "country",
    "P19": "place of birth",
    "P20": "place of death",
    "P26": "spouse",
    "P27": "country of citizenship",
    "P30": "continent",
    "P36": "capital",
    "P37": "official language",
    "P38": "currency",
    "P69": "university",
    "P103": "mother tongue",
    "P106": "occupation",
    "P108": "employer",
    "P112": "founder",
    "P131": "region",
    "P159": "headquarters",
    "P169": "chief executive",
    "P452": "industry",
    "P495": "country of origin",
    "P641": "sport",
    "P740": "place of formation",
    "P937": "place of work",
    "P1056": "main product",
    "P1303": "instrument",
}


@dataclass(frozen=True)
class Relation:
    """Relation with our phrasings; `{s}` and `{o}` mark subject and object."""

    id: str
    name: str
    label: str
    subject_kind: str
    object_kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    statement_plural: tuple[str, ...]
    question_plural: tuple[str, ...]

    @property
    def clozes(self) -> tuple[str, ...]:
        """Statements whose object comes last, so that the text before it is a prompt."""
        return tuple(text for text in self.statements if text.endswith(" {o}"))

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Every singular phrasing: statements, then questions."""
        return self.statements + self.questions


class Triple(NamedTuple):
    """Known fact; `objects` holds every true object, usually one."""

    subject: str
    relation: str
    objects: tuple[str, ...]

    @property
    def object(self) -> str:
        """The first true object."""
        return self.objects[0]


class World:
    """Facts by subject and relation, with everything needed to ask for them.

    Attributes:
        relations: Relation by id.
        groups: Subject -> "country", "city", "almanac", "person" or "company".
        aliases: Subject -> another name it is known by.
        pronouns: Subject -> "He", "She" or "It", where one is certain.
    """

    def __init__(self, *, size: str = "full", seed: int = WORLD_SEED) -> None:
        """Build the world.

        Args:
            size: "full", or "small": a fraction of it, for tests of the training recipe.
            seed: Decides the registry and every held-out choice.
        """
        self.size, self.seed = size, seed
        self.relations = {relation.id: relation for relation in _read_relations()}
        self.groups: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.pronouns: dict[str, str] = {}
        self._facts: dict[tuple[str, str], tuple[str, ...]] = {}
        self._add_almanac()
        self._add_registry()
        self._by_subject: dict[str, list[Triple]] = defaultdict(list)
        self._by_relation: dict[str, list[Triple]] = defaultdict(list)
        for triple in self.triples():
            self._by_subject[triple.subject].append(triple)
            self._by_relation[triple.relation].append(triple)

    def triples(self) -> Iterator[Triple]:
        """Yield every fact, in a fixed order."""
        for (subject, relation), objects in self._facts.items():
            yield Triple(subject, relation, objects)

    def __len__(self) -> int:
        """Return the number of facts."""
        return len(self._facts)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every subject, in a fixed order."""
        return tuple(self.groups)

    def about(self, subject: str) -> list[Triple]:
        """Return every fact of one subject."""
        return self._by_subject.get(subject, [])

    def of_relation(self, relation: str) -> list[Triple]:
        """Return every fact of one relation."""
        return self._by_relation.get(relation, [])

    def get(self, subject: str, relation: str) -> Triple | None:
        """Return the fact, or None if the world does not have it."""
        objects = self._facts.get((subject, relation))
        return Triple(subject, relation, objects) if objects else None

    def objects(self, relation: str) -> tuple[str, ...]:
        """Return every object seen with a relation, sorted."""
        return _list_objects(self, relation)

    def held_out(self, subject: str, relation: str) -> frozenset[int]:
        """Return the places in `phrasings` that training never shows for this subject and relation.

        A fifth of the subjects lose a quarter of the phrasings of each of their relations.
        """
        if hash_to_fraction(f"{self.seed}/held-out/{subject}") >= 0.2:
            return frozenset()
        count = len(self.relations[relation].phrasings)
        chooser = random.Random(f"{self.seed}/{subject}/{relation}")
        return frozenset(chooser.sample(range(count), count // 4))

    def skill_held_out(self, subject: str) -> bool:
        """Return whether documents that teach a skill leave this subject to the examination."""
        return hash_to_fraction(f"{self.seed}/skill/{subject}") < 0.15

    def chains(self, subject: str, hops: int) -> Iterator[tuple[Triple, ...]]:
        """Yield walks of `hops` facts from a subject, each about the object of the one before."""
        for first in self.about(subject):
            if first.relation not in NOUNS or len(first.objects) > 1:
                continue
            if hops == 1:
                yield (first,)
                continue
            for rest in self.chains(first.object, hops - 1):
                if all(subject not in (triple.subject, triple.object) for triple in rest):
                    yield (first, *rest)

    def _put(self, subject: str, relation: str, *objects: str) -> None:
        self._facts.setdefault((subject, relation), objects)

    def _add_almanac(self) -> None:
        keep = 1.0 if self.size == "full" else 0.03
        countries = _read_table("countries.tsv")
        known_countries = {row["country"] for row in countries}
        for row in _read_table("almanac.tsv"):
            if hash_to_fraction(f"almanac/{row['subject']}") < keep:
                self._put(row["subject"], row["relation"], *row["objects"].split(" | "))
                self.groups.setdefault(row["subject"], "almanac")
        for row in countries:
            country, capital = row["country"], row["capital"]
            if hash_to_fraction(f"country/{country}") >= max(keep, 0.1):
                continue
            self.groups[country], self.pronouns[country] = "country", "It"
            self._put(country, "P36", capital)
            self._put(country, "P30", row["continent"])
            self._put(country, "P37", row["language"])
            self._put(country, "P38", row["currency"])
            if capital not in known_countries:
                self.groups[capital], self.pronouns[capital] = "city", "It"
                self._put(capital, "P17", country)
                self._put(capital, "P1376", country)
        for country, cities in _read_cities().items():
            if self.groups.get(country) != "country":
                continue
            for city in cities:
                self.groups[city], self.pronouns[city] = "city", "It"
                self._put(city, "P17", country)
        for country, alias in names.COUNTRY_ALIASES.items():
            if country in self.groups:
                self.aliases[country] = alias

    def _add_registry(self) -> None:
        num_people, num_companies = (600, 100) if self.size == "full" else (48, 8)
        cities = sorted(name for name, group in self.groups.items() if group == "city")
        languages = sorted({row["language"] for row in _read_table("countries.tsv")})
        draw = random.Random(self.seed)
        people = names.draw_people(draw, num_people, taken=set(self.groups))
        companies = names.draw_companies(draw, num_companies, taken=set(self.groups))
        for person, pronoun in people:
            self.groups[person], self.pronouns[person] = "person", pronoun
        order = [person for person, _ in people]
        for person in order:
            self._put(person, "P19", draw.choice(cities))
            self._put(person, "P106", draw.choice(names.OCCUPATIONS))
            self._put(person, "P108", draw.choice(companies))
            self._put(person, "P69", draw.choice(names.UNIVERSITIES))
            self._put(person, "P103", draw.choice(languages))
            self._put(person, "P641", draw.choice(names.SPORTS))
            if draw.random() < 0.25:
                self.aliases[person] = names.draw_nickname(draw, taken=set(self.aliases.values()))
        draw.shuffle(order)
        for one, two in zip(order[: num_people // 6], order[-num_people // 6 :], strict=True):
            self._put(one, "P26", two)
            self._put(two, "P26", one)
        for company in companies:
            self.groups[company], self.pronouns[company] = "company", "It"
            self._put(company, "P159", draw.choice(cities))
            self._put(company, "P112", draw.choice(order))
            self._put(company, "P169", draw.choice(order))
            self._put(company, "P452", draw.choice(names.INDUSTRIES))
            self._put(company, "P1056", draw.choice(names.PRODUCTS))
            self._put(company, "P571", str(draw.randrange(1850, 2015)))


def hash_to_fraction(text: str) -> float:
    """Map a text to [0, 1): the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


@cache
def load_world(size: str = "full", seed: int = WORLD_SEED) -> World:
    """Build the world once per process."""
    return World(size=size, seed=seed)


@cache
def _list_objects(world: World, relation: str) -> tuple[str, ...]:
    return tuple(sorted({o for triple in world.of_relation(relation) for o in triple.objects}))


def _read(name: str) -> str:
    return resources.files("corrigenda.almanac").joinpath("data", name).read_text(encoding="utf-8")


def _read_table(name: str) -> list[dict[str, str]]:
    header, *lines = _read(name).rstrip("\n").split("\n")
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


def _read_cities() -> dict[str, list[str]]:
    lines = (line.split(": ") for line in _read("cities.txt").rstrip("\n").split("\n"))
    return {country: cities.split(", ") for country, cities in lines}


def _read_relations() -> Iterator[Relation]:
    for row in json.loads(_read("relations.json")):
        texts: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        yield Relation(**texts)
