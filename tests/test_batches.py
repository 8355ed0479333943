"""Mini-batches: an epoch is every example once, in an order that a seed decides."""

import _thread
import atexit
import copy
import mmap
import textwrap
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import schuss
from schuss import _core
from support.arrays import LAYOUTS, laid_out
from support.execution import execution
from support.processes import NO_THREADS, ends_well, needs_no_threads
from support.shuffling import SplitMix64, shuffled

M = 23
X = np.arange(3 * M).reshape(M, 3)
Y = X[:, 0] // 3
SIZES = [1, 4, 22, 23, 64, None]
HUGE = 10**12  # more than fits any memory

Array = npt.NDArray[Any]


def epoch(**options: Any) -> list[Any]:
    return list(schuss.minibatches(X, **options))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", SIZES)
def test_an_epoch_has_every_example_exactly_once(batch_size: int | None, shuffle: bool) -> None:
    batches = epoch(batch_size=batch_size, shuffle=shuffle, rng=0)
    rows = np.concatenate(batches)
    assert len(rows) == M
    np.testing.assert_array_equal(np.sort(rows, axis=0), X)
    assert np.array_equal(rows, X) is not shuffle
    assert all(np.shares_memory(batch, X) is not shuffle for batch in batches)
    assert all(batch.flags.c_contiguous for batch in batches)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", SIZES)
def test_only_the_last_batch_may_be_smaller_and_drop_last_leaves_it_out(
    batch_size: int | None, drop_last: bool
) -> None:
    batches = schuss.minibatches(X, batch_size=batch_size, drop_last=drop_last)
    size = min(batch_size or M, M)
    whole = M // (batch_size or M) if drop_last else M // size
    expected = [size] * whole + [M % size] * (M % size > 0 and not drop_last)
    assert [len(batch) for batch in batches] == expected
    assert len(batches) == len(expected)


def test_five_million_examples_in_batches_of_a_thousand_make_five_thousand_batches() -> None:
    x = np.zeros(5_000_000, np.int8)
    assert len(schuss.minibatches(x, batch_size=1_000)) == 5_000
    assert len(schuss.minibatches(x[1:], batch_size=1_000, drop_last=True)) == 4_999


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("y", [Y, Y[None, :], np.stack([Y, -Y])], ids=["(m,)", "(1, m)", "(2, m)"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_columns_give_the_batches_of_rows_transposed(y: Array, axis: int, shuffle: bool) -> None:
    options: dict[str, Any] = {"batch_size": 4, "shuffle": shuffle, "rng": 5}
    rows = list(schuss.minibatches(X, y.T, **options))
    columns = list(schuss.minibatches(X.T, y, axis=axis, **options))
    for (x, labels), (x_row, labels_row) in zip(columns, rows, strict=True):
        assert x.flags.f_contiguous or not shuffle
        np.testing.assert_array_equal(x, x_row.T)
        np.testing.assert_array_equal(labels, labels_row.T)
    for (labels, x), (_, expected) in zip(
        schuss.minibatches((y, X.T), axis=axis, **options), columns, strict=True
    ):
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(x[:1], 3 * labels.reshape(-1, x.shape[1])[:1])


def test_the_seed_or_a_generator_decides_the_new_order_of_each_epoch() -> None:
    rng = np.random.default_rng(7)
    batches, again, other, of_generator = (
        schuss.minibatches(X, batch_size=4, rng=seed) for seed in (7, 7, 8, rng)
    )
    list(other)
    again = copy.deepcopy(again)
    epochs = [np.concatenate(list(each)) for each in (batches, batches, batches, other)]
    assert len({rows.tobytes() for rows in epochs}) == 4
    for rows in epochs[:3]:
        np.testing.assert_array_equal(rows, np.concatenate(list(again)))
        again = copy.deepcopy(again)  # goes on from the same place
        np.testing.assert_array_equal(rows, np.concatenate(list(of_generator)))
    assert rng.bit_generator.state != np.random.default_rng(7).bit_generator.state


def test_lists_and_tensors_of_torch_become_arrays() -> None:
    (batch,) = schuss.minibatches([[1.0, 2.0], [3.0, 4.0]], shuffle=False)
    np.testing.assert_array_equal(batch, [[1.0, 2.0], [3.0, 4.0]])
    torch = pytest.importorskip("torch")
    for x, y in schuss.minibatches(torch.from_numpy(X), torch.from_numpy(Y), batch_size=4):
        np.testing.assert_array_equal(x[:, 0], 3 * y)
    kept = []
    for batch, indices in schuss.minibatches(np.zeros((6000, 256)), indices=True):
        batch[:] = indices[:, None]
        kept.append((torch.from_numpy(batch), indices))  # keeps the memory of the batch
        del batch
    assert all(bool((tensor.numpy() == indices[:, None]).all()) for tensor, indices in kept)


# An independent implementation of the order that a seed gives.


def test_the_generator_of_the_tests_gives_the_published_numbers() -> None:
    random = SplitMix64(1234567)
    assert [random.next() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_the_same_seed_gives_these_batches_on_every_platform() -> None:
    batches = schuss.minibatches(np.arange(10), batch_size=4, rng=7)
    first, second = ([batch.tolist() for batch in batches] for _ in range(2))
    assert first == [[1, 3, 4, 7], [5, 0, 2, 6], [9, 8]]
    assert second == [[7, 2, 6, 0], [9, 3, 1, 8], [4, 5]]
    # An epoch takes one number of the generator: those of PCG64 seeded with 7.
    for epoch, seed in ((first, 0xA00641A9F1E54A8B), (second, 0xE5AFCDBCAF266A95)):
        assert [*chain(*epoch)] == shuffled(list(range(10)), SplitMix64(seed))


@pytest.mark.parametrize("m", [1, 2, 3, 1000, 65_535, 65_536, 65_537, 150_000])
def test_the_order_of_any_number_of_examples_is_that_of_plain_python(m: int) -> None:
    ((_, order),) = schuss.minibatches(np.zeros(m, np.int8), batch_size=m, indices=True, rng=7)
    assert order.tolist() == shuffled(list(range(m)), SplitMix64(0xA00641A9F1E54A8B))


@pytest.mark.parametrize("seed", [6, 9])  # those below 10 that meet a rejected number
def test_the_order_is_that_of_plain_python_where_a_random_number_is_rejected(seed: int) -> None:
    m = 65_536
    assert _core.shuffled(m, seed).tolist() == shuffled(list(range(m)), SplitMix64(seed))


@pytest.mark.parametrize("seed", [3, 181, 367])  # the last two meet a rejected number early
def test_the_order_is_that_of_plain_python_on_any_number_of_threads(seed: int) -> None:
    m = 150_000
    expected = shuffled(list(range(m)), SplitMix64(seed))
    for threads in (1, 2, 3, 8):
        with execution(threads=threads, threshold=0):
            assert _core.shuffled(m, seed).tolist() == expected


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_every_order_is_as_probable_as_every_other(m: int) -> None:
    draws = 300 * factorial(m)
    counts = Counter(tuple(_core.shuffled(m, seed).tolist()) for seed in range(draws))
    assert len(counts) == factorial(m)
    chi_square = sum((count - 300) ** 2 / 300 for count in counts.values())
    freedom = factorial(m) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_of_many_examples_each_is_as_probable_at_every_place() -> None:
    m, cells, seeds = 102_400, 32, range(20)
    counts = np.zeros((cells, cells))
    for seed in seeds:
        order = _core.shuffled(m, seed)
        np.add.at(counts, (order * cells // m, np.arange(m) * cells // m), 1)
        # Two neighbours stay neighbours about twice in an order of any length.
        assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 20
    expected = len(seeds) * m / cells**2
    chi_square = np.sum((counts - expected) ** 2 / expected)
    freedom = (cells - 1) ** 2
    assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"reuse_buffers": False}], ids=str)
def test_the_order_depends_on_the_seed_alone_and_not_on_epochs_side_by_side(options: Any) -> None:
    def orders(x: Array, **options: Any) -> schuss.MiniBatches[Any]:
        return schuss.minibatches((x, np.arange(M)), batch_size=4, rng=7, **options)

    for x, more in [(X, {}), (X.T, {"axis": 1}), (X.astype(object), {})]:
        together, apart = orders(x, **options, **more), orders(X)
        first, second = iter(together), iter(together)
        pairs = [(b.tolist(), a.tolist()) for (_, b), (_, a) in zip(second, first, strict=True)]
        assert [a for _, a in pairs] == [order.tolist() for _, order in apart]
        assert [b for b, _ in pairs] == [order.tolist() for _, order in apart]


# What is cut, and how it lies in memory.


@pytest.mark.parametrize("shuffle", [True, False])
def test_any_number_of_arrays_are_cut_alike(shuffle: bool) -> None:
    weights = np.arange(M) / 2
    options: dict[str, Any] = {"batch_size": 4, "shuffle": shuffle, "rng": 0}
    for arrays in [(X,), (X, Y), (X, Y, weights), (Y, X, X[:, ::2], weights)]:
        seen = []
        for batch in schuss.minibatches(arrays, indices=True, **options):
            *parts, indices = batch
            assert type(batch) is tuple
            assert indices.dtype == np.int64
            for part, array in zip(parts, arrays, strict=True):
                np.testing.assert_array_equal(part, array[indices], strict=True)
            seen += indices.tolist()
            indices[:] = -1  # the reader's own: the batches to come do not mind
        assert sorted(seen) == list(range(M))
        plain = list(schuss.minibatches(arrays, **options))
        assert all(type(batch) is tuple and len(batch) == len(arrays) for batch in plain)


def assert_batches_of(array: Array, *, axis: int, size: int = 7, **options: Any) -> None:
    """Check the batches of a few epochs against NumPy's indexing, while they are valid."""
    batches = schuss.minibatches(array, batch_size=size, axis=axis, indices=True, rng=1, **options)
    for _ in range(2):
        seen = []
        for batch, indices in batches:
            expected = np.take(np.asarray(array), indices, axis=axis)
            np.testing.assert_array_equal(batch, expected, strict=True)
            seen.extend(indices.tolist())
        assert sorted(seen) == list(range(array.shape[axis]))


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few batches are gathered at once, so that an epoch takes several turns."""
    for name in ("ROWS_AT_ONCE", "COLUMNS_AT_ONCE"):
        monkeypatch.setattr(f"schuss._slices.{name}", 300)


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32, np.float64, np.complex128])
def test_every_layout_and_axis_gives_the_batches_of_numpys_indexing(
    dtype: Any, layout: str, axis: int
) -> None:
    for shape in ((30, 5, 3), (5, 70, 33), (2, 1, 131), (1, 3, 1)):
        values = (np.arange(np.prod(shape)) % 127).reshape(shape).astype(dtype)
        array = laid_out(values, layout)
        assert_batches_of(array, axis=axis)
        assert_batches_of(array, axis=axis, prefetch=2, reuse_buffers=False)


@pytest.mark.usefixtures("small_stages")
def test_views_of_all_kinds_give_the_batches_of_numpys_indexing() -> None:
    x = np.arange(20 * 30).reshape(20, 30)
    views: list[Array] = [x[:, ::2], x[::-3], x.T, x[:, ::-1].T, x[3:4], x[:, 3:4], x[:, :0]]
    views += [np.broadcast_to(x[:1], (9, 30)), np.broadcast_to(x[:, :1], (20, 9))]
    views += [np.lib.stride_tricks.sliding_window_view(x[0], 5)]
    views += [np.zeros((13, 100_000), np.uint8) + np.arange(13, dtype=np.uint8)[:, None]]
    for view in views:
        assert_batches_of(view, axis=0)
        if view.shape[1] > 0:
            assert_batches_of(view, axis=1, size=1024 if view.shape[1] > 1024 else 7)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("shape", [(5001, 33), (40_001, 3), (9, 30_001), (60, 50, 90)], ids=str)
def test_any_number_of_threads_gather_the_batches_of_numpys_indexing(
    shape: tuple[int, ...], threads: int
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    with execution(threads=threads, threshold=0):
        for axis, examples in enumerate(shape):
            assert_batches_of(array, axis=axis, size=examples // 3)


def strings(size: int) -> Array:
    return np.array([f"{'x' * (i % 50)}{i}" for i in range(size)])


DTYPES: dict[str, Callable[[int], Array]] = {
    "bool": lambda m: np.arange(m) % 3 == 0,
    "float16": lambda m: np.arange(m, dtype=np.float16),
    "longdouble": lambda m: np.arange(m, dtype=np.longdouble),
    "clongdouble": lambda m: np.arange(m, dtype=np.clongdouble),
    "foreign byte order": lambda m: np.arange(m, dtype=np.dtype(float).newbyteorder("S")),
    "datetime": lambda m: np.arange(m).astype("M8[s]"),
    "bytes": lambda m: strings(m).astype("S60"),
    "unicode": strings,
    "strings of any length": lambda m: strings(m).astype(np.dtypes.StringDType()),
    "structured": lambda m: np.array([(i % 100, i) for i in range(m)], [("a", "i1"), ("b", "f8")]),
    "objects": lambda m: np.array([{i} for i in range(m)]),
    "no bytes at all": lambda m: np.zeros(m, []),
}


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("make", DTYPES.values(), ids=DTYPES)
def test_elements_of_every_dtype_are_cut(make: Callable[[int], Array]) -> None:
    line = make(120)
    for array in (line, line[::-2], line.reshape(40, 3)[:, ::2], line.reshape(3, 40).T):
        assert_batches_of(array, axis=0)
        assert_batches_of(array, axis=0, prefetch=1, reuse_buffers=False)
        if array.ndim > 1:
            assert_batches_of(array, axis=1, size=2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shuffle", [True, False])
def test_masked_arrays_keep_their_masks_and_records_stay_records(shuffle: bool, axis: int) -> None:
    masked = np.ma.masked_array(X, mask=X % 5 == 0)
    options: dict[str, Any] = {"batch_size": 2, "shuffle": shuffle}
    for batch, indices in schuss.minibatches(masked, axis=axis, indices=True, **options):
        assert isinstance(batch, np.ma.MaskedArray)
        np.testing.assert_array_equal(batch, np.take(X, indices, axis=axis))
        np.testing.assert_array_equal(batch.mask, np.take(masked.mask, indices, axis=axis))
    records = np.zeros(M, [("a", int), ("b", int)]).view(np.recarray)
    records.a, records.b = X[:, 0], X[:, 1]
    for batch in schuss.minibatches(records, **options):
        np.testing.assert_array_equal(batch.a + 1, batch.b)


# Arrays on disk.


@pytest.mark.parametrize("shuffle", [True, False])
def test_memory_mapped_arrays_are_cut_in_rows_and_columns(tmp_path: Path, shuffle: bool) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_batches_of(mapped, axis=0, shuffle=shuffle)
    assert_batches_of(mapped.T, axis=1, shuffle=shuffle)
    assert_batches_of(mapped, axis=1, size=2, shuffle=shuffle)
    (batch,) = schuss.minibatches(mapped)
    assert type(batch) is np.ndarray
    batch[:] = 0  # writeable, and apart from the file
    np.testing.assert_array_equal(mapped, X)


def allocated() -> int:
    """The bytes of memory that this process has of its own, files not counted."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        pytest.skip("no /proc/self/status")
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("options", [{}, {"prefetch": 2}, {"reuse_buffers": False}], ids=str)
def test_a_mapped_array_larger_than_memory_need_be_is_never_loaded_whole(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    # Two gigabytes, of which the file system stores nothing.
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(500_000, 1024))
    mapped._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # quicker, for the test
    mapped[-1] = 7
    before = most = allocated()
    for batch in islice(schuss.minibatches(mapped, batch_size=512, **options), 10):
        assert batch.shape == (512, 1024)
        most = max(most, allocated())
    assert most - before < 200 << 20
    epoch = schuss.minibatches(mapped[-1000:], batch_size=64, **options)
    assert sum(int((batch == 7).all(axis=1).sum()) for batch in epoch) == 1


# Batches ahead of their use.


OTHERS = [0]


@pytest.fixture(autouse=True)
def _threads_of_others() -> Iterator[None]:
    OTHERS[0] = _thread._count()
    yield
    ours()


def ours(expected: int = 0) -> int:
    """Return the number of threads that prepare batches, once it is as expected: they end late."""
    late = time.monotonic() + 60
    while (count := _thread._count() - OTHERS[0]) != expected and time.monotonic() < late:
        time.sleep(0.001)
    return count


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("prefetch", [1, 2, 3, 100, 2**52])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}], ids=str)
def test_prefetched_batches_are_the_very_same(options: dict[str, Any], prefetch: int) -> None:
    plain = schuss.minibatches(X, Y, batch_size=4, rng=3, **options)
    ahead = schuss.minibatches(X, Y, batch_size=4, rng=3, prefetch=prefetch, **options)
    assert len(ahead) == len(plain)
    for _ in range(3):
        batches = list(ahead)
        np.testing.assert_equal(batches, list(plain))
        assert not any(np.shares_memory(x, X) for x, _ in batches)
    assert not ours()


class Slow(np.ndarray):
    """An array that notes which thread reads it, and that cannot be read for ever."""

    threads: list[threading.Thread]
    reads_left: int

    def __array_finalize__(self, other: Any) -> None:
        self.threads = getattr(other, "threads", [])
        self.reads_left = getattr(other, "reads_left", 2**62)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray):
            if len(self.threads) == self.reads_left:
                raise OSError("the disk is gone")
            self.threads.append(threading.current_thread())
        return super().__getitem__(key)


def slow(reads: int = 2**62) -> Slow:
    array = X.view(Slow)
    array.threads, array.reads_left = [], reads
    return array


def test_the_next_batches_are_prepared_on_a_thread_of_its_own() -> None:
    array = slow()
    assert len(list(schuss.minibatches(array, batch_size=4))) == 6
    assert {thread.ident for thread in array.threads} == {threading.get_ident()}
    array = slow()
    epoch = iter(schuss.minibatches(array, batch_size=4, prefetch=2))
    assert not ours()  # nothing happens before the first batch is asked for
    next(epoch)
    assert ours(1) == 1
    assert len(list(epoch)) == 5
    (worker,) = {thread.ident for thread in array.threads}
    assert worker != threading.get_ident()
    assert len(array.threads) == 6
    assert not ours()


@pytest.mark.parametrize("read", [0, 1, 2, 3, 4])
def test_an_epoch_broken_off_leaves_no_thread(read: int) -> None:
    epoch = iter(schuss.minibatches(X, batch_size=4, prefetch=2))
    list(islice(epoch, read))
    assert ours(read > 0) == (read > 0)
    del epoch
    assert not ours()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("reads", [0, 1, 4, 5])
def test_an_error_of_the_thread_reaches_the_caller_and_leaves_no_thread(
    reads: int, prefetch: int
) -> None:
    given: list[Array] = []
    with pytest.raises(OSError, match="the disk is gone"):
        given.extend(schuss.minibatches(slow(reads), batch_size=4, prefetch=prefetch))
    assert reads - max(prefetch - 1, 0) <= len(given) <= reads
    assert not ours()


# Memory used again.


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize("reuse_buffers", [True, False])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("axis", [0, 1])
def test_whichever_batches_are_kept_stay_right(
    axis: int, prefetch: int, reuse_buffers: bool
) -> None:
    x = np.arange(400 * 3).reshape(400, 3)
    x = x if axis == 0 else np.ascontiguousarray(x.T)
    options: dict[str, Any] = {"prefetch": prefetch, "reuse_buffers": reuse_buffers}
    rng = np.random.default_rng(0)
    for size in (1, 4, 7, 64, 300, 500):
        kept: list[tuple[Array, Array]] = []
        batches = schuss.minibatches(x, batch_size=size, axis=axis, indices=True, **options)
        for batch, indices in chain(batches, batches):
            time.sleep(0.0002 * (prefetch > 0))  # let it run ahead
            kept.append((batch, indices))
            for old, order in kept:
                np.testing.assert_array_equal(old, np.take(x, order, axis=axis))
            if len(kept) > 9:
                del kept[rng.integers(10)]


@pytest.mark.parametrize("reuse_buffers", [True, False])
@pytest.mark.parametrize("options", [{}, {"prefetch": 3}], ids=str)
def test_all_batches_of_an_epoch_may_be_kept_and_written(
    options: dict[str, Any], reuse_buffers: bool
) -> None:
    x = np.arange(200_000)
    batches = schuss.minibatches(
        (x, x), batch_size=128, indices=True, reuse_buffers=reuse_buffers, **options
    )
    for first, second, indices in list(batches):
        np.testing.assert_array_equal(first, indices)
        first[:] = -1  # disturbs no other
        np.testing.assert_array_equal(second, indices)


@pytest.mark.usefixtures("small_stages")
@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch[1:],
        lambda batch: batch.T[0].reshape(-1, 1),
        lambda batch: batch.view(np.uint64),
        memoryview,
        lambda batch: np.frombuffer(batch.data.cast("B"), np.int64),
    ],
    ids=["a slice", "a row", "a view", "a memoryview", "a buffer"],
)
def test_whatever_refers_to_the_memory_of_a_batch_keeps_it(keep: Callable[[Array], Any]) -> None:
    kept = []
    for batch in schuss.minibatches(X, batch_size=4, prefetch=1):
        kept.append((keep(batch), np.array(keep(batch))))
        del batch
    for what, was in kept:
        np.testing.assert_array_equal(np.array(what), was)


@pytest.mark.parametrize("reuse_buffers", [True, False])
def test_memory_that_nobody_uses_is_used_again(reuse_buffers: bool) -> None:
    x = np.zeros((6000, 256))  # twelve times what is gathered at once

    def most_memory(keep: list[Array]) -> int:
        tracemalloc.start()
        try:
            for batch in batches:
                keep[len(keep) :] = [batch][: len(keep)]
                del batch
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    batches = schuss.minibatches(x, reuse_buffers=reuse_buffers)
    most_memory([])
    assert most_memory([]) < 500_000
    assert most_memory([x]) > x.nbytes - 3_000_000


@pytest.mark.parametrize("axis", [0, 1])
def test_a_batch_that_is_kept_keeps_no_other_if_memory_is_not_used_again(axis: int) -> None:
    x = np.zeros((300, 300))
    for batch in schuss.minibatches(x, batch_size=4, axis=axis, reuse_buffers=False):
        owner = batch if batch.base is None else batch.base
        assert owner.flags.owndata
        assert owner.nbytes == batch.nbytes


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("reuse_buffers", [True, False])
def test_a_batch_size_far_beyond_the_examples_takes_no_memory(
    reuse_buffers: bool, drop_last: bool, shuffle: bool
) -> None:
    options: dict[str, Any] = {"reuse_buffers": reuse_buffers, "drop_last": drop_last}
    epoch = list(schuss.minibatches(X, batch_size=HUGE, shuffle=shuffle, **options))
    assert [batch.shape for batch in epoch] == [X.shape] * (not drop_last)


# The size that the library chooses.


@pytest.mark.parametrize("m", [1, 64, 1999, 2000])
def test_up_to_two_thousand_examples_are_one_batch_if_the_choice_is_automatic(m: int) -> None:
    batches = schuss.minibatches(np.zeros((m, 3)), batch_size="auto")
    assert batches.batch_size == m
    assert len(batches) == 1
    assert "auto: one batch" in repr(batches)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(64, 64), (127.999, 64), (128, 128), (511, 256), (1024, 1024), (1e9, 1024), (None, 1024)],
)
def test_of_more_it_is_the_greatest_power_of_two_that_fits_the_memory(
    memory: float | None, expected: int
) -> None:
    x, y = np.zeros((2001, 100)), np.zeros(2001)  # 808 bytes an example
    limit = None if memory is None else round(memory * 808)
    for arrays, axis in (((x, y), 0), ((x.T, y), 1)):
        batches = schuss.minibatches(arrays, axis=axis, batch_size="auto", memory=limit)
        assert batches.batch_size == expected
        assert f"of {expected:,} (auto: {expected * 808:,} bytes)" in repr(batches)
        (first, labels), *_ = batches
        assert first.nbytes + labels.nbytes == expected * 808


def test_without_a_limit_large_examples_make_smaller_batches_but_not_below_64() -> None:
    for megabytes, expected in ((0.05, 1024), (0.1, 512), (0.5, 128), (1, 64), (40, 64)):
        example = np.broadcast_to(np.int8(0), (3000, int(megabytes * 2**20)))
        assert schuss.minibatches(example, batch_size="auto").batch_size == expected


@pytest.mark.parametrize(
    ("m", "options", "expected"),
    [
        (1, {}, "1 example in 1 batch of 64, shuffled"),
        (5000, {"batch_size": 2500}, "5,000 examples in 2 batches of 2,500, shuffled"),
        (5000, {"shuffle": False}, "5,000 examples in 79 batches of 64, in order"),
    ],
)
def test_the_representation_says_how_the_examples_are_cut(
    m: int, options: dict[str, Any], expected: str
) -> None:
    assert repr(schuss.minibatches(np.zeros(m), **options)) == f"<MiniBatches: {expected}>"


AUTO = np.zeros(3000)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X, {"y": Y[1:]}, ValueError, r"y has 22 examples, expected 23 \(as x has\)"),
        (X.T, {"y": Y[1:], "axis": 1}, ValueError, r"y has 22 examples, expected 23"),
        (X[:0], {}, ValueError, "x has no examples, expected at least one"),
        (X, {"batch_size": 0}, ValueError, "batch_size is 0, expected an integer >= 1"),
        (X, {"batch_size": -4}, ValueError, "batch_size is -4, expected an integer >= 1"),
        (X, {"batch_size": 2.5}, TypeError, "batch_size is a float, expected an integer"),
        (X, {"batch_size": "4"}, ValueError, "batch_size is '4', expected an integer"),
        (X, {"axis": 2}, ValueError, "axis is 2, expected an axis of x, which has 2"),
        (X, {"axis": -3}, ValueError, "axis is -3, expected an axis of x, which has 2"),
        (X, {"axis": 1.0}, TypeError, "axis is a float, expected an integer"),
        (np.float64(1), {}, ValueError, "axis is 0, expected an axis of x, which has 0"),
        (X, {"y": np.float64(1)}, ValueError, "axis is 0, expected an axis of y, which has 0"),
        (X, {"shuffle": "no"}, TypeError, "shuffle is 'no', expected True or False"),
        (X, {"drop_last": 1}, TypeError, "drop_last is 1, expected True or False"),
        (X, {"indices": 1}, TypeError, "indices is 1, expected True or False"),
        (X, {"reuse_buffers": None}, TypeError, "reuse_buffers is None, expected True or False"),
        (X, {"prefetch": -1}, ValueError, "prefetch is -1, expected an integer >= 0"),
        (X, {"prefetch": 0.5}, TypeError, "prefetch is a float, expected an integer"),
        (X, {"rng": -1}, ValueError, "rng is -1, expected a numpy.random.Generator, a seed >="),
        (X, {"rng": "7"}, TypeError, "rng is '7', expected a numpy.random.Generator, a seed >="),
        ((), {}, ValueError, "x is an empty tuple, expected at least one array"),
        ((X,), {"y": Y}, TypeError, "x is a tuple and y is given, expected y in the tuple"),
        ((X, Y, Y[1:]), {}, ValueError, r"x\[2\] has 22 examples, expected 23 \(as x\[0\] has\)"),
        ((X, X), {"axis": 2}, ValueError, r"axis is 2, expected an axis of x\[0\], which has 2"),
        ((X.T, X[None]), {"axis": -3}, ValueError, r"axis is -3, expected an axis of x\[0\]"),
        (Y, {"axis": 1}, ValueError, "axis is 1, expected an axis of x, which has 1"),
        ([[1], [2, 3]], {}, ValueError, "x is .*expected"),
        (AUTO, {"batch_size": "auto", "memory": 511}, ValueError, "memory is 511 bytes, expected"),
        (AUTO, {"batch_size": "auto", "memory": 0}, ValueError, "memory is 0, expected an integer"),
        (AUTO, {"batch_size": "auto", "memory": 1e6}, TypeError, "memory is a float, expected an"),
        (AUTO, {"batch_size": "Auto"}, ValueError, "batch_size is 'Auto', expected an integer"),
        (X, {"batch_size": "auto", "memory": -5}, ValueError, "memory is -5, expected an integer"),
        (
            X,
            {"batch_size": 4, "memory": 100},
            ValueError,
            "memory is 100 with batch_size 4, expected",
        ),
        ({"a": X}, {}, TypeError, "x is a dict, expected an array"),
        (X, {"y": "abc"}, TypeError, "y is a str, expected an array"),
        (X, {"rng": True}, TypeError, "rng is True, expected a numpy.random.Generator, a seed"),
        (X, {"batch_size": 4, "memory": "1 MB"}, TypeError, "memory is a str, expected an integer"),
    ],
)
def test_an_error_names_the_argument_what_it_was_and_what_was_expected(
    x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^minibatches: {message}"):
        schuss.minibatches(x, **options)


# Where there can be no thread.


@pytest.mark.parametrize("prefetch", [1, 3, 100])
def test_where_no_thread_can_be_started_the_caller_s_prepares(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("schuss._prefetch.start_new_thread", none)
    exits = atexit._ncallbacks()
    array = slow()
    batches = schuss.minibatches(array, batch_size=4, rng=3, prefetch=prefetch)
    plain = schuss.minibatches(X, batch_size=4, rng=3)
    for _ in range(2):
        np.testing.assert_array_equal([*chain(*batches)], [*chain(*plain)])
    assert {thread.ident for thread in array.threads} == {threading.get_ident()}
    epoch = iter(batches)
    next(epoch)
    assert atexit._ncallbacks() == exits
    epoch = iter(schuss.minibatches(slow(1), batch_size=4, prefetch=prefetch))
    next(epoch)
    with pytest.raises(OSError, match="the disk is gone"):
        next(epoch)


@needs_no_threads
def test_where_the_system_has_no_threads_batches_are_the_same() -> None:
    code = """
    x = np.arange(100)
    batches = [schuss.minibatches(x, batch_size=7, rng=3, prefetch=many) for many in (0, 1, 9)]
    first, *others = ([batch.tolist() for _ in range(2) for batch in each] for each in batches)
    assert all(other == first for other in others)
    """
    ends_well(textwrap.dedent(NO_THREADS) + textwrap.dedent(code))
