"""One epoch of mini-batches: its order, its position, and the iterator over its batches."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from schuss import _prefetch

_Batch = TypeVar("_Batch")


class Epoch:
    """The seed that decides the order of an epoch, and how many batches were handed out."""

    __slots__ = ("position", "seed")

    def __init__(self, seed: int | None, position: int = 0) -> None:
        self.seed, self.position = seed, position

    def counted(self, batches: Generator[_Batch, None, None]) -> Generator[_Batch, None, None]:
        """Yield the batches, and count each as it is handed out."""
        with closing(batches):
            for batch in batches:
                self.position += 1
                yield batch


class EpochIterator(Iterator[_Batch]):
    """An iterator over the batches of an epoch; a forked child continues where the fork was.

    Threads that prepare batches, or that are inside the generator, do not exist in the child. So
    each process has its own generator, which begins at the position of the epoch.
    """

    def __init__(self, begin: Callable[[], Generator[_Batch, None, None]]) -> None:
        self._begin = begin  # returns a generator of the remaining batches
        self._generators: dict[int, Any] = {_prefetch.forks: begin()}  # by process

    @property
    def under_way(self) -> bool:
        """Whether the epoch was neither finished nor closed."""
        return all(each.gi_frame is not None for each in [*self._generators.values()])

    def __next__(self) -> _Batch:
        batch: _Batch = next(self._generators.get(_prefetch.forks) or self._begin_here())
        return batch

    def close(self) -> None:
        """Leave the epoch, and discard the batches that were prepared."""
        (self._generators.get(_prefetch.forks) or self._begin_here()).close()

    def _begin_here(self) -> Any:
        """Return a generator for this process, a forked child."""
        generator = self._begin()
        if not self.under_way:
            generator.close()
        return self._generators.setdefault(_prefetch.forks, generator)
