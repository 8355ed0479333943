"""One optimizer step on your own arrays, with state that you keep.

Each function updates `param` and its state in place, in one pass over memory, and returns nothing.
`param`, `grad` and the state arrays have one shape and one dtype, float32 or float64; or `param`
and `grad` are each float32, float16 or bfloat16 (that of ml_dtypes), and the state is float32. Any
memory layout works, and all but `grad` must be writeable. Objects that show their memory by
``__dlpack__`` or the buffer protocol are taken as they are, without a copy.

The results are, bit for bit, those of `schuss.reference`. All functions raise

TypeError
    for what is no array, has another dtype, foreign byte order, or a dtype that does not go with
    `param`'s; for a hyperparameter that is not a number;
ValueError
    for a shape that differs from `param`'s, for read-only arrays, for arrays that share memory with
    each other or elements that overlap within one; for a hyperparameter out of range, or one that
    is not 0 and that the dtype takes for zero or for infinite,

and then have changed nothing.
"""

from math import inf

from schuss import _core
from schuss._arrays import ArrayLike
from schuss._hyperparameters import count, flag, number, numbers

__all__ = ["adam", "momentum", "rmsprop", "sgd"]


def sgd(
    param: ArrayLike,
    grad: ArrayLike,
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
) -> None:
    """Take one step of gradient descent, ``p = p - lr*g``.

    Parameters
    ----------
    param, grad : array
        The parameter and the gradient of the cost by it: one shape, one dtype.
    lr : float
        The learning rate, at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    scale, clip_value : float
        The gradient is multiplied by `scale`, and then no element is farther from 0 than
        `clip_value` (at least 0; None: no bound), before anything else.

    Raises
    ------
    TypeError, ValueError
        As the module describes; nothing is changed then.

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
    call = "kernels.sgd"
    treatment = _treatment(call, scale, clip_value)
    values = numbers(call, lr=lr, weight_decay=weight_decay)
    _core.update(call, _formula("sgd", values), 1, *treatment, param, grad)


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
) -> None:
    """Take one step of momentum, ``v = beta*v + (1-dampening)*g; p = p - lr*v``.

    Parameters
    ----------
    param, grad, velocity : array
        The parameter, its gradient and the velocity (zeros before the first step): one shape, one
        dtype.
    lr : float
        The learning rate, at least 0.
    beta : float
        The weight of the past, in [0, 1); the velocity averages over about ``1/(1-beta)`` steps.
    dampening : float, optional
        None means `beta`: the velocity is an exponentially weighted average of the gradients. 0 is
        the classical form of Polyak and PyTorch. In [0, 1).
    nesterov : bool
        Step along ``(1-dampening)*g + beta*v`` in place of ``v``.
    step : int, optional
        The number of this step, from 1: divides the velocity by ``1 - beta**step``. None: no
        correction.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    scale, clip_value : float
        The gradient is multiplied by `scale`, and then no element is farther from 0 than
        `clip_value` (at least 0; None: no bound), before anything else.

    Raises
    ------
    TypeError, ValueError
        As the module describes; nothing is changed then.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, eqs. 1-4; Nesterov's form is written, as in PyTorch, for the point looked ahead
    to.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> schuss.kernels.momentum(w, np.array([0.5, -0.5]), v, lr=0.1)
    >>> w, v
    (array([0.995, 2.005]), array([ 0.05, -0.05]))
    """
    call = "kernels.momentum"
    treatment = _treatment(call, scale, clip_value)
    values = numbers(call, lr=lr, beta=beta, weight_decay=weight_decay)
    values["dampening"] = (
        values["beta"] if dampening is None else number(call, "dampening", dampening)
    )
    values["bias_correction"] = step is not None
    t = 1 if step is None else count(call, "step", step, least=1)
    rule = "momentum_nesterov" if flag(call, "nesterov", nesterov) else "momentum"
    _core.update(call, _formula(rule, values), t, *treatment, param, grad, velocity)


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
) -> None:
    """Take one step of RMSprop, ``s = beta*s + (1-beta)*g*g; p = p - lr*g/(sqrt(s+eps_root)+eps)``.

    Parameters
    ----------
    param, grad, square_average : array
        The parameter, its gradient and the average of its square (zeros before the first step): one
        shape, one dtype.
    lr : float
        The learning rate, at least 0.
    beta : float
        The weight of the past, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0. ``eps=0, eps_root=1e-8`` is the form
        ``g / sqrt(s + eps)``.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient (an L2 cost); at least 0.
    mean : array, optional
        The average of the gradient, of the shape and dtype of `square_average`. Given, the step is
        centered: its square is taken off `square_average` under the root.
    buffer : array, optional
        A velocity, of the shape and dtype of `square_average`; needed for `momentum`.
    momentum : float
        The weight of the past in `buffer`, in [0, 1).
    scale, clip_value : float
        The gradient is multiplied by `scale`, and then no element is farther from 0 than
        `clip_value` (at least 0; None: no bound), before anything else.

    Raises
    ------
    TypeError, ValueError
        As the module describes, and ValueError for a `momentum` without `buffer`; nothing is
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
    call = "kernels.rmsprop"
    treatment = _treatment(call, scale, clip_value)
    values = numbers(
        call,
        lr=lr,
        beta=beta,
        eps=eps,
        eps_root=eps_root,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    if buffer is None and values["momentum"] != 0:
        raise ValueError(f"{call}: momentum is {momentum!r} without buffer, expected both")
    rule = rmsprop_rule(centered=mean is not None, buffered=buffer is not None)
    optional = (state for state in (mean, buffer) if state is not None)
    formula = _formula(rule, values)
    _core.update(call, formula, 1, *treatment, param, grad, square_average, *optional)


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
) -> None:
    """Take one step of Adam, ``p = p - lr*m_hat/(sqrt(v_hat + eps_root) + eps)``.

    ``m = beta1*m + (1-beta1)*g`` and ``v = beta2*v + (1-beta2)*g*g`` average the gradient and its
    square; ``m_hat = m/(1-beta1**step)`` and ``v_hat = v/(1-beta2**step)`` correct their start from
    zero.

    Parameters
    ----------
    param, grad, m, v : array
        The parameter, its gradient, and the averages of the gradient and of its square (zeros
        before the first step): one shape, one dtype.
    step : int or None
        The number of this step, from 1. None: no bias correction.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The weights of the past, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient, or, if `decoupled`, shrinks the parameter by
        ``1 - lr*weight_decay`` first (AdamW); at least 0.
    decoupled : bool
        See `weight_decay`.
    v_max : array, optional
        The largest `v` so far, of the shape and dtype of `v`. Given, it is used in place of `v`
        (AMSGrad).
    scale, clip_value : float
        The gradient is multiplied by `scale`, and then no element is farther from 0 than
        `clip_value` (at least 0; None: no bound), before anything else.

    Raises
    ------
    TypeError, ValueError
        As the module describes; nothing is changed then.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    Reddi, Kale & Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2 (AMSGrad; here,
    as in PyTorch, with bias correction).
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2 (AdamW; as in
    PyTorch, the learning rate multiplies the decay too).

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.adam(w, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
    >>> w.round(6)
    array([0.9, 2.1])
    """
    call = "kernels.adam"
    treatment = _treatment(call, scale, clip_value)
    values = numbers(
        call,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
    )
    values["bias_correction"] = step is not None
    t = 1 if step is None else count(call, "step", step, least=1)
    rule, states = ("adam", (m, v)) if v_max is None else ("adam_amsgrad", (m, v, v_max))
    formula = _formula(rule, values, decoupled=flag(call, "decoupled", decoupled))
    _core.update(call, formula, t, *treatment, param, grad, *states)


def rmsprop_rule(*, centered: bool, buffered: bool) -> str:
    """Return the name of the form of RMSprop that has these states."""
    return "rmsprop" + "_centered" * centered + "_momentum" * buffered


def _treatment(call: str, scale: float, clip_value: float | None) -> tuple[float, float]:
    limit = inf if clip_value is None else number(call, "clip_value", clip_value)
    return number(call, "scale", scale), limit


def _formula(rule: str, values: dict[str, float], *, decoupled: bool = False) -> _core.Formula:
    # Adding 0 * param would turn an infinite parameter into NaN.
    coupled = "coupled" if values["weight_decay"] else "none"
    decay = "decoupled" if decoupled else coupled
    return _core.Formula(rule, values, values["lr"], decay, values["weight_decay"])
