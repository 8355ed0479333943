"""The demo: a network learns handwritten digits with each optimizer, and five pictures are drawn.

A module draws each picture: `batch_size`, `optimizers`, `averages`, `decay` and `landscapes`.
"""

from pathlib import Path

from rich.console import Console
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from schuss.demo import averages, batch_size, decay, landscapes, optimizers
from schuss.demo.digits import BATCH_SIZE, LAYERS, TEST_EXAMPLES, TRAINING_EXAMPLES, Digits
from schuss.demo.style import save

__all__ = ["run"]

BATCH_SIZE_EPOCHS = 6  # at most: each is 22 passes of batch and of mini-batch descent


def run(*, out: Path, epochs: int, seed: int) -> int:
    """Train, print a table, draw the pictures into a folder, and return the exit status."""
    console = Console(highlight=False, markup=False)
    layers = "-".join(map(str, LAYERS))
    console.print(
        f"A {layers} network learns handwritten digits: {TRAINING_EXAMPLES:,} images,\n"
        f"mini-batches of {BATCH_SIZE}, epochs: {epochs}, lambda: {optimizers.L2}."
    )
    digits = Digits.load(seed)
    few = min(epochs, BATCH_SIZE_EPOCHS)
    # The matrices are too small for BLAS to gain by threads, and on busy cores it loses a lot.
    # disable=None: no bar where standard error is no terminal.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(
            total=optimizers.updates(epochs) + batch_size.updates(few),
            unit=" steps",
            disable=None,
            leave=False,
        ) as bar,
    ):
        results = optimizers.compare(digits, epochs=epochs, seed=seed, tick=bar.update)
        courses = batch_size.compare(digits, epochs=few, seed=seed, tick=bar.update)
    console.print(optimizers.table(results))
    console.print(
        "Cost: mean of the last epoch, nats per example. Test accuracy: mean and\n"
        f"standard deviation of {optimizers.SPLITS} splits, each with {TEST_EXAMPLES} test images; "
        "differences\nwithin it are chance. Seconds: training with schuss. Step: its share of the\n"
        "training's time, with schuss and with the NumPy twin."
    )
    differing = [result.contender.name for result in results if not result.same_bits]
    if differing:
        console.print(
            f"schuss and its twin ended with different parameters: {', '.join(differing)}."
        )
    else:
        console.print("schuss and its twin ended with the same parameters, to the last bit.")
    pictures = {
        "batch-size.png": batch_size.picture(courses),
        "optimizers.png": optimizers.picture(results),
        "averages.png": averages.picture(),
        "decay.png": decay.picture(),
        "landscapes.png": landscapes.picture(),
    }
    for name, picture in pictures.items():
        save(picture, out / name)
    console.print(f"The pictures are in {out}: {', '.join(pictures)}", soft_wrap=True)
    return 1 if differing else 0
