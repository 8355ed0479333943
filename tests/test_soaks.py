"""Minutes of many threads, forks and signals: run by ``pytest -m soak``.

SCHUSS_SOAK_SECONDS says how long each takes; by default 60.
"""

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array, equal, numbers
from support.processes import ends_well, fork
from support.threads import in_threads
from test_batches import forks_while_threads_read, with_forks
from test_faults import (
    ENDS,
    LOSES_CTRL_C,
    OPTIONS,
    Interrupt,
    check_end,
    check_interrupted_steps,
    check_interrupted_trainings,
    forks,
    posix,
)

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SCHUSS_SOAK_SECONDS", "60"))
THREADS = 8


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def rounds() -> Iterator[int]:
    """Count until the time is over."""
    end = monotonic() + SECONDS
    for number in count():
        if monotonic() > end:
            return
        yield number


# Optimizers of their own.


@dataclass(frozen=True)
class Job:
    """Some steps of an optimizer, and what the reference makes of them."""

    make: Callable[[Array], Any]
    start: Array
    grads: list[Array]
    expected: list[Array]

    def is_done_right(self) -> bool:
        optimizer = self.make(self.start.copy())
        for grad in self.grads:
            optimizer.step(grad)
        return equal([optimizer.params, *optimizer.state.values()], self.expected)


Rule = tuple[Callable[[Array], Any], Callable[..., None], int, bool]
ADAM: dict[str, Any] = {"lr": 0.01, "eps": 1e-7}
RULES: list[Rule] = [
    (partial(schuss.SGD, lr=0.1), partial(reference.sgd, lr=0.1), 0, False),
    (
        partial(schuss.Momentum, lr=0.1, nesterov=True),
        partial(reference.momentum, lr=0.1, nesterov=True),
        1,
        False,
    ),
    (
        partial(schuss.RMSprop, lr=0.1, weight_decay=0.1),
        partial(reference.rmsprop, lr=0.1, weight_decay=0.1),
        1,
        False,
    ),
    (partial(schuss.Adam, **ADAM), partial(reference.adam, **ADAM), 2, True),
    (
        partial(schuss.AdamW, **ADAM, weight_decay=0.1),
        partial(reference.adam, **ADAM, weight_decay=0.1, decoupled=True),
        2,
        True,
    ),
]
DTYPES = [np.float32, np.float64, np.float16]
SIZES = [5, 1_000, 30_000, 100_000, 300_000, 1_500_000]


def a_job(seed: int) -> Job:
    rng = np.random.default_rng(seed)
    (make, rule, states, counts), dtype = RULES[seed % 5], DTYPES[seed % 3]
    size = SIZES[seed % 6] + int(rng.integers(100))
    start, *grads = (numbers(rng, size, dtype) for _ in range(6))
    computed = np.float32 if dtype == np.float16 else dtype
    expected = [start.copy(), *(np.zeros(size, computed) for _ in range(states))]
    for t, grad in enumerate(grads, start=1):
        rule(expected[0], grad, *expected[1:], **({"step": t} if counts else {}))
    return Job(make, start, grads, expected)


def test_eight_threads_step_optimizers_of_their_own() -> None:
    jobs = [[a_job(4 * thread + i) for i in range(4)] for thread in range(THREADS)]
    done = [0] * THREADS

    def work(thread: int) -> None:
        for number in rounds():
            if thread == 0:
                schuss.set_num_threads(1 + number % 5)
            job = jobs[thread][number % 4]
            if thread == 1:
                with schuss.threads(1 + number % 3):
                    assert job.is_done_right()
            else:
                assert job.is_done_right(), (thread, number)
            done[thread] = number + 1

    with schuss.threads(3):
        in_threads(THREADS, work)
    assert min(done) > 0
    print(f"{sum(done):,} jobs of {len(jobs[0][0].grads)} steps")


# One for all.


def test_eight_threads_step_one_optimizer_each_time_or_are_refused() -> None:
    least, most = 30, 30 + THREADS
    grad = np.random.default_rng(0).standard_normal(150_000, dtype=np.float32)
    twin = [np.zeros_like(grad) for _ in range(3)]
    expected = {}
    for t in range(1, most + 1):
        reference.adam(twin[0], grad, *twin[1:], step=t)
        if t >= least:
            expected[t] = [array.copy() for array in twin]
    refusals = calls = 0
    messages: set[str] = set()
    for _ in rounds():
        optimizer = schuss.Adam(np.zeros_like(grad))
        made, refused = [0] * THREADS, [0] * THREADS

        def step(
            i: int, optimizer: Any = optimizer, made: Any = made, refused: Any = refused
        ) -> None:
            while sum(made) < least:
                try:
                    optimizer.step(grad)
                    made[i] += 1
                except RuntimeError as error:
                    messages.add(str(error))
                    refused[i] += 1

        with schuss.threads(2):
            in_threads(THREADS, step)
        assert optimizer.steps == sum(made)
        arrays = [optimizer.params, *optimizer.state.values()]
        assert equal(arrays, expected[optimizer.steps])
        refusals, calls = refusals + sum(refused), calls + sum(made)
    assert messages == {"Adam.step: another call of Adam is under way, expected one at a time"}
    print(f"{calls:,} steps, {refusals:,} refused")


# Processes and signals.


@fork
def test_a_thread_forks_all_the_time_while_another_steps() -> None:
    for _ in rounds():
        ends_well(forks(50))


@fork
def test_children_have_the_rest_of_every_epoch_that_threads_read() -> None:
    for _ in rounds():
        with_forks(forks_while_threads_read(50))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_of_processes_step_while_the_parent_does(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, threading
            import numpy as np, schuss
            schuss.set_num_threads(3)
            grad = np.ones(1_000_000, np.float32)
            def stepped(times):
                optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
                for _ in range(times): optimizer.step(grad)
                return bool((optimizer.params == -times).all())
            def step():
                while not over.is_set(): optimizer.step(grad)
            if __name__ == "__main__":
                optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
                over = threading.Event()
                thread = threading.Thread(target=step)
                thread.start()
                for _ in range(3):
                    with multiprocessing.get_context({method!r}).Pool(4) as pool:
                        assert all(pool.map(stepped, range(1, 20)))
                over.set()
                thread.join()
                assert (optimizer.params == -optimizer.steps).all()
            """
        )
    )
    for _ in rounds():
        command = [sys.executable, "-W", "ignore::DeprecationWarning", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@posix
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["step", "clip, step, average"])
def test_ctrl_c_finds_every_step_made_or_not(options: dict[str, Any], interrupt: Interrupt) -> None:
    for seed in rounds():
        check_interrupted_steps(options, interrupt, seed)


@posix
@LOSES_CTRL_C
@pytest.mark.parametrize("prefetch", [0, 2])
def test_ctrl_c_finds_every_training_at_a_step(prefetch: int, interrupt: Interrupt) -> None:
    for seed in rounds():
        check_interrupted_trainings(prefetch, interrupt, seed)


@pytest.mark.skipif(os.name != "posix", reason="a signal that ends a program is no status there")
@pytest.mark.parametrize("end", ENDS)
def test_programs_end_whatever_is_under_way(end: str) -> None:
    for _ in rounds():
        check_end(end)


@posix
def test_every_timeout_while_a_checkpoint_is_saved_or_loaded_is_raised(tmp_path: Path) -> None:
    path, chance = tmp_path / "c", random.Random(0)
    optimizer = schuss.Adam(np.ones(100_000))
    optimizer.step(np.ones(100_000))
    schuss.save(path, optimizer.params, optimizer)
    path.chmod(0o600)
    sent = raised = 0

    def time_is_up(*_: object) -> None:
        nonlocal sent
        sent += 1
        raise TimeoutError("too long")

    before = signal.signal(signal.SIGALRM, time_is_up)
    for number in rounds():
        call = schuss.load if number % 2 else schuss.save
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 0.02))
            call(path, optimizer.params, optimizer)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeoutError:
            raised += 1
        assert raised == sent
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["c"]
    signal.signal(signal.SIGALRM, before)
    assert raised > 0
    print(f"{raised:,} of {number:,} met")
