"""A step in pieces, as sharded optimizers make it, has the bits of a step at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from schuss import _core
from schuss._internals import internals_of
from support.arrays import Array, dtype_of, equal, numbers
from support.execution import execution
from support.optimizers import (
    assert_same,
    assert_same_outcome,
    every_variant,
    make_optimizer,
    make_reference,
)

# Below a block of 8-bit state and above, whole blocks and others, several pieces and one.
SIZES = [5, 0, 4095, 4096, 13000, 1, 8192]
UNIT, BLOCK = 4096, 128

FORMATS: list[Mapping[str, str]] = [
    {"of_param": "float32"},
    {"of_param": "float64"},
    {"of_param": "float32", "of_grad": "float16", "state_dtype": "bfloat16"},
    {"of_param": "float32", "state_dtype": "8bit", "copies": "bfloat16"},
    {"of_param": "float16", "of_grad": "float32", "state_dtype": "8bit"},
    {"of_param": "bfloat16", "master": "float32", "state_dtype": "bfloat16"},
    {"of_param": "bfloat16", "master": "float24", "state_dtype": "8bit"},
    {"of_param": "bfloat16", "round_params": "random"},
]
every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda it: "-".join(it.values()))


def ends_of(sizes: Sequence[int], count: int, *, seed: int = 0) -> list[int]:
    """Return where `count` pieces end: at ends of arrays or at units within. Some are empty."""
    begins = [0, *accumulate(sizes)]
    places = [b + k for b, n in zip(begins, sizes, strict=False) for k in range(0, n, UNIT)]
    chosen = np.random.default_rng(seed).choice(places, count - 1)
    return [*sorted(map(int, chosen)), begins[-1]]


def step_in_pieces(
    optimizer: Any,
    grads: Any,
    ends: Sequence[int],
    begin: Callable[[int], Any] = lambda k: None,
    *,
    scale: float = 1.0,
    statistics: tuple[float, int, int] | None = None,
) -> None:
    core = internals_of(optimizer).core
    core.step(grads, optimizer.lr, scale, core.steps + 1, False, None, statistics, ends, begin)


def pair(name: str, format: Mapping[str, str], rng: np.random.Generator, **options: Any) -> Any:
    """Return an optimizer, its reference, and a function that makes gradients."""
    of_param = dtype_of(format["of_param"])
    of_grad = dtype_of(format.get("of_grad", of_param))
    params = [numbers(rng, n, of_param) for n in SIZES]
    options |= {key: value for key, value in format.items() if not key.startswith("of_")}
    expected = make_reference(name, [param.copy() for param in params], **options)
    optimizer = make_optimizer(name, params, **options)

    def new_grads(*, special: bool = True) -> list[Any]:
        return [numbers(rng, n, of_grad, special=special) for n in SIZES]

    return optimizer, expected, new_grads


@every_format
@every_variant
def test_every_rule_and_format_has_the_references_bits(
    name: str, options: Mapping[str, Any], format: Mapping[str, str]
) -> None:
    rng = np.random.default_rng(0)
    options = {"average": 0.9, "clear_grads": True, "seed": 3, **options}
    optimizer, expected, new_grads = pair(name, format, rng, **options)
    for t in range(2):
        grads = new_grads()
        expected.step([grad.copy() for grad in grads], scale=0.5)
        step_in_pieces(optimizer, grads, ends_of(SIZES, 5, seed=t), scale=0.5)
        assert_same(optimizer, expected)
        assert not any(grad.any() for grad in grads)


@every_format
@pytest.mark.parametrize(("tile", "threads"), [(1, 4), (64, 3), (5000, 2)])
@pytest.mark.usefixtures("memory")
def test_tiles_and_threads_do_not_matter(
    format: Mapping[str, str], tile: int, threads: int
) -> None:
    rng = np.random.default_rng(1)
    with execution(tile=tile, threads=threads, threshold=0):
        optimizer, expected, new_grads = pair("Adam", format, rng, track_norms=True, seed=1)
        for t in range(3):
            grads = new_grads()
            step_in_pieces(optimizer, grads, ends_of(SIZES, 5, seed=t))
            expected.step(grads)
            assert_same(optimizer, expected)
            assert_same_outcome(optimizer, expected)


def test_complex_numbers_count_once() -> None:
    rng = np.random.default_rng(2)
    params = [numbers(rng, n, np.complex64) for n in SIZES]
    options = {"complex": "modulus", "track_norms": True}
    expected = make_reference("Adam", [param.copy() for param in params], **options)
    optimizer = make_optimizer("Adam", params, **options)
    for t in range(3):
        grads = [numbers(rng, n, np.complex64) for n in SIZES]
        step_in_pieces(optimizer, grads, ends_of(SIZES, 6, seed=t))
        expected.step(grads)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)


def test_parameters_without_a_gradient_rest() -> None:
    rng = np.random.default_rng(3)
    optimizer, expected, new_grads = pair("Adam", FORMATS[0], rng, average=0.5, track_norms=True)
    for t in range(4):
        grads = new_grads()
        grads[t], grads[4] = None, None if t % 2 else grads[4]
        step_in_pieces(optimizer, grads, ends_of(SIZES, 6, seed=t))
        expected.step(grads)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)


def test_accumulated_gradients_are_used_up() -> None:
    rng = np.random.default_rng(4)
    optimizer, expected, new_grads = pair("Momentum", FORMATS[0], rng)
    for _ in range(2):
        for grads in (new_grads(), new_grads()):
            optimizer.accumulate(grads)
            expected.accumulate(grads)
        step_in_pieces(optimizer, None, ends_of(SIZES, 3))
        expected.step()
        assert_same(optimizer, expected)


# What is called before each piece.


def test_begin_is_called_before_each_piece_is_read() -> None:
    params, grads = [np.zeros(n) for n in SIZES], [np.zeros(n) for n in SIZES]
    begins = [0, *accumulate(SIZES)]
    ends = [0, 5, 4100 + 4096, 4100 + 4096 + 2 * UNIT, 4100 + 4096 + 2 * UNIT, begins[-1]]
    optimizer = make_optimizer("SGD", params, lr=1.0)
    calls = []

    def begin(k: int) -> None:
        calls.append(k)
        done = ends[k - 1] if k > 0 else 0
        values = np.concatenate(params)
        assert np.array_equal(values[:done], -np.arange(done))
        assert not values[done:].any()
        assert optimizer.steps == 0
        for b, grad in zip(begins, grads, strict=False):
            grad[:] = b + np.arange(len(grad))

    step_in_pieces(optimizer, grads, ends, begin)
    assert calls == list(range(len(ends) + 1))
    assert optimizer.steps == 1


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.usefixtures("memory")
def test_the_states_of_a_piece_may_be_elsewhere(state_dtype: str) -> None:
    rng = np.random.default_rng(5)
    options = {"amsgrad": True, "state_dtype": state_dtype, "seed": 1}
    params = [rng.standard_normal(n).astype(np.float32) for n in SIZES]
    expected = make_reference("Adam", [param.copy() for param in params], **options)
    optimizer = make_optimizer("Adam", params, **options)
    internals = internals_of(optimizer)
    begins = [0, *accumulate(SIZES)]
    ends = sorted({*begins, 4100 + 4096 + UNIT, 4100 + 4096 + 3 * UNIT, begins[-1] - UNIT} - {0})
    for _ in range(3):
        kept: list[tuple[Array, Array]] = []

        def begin(k: int, kept: list[tuple[Array, Array]] = kept) -> list[Array] | None:
            for target, window in kept:
                target[...] = window
                window[...] = np.zeros(1, window.dtype)
            kept.clear()
            if k == len(ends):
                return None
            first, last = ([0, *ends])[k : k + 2]
            i = max(j for j, b in enumerate(begins[:-1]) if b <= first and SIZES[j] > 0)
            for states in internals.states.values():
                unit = BLOCK if states[i].dtype.names else 1
                part = slice((first - begins[i]) // unit, -((begins[i] - last) // unit))
                kept.append((states[i][part], states[i][part].copy()))
                states[i][part] = np.ones(1, states[i].dtype)  # not the values that the step uses
            return [window for _, window in kept]

        grads = [rng.standard_normal(n).astype(np.float32) for n in SIZES]
        step_in_pieces(optimizer, grads, ends, begin)
        expected.step(grads)
        assert_same(optimizer, expected)


def test_an_exception_of_begin_ends_the_step() -> None:
    params, grads = [np.zeros(n) for n in SIZES], [np.ones(n) for n in SIZES]
    optimizer = make_optimizer("SGD", params, lr=1.0, average=0.5)
    ends = [5, 4100, sum(SIZES)]
    weights = internals_of(optimizer).core.average_weights

    def begin(k: int) -> None:
        with pytest.raises(RuntimeError, match="another call"):
            optimizer.step(grads)
        if k == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step_in_pieces(optimizer, grads, ends, begin)
    assert np.array_equal(np.concatenate(params), [-1.0] * 4100 + [0.0] * (sum(SIZES) - 4100))
    assert optimizer.steps == 0
    assert optimizer.last is None
    assert internals_of(optimizer).core.average_weights == weights


# Optimizers of a part of all elements.


def norm_of(sums: Array) -> float:
    """Return the norm from sums of squares, summed in pairs."""
    while len(sums) > 1:
        sums = np.append(sums, 0.0) if len(sums) % 2 else sums
        sums = sums[::2] + sums[1::2]
    return float(np.sqrt(sums.sum()))


def add_norms(optimizers: Sequence[Any]) -> None:
    """Give each optimizer the norms of all."""
    cores = [internals_of(optimizer).core for optimizer in optimizers]
    parts = np.sum([core.norm_parts for core in cores], axis=0)
    for core in cores:
        core.set_norms(parts)


def parts_of(arrays: Sequence[Array]) -> list[list[Array]]:
    """Return three parts of arrays: each has a third of the largest, and some of the others."""
    cuts = [[n * (n % 3 < k) for k in range(4)] for n in SIZES]
    largest = max(SIZES)
    cuts[SIZES.index(largest)] = [*(largest * k // 3 // BLOCK * BLOCK for k in range(3)), largest]
    return [
        [array[cut[k] : cut[k + 1]] for array, cut in zip(arrays, cuts, strict=True)]
        for k in range(3)
    ]


def optimizer_of_part(name: str, part: int, params: Sequence[Array], **options: Any) -> Any:
    """Return an optimizer of a part of the parameters that knows where it is among all."""
    pieces = parts_of(params)[part]
    places = parts_of(np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]))[part]
    optimizer = make_optimizer(name, pieces, **options)
    internals = internals_of(optimizer)
    internals.core = _core.Optimizer(
        name,
        pieces,
        round_at_random=options.get("round_params") == "random",
        first=[int(place[0]) if len(place) else 0 for place in places],
    )
    internals.reconfigure(internals.settings, internals.groups, {}, first=True)
    return optimizer


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@every_format
def test_parts_of_the_parameters_have_the_bits_of_all(
    format: Mapping[str, str], nonfinite: str
) -> None:
    rng = np.random.default_rng(6)
    options: dict[str, Any] = {"clip_norm": 2.0, "nonfinite": nonfinite, "track_norms": True}
    _, expected, new_grads = pair("Adam", format, rng, seed=7, clear_grads=True, **options)
    options |= {key: value for key, value in format.items() if not key.startswith("of_")}
    params = [param.copy() for param in expected.params]
    optimizers = [
        optimizer_of_part("Adam", k, params, seed=7, clear_grads=True, **options) for k in range(3)
    ]
    for special in (False, True, False):
        grads = new_grads(special=False)
        if special:
            grads[4][7000] = np.inf
        sums, first = _core.square_sums(grads)
        assert first == (4 if special else -1)
        statistics = (norm_of(sums), 0, first)
        copies = [grad.copy() for grad in grads]
        raises = special and nonfinite == "raise"
        calls: list[int] = []
        for optimizer, pieces in zip(optimizers, parts_of(grads), strict=True):
            ends = [sum(map(len, pieces))]
            step = partial(
                step_in_pieces, optimizer, pieces, ends, calls.append, statistics=statistics
            )
            if raises:
                with pytest.raises(FloatingPointError, match=r"grads\[4\] has a NaN"):
                    step()
            else:
                step()
        assert len(calls) == (0 if special else 6)  # a step that is skipped has no pieces
        if raises:
            assert equal(grads, copies)
            continue
        expected.step(copies)
        assert equal(grads, copies)
        assert equal(params, expected.params)
        add_norms(optimizers)
        for optimizer in optimizers:
            assert (optimizer.steps, optimizer.skipped) == (expected.steps, expected.skipped)
            assert_same_outcome(optimizer, expected)
        for name, states in expected.state.items():
            joined = zip(*(optimizer.state[name] for optimizer in optimizers), strict=True)
            assert equal([np.concatenate(each) for each in joined], states)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": [4097, 30000]}, r"ends\[0\] is 4097, expected a multiple of 4096 from the"),
        ({"ends": [4096, 5, 20000]}, r"ends\[1\] is 5, expected ascending numbers"),
        ({"ends": [20001]}, r"ends\[0\] is 20001, expected at most 20000, the number of elements"),
        ({"ends": [4096]}, r"ends has 4096 as the last number, expected 20000"),
        ({"param": np.zeros((200, 200))[:, ::2]}, r"in pieces has arrays with gaps"),
        ({"grad": np.zeros(40000)[::2]}, r"in pieces has arrays with gaps"),
    ],
)
def test_pieces_that_cannot_be_cut_are_refused(change: dict[str, Any], message: str) -> None:
    param = change.get("param", np.zeros(20000))
    grad = change.get("grad", np.ones(param.shape))
    optimizer = make_optimizer("SGD", param)
    with pytest.raises(ValueError, match=message):
        step_in_pieces(optimizer, grad, change.get("ends", [4096, 20000]))
    assert not param.any()
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        ([], ValueError, "too few"),
        ([np.zeros(4096)] * 2, ValueError, "too many"),
        ([np.zeros(4097)], ValueError, "expected 4096 items in the dtype of state"),
        ([np.zeros(4096, np.float32)], ValueError, "expected 4096 items in the dtype of state"),
        ([np.zeros(8192)[::2]], ValueError, "expected a contiguous"),
        (7, TypeError, "expected None or a list of arrays"),
    ],
)
def test_states_that_do_not_go_with_a_piece_are_refused(
    states: Any, error: type[Exception], message: str
) -> None:
    optimizer = make_optimizer("Momentum", np.zeros(20000))
    with pytest.raises(error, match=rf"Momentum.step: the states of piece 0 .*{message}"):
        step_in_pieces(optimizer, np.ones(20000), [4096, 20000], lambda k: states)


def test_the_states_of_several_parameters_cannot_be_elsewhere() -> None:
    optimizer = make_optimizer("Momentum", [np.zeros(5), np.zeros(5)])
    with pytest.raises(TypeError, match="expected None for several parameters"):
        step_in_pieces(optimizer, [np.ones(5), np.ones(5)], [10], lambda k: [np.zeros(10)])


def test_norms_that_were_not_measured_are_refused() -> None:
    optimizer = make_optimizer("SGD", np.zeros(3))
    core = internals_of(optimizer).core
    with pytest.raises(ValueError, match="SGD: the last step has no norms, expected track_norms"):
        _ = core.norm_parts
    optimizer.track_norms = True
    optimizer.step(np.ones(3))
    with pytest.raises(ValueError, match="parts has 3 integers, expected 12292"):
        core.set_norms(np.zeros(3, np.uint64))


@pytest.mark.parametrize("value", [1e-300, 3e-160, 1.0, 1e200, np.inf, np.nan])
def test_norms_of_parts_are_added_exactly(value: float) -> None:
    rng = np.random.default_rng(8)
    param = np.r_[rng.standard_normal(1000) * 10.0 ** rng.integers(-200, 200, 1000), value]
    params = np.split(param.copy(), [1, 500])
    expected = make_reference("SGD", param, track_norms=True)
    expected.step(np.ones(1001))
    optimizers = [make_optimizer("SGD", part, track_norms=True) for part in params]
    for optimizer in optimizers:
        optimizer.step(np.ones(len(optimizer.params)))
    add_norms(optimizers)
    for optimizer in optimizers:
        assert_same_outcome(optimizer, expected)


def test_the_norms_of_a_million_parts_are_exact() -> None:
    optimizer = make_optimizer("SGD", np.array([3.0, 4.0]), track_norms=True)
    optimizer.step(np.zeros(2))
    core = internals_of(optimizer).core
    core.set_norms(core.norm_parts << np.uint64(20))
    assert optimizer.last.param_norm == 5.0 * 1024
