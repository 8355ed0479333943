"""One optimizer step on your own arrays, with state that you keep.

Each function updates `param` and its state in place, in one pass over memory, and returns nothing.
`param`, `grad` and the state arrays have the same shape; only the state of `rowwise_adagrad` has a
number for each row. `param` is float32, float64, float16, bfloat16 (from ml_dtypes), complex64 or
complex128. `grad` has the same dtype or, for a real `param`, is float32, float16 or bfloat16, which
are widened as they are read; complex64 gradients of a complex128 `param` are widened too. The state
has the dtype of `param`, but float32 for float16 and bfloat16. Any memory layout works. All arrays
except `grad` must be writeable. Objects that export their memory through ``__dlpack__`` or the
buffer protocol are used without a copy.

The states of a complex `param` that are made of squares or magnitudes (`v`, `v_max`, `u`,
`square_average`, `square_sum`, `delta_average`) may be real: these are then those of ``abs(g)``.
See `complex` of `schuss.optimizers.Options`, and its notes for the convention of complex gradients.
Complex numbers have no order, so there are no `clip_value` and no `bounds`.

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
from schuss._listing import public_names

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "lion",
    "momentum",
    "nadam",
    "radam",
    "rmsprop",
    "rowwise_adagrad",
    "sgd",
]

__dir__ = public_names(__name__)


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
    lr_in_velocity: bool = False,
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
    lr_in_velocity : bool
        Keep the learning rate inside the velocity, as TensorFlow and scikit-learn do:
        ``v = beta*v + (1-dampening)*lr*g; p = p - v``.
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
    values["lr_in_velocity"] = float(flag(call, "lr_in_velocity", lr_in_velocity))
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
    eps_hat: float = 0.0,
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
    eps_hat : float
        Added to the root of `v` before its bias is corrected: `eps` becomes
        ``eps + eps_hat/sqrt(1 - beta2**step)``; at least 0.
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
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1; section 2, last
    paragraph, for `eps_hat`.
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
    decoupled = flag(call, "decoupled", decoupled)
    values = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "eps_root": eps_root,
        "eps_hat": eps_hat,
        "weight_decay": weight_decay,
    }
    arrays = (param, grad, m, v) if v_max is None else (param, grad, m, v, v_max)
    _update(call, rule, values, arrays, scale, clip_value, bounds, step=step, decoupled=decoupled)


def adagrad(
    param: ArrayLike,
    grad: ArrayLike,
    square_sum: ArrayLike,
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adagrad, ``s = s + g*g; p = p - lr*g/(sqrt(s) + eps)``.

    Parameters
    ----------
    param, grad, square_sum : array
        The parameter, its gradient, and the sum of the squared gradients (before the first step,
        zeros or another start), of the same shape and dtype.
    step : int
        The number of this step, counted from 1, for `lr_decay`.
    lr : float
        The learning rate, at least 0.
    lr_decay : float
        Makes the learning rate ``lr/(1 + (step-1)*lr_decay)``; at least 0.
    eps : float
        Added to the root; at least 0.
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
    Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011, section 1.1 (the diagonal form); `lr_decay` as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, s = np.array([1.0, 2.0]), np.zeros(2)
    >>> schuss.kernels.adagrad(w, np.array([0.5, -0.5]), s, step=1, lr=0.1)
    >>> w.round(6), s
    (array([0.9, 2.1]), array([0.25, 0.25]))
    """
    call, values = "kernels.adagrad", {"lr": lr, "lr_decay": lr_decay, "eps": eps}
    values |= {"weight_decay": weight_decay, "initial_accumulator_value": 0.0}
    t = count(call, "step", step, least=1)
    _update(call, "adagrad", values, (param, grad, square_sum), scale, clip_value, bounds, step=t)


def rowwise_adagrad(
    param: ArrayLike,
    grad: ArrayLike,
    square_sum: ArrayLike,
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of row-wise Adagrad, ``s = s + mean(g*g); p = p - lr*g/(sqrt(s) + eps)``.

    Parameters
    ----------
    param, grad : array
        The parameter, which must be real and C-contiguous, and its gradient, of the same shape and
        dtype.
    square_sum : array
        For each row ``param[i]``, the sum over the steps of the mean of its squared gradients
        (before the first step, zeros or another start): of shape ``param.shape[:1]``, contiguous,
        in the dtype of `param`, or in float32 for float16 and bfloat16.
    step : int
        The number of this step, counted from 1, for `lr_decay`.
    lr : float
        The learning rate, at least 0.
    lr_decay : float
        Makes the learning rate ``lr/(1 + (step-1)*lr_decay)``; at least 0.
    eps : float
        Added to the root; at least 0.
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
    See `schuss.RowwiseAdagrad`.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, s = np.ones((2, 2)), np.zeros(2)
    >>> grad = np.array([[3.0, 4.0], [1.0, 1.0]])
    >>> schuss.kernels.rowwise_adagrad(w, grad, s, step=1, lr=0.5)
    >>> w.round(3), s
    (array([[0.576, 0.434],
           [0.5  , 0.5  ]]), array([12.5,  1. ]))
    """
    call, values = "kernels.rowwise_adagrad", {"lr": lr, "lr_decay": lr_decay, "eps": eps}
    values |= {"weight_decay": weight_decay, "initial_accumulator_value": 0.0}
    t = count(call, "step", step, least=1)
    arrays = (param, grad, square_sum)
    _update(
        call,
        "adagrad",
        values,
        arrays,
        scale,
        clip_value,
        bounds,
        step=t,
        row_rule="rowwise_adagrad",
    )


def adadelta(
    param: ArrayLike,
    grad: ArrayLike,
    square_average: ArrayLike,
    delta_average: ArrayLike,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adadelta, ``d = sqrt((u + eps)/(s + eps))*g; p = p - lr*d``.

    ``s = rho*s + (1-rho)*g*g`` and, after the step, ``u = rho*u + (1-rho)*d*d`` average the squares
    of the gradients and of the updates.

    Parameters
    ----------
    param, grad, square_average, delta_average : array
        The parameter, its gradient, and the averages ``s`` and ``u`` (zeros before the first step),
        of the same shape and dtype.
    lr : float
        The learning rate, at least 0.
    rho : float
        The decay rate of the averages, in [0, 1).
    eps : float
        Added under both roots; at least 0.
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
    Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1; the learning rate as in
    PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, s, u = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.adadelta(w, np.array([0.5, -0.5]), s, u, eps=0.01)
    >>> w.round(4), s
    (array([0.7327, 2.2673]), array([0.025, 0.025]))
    """
    values = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
    arrays = (param, grad, square_average, delta_average)
    _update("kernels.adadelta", "adadelta", values, arrays, scale, clip_value, bounds)


def adamax(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    u: ArrayLike,
    *,
    step: int,
    lr: float = 0.002,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adamax, ``p = p - lr*m_hat/u``.

    ``m = beta1*m + (1-beta1)*g`` averages the gradient, ``u = max(beta2*u, |g| + eps)`` is its
    largest magnitude, and ``m_hat = m/(1-beta1**step)`` corrects the bias.

    Parameters
    ----------
    param, grad, m, u : array
        The parameter, its gradient, and the average and largest magnitude of the gradient (zeros
        before the first step), of the same shape and dtype.
    step : int
        The number of this step, counted from 1, for the bias correction.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The decay rates of `m` and `u`, in [0, 1).
    eps : float
        Added to the magnitude of the gradient; at least 0.
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
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2; `eps` as in
    PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m, u = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.adamax(w, np.array([0.5, -0.5]), m, u, step=1, lr=0.1)
    >>> w.round(6), u.round(6)
    (array([0.9, 2.1]), array([0.5, 0.5]))
    """
    call, values = "kernels.adamax", {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    values["weight_decay"] = weight_decay
    t = count(call, "step", step, least=1)
    _update(call, "adamax", values, (param, grad, m, u), scale, clip_value, bounds, step=t)


def nadam(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    *,
    step: int,
    lr: float = 0.002,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_hat: float = 0.0,
    momentum_decay: float = 0.004,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of NAdam: Adam along Nesterov's look-ahead.

    With ``m`` and ``v`` of `adam`, the momentum ``mu(t) = beta1*(1 - 0.96**(t*momentum_decay)/2)``
    and the product ``M(t)`` of those up to ``t``, the numerator of Adam's step becomes
    ``(1-mu(t))/(1-M(t))*g + mu(t+1)/(1-M(t+1))*m``.

    Parameters
    ----------
    param, grad, m, v : array
        The parameter, its gradient, and the averages of the gradient and of its square (zeros
        before the first step), of the same shape and dtype.
    step : int
        The number of this step, counted from 1.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The decay rates of `m` and `v`, in [0, 1).
    eps, eps_hat : float
        Added to the root, after and before its bias is corrected, as in `adam`; at least 0.
    momentum_decay : float
        How fast the momentum rises from half of `beta1` to `beta1`; at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient. If `decoupled`, it first multiplies the
        parameter by ``1 - lr*weight_decay`` instead. At least 0.
    decoupled : bool
        See `weight_decay`.
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
    Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2 and section 2.2; the
    schedule of the momentum as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.nadam(w, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
    >>> w.round(4)
    array([0.8944, 2.1056])
    """
    call, arrays = "kernels.nadam", (param, grad, m, v)
    decoupled = flag(call, "decoupled", decoupled)
    values = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "eps_hat": eps_hat}
    values |= {"momentum_decay": momentum_decay, "weight_decay": weight_decay}
    t = count(call, "step", step, least=1)
    _update(call, "nadam", values, arrays, scale, clip_value, bounds, step=t, decoupled=decoupled)


def radam(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    *,
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of RAdam: Adam, rectified while ``v`` has seen few gradients.

    With ``n = 2/(1-beta2) - 1`` and ``r = n - 2*t*beta2**t/(1-beta2**t)``, the step ``t`` is that
    of `adam` times ``sqrt((r-4)*(r-2)*n/((n-4)*(n-2)*r))``. In the first steps, where ``r <= 5``,
    it is ``lr*m_hat``.

    Parameters
    ----------
    param, grad, m, v : array
        The parameter, its gradient, and the averages of the gradient and of its square (zeros
        before the first step), of the same shape and dtype.
    step : int
        The number of this step, counted from 1.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The decay rates of `m` and `v`, in [0, 1).
    eps : float
        Added to the root of `v` before its bias is corrected, as in PyTorch; at least 0.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient. If `decoupled`, it first multiplies the
        parameter by ``1 - lr*weight_decay`` instead. At least 0.
    decoupled : bool
        See `weight_decay`.
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
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, algorithm 2; the
    bound 5 in place of 4 as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
    >>> schuss.kernels.radam(w, np.array([0.5, -0.5]), m, v, step=1, lr=0.1)
    >>> w.round(6)
    array([0.95, 2.05])
    """
    call, arrays = "kernels.radam", (param, grad, m, v)
    decoupled = flag(call, "decoupled", decoupled)
    values = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    t = count(call, "step", step, least=1)
    _update(call, "radam", values, arrays, scale, clip_value, bounds, step=t, decoupled=decoupled)


def lion(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    *,
    lr: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Lion, ``p = p - lr*sign(beta1*m + (1-beta1)*g)``.

    After it, ``m = beta2*m + (1-beta2)*g``.

    Parameters
    ----------
    param, grad, m : array
        The parameter, its gradient and the average of the gradient (zeros before the first step),
        of the same shape and dtype.
    lr : float
        The learning rate, at least 0.
    beta1, beta2 : float
        The weight of `m` in the step, and the decay rate of `m`; in [0, 1).
    weight_decay : float
        First multiplies the parameter by ``1 - lr*weight_decay``; at least 0.
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
    Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w, m = np.array([1.0, 2.0]), np.zeros(2)
    >>> schuss.kernels.lion(w, np.array([0.5, -0.5]), m, lr=0.1)
    >>> w, m.round(6)
    (array([0.9, 2.1]), array([ 0.005, -0.005]))
    """
    values = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay}
    arrays = (param, grad, m)
    _update("kernels.lion", "lion", values, arrays, scale, clip_value, bounds, decoupled=True)


_FRACTIONS = {"beta", "beta1", "beta2", "rho", "dampening", "momentum"}


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
    decoupled: bool = False,
    row_rule: str = "",
) -> None:
    """Check the arguments of a step, and take it. Without a number of the step, correct no bias."""
    if (
        bounds is None
        and not row_rule
        and _core.update_small(rule, hyperparameters, decoupled, step, scale, clip_value, arrays)
    ):
        return
    limit = inf if clip_value is None else NON_NEGATIVE(call, "clip_value", clip_value)
    scale = FINITE(call, "scale", scale)
    bounds = interval(call, "bounds", bounds)
    values = {
        name: (UNIT if name in _FRACTIONS else NON_NEGATIVE)(call, name, value)
        for name, value in hyperparameters.items()
    }
    values["bias_correction"] = step is not None
    t = 1 if step is None else count(call, "step", step, least=1)
    decay = "decoupled" if decoupled else "coupled"
    formula = _core.Formula(
        rule,
        values,
        values["lr"],
        decay,
        values["weight_decay"],
        bounds=bounds,
        row_rule=row_rule,
    )
    _core.update(call, formula, t, scale, limit, *arrays)
