"""PyTorch's optimizers, compiled by `torch.compile`, which needs a C++ compiler."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import works
from benchmarks.peers.torch import started_optimizer, tensors_of


def _compile_a_function() -> None:
    import torch

    torch.compile(torch.sin)(torch.ones(9))


@cache
def torch_compiles() -> bool:
    return works("torch.compile", _compile_a_function, "torch")


def _optimizer(
    kind: str, states: tuple[str, ...], problem: Problem, *, lr: float, **options: Any
) -> Any:
    """Return an optimizer to compile, given torch's names of its hyperparameters."""
    import torch

    (dtype,) = {torch.from_numpy(param).dtype for param in problem.params}
    # As a tensor, the learning rate can change without another compilation.
    make = partial(getattr(torch.optim, kind), lr=torch.tensor(lr, dtype=dtype), **options)
    optimizer = started_optimizer(problem, make, states)
    for state in optimizer.state.values():
        # In the dtype of the parameters, or double steps would be inexact.
        state["step"] = torch.tensor(0.0, dtype=dtype)
    # Compiled code of earlier problems counts to a limit; beyond it, nothing is compiled.
    torch.compiler.reset()
    return optimizer


def _compiled(optimizer: Any) -> Step:
    import torch

    step: Step = torch.compile(optimizer.step)
    return step


def _adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Any:
    states = ("exp_avg", "exp_avg_sq")
    return _optimizer("Adam", states, problem, lr=lr, betas=(beta1, beta2), eps=eps)


def compiled_adam(problem: Problem, **hyperparameters: float) -> Step:
    return _compiled(_adam(problem, **hyperparameters))


def compiled_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    options = {"momentum": beta, "dampening": beta}
    return _compiled(_optimizer("SGD", ("momentum_buffer",), problem, lr=lr, **options))


def compiled_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    options = {"alpha": beta, "eps": eps}
    return _compiled(_optimizer("RMSprop", ("square_avg",), problem, lr=lr, **options))


def compiled_whole(problem: Problem, **hyperparameters: float) -> Step:
    """Make Adam's step with the options, compiled as one function."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    options, optimizer = problem.options, _adam(problem, **hyperparameters)
    params = optimizer.param_groups[0]["params"]
    grads = [param.grad for param in params]
    more_grads = [tensors_of(of_all) for of_all in problem.more_grads]
    averages, copies = tensors_of(problem.averages), tensors_of(problem.copies)
    norm = tensors_of([problem.norm])[0]
    new = torch.tensor(1.0)  # the share of the parameters in the averages

    def update() -> None:
        for of_all in more_grads:
            torch._foreach_add_(grads, of_all)
        if "clip_norm" in options:
            norm.copy_(clip_grad_norm_(params, options["clip_norm"]))
        optimizer.step()
        if averages:
            torch._foreach_lerp_(averages, params, new)
        if options.get("clear_grads"):
            torch._foreach_zero_(grads)
        for copy, param in zip(copies, params, strict=False):  # none, or all
            copy.copy_(param)

    compiled = torch.compile(torch.no_grad()(update))

    def step() -> None:
        compiled()
        new.fill_(1 - options.get("average", 0.0))

    return step


TORCH_COMPILED = Contender(
    "torch compiled",
    {"Adam": compiled_adam, "momentum": compiled_momentum, "RMSprop": compiled_rmsprop},
    present=torch_compiles,
)
TORCH_COMPILED_WHOLE = replace(TORCH_COMPILED, steps={"Adam": compiled_whole})
