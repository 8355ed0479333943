"""qiskit's ADAM and AMSGRAD against ours, alone and within its eigensolver: the same points."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array

algorithms = pytest.importorskip("qiskit_algorithms")
gradients = pytest.importorskip("qiskit_algorithms.gradients")
optimizers = pytest.importorskip("qiskit_algorithms.optimizers")
library = pytest.importorskip("qiskit.circuit.library")
primitives = pytest.importorskip("qiskit.primitives")
information = pytest.importorskip("qiskit.quantum_info")

# Settings of qiskit's ADAM, and ours: its noise factor is the epsilon on the uncorrected root.
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"eps_hat": 1e-8}),
    ({"amsgrad": True}, {"amsgrad": True, "eps_hat": 1e-8}),
    ({"beta_1": 0.5, "noise_factor": 0.1}, {"beta1": 0.5, "eps_hat": 0.1}),
    (
        {"beta_2": 0.9, "noise_factor": 0.01, "amsgrad": True},
        {"beta2": 0.9, "eps_hat": 0.01, "amsgrad": True},
    ),
]


class Minimize:
    """A minimizer in qiskit's protocol whose steps are ours."""

    def __init__(self, steps: int, **settings: Any) -> None:
        self.steps = steps
        self.settings = {"beta2": 0.99, "eps": 0.0, **settings}

    def __call__(
        self,
        fun: Callable[[Array], float],
        x0: Array,
        jac: Callable[[Array], Array],
        bounds: object = None,
    ) -> Any:
        result = optimizers.OptimizerResult()
        result.x, result.nfev = np.array(x0), self.steps
        opt = schuss.Adam(result.x, **self.settings)
        for _ in range(self.steps):
            opt.step(jac(result.x))
        result.fun = fun(result.x)
        return result


def slope(x: Array) -> Array:
    """Return the gradient of a curved valley; the first coordinate has none."""
    tilt = np.arange(len(x))
    return np.asarray(tilt * np.sin(x) + 0.1 * tilt**2 * (x - 0.3))


@pytest.mark.parametrize(("theirs", "ours"), SETTINGS)
def test_a_function_is_minimized_through_qiskits_points(
    theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    paths: tuple[list[Array], list[Array]] = ([], [])

    def recording(path: list[Array]) -> Callable[[Array], Array]:
        def gradient(x: Array) -> Array:
            path.append(x.copy())
            return slope(x)

        return gradient

    start = np.linspace(-2.0, 2.0, 7)
    qiskits = optimizers.ADAM(maxiter=60, tol=0.0, lr=0.1, **theirs)
    end = qiskits.minimize(lambda x: 0.0, start, jac=recording(paths[0]))
    ours_end = Minimize(60, lr=0.1, **ours)(lambda x: 0.0, start, recording(paths[1]))
    np.testing.assert_allclose([*paths[1], ours_end.x], [*paths[0], end.x], rtol=1e-9, atol=1e-12)


def test_the_eigensolver_finds_the_same_state_by_our_steps() -> None:
    estimator = primitives.StatevectorEstimator()
    hamiltonian = information.SparsePauliOp.from_list([("ZZ", 1.0), ("XI", 0.5), ("IX", 0.5)])

    def solve(optimizer: Any) -> Any:
        solver = algorithms.VQE(
            estimator,
            library.n_local(2, "ry", "cz", reps=1),
            optimizer,
            gradient=gradients.ParamShiftEstimatorGradient(estimator),
            initial_point=np.array([0.3, -0.2, 0.5, 0.1]),
        )
        return solver.compute_minimum_eigenvalue(hamiltonian)

    theirs = solve(optimizers.ADAM(maxiter=100, tol=0.0, lr=0.1))
    ours = solve(Minimize(100, lr=0.1, eps_hat=1e-8))
    np.testing.assert_allclose(ours.optimal_point, theirs.optimal_point, rtol=1e-7)
    assert ours.eigenvalue == pytest.approx(theirs.eigenvalue)
    assert ours.eigenvalue == pytest.approx(np.linalg.eigvalsh(hamiltonian).min(), abs=0.01)
