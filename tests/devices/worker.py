"""Tries methods on virtual devices: reads "METHOD LAYOUT ATTENTION", answers in JSON."""

from __future__ import annotations

import json
import re
import sys
import traceback
import warnings
from pathlib import Path

import torch

from corrigenda.testing.virtual_devices import (
    FIRST,
    SECOND,
    TRAFFIC,
    move_inputs,
    place_weights,
    replace_cuda_calls,
    virtual_devices,
)

replace_cuda_calls()
sys.path.insert(0, str(Path(__file__).parent))

from cases import ANALYSES, CASES, facts  # noqa: E402

import corrigenda as cg  # noqa: E402
from corrigenda.lm.model import LanguageModel  # noqa: E402
from corrigenda.patch import WeightPatch  # noqa: E402
from corrigenda.transforms.registry import parse_transform  # noqa: E402

TRANSFORMS = ("rect", "prune", "clip-norm:relative=0.01", "anchor-norm", "compress")
"""Of weight patches, as `corrigenda edit --transform` takes them."""


def load(layout: str, attention: str) -> LanguageModel:
    """Return the pocket model.

    It is whole on one device ("one"), split in the middle of its blocks ("split"), or has its
    embeddings alone on the first device ("apart").
    """
    lm = cg.load("pocket")
    lm.model.config._attn_implementation = attention
    first_late = {"one": lm.num_layers, "split": lm.num_layers // 2, "apart": 0}[layout]

    def place_of(name: str) -> torch.device:
        block = re.search(r"\.(\d+)\.", name)
        if block is None:
            stays = layout == "one" or "embed" in name or "rotary" in name
        else:
            stays = int(block[1]) < first_late
        return FIRST if stays else SECOND

    place_weights(lm.model, place_of)
    if layout != "one":
        parts = [*lm.blocks, lm.model.get_submodule(lm.family.final_norm)]
        head = lm.model.get_output_embeddings()
        assert isinstance(head, torch.nn.Module)
        for part in (*parts, head):
            move_inputs(part)
        move_inputs(lm.model, back=True)
    return lm


class Trial:
    """One method on one layout; `stage` says how far it came, `traffic` what one edit moved."""

    def __init__(self, method: str, layout: str, attention: str = "eager") -> None:
        self.method, self.layout, self.attention = method, layout, attention
        self.stage = "load"
        self.traffic: list[list[object]] = []

    def run(self) -> None:
        """Run the analysis or the method."""
        if self.method not in ANALYSES:
            return self._run_method()
        lm = load(self.layout, self.attention)
        self.stage = "run"
        with virtual_devices():
            ANALYSES[self.method](lm)
        self._require_exact_undo(lm)

    def _run_method(self) -> None:
        """Fit, edit, ask, edit again, apply at run time, transform."""
        case = CASES[self.method]
        lm = load(self.layout, self.attention)
        chosen = facts(case.num_facts + 1)
        last = chosen.pop()
        with virtual_devices():
            self.stage = "fit"
            editor = cg.build_editor(lm, self.method, **case.options)
            state = editor.fit(lm, case.material() if case.material else None)
            TRAFFIC.clear()
            self.stage = "edit"
            made = editor.edit(lm, chosen, state)
            self.traffic = [[*entry, *found] for entry, found in TRAFFIC.items()]
            self.stage = "apply"
            with made.patch.apply(lm):
                _ask(lm, chosen)
                if editor.supports.sequential and self.method != "truthx":
                    self.stage = "second edit"
                    with editor.edit(lm, [last], made.state).patch.apply(lm):
                        _ask(lm, [last])
            if isinstance(made.patch, WeightPatch):
                self.stage = "run-time terms"
                with made.patch.apply(lm, mode="runtime"):
                    _ask(lm, chosen)
                for transform in TRANSFORMS:
                    self.stage = f"transform {transform}"
                    parse_transform(transform)(made.patch, lm)
        self._require_exact_undo(lm)

    def _require_exact_undo(self, lm: LanguageModel) -> None:
        """Refuse a model that is not what it was before patches were applied and taken off."""
        self.stage = "undo"
        fresh = dict(cg.load("pocket").model.named_parameters())
        for name, parameter in lm.model.named_parameters():
            assert torch.equal(parameter.numbers, fresh[name]), name


def _ask(lm: LanguageModel, chosen: list[cg.Fact]) -> None:
    cg.answer(lm, [one.prompt for one in chosen], max_new_tokens=3)


def answer(method: str, layout: str, attention: str) -> dict[str, object]:
    TRAFFIC.clear()
    trial = Trial(method, layout, attention)
    fault = ""
    try:
        trial.run()
    except Exception as error:
        lines = [
            f"{frame.filename.rpartition('/corrigenda/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "/src/corrigenda/" in frame.filename and "virtual_devices" not in frame.filename
        ]
        path = " > ".join(lines[-6:])
        fault = f"{trial.stage}: {type(error).__name__}: {str(error)[:300]}\n  {path}"
    return {"fault": fault, "traffic": sorted(trial.traffic, key=lambda row: -row[3])}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    replies, sys.stdout = sys.stdout, sys.stderr
    for request in sys.stdin:
        print(json.dumps(answer(*request.split())), file=replies, flush=True)
