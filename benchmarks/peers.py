"""Optimizers of other libraries. The installed ones take part; none is a dependency."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.contenders import in_order
from benchmarks.harness import Array, Contender, Problem, Step


@cache
def installed(*packages: str) -> bool:
    return all(map(find_spec, packages))


# PyTorch: its tensors are the problem's own arrays.


def _tensors_of(arrays: Iterable[Array]) -> list[Any]:
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
    params, grads = _tensors_of(problem.params), _tensors_of(problem.grads)
    return params, grads, [_tensors_of(of_all) for of_all in states]


def _torch_optimizer(
    problem: Problem, make: Callable[[list[Any]], Any], names: tuple[str, ...], **more: float
) -> Any:
    """Start an optimizer of torch with the problem's states, under these names."""
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
    problem: Problem, way: str, *, lr: float, beta1: float, beta2: float, eps: float
) -> Any:
    from torch.optim import Adam

    make = partial(Adam, lr=lr, betas=(beta1, beta2), eps=eps, **{way: True})
    return _torch_optimizer(problem, make, ("exp_avg", "exp_avg_sq"), step=0.0)


def torch_adam(way: str) -> Callable[..., Step]:
    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        step: Step = _torch_adam(problem, way, **hyperparameters).step
        return step

    return prepare


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


def torch_whole(problem: Problem, **hyperparameters: float) -> Step:
    """Make Adam's step and a call per option; gradients accumulate in the first ones."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    options = problem.options
    optimizer = _torch_adam(problem, "fused", **hyperparameters)
    params = optimizer.param_groups[0]["params"]
    grads = [param.grad for param in params]
    more_grads = [_tensors_of(of_all) for of_all in problem.more_grads]
    averages, copies = _tensors_of(problem.averages), _tensors_of(problem.copies)

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


def torch_momentum(way: str) -> Callable[..., Step]:
    def prepare(problem: Problem, *, lr: float, beta: float) -> Step:
        from torch.optim import SGD

        make = partial(SGD, lr=lr, momentum=beta, dampening=beta, **{way: True})
        step: Step = _torch_optimizer(problem, make, ("momentum_buffer",)).step
        return step

    return prepare


def torch_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    from torch.optim import RMSprop

    make = partial(RMSprop, lr=lr, alpha=beta, eps=eps, foreach=True)
    step: Step = _torch_optimizer(problem, make, ("square_avg",), step=0.0).step
    return step


def torch_other(kind: str, way: str, *states: str, **more: float) -> Callable[..., Step]:
    """Return what prepares another rule, whose hyperparameters but beta1 and beta2 are torch's."""

    def prepare(problem: Problem, **hyperparameters: Any) -> Step:
        from torch import optim

        options = {key: hyperparameters[key] for key in hyperparameters if "beta" not in key}
        if "beta1" in hyperparameters:
            options["betas"] = (hyperparameters["beta1"], hyperparameters["beta2"])
        make = partial(getattr(optim, kind), **options, **{way: True})
        step: Step = _torch_optimizer(problem, make, states, step=0.0, **more).step
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


# numba: the loop that a user would write, over one array at a time.


@cache
def _numba_kernel(rule: str) -> Callable[..., None]:
    from numba import njit, prange

    # Divisions that raise at zero, as Python's do, would not vectorise.
    compiled = njit(parallel=True, error_model="numpy")

    def adam(p, g, m, v, rate, beta1, rest1, beta2, rest2, correction, eps):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            m[i] = beta1 * m[i] + rest1 * g[i]
            v[i] = beta2 * v[i] + rest2 * (g[i] * g[i])
            p[i] -= rate * m[i] / (np.sqrt(v[i] * correction) + eps)

    def momentum(p, g, v, rate, beta, rest):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            v[i] = beta * v[i] + rest * g[i]
            p[i] -= rate * v[i]

    def rmsprop(p, g, s, rate, beta, rest, eps):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            s[i] = beta * s[i] + rest * (g[i] * g[i])
            p[i] -= rate * g[i] / (np.sqrt(s[i]) + eps)

    kernel: Callable[..., None] = compiled({"Adam": adam, "RMSprop": rmsprop}.get(rule, momentum))
    return kernel


def _numba_step(problem: Problem, coefficients: Callable[[], tuple[float, ...]]) -> Step:
    """Return a step that computes its coefficients in double and rounds them to the dtype."""
    kernel = _numba_kernel(problem.rule.name)
    given = zip(problem.params, problem.grads, problem.states, strict=True)
    flat = [[array.reshape(-1) for array in (p, g, *states)] for p, g, states in given]
    number = problem.params[0].dtype.type

    def step() -> None:
        numbers = [number(value) for value in coefficients()]
        for arrays in flat:
            kernel(*arrays, *numbers)

    return step


def numba_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    t = 0

    def coefficients() -> tuple[float, ...]:
        nonlocal t
        t += 1
        rate, correction = lr / (1 - beta1**t), 1 / (1 - beta2**t)
        return rate, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps

    return _numba_step(problem, coefficients)


def numba_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    return _numba_step(problem, lambda: (lr, beta, 1 - beta))


def numba_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    return _numba_step(problem, lambda: (lr, beta, 1 - beta, eps))


# JAX and optax: JAX keeps the parameters, and they are copied back only for the check.


def _optax_step(problem: Problem, transformation: Any) -> Step:
    import jax
    import optax

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = [jax.numpy.array(param) for param in problem.params]
    state = transformation.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(update(params, state, list(problem.grads)))

    def write_back() -> None:
        for param, result in zip(problem.params, params, strict=True):
            param[...] = np.asarray(result)

    problem.write_backs.append(write_back)
    return step


def _optax() -> Any:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)  # or float64 would become float32
    return optax


def optax_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    return _optax_step(problem, _optax().adam(lr, b1=beta1, b2=beta2, eps=eps))


def optax_adamax(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    return _optax_step(problem, _optax().adamax(lr, b1=beta1, b2=beta2, eps=eps))


def optax_lion(problem: Problem, *, lr: float, beta1: float, beta2: float) -> Step:
    return _optax_step(problem, _optax().lion(lr, b1=beta1, b2=beta2, weight_decay=0.0))


def optax_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    return _optax_step(problem, _optax().rmsprop(lr, decay=beta, eps=eps, eps_in_sqrt=False))


# DeepSpeed compiles its operation at its first use.


@cache
def deepspeed_works() -> bool:
    if not installed("deepspeed", "torch"):
        return False
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # otherwise it warns about the missing accelerator
    try:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # of many kinds: a missing compiler, ninja or header
        print(f"DeepSpeed stays out: {error}", file=sys.stderr)
        return False
    return True


def deepspeed_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    make = partial(DeepSpeedCPUAdam, lr=lr, betas=(beta1, beta2), eps=eps, adamw_mode=False)
    step: Step = _torch_optimizer(problem, make, ("exp_avg", "exp_avg_sq"), step=0).step
    return step


# thinc


def thinc_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    from thinc.api import Optimizer

    options = {"L2": 0.0, "grad_clip": 0.0, "use_averages": False}
    optimizer = Optimizer(lr, beta1=beta1, beta2=beta2, eps=eps, **options)
    arrays = [
        ((i, "param"), param, grad, np.empty_like(grad))
        for i, (param, grad) in enumerate(zip(problem.params, problem.grads, strict=True))
    ]

    def step() -> None:
        for key, param, grad, scratch in arrays:
            np.copyto(scratch, grad)  # it computes in the gradient's memory, then clears it
            optimizer(key, param, scratch)

    return step


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
TORCH_WHOLE = _torch("torch", {"Adam": torch_whole})
TORCH_CAST = _torch("torch fused, copy_", TORCH_WHOLE.steps)
TORCH_HALF = _torch("torch fused, state to nearest", {"Adam": torch_adam("fused")})
"""PyTorch has one dtype for all arrays of a parameter, and no stochastic rounding."""
PEERS = (
    TORCH_RAW,
    TORCH_FUSED,
    _torch(
        "torch foreach",
        {
            "Adam": torch_adam("foreach"),
            "momentum": torch_momentum("foreach"),
            "RMSprop": torch_rmsprop,
            "Adagrad": torch_other("Adagrad", "foreach", "sum"),
            "Adamax": torch_other("Adamax", "foreach", "exp_avg", "exp_inf"),
            "NAdam": torch_other("NAdam", "foreach", "exp_avg", "exp_avg_sq", mu_product=1.0),
        },
    ),
    Contender(
        "numba",
        {"Adam": numba_adam, "momentum": numba_momentum, "RMSprop": numba_rmsprop},
        present=partial(installed, "numba"),
    ),
    Contender(
        "JAX + optax",
        {"Adam": optax_adam, "RMSprop": optax_rmsprop, "Adamax": optax_adamax, "Lion": optax_lion},
        present=partial(installed, "jax", "optax"),
    ),
    Contender("DeepSpeed", {"Adam": deepspeed_adam}, present=deepspeed_works, dtypes=["float32"]),
    Contender(
        "thinc",
        {"Adam": thinc_adam},
        present=partial(installed, "thinc"),
        dtypes=["float32"],
        one_thread=True,
        eps_elsewhere="to the root of v before its correction",
    ),
)
