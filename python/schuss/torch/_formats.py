"""The number formats of what belongs to a parameter: new tensors, and conversion of given ones."""

from dataclasses import dataclass
from typing import Any

import torch

from schuss._arrays import Array
from schuss.reference._masters import join
from schuss.reference._square_code import FEWEST
from schuss.torch._state8bit import (
    State8bit,
    array_of_blocks,
    dense_stride,
    encoded,
    filled,
    is_for,
)
from schuss.torch._tensors import array_of, computed_dtype

BITS = "master_bits"
"""The key in the state of a parameter."""

_MISSING = {"float32": torch.int16, "float24": torch.int8}


@dataclass(frozen=True)
class Formats:
    """The formats of one optimizer."""

    state_dtype: Any = None
    """A dtype of PyTorch or "8bit"; None: that of the computation."""
    master: str | None = None
    """The format of the values of bfloat16 parameters, "float32" or "float24"; None: bfloat16."""
    round_params: str = "nearest"

    def new_state(self, param: Any, first: float, *, nonnegative: bool) -> Any:
        """Return a new state of a parameter, filled with its first value."""
        if self._is_8bit(param):
            return filled(first, param, nonnegative=nonnegative)
        dtype = self._dtype(param)
        return torch.full_like(param, first, dtype=dtype, requires_grad=False)

    def converted(
        self, name: str, state: Any, param: Any, *, nonnegative: bool, copy: bool = False
    ) -> Any:
        """Return a given state in its format; `name` begins messages."""
        if not self._is_8bit(param):
            return state.to(param.device, self._dtype(param), copy=copy)
        if state.shape != param.shape or not state.is_floating_point():
            raise ValueError(
                f"{name} is {state.dtype} of shape {tuple(state.shape)}, expected a floating "
                f"point tensor of shape {tuple(param.shape)}, as its parameter is"
            )
        if not is_for(param, state, nonnegative=nonnegative):
            return encoded(state, param, nonnegative=nonnegative, name=name)
        return state.clone() if copy else state

    def missing_bits(self, name: str, bits: Any, param: Any, *, copy: bool = False) -> Any:
        """Return the bits that a parameter misses of its master: given ones, or else zeros.

        None if there is no master. `name` begins messages.
        """
        if self.master is None or param.dtype is not torch.bfloat16:
            return None
        bits = converted_bits(name, bits, _MISSING[self.master], param.shape)
        if bits is None:
            return torch.zeros_like(param, dtype=_MISSING[self.master], requires_grad=False)
        if copy or bits.stride() != dense_stride(param):
            return torch.empty_like(param, dtype=bits.dtype, requires_grad=False).copy_(bits)
        return bits

    def _is_8bit(self, param: Any) -> bool:
        return self.state_dtype == "8bit" and bool(param.numel() >= FEWEST)

    def _dtype(self, param: Any) -> Any:
        is_dtype = isinstance(self.state_dtype, torch.dtype)
        return self.state_dtype if is_dtype else computed_dtype(param)


def converted_bits(name: str, bits: Any, dtype: Any, shape: Any) -> Any:
    """Return the bits that a parameter misses in a dtype, int16 or int8, rounded to nearest.

    None if there are none. There are none after `torch.optim` has converted them to the dtype of
    the parameter; it has then also trained the parameter without them. `name` begins messages.
    """
    if getattr(bits, "dtype", None) not in _MISSING.values():
        return None
    if bits.shape != shape:
        raise ValueError(f"{name} has shape {tuple(bits.shape)}, expected {tuple(shape)}")
    if bits.dtype is dtype:
        return bits
    wide = bits.to(torch.int32)
    wide = wide << 8 if dtype is torch.int16 else ((wide + 128) >> 8).clamp(max=127)
    return wide.to(dtype)


def float32_value(param: Any, bits: Any) -> Any:
    """Return the float32 value of a parameter and the bits that it misses, in a new tensor."""
    if bits is None:
        return param.detach().to(torch.float32, copy=True)
    return torch.from_numpy(join(array_of("master", "parameter", param), bits.numpy()))


def memory_of(state: Any) -> Any:
    """Return the tensor that has the memory of a state."""
    return state.blocks if isinstance(state, State8bit) else state


def array_of_state(call: str, state: Any) -> Array:
    """Return an array that shares the memory of a state, or raise TypeError or ValueError."""
    if isinstance(state, State8bit):
        return array_of_blocks(state)
    if state.dtype in _MISSING.values():
        bits: Array = state.numpy()
        return bits
    return array_of(call, "state", state)
