"""Schedules: the learning rate as a function of the step or the epoch, counted from 1.

A schedule ``s`` is callable: ``s(t)`` is the rate of step t, and ``s(range(1, 101))`` is an array
with the rates of the first hundred steps. Every optimizer accepts a schedule as `lr`. A schedule
that moves from one value to another starts at ``t = 1``, and keeps its last value after `steps`.

`InverseTime`, `Exponential`, `InverseSqrt`, `Staircase` and `Manual` decay with t. `Constant`,
`Linear`, `Polynomial`, `Cosine`, `CosineRestarts` and `OneCycle` hold, ramp or cycle. `WarmUp`,
`Chain` and `PerEpoch` combine other schedules. `ReduceOnPlateau` is the only schedule with state:
it is updated with the cost, directly or through a schedule that contains it.

Schedules can be nested 32 deep, and contain 10,000 schedules in all; a schedule that is used twice
counts twice. The constructor raises ValueError beyond these limits.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice, pairwise
from math import cos, inf, isfinite, pi, sqrt
from numbers import Integral
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from schuss import _hyperparameters as checks
from schuss._errors import wrong_type
from schuss._hyperparameters import Check, Rate, count, real, shown
from schuss._listing import public_names

__all__ = [
    "Chain",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseSqrt",
    "InverseTime",
    "Linear",
    "Manual",
    "OneCycle",
    "PerEpoch",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "Staircase",
    "WarmUp",
    "chain",
]

__dir__ = public_names(__name__)

_Number: TypeAlias = float | np.integer[Any] | np.floating[Any]
_Metadata: TypeAlias = Mapping[str, Check[Any]]

# The metadata of a field: how its value is checked.
_NON_NEGATIVE: _Metadata = {"check": checks.NON_NEGATIVE}
_POSITIVE: _Metadata = {"check": checks.POSITIVE}
_AT_LEAST_ONE: _Metadata = {"check": checks.AT_LEAST_ONE}
_FRACTION: _Metadata = {"check": checks.UNIT}
_COUNT: _Metadata = {"check": partial(count, least=0)}
_POSITIVE_COUNT: _Metadata = {"check": partial(count, least=1)}
_FLAG: _Metadata = {"check": checks.flag}
_RATE: _Metadata = {"check": checks.rate}


def _one_of(*words: str) -> _Metadata:
    return {"check": partial(checks.choice, among=words)}


def _parse_milestones(call: str, name: str, values: Any) -> tuple[tuple[float, float], ...]:
    """Return the pairs (t, rate) in the order of t."""
    expected = "expected a mapping of t to rate, or pairs (t, rate)"
    try:
        pairs = [(t, lr) for t, lr in (values.items() if isinstance(values, Mapping) else values)]
    except (TypeError, ValueError):
        raise TypeError(f"{call}: {name} is {shown(values)}, {expected}") from None
    rates: dict[float, float] = {}
    for given, lr in pairs:
        t = checks.AT_LEAST_ONE(call, f"a t of {name}", given)
        t = int(t) if isinstance(given, Integral) else t
        if t in rates:
            raise ValueError(f"{call}: {name} has t = {t!r} twice, expected each once")
        rates[t] = checks.NON_NEGATIVE(call, f"{name}[{t!r}]", lr)
    if 1 not in rates:
        first = f"begins at {min(rates)!r}" if rates else "is empty"
        raise ValueError(f"{call}: {name} {first}, expected a rate for t = 1")
    return tuple(sorted(rates.items()))


def _parse_sequence(
    call: str, name: str, values: Any, *, check: Check[Any], nonempty: bool = False
) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise wrong_type(call, name, values, "a sequence")
    entries = tuple(check(call, f"{name}[{i}]", value) for i, value in enumerate(values))
    if nonempty and not entries:
        raise ValueError(f"{call}: {name} is empty, expected at least one")
    return entries


def _parse_boundaries(call: str, name: str, values: Any) -> tuple[int, ...]:
    entries = _parse_sequence(call, name, values, check=_POSITIVE_COUNT["check"])
    if any(after <= before for before, after in pairwise(entries)):
        raise ValueError(f"{call}: {name} is {shown(entries)}, expected increasing integers")
    return entries


class Schedule(ABC):
    """Base class of all schedules. A subclass only has to define `formula`.

    Parameters
    ----------
    t : number or array of numbers, in a call
        The step or the epoch, counted from 1. Fractions are allowed. An array can have any shape.

    Returns
    -------
    float or array of float64
        Returned by a call: the rate at `t`, or an array of rates in the shape of `t`. Each rate of
        an array has the same bits as the rate of a single call.

    Raises
    ------
    TypeError
        If `t` is neither a number nor an array of numbers, or if `formula` returns something else
        than a number.
    ValueError
        If `t` is below 1 or not finite, or if the rate overflows.

    References
    ----------
    Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.

    Examples
    --------
    >>> class Harmonic(Schedule):
    ...     def formula(self, t):
    ...         return 1 / t
    >>> s = Harmonic()
    >>> s(4), s([1, 2, 4]), s.per_epoch(100)(250)
    (0.25, array([1.  , 0.5 , 0.25]), 0.3333333333333333)
    """

    __slots__ = ()

    @abstractmethod
    def formula(self, t: float) -> float:
        """Return the rate at `t`.

        Parameters
        ----------
        t : int or float
            The step or the epoch, finite and at least 1.

        Returns
        -------
        float
            The rate at `t`.
        """

    @overload
    def __call__(self, t: _Number) -> float: ...
    @overload
    def __call__(self, t: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[np.float64]: ...
    def __call__(self, t: Any) -> float | npt.NDArray[np.float64]:
        """Return the rate at `t`, or the rates at an array of them."""
        kind = type(t)
        if (kind is int or kind is float) and 1 <= t < inf:
            try:
                value = self.formula(t)
            except OverflowError:
                raise ValueError(
                    f"{self._name}: rate at t={t!r} is too large for a float, expected a "
                    "finite number"
                ) from None
            # The formula may contain a callable of the user, which can return anything.
            return value if type(value) is float else real(self._name, f"rate at t={t!r}", value)
        return self._at_any(t)

    def per_epoch(self, steps: int) -> "PerEpoch":
        """Convert a schedule that counts epochs to one that counts steps.

        Parameters
        ----------
        steps : int
            Number of steps per epoch, at least 1: ``len(minibatches(...))``.

        Returns
        -------
        PerEpoch
            The schedule that counts steps.

        Raises
        ------
        TypeError, ValueError
            If `steps` is not an integer, or is less than 1.
        """
        return PerEpoch(self, steps)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _at_any(self, t: Any) -> float | npt.NDArray[np.float64]:
        if isinstance(t, Iterable) and not isinstance(t, str | bytes):
            try:
                array = np.asarray(t)
            except (TypeError, ValueError):
                array = np.asarray(None)  # ragged: refused below, as an array of objects
            if array.dtype.kind not in "iuf":
                was = f"{type(t).__name__} of {array.dtype}"
                raise TypeError(f"{self._name}: t is a {was}, expected numbers")
            rates = [self(each) for each in array.ravel().tolist()]
            return np.array(rates, np.float64).reshape(array.shape)
        checked = checks.AT_LEAST_ONE(self._name, "t", t)
        return self(int(t) if isinstance(t, Integral) else checked)


def _checks(schedule: Any) -> dict[str, Check[Any]]:
    """Return the checks that a dataclass declares for its fields."""
    return {f.name: f.metadata["check"] for f in fields(schedule) if "check" in f.metadata}


class _Checked(Schedule):
    """A schedule whose dataclass fields are checked when it is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, check in _checks(self).items():
            # The dataclass is frozen, except for this.
            object.__setattr__(self, name, check(self._name, name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """Raise ValueError if fields that are valid one by one do not go together."""


def _value(schedule: Rate, t: float) -> float:
    return schedule(t) if callable(schedule) else schedule  # type: ignore[arg-type]


def _progress(t: float, steps: int) -> tuple[float, float]:
    """Return the fractions remaining and done: (1, 0) at t = 1, and (0, 1) after `steps`."""
    done = min(t - 1, steps)
    return (steps - done) / steps, done / steps


def _cosine(done: float) -> tuple[float, float]:
    """Return the fractions remaining and done of a cosine ramp, which starts and ends slowly."""
    remaining = (1 + cos(pi * done)) / 2
    return remaining, 1 - remaining


def _lerp(start: float, end: float, remaining: float, done: float) -> float:
    """Interpolate between two values: exactly `start` at (1, 0), and exactly `end` at (0, 1)."""
    return start * remaining + end * done


# Decay with t.


@dataclass(frozen=True, slots=True)
class InverseTime(_Checked):
    """Inverse time decay, ``lr / (1 + rate*t)``.

    Parameters
    ----------
    lr : float
        The rate at t = 0, from which it decays; at least 0.
    rate : float
        The speed of the decay, at least 0: the rate is halved at ``t = 1/rate``.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not a number, or is out of range.

    References
    ----------
    Robbins & Monro, "A stochastic approximation method", 1951, for decay as 1/t; Bengio, "Practical
    recommendations for gradient-based training of deep architectures", 2012, section 3.1.1.

    Examples
    --------
    >>> InverseTime(0.2)([1, 2, 3, 4]).round(4)
    array([0.1   , 0.0667, 0.05  , 0.04  ])
    """

    lr: float = field(metadata=_NON_NEGATIVE)
    rate: float = field(default=1.0, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.lr / (1 + self.rate * t)


@dataclass(frozen=True, slots=True)
class Exponential(_Checked):
    """Exponential decay, ``base**t * lr``.

    Parameters
    ----------
    lr : float
        The rate at t = 0, from which it decays; at least 0.
    base : float
        The factor by which each step multiplies the rate; at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not a number, or is out of range.

    References
    ----------
    Senior, Heigold, Ranzato & Yang, "An empirical study of learning rates in deep neural networks
    for speech recognition", 2013 ("exponential scheduling").

    Examples
    --------
    >>> round(Exponential(1.0)(10), 4)
    0.5987
    """

    lr: float = field(metadata=_NON_NEGATIVE)
    base: float = field(default=0.95, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        power: float = self.base**t
        return power * self.lr


@dataclass(frozen=True, slots=True)
class InverseSqrt(_Checked):
    """Inverse square root decay, ``k / sqrt(t) * lr``.

    Parameters
    ----------
    lr : float
        The learning rate to scale, at least 0.
    k : float
        The scale at t = 1, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not a number, or is out of range.

    References
    ----------
    Zinkevich, "Online convex programming and generalized infinitesimal gradient ascent", 2003,
    theorem 1.

    Examples
    --------
    >>> InverseSqrt(0.2)([1, 4])
    array([0.2, 0.1])
    """

    lr: float = field(metadata=_NON_NEGATIVE)
    k: float = field(default=1.0, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.k / sqrt(t) * self.lr


@dataclass(frozen=True, slots=True)
class Staircase(_Checked):
    """Step decay, ``lr * factor**((t-1) // every)``: the first `every` steps use `lr`.

    Parameters
    ----------
    lr : float
        The first rate, at least 0.
    every : int
        Number of steps (or epochs) before each change of the rate, at least 1.
    factor : float
        The factor between one rate and the next, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Szegedy et al., "Going deeper with convolutions", 2015, section 6: 4 % less every 8 epochs.

    Examples
    --------
    >>> Staircase(0.8, every=2)(range(1, 7))
    array([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    """

    lr: float = field(metadata=_NON_NEGATIVE)
    every: int = field(metadata=_POSITIVE_COUNT)
    factor: float = field(default=0.5, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        power: float = self.factor ** ((t - 1) // self.every)
        return self.lr * power


@dataclass(frozen=True, slots=True)
class Manual(_Checked):
    """Rates chosen by hand; each applies from its t until the next one.

    Parameters
    ----------
    values : mapping of t to rate, or pairs (t, rate) in any order
        The steps (or epochs) at which the rate changes, and the rates. Each t is at least 1, the
        first one is 1, and each rate is at least 0. Stored as a sorted tuple of pairs.

    Raises
    ------
    TypeError, ValueError
        If `values` are not pairs of numbers, contain a t twice, or begin after t = 1.

    References
    ----------
    Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
    networks", 2012, section 5, adjusted the rate by hand.

    Examples
    --------
    >>> Manual({1: 0.1, 10: 0.01})([1, 9, 10, 11])
    array([0.1 , 0.1 , 0.01, 0.01])
    """

    values: Mapping[int, float] | Mapping[float, float] | Iterable[tuple[float, float]] = field(
        metadata={"check": _parse_milestones}
    )

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        values: Any = self.values
        result: float = values[bisect_right(values, (t, inf)) - 1][1]
        return result


# A constant rate, ramps and cycles.


@dataclass(frozen=True, slots=True)
class Constant(_Checked):
    """A constant rate.

    Parameters
    ----------
    lr : float
        The rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or is out of range.

    References
    ----------
    Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    lr: float = field(metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.lr


@dataclass(frozen=True, slots=True)
class Linear(_Checked):
    """Linear ramp from `start` at t = 1 to `end` at t = steps + 1; constant after that.

    Parameters
    ----------
    start, end : float
        The first and the last rate, at least 0. Either can be the larger one.
    steps : int
        Number of steps (or epochs) of the ramp, at least 1.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, eq. 8.14.

    Examples
    --------
    >>> Linear(1.0, 0.5, steps=2)([1, 2, 3, 4])
    array([1.  , 0.75, 0.5 , 0.5 ])
    """

    start: float = field(metadata=_NON_NEGATIVE)
    end: float = field(metadata=_NON_NEGATIVE)
    steps: int = field(metadata=_POSITIVE_COUNT)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _lerp(self.start, self.end, *_progress(t, self.steps))


@dataclass(frozen=True, slots=True)
class Polynomial(_Checked):
    """Polynomial decay, ``end + (start-end) * (1 - (t-1)/steps)**power``.

    Parameters
    ----------
    start, end : float
        The first and the last rate, at least 0. Either can be the larger one.
    steps : int
        Number of steps (or epochs) of the ramp, at least 1.
    power : float
        The exponent, above 0. 1 gives `Linear`; a larger one decays faster at first.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: semantic image segmentation with deep
    convolutional nets, atrous convolution, and fully connected CRFs", 2018, section 4.1 ("poly").

    Examples
    --------
    >>> Polynomial(1.0, 0.0, steps=2, power=2.0)([1, 2, 3, 4])
    array([1.  , 0.25, 0.  , 0.  ])
    """

    start: float = field(metadata=_NON_NEGATIVE)
    end: float = field(metadata=_NON_NEGATIVE)
    steps: int = field(metadata=_POSITIVE_COUNT)
    power: float = field(default=1.0, metadata=_POSITIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        remaining: float = _progress(t, self.steps)[0] ** self.power
        return _lerp(self.start, self.end, remaining, 1 - remaining)


@dataclass(frozen=True, slots=True)
class Cosine(_Checked):
    """Cosine annealing, ``end + (start-end) * (1 + cos(pi*(t-1)/steps)) / 2``.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    steps : int
        Number of steps (or epochs) of the ramp, at least 1.
    end : float
        The last rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5.

    Examples
    --------
    >>> Cosine(1.0, steps=2)([1, 2, 3, 4])
    array([1. , 0.5, 0. , 0. ])
    """

    start: float = field(metadata=_NON_NEGATIVE)
    steps: int = field(metadata=_POSITIVE_COUNT)
    end: float = field(default=0.0, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _lerp(self.start, self.end, *_cosine(_progress(t, self.steps)[1]))


@dataclass(frozen=True, slots=True)
class CosineRestarts(_Checked):
    """Cosine annealing with restarts; cycles can grow longer and start lower.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    steps : int
        Length of the first cycle in steps (or epochs), at least 1.
    end : float
        The rate at the end of each cycle, at least 0. No step uses it: the next cycle restarts
        at that step.
    factor : int
        The ratio of the lengths of one cycle and the one before, at least 1.
    decay : float
        The ratio of the heights (above `end`) at which one cycle and the one before start, at
        least 0. At most 1 if `start` is below `end`.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5, with
    T_0 = `steps` and T_mult = `factor`.

    Examples
    --------
    >>> CosineRestarts(1.0, steps=2, factor=2, decay=0.5)(range(1, 8))
    array([1.       , 0.5      , 0.5      , 0.4267767, 0.25     , 0.0732233,
           0.25     ])
    """

    start: float = field(metadata=_NON_NEGATIVE)
    steps: int = field(metadata=_POSITIVE_COUNT)
    end: float = field(default=0.0, metadata=_NON_NEGATIVE)
    factor: int = field(default=1, metadata=_POSITIVE_COUNT)
    decay: float = field(default=1.0, metadata=_NON_NEGATIVE)

    def _check_together(self) -> None:
        if self.decay > 1 and self.start < self.end:  # the peaks would fall below zero
            raise ValueError(
                f"{self._name}: decay is {self.decay!r} where start is below end, expected at most "
                "1.0"
            )

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        done, steps = t - 1, self.steps
        cycle: float = 0
        if self.factor == 1:
            cycle, done = divmod(done, steps)
        else:
            while done >= steps:
                cycle, done, steps = cycle + 1, done - steps, steps * self.factor
        scale: float = self.decay**cycle
        peak = _lerp(self.start, self.end, scale, 1 - scale)
        return _lerp(peak, self.end, *_cosine(done / steps))


@dataclass(frozen=True, slots=True)
class OneCycle(_Checked):
    """One cycle for the whole training: up to `peak`, then down to almost zero.

    The rate starts at ``peak/start_divisor``. It is ``peak/start_divisor/end_divisor`` in the last
    of the `steps`, and after that.

    Parameters
    ----------
    peak : float
        The largest rate, at least 0.
    steps : int
        Length of the cycle in steps (or epochs), at least 1.
    rise : float
        The fraction of the steps in which the rate rises, in [0, 1). If this is less than one step,
        the rate falls from the start.
    start_divisor, end_divisor : float
        The ratio of the peak to the first rate, and of the first rate to the last; at least 1.
    anneal : str
        The shape of the ramps: ``'cos'`` (half a cosine wave) or ``'linear'``.
    three_phase : bool
        If True, the rate falls to the first rate as fast as it rose, and then to the last one.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Smith & Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018, section 3; phases and defaults are those of PyTorch's OneCycleLR.

    Examples
    --------
    >>> OneCycle(1.0, steps=10)([1, 3, 10]).round(6)
    array([4.e-02, 1.e+00, 4.e-06])
    """

    peak: float = field(metadata=_NON_NEGATIVE)
    steps: int = field(metadata=_POSITIVE_COUNT)
    rise: float = field(default=0.3, metadata=_FRACTION)
    start_divisor: float = field(default=25.0, metadata=_AT_LEAST_ONE)
    end_divisor: float = field(default=1e4, metadata=_AT_LEAST_ONE)
    anneal: str = field(default="cos", metadata=_one_of("cos", "linear"))
    three_phase: bool = field(default=False, metadata=_FLAG)

    def _check_together(self) -> None:
        if self.three_phase and self.rise > 0.5:
            raise ValueError(
                f"{self._name}: rise is {self.rise!r}, expected at most 0.5 with three_phase"
            )

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        low = self.peak / self.start_divisor
        top = self.rise * self.steps - 1  # not rounded, as in PyTorch
        end: float = self.steps - 1
        step = min(t - 1, end)
        if step <= top:
            begin, end, first, last = 0.0, top, low, self.peak
        elif not self.three_phase:
            begin, first, last = top, self.peak, low / self.end_divisor
        elif step <= 2 * top:
            begin, end, first, last = top, 2 * top, self.peak, low
        else:
            begin, first, last = 2 * top, low, low / self.end_divisor
        done = (step - begin) / (end - begin) if end > begin else 1.0
        return _lerp(first, last, *(_cosine(done) if self.anneal == "cos" else (1 - done, done)))


# Schedules of schedules. A schedule that is used twice counts twice: the limits on depth and number
# keep every traversal short, also of shared schedules.

_MAX_DEPTH, _MAX_SCHEDULES = 32, 10_000


def is_library_schedule(function: object) -> bool:
    """Return whether this is a schedule of this module, and not of the user."""
    return type(function).__module__ == __name__


def parts(schedule: Any) -> Iterator[Any]:
    """Yield the schedules and functions that a schedule of this module contains directly."""
    for f in fields(schedule):
        value = getattr(schedule, f.name)
        yield from filter(callable, value if isinstance(value, tuple) else (value,))


class _Composite(_Checked):
    """A schedule made of other schedules; it passes the cost on to them."""

    __slots__ = ()

    def _check_together(self) -> None:
        """Raise ValueError if schedules are nested too deep, or are too many."""
        level: list[Any] = [self]
        depth = total = 0
        while level:
            depth, total = depth + 1, total + len(level)
            if depth > _MAX_DEPTH or total > _MAX_SCHEDULES:
                raise ValueError(
                    f"{self._name}: schedules are nested more than {_MAX_DEPTH} deep, or more than "
                    f"{_MAX_SCHEDULES:,} in all, expected fewer"
                )
            inner = (part for each in level if isinstance(each, _Composite) for part in parts(each))
            level = list(islice(inner, _MAX_SCHEDULES + 1))

    def update(self, cost: float) -> None:
        """Pass a cost on to all schedules inside that take one, whether or not they are active.

        Parameters
        ----------
        cost : float
            As for `ReduceOnPlateau.update`.

        Raises
        ------
        TypeError
            If it is not a number, and a schedule inside takes it.
        """
        feed(parts(self), cost)


def feed(schedules: Iterable[object], cost: float) -> None:
    """Pass the cost to each schedule with a method ``update(cost)``, also to nested ones, once."""
    for schedule in updatable(schedules):
        schedule.update(cost)


def updatable(schedules: Iterable[object]) -> list[Any]:
    """Return the schedules that take a cost: each object once, even if several share it."""
    found: list[Any] = []
    seen: set[int] = set()
    stack = list(schedules)[::-1]
    while stack:
        schedule: Any = stack.pop()
        update = getattr(schedule, "update", None)
        if id(schedule) in seen or not (callable(schedule) and callable(update)):
            continue
        seen.add(id(schedule))
        if getattr(update, "__func__", None) is _Composite.update:
            stack += [*parts(schedule)][::-1]
        else:  # also a subclass of the user with an update of its own
            found.append(schedule)
    return found


@dataclass(frozen=True, slots=True)
class WarmUp(_Composite):
    """Linear warm-up to another schedule, which then starts at its own t = 1.

    Parameters
    ----------
    after : float or callable
        The rate after the warm-up: a number, or a schedule.
    steps : int
        Length of the warm-up in steps (or epochs), at least 1: at t = steps + 1 the rate is
        ``after(1)``.
    start : float
        The first rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.

    Examples
    --------
    >>> WarmUp(0.4, steps=4)([1, 2, 3, 4, 5, 6])
    array([0. , 0.1, 0.2, 0.3, 0.4, 0.4])
    >>> WarmUp(Cosine(0.4, steps=2), steps=2, start=0.2)(range(1, 6))
    array([0.2, 0.3, 0.4, 0.2, 0. ])
    """

    after: Rate = field(metadata=_RATE)
    steps: int = field(metadata=_POSITIVE_COUNT)
    start: float = field(default=0.0, metadata=_NON_NEGATIVE)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        if t - 1 < self.steps:
            return _lerp(self.start, _value(self.after, 1), *_progress(t, self.steps))
        return _value(self.after, t - self.steps)


@dataclass(frozen=True, slots=True)
class Chain(_Composite):
    """A sequence of schedules, each starting at its own t = 1. Also made by `chain`.

    Parameters
    ----------
    schedules : sequence of float or callable
        Numbers and schedules, at least one. Stored as a tuple.
    boundaries : sequence of int
        The last step of each schedule except the last one: with a boundary of 100, step 101 is
        t = 1 of the next schedule. Increasing, at least 1. Stored as a tuple.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, if there is not one boundary fewer than schedules, or if
        the boundaries do not increase.

    References
    ----------
    The boundaries match those of optax's join_schedules and the milestones of PyTorch's
    SequentialLR.

    Examples
    --------
    >>> Chain([Linear(0.1, 0.3, steps=2), 0.2, InverseSqrt(0.2)], [2, 3])(range(1, 8))
    array([0.1       , 0.2       , 0.2       , 0.2       , 0.14142136,
           0.11547005, 0.1       ])
    """

    schedules: Sequence[Rate] = field(
        metadata={"check": partial(_parse_sequence, check=checks.rate, nonempty=True)}
    )
    boundaries: Sequence[int] = field(metadata={"check": _parse_boundaries})

    def _check_together(self) -> None:
        actual, expected = len(self.boundaries), len(self.schedules) - 1
        if actual != expected:
            raise ValueError(
                f"{self._name}: boundaries has {actual} entries, expected {expected} "
                f"(one fewer than schedules)"
            )
        super(Chain, self)._check_together()  # slots=True breaks super()

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        i = bisect_right(self.boundaries, t - 1)
        return _value(self.schedules[i], t - self.boundaries[i - 1] if i else t)


def chain(schedules: Iterable[Rate], boundaries: Iterable[int]) -> Chain:
    """Return a sequence of schedules, each starting at its own t = 1.

    Parameters
    ----------
    schedules : iterable of float or callable
        Numbers and schedules, at least one.
    boundaries : iterable of int
        The last step of each schedule except the last one: with a boundary of 100, step 101 is
        t = 1 of the next schedule. Increasing, at least 1.

    Returns
    -------
    Chain
        The combined schedule.

    Raises
    ------
    TypeError, ValueError
        As `Chain`.

    References
    ----------
    As `Chain`.

    Examples
    --------
    >>> chain([0.1, 0.01], [2])([1, 2, 3])
    array([0.1 , 0.1 , 0.01])
    """
    return Chain(schedules, boundaries)  # type: ignore[arg-type]  # converts both to tuples


@dataclass(frozen=True, slots=True)
class PerEpoch(_Composite):
    """A schedule that counts epochs, as a function of the step: ``schedule((t-1) // steps + 1)``.

    Also made by `Schedule.per_epoch`.

    Parameters
    ----------
    schedule : float or callable
        The rate of each epoch, counted from 1. A callable receives an int.
    steps : int
        Number of steps per epoch, at least 1: ``len(minibatches(...))``.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, section 8.1.3, for epochs and steps.

    Examples
    --------
    >>> s = InverseTime(0.2).per_epoch(2)
    >>> s
    PerEpoch(schedule=InverseTime(lr=0.2, rate=1.0), steps=2)
    >>> s([1, 2, 3, 4]).round(4)
    array([0.1   , 0.1   , 0.0667, 0.0667])
    """

    schedule: Rate = field(metadata=_RATE)
    steps: int = field(metadata=_POSITIVE_COUNT)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _value(self.schedule, int((t - 1) // self.steps) + 1)


# The schedule that takes a cost.


@dataclass(slots=True, repr=False)
class ReduceOnPlateau(Schedule):
    """A rate that is multiplied by a factor when the cost has stopped improving.

    Call `update` with the cost, usually once per epoch. The rate does not depend on t: `lr` is the
    current rate for all t. Attributes can be assigned at any time, and each assignment is checked.
    An optimizer that was loaded or unpickled has a schedule of its own: call
    ``optimizer.lr.update(cost)``.

    Parameters
    ----------
    lr : float
        The initial rate, at least 0.
    factor : float
        The factor by which a reduction multiplies the rate, in [0, 1).
    patience : int
        Number of consecutive updates without improvement to tolerate, at least 0; the next one
        reduces the rate.
    mode : str
        ``'min'`` if lower is better (a cost), ``'max'`` if higher is better (an accuracy). A change
        of the mode discards the best value.
    threshold : float
        An improvement has to exceed this, at least 0. The first finite cost always counts as an
        improvement.
    threshold_mode : str
        Whether the threshold is relative to the best (``'rel'``) or absolute (``'abs'``). Use
        ``'abs'`` for costs below 0: with ``'rel'``, slightly worse costs count as improvements
        there, as in PyTorch.
    cooldown : int
        Number of updates after a reduction that are not counted, at least 0.
    min_lr : float
        The lower bound of the rate, at least 0.
    eps : float
        Reductions of at most this size are skipped, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type, or is out of range.

    References
    ----------
    Rules and defaults are those of PyTorch's ReduceLROnPlateau. He, Zhang, Ren & Sun, "Deep
    residual learning for image recognition", 2016, section 3.4, divide by 10 when the error
    plateaus.

    Examples
    --------
    >>> s = ReduceOnPlateau(0.1, factor=0.5, patience=1)
    >>> for cost in (3.0, 2.0, 2.0, 2.5, 1.0):
    ...     s.update(cost)
    >>> s(1), s.best
    (0.05, 1.0)
    """

    lr: float = field(metadata=_NON_NEGATIVE)
    factor: float = field(default=0.1, metadata=_FRACTION)
    patience: int = field(default=10, metadata=_COUNT)
    mode: str = field(default="min", metadata=_one_of("min", "max"))
    threshold: float = field(default=1e-4, metadata=_NON_NEGATIVE)
    threshold_mode: str = field(default="rel", metadata=_one_of("rel", "abs"))
    cooldown: int = field(default=0, metadata=_COUNT)
    min_lr: float = field(default=0.0, metadata=_NON_NEGATIVE)
    eps: float = field(default=1e-8, metadata=_NON_NEGATIVE)
    best: float = field(init=False, metadata={"check": checks.extended})
    waited: int = field(init=False, default=0, metadata=_COUNT)  # updates since the best
    cooling: int = field(init=False, default=0, metadata=_COUNT)  # updates left of the cooldown

    def __setattr__(self, name: str, value: Any) -> None:
        """Check each assignment, those of `__init__` included."""
        check = _PLATEAU_CHECKS.get(name)
        value = check(self._name, name, value) if check else value
        if name == "mode" and value != getattr(self, name, None):
            self.best = inf if value == "min" else -inf
        object.__setattr__(self, name, value)

    def formula(self, t: float) -> float:
        """Return the current rate."""
        return self.lr

    def update(self, cost: float) -> None:
        """Record a cost, and reduce the rate if the cost has not improved for too long.

        Parameters
        ----------
        cost : float
            The value to minimize (or to maximize). NaN does not count as an improvement.

        Raises
        ------
        TypeError
            If it is not a number; nothing is changed then.
        """
        cost = real(f"{self._name}.update", "cost", cost)
        waited = self.waited + 1
        if self._improves(cost):
            self.best, waited = cost, 0
        if self.cooling:
            self.cooling, waited = self.cooling - 1, 0
        self.waited = 0 if waited > self.patience else waited
        if waited > self.patience:
            self.cooling = self.cooldown
            reduced = max(self.lr * self.factor, self.min_lr)
            if self.lr - reduced > self.eps:
                self.lr = reduced

    def _improves(self, cost: float) -> bool:
        sign, target = -1 if self.mode == "min" else 1, self.best
        if isfinite(target):
            margin = sign * self.threshold
            relative = self.threshold_mode == "rel"
            target = target * (1 + margin) if relative else target + margin
        return cost < target if self.mode == "min" else cost > target

    def __repr__(self) -> str:
        """Return the settings with the current rate, and the progress so far."""
        values = (f"{name}={getattr(self, name)!r}" for name in _PLATEAU_CHECKS)
        *settings, best, waited, cooling = values
        return f"<{self._name}({', '.join(settings)}): {best}, {waited}, {cooling}>"


_PLATEAU_CHECKS = _checks(ReduceOnPlateau)
