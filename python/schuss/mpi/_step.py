"""The step of a sharded optimizer."""

import pickle
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, ldexp
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss import _core
from schuss._arrays import Array, GradTree, computed_dtype
from schuss._hyperparameters import FINITE, NON_NEGATIVE
from schuss._settings import FROZEN
from schuss.mpi._agreement import check_same
from schuss.mpi._exchange import Exchange
from schuss.mpi._state_stream import StateStream

if TYPE_CHECKING:
    from schuss.mpi._internals import ShardedInternals


@dataclass(frozen=True)
class _Own:
    """What this rank brings to a step."""

    grads: list[Array | None]
    """Its gradients; None for parameters that are frozen, or where it has none."""
    lrs: float | tuple[float, ...]
    scale: float
    weight: float | None
    version: int
    """That of the learning rates."""
    facts: dict[str, str]
    """What must be the same on all ranks."""

    @property
    def sent(self) -> list[Array | None]:
        """The gradients that count."""
        return [None] * len(self.grads) if self.weight == 0 else self.grads


@dataclass(frozen=True)
class _Shared:
    """What all ranks know of a step after their vote."""

    dtypes: list[np.dtype[Any] | None]
    """Those of the gradients; None for parameters that rest."""
    weights: list[float] | None
    divisor: float


def step(
    internals: "ShardedInternals",
    grads: GradTree,
    scale: float,
    weight: float | None,
    *,
    skip_nonfinite: bool,
) -> None:
    """Make a step with the gradients of all ranks, or with those that they have accumulated."""
    ranks = internals.shards.ranks
    with ranks.uninterrupted():
        own, error = None, None
        try:
            own = _read(internals, grads, scale, weight, skip_nonfinite)
        except BaseException as raised:
            error = raised
        shared = _agree(internals, own, error)
        assert own is not None
        try:
            refusal = _run(internals, own, shared, skip_nonfinite)
        except BaseException as failure:
            internals.fail(failure)
            raise
        if refusal is not None:
            raise refusal
        _end(internals, own, shared, uses_sums=grads is None)


def _read(
    internals: "ShardedInternals",
    grads: GradTree,
    scale: float,
    weight: float | None,
    skip_nonfinite: bool,
) -> _Own:
    """Check everything that can be wrong on this rank, and change nothing."""
    call, core, whole = f"{internals.call}.step", internals.core, internals.whole
    scale = FINITE(call, "scale", scale)
    if weight is not None:
        weight = NON_NEGATIVE(call, "weight", weight)
        if internals.shards.reduction == "sum":
            raise ValueError(
                f"{call}: weight is given where reduction is 'sum', expected reduction='mean'"
            )
    version = core.lr_version
    lrs, _ = internals.lrs_of_step(core.steps + 1)
    core.check_lrs(lrs)
    internals.check_copies(call)
    if internals.shards.files is not None:
        internals.shards.files.check(call)
    arrays: list[Array | None] = [None] * len(internals.group_of)
    if weight == 0 and grads is None:
        whole.check_params(call)  # they get new values all the same
    else:
        arrays = whole.read(grads, call)
    facts = {
        "the number of steps": str(core.steps),
        "lr": repr(lrs),
        "scale": repr(scale),
        "weight": "None" if weight is None else "given",
        "skip_nonfinite": repr(skip_nonfinite),
    }
    return _Own(arrays, lrs, scale, weight, version, facts)


def _agree(internals: "ShardedInternals", own: _Own | None, error: BaseException | None) -> _Shared:
    """Vote on the step, and return what all ranks know of it; the error of one is that of all."""
    ranks, call = internals.shards.ranks, f"{internals.call}.step"
    facts = b""
    if own is not None and ranks.size > 1:
        codes = [None if grad is None else grad.dtype.str for grad in own.sent]
        facts = repr((internals.settings_facts(), own.facts, codes)).encode()
    same = ranks.agree(call, error, facts)
    assert own is not None
    dtypes = [None if grad is None else grad.dtype for grad in own.sent]
    weights: Sequence[float | None] = [own.weight]
    if ranks.size > 1 and (not same or own.weight is not None):
        names = [None if dtype is None else dtype.name for dtype in dtypes]
        here = internals.settings_facts() | own.facts, names, own.weight
        gathered = [pickle.loads(each) for each in ranks.gather(pickle.dumps(here))]
        facts_of_all, names_of_all, weights = zip(*gathered, strict=True)
        check_same(call, facts_of_all)
        dtypes = [
            _wire_dtype(call, param, {*names} - {None})
            for param, *names in zip(internals.core.arrays, *names_of_all, strict=True)
        ]
    return _shared(internals, call, dtypes, [each for each in weights if each is not None])


def _shared(
    internals: "ShardedInternals",
    call: str,
    dtypes: list[np.dtype[Any] | None],
    weights: list[float],
) -> _Shared:
    """Return what is known of a step with gradients in these dtypes; weights: those given."""
    ranks = internals.shards.ranks
    if not weights or min(weights) == max(weights) > 0:  # equal weights are none
        mean = internals.shards.reduction == "mean"
        return _Shared(dtypes, None, float(ranks.size) if mean else 1.0)
    most = max(weights)
    if most == 0:
        raise ValueError(f"{call}: weight is 0 on all ranks, expected more on some")
    if len({*weights} - {0.0}) == 1:
        weights = [float(weight > 0) for weight in weights]
    else:  # powers of two change no bits, and products with gradients and the sum stay finite
        weights = [ldexp(weight, -frexp(most)[1]) for weight in weights]
    return _Shared(dtypes, weights, sum(weights))


def _wire_dtype(call: str, param: Array, names: set[str]) -> np.dtype[Any] | None:
    """Return the dtype in which all ranks read the gradients of a parameter.

    names: of the dtypes that the ranks have.
    """
    if len(names) > 1:
        return computed_dtype(param)
    for name in names:
        return _core.bfloat16_dtype(call, "grads") if name == "bfloat16" else np.dtype(name)
    return None


def _run(
    internals: "ShardedInternals", own: _Own, shared: _Shared, skip_nonfinite: bool
) -> FloatingPointError | None:
    """Exchange the gradients, step this rank's pieces, and exchange the parameters.

    Return the error of gradients that are not finite. All ranks have it, and nothing has changed.
    """
    shards, core = internals.shards, internals.core
    exchange, statistics = shards.exchange, None
    shards.read_params()
    exchange.begin(own.sent, shared.dtypes, shared.weights)
    active = [
        grad is not None and not internals.groups[group].get(FROZEN)
        for grad, group in zip(exchange.grads, internals.group_of, strict=True)
    ]
    grads = core.tree.unflatten(exchange.grads)
    if grads is None:  # a single parameter, which is frozen: its gradient is not read
        grads = np.zeros_like(shards.pieces.arrays[0])
    with shards.stream(internals.states, active) as stream:
        parts = _Parts(exchange, stream)
        if skip_nonfinite or internals.needs_statistics:
            parts.sum_all()
            statistics = shards.statistics([dtype is not None for dtype in shared.dtypes])
        try:
            core.step(
                grads,
                own.lrs,
                own.scale / shared.divisor,
                core.steps + 1,
                skip_nonfinite,
                own.version,
                statistics,
                stream.ends,
                parts.begin,
            )
        except FloatingPointError as refusal:
            exchange.finish()
            return refusal
    exchange.finish()
    if internals.settings["track_norms"] and shards.ranks.size > 1:
        parts_of_norms = core.norm_parts
        shards.ranks.sum(parts_of_norms)
        core.set_norms(parts_of_norms)
    return None


class _Parts:
    """The parts in which a step is made: each needs buckets of gradients, and completes others."""

    def __init__(self, exchange: Exchange, stream: StateStream) -> None:
        self._exchange, self._stream = exchange, stream
        self._buckets = len(exchange.ends)
        # How many buckets are summed, and how many are sent, before each part and at the end.
        self._sums = [bisect_left(exchange.ends, end) + 1 for end in stream.ends] + [self._buckets]
        self._sends = [bisect_right(exchange.ends, place) for place in (0, *stream.ends)]
        self._summed = self._sent = 0

    def begin(self, part: int) -> list[Array] | None:
        """Do what comes before a part is stepped, and return its states if they are in files."""
        while self._sent < self._sends[part]:
            self._sum_up_to(self._sent + 1)
            self._exchange.send(self._sent)
            self._sent += 1
        self._sum_up_to(self._sums[part])
        return self._stream.windows(part)

    def sum_all(self) -> None:
        """Wait for the gradients of all buckets."""
        self._sum_up_to(self._buckets)

    def _sum_up_to(self, end: int) -> None:
        for bucket in range(self._summed, min(end, self._buckets)):
            self._exchange.sum_of(bucket)
            self._summed = bucket + 1


def _end(internals: "ShardedInternals", own: _Own, shared: _Shared, *, uses_sums: bool) -> None:
    """Do what follows a step on this rank alone."""
    last = internals.core.last
    if last is not None and not last[2]:
        internals.write_copies(moved=[dtype is not None for dtype in shared.dtypes])
    if internals.settings["clear_grads"]:
        for grad in own.grads:
            if grad is not None:
                grad[...] = 0
    if uses_sums:
        internals.whole.clear_accumulated()
