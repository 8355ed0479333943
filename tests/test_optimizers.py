"""Optimizers as objects: structures, state, settings, schedules, saving, copying."""

import array
import copy
import gc
import inspect
import pickle
import tracemalloc
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, assert_type

import numpy as np
import pytest

import schuss
from schuss import _core
from support.arrays import contents, leaves
from support.optimizers import (
    OPTIMIZERS,
    OPTIONS,
    Options,
    assert_same,
    every_optimizer,
    every_variant,
    make_optimizer,
    make_reference,
    other_value,
)

every_hyperparameter = pytest.mark.parametrize(
    ("name", "hyperparameter", "value"),
    [(name, h, other_value(name, h)) for name, kind in OPTIMIZERS.items() for h in kind.defaults],
)


def arrays_of(seed: int) -> list[Any]:
    """Return four arrays of random numbers: parameters, or gradients of them."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(3, 2)).astype(np.float32),
        np.asfortranarray(rng.normal(size=(4, 5))),
        rng.normal(size=12)[::2],
        np.array(rng.normal()),
    ]


def tree_of(arrays: list[Any]) -> dict[str, Any]:
    a, b, c, d = arrays
    return {"W1": a, "rest": [b, {"c": c}, (d,)]}


def trained(name: str, *, steps: int = 0, **options: Any) -> tuple[Any, Any]:
    """Return an optimizer of a structure and its reference, after some steps."""
    optimizer = make_optimizer(name, tree_of(arrays_of(0)), **options)
    expected = make_reference(name, tree_of(arrays_of(0)), **options)
    for t in range(1, steps + 1):
        step_both(optimizer, expected, t)
    return optimizer, expected


def step_both(optimizer: Any, expected: Any, t: int) -> None:
    """Let both make a step with the gradients of that number, and compare them."""
    for each in (optimizer, expected):
        each.step(tree_of(arrays_of(t)))
    assert_same(optimizer, expected)


# Structures.


class Net(dict[str, Any]):
    pass


Four = namedtuple("Four", "a b c d")


class Reversed(list[Any]):
    """A list whose methods show it from its end."""

    def __iter__(self) -> Iterator[Any]:
        return list.__reversed__(self)

    def __getitem__(self, index: Any) -> Any:
        return list.__getitem__(self, -1 - index)


class Renamed(dict[str, Any]):
    """A dict whose methods show other keys than it stores."""

    def __iter__(self) -> Iterator[str]:
        return iter([key.upper() for key in self.keys()])

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, str(key).lower())

    def __getitem__(self, key: str) -> Any:
        return dict.__getitem__(self, key.lower())


class Views(Mapping[str, Any]):
    """A mapping that makes new views and lists of its arrays at each access."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(["first", "rest"])

    def __getitem__(self, key: str) -> Any:
        first, *rest = [array[...] for array in self.arrays]
        return {"first": first, "rest": rest}[key]


def named(arrays: list[Any]) -> dict[str, Any]:
    return dict(zip("abcd", arrays, strict=True))


STRUCTURES: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda arrays: list(arrays),
    "tuple": lambda arrays: tuple(arrays),
    "dict": lambda arrays: dict(zip(("a", 1, None, (2, 3)), arrays, strict=True)),
    "nested": tree_of,
    "deeper": lambda arrays: [[[arrays[0]], {"x": {"y": [arrays[1]]}}], (), arrays[2:], {}],
    "dict subclass": lambda arrays: Net(named(arrays)),
    "OrderedDict": lambda arrays: OrderedDict(named(arrays)),
    "UserDict": lambda arrays: UserDict(named(arrays)),
    "mappingproxy": lambda arrays: MappingProxyType(named(arrays)),
    "UserList": lambda arrays: UserList(arrays),
    "namedtuple": lambda arrays: Four(*arrays),
    "deque": lambda arrays: deque(arrays),
    "ChainMap": lambda arrays: ChainMap({"d": arrays[3]}, named([*arrays[:3], None])),
    "list read backwards": lambda arrays: Reversed(arrays[::-1]),
    "dict with other keys": lambda arrays: Renamed(named(arrays)),
    "Mapping of new views": Views,
}


@pytest.mark.parametrize("structure", STRUCTURES)
@every_variant
def test_any_structure_gets_the_bits_of_separate_steps(
    name: str, options: Options, structure: str
) -> None:
    arrange, arrays = STRUCTURES[structure], arrays_of(0)
    optimizer = make_optimizer(name, arrange(arrays), **options)
    expected = make_reference(name, arrays_of(0), **options)
    for t in range(1, 4):
        optimizer.step(arrange(arrays_of(t)))
        expected.step(arrays_of(t))
        assert_same(optimizer, expected)
    assert contents(arrays) == contents(expected.params)


def test_params_are_the_object_that_was_given() -> None:
    for params in (arrays_of(0)[1], *(arrange(arrays_of(0)) for arrange in STRUCTURES.values())):
        assert schuss.SGD(params).params is params


def test_state_has_the_structure_of_params() -> None:
    arrays = arrays_of(0)
    for tree in schuss.Adam(tree_of(arrays)).state.values():
        assert [*tree] == ["W1", "rest"]
        assert [type(child) for child in tree["rest"]] == [np.ndarray, dict, tuple]
        for leaf, param in zip(leaves(tree), arrays, strict=True):
            assert (leaf.shape, leaf.dtype, leaf.any()) == (param.shape, param.dtype, False)


def test_gradients_may_come_in_other_containers_of_the_same_kind() -> None:
    optimizer, expected = trained("Adam")
    for t, outer in enumerate((OrderedDict, UserDict, MappingProxyType, Net), 1):
        a, b, c, d = arrays_of(t)
        optimizer.step(outer({"rest": UserList([b, UserDict({"c": c}), [d]]), "W1": a}))
        expected.step(tree_of([a, b, c, d]))
        assert_same(optimizer, expected)


# Hyperparameters.


@every_optimizer
def test_the_defaults_are_those_of_the_design(name: str) -> None:
    defaults, optimizer = OPTIMIZERS[name].defaults, make_optimizer(name, np.ones(3))
    assert {h: getattr(optimizer, h) for h in defaults} == defaults
    parameters = inspect.signature(getattr(schuss, name)).parameters
    assert {h: parameters[h].default for h in defaults} == defaults


@every_optimizer
def test_only_the_learning_rate_may_be_given_by_position(name: str) -> None:
    assert getattr(schuss, name)(np.ones(3), 0.5).lr == 0.5
    with pytest.raises(TypeError, match="positional"):
        getattr(schuss, name)(np.ones(3), 0.5, 0.5)


@every_hyperparameter
def test_a_hyperparameter_is_in_force_from_the_next_step(
    name: str, hyperparameter: str, value: Any
) -> None:
    others: Any = {"weight_decay": 0.1} if hyperparameter == "decoupled_weight_decay" else {}
    optimizer, expected = trained(name, **others)
    unchanged = make_reference(name, tree_of(arrays_of(0)), **others)
    default = OPTIMIZERS[name].defaults[hyperparameter]
    # Late enough for eps of RAdam.
    for t, setting in enumerate([default] * 5 + [value] * 2 + [default], 1):
        setattr(optimizer, hyperparameter, setting)
        assert getattr(optimizer, hyperparameter) == setting
        expected.set(**{hyperparameter: setting})
        step_both(optimizer, expected, t)
        unchanged.step(tree_of(arrays_of(t)))
    # Each setting matters: without it the parameters would be others.
    matters = hyperparameter != "initial_accumulator_value"
    assert (contents(expected.params) != contents(unchanged.params)) == matters


def test_a_state_begins_with_the_initial_value_of_its_group() -> None:
    a, b = np.zeros(2, np.float32), np.zeros(2)
    groups = [{"params": [a]}, {"params": [b], "initial_accumulator_value": 0.25}]
    optimizer = schuss.Adagrad(groups, lr=1.0, eps=0.0, initial_accumulator_value=0.75)
    assert [s.tolist() for (s,) in optimizer.state["square_sum"]] == [[0.75] * 2, [0.25] * 2]
    optimizer.initial_accumulator_value = 0.0  # too late
    optimizer.step([[np.full(2, 0.5, np.float32)], [np.zeros(2)]])
    assert (a.tolist(), b.tolist()) == ([-0.5] * 2, [0.0] * 2)
    half = schuss.Adagrad(a, initial_accumulator_value=1.5, state_dtype="bfloat16")
    assert half.state["square_sum"].tolist() == [1.5, 1.5]
    n = 5001  # the last block is not full
    eighth = schuss.Adagrad(np.zeros(n, "f4"), initial_accumulator_value=1.5, state_dtype="8bit")
    assert (eighth.state["square_sum"] == 1.5).all()
    assert not eighth.state_dict()["state"]["square_sum"]["codes"][-1, n % 128 :].any()


def test_numpy_scalars_and_integers_are_numbers() -> None:
    optimizer = make_optimizer("Adam", np.ones(3), lr=1, beta1=np.float32(0.5), eps=np.array(0.25))
    assert (optimizer.lr, optimizer.beta1, optimizer.eps) == (1.0, 0.5, 0.25)
    optimizer.amsgrad = np.bool_(True)
    assert optimizer.amsgrad is True


@pytest.mark.parametrize("attribute", ["learning_rate", "momentun", "_lr", "steps", "state"])
@every_optimizer
def test_what_an_optimizer_does_not_have_cannot_be_set(name: str, attribute: str) -> None:
    optimizer = make_optimizer(name, np.ones(3))
    with pytest.raises(AttributeError, match=attribute):
        setattr(optimizer, attribute, 1)
    with pytest.raises(AttributeError):
        del optimizer.lr
    optimizer.step(np.ones(3))


# Schedules.


def test_a_schedule_is_called_once_for_each_step_and_again_after_a_refusal() -> None:
    calls: list[int] = []

    def schedule(t: int) -> float:
        calls.append(t)
        return 0.5 / t

    w = np.zeros(3)
    optimizer = schuss.SGD(w, lr=schedule)
    assert calls == []
    for grad in (np.ones(3), np.ones(4), np.ones(3)):
        with suppress(ValueError):  # the second has another shape, and its rate is not used
            optimizer.step(grad)
    assert calls == [1, 2, 2]
    assert w.tolist() == [-0.75] * 3
    assert optimizer.lr is schedule


def test_lr_now_is_the_rate_that_was_used_and_calls_no_schedule_twice() -> None:
    rates = iter([0.5, 0.25, 0.125, 9.0, 0.0625])
    param = np.zeros(1)
    optimizer = schuss.SGD(param, lr=lambda t: next(rates))
    for rate in (0.5, 0.25, 0.125):
        before = param.copy()
        optimizer.step(np.ones(1))
        assert before - param == optimizer.lr_now == optimizer.lr_now == rate
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(np.ones(2))  # its 9.0 was not used
    optimizer.weight_decay = 0.1
    assert optimizer.lr_now == 0.125
    optimizer.step(np.ones(1))
    assert optimizer.lr_now == 0.0625


@contextmanager
def calls_into_the_core(when_one_returns: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Collect the names of the C++ functions that Python calls in the block."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            result = function(*arguments)
            when_one_returns()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, member in [*vars(_core.Optimizer).items()]:
            if callable(member) and not name.startswith("__"):
                patch.setattr(_core.Optimizer, name, counted(name, member))
        yield calls


def test_lr_now_is_that_of_a_step_which_ctrl_c_cut_short_after_it_was_made() -> None:
    rates = iter([0.5, 0.25])
    optimizer = schuss.SGD(np.zeros(1), lr=lambda t: next(rates))
    optimizer.step(np.ones(1))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), calls_into_the_core(interrupt) as calls:
        optimizer.step(np.ones(1))
    assert calls == ["step"]
    assert (optimizer.steps, optimizer.lr_now) == (2, 0.25)


def test_a_class_is_no_schedule() -> None:
    with pytest.raises(
        TypeError, match=r"^SGD: lr is the class InverseTime, expected a number or a schedule$"
    ):
        schuss.SGD(np.ones(3), lr=schuss.schedules.InverseTime)  # type: ignore[arg-type]


# Saving.


def test_a_state_dict_has_these_entries() -> None:
    w = np.ones(3)
    optimizer = schuss.Momentum({"W": w}, lr=0.5, average=0.5)
    optimizer.step({"W": np.ones(3)})
    optimizer.accumulate({"W": np.ones(3)})
    saved = optimizer.state_dict()
    assert (saved["optimizer"], saved["steps"], type(optimizer.steps)) == ("Momentum", 1, int)
    defaults = {**OPTIMIZERS["Momentum"].defaults, **OPTIONS}
    assert saved["hyperparameters"] == {**defaults, "lr": 0.5, "average": 0.5}
    assert saved["groups"] == [{"hyperparameters": {}, "members": [0], "rested": 0}]
    assert [*saved["state"]] == ["velocity"]
    assert contents(saved["state"]) == contents(optimizer.state)
    assert [*saved["average"]] == ["weights", "values"]
    assert contents(saved["average"]["values"]) == contents(optimizer.average)
    assert saved["accumulated"]["count"] == 1
    assert contents(saved["accumulated"]["values"]) == contents([np.ones(3)])
    fresh = schuss.Momentum({"W": w}).state_dict()
    assert (fresh["average"], fresh["accumulated"]) == (None, None)


def test_a_state_dict_shares_nothing_with_the_optimizers_that_save_and_load_it() -> None:
    optimizer, _ = trained("Adam", steps=1, lr=0.5)
    saved = optimizer.state_dict()
    loaded = schuss.Adam(tree_of(arrays_of(0)), amsgrad=True)
    loaded.load_state_dict(saved)
    assert [*loaded.state] == ["m", "v"]
    for arrays in zip(*map(leaves, (saved["state"], optimizer.state, loaded.state)), strict=True):
        assert not any(np.shares_memory(a, b) for a, b in combinations(arrays, 2))
    saved["hyperparameters"]["lr"] = 7
    assert (optimizer.lr, loaded.lr) == (0.5, 0.5)
    loaded.lr = 0.25
    assert saved["hyperparameters"]["lr"] == 7


def test_a_state_dict_holds_a_function_itself() -> None:
    class Uncopyable:
        def __call__(self, t: int) -> float:
            return 0.5

        def __copy__(self) -> Any:
            raise TypeError

        __deepcopy__ = __copy__

    lr = Uncopyable()
    optimizer = schuss.SGD(np.ones(3), lr=lr)
    assert optimizer.state_dict()["hyperparameters"]["lr"] is lr
    assert copy.copy(optimizer).lr is lr


def test_state_may_be_loaded_in_any_layout_and_container() -> None:
    params = {"W": np.asfortranarray(arrays_of(0)[1]), "b": np.ones(6)}
    m = {"W": arrays_of(1)[1].copy(order="C"), "b": np.arange(12.0)[::-2]}
    v = UserDict({"W": np.broadcast_to(2.0, (4, 5)), "b": array.array("d", range(6))})
    optimizer = schuss.Adam(params)
    saved = optimizer.state_dict() | {"state": {"v": v, "m": m}, "steps": np.int64(3)}
    optimizer.load_state_dict(MappingProxyType(saved))
    assert contents(optimizer.state) == contents([m, {"W": v["W"], "b": np.arange(6.0)}])
    assert optimizer.steps == 3
    before = contents(optimizer.state)
    swapped = {"m": optimizer.state["v"], "v": optimizer.state["m"]}
    optimizer.load_state_dict(saved | {"state": swapped})
    assert contents(optimizer.state) == [*before[2:], *before[:2]]


# Copies.

COPIES = ["deepcopy", *(f"pickle {p}" for p in range(2, pickle.HIGHEST_PROTOCOL + 1))]
every_copy = pytest.mark.parametrize("how", COPIES)


def copied(it: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(it)
    return pickle.loads(pickle.dumps(it, int(how.removeprefix("pickle "))))


@every_copy
@every_variant
def test_a_copy_goes_on_by_itself(name: str, options: Options, how: str) -> None:
    optimizer, expected = trained(name, steps=2, **options)
    other, expected_of_other = copied(optimizer, how), copy.deepcopy(expected)
    assert type(other) is type(optimizer)
    assert_same(other, expected)
    step_both(other, expected_of_other, 3)
    assert_same(optimizer, expected)
    optimizer.lr = 0.25
    expected.set(lr=0.25)
    step_both(optimizer, expected, 4)
    assert_same(other, expected_of_other)
    assert other.lr == expected_of_other.settings["lr"]


BOUND: dict[str, Callable[[list[Any]], Any]] = {
    name: STRUCTURES[name]
    for name in ("list", "tuple", "dict", "nested", "dict subclass", "UserList")
}
BOUND |= {"an array": lambda arrays: arrays[1], "a scalar": lambda arrays: arrays[3]}
BOUND |= {"a view": lambda arrays: arrays[1][::2, ::-1]}


@every_copy
@pytest.mark.parametrize("structure", BOUND)
@pytest.mark.parametrize("params_first", [True, False])
def test_what_is_copied_with_its_parameters_stays_bound_to_them(
    how: str, structure: str, params_first: bool
) -> None:
    params, *grads = (BOUND[structure](arrays_of(i)) for i in range(3))
    optimizer = schuss.Adam(params)
    expected = make_reference("Adam", leaves(copy.deepcopy(params)))
    optimizer.step(grads[0])
    before = contents(params)
    pair = copied((params, optimizer) if params_first else (optimizer, params), how)
    new_params, other = pair if params_first else pair[::-1]
    assert other.params is new_params
    other.step(grads[1])
    for tree in grads:
        expected.step(leaves(tree))
    assert contents(new_params) == contents(expected.params)
    assert contents(params) == before
    assert optimizer.steps == 1


class Tagged(schuss.Adam):
    """A user's subclass, with an attribute of its own."""

    tag = "none"


@every_copy
def test_a_copy_lays_out_its_state_as_a_new_optimizer_does_and_keeps_attributes(how: str) -> None:
    param = np.zeros((300, 400))[::-1]
    optimizer = Tagged(param)
    optimizer.tag = "mine"
    other = copied(optimizer, how)
    assert other.tag == "mine"
    fresh = schuss.Adam(other.params)
    for name in ("m", "v"):
        assert other.state[name].strides == fresh.state[name].strides
    arrays = [other.params, other.state["m"], other.state["v"]]
    starts = [np.lib.array_utils.byte_bounds(array)[0] % 4096 // 64 for array in arrays]
    assert len(set(starts)) == 3


# Representation.


def test_repr_names_the_optimizer_its_hyperparameters_and_what_it_holds() -> None:
    params: dict[str, Any] = {"W": np.ones((64, 100), np.float32), "b": np.zeros(7)}
    optimizer = schuss.Adam(params, amsgrad=True)
    text = repr(optimizer)
    settings = {**OPTIMIZERS["Adam"].defaults, "amsgrad": True}
    of_params = ["2 arrays", "6,407 elements", "float32, float64", "0 steps"]
    for words in ("Adam(", *(f"{name}={settings[name]!r}" for name in settings), *of_params):
        assert words in text
    assert "clip" not in text
    optimizer.step(copy.deepcopy(params))
    optimizer.lr, optimizer.clip_norm, optimizer.average = 0.25, 2.0, 0.9
    for words in ("1 step", "lr=0.25", "clip_norm=2.0, average=0.9"):
        assert words in repr(optimizer)
    text = repr(make_optimizer("SGD", np.ones(1), lr=arrays_of))
    assert "lr=<function arrays_of" in text
    assert "1 array," in text


# Calls and memory.


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("lr", [0.5, lambda t: 0.5])
@every_optimizer
def test_a_step_is_one_call_into_the_core(name: str, count: int, lr: Any) -> None:
    optimizer = make_optimizer(name, [np.ones(3) for _ in range(count)], lr=lr)
    grads = [np.ones(3) for _ in range(count)]
    with calls_into_the_core() as calls:
        optimizer.step(grads)
    assert calls == ["step"]
    assert optimizer.steps == 1


@every_optimizer
def test_a_step_keeps_no_memory(name: str) -> None:
    n = 100_000
    optimizer = make_optimizer(name, [np.ones(n), np.ones((n, 2)).T], weight_decay=0.1)
    grads = [np.ones(n), np.ones((2, n))]
    optimizer.step(grads)
    alive = weakref.ref(grads[0])
    tracemalloc.start()
    try:
        optimizer.step(grads)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            optimizer.step(grads)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < n
    assert now - before < 1000 * 16  # bytes, fewer than any object has
    del grads
    assert alive() is None


@every_variant
def test_optimizers_that_are_dropped_leave_nothing(name: str, options: Options) -> None:
    def use() -> list[weakref.ref[Any]]:
        arrays, grads = arrays_of(0), arrays_of(1)
        optimizer = make_optimizer(name, tree_of(arrays), **options)
        optimizer.step(tree_of(grads))
        other = copy.deepcopy(optimizer)
        objects = [*arrays, *grads, *leaves(optimizer.state), *leaves(other.state)]
        return [weakref.ref(it) for it in (*objects, *leaves(other.params), optimizer, other)]

    # Without the garbage collector: the arrays go with the optimizer.
    gc.disable()
    try:
        assert [ref() for ref in use()] == [None] * len(use())
    finally:
        gc.enable()


def test_an_optimizer_that_its_parameters_and_schedule_hold_is_collected() -> None:
    class Network(dict[str, Any]):
        optimizer: Any

    def use() -> weakref.ref[Any]:
        network = Network(W=np.ones(3), layers=[np.ones(3)])
        optimizer = schuss.Adam(network, lr=lambda t: 0.1 / len(network))
        optimizer.step(copy.deepcopy(network))
        network.optimizer = network["optimizer"] = optimizer
        return weakref.ref(optimizer)

    alive = use()
    gc.collect()
    assert alive() is None


MOST = 2**53 - 1  # floating point counts no further


@pytest.mark.parametrize("counted", ["steps", "skipped", "accumulated"])
def test_what_is_counted_ends_where_floating_point_counts_no_further(
    counted: str, tmp_path: Path
) -> None:
    w, grad = np.ones(2), np.ones(2)
    optimizer = schuss.SGD(w, nonfinite="skip")
    calls: dict[str, Callable[[], None]] = {
        "steps": lambda: optimizer.step(grad),
        "skipped": lambda: optimizer.step(grad * np.nan),
        "accumulated": lambda: optimizer.accumulate(grad),
    }
    count_one = calls[counted]
    count_one()
    saved = optimizer.state_dict()
    if counted == "accumulated":
        holder, key, least = saved["accumulated"], "count", 1
    else:
        holder, key, least = saved, counted, 0
    for beyond in (least - 1, MOST + 1):
        holder[key] = beyond
        words = rf"\['{key}'\] is {beyond}, expected an integer >= {least}"
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(saved)
    holder[key] = MOST - 1
    optimizer.load_state_dict(saved)
    count_one()
    before = w.copy(), optimizer.state_dict()
    with pytest.raises(ValueError, match=r"9007199254740991 were counted, which is the largest"):
        count_one()
    np.testing.assert_equal((w, optimizer.state_dict()), before)
    # What was counted so far can be saved and loaded.
    assert getattr(optimizer, counted) == MOST
    schuss.save(tmp_path / "c", w, optimizer)
    other = schuss.SGD(w)
    schuss.load(tmp_path / "c", w, other)
    assert getattr(other, counted) == MOST
    other.load_state_dict(optimizer.state_dict())


def test_the_declared_arguments_are_those_of_type_checkers_and_of_inspect() -> None:
    # mypy checks this function: each `type: ignore` must be needed.
    optimizer = schuss.AdamW(np.ones(1), 0.5, clip_norm=1.0, copies=None, groups=lambda name: None)
    assert_type(optimizer.beta1, float)
    assert_type(optimizer.clip_norm, float | None)
    assert_type(optimizer.amsgrad, bool)
    with pytest.raises(
        TypeError, match=r"^Adam: got an unexpected keyword argument 'beta3', expected one of lr"
    ):
        schuss.Adam(np.ones(1), beta3=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Adam: beta1 is a str, expected a number"):
        schuss.Adam(np.ones(1), beta1="0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Adam\.__init__\(\) takes from 2 to 3 positional"):
        schuss.Adam(np.ones(1), 0.5, 0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"SGD\.__init__\(\) missing 1 required positional"):
        schuss.SGD()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        optimizer.state_dtype = None  # type: ignore[misc]

    class Tagged(schuss.Adam):
        tag: str = "none"

        def __init__(self, params: Any, tag: str) -> None:
            super().__init__(params, lr=0.25)
            self.tag = tag

    assert (Tagged(np.ones(1), "a").lr, Tagged(np.ones(1), tag="b").tag) == (0.25, "b")
    assert list(inspect.signature(Tagged).parameters) == ["params", "tag"]
    parameters = inspect.signature(schuss.AdamW).parameters
    assert list(parameters)[:3] == ["params", "lr", "beta1"]
    fixed = ["state_dtype", "master", "round_params", "complex", "rows", "copies", "groups"]
    assert list(parameters)[-7:] == fixed
    defaults = [parameters[name].default for name in ("lr", "beta2", "weight_decay", "nonfinite")]
    assert defaults == [0.001, 0.999, 0.01, "propagate"]


def test_loading_accumulated_gradients_allocates_no_second_sums() -> None:
    n = 1_000_000
    optimizer = schuss.SGD(np.ones(n, np.float32))
    optimizer.accumulate(np.ones(n, np.float32))
    saved = optimizer.state_dict()
    tracemalloc.start()
    try:
        optimizer.load_state_dict(saved)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * 4 * n  # zeros to check the values against, and a copy of the values
