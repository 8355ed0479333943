"""Training that was stopped, killed or cut off goes on with the same bits, or says why not."""

import _thread
import errno
import io
import json
import os
import pickle
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from copy import deepcopy
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import schuss
from cases import LAYOUTS, bits, laid_out
from files import (
    at,
    doubled,
    offsets_in,
    places_in,
    sealed,
    taken_apart,
    warm_ups,
    with_settings,
)
from schuss import _files, _interrupts, _safetensors, checkpoints, schedules
from schuss._saved import busy

safetensors_numpy = pytest.importorskip("safetensors.numpy")

LINUX = sys.platform == "linux"
posix = pytest.mark.skipif(os.name != "posix", reason="other systems have no such files or signals")

TREE: dict[str, Any] = {"layers": [{"W": (4, 3), "b": (3,)}, {"W": (3, 2), "b": (2,)}], "scale": ()}


def made(make: Callable[[Any], Any], tree: Any = TREE) -> Any:
    """Return the structure with `make(shape)` in the place of each shape."""
    if isinstance(tree, dict):
        return {key: made(make, inner) for key, inner in tree.items()}
    return [made(make, inner) for inner in tree] if isinstance(tree, list) else make(tree)


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict | list | tuple):
        inner = tree.values() if isinstance(tree, dict) else tree
        return [leaf for each in inner for leaf in leaves(each)]
    return [tree]


def params(dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return made(lambda shape: np.asarray(rng.standard_normal(shape)).astype(dtype))


def grads(t: int, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(t)
    return made(lambda shape: np.asarray(rng.standard_normal(shape)).astype(dtype))


def known(optimizer: Any) -> list[bytes]:
    """Return all that a training has, as bytes."""
    state = optimizer.state_dict()
    average, waiting = state["average"] or {"values": []}, state["accumulated"] or {"values": []}
    arrays = [*leaves(optimizer.params), *leaves(state["state"])]
    arrays += [*leaves(average["values"]), *leaves(waiting["values"]), *leaves(optimizer.copies)]
    told = (optimizer.steps, optimizer.skipped, optimizer.accumulated, optimizer.lr_now)
    return [*bits([array for array in arrays if array is not None]), repr(told).encode()]


# Whatever an optimizer has is saved.

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: schuss.SGD(p, lr=0.1, weight_decay=0.01),
    "Momentum": lambda p: schuss.Momentum(p, lr=0.1, dampening=0.5, bias_correction=True),
    "Nesterov": lambda p: schuss.Momentum(p, lr=0.1, nesterov=True),
    "RMSprop": lambda p: schuss.RMSprop(p, lr=0.1, centered=True, momentum=0.9),
    "Adam": lambda p: schuss.Adam(p, lr=0.1),
    "AMSGrad": lambda p: schuss.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: schuss.AdamW(p, lr=schedules.Cosine(0.1, steps=9), clip_norm=1.0),
    "average": lambda p: schuss.Adam(p, average=0.9, clip_value=0.5),
    "corrected average": lambda p: schuss.SGD(p, average=0.9, average_bias_correction=True),
    "copies": lambda p: schuss.Adam(p, copies="float16", lr=0.1),
    "skipping": lambda p: schuss.Adam(p, nonfinite="skip"),
    "groups": lambda p: schuss.Adam(
        p,
        lr=schedules.Linear(0.1, 0.01, steps=5),
        groups=lambda name: {"lr": schedules.InverseSqrt(0.1)} if name.endswith("b") else None,
    ),
    "state in bfloat16": lambda p: schuss.Adam(p, state_dtype="bfloat16", seed=7),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_training_that_is_resumed_has_the_bits_of_one_that_was_not_stopped(
    kind: str, at: int, tmp_path: Path
) -> None:
    if kind == "state in bfloat16":
        pytest.importorskip("ml_dtypes")
    path = tmp_path / "checkpoint.safetensors"
    optimizer = OPTIMIZERS[kind](params())
    for t in range(1, 7):
        if t == at + 1:
            schuss.save(path, optimizer.params, optimizer)
        optimizer.step(grads(t))
        if t == 2 and kind == "skipping":
            optimizer.step(made(lambda shape: np.full(shape, np.nan, np.float32)))
    other = OPTIMIZERS[kind](made(lambda shape: np.full(shape, 7, np.float32)))
    other.step(grads(9))  # of which nothing must be left
    assert schuss.load(path, other.params, other) == {}
    assert other.steps == at
    for t in range(at + 1, 7):
        other.step(grads(t))
        if t == 2 and kind == "skipping":
            other.step(made(lambda shape: np.full(shape, np.nan, np.float32)))
    assert known(other) == known(optimizer)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_dtype_is_kept(dtype: str, tmp_path: Path) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    optimizer = schuss.Adam(params(dtype))
    optimizer.step(grads(1, dtype))
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    other = schuss.Adam(params(dtype))
    schuss.load(tmp_path / "c", other.params, other)
    assert known(other) == known(optimizer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("into", ["c", "fortran", "half reversed"])
def test_values_are_kept_whatever_the_memory_layouts(
    layout: str, into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schuss._safetensors._PIECE", 64)  # or all would be one
    values = np.random.default_rng(0).standard_normal((7, 5, 3))
    w = laid_out(values, layout)
    optimizer = schuss.Adam(w)
    optimizer.step(np.ones((7, 5, 3)))
    schuss.save(tmp_path / "c", w, optimizer)
    other = laid_out(np.zeros((7, 5, 3)), into)
    fresh = schuss.Adam(other)
    schuss.load(tmp_path / "c", other, fresh)
    np.testing.assert_array_equal(other, w)
    for name, state in fresh.state.items():
        np.testing.assert_array_equal(state, optimizer.state[name])
    read = safetensors_numpy.load_file(tmp_path / "c")
    np.testing.assert_array_equal(read["params"], w)


def test_what_waits_for_the_next_step_is_saved(tmp_path: Path) -> None:
    optimizer = schuss.Adam(params())
    for t in (1, 2):
        optimizer.accumulate(grads(t))
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    other = schuss.Adam(params())
    for t in (3, 4, 5):
        other.accumulate(grads(t))
    schuss.load(tmp_path / "c", other.params, other)
    for each in (optimizer, other):
        assert each.accumulated == 2
        each.accumulate(grads(6))
        each.step(scale=1 / 3)
    assert known(other) == known(optimizer)


def test_loading_drops_what_waited_where_nothing_did(tmp_path: Path) -> None:
    optimizer = schuss.Adam(params())
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    optimizer.accumulate(grads(1))
    schuss.load(tmp_path / "c", optimizer.params, optimizer)
    assert optimizer.accumulated == 0


SCHEDULES: list[Any] = [
    0.25,
    schedules.Constant(0.1),
    schedules.InverseTime(0.1, 0.3),
    schedules.Exponential(0.1, 0.9),
    schedules.InverseSqrt(0.1, 2.0),
    schedules.Staircase(0.1, every=3, factor=0.5),
    schedules.Manual({1: 0.1, 2.5: 0.01}),
    schedules.Linear(0.1, 0.01, steps=5),
    schedules.Polynomial(0.1, 0.01, steps=5, power=2.0),
    schedules.Cosine(0.1, steps=5),
    schedules.CosineRestarts(0.1, steps=2),
    schedules.OneCycle(0.1, steps=8),
    schedules.WarmUp(schedules.Cosine(0.1, steps=5), steps=2),
    schedules.chain([0.1, schedules.InverseSqrt(0.2), schedules.Constant(0.3)], [1, 3]),
    schedules.PerEpoch(schedules.chain([schedules.Exponential(0.1, 0.9), 0.2], [2]), steps=2),
    schedules.ReduceOnPlateau(0.1, patience=1, cooldown=1),
    schedules.WarmUp(schedules.ReduceOnPlateau(0.1, mode="max", patience=0), steps=2),
]


@pytest.mark.parametrize("lr", SCHEDULES, ids=lambda lr: repr(lr)[:30])
def test_a_schedule_is_kept_with_all_that_it_has_seen(lr: Any, tmp_path: Path) -> None:
    lr = deepcopy(lr)
    optimizer = schuss.SGD(np.ones(3), lr=lr)
    optimizer.step(np.ones(3))
    for cost in (3.0, 2.0, 4.0):
        schedules.feed([optimizer.lr], cost)
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    other = schuss.SGD(np.ones(3))
    schuss.load(tmp_path / "c", other.params, other)
    assert type(other.lr) is type(lr)
    assert repr(other.lr) == repr(optimizer.lr)
    for each in (optimizer, other):
        for cost in (5.0, 6.0, 7.0):
            schedules.feed([each.lr], cost)
            each.step(np.ones(3))
    assert known(other) == known(optimizer)


def test_every_schedule_is_among_those() -> None:
    kinds = {name for name in schedules.__all__ if isinstance(getattr(schedules, name), type)}
    assert kinds - {"Schedule"} == {type(lr).__name__ for lr in SCHEDULES if lr != 0.25}


def test_a_function_of_your_own_stays_where_the_checkpoint_is_loaded(tmp_path: Path) -> None:
    def lr(t: int) -> float:
        return 1 / t

    for saved in (lr, schedules.PerEpoch(lr, steps=2)):
        optimizer = schuss.SGD(np.ones(3), lr=saved)
        schuss.save(tmp_path / "c", optimizer.params, optimizer)
        other = schuss.SGD(np.ones(3), lr=lr)
        schuss.load(tmp_path / "c", other.params, other)
        assert other.lr is lr
        with pytest.raises(ValueError, match=r"^load: lr is 0.5, expected the function '.+' that"):
            schuss.load(tmp_path / "c", other.params, schuss.SGD(other.params, lr=0.5))


def test_a_schedule_that_changes_is_not_lost_in_a_function_of_your_own(tmp_path: Path) -> None:
    mixed = schedules.chain([lambda t: 0.1, schedules.ReduceOnPlateau(0.1)], [3])
    optimizer = schuss.SGD(np.ones(3), lr=mixed)
    with pytest.raises(TypeError, match=r"^save: lr is a Chain of a ReduceOnPlateau and of a func"):
        schuss.save(tmp_path / "c", optimizer.params, optimizer)
    assert os.listdir(tmp_path) == []


def test_what_else_is_to_be_kept_comes_back(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.MT19937(3))
    scaler = schuss.DynamicLossScale()
    extra: dict[str, Any] = {
        "epoch": 3,
        "note": "größer",
        "scale": scaler.state_dict(),
        "rng": rng.bit_generator.state,
        "rate": np.float64(0.1),
        "nothing": None,
    }
    arrays = {
        "flags": np.array([True, False]),
        "none": np.empty((0, 3)),
        "scalar": np.array(7, np.int8),
        "strided": np.arange(6, dtype=np.uint16)[::2],
    }
    extra |= {"list": list(arrays.values()), "transposed": np.arange(12.0).reshape(3, 4).T}
    schuss.save(tmp_path / "c", params(), extra=extra)
    expected = rng.random(5)
    kept = schuss.load(tmp_path / "c", params())
    rng.bit_generator.state = kept["rng"]
    np.testing.assert_array_equal(rng.random(5), expected)
    scaler.load_state_dict(kept["scale"])
    assert (kept["epoch"], kept["note"], kept["nothing"]) == (3, "größer", None)
    assert kept["rate"] == 0.1
    expected_arrays = [*arrays.values(), extra["transposed"]]
    for array, was in zip([*kept["list"], kept["transposed"]], expected_arrays, strict=True):
        assert (array.dtype, array.shape) == (was.dtype, was.shape)
        assert array.tobytes() == was.tobytes()


def test_an_optimizer_of_some_of_the_parameters_is_saved_with_all_of_them(tmp_path: Path) -> None:
    network = params()
    optimizer = schuss.Adam(network["layers"][1])
    optimizer.step(grads(1)["layers"][1])
    schuss.save(tmp_path / "c", network, optimizer)
    other = made(lambda shape: np.zeros(shape, np.float32))
    fresh = schuss.Adam(other["layers"][1])
    schuss.load(tmp_path / "c", other, fresh)
    assert bits(leaves(other)) == bits(leaves(network))
    assert known(fresh) == known(optimizer)


def test_parameters_alone_can_be_saved_and_loaded(tmp_path: Path) -> None:
    optimizer = schuss.Adam(params())
    frozen = params()
    for array in leaves(frozen):
        array.flags.writeable = False
    schuss.save(tmp_path / "alone", frozen)
    schuss.save(tmp_path / "both", optimizer.params, optimizer)
    for name in ("alone", "both"):
        into = made(lambda shape: np.zeros(shape, np.float32))
        schuss.load(tmp_path / name, into)
        assert bits(leaves(into)) == bits(leaves(frozen))


def test_a_read_only_array_may_be_the_one_that_was_saved(tmp_path: Path) -> None:
    def frozen(value: float) -> Any:
        array = np.full((3, 1 << 18), value).T  # read in several pieces
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


@pytest.mark.skipif(os.name != "posix", reason="other systems keep no such modes")
def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    schuss.save(tmp_path / "c", np.ones(3))
    (tmp_path / "c").chmod(0o600)
    schuss.save(tmp_path / "c", np.zeros(3))
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_other_programs_read_it_as_safetensors(tmp_path: Path) -> None:
    optimizer = schuss.Adam(params(), average=0.5)
    optimizer.step(grads(1))
    schuss.save(tmp_path / "c.safetensors", optimizer.params, optimizer)
    read = safetensors_numpy.load_file(tmp_path / "c.safetensors")
    expected = {
        "params/layers/0/W": optimizer.params["layers"][0]["W"],
        "params/scale": optimizer.params["scale"],
        "optimizer/m/layers/1/b": optimizer.state["m"]["layers"][1]["b"],
        "optimizer/average/scale": optimizer.average["scale"],
    }
    assert len(read) == 5 * 4
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
    with open(tmp_path / "c.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert (8 + length) % 64 == 0
    assert all(type(value) is str for value in header["__metadata__"].values())


# Mini-batches.


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("at", range(8))
def test_mini_batches_go_on_where_they_were(
    shuffle: bool, prefetch: int, at: int, tmp_path: Path
) -> None:
    def batches(seed: int) -> Any:
        return schuss.minibatches(
            np.arange(10), batch_size=3, rng=seed, shuffle=shuffle, prefetch=prefetch
        )

    def epochs(batches: Any) -> Iterator[Any]:
        while True:
            for batch in batches:
                yield batch.tolist()

    training = batches(0)
    stream = epochs(training)
    for _ in range(at):
        next(stream)
    schuss.save(tmp_path / "c", np.zeros(1), batches=training)
    resumed = batches(1)
    next(iter(resumed))
    schuss.load(tmp_path / "c", np.zeros(1), batches=resumed)
    schuss.save(tmp_path / "again", np.zeros(1), batches=resumed)
    again = batches(2)
    schuss.load(tmp_path / "again", np.zeros(1), batches=again)
    expected = [next(stream) for _ in range(9)]
    for other in (resumed, again):
        rest = epochs(other)
        assert [next(rest) for _ in range(9)] == expected


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_the_state_of_every_bit_generator_is_kept(kind: str, tmp_path: Path) -> None:
    def batches(seed: int) -> Any:
        rng = np.random.Generator(getattr(np.random, kind)(seed))
        return schuss.minibatches(np.arange(50), batch_size=50, rng=rng)

    one, other = batches(0), batches(1)
    list(one)
    schuss.save(tmp_path / "c", np.zeros(1), batches=one)
    schuss.load(tmp_path / "c", np.zeros(1), batches=other)
    assert [b.tolist() for b in other] == [b.tolist() for b in one]


class OwnPCG64(np.random.PCG64):
    """A bit generator of one's own, whose state is that of NumPy's."""


class Constant(np.random.BitGenerator):
    """One whose state nobody knows."""


def drawing(kind: Any) -> Any:
    """Return mini-batches with a generator that has half of a number left."""
    rng = np.random.Generator((kind if isinstance(kind, type) else getattr(np.random, kind))(0))
    rng.integers(9, dtype=np.uint32)
    return schuss.minibatches(np.arange(9), batch_size=3, rng=rng)


def test_the_state_of_ones_own_kind_of_a_bit_generator_is_kept(tmp_path: Path) -> None:
    one, other = drawing(OwnPCG64), drawing(OwnPCG64)
    list(one)
    schuss.save(tmp_path / "c", np.zeros(1), batches=one)
    schuss.load(tmp_path / "c", np.zeros(1), batches=other)
    assert [b.tolist() for b in other] == [b.tolist() for b in one]
    with pytest.raises(ValueError, match=r"\['generator'\] is the state of 'OwnPCG64', expected"):
        drawing("PCG64").load_state_dict(one.state_dict())


def test_a_state_that_nobody_could_check_is_not_saved(tmp_path: Path) -> None:
    batches = schuss.minibatches(np.arange(9), rng=np.random.Generator(Constant(0)))
    with pytest.raises(TypeError, match=r"rng is a Constant, whose state cannot be checked, exp"):
        schuss.save(tmp_path / "c", np.zeros(1), batches=batches)
    assert os.listdir(tmp_path) == []


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
for of_kind in STATES_OUT_OF_RANGE.keys() - {"MT19937"}:
    STATES_OUT_OF_RANGE[of_kind] = STATES_OUT_OF_RANGE[of_kind] | {
        "has_uint32": [-1, 2, 0.5, None],
        "uinteger": [-1, 2**32, 0.5, None],
    }


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, fields in STATES_OUT_OF_RANGE.items() for field in fields],
)
def test_a_state_that_a_bit_generator_cannot_have_is_refused(
    kind: str, field: str, tmp_path: Path
) -> None:
    def in_lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: in_lists(inner) for key, inner in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    batches = drawing(kind)
    state = in_lists(batches.state_dict())
    path, w = tmp_path / "c", np.zeros(1)
    schuss.save(path, w, batches=batches)
    content = path.read_bytes()
    *place, key = ("generator", *(int(k) if k.isdigit() else k for k in field.split("/")))
    for value in STATES_OUT_OF_RANGE[kind][field]:
        bad = deepcopy(state)
        at(bad, tuple(place))[key] = value
        with pytest.raises(
            (TypeError, ValueError), match=r"^MiniBatches\.load_state_dict: .*expec"
        ):
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
    held = iter(batches)
    next(held)
    assert batches.state_dict()["epoch"]["position"] == 1


def test_mini_batches_cut_otherwise_are_refused(tmp_path: Path) -> None:
    def batches(**changes: Any) -> Any:
        return schuss.minibatches(np.arange(10), **({"batch_size": 3, "rng": 0} | changes))

    schuss.save(tmp_path / "c", np.zeros(1), batches=batches())
    schuss.save(tmp_path / "none", np.zeros(1))
    w = np.ones(1)
    rng = np.random.Generator(np.random.MT19937(0))
    for other, words in [
        (schuss.minibatches(np.arange(9), batch_size=3), "['examples'] is 10, expected 9"),
        (batches(batch_size=4), "['batch_size'] is 3, expected 4"),
        (batches(shuffle=False), "['shuffle'] is True, expected False"),
        (batches(drop_last=True), "['drop_last'] is False, expected True"),
        (batches(rng=rng), "['generator'] is the state of 'PCG64', expected that of 'MT19937'"),
    ]:
        before = other.state_dict()
        with pytest.raises(ValueError, match=r"^load: '.*': batches\[") as refused:
            schuss.load(tmp_path / "c", w, batches=other)
        assert words in str(refused.value)
        np.testing.assert_equal(other.state_dict(), before)
        assert w == 1
    with pytest.raises(ValueError, match="holds no mini-batches, expected to find them"):
        schuss.load(tmp_path / "none", w, batches=batches())
    assert w == 1


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
        (
            ("generator", "bit_generator"),
            "PCG32",
            "['generator'] is the state of 'PCG32', expected",
        ),
        (("more",), 1, "has the keys"),
    ],
)
def test_a_state_of_mini_batches_that_makes_no_sense_is_refused(
    path: tuple[str, ...], value: Any, words: str
) -> None:
    batches = schuss.minibatches(np.arange(10), batch_size=3, rng=0)
    held = iter(batches)
    next(held)
    state = batches.state_dict()
    inner = bad = deepcopy(state)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises((TypeError, ValueError)) as refused:
        batches.load_state_dict(bad)
    assert str(refused.value).startswith("MiniBatches.load_state_dict: state_dict")
    assert words in str(refused.value)
    assert batches.state_dict() == state


# What is no whole checkpoint of this training is refused, and nothing is changed.


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Any, Any]:
    """Return a checkpoint, and what it is to be loaded into."""
    w = np.arange(3.0)
    optimizer = schuss.Momentum(w, lr=schedules.Linear(0.1, 0.2, steps=3))
    optimizer.step(np.ones(3))
    batches = schuss.minibatches(np.arange(10), rng=0)
    schuss.save(tmp_path / "c", w, optimizer, batches=batches)
    optimizer.step(np.ones(3))
    list(batches)
    return tmp_path / "c", optimizer, batches


@contextmanager
def refused(optimizer: Any, batches: Any = None) -> Iterator[pytest.ExceptionInfo[ValueError]]:
    """Expect a ValueError of `load`, and nothing changed."""
    before, drawn = known(optimizer), batches and batches.state_dict()
    with pytest.raises(ValueError, match=r"^load: ") as caught:
        yield caught
    assert known(optimizer) == before
    assert (batches and batches.state_dict()) == drawn


def test_a_file_cut_short_anywhere_is_refused(small: tuple[Path, Any, Any]) -> None:
    path, optimizer, batches = small
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with refused(optimizer, batches) as caught:
            schuss.load(path, optimizer.params, optimizer, batches=batches)
        assert "cut short" in str(caught.value)
    path.write_bytes(whole + b"\0")
    with refused(optimizer) as caught:
        schuss.load(path, optimizer.params, optimizer)
    assert f"is too long: it has {len(whole) + 1} bytes, expected {len(whole)}" in str(caught.value)


def test_a_file_with_any_byte_altered_is_refused(small: tuple[Path, Any, Any]) -> None:
    path, optimizer, batches = small
    whole = path.read_bytes()
    rng = random.Random(0)
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with refused(optimizer, batches):
            schuss.load(path, optimizer.params, optimizer, batches=batches)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the file anew, whole and with its digest, with other metadata."""
    from schuss import _safetensors

    metadata = dict(safetensors_metadata(path))
    del metadata["sha256"]
    arrays = safetensors_numpy.load_file(path)
    change(metadata)
    _safetensors.write("test", str(path), arrays, metadata)


def safetensors_metadata(path: Path) -> dict[str, str]:
    with pytest.importorskip("safetensors").safe_open(path, "numpy") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version="2"), "is a checkpoint of version 2, expected 1"),
        (lambda m: m.pop("version"), "is a checkpoint of version None, expected 1"),
        (lambda m: m.pop("format"), "is no checkpoint of schuss"),
        (lambda m: m.clear(), "is no checkpoint of schuss"),
        (lambda m: m.update(settings="{"), "has settings that schuss.save does not write"),
        (lambda m: m.update(settings="[]"), "has settings that schuss.save does not write"),
        (lambda m: m.update(settings="[" * 99999), "has settings that schuss.save does not write"),
        (lambda m: m.pop("settings"), "has settings that schuss.save does not write"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused(
    change: Any, words: str, small: tuple[Path, Any, Any]
) -> None:
    path, optimizer, batches = small
    rewritten(path, change)
    with refused(optimizer, batches) as caught:
        schuss.load(path, optimizer.params, optimizer, batches=batches)
    assert words in str(caught.value)
    assert repr(str(path)) in str(caught.value)


@pytest.mark.parametrize("key", ["optimizer", "batches", "training", "extra"])
def test_parts_that_nobody_asks_for_are_what_they_should_be_too(
    key: str, small: tuple[Path, Any, Any]
) -> None:
    path, optimizer, batches = small
    path.write_bytes(with_settings(path.read_bytes(), lambda s: s.update({key: 7})))
    with refused(optimizer, batches) as caught:
        schuss.load(path, optimizer.params)
    assert f"settings['{key}'] is a int, expected a mapping" in str(caught.value)


@pytest.mark.parametrize("name", ["Schedule", "chain", "np", "__builtins__"])
def test_nothing_is_made_but_schedules(name: str, small: tuple[Path, Any, Any]) -> None:
    def change(metadata: dict[str, Any]) -> None:
        assert '"Linear"' in metadata["settings"]
        metadata["settings"] = metadata["settings"].replace('"Linear"', f'"{name}"')

    path, optimizer, batches = small
    rewritten(path, change)
    with refused(optimizer, batches) as caught:
        schuss.load(path, optimizer.params, optimizer)
    assert f"['lr'] is no schedule (there is no {name!r}), expected one" in str(caught.value)


def test_a_file_of_other_programs_is_refused(tmp_path: Path) -> None:
    optimizer = schuss.SGD(np.zeros(3))
    safetensors_numpy.save_file({"params": np.ones(3)}, tmp_path / "plain.safetensors")
    np.save(tmp_path / "array.npy", np.ones(3))
    for name, words in [
        ("plain.safetensors", "is no checkpoint"),
        ("array.npy", "no safetensors file"),
    ]:
        with refused(optimizer) as caught:
            schuss.load(tmp_path / name, optimizer.params)
        assert words in str(caught.value)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    optimizer = schuss.Adam(params())
    path = tmp_path / "c"
    schuss.save(path, optimizer.params, optimizer)
    schuss.save(tmp_path / "alone", optimizer.params)
    rest = {"layers": TREE["layers"][:1], "scale": ()}
    wide = {**TREE, "scale": (1,)}
    zeros: Callable[[Any], Any] = lambda shape: np.zeros(shape, np.float32)  # noqa: E731
    frozen = params()
    frozen["scale"] += 1
    frozen["scale"].flags.writeable = False
    for other, words in [
        (schuss.Adam(made(zeros, rest)), "holds params/layers/1/W, expected nothing of that name"),
        (
            schuss.Adam(made(zeros, {**TREE, "more": 1})),
            "holds no params/more, expected to find it",
        ),
        (schuss.Adam(made(zeros, wide)), "holds params/scale of shape (), expected (1,)"),
        (schuss.Adam(params(np.float64)), "holds params/layers/0/W in F32, expected F64"),
        (schuss.AdamW(params()), "c': optimizer['optimizer'] is 'Adam', expected 'AdamW'"),
        (schuss.SGD(params()), "optimizer['optimizer'] is 'Adam', expected 'SGD'"),
        (
            schuss.Adam(params(), groups=lambda name: {"lr": 0.1} if "b" in name else None),
            "c': optimizer['groups'] is",
        ),
        (schuss.Adam(params(), state_dtype="bfloat16"), "holds optimizer/m/layers/0/W in F32"),
    ]:
        with refused(other) as caught:
            schuss.load(path, other.params, other)
        assert words in str(caught.value)
    with refused(optimizer) as caught:
        schuss.load(tmp_path / "alone", optimizer.params, optimizer)
    assert "holds no optimizer, expected to find one" in str(caught.value)
    with refused(optimizer) as caught:
        schuss.load(path, frozen)
    assert "params/scale is read-only, expected a writeable array, or" in str(caught.value)
    with refused(optimizer) as caught:
        schuss.load(path, params(), optimizer)
    assert "optimizer.params are other arrays" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((7, np.ones(2)), TypeError, "path is a int, expected a str or a path"),
        (("c", 1.5), TypeError, "params is a float, expected an array"),
        (("c", np.ones(2, complex)), TypeError, "params has dtype complex128, expected"),
        (("c", np.ones(2, ">f4")), TypeError, "params has dtype >f4, expected"),
        (("c", np.ones(2), 7), TypeError, "optimizer is a int, expected an optimizer of schuss"),
        (("c", np.ones(2), None, 7), TypeError, "batches is a int, expected mini-batches"),
        (("c", np.ones(2), None, None, [1]), TypeError, "extra is a list, expected a mapping"),
        (("c", np.ones(2), None, None, {"a": print}), TypeError, "extra holds a builtin_function"),
        (("c", np.ones(2), None, None, {"a": {1}}), TypeError, "extra holds a set"),
        (
            ("c", np.ones(2), None, None, {1: 2}),
            TypeError,
            "extra holds the key 1, which is no str",
        ),
        (("c", np.ones(2), None, None, {"a": [{"schuss.same": 1}]}), TypeError, "uses itself"),
        (("c", np.ones(2), None, None, {"a": np.longdouble(1)}), TypeError, "holds a longdouble"),
        (("c", np.ones(2), None, None, {"a": np.ones(2, ">f8")}), TypeError, "an array of >f8"),
        (("c", np.ones(2), None, None, {"a": np.ma.ones(2)}), TypeError, "holds a MaskedArray"),
        (("c", {"a/b": np.ones(2), "a": {"b": np.ones(2)}}), ValueError, "of the name 'a/b'"),
    ],
)
def test_what_cannot_be_saved_is_refused(
    arguments: Any, error: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").write_text("old")
    names = ("path", "params", "optimizer", "batches", "extra")
    with pytest.raises(error, match=r"^save: ") as caught:
        schuss.save(**dict(zip(names, arguments, strict=False)))
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["c"]
    assert (tmp_path / "c").read_text() == "old"


def test_saving_and_loading_while_another_thread_steps_are_refused(tmp_path: Path) -> None:
    optimizer = schuss.SGD(np.ones(3))
    schuss.save(tmp_path / "c", optimizer.params, optimizer)
    content = (tmp_path / "c").read_bytes()
    optimizer.step(np.ones(3))
    before = known(optimizer)
    with busy(optimizer, "step"):
        for call in (schuss.save, schuss.load):
            with pytest.raises(RuntimeError, match=r"^SGD\.\w+: another call"):
                call(tmp_path / "c", optimizer.params, optimizer)
    assert known(optimizer) == before
    assert (tmp_path / "c").read_bytes() == content
    assert os.listdir(tmp_path) == ["c"]


# Whatever happens while it is saved, there is a whole checkpoint.

SAVE_FOREVER = """
import sys, numpy as np, schuss
params = [np.zeros(200_000), np.zeros(70_000, np.float32)]
optimizer = schuss.Momentum(params, lr=1.0, beta=0.0)
grads = [np.full_like(p, -1) for p in params]
if len(sys.argv) > 2:
    schuss.load(sys.argv[1], params, optimizer)
print("ready", flush=True)
while True:
    optimizer.step(grads)
    schuss.save(sys.argv[1], params, optimizer, extra={"steps": optimizer.steps})
    print(optimizer.steps, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_process_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, program = tmp_path / "c.safetensors", tmp_path / "forever.py"
    program.write_text(SAVE_FOREVER)
    params: list[Any] = [np.zeros(200_000), np.zeros(70_000, np.float32)]
    optimizer = schuss.Momentum(params, lr=1.0, beta=0.0)
    rng, reached, took = random.Random(0), 0, 0.0
    for _ in range(100):
        command = [sys.executable, str(program), str(path), *["go on"] * path.exists()]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for _ in range(rng.randrange(3)):
            begun = time.perf_counter()
            reached = int(child.stdout.readline())  # what was saved is never lost again
            took = time.perf_counter() - begun
        time.sleep(rng.random() * took)  # somewhere in the next save, however slow the disk is
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        if reached == 0 and not path.exists():
            continue
        kept = schuss.load(path, params, optimizer)
        # Each element counts the steps; so they are all of one moment.
        assert kept["steps"] == optimizer.steps >= reached
        assert all(np.all(array == optimizer.steps) for array in params)
        assert all(np.all(array == -1) for array in leaves(optimizer.state))
        reached = optimizer.steps
    assert reached >= 50  # children told of more saves
    schuss.save(path, params, optimizer)
    assert sorted(os.listdir(tmp_path)) == [path.name, program.name]


class Timeout(Exception):
    """What the handler of a signal may raise."""


@pytest.mark.skipif(os.name != "posix", reason="there is no such timer")
@pytest.mark.parametrize(
    ("number", "raised"), [("SIGINT", KeyboardInterrupt), ("SIGUSR1", Timeout)]
)
def test_a_signal_finds_all_or_nothing_done(
    number: str, raised: Any, tmp_path: Path, interrupt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_is_up(*_: object) -> None:
        raise Timeout

    signal.signal(signal.SIGUSR1, time_is_up)
    # What is pressed again lands in the handling of the first too, where Python drops it.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    params: list[Any] = [np.zeros(1_000_000), np.zeros((300, 300), order="F")]
    optimizer = schuss.Momentum(params, lr=1.0, beta=0.0)
    grads = [np.full_like(array, -1) for array in params]
    optimizer.step(grads)
    took = dict.fromkeys((schuss.save, schuss.load), 0.02)

    def make(call: Any) -> None:
        begun = time.perf_counter()
        call(tmp_path / "c", params, optimizer)
        took[call] = time.perf_counter() - begun

    make(schuss.save)
    make(schuss.load)

    def moment() -> set[float]:
        return {optimizer.steps, *(float(v) for array in params for v in np.unique(array))}

    rng, interrupted = random.Random(0), 0
    for _ in range(1000):  # at most: how many are met depends on the machine
        if interrupted == 80:
            break
        optimizer.step(grads)
        now = optimizer.steps
        assert moment() == {now}
        saving = rng.random() < 0.5
        call = schuss.save if saving else schuss.load
        # Others come once, unless someone means it.
        pauses = rng.choice(([], [2e-5] * 9, [5e-4] * 9)) if number == "SIGINT" else []
        # At the end, what was loaded takes the place of what was there.
        part = rng.choice((rng.random(), rng.uniform(0.7, 1)))
        interrupt(1e-4 + part * took[call], *pauses, number=signal.Signals[number])
        try:
            make(call)
        except raised:
            interrupted += 1
        interrupt(0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        after = moment()
        assert len(after) == 1
        assert not saving or after == {now}
    assert interrupted == 80
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    schuss.save(tmp_path / "c", params, optimizer)
    assert os.listdir(tmp_path) == ["c"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("to mount a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def check_that_the_old_one_stays(path: Path) -> None:
    w = np.arange(1000.0)
    optimizer = schuss.SGD(w)
    schuss.save(path, w, optimizer)
    before = path.read_bytes()
    large = np.ones(1_000_000)
    with pytest.raises(OSError, match=r"No space left|File too large"):
        schuss.save(path, large, schuss.SGD(large))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    w[...] = 0
    schuss.load(path, w, optimizer)
    np.testing.assert_array_equal(w, np.arange(1000.0))


def test_a_full_disk_is_an_error_and_the_old_checkpoint_stays(full_disk: Path) -> None:
    check_that_the_old_one_stays(full_disk / "c")


@pytest.mark.skipif(os.name != "posix", reason="there are no limits of files")
def test_a_file_that_may_not_grow_is_an_error_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        check_that_the_old_one_stays(tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failure_at_the_last_moment_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schuss.save(tmp_path / "c", np.ones(3))
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        schuss.save(tmp_path / "c", np.zeros(3))
    assert os.listdir(tmp_path) == ["c"]
    w = np.zeros(3)
    schuss.load(tmp_path / "c", w)
    assert w.tolist() == [1, 1, 1]


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced elsewhere")
def test_bytes_are_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def told(*arguments: Any, name: str = name, real: Any = real) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            calls.append(f"{name} folder" if folder else name)
            return real(*arguments)

        monkeypatch.setattr(os, name, told)
    schuss.save(tmp_path / "c", np.ones(3))
    assert calls == ["fsync", "replace", "fsync folder"]


def test_a_checkpoint_has_the_mode_and_the_place_that_a_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "there").mkdir()
    os.symlink("there/c", tmp_path / "link")
    schuss.save(tmp_path / "link", np.ones(3))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/c").stat().st_mode == (tmp_path / "plain").stat().st_mode
    schuss.save(os.path.join(tmp_path, "\udcff"), np.ones(3))  # bytes that are no UTF-8
    with pytest.raises(FileNotFoundError):
        schuss.save(tmp_path / "nowhere" / "c", np.ones(3))
    with pytest.raises(FileNotFoundError):
        schuss.load(tmp_path / "none", np.ones(3))


def test_savers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    def save_often(value: float) -> None:
        w = np.full(300_000, value)
        for _ in range(15):
            schuss.save(tmp_path / "c", w)

    with ThreadPoolExecutor(3) as pool:
        savers = [pool.submit(save_often, float(i)) for i in range(3)]
        w = np.zeros(300_000)
        while not all(saver.done() for saver in savers):
            if (tmp_path / "c").exists():
                schuss.load(tmp_path / "c", w)
                assert np.all(w == w[0])
        for saver in savers:
            saver.result()
    assert os.listdir(tmp_path) == ["c"]


# Files that are not a checkpoint's, and folders that others write to.


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    # By its name alone: the path may be longer than that of a socket can be.
    with socket.socket(socket.AF_UNIX) as made, chdir(path.parent):
        made.bind(path.name)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


OTHERS = {"FIFO": a_fifo, "socket": a_socket, "folder": a_folder, "device": a_device}


@posix
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_refused_and_stays(
    kind: str, linked: bool, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    OTHERS[kind](tmp_path / "it" if linked else path)
    if linked:
        path.symlink_to("it")
    before, names = path.lstat(), os.listdir(tmp_path)
    optimizer = schuss.SGD({"w": np.zeros(5), "b": np.zeros(1)}, lr=0.5)

    def fit() -> None:
        schuss.fit(loss_and_grad, optimizer.params, optimizer, X, Y, checkpoint=path)

    calls: dict[str, Callable[[], object]] = {
        "save": lambda: schuss.save(path, optimizer.params, optimizer),
        "load": lambda: schuss.load(path, optimizer.params, optimizer),
        "fit": fit,
    }
    for name, call in calls.items():
        error = IsADirectoryError if kind == "folder" else ValueError
        words = f"^{name}: '.*/c' is a {kind}, expected a regular file$"
        with pytest.raises(error, match=words):
            call()
        assert (path.lstat(), os.listdir(tmp_path)) == (before, names)
        assert (optimizer.steps, optimizer.lr) == (0, 0.5)


class OfBytes:
    def __fspath__(self) -> bytes:
        return b"c"


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("", ValueError, "is '', expected the name of a file"),
        ("c/", ValueError, "is 'c/', expected the name of a file"),
        ("a\0b", ValueError, r"is 'a\x00b', expected the name of a file"),
        ("\ud800", ValueError, r"is '\ud800', expected the name of a file"),
        (OfBytes(), TypeError, "is a OfBytes of bytes, expected one of str"),
        (b"c", TypeError, "is a bytes, expected a str or a path"),
    ],
)
def test_a_path_that_names_no_file_is_refused(
    path: Any, error: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = schuss.SGD({"w": np.zeros(5), "b": np.zeros(1)})

    def fit() -> None:
        schuss.fit(loss_and_grad, optimizer.params, optimizer, X, Y, checkpoint=path)

    calls: dict[str, Callable[[], object]] = {
        "save: path": lambda: schuss.save(path, optimizer.params),
        "load: path": lambda: schuss.load(path, optimizer.params),
        "fit: checkpoint": fit,
    }
    for name, call in calls.items():
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(f"{name} {words}")
    assert (os.listdir(tmp_path), optimizer.steps) == ([], 0)


def test_a_name_as_long_as_may_be_is_saved_and_a_longer_one_is_an_error(tmp_path: Path) -> None:
    schuss.save(tmp_path / ("c" * 255), np.ones(3))
    schuss.load(tmp_path / ("c" * 255), w := np.zeros(3))
    assert w.all()
    with pytest.raises(OSError, match="too long"):
        schuss.save(tmp_path / ("c" * 256), np.ones(3))
    assert os.listdir(tmp_path) == ["c" * 255]


def left_by(path: Path) -> str:
    """Return how the names begin of what a save to the path may have left behind."""
    return f".schuss-{sha256(path.name.encode()).hexdigest()[:16]}-"


@posix
def test_what_others_call_as_we_call_ours_stays_and_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    theirs = [f"{left_by(path)}{kind}.tmp" for kind in [*OTHERS, "link", "dangling"]]
    for name, make in zip(theirs, OTHERS.values(), strict=False):
        make(tmp_path / name)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / theirs[-2]).symlink_to("precious")
    (tmp_path / theirs[-1]).symlink_to("nowhere")
    if os.geteuid() == 0:
        theirs.append(f"{left_by(path)}of another.tmp")
        (tmp_path / theirs[-1]).write_text("")
        os.chown(tmp_path / theirs[-1], 1234, 1234)
    (tmp_path / f"{left_by(path)}ours.tmp").write_text("left behind")
    opened: list[str] = []
    real = os.open

    def told(name: Any, *arguments: Any, **options: Any) -> int:
        opened.append(str(name))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", told)
    schuss.save(path, np.ones(3))
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, "c", "precious"])
    assert not [name for name in opened if os.path.basename(name) in theirs]
    assert (tmp_path / "precious").read_text() == "precious"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@posix
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o604, 0o444, 0o666, 0o200, 0o777])
@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
def test_a_file_is_private_until_it_has_the_mode_of_the_one_before(
    mode: int | None, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    seen: set[int] = set()
    if mode is not None:
        path.write_text("old")
        path.chmod(mode)

    def look(name: str) -> None:
        real = getattr(os, name)

        def looks(*arguments: Any, **options: Any) -> Any:
            for each in os.scandir(tmp_path):
                found = stat.S_IMODE(each.stat(follow_symlinks=False).st_mode)
                if each.name != "c":
                    seen.add(found)
                elif mode is not None:
                    assert found == mode
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, looks)

    before = os.umask(umask)
    try:
        for name in ("open", "fsync", "fchmod", "unlink", "lstat", "stat"):
            look(name)
        monkeypatch.setattr(os, "umask", None)  # which is the whole process's
        schuss.save(path, np.ones(3))
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert seen == {0o600}
    assert mode_of(path) == (0o666 & ~umask if mode is None else mode)
    assert os.listdir(tmp_path) == ["c"]


@posix
def test_where_no_file_can_be_without_a_name_a_new_one_has_the_usual_mode_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    (tmp_path / "plain").write_text("")
    schuss.save(tmp_path / "c", np.ones(3))
    assert mode_of(tmp_path / "c") == mode_of(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path)) == ["c", "plain"]


@posix
def test_file_systems_without_locks_or_syncs_that_write_in_parts_have_checkpoints_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    class InParts(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:700])

    def fails(number: int) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    def in_parts(descriptor: int, memory: list[memoryview], start: int) -> int:
        return os.readv(descriptor, [memory[0][:700]]) if os.lseek(descriptor, start, 0) >= 0 else 0

    values = np.arange(1000.0)
    monkeypatch.setattr(_files, "FileIO", InParts)
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    monkeypatch.setattr(os, "preadv", in_parts, raising=False)
    schuss.save(tmp_path / "c", values)
    schuss.load(tmp_path / "c", w := np.zeros(1000))
    np.testing.assert_array_equal(w, values)


@posix
def test_a_file_that_another_saver_takes_for_left_behind_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock, fsync = fcntl.flock, os.fsync
    taken: list[str] = []

    def taken_once(file: Any, how: int) -> None:
        if not taken:
            taken.append(file.name)
            raise BlockingIOError
        flock(file, how)

    def removed_by_the_other(descriptor: int) -> None:
        if os.path.exists(taken[0]):
            os.unlink(taken[0])
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", taken_once)
    monkeypatch.setattr(os, "fsync", removed_by_the_other)
    schuss.save(tmp_path / "c", np.ones(3))
    assert (len(taken), os.listdir(tmp_path)) == (1, ["c"])


@posix
def test_another_hard_link_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    schuss.save(tmp_path / "c", np.ones(3))
    os.link(tmp_path / "c", tmp_path / "kept")
    schuss.save(tmp_path / "c", np.full(3, 2.0))
    for name, value in [("c", 2.0), ("kept", 1.0)]:
        schuss.load(tmp_path / name, w := np.zeros(3))
        assert w.tolist() == [value] * 3


root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root gives files to others"
)


@root
@pytest.mark.parametrize(
    ("may", "mode", "expected"),
    [
        ("both", 0o640, 0o640),
        ("group", 0o664, 0o664),
        ("group", 0o460, 0o440),
        ("group", 0o006, 0o000),
        ("none", 0o640, 0o600),
        ("none", 0o664, 0o644),
        ("none", 0o604, 0o600),
        ("none", 0o266, 0o222),
    ],
)
def test_a_file_keeps_its_owner_or_is_open_to_fewer(
    may: str, mode: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "c", os.fchown
    path.write_text("old")
    os.chown(path, 1234, 2345)
    path.chmod(mode)

    def fchown(descriptor: int, owner: int, group: int) -> None:
        if may == "none" or (may == "group" and owner != -1):
            raise PermissionError(1, "Operation not permitted")
        real(descriptor, owner, group)

    monkeypatch.setattr(os, "fchown", fchown)
    schuss.save(path, np.ones(3))
    owner, group = {"both": (1234, 2345), "group": (0, 2345), "none": (0, 0)}[may]
    assert (path.stat().st_uid, path.stat().st_gid) == (owner, group)
    assert mode_of(path) == expected


ACL = "system.posix_acl_access"


def an_acl(group: int, reader: int, mask: int) -> bytes:
    """Return an ACL by which one more user, 1234, may do something."""
    entries = [(1, 6, -1), (2, reader, 1234), (4, group, -1), (16, mask, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def acl_of(path: Path) -> bytes | None:
    return os.getxattr(path, ACL) if ACL in os.listxattr(path) else None


@pytest.fixture
def with_acls(tmp_path: Path) -> Path:
    """Return a folder in which files may have ACLs."""
    try:
        (tmp_path / "try").write_text("")
        os.setxattr(tmp_path / "try", ACL, an_acl(0, 4, 4))
    except (AttributeError, OSError):
        pytest.skip("files have no POSIX ACLs here")
    (tmp_path / "try").unlink()
    return tmp_path


def test_a_file_keeps_its_acl(with_acls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_acls / "c"
    path.write_text("old")
    os.setxattr(path, ACL, an_acl(0, 4, 6))
    before = acl_of(path)
    schuss.save(path, np.ones(3))
    assert (acl_of(path), mode_of(path)) == (before, 0o660)

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    # A mode says what an ACL allows at most: without it, the group could do what it could not.
    monkeypatch.setattr(os, "setxattr", refused)
    schuss.save(path, np.ones(3))
    assert (acl_of(path), mode_of(path)) == (None, 0o600)


def test_the_acl_that_a_folder_gives_to_new_files_is_for_new_files(with_acls: Path) -> None:
    (with_acls / "plain").write_text("old")
    (with_acls / "plain").chmod(0o640)
    os.setxattr(with_acls, "system.posix_acl_default", an_acl(0, 4, 6))
    (with_acls / "new").write_text("")
    schuss.save(with_acls / "plain", np.ones(3))
    assert (acl_of(with_acls / "plain"), mode_of(with_acls / "plain")) == (None, 0o640)
    schuss.save(with_acls / "c", np.ones(3))
    assert acl_of(with_acls / "c") == acl_of(with_acls / "new")
    assert mode_of(with_acls / "c") == mode_of(with_acls / "new")


# Signals, wherever they land.


class Alarm:
    """Sends a signal at the n-th line of these modules; its handler raises a TimeoutError."""

    files = frozenset(m.__file__ for m in (_files, _interrupts, _safetensors, checkpoints))

    def __init__(self, n: int) -> None:
        self.n, self.seen, self.raised = n, 0, 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event in ("line", "return"):
            self.seen += 1
            if self.seen == self.n:
                signal.raise_signal(signal.SIGUSR1)
        return self

    def handle(self, *_: object) -> None:
        self.raised += 1
        raise TimeoutError("too long")

    def meets(self, call: Callable[[], object]) -> bool:
        """Whether it did; it must have been told then, and no descriptor left open."""
        descriptors = open_descriptors()
        handler = signal.signal(signal.SIGUSR1, self.handle)
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        was, told = sys.gettrace(), 0
        sys.settrace(self)
        try:
            call()
        except TimeoutError:
            told = 1
        finally:
            sys.settrace(was)
            assert handlers == [signal.getsignal(number) for number in signal.valid_signals()]
            signal.signal(signal.SIGUSR1, handler)
        assert told == self.raised
        assert open_descriptors() == descriptors
        return self.raised > 0


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if LINUX else 0


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_timeout_at_any_line_of_save_is_raised_and_finds_all_or_nothing_saved(
    there: bool, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    old, new = (schuss.SGD(np.full(3, value)) for value in (1.0, 2.0))
    schuss.save(path, new.params, new)
    allowed = [None, path.read_bytes()]
    path.unlink()
    if there:
        schuss.save(path, old.params, old)
        path.chmod(0o640)
        allowed[0] = path.read_bytes()
    seen = []
    for n in count(1):
        met = Alarm(n).meets(lambda: schuss.save(path, new.params, new))
        assert os.listdir(tmp_path) in ([], ["c"])
        seen.append(path.read_bytes() if path.exists() else None)
        assert seen[-1] in allowed
        if there:
            assert mode_of(path) == 0o640
        if not met:
            break
        if seen[-1] != allowed[0]:
            if there:
                path.write_bytes(allowed[0] or b"")
            else:
                path.unlink()
    assert len(seen) > 100
    assert seen[0] == allowed[0]
    assert seen[-1] == seen[-2] == allowed[1]


@posix
@pytest.mark.parametrize("alone", [False, True])
def test_a_timeout_at_any_line_of_load_is_raised_and_finds_all_or_nothing_loaded(
    alone: bool, tmp_path: Path
) -> None:
    def fresh() -> Any:
        optimizer = schuss.Adam({"W": np.ones(3), "b": np.ones((2, 2)).T}, lr=0.5)
        optimizer.step({"W": np.ones(3), "b": np.ones((2, 2))})
        return optimizer

    saved, seen = fresh(), []
    saved.lr = 0.25
    saved.step({"W": np.ones(3), "b": np.ones((2, 2))})
    schuss.save(tmp_path / "c", saved.params, saved)
    expected = fresh()
    schuss.load(tmp_path / "c", expected.params, None if alone else expected)
    allowed = [known(fresh()), known(expected)]
    assert alone or allowed[1] == known(saved)
    for n in count(1):
        optimizer = fresh()
        load = partial(schuss.load, tmp_path / "c", optimizer.params, None if alone else optimizer)
        met = Alarm(n).meets(load)
        seen.append(allowed.index(known(optimizer)))
        if not met:
            break
    assert len(seen) > 100
    assert (seen[0], seen[-1]) == (0, 1)
    assert seen == sorted(seen)


@posix
def test_a_timeout_while_fit_looks_for_its_checkpoint_does_not_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "c", os.stat
    trained("plain", 5, KeyboardInterrupt, checkpoint=path)
    before = path.read_bytes()

    looks = count()

    def slow(*arguments: Any, **options: Any) -> os.stat_result:
        if arguments[0] == str(path) and next(looks) == 0:
            signal.raise_signal(signal.SIGUSR1)
        return real(*arguments, **options)

    def time_is_up(*_: object) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGUSR1, time_is_up)
    monkeypatch.setattr(os, "stat", slow)
    with pytest.raises(TimeoutError):
        trained("plain", checkpoint=path)
    monkeypatch.undo()
    signal.signal(signal.SIGUSR1, handler)
    assert path.read_bytes() == before


@posix
def test_every_signal_that_came_is_handled_once_all_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
    handled: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        handled.append(number)
        raise TimeoutError(number)

    real = os.replace

    def press(*arguments: Any) -> None:
        for number in numbers:
            signal.raise_signal(number)
        assert handled == []
        real(*arguments)

    before = [signal.signal(number, note) for number in numbers]
    monkeypatch.setattr(os, "replace", press)
    with pytest.raises(TimeoutError):
        schuss.save(tmp_path / "c", np.ones(3))
    for number, handler in zip(numbers, before, strict=True):
        assert signal.signal(number, handler) is note
    assert sorted(handled) == sorted(numbers)
    schuss.load(tmp_path / "c", w := np.zeros(3))
    assert w.all()


# What is loaded is what was verified.


@pytest.mark.parametrize("piece", [64, 1 << 22])
@pytest.mark.parametrize("how", ["overwritten", "cut short", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_loaded_as_it_was_or_not_at_all(
    how: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "c", _safetensors._read_at
    monkeypatch.setattr(_safetensors, "_PIECE", piece)
    saved = schuss.Momentum({"a": np.arange(50.0), "b": np.arange(30.0)})
    saved.step({"a": np.ones(50), "b": np.ones(30)})
    schuss.save(path, saved.params, saved)
    good = path.read_bytes()
    outcomes = set()
    for n in count():
        path.write_bytes(good)
        reads = 0

        def read_at(*arguments: Any) -> int:
            nonlocal reads
            if reads == n:  # noqa: B023
                if how == "overwritten":
                    with open(path, "r+b") as file:
                        file.seek(-640, os.SEEK_END)
                        file.write(bytes(640))
                elif how == "cut short":
                    os.truncate(path, len(good) - 24)
                else:
                    schuss.save(tmp_path / "other", {"a": np.ones(50), "b": np.ones(30)})
                    os.replace(tmp_path / "other", path)
            reads += 1
            return real(*arguments)

        monkeypatch.setattr(_safetensors, "_read_at", read_at)
        optimizer = schuss.Momentum({"a": np.zeros(50), "b": np.zeros(30)})
        before = known(optimizer)
        try:
            schuss.load(path, optimizer.params, optimizer)
            outcomes.add("loaded")
            assert known(optimizer) == known(saved)
        except ValueError:
            outcomes.add("refused")
            assert known(optimizer) == before
        if reads <= n:
            break
    assert outcomes == ({"loaded"} if how == "replaced" else {"loaded", "refused"})


# A header's numbers are bounded before anything is done with them.


def with_header(path: Path, text: str, size: int = 0) -> None:
    header = text.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)


def entry(dtype: str = '"U8"', shape: str = "[0]", offsets: str = "[0,0]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def an_a(**entries: str) -> str:
    return f'"a":{entry(**entries)}'


OURS = '"__metadata__":{"format":"schuss","version":"1","sha256":"%s"}' % ("0" * 64)
NINES = "9" * 4300


@pytest.mark.parametrize(
    "tensors",
    [
        an_a(shape="[" + ",".join([NINES] * 900) + "]"),
        an_a(shape=f"[{NINES}9]", offsets=f"[0,{NINES}9]"),
        an_a(shape=f"[{2**63}, 0]"),
        an_a(shape=f"[{2**32},{2**32},0]"),  # which NumPy cannot make
        an_a(shape="[0" + ",1" * 64 + "]"),
        an_a(shape="[-1]", offsets="[0,-1]"),
        an_a(shape="[0.0]"),
        an_a(shape="[1e400]"),
        an_a(shape="[NaN]"),
        an_a(shape="[false]"),
        an_a(shape="0"),
        an_a(shape="{}"),
        an_a(offsets="[0]"),
        an_a(offsets="[0,0,0]"),
        an_a(offsets='"00"'),
        an_a(dtype="[]"),
        an_a(dtype="7"),
        an_a(dtype='"F128"'),
        an_a(shape="[2]"),
        an_a(offsets="[1,1]"),
        an_a() + "," + an_a(offsets="[1,1]").replace('"a"', '"b"'),
        an_a() + "," + an_a(),
        an_a()[:-1] + ',"more":1}',
        an_a().replace('"a"', '"' + "a" * 70_000 + '"'),
        '"a":[]',
        '"a":null',
        '"a":' + "[" * 99_999,
        '"a":' + "[" * 99_999 + "]" * 99_999,
        '"__metadata__":{}',
        "[]",
        "7777",
        '{"__metadata__":[]}',
        '{"__metadata__":"7"}',
        OURS.replace('"1"', "1").join("{}"),
    ],
    ids=lambda text: text[:50],
)
def test_a_header_with_what_none_has_is_refused(tensors: str, tmp_path: Path) -> None:
    text = f"{{{OURS},{tensors}}}" if tensors.startswith('"') else tensors
    with_header(tmp_path / "c", text)
    with pytest.raises(ValueError, match=r"^load: .* has a header that is none of safetensors$"):
        schuss.load(tmp_path / "c", np.ones(3))


@pytest.mark.parametrize("digest", ["\\ud800", "", "0" * 63, "G" * 64])
def test_a_digest_that_is_none_is_refused(digest: str, tmp_path: Path) -> None:
    ours = OURS.replace("0" * 64, digest)
    with_header(tmp_path / "c", f'{{{ours},"params":{entry()}}}')
    with pytest.raises(ValueError, match=r"^load: .* has no digest, expected one of all its byte"):
        schuss.load(tmp_path / "c", np.ones(0, np.uint8))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("params", "holds params of shape (4398046511104,), expected (3,) as it is here"),
        ("optimizer/m", "of shape (4398046511104,), expected that of a parameter"),
        ("others", "holds others, expected nothing of that name"),
        ("training/best/0", "of shape (4398046511104,), expected that of a parameter"),
        ("training/others", "holds training/others, expected nothing of that name"),
    ],
)
def test_a_huge_file_is_refused_by_its_header(name: str, words: str, tmp_path: Path) -> None:
    size = 1 << 42
    before = "" if name == "params" else f'"params":{entry(shape="[3]", offsets="[0,3]")},'
    start = 3 if before else 0
    huge = f'"{name}":{entry(shape=f"[{size}]", offsets=f"[{start},{start + size}]")}'
    try:
        with_header(tmp_path / "c", f"{{{OURS},{before}{huge}}}", start + size)
    except OSError:
        pytest.skip("no file can be that long here")
    w = np.ones(3, np.uint8)
    optimizer = schuss.SGD(np.zeros(3))
    with refused(optimizer) as caught:
        schuss.load(tmp_path / "c", w)
    assert words in str(caught.value)
    assert w.all()


def test_names_that_nobody_would_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^save: the name of an array has 70007 characters, exp"):
        schuss.save(tmp_path / "c", {"a" * 70_000: np.ones(3)})
    assert os.listdir(tmp_path) == []


# Threads that cannot be started, and forks.


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_can_be_started_saving_and_loading_do_without(
    started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal(300)
    monkeypatch.setattr(_safetensors, "_PIECE", 256)
    schuss.save(tmp_path / "with", values)
    left, real = [started], _thread.start_new_thread

    def start(*arguments: Any) -> int:
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        return real(*arguments)

    monkeypatch.setattr(_safetensors, "start_new_thread", start)
    schuss.save(tmp_path / "without", values)
    assert (tmp_path / "without").read_bytes() == (tmp_path / "with").read_bytes()
    left[0] = started
    schuss.load(tmp_path / "without", w := np.zeros(300))
    np.testing.assert_array_equal(w, values)


PEAK = """
import os, sys, numpy as np, schuss
w = np.ones(16 << 20, np.float32)
optimizer = schuss.Momentum([w, np.ones((1 << 20, 8), np.float32).T])
optimizer.step([w * 0, np.zeros((8, 1 << 20), np.float32)])  # or the state has no memory yet
extra = {"buffer": np.ones(32 << 20, np.uint8)}
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
def peak_of(call, *args, **options):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what is used now
    before = status("VmRSS")
    call(sys.argv[1], *args, **options)
    return status("VmHWM") - before
for call in (schuss.save, schuss.load):
    call(sys.argv[1], np.ones(3))
print(peak_of(schuss.save, optimizer.params, optimizer, extra=extra))
print(peak_of(schuss.load, optimizer.params, optimizer))
print(os.stat(sys.argv[1]).st_size >> 10)
"""


@pytest.mark.skipif(not LINUX, reason="/proc is Linux's")
def test_saving_needs_no_memory_for_the_arrays_and_loading_as_much_as_they_have(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "c"], capture_output=True, text=True, check=True
    )
    saving, loading, whole = map(int, done.stdout.split())  # in KiB
    extra = 32 << 10  # which it returns
    assert whole > 7 * extra
    assert saving < whole / 4
    assert loading - extra < whole * 5 / 4  # a copy of what is loaded


# The training loop.

X = np.random.default_rng(0).standard_normal((100, 5))
Y = X @ np.arange(5.0) + 1


def loss_and_grad(params: Any, x: Any, y: Any) -> tuple[float, Any]:
    error = x @ params["w"] + params["b"] - y
    grads = {"w": x.T @ error / len(y), "b": error.mean(keepdims=True)}
    return float((error**2).mean() / 2), grads


class Crash(Exception):
    """The end of a process, for tests."""


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validated": {"validation": (X[:10], Y[:10]), "patience": 3, "restore_best": True},
    "best": {"restore_best": True, "patience": 1, "min_delta": 1.0, "drop_last": True},
    "plateau": {"schedule": schedules.ReduceOnPlateau(0.1, patience=0), "prefetch": 1},
    "by epoch": {"schedule": schedules.Exponential(0.1, 0.9), "schedule_by": "epoch"},
    "own": {"schedule": lambda t: 0.1 / t, "schedule_by": "epoch", "shuffle": False},
}


def trained(
    kind: str, stop_at: int | None = None, how: type[BaseException] = Crash, **options: Any
) -> tuple[Any, schuss.History]:
    def stop(history: schuss.History) -> None:
        if history.steps == stop_at:
            raise how

    p = {"w": np.zeros(5), "b": np.zeros(1)}
    optimizer = schuss.Adam(p, lr=0.1, average=0.9)
    history = schuss.fit(
        loss_and_grad,
        p,
        optimizer,
        X,
        Y,
        batch_size=16,
        rng=3,
        epochs=4,
        on_step=stop,
        **deepcopy(FITS[kind]),
        **options,
    )
    return optimizer, history


def told(history: schuss.History) -> list[Any]:
    arrays = [history.cost, history.lr, history.epoch_cost, history.validation]
    return [*bits(arrays), history.steps, history.epochs, history.best_epoch, history.stopped]


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("every", [None, 1, 4])
@pytest.mark.parametrize("how", [Crash, KeyboardInterrupt])
def test_fit_goes_on_with_the_bits_of_a_training_that_was_not_stopped(
    kind: str, every: int | None, how: Any, tmp_path: Path
) -> None:
    expected, history = trained(kind)
    for stop_at in range(1, history.steps + 1, 2):
        path = tmp_path / f"{stop_at}"
        options: dict[str, Any] = {"checkpoint": path, "checkpoint_every": every}
        if how is Crash:
            with pytest.raises(Crash):
                trained(kind, stop_at, how, **options)
        else:
            _, interrupted = trained(kind, stop_at, how, **options)
            assert (interrupted.steps, interrupted.stopped) == (stop_at, "interrupted")
        made: list[int] = []
        optimizer, resumed = trained(
            kind, callbacks=lambda h, made=made: made.append(h.epochs), **options
        )
        assert told(resumed) == told(history)
        assert known(optimizer) == known(expected)
        if how is KeyboardInterrupt:  # nothing is made twice
            assert len(resumed.loss_seconds) == history.steps
        again, finished = trained(kind, **options)
        assert told(finished) == told(history)
        assert known(again) == known(expected)


def test_fit_goes_on_to_more_epochs(tmp_path: Path) -> None:
    def train(epochs: int, **options: Any) -> Any:
        p = {"w": np.zeros(5), "b": np.zeros(1)}
        optimizer = schuss.Adam(p, lr=0.1)
        history = schuss.fit(loss_and_grad, p, optimizer, X, Y, epochs=epochs, rng=3, **options)
        return known(optimizer), told(history)

    for epochs in (1, 3, 5):
        assert train(epochs, checkpoint=tmp_path / "c") == train(epochs)


# A file can be whole, with a digest that is right, and say what no training says.

SCHEDULE = {"schuss.schedule": "Constant", "number": 0, "lr": 0.1}
WRONG: list[Any] = [
    *(None, True, 7, -1, 0.5, "x", [], {"a": 1}, 2**53, 10**400, float("nan"), SCHEDULE),
    *({"schuss.same": 0}, {"schuss.array": "params"}),
]
# Where these may stand; the integers are places in lists: what averages weigh.
REALS = {"lr", "after", "start", "weight_decay", "eps", "eps_root", "clip_norm", "clip_value", 0, 1}
COUNTS = {"steps", "skipped", "seed", "number", "state", "inc", "uinteger"}
ALSO_RIGHT: dict[str, set[Any]] = {
    "True": {"clear_grads", "average_bias_correction"},
    "7": REALS | COUNTS,
    "0.5": REALS | {"beta1", "beta2"},
    "{'a': 1}": {"extra"},
    str(2**53): REALS | {"state"},
    str(SCHEDULE): {"lr", "after"},
}


def fitted(path: Path, epochs: int) -> Any:
    """Train for so many epochs, from the checkpoint if there is one; return the optimizer."""
    p = {"w": np.zeros(5), "b": np.zeros(1)}
    optimizer = schuss.Adam(p, lr=schedules.WarmUp(0.1, 2), average=0.5)
    options: dict[str, Any] = {"batch_size": 50, "epochs": epochs, "rng": 0, "patience": 9}
    options |= {"validation": (X, Y), "restore_best": True, "checkpoint": path}
    refusal = None
    try:
        schuss.fit(loss_and_grad, p, optimizer, X, Y, **options)
    except ValueError as error:
        refusal = error
    if refusal is None:
        return optimizer
    assert str(refusal).startswith((f"fit: {str(path)!r}", "fit: lr is ")), refusal
    assert optimizer.steps == 0
    assert not p["w"].any()
    raise refusal


def test_no_field_of_a_checkpoint_can_be_left_out(tmp_path: Path) -> None:
    fitted(tmp_path / "c", 1)
    content = (tmp_path / "c").read_bytes()
    settings = json.loads(taken_apart(content)[0]["__metadata__"]["settings"])
    for *path, key in places_in(settings):
        if "arguments" in path:  # one that is not there is None
            continue

        def leave_out(told: Any, path: Any = path, key: Any = key) -> None:
            del at(told, tuple(path))[key]

        (tmp_path / "c").write_bytes(with_settings(content, leave_out))
        with pytest.raises(ValueError, match=r"^fit: "):
            fitted(tmp_path / "c", 2)


def test_a_field_of_a_checkpoint_is_of_its_type_and_range_or_refused(tmp_path: Path) -> None:
    """Or it is another value that it may have: with that, training goes on to its end."""
    fitted(tmp_path / "c", 1)
    content = (tmp_path / "c").read_bytes()
    settings = json.loads(taken_apart(content)[0]["__metadata__"]["settings"])
    accepted: dict[str, set[Any]] = {}
    for path in places_in(settings):
        if "arguments" in path[:-1]:  # texts, which are compared
            continue
        for value in WRONG:

            def put(told: Any, path: Any = path, value: Any = value) -> None:
                at(told, path[:-1])[path[-1]] = deepcopy(value)

            was = at(settings, path)
            if type(value) is type(was) and value == was:
                continue
            (tmp_path / "c").write_bytes(with_settings(content, put))
            try:
                optimizer = fitted(tmp_path / "c", 2)
            except ValueError:
                continue
            assert optimizer.steps in (4, 9)  # 7 is a number of steps too
            accepted.setdefault(repr(value), set()).add(path[-1])
    assert accepted == ALSO_RIGHT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(validated=False), "is of a training without validation, expected one"),
        (lambda t: t.update(validated=1), "training['validated'] is 1, expected True or False"),
        (lambda t: t.update(best_epoch=1), "training best_epoch 1, expected 2 to 2"),
        (lambda t: t.update(best_epoch=None), "training best_epoch 0, expected 2 to 2"),
        (lambda t: t["best"].update(epoch=3), "training best['epoch'] 3, expected 0 to 2"),
        (lambda t: t["best"].update(epoch=0), "['epoch'] is 0, expected an integer >= 1"),
        (lambda t: t["best"].update(epoch=None), "training best_epoch 2, expected 0 to 0"),
        (lambda t: t["best"].update(waited=1), "training best['waited'] 1, expected 0 to 0"),
        (lambda t: t["best"].update(value=0.5), "training best['value'] 0.5, expected 14.9"),
    ],
)
def test_what_a_checkpoint_says_of_a_training_agrees_with_its_history(
    change: Any, words: str, tmp_path: Path
) -> None:
    fitted(tmp_path / "c", 2)
    content = with_settings((tmp_path / "c").read_bytes(), lambda s: change(s["training"]))
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        fitted(tmp_path / "c", 3)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("steps", (4, 4), None),
        ("steps", (2, 8), "training/steps in F64 of shape (2, 8), expected F64 of shape (4, n)"),
        ("steps", (16,), "training/steps in F64 of shape (16,), expected F64 of shape (4, n)"),
        ("steps", (4, 3), "holds 3 steps and 2 validations, expected 4 to 6, and 2, as it holds 2"),
        ("steps", (4, 7), "holds 7 steps and 2 validations, expected 4 to 6"),
        ("steps", (4, 5), "has batches['epoch'] after 0 batches, expected 1 as of its steps"),
        ("steps", None, "holds no training/steps, expected to find it"),
        ("epoch_cost", (2, 1), "training/epoch_cost in F64 of shape (2, 1), expected F64 of sh"),
        ("epoch_cost", (1,), "holds 4 steps and 2 validations, expected 2 to 4, and 1, as it"),
        ("epoch_cost", (), "training/epoch_cost in F64 of shape (), expected F64 of shape (n,)"),
        ("validation", (1,), "holds 4 steps and 1 validations, expected 4 to 6, and 2"),
        ("validation", None, "holds no training/validation, expected to find it"),
        ("best/w", (5,), "holds training/best/w, expected nothing of that name"),
        ("best/0", None, "holds no training/best/0, expected to find it"),
        ("best/0", (4,), "holds training/best/0 of shape (4,), expected that of a parameter"),
    ],
)
def test_a_history_in_a_checkpoint_is_of_one_training(
    name: str, shape: Any, words: str | None, tmp_path: Path
) -> None:
    fitted(tmp_path / "c", 2)
    header, tensors = taken_apart((tmp_path / "c").read_bytes())
    arrays = {
        key: np.frombuffer(tensors[slice(*entry["data_offsets"])], "f8").reshape(entry["shape"])
        for key, entry in header.items()
        if key != "__metadata__"
    }
    if shape is None:
        del arrays[f"training/{name}"]
    elif words is not None:
        arrays[f"training/{name}"] = np.zeros(shape)
    metadata = {key: text for key, text in header["__metadata__"].items() if key != "sha256"}
    _safetensors.write("save", str(tmp_path / "c"), arrays, metadata)
    if words is None:
        assert fitted(tmp_path / "c", 3).steps == 6
        return
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        fitted(tmp_path / "c", 3)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        (warm_ups(32), None),
        (
            warm_ups(33),
            "is no schedule (WarmUp: schedules are nested more than 32 deep, or more",
        ),
        (warm_ups(450), "is nested more than 100 deep"),
        (doubled(12), None),
        (doubled(13), "is no schedule (Chain: schedules are nested more than 32 deep, or more"),
        (warm_ups(1) | {"steps": 0}, "is no schedule (WarmUp: steps is 0, expected an integer"),
        (warm_ups(1) | {"more": 0}, "is no schedule (WarmUp: it has the keys"),
        (warm_ups(1) | {"number": "x"}, "['number'] is a str, expected an integer"),
        (warm_ups(1) | {"after": {"schuss.same": 0}}, "is schedule 0, expected one before"),
        (warm_ups(1) | {"after": {"schuss.function": "f"}}, "lr']['number'] is a NoneType, ex"),
        ({"schuss.same": [1]}, "['schuss.same'] is a list, expected an integer"),
        ({"schuss.function": 7, "number": 0}, "is no schedule (there is no None), expected one"),
        ([0.1], "lr is a list, expected a number"),
        (10**400, "lr is inf, expected a finite number >= 0"),
    ],
)
def test_a_schedule_in_a_checkpoint_is_one_that_could_be_made(
    lr: Any, words: str | None, small: tuple[Path, Any, Any]
) -> None:
    path, optimizer, batches = small

    def put(settings: Any) -> None:
        settings["optimizer"]["hyperparameters"]["lr"] = lr

    path.write_bytes(with_settings(path.read_bytes(), put))
    if words is not None:
        with refused(optimizer, batches) as caught:
            schuss.load(path, optimizer.params, optimizer, batches=batches)
        assert words in str(caught.value)
        assert f"{str(path)!r}: " in str(caught.value)
        return
    schuss.load(path, optimizer.params, optimizer, batches=batches)
    schedules.feed([optimizer.lr], 1.0)
    optimizer.step(np.ones(3))
    assert repr(optimizer)
    schuss.save(path, optimizer.params, optimizer, batches=batches)


def lists(depth: int) -> Any:
    return [] if depth == 1 else [lists(depth - 1)]


def test_what_json_would_not_come_to_an_end_with_is_refused(tmp_path: Path) -> None:
    w, path = np.zeros(1), tmp_path / "c"
    largest = 10**4300 - 1
    kept: dict[str, Any] = {"deep": lists(100), "large": [largest, -largest]}
    schuss.save(path, w, extra=kept)
    content = path.read_bytes()
    assert schuss.load(path, w) == kept
    shared: Any = []
    for _ in range(60):
        shared = [shared, shared]
    round_: list[Any] = []
    round_.append(round_)
    for bad, words in [
        (lists(101), "lists and mappings nested more than 100 deep"),
        (round_, "lists and mappings nested more than 100 deep"),
        ({"a": largest + 1}, "an integer of more than 4300 digits"),
        (shared, "more than 50,000,000 values"),
    ]:
        with pytest.raises(TypeError, match=rf"^save: extra holds {words}, expected what JSON can"):
            schuss.save(path, w, extra={"bad": bad})
    assert path.read_bytes() == content
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)  # what Python would then begin with, nobody would see the end
        for extra, words in [
            (json.dumps({"a": lists(101)}), "extra is nested more than 100 deep"),
            (f'{{"a": 1{"0" * 4300}}}', r"they are no valid JSON \(an integer of 4301 digits\)"),
            ("[" * 99_999, "they are no valid JSON"),
            ('{"a": {"schuss.same": 0}}', "extra has the reserved key 'schuss.same'"),
        ]:
            header, tensors = taken_apart(content)
            settings = json.loads(header["__metadata__"]["settings"])
            settings["extra"] = "EXTRA"
            header["__metadata__"]["settings"] = json.dumps(settings).replace('"EXTRA"', extra)
            path.write_bytes(sealed(header, tensors))
            with pytest.raises(ValueError, match=rf"^load: .*does not write: {words}"):
                schuss.load(path, w)
    finally:
        sys.set_int_max_str_digits(limit)


OTHER_X = X + (np.arange(X.size).reshape(X.shape) == 3)  # in a single number
OTHER_ARGUMENTS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("validation", None, {"validation": None}, "a training with validation, expected one without"),
    (
        "checkpoint",
        None,
        {"checkpoint": "plain"},
        "was saved by schuss.save, expected a checkpoint of fit",
    ),
    ("epochs", None, {"epochs": 3}, "epochs is 3, expected at least 4, as many as checkpoint"),
    ("batch_size", None, {"batch_size": 10}, "began with batch_size 16, expected 10"),
    ("shuffle", None, {"shuffle": False}, "began with shuffle True, expected False"),
    ("drop_last", None, {"drop_last": True}, "began with drop_last False, expected True"),
    ("rng", None, {"rng": 4}, "began with rng PCG64 (sha256 "),
    ("kind of rng", None, {"rng": np.random.Generator(np.random.MT19937(3))}, ", expected MT19937"),
    ("x", None, {"x": OTHER_X}, f"began with x float64 of shape {X.shape} (sha256 "),
    ("dtype", None, {"x": X.astype("f")}, "expected float32 of shape"),
    ("y", None, {"y": -Y}, f"began with y float64 of shape {Y.shape} (sha256 "),
    ("no y", None, {"x": (X, Y), "y": None}, f", expected {X.dtype} of shape {X.shape}"),
    ("measured", None, {"validation": (OTHER_X, Y)}, "began with validation[0] float64 of shape"),
    ("l2", None, {"l2": 0.5}, "began with l2 0.0, expected 0.5"),
    ("patience", None, {"patience": 2}, "began with patience 3, expected 2"),
    ("min_delta", None, {"min_delta": 0.5}, "began with min_delta 0.0, expected 0.5"),
    ("restore_best", None, {"restore_best": False}, "began with restore_best True, expected False"),
    ("schedule", None, {"schedule": 0.2}, "began with the learning rate 0.1, expected 0.2"),
    (
        "falling",
        None,
        {"schedule": schedules.Linear(0.1, 0, steps=2), "schedule_by": "epoch"},
        "expected PerEpoch(schedule=Linear(start=0.1, end=0.0, steps=2), steps=7), as",
    ),
    ("function", None, {"schedule": lambda t: 0.1}, "rate 0.1, expected a function, as this"),
    ("class", lambda p: schuss.SGD(p), {}, "began with optimizer Adam, expected SGD"),
    ("lr", lambda p: schuss.Adam(p, 0.01, average=0.9), {}, "rate 0.1, expected 0.01, as this"),
    ("beta1", lambda p: schuss.Adam(p, 0.1, beta1=0.5, average=0.9), {}, "optimizer.beta1 0.9, ex"),
    ("average", lambda p: schuss.Adam(p, 0.1), {}, "optimizer.average 0.9, expected None"),
    (
        "groups",
        lambda p: schuss.Adam(
            p, 0.1, average=0.9, groups=lambda name: {"lr": 0.5} if name == "b" else None
        ),
        {},
        "optimizer.param_groups[1]['lr'] None, expected 0.5",
    ),
]


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [case[1:] for case in OTHER_ARGUMENTS],
    ids=[case[0] for case in OTHER_ARGUMENTS],
)
def test_fit_says_when_its_checkpoint_is_of_another_training(
    make: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path, plain = tmp_path / "c", tmp_path / "plain"
    finished, _ = trained("validated", checkpoint=path)
    before = path.read_bytes()
    schuss.save(plain, finished.params, finished)
    p = {"w": np.zeros(5), "b": np.zeros(1)}
    optimizer = make(p) if make else schuss.Adam(p, lr=0.1, average=0.9)
    given: dict[str, Any] = {"x": X, "y": Y, "batch_size": 16, "epochs": 4, "checkpoint": path}
    given |= FITS["validated"] | options
    if options.get("checkpoint"):
        given["checkpoint"] = plain
    unknown = known(optimizer)
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        schuss.fit(loss_and_grad, p, optimizer, **given)
    assert words in str(caught.value)
    assert known(optimizer) == unknown
    assert not p["w"].any()
    assert path.read_bytes() == before


def test_fit_goes_on_with_what_it_was_given_before(tmp_path: Path) -> None:
    """The optimizer, its schedules, the generator: as they are after a crash, and as they were."""

    def start() -> tuple[Any, Any]:
        p = {"w": np.zeros(5), "b": np.zeros(1)}
        plateau, other = (schedules.ReduceOnPlateau(lr, 0.5, patience=0) for lr in (0.1, 0.5))
        adam = schuss.Adam(p, plateau, groups=lambda k: {"lr": other} if k == "b" else None)
        return adam, np.random.default_rng(3)

    def train(optimizer: Any, rng: Any, stop_at: int | None = None, **options: Any) -> Any:
        options = {"epochs": 6, "patience": 2, "checkpoint_every": 10} | options
        return schuss.fit(
            loss_and_grad,
            optimizer.params,
            optimizer,
            X,
            Y,
            batch_size=16,
            rng=rng,
            validation=lambda p: 1.0,
            on_step=lambda history: 1 / 0 if history.steps == stop_at else None,
            **options,
        )

    expected, rng = start()
    history = train(expected, rng, patience=None, checkpoint=tmp_path / "whole")
    path = tmp_path / "c"
    optimizer, rng = start()
    for stop_at in (9, 13, 20):
        with pytest.raises(ZeroDivisionError):
            train(optimizer, rng, stop_at, checkpoint=path)
    assert train(optimizer, rng, checkpoint=path, patience=3).stopped == "early"
    fresh = start()[0]
    assert train(fresh, None, checkpoint=path, patience=3, epochs=5).stopped == "early"
    assert train(optimizer, None, checkpoint=path, patience=None, epochs=5).epochs == 5
    for given in (optimizer, fresh):
        resumed = train(given, None, checkpoint=path, patience=None)
        assert told(resumed) == told(history)
        assert bits(given.params.values()) == bits(expected.params.values())
        for group, known_group in zip(given.param_groups, expected.param_groups, strict=True):
            assert group["lr"] == known_group["lr"]
            assert group["lr"].best == 1.0


@pytest.mark.parametrize("how", ["load", "of one optimizer"])
def test_low_precision_copies_are_those_of_the_parameters_that_are_loaded(
    how: str, tmp_path: Path
) -> None:
    """Whoever has copies of them, in whatever views, and whatever else is loaded."""
    p: Any = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(2, np.float32)}
    other = np.zeros(2, np.float32)
    loaded = schuss.SGD(p, copies="bfloat16")
    mine = np.zeros((3, 2), np.float16)
    beside = schuss.SGD([p["w"].T[:, 2:]], copies=[mine], average=0.5)
    apart = schuss.SGD(other, copies="float16")
    schuss.SGD(p["b"], copies="float16")  # which is gone
    schuss.save(tmp_path / "c", p, loaded)
    for array in (*p.values(), other):
        array[...] = 3
    loaded.write_copies()
    beside.step([np.ones((3, 2), np.float32)])
    average = beside.average[0].copy()
    schuss.load(tmp_path / "c", p, loaded if how == "of one optimizer" else None)
    assert not any(copy.any() for copy in (*loaded.copies.values(), mine, *p.values()))
    assert bits(beside.average) == bits([average])
    assert apart.copies.tolist() == [0, 0]
    apart.write_copies()
    assert apart.copies.tolist() == [3, 3]


def test_copies_that_cannot_be_written_leave_what_was_to_be_loaded_as_it_is(
    tmp_path: Path,
) -> None:
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


def test_a_checkpoint_of_other_large_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schuss._arguments._WHOLE", 1 << 10)
    shape = (16, 3000)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)[:] = 1
    x = np.load(tmp_path / "x.npy", mmap_mode="r+")

    def fit() -> int:
        w = np.zeros(1)
        options: dict[str, Any] = {"rng": 0, "checkpoint": tmp_path / "c"}
        return schuss.fit(lambda w, x: (0.0, 0 * w), w, schuss.SGD(w), x, **options).steps

    assert fit() == fit() == 1
    x[:, ::2] = 2
    with pytest.raises(ValueError, match=r"^fit: '.*' holds a training that began with x float32"):
        fit()
    x[:, ::2] = 1
    assert fit() == 1
    x[-1, -1] = 2
    with pytest.raises(ValueError, match="began with x"):
        fit()


def test_another_seed_is_refused_at_once_however_many_epochs_are_to_come(tmp_path: Path) -> None:
    def fit(seed: int, epochs: int) -> None:
        rng, p = np.random.Generator(np.random.MT19937(seed)), {"w": np.zeros(5), "b": np.zeros(1)}
        options: Any = {"rng": rng, "epochs": epochs, "checkpoint": tmp_path / "c"}
        schuss.fit(loss_and_grad, p, schuss.SGD(p), X, Y, **options)

    fit(1, 2)
    with pytest.raises(ValueError, match="holds a training that began with rng MT19937"):
        fit(2, 10**9)


def test_other_masks_of_the_data_are_refused(tmp_path: Path) -> None:
    def fit(mask: Any) -> None:
        w = np.zeros(1)
        x = np.ma.masked_array(np.arange(6.0), mask=mask)
        options: Any = {"batch_size": 2, "rng": 0, "checkpoint": tmp_path / "c"}
        schuss.fit(lambda p, x: (0.0, np.ones(1)), w, schuss.SGD(w), x, **options)

    fit([0, 1, 0, 0, 0, 0])
    fit([0, 1, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"began with x float64 of shape \(6,\), masked as bool"):
        fit([0, 0, 1, 0, 0, 0])


def test_what_a_hashing_thread_has_no_memory_for_is_hashed_by_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, caller = np.arange(3_000_000.0), _thread.get_ident()
    schuss.save(tmp_path / "with", values)

    def crc32(piece: memoryview) -> int:
        if _thread.get_ident() != caller:
            raise MemoryError
        return real(piece)

    real = zlib.crc32
    monkeypatch.setattr(_safetensors, "crc32", crc32)
    schuss.save(tmp_path / "without", values)
    assert (tmp_path / "without").read_bytes() == (tmp_path / "with").read_bytes()
    schuss.load(tmp_path / "without", np.zeros(3_000_000))


def test_running_out_of_memory_is_not_taken_for_a_state_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: Any) -> None:
        raise MemoryError

    batches = drawing(OwnPCG64)
    monkeypatch.setattr("schuss._generators.deepcopy", no_memory)
    with pytest.raises(MemoryError):
        schuss.save(tmp_path / "c", np.ones(1), batches=batches)


@pytest.mark.parametrize("arguments", [None, [], {"l2": 0.0}, {"l2": ["0.0"]}])
def test_arguments_made_by_hand_are_refused(arguments: Any, tmp_path: Path) -> None:
    trained("plain", checkpoint=tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    change = with_settings(content, lambda s: s["training"].update(arguments=arguments))
    (tmp_path / "c").write_bytes(change)
    words = r"^fit: .*: training\['arguments'\] is .*, expected a mapping of texts"
    with pytest.raises(ValueError, match=words):
        trained("plain", checkpoint=tmp_path / "c")


def test_fit_refuses_at_once_what_it_could_not_save(tmp_path: Path) -> None:
    p = {"w": np.zeros(5), "b": np.zeros(1)}

    class Own:
        lr = 0.1

        def step(self, grads: Any) -> None:
            raise AssertionError

    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (Own(), {"checkpoint": tmp_path / "c"}, TypeError, "optimizer is a Own, expected an optim"),
        (schuss.SGD(p), {"checkpoint": 7}, TypeError, "checkpoint is a int"),
        (schuss.SGD(p), {"checkpoint": tmp_path / "no" / "c"}, FileNotFoundError, "no"),
        (schuss.SGD(p), {"checkpoint_every": 3}, ValueError, "checkpoint_every is 3 without"),
        (
            schuss.SGD(p),
            {"checkpoint": tmp_path / "c", "checkpoint_every": 0},
            ValueError,
            "checkpoint_every is 0, expected an integer >= 1",
        ),
    ]
    for optimizer, options, error, words in cases:
        with pytest.raises(error, match=words):
            schuss.fit(loss_and_grad, p, optimizer, X, Y, **options)
    assert os.listdir(tmp_path) == []


def test_fit_saves_as_often_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for every, expected in [(None, [0, 7, 14]), (1, range(15)), (5, [0, 5, 10, 14])]:
        saved: list[int] = []

        def note(history: Any, saved: list[int] = saved) -> None:
            kept = safetensors_numpy.load_file(path)["training/steps"].shape[1]
            saved.extend([kept] if kept not in saved else [])

        path.unlink(missing_ok=True)
        p = {"w": np.zeros(5), "b": np.zeros(1)}
        optimizer = schuss.SGD(p)
        options: Any = {"checkpoint": path, "checkpoint_every": every, "on_step": note}
        schuss.fit(loss_and_grad, p, optimizer, X, Y, batch_size=16, epochs=2, **options)
        note(None)
        assert saved == [*expected]


def test_settings_that_nobody_could_read_are_refused_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schuss.save(tmp_path / "c", np.ones(3))
    before = (tmp_path / "c").read_bytes()
    monkeypatch.setattr("schuss._safetensors._LONGEST_HEADER", 10_000)
    with pytest.raises(ValueError, match=r"^save: the settings, with extra, take \d+ bytes, exp"):
        schuss.save(tmp_path / "c", np.ones(3), extra={"long": "x" * 10_000})
    assert (tmp_path / "c").read_bytes() == before


def test_fit_that_cannot_go_on_leaves_the_optimizer_its_rate(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no checkpoint")
    optimizer = schuss.SGD({"w": np.zeros(5), "b": np.zeros(1)}, lr=0.5)
    with pytest.raises(ValueError, match=r"^fit: '.*' is cut short, or is no safetensors file"):
        schuss.fit(
            loss_and_grad, optimizer.params, optimizer, X, Y, checkpoint=tmp_path / "c", schedule=1
        )
    assert optimizer.lr == 0.5


def test_ctrl_c_while_fit_loads_finds_the_rate_loaded_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(epochs: int) -> schuss.History:
        return schuss.fit(
            loss_and_grad,
            optimizer.params,
            optimizer,
            X,
            Y,
            epochs=epochs,
            checkpoint=tmp_path / "c",
            schedule=0.5,
            callbacks=lambda history: setattr(optimizer, "lr", 0.25),
        )

    optimizer = schuss.SGD({"w": np.zeros(5), "b": np.zeros(1)})
    start(epochs=1)
    saved = known(optimizer)
    optimizer = schuss.SGD({"w": np.zeros(5), "b": np.zeros(1)})
    fill = checkpoints.Checkpoint._fill

    def press(saved: checkpoints.Checkpoint, arrays: dict[str, Any]) -> None:
        if "params/w" in arrays:
            signal.raise_signal(signal.SIGINT)
        fill(saved, arrays)

    monkeypatch.setattr(checkpoints.Checkpoint, "_fill", press)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        start(epochs=2)
    signal.signal(signal.SIGINT, handler)
    assert known(optimizer) == saved
    assert optimizer.lr == 0.25


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"a": {"schuss.array": "settings/1"}, "b": {"schuss.array": "settings/1"}}, "once"),
        ({"a": {"schuss.array": "params"}}, "extra names an array as"),
        ({"a": {"schuss.array": "settings/1", "more": 1}}, "extra names an array as"),
        ({"a": {"schuss.array": ["settings/1"]}}, "extra names an array as"),
        ({"a": {"schuss.array": "settings/9"}}, "extra names an array as"),
        ({}, "there is 'settings/1', which no field names"),
        ([1], "settings['extra'] is a list, expected a mapping"),
        (None, "settings['extra'] is a NoneType, expected a mapping"),
    ],
)
def test_settings_made_by_hand_name_each_array_once_or_are_refused(
    extra: Any, words: str, tmp_path: Path
) -> None:
    schuss.save(tmp_path / "c", np.ones(3), extra={"a": np.zeros(3)})
    content = (tmp_path / "c").read_bytes()
    assert [name for name in taken_apart(content)[0] if name[0] != "_"] == ["params", "settings/1"]
    (tmp_path / "c").write_bytes(with_settings(content, lambda s: s.update(extra=extra)))
    w = np.zeros(3)
    with pytest.raises(ValueError, match=r"^load: .* has settings that schuss.save does not") as e:
        schuss.load(tmp_path / "c", w)
    assert words in str(e.value)
    assert not w.any()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3.0]},
        {"shape": [True, 3]},
        {"shape": [-1, -3]},
        {"shape": [3, 0.5, 2]},
        {"shape": "3"},
        {"shape": None},
        {"data_offsets": [0.0, 24.0]},
        {"data_offsets": [0]},
        {"data_offsets": [8, 32]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": {}},
        {"dtype": "F128"},
        {"dtype": ["F64"]},
        {"dtype": None},
    ],
)
def test_a_header_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    w = np.zeros(3)
    schuss.save(tmp_path / "c", np.ones(3))
    header, tensors = taken_apart((tmp_path / "c").read_bytes())
    offsets = offsets_in(header)
    for bad, accepted in [({}, True), (change, False)]:
        w[...] = 0
        told = {**header, "params": header["params"] | bad}
        (tmp_path / "c").write_bytes(sealed(told, tensors, offsets))
        if accepted:
            schuss.load(tmp_path / "c", w)
            assert w.all()
            continue
        with pytest.raises(ValueError, match=r"^load: '.*/c' "):
            schuss.load(tmp_path / "c", w)
        assert not w.any()


@pytest.mark.parametrize("of_b", [[0, 24], [24, 48]])
def test_tensors_do_not_share_bytes_and_leave_none_out(of_b: list[int], tmp_path: Path) -> None:
    params = {"a": np.zeros(3), "b": np.zeros(3)}
    schuss.save(tmp_path / "c", {"a": np.ones(3), "b": np.ones(3)})
    header, tensors = taken_apart((tmp_path / "c").read_bytes())
    header["params/b"]["data_offsets"] = of_b
    (tmp_path / "c").write_bytes(sealed(header, tensors))
    if of_b[0]:
        schuss.load(tmp_path / "c", params)
    else:
        with pytest.raises(ValueError, match=r"^load: '.*/c' "):
            schuss.load(tmp_path / "c", params)
    assert params["b"].all() == bool(of_b[0])


def test_settings_made_by_hand_have_no_arrays_in_dtypes_that_numpy_may_not_know(
    tmp_path: Path,
) -> None:
    w = np.zeros(3)
    schuss.save(tmp_path / "c", w, extra={"a": np.zeros(3, np.float16)})
    header, tensors = taken_apart((tmp_path / "c").read_bytes())
    header["settings/1"]["dtype"] = "BF16"
    (tmp_path / "c").write_bytes(sealed(header, tensors))
    with pytest.raises(
        ValueError, match=r"^load: .* write: extra names an array in BF16, expected"
    ):
        schuss.load(tmp_path / "c", w)


def test_fit_refuses_mini_batches_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    batches = schuss.minibatches(X, Y, batch_size=16, rng=0)
    held = iter(batches)
    next(held)
    schuss.save(tmp_path / "c", np.ones(3), batches=batches)
    schuss.load(tmp_path / "c", np.ones(3), batches=batches)
    p = {"w": np.zeros(5), "b": np.zeros(1)}
    optimizer = schuss.SGD(p, lr=0.5)
    with pytest.raises(ValueError, match=r"^fit: x is in the middle of an epoch, after 1 batches"):
        schuss.fit(loss_and_grad, p, optimizer, batches, schedule=0.1)
    assert (optimizer.steps, optimizer.lr) == (0, 0.5)
    list(batches)
    assert schuss.fit(loss_and_grad, p, optimizer, batches).steps == 7


@pytest.mark.parametrize("how", ["load", "state_dict", "deepcopy", "pickle"])
def test_who_shares_a_schedule_shares_it_afterwards(how: str, tmp_path: Path) -> None:
    lr = schedules.ReduceOnPlateau(0.5, patience=0)
    two = {"a": np.ones(1), "b": np.ones(1)}
    shared = {"lr": schedules.PerEpoch(lr, steps=1)}
    optimizer = schuss.SGD(two, lr, groups=lambda name: shared if name == "b" else None)
    if how in ("load", "state_dict"):
        other = schuss.SGD(deepcopy(two), groups=lambda name: {"lr": 1} if name == "b" else None)
        schuss.save(tmp_path / "c", two, optimizer)
        if how == "load":
            schuss.load(tmp_path / "c", other.params, other)
        else:
            other.load_state_dict(optimizer.state_dict())
    else:
        other = deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, other):
        for cost in (1.0, 2.0, 3.0):
            schedules.feed([each.lr], cost)
        each.step({"a": np.ones(1), "b": np.ones(1)})
    assert optimizer.params["b"] == 1 - 0.005
    assert known(other) == known(optimizer)
