"""What rides along with a step: scaling, clipping, the check for infinities, cleared gradients."""

import re
import threading
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _core, reference
from support.arrays import LAYOUTS, Array, bits, equal, laid_out, numbers, same_bits

OPTIMIZERS: dict[str, tuple[Callable[..., Any], int]] = {
    "SGD": (reference.sgd, 0),
    "Momentum": (reference.momentum, 1),
    "RMSprop": (reference.rmsprop, 1),
    "Adam": (reference.adam, 2),
}
SHAPES = [(), (0, 3), (1,), (17,), (4095,), (4096,), (4097,), (3, 5000), (70, 33), (9, 20, 31)]


def make(name: str, params: Any, **options: Any) -> Any:
    return getattr(schuss, name)(params, lr=0.1, **options)


class Twin:
    """The same steps by the reference."""

    def __init__(self, name: str, params: list[Array]) -> None:
        self.rule, states = OPTIMIZERS[name]
        self.params = [param.copy(order="K") for param in params]
        self.states = [[np.zeros_like(param) for _ in range(states)] for param in params]
        self.counts = name == "Adam"
        self.t = 0

    def step(self, grads: list[Array], scale: float = 1.0, **options: Any) -> None:
        self.t += 1
        count = {"step": self.t} if self.counts else {}
        for param, grad, states in zip(self.params, grads, self.states, strict=True):
            self.rule(param, grad, *states, lr=0.1, scale=scale, **count, **options)


def arrays(rng: np.random.Generator, dtype: Any = np.float32) -> list[Array]:
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


# Scaling and clipping.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_and_clipped_steps_have_the_twins_bits(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    params = arrays(rng, dtype)
    twin = Twin(name, params)
    optimizer = make(name, params, clip_norm=3.0, clip_value=0.02)
    for scale in (1.0, 2.0**-10, 3.0, 1e-3):
        grads = arrays(rng, dtype)
        norm = reference.grad_norm(twin.params, grads, scale=scale)
        factor = reference.clip_factor(norm, 3.0)
        twin.step(grads, scale=scale * factor, clip_value=0.02)
        optimizer.step(grads, scale=scale)
        assert equal(params, twin.params)
        assert optimizer.last == schuss.optimizers.Last(norm, factor < 1, skipped=False)
    assert optimizer.skipped == 0


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tile", [1, 64, 1000])
def test_the_norm_has_the_same_bits_on_any_threads_level_and_tiles(
    level: str, threads: int, tile: int
) -> None:
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        params, grads = arrays(rng, dtype), arrays(rng, dtype)
        optimizer = schuss.Adam(params, clip_norm=1.0)
        before, _ = schuss.simd(), _core.set_tile_elements(tile)
        try:
            schuss.set_simd(level)
            with schuss.threads(threads):
                optimizer.step(grads)
        finally:
            schuss.set_simd(before)
        assert optimizer.last is not None
        assert optimizer.last.grad_norm == reference.grad_norm(params, grads)


@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_the_norm_is_the_twins_in_every_layout(of_param: str, of_grad: str) -> None:
    rng = np.random.default_rng(2)
    for shape in ((70, 131), (3, 1, 2000), (13, 7, 60)):
        param = laid_out(rng.standard_normal(shape), of_param)
        grad = laid_out(rng.standard_normal(shape), of_grad)
        optimizer = schuss.SGD(param, lr=0.0, clip_norm=1.0)
        optimizer.step(grad)
        assert optimizer.last is not None
        assert optimizer.last.grad_norm == reference.grad_norm([param], [grad])


def test_the_norm_is_that_of_all_arrays_together() -> None:
    optimizer = schuss.SGD([np.zeros(2), np.zeros((1, 1))], lr=1.0, clip_norm=6.5)
    optimizer.step([np.array([3.0, 4.0]), np.array([[12.0]])])
    assert optimizer.last is not None
    assert optimizer.last.grad_norm == 13
    np.testing.assert_allclose(optimizer.params[0], [-1.5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(optimizer.params[1], [[-6.0]], rtol=1e-6)


def test_a_norm_that_is_small_enough_changes_nothing() -> None:
    grad = np.array([3.0, 4.0])
    optimizer = schuss.SGD(np.zeros(2), lr=1.0, clip_norm=5.1)
    optimizer.step(grad)
    assert (optimizer.params == -grad).all()
    assert optimizer.last == schuss.optimizers.Last(5.0, clipped=False, skipped=False)


def test_the_norm_of_float32_does_not_overflow_and_is_rounded_like_float64() -> None:
    grad = np.full(10_000, 3e38, np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad), clip_norm=1.0)
    optimizer.step(grad)
    assert optimizer.last is not None
    assert optimizer.last.grad_norm == pytest.approx(float(np.float32(3e38)) * 100, rel=1e-14)


def test_clipping_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    values = arrays(rng)
    theirs = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
    other = torch.optim.Adam(theirs, lr=0.1)
    optimizer = schuss.Adam(values, lr=0.1, clip_norm=2.0)
    for _ in range(5):
        grads = arrays(rng)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0)
        other.step()
        optimizer.step(grads)
        assert optimizer.last is not None
        assert optimizer.last.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for value, parameter in zip(values, theirs, strict=True):
        np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=2e-4, atol=2e-6)


def test_gradients_are_scaled_without_being_written() -> None:
    grad = np.array([1.0, -2.0])
    optimizer = schuss.SGD(np.zeros(2), lr=1.0)
    optimizer.step(grad, scale=0.25)
    assert grad.tolist() == [1.0, -2.0]
    assert optimizer.params.tolist() == [-0.25, 0.5]
    assert optimizer.last == schuss.optimizers.Last(None, clipped=False, skipped=False)


def test_options_can_be_changed_between_steps() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    assert optimizer.last is None
    optimizer.step(np.array([8.0]))
    optimizer.clip_value = 2.0
    optimizer.step(np.array([8.0]))
    optimizer.clip_value, optimizer.clip_norm = None, 4.0
    optimizer.step(np.array([8.0]))
    optimizer.clip_norm = None
    optimizer.step(np.array([8.0]))
    np.testing.assert_allclose(optimizer.params, [-(8 + 2 + 4 + 8)], rtol=1e-6)


# Factors, norms and rates at the edges of a number format.

FLOAT32, FLOAT64 = np.finfo(np.float32), np.finfo(np.float64)
FACTORS: list[tuple[Any, list[float], dict[str, Any]]] = [
    (np.float32, [1e35, -1.0], {"scale": 1e-30, "clip_norm": 1e-5}),
    (np.float32, [1e35, -3e38, 1e-30], {"scale": 1e-40}),
    (np.float32, [float(FLOAT32.max), -1e38], {"scale": 1e-76}),
    (np.float32, [float(FLOAT32.max), -1e38], {"scale": 2.0**-254}),
    (np.float32, [1.5e-38, -1e-30, 0.0], {"scale": 1e39}),
    (np.float32, [float(FLOAT32.tiny), 0.0], {"scale": -3e75}),
    (np.float32, [1.0, -1e30], {"scale": 1e-300}),
    (np.float32, [1e30, 1.0], {"scale": 5e-324, "clip_norm": 1e300}),
    (np.float64, [1e300, 1.0], {"scale": 1e-310}),
    (np.float64, [1e300, -1e299], {"scale": 1e-300, "clip_norm": 1e-200}),
    (np.float64, [1e300, -1e299], {"scale": 1e-5, "clip_norm": 1e-310}),
    (np.float64, [1e308, -1e300], {"scale": 1e308, "clip_norm": 1.0}),
    (np.float64, [3e-308, 0.0], {"scale": 1e308, "clip_norm": 1e-8}),
]


def treated(values: Array, scale: float, clip_norm: float | None) -> list[Fraction]:
    """Return what becomes of gradients in exact arithmetic, but for a root with 40 digits."""
    scaled = [Fraction(scale) * Fraction(x) for x in values.tolist()]
    if clip_norm is None:
        return scaled
    with localcontext(prec=40, Emax=99999, Emin=-99999):
        total = sum((Decimal(x.numerator) / Decimal(x.denominator)) ** 2 for x in scaled)
        factor = Fraction(clip_norm) / (Fraction(Decimal(total).sqrt()) + Fraction(1e-6))
    return [x * min(factor, Fraction(1)) for x in scaled]


@pytest.mark.parametrize(("dtype", "values", "options"), FACTORS)
def test_what_float_can_hold_in_the_end_comes_out_right(
    dtype: Any, values: list[float], options: dict[str, Any]
) -> None:
    info, grad = np.finfo(dtype), np.array(values, dtype)
    exact = treated(grad, options["scale"], options.get("clip_norm"))
    expected = [0.0 if abs(x) < Fraction(float(info.tiny)) else float(x) for x in exact]
    param, twin = np.zeros_like(grad), np.zeros_like(grad)
    optimizer = schuss.SGD(param, lr=1.0, clip_norm=options.get("clip_norm"), nonfinite="raise")
    optimizer.step(grad, scale=options["scale"])
    np.testing.assert_allclose(-param, expected, rtol=4 * float(info.eps))
    reference.step([partial(reference.sgd, lr=1.0)], [twin], [grad], [[]], step=1, **options)
    assert same_bits(param, twin)


@pytest.mark.parametrize("of_grad", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scale", [3e-40, -3e-60, 7e40])
def test_scales_that_float32_cannot_hold_have_the_twins_bits(
    scale: float, name: str, of_grad: str
) -> None:
    dtype: Any = of_grad
    if of_grad == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(11)
    params = arrays(rng)
    twin, optimizer = Twin(name, params), make(name, params, clip_value=0.5)
    for _ in range(2):
        grads = [numbers(rng, shape, dtype) for shape in SHAPES]
        optimizer.step(grads, scale=scale)
        wide = [grad.astype(np.float32) for grad in grads]
        twin.step(wide, scale=scale, clip_value=0.5)
        assert equal(params, twin.params)


def test_gradients_are_accumulated_with_a_scale_that_float32_cannot_hold() -> None:
    param = np.zeros(2, np.float32)
    optimizer = schuss.SGD(param, lr=1.0)
    for _ in range(2):
        optimizer.accumulate(np.array([1e35, 1e-10], np.float32), scale=1e-40)
    optimizer.step()
    np.testing.assert_allclose(param, [-2e-5, 0], rtol=1e-6)


NORMS: list[list[float]] = [
    [1e155, 0.0],
    [1e160] * 8,
    [float(FLOAT64.max), 1.0],
    [1.7e308, -1.7e308],
    [1e-170, -2e-170],
    [float(FLOAT64.tiny)] * 5000,
    [1e-170, 1.0],
    [1e160, 1e-160],
    [0.0, 0.0],
]


@pytest.mark.parametrize("values", NORMS, ids=lambda values: f"{values[0]:g}, {values[-1]:g}")
@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_every_finite_float64_has_a_norm(values: list[float], scale: float) -> None:
    grads = [np.array(values), np.array([3.0], np.float32)]
    for given in (grads, grads[:1]):
        params = [np.zeros_like(grad) for grad in given]
        optimizer = schuss.SGD(params, lr=1.0, clip_norm=1.0, nonfinite="raise")
        optimizer.step(given, scale=scale)
        squares = sum(Fraction(float(x)) ** 2 for grad in given for x in grad)
        with localcontext(prec=40, Emax=99999, Emin=-99999):
            norm = (Decimal(squares.numerator) / Decimal(squares.denominator)).sqrt()
            scaled = norm * Decimal(scale)
        assert optimizer.last is not None
        assert optimizer.last.grad_norm == reference.grad_norm(params, given, scale=scale)
        assert optimizer.last.grad_norm == pytest.approx(float(scaled), rel=1e-15, abs=0)
        made = np.concatenate([-param.astype(float) for param in params])
        expected = min(Decimal(1), scaled)
        largest = max(abs(made))
        length = float(largest) * np.linalg.norm(made / largest) if largest else 0.0
        assert length == pytest.approx(float(expected), rel=2e-6)


UNHELD: list[tuple[str, dict[str, Any], str, float]] = [
    ("SGD", {}, "lr", 1e39),
    ("Momentum", {"beta": 0.99, "bias_correction": True}, "lr", 1e38),
    ("Adam", {}, "lr", 1e38),
    ("SGD", {}, "weight_decay", 1e39),
    ("SGD", {}, "weight_decay", 1e-40),
    ("AdamW", {"lr": 1e30}, "weight_decay", 1e30),
    ("Adam", {}, "eps", 1e39),
    ("Adam", {}, "eps", 1e-60),
    ("RMSprop", {}, "eps_root", 1e-46),
    ("RMSprop", {}, "momentum", 1e-39),
    ("Adam", {}, "beta2", 1e-39),
    ("SGD", {}, "clip_value", 1e-39),
]


@pytest.mark.parametrize(("name", "others", "bad", "value"), UNHELD)
def test_what_float32_cannot_hold_is_refused_at_once(
    name: str, others: dict[str, Any], bad: str, value: float
) -> None:
    # Some as they are, some as what the first step makes of them.
    made = "(, which gives the coefficient .*)?"
    message = (
        rf"^{name}: {bad} is {re.escape(repr(value))}{made}, expected 0 or a number from 1\.2e-38"
    )
    options = others | {bad: value}
    with pytest.raises(ValueError, match=message):
        getattr(schuss, name)([np.zeros(2), np.zeros(2, np.float32)], **options)
    getattr(schuss, name)(np.zeros(2), **options)
    optimizer = getattr(schuss, name)(np.zeros(2, np.float32), **others)
    before = repr(optimizer)
    with pytest.raises(ValueError, match=message):
        setattr(optimizer, bad, value)
    assert repr(optimizer) == before
    if bad != "clip_value":  # which no group has of its own
        with pytest.raises(ValueError, match=message):
            optimizer.param_groups[0][bad] = value
    optimizer.step(np.ones(2, np.float32))
    assert np.isfinite(optimizer.params).all()


def test_a_rate_that_float32_cannot_hold_is_refused_where_it_comes_from() -> None:
    wide, param = np.zeros(2), np.array([0.0, 1.0], np.float32)
    grad = np.array([0.0, 1.0], np.float32)
    groups: Any = [
        {"params": [wide], "lr": 1e39},
        {"params": [param], "lr": lambda t: 10.0**37 * t},
    ]
    optimizer = schuss.SGD(groups)
    with pytest.raises(ValueError, match=r"^SGD: param_groups\[1\]\['lr'\] is 1e\+39, expected"):
        optimizer.param_groups[1]["lr"] = 1e39
    optimizer.param_groups[1]["lr"] = lambda t: 1e39
    with pytest.raises(ValueError, match=r"^SGD\.step: param_groups\[1\]\['lr'\] is 1e\+39, exp"):
        optimizer.step([[np.ones(2)], [grad]])
    assert (optimizer.steps, wide.tolist(), param.tolist()) == (0, [0, 0], [0, 1])
    with pytest.raises(ValueError, match=r"^SGD: param_groups\[0\]\['lr'\] is 1e\+39, expected"):
        schuss.SGD([{"params": [param]}, {"params": [wide], "lr": 0.1}]).lr = 1e39
    schuss.SGD([{"params": [wide]}, {"params": [param], "lr": 0.1}]).lr = 1e39
    saved, other = schuss.SGD(np.zeros(2), lr=1e39).state_dict(), schuss.SGD(param)
    with pytest.raises(ValueError, match=r"^SGD: lr is 1e\+39, expected"):
        other.load_state_dict(saved)
    assert other.lr == 0.01
    with pytest.raises(ValueError, match=r"^kernels\.sgd: lr is 1e\+39, expected"):
        schuss.kernels.sgd(param, grad, lr=1e39)
    state = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"^kernels\.adam: eps is 1e-60, expected"):
        schuss.kernels.adam(param, grad, *state, step=1, eps=1e-60)
    assert param.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "AdamW"])
def test_a_rate_below_the_normal_numbers_is_no_zero(name: str, dtype: Any) -> None:
    """As those of schedules become: what is large enough moves, and training goes on."""
    lr = {np.float32: 1e-41, np.float64: 1e-311}[dtype]
    rng = np.random.default_rng(12)
    rule, states = OPTIMIZERS["Adam" if name == "AdamW" else name]
    params = arrays(rng, dtype)
    for param in params:
        param *= rng.random(param.shape) < 0.5
    twins = [param.copy() for param in params]
    state = [[np.zeros_like(param) for _ in range(states)] for param in params]
    options: dict[str, Any] = {"weight_decay": 0.1, "clip_value": 1e30}
    optimizer = getattr(schuss, name)(params, lr=lambda t: lr * t, **options)
    for t in (1, 2):
        grads = [grad * dtype(1e34) for grad in arrays(rng, dtype)]
        optimizer.step(grads)
        own = {"step": t} if states == 2 else {}
        own |= {"decoupled": True} if name == "AdamW" else {}
        for twin, grad, kept in zip(twins, grads, state, strict=True):
            rule(twin, grad, *kept, lr=lr * t, **own, **options)
        assert equal(params, twins)


@pytest.mark.parametrize(("dtype", "lr"), [(np.float32, 1e-41), (np.float64, 1e-311)])
def test_a_tiny_rate_times_a_huge_gradient_moves(dtype: Any, lr: float) -> None:
    param = np.zeros(3, dtype)
    schuss.SGD(param, lr=lr).step(np.array([1e30, -3e37, 0], dtype))
    np.testing.assert_allclose(param, [-lr * 1e30, lr * 3e37, 0], rtol=1e-6)
    for vanishing in (1e-300 * lr, 0.0):
        schuss.SGD(param, lr=vanishing).step(np.ones(3, dtype))
    np.testing.assert_allclose(param, [-lr * 1e30, lr * 3e37, 0], rtol=1e-6)


# What is not finite.

BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 4095, 4096, 9_999])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_raise_names_the_array_and_changes_nothing(bad: float, place: int, dtype: Any) -> None:
    params = {"W": np.ones(10_000, dtype), "b": np.ones((2, 2), dtype)}
    optimizer = schuss.Adam(params, nonfinite="raise", clear_grads=True)
    grads = {"W": np.ones(10_000, dtype), "b": np.ones((2, 2), dtype)}
    optimizer.step(grads)
    grads["W"][:], grads["b"][:] = 1, 1
    grads["W"][place] = grads["b"][1, 1] = bad
    state = [*optimizer.state["m"].values(), *optimizer.state["v"].values()]
    before, last = bits([*params.values(), *grads.values(), *state]), optimizer.last
    with pytest.raises(FloatingPointError, match=r"^Adam\.step: grads\['W'\] has a NaN or an inf"):
        optimizer.step(grads)
    assert bits([*params.values(), *grads.values(), *state]) == before
    assert (optimizer.steps, optimizer.skipped, optimizer.last) == (1, 0, last)
    grads["W"][place] = 1
    with pytest.raises(FloatingPointError, match=r"grads\['b'\]"):
        optimizer.step(grads)


@pytest.mark.parametrize("bad", BAD)
def test_skip_leaves_all_as_it_was_and_counts(bad: float) -> None:
    params = [np.ones(5000), np.ones(3)]
    optimizer = schuss.Momentum(params, lr=lambda t: float(t), nonfinite="skip")
    good, spoilt = [np.ones(5000), np.ones(3)], [np.ones(5000), np.array([1.0, bad, 1.0])]
    twin = schuss.Momentum([np.ones(5000), np.ones(3)], lr=lambda t: float(t))
    for grads in (good, spoilt, spoilt, good):
        optimizer.step(grads)
        assert optimizer.last is not None
        assert optimizer.last.skipped == (grads is spoilt)
        if grads is good:
            twin.step(grads)
        assert equal(params, twin.params)
        assert (optimizer.steps, optimizer.lr_now) == (twin.steps, twin.lr_now)
    assert optimizer.skipped == 2


def test_large_finite_numbers_are_finite() -> None:
    grad = np.array([1e300, -1e300])
    optimizer = schuss.SGD(np.zeros(2), lr=1e-300, nonfinite="raise")
    optimizer.step(grad)
    assert optimizer.params.tolist() == [-1.0, 1.0]


def test_propagate_is_the_default() -> None:
    optimizer = schuss.SGD(np.zeros(2))
    optimizer.step(np.array([np.nan, 1.0]))
    assert np.isnan(optimizer.params).tolist() == [True, False]
    optimizer = schuss.SGD(np.zeros(2), clip_norm=1.0)
    optimizer.step(np.array([np.inf, 1.0]))
    assert np.isnan(optimizer.params[0])


# Cleared gradients.


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_clearing_leaves_zeros_and_the_same_step(layout: str, threads: int) -> None:
    rng = np.random.default_rng(4)
    for shape in ((37, 130), (5, 3), ()):
        params = [numbers(rng, shape, np.float32) for _ in range(2)]
        how = layout if shape else "c"
        grads = [laid_out(numbers(rng, shape, np.float32), how) for _ in range(2)]
        around = [None if grad.base is None else (grad.base, grad.base.copy()) for grad in grads]
        kept, twin = [grad.copy() for grad in grads], Twin("Adam", params)
        optimizer = schuss.Adam(params, lr=0.1, clear_grads=True)
        with schuss.threads(threads):
            optimizer.step(grads)
        twin.step(kept)
        assert equal(params, twin.params)
        for grad, copy, bases in zip(grads, kept, around, strict=True):
            assert not grad.any()
            grad[...] = copy  # and nothing beside it was written
            assert bases is None or bases[0].tobytes() == bases[1].tobytes()


def test_a_skipped_step_clears_too() -> None:
    grad = np.array([np.nan, 1.0, 2.0])
    optimizer = schuss.SGD(np.zeros(3), nonfinite="skip", clear_grads=True)
    optimizer.step(grad)
    assert grad.tolist() == [0, 0, 0]
    assert (optimizer.steps, optimizer.skipped) == (0, 1)


def test_what_cannot_be_cleared_is_refused() -> None:
    params = [np.zeros(3), np.zeros(3)]
    optimizer = schuss.SGD(params, clear_grads=True)
    one = np.ones(4)
    cases = [
        ([one[:3], one[1:]], r"grads\[1\] shares memory with grads\[0\]"),
        ([one[:3], one[:3]], r"grads\[1\] is the same array as grads\[0\]"),
        ([np.ones(3), np.broadcast_to(1.0, 3)], r"grads\[1\] is read-only"),
    ]
    optimizer.step([np.ones(3), np.ones(3)])
    before = bits(params)
    for grads, message in cases:
        with pytest.raises(ValueError, match=f"^SGD.step: {message}"):
            optimizer.step(grads)
        assert bits(params) == before
        assert one.tolist() == [1, 1, 1, 1]
    reused = [np.ones(3), np.ones(3)]
    optimizer.step(reused)
    reused[1].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step(reused)
    optimizer.clear_grads = False
    optimizer.step(reused)
    shared = [one[:3], one[1:]]
    optimizer.step(shared)
    optimizer.clear_grads = True
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step(shared)
    assert one.tolist() == [1, 1, 1, 1]


def test_threads_may_each_take_whole_steps() -> None:
    rng = np.random.default_rng(5)
    grads = rng.standard_normal((4, 200_000))
    params = np.zeros_like(grads)
    optimizers = [schuss.Adam(p, clip_norm=1.0, nonfinite="raise") for p in params]

    def train(i: int) -> None:
        for _ in range(20):
            optimizers[i].step(grads[i])

    threads = [threading.Thread(target=train, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for param, grad in zip(params, grads, strict=True):
        alone = np.zeros_like(grad)
        optimizer = schuss.Adam(alone, clip_norm=1.0)
        for _ in range(20):
            optimizer.step(grad)
        assert same_bits(param, alone)


# Averages of the parameters.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_have_the_bits_of_those_taken_after_each_step(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(6)
    params, alone = arrays(rng, dtype), arrays(np.random.default_rng(6), dtype)
    optimizer, plain = make(name, params, average=0.9), make(name, alone)
    assert equal(optimizer.average, params)
    averages = [param.copy() for param in params]
    for t in range(4):
        grads = arrays(rng, dtype)
        optimizer.step(grads)
        plain.step(grads)
        for average, param in zip(averages, alone, strict=True):
            reference.average(average, param, beta=0.9 if t else 0.0)
        assert equal(params, alone)
        assert equal(optimizer.average, averages)


def test_averages_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    rng = np.random.default_rng(7)
    values = rng.standard_normal((3, 5)).astype(np.float32)
    model = torch.nn.Linear(5, 3, bias=False)
    model.weight.data = torch.from_numpy(values.copy())
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = schuss.SGD(values, lr=0.1, average=0.9)
    for _ in range(6):
        grad = rng.standard_normal(values.shape).astype(np.float32)
        model.weight.grad = torch.from_numpy(grad.copy())
        other.step()
        averaged.update_parameters(model)
        optimizer.step(grad)
        theirs = averaged.module.weight.detach().numpy()
        np.testing.assert_allclose(optimizer.average, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bias_correction_makes_true_weighted_means(dtype: Any) -> None:
    param = np.array([1.0, -2.0], dtype)
    optimizer = schuss.SGD(param, lr=1.0, average=0.75, average_bias_correction=True)
    assert same_bits(optimizer.average, param)
    seen: list[Array] = []
    for t in range(1, 6):
        optimizer.step(np.full(2, t, dtype))
        seen.append(param.astype(np.float64))
        weights = 0.75 ** np.arange(t)[::-1]
        expected = np.average(seen, axis=0, weights=weights)
        np.testing.assert_allclose(optimizer.average, expected, rtol=1e-6)
    assert optimizer.average.dtype == dtype


@pytest.mark.parametrize("corrected", [False, True])
def test_a_long_average_of_float32_neither_shrinks_nor_grows(corrected: bool) -> None:
    """Beta and 1-beta as weights would be off by up to 3e-8, here 10,000 times in a row."""
    beta, base, rng = 0.9999, np.linspace(0.1, 2, 16), np.random.default_rng(13)
    param, exact, weight = np.zeros(16, np.float32), np.zeros(16), 0.0
    optimizer = schuss.SGD(param, lr=0.0, average=beta, average_bias_correction=corrected)
    for t in range(30_000):
        param[:] = base + 0.05 * rng.standard_normal(16)
        optimizer.step(np.zeros(16, np.float32))
        gain = 1.0 if t == 0 and not corrected else 1 - beta
        exact += gain * (param - exact)
        weight += gain * (1 - weight)
    error = optimizer.average / (exact / weight) - 1
    assert abs(error.mean()) <= 2e-6
    assert abs(error).max() <= 2e-5


def test_bias_correction_divides_by_the_weights_that_were_used() -> None:
    """In float32, beta and 1-beta are rounded each, and beta may change."""
    param = np.full(3, 7.0, np.float32)
    optimizer = schuss.SGD(param, lr=0.0, average=0.9999, average_bias_correction=True)
    for t in range(3000):
        if t == 1500:
            optimizer.average = 0.99
        optimizer.step(np.zeros(3, np.float32))
    np.testing.assert_allclose(optimizer.average, 7.0, rtol=2e-5)


def test_averages_can_be_switched_off_and_begun_anew() -> None:
    optimizer: Any = schuss.SGD(np.zeros(1), lr=1.0)
    assert optimizer.average is None
    optimizer.average = 0.5
    for _ in range(2):
        optimizer.step(np.array([-2.0]))
    assert optimizer.average.tolist() == [3.0]  # of 2 and 4
    optimizer.average = 0.75
    optimizer.step(np.array([-3.0]))
    assert optimizer.average.tolist() == [4.0]  # of 3 and 7
    optimizer.average = None
    assert optimizer.average is None
    optimizer.average = 0.5
    assert optimizer.average.tolist() == [7.0]
    optimizer.step(np.array([-1.0]))
    assert optimizer.average.tolist() == [8.0]
    optimizer.average_bias_correction = True
    assert optimizer.average.tolist() == [8.0]
    optimizer.step(np.array([-1.0]))
    assert optimizer.average.tolist() == [9.0]


def test_a_skipped_step_leaves_the_averages_and_the_copies() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    param = np.zeros(2, np.float32)
    optimizer = schuss.SGD(param, lr=1.0, average=0.5, nonfinite="skip", copies=ml_dtypes.bfloat16)
    optimizer.step(np.array([-4.0, 2.0], np.float32))
    optimizer.step(np.array([np.nan, 1.0], np.float32))
    assert param.tolist() == optimizer.average.tolist() == [4.0, -2.0]
    assert optimizer.copies.astype(np.float32).tolist() == [4.0, -2.0]
    optimizer.step(np.array([-4.0, 2.0], np.float32))
    assert optimizer.average.tolist() == [6.0, -3.0]


def test_averages_and_copies_are_kept_apart_from_what_a_step_reads() -> None:
    param = np.zeros(4, np.float32)
    optimizer = schuss.SGD(param, average=0.5, copies="float16")
    for grad, name in ((optimizer.average, "average"), (optimizer.copies, "copies")):
        with pytest.raises(ValueError, match=f"^SGD.step: grads shares memory with {name}"):
            optimizer.step(grad)
    assert not param.any()


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy", "state_dict"])
def test_options_and_averages_survive(how: str) -> None:
    import copy
    import pickle

    rng = np.random.default_rng(8)
    options: dict[str, Any] = {"clip_norm": 1.0, "clip_value": 0.5, "nonfinite": "skip"}
    options["average"] = 0.9
    params = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    optimizer = schuss.Adam(params, **options, average_bias_correction=True)
    grads = [{"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)} for _ in range(4)]
    for grad in grads[:2]:
        optimizer.step(grad)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(optimizer))
    elif how == "state_dict":
        other = schuss.Adam({name: array.copy() for name, array in params.items()})
        other.load_state_dict(optimizer.state_dict())
    else:
        other = {"copy": copy.copy, "deepcopy": copy.deepcopy}[how](optimizer)
    if how == "copy":  # of the same parameters
        other = copy.deepcopy(other)
    for name, value in options.items():
        assert name == "average" or getattr(other, name) == value
    for grad in grads[2:]:
        optimizer.step(grad)
        other.step(grad)
    for name, array in params.items():
        assert same_bits(other.params[name], array)
        assert same_bits(other.average[name], optimizer.average[name])


def test_the_repr_tells_of_options_that_are_set() -> None:
    assert "clip" not in repr(schuss.SGD(np.zeros(1)))
    text = repr(schuss.SGD(np.zeros(1), clip_norm=2.0, average=0.9))
    assert "clip_norm=2.0, average=0.9" in text


# Steps of many things at once.


def test_a_whole_step_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(9)
    params = arrays(rng)
    options: dict[str, Any] = {"clip_norm": 2.0, "clip_value": 0.05, "nonfinite": "skip"}
    twins, averages = [p.copy() for p in params], [p.copy() for p in params]
    states = [[np.zeros_like(p), np.zeros_like(p)] for p in params]
    optimizer = schuss.Adam(params, lr=0.1, clear_grads=True, average=0.9, **options)
    t = 0
    for spoilt in (False, True, False):
        grads = arrays(rng)
        if spoilt:
            grads[3][5] = np.inf
        copies = [grad.copy() for grad in grads]
        optimizer.step(grads, scale=0.5)
        rules = [partial(reference.adam, step=t + 1, lr=0.1)] * len(params)
        norm, clipped, skipped = reference.step(
            rules,
            twins,
            copies,
            states,
            step=t + 1,
            scale=0.5,
            clear_grads=True,
            averages=averages,
            beta=0.9 if t else 0.0,
            **options,
        )
        t += not skipped
        assert skipped == spoilt
        if not skipped:
            assert optimizer.last == schuss.optimizers.Last(norm, clipped, skipped)
        assert equal(params, twins)
        assert equal(optimizer.average, averages)
        assert equal(grads, copies)
    assert (optimizer.steps, optimizer.skipped) == (2, 1)


# What a user may do to arrays in between.


def test_copies_are_safe_from_what_becomes_of_the_users_arrays() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    param, copies = np.zeros(100_000, np.float32), np.zeros(100_000, ml_dtypes.bfloat16)
    optimizer = schuss.SGD(param, lr=1.0, copies=copies)
    optimizer.step(np.ones_like(param))
    copies.flags.writeable = False
    with pytest.raises(ValueError, match=r"^SGD\.step: the copy of params has become read-only"):
        optimizer.step(np.ones_like(param))
    assert (param == -1).all()
    copies.flags.writeable = True
    with pytest.raises(ValueError, match="resize"):  # NumPy's: someone uses it
        copies.resize(10)
    copies.shape = (10, 10_000)
    optimizer.average = 0.5  # takes memory beside them
    optimizer.step(np.ones_like(param))
    assert (copies.astype(np.float32) == -2).all()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    copies.flags.writeable = False
    with pytest.raises(ValueError, match=r"^SGD\.load_state_dict: the copy of params has become"):
        optimizer.load_state_dict(saved)
    assert (param == -2).all()


def test_loading_writes_the_copies_anew() -> None:
    param = np.zeros(3, np.float32)
    optimizer = schuss.SGD(param, lr=1.0, copies="float16")
    saved = optimizer.state_dict()
    param[:] = [1, 2, 3]
    optimizer.load_state_dict(saved)
    assert optimizer.copies.tolist() == [1, 2, 3]


@pytest.mark.parametrize("before", [False, True])
def test_what_cannot_be_cleared_is_refused_each_time(before: bool) -> None:
    params = [np.zeros(3), np.zeros(3)]
    optimizer = schuss.SGD(params, clear_grads=True)
    if before:
        optimizer.step([np.ones(3), np.ones(3)])
        params[0][:] = params[1][:] = 0
    one, frozen = np.ones(4), np.ones(3)
    frozen.flags.writeable = False
    for _ in range(3):
        with pytest.raises(ValueError, match="shares memory"):
            optimizer.step([one[:3], one[1:]])
        with pytest.raises(ValueError, match="read-only"):
            optimizer.step([np.ones(3), frozen])
    assert not np.any(params)
    assert one.all()


def test_averages_begin_anew_after_what_is_not_finite() -> None:
    param = np.array([np.nan, np.inf, 1.0])
    optimizer = schuss.SGD(param, lr=0.0, average=0.5)
    param[:] = 2
    optimizer.step(np.zeros(3))
    assert optimizer.average.tolist() == [2, 2, 2]


def test_averages_of_low_precision_are_float32_from_the_start() -> None:
    param = np.array([1.5], np.float16)
    for corrected in (False, True):
        optimizer = schuss.SGD(param, average=0.5, average_bias_correction=corrected)
        assert optimizer.average.dtype == np.float32
        assert optimizer.average.tolist() == [1.5]


def test_the_norm_of_gradients_that_lie_across_is_the_twins() -> None:
    rng = np.random.default_rng(10)
    shapes = [(300, 411), (5, 70_001), (70_001, 5), (3, 50, 700)]
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    grads = [np.asfortranarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    optimizer = schuss.SGD(params, lr=0.0, clip_norm=1.0)
    optimizer.step(grads)
    assert optimizer.last is not None
    assert optimizer.last.grad_norm == reference.grad_norm(params, grads)
