"""What schuss runs on: the instruction set level, chosen when the library loads."""

import os
from typing import Literal, overload

import numpy as np

from schuss import _core

__all__ = ["available_simd", "set_simd", "show_config", "simd"]


def simd() -> str:
    """Return the instruction set level in use.

    Examples
    --------
    >>> import schuss
    >>> schuss.simd() in schuss.available_simd()
    True
    """
    return _core.simd()


def available_simd() -> list[str]:
    """Return the instruction set levels that this processor runs, from the least to the best.

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
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name + ':':16}{value}")
    return None
