"""The hyperparameters of every rule and the values they may take: checked here, nowhere else."""

import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Rate: TypeAlias = float | Callable[[int], float]
"""A learning rate: a number, or a schedule, that is, a function of the step counted from 1."""

_FRACTION = (0.0, 1.0)
_NON_NEGATIVE = (0.0, float("inf"))

_ANY = (-float("inf"), float("inf"))
_AT_LEAST_ONE = (1.0, float("inf"))

_RANGES = {
    "non_negative": _NON_NEGATIVE,
    "lr": _NON_NEGATIVE,
    "weight_decay": _NON_NEGATIVE,
    "eps": _NON_NEGATIVE,
    "eps_root": _NON_NEGATIVE,
    "beta": _FRACTION,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "dampening": _FRACTION,
    "momentum": _FRACTION,
    "clip_norm": _NON_NEGATIVE,
    "clip_value": _NON_NEGATIVE,
    "scale": _ANY,
    # Of the scale of a loss.
    "init_scale": _NON_NEGATIVE,
    "growth_factor": _AT_LEAST_ONE,
    "backoff_factor": _FRACTION,
    # Of schedules.
    "t": _AT_LEAST_ONE,
    **dict.fromkeys(("start", "end", "peak", "min_lr"), _NON_NEGATIVE),
    **dict.fromkeys(("rate", "base", "k", "factor", "decay", "power"), _NON_NEGATIVE),
    "threshold": _NON_NEGATIVE,
    "rise": _FRACTION,
    "shrink": _FRACTION,
    "start_divisor": _AT_LEAST_ONE,
    "end_divisor": _AT_LEAST_ONE,
    # Of landscapes.
    "condition": _AT_LEAST_ONE,
    **dict.fromkeys(("a", "b"), _NON_NEGATIVE),
}

_ABOVE_THE_LEAST = ("init_scale", "growth_factor", "backoff_factor")

_T = TypeVar("_T")


def real(call: str, name: str, value: object) -> float:
    """Return any real number as a float, NaN and infinities too, or raise TypeError.

    An array without axes, NumPy's or anyone's, is a number.
    """
    if type(value) is float:
        return value
    if not isinstance(value, Real) and getattr(value, "shape", None) == ():
        value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]


def number(call: str, name: str, value: object, *, kind: str | None = None) -> float:
    """Return a hyperparameter as a float within its range: that of `kind`, or else of its name.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is out of range or not finite.
    """
    result = real(call, name, value)
    low, high = _RANGES[kind or name]
    above = low == -np.inf or (kind or name) in _ABOVE_THE_LEAST
    if not low <= result < high or (above and result == low):
        least = "" if low == -np.inf else f" {'>' if above else '>='} {low:g}"
        bracket = "(" if above else "["
        expected = f"a number in {bracket}{low:g}, {high:g})" if high < np.inf else ""
        expected = expected or f"a finite number{least}"
        was = value if type(value) is int and value == result else result
        raise ValueError(f"{call}: {name} is {was!r}, expected {expected}")
    return result


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


def rate(call: str, name: str, value: Any) -> Rate:
    """Return a learning rate: a number within its range, or a schedule as it is."""
    if isinstance(value, type):
        was = value.__name__
        raise TypeError(f"{call}: {name} is the class {was}, expected a number or a schedule")
    if callable(value):
        schedule: Callable[[int], float] = value
        return schedule
    return number(call, name, value, kind="lr")


def choice(call: str, name: str, value: Any, *, among: tuple[str, ...]) -> str:
    """Return a word that is one of those to choose among, or raise TypeError or ValueError."""
    if isinstance(value, str) and value in among:
        return value
    error = ValueError if isinstance(value, str) else TypeError
    expected = " or ".join(map(repr, among))
    raise error(f"{call}: {name} is {value!r}, expected {expected}")


def optional(check: Callable[[str, str, Any], _T]) -> Callable[[str, str, Any], _T | None]:
    """Return a check that lets None pass."""

    def check_unless_none(call: str, name: str, value: Any) -> _T | None:
        return None if value is None else check(call, name, value)

    return check_unless_none


def count(call: str, name: str, value: object, *, least: int) -> int:
    """Return a counter as an int, or raise TypeError or ValueError if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{call}: {name} is a {kind}, expected an integer") from None
    if not least <= result < 2**53:  # beyond, floating point cannot count
        most = " and < 2**53" if result >= least else ""
        raise ValueError(f"{call}: {name} is {result}, expected an integer >= {least}{most}")
    return result


def check_keys(call: str, name: str, mapping: object, expected: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless it is a mapping with these keys."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{call}: {name} is a {type(mapping).__name__}, expected a mapping")
    if set(mapping) != set(expected):
        raise ValueError(f"{call}: {name} has the keys {list(mapping)}, expected {list(expected)}")


def axis_of(call: str, axis: object, array: npt.NDArray[Any], name: str) -> int:
    """Return an axis of the array, counted from 0, or raise TypeError or ValueError."""
    result = count(call, "axis", axis, least=-(2**63))
    if not -array.ndim <= result < array.ndim:
        raise ValueError(
            f"{call}: axis is {result}, expected an axis of {name}, which has {array.ndim}"
        )
    return result % array.ndim
