"""What tests of several promises run within."""

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

import schuss
from schuss import _core

pytest.register_assert_rewrite("support")

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def share_all() -> Iterator[None]:
    """Share steps of any size, a few elements at a time."""
    tile, least = _core.set_tile_elements(64), _core.set_parallel_threshold(0)
    yield
    _core.set_tile_elements(tile)
    _core.set_parallel_threshold(least)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what is saved to the system's cache: where many are, a slow disk takes half an hour."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None, raising=False)


@pytest.fixture
def interrupt() -> Iterator[Callable[..., object]]:
    """Return what presses Ctrl-C in so many seconds, and after pauses of others; in 0, never.

    It, or another signal, is heard by the library alone: a test that is interrupted tells nothing.
    """
    library = os.path.dirname(schuss.__file__)
    left: list[float] = []
    sent = [signal.SIGINT]

    def press(seconds: float, *pauses: float, number: signal.Signals = signal.SIGINT) -> None:
        left[:], sent[:] = pauses, [number]
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def ring(_: int, frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(library):
            frame = frame.f_back
        if frame is not None:
            if left:
                press(*left, number=sent[0])
            signal.raise_signal(sent[0])

    handlers = {
        signal.SIGINT: signal.default_int_handler,  # which a process in the background has not
        signal.SIGALRM: ring,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    yield press
    press(0)
    for number, handler in before.items():
        signal.signal(number, handler)
