"""Exponentially weighted averages: of series, of a cost as it comes, of weights in training."""

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array, ArrayTree, as_any_array, computed_dtype, zeros_along
from schuss._hyperparameters import axis_of, flag, number, real

__all__ = ["ExponentialAverage", "ewma"]


def ewma(
    values: npt.ArrayLike,
    beta: float,
    *,
    bias_correction: bool = True,
    axis: int = -1,
    out: Array | None = None,
) -> npt.NDArray[Any]:
    """Average a series with weights that decay exponentially into the past.

    ``v_t = beta*v_(t-1) + (1-beta)*x_t`` from ``v_0 = 0``, so that about ``1/(1-beta)`` values
    count; bias correction divides by the sum of the weights so far, ``v_t/(1-beta**t)``. For beta
    above 0.5 it is computed as ``v_(t-1) + (1-beta)*(x_t - v_(t-1))``: beta and 1-beta are rounded
    each, and as weights would not add up to 1.

    Parameters
    ----------
    values : array, shape (..., n, ...)
        The series, along `axis`; float32 or float64. Integers and booleans count as float64.
    beta : float
        The weight of the past, in [0, 1).
    bias_correction : bool
        True gives true weighted means; False the bare recurrence, which starts close to 0.
    axis : int
        The axis along which time runs.
    out : array, optional
        Where the averages go: of the shape of `values` and the result's dtype. It may be `values`
        itself.

    Returns
    -------
    array
        The averages, in the shape of `values`: a new array, or `out`. They are, bit for bit, those
        of `schuss.reference.ewma`.

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
    pandas is the corrected average. Each step rounds to the dtype: in float32, a move of less than
    half a unit in the last place is lost, which can add up to a relative error of ``6e-8/(1-beta)``
    where values hardly change. Use float64 for averages over more than some thousands of values.

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
    beta = number("ewma", "beta", beta)
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
    """Return the average with one value more, as the kernels compute it."""
    gain = 1 - beta
    keep, loss = (1.0, gain) if gain < 0.5 else (beta, 0.0)
    return keep * average + (gain * x - loss * average)


class ExponentialAverage:
    """The exponentially weighted average of values as they come, numbers or arrays.

    ``v = v + (1-beta)*(x - v)`` with each `update`, in place: it keeps one number for each series.
    The first update decides what is averaged: numbers, such as a cost to be smoothed, or arrays in
    any structure, such as the weights in training, which take one pass of a fused kernel. Arrays
    are averaged in their own dtype, float16 and bfloat16 in float32, and corrected by the sum of
    the weights as it rounds them.

    Parameters
    ----------
    beta : float
        The weight of the past, in [0, 1): about ``1/(1-beta)`` values count.
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

    _plan: _core.Plan | None = None  # of arrays; an instance has one from its first update on

    def __init__(self, beta: float, *, bias_correction: bool = True) -> None:
        call = type(self).__name__
        self._beta = number(call, "beta", beta)
        self._bias_correction = flag(call, "bias_correction", bias_correction)
        self._of_numbers = 0, 0.0  # how many, and their average so far

    @property
    def beta(self) -> float:
        """The weight of the past."""
        return self._beta

    @property
    def bias_correction(self) -> bool:
        """Whether `value` is divided by the sum of the weights so far."""
        return self._bias_correction

    @property
    def effective_window(self) -> float:
        """About so many values count, ``1/(1-beta)``: older ones weigh about 1/e together."""
        return 1 / (1 - self._beta)

    @property
    def updates(self) -> int:
        """The number of values taken in."""
        return self._of_numbers[0] if self._plan is None else self._plan.steps

    def update(self, values: float | ArrayTree) -> None:
        """Take in the next value.

        Parameters
        ----------
        values : number, or array, or sequence or mapping of arrays
            In the structure, shapes and dtypes of the first update; arrays are read only.

        Raises
        ------
        TypeError, ValueError
            If it is not like the values before, or no value to average; nothing is changed then.
        RuntimeError
            If another update is under way, on another thread; nothing is changed then.
        """
        if isinstance(values, Real):
            if self._plan is not None:
                self._refuse(values, "arrays")
            x = real(f"{type(self).__name__}.update", "values", values)
            # In one assignment, so that whatever interrupts finds the two agree.
            updates, average = self._of_numbers
            self._of_numbers = updates + 1, _moved(average, x, self._beta)
            return
        arrays: Any = values  # or whatever the plan refuses
        if self._plan is None:
            if self.updates > 0:
                self._refuse(values, "a number")
            plan = self._plan_for(arrays)
            plan.step(arrays, self._beta)
            # Another thread may have been first. The look and the assignment are one operation: a
            # lock would stay locked in the child of a fork.
            if self.updates > 0 or vars(self).setdefault("_plan", plan) is not plan:
                call = type(self).__name__
                raise RuntimeError(
                    f"{call}.update: another call of {call} is under way, expected one at a time"
                )
        else:
            self._plan.step(arrays, self._beta)

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
            raise ValueError(f"{type(self).__name__}.value: there was no update, expected one")
        if self._plan is None:
            average = self._of_numbers[1]
            return average / self._weight(np.float64) if self._bias_correction else average
        averages = self._plan.arrays
        with self._plan.turn(f"{type(self).__name__}.value"):
            if not self._bias_correction:
                return self._plan.unflatten([average.copy(order="K") for average in averages])
            with np.errstate(all="ignore"):  # as everywhere: what is too large is infinite
                values = [np.asarray(each / self._weight(each.dtype.type)) for each in averages]
            return self._plan.unflatten(values)

    def _weight(self, dtype: Any) -> float:
        """Return the sum of the weights of all values so far, as the dtype rounds them."""
        return _core.weight_of(float(dtype(1 - self._beta)), self.updates)

    def __repr__(self) -> str:
        """Return the settings and how far it is."""
        updates = f"{self.updates:,} update{'s' * (self.updates != 1)}"
        return (
            f"<{type(self).__name__}({self._beta!r}, bias_correction={self._bias_correction}): "
            f"{updates}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs."""
        plan = self._plan
        if plan is None:
            return {**self.__dict__}
        with plan.turn(f"{type(self).__name__}.__getstate__"):
            averages = plan.unflatten([array.copy(order="K") for array in plan.arrays])
            return {**self.__dict__, "_plan": (averages, plan.steps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle or a copy holds."""
        saved = state.get("_plan")
        self.__dict__.update({name: value for name, value in state.items() if name != "_plan"})
        if saved is not None:
            averages, updates = saved
            plan = self._plan_for(averages)
            for average, value in zip(plan.arrays, plan.flatten(averages, "", ""), strict=True):
                np.copyto(average, value)
            plan.steps = updates
            self._plan = plan

    def _plan_for(self, values: ArrayTree) -> _core.Plan:
        """Return the average of no values yet, made for values like these."""
        call = type(self).__name__
        averages = _core.map_arrays(
            lambda array: zeros_along(array, dtype=computed_dtype(array)),
            values,
            f"{call}.update",
            "values",
        )
        _core.Plan(f"{call}.update", averages, params="values")  # refuses by the caller's names
        plan = _core.Plan(call, averages, "update", "average", "values")
        kernel = "average", "none", {"beta": self._beta, "weight_decay": 0.0}
        plan.configure([kernel], [0] * len(plan.arrays), {}, ([], None, None))
        return plan

    def _refuse(self, values: object, expected: str) -> None:
        raise TypeError(
            f"{type(self).__name__}.update: values is a {type(values).__name__}, "
            f"expected {expected} as before"
        )
