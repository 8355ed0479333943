"""The number of threads of a step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from schuss import _cgroups, _core
from schuss._hyperparameters import count

MAX_THREADS = _core.max_threads


def num_threads() -> int:
    """Return the maximum number of threads of a step, including the calling thread.

    It is also that of `ewma` and of mini-batches.

    The default is the value of ``SCHUSS_NUM_THREADS``, or else of ``OMP_NUM_THREADS``, or else the
    number of processors available to this process according to its CPU affinity and the quota of
    its container. threadpoolctl, if it is installed, controls it as the user API "schuss".

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
    """Set the number of threads for the whole process. Results do not depend on it.

    Parameters
    ----------
    threads : int
        From 1 to 1,024, including the calling thread. It can exceed the number of processors.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer in this range.

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
    """Set the number of threads for the whole process within a ``with`` block.

    Blocks that overlap on several Python threads do not nest: the block that ends last decides.

    Parameters
    ----------
    threads : int
        From 1 to 1,024.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer in this range.

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
    if result > MAX_THREADS:
        raise ValueError(f"{call}: {name} is {result}, expected at most {MAX_THREADS}")
    return result


def configure_from_environment() -> None:
    """Set the number of threads to that in the environment, or to that of the processors."""
    own = os.environ.get("SCHUSS_NUM_THREADS")
    # A list with an entry for each level of nesting.
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if own:
        try:
            threads = _thread_count("schuss", "SCHUSS_NUM_THREADS", int(own))
        except ValueError:
            expected = f"an integer from 1 to {MAX_THREADS}"
            raise ValueError(f"SCHUSS_NUM_THREADS is {own!r}, expected {expected}") from None
    elif openmp.isdecimal() and 0 < len(openmp.lstrip("0")) < 9:
        threads = int(openmp)
    else:
        threads = available_processors()
    _core.set_num_threads(min(threads, MAX_THREADS))


def available_processors() -> int:
    """Return the number of processors that this process can use."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, min(processors, _cgroups.quota() or processors))


def register_with_threadpoolctl() -> None:
    """Register the thread pool with threadpoolctl, if it is installed."""
    try:
        from schuss import _threadpoolctl
    except (ImportError, AttributeError):  # or older than 3.2, which cannot register others
        return
    _threadpoolctl.register()
