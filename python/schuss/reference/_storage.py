"""How parameters and states are kept between steps: the values of a step, read and written."""

from typing import Any

import numpy as np

from schuss._arrays import Array, components, computed_dtype
from schuss.reference._masters import MASTERS, join, split
from schuss.reference._norm import in_memory_order
from schuss.reference._numbers import widen
from schuss.reference._random import random_stream, rounded_at_random
from schuss.reference._square_code import FEWEST, block_dtype, decode, encode

_PARAMETER = 3
"""The number of the parameter's random bits, after those of up to three states."""


class Rounding:
    """The random bits of one parameter in one step."""

    __slots__ = ("_first", "_param", "_seed", "_step")

    def __init__(self, param: Array, seed: int, step: int, first: int) -> None:
        """Take the parameter, and the index of its first element among those of all parameters."""
        self._param, self._seed, self._step, self._first = param, seed, step, first

    def store_state(self, state: Array, values: Array, number: int) -> None:
        """Write the values of the state of this number, unless they are the state itself."""
        if state is values:
            return
        if is_blocks(state):
            is_second = number % 2 == 1
            stream = random_stream(self._seed, self._step, number - is_second)
            state[...] = encoded_like(state, values, self._param, stream, self._first, is_second)
            return
        stream = random_stream(self._seed, self._step, number)
        ordered = in_memory_order(values, self._param)
        in_memory_order(state, self._param)[...] = rounded_at_random(ordered, stream, self._first)

    def store_param(self, param: Array, values: Array) -> None:
        """Write the values to a parameter in bfloat16, rounded at random."""
        ordered = in_memory_order(values, param)
        in_memory_order(param, param)[...] = rounded_at_random(ordered, self._stream, self._first)

    def store_master(self, low: Array, values: Array) -> None:
        """Write the values to the parameter and to its master."""
        arrays = [in_memory_order(array, self._param) for array in (self._param, low, values)]
        arrays[0][...], arrays[1][...] = split(arrays[2], low.dtype, self._stream, self._first)

    @property
    def _stream(self) -> int:
        return random_stream(self._seed, self._step, _PARAMETER)


def new_state(
    param: Array, dtype: Any, initial: float, *, nonnegative: bool, modulus: bool, by_row: bool
) -> Array:
    """Return a state of a parameter in that dtype, by default the one of the computation.

    Large ones of "8bit" are blocks. modulus: whether a complex parameter has a real state. by_row:
    whether the state has a number for each row.
    """
    is_8bit = dtype == "8bit"
    state: Array = np.zeros(
        param.shape[:1] if by_row else param.shape,
        computed_dtype(param) if is_8bit or dtype is None else dtype,
    )
    state = state.real.copy() if modulus else state
    components(state)[...] = initial
    if not is_8bit or param.size < FEWEST:
        return state
    return encoded_like(np.empty(0, block_dtype(nonnegative)), state, param)


def new_master(param: Array, master: str) -> Array | None:
    """Return the master of a parameter at first; None if the parameter lacks no bits."""
    return np.zeros(param.shape, MASTERS[master]) if param.dtype.name == "bfloat16" else None


def shown_state(state: Array, param: Array) -> Array:
    """Return a state as users see it: itself, or the values of its blocks, read-only."""
    if is_blocks(state):
        state = state_values(state, param)
        state.flags.writeable = False
    return state


def is_blocks(state: Array) -> bool:
    """Return whether a state has the 8-bit code."""
    return state.dtype.names is not None


def encoded_like(
    blocks: Array,
    values: Array,
    param: Array,
    stream: int | None = None,
    first: int = 0,
    is_second: bool = False,
) -> Array:
    """Return the values of a parameter's state in blocks like these; see `encode`."""
    nonnegative = bool(blocks["codes"].dtype == np.uint8)
    return encode(in_memory_order(values, param).ravel(), nonnegative, stream, first, is_second)


def state_values(state: Array, param: Array) -> Array:
    """Return the values of a state in the dtype of the computation; itself if that is its own."""
    if not is_blocks(state):
        return widen(state)
    values: Array = np.empty(param.shape, np.float32)
    ordered = in_memory_order(values, param)
    ordered[...] = decode(state, param.size).reshape(ordered.shape)
    return values


def param_values(param: Array, low: Array | None) -> Array:
    """Return the values of a parameter in the dtype of the computation; itself if that is its own.

    low: its master, if there is one.
    """
    return widen(param) if low is None else join(param, low)
