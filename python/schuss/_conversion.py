"""Saved states, in blocks or not, and the states of an optimizer that they are loaded into."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

from schuss._arrays import Array, Order, in_order, memory_order
from schuss._blocks import decoded, encoded, has_blocks
from schuss._hyperparameters import record, same, shown
from schuss.reference._square_code import BLOCK, FEWEST, block_dtype, blocks_of

_CODE = "square8"  # the name of the code of blocks


def description(params: Sequence[Array]) -> dict[str, Any]:
    """Return what is saved of blocks: their code, and the order of each parameter's elements."""
    orders = [None if param.size < FEWEST else memory_order(param) for param in params]
    return {"code": _CODE, "elements": BLOCK, "orders": orders}


Bounds: TypeAlias = tuple[int, int] | None
"""The elements of a parameter that an optimizer steps, in the order of its memory; None for all."""


@dataclass(frozen=True)
class Conversion:
    """What makes a state of a parameter of a saved one: the values stay, to rounding.

    An optimizer of pieces makes the state of a piece of the saved one of the whole parameter.
    """

    call: str
    """What messages begin with."""
    shape: tuple[int, ...]
    order: Order
    """That of the parameter's elements in memory."""
    saved_order: Order
    """The same when the state was saved."""
    bounds: Bounds = None
    """Where the piece begins and ends; None for a whole parameter."""

    def like(self, state: Array) -> Array:
        """Return an array like what is saved of a state: of the whole parameter."""
        if self.bounds is None:
            return state
        size = prod(self.shape)
        return np.empty(blocks_of(size) if has_blocks(state) else self.shape, state.dtype)

    def source(self, state: Array, *, from_blocks: bool, nonnegative: bool) -> Array:
        """Return an array like the saved ones that can become a state."""
        if from_blocks and state.dtype == np.float32:
            return np.empty(blocks_of(prod(self.shape)), block_dtype(nonnegative))
        if not from_blocks and has_blocks(state):
            return np.empty(self.shape, np.float32)
        return self.like(state)

    def is_needed(self, saved: Array, state: Array) -> bool:
        """Return whether a saved array has another format than the state."""
        return saved.dtype != state.dtype or (has_blocks(state) and self.order != self.saved_order)

    def __call__(self, saved: Array, state: Array) -> Array:
        """Return a saved array in the format of the state; itself if it has that."""
        if self.bounds is not None:
            return self.of_piece(self.piece(saved), state)
        self._check_scales(saved)
        if not self.is_needed(saved, state):
            return saved
        if has_blocks(saved):
            saved = decoded(saved, self.shape, self.saved_order)
        return self._encoded(saved, state, self.order)

    def range_in_file(self, *, in_blocks: bool) -> tuple[int, int] | None:
        """Return where the piece begins and ends in a saved array, in items of that in C order.

        None if it is not in one range there, or is the whole array.
        """
        if self.bounds is None:
            return None
        begin, end = self.bounds
        if begin == end:
            return 0, 0
        if in_blocks:
            is_range, begin, end = self.order == self.saved_order, begin // BLOCK, blocks_of(end)
        else:
            is_range = is_c_order(self.order, self.shape)
        return (begin, end) if is_range else None

    def piece(self, saved: Array) -> Array:
        """Return the piece of a whole array that was saved, on one axis: values, or blocks."""
        self._check_scales(saved)
        bounds = self.range_in_file(in_blocks=has_blocks(saved))
        if bounds is not None:
            return saved.reshape(-1)[slice(*bounds)]
        if has_blocks(saved):
            saved = decoded(saved, self.shape, self.saved_order)
        assert self.bounds is not None
        values: Array = in_order(saved, self.order).flat[slice(*self.bounds)]
        return values

    def of_piece(self, saved: Array, state: Array) -> Array:
        """Return a piece that was saved in the format of the state of a piece."""
        self._check_scales(saved)
        if has_blocks(saved) and not has_blocks(state):
            return decoded(saved, state.shape, [0])
        return saved if has_blocks(saved) else self._encoded(saved, state, [0])

    def _encoded(self, values: Array, state: Array, order: Order) -> Array:
        """Return values in blocks, if those of the state are."""
        if not has_blocks(state):
            return values
        nonnegative = state.dtype == block_dtype(True)
        if nonnegative and (values < 0).any():
            raise ValueError(
                f"{self.call}: a state that is never negative has {values.min()}, expected "
                "numbers >= 0"
            )
        return encoded(values, order, nonnegative=nonnegative)

    def _check_scales(self, saved: Array) -> None:
        if has_blocks(saved) and ((saved["scale"] < 0) | np.isinf(saved["scale"])).any():
            raise ValueError(
                f"{self.call}: a block of a state has a negative or infinite scale, expected "
                "blocks that an optimizer of schuss wrote"
            )


def is_c_order(order: Order, shape: tuple[int, ...]) -> bool:
    """Return whether elements in an order of memory are in C order too."""
    axes = [axis for axis in order if shape[_axis(axis)] > 1]
    return axes == sorted(axes) and min(axes, default=0) >= 0


def conversions(
    params: Sequence[Array], bounds: Sequence[Bounds], call: str, name: str, given: Any
) -> list[Conversion]:
    """Return the conversion of the states of each parameter, or raise TypeError or ValueError.

    bounds: of the pieces of the parameters. given: the description that was saved with the states;
    None if there were no blocks.
    """
    orders = [memory_order(param) for param in params]

    def check_orders(call: str, name: str, given: Any) -> list[Order]:
        if not isinstance(given, list) or len(given) != len(orders):
            raise ValueError(f"{call}: {name} is {shown(given)}, expected a list of {len(orders)}")
        return [
            order if each is None else _checked_order(call, f"{name}[{i}]", each, order)
            for i, (each, order) in enumerate(zip(given, orders, strict=True))
        ]

    check = record(code=same(_CODE), elements=same(BLOCK), orders=check_orders)
    saved_orders = orders if given is None else check(call, name, given)["orders"]
    return [
        Conversion(call, param.shape, order, saved_order, each)
        for param, order, saved_order, each in zip(
            params, orders, saved_orders, bounds, strict=True
        )
    ]


def _checked_order(call: str, name: str, given: Any, here: Order) -> Order:
    is_order = isinstance(given, list) and {*map(type, given)} <= {int}
    if is_order and sorted(map(_axis, given)) == sorted(map(_axis, here)):
        return given  # type: ignore[no-any-return]
    raise ValueError(f"{call}: {name} is {shown(given)}, expected axes in an order, as {here}")


def _axis(entry: int) -> int:
    return ~entry if entry < 0 else entry
