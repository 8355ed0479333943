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

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from schuss import _core, config, kernels, optimizers, reference
from schuss.averages import ExponentialAverage, ewma
from schuss.batches import MiniBatches, minibatches
from schuss.config import (
    available_simd,
    num_threads,
    set_num_threads,
    set_simd,
    share_threads_with_blas,
    show_config,
    simd,
    threads,
)
from schuss.loss_scale import DynamicLossScale
from schuss.optimizers import *  # noqa: F403  # every optimizer that is declared there
from schuss.rows import Rows

if TYPE_CHECKING:
    from schuss import checkpoints, landscapes, mpi, schedules
    from schuss import sklearn as sklearn  # for type checkers: they are not in __all__
    from schuss import torch as torch
    from schuss.checkpoints import load, save
    from schuss.training import History, fit, with_l2

__all__ = [
    "DynamicLossScale",
    "ExponentialAverage",
    "History",
    "MiniBatches",
    "Rows",
    "__version__",
    "available_simd",
    "checkpoints",
    "ewma",
    "fit",
    "kernels",
    "landscapes",
    "load",
    "minibatches",
    "mpi",
    "num_threads",
    "optimizers",
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "set_simd",
    "share_threads_with_blas",
    "show_config",
    "simd",
    "threads",
    "with_l2",
]
__all__ += optimizers.__all__
# What optimizers share stays in `schuss.optimizers`.
__all__.remove("Last")
__all__.remove("Optimizer")
__all__.remove("Options")
del Last, Optimizer, Options  # noqa: F821

__version__ = _core.__version__

# Modules for packages that may be missing. They are not in __all__: `import *` needs no package.
_INTEGRATIONS = ("sklearn", "torch")

# Imported at first use, so that programs that only make steps start faster.
_LATER = {
    "checkpoints": "schuss.checkpoints",
    "landscapes": "schuss.landscapes",
    "mpi": "schuss.mpi",
    "schedules": "schuss.schedules",
    **{name: f"schuss.{name}" for name in _INTEGRATIONS},
    **dict.fromkeys(("load", "save"), "schuss.checkpoints"),
    **dict.fromkeys(("History", "fit", "with_l2"), "schuss.training"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LATER[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    # Tools access each name that is listed, so that each must be importable.
    return sorted({*__all__, *filter(_is_installed, _INTEGRATIONS)})


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module without a spec stands in for it, as in tests of users
        return False


config.configure_from_environment()
