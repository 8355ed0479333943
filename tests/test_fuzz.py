"""Whatever is done to an optimizer, in whatever order: it is its model, stepped by the reference.

The long form takes new examples each time, here a hundred times as many:
`SCHUSS_FUZZ=100 pytest tests/test_fuzz.py`.
"""

import copy
import json
import os
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import schuss
from cases import LAYOUTS, Array, equal, laid_out, numbers, same_bits
from schuss import _core, reference, schedules
from support.files import (
    chains,
    data_offsets,
    paths_in,
    split_file,
    value_at,
    warm_ups,
    with_digest,
)

TIMES = int(os.environ.get("SCHUSS_FUZZ", "1"))
# To explain what failed takes longer than to find it.
PHASES = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]


def settings(max_examples: int, **others: Any) -> hypothesis.settings:
    """Return settings: the same examples each time, or new ones in the long form."""
    return hypothesis.settings(
        max_examples=max_examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
        **others,
    )


try:
    import ml_dtypes
except ImportError:
    HALVES = ["float16"]
else:
    HALVES = ["float16", "bfloat16"]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# What an optimizer is.

DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01},
    "Momentum": {
        "lr": 0.01,
        "beta": 0.9,
        "dampening": None,
        "nesterov": False,
        "bias_correction": False,
    },
    "RMSprop": {
        "lr": 0.001,
        "beta": 0.9,
        "eps": 1e-8,
        "eps_root": 0.0,
        "centered": False,
        "momentum": 0.0,
    },
    "Adam": {
        "lr": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "amsgrad": False,
        "bias_correction": True,
    },
}
DEFAULTS["AdamW"] = DEFAULTS["Adam"]
OPTIONS: dict[str, Any] = {
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "average": None,
    "average_bias_correction": False,
    "seed": 0,
}
OF_GROUPS: list[dict[str, Any]] = [{}, {"lr": 0.5}, {"weight_decay": 0.25}]


def defaults_of(kind: str) -> dict[str, Any]:
    decay = 0.01 if kind == "AdamW" else 0.0
    return DEFAULTS[kind] | {"weight_decay": decay} | OPTIONS


def states_of(kind: str, values: dict[str, Any]) -> list[str]:
    if kind == "SGD":
        return []
    if kind == "Momentum":
        return ["velocity"]
    if kind == "RMSprop":
        mean, buffer = ["mean"] * values["centered"], ["buffer"] * (values["momentum"] != 0)
        return ["square_average", *mean, *buffer]
    return ["m", "v", *["v_max"] * values["amsgrad"]]


def rule_of(kind: str, values: dict[str, Any], t: int) -> Callable[..., None]:
    """Return the step t of the reference with these hyperparameters, its states by position."""
    values = {name: value for name, value in values.items() if name not in OPTIONS}
    if callable(values["lr"]):
        values["lr"] = values["lr"](t)
    names = states_of(kind, values)
    for told_by_the_states in ("centered", "amsgrad"):
        values.pop(told_by_the_states, None)
    if "bias_correction" in values:
        values["step"] = t if values.pop("bias_correction") else None
    if kind == "AdamW":
        values["decoupled"] = True
    formula = getattr(reference, "adam" if kind == "AdamW" else kind.lower())

    def step(param: Array, grad: Array, *states: Array, **treatment: Any) -> None:
        formula(param, grad, **dict(zip(names, states, strict=True)), **values, **treatment)

    return step


def computed(array: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def alike(array: Array) -> Array:
    """Return a copy with the elements in the order that they have in memory."""
    backwards: Any = (*(slice(None, None, -1 if n < 0 else 1) for n in array.strides), ...)
    twin: Array = np.array(array, order="K", subok=False)[backwards]
    twin[...] = array
    return twin


class Model:
    """All that an optimizer is, as plain arrays and numbers."""

    def __init__(
        self,
        kind: str,
        params: list[Array],
        members: list[int],
        copies: str | None,
        half: bool,
        given: dict[str, Any],
    ) -> None:
        self.kind, self.half = kind, half
        self.params = [alike(param) for param in params]
        self.settings = defaults_of(kind) | given
        found = list(dict.fromkeys(members))
        self.members = [found.index(member) for member in members]
        self.groups = [dict(OF_GROUPS[member]) for member in found]
        if len(found) == 1:
            self.settings |= self.groups[0]
            self.groups = [{}]
        self.states: dict[str, list[Array]] = {}
        self.averages: list[Array] | None = None
        self.weights = 0.0, 0.0
        self.copies = [param.astype(dtype_of(copies)) for param in params] if copies else []
        self.sums: list[Array] | None = None
        self.waiting = self.steps = self.skipped = 0
        self.last: tuple[float | None, bool, bool] | None = None
        self.take(self.settings, self.groups)

    def lies_as(self, params: list[Array]) -> None:
        """Lie in memory as these parameters do, which decides orders of addition and rounding."""
        for i, (param, values) in enumerate(zip(params, self.params, strict=True)):
            self.params[i] = alike(param)
            self.params[i][...] = values

    def zeros(self, dtype: str | None = None) -> list[Array]:
        return [np.zeros(p.shape, dtype_of(dtype) if dtype else computed(p)) for p in self.params]

    # Hyperparameters.

    def of_group(self, place: int) -> dict[str, Any]:
        return self.settings | self.groups[place]

    def can_take(self, settings: dict[str, Any], groups: list[dict[str, Any]]) -> bool:
        kept = [states_of(self.kind, settings | own) for own in groups]
        return all(names == kept[0] for names in kept)

    def take(self, settings: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        names = states_of(self.kind, settings | groups[0])
        zeros = partial(self.zeros, "bfloat16" if self.half else None)
        self.states = {name: self.states.get(name) or zeros() for name in names}
        from_zero = settings["average_bias_correction"]
        anew = self.averages is None or from_zero != self.settings["average_bias_correction"]
        if settings["average"] is None:
            self.averages, self.weights = None, (0.0, 0.0)
        elif anew:
            self.averages, self.weights = self.zeros(), (0.0, 0.0)
            for average, param in zip(self.averages, self.params, strict=True):
                average[...] = 0 if from_zero else param
        self.settings, self.groups = settings, groups

    def average(self) -> list[Array] | None:
        if self.averages is None or not self.settings["average_bias_correction"]:
            return self.averages
        if self.weights[1] == 0:
            return [param.astype(computed(param)) for param in self.params]
        with np.errstate(all="ignore"):
            return [
                np.asarray(a / self.weights[a.dtype == np.float64]).astype(a.dtype)
                for a in self.averages
            ]

    # Steps.

    def accumulate(self, grads: list[Array], scale: float) -> None:
        sums = self.zeros()
        with _core.subnormals_are_zero(), np.errstate(all="ignore"):
            for i, grad in enumerate(grads):
                wide = grad.astype(sums[i].dtype)
                term = reference._scaled(sums[i], wide, reference._wide(scale))
                sums[i][...] = self.sums[i] + term if self.sums and self.waiting else term
        self.sums, self.waiting = sums, self.waiting + 1
        if self.settings["clear_grads"]:
            for grad in grads:
                grad[...] = 0

    def step(self, grads: list[Array], scale: float) -> None:
        t, options = self.steps + 1, self.settings
        first = self.weights[1] == 0 and not options["average_bias_correction"]
        beta = 0.0 if first else options["average"] or 0.0
        norm, clipped, skipped = reference.step(
            [rule_of(self.kind, self.of_group(place), t) for place in self.members],
            self.params,
            grads,
            list(zip(*self.states.values(), strict=True)) or [()] * len(grads),
            step=t,
            scale=scale,
            averages=self.averages,
            beta=beta,
            copies=self.copies or None,
            **{name: options[name] for name in ("clip_norm", "clip_value", "nonfinite")},
            **{name: options[name] for name in ("clear_grads", "seed")},
        )
        surveyed = options["clip_norm"] is not None or options["nonfinite"] != "propagate"
        self.last = norm if surveyed else None, clipped and not skipped, skipped
        if skipped:
            self.skipped += 1
            return
        self.steps = t
        if self.averages is not None:
            gains = float(np.float32(1 - beta)), 1 - beta
            in_float32, in_float64 = (
                weight + gain * (1 - weight)
                for weight, gain in zip(self.weights, gains, strict=True)
            )
            self.weights = in_float32, in_float64

    # What was saved.

    def load(self, saved: "Model", *, params: bool) -> None:
        """Be as that one was; without its parameters, if only the optimizer was saved."""
        own = self.params, self.last
        self.__dict__.update(copy.deepcopy(saved.__dict__))
        values, (self.params, self.last) = self.params, own
        for param, value in zip(self.params, values if params else self.params, strict=True):
            param[...] = value
        self.write_copies()

    def write_copies(self) -> None:
        with np.errstate(all="ignore"):
            for low, param in zip(self.copies, self.params, strict=False):  # none, or all
                low[...] = param.astype(low.dtype)


# What is drawn.

SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (17,), (65,), (3, 5), (2, 0, 3), (7, 1, 9), (4, 3, 2, 2)]),
    st.sampled_from([(4097,), (33, 130)]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
FRACTIONS = st.one_of(
    st.sampled_from([0.0, 0.5, 0.9, 1 - 2**-53]), st.floats(1e-30, 1).map(lambda f: f * 0.999)
)
# Where it is not 0, what float32 can hold.
SMALL = st.one_of(st.sampled_from([0.0, 1e-8, 0.1]), st.floats(1e-30, 10))
SCALES = st.one_of(st.sampled_from([1.0, 1.0, 1 / 3, 2.0**-16, 0.0]), st.floats(-1e3, 1e3))


@st.composite
def any_schedule(draw: st.DrawFn, depth: int = 0) -> schedules.Schedule:
    """Draw a schedule of those that do not change."""
    rates, steps = st.floats(0, 2), st.integers(1, 9)
    kinds: list[Any] = [
        st.builds(schedules.Constant, rates),
        st.builds(schedules.InverseTime, rates, rates),
        st.builds(schedules.Exponential, rates, st.floats(0, 1)),
        st.builds(schedules.InverseSqrt, rates, rates),
        st.builds(schedules.Staircase, rates, steps, rates),
        st.builds(schedules.Linear, rates, rates, steps),
        st.builds(schedules.Polynomial, rates, rates, steps, st.floats(0.1, 4)),
        st.builds(schedules.Cosine, rates, steps, rates),
        st.builds(
            schedules.CosineRestarts, rates, steps, rates, st.integers(1, 3), st.floats(0, 1)
        ),
        st.builds(schedules.OneCycle, rates, st.integers(2, 9), st.floats(0.01, 0.49)),
        st.builds(lambda later: schedules.Manual({1: 0.5, 4: later}), rates),
    ]
    if depth < 2:
        inner = st.one_of(rates, any_schedule(depth + 1))
        kinds += [
            st.builds(schedules.WarmUp, inner, steps, rates),
            st.builds(schedules.PerEpoch, any_schedule(depth + 1), steps),
            st.builds(lambda a, b, t: schedules.chain([a, b], [t]), inner, inner, steps),
        ]
    schedule: schedules.Schedule = draw(st.one_of(kinds))
    return schedule


HYPERPARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 10), any_schedule()),
    "weight_decay": SMALL,
    "eps": SMALL,
    "eps_root": SMALL,
    "dampening": st.one_of(st.none(), FRACTIONS),
    "clip_norm": st.one_of(st.none(), SMALL),
    "clip_value": st.one_of(st.none(), SMALL),
    "nonfinite": st.sampled_from(["propagate", "raise", "skip"]),
    "average": st.one_of(st.none(), FRACTIONS),
    "seed": st.integers(0, 9),
    **dict.fromkeys(("beta", "beta1", "beta2", "momentum"), FRACTIONS),
    **dict.fromkeys(("nesterov", "bias_correction", "centered", "amsgrad"), st.booleans()),
    **dict.fromkeys(("clear_grads", "average_bias_correction"), st.booleans()),
}
SEEDS = st.integers(0, 2**16)
SELDOM = st.sampled_from([False, False, False, True])
NO_VALUES: list[Any] = ["0.5", -1.0, np.nan, [], 1j, {}]


@st.composite
def structures(draw: st.DrawFn, leaves: list[Any], depth: int = 0) -> Any:
    """Draw lists, tuples and dicts around the leaves, in their order."""
    if len(leaves) == 1 and (depth > 1 or draw(st.booleans())):
        return leaves[0]
    count = draw(st.integers(1, len(leaves))) if depth < 2 else len(leaves)
    cuts = [len(leaves) * i // count for i in range(count + 1)]
    parts = [leaves[a:b] for a, b in pairwise(cuts)]
    items = [draw(structures(part, depth + 1)) for part in parts]
    kind = draw(st.sampled_from([list, tuple, dict]))
    return {f"k{i}": item for i, item in enumerate(items)} if kind is dict else kind(items)


def leaves_of(tree: Any) -> list[Any]:
    if isinstance(tree, dict | list | tuple):
        inner = tree.values() if isinstance(tree, dict) else tree
        return [leaf for each in inner for leaf in leaves_of(each)]
    return [tree]


def in_structure(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return the structure with other leaves."""
    if isinstance(tree, dict):
        return {key: in_structure(child, leaves) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([in_structure(child, leaves) for child in tree])
    return next(leaves)


def names_of(tree: Any, name: str = "") -> list[str]:
    if not isinstance(tree, dict | list | tuple):
        return [name]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        n for key, child in items for n in names_of(child, f"{name}/{key}" if name else str(key))
    ]


def some_array(rng: np.random.Generator, shape: Any, dtype: Any, *, special: bool = False) -> Array:
    """Return numbers in a layout, both as the generator has it."""
    layout = str(rng.choice(LAYOUTS)) if shape else "c"
    return laid_out(numbers(rng, shape, dtype, special=special), layout)


# The machine.


class Training(RuleBasedStateMachine):
    """An optimizer beside its model."""

    optimizer: Any
    params: Any

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory()
        self.saved: list[tuple[Any, Model]] = []
        self.before = schuss.simd(), schuss.num_threads()
        self.tile, self.least = _core.set_tile_elements(64), _core.set_parallel_threshold(0)

    def teardown(self) -> None:
        self.folder.cleanup()
        simd, threads = self.before
        schuss.set_simd(simd)
        schuss.set_num_threads(threads)
        _core.set_tile_elements(self.tile)
        _core.set_parallel_threshold(self.least)

    @initialize(data=st.data(), seed=SEEDS)
    def make(self, data: st.DataObject, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=5), "shapes")
        self.copied_to = data.draw(st.sampled_from([None, None, *HALVES]), "copies")
        dtypes = ["float32"] if self.copied_to else ["float32", "float64", *HALVES]
        chosen = [data.draw(st.sampled_from(dtypes), "dtype") for _ in shapes]
        self.half = (
            "bfloat16" in HALVES and "float64" not in chosen and data.draw(st.booleans(), "half")
        )
        leaves = [some_array(rng, s, dtype_of(d)) for s, d in zip(shapes, chosen, strict=True)]
        self.params = data.draw(structures(leaves), "structure")
        self.chosen = data.draw(
            st.lists(st.integers(0, 2), min_size=len(leaves), max_size=len(leaves)), "groups"
        )
        changes = {name: HYPERPARAMETERS[name] for name in defaults_of(self.kind)}
        given = data.draw(st.fixed_dictionaries({}, optional=changes), "given")
        self.model = Model(self.kind, leaves, self.chosen, self.copied_to, self.half, given)
        self.optimizer = self.fresh(**given)

    def fresh(self, **given: Any) -> Any:
        """Return a new optimizer of the parameters, in the same groups."""
        group = dict(zip(names_of(self.params), self.chosen, strict=True))
        return getattr(schuss, self.kind)(
            self.params,
            copies=self.copied_to,
            state_dtype="bfloat16" if self.half else None,
            groups=lambda name: OF_GROUPS[group[name]],
            **given,
        )

    def grads(self, seed: int, special: bool) -> tuple[Any, list[Array]]:
        """Return gradients, and their twins."""
        rng = np.random.default_rng(seed)
        leaves = []
        for param in leaves_of(self.params):
            halves = ["float32", *HALVES]
            dtype = "float64" if param.dtype == np.float64 else str(rng.choice(halves))
            leaves.append(some_array(rng, param.shape, dtype_of(dtype), special=special))
        return in_structure(self.params, iter(leaves)), [alike(leaf) for leaf in leaves]

    # Steps.

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=5), special=SELDOM, scale=SCALES)
    def step(self, seeds: list[int], special: bool, scale: float) -> None:
        for seed in seeds:
            grads, twins = self.grads(seed, special)
            self.step_both(grads, twins, scale)
            assert equal(leaves_of(grads), twins)

    def step_both(self, grads: Any, twins: list[Array], scale: float) -> None:
        if (grads is None) == (self.model.waiting == 0):
            with pytest.raises(ValueError, match=r"gradients|accumulated"):
                self.optimizer.step(grads, scale=scale)
            if self.model.waiting:
                self.step_from_the_sum(scale)
            return
        try:
            self.model.step(twins, scale)
        except FloatingPointError:
            with pytest.raises(FloatingPointError, match=r"grads.* has a NaN or an infinity"):
                self.optimizer.step(grads, scale=scale)
            return
        self.optimizer.step(grads, scale=scale)
        self.model.waiting = 0

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=3), special=SELDOM, scale=SCALES)
    def accumulate(self, seeds: list[int], special: bool, scale: float) -> None:
        for seed in seeds:
            grads, twins = self.grads(seed, special)
            self.optimizer.accumulate(grads, scale=scale)
            self.model.accumulate(twins, scale)
            assert equal(leaves_of(grads), twins)

    @rule(scale=SCALES)
    def step_from_the_sum(self, scale: float) -> None:
        self.step_both(None, [] if self.model.sums is None else self.model.sums, scale)

    @rule()
    def zero_grad(self) -> None:
        self.optimizer.zero_grad()
        self.model.waiting = 0

    @rule(data=st.data(), seed=st.integers(0, 99))
    def refused(self, data: st.DataObject, seed: int) -> None:
        grads, _ = self.grads(seed, special=False)
        leaves = leaves_of(grads)
        place = data.draw(st.integers(0, len(leaves) - 1), "place")
        leaf, param = leaves[place], leaves_of(self.params)[place]
        wrong: dict[str, Any] = {
            "shape": np.ones((2, *leaf.shape), leaf.dtype),
            "dtype": np.ones(leaf.shape, np.int64),
            "byte order": leaf.astype(np.dtype("f4").newbyteorder("S")),
            "precision": leaf.astype("f4" if param.dtype == np.float64 else "f8"),
            "a number": 1.5,
            "structure": [leaf, leaf],
            **(
                {"memory": param, "reversed": param[..., ::-1]} if param.ndim and param.size else {}
            ),
        }
        how = data.draw(st.sampled_from([*wrong, "read-only", "scale", "more"]), "how")
        scale: Any = 1.0
        if how == "read-only":
            leaf.flags.writeable = False
            if not self.model.settings["clear_grads"]:
                return
        elif how == "scale":
            scale = data.draw(st.sampled_from([np.nan, np.inf, "1", None]), "scale")
        elif how != "more":
            leaves[place] = wrong[how]
        tree: Any = in_structure(grads, iter(leaves))
        tree = [tree, tree] if how == "more" else tree
        kept = [leaf.tobytes() for leaf in leaves if isinstance(leaf, np.ndarray)]
        call = data.draw(st.sampled_from([self.optimizer.step, self.optimizer.accumulate]), "call")
        with pytest.raises((TypeError, ValueError), match=r"^\w+\.(step|accumulate): .*expected"):
            call(tree, scale=scale)
        assert kept == [leaf.tobytes() for leaf in leaves if isinstance(leaf, np.ndarray)]

    # Settings.

    @rule(data=st.data())
    def set_hyperparameter(self, data: st.DataObject) -> None:
        more = 3 * ["average", "average_bias_correction"]  # between which there is most to do
        name = data.draw(st.sampled_from([*sorted(self.model.settings), *more]), "name")
        value = data.draw(HYPERPARAMETERS[name], "value")
        changed = self.model.settings | {name: value}
        if all(name in own for own in self.model.groups):
            with pytest.raises(ValueError, match=f": {name} is set where each of the . groups has"):
                setattr(self.optimizer, name, value)
        elif self.model.can_take(changed, self.model.groups):
            setattr(self.optimizer, name, value)
            self.model.take(changed, self.model.groups)
        else:
            with pytest.raises(ValueError, match="as state, expected"):
                setattr(self.optimizer, name, value)

    @rule(data=st.data())
    def set_in_a_group(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.model.groups) - 1), "group")
        names = sorted(self.model.settings.keys() - OPTIONS.keys())
        name = data.draw(st.sampled_from(names), "name")
        value = data.draw(HYPERPARAMETERS[name], "value")
        group = self.optimizer.param_groups[place]
        settings, groups = self.model.settings, [dict(own) for own in self.model.groups]
        if len(groups) == 1:
            settings = settings | {name: value}
        else:
            groups[place][name] = value
        if self.model.can_take(settings, groups):
            group[name] = value
            self.model.take(settings, groups)
        else:
            with pytest.raises(ValueError, match="as state, expected"):
                group[name] = value

    @rule(data=st.data(), value=st.sampled_from(NO_VALUES))
    def set_no_value(self, data: st.DataObject, value: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.settings)), "name")
        with pytest.raises((TypeError, ValueError), match=f": {name} is .*expected"):
            setattr(self.optimizer, name, value)
        place = data.draw(st.integers(0, len(self.model.groups) - 1), "group")
        with pytest.raises((TypeError, ValueError), match="expected"):
            self.optimizer.param_groups[place][name] = value

    @rule(seed=SEEDS, special=SELDOM)
    def write_into_all(self, seed: int, special: bool) -> None:
        """The arrays are the user's, who may write to them between steps."""
        rng, optimizer, model = np.random.default_rng(seed), self.optimizer, self.model
        pairs = list(zip(leaves_of(self.params), model.params, strict=True))
        for name, states in model.states.items():
            pairs += zip(leaves_of(optimizer.state[name]), states, strict=True)
        for array, twin in pairs:
            array[...] = twin[...] = abs(numbers(rng, array.shape, array.dtype, special=special))

    @rule(
        threads=st.integers(1, 4),
        level=st.sampled_from(schuss.available_simd()),
        tile=st.sampled_from([1, 64, 1000, 16384]),
    )
    def set_what_bits_do_not_depend_on(self, threads: int, level: str, tile: int) -> None:
        schuss.set_num_threads(threads)
        schuss.set_simd(level)
        _core.set_tile_elements(tile)

    # Copies and checkpoints.

    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle"]))
    def go_on_with_a_copy(self, how: str) -> None:
        if how == "pickle":
            self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        else:
            self.optimizer = getattr(copy, how)(self.optimizer)
        self.params = self.optimizer.params
        self.model.lies_as(leaves_of(self.params))
        self.model.write_copies()
        self.model.last = None

    @rule()
    def keep_the_state_dict(self) -> None:
        self.saved.append((self.optimizer.state_dict(), copy.deepcopy(self.model)))

    @rule(nested=st.booleans())
    def save(self, nested: bool) -> None:
        path = Path(self.folder.name, f"{len(self.saved)}.safetensors")
        extra = {"steps": self.model.steps, "rows": np.arange(3)} if nested else None
        schuss.save(path, self.params, self.optimizer, extra=extra)
        self.saved.append((path, copy.deepcopy(self.model)))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def load(self, data: st.DataObject, fresh: bool) -> None:
        """Whatever the optimizer is now, or a new one, is then what it was."""
        what, model = data.draw(st.sampled_from(self.saved[::-1]), "saved")
        if fresh:
            rng = np.random.default_rng(model.steps)
            leaves = [some_array(rng, p.shape, p.dtype) for p in leaves_of(self.params)]
            self.params = in_structure(self.params, iter(leaves))
            self.model.params = [alike(leaf) for leaf in leaves]
            self.optimizer, self.model.last = self.fresh(), None
        if isinstance(what, Path):
            extra = schuss.load(what, self.params, self.optimizer)
            assert not extra or (extra["steps"], extra["rows"].tolist()) == (model.steps, [0, 1, 2])
        else:
            self.optimizer.load_state_dict(what)
        self.model.load(model, params=isinstance(what, Path))

    # What is always true.

    @invariant()
    def is_its_model(self) -> None:
        optimizer, model = self.optimizer, self.model
        assert equal(leaves_of(self.params), model.params)
        assert list(optimizer.state) == list(model.states)
        for name, states in model.states.items():
            assert equal(leaves_of(optimizer.state[name]), states), name
        assert (optimizer.steps, optimizer.skipped) == (model.steps, model.skipped)
        assert optimizer.accumulated == model.waiting
        average = model.average()
        if average is None:
            assert optimizer.average is None
        else:
            assert equal(leaves_of(optimizer.average), average)
        if model.copies:
            assert equal(leaves_of(optimizer.copies), model.copies)
        self.has_the_settings()
        self.has_the_outcome()

    def has_the_settings(self) -> None:
        optimizer, model = self.optimizer, self.model
        for name, value in model.settings.items():
            if name != "average":
                assert getattr(optimizer, name) == value, name
        assert len(optimizer.param_groups) == len(model.groups)
        for place, group in enumerate(optimizer.param_groups):
            values = model.of_group(place)
            assert {name: group[name] for name in group if name != "params"} == {
                name: value for name, value in values.items() if name not in OPTIONS
            }
        rates = [model.of_group(place)["lr"] for place in range(len(model.groups))]
        rates = [lr(max(model.steps, 1)) if callable(lr) else lr for lr in rates]
        assert [group.lr_now for group in optimizer.param_groups] == rates
        of_all = next((i for i, own in enumerate(model.groups) if "lr" not in own), 0)
        assert optimizer.lr_now == rates[of_all]

    def has_the_outcome(self) -> None:
        last = self.optimizer.last
        if self.model.last is None:
            assert last is None
            return
        norm, clipped, skipped = self.model.last
        assert (last.clipped, last.skipped) == (clipped, skipped)
        both_nan = norm is not None and isnan(norm) and isnan(last.grad_norm)
        assert both_nan or last.grad_norm == norm


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("kind", DEFAULTS)
def test_an_optimizer_is_its_model_whatever_is_done(kind: str) -> None:
    make: Any = partial(Training, kind)
    run_state_machine_as_test(make, settings=settings(30, stateful_step_count=30))


# Functions of what is given alone.


@settings(150)
@given(
    data=st.data(),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([np.float32, np.float64]),
    beta=FRACTIONS,
    corrected=st.booleans(),
    seed=SEEDS,
)
def test_averages_of_series_are_the_references(
    data: st.DataObject, shape: tuple[int, ...], dtype: Any, beta: float, corrected: bool, seed: int
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1), "axis")
    rng = np.random.default_rng(seed)
    series = some_array(rng, shape, dtype, special=seed % 2 == 1)
    out = data.draw(
        st.sampled_from([None, series, series[::-1], some_array(rng, shape, dtype)]), "out"
    )
    expected = reference.ewma(series.copy(), beta, bias_correction=corrected, axis=axis)
    got = schuss.ewma(series, beta, bias_correction=corrected, axis=axis, out=out)
    assert out is None or got is out
    assert same_bits(got, expected)


@pytest.mark.usefixtures("quick_disk")
@settings(150)
@given(schedule=any_schedule(), t=st.lists(st.integers(1, 40) | st.floats(1, 40), max_size=9))
def test_schedules_have_the_same_rates_whoever_asks_and_wherever_they_were(
    schedule: schedules.Schedule, t: list[float]
) -> None:
    rates = [schedule(each) for each in t]
    assert all(0 <= rate < np.inf for rate in rates)
    assert schedule(np.array(t)).tolist() == [schedule(each) for each in np.array(t).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        path, w = Path(folder, "w"), np.zeros(1)
        schuss.save(path, w, schuss.SGD(w, lr=schedule))
        optimizer: Any = schuss.SGD(w)
        schuss.load(path, w, optimizer)
    for other in (optimizer.lr, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert [other(each) for each in t] == rates
        assert other == schedule


@settings(150)
@given(
    data=st.data(),
    examples=st.integers(1, 200),
    size=st.one_of(st.integers(1, 220), st.sampled_from(["auto", None])),
    options=st.fixed_dictionaries(
        {},
        optional={
            "shuffle": st.booleans(),
            "drop_last": st.booleans(),
            "prefetch": st.integers(0, 3),
            "reuse_buffers": st.booleans(),
            "rng": SEEDS,
        },
    ),
)
def test_batches_are_each_example_once_and_go_on_from_where_they_were(
    data: st.DataObject, examples: int, size: Any, options: dict[str, Any]
) -> None:
    def cut() -> Any:
        x, y = np.arange(3 * examples).reshape(examples, 3), np.arange(examples)
        return schuss.minibatches(x, y, batch_size=size, **options)

    batches, before = cut(), data.draw(st.integers(0, 2), "epochs before")
    for _ in range(before):
        seen = np.concatenate([y for _, y in batches] or [np.arange(0)])
        left_out = examples % batches.batch_size if options.get("drop_last") else 0
        assert len(set(seen.tolist())) == len(seen) == examples - left_out
    epoch = iter(batches)
    for _ in range(data.draw(st.integers(0, len(batches)), "batches of this one")):
        next(epoch)
    state = json.loads(json.dumps(batches.state_dict()))
    other = cut()
    other.load_state_dict(state)
    begun = state["epoch"] is not None
    rest = [*epoch] if begun else []
    for expected in ([rest] if begun else []) + [[*batches] for _ in range(2)]:
        got = [*other]
        assert len(got) == len(expected)
        for (x, y), (its_x, its_y) in zip(got, expected, strict=True):
            assert (x[:, 0] == 3 * y).all()
            assert (x.tolist(), y.tolist()) == (its_x.tolist(), its_y.tolist())


# Files that are not what was saved.


class Saved:
    """A checkpoint's bytes, and what they are to be loaded into."""

    def __init__(self) -> None:
        self.params: Any = {"W": np.ones((3, 4), np.float32), "b": np.ones(3)}
        self.optimizer = schuss.Adam(
            self.params, lr=schedules.WarmUp(0.1, 3), average=0.5, groups=self.group
        )
        self.batches = schuss.minibatches(np.arange(10), batch_size=3, rng=0)
        self.grads: Any = {"W": np.ones((3, 4), np.float32), "b": np.ones(3)}
        self.optimizer.step(self.grads)
        self.optimizer.accumulate(self.grads)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "a checkpoint")
        self.save()
        self.bytes = self.path.read_bytes()

    @staticmethod
    def group(name: str) -> dict[str, Any]:
        return {"lr": schedules.Cosine(0.1, 7)} if name == "b" else {}

    def save(self) -> None:
        extra = {"rng": np.random.default_rng(0).bit_generator.state, "rows": np.arange(3)}
        schuss.save(self.path, self.params, self.optimizer, batches=self.batches, extra=extra)

    def known(self) -> bytes:
        return pickle.dumps((self.params, self.optimizer.state_dict(), self.batches.state_dict()))

    def load(self, content: bytes) -> bool:
        """Return whether these bytes were loaded; nothing is changed if they were refused."""
        self.path.write_bytes(content)
        self.params["W"] += 1  # so that nothing is as it was saved
        self.optimizer.zero_grad()
        self.optimizer.step(self.grads)
        next(iter(self.batches))
        before, refusal = self.known(), ""
        tracemalloc.start()
        try:
            schuss.load(self.path, self.params, self.optimizer, batches=self.batches)
        except ValueError as error:
            refusal = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 32 << 20
        about = (f"load: {str(self.path)!r}", "load: lr is ")  # which is an argument
        assert not refusal or (refusal.startswith(about) and self.known() == before)
        assert len(refusal) < 2000
        return not refusal

    def back(self) -> None:
        """Make all what it was when it was saved."""
        self.path.write_bytes(self.bytes)
        schuss.load(self.path, self.params, self.optimizer, batches=self.batches)

    def works(self) -> None:
        """Check that all that was loaded can be used: none of it has what only an attack has."""
        assert len(repr(self.optimizer)) < 2000
        self.optimizer.zero_grad()
        with suppress(ValueError):  # of a schedule without a valid rate, or too many steps
            self.optimizer.step(self.grads)
        schedules.feed([self.optimizer.lr], 1.0)
        next(iter(self.batches))
        self.save()


@pytest.fixture(scope="module")
def saved() -> Iterator[Saved]:
    it = Saved()
    yield it
    it.folder.cleanup()


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw what is left of the bytes: cut, with bytes changed, left out, put in, or exchanged."""
    size = len(content)
    for _ in range(draw(st.integers(1, 3))):
        # Half of the damage is to the header's beginning, where its length is.
        place = draw(st.one_of(st.integers(0, 12), st.integers(0, size)))
        end = draw(st.sampled_from([place + 1, place + 8, size]))
        new = draw(st.binary(max_size=12))
        how = draw(st.sampled_from(["flip", "replace", "insert", "delete", "cut"]))
        if how == "flip" and place < len(content):
            flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
        elif how == "replace":
            content = content[:place] + new + content[place + len(new) :]
        elif how == "insert":
            content = content[:place] + new + content[place:]
        else:
            content = content[:place] + content[end if how == "delete" else size :]
    return content


@settings(400)
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    saved: Saved, data: st.DataObject
) -> None:
    content = data.draw(damages(saved.bytes))
    assert saved.load(content) == (content == saved.bytes)


@settings(100)
@given(length=st.integers(0, 2**64 - 1) | st.integers(0, 4000), rest=st.binary(max_size=200))
def test_any_bytes_are_refused(saved: Saved, length: int, rest: bytes) -> None:
    assert not saved.load(length.to_bytes(8, "little") + rest)
    assert not saved.load(rest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def test_sealed_files_are_those_that_are_saved(saved: Saved) -> None:
    """Or all would be refused for their digest, and nothing behind it be tried."""
    assert with_digest(*split_file(saved.bytes)) == saved.bytes


def nested(depth: int) -> Any:
    return [] if depth == 0 else [nested(depth - 1)]


HOSTILE: list[Any] = [
    *(10**4000, 10**400, 2**64, 2**53, 2**53 - 1, 2**31, -1, 0, 1, 0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), True, None, "", "x" * 1000, [], {}, [0, 0]),
    *(nested(99), nested(400), warm_ups(2), warm_ups(33), warm_ups(330), chains(3), chains(60)),
    *({"schuss.same": 0}, {"schuss.function": "f"}, {"schuss.array": "settings/0"}),
]


@st.composite
def tellings(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with a digest that is right, and something else in its header or settings."""
    header, tensors = split_file(content)
    original, offsets = header["__metadata__"]["settings"], data_offsets(header)
    told = json.loads(original)
    for _ in range(draw(st.integers(0, 2))):
        changed = draw(st.sampled_from([told, told, told, header]))
        *path, key = draw(st.sampled_from(paths_in(changed) or [("new",)]))
        container = value_at(changed, path)
        inner = [value_at(changed, each) for each in paths_in(changed)]
        how = draw(st.sampled_from(["left out", "hostile", "JSON", "exchanged"]))
        if how == "left out":
            del container[key]
        else:
            new = {"hostile": HOSTILE, "exchanged": inner}.get(how)
            value = draw(JSON if new is None else st.sampled_from(new))
            container[key] = copy.deepcopy(value)
        if not told or not isinstance(header.get("__metadata__"), dict):
            break
    for lying in (None, offsets):  # as the header says, or where it says what cannot be
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            if header["__metadata__"].get("settings") == original:
                header["__metadata__"]["settings"] = json.dumps(told)
            return with_digest(header, tensors, lying)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + tensors


@settings(600)
@given(data=st.data())
def test_a_checkpoint_that_says_something_else_is_loaded_whole_or_refused(
    saved: Saved, data: st.DataObject
) -> None:
    try:
        if saved.load(data.draw(tellings(saved.bytes), "file")):
            saved.works()
    finally:
        saved.back()


# Checkpoints of `fit` that are not what was saved.


class Fitted:
    """A checkpoint of `fit`, and the training that goes on from it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "c")
        self.fit(2)
        self.bytes = self.path.read_bytes()

    def fit(self, epochs: int) -> schuss.History:
        w = np.zeros((1, 1))
        optimizer = schuss.Momentum(w, lr=schedules.ReduceOnPlateau(0.1))
        self.trained = w, optimizer
        return schuss.fit(
            lambda w, x: (1.0 - w[0, 0], np.ones((1, 1))),
            w,
            optimizer,
            np.ones((20, 1)),
            batch_size=5,
            epochs=epochs,
            rng=0,
            patience=3,
            validation=lambda w: -w[0, 0],
            restore_best=True,
            checkpoint=self.path,
            progress=False,
        )


@pytest.fixture(scope="module")
def fitted() -> Iterator[Fitted]:
    it = Fitted()
    yield it
    it.folder.cleanup()


@settings(200)
@given(data=st.data())
def test_fit_goes_on_from_what_a_checkpoint_says_or_refuses_it(
    fitted: Fitted, data: st.DataObject
) -> None:
    fitted.path.write_bytes(data.draw(tellings(fitted.bytes), "file"))
    refusal = ""
    try:
        history = fitted.fit(3)
    except ValueError as error:
        refusal = str(error)
    if not refusal:
        assert (history.steps, history.epochs) == (12, 3)
        assert len(repr(history)) < 2000
        assert history.to_dict()
        return
    w, optimizer = fitted.trained
    assert refusal.startswith((f"fit: {str(fitted.path)!r}", "fit: lr is "))
    assert (w[0, 0], optimizer.steps) == (0, 0)
