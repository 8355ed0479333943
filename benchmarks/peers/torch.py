"""PyTorch's optimizers. Their tensors are the problem's own arrays."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.contenders import in_order
from benchmarks.harness import Array, Contender, Problem, Step
from benchmarks.peers.packages import installed


def tensors_of(arrays: Iterable[Array]) -> list[Any]:
    """Return tensors in the arrays' memory."""
    import torch

    def tensor(array: Array) -> Any:
        if array.dtype.name == "bfloat16":  # PyTorch does not know NumPy's name of it
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return [tensor(array) for array in arrays]


def _tensors(problem: Problem) -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Return params, grads, and each of the states for all params, in the problem's memory."""
    states = zip(*problem.states, strict=True)
    params, grads = tensors_of(problem.params), tensors_of(problem.grads)
    return params, grads, [tensors_of(of_all) for of_all in states]


def started_optimizer(
    problem: Problem, make: Callable[[list[Any]], Any], names: tuple[str, ...] = (), **more: float
) -> Any:
    """Start an optimizer of torch with the problem's states, under these names, or its own."""
    import torch

    params, grads, states = _tensors(problem)
    optimizer = make(params)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        param.grad = grad
        named = zip(names, states, strict=True)
        optimizer.state[param] = {name: of_all[i] for name, of_all in named}
        optimizer.state[param] |= {name: torch.tensor(value) for name, value in more.items()}
    return optimizer


def _torch_adam(
    problem: Problem, *, way: str, lr: float, beta1: float, beta2: float, eps: float
) -> Any:
    from torch.optim import Adam

    make = partial(Adam, lr=lr, betas=(beta1, beta2), eps=eps, **{way: True})
    return started_optimizer(problem, make, ("exp_avg", "exp_avg_sq"), step=0.0)


def torch_adam(way: str) -> Callable[..., Step]:
    return step_of(partial(_torch_adam, way=way))


def _torch_average(params: list[Any], averages: list[Any], beta: float) -> Step:
    """Return a function that updates the averages with the params."""
    from torch.nn import Module, Parameter, ParameterList
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Model(Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.all = ParameterList(map(Parameter, params))

    model = Model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(beta))
    for param, average in zip(averaged.parameters(), averages, strict=True):
        param.data = average
    return partial(averaged.update_parameters, model)


def step_of(make: Callable[..., Any]) -> Callable[..., Step]:
    """Return what prepares a step; make(problem, **hyperparameters) starts the optimizer."""

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        step: Step = make(problem, **hyperparameters).step
        return step

    return prepare


def whole(make: Callable[..., Any]) -> Callable[..., Step]:
    """Return what prepares a step with a call per option, which accumulates in the first grads."""

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        import torch
        from torch.nn.utils import clip_grad_norm_

        options = problem.options
        optimizer = make(problem, **hyperparameters)
        params = optimizer.param_groups[0]["params"]
        grads = [param.grad for param in params]
        more_grads = [tensors_of(of_all) for of_all in problem.more_grads]
        averages, copies = tensors_of(problem.averages), tensors_of(problem.copies)

        def add_up() -> None:
            for of_all in more_grads:
                torch._foreach_add_(grads, of_all)

        def clip() -> None:
            problem.norm[...] = clip_grad_norm_(params, options["clip_norm"]).item()

        def cast() -> None:
            for copy, param in zip(copies, params, strict=True):
                copy.copy_(param)

        parts: list[Step] = [optimizer.step]
        if "clip_norm" in options:
            parts.insert(0, clip)
        if more_grads:
            parts.insert(0, add_up)
        if averages:
            parts.append(_torch_average(params, averages, options["average"]))
        if options.get("clear_grads"):
            parts.append(partial(optimizer.zero_grad, set_to_none=False))
        if copies:
            parts.append(cast)
        return in_order(parts)

    return prepare


def torch_momentum(way: str) -> Callable[..., Step]:
    def prepare(problem: Problem, *, lr: float, beta: float) -> Step:
        from torch.optim import SGD

        make = partial(SGD, lr=lr, momentum=beta, dampening=beta, **{way: True})
        step: Step = started_optimizer(problem, make, ("momentum_buffer",)).step
        return step

    return prepare


def torch_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    from torch.optim import RMSprop

    make = partial(RMSprop, lr=lr, alpha=beta, eps=eps, foreach=True)
    step: Step = started_optimizer(problem, make, ("square_avg",), step=0.0).step
    return step


def torch_other(kind: str, way: str, *states: str, **more: float) -> Callable[..., Step]:
    """Return what prepares another rule, whose hyperparameters but beta1 and beta2 are torch's."""

    def prepare(problem: Problem, **hyperparameters: Any) -> Step:
        from torch import optim

        options = {key: hyperparameters[key] for key in hyperparameters if "beta" not in key}
        if "beta1" in hyperparameters:
            options["betas"] = (hyperparameters["beta1"], hyperparameters["beta2"])
        make = partial(getattr(optim, kind), **options, **{way: True})
        step: Step = started_optimizer(problem, make, states, step=0.0, **more).step
        return step

    return prepare


def torch_raw_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    import torch

    params, grads, (ms, vs) = _tensors(problem)
    steps = [torch.tensor(0.0) for _ in params]
    options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    off = {"weight_decay": 0.0, "amsgrad": False, "maximize": False}

    def step() -> None:
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(params, grads, ms, vs, [], steps, **options, **off)

    return step


def torch_raw_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    import torch

    params, grads, (velocities,) = _tensors(problem)
    options = {"lr": lr, "momentum": beta, "dampening": beta}
    off = {"weight_decay": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
    return partial(torch._fused_sgd_, params, grads, velocities, **options, **off)


def _torch(name: str, steps: Mapping[str, Callable[..., Step]]) -> Contender:
    return Contender(name, steps, present=partial(installed, "torch"))


TORCH_RAW = _torch("torch raw fused", {"Adam": torch_raw_adam, "momentum": torch_raw_momentum})
TORCH_FUSED = _torch(
    "torch fused",
    {
        "Adam": torch_adam("fused"),
        "momentum": torch_momentum("fused"),
        "Adagrad": torch_other("Adagrad", "fused", "sum"),
    },
)
TORCH_WHOLE = _torch("torch", {"Adam": whole(partial(_torch_adam, way="fused"))})
TORCH_CAST = _torch("torch fused, copy_", TORCH_WHOLE.steps)
TORCH_HALF = _torch("torch fused, state to nearest", {"Adam": torch_adam("fused")})
"""PyTorch has one dtype for all arrays of a parameter, and no stochastic rounding."""
TORCH_FOREACH = _torch(
    "torch foreach",
    {
        "Adam": torch_adam("foreach"),
        "momentum": torch_momentum("foreach"),
        "RMSprop": torch_rmsprop,
        "Adagrad": torch_other("Adagrad", "foreach", "sum"),
        "Adamax": torch_other("Adamax", "foreach", "exp_avg", "exp_inf"),
        "NAdam": torch_other("NAdam", "foreach", "exp_avg", "exp_avg_sq", mu_product=1.0),
    },
)
