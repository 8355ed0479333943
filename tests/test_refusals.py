"""What schuss refuses, the errors it raises and that nothing changes then; and what it accepts."""

import array
import inspect
import rlcompleter
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import schuss
from schuss import kernels, reference
from support.arrays import Array, dtype_of
from support.optimizers import OPTIMIZERS, OPTIONS, every_optimizer
from support.processes import ends_well
from support.refusals import (
    PATHS,
    at,
    contents,
    make_grads,
    make_optimizer,
    make_params,
    no_arrays,
    put,
    refusal,
    subscripts,
)

try:
    from ml_dtypes import bfloat16
except ImportError:  # where it has no wheel
    HALVES: list[Any] = [np.float16]
else:
    HALVES = [np.float16, bfloat16]

# Each kernel with its array arguments.
KERNELS = {
    kind.kernel: ("param", "grad", *kind.states, *kind.optional_states)
    for kind in OPTIMIZERS.values()
}
FOREIGN = np.dtype(np.float32).newbyteorder("S")
NO_FLOATS = [np.int32, np.int16, np.complex64, np.longdouble, object, bool, FOREIGN]
FLOATS = [np.float64, np.float32, *HALVES]
# NumPy registers its durations as integers, and without axes they give an int.
DURATIONS = [np.timedelta64(1, "ns"), np.array(1, "m8[ns]")]
NOT_A_NUMBER = [
    *("0.1", b"0.1", np.str_("0.1"), np.bytes_(b"0.1"), 1j, np.complex128(0.1), [0.1]),
    *(np.array(bad) for bad in ([0.1], "0.1", None, True, 0.1j)),
    *(np.array((0.1,), "f8,"), np.array(1, "M8[ns]"), *DURATIONS, Decimal("sNaN"), None),
]
OUT_OF_RANGE: list[Any] = [np.nan, np.inf, -np.inf, -0.1, np.float32(-1), 10**400]
FRACTIONS = {"beta", "beta1", "beta2", "dampening", "momentum", "average"}


def kernel_arrays(kernel: str, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {name: rng.uniform(0.5, 1, (3, 2)).astype(dtype) for name in KERNELS[kernel]}


def call_kernel(kernel: str, arrays: dict[str, Any], **options: Any) -> None:
    """Call a kernel such that it uses all its states."""
    function = getattr(kernels, kernel)
    needed = {"lr": 0.1, "step": 3, "momentum": 0.5}
    known = inspect.signature(function).parameters
    function(**arrays, **({key: needed[key] for key in needed if key in known} | options))


# Arrays.


@dataclass(frozen=True)
class Call:
    """A call, and one of its arrays, which a test replaces by what must be refused."""

    role: str
    """What the array is: "param", "grad", "state" or "saved" (state in a state dict)."""
    argument: str
    """The call and the array, as the message begins."""
    tree: Any
    path: tuple[Any, ...]
    """Where in the tree the array is."""
    good: Array
    act: Callable[[], object]
    like: str = ""
    """What has the dtype and the shape that the array must have, as messages name it."""
    keeps: Any = ()

    def refuses(self, bad: Any, error: type[Exception], *words: str) -> None:
        put(self.tree, self.path, bad)
        words = f"{self.argument} {words[0]}", *words[1:]
        with refusal(error, *words, keeps=[self.tree, self.keeps]):
            self.act()


def kernel_call(kernel: str, name: str, dtype: Any = np.float32) -> Call:
    arrays = kernel_arrays(kernel)
    for each in arrays if dtype is np.float64 else ["param", "grad"]:  # halves: state in float32
        arrays[each] = arrays[each].astype(dtype)
    role = name if name in ("param", "grad") else "state"
    like = "" if role == "state" and dtype in HALVES else "param"
    act = partial(call_kernel, kernel, arrays)
    return Call(role, f"kernels.{kernel}: {name}", arrays, (name,), arrays[name], act, like)


def constructor_call(name: str, path: tuple[Any, ...]) -> Call:
    params = make_params()
    act = partial(make_optimizer, name, params)
    return Call("param", f"{name}: params{subscripts(path)}", params, path, at(params, path), act)


def gradient_call(name: str, path: tuple[Any, ...], method: str, steps: int) -> Call:
    optimizer, grads = make_optimizer(name, steps=steps), make_grads()
    if method == "accumulate":
        optimizer.accumulate(make_grads())
    act, where = partial(getattr(optimizer, method), grads), subscripts(path)
    argument = f"{name}.{method}: grads{where}"
    like = ("params" if method == "step" else "accumulated") + where
    return Call("grad", argument, grads, path, at(grads, path), act, like, optimizer)


def load_call(name: str, state: str, path: tuple[Any, ...]) -> Call:
    optimizer = make_optimizer(name, steps=1)
    saved, path = optimizer.state_dict(), ("state", state, *path)
    optimizer.step(make_grads())
    argument, like = f"{name}.load_state_dict: state_dict{subscripts(path)}", subscripts(path[1:])
    act = partial(optimizer.load_state_dict, saved)
    return Call("saved", argument, saved, path, at(saved, path), act, f"state{like}", optimizer)


def calls() -> Iterator[Callable[[], Call]]:
    """Yield what makes a call, for every array of every call."""
    for kernel, names in KERNELS.items():
        yield partial(kernel_call, kernel, "param")
        for dtype in FLOATS:
            yield from (partial(kernel_call, kernel, name, dtype) for name in names[1:])
    for name, kind in OPTIMIZERS.items():
        for path in PATHS:
            yield partial(constructor_call, name, path)
            for method, steps in [("step", 0), ("step", 1), ("accumulate", 1)]:
                yield partial(gradient_call, name, path, method, steps)
            for state in (*kind.states, *kind.optional_states):
                yield partial(load_call, name, state, path)


def every_call(*roles: str) -> pytest.MarkDecorator:
    made = [(make, make()) for make in calls()]
    return pytest.mark.parametrize(
        "make",
        [pytest.param(make, id=call.argument) for make, call in made if call.role in roles],
    )


@every_call("param", "grad", "state", "saved")
def test_what_is_not_an_array_is_refused(make: Callable[[], Call]) -> None:
    call = make()
    in_kernel = call.argument.startswith("kernels.")
    expected = "a NumPy array" if in_kernel or call.role != "param" else "an array"
    may_be_none = call.role in ("param", "grad") and not in_kernel
    may_be_none = may_be_none or call.path[0] in ("mean", "buffer", "v_max")
    for bad in [*no_arrays(), *[[call.good]] * in_kernel]:
        if bad is not None or not may_be_none:
            call.refuses(bad, TypeError, f"is a {type(bad).__name__}, expected {expected}")


@every_call("param", "grad", "state", "saved")
def test_an_array_of_another_dtype_is_refused(make: Callable[[], Call]) -> None:
    call = make()
    own = str(call.good.dtype)
    floats = ["float32", "float16", "bfloat16"]
    accepted, expected = [own], own + (f" (the dtype of {call.like})" if call.like else "")
    if call.role == "param":
        accepted = ["float64", "complex64", *floats]
        expected = "float32, float64, float16, bfloat16, complex64 or complex128"
    if call.role == "grad":
        accepted = [own, *(name for name in floats if name != own)]
        expected += f", {', '.join(accepted[1:-1])} or {accepted[-1]}"
    for dtype in map(np.dtype, [*NO_FLOATS, *FLOATS]):
        if dtype == FOREIGN and call.role == "param":
            expected = "native byte order"
        if str(dtype) not in accepted:
            words = f"has dtype {dtype}, expected {expected}"
            call.refuses(call.good.astype(dtype), TypeError, words)


@every_call("grad", "state", "saved")
def test_an_array_of_another_shape_is_refused(make: Callable[[], Call]) -> None:
    call = make()
    for shape in [(2, 3), (6,), (3, 2, 1), (1, 2), (1, 4), (4, 1), (), (0,), (3, 0)]:
        like = f"{call.good.shape} (the shape of {call.like or 'param'})"
        bad = np.ones(shape, call.good.dtype)
        call.refuses(bad, ValueError, f"has shape {shape}, expected {like}")


@every_call("param", "state")
def test_a_read_only_array_that_would_be_written_is_refused(make: Callable[[], Call]) -> None:
    call = make()
    call.good.flags.writeable = False
    call.refuses(call.good, ValueError, "is read-only, expected a writeable array")


def overlapping(dtype: Any) -> list[Array]:
    """Return writeable arrays of shape (3, 2) in which some elements are the same memory."""
    memory = np.ones(16, dtype)
    size = memory.itemsize
    strides = [(0, size), (-size, -size), (2 * size, size // 2), (size, 2 * size)]
    return [as_strided(memory[8:], (3, 2), steps) for steps in strides]


@every_call("param", "state")
def test_an_array_whose_elements_overlap_is_refused(make: Callable[[], Call]) -> None:
    call = make()
    for bad in overlapping(call.good.dtype):
        call.refuses(bad, ValueError, "has elements that overlap", "expected no two elements")


@pytest.mark.parametrize(
    ("kernel", "first", "second"),
    [(kernel, *pair) for kernel, names in KERNELS.items() for pair in combinations(names, 2)],
)
def test_a_kernel_refuses_memory_that_two_arguments_share(
    kernel: str, first: str, second: str
) -> None:
    memory = np.linspace(0.5, 1, 12, dtype=np.float32)
    a = memory[:6].reshape(3, 2)
    by_one_element = memory[5:11].reshape(3, 2)
    for b in (a, a[...], a[::-1], memory[2:8].reshape(3, 2), by_one_element):
        arrays = kernel_arrays(kernel) | {first: a, second: b}
        with refusal(ValueError, f"kernels.{kernel}: ", first, second, "expected", keeps=arrays):
            call_kernel(kernel, arrays)


@every_optimizer
@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_refuses_gradients_in_the_memory_of_parameters_and_state(
    name: str, steps: int
) -> None:
    optimizer = make_optimizer(name, steps=steps)
    owners = {f"state['{state}']": tree for state, tree in optimizer.state.items()}
    for owner, tree in {"params": optimizer.params, **owners}.items():
        for path in [("W1",), ("layers", 1)]:
            memory = at(tree, path).reshape(-1)[:4]
            for grad in (memory, memory[::-1]):
                grads = put(make_grads(), ("layers", 1), grad)
                words = f"shares memory with {owner}{subscripts(path)}, expected"
                with refusal(
                    ValueError, f"{name}.step: grads['layers'][1] {words}", keeps=optimizer
                ):
                    optimizer.step(grads)


def test_a_step_refuses_gradients_in_the_memory_of_copies_and_averages() -> None:
    params = np.ones(4, np.float32)
    optimizer = schuss.SGD(params, copies=np.zeros(4, np.float16), average=0.5)
    optimizer.step(np.ones(4, np.float32))
    for bad, owner in [(optimizer.copies, "copies"), (optimizer.average[::-1], "average")]:
        words = f"SGD.step: grads shares memory with {owner}, expected"
        with refusal(ValueError, words, keeps=[optimizer, bad]):
            optimizer.step(bad)


def test_a_gradient_that_comes_to_share_memory_later_is_refused() -> None:
    memory = np.ones(12)
    optimizer = schuss.SGD(memory[4:8])
    for apart in (memory[:4], memory[8:], memory[:4]):
        optimizer.step(apart)
    for shared in (memory[1:5], memory[7:11], memory[4:8], memory[3:7]):
        with refusal(ValueError, "SGD.step: grads shares memory with params", keeps=optimizer):
            optimizer.step(shared)


# Hyperparameters.


def hyperparameters() -> Iterator[tuple[str, str, Any]]:
    """Yield each numeric or boolean hyperparameter: its kernel or optimizer, name, default."""
    for kernel, arrays in KERNELS.items():
        for name, parameter in inspect.signature(getattr(kernels, kernel)).parameters.items():
            if name not in (*arrays, "step", "bounds"):
                yield kernel, name, parameter.default
    for optimizer, kind in OPTIMIZERS.items():
        for name, default in {**kind.defaults, **OPTIONS}.items():
            if name not in ("nonfinite", "seed", "bounds"):
                yield optimizer, name, default


NUMBERS = pytest.mark.parametrize(
    ("owner", "name", "default"), [h for h in hyperparameters() if not isinstance(h[2], bool)]
)
FLAGS = pytest.mark.parametrize(
    ("owner", "name"), [h[:2] for h in hyperparameters() if isinstance(h[2], bool)]
)


def refuse(owner: str, name: str, bad: object, error: type[Exception], words: str = "") -> None:
    """Expect refusal by a kernel, or by constructor, assignment and `load_state_dict`."""
    words = f"{name} is {words}"
    if owner in KERNELS:
        arrays = kernel_arrays(owner)
        with refusal(error, f"kernels.{owner}: {words}", "expected", keeps=arrays):
            call_kernel(owner, arrays, **{name: bad})
        return
    params = make_params()
    with refusal(error, f"{owner}: {words}", "expected", keeps=params):
        make_optimizer(owner, params, **{name: bad})  # type: ignore[arg-type]
    optimizer = make_optimizer(owner, params, steps=1)
    with refusal(error, owner, words, "expected", keeps=optimizer):
        setattr(optimizer, name, bad)
    saved = put(optimizer.state_dict(), ("hyperparameters", name), bad)
    with refusal(error, f"{owner}.load_state_dict: ", words, "expected", keeps=optimizer):
        optimizer.load_state_dict(saved)


@NUMBERS
def test_what_is_not_a_number_is_refused(owner: str, name: str, default: Any) -> None:
    for bad in NOT_A_NUMBER:
        if bad is not None or default is not None:
            refuse(owner, name, bad, TypeError)


@NUMBERS
def test_a_number_out_of_range_is_refused(owner: str, name: str, default: Any) -> None:
    too_large = [1.0, 1.5, np.float64(1)] if name in FRACTIONS else []
    for bad in [*OUT_OF_RANGE, *too_large]:
        if name != "scale" or not -1 <= bad <= 0:  # a scale may be negative
            refuse(owner, name, bad, ValueError)


@FLAGS
def test_a_flag_that_is_not_a_bool_is_refused(owner: str, name: str) -> None:
    for bad in (None, 1, 0.0, "yes", np.array([True, False])):
        refuse(owner, name, bad, TypeError, f"{bad!r}, expected True or False")


@pytest.mark.parametrize("kernel", ["momentum", "adam"])
def test_a_kernel_counts_steps_from_one(kernel: str) -> None:
    for bad in (0, -1):
        refuse(kernel, "step", bad, ValueError, f"{bad}, expected an integer")
    for none in (1.0, "1", np.nan):
        refuse(kernel, "step", none, TypeError)


@every_optimizer
def test_nonfinite_and_seed_have_their_values_alone(name: str) -> None:
    refuse(name, "nonfinite", "ignore", ValueError)
    for bad in (None, True, 1):
        refuse(name, "nonfinite", bad, TypeError)
    no_integers = None, True, 0.5, 1.0, "1", 1j, [1], np.array([0.1]), np.float64(1), *DURATIONS
    for none in no_integers:
        refuse(name, "seed", none, TypeError)
    for out in (-1, np.int64(-(2**40)), 2**53, 2**64, 10**5000):
        refuse(name, "seed", out, ValueError)


def test_rmsprop_refuses_momentum_without_a_buffer() -> None:
    arrays = kernel_arrays("rmsprop")
    del arrays["buffer"]
    with refusal(ValueError, "kernels.rmsprop: momentum is 0.5 without buffer", keeps=arrays):
        call_kernel("rmsprop", arrays)


@every_optimizer
@pytest.mark.parametrize("method", ["step", "accumulate"])
def test_a_scale_that_is_not_a_finite_number_is_refused(name: str, method: str) -> None:
    optimizer = make_optimizer(name)
    for bad in NOT_A_NUMBER:
        words = f"{name}.{method}: scale is "
        with refusal(TypeError, words, "expected a number", keeps=optimizer):
            getattr(optimizer, method)(make_grads(), scale=bad)
    for bad in (np.nan, np.inf, -np.inf):
        with refusal(ValueError, words, "a finite number", keeps=optimizer):
            getattr(optimizer, method)(make_grads(), scale=bad)


@every_optimizer
def test_an_optimizer_refuses_hyperparameters_that_it_does_not_have(name: str) -> None:
    params = make_params()
    words = f"{name}: got an unexpected keyword argument 'learning_rate', expected one of lr, "
    with refusal(TypeError, words, "weight_decay", "clip_norm", "groups", keeps=params):
        make_optimizer(name, params, learning_rate=0.1)


HINTS = [
    ("betas", "Adam AdamW Adamax NAdam RAdam Lion", "beta1= and beta2="),
    ("betas", "SGD Momentum RMSprop Adagrad Adadelta", None),
    ("rho", "Momentum RMSprop", "beta="),
    ("rho", "SGD Adam Lion Adagrad", None),
    ("epsilon", "Adam Adadelta", "eps="),
    ("epsilon", "SGD Momentum Lion", None),
    ("nesterov", "Adam AdamW RAdam", "schuss.NAdam, which has beta1= and beta2= too"),
    ("nesterov", "SGD RMSprop", "schuss.Momentum(params, lr, beta=...)"),
    ("momentum", "SGD Adagrad", "schuss.Momentum(params, lr, beta=...)"),
    ("momentum", "Momentum", "beta="),
    ("momentum", "Adam Lion", "beta1="),
    ("alpha", "RMSprop", "lr=, or beta= of RMSprop"),
    ("alpha", "SGD Adam", "lr="),
    ("decay", "SGD Adam", "a schedule as lr=, or weight_decay="),
]


@pytest.mark.parametrize(("argument", "names", "hint"), HINTS)
def test_a_hint_names_arguments_that_the_class_has(
    argument: str, names: str, hint: str | None
) -> None:
    for name in names.split():
        with pytest.raises(TypeError) as caught:
            getattr(schuss, name)(np.zeros(1), **{argument: 0.5})
        written = str(caught.value).partition(" (write ")[2]
        assert written == (f"{hint})" if hint else ""), name


@every_optimizer
def test_a_step_refuses_a_schedule_that_raises_or_does_not_return_a_rate(name: str) -> None:
    optimizer = make_optimizer(name, lr=0.1, steps=1, groups={"layers/1": {"lr": 0.5}}.get)
    keeps = [optimizer.params, optimizer.state]
    rates: dict[str, Callable[[Any], object]] = {
        "lr": lambda lr: setattr(optimizer, "lr", lr),
        "param_groups[1]['lr']": lambda lr: optimizer.param_groups[1].update(lr=lr),
    }
    for where, put_rate in rates.items():
        for bad in [*NOT_A_NUMBER, *OUT_OF_RANGE]:
            put_rate(lambda t, bad=bad: bad)
            error = ValueError if any(bad is out for out in OUT_OF_RANGE) else TypeError
            with refusal(error, f"{name}.step: {where} is ", "expected", keeps=keeps):
                optimizer.step(make_grads())
        put_rate({}.__getitem__)
        with refusal(KeyError, "2", keeps=keeps):
            optimizer.step(make_grads())
        put_rate(lambda t: 0.1)
    assert optimizer.steps == 1
    optimizer.step(make_grads())
    assert optimizer.steps == 2


# Low precision.


# What does not go with params = {"W": ones(3, f4), "b": ones(4, f4)}.
BAD_OPTIONS = [
    ("state_dtype='float16'", ValueError, "state_dtype is 'float16', expected "),
    ("state_dtype=float64", ValueError, "state_dtype is 'float64', expected "),
    ("state_dtype='int8'", ValueError, "state_dtype is 'int8', expected "),
    ("state_dtype=object", ValueError, "state_dtype is 'object', expected "),
    ("state_dtype='half'", ValueError, "state_dtype is 'half', expected "),
    (
        "state_dtype='8bits'",
        ValueError,
        "state_dtype is '8bits', expected 'float32' or 'bfloat16' ",
    ),
    ("state_dtype=8", TypeError, "state_dtype is a int, expected "),
    ("master='bfloat16'", ValueError, "master is 'bfloat16', expected 'float32' or 'float24'"),
    ("master=float32", TypeError, "master is <class 'numpy.float32'>, expected 'float32' or 'fl"),
    ("master=True", TypeError, "master is True, expected 'float32' or 'float24'"),
    (
        "master='float32'",
        ValueError,
        "master is 'float32' where no parameter is bfloat16, expected",
    ),
    ("round_params='up'", ValueError, "round_params is 'up', expected 'nearest' or 'random'"),
    ("round_params=None", TypeError, "round_params is None, expected 'nearest' or 'random'"),
    (
        "round_params='random'",
        ValueError,
        "round_params is 'random' where no parameter is bfloat16",
    ),
    ("state_dtype=3", TypeError, "state_dtype is a int, expected "),
    ("state_dtype=True", TypeError, "state_dtype is a bool, expected "),
    ("state_dtype=['f4']", TypeError, "state_dtype is a list, expected "),
    ("copies=3", TypeError, "copies is a int, expected"),
    ("copies='float32'", ValueError, "copies is 'float32', expected 'float16' or"),
    ("copies='int16'", ValueError, "copies is 'int16', expected 'float16' or"),
    ("copies=object", ValueError, "copies is 'object', expected 'float16' or"),
    ("b=ones(4, 'f4')", TypeError, "copies['b'] has dtype float32, expected float16"),
    ("W=ones(3, 'i2')", TypeError, "copies['W'] has dtype int16, expected float16"),
    ("W=ones(3, foreign)", TypeError, "copies['W'] has dtype "),
    ("b=ones((4, 1), 'f2')", ValueError, "copies['b'] has shape (4, 1), expected (4,) (the shape"),
    ("copies=list(halves.values())", ValueError, "copies is a list, expected a mapping"),
    ("copies={'W': halves['W']}", ValueError, "copies has no key 'b', expected it"),
    ("c=frozen", ValueError, "copies has the key 'c', expected no"),
    ("b=0.5", TypeError, "copies['b'] is a float, expected"),
    ("b=frozen", ValueError, "copies['b'] is read-only, expected"),
    ("b=overlapping", ValueError, "copies['b'] has elements that overlap"),
    ("b=params['W'].view('f2')[2:]", ValueError, "copies['b'] shares memory with params['W'], ex"),
    ("W=halves['b'][:3]", ValueError, "copies['b'] shares memory with copies['W'], expected"),
]


@every_optimizer
@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS)
def test_an_optimizer_refuses_formats_and_copies_that_do_not_go_with_its_parameters(
    name: str, options: str, error: type[Exception], words: str
) -> None:
    params = {"W": np.ones(3, np.float32), "b": np.ones(4, np.float32)}
    halves = {key: param.astype(np.float16) for key, param in params.items()}
    frozen = np.ones(4, np.float16)
    frozen.flags.writeable = False
    names = {"foreign": np.dtype(np.float16).newbyteorder("S"), "frozen": frozen, **vars(np)}
    names["overlapping"] = as_strided(np.zeros(6, np.float16), (4,), (0,))
    given = eval(f"dict({options})", names | {"params": params, "halves": halves})
    if not given.keys() & {"state_dtype", "copies", "master", "round_params"}:
        given = {"copies": halves | given}
    with refusal(error, f"{name}: {words}", keeps=[params, given]):
        make_optimizer(name, params, **given)


@every_optimizer
@pytest.mark.parametrize("dtype", [np.float64, *HALVES], ids=str)
def test_only_float32_parameters_have_copies_and_float64_none_of_half_its_size(
    name: str, dtype: Any
) -> None:
    names = [np.dtype(half).name for half in HALVES]
    for copies in [*names, *(np.zeros(3, half) for half in HALVES)]:
        params = np.ones(3, dtype)
        with refusal((TypeError, ValueError), f"{name}: copies ", " float32", keeps=params):  # type: ignore[arg-type]
            make_optimizer(name, params, copies=copies)
    for bad in ["float32", "8bit", *HALVES[1:]] if dtype is np.float64 else []:
        label = bad if bad == "8bit" else np.dtype(bad).name
        words = f"{name}: state_dtype is '{label}' where a parameter is float64"
        with refusal(ValueError, words, "expected", keeps=params):
            make_optimizer(name, [np.ones(3, np.float32), params], state_dtype=bad)


# Options of bfloat16 parameters, what else is given, and why they do not go together.
WITH_BFLOAT16 = [
    (
        {"master": "float32", "round_params": "random"},
        np.float32,
        "round_params is 'random' where master is 'float32', expected 'nearest': a master keeps",
    ),
    (
        {"master": "float24", "copies": "float16"},
        np.float32,
        "copies are given where master is 'float24', expected only one of them",
    ),
    *(
        (
            {name: value},
            dtype,
            f"{name} is '{value}' where a parameter is {dtype.__name__}, {words}",
        )
        for name, value in [
            ("master", "float32"),
            ("master", "float24"),
            ("round_params", "random"),
        ]
        for dtype, words in [
            (
                np.float16,
                "expected parameters in bfloat16, and others in float32 only (float16 is n",
            ),
            (
                np.float64,
                "expected parameters in bfloat16, and others in float32 only (it drops no",
            ),
            (np.complex64, "expected parameters in bfloat16, and others in float32 only (it drops"),
        ]
    ),
]


@every_optimizer
@pytest.mark.parametrize(("options", "dtype", "words"), WITH_BFLOAT16)
def test_masters_and_random_rounding_are_for_bfloat16_parameters_beside_float32(
    name: str, options: dict[str, Any], dtype: Any, words: str
) -> None:
    params = [np.ones(3, dtype_of("bfloat16")), np.ones(3, dtype)]
    with refusal(ValueError, f"{name}: {words}", keeps=params):
        make_optimizer(name, params, **options)


def test_bfloat16_without_ml_dtypes_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    params = np.ones(3, np.float32)
    for option in ("state_dtype", "copies"):
        words = f"Adam: {option} is 'bfloat16'", "ml_dtypes", "pip install 'schuss[bfloat16]'"
        with refusal(ImportError, *words, keeps=params):
            schuss.Adam(params, **{option: "bfloat16"})  # type: ignore[arg-type]


def test_all_but_bfloat16_works_without_ml_dtypes() -> None:
    ends_well(
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
        optimizer = schuss.Adam(np.ones(5000, np.float32), state_dtype="8bit")
        optimizer.step(np.ones(5000, np.float32))
        assert copy.deepcopy(optimizer).state["v"].any()
        """
    )


# Groups.

# What the second group cannot override, and what follows its name in the message.
BAD_GROUPS: list[tuple[dict[Any, Any], type[Exception], str]] = [
    ({"learning_rate": 0.5}, ValueError, " has 'learning_rate', expected hyperparameters among lr"),
    ({"clip_norm": 1.0}, ValueError, " has 'clip_norm', expected hyperparameters among lr, beta1"),
    ({"momentum": 0.5}, ValueError, " has 'momentum', expected hyperparameters among lr, beta1"),
    ({1: 0.5}, ValueError, " has 1, expected hyperparameters among"),
    ({"beta1": 1.0}, ValueError, "['beta1'] is 1.0, expected a number in [0, 1)"),
    ({"beta1": "0.5"}, TypeError, "['beta1'] is a str, expected a number"),
    ({"lr": 0.5, "eps": "1"}, TypeError, "['eps'] is a str, expected a number"),
    ({"eps": np.nan}, ValueError, "['eps'] is nan, expected"),
    ({"lr": -0.5}, ValueError, "['lr'] is -0.5, expected a finite number >= 0"),
    ({"lr": None}, TypeError, "['lr'] is a NoneType, expected a number"),
    ({"lr": np.ones(2)}, TypeError, "['lr'] is a ndarray, expected a number"),
    ({"bias_correction": 1}, TypeError, "['bias_correction'] is 1, expected True or False"),
    ({"amsgrad": 1}, TypeError, "['amsgrad'] is 1, expected True or False"),
    ({"frozen": None}, TypeError, "['frozen'] is None, expected True or False"),
    ({"params": []}, ValueError, " has 'params', expected hyperparameters among"),
]


def calls_with_a_group(own: dict[Any, Any]) -> tuple[Any, dict[str, Callable[[], object]]]:
    """Return an optimizer, and the calls that give hyperparameters to its second group."""
    params = make_params()
    optimizer = schuss.Adam(params, groups={"layers/1": {"lr": 0.5}}.get)
    optimizer.step(make_grads())
    saved = put(optimizer.state_dict(), ("groups", 1, "hyperparameters"), own)
    dicts = [{"params": params["W1"]}, {"params": params["layers"], **own}]
    return optimizer, {
        "Adam: groups('layers/1')": lambda: schuss.Adam(params, groups={"layers/1": own}.get),
        "Adam: params[1]": lambda: schuss.Adam(dicts),
        "Adam: param_groups[1]": lambda: optimizer.param_groups[1].update(own),
        "Adam.load_state_dict: state_dict['groups'][1]": lambda: optimizer.load_state_dict(saved),
        "Adam: groups('W1')": lambda: schuss.Adam(params, groups=lambda name: dict(own)),
    }


@pytest.mark.parametrize(("own", "error", "words"), BAD_GROUPS)
def test_a_group_refuses_what_an_optimizer_would(
    own: dict[Any, Any], error: type[Exception], words: str
) -> None:
    optimizer, calls = calls_with_a_group(own)
    before = [{**group, "params": 0} for group in optimizer.param_groups]
    for name, call in calls.items():
        if "params" not in own or name != "Adam: params[1]":
            with refusal(error, name + words, keeps=optimizer):
                call()
            assert [{**group, "params": 0} for group in optimizer.param_groups] == before
    optimizer.step(make_grads())


def test_the_groups_of_an_optimizer_have_the_same_states() -> None:
    optimizer, calls = calls_with_a_group({"amsgrad": True})
    for name, call in list(calls.items())[:-1]:
        words = "param_groups[1] keeps m, v, v_max as state, expected m, v as in param_groups[0]"
        with refusal(ValueError, f"{name.partition(':')[0]}: {words}", keeps=optimizer):
            call()


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("3", "groups is a int, expected a function of a parameter's name"),
        ("'bias'", "groups is a str, expected a function of a parameter's name"),
        ("{'W1': {'lr': 0.5}}", "groups is a dict, expected a function of a parameter's name"),
        ("[{'lr': 0.5}, {}, {}]", "groups is a list, expected a function of a parameter's name"),
        ("lambda name: [0.5]", "groups('W1') is a list, expected a mapping or None"),
        ("lambda name: 0.5", "groups('W1') is a float, expected a mapping or None"),
        ("{'layers/0': 'lr'}.get", "groups('layers/0') is a str, expected a mapping or None"),
    ],
)
def test_groups_are_a_function_to_mappings_or_refused(groups: str, words: str) -> None:
    params = make_params()
    with refusal(TypeError, f"Adam: {words}", keeps=params):
        schuss.Adam(params, groups=eval(groups))
    words = "Adam: groups is given and params are groups, expected only one of them"
    with refusal(ValueError, words, keeps=params):
        schuss.Adam([{"params": params}], groups=lambda name: None)
    with refusal(KeyError, "'W1'", keeps=params):
        schuss.Adam(params, groups={"b": {"lr": 0.5}}.__getitem__)


def test_what_a_group_has_cannot_be_deleted() -> None:
    optimizer = schuss.Adam(make_params())
    words = "param_groups[0]: 'lr' can be set, not deleted"
    with refusal(TypeError, words, keeps=optimizer):
        del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="momentum"):
        _ = optimizer.param_groups[0]["momentum"]


# Saved states.

DROP = object()
BLOCKS: dict[str, Any] = {"code": "square8", "elements": 128, "orders": [None] * 3}
# What describes blocks: an entry, a wrong value, and how the message goes on.
BAD_BLOCKS: list[tuple[str, Any, type[Exception], str]] = [
    ("code", "cube8", ValueError, "['code'] is 'cube8', expected 'square8' as it is here"),
    ("elements", 64, ValueError, "['elements'] is 64, expected 128 as it is here"),
    ("orders", None, ValueError, "['orders'] is None, expected a list of 3"),
    ("orders", [None], ValueError, "['orders'] is [None], expected a list of 3"),
    *(
        ("orders", [bad, None, None], ValueError, f"['orders'][0] is {bad!r}, expected axes in an")
        for bad in (0, [0], [0, 0], [0, ~0], [0, 2], [0, True], [0, "1"])
    ),
]
# A path in a saved state of Adam with amsgrad and an average, the value that is put there (DROP
# removes what is there), and how the message goes on after "state_dict" and the path.
BAD_STATES: list[tuple[str, Any, type[Exception], str]] = [
    ("", None, TypeError, " is a NoneType"),
    ("", [], TypeError, " is a list"),
    ("", {}, ValueError, " has the keys []"),
    ("optimizer", "SGD", ValueError, " is 'SGD'"),
    ("optimizer", "AdamW", ValueError, " is 'AdamW', expected 'Adam'"),
    ("steps", DROP, ValueError, " has the keys"),
    ("steps", -1, ValueError, " is -1"),
    ("steps", 1.5, TypeError, " is a float"),
    ("steps", None, TypeError, " is a NoneType"),
    ("steps", 2**63, ValueError, " is 92233720"),
    ("rng", 0, ValueError, " has the keys"),
    ("7", 0, ValueError, " has the keys"),  # an integer, which cannot be sorted among strings
    ("hyperparameters", None, TypeError, " is"),
    ("hyperparameters beta1", DROP, ValueError, " has the keys"),
    ("hyperparameters beta", 0.9, ValueError, " has the keys"),
    ("state", None, TypeError, " is a NoneType"),
    ("state v", DROP, ValueError, " has the keys"),
    ("state w", 1, ValueError, " has the keys"),
    ("state v W1", DROP, ValueError, " has no key 'W1'"),
    ("state v layers 1", DROP, ValueError, " has length 1"),
    ("groups", DROP, ValueError, " has the keys"),
    ("groups", None, ValueError, " is None, expected a list"),
    ("groups", [{"hyperparameters": {}, "members": [0]}] * 2, ValueError, " is [{"),
    ("groups", [[]], TypeError, "[0] is a list, expected a mapping"),
    ("groups 0 members", [0, 1], ValueError, " is [0, 1], expected [0, 1, 2]"),
    ("groups 0 members", DROP, ValueError, " has the keys ['hyperparameters', 'rested'], expected"),
    ("groups 0 rested", 2, ValueError, " is 2, expected an integer >= 0 and < 2"),
    ("groups 0 rested", None, TypeError, " is a NoneType, expected an integer"),
    ("groups 0 hyperparameters", None, TypeError, " is a NoneType, expected a mapping"),
    (
        "accumulated",
        {"count": 1, "without": [3], "values": None},
        ValueError,
        "['without'] is 3, expected an integer >= 0 and < 3",
    ),
    (
        "accumulated",
        {"count": 1, "without": None, "values": None},
        TypeError,
        "['without'] is None, expected a list of integers",
    ),
    ("master", [None], ValueError, " is given, expected None: the optimizer has no master"),
    ("blocks", 1, TypeError, " is a int, expected a mapping"),
    *(("blocks", BLOCKS | {name: value}, error, words) for name, value, error, words in BAD_BLOCKS),
    ("average", None, ValueError, " "),
    ("average weights", None, ValueError, " is None, expected two numbers"),
    ("average weights", (1.0,), ValueError, " is (1.0,), expected two numbers"),
    ("average weights", (1.0, -1.0), ValueError, " is -1.0, expected a finite number >= 0"),
    ("average weights", (np.nan, 1.0), ValueError, " is nan, expected a finite number >= 0"),
    ("average weights", (0.0, 0.5), ValueError, " is (0.0, 0.5), expected both to be 0 or"),
    ("average weights", ("1", 1.0), TypeError, " is a str, expected a number"),
    ("average values", [np.ones(3)], ValueError, " is a list, expected a mapping"),
    ("average values layers 0", np.ones(4), ValueError, " has shape (4,), expected (2, 2)"),
    ("average values W1", np.ones((3, 2)), TypeError, " has dtype float64, expected float32"),
]


@pytest.mark.parametrize(("where", "value", "error", "words"), BAD_STATES)
def test_an_optimizer_refuses_a_state_that_is_not_its_own(
    where: str, value: Any, error: type[Exception], words: str
) -> None:
    optimizer = make_optimizer("Adam", steps=1, average=0.5)
    saved = optimizer.state_dict()
    optimizer.step(make_grads())
    optimizer.lr = 0.5
    path = [int(key) if key.isdigit() else key for key in where.split()]
    if path:
        put(saved, tuple(path), value)
    else:
        saved = value
    if value is DROP:
        del at(saved, tuple(path[:-1]))[path[-1]]
    if "has the keys" in words or value is DROP:
        path = path[:-1]
    words = f"Adam.load_state_dict: state_dict{subscripts(tuple(path))}{words}"
    with refusal(error, words, "expected", keeps=[optimizer, optimizer.average]):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("hyperparameter", "value", "entry"),
    [("average", 0.5, "average"), ("average", None, "average"), ("amsgrad", False, "state")],
)
def test_an_optimizer_refuses_a_state_that_does_not_go_with_its_hyperparameters(
    hyperparameter: str, value: Any, entry: str
) -> None:
    optimizer = make_optimizer("Adam", steps=1, average=None if value else 0.5)
    saved = put(optimizer.state_dict(), ("hyperparameters", hyperparameter), value)
    words = f"Adam.load_state_dict: state_dict['{entry}'] "
    with refusal(ValueError, words, "expected", keeps=optimizer):
        optimizer.load_state_dict(saved)


# What beginners write, and the remedy in the message.

OPTIONS_OF_SGD = ", ".join(inspect.signature(schuss.SGD).parameters).removeprefix("params, ")
OPTIONS_OF_ADAM = ", ".join(inspect.signature(schuss.Adam).parameters).removeprefix("params, ")
OPTIONS_OF_BATCHES = ", ".join(inspect.signature(schuss.minibatches).parameters)
OPTIONS_OF_FIT = ", ".join(inspect.signature(schuss.fit).parameters)
BEGINNERS: list[tuple[str, str]] = [
    (
        "schuss.SGD({'W1': w, 'b1': b}).step({'dW1': w, 'db1': b})",
        "SGD.step: grads has no key 'W1' (it has 'dW1', 'db1'), expected it (the structure of "
        "params)",
    ),
    (
        "schuss.SGD({'W': w}).step({key: w for key in 'abcdef'})",
        "SGD.step: grads has no key 'W' (it has 'a', 'b', 'c', 'd', ...), expected it (the "
        "structure of params)",
    ),
    (
        "schuss.SGD(array for array in [w, b])",
        "SGD: params is a generator, expected an array, or a sequence, mapping or dataclass of "
        "arrays (write params = list(params) first; for a module of PyTorch, there is "
        "schuss.torch)",
    ),
    (
        "schuss.SGD(w, momentum=0.9)",
        "SGD: got an unexpected keyword argument 'momentum', expected one of "
        f"{OPTIONS_OF_SGD} (write schuss.Momentum(params, lr, beta=...))",
    ),
    (
        "schuss.Adam(w, betas=(0.9, 0.99))",
        "Adam: got an unexpected keyword argument 'betas', expected one of "
        f"{OPTIONS_OF_ADAM} (write beta1= and beta2=)",
    ),
    (
        "schuss.Adam(w, learning_rate=0.1)",
        "Adam: got an unexpected keyword argument 'learning_rate', expected one of "
        f"{OPTIONS_OF_ADAM} (write lr=)",
    ),
    (
        "schuss.minibatches(w, seed=1)",
        "minibatches: got an unexpected keyword argument 'seed', expected one of "
        f"{OPTIONS_OF_BATCHES} (write rng=)",
    ),
    (
        "schuss.minibatches(w, learning=1)",
        "minibatches: got an unexpected keyword argument 'learning', expected one of "
        f"{OPTIONS_OF_BATCHES}",
    ),
    (
        "schuss.minibatches(w, w, 32)",
        "minibatches: got 3 arguments by position, expected x and y (or write batch_size=32)",
    ),
    (
        "schuss.minibatches(w, 32)",
        "minibatches: y is a int, expected an array (or write batch_size=32)",
    ),
    (
        "schuss.minibatches(w, np.int64(32))",
        "minibatches: y is a int64, expected an array (or write batch_size=32)",
    ),
    (
        "schuss.minibatches(w, w, np.int64(32))",
        "minibatches: got 3 arguments by position, expected x and y (or write batch_size=32)",
    ),
    (
        "schuss.fit(abs, w, schuss.SGD(w), w, b, 32)",
        "fit: got 6 arguments by position, expected loss_and_grad, params, optimizer, x and y "
        "(or write batch_size=32)",
    ),
    (
        "schuss.fit(abs, w, schuss.SGD(w), w, b, w)",
        "fit: got 6 arguments by position, expected loss_and_grad, params, optimizer, x and y",
    ),
    (
        "schuss.fit(abs, w, schuss.SGD(w), w, b, seed=0)",
        "fit: got an unexpected keyword argument 'seed', expected one of "
        f"{OPTIONS_OF_FIT} (write rng=)",
    ),
    (
        "schuss.fit(abs, w, schuss.SGD(w), w, 32)",
        "minibatches: y is a int, expected an array (or write batch_size=32)",
    ),
    (
        "schuss.minibatches(np.ones((5, 20)), np.ones((1, 20)))",
        "minibatches: y has 1 examples, expected 5 (as x has; axis=1 if the examples lie in "
        "columns)",
    ),
    (
        "schuss.minibatches(np.ones((5, 20)), np.ones(20))",
        "minibatches: y has 20 examples, expected 5 (as x has; axis=1 if the examples lie in "
        "columns)",
    ),
    (
        "schuss.minibatches(np.ones((5, 20)), np.ones(4))",
        "minibatches: y has 4 examples, expected 5 (as x has)",
    ),
    (
        "schuss.SGD({'s': np.float32(1)})",
        "SGD: params['s'] is a float32 number, expected an array (np.array(x) makes one)",
    ),
    (
        "schuss.kernels.sgd(np.float64(1), np.ones(()), lr=0.1)",
        "kernels.sgd: param is a float64 number, expected an array (np.array(x) makes one)",
    ),
    (
        "schuss.SGD({'W': np.frombuffer(bytes(8))})",
        "SGD: params['W'] is read-only, expected a writeable array (np.array(x) copies it)",
    ),
    (
        "schuss.SGD({'W': w}).step({'W': w.astype('f8')})",
        "SGD.step: grads['W'] has dtype float64, expected float32 (the dtype of params['W']), "
        "float16 or bfloat16 (grads['W'].astype(np.float32) converts it)",
    ),
    (
        "schuss.SGD(w.astype('f8')).step(w.astype('i8'))",
        "SGD.step: grads has dtype int64, expected float64 (the dtype of params), "
        "float32, float16 or bfloat16 (grads.astype(np.float64) converts it)",
    ),
    (
        "schuss.SGD(w, lr=-0.1)",
        "SGD: lr is -0.1, expected a finite number >= 0 (maximize=True ascends)",
    ),
    (
        "schuss.SGD(schuss.SGD(w).step(w.copy()))",
        "SGD: params is a NoneType, expected an array, or a sequence, mapping or dataclass of "
        "arrays (a step changes arrays in place and returns None)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BEGINNERS)
def test_what_beginners_write_is_refused_with_the_remedy(call: str, message: str) -> None:
    names = {"schuss": schuss, "np": np, "w": np.ones(3, np.float32), "b": np.ones(2, np.float32)}
    with pytest.raises((TypeError, ValueError)) as caught:
        eval(call, names)
    assert str(caught.value) == message


# What completion by TAB shows.

MODULES = ["averages", "batches", "checkpoints", "config", "history", "kernels", "l2"]
MODULES += ["landscapes", "loss_scale", "optimizers", "reference", "schedules", "training"]
# The modules of other libraries, which `dir` lists where these are installed.
INTEGRATIONS = [name for name in ("sklearn", "torch") if find_spec(name)]


@pytest.mark.parametrize(
    "module", [schuss, *(f"schuss.{name}" for name in [*MODULES, *INTEGRATIONS])], ids=str
)
def test_modules_list_their_public_names_alone(module: Any) -> None:
    if isinstance(module, str):
        module = import_module(module)
    integrations = INTEGRATIONS if module is schuss else []
    assert dir(module) == sorted({*module.__all__, *integrations})


def test_names_are_listed_where_a_module_stands_in_for_a_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("sklearn", "torch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert dir(schuss) == sorted(schuss.__all__)


@every_optimizer
def test_an_optimizer_lists_its_public_names_alone(name: str) -> None:
    optimizer = make_optimizer(name)
    assert {"step", "add_group", *OPTIMIZERS[name].defaults, *OPTIONS} <= {*dir(optimizer)}
    completer = rlcompleter.Completer({"opt": optimizer, "schuss": schuss})
    for start, names in (("opt.", dir(optimizer)), ("schuss.", dir(schuss))):
        matches = completer.attr_matches(start)
        assert matches
        assert {match.removeprefix(start).rstrip("()") for match in matches} <= {*names}
    assert not [name for name in dir(optimizer) if name.startswith("_")]


# What is accepted.


def expect_step(param: Any, grad: Any) -> None:
    """Step by the kernel and by an optimizer, and expect the bits of the reference."""
    seen = np.asarray(param)
    arrays = param, grad, np.zeros(seen.shape, seen.dtype), np.zeros_like(seen)
    expected = [np.array(a) for a in arrays]
    reference.adam(*expected, step=1, weight_decay=0.1)
    kernels.adam(*arrays, step=1, weight_decay=0.1)
    assert contents([np.asarray(a) for a in arrays]) == contents(expected)
    optimizer = schuss.SGD([param], lr=0.25)
    for _ in range(2):
        reference.sgd(*expected[:2], lr=0.25)
        optimizer.step([grad])
        assert seen.tobytes() == expected[0].tobytes()
    assert optimizer.steps == 2


def ramp(*shape: int, dtype: Any = np.float64) -> Any:
    return np.linspace(-1, 2, int(np.prod(shape))).astype(dtype).reshape(shape)


class Tagged(np.ndarray[Any, Any]):
    """A subclass that changes nothing."""


# A parameter and its gradient; "f" is a dtype.
ACCEPTED = [
    ("ramp(3, 2, dtype=f)", "np.broadcast_to(ramp(2, dtype=f), (3, 2))"),
    ("ramp(3, 2, dtype=f)", "np.broadcast_to(f(1.5), (3, 2))"),
    ("ramp(3, 2, dtype=f)", "np.lib.stride_tricks.sliding_window_view(ramp(4, dtype=f), 2)"),
    ("np.array(1.5, f)", "np.array(-0.5, f)"),
    ("np.array(1.5, f)", "f(-0.5)"),
    *((f"np.empty({shape}, f)",) * 2 for shape in ("(0,)", "(3, 0)", "(0, 3)", "(2, 0, 5)")),
    ("np.empty((0, 3), f).T", "np.broadcast_to(f(1), (3, 0))"),
    ("ramp(3)", "array.array('d', [1, 2, 3])"),
    ("memoryview(ramp(3, 2, dtype=f))", "memoryview(ramp(3, 2, dtype=f))"),
    ("ramp(3, 2, dtype=f).view(Tagged)", "ramp(3, 2, dtype=f).view(Tagged)"),
    ("ramp(3, 2, dtype=f).T.view(np.matrix)", "ramp(2, 3, dtype=f).view(np.matrix)"),
    ("np.frombuffer(bytearray(41), f, 5, 1)", "np.frombuffer(b'x' * 41, f, 5, 1)"),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("param", "grad"), ACCEPTED)
def test_arrays_of_every_kind_are_updated_in_place(param: str, grad: str, dtype: Any) -> None:
    names = {"f": dtype, "np": np, "array": array, "ramp": ramp, "Tagged": Tagged}
    expect_step(eval(param, names), eval(grad, names))


def test_empty_arrays_share_nothing_and_parameters_may_share_a_gradient() -> None:
    memory = ramp(8)
    optimizer = schuss.Adam([memory, memory[:0], memory[4:4], memory[:0]])
    optimizer.step([ramp(8), memory[:0], memory[2:2], ramp(0)])
    assert optimizer.steps == 1
    params, expected, shared = [ramp(4), ramp(4) + 1], [ramp(4), ramp(4) + 1], ramp(4)
    schuss.SGD(params, lr=0.5).step([shared, shared])
    for wanted in expected:
        reference.sgd(wanted, shared, lr=0.5)
    assert contents(params) == contents(expected)


def test_buffers_and_subclasses_of_ndarray_are_updated_in_place() -> None:
    class Tagged(np.ndarray[Any, Any]):
        pass

    expect_step(ramp(3), array.array("d", [1, 2, 3]))
    expect_step(memoryview(ramp(3, 2)), memoryview(ramp(3, 2)))
    expect_step(ramp(3, 2).view(Tagged), ramp(3, 2).view(Tagged))
    expect_step(ramp(3, 2).T.view(np.matrix), ramp(2, 3).view(np.matrix))


class Liar(np.ndarray[Any, Any]):
    """An array that answers False to every function of NumPy's."""

    def __array_function__(self, *_: object, **__: object) -> Any:
        return False


def test_a_subclass_cannot_hide_that_it_shares_memory() -> None:
    param = np.ones(4)
    with refusal(ValueError, "SGD.step: grads shares memory with params", keeps=param):
        schuss.SGD(param).step(param.view(Liar))
    with pytest.raises(ValueError, match="overlap"):
        schuss.SGD(as_strided(np.ones(4), (4,), (0,)).view(Liar))
