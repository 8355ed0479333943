"""The history of a training: what `fit` records, and its picture."""

from math import isinf, nan
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss._errors import missing_package
from schuss._listing import public_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from schuss.checkpoints import Checkpoint

__all__ = ["History"]

__dir__ = public_names(__name__)

Series: TypeAlias = npt.NDArray[np.float64]
Stop: TypeAlias = Literal["finished", "early", "callback", "interrupted"]

# The rows of the record of steps.
_COST, _LR, _LOSS_SECONDS, _STEP_SECONDS = range(4)
_INITIAL_CAPACITY = 1024


class History:
    """What a training did, step by step and epoch by epoch. Made by `fit`.

    It can be read at any time, also by callbacks: arrays are read-only views of what has been
    recorded so far. Steps and epochs count from 1, so step t is at index t - 1.

    Attributes
    ----------
    cost : array of float64, shape (steps,)
        The cost J of each step's mini-batch, before the step, including the L2 cost if there is
        one.
    epoch_cost : array of float64, shape (epochs,)
        The mean of `cost` over each epoch, weighted by the examples of each mini-batch.
    validation : array of float64, shape (epochs,), or (0,) without validation
        The validation after each epoch; NaN where the training was stopped before it.
    lr : array of float64, shape (steps,)
        The learning rate that each step used, which is ``optimizer.lr_now``: with several groups,
        the rate of the groups without an ``lr`` of their own or, if each has its own, the rate of
        the first group. NaN if the optimizer has no ``lr_now``.
    loss_seconds, step_seconds : array of float64, shape (steps,)
        The time spent in the loss and its gradients, and in the optimizer, in seconds.
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
    fit : Trains, and returns a history.
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
        self.steps = 0
        self.best_epoch: int | None = None
        self.stopped: Stop | None = None
        self._batches = -(-examples // batch_size)
        # A batch weighs its examples over those of a full batch. So the mean over full batches, or
        # over a single batch, is exact.
        rest = examples - batch_size * (self._batches - 1)
        self._last_weight = rest / min(batch_size, examples)
        self._record = np.empty((4, _INITIAL_CAPACITY))
        self._epoch_cost: list[float] = []
        self._validated = validated
        self._validation: list[float] = []

    @property
    def cost(self) -> Series:
        """The cost of each step."""
        return _read_only(self._record[_COST, : self.steps])

    @property
    def epoch_cost(self) -> Series:
        """The mean cost of each epoch."""
        return _read_only(np.array(self._epoch_cost, np.float64))

    @property
    def validation(self) -> Series:
        """The validation after each epoch."""
        absent = self.epochs - len(self._validation) if self._validated else 0
        return _read_only(np.array(self._validation + [nan] * absent, np.float64))

    @property
    def lr(self) -> Series:
        """The learning rate of each step."""
        return _read_only(self._record[_LR, : self.steps])

    @property
    def loss_seconds(self) -> Series:
        """The time each step's loss and gradients took."""
        return _read_only(self._record[_LOSS_SECONDS, : self.steps])

    @property
    def step_seconds(self) -> Series:
        """The time each step of the optimizer took."""
        return _read_only(self._record[_STEP_SECONDS, : self.steps])

    @property
    def epochs(self) -> int:
        """The number of complete epochs."""
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
        """Draw the cost of each step (pale) and of each epoch (strong), and the learning rate.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            The figure to draw in. If None, a new one, which pyplot does not manage.

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
                raise missing_package("History.plot", "matplotlib") from None
            figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(self, figure)
        return figure

    def __repr__(self) -> str:
        """Return how far the training came, its costs, and why it ended."""
        steps = f"{_pluralized(self.steps, 'step')} in batches of {self.batch_size:,}"
        parts = [_pluralized(self.epochs, "epoch"), steps]
        if self.epochs:
            parts.append(f"cost {self._epoch_cost[-1]:.4g}")
        if self._validation:
            parts.append(f"validation {self._validation[-1]:.4g}")
        if self.best_epoch is not None:
            values = self._validation if self._validated else self._epoch_cost
            parts.append(f"best {values[self.best_epoch - 1]:.4g} in epoch {self.best_epoch}")
        return f"<History: {', '.join(parts)}; {self.stopped or 'under way'}>"


class Recorder:
    """Writes a history for `fit`."""

    def __init__(self, history: History) -> None:
        self.history = history

    @property
    def batches(self) -> int:
        """The number of mini-batches in an epoch."""
        return self.history._batches

    @property
    def steps_of_epoch(self) -> int:
        """The number of steps made in the epoch under way."""
        return self.history.steps - self.batches * self.history.epochs

    @property
    def scores(self) -> list[float]:
        """The value of each epoch that early stopping compares."""
        history = self.history
        return history._validation if history._validated else history._epoch_cost

    # A step counts once it is ended. So an interruption leaves no incomplete step.

    def begin_step(self, cost: float, loss_seconds: float) -> None:
        """Record what is known before the step."""
        history = self.history
        if history.steps == history._record.shape[1]:
            more = np.empty_like(history._record)
            history._record = np.concatenate((history._record, more), axis=1)
        history._record[_COST, history.steps] = cost
        history._record[_LOSS_SECONDS, history.steps] = loss_seconds

    def end_step(self, lr: float, step_seconds: float) -> None:
        """Record the rest, and count the step."""
        history = self.history
        history._record[_LR, history.steps] = lr
        history._record[_STEP_SECONDS, history.steps] = step_seconds
        history.steps += 1

    def end_epoch(self) -> None:
        """Record the epoch's cost, if all its steps were made and it is not recorded yet."""
        history, batches = self.history, self.batches
        if self.steps_of_epoch < batches:
            return
        costs = history.cost[batches * history.epochs :][:batches]
        weights = np.ones(batches)
        weights[-1] = history._last_weight
        with np.errstate(all="ignore"):  # costs may be infinite or NaN
            mean = float(np.average(costs, weights=weights))
            if isinf(mean) and np.isfinite(costs).all():  # their sum overflowed
                mean = float(np.average(costs / 2**64, weights=weights)) * 2**64
        history._epoch_cost.append(mean)

    def add_validation(self, value: float) -> None:
        """Record the validation after an epoch."""
        self.history._validation.append(value)

    def to_save(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the settings and the arrays that a checkpoint keeps."""
        history = self.history
        settings = {"validated": history._validated, "best_epoch": history.best_epoch}
        return settings, {
            "steps": history._record[:, : history.steps],
            "epoch_cost": history.epoch_cost,
            "validation": np.array(history._validation, np.float64),
        }

    def check_validated(self, checkpoint: "Checkpoint", validated: bool) -> None:
        """Raise ValueError if only one of the checkpoint and this training has a validation."""
        if validated != self.history._validated:
            there, here = ("with", "without") if validated else ("without", "with")
            checkpoint.refuse(f"is of a training {there} validation, expected one {here} it")

    def resume(self, checkpoint: "Checkpoint", best_epoch: int | None) -> None:
        """Load what a checkpoint kept, or raise ValueError."""
        history, batches = self.history, self.batches
        steps = checkpoint.series("steps", rows=4)
        epoch_cost = checkpoint.series("epoch_cost")
        validation = checkpoint.series("validation")
        epochs = len(epoch_cost)
        first, measured = epochs * batches, epochs if history._validated else 0
        if len(validation) != measured or not first <= steps.shape[1] <= first + batches:
            checkpoint.refuse(
                f"holds {steps.shape[1]} steps and {len(validation)} validations, expected "
                f"{first} to {first + batches}, and {measured}, as it holds {epochs} epochs of "
                f"{batches} batches"
            )
        history.steps = steps.shape[1]
        history._record = np.concatenate((steps, np.empty((4, _INITIAL_CAPACITY))), axis=1)
        history._epoch_cost, history._validation = epoch_cost.tolist(), validation.tolist()
        history.best_epoch = best_epoch


def _read_only(series: Series) -> Series:
    series.flags.writeable = False
    return series


def _pluralized(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


# Okabe and Ito's colours, which people with colour blindness can tell apart.
BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#E69F00"
VERMILION, PURPLE = "#D55E00", "#CC79A7"


def _draw(history: History, figure: "Figure") -> None:
    has_lr = bool(np.isfinite(history.lr).any())
    top, *below = figure.subplots(
        1 + has_lr, sharex=True, squeeze=False, height_ratios=[7, 2][: 1 + has_lr]
    )[:, 0]
    steps = np.arange(history.steps) / history._batches
    _draw_costs(history, steps, top)
    for axes in below:
        axes.plot(steps, history.lr, color=GREEN, drawstyle="steps-post")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
    for axes in (top, *below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    bottom = [top, *below][-1]
    bottom.set_xlim(0, max(history.steps, 1) / history._batches)
    bottom.set_xlabel("epoch")
    figure.align_ylabels()


def _draw_costs(history: History, steps: Series, axes: Any) -> None:
    epochs = np.arange(history.epochs)
    axes.plot(steps, history.cost, color=BLUE, alpha=0.3, linewidth=0.6, label="each mini-batch")
    dots = {"linewidth": 2, "marker": "o", "markersize": 3}
    if history.epochs:
        # The mean of an epoch is drawn in its middle, and the validation at its end.
        axes.plot(epochs + 0.5, history.epoch_cost, color=BLUE, label="mean of the epoch", **dots)
    if history.validation.size:
        axes.plot(epochs + 1, history.validation, color=VERMILION, label="validation", **dots)
    if history.best_epoch is not None and history.best_epoch < history.epochs:
        axes.axvline(history.best_epoch, color="0.6", linestyle=":", label="best epoch", zorder=0)
    values = np.concatenate((history.cost, history.validation))
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("cost J")
    made = f"{_pluralized(history.epochs, 'epoch')}, {_pluralized(history.steps, 'step')}"
    axes.set_title(f"Training: {made}", loc="left", weight="bold")
    axes.legend(frameon=False)
