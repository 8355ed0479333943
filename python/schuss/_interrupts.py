"""Signals, where they must not leave anything half done.

What a handler raises, as that of Ctrl-C does, lands after any call, so no order of assignments is
safe from it.
"""

import signal
from collections.abc import Callable
from contextlib import suppress


def to_its_end(work: Callable[[], None]) -> None:
    """Do work that can be done twice: it is, if a signal raises, and that is raised then."""
    try:
        work()
    except BaseException:
        with suppress(BaseException):  # what else was wrong with it still is
            work()
        raise


def whole(work: Callable[[], None]) -> None:
    """Do work that takes long, as `to_its_end` does; Ctrl-C is put off, so it can come often."""
    import threading  # not with the library

    before = signal.getsignal(signal.SIGINT)
    pressed: list[None] = []

    def hold(*_: object) -> None:
        pressed.append(None)

    def release() -> None:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, before)

    try:
        # No other thread has handlers called, nor may it set them.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, hold)
        to_its_end(work)
    finally:
        to_its_end(release)
        for _ in pressed:
            signal.raise_signal(signal.SIGINT)
