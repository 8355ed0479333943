"""The state of a user's own objects, which a checkpoint of `fit` keeps."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from schuss._errors import wrong_type
from schuss._generators import checked_state, state_of
from schuss._hyperparameters import Check, anything, record


class _Kept(NamedTuple):
    """How the state of an object is read, loaded, and checked before it is loaded."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    check: Check[Any] = anything


_EXPECTED = (
    "an object with state_dict() and load_state_dict(state), a numpy.random.Generator, a pair of "
    "functions (get, set), or a mapping of them"
)


class UserState:
    """Objects whose state is saved and loaded with a training."""

    def __init__(self, call: str, name: str, value: Any) -> None:
        self._is_mapping = isinstance(value, Mapping) and not hasattr(value, "state_dict")
        if self._is_mapping:
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{call}: {name} has the key {key!r}, expected a str")
            self._kept = {k: _kept(call, f"{name}[{k!r}]", each) for k, each in value.items()}
        else:
            self._kept = {"": _kept(call, name, value)}

    def __repr__(self) -> str:
        """Return the names of the objects: two states with the same names go together."""
        names = ", ".join(map(repr, self._kept)) if self._is_mapping else "an object"
        return f"the state of {names}"

    def get(self) -> Any:
        """Return a copy of the state, for JSON and arrays."""
        states = {key: deepcopy(each.get()) for key, each in self._kept.items()}
        return states if self._is_mapping else states[""]

    def set(self, state: Any) -> None:
        """Load a state that `get` returned."""
        for key, each in self._kept.items():
            each.put(state[key] if self._is_mapping else state)

    def check(self, call: str, name: str, state: Any) -> Any:
        """Return a state from a file, or raise if it is not of these objects."""
        if not self._is_mapping:
            return self._kept[""].check(call, name, state)
        return record(**{key: each.check for key, each in self._kept.items()})(call, name, state)


def _kept(call: str, name: str, value: Any) -> _Kept:
    """Return how the state of an object is kept, or raise TypeError."""
    if isinstance(value, np.random.Generator):
        return _of_generator(call, value.bit_generator)
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return _Kept(*value)
    get, put = (getattr(value, each, None) for each in ("state_dict", "load_state_dict"))
    if isinstance(value, type) or not callable(get) or not callable(put):
        raise wrong_type(call, name, value, _EXPECTED)
    return _Kept(get, put)


def _of_generator(call: str, generator: "np.random.BitGenerator") -> _Kept:
    def put(state: Any) -> None:
        generator.state = state

    check = partial(checked_state, generator=generator)
    return _Kept(partial(state_of, call, generator), put, check)
