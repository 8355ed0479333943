"""Deferred signals, for code that a signal handler must not interrupt.

A signal handler, such as that of Ctrl-C, may raise between any two calls. So no order of
assignments is safe, and code that catches the errors of a call may catch those of a handler.
"""

import _signal  # type: ignore[import-not-found]  # the functions of signal are 30 times slower
import os
import sys
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Self


class Deferred:
    """A context that defers signal handlers until `run_handlers` or the end of the context.

    The handler of each signal that arrived in between is called once. Handlers run only in the main
    thread; in other threads there is nothing to defer.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._before: dict[int, Callable[..., object]] = {}
        self._pending: deque[int] = deque()
        self._over = False

    def __enter__(self) -> Self:
        import threading  # slow to import

        # Unlike these, current_thread() would make an object for a thread that has none.
        if threading.get_ident() == threading.main_thread().ident:
            try:
                self._install()
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run_handlers()
        finally:
            self._end()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Defer a signal: this object is installed in place of the handler."""
        # A signal may arrive before its handler is restored. And a child that another thread forked
        # never leaves this context.
        if self._over or os.getpid() != self._process:
            before = self._before[number]
            if _signal.getsignal(number) is self:
                _signal.signal(number, before)
            before(number, frame)
        elif number not in self._pending:
            self._pending.append(number)

    def is_pending(self, number: int) -> bool:
        """Return whether a signal has arrived whose handler was not called yet."""
        return number in self._pending

    def run_handlers(self) -> None:
        """Call the handlers of the signals that have arrived; their errors are raised."""
        numbers = []
        while self._pending:
            numbers.append(self._pending.popleft())
        if numbers:
            self._call(numbers)

    def _call(self, numbers: list[int]) -> None:
        """Call all of these handlers, even if one of them raises."""
        first, *others = numbers
        try:
            self._before[first](first, sys._getframe())
        finally:
            if others:
                self._call(others)

    def _install(self) -> None:
        for number in range(1, _signal.NSIG):
            before = _signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                _signal.signal(number, self)

    def _end(self) -> None:
        try:
            self._over = True  # from now on, signals are not deferred
            self._restore()
        except BaseException:  # raised by a handler that is restored
            self._restore()
            raise
        finally:
            self.run_handlers()

    def _restore(self) -> None:
        for number, before in self._before.items():
            if _signal.getsignal(number) is self:
                _signal.signal(number, before)


class DeferredOnce(Deferred):
    """A context that defers the first signal of each number; the second one is not deferred."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Defer a signal, or call the handlers of those that were deferred."""
        is_second = self.is_pending(number)
        super().__call__(number, frame)
        if is_second:
            self.run_handlers()


def raised_within(error: BaseException) -> bool:
    """Return whether Python code, such as a handler, raised an error, not the extension itself."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def defer_signals(work: Callable[[], None]) -> None:
    """Call `work`, and defer signal handlers until it returns."""
    with Deferred():
        work()
