"""Writes what the NumPy reference computes, for `replay.cpp`: `python -m native.vectors FILE`.

A file consists of cases, and a case of fields: 64-bit integers and float64, both little-endian;
texts and bytes, each after its length; lists, each after its length. `Case` adds the fields.
"""

import argparse
import ctypes
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from schuss import _core, reference
from schuss._arrays import computed_dtype, zeros_like_strided
from schuss.reference._masters import MASTERS
from schuss.reference._numbers import round_into, scale_and_clip, widen, widen_grad
from schuss.reference._square_code import block_dtype, encode
from support.arrays import LAYOUTS, Array, empty_like_layout, laid_out, numbers
from support.optimizers import OPTIMIZERS, OTHER_VALUES, Kind
from support.shuffling import SplitMix64, shuffled

FLOAT32, FLOAT64, FLOAT16 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMBERS = [FLOAT32, FLOAT64, FLOAT16, BFLOAT16]  # the order of numbers::DType, before blocks
BLOCKS, BYTES = len(NUMBERS), len(NUMBERS) + 1  # of 8-bit state, and what is no number
ROLES = ["parameter", "gradient", "state", "master", "average", "copy"]  # the order of engine::Role
DECAYS = ["none", "coupled", "decoupled"]
SIZES = [(0, 3), (), (1,), (3,), (17,), (65,), (130,)]

RATE = {"lr": 0.03}


def _average(average: Array, values: Array, *, beta: float, **_: Any) -> None:
    reference.average(average, widen_grad(values, average), beta=beta)


def _sum(total: Array, grad: Array, *, first: bool, clip_value: Any, **_: Any) -> None:
    clipped = scale_and_clip(total, widen_grad(grad, total), 1.0, clip_value)
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        total[...] = clipped if first else total + clipped


def _of_row(
    param: Array, grad: Array, *, step: int, lr: float, lr_decay: float, clip_value: Any, **_: Any
) -> None:
    """Step a row whose divisor is 1: the engine sets that of each row."""
    clipped = scale_and_clip(param, grad, 1.0, clip_value)
    rate = param.dtype.type(lr / (1 + (step - 1) * lr_decay))
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        param[...] = param - rate * clipped


def _memory_floor(param: Array, grad: Array, **states: Any) -> None:
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        for array in (param, *(states[name] for name in ("first", "second") if name in states)):
            array[...] = array + grad


def _hyperparameters(kind: Kind) -> dict[str, float]:
    """Return the numbers that a rule of that kind takes; float32 has to round them."""
    values = {name: 0.97 * OTHER_VALUES[name] for name in kind.defaults if name in OTHER_VALUES}
    for flag in ("bias_correction", "lr_in_velocity"):
        if flag in kind.defaults:
            values[flag] = 1.0
    of_form = {"weight_decay", "nesterov", *kind.optional_states.values()} - {"momentum"}
    return {name: value for name, value in values.items() if name not in of_form} | RATE


# Each rule of rules.def: its reference, and its hyperparameters.
RULES: dict[str, tuple[Callable[..., None], dict[str, float]]] = {
    rule: (partial(getattr(reference, kind.kernel), **fixed), _hyperparameters(kind))
    for kind in OPTIMIZERS.values()
    for rule, fixed in kind.rules.items()
}
UPDATES = list(RULES)
RULES |= {
    "rowwise_adagrad": (_of_row, RULES["adagrad"][1]),
    "average": (_average, {"beta": 0.98}),
    "accumulation_first": (partial(_sum, first=True), RATE),
    "accumulation": (partial(_sum, first=False), RATE),
    "memory_floor_1": (_memory_floor, RATE),
    "memory_floor_2": (_memory_floor, RATE),
}
WEIGHT_DECAY = 0.1


def rule_of(name: str, decay: str, t: int) -> Callable[..., None]:
    """Return a rule's step t, as `reference.step` takes it."""
    rule, values = RULES[name]
    known = signature(rule).parameters
    options = {key: value for key, value in values.items() if key in known}
    if "step" in known:
        options["step"] = t
    can_shrink = "decoupled" in known
    if decay == "coupled" or (decay == "decoupled" and can_shrink):
        options["weight_decay"] = WEIGHT_DECAY
    if decay == "decoupled" and can_shrink:
        options["decoupled"] = True

    def step(
        param: Array,
        grad: Array,
        *states: Array,
        store: Callable[[Array, Array], None] = round_into,
        **treatment: Any,
    ) -> None:
        wide = widen(param)
        if decay == "decoupled" and not can_shrink:  # no optimizer has this, but the sweep does
            keep = wide.dtype.type(1 - values["lr"] * WEIGHT_DECAY)
            with _core.subnormals_are_zero(), np.errstate(all="ignore"):
                wide[...] = wide * keep
        named = dict(zip(_core.states(name), states, strict=True))
        rule(wide, grad, **named, **options, **treatment)
        store(param, wide)

    return step


class Snapshot:
    """The memory of an array before a case. `Case.array` reads the elements after it."""

    def __init__(self, array: Array) -> None:
        low, high = np.lib.array_utils.byte_bounds(array)
        if array.size == 0:
            low = high = array.ctypes.data
        lead = low % array.itemsize  # keeps an array unaligned that is not aligned
        self.array, self.first = array, array.ctypes.data - low + lead
        self.before = bytes(lead) + ctypes.string_at(low, high - low)


class Case:
    """The fields of a case, in the order in which they are added."""

    def __init__(self, *texts: str) -> None:
        self.data = bytearray()
        for text in texts:  # the kind and the name
            self.bytes(text.encode())

    def integers(self, *values: int) -> None:
        self.data += struct.pack(f"<{len(values)}Q", *(value % 2**64 for value in values))

    def floats(self, *values: float) -> None:
        self.data += struct.pack(f"<{len(values)}d", *values)

    def bytes(self, value: bytes) -> None:
        self.integers(len(value))
        self.data += value

    def array(self, snapshot: Snapshot) -> None:
        array = snapshot.array
        number = array.real.dtype if array.dtype.kind == "c" else array.dtype
        other = BLOCKS if array.dtype.names == block_dtype(False).names else BYTES
        self.integers(NUMBERS.index(number) if number in NUMBERS else other)
        self.integers(array.itemsize, array.ndim, *array.shape, *array.strides, snapshot.first)
        self.bytes(snapshot.before)
        self.bytes(array.tobytes())  # afterwards, in C order


def steps(
    groups: Sequence[tuple[str, str]],
    params: Sequence[Array],
    grads: Sequence[Sequence[Array]],
    *,
    state_dtype: np.dtype[Any] | str | None = None,
    rounding: str = "nearest",
    moduli: bool = False,
    average: bool = False,
    copies: np.dtype[Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    clear_grads: bool = False,
    scale: float = 1.0,
    before: int = 0,
) -> Case:
    """Make a step with each list of gradients. Parameter i is in group i modulo their number.

    state_dtype: "8bit" for blocks. rounding: of bfloat16 parameters, to "nearest" or at "random",
    or the format of their values with a master. before: the elements of a parameter that rests, in
    front of the others.
    """
    members = [i % len(groups) for i in range(len(params))]
    wide = [computed_dtype(p) for p in params]
    names, moments = _core.states(groups[0][0]), _core.nonnegative_states(groups[0][0])

    def state(param: Array, nonnegative: bool) -> Array:
        if state_dtype == "8bit":
            return encode(np.zeros(param.size, np.float32), nonnegative)
        if moduli and nonnegative:
            return np.zeros_like(param.real)
        return zeros_like_strided(param, 1, state_dtype or computed_dtype(param))

    states = [[state(p, name in moments) for name in names] for p in params]
    masters = None
    if rounding in MASTERS:
        masters = [zeros_like_strided(p, 1, MASTERS[rounding]) for p in params]
    averages = [p.astype(dtype) for p, dtype in zip(params, wide, strict=True)] if average else None
    copied = [np.zeros(p.shape, copies) for p in params] if copies else None
    snapshots = [
        [("parameter", Snapshot(p)), *(("gradient", Snapshot(each[i])) for each in grads)]
        + [("state", Snapshot(state)) for state in states[i]]
        + ([("master", Snapshot(masters[i]))] if masters else [])
        + ([("average", Snapshot(averages[i]))] if averages else [])
        + ([("copy", Snapshot(copied[i]))] if copied else [])
        for i, p in enumerate(params)
    ]
    dtypes = f"{params[-1].dtype} {grads[0][-1].dtype}, state {state_dtype}, {rounding}"
    case = Case("steps", f"{' '.join(map('/'.join, groups))} {dtypes}")
    case.integers(len(groups))
    for name, decay in groups:
        case.bytes(name.encode())
        case.integers(decay != "coupled", len(RULES[name][1]))  # its index in rules::Decay
        case.floats(0.0 if decay == "none" else WEIGHT_DECAY)
        for key, value in RULES[name][1].items():
            case.bytes(key.encode())
            case.floats(value)
    seed, beta = 3, 0.9
    case.integers(seed, clear_grads, average, rounding == "random", before, len(grads))
    limits = [np.inf if limit is None else limit for limit in (clip_norm, clip_value)]
    case.floats(*limits, beta)
    resting = [np.broadcast_to(np.zeros((), params[0].dtype), before)] if before else []
    none = [None] * len(resting)
    for t, each in enumerate(grads, start=1):
        norm, _, _ = reference.step(
            [rule_of(*groups[member], t) for member in [0] * len(resting) + members],
            [*resting, *params],
            [*none, *each],
            [*([] for _ in resting), *states],
            step=t,
            scale=scale,
            clip_norm=clip_norm,
            clip_value=clip_value,
            clear_grads=clear_grads,
            averages=averages,
            beta=beta if t > 1 else 0.0,
            copies=copied,
            masters=[*none, *masters] if masters else None,
            round_params="random" if rounding == "random" else "nearest",
            seed=seed,
        )
        case.floats(scale, norm)
    case.integers(len(params))
    for member, arrays in zip(members, snapshots, strict=True):
        case.integers(member, len(arrays))
        for role, array in arrays:
            case.integers(ROLES.index(role))
            case.array(array)
    return case


def tiny_scale(group: tuple[str, str], special: bool) -> float:
    """Return a scale that float32 does not hold.

    Lion takes the sign of the products. Where subnormals do not count as zero, as under valgrind,
    it has another sign, so that ordinary values need another scale.
    """
    return 1e-44 if special or group[0] != "lion" else 0.3


def of_formats(special: bool) -> Iterator[Callable[[], Case]]:
    """Every rule with every decay in every combination of number formats."""

    def case(
        i: int, group: tuple[str, str], of_param: Any, of_grad: Any, bfloat16_state: bool
    ) -> Case:
        rng, updates = np.random.default_rng(i), group[0] in UPDATES
        takes_gradients = not group[0].startswith(("average", "memory_floor"))
        return steps(
            [group],
            [numbers(rng, shape, of_param, special=special) for shape in SIZES],
            [[numbers(rng, s, of_grad, special=special) for s in SIZES] for _ in range(2)],
            state_dtype=BFLOAT16 if bfloat16_state else None,
            average=updates and i % 3 == 0,
            copies=BFLOAT16 if updates and i % 2 and of_param == FLOAT32 else None,
            clip_norm=3.0 if takes_gradients and i % 4 == 0 else None,
            clip_value=0.5 if i % 5 == 0 else None,
            clear_grads=i % 7 < 3,
            scale=[1.0, 0.3, 1.0, 0.3, tiny_scale(group, special)][i % 5]
            if takes_gradients
            else 1.0,
        )

    halves = [FLOAT32, FLOAT16, BFLOAT16]
    combinations = [(FLOAT64, of_grad, False) for of_grad in (FLOAT64, *halves)]
    combinations += product(halves, halves, (False, True))
    for i, (name, decay, formats) in enumerate(product(RULES, DECAYS, combinations)):
        updates = name in UPDATES
        if not updates and (decay != "none" or formats[0] in halves[1:]):
            continue
        if (name, decay) == ("lion", "coupled"):  # its reference has no such form
            continue
        if not formats[2] or (updates and _core.states(name)):
            yield partial(case, i, (name, decay), *formats)


def of_complex(special: bool) -> Iterator[Callable[[], Case]]:
    """Every rule with complex numbers, with second moments of their components or moduli."""

    def case(i: int, group: tuple[str, str], of_param: Any, moduli: bool, layout: str) -> Case:
        make = partial(numbers, np.random.default_rng(i), special=special)
        of_grad = np.complex64 if i % 3 == 0 else of_param
        shapes = [(21, 40), (3, 1, 70)]
        return steps(
            [group],
            [laid_out(make(shape, dtype=of_param), layout) for shape in shapes],
            [[laid_out(make(shape, dtype=of_grad), layout) for shape in shapes] for _ in range(2)],
            moduli=moduli,
            average=i % 2 == 0,
            clip_norm=3.0 if i % 4 == 0 else None,
            clear_grads=i % 7 < 3,
            scale=[1.0, 0.3, tiny_scale(group, special)][i % 3],
        )

    dtypes = np.complex64, np.complex128
    for i, (name, decay, dtype) in enumerate(product(UPDATES, DECAYS, dtypes)):
        if (name, decay) == ("lion", "coupled"):  # its reference has no such form
            continue
        for moduli in (False, True)[: 1 + bool(_core.nonnegative_states(name))]:
            yield partial(case, i, (name, decay), dtype, moduli, LAYOUTS[i % len(LAYOUTS)])


def of_layouts(special: bool) -> Iterator[Callable[[], Case]]:
    """Parameters and gradients in every two layouts, and several groups; large arrays."""

    def case(i: int, of_param: str, of_grad: str) -> Case:
        shapes, number = [(21, 40), (3, 1, 70), (130, 3)], [FLOAT32, FLOAT64][i % 2]
        make = partial(numbers, np.random.default_rng(i), dtype=number, special=special)
        dense = of_param in ("c", "fortran", "columns of more")
        return steps(
            [[("adam", "none"), ("adam", "decoupled")], [("momentum", "coupled")]][i % 3 == 0],
            [laid_out(make(shape), of_param) for shape in shapes],
            [[laid_out(make(shape), of_grad) for shape in shapes] for _ in range(2)],
            state_dtype=BFLOAT16 if dense and number == FLOAT32 else None,
            average=i % 5 == 0,
            clip_norm=1.0 if i % 4 == 0 else None,
            clear_grads=i % 7 < 3,
        )

    def large(name: str, number: Any) -> Case:
        rng = np.random.default_rng(1)
        param, grad = numbers(rng, (2, 3 * 16384 + 33), number, special=special)
        return steps([(name, "none")], [param], [[grad]], clip_norm=1.0)

    for i, layouts in enumerate(product(LAYOUTS, LAYOUTS)):
        yield partial(case, i, *layouts)
    yield partial(large, "adam", FLOAT32)
    yield partial(large, "sgd", FLOAT64)


def of_few_bits(special: bool) -> Iterator[Callable[[], Case]]:
    """Every rule with 8-bit state, with masters, and with parameters rounded at random."""

    def case(i: int, rule: str, state_dtype: Any, rounding: str) -> Case:
        rng = np.random.default_rng(i)
        of_param = BFLOAT16 if rounding != "nearest" else [FLOAT32, FLOAT16, BFLOAT16][i % 3]
        of_grad = [FLOAT32, BFLOAT16, FLOAT16][i // 3 % 3]
        shapes = [(), (0, 3), (21, 40), (3, 1, 70), (130, 3)]

        def make(shape: tuple[int, ...], dtype: Any, layout: str) -> Array:
            return laid_out(numbers(rng, shape, dtype, special=special), layout if shape else "c")

        layouts = LAYOUTS[i % len(LAYOUTS)], LAYOUTS[i * 2 % len(LAYOUTS)]
        return steps(
            [(rule, "none" if i % 2 else "decoupled")],
            [make(shape, of_param, layouts[0]) for shape in shapes],
            [[make(shape, of_grad, layouts[1]) for shape in shapes] for _ in range(2)],
            state_dtype=state_dtype,
            rounding=rounding,
            average=i % 3 == 0,
            clip_norm=3.0 if i % 4 == 0 else None,
            clear_grads=i % 7 < 3,
            # Products with a tiny scale are subnormal before bfloat16 state is rounded.
            scale=[1.0, 0.3, tiny_scale((rule, ""), special) if special else 2.0][i % 3],
        )

    def across_streams(state_dtype: Any, rounding: str, layout: str) -> Case:
        rng, of_param = np.random.default_rng(2), BFLOAT16 if rounding != "nearest" else FLOAT32
        params = [laid_out(numbers(rng, (40, 30), of_param, special=False), layout)]
        grads = [numbers(rng, (40, 30), of_param, special=False)]
        options = {"state_dtype": state_dtype, "rounding": rounding, "before": 2**32 - 333}
        return steps([("adam", "none")], params, [grads], **options)

    roundings = "nearest", *MASTERS, "random"
    for few in product((BFLOAT16, "8bit"), roundings, ("c", "sliced")):
        yield partial(across_streams, *few)
    for i, few in enumerate(product(UPDATES, (None, BFLOAT16, "8bit"), roundings)):
        rule, state_dtype, rounding = few
        if (state_dtype is None or _core.states(rule)) and (state_dtype, rounding) not in (
            (None, "nearest"),
            (BFLOAT16, "nearest"),
        ):
            yield partial(case, i, *few)


def others(special: bool) -> Iterator[Callable[[], Case]]:
    """Averages along an axis, orders of examples, and mini-batches."""

    def ewma(layout: str, number: Any, shape: tuple[int, ...], axis: int, corrected: bool) -> Case:
        rng = np.random.default_rng(axis)
        values = laid_out(numbers(rng, shape, number, special=special), layout)
        out = empty_like_layout(layout, shape, number)
        case = Case("ewma", f"{layout} {number}")
        before = Snapshot(values), Snapshot(out)
        out[...] = reference.ewma(values, 0.97, bias_correction=corrected, axis=axis)
        case.integers(axis, corrected)
        case.floats(0.97)
        for array in before:
            case.array(array)
        return case

    for layout, number, corrected in product(LAYOUTS, (FLOAT32, FLOAT64), (False, True)):
        for shape, axis in (((5, 40), 1), ((33, 17), 0), ((3, 1030, 2), 1), ((4, 0), 0)):
            yield partial(ewma, layout, number, shape, axis, corrected)

    def shuffle(count: int) -> Case:
        case = Case("shuffle", str(count))
        order = shuffled(list(range(count)), SplitMix64(7))
        case.integers(count, 7)
        case.bytes(np.array(order, np.int64).tobytes())
        return case

    for count in (0, 1, 2, 1000, (1 << 16) + 1):
        yield partial(shuffle, count)

    def gather(layout: str, dtype: str, shape: tuple[int, ...]) -> Case:
        rng = np.random.default_rng(5)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        values = np.frombuffer(rng.bytes(size), dtype).reshape(shape)
        examples, indices = laid_out(values, layout), rng.integers(0, shape[0], 90)
        case = Case("gather", f"{layout} {dtype} {shape}")
        case.bytes(indices.tobytes())
        case.array(Snapshot(examples))
        case.bytes(examples[indices].tobytes())
        return case

    shapes: list[tuple[int, ...]] = [(50,), (50, 7), (30, 4, 9), (2000, 3)]
    for layout, dtype in product(LAYOUTS, ("u1", "f2", "f4", "f8", "V3", "V16")):
        yield from (partial(gather, layout, dtype, shape) for shape in shapes)


def write(path: Path, *, every: int = 1, special: bool = True) -> int:
    """Write every n-th case, n being `every`; return their number."""
    generators = of_formats, of_complex, of_layouts, of_few_bits, others
    cases = [case for cases_of in generators for case in cases_of(special)][::every]
    with path.open("wb") as file:
        for case in cases:
            file.write(case().data)
    return len(cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=int, default=1, help="write every n-th case")
    parser.add_argument("--ordinary", action="store_true", help="without infinities and the like")
    chosen = parser.parse_args()
    print(write(chosen.file, every=chosen.every, special=not chosen.ordinary), file=sys.stderr)
