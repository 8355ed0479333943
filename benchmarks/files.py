"""A step with state in files, in mapped files and in memory, and plain transfers of the state."""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import schuss
from benchmarks.harness import (
    Array,
    Record,
    Settings,
    check_values,
    interleave,
    line,
    ordinary,
    tracked,
)
from schuss.mpi import Sharded

SIZES = (67_108_864,)
"""Of the parameters: Adam's moments take 512 MiB in float32, 132 MiB in 8 bits."""
CHECK_SIZE, CHECK_STEPS = 1_200_001, 3
PIECE, HUGE_PAGE = 1 << 22, 1 << 21
IN_MEMORY, DIRECT, MAPPED, STATE_IN = (
    "in memory",
    "direct read and write",
    "mapped, from disk and back",
    "schuss, state_in",
)
CONTENDERS = {
    "float32": (DIRECT, IN_MEMORY, MAPPED, STATE_IN),
    "8bit": (DIRECT, IN_MEMORY, STATE_IN),
}
"""By the format of the state."""

Work = Callable[[], float]
"""Returns the seconds that it took."""


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


class Direct:
    """The disk's own speed: it reads a file and writes it again, past the page cache."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = -(-size // PIECE) * PIECE
        path = folder / "direct"
        with open(path, "wb", buffering=0) as file:
            for _ in range(0, self.size, PIECE):
                file.write(bytes(PIECE))
            os.fsync(file.fileno())
        self.descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        # Huge pages, from and to which a disk transfers fastest.
        space = mmap.mmap(-1, PIECE + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        space.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(space, np.uint8)
        self.piece = memory[-memory.ctypes.data % HUGE_PAGE :][:PIECE].data

    def __call__(self) -> None:
        for move in (os.preadv, os.pwritev):
            for offset in range(0, self.size, PIECE):
                assert move(self.descriptor, [self.piece], offset) == PIECE


class Mapped:
    """Parameters in memory, and moments in mapped files, whose pages the step leaves uncached."""

    def __init__(self, folder: Path, params: Array) -> None:
        self.params, self.steps = params, 0
        self.paths = [folder / name for name in ("m", "v")]
        self.states: list[Any] = [
            np.memmap(path, np.float32, "w+", shape=params.shape) for path in self.paths
        ]
        for state in self.states:
            state[...] = 0  # allocates it on the disk

    def step(self, grad: Array) -> None:
        self.steps += 1
        schuss.kernels.adam(self.params, grad, *self.states, step=self.steps)
        for state in self.states:
            state.flush()

    def leave_cache(self) -> None:
        """Drop the cached pages, as if memory were short."""
        for state, path in zip(self.states, self.paths, strict=True):
            state.flush()
            state._mmap.madvise(mmap.MADV_DONTNEED)
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def options_of(state: str) -> dict[str, Any]:
    return {} if state == "float32" else {"state_dtype": state}


def works(folder: Path, state: str, size: int) -> Iterator[tuple[str, Work]]:
    """Yield the contenders and what is timed of each."""
    grad, options = ordinary(size), options_of(state)
    in_memory = schuss.Adam(np.zeros(size, np.float32), **options)
    yield DIRECT, partial(timed, Direct(folder, in_memory.state_bytes))
    yield IN_MEMORY, partial(timed, partial(in_memory.step, grad))
    if state == "float32":
        mapped = Mapped(folder, np.zeros(size, np.float32))

        def from_disk() -> float:
            mapped.leave_cache()
            return timed(partial(mapped.step, grad))

        yield MAPPED, from_disk
    in_files: Any = Sharded(schuss.Adam, np.zeros(size, np.float32), state_in=folder, **options)
    yield STATE_IN, partial(timed, partial(in_files.step, grad))


def check_bits(folder: Path, state: str, size: int) -> None:
    """Raise WrongResultError unless steps with state in files are those of the reference."""
    grad, options = ordinary(size), options_of(state)
    optimizer: Any = Sharded(schuss.Adam, np.zeros(size, np.float32), state_in=folder, **options)
    reference = schuss.reference.Optimizer("adam", np.zeros(size, np.float32), lr=1e-3, **options)
    for _ in range(CHECK_STEPS):
        optimizer.step(grad)
        reference.step(grad)
    check_values(STATE_IN, optimizer.params, reference.params, exact=True)


def files(settings: Settings) -> list[Record]:
    """A step with state in files: Adam, parameters in float32."""
    if not hasattr(os, "O_DIRECT"):
        raise SystemExit("files: the disk can only be read through the page cache here")
    records = []
    for state, size in tracked("files", [*product(CONTENDERS, settings.sizes or SIZES)]):
        with tempfile.TemporaryDirectory() as name:
            check_bits(Path(name), state, min(size, CHECK_SIZE))
            times = interleave(dict(works(Path(name), state, size)), settings.rounds)
        records += [
            line({"state": state, "size": size}, work, times, "milliseconds", [IN_MEMORY, DIRECT])
            for work in times
        ]
    return records
