"""Optimizers: parameters in any structure, state that they keep, one fused step for all of them."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import (
    Any,
    Generic,
    Literal,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from schuss import _core, kernels
from schuss._arrays import (
    Array,
    ArrayLike,
    ArrayTree,
    computed_dtype,
    dtype_among,
    zeros_along,
)
from schuss._groups import (
    GroupOf,
    Groups,
    Overrides,
    ParamGroup,
    Params,
    grouped,
    of_optimizer,
    places_of,
    ungrouped,
)
from schuss._hyperparameters import (
    Check,
    Rate,
    anything,
    check_keys,
    choice,
    count,
    flag,
    mapping,
    number,
    optional,
    rate,
    record,
    same,
    shown,
)
from schuss._interrupts import whole

__all__ = ["SGD", "Adam", "AdamW", "Last", "Momentum", "Optimizer", "RMSprop"]

_T = TypeVar("_T")

_UNSCALED = 1.0

_from_zero: Check[int] = partial(count, least=0)


class Options(TypedDict, total=False):
    """What every optimizer can do besides its rule: keyword arguments of each."""

    clip_norm: float | None
    clip_value: float | None
    nonfinite: Literal["propagate", "raise", "skip"]
    clear_grads: bool
    average: float | None
    average_bias_correction: bool
    seed: int
    state_dtype: npt.DTypeLike
    copies: ArrayTree | npt.DTypeLike
    groups: GroupOf | None


# Those that can be changed between steps, like hyperparameters, and those that can not.
_NO_OPTIONS: dict[str, Any] = {
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "average": None,
    "average_bias_correction": False,
    "seed": 0,
}
_NO_FIXED: dict[str, Any] = {"state_dtype": None, "copies": None, "groups": None}

# What a state dict has with values of their own, and what of it is a setting.
_WITH_VALUES = {"average": "weights", "accumulated": "count"}

# Of a rule: what else lies along the parameters comes after these.
_MOST_STATES = 3


@dataclass(frozen=True)
class Last:
    """What came of the last step."""

    grad_norm: float | None
    """The norm of all gradients together, scaled; None where no option needed to know it."""
    clipped: bool
    """Whether the norm was clipped."""
    skipped: bool
    """Whether the step was not made, since a gradient was not finite."""


class _Hyperparameter(Generic[_T]):
    """A hyperparameter: checked whenever it is set, and in force from the next step on."""

    def __init__(self, check: Callable[[str, str, Any], _T]) -> None:
        self.check = check

    def __set_name__(self, owner: type["Optimizer"], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: type["Optimizer"]) -> "_Hyperparameter[_T]": ...
    @overload
    def __get__(self, optimizer: "Optimizer", owner: type["Optimizer"]) -> _T: ...
    def __get__(
        self, optimizer: "Optimizer | None", owner: type["Optimizer"]
    ) -> "_Hyperparameter[_T] | _T":
        if optimizer is None:
            return self
        value: _T = optimizer._hyperparameters[self.name]
        return value

    def __set__(self, optimizer: "Optimizer", value: _T) -> None:
        optimizer._set_hyperparameters(**{self.name: value})


class _Average(_Hyperparameter[float | None]):
    """The weight of the past when it is set, the averages themselves when it is read."""

    def __get__(self, optimizer: "Optimizer | None", owner: type["Optimizer"]) -> Any:
        return self if optimizer is None else optimizer._average()


class Optimizer:
    """What all optimizers share. Use one of `SGD`, `Momentum`, `RMSprop`, `Adam` and `AdamW`.

    These options are keyword arguments of each. All but the last three are attributes too, which
    can be assigned between steps.

    Parameters
    ----------
    clip_norm : float, optional
        The largest norm of all gradients together: if it is larger, all are multiplied by
        ``clip_norm / (norm + 1e-6)``. At least 0.
    clip_value : float, optional
        The largest magnitude of an element of a gradient, after that; at least 0.
    nonfinite : {"propagate", "raise", "skip"}
        What becomes of a step with a gradient that has a NaN or an infinity: it is made; it raises
        FloatingPointError, and nothing is changed; it is not made, and counted in `skipped`. What
        counts are the gradients as they are given, before they are scaled.
    clear_grads : bool
        Set the gradients to zero in the same pass, also those of a step that is skipped.
    average : float, optional
        Keep an exponential average of the parameters, ``a = a + (1-average)*(p - a)`` after each
        step, in the same pass; in [0, 1). The attribute `average` gives the averages, in the
        structure of the parameters and in float32 or float64. They begin with what the first step
        makes of the parameters, as in PyTorch; assigning None drops them.
    average_bias_correction : bool
        Let the averages begin with zero, and divide by the sum of the weights so far when they are
        read. A change of this begins them anew.
    seed : int
        Of the rounding of state in bfloat16; at least 0.
    state_dtype : dtype or str, optional
        "bfloat16" keeps the state of parameters in float32, float16 or bfloat16 in half the memory.
        It is rounded at random, up or down with odds by the distance, so that small changes are not
        lost: by random bits that depend on `seed`, the step and the element's place alone. By
        default the state has the dtype that is computed in.
    copies : array, or sequence or mapping of arrays; or dtype or str; optional
        Arrays like the parameters, which are then float32, in float16 or bfloat16: each step writes
        the parameters to them too, rounded to nearest. Of a dtype, new arrays are made. They hold
        the parameters from the start, and are the attribute `copies`.
    groups : callable, optional
        Which parameters have hyperparameters of their own: ``groups(name) -> dict or None``. A name
        is the parameter's key in `params`, or all the keys on the way joined by "/", as in
        ``"layers/0/W"``. Or give `params` as PyTorch has it, a list of dicts with ``"params"`` and
        hyperparameters: gradients then come as a list too, an item for each group. All groups keep
        the same state: `amsgrad`, for one, is the same for all. They are the attribute
        `param_groups`.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value; nothing is changed then.
    ImportError
        If a dtype is bfloat16, and the package ml_dtypes is not installed.

    Notes
    -----
    Parameters may be float16 or bfloat16 too, and so may gradients of float32 parameters: they are
    computed with in float32, and parameters are rounded to nearest, ties to even.

    Hyperparameters, and the coefficients that a step derives from them, are rounded to the dtype
    that is computed in. Each must be 0 or a normal number there. A learning rate may be smaller;
    `scale` and the factor of `clip_norm` may be smaller or larger.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1, for clipping by the norm; the 1e-6 is PyTorch's.
    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992, for averages
    of the parameters.
    Gupta et al., "Deep learning with limited numerical precision", 2015, section 3, for rounding at
    random; Micikevicius et al., "Mixed precision training", 2018, section 3, for low-precision
    copies of float32 parameters and the scale of the loss.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.SGD(w, lr=0.1, clip_norm=1.0, average=0.5)
    >>> opt.step(np.array([3.0, 4.0]))
    >>> opt.last
    Last(grad_norm=5.0, clipped=True, skipped=False)
    >>> opt.average.round(6)
    array([0.94, 1.92])
    """

    __slots__ = (
        "__weakref__",
        "_averages",
        "_copies",
        "_copies_given",
        "_groups",
        "_groups_given",
        "_hyperparameters",
        "_leaves",
        "_members",
        "_own_rates",
        "_params",
        "_places",
        "_plan",
        "_state_dtype",
    )

    lr = _Hyperparameter(rate)
    weight_decay = _Hyperparameter(number)
    _hyperparameters: dict[str, Any]
    _groups: list[Overrides]
    clip_norm = _Hyperparameter(optional(number))
    clip_value = _Hyperparameter(optional(number))
    nonfinite = _Hyperparameter(partial(choice, among=("propagate", "raise", "skip")))
    clear_grads = _Hyperparameter(flag)
    average = _Average(optional(partial(number, kind="beta")))
    average_bias_correction = _Hyperparameter(flag)
    seed = _Hyperparameter(_from_zero)

    def __init__(
        self, params: Params, options: Options | None = None, **hyperparameters: Any
    ) -> None:
        call = type(self).__name__
        given: dict[str, Any] = {**(options or {})}
        known = (*hyperparameters, *_NO_OPTIONS, *_NO_FIXED)
        for name in given:
            if name not in known:
                raise TypeError(
                    f"{call}: there is no argument {name!r}, expected one of {', '.join(known)}"
                )
        fixed = {name: given.pop(name, default) for name, default in _NO_FIXED.items()}
        structure, items = ungrouped(params)
        self._hold(
            structure,
            hyperparameters | _NO_OPTIONS | given,
            grouping=partial(
                grouped,
                call=call,
                items=items,
                groups=fixed["groups"],
                check=self._checked_own,
            ),
            state_dtype=fixed["state_dtype"],
            copies=fixed["copies"],
            groups_given=None if items is None else params,
        )

    # What a class of optimizers says of itself.

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        """Return the rule's name in the rule book, in the form these hyperparameters ask for."""
        raise TypeError(f"{type(self).__name__} is no optimizer by itself, expected one like Adam")

    def _decay_kind(self) -> str:
        """Return how `weight_decay` enters, if it is not 0."""
        return "coupled"

    def _values(self, hyperparameters: dict[str, Any]) -> dict[str, float]:
        """Return the hyperparameters as the rule takes them."""
        return {
            name: value
            for name, value in hyperparameters.items()
            if name != "lr" and name not in _NO_OPTIONS
        }

    # What users see.

    @property
    def params(self) -> Any:
        """The parameters, in the structure in which they were given."""
        return self._params

    @property
    def state(self) -> dict[str, Any]:
        """The state by name, each in the structure of `params`: views of the arrays in use."""
        # Views, so that whoever resizes, freezes or reshapes them does it to nobody else.
        return {
            name: self._plan.tree.unflatten([array[...] for array in leaves])
            for name, leaves in self._leaves.items()
        }

    @property
    def steps(self) -> int:
        """The number of steps made: t of the last one."""
        return self._plan.steps

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The groups of parameters that have the same hyperparameters, as dicts.

        Each has its arrays as ``params``, and its hyperparameters: writing one changes it for the
        group alone. The attribute ``lr_now`` of a group is the rate that it uses. The optimizer's
        attributes are the hyperparameters of groups that have none of their own; where each group
        has its own, the optimizer's cannot be set.
        """
        # No list, to which a group could be appended in vain.
        return tuple(ParamGroup(self, place) for place in range(len(self._groups)))

    @property
    def copies(self) -> Any:
        """The low-precision copies, in the structure of `params`; None if there are none.

        They are written with the parameters: by this optimizer's steps, by `load`, and by `fit`
        where it restores the best epoch. After you wrote parameters otherwise (yourself, by
        `kernels`, by a step of another optimizer), call `write_copies`.
        """
        return None if self._copies is None else self._plan.tree.unflatten(self._plan.users_copies)

    @property
    def state_dtype(self) -> np.dtype[Any] | None:
        """The dtype of the state, where it is another than that which is computed in."""
        return self._state_dtype

    @property
    def accumulated(self) -> int:
        """How many gradients wait for the next step."""
        return self._plan.accumulated

    @property
    def lr_now(self) -> float:
        """The learning rate in use: that of the last step, or of the first to come before any.

        It is the rate of the groups that have no `lr` of their own, or, where each has its own,
        that of the first group. Each group has a `lr_now` too: ``opt.param_groups[1].lr_now``.

        What is set or loaded as `lr` is in use at once: a number is itself, and a schedule that has
        made no step yet is asked for its value at `steps`.
        """
        return self._rate_now(None if self._uses("lr") else 0)

    @property
    def last(self) -> Last | None:
        """What came of the last step; None before any."""
        outcome = self._plan.last
        return None if outcome is None else Last(*outcome)

    @property
    def skipped(self) -> int:
        """The number of steps that were not made, since a gradient was not finite.

        It is saved and loaded with the rest.
        """
        return self._plan.skipped

    def write_copies(self) -> None:
        """Write the parameters to `copies`, after they were changed without a step.

        Nothing is done where there are no copies.

        Raises
        ------
        ValueError
            If a copy has become read-only or was resized; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> w = np.zeros(2, np.float32)
        >>> opt = schuss.SGD(w, copies="float16")
        >>> w[:] = [1, 2]
        >>> opt.write_copies()
        >>> opt.copies
        array([1., 2.], dtype=float16)
        """
        with self._turn("write_copies", changes=True):
            self._check_copies(f"{type(self).__name__}.write_copies")
            self._write_copies()

    def accumulate(self, grads: ArrayTree, *, scale: float = 1.0) -> None:
        """Add gradients to those that the next step, without gradients, will take.

        Parameters
        ----------
        grads : array, or sequence or mapping of arrays
            As for `step`; added up in float32 or float64. They are read only, unless `clear_grads`
            is set.
        scale : float
            What they are multiplied by as they are read.

        Raises
        ------
        TypeError, ValueError
            As `step`; nothing is changed then.
        RuntimeError
            If a step from the sum, or another accumulation, is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> w = np.zeros(2)
        >>> opt = schuss.SGD(w, lr=1.0)
        >>> for grad in (np.array([1.0, 2.0]), np.array([3.0, 4.0])):
        ...     opt.accumulate(grad)
        >>> opt.step(scale=1 / opt.accumulated)
        >>> w
        array([-2., -3.])
        """
        scale = number(f"{type(self).__name__}.accumulate", "scale", scale)
        if not self._plan.has_sums:
            with self._turn("accumulate"):
                self._plan.hold_sums(_sums_for(self._plan))
        self._plan.accumulate(grads, scale)

    def zero_grad(self) -> None:
        """Forget the gradients that were accumulated."""
        with self._turn("zero_grad"):
            self._plan.clear_accumulated()

    def step(self, grads: ArrayTree | None = None, *, scale: float = _UNSCALED) -> None:
        """Update all parameters in place, in one pass over memory.

        A second pass, over the gradients alone, comes first where `clip_norm` or `nonfinite` needs
        to know them.

        Parameters
        ----------
        grads : array, or sequence or mapping of arrays, optional
            The gradients in the structure of `params`, each with its parameter's shape and dtype,
            in any memory layout; for parameters in float32, float16 and bfloat16, in any of these
            dtypes. They are read only, unless `clear_grads` is set. By default, the sum of what
            `accumulate` was given, which is then used up.
        scale : float
            What the gradients are multiplied by as they are read, before anything else: one over
            the scale of the loss, over the number of gradients that were added up, or over the
            number of workers.

        Raises
        ------
        TypeError
            If a gradient is no array, its dtype does not go with its parameter's, or the schedule
            gives no number.
        ValueError
            If there are accumulated gradients and others, or neither; if the structure or a shape
            is not that of `params`; if a gradient shares memory with a parameter or with state; if
            a parameter has become read-only, was resized, or was replaced in the structure that
            holds it, or another array was added there; if the schedule gives no valid rate.
        FloatingPointError
            If a gradient has a NaN or an infinity, and `nonfinite` is "raise".
        RuntimeError
            If a step of this optimizer is under way.

        Nothing is changed by a call that raises.
        """
        lr = self._hyperparameters["lr"]
        if type(lr) is not float or self._own_rates or grads is None:
            self._step(grads, scale)
            return
        # The way of most steps: those of few elements are as fast as this.
        if scale is not _UNSCALED:
            scale = number(f"{type(self).__name__}.step", "scale", scale)
        self._plan.step(grads, lr, scale)

    def _step(self, grads: ArrayTree | None, scale: float, *, skip_nonfinite: bool = False) -> None:
        scale = number(f"{type(self).__name__}.step", "scale", scale)
        plan = self._plan
        if (grads is None) != (plan.accumulated > 0):
            plan.check_source(grads)  # raises, before the schedules are called
        t, version = plan.steps + 1, plan.lr_version
        plan.step(grads, self._rates_of(t), scale, t, skip_nonfinite, version)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the optimizer knows beside the parameters.

        Returns
        -------
        dict
            ``optimizer`` (the name of the class), ``steps``, ``hyperparameters`` (with a copy of a
            schedule), ``groups`` (what each has of its own, and the places of its parameters),
            ``state`` (a copy of each array), ``average`` (what the averages weigh and a copy of
            each; or None), ``accumulated`` (how many gradients wait for the next step and a copy of
            their sum; or None) and ``skipped``. The `copies` are not in it.

        Raises
        ------
        RuntimeError
            If a step of this optimizer is under way, on another thread.
        """
        with self._turn("state_dict"):
            copied = {name: self._copied_tree(leaves) for name, leaves in self._arrays().items()}
            settings = self._settings()
            for name in _WITH_VALUES:
                if name in copied:
                    settings[name] |= {"values": copied.pop(name)}
            memo: _Memo = {}
            return settings | {
                "hyperparameters": _copies(self._hyperparameters, memo),
                "groups": [
                    group | {"hyperparameters": _copies(group["hyperparameters"], memo)}
                    for group in settings["groups"]
                ],
                "state": copied,
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned: counts, hyperparameters, and the arrays' values.

        The `copies` are rewritten from the parameters, which stay.

        Parameters
        ----------
        state_dict : mapping
            With all that `state_dict` has: arrays in the shapes of the parameters, and in the
            dtypes of the state.

        Raises
        ------
        TypeError, ValueError
            If it is not the state of an optimizer of this class for parameters of this structure,
            these shapes and dtypes; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.
        """
        call, name = f"{type(self).__name__}.load_state_dict", "state_dict"
        settings = self._settings_in(call, name, state_dict, with_values=True)
        arrays = self._arrays_for(call, settings)
        of_rule = tuple(key for key in arrays if key not in _WITH_VALUES)
        check_keys(call, f"{name}['state']", state_dict["state"], of_rule)
        # Copies: what is given may be the state itself, in other places.
        values = {}
        for key, like in arrays.items():
            if key in _WITH_VALUES:
                tree, said, known = state_dict[key]["values"], f"{name}[{key!r}]['values']", key
            else:
                tree, said = state_dict["state"][key], f"{name}['state'][{key!r}]"
                known = f"state[{key!r}]"
            values[key] = _copied(self._plan.tree.flatten_arrays(tree, call, said, like, known))
        self._take_over("load_state_dict", settings, partial(_fill, values=values))

    def __repr__(self) -> str:
        """Return the hyperparameters that are in use, and what they are applied to."""
        arrays = self._plan.arrays
        settings = [
            f"{name}={value!r}"
            for name, value in self._hyperparameters.items()
            if self._uses(name) and (name not in _NO_OPTIONS or value != _NO_OPTIONS[name])
        ]
        if self._state_dtype is not None:
            settings.append(f"state_dtype={self._state_dtype.name}")
        if len(self._groups) > 1:
            settings.append(f"{len(self._groups)} groups")
        dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
        return (
            f"<{type(self).__name__}({', '.join(settings)}): {len(arrays)} "
            f"array{'s' * (len(arrays) != 1)}, {sum(array.size for array in arrays):,} elements, "
            f"{dtypes}; {self.steps:,} step{'s' * (self.steps != 1)} made>"
        )

    # Pickling and copying keep the parameters by reference: what is pickled or deep-copied
    # together with them is bound to the same copies.

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs, attributes of a subclass included.

        Raises
        ------
        RuntimeError
            If a step of this optimizer is under way, on another thread.
        """
        with self._turn("__getstate__"):
            # Copies: a pickle is written later, after who knows how many steps.
            return self._state_with({k: _copied(arrays) for k, arrays in self._arrays().items()})

    def _state_with(self, arrays: dict[str, list[Array]]) -> dict[str, Any]:
        return {
            "params": self._params,
            "settings": self._settings(),
            "groups": (self._groups, self._members),
            "groups_given": self._groups_given,
            "state_dtype": self._state_dtype,
            "copies": self.copies if self._copies_given is None else self._copies_given,
            "arrays": arrays,
            "attributes": getattr(self, "__dict__", {}),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the optimizer around the parameters of the pickle or the copy."""
        groups, members = state["groups"]
        settings = state["settings"]
        self._hold(
            state["params"],
            dict(settings["hyperparameters"]),
            grouping=lambda _: ([dict(own) for own in groups], members),
            state_dtype=state["state_dtype"],
            copies=state["copies"],
            groups_given=state["groups_given"],
        )
        known = self._settings_in(type(self).__name__, "state", settings)
        self._take_over("__setstate__", known, partial(_fill, values=state["arrays"]))
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    def __copy__(self) -> Self:
        """Return an optimizer of the same parameters, with state of its own."""
        other = type(self).__new__(type(self))
        with self._turn("__copy__"):
            other.__setstate__(self._state_with(self._arrays()))
        return other

    # How it works.

    def _turn(self, call: str, *, changes: bool = False) -> _core.BusyGuard:
        """Return a context within which no other call, or this one alone, changes the optimizer."""
        return self._plan.busy(f"{type(self).__name__}.{call}", changes)

    def _uses(self, name: str) -> bool:
        """Return whether a group has no hyperparameter of that name of its own."""
        # Counted to the end: Ctrl-C is lost in a generator that is left before.
        return sum(name not in own for own in self._groups) > 0

    def _own_rate(self, place: int | None) -> Any:
        return None if place is None or self._own_rates is None else self._own_rates[place]

    def _lr_of(self, place: int | None) -> Any:
        """Return the rate or schedule of a group: its own, or else the optimizer's."""
        own = self._own_rate(place)
        return self._hyperparameters["lr"] if own is None else own

    def _ask(self, call: str, place: int | None, t: int) -> float:
        """Return what the schedule of a group says, checked."""
        name = "lr" if self._own_rate(place) is None else f"param_groups[{place}]['lr']"
        return number(f"{type(self).__name__}.{call}", name, self._lr_of(place)(t), kind="lr")

    def _rate_now(self, place: int | None) -> float:
        lr: Any = self._lr_of(place)
        if not callable(lr):
            rate: float = lr
            return rate
        rates = self._plan.last_lrs
        if rates is None:
            return self._ask("lr_now", place, max(self.steps, 1))
        own = self._own_rates or [None]
        return rates[own.index(None) if place is None else place]

    def _rates_of(self, t: int) -> float | tuple[float, ...]:
        """Return the rate of step t, or those of the groups where some have their own."""
        asked: dict[int, float] = {}

        def rate_of(place: int | None) -> float:
            lr = self._lr_of(place)
            if type(lr) is float:
                return lr
            if id(lr) not in asked:  # each schedule once, also where groups share it
                asked[id(lr)] = self._ask("step", place, t)
            return asked[id(lr)]

        own = self._own_rates
        return rate_of(None) if own is None else tuple(map(rate_of, range(len(own))))

    def _hold(
        self,
        params: ArrayTree,
        hyperparameters: dict[str, Any],
        *,
        grouping: Callable[[list[str]], Groups],
        state_dtype: Any,
        copies: Any,
        groups_given: Any = None,
    ) -> None:
        call = type(self).__name__
        hyperparameters = self._checked(call, hyperparameters)
        self._rule_for(hyperparameters)
        self._plan = _core.Optimizer(call, params)
        if groups_given is not None:
            self._plan.hold_groups(groups_given)
        # As the user holds them: a copy of the optimizer sees what is replaced there too.
        self._groups_given = groups_given
        self._copies_given = None if _is_dtype(copies) else copies
        self._params = params
        self._leaves: dict[str, list[Array]] = {}
        self._averages: list[Array] | None = None
        self._hyperparameters = hyperparameters
        groups, self._members = grouping(self._names())
        self._places = places_of(self._members, len(groups))
        hyperparameters, groups = of_optimizer(hyperparameters, groups)
        self._hyperparameters = hyperparameters
        self._state_dtype = self._state_dtype_for(call, state_dtype)
        self._copies = self._copies_for(call, copies)
        self._apply(hyperparameters, groups, {}, first=True)
        self._write_copies()
        if self._copies is not None:
            _WITH_COPIES[id(self)] = self

    def _check_copies(self, call: str) -> None:
        if self._copies is not None:
            self._plan.check_copies(call)

    def _write_copies(self) -> None:
        if self._copies is None:
            return
        with np.errstate(all="ignore"):
            for copy, array in zip(self._plan.copies, self._plan.arrays, strict=True):
                copy[...] = array

    def _state_dtype_for(self, call: str, state_dtype: Any) -> np.dtype[Any] | None:
        if state_dtype is None:
            return None
        dtype = dtype_among(call, "state_dtype", state_dtype, ("float32", "bfloat16"))
        for array in self._plan.arrays:
            if computed_dtype(array) != np.float32:
                raise ValueError(
                    f"{call}: state_dtype is {dtype.name!r} where a parameter is {array.dtype}, "
                    "expected parameters that are computed with in float32"
                )
        return None if dtype == np.float32 else dtype

    def _copies_for(self, call: str, copies: Any) -> list[ArrayLike] | None:
        if copies is None:
            return None
        for array in self._plan.arrays:
            if array.dtype != np.float32:
                raise ValueError(
                    f"{call}: copies are asked for where a parameter is {array.dtype}, expected "
                    "parameters in float32"
                )
        if _is_dtype(copies):
            dtype = dtype_among(call, "copies", copies, ("float16", "bfloat16"))
            return [zeros_along(array, 0, dtype) for array in self._plan.arrays]
        return self._plan.hold_copies(copies, call)

    def _names(self) -> list[str]:
        """Return the names of the parameters: "layers/0/W"."""
        return self._plan.tree.names

    def _params_of(self, place: int) -> list[Array]:
        arrays = self._plan.users_arrays
        return [arrays[i] for i in self._places[place]]

    def _hyperparameters_of(self, place: int) -> dict[str, Any]:
        values = self._hyperparameters | self._groups[place]
        return {name: value for name, value in values.items() if name not in _NO_OPTIONS}

    def _set_in_group(self, place: int, name: str, value: Any) -> None:
        call = type(self).__name__
        own = self._checked_own(call, f"param_groups[{place}]", {name: value})
        with self._turn(f"param_groups[{place}][{name!r}]", changes=True):
            groups = list(self._groups)
            groups[place] = groups[place] | own
            hyperparameters, groups = of_optimizer(self._hyperparameters, groups)
            changes = own if len(groups) == 1 else {}
            self._apply(hyperparameters, groups, changes, new_rates="lr" in own)

    def _checked_own(self, call: str, group: str, own: Mapping[str, Any]) -> Overrides:
        known = [name for name in self._hyperparameters if name not in _NO_OPTIONS]
        checked = {}
        for name, value in own.items():
            if name not in known:
                raise ValueError(
                    f"{call}: {group} has {name!r}, "
                    f"expected hyperparameters among {', '.join(known)}"
                )
            check = getattr(type(self), name).check
            try:
                checked[name] = check(call, name, value)
            except (TypeError, ValueError) as error:
                told = str(error).replace(f"{call}: {name}", f"{call}: {group}[{name!r}]", 1)
                raise type(error)(told) from None
        return checked

    def _hyperparameters_in(
        self, call: str, name: str, given: Any, *, memo: "_Memo"
    ) -> dict[str, Any]:
        """Return what settings have as hyperparameters, checked."""
        check_keys(call, name, given, tuple(self._hyperparameters))
        return self._checked(call, _copies(given, memo))

    def _groups_in(self, call: str, name: str, groups: Any, *, memo: "_Memo") -> list[Overrides]:
        """Return what settings have of the groups, checked."""
        if not isinstance(groups, list) or len(groups) != len(self._groups):
            raise ValueError(
                f"{call}: {name} is {shown(groups)}, expected a list of {len(self._groups)} groups"
            )
        result = []
        for place, group in enumerate(groups):
            known = record(hyperparameters=mapping, members=same(self._places[place]))(
                call, f"{name}[{place}]", group
            )
            own = _copies(known["hyperparameters"], memo)
            result.append(self._checked_own(call, f"{name}[{place}]", own))
        return result

    # What is saved: the settings, all that the optimizer knows beside arrays; and these by name.

    def _settings(self) -> dict[str, Any]:
        """Return what a state dict has beside arrays: not copied, but in a dict of its own."""
        waiting = self.accumulated
        return {
            "optimizer": type(self).__name__,
            "steps": self.steps,
            "skipped": self.skipped,
            "hyperparameters": self._hyperparameters,
            "groups": [
                {"hyperparameters": own, "members": list(places)}
                for own, places in zip(self._groups, self._places, strict=True)
            ],
            "average": None if self._averages is None else {"weights": self._plan.average_weights},
            "accumulated": {"count": waiting} if waiting else None,
        }

    def _arrays(self) -> dict[str, list[Array]]:
        """Return the arrays in use that go with the settings."""
        arrays = dict(self._leaves)
        if self._averages is not None:
            arrays["average"] = self._averages
        if self.accumulated:
            arrays["accumulated"] = self._plan.sums
        return arrays

    def _settings_in(
        self, call: str, name: str, given: Mapping[str, Any], *, with_values: bool = False
    ) -> "_Settings":
        """Return the settings of that name, checked, or raise TypeError or ValueError."""
        memo: _Memo = {}
        values = {"values": anything} if with_values else {}
        known = record(
            optimizer=same(type(self).__name__),
            steps=_from_zero,
            skipped=_from_zero,
            hyperparameters=partial(self._hyperparameters_in, memo=memo),
            groups=partial(self._groups_in, memo=memo),
            average=optional(record(weights=_weights, **values)),
            accumulated=optional(record(count=partial(count, least=1), **values)),
            **({"state": anything} if with_values else {}),
        )(call, name, given)
        hyperparameters, groups = of_optimizer(known["hyperparameters"], known["groups"])
        average, waiting = known["average"], known["accumulated"]
        if (average is None) != (hyperparameters["average"] is None):
            was, asked = ("None", "averages") if average is None else ("averages", "None")
            raise ValueError(
                f"{call}: {name}['average'] is {was}, expected {asked}, as its hyperparameters "
                "have it"
            )
        return _Settings(
            steps=known["steps"],
            skipped=known["skipped"],
            hyperparameters=hyperparameters,
            groups=groups,
            average_weights=(0.0, 0.0) if average is None else average["weights"],
            accumulated=0 if waiting is None else waiting["count"],
        )

    def _arrays_for(self, call: str, settings: "_Settings") -> dict[str, list[Array]]:
        """Return the arrays that go with settings: those in use, or zeros for what is new."""
        names = self._states_for(call, settings.hyperparameters, settings.groups)
        arrays = dict(self._leaves_for(names))
        averages = self._averages_for(settings.hyperparameters)
        if averages is not None:
            arrays["average"] = averages
        if settings.accumulated:
            arrays["accumulated"] = _sums_for(self._plan)
        return arrays

    def _take_over(
        self, call: str, settings: "_Settings", fill: Callable[[dict[str, list[Array]]], None]
    ) -> None:
        """Put checked settings in force, and have the arrays filled that go with them."""
        with self._turn(call, changes=True):
            self._check_copies(f"{type(self).__name__}.{call}")
            if settings.accumulated:
                self._plan.hold_sums(_sums_for(self._plan))

            def finish() -> None:
                self._plan.accumulated = settings.accumulated
                fill(self._arrays())
                self._plan.average_weights = settings.average_weights
                self._plan.skipped = settings.skipped
                self._plan.steps = settings.steps
                self._write_copies()

            new = settings.hyperparameters
            self._apply(new, settings.groups, new, then=finish)

    def _copied_tree(self, arrays: list[Array]) -> Any:
        return self._plan.tree.unflatten(_copied(arrays))

    def _average(self) -> Any:
        """Return the averages, in the structure of the parameters; None if there are none."""
        return self._plan.average()

    def _checked(self, call: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: getattr(type(self), name).check(call, name, value)
            for name, value in hyperparameters.items()
        }

    def _set_hyperparameters(self, **changes: Any) -> None:
        call = type(self).__name__
        changes = self._checked(call, changes)
        for name in changes:
            if not self._uses(name):
                raise ValueError(
                    f"{call}: {name} is set where each of the {len(self._groups)} groups has its "
                    f"own, expected it set in the groups (param_groups[0][{name!r}] = ...)"
                )
        if changes.keys() == {"lr"}:  # which a step asks for when it begins: no need to wait
            lr, own = changes["lr"], self._own_rates
            if not callable(lr):
                of_groups = [lr if rate is None else 0.0 for rate in own or ()]
                self._plan.check_lrs(tuple(of_groups) if own else lr)
            self._hyperparameters = self._hyperparameters | changes
            self._plan.forget_lrs()
            return
        with self._turn(", ".join(changes), changes=True):
            self._apply(self._hyperparameters | changes, self._groups, changes)

    def _apply(
        self,
        hyperparameters: dict[str, Any],
        groups: list[Overrides],
        changes: Mapping[str, Any],
        *,
        first: bool = False,
        new_rates: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Put checked hyperparameters in force, with the state that their form of the rule keeps.

        State that the form did not keep before starts at zero. Of the hyperparameters, `changes`
        are new; `then` belongs to it.
        """
        names = self._states_for(type(self).__name__, hyperparameters, groups)
        leaves, averages = self._leaves_for(names), self._averages_for(hyperparameters)
        formulas = []
        for own in groups:
            of_group = hyperparameters | own
            values = self._values(of_group)
            decay = self._decay_kind() if values["weight_decay"] else "none"
            lr = 0.0 if callable(of_group["lr"]) else of_group["lr"]
            weight_decay = values["weight_decay"]
            rule = self._rule_for(of_group)
            formulas.append(_core.Formula(rule, values, lr, decay, weight_decay))
        options = _core.StepOptions(**{name: hyperparameters[name] for name in _NO_OPTIONS})
        others = first or leaves is not self._leaves or averages is not self._averages
        arrays = _core.AuxArrays(leaves, averages, self._copies) if others else None
        own_rates = [own.get("lr") for own in groups]
        new_rates = new_rates or first or "lr" in changes

        own_rates_or_none = None if own_rates == [None] * len(groups) else own_rates
        all_hyperparameters = {**self._hyperparameters, **changes}

        def apply() -> None:
            # All or nothing, where memory runs out. What follows needs none.
            self._plan.configure(formulas, self._members, options, arrays)
            self._leaves, self._averages = leaves, averages
            self._groups, self._own_rates = groups, own_rates_or_none
            if "lr" not in changes:  # it may be another by now
                all_hyperparameters["lr"] = self._hyperparameters["lr"]
            self._hyperparameters = all_hyperparameters
            if new_rates:
                self._plan.forget_lrs()
            then()

        whole(apply)

    def _states_for(
        self, call: str, hyperparameters: dict[str, Any], groups: list[Overrides]
    ) -> list[str]:
        """Return the names of the states that the rule keeps, the same for all groups."""
        first, *rest = (_core.states(self._rule_for(hyperparameters | own)) for own in groups)
        for place, names in enumerate(rest, start=1):
            if names != first:
                raise ValueError(
                    f"{call}: param_groups[{place}] keeps {', '.join(names)} as state, expected "
                    f"{', '.join(first)} as in param_groups[0]"
                )
        return first

    def _leaves_for(self, names: list[str]) -> dict[str, list[Array]]:
        """Return the arrays of these states: those in use, and zeros for what is new."""
        if list(self._leaves) == names:
            return self._leaves
        return {
            name: self._leaves.get(name)
            or [
                zeros_along(param, place, self._state_dtype or computed_dtype(param))
                for param in self._plan.arrays
            ]
            for place, name in enumerate(names, start=1)
        }

    def _averages_for(self, hyperparameters: dict[str, Any]) -> list[Array] | None:
        """Return the arrays of the averages: those in use, or new ones."""
        if hyperparameters["average"] is None:
            return None
        from_zero = hyperparameters["average_bias_correction"]
        if (
            self._averages is not None
            and from_zero == self._hyperparameters["average_bias_correction"]
        ):
            return self._averages
        averages = []
        for param in self._plan.arrays:
            averages.append(zeros_along(param, _MOST_STATES + 1, computed_dtype(param)))
            if not from_zero:
                np.copyto(averages[-1], param)
        return averages


def _sums_for(optimizer: _core.Optimizer) -> list[Array]:
    return [zeros_along(array, 0, computed_dtype(array)) for array in optimizer.arrays]


@dataclass(frozen=True)
class _Settings:
    """All that an optimizer knows beside arrays, checked."""

    steps: int
    skipped: int
    hyperparameters: dict[str, Any]
    groups: list[Overrides]
    average_weights: tuple[float, float]
    accumulated: int


def _weights(call: str, name: str, weights: Any) -> tuple[float, float]:
    """Return what the averages weigh, in float32 and in float64, or raise."""
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise ValueError(f"{call}: {name} is {shown(weights)}, expected two numbers")
    in_float32, in_float64 = (number(call, name, w, kind="non_negative") for w in weights)
    if (in_float32 == 0) != (in_float64 == 0):
        raise ValueError(f"{call}: {name} is {weights!r}, expected both to be 0, or both above")
    return in_float32, in_float64


def _fill(arrays: dict[str, list[Array]], values: dict[str, list[Array]]) -> None:
    for name, targets in arrays.items():
        for target, value in zip(targets, values[name], strict=True):
            np.copyto(target, value)


def _is_dtype(copies: Any) -> bool:
    """Return whether `copies` asks for new arrays of a dtype."""
    return isinstance(copies, str | type | np.dtype)


def _copied(arrays: list[Array]) -> list[Array]:
    return [array.copy(order="K") for array in arrays]


_Memo: TypeAlias = dict[int, Any]
"""Copies made so far: who shares a schedule shares its copy."""


def _copies(hyperparameters: Mapping[str, Any], memo: _Memo) -> dict[str, Any]:
    return {name: _copy(value, memo) for name, value in hyperparameters.items()}


def _copy(value: Any, memo: _Memo) -> Any:
    # A schedule that is fed the cost changes, or holds one that does: whoever resumes from a copy
    # must not find it changed. Any other function is the user's.
    if not callable(value):
        return value
    from schuss.schedules import Schedule  # not with the library, which does without

    return deepcopy(value, memo) if isinstance(value, Schedule) else value


_WITH_COPIES: WeakValueDictionary[int, Optimizer] = WeakValueDictionary()
"""All optimizers that have copies, by their ids."""


def writer_of_copies(
    call: str, arrays: Iterable[Array], besides: Optimizer | None = None
) -> Callable[[], None]:
    """Return a function that rewrites the copies of parameters among these arrays.

    It can be done twice. Copies that cannot be written are refused now. The optimizer `besides`
    writes its own.
    """
    spans = _spans(arrays)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]

    def overlaps(array: Array) -> bool:
        start, end = byte_bounds(array)
        first = bisect_left(ends, start + 1)  # the first that ends behind the start
        return first < len(starts) and starts[first] < end

    found = []
    for optimizer in [known() for known in _WITH_COPIES.valuerefs()]:
        if optimizer is None or optimizer is besides:
            continue
        if any(map(overlaps, [array for array in optimizer._plan.arrays if array.size])):
            optimizer._check_copies(call)
            found.append(optimizer)

    def write() -> None:
        for optimizer in found:
            optimizer._write_copies()

    return write


def _spans(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    """Return where in memory the arrays lie: from lowest to highest, none touching another."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(byte_bounds(array) for array in arrays if array.size):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


class SGD(Optimizer):
    """Gradient descent, ``p = p - lr*g``.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in float32, float64, float16 or bfloat16;
        updated in place. Or groups of them: dicts with ``params`` and hyperparameters.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Those of every optimizer: `clip_norm`, `average`, `state_dtype` and others; see
        `schuss.optimizers.Optimizer`.

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        structure that returns new arrays at each access, as that of `numpy.load` does, or that
        holds itself; for a hyperparameter out of range.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, algorithm 8.1.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.SGD(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w
    array([0.95, 2.05])
    """

    __slots__ = ()

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, options, lr=lr, weight_decay=weight_decay)

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        return "sgd"


class Momentum(Optimizer):
    """Gradient descent with momentum, ``v = beta*v + (1-dampening)*g; p = p - lr*v``.

    Its state is ``velocity``.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in float32, float64, float16 or bfloat16;
        updated in place. Or groups of them: dicts with ``params`` and hyperparameters.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    beta : float
        The weight of the past, in [0, 1); the velocity averages over about ``1/(1-beta)`` steps.
    dampening : float, optional
        None means `beta`: the velocity is an exponentially weighted average of the gradients. 0 is
        the classical form of Polyak and PyTorch. In [0, 1).
    nesterov : bool
        Step along ``(1-dampening)*g + beta*v`` in place of ``v``.
    bias_correction : bool
        Divide the velocity by ``1 - beta**t`` in the step.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Those of every optimizer: `clip_norm`, `average`, `state_dtype` and others; see
        `schuss.optimizers.Optimizer`.

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        structure that returns new arrays at each access, as that of `numpy.load` does, or that
        holds itself; for a hyperparameter out of range.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, eqs. 1-4; Nesterov's form is written, as in PyTorch, for the point looked ahead
    to.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Momentum(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w, opt.state["velocity"]
    (array([0.995, 2.005]), array([ 0.05, -0.05]))
    """

    __slots__ = ()

    beta = _Hyperparameter(number)
    dampening = _Hyperparameter(optional(number))
    nesterov = _Hyperparameter(flag)
    bias_correction = _Hyperparameter(flag)

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.01,
        *,
        beta: float = 0.9,
        dampening: float | None = None,
        nesterov: bool = False,
        bias_correction: bool = False,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            options,
            lr=lr,
            beta=beta,
            dampening=dampening,
            nesterov=nesterov,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
        )

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        return "momentum_nesterov" if hyperparameters["nesterov"] else "momentum"

    def _values(self, hyperparameters: dict[str, Any]) -> dict[str, float]:
        values = super()._values(hyperparameters)
        if values["dampening"] is None:
            values["dampening"] = values["beta"]
        return values


class RMSprop(Optimizer):
    """RMSprop, ``s = beta*s + (1-beta)*g*g; p = p - lr*g/(sqrt(s + eps_root) + eps)``.

    Its state is ``square_average``, with ``mean`` if centered and ``buffer`` if there is momentum.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in float32, float64, float16 or bfloat16;
        updated in place. Or groups of them: dicts with ``params`` and hyperparameters.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    beta : float
        The weight of the past, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0. ``eps=0, eps_root=1e-8`` is the form
        ``g / sqrt(s + eps)``.
    centered : bool
        Take the square of the averaged gradient off ``s`` under the root.
    momentum : float
        Let the scaled gradients pass through a velocity with this weight of the past, in [0, 1).
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Those of every optimizer: `clip_norm`, `average`, `state_dtype` and others; see
        `schuss.optimizers.Optimizer`.

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        structure that returns new arrays at each access, as that of `numpy.load` does, or that
        holds itself; for a hyperparameter out of range.

    References
    ----------
    Tieleman & Hinton, "Lecture 6.5 - RMSProp", 2012, slide 29.
    Graves, "Generating sequences with recurrent neural networks", 2013, eqs. 38-41, for the
    centered form.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.RMSprop(w, lr=0.1, eps=0.0)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4), opt.state["square_average"]
    (array([0.6838, 2.3162]), array([0.025, 0.025]))
    """

    __slots__ = ()

    beta = _Hyperparameter(number)
    eps = _Hyperparameter(number)
    eps_root = _Hyperparameter(number)
    centered = _Hyperparameter(flag)
    momentum = _Hyperparameter(number)

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        beta: float = 0.9,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        centered: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            options,
            lr=lr,
            beta=beta,
            eps=eps,
            eps_root=eps_root,
            centered=centered,
            momentum=momentum,
            weight_decay=weight_decay,
        )

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        return kernels.rmsprop_rule(
            centered=hyperparameters["centered"], buffered=hyperparameters["momentum"] != 0
        )


class Adam(Optimizer):
    """Adam, ``p = p - lr*m_hat/(sqrt(v_hat + eps_root) + eps)``.

    ``m = beta1*m + (1-beta1)*g`` and ``v = beta2*v + (1-beta2)*g*g`` average the gradient and its
    square; ``m_hat = m/(1-beta1**t)`` and ``v_hat = v/(1-beta2**t)`` correct their start from zero.
    Its state is ``m`` and ``v``, with ``v_max`` for AMSGrad.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in float32, float64, float16 or bfloat16;
        updated in place. Or groups of them: dicts with ``params`` and hyperparameters.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    beta1, beta2 : float
        The weights of the past, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0.
    amsgrad : bool
        Use the largest ``v`` so far in place of ``v``.
    bias_correction : bool
        False leaves ``m_hat = m`` and ``v_hat = v``.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0. See `AdamW` for the
        decoupled form.
    **options
        Those of every optimizer: `clip_norm`, `average`, `state_dtype` and others; see
        `schuss.optimizers.Optimizer`.

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        structure that returns new arrays at each access, as that of `numpy.load` does, or that
        holds itself; for a hyperparameter out of range.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    Reddi, Kale & Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2 (AMSGrad; here,
    as in PyTorch, with bias correction).

    Examples
    --------
    >>> import numpy as np, schuss
    >>> params = {"W": np.ones((2, 2)), "b": np.zeros(2)}
    >>> opt = schuss.Adam(params, lr=0.1)
    >>> opt.step({"W": np.full((2, 2), 0.5), "b": np.array([1.0, -1.0])})
    >>> params["W"].round(6), params["b"].round(6)
    (array([[0.9, 0.9],
           [0.9, 0.9]]), array([-0.1,  0.1]))
    """

    __slots__ = ()

    beta1 = _Hyperparameter(number)
    beta2 = _Hyperparameter(number)
    eps = _Hyperparameter(number)
    eps_root = _Hyperparameter(number)
    amsgrad = _Hyperparameter(flag)
    bias_correction = _Hyperparameter(flag)

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            options,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_root=eps_root,
            amsgrad=amsgrad,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
        )

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        return "adam_amsgrad" if hyperparameters["amsgrad"] else "adam"


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p = p*(1 - lr*weight_decay)`` before the step of `Adam`.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_root, amsgrad, bias_correction
        As in `Adam`.
    weight_decay : float
        How fast the parameters shrink; at least 0.
    **options
        Those of every optimizer: `clip_norm`, `average`, `state_dtype` and others; see
        `schuss.optimizers.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        As `Adam`.

    References
    ----------
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; as in PyTorch,
    the learning rate multiplies the decay too.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(6)
    array([0.85, 2.  ])
    """

    __slots__ = ()

    def __init__(
        self,
        params: Params,
        lr: Rate = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        weight_decay: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            eps_root=eps_root,
            amsgrad=amsgrad,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **options,
        )

    def _decay_kind(self) -> str:
        return "decoupled"
