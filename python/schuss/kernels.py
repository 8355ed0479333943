"""One optimizer step on your own arrays, with state that you keep.

Each function updates `param` and its state in place, in one pass over memory, and returns nothing.
`param`, `grad` and the state arrays have the same shape. `param` is float32, float64, float16 or
bfloat16 (from ml_dtypes); `grad` has the same dtype, or is float32, float16 or bfloat16, which are
widened as they are read; the state is float64 for float64 parameters, and else float32. Any memory
layout works. All arrays except `grad` must be writeable. Objects that export their memory through
``__dlpack__`` or the buffer protocol are used without a copy.

The results are bit-for-bit those of `schuss.reference`. All functions raise

TypeError
    for an argument that is not an array, has an unsupported dtype or foreign byte order, or has a
    dtype that does not go with that of `param`; and for a hyperparameter that is not a number;
ValueError
    for a shape other than that of `param`, for read-only arrays, for arrays that share memory with
    each other, for elements of one array that overlap; and for a hyperparameter that is out of
    range, or that is not 0 but rounds to 0 or to infinity in the dtype.

A call that raises changes nothing.
"""

from math import inf

from schuss import _core
from schuss._arrays import ArrayLike
from schuss._hyperparameters import FINITE, NON_NEGATIVE, UNIT, Bounds, count, flag, interval

__all__ = ["adam", "momentum", "rmsprop", "sgd"]


def sgd(
    param: ArrayLike,
    grad: ArrayLike,
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of gradient descent, ``p = p - lr*g``.

    Parameters
    ----------
    param, grad : array
        The parameter and its gradient, of the same shape and dtype.
    lr : float
        The learning rate, at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    scale, clip_value : float
        First, the gradient is multiplied by `scale`, and its elements are clipped to the range from
        ``-clip_value`` to ``clip_value`` (at least 0; None does not clip). A negative `scale`
        maximizes.
    bounds : (float or None, float or None), optional
        Last, the parameter is put between the lowest and the highest value; None where there is
        none.

    Raises
    ------
    TypeError, ValueError
        As described for the module; nothing is changed then.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, algorithm 8.1.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> schuss.kernels.sgd(w, np.array([0.5, -0.5]), lr=0.1)
    >>> w
    array([0.95, 2.05])
    """
    values = {"lr": lr, "weight_decay": weight_decay}
    _update("kernels.sgd", "sgd", values, (param, grad), scale, clip_value, bounds)


def momentum(
    param: ArrayLike,
    grad: ArrayLike,
    velocity: ArrayLike,
    *,
    lr: float,
    beta: float = 0.9,
    dampening: float | None = None,
    nesterov: bool = False,
    step: int | None = None,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of momentum, ``v = beta*v + (1-dampening)*g; p = p - lr*v``.

    Parameters
    ----------
    param, grad, velocity : array
        The parameter, its gradient and the velocity (zeros before the first step), of the same
        shape and dtype.
    lr : float
        The learning rate, at least 0.
    beta : float
        The decay rate of the velocity, in [0, 1): it averages over about ``1/(1-beta)`` steps.
    dampening : float, optional
        In [0, 1). By default it is `beta`: the velocity is an exponentially weighted average of the
        gradients. 0 gives the classical form of Polyak and PyTorch.
    nesterov : bool
        Use ``(1-dampening)*g + beta*v`` as the direction, instead of ``v``.
    step : int, optional
        The number of this step, counted from 1, for the bias correction: the velocity is divided by
        ``1 - beta**step``. None does not correct it.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    scale, clip_value : float
        First, the gradient is multiplied by `scale`, and its elements are clipped to the range from
        ``-clip_value`` to ``clip_value`` (at least 0; None does not clip). A negative `scale`
        maximizes.
    bounds : (float or None, float or None), optional
        Last, the parameter is put between the lowest and the highest value; None where there is
        none.

    Raises
    ------
    TypeError, ValueError
        As described for the module; nothing is changed then.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, eqs. 1-4. As in PyTorch, Nesterov's form is written for the look-ahead point.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> schuss.kernels.momentum(w, np.array([0.5, -0.5]), v, lr=0.1)
    >>> w, v
    (array([0.995, 2.005]), array([ 0.05, -0.05]))
    """
    call, arrays = "kernels.momentum", (param, grad, velocity)
    rule = "momentum_nesterov" if flag(call, "nesterov", nesterov) else "momentum"
    values = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
    values["dampening"] = beta if dampening is None else dampening
    _update(call, rule, values, arrays, scale, clip_value, bounds, step=step)


def rmsprop(
    param: ArrayLike,
    grad: ArrayLike,
    square_average: ArrayLike,
    *,
    lr: float,
    beta: float = 0.9,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mean: ArrayLike | None = None,
    buffer: ArrayLike | None = None,
    momentum: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of RMSprop, ``s = beta*s + (1-beta)*g*g; p = p - lr*g/(sqrt(s+eps_root)+eps)``.

    Parameters
    ----------
    param, grad, square_average : array
        The parameter, its gradient and the average of the squared gradient (zeros before the first
        step), of the same shape and dtype.
    lr : float
        The learning rate, at least 0.
    beta : float
        The decay rate of the average, in [0, 1).
    eps, eps_root : float
        Added to the root, and under the root; at least 0. ``eps=0, eps_root=1e-8`` gives the form
        ``g / sqrt(s + eps)``.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    mean : array, optional
        The average of the gradient, in the shape and dtype of `square_average`. If given, the step
        is centered: the square of `mean` is subtracted from `square_average` under the root.
    buffer : array, optional
        The velocity, in the shape and dtype of `square_average`; required for `momentum`.
    momentum : float
        The decay rate of `buffer`, in [0, 1).
    scale, clip_value : float
        First, the gradient is multiplied by `scale`, and its elements are clipped to the range from
        ``-clip_value`` to ``clip_value`` (at least 0; None does not clip). A negative `scale`
        maximizes.
    bounds : (float or None, float or None), optional
        Last, the parameter is put between the lowest and the highest value; None where there is
        none.

    Raises
    ------
    TypeError, ValueError
        As described for the module, and ValueError for `momentum` without `buffer`; nothing is
        changed then.

    References
    ----------
    Tieleman & Hinton, "Lecture 6.5 - RMSProp", 2012, slide 29.
    Graves, "Generating sequences with recurrent neural networks", 2013, eqs. 38-41, for the
    centered form.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> schuss.kernels.rmsprop(w, np.array([0.5, -0.5]), s, lr=0.1, eps=0.0)
    >>> w.round(4), s
    (array([0.6838, 2.3162]), array([0.025, 0.025]))
    """
    call, optional = "kernels.rmsprop", [state for state in (mean, buffer) if state is not None]
    values = {"lr": lr, "beta": beta, "eps": eps, "eps_root": eps_root, "momentum": momentum}
    values["weight_decay"] = weight_decay
    if buffer is None and UNIT(call, "momentum", momentum) != 0:
        raise ValueError(f"{call}: momentum is {momentum!r} without buffer, expected both")
    rule = "rmsprop" + "_centered" * (mean is not None) + "_momentum" * (buffer is not None)
    arrays = param, grad, square_average, *optional
    _update(call, rule, values, arrays, scale, clip_value, bounds)


def adam(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    *,
    step: int | None,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    v_max: ArrayLike | None = None,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adam, ``p = p - lr*m_hat/(sqrt(v_hat + eps_root) + eps)``.

    ``m = beta1*m + (1-beta1)*g`` and ``v = beta2*v + (1-beta2)*g*g`` are averages of the gradient
    and of its square. ``m_hat = m/(1-beta1**step)`` and ``v_hat = v/(1-beta2**step)`` correct the
    bias that they have because they start at zero.

    Parameters
    ----------
    param, grad, m, v : array
        The parameter, its gradient, and the averages of the gradient and of its square (zeros
        before the first step), of the same shape and dtype.
    step : int or None
        The number of this step, counted from 1, for the bias correction. None does not correct.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The decay rates of `m` and `v`, in [0, 1).
    eps, eps_root : float
        Added to the root, and under the root; at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient. If `decoupled`, it first multiplies the
        parameter by ``1 - lr*weight_decay`` instead (AdamW). At least 0.
    decoupled : bool
        See `weight_decay`.
    v_max : array, optional
        The maximum of `v` so far, in the shape and dtype of `v`. If given, it is used instead of
        `v` (AMSGrad).
    scale, clip_value : float
        First, the gradient is multiplied by `scale`, and its elements are clipped to the range from
        ``-clip_value`` to ``clip_value`` (at least 0; None does not clip). A negative `scale`
        maximizes.
    bounds : (float or None, float or None), optional
        Last, the parameter is put between the lowest and the highest value; None where there is
        none.

    Raises
    ------
    TypeError, ValueError
        As described for the module; nothing is changed then.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    Reddi, Kale & Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2 (AMSGrad; with
    bias correction, as in PyTorch).
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2 (AdamW; the
    decay is multiplied by the learning rate, as in PyTorch).

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.adam(w, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
    >>> w.round(6)
    array([0.9, 2.1])
    """
    call, rule = "kernels.adam", "adam" if v_max is None else "adam_amsgrad"
    decay = "decoupled" if flag(call, "decoupled", decoupled) else "coupled"
    values = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "eps_root": eps_root}
    values["weight_decay"] = weight_decay
    arrays = (param, grad, m, v) if v_max is None else (param, grad, m, v, v_max)
    _update(call, rule, values, arrays, scale, clip_value, bounds, step=step, decay=decay)


_DECAY_RATES = {"beta", "beta1", "beta2", "dampening", "momentum"}


def _update(
    call: str,
    rule: str,
    hyperparameters: dict[str, float],
    arrays: tuple[ArrayLike, ...],
    scale: float,
    clip_value: float | None,
    bounds: Bounds | None,
    *,
    step: int | None = None,
    decay: str = "coupled",
) -> None:
    """Check the arguments of a step, and take it. Without a number of the step, correct no bias."""
    limit = inf if clip_value is None else NON_NEGATIVE(call, "clip_value", clip_value)
    scale = FINITE(call, "scale", scale)
    bounds = interval(call, "bounds", bounds)
    values = {
        name: (UNIT if name in _DECAY_RATES else NON_NEGATIVE)(call, name, value)
        for name, value in hyperparameters.items()
    }
    values["bias_correction"] = step is not None
    t = 1 if step is None else count(call, "step", step, least=1)
    lr, weight_decay = values["lr"], values["weight_decay"]
    # Without weight decay, 0 * param must not be added: it is NaN for an infinite parameter.
    decay = decay if weight_decay else "decoupled"
    formula = _core.Formula(rule, values, lr, decay, weight_decay, bounds=bounds)
    _core.update(call, formula, t, scale, limit, *arrays)
