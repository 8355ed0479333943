"""The NumPy reference: what the kernels and the optimizers compute, written as formulas.

The rules, such as `sgd` and `adam`, are the functions of `schuss.kernels`; `average` and `ewma` are
what `schuss.ExponentialAverage` and `schuss.ewma` compute; `step` is a whole step with all its
options, and `Optimizer` keeps the state between steps.

The kernels give the same bits. Each operation on arrays rounds on its own, in the order written
here. What depends on hyperparameters alone is computed in double precision and rounded once to the
arrays' dtype. Subnormal numbers count as zero, as they do in the kernels; but products of factors,
and learning rates, may have any exponent. The rules weigh by beta and 1-beta, each of them rounded,
as in their papers and in PyTorch; averages of parameters and of series, whose weights must add up
to 1, do not. The only difference allowed is what IEEE 754 leaves open: the sign and payload of a
NaN.

These functions are for reading and for testing. They are slow, allocate memory, and do not check
their arrays.
"""

from schuss._listing import public_names
from schuss.reference import _rules
from schuss.reference._averages import average, ewma
from schuss.reference._averages import weight_of as weight_of
from schuss.reference._norm import clip_factor, grad_norm, update_norms
from schuss.reference._optimizer import Optimizer
from schuss.reference._random import random_stream, rounded_at_random
from schuss.reference._rules import *  # noqa: F403  # every rule
from schuss.reference._square_code import decode, encode
from schuss.reference._step import step

__all__ = [
    "Optimizer",
    "average",
    "clip_factor",
    "decode",
    "encode",
    "ewma",
    "grad_norm",
    "random_stream",
    "rounded_at_random",
    "step",
    "update_norms",
]
__all__ += _rules.__all__

__dir__ = public_names(__name__)
