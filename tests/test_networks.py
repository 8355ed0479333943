"""Several hosts, and networks that are slow, lossy and cut: the training is that of one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import schuss
from support.counted_training import SHARDED, OneProcess, make
from support.mpi import Job, mpiexec, needs_mpi
from support.network import Network, network

pytestmark = [needs_mpi, pytest.mark.soak]

TRAIN = """
path, last = sys.argv[2], int(sys.argv[3])
if os.path.exists(path):
    schuss.load(path, params, optimizer)
while optimizer.steps < last:
    optimizer.step(grads())
    schuss.save(path, params, optimizer)
    if rank == 0:
        print("saved", optimizer.steps, flush=True)
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Network]:
    """Two hosts of two ranks, which share a disk."""
    with network(tmp_path, hosts=2) as two:
        yield two


def check(path: Path) -> Any:
    """Check that the checkpoint is whole, and that of one process; return its step."""
    optimizer = make(schuss.AdamW)
    schuss.load(path, optimizer.params, optimizer)
    OneProcess().check(optimizer)
    return optimizer.steps


LINKS = {
    "fast": {},
    "slow": {"delay": 0.01, "rate": 10e6},
    "lossy": {"loss": 0.02},
    "slow and lossy": {"delay": 0.002, "rate": 50e6, "loss": 0.005},
}


@pytest.mark.parametrize("link", LINKS)
def test_the_training_over_a_network_is_that_of_one_process(
    link: str, hosts: Network, tmp_path: Path
) -> None:
    for name, value in LINKS[link].items():
        setattr(hosts, name, value)
    status, _, stderr = mpiexec(4, SHARDED + TRAIN, 60.0, tmp_path / "c", 10, network=hosts)
    assert status == 0, stderr
    assert check(tmp_path / "c") == 10
    assert hosts.frames > 1000  # the ranks have not found another way


def test_a_job_whose_link_is_cut_ends_with_a_message_and_is_resumed_on_what_is_left(
    hosts: Network, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    with Job(4, SHARDED + TRAIN, 5.0, path, 1_000_000, network=hosts) as job:
        while (line := job.line()) != "saved 5":
            assert line, job.end()
        hosts.cut(hosts.addresses[1])
        status, _, stderr = job.end()
    assert status != 0
    assert "TimeoutError: rank" in stderr
    reached = check(path)
    assert reached >= 5
    status, _, stderr = mpiexec(2, SHARDED + TRAIN, 60.0, path, reached + 5)
    assert status == 0, stderr
    assert check(path) == reached + 5
