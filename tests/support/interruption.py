"""Signals that arrive at a chosen line of the library."""

import os
import signal
import sys
from collections.abc import Callable
from inspect import CO_GENERATOR
from types import CodeType, FrameType
from typing import Any, Self

import schuss

LIBRARY = os.path.dirname(schuss.__file__)


class Interruption:
    """Sends a signal at the n-th line or return that the library executes on this thread.

    It counts while it is `armed`. It leaves out the functions of `skip`, and finalizers: Python
    drops the exceptions that a finalizer raises.
    """

    def __init__(
        self,
        n: int,
        number: signal.Signals = signal.SIGINT,
        *,
        skip: tuple[CodeType, ...] = (),
        armed: bool = True,
    ) -> None:
        self._n, self._number, self._skip = n, number, skip
        self._count = 0
        self.armed = armed

    @property
    def sent(self) -> bool:
        """Whether the signal was sent; if not, the library executed fewer lines."""
        return self._count >= self._n

    def meets(self, call: Callable[[], object]) -> bool:
        """Make the call; return whether the signal, Ctrl-C, was sent during it."""
        try:
            with self:
                call()
        except KeyboardInterrupt:
            return True
        return self.sent

    def __enter__(self) -> Self:
        # A process in the background ignores Ctrl-C.
        self._handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._tracer = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._tracer)
        signal.signal(signal.SIGINT, self._handler)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "call" and not self._covers(frame):
            return None
        if self.armed and (event == "line" or (event == "return" and not _is_generator(frame))):
            self._count += 1
            if self._count == self._n:
                signal.raise_signal(self._number)
        return self._trace

    def _covers(self, frame: FrameType) -> bool:
        code = frame.f_code
        ours = code.co_filename.startswith(LIBRARY) and code not in self._skip
        return ours and not _finalizes(frame)


def _is_generator(frame: FrameType) -> bool:
    """Whether the function may return because it is deleted: Python drops exceptions then too."""
    return bool(frame.f_code.co_flags & CO_GENERATOR)


def _finalizes(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
