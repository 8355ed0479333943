"""The demo's network, in NumPy, learns scikit-learn's handwritten digits."""

from collections.abc import Callable, Mapping, Sequence

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


def train(way: Way, seed: int, epochs: int) -> Course:
    """Train, and look at the test digits after each epoch."""
    course = Course()
    learn_digits(lambda params: way.stepper(params, RATE, seed), seed, epochs, course)
    return course


def learn_digits(
    make: Callable[[Sequence[Array]], Stepper], seed: int, epochs: int, course: Course
) -> None:
    """Train with the stepper that `make` returns for the parameters."""
    data = digits.Digits.load(seed)

    def make_optimizer(params: Parameters) -> Named:
        return Named(list(params), make(list(params.values())))

    def watch(params: Parameters, history: schuss.History) -> None:
        if history.steps % steps_an_epoch == 0:
            course.add(history.steps, cost_and_gradients(params, data.x_test, data.labels_test)[0])

    steps_an_epoch = len(data.x) // digits.BATCH_SIZE
    params, _ = digits.train(make_optimizer, data, epochs=epochs, seed=seed, watch=watch)
    course.accuracy = accuracy(params, data.x_test, data.labels_test)
