"""The training loop: epochs of mini-batches, validation, early stopping, and checkpoints."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._arrays import ArrayTree
from schuss._batch_sources import BatchSource, batch_source
from schuss._early_stopping import EarlyStopping
from schuss._fit_ranks import OneProcess, ranks_of
from schuss._fit_settings import (
    Function,
    Settings,
    check_optimizer,
    masters_of,
    optimizer_params,
    rates_in_use,
)
from schuss._hints import OF_BATCHES, with_hints
from schuss._hyperparameters import Rate
from schuss._listing import public_names
from schuss._loss import Loss, check_function
from schuss._progress import ProgressBar, tqdm_if_wanted
from schuss._registry import flush_rows
from schuss._stepping import Stepping
from schuss._training_file import TrainingFile
from schuss._validation import validate
from schuss.batches import BatchSize, MiniBatches, Seed
from schuss.checkpoints import Path
from schuss.history import History, Recorder, Stop
from schuss.l2 import with_l2
from schuss.loss_scale import DynamicLossScale
from schuss.optimizers import Optimizer
from schuss.schedules import PerEpoch, feed

__all__ = ["History", "fit", "with_l2"]

__dir__ = public_names(__name__)


class _Unset:
    """The default of arguments that `fit` passes on to `minibatches` only if they are given."""

    def __repr__(self) -> str:
        return "as in minibatches"


_UNSET: Any = _Unset()


@with_hints(OF_BATCHES, "batch_size")
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
    accumulate: int = 1,
    schedule: Rate | None = None,
    schedule_by: str = "step",
    l2: float = 0.0,
    loss_scale: DynamicLossScale | float | None = None,
    validation: "tuple[Any, ...] | Callable[[Any], float] | Iterable[Any] | None" = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    mode: str = "min",
    start_from_epoch: int = 0,
    restore_best: bool = False,
    callbacks: Function | Sequence[Function] = (),
    on_step: Function | Sequence[Function] = (),
    progress: bool | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    state: Any = None,
) -> History:
    """Train for several epochs of mini-batches, with an optimizer step for each, or for several.

    The loop is ``for x, y in batches: loss, grads = loss_and_grad(params, x, y);
    optimizer.step(grads)``, and gives the same bits. Calling `fit` again with the same optimizer
    continues the training; each call returns its own history.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, x, y) -> (loss, gradients)``: the mean loss over a mini-batch, and
        its gradients in the structure of `params`. Where they are `schuss.Rows`, it reads the rows
        that it uses by ``optimizer.rows(indices)``. It is called with all arrays of a mini-batch:
        without `y`, as ``loss_and_grad(params, x)``. With `loss_scale`, the gradients, but not the
        loss, are those of the scaled loss.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout and in the dtypes of the optimizer; updated
        in place.
    optimizer : Optimizer
        An optimizer of these parameters, also one that is sharded among processes (see Notes). Any
        object with a method ``step(grads)`` works, except with `accumulate`, `loss_scale` and
        `checkpoint`. Without ``lr_now`` it leaves no learning rates in the history. `fit` passes
        the cost to schedules that are its ``lr``, or the ``lr`` of its ``param_groups``.
    x : array, tuple of arrays, MiniBatches, or iterable of mini-batches
        The examples, of any shape and dtype, as `minibatches` takes them. Or else mini-batches: a
        `MiniBatches`, a DataLoader of PyTorch, a list of tuples of arrays, a function that returns
        an iterator, such as a generator function, or anything else that is iterated over in each
        epoch. Then leave `y`, `batch_size`, `shuffle`, `rng`, `drop_last` and `prefetch` unset. A
        list of arrays is one array of examples; a list of mini-batches has tuples: ``[(x,), ...]``.

        Mini-batches of your own are passed on as they are: a tuple or a list as several arguments,
        anything else as one. A DataLoader yields tensors, ``x.numpy()`` is an array. An epoch ends
        when there are no more; it may have any number of them. The number of examples in one is the
        length of its first array.
    y : array, optional
        The labels, of any dtype and any shape with an entry for each example along `axis`.
    epochs : int
        The number of passes over the examples; at least 1.
    batch_size, shuffle, rng, axis, drop_last, prefetch
        As in `minibatches`, with the same defaults. `axis` is also the axis of the examples in
        mini-batches of your own.
    accumulate : int
        The number of mini-batches a step, at least 1: the step uses the mean of their gradients,
        ``optimizer.accumulate(grads)`` for each, then
        ``optimizer.step(scale=1 / optimizer.accumulated)``. If mini-batches are left at the end of
        an epoch, the last step uses the mean of these. Each mini-batch has the same weight,
        smaller ones too. Schedules, `on_step` and `checkpoint_every` count the steps.
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
        ``optimizer.steps // steps + 1``, where an epoch has ``steps`` of them. "epoch" needs
        mini-batches with a length.
    l2 : float
        The strength of an L2 cost of the optimizer's parameters with two axes or more; at least 0.
        Their gradients cannot be `schuss.Rows`: use the optimizer's `weight_decay` for that.
        With `with_l2` you can choose the parameters, but must pass it `axis` as you do to `fit`,
        and the loss scale. With `accumulate`, each mini-batch has this cost.
    loss_scale : DynamicLossScale or float, optional
        The scale of the loss whose gradients `loss_and_grad` returns, for gradients in float16: the
        step divides them by it, and the L2 cost is scaled too. Let `loss_and_grad` differentiate
        ``scaler.scale(loss)`` and return the loss itself. With a `DynamicLossScale`, steps with a
        gradient that is not finite are skipped, and the scale is updated after each step. A
        checkpoint keeps it.
    validation : tuple of arrays, callable, or iterable of mini-batches, optional
        What to measure after each epoch; see `mode`. A tuple of examples, any number of them,
        otherwise with the shapes and dtypes of `x` and `y`: the loss on them,
        ``loss_and_grad(params, *validation)``, without `l2`. Or a function:
        ``validation(params)``. Or mini-batches, such as a DataLoader, a list, or a `MiniBatches`:
        the mean loss over their examples.
    patience : int, optional
        Stop after this many epochs in a row without improvement of the validation, or of the
        epoch's cost if there is no validation; at least 1. None never stops early.
    min_delta : float
        An epoch is an improvement if it is better than the best by more than this; at least 0.
    mode : {"min", "max"}
        Whether lower values of the validation (or of the cost) are better, or higher ones, such as
        those of an accuracy. A `ReduceOnPlateau` in use must have the same mode.
    start_from_epoch : int
        The number of epochs at the beginning that are not compared, as in Keras: none of them is
        the best, and patience counts from the next one.
    restore_best : bool
        Whether to copy the parameters of the best epoch back at the end, also after an interrupt,
        and to rewrite the optimizer's low-precision `copies`. Its state and its averages stay those
        of the last step.
    callbacks : callable, or sequence of callables
        Called with the history after each epoch. One that returns True, Python's or NumPy's, stops
        the training.
    on_step : callable, or sequence of callables
        The same after each step. If one stops the training, the rest of the epoch and its
        validation are left out. One that reads parameters whose gradients are `schuss.Rows` calls
        ``optimizer.flush()`` first; `fit` itself does so before the validation and `callbacks`.
    progress : bool, optional
        Whether to show a bar on standard error, with the smoothed cost (needs tqdm). None means: if
        standard error is a terminal and tqdm is installed.
    checkpoint : str or os.PathLike, optional
        A file to save the whole training in. If the file exists, training resumes from it,
        overwriting the parameters and the state of the optimizer, until `epochs` in total. The
        results have the same bits as those of an uninterrupted training, if all other random
        numbers that it draws start over with each step, or are in `state`. If nothing is left to
        do, `fit` warns. See `save` for what is kept, and Notes for several ranks.

        The arguments must be the same as when the training began, except for `epochs` and
        `patience`, which may be larger, and those that do not affect the result. `fit` compares the
        optimizer's class, hyperparameters and groups (which may also be those that were saved
        last), `schedule`, `rng` if given (the generator may have drawn since), `accumulate`, `l2`,
        `loss_scale` (but not the scale itself), `min_delta`, `mode`, `start_from_epoch`,
        `restore_best`, the names in `state`, the settings of the mini-batches, and the examples,
        their labels and those of `validation`: all bytes of an array of up to 64 MiB, 1,000
        elements of a larger one. It cannot compare functions, and uses those that it is given. To
        continue with other arguments, `load` the file into the parameters and the optimizer, and
        give `fit` another path.

        Of mini-batches of your own, it compares the type, the length, and the arrays of a list. To
        resume an epoch, it skips those that were used. Their order must be the same again: put
        what they draw random numbers from into `state`, which is then first loaded as it was when
        the epoch began.
    checkpoint_every : int, optional
        The number of steps between two saves, at least 1; by default `fit` saves after each epoch.
        It also saves at the end, and when the steps of an epoch are interrupted. If the validation,
        or a function that is called after it, is interrupted, the file stays as it was saved last.
    state : object, or mapping of objects, optional
        What else the checkpoint keeps: an object with ``state_dict()`` and
        ``load_state_dict(state)``, a `numpy.random.Generator`, a pair of functions
        ``(get, set)``, or a mapping of names to these. A state holds values for JSON and arrays, as
        `extra` of `save`. It is read after each mini-batch. `load` returns it as ``"state"``.

    Returns
    -------
    History
        The cost, the learning rate, the times and the validation. Ctrl-C ends the training, and
        `fit` returns the history of all steps made, with ``stopped == "interrupted"``. If the
        optimizer has no ``steps``, a step that was interrupted does not count. Accumulated
        gradients that wait for a step are dropped, except in the checkpoint. A Ctrl-C that
        arrives while the memory of mini-batches is returned to its pool may be lost: press again.

    Raises
    ------
    TypeError
        If an argument has the wrong type, the optimizer has no ``step``, or no ``lr`` for
        `schedule`; if `loss_and_grad` does not return a number and gradients, or a function `x`
        no iterable.
    ValueError
        If an argument is out of range, the optimizer was made for other parameters or has
        accumulated gradients, an argument about mini-batches is given with mini-batches, `x` can be
        iterated over once and `epochs` is larger, `schedule` is given and each group has its own
        ``lr``, a `schedules.ReduceOnPlateau` has another mode, the checkpoint is damaged or of
        another training, it began more epochs than `epochs`, or an argument is not the same on all
        ranks; nothing is changed then. If an epoch has no mini-batches, the epoch to resume fewer
        than were used, or a rank fewer than another.
    ImportError
        If `progress` is True and tqdm is not installed.
    OSError
        If the checkpoint cannot be read or written.

    Errors that the loss, the optimizer or a callback raises are not caught.

    Notes
    -----
    With a sharded optimizer (`schuss.mpi.Sharded`), all ranks call `fit` with the same arguments,
    and with all examples. `fit` cuts each mini-batch among the ranks, as `minibatches` does with
    `part`, in the order that the `rng` of rank 0 gives. The loss is that of the rank's share; a
    rank without examples in a mini-batch does not call it. Steps, costs and the L2 cost are those
    of the whole mini-batch, where each rank weighs as much as it has examples. So all ranks return
    the same history, with the times of the slowest one. The optimizer's `reduction` must be "mean".

    Of mini-batches of your own, each rank uses its own. Their sizes may differ; an epoch must have
    the same number of them on all ranks. To keep the examples of each rank apart, pass a function
    that returns an iterator over them.

    Of a `validation` on examples, each rank computes its share. Mini-batches are dealt to the ranks
    in turn. Pass all examples or all mini-batches on every rank, not a share of the rank's own:
    `fit` compares only how many there are. A `MiniBatches` with the rank's `part` is used whole. A
    function is called on all ranks, and the mean of what it returns counts. `callbacks` and
    `on_step` are called on all ranks, and may differ: if one returns True on one rank, all stop.
    What is raised on one rank is raised on all. Ctrl-C on any rank ends all of them at the same
    step; it takes effect when the loss or the callback returns, and a second Ctrl-C does not wait
    for the other ranks. Rank 0 shows the bar.

    The ranks write the checkpoint together. It is that of one process, so any number of ranks
    continues from it. `state` is that of rank 0, which all ranks load. So if each rank draws random
    numbers of its own, such as those of dropout, from a generator in `state`, the ranks draw equal
    ones when the training resumes. To resume with the same bits, make the generator of each step
    from the rank and the step: ``numpy.random.default_rng((rank, optimizer.steps))``.

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
    given = locals()  # the arguments by name
    ranks = ranks_of(optimizer)
    with ranks.deferring_signals():
        with ranks.together():
            check_function("fit", "loss_and_grad", loss_and_grad)
            settings = Settings(**{each.name: given[each.name] for each in fields(Settings)})
            check_optimizer(optimizer, settings)
            names = ("batch_size", "shuffle", "rng", "axis", "drop_last", "prefetch")
            options = {name: given[name] for name in names if given[name] is not _UNSET}
            source = batch_source(x, y, options, ranks, epochs=settings.epochs)
            training = _Training(loss_and_grad, params, optimizer, source, settings, ranks)
            training.prepare()
        if ranks.is_first and (reason := training.nothing_left):
            warnings.warn(reason, stacklevel=3)  # of the caller of the decorated function
        # Python runs signal handlers at calls and loops, so Ctrl-C cannot interrupt assignments.
        try:
            with ranks.together():
                training.run()
        except KeyboardInterrupt:
            training.history.stopped = "interrupted"
        try:
            with ranks.together():
                training.finalize()
        except KeyboardInterrupt:
            training.history.stopped = "interrupted"
            with ranks.together():
                training.finalize()  # it can run twice
    return training.history


class _Training:
    """A training under way: the loop over its epochs."""

    def __init__(
        self,
        loss_and_grad: Loss,
        params: ArrayTree,
        optimizer: Any,
        source: BatchSource,
        settings: Settings,
        ranks: OneProcess,
    ) -> None:
        self.ranks = ranks
        self.loss_and_grad, self.params, self.optimizer = loss_and_grad, params, optimizer
        stepped = optimizer_params(optimizer, params)
        self.source, self.settings = source, settings
        self.steps_per_epoch = source.length and -(-source.length // settings.accumulate)
        self.tqdm = tqdm_if_wanted("fit", settings.progress) if ranks.is_first else None
        validated = settings.validation is not None
        self.history = History(source.batch_size, self.steps_per_epoch, validated=validated)
        self.recorder = Recorder(self.history)
        self.early_stopping = EarlyStopping(
            settings.patience,
            settings.min_delta,
            settings.mode,
            settings.start_from_epoch,
            params if settings.restore_best else None,
            masters_of(optimizer) if settings.restore_best else [],
            ranks,
        )
        self.stepping = Stepping(
            loss_and_grad,
            params,
            optimizer,
            self.recorder,
            settings,
            source,
            ranks,
            stepped=stepped,
        )
        self.file = TrainingFile(
            params,
            optimizer,
            source,
            _schedule(settings, self.steps_per_epoch),
            settings,
            ranks,
            recorder=self.recorder,
            early_stopping=self.early_stopping,
            stepping=self.stepping,
        )
        self.has_on_step = False  # whether a rank has functions to call after each step
        self.in_epoch = False  # whether the steps of an epoch are being made
        self.exhausted = False  # whether the epoch under way has no more mini-batches

    def prepare(self) -> None:
        """Begin the training, or continue that of the checkpoint."""
        self.ranks.check_same({**self.settings.facts(), **self.source.facts()})
        if self.source.batches is not None:
            self.ranks.equalize(self.source.batches)
        if isinstance(self.settings.validation, MiniBatches):
            self.ranks.part_of("validation", self.settings.validation)
            self.ranks.equalize(self.settings.validation)
        self.has_on_step = self.ranks.any(bool(self.settings.on_step))
        flush_rows("fit", "params", self.params)
        self.file.resume()

    @property
    def nothing_left(self) -> str | None:
        """Why there is nothing left to do, if there is not."""
        epochs, patience = self.settings.epochs, self.settings.patience
        if self.early_stopping.out_of_patience:
            why = f"of which the last {patience} were no improvement (patience)"
        elif self.history.epochs == epochs:
            why = f"and epochs is {epochs}"
        else:
            return None
        return (
            f"fit: there is nothing left to do: checkpoint {self.settings.checkpoint!r} holds "
            f"{self.history.epochs} epochs, {why}"
        )

    def flush(self) -> None:
        """Bring all rows of the parameters up to date, if gradients are `schuss.Rows`."""
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.flush()

    def run(self) -> None:
        """Train until a reason to stop occurs."""
        bar = self.tqdm and ProgressBar(self.tqdm, self.settings.epochs, self.steps_per_epoch)
        try:
            with bar or nullcontext():
                self.history.stopped = self._run_epochs(bar)
        except BaseException:
            with suppress(ValueError, RuntimeError):  # the first error is the one to know
                self.flush()  # who catches it sees the parameters after the last step
            raise

    def finalize(self) -> None:
        """Record what an interruption left unrecorded, save, and restore the best parameters."""
        history = self.history
        self.flush()
        self.stepping.finalize()
        if self.stepping.must_drop_rest:
            self.stepping.drop_rest()  # a training that resumes uses these mini-batches again
        if self.in_epoch:  # otherwise the end of the last epoch was saved
            self.file.save(in_epoch=True, interrupted=True)
            self.in_epoch = False
        self.stepping.drop_rest()
        self.recorder.end_epoch(exhausted=self.exhausted)
        if self.settings.validation is None and history.epochs:
            # If this is the second time, the epoch does not improve on itself.
            self.early_stopping.update(self.recorder.scores[-1], history.epochs)
        history.best_epoch = self.early_stopping.best_epoch
        self.early_stopping.restore()
        self.recorder.seconds[:] = self.ranks.slowest(self.recorder.seconds)

    def _run_epochs(self, bar: ProgressBar | None) -> Stop:
        history, every = self.history, self.settings.checkpoint_every
        if self.early_stopping.out_of_patience:
            return "early"
        for epoch in range(history.epochs + 1, self.settings.epochs + 1):
            if self._run_steps(bar):
                return "callback"
            self.in_epoch = False
            reason = self._end_epoch()
            last = reason is not None or epoch == self.settings.epochs
            if every is None or history.steps % every == 0 or last:
                self.file.save()
            if reason is not None:
                return reason
        return "finished"

    def _run_steps(self, bar: ProgressBar | None) -> bool:
        """Make the steps of an epoch; return whether a function stopped the training."""
        source, stepping, group = self.source, self.stepping, self.settings.accumulate
        self.exhausted = False
        epoch: Any = self.file.begin_epoch()
        self.in_epoch = True
        with closing(epoch) if hasattr(epoch, "close") else nullcontext():
            made = stepping.use_waiting(least=group)  # it was interrupted before
            if made is not None and self._after_step(bar, *made):
                return True
            for batch in epoch:
                made = stepping.use(batch, source.examples_in(batch, stepping.position))
                if made is not None and self._after_step(bar, *made):
                    return True
                self.file.note()
        source.check_end(stepping.position)
        self.ranks.end_epoch()
        made = stepping.use_waiting(least=1)
        self.exhausted = True
        return made is not None and self._after_step(bar, *made)

    def _after_step(self, bar: ProgressBar | None, cost: float, end: float) -> bool:
        """Show, report and save a step; return whether a function stopped the training."""
        history, every = self.history, self.settings.checkpoint_every
        if bar is not None:
            bar.update(history.epochs + 1, history.steps, cost, end)
        if self.has_on_step and self._should_stop(self.settings.on_step):
            return True
        is_last = self.recorder.steps_of_epoch == self.steps_per_epoch or self.exhausted
        if every is not None and history.steps % every == 0 and not is_last:
            self.file.save(in_epoch=True)
        return False

    def _end_epoch(self) -> Stop | None:
        """Validate, adapt the rates, and call the callbacks; return why to stop, if so."""
        # Raises if the optimizer's parameters are not those of the loss any more.
        optimizer_params(self.optimizer, self.params)
        self.flush()
        history, recorder = self.history, self.recorder
        recorder.end_epoch(exhausted=True)
        if self.settings.validation is not None:
            value = validate(
                self.settings.validation,
                self.loss_and_grad,
                self.params,
                self.ranks,
                self.source.axis,
            )
            recorder.add_validation(value)
        value = recorder.scores[-1]
        feed(rates_in_use(self.optimizer), value)
        self.early_stopping.update(value, history.epochs)
        history.best_epoch = self.early_stopping.best_epoch
        should_stop = self._should_stop(self.settings.callbacks)
        return (
            "early" if self.early_stopping.out_of_patience else "callback" if should_stop else None
        )

    def _should_stop(self, functions: Sequence[Function]) -> bool:
        """Call functions of the history; return whether one stops the training, on any rank."""
        answers = [function(self.history) for function in functions]  # all are called
        stop = any(isinstance(answer, bool | np.bool_) and answer for answer in answers)
        return self.ranks.any(stop)


def _schedule(settings: Settings, steps_per_epoch: int | None) -> Rate | None:
    """Return the schedule by step."""
    if settings.schedule_by == "step" or not callable(settings.schedule):
        return settings.schedule
    if not steps_per_epoch:
        raise ValueError(
            "fit: schedule_by is 'epoch' where x has no len(), expected 'step', as the number of "
            "steps in an epoch is not known"
        )
    return PerEpoch(settings.schedule, steps_per_epoch)
