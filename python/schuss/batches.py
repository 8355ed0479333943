"""Mini-batches: one pass over the examples, shuffled and cut into pieces."""

from collections.abc import Collection, Generator, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from weakref import ReferenceType, ref

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array, as_any_array
from schuss._epochs import Epoch, EpochIterator
from schuss._generators import checked_state, state_of
from schuss._hints import OF_BATCHES, plain, with_hints
from schuss._hyperparameters import count, flag, optional, record, same, shown
from schuss._listing import public_names
from schuss._parts import Part, parse_part
from schuss._prefetch import prefetched
from schuss._slices import Source

__all__ = ["MiniBatches", "minibatches"]

__dir__ = public_names(__name__)

_Batch = TypeVar("_Batch")
BatchSize: TypeAlias = int | Literal["auto"] | None
Seed: TypeAlias = "np.random.Generator | int | None"
State: TypeAlias = tuple[Epoch | None, dict[str, Any]]
"""The epoch to resume, if any, and the state of the generator."""

# "auto" (Ng, "Improving deep neural networks", 2017, week 2): up to FULL_BATCH_MAX examples are one
# batch; otherwise a batch is the largest power of two that fits the memory.
FULL_BATCH_MAX = 2_000
MIN_BATCH, MAX_BATCH = 64, 1_024
BATCH_MEMORY = 1 << 26


@dataclass(frozen=True)
class Slicing:
    """How examples are cut into batches: everything that stays the same between epochs."""

    sources: list[Source]
    examples: int
    batch_size: int
    chosen: str  # what "auto" chose, as the representation shows it
    single: bool  # a batch is an array, not a tuple
    shuffle: bool
    drop_last: bool
    part: Part  # not in a state: any number of ranks may go on
    indices: bool
    reuse_buffers: bool
    prefetch: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self.examples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def config(self) -> dict[str, Any]:
        """Return the settings that, with the generator, decide the batches."""
        names = ("examples", "batch_size", "shuffle", "drop_last")
        return {name: getattr(self, name) for name in names}

    def remaining(self, epoch: Epoch) -> Generator[Any, None, None]:
        """Return the batches of an epoch that were not handed out yet."""
        begin = partial(self._batches, epoch)
        return epoch.counted(prefetched(begin, self.prefetch) if self.prefetch else begin())

    def _batches(self, epoch: Epoch) -> Generator[Any, None, None]:
        order = None if epoch.seed is None else _core.shuffled(self.examples, epoch.seed)
        size, end = self.batch_size, len(self) * self.batch_size
        first = epoch.position * size
        # Prefetched views are copied: otherwise the examples are read by the thread that uses them.
        copy = not self.reuse_buffers or (order is None and self.prefetch > 0)
        slices = [
            source.slices(order, size, first, end, self.part, copy=copy) for source in self.sources
        ]
        for start, *parts in zip(range(first, end, size), *slices, strict=True):
            if self.indices:
                share = self.part.within(start, min(start + size, self.examples))
                parts.append(np.arange(*share) if order is None else order[slice(*share)].copy())
            yield parts[0] if self.single and not self.indices else tuple(parts)

    def parse_epoch(self, call: str, name: str, value: Any) -> Epoch:
        """Return the epoch that a state dict describes, or raise TypeError or ValueError."""
        fields = record(position=self._parse_position, seed=self._parse_seed)
        return Epoch(**fields(call, name, value))

    def _parse_position(self, call: str, name: str, value: Any) -> int:
        position = count(call, name, value, least=0)
        if position > len(self):
            raise ValueError(f"{call}: {name} is {position}, expected at most {len(self)} batches")
        return position

    def _parse_seed(self, call: str, name: str, value: Any) -> int | None:
        is_seed = type(value) is int and 0 <= value < 2**64
        if not (is_seed if self.shuffle else value is None):
            expected = "an integer in [0, 2**64)" if self.shuffle else "None"
            raise ValueError(f"{call}: {name} is {shown(value)}, expected {expected}")
        return value  # type: ignore[no-any-return]


class MiniBatches(Generic[_Batch]):
    """The batches of an epoch; each iteration is a new epoch. Made by `minibatches`."""

    def __init__(self, slicing: Slicing, rng: "np.random.Generator", *, seeded: bool) -> None:
        self._slicing = slicing
        self._rng, self._seeded = rng, seeded
        self._latest: tuple[ReferenceType[EpochIterator[Any]], Epoch] | None = None
        self._to_resume: Epoch | None = None

    @property
    def examples(self) -> int:
        """The number of examples, m."""
        return self._slicing.examples

    @property
    def batch_size(self) -> int:
        """The number of examples a batch, b; only the last one of an epoch may have fewer."""
        return self._slicing.batch_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._slicing)

    def __iter__(self) -> Iterator[_Batch]:
        """Return the batches of a new epoch, or the rest of an epoch that was loaded."""
        return self._begin(self._slicing)

    def _begin(self, slicing: Slicing) -> Iterator[_Batch]:
        epoch, self._to_resume = self._to_resume, None
        if epoch is None:
            # The seed is drawn now, not at the first batch. So the order of epochs that run
            # at the same time does not depend on how they take turns.
            epoch = Epoch(_draw_seed(self._rng) if slicing.shuffle else None)
        iterator: EpochIterator[_Batch] = EpochIterator(partial(slicing.remaining, epoch))
        self._latest = ref(iterator), epoch
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator, and the position in the epoch under way.

        Returns
        -------
        dict
            ``examples``, ``batch_size``, ``shuffle`` and ``drop_last``, which must be the same
            where the state is loaded; ``generator``, the state of the bit generator; and ``epoch``:
            the seed of the epoch that began last, and how many of its batches were handed out. It
            is None if that epoch is finished or its iterator is gone.

        Raises
        ------
        TypeError
            If the bit generator is neither one of NumPy's nor a subclass of one: its state could
            not be checked when it is loaded.

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
        epoch = self._to_resume
        if epoch is None and self._latest is not None:
            iterator = self._latest[0]()
            epoch = self._latest[1] if iterator is not None and iterator.under_way else None
        return {
            **self._slicing.config(),
            "generator": state_of("MiniBatches.state_dict", self._rng.bit_generator),
            "epoch": epoch and {"seed": epoch.seed, "position": epoch.position},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned: the next iteration continues where that one was.

        Parameters
        ----------
        state_dict : mapping
            The state of mini-batches with the same number of examples and the same settings.
            Iterations under way are not affected.

        Raises
        ------
        TypeError, ValueError
            If it is not such a state; nothing is changed then.
        """
        call = "MiniBatches.load_state_dict"
        set_state(self, parse_state(call, "state_dict", state_dict, self))

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy need; iterators are not shared."""
        return {**self.__dict__, "_latest": None}

    def __repr__(self) -> str:
        """Return how the examples are cut, and what "auto" chose."""
        order = "shuffled" if self._slicing.shuffle else "in order"
        part = self._slicing.part
        if part.ranks > 1:
            order += f", part {part.rank} of {part.ranks}"
        return (
            f"<MiniBatches: {self.examples:,} example{'s' * (self.examples != 1)} in {len(self):,} "
            f"batch{'es' * (len(self) != 1)} of {self.batch_size:,}{self._slicing.chosen}, {order}>"
        )


# For training and checkpoints.


def slicing_of(batches: MiniBatches[Any]) -> Slicing:
    """Return how examples are cut into these mini-batches."""
    return batches._slicing


def epoch_of(batches: MiniBatches[_Batch], part: Part) -> Iterator[_Batch]:
    """Return a part of the batches of an epoch, as an iteration over all of them does."""
    slicing = batches._slicing
    return iter(batches) if part == slicing.part else batches._begin(replace(slicing, part=part))


def generator_of(batches: MiniBatches[Any]) -> "np.random.Generator | None":
    """Return the generator that the user chose, by itself or by a seed, if it decides orders."""
    return batches._rng if batches._slicing.shuffle and batches._seeded else None


def position_of(batches: MiniBatches[Any]) -> int:
    """Return how many batches the next iteration skips: those of the epoch to resume."""
    return batches._to_resume.position if batches._to_resume else 0


def parse_state(call: str, name: str, state: Any, batches: MiniBatches[Any]) -> State:
    """Return a state dict's epoch and generator state, checked for these mini-batches, or raise."""
    slicing = batches._slicing
    fields = record(
        **{key: same(value) for key, value in slicing.config().items()},
        generator=partial(checked_state, generator=batches._rng.bit_generator),
        epoch=optional(slicing.parse_epoch),
    )(call, name, state)
    return fields["epoch"], fields["generator"]


def set_state(batches: MiniBatches[Any], state: State) -> None:
    """Continue from a state that `parse_state` returned."""
    batches._to_resume, batches._rng.bit_generator.state = state
    batches._latest = None


def generator_states(rng: "np.random.Generator", state: dict[str, Any]) -> Iterator[Any]:
    """Yield the states that a generator has from `state` on, after each epoch that it decides."""
    rng = deepcopy(rng)
    rng.bit_generator.state = state
    while True:
        yield rng.bit_generator.state
        _draw_seed(rng)


def _draw_seed(rng: "np.random.Generator") -> int:
    return int(rng.integers(2**64, dtype=np.uint64))


def _sources(x: Any, y: Any, axis: int) -> list[Source]:
    """Return the arrays by the names that messages use, after checking that their lengths agree."""
    call = "minibatches"
    if not isinstance(x, tuple):
        given = {"x": x} if y is None else {"x": x, "y": y}
    elif y is not None:
        raise TypeError(f"{call}: x is a tuple and y is given, expected y in the tuple")
    elif not x:
        raise ValueError(f"{call}: x is an empty tuple, expected at least one array")
    else:
        given = {f"x[{i}]": array for i, array in enumerate(x)}
    if isinstance(y, Integral) and not isinstance(y, bool):
        was = type(y).__name__
        raise TypeError(f"{call}: y is a {was}, expected an array (or write batch_size={plain(y)})")
    arrays = {name: as_any_array(call, name, array) for name, array in given.items()}
    # Labels have one axis, whether the examples lie in rows or in columns.
    several_axes = any(array.ndim > 1 for array in arrays.values())
    first, *others = sources = [
        Source(name, array, 0 if several_axes and array.ndim == 1 else axis)
        for name, array in arrays.items()
    ]
    for source in others:
        if source.examples != first.examples:
            raise ValueError(
                f"{call}: {source.name} has {source.examples} examples, expected "
                f"{first.examples} (as {first.name} has{_columns_remedy(arrays.values(), axis)})"
            )
    if first.examples == 0:
        raise ValueError(f"{call}: {first.name} has no examples, expected at least one")
    return sources


def _columns_remedy(arrays: Collection[Array], axis: int) -> str:
    """Return the remedy if examples lie in columns, and rows are asked for."""
    lengths = {array.shape[-1] for array in arrays}
    return "; axis=1 if the examples lie in columns" if axis == 0 and len(lengths) == 1 else ""


def _size_of_batch(
    batch_size: object, memory: int | None, sources: list[Source]
) -> tuple[int, str]:
    """Return the size of a batch, and what "auto" chose."""
    call, examples = "minibatches", sources[0].examples
    if memory is not None:
        memory = count(call, "memory", memory, least=1)
        if batch_size != "auto":
            raise ValueError(
                f"{call}: memory is {memory} with batch_size {batch_size!r}, expected it with "
                "'auto' only"
            )
    if batch_size is None:
        return examples, ""
    if not isinstance(batch_size, str):
        return count(call, "batch_size", batch_size, least=1), ""
    if batch_size != "auto":
        raise ValueError(
            f"{call}: batch_size is {batch_size!r}, expected an integer >= 1, 'auto' or None"
        )
    if examples <= FULL_BATCH_MAX:
        return examples, " (auto: one batch)"
    bytes_each = sum(source.array.nbytes for source in sources) // examples
    least = MIN_BATCH * bytes_each
    if memory is not None and memory < least:
        raise ValueError(
            f"{call}: memory is {memory} bytes, expected at least {least}, the size of {MIN_BATCH} "
            "examples"
        )
    size = MIN_BATCH
    while size < MAX_BATCH and 2 * size * bytes_each <= (memory or BATCH_MEMORY):
        size *= 2
    return size, f" (auto: {size * bytes_each:,} bytes)"


def _generator(rng: Any) -> "np.random.Generator":
    try:
        if isinstance(rng, bool):
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"minibatches: rng is {rng!r}, expected a numpy.random.Generator, a seed >= 0 or None"
        ) from None


@with_hints(OF_BATCHES, "batch_size")
def minibatches(
    x: npt.ArrayLike | tuple[npt.ArrayLike, ...],
    y: npt.ArrayLike | None = None,
    *,
    batch_size: BatchSize = 64,
    shuffle: bool = True,
    rng: Seed = None,
    axis: int = 0,
    drop_last: bool = False,
    part: tuple[int, int] = (0, 1),
    indices: bool = False,
    memory: int | None = None,
    prefetch: int = 0,
    reuse_buffers: bool = True,
) -> MiniBatches[Any]:
    """Cut examples into mini-batches, in a new random order each epoch.

    Parameters
    ----------
    x : array, shape (m, ...) or (..., m), or tuple of arrays
        The examples, along `axis`; all arrays of a tuple, such as ``(x, y, weights)``, are cut in
        the same way. Arrays may be larger than memory (`numpy.memmap`): only the examples of the
        batches are read.
    y : array, optional
        The labels, of any dtype and any shape with m entries along the axis of the examples.
    batch_size : int, "auto" or None
        Examples a batch; the last batch of an epoch may be smaller. None means all of them (batch
        gradient descent), 1 is stochastic gradient descent. "auto": all if there are at most 2,000,
        otherwise a power of two from 64 to 1,024, the largest that fits `memory`; `batch_size` and
        the representation of the result show what was chosen.
    shuffle : bool
        Whether to draw a new order for each epoch. If False, batches are views of the arrays, or
        copies if they are prefetched.
    rng : numpy.random.Generator or int, optional
        The generator of the order, or its seed; the same seed gives the same batches on every
        platform.
    axis : int
        The axis of the examples: 0 for rows, 1 or -1 for columns. If other arrays have more axes,
        an array with one axis, such as labels of shape (m,), is cut along that axis.
    drop_last : bool
        Leave out a last batch that is smaller than the others.
    part : tuple of int
        Which share of each batch to yield, ``(rank, ranks)``, where several processes train
        together: rank 0 has the first examples of the batch, and so on, as `numpy.array_split` cuts
        it. The sizes of the shares differ by at most one. If a batch has fewer examples than there
        are ranks, the last ranks get arrays of length 0. With the same examples, settings and `rng`
        on all ranks, their shares joined are the batches of one process. `fit` with a sharded
        optimizer sets `part` itself.
    indices : bool
        Also yield the indices of the examples, as the last element of each batch; with `part`,
        those of the share.
    memory : int, optional
        The bytes that "auto" may use for a batch; by default 64 MiB, or the size of 64 examples if
        that is larger.
    prefetch : int
        The number of batches to prepare ahead in a background thread, in the same order. It helps
        where reading is slow: for arrays on disk and for large batches. If no thread can be
        started, the caller's thread prepares the batches.
    reuse_buffers : bool
        Reuse the memory of batches to which no array refers any more. A batch that you keep stays
        valid, but it also keeps the memory of its neighbours (up to 1 MiB of rows, 64 MiB of
        columns). If False, each batch has its own memory, at the cost of a copy.

    Returns
    -------
    MiniBatches
        Each iteration over it is an epoch of batches: ``x`` alone, or pairs ``(x, y)``, or tuples
        like the one given. Its length is the number of batches in an epoch; `examples` and
        `batch_size` are those of whole batches, also with `part`. The arrays are not copied, and
        must not change during an epoch: some examples are read ahead. In a forked child, an epoch
        under way continues with its remaining batches.

    Raises
    ------
    TypeError
        If an argument has a wrong type, or `y` is given and `x` is a tuple.
    ValueError
        If the arrays differ in their number of examples, if there are none, if `axis` or `part` is
        out of range, `batch_size` below 1, or `memory` too small for 64 examples.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, section 8.1.3.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> batches = schuss.minibatches(np.arange(10), batch_size=4, shuffle=False)
    >>> len(batches), [batch.tolist() for batch in batches]
    (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    >>> share = schuss.minibatches(np.arange(10), batch_size=4, shuffle=False, part=(1, 3))
    >>> [batch.tolist() for batch in share]  # the second of three processes
    [[2], [6], [9]]
    >>> x, y = np.zeros((50, 5_000_000), np.int8), np.zeros(5_000_000)
    >>> schuss.minibatches(x, y, axis=1, batch_size="auto")
    <MiniBatches: 5,000,000 examples in 4,883 batches of 1,024 (auto: 59,392 bytes), shuffled>
    """
    call = "minibatches"
    sources = _sources(x, y, axis)
    size, chosen = _size_of_batch(batch_size, memory, sources)
    slicing = Slicing(
        sources=sources,
        examples=sources[0].examples,
        batch_size=size,
        chosen=chosen,
        single=y is None and not isinstance(x, tuple),
        shuffle=flag(call, "shuffle", shuffle),
        drop_last=flag(call, "drop_last", drop_last),
        part=parse_part(call, "part", part),
        indices=flag(call, "indices", indices),
        reuse_buffers=flag(call, "reuse_buffers", reuse_buffers),
        prefetch=count(call, "prefetch", prefetch, least=0),
    )
    return MiniBatches(slicing, _generator(rng), seeded=rng is not None)
