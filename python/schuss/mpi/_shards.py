"""What a sharded optimizer knows of the ranks, and how its parameters are divided among them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from schuss import _core
from schuss._arrays import Array, zeros_like_strided
from schuss._blocks import has_blocks
from schuss._settings import Configurable, untyped_internals
from schuss._state import Pieces
from schuss.mpi._cut import Cut, Range
from schuss.mpi._exchange import Exchange
from schuss.mpi._ranks import Ranks
from schuss.mpi._state_files import StateFiles
from schuss.mpi._state_stream import StateStream
from schuss.mpi._statistics import Statistics
from schuss.reference._square_code import BLOCK, blocks_of

_DIGEST = 16  # bytes of a digest of a parameter


@dataclass(frozen=True)
class Sharing:
    """The arguments of `Sharded` that say how the ranks share the work."""

    reduction: str
    """"mean" or "sum": what a step takes of the gradients of the ranks."""
    deterministic: bool
    wire_dtype: np.dtype[Any] | None
    bucket_bytes: int
    check_params: bool


class Shards:
    """The division of whole parameters among ranks.

    core: of the whole parameters. files: where the state is kept, if not in memory. cut: None for a
    new one.
    """

    def __init__(
        self,
        ranks: Ranks,
        sharing: Sharing,
        files: StateFiles | None,
        core: _core.Optimizer,
        cut: Cut | None = None,
    ) -> None:
        self.ranks, self.sharing, self.files = ranks, sharing, files
        self.params: list[Array] = core.arrays
        if cut is None:
            cut = Cut(
                [param.size for param in self.params],
                [param.itemsize for param in self.params],
                ranks.size,
            )
        self.cut = cut
        self.orders = [_core.MemoryOrder(param) for param in self.params]
        # Parameters with gaps in memory have no view of one dimension. Their pieces are copies.
        self._copied: list[int] = []
        self._statistics: dict[tuple[bool, ...], Statistics] = {}  # of the last step that had some
        self.pieces = self._pieces()
        self.exchange = Exchange(
            ranks,
            cut,
            self.params,
            self.pieces.arrays,
            bucket_bytes=sharing.bucket_bytes,
            deterministic=sharing.deterministic,
            wire_dtype=sharing.wire_dtype,
        )

    def extended(self, core: _core.Optimizer) -> "Shards":
        """Return the division of more parameters, among which these come first."""
        added = core.arrays[len(self.params) :]
        cut = self.cut.extended([it.size for it in added], [it.itemsize for it in added])
        return Shards(self.ranks, self.sharing, self.files, core, cut)

    @property
    def reduction(self) -> str:
        """What a step takes of the gradients of the ranks: "mean" or "sum"."""
        return self.sharing.reduction

    def _pieces(self) -> Pieces:
        bounds, arrays, first, before = self.cut.of(self.ranks.rank), [], [], 0
        for i, (param, (begin, end)) in enumerate(zip(self.params, bounds, strict=True)):
            flat = self.orders[i].flat(param)
            if flat is None:
                self._copied.append(i)
                arrays.append(np.zeros(end - begin, param.dtype))
            else:
                arrays.append(flat[begin:end])
            components = 2 if param.dtype.kind == "c" else 1
            first.append(before + begin * components)
            before += param.size * components
        sizes = [param.size for param in self.params]
        new_zeros = None if self.files is None else self.files.new_zeros
        return Pieces(arrays, bounds, sizes, first, new_zeros)

    def stream(self, states: Mapping[str, Sequence[Array]], active: Sequence[bool]) -> StateStream:
        """Return the states for one step, in parts that lie within buckets of the exchange.

        active: whether each parameter is stepped.
        """
        sizes = [len(piece) for piece in self.pieces.arrays]
        # A process alone has nothing to exchange meanwhile.
        ends = [sum(sizes)] if self.ranks.size == 1 else self.exchange.ends
        if self.files is None:
            return StateStream((), ends, ())
        return self.files.stream(states, sizes, active, ends)

    def read_params(self) -> None:
        """Copy parameters that have gaps in memory to the pieces of this rank."""
        for i in self._copied:
            begin, _ = self.pieces.bounds[i]
            self.orders[i].gather(self.params[i], begin, self.pieces.arrays[i])

    def statistics(self, moves: Sequence[bool]) -> tuple[float, int, int]:
        """Return the statistics of the summed gradients; moves: of which parameters there are some.

        See `Statistics.of`.
        """
        key = tuple(moves)
        if key not in self._statistics:
            components = [1 + (param.dtype.kind == "c") for param in self.params]
            self._statistics = {key: Statistics(self.ranks, self.cut, components, moves)}
        return self._statistics[key].of(self.exchange.grads)

    def broadcast(self, begin: int) -> None:
        """Make the parameters from `begin` on those of rank 0."""
        if self.ranks.size == 1:
            return
        for i, param in enumerate(self.params[begin:], start=begin):
            values = self._flat(i, param)
            self.ranks.broadcast(values)
            if i in self._copied:
                self.orders[i].scatter(values, 0, param)

    def compare(self, call: str, names: list[str], begin: int) -> None:
        """Raise ValueError on all ranks if their parameters from `begin` on differ."""
        digests = b"".join(
            blake2b(self._flat(i, param).view(np.uint8).data, digest_size=_DIGEST).digest()
            for i, param in enumerate(self.params[begin:], start=begin)
        )
        first, *others = self.ranks.gather(digests)
        for rank, there in enumerate(others, start=1):
            for i, name in enumerate(names[begin:]):
                if first[i * _DIGEST :][:_DIGEST] != there[i * _DIGEST :][:_DIGEST]:
                    param = f"parameter {name!r} has" if name else "params has"
                    raise ValueError(
                        f"{call}: {param} other values on rank {rank} than on rank 0, expected the "
                        "same on all ranks (without check_params, all ranks get those of rank 0)"
                    )

    def _flat(self, i: int, array: Array) -> Array:
        """Return the elements of an array like parameter i, in the order of the memory of that."""
        flat = self.orders[i].flat(array)
        if flat is None:
            flat = np.empty(array.size, array.dtype)
            self.orders[i].gather(array, 0, flat)
        return flat

    def piece_of(self, i: int, whole: Array) -> Array:
        """Return this rank's piece of an array like parameter i, or of the blocks of its state."""
        begin, end = _items(whole.dtype, *self.pieces.bounds[i])
        return (whole if has_blocks(whole) else self._flat(i, whole))[begin:end]

    def joined(self, pieces: Sequence[Array | None], *, root: int | None = None) -> list[Any]:
        """Return whole arrays, given this rank's piece of each; None for None.

        All ranks call this. root: the only rank that needs them; the others return None for all.
        """
        keeps = root is None or root == self.ranks.rank
        with self.ranks.together("whole arrays"):  # of which there may be too many for the memory
            wholes = [
                self._empty(i, piece.dtype) if keeps and piece is not None else None
                for i, piece in enumerate(pieces)
            ]
        for rank in range(self.ranks.size):
            for i, begin, end in self._ranges_of(rank):
                piece, whole = pieces[i], wholes[i]
                if piece is None:
                    continue
                begin, end = _items(piece.dtype, begin, end)
                part = np.empty(end - begin, piece.dtype) if whole is None else whole[1][begin:end]
                if rank == self.ranks.rank:
                    part[...] = piece
                self.ranks.broadcast(part, rank)
        return [None if whole is None else whole[0] for whole in wholes]

    def _empty(self, i: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Return a new array like parameter i, and a view of its elements in their order."""
        param = self.params[i]
        if dtype.names is not None:
            blocks = np.empty(blocks_of(param.size), dtype)
            return blocks, blocks
        array = zeros_like_strided(param, 0, dtype)
        flat = self.orders[i].flat(array)
        assert flat is not None
        return array, flat

    def _ranges_of(self, rank: int) -> Iterator[Range]:
        """Yield what a rank owns, without empty ranges."""
        for i, (begin, end) in enumerate(self.cut.of(rank)):
            if begin < end:
                yield Range(i, begin, end)


def _items(dtype: np.dtype[Any], begin: int, end: int) -> tuple[int, int]:
    """Return the items of an array that have these elements: some in blocks, or the elements."""
    return (begin // BLOCK, blocks_of(end)) if dtype.names is not None else (begin, end)


def shards_of(optimizer: Any) -> Shards | None:
    """Return how an optimizer is divided among ranks; None if it is not."""
    if not isinstance(optimizer, Configurable):
        return None
    shards = getattr(untyped_internals(optimizer), "shards", None)
    return shards if isinstance(shards, Shards) else None
