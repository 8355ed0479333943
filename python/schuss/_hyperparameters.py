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

Check: TypeAlias = Callable[[str, str, Any], _T]
"""``check(call, name, value)`` returns the value as it is meant, or raises.

What it raises is a TypeError or a ValueError.
"""

MOST = 2**53 - 1  # of what is counted: floating point counts no further

_LONGEST_SHOWN = 200


def shown(value: object) -> str:
    """Return a value as messages show it: a text of bounded length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of many digits, deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def real(call: str, name: str, value: object) -> float:
    """Return any real number as a float, NaN and infinities too, or raise TypeError.

    An array without axes, NumPy's or anyone's, is a number.
    """
    if type(value) is float:
        return value
    try:
        item = _without_axes(value)
    except (RuntimeError, TypeError, ValueError):  # of a tensor without memory
        raise TypeError(f"{call}: {name} is {shown(value)}, expected a number") from None
    # NumPy registers its durations as integers.
    if isinstance(item, bool | np.timedelta64) or not isinstance(item, Real):
        raise TypeError(f"{call}: {name} is a {type(item).__name__}, expected a number")
    value = item
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]


def _without_axes(value: Any) -> Any:
    """Return what an array without axes holds, and anything else as it is."""
    if isinstance(value, Real) or getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "mM":
            return value  # of some units, item() is an int
        if hasattr(value, "mask"):
            return value  # a masked number is none
    return value.item()


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
        raise ValueError(f"{call}: {name} is {shown(was)}, expected {expected}")
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
    raise TypeError(f"{call}: {name} is {shown(value)}, expected True or False")


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
    raise error(f"{call}: {name} is {shown(value)}, expected {expected}")


def optional(check: Check[_T]) -> Check[_T | None]:
    """Return a check that lets None pass."""

    def check_unless_none(call: str, name: str, value: Any) -> _T | None:
        return None if value is None else check(call, name, value)

    return check_unless_none


def _integer(call: str, name: str, value: Any) -> int:
    try:
        # PyTorch takes its bools for integers, and its arrays of one element with axes too.
        item = _without_axes(value)
        if isinstance(item, bool) or getattr(value, "shape", ()) != () or hasattr(item, "mask"):
            raise TypeError
        return operator.index(value)
    except (RuntimeError, TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"{call}: {name} is a {kind}, expected an integer") from None


def count(call: str, name: str, value: object, *, least: int, most: int = MOST) -> int:
    """Return an integer in a range, or raise TypeError or ValueError if it is none."""
    result = value if type(value) is int else _integer(call, name, value)
    if not least <= result <= most:
        bound = "2**53" if most == MOST else most + 1
        above = f" and < {bound}" if result >= least else ""
        raise ValueError(
            f"{call}: {name} is {shown(result)}, expected an integer >= {least}{above}"
        )
    return result


def extended(call: str, name: str, value: object) -> float:
    """Return a float that may be infinite, or raise TypeError or ValueError if it is none."""
    result = real(call, name, value)
    if result != result:
        raise ValueError(f"{call}: {name} is nan, expected a number")
    return result


def mapping(call: str, name: str, value: Any) -> Mapping[Any, Any]:
    """Return a mapping as it is, or raise TypeError if it is none."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a mapping")
    return value


def check_keys(call: str, name: str, value: object, expected: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless it is a mapping with these keys."""
    keys = mapping(call, name, value)
    if set(keys) != set(expected):
        was = shown(list(keys))
        raise ValueError(f"{call}: {name} has the keys {was}, expected {list(expected)}")


def anything(call: str, name: str, value: Any) -> Any:
    """Return a value as it is: it is checked elsewhere."""
    return value


def record(**fields: Check[Any]) -> Check[dict[str, Any]]:
    """Return a check of a mapping with these keys, whose values pass through their own checks."""

    def check(call: str, name: str, value: Any) -> dict[str, Any]:
        check_keys(call, name, value, tuple(fields))
        return {
            key: of_field(call, f"{name}[{key!r}]", value[key]) for key, of_field in fields.items()
        }

    return check


def same(expected: Any) -> Check[Any]:
    """Return a check that lets pass nothing but this value, or this list, of these types."""

    def types(value: Any) -> list[type]:
        return [type(value), *(map(type, value) if isinstance(value, list) else ())]

    def check(call: str, name: str, value: Any) -> Any:
        if types(value) != types(expected) or value != expected:
            raise ValueError(
                f"{call}: {name} is {shown(value)}, expected {expected!r} as it is here"
            )
        return value

    return check


def axis_of(call: str, axis: object, array: npt.NDArray[Any], name: str) -> int:
    """Return an axis of the array, counted from 0, or raise TypeError or ValueError."""
    result = count(call, "axis", axis, least=-(2**63))
    if not -array.ndim <= result < array.ndim:
        raise ValueError(
            f"{call}: axis is {result}, expected an axis of {name}, which has {array.ndim}"
        )
    return result % array.ndim
