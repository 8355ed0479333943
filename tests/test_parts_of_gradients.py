"""What processes that share an optimizer compute from parts of gradients."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from schuss import _core
from support.arrays import LAYOUTS, Array, dtype_of, equal, laid_out, numbers, same_bits
from support.execution import execution
from support.optimizers import make_reference
from support.threads import in_threads

# Around vectors, pieces, and what several threads share.
LENGTHS = [0, 1, 17, 4095, 4097, 200_001]
HALVES = ["float16", "bfloat16"]
WIDE = ["float32", "float64"]


@pytest.fixture(autouse=True, params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Any:
    with execution(threads=request.param, threshold=0):
        yield


# Conversions.


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("half", "wide"), [*product(HALVES, WIDE)])
def test_every_number_of_16_bits_is_widened_exactly(half: str, wide: str) -> None:
    values = np.arange(1 << 16).astype(np.uint16).view(dtype_of(half))
    out = np.empty(len(values), wide)
    _core.convert(values, out)
    with np.errstate(all="ignore"):
        assert same_bits(out, values.astype(wide))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("source", "target"),
    [
        *product(["float32"], [*HALVES, *WIDE]),
        *(("float64", "float32"), ("float16", "float16")),
    ],
)
def test_numbers_are_rounded_to_nearest(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    random = np.frombuffer(rng.bytes(8 * 100_000), source)
    # Half way between two numbers of the target, subnormals, and what NumPy calls special.
    halves = np.arange(1 << 16).astype(np.uint16).view(dtype_of("bfloat16"))
    with np.errstate(all="ignore"):
        halves = halves.astype(source)
        values = np.concatenate([random, halves, halves * 1.00390625, halves * 1e-38 * 1e-3])
        expected = values.astype(dtype_of(target))
    out = np.empty(len(values), expected.dtype)
    _core.convert(values, out)
    assert same_bits(out, expected)


@pytest.mark.parametrize(
    ("source", "out", "error", "message"),
    [
        (np.zeros(3), np.zeros(3, np.float16), TypeError, "source has dtype float64 where out is"),
        (np.zeros(3, np.complex64), np.zeros(3), TypeError, "source has dtype complex64 where"),
        (np.zeros(3, int), np.zeros(3), TypeError, "source has dtype int64, expected float32"),
        (np.zeros(3), np.zeros(4), ValueError, "source has 3 elements, expected 4"),
        (np.zeros(6)[::2], np.zeros(3), ValueError, "source has several axes or gaps"),
        (np.zeros(3), np.zeros((3, 1)), ValueError, "out has several axes or gaps"),
        (np.zeros(3), np.broadcast_to(0.0, 3), ValueError, "out has several axes or gaps"),
    ],
)
def test_arrays_that_cannot_be_converted_are_refused(
    source: Array, out: Array, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"convert: {message}"):
        _core.convert(source, out)


def test_an_array_cannot_be_converted_to_its_own_memory() -> None:
    memory = np.zeros(8)
    with pytest.raises(ValueError, match=r"convert: .* shares memory with"):
        _core.convert(memory[:4], memory.view(np.float32)[:4])


# Sums.


def sum_in_order(arrays: Sequence[Array], out: Array, weights: Sequence[float] | None) -> Array:
    """Return what NumPy computes one array after another, where subnormals are zero."""
    one = out.real.dtype.type
    total: Any = None
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        for array, weight in zip(arrays, weights or [1.0] * len(arrays), strict=True):
            term = array.astype(out.dtype) * one(weight)
            total = term if total is None else total + term
    return np.asarray(total)


@pytest.mark.usefixtures("level", "memory")
@pytest.mark.parametrize("weights", [None, [0.3, 1.0, -2.0, 1e-3]])
@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("length", LENGTHS)
def test_sums_are_those_of_numpy_in_this_order(
    wide: str, length: int, weights: list[float] | None
) -> None:
    rng = np.random.default_rng(length)
    arrays = [numbers(rng, length, dtype_of(dtype)) for dtype in (wide, *HALVES, wide)]
    out = np.empty(length, wide)
    for count in range(1, 5):
        chosen = None if weights is None else weights[:count]
        _core.add(arrays[:count], out, chosen)
        assert same_bits(out, sum_in_order(arrays[:count], out, chosen))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("dtype", [*WIDE, "complex64"])
def test_the_sum_may_be_written_over_one_of_the_arrays(dtype: str, place: int) -> None:
    rng = np.random.default_rng(place)
    arrays = [numbers(rng, 200_001, dtype, special=False) for _ in range(3)]
    weights = [0.5, 3.0, 0.1]
    expected = sum_in_order(arrays, arrays[0], weights)
    _core.add(arrays, arrays[place], weights)
    assert same_bits(arrays[place], expected)


@pytest.mark.parametrize("half", HALVES)
def test_the_sum_has_the_bits_of_accumulated_gradients(half: str) -> None:
    rng = np.random.default_rng(9)
    grads = [numbers(rng, 5000, dtype_of(half)) for _ in range(4)]
    weights = [0.25, 1.0, 1e-42, 3e38]
    reference = make_reference("SGD", np.zeros(5000, np.float32), lr=1.0)
    out = np.empty(5000, np.float32)
    for grad, weight in zip(grads, weights, strict=True):
        reference.accumulate(grad, scale=weight)
    _core.add(grads, out, weights)
    reference.step()
    assert same_bits(-out + np.float32(0), reference.params)


def test_one_sum_in_several_threads_of_python_at_once() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(100_000) for _ in range(3)]
    outs = [np.empty(100_000) for _ in range(4)]

    def work(i: int) -> None:
        for _ in range(5):
            _core.add(arrays, outs[i])

    in_threads(4, work)
    assert equal(outs, [arrays[0] + arrays[1] + arrays[2]] * 4)


@pytest.mark.parametrize(
    ("arrays", "out", "weights", "error", "message"),
    [
        ([], np.zeros(3), None, ValueError, "arrays is empty, expected at least one array"),
        ([np.zeros(3)], np.zeros(4), None, ValueError, r"arrays\[0\] has 3 elements, expected 4"),
        ([np.zeros(3)], np.zeros(3), [1, 2], ValueError, "weights has 2 numbers, expected 1"),
        ([np.zeros(3)], np.zeros(3), [np.inf], ValueError, "weights has inf, expected finite"),
        ([np.zeros(3)], np.zeros(3, "f2"), None, TypeError, "out has dtype float16, expected"),
        ([np.zeros(3)], np.zeros(3, "f4"), None, TypeError, r"arrays\[0\] has dtype float64 where"),
        ([np.zeros(3, "f2")], np.zeros(3, "c8"), None, TypeError, r"arrays\[0\] has dtype float16"),
    ],
)
def test_arrays_that_cannot_be_added_are_refused(
    arrays: Any, out: Array, weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"add: {message}"):
        _core.add(arrays, out, weights)


def test_a_sum_cannot_overlap_an_array_in_part() -> None:
    memory = np.ones(10)
    with pytest.raises(ValueError, match=r"add: .* shares memory with"):
        _core.add([memory[:9], memory[1:]], memory[1:])
    assert (memory == 1).all()


# Sums of squares.

MIXED = [(9000, "float32"), (3, "float64"), (0, "float32"), (70_000, "float16")]
MIXED += [(2048, "complex64"), (100_000, "bfloat16"), (1, "float32")]


def squares(blocks: Array) -> Array:
    """Return the sum of squares of each row, in the order of lanes that design and tests share."""
    lanes = np.zeros((len(blocks), 16))
    for column in range(0, 4096, 16):
        lanes = lanes + blocks[:, column : column + 16] ** 2
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("power", [0, 300, -300])
def test_square_sums_are_of_blocks_of_all_elements(power: int) -> None:
    rng = np.random.default_rng(2)
    arrays = [numbers(rng, n, dtype_of(dtype), special=False) for n, dtype in MIXED]
    arrays[0][5] = np.float32(1e-40)  # counts as zero
    sums, first = _core.square_sums(arrays, power)
    parts = [a.view(a.real.dtype) if a.dtype.kind == "c" else a for a in arrays]
    flat = np.concatenate([part.astype(np.float64) for part in parts])
    flat[5] = 0.0
    padded = np.ldexp(np.append(flat, np.zeros(-len(flat) % 4096)), power).reshape(-1, 4096)
    assert first == -1
    assert np.array_equal(sums, squares(padded))


def norm_of(sums: Array) -> float:
    while len(sums) > 1:
        sums = np.append(sums, 0.0) if len(sums) % 2 else sums
        sums = sums[::2] + sums[1::2]
    return float(np.sqrt(sums.sum()))


def test_the_sums_of_parts_give_the_norm_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    arrays = [numbers(rng, n, "float32", special=False) for n in (9000, 3, 70_000, 1)]
    reference = make_reference("SGD", [np.zeros_like(a) for a in arrays], clip_norm=1.0)
    reference.step(arrays)
    assert reference.last is not None
    flat = np.concatenate(arrays)
    for cuts in ([], [4096], [8192, 8192, 40_960], [*range(4096, len(flat), 4096)]):
        parts = [_core.square_sums([part])[0] for part in np.split(flat, cuts)]
        assert norm_of(np.concatenate(parts)) == reference.last.grad_norm
    assert norm_of(_core.square_sums(arrays)[0]) == reference.last.grad_norm


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex128"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_the_first_array_that_is_not_finite_is_found(dtype: str, special: float) -> None:
    arrays = [np.ones(n, dtype_of(dtype)) for n in (5, 0, 9000, 1)]
    assert _core.square_sums(arrays)[1] == -1
    for i, place in ((3, 0), (2, 8999), (2, 4000), (0, 1)):
        arrays[i][place] = special
        assert _core.square_sums(arrays)[1] == i


def test_finite_numbers_whose_squares_overflow_are_finite() -> None:
    assert _core.square_sums([np.full(5000, 1e200)])[1] == -1
    assert _core.square_sums([])[1] == -1


# Elements in the order of a parameter's memory.

SHAPES = [(), (0, 3), (5,), (1, 4, 1), (3, 5, 2), (70, 33), (300, 501)]
# By the size of a number in bytes, and of a component.
DTYPES = [np.int8, np.float16, np.float32, np.float64, np.complex64, np.complex128]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def laid(values: Array, layout: str) -> Array:
    """Return a copy in a memory layout; numbers without axes have but one."""
    return laid_out(values, layout if values.ndim else "c")


def in_order_of(param: Array, array: Array) -> Array:
    """Return the elements of an array in the order of a parameter's memory."""
    signs: Any = tuple(slice(None, None, -1 if n < 0 else 1) for n in param.strides)
    axes = sorted(range(param.ndim), key=lambda i: -abs(param.strides[i]))
    return np.ravel(array[signs].transpose(axes))


@every_layout
@pytest.mark.parametrize("of_param", ["c", "fortran", "rolled axes", "half reversed"])
def test_elements_are_gathered_and_scattered_in_the_order_of_memory(
    of_param: str, layout: str
) -> None:
    rng = np.random.default_rng(4)
    for shape, dtype in product(SHAPES, DTYPES):
        values: Array = rng.integers(-100, 100, shape).astype(dtype)
        param = laid(np.zeros(shape, np.float32), of_param)
        array, target = laid(values, layout), laid(np.zeros_like(values), layout)
        order, expected = _core.MemoryOrder(param), in_order_of(param, values)
        for begin, end in ((0, values.size), (values.size // 3, values.size - values.size // 4)):
            out: Array = np.empty(end - begin, dtype)
            order.gather(array, begin, out)
            assert np.array_equal(out, expected[begin:end])
            target[...] = 0
            order.scatter(out, begin, target)
            scattered = in_order_of(param, target)
            assert np.array_equal(scattered[begin:end], out)
            assert not scattered[:begin].any()
            assert not scattered[end:].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["c", "fortran", "rolled axes", "reversed"])
def test_a_dense_array_is_seen_in_order_without_a_copy(shape: tuple[int, ...], layout: str) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    param, array = laid(values.astype(np.float32), layout), laid(values, layout)
    flat = _core.MemoryOrder(param).flat(array)
    assert flat is not None
    assert np.array_equal(flat, in_order_of(param, values))
    flat[...] = 7
    assert (array == 7).all()
    array.setflags(write=False)
    frozen = _core.MemoryOrder(param).flat(array)
    assert frozen is not None
    assert not frozen.flags.writeable


@pytest.mark.parametrize("layout", ["fortran", "sliced", "unaligned", "half reversed", "reversed"])
def test_other_arrays_have_no_such_view(layout: str) -> None:
    values = np.zeros((4, 6, 5))
    assert _core.MemoryOrder(values).flat(laid_out(values, layout)) is None


def _refused(call: Callable[[_core.MemoryOrder], Any], error: type[Exception], match: str) -> Any:
    return pytest.param(call, error, match, id=match)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        _refused(lambda o: o.flat(np.zeros(6)), ValueError, "flat: array has another shape"),
        _refused(
            lambda o: o.flat(np.zeros((2, 3), "S3")), TypeError, "flat: array has items of 3 bytes"
        ),
        _refused(
            lambda o: o.gather(np.zeros((2, 3)), 4, np.zeros(3)), ValueError, "gather: out ends"
        ),
        _refused(
            lambda o: o.gather(np.zeros((2, 3)), 0, np.zeros(3, "f4")),
            TypeError,
            "gather: out has another dtype",
        ),
        _refused(
            lambda o: o.scatter(np.zeros(3), 0, np.broadcast_to(0.0, (2, 3))),
            ValueError,
            "scatter: array is read-only",
        ),
    ],
)
def test_what_cannot_be_brought_in_order_is_refused(
    call: Callable[[_core.MemoryOrder], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"MemoryOrder.{message}"):
        call(_core.MemoryOrder(np.zeros((2, 3))))


# Gradients that are checked before they are sent.


def test_gradients_are_read_as_they_are() -> None:
    params: dict[str, Any] = {
        "w": np.zeros((2, 3), np.float32),
        "b": np.zeros(()),
        "c": np.zeros(4),
    }
    core = _core.Optimizer("Adam", params)
    w = np.asfortranarray(np.ones((2, 3), np.float16))
    read = core.read({"w": w, "b": 2.5, "c": None}, "Sharded.step")
    assert read[2] is None
    assert read[0] is not None
    assert np.shares_memory(read[0], w)
    assert (read[0].dtype, read[0].strides) == (w.dtype, w.strides)
    assert read[1] is not None
    assert read[1].dtype == np.float64
    assert read[1] == 2.5
    with pytest.raises(ValueError, match=r"Sharded.step: grads\['c'\] has shape \(3,\), expected"):
        core.read({"w": w, "b": 1.0, "c": np.zeros(3)}, "Sharded.step")
    with pytest.raises(ValueError, match=r"Sharded.step: grads\['c'\] shares memory with"):
        core.read({"w": w, "b": 1.0, "c": params["c"]}, "Sharded.step")
    with pytest.raises(ValueError, match=r"Sharded.step: there are no gradients"):
        core.read(None, "Sharded.step")


def test_accumulated_gradients_are_read_and_stay() -> None:
    params = [np.zeros(4), np.zeros(3)]
    core = _core.Optimizer("Adam", params)
    for _ in range(2):
        core.accumulate([np.ones(4), None], 1.0, False, lambda: [np.zeros(4), np.zeros(3)])
    with pytest.raises(ValueError, match="are given while others are accumulated"):
        core.read([np.ones(4), np.ones(3)], "Sharded.step")
    for _ in range(2):
        first, second = core.read(None, "Sharded.step")
        assert first is not None
        assert first.tolist() == [2.0] * 4
        assert second is None
    assert core.accumulated == 2


def test_the_first_places_must_be_one_for_each_parameter() -> None:
    with pytest.raises(ValueError, match="Adam: first has 1 numbers, expected one for each"):
        _core.Optimizer("Adam", [np.zeros(2), np.zeros(2)], first=[0])
