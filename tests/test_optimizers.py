"""Optimizers as objects: structures, state, settings, schedules, saving, copying."""

import array
import copy
import gc
import inspect
import pickle
import tracemalloc
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, assert_type

import numpy as np
import pytest

import schuss
from schuss import reference
from schuss._internals import internals_of

STATES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "SGD": lambda h: [],
    "Momentum": lambda h: ["velocity"],
    "RMSprop": lambda h: (
        ["square_average"] + ["mean"] * h["centered"] + ["buffer"] * (h["momentum"] != 0)
    ),
    "Adam": lambda h: ["m", "v"] + ["v_max"] * h["amsgrad"],
    "AdamW": lambda h: ["m", "v"] + ["v_max"] * h["amsgrad"],
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01, "weight_decay": 0.0},
    "Momentum": {
        "lr": 0.01,
        "beta": 0.9,
        "dampening": None,
        "nesterov": False,
        "bias_correction": False,
        "weight_decay": 0.0,
    },
    "RMSprop": {
        "lr": 0.001,
        "beta": 0.9,
        "eps": 1e-8,
        "eps_root": 0.0,
        "centered": False,
        "momentum": 0.0,
        "weight_decay": 0.0,
    },
    "Adam": {
        "lr": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "amsgrad": False,
        "bias_correction": True,
        "weight_decay": 0.0,
    },
}
DEFAULTS["AdamW"] = DEFAULTS["Adam"] | {"weight_decay": 0.01}

OPTIONS: dict[str, Any] = {
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "average": None,
    "average_bias_correction": False,
    "seed": 0,
}

# For each hyperparameter, another value than its default.
OTHERS: dict[str, Any] = {
    "lr": 0.125,
    "weight_decay": 0.25,
    "beta": 0.75,
    "beta1": 0.75,
    "beta2": 0.875,
    "dampening": 0.25,
    "nesterov": True,
    "bias_correction": True,
    "eps": 1e-3,
    "eps_root": 1e-2,
    "centered": True,
    "momentum": 0.5,
    "amsgrad": True,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DEFAULTS),
    ("SGD", {"lr": 0.5, "weight_decay": 0.1}),
    ("Momentum", {"nesterov": True, "bias_correction": True, "dampening": 0.0}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "eps_root": 1e-8, "eps": 0.0}),
    ("RMSprop", {"momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True, "bias_correction": False}),
]
EVERY_VARIANT = pytest.mark.parametrize(("name", "options"), VARIANTS)


def other_value(name: str, hyperparameter: str) -> Any:
    if hyperparameter == "bias_correction":
        return not DEFAULTS[name][hyperparameter]
    return OTHERS[hyperparameter]


ALL_SETTINGS = [
    (name, h, other_value(name, h)) for name, all_of in DEFAULTS.items() for h in all_of
]


class Twin:
    """The reference on copies of arrays: what an optimizer must do, each array on its own."""

    def __init__(self, name: str, params: list[Any], **options: Any) -> None:
        self.name, self.settings, self.t = name, DEFAULTS[name] | options, 0
        self.params = [np.array(p) for p in params]
        self.state: dict[str, list[Any]] = {}

    def step(self, grads: list[Any]) -> None:
        self.t += 1
        names = STATES[self.name](self.settings)
        self.state = {
            name: self.state.get(name) or [np.zeros_like(p) for p in self.params] for name in names
        }
        for i, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            self._step(param, grad, {name: arrays[i] for name, arrays in self.state.items()})

    def _step(self, param: Any, grad: Any, state: dict[str, Any]) -> None:
        h = dict(self.settings)
        if callable(h["lr"]):
            h["lr"] = float(h["lr"](self.t))
        if "bias_correction" in h:
            h["step"] = self.t if h.pop("bias_correction") else None
        h.pop("amsgrad", None)
        h.pop("centered", None)
        if self.name in ("Adam", "AdamW"):
            reference.adam(param, grad, **state, **h, decoupled=self.name == "AdamW")
        else:
            getattr(reference, self.name.lower())(param, grad, **state, **h)


def make_optimizer(name: str, params: Any, **options: Any) -> Any:
    return getattr(schuss, name)(params, **options)


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, Sequence):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def contents(tree: Any) -> list[bytes]:
    return [leaf.tobytes() for leaf in leaves(tree)]


def rng_arrays(seed: int) -> list[Any]:
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


def expect_twin(optimizer: Any, twin: Twin) -> None:
    assert contents(optimizer.params) == contents(twin.params)
    assert list(optimizer.state) == list(twin.state)
    for name, arrays in twin.state.items():
        assert contents(optimizer.state[name]) == contents(arrays)
    assert optimizer.steps == twin.t


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
    """A list whose user sees it from its end."""

    def __iter__(self) -> Iterator[Any]:
        return list.__reversed__(self)

    def __getitem__(self, index: Any) -> Any:
        return list.__getitem__(self, -1 - index)


class Renamed(dict[str, Any]):
    """A dict whose user sees other keys than it stores."""

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
@EVERY_VARIANT
def test_any_structure_gets_the_bits_of_separate_steps(
    name: str, options: dict[str, Any], structure: str
) -> None:
    arrange, arrays = STRUCTURES[structure], rng_arrays(0)
    optimizer = make_optimizer(name, arrange(arrays), **options)
    twin = Twin(name, arrays, **options)
    for t in range(1, 4):
        grads = rng_arrays(t)
        optimizer.step(arrange(grads))
        twin.step(grads)
        expect_twin(optimizer, twin)
    assert contents(arrays) == contents(twin.params)


@EVERY_VARIANT
def test_a_single_array_needs_no_structure(name: str, options: dict[str, Any]) -> None:
    param = rng_arrays(0)[1]
    optimizer, twin = make_optimizer(name, param, **options), Twin(name, [param], **options)
    for t in range(1, 4):
        optimizer.step(rng_arrays(t)[1])
        twin.step([rng_arrays(t)[1]])
        expect_twin(optimizer, twin)
    assert optimizer.params is param


def test_gradients_may_come_in_other_containers_of_the_same_kind() -> None:
    arrays = rng_arrays(0)
    optimizer, twin = schuss.Adam(tree_of(arrays)), Twin("Adam", arrays)
    for t, outer in enumerate((Named, UserDict, MappingProxyType, Net), 1):
        a, b, c, d = rng_arrays(t)
        backwards = {"rest": Layers([b, Named({"c": c}), [d]]), "W1": a}
        optimizer.step(outer(backwards))
        twin.step([a, b, c, d])
        expect_twin(optimizer, twin)


def test_params_are_the_object_that_was_given() -> None:
    for arrange in STRUCTURES.values():
        params = arrange(rng_arrays(0))
        assert schuss.SGD(params).params is params


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_state_has_names_and_the_structure_of_params(name: str, options: dict[str, Any]) -> None:
    arrays = rng_arrays(0)
    optimizer = make_optimizer(name, tree_of(arrays), **options)
    assert list(optimizer.state) == STATES[name](DEFAULTS[name] | options)
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


def test_steps_are_counted() -> None:
    optimizer = schuss.SGD(np.ones(3))
    for t in range(5):
        assert optimizer.steps == t
        optimizer.step(np.ones(3))
    assert type(optimizer.steps) is int


# Hyperparameters.


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_the_design(name: str) -> None:
    optimizer = make_optimizer(name, np.ones(3))
    for hyperparameter, value in DEFAULTS[name].items():
        assert getattr(optimizer, hyperparameter) == value


@pytest.mark.parametrize("name", DEFAULTS)
def test_only_the_learning_rate_may_be_given_by_place(name: str) -> None:
    assert make_optimizer(name, np.ones(3)).lr == DEFAULTS[name]["lr"]
    assert getattr(schuss, name)(np.ones(3), 0.5).lr == 0.5
    with pytest.raises(TypeError, match="positional"):
        getattr(schuss, name)(np.ones(3), 0.5, 0.5)


@pytest.mark.parametrize(("name", "hyperparameter", "value"), ALL_SETTINGS)
def test_a_hyperparameter_is_in_force_from_the_next_step(
    name: str, hyperparameter: str, value: Any
) -> None:
    arrays = rng_arrays(0)
    optimizer, twin = make_optimizer(name, tree_of(arrays)), Twin(name, arrays)
    default, unchanged = DEFAULTS[name][hyperparameter], Twin(name, arrays)
    for t, setting in enumerate([default, default, value, value, default, default], 1):
        setattr(optimizer, hyperparameter, setting)
        assert getattr(optimizer, hyperparameter) == setting
        twin.settings[hyperparameter] = setting
        grads = rng_arrays(t)
        optimizer.step(tree_of(grads))
        twin.step(grads)
        unchanged.step(grads)
        expect_twin(optimizer, twin)
    # Each setting matters: without it the parameters would be elsewhere.
    assert contents(twin.params) != contents(unchanged.params)


@pytest.mark.parametrize(("name", "hyperparameter", "value"), ALL_SETTINGS)
def test_a_hyperparameter_may_be_given_or_set(name: str, hyperparameter: str, value: Any) -> None:
    given = make_optimizer(name, tree_of(rng_arrays(0)), **{hyperparameter: value})
    then_set = make_optimizer(name, tree_of(rng_arrays(0)))
    setattr(then_set, hyperparameter, value)
    for t in (1, 2):
        given.step(tree_of(rng_arrays(t)))
        then_set.step(tree_of(rng_arrays(t)))
    assert contents([given.params, given.state]) == contents([then_set.params, then_set.state])


def test_numpy_scalars_and_integers_are_numbers() -> None:
    optimizer = make_optimizer("Adam", np.ones(3), lr=1, beta1=np.float32(0.5), eps=np.array(0.25))
    assert (optimizer.lr, optimizer.beta1, optimizer.eps) == (1.0, 0.5, 0.25)
    optimizer.amsgrad = np.bool_(True)
    assert optimizer.amsgrad is True


@pytest.mark.parametrize(
    ("name", "options", "state"),
    [
        ("Adam", {"amsgrad": True}, "v_max"),
        ("AdamW", {"amsgrad": True}, "v_max"),
        ("RMSprop", {"centered": True}, "mean"),
        ("RMSprop", {"momentum": 0.5}, "buffer"),
    ],
)
def test_what_is_turned_on_in_mid_training_starts_at_zero(
    name: str, options: dict[str, Any], state: str
) -> None:
    arrays = rng_arrays(0)
    optimizer, twin = make_optimizer(name, tree_of(arrays)), Twin(name, arrays)
    ((hyperparameter, value),) = options.items()
    for setting in (value, DEFAULTS[name][hyperparameter], value):
        for t in (1, 2):
            optimizer.step(tree_of(rng_arrays(t)))
            twin.step(rng_arrays(t))
        kept = {key: contents(tree) for key, tree in optimizer.state.items()}
        setattr(optimizer, hyperparameter, setting)
        twin.settings[hyperparameter] = setting
        if setting == value:
            assert list(optimizer.state)[-1] == state
            assert not any(array.any() for array in leaves(optimizer.state[state]))
        else:
            assert state not in optimizer.state
        for key, tree in optimizer.state.items():
            if key in kept:
                assert contents(tree) == kept[key]
    optimizer.step(tree_of(rng_arrays(3)))
    twin.step(rng_arrays(3))
    expect_twin(optimizer, twin)


@pytest.mark.parametrize("attribute", ["learning_rate", "momentun", "_lr", "steps", "state"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_what_an_optimizer_does_not_have_cannot_be_set(name: str, attribute: str) -> None:
    optimizer = make_optimizer(name, np.ones(3))
    with pytest.raises(AttributeError, match=attribute):
        setattr(optimizer, attribute, 1)
    with pytest.raises(AttributeError):
        del optimizer.lr
    optimizer.step(np.ones(3))


# Schedules.


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_schedule_is_asked_for_each_step_counted_from_one(name: str) -> None:
    asked: list[int] = []

    def schedule(t: int) -> float:
        asked.append(t)
        return 0.5 / t

    arrays = rng_arrays(0)
    optimizer = make_optimizer(name, tree_of(arrays), lr=schedule)
    twin = Twin(name, arrays, lr=lambda t: 0.5 / t)
    assert asked == []
    for t in range(1, 6):
        optimizer.step(tree_of(rng_arrays(t)))
        twin.step(rng_arrays(t))
        expect_twin(optimizer, twin)
    assert asked == [1, 2, 3, 4, 5]
    assert optimizer.lr is schedule


def test_a_rate_and_a_schedule_may_follow_each_other() -> None:
    arrays = rng_arrays(0)
    optimizer, twin = schuss.Adam(tree_of(arrays)), Twin("Adam", arrays)
    rates: list[Any] = [0.5, lambda t: 0.25 * t, 0.125, lambda t: np.float64(1 / t)]
    for t, lr in enumerate(rates, 1):
        optimizer.lr = twin.settings["lr"] = lr
        optimizer.step(tree_of(rng_arrays(t)))
        twin.step(rng_arrays(t))
        expect_twin(optimizer, twin)


def test_a_step_that_was_refused_is_asked_for_again() -> None:
    asked: list[int] = []
    optimizer = schuss.SGD(np.ones(3), lr=lambda t: asked.append(t) or 0.5)  # type: ignore[func-returns-value]
    for grad in (np.ones(3), np.ones(4), np.ones(3)):
        try:
            optimizer.step(grad)
        except ValueError:
            assert grad.shape == (4,)
    assert asked == [1, 2, 2]


def test_lr_now_is_the_rate_that_was_used_and_asks_no_schedule_twice() -> None:
    rates = iter([0.5, 0.25, 0.125, 9.0, 0.0625])
    param = np.zeros(1)
    optimizer = schuss.SGD(param, lr=lambda t: next(rates))
    for used in (0.5, 0.25, 0.125):
        before = param.copy()
        optimizer.step(np.ones(1))
        assert before - param == optimizer.lr_now == optimizer.lr_now == used
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(np.ones(2))  # its 9.0 was not used
    optimizer.weight_decay = 0.1
    assert optimizer.lr_now == 0.125
    optimizer.step(np.ones(1))
    assert optimizer.lr_now == 0.0625


def test_lr_now_is_that_of_a_step_which_ctrl_c_cut_short_after_it_was_made() -> None:
    rates = iter([0.5, 0.25])
    optimizer = schuss.SGD(np.zeros(1), lr=lambda t: next(rates))
    optimizer.step(np.ones(1))
    internals = internals_of(optimizer)

    class Interrupted(Spy):
        def __getattr__(self, name: str) -> Any:
            attribute = super().__getattr__(name)

            def call(*arguments: Any) -> None:
                attribute(*arguments)
                raise KeyboardInterrupt

            return call if name == "step" else attribute

    internals.core = Interrupted(internals.core)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(np.ones(1))
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


@EVERY_VARIANT
def test_training_that_is_resumed_is_training_that_went_on(
    name: str, options: dict[str, Any]
) -> None:
    params = tree_of(rng_arrays(0))
    optimizer = make_optimizer(name, params, **options)
    for t in range(1, 4):
        optimizer.step(tree_of(rng_arrays(t)))
    saved = pickle.loads(pickle.dumps((params, optimizer.state_dict())))
    resumed = make_optimizer(name, saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.steps == 3
    assert resumed.state_dict()["hyperparameters"] == optimizer.state_dict()["hyperparameters"]
    for t in range(4, 7):
        for each in (optimizer, resumed):
            each.step(tree_of(rng_arrays(t)))
    assert contents([resumed.params, resumed.state]) == contents([params, optimizer.state])


def test_a_state_dict_is_a_snapshot() -> None:
    optimizer = schuss.Adam(tree_of(rng_arrays(0)), lr=0.5)
    optimizer.step(tree_of(rng_arrays(1)))
    saved = optimizer.state_dict()
    frozen = pickle.dumps(saved)
    optimizer.step(tree_of(rng_arrays(2)))
    optimizer.lr = 0.25
    assert pickle.dumps(saved) == frozen
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
    assert saved["hyperparameters"] == DEFAULTS["Momentum"] | {"lr": 0.5} | OPTIONS
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
    optimizer = schuss.Adam(tree_of(rng_arrays(0)))
    optimizer.step(tree_of(rng_arrays(1)))
    saved = optimizer.state_dict()
    loaded = schuss.Adam(tree_of(rng_arrays(0)), amsgrad=True)
    loaded.load_state_dict(saved)
    assert "v_max" not in loaded.state
    frozen = pickle.dumps(saved)
    loaded.step(tree_of(rng_arrays(2)))
    loaded.lr = 0.25
    assert pickle.dumps(saved) == frozen
    assert not any(
        np.shares_memory(a, b)
        for a, b in zip(leaves(saved["state"]), leaves(loaded.state), strict=True)
    )


def test_state_may_be_loaded_in_any_layout_and_container() -> None:
    params = {"W": np.asfortranarray(rng_arrays(0)[1]), "b": np.ones(6)}
    m = {"W": rng_arrays(1)[1].copy(order="C"), "b": np.arange(12.0)[::-2]}
    v = Named({"W": np.broadcast_to(2.0, (4, 5)), "b": array.array("d", range(6))})
    optimizer = schuss.Adam(params)
    saved = optimizer.state_dict() | {"state": {"v": v, "m": m}, "steps": np.int64(3)}
    optimizer.load_state_dict(MappingProxyType(saved))
    assert contents(optimizer.state) == contents([m, {"W": v["W"], "b": np.arange(6.0)}])
    assert optimizer.steps == 3


def test_an_optimizers_own_state_may_be_loaded_in_other_places() -> None:
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

Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda it, protocol=protocol: pickle.loads(  # type: ignore[misc]
            pickle.dumps(it, protocol)
        )
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}
EVERY_COPY = pytest.mark.parametrize("how", COPIES)


@EVERY_COPY
@EVERY_VARIANT
def test_a_copy_goes_on_by_itself(name: str, options: dict[str, Any], how: str) -> None:
    arrays = rng_arrays(0)
    optimizer, twin = (
        make_optimizer(name, tree_of(arrays), **options),
        Twin(name, arrays, **options),
    )
    for t in (1, 2):
        optimizer.step(tree_of(rng_arrays(t)))
        twin.step(rng_arrays(t))
    twin_of_copy, other = copy.deepcopy(twin), COPIES[how](optimizer)
    assert type(other) is type(optimizer)
    expect_twin(other, twin)
    other.step(tree_of(rng_arrays(3)))
    twin_of_copy.step(rng_arrays(3))
    expect_twin(other, twin_of_copy)
    expect_twin(optimizer, twin)
    optimizer.lr = twin.settings["lr"] = 0.25
    optimizer.step(tree_of(rng_arrays(4)))
    twin.step(rng_arrays(4))
    expect_twin(optimizer, twin)
    expect_twin(other, twin_of_copy)
    assert other.lr == twin_of_copy.settings["lr"]


@EVERY_COPY
@pytest.mark.parametrize(
    "structure", ["list", "tuple", "dict", "nested", "dict subclass", "UserList"]
)
@pytest.mark.parametrize("params_first", [True, False])
def test_what_is_copied_with_its_parameters_stays_bound_to_them(
    how: str, structure: str, params_first: bool
) -> None:
    arrays, arrange = rng_arrays(0), STRUCTURES[structure]
    params = arrange(arrays)
    optimizer, twin = schuss.Adam(params), Twin("Adam", arrays)
    optimizer.step(arrange(rng_arrays(1)))
    twin.step(rng_arrays(1))
    before = contents(arrays)
    if params_first:
        new_params, other = COPIES[how]((params, optimizer))
    else:
        other, new_params = COPIES[how]((optimizer, params))
    other.step(arrange(rng_arrays(2)))
    twin.step(rng_arrays(2))
    assert contents(new_params) == contents(twin.params)
    assert contents(arrays) == before
    assert optimizer.steps == 1


@EVERY_COPY
def test_what_is_copied_with_a_single_array_stays_bound_to_it(how: str) -> None:
    for param in (*rng_arrays(0), rng_arrays(0)[1][::2, ::-1]):
        optimizer, twin = schuss.Adam(param), Twin("Adam", [param])
        new_param, other = COPIES[how]((param, optimizer))
        assert other.params is new_param
        other.step(np.ones_like(param))
        twin.step([np.ones_like(param)])
        assert contents(new_param) == contents(twin.params)


class Network:
    def __init__(self) -> None:
        self.params = {"W": np.ones(3)}
        self.optimizer = schuss.Adam(self.params)


@EVERY_COPY
def test_a_network_that_holds_its_optimizer_can_be_copied(how: str) -> None:
    network = Network()
    twin = COPIES[how](network)
    twin.optimizer.step({"W": np.ones(3)})
    assert twin.params["W"].tolist() != [1, 1, 1]
    assert network.params["W"].tolist() == [1, 1, 1]
    assert twin.optimizer.params is twin.params


class Tagged(schuss.Adam):
    """A user's subclass, with an attribute of its own."""

    tag = "none"


@EVERY_COPY
def test_a_copy_places_its_state_as_a_new_optimizer_does_and_keeps_attributes(how: str) -> None:
    param = np.zeros((300, 400))[::-1]
    optimizer = Tagged(param)
    optimizer.tag = "mine"
    copied = COPIES[how](optimizer)
    assert copied.tag == "mine"
    fresh = schuss.Adam(copied.params)
    for name in ("m", "v"):
        assert copied.state[name].strides == fresh.state[name].strides
    ends = [copied.params, copied.state["m"], copied.state["v"]]
    starts = [np.lib.array_utils.byte_bounds(array)[0] % 4096 // 64 for array in ends]
    assert len(set(starts)) == 3


def halve(t: int) -> float:
    return 0.5**t


@EVERY_COPY
def test_a_copy_keeps_its_schedule(how: str) -> None:
    param, optimizer = np.ones(3), schuss.SGD(np.ones(3), lr=halve)
    optimizer.step(np.ones(3))
    other = COPIES[how](optimizer)
    other.step(np.ones(3))
    assert other.lr is halve
    assert other.params.tolist() == (param - 0.5 - 0.25).tolist()


# What it says of itself.


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


@pytest.mark.parametrize("name", DEFAULTS)
def test_repr_names_every_hyperparameter(name: str) -> None:
    optimizer = make_optimizer(name, np.ones(1))
    for hyperparameter, value in DEFAULTS[name].items():
        assert f"{hyperparameter}={value!r}" in repr(optimizer)
    assert f"{name}(" in repr(optimizer)
    assert "1 array," in repr(optimizer)


def test_repr_shows_a_schedule() -> None:
    assert "lr=<function halve" in repr(schuss.SGD(np.ones(3), lr=halve))


# Calls and memory.


class Spy:
    """Stands in for an optimizer's plan and counts what reaches it."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.plan, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return attribute(*arguments)

        return call


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_step_is_one_call_into_the_core(name: str, count: int) -> None:
    # Every call into C++ that an optimizer makes in a step goes through its plan.
    params = [np.ones(3) for _ in range(count)]
    optimizer = make_optimizer(name, params, lr=lambda t: 0.5)
    internals = internals_of(optimizer)
    spy: Any = Spy(internals.core)
    internals.core = spy
    optimizer.step([np.ones(3) for _ in range(count)])
    assert spy.calls == ["step"]
    assert optimizer.steps == 1


@pytest.mark.parametrize("name", DEFAULTS)
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


def test_a_container_that_came_to_hold_its_optimizer_is_collected() -> None:
    params: dict[str, Any] = {"w": np.ones(3), "more": [np.ones(3)]}
    params["optimizer"] = schuss.SGD(params)
    params["optimizer"].step({"w": np.ones(3), "more": [np.ones(3)]})
    optimizer = weakref.ref(params["optimizer"])
    del params
    gc.collect()
    assert optimizer() is None


@EVERY_VARIANT
def test_optimizers_that_are_dropped_leave_nothing(name: str, options: dict[str, Any]) -> None:
    def use() -> list[weakref.ref[Any]]:
        arrays, grads = rng_arrays(0), rng_arrays(1)
        optimizer = make_optimizer(name, tree_of(arrays), **options)
        optimizer.step(tree_of(grads))
        other = copy.deepcopy(optimizer)
        held = [*arrays, *grads, *leaves(optimizer.state), *leaves(other.state)]
        return [weakref.ref(it) for it in (*held, *leaves(other.params), optimizer, other)]

    # Without the collector of cycles: arrays go when the optimizer goes.
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
        assert use(1000) - before < 1000 * 200  # one holds more than 8,000
    finally:
        tracemalloc.stop()


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
