"""The updates of Adam along the training of word vectors, next to those of float32 state.

The training is the one of `words`, in float32. The way gets the same gradients at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness import Array
from benchmarks.state import words
from benchmarks.state.courses import Course
from benchmarks.state.ways import BETA1, BETA2, EPS, FLOAT32, LEAST, Stepper, Way

LENGTH, EVERY = words.LENGTH, words.EVERY


def updates(stepper: Stepper, t: int) -> Array:
    """Return m / (sqrt(v) + eps), corrected, of all parameters whose state may be in 8 bits."""
    parts = [
        m / (1 - BETA1**t) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
        for m, v in zip(*stepper.moments(), strict=True)
        if m.size >= LEAST
    ]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


class Both:
    """Steps in float32, which train, and the same steps of another way on copies."""

    def __init__(self, exact: Stepper, other: Stepper, course: Course, steps: int) -> None:
        self._exact, self._other, self._course = exact, other, course
        self._t, self._steps = 0, steps

    def step(self, grads: Sequence[Array]) -> None:
        self._t += 1
        self._exact.step(grads)
        self._other.step(grads)
        if self._t % EVERY == 0 or self._t == self._steps:
            exact, other = (updates(each, self._t) for each in (self._exact, self._other))
            norm = np.linalg.norm(exact)
            self._course.add(
                self._t,
                error=float(np.linalg.norm(other - exact) / norm),
                size=float(np.linalg.norm(other) / norm),
            )

    def moments(self) -> tuple[list[Array], list[Array]]:
        return self._exact.moments()


@dataclass(frozen=True)
class Watched(Way):
    """Float32 state, which is compared with that of a way."""

    way: Way = FLOAT32
    course: Course = field(default_factory=Course)
    steps: int = LENGTH

    def stepper(self, params: Sequence[Array], lr: float, seed: int) -> Stepper:
        copies = [param.copy() for param in params]
        ways = (FLOAT32.stepper(params, lr, seed), self.way.stepper(copies, lr, seed))
        return Both(*ways, self.course, self.steps)


def run(way: Way, seed: int, steps: int) -> Course:
    """Report the error of the updates, and their size, in units of the norm of the exact ones."""
    course = Course()
    words.run(Watched("watched", way=way, course=course, steps=steps), seed, steps)
    return course
