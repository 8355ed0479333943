"""The arguments of `fit`, checked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

from schuss import _files
from schuss._arrays import Array, ArrayTree, arrays_of, check_holds
from schuss._batch_sources import is_iterable_of_batches
from schuss._errors import wrong_type
from schuss._hints import comes_from
from schuss._hyperparameters import NON_NEGATIVE, Rate, choice, count, flag, optional, rate
from schuss._internals import internals_of
from schuss._interrupts import Deferred
from schuss._loss import check_function
from schuss._user_state import UserState
from schuss.history import History
from schuss.loss_scale import DynamicLossScale, checked_scale
from schuss.optimizers import Optimizer
from schuss.schedules import ReduceOnPlateau, updatable

Function: TypeAlias = Callable[[History], object]
"""A function of the history that `fit` calls; it may return True to stop the training."""

_from_zero, _from_one = partial(count, least=0), partial(count, least=1)


def _functions(call: str, name: str, value: Any) -> tuple[Function, ...]:
    if callable(value):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong_type(call, name, value, "a function or a sequence of them")
    for index, function in enumerate(value):
        check_function(call, f"{name}[{index}]", function)
    return tuple(value)


def _validation(call: str, name: str, value: Any) -> Any:
    if value is None or isinstance(value, tuple) or callable(value):
        return value
    if is_iterable_of_batches(value) and not isinstance(value, Iterator):
        return value
    raise wrong_type(
        call,
        name,
        value,
        "a tuple of arrays, a function of params, or mini-batches that can be iterated over in "
        "each epoch",
    )


def _loss_scale(call: str, name: str, value: Any) -> DynamicLossScale | float:
    return value if isinstance(value, DynamicLossScale) else checked_scale(call, name, value)


# The settings that are the same on all ranks, if several share a training.
_SHARED = (
    *("epochs", "accumulate", "schedule_by", "l2", "loss_scale", "patience", "min_delta", "mode"),
    *("start_from_epoch", "restore_best", "checkpoint_every"),
)


@dataclass(slots=True, kw_only=True)
class Settings:
    """The settings of a training, checked."""

    epochs: int = field(metadata={"check": _from_one})
    accumulate: int = field(metadata={"check": _from_one})
    schedule: Rate | None = field(metadata={"check": optional(rate)})
    schedule_by: str = field(metadata={"check": partial(choice, among=("step", "epoch"))})
    l2: float = field(metadata={"check": NON_NEGATIVE})
    loss_scale: DynamicLossScale | float | None = field(metadata={"check": optional(_loss_scale)})
    validation: Any = field(metadata={"check": _validation})
    patience: int | None = field(metadata={"check": optional(_from_one)})
    min_delta: float = field(metadata={"check": NON_NEGATIVE})
    mode: str = field(metadata={"check": partial(choice, among=("min", "max"))})
    start_from_epoch: int = field(metadata={"check": _from_zero})
    restore_best: bool = field(metadata={"check": flag})
    callbacks: Any = field(metadata={"check": _functions})
    on_step: Any = field(metadata={"check": _functions})
    progress: bool | None = field(metadata={"check": optional(flag)})
    checkpoint: Any = field(metadata={"check": optional(_files.check_path)})
    checkpoint_every: int | None = field(metadata={"check": optional(_from_one)})
    state: Any = field(metadata={"check": optional(UserState)})

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "state"):
            if self.checkpoint is None and (value := getattr(self, name)) is not None:
                was = value if isinstance(value, int) else f"a {type(value).__name__}"
                raise ValueError(f"fit: {name} is {was} without checkpoint, expected both")
        for each in fields(self):
            value = each.metadata["check"]("fit", each.name, getattr(self, each.name))
            setattr(self, each.name, value)

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks that share a training."""
        facts = {name: repr(getattr(self, name)) for name in _SHARED}
        for name in ("checkpoint", "schedule", "state"):
            facts[name] = "None" if getattr(self, name) is None else "given"
        is_function = callable(self.validation)
        return facts | {
            "validation": "a function" if is_function else f"a {type(self.validation).__name__}"
        }


def check_optimizer(optimizer: Any, settings: Settings) -> None:
    """Raise TypeError or ValueError unless the optimizer can do what the settings ask for."""
    is_class, name = isinstance(optimizer, type), type(optimizer).__name__
    if is_class or not callable(getattr(optimizer, "step", None)):
        was = f"the class {optimizer.__name__}" if is_class else f"a {name}"
        raise TypeError(f"fit: optimizer is {was}, expected an object with step(grads)")
    if comes_from("torch.optim", optimizer):
        raise TypeError(
            f"fit: optimizer is a {name} of PyTorch's optimizers, whose step takes no gradients, "
            "expected one for NumPy arrays, such as schuss.Adam(params) (tensors are trained by a "
            "loop of PyTorch, with schuss.torch as well)"
        )
    is_ours = isinstance(optimizer, Optimizer)
    for option, default in (("accumulate", 1), ("loss_scale", None)):
        if getattr(settings, option) != default and not is_ours:
            raise TypeError(
                f"fit: optimizer is a {name} and {option} is given, expected an optimizer of schuss"
            )
    _check_modes(optimizer, settings)
    if settings.schedule is None:
        return
    if not hasattr(optimizer, "lr"):
        raise TypeError(f"fit: optimizer is a {name} without lr, expected one for the schedule")
    if is_ours and not internals_of(optimizer).uses("lr"):
        raise ValueError(
            f"fit: schedule is given where each of the {len(optimizer.param_groups)} groups of the "
            "optimizer has an lr of its own, expected None (give the schedule to groups: "
            "optimizer.param_groups[0]['lr'] = schedule)"
        )


def rates_in_use(optimizer: Any) -> list[Any]:
    """Return the rate or schedule of each group, or of an optimizer without groups."""
    groups = getattr(optimizer, "param_groups", ())
    rates = [group.get("lr") for group in groups if isinstance(group, Mapping)]
    return rates or [getattr(optimizer, "lr", None)]


def _check_modes(optimizer: Any, settings: Settings) -> None:
    """Raise ValueError if a `ReduceOnPlateau` would take improvements for their opposite."""
    schedule, rates = settings.schedule, rates_in_use(optimizer)
    if schedule is not None:  # it replaces the rate of the optimizer
        before = getattr(optimizer, "lr", None)
        rates = [schedule, *(rate for rate in rates if rate is not before)]
    for each in updatable(rates):
        if isinstance(each, ReduceOnPlateau) and each.mode != settings.mode:
            raise ValueError(
                f"fit: mode is {settings.mode!r} and a ReduceOnPlateau in use has mode "
                f"{each.mode!r}, expected the same mode (write ReduceOnPlateau(..., "
                f"mode={settings.mode!r}), or mode={each.mode!r} in fit)"
            )


def optimizer_params(optimizer: Any, params: ArrayTree) -> ArrayTree:
    """Return the parameters that the optimizer updates, in its structure."""
    own: ArrayTree = getattr(optimizer, "params", params)
    if own is params:
        return params
    with Deferred():
        try:
            arrays = arrays_of("fit", "optimizer.params", own)
        except (TypeError, ValueError):  # the `params` of other optimizers need not be arrays
            return params
    check_holds("fit", params, arrays)  # `params` may hold more arrays than the optimizer
    return own


def masters_of(optimizer: Any) -> list[Array]:
    """Return the masters of the parameters of an optimizer, if there are any."""
    if not isinstance(optimizer, Optimizer):
        return []
    return [array for array in internals_of(optimizer).masters or [] if array is not None]
