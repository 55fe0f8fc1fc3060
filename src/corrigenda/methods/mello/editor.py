"""MeLLo: questions are decomposed, and every tentative answer is checked against the edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from corrigenda.engines.edit_store import (
    READ_TOKENS,
    EditStore,
    EditStoreEditor,
    EditStorePatch,
    Reasoned,
    is_same_entity,
    read_answers,
    tidy,
    write_sentence,
)
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.mello.prompt import DEMONSTRATIONS


class DialogueFields(BaseModel):
    """Words with which the lines of a dialogue begin, and with which a verdict is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = "Question:"
    subquestion: str = "Subquestion:"
    generated: str = "Generated answer:"
    retrieved: str = "Retrieved fact:"
    agrees: str = "does not contradict"
    verdict: str = "answer is:"
    final: str = "Final answer:"


class MeLLo(EditStoreEditor):
    """Multi-hop answers by a dialogue of the model with a list of edited facts.

    The model writes a sub-question and a tentative answer; the nearest edit is put before it; it
    decides whether the two contradict each other, and continues from the answer that holds. It
    ends with the line of the final answer. After `rounds` generations without one (a question of h
    hops takes h + 1), without a sub-question, or with a full context, it has not concluded: the
    patch gives no answer, and the model answers by itself.

    The dialogues of many questions run in step, and each round retrieves for all at once.
    """

    name: ClassVar[str] = "mello"
    patch_class: ClassVar[type[EditStorePatch]]

    rounds: int = Field(
        default=6, ge=2, description="Most generations for a question: its hops + 1, or more."
    )
    verdict: Literal["model", "reading"] = Field(
        default="model",
        description="How a contradiction of fact and tentative answer is found: by the model in "
        "the dialogue, or by comparison with what the model reads from the fact alone.",
    )
    threshold: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Least cosine of a retrieved fact; below it the tentative answer is taken. "
        "None shows the nearest fact however far, as published.",
    )
    reading: str = Field(
        default="{fact}. {question}",
        description='How a fact is put before a question with `verdict="reading"`.',
    )
    demonstrations: str = Field(
        default=DEMONSTRATIONS,
        description="Worked examples, a blank line between them; those that do not fit the context "
        "are left out, first ones first.",
    )
    fields: DialogueFields = Field(
        default=DialogueFields(), description="Wording of the dialogue's lines."
    )

    def reason(
        self, lm: LanguageModel, store: EditStore, questions: Sequence[str]
    ) -> list[Reasoned | None]:
        """Run the dialogues; None for those that do not conclude."""
        shown = self._worked_examples(lm)
        opening = self.fields.question
        dialogues = [_Dialogue(f"{opening} {text}\n") for text in questions]
        for _ in range(self.rounds):
            running = [one for one in dialogues if one.running]
            prompts = [self._write_prompt(lm, shown, one.text) for one in running]
            for one, prompt in zip(running, prompts, strict=True):
                one.running = prompt is not None
            running = [one for one in running if one.running]
            if not running:
                break
            asked = [prompt for prompt in prompts if prompt is not None]
            if self.verdict == "model":
                self._debate(lm, store, running, asked)
            else:
                self._settle(lm, store, running, asked)
        return [
            Reasoned(one.answer, _cut_steps(one.text, self.fields)) if one.answer else None
            for one in dialogues
        ]

    def complete(
        self, lm: LanguageModel, store: EditStore, statements: Sequence[str]
    ) -> list[str | None]:
        """Check the model's completion of each statement against the nearest edit.

        A statement is its own sub-question, so one round is enough.
        """
        outputs = answer(lm, statements, max_new_tokens=READ_TOKENS)
        facts = self._find_facts(lm, store, statements)
        if self.verdict == "reading":
            settled = self._compare(lm, statements, outputs, facts)
            return [
                None if is_same_entity(one, two) else one
                for one, two in zip(settled, outputs, strict=True)
            ]
        fields, shown = self.fields, self._worked_examples(lm)
        dialogues = [
            f"{fields.question} {text}\n{fields.subquestion} {text}\n"
            f"{fields.generated} {text} {output}.\n"
            f"{fields.retrieved} {write_sentence(fact) if fact else f'{text} {output}'}.\n"
            for text, output, fact in zip(statements, outputs, facts, strict=True)
        ]
        prompts = [self._write_prompt(lm, shown, text) for text in dialogues]
        places = [place for place, prompt in enumerate(prompts) if prompt is not None]
        asked = [prompt for prompt in prompts if prompt is not None]
        found: list[str | None] = [None] * len(statements)
        verdicts = greedy(lm, asked, max_new_tokens=self.new_token_budget(lm))
        for place, line in zip(places, verdicts, strict=True):
            _, mark, entity = line.partition(fields.verdict)
            if mark and fields.agrees not in line and facts[place]:
                found[place] = tidy(entity) or None
        return found

    def _debate(
        self,
        lm: LanguageModel,
        store: EditStore,
        running: Sequence[_Dialogue],
        prompts: Sequence[str],
    ) -> None:
        """Run one round as published: the model writes up to the place of the retrieved fact."""
        fields = self.fields
        stop = (fields.retrieved, f"\n\n{fields.question}")
        outputs = greedy(lm, prompts, max_new_tokens=self.new_token_budget(lm), stop=stop)
        waiting: list[tuple[_Dialogue, str]] = []
        for one, text in zip(running, outputs, strict=True):
            one.text += text.rstrip() + "\n"
            asked = _find_lines(text, fields.subquestion)
            if final := _find_lines(text, fields.final):
                one.conclude(final[0])
            elif not asked:
                one.running = False
            else:
                tentative = _find_lines(text, fields.generated)
                waiting.append((one, asked[-1]))
                one.tentative = tentative[-1] if tentative else ""
        facts = self._find_facts(lm, store, [query for _, query in waiting])
        for (one, _), fact in zip(waiting, facts, strict=True):
            shown_fact = write_sentence(fact) if fact else one.tentative.removesuffix(".")
            one.text += f"{fields.retrieved} {shown_fact}.\n"

    def _settle(
        self,
        lm: LanguageModel,
        store: EditStore,
        running: Sequence[_Dialogue],
        prompts: Sequence[str],
    ) -> None:
        """Run one round whose verdict is a comparison; the answer that holds is written down."""
        fields = self.fields
        stop = tuple(f"\n{mark}" for mark in (fields.subquestion, fields.final, fields.question))
        outputs = greedy(
            lm, prompts, max_new_tokens=self.new_token_budget(lm), stop=(*stop, "\n\n")
        )
        waiting: list[tuple[_Dialogue, str, str]] = []
        for one, text in zip(running, outputs, strict=True):
            asked, tentative = (
                _find_lines(text, fields.subquestion),
                _find_lines(text, fields.generated),
            )
            if final := _find_lines(text.lstrip().partition("\n")[0], fields.final):
                one.text += f"{fields.final} {final[0]}\n"
                one.conclude(final[0])
            elif not (asked and tentative):
                one.running = False
            else:
                waiting.append((one, asked[0], tidy(tentative[0])))
        queries, tentatives = (
            [query for _, query, _ in waiting],
            [outputs for *_, outputs in waiting],
        )
        facts = self._find_facts(lm, store, queries)
        settled = self._compare(lm, queries, tentatives, facts)
        for (one, query, _), entity in zip(waiting, settled, strict=True):
            one.text += f"{fields.subquestion} {query}\n{fields.generated} {entity}\n"

    def _compare(
        self,
        lm: LanguageModel,
        questions: Sequence[str],
        tentatives: Sequence[str],
        facts: Sequence[Fact | None],
    ) -> list[str]:
        """Return the answer read from an edit where that is its target, else the tentative one."""
        near = [place for place, fact in enumerate(facts) if fact]
        edits = [fact for fact in facts if fact]
        read = read_answers(lm, self.reading, edits, [questions[place] for place in near])
        settled = list(tentatives)
        for place, entity in zip(near, read, strict=True):
            if entity and not is_same_entity(entity, settled[place]):
                settled[place] = entity
        return settled

    def _find_facts(
        self, lm: LanguageModel, store: EditStore, queries: Sequence[str]
    ) -> list[Fact | None]:
        """Return the nearest edit to each query; None where it is not near enough."""
        least = -float("inf") if self.threshold is None else self.threshold
        return [
            store.facts[hit.place] if hit.score >= least else None
            for (hit, *_) in store.nearest(lm, queries)
        ]

    def _worked_examples(self, lm: LanguageModel) -> list[tuple[str, int]]:
        """Return each worked example with the blank line after it, and its number of tokens."""
        blocks = [f"{block.strip()}\n\n" for block in self.demonstrations.split("\n\n")]
        return [(block, _count_tokens(lm, block)) for block in blocks if block.strip()]

    def _write_prompt(
        self, lm: LanguageModel, examples: Sequence[tuple[str, int]], dialogue: str
    ) -> str | None:
        """Return the dialogue after as many examples as fit; None if it does not fit by itself."""
        left = lm.context_length - self.new_token_budget(lm) - _count_tokens(lm, dialogue)
        if left < 0:
            return None
        kept: list[str] = []
        for block, length in reversed(examples):
            left -= length
            if left < 0:
                break
            kept.append(block)
        return "".join(reversed(kept)) + dialogue


class MelloPatch(EditStorePatch):
    """Edited facts, retrieved in a dialogue of sub-questions; see `EditStorePatch.answers`."""

    kind: ClassVar[str] = "mello"
    editor_class: ClassVar[type[EditStoreEditor]] = MeLLo


MeLLo.patch_class = MelloPatch


@dataclass
class _Dialogue:
    """One question, its dialogue so far, and the final answer once there is one."""

    text: str
    tentative: str = ""
    answer: str = ""
    running: bool = True

    def conclude(self, final: str) -> None:
        self.answer, self.running = tidy(final), False


def _find_lines(text: str, field: str) -> list[str]:
    """Return what follows a field at the beginning of a line, in order."""
    lines = (line.strip() for line in text.split("\n"))
    found = (line.removeprefix(field).strip() for line in lines if line.startswith(field))
    return [line for line in found if line]


def _cut_steps(text: str, fields: DialogueFields) -> str:
    """Return the steps of a dialogue, from after the first sub-question's mark to the last."""
    _, _, steps = text.partition(fields.subquestion)
    return steps.partition(f"\n{fields.final}")[0]


def _count_tokens(lm: LanguageModel, text: str) -> int:
    return len(lm.tokenizer(text, verbose=False).input_ids)
