"""The arrays that an optimizer keeps along its parameters."""

from collections.abc import Mapping, Sequence
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
from schuss._blocks import new_blocks
from schuss._hyperparameters import choice

States: TypeAlias = dict[str, list[Array]]
"""Arrays by name, each list in the order of the parameters."""
Arrays: TypeAlias = Mapping[str, Sequence[Array | None]]
"""The same with masters, which some parameters do not have."""

StateDtype: TypeAlias = np.dtype[Any] | Literal["8bit"] | None
"""The dtype of states, or "8bit"; None: the dtype in which each parameter is computed."""

# A rule keeps up to three states. The averages, then the masters, follow them in memory.
_MAX_STATES = 3


@dataclass(frozen=True)
class StateFormat:
    """The number format of the state of one optimizer."""

    dtype: StateDtype
    complex: str
    """Whether second moments of complex parameters are of the "components" or the "modulus"."""

    def new(self, param: Array, index: int, initial: float, *, is_second_moment: bool) -> Array:
        """Return a new state of a parameter; `index` counts its states from 1."""
        dtype = computed_dtype(param)
        if isinstance(self.dtype, str):
            blocks = new_blocks(param, index, initial, nonnegative=is_second_moment)
            if blocks is not None:
                return blocks
        elif self.dtype is not None:
            dtype = self.dtype
        if is_second_moment and self.complex == "modulus":
            dtype = dtype.type(0).real.dtype
        state = zeros_like_strided(param, index, dtype)
        if initial != 0:
            with np.errstate(all="ignore"):  # the core refuses a value that the dtype cannot hold
                components(state)[...] = initial
        return state


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
) -> States:
    """Return the states of these names: the existing ones, and new ones for the others.

    initial: for each parameter, the first values of states that do not begin with zeros.
    """
    if list(states) == names:
        return states
    return {
        name: states.get(name)
        or [
            format.new(param, index, values.get(name, 0.0), is_second_moment=name in second_moments)
            for param, values in zip(params, initial, strict=True)
        ]
        for index, name in enumerate(names, start=1)
    }


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
        has_low = any(param.dtype.itemsize == 2 for param in core.arrays)
        for average, values in zip(new, core.values if has_low else core.arrays, strict=True):
            np.copyto(average, values)
    return new


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
