"""Functions that work the same whether or not the caller is in `torch.inference_mode`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def leave_inference_mode(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a function outside of the caller's inference mode, in which nothing can be trained.

    Tensors made in inference mode never take part in a gradient, not even afterwards; so neither
    what is learned nor a model that is loaded may be made there.

    Example:
        >>> with torch.inference_mode():
        ...     leave_inference_mode(torch.is_inference_mode_enabled)()
        False
    """

    @wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*args, **options)
        with torch.inference_mode(False):
            return function(*args, **options)

    return call
