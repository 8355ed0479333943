"""State in 8 bits: the bits of the reference, and a course like that of float32."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.reference import encode, random_stream
from support.arrays import (
    LAYOUTS,
    Array,
    dtype_of,
    empty_like_layout,
    equal,
    laid_out,
    numbers,
    same_bits,
)
from support.execution import execution
from support.optimizers import (
    assert_same,
    assert_same_outcome,
    every_variant,
    make_optimizer,
    make_reference,
)

# Below the number of elements from which state has blocks, and above; whole blocks and others.
SHAPES = [(), (0, 3), (4095,), (4096,), (33, 130), (9, 20, 31)]
FORMATS = ["float32", "float16", "bfloat16"]

# Up to three states.
SOME = [("Momentum", {}), ("Adam", {}), ("RMSprop", {"centered": True, "momentum": 0.5})]
some_optimizers = pytest.mark.parametrize(("name", "options"), SOME)


# The bits of the reference.


@every_variant
@pytest.mark.parametrize(("of_param", "of_grad"), [*product(FORMATS, FORMATS)])
@pytest.mark.usefixtures("memory")
def test_every_combination_of_formats_has_the_references_bits(
    name: str, options: Mapping[str, Any], of_param: str, of_grad: str
) -> None:
    rng = np.random.default_rng(0)
    params = [numbers(rng, shape, dtype_of(of_param)) for shape in SHAPES]
    options = {"average": 0.9, "clip_value": 0.7, "clear_grads": True, "seed": 3, **options}
    options |= {"maximize": of_grad == "bfloat16", "bounds": (-1.3, 0.7), "state_dtype": "8bit"}
    options |= {"copies": "bfloat16" if of_param == "float32" else None}
    expected = make_reference(name, [param.copy() for param in params], **options)
    optimizer = make_optimizer(name, params, **options)
    # At last a scale, and a rate, that float32 cannot represent.
    for scale, lr in ((1.0, 0.1), (0.25, 0.1), (3e-42, 0.1), (1e39, 1e-39)):
        optimizer.lr = lr
        expected.set(lr=lr)
        grads = [numbers(rng, shape, dtype_of(of_grad)) for shape in SHAPES]
        copies = [grad.copy() for grad in grads]
        optimizer.step(grads, scale=scale)
        expected.step(copies, scale=scale)
        assert_same(optimizer, expected)
        assert equal(grads, copies)


@pytest.mark.usefixtures("level", "memory")
@every_variant
def test_every_rule_has_the_references_bits_at_every_level(
    name: str, options: Mapping[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(n).astype(np.float32) for n in (4096 + 127, 5000, 4096)]
    options = {"lr": 0.1, "state_dtype": "8bit", "clip_norm": 10.0, **options}
    expected = make_reference(name, [param.copy() for param in params], **options)
    optimizer = make_optimizer(name, params, **options)
    for t in range(6):
        sizes = [10.0 ** rng.integers(-20, 18 - 5 * t, param.shape) for param in params]
        grads = [
            (rng.standard_normal(size.shape) * size * (rng.random(size.shape) < 0.9)).astype(
                np.float32
            )
            for size in sizes
        ]
        optimizer.step(grads)
        expected.step(grads)
        assert_same(optimizer, expected)


@some_optimizers
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e-30, 1e-36, 1e18, 1e36])
@pytest.mark.usefixtures("level")
def test_tiny_and_huge_blocks_have_the_references_bits(
    name: str, options: Mapping[str, Any], scale: float
) -> None:
    rng = np.random.default_rng(2)
    param = rng.standard_normal(6000).astype(np.float32)
    options = {"lr": 0.1, "state_dtype": "8bit", **options}
    expected = make_reference(name, param.copy(), **options)
    optimizer = make_optimizer(name, param, **options)
    for _ in range(4):
        powers = 10.0 ** (rng.integers(-2, 2, 47).repeat(128)[:6000])
        with np.errstate(over="ignore", under="ignore"):
            grad = (rng.standard_normal(6000) * powers * scale).astype(np.float32)
        optimizer.step(grad)
        expected.step(grad)
        assert_same(optimizer, expected)


# Rows longer and shorter than a block.
ROWS = [(40, 131), (900, 5), (5, 900), (3, 1, 1400), (13, 17, 21)]


@pytest.mark.usefixtures("share_all", "memory")
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_every_layout_has_the_references_bits(
    of_param: str, of_grad: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    half = dtype_of("float16")
    options: dict[str, Any] = {"state_dtype": "8bit", "average": 0.5, "clear_grads": True}
    options |= {"clip_norm": 20.0, "track_norms": True}
    param = laid_out(rng.standard_normal(shape).astype(np.float32), of_param)
    grad = laid_out(rng.standard_normal(shape).astype(half), of_grad)
    copies = empty_like_layout(of_grad, shape, half)
    expected = make_reference("Adam", laid_out(param, of_param), copies=half, **options)
    optimizer = make_optimizer("Adam", param, copies=copies, **options)
    for _ in range(3):
        grad[...] = rng.standard_normal(shape)
        copy = laid_out(grad, of_param)
        optimizer.step(grad)
        expected.step(copy)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)
        assert not grad.any()


@some_optimizers
@pytest.mark.parametrize("tile", [1, 128, 1000, 16384])
@pytest.mark.parametrize("threads", [1, 3])
def test_large_arrays_have_the_references_bits_for_any_tiles(
    name: str, options: Mapping[str, Any], threads: int, tile: int
) -> None:
    rng = np.random.default_rng(4)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in ((300, 411), (70_001,))]
    layouts: list[Array] = [np.asfortranarray(values[0]), values[1]]
    options = {"lr": 0.1, "state_dtype": "8bit", **options}
    expected = make_reference(name, [param.copy(order="K") for param in layouts], **options)
    optimizer = make_optimizer(name, layouts, **options)
    with execution(threads=threads, tile=tile, threshold=0):
        for _ in range(2):
            grads = [rng.standard_normal(param.shape).astype(np.float32) for param in layouts]
            optimizer.step(grads)
            expected.step(grads)
    assert_same(optimizer, expected)


def test_an_array_cut_at_blocks_has_the_same_bits() -> None:
    """The pieces are large: small ones keep state in float32."""
    rng = np.random.default_rng(5)
    whole, *grads = rng.standard_normal((4, 60_000)).astype(np.float32)
    cuts = [4096, 3 * 4096, 20_096, 40_064]
    pieces = np.split(whole.copy(), cuts)
    one = schuss.Adam(whole, lr=0.1, state_dtype="8bit")
    many: Any = schuss.Adam(pieces, lr=0.1, state_dtype="8bit")
    for grad in grads:
        one.step(grad)
        many.step(np.split(grad, cuts))
    assert same_bits(np.concatenate(pieces), whole)
    for name in ("m", "v"):
        assert same_bits(np.concatenate(many.state[name]), one.state[name])


# What users see.


def test_state_is_what_the_reference_encodes() -> None:
    grads = np.random.default_rng(6).standard_normal(5000).astype(np.float32)
    optimizer: Any = schuss.Momentum(np.zeros_like(grads), beta=0.0, state_dtype="8bit", seed=4)
    optimizer.step(grads)
    blocks = optimizer.state_dict()["state"]["velocity"]
    expected = encode(grads, nonnegative=False, stream=random_stream(4, 1, 0))
    assert np.array_equal(blocks, expected)
    assert optimizer.state_bytes == 132 * 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_block_with_a_nan_or_an_infinity_becomes_nan_and_no_other(value: float) -> None:
    grads = np.ones(5000, np.float32)
    optimizer: Any = schuss.Adam(np.zeros_like(grads), state_dtype="8bit")
    optimizer.step(grads)
    with_value = grads.copy()
    with_value[200] = value
    optimizer.step(with_value)
    optimizer.step(grads)
    block = slice(128, 256)
    for array in (optimizer.params, optimizer.state["m"], optimizer.state["v"]):
        assert np.isnan(array[block]).all()
        assert np.isfinite(np.delete(array, block)).all()


# The course of float32.


def v_after_the_gradients_fell(state_dtype: str | None) -> float:
    """Return the mean of v over its new target, long after half of the gradients fell to 1/4."""
    rng = np.random.default_rng(0)
    params = np.zeros(8192, np.float32)
    falls = np.arange(params.size) % 32 < 16
    optimizer: Any = schuss.Adam(params, lr=1e-3, state_dtype=state_dtype)
    for t in range(3500):
        grads = rng.standard_normal(params.size, dtype=np.float32)
        if t >= 1500:
            grads[falls] *= np.float32(0.25)
        optimizer.step(grads)
    return float(optimizer.state["v"][falls].mean(dtype=float) * 16)


def test_v_falls_as_it_does_in_float32() -> None:
    # 0.777 after 1,500 steps, and what is left of that after 2,000 more, and 1/16 of the rest.
    exact, ours = v_after_the_gradients_fell(None), v_after_the_gradients_fell("8bit")
    assert exact == pytest.approx(2.545, rel=0.02)
    assert ours == pytest.approx(exact, rel=0.03)


def test_a_moment_that_is_forgotten_fades_as_in_float32() -> None:
    """To nearest, a small part of the largest element of a block would never become smaller."""
    grads = np.ones(1 << 15, np.float32)
    grads[::128] = 100
    optimizer: Any = schuss.Momentum(np.zeros_like(grads), beta=0.99, state_dtype="8bit")
    optimizer.step(grads)
    before = optimizer.state["velocity"].reshape(-1, 128)[:, 1:].mean(dtype=float)
    kept = np.where(grads == 100, np.float32(100), np.float32(0))
    for _ in range(300):
        optimizer.step(kept)
    after = optimizer.state["velocity"].reshape(-1, 128)[:, 1:].mean(dtype=float)
    assert after / before == pytest.approx(0.99**300, rel=0.1)
