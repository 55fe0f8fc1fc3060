"""A model without weights: shapes from a configuration, on torch's device "meta"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from corrigenda.errors import (
    BadConfig,
    QuantisedWeights,
    UnknownFamily,
    UnknownModel,
    did_you_mean,
)
from corrigenda.lm.families import FAMILIES, Family, Slot
from corrigenda.lm.footprint import Room, plan_room
from corrigenda.lm.gguf_models import find_gguf
from corrigenda.lm.loading import find_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED, WELL_KNOWN
from corrigenda.planning.known_shapes import KNOWN_SHAPES
from corrigenda.planning.stored_size import stored_bits

# Families whose weights are in no table, and what of them can be planned for: the attention.
_ATTENTION = {
    "attn.out": Slot("self_attn.o_proj"),
    "attn.q": Slot("self_attn.q_proj"),
    "attn.k": Slot("self_attn.k_proj"),
    "attn.v": Slot("self_attn.v_proj"),
}
PLANNED_ONLY: tuple[Family, ...] = (
    Family(
        name="gpt_oss",
        model_types=("gpt_oss",),
        blocks="model.layers",
        final_norm="model.norm",
        slots=_ATTENTION,
    ),
)
"""Families for plans of methods that leave the experts alone."""

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def shape_model(name: str, *, dtype: str | None, room: Room) -> LanguageModel:
    """Return a model without weights, planned for a device that need not be there.

    Args:
        name: A folder with a `config.json`, a name of `KNOWN_SHAPES`, of a model of the package, or
            on the hub.
        dtype: Of the weights; that of the configuration if not given, else float32.
        room: The device.

    Raises:
        UnknownModel (CG301): no configuration by this name.
        UnknownFamily (CG302): its architecture is not understood.
        QuantisedWeights (CG304): the configuration is of weights quantised in an unknown form, and
            no dtype is given.
        BadConfig (CG502): no such dtype.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise BadConfig(f'"{dtype}" is no dtype of a model.', hint=did_you_mean(dtype, _DTYPES))
    config = read_config(name)
    text: Any = config.get_text_config()
    own = getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.float32
    wanted = own if dtype is None else getattr(torch, dtype)
    known = {kind: one for one in (*FAMILIES, *PLANNED_ONLY) for kind in one.model_types}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=wanted)
    if config.model_type not in known:
        raise UnknownFamily(
            f'the architecture "{config.model_type}" is not in the table; the model has '
            f"{sum(one.numel() for one in model.parameters()) / 1e9:.1f} billion parameters.",
            where=name,
            hint=f"Known: {', '.join(sorted(known))}.",
        )
    if getattr(config, "quantization_config", None) is not None:
        if dtype is not None:
            delattr(config, "quantization_config")
        elif stored_bits(config) is None:
            raise QuantisedWeights(
                "the weights are stored in a form whose size is not known.",
                where=name,
                hint="Give --dtype bfloat16 to plan for the same model with plain weights.",
            )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    lm = LanguageModel(model, tokenizer, name=name, family=known[config.model_type])
    plan_room(lm, room)
    return lm


def read_config(name: str) -> PreTrainedConfig:
    """Return the configuration of a model; no weights are read.

    Raises:
        UnknownModel (CG301): there is none by this name.
    """
    found = {full.rpartition("/")[2]: full for full in KNOWN_SHAPES}.get(name, name)
    if found in KNOWN_SHAPES and not Path(name).exists():
        fields = dict(KNOWN_SHAPES[found])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    source = name
    if name in SHIPPED or find_gguf(name) is not None:
        folder = find_folder(name)
        if not isinstance(folder, str):
            return folder[0].config
        source = folder
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        names = [*KNOWN_SHAPES, *SHIPPED, *WELL_KNOWN]
        raise UnknownModel(
            f'no configuration by the name or path "{name}" could be read.',
            where=str(error).strip().splitlines()[0][:300] if str(error).strip() else name,
            hint=f"{did_you_mean(name, names)} A folder with a config.json is enough.",
        ) from error
