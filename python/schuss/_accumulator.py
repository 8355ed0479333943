"""Gradients added up for an optimizer's next step."""

from typing import Any

from schuss import _core
from schuss._arrays import ArrayTree
from schuss._state import new_sums


class GradientAccumulator:
    """Sums of gradients, for an optimizer's next step.

    The count is kept in C++, so that it stays correct if a signal interrupts Python.
    """

    def __init__(self, call: str, optimizer: _core.Plan) -> None:
        arrays = new_sums(optimizer.arrays)
        self.tree = optimizer.unflatten(arrays)
        self.plan = _core.Plan(call, self.tree, "accumulate", "accumulated")
        self.plan.stay_apart_from(optimizer)
        self._members = [0] * len(arrays)

    @property
    def count(self) -> int:
        """The number of gradients in the sums."""
        return self.plan.steps

    def clear(self) -> None:
        """Drop the gradients."""
        self.plan.steps = 0

    def add(self, grads: ArrayTree, scale: float, options: dict[str, Any]) -> None:
        """Add gradients, multiplied by `scale`."""
        rule = "accumulation" if self.count else "accumulation_first"
        formula = rule, "none", {"lr": 0.0, "weight_decay": 0.0}
        self.plan.configure([formula], self._members, options, None)
        self.plan.step(grads, 0.0, scale)
