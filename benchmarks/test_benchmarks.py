"""Each benchmark runs, says what it promises, and times nobody who is wrong; no clock is judged."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

import schuss
from benchmarks import (
    checkpoints,
    contenders,
    data,
    harness,
    loop,
    mapped,
    sklearn,
    torch_loop,
    train,
)
from benchmarks.__main__ import main
from benchmarks.compact import compact_tables
from benchmarks.contenders import (
    ADAM,
    FURTHER_RULES,
    IN_PLACE,
    ONE_THREAD,
    RULES,
    SCHUSS,
    TEXTBOOK,
)
from benchmarks.data import AVERAGES, BY_COLUMNS, BY_ROWS, READY_ORDER, Examples, Peer, Series
from benchmarks.dtypes import COMBINATIONS, FAST, Formats
from benchmarks.harness import Array, Case, Contender, Problem, Step, WrongResultError, check
from benchmarks.peers import PEERS, TORCH_WHOLE
from benchmarks.processes import Process
from benchmarks.report import PEERS as PACKAGES
from benchmarks.report import markdown_table
from benchmarks.shapes import Shape, gpt2_small, resnet50
from benchmarks.whole import ACCUMULATE, SUBNORMAL_MOMENT, WORKS, posed, posed_to_check

OF_SCHUSS = (SCHUSS, ONE_THREAD, contenders.SHARED_THREADS, *contenders.LEVELS)
WHOLE = (SCHUSS, ONE_THREAD, contenders.IN_PLACE_WHOLE)
QUICK = harness.Rounds(least=1, most=1)


def pose(
    rule: harness.Rule, size: int = 37, dtype: harness.DType = "float32", arrays: int = 1
) -> Problem:
    params, grads = ([harness.ordinary(size, dtype=dtype) for _ in range(arrays)] for _ in range(2))
    return Problem(rule, params, grads)


def name_of(value: Any) -> Any:
    return getattr(value, "name", None)


def adam_case() -> Case:
    return Case({"size": 64}, ADAM, partial(pose, ADAM, 64), partial(pose, ADAM))


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the commands to schuss and NumPy; peers have tests of their own."""
    monkeypatch.setattr("benchmarks.suite.PEERS", ())
    monkeypatch.setattr("benchmarks.whole.CONTENDERS", WHOLE)
    alone = [replace(formats, peer=None) for formats in COMBINATIONS]
    monkeypatch.setattr("benchmarks.dtypes.COMBINATIONS", alone)


def records_of(name: str, tmp_path: Path, *sizes: int) -> list[dict[str, Any]]:
    """Run the benchmark, briefly if no sizes are given, and return what it measured."""
    path = tmp_path / "figures.json"
    how = ["--sizes", *map(str, sizes)] if sizes else ["--quick"]
    main([name, *how, "--rounds", "1", "--json", str(path)])
    figures = json.loads(path.read_text())
    basics = {"date", "processor", "cores", "threads", "blas", "simd", "schuss", "numpy", "python"}
    assert basics | {name for name in PACKAGES if find_spec(name)} == set(figures["environment"])
    records: list[dict[str, Any]] = figures["benchmarks"][name]
    return records


def installed(*peers: Peer[Any]) -> list[str]:
    return [peer.name for peer in peers if find_spec(peer.package)]


def needs(contender: Contender, *dtypes: str) -> None:
    if not contender.present():
        pytest.skip(f"{contender.name} is not here")
    if "bfloat16" in dtypes:
        pytest.importorskip("ml_dtypes")


# What is timed is right.


@pytest.mark.parametrize("arrays", [1, 2])
@pytest.mark.parametrize("contender", [*OF_SCHUSS, IN_PLACE, TEXTBOOK, *PEERS], ids=name_of)
def test_every_contender_computes_the_rules_it_knows(contender: Contender, arrays: int) -> None:
    needs(contender)
    cases = [
        Case({}, rule, partial(pose, rule), partial(pose, rule, 1_003, dtype, arrays), dtype)
        for rule in (*RULES, *FURTHER_RULES)
        for dtype in get_args(harness.DType)
        if (rule.name, dtype) != ("NAdam", "float64")  # PyTorch's product of momenta is float32
    ]
    known = [case for case in cases if contender.knows(case)]
    assert known
    for case in known:
        check(contender, case.pose_small())


@pytest.mark.parametrize(
    ("rule", "name", "factor"),
    [
        (rule, name, factor)
        for rule in RULES
        for name in rule.hyperparameters
        for factor in ({"lr": [1.01], "eps": [0, 0.9]}.get(name, [0.99]))
    ],
    ids=name_of,
)
def test_a_slightly_different_rule_is_refused(rule: harness.Rule, name: str, factor: float) -> None:
    def wrong(problem: Problem, **hyperparameters: float) -> Step:
        hyperparameters[name] *= factor
        return TEXTBOOK.steps[rule.name](problem, **hyperparameters)

    with pytest.raises(WrongResultError, match=f"impostor: {rule.name} on float32 is "):
        check(Contender("impostor", {rule.name: wrong}), pose(rule))


def _adam_but(root: Callable[[Any, float, float], Any], late: int = 0) -> Callable[..., Step]:
    """Return Adam whose divisor is root(v, correction, eps), and which is corrected too late."""

    def prepare(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
        (p,), (g,), ((m, v),) = problem.params, problem.grads, problem.states
        t = late

        def step() -> None:
            nonlocal t
            t += 1
            m[:] = beta1 * m + (1 - beta1) * g
            v[:] = beta2 * v + (1 - beta2) * g * g
            p[:] -= lr / (1 - beta1**t) * m / root(v, 1 / (1 - beta2**t), eps)

        return step

    return prepare


IMPOSTORS: Mapping[str, Callable[..., Step]] = {
    "eps within the root": _adam_but(lambda v, correction, eps: np.sqrt(v * correction + eps)),
    "eps before the correction": _adam_but(
        lambda v, correction, eps: (np.sqrt(v) + eps) * correction**0.5
    ),
    "no correction of v": _adam_but(lambda v, correction, eps: np.sqrt(v) + eps),
    "correction of the step after": _adam_but(
        lambda v, correction, eps: np.sqrt(v * correction) + eps, late=1
    ),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_another_adam_is_refused(impostor: str) -> None:
    with pytest.raises(WrongResultError, match=impostor):
        check(Contender(impostor, {"Adam": IMPOSTORS[impostor]}), pose(ADAM))


def test_right_adam_is_not_refused_and_may_add_eps_elsewhere_if_it_says_so() -> None:
    right = _adam_but(lambda v, correction, eps: np.sqrt(v * correction) + eps)
    early, late = IMPOSTORS["eps before the correction"], IMPOSTORS["correction of the step after"]
    check(Contender("right", {"Adam": right}), pose(ADAM))
    check(Contender("rounds", {"Adam": _one_ulp_off}), pose(ADAM))
    check(Contender("early", {"Adam": early}, eps_elsewhere="early"), pose(ADAM))
    with pytest.raises(WrongResultError, match="late"):
        check(Contender("late", {"Adam": late}, eps_elsewhere="early"), pose(ADAM))


def test_the_limit_and_the_steps_of_schuss_use_the_threads_they_are_named_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []
    floor: Any = lambda repeats, threads, *arrays: used.append(threads)  # noqa: E731
    monkeypatch.setattr("schuss._core.memory_floor", floor)
    with schuss.threads(3):
        for make in contenders.BOTH_LIMITS.values():
            make(pose(ADAM))(1)
        for contender in (ONE_THREAD, SCHUSS):
            run: Any = lambda calls: used.append(schuss.num_threads())  # noqa: E731
            harness.Stopwatch(run, contender.setting, 0)()
    assert used[:3] == [3, 1, 1]
    assert sorted(set(used[2:])) == [1, 3]
    assert used[-1] == 3


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
        harness.compare(adam_case(), [SCHUSS, impostor], contenders.YARDSTICKS, QUICK)


def test_values_stay_ordinary_however_long_it_runs() -> None:
    for rule in RULES:
        problem = pose(rule)
        assert all(0.5 <= array.min() < array.max() < 1.5 for array in problem.params)
        steps = [contender.prepare(problem) for contender in contenders.CONTENDERS]
        for run in [contenders.limit(problem), *map(harness.repeated, steps)] * 3:
            run(10_000)
            for array in (*problem.params, *problem.grads, *problem.states[0]):
                assert np.all(np.isfinite(array))
                assert np.all(np.abs(array) > 1e-6)


@pytest.mark.parametrize("contender", [*WHOLE, TORCH_WHOLE], ids=name_of)
@pytest.mark.parametrize("work", [*WORKS, "many arrays"])
def test_every_contender_does_the_whole_work(work: str, contender: Contender) -> None:
    needs(contender, WORKS.get(work, {}).get("copies", ""))
    if work == "many arrays":
        lists = [[harness.ordinary(17), harness.ordinary(3, 5)] for _ in range(3)]
        options = {"clip_norm": 1.0, "average": 0.9, "clear_grads": True}
        check(contender, Problem(ADAM, *lists[:2], options=options, more_grads=lists[2:]))
    else:
        for size in (37, 1_003):
            check(contender, posed_to_check(work, size))


def _with_others(more_grads: int | None = None, **options: Any) -> Callable[..., Step]:
    """Return what does right what it is told to, but is told something else."""

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        told = replace(
            problem,
            options={**problem.options, **options},
            more_grads=problem.more_grads[:more_grads],
        )
        for ours, theirs in ((problem.averages, told.averages), (problem.copies, told.copies)):
            for our, their in zip(ours, theirs, strict=True):
                problem.write_backs.append(partial(np.copyto, our, their))
        problem.write_backs.append(lambda: np.copyto(problem.norm, told.norm))
        return contenders.IN_PLACE_WHOLE.steps["Adam"](told, **hyperparameters)

    return prepare


def _but(spoil: Callable[[Problem], object]) -> Callable[..., Step]:
    """Return what does everything right, and spoils something then."""

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        step = contenders.IN_PLACE_WHOLE.steps["Adam"](problem, **hyperparameters)

        def spoilt() -> None:
            step()
            spoil(problem)

        return spoilt

    return prepare


def _cut_off(problem: Problem) -> None:
    """Write copies that are rounded towards zero."""
    bits = problem.params[0].view(np.uint32) & np.uint32(0xFFFF0000)
    problem.copies[0][...] = bits.view(np.float32)


CLIP, CLEAR, CAST = (work for work in WORKS if work.startswith("clip"))
SPOILT: Mapping[str, tuple[str, Callable[..., Step], str]] = {
    "does not clip": (CLIP, _with_others(clip_norm=1e9), "Adam on float32"),
    "clips to another norm": (CLIP, _with_others(clip_norm=1.0), "Adam on float32"),
    "leaves gradients out": (ACCUMULATE, _with_others(more_grads=2), "Adam on float32"),
    "weighs differently": (CLEAR, _with_others(average=0.91), "the average"),
    "keeps the norm": (CLIP, _but(lambda p: p.norm.fill(1)), "the norm"),
    "does not average": (CLEAR, _but(lambda p: np.copyto(p.averages[0], p.params[0])), "the av"),
    "does not clear": (CLEAR, _but(lambda p: p.grads[0].fill(1e-30)), "the cleared gradient"),
    "cuts off": (CAST, _but(_cut_off), "the copy"),
}


@pytest.mark.parametrize("who", SPOILT)
def test_who_does_a_part_of_the_whole_differently_is_refused(who: str) -> None:
    work, prepare, what = SPOILT[who]
    if work == CAST:
        pytest.importorskip("ml_dtypes")
    check(Contender("right", {"Adam": _with_others()}), posed_to_check(work, 100))
    with pytest.raises(WrongResultError, match=f"{who}: {what}"):
        check(Contender(who, {"Adam": prepare}), posed_to_check(work, 100))


def test_a_subnormal_moment_is_one_when_the_step_begins_and_the_plain_step_is_of_other_arrays() -> (
    None
):
    problem = posed(SUBNORMAL_MOMENT, 64)
    (grad,), ((m, v),) = problem.grads, problem.states
    contenders.WITH_PLAIN[harness.PLAIN](problem)(3)
    assert np.all((m > 0) & (m < np.finfo(np.float32).tiny))
    assert np.all(grad == 0)
    assert np.all(v >= 0.5)


@pytest.mark.parametrize(
    ("formats", "contender"),
    [
        (formats, contender)
        for formats in COMBINATIONS
        for contender in (SCHUSS, ONE_THREAD, formats.peer)
        if contender
    ],
    ids=lambda value: "-".join(value.labels.values()) if isinstance(value, Formats) else value.name,
)
def test_schuss_and_its_peer_step_in_every_combination_of_formats(
    formats: Formats, contender: Contender
) -> None:
    needs(contender, *formats.labels.values())
    for size in (37, 1_003):
        check(contender, formats.posed(size, FAST))


def _twice(problem: Problem, *, lr: float, **others: float) -> Step:
    return SCHUSS.steps["Adam"](problem, lr=2 * lr, **others)


def _other_bits(problem: Problem, **hyperparameters: float) -> Step:
    problem.optimizer.seed = 1
    return SCHUSS.prepare(problem)


@pytest.mark.parametrize(
    ("wrong", "formats", "dtype"),
    [
        (_nothing, ("bfloat16", "bfloat16", "bfloat16"), "bfloat16"),
        (_twice, ("bfloat16", "bfloat16", "bfloat16"), "bfloat16"),
        (_other_bits, ("float32", "float32", "bfloat16"), "float32"),
    ],
)
def test_nobody_is_right_in_16_bits_by_chance(
    wrong: Callable[..., Step], formats: tuple[str, str, str], dtype: str
) -> None:
    pytest.importorskip("ml_dtypes")
    impostor = Contender("impostor", {"Adam": wrong}, exact=wrong is _other_bits)
    with pytest.raises(WrongResultError, match=f"impostor: Adam on {dtype}"):
        check(impostor, Formats(*formats).posed(100, FAST))


@pytest.mark.parametrize(
    ("form", "peer"),
    [(form, peer) for form, peers in AVERAGES.items() for peer in peers],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_peer_averages(form: str, peer: Peer[Series]) -> None:
    pytest.importorskip(peer.package)
    series = Series(harness.ordinary(1_003, dtype="float64"), corrected=form == "bias-corrected")
    series.check(peer.name, peer.prepare(series))


@pytest.mark.parametrize(("name", "off"), [("pandas ewm", 1e-13), ("schuss", 3e-16)])
def test_an_average_that_is_off_is_refused(name: str, off: float) -> None:
    series = Series(harness.ordinary(100, dtype="float64"), corrected=True)
    exact = AVERAGES["bias-corrected"][0].prepare(series)
    series.check(name, exact)
    series.check("pandas ewm", lambda: exact() * (1 + 3e-16))
    with pytest.raises(WrongResultError, match=f"{name}: the corrected average is "):
        series.check(name, lambda: exact() * (1 + off))


@pytest.mark.parametrize("batch_size", [64, 1_000, 2_000])
@pytest.mark.parametrize(
    ("layout", "peer"),
    [*(("rows", peer) for peer in BY_ROWS), *(("columns", peer) for peer in BY_COLUMNS)],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_peer_gives_epochs(layout: str, peer: Peer[Examples], batch_size: int) -> None:
    pytest.importorskip(peer.package)
    examples = data.examples_in(layout, 5, batch_size, 1_003)
    examples.check(peer.name, peer.prepare(examples))


def _one_twice(order: npt.NDArray[np.int64], x: Array) -> list[Array]:
    order[0] = order[1]
    return [x[order[:6]], x[order[6:]]]


def _torn(order: npt.NDArray[np.int64], x: Array) -> list[Array]:
    torn = x[order]
    torn[:2, 1] = torn[1::-1, 1]
    return [torn[:6], torn[6:]]


WRONG_EPOCHS: dict[str, Callable[[npt.NDArray[np.int64], Array], list[Array]]] = {
    "peer: not all batches have 6 examples": lambda order, x: [x[order[:5]], x[order[5:]]],
    "not all batches": lambda order, x: [x[order[:6]]],
    "peer: an epoch does not hold each example once": _one_twice,
    "does not hold each example once": _torn,
    "peer: an epoch has the order of the one before": lambda order, x: [x[:6], x[6:]],
}


@pytest.mark.parametrize("message", WRONG_EPOCHS)
def test_an_epoch_that_is_not_shuffled_or_not_whole_is_refused(message: str) -> None:
    examples = data.examples_in("rows", 3, 6, 10)
    rng = np.random.default_rng(0)
    with pytest.raises(WrongResultError, match=message):
        examples.check("peer", lambda: WRONG_EPOCHS[message](rng.permutation(10), examples.x))


# The limit moves the same memory.


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
    if "copies" in WORKS[work]:
        pytest.importorskip("ml_dtypes")
    given: list[Any] = []
    monkeypatch.setattr("schuss._core.memory_floor", lambda *arguments: given.extend(arguments))
    problem = posed_to_check(work, 1_400)
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
        *zip([partial(posed, work) for work in WORKS], (28, 32, 44, 46, 64, 28), strict=True),
        *zip(
            [formats.posed for formats in COMBINATIONS],
            (28, 26, 26, 22, 22, 20, 14, 30, 56, 56, 48),
            strict=True,
        ),
    ],
)
def test_bytes_moved_count_reads_and_writes(problem: Any, per_element: float) -> None:
    pytest.importorskip("ml_dtypes")
    assert problem(size=10).bytes_moved == 10 * per_element


# What the command gives.


OF_MANY = [*contenders.BOTH_LIMITS, *map(name_of, (SCHUSS, ONE_THREAD, IN_PLACE, TEXTBOOK))]
OF_STEP = [*OF_MANY[:-2], *map(name_of, contenders.LEVELS), *OF_MANY[-2:]]
# The labels of the cases of each benchmark, and its contenders.
EVERY: dict[str, tuple[list[tuple[Any, ...]], list[str]]] = {
    "step": (
        [(rule.name, dtype, 64) for rule in RULES for dtype in ("float32", "float64")],
        OF_STEP,
    ),
    "rules": ([(rule.name, 64) for rule in FURTHER_RULES], OF_MANY[:4]),
    "many": ([("1,000 x 64", 1_000, 64_000)], OF_MANY),
    "whole": ([(work, 64) for work in WORKS], [*contenders.WITH_PLAIN, *map(name_of, WHOLE)]),
    "dtypes": (
        [(*each.labels.values(), each.posed(1).bytes_moved, 64) for each in COMBINATIONS],
        [*contenders.WITH_PLAIN, "schuss", "schuss, 1 thread"],
    ),
    "mapped": ([(64,)], [*mapped.WORKS]),
    "startup": ([()], ["import numpy", "import schuss, after numpy"]),
    "torch_loop": (
        [(64, (torch_loop.FEATURES + 1) * 64 + 65 * 64 + 65 * torch_loop.CLASSES)],
        [*torch_loop.OPTIMIZERS] * bool(find_spec("torch")),
    ),
    "sklearn": (
        [
            (solver, "64 + 64", batch_size, dtype)
            for solver in ("adam", "sgd")
            for batch_size in sklearn.BATCH_SIZES
            for dtype in ("float32", "float64")
        ],
        [sklearn.UNPATCHED, *(c.name for c in (SCHUSS, contenders.SHARED_THREADS) if c.present())]
        * bool(find_spec("sklearn")),
    ),
    "checkpoints": (
        [(work, 64) for work in checkpoints.WORKS],
        [name for name, saver in checkpoints.SAVERS.items() if find_spec(saver.package)],
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_benchmark_times_every_contender_in_every_case(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    records = records_of(name, tmp_path)
    cases, names = EVERY[name]
    expected = [(*case, contender) for case in cases for contender in names]
    assert [(*record["case"].values(), record["contender"]) for record in records] == expected
    for record in records:
        (unit,) = {"microseconds", "milliseconds"} & record.keys()
        assert record[unit] > 0
        assert record.get("gigabytes_per_second", 1) > 0
        assert record.get("share_of_limit", 1) > 0


def test_average_times_every_peer_of_each_form(tmp_path: Path) -> None:
    records = records_of("average", tmp_path)
    assert [(*record["case"].values(), record["contender"]) for record in records] == [
        (form, 64, name)
        for form, peers in AVERAGES.items()
        for name in ("x.copy()", *installed(*peers))
    ]


def test_layout_compares_with_equal_layouts(tmp_path: Path) -> None:
    records = records_of("layout", tmp_path)
    cases = {(record["case"]["param"], record["case"]["grad"]) for record in records}
    assert {("C", "C"), ("C", "transposed")} < cases
    assert len(records) == len(cases) * (len(contenders.CONTENDERS) + 2)
    assert all(record["times"].keys() == {"schuss", "equal layouts"} for record in records)


def test_batches_cross_layouts_and_sizes(tmp_path: Path) -> None:
    records = records_of("batches", tmp_path, 100)
    peers = {"rows": installed(*BY_ROWS), "columns": installed(*BY_COLUMNS)}
    assert [(*record["case"].values(), record["contender"]) for record in records] == [
        *((kind, 100, 64, b, who) for kind in peers for b in (64, 1_000) for who in peers[kind]),
        ("rows", 100, 16, 1_000, "np.take, order ready"),
        ("rows", 100, 16, 1_000, "schuss"),
    ]


@pytest.mark.parametrize("name", ["whole", "dtypes", "batches", "loop"])
def test_a_wrong_contender_is_refused_before_any_is_timed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ml_dtypes")
    for module in (harness, loop):
        monkeypatch.setattr(module, "Stopwatch", lambda *_, **__: pytest.fail("timed"))
    idle = Contender("impostor", {"Adam": _nothing})
    monkeypatch.setattr("benchmarks.whole.CONTENDERS", (SCHUSS, idle))
    halves = Formats("bfloat16", "bfloat16", "bfloat16", peer=idle)
    monkeypatch.setattr("benchmarks.dtypes.COMBINATIONS", [halves])
    monkeypatch.setattr(data, "BY_ROWS", (*BY_COLUMNS, Peer("impostor", READY_ORDER.prepare)))
    with pytest.raises(WrongResultError, match="impostor"):
        loop.Loop(idle).pose(64) if name == "loop" else main([name, "--quick"])


@pytest.mark.parametrize(
    ("shapes", "arrays", "elements"),
    [(resnet50, 161, 25_557_032), (gpt2_small, 148, 124_439_808)],
)
def test_the_networks_have_as_many_parameters_as_is_known(
    shapes: Callable[[], list[Shape]], arrays: int, elements: int
) -> None:
    assert len(shapes()) == arrays
    assert sum(map(prod, shapes())) == elements


@pytest.fixture
def team_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return what lets only some take part in loop and train, and tells their names."""

    def choose(*team: Contender) -> list[str]:
        for module in (loop, train):
            chosen = {contender.name: contender for contender in team}
            monkeypatch.setattr(module, "CONTENDERS", chosen)
        return [contender.name for contender in team if contender.present()]

    return choose


def test_loop_gives_each_contender_a_process(
    team_of: Callable[..., list[str]], tmp_path: Path
) -> None:
    names = team_of(loop.PRODUCT_ALONE, ONE_THREAD, contenders.SHARED_THREADS, replace(SCHUSS))
    records = records_of("loop", tmp_path)
    assert [record["contender"] for record in records] == names
    for record in records:
        assert record["case"] == {"size": 64}
        assert record["microseconds"] > 0
        assert set(record["times"]) == {"schuss, 1 thread"}


@pytest.mark.parametrize("contender", PEERS, ids=name_of)
def test_loop_poses_for_every_peer(contender: Contender, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(contender)
    monkeypatch.setattr(loop, "TURN_SECONDS", 0.001)
    worker = loop.Loop(contender)
    for size in (64, 100):
        worker.pose(size)
        assert worker.measure() > 0


def test_train_learns_the_same_by_all(team_of: Callable[..., list[str]], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    names = team_of(SCHUSS, contenders.SHARED_THREADS, IN_PLACE)
    records = records_of("train", tmp_path, 3)
    assert [record["contender"] for record in records] == names
    for record in records:
        assert record["case"] == {"epochs": 3}
        assert record["milliseconds"] > 0
        assert record["accuracy"] == pytest.approx(records[0]["accuracy"], abs=0.01)
        assert record["accuracy"] > 0.9


def test_train_refuses_those_who_learn_worse_before_they_are_timed(
    team_of: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    train.check_accuracies({"schuss": 0.95, "peer": 0.945})
    with pytest.raises(WrongResultError, match=r"peer: .* 93\.0%.* 95\.0% as by schuss"):
        train.check_accuracies({"schuss": 0.95, "peer": 0.93})
    team_of(SCHUSS, IN_PLACE)
    monkeypatch.setattr(train, "ACCURACY_TOLERANCE", -1)
    monkeypatch.setattr(train, "interleave", lambda *_: pytest.fail("timed"))
    with pytest.raises(WrongResultError, match="NumPy in place: the network tells "):
        main(["train", "--sizes", "1"])


@pytest.mark.parametrize("contender", train.CONTENDERS.values(), ids=name_of)
def test_train_poses_for_every_contender(contender: Contender) -> None:
    pytest.importorskip("sklearn")
    needs(contender)
    assert train.Train(contender).pose(1) == pytest.approx(train.Train(SCHUSS).pose(1), abs=0.01)


WORKER = """
from benchmarks import processes
from benchmarks.harness import WrongResultError

processes.settle = lambda: Worker.rests.append("quiet")

class Worker:
    rests = []
    def __init__(self, name): self.name = name
    def greet(self, whom):
        print("a library says something")
        return f"{self.name} greets {whom}"
    def refuse(self): raise WrongResultError("so wrong")
    def rest(self): return len(self.rests)

processes.serve(Worker)
"""


def test_a_process_replies_with_results_and_refusals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Process("worker", "schuss") as process:
        assert process.call("greet", "NumPy") == "schuss greets NumPy"
        with pytest.raises(WrongResultError, match="so wrong"):
            process.call("refuse")
        assert process.call("rest") == 2


def test_the_picture_has_a_line_for_each_contender(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    def record(name: str, size: int, us: float, dtype: str = "float32") -> dict[str, Any]:
        case = {"rule": "Adam", "dtype": dtype, "size": size}
        return {"case": case, "contender": name, "microseconds": us, "quartiles": [us / 2, us * 2]}

    step = [record("schuss", 1_024, 2.0), record("schuss", 64, 1.0), record("thinc", 64, 9.0)]
    step.append(record("schuss", 64, 7.0, "float64"))
    results = {"step": step, "loop": [record("numba", 64, 3.0)]}
    lines = [
        [(drawn.get_label(), np.asarray(drawn.get_xydata()).tolist()) for drawn in panel.lines]
        for panel in plot.picture(results).axes
    ]
    assert lines == [[("schuss", [[64, 1], [1_024, 2]])], [("numba", [[64, 3]])]]
    source, target = tmp_path / "figures.json", tmp_path / "picture.png"
    source.write_text(json.dumps({"benchmarks": results}))
    plot.main([str(source), str(target)])
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_step_that_does_not_reach_the_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped.check_bits(tmp_path, 64)
    elsewhere = schuss.kernels.adam
    copies = [np.zeros(64, np.float32) for _ in range(3)]

    def adam(param: Array, grad: Array, m: Array, v: Array, *, step: int) -> None:
        elsewhere(copies[0], grad, *copies[1:], step=step)

    monkeypatch.setattr(schuss.kernels, "adam", adam)
    with pytest.raises(WrongResultError, match=r"param is .* off the reference"):
        mapped.check_bits(tmp_path, 64)


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


def test_compact_tables_have_a_line_a_contender_and_a_column_a_case() -> None:
    records = [
        {"case": {"rule": "Adam", "size": size}, "contender": name, "microseconds": 0.5 * size}
        for name, size in (("schuss", 10), ("schuss", 2_000), ("limit", 2_000))
    ]
    assert compact_tables("step", records) == (
        "| step, Adam (µs) | 10 | 2,000 |\n| --- | ---: | ---: |\n"
        "| schuss | 5.00 | 1,000 |\n| limit |  | 1,000 |"
    )
    assert compact_tables("startup", [{"case": {}, "contender": "a", "milliseconds": 1.0}]) == ""


@pytest.mark.parametrize("broken", ["save", "load"])
def test_a_saver_that_loses_what_it_saved_is_refused(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpoints.SAVERS[checkpoints.PLAIN]
    changes: Any = {broken: lambda training: training.path.write_bytes(bytes(12 * 64))}
    monkeypatch.setattr(checkpoints, "SAVERS", {"loser": replace(saver, **changes)})
    worker = checkpoints.Worker("loser")
    with pytest.raises(WrongResultError, match=r"^loser: params is .* off the reference"):
        worker.pose(64)
    worker.folder.cleanup()


def test_an_optimizer_that_does_not_step_as_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch_loop, "OPTIMIZERS", {"slow": partial(torch.optim.Adam, lr=1e-4)})
    with pytest.raises(WrongResultError, match=r"^slow: a parameter is .* off the reference"):
        torch_loop.Loop("slow").pose(64)


def test_a_patch_that_trains_otherwise_than_scikit_learn_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")

    @contextmanager
    def slow() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own.AdamOptimizer, "_get_updates", lambda _, grads: [-g for g in grads])
            yield

    monkeypatch.setitem(sklearn.CONTENDERS, SCHUSS.name, slow)
    monkeypatch.setattr(sklearn, "interleave", lambda *_: pytest.fail("timed"))
    with pytest.raises(WrongResultError, match=r"^schuss: the loss is .* off the reference"):
        main(["sklearn", "--quick"])
