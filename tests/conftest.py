"""Fixtures that several test files use."""

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

import schuss
from support.execution import execution

# No deadline: how long an example takes depends on the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def share_all() -> Iterator[None]:
    """Share the work of any step among threads, in small tiles."""
    with execution(tile=64, threshold=0):
        yield


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: on a slow one, many saves would take half an hour."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None, raising=False)


@pytest.fixture
def interrupt() -> Iterator[Callable[..., object]]:
    """Return a function that presses Ctrl-C in some seconds, and again after pauses.

    Zero seconds mean never. The signal, SIGINT or another, is raised only within the library's
    code, so that it does not interrupt the test itself.
    """
    library = os.path.dirname(schuss.__file__)
    remaining: list[float] = []
    number_to_raise = [signal.SIGINT]

    def press(seconds: float, *pauses: float, number: signal.Signals = signal.SIGINT) -> None:
        remaining[:], number_to_raise[:] = pauses, [number]
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def ring(_: int, frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(library):
            frame = frame.f_back
        if frame is not None:
            if remaining:
                press(*remaining, number=number_to_raise[0])
            signal.raise_signal(number_to_raise[0])

    handlers = {
        signal.SIGINT: signal.default_int_handler,  # a background process has none
        signal.SIGALRM: ring,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    yield press
    press(0)
    for number, handler in before.items():
        signal.signal(number, handler)
