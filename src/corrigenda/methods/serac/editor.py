"""SERAC: edits in a cache, a scope classifier, and a counterfactual model that answers in scope."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.patch_cache import PatchCache, active_group
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.interception import RewrittenPrompt
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.methods.serac.scope import (
    CachedCodes,
    ScopeHead,
    ScopeQuestions,
    mine_neighbours,
    scope_loss,
    squared_distances,
    topic_of,
)
from corrigenda.patch.changes import digest_of
from corrigenda.patch.module import ModulePatch
from corrigenda.retrieval import embedder
from corrigenda.state import State
from corrigenda.training import QUIET, Schedule, TrainingJob, Turn, split, train

_HEAD, _CODES = "serac/head/", "codes"
_PATCH_HEAD = "head/"
_VALIDATION = 0.15
_MOST_NEIGHBOURS = 8
_CLIP = 100.0


class SeracPatch(ModulePatch):
    """Cache of edits, with the classifier that decides which questions are in their scope.

    The active patches with equal settings and the same classifier form one cache, and the first of
    them routes for all. Of edits with the same prompt the last one counts.
    """

    kind: ClassVar[str] = "serac"
    forms = MappingProxyType(
        {
            _CODES: "float facts width",
            f"{_PATCH_HEAD}linear.weight": "float width width",
            f"{_PATCH_HEAD}inner.weight": "float hidden width",
            f"{_PATCH_HEAD}inner.bias": "float hidden",
            f"{_PATCH_HEAD}outer.weight": "float width hidden",
        }
    )
    options = MappingProxyType(
        {
            "threshold": float,
            "counterfactual": (str, type(None)),
            "embedder": str,
            "opening": str,
            "between": str,
            "classifier": str,
        }
    )

    def similarities(
        self, lm: LanguageModel, prompts: Sequence[str]
    ) -> Float[Tensor, "prompts facts"]:
        """Return the similarity s of each prompt and each fact of this patch, in (0, 1]."""
        cached = self.stored[_CODES].double()
        if not prompts:
            return cached.new_zeros(0, len(cached))
        head = ScopeHead.of(_select_prefix(self.stored, _PATCH_HEAD))
        codes = head(self._embed(lm, prompts)).double()
        return torch.exp(-(codes[:, None] - cached[None]).square().sum(-1))

    def rewrite(self, lm: LanguageModel, prompts: Sequence[str]) -> list[RewrittenPrompt]:
        """Send prompts in scope of an edit to the counterfactual model, after that edit.

        Any other prompt goes to the model unchanged.
        """
        together = active_group(self, lm)
        if together[0] is not self or not prompts:
            return [RewrittenPrompt(prompt) for prompt in prompts]
        facts, codes = _CACHES.get(together)
        config = self.header.config
        head = ScopeHead.of(_select_prefix(self.stored, _PATCH_HEAD))
        found = codes.route(head(self._embed(lm, prompts)))
        least = float(str(config["threshold"]))
        name = config["counterfactual"]
        answering = None if name is None else load_counterfactual(str(name), lm.dtype, lm.device)
        return [
            RewrittenPrompt(compose_prompt(config, facts[place], prompt), answering)
            if similarity >= least
            else RewrittenPrompt(prompt)
            for prompt, similarity, place in zip(
                prompts, found.similarities.tolist(), found.places.tolist(), strict=True
            )
        ]

    def _embed(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return embedder(str(self.header.config["embedder"])).embed(lm, texts)


def _join_caches(patches: Sequence[ModulePatch]) -> tuple[list[Fact], CachedCodes]:
    """Return the facts of all patches with their codes; of those with equal prompts the last."""
    cache: dict[str, tuple[Fact, Tensor]] = {}
    for patch in patches:
        for fact, code in zip(patch.facts, patch.stored[_CODES], strict=True):
            cache.pop(fact.prompt, None)
            cache[fact.prompt] = (fact, code)
    facts, codes = zip(*cache.values(), strict=True)
    return list(facts), CachedCodes(torch.stack(codes))


_CACHES = PatchCache(_join_caches)


class SERAC(Editor):
    """Semi-parametric editing with a retrieval-augmented counterfactual model.

    Reference: Mitchell et al. 2022, section 3. See the card, `serac.md`.
    """

    name: ClassVar[str] = "serac"
    requires: ClassVar[Requires] = Requires(training_set=True)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, order_free=True, contained=True
    )

    threshold: float = Field(
        default=0.5, gt=0, le=1, description="Least similarity of a question in scope."
    )
    counterfactual: str | None = Field(
        default=None,
        description="Model that answers in scope, by name or folder; if None the edited model "
        "itself, with the edit in its prompt.",
    )
    opening: str = Field(default="", description="Text before the edit in that prompt.")
    between: str = Field(default="\n", description="Text between the edit and the question.")
    embedder: str = Field(
        default="minilm",
        description='What turns texts into vectors: "minilm", "states", "states:<layer>", or a '
        "model of sentence-transformers.",
    )
    cached_text: Literal["fact", "prompt"] = Field(
        default="fact", description="Part of an edit that questions are compared with."
    )
    hidden: int = Field(default=256, ge=1, description="Inner width of the classifier's head.")
    steps: int = Field(default=2000, ge=1, description="Optimiser steps, at most.")
    batch_size: int = Field(default=10, ge=1, description="Edits in a step.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Of Adam.")
    hard_negatives: float = Field(
        default=0.5, ge=0, le=1, description="Share of questions out of scope that are close."
    )
    validate_every: int = Field(default=50, ge=1, description="Steps between validations.")
    patience: int | None = Field(
        default=400, ge=1, description="Steps without a better validation before it ends."
    )
    max_facts: int | None = Field(
        default=None, ge=2, description="Facts of the training set that are used; all if None."
    )
    seed: int = Field(default=0, description="Of the split, the head and all draws.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes."""
        return ()

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: TrainingJob = QUIET,
    ) -> State:
        """Train the scope classifier's head on prompts in and out of the scope of facts.

        Raises:
            MissingExtra (CG504): the encoder is not installed.
        """
        chance = random.Random(f"serac/{self.seed}")
        if self.max_facts is not None and self.max_facts < len(facts):
            chosen = sorted(chance.sample(range(len(facts)), self.max_facts))
            facts = tuple(facts[place] for place in chosen)
        parts = split(facts, validation=max(1, int(_VALIDATION * len(facts))), seed=self.seed)
        if job.progress is not None:
            job.progress("embedding", 0, 1)
        examples = [_ScopeExamples.of(self, lm, part, facts, chance) for part in parts]
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            head = ScopeHead(examples[0].vectors.shape[1], self.hidden)

        def step(turn: Turn) -> float:
            close, apart = scope_loss(
                *examples[0].pairs(head, turn.items, turn.chance, self.hard_negatives)
            )
            total = close + apart
            total.backward()
            return float(total.detach())

        trained = train(
            head,
            torch.optim.Adam(head.parameters(), lr=self.learning_rate),
            num_items=len(parts.training),
            step=step,
            validate=lambda: self._validation(head, examples[1]),
            schedule=Schedule(
                steps=self.steps,
                batch_size=min(self.batch_size, len(parts.training)),
                validate_every=self.validate_every,
                patience=self.patience,
                clip=_CLIP,
                seed=self.seed,
            ),
            job=job,
            key=self.model_dump_json(),
        )
        tensors = {_HEAD + name: one.detach().clone() for name, one in head.state_dict().items()}
        notes: dict[str, JsonValue] = {
            **trained.to_json(),
            "facts": [len(parts.training), len(parts.validation)],
        }
        return State(tensors, {self.name: notes})

    @torch.no_grad()
    def _validation(self, head: ScopeHead, examples: _ScopeExamples) -> Mapping[str, float]:
        items = range(len(examples.questions))
        chance = random.Random(f"validation/{self.seed}")
        rounds = [examples.pairs(head, items, chance, self.hard_negatives) for _ in range(4)]
        inside, outside = (torch.cat(parts) for parts in zip(*rounds, strict=True))
        close, apart = scope_loss(inside, outside)
        return {
            "loss": float(close + apart),
            "kept_in": float((torch.exp(-inside) >= self.threshold).double().mean()),
            "kept_out": float((torch.exp(-outside) < self.threshold).double().mean()),
        }

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Store the facts in the cache; the model is left as it is.

        Raises:
            MissingState (CG503): the state holds no scope classifier.
            PromptTooLong (CG105): a fact, its prompt and its target exceed the context of the
                model that answers.
            WrongBase (CG401): the state belongs to another model.
        """
        config = self.model_dump(mode="json")
        if not facts:
            patch = SeracPatch.make(lm, {}, method=self.name, config=config)
            return Edit(patch, state or State())
        parameters = {} if state is None else _select_prefix(state.tensors, _HEAD)
        if state is None or not parameters:
            raise MissingState(
                "there is no scope classifier.",
                where=f"method {self.name}",
                hint="Call `editor.fit(lm, facts)` with a training set, and pass its state.",
            )
        state.require_base(lm)
        answering = lm
        if self.counterfactual is not None:
            answering = load_counterfactual(self.counterfactual, lm.dtype, lm.device)
        for fact in facts:
            asked = compose_prompt(config, fact, fact.prompt)
            encode(answering, asked, target=fact.target, where=fact.label)
        head = ScopeHead.of(parameters)
        one = embedder(self.embedder)
        codes = head(one.embed(lm, [self.cached(fact) for fact in facts]))
        own = head(one.embed(lm, [fact.prompt for fact in facts]))
        similar = torch.exp(-squared_distances(own.double(), codes.double())).tolist()
        statuses = ["cached" if s >= self.threshold else "out of its own scope" for s in similar]
        stored = {_PATCH_HEAD + name: tensor for name, tensor in parameters.items()}
        patch = SeracPatch.make(
            lm,
            {_CODES: codes, **stored},
            method=self.name,
            config={**config, "classifier": _head_digest(parameters)},
            facts=facts,
            notes={
                "status": statuses,
                "similarities": [round(s, 4) for s in similar],
                "notices": [
                    f"{fact.label}: its own prompt is out of scope (similarity {s:.2f}); the "
                    "classifier does not know such facts."
                    for fact, s in zip(facts, similar, strict=True)
                    if s < self.threshold
                ],
                "classifier": state.meta.get(self.name),
            },
        )
        return Edit(patch, state)

    def cached(self, fact: Fact) -> str:
        """Return the text of an edit that questions are compared with."""
        if self.cached_text == "prompt":
            return fact.prompt
        return f"{fact.prompt}{fact.separator}{fact.target}"


class _ScopeExamples(NamedTuple):
    """Training examples of the classifier: questions of facts, and embeddings of all texts."""

    questions: list[ScopeQuestions]
    vectors: Float[Tensor, "texts d"]
    places: dict[str, int]

    @classmethod
    def of(
        cls,
        editor: SERAC,
        lm: LanguageModel,
        facts: Sequence[Fact],
        all_facts: Sequence[Fact],
        chance: random.Random,
    ) -> _ScopeExamples:
        """Return the examples of some facts; other facts replace missing neighbours."""
        one = embedder(editor.embedder)
        found = [
            tuple(chance.sample(fact.neighbours, min(_MOST_NEIGHBOURS, len(fact.neighbours))))
            for fact in facts
        ]
        if not all(found):
            prompts = one.embed(lm, [fact.prompt for fact in all_facts])
            others = mine_neighbours(facts, all_facts, prompts, chance, _MOST_NEIGHBOURS)
            found = [own or other for own, other in zip(found, others, strict=True)]
        questions = [
            ScopeQuestions(
                topic_of(fact), editor.cached(fact), (fact.prompt, *fact.paraphrases), hard
            )
            for fact, hard in zip(facts, found, strict=True)
        ]
        texts = dict.fromkeys(
            text for row in questions for text in (row.cached, *row.inside, *row.hard)
        )
        return cls(
            questions,
            one.embed(lm, list(texts)),
            {text: place for place, text in enumerate(texts)},
        )

    def pairs(
        self, head: ScopeHead, items: Sequence[int], chance: random.Random, hard: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return squared distances of each edit to one question in and one out of its scope."""
        triples = []
        for item in items:
            row = self.questions[item]
            other = self.questions[chance.randrange(len(self.questions))]
            close = chance.random() < hard or other.topic == row.topic
            outside = chance.choice(row.hard if close and row.hard else other.inside)
            triples.append((row.cached, chance.choice(row.inside), outside))
        edits, inside, outside = (
            head(self.vectors[[self.places[text] for text in texts]])
            for texts in zip(*triples, strict=True)
        )
        return squared_distances(edits, inside), squared_distances(edits, outside)


def compose_prompt(config: Mapping[str, object], fact: Fact, question: str) -> str:
    """Return the counterfactual model's prompt: the edit, then the question."""
    statement = f"{fact.prompt}{fact.separator}{fact.target}"
    return f"{config['opening']}{statement}{config['between']}{question}"


@lru_cache(maxsize=2)
def load_counterfactual(name: str, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Load the model that answers in scope; once for each name, dtype and device."""
    return LanguageModel.load(name, dtype=dtype, device=device)


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }


def _head_digest(parameters: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(digest_of(parameters).encode()).hexdigest()[:16]
