"""The training loop: epochs of mini-batches, what they cost, and when to stop."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import frexp, inf, isfinite, isinf, nan
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss import _arguments, _core, _files, checkpoints
from schuss._arrays import (
    Array,
    ArrayTree,
    arrays_of,
    check_holds,
    computed_dtype,
    names_of_leaves,
)
from schuss._copies import writer_of_copies
from schuss._hyperparameters import (
    Rate,
    axis_of,
    choice,
    count,
    extended,
    flag,
    number,
    optional,
    rate,
    real,
    record,
)
from schuss._internals import internals_of
from schuss._interrupts import Deferred, raised_within
from schuss.averages import ExponentialAverage
from schuss.batches import BatchSize, MiniBatches, Seed, minibatches
from schuss.loss_scale import DynamicLossScale, with_l2_of_fit
from schuss.optimizers import Optimizer
from schuss.schedules import PerEpoch, feed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History", "fit", "with_l2"]

Loss: TypeAlias = Callable[..., tuple[float, Any]]
"""``loss_and_grad(params, *batch) -> (loss, gradients)``."""

Function: TypeAlias = Callable[["History"], object]
Functions: TypeAlias = tuple[Function, ...]

Series: TypeAlias = npt.NDArray[np.float64]

Stop: TypeAlias = Literal["finished", "early", "callback", "interrupted"]

_COST, _LR, _LOSS_SECONDS, _STEP_SECONDS = range(4)
_FIRST_CAPACITY = 1024


_epoch_number = optional(partial(count, least=1))

# What a checkpoint keeps of a training, except for its series.
_SAVED = record(
    validated=flag,
    best_epoch=_epoch_number,
    best=record(epoch=_epoch_number, value=extended, waited=partial(count, least=0)),
    arguments=_arguments.checked_texts,
)


class History:
    """What a training did, step by step and epoch by epoch. Made by `fit`.

    It can be read at any time, by callbacks too: arrays are read-only views of what has been
    recorded so far. Steps and epochs count from 1, so that of step t is at index t - 1.

    Attributes
    ----------
    cost : array of float64, shape (steps,)
        The cost J of each step's mini-batch, before the step, with the L2 cost if there is one.
    epoch_cost : array of float64, shape (epochs,)
        The mean of `cost` over each epoch, weighted by the examples of each mini-batch.
    validation : array of float64, shape (epochs,), or (0,) without validation
        The validation after each epoch; NaN where the training was stopped before it.
    lr : array of float64, shape (steps,)
        The learning rate that each step used, as ``optimizer.lr_now`` tells it: of several groups
        that of those which have no rate of their own, or, where each has its own, that of the
        first. NaN if the optimizer has no ``lr_now``.
    loss_seconds, step_seconds : array of float64, shape (steps,)
        The time spent in the loss with its gradients, and in the optimizer, in seconds.
    batch_size : int
        The number of examples a mini-batch; the last one of an epoch may have fewer.
    steps : int
        The number of steps made.
    epochs : int
        The number of epochs all of whose steps were made.
    best_epoch : int or None
        The last epoch that improved on the best before it by more than ``min_delta``, counted from
        1.
    stopped : {"finished", "early", "callback", "interrupted"} or None
        Why the training ended; None while it is under way, and after an exception.

    See Also
    --------
    fit : Trains, and returns one.
    """

    __slots__ = (
        "_batches",
        "_epoch_cost",
        "_last_weight",
        "_record",
        "_validated",
        "_validation",
        "batch_size",
        "best_epoch",
        "steps",
        "stopped",
    )

    def __init__(self, batch_size: int, examples: int, *, validated: bool) -> None:
        self.batch_size = batch_size
        self._batches = -(-examples // batch_size)
        # Relative to the others: a batch that is alone or like all others weighs exactly 1.
        rest = examples - batch_size * (self._batches - 1)
        self._last_weight = rest / min(batch_size, examples)
        self._record = np.empty((4, _FIRST_CAPACITY))
        self._epoch_cost: list[float] = []
        self._validated = validated
        self._validation: list[float] = []
        self.steps = 0
        self.best_epoch: int | None = None
        self.stopped: Stop | None = None

    @property
    def cost(self) -> Series:
        """The cost of each step."""
        return self._series(_COST)

    @property
    def epoch_cost(self) -> Series:
        """The mean cost of each epoch."""
        return _read_only(np.array(self._epoch_cost, np.float64))

    @property
    def validation(self) -> Series:
        """The validation after each epoch."""
        missing = self.epochs - len(self._validation) if self._validated else 0
        return _read_only(np.array(self._validation + [nan] * missing, np.float64))

    @property
    def lr(self) -> Series:
        """The learning rate of each step."""
        return self._series(_LR)

    @property
    def loss_seconds(self) -> Series:
        """The time each step's loss and gradients took."""
        return self._series(_LOSS_SECONDS)

    @property
    def step_seconds(self) -> Series:
        """The time each step of the optimizer took."""
        return self._series(_STEP_SECONDS)

    @property
    def epochs(self) -> int:
        """The number of whole epochs."""
        return len(self._epoch_cost)

    def to_dict(self) -> dict[str, Series]:
        """Return copies of the arrays by name, as ``numpy.savez`` takes them.

        Returns
        -------
        dict of arrays
            `cost`, `lr`, `loss_seconds` and `step_seconds` by step; `epoch_cost` and `validation`
            by epoch.
        """
        names = ("cost", "lr", "loss_seconds", "step_seconds", "epoch_cost", "validation")
        return {name: getattr(self, name).copy() for name in names}

    def plot(self, figure: "Figure | None" = None) -> "Figure":
        """Draw the training: the cost of each step pale, of each epoch strong, and the rate.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            Where to draw; a new one, which pyplot does not know of, if None.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, to show or to save by ``figure.savefig(path)``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if figure is None:
            try:
                from matplotlib.figure import Figure
            except ImportError:
                raise _missing("History.plot", "matplotlib") from None
            figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(self, figure)
        return figure

    def __repr__(self) -> str:
        """Return how far the training came, what it reached and why it ended."""
        steps = f"{_counted(self.steps, 'step')} in batches of {self.batch_size:,}"
        parts = [_counted(self.epochs, "epoch"), steps]
        if self.epochs:
            parts.append(f"cost {self._epoch_cost[-1]:.4g}")
        if self._validation:
            parts.append(f"validation {self._validation[-1]:.4g}")
        if self.best_epoch is not None:
            values = self._validation if self._validated else self._epoch_cost
            parts.append(f"best {values[self.best_epoch - 1]:.4g} in epoch {self.best_epoch}")
        return f"<History: {', '.join(parts)}; {self.stopped or 'under way'}>"

    # What `fit` records. A step is begun, made and ended: only then it counts, so that whatever
    # comes between leaves no half of it behind.

    def _begin_step(self, cost: float, loss_seconds: float) -> None:
        if self.steps == self._record.shape[1]:
            self._record = np.concatenate((self._record, np.empty_like(self._record)), axis=1)
        self._record[_COST, self.steps] = cost
        self._record[_LOSS_SECONDS, self.steps] = loss_seconds

    def _end_step(self, lr: float, step_seconds: float) -> None:
        self._record[_LR, self.steps] = lr
        self._record[_STEP_SECONDS, self.steps] = step_seconds
        self.steps += 1

    def _end_epoch(self) -> None:
        """Take in the epoch's cost if all its steps were made and it is not there yet."""
        start = self._batches * self.epochs
        if self.steps - start >= self._batches:
            weights = np.ones(self._batches)
            weights[-1] = self._last_weight
            costs = self._record[_COST, start : start + self._batches]
            with np.errstate(all="ignore"):  # costs may be anything
                mean = float(np.average(costs, weights=weights))
                if isinf(mean) and np.isfinite(costs).all():  # their sum is beyond floating point
                    mean = float(np.average(costs / 2**64, weights=weights)) * 2**64
            self._epoch_cost.append(mean)

    # What a checkpoint keeps of it.

    def _saved(self) -> tuple[dict[str, Any], dict[str, Array]]:
        settings = {"validated": self._validated, "best_epoch": self.best_epoch}
        return settings, {
            "steps": self._record[:, : self.steps],
            "epoch_cost": np.array(self._epoch_cost, np.float64),
            "validation": np.array(self._validation, np.float64),
        }

    def _check_validated(self, saved: checkpoints.Checkpoint, validated: bool) -> None:
        if validated != self._validated:
            there, here = ("with", "without") if validated else ("without", "with")
            saved.refuse(f"is of a training {there} validation, expected one {here} it")

    def _resume(self, saved: checkpoints.Checkpoint, training: dict[str, Any]) -> None:
        """Take over what a checkpoint kept, or raise ValueError."""
        steps = saved.series("steps", rows=4)
        epoch_cost = saved.series("epoch_cost")
        validation = saved.series("validation")
        epochs = len(epoch_cost)
        first, measured = epochs * self._batches, epochs if self._validated else 0
        if len(validation) != measured or not first <= steps.shape[1] <= first + self._batches:
            saved.refuse(
                f"holds {steps.shape[1]} steps and {len(validation)} validations, expected "
                f"{first} to {first + self._batches}, and {measured}, as it holds {epochs} epochs "
                f"of {self._batches} batches"
            )
        self.steps = steps.shape[1]
        self._record = np.concatenate((steps, np.empty((4, _FIRST_CAPACITY))), axis=1)
        self._epoch_cost, self._validation = epoch_cost.tolist(), validation.tolist()
        self.best_epoch = training["best_epoch"]

    def _series(self, place: int) -> Series:
        return _read_only(self._record[place, : self.steps])


def _read_only(series: Series) -> Series:
    series.flags.writeable = False
    return series


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _missing(call: str, package: str) -> ImportError:
    return ImportError(
        f"{call}: {package} is not installed, expected it to be (pip install 'schuss[demo]')"
    )


# The colours are Okabe and Ito's, which the colour-blind tell apart.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


def _draw(history: History, figure: "Figure") -> None:
    has_lr = bool(np.isfinite(history.lr).any())
    top, *below = figure.subplots(
        1 + has_lr, sharex=True, squeeze=False, height_ratios=[7, 2][: 1 + has_lr]
    )[:, 0]
    steps = np.arange(history.steps) / history._batches
    epochs = np.arange(history.epochs)
    drawn = [history.cost]
    top.plot(steps, history.cost, color=_BLUE, alpha=0.3, linewidth=0.6, label="each mini-batch")
    dots = {"linewidth": 2, "marker": "o", "markersize": 3}
    if history.epochs:
        # The mean of an epoch stands in its middle, and what was measured after it at its end.
        top.plot(epochs + 0.5, history.epoch_cost, color=_BLUE, label="mean of the epoch", **dots)
    if history.validation.size:
        drawn.append(history.validation)
        top.plot(epochs + 1, history.validation, color=_ORANGE, label="validation", **dots)
    if history.best_epoch is not None and history.best_epoch < history.epochs:
        top.axvline(history.best_epoch, color="0.6", linestyle=":", label="best epoch", zorder=0)
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 10 * values.min():
        top.set_yscale("log")
        top.yaxis.set_major_formatter("{x:g}")
    top.set_ylabel("cost J")
    made = f"{_counted(history.epochs, 'epoch')}, {_counted(history.steps, 'step')}"
    top.set_title(f"Training: {made}", loc="left", weight="bold")
    top.legend(frameon=False)
    for axes in below:
        axes.plot(steps, history.lr, color=_GREEN, drawstyle="steps-post")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
    for axes in (top, *below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    bottom = below[-1] if below else top
    bottom.set_xlim(0, max(history.steps, 1) / history._batches)
    bottom.set_xlabel("epoch")
    figure.align_ylabels()


def _evaluate(
    call: str, loss_and_grad: Loss, params: ArrayTree, batch: object
) -> tuple[float, Any]:
    """Return the loss on a batch as a float, and the gradients as they come."""
    # Mini-batches of a single array are that array.
    arrays = batch if isinstance(batch, tuple) else (batch,)
    result = loss_and_grad(params, *arrays)
    if not isinstance(result, tuple | list) or len(result) != 2:
        was = type(result).__name__
        if isinstance(result, tuple | list):
            was += f" of length {len(result)}"
        raise TypeError(
            f"{call}: loss_and_grad returned a {was}, expected a pair (loss, gradients)"
        )
    loss, grads = result
    return real(call, "the loss", loss), grads


class _L2:
    """The L2 cost of weights, added to the loss and to its gradients."""

    def __init__(
        self,
        call: str,
        strength: float,
        weights: Callable[[str], bool] | None = None,
        loss_scale: DynamicLossScale | float | None = None,
    ) -> None:
        self._call, self._strength, self._weights = call, strength, weights
        self._loss_scale = loss_scale  # None where nobody could tell
        # Of the structure that parameters had last, and which of them are weights.
        self._known: tuple[_core.Plan, list[bool]] | None = None
        self._to_clear: list[Array] = []

    def add(
        self,
        params: ArrayTree,
        loss: float,
        grads: ArrayTree,
        examples: int,
        *,
        clear: bool = False,
    ) -> tuple[float, Any]:
        """Return the loss and the gradients of a batch with those of the L2 cost.

        clear: whether `clear` is to be called after the step.
        """
        plan, chosen, arrays = self._taken_apart(params)
        leaves = self._leaves(plan, grads)
        factor, scale = self._strength / examples, self._loss_scale
        scaled = factor * (scale.value if isinstance(scale, DynamicLossScale) else scale or 1.0)
        weights = [place for place, weight in enumerate(chosen) if weight]
        self._to_clear = [leaves[place] for place in weights] if clear else []
        for leaf in self._to_clear:
            if not leaf.flags.writeable:
                raise ValueError(
                    f"{self._call}: a gradient is read-only, expected writeable arrays, as "
                    "clear_grads is set"
                )
        with np.errstate(all="ignore"):  # as in a step
            for place in weights:
                leaves[place] = _with_decay(arrays[place], scaled, leaves[place])
                if scale is None:
                    with_l2_of_fit[id(leaves[place])] = leaves[place]
            cost = _half_squares(factor, [arrays[place] for place in weights])
        return loss + cost, plan.unflatten(leaves)

    def clear(self) -> None:
        """Set the gradients that were given to zero; the step has done so with others."""
        for leaf in self._to_clear:
            leaf[...] = 0

    def _leaves(self, plan: _core.Plan, grads: ArrayTree) -> list[Array]:
        """Return the gradients, in the dtypes and shapes that a step takes, or raise."""
        call, like = self._call, plan.arrays
        try:
            return plan.flatten(grads, call, "grads", like, "params")
        except TypeError as error:  # for gradients in another dtype than their parameters'
            if raised_within(error):
                raise
        leaves = plan.flatten(grads, call, "grads")
        for place, leaf in enumerate(leaves):
            if computed_dtype(like[place]) == np.float32 == computed_dtype(leaf):
                like[place] = np.broadcast_to(np.zeros((), leaf.dtype), like[place].shape)
        return plan.flatten(grads, call, "grads", like, "params")

    def _taken_apart(self, params: ArrayTree) -> tuple[_core.Plan, list[bool], list[Array]]:
        """Return the plan of a structure, which of its arrays are weights, and the arrays."""
        call, is_weight = self._call, self._weights
        if self._known is not None:
            plan, chosen = self._known
            try:
                return plan, chosen, plan.flatten(params, call, "params", plan.arrays, "params")
            except (TypeError, ValueError) as error:  # of another structure than the last one
                if raised_within(error):
                    raise
        # A plan asks for arrays to write to, but here they are only read and may be frozen.
        plan = _core.Plan(call, _core.map_arrays(_writeable, params, call, "params"))
        arrays = plan.flatten(params, call, "params")
        if is_weight is None:
            chosen = [array.ndim >= 2 for array in arrays]
        else:
            names = names_of_leaves(plan.unflatten([None] * len(arrays)))
            chosen = [flag(call, f"weights({name!r})", is_weight(name)) for name in names]
        self._known = plan, chosen
        return plan, chosen, arrays


def _with_decay(weights: Array, factor: float, grad: Array) -> Array:
    """Return ``factor * weights + grad``, in the dtype that a step computes in."""
    dtype = computed_dtype(weights)
    limits = np.finfo(dtype)
    # What the dtype does not hold is no factor in it, but may give products that are.
    exact = dtype if limits.tiny <= factor <= limits.max else np.dtype(np.float64)
    decay = np.asarray(np.multiply(weights, factor, dtype=exact)).astype(dtype, copy=False)
    decay += grad
    return decay


def _half_squares(factor: float, arrays: list[Array]) -> float:
    """Return half the sum of squares, times the factor, though the sum be beyond float64."""
    squares = sum(map(_squares, arrays))
    if not 1e-280 < squares < inf:
        parts = []
        for array in arrays:
            largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))
            if largest == 0:
                continue
            shift = frexp(largest)[1] if isfinite(largest) else 0
            part = _squares(np.ldexp(array.astype(np.float64), -shift))
            # In two steps: the square of a power of two may itself be beyond.
            parts.append(float(np.ldexp(np.ldexp(factor / 2 * part, shift), shift)))
        return sum(parts)
    return factor / 2 * squares


def _squares(array: Array) -> float:
    axes = list(range(array.ndim))
    return float(np.einsum(array, axes, array, axes, [], dtype=np.float64))


def _writeable(array: Array) -> Array:
    return array if array.flags.writeable else np.empty_like(array, subok=False)


def with_l2(
    loss_and_grad: Loss,
    strength: float,
    *,
    weights: Callable[[str], bool] | None = None,
    axis: int = 0,
    loss_scale: DynamicLossScale | float = 1.0,
) -> Loss:
    """Add the L2 cost of the weights to a loss: ``J = (1/b) sum(loss) + (l2/2b) sum(||W||^2)``.

    The gradient of each weight W gains ``(l2/b) W``, where b is the number of examples of the batch
    and `loss_and_grad` returns the mean over them. On batches of one size this is the same as an
    optimizer's ``weight_decay = l2/b``, if all parameters are weights.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, x, ...) -> (loss, gradients)``: a number, and arrays in the
        structure of `params`, as a step takes them; they are left as they are, so that
        `clear_grads` does not reach those of weights (`fit` with `l2` sets them to zero itself).
    strength : float
        l2, also called lambda; at least 0.
    weights : callable, optional
        Whether the parameter of a name is a weight: ``weights(name) -> bool``. A name is the
        parameter's key in `params`; in nested structures all the keys on the way, joined by "/", as
        in ``"layers/0/W"``; and empty for a single array. It is asked once of each. By default,
        weights are the parameters with two axes or more, so that biases are none.
    axis : int
        The axis of x along which the examples lie, of which b is the length. `fit` cannot know it:
        if they do not lie along axis 0, give `axis` to both.
    loss_scale : DynamicLossScale or float
        What the gradients of `loss_and_grad` are multiplied by (the loss is not), and a step
        divides by: those of the L2 cost then are multiplied by it too.

    Returns
    -------
    callable
        A function like `loss_and_grad`, with the L2 cost. Gradients of weights are computed, and
        returned, in float32 for weights in float16, bfloat16 and float32, and in float64 for those
        in float64.

    Raises
    ------
    TypeError
        If `loss_and_grad` or `weights` is not callable, or `strength` no number, or `loss_scale`
        neither a number nor a `DynamicLossScale`. When called: if
        x is missing or no array, the loss is no number, `axis` no integer, `weights` returns no
        bool, or parameters and gradients are not as an optimizer takes them; but parameters may be
        read-only.
    ValueError
        If `strength` is negative or not finite, or `loss_scale` not above 0 and finite. When
        called: if `axis` is no axis of x, x has no examples, or parameters and gradients are not as
        an optimizer takes them.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, eq. 7.2 and 7.3, with alpha = l2/b.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> def loss_and_grad(params, x):
    ...     return 0.0, {"W": np.zeros((1, 2)), "b": np.zeros(2)}
    >>> params = {"W": np.array([[3.0, 4.0]]), "b": np.array([5.0, 6.0])}
    >>> schuss.with_l2(loss_and_grad, 0.5)(params, np.zeros((10, 1)))
    (0.625, {'W': array([[0.15, 0.2 ]]), 'b': array([0., 0.])})
    """
    call = "with_l2"
    _check_callable(call, "loss_and_grad", loss_and_grad)
    if weights is not None:
        _check_callable(call, "weights", weights)
    strength = number(call, "strength", strength, kind="non_negative")
    if not isinstance(loss_scale, DynamicLossScale):
        loss_scale = number(call, "loss_scale", loss_scale, kind="init_scale")
    l2 = _L2(call, strength, weights, loss_scale)

    def loss_and_grad_with_l2(params: ArrayTree, *batch: Any) -> tuple[float, Any]:
        examples = _examples(call, axis, batch)
        return l2.add(params, *_evaluate(call, loss_and_grad, params, batch), examples)

    return loss_and_grad_with_l2


def _examples(call: str, axis: int, batch: tuple[Any, ...]) -> int:
    if not batch:
        raise TypeError(f"{call}: x is missing, expected an array of examples after params")
    if not hasattr(batch[0], "shape"):
        raise TypeError(f"{call}: x is a {type(batch[0]).__name__}, expected an array")
    examples: int = batch[0].shape[axis_of(call, axis, batch[0], "x")]
    if examples == 0:
        raise ValueError(f"{call}: x has no examples along axis {axis}, expected at least one")
    return examples


class _Unset:
    """What `fit` hands on to `minibatches` only if it was given."""

    def __repr__(self) -> str:
        return "as in minibatches"


_UNSET: Any = _Unset()


def fit(
    loss_and_grad: Loss,
    params: ArrayTree,
    optimizer: Any,
    x: Any,
    y: npt.ArrayLike | None = None,
    *,
    batch_size: BatchSize = _UNSET,
    epochs: int = 1,
    shuffle: bool = _UNSET,
    rng: Seed = _UNSET,
    axis: int = _UNSET,
    drop_last: bool = _UNSET,
    prefetch: int = _UNSET,
    schedule: Rate | None = None,
    schedule_by: str = "step",
    l2: float = 0.0,
    validation: "tuple[Any, ...] | Callable[[Any], float] | None" = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = False,
    callbacks: Function | Sequence[Function] = (),
    on_step: Function | Sequence[Function] = (),
    progress: bool | None = None,
    checkpoint: "checkpoints.Path | None" = None,
    checkpoint_every: int | None = None,
) -> History:
    """Train: epochs of mini-batches, a step of the optimizer for each.

    The loop is ``for x, y in batches: loss, grads = loss_and_grad(params, x, y);
    optimizer.step(grads)``, and gives its very bits. Training goes on where it was left if `fit` is
    called again with the same optimizer; each call returns a history of its own.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, x, y) -> (loss, gradients)``: the mean loss over a mini-batch, and
        its gradients in the structure of `params`. It gets the arrays of a mini-batch, as many as
        there are: ``loss_and_grad(params, x)`` without `y`.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout and in the dtypes of the optimizer; updated
        in place.
    optimizer : Optimizer
        Made for these parameters. Any object with a method ``step(grads)`` will do; one without
        ``lr_now`` leaves no learning rates in the history, and schedules are told the cost if they
        are its ``lr``, or that of its ``param_groups``.
    x : array, tuple of arrays, or MiniBatches
        The examples, of any shape and dtype, as `minibatches` takes them; or mini-batches ready
        made, and then `y`, `batch_size`, `shuffle`, `rng`, `axis`, `drop_last` and `prefetch` stay
        unset.
    y : array, optional
        Their labels, of any dtype, and of any shape with as many along `axis`.
    epochs : int
        The number of passes over the examples; at least 1.
    batch_size, shuffle, rng, axis, drop_last, prefetch
        As in `minibatches`, defaults too.
    schedule : callable or float, optional
        A new learning rate for the optimizer, which keeps it: a number, or a function of the step
        of the optimizer, counted from 1. It is that of the groups without an ``lr`` of their own,
        and refused where each group has its own. A schedule with a method ``update(cost)``, such as
        `schedules.ReduceOnPlateau` and what is made of it, is told the validation of each epoch, or
        else its cost; so are those that the optimizer and its groups have already, each once,
        however many groups share it.
    schedule_by : {"step", "epoch"}
        Whether `schedule` is a function of the step or of the epoch, counted from 1. Epochs are
        those of the optimizer's steps: the first here is ``optimizer.steps // len(batches) + 1``.
    l2 : float
        The strength of an L2 cost of the optimizer's parameters with two axes or more; see
        `with_l2`, which also leaves the choice of the parameters, but must be told `axis` like
        `fit`. At least 0. Where an optimizer of your own divides gradients by a loss scale, use
        ``with_l2(..., loss_scale=scaler)`` in its place: `fit` cannot know the scale, and
        `DynamicLossScale.step` refuses what `l2` was added to.
    validation : tuple of arrays or callable, optional
        What to measure after each epoch: the loss on these examples, as many as you like and else
        of the shapes and dtypes of `x` and `y`, by ``loss_and_grad(params, *validation)`` and
        without `l2`; or ``validation(params)``. Lower is better.
    patience : int, optional
        Stop after so many epochs in a row without improvement of the validation, or of the epoch's
        cost if there is none; at least 1. None never stops early.
    min_delta : float
        By how much the best must fall to count as an improvement: by more than this; at least 0.
    restore_best : bool
        Whether to copy the parameters of the best epoch back in the end, when interrupted too, and
        to rewrite the optimizer's low-precision `copies`. Its state and its averages stay those
        of the last step.
    callbacks : callable, or sequence of callables
        Called with the history after each epoch. One that returns True, Python's or NumPy's, stops
        the training.
    on_step : callable, or sequence of callables
        The same after each step; what remains of the epoch is left out then, and its validation.
    progress : bool, optional
        Whether to show a bar on standard error, with the smoothed cost (needs tqdm). None means:
        where standard error is a terminal and tqdm is installed.
    checkpoint : str or os.PathLike, optional
        A file to save all of the training in. If it is there already, training goes on from it, up
        to `epochs` in all: a training that was stopped anywhere ends with the same bits as if it
        had not been, if all else that it draws random numbers from is started over with each step.
        See `save` for what is kept. It takes the place of what the parameters and the state of the
        optimizer hold, but not of the arguments: those must be what they were when the training
        began, but for `epochs` and `patience`, which may be larger, and those that do not decide
        the result. Compared are the optimizer's class, hyperparameters and groups (which may also
        be as they were last saved), `schedule`, `rng` where it is given (the generator may have
        drawn since), `l2`, `min_delta`, `restore_best`, how mini-batches are cut, and the examples,
        their labels and those of `validation`: all their bytes up to 64 MiB an array, 1,000
        elements of a larger one. Functions cannot be compared: those that are given are used. To go
        on with other arguments, `load` the file into the parameters and the optimizer, and give
        `fit` another path.
    checkpoint_every : int, optional
        After how many steps to save, at least 1; by default after each epoch. It is saved in the
        end too, also when interrupted within the steps of an epoch; what interrupts a validation,
        or the functions called after it, leaves the last one that was saved.

    Returns
    -------
    History
        The cost, the learning rate, the times and the validation. Ctrl-C ends the training and
        returns it too, with all steps made and ``stopped == "interrupted"``; of an optimizer
        without ``steps``, a step that was cut short does not count. One that arrives in the moment
        in which the memory of mini-batches is handed back can be lost: press again.

    Raises
    ------
    TypeError
        If an argument has the wrong type, the optimizer no ``step``, or no ``lr`` for `schedule`;
        if `loss_and_grad` does not return a number and gradients.
    ValueError
        If an argument is out of range, the optimizer was made for other parameters, an argument
        about mini-batches comes with mini-batches ready made, `schedule` is given where each group
        has its own ``lr``, the checkpoint is damaged or of another training, or more epochs of it
        were begun than `epochs`; nothing is changed then.
    ImportError
        If `progress` is True and tqdm is not installed.
    OSError
        If the checkpoint cannot be read or written.

    What the loss, the optimizer or a callback raises passes through.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, sections 8.1.3 (mini-batches), 7.1.1 (L2)
    and algorithm 7.1 (early stopping).

    Examples
    --------
    A line through points:

    >>> import numpy as np, schuss
    >>> x = np.linspace(-1, 1, 200)[:, None]
    >>> y = 3 * x - 1
    >>> def loss_and_grad(params, x, y):
    ...     error = x @ params["W"] + params["b"] - y
    ...     grads = {"W": x.T @ error / len(x), "b": error.mean(axis=0)}
    ...     return (error**2).mean() / 2, grads
    >>> params = {"W": np.zeros((1, 1)), "b": np.zeros(1)}
    >>> optimizer = schuss.Momentum(params, lr=1.0)
    >>> history = schuss.fit(loss_and_grad, params, optimizer, x, y, epochs=40, rng=0)
    >>> history.steps, history.stopped, params["W"].round(2), params["b"].round(2)
    (160, 'finished', array([[3.]]), array([-1.]))
    """
    call = "fit"
    _check_callable(call, "loss_and_grad", loss_and_grad)
    epochs = count(call, "epochs", epochs, least=1)
    if schedule is not None:
        schedule = rate(call, "schedule", schedule)
    schedule_by = choice(call, "schedule_by", schedule_by, among=("step", "epoch"))
    l2 = number(call, "l2", l2, kind="non_negative")
    if not (validation is None or isinstance(validation, tuple) or callable(validation)):
        was = type(validation).__name__
        raise TypeError(
            f"{call}: validation is a {was}, expected a tuple of arrays or a function of params"
        )
    patience = optional(partial(count, least=1))(call, "patience", patience)
    min_delta = number(call, "min_delta", min_delta, kind="non_negative")
    restore_best = flag(call, "restore_best", restore_best)
    progress = optional(flag)(call, "progress", progress)
    if checkpoint is not None:
        checkpoint = _files.check_path(call, "checkpoint", checkpoint)
    elif checkpoint_every is not None:
        raise ValueError(
            f"{call}: checkpoint_every is {checkpoint_every!r} without checkpoint, expected both"
        )
    checkpoint_every = optional(partial(count, least=1))(call, "checkpoint_every", checkpoint_every)
    after_epoch = _functions(call, "callbacks", callbacks)
    after_step = _functions(call, "on_step", on_step)
    _check_optimizer(call, optimizer, scheduled=schedule is not None)
    stepped = _stepped(call, optimizer, params)
    about_batches = {
        "batch_size": batch_size,
        "shuffle": shuffle,
        "rng": rng,
        "axis": axis,
        "drop_last": drop_last,
        "prefetch": prefetch,
    }
    batches = _batches(call, x, y, about_batches)
    if schedule_by == "epoch" and callable(schedule):
        schedule = PerEpoch(schedule, len(batches))
    best = _Best(patience, min_delta, params if restore_best else None)
    training = _Training(
        loss_and_grad=loss_and_grad,
        params=params,
        stepped=stepped,
        optimizer=optimizer,
        batches=batches,
        epochs=epochs,
        schedule=schedule,
        l2=_L2(call, l2) if l2 else None,
        validation=validation,
        best=best,
        after_epoch=after_epoch,
        after_step=after_step,
        tqdm=_tqdm(call, progress),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        arguments={}
        if checkpoint is None
        else _arguments.of_training(
            optimizer,
            schedule,
            batches,
            l2=l2,
            validation=validation,
            patience=patience,
            min_delta=min_delta,
            restore_best=restore_best,
        ),
    )
    training.resume()
    history = training.history
    # Ctrl-C can land wherever a function is called or a loop turns, so never in the handlers'
    # assignments. What is left to do in the end can be done twice.
    try:
        training.run()
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    try:
        training.settle()
    except KeyboardInterrupt:
        history.stopped = "interrupted"
        training.settle()
    return history


class _Best:
    """The best epoch so far, and how long ago it was."""

    def __init__(self, patience: int | None, min_delta: float, params: ArrayTree | None) -> None:
        self._patience, self._min_delta = patience, min_delta
        self._params = params  # None if the best is not to be restored
        # Those that were frozen at first are not trained.
        self._trained = [array.flags.writeable for array in self._all_arrays()]
        self._value, self._waited = inf, 0
        self._kept: tuple[int, list[Array]] | None = None

    @property
    def epoch(self) -> int | None:
        """The best epoch."""
        return None if self._kept is None else self._kept[0]

    @property
    def out_of_patience(self) -> bool:
        """Whether there was no improvement for too long."""
        return self._patience is not None and self._waited >= self._patience

    def judge(self, value: float, epoch: int) -> None:
        """Take in the value of an epoch. NaN is no better."""
        if value < self._value - self._min_delta:
            # The copies are put in force together with the epoch that they are of.
            self._kept = epoch, [array.copy(order="K") for array in self._arrays()]
            self._value, self._waited = value, 0
        else:
            self._waited += 1

    def saved(self) -> tuple[dict[str, Any], list[Array]]:
        """Return what a checkpoint keeps: what JSON can hold, and the copies."""
        settings = {"epoch": self.epoch, "value": self._value, "waited": self._waited}
        return settings, [] if self._kept is None else self._kept[1]

    def resume(self, saved: checkpoints.Checkpoint, best: dict[str, Any], history: History) -> None:
        """Take over what a checkpoint kept, or raise ValueError: what its history does not have."""
        epoch = best["epoch"]
        values = history._validation if history._validated else history._epoch_cost
        for name, said, low, high in [
            ("best['epoch']", epoch or 0, 0, history.epochs),
            ("best['waited']", best["waited"], 0, history.epochs - (epoch or 0)),
            ("best_epoch", history.best_epoch or 0, epoch or 0, epoch or 0),
        ]:
            if not low <= said <= high:
                saved.refuse(f"has training {name} {said}, expected {low} to {high}")
        expected = inf if epoch is None else values[epoch - 1]
        if best["value"] != expected:
            saved.refuse(f"has training best['value'] {best['value']}, expected {expected}")
        copies = [] if epoch is None else [np.empty_like(array) for array in self._arrays()]
        saved.fill("best", copies)
        self._kept = None if epoch is None else (epoch, copies)
        self._value, self._waited = best["value"], best["waited"]

    def restore(self) -> None:
        """Copy the parameters of the best epoch back, and write what optimizers have of them."""
        if self._kept is None:
            return
        kept, arrays = self._kept[1], self._arrays()
        for array, copy in zip(arrays, kept, strict=True):
            if not array.flags.writeable or (array.shape, array.dtype) != (copy.shape, copy.dtype):
                raise ValueError(
                    "fit: params have an array that was frozen, or replaced by another kind, since "
                    f"epoch {self.epoch}, expected one to restore the best epoch in"
                )
        write_copies = writer_of_copies("fit", arrays)
        for array, copy in zip(arrays, kept, strict=True):
            np.copyto(array, copy)
        write_copies()

    def _arrays(self) -> list[Array]:
        """Return the arrays to copy as they are now: one may have been replaced."""
        arrays = self._all_arrays()
        if len(arrays) != len(self._trained):
            raise ValueError(
                f"fit: params have {len(arrays)} arrays, expected {len(self._trained)} as at first"
            )
        return [array for array, trained in zip(arrays, self._trained, strict=True) if trained]

    def _all_arrays(self) -> list[Array]:
        if self._params is None:
            return []
        return arrays_of("fit", "params", self._params, written=True)


class _Bar:
    """A progress bar, drawn ten times a second at most."""

    def __init__(self, tqdm: Any, epochs: int, batches: int) -> None:
        self._bar = tqdm(total=epochs * batches, unit=" steps", dynamic_ncols=True)
        self._epochs, self._batches = epochs, batches
        self._cost = ExponentialAverage(0.98)
        self._steps, self._next = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self._draw()
        finally:
            self._bar.close()

    def show(self, steps: int, cost: float, now: float) -> None:
        """Take in a step, and draw if it is time to."""
        if isfinite(cost):  # one that is not would never leave the average
            self._cost.update(cost)
        self._steps = steps
        if now >= self._next:
            self._next = now + 0.1
            self._draw()

    def _draw(self) -> None:
        if self._steps > 0:
            epoch = (self._steps - 1) // self._batches + 1
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            if self._cost.updates > 0:
                self._bar.set_postfix_str(f"cost {self._cost.value:.4g}", refresh=False)
            self._bar.n = self._steps
            self._bar.refresh()


@dataclass(slots=True, eq=False)
class _Training:
    """A training under way: the arguments of `fit`, checked, and the loop over them."""

    loss_and_grad: Loss
    params: ArrayTree
    stepped: ArrayTree  # those of the optimizer, in its structure
    optimizer: Any
    batches: MiniBatches[Any]
    epochs: int
    schedule: Rate | None
    l2: _L2 | None
    validation: Any
    best: _Best
    after_epoch: Functions
    after_step: Functions
    tqdm: Any
    checkpoint: str | None
    checkpoint_every: int | None
    arguments: _arguments.Texts  # what the checkpoint tells of them
    examples: int = field(init=False)  # an epoch
    history: History = field(init=False)
    # The step under way: what history and optimizer counted before it, and when it began.
    under_way: tuple[int, int | None, float] = field(init=False, default=(-1, None, 0.0))
    # The epoch whose steps are being made, as its mini-batches know it.
    epoch: dict[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        size = self.batches.batch_size
        self.examples = min(self.batches.examples, len(self.batches) * size)
        self.history = History(size, self.examples, validated=self.validation is not None)

    def resume(self) -> None:
        """Go on from the checkpoint, or make the first one."""
        resumes = self.checkpoint is not None and _files.exists(self.checkpoint)
        begun = self.batches._to_resume
        if begun is not None and begun.position and not resumes:
            # There is no history of what was made of it.
            raise ValueError(
                f"fit: x is in the middle of an epoch, after {begun.position} batches, expected "
                "mini-batches at its beginning"
            )
        if self.checkpoint is not None and resumes:
            saved = checkpoints.opened(
                "fit", self.checkpoint, self.params, self.optimizer, with_training=True
            )
            self._take_over(saved)
            return
        before = None
        if self.schedule is not None:
            before = self.optimizer.lr
            self.optimizer.lr = self.schedule
        try:
            self._save()  # what cannot be saved is refused now, not after an epoch
        except BaseException:
            if before is not None:
                self.optimizer.lr = before
            raise

    def _take_over(self, saved: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint, if it is of this training."""
        if saved.training is None:
            saved.refuse("was saved by schuss.save, expected a checkpoint of fit")
        training = saved.check("training", _SAVED, saved.training)
        self.history._check_validated(saved, training["validated"])
        self.arguments = _arguments.resumed(
            saved,
            training["arguments"],
            self.arguments,
            self.optimizer,
            self.schedule,
            self.batches,
            self.epochs,
        )
        self.history._resume(saved, training)
        self._check_epochs()
        self.best.resume(saved, training["best"], self.history)
        under_way, _ = saved.resumption(self.batches)
        there, made = under_way.position if under_way else 0, self._steps_of_epoch()
        if there != made:
            saved.refuse(
                f"has batches['epoch'] after {there} batches, expected {made} as of its steps"
            )
        saved.restore(self.params, self.optimizer, self.batches, self.schedule)

    def _check_epochs(self) -> None:
        begun = -(-self.history.steps // self.history._batches)
        if begun > self.epochs:
            raise ValueError(
                f"fit: epochs is {self.epochs}, expected at least {begun}, as many as checkpoint "
                f"{str(self.checkpoint)!r} has begun (delete the file to start over)"
            )

    def run(self) -> None:
        """Train until something says to stop."""
        bar = self.tqdm and _Bar(self.tqdm, self.epochs, len(self.batches))
        with bar or nullcontext():
            self.history.stopped = self._make_epochs(bar)

    def settle(self) -> None:
        """Record what was made and could not be recorded, save, restore the best parameters."""
        history = self.history
        counted, before, begun = self.under_way
        if counted == history.steps and before is not None and self._steps_counted() == before + 1:
            self._end_step(perf_counter() - begun)
        if self.epoch is not None:  # or all was saved when the last one was over
            self._save()
            self.epoch = None
        history._end_epoch()
        if self.validation is None and history.epochs:  # a second time, it is no better than itself
            self.best.judge(history._epoch_cost[-1], history.epochs)
        history.best_epoch = self.best.epoch
        self.best.restore()

    def _make_epochs(self, bar: _Bar | None) -> Stop:
        history, every = self.history, self.checkpoint_every
        if self.best.out_of_patience:
            return "early"
        for epoch in range(history.epochs + 1, self.epochs + 1):
            if self._make_steps(bar):
                return "callback"
            self.epoch = None
            reason = self._end_epoch()
            if every is None or history.steps % every == 0 or reason or epoch == self.epochs:
                self._save()
            if reason is not None:
                return reason
        return "finished"

    def _make_steps(self, bar: _Bar | None) -> bool:
        """Make the steps of an epoch; return whether a function said to stop."""
        history, optimizer, params = self.history, self.optimizer, self.params
        epoch: Any = iter(self.batches)
        last = history._batches * (history.epochs + 1)
        if self.checkpoint is not None:
            self.epoch = self.batches.state_dict()["epoch"]
        with closing(epoch) if hasattr(epoch, "close") else nullcontext():
            for batch, size in zip(epoch, self._sizes(), strict=True):
                start = perf_counter()
                cost, grads = _evaluate("fit", self.loss_and_grad, params, batch)
                if self.l2 is not None:
                    clear = getattr(optimizer, "clear_grads", False) is True
                    cost, grads = self.l2.add(self.stepped, cost, grads, size, clear=clear)
                between = perf_counter()
                history._begin_step(cost, between - start)
                self.under_way = history.steps, self._steps_counted(), between
                optimizer.step(grads)
                if self.l2 is not None:
                    self.l2.clear()
                end = perf_counter()
                self._end_step(end - between)
                if bar is not None:
                    bar.show(history.steps, cost, end)
                if self.after_step and _says_stop(self.after_step, history):
                    return True
                every = self.checkpoint_every
                if every is not None and history.steps % every == 0 and history.steps < last:
                    self._save()
        return False

    def _sizes(self) -> Iterator[int]:
        """Return the examples in each batch that is left of the epoch."""
        size = self.batches.batch_size
        made = self._steps_of_epoch() * size
        return (min(size, self.examples - start) for start in range(made, self.examples, size))

    def _steps_of_epoch(self) -> int:
        return self.history.steps - self.history._batches * self.history.epochs

    def _save(self) -> None:
        """Save all of the training, between two steps or two epochs."""
        if self.checkpoint is None:
            return
        # The optimizer's steps count, not the batches that were handed out.
        epoch = self.epoch and {**self.epoch, "position": self._steps_of_epoch()}
        settings, series = self.history._saved()
        best, copies = self.best.saved()
        checkpoints.write(
            "fit",
            self.checkpoint,
            self.params,
            self.optimizer,
            batches=self.batches.state_dict() | {"epoch": epoch},
            training=settings | {"best": best, "arguments": self.arguments},
            series=series | {f"best/{place}": copy for place, copy in enumerate(copies)},
        )

    def _steps_counted(self) -> int | None:
        """Return the steps that the optimizer has counted, or None if it does not count."""
        steps = getattr(self.optimizer, "steps", None)
        return steps if isinstance(steps, int) else None

    def _end_step(self, seconds: float) -> None:
        lr = getattr(self.optimizer, "lr_now", None)
        lr = nan if lr is None else real("fit", "optimizer.lr_now", lr)
        self.history._end_step(lr, seconds)

    def _end_epoch(self) -> Stop | None:
        """Measure, adapt and tell; return why to stop, if so."""
        _stepped("fit", self.optimizer, self.params)  # or steps went where the loss does not look
        history = self.history
        history._end_epoch()
        value = history._epoch_cost[-1]
        if self.validation is not None:
            value = self._validate()
            history._validation.append(value)
        feed(_rates_in_use(self.optimizer), value)
        self.best.judge(value, history.epochs)
        history.best_epoch = self.best.epoch
        says_stop = _says_stop(self.after_epoch, history)
        return "early" if self.best.out_of_patience else "callback" if says_stop else None

    def _validate(self) -> float:
        if callable(self.validation):
            return real("fit", "validation(params)", self.validation(self.params))
        return _evaluate("fit", self.loss_and_grad, self.params, self.validation)[0]


def _rates_in_use(optimizer: Any) -> list[Any]:
    """Return the rate or schedule of each group, or of an optimizer without groups."""
    groups = getattr(optimizer, "param_groups", ())
    rates = [group.get("lr") for group in groups if isinstance(group, Mapping)]
    return rates or [getattr(optimizer, "lr", None)]


def _says_stop(functions: Functions, history: History) -> bool:
    # All are called, whatever the first of them returns.
    answers = [function(history) for function in functions]
    return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)


def _check_callable(call: str, name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected a function")


def _functions(call: str, name: str, value: Any) -> Functions:
    if callable(value):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        was = type(value).__name__
        raise TypeError(f"{call}: {name} is a {was}, expected a function or a sequence of them")
    for place, function in enumerate(value):
        _check_callable(call, f"{name}[{place}]", function)
    return tuple(value)


def _check_optimizer(call: str, optimizer: Any, *, scheduled: bool) -> None:
    if isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        was = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else ""
        was = was or f"a {type(optimizer).__name__}"
        raise TypeError(f"{call}: optimizer is {was}, expected an object with step(grads)")
    if scheduled and not hasattr(optimizer, "lr"):
        was = type(optimizer).__name__
        raise TypeError(f"{call}: optimizer is a {was} without lr, expected one for the schedule")
    if scheduled and isinstance(optimizer, Optimizer) and not internals_of(optimizer).uses("lr"):
        raise ValueError(
            f"{call}: schedule is given where each of the {len(optimizer.param_groups)} groups of "
            "the optimizer has an lr of its own, expected None (give the schedule to groups: "
            "optimizer.param_groups[0]['lr'] = schedule)"
        )


def _stepped(call: str, optimizer: Any, params: ArrayTree) -> ArrayTree:
    """Return the parameters that the optimizer steps, in its structure."""
    stepped: ArrayTree = getattr(optimizer, "params", params)
    if stepped is params:
        return params
    with Deferred():
        try:
            held = arrays_of(call, "optimizer.params", stepped)
        except (TypeError, ValueError):  # what another optimizer calls params need not be arrays
            return params
    check_holds(call, params, held)  # a network may have more layers than the optimizer
    return stepped


def _batches(call: str, x: Any, y: Any, options: dict[str, Any]) -> MiniBatches[Any]:
    options = {name: value for name, value in options.items() if value is not _UNSET}
    if isinstance(x, MiniBatches):
        if y is not None:
            options = {"y": y}
        for name, value in options.items():
            simple = value is None or isinstance(value, int | str)
            was = repr(value) if simple else f"a {type(value).__name__}"
            raise ValueError(
                f"{call}: {name} is {was}, expected it unset, as x is mini-batches ready made"
            )
        batches = x
    else:
        batches = minibatches(x, y, **options)
    if len(batches) == 0:
        raise ValueError(
            f"{call}: x has {batches.examples} examples and drop_last leaves out all of them, "
            f"expected at least one batch of {batches.batch_size}"
        )
    return batches


def _tqdm(call: str, progress: bool | None) -> Any:
    """Return tqdm if there is to be a bar, or None."""
    if not (_on_terminal() if progress is None else progress):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return None
        raise _missing(call, "tqdm") from None
    return tqdm


def _on_terminal() -> bool:
    with Deferred():
        try:
            return sys.stderr.isatty()
        except (AttributeError, OSError, ValueError):  # none, or one nobody knows of, or closed
            return False
