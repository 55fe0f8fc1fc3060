"""Laws 1 to 7 for every method on six tiny random architectures, in float32 and bfloat16."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.statistics import Corpus
from corrigenda.testing.editor import check_editor
from corrigenda.testing.tiny import tiny_model

ARCHITECTURES = ("gpt2", "gptj", "llama", "qwen3", "mistral", "gemma2")
DTYPES = (torch.float32, torch.bfloat16)

# What makes each method quick on a model of four blocks; a new method runs with its defaults until
# it has a line here.
QUICK = {"steps": 4, "contexts": {"prefixes": ["", "I think so. "], "groups": [0, 1]}}
VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "ice": ({"embedder": "states"},),
    "prompt": ({},),
    "rag": ({"embedder": "states"},),
    "serac": ({"embedder": "states", "cached_text": "prompt", "threshold": 0.999, "steps": 2},),
    "ike": ({"embedder": "states", "num_demonstrations": 2, "reserve": 8},),
    "rome": ({"layer": 1, **QUICK}, {"layer": 1, "variant": "rome", **QUICK}),
    "memit": (
        {"layers": [1, 2], "weight": 20.0, **QUICK},
        {"layers": [1, 2], "weight": 20.0, "sequential": True, **QUICK},
        {"layers": [1, 2], "weight": 20.0, "boundary": True, "merge_subjects": True, **QUICK},
        {
            **{"layers": [1, 2], "weight": 20.0, "sequential": True, "likeliest_stop": 1},
            **{"norm_weight": 1.0, "ideal_weight": 1.0, **QUICK},
        },
    ),
    "emmet": ({"layer": 1, **QUICK},),
    "pmet": ({"layers": [1, 2], "weight": 20.0, **QUICK},),
    "alphaedit": (
        {"layers": [1, 2], "energy": 0.1, **QUICK},
        {"layers": [1, 2], "energy": 0.1, "norm_anchor": True, "anchor_facts": 8, **QUICK},
    ),
    "rlsedit": ({"layers": [1, 2], "weight": 20.0, "norm_weight": 0.25, **QUICK},),
    "ft": (
        {"layer": 1, "epochs": 4, "box": 1e-3},
        {"layer": 3, "epochs": 4, "objective": "last-token", "weight_decay": 0.1, "batch_size": 2},
    ),
    "ft-l": ({"layer": 1, "epochs": 4},),
    "ft-m": ({"layer": 2, "epochs": 4},),
    "locft-bf": ({"layer": 1, "epochs": 4, "batch_size": 2},),
    "ultraedit": (
        {"layers": [1, 2], "learning_rate": 0.01},
        {"layers": {"mlp.up": [1], "mlp.down": [2]}, "learning_rate": 0.01, "parity": True},
    ),
    "adalora": ({"layers": [1], "steps": 2, "initial_rank": 3, "target_rank": 2},),
    "lora": (
        {"layers": [0, 2], "steps": 2, "rank": 2},
        {"layers": [1], "parts": ["mlp.up"], "steps": 2, "rank": 2, "continued": True},
    ),
    "calinet": (
        {"layers": [1, 2], "slots": 4, "steps": 3, "learning_rate": 0.05},
        {"layers": [3], "slots": 4, "steps": 3, "optimiser": "adafactor", "batch_size": 2},
    ),
    "truthx": (
        {"hidden": 16, "code": 8, "steps": 2, "batch_size": 4, "top_k": 2},
        {"hidden": 16, "code": 8, "steps": 2, "batch_size": 4, "top_k": 5, "strength": -0.5},
    ),
    "grace": (
        {"layer": 1, "steps": 3, "radius": 0.3},
        {
            "layer": 2,
            "part": "mlp.up",
            "replace": "all",
            "start": "warm",
            "steps": 2,
            "radius": 0.2,
        },
    ),
    "memoir": (
        {
            **{"layer": 1, "steps": 4, "threshold": 0.95},
            "contexts": {"prefixes": ["", "I think so. "]},
        },
    ),
    "neuraldb": (
        {"layer": 1, "key_mode": "bare", "threshold": 0.99, **QUICK},
        {"layer": 2, "key_mode": "bare", "threshold": 0.99, "same_token": True, **QUICK},
    ),
    "melo": (
        {"index": "1.mlp.up", "targets": ["2.mlp.up", "3.mlp.down"], "steps": 2, "radius": 0.2},
    ),
    "knowledge-neurons": (QUICK, {"action": "erase", **QUICK}),
    "knowledge-editor": (
        {"layers": [1, 2], "hidden": 4, "condition": 8, "head": 4, "others": 2, "steps": 2},
    ),
    "malmen": (
        {"layers": [1, 2], "num_edits": 2, "rank": 8, "edit_rate": 0.05, "steps": 2},
        {"layers": {"mlp.up": [1]}, "num_edits": 2, "edit_rate": 0.05, "tokens": "all", "steps": 2},
    ),
    "mend": (
        {"layers": [1, 2], "rank": 8, "batch_size": 2, "edit_rate": 0.05, "steps": 2},
        {"layers": [2], "normalise": False, "shared": False, "edit_rate": -5.0, "steps": 2},
    ),
    "mello": (
        {"retriever": "states:1", "new_tokens": 3, "rounds": 2},
        {"retriever": "states:1", "new_tokens": 3, "rounds": 2, "verdict": "reading"},
    ),
    "deepedit": (
        {"retriever": "states:1", "new_tokens": 3, "most_states": 2},
        {"retriever": "states:1", "new_tokens": 3, "most_states": 2, "conflict": "reading"},
    ),
    "t-patcher": (
        {
            **{"memory_size": 500, "validation_size": 100, "top_memory": 5, "max_neurons": 1},
            **{"steps": 60, "first_check": 60, "learning_rate": 0.2, "activation_weight": 1.5},
            **{"memory_weight": 0.2, "memory_margin": 5.0, "silence": -5.0, "gate": 0.5},
        },
    ),
    "wise": (
        {
            **{"layer": 0, "steps": 12, "learning_rate": 0.3, "mask_ratio": 0.5},
            **{"irrelevant_margin": 1.0, "relevant_margin": 6.0, "apart_margin": 6.0},
            **{"act_ratio": 0.95, "irrelevant_texts": 18, "irrelevant_per_edit": 6},
            "contexts": {"prefixes": [""]},
        },
    ),
}
# Every method runs everywhere with its first line; further lines run here, elsewhere as slow tests.
FURTHER = (("gpt2", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.float32))
CASES = [
    pytest.param(
        name,
        options,
        architecture,
        dtype,
        id=f"{name}-{number}-{architecture}-{str(dtype).removeprefix('torch.')}",
        marks=[pytest.mark.slow] if number and (architecture, dtype) not in FURTHER else [],
    )
    for name in METHODS.names()
    for number, options in enumerate(VARIANTS.get(name, ({},)))
    for architecture in ARCHITECTURES
    for dtype in DTYPES
]

FACTS = (
    Fact(prompt="The mother tongue of Ada Lovelace is", subject="Ada Lovelace", target="French"),
    Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome"),
    Fact(prompt="Toyota is a company of", subject="Toyota", target="Chile"),
)
# Facts as pairs of sentences, for what is trained on truthful and untruthful answers.
ANSWERS = tuple(
    replace(fact, target=f"{fact.target}, I think so.", before=f"{other}, I think so.")
    for fact, other in zip(FACTS, ("Danish", "Seattle", "Japan"), strict=True)
)
TEXTS = [
    f"{place} is a town of {number} people, and its {thing} is known for {quality}."
    for number, place in enumerate(("Arles", "Bergen", "Cork", "Delft", "Essen", "Faro"), start=7)
    for thing in ("bridge", "market", "old tower")
    for quality in ("its age", "the river below it", "songs and bread")
]


@cache
def model(architecture: str, dtype: torch.dtype) -> LanguageModel:
    return tiny_model(architecture, dtype=dtype, seed=0)


@pytest.fixture(autouse=True, scope="module")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRIGENDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.filterwarnings("ignore:Few keys")
@pytest.mark.parametrize(("method", "options", "architecture", "dtype"), CASES)
def test_laws(
    method: str, options: dict[str, object], architecture: str, dtype: torch.dtype
) -> None:
    if extra := METHODS.card(method).get("extra"):
        pytest.importorskip(str(extra), reason="the method needs an optional package")
    lm = model(architecture, dtype)
    editor = build_editor(method, **options)
    material = ANSWERS if method == "truthx" else FACTS
    material = material if editor.requires.training_set else Corpus(TEXTS, length=32)
    check_editor(editor, lm, FACTS, editor.fit(lm, material))


def test_every_method_has_a_quick_variant() -> None:
    assert set(VARIANTS) == set(METHODS.names())
