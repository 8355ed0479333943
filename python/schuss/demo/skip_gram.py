"""Word vectors by skip-gram with negative sampling: the model and its examples, in NumPy.

Mikolov, Sutskever, Chen, Corrado & Dean, "Distributed representations of words and phrases and
their compositionality", 2013, sections 2.2 and 2.3.
"""

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss.demo.source_text import Text

DIMENSIONS = 128
BATCH_SIZE = 1_024
NEGATIVES = 5
REACH = 5
RARE = 1e-4

Indices = npt.NDArray[np.int64]


def initial_tables(words: int, rng: np.random.Generator) -> dict[str, Array]:
    """Return two vectors for each word: one for the word itself, one for the word as a context."""
    shape = words, DIMENSIONS
    centers = rng.uniform(-0.5 / DIMENSIONS, 0.5 / DIMENSIONS, shape)
    return {"center": centers.astype(np.float32), "context": np.zeros(shape, np.float32)}


class Examples:
    """Random words of a text, each with a word near it and with words drawn at random.

    Parameters
    ----------
    text : Text
        Frequent words of it are left out at random, so that rare ones are seen more often.
    rng : numpy.random.Generator
        The generator of all random numbers.
    """

    def __init__(self, text: Text, rng: np.random.Generator) -> None:
        frequency = text.counts / text.counts.sum()
        kept = rng.random(len(text.numbers)) < np.sqrt(RARE / frequency)[text.numbers]
        self._text, self._rng = text.numbers[kept], rng
        weights = np.cumsum(text.counts**0.75)
        self._noise = weights / weights[-1]  # the cumulative distribution of negatives

    def draw(self) -> dict[str, Indices]:
        """Return centers, shape (b,), and contexts, shape (b, 1 + k): a true one, k negatives."""
        rng, text = self._rng, self._text
        place = rng.integers(REACH, len(text) - REACH, BATCH_SIZE)
        distance = rng.integers(1, REACH + 1, BATCH_SIZE) * rng.choice((-1, 1), BATCH_SIZE)
        negatives = np.searchsorted(self._noise, rng.random((BATCH_SIZE, NEGATIVES)))
        contexts = np.column_stack([text[place + distance], negatives])
        return {"center": text[place].astype(np.int64), "context": contexts}


def loss_and_gradients(vectors: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """Return the mean loss of b examples in nats, and its gradients.

    A logistic regression tells the true context of each center from its k negatives.

    Parameters
    ----------
    vectors : dict of arrays
        ``center``, shape (b, d), and ``context``, shape (b, 1 + k, d): the true context first.

    Returns
    -------
    loss : float
        The sum of the 1 + k cross-entropies of an example, averaged over the examples.
    gradients : dict of arrays
        The gradients of the loss, in the structure of `vectors`.

    References
    ----------
    Mikolov et al. 2013, eq. 4.
    """
    center, context = vectors["center"], vectors["context"]
    logits = np.einsum("bd,bkd->bk", center, context)
    loss = np.logaddexp(0, logits).sum() - logits[:, 0].sum()

    delta = 1 / (1 + np.exp(-logits))
    delta[:, 0] -= 1
    delta /= len(center)
    return float(loss) / len(center), {
        "center": np.einsum("bk,bkd->bd", delta, context),
        "context": np.einsum("bk,bd->bkd", delta, center),
    }


def nearest(words: list[str], table: Array, word: str, count: int = 5) -> list[str]:
    """Return the words whose vectors have the largest cosines with the vector of a word."""
    of_word = table[words.index(word)]
    cosines = table @ of_word / np.linalg.norm(table, axis=1)
    return [words[i] for i in np.argsort(-cosines)[1 : count + 1]]
