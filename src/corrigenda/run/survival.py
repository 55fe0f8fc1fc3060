"""What is left of edits after their weights were quantised or fine-tuned."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from corrigenda.assessment import Role
from corrigenda.cases import Against, Case
from corrigenda.exports.survival import Survival, TreatedCopy, ask_facts, parse_form
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.survival import FAMILY
from corrigenda.patch.weights import WeightPatch

NOT_WEIGHTS = "the edit is no change of weights"
_NAMES = {Role.PROMPT: "efficacy", Role.PARAPHRASE: "paraphrases", Role.NEIGHBOUR: "neighbours"}


class Survivors(NamedTuple):
    """Prompts of a case with the wanted answer after a treatment.

    Attributes:
        case: Id of the case.
        name: Name of the measurement.
        right: How many have it.
        asked: How many there are.
    """

    case: str
    name: str
    right: int
    asked: int


class SurvivalMeter:
    """Asks the facts of cases after the treatments of a run; the unedited model is copied twice."""

    def __init__(self, lm: LanguageModel, forms: Sequence[str]) -> None:
        """Copy a model, which carries no patch.

        Args:
            lm: The model.
            forms: Treatments by name, one or more; see `exports.survival.assess_after`.

        Raises:
            BadConfig (CG502): no such treatment.
        """
        self.forms = tuple(forms)
        self._unedited = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name=lm.name)
        self._copied = TreatedCopy(self._unedited)

    def measure(self, lm: LanguageModel, cases: Sequence[Case]) -> Iterator[Survivors]:
        """Yield what is left of each case; nothing where a patch is active that is not of weights.

        Args:
            lm: The model with the patches that are active.
            cases: What they were made for.
        """
        patches = [one for one in lm.patches if isinstance(one, WeightPatch)]
        if not patches or len(patches) < len(lm.patches):
            return
        patch = functools.reduce(operator.add, patches)
        for case in cases:
            facts = list_facts(case)
            whole = ask_facts(self._unedited, facts)
            for form in self.forms:
                for one in self._copied.assess(patch, parse_form(form), facts, whole):
                    yield from _list_survivors(case, one)


def list_facts(case: Case) -> list[Fact]:
    """Return the facts of the last round of a case, the first with the prompts of its probes."""
    facts = list(case.edits[-1])
    prompts = {
        family: tuple(
            dict.fromkeys(
                probe.prompt
                for probe in case.probes
                if probe.role.partition("/")[0] == family
                and (family == "locality" or probe.against is Against.TARGET)
            )
        )
        for family in ("generalization", "locality")
    }
    facts[0] = replace(
        facts[0], paraphrases=prompts["generalization"], neighbours=prompts["locality"]
    )
    return facts


def _list_survivors(case: Case, found: Survival) -> Iterator[Survivors]:
    for role, kind in _NAMES.items():
        right, asked = found.assessment.count(role)
        if asked:
            yield Survivors(case.id, f"{FAMILY}/{found.treatment}/{kind}", right, asked)
