"""Each contender computes what it is timed for; one that does not is refused."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
    mapped,
    sklearn,
    torch_loop,
)
from benchmarks.__main__ import main
from benchmarks.contenders import (
    ADAM,
    FURTHER_RULES,
    IN_PLACE,
    ONE_THREAD,
    RULES,
    SCHUSS,
    TEXTBOOK,
)
from benchmarks.data import AVERAGES, BY_COLUMNS, BY_ROWS, Examples, Series
from benchmarks.dtypes import CHECK_SIZE_OF_BLOCKS, COMBINATIONS, FAST, Formats
from benchmarks.harness import Array, Case, Contender, Problem, Step, WrongResultError, check
from benchmarks.peers import PEERS
from benchmarks.tasks import Peer
from benchmarks.testing import (
    OF_SCHUSS,
    QUICK,
    adam_case,
    name_of,
    needs,
    nothing,
    pose,
)
from benchmarks.whole import (
    ACCUMULATE,
    CAST,
    CONTENDERS,
    CONTENDERS_OF,
    OVERWRITING,
    SUBNORMAL_MOMENT,
    WORKS,
    needs_ml_dtypes,
    posed,
    posed_to_check,
)

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


@pytest.mark.parametrize("wrong", [_one_ulp_off, nothing])
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


@pytest.mark.parametrize(
    ("work", "contender"),
    [
        (work, contender)
        for work in WORKS
        for contender in (SCHUSS, ONE_THREAD, OVERWRITING, *CONTENDERS_OF.get(work, CONTENDERS))
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_contender_does_the_whole_work(work: str, contender: Contender) -> None:
    needs(contender, "bfloat16" if needs_ml_dtypes(work) else "")
    for size in (37, 1_003) if "8bit" not in work else (CHECK_SIZE_OF_BLOCKS,):
        check(contender, contender.own(posed_to_check(work, size)))


@pytest.mark.parametrize("contender", [SCHUSS, ONE_THREAD, OVERWRITING, *CONTENDERS], ids=name_of)
def test_every_contender_does_the_whole_work_of_many_arrays(contender: Contender) -> None:
    needs(contender)
    lists = [[harness.ordinary(17), harness.ordinary(3, 5)] for _ in range(3)]
    options = {"clip_norm": 1.0, "average": 0.9, "clear_grads": True}
    check(contender, Problem(ADAM, *lists[:2], options=options, more_grads=lists[2:]))


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


CLIP, CLEAR = "clip, step", "clip, step, average, clear"
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
        for contender in (SCHUSS, ONE_THREAD, *formats.peers)
    ],
    ids=lambda value: "-".join(value.labels.values()) if isinstance(value, Formats) else value.name,
)
def test_schuss_and_its_peers_step_in_every_combination_of_formats(
    formats: Formats, contender: Contender
) -> None:
    needs(contender, "bfloat16" if formats.needs_ml_dtypes else "")
    in_8_bits = formats.state == harness.EIGHT_BITS
    for size in (CHECK_SIZE_OF_BLOCKS,) if in_8_bits else (37, 1_003):
        check(contender, contender.own(formats.posed_to_check(size)))


def _twice(problem: Problem, *, lr: float, **others: float) -> Step:
    return SCHUSS.steps["Adam"](problem, lr=2 * lr, **others)


def _other_bits(problem: Problem, **hyperparameters: float) -> Step:
    problem.optimizer.seed = 1
    return SCHUSS.prepare(problem)


@pytest.mark.parametrize(
    ("wrong", "formats", "dtype"),
    [
        (nothing, ("bfloat16", "bfloat16", "bfloat16"), "bfloat16"),
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
