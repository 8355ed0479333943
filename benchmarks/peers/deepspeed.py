"""DeepSpeed, which compiles its operation at its first use."""

import os
import sys
from functools import cache, partial

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import installed
from benchmarks.peers.torch import started_optimizer


@cache
def deepspeed_works() -> bool:
    if not installed("deepspeed", "torch"):
        return False
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # otherwise it warns about the missing accelerator
    try:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # of many kinds: a missing compiler, ninja or header
        print(f"DeepSpeed stays out: {error}", file=sys.stderr)
        return False
    return True


def deepspeed_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    make = partial(DeepSpeedCPUAdam, lr=lr, betas=(beta1, beta2), eps=eps, adamw_mode=False)
    step: Step = started_optimizer(problem, make, ("exp_avg", "exp_avg_sq"), step=0).step
    return step


DEEPSPEED = Contender(
    "DeepSpeed", {"Adam": deepspeed_adam}, present=deepspeed_works, dtypes=["float32"]
)
