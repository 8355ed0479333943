"""Exponentially weighted averages of series, of streams of numbers, and of weights in training."""

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import (
    Array,
    ArrayTree,
    as_any_array,
    components,
    computed_dtype,
    zeros_like_strided,
)
from schuss._hyperparameters import UNIT, axis_of, flag, real
from schuss._listing import public_names
from schuss._registry import flush_rows

__all__ = ["ExponentialAverage", "ewma"]

__dir__ = public_names(__name__)


def ewma(
    values: npt.ArrayLike,
    beta: float,
    *,
    bias_correction: bool = True,
    axis: int = -1,
    out: Array | None = None,
) -> npt.NDArray[Any]:
    """Average a series with weights that decay exponentially into the past.

    ``v_t = beta*v_(t-1) + (1-beta)*x_t`` from ``v_0 = 0``: an average over about ``1/(1-beta)``
    values. Bias correction divides by the sum of the weights so far, ``v_t/(1-beta**t)``. For beta
    above 0.5 the average is computed as ``v_(t-1) + (1-beta)*(x_t - v_(t-1))``, since the rounded
    weights beta and 1-beta do not add up to 1.

    Parameters
    ----------
    values : array, shape (..., n, ...)
        The series, along `axis`; float32, float64, complex64 or complex128. Integers and booleans
        count as float64.
    beta : float
        The decay rate, in [0, 1).
    bias_correction : bool
        True gives weighted means; False the recurrence alone, which starts close to 0.
    axis : int
        The axis of time.
    out : array, optional
        The array for the averages, in the shape of `values` and the dtype of the result. It may be
        `values` itself.

    Returns
    -------
    array
        The averages, in the shape of `values`: a new array, or `out`. They equal those of
        `schuss.reference.ewma` bit for bit.

    Raises
    ------
    TypeError
        If `values` or `out` has another dtype, or another argument a wrong type.
    ValueError
        If `beta` is not in [0, 1), `values` has no such axis, or `out` another shape, is read-only
        or has elements that overlap; nothing is changed then.

    Notes
    -----
    After a NaN or an infinity no average is finite. ``values.ewm(alpha=1-beta).mean()`` in
    pandas is the corrected average. Each step rounds to the dtype. In float32, a change of less
    than half a unit in the last place is lost, which can add up to a relative error of
    ``6e-8/(1-beta)`` if values hardly change. Use float64 for averages over more than some
    thousands of values.

    References
    ----------
    Roberts, "Control chart tests based on geometric moving averages", 1959; Kingma & Ba, "Adam: a
    method for stochastic optimization", 2015, section 3, for the correction.

    Examples
    --------
    >>> import schuss
    >>> schuss.ewma([1.0, 2.0, 3.0], beta=0.5)
    array([1.        , 1.66666667, 2.42857143])
    >>> schuss.ewma([1.0, 2.0, 3.0], beta=0.5, bias_correction=False)
    array([0.5  , 1.25 , 2.125])
    """
    beta = UNIT("ewma", "beta", beta)
    corrected = flag("ewma", "bias_correction", bias_correction)
    series = as_any_array("ewma", "values", values)
    if series.dtype.kind in "iub":
        series = series.astype(np.float64)
    axis = axis_of("ewma", axis, series, "values")
    if out is None:
        out = np.empty_like(series, subok=False)
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"ewma: out is a {type(out).__name__}, expected a NumPy array")
    elif np.may_share_memory(series, out) and not _same_memory(series, out):
        series = series.copy()
    _core.ewma(series, out, axis, beta, corrected)
    return out


def _same_memory(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and (a.shape, a.strides) == (b.shape, b.strides)


def _moved(average: float, x: float, beta: float) -> float:
    """Return the average after one more value, as the kernels compute it."""
    gain = 1 - beta
    keep, loss = (1.0, gain) if gain < 0.5 else (beta, 0.0)
    return keep * average + (gain * x - loss * average)


class ExponentialAverage:
    """The exponentially weighted average of a stream of numbers or arrays.

    Each `update` computes ``v = v + (1-beta)*(x - v)`` in place; no earlier value is stored. The
    first update decides what is averaged: numbers, such as a cost to be smoothed, or arrays in any
    structure, such as the weights in training, in one pass of a fused kernel. Arrays are averaged
    in their own dtype, float16 and bfloat16 in float32. The sum of the weights is rounded in the
    same way.

    Parameters
    ----------
    beta : float
        The decay rate, in [0, 1): an average over about ``1/(1-beta)`` values.
    bias_correction : bool
        Divide by the sum of the weights so far, ``v/(1-beta**t)``, when the average is read.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of range.

    References
    ----------
    Roberts, "Control chart tests based on geometric moving averages", 1959; Kingma & Ba, "Adam: a
    method for stochastic optimization", 2015, section 3, for the correction; Polyak & Juditsky,
    "Acceleration of stochastic approximation by averaging", 1992, for averages of weights.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> cost = schuss.ExponentialAverage(0.98)
    >>> for value in [1.0, 2.0]:
    ...     cost.update(value)
    >>> round(cost.value, 6), round(cost.effective_window)
    (1.505051, 50)
    >>> weights = schuss.ExponentialAverage(0.9)
    >>> weights.update({"W": np.ones(2)})
    >>> weights.value
    {'W': array([1., 1.])}
    """

    _of_arrays: _core.Optimizer | None = None  # from the first update on, if it is of arrays

    def __init__(self, beta: float, *, bias_correction: bool = True) -> None:
        call = type(self).__name__
        self._beta = UNIT(call, "beta", beta)
        self._bias_correction = flag(call, "bias_correction", bias_correction)
        self._of_numbers = 0, 0.0  # the count of numbers, and their average

    @property
    def beta(self) -> float:
        """The decay rate."""
        return self._beta

    @property
    def bias_correction(self) -> bool:
        """Whether `value` is divided by the sum of the weights so far."""
        return self._bias_correction

    @property
    def effective_window(self) -> float:
        """The number of values that matter, ``1/(1-beta)``: older ones weigh about 1/e in total."""
        return 1 / (1 - self._beta)

    @property
    def updates(self) -> int:
        """The number of values so far."""
        return self._of_numbers[0] if self._of_arrays is None else self._of_arrays.steps

    def update(self, values: float | ArrayTree) -> None:
        """Add the next value.

        Parameters
        ----------
        values : number, or array, or sequence or mapping of arrays
            In the structure, shapes and dtypes of the first update; arrays are only read.

        Raises
        ------
        TypeError, ValueError
            If it is not like the values before, or cannot be averaged; nothing is changed then.
        RuntimeError
            If another update is under way, on another thread; nothing is changed then.
        """
        call = f"{type(self).__name__}.update"
        if isinstance(values, Real):
            if self._of_arrays is not None:
                self._refuse(values, "arrays")
            x = real(call, "values", values)
            updates, average = self._of_numbers
            self._of_numbers = updates + 1, _moved(average, x, self._beta)
            return
        arrays: Any = values  # or an object that the core refuses
        flush_rows(call, "values", arrays)
        if self._of_arrays is not None:
            self._of_arrays.step(arrays, self._beta)
        elif self.updates > 0:
            self._refuse(values, "a number")
        else:
            self._update_first(values)

    def _update_first(self, values: Any) -> None:
        core = self._core_for(values)
        core.step(values, self._beta)
        # Another thread may have been first. `setdefault` reads and writes in one operation: a lock
        # would stay locked in the child of a fork.
        if self.updates > 0 or vars(self).setdefault("_of_arrays", core) is not core:
            call = type(self).__name__
            raise RuntimeError(
                f"{call}.update: another call of {call} is under way, expected one at a time"
            )

    @property
    def value(self) -> Any:
        """The average so far: a float, or new arrays in the structure of the values.

        Raises
        ------
        ValueError
            If there is no value yet.
        RuntimeError
            If an update is under way, on another thread.
        """
        if self.updates == 0:
            raise ValueError(
                f"{type(self).__name__}.value: there is no value yet, expected an update before"
            )
        core = self._of_arrays
        if core is None:
            average = self._of_numbers[1]
            return average / self._weight(np.float64) if self._bias_correction else average
        averages = core.arrays
        with core.busy(f"{type(self).__name__}.value"):
            if not self._bias_correction:
                return core.tree.unflatten([average.copy(order="K") for average in averages])
            with np.errstate(all="ignore"):  # an average that is too large is infinite
                values = [self._corrected(average) for average in averages]
            return core.tree.unflatten(values)

    def _corrected(self, average: Array) -> Array:
        corrected = np.empty_like(average)
        values = components(average)
        np.divide(values, self._weight(values.dtype.type), out=components(corrected))
        return corrected

    def _weight(self, dtype: Any) -> float:
        """Return the sum of the weights of all values so far, rounded to the dtype."""
        return _core.weight_of(float(dtype(1 - self._beta)), self.updates)

    def __repr__(self) -> str:
        """Return the settings and the number of updates."""
        updates = f"{self.updates:,} update{'s' * (self.updates != 1)}"
        return (
            f"<{type(self).__name__}({self._beta!r}, bias_correction={self._bias_correction}): "
            f"{updates}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs."""
        core = self._of_arrays
        if core is None:
            return {**self.__dict__}
        with core.busy(f"{type(self).__name__}.__getstate__"):
            averages = core.tree.unflatten([array.copy(order="K") for array in core.arrays])
            return {**self.__dict__, "_of_arrays": (averages, core.steps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a copy."""
        saved = state.get("_of_arrays")
        self.__dict__.update({name: value for name, value in state.items() if name != "_of_arrays"})
        if saved is not None:
            averages, updates = saved
            core = self._core_for(averages)
            values = core.tree.flatten_arrays(averages, "", "")
            for average, value in zip(core.arrays, values, strict=True):
                np.copyto(average, value)
            core.steps = updates
            self._of_arrays = core

    def _core_for(self, values: Any) -> _core.Optimizer:
        """Return the average of no values, for values like these; or refuse them."""
        call = type(self).__name__
        tree = _core.Tree(values, f"{call}.update", "values")
        averages = [zeros_like_strided(array, dtype=computed_dtype(array)) for array in tree.arrays]
        try:
            core = _core.Optimizer(call, tree.unflatten(averages), "update", "values", "values")
        except (TypeError, ValueError) as error:  # the caller's arrays have such a dtype
            text = str(error).replace(f"{call}:", f"{call}.update:", 1)
            raise type(error)(text) from None
        formula = _core.Formula("average", per_step=self._beta)
        core.configure([formula], [0] * len(averages), _core.StepOptions())
        return core

    def _refuse(self, values: object, expected: str) -> None:
        raise TypeError(
            f"{type(self).__name__}.update: values is a {type(values).__name__}, "
            f"expected {expected} as before"
        )
