"""Arrays that change while schuss uses them: a step neither crashes nor gets lost."""

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
from support.arrays import Array, equal, leaves, same_bits

N = 100_000  # the system unmaps freed memory of this size, so that touching it crashes


def ramp(n: int = N, dtype: Any = np.float32) -> Array:
    return np.linspace(-1, 1, n).astype(dtype)


# Arrays that are reshaped or seen as another dtype, and back.


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


@pytest.mark.parametrize("change", [see_as_rows, see_as_integers])
@pytest.mark.parametrize(
    "allocate",
    [
        "setattr(opt, 'average', 0.5)",
        "setattr(opt, 'average_bias_correction', True)",
        "setattr(opt, 'amsgrad', True)",
        "opt.load_state_dict(opt.state_dict())",
        "opt.accumulate({'w': ramp()})",
        "opt.param_groups[0].update(lr=0.01)",
    ],
)
def test_new_state_has_the_shape_and_dtype_that_the_parameter_had_at_first(
    allocate: str, change: Callable[[Array], None]
) -> None:
    params = [ramp(), ramp()]
    opts = [schuss.Adam({"w": param}, copies="float16") for param in params]
    for opt, param in zip(opts, params, strict=True):
        if opt is opts[0]:
            change(param)
        eval(allocate, {"opt": opt, "ramp": ramp})
        see_as_before(param)
        opt.step({"w": ramp()} if not opt.accumulated else None)
    assert equal(*(leaves([p, o.state, o.copies]) for p, o in zip(params, opts, strict=True)))
    if opts[0].average is not None:
        assert same_bits(*(opt.average["w"] for opt in opts))


def test_the_function_of_groups_may_reshape_parameters() -> None:
    params, expected = {"w": ramp()}, ramp()
    opt = schuss.Adam(params, groups=lambda name: see_as_rows(params[name]), copies="float16")
    with pytest.raises(ValueError, match=r"^Adam\.step: params\['w'\] was .*reshaped"):
        opt.step({"w": ramp()})
    see_as_before(params["w"])
    opt.step({"w": ramp()})
    schuss.Adam({"w": expected}).step({"w": ramp()})
    assert same_bits(params["w"], expected)


class Reshapes(dict[str, Any]):
    """Parameters that reshape "a" when "b" is read."""

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


# Changes in the middle of a call, by a profiler.


@contextmanager
def when_memory_is_compared(act: Callable[[], object]) -> Iterator[list[BaseException | None]]:
    """Act once, when schuss asks NumPy whether two arrays share memory."""
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
def test_a_kernel_uses_the_arrays_as_they_were_at_the_call(
    which: str, change: Callable[[Array], object]
) -> None:
    param, m = interleaved()  # whose memory must be compared
    arrays = {"param": param, "grad": ramp(), "m": m, "v": np.zeros(N, np.float32)}
    expected = [array.copy() for array in arrays.values()]
    with when_memory_is_compared(lambda: change(arrays[which])):
        kernels.adam(*arrays.values(), step=1)
    for array in arrays.values():
        see_as_before(array)
    reference.adam(*expected, step=1)
    assert equal([array.copy() for array in arrays.values()], expected)


CHANGES_OF_STEPS = CHANGES | {"freeze": lambda array: array.setflags(write=False)}


@pytest.mark.parametrize("change", CHANGES_OF_STEPS.values(), ids=CHANGES_OF_STEPS.keys())
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
    refusal = None
    with when_memory_is_compared(lambda: change(arrays[which][0])) as done:
        try:
            opt.step(arrays["grads"])
        except ValueError as error:
            refusal = str(error)
    if done[0] is not None:
        assert "resize" in str(done[0])  # which NumPy does not do with what is in use
        assert refusal is None
    assert refusal is None or refusal.startswith("SGD.step: ")
    if change is CHANGES_OF_STEPS["freeze"] and which == "params":
        assert refusal is not None
        assert "params[0] is read-only" in refusal
    assert opt.steps == (refusal is None)
    for param in arrays["params"]:
        see_as_before(param)
        assert (param == -opt.steps).all()


# Memory stays in place as long as schuss uses it, and no longer.


def holders() -> dict[str, tuple[Array, object]]:
    """Return arrays that own memory, and the object that uses each."""
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


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(
    "act",
    [
        "opt.step(np.ones(opt.copies.size, np.float32))",
        "opt.write_copies()",
        "setattr(opt, 'average', 0.5)",
        "opt.load_state_dict(saved)",
    ],
)
def test_an_array_that_is_given_other_memory_is_refused(start: int, act: str) -> None:
    owner = ramp()
    opt = schuss.SGD(owner[start:] if start else owner, copies="float16")
    saved = opt.state_dict()
    state: Any = 1, owner.shape, owner.dtype, False, ramp().tobytes()
    owner.__setstate__(state)  # frees the old memory
    with pytest.raises(ValueError, match=r"^SGD.*params was resized, reshaped or seen as another"):
        eval(act, {"opt": opt, "saved": saved, "np": np})
    assert opt.steps == 0
    assert same_bits(owner, ramp())


# Objects that show their memory: at each access, it must be the same.


class Shows:
    """An object that shows its numbers by `__dlpack__`."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def __dlpack_device__(self) -> Any:
        return self.numbers.__dlpack_device__()


class Copies(Shows):
    """Shows a new copy of its numbers at each access."""

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.numbers.copy().__dlpack__(**keywords)


class AdmitsCopies(Shows):
    """Shows copies, and refuses to show anything else."""

    def __dlpack__(self, *, copy: bool | None = None, **keywords: Any) -> Any:
        if copy is False:
            raise BufferError("only copies")
        return self.numbers.copy().__dlpack__(**keywords)


class LooksLikeATensor:
    """Has the methods by which a tensor shows its memory, and no others."""

    __torch_function__ = __dlpack__ = None

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def numpy(self) -> Any:
        return self.numbers

    def data_ptr(self) -> int:
        return self.numbers.ctypes.data


class ListsNumbers(LooksLikeATensor):
    """Looks like a tensor, but shows a list."""

    def numpy(self) -> Any:
        return self.numbers.tolist()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Copies, "different memory at each"),
        (AdmitsCopies, "is a AdmitsCopies that does not export its memory"),
        (ListsNumbers, "is a ListsNumbers whose numpy"),
    ],
)
def test_what_shows_no_memory_of_its_own_is_never_updated_in_secret(kind: Any, words: str) -> None:
    numbers, velocity = ramp(4), ramp(4)
    for act in (
        lambda: schuss.SGD({"W": kind(numbers)}),
        lambda: schuss.SGD(ramp(4), copies=kind(ramp(4, np.float16))),
        lambda: kernels.sgd(kind(numbers), ramp(4), lr=0.1),
        lambda: kernels.momentum(ramp(4), ramp(4), kind(velocity), lr=0.1),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            act()
    assert equal([numbers, velocity], [ramp(4), ramp(4)])


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


def test_a_gradient_may_show_a_copy_at_each_access() -> None:
    param = ramp(4)
    schuss.SGD(param, lr=1.0).step(Copies(ramp(4)))
    assert (param == 0).all()


@pytest.mark.parametrize(
    "data",
    [
        "torch.zeros(4, dtype=t.dtype)",
        "torch.zeros(8, dtype=t.dtype)[::2]",
        "t.data.view(2, 2)",
        "t.data.double()",
    ],
)
@pytest.mark.parametrize("which", ["params", "copies"])
def test_a_tensor_that_was_given_other_memory_is_refused(which: str, data: str) -> None:
    torch = pytest.importorskip("torch")
    weights = {"w": torch.ones(4), "b": ramp(3)}
    copies = {"w": torch.zeros(4, dtype=torch.float16), "b": ramp(3, np.float16)}
    opt = schuss.Adam(weights, copies=copies)
    grads = {"w": torch.ones(4), "b": ramp(3)}
    opt.step(grads)
    saved, before = opt.state_dict(), weights["b"].copy()
    tensor = (weights if which == "params" else copies)["w"]
    tensor.data = eval(data, {"torch": torch, "t": tensor})
    kept = tensor.clone()
    with pytest.raises(ValueError, match=r"^Adam\.step: .*w.* was given other memory"):
        opt.step(grads)
    if which == "copies":
        with pytest.raises(ValueError, match="was given other memory"):
            opt.load_state_dict(saved)
    else:
        schuss.SGD(weights).step({"w": torch.ones(tensor.shape, dtype=tensor.dtype), "b": ramp(3)})
        assert not torch.equal(tensor, kept)
        weights["b"][...], tensor[...] = before, kept
    assert opt.steps == 1
    assert same_bits(weights["b"], before)
    assert torch.equal(tensor, kept)


@pytest.mark.parametrize(
    "act",
    [
        "schuss.SGD(tensor)",
        "schuss.SGD(ramp(3)).step(tensor)",
        "schuss.SGD(ramp(3), copies=tensor)",
        "kernels.sgd(tensor, ramp(3), lr=0.1)",
    ],
)
def test_a_tensor_without_memory_is_refused(act: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, dtype=torch.float16 if "copies" in act else torch.float32)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="is a Tensor without memory of its own"):
        eval(act, {"schuss": schuss, "kernels": kernels, "ramp": ramp, "tensor": tensor})


# Masks.


def masked(dtype: Any = np.float32) -> Any:
    return np.ma.masked_array(ramp(3, dtype), mask=[False, True, False])


FIT_WITH_L2 = (
    "schuss.fit(lambda p, x: (0.0, masked()), w := ramp(3), schuss.SGD(w), np.zeros(3), l2=0.1)"
)
MASKED: list[str] = [
    "schuss.SGD(masked())",
    "schuss.SGD({'a': [ramp(3), masked()]})",
    "schuss.SGD(ramp(3)).step(masked())",
    "schuss.SGD(ramp(3)).step(masked(np.float16))",
    "schuss.SGD(ramp(3)).accumulate(masked())",
    "schuss.SGD(ramp(3), copies=masked(np.float16))",
    "(o := schuss.Momentum(ramp(3))).load_state_dict(o.state_dict() | state(masked()))",
    "schuss.DynamicLossScale().step(schuss.SGD(ramp(3)), masked())",
    "schuss.ExponentialAverage(0.9).update(masked())",
    "(a := schuss.ExponentialAverage(0.9), a.update(ramp(3)), a.update(masked()))",
    "(o := schuss.SGD(ramp(3)), o.step(g := ramp(3)), o.step(g.view(np.ma.MaskedArray)))",
    "schuss.kernels.sgd(masked(), ramp(3), lr=0.1)",
    "schuss.kernels.sgd(ramp(3), masked(), lr=0.1)",
    "schuss.kernels.momentum(ramp(3), ramp(3), masked(), lr=0.1)",
    "schuss.ewma(masked(), 0.5)",
    "schuss.ewma(ramp(3), 0.5, out=masked())",
    "schuss.ewma([masked(), masked()], 0.5)",
    "schuss.save(path, masked())",
    "(schuss.save(path, ramp(3)), schuss.load(path, masked()))",
    "schuss.minibatches([[ramp(3), masked()]])",
    FIT_WITH_L2,
    "schuss.with_l2(lambda p, x: (0.0, ramp(3)), 0.1)(masked(), np.zeros(2))",
]


@pytest.mark.parametrize("call", MASKED)
def test_masks_are_refused_as_they_would_be_lost(call: str, tmp_path: Path) -> None:
    names = {"schuss": schuss, "np": np, "ramp": ramp, "masked": masked, "path": tmp_path / "c"}
    with pytest.raises(TypeError, match=r"is a MaskedArray|of masked arrays"):
        eval(call, names | {"state": lambda tree: {"state": {"velocity": tree}}})


@pytest.mark.parametrize(
    "call",
    [
        "schuss.SGD(ramp(3), lr=x)",
        "schuss.SGD(ramp(3), seed=x)",
        "schuss.schedules.Linear(1.0, 0.0, steps=x)",
        "schuss.minibatches(ramp(3), batch_size=x)",
        "schuss.SGD(ramp(3)).step(ramp(3), scale=x)",
        "schuss.ExponentialAverage(0.9).update(x)",
    ],
)
@pytest.mark.parametrize("number", [np.ma.masked, np.ma.array(3, mask=True), np.ma.array(3)])
def test_a_masked_number_is_not_a_number(call: str, number: Any) -> None:
    with pytest.raises(TypeError, match=r"is a Masked(Array|Constant), expected"):
        eval(call, globals(), {"x": number})


# Many arrays in one memory.


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count the pairs of arrays that schuss compares."""
    counted: list[None] = []
    compare: Any = np.shares_memory

    def shares_memory(*arrays: Array, **options: Any) -> bool:
        counted.append(None)
        return bool(compare(*arrays, **options))

    monkeypatch.setattr(np, "shares_memory", shares_memory)
    return counted


def blocks(matrix: Array, step: int) -> list[Array]:
    starts = range(0, len(matrix), step)
    return [matrix[i : i + step, j : j + step] for i in starts for j in starts]


def fields() -> list[Array]:
    records = np.zeros(300, [(f"f{i}", np.float32) for i in range(50)])
    return [records[name] for name in records.dtype.names or ()]


# Arrays that interleave; `m(...)` makes float32 zeros of a shape.
APART = [
    "[*m(20, 400).T]",
    "[*m(20, 400)[::-1, ::-1].T]",
    "[*m(20 * 400 + 7)[7:].reshape(20, 400).T]",
    "blocks(m(160, 160), 8)",
    "blocks(m(160, 160).T, 8)",
    "[whole[i::10, j::4] for whole in [m(200, 200)] for i in range(10) for j in range(4)]",
    "[whole[i::100] for whole in [m(5000)] for i in range(100)]",
    "fields()",
    "[*m(10, 10, 300).transpose(2, 0, 1)]",
    "[whole.diagonal(k) for whole in [m(300, 300)] for k in range(-299, 300)]",
]


def writeable(arrays: list[Array]) -> list[Array]:
    for array in arrays:
        if not array.flags.writeable:  # as NumPy has it of diagonals
            array.flags.writeable = True
    return arrays


@pytest.mark.parametrize("arrays", APART)
def test_arrays_that_interleave_are_apart(arrays: str, comparisons: list[None]) -> None:
    names = {"m": lambda *shape: np.zeros(shape, "f4"), "blocks": blocks, "fields": fields}
    params = writeable(eval(arrays, names))
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


@pytest.mark.parametrize(
    "other",
    [
        *("memory[7]", "memory[:, 3][::-1]", "memory[20:, 499]", "memory[:, 10:12]"),
        *("memory[3:5, 100:105]", "memory[:, :40].diagonal()", "memory.reshape(-1)[1::3]"),
    ],
)
def test_one_that_shares_memory_is_found_among_many(other: str) -> None:
    memory = np.zeros((40, 500), np.float32)
    arrays = writeable([*memory.T, eval(other, {"memory": memory})])
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
