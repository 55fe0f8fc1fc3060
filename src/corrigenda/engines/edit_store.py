"""The edit store of MeLLo and DeepEdit: edits as sentences, embedded, retrieved and read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Supports
from corrigenda.engines.patch_cache import active_group
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch.module import ModulePatch
from corrigenda.retrieval import Index, embedder
from corrigenda.state import State

READ_TOKENS = 24
"""Most tokens of an answer that is read from a fact, or that completes an open statement."""

_EMBEDDINGS = "embeddings"
# The question is what follows the last such mark, up to an open field after it.
_ASKED = re.compile(r"(?:^|\n|\s)(?:Question|Q):\s*", re.IGNORECASE)
_OPEN_FIELD = re.compile(r"\s*\n?\s*\b(Subquestion|Thoughts|Answer|A):\s*$")
_CLOSINGS = {"Subquestion": "Final answer:", "Thoughts": "Answer:"}
_SENTENCE_ENDS = (".", "?", "!", '."', '?"')


class AskedQuestion(NamedTuple):
    """The question that a prompt asks.

    Attributes:
        text: The question, or an open statement to be completed, without marks and examples.
        open: Whether it is a statement to be completed.
        closing: What introduces the answer, where the prompt leaves a field for working it out.
    """

    text: str
    open: bool
    closing: str = ""

    @classmethod
    def read(cls, prompt: str) -> AskedQuestion:
        r"""Find the question in a prompt: what follows the last mark of a question, if any.

        Example:
            >>> AskedQuestion.read("Q: Who? A: Ann\nQ: Where does Ann live? A:").text
            'Where does Ann live?'
        """
        marks = list(_ASKED.finditer(prompt))
        text = prompt[marks[-1].end() :] if marks else prompt
        closing = ""
        if marks and (field := _OPEN_FIELD.search(text)):
            text, closing = text[: field.start()], _CLOSINGS.get(field[1], "")
        text = " ".join(text.split())
        return cls(text, not text.endswith(_SENTENCE_ENDS), closing)

    def format_answer(self, found: str, working: str) -> str:
        """Return an answer as continuation of the prompt, with its working if there is a field."""
        return f"{working.strip()}\n{self.closing} {found}" if self.closing else found


class FoundEdit(NamedTuple):
    """A retrieved edit.

    Attributes:
        place: Its index in the store.
        score: Inner product with the query.
    """

    place: int
    score: float


class EditStore:
    """Store of edits as sentences, with the embeddings by which they are retrieved.

    Attributes:
        facts: The edits; of several with one prompt the last.
        sentences: "<prompt> <target>" of each, without a full stop.
    """

    def __init__(
        self, retriever: str, facts: Sequence[Fact], vectors: Float[Tensor, "n d"]
    ) -> None:
        """Store the last edit of every prompt."""
        last = {fact.prompt.strip(): place for place, fact in enumerate(facts)}
        places = sorted(last.values())
        self.facts = tuple(facts[place] for place in places)
        self.sentences = tuple(map(write_sentence, self.facts))
        self._places = {fact.prompt.strip(): place for place, fact in enumerate(self.facts)}
        self._retriever = embedder(retriever)
        self._index = Index(vectors[places].float())

    def recall(self, prompt: str) -> str | None:
        """Return the target of the edit with exactly this prompt, if there is one."""
        place = self._places.get(prompt.strip())
        return None if place is None else self.facts[place].target

    def nearest(
        self, lm: LanguageModel, queries: Sequence[str], k: int = 1
    ) -> list[list[FoundEdit]]:
        """Return the `k` edits nearest to each query, most similar first."""
        if not queries:
            return []
        hits = self._index.search(self._retriever.embed(lm, queries), k)
        return [
            [FoundEdit(place, score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(hits.indices.tolist(), hits.scores.tolist(), strict=True)
        ]


class EditStoreEditor(Editor):
    """Editor that stores edits as sentences and leaves the model as it is; MeLLo and DeepEdit."""

    patch_class: ClassVar[type[EditStorePatch]]
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, order_free=True
    )

    retriever: str = Field(
        default="minilm",
        description='Embedder that finds the nearest edit: "minilm", "states", "states:<layer>", '
        "or a model of sentence-transformers.",
    )
    new_tokens: int = Field(default=256, ge=1, description="Longest generation of one call.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes."""
        return ()

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Store the facts as sentences with their embeddings; the model is left as it is.

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
        # The search uses vectors as a file holds them, so a loaded patch finds the same edits.
        vectors = embedder(self.retriever).embed(lm, [write_sentence(fact) for fact in facts])
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

    def new_token_budget(self, lm: LanguageModel) -> int:
        """Return how many tokens one call may generate: at most a quarter of a short context."""
        return max(1, min(self.new_tokens, lm.context_length // 4))

    def reason(
        self, lm: LanguageModel, store: EditStore, questions: Sequence[str]
    ) -> list[Reasoned | None]:
        """Answer questions step by step; None where the procedure does not conclude."""
        raise NotImplementedError

    def complete(
        self, lm: LanguageModel, store: EditStore, statements: Sequence[str]
    ) -> list[str | None]:
        """Complete open statements; None where no edit contradicts the model."""
        raise NotImplementedError


class Reasoned(NamedTuple):
    """An answer with the reasoning that led to it.

    Attributes:
        answer: The final entity.
        working: The steps, as text.
    """

    answer: str
    working: str


class EditStorePatch(ModulePatch):
    """Edits as sentences, used by a procedure that answers questions instead of the model.

    Patches of one method with equal settings that are active on a model form one store; of edits
    with the same prompt the last one counts. The weights and logits stay as they are.
    """

    editor_class: ClassVar[type[EditStoreEditor]]
    forms = MappingProxyType({_EMBEDDINGS: "float facts d"})

    def require_sound(self) -> None:
        """Refuse options that the method does not have."""
        super().require_sound()
        self.editor_class.model_validate(self.header.config)

    def answers(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """Answer the prompts that edits may concern; None leaves a prompt to the model.

        A prompt that is word for word that of an edit is answered by its target. A question (what
        ends like a sentence; of a prompt with examples, the last question) is worked out by the
        procedure, and is None where that does not conclude within its limits: then the model
        answers by itself. An open statement is None unless an edit contradicts the model's own
        completion. Everything is None for an empty patch.
        """
        together = active_group(self, lm)
        if self.is_empty or together[-1] is not self:
            return [None] * len(prompts)
        editor = self.editor_class.model_validate(self.header.config)
        store = EditStore(
            editor.retriever,
            [fact for patch in together for fact in patch.facts],
            torch.cat([patch.stored[_EMBEDDINGS] for patch in together]),
        )
        found = [store.recall(prompt) for prompt in prompts]
        asked = {
            place: AskedQuestion.read(prompt)
            for place, prompt in enumerate(prompts)
            if found[place] is None
        }
        statements = [place for place, one in asked.items() if one.open and one.text]
        questions = [place for place, one in asked.items() if not one.open]
        if statements:
            outputs = editor.complete(lm, store, [asked[place].text for place in statements])
            for place, text in zip(statements, outputs, strict=True):
                found[place] = text
        if questions:
            worked = editor.reason(lm, store, [asked[place].text for place in questions])
            for place, one in zip(questions, worked, strict=True):
                if one is not None:
                    found[place] = asked[place].format_answer(one.answer, one.working)
        return found


def write_sentence(fact: Fact) -> str:
    """Return an edit as a statement, without a full stop."""
    return f"{fact.prompt.strip()}{fact.separator}{fact.target.strip().removesuffix('.')}"


def mentions(text: str, entity: str) -> bool:
    """Return whether a text contains an entity as whole words, whatever their case."""
    pattern = rf"(?<!\w){re.escape(entity.strip())}(?!\w)"
    return bool(entity.strip()) and re.search(pattern, text, re.IGNORECASE) is not None


def is_same_entity(one: str, other: str) -> bool:
    """Return whether two entities are equal but for case, articles and surrounding punctuation."""
    return _normalise(one) == _normalise(other)


def read_answers(
    lm: LanguageModel, template: str, facts: Sequence[Fact], questions: Sequence[str]
) -> list[str]:
    """Ask each question with an edit before it; return the answer where it comes from the edit.

    It does where the answer is the edit's target and the question names its subject (if the edit
    has one): a small model copies the answer for a similar subject too. Elsewhere "".

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
        if (
            prompt := fit_examples(
                lm, fill_template(template, _template_values(facts[place], questions[place])), 1
            )
        )
    }
    outputs = answer(lm, list(prompts.values()), max_new_tokens=READ_TOKENS)
    for place, text in zip(prompts, map(tidy, outputs), strict=True):
        if any(is_same_entity(text, one) for one in (facts[place].target, *facts[place].aliases)):
            read[place] = text
    return read


def fit_examples(lm: LanguageModel, prompt: str, new_tokens: int) -> str | None:
    """Return a prompt with as many of its examples as leave room for the new tokens.

    Examples are blocks of several lines before the last block, separated by blank lines; the first
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


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Return a template with every `{name}` replaced at once; other braces mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], name[0]), template)


def tidy(text: str) -> str:
    """Return an entity without surrounding white space and punctuation."""
    return text.strip().strip("\"'").rstrip(".;,").strip()


def _template_values(fact: Fact, question: str) -> dict[str, str]:
    return {"fact": write_sentence(fact), "question": question}


def _normalise(text: str) -> str:
    text = re.sub(r"^(?:the|an?)\s+", "", tidy(text).casefold())
    return re.sub(r"[^\w\s]", "", text).strip()
