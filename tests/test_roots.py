"""Square roots are rounded to nearest, by the processor's divider and by multiplications."""

from collections.abc import Iterator
from math import inf, nan
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import schuss
from schuss import _core
from support.arrays import same_bits
from support.execution import execution


@pytest.fixture(params=[False, True], ids=["divider", "multiplications"])
def root(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute roots in both ways at the best level of this processor."""
    if schuss.available_simd()[-1] != "avx512":
        pytest.skip("only the level avx512 has both ways")
    with execution(level="avx512"):
        before = _core.multiply_for_roots(request.param)
        yield
        _core.multiply_for_roots(before)


def roots_of(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the roots from a step of Adadelta, ``p = 0 - sqrt((x + 0)/(1*1 + 0))*1``."""
    p, g, s, u = np.zeros_like(x), np.ones_like(x), np.zeros_like(x), x.copy()
    schuss.kernels.adadelta(p, g, s, u, lr=1.0, rho=0.0, eps=0.0)
    return 0 - p


def check(x: npt.NDArray[Any]) -> None:
    with _core.subnormals_are_zero(), np.errstate(invalid="ignore"):
        expected = 0 + np.sqrt(x)
    assert same_bits(roots_of(x), expected)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_roots_of_every_exponent_and_of_special_numbers(dtype: type[np.floating[Any]]) -> None:
    info, rng = np.finfo(dtype), np.random.default_rng(7)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp, dtype=np.int32)
    digits = rng.uniform(1, 2, (100, exponents.size)).astype(dtype)
    check(np.ldexp(digits, exponents).astype(dtype).ravel())
    special = [0, -0.0, inf, -inf, nan, -1, info.tiny, info.max, info.smallest_subnormal, 1, 4]
    check(np.array(special, dtype))


@pytest.mark.slow
@pytest.mark.usefixtures("root")
def test_roots_of_every_float32() -> None:
    step = 1 << 22
    for first in range(0, 1 << 31, step):
        check(np.arange(first, first + step, dtype=np.uint32).view(np.float32))


def odd_roots(square: int, bits: int) -> Iterator[int]:
    """Solve ``n*n % 2**bits == square``, which is 1 modulo 8: bit by bit."""
    n = 1
    for bit in range(3, bits):
        n += ((n * n - square) >> bit & 1) << (bit - 1)
    for half in (0, 1 << (bits - 1)):
        for each in (n, -n):
            yield (each + half) % (1 << bits)


@pytest.mark.usefixtures("root")
def test_roots_next_to_the_middle_of_two_float64() -> None:
    # n has 54 bits, so it is the middle of two float64: the root of n*n - error is next to it.
    numbers, roots = [], []
    for bits in 54, 55:
        for error in range(-3999, 4000, 8):
            for n in odd_roots(error % (1 << bits), bits):
                x = n * n - error
                if n >> 53 == 1 and (x >> bits).bit_length() == 53:
                    numbers.append(float(x))
                    roots.append(float(n - 1 if error > 0 else n + 1))
    assert len(numbers) > 1000
    for exponent in -510, -450, 0, 200, 400:
        scaled = np.ldexp(numbers, 2 * exponent)
        expected = np.ldexp(roots, exponent)
        assert same_bits(roots_of(scaled), expected)
