"""flax with parameters in NumPy arrays: the path of optax, which steps on JAX's own arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")
optax = pytest.importorskip("optax")
linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

STEPS = 40
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 4)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))

Loss = Callable[[Any], Any]


def of_linen() -> tuple[Loss, Any]:
    model = linen.Sequential([linen.Dense(8), linen.LayerNorm(), linen.tanh, linen.Dense(1)])
    params = model.init(jax.random.key(0), X)
    return lambda params: ((model.apply(params, X) - Y) ** 2).mean(), params


def of_linen_frozen() -> tuple[Loss, Any]:
    loss, params = of_linen()
    return loss, flax.core.freeze(params)


def of_nnx() -> tuple[Loss, Any]:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.tanh, nnx.Linear(8, 1, rngs=rngs))
    graph, state = nnx.split(model, nnx.Param)
    return lambda state: ((nnx.merge(graph, state)(X) - Y) ** 2).mean(), state


# optax's optimizer, and ours.
PAIRS: dict[str, tuple[Any, Callable[[Any], schuss.optimizers.Optimizer]]] = {
    "sgd": (optax.sgd(0.05), lambda params: schuss.SGD(params, lr=0.05)),
    "momentum": (
        optax.sgd(0.01, momentum=0.9),
        lambda params: schuss.Momentum(params, lr=0.01, dampening=0.0),
    ),
    "rmsprop": (
        optax.rmsprop(0.01, eps=1e-4),  # has epsilon under the root
        lambda params: schuss.RMSprop(params, lr=0.01, eps=0.0, eps_root=1e-4),
    ),
    "adam": (optax.adam(0.01), lambda params: schuss.Adam(params, lr=0.01)),
    "lion": (
        optax.lion(0.003, weight_decay=0.1),
        lambda params: schuss.Lion(params, lr=0.003, weight_decay=0.1),
    ),
    "adamw, clipped, with a schedule": (
        optax.chain(
            optax.clip_by_global_norm(0.1),
            optax.adamw(optax.cosine_decay_schedule(0.02, STEPS), weight_decay=0.1),
        ),
        lambda params: schuss.AdamW(
            params,
            # optax counts steps from 0.
            lr=lambda t: 0.01 * (1 + np.cos(np.pi * (t - 1) / STEPS)),
            weight_decay=0.1,
            clip_norm=0.1,
        ),
    ),
}


@pytest.mark.parametrize(
    ("model", "kind"),
    [*((of_linen, kind) for kind in PAIRS), (of_linen_frozen, "adam"), (of_nnx, "adam")],
)
def test_a_model_of_flax_is_trained_along_optaxs_path(
    model: Callable[[], tuple[Loss, Any]], kind: str
) -> None:
    loss, theirs = model()
    params = jax.tree.map(np.array, theirs)
    optimizer, make = PAIRS[kind]
    opt, gradient = make(params), jax.jit(jax.grad(loss))

    def step_of_optax(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    their_step = jax.jit(step_of_optax)
    state, before = optimizer.init(theirs), loss(params)
    for _ in range(STEPS):
        theirs, state = their_step(theirs, state)
        opt.step(jax.block_until_ready(gradient(params)))
    for ours, expected in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert loss(params) < 0.9 * before
