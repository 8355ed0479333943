"""An optimizer with one more group of parameters."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from schuss import _core
from schuss._arrays import Array, zeros_like_strided
from schuss._extended import extended
from schuss._groups import Overrides
from schuss._internals import Internals
from schuss._state import new_sums

_A = TypeVar("_A", Array, Array | None)


def with_group(
    internals: Internals, group: Mapping[str, Any], params: Any, own: Overrides
) -> Internals:
    """Return internals with one more group, which use the arrays of the others.

    own: the checked hyperparameters of the group.
    """
    count = len(internals.groups)
    core, name = internals.core, f"params[{count}]"
    before: Any = internals.params
    old = len(internals.group_of)
    copies: Any = None
    if internals.copies is not None:
        tree = _core.Tree(params, internals.call, name, kept=True)
        new = [zeros_like_strided(array, 0, core.copies[0].dtype) for array in tree.arrays]
        added, given = tree.unflatten(new), internals.copies_given
        copies = (
            [*internals.users_copies(), added] if given is None else extended(given, count, added)
        )
    grown = Internals(
        internals.kind,
        [*before, params],
        internals.settings,
        grouping=lambda names: (
            [*internals.groups, own],
            [*internals.group_of, *[count] * (len(names) - old)],
        ),
        copies=copies,
        groups_given=extended(internals.groups_given, count, group),
        **internals.formats,
    )

    def joined(kept: list[_A], new: list[_A]) -> list[_A]:
        return kept + new[old:]

    arrays = grown.arrays
    grown.states = {name: joined(internals.states[name], new) for name, new in grown.states.items()}
    if internals.masters is not None and grown.masters is not None:
        grown.masters = joined(internals.masters, grown.masters)
    if internals.averages is not None and grown.averages is not None:
        grown.averages = joined(internals.averages, grown.averages)
        if internals.settings["average_bias_correction"]:
            _start_averages(grown.averages[old:], arrays[old:], core.average_weights)
    grown.reconfigure(grown.settings, grown.groups, {}, first=True)
    grown.core.steps, grown.core.skipped = core.steps, core.skipped
    grown.core.keep_last_of(core)
    grown.core.rested = [*core.rested, core.steps]
    grown.core.average_weights = core.average_weights
    if core.accumulated:
        grown.core.take_sums(joined(internals.sums(), new_sums(arrays)), core)
        grown.core.without_sum = [*core.without_sum, *range(old, len(arrays))]
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
