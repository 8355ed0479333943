"""Which part of each mini-batch a process has, where several share the batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._hyperparameters import count


@dataclass(frozen=True)
class Part:
    """The share of one of several ranks: contiguous, the shares' sizes differ by at most one.

    The shares are those of `numpy.array_split`.
    """

    rank: int = 0
    ranks: int = 1

    def size(self, examples: int) -> int:
        """Return the number of examples in the share of a batch."""
        return examples // self.ranks + (self.rank < examples % self.ranks)

    def sizes(self, examples: int) -> list[int]:
        """Return the number of examples in the share of each rank."""
        return [Part(rank, self.ranks).size(examples) for rank in range(self.ranks)]

    def within(self, begin: int, end: int) -> tuple[int, int]:
        """Return where the share of the batch that is ``[begin, end)`` begins and ends."""
        least, more = divmod(end - begin, self.ranks)
        begin += self.rank * least + min(self.rank, more)
        return begin, begin + least + (self.rank < more)

    def of(self, order: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """Return the share of batches of `size` examples, the last of which may be smaller."""
        if self.ranks == 1:
            return order
        full = len(order) // size * size
        begin, end = self.within(0, size)
        last_begin, last_end = self.within(full, len(order))
        shares = order[:full].reshape(-1, size)[:, begin:end]
        return np.concatenate((shares.ravel(), order[last_begin:last_end]))


def parse_part(call: str, name: str, value: Any) -> Part:
    """Return the part that a pair ``(rank, ranks)`` means, or raise TypeError or ValueError."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        of_length = f" of length {len(value)}" if isinstance(value, tuple | list) else ""
        raise TypeError(
            f"{call}: {name} is a {type(value).__name__}{of_length}, expected a pair (rank, ranks)"
        )
    ranks = count(call, f"{name}[1]", value[1], least=1)
    rank = count(call, f"{name}[0]", value[0], least=0)
    if rank >= ranks:
        raise ValueError(
            f"{call}: {name} is {(rank, ranks)}, expected a rank below the number of ranks "
            "(ranks are counted from 0)"
        )
    return Part(rank, ranks)
