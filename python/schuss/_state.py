"""The arrays that an optimizer keeps along its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
from schuss._hyperparameters import choice

States: TypeAlias = dict[str, list[Array]]
"""Arrays by name, each list in the order of the parameters."""

# A rule keeps up to three states. The averages follow them in memory.
_MAX_STATES = 3


@dataclass(frozen=True)
class StateFormat:
    """The number format of the state of one optimizer."""

    dtype: np.dtype[Any] | None
    """None: the dtype in which each parameter is computed."""
    complex: str
    """Whether second moments of complex parameters are of the "components" or the "modulus"."""

    def new(self, param: Array, index: int, initial: float, *, is_second_moment: bool) -> Array:
        """Return a new state of a parameter; `index` counts its states from 1."""
        dtype = self.dtype or computed_dtype(param)
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
    dtype = parse_dtype(call, "state_dtype", dtype, ("float32", "bfloat16"))
    for param in params:
        if computed_dtype(param) != np.float32:
            raise ValueError(
                f"{call}: state_dtype is {dtype.name!r} where a parameter is {param.dtype}, "
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


def new_averages(params: Sequence[Array], *, from_zero: bool) -> list[Array]:
    """Return averages of the parameters before the first step."""
    averages = []
    for param in params:
        averages.append(zeros_like_strided(param, _MAX_STATES + 1, computed_dtype(param)))
        if not from_zero:
            np.copyto(averages[-1], param)
    return averages


def new_sums(params: Sequence[Array]) -> list[Array]:
    """Return arrays in which gradients of the parameters can be accumulated."""
    return [zeros_like_strided(param, 0, computed_dtype(param)) for param in params]


def copied(arrays: Sequence[Array]) -> list[Array]:
    """Return copies of arrays, in the same memory layouts."""
    return [array.copy(order="K") for array in arrays]


def fill(targets: States, values: States) -> None:
    """Copy values into the arrays of the same names."""
    for name, arrays in targets.items():
        for target, value in zip(arrays, values[name], strict=True):
            np.copyto(target, value)


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
