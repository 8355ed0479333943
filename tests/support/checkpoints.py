"""What a training has, and checkpoints of small ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from support.arrays import bits, leaves


def snapshot(optimizer: Any) -> list[bytes]:
    """Return the parameters of an optimizer and everything that it has, as bytes."""
    state = optimizer.state_dict()
    average, accumulated = (state[name] or {"values": []} for name in ("average", "accumulated"))
    trees = [optimizer.params, state["state"], average["values"], accumulated["values"]]
    trees.append(state["master"])
    arrays = [array for array in leaves([*trees, optimizer.copies]) if array is not None]
    counts = (optimizer.steps, optimizer.skipped, optimizer.accumulated, optimizer.lr_now)
    return [*bits(arrays), repr(counts).encode()]


def small_training(path: Path) -> tuple[Any, Any]:
    """Save a training, train on, and return its optimizer and mini-batches."""
    w = np.arange(3.0)
    optimizer = schuss.Momentum(w, lr=schedules.Linear(0.1, 0.2, steps=3))
    optimizer.step(np.ones(3))
    batches = schuss.minibatches(np.arange(10), rng=0)
    schuss.save(path, w, optimizer, batches=batches, extra={"a": np.zeros(2, np.float16)})
    optimizer.step(np.ones(3))
    list(batches)
    return optimizer, batches


@contextmanager
def refused(words: str, optimizer: Any, batches: Any = None) -> Iterator[None]:
    """Expect a ValueError of `load` with these words, and that nothing changes."""
    before, drawn = snapshot(optimizer), batches and batches.state_dict()
    with pytest.raises(ValueError, match=r"^load: ") as caught:
        yield
    assert words in str(caught.value)
    assert snapshot(optimizer) == before
    assert (batches and batches.state_dict()) == drawn


def check_load_is_refused(words: str, path: Path, optimizer: Any, batches: Any = None) -> None:
    with refused(words, optimizer, batches):
        schuss.load(path, optimizer.params, optimizer, batches=batches)
