"""Row-wise Adagrad has one number of state for each row, and the bits of the reference."""

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array, dtype_of, numbers, same_bits
from support.execution import execution
from support.optimizers import assert_same, make_reference

SHAPES = [(), (1,), (7,), (5, 1), (3, 64), (4, 5, 3), (1, 5000), (300, 33), (0, 4), (4, 0)]


def table(shape: Any, dtype: Any = "f4", seed: int = 0, **options: Any) -> Array:
    return numbers(np.random.default_rng(seed), shape, dtype_of(dtype), **options)


def both(
    params: Any, *, lr: Any = 0.1, **options: Any
) -> tuple[schuss.RowwiseAdagrad, reference.Optimizer]:
    """Return an optimizer, and the reference of copies of its parameters."""
    return (
        schuss.RowwiseAdagrad(params, lr=lr, **options),
        make_reference("RowwiseAdagrad", copy.deepcopy(params), lr=lr, **options),
    )


def test_worked_numbers() -> None:
    """The means of the squares, and their roots, are whole numbers."""
    w = np.array([[10.0, 10.0], [10.0, 10.0]])
    opt = schuss.RowwiseAdagrad(w, lr=5.0, eps=0.0)
    opt.step(np.array([[7.0, 1.0], [2.0, 2.0]]))
    np.testing.assert_array_equal(opt.state["square_sum"], [25.0, 4.0])
    np.testing.assert_array_equal(w, [[3.0, 9.0], [5.0, 5.0]])
    opt.step(np.array([[12.0, 12.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(opt.state["square_sum"], [169.0, 4.0])
    np.testing.assert_array_equal(w, [[3.0 - 60 / 13, 9.0 - 60 / 13], [5.0, 5.0]])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_reference_is_the_formula_in_exact_steps(decay: float) -> None:
    """The formula of TorchRec, in float64 with NumPy's own mean, to rounding."""
    rng = np.random.default_rng(1)
    w, s = rng.standard_normal((6, 37)), np.zeros(6)
    mine, sums = w.copy(), np.full(6, 0.5)
    s += 0.5
    for t in range(1, 6):
        g = rng.standard_normal(w.shape)
        reference.rowwise_adagrad(
            mine, g, sums, step=t, lr=0.1, lr_decay=0.5, eps=0.01, weight_decay=decay
        )
        g = g + decay * w
        s += (g**2).mean(axis=1)
        w -= 0.1 / (1 + (t - 1) * 0.5) * g / (np.sqrt(s) + 0.01)[:, None]
    np.testing.assert_allclose(mine, w, rtol=1e-12)
    np.testing.assert_allclose(sums, s, rtol=1e-14)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "initial_accumulator_value": 0.5, "lr_decay": 0.25, "eps": 1e-3},
    {"clip_value": 0.5, "weight_decay": 0.1},
    {"clip_norm": 0.7, "maximize": True, "weight_decay": 0.01},
    {"bounds": (-0.5, None), "average": 0.9, "clear_grads": True},
    {"lr": 1e-42, "weight_decay": 0.1, "average": 0.5, "average_bias_correction": True},
    {"track_norms": True, "eps": 0.0},
]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_steps_have_the_bits_of_the_reference(
    shape: Any, options: dict[str, Any], dtype: str
) -> None:
    opt, ref = both(table(shape, dtype), **options)
    for t, scale in enumerate([1.0, -0.5, 1e-3], start=1):
        grad = table(shape, dtype, t, special="clip_norm" not in options)
        ref.step(grad.copy(), scale=scale)
        opt.step(grad, scale=scale)
        assert grad.any() != ("clear_grads" in options) or grad.size == 0
    assert_same(opt, ref)
    assert opt.state["square_sum"].shape == tuple(shape[:1])
    if "track_norms" in options:
        assert repr(opt.last).removeprefix("Last") == repr(ref.last).removeprefix("Outcome")


@pytest.mark.parametrize(
    "options",
    [
        {"master": "float32", "weight_decay": 0.1},
        {"master": "float24", "clip_value": 0.5, "seed": 3},
        {"round_params": "random", "seed": 3, "weight_decay": 0.1, "average": 0.5},
        {"copies": "bfloat16"},
    ],
    ids=str,
)
def test_formats_of_parameters_have_the_bits_of_the_reference(options: dict[str, Any]) -> None:
    dtype = "f4" if "copies" in options else "bfloat16"
    opt, ref = both(table((30, 1100), dtype, special=False), **options)
    for t in range(3):
        grad = table((30, 1100), "f4", t + 1, special=False)
        opt.step(grad)
        ref.step(grad)
    assert_same(opt, ref)


def test_gradients_of_any_layout_and_format() -> None:
    opt, ref = both(table((40, 6, 50), special=False), weight_decay=0.1)
    layouts = [
        table((50, 6, 40)).transpose(2, 1, 0),
        table((40, 6, 100))[::-1, :, ::2],
        np.broadcast_to(table((1, 6, 1)), (40, 6, 50)),
        table((40, 6, 50), "f2"),
    ]
    for grad in layouts:
        opt.step(grad)
        ref.step(grad)
    assert_same(opt, ref)


@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize(("threads", "tile"), [(1, 4096), (3, 100), (2, 1)])
def test_the_bits_do_not_depend_on_threads_and_tiles(level: str, threads: int, tile: int) -> None:
    with execution(level=level, threads=threads, tile=tile, threshold=0):
        opt, ref = both(table((500, 33)), weight_decay=0.1)
        for t in range(2):
            grad = table((500, 33), "f4", t + 1)
            opt.step(grad)
            ref.step(grad)
    assert_same(opt, ref)


def test_a_parameter_with_one_axis_is_stepped_as_by_adagrad() -> None:
    for dtype in ("f4", "f8"):
        w, v = table(5000, dtype), table(5000, dtype)
        rows, plain = schuss.RowwiseAdagrad(w), schuss.Adagrad(v)
        for t in range(3):
            rows.step(table(5000, dtype, t + 1))
            plain.step(table(5000, dtype, t + 1))
        assert same_bits(w, v)
        assert same_bits(rows.state["square_sum"], plain.state["square_sum"])


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
def test_the_kernel_has_the_bits_of_the_reference(dtype: str) -> None:
    w, v = table((9, 70), dtype), table((9, 70), dtype)
    s = np.full(9, 0.5, "f8" if dtype == "f8" else "f4")
    r = s.copy()
    for t in range(1, 3):
        options: dict[str, Any] = {"step": t, "weight_decay": 0.1, "bounds": (None, 1.0)}
        schuss.kernels.rowwise_adagrad(w, table((9, 70), dtype, t), s, **options)
        reference.rowwise_adagrad(v, table((9, 70), dtype, t), r, **options)
    assert same_bits(w, v)
    assert same_bits(s, r)


def trained(opt: Any, steps: range) -> Any:
    """Step an optimizer of a table and of a bias; return it."""
    for t in steps:
        opt.step({"E": table((20, 8), "f4", t), "b": table(8, "f4", t)})
    return opt


def params() -> dict[str, Array]:
    return {"E": table((20, 8), special=False), "b": table(8, special=False)}


def test_training_goes_on_from_checkpoints_state_dicts_and_copies(tmp_path: Path) -> None:
    make = partial(schuss.RowwiseAdagrad, lr=0.1, average=0.5, initial_accumulator_value=0.25)
    whole = trained(make(params()), range(6))
    first = trained(make(params()), range(3))
    schuss.save(tmp_path / "file", first.params, first)
    loaded = make(params())
    schuss.load(tmp_path / "file", loaded.params, loaded)
    from_dict = make(first.params | {"E": first.params["E"].copy(), "b": first.params["b"].copy()})
    from_dict.load_state_dict(first.state_dict())
    for other in (loaded, from_dict, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        trained(other, range(3, 6))
        for name in ("E", "b"):
            assert same_bits(other.params[name], whole.params[name])
            assert same_bits(other.state["square_sum"][name], whole.state["square_sum"][name])
            assert same_bits(other.average[name], whole.average[name])


def test_the_file_of_a_checkpoint_has_one_number_for_each_row(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    opt = trained(schuss.RowwiseAdagrad(params()), range(2))
    schuss.save(tmp_path / "file", opt.params, opt)
    saved = safetensors.load_file(tmp_path / "file")["optimizer/square_sum/E"]
    np.testing.assert_array_equal(saved, opt.state["square_sum"]["E"])


def test_groups_are_added_with_their_own_rows_and_rates() -> None:
    w, v = table((5, 6), special=False), table((4, 3), special=False)
    opt, (a, b) = schuss.RowwiseAdagrad([{"params": w}], lr=0.1), (w.copy(), v.copy())
    opt.add_group({"params": v, "lr": 0.5, "initial_accumulator_value": 2.0})
    opt.step([np.ones_like(w), np.ones_like(v)])
    for param, rate, start in ((a, 0.1, 0.0), (b, 0.5, 2.0)):
        alone = schuss.RowwiseAdagrad(param, rate, initial_accumulator_value=start)
        alone.step(np.ones_like(param))
    assert same_bits(w, a)
    assert same_bits(v, b)
    assert [state.shape for state in opt.state["square_sum"]] == [(5,), (4,)]


def test_the_state_of_a_table_takes_one_number_for_each_row() -> None:
    opt = schuss.RowwiseAdagrad(np.zeros((1000, 64), np.float32))
    assert opt.state_bytes == 4000


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (np.zeros((3, 4)).T, {}, "params is not C-contiguous, expected rows one after the other"),
    (np.zeros((3, 4), np.complex64), {}, "params is complex64, expected real numbers"),
    (
        np.zeros((3, 4), np.float32),
        {"state_dtype": "bfloat16"},
        "state_dtype is 'bfloat16', expected None",
    ),
    (np.zeros((3, 4), np.float32), {"state_dtype": "8bit"}, "state_dtype is '8bit', expected None"),
]


@pytest.mark.parametrize(("param", "options", "message"), REFUSED)
def test_what_has_no_state_by_row_is_refused(
    param: Array, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"RowwiseAdagrad: {message}"):
        schuss.RowwiseAdagrad(param, **options)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (
            np.zeros((3, 4)),
            ValueError,
            r"square_sum has shape \(3, 4\), expected \(3,\) \(a number",
        ),
        (np.zeros(4), ValueError, r"square_sum has shape \(4,\), expected \(3,\)"),
        (np.zeros(6)[::2], ValueError, "square_sum has gaps or is not aligned"),
        (np.zeros(3, "f4"), TypeError, "square_sum has dtype float32, expected float64"),
    ],
)
def test_state_of_another_shape_or_dtype_is_refused(
    state: Array, error: type[Exception], message: str
) -> None:
    w = np.ones((3, 4))
    with pytest.raises(error, match=f"kernels.rowwise_adagrad: {message}"):
        schuss.kernels.rowwise_adagrad(w, np.ones((3, 4)), state, step=1)
    assert (w == 1).all()


def test_a_state_dict_of_adagrad_is_refused() -> None:
    saved = schuss.Adagrad(np.ones((3, 4))).state_dict()
    saved["optimizer"] = "RowwiseAdagrad"
    opt = schuss.RowwiseAdagrad(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"shape \(3, 4\), expected \(3,\)"):
        opt.load_state_dict(saved)


def test_an_optimizer_of_many_processes_is_refused() -> None:
    from schuss.mpi import Sharded

    with pytest.raises(ValueError, match=r"kind is schuss\.RowwiseAdagrad, expected one"):
        Sharded(schuss.RowwiseAdagrad, np.ones((3, 4)))


def some_rows(t: int, dtype: str = "f4") -> schuss.Rows:
    """Return a gradient of six of 50 rows, some of which are named twice."""
    rng = np.random.default_rng(t)
    return schuss.Rows(rng.integers(0, 50, 6), rng.standard_normal((6, 20)).astype(dtype))


ROWS_OPTIONS: list[dict[str, Any]] = [
    *(
        {name: value for name, value in options.items() if name != "track_norms"}
        for options in OPTIONS
    ),
    {"lr": schuss.schedules.Exponential(0.1, 0.9), "maximize": True},
]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
@pytest.mark.parametrize("options", ROWS_OPTIONS, ids=str)
def test_exact_rows_have_the_bits_of_dense_steps(options: dict[str, Any], dtype: str) -> None:
    w, v = table((50, 20), dtype), table((50, 20), dtype)
    rows, dense = (schuss.RowwiseAdagrad(p, **{"lr": 0.1, **options}) for p in (w, v))
    for t in range(20):
        grad = some_rows(t, "f8" if dtype == "f8" else "f4")
        scale = -0.5 if t % 5 == 4 else 0.5
        dense.step(grad.to_dense(50), scale=scale)
        rows.step(grad, scale=scale)
        rows.rows(np.array([t, 49 - t]))
    rows.flush()
    assert same_bits(w, v)
    assert same_bits(rows.state["square_sum"], dense.state["square_sum"])
    if rows.average is not None:
        assert same_bits(rows.average, dense.average)


def test_rows_that_miss_many_steps_cost_one() -> None:
    """A second step with a zero gradient changes nothing, not even the sign of a zero."""
    w, v = table((50, 20)), table((50, 20))
    rows, dense = (schuss.RowwiseAdagrad(p, maximize=True, eps=0.0) for p in (w, v))
    touch = schuss.Rows(np.array([3]), np.ones((1, 20), "f4"))
    for _ in range(100):
        rows.step(touch)
        dense.step(touch.to_dense(50))
    rows.flush()
    assert same_bits(w, v)


def test_lazy_rows_rest() -> None:
    w = table((50, 20), special=False)
    before, opt = w.copy(), schuss.RowwiseAdagrad(w, lr=0.1, weight_decay=0.1, rows="lazy")
    grad = some_rows(0)
    opt.step(grad)
    touched = np.unique(grad.indices)
    rested = np.setdiff1d(np.arange(50), touched)
    assert same_bits(w[rested], before[rested])
    assert not opt.state["square_sum"][rested].any()
    alone, dense = before[touched], grad.to_dense(50)[touched]
    schuss.RowwiseAdagrad(alone, lr=0.1, weight_decay=0.1).step(dense)
    assert same_bits(w[touched], alone)


def test_rows_of_single_elements_are_those_of_adagrad() -> None:
    w, v = table(50), table(50)
    rows, dense = schuss.RowwiseAdagrad(w), schuss.Adagrad(v)
    for t in range(5):
        grad = schuss.Rows(np.array([t, 7, t]), np.array([0.5, 1.0, 2.0], "f4"))
        rows.step(grad)
        dense.step(grad)
    rows.flush()
    dense.flush()
    assert same_bits(w, v)
    assert same_bits(rows.state["square_sum"], dense.state["square_sum"])
