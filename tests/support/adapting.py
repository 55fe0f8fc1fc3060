"""What the tests of methods that train adapters share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.methods.lora.adapters import initialise, inject
from corrigenda.methods.lora.editor import AdapterEditor
from corrigenda.testing.tiny import tiny_model
from tests.support.locating import FACTS

FACT = FACTS[0]


def model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a random tiny model of two blocks."""
    return tiny_model(family, dtype=dtype, layers=2)


def logits_of(lm: LanguageModel) -> Tensor:
    """Return the logits of all prompts."""
    rows = [lm.tokenizer(fact.prompt).input_ids for fact in FACTS]
    return lm.logits(Tokens.pad(rows, 0))


def paths_of(editor: AdapterEditor, lm: LanguageModel) -> list[str]:
    """Return the modules that an editor adapts."""
    return list(dict.fromkeys(lm.module_path(site) for site in editor.sites(lm)))


@contextmanager
def adapted(
    editor: AdapterEditor, lm: LanguageModel, num_steps: int = 10
) -> Generator[tuple[nn.Module, dict[str, dict[str, nn.Parameter]]]]:
    """Put fresh adapters into a model; gives the tuner and the adapters by path."""
    with inject(lm, editor, paths_of(editor, lm), num_steps) as (tuner, layers):
        initialise(lm, editor, layers, editor, {})
        yield tuner, {path: editor.parameters(layer) for path, layer in layers.items()}


class Snapshot:
    """All of a model that training could leave behind, and the global random state."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.seen = self._look()

    def _look(self) -> dict[str, object]:
        model = self.lm.model
        return {
            "digest": self.lm.digest(),
            "modules": {name: id(one) for name, one in model.named_modules()},
            "tensors": {name: id(one) for name, one in model.named_parameters()},
            "flags": {name: one.requires_grad for name, one in model.named_parameters()},
            "gradients": [name for name, one in model.named_parameters() if one.grad is not None],
            "training": {name: one.training for name, one in model.named_modules()},
            "hooks": [
                (len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()
            ],
            "names": list(model.state_dict()),
            "attributes": set(vars(model)) - {"_corrigenda_session"},
            "config": model.config.to_json_string(),
            "random": torch.get_rng_state().tolist(),
            "logits": logits_of(self.lm).tolist(),
        }

    def require_same(self) -> None:
        """Check that nothing changed."""
        now = self._look()
        assert [what for what in now if now[what] != self.seen[what]] == []
