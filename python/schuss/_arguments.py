"""What `fit` was called with, as a checkpoint keeps it, and whether a later call asks for that."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from schuss import checkpoints
from schuss._arrays import Array
from schuss._hyperparameters import shown
from schuss._json import Function
from schuss._saved import own_hyperparameters
from schuss.batches import MiniBatches, generator_of, generator_states, slicing_of
from schuss.optimizers import Optimizer
from schuss.schedules import ReduceOnPlateau, is_library_schedule

if TYPE_CHECKING:
    from schuss._hyperparameters import Rate

Texts: TypeAlias = dict[str, str]
"""Arguments by their names, each as a text that is equal where the argument is."""

_NONE = "None"

# Arrays of up to _WHOLE bytes are read whole; of larger ones, which may be on disk, a sample.
_WHOLE, _SAMPLE = 1 << 26, 1000
_GOLDEN = 0.6180339887498949  # its multiples spread evenly, whatever the shape

_MOST_SINCE = 1000  # epochs that a generator may have drawn since it was saved
_LONGEST = 200  # what is longer is cut, and told apart by a digest


def checked_texts(call: str, name: str, value: object) -> Texts:
    """Return arguments that a checkpoint has, or raise TypeError if they are none."""
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise TypeError(f"{call}: {name} is {shown(value)}, expected a mapping of texts")


def of_training(
    optimizer: Any, schedule: "Rate | None", batches: MiniBatches[Any], others: Mapping[str, Any]
) -> Texts:
    """Return what decides a training, except for its parameters and functions."""
    texts = {"optimizer": type(optimizer).__name__}
    if isinstance(optimizer, Optimizer):
        texts |= _of_optimizer(*own_hyperparameters(optimizer), schedule, _text)
    slicing = slicing_of(batches)
    for source in slicing.sources:
        texts[source.name] = _of_data(source.array)
    texts |= {name: repr(value) for name, value in slicing.config().items()}
    if (generator := generator_of(batches)) is not None:
        texts["rng"] = _of_generator(generator)
    for name, value in others.items():
        if isinstance(value, tuple):
            texts |= {f"{name}[{place}]": _of_any(each) for place, each in enumerate(value)}
        else:
            texts[name] = _text(value)
    return texts


def resumed(
    saved: checkpoints.Checkpoint,
    began: Texts,
    texts: Texts,
    optimizer: Any,
    schedule: "Rate | None",
    batches: MiniBatches[Any],
    most_epochs: int,
) -> Texts:
    """Return the arguments with which the training began, or raise ValueError if it is another."""
    last = _of_saved(saved.optimizer(), _text)
    grown = _grown(saved, optimizer, schedule)
    for name in [*texts, *(name for name in began if name not in texts and name != "rng")]:
        there, here = began.get(name, _NONE), texts.get(name, _NONE)
        if here in (there, last.get(name)) or name in grown:
            continue
        if name == "patience" and _is_at_least(here, there):
            continue
        if name == "rng" and _goes_on(there, saved, batches, most_epochs):
            continue
        otherwise = "load it and pass fit another path"
        if name == "rng":
            otherwise = "leave rng out to go on with the saved generator"
        saved.refuse(
            f"holds a training that began with {name} {there[:999]}, expected {here}, as this call "
            f"has it (delete the file to start over, or {otherwise})"
        )
    return began | {"patience": texts["patience"]}


def _of_optimizer(
    hyperparameters: Mapping[str, Any],
    groups: list[Any],
    schedule: "Rate | None",
    text: Callable[[Any], str],
) -> Texts:
    texts = {}
    for name, value in hyperparameters.items():
        if any(name not in own for own in groups):  # or nobody uses it
            value = schedule if name == "lr" and schedule is not None else value
            texts["the learning rate" if name == "lr" else f"optimizer.{name}"] = text(value)
    for place, own in enumerate(groups):
        for name, value in own.items():
            texts[f"optimizer.param_groups[{place}][{name!r}]"] = text(value)
    return texts


def _of_saved(optimizer: Any, text: Callable[[Any], str]) -> Texts:
    """Return the hyperparameters that were saved last; what is wrong with them is told later."""
    if not isinstance(optimizer, dict):
        return {}
    hyperparameters, groups = optimizer.get("hyperparameters"), optimizer.get("groups")
    if not isinstance(hyperparameters, dict) or not isinstance(groups, list):
        return {}
    own = [group.get("hyperparameters") for group in groups if isinstance(group, dict)]
    return _of_optimizer(hyperparameters, [g for g in own if isinstance(g, dict)], None, text)


def _grown(saved: checkpoints.Checkpoint, optimizer: Any, schedule: "Rate | None") -> set[str]:
    """Return the rates that differ from the saved ones by what plateaus were told since alone.

    An optimizer that a crash left may be ahead of what was saved last.
    """
    if not isinstance(optimizer, Optimizer):
        return set()
    here = _of_optimizer(
        *own_hyperparameters(optimizer),
        schedule,
        partial(_text, leave_out=lambda plateau: plateau != replace(plateau)),
    )
    there = _of_saved(saved.optimizer(), partial(_text, leave_out=lambda plateau: True))
    return {name for name, text in here.items() if text == there.get(name)}


def _text(value: Any, leave_out: "Callable[[ReduceOnPlateau], bool] | None" = None) -> str:
    """Return a text of a value, leaving out the rates of some of the plateaus in it."""
    text = "".join(_pieces(value, leave_out, {}))
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... (sha256 {_digest(text.encode())})"


def _pieces(
    value: Any,
    leave_out: "Callable[[ReduceOnPlateau], bool] | None",
    met: dict[int, int],
) -> Iterator[str]:
    """Yield the pieces of a text; of a schedule that comes again, its number."""
    if id(value) in met:
        yield f"schedule {met[id(value)]}"
        return
    if isinstance(value, tuple):
        named = [("", each) for each in value]
        yield "("
    elif is_library_schedule(value):
        met[id(value)] = len(met)
        without = {"lr"} if _leaves_out(value, leave_out) else ()
        named = [
            (f"{field.name}=", getattr(value, field.name))
            for field in fields(value)
            if field.init and field.name not in without
        ]
        yield f"{type(value).__name__}("
    else:
        yield _simple(value)
        return
    for place, (name, each) in enumerate(named):
        yield f", {name}" if place else name
        yield from _pieces(each, leave_out, met)
    yield ")"


def _leaves_out(value: Any, leave_out: "Callable[[ReduceOnPlateau], bool] | None") -> bool:
    return leave_out is not None and isinstance(value, ReduceOnPlateau) and leave_out(value)


def _simple(value: Any) -> str:
    if callable(value) or isinstance(value, Function):
        return "a function"
    known = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if known else f"a {type(value).__name__}"


def _of_any(value: Any) -> str:
    try:
        return _of_data(np.asanyarray(value))
    except (TypeError, ValueError, RuntimeError):  # what only the loss makes something of
        return f"a {type(value).__name__}"


def _of_data(array: Array) -> str:
    kind = f"{array.dtype} of shape {array.shape}"
    if isinstance(array, np.ma.MaskedArray):
        kind += f", masked as {_of_data(np.ma.getmaskarray(array))}"
    if array.dtype.hasobject or array.size == 0:
        return kind
    sample = np.asarray(array)
    if array.nbytes > _WHOLE:
        places = (np.arange(_SAMPLE) * _GOLDEN % 1 * array.size).astype(np.int64)
        places = np.sort(np.r_[places, array.size - 1])  # as they lie on disk
        sample = sample[np.unravel_index(places, array.shape)]
    return f"{kind} (sha256 {_digest(np.ascontiguousarray(sample).tobytes())})"


def _of_generator(generator: "np.random.Generator") -> str:
    state = _plain(generator.bit_generator.state)
    return f"{state['bit_generator']} (sha256 {_digest(repr(state).encode())})"


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def _is_at_least(here: str, there: str) -> bool:
    """Return whether the patience here is at least that there."""
    if here == _NONE:
        return True
    return there.isdecimal() and len(there) < _LONGEST and int(there) <= int(here)


def _goes_on(
    there: str, saved: checkpoints.Checkpoint, batches: MiniBatches[Any], most_epochs: int
) -> bool:
    """Return whether the generator is the one that was saved, or has drawn epochs since."""
    generator = generator_of(batches)
    if generator is None or _of_generator(generator).split()[0] != there.split()[0]:  # the kind
        return False
    given = _plain(generator.bit_generator.state)
    _, state = saved.batches_state(batches)
    states = islice(generator_states(generator, state), min(most_epochs, _MOST_SINCE) + 1)
    return any(_plain(each) == given for each in states)
