"""Hooks of one model that its copies do not take over."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from corrigenda.lm.interrupts import defer_interrupts

_TABLES = ("_forward_pre_hooks", "_forward_hooks")


class ModelHook:
    """A hook on a module; copies and pickles of the module hold one that does nothing.

    What is active on a model is not active on its copy, where nothing could take it off.
    """

    def __init__(self, hook: Callable[..., object]) -> None:
        """Wrap the function that is called."""
        self._hook = hook

    def __call__(self, *args: object) -> object:
        """Call the function."""
        return self._hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return do_nothing

    def __reduce__(self) -> tuple[object, ...]:
        return _no_hook, ()


@contextmanager
def place_hooks(place: Callable[[ExitStack], None]) -> Generator[None]:
    """Place hooks, and remove all of them when left, wherever an interrupt comes.

    A generator, so that even where an interrupt comes before its end is entered, the end runs as
    soon as it is collected.

    Args:
        place: Places the hooks, and puts on the stack how each is removed.
    """
    stack = ExitStack()
    try:
        with defer_interrupts():
            place(stack)
        yield
    finally:
        try:
            with defer_interrupts():
                stack.close()
        except BaseException:
            # Once closed, a stack is empty.
            with defer_interrupts():
                stack.close()
            raise


def do_nothing(*_: object) -> None:
    """Leave a pass as it is."""


def _no_hook() -> Callable[..., None]:
    return do_nothing


def drop_copied_hooks(model: nn.Module) -> None:
    """Remove what copying left of the original's hooks."""
    for module in model.modules():
        for table in _TABLES:
            hooks: dict[int, object] = getattr(module, table)
            for number in [number for number, hook in hooks.items() if hook is do_nothing]:
                del hooks[number]
