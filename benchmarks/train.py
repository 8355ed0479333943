"""A whole training: a network that learns handwritten digits.

Each contender trains the demo's network, in NumPy, from the same start and on the same batches.
They differ only in the optimizer. Each contender has its own process.
"""

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.contenders import ADAM, IN_PLACE, ONE_THREAD, SCHUSS, SHARED_THREADS, TEXTBOOK
from benchmarks.harness import (
    Array,
    Contender,
    Problem,
    Record,
    Settings,
    WrongResultError,
    check,
    interleave,
    line,
    ordinary,
    settle,
    tracked,
)
from benchmarks.peers import TORCH_FUSED, TORCH_RAW, installed
from benchmarks.processes import serve, team

EPOCHS = 30
ACCURACY_TOLERANCE = 0.01
"""Steps differ by rounding, which grows in training to one or two of the 389 test digits."""
SCHUSS_CONTENDERS = (SCHUSS, ONE_THREAD, SHARED_THREADS)
CONTENDERS = {
    contender.name: contender
    for contender in (*SCHUSS_CONTENDERS, IN_PLACE, TEXTBOOK, TORCH_RAW, TORCH_FUSED)
}


class Standing:
    """Steps of a contender that knows its gradient arrays: new gradients are copied there."""

    def __init__(self, contender: Contender, params: Mapping[str, Array]) -> None:
        self._grads = {name: np.empty_like(param) for name, param in params.items()}
        problem = Problem(ADAM, list(params.values()), list(self._grads.values()))
        self._step = contender.prepare(problem)

    def step(self, grads: Mapping[str, Array]) -> None:
        for name, standing in self._grads.items():
            np.copyto(standing, grads[name])
        self._step()


class Train:
    """Runs in the process of a contender."""

    def __init__(self, contender: Contender) -> None:
        from schuss.demo.digits import Digits

        self.contender, self.digits = contender, Digits.load(seed=0)

    def pose(self, epochs: int) -> float:
        """Train for this number of epochs; return the test accuracy."""
        from schuss.demo.network import accuracy

        check(self.contender, Problem(ADAM, [ordinary(37)], [ordinary(37)]))
        self.epochs = epochs
        params = self._train()
        return accuracy(params, self.digits.x_test, self.digits.labels_test)

    def measure(self) -> float:
        """Return the seconds of a training, to the end of its last epoch."""
        settle()
        start = perf_counter()
        self._train()
        return perf_counter() - start

    def _train(self) -> dict[str, Array]:
        from schuss.demo.digits import train

        with self.contender.setting():
            params, _ = train(self._optimizer, self.digits, epochs=self.epochs, seed=0)
        return params

    def _optimizer(self, params: dict[str, Array]) -> Any:
        if self.contender in SCHUSS_CONTENDERS:
            optimizer: Any = ADAM.optimizer
            return optimizer(params, **ADAM.hyperparameters)
        return Standing(self.contender, params)


def check_accuracies(accuracies: Mapping[str, float]) -> None:
    """Raise WrongResultError if an accuracy differs from the first one."""
    first, *others = accuracies
    for name in others:
        if abs(accuracies[name] - accuracies[first]) > ACCURACY_TOLERANCE:
            raise WrongResultError(
                f"{name}: the network tells {accuracies[name]:.1%} of the digits, "
                f"expected {accuracies[first]:.1%} as by {first}"
            )


def train(settings: Settings) -> list[Record]:
    """The demo's network learns handwritten digits, Adam, float32; the sizes are epochs."""
    if not installed("sklearn"):
        raise SystemExit("train: the digits are scikit-learn's, which is not installed")
    names = [contender.name for contender in CONTENDERS.values() if contender.present()]
    records = []
    with team("benchmarks.train", names) as processes:
        for epochs in tracked("train", settings.sizes or [EPOCHS]):
            accuracies = {name: processes[name].call("pose", epochs) for name in names}
            check_accuracies(accuracies)
            measures = {name: partial(processes[name].call, "measure") for name in names}
            times = interleave(measures, settings.rounds)
            records += [
                {
                    **line({"epochs": epochs}, name, times, "milliseconds", [SCHUSS.name]),
                    "accuracy": accuracies[name],
                }
                for name in names
            ]
    return records


if __name__ == "__main__":
    serve(lambda name: Train(CONTENDERS[name]))
