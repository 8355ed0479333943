"""Ranks that raise, die and stall, under a real MPI: the job ends, and its checkpoint is whole."""

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

import schuss
from support.counted_training import SHARDED, OneProcess, make
from support.mpi import Job, mpiexec, needs_mpi

pytestmark = [needs_mpi, pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")]

TRAINING = """
def fit(loss=lambda params, x: (0.0, grads()), **options):
    optimizer = make(partial(sharded, reduction="mean"), timeout=float(sys.argv[1]))
    x = np.zeros((8, 1))
    schuss.fit(loss, optimizer.params, optimizer, x, batch_size=4, progress=False, **options)
for _ in range(3):
    optimizer.step(grads())
{end}
while True:
    optimizer.step(grads())
"""

# What a rank does, or all, amid the training; and what the job says then.
ENDS = {
    "raises": ("if rank == 1: raise ValueError('this one')", "ValueError: this one"),
    "raises in the loss": ("fit(lambda params, x: (1 / (rank - 1), grads()))", "ZeroDivisionError"),
    "raises in a callback": ("fit(callbacks=lambda history: [0][rank == 1])", "IndexError"),
    "raises in a step": ("optimizer.step(grads() if rank != 1 else {})", "ValueError: "),
    "ends as if all were done": ("if rank == 1: sys.exit()", "TimeoutError: rank [02]"),
    "ends with a status": ("if rank == 1: sys.exit(3)", ""),
    "ends at once": ("if rank == 1: os._exit(4)", ""),
    "is killed": ("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)", ""),
    "stalls": ("if rank == 1: os.kill(os.getpid(), signal.SIGSTOP)", "TimeoutError: rank [02]"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_ends_with_a_message_if_a_rank(end: str) -> None:
    code, message = ENDS[end]
    timeout = 4.0 if "TimeoutError" in message else 60.0
    status, _, stderr = mpiexec(3, SHARDED + TRAINING.format(end=code), timeout)
    assert status != 0
    assert re.search(message, stderr), stderr


SAVE_FOREVER = """
path = sys.argv[2]
if os.path.exists(path):
    schuss.load(path, params, optimizer)
pids = MPI.COMM_WORLD.gather(os.getpid())
if rank == 0:
    print(*pids, flush=True)
while True:
    optimizer.step(grads())
    schuss.save(path, params, optimizer)
    if rank == 0:
        print("saved", optimizer.steps, flush=True)
"""


def saved(job: Job) -> int:
    """Wait for the next save, and return its step."""
    while not (line := job.line()).startswith("saved "):
        assert line, job.end()
    return int(line.split()[1])


def loaded(path: Path, one_process: OneProcess) -> int:
    """Check that the checkpoint is whole, and that of one process; return its step."""
    optimizer = make(schuss.AdamW)
    schuss.load(path, optimizer.params, optimizer)
    one_process.check(optimizer)
    steps: int = optimizer.steps
    return steps


@pytest.fixture(params=[4, pytest.param(100, marks=pytest.mark.soak)])
def trials(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return how many ranks are to die, one after the other."""
    return iter(range(request.param))


@pytest.mark.parametrize("name", ["c.safetensors", "c.safetensors.index.json"])
def test_a_rank_that_is_killed_while_all_save_leaves_a_whole_checkpoint(
    name: str, tmp_path: Path, trials: Iterator[int]
) -> None:
    path, one_process, rng, reached = tmp_path / name, OneProcess(), random.Random(0), 0
    for _, ranks in zip(trials, cycle([2, 3, 4])):
        with Job(ranks, SHARDED + SAVE_FOREVER, 60.0, path) as job:
            pids = [int(pid) for pid in job.line().split()]
            reached = saved(job)
            start = time.perf_counter()
            reached = saved(job)  # a step that was saved is never lost again
            took = time.perf_counter() - start
            time.sleep(rng.random() * took)  # kill it during the next save, on any disk
            os.kill(rng.choice(pids), signal.SIGKILL)
            assert job.end()[0] != 0
        before, reached = reached, loaded(path, one_process)
        assert reached >= before
    schuss.save(path, one_process.optimizer.params, one_process.optimizer)
    whole = {path.name, *(part.name for part in tmp_path.glob("c-*-of-*.safetensors"))}
    assert {*os.listdir(tmp_path)} <= whole
