"""Signals, where they must not leave anything half done.

A handler can raise after any call, as that of Ctrl-C does. So no order of assignments is safe, and
code that catches the errors of a call may catch those of a handler.
"""

import _signal  # type: ignore[import-not-found]  # functions of signal take 30 times as long
import os
import sys
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Self


class Deferred:
    """A context in which handlers of signals are called when it says so, and at its end.

    Of each signal that came meanwhile the handler is called once. Handlers run in the main thread
    alone; in other threads there is nothing to defer.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._before: dict[int, Callable[..., object]] = {}
        self._came: deque[int] = deque()
        self._over = False

    def __enter__(self) -> Self:
        import threading  # not with the library

        # Not current_thread(), which would make an object for a thread that has none.
        if threading.get_ident() == threading.main_thread().ident:
            try:
                self._take_over()
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.let_in()
        finally:
            self._end()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Stand in for the handler of a signal."""
        # A signal may come before its handler is restored. A child that another thread has forked
        # never leaves this context.
        if self._over or os.getpid() != self._process:
            before = self._before[number]
            if _signal.getsignal(number) is self:
                _signal.signal(number, before)
            before(number, frame)
        elif number not in self._came:
            self._came.append(number)

    def let_in(self) -> None:
        """Call the handlers of the signals that have come; what they raise is raised."""
        if self._came:
            numbers = []
            while self._came:
                numbers.append(self._came.popleft())
            self._call(numbers)

    def _call(self, numbers: list[int]) -> None:
        """Call all of these handlers, also after one of them has raised."""
        first, *others = numbers
        try:
            self._before[first](first, sys._getframe())
        finally:
            if others:
                self._call(others)

    def _take_over(self) -> None:
        for number in range(1, _signal.NSIG):
            before = _signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                _signal.signal(number, self)

    def _end(self) -> None:
        try:
            self._over = True  # from here on, what comes is not put off any more
            self._give_back()
        except BaseException:  # of a handler that is back
            self._give_back()
            raise
        finally:
            self.let_in()

    def _give_back(self) -> None:
        for number, before in self._before.items():
            if _signal.getsignal(number) is self:
                _signal.signal(number, before)


def raised_within(error: BaseException) -> bool:
    """Whether Python code raised an error that was caught, as handlers do: not the call itself."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def whole(work: Callable[[], None]) -> None:
    """Do work with the handlers of signals delayed until it is done."""
    with Deferred():
        work()
