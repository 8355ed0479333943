"""The reference optimizer: a rule, and what it keeps between steps."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array, ArrayTree, GradTree
from schuss.reference._gradients import Gradient, GradientSums, RestingRows, gradient_of
from schuss.reference._kinds import KINDS, SECOND_MOMENTS
from schuss.reference._norm import update_norms
from schuss.reference._numbers import round_into, widen
from schuss.reference._parameter_averages import ParameterAverages
from schuss.reference._step import step
from schuss.reference._storage import (
    encoded_like,
    is_blocks,
    new_master,
    new_state,
    param_values,
    shown_state,
)
from schuss.reference._trees import leaves_like, named_leaves, unflatten

_OPTIONS: dict[str, Any] = {
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "average": None,
    "average_bias_correction": False,
    "seed": 0,
    "track_norms": False,
}
_STEP_OPTIONS = ("clip_norm", "clip_value", "nonfinite", "clear_grads", "seed")


class Outcome(NamedTuple):
    """What the last step did, as the attribute `last` of an optimizer has it."""

    grad_norm: float | None
    clipped: bool
    skipped: bool
    update_norm: float | None = None
    param_norm: float | None = None


class Optimizer:
    """An optimizer in NumPy, which gives the same bits as the one of `schuss`.

    Parameters
    ----------
    kind : str
        The rule: the name of a class of optimizers in small letters, such as "adamw".
    params : array, or list, tuple or dict of arrays, nested as you like
        The parameters, of any shape, in float32, float64, float16, bfloat16, complex64 or
        complex128; updated in place.
    lr : float or callable
        The learning rate, or a schedule: a function of the step, counted from 1.
    groups : callable, optional
        Hyperparameters of single parameters, also `maximize` and `bounds`: ``groups(name) -> dict
        or None``. Those of groups with ``"frozen": True`` rest.
    copies : dtype or str, optional
        "float16" or "bfloat16": keep copies of the parameters in this dtype.
    state_dtype : dtype or str, optional
        "bfloat16": keep the state in this dtype, with random rounding. "8bit": in the 8-bit code of
        `encode`, for parameters of at least 4,096 elements.
    master : {"float32", "float24"}, optional
        Keep the bits that parameters in bfloat16 lack of a value in float32 or 24 bits.
    round_params : {"nearest", "random"}
        How parameters in bfloat16 without a master are rounded.
    complex : {"components", "modulus"}
        "modulus": average the squared moduli of complex gradients, in real states.
    rows : {"exact", "lazy"}
        "lazy": rows of which a `schuss.Rows` has no gradient rest.
    **settings
        Other hyperparameters, and the options `maximize`, `bounds`, `clip_norm`, `clip_value`,
        `nonfinite`, `clear_grads`, `average`, `average_bias_correction`, `seed` and `track_norms`.
        See the optimizers of `schuss` and `schuss.optimizers.Options`.

    Raises
    ------
    TypeError
        If there is no such hyperparameter or option.
    ValueError
        If there is no such kind, or if the groups do not need the same states.

    References
    ----------
    See `schuss.optimizers`.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, v = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    >>> opt = schuss.Adam(w, lr=0.1, clip_norm=1.0)
    >>> ref = schuss.reference.Optimizer("adam", v, lr=0.1, clip_norm=1.0)
    >>> for grad in (np.array([3.0, 4.0]), np.array([-1.0, 2.0])):
    ...     opt.step(grad)
    ...     ref.step(grad)
    >>> w.tobytes() == v.tobytes()
    True
    >>> ref.last.grad_norm, ref.last.clipped, ref.last.skipped
    (2.23606797749979, True, False)
    """

    __slots__ = (
        "_averages",
        "_copies",
        "_group_of",
        "_is_lazy",
        "_kind",
        "_leaves",
        "_masters",
        "_rested",
        "_states",
        "_sums",
        "accumulated",
        "complex",
        "groups",
        "last",
        "params",
        "round_params",
        "settings",
        "skipped",
        "state_dtype",
        "steps",
    )

    def __init__(
        self,
        kind: str,
        params: ArrayTree,
        *,
        lr: float | Callable[[int], float],
        groups: Callable[[str], Mapping[str, Any] | None] | None = None,
        copies: npt.DTypeLike | None = None,
        state_dtype: npt.DTypeLike | None = None,
        master: str | None = None,
        round_params: str = "nearest",
        complex: str = "components",
        rows: str = "exact",
        **settings: Any,
    ) -> None:
        call = "reference.Optimizer"
        if kind not in KINDS:
            raise ValueError(f"{call}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        if rows not in ("exact", "lazy"):
            raise ValueError(f"{call}: rows is {rows!r}, expected 'exact' or 'lazy'")
        self._kind = KINDS[kind]
        self.settings = {"lr": lr, **self._kind.hyperparameters(), "maximize": False, **_OPTIONS}
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings)
                raise TypeError(
                    f"{call}: got an unexpected keyword argument {name!r}, expected one of {known}"
                )
        self.params: Any = params
        self._leaves = [leaf for _, leaf in named_leaves(params)]
        self.state_dtype = _state_dtype(state_dtype)
        self.complex, self.round_params, self._is_lazy = complex, round_params, rows == "lazy"
        self._states: dict[str, list[Array]] = {}
        self._averages: ParameterAverages | None = None
        self._masters = self._new_masters(master)
        self._copies: list[Array] | None = None
        if copies is not None:
            self._copies = [np.zeros(param.shape, _dtype(copies)) for param in self._leaves]
            self.write_copies()
        self._sums = GradientSums(self._leaves)
        self.steps = self.skipped = self.accumulated = 0
        self.last: Outcome | None = None
        overrides = [dict(groups(name) or {}) if groups else {} for name, _ in named_leaves(params)]
        self.groups = [own for i, own in enumerate(overrides) if own not in overrides[:i]] or [{}]
        self._group_of = [self.groups.index(own) for own in overrides]
        self._rested = [0] * len(self.groups)  # steps in which all parameters of a group rested
        if len(self.groups) == 1:
            settings, self.groups = settings | self.groups[0], [{}]
        self.set(**settings)

    @property
    def state(self) -> dict[str, Any]:
        """The state by name, each in the structure of `params`."""
        return {
            name: unflatten(self.params, list(map(shown_state, states, self._leaves)))
            for name, states in self._states.items()
        }

    @property
    def master(self) -> Any:
        """The values of the parameters in float32, in their structure; None without a master."""
        if self._masters is None:
            return None
        return unflatten(self.params, [values.copy() for values in self._values()])

    @property
    def copies(self) -> Any:
        """The low-precision copies, in the structure of `params`; None if there are none."""
        return None if self._copies is None else unflatten(self.params, self._copies)

    @property
    def average(self) -> Any:
        """The averages of the parameters, in the structure of `params`; None if there are none."""
        if self._averages is None:
            return None
        return unflatten(self.params, self._averages.corrected(self._values()))

    def set(self, *, group: int | None = None, **changes: Any) -> None:
        """Change hyperparameters and options from the next step on.

        States that the rule needs now begin as in a new optimizer; those that it does not need are
        dropped.

        Parameters
        ----------
        group : int, optional
            The index of the group whose hyperparameters change. By default, those of the optimizer
            change, which hold for all groups without their own.
        **changes
            The new values.

        Raises
        ------
        ValueError
            If the groups would not need the same states; nothing is changed then.
        """
        settings, groups = self.settings, [dict(own) for own in self.groups]
        if len(groups) == 1 and "frozen" in changes:  # what only groups have
            groups[0]["frozen"] = changes.pop("frozen")
        if group is None or len(groups) == 1:
            settings = settings | changes
        else:
            groups[group] |= changes
        names, *others = (self._kind.states_with(settings | own) for own in groups)
        if any(other != names for other in others):
            raise ValueError("reference.Optimizer: the groups need different states")
        self._states = {
            name: self._states.get(name) or self._new_state(name, settings, groups)
            for name in names
        }
        from_zero = settings["average_bias_correction"]
        if settings["average"] is None:
            self._averages = None
        elif self._averages is None or from_zero != self._averages.from_zero:
            self._averages = ParameterAverages(self._values(), from_zero=from_zero)
        self.settings, self.groups = settings, groups

    def accumulate(self, grads: GradTree, *, scale: float = 1.0) -> None:
        """Add gradients to the sum that the next step without gradients will use.

        Parameters
        ----------
        grads : array, or list, tuple or dict of arrays
            The gradients, in the structure of `params`; None for those that do not exist.
        scale : float
            The gradients are multiplied by this before they are added.

        Raises
        ------
        ValueError
            If a gradient does not have its parameter's shape.
        """
        for i, grad in enumerate(self._grads_of(grads)):
            if grad is None:
                continue
            self._sums.add(i, grad, scale)
            if self.settings["clear_grads"]:
                grad.clear()
        self.accumulated += 1

    def zero_grad(self) -> None:
        """Drop the accumulated gradients."""
        self.accumulated = 0
        self._sums.drop()

    def step(self, grads: GradTree = None, *, scale: float = 1.0) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        grads : array, or list, tuple or dict of arrays, optional
            The gradients, in the structure of `params`; by default, the accumulated ones. A
            parameter whose gradient is None rests.
        scale : float
            The gradients are multiplied by this before anything else.

        Raises
        ------
        ValueError
            If there are accumulated gradients and others, or neither.
        FloatingPointError
            If a gradient has a NaN or an infinity, and `nonfinite` is "raise".
        """
        if (grads is None) != (self.accumulated > 0):
            raise ValueError("reference.Optimizer.step: expected grads, or some accumulated")
        leaves = self._sum() if grads is None else self._grads_of(grads)
        resting = self._resting_rows(leaves)
        settings, t = self.settings, self.steps + 1
        rules = [
            self._kind.rule_of(settings | own, t, t - rested)
            for own, rested in zip(self.groups, self._rested, strict=True)
        ]
        averages = self._averages
        beta = 0.0 if averages is None else averages.beta(settings["average"])
        before = [each.copy() for each in self._values()] if settings["track_norms"] else None
        norm, clipped, skipped = step(
            [rules[group] for group in self._group_of],
            self._leaves,
            [None if grad is None else grad.values for grad in leaves],
            list(zip(*self._states.values(), strict=True)) or [()] * len(leaves),
            step=t,
            scale=scale,
            averages=None if averages is None else averages.arrays,
            beta=beta,
            copies=self._copies,
            masters=self._masters,
            round_params=self.round_params,
            **{name: settings[name] for name in _STEP_OPTIONS},
        )
        resting.restore()
        if settings["clear_grads"]:
            for grad in leaves:
                if grad is not None:
                    grad.clear()
        self.zero_grad()
        needs_norm = settings["clip_norm"] is not None or settings["nonfinite"] != "propagate"
        moved = [
            None if skipped or grad is None else values
            for values, grad in zip(self._values(), leaves, strict=True)
        ]
        norms = () if before is None else update_norms(before, moved)
        outcome = norm if needs_norm else None, clipped and not skipped, skipped
        self.last = Outcome(*outcome, *norms)
        if skipped:
            self.skipped += 1
            return
        self.steps = t
        moving = {g for g, param in zip(self._group_of, moved, strict=True) if param is not None}
        self._rested = [n + (group not in moving) for group, n in enumerate(self._rested)]
        if averages is not None:
            averages.count_step(beta)

    def load_state(self, state: Mapping[str, ArrayTree]) -> None:
        """Replace the state by these values.

        Parameters
        ----------
        state : dict of structures of arrays
            Values of each state, in the shapes and structure of `params`. State of 8 bits takes
            the nearest that it has, and exactly those that it had.

        Raises
        ------
        KeyError
            If a state is missing.
        """
        for name, states in self._states.items():
            for i, (_, values) in enumerate(named_leaves(state[name])):
                if is_blocks(states[i]):
                    states[i] = encoded_like(states[i], values, self._leaves[i])
                else:
                    states[i][...] = values

    def write_copies(self) -> None:
        """Write the parameters to the copies, after they were changed without a step."""
        for low, param in zip(self._copies or [], self._leaves, strict=False):  # none, or all
            round_into(low, widen(param))

    def flush(self) -> None:
        """Do nothing: all rows are up to date after each step."""

    def rows(self, indices: Any) -> Any:
        """Return rows of the parameters.

        Parameters
        ----------
        indices : array of integers, or list, tuple or dict of arrays
            The indices of rows, in the structure of `params`; None for parameters to leave out.

        Returns
        -------
        array, or list, tuple or dict of arrays
            Copies of the rows, in the structure of `params`.

        Raises
        ------
        IndexError
            If a parameter has no such row.
        """
        leaves = zip(self._leaves, leaves_like(self.params, indices), strict=True)
        rows: list[Any] = [None if i is None else param[np.asarray(i)] for param, i in leaves]
        return unflatten(self.params, rows)

    def _grads_of(self, grads: GradTree) -> list[Gradient | None]:
        """Return the gradient of each parameter; None for one that rests."""
        return [
            None if grad is None or self._is_frozen(i) else gradient_of(self._leaves[i], grad)
            for i, grad in enumerate(leaves_like(self.params, grads))
        ]

    def _sum(self) -> list[Gradient | None]:
        """Return the sum of the accumulated gradients of each parameter."""
        return [None if self._is_frozen(i) else self._sums[i] for i in range(len(self._leaves))]

    def _resting_rows(self, grads: list[Gradient | None]) -> RestingRows:
        """Return the rows that these gradients leave as they are."""
        resting = RestingRows()
        kept: list[Any] = [self._leaves, *self._states.values()]
        kept += [] if self._averages is None else [self._averages.arrays]
        kept += [arrays for arrays in (self._masters, self._copies) if arrays is not None]
        for i, grad in enumerate(grads):
            if self._is_lazy and grad is not None and grad.rows is not None:
                resting.keep([arrays[i] for arrays in kept], grad.rows, len(self._leaves[i]))
        return resting

    def _is_frozen(self, parameter: int) -> bool:
        return bool(self.groups[self._group_of[parameter]].get("frozen"))

    def _values(self) -> list[Array]:
        """Return the values of the parameters, in the dtype of the computation."""
        masters = self._masters or [None] * len(self._leaves)
        return list(map(param_values, self._leaves, masters))

    def _new_masters(self, master: str | None) -> list[Array | None] | None:
        if master is None:
            return None
        return [new_master(param, master) for param in self._leaves]

    def _new_state(
        self, name: str, settings: dict[str, Any], groups: list[dict[str, Any]]
    ) -> list[Array]:
        def initial(parameter: int) -> float:
            values = settings | groups[self._group_of[parameter]]
            return float(values[self._kind.initial[name]] if name in self._kind.initial else 0)

        nonnegative = name in SECOND_MOMENTS
        return [
            new_state(
                param,
                self.state_dtype,
                initial(i),
                nonnegative=nonnegative,
                modulus=nonnegative and self.complex == "modulus",
                by_row=self._kind.by_row,
            )
            for i, param in enumerate(self._leaves)
        ]


def _state_dtype(name: npt.DTypeLike | None) -> Any:
    return name if name in (None, "8bit") else _dtype(name)


def _dtype(name: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype of that name; bfloat16 is one of the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)
