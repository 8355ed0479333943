"""PyTorch's optimizers with the steps of schuss, and state dicts from there and back.

`SGD`, `RMSprop`, `Adam` and `AdamW` are those of `torch.optim`, for parameters on the CPU, but for
how a step is made: all parameters in one call. Import it by name: ``import schuss.torch``.
"""

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import numpy as np

from schuss import _core, optimizers
from schuss._arrays import Array, computed_dtype
from schuss._hyperparameters import check_keys, real
from schuss._internals import internals_of
from schuss._rules import formula
from schuss._rules import states as rule_states

try:
    import torch
except ImportError:
    raise ImportError("schuss.torch: torch is not installed, expected it to be") from None

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "load_state_dict", "state_dict"]

# What torch.optim calls the states of the rules.
_KEYS = {
    "velocity": "momentum_buffer",
    "square_average": "square_avg",
    "mean": "grad_avg",
    "buffer": "momentum_buffer",
    "m": "exp_avg",
    "v": "exp_avg_sq",
    "v_max": "max_exp_avg_sq",
}

# Hyperparameters. The options of each class, beside the rate; a group may have more.

_OPTIONS = {
    "SGD": ("momentum", "dampening", "nesterov", "weight_decay"),
    "RMSprop": ("alpha", "eps", "centered", "momentum", "weight_decay"),
    "Adam": ("betas", "eps", "amsgrad", "weight_decay"),
}
_OPTIONS["AdamW"] = _OPTIONS["Adam"]
_OPTIONS_OF_ALL = ("maximize", "decoupled_weight_decay", "capturable", "differentiable")


def _translated(
    call: str, name: str, rule: str, group: Mapping[str, Any]
) -> tuple[type[optimizers.Optimizer], dict[str, Any]]:
    """Return the class of schuss, and its hyperparameters, for a group of a class of torch.optim.

    Raises TypeError if one is of a wrong type, KeyError if it is not there.
    """

    def told(key: str) -> float:
        return _number(call, f"{name}[{key!r}]", group[key])

    def says(key: str) -> bool:
        return bool(told(key))

    rest = {"lr": told("lr"), "weight_decay": told("weight_decay")}
    if rule == "RMSprop":
        own = {"beta": told("alpha"), "centered": says("centered"), "momentum": told("momentum")}
        return optimizers.RMSprop, {**rest, **own, "eps": told("eps"), "eps_root": 0.0}
    if rule in ("Adam", "AdamW"):
        decoupled = group.get("decoupled_weight_decay", rule == "AdamW")
        kind = optimizers.AdamW if decoupled else optimizers.Adam
        try:
            beta1, beta2 = group["betas"]
        except (TypeError, ValueError):
            raise TypeError(
                f"{call}: {name}['betas'] is {group['betas']!r}, expected two numbers"
            ) from None
        betas = (("beta1", beta1), ("beta2", beta2))
        own = {key: _number(call, f"{name}['betas']", beta) for key, beta in betas}
        own |= {"amsgrad": says("amsgrad"), "bias_correction": True}
        return kind, {**rest, **own, "eps": told("eps"), "eps_root": 0.0}
    momentum, dampening, nesterov = told("momentum"), told("dampening"), says("nesterov")
    if momentum == 0:
        return optimizers.SGD, rest
    if nesterov and dampening != 0:
        raise _nesterov_with(call, dampening)
    own = {"beta": momentum, "dampening": dampening, "nesterov": nesterov}
    return optimizers.Momentum, {**rest, **own, "bias_correction": False}


def _number(call: str, name: str, value: Any) -> float:
    """Return a number as a float: bools too, as torch.optim takes them."""
    if isinstance(value, bool):
        return float(value)
    return real(call, name, value)


def _nesterov_with(call: str, dampening: float) -> ValueError:
    return ValueError(
        f"{call}: dampening is {dampening!r} with nesterov, expected 0, as torch.optim has it"
    )


def _translated_back(call: str, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group of torch.optim for hyperparameters of a class of schuss."""
    for name, expected in (("eps_root", 0.0), ("bias_correction", kind in ("Adam", "AdamW"))):
        if values.get(name, expected) != expected:
            raise ValueError(
                f"{call}: {name} is {values[name]!r}, expected {expected!r}, as torch.optim has it"
            )
    same = {name: values[name] for name in ("lr", "weight_decay")}
    if kind in ("Adam", "AdamW"):
        betas = values["beta1"], values["beta2"]
        return {**same, "betas": betas, **{k: values[k] for k in ("eps", "amsgrad")}}
    if kind == "RMSprop":
        others = {k: values[k] for k in ("eps", "centered", "momentum")}
        return {**same, "alpha": values["beta"], **others}
    if kind == "SGD":
        return same
    dampening = values["beta"] if values["dampening"] is None else values["dampening"]
    if dampening != 0 and values["nesterov"]:
        raise _nesterov_with(call, dampening)
    if dampening != 0 and values["beta"] == 0:
        raise ValueError(
            f"{call}: dampening is {dampening!r} where beta is 0, expected 0: torch.optim ignores "
            "it there"
        )
    told = {"dampening": dampening, "nesterov": values["nesterov"]}
    return {**same, "momentum": values["beta"], **told}


_TORCHS = {
    "SGD": torch.optim.SGD,
    "Momentum": torch.optim.SGD,
    "RMSprop": torch.optim.RMSprop,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


# Optimizers.


class _Formula:
    """What the parameters of a group are updated by, beside the rate."""

    def __init__(
        self, call: str, rule: str, groups: list[dict[str, Any]], place: int, *, first: bool
    ) -> None:
        group = groups[place]
        kind, given = _translated(f"{call}.step", f"param_groups[{place}]", rule, group)
        if first:  # torch.optim begins with the gradient itself, whatever is to dampen it
            given |= {"beta": 0.0, "dampening": 0.0}
        self.told = formula(kind, given)
        self.keys = tuple(_KEYS[name] for name in _core.states(self.told.rule))
        self.scale = -1.0 if group["maximize"] else 1.0


class _Bunch:
    """Parameters that make each step together: with the same states, and as often stepped."""

    def __init__(self, call: str, rule: str, first: bool, formula: _Formula) -> None:
        self.call, self.rule, self.first = call, rule, first
        self.groups: list[int] = []
        self.keys, self.scale = formula.keys, formula.scale
        self.params: list[Any] = []
        self.places: list[int] = []  # among all that have gradients
        self.members: list[int] = []  # the place in `groups` of each
        self.states: list[dict[str, Any]] = []
        self.committed = False  # whether the state is in that of the optimizer
        self.counts: Array | None = None
        self.settings: list[Any] = []

    def make(self) -> None:
        """Get ready for steps, once all parameters are here."""
        arrays = [_array(self.call, "parameter", param) for param in self.params]
        self.plan = _core.Plan(self.call, arrays)
        self.kept = [[state[key] for state in self.states] for key in self.keys]
        companions = [[each.detach().numpy() for each in tensors] for tensors in self.kept]
        self.companions: Any = companions, None, None
        if "step" in self.states[0]:
            # All in one memory, so that one addition counts.
            steps = [torch.as_tensor(state["step"]) for state in self.states]
            wide = any(step.dtype == torch.float64 for step in steps)
            self.counts = np.array(steps, np.float64 if wide else np.float32)
            for state, count in zip(self.states, torch.from_numpy(self.counts), strict=True):
                state["step"] = count
            self.kept.append([state["step"] for state in self.states])
            self.plan.steps = int(self.counts[0])
        self.pointers = _pointers(self.kept)

    def is_as_before(self, state: Any) -> bool:
        """Whether nobody replaced a state or its memory, or counted otherwise."""
        held = zip(self.params, self.states, strict=True)
        if not all(state.get(param) is own for param, own in held if own):
            return False
        if self.counts is not None and (self.counts != self.plan.steps).any():
            return False
        if _pointers(self.kept) != self.pointers:
            return False
        keys = self.keys if self.counts is None else (*self.keys, "step")
        return all(
            state.get(key) is tensor
            for key, tensors in zip(keys, self.kept, strict=True)
            for state, tensor in zip(self.states, tensors, strict=True)
        )

    def follow(self, groups: list[dict[str, Any]]) -> bool:
        """Put the groups' hyperparameters in force; return whether that is possible."""
        settings = [_settings(self.rule, groups[place]) for place in self.groups]
        if settings != self.settings:
            for place in self.groups:
                _check_options(self.call, groups[place])
            formulas = [
                _Formula(self.call, self.rule, groups, place, first=self.first)
                for place in self.groups
            ]
            if any((each.keys, each.scale) != (self.keys, self.scale) for each in formulas):
                return False
            told: list[Any] = [each.told for each in formulas]
            self.plan.configure(told, self.members, {}, self.companions)
            self.settings, self.companions = settings, None
        return True

    def step(self, grads: list[Array], groups: list[dict[str, Any]], state: Any) -> None:
        name = f"{self.call}.step"
        rates = tuple(
            _number(name, f"param_groups[{place}]['lr']", groups[place]["lr"])
            for place in self.groups
        )
        own = grads if len(self.places) == len(grads) else [grads[place] for place in self.places]
        before = self.plan.steps
        try:
            self.plan.step(own, rates[0] if len(rates) == 1 else rates, self.scale)
        finally:  # Ctrl-C is raised when it is over
            if self.plan.steps != before:
                if self.counts is not None:
                    self.counts.fill(self.plan.steps)
                if not self.committed:
                    self._commit(state)

    def _commit(self, state: Any) -> None:
        """Let the state be what it is, once a step was made: in the dicts that are there."""
        for i, (param, own) in enumerate(zip(self.params, self.states, strict=True)):
            if own:
                held = state[param]
                held.update(own)
                self.states[i] = held
        self.committed = True


def _pointers(tensors: list[list[Any]]) -> list[list[int]]:
    return [[tensor.data_ptr() for tensor in some] for some in tensors]


def _settings(rule: str, group: dict[str, Any]) -> list[Any]:
    """Return what a group is updated by, beside the rate."""
    settings: list[Any] = []
    for name in _OPTIONS[rule]:
        value = group[name]
        settings += value if isinstance(value, list | tuple) else (value,)
    # Numbers, since lists and tensors can be changed where they are.
    settings = [each.tolist() if isinstance(each, torch.Tensor) else each for each in settings]
    return settings + [group.get(name) for name in _OPTIONS_OF_ALL]


class _Made:
    """All that a step needs, for parameters that have gradients."""

    def __init__(
        self,
        call: str,
        rule: str,
        params: list[Any],
        members: list[int],
        groups: list[dict[str, Any]],
        state: Any,
    ) -> None:
        self.params, self.members, self.layout = params, members, _layout(params)
        bunches: dict[Any, _Bunch] = {}
        for place, (param, member) in enumerate(zip(params, members, strict=True)):
            own = dict(state.get(param, {}))
            formula = _Formula(call, rule, groups, member, first=False)
            dampened = formula.told[2].get("dampening", 0.0) != 0
            first = dampened and own.get("momentum_buffer") is None
            for key in formula.keys:
                if own.get(key) is None:
                    own[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
            if rule != "SGD":
                own.setdefault("step", torch.tensor(0.0))
            count = float(own["step"]) if "step" in own else 0.0
            kind = formula.keys, formula.scale, first, count
            bunch = bunches.setdefault(kind, _Bunch(call, rule, first, formula))
            if member not in bunch.groups:
                bunch.groups.append(member)
            bunch.params.append(param)
            bunch.places.append(place)
            bunch.members.append(bunch.groups.index(member))
            bunch.states.append(own)
        self.bunches = list(bunches.values())
        for bunch in self.bunches:
            bunch.make()

    def fits(self, params: list[Any], members: list[int], state: Any) -> bool:
        """Whether these are the same parameters, in the same memory, with the same state."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and members == self.members
            and _layout(params) == self.layout
            and all(bunch.is_as_before(state) for bunch in self.bunches)
        )


def _layout(params: list[Any]) -> list[Any]:
    """Return where parameters lie, which changes when their `data` is replaced."""
    return [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in params]


def _check_options(call: str, group: Mapping[str, Any]) -> None:
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(f"{call}.step: {name} is True, expected False")


def _array(call: str, what: str, tensor: Any) -> Array:
    """Return the tensor's memory as an array, or raise TypeError or ValueError."""
    try:
        array: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    except (TypeError, RuntimeError):
        array = np.empty(0)
    if array.dtype.char in "fd" and array.shape == tensor.shape:
        return array
    where = f"{call}.step: a {what} of shape {tuple(tensor.shape)}"
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{where} has dtype {tensor.dtype}, expected float32 or float64")
    kind = f"{tensor.layout} on {tensor.device}"
    raise ValueError(f"{where} is {kind}, expected plain numbers in the memory of the cpu")


class _Fused(torch.optim.Optimizer):  # type: ignore[misc]  # Any, as mypy has no torch
    """The step of the optimizers here."""

    _rule: str  # that of torch.optim which it is
    _made: _Made | None = None  # for the parameters that had gradients last time

    # GradScaler leaves the scale to those that torch has fused itself.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients anew, and returns the loss.

        Returns
        -------
        float or torch.Tensor or None
            What `closure` returned.

        Raises
        ------
        TypeError
            If a parameter is not float32 or float64, or a gradient not of its dtype.
        ValueError
            If one is not on the CPU or is sparse, `capturable` or `differentiable` is set, or
            dampening with Nesterov's momentum.

        Nothing is changed then; but where parameters take different steps (`maximize` in one group
        alone, or parameters stepped differently often), some may have been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        call, groups = type(self).__name__, self.param_groups
        params, arrays, members = [], [], []
        for place, group in enumerate(groups):
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    params.append(param)
                    arrays.append(_array(call, "gradient", grad))
                    members.append(place)
        if not params:
            return loss
        made, is_new = self._made, False
        if (
            made is None
            or not made.fits(params, members, self.state)
            or not all(bunch.follow(groups) for bunch in made.bunches)
        ):
            self._made, is_new = None, True
            made = _Made(call, self._rule, params, members, groups, self.state)
            for bunch in made.bunches:
                bunch.follow(groups)
        for bunch in made.bunches:
            bunch.step(arrays, groups, self.state)
        # So that autograd refuses to go back through what a parameter was.
        torch.autograd.graph.increment_version(params)
        if is_new and not any(bunch.first for bunch in made.bunches):
            self._made = made
        return loss


class SGD(_Fused, torch.optim.SGD):  # type: ignore[misc]
    """`torch.optim.SGD` with the step of schuss.

    Parameters
    ----------
    params
        Of any shape and memory layout, in float32 or float64, on the CPU.
    lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused
        As in `torch.optim.SGD`; `foreach` and `fused` make no difference.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.SGD`.

    References
    ----------
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, as `torch.optim.SGD` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.SGD([w], lr=0.5)
    >>> (w * torch.tensor([1.0, 2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 0.0]
    """

    _rule = "SGD"


class RMSprop(_Fused, torch.optim.RMSprop):  # type: ignore[misc]
    """`torch.optim.RMSprop` with the step of schuss.

    Parameters
    ----------
    params
        Of any shape and memory layout, in float32 or float64, on the CPU.
    lr, alpha, eps, weight_decay, momentum, centered, maximize
        As in `torch.optim.RMSprop`.
    capturable, foreach, differentiable
        As there; `foreach` makes no difference, and the others are refused.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.RMSprop`.

    References
    ----------
    Tieleman & Hinton, "Lecture 6.5 - RMSProp", 2012, as `torch.optim.RMSprop` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.RMSprop([w], lr=0.1, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.round(decimals=4).tolist() == [0.0, 2.0]
    True
    """

    _rule = "RMSprop"


class Adam(_Fused, torch.optim.Adam):  # type: ignore[misc]
    """`torch.optim.Adam` with the step of schuss.

    Parameters
    ----------
    params
        Of any shape and memory layout, in float32 or float64, on the CPU.
    lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
        As in `torch.optim.Adam`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` make no difference, and the others are refused.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.Adam`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.Adam([w], lr=0.5, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 1.5]
    """

    _rule = "Adam"


class AdamW(_Fused, torch.optim.AdamW):  # type: ignore[misc]
    """`torch.optim.AdamW` with the step of schuss.

    Parameters
    ----------
    params
        Of any shape and memory layout, in float32 or float64, on the CPU.
    lr, betas, eps, weight_decay, amsgrad, maximize
        As in `torch.optim.AdamW`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` make no difference, and the others are refused.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.AdamW`.

    References
    ----------
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.AdamW([w], lr=0.5, eps=0.0, weight_decay=1.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.0, 1.0]
    """

    _rule = "AdamW"


# State dicts.


def state_dict(optimizer: optimizers.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer of schuss as `torch.optim` has it.

    Parameters
    ----------
    optimizer : Optimizer
        An `SGD`, `Momentum`, `RMSprop`, `Adam` or `AdamW` of schuss, with parameters of any shape
        and dtype. Of schedules, the rates in use are told (each group's ``lr_now``); what goes
        beyond the rule (`clip_norm`, averages, copies and so on) is not.

    Returns
    -------
    dict
        What ``load_state_dict`` of `torch.optim.SGD`, `RMSprop`, `Adam` or `AdamW` takes, of the
        same number of parameters in the same order and groups; its tensors are copies.

    Raises
    ------
    TypeError
        If it is no optimizer of schuss.
    ValueError
        If it does what `torch.optim` does not: `eps_root`, Adam without bias correction, momentum
        with it, dampening with Nesterov's or where beta is 0; or has accumulated gradients.

    References
    ----------
    PyTorch's documentation, `torch.optim.Optimizer.state_dict`.

    Examples
    --------
    >>> import numpy as np, torch, schuss, schuss.torch
    >>> opt = schuss.Adam(np.ones(2), lr=0.1)
    >>> opt.step(np.ones(2))
    >>> there = torch.optim.Adam([torch.ones(2, dtype=torch.float64)])
    >>> there.load_state_dict(schuss.torch.state_dict(opt))
    >>> there.param_groups[0]["lr"], there.state_dict()["state"][0]["step"].item()
    (0.1, 1.0)
    """
    call = "state_dict"
    kind = _kind_of(call, optimizer)
    if optimizer.accumulated:
        raise ValueError(
            f"{call}: {optimizer.accumulated} gradients are accumulated, expected none: "
            "torch.optim keeps none"
        )
    saved = optimizer.state_dict()
    steps = saved["steps"]
    states: dict[int, dict[str, Any]] = {}
    names = list(saved["state"])
    plan = internals_of(optimizer).plan
    leaves = [plan.flatten(saved["state"][name], call, name) for name in names]
    # Momentum may come from a state that has no count.
    has_state = steps > 0 or any(array.any() for arrays in leaves for array in arrays)
    if has_state:
        for place, arrays in enumerate(zip(*leaves, strict=True)):
            states[place] = {
                _KEYS[name]: torch.tensor(array.astype(computed_dtype(array), copy=False))
                for name, array in zip(names, arrays, strict=True)
            }
            if kind in ("RMSprop", "Adam", "AdamW"):
                # float32 is what torch.optim has, and counts no further than this.
                dtype = torch.float32 if steps <= 1 << 24 else torch.float64
                states[place]["step"] = torch.tensor(float(steps), dtype=dtype)
    defaults = _TORCHS[kind]([torch.zeros(1)], **({"momentum": 0.5} if kind == "Momentum" else {}))
    groups, first = [], 0
    for place, group in enumerate(saved["groups"]):
        values = saved["hyperparameters"] | group["hyperparameters"]
        rate = optimizer.param_groups[place].lr_now
        members = group["members"]
        if members != list(range(first, first + len(members))):
            raise ValueError(
                f"{call}: param_groups[{place}] has parameters between those of others, expected "
                "groups one after the other, as torch.optim has them"
            )
        first += len(members)
        told = _translated_back(call, kind, values | {"lr": rate})
        if told.get("dampening") and not has_state:
            raise ValueError(
                f"{call}: dampening is set before the first step, which torch.optim does not "
                "dampen, expected steps"
            )
        groups.append({**defaults.defaults, **told, "params": members})
    return {"state": states, "param_groups": groups}


def load_state_dict(optimizer: optimizers.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load a state of `torch.optim` into an optimizer of schuss.

    Parameters
    ----------
    optimizer : Optimizer
        An `SGD`, `Momentum`, `RMSprop`, `Adam` or `AdamW` of schuss: the class that the state is
        of, with as many parameters of the same shapes, in the same order and groups. What goes
        beyond the rule (`clip_norm`, averages and so on) stays as it is.
    state_dict : mapping
        What ``state_dict()`` of `torch.optim.SGD`, `RMSprop`, `Adam` or `AdamW` returned. That of
        SGD has no count of steps: `optimizer.steps` stays. Its tensors, on any device, are rounded
        to nearest to the dtype of the state that is there, as PyTorch does.

    Raises
    ------
    TypeError
        If an argument has a wrong type, or what is in it.
    ValueError
        If it is the state of another class, or of other parameters or groups, or lacks something;
        if it says what schuss does not: `maximize`, parameters stepped differently often, dampening
        before the first step or with Nesterov's momentum.

    Nothing is changed then.

    References
    ----------
    PyTorch's documentation, `torch.optim.Optimizer.load_state_dict`.

    Examples
    --------
    >>> import numpy as np, torch, schuss, schuss.torch
    >>> w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    >>> there = torch.optim.Adam([w], lr=0.1)
    >>> w.sum().backward()
    >>> there.step()
    >>> opt = schuss.Adam(w.detach().numpy())
    >>> schuss.torch.load_state_dict(opt, there.state_dict())
    >>> opt.lr, opt.steps
    (0.1, 1)
    """
    call = "load_state_dict"
    kind = _kind_of(call, optimizer)
    check_keys(call, "state_dict", state_dict, ("state", "param_groups"))
    states = state_dict["state"]
    _check_mapping(call, "state_dict['state']", states)
    translated, members, ids = _groups_in(call, state_dict["param_groups"], kind)
    internals, saved = internals_of(optimizer), optimizer.state_dict()
    arrays = internals.arrays
    if len(ids) != len(arrays):
        raise ValueError(f"{call}: state_dict has {len(ids)} parameters, expected {len(arrays)}")
    known = [group["members"] for group in saved["groups"]]
    if members != known:
        raise ValueError(
            f"{call}: state_dict['param_groups'] has parameters {members}, expected {known}"
        )
    names = rule_states(type(optimizer), {**internals.settings, **translated[0]})
    trees: dict[str, list[Array]] = {name: [] for name in names}
    counts = set()
    for group, of_group in zip(translated, members, strict=True):
        for place in of_group:
            name = f"state_dict['state'][{ids[place]!r}]"
            of_param = states.get(ids[place], {})
            _check_mapping(call, name, of_param)
            if kind in ("SGD", "Momentum"):
                counts.add(optimizer.steps)
            elif states:
                counts.add(_step_in(call, name, of_param))
            for each in names:
                without = kind == "Momentum" and group["beta"] == 0  # whatever is left of it
                array = None if without else _state_in(call, name, of_param, _KEYS[each])
                if array is None:
                    if states and kind != "Momentum":
                        raise ValueError(f"{call}: {name} has no {_KEYS[each]!r}, expected it")
                    if group.get("dampening"):
                        raise ValueError(
                            f"{call}: {name} has no {_KEYS[each]!r} where dampening is set, "
                            "expected it: torch.optim does not dampen the first step"
                        )
                    array = np.zeros(arrays[place].shape)
                dtype = optimizer.state_dtype or computed_dtype(arrays[place])
                trees[each].append(array.astype(dtype))
    if len(counts) > 1:
        raise ValueError(
            f"{call}: state_dict['state'] counts {sorted(counts)} steps, expected the same for all"
        )
    one = len(translated) == 1
    optimizer.load_state_dict(
        saved
        | {
            "steps": counts.pop() if counts else 0,
            "hyperparameters": saved["hyperparameters"] | (translated[0] if one else {}),
            "groups": [
                {"hyperparameters": {} if one else values, "members": of_group}
                for values, of_group in zip(translated, members, strict=True)
            ],
            "state": {name: internals.plan.unflatten(tree) for name, tree in trees.items()},
        }
    )


def _groups_in(
    call: str, groups: Any, kind: str
) -> tuple[list[dict[str, Any]], list[list[int]], list[Any]]:
    """Return each group's hyperparameters for a class of schuss, the places and ids of its own."""
    if not isinstance(groups, list) or not groups:
        raise ValueError(
            f"{call}: state_dict['param_groups'] is {groups!r}, expected a list of some"
        )
    rule = "SGD" if kind == "Momentum" else kind
    translated, members = [], []
    ids: list[Any] = []
    for place, group in enumerate(groups):
        name = f"state_dict['param_groups'][{place}]"
        _check_mapping(call, name, group)
        if not {"params", "lr", *_OPTIONS[rule]} <= group.keys():
            raise ValueError(
                f"{call}: {name} has the keys {list(group)}, expected those of torch.optim.{rule}"
            )
        of_kind, values = _translated(call, name, rule, group)
        own = group["params"]
        if not isinstance(own, list):
            raise TypeError(f"{call}: {name}['params'] is a {type(own).__name__}, expected a list")
        if of_kind is optimizers.SGD and kind == "Momentum":
            none = {"beta": 0.0, "dampening": 0.0, "nesterov": False, "bias_correction": False}
            of_kind, values = optimizers.Momentum, values | none
        if of_kind.__name__ != kind:
            raise ValueError(f"{call}: {name} is of {of_kind.__name__}, expected {kind}")
        if _number(call, f"{name}['maximize']", group.get("maximize", False)):
            raise ValueError(f"{call}: {name}['maximize'] is True, expected False")
        translated.append(values)
        members.append(list(range(len(ids), len(ids) + len(own))))
        ids += own
    try:
        once = len(set(ids)) == len(ids)
    except TypeError:  # which are no keys
        once = False
    if not once:
        raise ValueError(f"{call}: state_dict has parameters {ids}, expected keys, each once")
    return translated, members, ids


def _step_in(call: str, name: str, of_param: Mapping[str, Any]) -> int:
    if "step" not in of_param:
        raise ValueError(f"{call}: {name} has no 'step', expected all parameters or none to have")
    steps = _number(call, f"{name}['step']", of_param["step"])
    if not (steps >= 0 and steps.is_integer()):
        raise ValueError(f"{call}: {name}['step'] is {steps!r}, expected a whole number from 0")
    return int(steps)


def _state_in(call: str, name: str, of_param: Mapping[str, Any], key: str) -> Array | None:
    """Return a state in float64; None if there is none."""
    value = of_param.get(key)
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        was = getattr(value, "dtype", None) or type(value).__name__
        raise TypeError(f"{call}: {name}[{key!r}] is of {was}, expected a tensor of floating point")
    try:
        array: Array = value.double().numpy(force=True)
    except (TypeError, RuntimeError):
        raise ValueError(
            f"{call}: {name}[{key!r}] is {value.layout} on {value.device}, expected plain numbers"
        ) from None
    return array


def _check_mapping(call: str, name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a mapping")


def _kind_of(call: str, optimizer: Any) -> str:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, optimizers.Optimizer) or kind not in _TORCHS:
        raise TypeError(f"{call}: optimizer is a {kind}, expected one of {', '.join(_TORCHS)}")
    return kind
