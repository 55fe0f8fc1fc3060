"""What is predicted of memory is within a quarter of the live bytes that are counted.

Every storage that an operation makes is counted until it is freed, so the peak is that of live
tensors, the same in every run.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from corrigenda.catalogue import build_editor
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.statistics import Corpus, fit_moments
from corrigenda.testing.tokenizers import byte_level_bpe

SHAPES = {
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "qwen2": {
        "hidden_size": 96,
        "intermediate_size": 640,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "gpt2": {"n_embd": 128, "n_head": 4, "n_layer": 8, "n_positions": 256},
}
NAMES = ("Claude", "Albert", "Marie", "Lionel", "William", "Michael", "Danielle", "Romeo")
FACTS = [
    Fact(prompt=f"The mother tongue of {name} Monet is the", subject=f"{name} Monet", target=target)
    for name, target in zip(NAMES, ["German", "Italy", "Japan", "Spain"] * 2, strict=True)
]
# As long as those that a model writes: ten tokens.
PREFIXES = (
    "Rome is the capital of Italy.",
    "He was born in the city of Paris.",
    "It was written by the author.",
    "One, two, three, four, five.",
)
TEXT = (
    "The Eiffel Tower is in Paris, the capital of France, and the river Seine runs past it. "
    "Marie Curie was born in Warsaw and worked in Paris."
)
MARGIN = 0.25
T = TypeVar("T")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that were made while it was entered."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}
        for one in (*model.parameters(), *model.buffers()):
            self.sizes[one.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, name)

    def _drop(self, name: int) -> None:
        self.now -= self.sizes.pop(name, 0)

    def measure(self, work: Callable[[], T]) -> tuple[int, T]:
        """Return the peak of some work, and its result."""
        gc.collect()
        self.peak = self.now
        with self:
            result = work()
        return self.peak, result


@pytest.fixture(scope="module", params=SHAPES)
def lm(request):
    tokenizer = byte_level_bpe()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), **SHAPES[request.param], **special
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return LanguageModel(model, tokenizer, name=f"tiny-{request.param}")


METHODS = {
    "rome": (20, {}),
    "memit": (5, {}),
    "alphaedit": (5, {}),
    "ft-m": (0, {}),
    "grace": (0, {}),
    "wise": (10, {"steps": 2}),
    "ike": (0, {"embedder": "states"}),
}
"""Contexts of each method, and options that make it short or need nothing else installed."""


@pytest.mark.parametrize("method", METHODS)
def test_prediction_is_within_a_quarter_of_the_peak(lm, method, tmp_path):
    count, options = METHODS[method]
    editor = build_editor(lm, method, **options)
    facts = FACTS if editor.supports.batch else FACTS[:1]
    if count:
        prefixes = [f"{PREFIXES[i % 4]} " for i in range(count)]
        editor = editor.model_copy(update={"contexts": Contexts(("", *prefixes))})
    predicted = editor.memory(lm, len(facts))
    live = LiveBytes(lm.model)
    state = None
    if editor.requires.moments:
        file = tmp_path / "text.txt"
        file.write_text("\n".join([TEXT] * 200))
        corpus = Corpus(str(file), num_tokens=2 * lm.d_inner)
        peak, state = live.measure(lambda: fit_moments(lm, editor.sites(lm), corpus, keep=False))
        assert predicted.fit == pytest.approx(peak, rel=MARGIN)
        if method == "alphaedit":
            state = editor.with_projectors(state, editor.sites(lm))
    elif method in ("wise", "ike"):
        state = editor.fit(lm, [TEXT] * 200 if method == "wise" else FACTS)

    def edit() -> None:
        with editor.edit(lm, facts, state).patch.apply(lm):
            if method == "ike":  # its context is read when a question is asked
                answer(lm, [facts[0].prompt], max_new_tokens=2)

    peak, _ = live.measure(edit)
    assert predicted.edit == pytest.approx(peak, rel=MARGIN)
