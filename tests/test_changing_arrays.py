"""What becomes of an array while schuss works on it never crashes a step, and never loses one."""

import gc
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import kernels, reference
from support.arrays import Array, same_bits

N = 100_000  # freed memory of this size is unmapped, so that to touch it crashes


def ramp(n: int = N, dtype: Any = np.float32) -> Array:
    return np.linspace(-1, 1, n).astype(dtype)


# Reshaped, or seen as another dtype, and back.


def see_as(array: Any, **attributes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, value in attributes.items():
            setattr(array, name, value)


def see_as_rows(array: Array) -> None:
    see_as(array, shape=(2, -1))


def see_as_integers(array: Array) -> None:
    see_as(array, dtype=np.dtype(f"i{array.itemsize}"))


def see_as_before(array: Array) -> None:
    see_as(array, dtype=np.dtype(f"f{array.itemsize}"), shape=(-1,))


def load_own_state(opt: Any) -> None:
    opt.load_state_dict(opt.state_dict())


ALLOCATES: dict[str, Callable[[Any], object]] = {
    "average": lambda opt: setattr(opt, "average", 0.5),
    "corrected average": lambda opt: setattr(opt, "average_bias_correction", True),
    "amsgrad": lambda opt: setattr(opt, "amsgrad", True),
    "a state dict": load_own_state,
    "accumulation": lambda opt: opt.accumulate({"w": ramp()}),
    "a group's rate": lambda opt: opt.param_groups[0].update(lr=0.01),
}


@pytest.mark.parametrize("change", [see_as_rows, see_as_integers])
@pytest.mark.parametrize("act", ALLOCATES.values(), ids=ALLOCATES.keys())
def test_what_is_allocated_goes_with_the_parameter_as_it_was_taken(
    act: Callable[[Any], object], change: Callable[[Array], None]
) -> None:
    params = [ramp(), ramp()]
    opts = [schuss.Adam({"w": param}, copies="float16") for param in params]
    for opt, param in zip(opts, params, strict=True):
        if opt is opts[0]:
            change(param)
        act(opt)
        see_as_before(param)
        opt.step({"w": ramp()} if not opt.accumulated else None)
    assert same_bits(*params)
    assert same_bits(*(opt.state["v"]["w"] for opt in opts))
    assert same_bits(*(opt.copies["w"] for opt in opts))
    if opts[0].average is not None:
        assert same_bits(*(opt.average["w"] for opt in opts))


def test_groups_may_reshape_what_they_choose_for() -> None:
    params, twin = {"w": ramp()}, ramp()

    def groups(name: str) -> None:
        see_as_rows(params[name])

    opt = schuss.Adam(params, groups=groups, copies="float16")
    with pytest.raises(ValueError, match=r"^Adam\.step: params\['w'\] was .*reshaped"):
        opt.step({"w": ramp()})
    see_as_before(params["w"])
    opt.step({"w": ramp()})
    schuss.Adam({"w": twin}).step({"w": ramp()})
    assert same_bits(params["w"], twin)


class Reshapes(dict[str, Any]):
    """Parameters that reshape one while another is asked for."""

    active = True

    def __getitem__(self, key: str) -> Any:
        if self.active and key == "b":
            see_as_rows(dict.__getitem__(self, "a"))
        return dict.__getitem__(self, key)


def test_a_container_may_reshape_an_array_while_it_is_read() -> None:
    params = Reshapes({"a": ramp(), "b": ramp()})
    opt = schuss.SGD(params, lr=1.0)
    params.active = False
    opt.step({"a": ramp().reshape(params["a"].shape), "b": ramp()})
    assert (params["a"] == 0).all()
    assert (params["b"] == 0).all()


# In the middle of a call, by a profiler.


@contextmanager
def when_memory_is_compared(act: Callable[[], object]) -> Iterator[list[BaseException | None]]:
    """Do something, once, when NumPy is asked whether two arrays share memory."""
    done: list[BaseException | None] = []

    def profile(frame: FrameType, _: str, __: Any) -> None:
        if frame.f_code.co_name == "shares_memory" and not done:
            done.append(None)
            try:
                act()
            except ValueError as error:
                done[0] = error

    sys.setprofile(profile)
    try:
        yield done
    finally:
        sys.setprofile(None)
    assert done


def interleaved() -> tuple[Array, Array]:
    memory = np.zeros(2 * N, np.float32)
    return memory[::2], memory[1::2]


CHANGES: dict[str, Callable[[Array], object]] = {
    "rows": see_as_rows,
    "integers": see_as_integers,
    "shrink": lambda array: array.resize(10, refcheck=False),
    "grow": lambda array: array.resize(8 * N, refcheck=False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("which", ["param", "grad", "m", "v"])
def test_a_kernel_goes_by_what_it_was_given(which: str, change: Callable[[Array], object]) -> None:
    param, m = interleaved()  # whose memory must be compared
    arrays = {"param": param, "grad": ramp(), "m": m, "v": np.zeros(N, np.float32)}
    twins = {name: array.copy() for name, array in arrays.items()}
    target = arrays[which]
    with when_memory_is_compared(lambda: change(target)):
        kernels.adam(*arrays.values(), step=1)
    for array in arrays.values():
        see_as_before(array)
    reference.adam(*twins.values(), step=1)
    for name, twin in twins.items():
        assert same_bits(arrays[name].copy(), twin), name


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("which", ["params", "grads", "copies"])
def test_a_step_is_made_as_checked_or_refused(
    which: str, change: Callable[[Array], object]
) -> None:
    strided, gradient = interleaved()
    gradient[:] = 1
    arrays = {
        "params": [np.zeros(N, np.float32), strided],
        "grads": [np.ones(N, np.float32), gradient],
        "copies": [np.zeros(N, np.float16), np.zeros(N, np.float16)],
    }
    opt = schuss.SGD(arrays["params"], lr=1.0, copies=arrays["copies"])
    target = arrays[which][0]
    refusal = None
    with when_memory_is_compared(lambda: change(target)) as done:
        try:
            opt.step(arrays["grads"])
        except ValueError as error:
            refusal = str(error)
    if done[0] is not None:
        assert "resize" in str(done[0])  # which NumPy does not do with what is in use
        assert refusal is None
    assert refusal is None or refusal.startswith("SGD.step: ")
    assert opt.steps == (refusal is None)
    for param in arrays["params"]:
        see_as_before(param)
        assert (param == -opt.steps).all()


def test_a_parameter_that_is_frozen_while_gradients_are_compared_is_not_written() -> None:
    strided, gradient = interleaved()
    params = [np.zeros(N, np.float32), strided]
    opt = schuss.SGD(params, lr=1.0)
    with (
        when_memory_is_compared(lambda: params[0].setflags(write=False)),
        pytest.raises(ValueError, match=r"^SGD\.step: params\[0\] is read-only"),
    ):
        opt.step([np.ones(N, np.float32), gradient])
    assert not any(param.any() for param in params)
    assert opt.steps == 0


# Memory stays where it is as long as it is used, and no longer.


def holders() -> dict[str, tuple[Array, object]]:
    """Return arrays that own memory, and what uses each."""
    param, copies, owner = ramp(), ramp(dtype=np.float16), ramp()
    stateful = schuss.Momentum(ramp())
    return {
        "a parameter": (param, schuss.SGD(param)),
        "a copy": (copies, schuss.SGD(ramp(), copies=copies)),
        "what a parameter is a part of": (owner, schuss.SGD(owner[1:-1])),
        "state": (stateful.state["velocity"].base, stateful),
        "examples": (owner, schuss.minibatches(owner, batch_size=10)),
    }


@pytest.mark.parametrize("name", holders())
def test_memory_in_use_is_not_resized(name: str) -> None:
    array, user = holders()[name]
    for size in (10, 8 * N):
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(size, refcheck=False)
    if name != "state":
        del user
        gc.collect()
        array.resize(10, refcheck=False)
        assert array.size == 10


def test_another_thread_may_reshape_and_resize_while_steps_are_made() -> None:
    n, over = 2_000_000, threading.Event()
    param, grads = np.zeros(n, np.float32), [np.ones(n, np.float32)]
    opt = schuss.Adam(param)

    def change() -> None:
        while not over.is_set():
            see_as_rows(param)
            see_as_before(param)
            with suppress(ValueError):  # while a step reads it
                grads[0].resize(10, refcheck=False)

    thread = threading.Thread(target=change)
    thread.start()
    refusals = []
    try:
        for _ in range(50):
            try:
                opt.step(grads[0])
            except ValueError as error:
                refusals.append(str(error))
            grads[0] = np.ones(n, np.float32)
    finally:
        over.set()
        thread.join()
    expected = re.compile("reshaped|has shape|was changed while it was read")
    assert all(map(expected.search, refusals))
    assert opt.steps == 50 - len(refusals)
    assert (param == param[0]).all()


@pytest.mark.parametrize("part", [slice(None), slice(1, None)])
@pytest.mark.parametrize("user", ["step", "write_copies", "average", "state dict"])
def test_an_array_that_is_given_other_memory_is_refused(part: slice, user: str) -> None:
    owner = ramp()
    param = owner[part] if part.start else owner
    opt = schuss.SGD(param, copies="float16")
    saved = opt.state_dict()
    state: Any = 1, owner.shape, owner.dtype, False, ramp().tobytes()
    owner.__setstate__(state)  # frees the old memory
    acts: dict[str, Callable[[], object]] = {
        "step": lambda: opt.step(np.ones(N - (part.start or 0), np.float32)),
        "write_copies": opt.write_copies,
        "average": lambda: setattr(opt, "average", 0.5),
        "state dict": lambda: opt.load_state_dict(saved),
    }
    with pytest.raises(ValueError, match=r"^SGD.*params was resized, reshaped or seen as another"):
        acts[user]()
    assert opt.steps == 0
    assert same_bits(owner, ramp())


# Objects that show their memory: each time it is asked for, it must be the same.


class Copies:
    """Shows a copy of its numbers each time it is asked."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def __dlpack_device__(self) -> Any:
        return self.numbers.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.numbers.copy().__dlpack__(**keywords)


class ListsNumbers:
    """Is a tensor to look at, but shows a list."""

    __torch_function__ = __dlpack__ = None

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def numpy(self) -> list[float]:
        return self.numbers.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Copies, ListsNumbers])
def test_what_shows_no_memory_of_its_own_is_refused(kind: Any) -> None:
    numbers = ramp(4)
    words = "other memory each time" if kind is Copies else "is a ListsNumbers whose numpy"
    for make in (
        lambda: schuss.SGD(kind(numbers)),
        lambda: schuss.SGD(ramp(4), copies=kind(ramp(4, np.float16))),
        lambda: kernels.sgd(kind(numbers), ramp(4), lr=0.1),
        lambda: kernels.momentum(ramp(4), ramp(4), kind(numbers), lr=0.1),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            make()
    assert same_bits(numbers, ramp(4))


class LooksLikeATensor:
    """Shows its memory as a tensor does, and knows nothing else of tensors."""

    __torch_function__ = __dlpack__ = None

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def numpy(self) -> Array:
        return self.numbers

    def data_ptr(self) -> int:
        return self.numbers.ctypes.data


def test_what_looks_like_a_tensor_is_stepped_as_long_as_it_shows_one_memory() -> None:
    param: Any = LooksLikeATensor(ramp(4))
    grad: Any = LooksLikeATensor(ramp(4))
    opt = schuss.SGD(param, lr=1.0)
    opt.step(grad)
    assert (param.numbers == 0).all()
    kernels.sgd(param, grad, lr=1.0)
    assert same_bits(param.numbers, -ramp(4))
    param.numbers = ramp(4)
    with pytest.raises(ValueError, match="was given other memory"):
        opt.step(grad)
    assert opt.steps == 1


def test_a_copy_of_a_gradient_is_as_good_as_the_gradient() -> None:
    param = ramp(4)
    schuss.SGD(param, lr=1.0).step(Copies(ramp(4)))
    assert (param == 0).all()


TENSORS: dict[str, Callable[[Any, Any], Any]] = {
    "memory": lambda torch, t: torch.zeros(4, dtype=t.dtype),
    "strides": lambda torch, t: torch.zeros(8, dtype=t.dtype)[::2],
    "shape": lambda torch, t: t.data.view(2, 2),
    "dtype": lambda torch, t: t.data.double(),
}


@pytest.mark.parametrize("replace", TENSORS.values(), ids=TENSORS.keys())
@pytest.mark.parametrize("which", ["params", "copies"])
def test_a_tensor_that_was_given_other_memory_is_refused(which: str, replace: Any) -> None:
    torch = pytest.importorskip("torch")
    weights = {"w": torch.ones(4), "b": ramp(3)}
    copies = {"w": torch.zeros(4, dtype=torch.float16), "b": ramp(3, np.float16)}
    opt = schuss.Adam(weights, copies=copies)
    grads = {"w": torch.ones(4), "b": ramp(3)}
    opt.step(grads)
    saved, before = opt.state_dict(), weights["b"].copy()
    tensor = (weights if which == "params" else copies)["w"]
    tensor.data = replace(torch, tensor)
    kept = tensor.clone()
    with pytest.raises(ValueError, match=r"^Adam\.step: .*w.* was given other memory"):
        opt.step(grads)
    if which == "copies":
        with pytest.raises(ValueError, match="was given other memory"):
            opt.load_state_dict(saved)
    assert opt.steps == 1
    assert same_bits(weights["b"], before)
    assert torch.equal(tensor, kept)


def test_a_module_that_was_moved_is_refused_and_stepped_by_a_new_optimizer() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    module = torch.nn.Linear(3, 2)

    params = dict(module.requires_grad_(False).named_parameters())
    grads = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    opt = schuss.SGD(params)
    opt.step(grads)
    vector_to_parameters(parameters_to_vector(module.parameters()) * 2, module.parameters())
    with pytest.raises(ValueError, match="was given other memory"):
        opt.step(grads)
    before = {name: param.clone() for name, param in params.items()}
    schuss.SGD(params, lr=1.0).step(grads)
    for name, param in params.items():
        assert torch.equal(param, before[name] - 1)


@pytest.mark.parametrize("line", ["params", "grads", "copies", "kernels"])
def test_a_tensor_without_memory_is_refused(line: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = torch.float16 if line == "copies" else torch.float32
    tensor = torch.ones(3, dtype=dtype)
    tensor.untyped_storage().resize_(0)
    acts: dict[str, Callable[[], object]] = {
        "params": lambda: schuss.SGD(tensor),
        "grads": lambda: schuss.SGD(ramp(3)).step(tensor),
        "copies": lambda: schuss.SGD(ramp(3), copies=tensor),
        "kernels": lambda: kernels.sgd(tensor, ramp(3), lr=0.1),
    }
    with pytest.raises(TypeError, match="is a Tensor without memory of its own"):
        acts[line]()


# Masks.


def masked(dtype: Any = np.float32) -> Any:
    return np.ma.masked_array(ramp(3, dtype), mask=[False, True, False])


def loaded(tmp_path: Path) -> object:
    schuss.save(tmp_path / "file", ramp(3))
    return schuss.load(tmp_path / "file", masked())


def fit_with_l2(_: Path) -> object:
    param = ramp(4).reshape(2, 2)
    opt = schuss.SGD(param)
    grads = np.ma.masked_array(np.ones((2, 2), np.float32), mask=False)
    return schuss.fit(lambda p, x: (0.0, grads), param, opt, np.zeros(3), l2=0.1)


def load_masked_state(_: Path) -> None:
    opt = schuss.Momentum(ramp(3))
    opt.load_state_dict({**opt.state_dict(), "state": {"velocity": masked()}})


def average_more(_: Path) -> None:
    average = schuss.ExponentialAverage(0.9)
    average.update(ramp(3))
    average.update(masked())


MASKED: dict[str, Callable[[Path], object]] = {
    "parameter": lambda _: schuss.SGD(masked()),
    "nested parameter": lambda _: schuss.SGD({"a": [ramp(3), masked()]}),
    "gradient": lambda _: schuss.SGD(ramp(3)).step(masked()),
    "gradient in float16": lambda _: schuss.SGD(ramp(3)).step(masked(np.float16)),
    "accumulation": lambda _: schuss.SGD(ramp(3)).accumulate(masked()),
    "copies": lambda _: schuss.SGD(ramp(3), copies=masked(np.float16)),
    "state": load_masked_state,
    "scaled loss": lambda _: schuss.DynamicLossScale().step(schuss.SGD(ramp(3)), masked()),
    "average": lambda _: schuss.ExponentialAverage(0.9).update(masked()),
    "average after others": average_more,
    "kernel's parameter": lambda _: kernels.sgd(masked(), ramp(3), lr=0.1),
    "kernel's gradient": lambda _: kernels.sgd(ramp(3), masked(), lr=0.1),
    "kernel's state": lambda _: kernels.momentum(ramp(3), ramp(3), masked(), lr=0.1),
    "series": lambda _: schuss.ewma(masked(), 0.5),
    "series' output": lambda _: schuss.ewma(ramp(3), 0.5, out=masked()),
    "save": lambda path: schuss.save(path / "file", masked()),
    "load": loaded,
    "list of series": lambda _: schuss.ewma([masked(), masked()], 0.5),
    "list of examples": lambda _: schuss.minibatches([[ramp(3), masked()]]),
    "l2": fit_with_l2,
    "with_l2": lambda _: schuss.with_l2(lambda p, x: (0.0, ramp(3)), 0.1)(masked(), np.zeros(2)),
}


@pytest.mark.parametrize("act", MASKED.values(), ids=MASKED.keys())
def test_masks_are_refused_as_they_would_be_lost(
    act: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=r"is a MaskedArray|of masked arrays"):
        act(tmp_path)


NUMBERS: dict[str, Callable[[Any], object]] = {
    "rate": lambda x: schuss.SGD(ramp(3), lr=x),
    "count": lambda x: schuss.SGD(ramp(3), seed=x),
    "steps of a schedule": lambda x: schuss.schedules.Linear(1.0, 0.0, steps=x),
    "batch size": lambda x: schuss.minibatches(ramp(3), batch_size=x),
    "scale": lambda x: schuss.SGD(ramp(3)).step(ramp(3), scale=x),
    "value": lambda x: schuss.ExponentialAverage(0.9).update(x),
}


@pytest.mark.parametrize("act", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("number", [np.ma.masked, np.ma.array(3, mask=True), np.ma.array(3)])
def test_a_masked_number_is_none(act: Callable[[Any], object], number: Any) -> None:
    with pytest.raises(TypeError, match=r"is a Masked(Array|Constant), expected"):
        act(number)


def test_a_masked_gradient_is_refused_after_one_that_was_not_masked() -> None:
    param, gradient = ramp(3), ramp(3)
    opt = schuss.SGD(param)
    opt.step(gradient)
    before = param.copy()
    with pytest.raises(TypeError, match=r"^SGD\.step: grads is a MaskedArray, expected an array"):
        opt.step(gradient.view(np.ma.MaskedArray))
    assert same_bits(param, before)
    assert opt.steps == 1


# Many arrays in one memory.


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count what is compared in pairs."""
    counted: list[None] = []
    compare: Any = np.shares_memory

    def shares_memory(*arrays: Array, **options: Any) -> bool:
        counted.append(None)
        return bool(compare(*arrays, **options))

    monkeypatch.setattr(np, "shares_memory", shares_memory)
    return counted


def columns(matrix: Array) -> list[Array]:
    return list(matrix.T)


def blocks(matrix: Array, step: int) -> list[Array]:
    starts = range(0, len(matrix), step)
    return [matrix[i : i + step, j : j + step] for i in starts for j in starts]


def fields() -> list[Array]:
    records = np.zeros(300, [(f"f{i}", np.float32) for i in range(50)])
    return [records[name] for name in records.dtype.names or ()]


APART: dict[str, Callable[[], list[Array]]] = {
    "columns": lambda: columns(np.zeros((20, 400), np.float32)),
    "reversed columns": lambda: columns(np.zeros((20, 400), np.float32)[::-1, ::-1]),
    "columns from the last row to the next": lambda: columns(
        np.zeros(20 * 400 + 7, np.float32)[7:].reshape(20, 400)
    ),
    "blocks": lambda: blocks(np.zeros((160, 160), np.float32), 8),
    "blocks of columns": lambda: blocks(np.zeros((160, 160), np.float32).T, 8),
    "rows and columns in turn": lambda: [
        np.zeros((200, 200), np.float32)[i::10, j::4] for i in range(10) for j in range(4)
    ],
    "every so many": lambda: [m[i::100] for m in [np.zeros(5000, np.float32)] for i in range(100)],
    "fields": fields,
    "planes": lambda: [m[:, :, k] for m in [np.zeros((10, 10, 300))] for k in range(300)],
    "diagonals": lambda: [
        m.diagonal(k) for m in [np.zeros((300, 300), np.float32)] for k in range(-299, 300)
    ],
}


def writeable(arrays: list[Array]) -> list[Array]:
    for array in arrays:
        if not array.flags.writeable:  # as NumPy has it of diagonals
            array.flags.writeable = True
    return arrays


@pytest.mark.parametrize("make", APART.values(), ids=APART.keys())
def test_arrays_that_interleave_are_apart(
    make: Callable[[], list[Array]], comparisons: list[None]
) -> None:
    params = writeable(make())
    grads = [np.ones(param.shape, param.dtype) for param in params]
    schuss.SGD(params, lr=1.0).step(grads)
    assert all((param == -1).all() for param in params)
    assert len(comparisons) <= len(params)


def test_gradients_among_their_parameters_are_compared_once(comparisons: list[None]) -> None:
    memory = np.zeros((30, 600), np.float32)
    memory[:, 1::2] = 1
    params = list(memory[:, ::2].T)
    opt = schuss.SGD(params, lr=1.0)
    for _ in range(3):
        opt.step(list(memory[:, 1::2].T))
    assert (memory[:, ::2] == -3).all()
    assert len(comparisons) <= 600
    truly = [np.zeros(50, np.float32)[::3], np.zeros(50, np.float32)[1::3]]
    opt = schuss.SGD(truly)
    opt.step([np.ones(17, np.float32), np.ones(17, np.float32)])


def overlapping(names: str) -> list[Array]:
    memory = np.zeros((40, 500), np.float32)
    others = {
        "a row": memory[7],
        "a column again": memory[:, 3][::-1],
        "half a column": memory[20:, 499],
        "two columns": memory[:, 10:12],
        "a block": memory[3:5, 100:105],
        "a diagonal": memory[:, :40].diagonal(),
        "every third of all": memory.reshape(-1)[1::3],
    }
    return writeable([*columns(memory), others[names]])


@pytest.mark.parametrize(
    "other",
    [
        "a row",
        "a column again",
        "half a column",
        "two columns",
        "a block",
        "a diagonal",
        "every third of all",
    ],
)
def test_one_that_shares_memory_is_found_among_many(other: str) -> None:
    arrays = overlapping(other)
    with pytest.raises(ValueError, match=r"shares memory with|is the same array as"):
        schuss.SGD(arrays)
    *params, gradient = arrays
    like = [np.zeros(gradient.shape, np.float32)]
    before = [param.copy() for param in params]
    opt = schuss.SGD([*params, *like])
    with pytest.raises(ValueError, match=r"^SGD\.step: grads\[500\] shares memory with params"):
        opt.step([np.zeros(40, np.float32) for _ in params] + [gradient])
    assert opt.steps == 0
    assert all(map(same_bits, params, before))


def random_view(rng: np.random.Generator, memory: Array) -> Array:
    shape: Any = rng.integers(1, 5, rng.integers(1, 4))
    strides = rng.choice([4, 8, 12, 16, 20, 24, 40, 64, 96, 128, -8, -16, 48], len(shape))
    reach = (shape - 1) * strides
    low, high = -reach[reach < 0].sum(), reach[reach > 0].sum() + 4
    start = low + 4 * rng.integers(0, (memory.nbytes - low - high) // 32)
    return np.ndarray(tuple(shape), np.float32, memory, int(start), tuple(strides))


def addresses(view: Array) -> set[int]:
    places: Array = np.indices(view.shape).reshape(view.ndim, -1).T
    return {view.ctypes.data + int(place @ view.strides) for place in places}


def test_random_views_share_memory_if_two_of_their_elements_do() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        memory = np.zeros(4096, np.uint8)
        views = [random_view(rng, memory) for _ in range(rng.integers(2, 9))]
        views = [view for view in views if len(addresses(view)) == view.size] or [ramp(1)]
        refused = False
        try:
            schuss.SGD(views)
        except ValueError:
            refused = True
        assert refused == (len(set().union(*map(addresses, views))) < sum(v.size for v in views))
        found.append(refused)
    assert {*found} == {True, False}
