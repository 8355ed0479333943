"""Optimizers of other libraries. The installed ones take part; none is a dependency."""

from benchmarks.peers.deepspeed import (
    DEEPSPEED,
    DEEPSPEED_CAST,
    DEEPSPEED_HALF,
    DEEPSPEED_WHOLE,
)
from benchmarks.peers.eight_bits import (
    BITSANDBYTES,
    BITSANDBYTES_NEAREST,
    BITSANDBYTES_WHOLE,
    BLOCK_OF_TORCHAO,
    TORCHAO,
    TORCHAO_WHOLE,
)
from benchmarks.peers.jax import OPTAX
from benchmarks.peers.numba import NUMBA, NUMBA_FASTMATH
from benchmarks.peers.numexpr import NUMEXPR, NUMEXPR_WHOLE
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
from benchmarks.peers.torch_compiled import TORCH_COMPILED, TORCH_COMPILED_WHOLE

__all__ = [
    "BITSANDBYTES",
    "BITSANDBYTES_NEAREST",
    "BITSANDBYTES_WHOLE",
    "BLOCK_OF_TORCHAO",
    "DEEPSPEED_CAST",
    "DEEPSPEED_HALF",
    "DEEPSPEED_WHOLE",
    "NUMEXPR",
    "NUMEXPR_WHOLE",
    "PEERS",
    "TORCHAO",
    "TORCHAO_WHOLE",
    "TORCH_CAST",
    "TORCH_COMPILED",
    "TORCH_COMPILED_WHOLE",
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
