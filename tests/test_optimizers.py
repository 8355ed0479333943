"""Optimizers as objects: structures, state, settings, schedules, saving, copying."""

import array
import copy
import gc
import inspect
import pickle
import sys
import tracemalloc
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, assert_type

import numpy as np
import pytest

import schuss
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
    states_of,
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


class Layers(Sequence[Any]):
    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]


class Named(Mapping[str, Any]):
    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)


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


KEYS = ("a", 1, None, (2, 3))
STRUCTURES: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda arrays: list(arrays),
    "tuple": lambda arrays: tuple(arrays),
    "dict": lambda arrays: dict(zip(KEYS, arrays, strict=True)),
    "nested": tree_of,
    "deeper": lambda arrays: [[[arrays[0]], {"x": {"y": [arrays[1]]}}], (), arrays[2:], {}],
    "dict subclass": lambda arrays: Net(zip("abcd", arrays, strict=True)),
    "OrderedDict": lambda arrays: OrderedDict(zip("abcd", arrays, strict=True)),
    "UserDict": lambda arrays: UserDict(zip("abcd", arrays, strict=True)),
    "mappingproxy": lambda arrays: MappingProxyType(dict(zip("abcd", arrays, strict=True))),
    "Mapping": lambda arrays: Named(dict(zip("abcd", arrays, strict=True))),
    "UserList": lambda arrays: UserList(arrays),
    "Sequence": lambda arrays: Layers(arrays),
    "namedtuple": lambda arrays: Four(*arrays),
    "deque": lambda arrays: deque(arrays),
    "ChainMap": lambda arrays: ChainMap(
        {"d": arrays[3]}, dict(zip("abc", arrays[:3], strict=True))
    ),
    "list read backwards": lambda arrays: Reversed(arrays[::-1]),
    "dict with other keys": lambda arrays: Renamed(zip("abcd", arrays, strict=True)),
    "views": Views,
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


@every_variant
def test_a_single_array_needs_no_structure(name: str, options: Options) -> None:
    param = arrays_of(0)[1]
    optimizer = make_optimizer(name, param, **options)
    expected = make_reference(name, param.copy(), **options)
    for t in range(1, 4):
        for each in (optimizer, expected):
            each.step(arrays_of(t)[1])
        assert_same(optimizer, expected)
    assert optimizer.params is param
    assert type(optimizer.steps) is int


def test_gradients_may_come_in_other_containers_of_the_same_kind() -> None:
    optimizer, expected = trained("Adam")
    for t, outer in enumerate((Named, UserDict, MappingProxyType, Net), 1):
        a, b, c, d = arrays_of(t)
        optimizer.step(outer({"rest": Layers([b, Named({"c": c}), [d]]), "W1": a}))
        expected.step(tree_of([a, b, c, d]))
        assert_same(optimizer, expected)


def test_params_are_the_object_that_was_given() -> None:
    for arrange in STRUCTURES.values():
        params = arrange(arrays_of(0))
        assert schuss.SGD(params).params is params


@every_variant
def test_state_has_names_and_the_structure_of_params(name: str, options: Options) -> None:
    arrays = arrays_of(0)
    optimizer = make_optimizer(name, tree_of(arrays), **options)
    assert list(optimizer.state) == states_of(name, options)
    for tree in optimizer.state.values():
        assert list(tree) == ["W1", "rest"]
        assert isinstance(tree["rest"], list)
        assert list(tree["rest"][1]) == ["c"]
        assert isinstance(tree["rest"][2], tuple)
        for leaf, param in zip(leaves(tree), arrays, strict=True):
            assert (leaf.shape, leaf.dtype) == (param.shape, param.dtype)
            assert not leaf.any()
    single = make_optimizer(name, arrays[0], **options)
    assert all(isinstance(array, np.ndarray) for array in single.state.values())


def test_the_state_that_is_shown_is_the_state_in_use() -> None:
    param, grad = np.ones(3), np.ones(3)
    optimizer = schuss.Momentum(param, lr=1.0, beta=0.5)
    optimizer.state["velocity"][...] = [2, 4, 6]
    optimizer.step(grad)
    assert optimizer.state["velocity"].tolist() == [1.5, 2.5, 3.5]
    assert param.tolist() == [-0.5, -1.5, -2.5]


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
    optimizer, expected = trained(name)
    unchanged = make_reference(name, tree_of(arrays_of(0)))
    default = OPTIMIZERS[name].defaults[hyperparameter]
    for t, setting in enumerate([default, default, value, value, default, default], 1):
        setattr(optimizer, hyperparameter, setting)
        assert getattr(optimizer, hyperparameter) == setting
        expected.set(**{hyperparameter: setting})
        step_both(optimizer, expected, t)
        unchanged.step(tree_of(arrays_of(t)))
    # Each setting matters: without it the parameters would be others.
    assert contents(expected.params) != contents(unchanged.params)


@every_hyperparameter
def test_a_hyperparameter_may_be_given_or_set(name: str, hyperparameter: str, value: Any) -> None:
    given = make_optimizer(name, tree_of(arrays_of(0)), **{hyperparameter: value})
    later = make_optimizer(name, tree_of(arrays_of(0)))
    setattr(later, hyperparameter, value)
    for t in (1, 2):
        step_both(given, later, t)


def test_numpy_scalars_and_integers_are_numbers() -> None:
    optimizer = make_optimizer("Adam", np.ones(3), lr=1, beta1=np.float32(0.5), eps=np.array(0.25))
    assert (optimizer.lr, optimizer.beta1, optimizer.eps) == (1.0, 0.5, 0.25)
    optimizer.amsgrad = np.bool_(True)
    assert optimizer.amsgrad is True


@pytest.mark.parametrize(
    ("name", "state", "hyperparameter"),
    [(n, *item) for n, kind in OPTIMIZERS.items() for item in kind.optional_states.items()],
)
def test_a_state_that_is_added_in_mid_training_starts_at_zero(
    name: str, state: str, hyperparameter: str
) -> None:
    optimizer, expected = trained(name)
    value, default = other_value(name, hyperparameter), OPTIMIZERS[name].defaults[hyperparameter]
    for setting in (value, default, value):
        for t in (1, 2):
            step_both(optimizer, expected, t)
        before = {key: contents(tree) for key, tree in optimizer.state.items()}
        setattr(optimizer, hyperparameter, setting)
        expected.set(**{hyperparameter: setting})
        assert list(optimizer.state) == states_of(name, {hyperparameter: setting})
        for key, tree in optimizer.state.items():
            if key == state:
                assert not any(leaf.any() for leaf in leaves(tree))
            else:
                assert contents(tree) == before[key]
    step_both(optimizer, expected, 3)


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


@every_optimizer
def test_a_schedule_is_asked_for_each_step_counted_from_one(name: str) -> None:
    calls: list[int] = []

    def schedule(t: int) -> float:
        calls.append(t)
        return 0.5 / t

    optimizer = make_optimizer(name, tree_of(arrays_of(0)), lr=schedule)
    expected = make_reference(name, tree_of(arrays_of(0)), lr=lambda t: 0.5 / t)
    assert calls == []
    for t in range(1, 6):
        step_both(optimizer, expected, t)
    assert calls == [1, 2, 3, 4, 5]
    assert optimizer.lr is schedule


def test_a_rate_and_a_schedule_may_follow_each_other() -> None:
    optimizer, expected = trained("Adam")
    rates: list[Any] = [0.5, lambda t: 0.25 * t, 0.125, lambda t: np.float64(1 / t)]
    for t, lr in enumerate(rates, 1):
        optimizer.lr = lr
        expected.set(lr=lr)
        step_both(optimizer, expected, t)


def test_a_refused_step_asks_the_schedule_again() -> None:
    calls: list[int] = []
    optimizer = schuss.SGD(np.ones(3), lr=lambda t: calls.append(t) or 0.5)  # type: ignore[func-returns-value]
    for grad in (np.ones(3), np.ones(4), np.ones(3)):
        try:
            optimizer.step(grad)
        except ValueError:
            assert grad.shape == (4,)
    assert calls == [1, 2, 2]


def test_lr_now_is_the_rate_that_was_used_and_asks_no_schedule_twice() -> None:
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

    def profile(_: Any, event: str, function: Any) -> None:
        if event in ("c_call", "c_return") and function.__module__ == "schuss._core":
            if event == "c_call":
                calls.append(function.__name__)
            else:
                when_one_returns()

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


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


def test_a_rate_that_is_set_or_loaded_is_in_use_at_once() -> None:
    def schedule(t: int) -> float:
        return 1 / t

    optimizer = schuss.SGD(np.zeros(1), lr=schedule)
    saved = optimizer.state_dict()
    for _ in range(4):
        optimizer.step(np.ones(1))
    optimizer.lr = lambda t: 2 / t
    assert optimizer.lr_now == 0.5
    optimizer.lr = schedule
    for _ in range(2):
        optimizer.step(np.ones(1))
    optimizer.load_state_dict(saved | {"steps": 2})
    assert optimizer.lr_now == 0.5


def test_a_class_is_no_schedule() -> None:
    with pytest.raises(
        TypeError, match=r"^SGD: lr is the class InverseTime, expected a number or a schedule$"
    ):
        schuss.SGD(np.ones(3), lr=schuss.schedules.InverseTime)  # type: ignore[arg-type]


# Saving.


@every_variant
def test_training_that_is_resumed_is_training_that_went_on(name: str, options: Options) -> None:
    optimizer, expected = trained(name, steps=3, **options)
    params, state = pickle.loads(pickle.dumps((optimizer.params, optimizer.state_dict())))
    resumed = make_optimizer(name, params)
    resumed.load_state_dict(state)
    assert resumed.state_dict()["hyperparameters"] == optimizer.state_dict()["hyperparameters"]
    assert_same(resumed, expected)
    for t in range(4, 7):
        step_both(resumed, expected, t)


def test_a_state_dict_is_a_snapshot() -> None:
    optimizer, _ = trained("Adam", steps=1, lr=0.5)
    saved = optimizer.state_dict()
    before = pickle.dumps(saved)
    optimizer.step(tree_of(arrays_of(2)))
    optimizer.lr = 0.25
    assert pickle.dumps(saved) == before
    now, saved = pickle.dumps(optimizer.state_dict()), optimizer.state_dict()
    for leaf in leaves(saved["state"]):
        leaf[...] = 7
    saved["hyperparameters"]["lr"] = 7
    assert pickle.dumps(optimizer.state_dict()) == now


def test_a_state_dict_has_these_entries() -> None:
    optimizer = schuss.Momentum({"W": np.ones(3)}, lr=0.5)
    optimizer.step({"W": np.ones(3)})
    saved = optimizer.state_dict()
    assert saved["optimizer"] == "Momentum"
    assert saved["steps"] == 1
    assert saved["hyperparameters"] == {**OPTIMIZERS["Momentum"].defaults, "lr": 0.5, **OPTIONS}
    assert saved["groups"] == [{"hyperparameters": {}, "members": [0]}]
    assert list(saved["state"]) == ["velocity"]
    assert contents(saved["state"]) == contents(optimizer.state)
    assert saved["average"] is None
    optimizer.average = 0.5
    optimizer.step({"W": np.ones(3)})
    average = optimizer.state_dict()["average"]
    assert list(average) == ["weights", "values"]
    assert contents(average["values"]) == contents(optimizer.average)


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


def test_what_was_loaded_is_copied() -> None:
    optimizer, _ = trained("Adam", steps=1)
    saved = optimizer.state_dict()
    loaded = schuss.Adam(tree_of(arrays_of(0)), amsgrad=True)
    loaded.load_state_dict(saved)
    assert "v_max" not in loaded.state
    before = pickle.dumps(saved)
    loaded.step(tree_of(arrays_of(2)))
    loaded.lr = 0.25
    assert pickle.dumps(saved) == before
    for a, b in zip(leaves(saved["state"]), leaves(loaded.state), strict=True):
        assert not np.shares_memory(a, b)


def test_state_may_be_loaded_in_any_layout_and_container() -> None:
    params = {"W": np.asfortranarray(arrays_of(0)[1]), "b": np.ones(6)}
    m = {"W": arrays_of(1)[1].copy(order="C"), "b": np.arange(12.0)[::-2]}
    v = Named({"W": np.broadcast_to(2.0, (4, 5)), "b": array.array("d", range(6))})
    optimizer = schuss.Adam(params)
    saved = optimizer.state_dict() | {"state": {"v": v, "m": m}, "steps": np.int64(3)}
    optimizer.load_state_dict(MappingProxyType(saved))
    assert contents(optimizer.state) == contents([m, {"W": v["W"], "b": np.arange(6.0)}])
    assert optimizer.steps == 3


def test_an_optimizers_states_may_be_loaded_into_each_other() -> None:
    optimizer = schuss.Adam(np.ones(3))
    optimizer.step(np.ones(3))
    m, v = (optimizer.state[name].tobytes() for name in "mv")
    swapped = {"m": optimizer.state["v"], "v": optimizer.state["m"]}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": swapped})
    assert [optimizer.state[name].tobytes() for name in "mv"] == [v, m]


def test_the_parameters_are_not_part_of_a_state() -> None:
    params = np.ones(3)
    optimizer = schuss.Adam(params)
    saved = optimizer.state_dict()
    optimizer.step(np.ones(3))
    after = params.tobytes()
    optimizer.load_state_dict(saved)
    assert params.tobytes() == after
    assert optimizer.steps == 0


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


@every_copy
@pytest.mark.parametrize(
    "structure", ["list", "tuple", "dict", "nested", "dict subclass", "UserList"]
)
@pytest.mark.parametrize("params_first", [True, False])
def test_what_is_copied_with_its_parameters_stays_bound_to_them(
    how: str, structure: str, params_first: bool
) -> None:
    arrays, arrange = arrays_of(0), STRUCTURES[structure]
    params = arrange(arrays)
    optimizer, expected = schuss.Adam(params), make_reference("Adam", arrays_of(0))
    optimizer.step(arrange(arrays_of(1)))
    before = contents(arrays)
    if params_first:
        new_params, other = copied((params, optimizer), how)
    else:
        other, new_params = copied((optimizer, params), how)
    other.step(arrange(arrays_of(2)))
    expected.step(arrays_of(1))
    expected.step(arrays_of(2))
    assert contents(new_params) == contents(expected.params)
    assert contents(arrays) == before
    assert optimizer.steps == 1


@every_copy
def test_what_is_copied_with_a_single_array_stays_bound_to_it(how: str) -> None:
    for param in (*arrays_of(0), arrays_of(0)[1][::2, ::-1]):
        optimizer, expected = schuss.Adam(param), make_reference("Adam", param.copy())
        new_param, other = copied((param, optimizer), how)
        assert other.params is new_param
        for each in (other, expected):
            each.step(np.ones_like(param))
        assert contents(new_param) == contents(expected.params)


class Network:
    def __init__(self) -> None:
        self.params = {"W": np.ones(3)}
        self.optimizer = schuss.Adam(self.params)


@every_copy
def test_a_network_that_holds_its_optimizer_can_be_copied(how: str) -> None:
    network = Network()
    other = copied(network, how)
    other.optimizer.step({"W": np.ones(3)})
    assert other.params["W"].tolist() != [1, 1, 1]
    assert network.params["W"].tolist() == [1, 1, 1]
    assert other.optimizer.params is other.params


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


def halve(t: int) -> float:
    return 0.5**t


@every_copy
def test_a_copy_keeps_its_schedule(how: str) -> None:
    optimizer = schuss.SGD(np.ones(3), lr=halve)
    optimizer.step(np.ones(3))
    other = copied(optimizer, how)
    other.step(np.ones(3))
    assert other.lr is halve
    assert other.params.tolist() == [1 - 0.5 - 0.25] * 3


# Representation.


def test_repr_tells_what_the_optimizer_is_and_holds() -> None:
    params: dict[str, Any] = {"W": np.ones((64, 100), np.float32), "b": np.zeros(7)}
    optimizer = schuss.Adam(params, lr=0.125, amsgrad=True)
    text = repr(optimizer)
    for word in ("Adam(", "lr=0.125", "beta2=0.999", "amsgrad=True", "2 arrays", "6,407 elements"):
        assert word in text
    assert "float32, float64" in text
    assert "0 steps" in text
    for _ in range(3):
        optimizer.step({"W": np.ones((64, 100), np.float32), "b": np.zeros(7)})
    optimizer.lr = 0.25
    assert "3 steps" in repr(optimizer)
    assert "lr=0.25" in repr(optimizer)
    assert "lr=<function halve" in repr(schuss.SGD(np.ones(3), lr=halve))


@every_optimizer
def test_repr_names_every_hyperparameter(name: str) -> None:
    text = repr(make_optimizer(name, np.ones(1)))
    for hyperparameter, value in OPTIMIZERS[name].defaults.items():
        assert f"{hyperparameter}={value!r}" in text
    assert f"{name}(" in text
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


def test_a_thousand_optimizers_take_no_more_memory_than_one() -> None:
    def use(times: int) -> int:
        for _ in range(times):
            param = np.ones(1000)
            optimizer = schuss.Adam({"W": param}, lr=lambda t: 0.1)
            optimizer.step({"W": np.ones(1000)})
            optimizer.amsgrad = True
            optimizer.load_state_dict(optimizer.state_dict())
            with pytest.raises(ValueError, match="has shape"):
                optimizer.step({"W": np.ones(999)})
            with pytest.raises(ValueError, match="same array"):
                schuss.Adam([param, param])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        use(10)
        before = use(10)
        assert use(1000) - before < 1000 * 200  # each has more than 8,000
    finally:
        tracemalloc.stop()


def test_a_container_that_came_to_hold_its_optimizer_is_collected() -> None:
    params: dict[str, Any] = {"w": np.ones(3), "more": [np.ones(3)]}
    params["optimizer"] = schuss.SGD(params)
    params["optimizer"].step({"w": np.ones(3), "more": [np.ones(3)]})
    optimizer = weakref.ref(params["optimizer"])
    del params
    gc.collect()
    assert optimizer() is None


def test_an_optimizer_among_what_it_holds_can_still_be_collected() -> None:
    class Network(dict[str, Any]):
        optimizer: Any

    def use() -> weakref.ref[Any]:
        layers: list[Any] = [np.ones(3)]
        network = Network(W=np.ones(3), layers=layers)
        network.optimizer = schuss.Adam(network, lr=lambda t: 0.1 / len(network))
        network.optimizer.step({"W": np.ones(3), "layers": [np.ones(3)]})
        return weakref.ref(network.optimizer)

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
    optimizer.accumulate(grad)
    saved = optimizer.state_dict()
    bad = saved["accumulated"] if counted == "accumulated" else saved
    key, least = ("count", 1) if counted == "accumulated" else (counted, 0)
    if counted != "accumulated":
        saved["accumulated"] = None
    for beyond in (least - 1, MOST + 1):
        bad[key] = beyond
        words = rf"\['{key}'\] is {beyond}, expected an integer >= {least}"
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(saved)
    optimizer.zero_grad()
    bad[key] = MOST - 1
    optimizer.load_state_dict(saved)

    def count_one() -> None:
        if counted == "accumulated":
            optimizer.accumulate(grad)
        else:
            optimizer.step(grad * (1 if counted == "steps" else np.nan))

    count_one()
    before = w.copy(), optimizer.state_dict()
    with pytest.raises(ValueError, match=r"9007199254740991 were counted, which is the most"):
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
    with pytest.raises(TypeError, match=r"^Adam: there is no argument 'beta3', expected one of lr"):
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
    assert list(parameters)[-3:] == ["state_dtype", "copies", "groups"]
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
