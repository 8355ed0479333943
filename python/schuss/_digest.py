"""The digest of a file of tensors, computed by threads while its bytes are written or read.

It is the SHA-256 of the header and of the CRC-32 of each piece, so that several threads can hash,
and several processes. With SHA-256 of the pieces, saving took 1.3 to 1.5 times as long as the disk
alone.
"""

import os
from _queue import SimpleQueue  # not queue, whose import is slow
from _thread import start_new_thread
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate, cycle
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

HASHERS = 2

Checksums: TypeAlias = npt.NDArray[Any]
"""The CRC-32 of parts of a file: where each starts, its size, and its CRC."""
CHECKSUM = np.dtype([("start", "<i8"), ("size", "<i8"), ("crc", "<u4")])


class Block(NamedTuple):
    """Pieces of a file, or parts of them, that follow each other."""

    start: int
    memory: memoryview
    sizes: list[int]


# As for mini-batches, queues and threads are those of C: Ctrl-C breaks the locks that Python
# implements itself.
_Lane: TypeAlias = tuple[SimpleQueue[Block | None], SimpleQueue[bytes | None]]


def digest_of(header: bytes, checksums: Checksums) -> str:
    """Return the digest of a file with this header (without a digest) and these pieces."""
    total = sha256(header)
    total.update(checksums["crc"].tobytes())
    return total.hexdigest()


def checksums_of(blocks: Iterable[Block]) -> Checksums:
    """Return the checksums of the pieces of blocks.

    When the next block is requested, only the last HASHERS blocks are still in use.
    """
    process, crcs = os.getpid(), []
    starts: list[int] = []
    sizes: list[int] = []
    busy: deque[tuple[Block, _Lane | None]] = deque()  # in the order of the blocks

    def finish_first() -> None:
        block, lane = busy.popleft()
        # The threads do not exist in a child that was forked meanwhile.
        crc = None if lane is None or os.getpid() != process else lane[1].get()
        crcs.append(_crcs(block) if crc is None else crc)
        starts.extend(accumulate(block.sizes[:-1], initial=block.start))
        sizes.extend(block.sizes)

    with _hashers() as lanes:
        for block, lane in zip(blocks, cycle(lanes or [None])):
            if len(busy) == HASHERS:
                finish_first()
            if lane is not None:
                lane[0].put(block)
            busy.append((block, lane))
        while busy:
            finish_first()
    result = np.empty(len(starts), CHECKSUM)
    result["start"], result["size"] = starts, sizes
    result["crc"] = np.frombuffer(b"".join(crcs), "<u4")
    return result


def joined(parts: Checksums, pieces: Checksums) -> Checksums | None:
    """Return the checksums of pieces of a file, given those of parts of them; None if one lacks.

    pieces: where each starts, and its size. A part may be there twice, with the same checksum.
    """
    parts, result = np.unique(parts), pieces.copy()
    wanted, found = _edges(pieces), _edges(parts)
    if not np.array_equal(found[1:], parts["start"] + parts["size"]):
        return None
    if not np.array_equal(found[:1], wanted[:1]) or not np.isin(wanted, found).all():
        return None
    first, last = np.searchsorted(found, wanted[:-1]), np.searchsorted(found, wanted[1:]) - 1
    result["crc"] = parts["crc"][first]
    for i in np.flatnonzero(last > first):
        for part in parts[first[i] + 1 : last[i] + 1]:
            moved = _product(int(result["crc"][i]), _zeros(int(part["size"])))
            result["crc"][i] = moved ^ int(part["crc"])
    return result


def _edges(parts: Checksums) -> npt.NDArray[np.int64]:
    """Return where parts in ascending order start, and where the last one ends."""
    last = parts[-1:]
    return np.append(parts["start"], last["start"] + last["size"])


# CRC-32 is arithmetic with polynomials over GF(2), modulo one of degree 32: the CRC of two parts is
# that of the first, times x to the number of bits of the second, plus that of the second. The
# highest bit is the coefficient of 1.
_MODULUS, _ONE, _BYTE = 0xEDB88320, 1 << 31, 1 << 23


def _product(a: int, b: int) -> int:
    result = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            result ^= b
        b = b >> 1 ^ (_MODULUS if b & 1 else 0)
    return result


@lru_cache(64)
def _zeros(count: int) -> int:
    """Return the factor by which that many bytes more multiply a CRC."""
    if count == 0:
        return _ONE
    half = _zeros(count // 2)
    square = _product(half, half)
    return _product(square, _BYTE) if count % 2 else square


def _crcs(block: Block) -> bytes:
    """Return the CRC-32 of each piece, of four bytes each."""
    ends = zip(accumulate(block.sizes), block.sizes, strict=True)
    crcs = (crc32(block.memory[end - size : end]) for end, size in ends)
    return b"".join(crc.to_bytes(4, "little") for crc in crcs)


@contextmanager
def _hashers() -> Iterator[list[_Lane]]:
    """Start the threads that hash; fewer or none if the system cannot start them."""
    lanes: list[_Lane] = []
    try:
        with suppress(RuntimeError):
            for _ in range(HASHERS):
                lane: _Lane = SimpleQueue(), SimpleQueue()
                start_new_thread(_hash_blocks, lane)
                lanes.append(lane)
        yield lanes
    finally:
        for to_hash, _ in lanes:
            to_hash.put(None)


def _hash_blocks(to_hash: SimpleQueue[Block | None], hashed: SimpleQueue[bytes | None]) -> None:
    while (block := to_hash.get()) is not None:
        crcs = None  # out of memory: the caller hashes this block
        with suppress(MemoryError):
            crcs = _crcs(block)
        hashed.put(crcs)
