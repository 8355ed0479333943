"""Files in the safetensors format: written and read piece by piece, whole or not at all.

The package safetensors reads them too, and is not needed: it writes from a copy of all arrays in
memory, where these go to the disk from where they are.
"""

import errno
import json
import os
import re
import stat
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import FileIO
from itertools import cycle
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from zlib import crc32

import numpy as np

from schuss._arrays import Array
from schuss._interrupts import Deferred

if TYPE_CHECKING:
    from queue import SimpleQueue

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DTYPES = {
    "bool": "BOOL",
    **{f"int{8 * size}": f"I{8 * size}" for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": f"U{8 * size}" for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"F{8 * size}" for size in (2, 4, 8)},
    "bfloat16": "BF16",
}
_NAMES = {said: name for name, said in _DTYPES.items()}
_SIZES = {said: np.dtype(name).itemsize for said, name in _NAMES.items() if said != "BF16"}
_SIZES["BF16"] = 2

# What is copied, hashed, written or read at once. The digest of a file is that of its header and
# of the CRC-32 of each piece of its tensors, so that several threads can hash; with SHA-256 of the
# pieces, saving took 1.3 to 1.5 times as long as the disk alone.
_PIECE = 1 << 22
_HASHERS = 2

# After how many bytes the system's cache lets go of what is on its way to the disk. A checkpoint is
# seldom read soon, and memory that has to be found for it takes long: three times as long as the
# disk, where a virtual machine has given back what the file before had.
_CACHED = 1 << 27

_LENGTH = 8  # bytes, of the length of the header
_ALIGNMENT = 64  # of the first tensor
_LONGEST_HEADER = 100_000_000  # as the package has it
_LONGEST_NAME = 1 << 16
_MOST_AXES = 64  # of an array of NumPy
_MOST_BYTES = (1 << 63) - 1

_DIGEST = "sha256"
_NO_DIGEST = "0" * 64


class Tensor(NamedTuple):
    """Where a file has a tensor, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def dtype_in_file(array: Array) -> str | None:
    """Return the format's name for the array's dtype; None if it has none."""
    dtype = array.dtype
    return _DTYPES.get(dtype.name) if dtype.isnative and not dtype.hasobject else None


# The path.


def check_path(call: str, name: str, path: object) -> str:
    """Return the path as a str, or raise TypeError or ValueError unless it may name a file."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{call}: {name} is a {type(path).__name__}, expected a str or a path")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(
            f"{call}: {name} is a {type(path).__name__} of bytes, expected one of str (os.fsdecode)"
        )
    try:
        known = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        known = False
    if not known or not os.path.basename(text):
        raise ValueError(f"{call}: {name} is {text!r}, expected the name of a file")
    return text


def exists(path: str) -> bool:
    """Whether anything has that name."""
    with Deferred():  # os.path takes what a handler raises for an error of the system
        return os.path.exists(path)


# Where the system has them: in the place of a file that was looked at, another may be by now.
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def _opener(more: int) -> Callable[[str, int], int]:
    """Return what opens a file with more flags; one that is made is for its owner alone."""
    return lambda path, flags: os.open(path, flags | more, 0o600)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def _check_is_file(call: str, path: str, mode: int) -> None:
    """Raise IsADirectoryError or ValueError unless the mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of a kind of its own")
        error = IsADirectoryError if stat.S_ISDIR(mode) else ValueError
        raise error(f"{call}: {path!r} is {kind}, expected a regular file")


# Writing.


def write(
    call: str,
    path: str,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
) -> None:
    """Write a file in the place of what is there, which stays until all of the new one is on disk.

    Whatever raises or kills, the path names the one or the other.
    """
    # As the package sorts them, so that each lies at a multiple of its item's size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    header = _header(tensors, metadata, _NO_DIGEST)
    if len(header) - _LENGTH > _LONGEST_HEADER:  # nobody would read it
        raise ValueError(
            f"{call}: the settings, with extra, take {len(header) - _LENGTH} bytes, expected at "
            f"most {_LONGEST_HEADER}"
        )
    longest = max(map(len, tensors), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"{call}: the name of an array has {longest} characters, expected at most "
            f"{_LONGEST_NAME}"
        )
    with Deferred() as signals, _replacing(call, path) as file:
        file.write(header)
        digest = _digest(header, _written(file, tensors.values(), signals))
        file.go_back()
        file.write(_header(tensors, metadata, digest))


def _header(tensors: Mapping[str, Array], metadata: Mapping[str, str], digest: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {**metadata, _DIGEST: digest}}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        entries[name] = {
            "dtype": dtype_in_file(array),
            "shape": array.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def _written(file: "_NewFile", arrays: Iterable[Array], signals: Deferred) -> Iterator[memoryview]:
    cached = 0
    for array in arrays:
        for piece in _pieces(array):
            signals.let_in()
            file.write(piece)
            cached += len(piece)
            if cached >= _CACHED:
                file.let_go()
                cached = 0
            yield piece


def _pieces(array: Array) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order: where they are if they lie so, or copies."""
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
        yield from (data[start : start + _PIECE] for start in range(0, array.nbytes, _PIECE))
        return
    step = _PIECE // array.itemsize
    for start in range(0, array.size, step):
        yield array.flat[start : start + step].view(np.uint8).data


# Queues in C and bare threads, as for mini-batches: Ctrl-C breaks Python's own locks.
_Lane = tuple["SimpleQueue[memoryview | None]", "SimpleQueue[int | None]"]


def _digest(header: bytes, pieces: Iterable[memoryview]) -> str:
    """Return the digest of a file of this header, none in it, and of these pieces as they come.

    When a piece is asked for, the memory of all but the last _HASHERS is free again.
    """
    whole, process = sha256(header), os.getpid()
    busy: deque[tuple[memoryview, _Lane | None]] = deque()  # in the order of their pieces

    def finish_first() -> None:
        piece, lane = busy.popleft()
        # A child that was forked meanwhile has none of the threads.
        crc = None if lane is None or os.getpid() != process else lane[1].get()
        whole.update((crc32(piece) if crc is None else crc).to_bytes(4, "little"))

    with _hashers() as lanes:
        for piece, lane in zip(pieces, cycle(lanes or [None])):
            if len(busy) == _HASHERS:
                finish_first()
            if lane is not None:
                lane[0].put(piece)
            busy.append((piece, lane))
        while busy:
            finish_first()
    return whole.hexdigest()


@contextmanager
def _hashers() -> Iterator[list[_Lane]]:
    """Give threads that hash what they are given: fewer, or none, where none can be started."""
    from queue import SimpleQueue  # not with the library

    lanes: list[_Lane] = []
    try:
        with suppress(RuntimeError):
            for _ in range(_HASHERS):
                lane: _Lane = SimpleQueue(), SimpleQueue()
                start_new_thread(_hash_pieces, lane)
                lanes.append(lane)
        yield lanes
    finally:
        for to_hash, _ in lanes:
            to_hash.put(None)


def _hash_pieces(
    to_hash: "SimpleQueue[memoryview | None]", hashed: "SimpleQueue[int | None]"
) -> None:
    while (piece := to_hash.get()) is not None:
        crc = None  # where memory runs out: the caller hashes then
        with suppress(MemoryError):
            crc = crc32(piece)
        hashed.put(crc)


class _NewFile:
    """A file that only the process writes to that began it, and that only its owner reads."""

    def __init__(self, call: str, path: str) -> None:
        self._call, self.path, self._process = call, path, os.getpid()
        self.file = FileIO(path, "x", opener=_opener(_NO_LINKS))

    @property
    def descriptor(self) -> int:
        """The system's number of the file."""
        return self.file.fileno()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that began it: a child has its place in the file too."""
        return os.getpid() == self._process

    def check_is_ours(self) -> None:
        """Raise RuntimeError in a child that was forked meanwhile."""
        if not self.is_ours:
            raise RuntimeError(
                f"{self._call}: the process was forked while it saved, expected the parent alone "
                "to go on"
            )

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it; the system may take it in parts."""
        self.check_is_ours()
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]

    def go_back(self) -> None:
        """Write at the beginning next."""
        self.check_is_ours()
        self.file.seek(0)

    def let_go(self) -> None:
        """Bring what was written to the disk, out of the system's cache."""
        if hasattr(os, "posix_fadvise"):
            _sync(self.descriptor)
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _replacing(call: str, path: str) -> Iterator[_NewFile]:
    """Give a new file to write to. It takes the path's place once it is on disk, or is no more."""
    with suppress(FileNotFoundError):
        _check_is_file(call, path, os.stat(path).st_mode)
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    prefix = f".schuss-{sha256(os.fsencode(name)).hexdigest()[:16]}-"
    _remove_left(folder, prefix)
    new = _begun(call, folder, prefix)
    try:
        with new.file:
            yield new
            _sync(new.descriptor)
            if os.name == "posix":
                _give_rights(call, new.descriptor, path, prefix)
            new.check_is_ours()
            if fcntl is not None:  # as long as it is locked
                os.replace(new.path, path)
        if fcntl is None:
            os.replace(new.path, path)
    except BaseException:
        if new.is_ours:
            with suppress(OSError):
                os.unlink(new.path)
        raise
    _sync_folder(folder)


# A process that is killed leaves what it has begun behind, and the next one to save there takes it
# away: it is not locked any more. A child that was forked meanwhile holds the lock as long as it
# lives. Where there are no such locks (Windows), a file that is open cannot be removed. In a folder
# that others write to, theirs may have any name, and be anything.


def _name_of_new(folder: str, prefix: str) -> str:
    return os.path.join(folder, f"{prefix}{os.urandom(8).hex()}.tmp")


def _begun(call: str, folder: str, prefix: str) -> _NewFile:
    """Return a new file, locked as long as its writer lives."""
    while True:
        new = _NewFile(call, _name_of_new(folder, prefix))
        taken = False
        if fcntl is not None:
            try:
                fcntl.flock(new.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = True
            except OSError:  # a file system without locks removes nothing either
                pass
        if not taken and os.path.lexists(new.path):
            return new
        new.file.close()  # another has just taken it for left behind


def _remove_left(folder: str, prefix: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(prefix):
            with suppress(OSError):  # it is in use, or no more
                _remove_if_left(os.path.join(folder, name))


def _remove_if_left(path: str) -> None:
    if fcntl is None:
        os.unlink(path)
    elif _is_left_by_us(os.lstat(path)):  # what others have is not even opened
        with FileIO(path, opener=_opener(_NO_LINKS | _NO_WAIT)) as file:
            if _is_left_by_us(os.fstat(file.fileno())):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def _is_left_by_us(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _sync_folder(folder: str) -> None:
    if os.name != "posix":  # others write names at once
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that does not need it, or has none
            raise


# Who may read and write the new file: who might the one whose place it takes; where the system does
# not let that be, fewer. Of extended attributes, it keeps what belongs to this: the POSIX ACL.

_ACL = "system.posix_acl_access"


def _give_rights(call: str, descriptor: int, path: str, prefix: str) -> None:
    """Give a private file the rights of that of this path, or those of any new one."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        _set_mode(descriptor, _usual_mode(os.path.dirname(path), prefix))
        return
    _check_is_file(call, path, there.st_mode)
    mode, same_owner, same_group = stat.S_IMODE(there.st_mode), *_give_owner(descriptor, there)
    same = same_owner and same_group
    if not same:
        owner, group, others = (mode >> shift & 0o7 for shift in (6, 3, 0))
        if not same_owner:  # who was the owner may be of the group or one of the others now
            group, others = group & owner, others & owner
        if not same_group:  # who was of the group is one of the others now, or the other way round
            group = others = group & others
        mode = owner << 6 | group << 3 | others
    if not _give_acl(descriptor, path, same):
        mode &= 0o700
    _set_mode(descriptor, mode)


def _set_mode(descriptor: int, mode: int) -> None:
    with suppress(OSError):  # the file system keeps no such modes
        os.fchmod(descriptor, mode)


def _give_owner(descriptor: int, there: os.stat_result) -> tuple[bool, bool]:
    """Give it the owner and the group if we may; return whether it has them."""
    for owner in (there.st_uid, -1):
        mine = os.fstat(descriptor)
        same = mine.st_uid == there.st_uid, mine.st_gid == there.st_gid
        if all(same):
            break
        with suppress(OSError):
            os.fchown(descriptor, owner, there.st_gid)
    mine = os.fstat(descriptor)
    return mine.st_uid == there.st_uid, mine.st_gid == there.st_gid


def _give_acl(descriptor: int, path: str, same_owners: bool) -> bool:
    """Give it the ACL, or none where there is none; return whether that could be."""
    if not hasattr(os, "getxattr"):
        return True
    try:
        acl = _acl_of(path)
        if acl is not None and not same_owners:
            return False
        if acl is not None:
            os.setxattr(descriptor, _ACL, acl)
        elif _acl_of(descriptor) is not None:  # which the folder gives to new files
            os.removexattr(descriptor, _ACL)
    except OSError:
        return False
    return True


def _acl_of(file: str | int) -> bytes | None:
    try:
        return os.getxattr(file, _ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.ENOSYS):
            raise
        return None


def _usual_mode(folder: str, prefix: str) -> int:
    """Return the mode that a new file has here, which the umask and the folder's ACL say."""
    flags, everyone = os.O_WRONLY | os.O_CLOEXEC, 0o666
    try:
        descriptor = os.open(folder, flags | os.O_TMPFILE, everyone)
    except (AttributeError, OSError):  # neither every system nor every file system has files so
        path = _name_of_new(folder, prefix)
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, everyone)
        os.unlink(path)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


# Reading.


class File:
    """A file open for reading, of which header and sizes are in order."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def __init__(self, call: str, path: str, file: FileIO, signals: Deferred) -> None:
        self._name, self._file, self._signals = f"{call}: {path!r}", file, signals
        self._memory: dict[str, Array] = {}  # the bytes of the tensors that are kept
        size = os.fstat(file.fileno()).st_size
        start = self._bytes_at(0, min(size, _LENGTH))
        length = int.from_bytes(start, "little")
        if size < _LENGTH or not 2 <= length <= min(size - _LENGTH, _LONGEST_HEADER):
            self.refuse("is cut short, or is no safetensors file")
        self._header = start + self._bytes_at(_LENGTH, length)
        try:
            self.metadata, self.tensors = _parsed(self._header[_LENGTH:])
        except (ValueError, RecursionError):
            self.refuse("has a header that is none of safetensors")
        expected = len(self._header) + sum(tensor.nbytes for tensor in self.tensors.values())
        if size != expected:
            how = "is cut short" if size < expected else "is too long"
            self.refuse(f"{how}: it has {size} bytes, expected {expected}")

    def read_tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Read all, once, and keep those wanted; ValueError if any byte is not as it was written.

        What is kept is what was verified, whatever others write to the file meanwhile.
        """
        said = self.metadata.get(_DIGEST, "")
        if not re.fullmatch("[0-9a-f]{64}", said):
            self.refuse("has no digest, expected one of all its bytes")
        # The header is compared as it stands: what JSON takes for the same is not.
        place = self._header.rfind(said.encode())
        blank = self._header[:place] + _NO_DIGEST.encode() + self._header[place + len(said) :]
        if place < 0 or _digest(blank, self._all_pieces(wanted)) != said:
            self.refuse("was altered, expected the bytes that its digest is of")

    def read(self, name: str) -> Array:
        """Return a tensor, which nobody else has, as an array; its dtype must be one of NumPy."""
        tensor = self.tensors[name]
        array: Array = self._memory[name].view(_NAMES[tensor.dtype]).reshape(tensor.shape)
        return array

    def read_into(self, name: str, array: Array) -> None:
        """Fill an array with a tensor of its shape and dtype."""
        bits = np.dtype(f"u{array.itemsize}")
        array.view(bits)[...] = self._memory[name].view(bits).reshape(array.shape)

    def differs(self, name: str, array: Array) -> bool:
        """Whether a tensor is another than an array of its shape and dtype, byte for byte."""
        bits = np.dtype(f"u{array.itemsize}")
        kept = self._memory[name].view(bits).reshape(array.shape)
        return not np.array_equal(array.view(bits), kept)

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError: the file has that problem."""
        raise ValueError(f"{self._name} {problem}") from None

    def _all_pieces(self, wanted: Callable[[str], bool]) -> Iterator[memoryview]:
        dropped = (tensor.nbytes for name, tensor in self.tensors.items() if not wanted(name))
        longest = min(max(dropped, default=0), _PIECE)
        # One for each hasher, and one to read into.
        buffers = deque(memoryview(bytearray(longest)) for _ in range(_HASHERS + 1))
        for name, tensor in self.tensors.items():
            keeps = wanted(name)
            if keeps:
                memory = self._memory[name] = np.empty(tensor.nbytes, np.uint8)
            for start in range(0, tensor.nbytes, _PIECE):
                self._signals.let_in()
                end = min(start + _PIECE, tensor.nbytes)
                piece = memory[start:end].data if keeps else buffers[0][: end - start]
                buffers.rotate()
                self._fill(len(self._header) + tensor.start + start, piece)
                yield piece

    def _bytes_at(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        self._fill(start, memoryview(data))
        return bytes(data)

    def _fill(self, start: int, memory: memoryview) -> None:
        while memory:
            count = _read_at(self._file, start, memory)
            if not count:
                self.refuse("became shorter while it was read")
            start, memory = start + count, memory[count:]


def _read_at(file: FileIO, start: int, memory: memoryview) -> int:
    if hasattr(os, "preadv"):  # which leaves a process that was forked its place in the file
        return os.preadv(file.fileno(), [memory], start)
    file.seek(start)
    return file.readinto(memory)


def _parsed(text: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a header's metadata, and its tensors in their order, or raise ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        _require(len(values) == len(pairs))
        return values

    entries = json.loads(
        text.decode(),
        object_pairs_hook=unique,
        parse_int=_size,
        parse_float=_refused,
        parse_constant=_refused,
    )
    _require(isinstance(entries, dict))
    metadata = entries.pop("__metadata__", {})
    _require(isinstance(metadata, dict))
    _require(all(isinstance(value, str) for value in metadata.values()))
    _require(max(map(len, entries), default=0) <= _LONGEST_NAME)
    tensors = sorted(
        ((name, _tensor(entry)) for name, entry in entries.items()),
        key=lambda item: (item[1].start, item[1].nbytes),
    )
    end = 0
    for _, tensor in tensors:
        _require(tensor.start == end)
        end += tensor.nbytes
    return metadata, dict(tensors)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _size(digits: str) -> int:
    _require(len(digits) <= len(str(_MOST_BYTES)))  # before it is made a number of
    return int(digits)


def _refused(text: str) -> NoReturn:
    raise ValueError


def _tensor(entry: Any) -> Tensor:
    _require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"})
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in _SIZES)
    _require(isinstance(shape, list) and len(shape) <= _MOST_AXES)
    _require(isinstance(offsets, list) and len(offsets) == 2)
    numbers = [*shape, *offsets]
    _require({*map(type, numbers)} == {int} and min(numbers) >= 0 and max(numbers) <= _MOST_BYTES)
    # NumPy has no array of more, even where another axis has no elements.
    _require(prod(filter(None, shape)) * _SIZES[dtype] <= _MOST_BYTES)
    tensor = Tensor(dtype, tuple(shape), offsets[0], prod(shape) * _SIZES[dtype])
    _require(tensor.nbytes == offsets[1] - offsets[0])
    return tensor


@contextmanager
def reading(call: str, path: str) -> Iterator[File]:
    """Open a file; ValueError, now or later, says what is wrong with it."""
    with Deferred() as signals:
        _check_is_file(call, path, os.stat(path).st_mode)  # or to open it might do something
        with FileIO(path, opener=_opener(_NO_WAIT)) as file:
            _check_is_file(call, path, os.fstat(file.fileno()).st_mode)
            yield File(call, path, file, signals)
