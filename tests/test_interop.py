"""Arrays of other libraries and files: stepped where they are, or refused."""

import array
import ctypes
import gc
import mmap
import multiprocessing
import struct
import sys
import tracemalloc
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import schuss
from schuss import kernels, reference
from support.arrays import Array, dtype_of, equal, same_bits
from support.processes import ends_well


class Shown(NamedTuple):
    """An object of a library, and NumPy's own view of its memory or, if it is read-only, a copy."""

    object: Any
    seen: Array


def values(seed: int, shape: Any = 12, dtype: Any = np.float32) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def expect_adam(param: Any, grad: Any, *, seen: Array, gradient: Array) -> None:
    """Step by the kernel and by an optimizer, and expect the reference's bits in `seen`."""
    expected = seen.copy()
    (m, v), moments = np.zeros((2, 2, *seen.shape), np.float32)
    kernels.adam(param, grad, m, v, step=1, lr=0.1)
    reference.adam(expected, gradient, *moments, step=1, lr=0.1)
    assert same_bits(seen, expected)
    moments[...] = 0
    optimizer = schuss.Adam({"w": param}, lr=0.1)
    for t in (1, 2):
        optimizer.step({"w": grad})
        reference.adam(expected, gradient, *moments, step=t, lr=0.1)
        assert same_bits(seen, expected)


def expect_refused(
    error: type[Exception], words: str, param: Any, grad: Any, *keeps: Array
) -> None:
    """Expect that kernel and optimizer refuse param or grad in these words and change nothing."""
    before = [array.tobytes() for array in keeps]
    with pytest.raises(error, match=rf"^kernels\.sgd: (param|grad) .*{words}.*, expected"):
        kernels.sgd(param, grad, lr=0.1)
    with pytest.raises(error, match=rf"^SGD(\.step)?: (params|grads)\['w'\] .*{words}.*, expected"):
        schuss.SGD({"w": param}, lr=0.1).step({"w": grad})
    assert [array.tobytes() for array in keeps] == before


# Memory of all kinds: as parameters in place, as gradients without a copy.


def floats(owner: Any) -> Array:
    return np.frombuffer(owner, np.float32)


Make = Callable[[Any, Array], tuple[Any, Array]]
# A library, and what makes an object of it and NumPy's view of its memory.
WRITEABLE: dict[str, tuple[str, Make]] = {
    "a tensor": ("torch", lambda lib, a: (t := lib.tensor(a), t.numpy())),
    "a tensor's array": ("torch", lambda lib, a: (t := lib.tensor(a).numpy(), t)),
    "a parameter of torch, detached": (
        "torch",
        lambda lib, a: (t := lib.nn.Parameter(lib.tensor(a)).detach(), t.numpy()),
    ),
    "array.array": ("array", lambda lib, a: (t := lib.array("f", a.tobytes()), floats(t))),
    "a bytearray": (
        "builtins",
        lambda lib, a: (memoryview(t := lib.bytearray(a.tobytes())).cast("f"), floats(t)),
    ),
    "ctypes": ("ctypes", lambda lib, a: (t := (lib.c_float * len(a))(*a.tolist()), floats(t))),
    "mmap": ("mmap", lambda lib, a: (memoryview(t := lib.mmap(-1, a.nbytes)).cast("f"), floats(t))),
    "__dlpack__ alone": ("numpy", lambda lib, a: (Exporter(t := a.copy()), t)),
}
READ_ONLY: dict[str, tuple[str, Make]] = {
    "JAX": ("jax.numpy", lambda lib, a: (lib.asarray(a), a)),
    "an array of JAX": ("jax.numpy", lambda lib, a: (t := np.asarray(lib.asarray(a)), t)),
    "a column of pandas": (
        "pandas",
        lambda lib, a: (t := lib.DataFrame({"a": a})["a"].to_numpy(), t),
    ),
    "a column of polars": ("polars", lambda lib, a: (t := lib.Series(a).to_numpy(), t)),
    "pyarrow": ("pyarrow", lambda lib, a: (t := lib.array(a), t.to_numpy())),
    "bytes": ("builtins", lambda lib, a: (memoryview(t := a.tobytes()).cast("f"), floats(t))),
}
KINDS = WRITEABLE | READ_ONLY


def show(kind: str, numbers: Array) -> Shown:
    library, make = KINDS[kind]
    # Columns of pandas 2 can be written.
    module = pytest.importorskip(library, minversion="3" if library == "pandas" else None)
    shown = Shown(*make(module, numbers))
    if kind == "mmap":  # begins with zeros
        shown.seen[...] = numbers
    return shown


@pytest.mark.parametrize("kind", WRITEABLE)
def test_parameters_and_state_are_updated_in_the_memory_that_they_show(kind: str) -> None:
    shown, gradient = show(kind, values(0)), values(1)
    expect_adam(shown.object, gradient, seen=shown.seen, gradient=gradient)
    states = [show(kind, np.zeros(12, np.float32)) for _ in range(2)]
    expected = shown.seen.copy(), gradient, *np.zeros((2, 12), np.float32)
    kernels.adam(shown.object, gradient, *(state.object for state in states), step=1)
    reference.adam(*expected, step=1)
    assert equal([shown.seen, gradient, *(state.seen for state in states)], expected)


@pytest.mark.parametrize("kind", READ_ONLY)
def test_what_must_not_be_written_is_no_parameter_no_state_and_not_cleared(kind: str) -> None:
    shown, gradient, param = show(kind, values(0)), values(1), values(1)
    expect_refused(ValueError, "is read-only", shown.object, gradient, shown.seen)
    with pytest.raises(ValueError, match=r"^kernels\.momentum: velocity is read-only, expected"):
        kernels.momentum(values(0), gradient, shown.object, lr=0.1)
    with pytest.raises(ValueError, match=r"^SGD\.step: grads is read-only, expected"):
        schuss.SGD(param, clear_grads=True).step(shown.object)
    assert equal([shown.seen, param], [values(0), values(1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_read_from_the_memory_that_it_shows(kind: str) -> None:
    shown, param = show(kind, values(1)), values(0)
    expect_adam(param, shown.object, seen=param, gradient=values(1))
    if kind in WRITEABLE:
        optimizer = schuss.SGD(param, lr=1.0)
        for t in (1, 2, 3):  # as it is when the step comes
            shown.seen[...], param[...] = t, 0
            optimizer.step(shown.object)
            assert (param == -t).all()


@pytest.mark.parametrize("kind", KINDS)
def test_neither_a_parameter_nor_a_gradient_is_copied(kind: str) -> None:
    n = 1 << 20
    shown, other = show(kind, values(0, n)).object, values(1, n)
    pairs = [(other, shown), (shown, other)] if kind in WRITEABLE else [(other, shown)]
    for param, grad in pairs:
        schuss.SGD(param).step(grad)  # and so loads what is needed once
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            schuss.SGD(param).step(grad)
            assert tracemalloc.get_traced_memory()[1] - before < n
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_averages_series_and_mini_batches_may_be_of_what_is_shown(kind: str) -> None:
    shown, expected = schuss.ExponentialAverage(0.5), schuss.ExponentialAverage(0.5)
    for seed in (1, 2):
        shown.update(show(kind, values(seed)).object)
        expected.update(values(seed))
    assert same_bits(shown.value, expected.value)
    if kind == "__dlpack__ alone":  # of which NumPy makes no array by itself
        return
    examples = show(kind, values(0)).object
    assert same_bits(schuss.ewma(examples, 0.5), schuss.ewma(values(0), 0.5))
    ours, batches = (
        [batch for batch, _ in schuss.minibatches(x, batch_size=5, rng=0, indices=True)]
        for x in (examples, values(0))
    )
    assert {*map(type, ours)} == {np.ndarray}
    assert equal(ours, batches)


# PyTorch.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tensors_of_any_layout_and_dtype_are_updated_in_place(dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    expected = values(0, (8, 9, 4), dtype)
    whole = torch.tensor(expected)
    cuts: list[Callable[[Any], Any]] = [
        lambda a: a[:2],
        lambda a: a[2:4, ::2],
        lambda a: a[4, 3:, 1:3].T,
        lambda a: a[5:, 1:2].swapaxes(0, 2),
        lambda a: a[4, 0, 0, ...],
        lambda a: a[4, :0],
    ]
    tensors, arrays = ([cut(memory) for cut in cuts] for memory in (whole, expected))
    grads = [values(1, array.shape, dtype) for array in arrays]
    schuss.SGD(tensors, lr=0.1).step([torch.tensor(grad) for grad in grads])
    for part, grad in zip(arrays, grads, strict=True):
        reference.sgd(part, grad, lr=0.1)
    assert same_bits(whole.numpy(), expected)


HIDDEN = "is a Tensor that does not export its memory"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("ones(3, requires_grad=True)", "detach"),
        ("ones(3, requires_grad=True) * 2", "detach"),
        ("nn.Parameter(ones(3))", "detach"),
        ("ones(3, device='meta')", HIDDEN),
        ("ones(3, dtype=complex64).conj()", HIDDEN),
        ("full((3,), 1j, dtype=complex64).conj().imag", HIDDEN),
        ("ones(3, dtype=bfloat16, requires_grad=True)", "detach"),
        ("ones(3, dtype=bfloat16, device='meta')", HIDDEN),
        ("_neg_view(ones(3, dtype=bfloat16))", HIDDEN),
    ],
)
def test_a_tensor_that_autograd_watches_or_that_hides_its_numbers_is_refused(
    expression: str, words: str
) -> None:
    tensor = eval(expression, vars(pytest.importorskip("torch")).copy())
    plain, before = values(0, 3), repr(tensor)
    expect_refused(TypeError, words, tensor, plain, plain)
    expect_refused(TypeError, words, plain, tensor, plain)
    with pytest.raises(TypeError, match=rf"^ExponentialAverage\.update: values .*{words}"):
        schuss.ExponentialAverage(0.5).update(tensor)
    reason = "detach" if words == "detach" else ""
    with pytest.raises((TypeError, ValueError), match=rf"^ewma: values is not an array.*{reason}"):
        schuss.ewma(tensor, 0.5)
    with pytest.raises(
        (TypeError, ValueError), match=rf"^minibatches: x is not an array.*{reason}"
    ):
        schuss.minibatches(tensor)
    assert repr(tensor) == before


def test_a_tensor_with_one_number_in_many_places_is_a_gradient_but_no_parameter() -> None:
    torch = pytest.importorskip("torch")
    one, plain = torch.ones(1), values(0, 3)
    expect_refused(ValueError, "has elements that overlap", one.expand(3), plain, one.numpy())
    expect_adam(plain, one.expand(3), seen=plain, gradient=np.ones(3, np.float32))


def test_the_memory_of_a_tensor_may_be_stepped_as_an_array() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.linspace(-1, 1, 12)
    seen = tensor.numpy()
    expected, watched = seen.copy(), torch.ones(3, requires_grad=True)
    schuss.SGD([seen, watched.detach()], lr=0.1).step([values(1), torch.ones(3)])
    reference.sgd(expected, values(1), lr=0.1)
    assert same_bits(seen, expected)
    assert tensor.tolist() == expected.tolist()
    assert (watched == 0.9).all()


def test_copies_and_loaded_state_may_be_tensors() -> None:
    torch = pytest.importorskip("torch")
    weights, half = values(0), torch.zeros(12, dtype=torch.float16)
    optimizer = schuss.Momentum([weights], lr=0.1, copies=[half])
    optimizer.step([values(1)])
    assert same_bits(half.numpy(), weights.astype(np.float16))
    saved = optimizer.state_dict()
    saved["state"] = {"velocity": [torch.tensor(values(1))]}
    optimizer.load_state_dict(saved)
    assert same_bits(optimizer.state["velocity"][0], values(1))


@pytest.mark.parametrize(
    "line",
    [
        "tensor.data = torch.zeros(4)",
        "tensor.set_(torch.zeros(4))",
        "tensor.untyped_storage().resize_(0)",
    ],
)
def test_memory_that_a_tensor_releases_is_kept(line: str) -> None:
    pytest.importorskip("torch")
    ends_well(
        f"""
        import numpy as np, schuss, torch
        n = 20_000_000  # the system unmaps memory of this size when it is freed
        tensor = torch.ones(n)
        optimizer = schuss.SGD([tensor], lr=1.0)
        shown = optimizer.param_groups[0]["params"][0]
        try:
            {line}
            optimizer.step([np.ones(n, np.float32)])
        except RuntimeError as error:
            assert "not resizable" in str(error)
        except ValueError as error:
            assert "was given other memory" in str(error)
        else:
            raise AssertionError("stepped on memory that is not the tensor's")
        assert (shown == 1).all()
        """
    )


# bfloat16, which NumPy lacks: without a copy all the same.

BFLOAT = 4  # the code of DLPack

# A library, and what makes an object of it and NumPy's view of its memory.
BFLOAT16: dict[str, tuple[str, Make]] = {
    "a tensor": (
        "torch",
        lambda lib, a: (
            t := lib.tensor(a.astype(np.float32)).bfloat16(),
            t.view(lib.int16).numpy().view(a.dtype),
        ),
    ),
    "__dlpack__ alone": ("numpy", lambda lib, a: (Exporter(t := a.copy(), code=BFLOAT), t)),
    "JAX": ("jax.numpy", lambda lib, a: (t := lib.asarray(a), np.asarray(t))),
}


def show_bfloat16(kind: str, seed: int, shape: Any = 12) -> Shown:
    library, make = BFLOAT16[kind]
    module = pytest.importorskip(library)
    return Shown(*make(module, values(seed, shape, dtype_of("bfloat16"))))


@pytest.mark.parametrize("kind", BFLOAT16)
@pytest.mark.parametrize("shape", [1, 12, (0, 2), (3, 4)])
def test_a_bfloat16_gradient_is_read_where_it_is(kind: str, shape: Any) -> None:
    grad, param = show_bfloat16(kind, 1, shape), values(0, shape)
    expect_adam(param, grad.object, seen=param, gradient=grad.seen)
    if kind == "JAX":
        expect_refused(ValueError, "is read-only", grad.object, grad.object, grad.seen)
        return
    optimizer = schuss.SGD([param], lr=1.0, clear_grads=True)
    for t in (1, 2):  # as it is when the step comes, and cleared there
        grad.seen[...], param[...] = t, 0
        optimizer.step([grad.object])
        assert (param == -t).all()
        assert not grad.seen.any()


@pytest.mark.parametrize("kind", ["a tensor", "__dlpack__ alone"])
def test_bfloat16_parameters_and_copies_are_written_where_they_are(kind: str) -> None:
    param, grad = show_bfloat16(kind, 0), show_bfloat16(kind, 1)
    expect_adam(param.object, grad.object, seen=param.seen, gradient=grad.seen)
    optimizer = schuss.SGD([param.object], lr=0.1)
    assert np.shares_memory(optimizer.param_groups[0]["params"][0], param.seen)
    copy, weights = show_bfloat16(kind, 2), values(0)
    optimizer = schuss.SGD([weights], lr=0.1, copies=[copy.object])
    for _ in range(2):
        assert same_bits(copy.seen, weights.astype(copy.seen.dtype))
        optimizer.step([grad.object])


def test_a_bfloat16_gradient_of_jax_is_not_copied() -> None:
    grad, param = show_bfloat16("JAX", 1, 1 << 20).object, values(0, 1 << 20)
    schuss.SGD(param).step(grad)  # and so loads what is needed once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        schuss.SGD(param).step(grad)
        assert tracemalloc.get_traced_memory()[1] - before < grad.size
    finally:
        tracemalloc.stop()


def test_bfloat16_tensors_may_be_cut_and_given_other_memory_only_if_that_is_noticed() -> None:
    torch = pytest.importorskip("torch")
    whole = show_bfloat16("a tensor", 0, (8, 6))
    expected, grad = whole.seen.copy(), values(1, (6, 4))
    part = whole.object[::2].T
    optimizer = schuss.SGD([part], lr=0.1)
    optimizer.step([grad])
    reference.sgd(expected[::2].T, grad, lr=0.1)
    assert same_bits(whole.seen, expected)
    part.data = torch.zeros(6, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="was given other memory"):
        optimizer.step([grad])


def test_without_ml_dtypes_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = show_bfloat16("a tensor", 0).object
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r"^SGD: params\[0\] is 'bfloat16', .*pip install"):
        schuss.SGD([tensor])


# Columns.


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table_is_cut_into_batches_along_its_rows(library: str) -> None:
    columns = {"a": values(0), "b": values(1)}
    table = pytest.importorskip(library).DataFrame(columns)
    rows = np.stack([*columns.values()], axis=1)
    for batch, indices in schuss.minibatches(table, batch_size=5, rng=0, indices=True):
        assert same_bits(np.ascontiguousarray(batch), rows[indices])


# Files and other processes.


def mapped(path: Path, numbers: Array, mode: Any) -> Any:
    numbers.tofile(path)
    return np.memmap(path, numbers.dtype, mode, shape=numbers.shape)


def test_a_file_holds_what_was_stepped_once_it_is_flushed(tmp_path: Path) -> None:
    shape = 300, 40
    zeros = np.zeros(shape, np.float32)
    param = mapped(tmp_path / "param", values(0, shape), "r+")
    grad = mapped(tmp_path / "grad", values(1, shape), "r")
    m, v = (mapped(tmp_path / name, zeros, "r+") for name in "mv")
    expected = values(0, shape), values(1, shape), zeros.copy(), zeros.copy()
    kernels.adam(param, grad, m, v, step=1)
    reference.adam(*expected, step=1)
    optimizer = schuss.SGD([param], lr=0.1)
    optimizer.step([grad])
    reference.sgd(*expected[:2], lr=0.1)
    for memory in (param, m, v):
        memory.flush()
    for name, wanted in zip(("param", "grad", "m", "v"), expected, strict=True):
        assert (tmp_path / name).read_bytes() == wanted.tobytes()


def test_a_file_mapped_to_be_read_is_refused_and_one_copied_on_write_stays(tmp_path: Path) -> None:
    path = tmp_path / "param"
    param = mapped(path, values(0), "r")
    expect_refused(ValueError, "is read-only", param, values(1), param)
    param = mapped(path, values(0), "c")
    expect_adam(param, values(1), seen=param, gradient=values(1))
    assert path.read_bytes() == values(0).tobytes() != param.tobytes()


# Buffers, and how long schuss holds them.


# A parameter in memory of `owner`, and what would move that memory.
BUFFERS = [
    ("owner := array.array('f', [1, 2, 3])", "owner.append(4)"),
    ("memoryview(owner := bytearray(12)).cast('f')", "owner.extend(b'more')"),
    ("memoryview(owner := mmap.mmap(-1, 12)).cast('f')", "owner.close()"),
]


@pytest.mark.parametrize(("made", "change"), BUFFERS)
def test_memory_stays_as_long_as_the_optimizer_and_no_longer(made: str, change: str) -> None:
    names: dict[str, Any] = {"array": array, "mmap": mmap}
    params = [eval(f"({made})", names)]
    optimizer = schuss.SGD(params, lr=0.0)
    if isinstance(params[0], memoryview):
        params[0].release()  # the optimizer still holds the memory
    for _ in range(2):
        with pytest.raises(BufferError):
            eval(change, names)
        optimizer.step([values(1, 3)])
    del params, optimizer
    gc.collect()
    eval(change, names)


def test_a_gradient_is_held_no_longer_than_the_step() -> None:
    grad = array.array("f", [1, 2, 3])
    optimizer = schuss.SGD(values(0, 3))
    optimizer.step(grad)
    grad.append(4)
    with pytest.raises(ValueError, match=r"grads has shape \(4,\), expected \(3,\)"):
        optimizer.step(grad)


@pytest.mark.parametrize("kind", WRITEABLE)
def test_an_optimizer_keeps_the_memory_that_only_it_refers_to(kind: str) -> None:
    params = [show(kind, values(0, 5000)).object]
    optimizer = schuss.SGD(params, lr=0.1)
    (array,) = optimizer.param_groups[0]["params"]
    del params
    gc.collect()
    junk = [np.full(5000, np.nan, np.float32) for _ in range(50)]
    expected = values(0, 5000)
    optimizer.step([values(1, 5000)])
    reference.sgd(expected, values(1, 5000), lr=0.1)
    assert same_bits(array, expected)
    assert len(junk) == 50


FOREIGN = ctypes.c_float.__ctype_be__ if sys.byteorder == "little" else ctypes.c_float


@pytest.mark.parametrize(
    "owner",
    [bytes(12), bytearray(12), mmap.mmap(-1, 12), (ctypes.c_char * 12)(), (FOREIGN * 3)()],
    ids=type,
)
def test_bytes_and_numbers_in_the_other_byte_order_are_not_taken_for_numbers(owner: Any) -> None:
    plain = values(0, 3)
    expect_refused(TypeError, "has dtype", owner, plain, plain)
    expect_refused(TypeError, "has dtype", plain, owner, plain)


def test_a_matrix_of_ctypes_has_its_shape() -> None:
    row = ctypes.c_double * 3
    matrix = (row * 2)(row(1, 2, 3), row(4, 5, 6))
    schuss.SGD(matrix, lr=1.0).step(np.ones((2, 3)))
    assert [list(numbers) for numbers in matrix] == [[0, 1, 2], [3, 4, 5]]


# Objects that follow a protocol and nothing else.


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Exporter:
    """An object that shows an array by `__dlpack__` alone, in capsules made here."""

    def __init__(
        self,
        seen: Array,
        *,
        flags: int = 0,
        device: int = 1,
        code: int = 2,
        major: int = 1,
        has_strides: bool = True,
    ) -> None:
        self.seen, self.flags, self.device, self.code = seen, flags, device, code
        self.major, self.has_strides = major, has_strides
        self.versioned = True
        self.copy_arguments: list[bool | None] = []
        self.created = self.deleted = 0
        self._alive: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(
        self, *, copy: bool | None = None, max_version: Any = None, dl_device: Any = None
    ) -> Any:
        self.copy_arguments.append(copy)
        size, axes = self.seen.itemsize, self.seen.ndim
        shape = (ctypes.c_int64 * axes)(*self.seen.shape)
        strides = (ctypes.c_int64 * axes)(*(step // size for step in self.seen.strides))
        layout = ctypes.addressof(shape), ctypes.addressof(strides) * self.has_strides
        kind = self.code, 8 * size, 1  # one lane
        # DLTensor, and a managed one around it, as dlpack.h has them.
        data = self.seen.ctypes.data
        tensor = struct.pack("PiiiBBHPPQ", data, self.device, 0, axes, *kind, *layout, 0)
        delete = Deleter(self._delete)
        deleter = ctypes.cast(delete, ctypes.c_void_p).value
        if self.versioned:
            name = b"dltensor_versioned"
            packed = struct.pack("IIPPQ", self.major, 0, 0, deleter, self.flags) + tensor
        else:
            name, packed = b"dltensor", tensor + struct.pack("PP", 0, deleter)
        managed = ctypes.create_string_buffer(packed)
        self._alive += managed, delete, shape, strides
        self.created += 1
        return new_capsule(ctypes.addressof(managed), name, None)

    def _delete(self, _: object) -> None:
        self.deleted += 1


READ_ONLY_FLAG, CUDA, COMPLEX, HANDLE = 1, 2, 5, 3


def test_a_capsule_is_deleted_once_after_the_step_or_with_the_optimizer() -> None:
    param, grad = Exporter(values(0)), Exporter(values(1))
    optimizer = schuss.SGD([param])
    for t in (1, 2, 3):
        optimizer.step([grad])
        assert (grad.created, grad.deleted) == (t, t)
    assert param.created - param.deleted == 1
    assert {*param.copy_arguments, *grad.copy_arguments} == {False}
    del optimizer
    gc.collect()
    assert param.created == param.deleted


@pytest.mark.parametrize("step", [1, 2, -1])
def test_a_capsule_has_the_strides_of_the_memory(step: int) -> None:
    seen, gradient = (values(seed, (6, 8))[:, ::step] for seed in (0, 1))
    expect_adam(Exporter(seen), Exporter(gradient), seen=seen, gradient=gradient)


def test_a_capsule_without_strides_is_in_c_order() -> None:
    seen, gradient = (values(seed, (6, 8)) for seed in (0, 1))
    param, grad = (Exporter(array, has_strides=False) for array in (seen, gradient))
    expect_adam(param, grad, seen=seen, gradient=gradient)


def test_a_capsule_that_is_read_only_is_a_gradient_and_no_parameter() -> None:
    for frozen in (Exporter(values(0), flags=READ_ONLY_FLAG), Exporter(values(0))):
        frozen.versioned = frozen.flags == READ_ONLY_FLAG  # an old capsule does not say
        param = values(1)
        expect_refused(ValueError, "is read-only", frozen, values(1), frozen.seen)
        expect_adam(param, frozen, seen=param, gradient=values(0))
        assert frozen.created == frozen.deleted


@pytest.mark.parametrize(
    "what", [{"device": CUDA}, {"code": COMPLEX}, {"code": BFLOAT}, {"code": HANDLE}, {"major": 2}]
)
def test_a_capsule_of_another_device_or_kind_is_refused(what: Any) -> None:
    other, plain = Exporter(values(0), **what), values(1)
    expect_refused(TypeError, "(does not export its memory|has dtype)", other, plain, other.seen)
    expect_refused(TypeError, "(does not export its memory|has dtype)", plain, other, plain)


class ByInterface:
    """Shows an array by `__array_interface__` alone."""

    def __init__(self, seen: Array) -> None:
        self.seen, self.__array_interface__ = seen, seen.__array_interface__


class ByArray:
    """Gives an array, which may be a copy, by `__array__` alone."""

    def __init__(self, seen: Array) -> None:
        self.seen = seen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.seen.copy()


@pytest.mark.parametrize("kind", [ByInterface, ByArray, "pandas", "polars"])
def test_what_may_be_a_copy_is_read_as_examples_and_neither_stepped_nor_written(kind: Any) -> None:
    make = pytest.importorskip(kind).Series if isinstance(kind, str) else kind
    shown = make(values(0))
    wrong = f"is a {type(shown).__name__}, expected"
    for param, grad in ((shown, values(1)), (values(1), shown)):
        with pytest.raises(TypeError, match=rf"(param|grad) {wrong} a NumPy array"):
            kernels.sgd(param, grad, lr=0.1)
        with pytest.raises(TypeError, match=rf"^SGD(\.step)?: (param|grad)s {wrong}"):
            schuss.SGD(param).step(grad)
    with pytest.raises(TypeError, match=rf"^ExponentialAverage.*values {wrong}"):
        schuss.ExponentialAverage(0.5).update(shown)
    with pytest.raises(TypeError, match=rf"^ewma: out {wrong}"):
        schuss.ewma(values(1), 0.5, out=shown)
    assert same_bits(shown.to_numpy() if isinstance(kind, str) else shown.seen, values(0))
    assert same_bits(schuss.ewma(shown, 0.5), schuss.ewma(values(0), 0.5))
    batches = schuss.minibatches(shown, shown, batch_size=5, shuffle=False)
    assert equal([batch for batch, _ in batches], np.split(values(0), [5, 10]))


def test_averages_are_written_to_arrays_of_numpy_alone() -> None:
    for kind in ("a tensor", "array.array", "ctypes"):
        out = show(kind, values(0))
        with pytest.raises(TypeError, match=r"^ewma: out is a \w+, expected a NumPy array$"):
            schuss.ewma(values(1), 0.5, out=out.object)
        assert same_bits(out.seen, values(0))
        schuss.ewma(values(1), 0.5, out=out.seen)
        assert same_bits(out.seen, schuss.ewma(values(1), 0.5))


def test_gradients_are_those_that_jax_returns() -> None:
    jax = pytest.importorskip("jax")
    params, x = {"w": values(0, 4), "b": np.zeros((), np.float32)}, values(1, (5, 4))

    def loss(p: Any) -> Any:
        return ((x @ p["w"] + p["b"]) ** 2).sum()

    grads = jax.grad(loss)(params)
    expected = {name: param.copy() for name, param in params.items()}
    for name, param in expected.items():
        reference.sgd(param, np.asarray(grads[name]), lr=0.01)
    schuss.SGD(params, lr=0.01).step(grads)
    assert equal([*params.values()], [*expected.values()])


IN_THE_CHILD = """
import numpy as np, schuss
seen = np.frombuffer(memory.buf, np.float32, 3000)
optimizer = schuss.Adam(seen[:1000], lr=0.1)
optimizer.step(seen[1000:2000])
seen[2000:] = optimizer.state["m"]
del seen, optimizer
memory.close()
"""


def test_a_step_in_one_process_is_seen_in_the_other() -> None:
    memory: Any = SharedMemory(create=True, size=12_000)
    try:
        seen = np.frombuffer(memory.buf, np.float32, 3000)
        param, grad, m_there = seen[:1000], seen[1000:2000], seen[2000:]
        param[...], grad[...] = values(0, 1000), values(1, 1000)
        expected, m, v = values(0, 1000), *np.zeros((2, 1000), np.float32)
        child = multiprocessing.get_context("spawn").Process(
            target=exec, args=(IN_THE_CHILD, {"memory": memory})
        )
        child.start()
        child.join(600)
        assert child.exitcode == 0
        reference.adam(expected, grad, m, v, step=1, lr=0.1)
        assert equal([param, m_there], [expected, m])
        schuss.SGD(param, lr=0.1).step(grad)
        reference.sgd(expected, grad, lr=0.1)
        assert same_bits(param, expected)
        del seen, param, grad, m_there
    finally:
        memory.close()
        memory.unlink()
