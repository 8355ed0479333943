"""A history of figures by commit, so that a slowdown is seen.

    python -m benchmarks --record benchmarks/history.jsonl
    python -m benchmarks.history benchmarks/history.jsonl

The first command appends a line of JSON for the run. The second prints, for each processor, how the
times of schuss, relative to a yardstick of the same run, changed from commit to commit.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

from benchmarks.harness import LIMIT, Record
from benchmarks.report import case_value, markdown_rows

Case: TypeAlias = tuple[str, str, str]
"""A benchmark, a case of it, and a contender."""
Run: TypeAlias = Mapping[str, Any]

YARDSTICKS = (
    LIMIT,
    "product alone",
    "gradients alone",
    "x.copy()",
    "np.take",
    "np.take, order ready",
    "plain write and read",
    "plain read and write",
    "direct read and write",
    "Allreduce, full step",
    "scikit-learn",
    "the loop by hand",
    "moments alone",
    "import numpy",
    "NumPy in place",
)
"""Work that does not use the code under test, or moves only memory: a case's first one counts."""
LEAST_CHANGE = 0.05
"""A change smaller than this is noise, even if the quartiles say otherwise."""
DIGITS = 4
MICROSECONDS = {"microseconds": 1.0, "milliseconds": 1e3}


def record_run(
    path: Path, environment: Mapping[str, str], results: Mapping[str, Sequence[Record]]
) -> None:
    """Append the figures of a run: for each contender of a case, median and quartiles in µs."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, records in results.items():
        for record in records:
            (unit,) = MICROSECONDS.keys() & record.keys()
            times = (record[unit], *record["quartiles"])
            case = ", ".join(map(case_value, record["case"].values()))
            figures.setdefault(name, {}).setdefault(case, {})[record["contender"]] = [
                float(f"{MICROSECONDS[unit] * time:.{DIGITS}g}") for time in times
            ]
    with path.open("a") as file:
        print(json.dumps({"environment": environment, "figures": figures}), file=file)


class Ratio(NamedTuple):
    """A time relative to the yardstick's, and how far it may be off, relative to itself."""

    value: float
    noise: float

    def change_from(self, before: "Ratio") -> str:
        """Return "slower" or "faster" if the difference is more than the noise."""
        beyond = 1 + max(LEAST_CHANGE, self.noise + before.noise)
        if self.value > before.value * beyond:
            return "slower"
        return "faster" if self.value * beyond < before.value else ""


def ratios(run: Run) -> Iterator[tuple[Case, Ratio]]:
    """Yield the ratios of schuss to the yardstick of each case."""
    for name, cases in run["figures"].items():
        for case, times in cases.items():
            yardstick = next((times[each] for each in YARDSTICKS if each in times), None)
            for contender, figures in times.items():
                ours = name == "mapped" or "schuss" in contender
                if ours and yardstick is not None:
                    noise = sum((high - low) / 2 / mid for mid, low, high in (figures, yardstick))
                    yield (name, case, contender), Ratio(figures[0] / yardstick[0], noise)


def merged(of_one_commit: Sequence[Ratio]) -> Ratio:
    """Return the median of several runs of a commit, with their scatter as noise."""
    values = [ratio.value for ratio in of_one_commit]
    middle = median(values)
    scatter = (max(values) - min(values)) / 2 / middle
    return Ratio(middle, max(scatter, *(ratio.noise for ratio in of_one_commit), 0.0))


def changes(runs: Iterable[Run]) -> dict[Case, dict[str, str]]:
    """Return for each case the ratio at each commit, in order, and whether it changed."""
    by_commit: dict[Case, dict[str, list[Ratio]]] = {}
    for run in runs:
        for case, ratio in ratios(run):
            of_case = by_commit.setdefault(case, {})
            of_case.setdefault(run["environment"]["commit"], []).append(ratio)
    shown: dict[Case, dict[str, str]] = {}
    for case, commits in by_commit.items():
        before: Ratio | None = None
        for commit, several in commits.items():
            now = merged(several)
            change = now.change_from(before) if before else ""
            shown.setdefault(case, {})[commit] = f"{now.value:.3g} {change}".strip()
            before = now
    return shown


def table(runs: Sequence[Run], *, only_changes: bool) -> str:
    """Return a Markdown table: a row per case, a column per commit."""
    commits = dict.fromkeys(run["environment"]["commit"] for run in runs)
    lines = [
        ["benchmark", "case", "contender", *commits],
        ["---"] * 3 + ["---:"] * len(commits),
    ]
    lines += [
        [*case, *(shown.get(commit, "") for commit in commits)]
        for case, shown in changes(runs).items()
        if not only_changes or any(" " in cell for cell in shown.values())
    ]
    return markdown_rows(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each processor."""
    parser = argparse.ArgumentParser("python -m benchmarks.history", description=__doc__)
    parser.add_argument("path", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--changes", action="store_true", help="only rows with a change")
    options = parser.parse_args(arguments)
    runs: list[Run] = [json.loads(line) for line in options.path.read_text().splitlines()]
    by_machine: dict[str, list[Run]] = {}
    for run in runs:
        described = [run["environment"][key] for key in ("processor", "cores", "simd")]
        by_machine.setdefault(", ".join(described), []).append(run)
    for machine, of_machine in by_machine.items():
        print(f"{machine}\n\n{table(of_machine, only_changes=options.changes)}\n")


if __name__ == "__main__":
    main()
