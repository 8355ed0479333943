"""The parts of a checkpoint that one rank writes and keeps, if its optimizer is sharded."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from math import prod
from typing import Any, cast

import numpy as np

from schuss import _safetensors
from schuss._arrays import Array, computed_dtype, layout_of, memory_order
from schuss._blocks import as_bytes, has_blocks, of_bytes, shape_in_bytes
from schuss._collective import Collective, Ranks
from schuss._conversion import Conversion, conversions, is_c_order
from schuss._internals import internals_of
from schuss._safetensors import Tensor
from schuss._saved import Saved, saved
from schuss._settings import Configurable
from schuss._state import Arrays, clear
from schuss._tensor_reader import WHOLE, File, Wanted
from schuss._tensor_writer import AnyPart, Part, Scattered
from schuss.reference._square_code import BLOCK


def ranks_of(optimizer: object) -> Ranks | None:
    """Return the ranks that share an optimizer; None for an optimizer of one process."""
    shards = _shards_of(optimizer)
    return None if shards is None else shards.ranks


def _shards_of(optimizer: object) -> Any:
    if not isinstance(optimizer, Configurable) or internals_of(optimizer).pieces is None:
        return None
    from schuss.mpi._shards import shards_of  # imported by the user's own import of schuss.mpi

    return shards_of(optimizer)


# Writing.


def names_of_all(arrays: Mapping[str, Array], optimizer: object) -> set[str]:
    """Return the names of the parameters that all ranks have: those of the optimizer."""
    if _shards_of(optimizer) is None:
        return set(arrays)
    own = {*map(layout_of, internals_of(cast(Configurable, optimizer)).arrays)}
    return {name for name, array in arrays.items() if layout_of(array) in own}


def shares(
    arrays: Mapping[str, Array], of_all: Set[str], together: Collective
) -> dict[str, AnyPart]:
    """Return the parts of arrays: each rank writes an equal share of those that all ranks have.

    of_all: the names of these arrays. The first rank writes the others. Shares end at pieces.
    """
    if together.size == 1:
        return of_first_rank(arrays, together)
    result: dict[str, AnyPart] = {}
    total = sum(arrays[name].nbytes for name in of_all)
    limits = [total * (together.rank + i) // together.size for i in (0, 1)]
    start = 0
    for name, array in arrays.items():
        if name not in of_all:
            result |= of_first_rank({name: array}, together)
            continue
        step = _safetensors.PIECE // max(array.itemsize, 1)
        begin, end = (
            array.size
            if limit - start >= array.nbytes
            else max(limit - start, 0) // _safetensors.PIECE * step
            for limit in limits
        )
        result[name] = Part.whole(array)._replace(begin=begin, end=end)
        start += array.nbytes
    return result


def of_first_rank(arrays: Mapping[str, Array], together: Collective) -> dict[str, AnyPart]:
    """Return the parts of arrays that the first rank writes."""
    return {name: Part.whole(array) for name, array in arrays.items() if together.rank == 0}


def state_parts(optimizer: Configurable, arrays: Sequence[Array | None]) -> list[AnyPart | None]:
    """Return what this process writes of states, averages or masters of the parameters."""
    shards = _shards_of(optimizer)
    if shards is None:
        return [None if array is None else Part.whole(as_bytes(array)) for array in arrays]
    return [
        None if array is None else _part(array, param, bounds, shards.ranks.rank)
        for array, param, bounds in zip(
            arrays, internals_of(optimizer).arrays, shards.cut.bounds.tolist(), strict=True
        )
    ]


def _part(piece: Array, param: Array, bounds: list[int], rank: int) -> AnyPart:
    """Return what a rank writes of a state, given its piece; bounds: of the pieces of all ranks."""
    if has_blocks(piece):
        first = bounds[rank] // BLOCK * piece.itemsize
        values = piece.view(np.uint8)
        return Part(values, shape_in_bytes(param.shape), first, first, first + values.size)
    order, (begin, end) = memory_order(param), bounds[rank : rank + 2]
    if is_c_order(order, param.shape):
        return Part(piece, param.shape, begin, begin, end)
    return Scattered(piece, param.shape, order, bounds)


def saved_of_all(call: str, optimizer: Configurable, together: Collective) -> Saved:
    """Return what is to be saved of an optimizer of all ranks; arrays are those of this rank.

    Gradients that were accumulated are summed over the ranks, as a step would do.
    """
    known, shards = saved(optimizer), _shards_of(optimizer)
    if shards is None:
        return known
    own = known.settings["accumulated"]
    counts = [json.loads(each) for each in together.gather(json.dumps(own).encode())]
    numbers = [0 if each is None else each["count"] for each in counts]
    for rank, number in enumerate(numbers):
        if number != numbers[0]:
            raise ValueError(
                f"{call}: rank 0 has accumulated {numbers[0]} gradients, rank {rank} {number}, "
                "expected the same number on all ranks"
            )
    if own is None:
        return known
    without = sorted(set.intersection(*(set(each["without"]) for each in counts)))
    sums = internals_of(optimizer).whole.sums
    absent = set(own["without"])
    grads = [None if i in absent else total for i, total in enumerate(sums)]
    return replace(
        known,
        settings={**known.settings, "accumulated": {**own, "without": without}},
        arrays={
            **known.arrays,
            "accumulated": together.all_or_none(_reduced, shards, grads, without),
        },
    )


def _reduced(shards: Any, grads: list[Array | None], without: list[int]) -> list[Array]:
    """Return this rank's pieces of the mean over the ranks, or of the sum; all ranks call it."""
    dtypes = [
        None if i in without else computed_dtype(param) for i, param in enumerate(shards.params)
    ]
    exchange = shards.exchange
    exchange.begin(grads, dtypes)
    for bucket in range(len(exchange.ends)):
        exchange.sum_of(bucket)
    exchange.finish()
    divisor = shards.ranks.size if shards.reduction == "mean" else 1
    return [
        np.zeros(piece.size, computed_dtype(piece))
        if total is None
        else total / total.dtype.type(divisor)
        for total, piece in zip(exchange.grads, shards.pieces.arrays, strict=True)
    ]


# Reading.


class PartsToRead:
    """What this rank keeps of a checkpoint.

    settings: what was saved of the optimizer; it was not checked yet.
    """

    def __init__(self, call: str, optimizer: Configurable | None, settings: Any) -> None:
        self._conversions: dict[str, Conversion] | None = None
        if optimizer is not None and _shards_of(optimizer) is not None:
            internals, blocks = internals_of(optimizer), (settings or {}).get("blocks")
            each = conversions(internals.arrays, internals.bounds, call, "blocks", blocks)
            self._conversions = dict(zip(internals.whole.tree.names, each, strict=True))

    def wanted(self, name: str, tensor: Tensor) -> Wanted:
        """Return what is kept of a tensor."""
        if self._conversions is None:
            return WHOLE
        section, _, rest = name.partition("/")
        state, _, param = rest.partition("/")
        conversion = self._conversions.get(param)
        if section != "optimizer" or state == "accumulated" or conversion is None:
            return Wanted(by_all=True)
        in_blocks = tensor.dtype == "U8"
        bounds = conversion.range_in_file(in_blocks=in_blocks)
        if bounds is not None:
            scale = prod(tensor.shape[1:]) if in_blocks else 1
            return Wanted(bounds[0] * scale, bounds[1] * scale)
        return WHOLE if in_blocks else Wanted(take=conversion.piece)

    def converted(
        self, file: File, name: str, like: Array, state: Array, convert: Conversion
    ) -> Array:
        """Return a saved state in the format of the optimizer's own.

        like: an array like the saved one.
        """
        if self._conversions is None:
            return convert(of_bytes(file.read(name), like.dtype), state)
        values = of_bytes(file.values(name), like.dtype)
        if has_blocks(like) and convert.range_in_file(in_blocks=True) is None:
            values = convert.piece(values)
        return convert.of_piece(values, state)


def drop_sums(optimizer: Configurable, arrays: Arrays) -> None:
    """Leave accumulated gradients that were loaded to one rank, if a step sums those of all."""
    shards = _shards_of(optimizer)
    if shards is not None and shards.reduction == "sum" and shards.ranks.rank > 0:
        clear(arrays.get("accumulated", ()))
