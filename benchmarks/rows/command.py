"""Checks the contenders, and times them in turn."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import numpy as np

import schuss
from benchmarks.harness import (
    LIMIT,
    LIMIT_OF_ONE,
    Array,
    Record,
    Rule,
    Run,
    Settings,
    Step,
    Stopwatch,
    check_values,
    interleave,
    line,
    ordinary,
    ratio,
    tracked,
)
from benchmarks.rows.draws import ONCE, UNIFORM, ZIPF, Batch, batches
from benchmarks.rows.numpy_ways import NUMPY
from benchmarks.rows.rest import TITLE_OF_REST, rest
from benchmarks.rows.torch_ways import TORCH
from benchmarks.rows.ways import DENSE, LAZY, OF_SCHUSS, ROWS_ADAM, RULES, Way, kind_of, states_of

TABLE_ROWS, COLUMNS = 1_000_000, 64
PARTS = (1_000, 100, 10)
"""The rows of the table for each row of a mini-batch."""
PART_OF_OTHERS = 100
"""For rules other than Adam."""
BATCHES = 20
CHECK_ROWS, CHECK_COUNT = 37, 23
TURN_SECONDS = 0.01
WAYS: Sequence[Way] = (*OF_SCHUSS, TORCH, NUMPY)
LIMIT_STATES = (1, 2)
"""How many states a rule may have of which there is a memory limit."""


def check(way: Way, rule: Rule) -> None:
    """Raise WrongResultError unless the contender's table is that of the reference.

    Rows are repeated in the mini-batches, and some are in none.
    """
    table = ordinary(CHECK_ROWS, COLUMNS)
    settings: dict[str, Any] = {**rule.hyperparameters, "rows": way.semantics}
    optimizer = schuss.reference.Optimizer(kind_of(rule), table.copy(), **settings)
    drawn = batches(ZIPF, 5, CHECK_COUNT, CHECK_ROWS, COLUMNS)
    for batch in drawn:
        optimizer.step(batch.rows)
    training = way.prepare[rule.name](rule, table, drawn)
    for step in training.steps:
        step()
    training.finish()
    check_values(f"{way.name}: {rule.name}", table, optimizer.params, exact=way in OF_SCHUSS)


def in_turn(steps: Sequence[Step]) -> Run:
    """Return a function that makes the steps one after the other, again and again.

    Each has been made once before: a row has rested since its last mini-batch.
    """
    for step in steps:
        step()
    following: Iterator[Step] = cycle(steps)

    def run(calls: int) -> None:
        for step in islice(following, calls):
            step()

    return run


def limits(table: Array, states: int, drawn: Sequence[Batch]) -> dict[str, Run]:
    """Return loops that move the memory of a lazy step and only add."""
    if states not in LIMIT_STATES:
        return {}
    others = [np.ones_like(table) for _ in range(states)]

    def additions(threads: int, batch: Batch) -> Step:
        rows, grad = batch.distinct, batch.values[: len(batch.distinct)]
        return partial(schuss._core.memory_floor_of_rows, threads, rows, table, grad, *others)

    return {
        name: in_turn([additions(threads, batch) for batch in drawn])
        for name, threads in ((LIMIT, schuss.num_threads()), (LIMIT_OF_ONE, 1))
    }


def bytes_moved(name: str, states: int, drawn: Sequence[Batch]) -> float:
    """Return the bytes that a lazy step, or the memory limit, must move, on average."""
    row = 4 * COLUMNS
    # The limit has a row of the gradient for each distinct row.
    gradients = [len(batch.distinct if name == LIMIT else batch.indices) for batch in drawn]
    written = [len(batch.distinct) for batch in drawn]
    return float(row * (2 * (1 + states) * np.mean(written) + np.mean(gradients)))


def case(rule: Rule, draw: str, count: int, rows: int, settings: Settings) -> list[Record]:
    """Time the contenders for the rule on the same mini-batches, each with a table of its own."""
    drawn = batches(draw, BATCHES, count, rows, COLUMNS)
    ways = [way for way in WAYS if rule.name in way.prepare and find_spec(way.package)]
    states = states_of(rule)
    runs = limits(ordinary(rows, COLUMNS), states, drawn)
    for way in ways:
        timed = drawn[:1] if way.steps_alike else drawn
        runs[way.name] = in_turn(way.prepare[rule.name](rule, ordinary(rows, COLUMNS), timed).steps)
    watches = {name: Stopwatch(run, seconds=TURN_SECONDS) for name, run in runs.items()}
    times = interleave(watches, settings.rounds)
    distinct = round(float(np.mean([len(batch.distinct) for batch in drawn])))
    labels = {"rule": rule.name, "draw": draw, "rows a step": count, "distinct": distinct}
    records = []
    for name in times:
        record = line(labels, name, times, "microseconds", [DENSE.name, LAZY.name])
        if LIMIT in times and name in (LIMIT, LAZY.name):
            moved = bytes_moved(name, states, drawn)
            record["gigabytes_per_second"] = moved / float(np.median(times[name])) / 1e9
        if LIMIT in times and name == LAZY.name:
            limit = np.minimum(times[LIMIT], times[LIMIT_OF_ONE])
            record["share_of_limit"] = ratio(limit, times[name])
        records.append(record)
    return records


def cases(rows: int) -> Iterator[tuple[Rule, str, int, int]]:
    """Yield the rule, the draw, the rows of a mini-batch and those of the table of each case."""
    counts = dict.fromkeys(max(1, rows // part) for part in PARTS)
    for draw in (UNIFORM, ZIPF):
        for count in counts:
            yield ROWS_ADAM, draw, count, rows
    count = max(1, rows // PART_OF_OTHERS)
    yield ROWS_ADAM, ONCE, count, rows
    for rule in RULES:
        if rule is not ROWS_ADAM:
            for draw in (UNIFORM, ZIPF):
                yield rule, draw, count, rows


def rows(settings: Settings) -> list[Record]:
    """A step of a table of 64 columns of which a mini-batch touches some rows: float32."""
    for way in WAYS:
        if find_spec(way.package):
            for rule in RULES:
                if rule.name in way.prepare:
                    check(way, rule)
    chosen = [
        each
        for size in settings.sizes or (TABLE_ROWS,)
        for each in cases(size)
        if settings.only in f"{each[0].name}, {each[1]}, {each[2]}"
    ]
    records = [record for each in tracked("rows", chosen) for record in case(*each, settings)]
    return records + (rest(settings) if settings.only in TITLE_OF_REST else [])
