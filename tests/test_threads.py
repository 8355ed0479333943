"""Threads: the same bits on any number of them, and no harm to other threads of the program."""

import contextlib
import os
import textwrap
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _cgroups, kernels, reference
from schuss._threads import available_processors
from support.arrays import equal, laid_out, numbers, same_bits
from support.cases import CASES, Case, run
from support.execution import execution
from support.processes import NO_THREADS, ends_well, needs_no_threads, script
from support.threads import in_threads

# The same bits.


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize("case", CASES[::3], ids=str)
@pytest.mark.parametrize("layout", ["c", "fortran", "columns of more"])
def test_kernels_on_any_number_of_threads_give_the_bits_of_the_reference(
    case: Case, layout: str, level: str, threads: int
) -> None:
    rng = np.random.default_rng(0)
    values = numbers(rng, (37, 41), np.float32)
    gradients = [laid_out(numbers(rng, (37, 41), np.float32), "c") for _ in range(3)]
    with execution(level=level, threads=threads, tile=64, threshold=0):
        fused = list(run(case, kernels, laid_out(values, layout), gradients))
    assert equal(fused, [*run(case, reference, values.copy(), gradients)])


# Several threads of the user's.

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("momentum", {"nesterov": True}),
    ("rmsprop", {"weight_decay": 0.1}),
    ("adam", {"eps": 1e-7}),
    ("adamw", {"weight_decay": 0.1}),
]
CLASSES = {"sgd": "SGD", "momentum": "Momentum", "rmsprop": "RMSprop", "adam": "Adam"}
SIZES = [5, 1_000, 30_000, 100_000, 300_000, 1_500_000]


def check_steps(seed: int) -> None:
    """Compare some steps of an optimizer with the reference."""
    rng = np.random.default_rng(seed)
    kind, options = KINDS[seed % 5]
    dtype = (np.float32, np.float64, np.float16)[seed % 3]
    start, *grads = (numbers(rng, SIZES[seed % 6] + seed, dtype) for _ in range(4))
    make = getattr(schuss, CLASSES.get(kind, "AdamW"))
    optimizer = make(start.copy(), lr=0.1, **options)
    expected = reference.Optimizer(kind, start.copy(), lr=0.1, **options)
    for grad in grads:
        optimizer.step(grad)
        expected.step(grad)
    assert same_bits(optimizer.params, expected.params)
    assert equal([*optimizer.state.values()], [*expected.state.values()])


def test_threads_step_optimizers_of_their_own_side_by_side(rounds: Iterator[int]) -> None:
    def work(number: int, thread: int) -> None:
        if thread == 0:
            schuss.set_num_threads(1 + number % 5)
        check_steps(8 * number + thread)

    with schuss.threads(3):
        for number in rounds:
            in_threads(8, partial(work, number))


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


# Processes.


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
    # The main thread blocks the signal; it stays pending unless a worker takes it.
    code = """
    import os, signal
    import numpy as np, schuss
    from schuss import _core
    _core.set_parallel_threshold(0)
    schuss.set_num_threads(3)
    optimizer = schuss.SGD(np.zeros(1_000_000, np.float32))
    for _ in range(3): optimizer.step(np.ones(1_000_000, np.float32))
    assert _core.workers() == 2
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    print(signal.sigpending() == {signal.SIGUSR1})
    """
    assert ends_well(code, OPENBLAS_NUM_THREADS="1") == "True\n"


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
    ("own", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/x", {"cpu": "-1"}, None),
        ("5:memory:/x\n4:cpu,cpuacct:/x/y", {"cpu/x": "150000", "cpu/x/y": "400000"}, 2),
        ("4:cpu,cpuacct:/x", {"cpu": "250000"}, 3),
        (None, {}, None),
    ],
    ids=str,
)
def test_a_containers_quota_is_found(
    own: str | None,
    files: dict[str, str],
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {"proc": own} if own else {}
    for name, text in files.items():
        if own and own.startswith("0::"):
            texts[name] = text
        else:
            texts |= {f"{name}/cpu.cfs_quota_us": text, f"{name}/cpu.cfs_period_us": "100000"}
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(_cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(_cgroups, "OWN_CGROUPS", tmp_path / "proc")
    assert _cgroups.quota() == expected


def test_a_call_uses_no_more_threads_than_it_may_use_now() -> None:
    code = """
    import numpy as np, schuss
    from schuss import _core

    optimizer = schuss.Adam(np.zeros((4000, 500), np.float32), clip_norm=1.0, average=0.5)
    indices = np.arange(0, 4000, 2)
    rows = schuss.Rows(indices, np.ones((2000, 500), np.float32))
    grads = np.ones((4000, 500), np.float32)

    def workers(threads, threshold):
        schuss.set_num_threads(threads)
        _core.set_parallel_threshold(threshold)
        _core.set_sharing_threshold(threshold)
        for each in (grads, rows, rows):
            optimizer.step(each)
        optimizer.rows(indices)
        optimizer.accumulate(rows)
        optimizer.accumulate(grads)
        optimizer.step()
        optimizer.step(rows)
        optimizer.flush()
        return _core.workers()

    print(workers(3, 10**15), workers(1, 0), workers(3, 0))
    """
    assert ends_well(code, OPENBLAS_NUM_THREADS="1") == "0 0 2\n"


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
