"""Starts the ranks, times the contenders in turn, and estimates a step on many machines."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.harness import Record, Settings, interleave, line, tracked
from benchmarks.mpi.paper import (
    ADAM_BYTES,
    MACHINES,
    MODELS,
    NETWORKS,
    Cluster,
    Network,
    bytes_of_all_reduced,
    bytes_of_sharded,
)
from benchmarks.mpi.torch_ways import TORCH_WAYS, ZERO
from benchmarks.mpi.ways import ALL_REDUCE, FULL_STEP, IN_BFLOAT16, OURS, PARTS, WAYS
from benchmarks.peers.packages import installed
from benchmarks.processes import Process

SIZES = {2: 67_108_864, 4: 16_777_216}
"""Parameters by the number of ranks, which share one machine."""
ALL_WAYS = (*WAYS, *TORCH_WAYS, *PARTS)


def launcher() -> list[str]:
    """Return the command that starts MPI programs; the number of ranks follows.

    It is MPIEXEC, or the mpiexec beside Python or on the PATH.
    """
    if command := shlex.split(os.environ.get("MPIEXEC", "")):
        return command
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        return []
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return [found, *["--oversubscribe"] * ("Open MPI" in version.stdout)]  # it counts cores


def present() -> bool:
    """Whether MPI programs can be started here."""
    return installed("mpi4py") and bool(launcher())


def ranks(count: int) -> Process:
    """Start this many ranks, which answer calls of `Conductor.all`."""
    python = [sys.executable, "-m", "mpi4py"]  # ends all ranks if one fails
    command = [*launcher(), "-n", f"{count}", *python]
    return Process("benchmarks.mpi.rank", "mpi", command)


def mpi(settings: Settings) -> list[Record]:
    """One step of 2 and of 4 ranks on one machine, and of many machines on paper: Adam, float32."""
    if not present():
        print("mpi stays out: it needs mpi4py, and mpiexec beside Python or on the PATH")
        return []
    records: list[Record] = []
    networks: list[dict[str, float]] = []
    cases = [(count, size) for count in SIZES for size in settings.sizes or [SIZES[count]]]
    for count, size in tracked("mpi", cases):
        with ranks(count) as job:
            records += measured(job, count, size, settings)
            networks.append(job.call("all", "network")[0])
    return records + on_paper(records, networks[0])


def measured(job: Process, count: int, size: int, settings: Settings) -> list[Record]:
    """Return the figures of the contenders that are present."""
    ways = {way.name: way for way in ALL_WAYS if way.present()}
    job.call("all", "pose", size)
    sizes = {name: _greatest(job.call("all", "prepare", name)) for name in ways}

    def seconds_of(name: str) -> float:
        seconds: list[float] = job.call("all", "measure", name)
        return max(seconds)

    times = interleave({name: partial(seconds_of, name) for name in ways}, settings.rounds)
    rivals = [name for name in (ALL_REDUCE.name, ZERO.name, OURS.name) if name in ways]
    records = []
    for name, way in ways.items():
        record = line({"ranks": count, "size": size}, name, times, "milliseconds", rivals)
        if not way.part:
            state = sizes[name]["state"]
            record["state_megabytes"] = state / 1e6
            record["state_share"] = state / sizes[ALL_REDUCE.name]["state"]
            if "peak" in sizes[name]:
                record["peak_megabytes"] = sizes[name]["peak"] / 1e6
        records.append(record)
    return records


def _greatest(of_ranks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {what: max(each[what] for each in of_ranks) for what in of_ranks[0]}


def on_paper(records: Sequence[Record], network: Mapping[str, float]) -> list[Record]:
    """Return the figures of the model, from the bytes a second of the first full step.

    The first case is the measured one. Its ranks share the memory's bytes a second.
    """
    full = next(record for record in records if record["contender"] == FULL_STEP.name)
    count, size = full["case"]["ranks"], full["case"]["size"]
    speed = count * ADAM_BYTES * size / (full["milliseconds"] / 1e3)
    here = Network("this machine", **network)
    clusters = [(f"{size:,}", size, Cluster(count, here, speed / count))] + [
        (name, params, Cluster(machines, network, speed))
        for (name, params), machines, network in product(MODELS.items(), MACHINES, NETWORKS)
    ]
    return [
        record for name, params, cluster in clusters for record in _estimates(name, params, cluster)
    ]


def _estimates(name: str, params: float, cluster: Cluster) -> Iterator[Record]:
    case = {"parameters": name, "machines": cluster.machines, "network": cluster.network.name}
    whole, part = (
        {"gigabytes": bytes_of_all_reduced(params) / 1e9},
        {
            "gigabytes": bytes_of_sharded(params, cluster.machines) / 1e9,
            "gigabytes_8bit": bytes_of_sharded(params, cluster.machines, "8-bit") / 1e9,
        },
    )
    reduced = cluster.all_reduced(params)
    for way, seconds, memory in (
        (ALL_REDUCE, reduced, whole),
        (OURS, cluster.sharded(params), part),
        (IN_BFLOAT16, cluster.sharded(params, grad=2), {}),  # the memory of OURS
    ):
        milliseconds = 1e3 * seconds
        yield {
            "case": case,
            "contender": way.name,
            "milliseconds": milliseconds,
            "quartiles": [milliseconds, milliseconds],
            "times": {ALL_REDUCE.name: seconds / reduced},
            **memory,
        }
