"""optax, compiled by JAX. JAX keeps the parameters; they are copied back for the check only."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import installed


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


OPTAX = Contender(
    "JAX + optax",
    {"Adam": optax_adam, "RMSprop": optax_rmsprop, "Adamax": optax_adamax, "Lion": optax_lion},
    present=partial(installed, "jax", "optax"),
)
