"""The tables: means and standard deviations over the seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from benchmarks.report import markdown_rows
from benchmarks.state.courses import Course
from benchmarks.state.ways import FLOAT32

TITLES = {
    "v": "v over its target",
    "error": "error of the update",
    "size": "size of the update",
    "loss": "loss",
    "accuracy": "accuracy",
}
COMPARED = "loss"
"""What is compared with float32, seed by seed: both begin with the same weights and batches."""


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation.

    >>> spread([1.0, 2.0, 3.0]), spread([1.0])
    ('2.0000 ± 1.0000', '1.0000')
    """
    text = f"{fmean(values):.4f}"
    return f"{text} ± {stdev(values):.4f}" if len(values) > 1 else text


def last(courses: Sequence[Course], name: str) -> list[float]:
    """Return the last value of each course."""
    return [course.values[name][-1] for course in courses]


def differences(ways: Mapping[str, Sequence[Course]], way: str) -> list[float]:
    """Return how much larger the last loss of each seed is than with float32 state."""
    pairs = zip(last(ways[way], COMPARED), last(ways[FLOAT32.name], COMPARED), strict=True)
    return [mine - exact for mine, exact in pairs]


def markdown(ways: Mapping[str, Sequence[Course]]) -> str:
    """Return the table of an experiment: the values after the last step."""
    (course, *_), *_ = ways.values()
    names = list(course.values)
    head = ["state", *(TITLES[name] for name in names)]
    rows = [[way, *(spread(last(of_way, name)) for name in names)] for way, of_way in ways.items()]
    if COMPARED in names:
        head.append("loss, less float32's")
        rows = [[*row, spread(differences(ways, row[0]))] for row in rows]
    return markdown_rows([head, ["---", *["---:"] * (len(head) - 1)], *rows])
