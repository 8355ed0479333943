"""Ctrl-C, where it must not leave anything half done."""

import signal
from collections.abc import Callable
from typing import Any


def whole(work: Callable[[], None]) -> None:
    """Do work; what Ctrl-C does meanwhile is done at its end.

    Ctrl-C lands after any call, so no order of assignments is safe from it.
    """
    handler = signal.getsignal(signal.SIGINT)
    pressed: list[tuple[Any, ...]] = []
    if callable(handler):
        try:
            signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
        except ValueError:  # in another thread than the main one, where Ctrl-C does not land
            handler = None
    try:
        work()
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            for arguments in pressed[:1]:
                handler(*arguments)
