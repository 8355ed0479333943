"""Hyperparameters of a group of parameters, as `torch.optim` and as schuss name them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from schuss import optimizers
from schuss._hyperparameters import real
from schuss._rules import second_moments, spec_of


@dataclass(frozen=True)
class Correspondence:
    """What schuss has for a class of `torch.optim`."""

    options: Mapping[str, str | tuple[str, ...]]
    """The hyperparameters of schuss for each option except `lr`: several for a tuple."""
    states: Mapping[str, str]
    """The key in `torch.optim` of each state."""
    lacking: Mapping[str, Any] = field(default_factory=dict)
    """The hyperparameters that `torch.optim` lacks, with their values there."""
    counts_steps: bool = True
    """Whether the state has the number of steps."""
    momentum: Callable[[Mapping[str, Any], float], float] | None = None
    """If the state has the product of the momenta so far: the one of step t."""


def _same(*names: str) -> dict[str, str | tuple[str, ...]]:
    return {name: name for name in names}


def _momentum_of_nadam(values: Mapping[str, Any], t: float) -> float:
    momentum: float = values["beta1"] * (1 - 0.5 * 0.96 ** (t * values["momentum_decay"]))
    return momentum


_BETAS: dict[str, str | tuple[str, ...]] = {"betas": ("beta1", "beta2")}
_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_ADAM = Correspondence(
    options=_BETAS | _same("eps", "amsgrad", "weight_decay"),
    states=_MOMENTS | {"v_max": "max_exp_avg_sq"},
    lacking={"eps_root": 0.0, "eps_hat": 0.0, "bias_correction": True},
)
RULES = {
    "SGD": Correspondence(  # `Momentum` of schuss, and `SGD` where there is no momentum
        options={"momentum": "beta", **_same("dampening", "nesterov", "weight_decay")},
        states={"velocity": "momentum_buffer"},
        lacking={"lr_in_velocity": False, "bias_correction": False},
        counts_steps=False,
    ),
    "RMSprop": Correspondence(
        options={"alpha": "beta", **_same("eps", "centered", "momentum", "weight_decay")},
        states={"square_average": "square_avg", "mean": "grad_avg", "buffer": "momentum_buffer"},
        lacking={"eps_root": 0.0},
    ),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adagrad": Correspondence(
        options=_same("lr_decay", "eps", "initial_accumulator_value", "weight_decay"),
        states={"square_sum": "sum"},
    ),
    "Adadelta": Correspondence(
        options=_same("rho", "eps", "weight_decay"),
        states={"square_average": "square_avg", "delta_average": "acc_delta"},
    ),
    "Adamax": Correspondence(
        options=_BETAS | _same("eps", "weight_decay"),
        states={"m": "exp_avg", "u": "exp_inf"},
    ),
    "NAdam": Correspondence(
        options=_BETAS | _same("eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"),
        states=_MOMENTS,
        lacking={"eps_hat": 0.0},
        momentum=_momentum_of_nadam,
    ),
    "RAdam": Correspondence(
        options=_BETAS | _same("eps", "weight_decay", "decoupled_weight_decay"),
        states=_MOMENTS,
    ),
}
KINDS = (*RULES, "Momentum")
_FLAGS = ("amsgrad", "centered", "decoupled_weight_decay", "nesterov")


def rule_of(kind: str) -> str:
    """Return the name of the class of torch.optim for a class of schuss."""
    return "SGD" if kind == "Momentum" else kind


@cache
def nonnegative_states(rule: str) -> set[str]:
    """Return the keys in torch.optim of the states that are never less than 0."""
    kind = getattr(optimizers, "Momentum" if rule == "SGD" else rule)
    all_states = dict.fromkeys(spec_of(kind).suffixes, True)
    return {RULES[rule].states[name] for name in second_moments(kind, all_states)}


def number(call: str, name: str, value: Any) -> float:
    """Return a number as a float; bools are numbers, as in torch.optim."""
    return float(value) if isinstance(value, bool) else real(call, name, value)


def from_torch(
    call: str, name: str, rule: str, group: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the class of schuss, by name, and its hyperparameters for a group of torch.optim.

    Raises TypeError if an option has a wrong type, and KeyError if it is missing.
    """
    values: dict[str, Any] = {"lr": number(call, f"{name}['lr']", group["lr"])}
    for key, own in RULES[rule].options.items():
        argument = f"{name}[{key!r}]"
        if isinstance(own, tuple):
            values |= _numbers(call, argument, own, group[key])
        else:
            value = number(call, argument, group[key])
            values[own] = bool(value) if key in _FLAGS else value
    kind = rule
    if rule in ("Adam", "AdamW"):
        kind = "AdamW" if group.get("decoupled_weight_decay", rule == "AdamW") else "Adam"
    elif rule == "SGD" and values["beta"] == 0:
        return rule, {key: values[key] for key in ("lr", "weight_decay")}
    elif rule == "SGD":
        kind = "Momentum"
        _check_nesterov(call, values)
    return kind, {**values, **RULES[rule].lacking}


def to_torch(call: str, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of torch.optim for hyperparameters of a class of schuss."""
    if kind == "SGD":
        return {key: values[key] for key in ("lr", "weight_decay")}
    rule = RULES[rule_of(kind)]
    for name, expected in rule.lacking.items():
        if values[name] != expected:
            raise ValueError(
                f"{call}: {name} is {values[name]!r}, expected {expected!r}, as torch.optim has it"
            )
    if kind == "Momentum":
        dampening = values["beta"] if values["dampening"] is None else values["dampening"]
        values = {**values, "dampening": dampening}
        _check_nesterov(call, values)
        if dampening != 0 and values["beta"] == 0:
            raise ValueError(
                f"{call}: dampening is {dampening!r} where beta is 0, expected 0: torch.optim "
                "ignores it there"
            )
    return {"lr": values["lr"]} | {
        key: tuple(values[name] for name in own) if isinstance(own, tuple) else values[own]
        for key, own in rule.options.items()
    }


def _numbers(call: str, name: str, names: tuple[str, ...], given: Any) -> dict[str, float]:
    try:
        pairs = list(zip(names, given, strict=True))
    except (TypeError, ValueError):
        raise TypeError(f"{call}: {name} is {given!r}, expected two numbers") from None
    return {key: number(call, name, value) for key, value in pairs}


def _check_nesterov(call: str, values: Mapping[str, Any]) -> None:
    if values["nesterov"] and values["dampening"] != 0:
        raise ValueError(
            f"{call}: dampening is {values['dampening']!r} with nesterov, expected 0, as "
            "torch.optim has it"
        )
