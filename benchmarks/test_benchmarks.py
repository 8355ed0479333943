"""Each benchmark runs, says what it promises, and times nobody who is wrong; no clock is judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.__main__ import main
from benchmarks.contenders import ADAM, CONTENDERS, RULES, SCHUSS, TEXTBOOK, YARDSTICKS, limit
from benchmarks.harness import (
    Case,
    Contender,
    DType,
    Problem,
    Rounds,
    Rule,
    Run,
    Step,
    Stopwatch,
    WrongResultError,
    check,
    compare,
    interleave,
    ordinary,
    repeated,
)
from benchmarks.report import markdown_table

NAMES = ["limit", *(contender.name for contender in CONTENDERS)]
QUICK = Rounds(least=1, most=1)


def pose(rule: Rule, size: int = 37, dtype: DType = "float32", arrays: int = 1) -> Problem:
    params, grads = ([ordinary(size, dtype=dtype) for _ in range(arrays)] for _ in range(2))
    return Problem(rule, params, grads)


def adam_case() -> Case:
    return Case({"size": 64}, ADAM, lambda size: pose(ADAM, size), 64)


def records_of(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    main([name, "--quick", "--rounds", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"processor", "cores", "simd", "schuss", "numpy", "python", "date"} == set(
        figures["environment"]
    )
    records: list[dict[str, Any]] = figures["benchmarks"][name]
    return records


# What is timed is right.


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_contender_computes_the_rule(contender: Contender, rule: Rule, dtype: DType) -> None:
    check(contender, pose(rule, dtype=dtype, arrays=2))


@pytest.mark.parametrize(
    ("rule", "name", "factor"),
    [
        (rule, name, {"lr": 1.01, "eps": 1e5}.get(name, 0.99))
        for rule in RULES
        for name in rule.hyperparameters
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_slightly_different_rule_is_refused(rule: Rule, name: str, factor: float) -> None:
    def wrong(problem: Problem, **hyperparameters: float) -> Step:
        hyperparameters[name] *= factor
        return TEXTBOOK.steps[rule.name](problem, **hyperparameters)

    with pytest.raises(WrongResultError, match=f"impostor: {rule.name} on float32 is "):
        check(Contender("impostor", {rule.name: wrong}), pose(rule))


def _one_ulp_off(problem: Problem, **hyperparameters: float) -> Step:
    step = SCHUSS.steps["Adam"](problem, **hyperparameters)

    def off() -> None:
        step()
        problem.params[-1][-1] = np.nextafter(problem.params[-1][-1], np.float32(9))

    return off


def _nothing(problem: Problem, **hyperparameters: float) -> Step:
    return lambda: None


@pytest.mark.parametrize("wrong", [_one_ulp_off, _nothing])
def test_the_wrong_are_refused_before_anyone_is_timed(
    wrong: Callable[..., Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "Stopwatch", lambda run: pytest.fail("timed"))
    impostor = Contender("impostor", {"Adam": wrong}, exact=True)
    with pytest.raises(WrongResultError, match="impostor"):
        compare(adam_case(), [SCHUSS, impostor], YARDSTICKS, QUICK)


def test_rounding_is_forgiven_only_to_those_who_promise_no_more() -> None:
    check(Contender("rounds", {"Adam": _one_ulp_off}), pose(ADAM))


def test_values_stay_ordinary_however_long_it_runs() -> None:
    for rule in RULES:
        problem = pose(rule)
        assert all(0.5 <= array.min() < array.max() < 1.5 for array in problem.params)
        runs = [limit(problem), *(repeated(c.prepare(problem)) for c in CONTENDERS)]
        for run in runs * 3:
            run(10_000)
            for array in (*problem.params, *problem.grads, *problem.states[0]):
                assert np.all(np.isfinite(array))
                assert np.all(np.abs(array) > 1e-6)


# The limit moves the same memory.


def test_the_limit_runs_over_the_arrays_of_the_problem() -> None:
    problem = pose(ADAM)
    before = problem.params[0].copy()
    limit(problem)(2)
    np.testing.assert_allclose(problem.params[0], before + 2 * problem.grads[0])
    for state in problem.states[0]:
        np.testing.assert_allclose(state, 2 * problem.grads[0])


def test_the_limit_takes_many_arrays_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("schuss._core.additions", lambda *arguments: given.extend(arguments))
    limit(pose(ADAM, arrays=3))(5)
    assert given[0] == 5
    assert [array.shape for array in given[1:]] == [(3 * 37,)] * 4


# How it is measured.


def test_everyone_is_measured_in_turn() -> None:
    turns: list[str] = []

    def measure(name: str, seconds: float) -> Callable[[], float]:
        return lambda: turns.append(name) or seconds  # type: ignore[func-returns-value]

    times = interleave({"a": measure("a", 1.0), "b": measure("b", 2.0)}, Rounds(least=3, most=3))
    assert turns == ["a", "b"] * 3
    assert {name: seconds.tolist() for name, seconds in times.items()} == {
        "a": [1.0] * 3,
        "b": [2.0] * 3,
    }


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 2), (1e9, 5)])
def test_rounds_go_on_while_there_is_time(seconds: float, rounds: int) -> None:
    assert len(list(Rounds(least=2, most=5, seconds=seconds))) == rounds


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Run]:
    """Return what makes runs that take so many seconds a step by the harness's clock."""
    now = 0.0

    def taking(seconds: float) -> Run:
        def run(calls: int) -> None:
            nonlocal now
            now += calls * seconds

        return run

    monkeypatch.setattr(harness, "perf_counter", lambda: now)
    return taking


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 1.0])
def test_a_stopwatch_tells_the_seconds_of_one_step(
    fake_clock: Callable[[float], Run], seconds: float
) -> None:
    stopwatch = Stopwatch(fake_clock(seconds))
    assert stopwatch() == pytest.approx(seconds)
    assert stopwatch.calls * seconds >= harness.CLOCK_SECONDS
    assert stopwatch.calls == 1 or stopwatch.calls * seconds < 2 * harness.CLOCK_SECONDS


def test_figures_are_medians_and_ratios_those_within_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {"limit": [1, 2, 6], "schuss": [2, 8, 8], "other": [8, 16, 40]}
    times = {name: np.array(values) / 1e6 for name, values in seconds.items()}
    monkeypatch.setattr(harness, "interleave", lambda measures, rounds: times)
    other = Contender("other", TEXTBOOK.steps)
    _, schuss, other_record = compare(adam_case(), [SCHUSS, other], YARDSTICKS, QUICK)
    assert schuss["microseconds"] == pytest.approx(8.0)
    assert schuss["quartiles"] == pytest.approx([5.0, 8.0])
    assert schuss["rounds"] == 3
    assert schuss["gigabytes_per_second"] == pytest.approx(7 * 4 * 64 / 8e-6 / 1e9)
    assert schuss["share_of_limit"] == pytest.approx(0.5)
    assert other_record["times"] == {"schuss": pytest.approx(4.0)}


def test_who_does_not_know_the_rule_stays_out() -> None:
    newcomer = Contender("newcomer", {"RMSprop": TEXTBOOK.steps["RMSprop"]})
    records = compare(adam_case(), [SCHUSS, newcomer], YARDSTICKS, QUICK)
    assert [record["contender"] for record in records] == ["limit", "schuss"]


@pytest.mark.parametrize(("rule", "arrays"), [*zip(RULES, (7, 5, 5), strict=True)])
def test_bytes_moved_count_reads_and_writes(rule: Rule, arrays: int) -> None:
    assert pose(rule, size=10, dtype="float64").bytes_moved == arrays * 80


# What the command gives.


def assert_compared(record: dict[str, Any], rivals: set[str]) -> None:
    for name in ("microseconds", "gigabytes_per_second", "share_of_limit"):
        assert record[name] > 0
    assert len(record["quartiles"]) == 2
    assert record["rounds"] == 1
    assert set(record["times"]) == rivals


def test_step_crosses_rules_and_dtypes(tmp_path: Path) -> None:
    records = records_of("step", tmp_path)
    assert [(*record["case"].values(), record["contender"]) for record in records] == [
        (rule.name, dtype, 64, name)
        for rule in RULES
        for dtype in ("float32", "float64")
        for name in NAMES
    ]
    for record in records:
        assert_compared(record, {"schuss"})


def test_many_steps_a_thousand_arrays_at_once(tmp_path: Path) -> None:
    records = records_of("many", tmp_path)
    assert [record["contender"] for record in records] == NAMES
    for record in records:
        assert record["case"] == {"arrays": 1_000, "size": 64}
        kilobytes = record["gigabytes_per_second"] * record["microseconds"]
        assert kilobytes == pytest.approx(7 * 4 * 64 * 1_000 / 1e3)
        assert_compared(record, {"schuss"})


def test_layout_compares_with_equal_layouts(tmp_path: Path) -> None:
    records = records_of("layout", tmp_path)
    cases = {(record["case"]["param"], record["case"]["grad"]) for record in records}
    assert {("C", "C"), ("C", "transposed")} < cases
    assert len(records) == len(cases) * (len(NAMES) + 1)
    for record in records:
        assert_compared(record, {"schuss", "equal layouts"})


def test_startup_tells_what_schuss_adds_to_numpy(tmp_path: Path) -> None:
    records = records_of("startup", tmp_path)
    both = {record["contender"]: record["milliseconds"] for record in records}
    assert list(both) == ["import numpy", "import schuss, after numpy"]
    assert all(milliseconds > 0 for milliseconds in both.values())


@pytest.mark.parametrize("style", [[], ["--markdown"]])
def test_tables_name_what_was_measured_and_on_what(
    style: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["many", "--sizes", "5,6", "--rounds", "2", *style])
    printed = capsys.readouterr().out
    for word in ("simd: ", "processor: ", "µs", "GB/s", "of limit", "vs schuss", *NAMES):
        assert word in printed


def test_markdown_names_a_case_once() -> None:
    records = [
        {"case": {"size": size}, "contender": name, "microseconds": 1234.5, "share_of_limit": 0.5}
        for size in (1_024, 7)
        for name in ("schuss", "NumPy")
    ]
    assert markdown_table("step", records) == (
        "### step\n\n"
        "| size | contender | µs | of limit |\n| ---: | --- | ---: | ---: |\n"
        "| 1,024 | schuss | 1,234 | 50.0% |\n|  | NumPy | 1,234 | 50.0% |\n"
        "| 7 | schuss | 1,234 | 50.0% |\n|  | NumPy | 1,234 | 50.0% |"
    )


@pytest.mark.parametrize(
    "arguments", [["walk"], ["step", "--sizes", "0"], ["step", "--rounds", "0"]]
)
def test_what_the_command_does_not_know_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
