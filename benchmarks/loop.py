"""A matrix product and a step in turn, as in a training loop in NumPy.

In such a loop a step shares the cores with BLAS, whose threads keep spinning for a while after a
product. The threads of OpenMP-based optimizers spin too, and only this benchmark shows the cost.
Each contender has its own process.
"""

from functools import partial
from itertools import repeat

import numpy as np

from benchmarks.contenders import ADAM, IN_PLACE, ONE_THREAD, SCHUSS, SHARED_THREADS, TEXTBOOK
from benchmarks.harness import (
    Contender,
    Problem,
    Record,
    Settings,
    Step,
    Stopwatch,
    check,
    check_values,
    interleave,
    line,
    ordinary,
    tracked,
)
from benchmarks.peers import PEERS
from benchmarks.processes import serve, team

SIZES = (4_096, 262_144, 1_048_576, 16_777_216)
CHECK_SIZE = 100_003
TURN_SECONDS = 0.2
"""Long enough for thread pools to disturb each other as in a long training."""


def no_step(problem: Problem, **hyperparameters: float) -> Step:
    return lambda: None


PRODUCT_ALONE = Contender("product alone", {ADAM.name: no_step})
CONTENDERS = {
    contender.name: contender
    for contender in (
        PRODUCT_ALONE,
        ONE_THREAD,
        SCHUSS,
        SHARED_THREADS,
        IN_PLACE,
        TEXTBOOK,
        *PEERS,
    )
}


class Loop:
    """Runs in the process of a contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender

    def pose(self, size: int) -> None:
        """Prepare steps of an array of this size."""
        if self.contender is not PRODUCT_ALONE:
            check(self.contender, self._problem(min(size, CHECK_SIZE)))
        a, b = ordinary(256, 512), ordinary(512, 512)
        with self.contender.setting():
            product = (a.astype(np.float64) @ b).astype(np.float32)
            check_values(f"{self.contender.name}: the product", a @ b, product, exact=False)
            step = self.contender.prepare(self._problem(size))

        def iterations(count: int) -> None:
            for _ in repeat(None, count):
                a @ b
                step()

        self._stopwatch = Stopwatch(iterations, self.contender.setting, TURN_SECONDS)

    def measure(self) -> float:
        """Return the seconds of an iteration."""
        return self._stopwatch()

    def _problem(self, size: int) -> Problem:
        return Problem(ADAM, [ordinary(size)], [ordinary(size)])


def loop(settings: Settings) -> list[Record]:
    """A product, 256 x 512 by 512 x 512, then a step of one array: Adam, float32."""
    names = [contender.name for contender in CONTENDERS.values() if contender.present()]
    records = []
    with team("benchmarks.loop", names) as processes:
        for size in tracked("loop", settings.sizes or SIZES):
            for process in processes.values():
                process.call("pose", size)
            measures = {name: partial(processes[name].call, "measure") for name in names}
            times = interleave(measures, settings.rounds)
            records += [
                line({"size": size}, name, times, "microseconds", [ONE_THREAD.name])
                for name in names
            ]
    return records


if __name__ == "__main__":
    serve(lambda name: Loop(CONTENDERS[name]))
