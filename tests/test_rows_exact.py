"""Rows as gradients have the bits of the dense step, for all calls between two steps."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from support.arrays import LAYOUTS, Array, contents, dtype_of, equal, laid_out, leaves, numbers
from support.execution import execution
from support.optimizers import (
    OPTIMIZERS,
    OTHER_VALUES,
    VARIANTS,
    Options,
    assert_same,
    every_optimizer,
    every_variant,
    make_reference,
)
from support.rows import Pair, dense_of, random_rows

# Rows of one and of many elements, in few and in many blocks of the norm.
SHAPES = {"table": (40, 6), "long": (30,), "cube": (9, 3, 7), "wide": (5, 5000)}


def some_params(seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    """Return parameters, also with elements that no step can move."""
    rng = np.random.default_rng(seed)
    params = {name: numbers(rng, shape, dtype, special=False) for name, shape in SHAPES.items()}
    for param in params.values():
        param[0], param[1], param[2] = 0.0, -0.0, 3e4
    return params


def some_grads(rng: np.random.Generator, params: Any, **options: Any) -> dict[str, Any]:
    """Return few rows for each parameter, often none, in any order, and some of them twice."""
    sizes = rng.integers(0, 4, len(params)).tolist()
    return {
        name: random_rows(rng, param.shape, size, **options)
        for (name, param), size in zip(params.items(), sizes, strict=True)
    }


def train(pair: Any, steps: int = 12, *, seed: int = 1, **options: Any) -> None:
    """Make steps with another scale each."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        grads = some_grads(rng, pair.rows.params, **options)
        pair.step(grads, scale=(1.0, 1.0, -0.5, 1 / 3, 0.0)[t % 5])


# Rules and options.

ADDED: list[dict[str, Any]] = [
    {},
    {"clip_norm": 0.5, "lr": 0.1},
    {"clip_value": 0.25, "maximize": True, "weight_decay": 0.1},
    {"clip_value": 0.0, "weight_decay": 0.1},
    {"bounds": (-0.5, 0.75), "lr": 0.1},
    {"average": 0.75},
    {"average": 0.75, "average_bias_correction": True, "weight_decay": 0.1},
    {"copies": "float16", "clear_grads": True},
    {"track_norms": True},
    {"lr": schedules.OneCycle(0.2, 12)},
    {"lr": schedules.Exponential(0.1, 0.5), "weight_decay": 0.1},
    {"lr": schedules.Linear(0.0, 1e3, 12)},
    {"lr": 1e-44},
]


@pytest.mark.parametrize("added", ADDED, ids=repr)
@every_variant
def test_every_rule_has_the_bits_of_the_dense_step(
    name: str, options: Options, added: Options
) -> None:
    pair = Pair(name, some_params(), **{**options, **added})
    train(pair)
    pair.check()


@every_variant
def test_every_rule_has_the_bits_of_the_reference(name: str, options: Options) -> None:
    options = {"lr": 0.1, "average": 0.5, "clip_norm": 2.0, "clear_grads": True, **options}
    params = some_params()
    expected = make_reference(name, copy.deepcopy(params), **options)
    optimizer = getattr(schuss, name)(params, **options)
    rng = np.random.default_rng(1)
    for scale in (1.0, -0.5, 1 / 3, 1.0, 1.0):
        grads = some_grads(rng, params, special=scale < 0)
        copied = {n: schuss.Rows(g.indices, g.values.copy()) for n, g in grads.items()}
        optimizer.step(grads, scale=scale)
        expected.step(copied, scale=scale)
        assert all(not grad.values.any() for grad in grads.values())
    optimizer.flush()
    assert_same(optimizer, expected)


# Hyperparameters that make what a row misses unusual.
EDGES: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"eps": 0.0}),
    ("Adam", {"eps": 0.0, "beta2": 0.0}),
    ("Adam", {"beta1": 0.0}),
    ("Adam", {"beta1": 1 - 2**-53, "beta2": 0.5}),
    ("Adam", {"eps": 2e-38, "eps_root": 2e-38, "lr": 1e-42}),
    ("AdamW", {"weight_decay": 1e3}),
    ("AdamW", {"weight_decay": 1e-9, "lr": 1e30}),
    ("Momentum", {"beta": 0.0}),
    ("Momentum", {"beta": 1 - 2**-53, "weight_decay": 1e-30}),
    ("RMSprop", {"eps": 0.0}),
    ("Adagrad", {"eps": 0.0}),
    ("Adadelta", {"eps": 0.0}),
    ("Adamax", {"eps": 0.0}),
    ("Lion", {"beta1": 0.0, "beta2": 0.0}),
]


@pytest.mark.parametrize("special", [False, True], ids=["numbers", "special values"])
@pytest.mark.parametrize(("name", "options"), EDGES)
def test_elements_without_a_limit_have_the_bits_of_the_dense_step(
    name: str, options: Options, special: bool
) -> None:
    rng = np.random.default_rng(3)
    params = {key: numbers(rng, shape, np.float32) for key, shape in SHAPES.items()}
    pair = Pair(name, params, **options)
    for t in range(4):
        # Second moments of subnormal size, which vanish while the row rests.
        train(pair, 3, seed=t, special=special)
        grads = some_grads(rng, params)
        for grad in grads.values():
            grad.values[...] *= 1e-19
        pair.step(grads)
    for _ in range(400):
        pair.step({name: None if name == "wide" else grad for name, grad in grads.items()})
    pair.check()


NOT_FINITE: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("Momentum", {}),
    ("Adam", {"beta2": 0.0}),
    ("Adagrad", {}),
    ("Adadelta", {"rho": 0.0}),
    ("RMSprop", {"beta": 0.0, "momentum": 0.5}),
    ("RMSprop", {"beta": 0.0, "momentum": 0.5, "centered": True}),
]


@pytest.mark.parametrize("value", [1e20, 1e30, np.inf, np.nan])
@pytest.mark.parametrize(("name", "options"), NOT_FINITE)
def test_elements_that_are_not_finite_have_the_bits_of_the_dense_step(
    name: str, options: Options, value: float
) -> None:
    # A row of one kind of number each, with at least the elements that are replayed at a time.
    params = np.repeat(np.array([np.nan, np.nan, np.inf, -np.inf, 1.0, 0.0], np.float32), 64)
    params.view(np.uint32)[:64] = 0x7F800001  # a signaling NaN, which the first step makes quiet
    pair = Pair(name, params.reshape(6, 64), **options)
    grads = np.full((6, 64), value, np.float32)
    pair.step(schuss.Rows(np.arange(6), grads))
    for _ in range(40):
        pair.step(schuss.Rows([5], grads[:1]))
    pair.check()


# Arrays.

FORMATS: list[tuple[str, str, dict[str, Any]]] = [
    ("float32", "float16", {}),
    ("float32", "bfloat16", {}),
    ("float64", "float64", {}),
    ("float64", "float32", {}),
    ("float64", "bfloat16", {}),
    ("float16", "float16", {}),
    ("float16", "float32", {"state_dtype": "bfloat16", "seed": 3}),
    ("float32", "float32", {"state_dtype": "bfloat16", "copies": "bfloat16"}),
    ("float32", "float32", {"state_dtype": "8bit", "average": 0.5}),
    ("bfloat16", "float32", {"average": 0.5}),
    ("bfloat16", "bfloat16", {"master": "float32", "state_dtype": "8bit"}),
    ("bfloat16", "bfloat16", {"master": "float24", "average": 0.5}),
    ("bfloat16", "float32", {"round_params": "random", "state_dtype": "bfloat16"}),
    ("complex64", "complex64", {"average": 0.5}),
    ("complex128", "complex64", {}),
    ("complex64", "complex64", {"complex": "modulus"}),
]
# With blocks of 8 bits that are parts of rows, and with some that are not.
OF_FORMATS = {"whole": (40, 128), "halves": (70, 64), "long": (5000,), "small": (9, 3)}


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("dtype", "of_grad", "formats"), FORMATS)
@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "AdamW", "Adagrad"])
def test_every_format_has_the_bits_of_the_dense_step(
    name: str, dtype: str, of_grad: str, formats: dict[str, Any], index: Any
) -> None:
    if formats.get("complex") and name not in ("Adam", "AdamW", "Adagrad"):
        formats = {}
    dtype_of("bfloat16") if "bfloat16" in (dtype, of_grad, *formats.values()) else None
    rng = np.random.default_rng(7)
    params = {key: numbers(rng, shape, dtype_of(dtype)) for key, shape in OF_FORMATS.items()}
    pair = Pair(name, params, lr=0.1, weight_decay=0.01, **formats)
    train(pair, 5, dtype=dtype_of(of_grad), index=index)
    train(pair, 1, dtype=dtype_of(of_grad), special=True)
    train(pair, 2, dtype=dtype_of(of_grad))
    pair.check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_every_layout_have_the_bits_of_the_dense_step(layout: str) -> None:
    rng = np.random.default_rng(8)
    params = {"laid out": laid_out(numbers(rng, (20, 3, 4), np.float32), layout)}
    params["flat"] = np.ones((20, 3, 4), np.float32)
    pair = Pair("Adam", params, lr=0.1, clip_norm=1.0, average=0.5)
    for _ in range(6):
        grads = some_grads(rng, params)
        indices = laid_out(grads["flat"].indices, layout)
        values = laid_out(grads["flat"].values, layout)
        pair.step({"laid out": grads["laid out"], "flat": schuss.Rows(indices, values)})
    pair.check()


def test_duplicates_are_added_in_their_order_and_each_sum_is_rounded() -> None:
    w = np.zeros((2, 1), np.float32)
    values = np.array([[1.0], [2.0**24], [1.0], [-(2.0**24)], [1.0]], np.float32)
    schuss.SGD(w, lr=1.0).step(schuss.Rows(np.array([1, 0, 0, 0, 0]), values))
    assert w.tolist() == [[-1.0], [-1.0]]


def test_no_rows_are_a_step_of_zeros() -> None:
    pair = Pair("AdamW", some_params(), lr=0.1)
    train(pair, 3)
    for _ in range(3):
        pair.step({n: schuss.Rows([], p[:0].copy()) for n, p in pair.rows.params.items()})
    pair.check()
    empty = Pair("Adam", np.zeros((0, 3)))
    empty.step(schuss.Rows(np.array([], np.int32), np.zeros((0, 3))))
    empty.check()


def test_a_gradient_of_rows_may_be_the_only_one_of_a_parameter_in_any_structure() -> None:
    table = np.ones((5, 2))
    params = [np.ones((3, 2)), (np.ones(4), {"E": table})]
    optimizer: Any = schuss.SGD(params, lr=1.0)
    optimizer.step([np.ones((3, 2)), (None, {"E": schuss.Rows([4, 1], np.ones((2, 2)))})])
    optimizer.flush()
    assert table[:, 0].tolist() == [1, 0, 1, 1, 0]


# Norms.


@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200, np.inf])
@pytest.mark.parametrize("shape", [(3, 5000), (3000, 5), (1, 4096), (9000,), (4, 3, 2048)])
def test_the_norm_is_that_of_the_dense_gradient(shape: tuple[int, ...], size: float) -> None:
    rng = np.random.default_rng(4)
    params = {"E": rng.standard_normal(shape), "dense": np.zeros(5000)}
    pair = Pair("Adam", params, lr=0.1, clip_norm=1.0, nonfinite="skip")
    for count in (2, 0, 300):
        rows = random_rows(rng, shape, count, dtype=np.float64)
        rows.values[...] *= size
        pair.step({"E": rows, "dense": rng.standard_normal(5000)}, scale=0.3)
        assert repr(pair.rows.last) == repr(pair.dense.last)
        assert pair.rows.last.skipped == (count > 0 and size == np.inf)
    pair.check()


@every_optimizer
def test_a_gradient_that_is_not_finite_is_skipped_or_refused(name: str) -> None:
    pair = Pair(name, some_params(), lr=0.1, nonfinite="skip", average=0.5)
    rng = np.random.default_rng(2)
    for value in (1.0, np.nan, 1.0, -np.inf, 1.0):
        grads = some_grads(rng, pair.rows.params)
        grads["cube"] = random_rows(rng, SHAPES["cube"], 3)
        grads["cube"].values[1] *= value
        pair.step(grads)
        assert pair.rows.last.skipped == (not np.isfinite(value))
    pair.do(lambda each: setattr(each, "nonfinite", "raise"))
    train(pair, 3)
    before = contents(pair.rows.params)
    grads = some_grads(rng, pair.rows.params) | {"cube": random_rows(rng, SHAPES["cube"])}
    grads["cube"].values[0] = np.nan
    with pytest.raises(FloatingPointError, match=r"grads\['cube'\] has a NaN or an infinity"):
        pair.rows.step(grads)
    assert contents(pair.rows.params) == before  # also rows that are behind
    train(pair, 3)
    pair.check()


# What happens between two steps.


@every_variant
def test_rows_dense_gradients_and_none_take_turns(name: str, options: Options) -> None:
    options = {**options, "average": 0.5}
    for option in ({}, {"groups": lambda key: {"lr": 0.3, "frozen": key == "wide"}}):
        pair = Pair(name, some_params(), **{**options, **option})
        rng = np.random.default_rng(5)
        for t in range(15):
            grads = some_grads(rng, pair.rows.params)
            for key in grads:
                if t % 5 == 2:
                    grads[key] = None
                elif rng.random() < 0.2:
                    how = rng.integers(2)
                    grads[key] = dense_of(grads[key], pair.rows.params[key]) if how else None
            pair.step(grads)
        pair.check()


def test_a_parameter_may_rest_in_the_step_for_which_its_history_has_no_room() -> None:
    lr = schedules.Linear(1e-3, 1e-5, 100_000)  # coefficients of its own for each step
    pair = Pair("SGD", {"E": np.ones((3, 2)), "b": np.ones(2)}, lr=lr, average=0.9)
    rows, ones = schuss.Rows([1], np.ones((1, 2))), np.ones(2)
    for t in range(2**14 + 3):
        pair.step({"E": None if t == 2**14 else rows, "b": ones})
    pair.check()


def test_groups_have_their_own_hyperparameters() -> None:
    for name, kind in OPTIMIZERS.items():
        for own, *others in kind.groups:
            of_group = {"table": {}, "long": others[0], "cube": others[1], "wide": {}}
            pair = Pair(name, some_params(), groups=of_group.get, **own)
            train(pair)
            pair.check()


@every_optimizer
def test_hyperparameters_change_between_steps(name: str) -> None:
    pair = Pair(name, some_params(), lr=schedules.Cosine(0.1, 9))
    changes: list[tuple[str, Any]] = [
        *((each, OTHER_VALUES[each]) for each in OPTIMIZERS[name].defaults if each in OTHER_VALUES),
        *(("lr", 0.5), ("lr", 0.0), ("lr", schedules.Linear(0.0, 1.0, 40))),
        *(("maximize", True), ("clip_norm", 0.5), ("bounds", (-2.0, None)), ("bounds", None)),
        *(("average", 0.5), ("average", None), ("average", 0.9), ("seed", 4)),
    ]
    for number, (hyperparameter, value) in enumerate(changes):
        train(pair, 3, seed=number)
        for each in (pair.rows, pair.dense):
            setattr(each, hyperparameter, value)
    train(pair, 3)
    pair.do(lambda each: each.param_groups[0].update(lr=0.25))
    train(pair, 3)
    pair.check()


def test_a_group_is_added_frozen_and_released() -> None:
    pair = Pair("AdamW", [{"params": {"a": np.ones((9, 2))}}, {"params": {"b": np.ones((9, 3))}}])
    rng = np.random.default_rng(0)

    def step(count: int) -> None:
        for _ in range(count):
            params = pair.rows.params
            pair.step([{k: random_rows(rng, p.shape) for k, p in own.items()} for own in params])

    step(3)
    pair.do(lambda each: each.param_groups[0].update(frozen=True))
    step(3)
    pair.do(lambda each: each.add_group({"params": {"c": np.ones((4, 4))}, "lr": 0.5}))
    step(3)
    pair.do(lambda each: each.param_groups[0].update(frozen=False, lr=0.1))
    step(3)
    pair.check()


# Everything that reads what an optimizer has.
READERS: dict[str, Callable[[Any], Any]] = {
    "state": lambda each: each.state,
    "state_dict": lambda each: each.state_dict()["state"],
    "average": lambda each: each.average,
    "copies": lambda each: each.copies,
    "pickle": lambda each: pickle.loads(pickle.dumps(each)).params,
    "deepcopy": lambda each: copy.deepcopy(each).params,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_sees_all_rows_up_to_date(reader: str) -> None:
    pair = Pair("AdamW", some_params(), lr=0.1, average=0.5, copies="float16")
    train(pair)
    ours, theirs = READERS[reader](pair.rows), READERS[reader](pair.dense)
    assert equal(leaves(ours), leaves(theirs))
    assert equal(leaves(pair.rows.params), leaves(pair.dense.params))
    pair.check()


@every_optimizer
def test_rows_that_are_asked_for_are_up_to_date(name: str) -> None:
    pair = Pair(name, some_params(), lr=0.1, weight_decay=0.1, average=0.5)
    rng = np.random.default_rng(6)
    for index in (np.int32, np.int64):
        for shape in ((3,), (0,), (2, 2), ()):
            train(pair, 4, seed=len(shape))
            indices = {n: rng.integers(0, s[0], shape).astype(index) for n, s in SHAPES.items()}
            got = pair.rows.rows(indices | {"cube": None})
            assert got["cube"] is None
            for key in ("table", "long", "wide"):
                assert equal([got[key]], [np.asarray(pair.dense.params[key][indices[key]])])
                assert not np.shares_memory(got[key], pair.rows.params[key])
    pair.check()


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "Adam"])
@pytest.mark.parametrize("lrs", [(0.1, -0.0, 0.1), (-0.0, 0.1, 0.1), (0.1, 0.1, -0.0)])
def test_a_negative_zero_for_a_learning_rate_changes_negative_zeros(
    name: str, lrs: tuple[float, ...]
) -> None:
    pair = Pair(name, np.full((6, 5), -0.0, np.float32), lr=lambda t: lrs[t % 3])
    for row in range(len(lrs)):
        pair.step(schuss.Rows(np.array([row]), np.zeros((1, 5), np.float32)))
    pair.check()


@pytest.mark.parametrize("stepped", [[5, 2, 5], [2, 5, 5], [5, 3, 5], [5, 2], [5, 2, 5, 7], []])
def test_a_step_has_the_rows_that_were_just_read_or_others(stepped: list[int]) -> None:
    pair = Pair(
        "Adam", numbers(np.random.default_rng(4), (9, 70), np.float32, special=False), lr=0.1
    )
    indices = np.zeros(len(stepped), np.int32)
    values = numbers(np.random.default_rng(5), (len(stepped), 70), np.float32, special=False)
    for _ in range(3):
        assert equal([pair.rows.rows(np.array([5, 2, 5]))], [pair.dense.params[[5, 2, 5]]])
        indices[:] = stepped
        pair.step(schuss.Rows(indices, values))
        indices[:] = indices[::-1].copy()  # the same array
        pair.step(schuss.Rows(indices, values))
    pair.check()


def test_the_rows_of_a_single_parameter_need_no_structure() -> None:
    w = np.arange(6.0).reshape(3, 2)
    optimizer: Any = schuss.SGD(w)
    assert optimizer.rows(np.array([2, 0, 2])).tolist() == [[4, 5], [0, 1], [4, 5]]


def through_file(optimizer: Any, path: Path) -> Any:
    other = copy.deepcopy(optimizer)
    schuss.save(path, optimizer.params, optimizer)
    schuss.load(path, other.params, other)
    return other


def through_dict(optimizer: Any, _: Path) -> Any:
    other = copy.deepcopy(optimizer)
    other.zero_grad()
    other.step(some_grads(np.random.default_rng(0), other.params))
    for old, new in zip(leaves(other.params), leaves(optimizer.params), strict=True):
        old[...] = new
    other.load_state_dict(optimizer.state_dict())
    for old, new in zip(leaves(other.params), leaves(optimizer.params), strict=True):
        old[...] = new
    return other


COPIERS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda optimizer, _: pickle.loads(pickle.dumps(optimizer)),
    "copy": lambda optimizer, _: copy.copy(optimizer),
    "deepcopy": lambda optimizer, _: copy.deepcopy(optimizer),
    "file": through_file,
    "state_dict": through_dict,
}


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("summing", [False, True], ids=["", "while gradients are summed"])
def test_training_goes_on_from_what_was_kept(copier: str, summing: bool, tmp_path: Path) -> None:
    pair = Pair("AdamW", some_params(), lr=schedules.Cosine(0.1, 20), average=0.5)
    train(pair)
    if summing:
        grads = some_grads(np.random.default_rng(3), pair.rows.params)
        dense = pair.denser(grads)
        pair.rows.accumulate(grads)
        pair.dense.accumulate(dense)
    pair.rows = COPIERS[copier](pair.rows, tmp_path / "checkpoint")
    if summing:
        pair.do(lambda each: each.step())
    train(pair, seed=2)
    pair.check()


@pytest.mark.parametrize("kinds", ["rows", "rows and dense", "dense and rows", "rows and None"])
@every_optimizer
def test_accumulated_rows_are_the_sum_of_their_batches(name: str, kinds: str) -> None:
    pair = Pair(name, some_params(), lr=0.1, clear_grads=True, weight_decay=0.1)
    rng = np.random.default_rng(9)
    for scale in (1.0, 0.5, -1.0):
        for number in range(4):
            grads = some_grads(rng, pair.rows.params)
            if (number % 2 == 1) == kinds.endswith("s") and kinds != "rows":
                grads = pair.denser(grads)
            elif number % 2 == 1 and kinds.endswith("None"):
                grads["table"] = grads["cube"] = None
            dense = copy.deepcopy(pair.denser(grads))
            pair.rows.accumulate(grads, scale=abs(scale) / 3)
            pair.dense.accumulate(dense, scale=abs(scale) / 3)
            for grad in grads.values():
                assert grad is None or not getattr(grad, "values", grad).any()
        assert pair.rows.accumulated == 4
        for each in (pair.rows, pair.dense):
            each.step(scale=scale)
    grads = some_grads(rng, pair.rows.params)
    pair.rows.accumulate(grads)
    pair.do(lambda each: each.zero_grad())
    train(pair, 3)
    pair.check()


def test_users_write_to_rows_that_are_up_to_date() -> None:
    pair = Pair("Adam", some_params(), lr=0.1)
    train(pair)
    pair.rows.flush()
    pair.do(lambda each: each.params["table"].fill(0.5))
    pair.do(lambda each: each.state["m"]["cube"].fill(-0.25))
    train(pair, seed=2)
    pair.check()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_fit_trains_with_rows(accumulate: int) -> None:
    results: list[Any] = []
    x = np.random.default_rng(0).integers(0, 50, (200, 3))
    for kind in ("rows", "dense"):
        table = np.linspace(-1, 1, 100, dtype=np.float32).reshape(50, 2)
        optimizer: Any = schuss.Adam(table, lr=0.1)

        def loss_and_grad(table: Array, x: Array, kind: str = kind) -> Any:
            seen = optimizer.rows(x)  # noqa: B023
            rows = schuss.Rows(x.ravel(), (seen - 0.5).reshape(-1, 2))
            return float(((seen - 0.5) ** 2).sum()), (
                rows if kind == "rows" else dense_of(rows, table)
            )

        losses: list[float] = []
        history = schuss.fit(
            loss_and_grad,
            table,
            optimizer,
            x,
            batch_size=20,
            epochs=3,
            rng=0,
            accumulate=accumulate,
            validation=lambda table: float(np.square(table - 0.5).sum()),
            callbacks=lambda *_: losses.append(table.sum().item()),  # noqa: B023
            progress=False,
        )
        results.append(
            (table.tobytes(), history.cost.tolist(), history.validation.tolist(), losses)
        )
    assert results[0] == results[1]


# Threads, levels and long rests.


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", ["SGD", "Momentum", "AdamW", "Adagrad", "Lion"])
def test_every_number_of_threads_has_the_bits_of_the_dense_step(name: str) -> None:
    for threads in (1, 2, 5):
        with execution(threads=threads, tile=64, threshold=0):
            pair = Pair(name, some_params(), lr=0.1, weight_decay=0.1, clip_norm=1.0)
            train(pair, 5)
            pair.rows.rows({key: np.arange(len(p)) for key, p in pair.rows.params.items()})
            train(pair, 3, special=True)
            pair.check()


# What decides when an element can no longer move, and what its state does then.
AT_REST: list[tuple[str, dict[str, Any]]] = [
    *((name, dict(options)) for name, options in VARIANTS),
    *(("AdamW", {"lr": lr}) for lr in (schedules.WarmUp(schedules.Cosine(0.5, 900), 100), 0.0)),
    *(("Adam", {each: 0.0}) for each in ("beta1", "beta2", "eps")),
    *(("Adam", {"beta2": 0.8}), ("Adam", {"eps": 0.0, "eps_hat": 1e-3}), ("Lion", {"lr": 1e-9})),
    *(("AdamW", {"maximize": True, "weight_decay": 0.1}), ("Adam", {"clip_value": 0.1})),
    *(("Adadelta", {"eps": 0.0}), ("Adagrad", {"eps": 0.0}), ("Adamax", {"eps": 0.0})),
]
FIRST = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, 3e38, 1e-30, -1e-30, 1.0, -1.0, 1e-8]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), AT_REST)
def test_elements_come_to_rest_as_in_the_dense_step(
    name: str, options: Options, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    params = rng.standard_normal((5, 50)).astype(dtype)
    params[0, : len(FIRST)], params[2, ::5] = FIRST, 0.0
    pair = Pair(name, params, **options)
    for t in range(20):
        values = rng.standard_normal((4, 50)) * 10.0 ** rng.integers(-9, 3, (4, 50))
        values[2, ::5] = 0.0
        pair.step(schuss.Rows(np.arange(4), values.astype(dtype)), scale=-1.0 if t == 9 else 1.0)
    rows, dense = schuss.Rows([4], np.ones((1, 50), dtype)), np.zeros((5, 50), dtype)
    dense[4] = 1.0
    for _ in range(1500):
        pair.rows.step(rows)
        pair.dense.step(dense)
    pair.check()


def test_a_row_may_rest_for_a_hundred_thousand_steps() -> None:
    """More than the optimizer has kept coefficients of."""
    pair = Pair("Adam", np.ones((3, 4)), lr=schedules.InverseSqrt(0.1, 1.0), beta2=0.99999)
    pair.step(schuss.Rows([0, 1, 2], np.full((3, 4), 0.3)))
    rows, dense = schuss.Rows([2], np.ones((1, 4))), np.zeros((3, 4))
    dense[2] = 1
    for _ in range(100_000):
        pair.rows.step(rows)
        pair.dense.step(dense)
    pair.check()
