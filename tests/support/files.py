"""Checkpoint files: split into header and tensors, and put together again without the library."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

PIECE, ALIGNMENT = 1 << 22, 64


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a file's header, and the bytes of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def data_offsets(header: dict[str, Any]) -> list[Any]:
    """Return where the tensors lie according to a header."""
    return [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]


def with_digest(header: dict[str, Any], tensors: bytes, offsets: list[Any] | None = None) -> bytes:
    """Return a file with the right digest, even if its header is invalid.

    offsets: where the tensors lie, for a header that does not have valid offsets.
    """

    def text(digest: str) -> bytes:
        header["__metadata__"]["sha256"] = digest
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
        return len(encoded).to_bytes(8, "little") + encoded

    digest = sha256(text("0" * 64))
    for start, end in sorted(offsets or data_offsets(header)):
        available = range(len(tensors))[start:end]  # the file may have fewer bytes
        for first in available[::PIECE]:
            piece = tensors[first : min(first + PIECE, available.stop)]
            digest.update(crc32(piece).to_bytes(4, "little"))
    return text(digest.hexdigest()) + tensors


def read_settings(path: Path) -> Any:
    """Return the settings in a file."""
    return json.loads(split_file(path.read_bytes())[0]["__metadata__"]["settings"])


def with_settings(content: bytes, change: Callable[[Any], object]) -> bytes:
    """Return the file with other settings: `change` changes them in place."""
    header, tensors = split_file(content)
    settings = json.loads(header["__metadata__"]["settings"])
    change(settings)
    header["__metadata__"]["settings"] = json.dumps(settings)
    return with_digest(header, tensors)


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change the settings of a file."""
    path.write_bytes(with_settings(path.read_bytes(), change))


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file; its tensors stay where they are."""
    header, tensors = split_file(path.read_bytes())
    offsets = data_offsets(header)
    change(header)
    path.write_bytes(with_digest(header, tensors, offsets))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a file in which all are float64."""
    header, tensors = split_file(path.read_bytes())
    del header["__metadata__"]
    return {
        name: np.frombuffer(tensors[slice(*entry["data_offsets"])], "f8").reshape(entry["shape"])
        for name, entry in header.items()
    }


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Replace the tensors of a file by arrays of float64."""
    header, tensors = {"__metadata__": split_file(path.read_bytes())[0]["__metadata__"]}, b""
    for name, array in arrays.items():
        offsets = [len(tensors), len(tensors) + array.nbytes]
        header[name] = {"dtype": "F64", "shape": array.shape, "data_offsets": offsets}
        tensors += array.tobytes()
    path.write_bytes(with_digest(header, tensors))


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values in a structure of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    paths = []
    for key, inner in items:
        paths.append((*path, key))
        if isinstance(inner, dict | list):
            paths += paths_in(inner, (*path, key))
    return paths


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    """Return the value at the end of a path."""
    for key in path:
        value = value[key]
    return value


def set_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace the value at the end of a path."""
    value_at(value, path[:-1])[path[-1]] = new


# Schedules within schedules, as a checkpoint has them.


def warm_ups(depth: int) -> Any:
    lr: Any = 0.1
    for number in range(depth):
        lr = {"schuss.schedule": "WarmUp", "number": number, "after": lr, "steps": 1, "start": 0.0}
    return lr


def chains(depth: int) -> Any:
    """Return chains, each of the one before and of a reference to it."""
    lr: Any = {"schuss.schedule": "Constant", "number": 0, "lr": 0.1}
    for number in range(1, depth + 1):
        pair = [lr, {"schuss.same": number - 1}]
        lr = {"schuss.schedule": "Chain", "number": number, "schedules": pair, "boundaries": [1]}
    return lr
