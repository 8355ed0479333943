"""The optimizers and what the tests need to know of each: one table, a row for each class."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

import pytest

import schuss
from schuss import reference
from support.arrays import equal, leaves

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """What the tests know of a class of optimizers."""

    kernel: str
    """The name of its function in `schuss.kernels` and in `schuss.reference`."""
    states: tuple[str, ...]
    """The states that it always has."""
    defaults: Options
    """The hyperparameters and their defaults, as the design has them, in the signature's order."""
    optional_states: Mapping[str, str] = field(default_factory=dict)
    """Further states, each with the hyperparameter that adds it."""
    variants: tuple[Options, ...] = ()
    """Hyperparameters worth a test, in addition to the defaults."""
    groups: tuple[tuple[Options, Options, Options], ...] = ()
    """Hyperparameters of an optimizer, and those that two of its three groups override."""
    rules: Mapping[str, Options] = field(default_factory=dict)
    """Its rules in `rules.def`, each with the keyword arguments that the reference needs for it."""
    refuses: frozenset[str] = frozenset()
    """Options and dtypes that it refuses; and "strides": parameters that are not C-contiguous."""


ADAM_DEFAULTS: Options = {
    "lr": 0.001,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "eps_root": 0.0,
    "eps_hat": 0.0,
    "amsgrad": False,
    "bias_correction": True,
    "weight_decay": 0.0,
}

OPTIMIZERS: dict[str, Kind] = {
    "SGD": Kind(
        kernel="sgd",
        states=(),
        defaults={"lr": 0.01, "weight_decay": 0.0},
        variants=({"lr": 0.5, "weight_decay": 0.1},),
        groups=(({"lr": 0.1}, {"lr": 0.5, "weight_decay": 0.1}, {"weight_decay": 0.5}),),
        rules={"sgd": {}},
    ),
    "Momentum": Kind(
        kernel="momentum",
        states=("velocity",),
        defaults={
            "lr": 0.01,
            "beta": 0.9,
            "dampening": None,
            "nesterov": False,
            "lr_in_velocity": False,
            "bias_correction": False,
            "weight_decay": 0.0,
        },
        variants=(
            {"nesterov": True, "bias_correction": True, "dampening": 0.0},
            {"lr_in_velocity": True, "weight_decay": 0.1},
        ),
        groups=(
            (
                {"lr": 0.1, "weight_decay": 0.1},
                {"nesterov": True, "beta": 0.5},
                {"bias_correction": True, "dampening": 0.25, "lr_in_velocity": True},
            ),
        ),
        rules={"momentum": {}, "momentum_nesterov": {"nesterov": True}},
    ),
    "RMSprop": Kind(
        kernel="rmsprop",
        states=("square_average",),
        optional_states={"mean": "centered", "buffer": "momentum"},
        defaults={
            "lr": 0.001,
            "beta": 0.9,
            "eps": 1e-8,
            "eps_root": 0.0,
            "centered": False,
            "momentum": 0.0,
            "weight_decay": 0.0,
        },
        variants=(
            {"centered": True, "momentum": 0.5, "eps_root": 1e-8, "eps": 0.0},
            {"momentum": 0.9, "weight_decay": 0.1},
        ),
        groups=(
            ({"lr": 0.1}, {"eps": 1e-3, "beta": 0.5}, {"lr": 0.0, "weight_decay": 0.1}),
            (
                {"lr": 0.1, "centered": True, "momentum": 0.5},
                {"momentum": 0.75},
                {"eps_root": 1e-3},
            ),
        ),
        rules={
            "rmsprop": {},
            "rmsprop_centered": {},
            "rmsprop_momentum": {},
            "rmsprop_centered_momentum": {},
        },
    ),
    "Adam": Kind(
        kernel="adam",
        states=("m", "v"),
        optional_states={"v_max": "amsgrad"},
        defaults=ADAM_DEFAULTS,
        variants=({"amsgrad": True, "weight_decay": 0.1},),
        groups=(
            ({"lr": 0.1}, {"beta1": 0.5, "bias_correction": False}, {"weight_decay": 0.1}),
            (
                {"lr": 0.1, "amsgrad": True},
                {"beta2": 0.5},
                {"lr": 0.25, "eps": 0.0, "eps_hat": 0.1},
            ),
        ),
        rules={"adam": {}, "adam_amsgrad": {}},
    ),
    "AdamW": Kind(
        kernel="adam",
        states=("m", "v"),
        optional_states={"v_max": "amsgrad"},
        defaults={**ADAM_DEFAULTS, "weight_decay": 0.01},
        variants=({"amsgrad": True, "bias_correction": False, "eps_hat": 1e-3},),
        groups=(({"lr": 0.1}, {"weight_decay": 0.0}, {"weight_decay": 0.5, "lr": 0.25}),),
    ),
}
OPTIMIZERS |= {
    "Adagrad": Kind(
        kernel="adagrad",
        states=("square_sum",),
        defaults={
            "lr": 0.01,
            "lr_decay": 0.0,
            "eps": 1e-10,
            "initial_accumulator_value": 0.0,
            "weight_decay": 0.0,
        },
        variants=({"lr_decay": 0.5, "initial_accumulator_value": 0.1, "weight_decay": 0.1},),
        groups=(
            (
                {"lr": 0.1, "initial_accumulator_value": 0.3},
                {"lr_decay": 0.5, "initial_accumulator_value": 0.1},
                {"eps": 0.1, "weight_decay": 0.1},
            ),
        ),
        rules={"adagrad": {}},
    ),
    "Adadelta": Kind(
        kernel="adadelta",
        states=("square_average", "delta_average"),
        defaults={"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
        variants=({"rho": 0.5, "eps": 1e-3, "weight_decay": 0.1},),
        groups=(({"lr": 0.5}, {"rho": 0.5}, {"eps": 0.1, "weight_decay": 0.1}),),
        rules={"adadelta": {}},
    ),
    "Adamax": Kind(
        kernel="adamax",
        states=("m", "u"),
        defaults={"lr": 0.002, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        variants=({"beta1": 0.5, "beta2": 0.5, "weight_decay": 0.1},),
        groups=(({"lr": 0.1}, {"beta1": 0.5, "eps": 0.1}, {"beta2": 0.5, "weight_decay": 0.1}),),
        rules={"adamax": {}},
    ),
    "NAdam": Kind(
        kernel="nadam",
        states=("m", "v"),
        defaults={
            "lr": 0.002,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "eps_hat": 0.0,
            "momentum_decay": 0.004,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
        },
        variants=(
            {"eps": 0.0, "eps_hat": 0.1, "weight_decay": 0.1},
            {"momentum_decay": 0.5, "weight_decay": 0.1, "decoupled_weight_decay": True},
        ),
        groups=(
            (
                {"lr": 0.1, "weight_decay": 0.1},
                {"beta1": 0.5, "momentum_decay": 0.5},
                {"decoupled_weight_decay": True, "eps_hat": 0.1},
            ),
        ),
        rules={"nadam": {}},
    ),
    "RAdam": Kind(
        kernel="radam",
        states=("m", "v"),
        defaults={
            "lr": 0.001,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
        },
        variants=(
            {"beta2": 0.9, "weight_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": True},
        ),
        groups=(
            (
                {"lr": 0.1, "weight_decay": 0.1},
                {"beta1": 0.5, "beta2": 0.9},
                {"decoupled_weight_decay": True, "eps": 0.1},
            ),
        ),
        rules={"radam": {}},
    ),
    "Lion": Kind(
        kernel="lion",
        states=("m",),
        defaults={"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
        variants=({"lr": 0.1, "beta1": 0.5, "weight_decay": 0.1},),
        groups=(({"lr": 0.1}, {"beta1": 0.5, "beta2": 0.5}, {"weight_decay": 0.1}),),
        rules={"lion": {}},
    ),
}

# Those above and row-wise Adagrad, which is apart because most tests of `OPTIMIZERS` draw what it
# refuses, or expect states with the shapes of the parameters.
KINDS = OPTIMIZERS | {
    "RowwiseAdagrad": replace(
        OPTIMIZERS["Adagrad"],
        kernel="rowwise_adagrad",
        rules={},
        refuses=frozenset({"state_dtype", "complex64", "complex128", "strides"}),
    )
}

# The options of every optimizer that can change between steps, and their defaults.
OPTIONS: Options = {
    "maximize": False,
    "bounds": None,
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "average": None,
    "average_bias_correction": False,
    "seed": 0,
    "track_norms": False,
}

# Those that each group may have of its own.
OPTIONS_BY_GROUP = ("maximize", "bounds")

# For each hyperparameter, a value that is no optimizer's default.
OTHER_VALUES: Options = {
    "lr": 0.125,
    "weight_decay": 0.25,
    "beta": 0.75,
    "beta1": 0.75,
    "beta2": 0.875,
    "dampening": 0.25,
    "nesterov": True,
    "lr_in_velocity": True,
    "eps": 1e-3,
    "eps_root": 1e-2,
    "eps_hat": 1e-3,
    "rho": 0.75,
    "lr_decay": 0.25,
    "initial_accumulator_value": 0.5,
    "momentum_decay": 0.25,
    "decoupled_weight_decay": True,
    "centered": True,
    "momentum": 0.5,
    "amsgrad": True,
}

# Each optimizer with its defaults, and with its variants.
VARIANTS: list[tuple[str, Options]] = [
    *((name, {}) for name in OPTIMIZERS),
    *((name, variant) for name, kind in OPTIMIZERS.items() for variant in kind.variants),
]

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


def other_value(name: str, hyperparameter: str) -> Any:
    """Return another value of a hyperparameter than its default."""
    if hyperparameter == "bias_correction":
        return not OPTIMIZERS[name].defaults[hyperparameter]
    return OTHER_VALUES[hyperparameter]


def make_optimizer(name: str, params: Any, **options: Any) -> Any:
    """Return an optimizer of that class."""
    return getattr(schuss, name)(params, **options)


def make_reference(name: str, params: Any, **options: Any) -> reference.Optimizer:
    """Return the reference for an optimizer of that class."""
    return reference.Optimizer(name.lower(), params, **{**KINDS[name].defaults, **options})


def assert_same(optimizer: Any, expected: Any) -> None:
    """Assert that an optimizer has the bits and the counts of its reference."""
    assert equal(leaves(optimizer.params), leaves(expected.params))
    assert list(optimizer.state) == list(expected.state)
    for name, tree in expected.state.items():
        assert equal(leaves(optimizer.state[name]), leaves(tree)), name
    for ours, theirs in (
        (optimizer.average, expected.average),
        (optimizer.copies, expected.copies),
        (optimizer.master, expected.master),
    ):
        assert (ours is None) == (theirs is None)
        assert theirs is None or equal(leaves(ours), leaves(theirs))
    counts = [(it.steps, it.skipped, it.accumulated) for it in (optimizer, expected)]
    assert counts[0] == counts[1]


def assert_same_outcome(optimizer: Any, expected: reference.Optimizer) -> None:
    """Assert that the last step of an optimizer did what that of its reference did."""
    if expected.last is None:
        assert optimizer.last is None
        return
    last = optimizer.last
    assert (last.clipped, last.skipped) == (expected.last.clipped, expected.last.skipped)
    for name in ("grad_norm", "update_norm", "param_norm"):
        ours, theirs = getattr(last, name), getattr(expected.last, name)
        both_nan = theirs is not None and isnan(theirs) and isnan(ours)
        assert both_nan or ours == theirs, name
