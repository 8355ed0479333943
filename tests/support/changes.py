"""Changes of an optimizer between two steps, and what shows whether one was made."""

import copy
from collections.abc import Callable
from typing import Any

import schuss
from support.arrays import bits


def changes(optimizer: Any, grad: Any) -> dict[str, Callable[[], object]]:
    """What may be done to an optimizer between two steps."""
    other = schuss.Adam(copy.deepcopy(optimizer.params), lr=0.3, amsgrad=True, average=0.3)
    other.step(grad)
    saved = other.state_dict()
    return {
        "lr": lambda: setattr(optimizer, "lr", 0.5),
        "beta1": lambda: setattr(optimizer, "beta1", 0.5),
        "clip_norm": lambda: setattr(optimizer, "clip_norm", 0.1),
        "amsgrad": lambda: setattr(optimizer, "amsgrad", True),
        "average": lambda: setattr(optimizer, "average", 0.5),
        "param_groups[0]['beta1']": lambda: optimizer.param_groups[0].update(beta1=0.5),
        "load_state_dict": lambda: optimizer.load_state_dict(saved),
        "accumulate": lambda: optimizer.accumulate(grad),
        "step": lambda: optimizer.step(grad),
        "copy": lambda: copy.copy(optimizer),
    }


def after_one_more_step(optimizer: Any, grad: Any) -> tuple[Any, ...]:
    """Return the visible state of an optimizer and its parameters after one more step."""
    text = repr(optimizer)
    if optimizer.accumulated:
        optimizer.step(scale=1 / optimizer.accumulated)
    optimizer.step(grad)
    trees = [optimizer.params, *optimizer.state.values()]
    trees += [] if optimizer.average is None else [optimizer.average]
    arrays = [array for tree in trees for array in tree.values()]
    return text, repr(optimizer), list(optimizer.state), bits(arrays)
