"""Gradients are summed on the ranks that own them, and stepped parameters come back to all."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schuss import _core
from schuss.mpi import _exchange
from schuss.mpi._cut import BLOCK, TILE, Cut
from schuss.mpi._exchange import Exchange
from schuss.mpi._messages import messages
from schuss.mpi._ranks import Ranks
from support import arrays
from support.arrays import LAYOUTS, Array, dtype_of, laid_out, numbers, same_bits
from support.ranks import Comm, Network, run, run_in_threads

SIZES = [1, 2, 3, 4]
SHAPES = [shape or (2,) for shape in arrays.SHAPES]  # a slice of a number is no array
Grads = Sequence[Array | None]


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send pieces of arrays of a few kilobytes from their own memory."""
    monkeypatch.setattr(_exchange, "LARGE", 1 << 13)


class Sharded:
    """Parameters that a rank steps by ``p -= g``, g being the sum over the ranks."""

    def __init__(self, comm: Any, params: Sequence[Array], **options: Any) -> None:
        self.ranks = Ranks(comm, 600)
        self.params = list(params)
        self.orders = [_core.MemoryOrder(param) for param in params]
        cut = Cut([p.size for p in params], [p.itemsize for p in params], self.ranks.size)
        self.owned = cut.of(self.ranks.rank)
        self.pieces = []
        for order, param, (begin, end) in zip(self.orders, params, self.owned, strict=True):
            flat = order.flat(param)
            piece = np.empty(end - begin, param.dtype) if flat is None else flat[begin:end]
            if flat is None:
                order.gather(param, begin, piece)
            self.pieces.append(piece)
        options = {"bucket_bytes": 1 << 14} | options
        self.exchange = Exchange(self.ranks, cut, params, self.pieces, **options)

    def step(
        self, grads: Grads, dtypes: Sequence[Any], weights: Any = None, *, sums_first: bool = False
    ) -> list[Array | None]:
        """Return copies of the sums of this rank's pieces."""
        exchange = self.exchange
        exchange.begin(grads, dtypes, weights)
        count = len(exchange.ends)
        for k in range(count if sums_first else 0):
            exchange.sum_of(k)
        begin = 0
        for k, end in enumerate(exchange.ends):
            if not sums_first:
                exchange.sum_of(k)
            self._step_elements(begin, end)
            exchange.send(k)
            begin = end
        exchange.finish()
        return [None if grad is None else grad.copy() for grad in exchange.grads]

    def _step_elements(self, begin: int, end: int) -> None:
        before = 0
        for piece, grad in zip(self.pieces, self.exchange.grads, strict=True):
            part = slice(max(begin - before, 0), max(end - before, 0))
            if grad is not None:
                piece[part] -= grad[part].astype(piece.dtype)
            before += piece.size


def summed(terms: Sequence[Array], dtype: Any, weights: Sequence[float] | None = None) -> Array:
    """The sum in the order of the ranks; each product and sum is rounded."""
    terms = [term.astype(dtype) for term in terms]
    if weights is not None:
        real = np.dtype(dtype).type(0).real.dtype.type
        terms = [term * real(weight) for term, weight in zip(terms, weights, strict=True)]
    total = terms[0].copy()
    for term in terms[1:]:
        total = total + term
    return total


def in_order(array: Array, like: Array) -> Array:
    """The elements of an array in the order of the memory of another."""
    order = np.argsort([-abs(n) for n in like.strides], kind="stable")
    backwards: Any = (*(slice(None, None, -1 if n < 0 else 1) for n in like.strides), ...)
    ordered: Array = array[backwards].transpose(order).reshape(-1)
    return ordered


def some_params(layouts: Sequence[str], dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(0)
    return [
        laid_out(numbers(rng, shape, dtype, special=False), layout)
        for layout, shape in zip(layouts, SHAPES, strict=False)
    ]


def some_grads(size: int, params: Sequence[Array], dtype: Any, layout: str) -> list[list[Array]]:
    """Return the gradients of all ranks, the same wherever they are made."""
    rng = np.random.default_rng(1)
    return [
        [laid_out(numbers(rng, p.shape, dtype, special=False), layout) for p in params]
        for _ in range(size)
    ]


def check(
    size: int,
    new_params: Callable[[], list[Array]],
    grads: Sequence[Grads],
    expected: Sequence[Array | None],
    *,
    dtypes: Sequence[Any],
    weights: Any = None,
    runner: Any = run,
    prepare: Callable[[Any], None] = lambda comm: None,
    **options: Any,
) -> None:
    """Check the sums and the parameters of each rank; `expected` has the sums of whole arrays."""

    def program(comm: Any) -> None:
        prepare(comm)
        sharded = Sharded(comm, new_params(), **options)
        for sums_first in (False, True):  # the second step uses the same memory
            before = [param.copy() for param in sharded.params]
            sums = sharded.step(grads[sharded.ranks.rank], dtypes, weights, sums_first=sums_first)
            for param, was, total, own, (begin, end) in zip(
                sharded.params, before, expected, sums, sharded.owned, strict=True
            ):
                if total is None:
                    assert own is None
                    assert same_bits(param, was)
                    continue
                assert own is not None
                piece = in_order(total, param)[begin:end]
                assert same_bits(own.astype(piece.dtype), piece)
                assert same_bits(param, was - total.astype(param.dtype))

    runner(program, size)


@pytest.mark.parametrize("size", [*SIZES, 5, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_summed_in_the_order_of_the_ranks(size: int, layout: str) -> None:
    def params() -> list[Array]:
        return some_params([layout] * len(SHAPES))

    grads = some_grads(size, params(), np.float32, "c")
    expected = [summed(of, np.float32) for of in zip(*grads, strict=True)]
    check(size, params, grads, expected, dtypes=[np.dtype("f4")] * len(SHAPES))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_gradients_may_lie_in_memory_as_they_like(size: int, layout: str) -> None:
    def params() -> list[Array]:
        return some_params(LAYOUTS)

    grads = some_grads(size, params(), np.float32, layout)
    expected = [summed(of, np.float32) for of in zip(*grads, strict=True)]
    check(size, params, grads, expected, dtypes=[np.dtype("f4")] * len(expected))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "grad_dtype", "sum_dtype"),
    [
        ("float64", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("float64", "bfloat16", "float64"),
        ("float32", "float16", "float32"),
        ("float16", "float16", "float32"),
        ("float16", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("complex64", "complex64", "complex64"),
        ("complex128", "complex64", "complex128"),
    ],
)
def test_gradients_of_any_dtype_are_summed_in_that_of_the_step(
    size: int, dtype: str, grad_dtype: str, sum_dtype: str
) -> None:
    def params() -> list[Array]:
        return some_params(LAYOUTS, dtype_of(dtype))

    grads = some_grads(size, params(), dtype_of(grad_dtype), "c")
    expected = [summed(of, dtype_of(sum_dtype)) for of in zip(*grads, strict=True)]
    check(size, params, grads, expected, dtypes=[dtype_of(grad_dtype)] * len(expected))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grad_dtype", ["float32", "float16"])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_each_ranks_gradients_are_rounded_for_the_wire(
    size: int, wire: str, grad_dtype: str
) -> None:
    def params() -> list[Array]:
        return [*some_params(LAYOUTS), np.zeros(3000), np.zeros(900, np.complex64)]

    grads = [
        [*own[:-2], own[-2].astype(np.float64), own[-1] + 1j * own[-1][::-1]]
        for own in some_grads(size, params(), np.float32, "c")
    ]
    rounded = [
        [grad.view(np.float32).astype(dtype_of(wire)).astype(np.float32) for grad in own[:-2]]
        + [own[-2], own[-1].view(np.float32).astype(dtype_of(wire)).astype(np.float32)]
        for own in grads
    ]
    for own in rounded:
        own[-1] = own[-1].view(np.complex64)
    dtypes = [grad.dtype for grad in grads[0]]
    expected = [summed(of, grad.dtype) for grad, *of in zip(grads[0], *rounded, strict=True)]
    if grad_dtype == "float16":  # on the first rank only
        grads[0][0] = grads[0][0].astype(np.float16)
        terms = [grads[0][0].astype(dtype_of(wire)), *(own[0] for own in rounded[1:])]
        expected[0] = summed(terms, np.float32)
    check(size, params, grads, expected, dtypes=dtypes, wire_dtype=dtype_of(wire))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_weighted(size: int) -> None:
    weights = [0.3, 0.0, 7.0, 1.0][:size]

    def params() -> list[Array]:
        return some_params(LAYOUTS)

    grads: list[Any] = some_grads(size, params(), np.float32, "c")
    weighted = [rank for rank in range(size) if weights[rank] != 0]
    expected = [
        summed([grads[rank][i] for rank in weighted], np.float32, [weights[r] for r in weighted])
        for i in range(len(LAYOUTS))
    ]
    if size > 1:
        grads[1] = [None] * 3 + [np.full(SHAPES[i], np.nan, np.float32) for i in range(3, 9)]
    dtypes = [np.dtype("f4")] * len(expected)
    check(size, params, grads, expected, dtypes=dtypes, weights=weights)


@pytest.mark.parametrize("size", SIZES)
def test_missing_gradients_count_as_zeros_or_their_parameters_rest(size: int) -> None:
    def params() -> list[Array]:
        return some_params(LAYOUTS)

    grads: list[list[Any]] = [*map(list, some_grads(size, params(), np.float32, "c"))]
    dtypes: list[Any] = [np.dtype("f4")] * len(LAYOUTS)
    expected: list[Any] = []
    for i in range(len(LAYOUTS)):
        for rank in range(size):
            if (i + rank) % 4 == 3 or i in (4, 8):
                grads[rank][i] = None
        if all(own[i] is None for own in grads):
            dtypes[i] = None
            expected.append(None)
            continue
        zeros = np.zeros(SHAPES[i], np.float32)
        expected.append(summed([zeros if own[i] is None else own[i] for own in grads], np.float32))
    check(size, params, grads, expected, dtypes=dtypes)


@pytest.mark.parametrize("size", SIZES)
def test_many_tiny_arrays_share_messages(size: int) -> None:
    sent = []

    def count_messages(comm: Any) -> None:
        class Counting(Comm):
            def Isend(self, *args: Any) -> Any:
                sent.append(args)
                return super().Isend(*args)

            def Dup(self) -> Any:
                return Counting(self.network, self.rank, (1,))

        if isinstance(comm, Comm):
            comm.Dup = Counting(comm.network, comm.rank).Dup  # type: ignore[method-assign]

    def params() -> list[Array]:
        return [np.full(i % 7 or (), i, np.float32) for i in range(1000)]

    grads = some_grads(size, params(), np.float32, "c")
    expected = [summed(of, np.float32) for of in zip(*grads, strict=True)]
    dtypes = [np.dtype("f4")] * len(expected)
    check(size, params, grads, expected, dtypes=dtypes, prepare=count_messages)
    # Two steps; in each, gradients and parameters between each two ranks, in one bucket.
    assert len(sent) <= 2 * 2 * size * (size - 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bucket_bytes", [1, 5000, 1 << 30])
def test_buckets_of_any_size_give_the_same(size: int, bucket_bytes: int) -> None:
    def params() -> list[Array]:
        return [np.zeros(20_000, np.float32), *some_params(LAYOUTS)]

    grads = some_grads(size, params(), np.float32, "c")
    expected = [summed(of, np.float32) for of in zip(*grads, strict=True)]
    dtypes = [np.dtype("f4")] * len(expected)
    check(size, params, grads, expected, dtypes=dtypes, bucket_bytes=bucket_bytes)


def test_late_messages_change_nothing() -> None:
    def delay(comm: Comm) -> None:
        rank = comm.Get_rank()
        comm.network.delay(rank, (rank + 1) % 3, polls=50 * rank)

    def params() -> list[Array]:
        return some_params(LAYOUTS)

    grads = some_grads(3, params(), np.float32, "c")
    expected = [summed(of, np.float32) for of in zip(*grads, strict=True)]
    dtypes = [np.dtype("f4")] * len(expected)
    check(3, params, grads, expected, dtypes=dtypes, runner=run_in_threads, prepare=delay)


@pytest.mark.parametrize(
    ("size", "mebibytes", "expected"),
    [
        (8, 64, 1 << 20),
        (16, 64, 8 << 16),  # 8 MiB of all ranks
        (64, 512, 16 << 14),  # 1/32 of the parameters
        (64, 4096, 1 << 20),
        (256, 64, 1 << 16),  # the least
    ],
)
def test_a_bucket_of_all_ranks_stays_small(size: int, mebibytes: int, expected: int) -> None:
    params = [np.broadcast_to(np.float32(0), mebibytes << 18)]
    cut = Cut([params[0].size], [4], size)
    pieces = [params[0][: cut.of(0)[0][1]]]
    exchange = Exchange(Ranks(Comm(Network(size), 0), 600), cut, params, pieces)
    assert max(np.diff(exchange.ends, prepend=0)) * 4 == expected


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_many_ranks_use_the_librarys_sums_unless_their_order_matters(
    size: int, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exchange, "MAX_PAIRWISE", 0)

    def program(comm: Any) -> list[bytes]:
        params = [*some_params(LAYOUTS), np.zeros(3000), np.zeros(1000, np.complex64)]
        grads = some_grads(size, params, np.float32, "c")
        grads = [[g.astype(p.dtype) for g, p in zip(own, params, strict=True)] for own in grads]
        expected = [summed(of, p.dtype) for p, *of in zip(params, *grads, strict=True)]
        before = [param.copy() for param in params]
        sharded = Sharded(comm, params, deterministic=deterministic)
        sharded.step(grads[sharded.ranks.rank], [p.dtype for p in params])
        for param, was, total in zip(params, before, expected, strict=True):
            if deterministic:
                assert same_bits(param, was - total)
            else:
                np.testing.assert_allclose(param, was - total, rtol=1e-5, atol=1e-5)
        return [param.tobytes() for param in params]

    results = run(program, size)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_may_change_from_step_to_step(size: int) -> None:
    def program(comm: Any) -> None:
        params = some_params(LAYOUTS)
        sharded = Sharded(comm, params)
        grads = some_grads(size, params, np.float32, "c")
        for step in range(6):
            dtypes: list[Any] = [
                None if i == step else np.dtype("f2" if (i + step) % 3 == 0 else "f4")
                for i in range(len(params))
            ]
            now: list[list[Any]] = [
                [None if d is None else g.astype(d) for g, d in zip(own, dtypes, strict=True)]
                for own in grads
            ]
            before = [param.copy() for param in params]
            sharded.step(now[sharded.ranks.rank], dtypes)
            for i, (param, was) in enumerate(zip(params, before, strict=True)):
                terms = [own[i] for own in now]
                expected = was if dtypes[i] is None else was - summed(terms, np.float32)
                assert same_bits(param, expected)
            # A step that is skipped after the sums sends no parameters.
            sharded.exchange.begin(now[sharded.ranks.rank], dtypes)
            for k in range(len(sharded.exchange.ends)):
                sharded.exchange.sum_of(k)
            sharded.exchange.finish()

    run(program, size)


def test_a_pattern_of_gradients_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []

    def planned_messages(*args: Any) -> Any:
        plans.append(args)
        return messages(*args)

    monkeypatch.setattr(_exchange, "messages", planned_messages)

    def program(comm: Any) -> list[int]:
        params = [np.zeros(1000, np.float32), np.zeros(1000, np.float32)]
        sharded, planned = Sharded(comm, params), []
        for step in range(6):  # as of experts that take turns
            grads = [np.full(1000, 1, np.float32) if i == step % 2 else None for i in (0, 1)]
            sharded.step(grads, [None if g is None else g.dtype for g in grads])
            sharded.ranks.gather(b"")
            planned.append(len(plans))
            sharded.ranks.gather(b"")
        assert (np.array(params) == -6).all()  # 3 steps of 2 ranks
        return planned

    for planned in run_in_threads(program, 2):
        assert planned[0] < planned[1] == planned[-1]


def test_a_rank_alone_uses_gradients_in_their_memory() -> None:
    sharded = Sharded(None, [np.zeros(5, np.float32), np.zeros((3, 4), np.float32, order="F")])
    grads: list[Array] = [np.ones(5, np.float16), np.ones((3, 4), np.float32, order="F")]
    sharded.exchange.begin(grads, [grad.dtype for grad in grads])
    for used, grad in zip(sharded.exchange.grads, grads, strict=True):
        assert used is not None
        assert np.shares_memory(used, grad)
        assert used.dtype == grad.dtype


SOME_SIZES = st.lists(st.integers(0, 40_000) | st.integers(0, 300), max_size=12)
ITEMSIZES = st.sampled_from([2, 4, 8, 16])


@given(SOME_SIZES, st.data(), st.integers(1, 9), st.sampled_from([1, 1000, 1 << 16, 1 << 30]))
@settings(max_examples=200)
def test_a_cut_covers_all_elements_once(
    sizes: list[int], data: st.DataObject, ranks: int, bucket_bytes: int
) -> None:
    itemsizes = [data.draw(ITEMSIZES) for _ in sizes]
    more = data.draw(SOME_SIZES)
    cut = Cut(sizes, itemsizes, ranks)
    total = sum(n * item for n, item in zip(sizes, itemsizes, strict=True))
    for rank in range(ranks):  # balanced but for the rounding at both ends
        assert abs(cut.bytes_of(rank) - total / ranks) <= BLOCK * 16
    longer = cut.extended(more, [4] * len(more))
    assert longer.bounds[: len(sizes)].tolist() == cut.bounds.tolist()
    for bounds, size in zip(longer.bounds.tolist(), sizes + more, strict=True):
        assert (bounds[0], bounds[-1]) == (0, size)
        assert bounds == sorted(bounds)
        assert all(bound % BLOCK == 0 or bound == size for bound in bounds)
    buckets = longer.buckets(bucket_bytes)
    for rank in range(ranks):
        ranges = [r for bucket in buckets for r in bucket[rank]]
        assert ranges == sorted(ranges)
        for param, (begin, end) in enumerate(longer.of(rank)):
            ends = [r for r in ranges if r.param == param]
            assert [r.begin for r in ends] == [begin, *(r.end for r in ends)][: len(ends)]
            assert (ends[-1].end if ends else begin) == end
            assert all((r.begin - begin) % TILE == 0 for r in ends)
        most = max(longer.bytes_of(rank) for rank in range(ranks))
        for bucket in buckets:
            nbytes = sum(
                (r.end - r.begin) * (itemsizes + [4] * len(more))[r.param] for r in bucket[rank]
            )
            assert nbytes <= min(most, max(bucket_bytes, 4096)) + TILE * 16
