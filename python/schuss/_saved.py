"""Saving and restoring an optimizer: for checkpoints, state dicts, pickles and copies."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from schuss._groups import Overrides
from schuss._hyperparameters import (
    NON_NEGATIVE,
    Check,
    anything,
    check_keys,
    count,
    mapping,
    optional,
    record,
    same,
    shown,
)
from schuss._internals import Internals, internals_of
from schuss._settings import Configurable, checked_overrides, checked_settings, declaration_of
from schuss._state import States, copied, fill, new_sums

# Entries of a state dict that have arrays besides the states of the rule.
_ARRAY_ENTRIES = ("average", "accumulated")

# Settings that saved optimizers of earlier versions do not have.
_LATER = ("maximize", "bounds", "track_norms", "eps_hat", "lr_in_velocity")

_from_zero: Check[int] = partial(count, least=0)

_Memo: TypeAlias = dict[int, Any]
"""The copies made so far, by id: a schedule that is shared stays shared."""


@dataclass(frozen=True)
class Saved:
    """What is to be saved of an optimizer. Nothing is copied: save it while the optimizer is busy.

    settings
        What the optimizer knows except for arrays, as `state_dict` has it.
    arrays
        Arrays in use by name: the states, ``average`` and ``accumulated``.
    names
        The names of the parameters, in the order of the arrays.
    """

    settings: dict[str, Any]
    arrays: States
    names: list[str]


@dataclass(frozen=True)
class Checked:
    """Saved settings that were checked, and the arrays for them: existing ones, or zeros.

    call
        What messages begin with.
    """

    call: str
    steps: int
    skipped: int
    settings: dict[str, Any]
    groups: list[Overrides]
    rested: list[int]
    average_weights: tuple[float, float]
    accumulated: int
    without_sum: list[int]
    arrays: States


def saved(optimizer: Configurable) -> Saved:
    """Return what is to be saved of an optimizer."""
    internals = internals_of(optimizer)
    return Saved(_settings(internals), _arrays(internals), internals.core.tree.names)


def own_hyperparameters(optimizer: Configurable) -> tuple[dict[str, Any], list[Overrides]]:
    """Return the settings of an optimizer, and the own hyperparameters of each of its groups."""
    internals = internals_of(optimizer)
    return internals.settings, internals.groups


def busy(optimizer: Configurable, call: str) -> AbstractContextManager[None]:
    """Return a context in which calls that change the optimizer are refused."""
    return internals_of(optimizer).busy(call)


def state_dict(optimizer: Configurable) -> dict[str, Any]:
    """Return a copy of what an optimizer knows; see `Optimizer.state_dict`."""
    internals = internals_of(optimizer)
    with internals.busy("state_dict"):
        trees = {
            name: internals.core.tree.unflatten(copied(arrays))
            for name, arrays in _arrays(internals).items()
        }
        settings = _settings(internals)
        for name in _ARRAY_ENTRIES:
            if name in trees:
                settings[name] |= {"values": trees.pop(name)}
        memo: _Memo = {}
        return settings | {
            "hyperparameters": _copied_schedules(settings["hyperparameters"], memo),
            "groups": [
                group | {"hyperparameters": _copied_schedules(group["hyperparameters"], memo)}
                for group in settings["groups"]
            ],
            "state": trees,
        }


def load_state_dict(optimizer: Configurable, given: Mapping[str, Any]) -> None:
    """Load what `state_dict` returned; see `Optimizer.load_state_dict`."""
    tree = internals_of(optimizer).core.tree
    call, name = f"{type(optimizer).__name__}.load_state_dict", "state_dict"
    settings = checked(optimizer, call, name, given, with_values=True)
    states = tuple(key for key in settings.arrays if key not in _ARRAY_ENTRIES)
    check_keys(call, f"{name}['state']", given["state"], states)
    # Copied first: the values given may be the state itself, in another order.
    values = {}
    for key, like in settings.arrays.items():
        if key in _ARRAY_ENTRIES:
            structure, argument, known = given[key]["values"], f"{name}[{key!r}]['values']", key
        else:
            structure, argument = given["state"][key], f"{name}['state'][{key!r}]"
            known = f"state[{key!r}]"
        values[key] = copied(tree.flatten_arrays(structure, call, argument, like, known))
    restore(optimizer, "load_state_dict", settings, partial(fill, values=values), prefix=call)


def pickled(optimizer: Configurable, *, copy_arrays: bool) -> dict[str, Any]:
    """Return what a pickle or a copy of a busy optimizer needs, attributes of a subclass included.

    It keeps the parameters by reference: an optimizer that is pickled or copied together with them
    is bound to the same copies.
    """
    internals = internals_of(optimizer)
    arrays = _arrays(internals)
    if copy_arrays:
        arrays = {name: copied(each) for name, each in arrays.items()}
    given = internals.copies_given
    return {
        "params": internals.params,
        "settings": _settings(internals),
        "groups": (internals.groups, internals.group_of),
        "groups_given": internals.groups_given,
        "state_dtype": internals.format.dtype,
        "complex": internals.format.complex,
        "copies": internals.users_copies() if given is None else given,
        "arrays": arrays,
        "attributes": getattr(optimizer, "__dict__", {}),
    }


def unpickled(kind: type[Configurable], state: Mapping[str, Any]) -> Internals:
    """Return internals around the parameters of a pickle or a copy, with new state."""
    groups, group_of = state["groups"]
    return Internals(
        kind,
        state["params"],
        _with_later(kind, state["settings"]["hyperparameters"]),
        grouping=lambda _: ([dict(own) for own in groups], group_of),
        state_dtype=state["state_dtype"],
        complex=state.get("complex", "components"),
        copies=state["copies"],
        groups_given=state["groups_given"],
    )


def restore_pickled(optimizer: Configurable, state: Mapping[str, Any]) -> None:
    """Restore the settings and the state of a pickle or a copy."""
    call = type(optimizer).__name__
    known = checked(optimizer, call, "state", state["settings"])
    restore(optimizer, "__setstate__", known, partial(fill, values=state["arrays"]), prefix=call)


def _settings(internals: Internals) -> dict[str, Any]:
    """Return what a state dict has except for arrays: not copied, but in a new dict."""
    weights, accumulated = internals.core.average_weights, internals.core.accumulated
    without = internals.core.without_sum
    return {
        "optimizer": internals.call,
        "steps": internals.core.steps,
        "skipped": internals.core.skipped,
        "hyperparameters": internals.settings,
        "groups": [
            {"hyperparameters": own, "members": list(members), "rested": rested}
            for own, members, rested in zip(
                internals.groups, internals.members, internals.core.rested, strict=True
            )
        ],
        "average": None if internals.averages is None else {"weights": weights},
        "accumulated": {"count": accumulated, "without": without} if accumulated else None,
    }


def _arrays(internals: Internals) -> States:
    """Return the arrays in use that belong to the settings."""
    arrays = dict(internals.states)
    if internals.averages is not None:
        arrays["average"] = internals.averages
    if internals.core.accumulated:
        arrays["accumulated"] = internals.sums()
    return arrays


def checked(
    optimizer: Configurable,
    call: str,
    name: str,
    given: Mapping[str, Any],
    *,
    with_values: bool = False,
) -> Checked:
    """Return saved settings, checked, or raise TypeError or ValueError.

    with_values: whether the settings have arrays too, as a state dict does. They are not checked.
    """
    internals = internals_of(optimizer)
    memo: _Memo = {}
    values = {"values": anything} if with_values else {}
    sums = record(count=partial(count, least=1), without=partial(_indices, internals), **values)

    def check_sums(call: str, name: str, given: Any) -> dict[str, Any]:
        return sums(call, name, _with_defaults(given, without=[]))

    known = record(
        optimizer=same(internals.call),
        steps=_from_zero,
        skipped=_from_zero,
        hyperparameters=partial(_checked_hyperparameters, internals, memo),
        groups=partial(_checked_groups, internals, memo),
        average=optional(record(weights=_weights, **values)),
        accumulated=optional(check_sums),
        **({"state": anything} if with_values else {}),
    )(call, name, given)
    rested = [
        count(call, f"{name}['groups'][{index}]['rested']", steps, least=0, most=known["steps"])
        for index, (_, steps) in enumerate(known["groups"])
    ]
    settings, groups = internals.promoted(
        known["hyperparameters"], [own for own, _ in known["groups"]]
    )
    average, accumulated = known["average"], known["accumulated"]
    if (average is None) != (settings["average"] is None):
        was, expected = ("None", "averages") if average is None else ("averages", "None")
        raise ValueError(
            f"{call}: {name}['average'] is {was}, expected {expected}, as its hyperparameters "
            "have it"
        )
    states, averages = internals.arrays_for(call, settings, groups)
    arrays = dict(states)
    if averages is not None:
        arrays["average"] = averages
    if accumulated is not None:
        arrays["accumulated"] = new_sums(internals.arrays)
    return Checked(
        call=call,
        steps=known["steps"],
        skipped=known["skipped"],
        settings=settings,
        groups=groups,
        rested=rested,
        average_weights=(0.0, 0.0) if average is None else average["weights"],
        accumulated=0 if accumulated is None else accumulated["count"],
        without_sum=[] if accumulated is None else accumulated["without"],
        arrays=arrays,
    )


def _with_defaults(given: Any, **defaults: Any) -> Any:
    """Return saved values with defaults for those that earlier versions did not have."""
    if not isinstance(given, Mapping):
        return given
    return dict(given) | {name: value for name, value in defaults.items() if name not in given}


def _with_later(kind: type[Configurable], given: Any) -> Any:
    """Return saved settings with the defaults of those that earlier versions did not have."""
    known = declaration_of(kind).settings
    return _with_defaults(given, **{name: known[name].default for name in _LATER if name in known})


def _checked_hyperparameters(
    internals: Internals, memo: _Memo, call: str, name: str, given: Any
) -> dict[str, Any]:
    given = _with_later(internals.kind, given)
    check_keys(call, name, given, tuple(internals.settings))
    return checked_settings(internals.kind, call, _copied_schedules(given, memo))


def _checked_groups(
    internals: Internals, memo: _Memo, call: str, name: str, given: Any
) -> list[tuple[Overrides, Any]]:
    if not isinstance(given, list) or len(given) != len(internals.groups):
        raise ValueError(
            f"{call}: {name} is {shown(given)}, expected a list of {len(internals.groups)} groups"
        )
    result = []
    for index, group in enumerate(given):
        members = same(internals.members[index])
        check = record(hyperparameters=mapping, members=members, rested=anything)
        fields = check(call, f"{name}[{index}]", _with_defaults(group, rested=0))
        own = _copied_schedules(fields["hyperparameters"], memo)
        own = checked_overrides(internals.kind, call, f"{name}[{index}]", own)
        result.append((own, fields["rested"]))
    return result


def _indices(internals: Internals, call: str, name: str, given: Any) -> list[int]:
    """Return indices of parameters, or raise TypeError or ValueError."""
    if not isinstance(given, list):
        raise TypeError(f"{call}: {name} is {shown(given)}, expected a list of integers")
    most = len(internals.group_of) - 1
    return [count(call, name, index, least=0, most=most) for index in given]


def _weights(call: str, name: str, weights: Any) -> tuple[float, float]:
    """Return the sums of the weights of the averages, in float32 and in float64, or raise."""
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise ValueError(f"{call}: {name} is {shown(weights)}, expected two numbers")
    in_float32, in_float64 = (NON_NEGATIVE(call, name, weight) for weight in weights)
    if (in_float32 == 0) != (in_float64 == 0):
        raise ValueError(
            f"{call}: {name} is {weights!r}, expected both to be 0 or both to be positive"
        )
    return in_float32, in_float64


def restore(
    optimizer: Configurable,
    call: str,
    known: Checked,
    fill: Callable[[States], None],
    *,
    prefix: str,
) -> None:
    """Use checked settings, and call `fill` with the arrays for them, in one transaction.

    prefix: that of an error about numbers that the parameters' dtype does not hold.
    """
    internals = internals_of(optimizer)
    with internals.busy(call, changes=True):
        internals.check_copies(f"{internals.call}.{call}")
        if known.accumulated:
            internals.hold_sums()

        def on_commit() -> None:
            internals.core.clear_accumulated()
            internals.core.accumulated = known.accumulated
            fill(_arrays(internals))
            internals.core.without_sum = known.without_sum
            internals.core.rested = known.rested
            internals.core.average_weights = known.average_weights
            internals.core.skipped = known.skipped
            internals.core.steps = known.steps
            internals.write_copies()

        try:
            internals.reconfigure(known.settings, known.groups, known.settings, on_commit=on_commit)
        except ValueError as error:
            own = f"{internals.call}: "
            if not str(error).startswith(own):  # that of a signal handler
                raise
            raise ValueError(f"{prefix}: {str(error).removeprefix(own)}") from None


def _copied_schedules(settings: Mapping[str, Any], memo: _Memo) -> dict[str, Any]:
    return {name: _copied_schedule(value, memo) for name, value in settings.items()}


def _copied_schedule(value: Any, memo: _Memo) -> Any:
    # A schedule that depends on the cost changes, or contains one that does: a copy that training
    # resumes from must not change with it. Any other function belongs to the user.
    if not callable(value):
        return value
    from schuss.schedules import Schedule  # imported late: the optimizers do without it

    return deepcopy(value, memo) if isinstance(value, Schedule) else value
