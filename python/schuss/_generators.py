"""Validation of the states of NumPy's bit generators, which NumPy itself does not validate."""

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._hyperparameters import Check, count, mapping, record, same, shown
from schuss._interrupts import raised_within

_MT_WORDS = 624


def _integer(bits: int) -> Check[int]:
    return partial(count, least=0, most=2**bits - 1)


def _words(bits: int, length: int) -> Check[npt.NDArray[Any]]:
    """Return a check of `length` integers in an array, or in a list (from JSON)."""
    check_word = _integer(bits)

    def check(call: str, name: str, value: Any) -> npt.NDArray[Any]:
        words = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(words, list | tuple) or len(words) != length:
            raise ValueError(f"{call}: {name} is {shown(value)}, expected {length} integers")
        checked = [check_word(call, f"{name}[{i}]", word) for i, word in enumerate(words)]
        return np.array(checked, f"uint{bits}")

    return check


def _mt19937_key(call: str, name: str, value: Any) -> npt.NDArray[Any]:
    key = _words(32, _MT_WORDS)(call, name, value)
    if key[0] < 2**31 and not key[1:].any():  # it uses one bit of the first word
        raise ValueError(
            f"{call}: {name} is all zeros, which MT19937 cannot use, expected a bit that is set"
        )
    return key


def _odd(call: str, name: str, value: Any) -> int:
    increment = _integer(128)(call, name, value)
    if increment % 2 == 0:
        raise ValueError(f"{call}: {name} is {increment}, expected an odd integer")
    return increment


_BUFFERED_HALF: dict[str, Check[Any]] = {"has_uint32": _integer(1), "uinteger": _integer(32)}
_PCG = {"state": record(state=_integer(128), inc=_odd), **_BUFFERED_HALF}
_FIELDS: dict[str, dict[str, Check[Any]]] = {
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "MT19937": {"state": record(key=_mt19937_key, pos=partial(count, least=0, most=_MT_WORDS))},
    "Philox": {
        "state": record(counter=_words(64, 4), key=_words(64, 2)),
        "buffer": _words(64, 4),
        "buffer_pos": partial(count, least=0, most=4),
        **_BUFFERED_HALF,
    },
    "SFC64": {"state": record(state=_words(64, 4)), **_BUFFERED_HALF},
}


def state_of(call: str, generator: "np.random.BitGenerator") -> dict[str, Any]:
    """Return a copy of a bit generator's state, or raise TypeError if it cannot be validated."""
    _fields_of(call, generator)
    return checked_state(call, "rng's state", generator.state, generator=generator)


def checked_state(
    call: str, name: str, state: Any, *, generator: "np.random.BitGenerator"
) -> dict[str, Any]:
    """Return a copy of a state that is valid for this bit generator, or raise."""
    kind, fields = type(generator).__name__, _fields_of(call, generator)
    if mapping(call, name, state).get("bit_generator") != kind:
        was = shown(state.get("bit_generator"))
        raise ValueError(f"{call}: {name} is the state of {was}, expected that of {kind!r}")
    checked = record(bit_generator=same(kind), **fields)(call, name, state)
    if type(generator).__module__.startswith("numpy."):
        return checked
    try:  # a subclass can have checks of its own
        deepcopy(generator).state = checked
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        if raised_within(error):
            raise
        raise ValueError(f"{call}: {name} is refused by {kind} ({error})") from None
    return checked


def _fields_of(call: str, generator: "np.random.BitGenerator") -> dict[str, Check[Any]]:
    kind = type(generator)
    for base in kind.__mro__:
        if base.__name__ in _FIELDS and getattr(np.random, base.__name__) is base:
            return _FIELDS[base.__name__]
    raise TypeError(
        f"{call}: rng is a {kind.__name__}, whose state cannot be checked, expected one of "
        f"NumPy's: {', '.join(_FIELDS)}"
    )
