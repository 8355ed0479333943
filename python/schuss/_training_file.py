"""The checkpoint of `fit`: what it keeps, and how a training continues from it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

from schuss import _files, checkpoints
from schuss._arguments import Arguments, checked_texts
from schuss._arrays import ArrayTree
from schuss._batch_sources import BatchSource
from schuss._checkpoint_parts import ranks_of
from schuss._collective import Collective
from schuss._early_stopping import EarlyStopping
from schuss._fit_ranks import OneProcess
from schuss._fit_settings import Settings
from schuss._hyperparameters import (
    Rate,
    anything,
    count,
    extended,
    flag,
    optional,
    record,
    same,
)
from schuss._stepping import Stepping
from schuss._user_state import UserState
from schuss.history import Recorder
from schuss.loss_scale import DynamicLossScale, checked_state

_from_one = partial(count, least=1)

# What a checkpoint keeps of a training, besides its arrays.
_SAVED = record(
    validated=flag,
    best_epoch=optional(_from_one),
    best=record(epoch=optional(_from_one), value=extended, waited=partial(count, least=0)),
    loss_scale=anything,
    arguments=checked_texts,
)

# The arguments that are compared, besides the optimizer, its schedule and the mini-batches.
_COMPARED = (
    *("accumulate", "l2", "loss_scale", "validation", "patience", "min_delta", "mode"),
    *("start_from_epoch", "restore_best", "state"),
)


class TrainingFile:
    """The file that a training is saved in, if there is one."""

    def __init__(
        self,
        params: ArrayTree,
        optimizer: Any,
        source: BatchSource,
        schedule: Rate | None,
        settings: Settings,
        ranks: OneProcess,
        *,
        recorder: Recorder,
        early_stopping: EarlyStopping,
        stepping: Stepping,
    ) -> None:
        self._params, self._optimizer, self._source = params, optimizer, source
        self._schedule, self._settings, self._ranks = schedule, settings, ranks
        self._path, self._state = settings.checkpoint, settings.state
        self._recorder, self._early_stopping, self._stepping = recorder, early_stopping, stepping
        # The user's state after the last mini-batch, and the counts there.
        self._noted: tuple[Any, Any] = None, None
        self._replaced: list[Any] = []  # the rate before the schedule, until mini-batches begin
        # Mini-batches may depend on it. So the state at the beginning of an epoch is kept too, and
        # loaded first, before the mini-batches that were used are skipped.
        self._of_epoch: dict[str, Any] = {}
        self._to_load: dict[str, Any] = {}

    @cached_property
    def _arguments(self) -> Arguments:
        others = {name: getattr(self._settings, name) for name in _COMPARED}
        return Arguments(self._optimizer, self._schedule, self._source, others)

    def resume(self) -> None:
        """Continue from the file, or make the first one."""
        optimizer, schedule = self._optimizer, self._schedule
        if self._path is not None and self._ranks.any(_files.exists(self._path)):
            with Collective("fit", ranks_of(optimizer)) as together:
                found = checkpoints.opened(
                    "fit", self._path, self._params, optimizer, together, with_training=True
                )
                self._load(found, together)
            return
        self._source.check_start()
        self._stepping.check_start()
        if schedule is not None:
            self._replaced, optimizer.lr = [optimizer.lr], schedule
        with self._rate_put_back():
            self.save()  # what cannot be saved is refused now, not after an epoch

    def begin_epoch(self) -> Iterator[Any]:
        """Return the mini-batches of a new epoch, or the rest of one that was loaded."""
        if self._state is not None:
            self._of_epoch = {"state_of_epoch": self._state.get()}
        position, least = self._stepping.position, self._stepping.least_position
        with self._rate_put_back():
            epoch = self._source.begin(position, least, saves=self._path is not None)
        self._replaced.clear()
        if self._to_load:
            self._state.set(self._to_load.pop("state"))
        self.note()
        return epoch

    @contextmanager
    def _rate_put_back(self) -> Iterator[None]:
        """Give the optimizer the rate that the schedule replaced, if the block raises."""
        try:
            yield
        except BaseException:
            if self._replaced:
                self._optimizer.lr = self._replaced.pop()
            raise

    def note(self) -> None:
        """Remember the user's state, for a save after the next mini-batch was interrupted."""
        # A checkpoint without the mini-batches that wait has the state before them.
        if self._state is not None and not self._stepping.must_drop_rest:
            self._noted = self._counts(), self._state.get()

    def save(self, *, in_epoch: bool = False, interrupted: bool = False) -> None:
        """Save the training, between two mini-batches or two epochs.

        interrupted: whether a mini-batch may have been interrupted, and does not count.
        """
        if self._path is None:
            return
        if not interrupted or self._noted[0] != self._counts():
            self.note()
        extra = {} if self._state is None else {"state": self._noted[1]}
        extra |= self._of_epoch if in_epoch else {}
        training, series = self._recorder.to_save()
        best, copies = self._early_stopping.to_save()
        scaler = self._settings.loss_scale
        training |= {
            "best": best,
            "loss_scale": scaler.state_dict() if isinstance(scaler, DynamicLossScale) else None,
            # A file has those of the first rank alone: the mini-batches of the others are theirs.
            "arguments": self._arguments.texts if self._ranks.is_first else {},
        }
        with Collective("fit", ranks_of(self._optimizer)) as together:
            checkpoints.write(
                "fit",
                self._path,
                self._params,
                self._optimizer,
                together,
                batches=self._source.state(self._stepping.position if in_epoch else None),
                extra=extra,
                extra_name="state",
                training=training,
                series=series | {f"best/{index}": copy for index, copy in enumerate(copies)},
            )

    def _counts(self) -> tuple[int, int]:
        return self._recorder.history.steps, self._recorder.waiting

    def _load(self, checkpoint: checkpoints.Checkpoint, together: Collective) -> None:
        """Continue from a checkpoint, if it is of this training."""
        if checkpoint.training is None:
            checkpoint.refuse("was saved by schuss.save, expected a checkpoint of fit")
        saved = checkpoint.check("training", _SAVED, checkpoint.training)
        recorder, epochs = self._recorder, self._settings.epochs
        recorder.check_validated(checkpoint, saved["validated"])
        if self._ranks.is_first:
            self._arguments.resume(checkpoint, saved["arguments"], epochs)
        recorder.resume(checkpoint, saved["best_epoch"])
        started = recorder.history.epochs + (recorder.steps_of_epoch + recorder.waiting > 0)
        if started > epochs:
            raise ValueError(
                f"fit: epochs is {epochs}, expected at least {started}, the number of epochs that "
                f"checkpoint {self._path!r} has begun (delete the file to start over)"
            )
        self._early_stopping.resume(checkpoint, saved["best"], recorder)
        checkpoint.check_accumulated(recorder.waiting, most=self._settings.accumulate)
        self._source.check_position(checkpoint, self._stepping.position)
        states = self._states(checkpoint, saved["loss_scale"])
        batches = self._source.batches
        checkpoint.restore(self._params, self._optimizer, batches, together, self._schedule, states)

    def _states(
        self, checkpoint: checkpoints.Checkpoint, of_scale: Any
    ) -> AbstractContextManager[None]:
        """Check the states of the loss scale and of the user; return a context that loads them."""
        state, scaler = self._state, self._settings.loss_scale
        check = checked_state if isinstance(scaler, DynamicLossScale) else same(None)
        of_scale = checkpoint.check("training['loss_scale']", check, of_scale)
        if state is None:
            return _loaded(None, {}, scaler, of_scale)
        if "state" not in checkpoint.extra:
            checkpoint.refuse("holds no state, expected to find it")
        kept = {
            name: checkpoint.check(name, state.check, value)
            for name, value in checkpoint.extra.items()
        }
        if "state_of_epoch" in kept:
            self._to_load = {"state": kept["state"]}
        return _loaded(state, kept.get("state_of_epoch", kept["state"]), scaler, of_scale)


@contextmanager
def _loaded(state: UserState | None, value: Any, scaler: Any, of_scale: Any) -> Iterator[None]:
    """Load the states of the user and of a loss scale; the user's is undone if the rest fails."""
    before = None if state is None else state.get()
    try:
        if state is not None:
            state.set(value)
        yield
    except BaseException:
        if state is not None:
            state.set(before)
        raise
    if isinstance(scaler, DynamicLossScale):
        scaler.load_state_dict(of_scale)
