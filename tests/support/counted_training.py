"""A training whose steps are the same bit for bit on any number of ranks.

The gradients are small integers, and each element has its gradient on one rank only: their sum is
exact.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import schuss
from support.arrays import Array, leaves, same_bits

Params = dict[str, Array]


def parameters() -> Params:
    return {"w": np.zeros((300, 401)), "b": np.zeros((501, 140), np.float32, order="F")}


def make(optimizer: Callable[..., Any], **options: Any) -> Any:
    """Return the optimizer: `schuss.AdamW`, or a function that makes a sharded one."""
    return optimizer(params=parameters(), lr=0.01, **options)


def gradients(step: int, rank: int = 0, ranks: int = 1) -> Params:
    """Return this rank's gradients of a step, which counts from 1."""
    rng = np.random.default_rng(step)
    grads = {}
    for name, param in parameters().items():
        grad = rng.integers(-9, 9, param.shape).astype(param.dtype)
        grad.reshape(-1)[np.arange(grad.size) % ranks != rank] = 0
        grads[name] = grad
    return grads


SHARDED = """
import os, signal, sys
from functools import partial
import numpy as np, schuss
from mpi4py import MPI
from schuss.mpi import Sharded
from support.counted_training import gradients, make
rank, ranks = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
sharded = partial(Sharded, schuss.AdamW, comm=MPI.COMM_WORLD, reduction="sum")
optimizer = make(sharded, timeout=float(sys.argv[1]))
params = optimizer.params
def grads(): return gradients(optimizer.steps + 1, rank, ranks)
"""
"""The beginning of a program of several ranks; its first argument is the timeout."""


class OneProcess:
    """The same training in one process."""

    def __init__(self) -> None:
        self.optimizer = make(schuss.AdamW)

    def check(self, other: Any) -> None:
        """Train on until the step of another optimizer, and compare with that."""
        while self.optimizer.steps < other.steps:
            self.optimizer.step(gradients(self.optimizer.steps + 1))
        assert self.optimizer.steps == other.steps
        for name in ("params", "state"):
            trees = (getattr(optimizer, name) for optimizer in (self.optimizer, other))
            assert all(map(same_bits, *map(leaves, trees))), name
