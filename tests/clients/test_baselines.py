"""The Adam of OpenAI's and stable's baselines: one flat vector, and a sum over processes."""

import numpy as np
import pytest

import schuss
from support.arrays import Array


class Policy:
    """Variables that are read and set as one flat vector, as those of a TensorFlow session are."""

    def __init__(self, rng: np.random.Generator) -> None:
        shapes = [(6, 4), (4,), (4, 2), (2,)]
        self.variables = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def getflat(self) -> Array:
        return np.concatenate([variable.ravel() for variable in self.variables])

    def setfromflat(self, vector: Array) -> None:
        start = 0
        for variable in self.variables:
            variable[...] = vector[start : start + variable.size].reshape(variable.shape)
            start += variable.size


class TheirAdam:
    """Adam as their classes ``MpiAdam`` have it: the step size is corrected, epsilon is not."""

    def __init__(self, policy: Policy, beta1: float, beta2: float, epsilon: float) -> None:
        self.policy, self.beta1, self.beta2, self.epsilon = policy, beta1, beta2, epsilon
        self.m, self.v, self.t = np.float32(0), np.float32(0), 0

    def update(self, gradients: list[Array], learning_rate: float) -> None:
        gradient = np.add.reduce(gradients) / len(gradients)  # over the processes
        self.t += 1
        size = learning_rate * (1 - self.beta2**self.t) ** 0.5 / (1 - self.beta1**self.t)
        self.m = self.beta1 * self.m + (1 - self.beta1) * gradient
        self.v = self.beta2 * self.v + (1 - self.beta2) * (gradient * gradient)
        change = -size * self.m / (np.sqrt(self.v) + self.epsilon)
        self.policy.setfromflat(self.policy.getflat() + change)


class OurAdam:
    """The same interface; a step of ours."""

    def __init__(self, policy: Policy, beta1: float, beta2: float, epsilon: float) -> None:
        self.policy, self.flat = policy, policy.getflat()
        self.opt = schuss.Adam(self.flat, beta1=beta1, beta2=beta2, eps=0.0, eps_hat=epsilon)

    def update(self, gradients: list[Array], learning_rate: float) -> None:
        self.opt.lr = learning_rate
        self.opt.step(np.add.reduce(gradients), scale=1 / len(gradients))
        self.policy.setfromflat(self.flat)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon"), [(0.9, 0.999, 1e-8), (0.9, 0.999, 1e-5), (0.5, 0.9, 0.1)]
)
def test_a_policy_is_updated_as_their_adam_updates_it(
    beta1: float, beta2: float, epsilon: float, processes: int
) -> None:
    policies = [Policy(np.random.default_rng(0)) for _ in range(2)]
    theirs = TheirAdam(policies[0], beta1, beta2, epsilon)
    ours = OurAdam(policies[1], beta1, beta2, epsilon)
    rng = np.random.default_rng(1)
    for t in range(100):
        gradients = list(rng.standard_normal((processes, 38)).astype(np.float32))
        rate = 0.01 * (1 - t / 100)
        theirs.update(gradients, rate)
        ours.update(gradients, rate)
        np.testing.assert_allclose(
            policies[1].getflat(), policies[0].getflat(), rtol=1e-5, atol=1e-6
        )
