"""PyTorch's optimizers with the steps of schuss, and conversion of their state dicts.

The classes are subclasses of those of `torch.optim`, for parameters on the CPU; they update all
parameters in one call. Parameters and gradients may be float32, float64, float16 or bfloat16.
Updates of float16 and bfloat16 are computed in float32 and rounded to nearest, and their state is
float32.

They have these keyword arguments besides those of `torch.optim`:

clip_norm : float, optional
    The largest norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` has it, but the
    gradients themselves are unchanged.
average : float, optional
    Keep an exponential average of the parameters, ``a = a + (1-average)*(p - a)`` after each step,
    in the same pass; in [0, 1). It begins with the parameters after the first step that keeps it.
    It is in the state of a parameter as ``"average"``, in float32 or float64. The attribute
    `average` is a list of the averages, in the order of the parameters.
copies : list of tensors, or torch.dtype; optional
    Tensors in float16 or bfloat16, one for each parameter, such as ``model.parameters()``, or one
    of these dtypes for new tensors. Each step also writes the float32 parameters to them, rounded
    to nearest. A parameter that has no gradient takes that of its copy. They equal the parameters
    from the start; call `write_copies` after you changed parameters yourself.
state_dtype : torch.dtype, optional
    `torch.bfloat16` halves the memory of the state. It is rounded stochastically, so that small
    changes are not lost. Not for float64 parameters. The default is the dtype of the computation.

The attributes `clip_norm` and `average` can be assigned between steps. State dicts have the
averages, and no other value of these options.
"""

try:
    import torch  # noqa: F401
except ImportError:
    raise ImportError("schuss.torch: torch is not installed (pip install torch)") from None

from schuss._listing import public_names
from schuss.torch._optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
)
from schuss.torch._state_dicts import load_state_dict, state_dict

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "load_state_dict",
    "state_dict",
]

__dir__ = public_names(__name__)

for _kind in (SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop):
    _kind.__module__ = __name__  # pickles name the public module
