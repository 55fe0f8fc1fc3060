"""Loading a model and its tokenizer by name or path, from safetensors or GGUF files only."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict, TypeGuard, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as transformers_logging

from corrigenda.errors import (
    BadConfig,
    MissingExtra,
    NotAModel,
    SlowTokenizer,
    UnknownModel,
    did_you_mean,
)
from corrigenda.lm.gguf_models import convert_gguf, find_gguf
from corrigenda.lm.model_files import check_model_files
from corrigenda.lm.model_names import PACKAGED, SHIPPED, WELL_KNOWN
from corrigenda.lm.product_speed import is_slow
from corrigenda.lm.quantisation import quantisation_config

_DEVICES = ("cpu", "cuda", "mps", "meta")


class Placement(TypedDict, total=False):
    """How transformers places, stores and runs a model; what is None or missing is its default.

    Attributes:
        device_map: "auto" and the like, or devices by module: the model is split over devices, by
            accelerate.
        quantization_config: Of transformers, such as `BitsAndBytesConfig(load_in_4bit=True)`, or a
            name of `corrigenda.lm.quantisation`.
        attn_implementation: "sdpa", "eager", and others that the model has.
    """

    device_map: str | dict[str, int | str | torch.device] | None
    quantization_config: object
    attn_implementation: str | None


def load_pair(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str,
    trust_remote_code: bool,
    placing: Placement | None = None,
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a model and its tokenizer.

    Without a dtype a model keeps the one it was saved in, but those of the package become float32:
    they are stored in half precision to be small, which most processors compute slowly. So does,
    with a warning, any model of half precision on a processor that measurably does.

    Raises:
        BadConfig (CG502): `placing` asks for what a model in memory cannot have, for a device and
            a `device_map`, or for a device of another type than cpu, cuda and mps.
        NotAModel (CG307): `device_map` leaves weights on the disk or moves them in and out.
        UnknownModel (CG301): nothing there, no model in it, or not all of its weights.
        UnknownFamily (CG302): a GGUF file of an architecture that cannot be read.
        SlowTokenizer (CG305): the tokenizer gives no character offsets.
        CorruptFile (CG402): a GGUF file that is incomplete; Git LFS pointers in place of files.
        PickleRefused (CG403): a folder with pickled weights only.
        MissingExtra (CG504): a package that the model comes with, or is read by, is missing.
    """
    name = str(name_or_path)
    given: dict[str, Any] = {key: one for key, one in (placing or {}).items() if one is not None}
    placed = bool(given.keys() & {"device_map", "quantization_config"})
    _require_placing(name, device, given)
    if "quantization_config" in given:
        if isinstance(given["quantization_config"], str):
            given["quantization_config"] = quantisation_config(given["quantization_config"])
        given.setdefault("device_map", {"": device})
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        source = find_folder(name)
        if isinstance(source, str):
            pair = _load_folder(source, name, dtype, trust_remote_code, given)
        elif placed:
            raise BadConfig(
                "a GGUF file that cannot be kept in the cache is loaded on one device only.",
                where=name,
                hint="Make room in the cache: see `corrigenda cache`.",
            )
        else:
            pair = _cast(source, dtype)
            if given:
                pair[0].set_attn_implementation(given["attn_implementation"])
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    model, tokenizer = pair
    require_fast(tokenizer, name)
    if not placed:
        if dtype is None and torch.device(device).type == "cpu":
            model = _leave_slow_dtype(model, name)
        cast("Any", model).to(device)
    require_weights(model, name)
    return model, tokenizer


def _require_placing(name: str, device: torch.device | str, given: Mapping[str, object]) -> None:
    kind = torch.device(device).type
    if kind not in _DEVICES:
        raise BadConfig(
            f'devices of type "{kind}" are not supported.',
            where=name,
            hint='Load it with device="cpu" or device="cuda".',
        )
    if "device_map" in given and torch.device(device) != torch.device("cpu"):
        raise BadConfig(
            f"a device ({device}) and a device_map ({given['device_map']}) are given.",
            where=name,
            hint="Give one of them.",
        )
    placed = given.get("device_map")
    offloaded = [path for path, one in placed.items() if one == "disk"] if _is_map(placed) else []
    if offloaded:
        raise NotAModel(
            f"the device_map leaves weights on the disk: {', '.join(sorted(offloaded))}.",
            where=name,
            hint="Put these modules on a device.",
        )


def _is_map(placed: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(placed, Mapping)


def find_folder(name: str) -> str | tuple[PreTrainedModel, FastTokenizer]:
    """Return the folder of a model, or its name on the hub; GGUF files are dequantised first.

    Where they cannot be cached, the model itself is returned.

    Raises:
        UnknownModel (CG301): no model is there, among other errors of `load_pair`.
    """
    if name in SHIPPED:
        return shipped_folder(name)
    gguf = find_gguf(name)
    if gguf is None:
        check_model_files(Path(name), name)
        return name
    converted = convert_gguf(gguf)
    return converted if isinstance(converted, tuple) else str(converted)


def _load_folder(
    source: str,
    name: str,
    dtype: torch.dtype | str | None,
    trust_remote_code: bool,
    placing: dict[str, Any],
) -> tuple[PreTrainedModel, FastTokenizer]:
    settings = {"trust_remote_code": trust_remote_code}
    own = "float32" if name in SHIPPED else "auto"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or own,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
            **placing,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **settings)
    except ImportError as error:
        raise MissingExtra(
            f"the checkpoint needs a package that is not installed: {_first_line(error)}",
            where=name,
            hint="Install it, or load the checkpoint unquantised.",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unknown(name, error) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UnknownModel(
            f"{len(missing)} weights are not in the files, among them {missing[0]}.",
            where=name,
            hint="Without them the model would be random there: the files are incomplete, or of "
            "another architecture than config.json states.",
        )
    return model, tokenizer


def _cast(
    pair: tuple[PreTrainedModel, FastTokenizer], dtype: torch.dtype | str | None
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Return a model in memory in the dtype asked for."""
    model, tokenizer = pair
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return (model if wanted is None else cast("Any", model).to(wanted)), tokenizer


def _leave_slow_dtype(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return a model in float32 where its own dtype is slow on this processor, with a warning."""
    own = model.dtype
    if not is_slow(own):
        return model
    short = str(own).removeprefix("torch.")
    warnings.warn(
        f"{name} is loaded in float32, twice its size: this processor computes {short} at half the "
        f'speed or less. dtype="{short}" (--dtype {short}) keeps it as it is.',
        stacklevel=4,
    )
    return model.float()


def shipped_folder(name: str) -> str:
    """Return the folder of a model of the package.

    Raises:
        UnknownModel (CG301): it is not in this installation.
    """
    folder = Path(str(files("corrigenda"))) / "pocket" / name
    if not (folder / "config.json").is_file():
        raise UnknownModel(
            f'the model "{name}" is not part of this installation.',
            where=str(folder),
            hint="Install a released version of corrigenda, or train it: see the folder's recipe.",
        )
    return str(folder)


def require_fast(tokenizer: object, name: str) -> None:
    """Refuse tokenizers without character offsets.

    Raises:
        SlowTokenizer (CG305): it is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SlowTokenizer(
            f"{type(tokenizer).__name__} gives no character offsets.",
            where=name,
            hint="Convert it to a tokenizer.json, for example with AutoTokenizer and "
            "save_pretrained, and load that.",
        )


def require_trainable(model: PreTrainedModel, name: str) -> None:
    """Refuse a model through which no gradient can flow.

    Raises:
        BadConfig (CG502): its parameters were made in `torch.inference_mode`.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise BadConfig(
            "the model was made in torch.inference_mode; no gradient can ever flow through it.",
            where=name,
            hint="Load it outside of `with torch.inference_mode()`; it may be asked inside.",
        )


def require_double(device: torch.device, name: str) -> None:
    """Refuse to edit a model on a device without float64, in which changes are computed.

    Raises:
        BadConfig (CG502): it has none.
    """
    if device.type == "mps":
        raise BadConfig(
            f"edits are computed in float64, which {device.type} does not have.",
            where=name,
            hint='Edit it with device="cpu"; the saved patch can be applied and asked there too.',
        )


def require_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose weights are not all in memory.

    Raises:
        NotAModel (CG307): some are offloaded, or on the device meta.
    """
    absent = [path for path, one in model.named_parameters() if one.is_meta]
    if absent:
        # A block by its number, what is outside of blocks by its module.
        places = [re.match(r"(?:.*?\.\d+|.*)(?=\.)", path) for path in absent]
        modules = dict.fromkeys(one[0] for one in places if one is not None)
        raise NotAModel(
            f"{len(absent)} weights are not in memory: they are offloaded or on the device meta.",
            where=f"{name}: {', '.join(modules)}",
            hint="Load it on one device, with a device_map that fits into memory, or quantised "
            '(quantization_config="4bit").',
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _unknown(name: str, error: Exception) -> UnknownModel:
    known = [*SHIPPED, *PACKAGED, *WELL_KNOWN]
    short = {one.rpartition("/")[2]: one for one in known}
    return UnknownModel(
        f'no model by the name or path "{name}" could be loaded.',
        where=_first_line(error),
        hint=f"Known: {short[name]}." if name in short else did_you_mean(name, known),
    )
