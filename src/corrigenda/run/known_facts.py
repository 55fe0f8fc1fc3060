"""Benchmarks that are drawn from what a model knows: the model's exam is their file."""

from __future__ import annotations

from collections.abc import Callable

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.files import cache_folder, make_folder
from corrigenda.knowledge.exam import find_known_facts, write_known_facts
from corrigenda.lm.loading import SHIPPED
from corrigenda.lm.model import LanguageModel
from corrigenda.run.spec import RunSpec, hash_json
from corrigenda.run.tables import DataSpec

_FOLDER = "exams"


def supply_known_facts(
    spec: RunSpec, name: str, find_model: Callable[[], LanguageModel]
) -> RunSpec:
    """Return a run whose benchmarks of known facts have the exam of the model as their file.

    A run on a pocket model, and one without such benchmarks, comes back as it is.

    Args:
        spec: The run.
        name: Name of the model.
        find_model: Returns the model, loaded; called where it is needed.
    """
    if name in SHIPPED or not any(map(_is_drawn_from_exam, spec.benchmark)):
        return spec
    lm = find_model()
    return spec.model_copy(update={"benchmark": tuple(name_exam(lm, d) for d in spec.benchmark)})


def name_exam(lm: LanguageModel, data: DataSpec) -> DataSpec:
    """Return a benchmark with the exam of a model as its file, where it is drawn from one.

    Args:
        lm: The model.
        data: The benchmark.
    """
    if lm.name in SHIPPED or not _is_drawn_from_exam(data):
        return data
    benchmark = BENCHMARKS.get(data.name)(**data.options)
    size = int(getattr(benchmark, "size", data.limit or 1))
    known = find_known_facts(lm, min(size, data.limit or size))
    folder = make_folder(cache_folder() / _FOLDER)
    path = folder / f"{hash_json([known.digest, len(known.asked)])}.json"
    return data.model_copy(update={"path": str(write_known_facts(known, path))})


def _is_drawn_from_exam(data: DataSpec) -> bool:
    """Return whether the cases are to be known facts; not where a file or a world is named."""
    wanted = data.path is None and "world" not in data.options
    return wanted and BENCHMARKS.get(data.name).takes_known_facts
