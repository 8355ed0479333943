"""The NumPy twin computes what the papers say: formulas in float64, worked numbers, PyTorch."""

from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array

STEPS = 100


def gradients(shape: tuple[int, ...] = (7, 3)) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3) for _ in range(STEPS)]


def assert_close(actual: Array, expected: Array, *, ulps: float) -> None:
    """Compare within units in the last place of the largest value that was rounded on the way."""
    scale = np.maximum(np.abs(expected), 1.0)
    assert np.max(np.abs(actual - expected) / scale) <= ulps * np.finfo(np.float64).eps


# The formulas of the mission, one element at a time in Python's floats.


def test_sgd_is_its_formula() -> None:
    w = np.array([1.0, -2.0])
    for t, dw in enumerate(gradients((2,))):
        expected = [w[i] - 0.1 / (t + 1) * dw[i] for i in range(2)]
        reference.sgd(w, dw, lr=0.1 / (t + 1))
        assert w.tolist() == expected


def test_momentum_weighs_the_past_geometrically() -> None:
    theta = gradients((1,))
    w, v = np.zeros(1), np.zeros(1)
    for g in theta:
        reference.momentum(w, g, v, lr=1.0, beta=0.9)
    expected = sum(0.1 * 0.9**k * theta[STEPS - 1 - k][0] for k in range(STEPS))
    np.testing.assert_allclose(v, expected, rtol=1e-12)


def test_momentum_reaches_the_worked_numbers_of_averaging() -> None:
    theta1, theta2 = np.array([40.0]), np.array([49.0])
    w, v = np.zeros(1), np.zeros(1)
    reference.momentum(w, theta1, v, lr=1.0, beta=0.98, step=1)
    np.testing.assert_allclose(v, 0.02 * theta1, rtol=1e-14)
    np.testing.assert_allclose(w, -theta1, rtol=1e-14)  # corrected: a true mean of one value
    w[:] = 0
    reference.momentum(w, theta2, v, lr=1.0, beta=0.98, step=2)
    np.testing.assert_allclose(v, 0.0196 * theta1 + 0.02 * theta2, rtol=1e-14)
    np.testing.assert_allclose(w, -(0.0196 * theta1 + 0.02 * theta2) / 0.0396, rtol=1e-14)


def test_the_classical_velocity_is_the_average_over_one_minus_beta() -> None:
    averaging, classical = (np.zeros((2, 1)) for _ in range(2))
    for g in gradients((1,)):
        reference.momentum(averaging[0], g, averaging[1], lr=0.1)
        reference.momentum(classical[0], g, classical[1], lr=0.01, dampening=0.0)
    np.testing.assert_allclose(classical[1], averaging[1] / (1 - 0.9), rtol=1e-12)
    np.testing.assert_allclose(classical[0], averaging[0], rtol=1e-12)


def test_nesterov_steps_along_the_velocity_one_gradient_ahead() -> None:
    w, v = np.zeros(1), np.zeros(1)
    for g in gradients((1,)):
        before, ahead = w.copy(), 0.9 * (0.9 * v + 0.1 * g) + 0.1 * g
        reference.momentum(w, g, v, lr=0.1, nesterov=True)
        np.testing.assert_allclose(w, before - 0.1 * ahead, rtol=1e-14)


@pytest.mark.parametrize(("eps", "eps_root"), [(0.0, 1e-8), (1e-8, 0.0)])
def test_rmsprop_is_its_formula(eps: float, eps_root: float) -> None:
    w, s = np.array([0.5]), np.zeros(1)
    expected, square = 0.5, 0.0
    for dw in gradients((1,)):
        square = 0.9 * square + (1 - 0.9) * dw[0] ** 2
        expected -= 0.01 * dw[0] / ((square + eps_root) ** 0.5 + eps)
        reference.rmsprop(w, dw, s, lr=0.01, beta=0.9, eps=eps, eps_root=eps_root)
        np.testing.assert_allclose([w[0], s[0]], [expected, square], rtol=1e-13)


def test_where_epsilon_goes_matters_for_a_tiny_gradient() -> None:
    inside, outside = np.zeros(1), np.zeros(1)
    g = np.array([1e-6])
    reference.rmsprop(inside, g, np.zeros(1), lr=1.0, beta=0.9, eps=0.0, eps_root=1e-8)
    reference.rmsprop(outside, g, np.zeros(1), lr=1.0, beta=0.9, eps=1e-8, eps_root=0.0)
    np.testing.assert_allclose(inside, -1e-6 / (0.1 * 1e-12 + 1e-8) ** 0.5, rtol=1e-12)
    np.testing.assert_allclose(outside, -1e-6 / (0.1**0.5 * 1e-6 + 1e-8), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98])
def test_an_average_is_its_formula(beta: float) -> None:
    values, v, expected = gradients((1,)), np.zeros(1), 0.0
    bare = reference.ewma(np.array(values), beta, bias_correction=False, axis=0)
    corrected = reference.ewma(np.array(values), beta, axis=0)
    for t, x in enumerate(values, start=1):
        gain = 1 - beta
        if gain < 0.5:  # else two weights that hardly round
            expected = expected + (gain * x[0] - gain * expected)
        else:
            expected = beta * expected + gain * x[0]
        reference.average(v, x, beta=beta)
        assert v[0] == bare[t - 1, 0] == expected
        np.testing.assert_allclose(corrected[t - 1], expected / (1 - beta**t), rtol=1e-12)


@pytest.mark.parametrize("corrected", [True, False])
def test_adam_is_its_formula(corrected: bool) -> None:
    w, m, v = np.array([0.5]), np.zeros(1), np.zeros(1)
    expected, first, second = 0.5, 0.0, 0.0
    for t, dw in enumerate(gradients((1,)), start=1):
        first = 0.9 * first + 0.1 * dw[0]
        second = 0.999 * second + 0.001 * dw[0] ** 2
        first_hat = first / (1 - 0.9**t) if corrected else first
        second_hat = second / (1 - 0.999**t) if corrected else second
        expected -= 0.01 * first_hat / (second_hat**0.5 + 1e-8)
        reference.adam(w, dw, m, v, step=t if corrected else None, lr=0.01)
        np.testing.assert_allclose([w[0], m[0], v[0]], [expected, first, second], rtol=1e-12)


def test_adams_first_step_is_the_learning_rate_whatever_the_gradient() -> None:
    g = np.array([1e-3, -1.0, 1e6])
    w = np.zeros(3)
    reference.adam(w, g, np.zeros(3), np.zeros(3), step=1, lr=0.001)
    np.testing.assert_allclose(w, -0.001 * np.sign(g), rtol=1e-4)


def test_amsgrad_divides_by_the_largest_second_moment() -> None:
    w, m, v, v_max = np.zeros((4, 1))
    for t, g in enumerate([10.0, 0.1, 0.1], start=1):
        reference.adam(w, np.array([g]), m, v, step=t, lr=0.1, v_max=v_max)
    np.testing.assert_allclose(v_max, 0.001 * 100)
    assert v < v_max
    reference.adam(w, np.array([np.nan]), m, v, step=4, lr=0.1, v_max=v_max)
    assert np.isnan(v_max)  # as numpy.maximum has it


def test_coupled_decay_is_the_gradient_of_an_l2_cost() -> None:
    w, plain = np.array([2.0]), np.array([2.0])
    reference.sgd(w, np.array([0.5]), lr=0.1, weight_decay=0.01)
    reference.sgd(plain, np.array([0.5]) + 0.01 * np.array([2.0]), lr=0.1)
    assert w == plain


def test_decoupled_decay_shrinks_the_parameter_beside_adams_step() -> None:
    w, m, v = np.array([2.0]), np.zeros(1), np.zeros(1)
    expected, first, second = 2.0, np.zeros(1), np.zeros(1)
    for t, g in enumerate(gradients((1,)), start=1):
        reference.adam(w, g, m, v, step=t, lr=0.1, weight_decay=0.5, decoupled=True)
        step = np.zeros(1)
        reference.adam(step, g, first, second, step=t, lr=0.1)
        expected = expected * (1 - 0.1 * 0.5) + step[0]
        np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-14)


# PyTorch, where its formula is the same: 100 steps in float64.

PEERS: list[tuple[str, dict[str, Any], type[schuss.optimizers.Optimizer], dict[str, Any]]] = [
    ("SGD", {}, schuss.SGD, {}),
    ("SGD", {"weight_decay": 0.1}, schuss.SGD, {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}, schuss.Momentum, {"dampening": 0.0}),
    (
        "SGD",
        {"momentum": 0.9, "nesterov": True},
        schuss.Momentum,
        {"dampening": 0.0, "nesterov": True},
    ),
    (
        "SGD",
        {"momentum": 0.5, "weight_decay": 0.1},
        schuss.Momentum,
        {"beta": 0.5, "dampening": 0.0, "weight_decay": 0.1},
    ),
    ("RMSprop", {"alpha": 0.9}, schuss.RMSprop, {}),
    ("RMSprop", {"alpha": 0.99, "eps": 1e-3}, schuss.RMSprop, {"beta": 0.99, "eps": 1e-3}),
    ("RMSprop", {"alpha": 0.9, "centered": True}, schuss.RMSprop, {"centered": True}),
    (
        "RMSprop",
        {"alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1},
        schuss.RMSprop,
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    (
        "RMSprop",
        {"alpha": 0.9, "centered": True, "momentum": 0.5},
        schuss.RMSprop,
        {"centered": True, "momentum": 0.5},
    ),
    ("Adam", {}, schuss.Adam, {}),
    (
        "Adam",
        {"betas": (0.5, 0.9), "eps": 1e-3},
        schuss.Adam,
        {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
    ),
    ("Adam", {"weight_decay": 0.1}, schuss.Adam, {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}, schuss.Adam, {"amsgrad": True}),
    ("AdamW", {}, schuss.AdamW, {}),
    (
        "AdamW",
        {"weight_decay": 0.5, "amsgrad": True},
        schuss.AdamW,
        {"weight_decay": 0.5, "amsgrad": True},
    ),
]


@pytest.mark.parametrize(("peer", "peer_options", "ours", "options"), PEERS, ids=str)
def test_a_hundred_steps_agree_with_pytorch(
    peer: str,
    peer_options: dict[str, Any],
    ours: type[schuss.optimizers.Optimizer],
    options: dict[str, Any],
) -> None:
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(1).standard_normal((7, 3))
    theirs = torch.tensor(start.copy(), requires_grad=True)
    their_optimizer = getattr(torch.optim, peer)([theirs], lr=0.01, **peer_options)
    param = start.copy()
    optimizer = ours(param, lr=0.01, **options)
    for g in gradients():
        theirs.grad = torch.from_numpy(g.copy())
        their_optimizer.step()
        optimizer.step(g)
    assert_close(param, theirs.detach().numpy(), ulps=8)


def test_dampening_agrees_with_pytorch_from_an_equal_start() -> None:
    # PyTorch starts the velocity with the whole first gradient, whatever the dampening.
    torch = pytest.importorskip("torch")
    theirs = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)
    their_optimizer = torch.optim.SGD([theirs], lr=0.01, momentum=0.9, dampening=0.3)
    param = np.zeros((7, 3))
    optimizer = schuss.Momentum(param, lr=0.01, beta=0.9, dampening=0.3)
    first, *others = gradients()
    theirs.grad = torch.from_numpy(first)
    their_optimizer.step()
    param[...] = theirs.detach().numpy()
    optimizer.state["velocity"][...] = first
    for g in others:
        theirs.grad = torch.from_numpy(g)
        their_optimizer.step()
        optimizer.step(g)
    assert_close(param, theirs.detach().numpy(), ulps=8)


def test_torch_tensors_on_the_cpu_are_updated_where_they_are() -> None:
    torch = pytest.importorskip("torch")
    tensor, twin = torch.ones(3, 2), np.ones((3, 2), np.float32)
    params = {"w": tensor}
    optimizer = schuss.Adam(params, lr=0.1)
    moments = np.zeros((2, 3, 2), np.float32)
    for t in (1, 2):
        gradient = torch.full((3, 2), 0.5 * t)
        optimizer.step({"w": gradient})
        reference.adam(twin, gradient.numpy(), *moments, step=t, lr=0.1)
    assert (tensor.numpy() == twin).all()
    with pytest.raises(TypeError, match="detach"):
        schuss.Adam(torch.ones(3, requires_grad=True))
