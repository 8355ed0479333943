"""The history of a training: what `fit` records, and its picture."""

from itertools import pairwise
from math import isinf, nan
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss._errors import missing_package
from schuss._hyperparameters import shown
from schuss._listing import public_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from schuss.checkpoints import Checkpoint

__all__ = ["History"]

__dir__ = public_names(__name__)

Series: TypeAlias = npt.NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)
Stop: TypeAlias = Literal["finished", "early", "callback", "interrupted"]

# The rows of the record of steps, and those of the mini-batches whose step is still to be made.
_COST, _LOSS_SECONDS, _STEP_SECONDS, _EXAMPLES, _LR, _SKIPPED = range(6)
_ROWS, _ROWS_OF_BATCHES = 6, 4
_STEP = Struct(f"{_ROWS}d")  # the rows of one step, which follow each other in memory
_INITIAL_CAPACITY = 1024


class History:
    """What a training did, step by step and epoch by epoch. Made by `fit`.

    It can be read at any time, also by callbacks: arrays are read-only views of what has been
    recorded so far. Steps and epochs count from 1, so step t is at index t - 1.

    Attributes
    ----------
    cost : array of float64, shape (steps,)
        The cost J of each step's mini-batch, before the step, including the L2 cost if there is
        one; of several mini-batches that were accumulated, the mean of their costs.
    epoch_cost : array of float64, shape (epochs,)
        The mean of `cost` over each epoch, weighted by the examples of each step. Mini-batches
        without an array count as one example.
    validation : array of float64, shape (epochs,), or (0,) without validation
        The validation after each epoch; NaN where the training was stopped before it.
    lr : array of float64, shape (steps,)
        The learning rate that each step used, which is ``optimizer.lr_now``: with several groups,
        the rate of the groups without an ``lr`` of their own or, if each has its own, the rate of
        the first group. NaN if the optimizer has no ``lr_now``.
    skipped : array of bool, shape (steps,)
        Which steps the optimizer skipped, because a gradient was not finite.
    loss_seconds, step_seconds : array of float64, shape (steps,)
        The time spent in the loss and its gradients, and in the optimizer, in seconds.
    batch_size : int or None
        The number of examples a mini-batch; the last one of an epoch may have fewer. None if `fit`
        did not cut the mini-batches itself.
    steps : int
        The number of steps made, those included that were skipped.
    resumed_steps : int
        How many of them were made before, and loaded from a checkpoint. If these are all, there was
        nothing left to do.
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
        "_epochs",
        "_record",
        "_steps_per_epoch",
        "_validated",
        "_validation",
        "batch_size",
        "best_epoch",
        "resumed_steps",
        "steps",
        "stopped",
    )

    def __init__(
        self, batch_size: int | None, steps_per_epoch: int | None, *, validated: bool
    ) -> None:
        self.batch_size = batch_size
        self.steps = self.resumed_steps = 0
        self.best_epoch: int | None = None
        self.stopped: Stop | None = None
        self._steps_per_epoch = steps_per_epoch  # None if it is unknown
        self._record = np.empty((_ROWS, _INITIAL_CAPACITY))
        # The number of steps at the end of each epoch, and its cost: one object, so that an
        # interruption cannot separate them.
        self._epochs: list[tuple[int, float]] = []
        self._validated = validated
        self._validation: list[float] = []

    @property
    def cost(self) -> Series:
        """The cost of each step."""
        return _read_only(self._record[_COST, : self.steps])

    @property
    def epoch_cost(self) -> Series:
        """The mean cost of each epoch."""
        return _read_only(np.array([cost for _, cost in self._epochs], np.float64))

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
    def skipped(self) -> npt.NDArray[np.bool_]:
        """Which steps were skipped."""
        return _read_only(self._record[_SKIPPED, : self.steps] != 0)

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
        return len(self._epochs)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the arrays by name, as ``numpy.savez`` takes them.

        Returns
        -------
        dict of arrays
            `cost`, `lr`, `skipped`, `loss_seconds` and `step_seconds` by step; `epoch_cost` and
            `validation` by epoch.
        """
        by_step = ("cost", "lr", "skipped", "loss_seconds", "step_seconds")
        names = (*by_step, "epoch_cost", "validation")
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
        steps = _pluralized(self.steps, "step")
        if self.batch_size is not None:
            steps += f" in batches of {self.batch_size:,}"
        parts = [_pluralized(self.epochs, "epoch"), steps]
        if skipped := int(self.skipped.sum()):
            parts.append(f"{skipped:,} skipped")
        if self.resumed_steps:
            parts.append(f"{self.resumed_steps:,} of them from a checkpoint")
        if self.epochs:
            parts.append(f"cost {self._epochs[-1][1]:.4g}")
        if self._validation:
            parts.append(f"validation {self._validation[-1]:.4g}")
        if self.best_epoch is not None:
            values = self.validation if self._validated else self.epoch_cost
            parts.append(f"best {values[self.best_epoch - 1]:.4g} in epoch {self.best_epoch}")
        return f"<History: {', '.join(parts)}; {self.stopped or 'under way'}>"


class Recorder:
    """Writes a history for `fit`."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._use(history._record)
        # The mini-batches of the step that is still to be made, as rows of the record.
        self._batches: list[list[float]] = []

    def _use(self, record: Array) -> None:
        self.history._record = record = np.asfortranarray(record)
        self._memory = record.T.data.cast("B")  # `struct` writes it faster than NumPy does

    @property
    def steps_of_epoch(self) -> int:
        """The number of steps made in the epoch under way."""
        history = self.history
        return history.steps - (history._epochs[-1][0] if history._epochs else 0)

    @property
    def waiting(self) -> int:
        """The number of mini-batches added since the last step."""
        return len(self._batches)

    @property
    def scores(self) -> list[float]:
        """The value of each epoch that early stopping compares."""
        history = self.history
        return history._validation if history._validated else history.epoch_cost.tolist()

    @property
    def seconds(self) -> Series:
        """The times of the loss and of the optimizer by step, which may be replaced."""
        return self.history._record[_LOSS_SECONDS : _STEP_SECONDS + 1, : self.history.steps]

    # A step counts once it is ended. So an interruption leaves no incomplete step.

    def add_batch(self, cost: float, examples: int | None, loss_seconds: float) -> None:
        """Record a mini-batch of the next step."""
        self._batches.append([cost, loss_seconds, 0.0, examples or 1])

    def add_seconds(self, step_seconds: float) -> None:
        """Add the time that the optimizer took for the last mini-batch."""
        self._batches[-1][_STEP_SECONDS] += step_seconds

    def keep_batches(self, number: int) -> None:
        """Forget all mini-batches of the next step but the first ones."""
        del self._batches[number:]

    def end_step(self, seconds: float, lr: float, *, skipped: bool) -> float:
        """Record a step of the mini-batches added since the last one; return its cost.

        seconds: the time that the optimizer took for it, besides those of `add_seconds`.
        """
        history, batches = self.history, self._batches
        if history.steps == history._record.shape[1]:
            more = np.empty_like(history._record)
            self._use(np.concatenate((history._record, more), axis=1))
        row = batches[-1]
        row[_STEP_SECONDS] += seconds
        if len(batches) > 1:
            costs, *others = np.array(batches).T
            row = [mean_cost(costs), *(float(each.sum()) for each in others)]
        _STEP.pack_into(self._memory, history.steps * _STEP.size, *row, lr, skipped)
        history.steps += 1
        batches.clear()
        return row[_COST]

    def end_epoch(self, *, exhausted: bool = False) -> None:
        """Record the epoch's cost, if all its steps were made and it is not recorded yet.

        exhausted: whether there were no more mini-batches, if their number is not known before.
        """
        history, steps = self.history, self.steps_of_epoch
        if steps == 0 or not (exhausted or steps == history._steps_per_epoch):
            return
        costs, examples = history._record[[_COST, _EXAMPLES], history.steps - steps : history.steps]
        # A full batch weighs 1, so that the mean over full batches is exact.
        mean = mean_cost(costs, examples / examples.max())
        history._epochs.append((history.steps, mean))

    def add_validation(self, value: float) -> None:
        """Record the validation after an epoch."""
        self.history._validation.append(value)

    def to_save(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the settings and the arrays that a checkpoint keeps."""
        history = self.history
        settings = {"validated": history._validated, "best_epoch": history.best_epoch}
        return settings, {
            "steps": history._record[:, : history.steps],
            "batches": np.reshape(np.array(self._batches, np.float64), (-1, _ROWS_OF_BATCHES)).T,
            "epoch_ends": np.array([end for end, _ in history._epochs], np.float64),
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
        history = self.history
        # If `fit` did not cut the mini-batches itself, an epoch may have any number of steps.
        steps_per_epoch = None if history.batch_size is None else history._steps_per_epoch
        steps = checkpoint.series("steps", rows=_ROWS)
        batches = checkpoint.series("batches", rows=_ROWS_OF_BATCHES)
        ends, epoch_cost, validation = map(
            checkpoint.series, ("epoch_ends", "epoch_cost", "validation")
        )
        total, epochs = steps.shape[1], len(epoch_cost)
        expected = epochs if history._validated else 0
        if len(validation) != expected or len(ends) != epochs:
            checkpoint.refuse(
                f"holds {len(ends)} ends of epochs and {len(validation)} validations, expected "
                f"{epochs} and {expected}, as it holds the costs of {epochs} epochs"
            )
        for name, array in (("steps", steps), ("batches", batches)):
            if not (array[_EXAMPLES] >= 1).all():
                checkpoint.refuse(f"holds {name} of less than one example, expected at least one")
        *complete, under_way = (b - a for a, b in pairwise([0.0, *ends.tolist(), total]))
        most = steps_per_epoch or total
        if any(n != (steps_per_epoch or max(n // 1, 1)) for n in complete) or not (
            0 <= under_way <= most
        ):
            checkpoint.refuse(
                f"holds {total} steps and ends of epochs at {shown(ends.tolist())}, expected "
                + (f"one every {most} steps" if steps_per_epoch else "counts that increase")
            )
        history.steps = history.resumed_steps = total
        self._use(np.concatenate((steps, np.empty((_ROWS, _INITIAL_CAPACITY))), axis=1))
        history._epochs = [*zip(map(int, ends), epoch_cost.tolist(), strict=True)]
        history._validation = validation.tolist()
        history.best_epoch = best_epoch
        self._batches = batches.T.tolist()


def mean_cost(values: Series, weights: Series | None = None) -> float:
    """Return the weighted mean of costs, even if float64 cannot hold their sum."""
    with np.errstate(all="ignore"):  # costs may be infinite or NaN
        mean = float(np.average(values, weights=weights))
        if isinf(mean) and np.isfinite(values).all():
            mean = float(np.average(values / 2**64, weights=weights)) * 2**64
    return mean


def _read_only(series: npt.NDArray[_T]) -> npt.NDArray[_T]:
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
    steps = _in_epochs(history, np.arange(history.steps))
    _draw_costs(history, steps, top)
    for axes in below:
        axes.plot(steps, history.lr, color=GREEN, drawstyle="steps-post")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
    for axes in (top, *below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    bottom = [top, *below][-1]
    bottom.set_xlim(0, _in_epochs(history, np.array([max(history.steps, 1)]))[0])
    bottom.set_xlabel("epoch")
    figure.align_ylabels()


def _in_epochs(history: History, steps: npt.NDArray[Any]) -> Series:
    """Return numbers of steps as numbers of epochs."""
    ends = [0, *(end for end, _ in history._epochs)]
    under_way = history.steps - ends[-1]
    latest = ends[-1] - ends[-2] if len(ends) > 1 else 1
    ends.append(ends[-1] + max(history._steps_per_epoch or latest, under_way))
    epochs: Series = np.interp(steps, ends, np.arange(len(ends)))
    return epochs


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
