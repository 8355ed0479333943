"""Files of tensors by their paths: one file, or one of each rank with an index."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from schuss import _file_index, _files, _tensor_writer
from schuss._collective import Collective
from schuss._file_index import SUFFIX, Index
from schuss._tensor_reader import File, Volume
from schuss._tensor_writer import AnyPart


def write(
    call: str,
    path: str,
    parts: Mapping[str, AnyPart],
    metadata: Mapping[str, str],
    together: Collective,
) -> None:
    """Write the parts of all ranks to the file of this path, or to one of each rank."""
    kind = _file_index if path.endswith(SUFFIX) else _tensor_writer
    kind.write(call, path, parts, metadata, together)


@contextmanager
def reading(call: str, path: str, together: Collective) -> Iterator[File]:
    """Open a file, or those of an index; ValueError, now or later, says what is wrong with it."""
    name = f"{call}: {path!r}"
    with ExitStack() as stack:
        if path.endswith(SUFFIX):
            index = Index(call, path, stack)
            yield File(name, index.volumes, index.metadata, index.tensors, together)
        else:
            volume = Volume(call, path, stack.enter_context(_files.opened(call, path)))
            volumes = [(volume, volume.segments())]
            yield File(name, volumes, volume.metadata, volume.tensors, together)
