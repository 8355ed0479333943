"""Calls of the user's loss function."""

from collections.abc import Callable
from typing import Any, TypeAlias

from schuss._arrays import ArrayTree
from schuss._errors import wrong_type
from schuss._hyperparameters import real

Loss: TypeAlias = Callable[..., tuple[float, Any]]
"""``loss_and_grad(params, *batch) -> (loss, gradients)``."""


_SEQUENCES = (tuple, list)  # a union takes five times as long, in every step of `fit`


def check_function(call: str, name: str, value: object) -> None:
    """Raise TypeError unless the value can be called."""
    if not callable(value):
        raise wrong_type(call, name, value, "a function")


def evaluate(call: str, loss_and_grad: Loss, params: ArrayTree, batch: object) -> tuple[float, Any]:
    """Return the loss on a batch as a float, and its gradients unchanged."""
    # A mini-batch of one array is that array, not a tuple. A DataLoader yields lists.
    result = loss_and_grad(params, *(batch if isinstance(batch, _SEQUENCES) else (batch,)))
    is_sequence = isinstance(result, _SEQUENCES)
    if not is_sequence or len(result) != 2:
        was = type(result).__name__ + (f" of length {len(result)}" if is_sequence else "")
        raise TypeError(
            f"{call}: loss_and_grad returned a {was}, expected a pair (loss, gradients)"
        )
    loss, grads = result
    return real(call, "the loss", loss), grads
