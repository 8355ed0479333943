"""Files in the safetensors format, taken apart and put together without the library."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from zlib import crc32

PIECE, ALIGNMENT = 1 << 22, 64


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a file's header, and the bytes of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def offsets_in(header: dict[str, Any]) -> list[Any]:
    """Return where the tensors lie, as a header says."""
    return [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]


def sealed(header: dict[str, Any], tensors: bytes, offsets: list[Any] | None = None) -> bytes:
    """Return a file with a digest that is right, whatever its header says.

    offsets: where the tensors lie, if the header does not say it.
    """

    def text(digest: str) -> bytes:
        header["__metadata__"]["sha256"] = digest
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
        return len(encoded).to_bytes(8, "little") + encoded

    whole = sha256(text("0" * 64))
    for start, end in sorted(offsets or offsets_in(header)):
        held = range(len(tensors))[start:end]  # of which there may be less
        for place in held[::PIECE]:
            piece = tensors[place : min(place + PIECE, held.stop)]
            whole.update(crc32(piece).to_bytes(4, "little"))
    return text(whole.hexdigest()) + tensors


def with_settings(content: bytes, change: Callable[[Any], object]) -> bytes:
    """Return the file with other settings: `change` changes them in place."""
    header, tensors = taken_apart(content)
    settings = json.loads(header["__metadata__"]["settings"])
    change(settings)
    header["__metadata__"]["settings"] = json.dumps(settings)
    return sealed(header, tensors)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all that is in a structure of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, inner in items:
        places.append((*path, key))
        if isinstance(inner, dict | list):
            places += places_in(inner, (*path, key))
    return places


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """Return what is at the end of a path."""
    for key in path:
        value = value[key]
    return value


# Schedules in each other, as a checkpoint has them.


def warm_ups(depth: int) -> Any:
    lr: Any = 0.1
    for number in range(depth):
        lr = {"schuss.schedule": "WarmUp", "number": number, "after": lr, "steps": 1, "start": 0.0}
    return lr


def doubled(times: int) -> Any:
    lr: Any = {"schuss.schedule": "Constant", "number": 0, "lr": 0.1}
    for number in range(1, times + 1):
        pair = [lr, {"schuss.same": number - 1}]
        lr = {"schuss.schedule": "Chain", "number": number, "schedules": pair, "boundaries": [1]}
    return lr
