"""Random arrays: a step is that of the reference, and shared memory is found exactly."""

import inspect
from collections import Counter
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import schuss
from schuss import kernels, reference
from support.arrays import Array, equal, same_bits
from support.optimizers import OPTIMIZERS

Draw = st.DrawFn

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 0.5, 3.0]
EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97]


class View(NamedTuple):
    """An array, and the memory of which it is a part."""

    array: Array
    memory: Array

    def outside(self) -> Array:
        """The bytes around the array's elements: those that zeros written to it do not touch."""
        memory = self.memory.copy()
        if self.array.size:
            self.on(memory)[...] = 0
        return memory

    def on(self, memory: Array) -> Array:
        """The same view of other memory."""
        offset = address(self.array) - address(self.memory)
        return np.ndarray(
            self.array.shape, self.array.dtype, memory.data, offset, self.array.strides
        )


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


@st.composite
def shapes(draw: Draw) -> tuple[int, ...]:
    shape = draw(st.lists(st.integers(0, 12), max_size=4))
    while np.prod(shape) > 500:
        shape[int(np.argmax(shape))] //= 2
    if draw(st.booleans()):
        length = draw(st.sampled_from(EDGES)) + draw(st.sampled_from([0, 128, 4096]))
        shape = draw(st.permutations([length, *shape[:1]]))
        if np.prod(shape) > 20_000:
            shape = [length]
    return tuple(shape)


@st.composite
def views(draw: Draw, shape: tuple[int, ...], dtype: Any) -> View:
    """Draw an array of zeros somewhere in memory of its own: axes permuted, stepped, reversed."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    inner = [shape[axis] * abs(steps[axis]) for axis in order]
    padded = [length + draw(st.integers(0, 1)) for length in inner]
    shift = draw(st.sampled_from([0, 0, 1, 3, 7, 4, 8, 12, 16, 20, 60]))
    size = int(np.prod(padded)) * np.dtype(dtype).itemsize
    memory = np.full(size + shift + 70, 0xA5, np.uint8)
    whole = np.ndarray(padded, dtype, memory.data, shift)
    cut: tuple[Any, ...] = tuple(slice(length) for length in inner)
    stepped: tuple[Any, ...] = tuple(slice(None, None, step) for step in steps)
    array = whole[(*cut, ...)].transpose(np.argsort(order))
    array = array[(*stepped, ...)]
    assert array.shape == shape
    array[...] = 0
    return View(array, memory)


@st.composite
def fillings(draw: Draw, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draw values: a few that Hypothesis picks among ordinary ones."""
    width = 8 * np.dtype(dtype).itemsize
    floats = st.one_of(st.sampled_from(SPECIAL), st.floats(width=width))
    picked = np.array(draw(st.lists(floats, min_size=1, max_size=6)), dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    ordinary = rng.normal(size=4).astype(dtype)
    values: Array = rng.choice(np.concatenate([picked, ordinary]), size=shape)
    return values


# Hyperparameters for which float32 holds the results, too.
FRACTIONS = st.one_of(
    st.sampled_from([0.0, 0.5, 0.9, 0.999, 1 - 2**-53]), st.floats(1e-30, 1, exclude_max=True)
)
SMALL = st.one_of(st.sampled_from([0.0, 1e-8, 1e-3]), st.floats(1e-30, 1e3))
STEPS = st.one_of(st.integers(1, 5), st.integers(1, 10**9))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.one_of(st.sampled_from([0.0, 1e-3, 0.1, 1.0]), st.floats(1e-300, 1e20)),
    **dict.fromkeys(["beta", "beta1", "beta2", "rho"], FRACTIONS),
    "dampening": st.one_of(st.none(), FRACTIONS),
    **dict.fromkeys(
        ["eps", "eps_root", "eps_hat", "lr_decay", "momentum_decay", "weight_decay"], SMALL
    ),
    **dict.fromkeys(["nesterov", "lr_in_velocity", "decoupled"], st.booleans()),
    "step": st.one_of(st.none(), STEPS),
}
RULES = {kind.kernel: kind for kind in OPTIMIZERS.values()}


@st.composite
def arguments(draw: Draw, rule: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Draw the names of the arrays of a rule, and its hyperparameters."""
    optional = [*RULES[rule].optional_states]
    subsets = [some for n in range(len(optional) + 1) for some in combinations(optional, n)]
    names = ("param", "grad", *RULES[rule].states, *draw(st.sampled_from(subsets)))
    known = inspect.signature(getattr(kernels, rule)).parameters
    values = {name: VALUES[name] for name in VALUES if name in known}
    if "step" in known and known["step"].annotation is int:
        values["step"] = STEPS
    options = draw(st.fixed_dictionaries(values))
    if "buffer" in names:
        options["momentum"] = draw(FRACTIONS)
    return names, options


def advanced(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"step": options["step"] + 1} if options.get("step") else options


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_step_on_any_arrays_is_the_step_of_the_reference(rule: str, data: st.DataObject) -> None:
    names, options = data.draw(arguments(rule), "arguments")
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    shape = data.draw(shapes(), "shape")
    drawn = {name: data.draw(views(shape, dtype), name) for name in names}
    for name, view in drawn.items():
        view.array[...] = data.draw(fillings(shape, dtype), f"values of {name}")
    fused = {name: view.array for name, view in drawn.items()}
    expected = {name: np.array(array) for name, array in fused.items()}
    around = {name: view.outside() for name, view in drawn.items()}

    for _ in range(data.draw(st.integers(1, 3), "number of steps")):
        gradient = drawn["grad"].memory.tobytes()
        getattr(kernels, rule)(**fused, **options)
        getattr(reference, rule)(**expected, **options)
        for name in names:
            assert same_bits(fused[name], expected[name]), name
        assert drawn["grad"].memory.tobytes() == gradient
        options = advanced(options)
        fused["grad"][...] = expected["grad"][...] = data.draw(fillings(shape, dtype), "gradient")
    for name, view in drawn.items():
        assert (view.outside() == around[name]).all(), name


def elements(array: Array) -> list[frozenset[int]]:
    """The addresses of the bytes of each element."""
    offsets = np.zeros(array.shape, np.int64)
    for axis, stride in enumerate(array.strides):
        index = np.arange(array.shape[axis]) * stride
        offsets += index.reshape([-1] + [1] * (array.ndim - axis - 1))
    first = address(array)
    return [
        frozenset(range(first + offset, first + offset + array.itemsize))
        for offset in offsets.ravel().tolist()
    ]


def share(a: Array, b: Array) -> bool:
    return not frozenset().union(*elements(a)).isdisjoint(frozenset().union(*elements(b)))


def overlaps_itself(array: Array) -> bool:
    counts = Counter(byte for element in elements(array) for byte in element)
    return any(count > 1 for count in counts.values())


@st.composite
def windows(draw: Draw, memory: Array, shape: tuple[int, ...]) -> Array:
    """Draw a view of the memory with this shape and any strides that stay within it."""
    unit = draw(st.sampled_from([4, 4, 4, 2, 1]))
    strides = [unit * draw(st.integers(-9, 9)) for _ in shape]
    reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    low, high = (sum(sign * r for r in reach if sign * r > 0) for sign in (-1, 1))
    room = memory.nbytes - low - high - 4
    if room < 0:
        strides, low, room = [0 for _ in shape], 0, memory.nbytes - 4
    start = low + draw(st.integers(0, room))
    return as_strided(memory[start : start + 4].view(np.float32).reshape(()), shape, strides)


@st.composite
def slices(draw: Draw, memory: Array, shape: tuple[int, ...]) -> Array:
    """Draw a slice of a grid in the memory, with this shape; its own elements never meet."""
    grid = memory.view(np.float32)[: 12 ** len(shape)].reshape((12,) * len(shape))
    cut: list[Any] = [...]
    for length in shape:
        step = draw(st.sampled_from([1, 2, 2, 3]))
        start = draw(st.integers(0, 12 - step * (length - 1) - 1))
        cut.append(slice(start, start + step * length, step))
        if draw(st.booleans()):
            cut[-1] = slice(start + step * (length - 1), start - 1 if start else None, -step)
    view: Array = grid[tuple(cut)]
    return view


def parts(memory: Array, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    return st.one_of(slices(memory, shape), slices(memory, shape), windows(memory[:560], shape))


@settings(max_examples=400)
@given(data=st.data())
def test_views_of_one_memory_are_refused_exactly_if_they_share_an_element(
    data: st.DataObject,
) -> None:
    memory = np.linspace(1, 2, 12**3, dtype=np.float32).view(np.uint8)
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3), "shape"))
    param = data.draw(parts(memory, shape), "param")
    grad = data.draw(parts(memory, shape), "grad")
    velocity = data.draw(parts(memory, shape), "velocity")
    refused = (
        overlaps_itself(param)
        or overlaps_itself(velocity)
        or any(share(a, b) for a, b in combinations((param, grad, velocity), 2))
    )
    assert share(param, grad) == np.shares_memory(param, grad)
    before, expected = memory.tobytes(), [np.array(a) for a in (param, grad, velocity)]
    try:
        kernels.momentum(param, grad, velocity, lr=0.5)
    except ValueError:
        assert refused
        assert memory.tobytes() == before
    else:
        assert not refused
        reference.momentum(*expected, lr=0.5)
        assert equal([param, grad, velocity], expected)


@settings(max_examples=300)
@given(data=st.data())
def test_an_optimizer_refuses_parameters_exactly_if_two_elements_share_memory(
    data: st.DataObject,
) -> None:
    memory = np.linspace(1, 2, 12**3, dtype=np.float32).view(np.uint8)
    shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    params = [
        data.draw(parts(memory, data.draw(shapes)), "param")
        for _ in range(data.draw(st.integers(1, 8), "number of parameters"))
    ]
    pairs = combinations(params, 2)
    refused = any(map(overlaps_itself, params)) or any(share(a, b) for a, b in pairs)
    before, expected = memory.tobytes(), [np.array(param) for param in params]
    try:
        optimizer = schuss.SGD(params, lr=0.5)
    except ValueError:
        assert refused
        assert memory.tobytes() == before
    else:
        assert not refused
        grads = [np.ones(param.shape, np.float32) for param in params]
        optimizer.step(grads)
        for param, grad in zip(expected, grads, strict=True):
            reference.sgd(param, grad, lr=0.5)
        assert equal(params, expected)
