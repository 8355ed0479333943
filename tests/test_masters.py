"""Parameters in bfloat16 that are rounded at random, or whose missing bits are kept as a master."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.reference import random_stream
from schuss.reference._masters import MASTERS, join, split
from support.arrays import LAYOUTS, Array, dtype_of, equal, laid_out, numbers, same_bits
from support.execution import execution
from support.optimizers import (
    assert_same,
    assert_same_outcome,
    every_variant,
    make_optimizer,
    make_reference,
)

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = dtype_of("bfloat16")
FLOAT32, FLOAT24 = MASTERS["float32"], MASTERS["float24"]
SHAPES = [(), (0, 3), (300,), (70, 33), (4097,)]


def every_kind_of_float32() -> Array:
    """Return floats with all upper 16 bits, near the ties of bfloat16, and random ones."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0xFF, 0x100, 0x80FF, 0x7F01], np.uint32)
    more = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    return np.concatenate([(high[:, None] | low).ravel(), more]).view(np.float32)


def to_nearest(values: Array) -> Array:
    with np.errstate(all="ignore"):
        return values.astype(BFLOAT16)


# The bits.


def test_a_parameter_and_its_master_are_every_float32() -> None:
    values = every_kind_of_float32()
    high, low = split(values, FLOAT32, stream=0)
    assert (high.dtype, low.dtype) == (BFLOAT16, FLOAT32)
    assert same_bits(join(high, low), values)
    nearest = to_nearest(values)
    ties = (values.view(np.uint32) & 0xFFFF) == 0x8000  # away from 0
    assert same_bits(high[~ties], nearest[~ties])
    finite = values[ties & np.isfinite(values)]
    away = np.nextafter(finite, np.copysign(np.float32(np.inf), finite))
    assert same_bits(split(finite, FLOAT32, stream=0)[0], to_nearest(away))
    assert not low[~np.isfinite(values)].any()


@pytest.mark.parametrize("low", [FLOAT32, FLOAT24])
def test_a_parameter_that_was_set_to_zero_is_zero(low: np.dtype[np.signedinteger]) -> None:
    rest = np.arange(-128, 0, dtype=low)
    assert same_bits(join(np.zeros(128, BFLOAT16), rest), np.zeros(128, np.float32))
    assert same_bits(join(-np.zeros(128, BFLOAT16), rest), -np.zeros(128, np.float32))


def test_a_master_of_8_bits_makes_numbers_of_24_bits() -> None:
    values = every_kind_of_float32()
    high, low = split(values, FLOAT24, stream=1)
    assert (high.dtype, low.dtype) == (BFLOAT16, FLOAT24)
    joined = join(high, low)
    finite = np.isfinite(values)
    bits, before = (each[finite].view(np.uint32).astype(np.int64) for each in (joined, values))
    assert not (bits & 0xFF).any()
    assert (abs(bits - before) < 0x100).all()
    exact = (before & 0xFF) == 0
    assert exact.sum() > 100_000
    assert (bits[exact] == before[exact]).all()
    assert same_bits(joined[~finite], values[~finite])
    # The parameter is the nearest to what both are together.
    numbers = joined[finite & ((joined.view(np.uint32) & 0xFFFF) != 0x8000)]
    again, rest = split(numbers, FLOAT24, stream=2)
    assert same_bits(again, to_nearest(numbers))
    assert same_bits(join(again, rest), numbers)


@pytest.mark.parametrize("share", [0, 1 / 256, 0.25, 0.9])
@pytest.mark.parametrize("sign", [-1, 1])
def test_numbers_of_24_bits_are_rounded_by_their_distance(share: float, sign: int) -> None:
    unit = 2.0**-15  # of 24 bits, between 1 and 2
    values = np.full(100_000, sign * (1 + unit * (7 + share)), np.float32)
    joined = join(*split(values, FLOAT24, stream=random_stream(0, 1, 3))) * np.float32(sign)
    ups = joined > 1 + 7 * unit
    assert set(np.unique(joined)) <= {1 + 7 * unit, 1 + 8 * unit}
    assert abs(ups.mean() - share) <= 5 * np.sqrt(share * (1 - share) / ups.size)


def test_roundings_to_24_bits_depend_on_the_index_and_the_stream() -> None:
    values = np.full(1000, 1 + 2.0**-16, np.float32)

    def joined(stream: int, first: int, part: slice = slice(None)) -> Array:
        return join(*split(values[part], FLOAT24, stream, first))

    whole = joined(5, 70)
    parts = [joined(5, 70 + i, slice(i, i + 99)) for i in range(0, 1000, 99)]
    assert same_bits(np.concatenate(parts), whole)
    for stream, first in ((6, 70), (5, 71)):
        assert 0.4 < (joined(stream, first) == whole).mean() < 0.6


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 3, 4)])
def test_shapes_and_layouts_stay(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for given in (values, values.T):
        high, low = split(given, FLOAT32, stream=0)
        assert high.shape == low.shape == given.shape
        assert same_bits(join(high, low), given)
        assert same_bits(join(high.copy(order="F"), low), given)


# Training.

GROUPS: list[dict[str, Any]] = [{}, {"lr": 0.05, "bounds": (-0.5, 1.0)}, {"maximize": True}]


def group_of(name: str) -> dict[str, Any]:
    return GROUPS[int(name) % len(GROUPS)]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
@every_variant
def test_with_a_master_the_training_is_that_of_float32(
    name: str, options: Mapping[str, Any], state_dtype: str | None
) -> None:
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(BFLOAT16) for shape in SHAPES]
    exact = [param.astype(np.float32) for param in params]
    options = {"lr": 0.01, "average": 0.9, "clip_norm": 30.0, "track_norms": True, **options}
    options |= {"state_dtype": state_dtype, "nonfinite": "skip", "groups": group_of}
    optimizer = make_optimizer(name, params, master="float32", **options)
    expected = make_optimizer(name, exact, **options)
    for t in range(6):
        grads = [rng.standard_normal(shape).astype(BFLOAT16) for shape in SHAPES]
        if t == 2:
            grads[2][7] = np.inf
        for each in (optimizer, expected):
            if t < 3:
                each.step(grads, scale=0.5)
                continue
            each.accumulate(grads, scale=0.5)
            each.accumulate(grads)
            each.step()
        assert equal(optimizer.master, exact)
        assert equal(params, [split(values, FLOAT32, stream=0)[0] for values in exact])
        assert equal(optimizer.average, expected.average)
        assert optimizer.last == expected.last
        for each in expected.state:
            assert equal(optimizer.state[each], expected.state[each])
    assert optimizer.skipped == 1


ROUNDED: list[dict[str, Any]] = [
    {"master": "float32"},
    {"master": "float24"},
    {"round_params": "random"},
]
every_rounding = pytest.mark.parametrize(
    "rounding", ROUNDED, ids=lambda own: "-".join(own.values())
)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("of_grad", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
@every_rounding
@every_variant
def test_every_rounding_has_the_references_bits(
    name: str,
    options: Mapping[str, Any],
    rounding: Mapping[str, Any],
    state_dtype: str | None,
    of_grad: str,
) -> None:
    rng = np.random.default_rng(1)
    # Parameters in float32 may be among the others.
    dtypes = [BFLOAT16, BFLOAT16, BFLOAT16, dtype_of("float32"), BFLOAT16]
    params = [numbers(rng, *pair) for pair in zip(SHAPES, dtypes, strict=True)]
    options = {"average": 0.9, "clip_value": 0.7, "clear_grads": True, "seed": 3, **options}
    options |= {"state_dtype": state_dtype, "bounds": (-1.3, 0.7), "track_norms": True, **rounding}
    expected = make_reference(name, [param.copy() for param in params], **options)
    optimizer = make_optimizer(name, params, **options)
    for scale, lr in ((1.0, 0.1), (0.25, 0.1), (3e-42, 0.1), (1e39, 1e-39)):
        optimizer.lr = lr
        expected.set(lr=lr)
        grads = [numbers(rng, shape, dtype_of(of_grad)) for shape in SHAPES]
        expected.step([grad.copy() for grad in grads], scale=scale)
        optimizer.step(grads, scale=scale)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)


@pytest.mark.usefixtures("share_all", "memory")
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
@every_rounding
def test_every_rounding_has_the_references_bits_in_every_layout(
    rounding: Mapping[str, Any], of_param: str, of_grad: str
) -> None:
    rng = np.random.default_rng(2)
    for shape, state_dtype in (((7, 131), None), ((900, 5), "8bit"), ((3, 1, 40), "bfloat16")):
        param = laid_out(rng.standard_normal(shape).astype(BFLOAT16), of_param)
        grad = laid_out(rng.standard_normal(shape).astype(BFLOAT16), of_grad)
        options: dict[str, Any] = {"state_dtype": state_dtype, "average": 0.5, **rounding}
        # In the same layout, since the random bits depend on the index in memory.
        expected = make_reference("Adam", laid_out(param, of_param), lr=0.1, **options)
        optimizer = make_optimizer("Adam", param, lr=0.1, **options)
        for _ in range(2):
            grad[...] = rng.standard_normal(shape)
            optimizer.step(grad)
            expected.step(grad)
            assert_same(optimizer, expected)


@pytest.mark.parametrize("tile", [1, 128, 1000, 16384])
@pytest.mark.parametrize("threads", [1, 3])
@every_rounding
def test_large_arrays_have_the_references_bits_for_any_tiles(
    rounding: Mapping[str, Any], threads: int, tile: int
) -> None:
    rng = np.random.default_rng(3)
    values = [rng.standard_normal(shape).astype(BFLOAT16) for shape in ((300, 411), (70_001,))]
    params: list[Array] = [np.asfortranarray(values[0]), values[1]]
    expected = make_reference("Adam", [p.copy(order="K") for p in params], lr=0.1, **rounding)
    optimizer = make_optimizer("Adam", params, lr=0.1, **rounding)
    with execution(threads=threads, tile=tile, threshold=0):
        for _ in range(2):
            grads = [rng.standard_normal(param.shape).astype(np.float32) for param in params]
            optimizer.step(grads)
            expected.step(grads)
    assert_same(optimizer, expected)


@every_rounding
def test_changes_below_the_last_place_are_not_lost(rounding: Mapping[str, Any]) -> None:
    """Between 1 and 2 the unit of bfloat16 is 2**-7, and that of 24 bits 2**-15."""
    params, nearest = (np.full(20_000, 1.5, BFLOAT16) for _ in range(2))
    grads = np.ones(params.shape, np.float32)
    optimizer: Any = schuss.SGD(params, lr=2.0**-12, **rounding)
    for _ in range(1000):
        optimizer.step(grads)
        schuss.kernels.sgd(nearest, grads, lr=2.0**-12)
    assert (nearest == 1.5).all()
    values = params.astype(np.float64) if optimizer.master is None else optimizer.master
    # At random, each step adds a variance of at most a quarter of the squared unit.
    deviation = 2.0**-7 / 2 * np.sqrt(1000 / params.size)
    assert abs(values.mean(dtype=float) - (1.5 - 1000 * 2.0**-12)) < 5 * deviation


def test_averages_that_begin_later_begin_with_the_exact_values() -> None:
    params = np.ones(50, BFLOAT16)
    optimizer: Any = schuss.SGD(params, lr=2.0**-12, master="float32")
    optimizer.step(np.ones(50, np.float32))
    optimizer.average = 0.5
    assert (optimizer.average == 1 - 2.0**-12).all()
    optimizer.step(np.ones(50, np.float32))
    assert (optimizer.average == 1 - 2.0**-11).all()
