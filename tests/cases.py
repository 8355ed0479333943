"""The rules with their options, arrays in every layout, and what "the same bits" means."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss import _core

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A rule as `schuss.kernels` and `schuss.reference` both take it."""

    rule: str
    states: tuple[str, ...] = ()
    optional_states: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    counts_steps: bool = False

    @property
    def all_states(self) -> tuple[str, ...]:
        return self.states + self.optional_states

    def step(self, module: ModuleType, t: int, param: Array, grad: Array, *states: Array) -> None:
        named = dict(zip(self.all_states, states, strict=True))
        keywords = {name: named[name] for name in self.optional_states} | self.options
        if self.counts_steps:
            keywords["step"] = t
        if self.rule == "average":
            rule = getattr(module, "average", _fused_average)
        else:
            rule = getattr(module, self.rule)
            keywords = {"lr": 0.03} | keywords
        rule(param, grad, *(named[name] for name in self.states), **keywords)

    def __str__(self) -> str:
        details = [*self.optional_states, *(f"{k}={v}" for k, v in self.options.items())]
        return "-".join([self.rule, *details, *["step"] * self.counts_steps])


def _fused_average(average: Array, values: Array, *, beta: float) -> None:
    """The rule of `schuss.ExponentialAverage`, which has no place in `schuss.kernels`."""
    formula = _core.Formula("average", per_step=beta)
    _core.update("average", formula, 1, 1.0, np.inf, average, values)


def _momentum(*, counts_steps: bool = False, **options: Any) -> Case:
    return Case("momentum", ("velocity",), (), options, counts_steps)


def _rmsprop(*optional: str, **options: Any) -> Case:
    return Case("rmsprop", ("square_average",), optional, options)


def _adam(*optional: str, **options: Any) -> Case:
    return Case("adam", ("m", "v"), optional, options, "step" not in options)


CASES = [
    Case("sgd"),
    Case("sgd", options={"weight_decay": 0.1}),
    _momentum(),
    _momentum(dampening=0.0),
    _momentum(dampening=0.3, beta=0.5),
    _momentum(nesterov=True),
    _momentum(nesterov=True, dampening=0.0),
    _momentum(counts_steps=True),
    _momentum(counts_steps=True, nesterov=True, weight_decay=0.1),
    _rmsprop(),
    _rmsprop(eps=0.0, eps_root=1e-8),
    _rmsprop(weight_decay=0.1),
    _rmsprop("mean"),
    _rmsprop("buffer", momentum=0.9),
    _rmsprop("mean", "buffer", momentum=0.9, weight_decay=0.1),
    _adam(),
    _adam(step=None),
    _adam(eps=0.0, eps_root=1e-8, beta1=0.5),
    _adam(weight_decay=0.1),
    _adam(weight_decay=0.1, decoupled=True),
    _adam("v_max"),
    _adam("v_max", weight_decay=0.1, decoupled=True),
    Case("sgd", options={"scale": 0.3, "clip_value": 0.5}),
    _momentum(scale=-1.7, clip_value=0.0, weight_decay=0.1),
    _rmsprop("mean", scale=1e-3, clip_value=1e-4),
    _adam(scale=2.0**-16, clip_value=1e-5, weight_decay=0.1, decoupled=True),
    Case("average", options={"beta": 0.98}),
    Case("average", options={"beta": 0.0}),
]


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays are equal bit for bit; any NaN equals any NaN."""
    integer = np.dtype(f"u{a.itemsize}")
    a, b = a.copy(order="C"), b.copy(order="C")
    return (a.dtype, a.shape) == (b.dtype, b.shape) and bool(
        np.all((a.view(integer) == b.view(integer)) | (np.isnan(a) & np.isnan(b)))
    )


def equal(some: list[Array], others: list[Array]) -> bool:
    """Whether arrays are equal bit for bit, each with its counterpart."""
    return all(same_bits(a, b) for a, b in zip(some, others, strict=True))


def bits(values: list[Array]) -> list[bytes]:
    return [value.tobytes() for value in values]


def numbers(rng: np.random.Generator, shape: Any, dtype: Any, *, special: bool = True) -> Array:
    """Return ordinary numbers, and among them all that floating point has to offer."""
    values = rng.standard_normal(shape)
    if special:
        info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.finfo(np.float32)
        subnormal = [info.smallest_subnormal, -info.tiny / 3]
        edges = [0.0, -0.0, info.tiny, -info.tiny, info.max, -info.max]
        specials = np.array([*subnormal, *edges, np.inf, -np.inf, np.nan, 1e-30, 1e-15, 1e15])
        chosen = rng.random(shape) < 0.2
        values = np.where(chosen, rng.choice(specials, shape), values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(values).astype(dtype)


def empty_like_layout(layout: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a writeable array of zeros that lies in memory as the layout's name says."""
    itemsize = np.dtype(dtype).itemsize
    if layout == "c":
        return np.zeros(shape, dtype)
    if layout == "fortran":
        return np.zeros(shape, dtype, order="F")
    if layout == "rolled axes":
        axes = (*range(1, len(shape)), 0)
        return np.zeros([shape[i] for i in axes], dtype).transpose(np.argsort(axes))
    if layout == "sliced":
        return np.zeros([2 * n + 1 for n in shape], dtype)[(slice(1, None, 2),) * len(shape)]
    if layout == "columns of more":
        return np.zeros((*shape[:-1], shape[-1] + 3), dtype)[..., 2:-1]
    if layout == "reversed":
        return np.zeros(shape, dtype)[(slice(None, None, -1),) * len(shape)]
    if layout == "half reversed":
        return np.zeros([2 * n for n in shape], dtype, order="F")[
            tuple(slice(None, None, 2 - 4 * (i % 2)) for i in range(len(shape)))
        ]
    if layout == "unaligned":
        size = int(np.prod(shape)) * itemsize
        unaligned: Array = np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)
        return unaligned
    if layout == "packed fields":
        fields: Array = np.zeros(shape, np.dtype([("flag", "u1"), ("value", dtype)]))["value"]
        return fields
    raise ValueError(layout)


LAYOUTS = [
    "c",
    "fortran",
    "rolled axes",
    "sliced",
    "columns of more",
    "reversed",
    "half reversed",
    "unaligned",
    "packed fields",
]


def laid_out(values: Array, layout: str) -> Array:
    """Return a copy of the values in a layout."""
    array = empty_like_layout(layout, values.shape, values.dtype)
    array[...] = values
    return array


def run(
    case: Case,
    module: ModuleType,
    param: Array,
    gradients: list[Array],
    make_state: Callable[[Array], Array] = np.zeros_like,
) -> Iterator[Array]:
    """Step through the gradients; yield all that was written."""
    states = [make_state(param) for _ in case.all_states]
    for t, gradient in enumerate(gradients, start=1):
        case.step(module, t, param, gradient, *states)
    yield param
    yield from states
