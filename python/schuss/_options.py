"""The arguments that all optimizers share."""

from dataclasses import InitVar
from functools import partial
from typing import Any, Literal, Self, cast, overload

import numpy.typing as npt

from schuss._arrays import ArrayTree
from schuss._groups import GroupOf, Params
from schuss._hyperparameters import (
    NON_NEGATIVE,
    UNIT,
    Bounds,
    Check,
    Rate,
    choice,
    count,
    flag,
    interval,
    optional,
    rate,
)
from schuss._internals import internals_of
from schuss._settings import Configurable, Setting, argument, declared, hyperparameter, option

_Complex = Literal["components", "modulus"]
_Master = Literal["float32", "float24"]
_RoundParams = Literal["nearest", "random"]
_Rows = Literal["exact", "lazy"]
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
    """The arguments that all optimizers share.

    `lr` and the options are attributes too, which can be assigned between steps; the last seven
    arguments cannot be changed. Groups of parameters may have `lr`, `maximize` and `bounds` of
    their own.

    Parameters
    ----------
    params : array, or sequence, mapping or dataclass of arrays, nested as you like
        The parameters, of any shape and memory layout, in float32, float64, float16, bfloat16,
        complex64 or complex128; updated in place. Instances of dataclasses and of classes of attrs,
        such as those that are registered with JAX, hold arrays in their fields, except for fields
        whose metadata have ``static=True`` or ``pytree_node=False``. None is an empty structure. Or
        groups of parameters: dicts with ``params`` and hyperparameters.
    lr : float or callable
        The learning rate, at least 0, or a schedule: a function of the step, counted from 1.
    maximize : bool
        Step along the gradient, not against it: the gradient is multiplied by -1 with its scale,
        before weight decay, as in PyTorch.
    bounds : (float or None, float or None), optional
        The lowest and the highest value of an element of a parameter; None where there is none. In
        the same pass, each step puts the parameters between them, before it writes averages and
        copies: parameters that are outside at first are inside after the first step. The results
        are those of `numpy.clip` in the dtype of the parameter; NaN stays NaN. State does not
        change, and a step that is skipped changes nothing. Not for complex parameters.
    clip_norm : float, optional
        The largest norm of all gradients together. If theirs is larger, they are multiplied by
        ``clip_norm / (norm + 1e-6)``. At least 0.
    clip_value : float, optional
        The largest magnitude of an element of a gradient, after `clip_norm`. At least 0. Not for
        complex parameters.
    nonfinite : {"propagate", "raise", "skip"}
        What a step does if a gradient has a NaN or an infinity before it is scaled: update the
        parameters as usual; raise FloatingPointError and change nothing; or skip the update and
        add one to `skipped`.
    clear_grads : bool
        Set the gradients to zero in the same pass, also if the step is skipped. Those of frozen
        groups are not read, and stay as they are. Sparse gradients whose values a step must copy
        are refused: all but COO tensors with one sparse dimension.
    average : float, optional
        Keep an exponential average of the parameters, ``a = a + (1-average)*(p - a)`` after each
        step, in the same pass; in [0, 1). The attribute `average` is the averages, in the
        structure of the parameters and in float32 or float64. They start with the parameters after
        the first step, as in PyTorch; assigning None drops them.
    average_bias_correction : bool
        Start the averages at zero, and divide them by the sum of the weights when they are read.
        Changing it restarts the averages.
    seed : int
        The seed of all random rounding; at least 0. See `state_dtype`, `master` and `round_params`.
    track_norms : bool
        Measure two norms in the same pass: ``last.update_norm`` is the Euclidean norm of the change
        that the step makes in all parameters together, with decay, bounds and rounding; it is 0 if
        the step is skipped. ``last.param_norm`` is that of the parameters before the step, and
        those that rest count. Their ratio tells how far a step goes. Complex numbers count with
        ``abs(z)``. The norms are computed in double precision, and their bits do not depend on the
        memory layout or the threads. A step takes several times as long.
    state_dtype : dtype or str, optional
        "8bit" keeps the state of parameters in float32, float16 or bfloat16 in a quarter of the
        memory, about 1.03 bytes an element, and "bfloat16" in half of it. State is then rounded
        at random, so that small changes are not lost: up or down with probabilities by the
        distance. The random bits depend only on `seed`, the step, the state and the index of the
        element. By default the state has the dtype of the computation. See the notes for the
        format of 8 bits.
    master : {"float32", "float24"}, optional
        Train parameters in bfloat16 with the values of float32 ones: their missing 16 bits are
        kept as state. Bit for bit, a step does to these values what it does to parameters in
        float32, and the parameters are the values, rounded to nearest. This takes 2 bytes an
        element, where a copy in float32 takes 4. "float24" keeps 8 of the bits in 1 byte, rounded
        at random. The attribute `master` has the values. Parameters in float32 may be among the
        others, and are updated as usual.
    round_params : {"nearest", "random"}
        How parameters in bfloat16 without a master are rounded. To nearest, a change of less than
        half a unit in the last place is lost. At random, it is kept on average, at no cost in
        memory. Parameters in float32 may be among the others.
    complex : {"components", "modulus"}
        What a step does with complex parameters. "components", as in PyTorch: the real and
        imaginary parts are updated as if they were two real numbers. "modulus", as in optax: one
        real second moment for each number, the average of ``abs(g)**2``, which scales both parts
        alike; not for rules without a second moment. See the notes for the gradients.
    rows : {"exact", "lazy"}
        What a step does with the other rows of a parameter whose gradient is `schuss.Rows`. With
        "exact", the bits are those of the gradient with zeros elsewhere,
        ``gradient.to_dense(dtype=...)`` in the dtype of the computation. But other rows are left
        for later: a row makes the steps that it has missed before its next update, or when `rows`
        or `flush` is called. With "lazy", other rows rest: neither they nor their state change.
        PyTorch's SparseAdam is `Adam` with "lazy", ``eps=0`` and ``eps_hat=1e-8``, to rounding. See
        the notes.
    copies : array, or sequence or mapping of arrays; or dtype or str; optional
        Low-precision copies of float32 parameters: arrays like the parameters in float16 or
        bfloat16, or one of these dtypes for new arrays. Each step also writes the parameters to
        them, rounded to nearest. They equal the parameters from the start, and are the attribute
        `copies`. A step does not write the copies of parameters that rest.
    groups : callable, optional
        Hyperparameters for some parameters: ``groups(name) -> dict or None``. The name of a
        parameter is its key in `params`, or all keys that lead to it joined by "/", as in
        ``"layers/0/W"``; the name of a field is a key. Or give `params` as in PyTorch, a list of
        dicts with ``"params"`` and hyperparameters; gradients are then a list too, with an item for
        each group. All groups keep the same state, so `amsgrad`, for example, is the same for all.
        ``"frozen": True`` lets the parameters of a group rest. The attribute `param_groups` has the
        groups, and `add_group` adds one.

    Raises
    ------
    TypeError
        If a parameter is not an array, or has another dtype or byte order; if another argument has
        a wrong type.
    ValueError
        If an array is read-only, is given twice, shares memory with another one or has elements
        that overlap; if a structure contains itself, or returns new arrays at each access, as that
        of `numpy.load` does; if another argument is out of range.
    ImportError
        If a dtype is bfloat16, and the package ml_dtypes is not installed.

    Notes
    -----
    Parameters may be float16 or bfloat16: the step computes in float32, and rounds them to nearest,
    ties to even, unless `master` or `round_params` say otherwise. Gradients may be float32, float16
    or bfloat16, for any real dtype of their parameter.

    State in 8 bits is stored in blocks of 128 elements, which are neighbours in memory: a scale
    ``a`` in float32, the largest magnitude in the block, and for each element a code of one byte,
    ``q``. The element is ``q**2 * a/Q``, with the sign of the code. Second moments, which are never
    negative, have codes up to 255 and ``Q = 65024.9375``; others have codes up to 127 and
    ``Q = 16128.984375``. These are the squares of the largest codes, less what rounding can add.
    A code is ``floor(sqrt(X - u*(1 - u)) + u)``, where ``X = abs(x) * Q/a``, and u is a random
    number in [0, 1): the mean of ``q**2`` is ``X``. A second moment above 0 never becomes 0. A
    block with a NaN or an infinity becomes NaN as a whole. Parameters of fewer than 4,096 elements
    keep state in float32. The attribute `state` returns the values, and `state_bytes` the number of
    bytes. With `beta2` of 0.999, ``v`` falls by at most a thousandth in a step: if it were rounded
    to nearest, it would never fall.

    A parameter in bfloat16 with a master is ``(b + 0x8000) >> 16``, where b are the bits of the
    float32 value; the master is ``b - (parameter << 16)`` as an integer of 16 bits. "float24" first
    rounds b to a multiple of 256, and stores the upper 8 bits of these 16. A value that you write
    to such a parameter yourself is changed by its master, by half a unit in its last place at most.

    The gradient of a complex parameter is complex, in PyTorch's convention: the direction of
    steepest ascent, ``dL/d(real) + 1j * dL/d(imag)``. `jax.grad` returns its conjugate: give the
    step ``np.conj(g)``. The norm of `clip_norm` counts ``abs(g)**2``.

    With gradients of `schuss.Rows`, and ``rows="exact"``, the array of a parameter is behind where
    rows have missed steps. Read the rows of the next forward pass by ``opt.rows(indices)``, and
    call ``opt.flush()`` before you read or change the array yourself, drop the optimizer, or step
    the array by another optimizer or `schuss.kernels`, which do not notice that rows are behind.
    Changes of hyperparameters and options, except for `lr`, flush all rows. A parameter is stepped
    by rows if it and all arrays that belong to it are contiguous in C order; with state in 8 bits,
    also if its rows have a multiple of 128 elements; and without `track_norms`. Otherwise, "exact"
    makes a step of the whole parameter, and "lazy" is refused. While gradients of rows are
    accumulated, a "lazy" optimizer is neither saved nor copied, and takes no group: call `step` or
    `zero_grad` first. A checkpoint of `fit` that an interruption writes is from before the
    mini-batches that wait for a step, which are used again. `clip_norm` and `nonfinite` concern
    the sums of the rows, and the norm has the same bits as that of the whole gradient. A step of
    all rows by a dense gradient flushes its parameter.

    Hyperparameters, and the coefficients that a step derives from them, are rounded to the dtype of
    the computation. Each must be 0 or a normal number there. A learning rate may be smaller;
    `scale` and the factor of `clip_norm` may be smaller or larger.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1, for clipping by the norm; the 1e-6 is from PyTorch.
    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992, for averages
    of the parameters.
    Bertsekas, "On the Goldstein-Levitin-Polyak gradient projection method", 1976, for `bounds`.
    You, Gitman & Ginsburg, "Large batch training of convolutional networks", 2017, section 4, for
    the ratio of the norms; Neal, "Fast exact summation using small and large superaccumulators",
    2015, for sums that do not depend on the order.
    Gupta et al., "Deep learning with limited numerical precision", 2015, section 3, for random
    rounding; Micikevicius et al., "Mixed precision training", 2018, section 3, for low-precision
    copies of float32 parameters and the scale of the loss.
    Dettmers et al., "8-bit optimizers via block-wise quantization", 2022, for scales of blocks; Li,
    Chen & Zhu, "Memory efficient optimizers with 4-bit states", 2023, for second moments that are
    never 0; the code by square roots, and its random rounding, are those of schuss.

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
    >>> w = np.array([3.0, 4.0])
    >>> opt = schuss.SGD(w, lr=0.5, track_norms=True)
    >>> opt.step(np.array([0.0, 2.0]))
    >>> opt.last.update_norm / opt.last.param_norm
    0.2

    State in 8 bits, of 2.06 bytes an element for the two moments of Adam:

    >>> w = np.zeros(100_000, np.float32)
    >>> opt = schuss.Adam(w, state_dtype="8bit")
    >>> opt.step(np.ones_like(w))
    >>> opt.state["m"][:2].round(6), opt.state_bytes
    (array([0.1, 0.1], dtype=float32), 206448)

    Parameters in bfloat16 that keep what their format drops:

    >>> import ml_dtypes
    >>> w = np.ones(2, ml_dtypes.bfloat16)
    >>> opt = schuss.SGD(w, lr=0.001, master="float32")
    >>> opt.step(np.ones_like(w))
    >>> w, opt.master
    (array([1, 1], dtype=bfloat16), array([0.999, 0.999], dtype=float32))
    """

    __slots__ = ()

    _params: InitVar[Params] = argument(alias="params", kw_only=False)
    lr: Setting[Rate] = hyperparameter(rate, default=0.01, kw_only=False)
    weight_decay: Setting[float]
    maximize: Setting[bool] = option(flag, default=False, by_group=True)
    bounds: Setting[Bounds | None] = option(interval, default=None, by_group=True)
    clip_norm: Setting[float | None] = option(optional(NON_NEGATIVE), default=None)
    clip_value: Setting[float | None] = option(optional(NON_NEGATIVE), default=None)
    nonfinite: Setting[_Nonfinite] = option(_nonfinite, default="propagate")
    clear_grads: Setting[bool] = option(flag, default=False)
    average: _Average = option(optional(UNIT), default=None, form=_Average)
    average_bias_correction: Setting[bool] = option(flag, default=False)
    seed: Setting[int] = option(partial(count, least=0), default=0)
    track_norms: Setting[bool] = option(flag, default=False)
    _state_dtype: InitVar[npt.DTypeLike | None] = argument(alias="state_dtype", default=None)
    _master: InitVar[_Master | None] = argument(alias="master", default=None)
    _round_params: InitVar[_RoundParams] = argument(alias="round_params", default="nearest")
    _complex: InitVar[_Complex] = argument(alias="complex", default="components")
    _rows: InitVar[_Rows] = argument(alias="rows", default="exact")
    _copies: InitVar[ArrayTree | npt.DTypeLike | None] = argument(alias="copies", default=None)
    _groups: InitVar[GroupOf | None] = argument(alias="groups", default=None)
