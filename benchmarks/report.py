"""The figures and the environment, as tables and as JSON."""

import datetime
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import schuss
from benchmarks.harness import Record

FOOTNOTE = """\
- Contenders take turns in one process; in loop, train, torch_loop and checkpoints each has its own.
  In mpi, they take turns in the same processes. A turn begins when the threads of the previous
  contender are idle.
- Times are medians over rounds. Ratios ("vs schuss") and shares of the limit are medians of the
  ratios within a round. A contender that takes 2 s or more runs in the first 3 rounds only.
- The limit is the memory limit: a compiled loop of additions over the same bytes. A step cannot be
  faster, except for noise. A contender with all threads is compared with the faster limit.
- GB/s counts the bytes that one pass must move. NumPy's many passes move more.
- benchmarks/README.md says what each benchmark does, and what differs between contenders."""

PEERS = (
    "bitsandbytes",
    "deepspeed",
    "jax",
    "ml_dtypes",
    "mpi4py",
    "numba",
    "numexpr",
    "optax",
    "pandas",
    "safetensors",
    "scipy",
    "sklearn",
    "thinc",
    "threadpoolctl",
    "torch",
    "torchao",
)
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""The distributions that have another name than what is imported."""


def environment() -> dict[str, str]:
    """Return the environment that the figures depend on."""
    config = schuss.show_config("dicts")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": str(_cores()),
        "threads": ", ".join(f"{name} {count}" for name, count in _threads().items()),
        "blas": _blas(),
        **{name: config[name] for name in ("simd", "schuss", "numpy", "python")},
        **{
            name: metadata.version(DISTRIBUTIONS.get(name, name))
            for name in PEERS
            if find_spec(name)
        },
    }


def _commit() -> str:
    """Return the last commit that changed the library, marked if its files differ from it."""
    folder = Path(__file__).parents[1]
    sources = ["--", "cpp", "python"]

    def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["git", *arguments, *sources], cwd=folder, capture_output=True, check=False, text=True
        )

    try:
        commit = git("log", "-1", "--format=%h").stdout.strip()
        changed = git("diff", "--quiet", "HEAD").returncode
    except OSError:  # no git
        return "unknown"
    return f"{commit}-dirty" if commit and changed else commit or "unknown"


def _threads() -> dict[str, int]:
    """Return the default number of threads of each library."""
    threads = {"schuss": schuss.num_threads()}
    if find_spec("torch"):
        threads["torch"] = import_module("torch").get_num_threads()
    if find_spec("numba"):
        threads["numba"] = import_module("numba").get_num_threads()
    return threads


def _blas() -> str:
    """Return NumPy's BLAS, with its threads if threadpoolctl is installed."""
    if not find_spec("threadpoolctl"):
        config: Any = np.show_config("dicts")
        return str(config["Build Dependencies"]["blas"]["name"])
    pools = import_module("threadpoolctl").threadpool_info()
    return ", ".join(
        f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)"
        for pool in pools
        if pool["user_api"] == "blas"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def three_digits(value: float) -> str:
    """Return a positive number with at least three significant digits.

    >>> three_digits(0.61234), three_digits(204_123.4)
    ('0.612', '204,123')
    """
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(decimals, 0)}f}"


COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "microseconds": ("µs", three_digits),
    "milliseconds": ("ms", three_digits),
    "microseconds_a_batch": ("µs a batch", three_digits),
    "own_microseconds": ("own µs", three_digits),
    "quartiles": ("quartiles", lambda pair: " - ".join(map(three_digits, pair))),
    "gigabytes_per_second": ("GB/s", three_digits),
    "share_of_limit": ("of limit", "{:.1%}".format),
    "state_megabytes": ("state MB", three_digits),
    "state_share": ("of whole state", "{:.1%}".format),
    "peak_megabytes": ("peak MB", three_digits),
    "gigabytes": ("GB a machine", three_digits),
    "gigabytes_8bit": ("GB with 8-bit state", three_digits),
    "accuracy": ("accuracy", "{:.1%}".format),
}
TEXTS = frozenset({"rule", "work", "dtype", "param", "grad", "state", "copies"})
TEXTS |= {"average", "draw", "layout", "list", "solver", "hidden", "network", "contender"}


def by_labels(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Return the records by the labels of their cases: a table for each."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record["case"]), []).append(record)
    return [*groups.values()]


def case_value(value: Any) -> str:
    """Return a label's value as it is shown."""
    return value if isinstance(value, str) else f"{value:,}"


def _cells(record: Record) -> dict[str, str]:
    return {
        **{name: case_value(value) for name, value in record["case"].items()},
        "contender": record["contender"],
        **{title: show(record[key]) for key, (title, show) in COLUMNS.items() if key in record},
        **{f"vs {rival}": f"{ratio:.2f}" for rival, ratio in record.get("times", {}).items()},
    }


def _without_repetition(records: Sequence[Record]) -> list[dict[str, str]]:
    """Return the rows of a table, each case named only in its first row."""
    lines = [_cells(record) for record in records]
    names = dict.fromkeys(name for line in lines for name in line)
    lines = [{name: line.get(name, "") for name in names} for line in lines]
    for (before, now), line in zip(pairwise(records), lines[1:], strict=True):
        if before["case"] == now["case"]:
            line |= dict.fromkeys(now["case"], "")
    return lines


def rich_table(title: str, records: Sequence[Record]) -> Table:
    """Return a table for a terminal, with a section for each case."""
    table = Table(title=title, title_justify="left")
    lines = _without_repetition(records)
    for name in lines[0]:
        table.add_column(name, justify="left" if name in TEXTS else "right")
    for line in lines:
        first, *_ = line.values()
        if first and records[0]["case"]:
            table.add_section()
        table.add_row(*line.values())
    return table


def markdown_table(title: str, records: Sequence[Record]) -> str:
    """Return the table under its title."""
    return f"### {title}\n\n{markdown_lines(records)}"


def markdown_lines(records: Sequence[Record]) -> str:
    """Return a table as GitHub's Markdown writes it."""
    lines = _without_repetition(records)
    rules = ["---" if name in TEXTS else "---:" for name in lines[0]]
    return markdown_rows([[*lines[0]], rules, *([*line.values()] for line in lines)])


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
