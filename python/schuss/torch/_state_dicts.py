"""Conversion of state dicts between `torch.optim` and schuss."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from schuss._arrays import Array, computed_dtype
from schuss._errors import wrong_type
from schuss._hyperparameters import check_keys, mapping
from schuss._internals import internals_of
from schuss._rules import initial_values, spec_of, states
from schuss.optimizers import Optimizer
from schuss.torch._formats import BITS, converted_bits
from schuss.torch._groups import KINDS, RULES, Correspondence, from_torch, number, rule_of, to_torch


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Convert the state of an optimizer of schuss to that of `torch.optim`.

    Parameters
    ----------
    optimizer : Optimizer
        An optimizer of schuss of a class that `torch.optim` has too, or `Momentum`, with parameters
        of any shape and dtype. Schedules are replaced by the current rates (``lr_now`` of each
        group). Options that `torch.optim` lacks (`bounds`, `clip_norm`, averages, copies and so on)
        are left out. State in 8 bits is decoded to float32; loaded again, it is the same 8 bits.
        The bits of masters are the entries ``"master_bits"``, which `torch.optim` does not use.

    Returns
    -------
    dict
        A state for ``load_state_dict`` of that class (`torch.optim.SGD` for `Momentum`) with the
        same number of parameters in the same order and groups. Its tensors are copies.

    Raises
    ------
    TypeError
        If it is not an optimizer of schuss.
    ValueError
        If `torch.optim` has no equivalent: for `eps_root`, Adam without bias correction, momentum
        with it, dampening with Nesterov's momentum or with `beta` 0, accumulated gradients, and
        ``complex="modulus"`` with complex parameters.

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
    _check_complex(call, optimizer)
    saved = optimizer.state_dict()
    param_states = _param_states(call, kind, optimizer, saved)
    groups = _param_groups(call, kind, optimizer, saved, has_state=bool(param_states))
    return {"state": param_states, "param_groups": groups}


def _param_states(
    call: str, kind: str, optimizer: Optimizer, saved: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Return the state of each parameter by its index; an empty dict before the first step."""
    tree, steps = internals_of(optimizer).core.tree, saved["steps"]
    rule, group_of = RULES[rule_of(kind)], internals_of(optimizer).group_of
    arrays = {
        rule.states[name]: tree.flatten_arrays(state, call, name)
        for name, state in optimizer.state.items()
    }
    # A velocity can come from a state without a number of steps. Without a state, Adagrad of
    # torch.optim begins with the value that it was made with.
    is_new = steps == 0 and not spec_of(type(optimizer)).initial
    if is_new and not any(array.any() for each in arrays.values() for array in each):
        return {}
    counts = [group.steps for group in optimizer.param_groups]
    result: dict[int, dict[str, Any]] = {}
    for i, bits in enumerate(_master_bits(call, optimizer, saved)):
        state = {
            key: torch.tensor(each[i].astype(computed_dtype(each[i]), copy=False))
            for key, each in arrays.items()
        }
        if bits is not None:
            state[BITS] = torch.tensor(bits)
        steps = counts[group_of[i]]
        if rule.counts_steps:
            # float32 as in torch.optim, except for a number that it cannot represent.
            dtype = torch.float32 if steps <= 1 << 24 else torch.float64
            state["step"] = torch.tensor(float(steps), dtype=dtype)
        if rule.momentum is not None:
            values = optimizer.param_groups[group_of[i]]
            momenta = (rule.momentum(values, t) for t in range(1, steps + 1))
            state["mu_product"] = torch.tensor(prod(momenta, start=1.0))
        if state:
            result[i] = state
    return result


def _master_bits(
    call: str, optimizer: Optimizer, saved: Mapping[str, Any]
) -> list[npt.NDArray[np.signedinteger] | None]:
    """Return the saved bits that each parameter misses of its master; None if there are none."""
    tree = internals_of(optimizer).core.tree
    if saved["master"] is None:
        return [None] * len(tree.leaves)
    return tree.flatten_arrays(saved["master"], call, "master", gaps=True)


def _param_groups(
    call: str, kind: str, optimizer: Optimizer, saved: Mapping[str, Any], *, has_state: bool
) -> list[dict[str, Any]]:
    options = {"momentum": 0.5} if kind == "Momentum" else {}
    defaults = getattr(torch.optim, rule_of(kind))([torch.zeros(1)], **options).defaults
    groups: list[dict[str, Any]] = []
    first = 0
    for index, group in enumerate(saved["groups"]):
        members = group["members"]
        if members != list(range(first, first + len(members))):
            raise ValueError(
                f"{call}: param_groups[{index}] has parameters between those of others, expected "
                "groups one after the other, as torch.optim has them"
            )
        first += len(members)
        values = saved["hyperparameters"] | group["hyperparameters"]
        values["lr"] = optimizer.param_groups[index].lr_now
        converted = to_torch(call, kind, values)
        if converted.get("dampening") and not has_state:
            raise ValueError(
                f"{call}: dampening is set before the first step, which torch.optim does not "
                "dampen, expected steps"
            )
        converted["maximize"] = values["maximize"]
        groups.append({**defaults, **converted, "params": members})
    return groups


def load_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load a state of `torch.optim` into an optimizer of schuss.

    Parameters
    ----------
    optimizer : Optimizer
        An optimizer of schuss of the class of the state, or `Momentum` for that of SGD, with the
        same number of parameters of the same shapes, in the same order and groups. Options that
        `torch.optim` lacks (`bounds`, `clip_norm`, averages and so on) are unchanged.
    state_dict : mapping
        The result of ``state_dict()`` of an optimizer of `torch.optim` or of `schuss.torch`. That
        of SGD has no number of steps: `optimizer.steps` is unchanged then. The tensors can be on
        any device. They are rounded to nearest to the dtype of the existing state, as in PyTorch,
        and to its 8 bits. Where there are masters but no ``"master_bits"``, the parameters are
        taken for the exact values.

    Raises
    ------
    TypeError
        If an argument, or a value in it, has a wrong type.
    ValueError
        If it is the state of another class, of other parameters or of other groups, or is
        incomplete; if schuss has no equivalent: for different numbers of steps for parameters of
        the same group, dampening before the first step or with Nesterov's momentum, and
        ``complex="modulus"`` with complex parameters.

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
    _check_complex(call, optimizer)
    check_keys(call, "state_dict", state_dict, ("state", "param_groups"))
    param_states = mapping(call, "state_dict['state']", state_dict["state"])
    groups, ids = _parse_groups(call, state_dict["param_groups"], kind)
    internals, saved = internals_of(optimizer), optimizer.state_dict()
    if len(ids) != len(internals.arrays):
        raise ValueError(
            f"{call}: state_dict has {len(ids)} parameters, expected {len(internals.arrays)}"
        )
    members, expected = ([each["members"] for each in some] for some in (groups, saved["groups"]))
    if members != expected:
        raise ValueError(
            f"{call}: state_dict['param_groups'] has parameters {members}, expected {expected}"
        )
    for group, before in zip(groups, saved["groups"], strict=True):
        group["hyperparameters"] = before["hyperparameters"] | group["hyperparameters"]
        group["rested"] = before["rested"]
    values = groups[0]["hyperparameters"]
    names = states(type(optimizer), {**internals.settings, **values})
    reader = _StateReader(call, kind, param_states)
    for key, bits in zip(ids, _master_bits(call, optimizer, saved), strict=True):
        if bits is not None:
            reader.read_bits(key, bits)
    trees: dict[str, list[Array]] = {name: [] for name in names}
    counts = []
    for group in groups:
        own = group["hyperparameters"]
        counts.append(reader.steps([ids[i] for i in group["members"]]))
        initial = initial_values(type(optimizer), own)
        for i in group["members"]:
            param = internals.arrays[i]
            given = optimizer.state_dtype
            dtype = given if isinstance(given, np.dtype) else computed_dtype(param)
            for name, array in reader.read(ids[i], own, names, is_complex=np.iscomplexobj(param)):
                first = initial.get(name, 0.0)
                if array is None:
                    array = np.full(param.shape, first)
                trees[name].append(array.astype(dtype, copy=False))
    if len(groups) == 1 and internals.groups_given is None:
        groups[0]["hyperparameters"] = {}
        saved["hyperparameters"] |= values
    trees = {name: internals.core.tree.unflatten(tree) for name, tree in trees.items()}
    if reader.rule.counts_steps:
        saved["steps"] = max(counts)
        for group, steps in zip(groups, counts, strict=True):
            group["rested"] = saved["steps"] - steps
    optimizer.load_state_dict(saved | {"groups": groups, "state": trees})


@dataclass
class _StateReader:
    """Reads the states of parameters from a state dict of torch.optim."""

    call: str
    kind: str
    states: Mapping[Any, Any]

    @property
    def rule(self) -> Correspondence:
        """What schuss has for the class."""
        return RULES[rule_of(self.kind)]

    def read(
        self, key: Any, group: Mapping[str, Any], names: list[str], *, is_complex: bool
    ) -> Iterator[tuple[str, Array | None]]:
        """Yield each state of a parameter, in double precision; None stands for the first value."""
        name, state = self._state(key)
        for own in names:
            torch_key = self.rule.states[own]
            # Without momentum, a velocity that is still there has no effect.
            is_unused = self.kind == "Momentum" and group["beta"] == 0
            array = None if is_unused else self._array(name, state, torch_key, is_complex)
            if array is None and state and self.kind != "Momentum":
                raise ValueError(f"{self.call}: {name} has no {torch_key!r}, expected it")
            if array is None and group.get("dampening"):
                raise ValueError(
                    f"{self.call}: {name} has no {torch_key!r} where dampening is set, "
                    "expected it: torch.optim does not dampen the first step"
                )
            yield own, array

    def read_bits(self, key: Any, target: npt.NDArray[np.signedinteger]) -> None:
        """Write the bits that a parameter misses of its master, or zeros if there are none."""
        name, state = self._state(key)
        dtype = torch.from_numpy(target).dtype
        bits = converted_bits(
            f"{self.call}: {name}[{BITS!r}]", state.get(BITS), dtype, target.shape
        )
        target[...] = 0 if bits is None else bits.numpy(force=True)

    def steps(self, keys: list[Any]) -> int:
        """Return the number of steps of the parameters of a group: 0 if none has a state."""
        named = [self._state(key) for key in keys]
        if not self.rule.counts_steps or not any(state for _, state in named):
            return 0
        counts = {_steps(self.call, name, state) for name, state in named}
        if len(counts) > 1:
            raise ValueError(
                f"{self.call}: state_dict['state'] counts {sorted(counts)} steps, expected the "
                "same for all parameters of a group"
            )
        return counts.pop()

    def _state(self, key: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the name and the state of a parameter."""
        name = f"state_dict['state'][{key!r}]"
        return name, mapping(self.call, name, self.states.get(key, {}))

    def _array(
        self, name: str, state: Mapping[str, Any], key: str, is_complex: bool
    ) -> Array | None:
        """Return a state in double precision; None if there is none."""
        value = state.get(key)
        if value is None:
            return None
        is_tensor = isinstance(value, torch.Tensor)
        if not is_tensor or not (value.is_complex() if is_complex else value.is_floating_point()):
            was = getattr(value, "dtype", None) or type(value).__name__
            raise TypeError(
                f"{self.call}: {name}[{key!r}] is of {was}, expected a "
                f"{'complex' if is_complex else 'floating point'} tensor, as its parameter is"
            )
        dtype = torch.complex128 if is_complex else torch.float64
        try:
            array: Array = value.to(dtype).numpy(force=True)
        except (TypeError, RuntimeError):
            raise ValueError(
                f"{self.call}: {name}[{key!r}] is {value.layout} on {value.device}, expected a "
                "dense tensor"
            ) from None
        return array


def _parse_groups(call: str, groups: Any, kind: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the groups as schuss saves them, and the keys of the parameters in torch.optim."""
    if not isinstance(groups, list) or not groups:
        raise ValueError(
            f"{call}: state_dict['param_groups'] is {groups!r}, expected a non-empty list"
        )
    parsed: list[dict[str, Any]] = []
    ids: list[Any] = []
    for index, group in enumerate(groups):
        values = _parse_group(call, f"state_dict['param_groups'][{index}]", group, kind)
        members = list(range(len(ids), len(ids) + len(group["params"])))
        parsed.append({"hyperparameters": values, "members": members})
        ids += group["params"]
    try:
        are_unique = len(set(ids)) == len(ids)
    except TypeError:  # not hashable
        are_unique = False
    if not are_unique:
        raise ValueError(f"{call}: state_dict has parameters {ids}, expected unique keys")
    return parsed, ids


def _parse_group(call: str, name: str, group: Any, kind: str) -> dict[str, Any]:
    """Return the hyperparameters of a group for a class of schuss."""
    rule = rule_of(kind)
    if not {"params", "lr", *RULES[rule].options} <= mapping(call, name, group).keys():
        raise ValueError(
            f"{call}: {name} has the keys {list(group)}, expected those of torch.optim.{rule}"
        )
    group_kind, values = from_torch(call, name, rule, group)
    params = group["params"]
    if not isinstance(params, list):
        raise wrong_type(call, f"{name}['params']", params, "a list")
    if (group_kind, kind) == ("SGD", "Momentum"):
        group_kind = "Momentum"
        values |= {"beta": 0.0, "dampening": 0.0, "nesterov": False, **RULES[rule].lacking}
    if group_kind != kind:
        raise ValueError(f"{call}: {name} is of {group_kind}, expected {kind}")
    maximize = number(call, f"{name}['maximize']", group.get("maximize", False))
    return values | {"maximize": bool(maximize)}


def _steps(call: str, name: str, state: Mapping[str, Any]) -> int:
    if "step" not in state:
        raise ValueError(
            f"{call}: {name} has no 'step', expected it for all parameters of a group or for none"
        )
    steps = number(call, f"{name}['step']", state["step"])
    if not (steps >= 0 and steps.is_integer()):
        raise ValueError(f"{call}: {name}['step'] is {steps!r}, expected a whole number from 0")
    return int(steps)


def _check_complex(call: str, optimizer: Optimizer) -> None:
    """Raise ValueError if complex parameters have real states, as those of torch.optim never do."""
    for param in internals_of(optimizer).arrays:
        if optimizer.complex != "components" and np.iscomplexobj(param):
            raise ValueError(
                f"{call}: complex is {optimizer.complex!r} where a parameter is {param.dtype}, "
                "expected 'components', as torch.optim has it"
            )


def _kind_of(call: str, optimizer: Any) -> str:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer) or kind not in KINDS:
        raise TypeError(f"{call}: optimizer is a {kind}, expected one of {', '.join(KINDS)}")
    return kind
