"""Cache of trained states, by model, method, configuration and training set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

from pydantic import JsonValue

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.ledger import ledger_of
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.statistics import cache
from corrigenda.training.dataset import TrainingSet, digest, load_training_set
from corrigenda.training.job import TrainingJob

_FORMAT = 2


class Training(Protocol):
    """Function that trains a method on its training set: `Editor.train`."""

    def __call__(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: TrainingJob,
    ) -> State:
        """Train and return the result; see `Editor.train`."""
        ...


def fit_trained(
    lm: LanguageModel,
    material: TrainingSet | None,
    train: Training,
    *,
    method: str,
    config: Mapping[str, object],
    progress: Progress | None = None,
    keep: bool = True,
) -> State:
    """Train, or read from the cache what was trained on the same facts in the same way.

    An interrupted run resumes from its last checkpoint, which is in the cache until the run has
    ended.

    Args:
        lm: The model without active patches.
        material: The training set; see `load_training_set`.
        train: Called where the cache holds no result.
        method: Name of the method.
        config: Everything else that the result depends on.
        progress: Handed to `train`.
        keep: Read and write the cache.

    Returns:
        What `train` returned; `meta` also names the base model and the training set.

    Raises:
        MissingState (CG503): no facts were given, and none are shipped for this model.
        BadConfig (CG502): no facts, but text.
        NonFinite (CG201): no validation gave a finite loss.
    """
    facts = load_training_set(lm, material, where=method)
    if len(ledger_of(lm)):
        warnings.warn(
            "Patches are active: the method is trained on the edited model. Fit before editing and "
            "pass the state on.",
            stacklevel=3,
        )
    base, about = lm.recall_digest(), digest(facts)
    name = cache.hash_settings(
        {
            "format": _FORMAT, "method": method, "config": dict(config), "model": base,
            "dtype": str(lm.dtype), "facts": about,
        }
    )  # fmt: skip
    cached = cache.read_state(f"{name}.safetensors", cache.TRAINED) if keep else None
    if cached is not None:
        return cached
    checkpoint = cache.locate(f"{name}.part.safetensors", cache.TRAINED) if keep else None
    state = train(lm, facts, TrainingJob(checkpoint, progress))
    meta: dict[str, JsonValue] = {
        "base_digest": base,
        "base_name": lm.name,
        "training_set": {"facts": len(facts), "digest": about, "shipped": material is None},
    }
    state = state.updated(meta=meta)
    if keep:
        cache.write_state(f"{name}.safetensors", state, cache.TRAINED)
        cache.remove_state(f"{name}.part.safetensors", cache.TRAINED)
    return state
