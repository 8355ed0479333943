"""The contenders of `rows` are checked, and timed in each case with rows as the draw says."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import schuss
from benchmarks.harness import Array, Rule, WrongResultError, ordinary
from benchmarks.rows import numpy_ways
from benchmarks.rows.command import LIMIT_STATES, WAYS, check
from benchmarks.rows.draws import ONCE, UNIFORM, ZIPF, Batch, batches
from benchmarks.rows.ways import LAZY, RULES, SGD, Training, Way, states_of
from benchmarks.testing import name_of, records_of

KNOWN = [(way, rule) for way in WAYS for rule in RULES if rule.name in way.prepare]


@pytest.mark.parametrize(("way", "rule"), KNOWN, ids=name_of)
def test_every_way_makes_the_steps_of_the_reference(way: Way, rule: Rule) -> None:
    if not find_spec(way.package):
        pytest.skip(f"{way.name} is not here")
    check(way, rule)


def test_a_way_that_forgets_repeated_rows_is_refused() -> None:
    def forgetful(rule: Rule, table: Array, drawn: Sequence[Batch]) -> Training:
        once = [Batch(*np.unique(batch.indices, return_index=True)) for batch in drawn]
        once = [Batch(each.indices, drawn[0].values[each.values]) for each in once]
        return LAZY.prepare[rule.name](rule, table, once)

    with pytest.raises(WrongResultError, match="forgetful: SGD"):
        check(Way("forgetful", {SGD.name: forgetful}), SGD)


def test_rows_times_every_contender_in_every_case(tmp_path: Path) -> None:
    records = records_of("rows", tmp_path, 64)
    cases = [("Adam", draw, count) for draw in (UNIFORM, ZIPF) for count in (1, 6)]
    cases.append(("Adam", ONCE, 1))
    cases += [(rule.name, draw, 1) for rule in RULES[1:] for draw in (UNIFORM, ZIPF)]
    states = {rule.name: states_of(rule) for rule in RULES}
    expected = [
        (*case, name)
        for case in cases
        for name in (
            *["limit", "limit, 1 thread"] * (states[case[0]] in LIMIT_STATES),
            *(way.name for way in WAYS if case[0] in way.prepare and find_spec(way.package)),
        )
    ]
    timed = [
        (*list(record["case"].values())[:3], record["contender"])
        for record in records
        if "draw" in record["case"]
    ]
    assert timed == expected
    rested = records[len(expected) :]
    assert [record["case"]["steps rested"] for record in rested] == [64]
    assert all(record["microseconds"] > 0 for record in records)


def test_the_rows_of_a_mini_batch_are_as_frequent_as_the_draw_says() -> None:
    (drawn,) = batches(ZIPF, 1, 10_000, 1_000_000, 1)
    assert len(drawn.distinct) == pytest.approx(2_290, rel=0.05)
    assert np.bincount(drawn.indices).argmax() == 0
    (drawn,) = batches(UNIFORM, 1, 10_000, 1_000_000, 1)
    assert len(drawn.distinct) == pytest.approx(9_950, rel=0.01)
    in_turn = batches(ONCE, 20, 10, 1_000, 1)
    assert len(in_turn) == 100
    assert np.array_equal(np.sort(np.concatenate([b.indices for b in in_turn])), np.arange(1_000))


@pytest.mark.parametrize("rows", [3, 10_000])
def test_numpy_adds_up_repeated_rows_whether_many_or_few(rows: int) -> None:
    (batch,) = batches(UNIFORM, 1, 50, rows, 4)
    expected = np.zeros((rows, 4))
    np.add.at(expected, batch.indices, batch.values)
    distinct, sums = numpy_ways.summed(batch)
    assert np.array_equal(distinct, batch.distinct)
    assert np.allclose(sums, expected[distinct], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_limit_adds_to_the_rows_and_to_no_others(threads: int) -> None:
    rows = np.array([1, 2, 5, 6, 30])
    param, grad = ordinary(37, 8), ordinary(5, 8)
    states = [param.copy(), param.copy()]
    expected = param.copy()
    expected[rows] += grad
    schuss._core.memory_floor_of_rows(threads, rows, param, grad, *states)
    for array in (param, *states):
        assert np.array_equal(array, expected)


def test_the_limit_refuses_other_rows_than_those_of_the_table() -> None:
    table = ordinary(3, 8)
    for rows, grad in (([0, 3], ordinary(2, 8)), ([-1], ordinary(1, 8))):
        with pytest.raises(IndexError, match="rows"):
            schuss._core.memory_floor_of_rows(1, np.array(rows), table, grad, ordinary(3, 8))
    with pytest.raises(ValueError, match="a row of grad"):
        schuss._core.memory_floor_of_rows(1, np.array([0]), table, table, ordinary(3, 8))
