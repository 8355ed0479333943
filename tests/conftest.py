"""What tests of several promises run within."""

import signal
from collections.abc import Callable, Iterator

import pytest

from schuss import _core


@pytest.fixture
def share_all() -> Iterator[None]:
    """Share steps of any size, a few elements at a time."""
    tile, least = _core.set_tile_elements(64), _core.set_worth_sharing(0)
    yield
    _core.set_tile_elements(tile)
    _core.set_worth_sharing(least)


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], object]]:
    """Return what presses Ctrl-C in so many seconds; in 0, never."""
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
