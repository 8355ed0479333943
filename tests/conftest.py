"""Fixtures that several test files use."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import monotonic
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

import schuss
from support.execution import execution
from support.ranks import shared, world_size

# No deadline: how long an example takes depends on the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# On several ranks, all draw the same examples.
untimed = settings.get_profile("untimed")
settings.register_profile("ranks", untimed, derandomize=True, database=None)
settings.load_profile("untimed" if world_size() is None else "ranks")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """Return the folder of the test; on several ranks, all have that of rank 0."""
    folder: Path = shared(tmp_path)
    return folder


@pytest.fixture(params=schuss.available_simd())
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test at each SIMD level of this processor."""
    with execution(level=request.param):
        yield


@pytest.fixture(params=[None, 0], ids=["in the cache", "from memory"])
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test as if its arrays fitted the cache, and as if they did not."""
    with execution(cache=request.param):
        yield


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
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def limited_files(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which files can grow to 1 MiB."""
    resource = pytest.importorskip("resource", reason="there are no limits of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@pytest.fixture(params=["briefly", pytest.param("for minutes", marks=pytest.mark.soak)])
def rounds(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give the numbers of a few rounds; with ``-m soak``, of many.

    SCHUSS_SOAK_SECONDS, by default 60, is how long they last then.
    """

    def numbers() -> Iterator[int]:
        soak = request.param == "for minutes"
        end = monotonic() + float(os.environ.get("SCHUSS_SOAK_SECONDS", "60"))
        for number in count():
            if monotonic() > end if soak else number == 3:
                return
            yield number

    return numbers()


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
