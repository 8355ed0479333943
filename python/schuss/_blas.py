"""Threads shared with OpenBLAS: one thread pool for the steps and for matrix products."""

import os
import sys
import warnings
from typing import Any, Self

import numpy as np

from schuss import _core
from schuss._hyperparameters import flag
from schuss._interrupts import Deferred


class SharedThreads:
    """The result of `share_threads_with_blas`; a context manager that undoes it.

    Attributes
    ----------
    libraries : tuple of str
        The paths of the OpenBLAS libraries that were switched to other threads.

    Examples
    --------
    >>> import schuss
    >>> off = schuss.share_threads_with_blas(False)
    >>> off.libraries
    ()
    """

    def __init__(self, libraries: tuple[str, ...], shared_before: frozenset[str]) -> None:
        self.libraries = libraries
        self._shared_before = shared_before

    def restore(self) -> None:
        """Give each library back the threads that it had before."""
        for path in self.libraries:
            _core.serve_openblas(path, path in self._shared_before)

    def __enter__(self) -> Self:
        """Return itself; the threads are shared already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give each library back the threads that it had before."""
        self.restore()

    def __repr__(self) -> str:
        """Return the names of the libraries."""
        return f"<SharedThreads: {', '.join(map(os.path.basename, self.libraries))}>"


def share_threads_with_blas(share: bool = True) -> SharedThreads:
    """Use one thread pool for the steps of schuss and for OpenBLAS.

    OpenBLAS's own threads keep spinning for some tenths of a second after each matrix product, and
    slow down the step that follows. With one thread pool for both, a step can use all cores.
    Results do not depend on it: OpenBLAS splits its work as before.

    Call it after the libraries are loaded: it applies to the OpenBLAS libraries that are loaded by
    then, and to that of SciPy only after ``import scipy.linalg``. ``SCHUSS_SHARE_BLAS=1`` in the
    environment shares the threads from the start. OpenBLAS still decides how many threads a product
    uses (``OPENBLAS_NUM_THREADS``, threadpoolctl). As with OpenBLAS's own threads, a process must
    not fork while another thread computes a product: the parent or the child can block in OpenBLAS
    forever. LU decompositions (``solve``, ``inv``, ``det``) keep using OpenBLAS's own threads.

    Parameters
    ----------
    share : bool
        False gives OpenBLAS its own threads back.

    Returns
    -------
    SharedThreads
        The change: its `restore` undoes it, and so does the end of a ``with`` block.

    Raises
    ------
    TypeError
        If `share` is not a bool.
    RuntimeError
        If no loaded OpenBLAS can use other threads (NumPy may use MKL or Accelerate, or an OpenBLAS
        older than 0.3.28); nothing is changed then.

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
    ... except RuntimeError:  # NumPy uses another BLAS
    ...     product = a @ a
    >>> float(product[0, 0])
    300.0
    """
    flag("share_threads_with_blas", "share", share)
    found = _core.find_openblas()
    shared = frozenset(path for path, _, _, is_shared in found if is_shared)
    refusals = {path: refusal for path, _, refusal, _ in found if share or path in shared}
    usable = [path for path, refusal in refusals.items() if not (share and refusal)]
    changed = tuple(path for path in usable if _core.serve_openblas(path, share))
    if share and not changed:
        raise RuntimeError(f"share_threads_with_blas: {_why_not(refusals)}; nothing is changed")
    return SharedThreads(changed, shared)


def _why_not(refusals: dict[str, str]) -> str:
    if refusals:
        return "; ".join(f"{os.path.basename(path)} {why}" for path, why in refusals.items())
    if not sys.platform.startswith("linux"):
        return "threads can be shared with OpenBLAS on Linux only"
    blas: Any = np.show_config("dicts")
    name = blas.get("Build Dependencies", {}).get("blas", {}).get("name", "another BLAS")
    return f"no OpenBLAS is loaded (NumPy was built with {name}), expected one"


def configure_from_environment() -> None:
    """Share threads with BLAS if ``SCHUSS_SHARE_BLAS`` is 1."""
    value = os.environ.get("SCHUSS_SHARE_BLAS") or "0"
    if value not in ("0", "1"):
        raise ValueError(f"SCHUSS_SHARE_BLAS is {value!r}, expected '0' or '1'")
    if value == "1":
        refusal = None
        with Deferred():  # so that no error of a signal handler is caught here
            try:
                share_threads_with_blas()
            except RuntimeError as error:
                refusal = error
        if refusal is not None:
            warnings.warn(f"SCHUSS_SHARE_BLAS is '1', but {refusal}", RuntimeWarning, stacklevel=2)
