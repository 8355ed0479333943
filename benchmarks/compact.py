"""The figures that --json wrote, as the README shows them: a line a contender, a column a case.

`python -m benchmarks.compact FILE.json...` prints Markdown tables of medians.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Record
from benchmarks.report import three_digits

COLUMNS = ("size", "list")
"""What tells the cases of a table apart; all else of a case is in the table's title."""
UNITS = {"microseconds": "µs", "milliseconds": "ms"}


def compact_tables(name: str, records: Sequence[Record]) -> str:
    """Return a Markdown table for each group of cases that differ in their column only."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        case = record["case"]
        if any(column in case for column in COLUMNS):
            groups.setdefault(_title(name, record), []).append(record)
    return "\n\n".join(_table(title, group) for title, group in groups.items())


def _title(name: str, record: Record) -> str:
    words = [name, *(record["case"][key] for key in ("rule", "dtype") if key in record["case"])]
    (unit,) = (short for long, short in UNITS.items() if long in record)
    return f"{', '.join(words)} ({unit})"


def _table(title: str, records: Sequence[Record]) -> str:
    times: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}  # in their order
    for record in records:
        (column,) = (record["case"][key] for key in COLUMNS if key in record["case"])
        column = column if isinstance(column, str) else f"{column:,}"
        (median,) = (record[unit] for unit in UNITS if unit in record)
        times.setdefault(record["contender"], {})[column] = three_digits(median)
        columns[column] = None
    lines = [[title, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(row.get(c, "") for c in columns)] for name, row in times.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(files: Sequence[str]) -> None:
    """Print the tables of each file."""
    for file in files:
        for name, records in json.loads(Path(file).read_text())["benchmarks"].items():
            if tables := compact_tables(name, records):
                print(f"{tables}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
