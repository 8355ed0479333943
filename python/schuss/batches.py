"""Mini-batches: one pass over the examples, shuffled and cut into pieces."""

import atexit
import math
import os
import sys
from _queue import SimpleQueue  # without the rest of queue, which takes long to import
from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from weakref import ReferenceType, ref

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array, as_any_array
from schuss._generators import checked_state, state_of
from schuss._hyperparameters import axis_of, count, flag, optional, record, same, shown

__all__ = ["MiniBatches", "minibatches"]

_Batch = TypeVar("_Batch")
BatchSize: TypeAlias = int | Literal["auto"] | None
Seed: TypeAlias = "np.random.Generator | int | None"

# What "auto" means (Ng, "Improving deep neural networks", 2017, week 2): sets up to WHOLE in one
# batch; of larger ones a power of two, as large as fits the memory for a batch.
WHOLE = 2_000
SMALLEST, LARGEST = 64, 1_024
BATCH_MEMORY = 1 << 26

# Several batches are gathered at once. Of rows so many bytes, to call less often. Of columns more:
# each cache line holds a piece of several examples, and is better read once for all of them
# (measured: an epoch of 64 x 1,000,000 float32 takes 0.14 s batch by batch, 0.09 s so).
ROWS_AT_ONCE, COLUMNS_AT_ONCE = 1 << 20, 1 << 26
SORTING = 32  # bytes for each example of a column stage, beside the example itself
CACHE_LINE = 64


class MiniBatches(Generic[_Batch]):
    """The batches of an epoch; each iteration is a new epoch. Made by `minibatches`."""

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        batch_size: BatchSize,
        shuffle: bool,
        rng: Seed,
        axis: int,
        drop_last: bool,
        indices: bool,
        memory: int | None,
        prefetch: int,
        reuse_buffers: bool,
    ) -> None:
        named = _named(x, y)
        self._single = y is None and not isinstance(x, tuple)
        # One label an example, whether the examples lie in rows or in columns.
        several = max(array.ndim for _, array in named) > 1
        self._sources = [
            _Source(name, array, 0 if several and array.ndim == 1 else axis)
            for name, array in named
        ]
        first = self._sources[0]
        self._examples = first.examples
        for source in self._sources:
            if source.examples != self._examples:
                raise ValueError(
                    f"minibatches: {source.name} has {source.examples} examples, "
                    f"expected {self._examples} (as {first.name} has)"
                )
        if self._examples == 0:
            raise ValueError(f"minibatches: {first.name} has no examples, expected at least one")
        self._shuffle = flag("minibatches", "shuffle", shuffle)
        self._drop_last = flag("minibatches", "drop_last", drop_last)
        self._indices = flag("minibatches", "indices", indices)
        self._reuse_buffers = flag("minibatches", "reuse_buffers", reuse_buffers)
        self._prefetch = count("minibatches", "prefetch", prefetch, least=0)
        self._chosen = ""
        self._batch_size = self._size_of_batch(batch_size, memory)
        self._rng = _generator(rng)
        self._seeded = rng is not None
        self._begun: tuple[ReferenceType[_Iteration[Any]], _Epoch] | None = None  # the last one
        self._to_resume: _Epoch | None = None

    @property
    def examples(self) -> int:
        """The number of examples, m."""
        return self._examples

    @property
    def batch_size(self) -> int:
        """The number of examples a batch, b; only the last one of an epoch may have fewer."""
        return self._batch_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self._examples, self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[_Batch]:
        """Return the batches of a new epoch, or the rest of one that was loaded."""
        epoch, self._to_resume = self._to_resume, None
        if epoch is None:
            # One number of the generator decides an epoch, and it is drawn now, so that the order
            # of epochs that run side by side does not depend on how they take turns.
            epoch = _Epoch(self._seed_of_epoch() if self._shuffle else None)
        iteration: _Iteration[_Batch] = _Iteration(partial(self._rest, epoch))
        self._begun = ref(iteration), epoch
        return iteration

    def _seed_of_epoch(self) -> int:
        return int(self._rng.integers(2**64, dtype=np.uint64))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the epochs are: the generator, and the epoch under way.

        Returns
        -------
        dict
            ``examples``, ``batch_size``, ``shuffle`` and ``drop_last``, which must be the same
            where it is loaded; ``generator`` (the state of the bit generator) and ``epoch``: of the
            epoch begun last the number that decides its order, and how many batches were handed
            out. None if it is over, or was left.

        Raises
        ------
        TypeError
            If the bit generator is none of NumPy's, nor a subclass of one: nobody could check its
            state where it is loaded.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> batches = schuss.minibatches(np.arange(6), batch_size=2, rng=0)
        >>> for batch in batches:
        ...     state = batches.state_dict()
        ...     break
        >>> other = schuss.minibatches(np.arange(6), batch_size=2)
        >>> other.load_state_dict(state)
        >>> len(list(other)), len(list(other))
        (2, 3)
        """
        epoch = self._to_resume or self._under_way()
        return {
            **self._cut(),
            "generator": state_of("MiniBatches.state_dict", self._rng.bit_generator),
            "epoch": epoch and {"seed": epoch.seed, "position": epoch.position},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned: the next iteration goes on where it was.

        Parameters
        ----------
        state_dict : mapping
            That of mini-batches of as many examples, cut alike. Iterations under way go on as they
            are.

        Raises
        ------
        TypeError, ValueError
            If it is not; nothing is changed then.
        """
        call = "MiniBatches.load_state_dict"
        self._resume(self._resumption(call, "state_dict", state_dict))

    def _resumption(self, call: str, name: str, state: Any) -> "Resumption":
        """Return the epoch and the generator's state of a state dict, checked, or raise."""
        known = record(
            **{key: same(value) for key, value in self._cut().items()},
            generator=partial(checked_state, generator=self._rng.bit_generator),
            epoch=optional(self._epoch_in),
        )(call, name, state)
        return known["epoch"], known["generator"]

    def _resume(self, resumption: "Resumption") -> None:
        self._to_resume, self._rng.bit_generator.state = resumption
        self._begun = None

    def _cut(self) -> dict[str, Any]:
        """Return what decides, with the generator, which batches there are."""
        return {
            "examples": self.examples,
            "batch_size": self.batch_size,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
        }

    def _under_way(self) -> "_Epoch | None":
        """Return the epoch begun last, unless it is over or nobody has it any more."""
        if self._begun is None:
            return None
        iteration = self._begun[0]()
        return self._begun[1] if iteration is not None and iteration.under_way else None

    def _epoch_in(self, call: str, name: str, epoch: Any) -> "_Epoch":
        known = record(position=self._position_in, seed=self._seed_in)(call, name, epoch)
        return _Epoch(**known)

    def _position_in(self, call: str, name: str, position: Any) -> int:
        made = count(call, name, position, least=0)
        if made > len(self):
            raise ValueError(f"{call}: {name} is {made}, expected at most {len(self)} batches")
        return made

    def _seed_in(self, call: str, name: str, seed: Any) -> int | None:
        shuffled = type(seed) is int and 0 <= seed < 2**64
        if not (shuffled if self._shuffle else seed is None):
            expected = "an integer in [0, 2**64)" if self._shuffle else "None"
            raise ValueError(f"{call}: {name} is {shown(seed)}, expected {expected}")
        return seed  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs: its epochs are its own."""
        return {**self.__dict__, "_begun": None}

    def __repr__(self) -> str:
        """Return how the examples are cut, and what was chosen."""
        order = "shuffled" if self._shuffle else "in order"
        return (
            f"<MiniBatches: {self.examples:,} example{'s' * (self.examples != 1)} in {len(self):,} "
            f"batch{'es' * (len(self) != 1)} of {self.batch_size:,}{self._chosen}, {order}>"
        )

    def _size_of_batch(self, batch_size: object, memory: int | None) -> int:
        if memory is not None:
            memory = count("minibatches", "memory", memory, least=1)
            if batch_size != "auto":
                raise ValueError(
                    f"minibatches: memory is {memory} with batch_size {batch_size!r}, expected it "
                    f"with 'auto' only"
                )
        if batch_size is None:
            return self.examples
        if not isinstance(batch_size, str):
            return count("minibatches", "batch_size", batch_size, least=1)
        if batch_size != "auto":
            raise ValueError(
                f"minibatches: batch_size is {batch_size!r}, expected an integer >= 1, 'auto' "
                f"or None"
            )
        if self.examples <= WHOLE:
            self._chosen = " (auto: so few are one batch)"
            return self.examples
        bytes_each = sum(source.array.nbytes for source in self._sources) // self.examples
        if memory is not None and memory < SMALLEST * bytes_each:
            raise ValueError(
                f"minibatches: memory is {memory} bytes, expected at least "
                f"{SMALLEST * bytes_each}, the size of {SMALLEST} examples"
            )
        size = SMALLEST
        while size < LARGEST and 2 * size * bytes_each <= (memory or BATCH_MEMORY):
            size *= 2
        self._chosen = f" (auto: {size * bytes_each:,} bytes)"
        return size

    def _rest(self, epoch: "_Epoch") -> Generator[Any, None, None]:
        """Return the batches that an epoch has left, prepared ahead if that is wanted."""
        begin = partial(self._batches, epoch)
        return epoch.counted(_ahead(begin, self._prefetch) if self._prefetch else begin())

    def _batches(self, epoch: "_Epoch") -> Generator[Any, None, None]:
        """Yield the batches of an epoch that are left, in the order that its seed decides."""
        order = None if epoch.seed is None else _core.shuffled(self.examples, epoch.seed)
        size, end = self.batch_size, len(self) * self.batch_size
        first = epoch.position * size
        # Views would be read on the thread that uses them, so they are not read ahead.
        own = not self._reuse_buffers or (order is None and self._prefetch > 0)
        cuts = [source.cuts(order, size, first, end, own=own) for source in self._sources]
        for start, *parts in zip(range(first, end, size), *cuts, strict=True):
            if self._indices:
                stop = min(start + size, self.examples)
                part = np.arange(start, stop) if order is None else order[start:stop].copy()
                parts.append(part)
            yield parts[0] if self._single and not self._indices else tuple(parts)


class _Epoch:
    """What decides the order of an epoch, and how many of its batches were handed out."""

    __slots__ = ("position", "seed")

    def __init__(self, seed: int | None, position: int = 0) -> None:
        self.seed, self.position = seed, position

    def counted(self, batches: Generator[_Batch, None, None]) -> Generator[_Batch, None, None]:
        """Yield the batches as they are handed out."""
        with closing(batches):
            for batch in batches:
                self.position += 1
                yield batch


Resumption: TypeAlias = tuple[_Epoch | None, dict[str, Any]]
"""The epoch to go on with, if there is one, and the generator's state."""


class _Iteration(Iterator[_Batch]):
    """Hands out the batches of an epoch; in the child of a fork, those that were left at the fork.

    The threads that prepare batches, or that were within the generator, do not exist in the child.
    So each process has a generator of its own, which begins where the epoch is.
    """

    def __init__(self, begin: Callable[[], Generator[_Batch, None, None]]) -> None:
        self._begin = begin  # returns a generator of what the epoch has left
        self._generators: dict[int, Any] = {_forks: begin()}

    @property
    def under_way(self) -> bool:
        """Whether the epoch is neither over nor left."""
        return all(each.gi_frame is not None for each in [*self._generators.values()])

    def __next__(self) -> _Batch:
        batch: _Batch = next(self._generators.get(_forks) or self._begun_here())
        return batch

    def close(self) -> None:
        """Leave the epoch, and let go of what was prepared of it."""
        (self._generators.get(_forks) or self._begun_here()).close()

    def _begun_here(self) -> Any:
        begun = self._begin()
        if not self.under_way:
            begun.close()
        return self._generators.setdefault(_forks, begun)


class _Source:
    """An array of which batches are cut, with the examples along its first axis."""

    def __init__(self, name: str, array: Array, axis: int) -> None:
        self.name = name
        self.axis = axis_of("minibatches", axis, array, name)
        if type(array) is np.ndarray:  # others do not own their memory, or have views of their own
            array = _core.held(array)
        self.array = np.moveaxis(array, self.axis, 0)
        self.examples = len(self.array)
        self._free: list[Array] = []  # memory of stages that nobody uses any more

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs."""
        return {**self.__dict__, "_free": []}

    def cuts(
        self, order: npt.NDArray[np.int64] | None, size: int, first: int, end: int, *, own: bool
    ) -> Iterator[Array]:
        """Yield the pieces of an epoch: views if there is no order, or in memory of their own."""
        pieces = self._pieces(order, size, first, min(end, self.examples))
        if own:
            pieces = (examples.copy() for examples in pieces)
        if self.axis == 0:
            return pieces
        axes = (*range(1, self.axis + 1), 0, *range(self.axis + 1, self.array.ndim))
        return (examples.transpose(axes) for examples in pieces)

    def _pieces(
        self, order: npt.NDArray[np.int64] | None, size: int, first: int, end: int
    ) -> Iterator[Array]:
        if order is None:
            yield from (self.array[start : start + size] for start in range(first, end, size))
            return
        if type(self.array) not in (np.ndarray, np.memmap) or self.array.dtype.hasobject:
            for start in range(first, end, size):
                yield self.array[order[start : min(start + size, end)]]
            return
        at_once, bytes_each = ROWS_AT_ONCE, self.array.nbytes // self.examples
        if self._lies_in_columns():
            at_once, bytes_each = COLUMNS_AT_ONCE, bytes_each + SORTING
        batches = max(at_once // (size * max(bytes_each, 1)), 1)
        for start in range(first, end, batches * size):
            chosen = order[start : min(start + batches * size, end)]
            space = self._space(len(chosen))
            _core.gather(self.array, chosen, space)
            yield from (space[i : i + size] for i in range(0, len(chosen), size))

    def _space(self, examples: int) -> Array:
        """Return space for a stage: touching new memory takes as long as filling it."""
        shape, dtype = (examples, *self.array.shape[1:]), self.array.dtype
        size = math.prod(shape) * dtype.itemsize
        if not 0 < size <= COLUMNS_AT_ONCE:
            return np.empty(shape, dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        lent: Array = np.asarray(_Loan(memory, self._free))[:size].view(dtype).reshape(shape)
        return lent

    def _lies_in_columns(self) -> bool:
        """Whether cache lines hold pieces of several examples."""
        piece = self.array.itemsize
        steps = zip(self.array.strides[1:], self.array.shape[1:], strict=True)
        for step, length in sorted((abs(step), length) for step, length in steps if length > 1):
            if step > piece:
                return piece < CACHE_LINE and abs(self.array.strides[0]) < step
            piece *= length
        return False


class _Loan:
    """Memory that goes back to the free once no array refers to it, the user's views included."""

    __slots__ = ("__array_interface__", "_free", "_memory")

    def __init__(self, memory: Array, free: list[Array]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        # Two at most: one stage is in use while the next one is gathered. None if Ctrl-C came
        # before there was anything to lend.
        free = getattr(self, "_free", None)
        if free is not None and len(free) < 2:
            free.append(self._memory)


def _named(x: Any, y: Any) -> list[tuple[str, Array]]:
    """Return the arrays with the names that messages give them."""
    if not isinstance(x, tuple):
        arrays = {"x": x} if y is None else {"x": x, "y": y}
    elif y is not None:
        raise TypeError("minibatches: x is a tuple and y is given, expected y in the tuple")
    elif not x:
        raise ValueError("minibatches: x is an empty tuple, expected at least one array")
    else:
        arrays = {f"x[{i}]": array for i, array in enumerate(x)}
    return [(name, as_any_array("minibatches", name, array)) for name, array in arrays.items()]


def _generator(rng: Any) -> "np.random.Generator":
    try:
        if isinstance(rng, bool):
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"minibatches: rng is {rng!r}, expected a numpy.random.Generator, a seed >= 0 or None"
        ) from None


def _ahead(begin: Callable[[], Iterator[_Batch]], many: int) -> Generator[_Batch, None, None]:
    """Yield the batches; while `many` are used, another thread prepares the next ones.

    `begin` returns those that nobody was given yet. The caller's thread prepares them where there
    can be no other thread, or where the other one has ended with the program.
    """
    preparer = _Preparer(begin(), many)
    try:
        preparer.start()
        while (part := preparer.next_part()) is not None:
            if not part:
                return
            yield from part
        yield from begin()
    finally:
        preparer.close()


class _Preparer(Generic[_Batch]):
    """A thread that prepares a part of the batches while the one before is used."""

    def __init__(self, batches: Iterator[_Batch], many: int) -> None:
        self._batches, self._many = batches, many
        self._forks = _forks
        self._threads: list[int] = []  # one, or none
        # Queues in C and a bare thread: Ctrl-C in the middle of Python's own locks breaks them.
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._ready: SimpleQueue[tuple[list[_Batch], BaseException | None] | None] = SimpleQueue()
        self._over: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread, if the system and the interpreter have one to give."""
        if sys.is_finalizing():
            return  # it would never run
        _preparers.add(self)
        self._wanted.put(True)
        try:
            # In one call: a signal's handler that raises finds no thread, or one noted here.
            self._threads.extend(map(start_new_thread, [self._prepare], [()]))
        except RuntimeError:
            if self._threads:  # so a handler raised it
                raise
        else:
            atexit.register(self._stop)  # the thread must not outlive the interpreter

    def next_part(self) -> list[_Batch] | None:
        """Return the next part, empty at the end of the epoch; None if there is no thread."""
        answer = self._ready.get() if self._threads and not sys.is_finalizing() else None
        if answer is None:
            return None
        part, error = answer
        if error is not None:
            raise error
        if part:
            self._wanted.put(True)
        return part

    def close(self) -> None:
        """End the thread, and wait for its end."""
        self._stop()  # first: also if a signal's handler raises then, the thread will end
        _preparers.discard(self)
        atexit.unregister(self._stop)

    def _stop(self) -> None:
        # Neither the child of a fork nor the interpreter at its end has the thread.
        if self._threads and self._is_here() and not sys.is_finalizing():
            self._wanted.put(False)
            self._over.get()

    def _is_here(self) -> bool:
        """Whether this is the process that the thread was started in."""
        return self._forks == _forks

    def _prepare(self) -> None:
        try:
            # Code of the user's that reads the batches may fork: then this is the child's thread.
            while self._is_here() and self._wanted.get():
                self._ready.put(self._part())
        finally:
            self.release()

    def release(self) -> None:
        """Let callers that wait for the thread go on without it."""
        self._ready.put(None)
        for _ in range(2):  # for the program's end, and for that of the batches
            self._over.put(None)

    def _part(self) -> tuple[list[_Batch], BaseException | None]:
        try:
            return list(islice(self._batches, self._many)), None
        except BaseException as error:  # for the thread that uses the batches
            if not self._is_here():
                raise
            return [], error


_forks = 0  # between the first process and this one
_preparers: set[_Preparer[Any]] = set()


def _after_fork_in_child() -> None:
    global _forks
    _forks += 1
    for preparer in _preparers:  # who waits for one has forked, in the handler of a signal
        preparer.release()
    _preparers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def minibatches(
    x: npt.ArrayLike | tuple[npt.ArrayLike, ...],
    y: npt.ArrayLike | None = None,
    *,
    batch_size: BatchSize = 64,
    shuffle: bool = True,
    rng: Seed = None,
    axis: int = 0,
    drop_last: bool = False,
    indices: bool = False,
    memory: int | None = None,
    prefetch: int = 0,
    reuse_buffers: bool = True,
) -> MiniBatches[Any]:
    """Cut examples into mini-batches, shuffled anew for each epoch.

    Parameters
    ----------
    x : array, shape (m, ...) or (..., m), or tuple of arrays
        The examples, along `axis`; a tuple, such as ``(x, y, weights)``, is cut alike. Arrays may
        be larger than memory (`numpy.memmap`): what is read is what the batches need.
    y : array, optional
        Their labels, of any dtype, and of any shape with as many along the axis of the examples.
    batch_size : int, "auto" or None
        Examples a batch; the last batch of an epoch may be smaller. None means all of them (batch
        gradient descent), 1 is stochastic gradient descent. "auto": all if there are at most 2,000,
        otherwise a power of two from 64 to 1,024, the largest that fits `memory`; `batch_size` and
        the representation of the result say what was chosen.
    shuffle : bool
        Whether to draw a new order for each epoch. Without, batches are views of the arrays, or
        copies if they are prepared ahead.
    rng : numpy.random.Generator or int, optional
        Where the order comes from; the same seed gives the same batches, on every platform.
    axis : int
        The axis of the examples: 0 for rows, 1 or -1 for columns. An array of one axis beside
        others, such as labels of shape (m,), is cut along that.
    drop_last : bool
        Leave out a last batch that is smaller than the others.
    indices : bool
        Give with each batch, last, the indices of its examples.
    memory : int, optional
        The bytes that "auto" may use for a batch; by default 64 MiB, or what 64 examples need.
    prefetch : int
        While so many batches are used, prepare as many of the next on a thread of its own, in the
        same order. It pays where reading takes long: for arrays on disk, for large batches. Where
        no thread can be started, the caller's prepares them.
    reuse_buffers : bool
        Use memory of batches again once no array refers to it; so a batch may always be kept, but
        then keeps that of its neighbours (up to 1 MiB of rows, 64 MiB of columns). False gives each
        batch memory of its own, at the cost of a copy.

    Returns
    -------
    MiniBatches
        Each iteration over it is an epoch of batches: ``x`` alone, or pairs ``(x, y)``, or tuples
        like that given. Its length is the number of batches in an epoch. The arrays are not copied,
        and must not be changed while an epoch runs: some examples are read ahead. In the child of a
        fork, an epoch under way goes on with the batches that were left of it.

    Raises
    ------
    TypeError
        If an argument has a wrong type, or `y` is given beside a tuple.
    ValueError
        If the arrays differ in their number of examples, if there are none, if `axis` is out of
        range, `batch_size` below 1, or `memory` too small for 64 examples.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, section 8.1.3.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> batches = schuss.minibatches(np.arange(10), batch_size=4, shuffle=False)
    >>> len(batches), [batch.tolist() for batch in batches]
    (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    >>> x, y = np.zeros((50, 5_000_000), np.int8), np.zeros(5_000_000)
    >>> schuss.minibatches(x, y, axis=1, batch_size="auto")
    <MiniBatches: 5,000,000 examples in 4,883 batches of 1,024 (auto: 59,392 bytes), shuffled>
    """
    return MiniBatches(
        x,
        y,
        batch_size=batch_size,
        shuffle=shuffle,
        rng=rng,
        axis=axis,
        drop_last=drop_last,
        indices=indices,
        memory=memory,
        prefetch=prefetch,
        reuse_buffers=reuse_buffers,
    )
