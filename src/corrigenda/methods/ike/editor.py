"""IKE: demonstrations that copy, update and retain answers are written before the new fact."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from corrigenda.editor import Requires
from corrigenda.engines import text_tensors
from corrigenda.engines.in_context import InContextEditor, InContextPatch, Layout
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.retrieval import Index, embedder
from corrigenda.state import State
from corrigenda.training import QUIET, TrainingJob

DemonstrationType = Literal["copy", "update", "retain"]

_POOL, _VECTORS = "ike/pool", "ike/vectors"
_ASKED_AT_ONCE = 256
_SENTENCE_START = re.compile(r".*[.!?]\s+|.*\n", re.DOTALL)


class PoolRecord(NamedTuple):
    """A fact of the pool, with the probes that it can demonstrate.

    Attributes:
        fact: The new fact, with its name and subject.
        paraphrase: Another prompt for it; empty where it has none.
        neighbour: A prompt it should not touch; empty where it has none.
        kept: The unedited model's answer to the neighbour.
    """

    fact: Fact
    paraphrase: str
    neighbour: str
    kept: str


class IkePatch(InContextPatch):
    """New facts with their demonstrations, written before the questions nearest to them."""

    kind: ClassVar[str] = "ike"


class IKE(InContextEditor):
    """In-context knowledge editing.

    Reference: Zheng et al. 2023, sections 3 and 4. See the card, `ike.md`.
    """

    name: ClassVar[str] = "ike"
    requires: ClassVar[Requires] = Requires(training_set=True)
    patch_class: ClassVar[type[InContextPatch]] = IkePatch

    num_demonstrations: int = Field(
        default=32, ge=0, description="Demonstrations before a new fact, as far as they fit."
    )
    repeat_fact: bool = Field(
        default=True,
        description="Copy the new fact itself in one more demonstration, which comes last.",
    )
    pool_size: int | None = Field(
        default=None, ge=1, description="Facts of the training set to choose from; all if None."
    )
    seed: int = Field(default=42, description="Of the types and of the probes that show them.")

    @property
    def usual_demonstrations(self) -> int:
        """How many demonstrations come before a new fact."""
        return self.num_demonstrations

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: TrainingJob = QUIET,
    ) -> State:
        """Build the pool of demonstrations: facts disjoint from those to be edited.

        The answer that a neighbour keeps is the model's present one.
        """
        chance = random.Random(f"pool/{self.seed}")
        if self.pool_size is not None and self.pool_size < len(facts):
            chosen = sorted(chance.sample(range(len(facts)), self.pool_size))
            facts = tuple(facts[place] for place in chosen)
        paraphrases = [
            subject_sentence(chance.choice(fact.paraphrases), fact.subject)
            if fact.paraphrases
            else ""
            for fact in facts
        ]
        neighbours = [chance.choice(fact.neighbours) if fact.neighbours else "" for fact in facts]
        asked = list(dict.fromkeys(filter(None, neighbours)))
        kept: dict[str, str] = {"": ""}
        for start in range(0, len(asked), _ASKED_AT_ONCE):
            part = asked[start : start + _ASKED_AT_ONCE]
            kept |= dict(zip(part, map(_strip_stop, answer(lm, part)), strict=True))
            if job.progress is not None:
                job.progress("asking what is kept", start + len(part), len(asked))
        rows = [
            [paraphrase, neighbour if kept[neighbour] else "", kept[neighbour]]
            for paraphrase, neighbour in zip(paraphrases, neighbours, strict=True)
        ]
        layout = Layout.of(self.model_dump(mode="json"))
        texts = [layout.new_fact(fact) for fact in facts]
        return State(
            {
                f"{_POOL}/facts": text_tensors.encode_facts(facts),
                f"{_POOL}/probes": text_tensors.encode_value([list(row) for row in rows]),
                _VECTORS: embedder(self.embedder).embed(lm, texts),
            }
        )

    def pool(self, state: State) -> list[PoolRecord]:
        """Return the records of a pool.

        Raises:
            MissingState (CG503): the state holds none.
        """
        if _VECTORS not in state.tensors:
            raise MissingState(
                "there is no pool of demonstrations.",
                where=f"method {self.name}",
                hint="Call `editor.fit(lm, facts)` with facts disjoint from those to be edited, "
                "and pass its state.",
            )
        facts = text_tensors.decode_facts(state.tensors[f"{_POOL}/facts"])
        probes = text_tensors.decode_value(state.tensors[f"{_POOL}/probes"])
        assert isinstance(probes, list), "one row of probes a fact"
        rows = [[str(text) for text in row] for row in probes if isinstance(row, list)]
        return [PoolRecord(fact, *row) for fact, row in zip(facts, rows, strict=True)]

    def _demonstrate(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None
    ) -> tuple[list[list[str]], dict[str, object]]:
        assert state is not None, "edit gives at least an empty one"
        pool = self.pool(state)
        layout = Layout.of(self.model_dump(mode="json"))
        vectors = embedder(self.embedder).embed(lm, [layout.new_fact(fact) for fact in facts])
        banned = [sum(_may_be_same_fact(record.fact, fact) for record in pool) for fact in facts]
        index = Index(state.tensors[_VECTORS])
        found = index.search(vectors, max(1, self.num_demonstrations + max(banned)))
        demonstrations, types, similarities = [], [], []
        for row, fact in enumerate(facts):
            hits = [
                (pool[place], score)
                for place, score in zip(
                    found.indices[row].tolist(), found.scores[row].tolist(), strict=True
                )
                if not _may_be_same_fact(pool[place].fact, fact)
            ][: self.num_demonstrations]
            hits.reverse()
            wanted = assign_types(len(hits), random.Random(f"{self.seed}/{layout.new_fact(fact)}"))
            shown: list[DemonstrationType] = [
                _shown_type(one, hit[0]) for one, hit in zip(wanted, hits, strict=True)
            ]
            own = [
                _write_demonstration(layout, one, hit[0])
                for one, hit in zip(shown, hits, strict=True)
            ]
            if self.repeat_fact:
                own.append(layout.demonstration(fact, fact.prompt, fact.target))
            demonstrations.append(own)
            types.append([one[0] for one in shown])
            similarities.append([round(score, 3) for _, score in hits[:1] + hits[-1:]])
        notices = [] if any("r" in one for one in types) else [_NEVER_LEFT_ALONE]
        notes = {"types": ["".join(one) for one in types], "similarities": similarities}
        return demonstrations, {**notes, "notices": notices}


_NEVER_LEFT_ALONE = (
    "no demonstration leaves a prompt alone, so neighbours will hardly be left alone: give a pool "
    "whose facts have neighbours."
)


def assign_types(count: int, chance: random.Random) -> list[DemonstrationType]:
    """Return types in random order; copy, update and retain are in the ratio 1 to 3 to 4.

    Example:
        >>> from collections import Counter
        >>> sorted(Counter(assign_types(32, random.Random(0))).items())
        [('copy', 4), ('retain', 16), ('update', 12)]
    """
    copies, updates = round(count / 8), round(3 * count / 8)
    types: list[DemonstrationType] = ["retain"] * (count - copies - updates)
    types.extend(itertools.repeat("copy", copies))
    types.extend(itertools.repeat("update", updates))
    chance.shuffle(types)
    return types


def subject_sentence(text: str, subject: str | None) -> str:
    r"""Cut off the sentences before the one with the subject, which CounterFact paraphrases have.

    Example:
        >>> subject_sentence("He left. It rained.\nIn Rome, Monet died in", "Monet")
        'In Rome, Monet died in'
    """
    at = text.find(subject) if subject else -1
    before = _SENTENCE_START.match(text, 0, max(at, 0))
    return text[before.end() :] if before else text


def _shown_type(wanted: DemonstrationType, record: PoolRecord) -> DemonstrationType:
    """Return the type wanted, or "copy" where the record lacks the probe for it."""
    possible = {"copy": True, "update": bool(record.paraphrase), "retain": bool(record.neighbour)}
    return wanted if possible[wanted] else "copy"


def _write_demonstration(layout: Layout, shown: DemonstrationType, record: PoolRecord) -> str:
    fact = record.fact
    if shown == "retain":
        return layout.demonstration(fact, record.neighbour, record.kept)
    probe = record.paraphrase if shown == "update" else fact.prompt
    return layout.demonstration(fact, probe, fact.target)


def _may_be_same_fact(one: Fact, other: Fact) -> bool:
    """Return whether two facts may be one: they share the case, the prompt or the subject."""
    same_case = bool(one.name) and one.name == other.name
    same_subject = one.subject is not None and one.subject == other.subject
    return same_case or same_subject or one.prompt == other.prompt


def _strip_stop(text: str) -> str:
    return text.rstrip(".")
