"""Mini-batches in parts: the shares of all ranks, joined, are the batches of one process."""

import copy
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schuss
from support.arrays import LAYOUTS, laid_out

M = 23
X = np.arange(3 * M).reshape(M, 3)
Y = X[:, 0] // 3
HUGE = 10**12

Array = npt.NDArray[Any]


def shares_of(ranks: int, *arrays: Any, **options: Any) -> list[list[Any]]:
    """Return the batches of an epoch on each rank."""
    parts = ((rank, ranks) for rank in range(ranks))
    return [[*schuss.minibatches(*arrays, part=part, **options)] for part in parts]


def assert_cut(whole: Any, shares: Any, axis: int = 0) -> None:
    """Check the shares of a batch against `numpy.array_split`."""
    expected = np.array_split(whole, len(shares), axis=axis)
    for share, part in zip(shares, expected, strict=True):
        np.testing.assert_array_equal(share, part, strict=True)


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few batches are gathered at once, so that an epoch takes several turns."""
    for name in ("ROWS_AT_ONCE", "COLUMNS_AT_ONCE"):
        monkeypatch.setattr(f"schuss._slices.{name}", 300)


@given(
    m=st.integers(1, 60),
    batch_size=st.integers(1, 70) | st.none() | st.just(HUGE),
    ranks=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    prefetch=st.sampled_from([0, 0, 0, 2]),
)
def test_the_shares_of_all_ranks_joined_are_the_batches_of_one_process(
    m: int, ranks: int, batch_size: Any, **options: Any
) -> None:
    x, options = np.arange(2 * m).reshape(m, 2), {**options, "rng": 5, "batch_size": batch_size}
    whole = [*schuss.minibatches(x, x[:, 0], indices=True, **options)]
    shares = shares_of(ranks, x, x[:, 0], indices=True, **options)
    for batch, *of_ranks in zip(whole, *shares, strict=True):
        for part, *of_part in zip(batch, *of_ranks, strict=True):
            assert_cut(part, of_part)
        sizes = [len(labels) for _, labels, _ in of_ranks]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"reuse_buffers": False}], ids=str)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_axis_is_cut(
    layout: str, axis: int, shuffle: bool, options: dict[str, Any]
) -> None:
    x = laid_out(np.arange(30 * 11 * 7.0).reshape(30, 11, 7), layout)
    options = {"batch_size": 4, "axis": axis, "rng": 3, "shuffle": shuffle, **options}
    whole = schuss.minibatches(x, **options)
    for batch, *shares in zip(whole, *shares_of(3, x, **options), strict=True):
        assert_cut(batch, shares, axis)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "x",
    [
        X.astype(object),
        np.array([f"{'x' * i}{i}" for i in range(M)]).astype(np.dtypes.StringDType()),
        np.zeros((M, 0)),
        np.zeros(M, []),
        np.array([(i, i) for i in range(M)], [("a", "i1"), ("b", "f8")]),
    ],
    ids=["objects", "strings", "no columns", "no bytes", "structured"],
)
def test_elements_of_every_dtype_are_cut(x: Array, shuffle: bool) -> None:
    options: dict[str, Any] = {"batch_size": 3, "rng": 0, "shuffle": shuffle}
    for batch, *shares in zip(
        schuss.minibatches(x, **options), *shares_of(4, x, **options), strict=True
    ):
        assert_cut(batch, shares)


@pytest.mark.parametrize("shuffle", [True, False])
def test_arrays_on_disk_and_masked_arrays_are_cut(tmp_path: Path, shuffle: bool) -> None:
    np.save(tmp_path / "x.npy", X)
    options: dict[str, Any] = {"batch_size": 5, "rng": 0, "shuffle": shuffle}
    masked = np.ma.masked_array(X, mask=X % 5 == 0)
    for x in (np.load(tmp_path / "x.npy", mmap_mode="r"), masked):
        for batch, *shares in zip(
            schuss.minibatches(X, **options), *shares_of(2, x, **options), strict=True
        ):
            assert_cut(batch, [np.asarray(share) for share in shares])
    assert all(isinstance(share, np.ma.MaskedArray) for share in shares)


def test_unshuffled_shares_are_views_of_the_arrays() -> None:
    for shares in shares_of(3, X, batch_size=8, shuffle=False):
        assert all(np.shares_memory(share, X) for share in shares)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_rank_without_examples_in_a_batch_gets_arrays_of_length_0(shuffle: bool) -> None:
    options: dict[str, Any] = {"batch_size": 10, "shuffle": shuffle, "indices": True}
    *_, last = shares_of(4, X, Y, **options)
    assert [len(y) for _, y, _ in last] == [2, 2, 0]
    x, y, indices = last[-1]
    assert (x.shape, x.dtype, y.shape, indices.shape) == ((0, 3), X.dtype, (0,), (0,))
    ((columns, _),) = schuss.minibatches(X.T, Y, axis=1, batch_size=None, part=(30, 31))
    assert columns.shape == (3, 0)


def test_length_examples_and_batch_size_are_those_of_whole_batches() -> None:
    for part in ((0, 1), (0, 4), (3, 4), (99, 100)):
        batches = schuss.minibatches(X, batch_size=5, part=part)
        assert (len(batches), batches.examples, batches.batch_size) == (5, M, 5)
        assert len(list(batches)) == 5
    assert "auto" in repr(schuss.minibatches(np.zeros(3000), batch_size="auto", part=(1, 2)))


def test_any_number_of_ranks_goes_on_from_a_state() -> None:
    whole = schuss.minibatches(X, batch_size=5, rng=1)
    expected = [list(whole), list(whole)]
    batches = schuss.minibatches(X, batch_size=5, rng=1, part=(1, 2))
    epoch = iter(batches)
    taken = [*islice(epoch, 2)]
    for other in (copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        assert len(list(other)) == 5  # copies begin a new epoch
    state = batches.state_dict()
    for ranks in (1, 2, 3):
        resumed = [schuss.minibatches(X, batch_size=5, part=(r, ranks)) for r in range(ranks)]
        for each in resumed:
            each.load_state_dict(state)
        for epoch_of_one in (expected[0][len(taken) :], expected[1]):
            for batch, *shares in zip(epoch_of_one, *resumed, strict=True):
                assert_cut(batch, shares)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ((2, 2), ValueError, r"part is \(2, 2\), expected a rank below the number of ranks"),
        ((-1, 2), ValueError, r"part\[0\] is -1, expected an integer >= 0"),
        ((0, 0), ValueError, r"part\[1\] is 0, expected an integer >= 1"),
        ((0.0, 2), TypeError, r"part\[0\] is a float, expected an integer"),
        ((True, 2), TypeError, r"part\[0\] is a bool, expected an integer"),
        ((0, 1, 2), TypeError, r"part is a tuple of length 3, expected a pair \(rank, ranks\)"),
        (2, TypeError, r"part is a int, expected a pair \(rank, ranks\)"),
        (None, TypeError, r"part is a NoneType, expected a pair \(rank, ranks\)"),
    ],
)
def test_other_parts_are_refused(part: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^minibatches: {message}"):
        schuss.minibatches(X, part=part)


def test_the_representation_shows_the_part() -> None:
    part: Any = (np.int64(1), 2)
    assert repr(schuss.minibatches(X, part=part)).endswith("of 64, shuffled, part 1 of 2>")
