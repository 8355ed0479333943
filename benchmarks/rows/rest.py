"""What a row costs that has rested for many steps, when it is read."""

from functools import partial
from time import perf_counter

import numpy as np

import schuss
from benchmarks.harness import Record, Settings, interleave, line, ordinary, settle
from benchmarks.rows.ways import EXACT, ROWS_ADAM, optimizer_of

TITLE_OF_REST = "Adam, rest"
RESTED = (0, 1, 10, 100, 1_000, 10_000, 100_000)
"""Steps in which the rows had no gradient."""
RESTING_ROWS, COLUMNS = 1_000, 64
SETTLED = 40_000
"""Steps after which Adam's bias corrections stay as they are: their coefficients are not those of a
training's beginning."""


class Resting:
    """A table of rows that rest while one more row makes all steps."""

    def __init__(self, rows: int, settled: int) -> None:
        self._optimizer = optimizer_of(ROWS_ADAM, ordinary(rows + 1, COLUMNS), "exact")
        values = ordinary(rows, COLUMNS)
        self._all = schuss.Rows(np.arange(rows), values)
        self._last = schuss.Rows(np.array([rows]), values[:1])
        self._rest(settled)

    def measure(self, steps: int) -> float:
        """Return the seconds to read the rows after they rested for this number of steps."""
        self._optimizer.step(self._all)
        self._rest(steps)
        settle()
        start = perf_counter()
        self._optimizer.rows(self._all.indices)
        return perf_counter() - start

    def _rest(self, steps: int) -> None:
        for _ in range(steps):
            self._optimizer.step(self._last)


def rest(settings: Settings) -> list[Record]:
    """Time the reading of rows by the number of steps that they rested: those of the sizes."""
    sizes = settings.sizes
    rows = min(sizes, default=RESTING_ROWS)
    resting = Resting(rows, settled=0 if sizes else SETTLED)
    measures = {str(steps): partial(resting.measure, steps) for steps in sizes or RESTED}
    times = interleave(measures, settings.rounds)
    records = []
    for steps in times:
        labels = {"rule": ROWS_ADAM.name, "rows read": rows, "steps rested": int(steps)}
        records.append(line(labels, EXACT.name, {EXACT.name: times[steps]}, "microseconds"))
    return records
