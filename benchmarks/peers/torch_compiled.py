"""PyTorch's optimizers, compiled by `torch.compile`, which needs a C++ compiler."""

import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import installed
from benchmarks.peers.torch import started_optimizer


@cache
def torch_compiles() -> bool:
    if not installed("torch"):
        return False
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            torch.compile(torch.sin)(torch.ones(9))
    except Exception as error:  # of many kinds: a missing compiler, header or package
        print(f"torch.compile stays out: {error}", file=sys.stderr)
        return False
    return True


def _compiled(kind: str, states: tuple[str, ...], **more: float) -> Callable[..., Step]:
    """Return what prepares a rule, given torch's names of its hyperparameters."""

    def prepare(problem: Problem, *, lr: float, **hyperparameters: Any) -> Step:
        import torch

        (dtype,) = {torch.from_numpy(param).dtype for param in problem.params}
        # As a tensor, the learning rate can change without another compilation.
        make = partial(
            getattr(torch.optim, kind), lr=torch.tensor(lr, dtype=dtype), **hyperparameters
        )
        optimizer = started_optimizer(problem, make, states, **more)
        for state in optimizer.state.values():  # in double, or double steps would be inexact
            state |= {name: state[name].to(dtype) for name in more}
        # Compiled code of earlier problems counts to a limit; beyond it, nothing is compiled.
        torch.compiler.reset()
        step: Step = torch.compile(optimizer.step)
        return step

    return prepare


def compiled_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    prepare = _compiled("Adam", ("exp_avg", "exp_avg_sq"), step=0.0)
    return prepare(problem, lr=lr, betas=(beta1, beta2), eps=eps)


def compiled_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    return _compiled("SGD", ("momentum_buffer",))(problem, lr=lr, momentum=beta, dampening=beta)


def compiled_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    return _compiled("RMSprop", ("square_avg",), step=0.0)(problem, lr=lr, alpha=beta, eps=eps)


TORCH_COMPILED = Contender(
    "torch compiled",
    {"Adam": compiled_adam, "momentum": compiled_momentum, "RMSprop": compiled_rmsprop},
    present=torch_compiles,
)
