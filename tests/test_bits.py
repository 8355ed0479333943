"""A fused step gives, bit for bit, what the NumPy twin gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _core, kernels, reference
from support.arrays import LAYOUTS, Array, laid_out, numbers, same_bits
from support.cases import CASES, Case, run

LANE_EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 129)
TILE = 512
SIZES = (*LANE_EDGES, TILE - 1, TILE, TILE + 1, 3 * TILE + 5)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_level = pytest.mark.parametrize("level", schuss.available_simd())


@pytest.fixture
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = schuss.simd()
    schuss.set_simd(request.param)
    yield request.param
    schuss.set_simd(before)


@pytest.fixture
def small_tiles() -> Iterator[None]:
    before = _core.set_tile_elements(TILE)
    yield
    _core.set_tile_elements(before)


@pytest.fixture
def tiny_tiles() -> Iterator[None]:
    before = _core.set_tile_elements(37)
    yield
    _core.set_tile_elements(before)


def assert_same_steps(case: Case, param: Array, gradients: list[Array], twin: Array) -> None:
    fused = run(case, kernels, param, gradients)
    expected = run(case, reference, twin, gradients)
    for i, (a, b) in enumerate(zip(fused, expected, strict=True)):
        assert same_bits(a, b), ("param", *case.all_states)[i]


@every_case
@every_dtype
@pytest.mark.parametrize("level", schuss.available_simd(), indirect=True)
@pytest.mark.usefixtures("level", "small_tiles")
def test_every_size_and_offset_gives_the_twins_bits(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for size in SIZES:
        for offset in (0, 1, 3):
            space = numbers(rng, (4, size + offset), dtype)
            param, *gradients = space[:, offset:]
            twin = param.copy()
            assert_same_steps(case, param, gradients, twin)


@every_case
@every_dtype
def test_several_tiles_of_the_shipped_size_give_the_twins_bits(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    param, *gradients = numbers(rng, (3, 3 * 16384 + 33), dtype)
    assert_same_steps(case, param, gradients, param.copy())


@pytest.mark.parametrize("case", [*CASES[3::6], CASES[-2]], ids=str)
@every_dtype
@pytest.mark.parametrize("shape", [(40,), (33, 70), (3, 9, 4, 5), (200, 2), (1, 6, 1), ()], ids=str)
@pytest.mark.parametrize("tile", [1, 7, 64, 5000])
def test_every_layout_of_parameter_and_gradient_gives_the_twins_bits(
    case: Case, dtype: Any, shape: tuple[int, ...], tile: int
) -> None:
    before = _core.set_tile_elements(tile)
    try:
        assert_same_steps_in_every_layout(case, dtype, shape)
    finally:
        _core.set_tile_elements(before)


@every_case
@every_dtype
@pytest.mark.parametrize("level", schuss.available_simd(), indirect=True)
@pytest.mark.usefixtures("level", "small_tiles")
def test_every_rule_gives_the_twins_bits_in_every_layout_at_every_level(
    case: Case, dtype: Any
) -> None:
    assert_same_steps_in_every_layout(case, dtype, (21, 40))


def assert_same_steps_in_every_layout(case: Case, dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    values, *gradient_values = (numbers(rng, shape, dtype) for _ in range(3))
    layouts = LAYOUTS if shape else ["c", "unaligned", "packed fields"]
    broadcast = [np.broadcast_to(g[..., :1], shape) for g in gradient_values if shape]
    for gradient_layout in [*layouts, "broadcast"]:
        if gradient_layout == "broadcast":
            gradients = broadcast
        else:
            gradients = [laid_out(g, gradient_layout) for g in gradient_values]
        expected = list(run(case, reference, values.copy(), gradients))
        for param_layout in layouts:
            states = iter(layouts[::-1] * len(case.all_states))

            def state(like: Array, states: Iterator[str] = states) -> Array:
                return laid_out(np.zeros_like(like), next(states))

            fused = run(case, kernels, laid_out(values, param_layout), gradients, state)
            for a, b in zip(fused, expected, strict=True):
                assert same_bits(a, b), (param_layout, gradient_layout)


@pytest.mark.parametrize("case", [*CASES[::4], CASES[-2]], ids=str)
@every_dtype
@pytest.mark.parametrize("layout", ["c", "fortran", "columns of more"])
def test_large_arrays_with_gradients_across_them_give_the_twins_bits(
    case: Case, dtype: Any, layout: str
) -> None:
    rng = np.random.default_rng(4)
    values, gradient = (numbers(rng, (517, 390), dtype) for _ in range(2))
    for gradient_layout in ("c", "fortran", "sliced"):
        fused = run(case, kernels, laid_out(values, layout), [laid_out(gradient, gradient_layout)])
        twin = run(case, reference, values.copy(), [gradient])
        for a, b in zip(fused, twin, strict=True):
            assert same_bits(a, b), gradient_layout


@every_case
@every_dtype
def test_any_values_in_the_state_give_the_twins_bits(case: Case, dtype: Any) -> None:
    param, *gradients = numbers(np.random.default_rng(8), (3, 300), dtype)
    results = []
    for module, p in ((kernels, param.copy()), (reference, param.copy())):
        rng = np.random.default_rng(9)
        state = lambda like, rng=rng: numbers(rng, like.shape, dtype)  # noqa: E731
        results.append(list(run(case, module, p, gradients, state)))
    for a, b in zip(*results, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, float])
def test_numpy_scalars_as_hyperparameters_give_the_twins_bits(scalar: Any) -> None:
    param, *gradients = numbers(np.random.default_rng(10), (4, 300), np.float32)
    twin, states = param.copy(), np.zeros((2, 4, 300), np.float32)
    options: Any = {"lr": scalar(0.03), "weight_decay": scalar(0.1), "decoupled": True}
    steps: Any = np.arange(1, 4)
    for t, gradient in zip(steps, gradients, strict=True):
        kernels.adam(param, gradient, *states[0, :2], step=t, **options)
        reference.adam(twin, gradient, *states[1, :2], step=t, **options)
        kernels.momentum(param, gradient, states[0, 2], step=t, lr=scalar(0.03))
        reference.momentum(twin, gradient, states[1, 2], step=t, lr=scalar(0.03))
        kernels.rmsprop(param, gradient, states[0, 3], lr=scalar(0.03), beta=scalar(0.7))
        reference.rmsprop(twin, gradient, states[1, 3], lr=scalar(0.03), beta=scalar(0.7))
    assert same_bits(param, twin)
    assert same_bits(states[0], states[1])


def test_a_rate_next_to_the_subnormals_gives_the_twins_bits() -> None:
    rate = float(np.finfo(np.float32).tiny) * (1 - 2.0**-25)
    param, twin = np.zeros((2, 1), np.float32)
    kernels.sgd(param, np.full(1, 1e30, np.float32), lr=rate)
    reference.sgd(twin, np.full(1, 1e30, np.float32), lr=rate)
    assert same_bits(param, twin)
    assert param != 0


@every_case
@every_dtype
@pytest.mark.usefixtures("tiny_tiles")
def test_cutting_an_array_changes_no_bit(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    size = 150
    param, *gradients = numbers(rng, (3, size), dtype)
    whole = list(run(case, kernels, param.copy(), gradients))
    for cut in range(size + 1):
        parts = [
            list(run(case, kernels, param[part].copy(), [g[part] for g in gradients]))
            for part in (slice(cut), slice(cut, None))
        ]
        for array, *pieces in zip(whole, *parts, strict=True):
            assert same_bits(array, np.concatenate(pieces)), cut


@every_dtype
def test_an_array_passed_as_many_gives_the_same_bits(dtype: Any) -> None:
    rng = np.random.default_rng(6)
    param, *gradients = numbers(rng, (4, 1000), dtype)
    whole = param.copy()
    one = schuss.Adam(whole, lr=0.03)
    for cuts in ([500], [1, 2, 3, 500, 999], list(range(1, 1000))):
        pieces = np.split(param.copy(), cuts)
        many = schuss.Adam(pieces, lr=0.03)
        for gradient in gradients:
            many.step(np.split(gradient, cuts))
        if one.steps == 0:
            for gradient in gradients:
                one.step(gradient)
        assert same_bits(np.concatenate(pieces), whole)
        for name in ("m", "v"):
            assert same_bits(np.concatenate(many.state[name]), one.state[name])


def test_parameters_of_both_dtypes_go_together() -> None:
    rng = np.random.default_rng(7)
    params = [numbers(rng, 100, dtype) for dtype in (np.float32, np.float64, np.float32)]
    twins = [p.copy() for p in params]
    gradients = [numbers(rng, 100, p.dtype) for p in params]
    schuss.RMSprop(params, lr=0.03).step(gradients)
    for param, twin, gradient in zip(params, twins, gradients, strict=True):
        reference.rmsprop(twin, gradient, np.zeros_like(twin), lr=0.03)
        assert same_bits(param, twin)
