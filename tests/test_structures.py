"""Structures of arrays: which are accepted, and what happens when they change."""

import collections
import copy
import pickle
import re
import types
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import schuss
from support.arrays import leaves
from support.optimizers import every_optimizer
from support.processes import ends_well
from support.refusals import (
    make_grads,
    make_optimizer,
    no_arrays,
    refusal,
)


def test_an_optimizer_refuses_params_without_an_array() -> None:
    for bad in no_arrays():
        words = f"Adam: params is a {type(bad).__name__}, expected an array"
        with refusal(TypeError, words, keeps=()):
            schuss.Adam(bad)
    empties: list[Any] = [[], (), {}, [[]], {"layers": []}]
    for empty in empties:
        words = "Adam: params contains no arrays, expected at least one"
        with refusal(ValueError, words, keeps=()):
            schuss.Adam(empty)


@pytest.mark.parametrize("params", [np.ones(3), [np.ones(3)], {"W": np.ones(3)}])
def test_a_step_refuses_to_have_no_gradients(params: Any) -> None:
    optimizer = schuss.Adam(params)
    with refusal(ValueError, "Adam.step: there are no gradients", "expected", keeps=optimizer):
        optimizer.step(None)
    for bad in no_arrays()[1:]:
        words = f"Adam.step: grads is a {type(bad).__name__}, expected"
        with refusal(TypeError, words, keeps=optimizer):
            optimizer.step(bad)


# Gradients in another structure than that of the parameters, and what the message says.
OTHER_STRUCTURES = [
    ("w1", "grads is a ndarray"),
    ("[w1, [w2, b2]]", "grads is a list"),
    ("{}", "grads has no key 'W1'"),
    ("{'W1': w1}", "grads has no key 'layers'"),
    ("{'W2': w1, 'layers': [w2, b2]}", "grads has no key 'W1'"),
    ("{'W1': w1, 'layers': [w2, b2], 'b1': b2}", "grads has the key 'b1'"),
    ("{'W1': w1, 'layers': [w2]}", "grads['layers'] has length 1, expected 2"),
    ("{'W1': w1, 'layers': [w2, b2, b2]}", "grads['layers'] has length 3, expected 2"),
    ("{'W1': w1, 'layers': {0: w2, 1: b2}}", "grads['layers'] is a dict, expected a sequence"),
    ("{'W1': w1, 'layers': w2}", "grads['layers'] is a ndarray, expected a sequence"),
    ("{'W1': [w1], 'layers': [w2, b2]}", "grads['W1'] is a list"),
    ("{'W1': w1, 'layers': [w2, {'b': b2}]}", "grads['layers'][1] is a dict"),
]


@every_optimizer
@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_refuses_gradients_in_another_structure(name: str, steps: int) -> None:
    optimizer = make_optimizer(name, steps=steps)
    for structure, words in OTHER_STRUCTURES:
        w1, w2, b2 = leaves(make_grads())
        grads = eval(structure, {"w1": w1, "w2": w2, "b2": b2})
        with refusal(ValueError, f"{name}.step: {words}", "expected", keeps=[optimizer, grads]):
            optimizer.step(grads)


class Net(dict[str, Any]):
    pass


class Pair(NamedTuple):
    layers: list[Any]
    bias: Any


@dataclass
class Fields:
    W: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Model:
    """As a dataclass that is registered with JAX: some fields are not parameters."""

    layers: Any
    scale: Any
    name: str = field(default="model", metadata={"static": True})
    activation: Any = field(default=np.tanh, metadata={"pytree_node": False})


class OfList:
    """A container with the arrays of a list."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, key: Any) -> Any:
        return self.arrays[int(key)]


class Named(OfList, Mapping[str, Any]):
    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self.arrays)))


class Layers(OfList, Sequence[Any]):
    pass


# From two arrays: parameters, the container of the first array, and its key there.
def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


NAMES: dict[str, Any] = {**vars(collections), **vars(types), **globals()}
# Parameters of two arrays, and what replaces one of them by another.
REPLACED = [
    ("[a, b]", "params[0] = other"),
    ("{'a': a, 'b': b}", "params['a'] = other"),
    ("([inner := [a], b],)", "inner[0] = other"),
    ("Pair(inner := [a], b)", "inner[0] = other"),
    ("Net(a=a, b=b)", "params['a'] = other"),
    ("OrderedDict(a=a, b=b)", "params['a'] = other"),
    ("defaultdict(None, a=a, b=b)", "params['a'] = other"),
    ("UserDict(a=a, b=b)", "params['a'] = other"),
    ("ChainMap(inner := {'a': a}, {'b': b})", "inner['a'] = other"),
    ("ChainMap({}, {'a': a, 'b': b})", "params['a'] = other"),
    ("MappingProxyType(inner := {'a': a, 'b': b})", "inner['a'] = other"),
    ("Named(inner := [a, b])", "inner[0] = other"),
    ("UserList([a, b])", "params[0] = other"),
    ("deque([a, b])", "params[0] = other"),
    ("Layers(inner := [a, b])", "inner[0] = other"),
    ("[inner := UserDict(a=a), b]", "inner['a'] = other"),
    ("[inner := Fields(a), b]", "inner.W = other"),
    ("{'net': Model((inner := Fields(a), None), b)}", "inner.W = other"),
    ("[inner := {'params': a, 'lr': 0.5}, {'params': b}]", "inner['params'] = other"),
]


@pytest.mark.parametrize(("structure", "change"), REPLACED)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_refuses_a_parameter_that_was_frozen_or_replaced_in_any_structure(
    structure: str, change: str, steps: int
) -> None:
    names = NAMES | {"a": np.ones(3), "b": np.ones(2)}
    names["params"] = eval(structure, names)
    optimizer = schuss.Adam(names["params"])
    grads = pickled(optimizer.state["m"])
    for _ in range(steps):
        optimizer.step(grads)
    a = names["a"]
    for other in (np.ones(3), [np.ones(3)], np.zeros(4)[1:], a.view(np.int64), None):
        names["other"] = other
        exec(change, names)
        with refusal(ValueError, "Adam.step: params[", REPLACES, keeps=[a, names["b"]]):
            optimizer.step(grads)
    names["other"] = a[...]  # the same memory
    exec(change, names)
    optimizer.step(grads)
    a.flags.writeable = names["other"].flags.writeable = False
    with refusal(ValueError, "Adam.step: params[", "is read-only, expected a wr", keeps=[a]):
        optimizer.step(grads)
    assert optimizer.steps == steps + 1


REPLACES = "was replaced since the optimizer was made, expected"
# Parameters, what moves or removes one of them or adds a value, and what the message says.
MOVED = [
    ("deque([a, b])", "params.rotate()", REPLACES),
    ("{'a': a, 'layers': [b]}", "del params['a']", REPLACES),
    ("{'a': a, 'layers': [b]}", "params['layers'].pop()", REPLACES),
    ("{'a': a, 'layers': [b]}", "del params['layers']", REPLACES),
    ("{'a': a}", "params.update(more=new)", "was added after"),
    ("UserDict(a=a)", "params.update(more=new)", "was added after"),
    ("[a]", "params.append(new)", "was added after"),
    ("deque([a])", "params.append(new)", "was added after"),
    ("{'a': a, 'more': []}", "params['more'].append(new)", "was added after"),
    ("{'a': a, 'more': None}", "params['more'] = new", "was added after"),
    ("[Fields(a, None)]", "params[0].b = new", "was added after"),
    ("[Fields(a, b)]", "params[0].W = params[0].b", REPLACES),
    ("[{'params': a}]", "params.append({'params': new})", "was added after"),
]


@pytest.mark.parametrize(("structure", "change", "words"), MOVED)
def test_a_step_refuses_parameters_that_were_moved_removed_or_added(
    structure: str, change: str, words: str
) -> None:
    for new in ("a name, for example, may be added", np.ones(2), {"W": [np.ones(3)]}):
        names = NAMES | {"a": np.ones(2), "b": np.ones(2), "new": new}
        params = names["params"] = eval(structure, names)
        optimizer = schuss.SGD(params)
        arrays, grads = leaves(params), pickled(optimizer.params)
        exec(change, names)
        if words == "was added after" and isinstance(new, str):
            optimizer.step(grads)
            continue
        with refusal(ValueError, "SGD.step: params[", words, "expected", keeps=arrays):
            optimizer.step(grads)
        assert optimizer.steps == 0


@pytest.mark.parametrize("how", [tuple, copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_an_optimizer_and_its_copy_refuse_what_was_replaced(how: Any, kind: Any) -> None:
    groups: list[Any] = [{"params": np.zeros(2, np.float32)} for _ in range(2)]
    params = {key: np.zeros(2, np.float32) for key in "ab"}
    copies = kind({key: np.zeros(2, np.float16) for key in "ab"})
    optimizers = schuss.SGD(groups), schuss.SGD(params, copies=copies)
    if how is copy.copy:
        of_groups, of_copies = map(copy.copy, optimizers)
    else:
        of_groups, of_copies, groups, copies = how((*optimizers, groups, copies))
    saved, groups[0]["params"] = of_copies.state_dict(), np.zeros(2, np.float32)
    copies["b"] = np.zeros(2, np.float16)
    grads = {key: np.ones(2, np.float32) for key in "ab"}
    with refusal(ValueError, "SGD.step: params[0]", "was replaced", keeps=of_groups):
        of_groups.step([*grads.values()])
    with refusal(ValueError, "SGD.step: copies['b'] was replaced", keeps=of_copies):
        of_copies.step(grads)
    with refusal(ValueError, "SGD.load_state_dict: copies['b'] was replaced", keeps=of_copies):
        of_copies.load_state_dict(saved)


def test_fit_refuses_parameters_that_are_no_longer_those_of_the_optimizer() -> None:
    params = {"w": np.ones(1)}

    def loss_and_grad(params: Any, x: Any) -> Any:
        params["w"] = params["w"] * 1.0  # not in place: the optimizer's array is another
        return float(params["w"].sum()), {"w": np.ones(1)}

    class Stepper(schuss.SGD):
        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            super().step([grads["w"]], scale=scale)

    optimizer = Stepper(list(params.values()))
    with pytest.raises(ValueError, match=r"^fit: optimizer\.params are other arrays, expected"):
        schuss.fit(loss_and_grad, params, optimizer, np.ones((2, 1)), epochs=3, batch_size=1)
    assert optimizer.steps == 2


# Containers that return new arrays at each access.


def copying(kind: Any) -> Any:
    """Return a subclass of a container whose items are copies."""

    def copied(self: Any, key: Any) -> Any:
        return copy.deepcopy(kind.__getitem__(self, key))

    return type("Copying", (kind,), {"__getitem__": copied})


class CopyingIterator(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (array.copy() for array in list.__iter__(self))


def npz(folder: Path, w: Any) -> Any:
    np.savez(folder / f"{w.dtype}.npz", w=w)
    return np.load(folder / f"{w.dtype}.npz")


def values_of(tree: Any) -> Any:
    """Return a structure's arrays in dicts, lists and tuples."""
    average = schuss.ExponentialAverage(0.0)
    average.update(tree)
    return average.value


COPYING: dict[str, tuple[Callable[[Path, Any], Any], str, str]] = {
    "npz": (npz, "['w']", "dict"),
    "dict": (lambda _, w: copying(dict)(w=w), "['w']", "dict"),
    "Mapping": (lambda _, w: copying(Named)([{"nested": w}]), "['0']['nested']", "dict"),
    "list by index": (lambda _, w: copying(list)([w]), "[0]", "list"),
    "list in turn": (lambda _, w: CopyingIterator([w]), "[0]", "list"),
    "Sequence": (lambda _, w: copying(Layers)([w]), "[0]", "list"),
    "named tuple": (lambda _, w: copying(Pair)(w, w.copy()), "[0]", "list"),
}


@pytest.mark.parametrize("what", COPYING)
def test_containers_that_copy_their_arrays_are_refused_where_arrays_are_written(
    what: str, tmp_path: Path
) -> None:
    make, path, kind = COPYING[what]
    params, half = make(tmp_path, np.ones(2, np.float32)), np.ones(2, np.float16)
    copies, file = make(tmp_path, half), tmp_path / "weights.safetensors"
    schuss.save(file, params)  # which only reads them
    optimizer = type("Idle", (), {"step": lambda self, grads: None})()
    fit: Any = partial(schuss.fit, lambda params, x: (0.0, params), params, optimizer)
    cases: list[tuple[str, str, Callable[[], object]]] = [
        ("SGD", "params", lambda: schuss.SGD(params)),
        ("SGD", "params['net'][0]", lambda: schuss.SGD({"net": [params]})),
        ("SGD", "params[0]", lambda: schuss.SGD([{"params": params}, {"params": half}])),
        ("load", "params", lambda: schuss.load(file, params)),
        ("fit", "params", lambda: fit(np.ones((2, 1)), restore_best=True)),
        ("SGD", "copies", lambda: schuss.SGD(values_of(params), copies=copies)),
    ]
    for call, name, act in cases:
        message = (
            f"{call}: {name}{path} is a new object at each access, expected {name} to keep its "
            f"arrays (write {name} = {kind}({name}) first)"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            act()


@pytest.mark.parametrize("what", COPYING)
def test_gradients_may_be_in_containers_that_copy_them(what: str, tmp_path: Path) -> None:
    grads = COPYING[what][0](tmp_path, np.array([1.0, 2.0]))
    optimizer = schuss.SGD(values_of(grads), lr=1.0)
    optimizer.step(grads)
    assert all(leaf.tolist() == [0, 0] for leaf in leaves(optimizer.params))


# Arrays and structures that change during a call.


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("shape", (2, 3)), ("shape", (6,)), ("strides", (0, 4)), ("dtype", np.int32)],
)
def test_a_step_refuses_a_parameter_that_was_reshaped_or_reinterpreted(
    steps: int, attribute: str, value: Any
) -> None:
    optimizer = make_optimizer("Adam", steps=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(optimizer.params["W1"], attribute, value)
    with refusal(ValueError, "Adam.step: params['W1']", "expected", keeps=optimizer):
        optimizer.step(make_grads())


# Arrays and containers that act while they are read; what they do is `act`.
ACTORS = """
from collections import UserDict
import copy
import numpy as np, pytest, schuss

class Gradient:
    def __init__(self, array, act):
        self.array, self.act = array, act
    def __dlpack_device__(self):
        return self.array.__dlpack_device__()
    def __dlpack__(self, **keywords):
        self.act()
        return self.array.__dlpack__(**keywords)

class Container(UserDict):
    act = staticmethod(lambda: None)
    def __getitem__(self, key):
        self.act()
        return self.data[key]

n = 1_000_000
"""


SCRIPTS = {
    "a gradient cannot step or change the rule while it is read": """
for steps, act in [(s, a) for s in (0, 1) for a in (
    lambda: setattr(optimizer, "amsgrad", False),
    lambda: optimizer.step([np.ones(n), np.ones(3)]),
)]:
    params = [np.ones(n), np.ones(3)]
    optimizer = schuss.Adam(params, amsgrad=True)
    for _ in range(steps):
        optimizer.step([np.ones(n), np.ones(3)])
    before = [param.tobytes() for param in params]
    with pytest.raises(Exception, match="under way"):
        optimizer.step([np.ones(n), Gradient(np.ones(3), act)])
    assert [param.tobytes() for param in params] == before
    assert optimizer.amsgrad and optimizer.steps == steps
    optimizer.step([np.ones(n), np.ones(3)])
    assert optimizer.steps == steps + 1
""",
    "a gradient cannot move a parameter while it is read": r"""
for size in (5, 2 * n):
    params = [np.ones(n), np.ones(3)]
    optimizer = schuss.SGD(params)
    act = lambda: params[0].resize(size, refcheck=False)
    with pytest.raises(TypeError, match=r"SGD\.step: grads\[1\].*cannot resize"):
        optimizer.step([np.ones(n), Gradient(np.ones(3), act)])
    assert optimizer.steps == 0 and (params[1] == 1).all() and (params[0] == 1).all()
""",
    "a structure that changes while it is read is refused": """
for what in ("list", "dict", "actor", "gradients"):
    actor = Container(a=np.ones(4))
    params = [np.ones(4), actor, np.ones(4), {"b": np.ones(4), "c": np.ones(4)}]
    grads = [np.ones(4), {"a": np.ones(4)}, np.ones(4), {"b": np.ones(4), "c": np.ones(4)}]
    arrays = [params[0], actor.data["a"], params[2], params[3]["b"], params[3]["c"]]
    optimizer = schuss.SGD(params, lr=1.0)
    containers = {"list": params, "dict": params[3], "actor": actor.data, "gradients": grads}
    def act():
        containers[what].clear()
        act.junk = [bytearray(200) for _ in range(1000)]
    actor.act = act
    if what == "gradients":  # which have been read by then
        optimizer.step(grads)
    else:
        with pytest.raises((KeyError, ValueError)):
            optimizer.step(grads)
    assert optimizer.steps == (what == "gradients")
    assert all((array == 1 - optimizer.steps).all() for array in arrays)
""",
    "a gradient that empties its list while it is read does not crash": """
class Evil:
    def __getattr__(self, name):
        grads.clear()
        self.junk = [bytearray(200) for _ in range(1000)]
        raise AttributeError(name)
optimizer = schuss.SGD([np.zeros(4), np.zeros(4)])
grads = [Evil(), np.zeros(4)]
with pytest.raises((TypeError, ValueError)):
    optimizer.step(grads)
assert optimizer.steps == 0
""",
    "the state that users see cannot be resized or frozen under the optimizer": """
for how in (lambda optimizer: optimizer, copy.copy, copy.deepcopy):
    optimizer, grad = how(schuss.Adam(np.ones(n))), np.ones(n)
    for size in (10, 3 * n):
        with pytest.raises(ValueError):
            optimizer.state["v"].resize(size, refcheck=False)
    optimizer.state["v"].setflags(write=False)
    optimizer.step(grad)
    np.testing.assert_allclose(optimizer.state["v"], 0.001)
""",
}


@pytest.mark.parametrize("promise", SCRIPTS)
def test_what_acts_while_it_is_read_cannot_break_a_step(promise: str) -> None:
    ends_well(ACTORS + SCRIPTS[promise])


# Structures without an end.


class Endless(Sequence[Any]):
    """A sequence of the same item without an end, or of such sequences."""

    def __init__(self, item: Any = None) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if self.item is None and index >= 2:
            raise IndexError
        return Endless() if self.item is None else self.item


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
        (Endless(np.ones(1)), "params has length 2 but yields more items, expected that number"),
        (often, "params contains the same containers too many times, expected each once"),
    ]
    for endless, words in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(f'Adam: {words}')}"):
            schuss.Adam(endless)
        with pytest.raises(ValueError, match=f"^{re.escape(f'save: {words}')}"):
            schuss.save(tmp_path / "weights.safetensors", endless)
    while deep and isinstance(deep[0], list):  # so that Python frees it without recursion
        deep = deep[0]
    optimizer = make_optimizer("Adam")
    in_grads: dict[str, Any] = {"W1": make_grads()["W1"]}
    in_grads["layers"] = [in_grads, in_grads]
    with refusal(ValueError, "Adam.step: grads['layers'][0] is a dict", keeps=optimizer):
        optimizer.step(in_grads)


def test_a_container_may_occur_twice_where_it_is_only_read(tmp_path: Path) -> None:
    tied = {"W": np.ones(2)}
    schuss.save(tmp_path / "tied.safetensors", {"in": tied, "out": tied, "rest": ((), ())})
    with pytest.raises(ValueError, match=r"params\['out'\]\['W'\] is the same array as"):
        schuss.SGD({"in": tied, "out": tied})


# Keys.


class Keys(Mapping[Any, Any]):
    """A mapping with any keys, hashable or not, unique or not."""

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


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ([[1]], TypeError, "params has the key [1], expected keys that can be hashed"),
        (["a", "a"], ValueError, "params has the key 'a' twice, expected each once"),
        (
            ["missing"],
            ValueError,
            "params gives the key 'missing' but has no value for it, expected",
        ),
    ],
)
def test_a_mapping_has_keys_as_a_dict_has_them(
    keys: list[Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(f'SGD: {words}')}"):
        schuss.SGD(Keys(keys))


def test_a_key_that_equals_nothing_is_found_by_itself() -> None:
    nan = float("nan")
    params = {nan: np.ones(2), 1: np.ones(1)}
    optimizer = schuss.SGD(params, lr=1.0)
    optimizer.step({1: np.ones(1), nan: np.ones(2)})
    assert params[nan].tolist() == [0, 0]
    with refusal(
        ValueError, "SGD.step: grads has no key nan (it has nan), expected it", keeps=optimizer
    ):
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


def test_extra_keys_and_groups_are_found_without_comparing_all_with_all() -> None:
    n, Compared.comparisons = 3000, 0
    optimizer: schuss.SGD = schuss.SGD({Compared(i): np.ones(1) for i in range(n)})
    for build in (dict, UserDict):
        with pytest.raises(ValueError, match=r"SGD\.step: grads has the key"):
            optimizer.step(build({Compared(i): np.ones(1) for i in range(n + 1)}))
    params = {i: np.ones(1) for i in range(n)}
    optimizer = schuss.SGD(params, groups=lambda name: {"lr": Compared(int(name) // 2)})
    assert len(optimizer.param_groups) == n // 2
    assert Compared.comparisons < 60 * n


# Fields, and None.


def model(value: float, dtype: Any = np.float32) -> Model:
    layers = [Fields(np.full((2, 3), value, dtype), np.full(2, value, dtype)), Fields(None)]
    return Model(layers, np.full((), value, dtype))


def arrays_of(net: Model) -> list[Any]:
    return [net.layers[0].W, net.layers[0].b, net.scale]


def test_fields_of_objects_are_parameters_by_their_names(tmp_path: Path) -> None:
    net, names = model(1.0), list[str]()
    options: dict[str, Any] = {"average": 0.5, "copies": model(0.0, np.float16)}
    optimizer = schuss.Adam(net, lr=0.1, groups=lambda name: names.append(name), **options)
    listed = [np.ones((2, 3), np.float32), np.ones(2, np.float32), np.ones((), np.float32)]
    expected = schuss.Adam(listed, lr=0.1, average=0.5, copies="float16")
    for value in (0.5, 2.0):
        optimizer.step(model(value))
        expected.step(arrays_of(model(value)))
    assert names == ["layers/0/W", "layers/0/b", "scale"]
    for ours, theirs in (
        (net, listed),
        (optimizer.state["v"], expected.state["v"]),
        (optimizer.average, expected.average),
        (optimizer.copies, expected.copies),
        (pickled(optimizer).params, listed),
    ):
        assert (type(ours), type(ours.layers[0])) == (Model, Fields)
        assert (ours.name, ours.activation, ours.layers[1].W) == ("model", np.tanh, None)
        assert [a.tolist() for a in arrays_of(ours)] == [a.tolist() for a in theirs]
    other = schuss.Adam(model(1.0), average=0.5)
    other.load_state_dict(optimizer.state_dict())
    schuss.save(tmp_path / "checkpoint", net, optimizer)
    schuss.load(tmp_path / "checkpoint", other.params, other)
    assert other.params.scale == net.scale
    assert other.state["m"].scale == optimizer.state["m"].scale


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"slots": False}])
def test_classes_of_attrs_are_structures(options: dict[str, Any]) -> None:
    attrs = pytest.importorskip("attrs")
    fields = {"W": attrs.field(), "name": attrs.field(default="a", metadata={"static": True})}
    kind = attrs.make_class("Net", fields, **options)
    net = kind(np.ones(2))
    optimizer = schuss.SGD(net, lr=0.5, average=0.5)
    optimizer.step(kind(np.ones(2)))
    assert (net.W.tolist(), optimizer.average.W.tolist()) == ([0.5, 0.5], [0.5, 0.5])
    assert optimizer.average.name == "a"
    with pytest.raises(ValueError, match=r"^SGD\.step: grads\.W has shape"):
        optimizer.step(kind(np.ones(3)))


def test_gradients_of_jax_go_with_a_registered_dataclass() -> None:
    jax = pytest.importorskip("jax")
    kind = jax.tree_util.register_dataclass(Fields, data_fields=["W", "b"], meta_fields=[])
    net = kind(np.full(2, 0.5, np.float32))
    grads = jax.grad(lambda net: (net.W**2).sum())(net)
    assert (type(grads), grads.b) == (Fields, None)
    schuss.SGD(net, lr=0.5).step(grads)
    assert net.W.tolist() == [0.0, 0.0]


class Fresh(Fields):
    """Fields that return new arrays at each access."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value.copy() if name == "W" else value


BAD_FIELDS: list[tuple[Any, type[Exception], str]] = [
    (
        Fields(W="relu"),
        TypeError,
        "params[0].W is a str, expected an array, or a sequence, mapping or dataclass of arrays "
        "(metadata={'static': True} of the field leaves it out)",
    ),
    (object.__new__(Model), ValueError, "params[0].layers has no value, expected an array"),
    (
        Fresh(np.ones(2)),
        ValueError,
        "params[0].W is a new object at each access, expected params[0] to keep its arrays",
    ),
    (Fields, TypeError, "params[0] is a type, expected an array, or a sequence, mapping or"),
]


@pytest.mark.parametrize(("bad", "error", "words"), BAD_FIELDS)
def test_fields_that_cannot_be_parameters_are_refused(
    bad: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(f'SGD: {words}')}"):
        schuss.SGD([bad])


@dataclass
class Other:
    W: Any
    c: Any = None


OTHER_FIELDS = [
    ("{'W': w}", "grads is a dict, expected a Fields (the structure of params)"),
    ("[w]", "grads is a list, expected a Fields (the structure of params)"),
    ("w", "grads is a ndarray, expected a Fields (the structure of params)"),
    ("Other(w)", "grads has no field 'b', expected it (the structure of params)"),
    ("Fields(w, w)", "grads.b is a ndarray, expected None (the structure of params.b)"),
    ("Fields([w])", "grads.W is a list, expected an array (the structure of params.W)"),
]


@pytest.mark.parametrize(("grads", "words"), OTHER_FIELDS)
def test_gradients_have_the_fields_of_the_parameters(grads: str, words: str) -> None:
    optimizer = schuss.SGD(Fields(np.ones(2)))
    with refusal(ValueError, f"SGD.step: {words}", keeps=optimizer):
        optimizer.step(eval(grads, NAMES | globals() | {"w": np.ones(2)}))


# Objects that are not structures.


class WithArray:
    """An object that can be made an array, as a table of pandas can."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.ones(2)


class Modules:
    """An object with keys that is not a mapping of Python's, as a `ParameterDict` of PyTorch."""

    def __iter__(self) -> Iterator[str]:
        return iter(["W"])

    def keys(self) -> list[str]:
        return ["W"]


ARRAYS = {"W": np.ones(2)}


@pytest.mark.parametrize(
    ("wrong", "maker"),
    [
        (ARRAYS.values(), "list"),
        (iter(ARRAYS.values()), "list"),
        (ARRAYS.items(), "dict"),
        (Modules(), "dict"),
        (WithArray(), "numpy.array"),
        (0.5, "numpy.array"),
        (ARRAYS.keys(), ""),
        ("W", ""),
        (np.ndarray, ""),
        (3, ""),
    ],
)
def test_what_can_be_made_a_structure_is_refused_with_the_way_to_make_it(
    wrong: Any, maker: str
) -> None:
    kind = type(wrong).__name__
    words = f"params['net'] is a {kind}, expected an array, or a sequence, mapping or dataclass of"
    words += " arrays"
    words += f" (write params['net'] = {maker}(params['net']) first)" if maker else ""
    with pytest.raises(TypeError, match=f"^{re.escape(f'SGD: {words}')}$"):
        schuss.SGD({"net": wrong})
    forms: list[tuple[Any, str, bool]] = [
        (ARRAYS, "mapping", maker == "dict"),
        ([np.ones(2)], "sequence", maker == "list"),
    ]
    for params, expected, helps in forms:
        words = f"grads is a {kind}, expected a {expected} of arrays"
        words += f" (write grads = {maker}(grads) first)" if helps else ""
        with pytest.raises(TypeError, match=f"^{re.escape(f'SGD.step: {words}')}$"):
            schuss.SGD(params).step(wrong)


def test_a_dict_whose_keys_are_attributes_is_a_dict() -> None:
    class Attributes(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            return self.setdefault(name, Attributes())

    params = Attributes(W=np.ones(2))
    schuss.SGD(params, lr=1.0).step(Attributes(W=np.ones(2)))
    assert list(params) == ["W"]
    assert params["W"].tolist() == [0, 0]
