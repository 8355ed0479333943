"""pyribs' OpenAI-ES with our Adam in its place: the same search, uphill, in steps as long."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array

strategies = pytest.importorskip("ribs.emitters.opt")


class OurAdam:
    """The interface of pyribs' optimizers; a step of ours."""

    def __init__(self, make: Callable[[Array], schuss.optimizers.Optimizer]) -> None:
        self.make = make

    def reset(self, theta0: Array) -> None:
        self.theta = np.array(theta0)
        self.opt = self.make(self.theta)

    def step(self, gradient: Array) -> None:
        self.opt.step(gradient)


def reward(solutions: Array) -> Any:
    """Return the height of a bent ridge at each solution."""
    first, rest = solutions[:, 0], solutions[:, 1:]
    return -((first - 1) ** 2) - 3 * ((rest - first[:, None] ** 2) ** 2).sum(axis=1)


SETTINGS: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({}, {"eps_hat": 1e-8}),
    ({"l2_coeff": 0.005}, {"weight_decay": 0.005, "eps_hat": 1e-8}),
    ({"beta1": 0.99, "epsilon": 0.1}, {"beta1": 0.99, "eps_hat": 0.1}),
]


@pytest.mark.parametrize(("theirs", "ours"), SETTINGS)
def test_an_evolution_strategy_searches_along_the_same_path(
    theirs: dict[str, float], ours: dict[str, Any]
) -> None:
    searches = [
        strategies.OpenAIEvolutionStrategy(
            0.1, solution_dim=6, batch_size=20, seed=0, lr=0.05, **theirs
        )
        for _ in range(2)
    ]
    searches[1].adam_opt = OurAdam(
        lambda theta: schuss.Adam(theta, lr=0.05, eps=0.0, maximize=True, track_norms=True, **ours)
    )
    start = np.full(6, -0.5)
    for search in searches:
        search.reset(start)
    for _ in range(60):
        before = searches[0].adam_opt.theta.copy()
        for search in searches:
            rewards = reward(search.ask())
            ranking = np.argsort(-rewards, kind="stable")
            search.tell(ranking, rewards[ranking], num_parents=10)
        thetas = [search.adam_opt.theta for search in searches]
        np.testing.assert_allclose(thetas[1], thetas[0], rtol=1e-9, atol=1e-12)
        # The ratio that OpenAI's code returns from each step.
        ratio = np.linalg.norm(thetas[0] - before) / np.linalg.norm(before)
        last = searches[1].adam_opt.opt.last
        np.testing.assert_allclose(last.update_norm / last.param_norm, ratio, rtol=1e-7)
    assert reward(thetas[1][None]) > reward(start[None]) / 4
