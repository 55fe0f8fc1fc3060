"""Edits kept as sentences beside the model: how MeLLo and DeepEdit store, find and hear of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Supports
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.module import ModulePatch
from corrigenda.retrieval import Index, embedder
from corrigenda.state import State

READ_TOKENS = 24
"""Longest answer that is read from a fact, or completed from an open statement."""

_EMBEDDINGS = "embeddings"
# The question is what follows the last such mark, up to a field that is left open behind it.
_ASKED = re.compile(r"(?:^|\n|\s)(?:Question|Q):\s*", re.IGNORECASE)
_OPEN_FIELD = re.compile(r"\s*\n?\s*\b(Subquestion|Thoughts|Answer|A):\s*$")
_CLOSINGS = {"Subquestion": "Final answer:", "Thoughts": "Answer:"}
_SENTENCE_ENDS = (".", "?", "!", '."', '?"')


class Question(NamedTuple):
    """What a prompt asks.

    Attributes:
        text: The question, or an open statement to be completed, without marks and examples.
        open: Whether it is a statement to be completed.
        closing: What introduces the answer, where the prompt leaves a field for working it out.
    """

    text: str
    open: bool
    closing: str = ""

    @classmethod
    def read(cls, prompt: str) -> Question:
        r"""Find the question in a prompt: what follows the last mark of a question, if any.

        Example:
            >>> Question.read("Q: Who? A: Ann\nQ: Where does Ann live? A:").text
            'Where does Ann live?'
        """
        marks = list(_ASKED.finditer(prompt))
        text = prompt[marks[-1].end() :] if marks else prompt
        closing = ""
        if marks and (field := _OPEN_FIELD.search(text)):
            text, closing = text[: field.start()], _CLOSINGS.get(field[1], "")
        text = " ".join(text.split())
        return cls(text, not text.endswith(_SENTENCE_ENDS), closing)

    def told(self, found: str, working: str) -> str:
        """The answer as a continuation of the prompt: with its working, where a field is for it."""
        return f"{working.strip()}\n{self.closing} {found}" if self.closing else found


class Found(NamedTuple):
    """A retrieved edit.

    Attributes:
        place: Which one of the memory.
        score: Inner product with the query.
    """

    place: int
    score: float


class EditMemory:
    """Sentences that state edits, with the vectors by which they are found.

    Attributes:
        facts: The edits; of several with one prompt the last.
        sentences: "<prompt> <target>" of each, without a full stop.
    """

    def __init__(
        self, retriever: str, facts: Sequence[Fact], vectors: Float[Tensor, "n d"]
    ) -> None:
        """Keep the last edit of every prompt."""
        last = {fact.prompt.strip(): place for place, fact in enumerate(facts)}
        places = sorted(last.values())
        self.facts = tuple(facts[place] for place in places)
        self.sentences = tuple(map(sentence, self.facts))
        self._places = {fact.prompt.strip(): place for place, fact in enumerate(self.facts)}
        self._retriever = embedder(retriever)
        self._index = Index(vectors[places].float())

    def recall(self, prompt: str) -> str | None:
        """The target of the edit with this very prompt, if there is one."""
        place = self._places.get(prompt.strip())
        return None if place is None else self.facts[place].target

    def nearest(self, lm: LanguageModel, queries: Sequence[str], k: int = 1) -> list[list[Found]]:
        """The `k` edits nearest to each query, most similar first; one matrix product for all."""
        if not queries:
            return []
        hits = self._index.search(self._retriever.embed(lm, queries), k)
        return [
            [Found(place, score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(hits.indices.tolist(), hits.scores.tolist(), strict=True)
        ]


class MemoryEditor(Editor):
    """Settings and steps that methods with an external memory of sentences have in common."""

    patch_class: ClassVar[type[MemoryPatch]]
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, order_free=True
    )

    retriever: str = Field(
        default="minilm",
        description='What finds the nearest edit: "minilm", "states", "states:<layer>", or a model '
        "of sentence-transformers.",
    )
    new_tokens: int = Field(default=256, ge=1, description="Longest generation of one call.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """None: no weight changes."""
        return ()

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Keep the facts as sentences with their embeddings; the model is left as it is.

        Raises:
            PromptTooLong (CG105): a fact's prompt and target exceed the context.
            MissingExtra (CG504): the retriever is not installed.
        """
        state = state or State()
        config = self.model_dump(mode="json")
        if not facts:
            return Edit(self.patch_class.make(lm, {}, method=self.name, config=config), state)
        for fact in facts:
            encode(lm, fact.prompt, target=fact.target, where=fact.label)
        # Scores and choices are made from what a file holds, so a loaded patch finds the same.
        vectors = embedder(self.retriever).embed(lm, [sentence(fact) for fact in facts])
        later = {fact.prompt.strip(): place for place, fact in enumerate(facts)}
        statuses = [
            "stored" if later[fact.prompt.strip()] == place else "replaced by a later fact"
            for place, fact in enumerate(facts)
        ]
        patch = self.patch_class.make(
            lm,
            {_EMBEDDINGS: vectors.half()},
            method=self.name,
            config=config,
            facts=facts,
            notes={"status": statuses},
        )
        return Edit(patch, state)

    def reason(
        self, lm: LanguageModel, memory: EditMemory, questions: Sequence[str]
    ) -> list[Reasoned | None]:
        """Answer questions step by step; None where the procedure does not conclude."""
        raise NotImplementedError

    def complete(
        self, lm: LanguageModel, memory: EditMemory, statements: Sequence[str]
    ) -> list[str | None]:
        """Complete open statements; None where no edit contradicts the model."""
        raise NotImplementedError


class Reasoned(NamedTuple):
    """An answer that was worked out.

    Attributes:
        answer: The final entity.
        working: The steps, as text.
    """

    answer: str
    working: str


class MemoryPatch(ModulePatch):
    """Edits as sentences, consulted by a procedure that answers in the model's place.

    Patches of one method with equal settings that are active on a model are one memory; of edits
    with the same prompt the one that came last counts. The weights and logits stay as they are.
    """

    editor_class: ClassVar[type[MemoryEditor]]

    def answers(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """Answer what the edits may bear on; None leaves the prompt to the model.

        A prompt that is word for word that of an edit is answered by its target. A question (what
        ends like a sentence; of a prompt with examples, the last question) is worked out by the
        procedure, and is None where that does not conclude within its limits: then the model's
        plain answer stands. An open statement is None unless an edit contradicts what the model
        would say. Everything is None for an empty patch.
        """
        together = _partners(self, lm)
        if self.is_empty or together[-1] is not self:
            return [None] * len(prompts)
        editor = self.editor_class.model_validate(self.header.config)
        memory = EditMemory(
            editor.retriever,
            [fact for patch in together for fact in patch.facts],
            torch.cat([patch.stored[_EMBEDDINGS] for patch in together]),
        )
        found = [memory.recall(prompt) for prompt in prompts]
        asked = {
            place: Question.read(prompt)
            for place, prompt in enumerate(prompts)
            if found[place] is None
        }
        statements = [place for place, one in asked.items() if one.open and one.text]
        questions = [place for place, one in asked.items() if not one.open]
        if statements:
            said = editor.complete(lm, memory, [asked[place].text for place in statements])
            for place, text in zip(statements, said, strict=True):
                found[place] = text
        if questions:
            worked = editor.reason(lm, memory, [asked[place].text for place in questions])
            for place, one in zip(questions, worked, strict=True):
                if one is not None:
                    found[place] = asked[place].told(one.answer, one.working)
        return found


def sentence(fact: Fact) -> str:
    """The edit as a statement, without a full stop."""
    return f"{fact.prompt.strip()}{fact.separator}{fact.target.strip().removesuffix('.')}"


def mentions(text: str, entity: str) -> bool:
    """Whether a text holds an entity as free-standing words; case does not count."""
    pattern = rf"(?<!\w){re.escape(entity.strip())}(?!\w)"
    return bool(entity.strip()) and re.search(pattern, text, re.IGNORECASE) is not None


def same(one: str, other: str) -> bool:
    """Whether two entities are alike: without case, articles, and punctuation around them."""
    return _plain(one) == _plain(other)


def read_from(
    lm: LanguageModel, template: str, facts: Sequence[Fact], questions: Sequence[str]
) -> list[str]:
    """What the model answers to each question with an edit before it, where the edit says so.

    That is where the answer is the edit's target, and the question names its subject (if the edit
    has one): a small model copies the answer for a similar subject too. "" elsewhere.

    Args:
        lm: The model.
        template: Text with `{fact}` and `{question}`.
        facts: The edits.
        questions: Questions or open statements, one an edit.
    """
    read = [""] * len(facts)
    about = [
        place
        for place, (fact, question) in enumerate(zip(facts, questions, strict=True))
        if fact.subject is None or mentions(question, fact.subject)
    ]
    prompts = {
        place: prompt
        for place in about
        if (prompt := fitted(lm, filled(template, _values(facts[place], questions[place])), 1))
    }
    said = answer(lm, list(prompts.values()), max_new_tokens=READ_TOKENS)
    for place, text in zip(prompts, map(tidy, said), strict=True):
        if any(same(text, one) for one in (facts[place].target, *facts[place].aliases)):
            read[place] = text
    return read


def fitted(lm: LanguageModel, prompt: str, new_tokens: int) -> str | None:
    """A prompt with as many of its examples as leave room for what is to be written.

    Examples are blocks of several lines before the last block, a blank line between two; the first
    ones are left out first. None where the last block alone does not fit.
    """
    blocks = prompt.split("\n\n")
    while len(lm.tokenizer("\n\n".join(blocks), verbose=False).input_ids) > (
        lm.context_length - new_tokens
    ):
        places = [place for place, block in enumerate(blocks[:-1]) if "\n" in block.strip()]
        if len(blocks) == 1:
            return None
        del blocks[places[0] if places else 0]
    return "\n\n".join(blocks)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its `{name}` replaced, all at once; other braces mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], name[0]), template)


def tidy(text: str) -> str:
    """An entity without space and punctuation around it."""
    return text.strip().strip("\"'").rstrip(".;,").strip()


def _values(fact: Fact, question: str) -> dict[str, str]:
    return {"fact": sentence(fact), "question": question}


def _plain(text: str) -> str:
    text = re.sub(r"^(?:the|an?)\s+", "", tidy(text).casefold())
    return re.sub(r"[^\w\s]", "", text).strip()


def _partners(patch: MemoryPatch, lm: LanguageModel) -> list[MemoryPatch]:
    """Active patches that make up one memory with this one, first applied first."""
    together = [
        cast("MemoryPatch", one)
        for one in ledger_of(lm)
        if type(one) is type(patch) and not one.is_empty
        if one.header.config == patch.header.config
    ]
    return together if any(one is patch for one in together) else [patch]
