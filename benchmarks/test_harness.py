"""The limit moves the memory of a step, and all take turns; no clock is judged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    contenders,
    harness,
)
from benchmarks.contenders import (
    ADAM,
    FURTHER_RULES,
    ONE_THREAD,
    RULES,
    SCHUSS,
    TEXTBOOK,
)
from benchmarks.dtypes import COMBINATIONS
from benchmarks.harness import Array, Case, Contender, Problem, Step
from benchmarks.testing import QUICK, adam_case, pose
from benchmarks.whole import WORKS, needs_ml_dtypes, posed, posed_to_check

CLEAR = "clip, step, average, clear"


def test_the_limit_runs_over_the_arrays_of_the_problem() -> None:
    problem = pose(ADAM)
    before = problem.params[0].copy()
    contenders.limit(problem)(2)
    np.testing.assert_allclose(problem.params[0], before + 2 * problem.grads[0])
    for state in problem.states[0]:
        np.testing.assert_allclose(state, 2 * problem.grads[0])


@pytest.mark.parametrize("work", WORKS)
def test_the_limit_of_a_whole_moves_as_many_bytes(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs_ml_dtypes(work):
        pytest.importorskip("ml_dtypes")
    given: list[Any] = []
    monkeypatch.setattr("schuss._core.memory_floor", lambda *arguments: given.extend(arguments))
    problem = posed_to_check(work, 179_200)  # 28 times the bytes of all works, and full blocks
    contenders.limit(problem)(5)
    _, _, param, grad, *states = given
    assert {array.dtype for array in (param, grad, *states)} == {np.dtype(np.float32)}
    assert 2 * param.nbytes + grad.nbytes + sum(2 * state.nbytes for state in states) == (
        problem.bytes_moved
    )
    assert (param is problem.params[0]) == (not problem.options and not problem.more_grads)


# How it is measured.


def test_everyone_is_measured_in_turn() -> None:
    turns: list[float] = []

    def measure(seconds: float) -> Callable[[], float]:
        return lambda: turns.append(seconds) or seconds  # type: ignore[func-returns-value]

    rounds = harness.Rounds(least=3, most=3)
    times = harness.interleave({"a": measure(1.0), "b": measure(2.0)}, rounds)
    assert turns == [1.0, 2.0] * 3
    assert [times[name].tolist() for name in "ab"] == [[1.0] * 3, [2.0] * 3]


def test_each_turn_begins_with_the_numbers_that_were_posed() -> None:
    seen: list[list[Array]] = []

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        step = SCHUSS.steps["Adam"](problem, **hyperparameters)

        def watched() -> None:
            arrays = (*problem.params, *problem.grads, *problem.states[0])
            seen.append([array.copy() for array in arrays])
            step()

        return watched

    case = Case({}, ADAM, partial(posed, CLEAR, 64), partial(posed_to_check, CLEAR, 37), "float32")
    watcher = Contender("watcher", {"Adam": prepare})
    pristine = case.pose()
    expected = [*pristine.params, *pristine.grads, *pristine.states[0]]

    def turns(case: Case) -> list[bool]:
        seen.clear()
        everyone, rounds = [SCHUSS, watcher, contenders.IN_PLACE_WHOLE], harness.Rounds(2, 2)
        harness.compare(case, everyone, contenders.WITH_PLAIN, rounds)
        timed = [arrays for arrays in seen if len(arrays[0]) == 64]
        return [np.array_equal(arrays, expected) for arrays in timed]

    assert not any(turns(case)[1:])
    restored = turns(replace(case, restores=True))
    assert len(restored) >= 4
    assert all(restored)


def test_figures_are_medians_and_ratios_those_within_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {"limit": [1, 2, 6], "schuss": [2, 8, 8], "other": [8, 16, 40]}
    times = {name: np.array(values) / 1e6 for name, values in seconds.items()}
    monkeypatch.setattr(harness, "interleave", lambda measures, rounds: times)
    other = Contender("other", TEXTBOOK.steps)
    records = harness.compare(adam_case(), [SCHUSS, other], contenders.YARDSTICKS, QUICK)
    _, schuss, other_record = records
    assert schuss["microseconds"] == pytest.approx(8.0)
    assert schuss["quartiles"] == pytest.approx([5.0, 8.0])
    assert schuss["rounds"] == 3
    assert schuss["gigabytes_per_second"] == pytest.approx(7 * 4 * 64 / 8e-6 / 1e9)
    assert schuss["share_of_limit"] == pytest.approx(0.5)
    assert other_record["times"] == {"schuss": pytest.approx(4.0)}


@pytest.mark.parametrize(("all_threads", "share"), [(1, 0.25), (3, 0.5)])
def test_a_share_is_of_the_limit_of_as_many_threads_at_most(
    all_threads: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"limit": all_threads, "limit, 1 thread": 2, "schuss": 4, "schuss, 1 thread": 4}
    times = {name: np.array([value]) for name, value in seconds.items()}
    monkeypatch.setattr(harness, "interleave", lambda measures, rounds: times)
    records = harness.compare(adam_case(), [SCHUSS, ONE_THREAD], contenders.BOTH_LIMITS, QUICK)
    assert [record["share_of_limit"] for record in records] == [1, 1, share, 0.5]
    assert [list(record["times"]) for record in records] == [["schuss"]] * 4


def test_a_ratio_to_the_plain_step_is_to_one_of_as_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {"limit": 1, "schuss": 4, "schuss, 1 thread": 12}
    plain = dict(zip(harness.PLAINS, (2, 3), strict=True))
    times = {name: np.array([value]) for name, value in {**seconds, **plain}.items()}
    monkeypatch.setattr(harness, "interleave", lambda measures, rounds: times)
    records = harness.compare(adam_case(), [SCHUSS, ONE_THREAD], contenders.WITH_PLAIN, QUICK)
    ratios = {record["contender"]: record["times"] for record in records}
    assert ratios["schuss"] == {"plain float32 step": 2, "schuss": 1}
    assert ratios["schuss, 1 thread"] == {"plain float32 step": 4, "schuss": 3}


def test_who_solves_another_problem_is_checked_on_it_and_has_no_share_of_the_limit() -> None:
    posed: list[Problem] = []

    def smaller(problem: Problem) -> Problem:
        posed.append(pose(ADAM, problem.params[0].size // 2))
        return posed[-1]

    other = replace(SCHUSS, name="other", instead=smaller)
    case = replace(adam_case(), contenders=[other])
    *_, record = harness.compare(case, [SCHUSS], contenders.YARDSTICKS, QUICK)
    assert [problem.optimizer.steps > 0 for problem in posed] == [True, True]
    assert record["contender"] == "other"
    assert record["times"].keys() == {"schuss"}
    assert not {"share_of_limit", "gigabytes_per_second"} & record.keys()


def test_who_does_not_know_the_rule_stays_out() -> None:
    newcomer = Contender("newcomer", {"RMSprop": TEXTBOOK.steps["RMSprop"]})
    absent = replace(TEXTBOOK, name="absent", present=lambda: False)
    double = replace(TEXTBOOK, name="double", dtypes=["float64"])
    everyone = [SCHUSS, newcomer, absent, double]
    records = harness.compare(adam_case(), everyone, contenders.YARDSTICKS, QUICK)
    assert [record["contender"] for record in records] == ["limit", "schuss"]


@pytest.mark.parametrize(
    ("problem", "per_element"),
    [
        *zip([partial(pose, rule) for rule in RULES], (28, 20, 20), strict=True),
        *zip([partial(pose, rule) for rule in FURTHER_RULES], (20, 20, 28, 28), strict=True),
        *zip(
            [partial(posed, work) for work in WORKS],
            (28, 32, 44, 46, 64, 28, 32.125, 26.125),
            strict=True,
        ),
        *zip(
            [formats.posed for formats in COMBINATIONS],
            (28, 26, 26, 22, 22, 20, 14, 30, 26, 16.125, 14.125, 12.125, 10.125, 56, 56, 48),
            strict=True,
        ),
    ],
)
def test_bytes_moved_count_reads_and_writes(problem: Any, per_element: float) -> None:
    pytest.importorskip("ml_dtypes")
    assert problem(size=12_800).bytes_moved == 12_800 * per_element
