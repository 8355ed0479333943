"""A fused step gives the bits of the NumPy reference: any size, layout, level, threads, tiles."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import kernels, reference
from support.arrays import (
    LAYOUTS,
    Array,
    dtype_of,
    equal,
    laid_out,
    numbers,
    random_arrays,
    same_bits,
)
from support.cases import CASES, Case, run
from support.execution import execution
from support.optimizers import (
    OPTIMIZERS,
    assert_same,
    assert_same_outcome,
    make_optimizer,
    make_reference,
)

LANE_EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 129)
TILE = 512
SIZES = (*LANE_EDGES, TILE - 1, TILE, TILE + 1, 3 * TILE + 5)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def assert_same_steps(case: Case, param: Array, gradients: list[Array], expected: Array) -> None:
    results = run(case, kernels, param, gradients), run(case, reference, expected, gradients)
    for name, a, b in zip(("param", *case.all_states), *results, strict=True):
        assert same_bits(a, b), name


# Kernels.


@every_case
@every_dtype
@pytest.mark.usefixtures("level", "memory")
def test_every_size_and_offset_gives_the_references_bits(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    with execution(tile=TILE):
        for size in SIZES:
            for offset in (0, 1, 3):
                space = numbers(rng, (4, size + offset), dtype)
                param, *gradients = space[:, offset:]
                assert_same_steps(case, param, gradients, param.copy())


@every_case
@every_dtype
def test_several_tiles_of_the_shipped_size_give_the_references_bits(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    param, *gradients = numbers(rng, (3, 3 * 16384 + 33), dtype)
    assert_same_steps(case, param, gradients, param.copy())


@pytest.mark.parametrize("case", [*CASES[3::6], CASES[-2]], ids=str)
@every_dtype
@pytest.mark.parametrize("shape", [(40,), (33, 70), (3, 9, 4, 5), (200, 2), (1, 6, 1), ()], ids=str)
@pytest.mark.parametrize("tile", [1, 7, 64, 5000])
def test_every_layout_of_parameter_and_gradient_gives_the_references_bits(
    case: Case, dtype: Any, shape: tuple[int, ...], tile: int
) -> None:
    with execution(tile=tile):
        assert_same_steps_in_every_layout(case, dtype, shape)


@every_case
@every_dtype
@pytest.mark.usefixtures("level")
def test_every_rule_gives_the_references_bits_in_every_layout_at_every_level(
    case: Case, dtype: Any
) -> None:
    with execution(tile=TILE):
        assert_same_steps_in_every_layout(case, dtype, (21, 40))


def assert_same_steps_in_every_layout(case: Case, dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    values, *gradient_values = (numbers(rng, shape, dtype) for _ in range(3))
    layouts = LAYOUTS if shape else ["c", "unaligned", "packed fields"]
    gradients_in = {layout: [laid_out(g, layout) for g in gradient_values] for layout in layouts}
    if shape:
        gradients_in["broadcast"] = [np.broadcast_to(g[..., :1], shape) for g in gradient_values]
    for gradient_layout, gradients in gradients_in.items():
        expected = list(run(case, reference, values.copy(), gradients))
        for param_layout in layouts:
            state_layouts = iter(layouts[::-1] * len(case.all_states))

            def make_state(like: Array, state_layouts: Iterator[str] = state_layouts) -> Array:
                return laid_out(np.zeros_like(like), next(state_layouts))

            fused = run(case, kernels, laid_out(values, param_layout), gradients, make_state)
            assert equal(list(fused), expected), (param_layout, gradient_layout)


@pytest.mark.parametrize("case", [*CASES[::4], CASES[-2]], ids=str)
@every_dtype
@pytest.mark.parametrize("layout", ["c", "fortran", "columns of more"])
def test_large_arrays_with_gradients_across_them_give_the_references_bits(
    case: Case, dtype: Any, layout: str
) -> None:
    rng = np.random.default_rng(4)
    values, gradient = (numbers(rng, (517, 390), dtype) for _ in range(2))
    expected = list(run(case, reference, values.copy(), [gradient]))
    for gradient_layout in ("c", "fortran", "sliced"):
        fused = run(case, kernels, laid_out(values, layout), [laid_out(gradient, gradient_layout)])
        assert equal(list(fused), expected), gradient_layout


@every_case
@every_dtype
def test_any_values_in_the_state_give_the_references_bits(case: Case, dtype: Any) -> None:
    param, *gradients = numbers(np.random.default_rng(8), (3, 300), dtype)
    results = []
    for module in (kernels, reference):
        rng = np.random.default_rng(9)
        state = lambda like, rng=rng: numbers(rng, like.shape, dtype)  # noqa: E731
        results.append(list(run(case, module, param.copy(), gradients, state)))
    assert equal(*results)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, float])
def test_numpy_scalars_as_hyperparameters_give_the_references_bits(scalar: Any) -> None:
    param, *gradients = numbers(np.random.default_rng(10), (4, 300), np.float32)
    params, states = [param, param.copy()], np.zeros((2, 4, 300), np.float32)
    lr: Any = scalar(0.03)
    steps: Any = np.arange(1, 4)
    for module, p, state in zip((kernels, reference), params, states, strict=True):
        for t, gradient in zip(steps, gradients, strict=True):
            decay = {"weight_decay": scalar(0.1), "decoupled": True}
            module.adam(p, gradient, *state[:2], step=t, lr=lr, **decay)
            module.momentum(p, gradient, state[2], step=t, lr=lr)
            module.rmsprop(p, gradient, state[3], lr=lr, beta=scalar(0.7))
    assert same_bits(*params)
    assert same_bits(*states)


@pytest.mark.parametrize(
    ("rule", "states"), [("momentum", 1), ("adam", 2), ("adamax", 2), ("nadam", 2), ("radam", 2)]
)
@every_dtype
def test_the_bias_correction_gives_the_references_bits_where_it_ends(
    rule: str, states: int, dtype: Any
) -> None:
    # 1 - 0.9**t is 1 from t = 356 on, and 1 - 0.999**t from t = 37,412 on.
    for step in (340, 355, 356, 380, 381, 8000, 37_000, 37_411, 37_412, 38_001, 10**9):
        arrays = [np.full(3, 0.1, dtype) for _ in range(2 + states)]
        expected = [array.copy() for array in arrays]
        getattr(kernels, rule)(*arrays, lr=0.1, step=step)
        getattr(reference, rule)(*expected, lr=0.1, step=step)
        assert all(map(same_bits, arrays, expected)), step


def test_a_rate_next_to_the_subnormals_gives_the_references_bits() -> None:
    rate = float(np.finfo(np.float32).tiny) * (1 - 2.0**-25)
    param, expected = np.zeros((2, 1), np.float32)
    kernels.sgd(param, np.full(1, 1e30, np.float32), lr=rate)
    reference.sgd(expected, np.full(1, 1e30, np.float32), lr=rate)
    assert same_bits(param, expected)
    assert param != 0


@every_case
@every_dtype
def test_cutting_an_array_changes_no_bit(case: Case, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    size = 150
    param, *gradients = numbers(rng, (3, size), dtype)
    with execution(tile=37):
        whole = list(run(case, kernels, param.copy(), gradients))
        for cut in range(size + 1):
            parts = [
                list(run(case, kernels, param[part].copy(), [g[part] for g in gradients]))
                for part in (slice(cut), slice(cut, None))
            ]
            for array, *pieces in zip(whole, *parts, strict=True):
                assert same_bits(array, np.concatenate(pieces)), cut


# Optimizers.


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.float32, {}),
        (np.float64, {}),
        ("bfloat16", {"state_dtype": "bfloat16", "clip_norm": 1.0}),
    ],
)
def test_an_array_passed_as_many_gives_the_same_bits(dtype: Any, options: dict[str, Any]) -> None:
    dtype = dtype_of(dtype)
    rng = np.random.default_rng(6)
    size = 20_000 if options else 1000
    param, *gradients = numbers(rng, (4, size), dtype, special=not options)
    whole = param.copy()
    one = schuss.Adam(whole, lr=0.03, **options)
    for gradient in gradients:
        one.step(gradient)
    for cuts in ([size // 2], [1, 2, 3, 17, 500, 999], [*range(1, 1000)], [1, 4096, 4097, 12_345]):
        cuts = [cut for cut in cuts if cut < size]
        pieces = np.split(param.copy(), cuts)
        many = schuss.Adam(pieces, lr=0.03, **options)
        for gradient in gradients:
            many.step(np.split(gradient, cuts))
        assert many.last == one.last
        assert same_bits(np.concatenate(pieces), whole)
        for name in ("m", "v"):
            assert same_bits(np.concatenate(many.state[name]), one.state[name])


# Threads, SIMD level and tiles change no bit of what an optimizer does.


@dataclass(frozen=True)
class Job:
    """An optimizer and what it does."""

    name: str = "Adam"
    options: Mapping[str, Any] = field(default_factory=dict)
    of_params: str = "float32"
    of_grads: tuple[str, ...] = ()
    """The dtypes of successive gradients; by default, that of the parameters."""
    groups: tuple[Mapping[str, Any], ...] = ({},)
    accumulates: bool = False
    special: bool = False
    infinite: bool = False
    """Whether the second gradient has an infinity."""

    def run(self, make: Any) -> tuple[Any, list[Array]]:
        """Return an optimizer after its steps, and its gradients."""
        rng = np.random.default_rng(1)
        params = random_arrays(rng, dtype_of(self.of_params))
        optimizer = make(
            self.name,
            params,
            **{"lr": 0.1} | dict(self.options),
            groups=lambda name: self.groups[int(name) % len(self.groups)],
        )
        all_grads = []
        for i, dtype in enumerate((self.of_grads or (self.of_params,)) * 2):
            grads = random_arrays(rng, dtype_of(dtype), special=self.special)
            if self.infinite and i == 1:
                grads[3][5] = np.inf
            all_grads += grads
            scale = [1.0, 0.5, -3.0, 1e-3, 1 / 3][i % 5]
            if self.accumulates:
                optimizer.accumulate(grads, scale=scale)
            else:
                optimizer.step(grads, scale=scale)
        if self.accumulates:
            optimizer.step()
        return optimizer, all_grads


CLIPPING = {"clip_norm": 3.0, "clip_value": 0.02, "track_norms": True}
OF_8_BITS: list[tuple[str, str, tuple[str, ...], Mapping[str, Any]]] = [
    ("Momentum", "float32", ("float32", "float32"), {"bounds": (-0.5, 0.75)}),
    ("Adam", "float32", ("bfloat16", "float32"), {"maximize": True}),
    ("Adam", "float16", ("float16", "float16"), {"amsgrad": True}),
    ("RMSprop", "bfloat16", ("float32",), {"centered": True, "momentum": 0.5}),
    ("Adagrad", "bfloat16", ("bfloat16",), {"round_params": "random"}),
]
JOBS = {
    "clip the norm of float32": Job(options={"clip_norm": 1.0}),
    "clip the norm of float64": Job(options={"clip_norm": 1.0}, of_params="float64"),
    "clip, skip, average, clear gradients, write copies": Job(
        options={
            "clip_norm": 3.0,
            "clip_value": 0.02,
            "nonfinite": "skip",
            "average": 0.9,
            "clear_grads": True,
            "copies": "float16",
            "track_norms": True,
        },
        of_grads=("float32", "float32"),
        infinite=True,
    ),
    "clip, average, clear gradients of complex64": Job(
        options={
            "clip_norm": 3.0,
            "average": 0.9,
            "clear_grads": True,
            "weight_decay": 0.1,
            "track_norms": True,
        },
        of_params="complex64",
        special=True,
    ),
    "clip, skip, average the moduli of complex64 for complex128": Job(
        options={
            "complex": "modulus",
            "clip_norm": 3.0,
            "nonfinite": "skip",
            "average": 0.9,
            "track_norms": True,
        },
        of_params="complex128",
        of_grads=("complex64", "complex128"),
        infinite=True,
    ),
    "average the moduli with rates that float32 does not hold": Job(
        "RMSprop",
        options={"complex": "modulus", "centered": True, "momentum": 0.5, "lr": 1e-40},
        of_params="complex64",
        special=True,
    ),
    "accumulate complex numbers for groups": Job(
        "AdamW",
        options={"complex": "modulus", "amsgrad": True, "clear_grads": True},
        of_params="complex64",
        groups=({}, {"lr": 0.5}),
        accumulates=True,
    ),
    "climb within bounds": Job(
        options={"bounds": (-0.5, 0.75)}, groups=({}, {"maximize": True, "bounds": (None, 0.5)})
    ),
    "accumulate for groups": Job("SGD", groups=({}, {"lr": 0.5}), accumulates=True),
    **{
        f"state of 8 bits of {name} for {of_params}": Job(
            name,
            options={
                "state_dtype": "8bit",
                "clip_norm": 3.0,
                "average": 0.9,
                "track_norms": True,
                "copies": "float16" if of_params == "float32" else None,
                **more,
            },
            of_params=of_params,
            of_grads=of_grads,
            groups=({}, {"lr": 0.5}),
        )
        for name, of_params, of_grads, more in OF_8_BITS
    },
    "accumulate for state of 8 bits, with NaN": Job(
        "AdamW", options={"state_dtype": "8bit"}, accumulates=True, special=True
    ),
    **{
        f"keep a master in {master}, {state_dtype} state": Job(
            options={
                "master": master,
                "state_dtype": state_dtype,
                "clip_norm": 3.0,
                "average": 0.9,
                "track_norms": True,
                "bounds": (-0.7, 1.1),
            },
            of_params="bfloat16",
            of_grads=("bfloat16", "float32"),
            special=state_dtype is None,
        )
        for master in ("float32", "float24")
        for state_dtype in (None, "bfloat16", "8bit")
    },
    "round parameters at random": Job(
        "SGD",
        options={"round_params": "random", "average": 0.9, "bounds": (-0.7, 1.1)},
        of_params="bfloat16",
        of_grads=("float32",),
        special=True,
    ),
    "round state at random": Job(
        options={
            "weight_decay": 0.1,
            "state_dtype": "bfloat16",
            "clip_norm": 1.0,
            "track_norms": True,
        },
        of_params="bfloat16",
        of_grads=("float16",),
    ),
    **{
        f"step groups of {name} {i}": Job(name, {**settings, **CLIPPING}, groups=({}, *overrides))
        for name, kind in OPTIMIZERS.items()
        for i, (settings, *overrides) in enumerate(kind.groups)
    },
    **{
        f"accumulate and clear {'/'.join(of_grads)} for {of_params}": Job(
            name="SGD",
            options={"lr": 0.5, "clear_grads": True},
            of_params=of_params,
            of_grads=of_grads,
            accumulates=True,
            special=True,
        )
        for of_params, of_grads in [
            ("float32", ("float32",)),
            ("float64", ("float64", "float32", "bfloat16")),
            ("float32", ("float16",)),
            ("float32", ("bfloat16", "float32", "float16")),
            ("float16", ("float16", "float32")),
            ("bfloat16", ("bfloat16",)),
        ]
    },
}


@cache
def expected_of(job: str) -> tuple[Any, list[Array]]:
    return JOBS[job].run(make_reference)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tile", [1, 64, 1000])
def test_what_an_optimizer_does_has_the_same_bits_on_any_threads_level_and_tiles(
    job: str, threads: int, tile: int
) -> None:
    with execution(threads=threads, tile=tile, threshold=0):
        optimizer, grads = JOBS[job].run(make_optimizer)
    expected, same_grads = expected_of(job)
    assert_same(optimizer, expected)
    assert_same_outcome(optimizer, expected)
    assert equal(grads, same_grads)
