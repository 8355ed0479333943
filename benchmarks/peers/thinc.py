"""thinc's optimizer."""

from functools import partial

import numpy as np

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import installed


def thinc_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    from thinc.api import Optimizer

    options = {"L2": 0.0, "grad_clip": 0.0, "use_averages": False}
    optimizer = Optimizer(lr, beta1=beta1, beta2=beta2, eps=eps, **options)
    arrays = [
        ((i, "param"), param, grad, np.empty_like(grad))
        for i, (param, grad) in enumerate(zip(problem.params, problem.grads, strict=True))
    ]

    def step() -> None:
        for key, param, grad, scratch in arrays:
            np.copyto(scratch, grad)  # it computes in the gradient's memory, then clears it
            optimizer(key, param, scratch)

    return step


THINC = Contender(
    "thinc",
    {"Adam": thinc_adam},
    present=partial(installed, "thinc"),
    dtypes=["float32"],
    one_thread=True,
    eps_elsewhere="to the root of v before its correction",
)
