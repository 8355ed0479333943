"""How parameters in bfloat16 are rounded: to nearest, at random, or with a master.

A parameter with a master has the upper half of the bits of a float32 value, rounded to nearest. The
master has the lower half, as an integer with a sign; or the upper 8 of these 16 bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from schuss._arrays import Array, zeros_like_strided
from schuss._hyperparameters import choice, optional
from schuss.reference._masters import MASTERS

Masters: TypeAlias = list[Array | None]
"""In the order of the parameters; None for those in float32."""

_SLOT = 5  # in memory, after three states and the average
_checked_master = optional(partial(choice, among=(*MASTERS,)))


@dataclass(frozen=True)
class Rounding:
    """How the parameters of one optimizer are rounded."""

    master: str | None
    """The format of the values of which bfloat16 parameters are the rounding; None if of none."""
    round_params: str
    """Whether parameters in bfloat16 without a master are rounded to "nearest" or at "random"."""

    def new_masters(self, params: Sequence[Array]) -> Masters | None:
        """Return masters for parameters that are exact, if there are to be any."""
        if self.master is None:
            return None
        dtype = MASTERS[self.master]
        return [
            None if param.dtype == np.float32 else zeros_like_strided(param, _SLOT, dtype)
            for param in params
        ]


def rounding(
    call: str, master: Any, round_params: Any, dtypes: Sequence[str], copies: Any
) -> Rounding:
    """Return the rounding that the arguments ask for, or raise TypeError or ValueError.

    dtypes: the names of those of the parameters.
    """
    master = _checked_master(call, "master", master)
    round_params = choice(call, "round_params", round_params, among=("nearest", "random"))
    result, is_random = Rounding(master, round_params), round_params == "random"
    if master is None and not is_random:
        return result
    given = f"master is {master!r}" if master is not None else "round_params is 'random'"
    if master is not None and is_random:
        raise ValueError(
            f"{call}: round_params is 'random' where {given}, expected 'nearest': a master keeps "
            "the bits that rounding drops"
        )
    if master is not None and copies is not None:
        raise ValueError(
            f"{call}: copies are given where {given}, expected only one of them: parameters that "
            "have a master are the low-precision copies"
        )
    for dtype in dtypes:
        if dtype in ("bfloat16", "float32"):
            continue
        why = "it drops no bits"
        if dtype == "float16":
            why = (
                "float16 is not the upper half of a float32: keep parameters in float32, and pass "
                "copies='float16'"
            )
        raise ValueError(
            f"{call}: {given} where a parameter is {dtype}, expected parameters in bfloat16, "
            f"and others in float32 only ({why})"
        )
    if all(dtype == "float32" for dtype in dtypes):
        raise ValueError(
            f"{call}: {given} where no parameter is bfloat16, expected some: those in float32 drop "
            "no bits"
        )
    return result
