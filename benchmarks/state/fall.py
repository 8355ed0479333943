"""The second moment after gradients have become smaller.

Gradients are normal. After some steps the standard deviation of every second run of 16 elements
falls to a quarter, so that v should fall to a sixteenth there. The others, in the same blocks of
any code, stay as they are. With beta2 = 0.999 a step lowers v by at most a thousandth, which is
less than half a unit in the last place of bfloat16, and less than half the distance of most 8-bit
codes: a v that is rounded to nearest stays where it is.
"""

import numpy as np

from benchmarks.state.courses import Course
from benchmarks.state.ways import Way

ELEMENTS, RUN = 8_192, 16
LENGTH, EVERY = 3_500, 50
"""Steps."""
FALL_AT = 1_500
FACTOR = 4


def run(way: Way, seed: int, steps: int) -> Course:
    """Report the mean of v where gradients fell, in units of what it should become."""
    rng = np.random.default_rng(seed)
    falls = np.arange(ELEMENTS) // RUN % 2 == 1
    deviations = np.where(falls, np.float32(1 / FACTOR), np.float32(1))
    stepper = way.stepper([np.ones(ELEMENTS, np.float32)], 1e-3, seed)
    course = Course()
    for t in range(1, steps + 1):
        grad = rng.standard_normal(ELEMENTS, np.float32)
        stepper.step([grad * deviations if t > FALL_AT else grad])
        if t % EVERY == 0 or t == steps:
            _, (v,) = stepper.moments()
            course.add(t, v=float(v[falls].mean(dtype=np.float64)) * FACTOR**2)
    return course
