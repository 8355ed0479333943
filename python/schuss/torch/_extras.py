"""The options of schuss that the classes of `torch.optim` lack, and the low-precision copies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from schuss._masters import rounding
from schuss._options import Options
from schuss.torch._formats import Formats
from schuss.torch._tensors import HALVES, computed_dtype


@dataclass(frozen=True)
class Extras:
    """The options that a step needs."""

    clip_norm: float | None = None
    average: float | None = None
    """The decay rate of the averages."""
    formats: Formats = field(default_factory=Formats)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle, also one of before there were formats."""
        known = dict(state)
        if "state_dtype" in known:
            known["formats"] = Formats(known.pop("state_dtype"))
        self.__dict__.update(known)


def checked(call: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, checked, or raise TypeError or ValueError."""
    checks = {"clip_norm": Options.clip_norm.check, "average": Options.average.check}
    return {name: checks[name](call, name, value) for name, value in values.items()}


def checked_formats(
    call: str,
    params: list[Any],
    *,
    state_dtype: Any,
    master: Any,
    round_params: Any,
    copies: Any = None,
) -> Formats:
    """Return the formats that the arguments ask for, or raise TypeError or ValueError."""
    if state_dtype is not None and state_dtype != "8bit":
        dtypes = (torch.float32, torch.bfloat16)
        state_dtype = _dtype(call, "state_dtype", state_dtype, dtypes, "'8bit'")
    for param in params:
        if state_dtype is not None and computed_dtype(param) is not torch.float32:
            raise ValueError(
                f"{call}: state_dtype is {_name(state_dtype)!r} where a parameter is "
                f"{param.dtype}, expected parameters in float32, float16 or bfloat16"
            )
    if isinstance(master, torch.dtype):
        master = _name(master)
    names = [_name(param.dtype) for param in params]
    rounded = rounding(call, master, round_params, names, copies)
    return Formats(state_dtype, rounded.master, rounded.round_params)


def copies_for(call: str, copies: Any, params: list[Any]) -> dict[Any, Any] | None:
    """Return the copy of each parameter, given or new, with its values."""
    if copies is None:
        return None
    for param in params:
        if param.dtype is not torch.float32:
            raise ValueError(
                f"{call}: copies are given but a parameter is {param.dtype}, expected "
                "parameters in float32"
            )
    if isinstance(copies, str | torch.dtype):
        dtype = _dtype(call, "copies", copies, HALVES)
        made = [torch.empty_like(param, dtype=dtype, requires_grad=False) for param in params]
    else:
        made = _given(call, copies, params)
    result = dict(zip(params, made, strict=True))
    write(result)
    return result


def write(copies: Mapping[Any, Any]) -> None:
    """Write the parameters to their copies."""
    with torch.no_grad():
        for param, copy in copies.items():
            copy.copy_(param)


def _given(call: str, copies: Any, params: list[Any]) -> list[Any]:
    """Return tensors given as copies, checked."""
    if isinstance(copies, torch.Tensor) or not isinstance(copies, Iterable):
        was = type(copies).__name__
        raise TypeError(f"{call}: copies is a {was}, expected a list of tensors, or a dtype")
    given = list(copies)
    if len(given) != len(params):
        raise ValueError(
            f"{call}: copies has {len(given)} tensors, expected {len(params)}, one for each "
            "parameter in the same order"
        )
    for i, (copy, param) in enumerate(zip(given, params, strict=True)):
        name = f"{call}: copies[{i}]"
        if not isinstance(copy, torch.Tensor):
            raise TypeError(f"{name} is a {type(copy).__name__}, expected a tensor")
        if copy.dtype not in HALVES:
            raise TypeError(f"{name} has dtype {copy.dtype}, expected {_names(HALVES)}")
        if copy.shape != param.shape:
            raise ValueError(
                f"{name} has shape {tuple(copy.shape)}, expected {tuple(param.shape)}, the shape "
                "of its parameter"
            )
        if copy.device.type != "cpu":
            raise ValueError(
                f"{name} is on {copy.device}, expected a tensor on the CPU (copies='bfloat16' "
                "makes some; move them with tensor.copy_)"
            )
    return given


def _dtype(call: str, name: str, given: Any, among: tuple[Any, ...], *others: str) -> Any:
    """Return a dtype of PyTorch for itself or its name."""
    for dtype in among:
        if given is dtype or given == _name(dtype):
            return dtype
    raise ValueError(f"{call}: {name} is {given!r}, expected {_names((*among, *others))}")


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[object, ...]) -> str:
    return " or ".join(map(str, dtypes))
