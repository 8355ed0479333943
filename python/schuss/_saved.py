"""Saving and restoring an optimizer, for checkpoints, state dicts, pickles and copies."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from schuss._arrays import Array
from schuss._blocks import has_blocks
from schuss._conversion import Conversion, conversions, description
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
from schuss._rules import second_moments
from schuss._settings import Configurable, checked_overrides, checked_settings, declaration_of
from schuss._state import Arrays, States, clear, copied, fill, new_sums

# Settings that saved optimizers of earlier versions do not have.
_LATER = ("maximize", "bounds", "track_norms", "eps_hat", "lr_in_velocity")

_from_zero: Check[int] = partial(count, least=0)

Memo: TypeAlias = dict[int, Any]
"""The copies made so far, by id: a schedule that is shared stays shared."""


@dataclass(frozen=True)
class Saved:
    """What is to be saved of an optimizer. Nothing is copied: save it while the optimizer is busy.

    settings
        What the optimizer knows except for arrays, as `state_dict` has it.
    arrays
        Arrays in use by name: the states, ``average``, ``accumulated`` and ``master``.
    names
        The names of the parameters, in the order of the arrays.
    """

    settings: dict[str, Any]
    arrays: Arrays
    names: list[str]


@dataclass(frozen=True)
class Checked:
    """Saved settings that were checked, and the arrays for them: existing ones, or zeros.

    call
        What messages begin with.
    states, others
        The states of the rule; ``average``, ``accumulated`` and ``master``, if they were saved.
    nonnegative
        The names of the states that are never less than 0.
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
    states: States
    others: Arrays
    conversions: list[Conversion]
    nonnegative: list[str]

    def sources(self, name: str, in_blocks: Sequence[bool]) -> list[Array]:
        """Return arrays like the saved ones that can become the states of a name, or ValueError.

        in_blocks: whether the saved state of each parameter is in blocks.
        """
        nonnegative = name in self.nonnegative
        for state, each in zip(self.states[name], in_blocks, strict=True):
            if each and not (has_blocks(state) or state.dtype == np.float32):
                raise ValueError(
                    f"{self.call}: state {name!r} is in 8 bits, expected {state.dtype} as it is "
                    "here"
                )
        return [
            convert.source(state, from_blocks=each, nonnegative=nonnegative)
            for convert, state, each in zip(
                self.conversions, self.states[name], in_blocks, strict=True
            )
        ]

    def likes(self, name: str) -> list[Array | None]:
        """Return arrays like the saved ones of a name of `others`."""
        if name == "accumulated":  # whole, even if the optimizer has pieces of the states
            return [*self.others[name]]
        return [
            None if array is None else convert.like(array)
            for convert, array in zip(self.conversions, self.others[name], strict=True)
        ]

    def pieces(self, name: str, saved: Sequence[Array | None]) -> list[Array | None]:
        """Return what the optimizer keeps of saved arrays of a name of `others`."""
        if name == "accumulated":
            return [*saved]
        return [
            values if values is None or convert.bounds is None else convert.piece(values)
            for convert, values in zip(self.conversions, saved, strict=True)
        ]

    def converted(self, name: str, saved: Sequence[Array]) -> list[Array]:
        """Return saved states of a name in the formats of those of the optimizer."""
        return [
            convert(values, state)
            for convert, values, state in zip(
                self.conversions, saved, self.states[name], strict=True
            )
        ]


def saved(optimizer: Configurable) -> Saved:
    """Return what is to be saved of an optimizer."""
    internals = internals_of(optimizer)
    return Saved(_settings(internals), _arrays(internals), internals.whole.tree.names)


def own_hyperparameters(optimizer: Configurable) -> tuple[dict[str, Any], list[Overrides]]:
    """Return the settings of an optimizer, and the own hyperparameters of each of its groups."""
    internals = internals_of(optimizer)
    return internals.settings, internals.groups


def low_precision_of(optimizer: Configurable) -> dict[str, str]:
    """Return the options of 8-bit state, masters and random rounding that an optimizer uses."""
    internals = internals_of(optimizer)
    formats = {"state_dtype": internals.format.dtype, **vars(internals.rounding)}
    return {
        name: value
        for name, value in formats.items()
        if isinstance(value, str) and value != "nearest"
    }


def busy(optimizer: Configurable, call: str) -> AbstractContextManager[object]:
    """Return a context in which calls that change the optimizer are refused.

    All rows of its parameters are up to date in it.
    """
    return internals_of(optimizer).being_saved(call)


def pickled(
    optimizer: Configurable, *, copy_arrays: bool, behind: Sequence[int] = ()
) -> dict[str, Any]:
    """Return what a pickle or a copy of a busy optimizer needs, attributes of a subclass included.

    It keeps the parameters by reference: an optimizer that is pickled or copied together with them
    is bound to the same copies. Those may have been made before the call, when the rows of the
    parameters `behind` were not up to date.
    """
    internals = internals_of(optimizer)
    arrays: Arrays = _arrays(internals)
    if copy_arrays:
        arrays = {name: copied(each) for name, each in arrays.items()}
    given = internals.copies_given
    return {
        "params": internals.params,
        "settings": _settings(internals),
        "groups": (internals.groups, internals.group_of),
        "groups_given": internals.groups_given,
        **internals.formats,
        "copies": internals.users_copies() if given is None else given,
        "arrays": arrays,
        "up_to_date": {index: internals.arrays[index].copy() for index in behind},
        "attributes": getattr(optimizer, "__dict__", {}),
    }


def unpickled(kind: type[Configurable], state: Mapping[str, Any]) -> Internals:
    """Return internals around the parameters of a pickle or a copy, with new state."""
    groups, group_of = state["groups"]
    internals = Internals(
        kind,
        state["params"],
        _with_later(kind, state["settings"]["hyperparameters"]),
        grouping=lambda _: ([dict(own) for own in groups], group_of),
        state_dtype=state["state_dtype"],
        complex=state.get("complex", "components"),
        master=state.get("master"),
        round_params=state.get("round_params", "nearest"),
        rows=state.get("rows", "exact"),
        copies=state["copies"],
        groups_given=state["groups_given"],
    )
    for index, values in state.get("up_to_date", {}).items():
        np.copyto(internals.arrays[index], values)
    return internals


def restore_pickled(optimizer: Configurable, state: Mapping[str, Any]) -> None:
    """Restore the settings and the state of a pickle or a copy."""
    call = type(optimizer).__name__
    known = checked(optimizer, call, "state", state["settings"])
    values = dict(state["arrays"])
    # The copies of parameters need not have the memory layouts of these.
    values |= {name: known.converted(name, values[name]) for name in known.states}
    restore(optimizer, "__setstate__", known, partial(fill, values=values), prefix=call)


def _settings(internals: Internals) -> dict[str, Any]:
    """Return what a state dict has except for arrays: not copied, but in a new dict."""
    weights, accumulated = internals.core.average_weights, internals.whole.accumulated
    without = internals.whole.without_sum
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
        "master": internals.rounding.master,
        "blocks": description(internals.arrays) if internals.format.dtype == "8bit" else None,
    }


def _arrays(internals: Internals) -> dict[str, Sequence[Array | None]]:
    """Return the arrays in use that belong to the settings."""
    arrays: dict[str, Sequence[Array | None]] = {**internals.states}
    if internals.averages is not None:
        arrays["average"] = internals.averages
    if internals.whole.accumulated:
        arrays["accumulated"] = internals.sums()
    if internals.masters is not None:
        arrays["master"] = internals.masters
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
    check = _check_of(internals, with_values)
    known = check(call, name, _with_defaults(given, master=None, blocks=None))
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
    others = {
        "average": averages,
        "accumulated": None if accumulated is None else new_sums(internals.arrays),
        "master": None if known["master"] is None else internals.masters,
    }
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
        states=states,
        others={key: arrays for key, arrays in others.items() if arrays is not None},
        conversions=known["blocks"],
        nonnegative=second_moments(internals.kind, {**settings, **groups[0]}),
    )


def _check_of(internals: Internals, with_values: bool) -> Check[dict[str, Any]]:
    """Return a check of saved settings."""
    memo: Memo = {}
    values = {"values": anything} if with_values else {}
    sums = record(count=partial(count, least=1), without=partial(_indices, internals), **values)

    def check_sums(call: str, name: str, given: Any) -> dict[str, Any]:
        return sums(call, name, _with_defaults(given, without=[]))

    return record(
        optimizer=same(internals.call),
        steps=_from_zero,
        skipped=_from_zero,
        hyperparameters=partial(_checked_hyperparameters, internals, memo),
        groups=partial(_checked_groups, internals, memo),
        average=optional(record(weights=_weights, **values)),
        accumulated=optional(check_sums),
        master=optional(partial(_checked_master, internals, with_values)),
        blocks=partial(conversions, internals.arrays, internals.bounds),
        **({"state": anything} if with_values else {}),
    )


def _with_defaults(given: Any, **defaults: Any) -> Any:
    """Return saved values with defaults for those that earlier versions did not have."""
    if not isinstance(given, Mapping) or not given:
        return given
    return dict(given) | {name: value for name, value in defaults.items() if name not in given}


def _with_later(kind: type[Configurable], given: Any) -> Any:
    """Return saved settings with the defaults of those that earlier versions did not have."""
    known = declaration_of(kind).settings
    return _with_defaults(given, **{name: known[name].default for name in _LATER if name in known})


def _checked_hyperparameters(
    internals: Internals, memo: Memo, call: str, name: str, given: Any
) -> dict[str, Any]:
    given = _with_later(internals.kind, given)
    check_keys(call, name, given, tuple(internals.settings))
    return checked_settings(internals.kind, call, copied_schedules(given, memo))


def _checked_groups(
    internals: Internals, memo: Memo, call: str, name: str, given: Any
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
        own = copied_schedules(fields["hyperparameters"], memo)
        own = checked_overrides(internals.kind, call, f"{name}[{index}]", own)
        result.append((own, fields["rested"]))
    return result


def _checked_master(
    internals: Internals, has_values: bool, call: str, name: str, given: Any
) -> Any:
    """Return a saved master, or its format, or raise ValueError if there is none here."""
    here = internals.rounding.master
    if here is None:
        was = "given" if has_values else shown(given)
        raise ValueError(f"{call}: {name} is {was}, expected None: the optimizer has no master")
    return given if has_values else same(here)(call, name, given)


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
    fill: Callable[[Arrays], None],
    *,
    prefix: str,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Use checked settings, and call `fill` with the arrays for them, in one transaction.

    prefix: that of an error about numbers that the parameters' dtype does not hold. ready: is
    called before anything changes.
    """
    internals = internals_of(optimizer)
    with internals.up_to_date(call, changes=True):
        internals.check_copies(f"{internals.call}.{call}")
        if known.accumulated:
            internals.hold_sums()

        def on_commit() -> None:
            internals.whole.clear_accumulated()
            internals.sums_have_rows = False
            internals.whole.accumulated = known.accumulated
            arrays = _arrays(internals)
            if "master" not in known.others:
                clear(arrays.pop("master", ()))
            fill(arrays)
            internals.whole.without_sum = known.without_sum
            internals.core.rested = known.rested
            internals.core.average_weights = known.average_weights
            internals.core.skipped = known.skipped
            internals.core.steps = known.steps
            internals.write_copies()

        ready()
        try:
            internals.reconfigure(known.settings, known.groups, known.settings, on_commit=on_commit)
        except ValueError as error:
            own = f"{internals.call}: "
            if not str(error).startswith(own):  # that of a signal handler
                raise
            raise ValueError(f"{prefix}: {str(error).removeprefix(own)}") from None


def copied_schedules(settings: Mapping[str, Any], memo: Memo) -> dict[str, Any]:
    """Return settings with copies of their schedules."""
    return {name: _copied_schedule(value, memo) for name, value in settings.items()}


def _copied_schedule(value: Any, memo: Memo) -> Any:
    # A schedule that depends on the cost changes, or contains one that does: a copy that training
    # resumes from must not change with it. Any other function belongs to the user.
    if not callable(value):
        return value
    from schuss.schedules import Schedule  # imported late: the optimizers do without it

    return deepcopy(value, memo) if isinstance(value, Schedule) else value
