"""ROME and R-ROME: one fact, one matrix, one rank-one change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Constraint, Edit, Requires, Supports
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Style
from corrigenda.engines.locate.pipeline import SMALL_AGREEMENT, EditPlan, LocateThenEdit
from corrigenda.engines.locate.records import SearchTrace
from corrigenda.errors import NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.norms import frobenius_norm
from corrigenda.linalg.solve import key_agreement, rank_one
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.placement import multiply
from corrigenda.lm.sites import Site, key
from corrigenda.patch import WeightPatch
from corrigenda.patch.changes import Change, norm
from corrigenda.patch.notes import round_series, summarise
from corrigenda.progress import report_stage
from corrigenda.state import State

Variant = Literal["r-rome", "rome", "p-rome", "denominator"]


class RankOneEdit(NamedTuple):
    """Rank-one change of one fact, with the quantities it was computed from.

    Attributes:
        change: The rank-one change of the down projection.
        key_mean: Mean key over all contexts.
        key_clean: Key of the bare prompt.
        delta: Vector that the search adds to the output.
        wanted: The output the search asks for at the subject's last token.
        trace: Course of the target search.
        agreement: `(u . k_clean) / (u . k_mean)`.
        notices: On the target, in words.
    """

    change: LowRank
    key_mean: Float[Tensor, " d_in"]
    key_clean: Float[Tensor, " d_in"]
    delta: Float[Tensor, " d_model"]
    wanted: Float[Tensor, " d_model"]
    trace: SearchTrace
    agreement: float
    notices: tuple[str, ...] = ()


class Rome(LocateThenEdit):
    """Rank-One Model Editing (ROME) of one down projection.

    One fact at a time; edits may follow each other. With `use_moment` off the second moment is the
    identity, and only the contexts are fitted.

    Reference: Meng et al. 2022, section 3; Gupta et al. 2024 for `variant="r-rome"` and "p-rome".
        See the card.
    """

    name: ClassVar[str] = "rome"
    supports: ClassVar[Supports] = Supports(
        single=True, batch=False, sequential=True, exact=True, order_free=False
    )
    context_style: ClassVar[Style] = "rome"
    most_anchors: ClassVar[float] = 5.0

    variant: Variant = Field(
        default="r-rome", description="Which key enters the residual and the denominator."
    )
    layer: int | None = Field(
        default=None, ge=0, description="Block to edit; chosen by depth if not given."
    )
    use_moment: bool = Field(
        default=True, description="Measure the change on keys of text, not in the plain norm."
    )

    @property
    def requires(self) -> Requires:  # pyright: ignore[reportIncompatibleVariableOverride]  # by option
        """A subject, and second moments unless `use_moment` is off."""
        return Requires(subject=True, moments=self.use_moment, training_set=False)

    largest_change: float | None = Field(
        default=None,
        gt=0,
        description="Largest norm of the change, in norms of the weight; a larger one is refused.",
    )

    def configured_layers(self) -> tuple[int, ...] | None:
        """Return the layer given, or None where there is none."""
        return None if self.layer is None else (self.layer,)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Make a rank-one change for one fact; the model is left as it is.

        An edit beyond `largest_change` would disable the model: the patch is empty then, and its
        status is "refused".

        Raises:
            NotEnoughFacts (CG106): more than one fact.
            AmbiguousSubject (CG104), SubjectNotFound (CG103), PromptTooLong (CG105): the fact
                cannot be located.
            MissingState (CG503): second moments are needed and the state has none for this layer.
            NonFinite (CG201): the model gives no finite loss.
            DependentKeys (CG202): `variant="rome"` with a clean key orthogonal to the update.
        """
        state = state or State()
        if not facts:
            return Edit(WeightPatch({}, self.make_header(lm, facts, {})), state)
        plan = self.make_plan(lm, state)
        (site,) = plan.sites
        written = self._compute(lm, facts, plan, state)
        notes = self._notes(lm, facts[0], plan, written)
        changes: dict[Site, Change] = {site: written.change}
        size = 0.0
        if self.largest_change is not None:
            size = norm(written.change) / frobenius_norm(lm.values(site))
        if self.largest_change is not None and size > self.largest_change:
            changes = {}
            notes["status"] = ["refused"]
            notes["notices"] = [
                f"{facts[0].label}: disabling edit refused; the change has {size:.3g} times the "
                f"norm of the weight, {self.largest_change:g} is allowed."
            ]
        return Edit(WeightPatch(changes, self.make_header(lm, facts, notes)), state)

    def constraints(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> Mapping[Site, Constraint]:
        """Return the key whose output `variant` fixes: the mean one, or that of the bare prompt."""
        if not facts:
            return {}
        state = state or State()
        plan = self.make_plan(lm, state)
        (site,) = plan.sites
        written = self._compute(lm, facts, plan, state)
        at = written.key_clean if self.variant in ("rome", "p-rome") else written.key_mean
        output = multiply(at, lm.values(site).T)
        if self.variant == "r-rome":
            values = written.wanted - _bias(lm, site)
        else:
            values = output + written.delta
        return {site: Constraint(at[:, None], values[:, None])}

    def _compute(
        self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan, state: State
    ) -> RankOneEdit:
        if len(facts) > 1:
            raise NotEnoughFacts(
                f"ROME writes one fact at a time, {len(facts)} were given.",
                hint="Edit them one after the other, each with the earlier patches applied, or use "
                "memit or emmet.",
            )
        (site,) = plan.sites
        targets, notices = self.find_wanted(lm, facts, plan, site.layer)
        report_stage(pipeline.WRITING, 0, 1)
        sequences = pipeline.subject_tokens(lm, facts, plan.contexts)
        keys = pipeline.capture_last(lm, sequences, [key(site)])[key(site)]
        mean, clean = pipeline.average(keys, plan.contexts.weights)[0], keys[0].double()
        delta, wanted = targets.deltas[0].double(), targets.wanted[0].double()
        factor = state.factor(site) if self.use_moment else None
        match self.variant:
            case "r-rome":
                output = multiply(mean, lm.values(site).T) + _bias(lm, site)
                change = rank_one(mean, wanted - output, factor)
            case "rome":
                change = rank_one(mean, delta, factor, at=clean)
            case "p-rome":
                change = rank_one(clean, delta, factor)
            case "denominator":
                change = rank_one(mean, delta, factor)
        agreement = key_agreement(mean, clean, factor)
        report_stage(pipeline.WRITING, 1, 1)
        return RankOneEdit(
            change, mean, clean, delta, wanted, targets.traces[0], agreement, tuple(notices)
        )

    def _notes(
        self, lm: LanguageModel, fact: Fact, plan: EditPlan, written: RankOneEdit
    ) -> dict[str, object]:
        warnings = [*plan.notices, *pipeline.subject_warnings(lm, [fact]), *written.notices]
        if written.agreement < SMALL_AGREEMENT:
            because = (
                "original ROME divides by it"
                if self.variant == "rome"
                else "the averaged key does not represent the bare prompt"
            )
            warnings.append(
                f"{fact.label}: key agreement {written.agreement:.3f} is below {SMALL_AGREEMENT}; "
                f"{because}."
            )
        return {
            **summarise([fact], [written.trace.status], warnings),
            "search": [written.trace.to_dict()],
            "key_agreement": round_series({str(plan.sites[0]): [written.agreement]}),
            "layers": [site.layer for site in plan.sites],
            "statistics": plan.statistics if self.use_moment else {},
        }


def _bias(lm: LanguageModel, site: Site) -> Float[Tensor, " d_model"]:
    bias = lm.bias(site)
    if bias is None:
        return torch.zeros(lm.d_model, dtype=torch.float64, device=lm.device)
    return bias.to(lm.device, torch.float64)
