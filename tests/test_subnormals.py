"""Subnormal numbers are zero while a step runs, and what they were before and after it."""

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import schuss
from schuss import _core, kernels, reference

TINY = np.finfo(np.float32).tiny
SUBNORMAL = np.float32(TINY / 4)
TO_NEAREST, UPWARD = 0x0, 0x800  # of <fenv.h> on x86-64 (the bits of MXCSR are 4 times these)


def subnormals_count() -> bool:
    """Whether this thread's arithmetic knows subnormal numbers, as operands and as results."""
    halves = np.full(3, TINY, np.float32) * np.float32(0.5)
    doubles = np.full(3, SUBNORMAL, np.float32) * np.float32(2)
    assert bool(halves.all()) == bool(doubles.all())
    return bool(halves.all())


def step(grad: object = None) -> None:
    w = np.full(100, 1.0, np.float32)
    schuss.Adam(w).step(np.full(100, SUBNORMAL, np.float32) if grad is None else grad)  # type: ignore[arg-type]


def test_the_callers_mode_survives_a_step_and_an_error() -> None:
    assert subnormals_count()
    step()
    assert subnormals_count()
    with pytest.raises(ValueError, match="shape"):
        step(np.ones(3, np.float32))
    assert subnormals_count()


def test_a_caller_without_subnormals_stays_without() -> None:
    with _core.subnormals_are_zero():
        assert not subnormals_count()
        step()
        assert not subnormals_count()
    assert subnormals_count()


def test_the_reference_leaves_the_mode_as_it_was_even_when_it_fails() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        reference.sgd(np.ones(2), np.ones(3), lr=0.1)
    assert subnormals_count()


@pytest.fixture
def rounding_upward() -> Iterator[ctypes.CDLL]:
    library = ctypes.util.find_library("m")
    if sys.platform != "linux" or schuss.show_config("dicts")["machine"] != "x86_64":
        pytest.skip("knows the rounding modes of x86-64 Linux alone")
    fenv = ctypes.CDLL(library)
    fenv.fesetround(UPWARD)
    yield fenv
    fenv.fesetround(TO_NEAREST)


def test_a_caller_that_rounds_upward_gets_the_same_bits_and_keeps_its_mode(
    rounding_upward: ctypes.CDLL,
) -> None:
    g = np.linspace(-1, 1, 999, dtype=np.float32)
    w, v = np.ones_like(g), np.zeros_like(g)
    kernels.momentum(w, g, v, lr=0.1)
    assert rounding_upward.fegetround() == UPWARD
    rounding_upward.fesetround(TO_NEAREST)
    expected, velocity = np.ones_like(g), np.zeros_like(g)
    reference.momentum(expected, g, velocity, lr=0.1)
    assert (w == expected).all()
    assert (v == velocity).all()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("velocity", [SUBNORMAL, TINY], ids=["operand", "result"])
def test_subnormal_operands_and_results_are_zero(velocity: np.float32, size: int) -> None:
    w, v = np.zeros(size, np.float32), np.full(size, velocity, np.float32)
    kernels.momentum(w, np.zeros_like(w), v, lr=1.0, beta=0.5)
    assert not v.any()
    assert not w.any()


def test_a_moment_without_gradients_decays_to_zero_and_stays_there() -> None:
    w = np.zeros(10, np.float32)
    opt = schuss.Adam(w)
    opt.step(np.full(10, 1e-3, np.float32))
    for _ in range(1000):
        opt.step(np.zeros(10, np.float32))
    assert (opt.state["m"] == 0).all()
