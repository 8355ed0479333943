"""A step of parameters and state in files, a step in memory, and plain disk transfers."""

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter

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

SIZES = (67_108_864,)
"""Of the parameters: with Adam's moments, 768 MiB."""
CHECK_SIZE, CHECK_STEPS = 100_003, 3
BYTES = 7 * 4
"""Bytes per element: parameter, moments and gradient are read; all but the gradient are written."""
PIECE = 1 << 23
IN_MEMORY, PLAIN = "in memory", "plain read and write"


class Training:
    """Parameters and Adam's moments, in memory or in files, and gradients in memory."""

    def __init__(self, size: int, folder: Path | None) -> None:
        self.paths = [] if folder is None else [folder / name for name in ("param", "m", "v")]
        self.arrays: list[Array] = [
            np.memmap(path, np.float32, "w+", shape=(size,)) for path in self.paths
        ] or [np.zeros(size, np.float32) for _ in range(3)]
        for array in self.arrays:
            array[...] = 0  # allocates it, on the disk or in memory
        self.grad, self.steps = ordinary(size), 0
        self.leave_cache()

    def step(self) -> None:
        self.steps += 1
        param, m, v = self.arrays
        schuss.kernels.adam(param, self.grad, m, v, step=self.steps)

    def flush(self) -> None:
        for array in self.arrays:
            if isinstance(array, np.memmap):
                array.flush()

    def leave_cache(self) -> None:
        """Sync to the disk and drop the cached pages, as if memory were short."""
        self.flush()
        for array, path in zip(self.arrays, self.paths, strict=False):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def step(training: Training) -> None:
    """Take a step with pages that stay in memory."""
    training.step()


def step_on_disk(training: Training) -> None:
    """Take a step with pages that come from the disk and go back to it."""
    training.step()
    training.flush()


def plain(training: Training) -> None:
    """Read and write the files."""
    piece = memoryview(bytearray(PIECE))
    for path in training.paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    for path in training.paths:
        left = path.stat().st_size
        with open(path, "r+b", buffering=0) as file:
            while left:  # the last piece read, of second moments: these must stay positive
                left -= file.write(piece[:left])
            os.fsync(file.fileno())


WORKS: Mapping[str, tuple[Callable[[Training], None], bool]] = {
    PLAIN: (plain, True),
    IN_MEMORY: (step, False),
    "mapped, cached": (step, False),
    "mapped, from disk and back": (step_on_disk, True),
}
"""The work that is timed, and whether it begins with an empty cache."""


def check_bits(folder: Path, size: int) -> None:
    """Raise WrongResultError unless the files hold what the reference computes."""
    training = Training(size, folder)
    references = [np.zeros(size, np.float32) for _ in range(3)]
    for t in range(1, CHECK_STEPS + 1):
        step_on_disk(training)
        training.leave_cache()
        schuss.reference.adam(references[0], training.grad, *references[1:], step=t)
    for path, expected in zip(training.paths, references, strict=True):
        check_values(path.name, np.fromfile(path, np.float32), expected, exact=True)


def seconds_of(work: str, training: Training) -> float:
    run, begins_on_disk = WORKS[work]
    if begins_on_disk:
        training.leave_cache()
    elif work != IN_MEMORY:
        training.step()  # fills the cache
    start = perf_counter()
    run(training)
    return perf_counter() - start


def mapped(settings: Settings) -> list[Record]:
    """A step of parameters and moments in files: Adam, float32."""
    if not hasattr(os, "posix_fadvise"):
        raise SystemExit("mapped: files cannot be dropped from the cache here")
    records = []
    with tempfile.TemporaryDirectory() as name:
        for size in tracked("mapped", settings.sizes or SIZES):
            check_bits(Path(name), min(size, CHECK_SIZE))
            there, here = Training(size, Path(name)), Training(size, None)
            measures = {
                work: partial(seconds_of, work, here if work == IN_MEMORY else there)
                for work in WORKS
            }
            times = interleave(measures, settings.rounds)
            for work, seconds in times.items():
                record = line({"size": size}, work, times, "milliseconds", [IN_MEMORY, PLAIN])
                moved = BYTES - 4 * (work == PLAIN)
                record["gigabytes_per_second"] = moved * size / float(np.median(seconds)) / 1e9
                records.append(record)
    return records
