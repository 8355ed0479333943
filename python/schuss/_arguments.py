"""The arguments of `fit` as texts, which a checkpoint keeps and a resumed training compares."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from schuss import checkpoints
from schuss._arrays import Array
from schuss._batch_sources import ArrayBatches, BatchSource
from schuss._hyperparameters import shown
from schuss._json import Function
from schuss._saved import low_precision_of, own_hyperparameters
from schuss._user_state import UserState
from schuss.batches import MiniBatches, generator_of, generator_states, slicing_of
from schuss.loss_scale import DynamicLossScale, settings_text
from schuss.optimizers import Optimizer
from schuss.schedules import ReduceOnPlateau, is_library_schedule

if TYPE_CHECKING:
    from schuss._hyperparameters import Rate

Texts: TypeAlias = dict[str, str]
"""Texts of arguments by name; they are equal if the arguments are."""

_HidesRate: TypeAlias = Callable[[ReduceOnPlateau], bool]
"""Whether a text leaves out the rate of a schedule, which changes during the training."""

_NONE = "None"

# All bytes of an array of up to _MAX_HASHED bytes are hashed. A larger one may be on disk: only a
# sample of it is hashed.
_MAX_HASHED, _SAMPLE = 1 << 26, 1000
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 are spread evenly

_MOST_SINCE = 1000  # epochs that a generator may have drawn since it was saved
_LONGEST = 200  # longer texts are cut, and end with a hash


def checked_texts(call: str, name: str, value: object) -> Texts:
    """Return the arguments that a checkpoint holds, or raise TypeError if they are invalid."""
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise TypeError(f"{call}: {name} is {shown(value)}, expected a mapping of texts")


class Arguments:
    """The arguments that decide a training, except for its parameters and functions."""

    def __init__(
        self,
        optimizer: Any,
        schedule: "Rate | None",
        source: BatchSource,
        others: Mapping[str, Any],
    ) -> None:
        self._optimizer, self._schedule, self._batches = optimizer, schedule, source.batches
        self.texts = {"optimizer": type(optimizer).__name__, **self._of_optimizer(_text)}
        if isinstance(source, ArrayBatches):
            self.texts |= _of_batches(source.batches)
        else:
            self.texts["x"] = _of_iterable(source.x, source.length)
        for name, value in others.items():
            if isinstance(value, tuple):
                self.texts[name] = f"a tuple of {len(value)} arrays"
                self.texts |= {f"{name}[{i}]": _of_any(each) for i, each in enumerate(value)}
            else:
                is_list = isinstance(value, list)
                self.texts[name] = _of_iterable(value, len(value)) if is_list else _text(value)

    def resume(self, checkpoint: checkpoints.Checkpoint, initial: Texts, most_epochs: int) -> None:
        """Take the arguments that a training began with, or raise ValueError if these differ."""
        saved, texts = checkpoint.optimizer(), self.texts
        last = _of_saved(saved, _text)
        # After a crash, an optimizer may be ahead of the checkpoint: its ReduceOnPlateau schedules
        # may have reduced their rates since.
        without_rates = _of_saved(saved, partial(_text, hides_rate=lambda plateau: True))
        ahead = self._of_optimizer(
            partial(_text, hides_rate=lambda plateau: plateau != replace(plateau))
        )
        for name in [*texts, *(name for name in initial if name not in texts and name != "rng")]:
            there, here = initial.get(name, _NONE), texts.get(name, _NONE)
            if here in (there, last.get(name)):
                continue
            if name in ahead and ahead[name] == without_rates.get(name):
                continue
            if name == "patience" and _is_at_least(here, there):
                continue
            if name == "rng" and self._continues_generator(there, checkpoint, most_epochs):
                continue
            otherwise = "load it and pass fit another path"
            if name == "rng":
                otherwise = "leave rng out to continue with the saved generator"
            checkpoint.refuse(
                f"holds a training that began with {name} {there[:999]}, expected {here}, as this "
                f"call has it (delete the file to start over, or {otherwise})"
            )
        self.texts = initial | {"patience": texts["patience"]}

    def _of_optimizer(self, text: Callable[[Any], str]) -> Texts:
        if not isinstance(self._optimizer, Optimizer):
            return {}
        hyperparameters, groups = own_hyperparameters(self._optimizer)
        if self._schedule is not None:
            hyperparameters = {**hyperparameters, "lr": self._schedule}
        formats = low_precision_of(self._optimizer)
        return _of_hyperparameters({**hyperparameters, **formats}, groups, text)

    def _continues_generator(
        self, there: str, checkpoint: checkpoints.Checkpoint, most_epochs: int
    ) -> bool:
        """Return whether the generator is the one that was saved, or has drawn epochs since."""
        if self._batches is None:
            return False
        generator = generator_of(self._batches)
        if generator is None or _of_generator(generator).split()[0] != there.split()[0]:  # the kind
            return False
        _, state = checkpoint.batches_state(self._batches)
        states = islice(generator_states(generator, state), min(most_epochs, _MOST_SINCE) + 1)
        return _plain(generator.bit_generator.state) in map(_plain, states)


def _of_batches(batches: MiniBatches[Any]) -> Texts:
    slicing, generator = slicing_of(batches), generator_of(batches)
    texts = {source.name: _of_data(source.array) for source in slicing.sources}
    texts |= {name: repr(value) for name, value in slicing.config().items()}
    return texts if generator is None else texts | {"rng": _of_generator(generator)}


def _of_iterable(x: Any, length: int | None) -> str:
    kind = "a function" if length is None and callable(x) else f"a {type(x).__name__}"
    text = kind if length is None else f"{kind} of {length} batches"
    if not isinstance(x, list):
        return text
    batches = (each.values() if isinstance(each, Mapping) else each for each in x)
    arrays = [_of_any(part) for batch in batches for part in batch]
    return f"{text} (sha256 {_digest(repr(arrays).encode())})"


def _of_hyperparameters(
    hyperparameters: Mapping[str, Any], groups: list[Any], text: Callable[[Any], str]
) -> Texts:
    texts = {}
    for name, value in hyperparameters.items():
        if any(name not in group for group in groups):  # otherwise no group uses the value
            texts["the learning rate" if name == "lr" else f"optimizer.{name}"] = text(value)
    for index, group in enumerate(groups):
        for name, value in group.items():
            texts[f"optimizer.param_groups[{index}][{name!r}]"] = text(value)
    return texts


def _of_saved(optimizer: Any, text: Callable[[Any], str]) -> Texts:
    """Return the hyperparameters that were saved last; errors in them are reported later."""
    if not isinstance(optimizer, dict):
        return {}
    hyperparameters, groups = optimizer.get("hyperparameters"), optimizer.get("groups")
    if not isinstance(hyperparameters, dict) or not isinstance(groups, list):
        return {}
    own = [group.get("hyperparameters") for group in groups if isinstance(group, dict)]
    return _of_hyperparameters(hyperparameters, [g for g in own if isinstance(g, dict)], text)


def _text(value: Any, hides_rate: _HidesRate = lambda plateau: False) -> str:
    """Return a text of a value, of bounded length."""
    text = _described(value, hides_rate, {})
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... (sha256 {_digest(text.encode())})"


def _described(value: Any, hides_rate: _HidesRate, numbers: dict[int, int]) -> str:
    """Return a text of a value; a schedule that occurs again is described by its number."""
    describe = partial(_described, hides_rate=hides_rate, numbers=numbers)
    if id(value) in numbers:
        return f"schedule {numbers[id(value)]}"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    if is_library_schedule(value):
        numbers[id(value)] = len(numbers)
        hidden = "lr" if isinstance(value, ReduceOnPlateau) and hides_rate(value) else None
        names = [field.name for field in fields(value) if field.init and field.name != hidden]
        parts = [f"{name}={describe(getattr(value, name))}" for name in names]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, DynamicLossScale):
        return f"DynamicLossScale({settings_text(value)})"
    if isinstance(value, UserState):
        return repr(value)
    if callable(value) or isinstance(value, Function):
        return "a function"
    simple = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if simple else f"a {type(value).__name__}"


def _of_any(value: Any) -> str:
    try:
        return _of_data(np.asanyarray(value))
    except (TypeError, ValueError, RuntimeError):  # an object that only the loss understands
        return f"a {type(value).__name__}"


def _of_data(array: Array) -> str:
    kind = f"{array.dtype} of shape {array.shape}"
    if isinstance(array, np.ma.MaskedArray):
        kind += f", masked as {_of_data(np.ma.getmaskarray(array))}"
    if array.dtype.hasobject or array.size == 0:
        return kind
    sample = np.asarray(array)
    if array.nbytes > _MAX_HASHED:
        indices = (np.arange(_SAMPLE) * _GOLDEN % 1 * array.size).astype(np.int64)
        indices = np.sort(np.r_[indices, array.size - 1])  # in the order of the file
        sample = sample[np.unravel_index(indices, array.shape)]
    return f"{kind} (sha256 {_digest(np.ascontiguousarray(sample).tobytes())})"


def _of_generator(generator: "np.random.Generator") -> str:
    state = _plain(generator.bit_generator.state)
    return f"{state['bit_generator']} (sha256 {_digest(repr(state).encode())})"


def _plain(state: Any) -> Any:
    """Return a generator's state without arrays, so that states can be compared."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def _is_at_least(here: str, there: str) -> bool:
    """Return whether this patience is at least the one there."""
    if here == _NONE:
        return True
    return there.isdecimal() and len(there) < _LONGEST and int(there) <= int(here)
