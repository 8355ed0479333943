"""The optimizers: subclasses of those of `torch.optim` with the step of schuss."""

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch

from schuss import _core, optimizers
from schuss._arrays import Array
from schuss._rules import formula, states
from schuss.torch._groups import OPTIONS, STATE_KEYS, from_torch, number

_COMMON_OPTIONS = ("maximize", "decoupled_weight_decay", "capturable", "differentiable")


class _GroupFormula(NamedTuple):
    """The update of the parameters of a group, except for the rate."""

    formula: _core.Formula
    keys: dict[str, str]
    """The key in torch.optim of each state."""
    scale: float
    is_dampened: bool


def _group_formula(
    call: str, rule: str, groups: list[dict[str, Any]], index: int, *, first: bool
) -> _GroupFormula:
    group = groups[index]
    kind, values = from_torch(f"{call}.step", f"param_groups[{index}]", rule, group)
    if first:  # torch.optim does not dampen the first gradient
        values |= {"beta": 0.0, "dampening": 0.0}
    own_class = getattr(optimizers, kind)
    return _GroupFormula(
        formula=formula(own_class, values | {"lr": 0.0}),  # each step gives the rate
        keys={name: STATE_KEYS[name] for name in states(own_class, values)},
        scale=-1.0 if group["maximize"] else 1.0,
        is_dampened=values.get("dampening", 0.0) != 0,
    )


class _Bucket:
    """Parameters that are stepped together: with the same states and number of steps."""

    def __init__(self, call: str, rule: str, first: bool, group_formula: _GroupFormula) -> None:
        self.call, self.rule, self.first = call, rule, first
        self.keys, self.scale = group_formula.keys, group_formula.scale
        self.groups: list[int] = []
        self.params: list[Any] = []
        self.indices: list[int] = []  # among all parameters that have gradients
        self.members: list[int] = []  # the index in `groups` of each parameter
        self.states: list[dict[str, Any]] = []
        self.committed = False  # whether the states are in that of the optimizer
        self.counts: Array | None = None
        self.settings: list[Any] = []

    def add(self, index: int, param: Any, group: int, state: dict[str, Any]) -> None:
        """Add a parameter."""
        if group not in self.groups:
            self.groups.append(group)
        self.params.append(param)
        self.indices.append(index)
        self.members.append(self.groups.index(group))
        self.states.append(state)

    def prepare(self) -> None:
        """Prepare for steps, after all parameters were added."""
        arrays = [_array(self.call, "parameter", param) for param in self.params]
        self.core = _core.Optimizer(self.call, arrays)
        self.tensors = {key: [state[key] for state in self.states] for key in self.keys.values()}
        states = {
            name: [tensor.detach().numpy() for tensor in self.tensors[key]]
            for name, key in self.keys.items()
        }
        self.aux_arrays: _core.AuxArrays | None = _core.AuxArrays(states)
        if "step" in self.states[0]:
            # The counts are views of one array, so that one addition updates them all.
            steps = [torch.as_tensor(state["step"]) for state in self.states]
            is_wide = any(step.dtype == torch.float64 for step in steps)
            self.counts = np.array(steps, np.float64 if is_wide else np.float32)
            for state, step in zip(self.states, torch.from_numpy(self.counts), strict=True):
                state["step"] = step
            self.tensors["step"] = [state["step"] for state in self.states]
            self.core.steps = int(self.counts[0])
        self.pointers = self._pointers()

    def is_current(self, state: Any) -> bool:
        """Return whether states, their memory and counts are those of the last step."""
        pairs = zip(self.params, self.states, strict=True)
        return (
            all(state.get(param) is own for param, own in pairs if own)
            and (self.counts is None or bool((self.counts == self.core.steps).all()))
            and self._pointers() == self.pointers
            and all(
                own.get(key) is tensor
                for key, tensors in self.tensors.items()
                for own, tensor in zip(self.states, tensors, strict=True)
            )
        )

    def sync_groups(self, groups: list[dict[str, Any]]) -> bool:
        """Use the hyperparameters of the groups; return False if these need other states."""
        settings = [_settings(self.rule, groups[index]) for index in self.groups]
        if settings == self.settings:
            return True
        for index in self.groups:
            _check_options(self.call, groups[index])
        formulas = [
            _group_formula(self.call, self.rule, groups, index, first=self.first)
            for index in self.groups
        ]
        if any((each.keys, each.scale) != (self.keys, self.scale) for each in formulas):
            return False
        core_formulas, options = [each.formula for each in formulas], _core.StepOptions()
        self.core.configure(core_formulas, self.members, options, self.aux_arrays)
        self.settings, self.aux_arrays = settings, None
        return True

    def step(self, grads: list[Array], groups: list[dict[str, Any]], state: Any) -> None:
        """Make a step with the gradients of this bucket, among those of all buckets."""
        name = f"{self.call}.step"
        rates = tuple(
            number(name, f"param_groups[{index}]['lr']", groups[index]["lr"])
            for index in self.groups
        )
        own = grads if len(self.indices) == len(grads) else [grads[i] for i in self.indices]
        before = self.core.steps
        try:
            self.core.step(own, rates[0] if len(rates) == 1 else rates, self.scale)
        finally:  # Ctrl-C is raised after the step
            if self.core.steps != before:
                if self.counts is not None:
                    self.counts.fill(self.core.steps)
                if not self.committed:
                    self._commit(state)

    def _commit(self, state: Any) -> None:
        """Put the new states into the existing dicts of the optimizer, after the first step."""
        for i, (param, own) in enumerate(zip(self.params, self.states, strict=True)):
            if own:
                state[param].update(own)
                self.states[i] = state[param]
        self.committed = True

    def _pointers(self) -> list[int]:
        return [tensor.data_ptr() for tensors in self.tensors.values() for tensor in tensors]


def _settings(rule: str, group: dict[str, Any]) -> list[Any]:
    """Return the options that the update of a group depends on, except for the rate."""
    settings: list[Any] = []
    for name in OPTIONS[rule]:
        value = group[name]
        settings += value if isinstance(value, list | tuple) else (value,)
    # Numbers, because lists and tensors can be changed in place.
    settings = [each.tolist() if isinstance(each, torch.Tensor) else each for each in settings]
    return settings + [group.get(name) for name in _COMMON_OPTIONS]


class _StepPlan:
    """The buckets of a step, for the parameters that have gradients."""

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
        buckets: dict[Any, _Bucket] = {}
        for i, (param, group) in enumerate(zip(params, members, strict=True)):
            own = dict(state.get(param, {}))
            group_formula = _group_formula(call, rule, groups, group, first=False)
            first = group_formula.is_dampened and own.get("momentum_buffer") is None
            for key in group_formula.keys.values():
                if own.get(key) is None:
                    own[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
            if rule != "SGD":
                own.setdefault("step", torch.tensor(0.0))
            steps = float(own["step"]) if "step" in own else 0.0
            kind = tuple(group_formula.keys), group_formula.scale, first, steps
            bucket = buckets.setdefault(kind, _Bucket(call, rule, first, group_formula))
            bucket.add(i, param, group, own)
        self.buckets = list(buckets.values())
        for bucket in self.buckets:
            bucket.prepare()

    def is_current(self, params: list[Any], members: list[int], state: Any) -> bool:
        """Return whether parameters, their memory and their states are those of the last step."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and members == self.members
            and _layout(params) == self.layout
            and all(bucket.is_current(state) for bucket in self.buckets)
        )

    def sync_groups(self, groups: list[dict[str, Any]]) -> bool:
        """Use the hyperparameters of the groups; return False if these need other buckets."""
        return all(bucket.sync_groups(groups) for bucket in self.buckets)


def _layout(params: list[Any]) -> list[Any]:
    """Return the memory of parameters, which changes if their `data` is replaced."""
    return [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in params]


def _check_options(call: str, group: Mapping[str, Any]) -> None:
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(f"{call}.step: {name} is True, expected False")


def _array(call: str, what: str, tensor: Any) -> Array:
    """Return an array that shares the tensor's memory, or raise TypeError or ValueError."""
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
    raise ValueError(f"{where} is {kind}, expected a dense tensor on the CPU")


class _Fused(torch.optim.Optimizer):  # type: ignore[misc]  # Any, as mypy has no torch
    """The step that the optimizers share."""

    _rule: str  # the class of torch.optim
    _plan: _StepPlan | None = None  # that of the last step

    # GradScaler passes the scale only to the fused optimizers of torch itself.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Recomputes the loss and the gradients, and returns the loss.

        Returns
        -------
        float or torch.Tensor or None
            The value that `closure` returned.

        Raises
        ------
        TypeError
            If a parameter is not float32 or float64, or a gradient has another dtype.
        ValueError
            If one is not on the CPU or is sparse, if `capturable` or `differentiable` is set, or if
            dampening is used with Nesterov's momentum.

        Nothing is changed then. The exception is a step that differs between parameters (`maximize`
        in one group only, or different numbers of steps): some may have been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        call, groups = type(self).__name__, self.param_groups
        params, arrays, members = [], [], []
        for index, group in enumerate(groups):
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    params.append(param)
                    arrays.append(_array(call, "gradient", grad))
                    members.append(index)
        if not params:
            return loss
        plan, is_new = self._plan, False
        if (
            plan is None
            or not plan.is_current(params, members, self.state)
            or not plan.sync_groups(groups)
        ):
            self._plan, is_new = None, True
            plan = _StepPlan(call, self._rule, params, members, groups, self.state)
            plan.sync_groups(groups)
        for bucket in plan.buckets:
            bucket.step(arrays, groups, self.state)
        # So that autograd refuses to use the old values of the parameters.
        torch.autograd.graph.increment_version(params)
        if is_new and not any(bucket.first for bucket in plan.buckets):
            self._plan = plan
        return loss


class SGD(_Fused, torch.optim.SGD):  # type: ignore[misc]
    """`torch.optim.SGD` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, in float32 or float64, on the CPU.
    lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused
        As in `torch.optim.SGD`; `foreach` and `fused` are ignored.

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
        Parameters of any shape and memory layout, in float32 or float64, on the CPU.
    lr, alpha, eps, weight_decay, momentum, centered, maximize
        As in `torch.optim.RMSprop`.
    capturable, foreach, differentiable
        As there; `foreach` is ignored, and the others are refused.

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
        Parameters of any shape and memory layout, in float32 or float64, on the CPU.
    lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
        As in `torch.optim.Adam`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` are ignored, and the others are refused.

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
        Parameters of any shape and memory layout, in float32 or float64, on the CPU.
    lr, betas, eps, weight_decay, amsgrad, maximize
        As in `torch.optim.AdamW`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` are ignored, and the others are refused.

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
