"""Loading a model and its tokenizer by name or path, from safetensors files only."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as transformers_logging

from corrigenda.errors import (
    BadConfig,
    MissingExtra,
    NotAModel,
    PickleRefused,
    SlowTokenizer,
    UnknownModel,
    did_you_mean,
)

SHIPPED = ("pocket", "pocket-gpt2")
"""Models inside the package."""

_WELL_KNOWN = (
    "openai-community/gpt2",
    "openai-community/gpt2-medium",
    "openai-community/gpt2-large",
    "openai-community/gpt2-xl",
    "EleutherAI/gpt-j-6B",
    "EleutherAI/pythia-1.4b",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Meta-Llama-3-8B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-7B",
)
_PICKLES = ("*.bin", "*.pt", "*.pth")


def _default_dtype(name: str) -> str:
    return "float32" if name in SHIPPED else "auto"


def load_pair(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Load a model and its tokenizer.

    Without a dtype a model keeps the one it was saved in, but those of the package become float32:
    they are stored in half precision to be small, which most processors compute slowly.

    Raises:
        UnknownModel (CG301): nothing there, no model in it, or not all of its weights.
        PickleRefused (CG403): a folder with pickled weights only.
        SlowTokenizer (CG305): the tokenizer gives no character offsets.
    """
    name = str(name_or_path)
    source = shipped_folder(name) if name in SHIPPED else name
    folder = Path(source)
    if folder.is_dir():
        _require_safetensors(folder, name)
    settings = {"trust_remote_code": trust_remote_code}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or _default_dtype(name),
            use_safetensors=True,
            output_loading_info=True,
            **settings,
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
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UnknownModel(
            f"{len(missing)} weights are not in the files, among them {missing[0]}.",
            where=name,
            hint="Without them the model would be random there: the files are incomplete, or of "
            "another architecture than config.json states.",
        )
    require_fast(tokenizer, name)
    model = model.to(device)
    require_weights(model, name)
    return model, tokenizer


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


def require_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose weights are not all in memory.

    Raises:
        NotAModel (CG307): some are offloaded, or on the device meta.
    """
    absent = [path for path, one in model.named_parameters() if one.is_meta]
    if absent:
        raise NotAModel(
            f"{len(absent)} weights are not in memory, among them {absent[0]}: they are offloaded "
            "or on the device meta.",
            where=name,
            hint="Load it on one device, or with a device_map that fits into memory.",
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _require_safetensors(folder: Path, name: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        raise PickleRefused(
            f"{pickles[0]} is a pickle file; opening it could run code.",
            where=name,
            hint="Load it once where you trust it and save it again: save_pretrained writes "
            "safetensors.",
        )
    raise UnknownModel(
        "the folder holds no *.safetensors file.",
        where=name,
        hint="A model folder has config.json, model.safetensors and tokenizer.json.",
    )


def _unknown(name: str, error: Exception) -> UnknownModel:
    known = [*SHIPPED, *_WELL_KNOWN]
    short = {one.rpartition("/")[2]: one for one in known}
    return UnknownModel(
        f'no model by the name or path "{name}" could be loaded.',
        where=_first_line(error),
        hint=f"Known: {short[name]}." if name in short else did_you_mean(name, known),
    )
