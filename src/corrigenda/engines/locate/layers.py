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
from corrigenda.engines.locate.ideal_editor import sentence_keys, simulate_ideal
from corrigenda.engines.locate.layer_notes import LayerNotes, SolvedLayer
from corrigenda.engines.locate.pipeline import EditPlan, LocateThenEdit
from corrigenda.engines.locate.records import EntryRole, Targets
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.protected import Protected
from corrigenda.linalg.solve import ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key
from corrigenda.lm.sites import state as residual_stream
from corrigenda.patch import Header, WeightPatch
from corrigenda.progress import report_stage
from corrigenda.state import State


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

    merge_subjects: bool = Field(
        default=False,
        description="Search one value for all facts of a batch with the same subject "
        "(MEMIT-Merge).",
    )

    @property
    def merges_facts(self) -> bool:
        """Whether facts of one subject get one target: the option `merge_subjects`."""
        return self.merge_subjects

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
                coincide, or more of them than coordinates; merged facts that contradict each other.
        """
        state = state or State()
        if not facts:
            return Edit(WeightPatch({}, self.make_header(lm, facts, {})), state)
        plan = self.make_plan(lm, state)
        self.check_facts(lm, facts, plan)
        notes = LayerNotes(facts, plan, pipeline.subject_warnings(lm, facts), self.merges_facts)
        with ExitStack() as stack:
            solved = self._solve_in_order(lm, facts, plan, state, notes, stack)
            changes, after = {layer.site: layer.change for layer in solved}, state
            if not self.corrects_changes:
                after = self.extend_state(lm, facts, plan, state)
        if self.corrects_changes:
            changes, after = self.correct_changes(lm, facts, changes, state)
            with WeightPatch(changes, Header(method=self.name)).apply(lm):
                after = self.extend_state(lm, facts, plan, after)
        return Edit(WeightPatch(changes, self.make_header(lm, facts, notes.finish())), after)

    @property
    def corrects_changes(self) -> bool:
        """Whether `correct_changes` makes others of the changes that were solved for."""
        return False

    def correct_changes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        changes: dict[Site, LowRank],
        state: State,
    ) -> tuple[dict[Site, LowRank], State]:
        """Return the changes as they are written, and the state that remembers them."""
        return changes, state

    def _solve_in_order(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        plan: EditPlan,
        state: State,
        notes: LayerNotes,
        stack: ExitStack,
    ) -> list[SolvedLayer]:
        """Solve layer by layer; on `stack` the changes of the lower ones stay applied."""
        searched = self.searched_layers(plan.sites)
        targets, here = None, plan
        sequences = pipeline.subject_tokens(lm, facts, plan.contexts)
        layers = []
        for done, site in enumerate(plan.sites):
            if targets is None or len(searched) > 1:
                here = plan._replace(sites=(site,)) if len(searched) > 1 else plan
                targets, notices = self.find_wanted(lm, facts, here, here.sites[-1].layer)
                notes.traces = targets.traces
                notes.warnings += notices
            report_stage(pipeline.WRITING, done, len(plan.sites))
            measured = self._measure(lm, site, here, sequences, targets)
            remaining = 1 if here is not plan else len(plan.sites) - done
            share = self.layer_share(measured.residuals, remaining)
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
        notes = LayerNotes(facts, plan, pipeline.subject_warnings(lm, facts), self.merges_facts)
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
            return self._solve_in_order(
                lm, facts, plan, state, LayerNotes(facts, plan, (), self.merges_facts), stack
            )

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

    boundary: bool = Field(
        default=False,
        description="Edit the first and the last of the layers alone, each to a target of its own "
        "(BLUE).",
    )
    ideal_weight: float = Field(
        default=0.0,
        ge=0,
        description="Fit the effects of all edits of a sequence together (SimIE), at this price of "
        "a change in squared units of keys; 0: each edit for itself.",
    )

    def select_layers(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Return all layers, or with `boundary` the first and the last."""
        return tuple(sorted({min(layers), max(layers)})) if self.boundary else layers

    def searched_layers(self, sites: Sequence[Site]) -> tuple[int, ...]:
        """Return the last layer, or with `boundary` all that are edited."""
        return tuple(site.layer for site in (sites if self.boundary else sites[-1:]))

    @property
    def corrects_changes(self) -> bool:
        """Whether changes are corrected: with `ideal_weight`."""
        return self.ideal_weight > 0

    def correct_changes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        changes: dict[Site, LowRank],
        state: State,
    ) -> tuple[dict[Site, LowRank], State]:
        """Return what SimIE makes of the changes, and the state with the keys of the sentences."""
        keys = sentence_keys(lm, facts, list(changes))
        prefix = f"{self.name}/ideal/"
        return simulate_ideal(changes, keys, state, weight=self.ideal_weight, prefix=prefix)

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


class RidgeEditor(MultiLayerEditor):
    """Editor whose solve is a ridge on old keys, with a price for the norm of the change itself."""

    norm_weight: float = Field(
        default=0.0,
        ge=0,
        description="Price of the norm of a change, in squared units of keys (norm-constrained "
        "update).",
    )

    def metric(self, state: State, site: Site) -> Cholesky:
        """Return the factor of C, or with `norm_weight` of C + norm_weight / weight I."""
        ridge = self.norm_weight / self.price(state, site) if self.norm_weight else 0.0
        return state.factor(site, ridge=ridge)

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve R K^T (weight C + norm_weight I + K_p K_p^T + K K^T)^-1."""
        return ridge(
            keys,
            residuals,
            self.metric(state, site),
            weight=self.price(state, site),
            protected=self.protected(state, site),
        )
