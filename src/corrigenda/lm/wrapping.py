"""Wrapping a model that is in memory already, and telling what else was handed over."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from corrigenda.errors import NotAModel
from corrigenda.lm.loading import require_weights, shipped_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED

_COMPILED = "_orig_mod"
_LOAD = 'cg.load("NAME or FOLDER")'
_WRAP = "cg.wrap(model, tokenizer)"


def wrap(model: object, tokenizer: object = None, *, name: str = "") -> LanguageModel:
    """Wrap a Hugging Face model in memory, with its tokenizer.

    The model itself is used, not a copy: it is set to evaluation mode and its parameters are
    frozen. A model that is wrapped already comes back as it is.

    Args:
        model: A causal language model of transformers; also one with adapters of peft, one that
            `torch.compile` returned (the model inside it is used, uncompiled), or a text-generation
            pipeline, which brings its tokenizer.
        tokenizer: Its fast tokenizer.
        name: How messages and files refer to it; by default the name it was loaded by. Presets of
            methods are found by it.

    Raises:
        NotAModel (CG307): something else, no tokenizer, or weights that are not in memory.
        UnknownFamily (CG302): the architecture is not understood.
        SlowTokenizer (CG305): the tokenizer gives no character offsets.

    Example:
        ```python
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        lm = cg.wrap(model, tokenizer)
        ```
    """
    if isinstance(model, LanguageModel):
        return model
    if tokenizer is None and isinstance(_inner(model), nn.Module):
        # A pipeline brings its tokenizer; a model has none.
        tokenizer = getattr(model, "tokenizer", None)
    found = _unwrap(model)
    if not isinstance(found, PreTrainedModel):
        raise _refusal(model, expected=_WRAP)
    if tokenizer is None:
        raise NotAModel(
            f"{type(found).__name__} came without its tokenizer.",
            hint=f"Write {_WRAP}, with AutoTokenizer.from_pretrained(...) as tokenizer.",
        )
    if not callable(tokenizer):
        raise NotAModel(
            f"a tokenizer was expected, not {_describe(tokenizer)}.", hint=f"Write {_WRAP}."
        )
    name = name or _shipped_name(found)
    require_weights(found, name or type(found).__name__)
    return LanguageModel(found, tokenizer, name=name)  # type: ignore[arg-type]  # checked by it


def require_lm(lm: object) -> LanguageModel:
    """Return a wrapped model; all functions that take `lm` check it here.

    Raises:
        NotAModel (CG307): something else; the message says what to write.
    """
    if isinstance(lm, LanguageModel):
        return lm
    raise _refusal(lm, expected=_LOAD)


def _shipped_name(model: PreTrainedModel) -> str:
    """Return the name of a model loaded from a folder of the package; empty for others."""
    folder = str(getattr(model.config, "name_or_path", ""))
    known = {str(Path(shipped_folder(name))): name for name in SHIPPED if Path(folder).name == name}
    return known.get(folder, "")


def _inner(model: object) -> object:
    """Return the model of a pipeline, else what was given."""
    inner = getattr(model, "model", None)
    return inner if not isinstance(model, nn.Module) and inner is not None else model


def _unwrap(model: object) -> object:
    """Return the transformers model inside a pipeline, a compiled module or an adapted one."""
    found = _inner(model)
    found = getattr(found, _COMPILED, found)
    adapted = getattr(found, "peft_config", None)
    if not isinstance(found, PreTrainedModel) and isinstance(adapted, dict):
        if any(getattr(one, "is_prompt_learning", False) for one in adapted.values()):
            raise NotAModel(
                "prompt learning of peft acts outside the model, so its edits would not be seen.",
                hint="Merge or remove the adapter, then wrap the model.",
            )
        found = found.get_base_model()  # type: ignore[attr-defined]  # a model of peft has it
    return getattr(found, _COMPILED, found)


def _refusal(value: object, *, expected: str) -> NotAModel:
    """Return the error for something that is no wrapped model, with what to write for it."""
    if isinstance(value, type):
        hint = "Give a model, not its class: " + _LOAD + "."
    elif isinstance(value, str | Path):
        hint = f'Write cg.load("{value}").'
    elif isinstance(_unwrap_quietly(value), PreTrainedModel):
        hint = f"Write {_WRAP}."
    elif isinstance(value, tuple | list) and len(value) == 2:
        hint = "Write cg.wrap(*pair)." if isinstance(value[0], nn.Module) else f"Write {_WRAP}."
    elif isinstance(value, nn.Module):
        hint = "Only causal language models of transformers can be wrapped: " + _WRAP + "."
    else:
        hint = f"Write {_LOAD} for a checkpoint, or {_WRAP} for a model in memory."
    wanted = "a model of transformers" if expected == _WRAP else "a wrapped model"
    return NotAModel(f"{wanted} was expected, not {_describe(value)}.", hint=hint)


def _unwrap_quietly(value: object) -> object:
    try:
        return _unwrap(value)
    except NotAModel:
        return value


def _describe(value: object) -> str:
    if isinstance(value, str | Path):
        return f'the text "{str(value)[:60]}"' if isinstance(value, str) else f"the path {value}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
