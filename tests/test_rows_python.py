"""Gradients of some rows: how they are made, and that readers of parameters see all steps."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import Rows
from support.arrays import same_bits
from support.optimizers import assert_same

# PyTorch warns that its sparse tensors are not checked, or new.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

N, D = 30, 5
RNG = np.random.default_rng


def rows_of(seed: int, k: int = 8, dtype: Any = np.float32) -> Rows:
    rng = RNG(seed)
    return Rows(rng.integers(0, N, k), rng.standard_normal((k, D)).astype(dtype))


# How rows are made.


@pytest.mark.parametrize(
    ("indices", "values", "error", "words"),
    [
        (None, np.ones((1, 2)), TypeError, "Rows: indices"),
        (np.array([0.0]), np.ones((1, 2)), TypeError, "Rows: indices"),
        (np.array([True]), np.ones((1, 2)), TypeError, "Rows: indices"),
        (np.array([0], np.uint8), np.ones((1, 2)), TypeError, "np.int64"),
        (np.array([[0]]), np.ones((1, 2)), ValueError, "expected one axis"),
        (np.array([0]), np.ones((2, 2)), ValueError, "(1, ...)"),
        (np.array([0]), np.float64(1), (TypeError, ValueError), "Rows: values"),
        (np.array([0]), np.ones((1, 2), int), TypeError, "Rows: values"),
        ([0], [np.ma.ones(2)], TypeError, "Rows: values"),
    ],
)
def test_what_is_no_rows_is_refused(indices: Any, values: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        Rows(indices, values)
    assert words in str(caught.value)


@pytest.mark.parametrize("length", [-1, 1.5, True])
def test_a_length_is_a_count(length: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"Rows: length is"):
        Rows([0], [1.0], length)


def test_rows_keep_the_arrays_that_they_are_given() -> None:
    indices, values = np.array([3, 3], np.int32), np.ones((2, D))
    rows = Rows(indices, values)
    assert np.shares_memory(rows.indices, indices)
    assert np.shares_memory(rows.values, values)
    assert len(rows) == 2
    assert Rows([], np.ones((0, D))).indices.dtype == np.int64
    assert repr(rows) == f"<Rows: 2 of shape ({D},), float64>"


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2), (0, 3), (6, 0)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_the_rows_of_a_dense_array_are_those_that_are_not_zero(shape: Any, dtype: str) -> None:
    dense = RNG(0).standard_normal(shape).astype(dtype)
    dense[1:3], dense[3:4] = -0.0, np.nan
    rows = Rows.from_dense(dense)
    assert rows.indices.tolist() == ([0, 3, 4, 5] if dense.size else [])
    assert same_bits(rows.values, dense[rows.indices])
    assert rows.length == shape[0]
    np.testing.assert_array_equal(rows.to_dense(), dense)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("computed", [None, "complex128"])
def test_duplicates_are_added_up_in_their_order(dtype: str, computed: Any) -> None:
    rng = RNG(1)
    indices, values = rng.integers(0, 3, 50), (rng.standard_normal((50, 2)) * 100).astype(dtype)
    expected = np.zeros((4, 2), computed or ("float32" if dtype == "float16" else dtype))
    for index, value in zip(indices, values, strict=True):
        expected[index] = expected[index] + value.astype(expected.dtype)
    assert same_bits(Rows(indices, values).to_dense(4, dtype=computed), expected)


def test_subnormal_numbers_count_as_zero_as_in_a_step() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    values = np.array([tiny, tiny / 2, tiny, -1.5 * tiny], np.float32)
    assert Rows([0, 0, 1, 1], values).to_dense().tolist() == [tiny, 0]


@pytest.mark.parametrize(
    ("indices", "options", "words"),
    [
        ([-1], {}, "indices have -1, expected 0 or more"),
        ([2], {"length": 2}, "indices have 2, expected 0 <= index < 2"),
        ([2], {"length": 1.5}, "length is a float"),
        ([2], {"dtype": "float32"}, "dtype is float32"),
        ([2], {"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_a_dense_array_without_place_for_the_rows_is_refused(
    indices: Any, options: Any, words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Rows(indices, np.ones((1, 2))).to_dense(**options)


def test_the_length_of_a_dense_array_is_that_of_the_rows() -> None:
    rows = Rows([1], np.ones((1, 2)), length=5)
    assert rows.to_dense(5).shape == (5, 2)
    with pytest.raises(ValueError, match=r"^Rows\.to_dense: length is 7, expected 5"):
        rows.to_dense(7)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda rows: pickle.loads(pickle.dumps(rows))]
)
def test_copies_and_pickles_are_the_same_rows(copied: Callable[[Rows], Rows]) -> None:
    rows = Rows([1, 0], np.ones((2, D), np.float32), 7)
    other = copied(rows)
    assert other.length == 7
    assert other.indices.tolist() == [1, 0]
    assert same_bits(other.values, rows.values)
    assert np.shares_memory(other.values, rows.values) == (copied is copy.copy)


# Sparse tensors and arrays.


def elements(seed: int, shape: tuple[int, ...], k: int = 20) -> tuple[Any, Any]:
    """Return coordinates of elements, some of them equal and none in the first row; and values."""
    rng = RNG(seed)
    coords = [rng.integers(axis == 0, size, k) for axis, size in enumerate(shape)]
    return tuple(coords), rng.standard_normal(k).astype(np.float32)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("layout", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_rows_of_sparse_arrays_of_scipy(layout: str, kind: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    (rows, columns), values = elements(0, (N, D))
    coo = getattr(sparse, f"coo_{kind}")((values, (rows, columns)), shape=(N, D))
    array = getattr(sparse, f"{layout}_{kind}")(coo)
    found = Rows.from_sparse(array)
    stored = np.unique(array.tocoo().row)
    assert found.indices.tolist() == stored.tolist()
    assert found.length == N
    np.testing.assert_array_equal(found.to_dense(), array.toarray())


def test_rows_of_other_arrays_of_scipy() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    coords, values = elements(1, (N,))
    vector = sparse.coo_array((values, coords), shape=(N,))
    assert same_bits(Rows.from_sparse(vector).to_dense(), vector.toarray())
    empty = Rows.from_sparse(sparse.csr_array((N, D)))
    assert (len(empty), empty.values.shape, empty.length) == (0, (0, D), N)


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("dense_shape", [(), (D,), (D, 2)])
def test_rows_of_sparse_tensors(dense_shape: Any, dtype: str, coalesced: bool) -> None:
    torch = pytest.importorskip("torch")
    rng, shape = RNG(2), (N, *dense_shape)
    values = torch.tensor(rng.integers(-8, 8, (20, *dense_shape))).to(getattr(torch, dtype))
    indices = torch.tensor(rng.integers(0, N, (1, 20)))
    tensor = torch.sparse_coo_tensor(indices, values, shape, requires_grad=True)
    tensor = tensor.coalesce() if coalesced else tensor
    found = Rows.from_sparse(tensor)
    assert found.length == N
    assert len(found) == (tensor._nnz())
    assert same_bits(
        found.to_dense(), tensor.detach().to_dense().float().numpy().astype(found.to_dense().dtype)
    )


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_rows_of_sparse_tensors_of_elements(layout: str) -> None:
    torch = pytest.importorskip("torch")
    coords, values = elements(3, (N, D))
    tensor = torch.sparse_coo_tensor(np.array(coords), torch.tensor(values), (N, D))
    tensor = {"coo": tensor, "csr": tensor.to_sparse_csr(), "csc": tensor.to_sparse_csc()}[layout]
    found = Rows.from_sparse(tensor)
    assert found.indices.tolist() == np.unique(coords[0]).tolist()
    np.testing.assert_allclose(found.to_dense(), tensor.to_dense().numpy(), rtol=1e-6)


def test_what_is_not_sparse_is_refused() -> None:
    for value in (np.ones(3), None, [1.0]):
        with pytest.raises(TypeError, match=r"Rows\.from_sparse: array is a .*Rows\.from_dense"):
            Rows.from_sparse(value)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="array is a Tensor"):
        Rows.from_sparse(torch.ones(3))
    on_meta = torch.sparse_coo_tensor(size=(3, 2), device="meta")
    with pytest.raises(ValueError, match="on the CPU"):
        Rows.from_sparse(on_meta)
    with pytest.raises(TypeError, match=r"array is a Tensor, expected a dense .*from_sparse"):
        Rows.from_dense(on_meta)


def test_other_dtypes_are_those_of_the_array() -> None:
    with pytest.raises(TypeError, match=r"^Rows\.from_dense: array has dtype int64"):
        Rows.from_dense(np.ones((3, 2), np.int64))
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^Rows\.from_sparse: array has dtype int64"):
        Rows.from_sparse(sparse.csr_array(np.ones((3, 2), np.int64)))
    with pytest.raises(TypeError, match=r"array is a csr_array, expected a dense .*from_sparse"):
        Rows.from_dense(sparse.csr_array((3, 2)))


@pytest.mark.parametrize("layout", ["mkldnn", "nested"])
def test_tensors_in_other_layouts_are_refused_as_ever(layout: str) -> None:
    torch = pytest.importorskip("torch")
    if layout == "mkldnn":
        grad = torch.ones(3, 2).to_mkldnn()
    else:
        grad = torch.nested.nested_tensor([torch.ones(2)] * 3, layout=torch.jagged)
    with pytest.raises(TypeError, match=r"^SGD\.step: grads is a .*to_dense"):
        schuss.SGD(np.ones((3, 2))).step(grad)


def test_gradients_of_which_a_step_reads_copies_cannot_be_cleared() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    table = np.ones((3, 2))
    optimizer = schuss.SGD(table, clear_grads=True)
    grad = sparse.csr_array(np.eye(3, 2))
    for call in (optimizer.step, optimizer.accumulate):
        with pytest.raises(ValueError, match="read"):
            call(grad)
    assert (table == 1).all()
    optimizer.step(Rows.from_sparse(grad))


def sparse_gradients() -> Iterator[Any]:
    rows = rows_of(4)

    def of_scipy() -> Any:
        sparse = pytest.importorskip("scipy.sparse")
        return sparse.csr_array(rows.to_dense(N))

    def of_dok() -> Any:  # a subclass of dict
        return of_scipy().todok()

    def of_torch() -> Any:
        torch = pytest.importorskip("torch")
        indices = torch.tensor(rows.indices)[None]
        return torch.sparse_coo_tensor(indices, torch.tensor(rows.values), (N, D))

    yield pytest.param(of_scipy, rows, id="scipy")
    yield pytest.param(of_dok, rows, id="scipy's DOK")
    yield pytest.param(of_torch, rows, id="torch")


@pytest.mark.parametrize(("make", "rows"), [*sparse_gradients()])
@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_sparse_gradients_are_taken_as_they_are(make: Any, rows: Rows, how: str) -> None:
    (ours, other), grad = pair("Adam", lr=0.1), make()
    getattr(ours, how)({"E": grad, "b": np.ones(3)})
    other.step({"E": rows.to_dense(N), "b": np.ones(3)})
    if how == "accumulate":
        ours.step()
    ours.flush()
    assert_same(ours, other)


# Readers see all steps.


def params() -> dict[str, Any]:
    return {"E": RNG(5).standard_normal((N, D)).astype(np.float32), "b": np.zeros(3)}


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """Return two equal optimizers."""
    return getattr(schuss, kind)(params(), **options), getattr(schuss, kind)(params(), **options)


def behind(kind: str = "Adam", **options: Any) -> tuple[Any, Any]:
    """Return an optimizer with rows that have missed steps, and one that made dense steps."""
    ours, other = pair(kind, **{"lr": 0.1} | options)
    for seed in range(3):
        grad, b = rows_of(seed), np.full(3, seed + 1.0)
        ours.step({"E": grad, "b": b})
        other.step({"E": grad.to_dense(N), "b": b})
    assert not same_bits(ours.params["E"], other.params["E"])
    return ours, other


def set_group(optimizer: Any, name: str, value: Any) -> None:
    optimizer.param_groups[0][name] = value


READERS: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "flush": (lambda opt: opt.flush(), {}),
    "rows": (lambda opt: opt.rows({"E": np.arange(N), "b": None}), {}),
    "state": (lambda opt: opt.state, {}),
    "state_dict": (lambda opt: opt.state_dict(), {}),
    "average": (lambda opt: opt.average, {"average": 0.9}),
    "corrected average": (
        lambda opt: opt.average,
        {"average": 0.9, "average_bias_correction": True},
    ),
    "write_copies": (lambda opt: opt.write_copies(), {}),
    "pickle": (pickle.dumps, {}),
    "copy": (copy.copy, {}),
    "deepcopy": (copy.deepcopy, {}),
    "hyperparameter": (lambda opt: setattr(opt, "beta1", 0.5), {}),
    "option": (lambda opt: setattr(opt, "clip_norm", 0.1), {}),
    "group": (lambda opt: set_group(opt, "beta1", 0.5), {}),
    "frozen": (lambda opt: set_group(opt, "frozen", True), {}),
    "ExponentialAverage": (lambda opt: schuss.ExponentialAverage(0.9).update(opt.params), {}),
    "ExponentialAverage of a view": (
        lambda opt: schuss.ExponentialAverage(0.9).update(opt.params["E"][3:4]),
        {},
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_sees_all_steps(name: str) -> None:
    read, options = READERS[name]
    ours, other = behind(**options)
    read(ours)
    assert same_bits(ours.params["E"], other.params["E"])
    read(other)
    ours.step({"E": rows_of(9), "b": None})
    other.step({"E": rows_of(9).to_dense(N), "b": None})
    ours.flush()
    assert_same(ours, other)


def test_copies_and_masters_are_up_to_date_when_they_are_read() -> None:
    table = RNG(6).standard_normal((N, D)).astype(np.float32)
    ours, other = (schuss.Adam(table.copy(), lr=0.1, copies="float16") for _ in range(2))
    for seed in range(3):
        ours.step(rows_of(seed))
        other.step(rows_of(seed).to_dense(N))
    assert same_bits(ours.copies, other.copies)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    table = table.astype(ml_dtypes.bfloat16)
    ours, other = (schuss.Adam(table.copy(), lr=0.1, master="float32") for _ in range(2))
    for seed in range(3):
        ours.step(rows_of(seed))
        other.step(rows_of(seed).to_dense(N))
    assert same_bits(ours.master, other.master)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_checkpoint_has_the_truth(tmp_path: Path, with_optimizer: bool) -> None:
    ours, other = behind()
    for name, each in (("ours", ours), ("other", other)):
        schuss.save(tmp_path / name, each.params, each if with_optimizer else None)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "other").read_bytes()
    ours, other = behind()
    for name, each in (("ours", ours), ("other", other)):
        schuss.load(tmp_path / name, each.params, each if with_optimizer else None)
    for each, grad in ((ours, rows_of(9)), (other, rows_of(9).to_dense(N))):
        each.step({"E": grad, "b": None})
    ours.flush()
    assert_same(ours, other)


def test_a_loaded_state_and_a_new_group_go_on_from_the_truth() -> None:
    ours, other = behind()
    state = pair("Adam", lr=0.1)[0].state_dict()
    ours.load_state_dict(state)
    other.load_state_dict(state)
    assert same_bits(ours.params["E"], other.params["E"])
    tables = [RNG(6).standard_normal((N, D)).astype(np.float32) for _ in range(2)]
    ours, other = (schuss.Adam([{"params": table.copy()}], lr=0.1) for table in tables)
    for seed in range(6):
        if seed == 3:
            ours.add_group({"params": np.zeros((4, D), np.float32)})
            other.add_group({"params": np.zeros((4, D), np.float32)})
        more = [None] * (seed >= 3)
        ours.step([rows_of(seed), *more])
        other.step([rows_of(seed).to_dense(N), *more])
    ours.flush()
    assert_same(ours, other)


def test_a_new_optimizer_begins_with_the_truth() -> None:
    ours, other = behind()
    groups: Any = [{"params": ours.params["E"], "lr": 0.5}]
    new = schuss.SGD(groups, average=0.9, copies="float16")
    assert same_bits(ours.params["E"], other.params["E"])
    assert same_bits(new.average[0], other.params["E"])
    assert same_bits(new.copies[0], other.params["E"].astype(np.float16))


@pytest.mark.parametrize("change", ["lr", "group"])
def test_a_change_of_the_rate_does_not_flush(change: str) -> None:
    for each in (pairs := behind(groups=lambda name: {"lr": 0.2} if name == "E" else {})):
        if change == "lr":
            each.lr = 0.5
        else:
            each.param_groups[0]["lr"] = 0.01
    ours, other = pairs
    assert not same_bits(ours.params["E"], other.params["E"])
    ours.step({"E": rows_of(9), "b": None})
    other.step({"E": rows_of(9).to_dense(N), "b": None})
    ours.flush()
    assert_same(ours, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("order", [1, -1])
def test_copies_of_an_optimizer_with_its_parameters_are_up_to_date(
    copied: Callable[[Any], Any], order: int
) -> None:
    ours, other = behind()
    copies = copied([ours.params, ours][::order])[::order]
    assert same_bits(copies[0]["E"], other.params["E"])
    assert copies[1].params is copies[0]
    assert_same(copies[1], other)


def test_the_option_is_kept() -> None:
    for mode in ("exact", "lazy"):
        optimizer = schuss.Adam([{"params": np.ones((3, 2))}], rows=mode)
        optimizer.add_group({"params": np.ones((3, 2))})
        for each in (optimizer, copy.copy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert ("rows='lazy'" in repr(each)) == (mode == "lazy")
            each.step([Rows([0], np.ones((1, 2))), None])
            before = each.params[0][0].copy()
            each.step([Rows([1], np.ones((1, 2))), None])
            each.flush()
            assert same_bits(each.params[0][0], before) == (mode == "lazy")
    value: Any
    for value, error in (("dense", ValueError), (True, TypeError)):
        with pytest.raises(error, match="SGD: rows is"):
            schuss.SGD(np.ones(2), rows=value)


# Sums of rows in a lazy optimizer, of which an array would move all rows.


def lazy_with_sums() -> Any:
    optimizer = schuss.Adam([{"params": params()["E"]}], lr=0.1, rows="lazy")
    optimizer.step([rows_of(0)])
    optimizer.accumulate([rows_of(1)])
    optimizer.accumulate([None])
    return optimizer


SAVERS: dict[str, Callable[[Any, Path], object]] = {
    "state_dict": lambda opt, _: opt.state_dict(),
    "save": lambda opt, path: schuss.save(path / "file", opt.params, opt),
    "__getstate__": lambda opt, _: pickle.dumps(opt),
    "__copy__": lambda opt, _: copy.copy(opt),
    "add_group": lambda opt, _: opt.add_group({"params": np.ones(3)}),
}


@pytest.mark.parametrize("call", SAVERS)
def test_sums_of_lazy_rows_are_not_saved_as_arrays(call: str, tmp_path: Path) -> None:
    optimizer, other = lazy_with_sums(), lazy_with_sums()
    with pytest.raises(ValueError, match=rf"^Adam\.{call}: 2 gradients of .*zero_grad\(\) first"):
        SAVERS[call](optimizer, tmp_path)
    assert not [*tmp_path.iterdir()]
    for each in (optimizer, other):
        each.step()
    assert_same(optimizer, other)
    SAVERS[call](optimizer, tmp_path)


def test_sums_of_arrays_and_of_exact_rows_are_saved() -> None:
    optimizer = lazy_with_sums()
    optimizer.zero_grad()
    optimizer.accumulate([rows_of(1).to_dense(N)])
    exact = schuss.Adam([{"params": params()["E"]}], lr=0.1)
    exact.accumulate([rows_of(1)])
    for each in (optimizer, exact):
        loaded = lazy_with_sums()
        loaded.load_state_dict(each.state_dict())
        assert copy.copy(loaded).accumulated == 1


# Rows that are read.


def test_rows_are_copies_in_the_structure_of_the_parameters() -> None:
    ours, other = behind()
    indices = RNG(7).integers(0, N, (2, 3)).astype(np.int32)
    for where in (indices, indices[:, ::-1], indices[0], indices[0, 0, None]):
        found = ours.rows({"E": where, "b": np.array([1])})
        assert same_bits(found["E"], other.params["E"][where])
        assert same_bits(found["b"], other.params["b"][[1]])
    assert ours.rows({"E": None, "b": None}) == {"E": None, "b": None}
    assert not np.shares_memory(found["E"], ours.params["E"])
    table = np.arange(3.0)
    assert schuss.SGD(table).rows(np.array([2, 0])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (np.array([N]), f"indices['E'] has the index {N} at 0, expected 0 to {N - 1}"),
        (np.array([0, -1]), "indices['E'] has the index -1 at 1"),
        (np.array([0.5]), "indices['E']"),
        (np.array([0], np.uint8), "indices['E']"),
        ("words", "indices['E']"),
    ],
)
def test_indices_that_are_none_are_refused(indices: Any, words: str) -> None:
    ours, _ = behind()
    before = ours.params["E"].copy()
    with pytest.raises((TypeError, ValueError), match=r"^Adam\.rows: ") as caught:
        ours.rows({"E": indices, "b": None})
    assert words in str(caught.value)
    assert same_bits(ours.params["E"], before)


# Training.


class Words:
    """A training that pulls rows of a table to those of another; by rows, or by whole gradients."""

    def __init__(self, by_rows: bool, **options: Any) -> None:
        self.by_rows, self.params = by_rows, params()
        self.targets = RNG(8).standard_normal((N, D)).astype(np.float32)
        self.optimizer = schuss.Adam(self.params, **{"lr": 0.1} | options)
        self.seen: list[Any] = []

    def loss(self, params: Any, words: Any) -> Any:
        read = self.optimizer.rows({"E": words, "b": None})["E"]
        error = read - self.targets[words]
        rows = Rows(words, error / np.float32(len(words)))
        grad = rows if self.by_rows else rows.to_dense(N)
        return float((error**2).sum()), {"E": grad, "b": np.ones(3)}

    def look(self, *_: Any) -> float:
        self.seen.append(self.params["E"].copy())
        return float(np.square(self.params["E"] - self.targets).sum())

    def fit(self, **options: Any) -> Any:
        options = {"rng": 0, "batch_size": 4, "epochs": 3} | options
        words = np.arange(N) // 2
        return schuss.fit(self.loss, self.params, self.optimizer, words, **options)


def both(**options: Any) -> tuple[Words, Words]:
    return Words(True, **options), Words(False, **options)


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 3},
    "loss scale": {"loss_scale": 8.0},
    "dynamic loss scale": {"loss_scale": schuss.DynamicLossScale(8.0)},
    "by the epoch": {"schedule": schuss.schedules.Exponential(0.1, 0.5), "schedule_by": "epoch"},
}


@pytest.mark.parametrize("name", FITS)
def test_fit_trains_with_the_bits_of_whole_gradients(name: str) -> None:
    trainings = both()
    for each in trainings:
        options = copy.deepcopy(FITS[name])
        history = each.fit(validation=each.look, callbacks=each.look, **options)
        each.seen += [each.params["E"].copy(), history.cost, history.validation]
    assert_same(*(each.optimizer for each in trainings))
    for ours, theirs in zip(*(each.seen for each in trainings), strict=True):
        assert same_bits(np.array(ours), np.array(theirs))


def test_fit_restores_the_best_parameters() -> None:
    trainings = both(lr=5.0)
    for each in trainings:
        each.fit(validation=each.look, restore_best=True, epochs=6)
    assert_same(*(each.optimizer for each in trainings))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_an_end_of_fit_within_an_epoch_leaves_the_truth(error: type[BaseException] | None) -> None:
    trainings = both()
    for each in trainings:

        def stop(history: Any) -> bool:
            if history.steps == 3 and error is not None:
                raise error
            return bool(history.steps == 3)

        try:
            each.fit(on_step=stop)
        except RuntimeError:
            assert error is RuntimeError
    ours, other = trainings
    assert same_bits(ours.params["E"], other.params["E"])


def test_fit_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    options = {"checkpoint": tmp_path / "ours", "checkpoint_every": 2}
    first, whole = Words(True), Words(False)
    first.fit(on_step=lambda history: history.steps == 7, **options)
    second = Words(True)
    second.fit(**options)
    whole.fit()
    assert_same(second.optimizer, whole.optimizer)


def test_fit_resumes_between_the_mini_batches_of_a_lazy_step(tmp_path: Path) -> None:
    def fit(training: Words, stops: int | None, **options: Any) -> Any:
        calls, loss, noise = 0, training.loss, RNG(0)

        def interrupted(params: Any, words: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stops:
                raise KeyboardInterrupt
            cost, grads = loss(params, words)
            factor = np.float32(noise.random())
            return cost, {**grads, "E": Rows(grads["E"].indices, grads["E"].values * factor)}

        training.loss = interrupted  # type: ignore[method-assign]
        return training.fit(accumulate=3, state=noise, epochs=2, **options)

    first, second, whole = (Words(True, rows="lazy") for _ in range(3))
    path = tmp_path / "file"
    assert fit(first, 6, checkpoint=path).stopped == "interrupted"
    assert first.optimizer.accumulated == 0
    fit(second, None, checkpoint=path)
    fit(whole, None, checkpoint=tmp_path / "whole")
    assert_same(second.optimizer, whole.optimizer)


def test_fit_begins_with_rows_that_are_up_to_date() -> None:
    ours, other = behind()
    seen = []

    def loss(params: Any, _: Any) -> Any:
        seen.append(params["E"].copy())
        return 0.0, {"E": np.zeros((N, D), np.float32), "b": None}

    schuss.fit(loss, ours.params, ours, np.arange(4), batch_size=4)
    assert same_bits(seen[0], other.params["E"])


def test_the_error_of_a_loss_is_not_replaced_by_that_of_the_flush() -> None:
    training = Words(True)
    loss = training.loss

    def read_only(params: Any, words: Any) -> Any:
        if training.optimizer.steps == 3:
            params["E"].flags.writeable = False
            raise LookupError("of the loss")
        return loss(params, words)

    training.loss = read_only  # type: ignore[method-assign]
    with pytest.raises(LookupError, match="of the loss"):
        training.fit()


def test_an_l2_cost_flushes_its_weights_alone() -> None:
    ours, other = behind()
    before = ours.params["E"].copy()

    def loss(params: Any, _: Any) -> Any:
        return 0.0, {"E": rows_of(9), "b": np.ones(3)}

    schuss.with_l2(loss, 0.1, weights=lambda name: name == "b")(ours.params, np.ones(1))
    assert same_bits(ours.params["E"], before)
    dense: Any = {"E": rows_of(9).to_dense(N), "b": None}
    schuss.with_l2(lambda *_: (0.0, dense), 0.1)(ours.params, np.ones(1))
    assert same_bits(ours.params["E"], other.params["E"])


def test_an_l2_cost_of_rows_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"fit: grads\['E'\] is a gradient of some rows.*decay"):
        Words(True).fit(l2=0.1)
    training = Words(True)
    loss = schuss.with_l2(training.loss, 0.1, weights=lambda name: name == "b")
    _, grads = loss(training.params, np.array([1]))
    assert isinstance(grads["E"], Rows)


# What takes no rows.


def test_others_refuse_rows_with_the_remedy() -> None:
    from schuss.mpi import Sharded

    rows: Any = rows_of(0)
    table = params()["E"]
    before = table.copy()
    sharded: Any = Sharded(schuss.SGD, table, lr=0.1)
    average = schuss.ExponentialAverage(0.5)
    for call in (
        lambda: sharded.step(rows),
        lambda: sharded.accumulate(rows),
        lambda: schuss.kernels.sgd(table, rows, lr=0.1),
        lambda: average.update(rows),
    ):
        with pytest.raises(TypeError, match=r"is a Rows, expected .* array.*to_dense"):
            call()
    kind: Any = Sharded
    with pytest.raises(ValueError, match="rows is 'lazy', expected 'exact'"):
        kind(schuss.SGD, table, rows="lazy")
    assert same_bits(table, before)
    assert same_bits(sharded.rows(np.array([3])), table[[3]])


@pytest.mark.parametrize(("make", "rows"), [*sparse_gradients()])
def test_sparse_arrays_are_gradients_of_steps_alone(make: Any, rows: Rows) -> None:
    sparse, table = make(), params()["E"]
    before = table.copy()
    calls: list[Callable[[], Any]] = [
        lambda: schuss.SGD(sparse),
        lambda: schuss.kernels.sgd(table, sparse, lr=0.1),
        lambda: schuss.ExponentialAverage(0.5).update(sparse),
    ]
    for call in calls:
        with pytest.raises(
            TypeError, match=r"^(SGD: params|kernels\.sgd: grad|Exp.*: values) is a"
        ):
            call()
    assert same_bits(table, before)


def test_rows_are_no_sequence_of_rows() -> None:
    rows: Any = rows_of(0)
    for read in (iter, lambda each: each[0]):
        with pytest.raises(TypeError):
            read(rows)
