"""autograd's optimizers, replaced by ours in programs of its examples' kinds: the same path."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, leaves

autograd = pytest.importorskip("autograd")
anp = pytest.importorskip("autograd.numpy")
optimizers = pytest.importorskip("autograd.misc.optimizers")

Objective = Callable[[Any, int], Any]


def network(rng: np.random.Generator) -> tuple[Objective, Any]:
    """Return the loss of a classifier on the mini-batch of an iteration, and a list of pairs."""
    x, labels = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    targets, sizes = np.eye(3)[labels], (5, 8, 3)
    params = [
        (0.5 * rng.standard_normal((n, m)), 0.1 * rng.standard_normal(m))
        for n, m in pairwise(sizes)
    ]

    def objective(params: Any, i: int) -> Any:
        batch = slice(i % 3 * 20, i % 3 * 20 + 20)
        inputs = x[batch]
        for w, b in params:
            outputs = anp.dot(inputs, w) + b
            inputs = anp.tanh(outputs)
        log_probabilities = outputs - anp.log(anp.sum(anp.exp(outputs), axis=1, keepdims=True))
        return -anp.sum(log_probabilities * targets[batch]) + 0.05 * sum(
            anp.sum(w**2) + anp.sum(b**2) for w, b in params
        )

    return objective, params


def recurrent_network(rng: np.random.Generator) -> tuple[Objective, Any]:
    """Return the error of a recurrent network's prediction of a sine, and a dict of arrays."""
    signal = np.sin(0.3 * np.arange(20.0))
    shapes = {"initial": (4,), "from input": (4,), "recurrent": (4, 4), "to output": (4,)}
    params = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}

    def objective(params: Any, _: int) -> Any:
        hidden, error = params["initial"], 0.0
        for now, following in pairwise(signal):
            hidden = anp.tanh(params["from input"] * now + anp.dot(params["recurrent"], hidden))
            error = error + (anp.dot(params["to output"], hidden) - following) ** 2
        return error

    return objective, params


def variational_inference(rng: np.random.Generator) -> tuple[Objective, Any]:
    """Return a stochastic bound of a posterior's evidence, negated, and one flat vector."""
    draws = rng.standard_normal((50, 10, 2))

    def objective(params: Any, i: int) -> Any:
        mean, log_deviation = params[:2], params[2:]
        z = mean + anp.exp(log_deviation) * draws[i % len(draws)]
        log_posterior = -0.5 * (z[:, 0] / anp.exp(z[:, 1])) ** 2 - z[:, 1] - 0.3 * z[:, 1] ** 2
        return -anp.mean(log_posterior) - anp.sum(log_deviation)

    return objective, np.array([0.5, -0.5, -1.0, -1.0])


def rmsprop(params: Any) -> schuss.RMSprop:
    opt = schuss.RMSprop(params, lr=0.02, beta=0.8)
    for average in leaves(opt.state["square_average"]):
        average[...] = 1.0  # as autograd's begins
    return opt


OPTIMIZERS: dict[str, tuple[Callable[[Any], schuss.optimizers.Optimizer], dict[str, float]]] = {
    "sgd": (lambda params: schuss.Momentum(params, lr=0.02), {"step_size": 0.02}),
    "rmsprop": (rmsprop, {"step_size": 0.02, "gamma": 0.8}),
    "adam": (lambda params: schuss.Adam(params, lr=0.05), {"step_size": 0.05}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("model", [network, recurrent_network, variational_inference])
def test_a_loop_of_steps_goes_as_autograds_optimizer_goes(
    model: Callable[[np.random.Generator], tuple[Objective, Any]], name: str
) -> None:
    objective, params = model(np.random.default_rng(0))
    gradient = autograd.grad(objective)
    make, settings = OPTIMIZERS[name]
    path: list[list[Array]] = []
    end = getattr(optimizers, name)(
        gradient, params, lambda params, *_: path.append(leaves(params)), 60, **settings
    )

    opt = make(params)
    for i, expected in enumerate([*path[1:], leaves(end)]):
        opt.step(gradient(params, i))
        for ours, theirs in zip(leaves(params), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert objective(params, 0) < objective(model(np.random.default_rng(0))[1], 0)
