"""Optimizers: parameters in any structure, state that they keep, one fused step for all of them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Generic, Self, TypeAlias, TypeVar, overload

import numpy as np

from schuss import _core, kernels
from schuss._arrays import Array, ArrayTree, zeros_along
from schuss._hyperparameters import Rate, count, flag, number, optional, rate

__all__ = ["SGD", "Adam", "AdamW", "Momentum", "Optimizer", "RMSprop"]

_T = TypeVar("_T")

# The steps made when a schedule was last asked, the rate of the last of them, and what it said.
_Rates: TypeAlias = tuple[int, float | None, float | None]
_NO_RATES: _Rates = (0, None, None)


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


class Optimizer:
    """What all optimizers share. Use one of `SGD`, `Momentum`, `RMSprop`, `Adam` and `AdamW`."""

    __slots__ = (
        "__weakref__",
        "_hyperparameters",
        "_leaves",
        "_params",
        "_plan",
        "_rates",
        "_rule",
    )

    lr = _Hyperparameter(rate)
    weight_decay = _Hyperparameter(number)
    _hyperparameters: dict[str, Any]

    def __init__(self, params: ArrayTree, **hyperparameters: Any) -> None:
        self._hold(params, hyperparameters)

    # What a class of optimizers says of itself.

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        """Return the rule's name in the rule book, in the form these hyperparameters ask for."""
        raise TypeError(f"{type(self).__name__} is no optimizer by itself, expected one like Adam")

    def _decay_kind(self) -> str:
        """Return how `weight_decay` enters, if it is not 0."""
        return "coupled"

    def _values(self, hyperparameters: dict[str, Any]) -> dict[str, float]:
        """Return the hyperparameters as the rule takes them."""
        return {name: value for name, value in hyperparameters.items() if name != "lr"}

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
            name: self._plan.unflatten([array[...] for array in leaves])
            for name, leaves in self._leaves.items()
        }

    @property
    def steps(self) -> int:
        """The number of steps made: t of the last one."""
        return self._plan.steps

    @property
    def lr_now(self) -> float:
        """The learning rate in use: that of the last step, or of the first to come before any.

        What is set or loaded as `lr` is in use at once: a number is itself, and a schedule that has
        made no step yet is asked for its value at `steps`.
        """
        lr: Any = self._hyperparameters["lr"]
        rate: float | None = self._last_rate() if callable(lr) else lr
        return self._lr_at(max(self.steps, 1), "lr_now") if rate is None else rate

    def step(self, grads: ArrayTree) -> None:
        """Update all parameters in place, in one pass over memory.

        Parameters
        ----------
        grads : array, or sequence or mapping of arrays
            The gradients in the structure of `params`, each with its parameter's shape and dtype,
            in any memory layout. They are read only.

        Raises
        ------
        TypeError
            If a gradient is no array, or its dtype is not its parameter's.
        ValueError
            If the structure or a shape is not that of `params`; if a gradient shares memory with a
            parameter or with state; if a parameter has become read-only, was resized, or was
            replaced in the dict or list that held it; if the schedule gives no valid rate.
        RuntimeError
            If a step of this optimizer is under way.

        Nothing is changed by a call that raises.
        """
        lr = self._hyperparameters["lr"]
        if type(lr) is float:
            self._plan.step(grads, lr)
        else:
            t = self.steps + 1
            self._plan.step(grads, self._rate_of_next(t), t)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the optimizer knows beside the parameters.

        Returns
        -------
        dict
            ``optimizer`` (the name of the class), ``steps``, ``hyperparameters`` (with a copy of a
            schedule) and ``state`` (a copy of each array).

        Raises
        ------
        RuntimeError
            If a step of this optimizer is under way, on another thread.
        """
        with self._turn("state_dict"):
            return {
                "optimizer": type(self).__name__,
                "steps": self.steps,
                "hyperparameters": _copies(self._hyperparameters),
                "state": {
                    name: self._plan.unflatten([array.copy(order="K") for array in leaves])
                    for name, leaves in self._leaves.items()
                },
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned: steps, hyperparameters, and the state's values.

        Raises
        ------
        TypeError, ValueError
            If it is not the state of an optimizer of this class for parameters of this structure,
            these shapes and dtypes; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.
        """
        call = f"{type(self).__name__}.load_state_dict"
        expected = ("optimizer", "steps", "hyperparameters", "state")
        _check_keys(call, "state_dict", state_dict, expected)
        if state_dict["optimizer"] != type(self).__name__:
            was = state_dict["optimizer"]
            raise ValueError(
                f"{call}: state_dict['optimizer'] is {was!r}, expected {type(self).__name__!r}"
            )
        steps = count(call, "state_dict['steps']", state_dict["steps"], least=0)
        hyperparameters = state_dict["hyperparameters"]
        _check_keys(
            call, "state_dict['hyperparameters']", hyperparameters, tuple(self._hyperparameters)
        )
        hyperparameters = self._checked(call, _copies(hyperparameters))
        rule = self._rule_for(hyperparameters)
        _check_keys(call, "state_dict['state']", state_dict["state"], tuple(_core.states(rule)))
        # Copies: what is given may be the state itself, in other places.
        values = {
            name: [
                array.copy()
                for array in self._plan.flatten(tree, call, f"state_dict['state'][{name!r}]")
            ]
            for name, tree in state_dict["state"].items()
        }
        with self._turn("load_state_dict", changes=True):
            self._apply(hyperparameters)
            self._hyperparameters = hyperparameters
            self._rates = _NO_RATES
            self._fill(values)
            self._plan.steps = steps

    def __repr__(self) -> str:
        """Return the hyperparameters and what they are applied to."""
        arrays = self._plan.arrays
        settings = [f"{name}={value!r}" for name, value in self._hyperparameters.items()]
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
            leaves = {
                name: [array.copy(order="K") for array in arrays]
                for name, arrays in self._leaves.items()
            }
            return self._state_with(leaves)

    def _state_with(self, leaves: dict[str, list[Array]]) -> dict[str, Any]:
        return {
            "params": self._params,
            "hyperparameters": self._hyperparameters,
            "leaves": leaves,
            "steps": self.steps,
            "attributes": getattr(self, "__dict__", {}),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the optimizer around the parameters of the pickle or the copy."""
        self._hold(state["params"], _copies(state["hyperparameters"]))
        self._fill(state["leaves"])
        self._plan.steps = state["steps"]
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    def __copy__(self) -> Self:
        """Return an optimizer of the same parameters, with state of its own."""
        other = type(self).__new__(type(self))
        with self._turn("__copy__"):
            other.__setstate__(self._state_with(self._leaves))
        return other

    # How it works.

    def _turn(self, call: str, *, changes: bool = False) -> _core.Turn:
        """Return a context within which no other call, or this one alone, changes the optimizer."""
        return self._plan.turn(f"{type(self).__name__}.{call}", changes)

    def _lr_at(self, t: int, call: str) -> float:
        return number(f"{type(self).__name__}.{call}", "lr", self._hyperparameters["lr"](t))

    # A schedule is asked once a step, and what it said is kept before the step is made: Ctrl-C may
    # come right after. So both are kept, the rate of the last step and that of the step asked for.

    def _rate_of_next(self, t: int) -> float:
        rate = self._lr_at(t, "step")
        if self.steps == t - 1:  # or another thread made this step, and this one is refused
            self._rates = t - 1, self._last_rate(), rate
        return rate

    def _last_rate(self) -> float | None:
        """Return the rate that the schedule gave for the last step, if it made that."""
        made, last, asked = self._rates
        return asked if self.steps > made else last

    def _hold(self, params: ArrayTree, hyperparameters: dict[str, Any]) -> None:
        call = type(self).__name__
        hyperparameters = self._checked(call, hyperparameters)
        self._rule_for(hyperparameters)
        self._plan = _core.Plan(call, params)
        self._params = params
        self._rates = _NO_RATES
        self._hyperparameters = {}
        self._rule = ""
        self._leaves: dict[str, list[Array]] = {}
        self._apply(hyperparameters)
        self._hyperparameters = hyperparameters

    def _fill(self, values: dict[str, list[Array]]) -> None:
        for name, leaves in self._leaves.items():
            for leaf, value in zip(leaves, values[name], strict=True):
                np.copyto(leaf, value)

    def _checked(self, call: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: getattr(type(self), name).check(call, name, value)
            for name, value in hyperparameters.items()
        }

    def _set_hyperparameters(self, **changes: Any) -> None:
        changes = self._checked(type(self).__name__, changes)
        if changes.keys() == {"lr"}:  # which a step asks for when it begins: no need to wait
            self._hyperparameters = self._hyperparameters | changes
            self._rates = _NO_RATES
            return
        with self._turn(", ".join(changes), changes=True):
            self._apply(self._hyperparameters | changes)
            self._hyperparameters = self._hyperparameters | changes  # lr may be another by now

    def _apply(self, hyperparameters: dict[str, Any]) -> None:
        """Put checked hyperparameters in force, with the state that their form of the rule keeps.

        State that the form did not keep before starts at zero.
        """
        rule = self._rule_for(hyperparameters)
        leaves = self._leaves
        if rule != self._rule:
            leaves = {
                name: self._leaves.get(name)
                or [zeros_along(param, place) for param in self._plan.arrays]
                for place, name in enumerate(_core.states(rule), start=1)
            }
        values = self._values(hyperparameters)
        decay = self._decay_kind() if values["weight_decay"] else "none"
        states = None if leaves is self._leaves else list(leaves.values())
        self._plan.configure(rule, decay, {"lr": 0.0, **values}, states)
        self._rule, self._leaves = rule, leaves


def _copies(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) for name, value in hyperparameters.items()}


def _copy(value: Any) -> Any:
    # A schedule that is fed the cost changes, or holds one that does: whoever resumes from a copy
    # must not find it changed. Any other function is the user's.
    if not callable(value):
        return value
    from schuss.schedules import Schedule  # not with the library, which does without

    return deepcopy(value) if isinstance(value, Schedule) else value


def _check_keys(call: str, name: str, mapping: object, expected: tuple[str, ...]) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{call}: {name} is a {type(mapping).__name__}, expected a mapping")
    if set(mapping) != set(expected):
        raise ValueError(f"{call}: {name} has the keys {list(mapping)}, expected {list(expected)}")


class SGD(Optimizer):
    """Gradient descent, ``p = p - lr*g``.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, float32 or float64, of any shape and memory layout; updated in place.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        hyperparameter out of range.

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

    def __init__(self, params: ArrayTree, lr: Rate = 0.01, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def _rule_for(self, hyperparameters: dict[str, Any]) -> str:
        return "sgd"


class Momentum(Optimizer):
    """Gradient descent with momentum, ``v = beta*v + (1-dampening)*g; p = p - lr*v``.

    Its state is ``velocity``.

    Parameters
    ----------
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, float32 or float64, of any shape and memory layout; updated in place.
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

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        hyperparameter out of range.

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
        params: ArrayTree,
        lr: Rate = 0.01,
        *,
        beta: float = 0.9,
        dampening: float | None = None,
        nesterov: bool = False,
        bias_correction: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
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
        The parameters, float32 or float64, of any shape and memory layout; updated in place.
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

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        hyperparameter out of range.

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
        params: ArrayTree,
        lr: Rate = 0.001,
        *,
        beta: float = 0.9,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        centered: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
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
        The parameters, float32 or float64, of any shape and memory layout; updated in place.
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

    Raises
    ------
    TypeError
        For what is no array or has another dtype or byte order; for a hyperparameter of a wrong
        type.
    ValueError
        For read-only arrays, arrays given twice or sharing memory, elements that overlap; for a
        hyperparameter out of range.

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
        params: ArrayTree,
        lr: Rate = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
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
        params: ArrayTree,
        lr: Rate = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        amsgrad: bool = False,
        bias_correction: bool = True,
        weight_decay: float = 0.01,
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
        )

    def _decay_kind(self) -> str:
        return "decoupled"
