"""The instruction set level in use."""

import os

from schuss import _core


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
    """Return the instruction set levels that this processor supports, in ascending order.

    Returns
    -------
    list of str
        A prefix of "baseline", "avx2", "avx512" on x86-64; "baseline" on other processors.

    Examples
    --------
    >>> import schuss
    >>> schuss.available_simd()[0]
    'baseline'
    """
    return _core.available_simd()


def set_simd(level: str) -> None:
    """Set the instruction set level of the whole process. Results do not depend on it.

    The default is the best available level, or the level in the environment variable
    ``SCHUSS_SIMD``.

    Parameters
    ----------
    level : str
        One of `available_simd`.

    Raises
    ------
    ValueError
        If the level is unknown, or if this processor does not support it.

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


def configure_from_environment() -> None:
    """Set the level to that in the environment variable ``SCHUSS_SIMD``, if there is one."""
    level = os.environ.get("SCHUSS_SIMD")
    if level:
        _set_simd("SCHUSS_SIMD", level)
