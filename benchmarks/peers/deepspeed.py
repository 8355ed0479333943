"""DeepSpeed, which compiles its operation at its first use."""

import os
from dataclasses import replace
from functools import cache, partial
from typing import Any

from benchmarks.harness import Contender, Problem
from benchmarks.peers.packages import works
from benchmarks.peers.torch import started_optimizer, step_of, whole


def _build() -> None:
    # Otherwise it warns about the missing accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops.op_builder import CPUAdamBuilder

    CPUAdamBuilder().load(verbose=False)


@cache
def deepspeed_works() -> bool:
    return works("DeepSpeed", _build, "deepspeed", "torch")


def _adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Any:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    make = partial(DeepSpeedCPUAdam, lr=lr, betas=(beta1, beta2), eps=eps, adamw_mode=False)
    return started_optimizer(problem, make, ("exp_avg", "exp_avg_sq"), step=0)


DEEPSPEED = Contender(
    "DeepSpeed", {"Adam": step_of(_adam)}, present=deepspeed_works, dtypes=["float32"]
)
DEEPSPEED_WHOLE = replace(DEEPSPEED, steps={"Adam": whole(_adam)})
"""The step, and PyTorch's calls around it, as DeepSpeed's engine has for copies."""
DEEPSPEED_CAST = replace(DEEPSPEED_WHOLE, name="DeepSpeed, copy_")
DEEPSPEED_HALF = replace(DEEPSPEED, name="DeepSpeed, to nearest")
"""Of parameters and gradients with 16 bits, and state of 16 or 32."""
