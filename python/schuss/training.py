"""The training loop: epochs of mini-batches, validation, early stopping, and checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from math import nan
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss import _files, checkpoints
from schuss._arguments import Arguments, checked_texts
from schuss._arrays import ArrayTree, arrays_of, check_holds
from schuss._early_stopping import EarlyStopping
from schuss._errors import wrong_type
from schuss._hyperparameters import (
    NON_NEGATIVE,
    Rate,
    choice,
    count,
    extended,
    flag,
    optional,
    rate,
    real,
    record,
)
from schuss._internals import internals_of
from schuss._interrupts import Deferred
from schuss._listing import public_names
from schuss._loss import Loss, check_function, evaluate
from schuss._progress import ProgressBar, tqdm_if_wanted
from schuss.batches import BatchSize, MiniBatches, Seed, minibatches, position_of
from schuss.history import History, Recorder, Stop
from schuss.l2 import L2, with_l2
from schuss.optimizers import Optimizer
from schuss.schedules import PerEpoch, feed

__all__ = ["History", "fit", "with_l2"]

__dir__ = public_names(__name__)

Function: TypeAlias = Callable[[History], object]

_from_one = partial(count, least=1)

# What a checkpoint keeps of a training, besides its arrays.
_SAVED = record(
    validated=flag,
    best_epoch=optional(_from_one),
    best=record(epoch=optional(_from_one), value=extended, waited=partial(count, least=0)),
    arguments=checked_texts,
)


class _Unset:
    """The default of arguments that `fit` passes on to `minibatches` only if they are given."""

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
    """Train for several epochs of mini-batches, with one optimizer step for each.

    The loop is ``for x, y in batches: loss, grads = loss_and_grad(params, x, y);
    optimizer.step(grads)``, and gives the same bits. Calling `fit` again with the same optimizer
    continues the training; each call returns its own history.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, x, y) -> (loss, gradients)``: the mean loss over a mini-batch, and
        its gradients in the structure of `params`. It is called with all arrays of a mini-batch:
        without `y`, as ``loss_and_grad(params, x)``.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout and in the dtypes of the optimizer; updated
        in place.
    optimizer : Optimizer
        An optimizer of these parameters. Any object with a method ``step(grads)`` works. Without
        ``lr_now`` it leaves no learning rates in the history. `fit` passes the cost to schedules
        that are its ``lr``, or the ``lr`` of its ``param_groups``.
    x : array, tuple of arrays, or MiniBatches
        The examples, of any shape and dtype, as `minibatches` takes them. With a `MiniBatches`,
        leave `y`, `batch_size`, `shuffle`, `rng`, `axis`, `drop_last` and `prefetch` unset.
    y : array, optional
        The labels, of any dtype and any shape with an entry for each example along `axis`.
    epochs : int
        The number of passes over the examples; at least 1.
    batch_size, shuffle, rng, axis, drop_last, prefetch
        As in `minibatches`, with the same defaults.
    schedule : callable or float, optional
        A new learning rate for the optimizer, which keeps it: a number, or a function of the
        optimizer's step, counted from 1. It applies to the groups without an ``lr`` of their own,
        and is refused if each group has its own. `fit` passes the validation of each epoch, or else
        its cost, to a schedule with a method ``update(cost)``, such as `schedules.ReduceOnPlateau`
        and schedules made of it. It also does so for the schedules that the optimizer and its
        groups already have: once for each, even if several groups share it.
    schedule_by : {"step", "epoch"}
        Whether `schedule` is a function of the step or of the epoch, counted from 1. Epochs are
        those of the optimizer's steps: the first one here is
        ``optimizer.steps // len(batches) + 1``.
    l2 : float
        The strength of an L2 cost of the optimizer's parameters with two axes or more; at least 0.
        With `with_l2` you can choose the parameters, but must pass it `axis` as you do to `fit`.
        If your optimizer divides gradients by a loss scale, use
        ``with_l2(..., loss_scale=scaler)`` instead: `fit` cannot know the scale, and
        `DynamicLossScale.step` refuses gradients to which `l2` was added.
    validation : tuple of arrays or callable, optional
        What to measure after each epoch; lower is better. A tuple of examples, any number of them,
        otherwise with the shapes and dtypes of `x` and `y`: the loss on them,
        ``loss_and_grad(params, *validation)``, without `l2`. Or a function:
        ``validation(params)``.
    patience : int, optional
        Stop after this many epochs in a row without improvement of the validation, or of the
        epoch's cost if there is no validation; at least 1. None never stops early.
    min_delta : float
        An epoch is an improvement if it is lower than the best by more than this; at least 0.
    restore_best : bool
        Whether to copy the parameters of the best epoch back at the end, also after an interrupt,
        and to rewrite the optimizer's low-precision `copies`. Its state and its averages stay those
        of the last step.
    callbacks : callable, or sequence of callables
        Called with the history after each epoch. One that returns True, Python's or NumPy's, stops
        the training.
    on_step : callable, or sequence of callables
        The same after each step. If one stops the training, the rest of the epoch and its
        validation are left out.
    progress : bool, optional
        Whether to show a bar on standard error, with the smoothed cost (needs tqdm). None means: if
        standard error is a terminal and tqdm is installed.
    checkpoint : str or os.PathLike, optional
        A file to save the whole training in. If the file exists, training resumes from it,
        overwriting the parameters and the state of the optimizer, until `epochs` in total. The
        results have the same bits as those of an uninterrupted training, if all other random
        numbers that it draws start over with each step. See `save` for what is kept.

        The arguments must be the same as when the training began, except for `epochs` and
        `patience`, which may be larger, and those that do not affect the result. `fit` compares the
        optimizer's class, hyperparameters and groups (which may also be those that were saved
        last), `schedule`, `rng` if given (the generator may have drawn since), `l2`, `min_delta`,
        `restore_best`, the settings of the mini-batches, and the examples, their labels and those
        of `validation`: all bytes of an array of up to 64 MiB, 1,000 elements of a larger one. It
        cannot compare functions, and uses those that it is given. To continue with other arguments,
        `load` the file into the parameters and the optimizer, and give `fit` another path.
    checkpoint_every : int, optional
        The number of steps between two saves, at least 1; by default `fit` saves after each epoch.
        It also saves at the end, and when the steps of an epoch are interrupted. If the validation,
        or a function that is called after it, is interrupted, the file stays as it was saved last.

    Returns
    -------
    History
        The cost, the learning rate, the times and the validation. Ctrl-C ends the training, and
        `fit` returns the history of all steps made, with ``stopped == "interrupted"``. If the
        optimizer has no ``steps``, a step that was interrupted does not count. A Ctrl-C that
        arrives while the memory of mini-batches is returned to its pool may be lost: press again.

    Raises
    ------
    TypeError
        If an argument has the wrong type, the optimizer has no ``step``, or no ``lr`` for
        `schedule`; if `loss_and_grad` does not return a number and gradients.
    ValueError
        If an argument is out of range, the optimizer was made for other parameters, an argument
        about mini-batches is given with a `MiniBatches`, `schedule` is given and each group has its
        own ``lr``, the checkpoint is damaged or of another training, or it began more epochs than
        `epochs`; nothing is changed then.
    ImportError
        If `progress` is True and tqdm is not installed.
    OSError
        If the checkpoint cannot be read or written.

    Errors that the loss, the optimizer or a callback raises are not caught.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, sections 8.1.3 (mini-batches), 7.1.1 (L2)
    and algorithm 7.1 (early stopping).

    Examples
    --------
    Fit a line to points:

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
    check_function("fit", "loss_and_grad", loss_and_grad)
    settings = _Settings(
        epochs=epochs,
        schedule=schedule,
        schedule_by=schedule_by,
        l2=l2,
        validation=validation,
        patience=patience,
        min_delta=min_delta,
        restore_best=restore_best,
        callbacks=callbacks,
        on_step=on_step,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    _check_optimizer(optimizer, scheduled=settings.schedule is not None)
    batching = (batch_size, shuffle, rng, axis, drop_last, prefetch)
    training = _Training(loss_and_grad, params, optimizer, _batches(x, y, batching), settings)
    training.resume()
    # Python runs signal handlers at calls and loops, so Ctrl-C cannot interrupt the assignments.
    try:
        training.run()
    except KeyboardInterrupt:
        training.history.stopped = "interrupted"
    try:
        training.finalize()
    except KeyboardInterrupt:
        training.history.stopped = "interrupted"
        training.finalize()  # it can run twice
    return training.history


def _functions(call: str, name: str, value: Any) -> tuple[Function, ...]:
    if callable(value):
        return (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong_type(call, name, value, "a function or a sequence of them")
    for index, function in enumerate(value):
        check_function(call, f"{name}[{index}]", function)
    return tuple(value)


def _validation(call: str, name: str, value: Any) -> Any:
    if value is None or isinstance(value, tuple) or callable(value):
        return value
    raise wrong_type(call, name, value, "a tuple of arrays or a function of params")


@dataclass(slots=True, kw_only=True)
class _Settings:
    """The settings of `fit`, checked."""

    epochs: int = field(metadata={"check": _from_one})
    schedule: Rate | None = field(metadata={"check": optional(rate)})
    schedule_by: str = field(metadata={"check": partial(choice, among=("step", "epoch"))})
    l2: float = field(metadata={"check": NON_NEGATIVE})
    validation: Any = field(metadata={"check": _validation})
    patience: int | None = field(metadata={"check": optional(_from_one)})
    min_delta: float = field(metadata={"check": NON_NEGATIVE})
    restore_best: bool = field(metadata={"check": flag})
    callbacks: Any = field(metadata={"check": _functions})
    on_step: Any = field(metadata={"check": _functions})
    progress: bool | None = field(metadata={"check": optional(flag)})
    checkpoint: Any = field(metadata={"check": optional(_files.check_path)})
    checkpoint_every: int | None = field(metadata={"check": optional(_from_one)})

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.checkpoint_every is not None:
            raise ValueError(
                f"fit: checkpoint_every is {self.checkpoint_every!r} without checkpoint, expected "
                "both"
            )
        for each in fields(self):
            value = each.metadata["check"]("fit", each.name, getattr(self, each.name))
            setattr(self, each.name, value)


class _Training:
    """A training under way: the loop over the epochs, its history and its checkpoint."""

    def __init__(
        self,
        loss_and_grad: Loss,
        params: ArrayTree,
        optimizer: Any,
        batches: MiniBatches[Any],
        settings: _Settings,
    ) -> None:
        self.loss_and_grad, self.params, self.optimizer = loss_and_grad, params, optimizer
        self.optimizer_params = _optimizer_params(optimizer, params)
        self.batches, self.settings = batches, settings
        self.schedule = settings.schedule
        if settings.schedule_by == "epoch" and callable(self.schedule):
            self.schedule = PerEpoch(self.schedule, len(batches))
        self.l2 = L2("fit", settings.l2) if settings.l2 else None
        self.early_stopping = EarlyStopping(
            settings.patience, settings.min_delta, params if settings.restore_best else None
        )
        self.tqdm = tqdm_if_wanted("fit", settings.progress)
        size = batches.batch_size
        self.examples = min(batches.examples, len(batches) * size)  # of an epoch
        self.history = History(size, self.examples, validated=settings.validation is not None)
        self.recorder = Recorder(self.history)
        # Before the step under way: the steps of the history and of the optimizer, and the time.
        self.step_under_way: tuple[int, int | None, float] = (-1, None, 0.0)
        # The epoch whose steps are being made, as in the state of the mini-batches.
        self.epoch: dict[str, Any] | None = None

    @cached_property
    def arguments(self) -> Arguments:
        """The arguments that a checkpoint keeps."""
        names = ("l2", "validation", "patience", "min_delta", "restore_best")
        others = {name: getattr(self.settings, name) for name in names}
        return Arguments(self.optimizer, self.schedule, self.batches, others)

    def resume(self) -> None:
        """Continue from the checkpoint, or make the first one."""
        path, optimizer = self.settings.checkpoint, self.optimizer
        if path is not None and _files.exists(path):
            self._load(checkpoints.opened("fit", path, self.params, optimizer, with_training=True))
            return
        if position := position_of(self.batches):  # there is no history of its first steps
            raise ValueError(
                f"fit: x is in the middle of an epoch, after {position} batches, expected "
                "mini-batches at its beginning"
            )
        before = None
        if self.schedule is not None:
            before, optimizer.lr = optimizer.lr, self.schedule
        try:
            self._save()  # what cannot be saved is refused now, not after an epoch
        except BaseException:
            if before is not None:
                optimizer.lr = before
            raise

    def _load(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue from a checkpoint, if it is of this training."""
        if checkpoint.training is None:
            checkpoint.refuse("was saved by schuss.save, expected a checkpoint of fit")
        saved = checkpoint.check("training", _SAVED, checkpoint.training)
        recorder, epochs = self.recorder, self.settings.epochs
        recorder.check_validated(checkpoint, saved["validated"])
        self.arguments.resume(checkpoint, saved["arguments"], epochs)
        recorder.resume(checkpoint, saved["best_epoch"])
        started = -(-self.history.steps // recorder.batches)
        if started > epochs:
            raise ValueError(
                f"fit: epochs is {epochs}, expected at least {started}, the number of "
                "epochs that checkpoint "
                f"{self.settings.checkpoint!r} has begun (delete the file to start over)"
            )
        self.early_stopping.resume(checkpoint, saved["best"], recorder)
        epoch, _ = checkpoint.batches_state(self.batches)
        position = epoch.position if epoch else 0
        if position != recorder.steps_of_epoch:
            checkpoint.refuse(
                f"has batches['epoch'] after {position} batches, expected "
                f"{recorder.steps_of_epoch} as of its steps"
            )
        checkpoint.restore(self.params, self.optimizer, self.batches, self.schedule)

    def _save(self) -> None:
        """Save the training, between two steps or two epochs."""
        if self.settings.checkpoint is None:
            return
        # Batches that were handed out without a step do not count.
        epoch = self.epoch and {**self.epoch, "position": self.recorder.steps_of_epoch}
        training, series = self.recorder.to_save()
        best, copies = self.early_stopping.to_save()
        checkpoints.write(
            "fit",
            self.settings.checkpoint,
            self.params,
            self.optimizer,
            batches=self.batches.state_dict() | {"epoch": epoch},
            training=training | {"best": best, "arguments": self.arguments.texts},
            series=series | {f"best/{index}": copy for index, copy in enumerate(copies)},
        )

    def run(self) -> None:
        """Train until a reason to stop occurs."""
        bar = self.tqdm and ProgressBar(self.tqdm, self.settings.epochs, len(self.batches))
        with bar or nullcontext():
            self.history.stopped = self._run_epochs(bar)

    def finalize(self) -> None:
        """Record what an interruption left unrecorded, save, and restore the best parameters."""
        history = self.history
        recorded, before, start = self.step_under_way
        if recorded == history.steps and before is not None and self._steps_made() == before + 1:
            self._end_step(perf_counter() - start)
        if self.epoch is not None:  # otherwise the end of the last epoch was saved
            self._save()
            self.epoch = None
        self.recorder.end_epoch()
        if self.settings.validation is None and history.epochs:
            # If this is the second time, the epoch does not improve on itself.
            self.early_stopping.update(self.recorder.scores[-1], history.epochs)
        history.best_epoch = self.early_stopping.best_epoch
        self.early_stopping.restore()

    def _run_epochs(self, bar: ProgressBar | None) -> Stop:
        history, every = self.history, self.settings.checkpoint_every
        if self.early_stopping.out_of_patience:
            return "early"
        for epoch in range(history.epochs + 1, self.settings.epochs + 1):
            if self._run_steps(bar):
                return "callback"
            self.epoch = None
            reason = self._end_epoch()
            last = reason is not None or epoch == self.settings.epochs
            if every is None or history.steps % every == 0 or last:
                self._save()
            if reason is not None:
                return reason
        return "finished"

    def _run_steps(self, bar: ProgressBar | None) -> bool:
        """Make the steps of an epoch; return whether a function stopped the training."""
        history, every = self.history, self.settings.checkpoint_every
        epoch: Any = iter(self.batches)
        if self.settings.checkpoint is not None:
            self.epoch = self.batches.state_dict()["epoch"]
        with closing(epoch) if hasattr(epoch, "close") else nullcontext():
            for batch, size in zip(epoch, self._sizes(), strict=True):
                cost, end = self._step(batch, size)
                if bar is not None:
                    bar.update(history.steps, cost, end)
                if self.settings.on_step and _should_stop(self.settings.on_step, history):
                    return True
                is_last = self.recorder.steps_of_epoch == self.recorder.batches
                if every is not None and history.steps % every == 0 and not is_last:
                    self._save()
        return False

    def _step(self, batch: Any, size: int) -> tuple[float, float]:
        """Make and record a step; return its cost and when it ended."""
        optimizer, start = self.optimizer, perf_counter()
        cost, grads = evaluate("fit", self.loss_and_grad, self.params, batch)
        if self.l2 is not None:
            clear = getattr(optimizer, "clear_grads", False) is True
            cost, grads = self.l2.add(self.optimizer_params, cost, grads, size, clear=clear)
        between = perf_counter()
        self.recorder.begin_step(cost, between - start)
        self.step_under_way = self.history.steps, self._steps_made(), between
        optimizer.step(grads)
        if self.l2 is not None:
            self.l2.clear()
        end = perf_counter()
        self._end_step(end - between)
        return cost, end

    def _sizes(self) -> Iterator[int]:
        """Return the number of examples in each remaining batch of the epoch."""
        size = self.batches.batch_size
        first = self.recorder.steps_of_epoch * size
        return (min(size, self.examples - start) for start in range(first, self.examples, size))

    def _steps_made(self) -> int | None:
        """Return the optimizer's count of steps, or None if it has none."""
        steps = getattr(self.optimizer, "steps", None)
        return steps if isinstance(steps, int) else None

    def _end_step(self, seconds: float) -> None:
        lr = getattr(self.optimizer, "lr_now", None)
        self.recorder.end_step(nan if lr is None else real("fit", "optimizer.lr_now", lr), seconds)

    def _end_epoch(self) -> Stop | None:
        """Validate, adapt the rates, and call the callbacks; return why to stop, if so."""
        # Raises if the optimizer's parameters are not those of the loss any more.
        _optimizer_params(self.optimizer, self.params)
        history, recorder = self.history, self.recorder
        recorder.end_epoch()
        if self.settings.validation is not None:
            recorder.add_validation(self._validate(self.settings.validation))
        value = recorder.scores[-1]
        feed(_rates_in_use(self.optimizer), value)
        self.early_stopping.update(value, history.epochs)
        history.best_epoch = self.early_stopping.best_epoch
        should_stop = _should_stop(self.settings.callbacks, history)
        return (
            "early" if self.early_stopping.out_of_patience else "callback" if should_stop else None
        )

    def _validate(self, validation: Any) -> float:
        if callable(validation):
            return real("fit", "validation(params)", validation(self.params))
        return evaluate("fit", self.loss_and_grad, self.params, validation)[0]


def _rates_in_use(optimizer: Any) -> list[Any]:
    """Return the rate or schedule of each group, or of an optimizer without groups."""
    groups = getattr(optimizer, "param_groups", ())
    rates = [group.get("lr") for group in groups if isinstance(group, Mapping)]
    return rates or [getattr(optimizer, "lr", None)]


def _should_stop(functions: Sequence[Function], history: History) -> bool:
    answers = [function(history) for function in functions]  # all are called
    return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)


def _check_optimizer(optimizer: Any, *, scheduled: bool) -> None:
    is_class, name = isinstance(optimizer, type), type(optimizer).__name__
    if is_class or not callable(getattr(optimizer, "step", None)):
        was = f"the class {optimizer.__name__}" if is_class else f"a {name}"
        raise TypeError(f"fit: optimizer is {was}, expected an object with step(grads)")
    if scheduled and not hasattr(optimizer, "lr"):
        raise TypeError(f"fit: optimizer is a {name} without lr, expected one for the schedule")
    if scheduled and isinstance(optimizer, Optimizer) and not internals_of(optimizer).uses("lr"):
        raise ValueError(
            f"fit: schedule is given where each of the {len(optimizer.param_groups)} groups of the "
            "optimizer has an lr of its own, expected None (give the schedule to groups: "
            "optimizer.param_groups[0]['lr'] = schedule)"
        )


def _optimizer_params(optimizer: Any, params: ArrayTree) -> ArrayTree:
    """Return the parameters that the optimizer updates, in its structure."""
    own: ArrayTree = getattr(optimizer, "params", params)
    if own is params:
        return params
    with Deferred():
        try:
            arrays = arrays_of("fit", "optimizer.params", own)
        except (TypeError, ValueError):  # the `params` of other optimizers need not be arrays
            return params
    check_holds("fit", params, arrays)  # `params` may hold more arrays than the optimizer
    return own


def _batches(x: Any, y: Any, batching: tuple[Any, ...]) -> MiniBatches[Any]:
    names = ("batch_size", "shuffle", "rng", "axis", "drop_last", "prefetch")
    options = {
        name: value for name, value in zip(names, batching, strict=True) if value is not _UNSET
    }
    if isinstance(x, MiniBatches):
        if y is not None:
            options = {"y": y}
        for name, value in options.items():
            simple = value is None or isinstance(value, int | str)
            was = repr(value) if simple else f"a {type(value).__name__}"
            raise ValueError(
                f"fit: {name} is {was}, expected it to be unset, as x is a MiniBatches"
            )
        batches = x
    else:
        batches = minibatches(x, y, **options)
    if len(batches) == 0:
        raise ValueError(
            f"fit: x has {batches.examples} examples and drop_last leaves out all of them, "
            f"expected at least one batch of {batches.batch_size}"
        )
    return batches
