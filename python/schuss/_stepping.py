"""How `fit` makes steps: of one mini-batch or several, with an L2 cost and a loss scale."""

from math import nan
from time import perf_counter
from typing import Any

from schuss._arrays import ArrayTree
from schuss._batch_sources import BatchSource
from schuss._fit_ranks import OneProcess, no_gradients
from schuss._fit_settings import Settings
from schuss._hyperparameters import real
from schuss._internals import internals_of
from schuss._interrupts import defer_signals
from schuss._loss import Loss, evaluate
from schuss.history import Recorder
from schuss.l2 import L2
from schuss.loss_scale import DynamicLossScale
from schuss.optimizers import Optimizer


class Stepping:
    """Makes the steps of an optimizer from mini-batches, and records them."""

    def __init__(
        self,
        loss_and_grad: Loss,
        params: ArrayTree,
        optimizer: Any,
        recorder: Recorder,
        settings: Settings,
        source: BatchSource,
        ranks: OneProcess,
        *,
        stepped: ArrayTree,
    ) -> None:
        self._loss_and_grad, self._params = loss_and_grad, params
        self._optimizer, self._stepped = optimizer, stepped  # the parameters that it updates
        self._recorder, self._source, self._ranks = recorder, source, ranks
        self._group, self._loss_scale = settings.accumulate, settings.loss_scale
        l2 = L2("fit", settings.l2, loss_scale=self._loss_scale)
        self._l2 = l2 if settings.l2 else None
        # Before the step under way: the steps of the history, those that the optimizer has made or
        # skipped, those that it has skipped, and the time.
        self._under_way: tuple[int, int | None, int, float] = (-1, None, 0, 0.0)

    @property
    def position(self) -> int:
        """The number of mini-batches used in the epoch under way.

        It is too high after a last step of fewer mini-batches.
        """
        return self._recorder.steps_of_epoch * self._group + self._recorder.waiting

    @property
    def least_position(self) -> int:
        """The number of mini-batches that were used at least: the last step may have had one."""
        return self.position - (0 if self._recorder.waiting else self._group - 1)

    def check_start(self) -> None:
        """Raise ValueError if gradients were accumulated before."""
        if waiting := self._waiting:
            raise ValueError(
                f"fit: optimizer has {waiting} accumulated gradients, expected none "
                "(optimizer.step() or optimizer.zero_grad() first)"
            )

    @property
    def _waiting(self) -> int:
        """The number of mini-batches whose gradients the optimizer has accumulated."""
        return self._optimizer.accumulated if isinstance(self._optimizer, Optimizer) else 0

    def use(self, batch: Any, examples: int | None) -> tuple[float, float] | None:
        """Use a mini-batch; return the cost of a step and when it ended, if one was made.

        examples: the number of those in this process's part of the mini-batch.
        """
        start = perf_counter()
        cost, grads = self._evaluate(batch, examples)
        between = perf_counter()
        cost, of_all, weight, scale = self._ranks.joined(cost, examples)
        self._recorder.add_batch(cost, of_all, between - start)
        if self._group == 1:
            return self._step(grads, between, weight)
        if weight == 0:
            grads = no_gradients(self._optimizer)
        self._optimizer.accumulate(grads, scale=scale)
        if self._l2 is not None:
            self._l2.clear()
        if self._waiting == self._group:
            return self._step(None, between)
        self._recorder.add_seconds(perf_counter() - between)
        return None

    def _evaluate(self, batch: Any, examples: int | None) -> tuple[float, Any]:
        """Return the cost and the gradients of a part of a mini-batch, and those of L2."""
        if examples == 0:
            return 0.0, None
        cost, grads = evaluate("fit", self._loss_and_grad, self._params, batch)
        if self._l2 is None:
            return cost, grads
        clear = getattr(self._optimizer, "clear_grads", False) is True
        of_all = self._source.examples_of_all(examples, self.position)
        return self._l2.add(self._stepped, cost, grads, of_all, clear=clear)

    def use_waiting(self, *, least: int) -> tuple[float, float] | None:
        """Make the step of the mini-batches that wait for one, if there are as many."""
        waits = self._recorder.waiting >= least
        return self._step(None, perf_counter()) if waits else None

    def finalize(self) -> None:
        """Record a step that was made but not recorded, and forget mini-batches without one."""
        recorded, made, _, start = self._under_way
        is_recorded = recorded != self._recorder.history.steps
        if not is_recorded and made is not None and self._made(self._skipped()) == made + 1:
            self._end_step(perf_counter() - start)
        self._recorder.keep_batches(self._waiting)

    @property
    def must_drop_rest(self) -> bool:
        """Whether gradients wait that a checkpoint cannot have."""
        optimizer = self._optimizer
        return isinstance(optimizer, Optimizer) and internals_of(optimizer).has_unsaved_rows

    def drop_rest(self) -> None:
        """Drop the gradients that wait for a step that will not be made."""
        if self._recorder.waiting:
            self._optimizer.zero_grad()
            self._recorder.keep_batches(0)

    def _step(self, grads: Any, start: float, weight: int | None = None) -> tuple[float, float]:
        """Make and record a step, of accumulated gradients if there are none.

        weight: that of the gradients of this rank, if the ranks' weights differ.
        """
        skipped = self._skipped()
        self._under_way = self._recorder.history.steps, self._made(skipped), skipped, start
        optimizer, scaler = self._optimizer, self._loss_scale
        scale = 1.0 if self._group == 1 else 1 / self._waiting
        if self._group == 1 and scaler is None and weight is None:
            optimizer.step(grads)
        elif isinstance(scaler, DynamicLossScale):
            # Not one without the other: the next step would have the wrong scale.
            defer_signals(lambda: _scaled_step(scaler, optimizer, grads, scale, weight))
        else:
            of_rank = {} if weight is None else {"weight": weight}
            optimizer.step(grads, scale=scale / (scaler or 1.0), **of_rank)
        if self._l2 is not None:
            self._l2.clear()
        end = perf_counter()
        return self._end_step(end - start), end

    def _end_step(self, seconds: float) -> float:
        lr = getattr(self._optimizer, "lr_now", None)
        lr = nan if lr is None else real("fit", "optimizer.lr_now", lr)
        skipped = self._skipped() > self._under_way[2]
        return self._recorder.end_step(seconds, lr, skipped=skipped)

    def _made(self, skipped: int) -> int | None:
        """Return the steps that the optimizer has made or skipped, or None if it has no count."""
        steps = getattr(self._optimizer, "steps", None)
        return steps + skipped if isinstance(steps, int) else None

    def _skipped(self) -> int:
        skipped = getattr(self._optimizer, "skipped", 0)
        return skipped if isinstance(skipped, int) else 0


def _scaled_step(
    scaler: DynamicLossScale, optimizer: Any, grads: Any, scale: float, weight: int | None
) -> None:
    scaler.step(optimizer, grads, scale=scale, weight=weight)
    scaler.update()
