"""The scale of a loss, for gradients in float16."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from schuss._arrays import Array, ArrayTree
from schuss._hyperparameters import count, number, record
from schuss._internals import internals_of
from schuss.optimizers import Optimizer

__all__ = ["DynamicLossScale"]

_T = TypeVar("_T")

with_l2_of_fit: WeakValueDictionary[int, Array] = WeakValueDictionary()
"""Gradients to which `fit` has added an L2 cost that is not scaled, by their ids."""

_LEAST, _MOST = 2.0**-126, 2.0**126


def _checked(call: str, name: str, value: object) -> float:
    scale = number(call, name, value, kind="init_scale")
    if not _LEAST <= scale <= _MOST:
        raise ValueError(f"{call}: {name} is {scale!r}, expected a number in [2**-126, 2**126]")
    return scale


_STATE = record(
    scale=_checked,
    growth_factor=partial(number, kind="growth_factor"),
    backoff_factor=partial(number, kind="backoff_factor"),
    growth_interval=partial(count, least=1),
    good_steps=partial(count, least=0),
)


class DynamicLossScale:
    """The largest scale of a loss with which gradients do not overflow, found as training goes.

    Small gradients vanish in float16, so the loss is multiplied by a scale before its gradients are
    computed, and the step undoes that as it reads them. A step that finds a NaN or an infinity is
    skipped, and the scale shrinks; after so many steps without one it grows. Used like PyTorch's
    ``GradScaler``.

    Parameters
    ----------
    init_scale : float
        The scale to begin with. Like all that follow, it is between 2**-126 and 2**126, so that
        float32 can hold it, and one over it.
    growth_factor : float
        What the scale is multiplied by when it grows; above 1.
    backoff_factor : float
        What it is multiplied by after a step that was skipped; in (0, 1).
    growth_interval : int
        After so many steps that were not skipped it grows; at least 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of range.

    References
    ----------
    Micikevicius et al., "Mixed precision training", 2018, section 3.2.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.ones(2, np.float32)
    >>> opt, scaler = schuss.SGD(w, lr=0.5), schuss.DynamicLossScale(init_scale=1024.0)
    >>> for gradient in ([1.0, 0.5], [100.0, 0.5]):
    ...     with np.errstate(over="ignore"):
    ...         scaled = scaler.scale(np.array(gradient)).astype(np.float16)
    ...     _ = scaler.step(opt, scaled)
    ...     scaler.update()
    >>> w, scaler.value
    (array([0.5 , 0.75], dtype=float32), 512.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        call = type(self).__name__
        self._value = _checked(call, "init_scale", init_scale)
        self._growth_factor = number(call, "growth_factor", growth_factor)
        self._backoff_factor = number(call, "backoff_factor", backoff_factor)
        self._growth_interval = count(call, "growth_interval", growth_interval, least=1)
        self._good_steps = 0
        self._found_nonfinite: bool | None = None  # since the last update; None: no step was made

    @property
    def value(self) -> float:
        """The scale in use."""
        return self._value

    def scale(self, loss: _T) -> _T:
        """Multiply a loss by the scale.

        Parameters
        ----------
        loss : float, or whatever can be multiplied by one
            The loss, or its gradients, an array of any shape.

        Returns
        -------
        float, or what the product is
            ``loss * value``.

        Raises
        ------
        TypeError
            If it cannot be multiplied by a float.
        """
        scaled: Any = loss
        return scaled * self._value  # type: ignore[no-any-return]

    def step(self, optimizer: Optimizer, grads: ArrayTree | None = None) -> bool:
        """Make a step with gradients of the scaled loss, unless one of them is not finite.

        Parameters
        ----------
        optimizer : Optimizer
            Whatever its `nonfinite` is, the step is skipped and counted in its `skipped`.
        grads : array, or sequence or mapping of arrays, optional
            In the structure of the parameters, shapes and dtypes as for the optimizer's `step`.
            They are divided by the scale as they are read.

        Returns
        -------
        bool
            Whether the step was made.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As the optimizer's `step`; nothing is changed then. ValueError too if `fit` has added an
            L2 cost to the gradients: it would be divided by the scale.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}.step: optimizer is a {type(optimizer).__name__}, "
                "expected an optimizer of schuss"
            )
        if grads is not None:
            self._refuse_l2_of_fit(optimizer, grads)
        internals_of(optimizer).step(grads, 1 / self._value, skip_nonfinite=True)
        last = optimizer.last
        skipped = last is not None and last.skipped
        self._found_nonfinite = bool(self._found_nonfinite) or skipped
        return not skipped

    def _refuse_l2_of_fit(self, optimizer: Optimizer, grads: ArrayTree) -> None:
        if not with_l2_of_fit or self._value == 1:
            return
        call = f"{type(optimizer).__name__}.step"
        for array in internals_of(optimizer).plan.leaves(grads, call, "grads"):
            if with_l2_of_fit.get(id(array)) is array:
                raise ValueError(
                    f"{type(self).__name__}.step: grads have the l2 of fit, which is not scaled, "
                    "expected schuss.with_l2(loss_and_grad, l2, loss_scale=scaler) in fit, and no "
                    "l2"
                )

    def update(self) -> None:
        """Adapt the scale to what came of the steps since the last update.

        Raises
        ------
        RuntimeError
            If there was no step.
        """
        if self._found_nonfinite is None:
            raise RuntimeError(f"{type(self).__name__}.update: there was no step, expected one")
        if self._found_nonfinite:
            self._value = max(self._value * self._backoff_factor, _LEAST)
            self._good_steps = 0
        else:
            self._good_steps += 1
            if self._good_steps >= self._growth_interval:
                self._value = min(self._value * self._growth_factor, _MOST)
                self._good_steps = 0
        self._found_nonfinite = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that is to be saved.

        Returns
        -------
        dict
            The scale, the settings, and the number of steps since it changed.
        """
        return {
            "scale": self._value,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "good_steps": self._good_steps,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            With all that it has.

        Raises
        ------
        TypeError, ValueError
            If it is not such a dict, or a value is out of range; nothing is changed then.
        """
        call = f"{type(self).__name__}.load_state_dict"
        known = _STATE(call, "state_dict", state_dict)
        self._value, self._growth_factor = known["scale"], known["growth_factor"]
        self._backoff_factor = known["backoff_factor"]
        self._growth_interval, self._good_steps = known["growth_interval"], known["good_steps"]

    def __repr__(self) -> str:
        """Return the scale and how it changes."""
        return (
            f"<{type(self).__name__}({self._value!r}, growth_factor={self._growth_factor!r}, "
            f"backoff_factor={self._backoff_factor!r}, growth_interval={self._growth_interval!r})>"
        )
