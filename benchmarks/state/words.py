"""Word vectors, in NumPy: a word is predicted from the two words before it and the two after it.

The mean of their vectors, which are rows of a matrix, goes through a second matrix and the softmax
of all words. A step has gradients in some rows of the first matrix, and zeros in the others.
Mikolov, Chen, Corrado & Dean, "Efficient estimation of word representations in vector space", 2013,
section 3.1.
"""

import re
from collections import Counter

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Array
from benchmarks.state.courses import Course
from benchmarks.state.topics import texts
from benchmarks.state.ways import Way

VOCABULARY, REACH, DIMENSIONS = 1_024, 2, 64
BATCH_SIZE, RATE = 256, 8e-3
LENGTH, EVERY = 1_000, 50
"""Steps."""

Indices = npt.NDArray[np.int64]


def split(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def examples(text: str, vocabulary: dict[str, int]) -> tuple[Indices, Indices]:
    """Return the words around each word, in rows, and the words, as indices."""
    known = np.array([vocabulary[word] for word in split(text) if word in vocabulary], np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(known, 2 * REACH + 1)
    return np.delete(windows, REACH, axis=1), windows[:, REACH]


def scores(params: list[Array], x: Indices) -> tuple[Array, Array]:
    """Return the mean vectors, and the logits of all words, less their maximum."""
    vectors, weights, bias = params
    means = vectors[x].mean(axis=1)
    logits = means @ weights + bias
    logits -= logits.max(axis=1, keepdims=True)
    return means, logits


def gradients(params: list[Array], x: Indices, y: Indices) -> list[Array]:
    """Return the gradients of the mean cross-entropy."""
    means, logits = scores(params, x)
    delta = np.exp(logits)
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    of_vectors = np.zeros_like(params[0])
    of_means = (delta @ params[1].T) / x.shape[1]
    np.add.at(of_vectors, x, of_means[:, np.newaxis])
    return [of_vectors, means.T @ delta, delta.sum(axis=0)]


def tested(params: list[Array], x: Indices, y: Indices) -> tuple[float, float]:
    """Return the mean cross-entropy in nats, and the share of words that are told right."""
    _, logits = scores(params, x)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float(losses.mean(dtype=np.float64)), float(np.mean(logits.argmax(axis=1) == y))


def run(way: Way, seed: int, steps: int) -> Course:
    """Train, and look at the test text now and then."""
    learned, held_out = texts()
    frequent = Counter(split(learned)).most_common(VOCABULARY)
    vocabulary = {word: i for i, (word, _) in enumerate(frequent)}
    x, y = examples(learned, vocabulary)
    test = examples(held_out, vocabulary)
    rng = np.random.default_rng(seed)
    params: list[Array] = [
        rng.standard_normal((VOCABULARY, DIMENSIONS), np.float32),
        rng.standard_normal((DIMENSIONS, VOCABULARY), np.float32) / np.float32(DIMENSIONS**0.5),
        np.zeros(VOCABULARY, np.float32),
    ]
    stepper = way.stepper(params, RATE, seed)
    course = Course()
    for step in range(1, steps + 1):
        batch = rng.integers(0, len(x), BATCH_SIZE)
        stepper.step(gradients(params, x[batch], y[batch]))
        if step % EVERY == 0 or step == steps:
            loss, accuracy = tested(params, *test)
            course.add(step, loss=loss, accuracy=accuracy)
    return course
