"""Saving and loading a training, and plain disk transfers of the same bytes."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np

import schuss
from benchmarks.harness import (
    Array,
    Record,
    Settings,
    Times,
    check_values,
    interleave,
    line,
    ordinary,
    tracked,
)
from benchmarks.processes import Process, serve, team

SIZES = (89_478_485,)
"""Of the parameters: with Adam's moments, 1 GiB."""
PIECE = 1 << 23
PLAIN = "plain write and read"
WORKS = ("save", "load, from disk", "load, cached")


@dataclass
class Training:
    """Parameters with Adam's moments, and the path of their file."""

    size: int
    path: Path
    optimizer: schuss.Adam = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = schuss.Adam(ordinary(self.size))
        self.optimizer.step(ordinary(self.size))

    @property
    def arrays(self) -> dict[str, Array]:
        """The saved arrays."""
        return {"params": self.optimizer.params, **self.optimizer.state}


def synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


# Each saves, syncs to the disk, and loads into existing arrays.


def plain_save(training: Training) -> None:
    with open(training.path, "wb", buffering=0) as file:
        for array in training.arrays.values():
            data = array.view(np.uint8).data
            for start in range(0, len(data), PIECE):
                file.write(data[start : start + PIECE])
    synced(training.path)


def plain_load(training: Training) -> None:
    with open(training.path, "rb", buffering=0) as file:
        for array in training.arrays.values():
            data = array.view(np.uint8).data
            for start in range(0, len(data), PIECE):
                file.readinto(data[start : start + PIECE])


def schuss_save(training: Training) -> None:
    schuss.save(training.path, training.optimizer.params, training.optimizer)


def schuss_load(training: Training) -> None:
    schuss.load(training.path, training.optimizer.params, training.optimizer)


def safetensors_save(training: Training) -> None:
    import_module("safetensors.numpy").save_file(training.arrays, training.path)
    synced(training.path)


def safetensors_load(training: Training) -> None:
    with import_module("safetensors").safe_open(training.path, "numpy") as file:
        for name, array in training.arrays.items():
            np.copyto(array, file.get_tensor(name))


def torch_save(training: Training) -> None:
    torch = import_module("torch")
    torch.save({n: torch.from_numpy(a) for n, a in training.arrays.items()}, training.path)
    synced(training.path)


def torch_load(training: Training) -> None:
    loaded = import_module("torch").load(training.path, mmap=True)
    for name, array in training.arrays.items():
        np.copyto(array, loaded[name].numpy())


def numpy_save(training: Training) -> None:
    with open(training.path, "wb") as file:
        np.savez(file, **training.arrays)  # type: ignore[arg-type]  # no one is allow_pickle
    synced(training.path)


def numpy_load(training: Training) -> None:
    with np.load(training.path) as file:
        for name, array in training.arrays.items():
            np.copyto(array, file[name])


@dataclass(frozen=True)
class Saver:
    """An implementation of saving and loading a training."""

    save: Callable[[Training], None]
    load: Callable[[Training], None]
    package: str = "numpy"


SAVERS: Mapping[str, Saver] = {
    PLAIN: Saver(plain_save, plain_load),
    "schuss": Saver(schuss_save, schuss_load),
    "safetensors": Saver(safetensors_save, safetensors_load, "safetensors"),
    "torch.save": Saver(torch_save, torch_load, "torch"),
    "numpy.savez": Saver(numpy_save, numpy_load),
}


class Worker:
    """Runs in the process of a contender."""

    def __init__(self, name: str) -> None:
        self._name, self._saver = name, SAVERS[name]
        self.folder = tempfile.TemporaryDirectory()

    def pose(self, size: int) -> None:
        """Prepare a training of this size, and check that it is saved and loaded right."""
        small = Training(min(size, 100_003), Path(self.folder.name) / "small")
        kept = {name: array.copy() for name, array in small.arrays.items()}
        self._saver.save(small)
        for array in small.arrays.values():
            array[...] = 0
        self._saver.load(small)
        for name, array in small.arrays.items():
            check_values(f"{self._name}: {name}", array, kept[name], exact=True)
        self._training = Training(size, Path(self.folder.name) / "training")
        self._saver.save(self._training)

    def measure(self, work: str) -> float:
        """Return the seconds that it takes."""
        if work == "load, from disk":
            drop_from_cache(self._training.path)
        start = perf_counter()
        (self._saver.save if work == "save" else self._saver.load)(self._training)
        return perf_counter() - start

    def peak(self, work: str) -> float:
        """Return the peak growth of the memory in use, in MB."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = memory("VmRSS")
        self.measure(work)
        return (memory("VmHWM") - before) / 1e6


def drop_from_cache(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(name: str) -> int:
    """Return bytes of this process's memory, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def checkpoints(settings: Settings) -> list[Record]:
    """Adam's parameters and moments in float32, to a file that is on the disk in the end."""
    names = [name for name, saver in SAVERS.items() if find_spec(saver.package)]
    records = []
    with team("benchmarks.checkpoints", names) as processes:
        for size in tracked("checkpoints", settings.sizes or SIZES):
            for process in processes.values():
                process.call("pose", size)
            for work in WORKS:
                measures = {n: partial(processes[n].call, "measure", work) for n in names}
                times = interleave(measures, settings.rounds)
                records += [figures_of(size, work, name, times, processes[name]) for name in names]
    return records


def figures_of(size: int, work: str, name: str, times: Times, process: Process) -> Record:
    record = line({"work": work, "size": size}, name, times, "milliseconds", [PLAIN])
    record["gigabytes_per_second"] = 12 * size / float(np.median(times[name])) / 1e9
    if Path("/proc/self/clear_refs").exists():
        record["peak_megabytes"] = process.call("peak", work)
    return record


if __name__ == "__main__":
    serve(Worker)
