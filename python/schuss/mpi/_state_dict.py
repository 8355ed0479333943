"""The state dict of a sharded optimizer, which is that of one process."""

import pickle
from functools import partial
from typing import Any

import numpy as np

from schuss._checkpoint_parts import drop_sums, saved_of_all
from schuss._collective import Collective
from schuss._hyperparameters import count
from schuss._saved import restore
from schuss._settings import Configurable
from schuss._state import fill
from schuss._state_dict import read, with_arrays
from schuss.mpi._agreement import agree_on, settings_facts
from schuss.mpi._internals import sharded_internals_of
from schuss.mpi._ranks import Ranks


def state_dict(optimizer: Configurable, root: int | None) -> dict[str, Any] | None:
    """Return the state dict on all ranks, or on one, and None on the others."""
    internals = sharded_internals_of(optimizer)
    shards, call = internals.shards, f"{internals.call}.state_dict"
    with internals.alone("state_dict"), Collective(call, shards.ranks) as together:
        root = _checked_root(call, shards.ranks, root)
        agree = partial(agree_on, shards.ranks, call)
        together.all_or_none(agree, internals.settings_facts() | {"root": repr(root)})
        known = saved_of_all(call, optimizer, together)
        join = partial(shards.joined, root=root)
        arrays = {name: together.all_or_none(join, each) for name, each in known.arrays.items()}
        if root not in (None, shards.ranks.rank):
            return None
        return with_arrays(known.settings, arrays, internals.whole.tree)


def load_state_dict(optimizer: Configurable, given: Any, root: int | None) -> None:
    """Load a state dict that each rank has as a whole, or one alone."""
    internals = sharded_internals_of(optimizer)
    ranks, call = internals.shards.ranks, f"{internals.call}.load_state_dict"
    with ranks.together(call):
        root = _checked_root(call, ranks, root)
    agree_on(ranks, call, {"root": repr(root)})
    if root is not None:
        given = _of_root(ranks, call, given, root)
    known, values, facts, error = None, None, {}, None
    try:
        internals.check_copies(call)
        known, values = read(optimizer, call, given)
        facts = {"steps": repr(known.steps), "skipped": repr(known.skipped)}
        facts |= settings_facts(known.settings, known.groups)
    except BaseException as raised:
        error = raised
    agree_on(ranks, call, facts, error)
    assert known is not None
    assert values is not None
    drop_sums(optimizer, values)
    restore(optimizer, "load_state_dict", known, partial(fill, values=values), prefix=call)


def _checked_root(call: str, ranks: Ranks, root: int | None) -> int | None:
    return None if root is None else count(call, "root", root, least=0, most=ranks.size - 1)


def _of_root(ranks: Ranks, call: str, given: Any, root: int) -> Any:
    """Return what one rank was given on all ranks."""
    is_root, data = ranks.rank == root, b""
    buffers: list[pickle.PickleBuffer] = []
    with ranks.together(call):
        if is_root:
            data = pickle.dumps(given, protocol=5, buffer_callback=buffers.append)
            data = pickle.dumps((data, [buffer.raw().nbytes for buffer in buffers]))
    data, sizes = pickle.loads(ranks.gather(data)[root])
    with ranks.together(call):
        if is_root:
            arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        else:
            arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        ranks.broadcast(array, root)
    with ranks.together(call):
        return given if is_root else pickle.loads(data, buffers=arrays)
