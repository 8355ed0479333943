"""The demo's network, in NumPy, learns scikit-learn's handwritten digits."""

from collections.abc import Mapping, Sequence

import schuss
from benchmarks.harness import Array
from benchmarks.state.courses import Course
from benchmarks.state.ways import Stepper, Way
from schuss.demo import digits
from schuss.demo.network import Parameters, accuracy, cost_and_gradients

LENGTH = 30
"""Epochs."""
RATE = 2e-3


class Named:
    """Steps of a dict of arrays by those of a list."""

    def __init__(self, names: Sequence[str], stepper: Stepper) -> None:
        self._names, self._stepper = names, stepper

    def step(self, grads: Mapping[str, Array]) -> None:
        self._stepper.step([grads[name] for name in self._names])


def run(way: Way, seed: int, epochs: int) -> Course:
    """Train, and look at the test digits after each epoch."""
    data, course = digits.Digits.load(seed), Course()

    def make_optimizer(params: Parameters) -> Named:
        return Named(list(params), way.stepper(list(params.values()), RATE, seed))

    def watch(params: Parameters, history: schuss.History) -> None:
        if history.steps % (len(data.x) // digits.BATCH_SIZE) == 0:
            test = data.x_test, data.labels_test
            loss, _ = cost_and_gradients(params, *test)
            course.add(history.steps, loss=loss, accuracy=accuracy(params, *test))

    digits.train(make_optimizer, data, epochs=epochs, seed=seed, watch=watch)
    return course
