"""The hyperparameters of every rule and the values they may take: checked here, nowhere else."""

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np

Schedule: TypeAlias = Callable[[int], float]
"""A learning rate as a function of the step, counted from 1."""

_FRACTION = (0.0, 1.0)
_NON_NEGATIVE = (0.0, float("inf"))

_RANGES = {
    "lr": _NON_NEGATIVE,
    "weight_decay": _NON_NEGATIVE,
    "eps": _NON_NEGATIVE,
    "eps_root": _NON_NEGATIVE,
    "beta": _FRACTION,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "dampening": _FRACTION,
    "momentum": _FRACTION,
}

_T = TypeVar("_T")


def number(call: str, name: str, value: object) -> float:
    """Return a hyperparameter as a float within its range.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is out of range or not finite.
    """
    if type(value) is not float:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a number")
        try:
            value = float(value)
        except OverflowError:
            value = np.inf
    low, high = _RANGES[name]
    if not low <= value < high:
        expected = f"a number in [{low:g}, {high:g})" if high < np.inf else "a finite number >= 0"
        raise ValueError(f"{call}: {name} is {value!r}, expected {expected}")
    return value


def numbers(call: str, **values: object) -> dict[str, float]:
    """Return hyperparameters as floats within their ranges; see `number`."""
    for name, value in values.items():
        low, high = _RANGES[name]
        if type(value) is not float or not low <= value < high:
            values[name] = number(call, name, value)
    return values  # type: ignore[return-value]  # each is a float now


def flag(call: str, name: str, value: object) -> bool:
    """Return a switch as a bool, or raise TypeError if it is none."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{call}: {name} is {value!r}, expected True or False")


def rate(call: str, name: str, value: Any) -> float | Schedule:
    """Return a learning rate: a number within its range, or a schedule as it is."""
    if callable(value):
        schedule: Schedule = value
        return schedule
    return number(call, name, value)


def optional(check: Callable[[str, str, Any], _T]) -> Callable[[str, str, Any], _T | None]:
    """Return a check that lets None pass."""

    def check_unless_none(call: str, name: str, value: Any) -> _T | None:
        return None if value is None else check(call, name, value)

    return check_unless_none


def count(call: str, name: str, value: object, *, least: int) -> int:
    """Return a counter as an int, or raise TypeError or ValueError if it is none."""
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{call}: {name} is a {kind}, expected an integer") from None
    if not least <= result < 2**53:  # beyond, floating point cannot count
        most = " and < 2**53" if result >= least else ""
        raise ValueError(f"{call}: {name} is {result}, expected an integer >= {least}{most}")
    return result
