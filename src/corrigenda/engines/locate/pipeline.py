"""Locate-then-edit: options, plan, encoding in contexts, and capture at the subject's last token.

Shared by every method that writes into down projections. Contexts are prefixes put before a prompt
by plain concatenation; the first is always the empty one, the clean prompt. On a model with a chat
template the prompt as a user's turn is one more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.editor import Editor, StageWork
from corrigenda.engines.locate.contexts import Contexts, Style, generate_contexts
from corrigenda.engines.locate.layer_choice import choose_layer, describe_choice
from corrigenda.engines.locate.records import EntryRole, Erasure, SearchSettings, StopLoss, Targets
from corrigenda.engines.locate.rows import (
    capture_last,
    encode_in_contexts,
    norm_gain,
    residuals_at_output,
    rewrite_rows,
    subject_tokens,
)
from corrigenda.engines.locate.search_size import search_flops, search_memory
from corrigenda.engines.locate.target_cache import current_targets
from corrigenda.engines.locate.wanted import (
    NormAnchor,
    describe_merged,
    hash_search,
    measure_anchor,
    read_outputs,
    scale_targets,
    search_targets,
)
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.footprint import USUAL_TOKENS, head_flops, pass_flops
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, require_layers
from corrigenda.lm.spans import encode_fact
from corrigenda.patch import Header, header_for
from corrigenda.progress import Progress
from corrigenda.settings import select
from corrigenda.state import State
from corrigenda.statistics.fitting import describe_moments
from corrigenda.training.dataset import TrainingSet

__all__ = [
    "SMALL_AGREEMENT",
    "WRITING",
    "EditPlan",
    "LocateThenEdit",
    "average",
    "capture_last",
    "encode_in_contexts",
    "key_agreements",
    "norm_gain",
    "residuals_at_output",
    "rewrite_rows",
    "same_key_pairs",
    "subject_tokens",
    "subject_warnings",
    "written_fractions",
]

SMALL_AGREEMENT = 0.1
"""Below this ratio of the clean to the averaged key, an edit at the clean prompt is
unreliable."""

WRITING = "writing"
"""Name of the stage in which a change of weights is solved for."""

_SAME_KEY = 0.999
_CHAT_WEIGHT = 0.5
_CONTEXT_TOKENS = 10
_USUAL_CONTEXTS: Mapping[Style, int] = {"rome": 21, "memit": 6}
_CLAMP_AT_NORM = 1.5
_CONTEXTS, _SITES, _NOTICES = "contexts", "locate/sites", "locate/notices"
_ANCHORS = "locate/anchors"


class EditPlan(NamedTuple):
    """Sites and contexts of an edit, decided before it looks at facts.

    Attributes:
        sites: Down projections to change, lowest first.
        contexts: Contexts and their weights.
        notices: Decisions taken for the caller, in words.
        statistics: What the second moments were made of, for the header.
        anchors: Length of solved values at each layer that is searched; empty where none is fixed.
    """

    sites: tuple[Site, ...]
    contexts: Contexts
    notices: tuple[str, ...]
    statistics: Mapping[str, JsonValue]
    anchors: Mapping[int, NormAnchor] = MappingProxyType({})


class LocateThenEdit(Editor):
    """Editor with the options and steps that all locate-then-edit methods share."""

    context_style: ClassVar[Style]
    role: ClassVar[EntryRole] = "value"
    usual_clamp: ClassVar[float] = 4.0
    most_anchors: ClassVar[float] = 2.0
    """A solved value longer than so many anchors is left out, see `norm_anchor`."""
    low_rank: ClassVar[bool] = True

    steps: int = Field(default=20, ge=1, description="Forward passes of the target search.")
    learning_rate: float = Field(default=0.5, gt=0, description="Of Adam in the target search.")
    kl_weight: float = Field(default=0.0625, ge=0, description="Price of changing the essence.")
    weight_decay: float = Field(default=0.5, ge=0, description="Price of a long delta.")
    clamp: float | None = Field(
        default=None,
        gt=0,
        description="Longest delta, in lengths of the anchor; by default 4 (0.75 in the "
        "residual stream), and at most 1.5 where the feed-forward block ends in a norm.",
    )
    stop_loss: float = Field(default=0.05, ge=0, description="Loss at which a search ends.")
    stop_on: StopLoss = Field(
        default="nll",
        description="Loss compared with stop_loss: nll of the target, or total as published.",
    )
    likeliest_stop: int = Field(
        default=0,
        ge=0,
        description="End a search after so many passes in which every target token was the "
        "likeliest (most-probable early stopping); 0: never.",
    )
    norm_anchor: bool = Field(
        default=False,
        description="Bring every solved value to the mean length of those of the unedited model "
        "(norm-anchor scaling), measured by `fit`.",
    )
    anchor_facts: int = Field(
        default=1000, ge=2, description="Facts by which that length is measured."
    )
    erasure: Erasure = Field(
        default="refuse",
        description="Of facts with `erase`: a likely refusal, or an unlikely `before`.",
    )
    contexts: Contexts | None = Field(
        default=None, description="Prefixes; the fitted ones, or generated, if not given."
    )
    num_prefixes: int | None = Field(
        default=None,
        ge=0,
        description="Generated prefixes, evenly spread over the style's; all of them by default.",
    )
    chat_contexts: bool = Field(
        default=True, description="Edit the chat form too, where the model has a chat template."
    )
    seed: int = Field(default=0, description="Of generated contexts.")

    @abstractmethod
    def configured_layers(self) -> tuple[int, ...] | None:
        """Return the layers of the options in ascending order; None where there are none."""

    def layers_up_to(self, last: int, num_layers: int) -> tuple[int, ...]:
        """Return the layers to edit where `last` is the one chosen for the model."""
        return (last,)

    def select_layers(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of the layers that are edited: all."""
        return layers

    def searched_layers(self, sites: Sequence[Site]) -> tuple[int, ...]:
        """Return the layers at which targets are searched: the last one."""
        return (sites[-1].layer,)

    @property
    def merges_facts(self) -> bool:
        """Whether facts of one subject get one target."""
        return False

    def find_wanted(
        self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan, layer: int
    ) -> tuple[Targets, list[str]]:
        """Search targets at a layer, on the model as it is, and return notices too.

        Raises:
            NotEnoughFacts (CG106), NonFinite (CG201): see `search_targets`.
        """
        settings = self.search_settings(lm)
        found = search_targets(
            lm,
            facts,
            plan.contexts,
            layer=layer,
            role=self.role,
            settings=settings,
            merged=self.merges_facts,
            suppress=self.erasure == "suppress",
        )
        notices = describe_merged(facts, found.traces) if self.merges_facts else []
        if not self.norm_anchor:
            return found, notices
        outputs = read_outputs(lm, facts, found, layer, self.role)
        scaled = scale_targets(found, outputs, plan.anchors[layer].length, self.most_anchors)
        return scaled.targets, [*notices, *scaled.describe(facts)]

    def search_settings(self, lm: LanguageModel) -> SearchSettings:
        """Return the settings of the target search on a model.

        A norm behind the down projection (Gemma 2 and 3, OLMo 2) gives its output one length, so
        that a longer delta only turns it further: left to itself the search goes to any clamp, and
        the long change that it asks for spills onto other keys.
        """
        settings = select(SearchSettings, self)
        if self.clamp is None:
            has_norm = lm.family.mlp_norm is not None
            usual = min(self.usual_clamp, _CLAMP_AT_NORM) if has_norm else self.usual_clamp
            return settings._replace(clamp=usual)
        return settings

    def chosen_options(self, lm: LanguageModel, state: State) -> dict[str, float]:
        """Return the clamp of the model where none is given."""
        del state
        return {"clamp": self.search_settings(lm).clamp} if self.clamp is None else {}

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return down projections of the configured layers, or of those chosen for the model.

        Raises:
            UnknownSite (CG303): the model has no such block.
        """
        return self._locate(lm)[0]

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the target search: constants of the facts and one graph."""
        return search_memory(
            lm, self.searched_layers(self.sites(lm))[0], num_facts, self._usual_rows
        )

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of contexts, of the target search, and of writing."""
        sites = self.likely_sites(lm)
        rows = num_facts * self._usual_rows
        layers = self.searched_layers(sites)
        searched = sum(search_flops(lm, layer, rows, self.steps) for layer in layers)
        read = rows * USUAL_TOKENS / 2
        captured = sum(pass_flops(lm, read, 0, site.layer) for site in sites)
        widths = [lm.shape(site)[1] for site in sites] if self.requires.moments else []
        written = self._usual_rows * _CONTEXT_TOKENS
        return (
            StageWork("contexts", pass_flops(lm, written) + head_flops(lm, written)),
            StageWork("search", searched),
            StageWork(WRITING, captured, sum(4.0 * num_facts * width**2 for width in widths)),
        )

    @property
    def _usual_rows(self) -> int:
        """Rows of a fact: its prompt in each context, and its essence prompt."""
        if self.contexts is not None:
            return 1 + len(self.contexts)
        if self.num_prefixes is not None:
            return 2 + self.num_prefixes
        return 1 + _USUAL_CONTEXTS[self.context_style]

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Fit second moments at `sites(lm)` and generate the contexts, on the unedited model.

        With `norm_anchor` the length of solved values is measured too.
        """
        sites, notices = self._locate(lm)
        fitted = super().fit(lm, corpus, progress=progress)
        contexts = self.contexts or self._generate_contexts(lm)
        anchors: dict[str, JsonValue] = {}
        for layer in self.searched_layers(sites) if self.norm_anchor else ():
            anchor = measure_anchor(
                lm,
                layer=layer,
                role=self.role,
                settings=self.search_settings(lm),
                count=self.anchor_facts,
            )
            anchors[str(layer)] = anchor._asdict()
        return fitted.updated(
            meta={
                _ANCHORS: anchors,
                _CONTEXTS: contexts.to_json(),
                _SITES: [str(site) for site in sites],
                _NOTICES: list(notices),
            }
        )

    def make_plan(self, lm: LanguageModel, state: State | None) -> EditPlan:
        """Decide sites and contexts: from the options, else the state, else found now.

        Raises:
            MissingState (CG503): second moments are needed and not there.
            WrongBase (CG401): the state was fitted on another model.
        """
        state = state or State()
        state.require_base(lm)
        if self.configured_layers() is None and _SITES in state.meta:
            known = {site.layer: site for site in map(Site.parse, _read_texts(state, _SITES))}
            sites = tuple(known[layer] for layer in self.select_layers(tuple(known)))
            notices = _read_texts(state, _NOTICES)
        else:
            sites, notices = self._locate(lm)
        if self.requires.moments:
            state.require_moments(sites)
        contexts = self.contexts
        if contexts is None and _CONTEXTS in state.meta:
            contexts = Contexts.from_json(str(state.meta[_CONTEXTS]))
        if contexts is None:
            contexts = self._generate_contexts(lm)
        statistics = describe_moments(state, sites) if self.requires.moments else {}
        if statistics.get("chosen"):
            notices = (*notices, str(statistics["summary"]))
        if self.contexts is None and self.chat_contexts and has_chat_template(lm.tokenizer):
            contexts = replace(contexts, chat=_CHAT_WEIGHT)
        anchors = self._read_anchors(lm, state, sites) if self.norm_anchor else {}
        return EditPlan(sites, contexts, notices, statistics, anchors)

    def search_ahead(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> None:
        """Search the targets of facts together, inside `target_cache.keep_targets`."""
        if facts and current_targets() is not None and not self.merges_facts:
            plan = self.make_plan(lm, state)
            self.find_wanted(lm, facts, plan, self.searched_layers(plan.sites)[0])

    def make_header(
        self, lm: LanguageModel, facts: Sequence[Fact], notes: Mapping[str, object]
    ) -> Header:
        """Make the header of a patch."""
        config = self.model_dump(mode="json")
        return header_for(lm, method=self.name, config=config, facts=facts, notes=notes)

    def _generate_contexts(self, lm: LanguageModel) -> Contexts:
        return generate_contexts(lm, self.context_style, count=self.num_prefixes, seed=self.seed)

    def _locate(self, lm: LanguageModel) -> tuple[tuple[Site, ...], tuple[str, ...]]:
        layers, notices = self.configured_layers(), ()
        if layers is None:
            layers = self.layers_up_to(choose_layer(lm), lm.num_layers)
            notices = (describe_choice(lm, layers),)
        layers = self.select_layers(layers)
        require_layers(lm, layers, where=f"method {self.name}")
        return tuple(Site(layer) for layer in layers), notices

    def _read_anchors(
        self, lm: LanguageModel, state: State, sites: Sequence[Site]
    ) -> dict[int, NormAnchor]:
        kept = state.meta.get(_ANCHORS)
        found = {}
        for layer in self.searched_layers(sites):
            fields = kept.get(str(layer)) if isinstance(kept, dict) else None
            settings = self.search_settings(lm)
            wanted = hash_search(layer, self.role, settings, self.anchor_facts)
            if not isinstance(fields, dict) or fields.get("settings") != wanted:
                raise MissingState(
                    f"the length of solved values at block {layer} was not measured with these "
                    "settings.",
                    where=f"method {self.name}, norm_anchor",
                    hint="Call `editor.fit(lm)` with the same editor on the unedited model, and "
                    "pass its state.",
                )
            found[layer] = NormAnchor(**fields)  # type: ignore[arg-type]  # what `fit` wrote
        return found


def subject_warnings(lm: LanguageModel, facts: Sequence[Fact]) -> list[str]:
    """Describe what makes the subject's last token a doubtful place in the clean prompt."""
    found = []
    for fact in facts:
        one = encode_fact(lm, fact)
        if one.glued:
            found.append(
                f"{fact.label}: the last token of the subject also covers text after it; the edit "
                "depends on that text too."
            )
        if one.subject_at_start:
            found.append(
                f"{fact.label}: the subject is the very first token, where activations are unlike "
                "all others; a prompt with a word before it is safer."
            )
    return found


def average(values: Float[Tensor, "batch d"], weights: Sequence[float]) -> Float[Tensor, "n d"]:
    """Average over contexts values captured facts outermost; float64."""
    grouped = values.double().reshape(-1, len(weights), values.shape[-1])
    return torch.einsum("c,ncd->nd", grouped.new_tensor(list(weights)), grouped)


def key_agreements(
    keys: Float[Tensor, "n d_in"], clean: Float[Tensor, "n d_in"], factor: Cholesky | None
) -> list[float]:
    """Return each fact's `(u . k_clean) / (u . k)`, `u = C^-1 k`: 1 where both keys agree."""
    if factor is None:
        direction = keys.double()
    else:
        direction = factor.solve(keys.double().T.to(factor.lower.device)).T.to(keys.device)
    own = (direction * keys.double()).sum(dim=1)
    return ((direction * clean.double()).sum(dim=1) / own).tolist()


def same_key_pairs(keys: Float[Tensor, "n d_in"]) -> list[tuple[int, int]]:
    """Return pairs of facts whose keys are nearly parallel (cosine above 0.999)."""
    unit = torch.nn.functional.normalize(keys.double(), dim=1)
    close = torch.triu(unit @ unit.T > _SAME_KEY, diagonal=1)
    return [(int(i), int(j)) for i, j in close.nonzero().tolist()]


def written_fractions(
    written: Float[Tensor, "d_out n"], wanted: Float[Tensor, "d_out n"]
) -> list[float]:
    """Return the share of each wanted vector that is written, along its own direction."""
    norms = wanted.square().sum(dim=0)
    share = (written * wanted).sum(dim=0) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.where(norms > 0, share, torch.ones_like(share)).tolist()


def _read_texts(state: State, name: str) -> tuple[str, ...]:
    found = state.meta.get(name)
    return tuple(map(str, found)) if isinstance(found, list) else ()
