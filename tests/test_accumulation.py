"""Gradients that are added up before a step: `accumulate`, then `step` without gradients."""

import copy
import pickle
import re
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _core, reference
from support.arrays import LAYOUTS, Array, bits, equal, laid_out, numbers, same_bits
from support.threads import in_threads, step_under_way

SHAPES = [(), (0, 3), (1,), (17,), (4097,), (3, 5000), (9, 20, 31)]
SCALES = [1.0, 0.5, -3.0, 1e-3, 1 / 3]
# Of parameters, and of gradients that go with them.
DTYPES = [
    ("float32", ["float32"]),
    ("float64", ["float64"]),
    ("float32", ["float16"]),
    ("float32", ["bfloat16", "float32", "float16"]),
    ("float16", ["float16", "float32"]),
    ("bfloat16", ["bfloat16"]),
]


def dtype_of(name: str) -> Any:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def arrays(rng: np.random.Generator, dtype: Any, *, special: bool = False) -> list[Array]:
    values = [numbers(rng, shape, np.float32, special=special) for shape in SHAPES]
    with np.errstate(all="ignore"):
        return [value.astype(dtype) for value in values]


def added_up(grads: list[list[Array]], scales: list[float]) -> list[Array]:
    """Return the scaled sums, one addition after the other in float32 or float64."""
    sums: list[Array] = []
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        for tree, scale in zip(grads, scales, strict=True):
            for i, grad in enumerate(tree):
                computed = np.dtype(np.float64 if grad.dtype == np.float64 else np.float32)
                term = grad.astype(computed) * computed.type(scale)
                if len(sums) < len(tree):
                    sums.append(term)
                else:
                    sums[i] = sums[i] + term
    return sums


# The sum.


@pytest.mark.parametrize(("of_params", "of_grads"), DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_a_step_takes_the_sum_in_the_order_of_accumulation(
    of_params: str, of_grads: list[str], special: bool
) -> None:
    rng = np.random.default_rng(0)
    params = arrays(rng, dtype_of(of_params))
    twins = [param.copy() for param in params]
    optimizer, twin = schuss.Adam(params, lr=0.1), schuss.Adam(twins, lr=0.1)
    for count in (1, 2, 5):
        dtypes = [dtype_of(of_grads[i % len(of_grads)]) for i in range(count)]
        grads = [arrays(rng, dtype, special=special) for dtype in dtypes]
        before = [bits(tree) for tree in grads]
        for i, (tree, scale) in enumerate(zip(grads, SCALES[:count], strict=True), start=1):
            optimizer.accumulate(tree, scale=scale)
            assert optimizer.accumulated == i
        optimizer.step()
        assert optimizer.accumulated == 0
        twin.step(added_up(grads, SCALES[:count]))
        assert [bits(tree) for tree in grads] == before
        assert equal(params, twins)
        assert equal(optimizer.state["v"], twin.state["v"])
    assert optimizer.steps == 3


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_sum_has_the_same_bits_on_any_threads_and_level(level: str, threads: int) -> None:
    rng = np.random.default_rng(1)
    for of_params, of_grads in DTYPES:
        params = arrays(rng, dtype_of(of_params))
        twins = [param.copy() for param in params]
        grads = [arrays(rng, dtype_of(name), special=True) for name in of_grads * 2]
        scales = SCALES[: len(grads)] * 2
        optimizer, before = schuss.SGD(params, lr=0.5), schuss.simd()
        try:
            schuss.set_simd(level)
            with schuss.threads(threads):
                for tree, scale in zip(grads, scales, strict=False):
                    optimizer.accumulate(tree, scale=scale)
                optimizer.step()
        finally:
            schuss.set_simd(before)
        schuss.SGD(twins, lr=0.5).step(added_up(grads, scales[: len(grads)]))
        assert equal(params, twins)


@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_gradients_of_every_layout_are_added_up(of_param: str, of_grad: str) -> None:
    rng = np.random.default_rng(2)
    values, *grads = (numbers(rng, (13, 7, 60), np.float32) for _ in range(3))
    param, twin = laid_out(values, of_param), values.copy()
    optimizer = schuss.SGD(param, lr=0.5)
    for grad, scale in zip(grads, (1.0, 0.3), strict=True):
        optimizer.accumulate(laid_out(grad, of_grad), scale=scale)
    optimizer.step()
    reference.sgd(twin, added_up([[grad] for grad in grads], [1.0, 0.3])[0], lr=0.5)
    assert same_bits(param, twin)


def test_the_mean_of_micro_batches_is_that_of_the_batch() -> None:
    # Worked: (1 + 2 + 6) / 3 = 3 and (0 + 4 - 1) / 3 = 1.
    param = np.zeros(2)
    optimizer = schuss.SGD({"W": param}, lr=1.0)
    for grad in ([1.0, 0.0], [2.0, 4.0], [6.0, -1.0]):
        optimizer.accumulate({"W": np.array(grad)})
    optimizer.step(scale=1 / optimizer.accumulated)
    np.testing.assert_allclose(param, [-3.0, -1.0], rtol=1e-15)


def test_small_gradients_in_half_precision_are_not_lost_in_the_sum() -> None:
    # In float16, 2048 + 1 is 2048.
    for name in ("float16", "bfloat16"):
        param = np.zeros(1, np.float32)
        optimizer = schuss.SGD(param, lr=1.0)
        optimizer.accumulate(np.array([2048.0]).astype(dtype_of(name)))
        for _ in range(100):
            optimizer.accumulate(np.ones(1, dtype_of(name)))
        optimizer.step()
        assert param.tolist() == [-2148.0]


def test_the_step_after_begins_a_new_sum() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    for grad in (2.0, 4.0):
        optimizer.accumulate(np.array([grad]))
        optimizer.step()
    optimizer.step(np.array([8.0]))
    optimizer.accumulate(np.array([16.0]))
    optimizer.accumulate(np.array([32.0]))
    optimizer.step()
    assert optimizer.params.tolist() == [-(2.0 + 4 + 8 + 16 + 32)]
    assert optimizer.steps == 4


def test_a_negative_zero_stays_one() -> None:
    # The first gradient is taken as it is: 0 + -0 would be 0.
    optimizer = schuss.Momentum(np.zeros(1), lr=1.0, dampening=0.0, beta=0.0)
    optimizer.state["velocity"][...] = -0.0
    optimizer.accumulate(np.array([-0.0]))
    optimizer.step()
    assert np.signbit(optimizer.state["velocity"]).all()


def test_gradients_can_be_dropped() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    optimizer.zero_grad()
    optimizer.accumulate(np.array([100.0]))
    optimizer.zero_grad()
    assert optimizer.accumulated == 0
    with pytest.raises(ValueError, match="there are no gradients"):
        optimizer.step()
    optimizer.accumulate(np.array([1.0]))
    optimizer.step()
    assert optimizer.params.tolist() == [-1.0]


def test_a_schedule_is_asked_once_for_the_step_and_not_for_gradients() -> None:
    asked: list[int] = []
    optimizer = schuss.SGD(np.zeros(1), lr=lambda t: asked.append(t) or 0.5)  # type: ignore[func-returns-value]
    for _ in range(2):
        for _ in range(3):
            optimizer.accumulate(np.ones(1))
        optimizer.step()
    assert asked == [1, 2]
    assert optimizer.params.tolist() == [-3.0]


def test_accumulated_gradients_of_torch_give_its_step() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    param = rng.standard_normal((5, 7))
    theirs = torch.nn.Parameter(torch.from_numpy(param.copy()))
    other, ours = torch.optim.Adam([theirs], lr=0.1), schuss.Adam(param, lr=0.1)
    for _ in range(4):
        for _ in range(3):
            x = rng.standard_normal((11, 5))
            (((torch.from_numpy(x) @ theirs) ** 2).mean() / 3).backward()
            ours.accumulate(2 / 77 * x.T @ (x @ param), scale=1 / 3)
        other.step()
        other.zero_grad()
        ours.step()
        np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


# With the other options.


def test_clipping_sees_the_sum() -> None:
    # The sum is [3, 4], its norm 5; that of the parts is far larger.
    optimizer = schuss.SGD(np.zeros(2), lr=1.0, clip_norm=2.5)
    optimizer.accumulate(np.array([100.0, 4.0]))
    optimizer.accumulate(np.array([-97.0, 0.0]))
    optimizer.step()
    assert optimizer.last == schuss.optimizers.Last(5.0, clipped=True, skipped=False)
    np.testing.assert_allclose(optimizer.params, [-1.5, -2.0], rtol=1e-6)
    optimizer.accumulate(np.array([6.0, 8.0]))
    optimizer.step(scale=0.25)
    assert optimizer.last == schuss.optimizers.Last(2.5, clipped=True, skipped=False)


def test_a_sum_that_raises_stays_and_can_be_dropped() -> None:
    params = {"W": np.zeros(2), "b": np.zeros(1)}
    optimizer = schuss.SGD(params, lr=1.0, nonfinite="raise", clear_grads=True)
    good = {"W": np.array([1.0, 2.0]), "b": np.array([4.0])}
    optimizer.accumulate(copy.deepcopy(good))
    optimizer.accumulate({"W": np.array([0.0, np.inf]), "b": np.zeros(1)})
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"^SGD\.step: grads\['W'\] has a NaN or an"):
            optimizer.step()
        assert (optimizer.steps, optimizer.skipped, optimizer.accumulated) == (0, 0, 2)
        assert bits(list(params.values())) == bits([np.zeros(2), np.zeros(1)])
    optimizer.zero_grad()
    optimizer.accumulate(good)
    optimizer.step()
    assert [param.tolist() for param in params.values()] == [[-1.0, -2.0], [-4.0]]


def test_a_sum_that_is_skipped_is_used_up() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0, nonfinite="skip")
    optimizer.accumulate(np.ones(1))
    optimizer.accumulate(np.array([np.nan]))
    optimizer.step()
    assert (optimizer.steps, optimizer.skipped, optimizer.accumulated) == (0, 1, 0)
    optimizer.accumulate(np.array([2.0]))
    optimizer.step()
    assert optimizer.params.tolist() == [-2.0]


def test_gradients_that_overflow_in_the_sum_are_not_finite() -> None:
    optimizer = schuss.SGD(np.zeros(1, np.float32), nonfinite="skip")
    for _ in range(2):
        optimizer.accumulate(np.array([3e38], np.float32))
    optimizer.step()
    assert optimizer.skipped == 1


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("threads", [1, 3])
def test_micro_gradients_are_cleared_as_they_are_read(threads: int) -> None:
    rng = np.random.default_rng(4)
    params, grads = arrays(rng, np.float32), [arrays(rng, np.float32) for _ in range(3)]
    twins, kept = [p.copy() for p in params], copy.deepcopy(grads)
    optimizer = schuss.SGD(params, lr=0.5, clear_grads=True)
    with schuss.threads(threads):
        for i, tree in enumerate(grads):
            optimizer.accumulate(tree)
            assert not any(grad.any() for grad in tree)
            assert [bits(later) for later in grads[i + 1 :]] == [bits(k) for k in kept[i + 1 :]]
        optimizer.step()
    schuss.SGD(twins, lr=0.5).step(added_up(kept, [1.0] * 3))
    assert equal(params, twins)
    optimizer.clear_grads = False
    optimizer.accumulate(kept[0])
    assert all(grad.any() for grad in kept[0] if grad.size)


def test_groups_step_from_one_sum() -> None:
    params = [{"params": np.zeros(1), "lr": 1.0}, {"params": [np.zeros(1)], "lr": 0.5}]
    optimizer = schuss.SGD(params)
    for grad in (1.0, 3.0):
        optimizer.accumulate([np.array([grad]), [np.array([2 * grad])]])
    optimizer.step()
    assert [optimizer.params[0].tolist(), optimizer.params[1][0].tolist()] == [[-4.0], [-4.0]]


def test_a_sum_takes_memory_only_where_gradients_are_accumulated() -> None:
    n = 100_000
    optimizer = schuss.SGD(np.zeros(n))
    optimizer.step(np.ones(n))
    optimizer.zero_grad()
    grad = np.ones(n)
    tracemalloc.start()
    try:
        optimizer.step(grad)
        assert tracemalloc.get_traced_memory()[1] < n
        optimizer.accumulate(grad)
        optimizer.step()
        before = tracemalloc.get_traced_memory()[0]
        assert before < 1.5 * grad.nbytes
        tracemalloc.reset_peak()
        for _ in range(3):
            optimizer.accumulate(grad)
            optimizer.step()
        assert tracemalloc.get_traced_memory()[1] < before + n
    finally:
        tracemalloc.stop()


# Refusals.


def test_a_step_without_any_gradients_is_refused() -> None:
    optimizer = schuss.SGD(np.zeros(1))
    message = r"^SGD\.step: there are no gradients, expected grads, or some accumulated$"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert optimizer.steps == 0
        optimizer.accumulate(np.ones(1))
        optimizer.zero_grad()


def test_a_step_with_gradients_is_refused_while_others_wait() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    optimizer.accumulate(np.ones(1))
    message = r"^SGD\.step: grads are given while others are accumulated, expected one of both$"
    with pytest.raises(ValueError, match=message):
        optimizer.step(np.full(1, 10.0))
    assert (optimizer.steps, optimizer.accumulated, optimizer.params.tolist()) == (0, 1, [0.0])
    optimizer.step()
    assert optimizer.params.tolist() == [-1.0]


NOT_TO_ADD: list[tuple[Any, type[Exception], str]] = [
    (np.ones(3), ValueError, "grads is a ndarray, expected a mapping"),
    ({"W": np.ones(3)}, ValueError, r"grads has no key 'b', expected it"),
    ({"W": np.ones(3), "b": np.ones(2), "c": np.ones(2)}, ValueError, "grads has the key 'c', ex"),
    ({"W": np.ones(3), "b": np.ones(3)}, ValueError, r"grads\['b'\] has shape \(3,\), expected"),
    ({"W": np.ones(3), "b": np.ones(2, "f4")}, TypeError, r"grads\['b'\] has dtype float32, exp"),
    ({"W": np.ones(3), "b": np.ones(2, int)}, TypeError, r"grads\['b'\] has dtype int64, expec"),
    ({"W": np.ones(3), "b": 1.5}, TypeError, r"grads\['b'\] is a float, expected"),
    (None, TypeError, "grads is a NoneType, expected"),
]


@pytest.mark.parametrize(("bad", "error", "message"), NOT_TO_ADD)
@pytest.mark.parametrize("already", [0, 1, 2])
def test_what_cannot_be_added_leaves_the_sum(
    bad: Any, error: type[Exception], message: str, already: int
) -> None:
    optimizer = schuss.SGD({"W": np.zeros(3), "b": np.zeros(2)}, lr=1.0, clear_grads=True)
    for _ in range(already):
        optimizer.accumulate({"W": np.ones(3), "b": np.ones(2)})
    before = pickle.dumps(bad)
    with pytest.raises(error, match=rf"^SGD\.accumulate: {message}"):
        optimizer.accumulate(bad)
    assert pickle.dumps(bad) == before
    assert optimizer.accumulated == already
    optimizer.accumulate({"W": np.full(3, 4.0), "b": np.full(2, 4.0)})
    optimizer.step()
    assert optimizer.params["W"].tolist() == [-4.0 - already] * 3


@pytest.mark.parametrize(
    ("scale", "error"),
    [("1", TypeError), (None, TypeError), (1j, TypeError), (np.nan, ValueError)],
)
def test_a_scale_that_is_no_finite_number_leaves_the_sum(
    scale: Any, error: type[Exception]
) -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    optimizer.accumulate(np.ones(1))
    for refused in (optimizer.step, lambda scale: optimizer.accumulate(np.ones(1), scale=scale)):
        with pytest.raises(error, match=r"^SGD\.(step|accumulate): scale is .*expected a"):
            refused(scale=scale)
    assert (optimizer.accumulated, optimizer.steps) == (1, 0)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("accumulated_before", [False, True])
def test_gradients_in_the_optimizers_own_memory_are_refused(
    clear: bool, accumulated_before: bool
) -> None:
    optimizer = schuss.Adam(np.ones(4), clear_grads=clear)
    if accumulated_before:
        optimizer.accumulate(np.ones(4))
        optimizer.zero_grad()
    optimizer.amsgrad, optimizer.average = True, 0.5
    optimizer.step(np.ones(4))
    own = {
        "params": optimizer.params,
        "state['m']": optimizer.state["m"],
        "state['v_max']": optimizer.state["v_max"],
        "average": optimizer.average,
    }
    for name, array in own.items():
        before = array.copy()
        message = re.escape(f"Adam.accumulate: grads shares memory with {name}, expected")
        with pytest.raises(ValueError, match=f"^{message}"):
            optimizer.accumulate(array)
        assert same_bits(array, before)
        assert optimizer.accumulated == 0


def test_what_cannot_be_cleared_is_not_added() -> None:
    optimizer = schuss.SGD([np.zeros(3), np.zeros(3)], lr=1.0, clear_grads=True)
    one = np.ones(4)
    for grads, message in [
        ([one[:3], one[1:]], r"grads\[1\] shares memory with grads\[0\]"),
        ([np.ones(3), np.broadcast_to(1.0, 3)], r"grads\[1\] is read-only"),
    ]:
        with pytest.raises(ValueError, match=rf"^SGD\.accumulate: {message}"):
            optimizer.accumulate(grads)
        assert (one.tolist(), optimizer.accumulated) == ([1, 1, 1, 1], 0)


def test_a_step_from_the_sum_that_is_refused_leaves_it() -> None:
    params = [np.zeros(1)]
    optimizer = schuss.SGD(params, lr=1.0)
    optimizer.accumulate([np.ones(1)])
    held, params[0] = params[0], np.zeros(1)
    with pytest.raises(ValueError, match=r"params\[0\] was replaced"):
        optimizer.step()
    params[0] = held
    optimizer.lr = lambda t: -1.0
    with pytest.raises(ValueError, match=r"^SGD\.step: lr is -1"):
        optimizer.step()
    assert (optimizer.accumulated, optimizer.steps) == (1, 0)
    optimizer.lr = 1.0
    optimizer.step()
    assert params[0].tolist() == [-1.0]


# Saving.

COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda it: pickle.loads(pickle.dumps(it)),
]


@pytest.mark.parametrize("how", COPIES)
def test_gradients_that_wait_are_copied_and_then_belong_to_the_copy(
    how: Callable[[Any], Any],
) -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    optimizer.accumulate(np.ones(1))
    other = how(optimizer)
    other.accumulate(np.full(1, 4.0))
    assert (optimizer.accumulated, other.accumulated) == (1, 2)
    other.step()
    assert (other.params.tolist(), other.accumulated, optimizer.accumulated) == ([-5.0], 0, 1)


def test_gradients_that_wait_are_saved_and_loaded() -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    optimizer.accumulate(np.ones(1))
    optimizer.accumulate(np.full(1, 4.0))
    saved = optimizer.state_dict()
    optimizer.step()
    assert saved["accumulated"] == {"count": 2, "values": np.full(1, 5.0)}
    for other in (optimizer, schuss.SGD(np.zeros(1))):
        other.params[...] = 0
        other.load_state_dict(saved)
        assert other.accumulated == 2
        other.accumulate(np.full(1, 2.0))
        other.step(scale=1 / other.accumulated)
        np.testing.assert_allclose(other.params, -7 / 3)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_loading_drops_what_waits_whatever_number_of_steps_is_loaded(steps: int) -> None:
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    saved = optimizer.state_dict() | {"steps": steps}
    optimizer.step(np.zeros(1))
    optimizer.accumulate(np.full(1, 100.0))
    optimizer.load_state_dict(saved)
    for grad in (1.0, 2.0, 4.0):
        assert optimizer.accumulated == 0
        optimizer.step(np.array([grad]))
    assert optimizer.params.tolist() == [-7.0]


# Several threads.


def test_no_gradient_of_two_threads_is_lost() -> None:
    n = 50_000
    optimizer = schuss.SGD(np.zeros(n), lr=1.0)
    added, refused = [0, 0, 0], [0, 0, 0]
    messages: set[str] = set()

    def accumulate(i: int) -> None:
        grad = np.full(n, float(16**i))
        while added[i] < 15 and (added[i] < 5 or sum(refused) == 0):
            try:
                optimizer.accumulate(grad)
                added[i] += 1
            except RuntimeError as error:
                refused[i] += 1
                messages.add(str(error))

    in_threads(3, accumulate)
    assert messages <= {"SGD.accumulate: another call of SGD is under way, expected one at a time"}
    assert optimizer.accumulated == sum(added)
    optimizer.step()
    expected = -sum(16.0**i * count for i, count in enumerate(added))
    assert (optimizer.params == expected).all()


def test_no_gradient_is_lost_between_steps_of_another_thread() -> None:
    n = 20_000
    optimizer = schuss.SGD(np.zeros(n), lr=1.0)
    added, stop = [0], threading.Event()
    messages: set[str] = set()

    def work(i: int) -> None:
        grad = np.ones(n)
        if i == 0:
            while added[0] < 60:
                try:
                    optimizer.accumulate(grad)
                    added[0] += 1
                except RuntimeError:
                    pass
            stop.set()
        while i == 1 and not stop.is_set():
            try:
                optimizer.step()
            except (RuntimeError, ValueError) as error:
                messages.add(str(error))

    in_threads(2, work)
    assert messages <= {
        "SGD.step: another call of SGD is under way, expected one at a time",
        "SGD.step: there are no gradients, expected grads, or some accumulated",
    }
    if optimizer.accumulated:
        optimizer.step()
    assert (optimizer.params == -60.0).all()


def calls(optimizer: Any) -> dict[str, tuple[Callable[[], object], str]]:
    """What must not meet an accumulation, and the call that the refusal names."""
    return {
        "accumulate": (lambda: optimizer.accumulate(np.ones(3)), "accumulate"),
        "step": (lambda: optimizer.step(), "step"),
        "zero_grad": (lambda: optimizer.zero_grad(), "zero_grad"),
        "clear_grads": (lambda: setattr(optimizer, "clear_grads", True), "clear_grads"),
        "state_dict": (lambda: optimizer.state_dict(), "state_dict"),
    }


@pytest.mark.parametrize("call", calls(None))
def test_what_would_meet_an_accumulation_is_refused(call: str) -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    optimizer.accumulate(np.ones(3))
    work, name = calls(optimizer)[call]
    message = rf"^SGD\.{name}: another call of SGD is under way, expected one at a time$"
    with (
        step_under_way(optimizer.accumulate, np.full(3, 2.0)),
        pytest.raises(RuntimeError, match=message),
    ):
        work()
    assert (optimizer.accumulated, optimizer.steps) == (2, 0)
    optimizer.step()
    assert optimizer.params.tolist() == [-3.0] * 3


@pytest.mark.parametrize("grad", [1.0, np.nan])
def test_two_steps_that_begin_together_do_not_both_take_the_sum(grad: float) -> None:
    optimizer = schuss.SGD(np.zeros(1), nonfinite="skip")
    optimizer.accumulate(np.array([grad]))
    refused: list[str] = []

    def step() -> None:
        try:
            optimizer.step()
        except (RuntimeError, ValueError) as error:
            refused.append(str(error))

    asked: list[int] = []

    def rate(t: int) -> float:  # is asked when the step has found that there are gradients
        asked.append(t)
        if len(asked) == 1:
            step()
        return 1.0

    optimizer.lr = rate
    step()
    assert len(refused) == 1
    assert optimizer.params.tolist() == [-1.0 if grad == 1 else 0.0]
    assert optimizer.steps + optimizer.skipped == 1
    assert optimizer.accumulated == 0


def test_a_gradient_that_comes_while_a_step_begins_is_not_lost() -> None:
    optimizer = schuss.SGD(np.zeros(1))
    refused: list[str] = []

    def rate(t: int) -> float:  # is asked when the step has found that nothing is accumulated
        try:
            optimizer.accumulate(np.full(1, 10.0))
        except (RuntimeError, ValueError) as error:
            refused.append(str(error))
        return 1.0

    optimizer.lr = rate
    try:
        optimizer.step(np.ones(1))
    except (RuntimeError, ValueError) as error:
        refused.append(str(error))
    optimizer.lr = 1.0
    if optimizer.accumulated:
        optimizer.step()
    # Whoever was refused knows it, and what was not refused is in.
    assert optimizer.params.tolist() in ([[-1.0], [-10.0]] if refused else [[-11.0]])
