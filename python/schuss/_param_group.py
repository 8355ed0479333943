"""The groups of an optimizer as users see them."""

from collections.abc import Iterator, MutableMapping
from typing import Any

from schuss._internals import Internals


class ParamGroup(MutableMapping[str, Any]):
    """One group of an optimizer's parameters, as a dict whose values are checked when written."""

    def __init__(self, internals: Internals, index: int) -> None:
        self._internals, self._index = internals, index

    @property
    def lr_now(self) -> float:
        """The learning rate that the group uses; see `Optimizer.lr_now`."""
        return self._internals.lr_now(self._index)

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self._internals.params_of(self._index)
        return self._internals.hyperparameters_of(self._index)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._internals.assign_in_group(self._index, name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"param_groups[{self._index}]: {name!r} can be set, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._internals.hyperparameters_of(self._index)))

    def __len__(self) -> int:
        return 1 + len(self._internals.hyperparameters_of(self._index))

    def __repr__(self) -> str:
        """Return the hyperparameters, and the number of arrays that have them."""
        settings = {name: self[name] for name in self if name != "params"}
        return f"<group of {len(self['params'])} arrays: {settings}>"
