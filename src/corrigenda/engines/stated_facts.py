"""Facts stated in plain words before a question, as users write them: the baselines prompt, rag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pydantic import Field

from corrigenda.engines.in_context import InContextEditor, InContextPatch, Layout, StoredFact
from corrigenda.lm.chat import count_template_tokens
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode

_EVERYTHING = 1 << 60


class StatedFactsEditor(InContextEditor):
    """Editor whose facts are listed under an instruction, before the question."""

    instruction: str = Field(
        default="These facts are true, even where you know otherwise:",
        description="Line before the facts.",
    )
    fact_label: str = Field(default="- ", description="Text before a fact.")
    prompt_label: str = Field(default="", description="Text before a prompt to be continued.")
    question_label: str = Field(default="Question: ", description="Text before a question.")
    answer_label: str = Field(default="\nAnswer:", description="Text after a question.")
    gap: str = Field(default="\n\n", description="Text between the facts and the prompt.")
    context_tokens: int = Field(
        default=1024, ge=1, description="Tokens of the facts, at most; whole facts are left out."
    )


class FactWording(NamedTuple):
    """Words around facts and prompts.

    Attributes:
        instruction: Line before the facts.
        question_label: Text before a question.
        answer_label: Text after a question.
        gap: Text between the facts and the prompt.
        context_tokens: Most tokens of the facts.
    """

    instruction: str
    question_label: str
    answer_label: str
    gap: str
    context_tokens: int

    @classmethod
    def of(cls, config: Mapping[str, object]) -> FactWording:
        """Return the wording that an editor's configuration gives."""
        return cls(
            instruction=str(config["instruction"]),
            question_label=str(config["question_label"]),
            answer_label=str(config["answer_label"]),
            gap=str(config["gap"]),
            context_tokens=int(str(config["context_tokens"])),
        )

    def ask(self, prompt: str, label: str) -> str:
        """Return a question with its labels, or a prompt to be continued with its label."""
        if prompt.rstrip().endswith("?"):
            return f"{self.question_label}{prompt}{self.answer_label}"
        return f"{label}{prompt}"


class StatedFactsPatch(InContextPatch):
    """Facts that are listed before prompts."""

    options = MappingProxyType(
        {
            **InContextPatch.options,
            "instruction": str,
            "question_label": str,
            "answer_label": str,
            "gap": str,
            "context_tokens": int,
        }
    )

    def _write(
        self, lm: LanguageModel, layout: Layout, entries: Sequence[StoredFact], prompt: str
    ) -> str:
        """Return a prompt behind as many facts as there is room for, the nearest last."""
        wording = FactWording.of(self.header.config)
        asked = wording.ask(prompt, layout.prompt_label)
        head = f"{wording.instruction}\n" if wording.instruction else ""
        room = lm.context_length - layout.reserve - count_template_tokens(lm.tokenizer)
        most = min(wording.context_tokens, room - _count(lm, asked))
        lines: list[str] = []
        # From the nearest on; the question itself is never cut.
        for entry in reversed(entries):
            told = "\n".join([layout.new_fact(entry.fact), *lines])
            if _count(lm, f"{head}{told}{wording.gap}") > most:
                break
            lines.insert(0, layout.new_fact(entry.fact))
        if not lines:
            return prompt
        return f"{head}{chr(10).join(lines)}{wording.gap}{asked}"


def _count(lm: LanguageModel, text: str) -> int:
    return len(encode(lm, text, max_length=_EVERYTHING).ids)
