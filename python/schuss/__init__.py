"""schuss: optimizer steps at the speed of memory, for NumPy arrays.

Examples
--------
>>> import numpy as np, schuss
>>> params = {"W": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
>>> opt = schuss.Adam(params, lr=0.01)
>>> opt.step({"W": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)})
>>> params["b"]
array([-0.01, -0.01], dtype=float32)
"""

from schuss import config, kernels, optimizers, reference
from schuss._core import __version__
from schuss.batches import MiniBatches, minibatches
from schuss.config import available_simd, set_simd, show_config, simd
from schuss.optimizers import SGD, Adam, AdamW, Momentum, RMSprop

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "MiniBatches",
    "Momentum",
    "RMSprop",
    "__version__",
    "available_simd",
    "kernels",
    "minibatches",
    "optimizers",
    "reference",
    "set_simd",
    "show_config",
    "simd",
]

config.set_simd_from_environment()
