"""Tasks that peers do: each is checked, then timed in turn with the others."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import schuss
from benchmarks.harness import Record, Rounds, Stopwatch, interleave, line, repeated

Work: TypeAlias = Callable[[], Any]


class Task(Protocol):
    """A repeatable piece of work."""

    def check(self, name: str, work: Work) -> None:
        """Raise WrongResultError if the work is not what the task asks for."""

    def timed(self, work: Work) -> Work:
        """Return the function to time: the whole work and nothing else."""


_Task = TypeVar("_Task", bound=Task)


@dataclass(frozen=True)
class Peer(Generic[_Task]):
    """An implementation of a task, available if its package is installed."""

    name: str
    prepare: Callable[[_Task], Work]
    package: str = "schuss"
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    """A context to run in: a number of threads."""

    def check(self, task: _Task) -> None:
        with self.setting():
            task.check(self.name, self.prepare(task))

    def stopwatch(self, task: _Task) -> Stopwatch:
        with self.setting():
            run = repeated(task.timed(self.prepare(task)))
        return Stopwatch(run, self.setting)


def one_thread(name: str, prepare: Callable[[_Task], Work]) -> Peer[_Task]:
    """Return a peer that is schuss with one thread."""
    return Peer(f"{name}, 1 thread", prepare, setting=partial(schuss.threads, 1))


def contend(
    labels: Mapping[str, object],
    pose: Callable[[int], _Task],
    sizes: tuple[int, int],
    peers: Sequence[Peer[_Task]],
    yardsticks: Sequence[Peer[_Task]],
    rounds: Rounds,
    unit: str = "milliseconds",
) -> list[Record]:
    """Check the installed peers on the first size, time all on the second, return the figures.

    Ratios are to the first peer and to the yardsticks.
    """
    entrants = [peer for peer in peers if find_spec(peer.package)]
    for peer in entrants:
        peer.check(pose(sizes[0]))
    task = pose(sizes[1])
    stopwatches = {peer.name: peer.stopwatch(task) for peer in (*yardsticks, *entrants)}
    times = interleave(stopwatches, rounds)
    rivals = [entrants[0].name, *(yardstick.name for yardstick in yardsticks)]
    return [line(labels, name, times, unit, rivals) for name in times]
