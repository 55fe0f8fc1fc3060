"""Sections of code that an interrupt from the keyboard does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def defer_interrupts() -> Generator[None]:
    """Hold back SIGINT until left, then handle it.

    Python delivers signals to the main thread only, so elsewhere there is nothing to hold back;
    nor where the program ignores SIGINT or leaves it to the system.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[object, ...]] = []
    signal.signal(signal.SIGINT, lambda *signal_and_frame: received.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])  # type: ignore[arg-type]  # what Python passes to a handler
