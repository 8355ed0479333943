"""The 8-bit code of state: its values, its rounding, its random bits."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from schuss.reference import decode, encode, random_stream
from support.arrays import Array, same_bits

BLOCK, LARGEST = 128, {False: 127, True: 255}

with_and_without_sign = pytest.mark.parametrize("nonnegative", [False, True])


def blocks_of_one_value(value: float, blocks: int = 1024) -> Array:
    """Return blocks whose first element is 1, and whose others are the value."""
    values = np.full((blocks, BLOCK), value, np.float32)
    values[:, 0] = 1
    return values.ravel()


def some_values(rng: np.random.Generator, count: int, *, nonnegative: bool) -> Array:
    """Return values over many orders of magnitude, with zeros and blocks of zeros."""
    values = rng.standard_normal(count) * np.exp(4 * rng.standard_normal(count))
    values *= 10.0 ** rng.integers(-25, 25, -(-count // BLOCK)).repeat(BLOCK)[:count]
    values[rng.random(count) < 0.05] = 0
    values[-200:-BLOCK] = values[BLOCK : 2 * BLOCK] = 0
    return (abs(values) if nonnegative else values).astype(np.float32)


def in_exact_arithmetic(blocks: Array) -> npt.NDArray[np.float64]:
    codes = blocks["codes"].astype(np.float64)
    largest = np.iinfo(blocks["codes"].dtype).max
    scales: Array = blocks["scale"][:, None].astype(np.float64)
    return (np.sign(codes) * codes**2 * scales / largest**2).ravel()


# Values.


def test_codes_are_roots_of_the_share_of_the_largest_element() -> None:
    # 127*sqrt(0.15) = 49.19; 127/4 = 31.75; 255*sqrt(0.15) = 98.76; 255/4 = 63.75.
    signed = encode(np.array([2, -0.3, -0.125, 1e-9, 0], np.float32), nonnegative=False)
    assert signed["codes"][0, :6].tolist() == [127, -49, -32, 0, 0, 0]
    positive = encode(np.array([2, 0.3, 0.125, 1e-9, 0], np.float32), nonnegative=True)
    assert positive["codes"][0, :6].tolist() == [255, 99, 64, 1, 0, 0]
    assert signed["scale"] == positive["scale"] == 2
    expected = np.array([127**2, -(49**2), -(32**2), 0, 0]) * (2 / 127**2)
    np.testing.assert_allclose(decode(signed, 5), expected, rtol=2e-6)


@with_and_without_sign
@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 50_000])
def test_a_block_has_its_scale_and_132_bytes(nonnegative: bool, count: int) -> None:
    values = some_values(np.random.default_rng(0), max(count, 300), nonnegative=nonnegative)[:count]
    for stream in (None, 0):
        blocks = encode(values, nonnegative, stream)
        assert blocks.shape == (-(-count // BLOCK),)
        assert blocks.itemsize == 4 + BLOCK
        starts = range(0, count, BLOCK)
        largest = [abs(values[i : i + BLOCK]).max() for i in starts]
        np.testing.assert_allclose(blocks["scale"], largest, rtol=0 if stream == 0 else 0.02)
        assert not blocks["codes"].reshape(-1)[count:].any()
        np.testing.assert_allclose(
            decode(blocks, count), in_exact_arithmetic(blocks)[:count], rtol=2e-6
        )


@with_and_without_sign
def test_blocks_of_every_exponent_have_the_same_codes(nonnegative: bool) -> None:
    values = some_values(np.random.default_rng(1), BLOCK, nonnegative=nonnegative)
    values = (values / abs(values).max()).astype(np.float32)
    values[abs(values) < 2.0**-20] = 0
    codes: dict[int | None, Array] = {}
    for exponent in range(-100, 128):
        scaled = np.ldexp(values, exponent - (exponent == 127))
        for stream in (None, 7):
            blocks = encode(scaled, nonnegative, stream)
            decoded = np.ldexp(decode(blocks, BLOCK), -exponent + (exponent == 127))
            assert np.array_equal(blocks["codes"], codes.setdefault(stream, blocks["codes"]))
            np.testing.assert_allclose(decoded, values, rtol=0, atol=2 / LARGEST[nonnegative])


@with_and_without_sign
def test_subnormals_are_zero(nonnegative: bool) -> None:
    tiny = np.finfo(np.float32).tiny
    values = np.array([tiny, tiny / 2, tiny / 4, 0], np.float32)
    for stream in (None, 0):
        assert encode(values, nonnegative, stream)["codes"][0, 1:4].tolist() == [0, 0, 0]
        blocks = encode(values[1:], nonnegative, stream)
        assert blocks["scale"] == 0
        assert not blocks["codes"].any()
    smallest = np.zeros(1, blocks.dtype)
    smallest["scale"], smallest["codes"] = tiny, 1
    assert not decode(smallest, BLOCK).any()


@with_and_without_sign
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_block_with_a_nan_or_an_infinity_is_nan(nonnegative: bool, value: float) -> None:
    values = np.ones(3 * BLOCK, np.float32)
    values[200] = value
    for stream in (None, 0):
        blocks = encode(values, nonnegative, stream)
        decoded = decode(blocks, values.size).reshape(3, BLOCK)
        assert np.isnan(decoded[1]).all()
        np.testing.assert_allclose(decoded[[0, 2]], 1, rtol=2e-6)
        assert blocks["scale"].view(np.uint32)[1] == 0x7FC00000
        assert not blocks["codes"][1].any()


@with_and_without_sign
def test_the_largest_number_stays_finite(nonnegative: bool) -> None:
    largest = np.finfo(np.float32).max
    values = np.full(BLOCK, largest)
    for stream in (None, *range(20)):
        decoded = decode(encode(values, nonnegative, stream), BLOCK)
        assert np.isfinite(decoded).all()
        np.testing.assert_allclose(decoded, largest, rtol=0.02)


# Rounding.


@with_and_without_sign
@pytest.mark.parametrize("share", [1e-4, 0.0123, 0.25, 0.4567, 0.987])
def test_the_values_of_codes_at_random_are_the_elements_on_average(
    nonnegative: bool, share: float
) -> None:
    values = blocks_of_one_value(share)
    codes = encode(values, nonnegative, stream=random_stream(0, 1, 0))["codes"][:, 1:].ravel()
    x = LARGEST[nonnegative] ** 2 * share
    below = np.floor(np.sqrt(x))
    above = (x - below**2) / (2 * below + 1)  # the probability of the code above
    if nonnegative and below == 0:
        assert set(codes) == {1}  # with any probability
        return
    assert set(codes) == {below, below + 1}
    deviation = np.sqrt(above * (1 - above) / codes.size)
    assert abs((codes > below).mean() - above) < 5 * deviation


def test_the_mean_of_many_roundings_has_the_signs_and_sizes_of_the_elements() -> None:
    values = np.random.default_rng(0).standard_normal(4 * BLOCK).astype(np.float32)
    draws = np.stack(
        [
            decode(encode(values, False, stream=random_stream(3, t, 0)), values.size)
            for t in range(4000)
        ]
    ).astype(np.float64)
    errors = draws.mean(axis=0) - values
    assert (abs(errors) <= 5 * draws.std(axis=0) / np.sqrt(len(draws)) + 1e-5).all()


def test_a_nonnegative_element_above_0_never_becomes_0() -> None:
    for share in (0.0, 1e-30, 1e-12, 1e-6, 0.5 / 255**2):
        for stream in (None, random_stream(0, 1, 1)):
            decoded = decode(encode(blocks_of_one_value(share, 64), True, stream), 64 * BLOCK)
            others = np.delete(decoded.reshape(64, BLOCK), 0, axis=1)
            assert ((others > 0) == (share > 0)).all()


@with_and_without_sign
def test_zeros_are_not_moved_at_random(nonnegative: bool) -> None:
    values = blocks_of_one_value(0)
    for t in range(20):
        blocks = encode(values, nonnegative, stream=random_stream(0, t, 0))
        assert not blocks["codes"][:, 1:].any()


@with_and_without_sign
def test_the_largest_elements_are_themselves_on_average(nonnegative: bool) -> None:
    """No code is beyond the largest, and the one below it is rare."""
    largest = LARGEST[nonnegative]
    values = np.linspace(1, 2, 1 << 18, dtype=np.float32).repeat(BLOCK)[: 1 << 20]
    codes = encode(values, nonnegative, stream=random_stream(0, 1, 0))["codes"]
    assert set(np.unique(codes)) == {largest - 1, largest}
    assert (codes < largest).mean() < 2e-4
    mean = decode(encode(values, nonnegative, stream=random_stream(0, 1, 0)), values.size)
    np.testing.assert_allclose(mean.mean(dtype=float), values.mean(dtype=float), rtol=1e-6)


# What was decoded.


@with_and_without_sign
def test_decoded_values_are_encoded_exactly(nonnegative: bool) -> None:
    rng = np.random.default_rng(4)
    for count in (1, 100, BLOCK, 300_001):
        values = some_values(rng, max(count, 300), nonnegative=nonnegative)[:count]
        blocks = encode(values, nonnegative, stream=random_stream(0, 1, 0))
        # At random, the largest element sometimes has the code below the largest.
        rows = blocks["codes"][::2]
        rows[abs(rows.astype(int)) == LARGEST[nonnegative]] = LARGEST[nonnegative] - 1
        blocks["codes"][::2] = rows
        blocks["scale"][5:6] = np.nan
        decoded = decode(blocks, count)
        assert same_bits(decode(encode(decoded, nonnegative), count), decoded)


@with_and_without_sign
def test_the_scale_is_found_again_for_every_mantissa(nonnegative: bool) -> None:
    mantissas = np.arange(0, 1 << 23, 997, dtype=np.uint32)
    for exponent in (127, 63, 64, 3, 200):
        dtype = encode(np.zeros(1, np.float32), nonnegative).dtype
        blocks = np.zeros(len(mantissas), dtype)
        blocks["scale"] = (mantissas | exponent << 23).view(np.float32)
        for largest in (LARGEST[nonnegative], LARGEST[nonnegative] - 1):
            blocks["codes"][:, :3] = largest, 11, 77
            decoded = decode(blocks, blocks.size * BLOCK)
            assert same_bits(decode(encode(decoded, nonnegative), decoded.size), decoded)


def test_what_is_not_blocks_of_these_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="decode: got 1 blocks, expected 2 for n=129"):
        decode(encode(np.zeros(BLOCK, np.float32), nonnegative=True), 129)
    for values, was in (
        (np.zeros(3), "float64 in shape (3,)"),
        (np.zeros((3, 1), np.float32), "float32 in shape (3, 1)"),
    ):
        with pytest.raises(ValueError, match="expected float32 in one axis") as error:
            encode(values, nonnegative=True)  # type: ignore[arg-type]
        assert f"encode: values are {was}" in str(error.value)


# Random bits.


@with_and_without_sign
def test_codes_do_not_depend_on_how_the_elements_are_cut(nonnegative: bool) -> None:
    values = some_values(np.random.default_rng(5), (1 << 20) + 300, nonnegative=nonnegative)
    for first in (0, 5, (1 << 32) - 3 * BLOCK - 1):
        whole = encode(values, nonnegative, 9, first)
        cuts = [0, 2 * BLOCK, 4 * BLOCK, 100 * BLOCK, values.size]
        parts = [encode(values[a:b], nonnegative, 9, first + a) for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(parts), whole)


def rounded_up(stream: int, *, nonnegative: bool = False, is_second: bool = False) -> Array:
    """Return 1 for elements that were rounded up, and -1 for the others, each with chance 1/2."""
    code, count = 40, 1 << 17
    half = (code**2 + code + 0.5) / LARGEST[nonnegative] ** 2
    values = blocks_of_one_value(half, count // BLOCK)
    codes = encode(values, nonnegative, stream, is_second=is_second)["codes"]
    ups = np.where(codes > code, 1.0, -1.0)
    ups[:, 0] = np.random.default_rng(stream).choice([-1.0, 1.0], len(ups))  # the largest ones
    return ups.ravel()


@pytest.mark.parametrize("is_second", [False, True])
def test_random_bits_near_each_other_are_not_correlated(is_second: bool) -> None:
    first = [rounded_up(random_stream(0, t, 0), is_second=is_second) for t in range(1, 9)]
    draws = np.stack(first)
    count = draws.shape[1]
    for lag in (*range(1, 70), BLOCK, 2 * BLOCK, 1024, 4096):
        correlation = (draws[:, :-lag] * draws[:, lag:]).mean(axis=1)
        assert abs(correlation).max() < 6 / np.sqrt(count - lag), lag


def test_random_bits_of_other_steps_states_and_seeds_are_not_correlated() -> None:
    draws = np.stack(
        [
            *(rounded_up(random_stream(0, t, 0)) for t in range(1, 9)),
            *(rounded_up(random_stream(0, t, 0), is_second=True) for t in (1, 2)),
            rounded_up(random_stream(0, 1, 2), nonnegative=True),
            rounded_up(random_stream(1, 1, 0)),
        ]
    )
    between = draws @ draws.T / draws.shape[1] - np.eye(len(draws))
    assert abs(between).max() < 6 / np.sqrt(draws.shape[1])
