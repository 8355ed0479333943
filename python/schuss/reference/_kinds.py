"""The kinds of optimizers: what an optimizer needs to know of its rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

from schuss._arrays import Array
from schuss.reference._rules import (
    adadelta,
    adagrad,
    adam,
    adamax,
    lion,
    momentum,
    nadam,
    radam,
    rmsprop,
    rowwise_adagrad,
    sgd,
)

SECOND_MOMENTS = frozenset({"square_average", "square_sum", "delta_average", "u", "v", "v_max"})
"""The states of squares or magnitudes. Those of complex numbers may have the modulus."""


@dataclass(frozen=True)
class Kind:
    """A kind of optimizer: its rule, its states, and defaults that are not the rule's."""

    rule: Callable[..., None]
    states: tuple[str, ...] = ()
    optional_states: Mapping[str, str] = field(default_factory=dict)
    """Further states, each with the hyperparameter that adds it unless it is 0 or False."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    """The states that do not begin with zeros, each with the hyperparameter of its first value."""
    by_row: bool = False
    """Whether the states have a number for each row of a parameter."""

    def states_with(self, hyperparameters: Mapping[str, Any]) -> list[str]:
        """Return the names of the states that these hyperparameters need."""
        optional = (name for name, by in self.optional_states.items() if hyperparameters[by])
        return [*self.states, *optional]

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters besides the rate, with their defaults: the rule's own."""
        parameters = signature(self.rule).parameters
        arrays = {"param", "grad", *self.states, *self.optional_states}
        others = {"lr", "step", "scale", "clip_value", "decoupled"} | arrays
        defaults = dict.fromkeys(self.optional_states.values(), False)
        defaults |= {p.name: p.default for p in parameters.values() if p.name not in others}
        return {**defaults, **self.defaults}

    def rule_of(
        self, hyperparameters: Mapping[str, Any], t: int, corrected_t: int
    ) -> Callable[..., None]:
        """Return the rule of step t, which takes its states by position.

        corrected_t: the number of the step for the bias correction.
        """
        names = self.states_with(hyperparameters)
        parameters = signature(self.rule).parameters
        arguments = {
            name: value
            for name, value in hyperparameters.items()
            if name in parameters and name != "clip_value"  # which the step gives to all rules
        }
        if callable(arguments["lr"]):
            arguments["lr"] = float(arguments["lr"](t))
        if "step" in parameters:
            is_corrected = hyperparameters.get("bias_correction", True)
            arguments["step"] = corrected_t if is_corrected else None
        if "decoupled_weight_decay" in hyperparameters:
            arguments["decoupled"] = hyperparameters["decoupled_weight_decay"]
        if hyperparameters["maximize"]:
            arguments["scale"] = -1.0

        def rule(param: Array, grad: Array, *states: Array, **options: Any) -> None:
            named = dict(zip(names, states, strict=True))
            self.rule(param, grad, **named, **arguments, **options)

        return rule


KINDS = {
    "sgd": Kind(sgd),
    "momentum": Kind(momentum, ("velocity",), defaults={"bias_correction": False}),
    "rmsprop": Kind(rmsprop, ("square_average",), {"mean": "centered", "buffer": "momentum"}),
    "adam": Kind(adam, ("m", "v"), {"v_max": "amsgrad"}, {"bias_correction": True}),
    "adamw": Kind(
        partial(adam, decoupled=True),
        ("m", "v"),
        {"v_max": "amsgrad"},
        {"bias_correction": True, "weight_decay": 0.01},
    ),
    "adagrad": Kind(
        adagrad,
        ("square_sum",),
        defaults={"initial_accumulator_value": 0.0},
        initial={"square_sum": "initial_accumulator_value"},
    ),
    "rowwiseadagrad": Kind(
        rowwise_adagrad,
        ("square_sum",),
        defaults={"initial_accumulator_value": 0.0},
        initial={"square_sum": "initial_accumulator_value"},
        by_row=True,
    ),
    "adadelta": Kind(adadelta, ("square_average", "delta_average")),
    "adamax": Kind(adamax, ("m", "u")),
    "nadam": Kind(nadam, ("m", "v"), defaults={"decoupled_weight_decay": False}),
    "radam": Kind(radam, ("m", "v"), defaults={"decoupled_weight_decay": False}),
    "lion": Kind(lion, ("m",)),
}
