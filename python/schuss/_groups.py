"""Groups of parameters with hyperparameters of their own."""

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from schuss._arrays import ArrayTree

if TYPE_CHECKING:
    from schuss.optimizers import Optimizer

Overrides: TypeAlias = dict[str, Any]
"""The hyperparameters that a group has of its own."""
Groups: TypeAlias = tuple[list[Overrides], list[int]]
"""The own hyperparameters of each group, and the group of each parameter."""
GroupOf: TypeAlias = Callable[[str], Mapping[str, Any] | None]
"""Which hyperparameters a parameter has of its own, by its name."""
Params: TypeAlias = ArrayTree | Sequence[Any]
"""Parameters, or groups of them: dicts with ``params`` and hyperparameters.

As Any, since a list of dicts with values of several types is inferred as a list of objects.
"""


def ungrouped(params: Params) -> tuple[Any, list[Overrides] | None]:
    """Return the parameters without what groups there are, and each group's hyperparameters."""
    if not isinstance(params, list | tuple) or not params:
        return params, None
    if not all(isinstance(group, Mapping) and "params" in group for group in params):
        return params, None
    overrides = [{k: v for k, v in group.items() if k != "params"} for group in params]
    return [group["params"] for group in params], overrides


def grouped(
    names: list[str],
    *,
    call: str,
    items: list[Overrides] | None,
    groups: GroupOf | None,
    check: Callable[[str, str, Mapping[str, Any]], Overrides],
) -> Groups:
    """Return the groups of the parameters of these names.

    items: what the items of the list of parameters have; groups: what a function says of a name;
    check: returns hyperparameters as they are meant, or raises.
    """
    if items is not None:
        if groups is not None:
            raise ValueError(
                f"{call}: groups is given where params are groups, expected one of both"
            )
        checked = [check(call, f"params[{i}]", own) for i, own in enumerate(items)]
        return checked, [int(name.split("/")[0]) for name in names]
    if groups is None:
        return [{}], [0] * len(names)
    if not callable(groups):
        was = type(groups).__name__
        raise TypeError(f"{call}: groups is a {was}, expected a function of a parameter's name")
    found: list[Overrides] = []
    alike: dict[Hashable, list[int]] = {}  # the places of those that may be equal
    members = []
    for name in names:
        own = groups(name)
        if own is not None and not isinstance(own, Mapping):
            raise TypeError(
                f"{call}: groups({name!r}) is a {type(own).__name__}, expected a mapping or None"
            )
        overrides = check(call, f"groups({name!r})", own or {})
        places = alike.setdefault(_key_of(overrides), [])
        place = next((place for place in places if found[place] == overrides), len(found))
        if place == len(found):
            places.append(place)
            found.append(overrides)
        members.append(place)
    return found, members


def _key_of(overrides: Overrides) -> Hashable:
    """Return a key that equal hyperparameters have in common."""
    return frozenset((name, _hashable(value)) for name, value in overrides.items())


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        # A schedule that changes shows all its fields. Of a function of the user's, nobody knows.
        return repr(value) if is_dataclass(value) else repr(type(value))
    return value  # type: ignore[no-any-return]


def places_of(members: list[int], groups: int) -> list[list[int]]:
    """Return the places of the parameters of each group."""
    places: list[list[int]] = [[] for _ in range(groups)]
    for place, member in enumerate(members):
        places[member].append(place)
    return places


def of_optimizer(
    hyperparameters: dict[str, Any], groups: list[Overrides]
) -> tuple[dict[str, Any], list[Overrides]]:
    """Return both with what a group has that is the only one as the optimizer's own."""
    if len(groups) > 1:
        return hyperparameters, groups
    return hyperparameters | groups[0], [{}]


class ParamGroup(MutableMapping[str, Any]):
    """One group of an optimizer's parameters, as a dict that is checked whenever it is written."""

    def __init__(self, optimizer: "Optimizer", place: int) -> None:
        self._optimizer, self._place = optimizer, place

    @property
    def lr_now(self) -> float:
        """The learning rate that the group uses, as `Optimizer.lr_now` is that of an optimizer."""
        return self._optimizer._rate_now(self._place)

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self._optimizer._params_of(self._place)
        return self._optimizer._hyperparameters_of(self._place)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._optimizer._set_in_group(self._place, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"param_groups[{self._place}]: {name!r} can be set, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._optimizer._hyperparameters_of(self._place)))

    def __len__(self) -> int:
        return 1 + len(self._optimizer._hyperparameters_of(self._place))

    def __repr__(self) -> str:
        """Return the hyperparameters, and how many arrays have them."""
        settings = {name: self[name] for name in self if name != "params"}
        return f"<group of {len(self['params'])} arrays: {settings}>"
