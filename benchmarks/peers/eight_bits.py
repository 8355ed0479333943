"""Adam with state of 8 bits, by bitsandbytes and torchao. Each keeps its own state."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from benchmarks.harness import Contender, Problem
from benchmarks.peers.packages import installed, works
from benchmarks.peers.torch import started_optimizer, step_of, whole
from benchmarks.peers.torch_compiled import torch_compiles

BLOCK_OF_TORCHAO = 256
"""torchao keeps state of 32 bits for other numbers of elements than multiples of this."""


def _import_bitsandbytes() -> None:
    import bitsandbytes  # noqa: F401


@cache
def bitsandbytes_works() -> bool:
    return works("bitsandbytes", _import_bitsandbytes, "bitsandbytes", "torch")


def _import_torchao() -> None:
    import torchao.optim  # noqa: F401


@cache
def torchao_works() -> bool:
    compiles = installed("torchao") and torch_compiles()
    return compiles and works("torchao", _import_torchao, "torchao")


def _parts_of(tensor: Any) -> list[Any]:
    """Return the codes and the scales of a state of torchao; another tensor as it is."""
    parts = ("codes", "scale")
    return [getattr(tensor, part) for part in parts] if hasattr(tensor, "codes") else [tensor]


def _started(problem: Problem, make: Callable[[list[Any]], Any]) -> Any:
    """Start an optimizer that makes its own state, and tells how large it is."""
    optimizer = started_optimizer(problem, make)

    def tell_bytes() -> None:
        import torch

        problem.state_bytes[...] = sum(
            part.nbytes
            for of_param in optimizer.state.values()
            for value in of_param.values()
            if isinstance(value, torch.Tensor)
            for part in _parts_of(value)
        )

    problem.write_backs.append(tell_bytes)
    return optimizer


def _bitsandbytes(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Any:
    from bitsandbytes.optim import AdamW8bit

    make = partial(AdamW8bit, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=0.0)
    return _started(problem, make)


def _torchao(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Any:
    import torch
    from torchao.optim import AdamW8bit

    # Compiled code of earlier problems counts to a limit; beyond it, nothing is compiled.
    torch.compiler.reset()
    make = partial(
        AdamW8bit,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=0.0,
        bf16_stochastic_round=problem.options.get("round_params") == "random",
    )
    return _started(problem, make)


BITSANDBYTES = Contender(
    "bitsandbytes", {"Adam": step_of(_bitsandbytes)}, present=bitsandbytes_works
)
BITSANDBYTES_WHOLE = replace(BITSANDBYTES, steps={"Adam": whole(_bitsandbytes)})
BITSANDBYTES_NEAREST = replace(BITSANDBYTES, name="bitsandbytes, params to nearest")
TORCHAO = Contender("torchao", {"Adam": step_of(_torchao)}, present=torchao_works)
TORCHAO_WHOLE = replace(TORCHAO, steps={"Adam": whole(_torchao)})
