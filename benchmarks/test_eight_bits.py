"""State of 8 bits excuses small deviations, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from benchmarks import harness
from benchmarks.dtypes import CHECK_SIZE_OF_BLOCKS, FAST_IN_8_BITS, Formats
from benchmarks.harness import Array, Contender, Problem, Step, WrongResultError, check


def _in_32_bits(state_bytes: int, **wrong: float) -> Contender:
    """Return who trains in float32, perhaps by other hyperparameters, and tells a size."""

    def prepare(problem: Problem, **hyperparameters: float) -> Step:
        ((param,), (grad,)) = problem.params, problem.grads
        settings: dict[str, Any] = {**hyperparameters, **wrong}
        optimizer = schuss.reference.Optimizer("adam", param, **settings)
        problem.state_bytes[...] = state_bytes
        return lambda: optimizer.step(grad)

    return Contender("impostor", {"Adam": prepare})


IN_8_BITS = Formats("float32", "float32", harness.EIGHT_BITS)
CODES = CHECK_SIZE_OF_BLOCKS * 2


@pytest.mark.parametrize(
    ("impostor", "message"),
    [
        *(
            (_in_32_bits(CODES, **{name: factor * FAST_IN_8_BITS.hyperparameters[name]}), "off a")
            for name, factor in (("lr", 1.01), ("beta1", 0.99), ("beta2", 0.99), ("eps", 0.9))
        ),
        (_in_32_bits(4 * CODES), "its state has 1,048,576 bytes, expected about 270,336"),
        (_in_32_bits(0), "its state has 0 bytes"),
    ],
    ids=["lr", "beta1", "beta2", "eps", "32 bits", "no state"],
)
def test_state_of_8_bits_does_not_excuse_another_training_or_more_memory(
    impostor: Contender, message: str
) -> None:
    check(_in_32_bits(CODES), IN_8_BITS.posed_to_check(CHECK_SIZE_OF_BLOCKS))
    with pytest.raises(WrongResultError, match=f"impostor: .*{message}"):
        check(impostor, IN_8_BITS.posed_to_check(CHECK_SIZE_OF_BLOCKS))


@pytest.mark.parametrize(
    ("spoil", "how"),
    [
        (lambda changes: 1.01 * changes, "on average 1.00%"),
        (lambda changes: changes + np.where(np.arange(len(changes)) % 2, 0.05, -0.05), "typically"),
        (lambda changes: np.where(changes == 0, 9.0, changes), "at most 900.00%"),
    ],
)
def test_changes_that_8_bits_do_not_explain_are_refused(
    spoil: Callable[[Array], Array], how: str
) -> None:
    changes = np.random.default_rng(0).choice([-1.0, 1.0], 100_000)
    changes[7] = 0
    harness.check_changes("who", np.where(changes < 0, 1.001, 0.999) * changes, changes)
    with pytest.raises(WrongResultError, match=f"who is {how}"):
        harness.check_changes("who", spoil(changes), changes)
