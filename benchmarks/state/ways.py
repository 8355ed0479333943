"""The ways to keep the state of Adam: those of schuss, and those of other libraries.

All of them make the steps of one formula, so that a training differs only in how its state and its
parameters are rounded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import numpy as np

import schuss
from benchmarks.harness import Array
from benchmarks.peers import installed
from benchmarks.peers.torch import tensors_of
from schuss import reference

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
ADAM: Mapping[str, Any] = {"beta1": BETA1, "beta2": BETA2, "eps": EPS}
LEAST = 4_096
"""Smaller parameters keep float32 state, here and in the other libraries."""

Arrays: TypeAlias = list[Array]
Moments: TypeAlias = tuple[Arrays, Arrays]
"""m and v of every parameter, as float32."""


class Stepper(Protocol):
    """Adam for a list of arrays."""

    def step(self, grads: Sequence[Array]) -> None:
        """Update the arrays."""

    def moments(self) -> Moments:
        """Return the present state."""


@dataclass(frozen=True)
class Peer:
    """An optimizer of another library, with the interface of `torch.optim`."""

    make: Callable[..., Any]
    """From tensors and hyperparameters to the optimizer."""
    moments: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    """From the state of a parameter to m and v, as tensors."""
    package: str


@dataclass(frozen=True)
class Way:
    """A way to keep the state of Adam."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the optimizers of schuss."""
    bfloat16: bool = False
    """Whether parameters and gradients are in bfloat16. The model computes with the parameters."""
    peer: Peer | None = None
    """The library, if it is another one."""
    to_nearest: bool = False
    """Whether the 8-bit code of schuss is rounded to nearest: a model of it in NumPy."""

    def present(self) -> bool:
        needed = [self.peer.package, "torch"] if self.peer else []
        return installed(*needed, *["ml_dtypes"] * self.bfloat16)

    def optimizer(self, tensors: Iterable[Any], lr: float, seed: int) -> Any:
        """Return an optimizer of tensors, which are parameters of a model in PyTorch."""
        settings: dict[str, Any] = {"lr": lr, "betas": (BETA1, BETA2), "eps": EPS}
        if self.peer:
            return self.peer.make(tensors, **settings)
        import schuss.torch

        return schuss.torch.Adam(tensors, **settings, **self.options)

    def stepper(self, params: Sequence[Array], lr: float, seed: int) -> Stepper:
        """Return the steps of float32 arrays, which always have the values of the parameters."""
        stepped = list(params)
        if self.bfloat16:
            dtype = import_module("ml_dtypes").bfloat16
            stepped = [param.astype(dtype) for param in params]
        kind = _OfPeer if self.peer else _ToNearest if self.to_nearest else _OfSchuss
        stepper: Stepper = kind(self, stepped, lr, seed)
        return _Rounded(stepper, params, stepped) if self.bfloat16 else stepper


class _OfSchuss:
    def __init__(self, way: Way, params: Arrays, lr: float, seed: int) -> None:
        self._optimizer = schuss.Adam(params, lr=lr, seed=seed, **ADAM, **way.options)

    def step(self, grads: Sequence[Array]) -> None:
        self._optimizer.step(list(grads))

    def moments(self) -> Moments:
        m, v = ([np.asarray(a, np.float32) for a in self._optimizer.state[name]] for name in "mv")
        return m, v


class _ToNearest:
    def __init__(self, way: Way, params: Arrays, lr: float, seed: int) -> None:
        self._params, self._lr, self._t = params, lr, 0
        self._m, self._v = ([np.zeros_like(param) for param in params] for _ in range(2))

    def step(self, grads: Sequence[Array]) -> None:
        self._t += 1
        for param, grad, *states in zip(self._params, grads, self._m, self._v, strict=True):
            reference.adam(param, grad, *states, step=self._t, lr=self._lr, **ADAM)
            for state, is_v in zip(states, (False, True), strict=True):
                if state.size >= LEAST:
                    blocks = reference.encode(state.ravel(), nonnegative=is_v)
                    state[...] = reference.decode(blocks, state.size).reshape(state.shape)

    def moments(self) -> Moments:
        return self._m, self._v


class _OfPeer:
    def __init__(self, way: Way, params: Arrays, lr: float, seed: int) -> None:
        assert way.peer is not None
        self._params, self._decode = tensors_of(params), way.peer.moments
        self._optimizer = way.optimizer(self._params, lr, seed)

    def step(self, grads: Sequence[Array]) -> None:
        for param, grad in zip(self._params, tensors_of(grads), strict=True):
            param.grad = grad
        self._optimizer.step()

    def moments(self) -> Moments:
        states = [self._decode(self._optimizer.state[param]) for param in self._params]
        m, v = ([t.float().numpy().copy() for t in of_all] for of_all in zip(*states, strict=True))
        return m, v


class _Rounded:
    """The steps of bfloat16 parameters, whose values are copied to float32 arrays."""

    def __init__(self, stepper: Stepper, params: Sequence[Array], stepped: Arrays) -> None:
        self._stepper, self._params, self._stepped = stepper, params, stepped
        self.moments = stepper.moments
        self._show()

    def step(self, grads: Sequence[Array]) -> None:
        self._stepper.step([grad.astype(self._stepped[0].dtype) for grad in grads])
        self._show()

    def _show(self) -> None:
        for param, stepped in zip(self._params, self._stepped, strict=True):
            np.copyto(param, stepped)


def _of_bitsandbytes(tensors: Iterable[Any], **settings: Any) -> Any:
    from bitsandbytes.optim import Adam8bit

    return Adam8bit(tensors, **settings)


def _moments_of_bitsandbytes(state: Mapping[str, Any]) -> tuple[Any, Any]:
    from bitsandbytes.functional import dequantize_blockwise

    def decoded(i: int) -> Any:
        if f"absmax{i}" not in state:
            return state[f"state{i}"]
        scales, table = state[f"absmax{i}"], state[f"qmap{i}"]
        return dequantize_blockwise(state[f"state{i}"], absmax=scales, code=table, blocksize=256)

    return decoded(1), decoded(2)


def _of_torchao(tensors: Iterable[Any], **settings: Any) -> Any:
    from torchao.optim import Adam8bit

    return Adam8bit(tensors, **settings)


def _of_torch(tensors: Iterable[Any], **settings: Any) -> Any:
    from torch.optim import Adam

    return Adam(tensors, **settings)


def _moments_of_torch(state: Mapping[str, Any]) -> tuple[Any, Any]:
    return state["exp_avg"], state["exp_avg_sq"]


def _moments_of_torchao(state: Mapping[str, Any]) -> tuple[Any, Any]:
    m, v = (t.dequantize() if hasattr(t, "codes") else t for t in _moments_of_torch(state))
    return m, v


BITSANDBYTES = Peer(_of_bitsandbytes, _moments_of_bitsandbytes, "bitsandbytes")
TORCHAO = Peer(_of_torchao, _moments_of_torchao, "torchao")
TORCH = Peer(_of_torch, _moments_of_torch, "torch")

FLOAT32 = Way("float32")
BFLOAT16 = Way("bfloat16 state", {"state_dtype": "bfloat16"})
EIGHT_BIT = Way("8-bit", {"state_dtype": "8bit"})
TO_NEAREST = Way("8-bit, to nearest", to_nearest=True)
WITH_MASTER, WITH_MASTER_24, AT_RANDOM = (
    Way(f"8-bit, {name}", {"state_dtype": "8bit", option: value}, bfloat16=True)
    for name, option, value in (
        ("float32 master", "master", "float32"),
        ("float24 master", "master", "float24"),
        ("parameters at random", "round_params", "random"),
    )
)
OF_PEERS = BITSANDBYTES_8, TORCHAO_8, TORCH_16 = (
    Way("bitsandbytes, 8-bit", peer=BITSANDBYTES),
    Way("torchao, 8-bit", peer=TORCHAO),
    Way("torch, all bfloat16", peer=TORCH, bfloat16=True),
)
OF_STATE = (FLOAT32, BFLOAT16, EIGHT_BIT, TO_NEAREST, *OF_PEERS)
TRAINED = (FLOAT32, EIGHT_BIT, WITH_MASTER, WITH_MASTER_24, AT_RANDOM, *OF_PEERS)
WAYS = {way.name: way for way in (*OF_STATE, *TRAINED)}
