"""Lazy rows: only the rows of a gradient move, as in PyTorch's sparse optimizers."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from support.arrays import Array, dtype_of, equal, leaves, numbers
from support.execution import execution
from support.optimizers import (
    OPTIMIZERS,
    Options,
    assert_same,
    assert_same_outcome,
    every_optimizer,
    every_variant,
    make_optimizer,
    make_reference,
)
from support.rows import dense_of, random_rows

SHAPES = {"table": (40, 6), "long": (30,), "cube": (9, 3, 7), "wide": (5, 5000)}


def some_params(dtype: Any = np.float32, shapes: Any = SHAPES) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: numbers(rng, shape, dtype, special=False) for name, shape in shapes.items()}


class Both:
    """A lazy optimizer and its reference."""

    def __init__(self, name: str, params: dict[str, Array], **options: Any) -> None:
        options |= {"rows": "lazy"}
        self.expected = make_reference(name, copy.deepcopy(params), **options)
        self.optimizer = make_optimizer(name, params, **options)
        self.rng = np.random.default_rng(1)

    def grads(self, **options: Any) -> dict[str, Any]:
        params = self.optimizer.params
        return {
            name: None if self.rng.random() < 0.1 else random_rows(self.rng, p.shape, 4, **options)
            for name, p in params.items()
        }

    def train(self, steps: int = 6, **options: Any) -> None:
        for t in range(steps):
            grads, scale = self.grads(**options), (1.0, -0.5, 1 / 3)[t % 3]
            self.optimizer.step(grads, scale=scale)
            self.expected.step(grads, scale=scale)
            assert_same_outcome(self.optimizer, self.expected)

    def check(self) -> None:
        assert_same(self.optimizer, self.expected)


ADDED: list[dict[str, Any]] = [
    {"clip_norm": 0.5, "lr": schedules.Cosine(0.5, 6), "copies": "float16"},
    {"average": 0.5, "clip_value": 0.5, "maximize": True, "weight_decay": 0.1, "nonfinite": "skip"},
    {"average": 0.5, "average_bias_correction": True, "bounds": (-0.5, 0.5)},
]


@pytest.mark.parametrize("added", ADDED, ids=repr)
@every_variant
def test_every_rule_has_the_bits_of_the_reference(
    name: str, options: Options, added: Options
) -> None:
    both = Both(name, some_params(), **{**options, **added})
    both.train()
    both.train(1, special=True)
    both.train(2)
    both.check()


FORMATS: list[tuple[str, str, dict[str, Any]]] = [
    ("float32", "float16", {"state_dtype": "8bit", "average": 0.5}),
    ("float64", "float32", {}),
    ("float16", "float16", {"state_dtype": "bfloat16", "seed": 3}),
    ("bfloat16", "bfloat16", {"master": "float32", "state_dtype": "8bit"}),
    ("bfloat16", "bfloat16", {"master": "float24"}),
    ("bfloat16", "float32", {"round_params": "random", "state_dtype": "bfloat16"}),
    ("complex64", "complex64", {"average": 0.5}),
    ("complex128", "complex64", {"complex": "modulus"}),
]


@pytest.mark.parametrize(("dtype", "of_grad", "formats"), FORMATS)
@pytest.mark.parametrize("name", ["Adam", "Adagrad"])
def test_every_format_has_the_bits_of_the_reference(
    name: str, dtype: str, of_grad: str, formats: dict[str, Any]
) -> None:
    shapes = {"whole": (40, 128), "small": (9, 3), "long": (30,)}
    both = Both(name, some_params(dtype_of(dtype), shapes), lr=0.1, weight_decay=0.01, **formats)
    both.train(4, dtype=dtype_of(of_grad), index=np.int32)
    both.check()


@pytest.mark.parametrize("name", ["SGD", "Momentum", "AdamW", "Adagrad"])
def test_every_number_of_threads_and_level_has_the_same_bits(name: str) -> None:
    for level in schuss.available_simd():
        for threads in (1, 2, 5):
            with execution(level=level, threads=threads, tile=64, threshold=0):
                both = Both(name, some_params(), lr=0.1, clip_norm=1.0)
                both.train(3)
                both.check()


@every_optimizer
def test_a_lazy_step_is_the_dense_step_of_a_table_of_the_rows_that_it_touches(name: str) -> None:
    rng = np.random.default_rng(3)
    table = rng.standard_normal((50, 8))
    touched = np.array([40, 3, 17])
    small, before = table[touched], table.copy()
    lazy = make_optimizer(name, table, rows="lazy", lr=0.1, weight_decay=0.1)
    dense = make_optimizer(name, small, lr=0.1, weight_decay=0.1)
    for _ in range(5):
        grad = rng.standard_normal((3, 8))
        order = rng.permutation(3)
        lazy.step(schuss.Rows(touched[order], grad[order]))
        dense.step(grad)
    assert equal([table[touched]], [small])
    for state in OPTIMIZERS[name].states:
        assert equal([lazy.state[state][touched]], [dense.state[state]])
    others = np.setdiff1d(np.arange(50), touched)
    assert equal([table[others]], [before[others]])


def test_dense_gradients_move_all_rows_and_none_move_only_the_average() -> None:
    both = Both("AdamW", some_params(), lr=0.1, average=0.5)
    both.train(3)
    dense = {k: dense_of(g, both.optimizer.params[k]) for k, g in both.grads().items()}
    dense["cube"] = None
    for each in (both.optimizer, both.expected):
        each.step(dense)
    both.train(3)
    both.check()


def test_accumulated_rows_move_the_rows_of_all_batches() -> None:
    both = Both("AdamW", some_params(), lr=0.1, clear_grads=True)
    for mixed in (False, True, False):
        for number in range(3):
            grads = both.grads()
            if mixed and number == 1:
                grads["table"] = dense_of(grads["table"], both.optimizer.params["table"])
            copied = copy.deepcopy(grads)
            both.optimizer.accumulate(grads, scale=0.5)
            both.expected.accumulate(copied, scale=0.5)
        for each in (both.optimizer, both.expected):
            each.step(scale=0.3)
    both.check()


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "file"])
def test_training_goes_on_from_what_was_kept(how: str, tmp_path: Path) -> None:
    both = Both("Adam", some_params(), lr=0.1, average=0.5)
    both.train()
    optimizer = both.optimizer
    if how == "pickle":
        both.optimizer = pickle.loads(pickle.dumps(optimizer))
    else:
        both.optimizer = copy.deepcopy(optimizer)
    if how == "file":
        schuss.save(tmp_path / "c", optimizer.params, optimizer)
        schuss.load(tmp_path / "c", both.optimizer.params, both.optimizer)
    both.expected.last = both.optimizer.last
    both.train()
    both.check()
    before = [param.copy() for param in leaves(both.optimizer.params)]
    both.optimizer.flush()
    both.optimizer.rows({name: np.arange(5) for name in SHAPES})
    assert equal(before, leaves(both.optimizer.params))


# PyTorch's, in float64: to rounding.

TORCH: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Adam", {"eps": 0.0, "eps_hat": 1e-3}, "SparseAdam", {"eps": 1e-3}),
    ("Adam", {"eps": 0.0, "eps_hat": 1e-8, "maximize": True}, "SparseAdam", {"maximize": True}),
    ("SGD", {}, "SGD", {}),
    ("Adagrad", {"lr_decay": 0.1, "eps": 1e-6}, "Adagrad", {"lr_decay": 0.1, "eps": 1e-6}),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize(("name", "ours", "their_name", "theirs"), TORCH)
def test_lazy_rows_give_the_steps_of_torch(
    name: str, ours: dict[str, Any], their_name: str, theirs: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    table = rng.standard_normal((50, 8))
    parameter = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = make_optimizer(name, table, rows="lazy", lr=0.1, **ours)
    other = getattr(torch.optim, their_name)([parameter], lr=0.1, **theirs)
    for t in range(20):
        indices = rng.integers(0, 50, 12)
        values = rng.standard_normal((12, 8))
        parameter.grad = torch.sparse_coo_tensor(indices[None], torch.from_numpy(values), (50, 8))
        if t % 2:
            parameter.grad = parameter.grad.coalesce()
        other.step()
        optimizer.step(parameter.grad if t % 3 == 0 else schuss.Rows(indices, values))
        np.testing.assert_allclose(table, parameter.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_an_embedding_of_torch_gives_rows() -> None:
    torch = pytest.importorskip("torch")
    embedding = torch.nn.Embedding(20, 4, sparse=True)
    other = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    table = embedding.weight.detach().numpy().copy()
    optimizer = schuss.Adam(table, lr=0.1, eps=0.0, eps_hat=1e-8, rows="lazy")
    for _ in range(5):
        other.zero_grad()
        embedding(torch.randint(0, 20, (3, 5))).square().sum().backward()
        optimizer.step(embedding.weight.grad)
        other.step()
        np.testing.assert_allclose(table, embedding.weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scales", [(-1.0,), (1.0, -0.5), (-0.5, 1.0)])
@every_optimizer
def test_rows_of_negative_sums_rest_too(name: str, scales: tuple[float, ...]) -> None:
    params = some_params()
    params["table"][...] = -0.0  # on which the sign of a zero shows
    both = Both(name, params, lr=0.1)
    for scale in scales:
        grads = both.grads()
        for grad in grads.values():
            if grad is not None:
                grad.values[..., ::2] = 0.0
        both.optimizer.accumulate(grads, scale=scale)
        both.expected.accumulate(grads, scale=scale)
    both.optimizer.step()
    both.expected.step()
    both.check()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_parameters_without_elements_have_rows(shape: tuple[int, ...]) -> None:
    optimizer = schuss.Adam(np.zeros(shape), rows="lazy")
    for length in {0, min(shape[0], 1)}:
        rows = schuss.Rows(np.zeros(length, int), np.zeros((length, *shape[1:])))
        optimizer.step(rows)
        optimizer.accumulate(rows)
        optimizer.step()
    optimizer.flush()
