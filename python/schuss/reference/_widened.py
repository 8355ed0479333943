"""Rules of real numbers in float32 and float64, for parameters of all formats."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from schuss._arrays import Array
from schuss.reference._numbers import parts, put_between, round_into, widen, widen_grad

Rule = TypeVar("Rule", bound=Callable[..., None])


def widened(rule: Rule) -> Rule:
    """Let the rule compute in float32 where the parameter is float16 or bfloat16.

    It computes with real numbers where the parameter is complex. The gradient may have another
    dtype than the parameter. `store` rounds the parameter, by default to nearest. The parameter is
    put between its bounds last, after it was rounded.
    """

    @wraps(rule)
    def step(
        param: Array,
        grad: Array,
        *states: Array,
        store: Callable[[Array, Array], None] = round_into,
        **options: Any,
    ) -> None:
        named = {name: state for name, state in options.items() if isinstance(state, np.ndarray)}
        param, grad, *all_states = parts([param, grad, *states, *named.values()])
        named = dict(zip(named, all_states[len(states) :], strict=True))
        values = widen(param)
        rule(values, widen_grad(grad, values), *all_states[: len(states)], **options | named)
        store(param, values)
        bounds = options.get("bounds")
        if bounds is not None:
            values = widen(param)
            put_between(values, bounds)
            round_into(param, values)

    return step  # type: ignore[return-value]  # it has the same signature
