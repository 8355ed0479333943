"""Schedules: the learning rate as a function of the step or the epoch, counted from 1.

A schedule ``s`` is called: ``s(t)`` is the rate of the t-th step, ``s(range(1, 101))`` an array of
the first hundred. Any optimizer takes one as `lr`. Those that go from one value to another start
at ``t = 1`` and stay at their last value once their `steps` are made.

The first five decay with t itself (`InverseTime`, `Exponential`, `InverseSqrt`, `Staircase`,
`Manual`); then come a rate that stays, ramps and cycles, and what is made of other schedules.
`ReduceOnPlateau` alone changes: it is fed the cost, also by what is made of it.

Schedules of schedules may be 32 deep and 10,000 in all; one that stands in several places counts in
each of them. Those that go beyond are refused with a ValueError when they are made.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from math import cos, inf, isfinite, pi, sqrt
from numbers import Integral
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from schuss._hyperparameters import (
    Check,
    Rate,
    choice,
    count,
    extended,
    flag,
    number,
    rate,
    real,
    shown,
)

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

_Check: TypeAlias = Check[Any]
_Number: TypeAlias = float | np.integer[Any] | np.floating[Any]

_from_one: _Check = partial(count, least=1)
_from_zero: _Check = partial(count, least=0)


class Schedule(ABC):
    """What all schedules share. A class of your own need only define `formula`.

    Parameters
    ----------
    t : number or array of numbers, in a call
        The step or the epoch, counted from 1; it need not be whole. An array may have any shape.

    Returns
    -------
    float or array of float64
        Of a call: the rate at `t`, or the rates in the shape of `t`, each with the same bits as if
        it was asked for alone.

    Raises
    ------
    TypeError
        If `t` is no number and no array of them; if the formula gives no number.
    ValueError
        If `t` is below 1 or not finite, or the rate is beyond floating point.

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
        """Say what the rate is.

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
                    f"{self._name}: rate at t={t!r} is beyond floating point, expected a number"
                ) from None
            # Any callable may lie inside, and may return whatever it likes.
            return value if type(value) is float else real(self._name, f"rate at t={t!r}", value)
        return self._at_any(t)

    def per_epoch(self, steps: int) -> "PerEpoch":
        """Return this schedule by epoch as one by step.

        Parameters
        ----------
        steps : int
            Steps an epoch, at least 1: ``len(minibatches(...))``.

        Returns
        -------
        PerEpoch
            A schedule by step.

        Raises
        ------
        TypeError, ValueError
            If `steps` is no integer, or less than 1.
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
                array = np.asarray(None)  # ragged: refused below like other objects
            if array.dtype.kind not in "iuf":
                was = f"{type(t).__name__} of {array.dtype}"
                raise TypeError(f"{self._name}: t is a {was}, expected numbers")
            rates = [self(each) for each in array.ravel().tolist()]
            return np.array(rates, np.float64).reshape(array.shape)
        checked = number(self._name, "t", t)
        return self(int(t) if isinstance(t, Integral) else checked)

    def _check(self, **checks: _Check) -> None:
        """Put each of these fields through its check; the dataclass is frozen for all others."""
        for name, check in checks.items():
            object.__setattr__(self, name, check(self._name, name, getattr(self, name)))


def _at(schedule: Rate, t: float) -> float:
    return schedule(t) if callable(schedule) else schedule  # type: ignore[arg-type]


def _way(t: float, steps: int) -> tuple[float, float]:
    """Return the shares of the way to go and gone: 1 and 0 at t = 1, 0 and 1 after `steps`."""
    gone = min(t - 1, steps)
    return (steps - gone) / steps, gone / steps


def _wave(gone: float) -> tuple[float, float]:
    """Return the same for a way that begins and ends slowly, as half a cosine wave does."""
    rest = (1 + cos(pi * gone)) / 2
    return rest, 1 - rest


def _between(start: float, end: float, rest: float, gone: float) -> float:
    """Return where one is then: exactly `start` at first, and exactly `end` at last."""
    return start * rest + end * gone


# Decay with t itself.


@dataclass(frozen=True, slots=True)
class InverseTime(Schedule):
    """Inverse time decay, ``lr / (1 + rate*t)``.

    Parameters
    ----------
    lr : float
        The rate to decay from, at least 0; it would be that of t = 0.
    rate : float
        How fast it decays, at least 0: it is halved at ``t = 1/rate``.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number, or out of range.

    References
    ----------
    Robbins & Monro, "A stochastic approximation method", 1951, for decay as 1/t; Bengio, "Practical
    recommendations for gradient-based training of deep architectures", 2012, section 3.1.1.

    Examples
    --------
    >>> InverseTime(0.2)([1, 2, 3, 4]).round(4)
    array([0.1   , 0.0667, 0.05  , 0.04  ])
    """

    lr: float
    rate: float = 1.0

    def __post_init__(self) -> None:
        self._check(lr=number, rate=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.lr / (1 + self.rate * t)


@dataclass(frozen=True, slots=True)
class Exponential(Schedule):
    """Exponential decay, ``base**t * lr``.

    Parameters
    ----------
    lr : float
        The rate to decay from, at least 0; it would be that of t = 0.
    base : float
        What is left of the rate after each step, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number, or out of range.

    References
    ----------
    Senior, Heigold, Ranzato & Yang, "An empirical study of learning rates in deep neural networks
    for speech recognition", 2013 ("exponential scheduling").

    Examples
    --------
    >>> round(Exponential(1.0)(10), 4)
    0.5987
    """

    lr: float
    base: float = 0.95

    def __post_init__(self) -> None:
        self._check(lr=number, base=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        power: float = self.base**t
        return power * self.lr


@dataclass(frozen=True, slots=True)
class InverseSqrt(Schedule):
    """Decay with the square root, ``k / sqrt(t) * lr``.

    Parameters
    ----------
    lr : float
        The rate that is scaled, at least 0.
    k : float
        What it is scaled by at t = 1, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number, or out of range.

    References
    ----------
    Zinkevich, "Online convex programming and generalized infinitesimal gradient ascent", 2003,
    theorem 1.

    Examples
    --------
    >>> InverseSqrt(0.2)([1, 4])
    array([0.2, 0.1])
    """

    lr: float
    k: float = 1.0

    def __post_init__(self) -> None:
        self._check(lr=number, k=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.k / sqrt(t) * self.lr


@dataclass(frozen=True, slots=True)
class Staircase(Schedule):
    """Decay by stairs, ``lr * factor**((t-1) // every)``: the first `every` steps are at `lr`.

    Parameters
    ----------
    lr : float
        The rate of the first stair, at least 0.
    every : int
        Steps (or epochs) a stair, at least 1.
    factor : float
        From each stair to the next, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

    References
    ----------
    Szegedy et al., "Going deeper with convolutions", 2015, section 6: 4 % less every 8 epochs.

    Examples
    --------
    >>> Staircase(0.8, every=2)(range(1, 7))
    array([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    """

    lr: float
    every: int
    factor: float = 0.5

    def __post_init__(self) -> None:
        self._check(lr=number, every=_from_one, factor=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        power: float = self.factor ** ((t - 1) // self.every)
        return self.lr * power


@dataclass(frozen=True, slots=True)
class Manual(Schedule):
    """Rates chosen by hand: each holds from its t on, until the next one.

    Parameters
    ----------
    values : mapping of t to rate, or pairs (t, rate) in any order
        Steps (or epochs) at least 1, the first of them 1, and rates at least 0. Kept as a tuple of
        pairs, sorted.

    Raises
    ------
    TypeError, ValueError
        If `values` are no pairs of numbers, name a t twice, or begin later than 1.

    References
    ----------
    Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
    networks", 2012, section 5, adjusted the rate by hand.

    Examples
    --------
    >>> Manual({1: 0.1, 10: 0.01})([1, 9, 10, 11])
    array([0.1 , 0.1 , 0.01, 0.01])
    """

    values: Mapping[int, float] | Mapping[float, float] | Iterable[tuple[float, float]]

    def __post_init__(self) -> None:
        self._check(values=_by_hand)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        values: Any = self.values
        result: float = values[bisect_right(values, (t, inf)) - 1][1]
        return result


def _by_hand(call: str, name: str, values: Any) -> tuple[tuple[float, float], ...]:
    expected = "expected a mapping of t to rate, or pairs of both"
    try:
        pairs = [(t, lr) for t, lr in (values.items() if isinstance(values, Mapping) else values)]
    except (TypeError, ValueError):
        raise TypeError(f"{call}: {name} is {shown(values)}, {expected}") from None
    chosen: dict[float, float] = {}
    for t, lr in pairs:
        place = number(call, f"a t of {name}", t, kind="t")
        place = int(t) if isinstance(t, Integral) else place
        if place in chosen:
            raise ValueError(f"{call}: {name} has t = {place!r} twice, expected each once")
        chosen[place] = number(call, f"{name}[{place!r}]", lr, kind="lr")
    if 1 not in chosen:
        first = f"begins at {min(chosen)!r}" if chosen else "is empty"
        raise ValueError(f"{call}: {name} {first}, expected a rate for t = 1")
    return tuple(sorted(chosen.items()))


# A rate that stays, ramps and cycles.


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same rate at all times.

    Parameters
    ----------
    lr : float
        The rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or out of range.

    References
    ----------
    Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012,
    section 3.1.1.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    lr: float

    def __post_init__(self) -> None:
        self._check(lr=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return self.lr


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """A straight line from `start` at t = 1 to `end` at t = steps + 1, and `end` from there on.

    Parameters
    ----------
    start, end : float
        The first and the last rate, at least 0; either may be the larger one.
    steps : int
        Steps (or epochs) on the way, at least 1.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, eq. 8.14.

    Examples
    --------
    >>> Linear(1.0, 0.5, steps=2)([1, 2, 3, 4])
    array([1.  , 0.75, 0.5 , 0.5 ])
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        self._check(start=number, end=number, steps=_from_one)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _between(self.start, self.end, *_way(t, self.steps))


@dataclass(frozen=True, slots=True)
class Polynomial(Schedule):
    """A power of the rest of the way, ``end + (start-end) * (1 - (t-1)/steps)**power``.

    Parameters
    ----------
    start, end : float
        The first and the last rate, at least 0; either may be the larger one.
    steps : int
        Steps (or epochs) on the way, at least 1.
    power : float
        Above 0; 1 is `Linear`, and more is faster at first.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

    References
    ----------
    Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: semantic image segmentation with deep
    convolutional nets, atrous convolution, and fully connected CRFs", 2018, section 4.1 ("poly").

    Examples
    --------
    >>> Polynomial(1.0, 0.0, steps=2, power=2.0)([1, 2, 3, 4])
    array([1.  , 0.25, 0.  , 0.  ])
    """

    start: float
    end: float
    steps: int
    power: float = 1.0

    def __post_init__(self) -> None:
        self._check(start=number, end=number, steps=_from_one, power=number)
        if self.power == 0:
            raise ValueError(f"{self._name}: power is 0.0, expected a finite number > 0")

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        rest: float = _way(t, self.steps)[0] ** self.power
        return _between(self.start, self.end, rest, 1 - rest)


@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """Half a cosine wave, ``end + (start-end) * (1 + cos(pi*(t-1)/steps)) / 2``.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    steps : int
        Steps (or epochs) on the way, at least 1.
    end : float
        The last rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

    References
    ----------
    Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5.

    Examples
    --------
    >>> Cosine(1.0, steps=2)([1, 2, 3, 4])
    array([1. , 0.5, 0. , 0. ])
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check(start=number, steps=_from_one, end=number)

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _between(self.start, self.end, *_wave(_way(t, self.steps)[1]))


@dataclass(frozen=True, slots=True)
class CosineRestarts(Schedule):
    """`Cosine` again and again, each cycle longer by a factor and, if asked for, lower.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    steps : int
        Steps (or epochs) of the first cycle, at least 1.
    end : float
        The rate that each cycle falls to, at least 0; it would be that of the step at which the
        next one starts again.
    factor : int
        How many times longer each cycle is than the one before, at least 1.
    decay : float
        How many times higher above `end` each cycle starts than the one before, at least 0; at most
        1 where `start` is below `end`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

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

    start: float
    steps: int
    end: float = 0.0
    factor: int = 1
    decay: float = 1.0

    def __post_init__(self) -> None:
        self._check(start=number, steps=_from_one, end=number, factor=_from_one, decay=number)
        if self.decay > 1 and self.start < self.end:  # each cycle would start lower: below zero
            raise ValueError(
                f"{self._name}: decay is {self.decay!r} where start is below end, expected at most "
                "1.0"
            )

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        gone, steps = t - 1, self.steps
        cycle: float = 0
        if self.factor == 1:
            cycle, gone = divmod(gone, steps)
        else:
            while gone >= steps:
                cycle, gone, steps = cycle + 1, gone - steps, steps * self.factor
        scale: float = self.decay**cycle
        peak = _between(self.start, self.end, scale, 1 - scale)
        return _between(peak, self.end, *_wave(gone / steps))


@dataclass(frozen=True, slots=True)
class OneCycle(Schedule):
    """One cycle for the whole training: up to `peak`, then down to almost nothing.

    It starts at ``peak/start_divisor`` and is at ``peak/start_divisor/end_divisor`` in the last of
    its `steps` and after.

    Parameters
    ----------
    peak : float
        The largest rate, at least 0.
    steps : int
        Steps (or epochs) of the cycle, at least 1.
    rise : float
        The share of the steps in which the rate rises, in [0, 1); if it is less than one step, the
        first rate is already on the way down.
    start_divisor, end_divisor : float
        From the peak to the first rate, and from the first to the last; at least 1.
    anneal : str
        ``'cos'`` (half a cosine wave) or ``'linear'``.
    three_phase : bool
        Fall to the first rate as fast as it rose, then to the last one.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

    References
    ----------
    Smith & Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018, section 3; phases and defaults are those of PyTorch's OneCycleLR.

    Examples
    --------
    >>> OneCycle(1.0, steps=10)([1, 3, 10]).round(6)
    array([4.e-02, 1.e+00, 4.e-06])
    """

    peak: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4
    anneal: str = "cos"
    three_phase: bool = False

    def __post_init__(self) -> None:
        self._check(
            peak=number,
            steps=_from_one,
            rise=number,
            start_divisor=number,
            end_divisor=number,
            anneal=partial(choice, among=("cos", "linear")),
            three_phase=flag,
        )
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
        gone = (step - begin) / (end - begin) if end > begin else 1.0
        return _between(first, last, *(_wave(gone) if self.anneal == "cos" else (1 - gone, gone)))


# Schedules of schedules. One that stands in several places counts in each of them: bounds on the
# depth and on the count keep every walk over schedules short, also where they are shared.

_DEEPEST, _MOST_SCHEDULES = 32, 10_000


class _Composite(Schedule):
    """A schedule made of others: what it is told of the cost it passes on to them."""

    __slots__ = ()

    def _check_nesting(self) -> None:
        """Raise ValueError if schedules are nested too deep, or too many."""
        level: list[Any] = [self]
        depth = count = 0
        while level:
            depth, count = depth + 1, count + len(level)
            if depth > _DEEPEST or count > _MOST_SCHEDULES:
                raise ValueError(
                    f"{self._name}: schedules are nested more than {_DEEPEST} deep, or more than "
                    f"{_MOST_SCHEDULES:,} in all, expected fewer"
                )
            inner = (
                rate
                for schedule in level
                if isinstance(schedule, _Composite)
                for rate in schedule._inner()
                if callable(rate)
            )
            level = list(islice(inner, _MOST_SCHEDULES + 1))

    @abstractmethod
    def _inner(self) -> Iterable[Rate]:
        """Return what it is made of."""

    def update(self, cost: float) -> None:
        """Pass a cost on to all the schedules inside that are fed one, at work or not.

        Parameters
        ----------
        cost : float
            As `ReduceOnPlateau.update` takes it.

        Raises
        ------
        TypeError
            If it is no number and a schedule inside is fed.
        """
        feed(self._inner(), cost)


def feed(schedules: Iterable[object], cost: float) -> None:
    """Tell the cost to each schedule with a method ``update(cost)``, and to those inside, once."""
    for schedule in _fed(schedules):
        schedule.update(cost)


def _fed(schedules: Iterable[object]) -> list[Any]:
    """Return what is to be told the cost: each object once, however many share it."""
    found: list[Any] = []
    met: set[int] = set()
    waiting = list(schedules)[::-1]
    while waiting:
        schedule: Any = waiting.pop()
        update = getattr(schedule, "update", None)
        if id(schedule) in met or not (callable(schedule) and callable(update)):
            continue
        met.add(id(schedule))
        if getattr(update, "__func__", None) is _Composite.update:
            waiting += [*schedule._inner()][::-1]
        else:  # a class of the user's may have an update of its own
            found.append(schedule)
    return found


@dataclass(frozen=True, slots=True)
class WarmUp(_Composite):
    """A straight line up to another schedule, which then begins with its own t = 1.

    Parameters
    ----------
    after : float or callable
        What comes after: a number, or a schedule.
    steps : int
        Steps (or epochs) before `after` begins, at least 1: at t = steps + 1 the rate is
        ``after(1)``.
    start : float
        The first rate, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

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

    after: Rate
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        self._check(after=rate, steps=_from_one, start=number)
        self._check_nesting()

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        if t - 1 < self.steps:
            return _between(self.start, _at(self.after, 1), *_way(t, self.steps))
        return _at(self.after, t - self.steps)

    def _inner(self) -> Iterable[Rate]:
        return (self.after,)


@dataclass(frozen=True, slots=True)
class Chain(_Composite):
    """One schedule after the other, each from its own t = 1. Also made by `chain`.

    Parameters
    ----------
    schedules : sequence of float or callable
        At least one; numbers and schedules. Kept as a tuple.
    boundaries : sequence of int
        After how many steps in all each schedule but the last hands over to the next: with a
        boundary of 100, step 100 is the last of the one and step 101 is t = 1 of the other.
        Increasing, from 1. Kept as a tuple.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type; if the boundaries are not one fewer than the schedules,
        or do not increase.

    References
    ----------
    The boundaries are those of optax's join_schedules and the milestones of PyTorch's SequentialLR.

    Examples
    --------
    >>> Chain([Linear(0.1, 0.3, steps=2), 0.2, InverseSqrt(0.2)], [2, 3])(range(1, 8))
    array([0.1       , 0.2       , 0.2       , 0.2       , 0.14142136,
           0.11547005, 0.1       ])
    """

    schedules: Sequence[Rate]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        self._check(schedules=_rates, boundaries=_increasing)
        given, expected = len(self.boundaries), len(self.schedules) - 1
        if given != expected:
            raise ValueError(
                f"{self._name}: boundaries has {given} entries, expected {expected} "
                f"(one fewer than schedules)"
            )
        self._check_nesting()

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        place = bisect_right(self.boundaries, t - 1)
        return _at(self.schedules[place], t - self.boundaries[place - 1] if place else t)

    def _inner(self) -> Iterable[Rate]:
        return self.schedules


def chain(schedules: Iterable[Rate], boundaries: Iterable[int]) -> Chain:
    """Return one schedule after the other, each from its own t = 1.

    Parameters
    ----------
    schedules : iterable of float or callable
        At least one; numbers and schedules.
    boundaries : iterable of int
        After how many steps in all each schedule but the last hands over to the next: with a
        boundary of 100, step 100 is the last of the one and step 101 is t = 1 of the other.

    Returns
    -------
    Chain
        The schedule of them all.

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
    return Chain(schedules, boundaries)  # type: ignore[arg-type]  # it makes tuples of any


def _entries(call: str, name: str, values: Any, check: _Check) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{call}: {name} is a {type(values).__name__}, expected a sequence")
    return tuple(check(call, f"{name}[{i}]", value) for i, value in enumerate(values))


def _rates(call: str, name: str, values: Any) -> tuple[Rate, ...]:
    rates = _entries(call, name, values, rate)
    if not rates:
        raise ValueError(f"{call}: {name} is empty, expected at least one")
    return rates


def _increasing(call: str, name: str, values: Any) -> tuple[int, ...]:
    entries = _entries(call, name, values, _from_one)
    if any(after <= before for before, after in pairwise(entries)):
        raise ValueError(f"{call}: {name} is {shown(entries)}, expected increasing integers")
    return entries


@dataclass(frozen=True, slots=True)
class PerEpoch(_Composite):
    """A schedule by epoch as one by step: ``schedule((t-1) // steps + 1)``.

    Also made by `Schedule.per_epoch`.

    Parameters
    ----------
    schedule : float or callable
        The rate of each epoch, counted from 1; a callable gets an int.
    steps : int
        Steps an epoch, at least 1: ``len(minibatches(...))``.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

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

    schedule: Rate
    steps: int

    def __post_init__(self) -> None:
        self._check(schedule=rate, steps=_from_one)
        self._check_nesting()

    def formula(self, t: float) -> float:
        """Return the rate at `t`."""
        return _at(self.schedule, int((t - 1) // self.steps) + 1)

    def _inner(self) -> Iterable[Rate]:
        return (self.schedule,)


# What is fed the cost.


@dataclass(slots=True, repr=False)
class ReduceOnPlateau(Schedule):
    """A rate that is multiplied by a factor whenever the cost has not improved for a while.

    Give it the cost with `update`, once an epoch as a rule; t does not matter to it. Its `lr` is
    the present rate, for all t. Each attribute may be set at any time, and is checked then. An
    optimizer that was loaded or unpickled holds one of its own: ``optimizer.lr.update(cost)``.

    Parameters
    ----------
    lr : float
        The rate to begin with, at least 0.
    factor : float
        What the rate is multiplied by, in [0, 1).
    patience : int
        Updates in a row without improvement that are let pass, at least 0; the next one reduces.
    mode : str
        ``'min'`` if less is better (a cost), ``'max'`` if more is (an accuracy). Setting the other
        one forgets the best.
    threshold : float
        What counts as an improvement, at least 0: better than the best by more than this. The first
        finite cost always does.
    threshold_mode : str
        Whether the threshold is a share of the best (``'rel'``) or absolute (``'abs'``). With costs
        below 0, ``'rel'`` takes slightly worse ones for improvements, as in PyTorch: use ``'abs'``.
    cooldown : int
        Updates after a reduction in which nothing is counted, at least 0.
    min_lr : float
        The rate is not reduced below, at least 0.
    eps : float
        A reduction by no more than this is left out, at least 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of a wrong type, or out of range.

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

    lr: float
    factor: float = 0.1
    patience: int = 10
    mode: str = "min"
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    best: float = field(init=False)  # so far
    waited: int = field(init=False, default=0)  # updates since, outside of cooldown
    cooling: int = field(init=False, default=0)  # updates left of a cooldown

    def __setattr__(self, name: str, value: Any) -> None:
        """Check what is set, by `__init__` and by the user alike."""
        check = _PLATEAU.get(name)
        value = check(self._name, name, value) if check else value
        if name == "mode" and value != getattr(self, name, None):
            self.best = inf if value == "min" else -inf
        object.__setattr__(self, name, value)

    def formula(self, t: float) -> float:
        """Return the present rate."""
        return self.lr

    def update(self, cost: float) -> None:
        """Take in a cost, and reduce the rate if there has been no improvement for too long.

        Parameters
        ----------
        cost : float
            What is to fall (or to rise); NaN is no improvement.

        Raises
        ------
        TypeError
            If it is no number; nothing is changed then.
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
        sign, bar = -1 if self.mode == "min" else 1, self.best
        if isfinite(bar):  # there is one
            by = sign * self.threshold
            bar = bar * (1 + by) if self.threshold_mode == "rel" else bar + by
        return cost < bar if self.mode == "min" else cost > bar

    def __repr__(self) -> str:
        """Return the settings with the present rate, and what it has seen."""
        *settings, best, waited, cooling = (f"{name}={getattr(self, name)!r}" for name in _PLATEAU)
        return f"<{self._name}({', '.join(settings)}): {best}, {waited}, {cooling}>"


_PLATEAU: dict[str, _Check] = {
    "lr": number,
    "factor": partial(number, kind="shrink"),
    "patience": _from_zero,
    "mode": partial(choice, among=("min", "max")),
    "threshold": number,
    "threshold_mode": partial(choice, among=("rel", "abs")),
    "cooldown": _from_zero,
    "min_lr": number,
    "eps": number,
    "best": extended,
    "waited": _from_zero,
    "cooling": _from_zero,
}
