"""Random calls, files and series: an optimizer is always what its reference is.

The long form draws new examples each time, here 100 times more:
`SCHUSS_FUZZ=100 pytest tests/test_fuzz.py`.
"""

import copy
import json
import os
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
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
from schuss import _core, reference, schedules
from schuss._arrays import memory_order
from support.arrays import (
    LAYOUTS,
    Array,
    copy_in_order,
    dtype_of,
    equal,
    laid_out,
    leaves,
    numbers,
    same_bits,
)
from support.cases import SECOND_MOMENTS
from support.execution import execution
from support.files import (
    chains,
    data_offsets,
    paths_in,
    split_file,
    value_at,
    warm_ups,
    with_digest,
)
from support.optimizers import (
    KINDS,
    OPTIONS,
    OPTIONS_BY_GROUP,
    assert_same,
    assert_same_outcome,
    make_optimizer,
    make_reference,
)

TIMES = int(os.environ.get("SCHUSS_FUZZ", "1"))
# Explaining a failure takes longer than finding it.
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


COMPLEX = ["complex64", "complex128"]
HALVES = ["float16", *(["bfloat16"] if find_spec("ml_dtypes") else [])]

# Formats of the parameters of one optimizer, and how those in bfloat16 are rounded.
FORMATS = [["float32", "float64", *HALVES], ["float32", *HALVES], ["float32", HALVES[-1]]]
ROUNDED = [{}, {"master": "float32"}, {"master": "float24"}, {"round_params": "random"}]

# Hyperparameters of groups.
OF_GROUPS: list[dict[str, Any]] = [
    *({}, {"lr": 0.5}, {"weight_decay": 0.25}),
    {"maximize": True, "bounds": (-0.5, None)},
]


def bound_to(arrays: list[Array], optimizer: reference.Optimizer) -> reference.Optimizer:
    """Return a copy of the optimizer whose parameters are these arrays."""
    own = leaves(optimizer.params)
    memo: dict[int, Any] = {id(old): new for old, new in zip(own, arrays, strict=True)}
    bound = copy.deepcopy(optimizer, memo)
    if list(map(memory_order, own)) != list(map(memory_order, arrays)):
        bound.load_state(optimizer.state)  # blocks of it are in the order of the arrays
    return bound


def write(arrays: list[Array], values: list[Array]) -> None:
    for array, value in zip(arrays, values, strict=True):
        array[...] = value


# What is drawn.

SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (17,), (65,), (3, 5), (2, 0, 3), (7, 1, 9), (4, 3, 2, 2)]),
    st.sampled_from([(4097,), (33, 130)]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
FRACTIONS = st.one_of(
    st.sampled_from([0.0, 0.5, 0.9, 1 - 2**-53]), st.floats(1e-30, 1).map(lambda f: f * 0.999)
)
# 0, or a normal number of float32.
SMALL = st.one_of(st.sampled_from([0.0, 1e-8, 0.1]), st.floats(1e-30, 10))
SCALES = st.one_of(st.sampled_from([1.0, 1.0, 1 / 3, 2.0**-16, 0.0]), st.floats(-1e3, 1e3))


@st.composite
def any_schedule(draw: st.DrawFn, depth: int = 0) -> schedules.Schedule:
    """Draw a schedule without state."""
    rates, steps, build = st.floats(0, 2), st.integers(1, 9), st.builds
    again = st.integers(1, 3), st.floats(0, 1)
    kinds: list[Any] = [
        build(schedules.Constant, rates),
        build(schedules.InverseTime, rates, rates),
        build(schedules.Exponential, rates, st.floats(0, 1)),
        build(schedules.InverseSqrt, rates, rates),
        build(schedules.Staircase, rates, steps, rates),
        build(schedules.Linear, rates, rates, steps),
        build(schedules.Polynomial, rates, rates, steps, st.floats(0.1, 4)),
        build(schedules.Cosine, rates, steps, rates),
        build(schedules.CosineRestarts, rates, steps, rates, *again),
        build(schedules.OneCycle, rates, st.integers(2, 9), st.floats(0.01, 0.49)),
        build(lambda later: schedules.Manual({1: 0.5, 4: later}), rates),
    ]
    if depth < 2:
        inner = st.one_of(rates, any_schedule(depth + 1))
        kinds += [
            build(schedules.WarmUp, inner, steps, rates),
            build(schedules.PerEpoch, any_schedule(depth + 1), steps),
            build(lambda a, b, t: schedules.chain([a, b], [t]), inner, inner, steps),
        ]
    schedule: schedules.Schedule = draw(st.one_of(kinds))
    return schedule


HYPERPARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 10), any_schedule()),
    "nonfinite": st.sampled_from(["propagate", "raise", "skip"]),
    "seed": st.integers(0, 9),
    "initial_accumulator_value": SMALL,
    **dict.fromkeys(
        ("weight_decay", "eps", "eps_root", "eps_hat", "lr_decay", "momentum_decay"), SMALL
    ),
    **dict.fromkeys(("clip_norm", "clip_value"), st.one_of(st.none(), SMALL)),
    **dict.fromkeys(("dampening", "average"), st.one_of(st.none(), FRACTIONS)),
    **dict.fromkeys(("beta", "beta1", "beta2", "rho", "momentum"), FRACTIONS),
    **dict.fromkeys(("nesterov", "lr_in_velocity", "bias_correction"), st.booleans()),
    **dict.fromkeys(("centered", "amsgrad", "decoupled_weight_decay"), st.booleans()),
    **dict.fromkeys(
        ("clear_grads", "average_bias_correction", "frozen", "maximize", "track_norms"),
        st.booleans(),
    ),
    "bounds": st.sampled_from([None, (-0.5, 0.5), (None, 0.25), (0.0, None), (0.1, 0.1)]),
}
SEEDS = st.integers(0, 2**16)
# A dtype that gradients of these parameters must not have.
TOO_WIDE = {"float64": np.longdouble, "complex64": np.complex128, "complex128": np.clongdouble}
TOO_WIDE |= dict.fromkeys(["float32", *HALVES], np.float64)
ORDERED = ("clip_value", "bounds")
SELDOM = st.sampled_from([False, False, False, True])
NO_VALUES: list[Any] = ["0.5", -1.0, np.nan, [], 1j, {}]


@st.composite
def structures(draw: st.DrawFn, arrays: list[Any], depth: int = 0) -> Any:
    """Draw lists, tuples and dicts of the arrays, in their order."""
    if len(arrays) == 1 and (depth > 1 or draw(st.booleans())):
        return arrays[0]
    count = draw(st.integers(1, len(arrays))) if depth < 2 else len(arrays)
    cuts = [len(arrays) * i // count for i in range(count + 1)]
    parts = [arrays[a:b] for a, b in pairwise(cuts)]
    items = [draw(structures(part, depth + 1)) for part in parts]
    kind = draw(st.sampled_from([list, tuple, dict]))
    return {f"k{i}": item for i, item in enumerate(items)} if kind is dict else kind(items)


def in_structure(tree: Any, arrays: Iterator[Any]) -> Any:
    """Return the structure with other leaves."""
    if isinstance(tree, dict):
        return {key: in_structure(child, arrays) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([in_structure(child, arrays) for child in tree])
    return next(arrays)


def names_of(tree: Any, name: str = "") -> list[str]:
    if not isinstance(tree, dict | list | tuple):
        return [name]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        n for key, child in items for n in names_of(child, f"{name}/{key}" if name else str(key))
    ]


def some_array(rng: np.random.Generator, shape: Any, dtype: Any, *, special: bool = False) -> Array:
    """Return random numbers in a random layout."""
    layout = str(rng.choice(LAYOUTS)) if shape else "c"
    return laid_out(numbers(rng, shape, dtype, special=special), layout)


def copied(grad: Any) -> Any:
    """Return a copy of a gradient: an array, rows, or None."""
    if isinstance(grad, schuss.Rows):
        return schuss.Rows(grad.indices, grad.values.copy())
    return None if grad is None else copy_in_order(grad)


def has_second_moment(kind: str) -> bool:
    return bool(SECOND_MOMENTS.intersection(KINDS[kind].states))


# The machine.


class Training(RuleBasedStateMachine):
    """An optimizer and its reference, to which the same is done."""

    optimizer: Any
    params: Any
    model: reference.Optimizer

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.refuses = kind, KINDS[kind].refuses
        self.saved: list[tuple[Any, reference.Optimizer]] = []
        self.until_teardown = ExitStack()
        self.folder = self.until_teardown.enter_context(tempfile.TemporaryDirectory())
        threads = schuss.num_threads()
        self.until_teardown.enter_context(execution(threads=threads, tile=64, threshold=0))

    def teardown(self) -> None:
        self.until_teardown.close()

    @initialize(data=st.data(), seed=SEEDS)
    def make(self, data: st.DataObject, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=5), "shapes")
        self.copies = data.draw(st.sampled_from([None, None, *HALVES]), "copies")
        modes = ["components", "modulus"][: 1 + has_second_moment(self.kind)]
        # None: the parameters are real.
        may_be_complex = not self.copies and self.refuses.isdisjoint(COMPLEX)
        self.complex = (
            data.draw(st.sampled_from([None, *modes]), "complex") if may_be_complex else None
        )
        names = ["float32"] if self.copies else data.draw(st.sampled_from(FORMATS), "formats")
        names = names + COMPLEX * (self.complex is not None)
        dtypes = [data.draw(st.sampled_from(names), "dtype") for _ in shapes]
        can_be_low = "bfloat16" in HALVES and {"float32", *HALVES}.issuperset(dtypes)
        can_be_low = can_be_low and "state_dtype" not in self.refuses
        of_state = [None, *["bfloat16", "8bit"] * can_be_low]
        self.formats = {"state_dtype": data.draw(st.sampled_from(of_state), "state_dtype")}
        if "bfloat16" in dtypes and {"float32", "bfloat16"}.issuperset(dtypes):
            self.formats |= data.draw(st.sampled_from(ROUNDED), "rounding")
        arrays = [self.some_param(rng, s, dtype_of(d)) for s, d in zip(shapes, dtypes, strict=True)]
        self.params = data.draw(structures(arrays), "structure")
        last = len(OF_GROUPS) - 1 - bool(self.complex)  # complex numbers have no bounds
        groups = st.lists(st.integers(0, last), min_size=len(arrays), max_size=len(arrays))
        drawn = data.draw(groups, "groups")
        self.group_of = dict(zip(names_of(self.params), drawn, strict=True))
        names = [*KINDS[self.kind].defaults, *OPTIONS]
        settings = {name: self.values_of(name) for name in names}
        given = data.draw(st.fixed_dictionaries({}, optional=settings), "given")
        self.optimizer = self.made(make_optimizer, self.params, given)
        copied = in_structure(self.params, map(copy_in_order, arrays))
        self.model = self.made(make_reference, copied, given)

    def made(self, make: Callable[..., Any], params: Any, given: dict[str, Any]) -> Any:
        """Return an optimizer or a reference of the parameters, in the same groups."""
        return make(
            self.kind,
            params,
            copies=self.copies,
            **self.formats,
            complex=self.complex or "components",
            groups=lambda name: OF_GROUPS[self.group_of[name]],
            **given,
        )

    def some_param(self, rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
        array = some_array(rng, shape, dtype)
        return np.array(array, order="C") if "strides" in self.refuses else array

    def values_of(self, name: str) -> st.SearchStrategy[Any]:
        """Return the values of a setting; complex numbers have no order."""
        return st.none() if self.complex and name in ORDERED else HYPERPARAMETERS[name]

    def grads(self, seed: int, special: bool, *, gaps: bool = True) -> tuple[Any, Any]:
        """Return gradients, and a copy for the reference; with gaps, some are None or rows."""
        rng = np.random.default_rng(seed)
        arrays: list[Any] = []
        for param in leaves(self.params):
            if gaps and len(leaves(self.params)) > 1 and rng.random() < 0.1:
                arrays.append(None)
                continue
            dtypes = ["float32", *HALVES, *["float64"] * (param.dtype == np.float64)]
            if param.dtype.kind == "c":
                dtypes = ["complex64", param.dtype.name]
            dtype = dtype_of(str(rng.choice(dtypes)))
            if gaps and param.ndim and rng.random() < 0.2:
                indices = rng.integers(0, len(param), rng.integers(4) * bool(len(param)))
                shape = len(indices), *param.shape[1:]
                values = some_array(rng, shape, dtype, special=special)
                arrays.append(schuss.Rows(indices, values))
            else:
                arrays.append(some_array(rng, param.shape, dtype, special=special))
        copies = map(copied, arrays)
        return in_structure(self.params, iter(arrays)), in_structure(self.params, copies)

    def assert_same_grads(self, grads: Any, copies: Any) -> None:
        some, others = ([grad for grad in leaves(t) if grad is not None] for t in (grads, copies))
        assert equal(*([getattr(grad, "values", grad) for grad in each] for each in (some, others)))

    # Steps.

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=5), special=SELDOM, scale=SCALES)
    def step(self, seeds: list[int], special: bool, scale: float) -> None:
        for seed in seeds:
            grads, copies = self.grads(seed, special)
            self.step_both(grads, copies, scale)
            self.assert_same_grads(grads, copies)

    def step_both(self, grads: Any, copies: Any, scale: float) -> None:
        if (grads is None) == (self.model.accumulated == 0):
            with pytest.raises(ValueError, match=r"gradients|accumulated"):
                self.optimizer.step(grads, scale=scale)
            if self.model.accumulated:
                self.step_from_the_sum(scale)
            return
        try:
            self.model.step(copies, scale=scale)
        except FloatingPointError:
            with pytest.raises(FloatingPointError, match=r"grads.* has a NaN or an infinity"):
                self.optimizer.step(grads, scale=scale)
            return
        self.optimizer.step(grads, scale=scale)

    @rule(seeds=st.lists(SEEDS, min_size=1, max_size=3), special=SELDOM, scale=SCALES)
    def accumulate(self, seeds: list[int], special: bool, scale: float) -> None:
        for seed in seeds:
            grads, copies = self.grads(seed, special)
            self.optimizer.accumulate(grads, scale=scale)
            self.model.accumulate(copies, scale=scale)
            self.assert_same_grads(grads, copies)

    @rule(scale=SCALES)
    def step_from_the_sum(self, scale: float) -> None:
        self.step_both(None, None, scale)

    @rule()
    def zero_grad(self) -> None:
        self.optimizer.zero_grad()
        self.model.zero_grad()

    @rule(data=st.data(), seed=st.integers(0, 99))
    def refused(self, data: st.DataObject, seed: int) -> None:
        if any(own.get("frozen") for own in self.model.groups):
            return  # their gradients are not read
        grads, _ = self.grads(seed, special=False, gaps=False)
        arrays = leaves(grads)
        index = data.draw(st.integers(0, len(arrays) - 1), "index")
        array, param = arrays[index], leaves(self.params)[index]
        wrong: dict[str, Any] = {
            "shape": np.ones((2, *array.shape), array.dtype),
            "dtype": np.ones(array.shape, np.int64),
            "byte order": array.astype(np.dtype("c8").newbyteorder("S")),
            "precision": array.astype(TOO_WIDE[param.dtype.name]),
            "a number": 1.5 if param.ndim else "1.5",
            "structure": [array, array],
        }
        if param.ndim and param.size:
            wrong |= {"memory": param, "reversed": param[..., ::-1]}
        how = data.draw(st.sampled_from([*wrong, "read-only", "scale", "more"]), "how")
        scale: Any = 1.0
        if how == "read-only":
            if not self.model.settings["clear_grads"]:
                return
            array.flags.writeable = False
        elif how == "scale":
            scale = data.draw(st.sampled_from([np.nan, np.inf, "1", None]), "scale")
        elif how != "more":
            arrays[index] = wrong[how]
        tree: Any = in_structure(grads, iter(arrays))
        call = data.draw(st.sampled_from([self.optimizer.step, self.optimizer.accumulate]), "call")
        before = pickle.dumps(arrays)
        with pytest.raises((TypeError, ValueError), match=r"^\w+\.(step|accumulate): .*expected"):
            call([tree, tree] if how == "more" else tree, scale=scale)
        assert pickle.dumps(arrays) == before

    # Settings.

    def change_both(self, change: Callable[[], None], group: int | None, **changes: Any) -> None:
        """Change a setting, unless the groups would then need different states."""
        try:
            self.model.set(group=group, **changes)
        except ValueError:
            with pytest.raises(ValueError, match="as state, expected"):
                change()
        else:
            change()

    @rule(data=st.data())
    def set_hyperparameter(self, data: st.DataObject) -> None:
        # What can be done with averages has the most cases.
        more = 3 * ["average", "average_bias_correction"]
        name = data.draw(st.sampled_from([*sorted(self.model.settings), *more]), "name")
        value = data.draw(self.values_of(name), "value")
        if all(name in own for own in self.model.groups):
            with pytest.raises(ValueError, match=f": {name} is set where each of the . groups has"):
                setattr(self.optimizer, name, value)
        else:
            self.change_both(partial(setattr, self.optimizer, name, value), None, **{name: value})

    @rule(data=st.data())
    def set_in_a_group(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.model.groups) - 1), "group")
        names = sorted([*KINDS[self.kind].defaults, *OPTIONS_BY_GROUP, "frozen"])
        name = data.draw(st.sampled_from(names), "name")
        value = data.draw(self.values_of(name), "value")
        group = self.optimizer.param_groups[index]
        self.change_both(partial(group.__setitem__, name, value), index, **{name: value})

    @rule(data=st.data(), value=st.sampled_from(NO_VALUES))
    def set_no_value(self, data: st.DataObject, value: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.settings)), "name")
        with pytest.raises((TypeError, ValueError), match=f": {name} is .*expected"):
            setattr(self.optimizer, name, value)
        index = data.draw(st.integers(0, len(self.model.groups) - 1), "group")
        with pytest.raises((TypeError, ValueError), match="expected"):
            self.optimizer.param_groups[index][name] = value

    @rule(seed=SEEDS, special=SELDOM)
    def write_into_all(self, seed: int, special: bool) -> None:
        """Users may write to the arrays between steps."""
        rng, optimizer, model = np.random.default_rng(seed), self.optimizer, self.model

        def values(tree: Any) -> list[Array]:
            arrays = leaves(tree)
            return [abs(numbers(rng, each.shape, each.dtype, special=special)) for each in arrays]

        new = values(self.params)
        write(leaves(self.params), new)
        write(leaves(model.params), new)
        state = {name: values(tree) for name, tree in model.state.items()}
        trees = {name: in_structure(self.params, iter(each)) for name, each in state.items()}
        model.load_state(trees)
        if self.formats["state_dtype"] == "8bit":
            optimizer.load_state_dict(optimizer.state_dict() | {"state": trees})
            model.write_copies()
            return
        for name, arrays in state.items():
            write(leaves(optimizer.state[name]), arrays)

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
        # The memory order of the parameters, which may be another now, decides the order of
        # additions and the random bits.
        arrays, values = list(map(copy_in_order, leaves(self.params))), leaves(self.model.params)
        write(arrays, values)
        self.rebind(arrays, self.model)

    def rebind(self, arrays: list[Array], model: reference.Optimizer) -> None:
        """Go on with a copy of that reference, on these arrays, before its first step."""
        self.model = bound_to(arrays, model)
        self.model.write_copies()
        self.model.last = None

    def copied_model(self) -> reference.Optimizer:
        """Return a copy, whose parameters have the same order in memory, as their blocks have."""
        return bound_to(list(map(copy_in_order, leaves(self.model.params))), self.model)

    @rule()
    def keep_the_state_dict(self) -> None:
        self.saved.append((self.optimizer.state_dict(), self.copied_model()))

    @rule(nested=st.booleans())
    def save(self, nested: bool) -> None:
        path = Path(self.folder, f"{len(self.saved)}.safetensors")
        extra = {"steps": self.model.steps, "rows": np.arange(3)} if nested else None
        schuss.save(path, self.params, self.optimizer, extra=extra)
        self.saved.append((path, self.copied_model()))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def load(self, data: st.DataObject, fresh: bool) -> None:
        """The optimizer, or a new one, is then what it was when it was saved."""
        source, model = data.draw(st.sampled_from(self.saved[::-1]), "saved")
        arrays, last = leaves(self.model.params), self.model.last
        if fresh:
            rng = np.random.default_rng(model.steps)
            new = [self.some_param(rng, p.shape, p.dtype) for p in leaves(self.params)]
            self.params = in_structure(self.params, iter(new))
            self.optimizer = self.made(make_optimizer, self.params, {})
            arrays, last = list(map(copy_in_order, new)), None
        if isinstance(source, Path):
            extra = schuss.load(source, self.params, self.optimizer)
            assert not extra or (extra["steps"], extra["rows"].tolist()) == (model.steps, [0, 1, 2])
            write(arrays, leaves(model.params))
        else:
            self.optimizer.load_state_dict(source)
        self.rebind(arrays, model)
        self.model.last = last

    # What is always true.

    @invariant()
    def is_its_model(self) -> None:
        self.optimizer.flush()
        assert_same(self.optimizer, self.model)
        assert_same_outcome(self.optimizer, self.model)
        optimizer, model = self.optimizer, self.model
        for name, value in model.settings.items():
            if name != "average":
                assert getattr(optimizer, name) == value, name
        groups = [{"frozen": False} | model.settings | own for own in model.groups]
        assert len(optimizer.param_groups) == len(groups)
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            assert {name: group[name] for name in group if name != "params"} == {
                name: value
                for name, value in values.items()
                if name in OPTIONS_BY_GROUP or name not in OPTIONS
            }
        rates = [values["lr"] for values in groups]
        rates = [lr(max(model.steps, 1)) if callable(lr) else lr for lr in rates]
        assert [group.lr_now for group in optimizer.param_groups] == rates
        first = next((i for i, own in enumerate(model.groups) if "lr" not in own), 0)
        assert optimizer.lr_now == rates[first]


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_is_its_reference_after_any_calls(kind: str) -> None:
    make: Any = partial(Training, kind)
    run_state_machine_as_test(make, settings=settings(30, stateful_step_count=30))


# Functions without state.


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
def test_schedules_have_the_same_rates_for_arrays_and_after_copying_and_loading(
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


# Checkpoints that are not what was saved.


class Saved:
    """A checkpoint's bytes, and a training into which they are loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.params: Any = {"W": np.ones((3, 4), np.float32), "b": np.ones(3)}
        self.optimizer = schuss.Adam(
            self.params, lr=schedules.WarmUp(0.1, 3), average=0.5, groups=self.group
        )
        self.batches = schuss.minibatches(np.arange(10), batch_size=3, rng=0)
        self.grads: Any = {"W": np.ones((3, 4), np.float32), "b": np.ones(3)}
        self.optimizer.step(self.grads)
        self.optimizer.accumulate(self.grads)
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
        """Return whether these bytes were loaded, and check that a refusal changes nothing."""
        self.path.write_bytes(content)
        self.params["W"] += 1  # so that the training differs from the checkpoint
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
        about = (f"load: {str(self.path)!r}", "load: lr is ")  # lr is an argument
        assert not refusal or (refusal.startswith(about) and self.known() == before)
        assert len(refusal) < 2000
        return not refusal

    def back(self) -> None:
        """Load the checkpoint as it was saved."""
        self.path.write_bytes(self.bytes)
        schuss.load(self.path, self.params, self.optimizer, batches=self.batches)

    def works(self) -> None:
        """Check that what was loaded can be used."""
        assert len(repr(self.optimizer)) < 2000
        self.optimizer.zero_grad()
        with suppress(ValueError):  # a schedule without a valid rate, or too many steps
            self.optimizer.step(self.grads)
        schedules.feed([self.optimizer.lr], 1.0)
        next(iter(self.batches))
        self.save()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved") / "a checkpoint")


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw damaged bytes: cut, with bits flipped, bytes replaced, inserted or deleted."""
    size = len(content)
    for _ in range(draw(st.integers(1, 3))):
        # Half of the damage is at the beginning, where the length of the header is.
        start = draw(st.one_of(st.integers(0, 12), st.integers(0, size)))
        end = draw(st.sampled_from([start + 1, start + 8, size]))
        new = draw(st.binary(max_size=12))
        how = draw(st.sampled_from(["flip", "replace", "insert", "delete", "cut"]))
        if how == "flip" and start < len(content):
            flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        elif how == "replace":
            content = content[:start] + new + content[start + len(new) :]
        elif how == "insert":
            content = content[:start] + new + content[start:]
        else:
            content = content[:start] + content[end if how == "delete" else size :]
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
    """Otherwise all would be refused for their digest, and nothing behind it would be tested."""
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
def altered_files(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file with other content in its header or settings, and a digest that is right."""
    header, tensors = split_file(content)
    original, offsets = header["__metadata__"]["settings"], data_offsets(header)
    altered = json.loads(original)
    for _ in range(draw(st.integers(0, 2))):
        changed = draw(st.sampled_from([altered, altered, altered, header]))
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
        if not altered or not isinstance(header.get("__metadata__"), dict):
            break
    for at_offsets in (None, offsets):  # those in the header, or the original ones if it has none
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            if header["__metadata__"].get("settings") == original:
                header["__metadata__"]["settings"] = json.dumps(altered)
            return with_digest(header, tensors, at_offsets)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + tensors


@settings(600)
@given(data=st.data())
def test_a_checkpoint_that_says_something_else_is_loaded_whole_or_refused(
    saved: Saved, data: st.DataObject
) -> None:
    try:
        if saved.load(data.draw(altered_files(saved.bytes), "file")):
            saved.works()
    finally:
        saved.back()


# Checkpoints of `fit` that are not what was saved.


class Fitted:
    """A checkpoint of `fit`, and the training that goes on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return Fitted(tmp_path_factory.mktemp("fitted") / "c")


@settings(200)
@given(data=st.data())
def test_fit_goes_on_from_what_a_checkpoint_says_or_refuses_it(
    fitted: Fitted, data: st.DataObject
) -> None:
    fitted.path.write_bytes(data.draw(altered_files(fitted.bytes), "file"))
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
