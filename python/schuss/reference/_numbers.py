"""Numbers that are rounded once: arrays of few bits, coefficients, and factors of any exponent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array, components, computed_dtype
from schuss._core import subnormals_are_zero
from schuss._hyperparameters import Bounds

Float = TypeVar("Float", np.float32, np.float64)


def widen(array: Array) -> Array:
    """Return the array in the dtype that a step computes in; itself if that is its own."""
    return array.astype(computed_dtype(array), copy=False)


def parts(arrays: Sequence[Array]) -> list[Array]:
    """Return the arrays of a step as real ones, for a rule that knows no complex numbers.

    Complex arrays become their real and imaginary parts along a last axis of 2. With a complex
    parameter, the first array, a real state gets a last axis of 1, and is broadcast.
    """
    is_complex = arrays[0].dtype.kind == "c"
    return [
        array[..., None] if is_complex and array.dtype.kind != "c" else components(array)
        for array in arrays
    ]


def square(values: npt.NDArray[Float], like: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the squares of real numbers; or of the moduli of complex ones, if `like` has those."""
    squares = values * values
    if squares.shape == like.shape:
        return squares
    return squares[..., :1] + squares[..., 1:]


def magnitude(values: npt.NDArray[Float], like: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the magnitudes of real numbers; or the moduli of complex ones, if `like` has those."""
    magnitudes: npt.NDArray[Float] = np.abs(values)
    return magnitudes if values.shape == like.shape else np.sqrt(square(values, like))


def widen_grad(grad: Array, param: npt.NDArray[Float]) -> Array:
    """Return a gradient in the dtype of a parameter that was widened, if that holds its values."""
    with subnormals_are_zero():
        return widen(grad).astype(param.dtype, copy=False)


def round_into(array: Array, values: Array) -> None:
    """Write the values to the array, rounded to nearest, unless they are the array itself."""
    if array is not values:
        with np.errstate(all="ignore"):
            array[...] = values.astype(array.dtype)


def floats(*values: float) -> list[float]:
    """Return the numbers as Python's: a NumPy scalar would compute in its own precision."""
    return [float(value) for value in values]


def cast(param: npt.NDArray[Float], *values: float) -> Any:
    """Return the numbers in the parameter's dtype.

    Outside the mode in which subnormals are zero, which would take some of them for zero.
    """
    with np.errstate(all="ignore"):
        return [param.dtype.type(float(value)) for value in values]


def scale_and_clip(
    p: npt.NDArray[Float], g: npt.NDArray[Float], scale: float, clip_value: float | None
) -> npt.NDArray[Float]:
    """Return the gradient as the rule sees it."""
    (limit,) = cast(p, math.inf if clip_value is None else clip_value)
    g = apply_scale(p, g, wide(scale))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        g = np.where(g > limit, limit, g)  # numpy.clip does not define the sign of zero
        return np.where(g < -limit, -limit, g)


def put_between(p: npt.NDArray[Float], bounds: Bounds | None) -> None:
    """Put the parameter between its bounds."""
    low, high = bounds or (None, None)
    if low is not None:  # numpy.clip does not define the sign of zero
        (low,) = cast(p, low)
        p[...] = np.where(p < low, low, p)
    if high is not None:
        (high,) = cast(p, high)
        p[...] = np.where(p > high, high, p)


def apply_scale(p: npt.NDArray[Float], g: npt.NDArray[Float], scale: "Wide") -> Any:
    """Return the gradient times a factor of any exponent."""
    power, rest = scale.factors(np.finfo(p.dtype))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        return g * power * power * rest


def rate_of(p: npt.NDArray[Float], rate: float) -> Any:
    """Return two factors whose product is the rate: the second is 1 unless that is subnormal."""
    info: np.finfo[Any] = np.finfo(p.dtype)
    (rounded,) = cast(p, rate)
    if rounded >= info.tiny or rate == 0:
        return rounded, p.dtype.type(1)
    return *cast(p, math.ldexp(rate, -int(info.minexp))), info.tiny


def wide(value: float, power: int = 0) -> "Wide":
    """Return ``value * 2**power``."""
    digits, exponent = math.frexp(value)
    return Wide(digits, exponent + power if math.isfinite(digits) else 0)


@dataclass(frozen=True)
class Wide:
    """A number with a float's digits, and any exponent: ``digits * 2**exponent``."""

    digits: float  # in [0.5, 1) by magnitude; or zero, infinite or NaN
    exponent: int

    def __mul__(self, other: "Wide") -> "Wide":
        return wide(self.digits * other.digits, self.exponent + other.exponent)

    def __truediv__(self, other: "Wide") -> "Wide":
        return wide(self.digits / other.digits, self.exponent - other.exponent)

    def value(self) -> float:
        """Return the nearest float, which may be infinite."""
        try:
            return math.ldexp(self.digits, self.exponent)
        except OverflowError:
            return math.copysign(math.inf, self.digits)

    def factors(self, info: "np.finfo[Any]") -> tuple[Any, Any]:
        """Return power and rest, so that ``x * power * power * rest`` is rounded once.

        Usually they are 1 and the number itself. Where the number is zero or infinite in the
        dtype, the exponent is in the power.
        """
        with np.errstate(all="ignore"):
            rounded = info.dtype.type(self.value())
        special = self.digits == 0 or not math.isfinite(self.digits)
        if special or info.tiny <= abs(rounded) <= info.max:
            return info.dtype.type(1), rounded
        digits, exponent = self.digits, self.exponent
        # With a smaller or larger exponent, every product is zero or infinite.
        least, most = info.minexp + 1 - info.maxexp, 2 * info.maxexp - 1
        if not least <= exponent <= most:
            digits, exponent = math.copysign(0.5, digits), min(max(exponent, least), most)
        shift = -(exponent & 1) if exponent < 0 else 2 - (exponent & 1)
        power = 2.0 ** ((exponent - shift) // 2)
        return info.dtype.type(power), info.dtype.type(math.ldexp(digits, shift))
