"""The configuration of the process: instruction set, threads, and their sharing with BLAS."""

from typing import Literal, overload

import numpy as np

from schuss import _blas, _core, _simd, _threads
from schuss._blas import SharedThreads, share_threads_with_blas
from schuss._listing import public_names
from schuss._simd import available_simd, set_simd, simd
from schuss._threads import num_threads, set_num_threads, threads

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

__dir__ = public_names(__name__)


def configure_from_environment() -> None:
    """Apply the environment variables, and make the threads known to threadpoolctl."""
    for module in (_simd, _threads, _blas):
        module.configure_from_environment()
    _threads.register_with_threadpoolctl()


@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, str]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, str] | None:
    """Print, or return, the configuration of schuss.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        If `mode` is "dicts": the entries of the configuration, as they would be printed.

    Raises
    ------
    ValueError
        If `mode` is neither of them.

    Examples
    --------
    >>> import schuss
    >>> schuss.show_config("dicts")["schuss"] == schuss.__version__
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode is {mode!r}, expected 'stdout' or 'dicts'")
    import platform  # here, as its import takes longer than that of schuss

    shared = [version for _, version, _, is_shared in _core.find_openblas() if is_shared]
    config = {
        "schuss": _core.__version__,
        "simd": simd(),
        "available simd": ", ".join(available_simd()),
        "threads": str(num_threads()),
        "shares with": ", ".join(shared) or "nobody",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name + ':':16}{value}")
    return None
