"""The figures that --json wrote as compact tables: a row per contender, a column per case.

`python -m benchmarks.compact FILE.json...` prints Markdown tables of medians. A case with many
labels, such as a combination of dtypes, has rows of its own, without the yardsticks.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import LIMITS, PLAIN, Record
from benchmarks.report import markdown_lines, three_digits

COLUMNS = ("work", "size", "list")
"""The label that distinguishes the cases of a table: the first of these that they have."""
TITLE = ("rule", "dtype", "size")
"""The other labels are in the table's title."""
MANY_WORDS = "bytes"
"""Cases with this label have rows of their own."""
UNITS = {"microseconds": "µs", "milliseconds": "ms"}


def compact_tables(name: str, records: Sequence[Record]) -> str:
    """Return a Markdown table for each group of cases that differ in their column only."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if MANY_WORDS in record["case"]:
            groups.setdefault("", []).append(record)
        elif _column(record):
            groups.setdefault(_title(name, record), []).append(record)
    return "\n\n".join(
        _table(title, group) if title else _without_yardsticks(group)
        for title, group in groups.items()
    )


def _column(record: Record) -> str | None:
    return next((key for key in COLUMNS if key in record["case"]), None)


def _shown(value: str | int) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def _title(name: str, record: Record) -> str:
    case = record["case"]
    words = [name, *(_shown(case[key]) for key in TITLE if key in case and key != _column(record))]
    (unit,) = (short for long, short in UNITS.items() if long in record)
    return f"{', '.join(words)} ({unit})"


def _without_yardsticks(records: Sequence[Record]) -> str:
    return markdown_lines([r for r in records if r["contender"] not in (*LIMITS, PLAIN)])


def _table(title: str, records: Sequence[Record]) -> str:
    times: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}  # in their order
    for record in records:
        column = _shown(record["case"][_column(record)])
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
