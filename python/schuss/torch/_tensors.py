"""Tensors as arrays, without a copy, and the dtypes of the tensors that belong to them."""

from typing import Any

import numpy as np
import torch

from schuss._arrays import Array

# NumPy has no bfloat16 of its own. The core knows this dtype by the name of its field.
_BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
HALVES = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *HALVES)


def array_of(call: str, what: str, tensor: Any) -> Array:
    """Return an array that shares the tensor's memory, or raise TypeError or ValueError."""
    array: Array
    try:
        if tensor.dtype is torch.bfloat16:
            array = tensor.detach().view(torch.int16).numpy().view(_BFLOAT16)
        else:
            array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    except (TypeError, RuntimeError):
        raise _refusal(call, what, tensor) from None
    if tensor.dtype not in _DTYPES:
        raise _refusal(call, what, tensor)
    return array


def _refusal(call: str, what: str, tensor: Any) -> Exception:
    where = f"{call}: a {what} of shape {tuple(tensor.shape)}"
    if tensor.dtype not in _DTYPES:
        known = "float32, float64, float16 or bfloat16"
        return TypeError(f"{where} has dtype {tensor.dtype}, expected {known}")
    kind = f"{tensor.layout} on {tensor.device}"
    remedy = "" if tensor.layout is torch.strided else " (tensor.to_dense())"
    return ValueError(f"{where} is {kind}, expected a dense tensor on the CPU{remedy}")


def computed_dtype(tensor: Any) -> Any:
    """Return the dtype in which updates of a tensor are computed."""
    return torch.float32 if tensor.dtype in HALVES else tensor.dtype
