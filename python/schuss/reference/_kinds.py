"""The kinds of optimizers: what an optimizer needs to know of its rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
    sgd,
)


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

    def states_with(self, hyperparameters: Mapping[str, Any]) -> list[str]:
        """Return the names of the states that these hyperparameters need."""
        optional = (name for name, by in self.optional_states.items() if hyperparameters[by])
        return [*self.states, *optional]


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
    "adadelta": Kind(adadelta, ("square_average", "delta_average")),
    "adamax": Kind(adamax, ("m", "u")),
    "nadam": Kind(nadam, ("m", "v"), defaults={"decoupled_weight_decay": False}),
    "radam": Kind(radam, ("m", "v"), defaults={"decoupled_weight_decay": False}),
    "lion": Kind(lion, ("m",)),
}
