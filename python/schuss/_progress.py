"""The progress bar of `fit`."""

import sys
from math import isfinite
from typing import Any, Self

from schuss._errors import missing_package
from schuss._interrupts import Deferred
from schuss.averages import ExponentialAverage


def tqdm_if_wanted(call: str, progress: bool | None) -> Any:
    """Return tqdm, or None if there is to be no bar."""
    if not (_on_terminal() if progress is None else progress):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return None
        raise missing_package(call, "tqdm") from None
    return tqdm


def _on_terminal() -> bool:
    with Deferred():
        try:
            return sys.stderr.isatty()
        except (AttributeError, OSError, ValueError):  # it is None, unusual or closed
            return False


class ProgressBar:
    """A progress bar, drawn at most ten times a second."""

    def __init__(self, tqdm: Any, epochs: int, steps_per_epoch: int | None) -> None:
        total = None if steps_per_epoch is None else epochs * steps_per_epoch
        self._bar = tqdm(total=total, unit=" steps", dynamic_ncols=True)
        self._epochs = epochs
        self._cost = ExponentialAverage(0.98)
        self._epoch, self._steps, self._next_drawing = 0, 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self._draw()
        finally:
            self._bar.close()

    def update(self, epoch: int, steps: int, cost: float, now: float) -> None:
        """Show a step of an epoch, if 0.1 seconds have passed since the last drawing."""
        if isfinite(cost):  # the average would never lose an infinite cost
            self._cost.update(cost)
        self._epoch, self._steps = epoch, steps
        if now >= self._next_drawing:
            self._next_drawing = now + 0.1
            self._draw()

    def _draw(self) -> None:
        if self._steps > 0:
            self._bar.set_description(f"epoch {self._epoch}/{self._epochs}", refresh=False)
            if self._cost.updates > 0:
                self._bar.set_postfix_str(f"cost {self._cost.value:.4g}", refresh=False)
            self._bar.n = self._steps
            self._bar.refresh()
