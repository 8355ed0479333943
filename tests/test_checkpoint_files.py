"""Checkpoint files: the format, damage, disks, rights, signals: one whole file or an error."""

import _thread
import errno
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from copy import deepcopy
from functools import partial
from hashlib import sha256
from itertools import count, cycle
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _digest
from support.arrays import leaves
from support.checkpoints import check_load_is_refused, refused, small_training, snapshot
from support.interruption import Interruption

safetensors_numpy = pytest.importorskip("safetensors.numpy")

LINUX = sys.platform == "linux"
posix = pytest.mark.skipif(os.name != "posix", reason="other systems have no such files or signals")
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root gives files to others"
)

# A piece of a file is read and hashed at a time; this is more than one, with more than one array.
LARGE = {"a": np.random.default_rng(0).standard_normal(600_000), "b": np.arange(30.0)}


def one_step(params: Any) -> Any:
    """Return an optimizer of copies of the parameters that has made a step."""
    optimizer = schuss.Momentum({name: array.copy() for name, array in params.items()})
    optimizer.step({name: np.ones_like(array) for name, array in params.items()})
    return optimizer


def fit(optimizer: Any, path: Any) -> None:
    grads = {name: np.zeros_like(array) for name, array in optimizer.params.items()}
    loss_and_grad: Any = lambda p, x: (0.0, grads)  # noqa: E731
    schuss.fit(loss_and_grad, optimizer.params, optimizer, np.zeros(3), checkpoint=path)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# The format.


def test_other_programs_read_it_as_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    layers: list[Any] = [{"W": np.ones((4, 3), "f"), "b": np.ones(3, "f")}, np.ones((), "f")]
    optimizer = schuss.Adam({"layers": layers}, average=0.5)
    optimizer.step({"layers": deepcopy(layers)})
    schuss.save(path, optimizer.params, optimizer)
    read = safetensors_numpy.load_file(path)
    expected = {
        "params/layers/0/W": optimizer.params["layers"][0]["W"],
        "params/layers/1": optimizer.params["layers"][1],
        "optimizer/m/layers/0/b": optimizer.state["m"]["layers"][0]["b"],
        "optimizer/average/layers/1": optimizer.average["layers"][1],
    }
    assert len(read) == 3 * 4
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert all(type(value) is str for value in header["__metadata__"].values())


# Damage.


def test_a_file_cut_short_anywhere_too_long_or_with_any_byte_altered_is_refused(
    tmp_path: Path,
) -> None:
    path, rng = tmp_path / "c", random.Random(0)
    optimizer, batches = small_training(path)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i])
        check_load_is_refused("cut short", path, optimizer, batches)
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << rng.randrange(8)]) + whole[i + 1 :])
        check_load_is_refused("", path, optimizer, batches)
    path.write_bytes(whole + b"\0")
    words = f"is too long: it has {len(whole) + 1} bytes, expected {len(whole)}"
    check_load_is_refused(words, path, optimizer)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads are not seen here")
@pytest.mark.parametrize("params", [LARGE, {"a": LARGE["b"]}], ids=["large", "small"])
@pytest.mark.parametrize("how", ["overwritten", "cut short", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_loaded_as_it_was_or_not_at_all(
    how: str, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, preadv = tmp_path / "c", os.preadv
    saved = one_step(params)
    schuss.save(path, saved.params, saved)
    good = path.read_bytes()
    reads = change_at = 0

    def change() -> None:
        if how == "overwritten":
            with open(path, "r+b") as file:
                file.seek(-640 if params is LARGE else -200, os.SEEK_END)
                file.write(bytes(200))
        elif how == "cut short":
            os.truncate(path, len(good) - 24)
        else:
            schuss.save(tmp_path / "other", {"a": np.ones(50), "b": np.ones(30)})
            os.replace(tmp_path / "other", path)

    def read(*arguments: Any) -> int:
        nonlocal reads
        if reads == change_at:
            change()
        reads += 1
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", read)
    outcomes = set()
    for change_at in count():
        path.write_bytes(good)
        reads = 0
        optimizer = one_step(params)
        before = snapshot(optimizer)
        try:
            schuss.load(path, optimizer.params, optimizer)
            outcomes.add("loaded")
            assert snapshot(optimizer) == snapshot(saved)
        except ValueError:
            outcomes.add("refused")
            assert snapshot(optimizer) == before
        if reads <= change_at:
            break
    assert outcomes == ({"loaded"} if how == "replaced" else {"loaded", "refused"})


def with_header(path: Path, text: str, size: int = 0) -> None:
    header = text.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)


def entry(dtype: str = '"U8"', shape: str = "[0]", offsets: str = "[0,0]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def an_a(**entries: str) -> str:
    return f'"a":{entry(**entries)}'


OURS = '"__metadata__":{"format":"schuss","version":"1","sha256":"%s"}' % ("0" * 64)
NINES = "9" * 4300
THREE = an_a(shape="[3]", offsets="[0,3]")


@pytest.mark.parametrize(
    "tensors",
    [
        an_a(shape="[" + ",".join([NINES] * 900) + "]"),
        an_a(shape=f"[{NINES}9]", offsets=f"[0,{NINES}9]"),
        an_a(shape=f"[{2**63}, 0]"),
        an_a(shape=f"[{2**32},{2**32},0]"),  # NumPy has no such array
        an_a(shape="[0" + ",1" * 64 + "]"),
        an_a(shape="[-1]", offsets="[0,-1]"),
        an_a(shape="[-1,-3]", offsets="[0,3]"),
        *(an_a(shape=f"[{one}]") for one in ("0.0", "1e400", "NaN", "false")),
        *(an_a(shape=f"[3,{one}]", offsets="[0,3]") for one in ("1.0", "true")),
        *(an_a(shape=shape) for shape in ("0", "{}", '"0"', "null", "[2]")),
        *(an_a(offsets=offsets) for offsets in ("[0]", "[0,0,0]", '"00"', "{}", "[1,1]")),
        *(an_a(offsets=offsets) for offsets in ("[0.0,0.0]", "[-1,-1]")),
        *(an_a(dtype=dtype) for dtype in ("[]", "7", "null", '"F128"', '["U8"]')),
        f"{an_a()},{an_a()}",
        f"{an_a()},{an_a(offsets='[1,1]').replace('a', 'b', 1)}",
        f"{THREE},{THREE.replace('a', 'b', 1)}",  # they share bytes
        an_a()[:-1] + ',"more":1}',
        an_a().replace('"a"', '"' + "a" * 70_000 + '"'),
        *('"a":[]', '"a":null', '"a":' + "[" * 99_999, '"a":' + "[" * 99_999 + "]" * 99_999),
        *('"__metadata__":{}', "[]", "7777", '{"__metadata__":[]}', '{"__metadata__":"7"}'),
        OURS.replace('"1"', "1").join("{}"),
    ],
    ids=lambda text: text[:50],
)
def test_an_invalid_header_is_refused_before_it_costs_time_or_memory(
    tensors: str, tmp_path: Path
) -> None:
    text = f"{{{OURS},{tensors}}}" if tensors.startswith('"') else tensors
    with_header(tmp_path / "c", text)
    with pytest.raises(ValueError, match=r"^load: .* has an invalid safetensors header$"):
        schuss.load(tmp_path / "c", np.ones(3))


@pytest.mark.parametrize("digest", ["\\ud800", "", "0" * 63, "G" * 64])
def test_an_invalid_digest_is_refused(digest: str, tmp_path: Path) -> None:
    ours = OURS.replace("0" * 64, digest)
    with_header(tmp_path / "c", f'{{{ours},"params":{entry()}}}')
    with pytest.raises(ValueError, match=r"^load: .* has no digest, expected one of all its byte"):
        schuss.load(tmp_path / "c", np.ones(0, np.uint8))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("params", "holds params of shape (4398046511104,), expected (3,) as it is here"),
        ("optimizer/m", "of shape (4398046511104,), expected that of a parameter"),
        ("others", "holds others, expected nothing of that name"),
        ("training/best/0", "of shape (4398046511104,), expected that of a parameter"),
        ("training/others", "holds training/others, expected nothing of that name"),
    ],
)
def test_a_huge_file_is_refused_by_its_header(name: str, words: str, tmp_path: Path) -> None:
    size = 1 << 42
    before = "" if name == "params" else f'"params":{entry(shape="[3]", offsets="[0,3]")},'
    start = 3 if before else 0
    huge = f'"{name}":{entry(shape=f"[{size}]", offsets=f"[{start},{start + size}]")}'
    try:
        with_header(tmp_path / "c", f"{{{OURS},{before}{huge}}}", start + size)
    except OSError:
        pytest.skip("no file can be that long here")
    w = np.ones(3, np.uint8)
    with refused(words, schuss.SGD(np.zeros(3))):
        schuss.load(tmp_path / "c", w)
    assert w.all()


# Paths.


def a_socket(path: Path) -> None:
    # Bound by its name alone: a socket's path must be short.
    with socket.socket(socket.AF_UNIX) as made, chdir(path.parent):
        made.bind(path.name)


OTHERS: dict[str, Callable[[Path], object]] = {
    "FIFO": lambda path: os.mkfifo(path),
    "socket": a_socket,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def calls_with(path: Any, optimizer: Any) -> dict[str, Callable[[], object]]:
    """Return the calls that take the path of a checkpoint, by the name of its argument."""
    return {
        "save: path": lambda: schuss.save(path, optimizer.params, optimizer),
        "load: path": lambda: schuss.load(path, optimizer.params, optimizer),
        "fit: checkpoint": lambda: fit(optimizer, path),
    }


def identity(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


@posix
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("linked", [False, True])
def test_a_path_of_another_kind_than_a_regular_file_is_refused_and_stays(
    kind: str, linked: bool, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    OTHERS[kind](tmp_path / "it" if linked else path)
    if linked:
        path.symlink_to("it")
    before, names = identity(path), os.listdir(tmp_path)
    optimizer = schuss.SGD({"w": np.zeros(5)}, lr=0.5)
    error = IsADirectoryError if kind == "folder" else ValueError
    for name, call in calls_with(path, optimizer).items():
        message = f"^{name.partition(':')[0]}: '.*/c' is a {kind}, expected a regular file$"
        with pytest.raises(error, match=message):
            call()
        assert (identity(path), os.listdir(tmp_path)) == (before, names)
        assert (optimizer.steps, optimizer.lr) == (0, 0.5)


class OfBytes:
    def __fspath__(self) -> bytes:
        return b"c"


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", ValueError, "is '', expected the name of a file"),
        ("c/", ValueError, "is 'c/', expected the name of a file"),
        ("a\0b", ValueError, r"is 'a\x00b', expected the name of a file"),
        ("\ud800", ValueError, r"is '\ud800', expected the name of a file"),
        (OfBytes(), TypeError, "is a OfBytes of bytes, expected one of str"),
        (b"c", TypeError, "is a bytes, expected a str or a path"),
    ],
)
def test_a_path_that_cannot_name_a_file_is_refused(
    path: Any, error: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = schuss.SGD({"w": np.zeros(5)})
    for name, call in calls_with(path, optimizer).items():
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(f"{name} {words}")
    assert (os.listdir(tmp_path), optimizer.steps) == ([], 0)


def test_a_file_is_saved_where_its_path_or_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    os.symlink("there/c", tmp_path / "link")
    schuss.save(tmp_path / "link", np.ones(3))
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "there") == ["c"]
    names: list[Any] = ["c" * 255, "\udcff"]  # as long as possible, and bytes that are not UTF-8
    for name in names:
        schuss.save(os.path.join(tmp_path, name), np.ones(3))
        schuss.load(os.path.join(tmp_path, name), w := np.zeros(3))
        assert w.all()
    with pytest.raises(OSError, match="too long"):
        schuss.save(tmp_path / ("c" * 256), np.ones(3))
    with pytest.raises(FileNotFoundError):
        schuss.save(tmp_path / "nowhere" / "c", np.ones(3))
    with pytest.raises(FileNotFoundError):
        schuss.load(tmp_path / "none", np.ones(3))
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "link", "there"])


# Errors and kills while it is saved: there is a whole checkpoint.

SAVE_FOREVER = """
import sys, numpy as np, schuss
params = [np.zeros(200_000), np.zeros(70_000, np.float32)]
optimizer = schuss.Momentum(params, lr=1.0, beta=0.0)
grads = [np.full_like(p, -1) for p in params]
if len(sys.argv) > 2:
    schuss.load(sys.argv[1], params, optimizer)
print("ready", flush=True)
while True:
    optimizer.step(grads)
    schuss.save(sys.argv[1], params, optimizer, extra={"steps": optimizer.steps})
    print(optimizer.steps, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_process_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, program = tmp_path / "c.safetensors", tmp_path / "forever.py"
    program.write_text(SAVE_FOREVER)
    params: list[Any] = [np.zeros(200_000), np.zeros(70_000, np.float32)]
    optimizer = schuss.Momentum(params, lr=1.0, beta=0.0)
    rng, reached, took = random.Random(0), 0, 0.0
    for _ in range(100):
        command = [sys.executable, str(program), str(path), *["go on"] * path.exists()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for _ in range(rng.randrange(3)):
            start = time.perf_counter()
            reached = int(child.stdout.readline())  # a step that was saved is never lost again
            took = time.perf_counter() - start
        time.sleep(rng.random() * took)  # kill it during the next save, on any disk
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        if reached == 0 and not path.exists():
            continue
        kept = schuss.load(path, params, optimizer)
        # Each element counts the steps: all are of the same moment.
        assert kept["steps"] == optimizer.steps >= reached
        assert all(np.all(array == optimizer.steps) for array in params)
        assert all(np.all(array == -1) for array in leaves(optimizer.state))
        reached = optimizer.steps
    assert reached >= 50  # the children made more saves
    schuss.save(path, params, optimizer)
    assert sorted(os.listdir(tmp_path)) == [path.name, program.name]


@pytest.fixture
def failing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on a disk that fails at the last moment."""

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 1 << 20:
            raise OSError(errno.EIO, "No space left")

    monkeypatch.setattr(os, "fsync", fsync)
    return tmp_path


@pytest.mark.parametrize("disk", ["full_disk", "limited_files", "failing_sync"])
def test_a_disk_that_takes_no_more_is_an_error_and_the_old_checkpoint_stays(
    disk: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(disk) / "c"
    schuss.save(path, np.arange(1000.0))
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"No space left|File too large"):
        schuss.save(path, np.ones(1_000_000))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@posix
def test_bytes_are_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fsync, replace = [], os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("fsync folder" if folder else "fsync")
        fsync(descriptor)

    def record_replace(*arguments: Any) -> None:
        calls.append("replace")
        replace(*arguments)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    schuss.save(tmp_path / "c", np.ones(3))
    assert calls == ["fsync", "replace", "fsync folder"]


def test_threads_that_save_to_one_path_do_not_mix(tmp_path: Path) -> None:
    def save_often(value: float) -> None:
        w = np.full(300_000, value)
        for _ in range(15):
            schuss.save(tmp_path / "c", w)

    with ThreadPoolExecutor(3) as pool:
        savers = [pool.submit(save_often, float(i)) for i in range(3)]
        w = np.zeros(300_000)
        while not all(saver.done() for saver in savers):
            if (tmp_path / "c").exists():
                schuss.load(tmp_path / "c", w)
                assert np.all(w == w[0])
        for saver in savers:
            saver.result()
    assert os.listdir(tmp_path) == ["c"]


@posix
def test_file_systems_without_locks_or_syncs_that_write_in_parts_have_checkpoints_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def fails(number: int) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    def in_parts(descriptor: int, memory: list[memoryview], start: int) -> int:
        return os.readv(descriptor, [memory[0][:700]]) if os.lseek(descriptor, start, 0) >= 0 else 0

    values, pwrite = np.arange(1000.0), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda d, data, start: pwrite(d, data[:700], start))
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    monkeypatch.setattr(os, "preadv", in_parts, raising=False)
    schuss.save(tmp_path / "c", values)
    schuss.load(tmp_path / "c", w := np.zeros(1000))
    np.testing.assert_array_equal(w, values)


# Files that a killed process left behind, and those of others.


@posix
def test_files_left_behind_are_removed_and_those_of_others_are_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    prefix = f".schuss-{sha256(path.name.encode()).hexdigest()[:16]}-"
    theirs = [f"{prefix}{kind}.tmp" for kind in [*OTHERS, "link", "dangling"]]
    for name, make in zip(theirs, OTHERS.values(), strict=False):
        make(tmp_path / name)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / theirs[-2]).symlink_to("precious")
    (tmp_path / theirs[-1]).symlink_to("nowhere")
    if os.geteuid() == 0:
        theirs.append(f"{prefix}of another.tmp")
        (tmp_path / theirs[-1]).write_text("")
        os.chown(tmp_path / theirs[-1], 1234, 1234)
    (tmp_path / f"{prefix}ours.tmp").write_text("left behind")
    opened: list[str] = []
    real = os.open

    def record(name: Any, *arguments: Any, **options: Any) -> int:
        opened.append(str(name))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", record)
    schuss.save(path, np.ones(3))
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, "c", "precious"])
    assert not [name for name in opened if os.path.basename(name) in theirs]
    assert (tmp_path / "precious").read_text() == "precious"


@posix
def test_a_new_file_that_another_saver_takes_for_one_left_behind_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock, fsync = fcntl.flock, os.fsync
    lost: list[str] = []

    def lock_of_the_other(file: Any, how: int) -> None:
        if not lost:
            lost.append(file.name)
            raise BlockingIOError
        flock(file, how)

    def removed_by_the_other(descriptor: int) -> None:
        if os.path.exists(lost[0]):
            os.unlink(lost[0])
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", lock_of_the_other)
    monkeypatch.setattr(os, "fsync", removed_by_the_other)
    schuss.save(tmp_path / "c", np.ones(3))
    assert (len(lost), os.listdir(tmp_path)) == (1, ["c"])


# Rights.


@posix
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o604, 0o444, 0o666, 0o200, 0o777])
@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
@pytest.mark.parametrize("has_tmpfile", [False, True])
def test_a_file_is_private_until_it_has_the_mode_of_the_one_before(
    mode: int | None, umask: int, has_tmpfile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    seen: set[int] = set()
    if mode is not None:
        path.write_text("old")
        path.chmod(mode)

    def look(name: str) -> None:
        real = getattr(os, name)

        def looks(*arguments: Any, **options: Any) -> Any:
            for each in os.scandir(tmp_path):
                found = stat.S_IMODE(each.stat(follow_symlinks=False).st_mode)
                if each.name != "c":
                    seen.add(found)
                elif mode is not None:
                    assert found == mode
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, looks)

    before = os.umask(umask)
    try:
        if has_tmpfile:
            for name in ("open", "fsync", "fchmod", "unlink", "lstat", "stat"):
                look(name)
            monkeypatch.setattr(os, "umask", None)  # it is the whole process's
        else:  # the usual mode is that of a file that is made for a moment
            monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        schuss.save(path, np.ones(3))
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert seen == ({0o600} if has_tmpfile else set())
    assert mode_of(path) == (0o666 & ~umask if mode is None else mode)
    assert os.listdir(tmp_path) == ["c"]


@as_root
@pytest.mark.parametrize(
    ("may", "mode", "expected"),
    [
        ("both", 0o640, 0o640),
        ("group", 0o664, 0o664),
        ("group", 0o460, 0o440),
        ("group", 0o006, 0o000),
        ("none", 0o640, 0o600),
        ("none", 0o664, 0o644),
        ("none", 0o604, 0o600),
        ("none", 0o266, 0o222),
    ],
)
def test_a_file_keeps_its_owner_or_is_open_to_fewer(
    may: str, mode: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "c", os.fchown
    path.write_text("old")
    os.chown(path, 1234, 2345)
    path.chmod(mode)

    def fchown(descriptor: int, owner: int, group: int) -> None:
        if may == "none" or (may == "group" and owner != -1):
            raise PermissionError(1, "Operation not permitted")
        real(descriptor, owner, group)

    monkeypatch.setattr(os, "fchown", fchown)
    schuss.save(path, np.ones(3))
    owner, group = {"both": (1234, 2345), "group": (0, 2345), "none": (0, 0)}[may]
    assert (path.stat().st_uid, path.stat().st_gid) == (owner, group)
    assert mode_of(path) == expected


ACL = "system.posix_acl_access"


def an_acl(group: int, reader: int, mask: int) -> bytes:
    """Return an ACL that gives rights to one more user, 1234."""
    entries = [(1, 6, -1), (2, reader, 1234), (4, group, -1), (16, mask, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def acl_of(path: Path) -> bytes | None:
    return os.getxattr(path, ACL) if ACL in os.listxattr(path) else None


@pytest.fixture
def with_acls(tmp_path: Path) -> Path:
    """Return a folder in which files may have ACLs."""
    try:
        (tmp_path / "try").write_text("")
        os.setxattr(tmp_path / "try", ACL, an_acl(0, 4, 4))
    except (AttributeError, OSError):
        pytest.skip("files have no POSIX ACLs here")
    (tmp_path / "try").unlink()
    return tmp_path


def test_a_file_keeps_its_acl(with_acls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_acls / "c"
    path.write_text("old")
    os.setxattr(path, ACL, an_acl(0, 4, 6))
    before = acl_of(path)
    schuss.save(path, np.ones(3))
    assert (acl_of(path), mode_of(path)) == (before, 0o660)

    def not_supported(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    # The mode has the most that an ACL allows: without the ACL, the group would get more rights.
    monkeypatch.setattr(os, "setxattr", not_supported)
    schuss.save(path, np.ones(3))
    assert (acl_of(path), mode_of(path)) == (None, 0o600)


def test_the_acl_that_a_folder_gives_to_new_files_is_for_new_files(with_acls: Path) -> None:
    (with_acls / "plain").write_text("old")
    (with_acls / "plain").chmod(0o640)
    os.setxattr(with_acls, "system.posix_acl_default", an_acl(0, 4, 6))
    (with_acls / "new").write_text("")
    schuss.save(with_acls / "plain", np.ones(3))
    assert (acl_of(with_acls / "plain"), mode_of(with_acls / "plain")) == (None, 0o640)
    schuss.save(with_acls / "c", np.ones(3))
    assert acl_of(with_acls / "c") == acl_of(with_acls / "new")
    assert mode_of(with_acls / "c") == mode_of(with_acls / "new")


# Signals.


def time_is_up(*_: object) -> None:
    raise TimeoutError("too long")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if LINUX else 0


def meets_a_timeout(n: int, call: Callable[[], object]) -> bool:
    """Let a handler raise at the n-th line; it must reach the caller, and nothing stay open."""
    descriptors = open_descriptors()
    handler = signal.signal(signal.SIGUSR1, time_is_up)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    interruption, raised = Interruption(n, signal.SIGUSR1), False
    try:
        with interruption:
            call()
    except TimeoutError:
        raised = True
    assert handlers == [signal.getsignal(number) for number in signal.valid_signals()]
    signal.signal(signal.SIGUSR1, handler)
    assert raised == interruption.sent
    assert open_descriptors() == descriptors
    return raised


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_timeout_at_any_line_of_save_is_raised_and_finds_all_or_nothing_saved(
    there: bool, tmp_path: Path
) -> None:
    path, seen = tmp_path / "c", []
    old, new = (schuss.SGD(np.full(3, value)) for value in (1.0, 2.0))
    schuss.save(path, new.params, new)
    after = path.read_bytes()
    for n in count(1):
        path.unlink(missing_ok=True)
        if there:
            schuss.save(path, old.params, old)
            path.chmod(0o640)
        before = path.read_bytes() if there else None
        met = meets_a_timeout(n, lambda: schuss.save(path, new.params, new))
        assert os.listdir(tmp_path) in ([], ["c"])
        seen.append(path.read_bytes() if path.exists() else None)
        assert seen[-1] in (before, after)
        assert not there or mode_of(path) == 0o640
        if not met:
            break
    assert len(seen) > 100
    assert seen[0] == before
    assert seen[-1] == seen[-2] == after


@posix
@pytest.mark.parametrize("alone", [False, True])
def test_a_timeout_at_any_line_of_load_is_raised_and_finds_all_or_nothing_loaded(
    alone: bool, tmp_path: Path
) -> None:
    def fresh() -> Any:
        optimizer = schuss.Adam({"W": np.ones(3), "b": np.ones((2, 2)).T}, lr=0.5)
        optimizer.step({"W": np.ones(3), "b": np.ones((2, 2))})
        return optimizer

    saved, seen = fresh(), []
    saved.lr = 0.25
    saved.step({"W": np.ones(3), "b": np.ones((2, 2))})
    schuss.save(tmp_path / "c", saved.params, saved)
    expected = fresh()
    schuss.load(tmp_path / "c", expected.params, None if alone else expected)
    allowed = [snapshot(fresh()), snapshot(expected)]
    assert alone or allowed[1] == snapshot(saved)
    for n in count(1):
        optimizer = fresh()
        load = partial(schuss.load, tmp_path / "c", optimizer.params, None if alone else optimizer)
        met = meets_a_timeout(n, load)
        seen.append(allowed.index(snapshot(optimizer)))
        if not met:
            break
    assert len(seen) > 100
    assert (seen[0], seen[-1]) == (0, 1)
    assert seen == sorted(seen)


@posix
def test_every_signal_that_came_is_handled_once_all_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
    handled: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        handled.append(number)
        raise TimeoutError(number)

    real = os.replace

    def press(*arguments: Any) -> None:
        for number in numbers:
            signal.raise_signal(number)
        assert handled == []
        real(*arguments)

    before = [signal.signal(number, note) for number in numbers]
    monkeypatch.setattr(os, "replace", press)
    with pytest.raises(TimeoutError):
        schuss.save(tmp_path / "c", np.ones(3))
    for number, handler in zip(numbers, before, strict=True):
        assert signal.signal(number, handler) is note
    assert sorted(handled) == sorted(numbers)
    schuss.load(tmp_path / "c", w := np.zeros(3))
    assert w.all()


# Threads and memory.


@pytest.mark.parametrize("started", [0, 1, "without memory"])
def test_where_threads_cannot_be_started_or_have_no_memory_the_caller_hashes(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, caller = np.random.default_rng(0).standard_normal(3_000_000), _thread.get_ident()
    schuss.save(tmp_path / "with", values)
    left, start_new_thread, crc32 = 0, _thread.start_new_thread, zlib.crc32

    def start(*arguments: Any) -> int:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        return start_new_thread(*arguments)

    def crc32_of_the_caller(piece: memoryview) -> int:
        if _thread.get_ident() != caller:
            raise MemoryError
        return crc32(piece)

    if started == "without memory":
        monkeypatch.setattr(_digest, "crc32", crc32_of_the_caller)
    else:
        monkeypatch.setattr(_digest, "start_new_thread", start)
        left = started
    schuss.save(tmp_path / "without", values)
    assert (tmp_path / "without").read_bytes() == (tmp_path / "with").read_bytes()
    left = 0 if started == "without memory" else started
    schuss.load(tmp_path / "without", w := np.zeros(3_000_000))
    np.testing.assert_array_equal(w, values)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads are not seen here")
def test_small_arrays_between_large_ones_share_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, reads, preadv = np.random.default_rng(0), 0, os.preadv
    shapes = [(), (0, 3), (7,), (3, 5)]
    layouts: list[Callable[[Any], Any]] = [np.array, np.asfortranarray, np.flip]
    params = {}
    for i, dtype in zip(range(3000), cycle(["f4", "f8", "i2", "?", "c8"]), strict=False):
        values = rng.integers(0, 100, shapes[i % 4] if i % 600 else (40, 1000)).astype(dtype)
        params[str(i)] = layouts[i % 3](values)
    schuss.save(tmp_path / "c", params, extra={"small": np.arange(5)})

    def read(*arguments: Any) -> int:
        nonlocal reads
        reads += 1
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", read)
    into = {name: np.zeros_like(array) for name, array in params.items()}
    extra = schuss.load(tmp_path / "c", into)
    assert reads < 40
    for name, array in params.items():
        np.testing.assert_array_equal(into[name], array)
    np.testing.assert_array_equal(extra["small"], np.arange(5))
    assert extra["small"].base is None or extra["small"].base.nbytes == 40


PEAK = """
import os, sys, numpy as np, schuss
w = np.ones(16 << 20, np.float32)
optimizer = schuss.Momentum([w, np.ones((1 << 20, 8), np.float32).T])
optimizer.step([w * 0, np.zeros((8, 1 << 20), np.float32)])  # or the state has no memory yet
extra = {"buffer": np.ones(32 << 20, np.uint8)}
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
def peak_of(call, *args, **options):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what is used now
    before = status("VmRSS")
    call(sys.argv[1], *args, **options)
    return status("VmHWM") - before
for call in (schuss.save, schuss.load):
    call(sys.argv[1], np.ones(3))
print(peak_of(schuss.save, optimizer.params, optimizer, extra=extra))
print(peak_of(schuss.load, optimizer.params, optimizer))
print(os.stat(sys.argv[1]).st_size >> 10)
"""


@pytest.mark.skipif(not LINUX, reason="only Linux has /proc")
def test_saving_takes_no_memory_for_the_arrays_and_loading_as_much_as_they_have(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", PEAK, str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    saving, loading, whole = map(int, done.stdout.split())  # in KiB
    extra = 32 << 10  # `load` returns it
    assert whole > 7 * extra
    assert saving < whole / 4
    assert loading - extra < whole * 5 / 4  # a copy of the arrays that are loaded
