"""In-context editing for IKE and ICE: new facts are retrieved and written before the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, StageWork, Supports
from corrigenda.engines import text_tensors
from corrigenda.engines.patch_cache import PatchCache, active_group
from corrigenda.facts import Fact
from corrigenda.lm.chat import count_template_tokens
from corrigenda.lm.footprint import (
    USUAL_TOKENS,
    cache_bytes,
    head_bytes,
    head_flops,
    pass_bytes,
    pass_flops,
)
from corrigenda.lm.interception import RewrittenPrompt
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch.module import ModulePatch
from corrigenda.retrieval import Index, embedder
from corrigenda.state import State

Scope = Literal["always", "retrieve"]

_DEMONSTRATIONS, _VECTORS = "demonstrations", "vectors"
_EVERYTHING = 1 << 60
# Texts and the vector of a fact with its demonstrations.
_FACT_BYTES = 8192


class InContextEditor(Editor):
    """Editor that stores new facts and the demonstrations to write before them; IKE and ICE."""

    patch_class: ClassVar[type[InContextPatch]]
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, order_free=True
    )

    scope: Scope = Field(
        default="always",
        description="Whether every question gets the new fact nearest to it, or only one that is "
        "near enough.",
    )
    threshold: float = Field(
        default=0.65,
        ge=-1,
        le=1,
        description='Least cosine of question and edited prompt with `scope="retrieve"`.',
    )
    num_facts: int = Field(default=1, ge=1, description="New facts in one context, at most.")
    embedder: str = Field(
        default="minilm",
        description='Embedder that finds the nearest fact: "minilm", "states", "states:<layer>", '
        "or a model of sentence-transformers.",
    )
    fact_label: str = Field(default="New Fact: ", description="Text before a new fact.")
    prompt_label: str = Field(default="Prompt: ", description="Text before the question.")
    reserve: int = Field(default=32, ge=1, description="Tokens of the context left for an answer.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes."""
        return ()

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the facts' texts, and of keys and values of one full prompt."""
        tokens = min(lm.context_length, USUAL_TOKENS * (self.usual_demonstrations + 2))
        kept = cache_bytes(lm, tokens, lm.num_layers) + pass_bytes(lm, tokens, 0)
        return kept + head_bytes(lm, 1) + num_facts * _FACT_BYTES

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the facts' texts and vectors."""
        del lm
        return num_facts * _FACT_BYTES

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of one question about each fact; `edit` itself runs nothing."""
        tokens = USUAL_TOKENS * (self.usual_demonstrations + 2) * num_facts
        return (StageWork("asking", pass_flops(lm, tokens) + head_flops(lm, num_facts)),)

    @property
    def usual_demonstrations(self) -> int:
        """How many demonstrations come before a new fact."""
        return 0

    def _demonstrate(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None
    ) -> tuple[list[list[str]], dict[str, object]]:
        """Return demonstrations for each fact, farthest first, and notes about them."""
        return [[] for _ in facts], {}

    def _embed(self, lm: LanguageModel, facts: Sequence[Fact]) -> Float[Tensor, "facts d"]:
        """Return the vectors by which facts are found: those of their prompts."""
        return embedder(self.embedder).embed(lm, [fact.prompt for fact in facts])

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Store the facts with the demonstrations written before them; the model stays as it is.

        Raises:
            PromptTooLong (CG105): a fact, its prompt and its target exceed the context.
            MissingState (CG503): the method needs a state and none was given.
            WrongBase (CG401): the state belongs to another model.
            MissingExtra (CG504): the encoder is not installed.
        """
        state = state or State()
        config = self.model_dump(mode="json")
        if not facts:
            return Edit(self.patch_class.make(lm, {}, method=self.name, config=config), state)
        state.require_base(lm)
        layout = Layout.of(config)
        for fact in facts:
            closing = layout.closing([fact], fact.prompt)
            encode(lm, closing, target=fact.target, where=fact.label)
        demonstrations, notes = self._demonstrate(lm, facts, state)
        own = [
            layout.cut(lm, demos, layout.closing([fact], fact.prompt))
            for fact, demos in zip(facts, demonstrations, strict=True)
        ]
        short = sum(len(left) < len(demos) for left, demos in zip(own, demonstrations, strict=True))
        notices = [*cast("list[str]", notes.pop("notices", []))]
        if short:
            fitting = min(map(len, own))
            notices.append(
                f"not all demonstrations fit into the context for {short} of {len(facts)} facts; "
                f"the farthest are left out, {fitting} are left at least."
            )
        stored = {
            _DEMONSTRATIONS: text_tensors.encode_value(
                [list(map(str, demos)) for demos in demonstrations]
            ),
            _VECTORS: self._embed(lm, facts),
        }
        patch = self.patch_class.make(
            lm,
            stored,
            method=self.name,
            config=config,
            facts=facts,
            notes={
                "status": ["stored"] * len(facts),
                "notices": notices,
                "fitting": [len(left) for left in own],
                **notes,
            },
        )
        return Edit(patch, state)


class Layout(NamedTuple):
    """Layout of a context; texts are only joined, so braces in them mean nothing.

    Attributes:
        fact_label: Text before a new fact.
        prompt_label: Text before the question.
        reserve: Tokens of the context left for an answer.
    """

    fact_label: str
    prompt_label: str
    reserve: int

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Layout:
        """Return the layout that an editor's configuration gives."""
        return cls(
            str(config["fact_label"]), str(config["prompt_label"]), int(str(config["reserve"]))
        )

    def new_fact(self, fact: Fact) -> str:
        """Return the line that states a fact."""
        return f"{self.fact_label}{fact.prompt}{fact.separator}{fact.target}"

    def demonstration(self, fact: Fact, probe: str, answer: str) -> str:
        """Return a fact with a probe and its answer, and the blank line after them."""
        return f"{self.new_fact(fact)}\n{self.prompt_label}{probe}{fact.separator}{answer}\n\n"

    def closing(self, facts: Sequence[Fact], question: str) -> str:
        """Return new facts, one a line, and the question."""
        lines = [*map(self.new_fact, facts), f"{self.prompt_label}{question}"]
        return "\n".join(lines)

    def cut(self, lm: LanguageModel, demonstrations: Sequence[str], closing: str) -> Sequence[str]:
        """Return the last demonstrations that fit, as wholes, before `closing`.

        On a model with a chat template they fit into it too.
        """
        room = lm.context_length - self.reserve - count_template_tokens(lm.tokenizer)

        def fits(left_out: int) -> bool:
            text = "".join(demonstrations[left_out:]) + closing
            length = len(encode(lm, text, max_length=_EVERYTHING).ids)
            return length <= room

        low, high = 0, len(demonstrations)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return demonstrations[low:]


class StoredFact(NamedTuple):
    """A new fact with its demonstrations, farthest first, and the embedding of its prompt."""

    fact: Fact
    demonstrations: tuple[str, ...]
    vector: Float[Tensor, " d"]


class FactStore(NamedTuple):
    """Facts of all active patches of a group, with an index of their prompts."""

    entries: list[StoredFact]
    vectors: Index


class InContextPatch(ModulePatch):
    """New facts that are written before questions.

    The patches of one method with equal settings that are active on a model form one store, and
    the first of them rewrites for all. Of facts with the same prompt the last one counts.
    """

    forms = MappingProxyType({_DEMONSTRATIONS: "bytes text", _VECTORS: "float facts d"})
    options = MappingProxyType(
        {
            "scope": ("always", "retrieve"),
            "embedder": str,
            "num_facts": int,
            "threshold": (float, type(None)),
            "fact_label": str,
            "prompt_label": str,
            "reserve": int,
        }
    )

    def require_sound(self) -> None:
        """Refuse demonstrations that are not one list of texts for each fact."""
        super().require_sound()
        if self.stored:
            lists = text_tensors.decode_value(self.stored[_DEMONSTRATIONS])
            if not (
                isinstance(lists, list)
                and len(lists) == len(self.facts)
                and all(isinstance(own, list) for own in lists)
                and all(isinstance(one, str) for own in lists for one in cast("list[object]", own))
            ):
                raise ValueError("the demonstrations are not one list of texts for each fact")

    def rewrite(self, lm: LanguageModel, prompts: Sequence[str]) -> list[RewrittenPrompt]:
        """Write demonstrations and the nearest new facts before each prompt.

        With the scope "retrieve", a prompt to which no new fact is near enough stays as it is.
        """
        together = active_group(self, lm)
        if together[0] is not self or not prompts:
            return [RewrittenPrompt(prompt) for prompt in prompts]
        store = _STORES.get(together)
        layout = Layout.of(self.header.config)
        asked = []
        for prompt, places in zip(prompts, self._nearest(lm, store, prompts), strict=True):
            if not places:
                asked.append(RewrittenPrompt(prompt))
                continue
            entries = [store.entries[place] for place in reversed(places)]
            asked.append(RewrittenPrompt(self._write(lm, layout, entries, prompt)))
        return asked

    def _write(
        self, lm: LanguageModel, layout: Layout, entries: Sequence[StoredFact], prompt: str
    ) -> str:
        """Return a prompt behind facts, the nearest last, with the nearest's demonstrations."""
        closing = layout.closing([entry.fact for entry in entries], prompt)
        return "".join(layout.cut(lm, entries[-1].demonstrations, closing)) + closing

    def _nearest(
        self, lm: LanguageModel, store: FactStore, prompts: Sequence[str]
    ) -> list[list[int]]:
        """Return the places in the store of the facts nearest to each prompt, nearest first."""
        config = self.header.config
        always = config["scope"] == "always"
        if always and len(store.entries) == 1:
            return [[0] for _ in prompts]
        queries = embedder(str(config["embedder"])).embed(lm, prompts)
        found = store.vectors.search(queries, int(str(config["num_facts"])))
        least = -float("inf") if always else float(str(config["threshold"]))
        return [
            [place for score, place in zip(scores, places, strict=True) if score >= least]
            for scores, places in zip(found.scores.tolist(), found.indices.tolist(), strict=True)
        ]


def _build_store(patches: Sequence[ModulePatch]) -> FactStore:
    """Return the facts of all patches; of those with equal prompts the last."""
    entries: dict[str, StoredFact] = {}
    for patch in patches:
        texts = text_tensors.decode_value(patch.stored[_DEMONSTRATIONS])
        assert isinstance(texts, list), "one list of demonstrations a fact"
        for fact, own, vector in zip(patch.facts, texts, patch.stored[_VECTORS], strict=True):
            entries.pop(fact.prompt, None)
            entries[fact.prompt] = StoredFact(fact, tuple(cast("list[str]", own)), vector)
    return FactStore(
        list(entries.values()), Index(torch.stack([e.vector for e in entries.values()]))
    )


_STORES = PatchCache(_build_store)
