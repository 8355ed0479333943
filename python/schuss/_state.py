"""The arrays that an optimizer keeps along its parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from schuss import _core
from schuss._arrays import (
    Array,
    ArrayLike,
    components,
    computed_dtype,
    parse_dtype,
    zeros_like_strided,
)
from schuss._blocks import has_blocks, new_blocks, start_blocks
from schuss._hyperparameters import choice
from schuss.reference._square_code import FEWEST, block_dtype, blocks_of

States: TypeAlias = dict[str, list[Array]]
"""Arrays by name, each list in the order of the parameters."""
Arrays: TypeAlias = Mapping[str, Sequence[Array | None]]
"""The same with masters, which some parameters do not have."""

StateDtype: TypeAlias = np.dtype[Any] | Literal["8bit"] | None
"""The dtype of states, or "8bit"; None: the dtype in which each parameter is computed."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of the parameters that an optimizer steps, and keeps state for.

    A piece has consecutive elements of a parameter, in the order of its memory. It begins at a
    block of 8-bit state.
    """

    arrays: Sequence[Array]
    """One for each parameter, of one dimension and without gaps; it may be empty."""
    bounds: Sequence[tuple[int, int]]
    """Where each begins and ends in its parameter, in elements."""
    sizes: Sequence[int]
    """The numbers of elements of the whole parameters."""
    first: Sequence[int]
    """Where each piece begins among all elements; complex numbers count as two."""
    new_zeros: Callable[[str, Sequence[tuple[int, np.dtype[Any]]]], list[Array]] | None = None
    """Returns zeros for the states of a name, of the size and dtype of each; None: in memory."""


# A rule keeps up to three states. The averages, then the masters, follow them in memory.
_MAX_STATES = 3


@dataclass(frozen=True)
class StateFormat:
    """The number format of the state of one optimizer."""

    dtype: StateDtype
    complex: str
    """Whether second moments of complex parameters are of the "components" or the "modulus"."""

    def of(self, param: Array, size: int, *, is_second_moment: bool) -> np.dtype[Any]:
        """Return the dtype of a state of a parameter, which is a piece of one of that size."""
        if isinstance(self.dtype, str):
            has_blocks = size >= FEWEST
            return block_dtype(is_second_moment) if has_blocks else computed_dtype(param)
        dtype = computed_dtype(param) if self.dtype is None else self.dtype
        if is_second_moment and self.complex == "modulus":
            dtype = dtype.type(0).real.dtype
        return dtype


def state_format(call: str, dtype: Any, complex: str, params: Sequence[Array]) -> StateFormat:
    """Return the format that the arguments ask for, or raise TypeError or ValueError."""
    complex = choice(call, "complex", complex, among=("components", "modulus"))
    if dtype is None:
        return StateFormat(None, complex)
    is_8bit = isinstance(dtype, str) and dtype == "8bit"
    if not is_8bit:
        dtype = parse_dtype(call, "state_dtype", dtype, ("float32", "bfloat16", "8bit"))
    for param in params:
        if computed_dtype(param) != np.float32:
            name = dtype if is_8bit else dtype.name
            raise ValueError(
                f"{call}: state_dtype is {name!r} where a parameter is {param.dtype}, "
                "expected parameters in float32, float16 or bfloat16"
            )
    return StateFormat(None if dtype == np.float32 else dtype, complex)


def with_names(
    states: States,
    names: list[str],
    second_moments: list[str],
    format: StateFormat,
    params: Sequence[Array],
    initial: Sequence[Mapping[str, float]],
    pieces: Pieces | None,
    *,
    by_row: bool,
) -> States:
    """Return the states of these names: the existing ones, and new ones for the others.

    states: they may lack parameters at the end. initial: for each parameter, the first values of
    states that do not begin with zeros. pieces: describes the parameters, if they are pieces of
    others. by_row: whether states have a number for each row of a parameter.
    """
    if list(states) == names and all(len(each) == len(params) for each in states.values()):
        return states
    sizes = [param.size for param in params] if pieces is None else pieces.sizes

    def of(name: str, slot: int) -> list[Array]:
        known = states.get(name, [])
        added = slice(len(known), None)
        dtypes = [
            format.of(param, size, is_second_moment=name in second_moments)
            for param, size in zip(params[added], sizes[added], strict=True)
        ]
        new = list(zip(params[added], dtypes, strict=True))
        if by_row:
            new_zeros = [np.zeros(param.shape[:1], dtype) for param, dtype in new]
        elif pieces is None or pieces.new_zeros is None:
            new_zeros = [_zeros(*each, slot) for each in new]
        else:
            new_zeros = pieces.new_zeros(name, [(_length(*each), each[1]) for each in new])
        for state, param, values in zip(new_zeros, params[added], initial[added], strict=True):
            _start(state, param, values.get(name, 0.0))
        return known + new_zeros

    return {name: of(name, slot) for slot, name in enumerate(names, start=1)}


def _length(param: Array, dtype: np.dtype[Any]) -> int:
    """Return the number of items of a state."""
    return param.size if dtype.names is None else blocks_of(param.size)


def _zeros(param: Array, dtype: np.dtype[Any], slot: int) -> Array:
    """Return a state of zeros; `slot` counts those of a parameter from 1."""
    if dtype.names is None:
        return zeros_like_strided(param, slot, dtype)
    return new_blocks(param, slot, dtype)


def _start(state: Array, param: Array, initial: float) -> None:
    """Set all elements of a state of zeros to a value."""
    if initial == 0:
        return
    with np.errstate(all="ignore"):  # the core refuses a value that the dtype cannot hold
        if has_blocks(state):
            start_blocks(state, param.size, initial)
        else:
            components(state)[...] = initial


def averages_for(
    averages: list[Array] | None,
    core: _core.Optimizer,
    settings: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
) -> list[Array] | None:
    """Return the averages for new settings: the existing ones, if they begin alike, or new ones."""
    if settings["average"] is None:
        return None
    from_zero = settings["average_bias_correction"]
    if averages is not None and from_zero == before["average_bias_correction"]:
        return averages
    new = [
        zeros_like_strided(param, _MAX_STATES + 1, computed_dtype(param)) for param in core.arrays
    ]
    if not from_zero:
        start_averages(new, core)
    return new


def start_averages(averages: list[Array], core: _core.Optimizer) -> None:
    """Set averages to the values of the parameters."""
    has_low = any(param.dtype.itemsize == 2 for param in core.arrays)
    for average, values in zip(averages, core.values if has_low else core.arrays, strict=True):
        np.copyto(average, values)


def new_sums(params: Sequence[Array]) -> list[Array]:
    """Return arrays in which gradients of the parameters can be accumulated."""
    return [zeros_like_strided(param, 0, computed_dtype(param)) for param in params]


def copied(arrays: Sequence[Array | None]) -> list[Array | None]:
    """Return copies of arrays, in the same memory layouts."""
    return [None if array is None else array.copy(order="K") for array in arrays]


def fill(targets: Arrays, values: Arrays) -> None:
    """Copy values into the arrays of the same names."""
    for name, arrays in targets.items():
        for target, value in zip(arrays, values[name], strict=True):
            if target is not None and value is not None:
                np.copyto(target, value)


def clear(arrays: Sequence[Array | None]) -> None:
    """Set all elements of arrays to zero."""
    for array in arrays:
        if array is not None:
            array[...] = 0


def is_dtype(copies: Any) -> bool:
    """Return whether the argument `copies` asks for new arrays of a dtype."""
    return isinstance(copies, str | type | np.dtype)


def copies_for(call: str, copies: Any, core: _core.Optimizer) -> list[ArrayLike] | None:
    """Return the copies that the argument asks for, or raise TypeError or ValueError."""
    if copies is None:
        return None
    for array in core.arrays:
        if array.dtype != np.float32:
            raise ValueError(
                f"{call}: copies are given but a parameter is {array.dtype}, expected "
                "parameters in float32"
            )
    if is_dtype(copies):
        dtype = parse_dtype(call, "copies", copies, ("float16", "bfloat16"))
        return [zeros_like_strided(array, 0, dtype) for array in core.arrays]
    return core.hold_copies(copies, call)
