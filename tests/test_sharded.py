"""A sharded optimizer does what one process does with the summed gradients, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.mpi import Sharded
from support.arrays import LAYOUTS, Array, dtype_of
from support.optimizers import every_variant
from support.ranks import run
from support.sharded import (
    SHAPES,
    assert_same,
    compare,
    contents,
    new_grads,
    new_params,
    summed,
)

every_size = pytest.mark.parametrize("ranks", [1, 2, 3, 4])


@every_variant
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_optimizer_does_what_one_process_does(name: str, options: Any, ranks: int) -> None:
    compare(name, ranks, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "clip_norm": {"clip_norm": 0.5},
    "clip_norm, float64": {"clip_norm": 0.5, "dtypes": ["float64", "float32"]},
    "clip_value": {"clip_value": 0.01},
    "raise": {"nonfinite": "raise"},
    "skip": {"nonfinite": "skip", "clip_norm": 1.0},
    "average": {"average": 0.9},
    "average from zero": {"average": 0.9, "average_bias_correction": True},
    "maximize": {"maximize": True},
    "bounds": {"bounds": (-0.5, 0.5)},
    "bfloat16 state": {"state_dtype": "bfloat16", "seed": 3},
    "8-bit state": {"state_dtype": "8bit", "seed": 3},
    "8-bit state of float16": {"state_dtype": "8bit", "dtypes": ["float16", "float32"]},
    "master float32": {"master": "float32", "dtypes": ["bfloat16", "float32"], "average": 0.5},
    "master float24": {"master": "float24", "dtypes": ["bfloat16", "float32"]},
    "random rounding": {"round_params": "random", "dtypes": ["bfloat16", "float32"]},
    "float16": {"dtypes": ["float16"]},
    "bfloat16": {"dtypes": ["bfloat16", "float64"], "average": 0.5},
    "components": {"dtypes": ["complex64", "float32"], "clip_norm": 0.5},
    "modulus": {"dtypes": ["complex128", "complex64"], "complex": "modulus", "average": 0.5},
    "new copies": {"copies": lambda: "float16"},
    "given copies": {"copies": lambda: {n: np.zeros(s, np.float16) for n, s in SHAPES.items()}},
    "track_norms": {"track_norms": True, "clip_norm": 0.5},
    "schedule": {"lr": lambda t: 0.5 / t},
}


@every_size
@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_does_what_it_does_in_one_process(case: str, ranks: int) -> None:
    options = dict(OPTIONS[case])
    dtypes = options.pop("dtypes", ["float32"])
    compare("AdamW", ranks, params=lambda: new_params(*dtypes), **{"lr": 0.1, **options})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit", "average": 0.9}], ids=str)
def test_parameters_may_have_any_memory_layout(layout: str, options: dict[str, Any]) -> None:
    compare("Adam", 3, params=lambda: new_params(layout=layout), clip_norm=1.0, **options)


@pytest.mark.parametrize("name", ["Adam", "Lion", "RMSprop"])
def test_groups_have_hyperparameters_of_their_own(name: str) -> None:
    own: dict[str, dict[str, Any]] = {
        "V": {"lr": 0.5},
        "b": {"frozen": True},
        "s": {"lr": lambda t: 1 / t},
    }
    groups = own.get

    compare(name, 3, groups=groups, clip_norm=1.0, lr=0.1)


def test_parameters_may_be_a_list_of_groups() -> None:
    def params() -> list[dict[str, Any]]:
        known = new_params()
        first = {"params": {key: known[key] for key in ("W", "b")}, "weight_decay": 0.5}
        return [first, {"params": [known["V"], known["s"]], "lr": 0.5}]

    def grads(_: Any, rank: int, step: int) -> list[Any]:
        known = new_grads(new_params(), rank, step)
        return [{key: known[key] for key in ("W", "b")}, [known["V"], known["s"]]]

    def total(terms: Sequence[Any]) -> list[Any]:
        first = summed([term[0] for term in terms])
        second = summed([{str(i): grad for i, grad in enumerate(term[1])} for term in terms])
        return [first, [*second.values()]]

    compare("AdamW", 3, params=params, grads=grads, total=total, average=0.5)


@pytest.mark.parametrize("size", [3, 1000])
def test_parameters_may_be_one_array(size: int) -> None:
    def step(optimizer: Any, grad: Any, rank: int, t: int) -> None:
        optimizer.step(grad)
        optimizer.param_groups[0]["frozen"] = True  # its gradient is not read
        optimizer.step(grad * np.float32(np.nan))
        optimizer.param_groups[0]["frozen"] = False

    def grads(_: Any, rank: int, t: int) -> Array:
        return np.full(size, rank + t, np.float32)

    def program(comm: Any) -> Any:
        param, rank = np.ones(size, np.float32), comm.Get_rank()
        optimizer: Any = Sharded(schuss.Adam, param, comm)
        for t in (1, 2):
            step(optimizer, grads(param, rank, t), rank, t)
        return contents(optimizer)

    one: Any = schuss.Adam(np.ones(size, np.float32))
    for t in (1, 2):
        step(one, np.full(size, 1 + t, np.float32), 0, t)
    assert_same(run(program, 3), [contents(one)] * 3)


@every_size
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "average": 0.9, "copies": "float16"}])
def test_a_parameter_rests_where_no_rank_has_a_gradient(options: Any, ranks: int) -> None:
    def grads(params: Any, rank: int, step: int) -> dict[str, Any]:
        found = new_grads(params, rank, step)
        if step == 2:  # W on all, V and b on some
            found |= {"W": None} | ({"V": None} if rank % 2 else {"b": None})
        return found

    options = {key: (lambda: "float16") if key == "copies" else v for key, v in options.items()}
    compare("Adam", ranks, grads=grads, **options)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed"])
def test_gradients_may_have_16_bits(dtype: str, ranks: int) -> None:
    def grads(params: Any, rank: int, step: int) -> dict[str, Any]:
        found = new_grads(params, rank, step)
        kinds = [dtype_of(dtype)] if dtype != "mixed" else [np.float32, np.float16]
        return {key: value.astype(kinds[rank % len(kinds)]) for key, value in found.items()}

    def total(terms: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return summed([{key: value.astype("f4") for key, value in t.items()} for t in terms])

    compare("Adam", ranks, grads=grads, total=total, clip_norm=0.5)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16"])
def test_gradients_are_rounded_to_16_bits_on_the_wire(wire_dtype: str, ranks: int) -> None:
    def total(terms: Sequence[dict[str, Any]]) -> dict[str, Any]:
        def rounded(grad: Array) -> Array:
            is_32 = grad.dtype == np.float32
            return grad.astype(dtype_of(wire_dtype)).astype("f4") if is_32 else grad

        return summed([{key: rounded(value) for key, value in t.items()} for t in terms])

    params = lambda: new_params("float32", "float64")  # noqa: E731
    compare("Adam", ranks, params=params, total=total, sharded={"wire_dtype": wire_dtype})


def test_the_sum_of_the_gradients_may_be_taken() -> None:
    compare("SGD", 3, scale=lambda _: 1.0, sharded={"reduction": "sum"})


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 30])
def test_buckets_may_have_any_size(bucket_bytes: int, deterministic: bool) -> None:
    sharded = {"bucket_bytes": bucket_bytes, "deterministic": deterministic}
    compare("AdamW", 3, sharded=sharded, clip_norm=0.1)
    compare("AdamW", 2, sharded=sharded, state_dtype="8bit")


# Weights, and by what they are multiplied, which changes no bits.
WEIGHTS = [
    ([3.0, 0.5, 0.0], 1.0),
    ([3.0, 0.5, 0.0], 2.0**1000),
    ([3.0, 0.5, 0.0], 2.0**-1070),
    ([2.0, 2.0, 2.0], 1.0),
    ([0.0, 1.0, 0.0], 3.0),
    ([1.0, 0.0, 1.0], 3e300),
]


@pytest.mark.parametrize(("weights", "factor"), WEIGHTS)
def test_the_gradients_of_the_ranks_may_have_weights(weights: list[float], factor: float) -> None:
    def total(terms: Sequence[dict[str, Any]]) -> dict[str, Any]:
        weighted = [
            {k: None if g is None else np.multiply(g, np.float32(weight)) for k, g in term.items()}
            for term, weight in zip(terms, weights, strict=True)
            if weight
        ]
        return summed(terms if len({*weights}) == 1 else weighted)

    def step(optimizer: Any, grads: Any, rank: int, t: int) -> None:
        if weights[rank] == 0:  # whatever they are
            nans = {key: np.full_like(param, np.nan) for key, param in optimizer.params.items()}
            grads = [None, nans][t % 2]
        optimizer.step(grads, scale=0.5, weight=weights[rank] * factor)

    def grads(params: Any, rank: int, step: int) -> dict[str, Any]:
        return {**new_grads(params, rank, step), **({"V": None} if (rank, step) == (1, 3) else {})}

    divisor = 3 if len({*weights}) == 1 else sum(weights)
    scale = lambda _: 0.5 / divisor  # noqa: E731
    compare("Adam", 3, grads=grads, total=total, scale=scale, step=step, clip_norm=0.1)


@every_size
@pytest.mark.parametrize("overwrite_grads", [False, True])
def test_each_rank_accumulates_gradients_of_its_own(overwrite_grads: bool, ranks: int) -> None:
    def step(optimizer: Any, grads: Any, rank: int, t: int) -> None:
        optimizer.accumulate(grads, overwrite_grads=overwrite_grads)
        optimizer.accumulate({**new_grads(optimizer.params, rank, -t % 97), "V": None})
        assert optimizer.accumulated == 2
        optimizer.step(scale=1 / 2)
        assert optimizer.accumulated == 0

    def grads(params: Any, rank: int, step: int) -> dict[str, Any]:
        return new_grads(params, rank, step)

    def total(terms: Sequence[dict[str, Any]]) -> dict[str, Any]:
        steps.append(len(steps) + 1)
        pairs = []
        for rank, term in enumerate(terms):
            more = {**new_grads(new_params(), rank, -steps[-1] % 97), "V": None}
            pairs.append(summed([term, more]))
        return summed(pairs)

    steps: list[int] = []
    compare(
        "Adam",
        ranks,
        grads=grads,
        total=total,
        step=step,
        scale=lambda ranks: 0.5 / ranks,
        clip_norm=0.1,
    )


def test_clear_grads_clears_the_gradients_of_each_rank() -> None:
    def step(optimizer: Any, grads: Any, rank: int, t: int) -> None:
        optimizer.step(grads)
        assert all(not grad.any() for key, grad in grads.items() if key != "b")
        assert grads["b"].any()

    groups = lambda name: {"frozen": name == "b"}  # noqa: E731
    compare("SGD", 3, step=step, clear_grads=True, groups=groups)


def test_zero_grad_drops_what_was_accumulated() -> None:
    def step(optimizer: Any, grads: Any, rank: int, t: int) -> None:
        if rank:
            optimizer.accumulate(grads)
            optimizer.zero_grad()
        optimizer.step(grads)

    compare("SGD", 2, step=step)


@pytest.mark.parametrize("options", [{}, {"average": 0.5}, {"average_bias_correction": True}])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_group_may_be_added(ranks: int, options: dict[str, Any]) -> None:
    options = {"lr": 0.1, "state_dtype": "8bit", "clip_norm": 0.1, "average": 0.9, **options}

    def train(
        make: Callable[[Any], Any], step: Callable[[Any, list[str], int], None], rank: int = 0
    ) -> Any:
        known = new_params()
        optimizer = make([{"params": {"W": known["W"]}}])
        for t in (1, 2):
            step(optimizer, ["W"], t)
        known["V"] += rank  # that of rank 0 counts
        optimizer.add_group({"params": {"V": known["V"]}, "lr": 0.5})
        for t in (3, 4):
            step(optimizer, ["W", "V"], t)
        return contents(optimizer)

    def grads(rank: int, keys: list[str], t: int) -> dict[str, Any]:
        return {key: new_grads(new_params(), rank, t)[key] for key in keys}

    def program(comm: Any) -> Any:
        rank = comm.Get_rank()
        return train(
            lambda params: Sharded(schuss.AdamW, params, comm, **options),
            lambda opt, keys, t: opt.step([{key: g} for key, g in grads(rank, keys, t).items()]),
            rank,
        )

    def step(optimizer: Any, keys: list[str], t: int) -> None:
        total = summed([grads(rank, keys, t) for rank in range(ranks)])
        optimizer.step([{key: g} for key, g in total.items()], scale=1 / ranks)

    expected = train(lambda params: schuss.AdamW(params, **options), step)
    for ours in run(program, ranks):
        assert_same(ours, expected)


def test_settings_may_be_changed_between_steps_on_all_ranks() -> None:
    changes: dict[int, dict[str, Any]] = {
        2: {"amsgrad": True, "average": 0.5, "lr": 0.5},
        3: {"clip_norm": 0.01},
        4: {"average": None, "nonfinite": "raise", "track_norms": True},
    }

    def before(optimizer: Any, t: int) -> None:
        for name, value in changes.get(t, {}).items():
            setattr(optimizer, name, value)

    params = lambda: new_params("float32", layout="sliced")  # noqa: E731
    compare("Adam", 3, params=params, before=before, steps=5, state_dtype="8bit")


@dataclass
class Layer:
    weights: Any
    bias: Any
    name: str = field(default="", metadata={"static": True})


@pytest.mark.parametrize("ranks", [1, 2])
def test_parameters_may_have_any_structure(ranks: int) -> None:
    def tree(values: dict[str, Any]) -> Any:
        return (Layer(values["W"], [values["b"], None]), [], {"V": values["V"], 3: values["s"]})

    def params() -> Any:
        return tree(new_params())

    def grads(_: Any, rank: int, t: int) -> Any:
        return tree({**new_grads(new_params(), rank, t), "s": 0.5})

    def program(comm: Any) -> Any:
        optimizer: Any = Sharded(schuss.AdamW, params(), comm, average=0.5)
        optimizer.step(grads(None, comm.Get_rank(), 1))
        average = optimizer.average
        assert (type(optimizer.state["m"]), type(average[0])) == (tuple, Layer)
        return optimizer.params[2], average[0].weights, average[0].bias

    one: Any = schuss.AdamW(params(), average=0.5)
    known = summed([new_grads(new_params(), rank, 1) for rank in range(ranks)])
    one.step(tree({**known, "s": 0.5 * ranks}), scale=1 / ranks)
    expected = one.params[2], one.average[0].weights, one.average[0].bias
    assert_same(run(program, ranks), [expected] * ranks)
