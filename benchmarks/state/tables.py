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


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return the mean and the standard deviation.

    >>> spread([1.0, 2.0, 3.0]), spread([1.0], "+")
    ('2.0000 ± 1.0000', '+1.0000')
    """
    text = f"{fmean(values):{sign}.4f}"
    return f"{text} ± {stdev(values):.4f}" if len(values) > 1 else text


def last(courses: Sequence[Course], name: str) -> list[float]:
    """Return the last value of each course."""
    return [course.values[name][-1] for course in courses]


def differences(ways: Mapping[str, Sequence[Course]], way: str) -> list[float]:
    """Return how much larger the last loss of each seed is than with float32 state."""
    pairs = zip(last(ways[way], COMPARED), last(ways[FLOAT32.name], COMPARED), strict=True)
    return [mine - exact for mine, exact in pairs]


def summary(results: Mapping[str, Mapping[str, Sequence[Course]]]) -> str:
    """Return a table of all trainings: the losses of float32, and the differences to them."""
    rows: dict[str, dict[str, str]] = {}
    trainings = {name: ways for name, ways in results.items() if _has_losses(ways)}
    for name, ways in trainings.items():
        for way in ways:
            exact = way == FLOAT32.name
            of_way = last(ways[way], COMPARED) if exact else differences(ways, way)
            rows.setdefault(way, {})[name] = spread(of_way, "" if exact else "+")
    lines = [[way, *(row.get(name, "") for name in trainings)] for way, row in rows.items()]
    return markdown_rows([["state", *trainings], ["---", *["---:"] * len(trainings)], *lines])


def _has_losses(ways: Mapping[str, Sequence[Course]]) -> bool:
    return all(COMPARED in course.values for courses in ways.values() for course in courses)


def markdown(ways: Mapping[str, Sequence[Course]]) -> str:
    """Return the table of an experiment: the values after the last step."""
    (course, *_), *_ = ways.values()
    names = list(course.values)
    head = ["state", *(TITLES[name] for name in names)]
    rows = [[way, *(spread(last(of_way, name)) for name in names)] for way, of_way in ways.items()]
    if COMPARED in names:
        head.append("loss, less float32's")
        rows = [[*row, spread(differences(ways, row[0]), "+")] for row in rows]
    return markdown_rows([head, ["---", *["---:"] * (len(head) - 1)], *rows])
