"""The learning rates that the groups of an optimizer use."""

from typing import Any

from schuss import _core
from schuss._groups import Overrides
from schuss._hyperparameters import NON_NEGATIVE, Rate
from schuss._settings import Configurable


class LearningRates:
    """What the internals of an optimizer do with learning rates and schedules."""

    kind: type[Configurable]
    core: _core.Optimizer
    settings: dict[str, Any]
    groups: list[Overrides]
    has_group_lrs: bool

    @property
    def call(self) -> str:
        """The name of the class, with which messages begin."""
        return self.kind.__name__

    def uses(self, name: str) -> bool:
        """Return whether a group uses the optimizer's value of this hyperparameter.

        The only group does, since its own value is the optimizer's too.
        """
        # The sum exhausts its generator: a KeyboardInterrupt is lost in one that is closed early.
        return len(self.groups) == 1 or sum(name not in own for own in self.groups) > 0

    def lr_now(self, group: int | None = None) -> float:
        """Return the learning rate that a group uses.

        None stands for the first group without its own `lr`, or else for the first group.
        """
        if group is None and not self.has_group_lrs:
            group = 0
        elif group is None:
            shared = [index for index, own in enumerate(self.groups) if "lr" not in own]
            group = shared[0] if shared else 0
        lr = self._lr(group)
        if not callable(lr):
            return lr
        lrs = self.core.last_lrs
        if lrs is None:
            return self._scheduled("lr_now", group, max(self.core.steps, 1))
        return lrs[group]

    def _lr(self, group: int) -> Rate:
        """Return the rate or schedule of a group: its own, or else the optimizer's."""
        lr: Rate = self.groups[group].get("lr", self.settings["lr"])
        return lr

    def _scheduled(self, call: str, group: int, t: int) -> float:
        """Return the rate that the schedule of a group returns for step t, checked."""
        name = f"param_groups[{group}]['lr']" if "lr" in self.groups[group] else "lr"
        schedule: Any = self._lr(group)
        return NON_NEGATIVE(f"{self.call}.{call}", name, schedule(t))

    def lrs_of_step(self, t: int) -> tuple[float | tuple[float, ...], bool]:
        """Return the rate of step t, or one for each group if some have their own.

        Also return whether every step has these rates, as long as no setting changes.
        """
        rates: dict[int, float] = {}  # by the id of the schedule: groups can share one

        def lr_of(group: int) -> float:
            lr = self._lr(group)
            if not callable(lr):
                return lr
            if id(lr) not in rates:
                rates[id(lr)] = self._scheduled("step", group, t)
            return rates[id(lr)]

        own = self.has_group_lrs
        lrs = tuple(map(lr_of, range(len(self.groups)))) if own else lr_of(0)
        return lrs, not rates
