"""What a step does apart from its rule: scaling, clipping, checks for NaN, averages, clearing."""

import re
import warnings
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import LAYOUTS, Array, bits, laid_out, numbers, random_arrays
from support.optimizers import (
    Options,
    assert_same,
    every_variant,
    make_optimizer,
    make_reference,
)

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def pair(name: str, params: list[Array], **options: Any) -> tuple[Any, reference.Optimizer]:
    """Return an optimizer, and its reference with copies of the parameters."""
    copies = [param.copy(order="K") for param in params]
    options = {"lr": 0.1, **options}
    return make_optimizer(name, params, **options), make_reference(name, copies, **options)


# Scaling and clipping.


def assert_norm_is_the_references(params: list[Array], grads: list[Array]) -> None:
    optimizer: Any = schuss.SGD(params, lr=0.0, clip_norm=1.0)
    optimizer.step(grads)
    assert optimizer.last.grad_norm == reference.grad_norm(params, grads)


@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_the_norm_is_the_references_in_every_layout(of_param: str, of_grad: str) -> None:
    rng = np.random.default_rng(2)
    for shape in ((70, 131), (3, 1, 2000), (13, 7, 60)):
        param = laid_out(rng.standard_normal(shape), of_param)
        assert_norm_is_the_references([param], [laid_out(rng.standard_normal(shape), of_grad)])


def test_the_norm_of_large_gradients_that_lie_across_is_the_references() -> None:
    rng = np.random.default_rng(10)
    shapes = [(300, 411), (5, 70_001), (70_001, 5), (3, 50, 700)]
    params, grads = (
        [numbers(rng, shape, np.float32, special=False) for shape in shapes] for _ in range(2)
    )
    assert_norm_is_the_references(params, [np.asfortranarray(grad) for grad in grads])


def test_the_norm_is_the_references_of_arrays_that_share_a_block_of_the_sum() -> None:
    rng = np.random.default_rng(14)
    for _ in range(40):
        params = [rng.standard_normal(n) for n in (1, 17, rng.integers(1, 5000), 4097)]
        grads = [rng.standard_normal(p.shape) * 10.0 ** rng.integers(-3, 3) for p in params]
        assert_norm_is_the_references(params, grads)


def test_the_norm_is_that_of_all_arrays_together() -> None:
    optimizer: Any = schuss.SGD([np.zeros(2), np.zeros((1, 1))], lr=1.0, clip_norm=6.5)
    optimizer.step([np.array([3.0, 4.0]), np.array([[12.0]])])
    assert optimizer.last.grad_norm == 13
    np.testing.assert_allclose(optimizer.params[0], [-1.5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(optimizer.params[1], [[-6.0]], rtol=1e-6)


def test_the_norm_of_float32_does_not_overflow_and_is_rounded_like_float64() -> None:
    grad = np.full(10_000, 3e38, np.float32)
    optimizer: Any = schuss.SGD(np.zeros_like(grad), clip_norm=1.0)
    optimizer.step(grad)
    assert optimizer.last.grad_norm == pytest.approx(float(np.float32(3e38)) * 100, rel=1e-14)


def test_clipping_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    values = random_arrays(rng)
    theirs = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
    other = torch.optim.Adam(theirs, lr=0.1)
    optimizer: Any = schuss.Adam(values, lr=0.1, clip_norm=2.0)
    for _ in range(5):
        grads = random_arrays(rng)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0)
        other.step()
        optimizer.step(grads)
        assert optimizer.last.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for value, parameter in zip(values, theirs, strict=True):
        np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=2e-4, atol=2e-6)


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


def scaled_and_clipped(values: Array, scale: float, clip_norm: float | None) -> list[Fraction]:
    """Return scaled and clipped gradients by exact arithmetic, with a root of 40 digits."""
    scaled = [Fraction(scale) * Fraction(x) for x in values.tolist()]
    if clip_norm is None:
        return scaled
    with localcontext(prec=40, Emax=99999, Emin=-99999):
        total = sum((Decimal(x.numerator) / Decimal(x.denominator)) ** 2 for x in scaled)
        factor = Fraction(clip_norm) / (Fraction(Decimal(total).sqrt()) + Fraction(1e-6))
    return [x * min(factor, Fraction(1)) for x in scaled]


@pytest.mark.parametrize(("dtype", "values", "options"), FACTORS)
def test_a_product_that_float_can_represent_comes_out_right(
    dtype: Any, values: list[float], options: dict[str, Any]
) -> None:
    info, grad = np.finfo(dtype), np.array(values, dtype)
    scale, clip_norm = options["scale"], options.get("clip_norm")
    exact = scaled_and_clipped(grad, scale, clip_norm)
    expected = [0.0 if abs(x) < Fraction(float(info.tiny)) else float(x) for x in exact]
    param = np.zeros_like(grad)
    optimizer, model = pair("SGD", [param], lr=1.0, clip_norm=clip_norm, nonfinite="raise")
    optimizer.step([grad], scale=scale)
    np.testing.assert_allclose(-param, expected, rtol=4 * float(info.eps))
    model.step([grad], scale=scale)
    assert_same(optimizer, model)


def test_gradients_are_accumulated_with_a_scale_that_float32_cannot_represent() -> None:
    param = np.zeros(2, np.float32)
    optimizer = schuss.SGD(param, lr=1.0)
    for _ in range(2):
        optimizer.accumulate(np.array([1e35, 1e-10], np.float32), scale=1e-40)
    optimizer.step()
    np.testing.assert_allclose(param, [-2e-5, 0], rtol=1e-6)


NORMS: list[list[float]] = [
    [1e155, 0.0],
    [1e160] * 8,
    [2.0**531] * 13_000,
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
        optimizer: Any = schuss.SGD(params, lr=1.0, clip_norm=1.0, nonfinite="raise")
        optimizer.step(given, scale=scale)
        squares = sum(Fraction(float(x)) ** 2 for grad in given for x in grad)
        with localcontext(prec=40, Emax=99999, Emin=-99999):
            norm = (Decimal(squares.numerator) / Decimal(squares.denominator)).sqrt()
            scaled = norm * Decimal(scale)
        assert optimizer.last.grad_norm == reference.grad_norm(params, given, scale=scale)
        assert optimizer.last.grad_norm == pytest.approx(float(scaled), rel=1e-15, abs=0)
        made = np.concatenate([-param.astype(float) for param in params])
        expected = min(Decimal(1), scaled)
        largest = max(abs(made))
        length = float(largest) * np.linalg.norm(made / largest) if largest else 0.0
        assert length == pytest.approx(float(expected), rel=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("others", [1.0, "largest"])
@pytest.mark.parametrize("at", [0, 4095, 4096, 9000, 12_999])
def test_the_first_gradient_that_is_not_finite_is_named_wherever_it_is(
    dtype: Any, others: Any, at: int
) -> None:
    value = float(np.finfo(dtype).max) if others == "largest" else others
    grads = {name: np.full(13_000, value, dtype) for name in "abc"}
    optimizer = schuss.SGD({name: np.zeros(13_000, dtype) for name in "abc"}, nonfinite="raise")
    optimizer.step(grads, scale=0.0)
    for name in "cb":
        grads[name][at] = np.nan if name == "b" else -np.inf
        with pytest.raises(FloatingPointError, match=rf"grads\['{name}'\] has a NaN or an inf"):
            optimizer.step(grads)


UNHELD: list[tuple[str, dict[str, Any], str, float]] = [
    ("SGD", {}, "lr", 1e39),
    ("Momentum", {"beta": 0.99, "bias_correction": True}, "lr", 1e38),
    ("Adam", {}, "lr", 1e38),
    ("SGD", {}, "weight_decay", 1e39),
    ("SGD", {}, "weight_decay", 1e-40),
    ("AdamW", {"lr": 1e30}, "weight_decay", 1e30),
    ("Adam", {}, "eps", 1e39),
    ("Adam", {}, "eps", 1e-60),
    ("Adam", {"eps": 0.0}, "eps_hat", 1e-46),
    ("Adam", {"eps": 0.5}, "eps_hat", 1e38),
    ("Momentum", {"lr_in_velocity": True}, "lr", 1e40),
    ("Adagrad", {}, "initial_accumulator_value", 1e39),
    ("RMSprop", {}, "eps_root", 1e-46),
    ("RMSprop", {}, "momentum", 1e-39),
    ("Adam", {}, "beta2", 1e-39),
    ("SGD", {}, "clip_value", 1e-39),
]


@pytest.mark.parametrize(("name", "others", "bad", "value"), UNHELD)
def test_what_float32_cannot_represent_is_refused_at_once(
    name: str, others: dict[str, Any], bad: str, value: float
) -> None:
    # Some as they are, some as what the first step makes of them.
    made = "(, which gives the coefficient .*)?"
    expected = r"expected 0 or a magnitude from 1\.2e-38"
    message = rf"^{name}: {bad} is {re.escape(repr(value))}{made}, {expected}"
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


def test_a_rate_that_float32_cannot_represent_is_refused_where_it_comes_from() -> None:
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
    with pytest.raises(ValueError, match=r"^SGD\.load_state_dict: lr is 1e\+39, expected"):
        other.load_state_dict(saved)
    assert other.lr == 0.01
    with pytest.raises(ValueError, match=r"^kernels\.sgd: lr is 1e\+39, expected"):
        schuss.kernels.sgd(param, grad, lr=1e39)
    state = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"^kernels\.adam: eps is 1e-60, expected"):
        schuss.kernels.adam(param, grad, *state, step=1, eps=1e-60)
    assert param.tolist() == [0, 1]


@every_dtype
@every_variant
def test_a_rate_below_the_normal_numbers_is_no_zero(
    name: str, options: Options, dtype: Any
) -> None:
    """Schedules come to such rates. What is large enough moves, and training goes on."""
    lr = {np.float32: 1e-41, np.float64: 1e-311}[dtype]
    rng = np.random.default_rng(12)
    params = random_arrays(rng, dtype)
    for param in params:
        param *= rng.random(param.shape) < 0.5
    others = {"lr": lambda t: lr * t, "weight_decay": 0.1, "clip_value": 1e30}
    optimizer, expected = pair(name, params, **{**options, **others})
    for _ in range(2):
        grads = [grad * dtype(1e34) for grad in random_arrays(rng, dtype)]
        optimizer.step(grads)
        expected.step(grads)
        assert_same(optimizer, expected)


@pytest.mark.parametrize("form", ["SGD", "Momentum", "Momentum lr_in_velocity"])
@pytest.mark.parametrize(("dtype", "lr"), [(np.float32, 1e-41), (np.float64, 1e-311)])
def test_a_tiny_rate_times_a_huge_gradient_moves(form: str, dtype: Any, lr: float) -> None:
    name, *flags = form.split()
    options = dict.fromkeys(flags, True) | ({} if name == "SGD" else {"dampening": 0.0})
    param = np.zeros(3, dtype)
    make_optimizer(name, param, lr=lr, **options).step(np.array([1e30, -3e37, 0], dtype))
    np.testing.assert_allclose(param, [-lr * 1e30, lr * 3e37, 0], rtol=1e-6)
    for vanishing in (1e-300 * lr, 0.0):
        make_optimizer(name, param, lr=vanishing, **options).step(np.ones(3, dtype))
    np.testing.assert_allclose(param, [-lr * 1e30, lr * 3e37, 0], rtol=1e-6)


# What is not finite.

BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("index", [0, 4095, 4096, 9_999])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_raise_names_the_array_and_changes_nothing(bad: float, index: int, dtype: Any) -> None:
    params = {"W": np.ones(10_000, dtype), "b": np.ones((2, 2), dtype)}
    optimizer = schuss.Adam(params, nonfinite="raise", clear_grads=True)
    grads = {"W": np.ones(10_000, dtype), "b": np.ones((2, 2), dtype)}
    optimizer.step(grads)
    grads["W"][:], grads["b"][:] = 1, 1
    grads["W"][index] = grads["b"][1, 1] = bad
    state = [*optimizer.state["m"].values(), *optimizer.state["v"].values()]
    before, last = bits([*params.values(), *grads.values(), *state]), optimizer.last
    with pytest.raises(FloatingPointError, match=r"^Adam\.step: grads\['W'\] has a NaN or an inf"):
        optimizer.step(grads)
    assert bits([*params.values(), *grads.values(), *state]) == before
    assert (optimizer.steps, optimizer.skipped, optimizer.last) == (1, 0, last)
    grads["W"][index] = 1
    with pytest.raises(FloatingPointError, match=r"grads\['b'\]"):
        optimizer.step(grads)


# Cleared gradients.


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_clearing_leaves_zeros_and_the_same_step(layout: str, threads: int) -> None:
    rng = np.random.default_rng(4)
    for shape in ((37, 130), (5, 3), ()):
        params, values = ([numbers(rng, shape, np.float32) for _ in range(2)] for _ in range(2))
        grads = [laid_out(value, layout if shape else "c") for value in values]
        around = [None if grad.base is None else (grad.base, grad.base.copy()) for grad in grads]
        optimizer, expected = pair("Adam", params, clear_grads=True)
        with schuss.threads(threads):
            optimizer.step(grads)
        expected.step([value.copy() for value in values])
        assert_same(optimizer, expected)
        for grad, value, bases in zip(grads, values, around, strict=True):
            assert not grad.any()
            grad[...] = value  # and nothing around it was written
            assert bases is None or bases[0].tobytes() == bases[1].tobytes()


@pytest.mark.parametrize("call", ["step", "accumulate"])
@pytest.mark.parametrize("steps_before", [False, True])
def test_what_cannot_be_cleared_is_refused_each_time(steps_before: bool, call: str) -> None:
    params = [np.zeros(3), np.zeros(3)]
    optimizer = schuss.SGD(params, clear_grads=True)
    if steps_before:
        optimizer.step([np.ones(3), np.ones(3)])
    one, before = np.ones(4), bits(params)
    cases = [
        ([one[:3], one[1:]], r"grads\[1\] shares memory with grads\[0\]"),
        ([one[:3], one[:3]], r"grads\[1\] is the same array as grads\[0\]"),
        ([np.ones(3), np.broadcast_to(1.0, 3)], r"grads\[1\] is read-only"),
    ]
    for grads, message in cases * 3:
        with pytest.raises(ValueError, match=f"^SGD.{call}: {message}"):
            getattr(optimizer, call)(grads)
        assert (bits(params), optimizer.accumulated) == (before, 0)
        assert one.tolist() == [1, 1, 1, 1]


def test_gradients_are_checked_again_when_clearing_begins_or_they_change() -> None:
    optimizer = schuss.SGD([np.zeros(3), np.zeros(3)], clear_grads=True)
    one, reused = np.ones(4), [np.ones(3), np.ones(3)]
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


# Averages of the parameters.


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


def test_averages_can_be_switched_off_and_restarted() -> None:
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5 and later
        copies.shape = (10, 10_000)
    optimizer.average = 0.5  # allocates memory next to them
    optimizer.step(np.ones_like(param))
    assert (copies.astype(np.float32) == -2).all()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    copies.flags.writeable = False
    with pytest.raises(ValueError, match=r"^SGD\.load_state_dict: the copy of params has become"):
        optimizer.load_state_dict(saved)
    assert (param == -2).all()


def test_averages_begin_with_the_first_step_even_after_nan_and_infinity() -> None:
    param = np.array([np.nan, np.inf, 1.0])
    optimizer = schuss.SGD(param, lr=0.0, average=0.5)
    param[:] = 2
    optimizer.step(np.zeros(3))
    assert optimizer.average.tolist() == [2, 2, 2]
