"""The patches of one served model at a time, put on the weights that all of them share."""

from __future__ import annotations

import time
from contextlib import ExitStack

from corrigenda.lm.model import LanguageModel
from corrigenda.patch import WeightPatch
from corrigenda.patch.ledger import header_for
from corrigenda.serving.jobs import ServedModel


class PatchSwitch:
    """Puts on the patches of one served model after those of another, exactly.

    To be used by one thread. An empty patch stays applied meanwhile, so that the digest of the
    unpatched model, by which patches are checked, is read from the weights once and not at every
    switch.

    Attributes:
        current: Whose patches are applied; None before the first and after a failure.
        application: How often patches were applied; what they noted about prompts ends with it.
        works_at_run_time: Whether a patch that is applied works by hooks.
        seconds: How long the last switch took.
        num_switches: How many there were.
    """

    def __init__(self, lm: LanguageModel, *, force: bool = False) -> None:
        """Prepare a model; with `force` also patches made on another one are put on."""
        self._lm, self._force = lm, force
        self._applied = ExitStack()
        self._held = WeightPatch({}, header_for(lm, method="serve")).apply(lm)
        self.current: ServedModel | None = None
        self.application = 0
        self.works_at_run_time = False
        self.seconds = 0.0
        self.num_switches = 0

    def to(self, model: ServedModel) -> None:
        """Let a served model answer from now on; if this raises, no patch is applied.

        Raises:
            WrongBase (CG401), NotApplied (CG406), WeightsChanged (CG407), NonFinite (CG201),
            QuantisedWeights (CG304), UnknownSite (CG303): as `patch.apply`.
        """
        if model is self.current:
            return
        start = time.perf_counter()
        self._take_off()
        with ExitStack() as applied:
            modes = [
                applied.enter_context(patch.apply(self._lm, force=self._force)).mode
                for patch in model.patches
            ]
            self._applied = applied.pop_all()
        self.works_at_run_time = "runtime" in modes
        self.application += 1
        self.current = model
        self.num_switches += 1
        self.seconds = time.perf_counter() - start

    def close(self) -> None:
        """Take everything off: the model is as it was, bit for bit."""
        self._take_off()
        self._held.revert()

    def _take_off(self) -> None:
        self.current = None
        self._applied.close()
        self._applied = ExitStack()
