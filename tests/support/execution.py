"""On what a step runs: instruction set, threads, tiles, cache."""

from collections.abc import Iterator
from contextlib import contextmanager

import schuss
from schuss import _core


@contextmanager
def execution(
    *,
    level: str | None = None,
    threads: int | None = None,
    tile: int | None = None,
    threshold: int | None = None,
    cache: int | None = None,
) -> Iterator[None]:
    """Run the block at that SIMD level and number of threads, and restore both afterwards.

    Work is cut into tiles of `tile` elements, and shared by the threads from `threshold` elements.
    Arrays of more than `cache` bytes are fetched ahead.
    """
    level_before, threads_before = schuss.simd(), schuss.num_threads()
    tile_before = None if tile is None else _core.set_tile_elements(tile)
    threshold_before = None if threshold is None else _core.set_parallel_threshold(threshold)
    cache_before = None if cache is None else _core.set_cache_size(cache)
    try:
        if level is not None:
            schuss.set_simd(level)
        if threads is not None:
            schuss.set_num_threads(threads)
        yield
    finally:
        schuss.set_simd(level_before)
        if threads is not None:
            schuss.set_num_threads(threads_before)
        if tile_before is not None:
            _core.set_tile_elements(tile_before)
        if threshold_before is not None:
            _core.set_parallel_threshold(threshold_before)
        if cache_before is not None:
            _core.set_cache_size(cache_before)
