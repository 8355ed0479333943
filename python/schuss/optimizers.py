"""Optimizers: parameters in any structure, their state, and one fused step for all of them.

Each class declares its hyperparameters and its rule. `Optimizer` has what they share.

To add an optimizer, add its rule to ``cpp/rules``, functions to ``reference/_rules.py`` and
``kernels.py``, a row to ``reference/_kinds.py``, and a class here, with its name in ``__all__``.
"""

from dataclasses import replace

from schuss._hyperparameters import NON_NEGATIVE, UNIT, Rate, flag, optional, rate
from schuss._listing import public_names
from schuss._optimizer import Last, Optimizer
from schuss._options import Options
from schuss._rules import RuleSpec
from schuss._settings import Setting, declared, hyperparameter

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Last",
    "Lion",
    "Momentum",
    "NAdam",
    "Optimizer",
    "Options",
    "RAdam",
    "RMSprop",
    "RowwiseAdagrad",
]

__dir__ = public_names(__name__)


@declared
class SGD(Optimizer):
    """Gradient descent, ``p = p - lr*g``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, algorithm 8.1.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.SGD(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w
    array([0.95, 2.05])
    """

    __slots__ = ()

    _rule_spec = RuleSpec("sgd")

    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class Momentum(Optimizer):
    """Gradient descent with momentum, ``v = beta*v + (1-dampening)*g; p = p - lr*v``.

    Its state is ``velocity``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta : float
        The decay rate of the velocity, in [0, 1): it averages over about ``1/(1-beta)`` steps.
    dampening : float, optional
        None means `beta`: the velocity is an exponentially weighted average of the gradients. 0
        gives the classical form, as in PyTorch. In [0, 1).
    nesterov : bool
        Step along ``(1-dampening)*g + beta*v`` in place of ``v``.
    lr_in_velocity : bool
        Keep the learning rate inside the velocity, as TensorFlow and scikit-learn do:
        ``v = beta*v + (1-dampening)*lr*g; p = p - v``. The forms differ only where the rate
        changes: here, each gradient keeps the rate of its own step.
    bias_correction : bool
        Divide the velocity by ``1 - beta**t`` in the step.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, eqs. 1-4; as in PyTorch, the parameters of the Nesterov form are those at the
    look-ahead point.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Momentum(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w, opt.state["velocity"]
    (array([0.995, 2.005]), array([ 0.05, -0.05]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec(
        "momentum", suffixes={"nesterov": "_nesterov"}, fallbacks={"dampening": "beta"}
    )

    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    beta: Setting[float] = hyperparameter(UNIT, default=0.9)
    dampening: Setting[float | None] = hyperparameter(optional(UNIT), default=None)
    nesterov: Setting[bool] = hyperparameter(flag, default=False)
    lr_in_velocity: Setting[bool] = hyperparameter(flag, default=False)
    bias_correction: Setting[bool] = hyperparameter(flag, default=False)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class RMSprop(Optimizer):
    """RMSprop, ``s = beta*s + (1-beta)*g*g; p = p - lr*g/(sqrt(s + eps_root) + eps)``.

    Its state is ``square_average``, with ``mean`` if centered and ``buffer`` if there is momentum.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta : float
        The decay rate of the averages, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0. ``eps=0, eps_root=1e-8`` is the form
        ``g / sqrt(s + eps)``.
    centered : bool
        Subtract the square of the average gradient from ``s`` under the root.
    momentum : float
        The decay rate of a velocity of the scaled gradients, in [0, 1); 0 means no velocity.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Tieleman & Hinton, "Lecture 6.5 - RMSProp", 2012, slide 29.
    Graves, "Generating sequences with recurrent neural networks", 2013, eqs. 38-41, for the
    centered form.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.RMSprop(w, lr=0.1, eps=0.0)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4), opt.state["square_average"]
    (array([0.6838, 2.3162]), array([0.025, 0.025]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("rmsprop", suffixes={"centered": "_centered", "momentum": "_momentum"})

    lr: Setting[Rate] = hyperparameter(rate, default=0.001, kw_only=False)
    beta: Setting[float] = hyperparameter(UNIT, default=0.9)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-8)
    eps_root: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    centered: Setting[bool] = hyperparameter(flag, default=False)
    momentum: Setting[float] = hyperparameter(UNIT, default=0.0)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class Adam(Optimizer):
    """Adam, ``p = p - lr*m_hat/(sqrt(v_hat + eps_root) + eps)``.

    ``m = beta1*m + (1-beta1)*g`` and ``v = beta2*v + (1-beta2)*g*g`` average the gradient and its
    square; ``m_hat = m/(1-beta1**t)`` and ``v_hat = v/(1-beta2**t)`` correct their bias to zero.
    Its state is ``m`` and ``v``, with ``v_max`` for AMSGrad.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta1, beta2 : float
        The decay rates of ``m`` and ``v``, in [0, 1).
    eps, eps_root : float
        Added to the root and under the root; at least 0.
    eps_hat : float
        Added to the root of ``v`` before its bias is corrected, as in Keras, TensorFlow and
        scikit-learn: `eps` becomes ``eps + eps_hat/sqrt(1 - beta2**t)``; at least 0. Their
        ``epsilon=1e-8`` is ``eps=0.0, eps_hat=1e-8`` here.
    amsgrad : bool
        Use the largest ``v`` so far in place of ``v``.
    bias_correction : bool
        False leaves ``m_hat = m`` and ``v_hat = v``.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0. See `AdamW` for the
        decoupled form.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1; section 2, last
    paragraph, for `eps_hat`.
    Reddi, Kale & Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2 (AMSGrad; here,
    as in PyTorch, with bias correction).

    Examples
    --------
    >>> import numpy as np, schuss
    >>> params = {"W": np.ones((2, 2)), "b": np.zeros(2)}
    >>> opt = schuss.Adam(params, lr=0.1)
    >>> opt.step({"W": np.full((2, 2), 0.5), "b": np.array([1.0, -1.0])})
    >>> params["W"].round(6), params["b"].round(6)
    (array([[0.9, 0.9],
           [0.9, 0.9]]), array([-0.1,  0.1]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("adam", suffixes={"amsgrad": "_amsgrad"})

    lr: Setting[Rate] = hyperparameter(rate, default=0.001, kw_only=False)
    beta1: Setting[float] = hyperparameter(UNIT, default=0.9)
    beta2: Setting[float] = hyperparameter(UNIT, default=0.999)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-8)
    eps_root: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    eps_hat: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    amsgrad: Setting[bool] = hyperparameter(flag, default=False)
    bias_correction: Setting[bool] = hyperparameter(flag, default=True)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class AdamW(Adam):
    """Adam with decoupled weight decay: ``p = p*(1 - lr*weight_decay)`` before the step of `Adam`.

    Parameters
    ----------
    params, lr, beta1, beta2, eps, eps_root, eps_hat, amsgrad, bias_correction
        As in `Adam`.
    weight_decay : float
        The rate at which the parameters shrink, times `lr`; at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        As `Adam`.

    References
    ----------
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2; as in PyTorch,
    the learning rate multiplies the decay too.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(6)
    array([0.85, 2.  ])
    """

    __slots__ = ()

    _rule_spec = replace(Adam._rule_spec, decoupled=True)

    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.01)


@declared
class Adagrad(Optimizer):
    """Adagrad, ``s = s + g*g; p = p - lr*g/(sqrt(s) + eps)``.

    Its state is ``square_sum``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    lr_decay : float
        Makes the learning rate of step ``t`` ``lr/(1 + (t-1)*lr_decay)``; at least 0.
    eps : float
        Added to the root; at least 0.
    initial_accumulator_value : float
        The value with which ``s`` begins; at least 0. It is used where the state is made: a later
        change does nothing.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011, section 1.1 (the diagonal form); `lr_decay` as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Adagrad(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(6), opt.state["square_sum"]
    (array([0.9, 2.1]), array([0.25, 0.25]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("adagrad", initial={"square_sum": "initial_accumulator_value"})

    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    lr_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-10)
    initial_accumulator_value: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class RowwiseAdagrad(Optimizer):
    """Adagrad with one sum for each row, ``s = s + mean(g*g); p = p - lr*g/(sqrt(s) + eps)``.

    A row of a parameter is ``param[i]``: the vector of a word in a table of embeddings. ``s`` has
    one number for each, and the mean is over the row. So the state of a table of n rows takes n
    numbers in the dtype of the computation, not as much memory as the table. A parameter with one
    axis has elements as rows, for which this is `Adagrad`; one without axes is a row.

    Its state is ``square_sum``, of shape ``param.shape[:1]``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`. The parameters must
        be real and C-contiguous.
    lr_decay : float
        Makes the learning rate of step ``t`` ``lr/(1 + (t-1)*lr_decay)``; at least 0.
    eps : float
        Added to the root; at least 0.
    initial_accumulator_value : float
        The value with which ``s`` begins; at least 0. It is used where the state is made: a later
        change does nothing.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`. `state_dtype` must be
        None, as the state is small.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`. ValueError too if a parameter is complex or not
        C-contiguous, or if `state_dtype` is given.

    Notes
    -----
    The squares of a row are added in double precision as those of a block in
    `schuss.reference.grad_norm`: 16 sums, then their sum. Their mean is rounded to the dtype of the
    computation. `schuss.mpi.Sharded`, which may cut rows in two, refuses this class.

    References
    ----------
    Gupta, Bengio & Weston, "Training highly multiclass classifiers", 2014, for one learning rate
    for each row. The formula is that of FBGEMM's EXACT_ROWWISE_ADAGRAD; the defaults are those of
    TorchRec's RowWiseAdagrad.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> table = np.ones((3, 2))
    >>> opt = schuss.RowwiseAdagrad(table, lr=0.5)
    >>> opt.step(np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]]))
    >>> opt.state["square_sum"]
    array([12.5,  0. ,  1. ])
    >>> table.round(3)
    array([[0.576, 0.434],
           [1.   , 1.   ],
           [0.5  , 0.5  ]])
    """

    __slots__ = ()

    _rule_spec = replace(Adagrad._rule_spec, row_rule="rowwise_adagrad")

    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    lr_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-10)
    initial_accumulator_value: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class Adadelta(Optimizer):
    """Adadelta, ``d = sqrt((u + eps)/(s + eps))*g; p = p - lr*d``.

    ``s = rho*s + (1-rho)*g*g`` and, after the step, ``u = rho*u + (1-rho)*d*d`` average the squares
    of the gradients and of the updates. Its state is ``square_average`` and ``delta_average``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    rho : float
        The decay rate of the averages, in [0, 1).
    eps : float
        Added under both roots; at least 0. The first steps are as small as it is: with 0, nothing
        ever moves.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    Notes
    -----
    In float32, gradients above about 1e16 make the quotient under the root so small that it counts
    as zero, and the parameter stands still.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1; the learning rate as in
    PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Adadelta(w, eps=0.01)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4), opt.state["square_average"]
    (array([0.7327, 2.2673]), array([0.025, 0.025]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("adadelta")

    lr: Setting[Rate] = hyperparameter(rate, default=1.0, kw_only=False)
    rho: Setting[float] = hyperparameter(UNIT, default=0.9)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-6)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class Adamax(Optimizer):
    """Adamax, ``p = p - lr*m_hat/u``: Adam with the largest of the recent gradients.

    ``m = beta1*m + (1-beta1)*g`` averages the gradient, ``u = max(beta2*u, |g| + eps)`` is its
    largest magnitude, and ``m_hat = m/(1-beta1**t)`` corrects the bias. Its state is ``m`` and
    ``u``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta1, beta2 : float
        The decay rates of ``m`` and ``u``, in [0, 1).
    eps : float
        Added to the magnitude of the gradient; at least 0. With 0, an element whose gradients have
        all been 0 becomes NaN.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2; `eps` as in
    PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Adamax(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(6), opt.state["u"].round(6)
    (array([0.9, 2.1]), array([0.5, 0.5]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("adamax")

    lr: Setting[Rate] = hyperparameter(rate, default=0.002, kw_only=False)
    beta1: Setting[float] = hyperparameter(UNIT, default=0.9)
    beta2: Setting[float] = hyperparameter(UNIT, default=0.999)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-8)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)


@declared
class NAdam(Optimizer):
    """NAdam: Adam that steps along Nesterov's look-ahead.

    With ``m`` and ``v`` of `Adam`, the momentum ``mu(t) = beta1*(1 - 0.96**(t*momentum_decay)/2)``
    and the product ``M(t)`` of those up to ``t``, the numerator of Adam's step becomes
    ``(1-mu(t))/(1-M(t))*g + mu(t+1)/(1-M(t+1))*m``. Its state is ``m`` and ``v``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta1, beta2 : float
        The decay rates of ``m`` and ``v``, in [0, 1).
    eps, eps_hat : float
        Added to the root, after and before its bias is corrected, as in `Adam`; at least 0.
    momentum_decay : float
        How fast the momentum rises from half of `beta1` to `beta1`; at least 0.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    decoupled_weight_decay : bool
        Let the weight decay shrink the parameters as in `AdamW` instead.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2 and section 2.2; the
    schedule of the momentum as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.NAdam(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(4)
    array([0.8944, 2.1056])
    """

    __slots__ = ()

    _rule_spec = RuleSpec("nadam", decoupled="decoupled_weight_decay")

    lr: Setting[Rate] = hyperparameter(rate, default=0.002, kw_only=False)
    beta1: Setting[float] = hyperparameter(UNIT, default=0.9)
    beta2: Setting[float] = hyperparameter(UNIT, default=0.999)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-8)
    eps_hat: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    momentum_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.004)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    decoupled_weight_decay: Setting[bool] = hyperparameter(flag, default=False)


@declared
class RAdam(Optimizer):
    """RAdam: Adam whose step is rectified while ``v`` has seen few gradients.

    With ``n = 2/(1-beta2) - 1`` and ``r = n - 2*t*beta2**t/(1-beta2**t)``, the step is that of
    `Adam` times ``sqrt((r-4)*(r-2)*n/((n-4)*(n-2)*r))``. In the first steps, where ``r <= 5``, it
    is ``lr*m_hat``. Its state is ``m`` and ``v``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta1, beta2 : float
        The decay rates of ``m`` and ``v``, in [0, 1).
    eps : float
        Added to the root of ``v`` before its bias is corrected, as in PyTorch; at least 0.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient (an L2 cost); at least 0.
    decoupled_weight_decay : bool
        Let the weight decay shrink the parameters as in `AdamW` instead.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, algorithm 2; the
    bound 5 in place of 4 as in PyTorch.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.RAdam(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w.round(6)
    array([0.95, 2.05])
    """

    __slots__ = ()

    _rule_spec = RuleSpec("radam", decoupled="decoupled_weight_decay")

    lr: Setting[Rate] = hyperparameter(rate, default=0.001, kw_only=False)
    beta1: Setting[float] = hyperparameter(UNIT, default=0.9)
    beta2: Setting[float] = hyperparameter(UNIT, default=0.999)
    eps: Setting[float] = hyperparameter(NON_NEGATIVE, default=1e-8)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
    decoupled_weight_decay: Setting[bool] = hyperparameter(flag, default=False)


@declared
class Lion(Optimizer):
    """Lion, ``p = p - lr*sign(beta1*m + (1-beta1)*g); m = beta2*m + (1-beta2)*g``.

    Each element moves by `lr`, or not at all where the sign is 0. Rates are usually a third to a
    tenth of Adam's. Its state is ``m``.

    Parameters
    ----------
    params, lr
        The parameters and the learning rate; see `schuss.optimizers.Options`.
    beta1, beta2 : float
        The weights of ``m`` in the step, and the decay rate of ``m``; in [0, 1).
    weight_decay : float
        The rate at which the parameters shrink, times `lr`, as in `AdamW`; at least 0.
    **options
        Options that all optimizers share; see `schuss.optimizers.Options`.

    Raises
    ------
    TypeError, ValueError
        See `schuss.optimizers.Options`.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> w = np.array([1.0, 2.0])
    >>> opt = schuss.Lion(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5]))
    >>> w, opt.state["m"].round(6)
    (array([0.9, 2.1]), array([ 0.005, -0.005]))
    """

    __slots__ = ()

    _rule_spec = RuleSpec("lion", decoupled=True)

    lr: Setting[Rate] = hyperparameter(rate, default=1e-4, kw_only=False)
    beta1: Setting[float] = hyperparameter(UNIT, default=0.9)
    beta2: Setting[float] = hyperparameter(UNIT, default=0.99)
    weight_decay: Setting[float] = hyperparameter(NON_NEGATIVE, default=0.0)
