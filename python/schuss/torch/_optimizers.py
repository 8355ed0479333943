"""The optimizers: subclasses of those of `torch.optim` with the step of schuss."""

import torch

from schuss.torch._fused import Fused


class SGD(Fused, torch.optim.SGD):  # type: ignore[misc]
    """`torch.optim.SGD` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused
        As in `torch.optim.SGD`; `foreach` and `fused` are ignored.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.SGD`.

    References
    ----------
    Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep
    learning", 2013, as `torch.optim.SGD` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.SGD([w], lr=0.5)
    >>> (w * torch.tensor([1.0, 2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 0.0]
    """

    _rule = "SGD"


class RMSprop(Fused, torch.optim.RMSprop):  # type: ignore[misc]
    """`torch.optim.RMSprop` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, alpha, eps, weight_decay, momentum, centered, maximize
        As in `torch.optim.RMSprop`.
    capturable, foreach, differentiable
        As there; `foreach` is ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.RMSprop`.

    References
    ----------
    Tieleman & Hinton, "Lecture 6.5 - RMSProp", 2012, as `torch.optim.RMSprop` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.RMSprop([w], lr=0.1, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.round(decimals=4).tolist() == [0.0, 2.0]
    True
    """

    _rule = "RMSprop"


class Adam(Fused, torch.optim.Adam):  # type: ignore[misc]
    """`torch.optim.Adam` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
        As in `torch.optim.Adam`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` are ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.Adam`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.Adam([w], lr=0.5, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 1.5]
    """

    _rule = "Adam"


class AdamW(Fused, torch.optim.AdamW):  # type: ignore[misc]
    """`torch.optim.AdamW` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, betas, eps, weight_decay, amsgrad, maximize
        As in `torch.optim.AdamW`.
    foreach, capturable, differentiable, fused
        As there; `foreach` and `fused` are ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.AdamW`.

    References
    ----------
    Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.AdamW([w], lr=0.5, eps=0.0, weight_decay=1.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.0, 1.0]
    """

    _rule = "AdamW"


class Adagrad(Fused, torch.optim.Adagrad):  # type: ignore[misc]
    """`torch.optim.Adagrad` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize
        As in `torch.optim.Adagrad`.
    foreach, differentiable, fused
        As there; `foreach` and `fused` are ignored, and `differentiable` is refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.Adagrad`.

    References
    ----------
    Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011, as `torch.optim.Adagrad` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.Adagrad([w], lr=0.5, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 1.5]
    """

    _rule = "Adagrad"


class Adadelta(Fused, torch.optim.Adadelta):  # type: ignore[misc]
    """`torch.optim.Adadelta` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, rho, eps, weight_decay, maximize
        As in `torch.optim.Adadelta`.
    foreach, capturable, differentiable
        As there; `foreach` is ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.Adadelta`.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1, as
    `torch.optim.Adadelta` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.Adadelta([w], eps=0.01)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> [round(x, 3) for x in w.tolist()]
    [0.698, 1.312]
    """

    _rule = "Adadelta"


class Adamax(Fused, torch.optim.Adamax):  # type: ignore[misc]
    """`torch.optim.Adamax` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, betas, eps, weight_decay, maximize
        As in `torch.optim.Adamax`.
    foreach, differentiable, capturable
        As there; `foreach` is ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.Adamax`.

    References
    ----------
    Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2, as
    `torch.optim.Adamax` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.Adamax([w], lr=0.5, eps=0.0)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 1.5]
    """

    _rule = "Adamax"


class NAdam(Fused, torch.optim.NAdam):  # type: ignore[misc]
    """`torch.optim.NAdam` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize
        As in `torch.optim.NAdam`.
    foreach, capturable, differentiable
        As there; `foreach` is ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.NAdam`.

    Notes
    -----
    Each step forms the product of the momenta of all steps with the current ``betas[0]`` and
    `momentum_decay`. `torch.optim.NAdam` keeps a running product. The two differ where these values
    change between steps, as `torch.optim.lr_scheduler.OneCycleLR` changes ``betas[0]`` by default;
    with ``cycle_momentum=False`` they are the same. The state ``"mu_product"`` has the running
    product, for `torch.optim`.

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", 2016, as `torch.optim.NAdam` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.NAdam([w], lr=0.1)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> [round(x, 3) for x in w.tolist()]
    [0.894, 1.106]
    """

    _rule = "NAdam"


class RAdam(Fused, torch.optim.RAdam):  # type: ignore[misc]
    """`torch.optim.RAdam` with the step of schuss.

    Parameters
    ----------
    params
        Parameters of any shape and memory layout, on the CPU, in float32, float64, float16 or
        bfloat16.
    lr, betas, eps, weight_decay, decoupled_weight_decay, maximize
        As in `torch.optim.RAdam`.
    foreach, capturable, differentiable
        As there; `foreach` is ignored, and the others are refused.
    clip_norm, average, copies, state_dtype, master, round_params
        Options of schuss; see `schuss.torch`.

    Raises
    ------
    TypeError, ValueError
        As `torch.optim.RAdam`.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020, algorithm 2, as
    `torch.optim.RAdam` has it.

    Examples
    --------
    >>> import torch, schuss.torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> opt = schuss.torch.RAdam([w], lr=0.5)
    >>> (w * torch.tensor([1.0, -2.0])).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [0.5, 2.0]
    """

    _rule = "RAdam"
