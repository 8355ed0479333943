"""Early stopping: the best epoch so far, and its parameters."""

from math import inf
from typing import Any

import numpy as np

from schuss._arrays import Array, ArrayTree, arrays_of
from schuss._fit_ranks import OneProcess
from schuss._registry import writer_of_copies
from schuss.checkpoints import Checkpoint
from schuss.history import Recorder


class EarlyStopping:
    """The best epoch, its parameters if they are to be restored, and the epochs since then."""

    def __init__(
        self,
        patience: int | None,
        min_delta: float,
        mode: str,
        start_from_epoch: int,
        params: ArrayTree | None,
        masters: list[Array],
        ranks: OneProcess,
    ) -> None:
        self._patience, self._min_delta, self._ignored = patience, min_delta, start_from_epoch
        self._worst = -inf if mode == "max" else inf
        # None if the best parameters are not to be restored. Masters have the rest of their bits.
        self._params, self._masters, self._ranks = params, masters, ranks
        # Arrays that are read-only at the start are not trained.
        self._trained = [array.flags.writeable for array in self._all_arrays()]
        self._value, self._waited = self._worst, 0
        self._best: tuple[int, list[Array]] | None = None

    @property
    def best_epoch(self) -> int | None:
        """The best epoch."""
        return None if self._best is None else self._best[0]

    @property
    def out_of_patience(self) -> bool:
        """Whether the last improvement is too long ago."""
        return self._patience is not None and self._waited >= self._patience

    def update(self, value: float, epoch: int) -> None:
        """Compare the value of an epoch with the best. NaN is not an improvement."""
        if epoch <= self._ignored:
            return
        sign = 1 if self._worst > 0 else -1  # of a value of which less is better
        if sign * value < sign * self._value - self._min_delta:
            # One assignment, so that an interruption cannot separate the epoch from its copies.
            self._best = epoch, [array.copy(order="K") for array in self._arrays()]
            self._value, self._waited = value, 0
        else:
            self._waited += 1

    def to_save(self) -> tuple[dict[str, Any], list[Array]]:
        """Return the settings and the arrays that a checkpoint keeps."""
        settings = {"epoch": self.best_epoch, "value": self._value, "waited": self._waited}
        if self._best is None:
            return settings, []
        params, masters = self._split(self._best[1])
        return settings, params + self._ranks.whole(masters)

    def resume(self, checkpoint: Checkpoint, best: dict[str, Any], recorder: Recorder) -> None:
        """Load what a checkpoint kept, or raise ValueError if its history contradicts it."""
        epoch, history = best["epoch"], recorder.history
        for name, value, low, high in [
            ("best['epoch']", epoch or 0, 0, history.epochs),
            ("best['waited']", best["waited"], 0, history.epochs - (epoch or 0)),
            ("best_epoch", history.best_epoch or 0, epoch or 0, epoch or 0),
        ]:
            if not low <= value <= high:
                checkpoint.refuse(f"has training {name} {value}, expected {low} to {high}")
        expected = self._worst if epoch is None else recorder.scores[epoch - 1]
        if best["value"] != expected:
            checkpoint.refuse(f"has training best['value'] {best['value']}, expected {expected}")
        self._best = None if epoch is None else (epoch, self._copies_in(checkpoint))
        self._value, self._waited = best["value"], best["waited"]

    def _copies_in(self, checkpoint: Checkpoint) -> list[Array]:
        """Return the copies of the best epoch that a checkpoint has."""
        params, masters = self._split(self._arrays())
        wholes = [np.empty_like(array) for array in params + self._ranks.whole(masters)]
        checkpoint.fill("best", wholes)
        params, masters = self._split(wholes)
        return params + self._ranks.own(masters)

    def _split(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return the arrays of the parameters, and the masters that follow them."""
        params = len(arrays) - len(self._masters)
        return arrays[:params], arrays[params:]

    def restore(self) -> None:
        """Copy the best parameters back, and rewrite the optimizers' low-precision copies."""
        if self._best is None:
            return
        pairs = list(zip(self._arrays(), self._best[1], strict=True))
        for array, copy in pairs:
            if not array.flags.writeable or (array.shape, array.dtype) != (copy.shape, copy.dtype):
                raise ValueError(
                    "fit: params have an array that became read-only, or changed its shape "
                    "or dtype, since "
                    f"epoch {self.best_epoch}, expected the array of the best epoch"
                )
        write_copies = writer_of_copies("fit", [array for array, _ in pairs])
        for array, copy in pairs:
            np.copyto(array, copy)
        write_copies()

    def _arrays(self) -> list[Array]:
        """Return the trained arrays as they are now: the user may have replaced one.

        Then the masters.
        """
        arrays = self._all_arrays()
        if len(arrays) != len(self._trained):
            raise ValueError(
                f"fit: params have {len(arrays)} arrays, expected {len(self._trained)} as "
                "at the start"
            )
        trained = [
            array for array, is_trained in zip(arrays, self._trained, strict=True) if is_trained
        ]
        return trained + self._masters

    def _all_arrays(self) -> list[Array]:
        if self._params is None:
            return []
        return arrays_of("fit", "params", self._params, written=True)
