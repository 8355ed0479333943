"""Where `fit` takes its mini-batches from: arrays that it cuts itself, or any iterable of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from schuss._fit_ranks import OneProcess
from schuss._hints import comes_from
from schuss._hyperparameters import axis_of, count
from schuss.batches import MiniBatches, epoch_of, minibatches, position_of, slicing_of
from schuss.checkpoints import Checkpoint

# What makes an object an array of examples, or a matrix, although it can be iterated over.
_OF_ARRAYS = ("shape", "__array__", "__array_interface__", "__array_struct__", "__buffer__")


class ArrayBatches:
    """Mini-batches that are cut from arrays."""

    def __init__(self, batches: MiniBatches[Any], ranks: OneProcess) -> None:
        if len(batches) == 0:
            raise ValueError(
                f"fit: x has {batches.examples} examples and drop_last leaves out all of them, "
                f"expected at least one batch of {batches.batch_size}"
            )
        self.batches, self._part = batches, ranks.part_of("x", batches)
        self.batch_size, self.length = batches.batch_size, len(batches)
        self._examples = min(batches.examples, self.length * self.batch_size)  # of an epoch
        self.axis = slicing_of(batches).sources[0].axis
        smallest, part = self._size(self.length - 1), self._part
        self._full = self._examples // self.batch_size  # batches of this size
        self._of_part = part.size(self.batch_size)
        if part.size(smallest) == 0 and part != ranks.part:
            raise ValueError(
                f"fit: x is part {part.rank} of {part.ranks} of its mini-batches, which has no "
                f"example of a batch of {smallest}, expected at least one (drop_last leaves out a "
                "smaller last batch)"
            )
        self._epoch: dict[str, Any] | None = None  # the epoch under way, as a state dict has it

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks."""
        config = slicing_of(self.batches).config()
        return {"x": "examples", **{name: repr(value) for name, value in config.items()}}

    def check_start(self) -> None:
        """Raise ValueError if the mini-batches are in the middle of an epoch."""
        if position := position_of(self.batches):  # there is no history of its first steps
            raise ValueError(
                f"fit: x is in the middle of an epoch, after {position} batches, expected "
                "mini-batches at its beginning"
            )

    def begin(self, position: int, least: int, *, saves: bool) -> Iterator[Any]:
        """Return the batches of a new epoch, or the rest of one that was loaded.

        saves: whether `state` is called during this epoch.
        """
        epoch: Iterator[Any] = epoch_of(self.batches, self._part)
        if saves:
            self._epoch = self.batches.state_dict()["epoch"]
        return epoch

    def examples_in(self, batch: Any, position: int) -> int:
        """Return the number of examples in this process's part of a batch, after `position`."""
        if position >= self.length:
            raise ValueError(
                f"fit: x yields more than {self.length} batches in an epoch, expected as many as "
                "its length"
            )
        return self._of_part if position < self._full else self._part.size(self._size(position))

    def examples_of_all(self, examples: int | None, position: int) -> int | None:
        """Return the number of examples of a batch on all ranks together."""
        return self._size(position)

    def _size(self, position: int) -> int:
        return min(self.batch_size, self._examples - position * self.batch_size)

    def check_end(self, position: int) -> None:
        """Raise ValueError if an epoch ended after too few batches."""
        if position < self.length:
            raise ValueError(
                f"fit: x yields {position} batches in an epoch, expected {self.length}, its length"
            )

    def state(self, position: int | None) -> dict[str, Any]:
        """Return what a checkpoint keeps, after `position` batches, or None between epochs."""
        # Batches that were handed out without a step do not count.
        if position is not None and self._epoch is not None:
            return self.batches.state_dict() | {"epoch": self._epoch | self._at(position)}
        return self.batches.state_dict() | {"epoch": None}

    def check_position(self, checkpoint: Checkpoint, position: int) -> None:
        """Raise ValueError unless the batches of a checkpoint are at this position."""
        epoch, _ = checkpoint.batches_state(self.batches)
        expected = self._at(position)["position"]
        if (there := epoch.position if epoch else 0) != expected:
            checkpoint.refuse(
                f"has batches['epoch'] after {there} batches, expected {expected} as of its steps"
            )

    def _at(self, position: int) -> dict[str, int]:
        # The last step of an epoch may be one of fewer batches.
        return {"position": min(position, self.length)}


class IterableBatches:
    """Mini-batches that a user's object yields, or the iterator that a user's function returns."""

    batches = None  # a checkpoint has no state of them
    batch_size = None

    def __init__(self, x: Any, axis: int, ranks: OneProcess, *, epochs: int) -> None:
        kind = type(x).__name__
        if isinstance(x, Iterator) and epochs > 1:
            raise ValueError(
                f"fit: x is a {kind}, which can be iterated over once, and epochs is {epochs}, "
                "expected batches that can be iterated over in each epoch (a list, a DataLoader, "
                "or the function that makes the iterator, without calling it)"
            )
        self.x, self.axis, self._ranks = x, axis, ranks.part.ranks
        self.length = _length(x)

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks, each of which has its own batches."""
        return {"x": "mini-batches", "the number of mini-batches of x": repr(self.length)}

    def check_start(self) -> None:
        """Accept any: each epoch is iterated over from its beginning."""

    def begin(self, position: int, least: int, *, saves: bool) -> Iterator[Any]:
        """Return the batches of an epoch without the first `position`.

        least: the number of batches that were used at least; an epoch of fewer is refused.
        """
        is_function = callable(self.x) and not isinstance(self.x, Iterable)
        batches = self.x() if is_function else self.x
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"fit: x() returned a {type(batches).__name__}, expected an iterable of batches"
            )
        iterator = iter(batches)
        if (skipped := sum(1 for _ in islice(iterator, position))) < least:
            raise ValueError(
                f"fit: x yields {skipped} batch{'es' * (skipped != 1)} in the epoch to resume, "
                f"expected at least {least}, those before the checkpoint"
            )
        return iterator

    def examples_in(self, batch: Any, position: int) -> int | None:
        """Return the number of examples of a batch, or None if it has no array."""
        return examples_in("x", batch, self.axis)

    def examples_of_all(self, examples: int | None, position: int) -> int | None:
        """Return the number of examples on all ranks, if each has the same number."""
        return None if examples is None else examples * self._ranks

    def check_end(self, position: int) -> None:
        """Raise ValueError if an epoch had no batches."""
        if position == 0:
            raise ValueError(
                "fit: x yields no batches in an epoch, expected at least one (a function must "
                "return a new iterator at each call)"
            )

    def state(self, position: int | None) -> None:
        """Return None: the steps of the history are the position."""

    def check_position(self, checkpoint: Checkpoint, position: int) -> None:
        """Accept any: the batches before it are skipped."""


def examples_in(name: str, batch: Any, axis: int) -> int | None:
    """Return the number of examples in the first array of a batch, or None if it has none."""
    first = batch
    while isinstance(first, tuple | list | Mapping) and first:
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    if not hasattr(first, "ndim") or not hasattr(first, "shape"):
        return None
    examples: int = first.shape[axis_of("fit", axis, first, f"a batch of {name}")]
    if examples == 0:
        raise ValueError(
            f"fit: a batch of {name} has no examples along axis {axis}, expected at least one"
        )
    return examples


BatchSource: TypeAlias = ArrayBatches | IterableBatches


def batch_source(
    x: Any, y: Any, options: dict[str, Any], ranks: OneProcess, *, epochs: int
) -> BatchSource:
    """Return the source of mini-batches for arguments of `fit`: the options are those given."""
    ready = isinstance(x, MiniBatches)
    if not ready and not is_iterable_of_batches(x):
        if comes_from("torch.utils.data", x):
            kind = type(x).__name__
            raise TypeError(f"fit: x is a {kind}, expected mini-batches (a DataLoader of it)")
        return ArrayBatches(minibatches(x, y, **options), ranks)
    axis = 0 if ready else options.pop("axis", 0)
    if y is not None:
        options = {"y": y}
    for name, value in options.items():
        simple = value is None or isinstance(value, int | str)
        was, kind = repr(value) if simple else f"a {type(value).__name__}", type(x).__name__
        raise ValueError(f"fit: {name} is {was}, expected it to be unset, as x is a {kind}")
    if ready:
        return ArrayBatches(x, ranks)
    return IterableBatches(x, count("fit", "axis", axis, least=-(2**63)), ranks, epochs=epochs)


def is_iterable_of_batches(x: Any) -> bool:
    """Return whether `x` has mini-batches, rather than being an array or converted to one."""
    if isinstance(x, tuple | Mapping | str | bytes) or any(hasattr(x, n) for n in _OF_ARRAYS):
        return False
    if isinstance(x, Sequence):
        return len(x) > 0 and _is_batch(x[0])
    return callable(x) or isinstance(x, Iterable)


def _is_batch(value: Any) -> bool:
    """Return whether an item of a list is a batch: a dict, or a tuple with an array."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, tuple) and any(getattr(part, "shape", ()) for part in value)


def _length(x: Any) -> int | None:
    """Return the number of batches in an epoch, if it is known."""
    if not hasattr(x, "__len__"):
        return None
    try:
        return len(x)
    except TypeError:  # a DataLoader of an IterableDataset without a length
        return None
