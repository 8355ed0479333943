"""The step of the optimizers: parameters in buckets, and what is cached between steps."""

import re
from collections.abc import Mapping
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch

from schuss import _core, optimizers
from schuss._arrays import Array
from schuss._hyperparameters import FINITE
from schuss._rules import formula, initial_values, states
from schuss.torch._extras import Extras
from schuss.torch._formats import BITS, array_of_state, memory_of
from schuss.torch._groups import RULES, from_torch, nonnegative_states, number
from schuss.torch._tensors import array_of, computed_dtype

# The keys of scalars and of the average in the state of a parameter.
AVERAGE, COUNT, PRODUCT = "average", "step", "mu_product"

_COMMON_OPTIONS = ("maximize", "decoupled_weight_decay", "capturable", "differentiable")


class Members(NamedTuple):
    """The parameters of a step, in order."""

    params: list[Any]
    groups: list[int]
    """The index of the group of each."""
    copies: list[Any] | None
    """The low-precision copy of each."""

    def layout(self) -> list[Any]:
        """Return the memory of all, which changes if their `data` is replaced."""
        tensors = [*self.params, *(self.copies or ())]
        return [(each.data_ptr(), each.dtype, each.shape, each.stride()) for each in tensors]


class _GroupFormula(NamedTuple):
    """The update of the parameters of a group, except for the rate."""

    formula: _core.Formula
    values: dict[str, Any]
    keys: dict[str, str]
    """The key in torch.optim of each state."""
    initial: dict[str, float]
    """The first value of states that do not begin with zeros, by key."""
    scale: float
    is_dampened: bool


def _group_formula(
    call: str, rule: str, groups: list[dict[str, Any]], index: int, *, first: bool
) -> _GroupFormula:
    group = groups[index]
    kind, values = from_torch(f"{call}.step", f"param_groups[{index}]", rule, group)
    if first:  # torch.optim does not dampen the first gradient
        values |= {"beta": 0.0, "dampening": 0.0}
    own_class, keys = getattr(optimizers, kind), RULES[rule].states
    return _GroupFormula(
        formula=formula(own_class, values | {"lr": 0.0}),  # each step gives the rate
        values=values,
        keys={name: keys[name] for name in states(own_class, values)},
        initial={keys[name]: own for name, own in initial_values(own_class, values).items()},
        scale=-1.0 if group["maximize"] else 1.0,
        is_dampened=values.get("dampening", 0.0) != 0,
    )


class _Bucket:
    """Parameters that are stepped together: with the same states and number of steps."""

    def __init__(
        self, call: str, rule: str, group_formula: _GroupFormula, *, first: bool, averaged: bool
    ) -> None:
        self.call, self.rule = call, rule
        self.first, self.averaged = first, averaged
        self.keys, self.scale = group_formula.keys, group_formula.scale
        self.groups: list[int] = []
        self.params: list[Any] = []
        self.copies: list[Any] = []
        self.indices: list[int] = []  # among all parameters that have gradients
        self.members: list[int] = []  # the index in `groups` of each parameter
        self.states: list[dict[str, Any]] = []
        self.committed = False  # whether the states are in that of the optimizer
        self.counts: Array | None = None
        self.products: Array | None = None
        self.values: list[dict[str, Any]] = []  # the hyperparameters of the groups
        self.settings: list[Any] = []

    def add(self, index: int, members: Members, state: dict[str, Any]) -> None:
        """Add the parameter that has this index among the members of the step."""
        group = members.groups[index]
        if group not in self.groups:
            self.groups.append(group)
        self.params.append(members.params[index])
        if members.copies is not None:
            self.copies.append(members.copies[index])
        self.indices.append(index)
        self.members.append(self.groups.index(group))
        self.states.append(state)

    def prepare(self, options: _core.StepOptions, extras: Extras, *, is_only_one: bool) -> None:
        """Prepare for steps, after all parameters were added."""
        self.is_only_one = is_only_one
        arrays = self._arrays("parameter", self.params)
        # The keys are the indices that messages name.
        parameters = arrays if is_only_one else dict(zip(self.indices, arrays, strict=True))
        at_random = extras.formats.round_params == "random"
        self.core = _core.Optimizer(self.call, parameters, round_at_random=at_random)
        self.options, keeps_average = options, extras.average is not None
        has_bits = any(BITS in state for state in self.states)
        keys = [*self.keys.values(), *[AVERAGE] * keeps_average, *[BITS] * has_bits]
        self.tensors = {key: [state.get(key) for state in self.states] for key in keys}
        self.aux_arrays: _core.AuxArrays | None = _core.AuxArrays(
            {name: self._state_arrays(key) for name, key in self.keys.items()},
            self._state_arrays(AVERAGE) if keeps_average else None,
            self._arrays("copy", self.copies) if self.copies else None,
            self._state_arrays(BITS) if has_bits else None,
        )
        if RULES[self.rule].counts_steps:
            self.counts = self._shared(COUNT)
            self.core.steps = int(self.counts[0])
        if RULES[self.rule].momentum is not None:
            self.products = self._shared(PRODUCT)
        tensors = (each for tensors in self.tensors.values() for each in tensors)
        self.memory = [memory_of(each) for each in tensors if each is not None]
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
        core_formulas = [each.formula for each in formulas]
        try:
            self.core.configure(core_formulas, self.members, self.options, self.aux_arrays)
        except ValueError as error:
            raise self._among_all_groups(error) from None
        if self.aux_arrays is not None and self.averaged:
            self.core.average_weights = 1.0, 1.0  # the averages have begun
        self.values = [each.values for each in formulas]
        self.settings, self.aux_arrays = settings, None
        return True

    def rates(self, groups: list[dict[str, Any]]) -> float | tuple[float, ...]:
        """Return the rates of the groups, checked; one number if there is one group."""
        name = f"{self.call}.step"
        rates = []
        for index in self.groups:
            argument, value = f"param_groups[{index}]['lr']", groups[index]["lr"]
            rates.append(FINITE(name, argument, number(name, argument, value)))
        checked = rates[0] if len(rates) == 1 else tuple(rates)
        try:
            self.core.check_lrs(checked)
        except ValueError as error:
            raise self._among_all_groups(error) from None
        return checked

    def step(
        self, grads: list[Array], rates: float | tuple[float, ...], state: Any, factor: float
    ) -> None:
        """Make a step with the gradients of this bucket, among those of all buckets."""
        own = grads if self.is_only_one else {i: grads[i] for i in self.indices}
        before = self.core.steps
        try:
            self.core.step(own, rates, self.scale * factor)
        finally:  # Ctrl-C is raised after the step
            if self.core.steps != before:
                if self.counts is not None:  # not in a function: its call could raise Ctrl-C first
                    self.counts.fill(self.core.steps)
                self._multiply_momenta()
                if not self.committed:
                    self._commit(state)

    def _among_all_groups(self, error: ValueError) -> ValueError:
        """Return an error of the core with the indices of groups among all groups."""
        message = re.sub(
            r"(?<=param_groups\[)\d+", lambda index: str(self.groups[int(index[0])]), str(error)
        )
        return ValueError(message.replace(f"{self.call}: ", f"{self.call}.step: ", 1))

    def _shared(self, key: str) -> Array:
        """Make a scalar of all states views of one array, so that one operation updates them."""
        scalars = [torch.as_tensor(state[key]) for state in self.states]
        is_wide = any(scalar.dtype == torch.float64 for scalar in scalars)
        shared = np.array(scalars, np.float64 if is_wide else np.float32)
        for state, scalar in zip(self.states, torch.from_numpy(shared), strict=True):
            state[key] = scalar
        self.tensors[key] = [state[key] for state in self.states]
        return shared

    def _multiply_momenta(self) -> None:
        """Multiply the products of momenta by those of the last step, if there are any."""
        momentum = RULES[self.rule].momentum
        if self.products is not None and momentum is not None:
            factors = [momentum(values, self.core.steps) for values in self.values]
            self.products *= np.take(factors, self.members).astype(self.products.dtype)

    def _commit(self, state: Any) -> None:
        """Put the new states into the existing dicts of the optimizer, after the first step."""
        for i, (param, own) in enumerate(zip(self.params, self.states, strict=True)):
            if own:
                state[param].update(own)
                self.states[i] = state[param]
        self.committed = True

    def _arrays(self, what: str, tensors: list[Any]) -> list[Array]:
        return [array_of(f"{self.call}.step", what, tensor) for tensor in tensors]

    def _state_arrays(self, key: str) -> list[Any]:
        call = f"{self.call}.step"
        return [None if each is None else array_of_state(call, each) for each in self.tensors[key]]

    def _pointers(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.memory]


def _settings(rule: str, group: dict[str, Any]) -> list[Any]:
    """Return the options that the update of a group depends on, except for the rate."""
    settings: list[Any] = []
    for name in RULES[rule].options:
        value = group[name]
        settings += value if isinstance(value, list | tuple) else (value,)
    # Numbers, because lists and tensors can be changed in place.
    settings = [each.tolist() if isinstance(each, torch.Tensor) else each for each in settings]
    return settings + [group.get(name) for name in _COMMON_OPTIONS]


class StepPlan:
    """The buckets of a step, for the parameters that have gradients."""

    def __init__(
        self,
        call: str,
        rule: str,
        members: Members,
        groups: list[dict[str, Any]],
        state: Any,
        extras: Extras,
    ) -> None:
        self.call, self.rule, self.extras = call, rule, extras
        self.members, self.layout = members, members.layout()
        keeps_average = extras.average is not None
        buckets: dict[Any, _Bucket] = {}
        for i, (param, group) in enumerate(zip(members.params, members.groups, strict=True)):
            own = dict(state.get(param, {}))
            group_formula = _group_formula(call, rule, groups, group, first=False)
            first = group_formula.is_dampened and own.get("momentum_buffer") is None
            averaged = keeps_average and AVERAGE in own
            self._add_states(own, param, group_formula)
            if RULES[rule].counts_steps:
                own.setdefault(COUNT, torch.tensor(0.0))
            if RULES[rule].momentum is not None:
                own.setdefault(PRODUCT, torch.tensor(1.0))
            steps = float(own[COUNT]) if COUNT in own else 0.0
            kind = tuple(group_formula.keys), group_formula.scale, first, steps, averaged
            if kind not in buckets:
                buckets[kind] = _Bucket(call, rule, group_formula, first=first, averaged=averaged)
            buckets[kind].add(i, members, own)
        self.buckets = list(buckets.values())
        # The norm is that of all gradients: a bucket that has only some of them cannot clip by it.
        is_only_one = len(self.buckets) == 1
        self.clips = extras.clip_norm is not None and not is_only_one
        options = _core.StepOptions(
            clip_norm=None if self.clips else extras.clip_norm, average=extras.average
        )
        for bucket in self.buckets:
            bucket.prepare(options, extras, is_only_one=is_only_one)

    def _add_states(self, own: dict[str, Any], param: Any, group_formula: _GroupFormula) -> None:
        """Add the states that a parameter lacks, and convert those of another format."""
        formats, nonnegative = self.extras.formats, nonnegative_states(self.rule)
        for key in group_formula.keys.values():
            state, is_nonnegative = own.get(key), key in nonnegative
            if state is None:
                first = group_formula.initial.get(key, 0.0)
                own[key] = formats.new_state(param, first, nonnegative=is_nonnegative)
            else:
                name = f"{self.call}.step: the state {key!r}"
                own[key] = formats.converted(name, state, param, nonnegative=is_nonnegative)
        name = f"{self.call}.step: the state {BITS!r}"
        bits = formats.missing_bits(name, own.pop(BITS, None), param)
        own |= {} if bits is None else {BITS: bits}
        if self.extras.average is not None:
            average = own.get(AVERAGE, param.detach())
            own[AVERAGE] = average.to(computed_dtype(param), copy=AVERAGE not in own)

    def is_current(self, members: Members, state: Any) -> bool:
        """Return whether parameters, their memory and their states are those of the last step."""
        return (
            len(members.params) == len(self.members.params)
            and all(map(is_, members.params, self.members.params))
            and members.groups == self.members.groups
            and members.layout() == self.layout
            and all(bucket.is_current(state) for bucket in self.buckets)
        )

    def sync_groups(self, groups: list[dict[str, Any]]) -> bool:
        """Use the hyperparameters of the groups; return False if these need other buckets."""
        return all(bucket.sync_groups(groups) for bucket in self.buckets)

    def step(self, grads: list[Any], arrays: list[Array], groups: list[Any], state: Any) -> None:
        """Step all buckets with gradients: as tensors, and as arrays of the same memory."""
        factor = _clip_factor(grads, self.extras.clip_norm) if self.clips else 1.0
        rates = [bucket.rates(groups) for bucket in self.buckets]
        for bucket, own in zip(self.buckets, rates, strict=True):
            bucket.step(arrays, own, state, factor)

    @property
    def is_reusable(self) -> bool:
        """Whether the next step may use the plan: a first step that is not dampened is unique."""
        return not any(bucket.first for bucket in self.buckets)


def _clip_factor(grads: list[Any], clip_norm: Any) -> float:
    """Return the factor that clips the norm of all gradients, as the core has it."""
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    factor: float = clip_norm / (torch.stack(norms).norm().item() + 1e-6)
    return 1.0 if factor >= 1 else factor  # NaN stays


def _check_options(call: str, group: Mapping[str, Any]) -> None:
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(f"{call}.step: {name} is True, expected False")
