"""Saved states, in blocks or not, and the states of an optimizer that they are loaded into."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from schuss._arrays import Array, Order, memory_order
from schuss._blocks import decoded, encoded, has_blocks
from schuss._hyperparameters import record, same, shown
from schuss.reference._square_code import BLOCK, FEWEST, block_dtype, blocks_of

_CODE = "square8"  # the name of the code of blocks


def description(params: Sequence[Array]) -> dict[str, Any]:
    """Return what is saved of blocks: their code, and the order of each parameter's elements."""
    orders = [None if param.size < FEWEST else memory_order(param) for param in params]
    return {"code": _CODE, "elements": BLOCK, "orders": orders}


@dataclass(frozen=True)
class Conversion:
    """What makes a state of a parameter of a saved one: the values stay, to rounding."""

    call: str
    """What messages begin with."""
    shape: tuple[int, ...]
    order: Order
    """That of the parameter's elements in memory."""
    saved_order: Order
    """The same when the state was saved."""

    def source(self, state: Array, *, from_blocks: bool, nonnegative: bool) -> Array:
        """Return an array like the saved ones that can become a state."""
        if from_blocks and state.dtype == np.float32:
            return np.empty(blocks_of(prod(self.shape)), block_dtype(nonnegative))
        if not from_blocks and has_blocks(state):
            return np.empty(self.shape, np.float32)
        return state

    def is_needed(self, saved: Array, state: Array) -> bool:
        """Return whether a saved array has another format than the state."""
        return saved.dtype != state.dtype or (has_blocks(state) and self.order != self.saved_order)

    def __call__(self, saved: Array, state: Array) -> Array:
        """Return a saved array in the format of the state; itself if it has that."""
        if has_blocks(saved) and ((saved["scale"] < 0) | np.isinf(saved["scale"])).any():
            raise ValueError(
                f"{self.call}: a block of a state has a negative or infinite scale, expected "
                "blocks that an optimizer of schuss wrote"
            )
        if not self.is_needed(saved, state):
            return saved
        if has_blocks(saved):
            saved = decoded(saved, self.shape, self.saved_order)
        if has_blocks(state):
            nonnegative = state.dtype == block_dtype(True)
            if nonnegative and (saved < 0).any():
                raise ValueError(
                    f"{self.call}: a state that is never negative has {saved.min()}, expected "
                    "numbers >= 0"
                )
            saved = encoded(saved, self.order, nonnegative=nonnegative)
        return saved


def conversions(params: Sequence[Array], call: str, name: str, given: Any) -> list[Conversion]:
    """Return the conversion of the states of each parameter, or raise TypeError or ValueError.

    given: the description that was saved with them; None if there were no blocks.
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
        Conversion(call, param.shape, order, saved_order)
        for param, order, saved_order in zip(params, orders, saved_orders, strict=True)
    ]


def _checked_order(call: str, name: str, given: Any, here: Order) -> Order:
    is_order = isinstance(given, list) and {*map(type, given)} <= {int}
    if is_order and sorted(map(_axis, given)) == sorted(map(_axis, here)):
        return given  # type: ignore[no-any-return]
    raise ValueError(f"{call}: {name} is {shown(given)}, expected axes in an order, as {here}")


def _axis(entry: int) -> int:
    return ~entry if entry < 0 else entry
