"""PyTorch's optimizers with the steps of schuss, and conversion of their state dicts.

The classes are subclasses of those of `torch.optim`, for parameters on the CPU; they update all
parameters in one call. Parameters and gradients may be float32, float64, float16 or bfloat16.
Updates of float16 and bfloat16 are computed in float32 and rounded to nearest, and their state is
float32. See `master` and `round_params` for other roundings.

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
state_dtype : torch.dtype or "8bit", optional
    `torch.bfloat16` halves the memory of the state, and "8bit" makes it a quarter: a code of one
    byte for each element, and a scale for each 128; parameters of fewer than 4,096 elements keep
    float32. Both are rounded stochastically, so that small changes are not lost. Not for float64
    parameters. The default is the dtype of the computation. In 8 bits, the state is a tensor that
    is read as float32: see `State8bit`.
master : {"float32", "float24"}, optional
    Train the float32 values of which the bfloat16 parameters are the rounding. The state of a
    parameter has the bits that it misses, as ``"master_bits"``: all 16 for "float32", so that
    training is exactly that of float32 parameters, or 8 for "float24", which are rounded
    stochastically. The attribute `master` is a list of the float32 values. Other parameters must be
    float32. Not for float16, which is not the upper half of a float32: keep float32 parameters, and
    give `copies`.
round_params : {"nearest", "random"}
    How bfloat16 parameters without a master are rounded. "random" is stochastic: changes that are
    too small for bfloat16 are made with probability by their size, and not lost.

The attributes `clip_norm` and `average` can be assigned between steps. `state_bytes` is the memory
of the states and of the bits of masters. State dicts have the averages and the bits of masters, and
no other value of these options.

An 8-bit optimizer's state dict has its states in 8 bits, so that ``torch.save`` writes a quarter;
import `schuss.torch` before ``torch.load``. The optimizers of `torch.optim` load it as float32, or
what the parameters are in, and the 8-bit optimizers load that of `torch.optim`, rounded to nearest.
Values that were decoded from 8 bits have the same 8 bits again.
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
from schuss.torch._state8bit import State8bit
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
    "State8bit",
    "load_state_dict",
    "state_dict",
]

__dir__ = public_names(__name__)

for _kind in (SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop):
    _kind.__module__ = __name__  # pickles name the public module
