"""The options that all optimizers share."""

from dataclasses import InitVar
from functools import partial
from typing import Any, Literal, Self, cast, overload

import numpy.typing as npt

from schuss._arrays import ArrayTree
from schuss._groups import GroupOf, Params
from schuss._hyperparameters import (
    NON_NEGATIVE,
    UNIT,
    Check,
    Rate,
    choice,
    count,
    flag,
    optional,
    rate,
)
from schuss._internals import internals_of
from schuss._settings import Configurable, Setting, argument, declared, hyperparameter, option

_Nonfinite = Literal["propagate", "raise", "skip"]
_nonfinite = cast(Check[_Nonfinite], partial(choice, among=("propagate", "raise", "skip")))


class _Average(Setting[float | None]):
    """An option that is the decay rate when it is assigned, and the averages when it is read."""

    @overload
    def __get__(self, optimizer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, optimizer: Configurable, owner: type) -> Any: ...
    def __get__(self, optimizer: Configurable | None, owner: type) -> Any:
        return self if optimizer is None else internals_of(optimizer).average()


@declared
class Options(Configurable):
    """What all optimizers share. Use one of `SGD`, `Momentum`, `RMSprop`, `Adam` and `AdamW`.

    These options are keyword arguments of each. All but the last three are attributes too, which
    can be assigned between steps.

    Parameters
    ----------
    clip_norm : float, optional
        The largest norm of all gradients together: if it is larger, all are multiplied by
        ``clip_norm / (norm + 1e-6)``. At least 0.
    clip_value : float, optional
        The largest magnitude of an element of a gradient, after that; at least 0.
    nonfinite : {"propagate", "raise", "skip"}
        What becomes of a step with a gradient that has a NaN or an infinity: it is made; it raises
        FloatingPointError, and nothing is changed; it is not made, and counted in `skipped`. What
        counts are the gradients as they are given, before they are scaled.
    clear_grads : bool
        Set the gradients to zero in the same pass, also those of a step that is skipped.
    average : float, optional
        Keep an exponential average of the parameters, ``a = a + (1-average)*(p - a)`` after each
        step, in the same pass; in [0, 1). The attribute `average` gives the averages, in the
        structure of the parameters and in float32 or float64. They begin with what the first step
        makes of the parameters, as in PyTorch; assigning None drops them.
    average_bias_correction : bool
        Let the averages begin with zero, and divide by the sum of the weights so far when they are
        read. A change of this begins them anew.
    seed : int
        Of the rounding of state in bfloat16; at least 0.
    state_dtype : dtype or str, optional
        "bfloat16" keeps the state of parameters in float32, float16 or bfloat16 in half the memory.
        It is rounded at random, up or down with odds by the distance, so that small changes are not
        lost: by random bits that depend on `seed`, the step and the element's place alone. By
        default the state has the dtype that is computed in.
    copies : array, or sequence or mapping of arrays; or dtype or str; optional
        Arrays like the parameters, which are then float32, in float16 or bfloat16: each step writes
        the parameters to them too, rounded to nearest. Of a dtype, new arrays are made. They hold
        the parameters from the start, and are the attribute `copies`.
    groups : callable, optional
        Which parameters have hyperparameters of their own: ``groups(name) -> dict or None``. A name
        is the parameter's key in `params`, or all the keys on the way joined by "/", as in
        ``"layers/0/W"``. Or give `params` as PyTorch has it, a list of dicts with ``"params"`` and
        hyperparameters: gradients then come as a list too, an item for each group. All groups keep
        the same state: `amsgrad`, for one, is the same for all. They are the attribute
        `param_groups`.

    Raises
    ------
    TypeError, ValueError
        If an option has a wrong type or value; nothing is changed then.
    ImportError
        If a dtype is bfloat16, and the package ml_dtypes is not installed.

    Notes
    -----
    Parameters may be float16 or bfloat16 too, and so may gradients of float32 parameters: they are
    computed with in float32, and parameters are rounded to nearest, ties to even.

    Hyperparameters, and the coefficients that a step derives from them, are rounded to the dtype
    that is computed in. Each must be 0 or a normal number there. A learning rate may be smaller;
    `scale` and the factor of `clip_norm` may be smaller or larger.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1, for clipping by the norm; the 1e-6 is PyTorch's.
    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992, for averages
    of the parameters.
    Gupta et al., "Deep learning with limited numerical precision", 2015, section 3, for rounding at
    random; Micikevicius et al., "Mixed precision training", 2018, section 3, for low-precision
    copies of float32 parameters and the scale of the loss.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.SGD(w, lr=0.1, clip_norm=1.0, average=0.5)
    >>> opt.step(np.array([3.0, 4.0]))
    >>> opt.last
    Last(grad_norm=5.0, clipped=True, skipped=False)
    >>> opt.average.round(6)
    array([0.94, 1.92])
    """

    __slots__ = ()

    _params: InitVar[Params] = argument(alias="params", kw_only=False)
    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    weight_decay: Setting[float]
    clip_norm: Setting[float | None] = option(optional(NON_NEGATIVE), default=None)
    clip_value: Setting[float | None] = option(optional(NON_NEGATIVE), default=None)
    nonfinite: Setting[_Nonfinite] = option(_nonfinite, default="propagate")
    clear_grads: Setting[bool] = option(flag, default=False)
    average: _Average = option(optional(UNIT), default=None, form=_Average)
    average_bias_correction: Setting[bool] = option(flag, default=False)
    seed: Setting[int] = option(partial(count, least=0), default=0)
    _state_dtype: InitVar[npt.DTypeLike] = argument(alias="state_dtype", default=None)
    _copies: InitVar[ArrayTree | npt.DTypeLike] = argument(alias="copies", default=None)
    _groups: InitVar[GroupOf | None] = argument(alias="groups", default=None)
