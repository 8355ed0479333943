"""The training of the demo: a network learns scikit-learn's handwritten digits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import schuss
from schuss._arrays import Array
from schuss.demo.network import Parameters, cost_and_gradients, initial_parameters
from schuss.landscapes import Stepper

LAYERS = (64, 256, 128, 10)
BATCH_SIZE = 64
# About 80 % of the digits, in full batches: J's L2 term depends on the size of the batch.
TRAINING_EXAMPLES = 22 * BATCH_SIZE
TEST_EXAMPLES = 1797 - TRAINING_EXAMPLES


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 digits of 8 x 8 pixels, scaled to [0, 1] and split in two."""

    x: Array
    labels: npt.NDArray[np.int64]
    x_test: Array
    labels_test: npt.NDArray[np.int64]

    @classmethod
    def load(cls, seed: int) -> "Digits":
        """Load the digits and split each class at random, in the same proportion."""
        pixels, labels = load_digits(return_X_y=True)
        x, x_test, labels, labels_test = train_test_split(
            (pixels / 16).astype(np.float32),
            labels,
            train_size=TRAINING_EXAMPLES,
            stratify=labels,
            random_state=seed,
        )
        return cls(x, labels, x_test, labels_test)


def train(
    make_optimizer: Callable[[Parameters], Stepper],
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    batch_size: int | None = BATCH_SIZE,
    l2: float = 0.0,
    watch: Callable[[Parameters, schuss.History], object] = lambda params, history: None,
) -> tuple[Parameters, schuss.History]:
    """Train the network; the same seed gives the same initial weights and the same batches.

    After each update, `watch` is called with the parameters and the history.
    """
    params = initial_parameters(LAYERS, np.random.default_rng(seed))

    def on_step(history: schuss.History) -> None:
        watch(params, history)  # its result must not stop the training

    history = schuss.fit(
        cost_and_gradients,
        params,
        make_optimizer(params),
        digits.x,
        digits.labels,
        batch_size=batch_size,
        epochs=epochs,
        rng=seed,
        l2=l2,
        on_step=on_step,
        progress=False,
    )
    return params, history
