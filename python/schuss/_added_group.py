"""An optimizer with one more group of parameters."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from schuss import _core
from schuss._arrays import Array, zeros_like_strided
from schuss._extended import extended
from schuss._groups import Overrides
from schuss._hyperparameters import mapping
from schuss._internals import Internals
from schuss._interrupts import defer_signals
from schuss._settings import checked_overrides
from schuss._state import new_sums

_A = TypeVar("_A", Array, Array | None)
_I = TypeVar("_I", bound=Internals)


def with_group(internals: _I, call: str, group: Any) -> _I:
    """Return internals with one more group, which use the arrays of the others.

    Raises TypeError or ValueError if the group is not one; `call` is what messages begin with.
    """
    name = internals.call
    own = {**mapping(call, "group", group)}
    if internals.groups_given is None:
        raise ValueError(
            f"{call}: the optimizer has no list of groups, expected one that was made with "
            f"{name}([{{'params': params}}])"
        )
    if "params" not in own:
        raise ValueError(f"{call}: group has no key 'params', expected it")
    params = own.pop("params")
    own = checked_overrides(internals.kind, call, "group", own)
    internals.check_sums("add_group")
    try:
        internals.check_copies(call)
        return _grown(internals, group, params, own)
    except (TypeError, ValueError) as error:
        text = str(error).replace(f"{name}:", f"{call}:", 1)
        raise type(error)(text) from None


def replace(internals: Internals, grown: Internals) -> None:
    """Make internals those with one more group."""
    cores = internals.core, internals.whole

    def commit() -> None:
        vars(internals).update(vars(grown))
        for core in cores:
            core.retire()  # another thread may be about to step it

    defer_signals(commit)


def _grown(internals: _I, group: Mapping[str, Any], params: Any, own: Overrides) -> _I:
    """Return internals with one more group; own: its checked hyperparameters."""
    count = len(internals.groups)
    core, whole, name = internals.core, internals.whole, f"params[{count}]"
    before: Any = internals.params
    old = len(internals.group_of)
    copies: Any = None
    if internals.copies is not None:
        tree = _core.Tree(params, internals.call, name, kept=True)
        dtype = internals.whole.copies[0].dtype
        new = [zeros_like_strided(array, 0, dtype) for array in tree.arrays]
        added, given = tree.unflatten(new), internals.copies_given
        copies = (
            [*internals.users_copies(), added] if given is None else extended(given, count, added)
        )
    grown = internals.remade(
        [*before, params],
        grouping=lambda names: (
            [*internals.groups, own],
            [*internals.group_of, *[count] * (len(names) - old)],
        ),
        copies=copies,
        groups_given=extended(internals.groups_given, count, group),
        states=internals.states,
    )

    def joined(kept: list[_A], new: list[_A]) -> list[_A]:
        return kept + new[old:]

    if internals.masters is not None and grown.masters is not None:
        grown.masters = joined(internals.masters, grown.masters)
    if internals.averages is not None and grown.averages is not None:
        grown.averages = joined(internals.averages, grown.averages)
        if internals.settings["average_bias_correction"]:
            _start_averages(grown.averages[old:], grown.core.arrays[old:], core.average_weights)
    grown.reconfigure(grown.settings, grown.groups, {}, first=True)
    grown.core.steps, grown.core.skipped = core.steps, core.skipped
    grown.core.keep_last_of(core)
    grown.core.rested = [*core.rested, core.steps]
    grown.core.average_weights = core.average_weights
    if whole.accumulated:
        arrays = grown.arrays
        grown.whole.take_sums(joined(internals.sums(), new_sums(arrays)), whole)
        grown.whole.without_sum = [*whole.without_sum, *range(old, len(arrays))]
    return grown


def _start_averages(
    averages: list[Array], params: list[Array], weights: tuple[float, float]
) -> None:
    """Set averages as if the parameters had not changed in any step so far."""
    for average, param in zip(averages, params, strict=True):
        with np.errstate(all="ignore"):
            average[...] = param.astype(average.dtype) * average.dtype.type(
                weights[average.dtype == np.float64]
            )
