"""What a refusal must be: an error with certain words, after which nothing has changed."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.optimizers import Optimizer
from support.arrays import leaves
from support.optimizers import OPTIMIZERS, OTHER_VALUES

# The paths of the parameters.
PATHS: list[tuple[Any, ...]] = [("W1",), ("layers", 0), ("layers", 1)]


def no_arrays() -> list[Any]:
    return [None, 1.5, "weights", {1.5}, (x for x in [1.5])]


def subscripts(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: tuple[Any, ...], value: object) -> Any:
    """Replace what is at a path of the tree, and return the tree."""
    at(tree, path[:-1])[path[-1]] = value
    return tree


def make_params() -> dict[str, Any]:
    return {
        "W1": np.ones((3, 2), np.float32),
        "layers": [np.full((2, 2), 0.5), np.full(4, -1, np.float32)],
    }


def make_grads() -> dict[str, Any]:
    return {
        "W1": np.full((3, 2), 0.25, np.float32),
        "layers": [np.full((2, 2), -2.0), np.full(4, 0.125, np.float32)],
    }


def make_optimizer(name: str, params: Any = None, *, steps: int = 0, **options: Any) -> Any:
    """Return an optimizer that has all its states, after some steps."""
    needed = {h: OTHER_VALUES[h] for h in OPTIMIZERS[name].optional_states.values()}
    params = make_params() if params is None else params
    optimizer = getattr(schuss, name)(params, **(needed | options))
    for _ in range(steps):
        optimizer.step(make_grads())
    return optimizer


def contents(tree: Any) -> list[bytes]:
    """Return the bytes of the arrays and the optimizers in a structure."""
    found = []
    for leaf in leaves(tree):
        if isinstance(leaf, Optimizer):
            found += [pickle.dumps(leaf.state_dict()), *contents([leaf.params, leaf.state])]
        elif isinstance(leaf, np.ndarray):
            found.append(leaf.tobytes())
    return found


@contextmanager
def refusal(error: type[Exception], *words: str, keeps: Any) -> Iterator[None]:
    """Expect an error whose message begins with the first words and has the others.

    keeps: the arrays and optimizers that must be as before.
    """
    before = contents(keeps)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(words[0])
    for word in words[1:]:
        assert word in message
    assert contents(keeps) == before
