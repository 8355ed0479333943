"""Optimizers of other libraries. The installed ones take part; none is a dependency."""

from benchmarks.peers.deepspeed import DEEPSPEED
from benchmarks.peers.jax import OPTAX
from benchmarks.peers.numba import NUMBA, NUMBA_FASTMATH
from benchmarks.peers.numexpr import NUMEXPR
from benchmarks.peers.packages import installed
from benchmarks.peers.thinc import THINC
from benchmarks.peers.torch import (
    TORCH_CAST,
    TORCH_FOREACH,
    TORCH_FUSED,
    TORCH_HALF,
    TORCH_RAW,
    TORCH_WHOLE,
)
from benchmarks.peers.torch_compiled import TORCH_COMPILED

__all__ = [
    "PEERS",
    "TORCH_CAST",
    "TORCH_COMPILED",
    "TORCH_FUSED",
    "TORCH_HALF",
    "TORCH_RAW",
    "TORCH_WHOLE",
    "installed",
]

PEERS = (
    TORCH_RAW,
    TORCH_FUSED,
    TORCH_FOREACH,
    TORCH_COMPILED,
    NUMBA,
    NUMBA_FASTMATH,
    NUMEXPR,
    OPTAX,
    DEEPSPEED,
    THINC,
)
