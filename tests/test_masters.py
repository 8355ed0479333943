"""Parameters in bfloat16 that are rounded at random, or whose missing bits are kept as a master."""

import numpy as np
import pytest

from schuss.reference import random_stream
from schuss.reference._masters import MASTERS, join, split
from support.arrays import Array, dtype_of, same_bits

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = dtype_of("bfloat16")
FLOAT32, FLOAT24 = MASTERS["float32"], MASTERS["float24"]


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
