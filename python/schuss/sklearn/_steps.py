"""The steps of scikit-learn's optimizers, in one pass over memory."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, ClassVar

import numpy as np

from schuss import _core
from schuss._arrays import Array, zeros_like_strided
from schuss._interrupts import raised_within


class UnsupportedError(Exception):
    """The arrays or the hyperparameters of a step are not supported; nothing has changed."""


class FusedStep(ABC):
    """The step of one optimizer of scikit-learn, for its parameters and hyperparameters.

    scikit-learn replaces the arrays of the state at each step; this step updates them in place.
    """

    _attributes: ClassVar[Mapping[str, str]]
    """For each state of the rule, the attribute of scikit-learn's optimizer."""

    def __init__(self, optimizer: Any, params: Sequence[Array], grads: Sequence[Array]) -> None:
        self._formula = rule, hyperparameters = self._formula_of(optimizer)
        before = {name: getattr(optimizer, own) for name, own in self._attributes.items()}
        self._stepped = [
            _in_dtype_of_update(*arrays)
            for arrays in zip(params, grads, *before.values(), strict=True)
        ]
        states = {
            name: [
                _copied(array, param, slot)
                for array, param in zip(arrays, self._stepped, strict=True)
            ]
            for slot, (name, arrays) in enumerate(before.items(), start=1)
        }
        formula = _core.Formula(rule, hyperparameters)
        options, arrays = _core.StepOptions(), _core.AuxArrays(states)
        try:
            self._core = _core.Optimizer(type(optimizer).__name__, self._stepped, "update_params")
            self._core.configure([formula], [0] * len(params), options, arrays)
        except (TypeError, ValueError) as error:
            raise _unless_within(error) from None
        for name, own in self._attributes.items():
            setattr(optimizer, own, states[name])
        self._arrays = self._arrays_of(optimizer, params)

    def fits(self, optimizer: Any, params: Sequence[Array], grads: Sequence[Array]) -> bool:
        """Return whether the arrays, dtypes and hyperparameters are the same as before."""
        arrays = self._arrays_of(optimizer, params)
        return (
            len(arrays) == len(self._arrays)
            and all(map(is_, arrays, self._arrays))
            and all(g.itemsize <= p.itemsize for g, p in zip(grads, self._stepped, strict=True))
            and self._formula_of(optimizer) == self._formula
        )

    def make(self, optimizer: Any, params: Sequence[Array], grads: Sequence[Array]) -> None:
        """Update the parameters, and the attributes of the optimizer."""
        pairs = [pair for pair in zip(self._stepped, params, strict=True) if pair[0] is not pair[1]]
        for stepped, param in pairs:
            np.copyto(stepped, param)
        grads = [g.astype(p.dtype, copy=False) for g, p in zip(grads, self._stepped, strict=True)]
        rate, before = self._rate_of(optimizer), self._core.steps
        try:
            self._core.step(grads, float(rate))
        except (TypeError, ValueError) as error:
            raise _unless_within(error) from None
        finally:  # Ctrl-C is raised after the step
            if self._core.steps != before:
                for stepped, param in pairs:
                    np.copyto(param, stepped, casting="same_kind")
                self._record(optimizer, rate)

    def _arrays_of(self, optimizer: Any, params: Sequence[Array]) -> list[Array]:
        states = (getattr(optimizer, own) for own in self._attributes.values())
        return [*params, *(array for arrays in states for array in arrays)]

    @abstractmethod
    def _formula_of(self, optimizer: Any) -> tuple[str, dict[str, float]]:
        """Return the rule and its hyperparameters, except for the learning rate."""

    @abstractmethod
    def _rate_of(self, optimizer: Any) -> Any:
        """Return the learning rate of the next step."""

    def _record(self, optimizer: Any, rate: Any) -> None:
        optimizer.learning_rate = rate


class AdamStep(FusedStep):
    """The step of `AdamOptimizer`.

    scikit-learn's learning rate contains the bias corrections, and its epsilon is added to the root
    of a second moment that is not corrected: the rule has no bias correction of its own.
    """

    _attributes: ClassVar = {"m": "ms", "v": "vs"}

    def _formula_of(self, optimizer: Any) -> tuple[str, dict[str, float]]:
        return "adam", {
            "beta1": float(optimizer.beta_1),
            "beta2": float(optimizer.beta_2),
            "eps": float(optimizer.epsilon),
            "eps_root": 0.0,
            "eps_hat": 0.0,
            "bias_correction": False,
        }

    def _rate_of(self, optimizer: Any) -> Any:
        t, beta_1, beta_2 = optimizer.t + 1, optimizer.beta_1, optimizer.beta_2
        return optimizer.learning_rate_init * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)

    def _record(self, optimizer: Any, rate: Any) -> None:
        optimizer.t += 1
        super()._record(optimizer, rate)


class SGDStep(FusedStep):
    """The step of `SGDOptimizer`, whose velocity contains the learning rate, with a minus sign."""

    _attributes: ClassVar = {"velocity": "velocities"}

    def _formula_of(self, optimizer: Any) -> tuple[str, dict[str, float]]:
        return "momentum_nesterov" if optimizer.nesterov else "momentum", {
            "beta": float(optimizer.momentum),
            "dampening": 0.0,
            "bias_correction": False,
            "lr_in_velocity": -1.0,
        }

    def _rate_of(self, optimizer: Any) -> Any:
        return optimizer.learning_rate


def _in_dtype_of_update(param: Array, grad: Array, *states: Array) -> Array:
    """Return a parameter, or a copy in the dtype in which scikit-learn computes its update.

    With float64 targets or weights of examples, the gradients and the state of a float32 model are
    float64.
    """
    return param.astype(np.result_type(param, grad, *states), copy=False)


def _copied(state: Array, param: Array, slot: int) -> Array:
    """Return a copy of a state, in the dtype of its parameter."""
    if state.shape != param.shape:
        raise UnsupportedError
    copy = zeros_like_strided(param, slot)
    np.copyto(copy, state)
    return copy


def _unless_within(error: TypeError | ValueError) -> Exception:
    """Return an error of a signal handler as it is, and `UnsupportedError` for one of the core."""
    return error if raised_within(error) else UnsupportedError()
