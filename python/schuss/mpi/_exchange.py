"""Sums of gradients to the ranks that own them, and the stepped parameters back to all."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from schuss import _core
from schuss._arrays import Array, computed_dtype
from schuss.mpi._collective import CollectiveParameters, CollectiveSums
from schuss.mpi._cut import Bucket, Cut, Range
from schuss.mpi._flat import Gradients, Parameters
from schuss.mpi._messages import Format, Memory, Plan, component, components, messages
from schuss.mpi._pairwise import PairwiseParameters, PairwiseSums
from schuss.mpi._ranks import Ranks
from schuss.mpi._sum_arrays import SumArrays

BUCKET_BYTES = 1 << 20
"""Of the parameters that a rank owns."""
_MIN_BUCKET_BYTES, _MIN_BUCKETS = 1 << 16, 32
"""With many ranks: smaller buckets would cost more in latency than they save in memory."""
SLOTS = 2
"""How many buckets are under way at one time."""
MAX_PAIRWISE = 8
"""With more ranks, the library's collective functions are used, unless the order matters."""
LARGE = 1 << 16
"""Pieces of at least this number of bytes are sent from their own memory."""
BUFFERS = 2 * SLOTS
"""Buffers with more ranks than `MAX_PAIRWISE`, each of the size of a bucket of all ranks."""
_ROUTES = 8
"""The routes that are kept, as the parameters that have gradients may change at each step."""

_Dtype = np.dtype[Any]


def bucket_bytes_for(ranks: int, nbytes: int, most: int = BUCKET_BYTES) -> int:
    """Return the bytes of a rank's parameters in a bucket.

    With more ranks than `MAX_PAIRWISE`, a bucket of all ranks has the size that it has with
    `MAX_PAIRWISE` ranks, 1/32 of the parameters, or 64 KiB for each rank: the largest of the three.

    nbytes: of all parameters. most: the bytes with fewer ranks.
    """
    of_all = max(MAX_PAIRWISE * most, nbytes // _MIN_BUCKETS)
    return min(most, max(of_all // ranks, _MIN_BUCKET_BYTES))


class _Route(NamedTuple):
    """How gradients in some formats and their parameters travel."""

    grads: list[Array | None]
    sums: PairwiseSums | CollectiveSums
    params: PairwiseParameters | CollectiveParameters


class Exchange:
    """The messages of a step, which all ranks send together.

    `begin`; `sum_of(k)` for each bucket k in order; `send(k)` for each bucket in order, or none at
    all if there is no step; `finish`. Calls of `sum_of` and `send` may be interleaved.

    params: the whole parameters of the user.
    pieces: what this rank owns of each, 1-D, in the order of its memory. Where a parameter has gaps
    in memory, the piece is a buffer, which `send` copies to the parameter.
    deterministic: sum in the order of the ranks, however many there are.
    wire_dtype: round gradients in float32 to this 16-bit dtype before they are sent and summed.
    """

    def __init__(
        self,
        ranks: Ranks,
        cut: Cut,
        params: Sequence[Array],
        pieces: Sequence[Array],
        *,
        bucket_bytes: int = BUCKET_BYTES,
        deterministic: bool = False,
        wire_dtype: _Dtype | None = None,
    ) -> None:
        self._ranks, self._deterministic, self._wire_dtype = ranks, deterministic, wire_dtype
        self._dtypes = [param.dtype for param in params]
        self._summed = [component(computed_dtype(param)) for param in params]
        self._orders = [_core.MemoryOrder(param) for param in params]
        self._params = Parameters(self._orders, params, pieces, cut.of(ranks.rank))
        nbytes = sum(param.nbytes for param in params)
        buckets = cut.buckets(bucket_bytes_for(ranks.size, nbytes, bucket_bytes))
        self.ends: list[int] = np.cumsum(
            [sum(r.end - r.begin for r in bucket[ranks.rank]) for bucket in buckets]
        ).tolist()
        """How many numbers of the pieces, one after another, the buckets up to k have."""
        self._buckets = [_of_components(bucket, self._dtypes) for bucket in buckets]
        owned = np.diff(cut.bounds) * np.reshape(cut.itemsizes, (-1, 1))
        self._large = [frozenset(np.flatnonzero(of >= LARGE).tolist()) for of in owned.T]
        self._sum_memory, self._param_memory = Memory(), Memory()
        owned_numbers = [len(components(piece)) for piece in pieces]
        self._sum_arrays = SumArrays(owned_numbers, self._summed)
        self._routes: dict[tuple[tuple[Format | None, ...], bool], _Route] = {}
        self._route: _Route | None = None
        self._grads: list[Array | None] = []
        self._sent = 0

    def begin(
        self,
        grads: Sequence[Array | None],
        dtypes: Sequence[_Dtype | None],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Begin to send the gradients to the ranks that own them.

        They must not change before `finish`.

        grads: this rank's gradient of each whole parameter, None for zeros.
        dtypes: of the gradients, the same on all ranks; None where no rank has a gradient.
        weights: by which the gradients of each rank are multiplied; those with 0 are left out.
        """
        formats = [*map(self._format, self._summed, dtypes)]
        self._sent = 0
        if self._ranks.size == 1 and weights is None and self._wire_dtype is None:
            self._grads = [*map(_in_order, self._orders, grads)]
            return
        route = self._route = self._route_for(formats, weighted=weights is not None)
        self._grads = route.grads
        route.sums.begin(Gradients(self._orders, grads, formats), weights)
        for k in range(min(SLOTS, len(self._buckets))):
            route.sums.start(k)

    @property
    def grads(self) -> list[Array | None]:
        """The summed gradients of the pieces, None where no rank has a gradient.

        A rank alone has its own gradients here, in their memory where they lie dense.
        """
        return list(self._grads)

    def sum_of(self, k: int) -> None:
        """Wait until bucket k of `grads` has the sums."""
        if self._route is not None:
            self._route.sums.finish(k)
            if k + SLOTS < len(self._buckets):
                self._route.sums.start(k + SLOTS)

    def send(self, k: int) -> None:
        """Begin to send bucket k of the pieces, which has been stepped, to the other ranks."""
        for r in self._buckets[k][self._ranks.rank]:
            self._params.write_piece(r)
        if self._route is not None:
            if k >= SLOTS:
                self._route.params.finish(k - SLOTS)
            self._route.params.start(k)
            self._sent = k + 1

    def finish(self) -> None:
        """Wait until all parameters have arrived, and the other ranks have this one's gradients."""
        if self._route is not None:
            for k in range(max(0, self._sent - SLOTS), self._sent):
                self._route.params.finish(k)
            self._route.sums.end()

    def _format(self, summed: _Dtype, dtype: _Dtype | None) -> Format | None:
        """Return how gradients of a dtype travel that are summed in another."""
        if dtype is None:
            return None
        if dtype.itemsize == 2:
            return Format(dtype, summed)
        if summed == np.float32 and self._wire_dtype is not None:
            return Format(self._wire_dtype, summed)
        return Format(summed, summed)

    def _route_for(self, formats: list[Format | None], *, weighted: bool) -> _Route:
        """Return the route of gradients in these formats, which is made once."""
        few = self._ranks.size <= MAX_PAIRWISE
        converted = any(format is not None and format.wire != format.used for format in formats)
        pairwise = few or self._deterministic or weighted or converted
        key = tuple(formats), pairwise
        if key not in self._routes:
            if len(self._routes) == _ROUTES:
                self._routes.clear()
            self._routes[key] = self._new_route(formats, few=few, pairwise=pairwise)
        return self._routes[key]

    def _new_route(self, formats: list[Format | None], *, few: bool, pairwise: bool) -> _Route:
        """Plan how gradients in these formats travel, and their parameters.

        few: whether parameters go from each rank to each. pairwise: whether gradients do.
        """
        ranks = self._ranks
        of_params = [
            None if format is None else Format(dtype, dtype)
            for format, dtype in zip(formats, map(component, self._dtypes), strict=True)
        ]
        plan = self._plan(formats)
        grads, targets = self._sum_arrays.lay_out([bucket[ranks.rank] for bucket in plan], formats)
        sums = (PairwiseSums if pairwise else CollectiveSums)(
            ranks, SLOTS, self._sum_memory, plan, targets
        )
        params = (PairwiseParameters if few else CollectiveParameters)(
            ranks, SLOTS, self._param_memory, self._plan(of_params), self._params
        )
        complex_grads = [
            grad if grad is None or dtype.kind != "c" else grad.view(dtype)
            for grad, dtype in zip(grads, self._dtypes, strict=True)
        ]
        return _Route(complex_grads, sums, params)

    def _plan(self, formats: Sequence[Format | None]) -> Plan:
        return [
            [
                messages(ranges, formats, large)
                for ranges, large in zip(bucket, self._large, strict=True)
            ]
            for bucket in self._buckets
        ]


def _of_components(bucket: Bucket, dtypes: Sequence[_Dtype]) -> Bucket:
    """Return the ranges of a bucket, where each complex number counts as two."""
    counts = [1 + (dtype.kind == "c") for dtype in dtypes]
    return [
        [Range(i, begin * counts[i], end * counts[i]) for i, begin, end in ranges]
        for ranges in bucket
    ]


def _in_order(order: _core.MemoryOrder, grad: Array | None) -> Array | None:
    """Return a gradient with one axis, in the order of the parameter's memory."""
    if grad is None:
        return None
    flat = order.flat(grad)
    if flat is None:
        flat = np.empty(grad.size, grad.dtype)
        order.gather(grad, 0, flat)
    return flat
