"""T-Patcher: adds a neuron to the last feed-forward block for every wrong token of an answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.ordinary_text import draw_rows, tap_tokens
from corrigenda.facts import Fact
from corrigenda.lm.activation import activation_of
from corrigenda.lm.footprint import FLOAT, USUAL_TOKENS, head_bytes
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key
from corrigenda.lm.spans import encode_fact
from corrigenda.lm.tail import Tail
from corrigenda.lm.term_bank import RowTerm, add_rows
from corrigenda.methods.t_patcher.neurons import (
    FactRun,
    Neurons,
    NeuronTraining,
    QueryMemory,
    TrainedNeurons,
    train,
    wrong_tokens,
)
from corrigenda.patch import header_for
from corrigenda.patch import notes as edit_notes
from corrigenda.patch.module import ModulePatch
from corrigenda.progress import Progress
from corrigenda.settings import select
from corrigenda.state import State
from corrigenda.training.dataset import TrainingSet, text_only

_QUERIES_OF_TEXT = 16
_ROW_OF_TEXT = 48
_MEMORY, _VALIDATION, _EDITS = "t-patcher/memory", "t-patcher/validation", "t-patcher/edits"


@dataclass(frozen=True, eq=False, repr=False)
class NeuronPatch(ModulePatch):
    """Neurons added to the last feed-forward block of a model.

    Attributes:
        stored: `keys` and `values` (neuron d_model), `biases` (neuron), `owners` (neuron): index of
            the fact each belongs to.
        header: Its `notes` name the `layer` and the `activation`.
    """

    kind: ClassVar[str] = "t-patcher"
    forms = MappingProxyType(
        {
            "keys": "float neurons d_model",
            "biases": "float neurons",
            "values": "float neurons d_model",
            "owners": "int neurons",
        }
    )
    noted = MappingProxyType({"activation": str})

    @property
    def neurons(self) -> Neurons:
        """Return the neurons, float32."""
        return Neurons(*(self.stored[name] for name in ("keys", "biases", "values")))

    def without(self, fact: int) -> NeuronPatch:
        """Return the patch without the neurons of one fact; the others keep their bits."""
        owners = self.stored["owners"]
        kept = owners != fact
        stored = {name: tensor[kept] for name, tensor in self.stored.items()}
        stored["owners"] = owners[kept] - (owners[kept] > fact).long()
        facts = self.header.facts[:fact] + self.header.facts[fact + 1 :]
        return NeuronPatch(stored, self.header.model_copy(update={"facts": facts}))

    @contextmanager
    def hooks(self, lm: LanguageModel) -> Generator[None]:
        """Add act(q K_p^T + b_p) V_p to the block's output at every token where a neuron fires.

        Where no neuron fires, the output tensor is left as it is. The neurons of all active patches
        are one hook.
        """
        if not len(self.stored["owners"]):
            yield
            return
        notes = self.header.notes
        activation = str(notes["activation"])
        (site,) = _sites(lm)
        with add_rows(
            lm,
            site,
            self.neurons,
            kind=(self.kind, activation),
            term=_term(_find_activation(lm, activation)),
            point=_query_point(site),
        ):
            yield


def _term(act: Callable[[Tensor], Tensor]) -> RowTerm:
    """Return what neurons add at the tokens where one of them fires."""

    def term(
        rows: tuple[Tensor, ...],
        queries: Float[Tensor, "batch pos d"],
        _: Float[Tensor, "batch pos d"],
    ) -> Float[Tensor, "batch pos d"] | None:
        placed = Neurons(*rows)
        fired = act(placed.activations(queries))
        active = (fired != 0).any(-1, keepdim=True)
        if not bool(active.any()):
            return None
        # Adding -0.0 leaves every number as it is.
        return torch.where(active, fired @ placed.values, -0.0)

    return term


class TPatcher(Editor):
    """Adds one neuron for each mistake, which fires on one query, and never changes it again.

    Reference: Huang et al. 2023, sections 3 and 4. See the card, `t_patcher.md`.
    """

    learns_rows: ClassVar[bool] = True
    name: ClassVar[str] = "t-patcher"
    requires: ClassVar[Requires] = Requires()

    max_neurons: int = Field(default=5, ge=1, description="Neurons of a fact, at most.")
    activation: Literal["relu", "host"] = Field(
        default="relu", description="Of the neurons: exactly silent below zero, or the model's."
    )

    @property
    def supports(self) -> Supports:  # pyright: ignore[reportIncompatibleVariableOverride]  # by option
        """Return what the method supports; it is contained where neurons are silent by a margin."""
        silent = self.activation == "relu" and self.gate > 0
        return Supports(single=True, batch=True, sequential=True, contained=silent)

    memory_size: int = Field(default=4000, ge=1, description="Queries of text to be silent on.")
    validation_size: int = Field(
        default=1000, ge=1, description="Further queries, which say when to stop."
    )
    steps: int = Field(default=2000, ge=1, description="Of Adam, at most.")
    first_check: int = Field(default=100, ge=1, description="Step of the first check.")
    check_every: int = Field(default=25, ge=1, description="Steps between checks.")
    learning_rate: float = Field(default=1e-2, gt=0, description="Of Adam, on unit queries.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Of keys and values.")
    clip: float = Field(default=5.0, gt=0, description="Longest gradient.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="Of the labels.")
    activation_weight: float = Field(default=1.0, ge=0, description="a_c.")
    memory_weight: float = Field(default=10.0, ge=0, description="m_c.")
    activation_margin: float = Field(default=0.0, description="alpha.")
    memory_margin: float = Field(default=3.0, description="beta_1.")
    silence: float = Field(default=-3.0, description="beta_2.")
    top_own: int = Field(default=5, ge=1, description="Terms averaged in the activation loss.")
    top_memory: int = Field(default=1000, ge=1, description="Terms averaged in a memory loss.")
    amplifier: float = Field(default=10.0, gt=0, description="First factor of each value.")
    value_noise: float = Field(default=0.0, ge=0, description="Size of values at the start.")
    gate: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of its own activation value below which a neuron with relu is silent; "
        "above 0 the edit is contained.",
    )
    seed: int = Field(default=0, description="Of the text drawn and of values at the start.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the down projection of the last block.

        Raises:
            UnknownSite (CG303): a mixture of experts, which has no one down projection.
        """
        return _sites(lm)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the memory of queries, of one fact's terms for it, and of logits."""
        queries = self.memory_size + self.validation_size + num_facts * USUAL_TOKENS
        terms = 2 * self.memory_size * self.max_neurons
        return (queries * lm.d_model + terms) * FLOAT + head_bytes(lm, USUAL_TOKENS)

    @property
    def training(self) -> NeuronTraining:
        """Return the settings of the training."""
        return select(NeuronTraining, self)

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Collect the memory: inputs of the last feed-forward block at tokens of ordinary text.

        Args:
            lm: The model.
            corpus: The text; see `corrigenda.statistics.Corpus`.
            progress: Called while the model writes text.

        Raises:
            EmptyCorpus (CG602): the text holds no tokens.
            UnknownSite (CG303): see `sites`.
        """
        (site,) = self.sites(lm)
        wanted = self.memory_size + self.validation_size
        rows = draw_rows(
            lm,
            text_only(corpus, where=self.name),
            count=-(-wanted // _QUERIES_OF_TEXT),
            length=_ROW_OF_TEXT,
            seed=self.seed,
            progress=progress,
        )
        queries = torch.cat(tap_tokens(lm, rows, _query_point(site))).cpu()
        generator = torch.Generator().manual_seed(self.seed)
        queries = queries[torch.randperm(len(queries), generator=generator)[:wanted]]
        split = max(1, len(queries) * self.memory_size // wanted)
        header = header_for(lm, method=self.name)
        return State(
            {_MEMORY: queries[:split].clone(), _VALIDATION: queries[split:].clone()},
            {"base_digest": header.base_digest, "base_name": header.base_name},
        )

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Give each wrong token of each fact a neuron, fact after fact; the model stays as it is.

        Returns:
            The patch with the new neurons, and the state with the queries of these facts in its
            memory.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            WrongBase (CG401): the state belongs to another model.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): see `sites`.
        """
        config = self.model_dump(mode="json")
        if not facts:
            patch = NeuronPatch.make(lm, self._stored(lm, [], []), method=self.name, config=config)
            return Edit(patch, state or State())
        if state is None or _MEMORY not in state.tensors:
            state = self.fit(lm)
        state.require_base(lm)
        (site,) = self.sites(lm)
        act = _find_activation(lm, self.activation)
        runs: list[FactRun] = []
        bank: list[list[TrainedNeurons]] = []
        grown = state.tensors.get(_EDITS, state.tensors[_MEMORY][:0])
        for index, fact in enumerate(facts):
            one, queries = self._run_fact(lm, fact, site)
            runs.append(one)
            memory = QueryMemory(
                torch.cat([state.tensors[_MEMORY], grown]).to(one.queries),
                state.tensors[_VALIDATION].to(one.queries),
            )
            earlier = [trained for rounds in bank for trained in rounds]
            bank.append(
                self._patch_tokens(lm, _add_neurons(one, earlier, act), memory, act, fact, index)
            )
            grown = torch.cat([grown, queries.to(grown)])
        stored = self._stored(lm, bank, runs)
        notes = self._notes(lm, facts, runs, bank, state.tensors[_VALIDATION], act)
        patch = NeuronPatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state.updated({_EDITS: grown}))

    def _run_fact(
        self, lm: LanguageModel, fact: Fact, site: Site
    ) -> tuple[FactRun, Float[Tensor, "pos d_model"]]:
        """Run a fact up to the last block; return also the block's input at all its tokens."""
        encoded = encode_fact(lm, fact, drop_last_target=True)
        tokens = Tokens.pad([encoded.ids], pad_id(lm)).to(lm.device)
        starts = torch.tensor([encoded.prompt_last])
        tail = Tail.build(lm, tokens, site.layer, starts, role="value")
        (queries,) = tap_tokens(lm, [encoded.ids], _query_point(site))
        reads = torch.tensor(list(encoded.reads), device=lm.device)
        labels = torch.tensor(encoded.target_ids, device=lm.device)
        own = queries[reads]
        return FactRun(tail, reads, labels, own, torch.zeros_like(own)), queries

    def _patch_tokens(
        self,
        lm: LanguageModel,
        one: FactRun,
        memory: QueryMemory,
        act: Callable[[Tensor], Tensor],
        fact: Fact,
        index: int,
    ) -> list[TrainedNeurons]:
        """Train neurons for the wrong tokens, then for tokens that these neurons made wrong."""
        rounds: list[TrainedNeurons] = []
        left = self.max_neurons
        while left:
            seed = self.seed + index * self.max_neurons + len(rounds)
            trained = train(
                lm, one, memory, self.training, act=act, most=left, seed=seed, where=fact.label
            )
            if rounds and not trained.tokens:
                break
            rounds.append(trained)
            left -= len(trained.tokens)
            wrong = set(wrong_tokens(lm, one, trained.neurons, act))
            if not wrong - set(trained.tokens):
                break
            one = _add_neurons(one, [trained], act)
        return rounds

    def _stored(
        self, lm: LanguageModel, bank: Sequence[Sequence[TrainedNeurons]], runs: Sequence[FactRun]
    ) -> dict[str, Tensor]:
        dtype = runs[0].queries.dtype if runs else torch.float32
        empty = torch.zeros(0, lm.d_model, dtype=dtype, device=lm.device)
        neurons = Neurons(empty, empty[:, 0], empty)
        owners: list[int] = []
        for index, rounds in enumerate(bank):
            for trained in rounds:
                neurons = neurons + trained.neurons
                owners += [index] * len(trained.tokens)
        return {**neurons._asdict(), "owners": torch.tensor(owners, dtype=torch.long)}

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        runs: Sequence[FactRun],
        bank: Sequence[Sequence[TrainedNeurons]],
        validation: Float[Tensor, "m d_model"],
        act: Callable[[Tensor], Tensor],
    ) -> dict[str, object]:
        """Return the result of each fact with all neurons in place, and activations elsewhere."""
        everything = [trained for rounds in bank for trained in rounds]
        left = [
            len(wrong_tokens(lm, _add_neurons(one, everything, act), None, act)) for one in runs
        ]
        notices = [
            f"{fact.label}: not converged; {count} of its tokens are not the likeliest."
            for fact, count in zip(facts, left, strict=True)
            if count
        ]
        heard = torch.cat(
            [
                trained.neurons.activations(validation.to(trained.neurons.keys))
                for trained in everything
            ],
            dim=1,
        )
        return {
            "status": ["not converged" if count else "written" for count in left],
            "notices": notices,
            "layer": self.sites(lm)[0].layer,
            "activation": self.activation,
            "neurons": [sum(len(trained.tokens) for trained in rounds) for rounds in bank],
            "tokens": [[token for one in rounds for token in one.tokens] for rounds in bank],
            "steps": [sum(trained.steps for trained in rounds) for rounds in bank],
            "stop": [rounds[-1].stop for rounds in bank],
            "losses": [_round_traces(rounds, "losses") for rounds in bank],
            "memory_losses": [_round_traces(rounds, "memory_losses") for rounds in bank],
            "heard_on_memory": float((heard > 0).double().sum()) / max(1, heard.numel()),
            "sum_on_memory": float(act(heard).abs().sum()) / max(1, len(heard)),
        }


def _sites(lm: LanguageModel) -> tuple[Site, ...]:
    site = Site(lm.num_layers - 1)
    lm.module_path(site)
    return (site,)


def _query_point(site: Site) -> Point:
    """Return the point at the input of the whole feed-forward block."""
    return key(replace(site, part="mlp.up"))


def _find_activation(lm: LanguageModel, name: str) -> Callable[[Tensor], Tensor]:
    return torch.relu if name == "relu" else activation_of(lm)


def _add_neurons(
    one: FactRun, earlier: Sequence[TrainedNeurons], act: Callable[[Tensor], Tensor]
) -> FactRun:
    """Return a fact with neurons of the same edit added."""
    added = one.added
    for trained in earlier:
        neurons = trained.neurons
        added = added + act(neurons.activations(one.queries)) @ neurons.values
    return one._replace(added=added)


def _round_traces(rounds: Sequence[TrainedNeurons], name: str) -> list[float]:
    return [loss for one in rounds for loss in edit_notes.round_values(getattr(one, name))]
