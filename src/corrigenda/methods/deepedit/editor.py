"""DeepEdit: a chain of reasoning is decoded step by step, and edits take the place of steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from corrigenda.engines.edit_store import (
    READ_TOKENS,
    EditMemory,
    MemoryEditor,
    MemoryPatch,
    Reasoned,
    filled,
    fitted,
    mentions,
    read_from,
    same,
    sentence,
    tidy,
)
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy, score
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.deepedit.prompts import Prompts

# Room for a word of consent or denial.
_WORD_TOKENS = 8
_ANNOUNCES = re.compile(r"^(?P<entity>.+?) (?:is|are) the answers?\b", re.IGNORECASE)
# A full stop between sentences: not behind an initial or a common abbreviation.
_NEXT_SENTENCE = re.compile(r"(?<!\b[A-Z])(?<!\b(?:St|Mr|Dr|Ms|Mt|Jr|Co))\.\s")
# Words that open a sentence with a capital and are no name.
_OPENERS = frozenset(
    (
        *("A", "After", "Among", "An", "As", "At", "By", "During", "For", "From", "He", "Her"),
        *("His", "If", "In", "It", "Its", "On", "She", "That", "The", "Their", "They", "This"),
        *("To", "When", "Where", "While", "Who", "With"),
    )
)
_LINKS = frozenset(("of", "de", "da", "do", "van", "von", "al", "&"))


class DeepEdit(MemoryEditor):
    """Knowledge editing as decoding with constraints, over all edits in memory.

    A depth-first search over chains of steps. The model writes the next step t; the edits nearest
    to t without its new entity are candidates. An edit f takes the place of t (receptiveness) if it
    speaks of the entity the last step introduced and not of the one before (coherence,
    conciseness), or if it contradicts t (pertinence). The most similar accepted edit is
    followed first; the model's own step only where none is accepted. A chain ends with
    "<entity> is the answer".

    No chain uses an edit twice or repeats a step, none returns to the entity before the last, and
    equal states are not searched again. A chain of more than `depth` steps is given up, and so is
    a search of more than `most_states` states, or one with nothing left to follow. Then the search
    has not concluded: the patch gives no answer, and the model's plain one stands.

    Yes and no are decided by the likelier of two next words. The searches of many questions run in
    step, and each kind of call is one batch for all of them.
    """

    name: ClassVar[str] = "deepedit"
    patch_class: ClassVar[type[MemoryPatch]]

    top_k: int = Field(default=2, ge=1, description="Candidates for a step.")
    depth: int = Field(default=8, ge=1, description="Most steps of a chain.")
    most_states: int = Field(default=64, ge=1, description="Most states searched for a question.")
    prompts: Prompts = Field(
        default=Prompts(),
        description="What the model is asked; an empty prompt is decided from the text alone.",
    )
    separator: str = Field(default=".# ", description="Stands between steps.")
    yes: str = Field(default="Yes", description="Word of consent.")
    no: str = Field(default="No", description="Word of denial.")
    conflict: Literal["prompts", "reading"] = Field(
        default="prompts",
        description="How a conflict is found: by asking (all of `prompts.conflict`), or by reading "
        "what the fact says where the step's new entity stands.",
    )
    reading: str = Field(
        default="{fact}. {question}",
        description='How a fact is put before a step with `conflict="reading"`.',
    )

    def reason(
        self, lm: LanguageModel, memory: EditMemory, questions: Sequence[str]
    ) -> list[Reasoned | None]:
        """Search a chain for each question; None for those without one."""
        entities = self._question_entities(lm, questions)
        searches = [
            _Search(text, [_State((), frozenset(), None, entity or None, text)])
            for text, entity in zip(questions, entities, strict=True)
        ]
        for _ in range(self.most_states):
            states = [(one, state) for one in searches if (state := self._next(one))]
            if not states:
                break
            self._expand(lm, memory, states)
        return [one.found for one in searches]

    def complete(
        self, lm: LanguageModel, memory: EditMemory, statements: Sequence[str]
    ) -> list[str | None]:
        """Let the nearest edit that contradicts the model's completion of a statement replace it.

        A statement is a step whose new entity is left open; it is coherent with nothing.
        """
        said = [tidy(text) for text in answer(lm, statements, max_new_tokens=READ_TOKENS)]
        nearest = memory.nearest(lm, statements, self.top_k)
        checks = [
            _Check(place, hit.place, memory.facts[hit.place], f"{text} {told}", text, told)
            for place, (text, told, hits) in enumerate(zip(statements, said, nearest, strict=True))
            for hit in hits
        ]
        found: list[str | None] = [None] * len(statements)
        for check, conflict in zip(checks, self._conflicts(lm, checks), strict=True):
            if conflict and found[check.place] is None:
                found[check.place] = check.fact.target
        return found

    def _next(self, search: _Search) -> _State | None:
        """The state to expand: the last one pushed that is neither too deep nor known."""
        while search.stack and search.found is None:
            state = search.stack.pop()
            if len(state.steps) > self.depth or state.key in search.visited:
                continue
            search.visited.add(state.key)
            return state
        return None

    def _expand(
        self, lm: LanguageModel, memory: EditMemory, states: Sequence[tuple[_Search, _State]]
    ) -> None:
        """Write the next step of each state, and push what may take its place."""
        prompts = [self._prompt(lm, search.question, state) for search, state in states]
        fitting = [
            (one, prompt) for one, prompt in zip(states, prompts, strict=True) if prompt is not None
        ]
        mark = self.separator.strip()
        said = greedy(
            lm,
            [prompt for _, prompt in fitting],
            max_new_tokens=self._budget(lm),
            stop=(mark, mark[-1:], "\n") if mark else ("\n",),
        )
        steps: list[_Step] = []
        for ((search, state), _), text in zip(fitting, said, strict=True):
            step = _NEXT_SENTENCE.split(text.strip())[0].removesuffix(".").strip()
            if ends := _ANNOUNCES.match(step):
                entity = tidy(ends["entity"]) or state.current or ""
                working = self.separator.join((*state.steps, step))
                search.found = Reasoned(entity, working) if entity else None
            elif step and step not in state.steps:
                steps.append(_Step(search, state, step))
        own = self._new_entities(lm, [(one.state.last, one.text) for one in steps])
        queries = self._stripped(lm, steps, own)
        nearest = memory.nearest(lm, queries, self.top_k)
        accepted = self._accepted(lm, memory, steps, own, queries, nearest)
        self._push(lm, memory, steps, own, accepted)

    def _accepted(
        self,
        lm: LanguageModel,
        memory: EditMemory,
        steps: Sequence[_Step],
        own: Sequence[str],
        queries: Sequence[str],
        nearest: Sequence[Sequence[tuple[int, float]]],
    ) -> list[list[int]]:
        """Edits that may take the place of each step, most similar first."""
        checks = [
            _Check(index, hit[0], memory.facts[hit[0]], step.text, query, entity)
            for index, (step, entity, query, hits) in enumerate(
                zip(steps, own, queries, nearest, strict=True)
            )
            for hit in hits
            if hit[0] not in step.state.used
        ]
        current = [steps[check.place].state.current for check in checks]
        before = [steps[check.place].state.before for check in checks]
        facts = [sentence(check.fact) for check in checks]
        follows = self._exist(lm, current, facts)
        returns = self._exist(lm, before, facts)
        coherent = [one and not two for one, two in zip(follows, returns, strict=True)]
        open_ones = [check for check, fits in zip(checks, coherent, strict=True) if not fits]
        conflicts = iter(self._conflicts(lm, open_ones))
        accepted: list[list[int]] = [[] for _ in steps]
        for check, fits in zip(checks, coherent, strict=True):
            if fits or next(conflicts):
                accepted[check.place].append(check.edit)
        return accepted

    def _push(
        self,
        lm: LanguageModel,
        memory: EditMemory,
        steps: Sequence[_Step],
        own: Sequence[str],
        accepted: Sequence[Sequence[int]],
    ) -> None:
        """Push the accepted edits of each step, best on top, or else the model's own step."""
        pairs = [
            (step.state.last, memory.sentences[place])
            for step, places in zip(steps, accepted, strict=True)
            for place in places
        ]
        entities = iter(self._new_entities(lm, pairs))
        for step, entity, places in zip(steps, own, accepted, strict=True):
            follow = [(memory.sentences[place], next(entities), place) for place in places]
            for text, new, place in reversed(follow or [(step.text, entity, -1)]):
                before = step.state.before
                if text in step.state.steps or (before and same(new, before)):
                    continue
                used = step.state.used | ({place} if place >= 0 else set())
                steps_then = (*step.state.steps, text)
                step.search.stack.append(
                    _State(steps_then, used, step.state.current, new or None, text)
                )

    def _question_entities(self, lm: LanguageModel, questions: Sequence[str]) -> list[str]:
        template = self.prompts.question_entity
        if not template:
            return [_last_name("", text) for text in questions]
        return self._told(lm, template, [{"question": text} for text in questions])

    def _new_entities(self, lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """NewEntity(a, b): the entity of b that a does not mention; "" where there is none."""
        template = self.prompts.new_entity
        if not template:
            return [_last_name(previous, step) for previous, step in pairs]
        return self._told(lm, template, [{"previous": a, "step": b} for a, b in pairs])

    def _stripped(
        self, lm: LanguageModel, steps: Sequence[_Step], entities: Sequence[str]
    ) -> list[str]:
        """Strip(a, b): each step without its new entity, by which edits are searched."""
        if self.prompts.strip:
            values = [{"previous": one.state.last, "step": one.text} for one in steps]
            told = self._told(lm, self.prompts.strip, values)
            return [text or step.text for text, step in zip(told, steps, strict=True)]
        return [
            " ".join(one.text.replace(entity, " ").split()) if entity else one.text
            for one, entity in zip(steps, entities, strict=True)
        ]

    def _exist(
        self, lm: LanguageModel, entities: Sequence[str | None], facts: Sequence[str]
    ) -> list[bool]:
        """Exist(e, s): by its name, else by asking; False without an entity."""
        found = [
            bool(entity) and mentions(fact, entity or "")
            for entity, fact in zip(entities, facts, strict=True)
        ]
        left = [place for place, one in enumerate(found) if entities[place] and not one]
        if self.prompts.exists and left:
            values = [{"entity": entities[i] or "", "fact": facts[i]} for i in left]
            agreed = self._agreed(lm, self.prompts.exists, values)
            for place, said in zip(left, agreed, strict=True):
                found[place] = said
        return found

    def _conflicts(self, lm: LanguageModel, checks: Sequence[_Check]) -> list[bool]:
        """Conflict(f, t): the same relation of the same subject, with another object."""
        if self.conflict == "reading":
            read = read_from(
                lm,
                self.reading,
                [check.fact for check in checks],
                [check.query for check in checks],
            )
            return [
                bool(said) and not same(said, check.entity)
                for said, check in zip(read, checks, strict=True)
            ]
        values = [{"fact": f"{sentence(one.fact)}.", "step": f"{one.step}."} for one in checks]
        answers = [self._agreed(lm, template, values) for template in self.prompts.conflict]
        return (
            [all(one) for one in zip(*answers, strict=True)] if answers else [False] * len(checks)
        )

    def _agreed(
        self, lm: LanguageModel, template: str, values: Sequence[Mapping[str, str]]
    ) -> list[bool]:
        """Whether yes is likelier than no behind each filled prompt."""
        prompts = [fitted(lm, filled(template, one), _WORD_TOKENS) for one in values]
        asked = [prompt for prompt in prompts if prompt is not None]
        rated = score(lm, [(text, word) for text in asked for word in (self.yes, self.no)])
        said = iter(yes.mean > no.mean for yes, no in zip(rated[::2], rated[1::2], strict=True))
        return [prompt is not None and next(said) for prompt in prompts]

    def _told(
        self, lm: LanguageModel, template: str, values: Sequence[Mapping[str, str]]
    ) -> list[str]:
        """The first line the model puts behind each filled prompt; "" where none fits."""
        prompts = [fitted(lm, filled(template, one), 1) for one in values]
        asked = [prompt for prompt in prompts if prompt is not None]
        said = iter(greedy(lm, asked, max_new_tokens=READ_TOKENS))
        return ["" if prompt is None else tidy(next(said)) for prompt in prompts]

    def _prompt(self, lm: LanguageModel, question: str, state: _State) -> str | None:
        """The chain so far behind its examples; None where it does not fit the context."""
        text = filled(self.prompts.chain, {"question": question})
        if state.steps:
            joined = "".join(f"{step}{self.separator}" for step in state.steps)
            text = f"{text}{'' if text.endswith(chr(10)) else ' '}{joined}".rstrip(" ")
        return fitted(lm, text, self._budget(lm))

    def _budget(self, lm: LanguageModel) -> int:
        """Tokens left free for one step: at most a quarter of a short context."""
        return max(1, min(self.new_tokens, lm.context_length // 4))


class DeepEditPatch(MemoryPatch):
    """Edited facts that take the place of steps of reasoning; see `MemoryPatch.answers`."""

    kind: ClassVar[str] = "deepedit"
    editor_class: ClassVar[type[MemoryEditor]] = DeepEdit


DeepEdit.patch_class = DeepEditPatch


class _State(NamedTuple):
    """A chain of steps: the edits it uses, its last two new entities, and its last sentence."""

    steps: tuple[str, ...]
    used: frozenset[int]
    before: str | None
    current: str | None
    last: str

    @property
    def key(self) -> tuple[frozenset[int], str]:
        """What makes two states equal: the edits used, and where the chain stands."""
        return self.used, (self.current or self.last).casefold()


@dataclass
class _Search:
    """A question with the states still to be expanded, the last one first."""

    question: str
    stack: list[_State]
    found: Reasoned | None = None
    visited: set[tuple[frozenset[int], str]] = field(default_factory=set)


class _Step(NamedTuple):
    """A step that the model wrote behind a state."""

    search: _Search
    state: _State
    text: str


class _Check(NamedTuple):
    """An edit held against a step, which comes with its stripped form and its new entity."""

    place: int
    edit: int
    fact: Fact
    step: str
    query: str
    entity: str


def _last_name(previous: str, step: str) -> str:
    """The last run of capitalised words in a step that the sentence before does not mention."""
    names: list[str] = []
    run: list[str] = []
    for place, token in enumerate((*step.rstrip(".").split(), "")):
        word = token.strip("\"'(),;:?!").removesuffix("'s")
        named = word[:1].isupper() and not (place == 0 and word in _OPENERS)
        if named or (run and word in _LINKS):
            run.append(word)
        if run and (token != word or run[-1] != word):
            while run[-1] in _LINKS:
                run.pop()
            names.append(" ".join(run))
            run = []
    return next((name for name in reversed(names) if not mentions(previous, name)), "")
