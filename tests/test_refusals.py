"""What is refused, with which words, and that nothing is changed then; and what is not refused."""

import array
import copy
import ctypes
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import schuss
from schuss import kernels, reference

Arrays = dict[str, Any]

# Each kernel with its state and what it needs beside arrays.
KERNELS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sgd": ((), {"lr": 0.1}),
    "momentum": (("velocity",), {"lr": 0.1}),
    "rmsprop": (("square_average", "mean", "buffer"), {"lr": 0.1, "momentum": 0.5}),
    "adam": (("m", "v", "v_max"), {"step": 3}),
}
ARGUMENTS = [
    (kernel, argument)
    for kernel, (states, _) in KERNELS.items()
    for argument in ("param", "grad", *states)
]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "Momentum": {"nesterov": True},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adam": {"amsgrad": True},
    "AdamW": {},
}
WITH_STATE = [name for name in OPTIMIZERS if name != "SGD"]

NO_ARRAYS: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "float": lambda: 1.5,
    "str": lambda: "weights",
    "set": lambda: {1.5},
    "generator": lambda: (x for x in [1.5]),
}
OTHER_DTYPES: list[Any] = [
    np.int32,
    np.int16,
    np.complex64,
    np.longdouble,
    object,
    bool,
]
FOREIGN = np.dtype(np.float32).newbyteorder("S")
ANY_FLOAT = "float32, float64, float16 or bfloat16"


def any_float_for(dtype: Any, argument: str) -> str:
    """Return what a message expects of a gradient for a parameter of this dtype."""
    others = ", float16 or bfloat16" if dtype == np.float32 else ""
    return f"{np.dtype(dtype)} (the dtype of {argument}){others}"


def bfloat16() -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16


FRACTIONS = {"beta", "beta1", "beta2", "dampening", "momentum", "average"}
FLAGS = {
    "nesterov",
    "bias_correction",
    "centered",
    "amsgrad",
    "decoupled",
    "clear_grads",
    "average_bias_correction",
}
MAY_BE_NONE = {"dampening", "clip_norm", "clip_value", "average"}
NOT_A_NUMBER: list[object] = [
    "0.1",
    b"0.1",
    np.str_("0.1"),
    np.bytes_(b"0.1"),
    1j,
    np.complex128(0.1),
    [0.1],
    np.array([0.1]),
    np.array("0.1"),
    np.array(None),
    Decimal("sNaN"),
    # NumPy registers its durations as integers, and without axes they give an int.
    np.timedelta64(1, "ns"),
    np.array(1, "m8[ns]"),
    np.array(1, "M8[ns]"),
    np.array(True),
    np.array(0.1j),
    np.array((0.1,), "f8,"),
    None,
]
OUT_OF_RANGE: list[object] = [np.nan, np.inf, -np.inf, -0.1, np.float32(-1), 10**400]


def kernel_arrays(kernel: str) -> Arrays:
    rng = np.random.default_rng(1)
    names = ("param", "grad", *KERNELS[kernel][0])
    return {name: rng.uniform(0.5, 1, (3, 2)).astype(np.float32) for name in names}


def call_kernel(kernel: str, arrays: Arrays, **options: Any) -> None:
    getattr(kernels, kernel)(**arrays, **(KERNELS[kernel][1] | options))


def make_params() -> dict[str, Any]:
    return {
        "W1": np.ones((3, 2), np.float32),
        "layers": [np.full((2, 2), 0.5), np.full(4, -1, np.float32)],
    }


def make_grads() -> dict[str, Any]:
    return {
        "W1": np.full((3, 2), 0.25, np.float32),
        "layers": [np.full((2, 2), -2.0), np.full(4, 0.125, np.float32)],
    }


def make_optimizer(name: str, params: Any, **options: Any) -> Any:
    return getattr(schuss, name)(params, **(OPTIMIZERS[name] | options))


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def contents(tree: Any) -> list[bytes | None]:
    return [leaf.tobytes() if hasattr(leaf, "tobytes") else None for leaf in leaves(tree)]


@contextmanager
def refusal(error: type[Exception], *words: str, keeps: Any) -> Iterator[None]:
    """Expect an error whose message holds all the words, and no array changed."""
    before = contents(keeps)
    with pytest.raises(error) as caught:
        yield
    for word in words:
        assert word in str(caught.value)
    assert contents(keeps) == before


@contextmanager
def refused_by(
    optimizer: Any, error: type[Exception], *words: str, keeps: Any = ()
) -> Iterator[None]:
    """Expect an error after which the optimizer and its parameters are as before."""
    steps, knows = optimizer.steps, pickle.dumps(optimizer.state_dict())
    with refusal(error, *words, keeps=[list(keeps), optimizer.params, optimizer.state]):
        yield
    assert optimizer.steps == steps
    assert pickle.dumps(optimizer.state_dict()) == knows


def replaced(tree: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return the tree with the array at `path` ("W1", "layers/0", "layers/1") replaced."""
    key, _, index = path.partition("/")
    if index:
        tree[key][int(index)] = value
    else:
        tree[key] = value
    return tree


def subscripts(path: str) -> str:
    key, _, index = path.partition("/")
    return f"['{key}']" + (f"[{index}]" if index else "")


PATHS = ["W1", "layers/0", "layers/1"]


def check_in_a_child(script: str) -> None:
    """Run a script that might bring the interpreter down."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


# Kernels.


@pytest.mark.parametrize(("kernel", "argument"), ARGUMENTS)
def test_a_kernel_refuses_what_is_no_array(kernel: str, argument: str) -> None:
    for what in NO_ARRAYS:
        if what == "None" and argument in ("mean", "buffer", "v_max"):
            continue
        arrays = kernel_arrays(kernel) | {argument: NO_ARRAYS[what]()}
        words = f"kernels.{kernel}: {argument} is a {what}"
        with refusal(
            TypeError, words.replace("None", "NoneType"), "expected a NumPy", keeps=arrays
        ):
            call_kernel(kernel, arrays)


@pytest.mark.parametrize(("kernel", "argument"), ARGUMENTS)
def test_a_kernel_refuses_a_list(kernel: str, argument: str) -> None:
    arrays = kernel_arrays(kernel)
    arrays[argument] = [arrays[argument]]
    words = f"kernels.{kernel}: {argument} is a list, expected a NumPy array"
    with refusal(TypeError, words, keeps=arrays):
        call_kernel(kernel, arrays)


@pytest.mark.parametrize(("kernel", "argument"), ARGUMENTS)
def test_a_kernel_refuses_another_dtype(kernel: str, argument: str) -> None:
    for dtype in [*OTHER_DTYPES, FOREIGN, np.float64]:
        if argument == "param" and dtype is np.float64:
            continue
        arrays = kernel_arrays(kernel)
        arrays[argument] = arrays[argument].astype(dtype)
        expected = ANY_FLOAT if dtype != FOREIGN else "native byte order"
        if argument != "param":
            expected = "float32 (the dtype of param)"
        if argument == "grad":
            expected = any_float_for(np.float32, "param")
        words = f"kernels.{kernel}: {argument} has dtype {np.dtype(dtype)}, expected {expected}"
        with refusal(TypeError, words, keeps=arrays):
            call_kernel(kernel, arrays)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_of_float64_refuses_smaller_gradients(kernel: str) -> None:
    for dtype in (np.float32, np.float16, bfloat16()):
        arrays = {name: a.astype(np.float64) for name, a in kernel_arrays(kernel).items()}
        arrays["grad"] = arrays["grad"].astype(dtype)
        words = f"grad has dtype {np.dtype(dtype)}, expected float64 (the dtype of param)"
        with refusal(TypeError, words, keeps=arrays):
            call_kernel(kernel, arrays)


@pytest.mark.parametrize(
    ("kernel", "state"), [a for a in ARGUMENTS if a[1] not in ("param", "grad")]
)
def test_a_kernel_refuses_state_of_half_the_size(kernel: str, state: str) -> None:
    # In bfloat16 too: there is no seed to round it with.
    half = [np.float16, bfloat16()]
    for of_param, of_state in [(p, s) for p in (np.float32, *half) for s in half]:
        arrays = kernel_arrays(kernel)
        arrays["param"] = arrays["param"].astype(of_param)
        arrays[state] = arrays[state].astype(of_state)
        words = f"kernels.{kernel}: {state} has dtype {np.dtype(of_state)}, expected float32"
        with refusal(TypeError, words, keeps=arrays):
            call_kernel(kernel, arrays)


@pytest.mark.parametrize(("kernel", "argument"), [a for a in ARGUMENTS if a[1] != "param"])
def test_a_kernel_refuses_another_shape(kernel: str, argument: str) -> None:
    for shape in [(2, 3), (6,), (3, 2, 1), (1, 2), (), (3, 0)]:
        arrays = kernel_arrays(kernel) | {argument: np.ones(shape, np.float32)}
        words = (
            f"kernels.{kernel}: {argument} has shape {shape}, expected (3, 2) (the shape of param)"
        )
        with refusal(ValueError, words, keeps=arrays):
            call_kernel(kernel, arrays)


@pytest.mark.parametrize(("kernel", "argument"), [a for a in ARGUMENTS if a[1] != "grad"])
def test_a_kernel_refuses_to_write_to_read_only_memory(kernel: str, argument: str) -> None:
    arrays = kernel_arrays(kernel)
    arrays[argument].flags.writeable = False
    words = f"kernels.{kernel}: {argument} is read-only, expected a writeable array"
    with refusal(ValueError, words, keeps=arrays):
        call_kernel(kernel, arrays)


def overlapping() -> dict[str, Any]:
    """Return writeable arrays of shape (3, 2) in which some elements are the same memory."""
    memory = np.ones(16, np.float32)
    return {
        "one element": as_strided(memory, (3, 2), (0, 0)),
        "rows repeat": as_strided(memory, (3, 2), (0, 4)),
        "windows": sliding_window_view(memory[:4], 2, writeable=True),
        "windows backwards": as_strided(memory[8:], (3, 2), (-4, -4)),
        "half elements": as_strided(memory, (3, 2), (8, 2)),
        "axes meet once": as_strided(memory, (3, 2), (4, 8)),
    }


@pytest.mark.parametrize(("kernel", "argument"), [a for a in ARGUMENTS if a[1] != "grad"])
@pytest.mark.parametrize("how", overlapping())
def test_a_kernel_refuses_elements_that_overlap(kernel: str, argument: str, how: str) -> None:
    arrays = kernel_arrays(kernel) | {argument: overlapping()[how]}
    words = (f"kernels.{kernel}: {argument} has elements that overlap", "expected each element")
    with refusal(ValueError, *words, keeps=arrays):
        call_kernel(kernel, arrays)


PAIRS = [
    (kernel, *pair)
    for kernel, (states, _) in KERNELS.items()
    for pair in combinations(("param", "grad", *states), 2)
]


@pytest.mark.parametrize(("kernel", "first", "second"), PAIRS)
@pytest.mark.parametrize("how", ["same", "equal", "reversed", "shifted", "one element"])
def test_a_kernel_refuses_memory_that_two_arguments_share(
    kernel: str, first: str, second: str, how: str
) -> None:
    arrays = kernel_arrays(kernel)
    memory = np.linspace(0.5, 1, 12, dtype=np.float32)
    a = memory[:6].reshape(3, 2)
    arrays[first] = a
    arrays[second] = {
        "same": a,
        "equal": a[...],
        "reversed": a[::-1],
        "shifted": memory[2:8].reshape(3, 2),
        "one element": memory[5:11].reshape(3, 2),
    }[how]
    with refusal(ValueError, f"kernels.{kernel}: ", first, second, "expected", keeps=arrays):
        call_kernel(kernel, arrays)


def keywords(function: Callable[..., Any], *, but: tuple[str, ...]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in but]


KERNEL_NUMBERS = [
    (kernel, name)
    for kernel, (states, _) in KERNELS.items()
    for name in keywords(getattr(kernels, kernel), but=("param", "grad", "step", *states, *FLAGS))
]


def not_numbers_for(name: str) -> list[object]:
    return [bad for bad in NOT_A_NUMBER if not (name in MAY_BE_NONE and bad is None)]


def out_of_range_for(name: str) -> list[object]:
    if name == "scale":
        return [np.nan, np.inf, -np.inf, 10**400]
    return [*OUT_OF_RANGE, 1.0, 1.5, np.float64(1)] if name in FRACTIONS else OUT_OF_RANGE


@pytest.mark.parametrize(("kernel", "name"), KERNEL_NUMBERS)
def test_a_kernel_refuses_what_is_no_number(kernel: str, name: str) -> None:
    arrays = kernel_arrays(kernel)
    for bad in not_numbers_for(name):
        with refusal(TypeError, f"kernels.{kernel}: {name} is ", "expected", keeps=arrays):
            call_kernel(kernel, arrays, **{name: bad})


@pytest.mark.parametrize(("kernel", "name"), KERNEL_NUMBERS)
def test_a_kernel_refuses_numbers_out_of_range(kernel: str, name: str) -> None:
    arrays = kernel_arrays(kernel)
    for bad in out_of_range_for(name):
        with refusal(ValueError, f"kernels.{kernel}: {name} is ", "expected", keeps=arrays):
            call_kernel(kernel, arrays, **{name: bad})


@pytest.mark.parametrize(("kernel", "name"), [("momentum", "nesterov"), ("adam", "decoupled")])
@pytest.mark.parametrize("bad", [None, 1, 0.0, "yes", np.array([True, False])])
def test_a_kernel_refuses_what_is_no_switch(kernel: str, name: str, bad: object) -> None:
    arrays = kernel_arrays(kernel)
    words = f"kernels.{kernel}: {name} is {bad!r}, expected True or False"
    with refusal(TypeError, words, keeps=arrays):
        call_kernel(kernel, arrays, **{name: bad})


@pytest.mark.parametrize("kernel", ["momentum", "adam"])
@pytest.mark.parametrize(
    ("bad", "error"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("1", TypeError), (np.nan, TypeError)],
)
def test_a_kernel_counts_steps_from_one(kernel: str, bad: object, error: type[Exception]) -> None:
    arrays = kernel_arrays(kernel)
    with refusal(error, f"kernels.{kernel}: step is ", "expected an integer", keeps=arrays):
        call_kernel(kernel, arrays, step=bad)


def test_rmsprop_refuses_momentum_without_a_buffer() -> None:
    arrays = kernel_arrays("rmsprop")
    del arrays["buffer"]
    with refusal(ValueError, "kernels.rmsprop: momentum is 0.5 without buffer", keeps=arrays):
        call_kernel("rmsprop", arrays)


# Optimizers: parameters.


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_an_optimizer_refuses_parameters_that_are_no_arrays(name: str, path: str) -> None:
    for what in NO_ARRAYS:
        params = replaced(make_params(), path, NO_ARRAYS[what]())
        words = f"{name}: params{subscripts(path)} is a {what}".replace("None", "NoneType")
        with refusal(TypeError, words, "expected an array", keeps=params):
            make_optimizer(name, params)


def test_an_optimizer_refuses_no_structure_at_all() -> None:
    for what in NO_ARRAYS:
        words = f"Adam: params is a {what}".replace("None", "NoneType")
        with refusal(TypeError, words, "expected an array", keeps=()):
            schuss.Adam(NO_ARRAYS[what]())  # type: ignore[arg-type]


@pytest.mark.parametrize("empty", [[], (), {}, [[]], {"layers": []}])
def test_an_optimizer_refuses_to_have_no_parameters(empty: Any) -> None:
    with pytest.raises(ValueError, match="Adam: params holds no array, expected at least one"):
        schuss.Adam(empty)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_an_optimizer_refuses_parameters_of_another_dtype(name: str, path: str) -> None:
    for dtype in [*OTHER_DTYPES, FOREIGN]:
        params = replaced(make_params(), path, np.ones(3, dtype))
        expected = ANY_FLOAT if dtype != FOREIGN else "native byte order"
        where = f"{name}: params{subscripts(path)}"
        words = f"{where} has dtype {np.dtype(dtype)}, expected {expected}"
        with refusal(TypeError, words, keeps=params):
            make_optimizer(name, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_an_optimizer_refuses_parameters_that_are_read_only(name: str, path: str) -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False
    params = replaced(make_params(), path, frozen)
    words = f"{name}: params{subscripts(path)} is read-only, expected a writeable array"
    with refusal(ValueError, words, keeps=params):
        make_optimizer(name, params)


@pytest.mark.parametrize("how", overlapping())
def test_an_optimizer_refuses_parameters_with_elements_that_overlap(how: str) -> None:
    params = replaced(make_params(), "layers/1", overlapping()[how])
    with refusal(ValueError, "Adam: params['layers'][1] has elements that overlap", keeps=params):
        schuss.Adam(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_refuses_the_same_parameter_twice(name: str) -> None:
    params = make_params()
    params["layers"][1] = params["W1"]
    words = (f"{name}: ", "params['layers'][1]", "same array as params['W1']", "expected")
    with refusal(ValueError, *words, keeps=params):
        make_optimizer(name, params)


@pytest.mark.parametrize("view", [np.s_[1:], np.s_[::-1], np.s_[2], np.s_[:, 1], np.s_[...]])
def test_an_optimizer_refuses_parameters_that_share_memory(view: Any) -> None:
    params = make_params()
    params["layers"][1] = params["W1"][view]
    words = ("Adam: ", "params['layers'][1]", "params['W1']", "expected")
    with refusal(ValueError, *words, keeps=params):
        schuss.Adam(params)


def test_every_shared_pair_among_many_parameters_is_found() -> None:
    # The widest view begins first and reaches over parameters that meet neither their neighbours.
    memory = np.ones(100)
    apart = [memory[i : i + 1] for i in range(1, 99, 2)]
    schuss.SGD([memory[0:100:2], *apart])
    words = ("SGD: ", "shares memory with", "params[0]")
    with refusal(ValueError, *words, keeps=[memory]):
        schuss.SGD([memory[0:99:2], *apart, memory[98:]])


# Optimizers: gradients.


@pytest.fixture(params=[0, 1], ids=["fresh", "after a step"])
def optimizers(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Return a function that makes an optimizer, before its first step or after it."""

    def make(name: str) -> Any:
        optimizer = make_optimizer(name, make_params())
        for _ in range(request.param):
            optimizer.step(make_grads())
        return optimizer

    return make


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_refuses_gradients_that_are_no_arrays(
    optimizers: Callable[[str], Any], name: str, path: str
) -> None:
    for what in NO_ARRAYS:
        optimizer, grads = optimizers(name), make_grads()
        replaced(grads, path, NO_ARRAYS[what]())
        words = f"{name}.step: grads{subscripts(path)} is a {what}".replace("None", "NoneType")
        with refused_by(optimizer, TypeError, words, "expected", keeps=[grads]):
            optimizer.step(grads)


def test_a_step_refuses_no_gradients_at_all() -> None:
    for what in NO_ARRAYS:
        error: type[Exception] = ValueError if what == "None" else TypeError
        words = f"Adam.step: grads is a {what}"
        if what == "None":
            words = "Adam.step: there are no gradients"
        for params in (np.ones(3), [np.ones(3)], {"W": np.ones(3)}):
            optimizer = schuss.Adam(params)
            with refused_by(optimizer, error, words, "expected"):
                optimizer.step(NO_ARRAYS[what]())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_refuses_gradients_of_another_dtype(
    optimizers: Callable[[str], Any], name: str, path: str
) -> None:
    of_param = leaves(make_grads())[PATHS.index(path)].dtype
    others = [np.float64] if of_param == np.float32 else [np.float32, np.float16, bfloat16()]
    for dtype in [*OTHER_DTYPES, FOREIGN, *others]:
        optimizer, grads = optimizers(name), make_grads()
        good = leaves(grads)[PATHS.index(path)]
        replaced(grads, path, good.astype(dtype))
        where = subscripts(path)
        words = (
            f"{name}.step: grads{where} has dtype {np.dtype(dtype)}, "
            f"expected {any_float_for(of_param, f'params{where}')}"
        )
        with refused_by(optimizer, TypeError, words, keeps=[grads]):
            optimizer.step(grads)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_refuses_gradients_of_another_shape(
    optimizers: Callable[[str], Any], name: str, path: str
) -> None:
    for shape in [(2, 3), (1, 4), (), (0,), (4, 1)]:
        optimizer, grads = optimizers(name), make_grads()
        good = leaves(grads)[PATHS.index(path)]
        replaced(grads, path, np.ones(shape, good.dtype))
        where = subscripts(path)
        words = (
            f"{name}.step: grads{where} has shape {shape}, "
            f"expected {good.shape} (the shape of params{where})"
        )
        with refused_by(optimizer, ValueError, words, keeps=[grads]):
            optimizer.step(grads)


def other_structures() -> dict[str, tuple[Any, str]]:
    """Return gradients in another structure than the parameters, and what the message names."""
    w1, (w2, b2) = (make_grads()[key] for key in ("W1", "layers"))
    return {
        "an array": (w1, "grads is a ndarray"),
        "a sequence": ([w1, [w2, b2]], "grads is a list"),
        "nothing": ({}, "grads has no key 'W1'"),
        "missing key": ({"W1": w1}, "grads has no key 'layers'"),
        "other key": ({"W2": w1, "layers": [w2, b2]}, "grads has no key 'W1'"),
        "extra key": (
            {"W1": w1, "layers": [w2, b2], "b1": b2},
            "grads has the key 'b1'",
        ),
        "too short": ({"W1": w1, "layers": [w2]}, "grads['layers'] has length 1, expected 2"),
        "too long": (
            {"W1": w1, "layers": [w2, b2, b2]},
            "grads['layers'] has length 3, expected 2",
        ),
        "mapping for sequence": (
            {"W1": w1, "layers": {0: w2, 1: b2}},
            "grads['layers'] is a dict, expected a sequence",
        ),
        "array for sequence": (
            {"W1": w1, "layers": np.ones((2, 4))},
            "grads['layers'] is a ndarray, expected a sequence",
        ),
        "too deep, list": ({"W1": [w1], "layers": [w2, b2]}, "grads['W1'] is a list"),
        "too deep, dict": ({"W1": w1, "layers": [w2, {"b": b2}]}, "grads['layers'][1] is a dict"),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", other_structures())
def test_a_step_refuses_gradients_in_another_structure(
    optimizers: Callable[[str], Any], name: str, how: str
) -> None:
    optimizer = optimizers(name)
    grads, words = other_structures()[how]
    with refused_by(optimizer, ValueError, f"{name}.step: {words}", "expected", keeps=[grads]):
        optimizer.step(grads)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("view", [np.s_[...], np.s_[::-1]])
@pytest.mark.parametrize("owner", ["W1", "layers/1"])
def test_a_step_refuses_gradients_in_a_parameters_memory(
    optimizers: Callable[[str], Any], name: str, view: Any, owner: str
) -> None:
    optimizer, grads = optimizers(name), make_grads()
    memory = leaves(optimizer.params)[PATHS.index(owner)].reshape(-1)
    grads["layers"][1] = memory[:4][view]
    words = (
        f"{name}.step: grads['layers'][1] shares memory with params{subscripts(owner)}, expected"
    )
    with refused_by(optimizer, ValueError, words):
        optimizer.step(grads)


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("owner", ["W1", "layers/1"])
def test_a_step_refuses_gradients_in_the_states_memory(
    optimizers: Callable[[str], Any], name: str, owner: str
) -> None:
    optimizer = optimizers(name)
    for state, tree in optimizer.state.items():
        memory = leaves(tree)[PATHS.index(owner)].reshape(-1)
        grads = replaced(make_grads(), "layers/1", memory[:4])
        words = (
            f"{name}.step: grads['layers'][1] shares memory with "
            f"state['{state}']{subscripts(owner)}, expected"
        )
        with refused_by(optimizer, ValueError, words):
            optimizer.step(grads)


def test_a_gradient_that_comes_to_share_memory_later_is_refused() -> None:
    memory = np.ones(12)
    optimizer = schuss.SGD(memory[4:8])
    for apart in (memory[:4], memory[8:], memory[:4]):
        optimizer.step(apart)
    for shared in (memory[1:5], memory[7:11], memory[4:8], memory[3:7]):
        with refused_by(optimizer, ValueError, "SGD.step: grads shares memory with params"):
            optimizer.step(shared)


# Optimizers: what changes under their hands.


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_refuses_a_parameter_that_was_frozen(
    optimizers: Callable[[str], Any], name: str, path: str
) -> None:
    optimizer = optimizers(name)
    leaves(optimizer.params)[PATHS.index(path)].flags.writeable = False
    words = f"{name}.step: params{subscripts(path)} is read-only, expected a writeable array"
    with refused_by(optimizer, ValueError, words):
        optimizer.step(make_grads())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_refuses_a_parameter_that_was_replaced(
    optimizers: Callable[[str], Any], name: str, path: str
) -> None:
    optimizer = optimizers(name)
    old = leaves(optimizer.params)[PATHS.index(path)]
    replaced(optimizer.params, path, old.copy())
    words = f"{name}.step: params{subscripts(path)} was replaced since the optimizer was made"
    with refused_by(optimizer, ValueError, words, "expected", keeps=[old]):
        optimizer.step(make_grads())
    replaced(optimizer.params, path, old)
    optimizer.step(make_grads())


def test_a_step_refuses_parameters_that_were_taken_out() -> None:
    ways: list[Callable[[dict[str, Any]], object]] = [
        lambda params: params.pop("W1"),
        lambda params: params["layers"].pop(),
        lambda params: params.pop("layers"),
    ]
    for take_out in ways:
        params = make_params()
        optimizer = schuss.Adam(params)
        held = leaves(params)
        take_out(params)
        before = contents(held)
        with pytest.raises(ValueError, match=r"Adam\.step: params\[.* was replaced .*expected"):
            optimizer.step(make_grads())
        assert contents(held) == before
        assert optimizer.steps == 0


class Net(dict[str, Any]):
    pass


class Pair(NamedTuple):
    layers: list[Any]
    bias: Any


class Named(Mapping[str, Any]):
    """A mapping made of the list that holds its arrays."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self.arrays)))

    def __getitem__(self, key: str) -> Any:
        return self.arrays[int(key)]


class Layers(Sequence[Any]):
    """A sequence made of the list that holds its arrays."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Any:
        return self.arrays[index]


# Of two arrays: parameters, where the first of them is held, and by which key.
HELD: dict[str, Callable[[Any, Any], tuple[Any, Any, Any]]] = {
    "list": lambda a, b: (p := [a, b], p, 0),
    "dict": lambda a, b: (p := {"a": a, "b": b}, p, "a"),
    "list in a tuple": lambda a, b: (([held := [a], b],), held, 0),
    "named tuple": lambda a, b: (Pair(held := [a], b), held, 0),
    "dict subclass": lambda a, b: (p := Net(a=a, b=b), p, "a"),
    "OrderedDict": lambda a, b: (p := OrderedDict(a=a, b=b), p, "a"),
    "defaultdict": lambda a, b: (p := defaultdict(None, a=a, b=b), p, "a"),
    "UserDict": lambda a, b: (p := UserDict(a=a, b=b), p, "a"),
    "ChainMap": lambda a, b: (ChainMap(held := {"a": a}, {"b": b}), held, "a"),
    "mappingproxy": lambda a, b: (MappingProxyType(held := {"a": a, "b": b}), held, "a"),
    "Mapping": lambda a, b: (Named(held := [a, b]), held, 0),
    "UserList": lambda a, b: (p := UserList([a, b]), p, 0),
    "deque": lambda a, b: (p := deque([a, b]), p, 0),
    "Sequence": lambda a, b: (Layers(held := [a, b]), held, 0),
    "UserDict in a list": lambda a, b: ([held := UserDict(a=a), b], held, "a"),
    "groups": lambda a, b: ([held := {"params": a, "lr": 0.5}, {"params": b}], held, "params"),
}


@pytest.mark.parametrize("what", HELD)
def test_a_step_refuses_a_parameter_that_was_replaced_in_any_structure(what: str) -> None:
    a, b = np.ones(3), np.ones(2)
    params, held, key = HELD[what](a, b)
    optimizer = schuss.Adam(params)
    grads = pickle.loads(pickle.dumps(optimizer.state["m"]))
    for other in (np.ones(3), [np.ones(3)], np.zeros(4)[1:], a.view(np.int64), None):
        held[key] = other
        message = r"^Adam\.step: params\[.* was replaced since the optimizer was made, expected"
        with pytest.raises(ValueError, match=message):
            optimizer.step(grads)
        assert (a == 1).all()
        assert (b == 1).all()
        assert optimizer.steps == 0
    held[key] = a[...]  # the same memory
    optimizer.step(grads)
    assert optimizer.steps == 1


def test_a_step_refuses_parameters_that_moved_within_their_structure() -> None:
    in_turn = deque([np.ones(2), np.ones(2)])
    shadowed: ChainMap[str, Any] = ChainMap({}, {"a": np.ones(2)})
    ways: list[tuple[Any, Callable[[], object]]] = [
        (in_turn, in_turn.rotate),
        (shadowed, lambda: shadowed.update(a=np.ones(2))),
    ]
    for params, move in ways:
        optimizer = schuss.SGD(params)
        grads = pickle.loads(pickle.dumps(params))
        optimizer.step(grads)
        move()
        with pytest.raises(ValueError, match=r"SGD\.step: params\[.* was replaced"):
            optimizer.step(grads)
        assert optimizer.steps == 1


# Parameters, and what puts something beside them.
GROWING: dict[str, Callable[[Any], tuple[Any, Callable[[Any], object]]]] = {
    "dict": lambda w: (p := {"w": w}, lambda new: p.update(more=new)),
    "UserDict": lambda w: (p := UserDict(w=w), lambda new: p.update(more=new)),
    "list": lambda w: (p := [w], p.append),
    "deque": lambda w: (p := deque([w]), p.append),
    "an empty list": lambda w: (p := {"w": w, "more": []}, lambda new: p["more"].append(new)),
    "groups": lambda w: (p := [{"params": w}], lambda new: p.append({"params": new})),
}


@pytest.mark.parametrize("what", GROWING)
def test_a_step_refuses_parameters_that_it_does_not_know(what: str) -> None:
    params, put = GROWING[what](np.ones(2))
    optimizer = schuss.SGD(params)
    grads = pickle.loads(pickle.dumps(optimizer.params))
    put("what is no array may come, such as a name or the optimizer")
    optimizer.step(grads)
    for new in (np.ones(3), {"W": [np.ones(3)]}):
        params, put = GROWING[what](np.ones(2))
        optimizer = schuss.SGD(params)
        put(new)
        with pytest.raises(ValueError, match=r"^SGD\.step: params\[.*\] came after .*expected"):
            optimizer.step(grads)
        assert optimizer.steps == 0


def test_a_step_refuses_copies_that_were_replaced() -> None:
    params = {"a": np.ones(2, np.float32), "b": np.ones(1, np.float32)}
    halves = {key: np.zeros_like(w, np.float16) for key, w in params.items()}
    for copies in (halves, UserDict(halves)):
        optimizer = schuss.SGD(params, copies=copies)
        saved, copies["b"] = optimizer.state_dict(), np.zeros(1, np.float16)
        grads = {key: np.ones_like(w) for key, w in params.items()}
        with refused_by(optimizer, ValueError, "SGD.step: copies['b'] was replaced"):
            optimizer.step(grads)
        with refused_by(optimizer, ValueError, "SGD.load_state_dict: copies['b'] was replaced"):
            optimizer.load_state_dict(saved)


def pickled(it: Any) -> Any:
    return pickle.loads(pickle.dumps(it))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_an_optimizer_notice_what_is_replaced_too(how: Any) -> None:
    groups = [{"params": np.zeros(2, np.float32)}, {"params": np.zeros(2, np.float32), "lr": 0.5}]
    copies = UserDict(a=np.zeros(2, np.float16), b=np.zeros(2, np.float16))
    of_groups, of_copies = (
        schuss.SGD(groups),
        schuss.SGD({key: np.zeros(2, np.float32) for key in "ab"}, copies=copies),
    )
    grads: Any = [np.ones(2, np.float32), np.ones(2, np.float32)]
    if how is copy.copy:
        ones: Any = copy.copy(of_groups), copy.copy(of_copies), groups, copies
    else:
        ones = how((of_groups, of_copies, groups, copies))
    ones[2][0]["params"] = np.zeros(2, np.float32)
    ones[3]["b"] = np.zeros(2, np.float16)
    with pytest.raises(ValueError, match=r"^SGD\.step: params\[0\].* was replaced"):
        ones[0].step(grads)
    with pytest.raises(ValueError, match=r"^SGD\.step: copies\['b'\] was replaced"):
        ones[1].step(dict(zip("ab", grads, strict=True)))


def test_fit_refuses_parameters_that_are_no_longer_those_of_the_optimizer() -> None:
    params = {"w": np.ones(1)}

    def loss_and_grad(params: Any, x: Any) -> Any:
        params["w"] = params["w"] * 1.0  # not in place, so that steps are not seen
        return float(params["w"].sum()), {"w": np.ones(1)}

    class Stepper(schuss.SGD):
        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            super().step([grads["w"]], scale=scale)

    optimizer = Stepper(list(params.values()))
    with pytest.raises(ValueError, match=r"^fit: optimizer\.params are other arrays, expected"):
        schuss.fit(loss_and_grad, params, optimizer, np.ones((2, 1)), epochs=3, batch_size=1)
    assert optimizer.steps == 2


def test_a_structure_that_changes_while_it_is_looked_at_is_refused() -> None:
    check_in_a_child(
        """
        from collections import UserDict
        import numpy as np, schuss
        class Actor(UserDict):
            act = staticmethod(lambda: None)
            def __getitem__(self, key):
                self.act()
                return self.data[key]
        for what in ("list", "dict", "actor", "gradients"):
            actor = Actor(a=np.ones(4))
            params = [np.ones(4), actor, np.ones(4), {"b": np.ones(4), "c": np.ones(4)}]
            grads = [np.ones(4), {"a": np.ones(4)}, np.ones(4), {"b": np.ones(4), "c": np.ones(4)}]
            held = [params[0], actor.data["a"], params[2], params[3]["b"], params[3]["c"]]
            optimizer = schuss.SGD(params, lr=1.0)
            containers = {
                "list": params, "dict": params[3], "actor": actor.data, "gradients": grads
            }
            def act():
                containers[what].clear()
                act.junk = [bytearray(200) for _ in range(1000)]
            actor.act = act
            try:
                optimizer.step(grads)
            except (KeyError, ValueError):
                assert what != "gradients"  # which are known by then
                assert optimizer.steps == 0 and all((array == 1).all() for array in held)
            else:
                assert what == "gradients"
                assert optimizer.steps == 1 and all((array == 0).all() for array in held)
        """
    )


# Structures that return new arrays each time.


class CopyingDict(dict[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return dict.__getitem__(self, key).copy()


class CopyingList(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        return list.__getitem__(self, index).copy()


class CopyingIterator(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (array.copy() for array in list.__iter__(self))


class CopyingNamed(Named):
    def __getitem__(self, key: str) -> Any:
        return {"copy": self.arrays[int(key)].copy()}


class CopyingLayers(Layers):
    def __getitem__(self, index: Any) -> Any:
        return self.arrays[index].copy()


class CopyingPair(Pair):
    def __getitem__(self, index: Any) -> Any:
        return tuple.__getitem__(self, index).copy()


class Idle:
    """An optimizer that has no parameters to tell."""

    def step(self, grads: Any) -> None:
        pass


def npz(folder: Path, w: Any) -> Any:
    np.savez(folder / f"{w.dtype}.npz", w=w)
    return np.load(folder / f"{w.dtype}.npz")


def kept(tree: Any) -> Any:
    """Return what a structure gives, in dicts, lists and tuples."""
    values = schuss.ExponentialAverage(0.0)
    values.update(tree)
    return values.value


ANEW: dict[str, tuple[Callable[[Path, Any], Any], str, str]] = {
    "npz": (npz, "['w']", "dict"),
    "dict": (lambda _, w: CopyingDict(w=w), "['w']", "dict"),
    "Mapping": (lambda _, w: CopyingNamed([w]), "['0']['copy']", "dict"),
    "list by index": (lambda _, w: CopyingList([w]), "[0]", "list"),
    "list in turn": (lambda _, w: CopyingIterator([w]), "[0]", "list"),
    "Sequence": (lambda _, w: CopyingLayers([w]), "[0]", "list"),
    "named tuple": (lambda _, w: CopyingPair(w, w.copy()), "[0]", "list"),
}


@pytest.mark.parametrize("what", ANEW)
def test_structures_that_make_their_arrays_anew_are_refused_where_arrays_are_written(
    what: str, tmp_path: Path
) -> None:
    make, path, kind = ANEW[what]
    single, half = np.ones(2, np.float32), np.ones(2, np.float16)
    params, file = make(tmp_path, single), tmp_path / "weights.safetensors"
    schuss.save(file, params)  # which only reads them

    def refused(call: str, name: str, act: Callable[[], object]) -> None:
        message = (
            f"{call}: {name}{path} is a new object at each access, expected {name} to keep its "
            f"arrays (write {name} = {kind}({name}) first)"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            act()

    nested = {"net": [params]}
    refused("SGD", "params", lambda: schuss.SGD(params))
    refused("SGD", "params['net'][0]", lambda: schuss.SGD(nested))
    refused("SGD", "params[0]", lambda: schuss.SGD([{"params": params}, {"params": half}]))
    refused("load", "params", lambda: schuss.load(file, params))
    rest: Any = partial(schuss.fit, lambda params, x: (0.0, params), params, Idle())
    refused("fit", "params", lambda: rest(np.ones((2, 1)), restore_best=True))
    written = make(tmp_path, half)
    refused("SGD", "copies", lambda: schuss.SGD(kept(params), copies=written))


@pytest.mark.parametrize("what", ANEW)
def test_gradients_and_values_may_be_made_anew(what: str, tmp_path: Path) -> None:
    grads = ANEW[what][0](tmp_path, np.array([1.0, 2.0]))
    optimizer = schuss.SGD(kept(grads), lr=1.0)
    optimizer.step(grads)
    assert all(leaf.tolist() == [0, 0] for leaf in leaves(optimizer.params))


@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_a_step_refuses_a_parameter_that_was_reshaped(
    optimizers: Callable[[str], Any], shape: tuple[int, ...]
) -> None:
    optimizer = optimizers("Adam")
    optimizer.params["W1"].resize(shape, refcheck=False)
    words = ("Adam.step: params['W1']", "expected")
    with refused_by(optimizer, ValueError, *words):
        optimizer.step(make_grads())


@pytest.mark.parametrize("attribute", ["strides", "dtype"])
def test_a_step_refuses_a_parameter_that_was_reinterpreted(attribute: str) -> None:
    param = np.ones(6)[:3]
    optimizer = schuss.SGD(param)
    optimizer.step(np.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(param, attribute, {"strides": (0,), "dtype": np.int64}[attribute])
    before = param.tobytes()
    with pytest.raises((ValueError, TypeError), match=r"SGD\.step: params .*expected"):
        optimizer.step(np.ones(3))
    assert param.tobytes() == before
    assert optimizer.steps == 1


def test_the_state_that_users_see_cannot_be_resized_or_frozen_under_the_optimizer() -> None:
    check_in_a_child(
        """
        import copy, numpy as np, schuss
        n = 1_000_000
        for how in (lambda optimizer: optimizer, copy.copy, copy.deepcopy):
            optimizer, grad = how(schuss.Adam(np.ones(n))), np.ones(n)
            for size in (10, 3 * n):
                try:
                    optimizer.state["v"].resize(size, refcheck=False)
                except ValueError:
                    pass
                else:
                    raise AssertionError("resized")
            optimizer.state["v"].setflags(write=False)
            optimizer.step(grad)
            np.testing.assert_allclose(optimizer.state["v"], 0.001)
        """
    )


class Actor:
    """A gradient that does something else while its memory is asked for."""

    def __init__(self, array: Any, act: Callable[[], object]) -> None:
        self.array, self.act = array, act

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        self.act()
        return self.array.__dlpack__(**keywords)


def test_a_gradient_cannot_make_another_step_while_it_is_read() -> None:
    optimizer = schuss.Adam(make_params())
    grads = make_grads()
    grads["layers"][1] = Actor(grads["layers"][1], lambda: optimizer.step(make_grads()))
    with refused_by(optimizer, Exception, "under way"):
        optimizer.step(grads)
    optimizer.step(make_grads())
    assert optimizer.steps == 1


EXPORTER = """
    import numpy as np, schuss

    class Actor:
        def __init__(self, array, act):
            self.array, self.act = array, act
        def __dlpack_device__(self):
            return self.array.__dlpack_device__()
        def __dlpack__(self, **keywords):
            self.act()
            return self.array.__dlpack__(**keywords)

    n = 1_000_000
"""


def test_a_gradient_cannot_change_the_rule_while_it_is_read() -> None:
    check_in_a_child(
        EXPORTER
        + """
    for steps in (0, 1):
        params = [np.ones(n), np.ones(3)]
        optimizer = schuss.Adam(params, amsgrad=True)
        for _ in range(steps):
            optimizer.step([np.ones(n), np.ones(3)])
        act = lambda: setattr(optimizer, "amsgrad", False)
        before = [param.tobytes() for param in params]
        try:
            optimizer.step([np.ones(n), Actor(np.ones(3), act)])
        except Exception as error:
            assert "under way" in str(error), error
        else:
            raise AssertionError("not refused")
        assert [param.tobytes() for param in params] == before
        assert optimizer.amsgrad and optimizer.steps == steps
        """
    )


def test_a_gradient_cannot_move_a_parameter_while_it_is_read() -> None:
    check_in_a_child(
        EXPORTER
        + """
    for size in (5, 2 * n):
        params = [np.ones(n), np.ones(3)]
        optimizer = schuss.SGD(params)
        act = lambda: params[0].resize(size, refcheck=False)
        try:
            optimizer.step([np.ones(n), Actor(np.ones(3), act)])
        except TypeError as error:
            assert "SGD.step: grads[1]" in str(error) and "cannot resize" in str(error), error
        else:
            raise AssertionError("not refused")
        assert optimizer.steps == 0 and (params[1] == 1).all() and (params[0] == 1).all()
        """
    )


# Structures without an end.


class Endless(Sequence[Any]):
    """A sequence whose items are such sequences, or have no end."""

    def __init__(self, item: Any = None) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if self.item is None and index < 2:
            return Endless()
        if self.item is None:
            raise IndexError
        return self.item


def test_structures_without_an_end_are_refused(tmp_path: Path) -> None:
    in_list: list[Any] = [np.ones(3)]
    in_list.append({"list": in_list})
    in_dict: dict[str, Any] = {"W": np.ones(3)}
    in_dict["self"] = in_dict
    deep: list[Any] = [np.ones(3)]
    for _ in range(20_000):
        deep = [deep]
    often: list[Any] = [np.ones(3)]
    for _ in range(60):
        often = [often, often]
    cases: list[tuple[Any, str]] = [
        (in_list, "params[1]['list'] is params itself, expected a structure that"),
        ({"a": in_dict}, "params['a']['self'] is params['a'] itself, expected a structure that"),
        (deep, "params is nested more than 250 deep, expected less"),
        (Endless(), "params is nested more than 250 deep, expected less"),
        (Endless(np.ones(1)), "params has length 2 and gives more items, expected as many"),
        (often, "params holds the same containers too often, expected each once"),
    ]
    for endless, told in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(f'Adam: {told}')}"):
            schuss.Adam(endless)
        with pytest.raises(ValueError, match=f"^{re.escape(f'save: {told}')}"):
            schuss.save(tmp_path / "weights.safetensors", endless)
    while deep and isinstance(deep[0], list):  # so that it ends without recursion, too
        deep = deep[0]


def test_the_same_container_may_come_twice_where_it_is_only_read(tmp_path: Path) -> None:
    tied = {"W": np.ones(2)}
    schuss.save(tmp_path / "tied.safetensors", {"in": tied, "out": tied, "rest": ((), ())})
    with pytest.raises(ValueError, match=r"params\['out'\]\['W'\] is the same array as"):
        schuss.SGD({"in": tied, "out": tied})


def test_gradients_that_hold_themselves_are_refused() -> None:
    optimizer = schuss.Adam(make_params())
    endless: dict[str, Any] = {"W1": make_grads()["W1"]}
    endless["layers"] = [endless, endless]
    with refused_by(optimizer, ValueError, "Adam.step: grads['layers'][0] is a dict"):
        optimizer.step(endless)


# Optimizers: hyperparameters.

HYPERPARAMETERS = [
    (name, hyperparameter)
    for name in OPTIMIZERS
    for hyperparameter in keywords(
        getattr(schuss, name),
        but=("params", "nonfinite", "seed", "state_dtype", "copies", "groups"),
    )
]
SWITCHES = [(name, h) for name, h in HYPERPARAMETERS if h in FLAGS]
NUMBERS = [(name, h) for name, h in HYPERPARAMETERS if h not in FLAGS]


def refused_hyperparameter(name: str, hyperparameter: str, bad: object, error: Any) -> None:
    """Expect refusal by the constructor, by assignment and by load_state_dict."""
    words = f"{hyperparameter} is ", "expected"
    params = make_params()
    with refusal(error, f"{name}: ", *words, keeps=params):
        make_optimizer(name, params, **{hyperparameter: bad})
    optimizer = make_optimizer(name, params)
    optimizer.step(make_grads())
    with refused_by(optimizer, error, f"{name}", *words):
        setattr(optimizer, hyperparameter, bad)
    saved = optimizer.state_dict()
    saved["hyperparameters"][hyperparameter] = bad
    with refused_by(optimizer, error, f"{name}.load_state_dict: ", *words):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(("name", "hyperparameter"), NUMBERS)
def test_an_optimizer_refuses_what_is_no_number(name: str, hyperparameter: str) -> None:
    for bad in not_numbers_for(hyperparameter):
        refused_hyperparameter(name, hyperparameter, bad, TypeError)


@pytest.mark.parametrize(("name", "hyperparameter"), NUMBERS)
def test_an_optimizer_refuses_numbers_out_of_range(name: str, hyperparameter: str) -> None:
    for bad in out_of_range_for(hyperparameter):
        refused_hyperparameter(name, hyperparameter, bad, ValueError)


@pytest.mark.parametrize(("name", "hyperparameter"), SWITCHES)
def test_an_optimizer_refuses_what_is_no_switch(name: str, hyperparameter: str) -> None:
    for bad in (None, 1, 0.0, "yes", np.array([True, False])):
        refused_hyperparameter(name, hyperparameter, bad, TypeError)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_refuses_what_nobody_can_do_with_a_step(name: str) -> None:
    refused_hyperparameter(name, "nonfinite", "ignore", ValueError)
    for bad in (None, True, 1):
        refused_hyperparameter(name, "nonfinite", bad, TypeError)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_refuses_a_seed_that_is_no_count(name: str) -> None:
    durations = np.timedelta64(1, "ns"), np.array(1, "m8[ns]")
    for bad in (None, True, 0.5, 1.0, "1", 1j, [1], np.array([0.1]), np.float64(1), *durations):
        refused_hyperparameter(name, "seed", bad, TypeError)
    for out in (-1, np.int64(-(2**40)), 2**53, 2**64, 10**5000):
        refused_hyperparameter(name, "seed", out, ValueError)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_refuses_a_scale_that_is_no_finite_number(name: str) -> None:
    optimizer = make_optimizer(name, make_params())
    for bad in NOT_A_NUMBER:
        with refused_by(optimizer, TypeError, f"{name}.step: scale is ", "expected a number"):
            optimizer.step(make_grads(), scale=bad)
    for bad in (np.nan, np.inf, -np.inf):
        with refused_by(optimizer, ValueError, f"{name}.step: scale is ", "a finite number"):
            optimizer.step(make_grads(), scale=bad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_refuses_hyperparameters_that_it_does_not_have(name: str) -> None:
    params = make_params()
    words = f"{name}: there is no argument 'learning_rate', expected one of lr, "
    with refusal(TypeError, words, "weight_decay", "clip_norm", "groups", keeps=params):
        make_optimizer(name, params, learning_rate=0.1)


# Optimizers: what is fixed when they are made.


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("bad", "error", "was"),
    [
        ("float16", ValueError, "'float16'"),
        (np.float64, ValueError, "'float64'"),
        ("int8", ValueError, "'int8'"),
        (object, ValueError, "'object'"),
        ("half", ValueError, "'half'"),
        (3, TypeError, "a int"),
        (True, TypeError, "a bool"),
        ([np.float32], TypeError, "a list"),
    ],
)
def test_an_optimizer_refuses_state_in_other_dtypes(
    name: str, bad: Any, error: type[Exception], was: str
) -> None:
    params = np.ones(3, np.float32)
    words = f"{name}: state_dtype is {was}, expected "
    with refusal(error, words, keeps=params):
        make_optimizer(name, params, state_dtype=bad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_half_the_size_does_not_go_with_float64(name: str) -> None:
    for bad in ("float32", bfloat16()):
        params = [np.ones(3, np.float32), np.ones(3)]
        words = f"{name}: state_dtype is '{np.dtype(bad).name}' where a parameter is float64"
        with refusal(ValueError, words, "expected", keeps=params):
            make_optimizer(name, params, state_dtype=bad)


def copies_that_are_none() -> dict[str, tuple[Any, Any, type[Exception], str]]:
    """Return parameters, copies that do not go with them, and how these are refused."""
    params = {"W": np.ones(3, np.float32), "b": np.ones(4, np.float32)}
    halves = {name: array.astype(np.float16) for name, array in params.items()}
    frozen = halves["b"].copy()
    frozen.flags.writeable = False
    memory = np.zeros(6, np.float16)
    bad: dict[str, tuple[Any, type[Exception], str]] = {
        "a number": (3, TypeError, "copies is a int, expected"),
        "another dtype": ("float32", ValueError, "copies is 'float32', expected 'float16' or"),
        "no float": ("int16", ValueError, "copies is 'int16', expected 'float16' or"),
        "no numbers": (object, ValueError, "copies is 'object', expected 'float16' or"),
        "float32": (
            halves | {"b": np.ones(4, np.float32)},
            TypeError,
            "copies['b'] has dtype float32, expected float16 or bfloat16",
        ),
        "int16": (
            halves | {"W": np.ones(3, np.int16)},
            TypeError,
            "copies['W'] has dtype int16, expected float16 or bfloat16",
        ),
        "foreign": (
            halves | {"W": np.ones(3, np.dtype(np.float16).newbyteorder("S"))},
            TypeError,
            "copies['W'] has dtype ",
        ),
        "shape": (
            halves | {"b": np.ones((4, 1), np.float16)},
            ValueError,
            "copies['b'] has shape (4, 1), expected (4,) (the shape of params['b'])",
        ),
        "list": (list(halves.values()), ValueError, "copies is a list, expected a mapping"),
        "one missing": ({"W": halves["W"]}, ValueError, "copies has no key 'b', expected it"),
        "one more": (halves | {"c": frozen}, ValueError, "copies has the key 'c', expected no"),
        "no array": (halves | {"b": 0.5}, TypeError, "copies['b'] is a float, expected"),
        "read-only": (halves | {"b": frozen}, ValueError, "copies['b'] is read-only, expected"),
        "overlap": (
            halves | {"b": as_strided(memory, (4,), (0,))},
            ValueError,
            "copies['b'] has elements that overlap",
        ),
        "a parameter's memory": (
            halves | {"b": params["W"].view(np.float16)[2:]},
            ValueError,
            "copies['b'] shares memory with params['W'], expected",
        ),
        "each other's memory": (
            {"W": memory[:3], "b": memory[2:]},
            ValueError,
            "copies['b'] shares memory with copies['W'], expected",
        ),
    }
    return {how: (params, *rest) for how, rest in bad.items()}


@pytest.mark.parametrize("how", copies_that_are_none())
def test_an_optimizer_refuses_copies_that_are_none(how: str) -> None:
    params, copies, error, words = copies_that_are_none()[how]
    with refusal(error, f"Adam: {words}", keeps=[params, copies]):
        schuss.Adam(params, copies=copies)


@pytest.mark.parametrize("of_param", ["float64", "float16", "bfloat16"])
def test_copies_are_of_float32_alone(of_param: str) -> None:
    dtype = np.dtype(bfloat16() if of_param == "bfloat16" else of_param)
    for copies in ("float16", "bfloat16", np.zeros(3, np.float16), np.zeros(3, bfloat16())):
        params = np.ones(3, dtype)
        with refusal((TypeError, ValueError), "SGD: copies ", " float32", keeps=[params, copies]):  # type: ignore[arg-type]
            schuss.SGD(params, copies=copies)


def test_a_step_refuses_gradients_in_the_copies_or_the_averages_memory() -> None:
    params = np.ones(4, np.float32)
    optimizer = schuss.SGD(params, copies=np.zeros(4, np.float16), average=0.5)
    optimizer.step(np.ones(4, np.float32))
    for bad, owner in [(optimizer.copies, "copies"), (optimizer.average[::-1], "average")]:
        words = f"SGD.step: grads shares memory with {owner}, expected"
        with refused_by(optimizer, ValueError, words, keeps=[bad]):
            optimizer.step(bad)


def test_bfloat16_without_ml_dtypes_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    params = np.ones(3, np.float32)
    for option in ("state_dtype", "copies"):
        words = f"Adam: {option} is 'bfloat16'", "ml_dtypes", "pip install 'schuss[bfloat16]'"
        with refusal(ImportError, *words, keeps=params):
            schuss.Adam(params, **{option: "bfloat16"})  # type: ignore[arg-type]


def test_all_but_bfloat16_works_without_ml_dtypes() -> None:
    check_in_a_child(
        """
        import sys
        sys.modules["ml_dtypes"] = None
        import copy, pickle
        import numpy as np, schuss
        w = np.ones(4, np.float32)
        options = dict(average=0.5, clip_norm=1.0, nonfinite="skip", state_dtype="float32")
        optimizer = schuss.Adam(w, copies="float16", **options)
        optimizer.accumulate(np.ones(4, np.float16))
        optimizer.accumulate(np.ones(4, np.float32), scale=0.5)
        optimizer.step(scale=0.5)
        optimizer.step(np.ones(4, np.float16))
        optimizer.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        assert copy.deepcopy(optimizer).steps == 2
        assert optimizer.copies.tolist() == w.astype(np.float16).tolist()
        half = np.ones(4, np.float16)
        schuss.SGD(half, lr=0.5).step(np.ones(4, np.float16))
        assert half.tolist() == [0.5] * 4
        scaler = schuss.DynamicLossScale(4.0)
        assert scaler.step(optimizer, scaler.scale(np.ones(4, np.float16)))
        schuss.reference.sgd(w, w.copy(), lr=0.5)
        """
    )


# Optimizers: groups.

# What a group cannot have, and how that is refused after the group's name.
NOT_OF_A_GROUP: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": (
        {"learning_rate": 0.5},
        ValueError,
        " has 'learning_rate', expected hyperparameters among lr, beta1",
    ),
    "an option": ({"clip_norm": 1.0}, ValueError, " has 'clip_norm', expected hyperparameters"),
    "out of range": ({"beta1": 1.0}, ValueError, "['beta1'] is 1.0, expected a number in [0, 1)"),
    "no number": ({"lr": 0.5, "eps": "1"}, TypeError, "['eps'] is a str, expected a number"),
    "no rate": ({"lr": -0.5}, ValueError, "['lr'] is -0.5, expected a finite number >= 0"),
    "an array": ({"lr": np.ones(2)}, TypeError, "['lr'] is a ndarray, expected a number"),
    "no switch": (
        {"bias_correction": 1},
        TypeError,
        "['bias_correction'] is 1, expected True or False",
    ),
}
OTHER_STATE = (
    "Adam: param_groups[1] keeps m, v, v_max as state, expected m, v as in param_groups[0]"
)


@pytest.mark.parametrize("how", NOT_OF_A_GROUP)
@pytest.mark.parametrize("for_all", [False, True])
def test_an_optimizer_refuses_functions_that_give_no_groups(how: str, for_all: bool) -> None:
    own, error, words = NOT_OF_A_GROUP[how]
    params = make_params()
    name = "W1" if for_all else "layers/1"
    with refusal(error, f"Adam: groups({name!r}){words}", keeps=params):
        schuss.Adam(
            params, groups=lambda name: dict(own) if for_all else {"layers/1": own}.get(name)
        )


@pytest.mark.parametrize("how", NOT_OF_A_GROUP)
def test_an_optimizer_refuses_dicts_that_are_no_groups(how: str) -> None:
    own, error, words = NOT_OF_A_GROUP[how]
    params = make_params()
    listed = [{"params": params["W1"]}, {"params": params["layers"], **own}]
    with refusal(error, f"Adam: params[1]{words}", keeps=params):
        schuss.Adam(listed)


def test_an_optimizer_refuses_groups_that_keep_other_state() -> None:
    params = make_params()
    with refusal(ValueError, OTHER_STATE, keeps=params):
        schuss.Adam(params, groups={"layers/1": {"amsgrad": True}}.get)
    with refusal(ValueError, OTHER_STATE, keeps=params):
        schuss.Adam([{"params": params["W1"]}, {"params": params["layers"], "amsgrad": True}])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (3, "groups is a int, expected a function of a parameter's name"),
        ("bias", "groups is a str, expected a function of a parameter's name"),
        ({"W1": {"lr": 0.5}}, "groups is a dict, expected a function of a parameter's name"),
        ([{"lr": 0.5}, {}, {}], "groups is a list, expected a function of a parameter's name"),
        (lambda name: [0.5], "groups('W1') is a list, expected a mapping or None"),
        (lambda name: 0.5, "groups('W1') is a float, expected a mapping or None"),
        ({"layers/0": "lr"}.get, "groups('layers/0') is a str, expected a mapping or None"),
    ],
)
def test_an_optimizer_refuses_groups_that_are_no_function_of_a_name(
    groups: Any, words: str
) -> None:
    params = make_params()
    with refusal(TypeError, f"Adam: {words}", keeps=params):
        schuss.Adam(params, groups=groups)


def test_groups_are_given_in_one_way_alone() -> None:
    params = make_params()
    message = "Adam: groups is given where params are groups, expected one of both"
    with refusal(ValueError, message, keeps=params):
        schuss.Adam([{"params": params}], groups=lambda name: None)


def test_an_error_inside_the_function_of_groups_comes_through() -> None:
    params = make_params()
    with refusal(KeyError, "W1", keeps=params):
        schuss.Adam(params, groups={"b": {"lr": 0.5}}.__getitem__)


@pytest.mark.parametrize(
    ("name", "bad", "error", "words"),
    [
        ("beta1", 1.0, ValueError, "Adam: param_groups[1]['beta1'] is 1.0, expected a number in"),
        ("beta1", "0.5", TypeError, "Adam: param_groups[1]['beta1'] is a str, expected a number"),
        ("eps", np.nan, ValueError, "Adam: param_groups[1]['eps'] is nan, expected"),
        ("lr", None, TypeError, "Adam: param_groups[1]['lr'] is a NoneType, expected a number"),
        ("amsgrad", 1, TypeError, "Adam: param_groups[1]['amsgrad'] is 1, expected True or"),
        ("amsgrad", True, ValueError, OTHER_STATE),
        ("params", [], ValueError, "Adam: param_groups[1] has 'params', expected hyperparameters"),
        ("clip_norm", 1.0, ValueError, "Adam: param_groups[1] has 'clip_norm', expected hyper"),
        ("momentum", 0.5, ValueError, "Adam: param_groups[1] has 'momentum', expected hyper"),
        (1, 0.5, ValueError, "Adam: param_groups[1] has 1, expected hyperparameters among"),
    ],
)
def test_a_group_refuses_what_an_optimizer_would(
    name: Any, bad: Any, error: type[Exception], words: str
) -> None:
    of_b = {"layers/1": {"lr": 0.5}}
    optimizer = schuss.Adam(make_params(), groups=of_b.get)
    optimizer.step(make_grads())
    before = [dict(group) for group in optimizer.param_groups]
    with refused_by(optimizer, error, words):
        optimizer.param_groups[1][name] = bad
    for group, kept in zip(optimizer.param_groups, before, strict=True):
        assert {**group, "params": 0} == {**kept, "params": 0}
    optimizer.step(make_grads())


def test_what_a_group_has_cannot_be_deleted() -> None:
    optimizer = schuss.Adam(make_params())
    words = "param_groups[0]: 'lr' can be set, not deleted"
    with refused_by(optimizer, TypeError, words):
        del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="momentum"):
        _ = optimizer.param_groups[0]["momentum"]


def test_a_step_refuses_a_groups_schedule_that_gives_no_rate() -> None:
    rates = iter([0.5, "0.5", -0.5, np.nan, 0.5])
    optimizer = schuss.Adam(make_params(), groups={"layers/1": {"lr": lambda t: next(rates)}}.get)
    optimizer.step(make_grads())
    for error in (TypeError, ValueError, ValueError):
        before = contents([optimizer.params, optimizer.state])
        with pytest.raises(error, match=r"^Adam\.step: param_groups\[1\]\['lr'\] is .*expected"):
            optimizer.step(make_grads())
        assert contents([optimizer.params, optimizer.state]) == before
        assert optimizer.steps == 1
    optimizer.step(make_grads())
    assert optimizer.steps == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_refuses_a_schedule_that_gives_no_rate(name: str) -> None:
    cases: list[tuple[Any, type[Exception]]] = [
        *((bad, TypeError) for bad in NOT_A_NUMBER),
        *((bad, ValueError) for bad in OUT_OF_RANGE),
    ]
    rates = iter([0.1, *(bad for bad, _ in cases), 0.1])
    optimizer = make_optimizer(name, make_params(), lr=0.1)
    optimizer.step(make_grads())
    for bad, error in cases:
        optimizer.lr = lambda t, bad=bad: bad
        before = contents([optimizer.params, optimizer.state])
        with pytest.raises(error, match=rf"{name}\.step: lr is .*expected"):
            optimizer.step(make_grads())
        assert contents([optimizer.params, optimizer.state]) == before
        assert optimizer.steps == 1
    optimizer.lr = lambda t: next(rates)
    optimizer.step(make_grads())
    assert optimizer.steps == 2


def test_an_error_inside_a_schedule_changes_nothing() -> None:
    optimizer = schuss.Adam(make_params(), lr=lambda t: {1: 0.1}[t])
    optimizer.step(make_grads())
    before = contents([optimizer.params, optimizer.state])
    with pytest.raises(KeyError):
        optimizer.step(make_grads())
    assert contents([optimizer.params, optimizer.state]) == before
    assert optimizer.steps == 1


# Optimizers: saved states.


def saved_states() -> dict[str, tuple[Callable[[dict[str, Any]], Any], Any, str]]:
    """Return changes to a saved state of Adam, and how they are refused."""

    def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
        def change(saved: dict[str, Any]) -> Any:
            inner: Any = saved
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            return saved

        return change

    def drop(*path: Any) -> Callable[[dict[str, Any]], Any]:
        def change(saved: dict[str, Any]) -> Any:
            inner: Any = saved
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            return saved

        return change

    at = "state_dict['state']['v']"
    long, other = np.ones(5, np.float32), np.ones(4)
    foreign = np.ones(4, FOREIGN)
    bad = ("state", "v", "layers", 1)
    return {
        "None": (lambda saved: None, TypeError, "state_dict is a NoneType"),
        "a list": (lambda saved: [saved], TypeError, "state_dict is a list"),
        "empty": (lambda saved: {}, ValueError, "state_dict has the keys []"),
        "without steps": (drop("steps"), ValueError, "state_dict has the keys"),
        "more keys": (put("rng", value=0), ValueError, "state_dict has the keys"),
        "keys of two types": (put(7, value=0), ValueError, "state_dict has the keys"),
        "class": (put("optimizer", value="SGD"), ValueError, "['optimizer'] is 'SGD'"),
        "class with the same state": (
            put("optimizer", value="AdamW"),
            ValueError,
            "['optimizer'] is 'AdamW', expected 'Adam'",
        ),
        "negative steps": (put("steps", value=-1), ValueError, "['steps'] is -1"),
        "half steps": (put("steps", value=1.5), TypeError, "['steps'] is a float"),
        "no steps": (put("steps", value=None), TypeError, "['steps'] is a NoneType"),
        "endless steps": (put("steps", value=2**63), ValueError, "['steps'] is 92233720"),
        "no hyperparameters": (put("hyperparameters", value=None), TypeError, "parameters'] is"),
        "without beta1": (drop("hyperparameters", "beta1"), ValueError, "s'] has the keys"),
        "with beta": (put("hyperparameters", "beta", value=0.9), ValueError, "s'] has the keys"),
        "no state": (put("state", value=None), TypeError, "state_dict['state'] is a NoneType"),
        "without v": (drop("state", "v"), ValueError, "state_dict['state'] has the keys"),
        "with v_max": (put("state", "w", value=1), ValueError, "state_dict['state'] has the keys"),
        "without groups": (drop("groups"), ValueError, "state_dict has the keys"),
        "no groups": (put("groups", value=None), ValueError, "['groups'] is None, expected a list"),
        "two groups": (
            put("groups", value=[{"hyperparameters": {}, "members": [0]}] * 2),
            ValueError,
            "['groups'] is [{",
        ),
        "a group of others": (
            put("groups", 0, "members", value=[0, 1]),
            ValueError,
            "state_dict['groups'][0]['members'] is [0, 1], expected [0, 1, 2]",
        ),
        "a group without members": (
            drop("groups", 0, "members"),
            ValueError,
            "state_dict['groups'][0] has the keys ['hyperparameters'], expected",
        ),
        "a group without hyperparameters": (
            put("groups", 0, "hyperparameters", value=None),
            TypeError,
            "state_dict['groups'][0]['hyperparameters'] is a NoneType, expected a mapping",
        ),
        "a group that is a list": (
            put("groups", value=[[]]),
            TypeError,
            "state_dict['groups'][0] is a list, expected a mapping",
        ),
        "a group's beta": (
            put("groups", 0, "hyperparameters", value={"beta": 0.5}),
            ValueError,
            "state_dict['groups'][0] has 'beta', expected",
        ),
        "a group's beta1": (
            put("groups", 0, "hyperparameters", value={"beta1": 2.0}),
            ValueError,
            "state_dict['groups'][0]['beta1'] is 2.0, expected",
        ),
        "no average": (
            put("hyperparameters", "average", value=0.5),
            ValueError,
            "state_dict['average'] ",
        ),
        "an average": (
            put("average", value={"weights": (1.0, 1.0), "values": make_params()}),
            ValueError,
            "state_dict['average'] ",
        ),
        "amsgrad alone": (
            put("hyperparameters", "amsgrad", value=False),
            ValueError,
            "state_dict['state'] has the keys",
        ),
        "without a key": (drop("state", "v", "W1"), ValueError, f"{at} has no key 'W1'"),
        "too short": (drop("state", "v", "layers", 1), ValueError, f"{at}['layers'] has length 1"),
        "no array": (put(*bad, value=1.5), TypeError, f"{at}['layers'][1] is a float"),
        "shape": (put(*bad, value=long), ValueError, f"{at}['layers'][1] has shape (5,), expected"),
        "dtype": (put(*bad, value=other), TypeError, f"{at}['layers'][1] has dtype float64, exp"),
        "byte order": (put(*bad, value=foreign), TypeError, f"{at}['layers'][1] has dtype >f4"),
    }


@pytest.mark.parametrize("how", saved_states())
def test_an_optimizer_refuses_a_state_that_is_not_its_own(how: str) -> None:
    if how == "byte order" and sys.byteorder == "big":
        pytest.skip("the message is spelled for little endian")
    optimizer = make_optimizer("Adam", make_params())
    optimizer.step(make_grads())
    saved = optimizer.state_dict()
    optimizer.step(make_grads())
    optimizer.lr = 0.5
    change, error, words = saved_states()[how]
    saved = change(saved)
    with refused_by(optimizer, error, "Adam.load_state_dict: ", words, "expected"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("entry", "bad", "error", "words"),
    [
        ("weights", None, ValueError, "['weights'] is None, expected two numbers"),
        ("weights", (1.0,), ValueError, "['weights'] is (1.0,), expected two numbers"),
        ("weights", (1.0, -1.0), ValueError, "['weights'] is -1.0, expected a finite number >= 0"),
        ("weights", (np.nan, 1.0), ValueError, "['weights'] is nan, expected a finite number >= 0"),
        ("weights", (0.0, 0.5), ValueError, "['weights'] is (0.0, 0.5), expected both to be 0, or"),
        ("weights", ("1", 1.0), TypeError, "['weights'] is a str, expected a number"),
        ("values", [np.ones(3)], ValueError, "['values'] is a list, expected a mapping"),
        ("values", {"W": np.ones(4)}, ValueError, "['values']['W'] has shape (4,), expected (3,)"),
        ("values", {"W": np.ones(3, "f4")}, TypeError, "['values']['W'] has dtype float32, expec"),
    ],
)
def test_an_optimizer_refuses_averages_that_are_not_its_own(
    entry: str, bad: Any, error: type[Exception], words: str
) -> None:
    optimizer = schuss.SGD({"W": np.ones(3)}, average=0.5)
    optimizer.step({"W": np.ones(3)})
    saved = optimizer.state_dict()
    optimizer.step({"W": np.ones(3)})
    saved["average"][entry] = bad
    words = f"SGD.load_state_dict: state_dict['average']{words}"
    with refused_by(optimizer, error, words, keeps=[optimizer.average]):
        optimizer.load_state_dict(saved)


# What is not refused.


class Exporter:
    """Shows the memory of an array by the DLPack protocol and by nothing else."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)


class Copier(Exporter):
    """Has no memory to show, only copies of it."""

    def __dlpack__(self, *, copy: bool | None = None, **keywords: Any) -> Any:
        if copy is False:
            raise BufferError("only copies")
        return self.array.copy().__dlpack__(**keywords)


def expect_adam(param: Any, grad: Any, m: Any, v: Any, seen: Any = None) -> None:
    """Step by the kernel; `seen`, NumPy's view of param's memory, must get the reference's bits."""
    seen = param if seen is None else seen
    arrays = [np.array(a) for a in (seen, getattr(grad, "array", grad), m, v)]
    reference.adam(*arrays, step=1, weight_decay=0.1)
    kernels.adam(param, grad, m, v, step=1, weight_decay=0.1)
    for got, expected in zip((seen, m, v), (arrays[0], *arrays[2:]), strict=True):
        assert got.tobytes() == expected.tobytes()


def expect_step(param: Any, grad: Any, seen: Any = None) -> None:
    """The same with an optimizer and with state of its own, after the kernel."""
    seen = param if seen is None else seen
    expect_adam(param, grad, np.zeros(seen.shape, seen.dtype), np.zeros_like(seen), seen)
    expected, gradient = np.array(seen), np.array(getattr(grad, "array", grad))
    optimizer = schuss.SGD([param], lr=0.25)
    for _ in range(2):
        reference.sgd(expected, gradient, lr=0.25)
        optimizer.step([grad])
        assert seen.tobytes() == expected.tobytes()
    assert optimizer.steps == 2


def ramp(*shape: int, dtype: Any = np.float64) -> Any:
    return np.linspace(-1, 2, int(np.prod(shape))).astype(dtype).reshape(shape)


def test_interleaved_views_are_not_taken_for_overlapping() -> None:
    memory = ramp(40)
    expect_step(memory[::2], memory[1::2])
    expect_step(memory[39:0:-2], memory[::2])
    matrix = ramp(5, 4)
    expect_adam(*(matrix[:, i] for i in (0, 1)), *(abs(ramp(5, 2)).T))
    square = abs(ramp(6, 6))
    expect_adam(square[:3, :3], square[:3, 3:], square[3:, :3], square[3:, 3:])
    optimizer = schuss.Adam([square[::2, 0], square[1::2, 0], square[:, 1]])
    optimizer.step([square[::2, 2], square[::2, 3], square[:, 4]])


def test_sharing_is_judged_by_elements_not_by_bounds() -> None:
    # Steps of 2 and 3 within one buffer: they meet only where an index is a multiple of both.
    memory = ramp(64)
    expect_step(memory[0:12:3], memory[1:3].repeat(2))
    apart = as_strided(memory[1:], (2, 2), (6 * 8, 3 * 8))  # 1 4 7 10
    meets = as_strided(memory, (2, 2), (5 * 8, 2 * 8))  # 0 2 5 7
    misses = as_strided(memory, (2, 2), (6 * 8, 2 * 8))  # 0 2 6 8
    expect_step(apart, misses)
    with refusal(ValueError, "kernels.sgd: grad shares memory with param", keeps=[memory]):
        kernels.sgd(apart, meets, lr=0.1)


def test_overlapping_strides_without_overlapping_elements_are_fine() -> None:
    # 0 3 6 | 2 5 8: each axis steps within the other's reach, no two elements meet.
    expect_step(as_strided(ramp(20), (2, 3), (2 * 8, 3 * 8)), ramp(2, 3))


def test_gradients_may_be_read_only_repeated_or_shared() -> None:
    expect_step(ramp(3, 2), np.broadcast_to(ramp(2), (3, 2)))
    expect_step(ramp(3, 2), np.broadcast_to(1.5, (3, 2)))
    expect_step(ramp(3, 2), sliding_window_view(ramp(4), 2))
    frozen = ramp(3, 2)
    frozen.flags.writeable = False
    expect_step(ramp(3, 2), frozen)
    params, expected, shared = [ramp(4), ramp(4) + 1], [ramp(4), ramp(4) + 1], ramp(4)
    schuss.SGD(params, lr=0.5).step([shared, shared])
    for param, twin in zip(params, expected, strict=True):
        reference.sgd(twin, shared, lr=0.5)
        assert param.tobytes() == twin.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_without_axes_and_without_elements_are_fine(dtype: Any) -> None:
    expect_step(np.array(1.5, dtype), np.array(-0.5, dtype))
    expect_step(np.array(1.5, dtype), dtype(-0.5))
    for shape in ((0,), (3, 0), (0, 3), (2, 0, 5)):
        expect_step(np.empty(shape, dtype), np.empty(shape, dtype))
    expect_step(np.empty((0, 3), dtype).T, np.broadcast_to(dtype(1), (3, 0)))


def test_empty_arrays_share_no_memory() -> None:
    memory = ramp(8)
    optimizer = schuss.Adam([memory, memory[:0], memory[4:4], memory[:0]])
    optimizer.step([ramp(8), memory[:0], memory[2:2], ramp(0)])
    assert optimizer.steps == 1


def test_a_python_number_is_no_gradient_even_without_axes() -> None:
    optimizer = schuss.SGD(np.array(1.5))
    with refused_by(optimizer, TypeError, "SGD.step: grads is a float, expected"):
        optimizer.step(0.5)  # type: ignore[arg-type]


def test_buffers_are_updated_in_place() -> None:
    numbers = array.array("f", [1, 2, 3])
    expect_step(numbers, np.ones(3, np.float32), np.asarray(numbers))
    assert numbers[0] < 1
    expect_step(ramp(3), array.array("d", [1, 2, 3]))
    doubles = ramp(3, 2)
    expect_step(memoryview(doubles), memoryview(ramp(3, 2)), doubles)


def test_ctypes_arrays_are_updated_in_place() -> None:
    fields = (ctypes.c_float * 4)(1, 2, 3, 4)
    expect_step(fields, np.ones(4, np.float32), np.asarray(fields))
    assert fields[0] < 1


def test_dlpack_exporters_are_updated_in_place() -> None:
    for seen in (ramp(3, 2), ramp(3, 2, dtype=np.float32), ramp(6, 4)[::2, ::-1]):
        expect_step(Exporter(seen), Exporter(ramp(*seen.shape, dtype=seen.dtype)), seen)


def test_an_exporter_of_copies_is_never_updated_in_secret() -> None:
    seen = ramp(3)
    words = "is a Copier that does not show its memory"
    with refusal(TypeError, f"kernels.sgd: param {words}", keeps=[seen]):
        kernels.sgd(Copier(seen), ramp(3), lr=0.1)
    with refusal(TypeError, f"kernels.momentum: velocity {words}", keeps=[seen]):
        kernels.momentum(seen, ramp(3), Copier(ramp(3)), lr=0.1)
    with refusal(TypeError, f"SGD: params['W'] {words}", keeps=[seen]):
        schuss.SGD({"W": Copier(seen)})


def test_memory_mapped_files_are_updated_in_place(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    seen = np.memmap(file, np.float32, "w+", shape=(4, 3))
    seen[...] = ramp(4, 3, dtype=np.float32)
    expect_step(seen, np.ones((4, 3), np.float32))
    seen.flush()
    assert np.fromfile(file, np.float32).tobytes() == seen.tobytes()


def test_subclasses_of_ndarray_are_updated_in_place() -> None:
    class Tagged(np.ndarray[Any, Any]):
        pass

    expect_step(ramp(3, 2).view(Tagged), ramp(3, 2).view(Tagged))
    expect_step(ramp(3, 2).T.view(np.matrix), ramp(2, 3).view(np.matrix))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unaligned_arrays_are_updated_in_place(dtype: Any) -> None:
    size = np.dtype(dtype).itemsize
    for offset in (1, 2, 3):
        unaligned = np.frombuffer(bytearray(size * 5 + offset), dtype, offset=offset)
        unaligned[:] = ramp(5)
        assert not unaligned.flags.aligned
        gradient = np.frombuffer(b"x" + ramp(5, dtype=dtype).tobytes(), dtype, offset=1)
        expect_step(unaligned, gradient)
    fields = [("kind", "u1"), *((name, dtype) for name in ("p", "g", "m", "v"))]
    records = np.ones(7, np.dtype(fields))
    expect_adam(*(records[name] for name in ("p", "g", "m", "v")))
    assert (records["kind"] == 1).all()


# Code of the user's that runs in the middle of a call.


def test_a_gradient_that_empties_its_list_while_it_is_read_is_no_crash() -> None:
    check_in_a_child(
        """
        import numpy as np, schuss
        class Evil:
            def __getattr__(self, name):
                grads.clear()
                self.junk = [bytearray(200) for _ in range(1000)]
                raise AttributeError(name)
        params = [np.zeros(4), np.zeros(4)]
        optimizer = schuss.SGD(params)
        grads = [Evil(), np.zeros(4)]
        try:
            optimizer.step(grads)
        except (TypeError, ValueError):
            pass
        else:
            raise AssertionError("not refused")
        assert optimizer.steps == 0
        """
    )


class Liar(np.ndarray[Any, Any]):
    """An array that answers every question of NumPy's about it, and always with no."""

    def __array_function__(self, *_: object, **__: object) -> Any:
        return False


def test_a_subclass_cannot_hide_that_it_shares_memory() -> None:
    param = np.ones(4)
    with refusal(ValueError, "SGD.step: grads shares memory with params", keeps=[param]):
        schuss.SGD(param).step(param.view(Liar))
    overlapping = as_strided(np.ones(4), (4,), (0,)).view(Liar)
    with pytest.raises(ValueError, match="overlap"):
        schuss.SGD(overlapping)


# Keys.


class Keys(Mapping[Any, Any]):
    """A mapping that has what it says, whatever its keys are."""

    def __init__(self, keys: list[Any]) -> None:
        self.keys_in_turn, self.array = keys, np.ones(2)

    def __len__(self) -> int:
        return len(self.keys_in_turn)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys_in_turn)

    def __getitem__(self, key: Any) -> Any:
        if key == "missing":
            raise KeyError(key)
        return self.array


def test_a_mapping_has_keys_as_a_dict_has_them() -> None:
    cases: list[tuple[list[Any], type[Exception], str]] = [
        ([[1]], TypeError, "params has the key [1], expected keys that can be hashed"),
        (["a", "a"], ValueError, "params has the key 'a' twice, expected each once"),
        (["missing"], ValueError, "params gives the key 'missing' and has nothing there, expected"),
    ]
    for keys, error, told in cases:
        with pytest.raises(error, match=f"^{re.escape(f'SGD: {told}')}"):
            schuss.SGD(Keys(keys))


def test_a_key_that_equals_nothing_is_found_by_itself() -> None:
    nan = float("nan")
    params = {nan: np.ones(2), 1: np.ones(1)}
    optimizer = schuss.SGD(params, lr=1.0)
    optimizer.step({1: np.ones(1), nan: np.ones(2)})
    assert params[nan].tolist() == [0, 0]
    with refused_by(optimizer, ValueError, "SGD.step: grads has no key nan, expected it"):
        optimizer.step({1: np.ones(1), float("nan"): np.ones(2)})


class Compared:
    """A key, or a learning rate, that counts how often it was compared."""

    comparisons = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return isinstance(other, Compared) and other.number == self.number

    def __call__(self, step: int) -> float:
        return 0.5


def test_the_key_that_is_too_many_is_found_without_comparing_all_with_all() -> None:
    n = 3000
    params = {Compared(i): np.ones(1) for i in range(n)}
    optimizer = schuss.SGD(params)
    for build in (dict, UserDict):
        grads = build({Compared(i): np.ones(1) for i in range(n + 1)})
        Compared.comparisons = 0
        with pytest.raises(ValueError, match=r"SGD\.step: grads has the key"):
            optimizer.step(grads)
        assert Compared.comparisons < 20 * n


def test_groups_are_found_without_comparing_all_with_all() -> None:
    n = 3000
    params = {i: np.ones(1) for i in range(n)}
    Compared.comparisons = 0
    optimizer = schuss.SGD(params, groups=lambda name: {"lr": Compared(int(name) // 2)})
    assert len(optimizer.param_groups) == n // 2
    assert Compared.comparisons < 20 * n


# What is no structure.


class WithArray:
    """What may be made an array, as a table of pandas may."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.ones(2)


@dataclass
class Fields:
    W: Any


class Modules:
    """Has keys and is none of Python's mappings, as a `ParameterDict` of PyTorch."""

    def __iter__(self) -> Iterator[str]:
        return iter(["W"])

    def keys(self) -> list[str]:
        return ["W"]


def test_what_could_be_made_a_structure_is_refused_with_how_to() -> None:
    arrays = {"W": np.ones(2)}
    cases: list[tuple[Any, str]] = [
        (arrays.values(), "list"),
        (iter(arrays.values()), "list"),
        (arrays.items(), "dict"),
        (Modules(), "dict"),
        (Fields(np.ones(2)), "vars"),
        (WithArray(), "numpy.array"),
        (0.5, "numpy.array"),
        (arrays.keys(), ""),
        ("W", ""),
        (np.ndarray, ""),
        (3, ""),
    ]
    for wrong, maker in cases:
        kind = type(wrong).__name__
        told = f"params['net'] is a {kind}, expected an array, or a sequence or mapping of arrays"
        told += f" (write params['net'] = {maker}(params['net']) first)" if maker else ""
        with pytest.raises(TypeError, match=f"^{re.escape(f'SGD: {told}')}$"):
            schuss.SGD({"net": wrong})
        forms: list[tuple[Any, str, bool]] = [
            (arrays, "mapping", maker in ("dict", "vars")),
            ([np.ones(2)], "sequence", maker == "list"),
        ]
        for params, expected, helps in forms:
            told = f"grads is a {kind}, expected a {expected} of arrays"
            told += f" (write grads = {maker}(grads) first)" if helps else ""
            with pytest.raises(TypeError, match=f"^{re.escape(f'SGD.step: {told}')}$"):
                schuss.SGD(params).step(wrong)


def test_a_dict_whose_keys_are_attributes_is_a_dict() -> None:
    class Attributes(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            return self.setdefault(name, Attributes())

    params = Attributes(W=np.ones(2))
    schuss.SGD(params, lr=1.0).step(Attributes(W=np.ones(2)))
    assert list(params) == ["W"]
    assert params["W"].tolist() == [0, 0]
