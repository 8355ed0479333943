"""State in files: the bits of state in memory, little memory, and no file that is left behind."""

import ctypes
import errno
import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.mpi import Sharded, _state_files, _state_pieces
from schuss.mpi._mapped_file import MappedFile
from support.arrays import Array, contents, dtype_of, equal, leaves, same_bits
from support.optimizers import every_variant
from support.processes import NO_THREADS, ends_well, fork, needs_no_threads, script
from support.ranks import run

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has /proc and direct I/O")
pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="state_in is refused here")

UNIT = 131_072
"""The fewest elements of a piece."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep state of 4 KiB and more in files, in the smallest pieces."""
    monkeypatch.setattr(_state_files, "_SMALL", 4096)
    monkeypatch.setattr(_state_pieces, "_BYTES", 1)


def params(dtype: Any = np.float32) -> list[Array]:
    """Return parameters of several pieces, of one, and of less than a page; some by columns."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n) for n in (2 * UNIT + 1_003, 5, UNIT, 3 * UNIT, 2, 10_000)]
    arrays[3] = arrays[3].reshape(3, UNIT, order="F")
    return [array.astype(dtype, order="K") for array in arrays]


def gradients(like: Sequence[Array], steps: int = 4) -> list[list[Array | None]]:
    """Return gradients for some steps; in the second one, some parameters have none."""
    rng = np.random.default_rng(1)
    dtypes = [np.float32 if p.dtype.itemsize == 2 else p.dtype for p in like]
    every: list[list[Array | None]] = [
        [rng.standard_normal(p.shape).astype(d) for p, d in zip(like, dtypes, strict=True)]
        for _ in range(steps)
    ]
    every[1][2:5] = [None] * 3
    return every


def assert_same(optimizer: Any, expected: Any) -> None:
    """Assert that two optimizers have made the same steps, to the bit."""
    assert equal(leaves(optimizer.params), leaves(expected.params))
    assert list(optimizer.state) == list(expected.state)
    states = leaves(optimizer.state), leaves(expected.state)
    assert equal(*([state.ravel(order="K") for state in each] for each in states))
    assert (optimizer.steps, optimizer.skipped) == (expected.steps, expected.skipped)
    assert repr(optimizer.last) == repr(expected.last)  # a norm can be NaN


def makers(name: str, folder: Path, **options: Any) -> list[Callable[[Any], Any]]:
    """Return functions that make an optimizer with state in files, and one with it in memory."""
    kind = getattr(schuss, name)
    return [
        lambda given: Sharded(kind, given, state_in=folder, **options),
        lambda given: kind(given, **options),
    ]


def stepped(make: Callable[[Any], Any], dtype: str = "float32") -> Any:
    """Return an optimizer that has made some steps."""
    optimizer = make(params(dtype_of(dtype)))
    for grads in gradients(optimizer.params):
        optimizer.step(grads)
    return optimizer


@every_variant
def test_every_rule_makes_the_steps_that_it_makes_in_memory(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(*map(stepped, makers(name, tmp_path, **options)))


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "8 bits": ("float32", {"state_dtype": "8bit"}),
    "state in bfloat16": ("float32", {"state_dtype": "bfloat16", "seed": 7}),
    "float64": ("float64", {}),
    "bfloat16 with a master": ("bfloat16", {"master": "float32", "state_dtype": "8bit"}),
    "complex": ("complex64", {}),
    "complex, by modulus": ("complex128", {"complex": "modulus"}),
    "averages, clipping, norms": (
        "float32",
        {"average": 0.9, "clip_norm": 1.0, "track_norms": True},
    ),
    "groups": ("float32", {"groups": lambda name: {"frozen": name == "0", "lr": 0.1}}),
}


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_and_option_has_the_bits_of_state_in_memory(case: str, tmp_path: Path) -> None:
    dtype, options = FORMATS[case]
    if "bfloat16" in options.values():
        dtype_of("bfloat16")
    ours, expected = (stepped(m, dtype) for m in makers("Adam", tmp_path, **options))
    assert_same(ours, expected)


def test_ranks_have_files_of_their_own(tmp_path: Path) -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(lambda given: Sharded(schuss.Adam, given, comm, state_in=tmp_path))
        expected = stepped(schuss.Adam)
        assert equal(optimizer.params, expected.params)
        assert contents(optimizer.state_dict()["state"]) == contents(expected.state)

    run(program, 2)


def test_a_step_that_is_skipped_or_refused_leaves_the_state(tmp_path: Path) -> None:
    for nonfinite in ("skip", "raise"):
        ours, expected = map(stepped, makers("Adam", tmp_path, nonfinite=nonfinite))
        grads = [np.full_like(p, np.nan) for p in params()]
        for optimizer in (ours, expected):
            with nullcontext() if nonfinite == "skip" else pytest.raises(FloatingPointError):
                optimizer.step(grads)
        assert_same(ours, expected)


def test_state_is_saved_loaded_and_changed_between_steps(tmp_path: Path) -> None:
    in_files, in_memory = makers("Adam", tmp_path)
    ours, expected = stepped(in_files), stepped(in_memory)
    schuss.save(tmp_path / "c", ours.params, ours)
    more = gradients(ours.params)[0]

    def go_on(optimizer: Any) -> None:
        optimizer.step(more)
        optimizer.amsgrad = True  # another state
        optimizer.step(more)
        optimizer.amsgrad = False
        optimizer.step(more)

    go_on(expected)
    loaded = in_files(params())
    schuss.load(tmp_path / "c", loaded.params, loaded)
    from_dict = in_files([p.copy(order="K") for p in ours.params])
    from_dict.load_state_dict(ours.state_dict())
    for optimizer in (ours, loaded, from_dict):
        go_on(optimizer)
        assert_same(optimizer, expected)
    assert os.listdir(tmp_path) == ["c"]


# The disk.


def test_a_parameter_that_rests_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = makers("Adam", tmp_path)[0](params())
    moved: list[int] = []

    def counted(move: Callable[..., int], *args: Any) -> int:
        moved.append(move(*args))
        return moved[-1]

    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, partial(counted, getattr(os, name)))
    optimizer.step([*[None] * 2, np.ones(UNIT, np.float32), *[None] * 3])
    assert sum(moved) == 2 * 2 * 4 * UNIT  # two states are read and written


@linux
def test_state_takes_little_memory(tmp_path: Path) -> None:
    code = f"""
    import re, numpy as np, schuss
    from schuss.mpi import Sharded
    def used():
        with open("/proc/self/status") as status:
            return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", status.read())[1])
    param, grad = np.ones(1 << 25, np.float32), np.ones(1 << 25, np.float32)
    before = used()
    optimizer = Sharded(schuss.Adam, param, state_in={str(tmp_path)!r})
    for _ in range(2): optimizer.step(grad)
    print(optimizer.state_bytes >> 20, used() - before < 80 << 20)
    """
    assert ends_well(code) == "256 True\n"


@linux
def test_state_is_not_in_the_page_cache(tmp_path: Path) -> None:
    if os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("the folder is not on a disk: its files may be in the page cache alone")
    optimizer = stepped(makers("Adagrad", tmp_path, initial_accumulator_value=0.1)[0])
    state = optimizer.state["square_sum"][3]
    pages = np.zeros(state.nbytes // mmap.PAGESIZE, np.uint8)
    address = ctypes.c_void_p(state.ctypes.data)
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(state.nbytes), pages.ctypes) == 0
    assert not pages.any()


def test_a_group_is_added_without_space_for_the_states_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [{"params": params(), "lr": 0.1}]
    ours, expected = (make(deepcopy(given)) for make in makers("Adam", tmp_path))
    added = [np.ones(UNIT, np.float32)]
    sizes: list[int] = []
    allocate = MappedFile.new

    def new(folder: str, size: int) -> MappedFile:
        sizes.append(size)
        return allocate(folder, size)

    monkeypatch.setattr(MappedFile, "new", new)
    for optimizer in (ours, expected):
        grads = gradients(optimizer.params[0])[0]
        optimizer.step([grads])
        optimizer.add_group({"params": [p.copy() for p in added], "lr": 0.2})
        optimizer.step([grads, added])
    assert set(sizes) == {4 * UNIT}
    assert_same(ours, expected)


def test_files_have_no_name_and_go_with_the_optimizer(tmp_path: Path) -> None:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    optimizer = stepped(makers("Adam", tmp_path)[0])
    assert os.listdir(tmp_path) == []
    state = optimizer.state["m"]
    before = contents(state)
    del optimizer
    gc.collect()
    assert contents(state) == before  # arrays keep their file
    del state
    gc.collect()
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("call", [0, 3, 15], ids=["first", "later", "last"])
@pytest.mark.parametrize("name", ["preadv", "pwritev"])
def test_a_disk_that_fails_ends_the_optimizer(
    name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = makers("Adam", tmp_path)[0](params())
    move, calls, grads = getattr(os, name), count(), gradients(optimizer.params)[0]

    def fail(*args: Any) -> int:
        if next(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        return int(move(*args))

    with monkeypatch.context() as failing:
        failing.setattr(os, name, fail)
        with pytest.raises(OSError, match="Input/output error"):
            optimizer.step(grads)
    assert next(calls) > call
    refused = (
        partial(optimizer.step, grads),
        optimizer.state_dict,
        partial(schuss.save, tmp_path / "c", optimizer.params, optimizer),
    )
    for refuse in refused:
        with pytest.raises(RuntimeError, match=r"Input/output error.*last checkpoint"):
            refuse()


@pytest.mark.parametrize("disk", ["full_disk", "limited_files"])
def test_a_full_disk_is_an_error_of_the_constructor(
    disk: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(disk)
    message = r"state_in is '.*', expected a folder with space for 4,\d{3},\d{3} bytes"
    for each in params():
        before = each.copy()
        with pytest.raises(OSError, match=message):
            Sharded(schuss.Adam, np.ones(1_000_003, np.float32), state_in=folder)
        assert same_bits(each, before)
    assert os.listdir(folder) == []


NOT_FOLDERS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "a number": (lambda _: 5, TypeError, "state_in is a int, expected the path of a folder"),
    "nothing": (lambda p: p / "none", FileNotFoundError, "expected a folder that exists"),
    "a file": (lambda p: p / "file", NotADirectoryError, "file', expected a folder"),
}


@pytest.mark.parametrize("case", NOT_FOLDERS)
def test_what_is_no_folder_is_refused(case: str, tmp_path: Path) -> None:
    of, kind, message = NOT_FOLDERS[case]
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=message):
        Sharded(schuss.Adam, params(), state_in=of(tmp_path))


# What the system does not have.


@linux
def test_steps_are_the_same_without_direct_io(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(descriptor: int, command: int, *arguments: int) -> int:
        if arguments and arguments[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert_same(*map(stepped, makers("Adam", tmp_path)))


def test_steps_are_the_same_where_space_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert_same(*map(stepped, makers("Adam", tmp_path)))


IN_A_PROCESS = """
    import os, signal, sys, threading, time
    import numpy as np, schuss
    from schuss.mpi import Sharded
    grad = np.random.default_rng(0).standard_normal(3_000_000, dtype=np.float32)
    optimizer = Sharded(schuss.Adam, np.zeros_like(grad), state_in={folder!r})
    expected = schuss.Adam(np.zeros_like(grad))
"""


@needs_no_threads
def test_steps_are_the_same_where_no_thread_can_be_started(tmp_path: Path) -> None:
    code = """
    for each in (optimizer, expected):
        for _ in range(3): each.step(grad)
    print(np.array_equal(optimizer.params, expected.params))
    """
    begin = IN_A_PROCESS.format(folder=str(tmp_path))
    assert ends_well(dedent(NO_THREADS) + dedent(begin) + dedent(code)) == "True\n"


# Interruptions.


@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
def test_ctrl_c_waits_for_the_end_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, expected = map(stepped, makers("Adam", tmp_path))
    read, calls, grads = os.preadv, count(), gradients(ours.params)[0]

    def interrupted(*args: Any) -> int:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return int(read(*args))

    with monkeypatch.context() as interrupting:
        interrupting.setattr(os, "preadv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.step(grads)
    expected.step(grads)
    assert_same(ours, expected)


@fork
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")  # of JAX, if a test has imported it
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python, if there are threads
def test_the_child_of_a_fork_cannot_step_with_the_files_of_its_parent(tmp_path: Path) -> None:
    ours, expected = map(stepped, makers("Adam", tmp_path))
    grads = gradients(ours.params)[0]
    child = os.fork()
    if child == 0:
        try:
            ours.step(grads)
        except RuntimeError as error:
            os._exit(0 if "was forked" in str(error) else 1)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    for optimizer in (ours, expected):
        optimizer.step(grads)
    assert_same(ours, expected)


ENDS = {
    "the last line": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_ends_during_a_step_leaves_no_file(end: str, tmp_path: Path) -> None:
    code, status = ENDS[end]
    begin = IN_A_PROCESS.format(folder=str(tmp_path))
    forever = """
    def step():
        while True: optimizer.step(grad)
    threading.Thread(target=step, daemon=True).start()
    while optimizer.steps < 3: time.sleep(0.001)
    """
    done = script(dedent(begin) + dedent(forever) + code)
    assert (done.returncode, done.stderr) == (status, "")
    assert os.listdir(tmp_path) == []
