"""What schuss runs on: the instruction set level and the threads, chosen when the library loads."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, overload

import numpy as np

from schuss import _core
from schuss._hyperparameters import count, flag
from schuss._interrupts import Deferred

__all__ = [
    "SharedThreads",
    "available_simd",
    "num_threads",
    "set_num_threads",
    "set_simd",
    "share_threads_with_blas",
    "show_config",
    "simd",
    "threads",
]


def simd() -> str:
    """Return the instruction set level in use.

    Returns
    -------
    str
        One of `available_simd`.

    Examples
    --------
    >>> import schuss
    >>> schuss.simd() in schuss.available_simd()
    True
    """
    return _core.simd()


def available_simd() -> list[str]:
    """Return the instruction set levels that this processor runs, from the least to the best.

    Returns
    -------
    list of str
        On x86-64 "baseline", "avx2" and "avx512", as far as they go; elsewhere "baseline".

    Examples
    --------
    >>> import schuss
    >>> schuss.available_simd()[0]
    'baseline'
    """
    return _core.available_simd()


def set_simd(level: str) -> None:
    """Use another instruction set level, in the whole process. No result depends on it.

    The best available level is in use from the start, unless the environment variable
    ``SCHUSS_SIMD`` names another.

    Parameters
    ----------
    level : str
        One of `available_simd`.

    Raises
    ------
    ValueError
        If the level is unknown, or this processor does not have it.

    Examples
    --------
    >>> import schuss
    >>> before = schuss.simd()
    >>> schuss.set_simd("baseline")
    >>> schuss.simd()
    'baseline'
    >>> schuss.set_simd(before)
    """
    _set_simd("set_simd: level", level)


def _set_simd(argument: str, level: str) -> None:
    try:
        _core.set_simd(level)
    except ValueError as error:
        raise ValueError(f"{argument} is {level!r}: {error}") from None


def set_simd_from_environment() -> None:
    """Use the level that ``SCHUSS_SIMD`` names, if it names one."""
    level = os.environ.get("SCHUSS_SIMD")
    if level:
        _set_simd("SCHUSS_SIMD", level)


def num_threads() -> int:
    """Return the number of threads that a step may use, the caller's among them.

    At first it is what ``SCHUSS_NUM_THREADS`` says, or else ``OMP_NUM_THREADS``, or else the number
    of processors that this process may use, by its affinity and by the quota of its container.
    threadpoolctl, where it is installed, knows it as the user API "schuss".

    Returns
    -------
    int
        From 1 to 1,024.

    Examples
    --------
    >>> import schuss
    >>> schuss.num_threads() >= 1
    True
    """
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Let steps use another number of threads, in the whole process. No result depends on it.

    Parameters
    ----------
    threads : int
        From 1 to 1,024, the caller's thread among them. There may be more than processors.

    Raises
    ------
    TypeError, ValueError
        If it is no such number.

    Examples
    --------
    >>> import schuss
    >>> before = schuss.num_threads()
    >>> schuss.set_num_threads(1)
    >>> schuss.num_threads()
    1
    >>> schuss.set_num_threads(before)
    """
    _core.set_num_threads(_thread_count("set_num_threads", "threads", threads))


@contextmanager
def threads(threads: int) -> Iterator[None]:
    """Let steps use another number of threads within a ``with`` block, in the whole process.

    Blocks that overlap on several Python threads do not nest: the last to end decides.

    Parameters
    ----------
    threads : int
        From 1 to 1,024.

    Raises
    ------
    TypeError, ValueError
        If it is no such number.

    Examples
    --------
    >>> import schuss
    >>> with schuss.threads(2):
    ...     schuss.num_threads()
    2
    """
    before = _core.set_num_threads(_thread_count("threads", "threads", threads))
    try:
        yield
    finally:
        _core.set_num_threads(before)


def _thread_count(call: str, name: str, threads: object) -> int:
    result = count(call, name, threads, least=1)
    if result > MOST_THREADS:
        raise ValueError(f"{call}: {name} is {result}, expected at most {MOST_THREADS}")
    return result


MOST_THREADS = 1024
CGROUPS, OWN_CGROUPS = "/sys/fs/cgroup", "/proc/self/cgroup"


def set_num_threads_from_environment() -> None:
    """Use as many threads as the environment asks for, or the processors allow."""
    asked = os.environ.get("SCHUSS_NUM_THREADS")
    if asked:
        try:
            threads = _thread_count("schuss", "SCHUSS_NUM_THREADS", int(asked))
        except ValueError:
            expected = f"an integer from 1 to {MOST_THREADS}"
            raise ValueError(f"SCHUSS_NUM_THREADS is {asked!r}, expected {expected}") from None
    else:
        # Other libraries define this one, as a list with an entry for each level of nesting.
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        threads = (
            int(first) if first.isdecimal() and 0 < len(first.lstrip("0")) < 9 else _processors()
        )
    _core.set_num_threads(min(threads, MOST_THREADS))


def _processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, min(processors, _quota() or processors))


def _quota() -> int | None:
    """Return the processors that the container's quota comes to, rounded up, if there is one.

    A group is bound by those around it too. In version 1 of control groups the processors have a
    hierarchy of their own.
    """
    quotas = []
    for line in _text(OWN_CGROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_1 = "cpu" in controllers.split(",")
        if not version_1 and controllers != "":
            continue
        root = os.path.join(CGROUPS, "cpu") if version_1 else str(CGROUPS)
        names = [name for name in path.split("/") if name]
        for depth in range(len(names) + 1):
            group = os.path.join(root, *names[:depth])
            if version_1:
                quota = _text(os.path.join(group, "cpu.cfs_quota_us"))
                period = _text(os.path.join(group, "cpu.cfs_period_us"))
            else:
                quota, _, period = _text(os.path.join(group, "cpu.max")).partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(-(-int(quota) // int(period)))
    return min(quotas, default=None)


def _text(path: str) -> str:
    # Without pathlib, which takes longer to import than all of schuss.
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # a signal's handler raised it
            raise
        return ""


def register_with_threadpoolctl() -> None:
    """Let threadpoolctl see and limit the threads of steps, if it is installed."""
    try:
        from schuss import _threadpoolctl
    except (ImportError, AttributeError):  # or it is older than 3.2, and knows no others
        return
    _threadpoolctl.register()


class SharedThreads:
    """What `share_threads_with_blas` did, and the way back; a context manager.

    Attributes
    ----------
    libraries : tuple of str
        The OpenBLAS libraries, by path, whose work schuss's threads now do, or no longer.

    Examples
    --------
    >>> import schuss
    >>> off = schuss.share_threads_with_blas(False)
    >>> off.libraries
    ()
    """

    def __init__(self, libraries: tuple[str, ...], served_before: frozenset[str]) -> None:
        self.libraries = libraries
        self._served_before = served_before

    def restore(self) -> None:
        """Give each library the threads that it had before."""
        for path in self.libraries:
            _core.serve_openblas(path, path in self._served_before)

    def __enter__(self) -> Self:
        """Return itself: the threads are shared already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give each library the threads that it had before."""
        self.restore()

    def __repr__(self) -> str:
        """Return the names of the libraries."""
        return f"<SharedThreads: {', '.join(map(os.path.basename, self.libraries))}>"


def share_threads_with_blas(share: bool = True) -> SharedThreads:
    """Let one crew of threads do the steps of schuss and the products of NumPy and SciPy.

    OpenBLAS's own threads stay awake for some tenths of a second after each product, in the way of
    a step that comes next. With one crew for both, a step has all cores. No result depends on it:
    OpenBLAS cuts its work as before.

    It serves the OpenBLAS libraries that are loaded: to serve SciPy's too, call it after
    ``import scipy.linalg``. ``SCHUSS_SHARE_BLAS=1`` in the environment shares from the start. The
    number of threads of a product is still OpenBLAS's (``OPENBLAS_NUM_THREADS``, threadpoolctl). As
    with OpenBLAS's own threads, a process must not fork while another thread is in a product:
    parent or child may wait in OpenBLAS forever. LU decompositions (``solve``, ``inv``, ``det``)
    stay with OpenBLAS's own threads: their work it does not hand out.

    Parameters
    ----------
    share : bool
        False gives OpenBLAS its own threads back.

    Returns
    -------
    SharedThreads
        What was done. As a context manager, and by its `restore`, it undoes it.

    Raises
    ------
    TypeError
        If `share` is no bool.
    RuntimeError
        If there is no OpenBLAS that lets others do its work (NumPy may use MKL or Accelerate, or an
        OpenBLAS before 0.3.28); nothing is changed then.

    References
    ----------
    OpenBLAS, ``openblas_set_threads_callback_function`` (since 0.3.28).

    Examples
    --------
    >>> import numpy as np, schuss
    >>> a = np.ones((300, 300))
    >>> try:
    ...     with schuss.share_threads_with_blas():
    ...         product = a @ a
    ... except RuntimeError:  # NumPy has another BLAS
    ...     product = a @ a
    >>> float(product[0, 0])
    300.0
    """
    flag("share_threads_with_blas", "share", share)
    found = _core.find_openblas()
    served = frozenset(path for path, _, _, is_served in found if is_served)
    wanted = (
        {path: refusal for path, _, refusal, _ in found} if share else dict.fromkeys(served, "")
    )
    changed = tuple(
        path
        for path, refusal in wanted.items()
        if not refusal and _core.serve_openblas(path, share)
    )
    if share and not changed:
        raise RuntimeError(f"share_threads_with_blas: {_why_not(wanted)}; nothing is changed")
    return SharedThreads(changed, served)


def _why_not(refusals: dict[str, str]) -> str:
    if refusals:
        return "; ".join(
            f"{os.path.basename(path)} {refusal}" for path, refusal in refusals.items()
        )
    if not sys.platform.startswith("linux"):
        return "OpenBLAS can be served on Linux only"
    blas: Any = np.show_config("dicts")
    name = blas.get("Build Dependencies", {}).get("blas", {}).get("name", "another BLAS")
    return f"no OpenBLAS is loaded (NumPy was built with {name}), expected one"


def share_blas_from_environment() -> None:
    """Share threads with BLAS if ``SCHUSS_SHARE_BLAS`` says so."""
    asked = os.environ.get("SCHUSS_SHARE_BLAS") or "0"
    if asked not in ("0", "1"):
        raise ValueError(f"SCHUSS_SHARE_BLAS is {asked!r}, expected '0' or '1'")
    if asked == "1":
        refusal = None
        with Deferred():  # what a signal's handler raises is no refusal
            try:
                share_threads_with_blas()
            except RuntimeError as error:
                refusal = error
        if refusal is not None:
            warnings.warn(f"SCHUSS_SHARE_BLAS is '1', but {refusal}", RuntimeWarning, stacklevel=2)


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, str]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, str] | None:
    """Print, or return, what schuss runs on.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        The configuration, each entry as it would be printed, if `mode` is "dicts".

    Raises
    ------
    ValueError
        If `mode` is neither.

    Examples
    --------
    >>> import schuss
    >>> schuss.show_config("dicts")["schuss"] == schuss.__version__
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode is {mode!r}, expected 'stdout' or 'dicts'")
    import platform  # takes longer to import than all of schuss

    config = {
        "schuss": _core.__version__,
        "simd": simd(),
        "available simd": ", ".join(available_simd()),
        "threads": str(num_threads()),
        "shares with": ", ".join(
            version for _, version, _, is_served in _core.find_openblas() if is_served
        )
        or "nobody",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name + ':':16}{value}")
    return None
