"""The whole step: every option of an optimizer around the rules."""

from collections.abc import Callable, Sequence

import numpy as np

from schuss._arrays import Array, components
from schuss._core import subnormals_are_zero
from schuss.reference._averages import average
from schuss.reference._norm import wide_clip_factor, wide_norm
from schuss.reference._numbers import Wide, apply_scale, parts, round_into, wide, widen, widen_grad
from schuss.reference._storage import Rounding, param_values, state_values


def step(
    rules: Sequence[Callable[..., None]],
    params: Sequence[Array],
    grads: Sequence[Array | None],
    states: Sequence[Sequence[Array]],
    *,
    step: int,
    scale: float = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    nonfinite: str = "propagate",
    clear_grads: bool = False,
    averages: Sequence[Array] | None = None,
    beta: float = 0.0,
    copies: Sequence[Array] | None = None,
    masters: Sequence[Array | None] | None = None,
    round_params: str = "nearest",
    seed: int = 0,
) -> tuple[float, bool, bool]:
    """Make a whole step, as an optimizer of `schuss.optimizers` does with these options.

    Parameters
    ----------
    rules : sequence of callables
        For each parameter one of the functions of this module, with its hyperparameters bound, and
        with ``scale=-1`` to maximize.
    params, grads : sequence of arrays
        The parameters, and gradients of the same shapes, in float32, float64, float16, bfloat16,
        complex64 or complex128. A parameter whose gradient is None rests: only its average follows
        it.
    states : sequence of sequences of arrays
        For each parameter the states of its rule, in the parameter's shape, or blocks of the 8-bit
        code of `encode`. Those of a complex parameter that average squares may be real: then the
        squares are those of the modulus.
    step : int
        The number of the step, t, counted from 1.
    scale, clip_norm, clip_value, nonfinite, clear_grads, seed
        The options of the same names of `schuss.optimizers.Options`.
    averages, copies : sequence of arrays, optional
        Averages and low-precision copies of the parameters, in the parameters' shapes.
    masters : sequence of arrays or None, optional
        For each parameter in bfloat16 the bits that it lacks of a float32 value, in its shape: all
        in int16, or the first 8 in int8.
    round_params : {"nearest", "random"}
        How parameters in bfloat16 without a master are rounded.
    beta : float
        The weight of the past in the averages: 0 in the first step, unless they begin with zeros.

    Returns
    -------
    float, bool, bool
        The norm of the gradients, whether they were clipped, and whether the step was skipped.

    Raises
    ------
    FloatingPointError
        If a gradient has a NaN or an infinity, and `nonfinite` is "raise".

    References
    ----------
    See `schuss.optimizers.Options`.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> from schuss.reference import sgd, step
    >>> w, grad = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    >>> step([partial(sgd, lr=0.5)], [w], [grad], [[]], step=1)
    (5.0, False, False)
    >>> w
    array([-0.5,  0. ])
    """
    each = [parts([p, *own]) for p, own in zip(params, states, strict=True)]
    params, states = [p for p, *_ in each], [own for _, *own in each]
    grads = [None if grad is None else components(grad) for grad in grads]
    averages = None if averages is None else list(map(components, averages))
    present = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
    norm = wide(scale) * wide_norm([params[i] for i, _ in present], [grad for _, grad in present])
    norm = Wide(abs(norm.digits), norm.exponent)
    bad = [i for i, grad in present if not np.isfinite(widen(grad)).all()]
    if bad and nonfinite == "raise":
        raise FloatingPointError(f"grads[{bad[0]}] has a NaN or an infinity")
    skipped = bool(bad) and nonfinite == "skip"
    factor = wide(1.0) if clip_norm is None else wide_clip_factor(norm, clip_norm)
    first = 0  # the index of the parameter's first element among those of all parameters
    for i, (rule, p, grad) in enumerate(zip(rules, params, grads, strict=True)):
        low = None if masters is None else masters[i]
        if not skipped and grad is not None:
            rounding = Rounding(p, seed, step, first)
            param = param_values(p, low)
            own = [state_values(state, p) for state in states[i]]
            scaled = apply_scale(param, widen_grad(grad, param), wide(scale) * factor)
            if low is not None:
                rule(param, scaled, *own, clip_value=clip_value)
                rounding.store_master(low, param)
            elif round_params == "random" and p.dtype.name == "bfloat16":
                rule(p, scaled, *own, clip_value=clip_value, store=rounding.store_param)
            else:
                rule(p, scaled, *own, clip_value=clip_value)
            for number, (state, values) in enumerate(zip(states[i], own, strict=True)):
                rounding.store_state(state, values, number)
            if copies is not None:
                round_into(copies[i], widen(p))
        if averages is not None and not skipped:
            if beta == 0:
                with subnormals_are_zero(), np.errstate(all="ignore"):
                    averages[i][...] = param_values(p, low) * np.ones((), averages[i].dtype)
            else:
                average(averages[i], param_values(p, low), beta=beta)
        if clear_grads and grad is not None:
            grad[...] = 0
        first += p.size
    return norm.value(), factor.value() != 1, skipped
