"""Groups of parameters with hyperparameters of their own."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeAlias

from schuss._arrays import ArrayTree

Overrides: TypeAlias = dict[str, Any]
"""The hyperparameters that a group has of its own."""
Groups: TypeAlias = tuple[list[Overrides], list[int]]
"""The own hyperparameters of each group, and the index of the group of each parameter."""
GroupOf: TypeAlias = Callable[[str], Mapping[str, Any] | None]
"""A function from the name of a parameter to its own hyperparameters."""
Params: TypeAlias = ArrayTree | Sequence[Any]
"""Parameters, or groups of them: dicts with ``params`` and hyperparameters.

The groups are Any: type checkers infer a list of dicts of mixed values as a list of objects.
"""


def split_groups(params: Params) -> tuple[Any, list[Overrides] | None]:
    """Return the parameters, and the hyperparameters of each item if they are given as groups."""
    if not isinstance(params, list | tuple) or not params:
        return params, None
    if not all(isinstance(group, Mapping) and "params" in group for group in params):
        return params, None
    overrides = [{k: v for k, v in group.items() if k != "params"} for group in params]
    return [group["params"] for group in params], overrides


def assign_groups(
    names: list[str],
    *,
    call: str,
    items: list[Overrides] | None,
    groups: GroupOf | None,
    check: Callable[[str, str, Mapping[str, Any]], Overrides],
) -> Groups:
    """Return the groups of the parameters of these names.

    items: the hyperparameters of each item of a list of groups; groups: the function that returns
    those of a parameter; check: returns checked hyperparameters, or raises.
    """
    if items is not None:
        if groups is not None:
            raise ValueError(
                f"{call}: groups is given and params are groups, expected only one of them"
            )
        checked = [check(call, f"params[{i}]", own) for i, own in enumerate(items)]
        return checked, [int(name.split("/")[0]) for name in names]
    if groups is None:
        return [{}], [0] * len(names)
    if not callable(groups):
        was = type(groups).__name__
        raise TypeError(f"{call}: groups is a {was}, expected a function of a parameter's name")
    found: list[Overrides] = []
    candidates: dict[Hashable, list[int]] = {}  # the groups whose hyperparameters may be equal
    group_of = []
    for name in names:
        own = groups(name)
        if own is not None and not isinstance(own, Mapping):
            raise TypeError(
                f"{call}: groups({name!r}) is a {type(own).__name__}, expected a mapping or None"
            )
        overrides = check(call, f"groups({name!r})", own or {})
        indices = candidates.setdefault(_key_of(overrides), [])
        index = next((index for index in indices if found[index] == overrides), len(found))
        if index == len(found):
            indices.append(index)
            found.append(overrides)
        group_of.append(index)
    return found, group_of


def _key_of(overrides: Overrides) -> Hashable:
    """Return a key that is the same for equal hyperparameters."""
    return frozenset((name, _hashable(value)) for name, value in overrides.items())


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        # The repr of a mutable schedule shows all its fields. A user's function may be anything.
        return repr(value) if is_dataclass(value) else repr(type(value))
    return value  # type: ignore[no-any-return]


def members_of(group_of: list[int], groups: int) -> list[list[int]]:
    """Return the indices of the parameters of each group."""
    members: list[list[int]] = [[] for _ in range(groups)]
    for index, group in enumerate(group_of):
        members[group].append(index)
    return members
