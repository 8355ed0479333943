"""Mini-batches: one pass over the examples, shuffled and cut into pieces."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._hyperparameters import count, flag

__all__ = ["MiniBatches", "minibatches"]

_Batch = TypeVar("_Batch")


class MiniBatches(Generic[_Batch]):
    """The batches of an epoch; each iteration is a new epoch. Made by `minibatches`."""

    def __init__(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        *,
        batch_size: int | None = 64,
        shuffle: bool = True,
        rng: "np.random.Generator | int | None" = None,
        axis: int = 0,
        drop_last: bool = False,
    ) -> None:
        self._x = np.asanyarray(x)
        self._y = None if y is None else np.asanyarray(y)
        self._axes = [_axis_of(self._x, "x", axis)]
        self.examples: int = self._x.shape[self._axes[0]]
        if self._y is not None:
            # One label an example, whether the examples lie in rows or in columns.
            self._axes.append(0 if self._y.ndim == 1 else _axis_of(self._y, "y", axis))
            examples = self._y.shape[self._axes[1]]
            if examples != self.examples:
                raise ValueError(
                    f"minibatches: y has {examples} examples, expected {self.examples} (as x has)"
                )
        if self.examples == 0:
            raise ValueError("minibatches: x has no examples, expected at least one")
        self.batch_size: int = self.examples
        if batch_size is not None:
            self.batch_size = count("minibatches", "batch_size", batch_size, least=1)
        self.shuffle = flag("minibatches", "shuffle", shuffle)
        self.drop_last = flag("minibatches", "drop_last", drop_last)
        self._rng = np.random.default_rng(rng)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self.examples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[_Batch]:
        """Yield the batches of one epoch."""
        order = self._rng.permutation(self.examples) if self.shuffle else None
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            batch: Any = self._cut(self._x, self._axes[0], part, order)
            if self._y is not None:
                batch = batch, self._cut(self._y, self._axes[1], part, order)
            yield batch

    @staticmethod
    def _cut(
        array: npt.NDArray[Any], axis: int, part: slice, order: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[Any]:
        if order is None:
            return array[(slice(None),) * axis + (part,)]
        return np.take(array, order[part], axis)


def _axis_of(array: npt.NDArray[Any], name: str, axis: int) -> int:
    axis = count("minibatches", "axis", axis, least=-(2**63))
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(
            f"minibatches: axis is {axis}, expected an axis of {name}, which has {array.ndim}"
        )
    return axis % array.ndim


def minibatches(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    batch_size: int | None = 64,
    shuffle: bool = True,
    rng: "np.random.Generator | int | None" = None,
    axis: int = 0,
    drop_last: bool = False,
) -> MiniBatches[Any]:
    """Cut examples into mini-batches, shuffled anew for each epoch.

    Parameters
    ----------
    x : array, shape (m, ...) or (..., m)
        The examples, along `axis`.
    y : array, optional
        Their labels: along `axis` too, or of shape (m,).
    batch_size : int or None
        Examples a batch; None means all of them (batch gradient descent). The last batch of an
        epoch may be smaller.
    shuffle : bool
        Whether to draw a new order for each epoch. Without, batches are views of `x` and `y`.
    rng : numpy.random.Generator or int, optional
        Where the order comes from; the same seed gives the same batches.
    axis : int
        The axis of the examples: 0 for rows, 1 or -1 for columns.
    drop_last : bool
        Leave out a last batch that is smaller than the others.

    Returns
    -------
    MiniBatches
        Each iteration over it is an epoch of batches: ``x`` alone, or pairs ``(x, y)``. Its length
        is the number of batches in an epoch.

    Raises
    ------
    TypeError
        If `batch_size` or `axis` is no integer; if `shuffle` or `drop_last` is no bool.
    ValueError
        If `x` and `y` differ in their number of examples, if there are none, if `axis` is out of
        range or `batch_size` below 1.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, section 8.1.3.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> batches = schuss.minibatches(np.arange(10), batch_size=4, shuffle=False)
    >>> len(batches), [batch.tolist() for batch in batches]
    (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    """
    return MiniBatches(
        x, y, batch_size=batch_size, shuffle=shuffle, rng=rng, axis=axis, drop_last=drop_last
    )
