"""The norm of the summed gradients of all ranks, and the first that is not finite.

Squares are summed in blocks of numbers that follow each other, pairs of blocks, pairs of pairs and
so on. Each rank sums the blocks that begin in its part, and sends the sums of the largest subtrees
that it has. So the bits are those of one process.
"""

import pickle
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice, pairwise, takewhile
from math import sqrt
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array
from schuss.mpi._cut import Cut
from schuss.mpi._messages import STATISTICS_TAG
from schuss.mpi._ranks import Ranks

_BLOCK = 4096
# Numbers are multiplied by a power of two where their squares may have left the range of float64,
# as in cpp/engine/gradient_stats.cpp.
_SMALLEST_SAFE, _SAFE_POWER = 2.0**-900, 600

_Node: TypeAlias = tuple[int, int, float]
"""A sum in the tree: its level, its index there, and its value."""


class _Run(NamedTuple):
    """Consecutive numbers of one parameter, which one rank owns.

    `begin` and `end` count the numbers of all parameters that move; `first` those of the parameter.
    """

    begin: int
    end: int
    rank: int
    param: int
    first: int

    def between(self, begin: int, end: int) -> "_Run":
        """Return the part from one number to another."""
        begin, end = max(begin, self.begin), min(end, self.end)
        return self._replace(begin=begin, end=end, first=self.first + begin - self.begin)


class _Span(NamedTuple):
    """Consecutive blocks that one rank sums, and the numbers in them."""

    rank: int
    first_block: int
    runs: list[_Run]


class Statistics:
    """The statistics of the gradients of the parameters that move in a step.

    components: how many numbers an element of each parameter has. moves: whether it moves.
    """

    def __init__(
        self, ranks: Ranks, cut: Cut, components: Sequence[int], moves: Sequence[bool]
    ) -> None:
        self._ranks, self._params = ranks, len(moves)
        runs = _runs(cut, components, moves)
        self._blocks = -(-runs[-1].end // _BLOCK) if runs else 0
        here = ranks.rank
        self._spans = [
            span
            for span in _spans(runs)
            if here == span.rank or any(run.rank == here for run in span.runs)
        ]
        self._first = [
            begin * each for (begin, _), each in zip(cut.of(ranks.rank), components, strict=True)
        ]

    def of(self, grads: Sequence[Array | None]) -> tuple[float, int, int]:
        """Return digits and a power, the norm ``digits * 2**-power``, and an index.

        The index is that of the first gradient with a NaN or an infinity, or -1. grads: the sums of
        this rank's pieces. All ranks call this.
        """
        numbers = self._numbers(grads)
        total, nonfinite = self._sum(numbers, 0)
        is_safe = _SMALLEST_SAFE <= total <= sys.float_info.max
        has_float64 = any(g is not None and g.real.dtype == np.float64 for g in grads)
        if is_safe or nonfinite >= 0 or not has_float64:
            return sqrt(total), 0, nonfinite
        power = _SAFE_POWER if total < 1 else -_SAFE_POWER
        total, nonfinite = self._sum(numbers, power)
        return sqrt(total), power, nonfinite

    def _numbers(self, grads: Sequence[Array | None]) -> list[list[Array]]:
        """Return the numbers of each span of this rank; they come from this rank and the next."""
        here, requests, numbers = self._ranks.rank, [], []
        for span in self._spans:
            arrays = []
            for run in span.runs:
                array = self._own(grads, run)
                if run.rank != here == span.rank:
                    array = np.empty(run.end - run.begin, array.dtype)
                    requests.append(self._ranks.comm.Irecv(array, run.rank, STATISTICS_TAG))
                elif run.rank == here != span.rank:
                    requests.append(self._ranks.comm.Isend(array, span.rank, STATISTICS_TAG))
                arrays.append(array)
            if span.rank == here:
                numbers.append(arrays)
        self._ranks.wait(requests, "the statistics")
        return numbers

    def _own(self, grads: Sequence[Array | None], run: _Run) -> Array:
        """Return the numbers of a run that this rank has; none if it has none of them."""
        grad = grads[run.param]
        assert grad is not None
        begin = run.first - self._first[run.param]
        numbers = grad.view(grad.real.dtype)
        return numbers[begin : begin + run.end - run.begin] if begin >= 0 else numbers[:0]

    def _sum(self, numbers: list[list[Array]], power: int) -> tuple[float, int]:
        """Return the sum of the squares of all ranks, and the first gradient that is not finite."""
        nodes, nonfinite = [], self._params
        spans = [span for span in self._spans if span.rank == self._ranks.rank]
        for span, arrays in zip(spans, numbers, strict=True):
            sums, bad = _core.square_sums(arrays, power)
            nodes += _nodes(sums, span.first_block, self._blocks)
            if bad >= 0:
                nonfinite = min(nonfinite, span.runs[bad].param)
        gathered = [*map(pickle.loads, self._ranks.gather(pickle.dumps((nodes, nonfinite))))]
        first = min(each for _, each in gathered)
        total = _root([node for each, _ in gathered for node in each], self._blocks)
        return total, -1 if first == self._params else first


def _runs(cut: Cut, components: Sequence[int], moves: Sequence[bool]) -> list[_Run]:
    """Return the numbers of all parameters that move, in order."""
    runs, before = [], 0
    for param, bounds in enumerate(cut.bounds.tolist()):
        if moves[param]:
            ends = [bound * components[param] for bound in bounds]
            for rank, (begin, end) in enumerate(pairwise(ends)):
                if begin < end:
                    runs.append(_Run(before + begin, before + end, rank, param, begin))
            before += ends[-1]
    return runs


def _spans(runs: list[_Run]) -> list[_Span]:
    """Return the blocks that each rank sums: those that begin in consecutive runs of its own."""
    spans, last = [], 0
    for i, run in enumerate(runs):
        is_last = i + 1 == len(runs) or runs[i + 1].rank != run.rank
        if not is_last:
            continue
        first, last = last, -(-run.end // _BLOCK)
        if first < last:
            spans.append(_Span(run.rank, first, _between(runs, first * _BLOCK, last * _BLOCK)))
    return spans


def _between(runs: list[_Run], begin: int, end: int) -> list[_Run]:
    """Return the runs from one number to another."""
    i = bisect_right(runs, begin, key=lambda run: run.end)
    parts = takewhile(lambda run: run.begin < end, islice(runs, i, None))
    return [run.between(begin, end) for run in parts]


def _nodes(sums: npt.NDArray[np.float64], first: int, count: int) -> list[_Node]:
    """Return the sums of the largest subtrees in consecutive blocks.

    first: the index of the first one. count: the number of blocks of all ranks.
    """
    nodes: list[_Node] = []
    level = 0
    while sums.size:
        if first % 2 == 1:  # the right one of a pair
            nodes.append((level, first, float(sums[0])))
            first, sums = first + 1, sums[1:]
        last = first + sums.size
        if sums.size and last % 2 == 1 and last < count:  # the left one of a pair
            nodes.append((level, last - 1, float(sums[-1])))
            sums = sums[:-1]
        if sums.size and count == 1:
            nodes.append((level, 0, float(sums[0])))
            break
        pairs = sums[: sums.size // 2 * 2]
        with np.errstate(all="ignore"):  # sums may overflow: then a power of two is tried
            sums = np.concatenate([pairs[::2] + pairs[1::2], sums[pairs.size :]])
        first, count, level = first // 2, (count + 1) // 2, level + 1
    return nodes


def _root(nodes: list[_Node], count: int) -> float:
    """Return the sum of all blocks, given those of subtrees; count: the number of blocks."""
    levels: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for level, index, value in nodes:
        levels[level][index] = value
    level = 0
    while count > 1:
        for index, value in levels[level].items():
            if index % 2 == 0:
                if index + 1 < count:
                    value += levels[level][index + 1]
                levels[level + 1][index // 2] = value
        count, level = (count + 1) // 2, level + 1
    return levels[level].get(0, 0.0)
