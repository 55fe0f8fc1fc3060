"""WISE: a side copy of one down projection for edits, and a router by how it responds."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, JsonValue

from corrigenda.editor import Edit, Editor, Requires, StageWork, Supports
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.ordinary_text import draw_rows
from corrigenda.facts import Fact
from corrigenda.lm.activation import activation_of
from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_TOKENS,
    graph_bytes,
    head_bytes,
    head_flops,
    pass_flops,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode, encode_fact
from corrigenda.methods.wise.router import SidePatch, silence
from corrigenda.methods.wise.side_memory import (
    Merge,
    MergePolicy,
    SideMemory,
    pack,
    random_mask,
    read_sequence,
    write_sequence,
)
from corrigenda.methods.wise.training import (
    SideInputs,
    SideTraining,
    TrainedSide,
    prepare_batch,
    read_inputs,
    route_answers,
    train,
)
from corrigenda.patch import header_for
from corrigenda.patch import notes as edit_notes
from corrigenda.progress import Progress
from corrigenda.settings import select
from corrigenda.state import State
from corrigenda.training.dataset import TrainingSet, text_only

SEED_WORDS: tuple[str, ...] = ("I", "You", "Because", "Yes", "Q:")
"""Words with which the prefixes of prompts begin."""

_LENGTHS = (5, 10)
_TOP_K = 5
_ROW_OF_TEXT = 16
_ASKED_AT_ONCE = 64
_PREFIX = "wise/"


class Wise(Editor):
    """Lifelong edits in random sub-spaces of a side memory, merged and routed by response.

    Reference: Wang et al. 2024, section 2 and algorithm 1. See the card, `wise.md`.
    """

    name: ClassVar[str] = "wise"
    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, contained=True
    )

    layer: int | None = Field(
        default=None, ge=0, description="Block with the side memory; five sixths of the depth."
    )
    mode: Literal["merge", "retrieve"] = Field(
        default="merge", description="One side memory, or one for each merge."
    )
    learning_rate: float = Field(default=1.0, gt=0, description="Of gradient descent, eta.")
    steps: int = Field(default=70, ge=1, description="Of each training, at most.")
    batch_size: int = Field(default=1, ge=1, description="Facts trained together.")
    mask_ratio: float = Field(default=0.2, gt=0, le=1, description="rho, share of a sub-space.")
    irrelevant_margin: float = Field(default=5.0, ge=0, description="alpha.")
    relevant_margin: float = Field(default=20.0, ge=0, description="beta.")
    apart_margin: float = Field(default=10.0, ge=0, description="gamma.")
    act_ratio: float = Field(default=0.88, gt=0, description="Factor of the threshold.")
    bound: float = Field(default=1.0, gt=0, description="Largest change of an entry.")
    save_frequency: int = Field(default=500, ge=1, description="Edits in one sub-space.")
    merge_frequency: int = Field(default=1000, ge=1, description="Edits before a merge.")
    merge: Merge = Field(default="ties", description="How sub-spaces become one memory.")
    density: float = Field(default=0.53, gt=0, le=1, description="Share that TIES keeps.")
    present_weight: float = Field(
        default=0.6, ge=0, le=1, description="Of the side memory, when more is merged into it."
    )
    score: Literal["difference", "activated"] = Field(
        default="difference", description="Of outputs, or after the activation function."
    )
    routing: Literal["prompt", "pass"] = Field(
        default="prompt", description="Decide once, on the prompt, or in each pass, on its tokens."
    )
    longest_mean: int | None = Field(
        default=None, ge=1, description="Longer queries score by their largest token."
    )
    irrelevant_texts: int = Field(default=200, ge=1, description="Texts that `fit` draws.")
    irrelevant_per_edit: int = Field(default=1, ge=1, description="Of them, for each fact.")
    replay: int = Field(
        default=0, ge=0, description="Earlier prompts of each kind that a training sees again."
    )
    contexts: Contexts | None = Field(
        default=None, description="Prefixes of prompts; written by the model if not given."
    )
    seed: int = Field(default=0, description="Of masks, texts, prefixes and replay.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the down projection with the side memory.

        Raises:
            UnknownSite (CG303): no such block, or a mixture of experts.
        """
        site = Site(5 * lm.num_layers // 6 if self.layer is None else self.layer)
        lm.module_path(site)
        return (site,)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the side memory, its gradient and shards, and of one graph above."""
        (site,) = self.sites(lm)
        tokens = min(num_facts, self.batch_size) * self._num_prefixes * USUAL_TOKENS
        shards = 4 + min(num_facts, self.merge_frequency) // self.save_frequency
        graph = graph_bytes(lm, lm.num_layers - site.layer - 1, tokens) + head_bytes(lm, tokens)
        inputs = tokens * (2 * lm.d_inner + 4 * lm.d_model) * FLOAT
        return shards * lm.d_model * lm.d_inner * FLOAT + inputs + graph

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the side memory: its sub-spaces, and a bit for each entry."""
        numbers = math.prod(lm.shape(self.sites(lm)[0]))
        spaces = 1 + (min(num_facts, self.merge_frequency) - 1) // self.save_frequency
        touched = 1.0 - (1.0 - self.mask_ratio) ** spaces
        return int(numbers * (FLOAT * touched + 1 / 8))

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of all steps: two passes of the later blocks for each prompt."""
        (site,) = self.sites(lm)
        tokens = num_facts * self._num_prefixes * USUAL_TOKENS
        one = pass_flops(lm, tokens, site.layer + 1) + head_flops(lm, tokens)
        step = 4.0 * tokens * math.prod(lm.shape(site))
        return (StageWork("training", pass_flops(lm, tokens) + self.steps * (2 * one + step)),)

    @property
    def _num_prefixes(self) -> int:
        return len(_LENGTHS) * len(SEED_WORDS) + 1 if self.contexts is None else len(self.contexts)

    @property
    def training(self) -> SideTraining:
        """Return the settings of the training."""
        return select(SideTraining, self)

    @property
    def merge_policy(self) -> MergePolicy:
        """Return how sub-spaces are merged into memories."""
        return MergePolicy(self.mode == "retrieve", self.merge, self.density, self.present_weight)

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Draw irrelevant texts, and let the model write the prefixes of prompts.

        Args:
            lm: The model, before any edit.
            corpus: The text; see `corrigenda.statistics.Corpus`.
            progress: Called while the model writes text.

        Raises:
            EmptyCorpus (CG602): the text holds no tokens.
        """
        rows = draw_rows(
            lm,
            text_only(corpus, where=self.name),
            count=self.irrelevant_texts,
            length=_ROW_OF_TEXT,
            seed=self.seed,
            progress=progress,
        )
        texts: list[JsonValue] = [list[JsonValue](row) for row in rows]
        contexts = self.contexts or write_prefixes(lm, seed=self.seed)
        header = header_for(lm, method=self.name)
        return State(
            meta={
                "base_digest": header.base_digest,
                "base_name": header.base_name,
                f"{_PREFIX}irrelevant": texts,
                f"{_PREFIX}contexts": contexts.to_json(),
            },
        )

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Write facts into the side memory; the model is left as it is.

        Returns:
            A patch with the whole side memory of the sequence, and the state for the next edit.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            WrongBase (CG401): the state belongs to another model.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): see `sites`.
            BadConfig (CG502): `score="activated"`, and the model names no activation function.
        """
        config = self.model_dump(mode="json")
        if not facts:
            return Edit(SidePatch.make(lm, {}, method=self.name, config=config), state or State())
        if state is None or f"{_PREFIX}irrelevant" not in state.meta:
            state = self.fit(lm)
        state.require_base(lm)
        (site,) = self.sites(lm)
        work = _SideWriter(self, lm, site, state)
        with silence(work.sequence.name):
            for begin in range(0, len(facts), self.batch_size):
                work.write(facts[begin : begin + self.batch_size])
            memories = work.sequence.side.all_memories(self.merge_policy)
            notes = work.notes(facts, memories)
        sequence = work.sequence._replace(
            name=work.sequence.name or _name_sequence(str(state.meta["base_digest"]), facts),
            turn=work.sequence.turn + 1,
        )
        notes |= {"sequence": sequence.name, "turn": sequence.turn, "layer": site.layer}
        stored = {
            f"{number}/{part}": tensor
            for number, one in enumerate(memories)
            for part, tensor in {
                **pack(one.delta),
                "threshold": torch.tensor(self.act_ratio * one.score, dtype=torch.float64),
            }.items()
        }
        patch = SidePatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, write_sequence(state, sequence))


class _SideWriter:
    """Writes the facts of one call of `edit` into the side memory, group after group."""

    def __init__(self, editor: Wise, lm: LanguageModel, site: Site, state: State) -> None:
        self.editor, self.lm, self.site = editor, lm, site
        self.act = activation_of(lm) if editor.score == "activated" else None
        self.texts: list[list[int]] = json.loads(json.dumps(state.meta[f"{_PREFIX}irrelevant"]))
        written = str(state.meta[f"{_PREFIX}contexts"])
        self.contexts = editor.contexts or Contexts.from_json(written)
        d_out, d_in = lm.shape(site)
        dtype = torch.promote_types(lm.dtype, torch.float32)
        self.sequence = read_sequence(state, (d_out, d_in), dtype)
        self.trainings: list[TrainedSide] = []

    def write(self, facts: Sequence[Fact]) -> None:
        """Train some facts together in the current sub-space; merge sub-spaces when due."""
        editor, lm, sequence = self.editor, self.lm, self.sequence
        side = sequence.side
        rows, owners = [], []
        for index, fact in enumerate(facts):
            for prefix in self.contexts.prefixes:
                rows.append(encode_fact(lm, fact, prefix=prefix, drop_last_target=True))
                owners.append(index)
        count = editor.irrelevant_per_edit
        first = sequence.edits * count
        texts = [self.texts[(first + i) % len(self.texts)] for i in range(count * len(facts))]
        text_owners = [i // count for i in range(len(texts))]
        one = prepare_batch(lm, self.site, rows, owners, texts, text_owners, self._draw_replay())
        mask = random_mask(
            side.current.shape, editor.mask_ratio, seed=editor.seed, number=side.num_masks
        )
        where = ", ".join(fact.label for fact in facts)
        trained = train(lm, one, side.current, mask, editor.training, act=self.act, where=where)
        # Of each training the course is kept, and the change of the last one only.
        self.trainings.append(replace(trained, delta=trained.delta.new_empty(0, 0)))
        counted = [score for score in trained.scores if score >= editor.irrelevant_margin]
        side = side.add_edits(trained.delta, counted, len(facts))
        memory = len(side.memories)
        if side.written >= editor.save_frequency:
            side = side.finish_shard()
        if len(side.shards) * editor.save_frequency >= editor.merge_frequency:
            side = side.merge(editor.merge_policy)
        new = tuple((fact.prompt, memory) for fact in facts) if editor.replay else ()
        self.sequence = sequence._replace(
            edits=sequence.edits + len(facts), side=side, history=sequence.history + new
        )

    def notes(self, facts: Sequence[Fact], memories: Sequence[SideMemory]) -> dict[str, object]:
        """Return the result of each fact with all memories in place, and the course of training."""
        editor = self.editor
        scores = [score for one in self.trainings for score in one.scores]
        thresholds = [editor.act_ratio * one.score for one in memories]
        rows = [encode_fact(self.lm, fact, drop_last_target=True) for fact in facts]
        replies = [
            reply
            for begin in range(0, len(rows), _ASKED_AT_ONCE)
            for reply in route_answers(
                self.lm,
                self.site,
                rows[begin : begin + _ASKED_AT_ONCE],
                [one.delta for one in memories],
                thresholds,
                self.act,
            )
        ]
        statuses, notices = [], []
        for fact, score, reply in zip(facts, scores, replies, strict=True):
            took = reply.memory >= 0 and reply.loss <= math.log(2.0)
            statuses.append("written" if took else "not converged")
            if score < editor.irrelevant_margin:
                notices.append(
                    f"{fact.label}: the side memory hardly responds ({score:.3g} on average, "
                    f"irrelevant texts may have {editor.irrelevant_margin:g}), so this edit does "
                    "not count for the threshold."
                )
            elif reply.memory < 0:
                notices.append(f"{fact.label}: its prompt stays with the main memory.")
            elif not took:
                notices.append(f"{fact.label}: the answer's loss is {reply.loss:.3g} nats.")
        side = self.sequence.side
        return {
            "status": statuses,
            "notices": notices,
            **edit_notes.round_series(
                {
                    "scores": scores,
                    "irrelevant_scores": [x for one in self.trainings for x in one.irrelevant],
                    "losses": [reply.loss for reply in replies],
                    "thresholds": thresholds,
                }
            ),
            "traces": [edit_notes.round_values(one.totals) for one in self.trainings],
            "stop": [one.stop for one in self.trainings],
            "memories": len(memories),
            "edits": self.sequence.edits,
            "subspaces": side.num_masks,
        }

    def _draw_replay(self) -> tuple[SideInputs | None, SideInputs | None]:
        """Draw earlier prompts: some written to other memories, some to the one being written."""
        editor, sequence = self.editor, self.sequence
        draw = random.Random(f"{editor.seed}/{sequence.edits}")
        number = len(sequence.side.memories)
        drawn: list[SideInputs | None] = []
        for here in (False, True):
            prompts = [prompt for prompt, memory in sequence.history if (memory == number) is here]
            chosen = draw.sample(prompts, min(editor.replay, len(prompts)))
            rows = [encode(self.lm, prompt).ids for prompt in chosen]
            last = [len(row) - 1 for row in rows]
            drawn.append(read_inputs(self.lm, self.site, rows, last) if rows else None)
        return drawn[0], drawn[1]


def write_prefixes(lm: LanguageModel, *, seed: int) -> Contexts:
    """Let the model write prefixes of 5 and of 10 tokens after each of `SEED_WORDS`.

    Sampled among the five likeliest tokens; the empty prefix comes first. A prefix and the prompt
    are separated by a space.

    Reference: Wang et al. 2024, appendix A.4.
    """
    texts = []
    for length in _LENGTHS:
        new = sample(lm, SEED_WORDS, max_new_tokens=length, top_k=_TOP_K, seed=seed + length)
        texts += [
            " ".join((word + text).split()) for word, text in zip(SEED_WORDS, new, strict=True)
        ]
    return Contexts(("", *(f"{text} " for text in texts)), seed=seed)


def _name_sequence(base_digest: str, facts: Sequence[Fact]) -> str:
    """Return a name for a sequence of edits that begins with these facts on this model."""
    content = json.dumps([base_digest, *(asdict(fact) for fact in facts)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
