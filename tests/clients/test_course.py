"""A course's exercise on optimizers: examples in columns, gradients under the keys dW1 and db1.

The formulas are those of Ng, "Improving deep neural networks", 2017, week 2, written for this test.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import kernels
from support.arrays import Array, same_bits

Arrays = dict[str, Array]
LAYERS = (2, 5, 2, 1)


def two_moons() -> tuple[Array, Array]:
    """Return points in the columns of x, and in the row y to which of two moons each belongs."""
    rng = np.random.default_rng(0)
    angle, y = rng.uniform(0, np.pi, 300), rng.integers(0, 2, 300)
    x = np.where(
        y, [1 - np.cos(angle), 0.5 - np.sin(angle)], [np.cos(angle), np.sin(angle)]
    ) + 0.1 * rng.standard_normal((2, 300))
    return x, y[None, :]


X, Y = two_moons()


def initialize() -> Arrays:
    rng = np.random.default_rng(3)
    params: Arrays = {}
    for layer, (inputs, outputs) in enumerate(pairwise(LAYERS), start=1):
        params[f"W{layer}"] = rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        params[f"b{layer}"] = np.zeros((outputs, 1))
    return params


def propagate(params: Arrays, x: Array, y: Array) -> tuple[float, Arrays]:
    """Return the cross-entropy, summed over the examples, and the gradients of its mean."""
    activations = [x]
    for layer in (1, 2, 3):
        z = params[f"W{layer}"] @ activations[-1] + params[f"b{layer}"]
        activations.append(np.maximum(z, 0) if layer < 3 else 1 / (1 + np.exp(-z)))
    probability, grads = activations[-1], {}
    dz = probability - y
    for layer in (3, 2, 1):
        grads[f"dW{layer}"] = dz @ activations[layer - 1].T / y.shape[1]
        grads[f"db{layer}"] = dz.mean(axis=1, keepdims=True)
        dz = (params[f"W{layer}"].T @ dz) * (activations[layer - 1] > 0)
    return float(-np.log(np.where(y, probability, 1 - probability)).sum()), grads


def states(params: Arrays) -> Arrays:
    return {f"d{name}": np.zeros_like(param) for name, param in params.items()}


Update = Callable[[Arrays, Arrays, int], None]  # of the parameters by the gradients, at step t


def gradient_descent(params: Arrays) -> Update:
    def update(params: Arrays, grads: Arrays, _: int) -> None:
        for name in params:
            params[name] = params[name] - 0.1 * grads[f"d{name}"]

    return update


def momentum(params: Arrays) -> Update:
    v = states(params)

    def update(params: Arrays, grads: Arrays, _: int) -> None:
        for name in params:
            v[f"d{name}"] = 0.9 * v[f"d{name}"] + (1 - 0.9) * grads[f"d{name}"]
            params[name] = params[name] - 0.1 * v[f"d{name}"]

    return update


def rmsprop(params: Arrays) -> Update:
    s = states(params)

    def update(params: Arrays, grads: Arrays, _: int) -> None:
        for name in params:
            s[f"d{name}"] = 0.99 * s[f"d{name}"] + (1 - 0.99) * grads[f"d{name}"] ** 2
            params[name] = params[name] - 0.01 * grads[f"d{name}"] / (np.sqrt(s[f"d{name}"]) + 1e-8)

    return update


def adam(params: Arrays) -> Update:
    v, s = states(params), states(params)

    def update(params: Arrays, grads: Arrays, t: int) -> None:
        for name in params:
            key = f"d{name}"
            v[key] = 0.9 * v[key] + (1 - 0.9) * grads[key]
            s[key] = 0.999 * s[key] + (1 - 0.999) * grads[key] ** 2
            corrected = v[key] / (1 - 0.9**t), s[key] / (1 - 0.999**t)
            params[name] = params[name] - 0.01 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)

    return update


def batches(epochs: int) -> Iterator[tuple[Array, Array]]:
    """Yield mini-batches of columns, as the exercise cuts them from shuffled ones."""
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(X.shape[1])
        for start in range(0, X.shape[1], 64):
            chosen = order[start : start + 64]
            yield X[:, chosen], Y[:, chosen]


PAIRS: list[tuple[Callable[[Arrays], Update], Callable[[Any], schuss.optimizers.Optimizer]]] = [
    (gradient_descent, lambda params: schuss.SGD(params, lr=0.1)),
    (momentum, lambda params: schuss.Momentum(params, lr=0.1, beta=0.9)),
    (rmsprop, lambda params: schuss.RMSprop(params, lr=0.01, beta=0.99)),
    (adam, lambda params: schuss.Adam(params, lr=0.01)),
]


@pytest.mark.parametrize(("theirs", "make"), PAIRS)
def test_a_step_replaces_the_loop_over_the_parameters(
    theirs: Callable[[Arrays], Update], make: Callable[[Any], schuss.optimizers.Optimizer]
) -> None:
    expected, params = initialize(), initialize()
    update, opt = theirs(expected), make(params)
    before = propagate(params, X, Y)[0]
    for t, (x, y) in enumerate(batches(epochs=20), start=1):
        update(expected, propagate(expected, x, y)[1], t)
        grads = propagate(params, x, y)[1]
        opt.step({name: grads[f"d{name}"] for name in params})
        for name, param in params.items():
            np.testing.assert_allclose(param, expected[name], rtol=1e-8, atol=1e-11)
    assert propagate(params, X, Y)[0] < before


def test_a_kernel_updates_the_exercises_own_dictionaries() -> None:
    by_hand, params = initialize(), initialize()
    update, v, s = adam(by_hand), states(params), states(params)
    for t, (x, y) in enumerate(batches(epochs=5), start=1):
        update(by_hand, propagate(by_hand, x, y)[1], t)
        grads = propagate(params, x, y)[1]
        for name in params:
            key = f"d{name}"
            kernels.adam(params[name], grads[key], v[key], s[key], step=t, lr=0.01)
    for name, param in params.items():
        np.testing.assert_allclose(param, by_hand[name], rtol=1e-8, atol=1e-11)


def test_minibatches_cuts_columns_and_keeps_their_labels() -> None:
    seen = list(schuss.minibatches(X, Y, batch_size=64, axis=1, rng=0))
    assert [x.shape for x, _ in seen] == [(2, 64)] * 4 + [(2, 44)]
    x, y = (np.concatenate(parts, axis=1) for parts in zip(*seen, strict=True))
    order, original = np.lexsort(x), np.lexsort(X)
    assert not same_bits(x, X)
    assert same_bits(x[:, order], X[:, original])
    assert same_bits(y[:, order], Y[:, original])


@pytest.mark.parametrize("optimizer", [schuss.SGD, schuss.Momentum, schuss.RMSprop, schuss.Adam])
def test_fit_trains_the_exercises_network(optimizer: Any) -> None:
    def loss_and_grad(params: Arrays, x: Array, y: Array) -> tuple[float, Arrays]:
        cost, grads = propagate(params, x, y)
        return cost / y.shape[1], {name: grads[f"d{name}"] for name in params}

    params = initialize()
    # alpha = alpha0 / (1 + rate * epoch)
    opt = optimizer(params, lr=schuss.schedules.InverseTime(0.1, 0.01).per_epoch(5))
    history = schuss.fit(loss_and_grad, params, opt, X, Y, epochs=60, batch_size=64, axis=1, rng=0)
    assert history.epoch_cost[-1] < 0.75 * history.epoch_cost[0]
