"""Regular files: opened safely for reading, and replaced atomically.

A file is written under a temporary name next to its path, by one or several processes, synced, and
renamed. If anything raises, or a process is killed, the path still names the old file or already
names the new one.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import FileIO

from schuss._errors import wrong_type
from schuss._interrupts import Deferred

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Each time this many bytes have been written, the system is advised that it does not need them in
# the page cache: it starts to write them to the disk, and drops those that are there. A new file is
# seldom read soon, and finding memory for it can take three times as long as the disk: on a virtual
# machine that has returned the pages of the previous file to the host.
_DROPPED = 1 << 23
# After this many bytes, a process waits for the disk, so that a slow one does not fill the cache.
_SYNCED = 1 << 30

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}

# Flags of os.open, 0 where the system lacks them. They are needed because a path that was checked
# can name another file by the time it is opened.
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def check_path(call: str, name: str, path: object) -> str:
    """Return a path that can name a file as a str, or raise TypeError or ValueError."""
    if not isinstance(path, str | os.PathLike):
        raise wrong_type(call, name, path, "a str or a path")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(
            f"{call}: {name} is a {type(path).__name__} of bytes, expected one of str (os.fsdecode)"
        )
    try:
        is_valid = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_valid = False
    if not is_valid or not os.path.basename(text):
        raise ValueError(f"{call}: {name} is {text!r}, expected the name of a file")
    return text


def exists(path: str) -> bool:
    """Return whether the path exists."""
    with Deferred():  # os.path.exists would take an OSError of a signal handler for a missing file
        return os.path.exists(path)


@contextmanager
def opened(call: str, path: str) -> Iterator[FileIO]:
    """Open a regular file for reading; IsADirectoryError or ValueError for anything else."""
    _check_is_regular(call, path, os.stat(path).st_mode)  # opening a device can have side effects
    with FileIO(path, opener=_opener(_NO_WAIT)) as file:
        _check_is_regular(call, path, os.fstat(file.fileno()).st_mode)
        yield file


def _opener(extra_flags: int) -> Callable[[str, int], int]:
    """Return an opener for FileIO; only the owner can read a file that it creates."""
    return lambda path, flags: os.open(path, flags | extra_flags, 0o600)


def _check_is_regular(call: str, path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        error = IsADirectoryError if stat.S_ISDIR(mode) else ValueError
        raise error(f"{call}: {path!r} is {kind}, expected a regular file")


class NewFile:
    """A file that this process writes to, and that only its owner can read.

    created: whether this process creates it; otherwise another one has done so.
    """

    def __init__(self, call: str, path: str, *, created: bool = True) -> None:
        self.call, self.path, self._process = call, path, os.getpid()
        mode, flags = ("x", _NO_LINKS) if created else ("r+", _NO_LINKS | _NO_WAIT)
        self.file = FileIO(path, mode, opener=_opener(flags))
        self.descriptor = self.file.fileno()
        self.kept = False
        """Whether the file stays after an error."""
        self._written = 0  # bytes

    @property
    def is_ours(self) -> bool:
        """Whether this process created it, and not the parent of a fork."""
        return os.getpid() == self._process

    def check_is_ours(self) -> None:
        """Raise RuntimeError in a child process: parent and child would write the same file."""
        if not self.is_ours:
            raise RuntimeError(
                f"{self.call}: the process was forked while it saved, expected only the parent "
                "to go on"
            )

    def write_at(self, start: int, data: bytes | memoryview) -> None:
        """Write all data at a position, in several system calls if necessary."""
        self.check_is_ours()
        rest = memoryview(data)
        while rest:
            count = _write_at(self.file, start, rest)
            start, rest = start + count, rest[count:]
        before, self._written = self._written, self._written + len(data)
        if before // _SYNCED < self._written // _SYNCED:
            self.sync()
        if before // _DROPPED < self._written // _DROPPED and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        _sync(self.descriptor)


def _write_at(file: FileIO, start: int, memory: memoryview) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file.fileno(), memory, start)
    file.seek(start)
    return file.write(memory)


@contextmanager
def shared(call: str, path: str) -> Iterator[NewFile]:
    """Open a new file that another process has created, and will rename."""
    try:
        new = NewFile(call, path, created=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            f"{call}: the ranks do not see the same folder, expected one that they share (or a "
            "path that ends in '.safetensors.index.json', for a file of each rank)",
            os.path.dirname(path),
        ) from None
    with new.file:
        _check_is_regular(call, path, os.fstat(new.descriptor).st_mode)
        yield new


@contextmanager
def replacing(call: str, path: str) -> Iterator[NewFile]:
    """Yield a new file that replaces the path at the end, or is deleted if anything raises."""
    with suppress(FileNotFoundError):
        _check_is_regular(call, path, os.stat(path).st_mode)
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    prefix = f".schuss-{sha256(os.fsencode(name)).hexdigest()[:16]}-"
    remove_left_behind(folder, lambda name: name.startswith(prefix))
    new = _create_locked(call, lambda: _temp_path(folder, prefix))
    try:
        with new.file:
            yield new
            new.sync()
            if os.name == "posix":
                _copy_rights(call, new.descriptor, path, prefix)
            new.check_is_ours()
            if fcntl is not None:  # while the lock is held
                os.replace(new.path, path)
        if fcntl is None:
            os.replace(new.path, path)
    except BaseException:
        if new.is_ours:
            with suppress(OSError):
                os.unlink(new.path)
        raise
    _sync_folder(folder)


@contextmanager
def created(call: str, path: str, like: str) -> Iterator[NewFile]:
    """Yield a new file of this path, which is deleted if anything raises, unless it is `kept`.

    like: the file from which it gets its rights, if that exists. As long as the context lasts, no
    other process takes the file for one that a killed process left behind.
    """
    new = _create_locked(call, lambda: path)
    try:
        with new.file:
            if os.name == "posix":
                _copy_rights(call, new.descriptor, os.path.realpath(like), f"{path}-")
            _sync_folder(os.path.dirname(path))
            yield new
    except BaseException:
        if new.is_ours and not new.kept:
            with suppress(OSError):
                os.unlink(path)
        raise


def remove_left_behind(folder: str, is_stale: Callable[[str], bool]) -> None:
    """Delete files of these names that no process is writing."""
    for name in os.listdir(folder):
        if is_stale(name):
            with suppress(OSError):  # in use, or deleted meanwhile
                _remove_if_stale(os.path.join(folder, name))


def _sync_folder(folder: str) -> None:
    if os.name == "posix":  # other systems write directory entries at once
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not support fsync
            raise


# Temporary files. A killed process leaves its temporary file behind, and the next save to the same
# path deletes it. The lock tells which files are in use: the system releases it when the process
# and the children that it forked meanwhile have ended. Windows has no such locks, but it does not
# delete open files. In a shared folder, other users can create any file with any name.


def _temp_path(folder: str, prefix: str) -> str:
    return os.path.join(folder, f"{prefix}{os.urandom(8).hex()}.tmp")


def _create_locked(call: str, new_path: Callable[[], str]) -> NewFile:
    while True:
        new = NewFile(call, new_path())
        is_locked_by_other = False
        if fcntl is not None:
            try:
                fcntl.flock(new.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_locked_by_other = True
            except OSError:  # without locks, stale files are not deleted either
                pass
        if not is_locked_by_other and os.path.lexists(new.path):
            return new
        new.file.close()  # another process has just deleted it as stale


def _remove_if_stale(path: str) -> None:
    if fcntl is None:
        os.unlink(path)
    elif _is_our_file(os.lstat(path)):  # files of other users are not even opened
        with FileIO(path, opener=_opener(_NO_LINKS | _NO_WAIT)) as file:
            if _is_our_file(os.fstat(file.fileno())):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def _is_our_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


# Permissions. The new file gets the owner, mode and POSIX ACL of the file that it replaces. If the
# system refuses some of it, fewer users have access. Other extended attributes are not copied.

_ACL = "system.posix_acl_access"


def _copy_rights(call: str, descriptor: int, path: str, prefix: str) -> None:
    """Give the new file the rights of the old one, or those of any new file if there is none."""
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        mode = _default_mode(os.path.dirname(path), prefix)
    else:
        _check_is_regular(call, path, old.st_mode)
        mode, same = stat.S_IMODE(old.st_mode), _copy_owner(descriptor, old)
        if not all(same):
            mode = _restricted(mode, *same)
        if not _copy_acl(descriptor, path, all(same)):
            mode &= 0o700
    with suppress(OSError):  # the file system does not store modes
        os.fchmod(descriptor, mode)


def _copy_owner(descriptor: int, old: os.stat_result) -> tuple[bool, bool]:
    """Set the owner and the group as far as allowed; return whether each is that of the old."""

    def same() -> tuple[bool, bool]:
        new = os.fstat(descriptor)
        return new.st_uid == old.st_uid, new.st_gid == old.st_gid

    for owner in (old.st_uid, -1):  # both, or the group alone
        if not all(same()):
            with suppress(OSError):
                os.fchown(descriptor, owner, old.st_gid)
    return same()


def _restricted(mode: int, same_owner: bool, same_group: bool) -> int:
    """Return a mode that gives nobody more rights after a change of the owner or the group."""
    owner, group, others = (mode >> shift & 0o7 for shift in (6, 3, 0))
    if not same_owner:  # the old owner now has the rights of the group or of others
        group, others = group & owner, others & owner
    if not same_group:  # members of the old group are others now, and the reverse
        group = others = group & others
    return owner << 6 | group << 3 | others


def _copy_acl(descriptor: int, path: str, same_owners: bool) -> bool:
    """Copy the ACL, or remove that of the new file if there is none; return whether it worked."""
    if not hasattr(os, "getxattr"):
        return True
    try:
        acl = _acl(path)
        if acl is not None and not same_owners:
            return False
        if acl is not None:
            os.setxattr(descriptor, _ACL, acl)
        elif _acl(descriptor) is not None:  # inherited from the folder
            os.removexattr(descriptor, _ACL)
    except OSError:
        return False
    return True


def _acl(file: str | int) -> bytes | None:
    try:
        return os.getxattr(file, _ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.ENOSYS):
            raise
        return None


def _default_mode(folder: str, prefix: str) -> int:
    """Return the mode of a new file in the folder, by the umask and the ACL of the folder."""
    flags, everyone = os.O_WRONLY | os.O_CLOEXEC, 0o666
    try:
        descriptor = os.open(folder, flags | os.O_TMPFILE, everyone)
    except (AttributeError, OSError):  # the system or the file system has no unnamed files
        path = _temp_path(folder, prefix)
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, everyone)
        os.unlink(path)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
