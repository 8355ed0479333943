"""PennyLane's optimizers against ours on a circuit: the same angles at each step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss

qml = pytest.importorskip("pennylane")
pnp = pytest.importorskip("pennylane.numpy")

Make = Callable[[Any], schuss.optimizers.Optimizer]

# PennyLane's optimizer, and ours. Its Adam has epsilon on the uncorrected root; the rest under it.
# Added to a sum, an epsilon under the root is the value with which the sum begins.
PAIRS: dict[str, tuple[Callable[[], Any], Make]] = {
    "gradient descent": (
        lambda: qml.GradientDescentOptimizer(0.2),
        lambda params: schuss.SGD(params, lr=0.2),
    ),
    "momentum": (
        lambda: qml.MomentumOptimizer(0.1, momentum=0.8),
        lambda params: schuss.Momentum(
            params, lr=0.1, beta=0.8, dampening=0.0, lr_in_velocity=True
        ),
    ),
    "RMSprop": (
        lambda: qml.RMSPropOptimizer(0.05, decay=0.8, eps=1e-3),
        lambda params: schuss.RMSprop(params, lr=0.05, beta=0.8, eps=0.0, eps_root=1e-3),
    ),
    "Adagrad": (
        lambda: qml.AdagradOptimizer(0.1, eps=1e-3),
        lambda params: schuss.Adagrad(params, lr=0.1, eps=0.0, initial_accumulator_value=1e-3),
    ),
    "Adam": (
        lambda: qml.AdamOptimizer(0.1),
        lambda params: schuss.Adam(params, lr=0.1, beta2=0.99, eps=0.0, eps_hat=1e-8),
    ),
    "Adam with a large epsilon": (
        lambda: qml.AdamOptimizer(0.1, beta1=0.5, beta2=0.9, eps=0.1),
        lambda params: schuss.Adam(params, lr=0.1, beta1=0.5, beta2=0.9, eps=0.0, eps_hat=0.1),
    ),
}


def energy() -> Any:
    """Return the expected energy of a circuit's state, as a function of angles and of a field."""

    def circuit(angles: Any, twist: Any, field: Any) -> Any:
        for layer in angles:
            for wire in range(3):
                qml.RY(layer[wire], wires=wire)
            qml.CNOT(wires=[0, 1])
            qml.CRZ(twist, wires=[1, 2])
            qml.RX(field, wires=2)
        return qml.expval(qml.PauliZ(0) @ qml.PauliZ(1) + 0.5 * qml.PauliX(1) @ qml.PauliY(2))

    return qml.QNode(circuit, qml.device("default.qubit", wires=3))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_circuit_is_minimized_along_the_path_of_pennylanes_optimizer(kind: str) -> None:
    cost, rng = energy(), np.random.default_rng(0)
    field = pnp.array(0.4, requires_grad=False)
    theirs = [pnp.array(rng.uniform(-1, 1, (2, 3))), pnp.array(0.7)]
    params = [np.array(angles) for angles in theirs]
    make_theirs, make = PAIRS[kind]
    optimizer, opt = make_theirs(), make(params)
    gradient = qml.grad(cost, argnums=(0, 1))
    before = cost(*params, field)
    for _ in range(30):
        *theirs, field = optimizer.step(cost, *theirs, field)
        opt.step(gradient(*params, field))
        for ours, expected in zip(params, theirs, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
        opt.lr = optimizer.stepsize = 0.97 * optimizer.stepsize
    assert cost(*params, field) < before - 0.3


def test_pennylanes_trainable_arrays_are_updated_in_place() -> None:
    cost = energy()
    angles, field = pnp.ones((2, 3), requires_grad=True), pnp.array(0.4, requires_grad=False)
    twist = pnp.array(0.7, requires_grad=False)
    optimizer, opt = qml.AdamOptimizer(0.1), schuss.Adam(angles, lr=0.1, beta2=0.99)
    expected, *_ = optimizer.step(cost, angles, twist, field)
    opt.step(qml.grad(cost)(angles, twist, field))
    assert angles.requires_grad
    np.testing.assert_allclose(angles, expected, rtol=1e-6)
