"""Models given to `torch.compile`, whose code is fixed before hooks are placed and passes them by.

Weights that are rewritten count there too; hooks do not. A compiled wrapper of the whole model is
taken off, and runs its model directly for as long as a patch works by hooks. A model or block that
was compiled in place is refused where hooks are needed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from corrigenda.errors import CompiledModel
from corrigenda.lm.interrupts import defer_interrupts

_ORIGINAL = "_orig_mod"
_EVAL_FRAME = "torch._dynamo.eval_frame"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of a wrapper made by `torch.compile`; another as it is."""
    while _ORIGINAL in model._modules:
        model = cast("nn.Module", model._modules[_ORIGINAL])
    return model


def require_eager(model: nn.Module, blocks: str, layers: Iterable[int]) -> None:
    """Refuse a model in which code on the way to some blocks, or in them, is compiled.

    Args:
        model: The model.
        blocks: Path of its list of blocks.
        layers: The blocks that get hooks; others may be compiled.

    Raises:
        CompiledModel (CG308): a module was given to `torch.compile`.
    """
    for path, module in _modules_on_the_way(model, blocks, layers):
        if _ORIGINAL in module._modules or module._compiled_call_impl is not None:
            raise CompiledModel(
                "hooks do nothing in compiled code: `torch.compile` fixed it before they came.",
                where=f"compiled: {path or 'the whole model'}",
                hint="Compile the model after the edit, or take it back (`module = "
                "module._orig_mod`, or `module._compiled_call_impl = None` after "
                '`module.compile()`). A finished weight patch can be applied with mode="merge".',
            )


@contextmanager
def run_wrappers_directly(model: nn.Module) -> Generator[None]:
    """Let every compiled wrapper of a model run the model itself, hooks included, until left."""
    wrappers = list(_wrappers(model))
    compiled = [wrapper.forward for wrapper in wrappers]
    try:
        with defer_interrupts():
            for wrapper in wrappers:
                wrapper.forward = model.__call__
        yield
    finally:
        with defer_interrupts():
            for wrapper, forward in zip(wrappers, compiled, strict=True):
                wrapper.forward = forward


def _wrappers(model: nn.Module) -> Iterator[Any]:
    if _EVAL_FRAME not in sys.modules:
        return
    kind = sys.modules[_EVAL_FRAME].OptimizedModule
    for one in gc.get_objects():
        if type(one) is kind and unwrap(one) is model:
            yield one


def _modules_on_the_way(
    model: nn.Module, blocks: str, layers: Iterable[int]
) -> Iterator[tuple[str, nn.Module]]:
    yield "", model
    parents = blocks.split(".")
    for length in range(1, len(parents) + 1):
        path = ".".join(parents[:length])
        yield path, model.get_submodule(path)
    for layer in dict.fromkeys(max(layer, 0) for layer in layers):
        path = f"{blocks}.{layer}"
        for name, module in model.get_submodule(path).named_modules():
            yield f"{path}.{name}".rstrip("."), module
