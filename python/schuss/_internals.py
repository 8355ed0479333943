"""The internals of an optimizer: its parameters, settings, groups and state, and how they change.

Other modules of the package use them; users see `Optimizer`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from schuss import _core
from schuss._accumulator import GradientAccumulator
from schuss._arrays import Array, ArrayTree, computed_dtype, names_of_leaves
from schuss._copies import copies_for, is_dtype, register
from schuss._groups import Groups, Overrides, members_of, promote_single_group
from schuss._hyperparameters import FINITE, NON_NEGATIVE
from schuss._interrupts import whole
from schuss._rules import formula, spec_of, states
from schuss._settings import Configurable, declaration_of, holder_of
from schuss._state import States, new_averages, state_format, with_names

# The number of steps when schedules were last asked, and the rates of schedules by id: those of
# the last step then, and those of the next one.
_Rates: TypeAlias = tuple[int, dict[int, float], dict[int, float]]
_NO_RATES: _Rates = (0, {}, {})


class Internals:
    """Everything that an optimizer knows; its core makes the steps."""

    __slots__ = (
        "__weakref__",
        "_rates",
        "accumulator",
        "averages",
        "copies",
        "copies_given",
        "declaration",
        "format",
        "group_lrs",
        "group_of",
        "groups",
        "groups_given",
        "kind",
        "members",
        "params",
        "plan",
        "settings",
        "states",
    )

    def __init__(
        self,
        kind: type[Configurable],
        params: ArrayTree,
        settings: Mapping[str, Any],
        *,
        grouping: Callable[["Internals", list[str]], Groups],
        state_dtype: Any,
        copies: Any,
        groups_given: Any = None,
    ) -> None:
        self.kind, self.declaration = kind, declaration_of(kind)
        call = kind.__name__
        self.settings = self.checked(call, settings)
        spec_of(kind)
        self.plan = _core.Plan(call, params)
        if groups_given is not None:
            self.plan.hold_groups(groups_given)
        # The user's own objects: a copy of the optimizer sees what the user replaces in them.
        self.params, self.groups_given = params, groups_given
        self.copies_given = None if is_dtype(copies) else copies
        self._rates = _NO_RATES
        self.accumulator: GradientAccumulator | None = None
        self.states: States = {}
        self.averages: list[Array] | None = None
        self.groups: list[Overrides]
        self.group_lrs: list[Any] | None
        groups, self.group_of = grouping(self, self.names())
        self.members = members_of(self.group_of, len(groups))
        self.settings, groups = promote_single_group(self.settings, groups)
        self.format = state_format(call, state_dtype, self.arrays)
        self.copies = copies_for(call, copies, self.plan)
        self.reconfigure(self.settings, groups, {}, first=True)
        self.write_copies()
        if self.copies is not None:
            register(self)

    @property
    def call(self) -> str:
        """The name of the class, with which messages begin."""
        return self.kind.__name__

    @property
    def arrays(self) -> list[Array]:
        """The parameters."""
        return self.plan.arrays

    def names(self) -> list[str]:
        """Return the names of the parameters: "layers/0/W"."""
        return list(names_of_leaves(self.plan.unflatten([None] * len(self.arrays))))

    def busy(self, call: str, *, changes: bool = False) -> _core.Turn:
        """Return a context in which other calls are refused, those that only read if `changes`."""
        return self.plan.turn(f"{self.call}.{call}", changes)

    # Steps.

    def step(self, grads: ArrayTree | None, scale: float, *, skip_nonfinite: bool = False) -> None:
        """Make a step with gradients, or with those that were accumulated."""
        call = f"{self.call}.step"
        scale = FINITE(call, "scale", scale)
        accumulator = self.accumulator
        count = self.accumulated
        if grads is None and count == 0:
            raise ValueError(f"{call}: there are no gradients, expected grads, or some accumulated")
        if grads is not None and count > 0:
            raise ValueError(
                f"{call}: grads are given while others are accumulated, expected one of both"
            )
        t = self.plan.steps + 1
        lrs = self._lrs_of_step(t)
        if grads is None and accumulator is not None:
            self.plan.step(accumulator.tree, lrs, scale, t, skip_nonfinite, accumulator.plan)
        else:
            assert grads is not None
            self.plan.step(grads, lrs, scale, t, skip_nonfinite)

    def accumulate(self, grads: ArrayTree, scale: float) -> None:
        """Add gradients to those of the next step."""
        scale = FINITE(f"{self.call}.accumulate", "scale", scale)
        with self.busy("accumulate"):
            options: dict[str, Any] = dict.fromkeys(self.declaration.options)
            options |= {"nonfinite": "propagate", "average_bias_correction": False, "seed": 0}
            options["clear_grads"] = self.settings["clear_grads"]
            self.with_accumulator().add(grads, scale, options)

    def with_accumulator(self) -> GradientAccumulator:
        """Return the accumulator, which is made when it is first needed."""
        if self.accumulator is None:
            self.accumulator = GradientAccumulator(self.call, self.plan)
        return self.accumulator

    @property
    def accumulated(self) -> int:
        """The number of gradients that wait for the next step."""
        return 0 if self.accumulator is None else self.accumulator.count

    def zero_grad(self) -> None:
        """Drop the gradients that were accumulated."""
        with self.busy("zero_grad"):
            if self.accumulator is not None:
                self.accumulator.clear()

    # Copies.

    def users_copies(self) -> Any:
        """Return the copies, in the structure of the parameters; None if there are none."""
        return None if self.copies is None else self.plan.unflatten(self.plan.users_copies)

    def check_copies(self, call: str) -> None:
        """Raise ValueError if a copy cannot be written."""
        if self.copies is not None:
            self.plan.check_copies(call)

    def write_copies(self) -> None:
        """Write the parameters to their copies, if there are any."""
        if self.copies is None:
            return
        with np.errstate(all="ignore"):
            for copy, array in zip(self.plan.copies, self.arrays, strict=True):
                copy[...] = array

    # Averages.

    def average(self) -> Any:
        """Return the averages, in the structure of the parameters; None if there are none."""
        averages = self.averages
        if averages is None:
            return None
        if not self.settings["average_bias_correction"]:
            return self.plan.unflatten([array[...] for array in averages])
        with self.busy("average"):
            in_float32, in_float64 = self.plan.average_weights
            if in_float64 == 0:
                return self.plan.unflatten(
                    [array.astype(computed_dtype(array)) for array in self.arrays]
                )
            with np.errstate(all="ignore"):  # an average that is too large is infinite
                return self.plan.unflatten(
                    [
                        np.asarray(a / (in_float32 if a.dtype == np.float32 else in_float64))
                        for a in averages
                    ]
                )

    # Learning rates.

    def uses(self, name: str) -> bool:
        """Return whether a group has no hyperparameter of that name of its own."""
        # The sum exhausts its generator: a KeyboardInterrupt is lost in one that is closed early.
        return sum(name not in own for own in self.groups) > 0

    def lr_now(self, group: int | None) -> float:
        """Return the learning rate that a group uses, or, for None, the optimizer."""
        lr = self._lr(group)
        rate: float | None = self._last_rates().get(id(lr)) if callable(lr) else lr
        return self._ask("lr_now", group, max(self.plan.steps, 1)) if rate is None else rate

    def _own_lr(self, group: int | None) -> Any:
        return None if group is None or self.group_lrs is None else self.group_lrs[group]

    def _lr(self, group: int | None) -> Any:
        """Return the rate or schedule of a group: its own, or else the optimizer's."""
        own = self._own_lr(group)
        return self.settings["lr"] if own is None else own

    def _ask(self, call: str, group: int | None, t: int) -> float:
        """Return the rate that the schedule of a group gives, checked."""
        name = "lr" if self._own_lr(group) is None else f"param_groups[{group}]['lr']"
        return NON_NEGATIVE(f"{self.call}.{call}", name, self._lr(group)(t))

    def _lrs_of_step(self, t: int) -> float | tuple[float, ...]:
        """Return the rate of step t, or one for each group if some have their own."""
        asked: dict[int, float] = {}

        def lr_of(group: int | None) -> float:
            lr = self._lr(group)
            if type(lr) is float:
                return lr
            if id(lr) not in asked:  # a schedule that groups share is asked once
                asked[id(lr)] = self._ask("step", group, t)
            return asked[id(lr)]

        own = self.group_lrs
        lrs = lr_of(None) if own is None else tuple(map(lr_of, range(len(own))))
        # Kept before the step is made, as a KeyboardInterrupt may follow it. So both are kept, the
        # rates of the last step and those of this one.
        if asked and self.plan.steps == t - 1:  # or another thread made this step
            self._rates = t - 1, self._last_rates(), asked
        return lrs

    def _last_rates(self) -> dict[int, float]:
        """Return the rates that schedules gave for the last step, by id."""
        made, last, asked = self._rates
        return asked if self.plan.steps > made else last

    # Groups.

    def params_of(self, group: int) -> list[Array]:
        """Return the parameters of a group."""
        arrays = self.plan.users_arrays
        return [arrays[index] for index in self.members[group]]

    def hyperparameters_of(self, group: int) -> dict[str, Any]:
        """Return the hyperparameters of a group: its own, and else the optimizer's."""
        values = self.settings | self.groups[group]
        return {name: values[name] for name in self.declaration.hyperparameters}

    def assign_in_group(self, group: int, name: str, value: Any) -> None:
        """Set a hyperparameter of one group."""
        own = self.checked_overrides(self.call, f"param_groups[{group}]", {name: value})
        with self.busy(f"param_groups[{group}][{name!r}]", changes=True):
            groups = list(self.groups)
            groups[group] = groups[group] | own
            settings, groups = promote_single_group(self.settings, groups)
            changes = own if len(groups) == 1 else {}
            self.reconfigure(settings, groups, changes, new_lrs="lr" in own)

    # Settings.

    def checked(self, call: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings, checked."""
        declared = self.declaration.settings
        return {name: declared[name].check(call, name, each) for name, each in settings.items()}

    def checked_overrides(self, call: str, group: str, own: Mapping[str, Any]) -> Overrides:
        """Return the own hyperparameters of a group, checked."""
        known = self.declaration.hyperparameters
        checked: Overrides = {}
        for name, value in own.items():
            if name not in known:
                raise ValueError(
                    f"{call}: {group} has {name!r}, "
                    f"expected hyperparameters among {', '.join(known)}"
                )
            try:
                checked |= self.checked(call, {name: value})
            except (TypeError, ValueError) as error:
                text = str(error).replace(f"{call}: {name}", f"{call}: {group}[{name!r}]", 1)
                raise type(error)(text) from None
        return checked

    def assign(self, name: str, value: Any) -> None:
        """Set a setting of the optimizer."""
        changes = self.checked(self.call, {name: value})
        if not self.uses(name):
            raise ValueError(
                f"{self.call}: {name} is set where each of the {len(self.groups)} groups has its "
                f"own, expected it set in the groups (param_groups[0][{name!r}] = ...)"
            )
        if name == "lr":  # a step reads it when it begins: there is no need to wait for one
            self._assign_lr(changes)
            return
        with self.busy(name, changes=True):
            self.reconfigure(self.settings | changes, self.groups, changes)

    def _assign_lr(self, changes: dict[str, Any]) -> None:
        lr, own = changes["lr"], self.group_lrs
        if not callable(lr):
            lrs = [lr if rate is None else 0.0 for rate in own or ()]
            self.plan.check_rates(tuple(lrs) if own else lr)
        self.settings = self.settings | changes
        self._rates = _NO_RATES

    def reconfigure(
        self,
        settings: dict[str, Any],
        groups: list[Overrides],
        changes: Mapping[str, Any],
        *,
        first: bool = False,
        new_lrs: bool = False,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Use checked settings, with the state that the form of the rule keeps for them.

        State that the form did not keep before starts at zero. `changes` are the settings that are
        new. `on_commit` runs in the same transaction.
        """
        new_states, averages = self.arrays_for(self.call, settings, groups)
        formulas: list[Any] = [formula(self.kind, settings | own) for own in groups]
        reset_averages = averages is not self.averages
        new_arrays = first or new_states is not self.states or reset_averages
        companions = (list(new_states.values()), averages, self.copies) if new_arrays else None
        lrs = [own.get("lr") for own in groups]
        group_lrs = None if lrs == [None] * len(groups) else lrs
        new_lrs = new_lrs or first or "lr" in changes
        new_settings = {**self.settings, **changes}
        options = {name: settings[name] for name in self.declaration.options}
        accumulator = None if self.accumulator is None else self.accumulator.plan

        def commit() -> None:
            # The core changes all or nothing, if memory runs out. The rest needs no memory.
            self.plan.configure(
                formulas, self.group_of, options, companions, reset_averages, accumulator
            )
            self.states, self.averages = new_states, averages
            self.groups, self.group_lrs = groups, group_lrs
            if "lr" not in changes:  # another thread may have set it
                new_settings["lr"] = self.settings["lr"]
            self.settings = new_settings
            if new_lrs:
                self._rates = _NO_RATES
            on_commit()

        whole(commit)

    def arrays_for(
        self, call: str, settings: Mapping[str, Any], groups: list[Overrides]
    ) -> tuple[States, list[Array] | None]:
        """Return the states and averages for settings: existing arrays, or new ones."""
        first, *rest = (states(self.kind, {**settings, **own}) for own in groups)
        for group, names in enumerate(rest, start=1):
            if names != first:
                raise ValueError(
                    f"{call}: param_groups[{group}] keeps {', '.join(names)} as state, expected "
                    f"{', '.join(first)} as in param_groups[0]"
                )
        return with_names(self.states, first, self.format, self.arrays), self._averages_for(
            settings
        )

    def _averages_for(self, settings: Mapping[str, Any]) -> list[Array] | None:
        if settings["average"] is None:
            return None
        from_zero = settings["average_bias_correction"]
        unchanged = from_zero == self.settings["average_bias_correction"]
        if self.averages is not None and unchanged:
            return self.averages
        return new_averages(self.arrays, from_zero=from_zero)


def internals_of(optimizer: Configurable) -> Internals:
    """Return the internals of an optimizer."""
    internals: Internals = holder_of(optimizer)
    return internals
