"""Editors that search targets in the residual stream and change one or several layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit
from corrigenda.engines.closed_form import KeyRecords, RecordedBatch
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Style
from corrigenda.engines.locate.pipeline import SMALL_AGREEMENT, EditPlan, LocateThenEdit
from corrigenda.engines.locate.target_search import EntryRole, SearchTrace, Targets, find_targets
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.protected import Protected
from corrigenda.linalg.solve import gram_condition
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key
from corrigenda.lm.sites import state as residual_stream
from corrigenda.patch import Header, WeightPatch
from corrigenda.patch.notes import round_series, summarise
from corrigenda.progress import report_stage
from corrigenda.state import State

SMALL_FRACTION = 0.3
"""Below this share of a wanted change in the last edited block, a fact counts as hardly written."""


class LayerMeasurement(NamedTuple):
    """Keys and remaining residuals of a batch at one layer, float64, one row per fact.

    Attributes:
        keys: Two-level averages over contexts.
        clean: Keys of the bare prompts.
        residuals: Remaining residuals, at the output of the down projection.
    """

    keys: Float[Tensor, "n d_in"]
    clean: Float[Tensor, "n d_in"]
    residuals: Float[Tensor, "n d_model"]


class SpreadEditor(LocateThenEdit):
    """Editor with targets at the last edited block and one solve per layer, lowest first."""

    context_style: ClassVar[Style] = "memit"
    role: ClassVar[EntryRole] = "state"
    usual_clamp: ClassVar[float] = 0.75

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve for the change of one layer; the equation of the method."""
        raise NotImplementedError

    def coordinates(
        self, state: State, site: Site, keys: Float[Tensor, "d_in n"]
    ) -> Float[Tensor, "size n"]:
        """Return whitened keys: disturbing old ones costs the same in every direction."""
        factor = self.metric(state, site)
        return factor.whiten(keys.to(factor.lower))

    def metric(self, state: State, site: Site) -> Cholesky:
        """Return the factor of what a change is measured in: the second moment of keys."""
        return state.factor(site)

    def lift(
        self, state: State, site: Site, coordinates: Float[Tensor, "size n"]
    ) -> Float[Tensor, "d_in n"]:
        """Return what reads a key as `coordinates` read its coordinates."""
        return self.metric(state, site).unwhiten(coordinates)

    def remaining_residuals(
        self,
        lm: LanguageModel,
        site: Site,
        plan: EditPlan,
        clean: Sequence[tuple[int, ...]],
        targets: Targets,
    ) -> Float[Tensor, "n d_model"]:
        """Return what the last edited block still lacks, at the output of `site`; float64."""
        end = residual_stream(plan.sites[-1].layer)
        now = pipeline.capture_last(lm, clean, [end])[end].double()
        return pipeline.residuals_at_output(lm, site, clean, targets.wanted.double() - now)

    def layer_share(
        self, missing: Float[Tensor, "n d_model"], remaining: int
    ) -> Float[Tensor, "n d_model"]:
        """Return the part of the residuals that one layer is to close, with `remaining` to go."""
        return missing / remaining

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make one change for all facts; the model is left as it is.

        Returns:
            The patch and the state; a sequential method adds the keys of this batch to it.

        Raises:
            AmbiguousSubject (CG104), SubjectNotFound (CG103), PromptTooLong (CG105): a fact that
                cannot be located.
            MissingState (CG503): no state, or one without these layers.
            NonFinite (CG201): the model gives no finite loss.
            NotEnoughFacts (CG106), DependentKeys (CG202): equality constraints on keys that
                coincide, or more of them than coordinates.
        """
        state = state or State()
        if not facts:
            return Edit(WeightPatch({}, self.make_header(lm, facts, {})), state)
        plan = self.make_plan(lm, state)
        self.check_facts(lm, facts, plan)
        notes = _LayerNotes(facts, plan, pipeline.subject_warnings(lm, facts))
        with ExitStack() as stack:
            changes = {
                layer.site: layer.change
                for layer in self._solve_in_order(lm, facts, plan, state, notes, stack)
            }
            after = self.extend_state(lm, facts, plan, state)
        return Edit(WeightPatch(changes, self.make_header(lm, facts, notes.finish())), after)

    def _solve_in_order(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        plan: EditPlan,
        state: State,
        notes: _LayerNotes,
        stack: ExitStack,
    ) -> list[SolvedLayer]:
        """Solve layer by layer; on `stack` the changes of the lower ones stay applied."""
        targets = find_targets(
            lm,
            pipeline.rewrite_rows(lm, facts, plan.contexts),
            layer=plan.sites[-1].layer,
            role=self.role,
            settings=self.search_settings(lm),
            names=[fact.label for fact in facts],
        )
        notes.traces = targets.traces
        sequences = pipeline.subject_tokens(lm, facts, plan.contexts)
        layers = []
        for done, site in enumerate(plan.sites):
            report_stage(pipeline.WRITING, done, len(plan.sites))
            measured = self._measure(lm, site, plan, sequences, targets)
            share = self.layer_share(measured.residuals, len(plan.sites) - done)
            self.check_keys(facts, measured.keys)
            change = self.solve(measured.keys.T, share.T, state, site)
            layers.append(SolvedLayer(site, measured.keys, share, change))
            keys, clean = (
                self.coordinates(state, site, part.T) for part in (measured.keys, measured.clean)
            )
            notes.add(layers[-1], measured.residuals, keys, clean)
            temporary = WeightPatch({site: change}, Header(method=self.name))
            stack.enter_context(temporary.apply(lm))
        report_stage(pipeline.WRITING, len(plan.sites), len(plan.sites))
        return layers

    @property
    def joins_batches(self) -> bool:
        """Whether all batches of a sequence are one system."""
        return False

    def record(self, lm: LanguageModel, facts: Sequence[Fact], state: State) -> RecordedBatch:
        """Find keys and residuals as `edit` does, with its errors; the model is left as it is."""
        plan = self.make_plan(lm, state)
        self.check_facts(lm, facts, plan)
        notes = _LayerNotes(facts, plan, pipeline.subject_warnings(lm, facts))
        with ExitStack() as stack:
            layers = self._solve_in_order(lm, facts, plan, state, notes, stack)
        own = torch.arange(len(facts))
        records = {
            layer.site: KeyRecords(layer.keys.cpu(), layer.share.cpu(), own) for layer in layers
        }
        statuses, notices = (tuple(notes.finish()[name]) for name in ("status", "notices"))  # type: ignore[arg-type]  # lists of sentences
        return RecordedBatch(records, state, statuses, notices)

    def solve_layers(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State
    ) -> list[SolvedLayer]:
        """Return keys, shares and changes of every layer, as `edit` finds them."""
        plan = self.make_plan(lm, state)
        with ExitStack() as stack:
            return self._solve_in_order(lm, facts, plan, state, _LayerNotes(facts, plan, ()), stack)

    def check_facts(self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan) -> None:
        """Refuse, before the search, a batch that no solve could take; least squares takes all."""

    def check_keys(self, facts: Sequence[Fact], keys: Float[Tensor, "n d_in"]) -> None:
        """Refuse keys that the solver cannot take; least squares takes all."""

    def extend_state(
        self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan, state: State
    ) -> State:
        """Return the state after this edit; called with the edit in place."""
        return state

    def _measure(
        self,
        lm: LanguageModel,
        site: Site,
        plan: EditPlan,
        sequences: Sequence[tuple[int, ...]],
        targets: Targets,
    ) -> LayerMeasurement:
        """Measure keys and residuals at `site`, on the model as it is."""
        keys = pipeline.capture_last(lm, sequences, [key(site)])[key(site)]
        clean = sequences[:: len(plan.contexts)]
        return LayerMeasurement(
            pipeline.average(keys, plan.contexts.weights),
            keys[:: len(plan.contexts)].double(),
            self.remaining_residuals(lm, site, plan, clean, targets),
        )


class MultiLayerEditor(SpreadEditor):
    """Editor of a range of layers that can protect the keys of earlier edits.

    Protected keys are in the state as `<method>/protected/<site>/...`, see `Protected`: their size
    does not grow beyond a quarter as many keys as the layer has inner units.
    """

    layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks to edit, lowest first; chosen by depth if not given."
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Price of disturbing old keys, in background keys; by default "
        "as many as suit the model, see `price`.",
    )

    @property
    def protects_keys(self) -> bool:
        """Whether the keys of each batch are protected in later ones."""
        return False

    @property
    def joins_batches(self) -> bool:
        """Whether all batches of a sequence are one system: where keys are protected."""
        return self.protects_keys

    def configured_layers(self) -> tuple[int, ...] | None:
        """Return the layers given in ascending order, or None where there are none."""
        return None if self.layers is None else tuple(sorted(set(self.layers)))

    def layers_up_to(self, last: int, num_layers: int) -> tuple[int, ...]:
        """Return a sixth of the blocks, at most five, ending at the one chosen for the model."""
        count = max(1, min(5, num_layers // 6))
        return tuple(range(max(0, last - count + 1), last + 1))

    def price(self, state: State, site: Site) -> float:
        """Return `weight`, or the one that suits the statistics of a site.

        A key whose squared length is g in the coordinates of the method (`coordinates`) is written
        by g / (weight + g). The weight is the mean g of the keys of text, so that a key like those
        of text is written by half, and rarer ones, as those of subjects are, by more. With a second
        moment of full rank and no shrinkage that is the number d_in of inner units: 16,384 for
        GPT-J, for which MEMIT gives 15,000.
        """
        return self.weight if self.weight is not None else self.mean_energy(state, site)

    def chosen_options(self, lm: LanguageModel, state: State) -> dict[str, float]:
        """Return the clamp, and the mean price of the layers, where none are given."""
        chosen = super().chosen_options(lm, state)
        if self.weight is None:
            prices = [self.price(state, site) for site in self.make_plan(lm, state).sites]
            chosen["weight"] = sum(prices) / len(prices)
        return chosen

    def mean_energy(self, state: State, site: Site) -> float:
        """Return the mean squared length of the keys of text in the coordinates of the method."""
        return state.effective_dimension(site)

    def protected(self, state: State, site: Site) -> Protected | None:
        """Return the keys of earlier edits at this editor's price; None where there are none."""
        prefix = self._prefix(site)
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        if not self.protects_keys or not tensors:
            return None
        return Protected.from_tensors(tensors).with_weight(self.price(state, site))

    def protect(self, state: State, keys: Mapping[Site, Float[Tensor, "d_in n"]]) -> State:
        """Return a state in which these keys are protected too."""
        held = {}
        for site, new in keys.items():
            columns = self.coordinates(state, site, new)
            earlier = self.protected(state, site)
            if earlier is None:
                earlier = Protected.empty(len(columns), self.price(state, site), columns.device)
            held[site] = earlier.with_keys(columns)
        return self.with_protected(state, held)

    def with_protected(self, state: State, held: Mapping[Site, Protected]) -> State:
        """Return a state in which these are the protected keys."""
        return state.updated(
            {
                self._prefix(site) + name: tensor
                for site, one in held.items()
                for name, tensor in one.tensors().items()
            }
        )

    def extend_state(
        self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan, state: State
    ) -> State:
        """Protect the keys of this batch as the edited model computes them."""
        if not self.protects_keys:
            return state
        sequences = pipeline.subject_tokens(lm, facts, plan.contexts)
        captured = pipeline.capture_last(lm, sequences, [key(site) for site in plan.sites])
        return self.protect(
            state,
            {
                site: pipeline.average(captured[key(site)], plan.contexts.weights).T
                for site in plan.sites
            },
        )

    def _prefix(self, site: Site) -> str:
        return f"{self.name}/protected/{site}/"


class SolvedLayer(NamedTuple):
    """Solution of one layer: keys and shares one row per fact, float64."""

    site: Site
    keys: Float[Tensor, "n d_in"]
    share: Float[Tensor, "n d_model"]
    change: LowRank


class _LayerNotes:
    """Notes for the header, collected layer by layer."""

    def __init__(self, facts: Sequence[Fact], plan: EditPlan, warnings: Sequence[str]) -> None:
        self.facts, self.plan = facts, plan
        self.traces: list[SearchTrace] = []
        self.warnings = [*plan.notices, *warnings]
        self.agreement: dict[str, list[float]] = {}
        self.fraction: dict[str, list[float]] = {}
        self.missing: dict[str, list[float]] = {}
        self.first_missing: list[float] = []
        self.left: list[float] = []
        self.condition: dict[str, float] = {}
        self.conflicts: list[list[int]] = []

    def add(
        self,
        layer: SolvedLayer,
        missing: Float[Tensor, "n d_model"],
        keys: Float[Tensor, "size n"],
        clean: Float[Tensor, "size n"],
    ) -> None:
        """Record one layer; `keys` and `clean` are in the coordinates of the method."""
        name = str(layer.site)
        self.agreement[name] = pipeline.key_agreements(keys.T, clean.T, None)
        written = layer.change @ layer.keys.T.to(layer.change.right)
        self.fraction[name] = pipeline.written_fractions(written, layer.share.T.to(written))
        if not self.first_missing:
            self.first_missing = missing.norm(dim=1).tolist()
        self.left = (missing.T.to(written) - written).norm(dim=0).tolist()
        self.missing[name] = missing.norm(dim=1).tolist()
        self.condition[name] = gram_condition(keys, None).condition
        for fact, ratio in zip(self.facts, self.agreement[name], strict=True):
            if ratio < SMALL_AGREEMENT:
                self.warnings.append(
                    f"{fact.label}: key agreement {ratio:.3f} at {name} is below "
                    f"{SMALL_AGREEMENT}; the averaged key does not represent the bare prompt."
                )
        if self.conflicts:
            return
        for i, j in pipeline.same_key_pairs(layer.keys):
            if self.facts[i].target != self.facts[j].target:
                self.conflicts.append([i, j])
                self.warnings.append(
                    f"{self.facts[i].label} and {self.facts[j].label} have the same key and "
                    "different targets; least squares averages them."
                )

    def _small_fractions(self) -> list[str]:
        """Describe a batch of which too little was written; empty where enough was."""
        pairs = zip(self.left, self.first_missing, strict=True)
        shares = [1 - left / missing for left, missing in pairs if missing > 0]
        few = [share for share in shares if share < SMALL_FRACTION]
        if not few:
            return []
        return [
            f"Of {len(few)} of {len(self.facts)} facts less than {SMALL_FRACTION:.0%} of the "
            f"wanted change was written (least {min(few):.0%}): lower `weight` to write more."
        ]

    def finish(self) -> dict[str, object]:
        """Return the notes for the header."""
        warnings = [*self.warnings, *self._small_fractions()]
        return {
            **summarise(self.facts, [trace.status for trace in self.traces], warnings),
            "search": [trace.to_dict() for trace in self.traces],
            "key_agreement": round_series(self.agreement),
            "written_fraction": round_series(self.fraction),
            "missing": round_series(self.missing),
            "key_condition": {name: f"{value:.3g}" for name, value in self.condition.items()},
            "conflicts": self.conflicts,
            "layers": [site.layer for site in self.plan.sites],
            "statistics": self.plan.statistics,
        }
