"""Who shares a training: the ranks of a sharded optimizer, or one process alone.

An error in the user's code on one rank is raised on all: it meets the next vote of the others. What
decides the course of the training (costs, validations, whether a function stops it) is made the
same on all ranks, so that they make the same calls in the same order.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from schuss._arrays import Array
from schuss._internals import internals_of
from schuss._interrupts import DeferredOnce
from schuss._parts import Part
from schuss.batches import MiniBatches, epoch_of, minibatches, slicing_of
from schuss.optimizers import Optimizer

if TYPE_CHECKING:
    from schuss.mpi._shards import Shards


Joined: TypeAlias = tuple[float, int | None, int | None, float]
"""A mini-batch of all ranks together.

The mean of the costs, each with the number of its rank's examples; the number of all examples, None
if the mini-batch has no array; the weight of this rank, its number of examples, None if all ranks
have the same number; and this weight over the mean weight.
"""


Sized: TypeAlias = tuple[Any, int]
"""A mini-batch, and its number of examples."""


class OneProcess:
    """A training of one process."""

    part = Part()

    @property
    def is_first(self) -> bool:
        """Whether this process shows the progress."""
        return self.part.rank == 0

    def deferring_signals(self) -> AbstractContextManager[None]:
        """Return a context for the training, in which signals wait for a vote."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """Return a context whose error on one rank is raised on all."""
        return nullcontext()

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raise ValueError if a fact is not the same on all ranks."""

    def part_of(self, name: str, batches: MiniBatches[Any]) -> Part:
        """Return which part of mini-batches this process takes."""
        return slicing_of(batches).part

    def equalize(self, batches: MiniBatches[Any]) -> None:
        """Let mini-batches go on as those of the first rank."""

    def joined(self, cost: float, examples: int | None) -> Joined:
        """Return the mini-batch of which the ranks have a part each, or none of which has one."""
        return cost, examples, None, 1.0

    def end_epoch(self) -> None:
        """Raise ValueError if other ranks have more mini-batches."""

    def any(self, answer: bool) -> bool:
        """Return whether the answer of a rank is true."""
        return answer

    def mean(self, value: float, weight: int = 1) -> float:
        """Return the weighted mean of a value over the ranks."""
        return value

    def share_of(self, examples: tuple[Any, ...], axis: int) -> tuple[int, tuple[Any, ...]]:
        """Return this process's share of arrays of examples, after its weight."""
        return 1, examples

    def dealt(self, batches: Iterable[Any], size: Callable[[Any], int]) -> Iterator[Sized]:
        """Yield this process's share of whole mini-batches, each with its size."""
        return ((batch, size(batch)) for batch in batches)

    def collected(self, rows: Array) -> Array:
        """Return rows for each mini-batch that was dealt, in the order of the mini-batches."""
        return rows

    def slowest(self, seconds: Array) -> Array:
        """Return the times of the slowest rank."""
        return seconds

    def whole(self, masters: list[Array]) -> list[Array]:
        """Return the masters of whole parameters, given those of this process."""
        return masters

    def own(self, masters: list[Array]) -> list[Array]:
        """Return the masters of this process, given those of whole parameters."""
        return masters


class ManyRanks(OneProcess):
    """A training of the ranks of a sharded optimizer."""

    def __init__(self, shards: "Shards", masters: Sequence[Array | None]) -> None:
        from schuss.mpi._agreement import check_same  # it is imported already

        if shards.reduction == "sum":
            raise ValueError(
                "fit: optimizer has reduction 'sum', expected 'mean', as the loss is the mean over "
                "the examples of each rank"
            )
        self._ranks, self._raise_different = shards.ranks, check_same
        self.part = Part(self._ranks.rank, self._ranks.size)
        self._shards, self._have_masters = shards, [master is not None for master in masters]
        self._signals = DeferredOnce()
        self._interrupted = False

    @contextmanager
    def deferring_signals(self) -> Iterator[None]:
        """Return a context for the training: a signal waits for the next vote of its rank.

        Its handlers run before the vote. So all ranks end at the same step, and no communication is
        left half done. A second signal does not wait.
        """
        with self._signals:
            yield
            self._run_handlers()

    def _run_handlers(self) -> None:
        try:
            self._signals.run_handlers()
        except KeyboardInterrupt:  # Ctrl-C reaches the ranks one after the other
            if not self._interrupted:
                raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """Return a context whose error on one rank is raised on all."""
        try:
            with self._ranks.together("fit"):
                yield
                self._run_handlers()
        except KeyboardInterrupt:
            self._interrupted = True
            raise

    def _agree(self, what: str, facts: Mapping[str, Any]) -> bool:
        """Vote, after signals and errors; return whether all ranks have the same facts."""
        self._run_handlers()
        return self._ranks.agree(f"fit ({what})", None, repr(facts).encode())

    def _check_same(self, what: str, facts: Mapping[str, str]) -> None:
        if not self._agree(what, facts):
            self._raise_different("fit", [*map(pickle.loads, self._gather(pickle.dumps(facts)))])

    def _gather(self, data: bytes) -> list[bytes]:
        return self._ranks.gather(data)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raise ValueError if a fact is not the same on all ranks."""
        self._check_same("arguments", facts)

    def part_of(self, name: str, batches: MiniBatches[Any]) -> Part:
        """Return the part of this rank, or raise ValueError if the mini-batches have another."""
        part = slicing_of(batches).part
        if part not in (Part(), self.part):
            raise ValueError(
                f"fit: {name} is part {part.rank} of {part.ranks} of its mini-batches, expected "
                f"part {self.part.rank} of {self.part.ranks}, as the optimizer is sharded (or "
                "leave part unset)"
            )
        return self.part

    def equalize(self, batches: MiniBatches[Any]) -> None:
        """Let mini-batches go on as those of the first rank."""
        self._agree("order of mini-batches", {})
        states = self._gather(pickle.dumps(batches.state_dict()) if self.is_first else b"")
        batches.load_state_dict(pickle.loads(states[0]))

    def joined(self, cost: float, examples: int | None) -> Joined:
        """Return the mini-batch of which each rank has a part."""
        self._check_same("mini-batch", _MORE)
        own = 1 if examples is None else examples
        mean, total, squares = self._mean(cost, own)
        of_all = None if examples is None else total
        if squares * self.part.ranks == total * total:  # all ranks have the same number
            return mean, of_all, None, 1.0
        return mean, of_all, own, own * self.part.ranks / total

    def _mean(self, value: float, weight: int) -> tuple[float, int, float]:
        """Return a weighted mean over the ranks, and the sums of the weights and their squares."""
        sums = np.array([value * weight if weight else 0.0, weight, weight * weight], np.float64)
        with np.errstate(all="ignore"):
            self._ranks.sum(sums)  # in the order of the ranks: the same bits on all
            return float(sums[0] / sums[1]), int(sums[1]), float(sums[2])

    def end_epoch(self) -> None:
        """Raise ValueError on all ranks if some have more mini-batches."""
        self._check_same("mini-batch", _NO_MORE)

    def any(self, answer: bool) -> bool:
        """Return whether the answer of a rank is true; the votes for different answers differ."""
        return not self._agree("function", {"stop": answer}) or answer

    def mean(self, value: float, weight: int = 1) -> float:
        """Return the weighted mean of a value over the ranks; equal values stay as they are."""
        if not self._agree("validation", {"value": value, "weight": weight}):
            return self._mean(value, weight)[0]
        return value

    def share_of(self, examples: tuple[Any, ...], axis: int) -> tuple[int, tuple[Any, ...]]:
        """Return the number of examples in this rank's share, and the share."""
        part = self.part.rank, self.part.ranks
        whole = None
        with suppress(TypeError, ValueError):  # the loss takes what is no array of examples
            whole = minibatches(examples, axis=axis, batch_size=None, shuffle=False, part=part)
        self._check_validation(examples=None if whole is None else whole.examples)
        if whole is None:
            return 1, examples
        (share,) = whole
        return self.part.size(whole.examples), share

    def dealt(self, batches: Iterable[Any], size: Callable[[Any], int]) -> Iterator[Sized]:
        """Yield the mini-batches of this rank: ranks take turns."""
        if isinstance(batches, MiniBatches):
            batches = epoch_of(batches, Part())  # whole ones, also of a part
        count = total = 0
        for count, batch in enumerate(batches, start=1):
            total += (examples := size(batch))
            if (count - 1) % self.part.ranks == self.part.rank:
                yield batch, examples
                self._run_handlers()
        self._check_validation(batches=count, examples=total)

    def _check_validation(self, **numbers: int | None) -> None:
        facts = {f"the number of {what} of validation": str(n) for what, n in numbers.items()}
        self._check_same("validation", facts)

    def collected(self, rows: Array) -> Array:
        """Return rows for each mini-batch that was dealt, in the order of the mini-batches."""
        columns = rows.shape[1]
        of_ranks = [
            np.frombuffer(data).reshape(-1, columns) for data in self._gather(rows.tobytes())
        ]
        result = np.empty((sum(map(len, of_ranks)), columns))
        for rank, each in enumerate(of_ranks):
            result[rank :: self.part.ranks] = each
        return result

    def slowest(self, seconds: Array) -> Array:
        """Return the times of the slowest rank."""
        self._agree("times", {})
        of_ranks = [np.frombuffer(each) for each in self._gather(seconds.tobytes())]
        slowest: Array = np.max(of_ranks, axis=0).reshape(seconds.shape)
        return slowest

    def whole(self, masters: list[Array]) -> list[Array]:
        """Return the masters of whole parameters, given those of this process."""
        if not masters:
            return []
        self._agree("masters", {})
        of_params = iter(masters)
        pieces = [next(of_params) if has else None for has in self._have_masters]
        return [whole for whole in self._shards.joined(pieces) if whole is not None]

    def own(self, masters: list[Array]) -> list[Array]:
        """Return this rank's pieces of the masters of whole parameters."""
        if not masters:
            return []
        indices = [i for i, has in enumerate(self._have_masters) if has]
        return [self._shards.piece_of(i, whole) for i, whole in zip(indices, masters, strict=True)]


_MORE = {"whether x has another mini-batch in the epoch": "True"}
_NO_MORE = dict.fromkeys(_MORE, "False")


def ranks_of(optimizer: Any) -> OneProcess:
    """Return who shares a training with this optimizer."""
    if not isinstance(optimizer, Optimizer) or internals_of(optimizer).pieces is None:
        return OneProcess()
    from schuss.mpi._shards import shards_of

    shards = shards_of(optimizer)
    if shards is None or shards.ranks.size == 1:
        return OneProcess()
    return ManyRanks(shards, internals_of(optimizer).masters or [])


def no_gradients(optimizer: Optimizer) -> Any:
    """Return gradients that add nothing to the sums, for a rank without examples."""
    whole = internals_of(optimizer).whole
    grads = whole.tree.unflatten([None] * len(whole.arrays))
    return np.zeros_like(whole.arrays[0]) if grads is None else grads  # one array cannot rest
