"""The internals of an optimizer: its parameters, settings, groups and state, and how they change.

Other modules of the package use them; users see `Optimizer`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from schuss import _core
from schuss._arrays import Array, ArrayTree, GradTree
from schuss._groups import Groups, Overrides, members_of
from schuss._hyperparameters import FINITE, flag
from schuss._interrupts import defer_signals
from schuss._learning_rates import LearningRates
from schuss._masters import rounding
from schuss._pending_rows import PendingRows, row_mode
from schuss._rules import (
    formula,
    has_state_by_row,
    initial_values,
    second_moments,
    spec_of,
    states_of_groups,
)
from schuss._settings import (
    FROZEN,
    Configurable,
    checked_overrides,
    checked_settings,
    declaration_of,
    untyped_internals,
)
from schuss._state import (
    Pieces,
    States,
    averages_for,
    copies_for,
    is_dtype,
    new_sums,
    start_averages,
    state_format,
    with_names,
)


class Internals(LearningRates, PendingRows):
    """Everything that an optimizer knows; its core makes the steps.

    states: existing ones, which may lack parameters at the end. pieces: returns the pieces of the
    parameters that the core steps, given the core of all.
    """

    def __init__(
        self,
        kind: type[Configurable],
        params: ArrayTree,
        settings: Mapping[str, Any],
        *,
        grouping: Callable[[list[str]], Groups],
        state_dtype: Any,
        complex: str,
        master: Any,
        round_params: Any,
        rows: Any,
        copies: Any,
        groups_given: Any = None,
        states: States | None = None,
        pieces: Callable[[_core.Optimizer], Pieces] | None = None,
    ) -> None:
        self.kind, call = kind, kind.__name__
        self.settings = checked_settings(kind, call, settings)
        spec_of(kind)
        at_random = round_params == "random"
        self.row_mode = row_mode(call, rows, is_sharded=pieces is not None)
        # The core of the parameters as users know them. It checks and accumulates the gradients,
        # and has the copies.
        by_rows = self.row_mode if pieces is None else "none"
        self.whole = _core.Optimizer(call, params, round_at_random=at_random, rows=by_rows)
        if groups_given is not None:
            self.whole.hold_groups(groups_given)
        self.pieces = None if pieces is None else pieces(self.whole)
        # The core that makes the steps.
        self.core = self.whole
        if self.pieces is not None:
            structure = self.whole.tree.unflatten([*self.pieces.arrays])
            self.core = _core.Optimizer(
                call, structure, round_at_random=at_random, first=self.pieces.first
            )
        # The user's own objects: a copy of the optimizer sees what the user replaces in them.
        self.params, self.groups_given = params, groups_given
        self.copies_given = None if is_dtype(copies) else copies
        self.states: States = states or {}
        self.averages: list[Array] | None = None
        self.has_group_lrs = False
        # The learning rates of every step with these settings, if no schedule is among them.
        self.constant_lrs: tuple[Mapping[str, Any], float | tuple[float, ...]] = {}, 0.0
        groups, self.group_of = grouping(self.whole.tree.names)
        self.members = members_of(self.group_of, len(groups))
        self.settings, groups = self.promoted(self.settings, groups)
        self.format = state_format(call, state_dtype, complex, self.arrays)
        if self.format.complex == "modulus" and not second_moments(kind, self.settings):
            raise ValueError(
                f"{call}: complex is 'modulus', expected 'components': {call} has no second moment"
            )
        if has_state_by_row(kind) and self.format.dtype is not None:
            raise ValueError(
                f"{call}: state_dtype is {state_dtype!r}, expected None: the state is one number "
                "for each row"
            )
        dtypes = [array.dtype.name for array in self.arrays]
        self.rounding = rounding(call, master, round_params, dtypes, copies)
        self.copies = copies_for(call, copies, self.whole)
        self.masters = self.rounding.new_masters(self.core.arrays)
        self.reconfigure(self.settings, groups, {}, first=True)
        self.write_copies()

    @property
    def formats(self) -> dict[str, Any]:
        """The arguments for the number formats with which the optimizer was made."""
        return {
            "state_dtype": self.format.dtype,
            "complex": self.format.complex,
            "master": self.rounding.master,
            "round_params": self.rounding.round_params,
            "rows": self.row_mode,
        }

    @property
    def arrays(self) -> list[Array]:
        """The parameters."""
        return self.whole.arrays

    @property
    def arrays_behind(self) -> list[Array]:
        """The parameters of which rows may have missed steps."""
        return [self.arrays[index] for index in self.core.pending]

    @property
    def bounds(self) -> Sequence[tuple[int, int] | None]:
        """The elements of each parameter that are stepped; None for all."""
        return [None] * len(self.arrays) if self.pieces is None else self.pieces.bounds

    def remade(self, params: ArrayTree, **arguments: Any) -> Self:
        """Return new internals with these settings and formats for other parameters."""
        return type(self)(self.kind, params, self.settings, **self.formats, **arguments)

    # Steps.

    def step(self, grads: GradTree, scale: float, *, skip_nonfinite: bool = False) -> None:
        """Make a step with gradients, or with those that were accumulated."""
        scale = FINITE(f"{self.call}.step", "scale", scale)
        core = self.core
        if grads is None or core.accumulated:
            core.check_source(grads)
        # The settings come first: if another thread replaces them, the rates match no settings.
        settings = self.settings
        # The core refuses the step if another thread makes it while a schedule runs.
        t, version = core.steps + 1, core.lr_version
        lrs, are_constant = self.lrs_of_step(t)
        if are_constant:
            self.constant_lrs = settings, lrs
        core.step(grads, lrs, scale, t, skip_nonfinite, version)

    def accumulate(self, grads: GradTree, scale: float, *, overwrite_grads: bool) -> None:
        """Add gradients to those of the next step."""
        call = f"{self.call}.accumulate"
        scale = FINITE(call, "scale", scale)
        overwrite_grads = flag(call, "overwrite_grads", overwrite_grads)
        self.whole.accumulate(grads, scale, overwrite_grads, lambda: new_sums(self.arrays))
        self.note_rows(grads)

    def hold_sums(self) -> None:
        """Allocate arrays for the sums of accumulated gradients, if there are none."""
        if not self.whole.has_sums:
            self.whole.hold_sums(new_sums(self.arrays))

    def sums(self) -> list[Array]:
        """Return the sums of accumulated gradients; zeros for parameters without a sum."""
        return [
            new_sums([array])[0] if known is None else known
            for array, known in zip(self.arrays, self.whole.sums, strict=True)
        ]

    def average(self) -> Any:
        """Return the averages, in the structure of the parameters; None if there are none."""
        self.flush("average")
        return self.core.average()

    def values(self) -> Any:
        """Return the parameters with their masters, in their structure."""
        with self.up_to_date("master"):
            return self.core.tree.unflatten(self.core.values)

    # Copies.

    def users_copies(self) -> Any:
        """Return the copies, in the structure of the parameters; None if there are none."""
        return None if self.copies is None else self.whole.tree.unflatten(self.whole.users_copies)

    def check_copies(self, call: str) -> None:
        """Raise ValueError if a copy cannot be written."""
        if self.copies is not None:
            self.whole.check_copies(call)

    def write_copies(self, moved: Sequence[bool] | None = None) -> None:
        """Write the parameters to their copies, if there are any; moved: which have changed."""
        if self.copies is None:
            return
        with np.errstate(all="ignore"):
            for i, (copy, array) in enumerate(zip(self.whole.copies, self.arrays, strict=True)):
                if moved is None or moved[i]:
                    copy[...] = array

    def restart(self) -> None:
        """Let averages and copies begin with the parameters, whose values have changed."""
        if self.averages is not None and not self.settings["average_bias_correction"]:
            start_averages(self.averages, self.core)
        self.write_copies()

    # Groups.

    def params_of(self, group: int) -> list[Array]:
        """Return the parameters of a group."""
        arrays = self.whole.users_arrays
        return [arrays[index] for index in self.members[group]]

    def hyperparameters_of(self, group: int) -> dict[str, Any]:
        """Return the hyperparameters of a group: its own, and else the optimizer's."""
        values = {FROZEN: False} | self.settings | self.groups[group]
        return {name: values[name] for name in (*declaration_of(self.kind).hyperparameters, FROZEN)}

    def assign_in_group(self, group: int, name: str, value: Any) -> None:
        """Set a hyperparameter of one group."""
        own = checked_overrides(self.kind, self.call, f"param_groups[{group}]", {name: value})
        # A rate is a part of each step, of which rows that are behind know all.
        use = self.busy if own.keys() == {"lr"} else self.up_to_date
        with use(f"param_groups[{group}][{name!r}]", changes=True):
            groups = list(self.groups)
            groups[group] = groups[group] | own
            settings, groups = self.promoted(self.settings, groups)
            changes = {key: own[key] for key in own if key not in groups[group]}
            self.reconfigure(settings, groups, changes, new_lrs="lr" in own)

    def promoted(
        self, settings: dict[str, Any], groups: list[Overrides]
    ) -> tuple[dict[str, Any], list[Overrides]]:
        """Return both; the hyperparameters of the only group become those of the optimizer.

        In a list of groups, they stay the group's: groups that are added later do not have them.
        """
        if len(groups) > 1 or self.groups_given is not None:
            return settings, groups
        own = dict(groups[0])
        of_group = {FROZEN: own.pop(FROZEN)} if FROZEN in own else {}
        return settings | own, [of_group]

    # Settings.

    def setting(self, name: str) -> Any:
        """Return a setting of the optimizer; if there is one group, that of the group."""
        own = self.groups[0] if len(self.groups) == 1 else {}
        return own.get(name, self.settings[name])

    def assign(self, name: str, value: Any) -> None:
        """Set a setting of the optimizer; if there is one group, that of the group too."""
        changes = checked_settings(self.kind, self.call, {name: value})
        if not self.uses(name):
            raise ValueError(
                f"{self.call}: {name} is set where each of the {len(self.groups)} groups has its "
                f"own, expected it to be set in the groups (param_groups[0][{name!r}] = ...)"
            )
        groups = self.groups
        if len(groups) == 1 and name in groups[0]:
            groups = [{key: own for key, own in groups[0].items() if key != name}]
        elif name == "lr":  # a step reads it at its start: a change need not wait for its end
            self._assign_lr(changes)
            return
        with self.up_to_date(name, changes=True):
            self.reconfigure(self.settings | changes, groups, changes)

    def _assign_lr(self, changes: dict[str, Any]) -> None:
        lr = changes["lr"]
        if not callable(lr):
            self.core.check_lrs(tuple(0.0 if "lr" in own else lr for own in self.groups))
        # Before the assignment for a signal that interrupts in between, and after it for a step of
        # another thread in between: `lr_now` must not return a rate of the schedule before.
        self.core.forget_lrs()
        self.settings = self.settings | changes
        self.core.forget_lrs()

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

        State that the form did not keep before starts as in a new optimizer. `changes` are the
        settings that are new. `on_commit` runs in the same transaction.
        """
        new_states, averages = self.arrays_for(self.call, settings, groups)
        formulas = [formula(self.kind, settings | own) for own in groups]
        options = {name: settings[name] for name in declaration_of(self.kind).options}
        has_pieces = self.pieces is not None
        if has_pieces:
            of_whole = _core.StepOptions(clear_grads=options.pop("clear_grads"))
        step_options = _core.StepOptions(**options)
        arrays = None
        if first or new_states is not self.states or averages is not self.averages:
            copies = None if has_pieces else self.copies
            arrays = _core.AuxArrays(new_states, averages, copies, self.masters)
        copies_alone = _core.AuxArrays({}, copies=self.copies) if first else None
        group_lrs = [own["lr"] for own in groups if "lr" in own]
        frozen = [index for index, own in enumerate(groups) if own.get(FROZEN)]
        new_settings = {**self.settings, **changes}

        def commit() -> None:
            # The core changes all or nothing, if memory runs out. The rest needs no memory.
            self.core.configure(formulas, self.group_of, step_options, arrays, frozen)
            if has_pieces:
                rules = [_core.Formula("sgd")] * len(groups)
                self.whole.configure(rules, self.group_of, of_whole, copies_alone, frozen)
            self.states, self.averages = new_states, averages
            self.groups, self.has_group_lrs = groups, bool(group_lrs)
            if "lr" not in changes:  # another thread may have set it
                new_settings["lr"] = self.settings["lr"]
            self.settings = new_settings
            if first or new_lrs or "lr" in changes:
                self.core.forget_lrs()
            on_commit()

        defer_signals(commit)

    def arrays_for(
        self, call: str, settings: Mapping[str, Any], groups: list[Overrides]
    ) -> tuple[States, list[Array] | None]:
        """Return the states and averages for settings: existing arrays, or new ones."""
        names = states_of_groups(self.kind, call, settings, groups)
        initial = [initial_values(self.kind, {**settings, **own}) for own in groups]
        of_params = [initial[group] for group in self.group_of]
        moments = second_moments(self.kind, {**settings, **groups[0]})
        new_states = with_names(
            self.states,
            names,
            moments,
            self.format,
            self.core.arrays,
            of_params,
            self.pieces,
            by_row=has_state_by_row(self.kind),
        )
        averages = averages_for(self.averages, self.core, settings, before=self.settings)
        return new_states, averages


def internals_of(optimizer: Configurable) -> Internals:
    """Return the internals of an optimizer."""
    internals: Internals = untyped_internals(optimizer)
    return internals
