"""The scale of a loss, for gradients in float16."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from schuss._arrays import Array, ArrayTree
from schuss._hyperparameters import ABOVE_ONE, FINITE, OPEN_UNIT, POSITIVE, Check, count, record
from schuss._internals import internals_of
from schuss._listing import public_names
from schuss.optimizers import Optimizer

__all__ = ["DynamicLossScale"]

__dir__ = public_names(__name__)

_T = TypeVar("_T")

with_l2_of_fit: WeakValueDictionary[int, Array] = WeakValueDictionary()
"""Gradients to which `fit` has added an unscaled L2 cost, by id."""

_SMALLEST, _LARGEST = 2.0**-126, 2.0**126


def checked_scale(call: str, name: str, value: object) -> float:
    """Return a scale that float32 can hold with its reciprocal, or raise."""
    scale = POSITIVE(call, name, value)
    if not _SMALLEST <= scale <= _LARGEST:
        raise ValueError(f"{call}: {name} is {scale!r}, expected a number in [2**-126, 2**126]")
    return scale


_interval: Check[int] = partial(count, least=1)

checked_state = record(
    scale=checked_scale,
    growth_factor=ABOVE_ONE,
    backoff_factor=OPEN_UNIT,
    growth_interval=_interval,
    good_steps=partial(count, least=0),
)


class DynamicLossScale:
    """The largest scale of a loss with which gradients do not overflow, adapted while training.

    Small gradients underflow in float16. So the loss is multiplied by a scale before its gradients
    are computed, and the step divides them by the scale as it reads them. A step that finds a NaN
    or an infinity is skipped, and the scale shrinks; after `growth_interval` steps without one it
    grows. Use it like ``GradScaler`` of PyTorch.

    Parameters
    ----------
    init_scale : float
        The initial scale. Each scale is between 2**-126 and 2**126, so that float32 can represent
        it and its reciprocal.
    growth_factor : float
        The factor by which the scale grows; above 1.
    backoff_factor : float
        The factor by which the scale shrinks after a skipped step; in (0, 1).
    growth_interval : int
        The number of steps without a skipped one after which the scale grows; at least 1.

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
        self._state: dict[str, Any] = {
            "scale": checked_scale(call, "init_scale", init_scale),
            "growth_factor": ABOVE_ONE(call, "growth_factor", growth_factor),
            "backoff_factor": OPEN_UNIT(call, "backoff_factor", backoff_factor),
            "growth_interval": _interval(call, "growth_interval", growth_interval),
            "good_steps": 0,
        }
        self._found_nonfinite: bool | None = None  # since the last update; None: without a step

    @property
    def value(self) -> float:
        """The scale in use."""
        scale: float = self._state["scale"]
        return scale

    def scale(self, loss: _T) -> _T:
        """Multiply a loss by the scale.

        Parameters
        ----------
        loss : float, or object that can be multiplied by a float
            The loss, or its gradients, an array of any shape.

        Returns
        -------
        float, or object
            The product ``loss * value``.

        Raises
        ------
        TypeError
            If it cannot be multiplied by a float.
        """
        scaled: Any = loss
        return scaled * self.value  # type: ignore[no-any-return]

    def step(
        self,
        optimizer: Optimizer,
        grads: ArrayTree | None = None,
        *,
        scale: float = 1.0,
        weight: float | None = None,
    ) -> bool:
        """Make a step with gradients of the scaled loss, unless one of them is not finite.

        Parameters
        ----------
        optimizer : Optimizer
            The optimizer. It skips such a step and counts it in `skipped`, also if its `nonfinite`
            is another option.
        grads : array, or sequence or mapping of arrays, optional
            In the structure of the parameters, with shapes and dtypes as for `step` of the
            optimizer. They are divided by the scale as they are read. By default, the gradients
            that the optimizer has accumulated.
        scale : float
            Another factor of the gradients, such as ``1 / optimizer.accumulated``.
        weight : float, optional
            The weight of this rank's gradients, if the optimizer is sharded (`schuss.mpi.Sharded`).

        Returns
        -------
        bool
            Whether the step was made.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `step` of the optimizer; nothing is changed then. TypeError also if `weight` is given
            and the optimizer is not sharded, ValueError if `fit` has added
            an L2 cost to the gradients: it would be divided by the scale.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}.step: optimizer is a {type(optimizer).__name__}, "
                "expected an optimizer of schuss"
            )
        if grads is not None:
            self._refuse_l2_of_fit(optimizer, grads)
        scale = FINITE(f"{type(self).__name__}.step", "scale", scale)
        of_rank = {} if weight is None else {"weight": weight}
        internals_of(optimizer).step(grads, scale / self.value, skip_nonfinite=True, **of_rank)
        last = optimizer.last
        skipped = last is not None and last.skipped
        self._found_nonfinite = bool(self._found_nonfinite) or skipped
        return not skipped

    def _refuse_l2_of_fit(self, optimizer: Optimizer, grads: ArrayTree) -> None:
        if not with_l2_of_fit or self.value == 1:
            return
        call = f"{type(optimizer).__name__}.step"
        for array in internals_of(optimizer).core.tree.flatten(grads, call, "grads"):
            if with_l2_of_fit.get(id(array)) is array:
                raise ValueError(
                    f"{type(self).__name__}.step: grads have the l2 of fit, which is not scaled, "
                    "expected fit(..., optimizer, loss_scale=scaler), which scales it"
                )

    def update(self) -> None:
        """Adapt the scale to the outcomes of the steps since the last update.

        Raises
        ------
        RuntimeError
            If there was no step.
        """
        if self._found_nonfinite is None:
            raise RuntimeError(
                f"{type(self).__name__}.update: there is no step since the last update, "
                "expected at least one"
            )
        state = dict(self._state)  # a new dict: copies of this object share the old one
        state["good_steps"] += 1
        if self._found_nonfinite:
            state["scale"] = max(self.value * state["backoff_factor"], _SMALLEST)
            state["good_steps"] = 0
        elif state["good_steps"] >= state["growth_interval"]:
            state["scale"] = min(self.value * state["growth_factor"], _LARGEST)
            state["good_steps"] = 0
        self._state = state
        self._found_nonfinite = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state to be saved.

        Returns
        -------
        dict
            The scale, the settings, and the number of steps since the scale changed.
        """
        return dict(self._state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            With all its keys.

        Raises
        ------
        TypeError, ValueError
            If it is not such a dict, or a value is out of range; nothing is changed then.
        """
        self._state = checked_state(
            f"{type(self).__name__}.load_state_dict", "state_dict", state_dict
        )

    def __repr__(self) -> str:
        """Return the scale and how it changes."""
        return f"<{type(self).__name__}({self.value!r}, {settings_text(self)})>"


def settings_text(scaler: DynamicLossScale) -> str:
    """Return how the scale changes, as a text."""
    state = scaler.state_dict()
    names = ("growth_factor", "backoff_factor", "growth_interval")
    return ", ".join(f"{name}={state[name]!r}" for name in names)
