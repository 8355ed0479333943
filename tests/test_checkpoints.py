"""Checkpoints: everything that was saved comes back, and other checkpoints are refused."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from support.arrays import LAYOUTS, bits, contents, dtype_of, laid_out, leaves
from support.checkpoints import check_load_is_refused, refused, small_training, snapshot
from support.files import (
    chains,
    read_settings,
    rewrite,
    rewrite_header,
    set_at,
    split_file,
    warm_ups,
    with_digest,
    with_settings,
)
from support.threads import step_under_way

safetensors_numpy = pytest.importorskip("safetensors.numpy")

TREE: dict[str, Any] = {"layers": [{"W": (4, 3), "b": (3,)}, {"W": (3, 2), "b": (2,)}], "scale": ()}


LARGE = TREE | {"large": (70, 61)}  # has state in blocks if that is in 8 bits


def grads(t: int, tree: Any = TREE, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(t)
    return made(lambda shape: np.asarray(rng.standard_normal(shape)).astype(dtype), tree)


def made(make: Callable[[Any], Any], tree: Any = TREE) -> Any:
    """Return the structure with `make(shape)` for each shape."""
    if isinstance(tree, dict):
        return {key: made(make, inner) for key, inner in tree.items()}
    return [made(make, inner) for inner in tree] if isinstance(tree, list) else make(tree)


def filled(value: float, tree: Any = TREE, dtype: Any = np.float32) -> Any:
    return made(lambda shape: np.full(shape, value, dtype), tree)


def params() -> Any:
    return grads(0)


def save_and_load(path: Path, saved: Any, other: Any) -> None:
    """Save an optimizer with its parameters, and load it into another one."""
    schuss.save(path, saved.params, saved)
    schuss.load(path, other.params, other)


# Optimizers.

OPTIMIZERS = [
    "SGD(p, lr=0.1, weight_decay=0.01)",
    "Momentum(p, lr=0.1, dampening=0.5, bias_correction=True)",
    "Momentum(p, lr=0.1, nesterov=True)",
    "RMSprop(p, lr=0.1, centered=True, momentum=0.9)",
    "Adam(p, lr=0.1, amsgrad=True)",
    "AdamW(p, lr=schedules.Cosine(0.1, steps=9), clip_norm=1.0)",
    "Adam(p, average=0.9, clip_value=0.5)",
    "SGD(p, average=0.9, average_bias_correction=True)",
    "Adam(p, copies='float16', lr=0.1)",
    "Adam(p, nonfinite='skip')",
    "SGD(p, maximize=True, bounds=(None, 0.5), track_norms=True)",
    "Adam(p, lr=schedules.Linear(0.1, 0.01, steps=5), groups=groups)",
    "Adam(p, state_dtype='bfloat16', seed=7)",
    "Adam(p, state_dtype='8bit', seed=7, amsgrad=True, copies='float16')",
    "Adagrad(p, state_dtype='8bit', initial_accumulator_value=0.5)",
    "Adam(p, state_dtype='8bit', master='float32', average=0.9)",
    "AdamW(p, lr=0.1, master='float24', seed=7)",
    "Momentum(p, lr=0.1, round_params='random')",
]


def make_optimizer(kind: str, p: Any) -> Any:
    if "bfloat16" in kind:
        pytest.importorskip("ml_dtypes")
    own = {"lr": schedules.InverseSqrt(0.1)}
    groups: Any = lambda name: own if name.endswith("b") else None  # noqa: E731
    return eval(kind, {**vars(schuss), "p": p, "groups": groups})


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("accumulated", [0, 2])
def test_training_that_is_resumed_has_the_bits_of_one_that_was_not_stopped(
    kind: str, stop: int, accumulated: int, tmp_path: Path
) -> None:
    def train(optimizer: Any, steps: range) -> None:
        for t in steps:
            optimizer.accumulate(grads(10 * t, tree))
            optimizer.step(scale=1 / optimizer.accumulated)
            if t == 2 and "skip" in kind:
                optimizer.step(filled(np.nan))

    tree = LARGE if "8bit" in kind else TREE
    dtype = dtype_of("bfloat16" if "master" in kind or "round" in kind else "float32")
    optimizer = make_optimizer(kind, grads(0, tree, dtype))
    train(optimizer, range(1, stop + 1))
    for t in range(accumulated):
        optimizer.accumulate(grads(t, tree))
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    train(optimizer, range(stop + 1, 7))
    other = make_optimizer(kind, filled(7, tree, dtype))
    other.step(grads(9, tree))  # nothing of this may remain
    other.accumulate(grads(9, tree))
    assert schuss.load(tmp_path / "c", other.params, other) == {}
    assert (other.steps, other.accumulated) == (stop, accumulated)
    train(other, range(stop + 1, 7))
    assert snapshot(other) == snapshot(optimizer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("into", ["c", "fortran", "half reversed"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_of_every_dtype_are_kept_in_every_memory_layout(
    layout: str, into: str, dtype: Any, tmp_path: Path
) -> None:
    shape = (700, 300, 3) if dtype == "float64" else (7, 3, 3)  # the large has two pieces in a file
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype := dtype_of(dtype))
    optimizer = schuss.Momentum(laid_out(values, layout))
    optimizer.step(values)
    other = schuss.Momentum(laid_out(np.zeros_like(values), into))
    save_and_load(tmp_path / "c", optimizer, other)
    assert snapshot(other) == snapshot(optimizer)
    if dtype.name != "bfloat16":
        read = safetensors_numpy.load_file(tmp_path / "c")
        np.testing.assert_array_equal(read["params"], optimizer.params)


# State in 8 bits, and masters.

every_way = pytest.mark.parametrize("how", ["load", "state_dict"])


def bring(optimizer: Any, other: Any, how: str, path: Path) -> None:
    """Load what an optimizer saves into another one."""
    if how == "load":
        save_and_load(path, optimizer, other)
    else:
        other.load_state_dict(optimizer.state_dict())
        for array, value in zip(leaves(other.params), leaves(optimizer.params), strict=True):
            array[...] = value


def moments(rng: np.random.Generator, shape: Any, layout: str, **options: Any) -> Any:
    """Return an optimizer with state of numbers of very different sizes."""
    optimizer = schuss.Adam(laid_out(np.zeros(shape, np.float32), layout), **options)
    for _ in range(2):
        optimizer.step((rng.standard_normal(shape) ** 5).astype(np.float32))
    return optimizer


def assert_similar(optimizer: Any, other: Any) -> None:
    """Assert that states in 8 bits are equal, to rounding: the codes are those of the roots."""
    for name, most in (("m", 127), ("v", 255)):
        states = optimizer.state[name], other.state[name]
        a, b = (np.sign(state) * np.sqrt(abs(state)) for state in states)
        assert (abs(a - b) <= abs(a).max() / most).all()


@every_way
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("into", ["c", "fortran", "half reversed"])
def test_state_in_8_bits_goes_from_any_memory_layout_to_any_other(
    layout: str, into: str, how: str, tmp_path: Path
) -> None:
    rng, shape = np.random.default_rng(0), (23, 19, 11)
    optimizer = moments(rng, shape, layout, state_dtype="8bit")
    other = schuss.Adam(laid_out(np.zeros(shape, np.float32), into), state_dtype="8bit")
    bring(optimizer, other, how, tmp_path / "c")
    assert_similar(other, optimizer)
    back = schuss.Adam(laid_out(np.zeros(shape, np.float32), layout), state_dtype="8bit")
    bring(optimizer, back, how, tmp_path / "c")
    grad = rng.standard_normal(shape).astype(np.float32)
    for each in (optimizer, back):
        each.step(grad)
    assert snapshot(back) == snapshot(optimizer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", [copy, deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_of_an_optimizer_have_its_state_in_8_bits(how: Any, layout: str) -> None:
    """Copies of the parameters can have another memory layout."""
    optimizer = moments(np.random.default_rng(0), (70, 61), layout, state_dtype="8bit")
    other = how(optimizer)
    assert_similar(other, optimizer)
    if other.params.strides == optimizer.params.strides:
        assert contents(other.state) == contents(optimizer.state)
    before = contents(optimizer.state)
    other.step(np.ones((70, 61), np.float32))
    assert contents(optimizer.state) == before


@every_way
def test_state_in_8_bits_becomes_float32_and_the_same_state_again(how: str, tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (70, 61)
    optimizer = moments(rng, shape, "fortran", state_dtype="8bit")
    wide = schuss.Adam(np.zeros(shape, np.float32))
    again = schuss.Adam(laid_out(np.zeros(shape, np.float32), "fortran"), state_dtype="8bit")
    bring(optimizer, wide, how, tmp_path / "c")
    bring(wide, again, how, tmp_path / "c")
    for each in (wide, again):
        assert contents(each.state) == contents(optimizer.state)
    optimizer.step(grad := rng.standard_normal(shape).astype(np.float32))
    again.step(grad)
    assert contents(again.state) == contents(optimizer.state)


def test_state_in_8_bits_is_not_loaded_into_bfloat16(tmp_path: Path) -> None:
    dtype_of("bfloat16")
    optimizer, w = schuss.Adam(np.zeros(5000, np.float32), state_dtype="8bit"), np.zeros(5000, "f4")
    other = schuss.Adam(w, state_dtype="bfloat16")
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    words = "state 'm' is in 8 bits, expected bfloat16 as it is here"
    check_load_is_refused(words, tmp_path / "c", other)
    with pytest.raises(ValueError, match=rf"^Adam\.load_state_dict: {words}"):
        other.load_state_dict(optimizer.state_dict())


def test_second_moments_in_8_bits_are_not_loaded_from_negative_numbers() -> None:
    w = np.zeros(5000, np.float32)
    saved, optimizer = schuss.Adam(w).state_dict(), schuss.Adam(w, state_dtype="8bit")
    saved["state"]["v"][7] = -0.5
    words = "a state that is never negative has -0.5, expected numbers >= 0"
    with pytest.raises(ValueError, match=rf"^Adam\.load_state_dict: {words}"):
        optimizer.load_state_dict(saved)


def test_other_programs_can_read_8_bit_state_and_it_takes_a_quarter_of_the_file(
    tmp_path: Path,
) -> None:
    """By what the documentation says of the format."""
    optimizer = moments(np.random.default_rng(0), (70, 610), "fortran", state_dtype="8bit")
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    assert os.path.getsize(tmp_path / "c") < 42_700 * (4 + 2.1) + 2000
    read = safetensors_numpy.load_file(tmp_path / "c")
    saved = read_settings(tmp_path / "c")["optimizer"]["blocks"]
    assert saved == {"code": "square8", "elements": 128, "orders": [[1, 0]]}
    for name, dtype, square in (("m", np.int8, 16128.984375), ("v", np.uint8, 65024.9375)):
        rows = read[f"optimizer/{name}"]
        scales = rows[:, :4].copy().view("<f4").astype(np.float64)
        codes = rows[:, 4:].view(dtype).astype(np.float64)
        values = (codes * abs(codes) * scales / square).ravel()[: 70 * 610]
        np.testing.assert_allclose(optimizer.state[name], values.reshape(610, 70).T, rtol=1e-6)


def half(value: float = 1.0) -> Any:
    return np.full(5, value, dtype_of("bfloat16"))


@every_way
def test_a_master_begins_with_the_parameter_where_none_was_saved(how: str, tmp_path: Path) -> None:
    before, optimizer = schuss.SGD(half(2), lr=1.0), schuss.SGD(half(), lr=0.001, master="float32")
    optimizer.step(half())
    assert (optimizer.params == 1).all()
    assert (optimizer.master == np.float32(0.999)).all()
    bring(before, optimizer, how, tmp_path / "c")
    assert (optimizer.master == 2).all()


# Optimizers, and why the state of SGD(half(), master="float32") is not theirs.
OTHER_MASTERS = [
    ("SGD(half())", "optimizer['master'] is 'float32', expected None", "['master'] is given, exp"),
    (
        "SGD(half(), master='float24')",
        "optimizer['master'] is 'float32', expected 'float24' as it is here",
        "['master'] has dtype int16, expected int8 (the dtype of master)",
    ),
]


@pytest.mark.parametrize(("other", "of_file", "of_dict"), OTHER_MASTERS)
def test_a_master_goes_only_where_it_was(
    other: str, of_file: str, of_dict: str, tmp_path: Path
) -> None:
    optimizer = schuss.SGD(half(), master="float32")
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    loading = eval(other, {**vars(schuss), "half": half})
    check_load_is_refused(of_file, tmp_path / "c", loading)
    with pytest.raises((TypeError, ValueError)) as caught:
        loading.load_state_dict(optimizer.state_dict())
    assert f"SGD.load_state_dict: state_dict{of_dict}" in str(caught.value)


@pytest.mark.parametrize(
    "schedule",
    [
        "chain([0.1, InverseSqrt(0.2), Constant(0.3)], [1, 3])",
        "ReduceOnPlateau(0.1, patience=1, cooldown=1)",
        "WarmUp(ReduceOnPlateau(0.1, mode='max', patience=0), steps=2)",
    ],
)
def test_a_schedule_is_kept_with_every_cost_that_it_has_seen(schedule: str, tmp_path: Path) -> None:
    lr = eval(schedule, vars(schedules).copy())
    optimizer, other = schuss.SGD(np.ones(3), lr=lr), schuss.SGD(np.ones(3))
    optimizer.step(np.ones(3))
    for cost in (3.0, 2.0, 4.0):
        schedules.feed([optimizer.lr], cost)
    save_and_load(tmp_path / "c", optimizer, other)
    assert repr(other.lr) == repr(optimizer.lr)
    for each in (optimizer, other):
        for cost in (5.0, 6.0, 7.0):
            schedules.feed([each.lr], cost)
            each.step(np.ones(3))
    assert snapshot(other) == snapshot(optimizer)


def test_a_function_of_your_own_is_the_one_that_the_loading_optimizer_has(tmp_path: Path) -> None:
    def lr(t: int) -> float:
        return 1 / t

    for saved in (lr, schedules.PerEpoch(lr, steps=2)):
        optimizer, other = schuss.SGD(np.ones(3), lr=saved), schuss.SGD(np.ones(3), lr=lr)
        save_and_load(tmp_path / "c", optimizer, other)
        assert other.lr is lr
        with pytest.raises(ValueError, match=r"^load: lr is 0.5, expected the function '.+' that"):
            schuss.load(tmp_path / "c", other.params, schuss.SGD(other.params, lr=0.5))


@pytest.mark.parametrize("how", ["load", "state_dict", "deepcopy", "pickle"])
def test_groups_that_share_a_schedule_share_it_afterwards(how: str, tmp_path: Path) -> None:
    lr = schedules.ReduceOnPlateau(0.5, patience=0)
    two = {"a": np.ones(1), "b": np.ones(1)}
    shared = {"lr": schedules.PerEpoch(lr, steps=1)}
    optimizer = schuss.SGD(two, lr, groups=lambda name: shared if name == "b" else None)
    other = schuss.SGD(deepcopy(two), groups=lambda name: {"lr": 1} if name == "b" else None)
    if how == "load":
        save_and_load(tmp_path / "c", optimizer, other)
    elif how == "state_dict":
        other.load_state_dict(optimizer.state_dict())
    else:
        other = deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, other):
        for cost in (1.0, 2.0, 3.0):
            schedules.feed([each.lr], cost)
        each.step({"a": np.ones(1), "b": np.ones(1)})
    assert optimizer.params["b"] == 1 - 0.005
    assert snapshot(other) == snapshot(optimizer)


def test_values_and_arrays_in_extra_come_back(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.MT19937(3))
    scaler = schuss.DynamicLossScale()
    arrays = [
        np.array([True, False]),
        np.empty((0, 3)),
        np.array(7, np.int8),
        np.arange(6, dtype=np.uint16)[::2],
        np.arange(12.0).reshape(3, 4).T,
    ]
    simple = {"epoch": 3, "note": "größer", "nothing": None, "rate": np.float64(0.1)}
    states = {"scale": scaler.state_dict(), "rng": rng.bit_generator.state}
    schuss.save(tmp_path / "c", params(), extra={**simple, **states, "list": arrays})
    expected = rng.random(5)
    kept = schuss.load(tmp_path / "c", params())
    rng.bit_generator.state = kept["rng"]
    np.testing.assert_array_equal(rng.random(5), expected)
    scaler.load_state_dict(kept["scale"])
    assert {name: kept[name] for name in simple} == simple
    for array, was in zip(kept["list"], arrays, strict=True):
        assert (array.dtype, array.shape) == (was.dtype, was.shape)
        assert array.tobytes() == was.tobytes()


def test_parameters_alone_or_with_an_optimizer_of_some_can_be_saved_and_loaded(
    tmp_path: Path,
) -> None:
    network, other, frozen = params(), filled(0), params()
    for array in leaves(frozen):
        array.flags.writeable = False
    optimizer, fresh = (schuss.Adam(each["layers"][1]) for each in (network, other))
    schuss.save(tmp_path / "both", network, optimizer)
    schuss.save(tmp_path / "alone", frozen)
    for name in ("alone", "both"):
        into = filled(0)
        schuss.load(tmp_path / name, into)
        assert contents(into) == contents(frozen)
    optimizer.step(grads(1)["layers"][1])
    schuss.save(tmp_path / "both", network, optimizer)
    schuss.load(tmp_path / "both", other, fresh)
    assert contents(other) == contents(network)
    assert snapshot(fresh) == snapshot(optimizer)


def test_a_read_only_array_may_be_the_one_that_was_saved(tmp_path: Path) -> None:
    def frozen(value: float) -> Any:
        array = np.full((3, 1 << 18), value).T  # it is read in several pieces
        array.flags.writeable = False
        return array

    w = np.zeros(2)
    schuss.save(tmp_path / "c", {"table": frozen(1.0), "w": np.ones(2)})
    for other in (-1.0, 1 + 2**-52):
        with pytest.raises(ValueError, match=r"^load: params/table is read-only, expected a write"):
            schuss.load(tmp_path / "c", {"table": frozen(other), "w": w})
        assert not w.any()
    schuss.load(tmp_path / "c", {"table": frozen(1.0), "w": w})
    assert w.all()


@pytest.mark.parametrize("how", ["params alone", "with one optimizer"])
def test_every_low_precision_copy_of_the_loaded_parameters_is_written(
    how: str, tmp_path: Path
) -> None:
    """Those of other optimizers too, and of other views; nothing else of theirs changes."""
    p: Any = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(2, np.float32)}
    unloaded = np.zeros(2, np.float32)
    loaded = schuss.SGD(p, copies="bfloat16")
    copies = np.zeros((3, 2), np.float16)
    of_a_view = schuss.SGD([p["w"].T[:, 2:]], copies=[copies], average=0.5)
    of_others = schuss.SGD(unloaded, copies="float16")
    schuss.SGD(p["b"], copies="float16")  # this optimizer no longer exists
    schuss.save(tmp_path / "c", p, loaded)
    for array in (*p.values(), unloaded):
        array[...] = 3
    loaded.write_copies()
    of_a_view.step([np.ones((3, 2), np.float32)])
    average = of_a_view.average[0].copy()
    schuss.load(tmp_path / "c", p, loaded if how == "with one optimizer" else None)
    assert not any(copy.any() for copy in (*loaded.copies.values(), copies, *p.values()))
    assert bits(of_a_view.average) == bits([average])
    assert of_others.copies.tolist() == [0, 0]
    of_others.write_copies()
    assert of_others.copies.tolist() == [3, 3]


def test_if_copies_cannot_be_written_nothing_is_loaded(tmp_path: Path) -> None:
    w = np.zeros(3, np.float32)
    schuss.save(tmp_path / "c", w)
    w += 1
    copies = np.ones(3, np.float16)
    optimizer = schuss.SGD(w, copies=copies)
    copies.flags.writeable = False
    with pytest.raises(ValueError, match=r"^load: the copy of params has become read-only"):
        schuss.load(tmp_path / "c", w)
    with pytest.raises(ValueError, match=r"^SGD.write_copies: the copy of params has become"):
        optimizer.write_copies()
    assert w.tolist() == [1, 1, 1]


# Mini-batches.


class OwnPCG64(np.random.PCG64):
    """A user's bit generator, whose state is that of NumPy's."""


class Constant(np.random.BitGenerator):
    """A bit generator whose state cannot be read."""


def drawing(kind: Any, seed: int = 0) -> Any:
    """Return mini-batches with a generator that has half of a number left."""
    kind = getattr(np.random, kind) if isinstance(kind, str) else kind
    rng = np.random.Generator(kind(seed))
    rng.integers(9, dtype=np.uint32)
    return schuss.minibatches(np.arange(50), batch_size=50, rng=rng)


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64", OwnPCG64])
def test_the_state_of_every_bit_generator_is_kept(kind: Any, tmp_path: Path) -> None:
    one, other = drawing(kind), drawing(kind, seed=1)
    list(one)
    schuss.save(tmp_path / "c", np.zeros(1), batches=one)
    schuss.load(tmp_path / "c", np.zeros(1), batches=other)
    assert [b.tolist() for b in other] == [b.tolist() for b in one]
    if kind is OwnPCG64:
        words = r"\['generator'\] is the state of 'OwnPCG64', expected"
        with pytest.raises(ValueError, match=words):
            drawing("PCG64").load_state_dict(one.state_dict())


STATES_OUT_OF_RANGE: dict[str, dict[str, list[Any]]] = {
    "MT19937": {
        "state/pos": [-1, 625, 10**8, 2**64, 0.5, None, True],
        "state/key": [[0] * 624, [1] * 623, [1] * 625, [0.5] * 624, None, 7, "x" * 624],
        "state/key/5": [-1, 2**32, 0.5, True],
    },
    "PCG64": {"state/state": [-1, 2**128, 0.5, None], "state/inc": [-1, 2, 2**128 + 1, None]},
    "Philox": {
        "buffer_pos": [-1, 5, 2**31, 0.5],
        "buffer": [[1] * 3, [1] * 5, None],
        "buffer/3": [-1, 2**64],
        "state/counter": [[1] * 3, 1],
        "state/counter/0": [-1, 2**64],
        "state/key": [[1], [1] * 3],
    },
    "SFC64": {"state/state": [[1] * 3, [1] * 5, {}], "state/state/0": [-1, 2**64, None]},
}
STATES_OUT_OF_RANGE["PCG64DXSM"] = STATES_OUT_OF_RANGE["PCG64"]
HALVES: dict[str, list[Any]] = {
    "has_uint32": [-1, 2, 0.5, None],
    "uinteger": [-1, 2**32, 0.5, None],
}


@pytest.mark.parametrize("kind", STATES_OUT_OF_RANGE)
def test_a_state_that_a_bit_generator_cannot_have_is_refused(kind: str, tmp_path: Path) -> None:
    def in_lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: in_lists(inner) for key, inner in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    batches = drawing(kind)
    state = in_lists(batches.state_dict())
    path, w = tmp_path / "c", np.zeros(1)
    schuss.save(path, w, batches=batches)
    content = path.read_bytes()
    fields = STATES_OUT_OF_RANGE[kind] | ({} if kind == "MT19937" else HALVES)
    for field, value in [(field, value) for field, values in fields.items() for value in values]:
        bad = deepcopy(state)
        keys = (int(key) if key.isdigit() else key for key in field.split("/"))
        set_at(bad, ("generator", *keys), value)
        words = r"^MiniBatches\.load_state_dict: .*expec"
        with pytest.raises((TypeError, ValueError), match=words):
            batches.load_state_dict(bad)
        path.write_bytes(with_settings(content, lambda s, bad=bad: s.update(batches=bad)))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"^load: .*(batches|has settings|whi)"):
            schuss.load(path, w, batches=batches)
        assert in_lists(batches.state_dict()) == state
    batches.load_state_dict(state)  # lists do as well as arrays
    assert in_lists(batches.state_dict()) == state


def test_an_epoch_that_was_left_is_over() -> None:
    batches = schuss.minibatches(np.arange(10), batch_size=3, rng=0)
    for _ in batches:
        break
    assert batches.state_dict()["epoch"] is None
    iter(batches)
    assert batches.state_dict()["epoch"] is None
    epoch = iter(batches)
    next(epoch)
    assert batches.state_dict()["epoch"]["position"] == 1


def test_mini_batches_with_other_settings_are_refused(tmp_path: Path) -> None:
    def batches(examples: int = 10, **changes: Any) -> Any:
        return schuss.minibatches(np.arange(examples), **({"batch_size": 3, "rng": 0} | changes))

    schuss.save(tmp_path / "c", np.zeros(1), batches=batches())
    schuss.save(tmp_path / "none", np.zeros(1))
    optimizer, rng = schuss.SGD(np.ones(1)), np.random.Generator(np.random.MT19937(0))
    for name, other, words in [
        ("c", batches(9), "batches['examples'] is 10, expected 9"),
        ("c", batches(batch_size=4), "batches['batch_size'] is 3, expected 4"),
        ("c", batches(shuffle=False), "batches['shuffle'] is True, expected False"),
        ("c", batches(drop_last=True), "batches['drop_last'] is False, expected True"),
        ("c", batches(rng=rng), "['generator'] is the state of 'PCG64', expected that of 'MT19937"),
        ("none", batches(), "holds no mini-batches, expected to find them"),
    ]:
        before = repr(other.state_dict())
        with refused(words, optimizer):
            schuss.load(tmp_path / name, optimizer.params, batches=other)
        assert repr(other.state_dict()) == before


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("epoch",), 3, "['epoch'] is a int"),
        (("epoch", "position"), 5, "['position'] is 5, expected at most 4"),
        (("epoch", "position"), -1, "['position'] is -1"),
        (("epoch", "position"), 0.5, "['position'] is a float"),
        (("epoch", "seed"), None, "['seed'] is None, expected an integer in [0, 2**64)"),
        (("epoch", "seed"), 2**64, "['seed'] is 18446744073709551616"),
        (("generator",), {}, "['generator'] is the state of None, expected that of 'PCG64'"),
        (("generator", "bit_generator"), "PCG32", "['generator'] is the state of 'PCG32', exp"),
        (("more",), 1, "has the keys"),
    ],
)
def test_a_state_of_mini_batches_that_makes_no_sense_is_refused(
    path: tuple[str, ...], value: Any, words: str
) -> None:
    batches = schuss.minibatches(np.arange(10), batch_size=3, rng=0)
    epoch = iter(batches)
    next(epoch)
    state = batches.state_dict()
    bad = deepcopy(state)
    set_at(bad, path, value)
    with pytest.raises((TypeError, ValueError)) as caught:
        batches.load_state_dict(bad)
    assert str(caught.value).startswith("MiniBatches.load_state_dict: state_dict")
    assert words in str(caught.value)
    assert batches.state_dict() == state


# Values that cannot be saved.

LARGEST = 10**4300 - 1


def lists(depth: int) -> Any:
    return [] if depth == 1 else [lists(depth - 1)]


def lists_of_pairs(depth: int) -> Any:
    pair: Any = []
    for _ in range(depth):
        pair = [pair, pair]
    return pair


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
MIXED = schedules.chain([lambda t: 0.1, schedules.ReduceOnPlateau(0.1)], [3])
UNREADABLE = schuss.minibatches(np.arange(9), rng=np.random.Generator(Constant(0)))
TOO_DEEP = "extra holds lists and mappings nested more than 100 deep, expected what"
# Arguments of `save`, by their names or as what `extra` has at "a", and what the message says.
BAD_ARGUMENTS: list[tuple[str, str]] = [
    ("path=7", "path is a int, expected a str or a path"),
    ("params=1.5", "params is a float, expected an array"),
    ("params=np.ones(2, object)", "params has dtype object, expected"),
    ("params=np.ones(2, '>f4')", "params has dtype >f4, expected"),
    ("params={'a/b': w, 'a': {'b': w}}", "name 'a/b'"),
    ("params={'a' * 70_000: w}", "of an array has 70007 characters"),
    ("optimizer=7", "optimizer is a int, expected an optimizer of schuss"),
    ("optimizer=schuss.SGD(w, lr=MIXED)", "lr is a Chain of a ReduceOnPlateau and of a func"),
    ("batches=7", "batches is a int, expected mini-batches"),
    ("batches=UNREADABLE", "rng is a Constant, whose state cannot be checked, exp"),
    ("extra=[1]", "extra is a list, expected a mapping"),
    ("extra={1: 2}", "extra holds the key 1, which is not a str"),
    ("a=print", "extra holds a builtin_function"),
    ("a={1}", "extra holds a set"),
    ("a=[{'schuss.same': 1}]", "reserves"),
    ("a=np.longdouble(1)", "holds a longdouble"),
    ("a=np.ones(2, '>f8')", "an array of >f8"),
    ("a=np.ma.ones(2)", "holds a MaskedArray"),
    ("a=lists(101)", TOO_DEEP),
    ("a=ENDLESS", TOO_DEEP),
    ("a=LARGEST + 1", "extra holds an integer of more than 4300 digits, expected what JSON can"),
    ("a=lists_of_pairs(60)", "extra holds more than 50,000,000 values, expected what JSON can"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS)
def test_an_argument_that_cannot_be_saved_is_refused_and_the_old_checkpoint_stays(
    arguments: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "c").write_text("old")
    w = np.ones(2)
    given = eval(f"dict({arguments})", globals() | {"w": w})
    given = {"extra": given} if "a" in given else given
    error = ValueError if "'a'" in arguments and "params" in arguments else TypeError
    with pytest.raises(error, match=r"^(save|MiniBatches\.state_dict): ") as caught:
        schuss.save(**{"path": tmp_path / "c", "params": w} | given)
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["c"]
    assert (tmp_path / "c").read_text() == "old"


def test_settings_that_are_too_long_to_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^save: the settings, with extra, take \d+ bytes, exp"):
        schuss.save(tmp_path / "c", np.ones(3), extra={"long": "x" * 100_000_000})
    assert os.listdir(tmp_path) == []


def test_running_out_of_memory_is_not_taken_for_a_state_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: Any) -> None:
        raise MemoryError

    batches = drawing(OwnPCG64)
    monkeypatch.setattr("schuss._generators.deepcopy", no_memory)
    with pytest.raises(MemoryError):
        schuss.save(tmp_path / "c", np.ones(1), batches=batches)


def test_saving_and_loading_while_another_thread_steps_are_refused(tmp_path: Path) -> None:
    optimizer = schuss.SGD(np.ones(3))
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    content = (tmp_path / "c").read_bytes()
    with step_under_way(optimizer.step, np.ones(3)):
        for call in (schuss.save, schuss.load):
            with pytest.raises(RuntimeError, match=r"^SGD\.\w+: another call"):
                call(tmp_path / "c", optimizer.params, optimizer)
    assert (optimizer.steps, optimizer.params.tolist()) == (1, [0.99] * 3)
    assert (tmp_path / "c").read_bytes() == content
    assert os.listdir(tmp_path) == ["c"]


# Checkpoints that are refused; nothing is changed.


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda settings: settings.update(changes))


def lr(value: Any) -> Callable[[Path], None]:
    path = ("optimizer", "hyperparameters", "lr")
    return lambda file: rewrite(file, lambda settings: set_at(settings, path, value))


NOT_WRITTEN = "has settings that schuss.save does not write"
DEEP = "is not a schedule ({}: schedules are nested more than 32 deep, or more"
# What damages a checkpoint: `h` is the header, `m` the metadata, `one` a warm-up as it is saved,
# `array(1)` an array.
DAMAGES: list[tuple[str, str]] = [
    ("m.update(version='2')", "is a checkpoint of version 2, expected 1"),
    ("m.pop('version')", "is a checkpoint of version None, expected 1"),
    ("m.pop('format')", "is not a schuss checkpoint"),
    ("m.clear()", "is not a schuss checkpoint"),
    ("m.pop('settings')", NOT_WRITTEN),
    *((f"m.update(settings={text})", NOT_WRITTEN) for text in ("'{'", "'[]'", "'[' * 99999")),
    *(
        (f"settings({key}=7)", f"settings['{key}'] is a int, expected a mapping")
        for key in ("optimizer", "batches", "training", "extra")
    ),
    *(
        (
            f"lr(one | {{'schuss.schedule': {name!r}}})",
            f"is not a schedule (there is no {name!r}), exp",
        )
        for name in ("Schedule", "chain", "np", "__builtins__")
    ),
    ("lr(warm_ups(33))", DEEP.format("WarmUp")),
    ("lr(warm_ups(450))", "is nested more than 100 deep"),
    ("lr(chains(13))", DEEP.format("Chain")),
    ("lr(one | {'steps': 0})", "is not a schedule (WarmUp: steps is 0, expected an integer"),
    ("lr(one | {'more': 0})", "is not a schedule (WarmUp: it has the keys"),
    ("lr(one | {'number': 'x'})", "['number'] is a str, expected an integer"),
    ("lr(one | {'after': {'schuss.same': 0}})", "is schedule 0, expected one before"),
    ("lr(one | {'after': {'schuss.function': 'f'}})", "lr']['number'] is a NoneType, ex"),
    ("lr({'schuss.same': [1]})", "['schuss.same'] is a list, expected an integer"),
    (
        "lr({'schuss.function': 7, 'number': 0})",
        "is not a schedule (there is no None), expected one",
    ),
    ("lr([0.1])", "lr is a list, expected a number"),
    ("lr(10**400)", "lr is inf, expected a finite number >= 0"),
    ("settings(extra={'a': array(1), 'b': array(1)})", "once"),
    ("settings(extra={'a': {'schuss.array': 'params'}})", "extra names an array as"),
    ("settings(extra={'a': array(1) | {'more': 1}})", "extra names an array as"),
    ("settings(extra={'a': {'schuss.array': ['settings/1']}})", "extra names an array as"),
    ("settings(extra={'a': array(9)})", "extra names an array as"),
    ("settings(extra={})", "there is 'settings/1', which no field names"),
    ("settings(extra=[1])", "settings['extra'] is a list, expected a mapping"),
    ("settings(extra=None)", "settings['extra'] is a NoneType, expected a mapping"),
    ("h['settings/1'].update(dtype='BF16')", "extra names an array in BF16, expected"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_checkpoint_of_another_version_or_with_impossible_settings_is_refused(
    damage: str, words: str, tmp_path: Path
) -> None:
    path, names = tmp_path / "c", globals() | {"one": warm_ups(1)}
    names["array"] = lambda number: {"schuss.array": f"settings/{number}"}
    optimizer, batches = small_training(path)
    if damage.startswith(("h[", "m.")):
        rewrite_header(path, lambda h: eval(damage, {"h": h, "m": h["__metadata__"]}))
    else:
        eval(damage, names)(path)
    check_load_is_refused(words, path, optimizer, batches)
    check_load_is_refused(repr(str(path)), path, optimizer, batches)
    if "settings(" in damage or "settings/" in damage:  # what nobody asks for is checked too
        for each in (words, NOT_WRITTEN):
            with refused(each, optimizer):
                schuss.load(path, optimizer.params)


@pytest.mark.parametrize("value", [warm_ups(32), chains(12)], ids=["warm-ups", "chains"])
def test_schedules_may_be_nested_32_deep(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "c"
    optimizer, batches = small_training(path)
    lr(value)(path)
    schuss.load(path, optimizer.params, optimizer, batches=batches)
    schedules.feed([optimizer.lr], 1.0)
    optimizer.step(np.ones(3))
    assert repr(optimizer)
    schuss.save(path, optimizer.params, optimizer, batches=batches)


def test_a_file_of_other_programs_is_refused(tmp_path: Path) -> None:
    optimizer = schuss.SGD(np.zeros(3))
    safetensors_numpy.save_file({"params": np.ones(3)}, tmp_path / "plain.safetensors")
    np.save(tmp_path / "array.npy", np.ones(3))
    check_load_is_refused("is not a schuss checkpoint", tmp_path / "plain.safetensors", optimizer)
    check_load_is_refused("not a safetensors file", tmp_path / "array.npy", optimizer)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps"])
def test_a_number_that_float32_does_not_hold_is_named_with_its_file(
    name: str, tmp_path: Path
) -> None:
    path, optimizer = tmp_path / "c", schuss.Adam(np.ones(3, np.float32))
    schuss.save(path, optimizer.params, optimizer)
    rewrite(path, lambda s: set_at(s, ("optimizer", "hyperparameters", name), 1e300))
    check_load_is_refused(f"load: {str(path)!r}: {name} is 1e+300, ", path, optimizer)
    state = optimizer.state_dict()
    state["hyperparameters"][name] = 1e300
    with pytest.raises(ValueError, match=rf"^Adam\.load_state_dict: {name} is 1e\+300, "):
        optimizer.load_state_dict(state)


# Optimizers, and why a checkpoint of Adam(params()) is not theirs.
OTHERS = [
    ("Adam(filled(0, rest))", "holds params/layers/1/W, expected nothing of that name"),
    ("Adam(filled(0, TREE | {'more': 1}))", "holds no params/more, expected to find it"),
    ("Adam(filled(0, TREE | {'scale': (1,)}))", "holds params/scale of shape (), expected (1,)"),
    ("Adam(filled(0, TREE, 'f8'))", "holds params/layers/0/W in F32, expected F64"),
    ("AdamW(params())", "c': optimizer['optimizer'] is 'Adam', expected 'AdamW'"),
    ("SGD(params())", "optimizer['optimizer'] is 'Adam', expected 'SGD'"),
    ("Adam(params(), groups=groups)", "c': optimizer['groups'] is"),
    ("Adam(params(), state_dtype='bfloat16')", "holds optimizer/m/layers/0/W in F32"),
]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    optimizer, path, frozen = schuss.Adam(params()), tmp_path / "c", params()
    schuss.save(path, optimizer.params, optimizer)
    names = globals() | {"rest": {"layers": TREE["layers"][:1], "scale": ()}} | vars(schuss)
    names["groups"] = lambda name: {"lr": 0.1} if "b" in name else None
    for other, words in OTHERS:
        check_load_is_refused(words, path, eval(other, names))
    frozen["scale"] += 1
    frozen["scale"].flags.writeable = False
    with refused("params/scale is read-only, expected a writeable array, or", optimizer):
        schuss.load(path, frozen)
    with refused("optimizer.params are other arrays", optimizer):
        schuss.load(path, params(), optimizer)
    schuss.save(path, optimizer.params)
    check_load_is_refused("holds no optimizer, expected to", path, optimizer)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (json.dumps({"a": lists(101)}), "extra is nested more than 100 deep"),
        (f'{{"a": 1{"0" * 4300}}}', "they are not valid JSON (an integer of 4301 digits)"),
        ("[" * 99_999, "they are not valid JSON"),
        ('{"a": {"schuss.same": 0}}', "extra has the reserved key 'schuss.same'"),
    ],
)
def test_json_that_would_take_forever_to_parse_is_refused(
    extra: str, words: str, tmp_path: Path
) -> None:
    path, optimizer = tmp_path / "c", schuss.SGD(np.zeros(1))
    kept: dict[str, Any] = {"deep": lists(100), "large": [LARGEST, -LARGEST]}
    schuss.save(path, np.zeros(1), extra=kept)
    assert schuss.load(path, np.zeros(1)) == kept
    header, tensors = split_file(path.read_bytes())
    text = json.dumps(read_settings(path) | {"extra": "EXTRA"}).replace('"EXTRA"', extra)
    header["__metadata__"]["settings"] = text
    path.write_bytes(with_digest(header, tensors))
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)  # Python would convert any number of digits
        check_load_is_refused(f"does not write: {words}", path, optimizer)
    finally:
        sys.set_int_max_str_digits(limit)
