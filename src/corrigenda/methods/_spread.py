"""Methods that search targets in the residual stream and close the gap at one or several layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.contexts import Style
from corrigenda.editor import Edit
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import gram_condition
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key
from corrigenda.lm.sites import state as residual_stream
from corrigenda.methods import _locate
from corrigenda.methods._locate import SMALL_AGREEMENT, LocateThenEdit, Plan
from corrigenda.methods._target_search import Targets, Trace, find_targets
from corrigenda.patch import Header, WeightPatch
from corrigenda.state import State


class Measured(NamedTuple):
    """Keys and remaining residuals of a batch at one layer, float64, one row per fact.

    Attributes:
        keys: Two-level averages over contexts.
        clean: Keys of the bare prompts.
        residuals: What is still missing, at the output of the down projection.
    """

    keys: Float[Tensor, "n d_in"]
    clean: Float[Tensor, "n d_in"]
    residuals: Float[Tensor, "n d_model"]


class SpreadEditor(LocateThenEdit):
    """Targets in the stream after the last edited block; one solve per layer, lowest first."""

    context_style: ClassVar[Style] = "memit"

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        factor: Cholesky,
        protected: Float[Tensor, "d_in n_protected"] | None,
    ) -> LowRank:
        """The change of one layer; the equation of the method."""
        raise NotImplementedError

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
                coincide.
        """
        state = state or State()
        if not facts:
            return Edit(WeightPatch({}, self.header(lm, facts, {})), state)
        plan = self.plan(lm, state)
        notes = _Notes(facts, plan, _locate.subject_warnings(lm, facts))
        with ExitStack() as stack:
            changes = {
                layer.site: layer.change
                for layer in self._spread(lm, facts, plan, state, notes, stack)
            }
            after = self.remember(lm, facts, plan, state)
        return Edit(WeightPatch(changes, self.header(lm, facts, notes.finish())), after)

    def _spread(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        plan: Plan,
        state: State,
        notes: _Notes,
        stack: ExitStack,
    ) -> list[Layer]:
        """Solve layer by layer; `stack` keeps the changes of the lower ones applied."""
        targets = find_targets(
            lm,
            _locate.rewrite_rows(lm, facts, plan.contexts.prefixes),
            layer=plan.sites[-1].layer,
            role="state",
            settings=self.settings,
            names=[fact.label for fact in facts],
        )
        notes.traces = targets.traces
        sequences = _locate.subject_tokens(lm, facts, plan.contexts.prefixes)
        layers = []
        for done, site in enumerate(plan.sites):
            measured = _measure(lm, site, plan, sequences, targets)
            share = measured.residuals / (len(plan.sites) - done)
            factor = state.factor(site)
            self.check_keys(facts, measured.keys)
            change = self.solve(measured.keys.T, share.T, factor, self.protected(state, site))
            layers.append(Layer(site, measured.keys, share, change))
            notes.add(layers[-1], measured.clean, factor)
            temporary = WeightPatch({site: change}, Header(method=self.name))
            stack.enter_context(temporary.apply(lm))
        return layers

    def solved(self, lm: LanguageModel, facts: Sequence[Fact], state: State) -> list[Layer]:
        """Keys, shares and changes of every layer, as `edit` finds them."""
        plan = self.plan(lm, state)
        with ExitStack() as stack:
            return self._spread(lm, facts, plan, state, _Notes(facts, plan, ()), stack)

    def check_keys(self, facts: Sequence[Fact], keys: Float[Tensor, "n d_in"]) -> None:
        """Refuse keys that the solver cannot take; least squares takes all."""

    def protected(self, state: State, site: Site) -> Float[Tensor, "d_in n_protected"] | None:
        """Keys of earlier edits that should keep their outputs."""
        return None

    def remember(self, lm: LanguageModel, facts: Sequence[Fact], plan: Plan, state: State) -> State:
        """The state after this edit; called with the edit in place."""
        return state


def _measure(
    lm: LanguageModel,
    site: Site,
    plan: Plan,
    sequences: Sequence[tuple[int, ...]],
    targets: Targets,
) -> Measured:
    """Keys at `site` and what is missing after the last edited block, on the model as it is."""
    keys = _locate.capture_last(lm, sequences, [key(site)])[key(site)]
    clean = sequences[:: len(plan.contexts)]
    end = residual_stream(plan.sites[-1].layer)
    missing = targets.wanted.double() - _locate.capture_last(lm, clean, [end])[end].double()
    return Measured(
        _locate.average(keys, plan.contexts.weights),
        keys[:: len(plan.contexts)].double(),
        _locate.residuals_at_output(lm, site, clean, missing),
    )


class Layer(NamedTuple):
    """One layer as solved: keys and shares one row per fact, float64."""

    site: Site
    keys: Float[Tensor, "n d_in"]
    share: Float[Tensor, "n d_model"]
    change: LowRank


class _Notes:
    """Collects what the header says, layer by layer."""

    def __init__(self, facts: Sequence[Fact], plan: Plan, warnings: Sequence[str]) -> None:
        self.facts, self.plan = facts, plan
        self.traces: list[Trace] = []
        self.warnings = [*plan.notices, *warnings]
        self.agreement: dict[str, list[float]] = {}
        self.fraction: dict[str, list[float]] = {}
        self.condition: dict[str, float] = {}
        self.conflicts: list[list[int]] = []

    def add(self, layer: Layer, clean: Float[Tensor, "n d_in"], factor: Cholesky) -> None:
        """Record one layer: key agreement, the fraction written, condition, facts with one key."""
        name = str(layer.site)
        self.agreement[name] = _locate.key_agreements(layer.keys, clean, factor)
        written = layer.change @ layer.keys.T.to(layer.change.right)
        self.fraction[name] = _locate.written_fractions(written, layer.share.T.to(written))
        self.condition[name] = gram_condition(layer.keys.T, factor).condition
        for fact, ratio in zip(self.facts, self.agreement[name], strict=True):
            if ratio < SMALL_AGREEMENT:
                self.warnings.append(
                    f"{fact.label}: key agreement {ratio:.3f} at {name} is below "
                    f"{SMALL_AGREEMENT}; the averaged key does not speak for the bare prompt."
                )
        if self.conflicts:
            return
        for i, j in _locate.same_key_pairs(layer.keys):
            if self.facts[i].target != self.facts[j].target:
                self.conflicts.append([i, j])
                self.warnings.append(
                    f"{self.facts[i].label} and {self.facts[j].label} have the same key and "
                    "different targets; least squares averages them."
                )

    def finish(self) -> dict[str, object]:
        """The notes for the header."""
        return {
            **_locate.summarise(self.facts, [trace.status for trace in self.traces], self.warnings),
            "search": [trace.to_dict() for trace in self.traces],
            "key_agreement": _locate.rounded(self.agreement),
            "written_fraction": _locate.rounded(self.fraction),
            "key_condition": {name: f"{value:.3g}" for name, value in self.condition.items()},
            "conflicts": self.conflicts,
            "layers": [site.layer for site in self.plan.sites],
        }
