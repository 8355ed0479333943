"""Sharded optimizers beside one process that steps with the sums of the gradients of all ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from schuss._arrays import computed_dtype
from schuss.mpi import Sharded
from support.arrays import Array, dtype_of, laid_out, numbers, same_bits
from support.optimizers import make_optimizer
from support.ranks import run

# Cuts go through the large ones. The others lie on one rank.
SHAPES = {"W": (70, 91), "b": (5,), "s": (), "V": (9, 40, 31), "e": (0,)}


def new_params(*dtypes: Any, layout: str = "c") -> dict[str, Array]:
    """Return the same parameters at each call; the dtypes take turns."""
    rng, result = np.random.default_rng(1), {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        dtype = dtype_of(dtypes[i % len(dtypes)] if dtypes else "float32")
        wide = np.complex128 if dtype.kind == "c" else np.float64
        values = numbers(rng, shape, wide, special=False).astype(dtype)
        result[name] = laid_out(values, layout if values.size > 1 else "c")
    return result


def new_grads(params: dict[str, Array], rank: int, step: int) -> dict[str, Any]:
    """Return the gradients of a rank in a step, in the dtypes that steps are computed in."""
    rng = np.random.default_rng([rank, step])
    return {
        name: numbers(rng, param.shape, computed_dtype(param), special=False)
        for name, param in params.items()
    }


def summed(grads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of gradients in the order of the ranks; None where there are none."""
    result = {}
    for name in grads[0]:
        terms = [each[name] for each in grads if each[name] is not None]
        total = sum(terms[1:], terms[0]) if terms else None
        result[name] = None if total is None else np.asarray(total)
    return result


def contents(optimizer: Any) -> Any:
    """Return all that users see of an optimizer. All ranks call this."""
    found = dict(optimizer.state_dict())
    found |= {"params": optimizer.params, "copies": optimizer.copies}
    found |= {"average now": optimizer.average, "master now": optimizer.master}
    return _picklable(found | {"last": optimizer.last, "lr_now": optimizer.lr_now})


def _picklable(values: Any) -> Any:
    """Return values with words for functions: those of tests cannot be sent to other processes."""
    if isinstance(values, dict):
        return {key: _picklable(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [*map(_picklable, values)]
    return "a function" if callable(values) else values


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Assert that structures have the same values, and their arrays the same bits."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{path}/{key}")
    elif isinstance(theirs, list | tuple):
        for i, (mine, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, value, f"{path}/{i}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype.names is not None:
        assert ours.tobytes() == theirs.tobytes(), path
    elif isinstance(theirs, np.ndarray):
        assert same_bits(ours, theirs), path
    else:
        assert repr(ours) == repr(theirs), path


def compare(
    name: str,
    ranks: int,
    *,
    params: Callable[[], Any] = new_params,
    grads: Callable[[Any, int, int], Any] = new_grads,
    total: Callable[[Sequence[Any]], Any] = summed,
    scale: Callable[[int], float] = lambda ranks: 1 / ranks,
    step: Callable[[Any, Any, int, int], None] = lambda opt, grads, rank, t: opt.step(grads),
    before: Callable[[Any, int], None] = lambda optimizer, t: None,
    sharded: dict[str, Any] | None = None,
    steps: int = 3,
    **options: Any,
) -> None:
    """Make steps by several ranks, and by one process with the sums of their gradients."""

    def given() -> dict[str, Any]:  # copies and functions may not be shared
        return {key: value() if key == "copies" else value for key, value in options.items()}

    def program(comm: Any) -> Any:
        rank, own = comm.Get_rank(), params()
        arguments = {"bucket_bytes": 1 << 14} | (sharded or {})
        optimizer: Any = Sharded(
            getattr(__import__("schuss"), name), own, comm, **arguments, **given()
        )
        for t in range(1, steps + 1):
            before(optimizer, t)
            step(optimizer, grads(own, rank, t), rank, t)
        return contents(optimizer)

    reference_params = params()
    reference = make_optimizer(name, reference_params, **given())
    for t in range(1, steps + 1):
        all_grads = [grads(reference_params, rank, t) for rank in range(ranks)]
        before(reference, t)
        reference.step(total(all_grads), scale=scale(ranks))
    expected = contents(reference)
    for ours in run(program, ranks):
        assert_same(ours, expected)
