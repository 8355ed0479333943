"""Steps of several processes: contenders are checked, and estimates are those of the formulas."""

from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.compact import compact_tables
from benchmarks.harness import WrongResultError
from benchmarks.mpi import command, rank
from benchmarks.mpi.paper import Cluster, Network, bytes_of_all_reduced, bytes_of_sharded
from benchmarks.mpi.ways import WAYS, Prepared, Way, nothing
from benchmarks.testing import name_of


class Alone:
    """A communicator of one process."""

    def Get_rank(self) -> int:  # noqa: N802  # the names of mpi4py
        return 0

    def Get_size(self) -> int:  # noqa: N802
        return 1

    def Allreduce(self, sent: Any, received: Any) -> None:  # noqa: N802
        received[...] = sent


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_every_way_makes_the_steps_of_the_reference(way: Way) -> None:
    if not way.present():
        pytest.skip(f"{way.packages} are not here")
    rank.check(way, Alone())


def test_a_way_that_does_not_step_is_refused() -> None:
    idle = Way("impostor", lambda task: Prepared(nothing))
    with pytest.raises(WrongResultError, match="impostor: params"):
        rank.check(idle, Alone())


def test_without_mpi_the_benchmark_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "launcher", list)
    main(["mpi", "--quick"])
    assert "mpi stays out: it needs mpi4py, and mpiexec" in capsys.readouterr().out


def test_the_launcher_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIEXEC", "mpiexec --map-by :oversubscribe")
    assert command.launcher() == ["mpiexec", "--map-by", ":oversubscribe"]


# A gigabyte a second of network, ten of memory, a second of latency; a bucket has 16 MiB.
SLOW = Network("slow", 1.0, 1e9)


@pytest.mark.parametrize(
    ("machines", "params", "all_reduced", "sharded", "in_16_bits"),
    [
        # wire 2*1*1 + 2*1/2*4, memory (6 + 28)/10
        # one bucket: wire 2*1*1 + 1/2*8 (6), memory (4 + 2 + 14)/10 (2 + 2 + 14 + 6)
        (2, 1e6, 2 + 0.004 + 0.0034, 2 + 0.004 + 0.0020, 2 + 0.003 + 0.0024),
        # 60 buckets: wire 2*60*3*1 + 3/4*8 (6), memory (4 + 1 + 7)/10 (2 + 1 + 7 + 6)
        (4, 1e9, 4 + 6.0 + 3.7, 366 + 1.2 / 60, 364.5 + 1.6 / 60),
    ],
)
def test_estimates_are_those_of_the_formulas(
    machines: int,
    params: float,
    all_reduced: float,
    sharded: float,
    in_16_bits: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.mpi.paper.bucket_bytes_for", lambda *_: 1 << 24)
    cluster = Cluster(machines, SLOW, memory=1e10)
    assert cluster.all_reduced(params) == pytest.approx(all_reduced)
    assert cluster.sharded(params) == pytest.approx(sharded)
    assert cluster.sharded(params, grad=2) == pytest.approx(in_16_bits)


def test_sharded_memory_is_divided_by_the_machines_except_parameters_and_gradients() -> None:
    assert bytes_of_all_reduced(10) == 10 * (4 + 4 + 4 + 8)
    assert bytes_of_sharded(10, 4) == 10 * (4 + 4 + 12 / 4)
    assert bytes_of_sharded(1280, 2, "8-bit") == 1280 * (4 + 4 + 2) + (2 * 1280 + 2 * 10 * 4) / 2
    # Above 8 machines, 4 buffers of all parameters, or of a bucket of 1 MiB of each machine.
    assert bytes_of_sharded(1600, 16) == 1600 * (4 + 4 + 12 / 16 + 4 * 4)
    assert bytes_of_sharded(16e9, 16) == 16e9 * (4 + 4 + 12 / 16) + 4 * 16 * 2**20


def test_tables_of_estimates_have_a_row_for_each_cluster() -> None:
    case = {"parameters": "1 billion", "machines": 1_024, "network": "slow"}
    estimate = {"case": case, "contender": "schuss.mpi", "milliseconds": 1500.0}
    measured = {"case": {"ranks": 2}, "contender": "schuss.mpi", "milliseconds": 1.0}
    memory = {"gigabytes": 8.0, "gigabytes_8bit": 7.0}
    assert compact_tables("mpi", [measured, estimate | memory]) == {
        "mpi": "| ranks | contender | ms |\n| ---: | --- | ---: |\n| 2 | schuss.mpi | 1.00 |",
        "mpi, seconds on paper": "| parameters, machines, network | schuss.mpi |\n| --- | ---: |\n"
        "| 1 billion, 1,024, slow | 1.50 |",
        "mpi, gigabytes on paper": "| parameters, machines | schuss.mpi | "
        "schuss.mpi, 8-bit state |\n| --- | ---: | ---: |\n| 1 billion, 1,024 | 8.00 | 7.00 |",
    }
