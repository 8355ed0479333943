"""torch.distributed over gloo: gradients are all-reduced, then ZeroRedundancyOptimizer steps.

The all-reduce is one operation an array, all at once: buckets of 25 MiB, as
DistributedDataParallel has them, were not faster. ZeRO with one bucket for the parameters and the
fused step were its fastest options. It shares out whole arrays.
"""

import atexit
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import schuss
from benchmarks.mpi.ways import HYPERPARAMETERS, Prepared, Task, Way


def _connect(comm: Any) -> None:
    """Start the process group of the ranks, which meet at a file, unless it runs."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    torch.set_num_threads(schuss.num_threads())
    rank, name = comm.Get_rank(), ""
    if rank == 0:
        with tempfile.NamedTemporaryFile() as file:
            name = file.name
    path = comm.bcast(name)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=comm.Get_size()
    )
    atexit.register(dist.destroy_process_group)


def _torch(task: Task, make: Callable[..., Any], *, copies_params: bool = False) -> Prepared:
    import torch
    import torch.distributed as dist

    _connect(task.comm)
    params = [torch.nn.Parameter(torch.from_numpy(param)) for param in task.params]
    sums = [torch.zeros_like(param) for param in params]
    for param, of_all in zip(params, sums, strict=True):
        param.grad = of_all
    optimizer = make(
        params,
        lr=HYPERPARAMETERS["lr"],
        betas=(HYPERPARAMETERS["beta1"], HYPERPARAMETERS["beta2"]),
        eps=HYPERPARAMETERS["eps"],
        fused=True,
    )

    def before() -> None:  # the sum overwrites them; they are divided first, as in DDP
        for grad, of_all in zip(task.grads, sums, strict=True):
            np.divide(grad, task.ranks, out=of_all.numpy())

    def step() -> None:
        for reduction in [dist.all_reduce(of_all, async_op=True) for of_all in sums]:
            reduction.wait()
        optimizer.step()

    def finish() -> None:
        for param, array in zip(params, task.params, strict=True):
            np.copyto(array, param.detach().numpy())

    def state_bytes() -> int:
        states = getattr(optimizer, "optim", optimizer).state.values()
        return sum(a.nbytes for state in states for name, a in state.items() if name != "step")

    copies = 1 + copies_params  # it reduces gradients in their memory, here in that of a copy
    return Prepared(step, state_bytes, before, copies * task.flat_grads.nbytes, finish)


def _zero(task: Task) -> Prepared:
    import torch
    from torch.distributed.optim import ZeroRedundancyOptimizer

    make = partial(
        ZeroRedundancyOptimizer,
        optimizer_class=torch.optim.Adam,
        parameters_as_bucket_view=True,
    )
    return _torch(task, make, copies_params=True)


def _adam(task: Task) -> Prepared:
    import torch

    return _torch(task, torch.optim.Adam)


ZERO = Way("torch all_reduce, ZeRO over gloo", _zero, packages=["torch"])
TORCH_WAYS = (
    ZERO,
    Way("torch all_reduce, full step over gloo", _adam, packages=["torch"]),
)
