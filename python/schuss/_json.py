"""JSON for the settings of a checkpoint: how schedules, functions and arrays are represented."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from schuss import schedules
from schuss._arrays import Array
from schuss._hyperparameters import Rate, check_keys, count, shown
from schuss._safetensors import dtype_in_file
from schuss._tensor_reader import File

SECTION = "settings"  # that of the tensors that settings contain
_SCHEDULE, _SAME, _FUNCTION, _ARRAY = (
    f"schuss.{word}" for word in ("schedule", "same", "function", "array")
)
_RESERVED = (_SCHEDULE, _SAME, _FUNCTION)

# Limits on nesting, on the digits of an integer (that of Python), and on the number of values, for
# which JSON takes long or fails.
_MAX_DEPTH, _MAX_DIGITS, _MAX_VALUES = 100, 4300, 50_000_000
_MAX_INTEGER = 10**_MAX_DIGITS - 1


class Function(str):
    """The name of a function that was saved; the function itself is not in the file."""

    __slots__ = ()


# Encoding.


class Encoder:
    """Writes JSON; arrays are added to the tensors of the file."""

    def __init__(self, call: str, tensors: dict[str, Array]) -> None:
        self._call, self._tensors = call, tensors
        self._numbers: dict[int, int] = {}  # of schedules by id, in the order of their first use

    def settings(self, value: dict[str, Any]) -> str:
        """Return settings as JSON, or raise TypeError."""
        try:
            return json.dumps(value, default=self._encode)
        except TypeError as error:
            raise TypeError(f"{self._call}: {error}") from None

    def extra(self, value: Mapping[str, Any], name: str) -> str:
        """Return values of the user as JSON, or raise TypeError."""
        value = dict(value)
        try:
            _measure(value, {})
            return json.dumps(value, default=self._encode_value)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"{self._call}: {name} holds {error}, expected what JSON can hold, and arrays of "
                "booleans, integers, real numbers of up to 64 bits or complex numbers of up to 128 "
                "bits, in native byte order"
            ) from None

    def _encode(self, value: Any) -> Any:
        return self._encode_rate(value) if callable(value) else self._encode_value(value)

    def _encode_value(self, value: Any) -> Any:
        if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.itemsize <= 8:
            return value.item()
        if type(value) not in (np.ndarray, np.memmap):
            raise TypeError(f"a {type(value).__name__}")
        # Not bfloat16, which cannot be loaded without ml_dtypes.
        if value.dtype.kind not in "biufc" or dtype_in_file(value) is None:
            raise TypeError(f"an array of {value.dtype}")
        name = f"{SECTION}/{len(self._tensors)}"
        self._tensors[name] = value
        return {_ARRAY: name}

    def _encode_rate(self, value: Any) -> dict[str, Any]:
        """Return a schedule as its fields, or as its number if it was encoded before."""
        functions = list(_functions_in(value))
        if all(map(schedules.is_library_schedule, functions)):
            if id(value) in self._numbers:
                return {_SAME: self._numbers[id(value)]}
            number = self._numbers[id(value)] = len(self._numbers)
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {_SCHEDULE: type(value).__name__, "number": number, **fields}
        for each in functions:
            if type(each).__name__ == "ReduceOnPlateau":  # its state would be lost
                raise TypeError(
                    f"lr is a {type(value).__name__} of a {type(each).__name__} and of a function "
                    "of your own, expected schedules of schuss alone"
                )
        return {_FUNCTION: getattr(value, "__qualname__", type(value).__qualname__)}


def _functions_in(function: Any) -> Iterator[Any]:
    """Yield a function or schedule, and those that it contains."""
    yield function
    if schedules.is_library_schedule(function):
        for part in schedules.parts(function):
            yield from _functions_in(part)


def _measure(value: Any, measured: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """Return the number of values in a structure and its height, or raise TypeError.

    JSON writes shared lists and mappings each time, so they count each time; `measured` keeps
    their measures by id. Values that JSON would not restore are refused too.
    """
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise TypeError(f"an integer of more than {_MAX_DIGITS} digits")
    if not isinstance(value, dict | list | tuple):
        return 1, 0
    size, height = measured.get(id(value), (1, 0))
    if depth + height > _MAX_DEPTH:
        raise TypeError(f"lists and mappings nested more than {_MAX_DEPTH} deep")
    if height:
        return size, height
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise TypeError(f"the key {shown(key)}, which is not a str")
        if key in (*_RESERVED, _ARRAY):
            raise TypeError(f"the key {key!r}, which schuss reserves")
    values = value.values() if isinstance(value, dict) else value
    inner = [
        _measure(each, measured, depth + 1) for each in values if type(each) not in (float, str)
    ]
    size = 1 + len(value) - len(inner) + sum(size for size, _ in inner)
    if size > _MAX_VALUES:
        raise TypeError(f"more than {_MAX_VALUES:,} values")
    measured[id(value)] = size, 1 + max((height for _, height in inner), default=0)
    return measured[id(value)]


# Decoding.


def parse(call: str, text: str | None) -> Any:
    """Return the value of a JSON text, or raise ValueError."""

    def integer(digits: str) -> int:
        length = len(digits.removeprefix("-"))
        if length > _MAX_DIGITS:
            raise ValueError(f"an integer of {length} digits")
        return int(digits)

    try:
        return json.loads(text or "", parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{call}: they are not valid JSON ({error})") from None


class _Decoder:
    """Replaces the mappings of a parsed value, which stand for something else."""

    def __init__(self, call: str) -> None:
        self._call = call

    def decode(self, name: str, value: Any, depth: int = 0) -> Any:
        """Return a parsed value with everything that its mappings stand for."""
        if not isinstance(value, dict | list):
            return value
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{self._call}: {name} is nested more than {_MAX_DEPTH} deep, expected at most that"
            )
        if isinstance(value, list):
            return [self.decode(name, each, depth + 1) for each in value]
        return self._decode_mapping(name, value, depth)

    def _decode_mapping(self, name: str, value: dict[str, Any], depth: int) -> Any:
        return {key: self.decode(name, each, depth + 1) for key, each in value.items()}


class ArrayDecoder(_Decoder):
    """Replaces the names of arrays by the arrays; each must be used exactly once."""

    def __init__(self, call: str, file: File) -> None:
        super().__init__(call)
        self._file = file
        self._unused = {name for name in file.tensors if name.startswith(f"{SECTION}/")}

    def check_all_used(self) -> None:
        """Raise ValueError if an array has not been used."""
        for name in self._unused:
            raise ValueError(f"{self._call}: there is {shown(name)}, which no field names")

    def _decode_mapping(self, name: str, value: dict[str, Any], depth: int) -> Any:
        if _ARRAY in value:
            return self._array(name, value)
        for key in _RESERVED:
            if key in value:
                raise ValueError(f"{self._call}: {name} has the reserved key {key!r}")
        return super()._decode_mapping(name, value, depth)

    def _array(self, field: str, value: dict[str, Any]) -> Array:
        name = value[_ARRAY]
        if len(value) > 1 or not isinstance(name, str) or name not in self._unused:
            raise ValueError(
                f"{self._call}: {field} names an array as {shown(value)}, expected one that is "
                "there, once"
            )
        if self._file.tensors[name].dtype == "BF16":
            raise ValueError(
                f"{self._call}: {field} names an array in BF16, expected another dtype"
            )
        self._unused.remove(name)
        return self._file.read(name)


class _ScheduleDecoder(_Decoder):
    """Replaces the mappings that describe schedules by new schedules."""

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self._schedules: dict[int, Any] = {}  # by number

    def _decode_mapping(self, name: str, value: dict[str, Any], depth: int) -> Any:
        if value.keys() == {_SAME}:
            number = count(self._call, f"{name}[{_SAME!r}]", value[_SAME], least=0)
            if number not in self._schedules:
                raise ValueError(f"{self._call}: {name} is schedule {number}, expected one before")
            return self._schedules[number]
        fields = {key: each for key, each in value.items() if key not in (_SCHEDULE, "number")}
        fields = super()._decode_mapping(name, fields, depth)
        number = count(self._call, f"{name}['number']", value.get("number"), least=0)
        try:
            self._schedules[number] = _schedule(value.get(_SCHEDULE), fields)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self._call}: {name} is not a schedule ({error}), expected one"
            ) from None
        return self._schedules[number]


def _schedule(name: Any, values: dict[str, Any]) -> schedules.Schedule:
    kind: Any = getattr(schedules, name) if name in schedules.__all__ else None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"there is no {shown(name)}")
    fields = dataclasses.fields(kind)
    check_keys(str(name), "it", values, tuple(field.name for field in fields))
    schedule: Any = kind(**{field.name: values[field.name] for field in fields if field.init})
    for field in fields:
        if not field.init:
            setattr(schedule, field.name, values[field.name])
    return schedule  # type: ignore[no-any-return]


# The learning rates in the settings of an optimizer.


def with_schedules(call: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer with new schedules, and a `Function` for a function."""
    decoder = _ScheduleDecoder(call)

    def rate(group: int | None, lr: Any) -> Any:
        holder = name if group is None else f"{name}['groups'][{group}]"
        if not isinstance(lr, dict):
            return lr
        if lr.keys() == {_FUNCTION} and isinstance(lr[_FUNCTION], str):
            return Function(lr[_FUNCTION])
        return decoder.decode(f"{holder}['hyperparameters']['lr']", lr)

    return _with_rates(settings, rate)


def with_functions(call: str, settings: dict[str, Any], own: list[Rate | None]) -> dict[str, Any]:
    """Return settings with functions of the user: the first is that of the optimizer.

    The others are those of its groups.
    """

    def rate(group: int | None, lr: Any) -> Any:
        i = 0 if group is None else 1 + group
        if not isinstance(lr, Function) or i >= len(own):
            return lr
        if not callable(own[i]):
            raise ValueError(
                f"{call}: lr is {shown(own[i])}, expected the function {shown(lr)} that it "
                "was when it was saved, as a file does not hold functions"
            )
        return own[i]

    return _with_rates(settings, rate)


def _with_rates(settings: dict[str, Any], rate: Callable[[int | None, Any], Any]) -> dict[str, Any]:
    """Replace the learning rates of an optimizer (None) and of its groups by `rate(group, lr)`."""

    def replaced(holder: Any, group: int | None) -> Any:
        values = holder.get("hyperparameters") if isinstance(holder, dict) else None
        if not isinstance(values, dict) or "lr" not in values:
            return holder
        return holder | {"hyperparameters": values | {"lr": rate(group, values["lr"])}}

    result: dict[str, Any] = replaced(settings, None)
    if isinstance(groups := settings.get("groups"), list):
        result = result | {"groups": [replaced(each, i) for i, each in enumerate(groups)]}
    return result
