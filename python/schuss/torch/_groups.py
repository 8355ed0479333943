"""Hyperparameters of a group of parameters, as `torch.optim` and as schuss name them."""

from collections.abc import Mapping
from typing import Any

from schuss._hyperparameters import real

# The names that torch.optim gives the states of the rules.
STATE_KEYS = {
    "velocity": "momentum_buffer",
    "square_average": "square_avg",
    "mean": "grad_avg",
    "buffer": "momentum_buffer",
    "m": "exp_avg",
    "v": "exp_avg_sq",
    "v_max": "max_exp_avg_sq",
}

# The options of each class of torch.optim, except for lr.
OPTIONS = {
    "SGD": ("momentum", "dampening", "nesterov", "weight_decay"),
    "RMSprop": ("alpha", "eps", "centered", "momentum", "weight_decay"),
    "Adam": ("betas", "eps", "amsgrad", "weight_decay"),
}
OPTIONS["AdamW"] = OPTIONS["Adam"]
_FLAGS = ("amsgrad", "centered", "nesterov")
_RENAMED = {"SGD": {"momentum": "beta"}, "RMSprop": {"alpha": "beta"}}

# The hyperparameters that torch.optim lacks, for each class of schuss, with their values there.
_ADAM: dict[str, Any] = {"eps_root": 0.0, "eps_hat": 0.0, "bias_correction": True}
_FIXED: dict[str, dict[str, Any]] = {
    "SGD": {},
    "Momentum": {"lr_in_velocity": False, "bias_correction": False},
    "RMSprop": {"eps_root": 0.0},
    "Adam": _ADAM,
    "AdamW": _ADAM,
}
KINDS = tuple(_FIXED)


def rule_of(kind: str) -> str:
    """Return the name of the class of torch.optim for a class of schuss."""
    return "SGD" if kind == "Momentum" else kind


def number(call: str, name: str, value: Any) -> float:
    """Return a number as a float; bools are numbers, as in torch.optim."""
    return float(value) if isinstance(value, bool) else real(call, name, value)


def from_torch(
    call: str, name: str, rule: str, group: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the class of schuss, by name, and its hyperparameters for a group of torch.optim.

    Raises TypeError if an option has a wrong type, and KeyError if it is missing.
    """
    kind = rule
    values: dict[str, Any] = {}
    for key in ("lr", *OPTIONS[rule]):
        if key == "betas":
            values |= _betas(call, name, group[key])
        else:
            value = number(call, f"{name}[{key!r}]", group[key])
            values[_RENAMED.get(rule, {}).get(key, key)] = bool(value) if key in _FLAGS else value
    if "betas" in OPTIONS[rule]:
        kind = "AdamW" if group.get("decoupled_weight_decay", rule == "AdamW") else "Adam"
    elif rule == "SGD" and values["beta"] == 0:
        values = {key: values[key] for key in ("lr", "weight_decay")}
    elif rule == "SGD":
        kind = "Momentum"
        _check_nesterov(call, values)
    return kind, values | _FIXED[kind]


def to_torch(call: str, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of torch.optim for hyperparameters of a class of schuss."""
    for name, expected in _FIXED[kind].items():
        if values[name] != expected:
            raise ValueError(
                f"{call}: {name} is {values[name]!r}, expected {expected!r}, as torch.optim has it"
            )
    if kind == "SGD":
        return {key: values[key] for key in ("lr", "weight_decay")}
    if kind == "Momentum":
        dampening = values["beta"] if values["dampening"] is None else values["dampening"]
        values = {**values, "dampening": dampening}
        _check_nesterov(call, values)
        if dampening != 0 and values["beta"] == 0:
            raise ValueError(
                f"{call}: dampening is {dampening!r} where beta is 0, expected 0: torch.optim "
                "ignores it there"
            )
    elif kind in ("Adam", "AdamW"):
        values = {**values, "betas": (values["beta1"], values["beta2"])}
    rule = rule_of(kind)
    return {key: values[_RENAMED.get(rule, {}).get(key, key)] for key in ("lr", *OPTIONS[rule])}


def _betas(call: str, name: str, betas: Any) -> dict[str, float]:
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise TypeError(f"{call}: {name}['betas'] is {betas!r}, expected two numbers") from None
    pairs = (("beta1", beta1), ("beta2", beta2))
    return {key: number(call, f"{name}['betas']", beta) for key, beta in pairs}


def _check_nesterov(call: str, values: Mapping[str, Any]) -> None:
    if values["nesterov"] and values["dampening"] != 0:
        raise ValueError(
            f"{call}: dampening is {values['dampening']!r} with nesterov, expected 0, as "
            "torch.optim has it"
        )
