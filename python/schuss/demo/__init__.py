"""The demo: a network learns handwritten digits with each optimizer, and pictures are drawn.

Each picture has a module: `batch_size`, `optimizers`, `averages`, `decay` and `landscapes`. A new
picture is a module and a line in `PICTURES`. Word vectors are a demo of their own, `embeddings`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from schuss.demo import averages, batch_size, decay, embeddings, landscapes, optimizers
from schuss.demo.digits import BATCH_SIZE, LAYERS, TEST_EXAMPLES, TRAINING_EXAMPLES, Digits
from schuss.demo.style import save

__all__ = ["PICTURES", "embeddings", "run"]

BATCH_SIZE_EPOCHS = 6  # at most: each is 22 passes of batch and of mini-batch descent


class Trainings(NamedTuple):
    """The trainings that the table and the pictures show."""

    results: list[optimizers.Result]
    courses: dict[str, batch_size.Course]


PICTURES: dict[str, Callable[[Trainings], Figure]] = {
    "batch-size.png": lambda trainings: batch_size.picture(trainings.courses),
    "optimizers.png": lambda trainings: optimizers.picture(trainings.results),
    "averages.png": lambda _: averages.picture(),
    "decay.png": lambda _: decay.picture(),
    "landscapes.png": lambda _: landscapes.picture(),
}
"""The functions that draw the pictures, by the names of their files."""


def run(*, out: Path, epochs: int, seed: int) -> int:
    """Train, print a table, draw the pictures into a folder, and return the exit status."""
    console = Console(highlight=False, markup=False)
    layers = "-".join(map(str, LAYERS))
    console.print(
        f"A {layers} network learns handwritten digits: {TRAINING_EXAMPLES:,} images,\n"
        f"mini-batches of {BATCH_SIZE}, epochs: {epochs}, lambda: {optimizers.L2}."
    )
    trainings = _train(epochs, seed)
    console.print(optimizers.table(trainings.results))
    console.print(
        "Cost: mean of the last epoch, nats per example. Test accuracy: mean and\n"
        f"standard deviation of {optimizers.SPLITS} splits, each with {TEST_EXAMPLES} test images; "
        "differences\nwithin it are chance. Seconds: training with schuss. Step: its share of the\n"
        "training's time, with schuss and with the NumPy reference."
    )
    differing = [result.contender.name for result in trainings.results if not result.same_bits]
    if differing:
        outcome = f"different parameters: {', '.join(differing)}."
    else:
        outcome = "the same parameters, to the last bit."
    console.print(f"schuss and the reference ended with {outcome}")
    for name, draw in PICTURES.items():
        save(draw(trainings), out / name)
    console.print(f"The pictures are in {out}: {', '.join(PICTURES)}", soft_wrap=True)
    return 1 if differing else 0


def _train(epochs: int, seed: int) -> Trainings:
    digits = Digits.load(seed)
    few = min(epochs, BATCH_SIZE_EPOCHS)
    total = optimizers.updates(epochs) + batch_size.updates(few)
    # The matrices are too small for BLAS to gain from threads, and on busy cores it loses a lot.
    # disable=None: no bar if standard error is not a terminal.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=total, unit=" steps", disable=None, leave=False) as bar,
    ):
        results = optimizers.compare(digits, epochs=epochs, seed=seed, tick=bar.update)
        courses = batch_size.compare(digits, epochs=few, seed=seed, tick=bar.update)
    return Trainings(results, courses)
