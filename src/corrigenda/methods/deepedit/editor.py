"""DeepEdit: reasoning is decoded step by step, and edits that fit replace the model's steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from corrigenda.engines.edit_store import (
    READ_TOKENS,
    EditStore,
    EditStoreEditor,
    EditStorePatch,
    Reasoned,
    fill_template,
    fit_examples,
    is_same_entity,
    mentions,
    read_answers,
    tidy,
    write_sentence,
)
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy, score
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.deepedit.prompts import DeepEditPrompts

# Room for one word, yes or no.
_WORD_TOKENS = 8
_ANNOUNCES = re.compile(r"^(?P<entity>.+?) (?:is|are) the answers?\b", re.IGNORECASE)
# A full stop between sentences: not after an initial or a common abbreviation.
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


class DeepEdit(EditStoreEditor):
    """Knowledge editing as decoding with constraints, over all stored edits.

    A depth-first search over chains of steps. The model writes the next step t; the edits nearest
    to t without its new entity are candidates. An edit f replaces t (receptiveness) if it
    mentions the entity the last step introduced and not the one before (coherence,
    conciseness), or if it contradicts t (pertinence). The most similar accepted edit is
    followed first; the model's own step only where none is accepted. A chain ends with
    "<entity> is the answer".

    No chain uses an edit twice or repeats a step, none returns to the entity before the last, and
    equal states are not searched again. A chain of more than `depth` steps is given up, and so is
    a search of more than `most_states` states, or one with nothing left to follow. Then the search
    has not concluded: the patch gives no answer, and the model answers by itself.

    Yes and no are decided by the likelier of two next words. The searches of many questions run in
    step, and each kind of call is one batch for all of them.
    """

    name: ClassVar[str] = "deepedit"
    patch_class: ClassVar[type[EditStorePatch]]

    top_k: int = Field(default=2, ge=1, description="Candidates for a step.")
    depth: int = Field(default=8, ge=1, description="Most steps of a chain.")
    most_states: int = Field(default=64, ge=1, description="Most states searched for a question.")
    prompts: DeepEditPrompts = Field(
        default=DeepEditPrompts(),
        description="What the model is asked; an empty prompt is decided from the text alone.",
    )
    separator: str = Field(default=".# ", description="Text between two steps.")
    yes: str = Field(default="Yes", description="Word that affirms.")
    no: str = Field(default="No", description="Word that denies.")
    conflict: Literal["prompts", "reading"] = Field(
        default="prompts",
        description="How a conflict is found: by asking (all of `prompts.conflict`), or by reading "
        "what the fact says in place of the step's new entity.",
    )
    reading: str = Field(
        default="{fact}. {question}",
        description='How a fact is put before a step with `conflict="reading"`.',
    )

    def reason(
        self, lm: LanguageModel, store: EditStore, questions: Sequence[str]
    ) -> list[Reasoned | None]:
        """Search a chain of steps for each question; None where none is found."""
        entities = self._find_question_entities(lm, questions)
        searches = [
            _ChainSearch(text, [_ChainState((), frozenset(), None, entity or None, text)])
            for text, entity in zip(questions, entities, strict=True)
        ]
        for _ in range(self.most_states):
            states = [(one, state) for one in searches if (state := self._pop_state(one))]
            if not states:
                break
            self._expand(lm, store, states)
        return [one.found for one in searches]

    def complete(
        self, lm: LanguageModel, store: EditStore, statements: Sequence[str]
    ) -> list[str | None]:
        """Replace the model's completion of a statement by the nearest edit that contradicts it.

        A statement is a step whose new entity is open; no edit is coherent with it.
        """
        outputs = [tidy(text) for text in answer(lm, statements, max_new_tokens=READ_TOKENS)]
        nearest = store.nearest(lm, statements, self.top_k)
        checks = [
            _EditCheck(place, hit.place, store.facts[hit.place], f"{text} {output}", text, output)
            for place, (text, output, hits) in enumerate(
                zip(statements, outputs, nearest, strict=True)
            )
            for hit in hits
        ]
        found: list[str | None] = [None] * len(statements)
        for check, conflict in zip(checks, self._find_conflicts(lm, checks), strict=True):
            if conflict and found[check.place] is None:
                found[check.place] = check.fact.target
        return found

    def _pop_state(self, search: _ChainSearch) -> _ChainState | None:
        """Return the state to expand: the last one pushed that is neither too deep nor visited."""
        while search.stack and search.found is None:
            state = search.stack.pop()
            if len(state.steps) > self.depth or state.key in search.visited:
                continue
            search.visited.add(state.key)
            return state
        return None

    def _expand(
        self,
        lm: LanguageModel,
        store: EditStore,
        states: Sequence[tuple[_ChainSearch, _ChainState]],
    ) -> None:
        """Write the next step of each state, and push the steps that may replace it."""
        prompts = [self._write_prompt(lm, search.question, state) for search, state in states]
        fitting = [
            (one, prompt) for one, prompt in zip(states, prompts, strict=True) if prompt is not None
        ]
        mark = self.separator.strip()
        outputs = greedy(
            lm,
            [prompt for _, prompt in fitting],
            max_new_tokens=self.new_token_budget(lm),
            stop=(mark, mark[-1:], "\n") if mark else ("\n",),
        )
        steps: list[_ChainStep] = []
        for ((search, state), _), text in zip(fitting, outputs, strict=True):
            step = _NEXT_SENTENCE.split(text.strip())[0].removesuffix(".").strip()
            if ends := _ANNOUNCES.match(step):
                entity = tidy(ends["entity"]) or state.current or ""
                working = self.separator.join((*state.steps, step))
                search.found = Reasoned(entity, working) if entity else None
            elif step and step not in state.steps:
                steps.append(_ChainStep(search, state, step))
        own = self._find_new_entities(lm, [(one.state.last, one.text) for one in steps])
        queries = self._strip_entities(lm, steps, own)
        nearest = store.nearest(lm, queries, self.top_k)
        accepted = self._accept_edits(lm, store, steps, own, queries, nearest)
        self._push(lm, store, steps, own, accepted)

    def _accept_edits(
        self,
        lm: LanguageModel,
        store: EditStore,
        steps: Sequence[_ChainStep],
        own: Sequence[str],
        queries: Sequence[str],
        nearest: Sequence[Sequence[tuple[int, float]]],
    ) -> list[list[int]]:
        """Return the edits that may replace each step, most similar first."""
        checks = [
            _EditCheck(index, hit[0], store.facts[hit[0]], step.text, query, entity)
            for index, (step, entity, query, hits) in enumerate(
                zip(steps, own, queries, nearest, strict=True)
            )
            for hit in hits
            if hit[0] not in step.state.used
        ]
        current = [steps[check.place].state.current for check in checks]
        before = [steps[check.place].state.before for check in checks]
        facts = [write_sentence(check.fact) for check in checks]
        follows = self._find_entities(lm, current, facts)
        returns = self._find_entities(lm, before, facts)
        coherent = [one and not two for one, two in zip(follows, returns, strict=True)]
        open_ones = [check for check, fits in zip(checks, coherent, strict=True) if not fits]
        conflicts = iter(self._find_conflicts(lm, open_ones))
        accepted: list[list[int]] = [[] for _ in steps]
        for check, fits in zip(checks, coherent, strict=True):
            if fits or next(conflicts):
                accepted[check.place].append(check.edit)
        return accepted

    def _push(
        self,
        lm: LanguageModel,
        store: EditStore,
        steps: Sequence[_ChainStep],
        own: Sequence[str],
        accepted: Sequence[Sequence[int]],
    ) -> None:
        """Push the accepted edits of each step, best on top, or else the model's own step."""
        pairs = [
            (step.state.last, store.sentences[place])
            for step, places in zip(steps, accepted, strict=True)
            for place in places
        ]
        entities = iter(self._find_new_entities(lm, pairs))
        for step, entity, places in zip(steps, own, accepted, strict=True):
            follow = [(store.sentences[place], next(entities), place) for place in places]
            for text, new, place in reversed(follow or [(step.text, entity, -1)]):
                before = step.state.before
                if text in step.state.steps or (before and is_same_entity(new, before)):
                    continue
                used = step.state.used | ({place} if place >= 0 else set())
                steps_then = (*step.state.steps, text)
                step.search.stack.append(
                    _ChainState(steps_then, used, step.state.current, new or None, text)
                )

    def _find_question_entities(self, lm: LanguageModel, questions: Sequence[str]) -> list[str]:
        template = self.prompts.question_entity
        if not template:
            return [_find_last_name("", text) for text in questions]
        return self._ask_line(lm, template, [{"question": text} for text in questions])

    def _find_new_entities(self, lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Return NewEntity(a, b): the entity of b that a does not mention; "" if there is none."""
        template = self.prompts.new_entity
        if not template:
            return [_find_last_name(previous, step) for previous, step in pairs]
        return self._ask_line(lm, template, [{"previous": a, "step": b} for a, b in pairs])

    def _strip_entities(
        self, lm: LanguageModel, steps: Sequence[_ChainStep], entities: Sequence[str]
    ) -> list[str]:
        """Return Strip(a, b): each step without its new entity, which is the query for edits."""
        if self.prompts.strip:
            values = [{"previous": one.state.last, "step": one.text} for one in steps]
            output = self._ask_line(lm, self.prompts.strip, values)
            return [text or step.text for text, step in zip(output, steps, strict=True)]
        return [
            " ".join(one.text.replace(entity, " ").split()) if entity else one.text
            for one, entity in zip(steps, entities, strict=True)
        ]

    def _find_entities(
        self, lm: LanguageModel, entities: Sequence[str | None], facts: Sequence[str]
    ) -> list[bool]:
        """Return Exist(e, s): found by name, else by asking; False without an entity."""
        found = [
            bool(entity) and mentions(fact, entity or "")
            for entity, fact in zip(entities, facts, strict=True)
        ]
        left = [place for place, one in enumerate(found) if entities[place] and not one]
        if self.prompts.exists and left:
            values = [{"entity": entities[i] or "", "fact": facts[i]} for i in left]
            agreed = self._ask_yes(lm, self.prompts.exists, values)
            for place, agrees in zip(left, agreed, strict=True):
                found[place] = agrees
        return found

    def _find_conflicts(self, lm: LanguageModel, checks: Sequence[_EditCheck]) -> list[bool]:
        """Return Conflict(f, t): the same relation of the same subject, with another object."""
        if self.conflict == "reading":
            read = read_answers(
                lm,
                self.reading,
                [check.fact for check in checks],
                [check.query for check in checks],
            )
            return [
                bool(reading) and not is_same_entity(reading, check.entity)
                for reading, check in zip(read, checks, strict=True)
            ]
        values = [
            {"fact": f"{write_sentence(one.fact)}.", "step": f"{one.step}."} for one in checks
        ]
        answers = [self._ask_yes(lm, template, values) for template in self.prompts.conflict]
        return (
            [all(one) for one in zip(*answers, strict=True)] if answers else [False] * len(checks)
        )

    def _ask_yes(
        self, lm: LanguageModel, template: str, values: Sequence[Mapping[str, str]]
    ) -> list[bool]:
        """Return whether yes is likelier than no after each filled prompt."""
        prompts = [fit_examples(lm, fill_template(template, one), _WORD_TOKENS) for one in values]
        asked = [prompt for prompt in prompts if prompt is not None]
        rated = score(lm, [(text, word) for text in asked for word in (self.yes, self.no)])
        outputs = iter(yes.mean > no.mean for yes, no in zip(rated[::2], rated[1::2], strict=True))
        return [prompt is not None and next(outputs) for prompt in prompts]

    def _ask_line(
        self, lm: LanguageModel, template: str, values: Sequence[Mapping[str, str]]
    ) -> list[str]:
        """Return the first line the model writes after each filled prompt; "" if none fits."""
        prompts = [fit_examples(lm, fill_template(template, one), 1) for one in values]
        asked = [prompt for prompt in prompts if prompt is not None]
        outputs = iter(greedy(lm, asked, max_new_tokens=READ_TOKENS))
        return ["" if prompt is None else tidy(next(outputs)) for prompt in prompts]

    def _write_prompt(self, lm: LanguageModel, question: str, state: _ChainState) -> str | None:
        """Return the chain so far after its examples; None where it does not fit the context."""
        text = fill_template(self.prompts.chain, {"question": question})
        if state.steps:
            joined = "".join(f"{step}{self.separator}" for step in state.steps)
            text = f"{text}{'' if text.endswith(chr(10)) else ' '}{joined}".rstrip(" ")
        return fit_examples(lm, text, self.new_token_budget(lm))


class DeepEditPatch(EditStorePatch):
    """Edited facts that replace steps of reasoning; see `EditStorePatch.answers`."""

    kind: ClassVar[str] = "deepedit"
    editor_class: ClassVar[type[EditStoreEditor]] = DeepEdit


DeepEdit.patch_class = DeepEditPatch


class _ChainState(NamedTuple):
    """A chain of steps: the edits it uses, its last two new entities, and its last sentence."""

    steps: tuple[str, ...]
    used: frozenset[int]
    before: str | None
    current: str | None
    last: str

    @property
    def key(self) -> tuple[frozenset[int], str]:
        """Return what makes two states equal: the edits used, and the current entity."""
        return self.used, (self.current or self.last).casefold()


@dataclass
class _ChainSearch:
    """A question with the states still to be expanded, last one first."""

    question: str
    stack: list[_ChainState]
    found: Reasoned | None = None
    visited: set[tuple[frozenset[int], str]] = field(default_factory=set)


class _ChainStep(NamedTuple):
    """A step that the model wrote after a state."""

    search: _ChainSearch
    state: _ChainState
    text: str


class _EditCheck(NamedTuple):
    """An edit compared with a step, with the step's stripped form and its new entity."""

    place: int
    edit: int
    fact: Fact
    step: str
    query: str
    entity: str


def _find_last_name(previous: str, step: str) -> str:
    """Return the last run of capitalised words that the sentence before does not mention."""
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
