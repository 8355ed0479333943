"""The state dict of an optimizer: its settings, and copies of its arrays."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from schuss._arrays import Array
from schuss._blocks import has_blocks
from schuss._core import Tree
from schuss._hyperparameters import check_keys
from schuss._internals import internals_of
from schuss._saved import Checked, Memo, checked, copied_schedules, restore, saved
from schuss._settings import Configurable
from schuss._state import Arrays, copied, fill

# Entries that have arrays as values, besides other fields.
_WITH_VALUES = ("average", "accumulated")


def state_dict(optimizer: Configurable) -> dict[str, Any]:
    """Return a copy of what an optimizer knows; see `Optimizer.state_dict`."""
    internals = internals_of(optimizer)
    with internals.being_saved("state_dict"):
        known = saved(optimizer)
        arrays = {name: copied(each) for name, each in known.arrays.items()}
        return with_arrays(known.settings, arrays, internals.whole.tree)


def with_arrays(settings: dict[str, Any], arrays: Arrays, tree: Tree) -> dict[str, Any]:
    """Return a state dict of saved settings and arrays of the whole parameters."""
    trees = {name: tree.unflatten([*each]) for name, each in arrays.items()}
    for name in _WITH_VALUES:
        if name in trees:
            settings[name] |= {"values": trees.pop(name)}
    settings["master"] = trees.pop("master", None)
    memo: Memo = {}
    return settings | {
        "hyperparameters": copied_schedules(settings["hyperparameters"], memo),
        "groups": [
            group | {"hyperparameters": copied_schedules(group["hyperparameters"], memo)}
            for group in settings["groups"]
        ],
        "state": trees,
    }


def load_state_dict(optimizer: Configurable, given: Mapping[str, Any]) -> None:
    """Load what `state_dict` returned; see `Optimizer.load_state_dict`."""
    call = f"{type(optimizer).__name__}.load_state_dict"
    known, values = read(optimizer, call, given)
    restore(optimizer, "load_state_dict", known, partial(fill, values=values), prefix=call)


def read(optimizer: Configurable, call: str, given: Mapping[str, Any]) -> tuple[Checked, Arrays]:
    """Return a state dict, checked, and the values of the arrays of the optimizer."""
    name = "state_dict"
    known = checked(optimizer, call, name, given, with_values=True)
    check_keys(call, f"{name}['state']", given["state"], tuple(known.states))
    reader = _Reader(call, internals_of(optimizer).whole.tree)
    # Copied first: the values given may be the state itself, in another order.
    values: dict[str, Sequence[Array | None]] = {}
    for key in known.states:
        argument = f"{name}['state'][{key!r}]"
        values[key] = copied(reader.states(given["state"][key], argument, known, key))
    for key in known.others:
        structure, argument = given[key], f"{name}[{key!r}]"
        if key in _WITH_VALUES:
            structure, argument = structure["values"], f"{argument}['values']"
        arrays = reader.arrays(structure, argument, known.likes(key), key)
        values[key] = copied(known.pieces(key, arrays))
    return known, values


class _Reader:
    """Reads arrays of a structure like that of the parameters; TypeError or ValueError if not."""

    def __init__(self, call: str, tree: Tree) -> None:
        self._call, self._tree = call, tree

    def states(self, structure: Any, argument: str, known: Checked, name: str) -> list[Array]:
        """Return states of a name, converted to the formats of those of the optimizer."""
        given = self._tree.flatten(structure, self._call, argument)
        like = known.sources(name, [*map(has_blocks, given)])
        arrays = self._tree.flatten_arrays(
            structure, self._call, argument, like, f"state[{name!r}]"
        )
        return known.converted(name, arrays)

    def arrays(
        self, structure: Any, argument: str, like: Sequence[Array | None], name: str
    ) -> list[Array | None]:
        """Return arrays like others, and None where these are None."""
        given, absent = self._tree.flatten(structure, self._call, argument), np.empty(0)
        for i, known in enumerate(like):
            if known is not None:
                continue
            if given[i] is not None:
                raise ValueError(
                    f"{self._call}: {argument} has {self._tree.names[i]!r}, expected None there"
                )
            given[i] = absent
        arrays = self._tree.flatten_arrays(
            self._tree.unflatten(given),
            self._call,
            argument,
            [absent if known is None else known for known in like],
            name,
        )
        return [None if known is None else array for array, known in zip(arrays, like, strict=True)]
