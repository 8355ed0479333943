"""Word vectors with Adam: by dense steps, by exact steps of rows, and by lazy ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import schuss
from schuss._arrays import Array
from schuss.demo.skip_gram import (
    BATCH_SIZE,
    DIMENSIONS,
    Examples,
    initial_tables,
    loss_and_gradients,
    nearest,
)
from schuss.demo.source_text import Text
from schuss.demo.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, note, save, styled

PICTURE = "embeddings.png"
RATE = 0.01
SMOOTHING = 0.98  # of the losses in the picture

COLORS = {"dense": VERMILION, "exact": BLUE, "lazy": ORANGE}
"""The ways to step, and their colours."""

FAMILIES = (
    (GREEN, "float32 float64 int32 uint8 complex128"),
    (PURPLE, "sin cos exp log sqrt"),
    (BLUE, "svd qr lu cholesky eigh"),
    (VERMILION, "red green blue yellow black"),
    (ORANGE, "Monday Tuesday Thursday Saturday Sunday"),
    ("0.35", "mean median std var max"),
)
"""Words that belong together, with a colour."""

PROBES = ("float32", "sin", "eigenvalues", "red", "Monday", "median")
COMMON = 10_000
"""The words whose neighbours are printed, among the most frequent words."""


@dataclass(frozen=True)
class Training:
    """The vectors of a training, the loss of each batch, and where the time went."""

    tables: dict[str, Array]
    losses: Array
    seconds: npt.NDArray[np.float64]
    """The time of each turn of the loop."""
    step_seconds: npt.NDArray[np.float64]
    """The part of it that went to reading the vectors and to the step."""


def train(
    way: str, text: Text, *, steps: int, seed: int, tick: Callable[[], object] = lambda: None
) -> Training:
    """Learn word vectors; the same seed gives the same initial vectors and batches."""
    rng = np.random.default_rng(seed)
    tables = initial_tables(len(text.words), rng)
    examples = Examples(text, rng)
    schedule = schuss.schedules.Linear(RATE, 0, steps)
    opt = schuss.Adam(tables, lr=schedule, rows="lazy" if way == "lazy" else "exact")
    is_dense, losses, times = way == "dense", [], []
    for _ in range(steps):
        began = perf_counter()
        indices = examples.draw()
        drawn = perf_counter()
        if is_dense:
            vectors = {name: table[indices[name]] for name, table in tables.items()}
        else:
            vectors = opt.rows(indices)
        read = perf_counter()
        loss, gradients = loss_and_gradients(vectors)
        rows = {
            name: schuss.Rows(indices[name].ravel(), values.reshape(-1, DIMENSIONS))
            for name, values in gradients.items()
        }
        grads: Any = {k: g.to_dense(len(text.words)) for k, g in rows.items()} if is_dense else rows
        ready = perf_counter()
        opt.step(grads)
        ended = perf_counter()
        losses.append(loss)
        times.append((ended - began, ended - ready + read - drawn))
        tick()
    opt.flush()
    seconds, step_seconds = np.transpose(times)
    return Training(tables, np.array(losses), seconds, step_seconds)


def run(*, out: Path, steps: int, seed: int) -> int:
    """Train in each way, print tables, draw the picture, and return the exit status."""
    console = Console(highlight=False, markup=False)
    text = Text.load()
    console.print(
        f"Skip-gram with negative sampling: a text of {len(text.numbers):,} words, two tables of\n"
        f"{len(text.words):,} x {DIMENSIONS}, {steps:,} steps of {BATCH_SIZE:,} examples."
    )
    # BLAS has one thread, as in the demo of digits.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=len(COLORS) * steps, unit=" steps", disable=None, leave=False) as bar,
    ):
        trainings = {
            way: train(way, text, steps=steps, seed=seed, tick=bar.update) for way in COLORS
        }
    console.print(table(trainings))
    console.print(neighbours(text, trainings))
    dense, exact = trainings["dense"].tables, trainings["exact"].tables
    same_bits = all(dense[name].tobytes() == exact[name].tobytes() for name in dense)
    outcome = "the same vectors, to the last bit" if same_bits else "different vectors"
    console.print(f"Dense and exact steps ended with {outcome}.")
    save(picture(text, trainings), out / PICTURE)
    console.print(f"The picture is {out / PICTURE}", soft_wrap=True)
    return 0 if same_bits else 1


def table(trainings: dict[str, Training]) -> Table:
    """Return the losses and the times as a table."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("\nSteps")
    for heading in (
        "Loss of the\nlast tenth",
        "ms of a turn\nof the loop",
        "of it, reading\nand step",
    ):
        grid.add_column(heading, justify="right")
    for way, training in trainings.items():
        loss = training.losses[-len(training.losses) // 10 :].mean()
        times = (1e3 * np.median(each) for each in (training.seconds, training.step_seconds))
        grid.add_row(way, f"{loss:.4f}", *(f"{each:.2f}" for each in times))
    return grid


def neighbours(text: Text, trainings: dict[str, Training]) -> Table:
    """Return the nearest words of some words, after exact and after lazy steps."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("Word")
    grid.add_column("Steps")
    grid.add_column("Nearest words")
    words = text.words[:COMMON]
    for word in (probe for probe in PROBES if probe in words):
        for way in ("exact", "lazy"):
            found = nearest(words, trainings[way].tables["center"][:COMMON], word)
            grid.add_row(word if way == "exact" else "", way, ", ".join(found))
    return grid


@styled
def picture(text: Text, trainings: dict[str, Training]) -> Figure:
    """Draw the loss by time for each way, and how alike some words are after exact steps."""
    drawn = figure(4.8, f"Word vectors: two tables of {len(text.words):,} x {DIMENSIONS}, Adam")
    left, right = drawn.subplots(1, 2)
    for way, training in trainings.items():
        losses = schuss.ewma(training.losses, SMOOTHING)
        style = "--" if way == "lazy" else "-"
        left.plot(np.cumsum(training.seconds), losses, style, color=COLORS[way], label=way)
    left.set(title="Loss by time", xlabel="seconds", ylabel="loss (nats per example)")
    left.legend()
    _draw_cosines(right, text, trainings["exact"].tables["center"])
    note(drawn, "dense and exact: the same losses and vectors, to the last bit")
    return drawn


def _draw_cosines(axes: Axes, text: Text, vectors: Array) -> None:
    number = {word: i for i, word in enumerate(text.words)}
    pairs = [(word, color) for color, words in FAMILIES for word in words.split()]
    words, colors = zip(*(pair for pair in pairs if pair[0] in number), strict=True)
    chosen = vectors[[number[word] for word in words]]
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    image = axes.imshow(chosen @ chosen.T, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="Cosines between words", xticks=[])
    axes.set_yticks(range(len(words)), words, fontsize="x-small")
    for label, color in zip(axes.get_yticklabels(), colors, strict=True):
        label.set_color(color)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
