"""The second moment after gradients have become smaller.

Gradients are normal. After some steps the standard deviation of every second run of 16 elements
falls to a quarter, so that v should fall to a sixteenth there. The others, in the same blocks of
any code, stay as they are. With beta2 = 0.999 a step lowers v by at most a thousandth, which is
less than half a unit in the last place of bfloat16, and less than half a level of most 8-bit codes:
a v that is rounded to nearest stays where it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.state.ways import Way

ELEMENTS, RUN = 8_192, 16
STEPS, FALL_AT = 3_500, 1_500
FACTOR = 4
EVERY = 50


class Fall(NamedTuple):
    """The mean of v over the elements whose gradients fell, in units of what it should become."""

    steps: Sequence[int]
    ratios: Sequence[float]


def fall(way: Way, seed: int, steps: int = STEPS) -> Fall:
    """Make the steps; with fewer of them, the fall comes earlier."""
    rng = np.random.default_rng(seed)
    falls = np.arange(ELEMENTS) // RUN % 2 == 1
    deviations = np.where(falls, np.float32(1 / FACTOR), np.float32(1))
    stepper = way.stepper([np.ones(ELEMENTS, np.float32)], 1e-3, seed)
    shown, ratios = [], []
    for t in range(1, steps + 1):
        grad = rng.standard_normal(ELEMENTS, np.float32)
        stepper.step([grad * deviations if t > steps * FALL_AT // STEPS else grad])
        if t % EVERY == 0 or t == steps:
            _, (v,) = stepper.moments()
            shown.append(t)
            ratios.append(float(v.ravel()[falls].mean(dtype=np.float64)) * FACTOR**2)
    return Fall(shown, ratios)
