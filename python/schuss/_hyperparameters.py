"""Checks of arguments: numbers in ranges, switches, choices, counts and mappings."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Rate: TypeAlias = float | Callable[[int], float]
"""A learning rate: a number, or a schedule, which is a function of the step counted from 1."""

Bounds: TypeAlias = tuple[float | None, float | None]
"""The lowest and the highest value, each None if there is none."""

_T = TypeVar("_T")

Check: TypeAlias = Callable[[str, str, Any], _T]
"""A function ``check(call, name, value)`` that returns the value, possibly converted.

It raises TypeError or ValueError if the value is not valid.
"""

MOST = 2**53 - 1  # the largest count: floating point represents every integer up to it

_LONGEST_SHOWN = 200


def shown(value: object) -> str:
    """Return the repr of a value for messages, with a bounded length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of many digits, deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def real(call: str, name: str, value: object) -> float:
    """Return a real number as a float, also NaN and infinities, or raise TypeError.

    A zero-dimensional array, of NumPy or of another library, is a number.
    """
    if type(value) is float:
        return value
    try:
        item = _item_of(value)
    except (RuntimeError, TypeError, ValueError):  # from a tensor without memory
        raise TypeError(f"{call}: {name} is {shown(value)}, expected a number") from None
    # NumPy registers timedelta64 as an integer.
    if isinstance(item, bool | np.timedelta64) or not isinstance(item, Real):
        raise TypeError(f"{call}: {name} is a {type(item).__name__}, expected a number")
    value = item
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]


def _item_of(value: Any) -> Any:
    """Return the item of a zero-dimensional array, and any other value as it is."""
    if isinstance(value, Real) or getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "mM":
            return value  # for some units, item() is an int
        if hasattr(value, "mask"):
            return value  # a masked number is not a number
    return value.item()


@dataclass(frozen=True)
class Range:
    """A check of numbers: from `low`, which may be excluded, to below `high`."""

    low: float
    high: float = inf
    excludes_low: bool = False

    def __call__(self, call: str, name: str, value: object) -> float:
        """Return a number of the range as a float, or raise TypeError or ValueError."""
        result = value if type(value) is float else real(call, name, value)
        if self.low < result < self.high or (result == self.low and not self.excludes_low):
            return result
        low, above = self.low, self.excludes_low
        least = "" if low == -inf else f" {'>' if above else '>='} {low:g}"
        bracket = "(" if above else "["
        expected = f"a finite number{least}"
        if self.high < inf:
            expected = f"a number in {bracket}{low:g}, {self.high:g})"
        was = value if type(value) is int and value == result else result
        raise ValueError(f"{call}: {name} is {shown(was)}, expected {expected}")


FINITE = Range(-inf, excludes_low=True)
NON_NEGATIVE = Range(0.0)
POSITIVE = Range(0.0, excludes_low=True)
UNIT = Range(0.0, 1.0)
OPEN_UNIT = Range(0.0, 1.0, excludes_low=True)
AT_LEAST_ONE = Range(1.0)
ABOVE_ONE = Range(1.0, excludes_low=True)


def flag(call: str, name: str, value: object) -> bool:
    """Return a boolean, or raise TypeError."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{call}: {name} is {shown(value)}, expected True or False")


def rate(call: str, name: str, value: Any) -> Rate:
    """Return a learning rate, a number or a schedule, or raise TypeError or ValueError."""
    if isinstance(value, type):
        was = value.__name__
        raise TypeError(f"{call}: {name} is the class {was}, expected a number or a schedule")
    if callable(value):
        schedule: Callable[[int], float] = value
        return schedule
    return NON_NEGATIVE(call, name, value)


def choice(call: str, name: str, value: Any, *, among: tuple[str, ...]) -> str:
    """Return a string that is one of these, or raise TypeError or ValueError."""
    if isinstance(value, str) and value in among:
        return value
    error = ValueError if isinstance(value, str) else TypeError
    expected = " or ".join(map(repr, among))
    raise error(f"{call}: {name} is {shown(value)}, expected {expected}")


def optional(check: Check[_T]) -> Check[_T | None]:
    """Return a check that also accepts None."""

    def check_unless_none(call: str, name: str, value: Any) -> _T | None:
        return None if value is None else check(call, name, value)

    return check_unless_none


def _integer(call: str, name: str, value: Any) -> int:
    try:
        # PyTorch converts its bools to integers, and also its arrays of one element with axes.
        item = _item_of(value)
        if isinstance(item, bool) or getattr(value, "shape", ()) != () or hasattr(item, "mask"):
            raise TypeError
        return operator.index(value)
    except (RuntimeError, TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"{call}: {name} is a {kind}, expected an integer") from None


def count(call: str, name: str, value: object, *, least: int, most: int = MOST) -> int:
    """Return an integer from `least` to `most`, or raise TypeError or ValueError."""
    result = value if type(value) is int else _integer(call, name, value)
    if not least <= result <= most:
        bound = "2**53" if most == MOST else most + 1
        above = f" and < {bound}" if result >= least else ""
        raise ValueError(
            f"{call}: {name} is {shown(result)}, expected an integer >= {least}{above}"
        )
    return result


def extended(call: str, name: str, value: object) -> float:
    """Return a number that may be infinite as a float, or raise TypeError or ValueError."""
    result = real(call, name, value)
    if result != result:
        raise ValueError(f"{call}: {name} is nan, expected a number")
    return result


def interval(call: str, name: str, value: Any) -> Bounds | None:
    """Return two bounds, None where they are infinite, or raise TypeError or ValueError."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        error = ValueError if isinstance(value, tuple | list) else TypeError
        raise error(f"{call}: {name} is {shown(value)}, expected (low, high) or None")
    low, high = (
        open_end if limit is None else extended(call, f"{name}[{i}]", limit)
        for i, (limit, open_end) in enumerate(zip(value, (-inf, inf), strict=True))
    )
    if low > high or low == inf or high == -inf:
        raise ValueError(
            f"{call}: {name} is {shown(value)}, expected (low, high) with low <= high, None where "
            "there is no bound"
        )
    pair = None if low == -inf else low, None if high == inf else high
    return None if pair == (None, None) else pair


def mapping(call: str, name: str, value: Any) -> Mapping[Any, Any]:
    """Return a mapping, or raise TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a mapping")
    return value


def check_keys(call: str, name: str, value: object, expected: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless the value is a mapping with these keys."""
    keys = mapping(call, name, value)
    if set(keys) != set(expected):
        was = shown(list(keys))
        raise ValueError(f"{call}: {name} has the keys {was}, expected {list(expected)}")


def anything(call: str, name: str, value: Any) -> Any:
    """Return a value that is checked elsewhere."""
    return value


def record(**fields: Check[Any]) -> Check[dict[str, Any]]:
    """Return a check of a mapping with these keys, which applies a check to each value."""

    def check(call: str, name: str, value: Any) -> dict[str, Any]:
        check_keys(call, name, value, tuple(fields))
        return {
            key: of_field(call, f"{name}[{key!r}]", value[key]) for key, of_field in fields.items()
        }

    return check


def same(expected: Any) -> Check[Any]:
    """Return a check that accepts only this value; in a list, items of the same types."""

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
    """Return an axis of the array as an index from 0, or raise TypeError or ValueError."""
    result = count(call, "axis", axis, least=-(2**63))
    if not -array.ndim <= result < array.ndim:
        raise ValueError(
            f"{call}: axis is {result}, expected an axis of {name}, which has {array.ndim}"
        )
    return result % array.ndim
