"""Threads: the same bits on any number of them, and no harm to whoever else has threads."""

import contextlib
import ctypes
import os
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from cases import CASES, Array, Case, laid_out, numbers, run, same_bits
from schuss import _cgroups, _core, kernels, reference
from schuss._threads import available_processors

THREADS = [1, 2, 3, 8]


def script(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environment},
    )


def ends_well(code: str, **environment: str) -> str:
    done = script(code, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# No system has memory for the stack of such a thread.
NO_THREADS = """
import ctypes, threading
import numpy as np, schuss
from schuss import _core
libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
assert libc.pthread_attr_init(attributes) == 0
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 60)) == 0
assert libc.pthread_setattr_default_np(attributes) == 0
try: threading.Thread(target=print).start()
except RuntimeError: pass
else: raise AssertionError("there are threads")
"""
needs_no_threads = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "pthread_setattr_default_np"),
    reason="threads can be had here, whatever is done",
)


# The same bits.


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize("case", CASES[::3], ids=str)
@pytest.mark.parametrize("layout", ["c", "fortran", "columns of more"])
def test_any_number_of_threads_gives_the_twins_bits(
    case: Case, layout: str, level: str, threads: int
) -> None:
    rng = np.random.default_rng(0)
    values = numbers(rng, (37, 41), np.float32)
    gradients = [laid_out(numbers(rng, (37, 41), np.float32), "c") for _ in range(3)]
    before = schuss.simd()
    try:
        schuss.set_simd(level)
        with schuss.threads(threads):
            fused = list(run(case, kernels, laid_out(values, layout), gradients))
    finally:
        schuss.set_simd(before)
    for one, other in zip(fused, run(case, reference, values.copy(), gradients), strict=True):
        assert same_bits(one, other)


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_many_arrays_of_all_sizes_are_stepped_once_each(threads: int, tile: int) -> None:
    _core.set_tile_elements(tile)
    rng = np.random.default_rng(1)
    shapes = [(), (0,), (1,), (63,), (64,), (65,), (1000,), (3, 5), (33, 70), (2, 0), (500,)] * 3
    params = [rng.standard_normal(shape) for shape in shapes]
    twins = [param.copy() for param in params]
    states = [(np.zeros_like(param), np.zeros_like(param)) for param in params]
    optimizer = schuss.Adam(params, lr=0.1)
    with schuss.threads(threads):
        for t in range(1, 6):
            grads = [rng.standard_normal(shape) for shape in shapes]
            optimizer.step(grads)
            for twin, grad, state in zip(twins, grads, states, strict=True):
                reference.adam(twin, grad, *state, step=t, lr=0.1)
    for param, twin in zip(params, twins, strict=True):
        assert same_bits(np.asarray(param), np.asarray(twin))


def test_a_step_at_the_shipped_sizes_has_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    values, grad = (rng.standard_normal(1_500_001, dtype=np.float32) for _ in range(2))
    results: list[bytes] = []
    for threads in THREADS:
        param = values.copy()
        optimizer = schuss.Adam(param)
        with schuss.threads(threads):
            for _ in range(4):
                optimizer.step(grad)
        results.append(param.tobytes())
    assert len(set(results)) == 1


# Several threads of the user's.


@pytest.mark.usefixtures("share_all")
def test_python_threads_step_optimizers_of_their_own_side_by_side() -> None:
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal(70_000, dtype=np.float32) for _ in range(4)]
    params = [np.zeros(70_000, np.float32) for _ in range(4)]
    start = threading.Barrier(4)

    def train(param: Array, grad: Array) -> None:
        optimizer = schuss.Adam(param)
        start.wait()
        for _ in range(50):
            optimizer.step(grad)

    with schuss.threads(3):
        workers = [
            threading.Thread(target=train, args=arrays)
            for arrays in zip(params, gradients, strict=True)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for param, grad in zip(params, gradients, strict=True):
        expected = np.zeros_like(param)
        optimizer = schuss.Adam(expected)
        with schuss.threads(1):
            for _ in range(50):
                optimizer.step(grad)
        assert same_bits(param, expected)


@pytest.mark.usefixtures("share_all")
def test_a_step_that_was_refused_leaves_nothing_for_the_next_one_to_do_twice() -> None:
    params = [np.zeros((1000, 1000)), np.zeros(5)]
    optimizer = schuss.SGD(params, lr=1.0)
    rows, columns = ([np.ones((1000, 1000), order=order), np.ones(5)] for order in ("C", "F"))
    with schuss.threads(2):
        optimizer.step(rows)
        params[1].flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            optimizer.step(columns)
        params[1].flags.writeable = True
        optimizer.step(columns)
    for param in params:
        assert (param == -2).all()


@pytest.mark.usefixtures("share_all")
def test_there_are_as_many_workers_as_were_ever_of_use() -> None:
    printed = ends_well(
        """
        import numpy as np, schuss
        from schuss import _core
        _core.set_parallel_threshold(0)
        optimizer = schuss.SGD(np.zeros(3 * 16384, np.float32))
        grad, workers = np.ones(3 * 16384, np.float32), []
        for threads in (1, 2, 300, 1):
            with schuss.threads(threads): optimizer.step(grad)
            workers.append(_core.workers())
        print(workers)
        """
    )
    assert printed == "[0, 1, 2, 2]\n"


# Processes.

SETUP = """
import os, sys, threading, time
import numpy as np, schuss
from schuss import _core
schuss.set_num_threads(3)
param, grad = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)
optimizer = schuss.SGD(param, lr=1.0)
for _ in range(3): optimizer.step(grad)
def await_step_of(optimizer):
    # Wait until another thread has made a step since: it is at work.
    steps = optimizer.steps
    while optimizer.steps == steps: time.sleep(0.0001)
"""


def after_setup(code: str) -> str:
    return textwrap.dedent(SETUP) + textwrap.dedent(code)


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@fork
def test_parent_and_child_both_go_on_after_a_fork() -> None:
    code = """
    for _ in range(20):
        child = os.fork()
        for _ in range(3): optimizer.step(grad)
        good = (param == -optimizer.steps).all() and _core.workers() == 2
        if child == 0: os._exit(0 if good else 1)
        assert good and os.waitpid(child, 0)[1] == 0
    print(optimizer.steps)
    """
    assert ends_well(after_setup(code)) == "63\n"


@fork
def test_a_fork_while_another_thread_steps_leaves_both_working() -> None:
    code = """
    done = threading.Event()
    other = schuss.Adam(np.zeros(3_000_000, np.float32))
    def step():
        g = np.ones(3_000_000, np.float32)
        while not done.is_set(): other.step(g)
    thread = threading.Thread(target=step)
    thread.start()
    for _ in range(30):
        await_step_of(other)
        child = os.fork()
        if child == 0:
            for _ in range(3): optimizer.step(grad)
            os._exit(0 if (param == -6).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
    done.set(); thread.join()
    optimizer.step(grad)
    print((param == -4).all())
    """
    assert ends_well(after_setup(code)) == "True\n"


@fork
def test_new_threads_of_a_child_step_what_another_thread_stepped_in_the_parent() -> None:
    code = """
    done = threading.Event()
    def step():
        while not done.is_set(): optimizer.step(grad)
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    for _ in range(10):
        await_step_of(optimizer)
        child = os.fork()
        if child == 0:
            made = optimizer.steps
            new = threading.Thread(target=optimizer.step, args=[grad])
            new.start(); new.join()
            os._exit(0 if optimizer.steps == made + 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
    done.set(); thread.join()
    """
    # Without other threads, a new one takes over the memory of the one that the child has not.
    alone = after_setup(code).replace("set_num_threads(3)", "set_num_threads(1)")
    ends_well(alone, OPENBLAS_NUM_THREADS="1")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_multiprocessing_step_too(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, sys
            import numpy as np, schuss
            def work(seed):
                param = np.zeros(1_000_000, np.float32)
                optimizer = schuss.SGD(param, lr=1.0)
                for _ in range(3): optimizer.step(np.full_like(param, seed))
                return float(param.min()), float(param.max())
            if __name__ == "__main__":
                assert work(1) == (-3, -3)
                with multiprocessing.get_context({method!r}).Pool(2) as pool:
                    print(pool.map(work, [1, 2]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[(-3.0, -3.0), (-6.0, -6.0)]\n"), done.stderr


def test_the_interpreter_ends_while_there_are_workers() -> None:
    assert ends_well(after_setup("print(optimizer.steps)")) == "3\n"


def test_the_interpreter_ends_while_a_daemon_steps() -> None:
    code = """
    def step():
        while True: optimizer.step(grad)
    threading.Thread(target=step, daemon=True).start()
    await_step_of(optimizer)
    """
    for _ in range(5):
        ends_well(after_setup(code))


def test_the_interpreter_ends_while_a_daemon_works_without_its_lock() -> None:
    code = """
    def average():
        while True:
            schuss.ewma(param, 0.9, out=param)
            begun.set()
    begun = threading.Event()
    threading.Thread(target=average, daemon=True).start()
    begun.wait()
    """
    for _ in range(5):
        ends_well(after_setup(code))


@needs_no_threads
def test_where_the_system_has_no_threads_the_caller_s_makes_the_step() -> None:
    code = """
    _core.set_parallel_threshold(0)
    schuss.set_num_threads(3)
    optimizer = schuss.SGD(np.zeros(3_000_000, np.float32), lr=1.0)
    for _ in range(3): optimizer.step(np.ones(3_000_000, np.float32))
    print((optimizer.params == -3).all(), _core.workers())
    """
    assert ends_well(textwrap.dedent(NO_THREADS) + textwrap.dedent(code)) == "True 0\n"


@pytest.mark.skipif(find_spec("_xxsubinterpreters") is None, reason="Python 3.13 has others")
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("module", ["schuss", "schuss._core", "schuss.schedules"])
@pytest.mark.parametrize("first", ["", "import schuss"])
def test_a_subinterpreter_is_refused(first: str, module: str, isolated: bool) -> None:
    code = f"""
    import _xxsubinterpreters as subinterpreters
    {first}
    for _ in range(2):
        other = subinterpreters.create(isolated={isolated})
        try: subinterpreters.run_string(other, "import {module}")
        except subinterpreters.RunFailedError as error: message = str(error)
        subinterpreters.destroy(other)
        assert "schuss: this is a subinterpreter, expected the main interpreter" in message
        assert "ImportError" in message
    import numpy as np, schuss
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    optimizer.step(np.ones(3))
    print(optimizer.params)
    """
    assert ends_well(code) == "[-1. -1. -1.]\n"


def test_workers_leave_signals_to_the_users_threads() -> None:
    # Blocked where the user is, a signal waits there, if nobody else takes it.
    code = """
    import signal
    assert _core.workers() == 2
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    print(signal.sigpending() == {signal.SIGUSR1})
    """
    assert ends_well(after_setup(code), OPENBLAS_NUM_THREADS="1") == "True\n"


# How many.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SCHUSS_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_environment_says_how_many(environment: dict[str, str], expected: int | None) -> None:
    cleared = {"SCHUSS_NUM_THREADS": "", "OMP_NUM_THREADS": "", **environment}
    printed = ends_well("import schuss; print(schuss.num_threads())", **cleared)
    assert int(printed) == (expected or available_processors())


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", "1025"])
def test_an_environment_that_asks_for_what_is_no_number_is_refused(asked: str) -> None:
    done = script("import schuss", SCHUSS_NUM_THREADS=asked)
    message = f"SCHUSS_NUM_THREADS is '{asked}', expected an integer from 1 to 1024"
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity here")
def test_the_affinity_bounds_the_threads() -> None:
    code = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import schuss
    print(schuss.num_threads())
    """
    assert ends_well(code, SCHUSS_NUM_THREADS="", OMP_NUM_THREADS="") == "1\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc": "0::/a/b", "a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ({"proc": "0::/", "cpu.max": "50000 100000"}, 1),
        ({"proc": "0::/", "cpu.max": "max 100000"}, None),
        ({"proc": "4:cpu,cpuacct:/x", "cpu/cpu.cfs_quota_us": "-1"}, None),
        (
            {
                "proc": "5:memory:/x\n4:cpu,cpuacct:/x/y",
                "cpu/x/cpu.cfs_quota_us": "150000",
                "cpu/x/cpu.cfs_period_us": "100000",
                "cpu/x/y/cpu.cfs_quota_us": "400000",
                "cpu/x/y/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc": "4:cpu,cpuacct:/x",
                "cpu/cpu.cfs_quota_us": "250000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ({}, None),
    ],
    ids=str,
)
def test_a_containers_quota_is_found(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(_cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(_cgroups, "OWN_CGROUPS", tmp_path / "proc")
    assert _cgroups.quota() == expected


def test_within_a_block_the_number_is_another() -> None:
    before = schuss.num_threads()
    with schuss.threads(before + 3):
        assert schuss.num_threads() == before + 3
        with contextlib.suppress(ZeroDivisionError), schuss.threads(1):
            assert schuss.num_threads() == 1
            raise ZeroDivisionError
        assert schuss.num_threads() == before + 3
    assert schuss.num_threads() == before
    assert schuss.show_config("dicts")["threads"] == str(before)


@pytest.mark.parametrize("call", ["set_num_threads", "threads"])
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (0, ValueError, "threads is 0, expected an integer >= 1"),
        (1025, ValueError, "threads is 1025, expected at most 1024"),
        (2.0, TypeError, "threads is a float, expected an integer"),
        (True, TypeError, "threads is a bool, expected an integer"),
    ],
)
def test_what_is_no_number_of_threads_is_refused(
    call: str, number: Any, error: type[Exception], message: str
) -> None:
    before = schuss.num_threads()
    with contextlib.ExitStack() as stack, pytest.raises(error, match=f"^{call}: {message}"):
        stack.enter_context(schuss.threads(number)) if call == "threads" else (
            schuss.set_num_threads(number)
        )
    assert schuss.num_threads() == before
