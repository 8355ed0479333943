"""float16 and bfloat16: exact conversions, computation in float32, state rounded at random."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _core, reference
from support.arrays import LAYOUTS, Array, empty_like_layout, equal, laid_out, numbers, same_bits
from support.cases import CASES, Case, run

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BFLOAT16]
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(params=schuss.available_simd())
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    before = schuss.simd()
    schuss.set_simd(request.param)
    yield
    schuss.set_simd(before)


def every_value(dtype: np.dtype[Any]) -> Array:
    return np.arange(1 << 16).astype(np.uint16).view(dtype)


def every_kind_of_float32() -> Array:
    """Return all that differs in the bits kept by bfloat16, near ties of both formats, and more."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF, 0x1001, 0x3000, 0xF000])
    bits = (high[:, None] | low.astype(np.uint32)).ravel()
    more = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    return np.concatenate([bits, more]).view(np.float32)


def without_subnormals(values: Array) -> Array:
    tiny = np.finfo(np.float32).tiny
    return np.where(np.abs(values) < tiny, np.copysign(np.float32(0), values), values)


# Conversions.


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_value_is_read_as_it_is(dtype: np.dtype[Any]) -> None:
    grads = every_value(dtype)
    params = np.zeros(grads.shape, np.float32)
    schuss.kernels.sgd(params, grads, lr=1.0)
    with np.errstate(invalid="ignore"):
        assert same_bits(params, 0 - without_subnormals(grads.astype(np.float32)))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_parameter_that_is_not_changed_stays_as_it_is(dtype: np.dtype[Any]) -> None:
    params = every_value(dtype)
    with np.errstate(invalid="ignore"):
        before = without_subnormals(params.astype(np.float32)).astype(dtype)
    schuss.kernels.sgd(params, np.ones(params.shape, dtype), lr=0.0)
    assert same_bits(params, before)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_is_to_nearest_even_as_numpy_and_ml_dtypes_have_it(dtype: np.dtype[Any]) -> None:
    params = every_kind_of_float32()
    optimizer = schuss.SGD(params, lr=0.0, copies=dtype)
    optimizer.step(np.zeros_like(params))
    with np.errstate(all="ignore"):
        expected = params.astype(dtype)
    assert same_bits(optimizer.copies, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_by_worked_numbers(dtype: np.dtype[Any]) -> None:
    ulp, largest = (2.0**-10, 65504.0) if dtype == np.float16 else (2.0**-7, 255.0 * 2.0**120)
    over = 65520.0 if dtype == np.float16 else 255.5 * 2.0**120
    values = [
        1 + ulp / 2,
        1 + 1.5 * ulp,
        1 + 0.51 * ulp,
        -1 - ulp / 2,
        largest,
        -over,
        np.nan,
        -0.0,
    ]
    params = np.array(values, np.float32)
    optimizer = schuss.SGD(params, lr=0.0, copies=dtype)
    optimizer.step(np.zeros_like(params))
    expected = [1, 1 + 2 * ulp, 1 + ulp, -1, largest, -np.inf, np.nan, -0.0]
    np.testing.assert_array_equal(optimizer.copies.astype(np.float64), expected)
    assert np.signbit(optimizer.copies[-1])


# Whole steps.

RULES: dict[str, tuple[Callable[..., Any], int]] = {
    "SGD": (reference.sgd, 0),
    "Momentum": (reference.momentum, 1),
    "RMSprop": (reference.rmsprop, 1),
    "Adam": (reference.adam, 2),
    "AdamW": (partial(reference.adam, decoupled=True), 2),
    "AMSGrad": (reference.adam, 3),
    "centered RMSprop": (reference.rmsprop, 3),
}
MADE: dict[str, Callable[..., Any]] = {
    "AMSGrad": partial(schuss.Adam, amsgrad=True),
    "centered RMSprop": partial(schuss.RMSprop, centered=True, momentum=0.8),
}
SHAPES = [(), (0, 3), (17,), (300,), (70, 33), (9, 20, 7)]


class Twin:
    """An optimizer made of `schuss.reference` alone."""

    def __init__(
        self,
        name: str,
        params: list[Array],
        *,
        bfloat16: bool = False,
        average: float | None = None,
    ) -> None:
        self.name, self.beta, self.t, self.lr = name, average, 0, 0.1
        self.params = [param.copy(order="K") for param in params]
        kept = BFLOAT16 if bfloat16 else None
        wide = [FLOAT32 if p.dtype in HALVES else p.dtype for p in params]
        self.states = [
            [np.zeros(p.shape, kept or dtype) for _ in range(RULES[name][1])]
            for p, dtype in zip(params, wide, strict=True)
        ]
        self.averages = [p.astype(dtype) for p, dtype in zip(params, wide, strict=True)]
        self.copies = [p.astype(BFLOAT16) for p in params]

    def step(self, grads: list[Array], **options: Any) -> tuple[float, bool, bool]:
        self.t += 1
        beta = None if self.beta is None else 0.0 if self.t == 1 else self.beta
        return reference.step(
            [self.rule] * len(self.params),
            self.params,
            grads,
            self.states,
            step=self.t,
            averages=None if beta is None else self.averages,
            beta=beta or 0.0,
            copies=self.copies,
            **options,
        )

    def rule(self, param: Array, grad: Array, *states: Array, **options: Any) -> None:
        rule, _ = RULES[self.name]
        if rule is not reference.sgd and "RMSprop" not in self.name and self.name != "Momentum":
            options |= {"step": self.t, "weight_decay": 0.1}
        if self.name == "AMSGrad":
            options["v_max"], states = states[2], states[:2]
        if self.name == "centered RMSprop":
            options |= {"mean": states[1], "buffer": states[2], "momentum": 0.8}
            states = states[:1]
        rule(param, grad, *states, lr=self.lr, **options)


def make(name: str, params: Any, **options: Any) -> Any:
    if RULES[name][0] not in (reference.sgd, reference.momentum) and "RMSprop" not in name:
        options["weight_decay"] = 0.1
    made = MADE[name] if name in MADE else getattr(schuss, name)
    return made(params, lr=0.1, **options)


@pytest.mark.parametrize("bfloat16_state", [False, True], ids=["", "bfloat16 state"])
@pytest.mark.parametrize(
    ("of_param", "of_grad"), list(product([FLOAT32, *HALVES], repeat=2)), ids=str
)
@pytest.mark.parametrize("name", RULES)
def test_every_combination_of_formats_has_the_twins_bits(
    name: str, of_param: np.dtype[Any], of_grad: np.dtype[Any], bfloat16_state: bool
) -> None:
    rng = np.random.default_rng(0)
    params = [numbers(rng, shape, of_param) for shape in SHAPES]
    twin = Twin(name, params, bfloat16=bfloat16_state, average=0.9)
    options: dict[str, Any] = {"copies": BFLOAT16} if of_param == FLOAT32 else {}
    optimizer = make(
        name,
        params,
        state_dtype="bfloat16" if bfloat16_state else None,
        average=0.9,
        clip_value=0.7,
        clear_grads=True,
        seed=3,
        **options,
    )
    # At last a scale, and a rate, that float32 cannot hold.
    for scale, lr in ((1.0, 0.1), (0.25, 0.1), (3.0, 0.1), (3e-42, 0.1), (1e39, 1e-39)):
        optimizer.lr = twin.lr = lr
        grads = [numbers(rng, shape, of_grad) for shape in SHAPES]
        copies = [grad.copy() for grad in grads]
        optimizer.step(grads, scale=scale)
        twin.step(copies, scale=scale, clip_value=0.7, clear_grads=True, seed=3)
        assert equal(params, twin.params)
        assert equal(optimizer.average, twin.averages)
        assert not options or equal(optimizer.copies, twin.copies)
        assert equal(grads, copies)
        for i, leaves in enumerate(optimizer.state.values()):
            assert equal(leaves, [states[i] for states in twin.states])


@pytest.mark.parametrize("of_grad", [FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize("of_param", [FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_have_the_twins_bits_in_low_precision(
    case: Case, of_param: np.dtype[Any], of_grad: np.dtype[Any]
) -> None:
    rng = np.random.default_rng(6)
    of_param = FLOAT32 if case.rule == "average" else of_param  # which is none
    param = numbers(rng, (7, 30), of_param)
    gradients = [numbers(rng, (7, 30), of_grad) for _ in range(3)]

    def make_state(like: Array) -> Array:
        return np.zeros(like.shape, np.float32)

    twin = param.copy()
    ours = run(case, schuss.kernels, param, gradients, make_state)
    if case.rule == "average":
        gradients = [gradient.astype(np.float32) for gradient in gradients]
    for array, expected in zip(
        ours, run(case, reference, twin, gradients, make_state), strict=True
    ):
        assert same_bits(array, expected)


@pytest.mark.usefixtures("level", "share_all")
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("tile", [1, 64, 1000])
def test_low_precision_has_the_same_bits_on_any_threads_level_and_tiles(
    threads: int, tile: int
) -> None:
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(shape).astype(BFLOAT16) for shape in SHAPES]
    twin = Twin("Adam", params, bfloat16=True)
    _core.set_tile_elements(tile)
    optimizer = make("Adam", params, state_dtype="bfloat16", clip_norm=1.0)
    for _ in range(3):
        grads = [rng.standard_normal(shape).astype(np.float16) for shape in SHAPES]
        with schuss.threads(threads):
            optimizer.step(grads)
        norm, clipped, skipped = twin.step(grads, clip_norm=1.0)
        assert optimizer.last == schuss.optimizers.Last(norm, clipped, skipped)
        assert equal(params, twin.params)
        for i, leaves in enumerate(optimizer.state.values()):
            assert equal(leaves, [states[i] for states in twin.states])


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("of_copy", ["c", "fortran", "sliced", "unaligned"])
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_low_precision_has_the_twins_bits_in_every_layout(
    of_param: str, of_grad: str, of_copy: str
) -> None:
    rng = np.random.default_rng(2)
    for shape in ((7, 131), (3, 1, 40), (130, 3)):
        param = laid_out(rng.standard_normal(shape).astype(np.float32), of_param)
        grad = laid_out(rng.standard_normal(shape).astype(BFLOAT16), of_grad)
        copies = empty_like_layout(of_copy, shape, BFLOAT16)
        twin = Twin("Adam", [param], bfloat16=True, average=0.5)
        twin.params[0] = laid_out(param, of_param)  # the random bits go by the place in memory
        options = {"state_dtype": "bfloat16", "average": 0.5, "copies": copies}
        optimizer = make("Adam", param, clear_grads=True, **options)
        assert same_bits(copies, param.astype(BFLOAT16))
        for _ in range(2):
            grad[...] = rng.standard_normal(shape)
            copy = grad.copy()
            optimizer.step(grad)
            twin.step([copy])
            assert same_bits(param, twin.params[0])
            assert same_bits(optimizer.average, twin.averages[0])
            assert same_bits(copies, twin.copies[0])
            assert not grad.any()
            for leaf, state in zip(optimizer.state.values(), twin.states[0], strict=True):
                assert same_bits(leaf, state)


def test_arrays_cut_into_pieces_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    whole = rng.standard_normal(20_000).astype(BFLOAT16)
    cut = whole.copy()
    pieces = np.split(cut, [1, 17, 4_096, 4_097, 12_345])
    one = make("Adam", whole, state_dtype="bfloat16", clip_norm=1.0)
    several = make("Adam", pieces, state_dtype="bfloat16", clip_norm=1.0)
    for _ in range(3):
        grad = rng.standard_normal(20_000).astype(BFLOAT16)
        one.step(grad)
        several.step(np.split(grad, [1, 17, 4_096, 4_097, 12_345]))
        assert one.last == several.last
        assert same_bits(whole, cut)


def test_half_precision_steps_are_close_to_those_in_float64() -> None:
    rng = np.random.default_rng(4)
    exact = rng.standard_normal(1000)
    master = exact.astype(np.float32)
    other = schuss.Adam(exact, lr=0.01)
    optimizer = schuss.Adam(master, lr=0.01, copies="bfloat16", state_dtype="bfloat16")
    for _ in range(100):
        grad = rng.standard_normal(1000) + 0.5
        other.step(grad)
        optimizer.step(grad.astype(BFLOAT16))
    moved = np.abs(exact - master)
    assert moved.max() < 0.05  # of about 0.4 that they went
    assert moved.mean() < 0.005
    np.testing.assert_allclose(optimizer.copies.astype(np.float64), master, rtol=2**-8)


# Rounding at random.


def test_the_second_moment_does_not_stall() -> None:
    """v -> beta2*v + (1-beta2)*g*g decays by less than half of bfloat16's last place a step."""
    params = np.zeros(10_000, np.float32)
    optimizer = schuss.Adam(params, lr=0.0, beta2=0.999, state_dtype="bfloat16")
    optimizer.state["v"][...] = 1.0
    nearest = np.ones(1, BFLOAT16)
    for _ in range(1000):
        optimizer.step(np.zeros_like(params))
        nearest = (nearest.astype(np.float32) * np.float32(0.999)).astype(BFLOAT16)
    assert nearest[0] == 1  # rounding to nearest stalls
    mean = optimizer.state["v"].astype(np.float64).mean()
    assert mean == pytest.approx(0.999**1000, rel=0.01)


def rounded(value: float, count: int, seed: int, steps: int) -> Array:
    """Return whether each of the elements was rounded up, in each step."""
    params = np.zeros(count, np.float32)
    optimizer = schuss.Momentum(params, lr=0.0, beta=0.0, state_dtype="bfloat16", seed=seed)
    grads = np.full(count, value, np.float32)
    ups = []
    for _ in range(steps):
        optimizer.step(grads)
        ups.append(optimizer.state["velocity"].astype(np.float32) > value)
    return np.array(ups)


@pytest.mark.parametrize("share", [1 / 256, 0.25, 0.5, 0.9])
def test_rounding_goes_up_as_often_as_the_value_is_above(share: float) -> None:
    """With 400,000 throws, five standard deviations are at most 0.004."""
    ups = rounded(1 + share * 2**-7, 100_000, 0, 4)
    assert abs(ups.mean() - share) < 5 * np.sqrt(share * (1 - share) / ups.size)


def test_roundings_near_each_other_are_not_correlated() -> None:
    ups = 2.0 * rounded(1 + 2**-8, 1 << 17, 0, 8) - 1
    throws = ups.shape[1]
    for lag in (*range(1, 70), 128, 256, 1024, 4096):
        correlation = (ups[:, :-lag] * ups[:, lag:]).mean(1)
        assert np.abs(correlation).max() < 6 / np.sqrt(throws - lag), lag
    between_steps = ups @ ups.T / throws - np.eye(len(ups))
    assert np.abs(between_steps).max() < 6 / np.sqrt(throws)
    other_seed = 2.0 * rounded(1 + 2**-8, 1 << 17, 1, 8) - 1
    assert np.abs((ups * other_seed).mean(1)).max() < 6 / np.sqrt(throws)


def test_the_states_of_a_rule_are_rounded_by_bits_of_their_own() -> None:
    params = np.zeros(1 << 16, np.float32)
    optimizer = schuss.Adam(params, lr=0.0, beta1=0.0, beta2=0.0, state_dtype="bfloat16")
    optimizer.step(np.full(params.shape, np.sqrt(1 + 2**-8), np.float32))
    m, v = (optimizer.state[name].astype(np.float32) for name in "mv")
    ups = [2.0 * (each > each.mean()) - 1 for each in (m, v)]
    assert abs((ups[0] * ups[1]).mean()) < 6 / np.sqrt(params.size)


def test_what_bfloat16_can_hold_is_never_rounded() -> None:
    with np.errstate(invalid="ignore"):
        values = every_value(BFLOAT16).astype(np.float32)
    params = np.zeros_like(values)
    optimizer = schuss.Momentum(params, lr=0.0, beta=0.0, state_dtype="bfloat16")
    optimizer.step(values)
    with np.errstate(invalid="ignore"):
        expected = (without_subnormals(values) + np.float32(0)).astype(BFLOAT16)  # g + 0*v
    assert same_bits(optimizer.state["velocity"], expected)


def test_the_same_seed_gives_the_same_state_and_survives_saving() -> None:
    rng = np.random.default_rng(5)
    grads = rng.standard_normal((6, 1000)).astype(np.float32)

    def train(optimizer: Any, some: Array) -> Any:
        for grad in some:
            optimizer.step(grad)
        return optimizer

    def made(seed: int) -> Any:
        params = np.zeros(1000, np.float32)
        return schuss.Adam(params, state_dtype="bfloat16", seed=seed, average=0.9)

    first, same, other = (train(made(seed), grads) for seed in (7, 7, 8))
    assert same_bits(first.state["v"], same.state["v"])
    assert not same_bits(first.state["v"], other.state["v"])
    half = train(made(7), grads[:3])
    resumed = made(0)
    resumed.params[...] = half.params
    resumed.load_state_dict(half.state_dict())
    train(resumed, grads[3:])
    assert resumed.state["v"].dtype == BFLOAT16
    for ours, theirs in ((resumed.params, first.params), (resumed.average, first.average)):
        assert same_bits(ours, theirs)
    for name in "mv":
        assert same_bits(resumed.state[name], first.state[name])


def test_state_in_bfloat16_takes_half_the_memory() -> None:
    params = np.zeros(1000, np.float32)
    wide, narrow = schuss.Adam(params), schuss.Adam(params.copy(), state_dtype="bfloat16")
    of_wide, of_narrow = (
        sum(state.nbytes for state in optimizer.state.values()) for optimizer in (wide, narrow)
    )
    assert 2 * of_narrow == of_wide
