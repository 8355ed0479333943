"""The shapes of the parameters of ResNet-50 and GPT-2 small."""

from collections.abc import Iterator
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]


def resnet50() -> list[Shape]:
    """Return the shapes of ResNet-50: 161 arrays, 25,557,032 numbers.

    References
    ----------
    He, Zhang, Ren & Sun, "Deep residual learning for image recognition", 2015, table 1.
    """

    def convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
        """Return the shapes of a convolution, and of the normalisation that follows it."""
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    def blocks() -> Iterator[Shape]:
        channels = 64
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for block in range(count):
                yield from convolution(channels, width, 1)
                yield from convolution(width, width, 3)
                yield from convolution(width, 4 * width, 1)
                if block == 0:  # the shortcut changes shape too
                    yield from convolution(channels, 4 * width, 1)
                channels = 4 * width

    return [*convolution(3, 64, 7), *blocks(), (1_000, 2_048), (1_000,)]


def gpt2_small() -> list[Shape]:
    """Return the shapes of GPT-2 small: 148 arrays, 124,439,808 numbers.

    The output layer shares the embedding's.

    References
    ----------
    Radford et al., "Language models are unsupervised multitask learners", 2019, table 2.
    """
    width, vocabulary, context, layers = 768, 50_257, 1_024, 12
    norm: list[Shape] = [(width,), (width,)]

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    attention = [*norm, *dense(width, 3 * width), *dense(width, width)]
    perceptron = [*norm, *dense(width, 4 * width), *dense(4 * width, width)]
    return [(vocabulary, width), (context, width), *(attention + perceptron) * layers, *norm]
