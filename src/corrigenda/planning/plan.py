"""`plan`: parameters changed, bytes and seconds by stage, before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from corrigenda.catalogue import build_editor
from corrigenda.editor import Editor
from corrigenda.errors import BadConfig, UnknownSite
from corrigenda.lm.footprint import Room
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.product_speed import product_rate
from corrigenda.planning.shaped_model import PLANNED_ONLY, shape_model
from corrigenda.planning.stored_size import count_bytes, stored_bits

GIGABYTE = 1e9
"""Bytes in the unit of sizes that people read."""


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage, where it takes all its steps.

    Attributes:
        stage: Its name.
        flops: Operations of passes of the model.
        solver_flops: Operations of solves, in float64 on the host.
        seconds: Expected; None where no rate is known.
    """

    stage: str
    flops: float
    solver_flops: float
    seconds: float | None


@dataclass(frozen=True)
class CostEstimate:
    """Expected cost of an edit of a model; sizes in bytes.

    Attributes:
        model: Name of the model.
        method: Name of the method.
        facts: How many facts are edited at once.
        dtype: Of the weights.
        parameters: Parameters of the model.
        changed: Those in the weights that the edit changes; 0 where the weights stay.
        weights: The weights of the model, as they are stored.
        statistics: Sums of second moments, in float64.
        search: Search or training: its graph, constants and optimiser.
        patch: The patch: its factors, or the changed weights where it is no product.
        device: Most that is needed on the device at once, the weights included.
        host: Most that is needed in the host's memory besides; 0 where the device is the host.
        stages: Work by stage; empty where the method does not tell.
    """

    model: str
    method: str
    facts: int
    dtype: str
    parameters: int
    changed: int
    weights: int
    statistics: int
    search: int
    patch: int
    device: int
    host: int
    stages: tuple[StageCost, ...]


def plan(
    model: str | Path | LanguageModel,
    method: str = "memit",
    *,
    facts: int = 1,
    dtype: str | None = None,
    device: str = "cuda",
    memory: float = 24.0,
    device_flops: float | None = None,
    layer: int | None = None,
    **options: object,
) -> CostEstimate:
    """Estimate what an edit takes, from the configuration of a model alone; nothing is loaded.

    Facts of usual length are meant (24 tokens). Stages take all their steps; searches that reach
    their target earlier take less. Statistics are of two tokens for each dimension of a key.

    Args:
        model: A folder with a `config.json`, a name of `KNOWN_SHAPES`, of a model of the package or
            on the hub; or a model in memory.
        method: Name of a method, whose preset for the model is taken.
        facts: How many facts are edited at once.
        dtype: Of the weights; that of the configuration if not given.
        device: "cuda", where statistics are kept in the host's memory, or "cpu".
        memory: Gigabytes of the device, from which searches take the sizes of their batches.
        device_flops: Operations a second of the device; measured here for "cpu" if not given.
        layer: As in `build_editor`.
        **options: Options of the method.

    Raises:
        UnknownModel (CG301), UnknownFamily (CG302), QuantisedWeights (CG304): see `shape_model`.
        UnknownSite (CG303): the method has no place in this model, or none that can be planned.
        UnknownMethod (CG501), BadConfig (CG502): see `build_editor`; no facts, memory or rate.

    Example:
        >>> plan("meta-llama/Meta-Llama-3-8B", "rome").parameters
        8030261248
    """
    if facts < 1 or memory <= 0 or (device_flops is not None and device_flops <= 0):
        raise BadConfig("facts, memory and operations a second must be above zero.", where="plan")
    if device not in ("cpu", "cuda"):
        raise BadConfig(f'"{device}" is no device to plan for.', hint='Give "cpu" or "cuda".')
    if isinstance(model, LanguageModel):
        lm = model
    else:
        lm = shape_model(str(model), dtype=dtype, room=Room(device, None))
    weights = count_bytes(lm, stored_bits(lm.model.config))
    if not isinstance(model, LanguageModel) and device == "cuda":
        free = max(0, int(memory * GIGABYTE) - weights)
        lm = shape_model(str(model), dtype=dtype, room=Room(device, free))
    editor = build_editor(lm, method, layer=layer, **options)
    try:
        return _estimate(lm, editor, facts, weights, device, device_flops)
    except UnknownSite as error:
        if lm.family not in PLANNED_ONLY:
            raise
        raise UnknownSite(
            f"{editor.name} works in the feed-forward blocks, and those of {lm.family.name} are "
            "mixtures of experts in a form that no method can edit yet.",
            where=f"{lm.name}: {error.message}",
            hint="Methods in the context (ike, ice) and of the attention (lora) can be planned.",
        ) from error


def _estimate(
    lm: LanguageModel,
    editor: Editor,
    facts: int,
    weights: int,
    device: str,
    device_flops: float | None,
) -> CostEstimate:
    sites = editor.likely_sites(lm)
    changed = [lm.shape(site) for site in sites]
    memory = editor.memory(lm, facts)
    statistics = [8 * width**2 for _, width in changed] if editor.requires.moments else []
    return CostEstimate(
        model=lm.name,
        method=editor.name,
        facts=facts,
        dtype=str(lm.dtype).removeprefix("torch."),
        parameters=sum(one.numel() for one in lm.model.parameters()),
        changed=sum(math.prod(shape) for shape in changed),
        weights=weights,
        statistics=sum(statistics),
        search=editor.working_memory(lm, facts),
        patch=editor.patch_bytes(lm, facts),
        device=weights + max(memory.fit, memory.edit),
        host=max(memory.fit_on_host, memory.edit_on_host),
        stages=_stages(lm, editor, facts, device, device_flops),
    )


def _stages(
    lm: LanguageModel, editor: Editor, facts: int, device: str, device_flops: float | None
) -> tuple[StageCost, ...]:
    work = editor.work(lm, facts)
    rate = device_flops
    if work and rate is None and device == "cpu":
        rate = product_rate(lm.dtype)
    solving = product_rate(torch.float64) if any(one.solves for one in work) else 1.0
    return tuple(
        StageCost(
            one.stage,
            one.passes,
            one.solves,
            None if rate is None else one.passes / rate + one.solves / solving,
        )
        for one in work
    )
