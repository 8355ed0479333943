"""Ways to make one Adam step of all ranks: schuss.mpi, an all-reduce and a full step, and parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import schuss
from benchmarks.contenders import ADAM
from benchmarks.harness import Array, Step
from benchmarks.peers.packages import installed

HYPERPARAMETERS: Mapping[str, Any] = ADAM.hyperparameters
CLIP_NORM = 1.0
"""Smaller than the norm of the gradients: every step is clipped."""


def nothing() -> None:
    """Do nothing."""


class Task:
    """The arrays of a rank: parameters, which are the same on all ranks, and its gradients.

    Each list is consecutive views of one array, so that a communication of one buffer needs no
    copy.
    """

    def __init__(self, comm: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        self.comm = comm
        self.ranks: int = comm.Get_size()
        self.shapes = list(shapes)
        self.params, self.flat_params = self.arrays()
        self.grads, self.flat_grads = self.arrays()

    def arrays(self) -> tuple[list[Array], Array]:
        """Return arrays of the shapes of the parameters, and the flat one that they lie in."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        flat = np.zeros(sum(sizes), np.float32)
        pieces = np.split(flat, np.cumsum(sizes)[:-1])
        return [a.reshape(shape) for a, shape in zip(pieces, self.shapes, strict=True)], flat


@dataclass(frozen=True)
class Prepared:
    """A contender's step on a task."""

    step: Step
    state_bytes: Callable[[], int] = lambda: 0
    """The size of this rank's state, after the first step."""
    before: Step = nothing
    """Called before each step, outside the clock."""
    surplus: int = 0
    """Bytes that only the benchmark needs, as all contenders share parameters and gradients."""
    finish: Step = nothing
    """Copies results into the task's parameters, for contenders that keep their own."""


def exactly(grad: Array) -> Array:
    """Return the gradient as it is."""
    return grad


@dataclass(frozen=True)
class Way:
    """A contender, or a part of one, which computes no step of all ranks and is not checked."""

    name: str
    prepare: Callable[[Task], Prepared]
    packages: Sequence[str] = ()
    part: bool = False
    exact: bool = False
    """Whether it must have the bits of the reference."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the reference that computes the same."""
    as_sent: Callable[[Array], Array] = exactly
    """Returns a gradient as the other ranks receive it."""

    def present(self) -> bool:
        return installed(*self.packages)


def in_bfloat16(grad: Array) -> Array:
    """Return float32 values rounded to bfloat16."""
    bfloat16 = np.dtype(import_module("ml_dtypes").bfloat16)
    return grad.astype(bfloat16).astype(np.float32)


def _sharded(task: Task, **options: Any) -> Prepared:
    from schuss.mpi import Sharded

    opt = Sharded(schuss.Adam, task.params, task.comm, **HYPERPARAMETERS, **options)
    return Prepared(partial(opt.step, task.grads), lambda: opt.state_bytes)


def sharded(how: str = "", **options: Any) -> Way:
    """Return schuss.mpi with options."""
    on_the_wire = "wire_dtype" in options
    same_of_reference = {
        name: value for name, value in options.items() if name in ("clip_norm", "state_dtype")
    }
    return Way(
        f"schuss.mpi, {how}" if how else "schuss.mpi",
        partial(_sharded, **options),
        packages=["ml_dtypes"] if on_the_wire else [],
        exact=True,
        options=same_of_reference,
        as_sent=in_bfloat16 if on_the_wire else exactly,
    )


def _all_reduced(task: Task, *, in_one: bool) -> Prepared:
    sums, flat_sums = task.arrays()
    opt = schuss.Adam(task.params, **HYPERPARAMETERS)

    def step() -> None:
        if in_one:
            task.comm.Allreduce(task.flat_grads, flat_sums)
        else:
            for grad, of_all in zip(task.grads, sums, strict=True):
                task.comm.Allreduce(grad, of_all)
        opt.step(sums, scale=1 / task.ranks)

    return Prepared(step, lambda: opt.state_bytes)


# Parts of a step.


def _all_reduce_alone(task: Task) -> Prepared:
    sums, _ = task.arrays()

    def step() -> None:
        for grad, of_all in zip(task.grads, sums, strict=True):
            task.comm.Allreduce(grad, of_all)

    return Prepared(step)


def _library_alone(task: Task) -> Prepared:
    """Prepare MPI's own reduce-scatter of the gradients and gather of the parameters."""
    part = max(task.flat_grads.size // task.ranks, 1)
    gradient, gathered = np.zeros(part, np.float32), np.zeros(part * task.ranks, np.float32)
    whole = np.zeros(part * task.ranks, np.float32)  # the size divides by the number of ranks
    whole[: task.flat_grads.size] = task.flat_grads[: whole.size]

    def step() -> None:
        task.comm.Reduce_scatter_block(whole, gradient)
        task.comm.Allgather(gradient, gathered)

    return Prepared(step)


def _exchange_alone(task: Task) -> Prepared:
    """Prepare the sums of the gradients and the way back of the parameters, without a step."""
    from schuss.mpi import Sharded
    from schuss.mpi._shards import shards_of

    shards = shards_of(Sharded(schuss.SGD, task.params, task.comm))
    assert shards is not None
    exchange = shards.exchange

    def step() -> None:
        exchange.begin(task.grads, [grad.dtype for grad in task.grads])
        for k in range(len(exchange.ends)):
            exchange.sum_of(k)
            exchange.send(k)
        exchange.finish()

    return Prepared(step)


def _full_step_alone(task: Task) -> Prepared:
    opt = schuss.Adam(task.params, **HYPERPARAMETERS)
    return Prepared(partial(opt.step, task.grads), lambda: opt.state_bytes)


def _own_step_alone(task: Task) -> Prepared:
    """Prepare a step of one rank's share, on all ranks at once."""
    share = slice(max(task.flat_params.size // task.ranks, 1))
    opt = schuss.Adam(task.flat_params[share], **HYPERPARAMETERS)
    return Prepared(partial(opt.step, task.flat_grads[share]), lambda: opt.state_bytes)


OURS = sharded()
IN_BFLOAT16 = sharded("bfloat16 on the wire", wire_dtype="bfloat16")
ALL_REDUCE = Way("Allreduce, full step", partial(_all_reduced, in_one=False))
FULL_STEP = Way("part: full step", _full_step_alone, part=True)
WAYS = (
    OURS,
    sharded("deterministic", deterministic=True),
    IN_BFLOAT16,
    sharded("clip_norm", clip_norm=CLIP_NORM),
    sharded("8-bit state", state_dtype="8bit"),
    ALL_REDUCE,
    Way("Allreduce of one buffer, full step", partial(_all_reduced, in_one=True)),
)
PARTS = (
    Way("part: schuss.mpi's exchange", _exchange_alone, part=True),
    Way("part: Allreduce", _all_reduce_alone, part=True),
    Way("part: Reduce_scatter, Allgather", _library_alone, part=True),
    FULL_STEP,
    Way("part: step of one's own share", _own_step_alone, part=True),
)
