"""What each method is asked to do on virtual devices, with options that make it short."""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import corrigenda as cg
from corrigenda import Fact
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.training_facts import training_facts
from corrigenda.almanac.world import load_world
from corrigenda.analysis.injection import SETTINGS, measure_injection
from corrigenda.lm.model import LanguageModel
from corrigenda.statistics.corpus import Corpus


class Case(NamedTuple):
    """One method.

    Attributes:
        num_facts: How many are edited at once.
        options: Of the method.
        material: What it is fitted on, if anything.
    """

    num_facts: int
    options: dict[str, Any]
    material: Callable[[], object] | None = None


def facts(count: int) -> list[Fact]:
    return [
        Fact(
            prompt=one.fact.prompt,
            target=one.fact.target,
            subject=one.fact.subject,
            paraphrases=one.fact.paraphrases,
            neighbours=one.fact.neighbours,
            before=one.fact.before,
        )
        for one in draw_edits(load_world(), count, seed=5)
    ]


def _texts() -> list[str]:
    return [f"The capital of France is Paris. It is a big city. {one}" for one in range(300)]


def _corpus() -> Corpus:
    return Corpus(_texts(), num_tokens=3000)


def _training() -> list[Fact]:
    return list(training_facts())[:24]


_SEARCH: dict[str, Any] = {"steps": 3}
_EPOCHS: dict[str, Any] = {"epochs": 2}
_TRAINING: dict[str, Any] = {"steps": 2, "validate_every": 2}

CASES: dict[str, Case] = {
    "rome": Case(1, _SEARCH, _corpus),
    "memit": Case(4, _SEARCH, _corpus),
    "pmet": Case(4, _SEARCH, _corpus),
    "emmet": Case(3, _SEARCH, _corpus),
    "alphaedit": Case(4, _SEARCH, _corpus),
    "rlsedit": Case(4, _SEARCH, _corpus),
    "ultraedit": Case(4, {}, _texts),
    "knowledge-neurons": Case(1, _SEARCH),
    "ft": Case(3, _EPOCHS),
    "ft-l": Case(2, _EPOCHS),
    "ft-m": Case(2, _EPOCHS),
    "locft-bf": Case(3, _EPOCHS),
    "lora": Case(2, {"steps": 2}),
    "adalora": Case(2, {"steps": 6}),
    "mend": Case(2, {**_TRAINING, "batch_size": 2, "rank": 8, "validation": 2}, _training),
    "malmen": Case(4, {**_TRAINING, "num_edits": 4, "rank": 8}, _training),
    "knowledge-editor": Case(
        2,
        {**_TRAINING, "others": 3, "validation": 2, "head": 8, "condition": 16, "hidden": 8},
        _training,
    ),
    "calinet": Case(2, _SEARCH),
    "t-patcher": Case(
        2,
        {
            "steps": 30,
            "first_check": 10,
            "check_every": 10,
            "memory_size": 60,
            "validation_size": 20,
        },
        _texts,
    ),
    "grace": Case(3, _SEARCH),
    "melo": Case(3, _SEARCH),
    "memoir": Case(2, _SEARCH, _texts),
    "neuraldb": Case(3, _SEARCH),
    "wise": Case(2, _SEARCH, _texts),
    "serac": Case(2, {"steps": 3, "validate_every": 2, "embedder": "states"}, _training),
    "ike": Case(2, {"embedder": "states", "num_demonstrations": 4}, _training),
    "ice": Case(2, {"embedder": "states"}),
    "prompt": Case(2, {}),
    "rag": Case(2, {"embedder": "states"}),
    "mello": Case(2, {"retriever": "states"}),
    "deepedit": Case(2, {"retriever": "states"}),
    "truthx": Case(2, {"steps": 3, "validate_every": 2, "hidden": 16, "code": 8, "max_pairs": 40}),
}


def _trace(lm: LanguageModel) -> None:
    (fact,) = facts(1)
    cg.trace(lm, fact, kinds=("state", "mlp", "attention"), severed="mlp", samples=2)


def _neurons(lm: LanguageModel) -> None:
    cg.neurons(lm, facts(1)[0], steps=2, wanted=None)


def _inject(lm: LanguageModel) -> None:
    measure_injection(lm, facts(1), settings=SETTINGS._replace(steps=2))


def _assess(lm: LanguageModel) -> None:
    chosen = facts(2)
    patch = cg.edit(lm, chosen, "ft-m", epochs=2)
    cg.assess(lm, patch, chosen)
    cg.perplexity_ratio(lm, patch, ["The capital of France is Paris."])


def _evaluate(lm: LanguageModel) -> None:
    editor = {"name": "ft-m", "options": {"epochs": 2}}
    spec = cg.RunSpec(model="pocket", editor=editor, benchmark="pocketedit")
    with TemporaryDirectory() as folder:
        cg.evaluate(spec, lm=lm, limit=1, folder=folder, progress=False)


def _export(lm: LanguageModel) -> None:
    patch = cg.edit(lm, facts(1), "ft-m", epochs=2)
    with TemporaryDirectory() as folder:
        cg.export(patch, lm, f"{folder}/adapter", to="peft")


def _ask(lm: LanguageModel) -> None:
    cg.ask(lm, [one.prompt for one in facts(3)])


ANALYSES: dict[str, Callable[[LanguageModel], None]] = {
    "trace": _trace,
    "neurons": _neurons,
    "injection": _inject,
    "assess": _assess,
    "evaluate": _evaluate,
    "export": _export,
    "ask": _ask,
}
