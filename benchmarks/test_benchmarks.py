"""Each benchmark times every contender in every case."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    checkpoints,
    contenders,
    data,
    files,
    harness,
    loop,
    mapped,
    overhead,
    sklearn,
    torch_loop,
    train,
)
from benchmarks.__main__ import main
from benchmarks.contenders import (
    FURTHER_RULES,
    IN_PLACE,
    ONE_THREAD,
    RULES,
    SCHUSS,
    TEXTBOOK,
)
from benchmarks.data import AVERAGES, BY_COLUMNS, BY_ROWS, READY_ORDER
from benchmarks.dtypes import COMBINATIONS, Formats
from benchmarks.harness import Contender, WrongResultError
from benchmarks.mpi import command as mpi
from benchmarks.mpi.paper import MACHINES, MODELS, NETWORKS
from benchmarks.peers import PEERS
from benchmarks.processes import Process
from benchmarks.shapes import Shape, gpt2_small, resnet50
from benchmarks.tasks import Peer
from benchmarks.testing import installed, name_of, needs, nothing, records_of
from benchmarks.whole import ACCUMULATE, CONTENDERS_OF, OVERWRITING, WORKS

OF_MANY = [*contenders.BOTH_LIMITS, *map(name_of, (SCHUSS, ONE_THREAD, IN_PLACE, TEXTBOOK))]
OF_STEP = [*OF_MANY[:-2], *map(name_of, contenders.LEVELS), *OF_MANY[-2:]]


def crossed(cases: Iterable[tuple[Any, ...]], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return [(*case, name) for case in cases for name in names]


ON_PAPER = ["Allreduce, full step", "schuss.mpi", "schuss.mpi, bfloat16 on the wire"]
OF_SCHUSS = [*contenders.WITH_PLAIN, *map(name_of, (SCHUSS, ONE_THREAD))]
# The labels of the cases of each benchmark, and their contenders.
EVERY: dict[str, list[tuple[Any, ...]]] = {
    "step": crossed(
        ((rule.name, dtype, 64) for rule in RULES for dtype in ("float32", "float64")), OF_STEP
    ),
    "rules": crossed(((rule.name, 64) for rule in FURTHER_RULES), OF_MANY[:4]),
    "many": crossed([("1,000 x 64", 1_000, 64_000)], OF_MANY),
    "whole": [
        (work, 64, name)
        for work in WORKS
        for name in (
            *OF_SCHUSS,
            *[IN_PLACE.name] * (work not in CONTENDERS_OF),
            *[OVERWRITING.name] * (work == ACCUMULATE),
        )
    ],
    "dtypes": crossed(
        ((*each.labels.values(), each.bytes_moved(64), 64) for each in COMBINATIONS), OF_SCHUSS
    ),
    "mapped": crossed([(64,)], [*mapped.WORKS]),
    "files": [(state, 64, name) for state in files.CONTENDERS for name in files.CONTENDERS[state]],
    "mpi": [
        *crossed(
            [(count, 64) for count in mpi.SIZES],
            [way.name for way in mpi.ALL_WAYS if way.present()],
        ),
        *crossed(
            [("64", 2, "this machine"), *product(MODELS, MACHINES, [n.name for n in NETWORKS])],
            ON_PAPER,
        ),
    ]
    * mpi.present(),
    "overhead": [
        *crossed(
            ((overhead.ONE, rule.name, 64) for rule in RULES),
            ["limit", "schuss", "schuss.kernels", "NumPy in place"],
        ),
        *crossed(
            ((overhead.ONE, rule.name, 64) for rule in FURTHER_RULES),
            ["limit", "schuss", "schuss.kernels"],
        ),
        *crossed(
            [(overhead.MANY, "Adam", 64)],
            ["limit", "schuss", "schuss, dict", "schuss, 1 thread", "NumPy in place"],
        ),
        *crossed([(overhead.FIT, "Adam", 64)], [*overhead.TRAINERS]),
        *crossed(
            [(overhead.CONSTRUCTION, "Adam", 64)],
            [overhead.MOMENTS.name, *installed(*overhead.MAKERS)],
        ),
    ],
    "startup": crossed([()], ["import numpy", "import schuss, after numpy"]),
    "torch_loop": crossed(
        [(64, (torch_loop.FEATURES + 1) * 64 + 65 * 64 + 65 * torch_loop.CLASSES)],
        [*torch_loop.OPTIMIZERS] * bool(find_spec("torch")),
    ),
    "sklearn": crossed(
        (
            (solver, "64 + 64", batch_size, dtype)
            for solver in ("adam", "sgd")
            for batch_size in sklearn.BATCH_SIZES
            for dtype in ("float32", "float64")
        ),
        [sklearn.UNPATCHED, *(c.name for c in (SCHUSS, contenders.SHARED_THREADS) if c.present())]
        * bool(find_spec("sklearn")),
    ),
    "checkpoints": crossed(
        ((work, 64) for work in checkpoints.WORKS),
        [name for name, saver in checkpoints.SAVERS.items() if find_spec(saver.package)],
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_benchmark_times_every_contender_in_every_case(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    records = records_of(name, tmp_path)
    timed = [(*record["case"].values(), record["contender"]) for record in records]
    assert timed == EVERY[name]
    for record in records:
        (unit,) = {"microseconds", "milliseconds"} & record.keys()
        assert record[unit] > 0
        assert record.get("gigabytes_per_second", 1) > 0
        assert record.get("share_of_limit", 1) > 0


def test_a_part_of_the_labels_chooses_cases(tmp_path: Path) -> None:
    records = records_of("step", tmp_path, 64, only="Adam, float64")
    assert {tuple(record["case"].values()) for record in records} == {("Adam", "float64", 64)}


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
        ("rows", 100, 16, 1_000, "schuss, 1 thread"),
    ]


@pytest.mark.parametrize("name", ["whole", "dtypes", "batches", "loop"])
def test_a_wrong_contender_is_refused_before_any_is_timed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ml_dtypes")
    for module in (harness, loop):
        monkeypatch.setattr(module, "Stopwatch", lambda *_, **__: pytest.fail("timed"))
    idle = Contender("impostor", {"Adam": nothing})
    monkeypatch.setattr("benchmarks.whole.CONTENDERS", (idle,))
    halves = Formats("bfloat16", "bfloat16", "bfloat16", peers=[idle])
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
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Process("worker", "schuss") as process:
        assert process.call("greet", "NumPy") == "schuss greets NumPy"
        with pytest.raises(WrongResultError, match="so wrong"):
            process.call("refuse")
        assert process.call("rest") == 2
