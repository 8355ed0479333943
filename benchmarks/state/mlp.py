"""scikit-learn's `MLPClassifier` learns ten classes from 50,000 examples.

The examples are drawn by scikit-learn: each class consists of six clusters. scikit-learn computes
the gradients and orders the batches; the steps are those of a `Way`.
"""

import warnings
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from sklearn.datasets import make_classification
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

from benchmarks.harness import Array
from benchmarks.state.courses import Course
from benchmarks.state.ways import Stepper, Way

EXAMPLES, TESTED, FEATURES, CLASSES = 50_000, 10_000, 100, 10
HIDDEN, BATCH_SIZE, RATE = (256, 128), 200, 1e-3
LENGTH = 10
"""Epochs."""


def drawn() -> tuple[Array, Array]:
    """Return all examples, and their classes."""
    x, y = make_classification(
        EXAMPLES + TESTED,
        FEATURES,
        n_informative=20,
        n_redundant=40,
        n_classes=CLASSES,
        n_clusters_per_class=6,
        class_sep=1.5,
        random_state=0,
    )
    return (x / x.std(axis=0)).astype(np.float32), y


def run(way: Way, seed: int, epochs: int) -> Course:
    """Train, and look at the test examples after each epoch."""
    x, y = drawn()
    tested, truth = x[EXAMPLES:], y[EXAMPLES:]
    stepper: Stepper | None = None

    def update_params(_: Any, params: Sequence[Array], grads: Sequence[Array]) -> None:
        nonlocal stepper
        stepper = stepper or way.stepper(params, RATE, seed)
        stepper.step(grads)

    random_state = np.random.RandomState(seed)  # one for all epochs
    model = MLPClassifier(HIDDEN, batch_size=BATCH_SIZE, random_state=random_state)
    course = Course()
    with patch.object(AdamOptimizer, "update_params", update_params), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few epochs
        for epoch in range(1, epochs + 1):
            model.partial_fit(x[:EXAMPLES], y[:EXAMPLES], classes=range(CLASSES))
            probabilities = model.predict_proba(tested)
            losses = -np.log(probabilities[range(TESTED), truth])
            course.add(
                epoch * EXAMPLES // BATCH_SIZE,
                loss=float(losses.mean(dtype=np.float64)),
                accuracy=float(np.mean(probabilities.argmax(axis=1) == truth)),
            )
    return course
