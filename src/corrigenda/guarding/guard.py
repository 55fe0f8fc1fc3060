"""The guard: what an edit does to what it must not change, and whether it may stay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from corrigenda.abilities.harness import HarnessTask
from corrigenda.assessment import list_facts
from corrigenda.errors import BadConfig, EditRefused
from corrigenda.facts import Fact, FactLike, as_facts
from corrigenda.guarding.baseline import ANSWERS, Baseline
from corrigenda.guarding.causes import Cause, find_causes, label_facts, split_patch
from corrigenda.guarding.damage import Damage, GuardVerdict, decide, estimate_damage
from corrigenda.guarding.limits import Limit, Measure, set_limits
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.changes import Change, add, add_to_weight
from corrigenda.patch.protocols import Patch
from corrigenda.patch.value import PatchValue
from corrigenda.progress import Progress, show_progress
from corrigenda.statistics.corpus import Corpus, Source
from corrigenda.tables import align_table

SAMPLE = 48
"""Known facts of each kind, and ordinary texts, that are asked by default."""

_CONFIDENCE = 0.95
_SHOWN_CAUSES = 5


@dataclass(frozen=True, repr=False)
class GuardReport:
    """Damage of an edit, and the verdict on it.

    Attributes:
        verdict: Free, costly or refused.
        decided_by: The measure that decided; None where nothing could be measured.
        damages: The damage by every measure.
        facts: The facts of the edit.
        causes: Facts by the damage that goes without them, by the measure that decided; empty
            where the edit is free, has one fact, or cannot be taken apart.
        confidence: Of all intervals together.
        seconds: Time taken.
        notices: What could not be measured.
    """

    verdict: GuardVerdict
    decided_by: Damage | None
    damages: tuple[Damage, ...]
    facts: tuple[Fact, ...]
    causes: tuple[Cause, ...]
    confidence: float
    seconds: float
    notices: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The number that decided, with its interval and its limit."""
        return self.decided_by.describe() if self.decided_by else "nothing could be measured"

    def __getitem__(self, measure: Measure | str) -> Damage:
        """Return the damage by one measure."""
        return next(one for one in self.damages if one.measure == measure)

    def __str__(self) -> str:
        """Return the verdict with the number that decided it."""
        return f"{self.verdict}: {self.reason}"

    def __repr__(self) -> str:
        """Return the verdict, a table of all measures, and the facts that cause damage."""
        parts = [
            str(self),
            align_table([("", "damage", "interval", "free up to", "n"), *self.rows()]),
        ]
        parts += [f"without {text}: {number:.3g}" for text, number in self.list_causes()]
        return "\n".join([*parts, *self.notices])

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each measure that was taken: damage, interval, limit, number."""
        return [
            (
                str(one.measure),
                f"{one.value:.3g}",
                "" if one.low == one.high else f"{one.low:.3g} to {one.high:.3g}",
                f"{one.limit.free:g}",
                str(one.items),
            )
            for one in self.damages
            if not math.isnan(one.value)
        ]

    def list_causes(self) -> list[tuple[str, float]]:
        """Return the facts that cause most, each with the damage that is left without them."""
        return [
            (label_facts(self.facts, one.facts), one.damage)
            for one in self.causes[:_SHOWN_CAUSES]
            if one.spared > 0
        ]

    def require_accepted(self) -> None:
        """Raise where the edit is refused.

        Raises:
            EditRefused (CG408): it is.
        """
        if self.verdict is GuardVerdict.REFUSED:
            raise EditRefused(
                f"the edit damages what it must not change: {self.reason}.",
                where=", ".join(text for text, _ in self.list_causes()),
                hint="Edit fewer facts, or with another method or preset; `limits` sets others.",
            )

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "verdict": str(self.verdict),
            "reason": self.reason,
            "decided_by": str(self.decided_by.measure) if self.decided_by else None,
            "confidence": self.confidence,
            "damages": [one.to_json() for one in self.damages],
            "causes": [
                {
                    "facts": [self.facts[place].prompt for place in one.facts],
                    "damage": one.damage,
                    "spared": one.spared,
                }
                for one in self.causes
            ],
            "seconds": round(self.seconds, 2),
            "notices": list(self.notices),
        }


def guard(
    lm: LanguageModel,
    patch: Patch | Sequence[Patch],
    facts: FactLike | Sequence[FactLike] | None = None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    limits: Mapping[str, Sequence[float]] | None = None,
    confidence: float = _CONFIDENCE,
    corpus: Corpus | Source | None = None,
    tasks: Sequence[HarnessTask | str] = (),
    chat: bool | None = None,
    causes: bool = True,
    remake: Callable[[Sequence[Fact]], Patch] | None = None,
    baseline: Baseline | None = None,
    progress: Progress | bool | None = None,
) -> GuardReport:
    """Measure what an edit does to what it must not change, and judge it; the model is left alone.

    Everything is asked twice, without the edit and with it: facts of the almanac that the model
    knows (of the edited relations, of others, and other facts of the edited subjects), the first
    token after ordinary prompts, the perplexity of ordinary text, the norm of the weights, and
    tasks of lm-eval where some are named. An edit is *free* where no damage is certainly above what
    the table `corrigenda.guarding.limits.LIMITS` calls free, *refused* where some of it is beyond
    the limit for that, else *costly*.

    Args:
        lm: The model, without the patch; patches that are active count as unedited.
        patch: Any patch; or several, which are applied in order.
        facts: The facts of the edit; by default those that the patch was made for.
        sample: Known facts of each kind, and ordinary texts, to ask.
        seed: Decides the draw of them.
        limits: Other limits, by name of the measure: the largest free value, and the largest that
            is not refused.
        confidence: Of all intervals together: a free edit is called costly with probability
            1 - confidence at most.
        corpus: Ordinary text; by default that of the package, or the model's own.
        tasks: Tasks of lm-eval (extra `harm`), or their names.
        chat: Whether prompts are also turns of a user; by default where there is a chat template.
        causes: Whether to find the facts that cause the damage of an edit that is not free.
        remake: Makes the edit of some of the facts again; without it, several patches or the
            columns of a closed-form edit are left out.
        baseline: What was measured of the unedited model for the same facts, to be used again.
        progress: A callback with (stage, done, total), or False for no progress bar.

    Raises:
        BadConfig (CG502): a sample below two, limits or a confidence that are none, or no facts.
        MissingExtra (CG504): tasks, and lm-eval is not installed.
        WrongBase (CG401), NotApplied (CG406): as `Patch.apply`.

    Example:
        ```python
        report = cg.guard(lm, patch)
        if report.verdict != "refused":
            patch.save("france.safetensors")
        ```
    """
    lm = require_lm(lm)
    patches = list(patch) if isinstance(patch, Sequence) else [patch]
    table = set_limits(limits)
    if sample < 2 or not 0 < confidence < 1 or not patches:
        raise BadConfig(
            f"a sample of {sample}, a confidence of {confidence:g}, {len(patches)} patches.",
            where="guard",
            hint="Take a sample of 2 or more, a confidence such as 0.95, and a patch.",
        )
    begin = time.perf_counter()
    wanted = _list_facts(patches) if facts is None else as_facts(facts)
    with show_progress(progress):
        known = baseline or Baseline(
            lm,
            wanted,
            sample=sample,
            seed=seed,
            corpus=corpus,
            tasks=[HarnessTask(one) if isinstance(one, str) else one for one in tasks],
            chat=has_chat_template(lm.tokenizer) if chat is None else chat,
        )
        judge = _Judge(lm, known, table, confidence, seed)
        damages = judge.judge(patches)
        verdict, decided_by = decide(damages)
        found: Sequence[Cause] = ()
        if causes and verdict is not GuardVerdict.FREE and decided_by and len(wanted) > 1:
            found = judge.find_causes(patches, wanted, decided_by, remake)
    return GuardReport(
        verdict=verdict,
        decided_by=decided_by,
        damages=damages,
        facts=tuple(wanted),
        causes=tuple(found),
        confidence=confidence,
        seconds=time.perf_counter() - begin,
        notices=tuple(
            f"guard: {one.measure} was not measured: {lm.name} knows no such fact."
            for one in damages
            if one.measure in ANSWERS and math.isnan(one.value)
        ),
    )


class _Judge:
    """Measures edits against one baseline."""

    def __init__(
        self,
        lm: LanguageModel,
        baseline: Baseline,
        limits: Mapping[Measure, Limit],
        confidence: float,
        seed: int,
    ) -> None:
        self.lm, self.baseline = lm, baseline
        self._limits, self._confidence, self._seed = limits, confidence, seed

    def judge(self, patches: Sequence[Patch]) -> tuple[Damage, ...]:
        """Return the damage of patches that are applied together."""
        norm = measure_norm_growth(self.lm, patches)
        with ExitStack() as stack:
            for one in patches:
                stack.enter_context(one.apply(self.lm))
            values = self.baseline.measure(self.lm)
        return estimate_damage(
            values, self._limits, confidence=self._confidence, seed=self._seed, norm=norm
        )

    def find_causes(
        self,
        patches: Sequence[Patch],
        facts: Sequence[Fact],
        decided_by: Damage,
        remake: Callable[[Sequence[Fact]], Patch] | None,
    ) -> list[Cause]:
        """Leave facts out, where that is possible, and measure what decided."""
        if decided_by.measure is Measure.NORM:
            # No prompt shows it, and the largest weight need not be the one of a fact.
            return []
        parts = {} if remake else _find_parts(patches, facts)
        places = [*range(len(facts))] if remake else [*parts]

        def leave_out(out: Sequence[int]) -> Patch | Sequence[Patch]:
            if remake is not None:
                return remake([fact for place, fact in enumerate(facts) if place not in out])
            return [one for place, one in parts.items() if place not in out]

        def measure() -> float:
            return self._measure_one(decided_by.measure)

        return find_causes(self.lm, decided_by.value, leave_out, places, measure)

    def _measure_one(self, measure: Measure) -> float:
        values = self.baseline.measure(self.lm, only={measure})
        found = estimate_damage(values, self._limits, confidence=self._confidence)
        return next(one.value for one in found if one.measure is measure)


def measure_norm_growth(lm: LanguageModel, patches: Sequence[Patch]) -> float | None:
    """Return the largest growth of the Frobenius norm of a weight; None where no weight changes.

    ||W + dW|| / ||W|| - 1, in float64, dW the sum over patches; below 0 where all shrink.

    Args:
        lm: The model, without the patches.
        patches: The patches.
    """
    total: dict[Site, Change] = {}
    for patch in patches:
        changes = patch.weight_changes() if isinstance(patch, PatchValue) else []
        for site, change in changes:
            total[site] = add(total[site], change) if site in total else change
    growths: list[float] = []
    for site, change in total.items():
        weight = lm.weight(site).detach().double().cpu().clone()
        before = float(weight.norm())
        add_to_weight(change, weight)
        growths.append(float(weight.norm()) / before - 1)
    return max(growths, default=None)


def _find_parts(patches: Sequence[Patch], facts: Sequence[Fact]) -> dict[int, Patch]:
    """Return what each fact adds to an edit, by its place; none where it cannot be taken apart."""
    if len(patches) == len(facts):
        return dict(enumerate(patches))
    if len(patches) > 1 or not patches[0].header.facts:
        return {}
    # Facts that were true already are not among those of the patch.
    own = [(one.prompt, one.target) for one in list_facts(patches[0])]
    by_text = {(one.prompt, one.target): place for place, one in enumerate(facts)}
    parts = split_patch(patches[0], len(own))
    if len(parts) != len(own) or not set(own) <= set(by_text):
        return {}
    return {by_text[text]: part for text, part in zip(own, parts, strict=True)}


def _list_facts(patches: Sequence[Patch]) -> list[Fact]:
    return [fact for one in patches for fact in list_facts(one)]
