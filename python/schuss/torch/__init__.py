"""PyTorch's optimizers with the steps of schuss, and conversion of their state dicts.

`SGD`, `RMSprop`, `Adam` and `AdamW` are subclasses of those of `torch.optim`, for parameters on the
CPU; they update all parameters in one call.
"""

try:
    import torch  # noqa: F401
except ImportError:
    raise ImportError("schuss.torch: torch is not installed (pip install torch)") from None

from schuss._listing import public_names
from schuss.torch._optimizers import SGD, Adam, AdamW, RMSprop
from schuss.torch._state_dicts import load_state_dict, state_dict

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "load_state_dict", "state_dict"]

__dir__ = public_names(__name__)

for _kind in (SGD, Adam, AdamW, RMSprop):
    _kind.__module__ = __name__  # pickles name the public module
