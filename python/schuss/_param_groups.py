"""The groups of an optimizer's parameters as users see them."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from schuss._added_group import replace, with_group
from schuss._internals import Internals
from schuss._options import Options


class ParamGroup(MutableMapping[str, Any]):
    """One group of an optimizer's parameters, as a dict whose values are checked when written."""

    def __init__(self, internals: Internals, index: int) -> None:
        self._internals, self._index = internals, index

    @property
    def lr_now(self) -> float:
        """The learning rate that the group uses; see `Optimizer.lr_now`."""
        return self._internals.lr_now(self._index)

    @property
    def steps(self) -> int:
        """The number of steps that the bias correction counts: those in which the group moved."""
        core = self._internals.core
        return core.steps - core.rested[self._index]

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


class Grouped(Options):
    """What an optimizer does with groups of its parameters."""

    __slots__ = ()

    _internals: Internals

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The groups of parameters that have the same hyperparameters, as dicts.

        Each has its arrays as ``params``, its hyperparameters, and ``frozen``; writing one changes
        it for this group only. The attributes of the optimizer are the hyperparameters of groups
        that have none of their own, or of the only group. If each of several groups has its own,
        that of the optimizer cannot be set.

        The parameters of a frozen group rest: nothing of them changes, and their gradients, which
        may be None, are not read.
        """
        # Not a list: appending a group would have no effect.
        return tuple(ParamGroup(self._internals, i) for i in range(len(self._internals.groups)))

    def add_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, as ``add_param_group`` of PyTorch does.

        Gradients, `state` and `params` have one more item from now on. The state of the group
        starts at zero, and its bias correction counts from 1; schedules go on with `steps`. Its
        averages start with its parameters. If there are `copies`, new ones are made for it. The
        optimizer does not append the group to your list of groups; you may have done so.

        Parameters
        ----------
        group : dict
            ``params``, and hyperparameters of the group; those that are missing are the
            optimizer's, not those of other groups.

        Raises
        ------
        TypeError, ValueError
            If the optimizer was not made with a list of groups, or as for `params` and
            hyperparameters of a new optimizer; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> head, body = np.ones(2), np.ones(2)
        >>> opt = schuss.Adam([{"params": head}], lr=0.1)
        >>> opt.step([np.ones(2)])
        >>> opt.add_group({"params": body, "lr": 0.01})
        >>> opt.step([np.ones(2), np.ones(2)])
        >>> head.round(6), body.round(6)
        (array([0.8, 0.8]), array([0.99, 0.99]))
        """
        internals, call = self._internals, f"{type(self).__name__}.add_group"
        with internals.up_to_date("add_group", changes=True):
            replace(internals, with_group(internals, call, group))
