"""Tensors in one file of each rank, and an index of the files, as model hubs have it.

The files have names of their own for each save, and the index is replaced last: until then, the old
index and its files are the checkpoint.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from math import prod
from typing import Any, NoReturn

from schuss import _files, _safetensors
from schuss._collective import Collective
from schuss._safetensors import DIGEST, LENGTH, LONGEST_HEADER, NO_DIGEST
from schuss._tensor_reader import Segment, Volume
from schuss._tensor_writer import AnyPart, Part, Scattered, header_of_all, write_own

SUFFIX = ".safetensors.index.json"
_OWN = {"format": "schuss part"}  # the metadata of the file of a rank
_CUT = re.compile(r"(.*)\[(\d+):(\d+)\]", re.DOTALL)


def write(
    call: str,
    path: str,
    parts: Mapping[str, AnyPart],
    metadata: Mapping[str, str],
    together: Collective,
) -> None:
    """Write the parts of each rank to a file of its own, then the index of all."""
    header = header_of_all(call, parts, metadata) if together.rank == 0 else b""
    folder, name = os.path.split(os.path.realpath(path))
    _remove_others(folder, name)  # now, as the disk may be full
    stem, save = name.removesuffix(SUFFIX), together.of_first(os.urandom(8).hex().encode())
    number = f"{together.rank + 1:05}-of-{together.size:05}"
    own_name = f"{stem}-{save.decode()}-{number}.safetensors"
    own = _own_parts(call, parts, together)
    with _files.created(call, os.path.join(folder, own_name), path) as file:
        digest = write_own(call, file, own, _OWN, together)
        sent = together.gather(json.dumps([own_name, digest, [*own]]).encode())
        file.kept = True  # the index may already name it when an error comes
        is_first = together.rank == 0
        content = _index(header, [json.loads(each) for each in sent]) if is_first else b""
        content = together.of_first(content)
        for has_turn in (is_first, not is_first):  # in a shared folder, the first rank alone writes
            if has_turn and not _has(path, content):
                with _files.replacing(call, path) as index:
                    index.write_at(0, content)
            together.vote()
    _remove_others(folder, name)


def _remove_others(folder: str, index: str) -> None:
    """Delete files of earlier saves, complete or not, that an index does not name."""
    try:
        with open(os.path.join(folder, index), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        content = b""
    except OSError:  # it is unknown what the index names
        return
    stem = re.escape(index.removesuffix(SUFFIX))
    own = re.compile(stem + r"-([0-9a-f]{16})-\d{5,}-of-\d{5,}\.safetensors")

    def is_other(name: str) -> bool:
        found = own.fullmatch(name)
        return found is not None and found[1].encode() not in content

    _files.remove_left_behind(folder, is_other)


def _has(path: str, content: bytes) -> bool:
    """Return whether a file has that content."""
    try:
        with open(path, "rb") as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False


def _own_parts(call: str, parts: Mapping[str, AnyPart], together: Collective) -> dict[str, AnyPart]:
    """Return the parts of this rank as tensors of a file of its own."""
    own: dict[str, AnyPart] = {}

    def add(name: str, begin: int, end: int, part: AnyPart) -> None:
        entry = f"{name}[{begin}:{end}]"
        if entry in parts:
            raise ValueError(f"{call}: an array has the name {entry!r}, expected another one")
        own[entry] = part

    for name, part in parts.items():
        if isinstance(part, Scattered):
            begin, end = part.shares()[together.rank]
            # Also without elements, since all ranks exchange them.
            add(name, begin, end, part._replace(own_file=(begin, end)))
            continue
        values, shape, first, begin, end = part
        if end - begin == prod(shape) and (end or together.rank == 0):
            own[name] = part
        elif begin < end:
            add(name, begin, end, Part(values, (end - begin,), first - begin, 0, end - begin))
    return own


def _index(header: bytes, files: list[Any]) -> bytes:
    """Return an index; its first value is the digest.

    header: that of one file with all tensors. files: the name, the digest and the tensors of each.
    """
    text = header[LENGTH:].decode().rstrip()
    tensors = _safetensors.parse(header[LENGTH:])[1].values()
    index = {
        "metadata": {
            DIGEST: NO_DIGEST,
            "total_size": sum(tensor.nbytes for tensor in tensors),
            "files": {name: digest for name, digest, _ in files},
            "header": text,
        },
        "weight_map": {entry: name for name, _, entries in files for entry in entries},
    }
    content = json.dumps(index, indent=1).encode()
    return content.replace(NO_DIGEST.encode(), sha256(content).hexdigest().encode(), 1)


class Index:
    """An index that was read and verified, with its files open."""

    def __init__(self, call: str, path: str, stack: ExitStack) -> None:
        self._name = f"{call}: {path!r}"
        while True:
            content = self._content(call, path)
            files, header = self._parse(content)
            folder = os.path.dirname(os.path.realpath(path))  # the path may be a link
            try:
                with ExitStack() as opened:
                    volumes = [
                        self._opened(call, os.path.join(folder, name), opened) for name in files
                    ]
                    stack.enter_context(opened.pop_all())
                break
            except FileNotFoundError:
                if self._content(call, path) == content:  # not replaced meanwhile
                    raise
        for volume, digest in zip(volumes, files.values(), strict=True):
            if volume.digest != digest:
                volume.refuse("is of another checkpoint than its index, expected the same one")
        self.metadata, self.tensors = header
        self.volumes = [(volume, [*self._segments(volume)]) for volume in volumes]
        self._check_complete()

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with a problem of the index."""
        raise ValueError(f"{self._name} {problem}") from None

    @staticmethod
    def _opened(call: str, path: str, stack: ExitStack) -> Volume:
        return Volume(call, path, stack.enter_context(_files.opened(call, path)))

    def _content(self, call: str, path: str) -> bytes:
        with _files.opened(call, path) as file:
            if os.fstat(file.fileno()).st_size > 2 * LONGEST_HEADER:
                self.refuse("is too long for an index")
            return file.readall()

    def _parse(self, content: bytes) -> tuple[dict[str, str], Any]:
        """Return the digests of the files, and the metadata and the tensors of all."""
        found = re.match(rb'\s*{\s*"metadata":\s*{\s*"sha256":\s*"([0-9a-f]{64})"', content)
        if found is None:
            self.refuse("is not an index of schuss, expected one that schuss.save wrote")
        blank = content.replace(found[1], NO_DIGEST.encode(), 1)
        if sha256(blank).hexdigest().encode() != found[1]:
            self.refuse("was altered, expected bytes that match its digest")
        try:
            metadata = json.loads(content)["metadata"]
            files, header = metadata["files"], _safetensors.parse(metadata["header"].encode())
            if not all(isinstance(digest, str) for digest in files.values()) or not files:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.refuse("is an invalid index")
        for name in files:
            if os.path.basename(name) != name or not name.endswith(".safetensors"):
                self.refuse(f"names the file {name!r}, expected files of its own folder")
        return files, header

    def _segments(self, volume: Volume) -> Iterator[Segment]:
        """Yield which elements of which tensors a file has."""
        for entry, found in volume.tensors.items():
            name, begin = entry, 0
            cut = None if entry in self.tensors else _CUT.fullmatch(entry)
            if cut is not None:
                name, begin = cut[1], int(cut[2])
            tensor = self.tensors.get(name)
            if tensor is None or tensor.dtype != found.dtype:
                self.refuse(f"has no {entry}, expected each tensor of its files")
            itemsize = _safetensors.numpy_dtype(tensor).itemsize
            start = len(volume.header) + found.start
            yield Segment(name, start, found.nbytes, begin * itemsize)

    def _check_complete(self) -> None:
        ends = dict.fromkeys(self.tensors, 0)
        segments = [segment for _, each in self.volumes for segment in each]
        for segment in sorted(segments, key=lambda segment: segment.first):
            if ends[segment.tensor] != segment.first:
                self.refuse(f"has files with other parts of {segment.tensor} than all of it, once")
            ends[segment.tensor] += segment.nbytes
        for name, tensor in self.tensors.items():
            if ends[name] != tensor.nbytes:
                self.refuse(f"has files with other parts of {name} than all of it, once")
