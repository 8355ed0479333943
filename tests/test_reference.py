"""The NumPy reference computes what the papers say: float64, worked numbers, PyTorch."""

import math
from ast import literal_eval
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array
from support.optimizers import make_optimizer, make_reference

STEPS = 100


def gradients(shape: tuple[int, ...] = (7, 3)) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3) for _ in range(STEPS)]


def assert_close(actual: Array, expected: Array, *, ulps: float) -> None:
    """Compare within units in the last place of the largest value that was rounded on the way."""
    scale = np.maximum(np.abs(expected), 1.0)
    assert np.max(np.abs(actual - expected) / scale) <= ulps * np.finfo(actual.dtype).eps


# The formulas, one element at a time in Python's floats.


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


def test_eps_hat_is_the_epsilon_of_keras_and_scikit_learn() -> None:
    w, m, v = np.array([0.5]), np.zeros(1), np.zeros(1)
    expected, first, second = 0.5, 0.0, 0.0
    for t, dw in enumerate(gradients((1,)), start=1):
        first = 0.9 * first + 0.1 * dw[0]
        second = 0.999 * second + 0.001 * dw[0] ** 2
        alpha = 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected -= alpha * first / (math.sqrt(second) + 0.1)
        reference.adam(w, dw, m, v, step=t, lr=0.01, eps=0.0, eps_hat=0.1)
        np.testing.assert_allclose(w, expected, rtol=1e-12)
    plain, uncorrected = np.array([0.5]), np.array([0.5])
    reference.adam(plain, dw, m.copy(), v.copy(), step=None, eps=0.75)
    reference.adam(uncorrected, dw, m, v, step=None, eps=0.5, eps_hat=0.25)
    assert plain == uncorrected


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_rate_in_the_velocity_is_that_of_the_gradients_own_step(
    nesterov: bool, dampening: float
) -> None:
    w, v = np.array([0.5]), np.zeros(1)
    expected, velocity = 0.5, 0.0
    form: dict[str, Any] = {"dampening": dampening, "nesterov": nesterov, "lr_in_velocity": True}
    for t, dw in enumerate(gradients((1,)), start=1):
        term = (1 - dampening) * (0.1 / t) * dw[0]  # as TensorFlow's ApplyMomentum has it
        velocity = 0.9 * velocity + term
        expected -= term + 0.9 * velocity if nesterov else velocity
        reference.momentum(w, dw, v, lr=0.1 / t, **form)
        np.testing.assert_allclose([w[0], v[0]], [expected, velocity], rtol=1e-12)
    corrected, plain = np.zeros((2, 1))
    reference.momentum(corrected, dw, v.copy(), lr=0.1, step=2, **form)
    reference.momentum(plain, dw, v, lr=0.1, **form)
    np.testing.assert_allclose(corrected, plain / (1 - 0.9**2), rtol=1e-14)


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


def test_decoupled_decay_shrinks_the_parameter_besides_adams_step() -> None:
    w, m, v = np.array([2.0]), np.zeros(1), np.zeros(1)
    expected, first, second = 2.0, np.zeros(1), np.zeros(1)
    for t, g in enumerate(gradients((1,)), start=1):
        reference.adam(w, g, m, v, step=t, lr=0.1, weight_decay=0.5, decoupled=True)
        step = np.zeros(1)
        reference.adam(step, g, first, second, step=t, lr=0.1)
        expected = expected * (1 - 0.1 * 0.5) + step[0]
        np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-14)


def test_lion_is_algorithm_2_of_its_paper() -> None:
    theta, m = np.array([0.5]), np.zeros(1)
    expected, average = 0.5, 0.0
    for g in gradients((1,)):
        c = 0.9 * average + (1 - 0.9) * g[0]
        expected -= 0.01 * (math.copysign(1, c) + 0.5 * expected)
        average = 0.99 * average + (1 - 0.99) * g[0]
        reference.lion(theta, g, m, lr=0.01, weight_decay=0.5)
        np.testing.assert_allclose([theta[0], m[0]], [expected, average], rtol=1e-12)
    theta[:], m[:] = 0.5, 0.0
    reference.lion(theta, np.zeros(1), m)
    assert theta == 0.5  # the sign of 0 is 0
    reference.lion(theta, np.array([np.nan]), m)
    assert np.isnan(theta)


@pytest.mark.parametrize("decay", [0.0, 0.004, 0.3, 50.0])
@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.9999, 1 - 2**-53])
def test_nadam_weighs_by_the_product_of_all_momenta(beta1: float, decay: float) -> None:
    product, t = 1.0, 0
    # Where m and the gradient are 1, and v is too.
    for last in (1, 2, 40, 400, 4000):
        while t < last:
            t += 1
            product *= beta1 * (1 - 0.5 * 0.96 ** (t * decay))
        mu, later = (beta1 * (1 - 0.5 * 0.96 ** (i * decay)) for i in (t, t + 1))
        w, m, v = np.zeros(1), np.ones(1), np.ones(1)
        options: Any = {"beta1": beta1, "beta2": 0.0, "eps": 0.0, "momentum_decay": decay}
        reference.nadam(w, np.ones(1), m, v, step=t, lr=1.0, **options)
        expected = (1 - mu) / (1 - product) + later / (1 - product * later)
        np.testing.assert_allclose(w, -expected, rtol=1e-12)
    for step in (10**6, 2**53 - 1):  # at once
        reference.nadam(w, np.ones(1), m, v, step=step, **options)
        schuss.kernels.nadam(w, np.ones(1), m, v, step=step, **options)


# The reference optimizer, by worked numbers.


def test_the_reference_optimizer_keeps_states_averages_and_copies() -> None:
    # beta 1/2, so v = 1, then 2.5; lr 1/2.
    params: Any = {"W": np.zeros(2, np.float32), "b": [np.zeros((), np.float32)]}
    optimizer = reference.Optimizer(
        "momentum", params, lr=lambda t: 0.5, beta=0.5, average=0.75, copies="float16"
    )
    grads: list[Any] = [
        {"W": np.full(2, g, np.float32), "b": [np.array(g, np.float32)]} for g in (2, 4, -2.5)
    ]
    optimizer.step(grads[0])
    assert [tree["W"].tolist() for tree in (params, optimizer.average)] == [[-0.5] * 2] * 2
    optimizer.step(grads[1])
    assert optimizer.state["velocity"]["W"].tolist() == [2.5, 2.5]
    assert params["b"][0] == optimizer.copies["b"][0] == -1.75
    assert optimizer.copies["W"].dtype == np.float16
    assert optimizer.average["b"][0] == 0.75 * -0.5 + 0.25 * -1.75
    optimizer.set(average_bias_correction=True)
    assert optimizer.average["W"].tolist() == [-1.75, -1.75]  # the parameters, until the next step
    optimizer.step(grads[2])
    assert optimizer.average["W"].tolist() == [-1.75, -1.75]  # v = 0; divided by its weight
    assert optimizer.steps == 3


def test_the_reference_optimizer_accumulates_clips_skips_and_clears() -> None:
    w = np.zeros(2)
    optimizer = reference.Optimizer(
        "sgd", w, lr=1.0, clip_norm=2.5, nonfinite="skip", clear_grads=True
    )
    grads = [np.array([100.0, 4.0]), np.array([-97.0, 0.0])]
    for grad in grads:
        optimizer.accumulate(grad)
    assert optimizer.accumulated == 2
    assert not np.any(grads)
    optimizer.step()
    np.testing.assert_allclose(w, [-1.5, -2.0], rtol=1e-6)
    assert optimizer.last is not None
    assert optimizer.last[:3] == (5.0, True, False)
    optimizer.step(np.array([np.inf, 0.0]))
    assert (optimizer.steps, optimizer.skipped, optimizer.accumulated) == (1, 1, 0)
    np.testing.assert_allclose(w, [-1.5, -2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="expected grads, or some accumulated"):
        optimizer.step()
    optimizer.accumulate(np.zeros(2))
    optimizer.zero_grad()
    optimizer.set(nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"grads\[0\] has a NaN or an infinity"):
        optimizer.step(np.array([np.nan, 0.0]))


def test_the_reference_optimizer_has_groups() -> None:
    groups = {"a": {"lr": 0.5}, "b": {"weight_decay": 0.25}, "c": {"lr": 0.5}}
    params = {key: np.ones(1) for key in "abc"}
    optimizer = reference.Optimizer("sgd", params, lr=1.0, groups=groups.get)
    optimizer.step({key: np.ones(1) for key in "abc"})
    assert [param.item() for param in params.values()] == [0.5, 1 - 1.25, 0.5]
    optimizer.set(group=0, lr=0.0)
    optimizer.set(lr=2.0)
    optimizer.step({key: np.ones(1) for key in "abc"})
    assert [param.item() for param in params.values()] == [0.5, -0.25 - 2 * (1 - 0.0625), 0.5]
    adam = reference.Optimizer("adam", params, lr=1.0, groups=groups.get)
    with pytest.raises(ValueError, match="the groups need different states"):
        adam.set(group=0, amsgrad=True)
    adam.set(amsgrad=True)
    assert list(adam.state) == ["m", "v", "v_max"]


def test_the_reference_optimizer_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="kind is 'newton', expected one of sgd, momentum"):
        reference.Optimizer("newton", np.zeros(1), lr=0.1)
    with pytest.raises(
        TypeError, match="got an unexpected keyword argument 'beta', expected one of lr, "
    ):
        reference.Optimizer("sgd", np.zeros(1), lr=0.1, beta=0.5)


# Peers, where their formulas are the same: 100 steps in float64.

# Of each pair, scikit-learn's optimizer and ours.
SCIKIT_LEARN = [
    ("AdamOptimizer", "Adam eps=0.0 eps_hat=1e-8"),
    ("AdamOptimizer epsilon=0.1 beta_1=0.5", "Adam eps=0.0 eps_hat=0.1 beta1=0.5"),
    ("SGDOptimizer nesterov=False", "Momentum dampening=0.0 lr_in_velocity=True"),
    ("SGDOptimizer", "Momentum dampening=0.0 lr_in_velocity=True nesterov=True"),
]


@pytest.mark.parametrize(("peer", "ours"), SCIKIT_LEARN)
def test_a_hundred_steps_with_falling_rates_agree_with_scikit_learn(peer: str, ours: str) -> None:
    peers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    (peer, peer_options), (name, options) = parsed(peer), parsed(ours)
    start = np.random.default_rng(1).standard_normal((7, 3))
    theirs = [start.copy()]
    their_optimizer = getattr(peers, peer)(theirs, 0.01, **peer_options)
    attribute = "learning_rate" if name == "Momentum" else "learning_rate_init"
    optimizer = make_optimizer(name, start, lr=lambda t: 0.01 / t, **options)
    for t, g in enumerate(gradients(), start=1):
        setattr(their_optimizer, attribute, 0.01 / t)
        their_optimizer.update_params(theirs, [g])
        optimizer.step(g)
    assert_close(optimizer.params, theirs[0], ulps=8)


# PyTorch.

# Of each pair, PyTorch's optimizer and ours.
PEERS = [
    ("SGD", "SGD"),
    ("SGD weight_decay=0.1", "SGD weight_decay=0.1"),
    ("SGD momentum=0.9", "Momentum dampening=0.0"),
    ("SGD momentum=0.9 nesterov=True", "Momentum dampening=0.0 nesterov=True"),
    ("SGD momentum=0.5 weight_decay=0.1", "Momentum beta=0.5 dampening=0.0 weight_decay=0.1"),
    ("RMSprop alpha=0.9", "RMSprop"),
    ("RMSprop alpha=0.99 eps=1e-3", "RMSprop beta=0.99 eps=1e-3"),
    ("RMSprop alpha=0.9 centered=True", "RMSprop centered=True"),
    ("RMSprop alpha=0.9 momentum=0.9 weight_decay=0.1", "RMSprop momentum=0.9 weight_decay=0.1"),
    ("RMSprop alpha=0.9 centered=True momentum=0.5", "RMSprop centered=True momentum=0.5"),
    ("Adam", "Adam"),
    ("Adam betas=(0.5,0.9) eps=1e-3", "Adam beta1=0.5 beta2=0.9 eps=1e-3"),
    ("Adam weight_decay=0.1", "Adam weight_decay=0.1"),
    ("Adam amsgrad=True", "Adam amsgrad=True"),
    ("AdamW", "AdamW"),
    ("SGD momentum=0.9 maximize=True", "Momentum dampening=0.0 maximize=True"),
    ("RMSprop alpha=0.9 maximize=True weight_decay=0.1", "RMSprop maximize=True weight_decay=0.1"),
    ("Adam maximize=True weight_decay=0.1", "Adam maximize=True weight_decay=0.1"),
    ("AdamW maximize=True", "AdamW maximize=True"),
    ("AdamW weight_decay=0.5 amsgrad=True", "AdamW weight_decay=0.5 amsgrad=True"),
    *(
        (f"{name} {options}", f"{name} {options}")
        for name in ("Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")
        for options in ("", "weight_decay=0.1")
    ),
    *(
        (options, options)
        for options in (
            "Adagrad lr_decay=0.5 initial_accumulator_value=0.25 eps=1e-3",
            "Adadelta rho=0.5 eps=1e-3",
            "NAdam momentum_decay=0.5 eps=1e-3",
            "NAdam weight_decay=0.5 decoupled_weight_decay=True",
            "RAdam weight_decay=0.5 decoupled_weight_decay=True",
        )
    ),
    ("Adamax betas=(0.5,0.75) eps=1e-3", "Adamax beta1=0.5 beta2=0.75 eps=1e-3"),
    ("NAdam betas=(0.5,0.75)", "NAdam beta1=0.5 beta2=0.75"),
    ("RAdam betas=(0.5,0.9) eps=1e-3", "RAdam beta1=0.5 beta2=0.9 eps=1e-3"),
    ("RAdam betas=(0.5,0.5)", "RAdam beta1=0.5 beta2=0.5"),
]


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a class and its keyword arguments."""
    name, *arguments = text.split()
    return name, {key: literal_eval(value) for key, value in (a.split("=") for a in arguments)}


@pytest.mark.parametrize("make", [make_optimizer, make_reference])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("peer", "ours"), PEERS)
def test_a_hundred_steps_agree_with_pytorch(
    peer: str, ours: str, dtype: Any, make: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)  # that of NAdam's product of momenta
    request.addfinalizer(partial(torch.set_default_dtype, torch.float32))
    (peer, peer_options), (name, options) = parsed(peer), parsed(ours)
    start = np.random.default_rng(1).standard_normal((7, 3)).astype(dtype)
    theirs = torch.tensor(start.copy(), requires_grad=True)
    their_optimizer = getattr(torch.optim, peer)([theirs], lr=0.01, **peer_options)
    optimizer = make(name, start, lr=0.01, **options)
    for g in gradients():
        theirs.grad = torch.from_numpy(g.astype(dtype))
        their_optimizer.step()
        optimizer.step(g.astype(dtype))
    ulps = {np.float64: 8, np.float32: 32}[dtype]
    assert_close(optimizer.params, theirs.detach().numpy(), ulps=ulps)


def test_dampening_agrees_with_pytorch_from_an_equal_start() -> None:
    # PyTorch starts the velocity with the whole first gradient, with any dampening.
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
