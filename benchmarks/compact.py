"""The tables of benchmarks/README.md, from the figures that --json wrote.

    python -m benchmarks.compact FIGURES.json ...
    python -m benchmarks.compact FIGURES.json ... --into README.md

prints all tables, or replaces those of a file that stand between `<!-- table: TITLE -->` and
`<!-- end -->`. Most have a row per contender and a column per case. Several files make one table if
each has some of its cases.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import LIMITS, PLAINS, Record
from benchmarks.report import case_value, markdown_lines, markdown_rows, three_digits
from benchmarks.sklearn import UNPATCHED

COLUMN = {
    "whole": "work",
    "many": "list",
    "rules": "rule",
    "train": "epochs",
    "torch_loop": "width",
}
"""The label that distinguishes the columns; by default, the size."""
TITLE = ("rule", "dtype")
"""The labels that are in the title."""
OF_ONE_SIZE = ("whole", "rules")
"""Benchmarks whose title has the size, too."""
IN_ROWS = (
    "dtypes",
    "layout",
    "average",
    "batches",
    "checkpoints",
    "mapped",
    "files",
    "overhead",
    "startup",
)
"""Benchmarks whose cases have rows of their own, without the yardsticks."""
MARKED = re.compile(r"(<!-- table: (.*?) -->)\n.*?\n(<!-- end -->)", re.DOTALL)
UNITS = {"microseconds": "µs", "milliseconds": "ms"}


def compact_tables(name: str, records: Sequence[Record]) -> dict[str, str]:
    """Return the benchmark's Markdown tables by their titles."""
    if name in IN_ROWS:
        return {name: _in_rows(records)}
    if name == "sklearn":
        return _times_as_fast(records)
    if name == "rows":
        return _moving_and_resting(records)
    if name == "mpi":
        return _measured_and_on_paper(records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_title(name, record["case"]), []).append(record)
    column = COLUMN.get(name, "size")
    return {title: _table(title, column, group) for title, group in groups.items()}


def _title(name: str, case: Mapping[str, object]) -> str:
    keys = [key for key in TITLE if key != COLUMN.get(name)] + ["size"] * (name in OF_ONE_SIZE)
    return ", ".join([name, *(case_value(case[key]) for key in keys if key in case)])


def _name(record: Record) -> str:
    contender: str = record["contender"]
    return f"memory {contender}" if contender in LIMITS else contender


def _in_rows(records: Sequence[Record]) -> str:
    return markdown_lines([r for r in records if r["contender"] not in (*LIMITS, *PLAINS)])


def _pivot(corner: str, cells: Iterable[tuple[str, str, str]]) -> str:
    """Return a table of (row, column, value)."""
    rows: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}  # in their order
    for row, column, value in cells:
        rows.setdefault(row, {})[column] = value
        columns[column] = None
    lines = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return markdown_rows([[corner, *columns], ["---", *["---:"] * len(columns)], *lines])


def _table(title: str, column: str, records: Sequence[Record]) -> str:
    (unit,) = {unit for record in records for unit in UNITS if unit in record}
    return _pivot(
        f"{title} ({UNITS[unit]})",
        (
            (_name(record), case_value(record["case"][column]), three_digits(record[unit]))
            for record in records
        ),
    )


def _times_as_fast(records: Sequence[Record]) -> dict[str, str]:
    """Return how many times as fast trainings are with schuss, for each solver."""
    cells: dict[str, list[tuple[str, str, str]]] = {}
    for record in records:
        if record["contender"] == UNPATCHED:
            case, ratio = record["case"], record["times"]["schuss"]
            row = f"{case['hidden']}, {case['batch']}"
            cells.setdefault(f"sklearn, {case['solver']}", []).append(
                (row, case["dtype"], f"{ratio:.2f}")
            )
    return {title: _pivot("hidden layers, batch", each) for title, each in cells.items()}


def _measured_and_on_paper(records: Sequence[Record]) -> dict[str, str]:
    """Return the measured figures, and the seconds and gigabytes of the estimates."""
    measured = [record for record in records if "network" not in record["case"]]
    seconds, gigabytes = [], []
    for record in records:
        case, who = record["case"], record["contender"]
        if "network" not in case:
            continue
        model = f"{case['parameters']}, {case['machines']:,}"
        in_seconds = three_digits(record["milliseconds"] / 1e3)
        seconds.append((f"{model}, {case['network']}", who, in_seconds))
        for key, state in (("gigabytes", ""), ("gigabytes_8bit", ", 8-bit state")):
            if key in record:
                gigabytes.append((model, who + state, three_digits(record[key])))
    return {
        "mpi": _in_rows(measured),
        "mpi, seconds on paper": _pivot("parameters, machines, network", seconds),
        "mpi, gigabytes on paper": _pivot("parameters, machines", gigabytes),
    }


def _moving_and_resting(records: Sequence[Record]) -> dict[str, str]:
    """Return the times of steps by rows, and of reading rows that rested."""
    moving, resting = [], []
    for record in records:
        case, time = record["case"], three_digits(record["microseconds"])
        if "draw" in case:
            row = f"{case['rule']}, {case['draw']}, {case['rows a step']:,}"
            moving.append((row, _name(record), time))
        else:
            resting.append((f"{case['rows read']:,}", case_value(case["steps rested"]), time))
    return {
        "rows": _pivot("rule, draw, rows a step (µs)", moving),
        "rows, rest": _pivot("rows read (µs), by the steps they rested", resting),
    }


def put_into(text: str, tables: Mapping[str, str]) -> str:
    """Return the text with its marked tables replaced by those of the same titles."""

    def replaced(found: re.Match[str]) -> str:
        begin, title, end = found.groups()
        return f"{begin}\n{tables[title]}\n{end}" if title in tables else found.group()

    return MARKED.sub(replaced, text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of figures in files, or put them into another file."""
    parser = argparse.ArgumentParser("python -m benchmarks.compact", description=__doc__)
    parser.add_argument("figures", nargs="+", type=Path, metavar="FIGURES.json")
    parser.add_argument("--into", type=Path, metavar="FILE.md", help="replace its marked tables")
    options = parser.parse_args(arguments)
    results: dict[str, list[Record]] = {}
    for path in options.figures:
        for name, records in json.loads(path.read_text())["benchmarks"].items():
            results.setdefault(name, []).extend(records)
    tables: dict[str, str] = {}
    for name, records in results.items():
        tables |= compact_tables(name, records) if records else {}
    if options.into:
        options.into.write_text(put_into(options.into.read_text(), tables))
    else:
        for title, table in tables.items():
            print(f"<!-- table: {title} -->\n{table}\n<!-- end -->\n")


if __name__ == "__main__":
    main()
