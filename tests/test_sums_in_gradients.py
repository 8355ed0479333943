"""`accumulate(overwrite_grads=True)`: the first gradients become the sums, as in PyTorch."""

import copy
import gc
import pickle
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import LAYOUTS, dtype_of, laid_out, numbers, same_bits
from support.optimizers import assert_same, make_reference

N = 20_000


def ones(**arrays: float) -> dict[str, Any]:
    return {name: np.full(3, float(value)) for name, value in arrays.items()}


def sgd(**options: Any) -> Any:
    """Return an optimizer of two arrays of zeros."""
    return schuss.SGD(ones(a=0, b=0), lr=1.0, **options)


def sums(optimizer: Any) -> Any:
    return optimizer.state_dict()["accumulated"]["values"]


# The sum.


@pytest.mark.parametrize("scales", [(1.0, 0.3), (0.3, 1e-44), (1e300, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_it_gives_the_bits_of_sums_that_are_copied(
    of_grad: str, dtype: str, scales: tuple[float, float]
) -> None:
    rng = np.random.default_rng(2)
    values, *grads = (numbers(rng, (13, 7, 60), dtype) for _ in range(3))
    arrays = [laid_out(grad, of_grad) for grad in grads]
    params = [values.copy() for _ in range(2)]
    ours, other = (schuss.Adam(param, lr=0.5, clip_norm=2.0) for param in params)
    expected = make_reference("Adam", values, lr=0.5, clip_norm=2.0)
    for grad, array, scale in zip(grads, arrays, scales, strict=True):
        ours.accumulate(array, scale=scale, overwrite_grads=True)
        other.accumulate(grad, scale=scale)
        expected.accumulate(grad, scale=scale)
    assert same_bits(arrays[0], sums(other))
    assert same_bits(arrays[1], grads[1])
    for each in (ours, other, expected):
        each.step()
    assert_same(ours, expected)
    assert same_bits(*params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_half_precision_parameters_are_summed_in_float32(dtype: str) -> None:
    param = np.zeros(3, dtype_of(dtype))
    optimizer = schuss.SGD(param, lr=1.0)
    total = np.full(3, 2048, np.float32)
    optimizer.accumulate(total, overwrite_grads=True)
    optimizer.accumulate(np.ones(3, param.dtype))
    assert total.tolist() == [2049] * 3
    optimizer.step()
    assert (param < 0).all()


def test_no_memory_is_taken() -> None:
    optimizer = schuss.Adam([np.zeros(N), np.zeros(N)])
    first, second = ([np.ones(N), None] for _ in range(2))
    optimizer.step(first)
    tracemalloc.start()
    try:
        for grads in (first, second, first, second):
            optimizer.accumulate(grads, overwrite_grads=grads is first)
            if grads is second:
                optimizer.step()
        assert tracemalloc.get_traced_memory()[1] < N
    finally:
        tracemalloc.stop()


def test_the_arrays_are_kept_until_the_step_and_no_longer() -> None:
    optimizer = sgd(nonfinite="raise")
    for end in (optimizer.step, optimizer.zero_grad):
        grads = ones(a=1, b=1)
        references = [weakref.ref(grad) for grad in grads.values()]
        optimizer.accumulate(grads, overwrite_grads=True)
        del grads
        gc.collect()
        assert all(reference() is not None for reference in references)
        end()
        assert all(reference() is None for reference in references)
    assert optimizer.params["a"].tolist() == [-1] * 3


def test_numbers_of_parameters_without_axes_are_summed_too() -> None:
    optimizer = schuss.SGD([np.zeros(()), np.zeros(())], lr=1.0)
    optimizer.accumulate([1.0, np.float64(2)], overwrite_grads=True)
    optimizer.accumulate([3.0, 4.0], overwrite_grads=True)
    optimizer.step()
    assert [float(param) for param in optimizer.params] == [-4, -6]


def test_memory_of_other_libraries_holds_the_sum() -> None:
    torch = pytest.importorskip("torch")
    param, total = torch.zeros(3), torch.ones(3)
    optimizer = schuss.SGD(param, lr=1.0)
    optimizer.accumulate(total, overwrite_grads=True)
    optimizer.accumulate(torch.full((3,), 2.0))
    assert total.tolist() == [3] * 3
    total.set_(torch.ones(3))
    message = "accumulated was given other memory since it became the sum"
    with pytest.raises(ValueError, match=rf"^SGD\.step: {message}"):
        optimizer.step()
    with pytest.raises(ValueError, match=rf"^SGD\.accumulate: {message}"):
        optimizer.accumulate(torch.ones(3))
    optimizer.zero_grad()


# Together with calls without it, with other options, and with gradients that are missing.


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_only_first_gradients_are_overwritten(first: bool, second: bool) -> None:
    optimizer, one, two = sgd(), ones(a=1, b=2), {"a": np.full(3, 10.0), "b": None}
    three = ones(a=100, b=200)
    optimizer.accumulate({"a": one["a"], "b": None}, overwrite_grads=first)
    optimizer.accumulate(two)
    optimizer.accumulate(three, overwrite_grads=second)
    optimizer.accumulate(ones(a=1000, b=2000))
    assert one["a"][0] == (1111 if first else 1)
    assert three["a"][0] == 100
    assert three["b"][0] == (2200 if second else 200)
    assert {name: total[0] for name, total in sums(optimizer).items()} == {"a": 1111, "b": 2200}
    assert optimizer.accumulated == 4
    optimizer.step()
    assert optimizer.params["a"].tolist() == [-1111] * 3
    assert optimizer.params["b"].tolist() == [-2200] * 3
    optimizer.accumulate(ones(a=1, b=1))
    optimizer.step()
    assert optimizer.params["a"].tolist() == [-1112] * 3
    assert one["a"][0] == (1111 if first else 1)


def test_parameters_without_a_gradient_and_frozen_ones_rest() -> None:
    params = ones(a=0, b=0, c=0)
    optimizer = schuss.SGD(params, lr=1.0, groups=lambda name: {"frozen": name == "a"})
    grads = ones(a=1, c=3) | {"b": None}
    optimizer.accumulate(grads, overwrite_grads=True)
    assert {name: total[0] for name, total in sums(optimizer).items()} == {"a": 0, "b": 0, "c": 3}
    optimizer.accumulate(ones(a=1, c=3) | {"b": None})
    optimizer.step()
    assert {name: param[0] for name, param in params.items()} == {"a": 0, "b": 0, "c": -6}
    assert (grads["a"][0], grads["c"][0]) == (1, 6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_step_clears_the_sum_if_it_clears_gradients(scale: float) -> None:
    optimizer, first, second = sgd(clear_grads=True), ones(a=1, b=2), ones(a=10, b=20)
    optimizer.accumulate(first, scale=scale, overwrite_grads=True)
    assert first["b"][0] == 2 * scale
    optimizer.accumulate(second)
    assert (first["b"][0], second["b"][0]) == (2 * scale + 20, 0)
    optimizer.step()
    assert first["b"][0] == 0
    assert optimizer.params["b"].tolist() == [-2 * scale - 20] * 3


def test_a_step_that_is_refused_leaves_the_sum_and_one_that_is_skipped_does_not() -> None:
    optimizer, first = sgd(nonfinite="raise"), ones(a=np.inf, b=1)
    optimizer.accumulate(first, overwrite_grads=True)
    with pytest.raises(FloatingPointError, match=r"grads\['a'\] has a NaN"):
        optimizer.step()
    assert optimizer.accumulated == 1
    optimizer.nonfinite = "skip"
    optimizer.step()
    optimizer.accumulate(first, overwrite_grads=True)
    assert (optimizer.skipped, optimizer.accumulated) == (1, 1)


def test_settings_may_change_between_gradients() -> None:
    optimizer, first = schuss.Adam(ones(a=0)), ones(a=1)
    optimizer.accumulate(first, overwrite_grads=True)
    optimizer.amsgrad, optimizer.average = True, 0.5
    with pytest.raises(
        ValueError, match=r"grads\['a'\] shares memory with state\['v_max'\]\['a'\]"
    ):
        optimizer.accumulate(optimizer.state["v_max"])
    optimizer.accumulate(ones(a=1))
    assert first["a"][0] == 2
    optimizer.step()


# Saving.


def loaded(optimizer: Any) -> Any:
    other = sgd()
    other.accumulate(ones(a=7, b=7), overwrite_grads=True)
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, loaded, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_copy_has_sums_of_its_own(how: Callable[[Any], Any]) -> None:
    optimizer, first = sgd(), ones(a=1, b=2)
    optimizer.accumulate(first, overwrite_grads=True)
    other = how(optimizer)
    other.accumulate(ones(a=4, b=4))
    assert (optimizer.accumulated, other.accumulated) == (1, 2)
    assert (first["a"][0], sums(other)["a"][0]) == (1, 5)
    other.step()
    optimizer.accumulate(ones(a=2, b=2))
    assert first["a"][0] == 3


def test_loading_does_not_write_to_the_users_arrays() -> None:
    optimizer, first = sgd(), ones(a=1, b=2)
    state = optimizer.state_dict()
    optimizer.accumulate(ones(a=7, b=7))
    with_sums = optimizer.state_dict()
    optimizer.zero_grad()
    for each in (state, with_sums):
        optimizer.accumulate(first, overwrite_grads=True)
        optimizer.load_state_dict(each)
        assert optimizer.accumulated == (0 if each is state else 1)
        optimizer.accumulate(ones(a=100, b=100))
        assert (first["a"][0], first["b"][0]) == (1, 2)


def test_an_added_group_leaves_the_sums_where_they_are() -> None:
    params = [{"params": np.zeros(3)}, {"params": np.zeros(3)}]
    optimizer, first = schuss.SGD(params, lr=1.0), np.ones(3)
    optimizer.accumulate([first, None], overwrite_grads=True)
    optimizer.add_group({"params": np.zeros(2)})
    optimizer.accumulate([np.full(3, 2.0), None, np.ones(2)])
    assert first.tolist() == [3] * 3
    optimizer.step()
    arrays = [array for group in optimizer.param_groups for array in group["params"]]
    assert [array[0] for array in arrays] == [-3, 0, -1]


@pytest.mark.parametrize("after", ["accumulate", "step", "add_group", "state_dict", "copy"])
@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("change", ["memory", "shape", "read-only"])
def test_a_sum_that_was_changed_is_refused_everywhere(change: str, grown: bool, after: str) -> None:
    optimizer = schuss.SGD([{"params": np.zeros(N)}], lr=1.0)
    total: Any = np.ones(N)
    optimizer.accumulate([total], overwrite_grads=True)
    if grown:
        optimizer.add_group({"params": np.zeros(2)})
    if change == "memory":
        total.__setstate__(np.zeros(N).__reduce__()[2])
    elif change == "shape":
        total.shape = (N, 1)
    else:
        total.setflags(write=False)
    calls: dict[str, Callable[[], object]] = {
        "accumulate": lambda: optimizer.accumulate([np.ones(N), *[None] * grown]),
        "step": optimizer.step,
        "add_group": lambda: optimizer.add_group({"params": np.zeros(1)}),
        "state_dict": optimizer.state_dict,
        "copy": lambda: copy.copy(optimizer),
    }
    with pytest.raises(ValueError, match=r"accumulated\[0\].*drop the sums by zero_grad"):
        calls[after]()


# Refusals.


class Case:
    """An array that cannot become a sum, and the error."""

    def __init__(self, array: Any, error: type[Exception], message: str) -> None:
        self.array, self.error, self.message = array, error, message


READ_ONLY = np.ones(3, np.float32)
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    "case",
    [
        Case(
            np.ones(3, np.float16),
            TypeError,
            r"has dtype float16, expected float32 \(the dtype of params\['b'\]\) "
            r"\(overwrite_grads=False copies it into such a sum\)$",
        ),
        Case(np.ones(3), TypeError, r"has dtype float64, .*astype\(np.float32\) converts it\)$"),
        Case(np.ones(4, np.float32), ValueError, r"has shape \(4,\), expected \(3,\)"),
        Case(READ_ONLY, ValueError, "is read-only, expected a writeable array"),
        Case(
            np.broadcast_to(np.ones(1, np.float32), 3).view(),
            ValueError,
            "is read-only, expected a writeable array",
        ),
    ],
)
def test_what_cannot_become_a_sum_is_refused(case: Case) -> None:
    optimizer = schuss.SGD({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})
    first = np.ones(3, np.float32)
    with pytest.raises(case.error, match=rf"^SGD\.accumulate: grads\['b'\] {case.message}"):
        optimizer.accumulate({"a": first, "b": case.array}, scale=2.0, overwrite_grads=True)
    assert (optimizer.accumulated, first.tolist()) == (0, [1] * 3)


def test_a_number_is_not_a_flag() -> None:
    with pytest.raises(TypeError, match=r"^SGD\.accumulate: overwrite_grads is 1, expected True"):
        sgd().accumulate(ones(a=1, b=1), overwrite_grads=1)


@pytest.mark.parametrize("overwrite_grads", [False, True])
def test_gradients_in_the_memory_of_a_sum_are_refused(overwrite_grads: bool) -> None:
    optimizer, first = sgd(), ones(a=1, b=2)
    optimizer.accumulate(first, overwrite_grads=True)
    message = (
        r"^SGD\.accumulate: grads\['a'\] shares memory with accumulated\['a'\] \(the first "
        r"gradient itself; overwrite_grads=False would have copied it\), expected separate memory$"
    )
    for grad in (first["a"], first["a"][::-1]):
        with pytest.raises(ValueError, match=message):
            optimizer.accumulate({"a": grad, "b": None}, overwrite_grads=overwrite_grads)
    assert (optimizer.accumulated, first["a"].tolist()) == (1, [1] * 3)
    optimizer.step()
    optimizer.accumulate(first, overwrite_grads=True)  # those of the next step


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sums_do_not_share_memory(scale: float) -> None:
    optimizer, grad = sgd(), np.ones(3)
    with pytest.raises(ValueError, match=r"grads\['b'\] is the same array as grads\['a'\]"):
        optimizer.accumulate({"a": grad, "b": grad}, scale=scale, overwrite_grads=True)
    own = optimizer.params["a"]
    with pytest.raises(ValueError, match=r"params\['a'\] is the same array as grads\['a'\]"):
        optimizer.accumulate({"a": own, "b": grad}, scale=scale, overwrite_grads=True)
    assert (grad.tolist(), own.tolist(), optimizer.accumulated) == ([1] * 3, [0] * 3, 0)


@pytest.mark.parametrize("step", [False, True])
def test_a_sum_that_was_changed_is_refused_until_it_is_dropped(step: bool) -> None:
    optimizer = schuss.SGD({"a": np.zeros((2, 3))}, lr=1.0)
    total = np.ones((2, 3))
    optimizer.accumulate({"a": total}, overwrite_grads=True)

    def use() -> None:
        optimizer.step() if step else optimizer.accumulate({"a": np.ones((2, 3))})

    with pytest.raises(ValueError, match="cannot resize"):
        total.resize(2, refcheck=False)
    name = rf"^SGD\.{'step' if step else 'accumulate'}: accumulated\['a'\]"
    total.shape = (3, 2)
    with pytest.raises(
        ValueError, match=rf"{name} was resized, reshaped .* since it became the sum"
    ):
        use()
    total.shape = (2, 3)
    total.setflags(write=False)
    with pytest.raises(ValueError, match=f"{name} is read-only"):
        use()
    optimizer.zero_grad()
    assert (optimizer.accumulated, optimizer.steps) == (0, 0)
    optimizer.step({"a": total})
    assert optimizer.params["a"][0, 0] == -1
