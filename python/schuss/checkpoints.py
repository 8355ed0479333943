"""Checkpoints: training that was interrupted resumes with the same bits.

A checkpoint is one file in the safetensors format, which cannot contain code, or one file of each
process and an index. Other programs can read it: the parameters are the tensors ``params/...``, the
state of the optimizer is ``optimizer/m/...``, and so on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import cycle
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np

from schuss import _core, _files, _json, _safetensors, _tensor_files
from schuss._arrays import Array, ArrayTree, arrays_of, check_holds
from schuss._blocks import as_bytes, shape_in_bytes
from schuss._checkpoint_parts import (
    PartsToRead,
    drop_sums,
    names_of_all,
    of_first_rank,
    ranks_of,
    saved_of_all,
    shares,
    state_parts,
)
from schuss._collective import Collective
from schuss._errors import wrong_type
from schuss._hyperparameters import Check, Rate, mapping, optional, record, shown
from schuss._listing import public_names
from schuss._registry import flush_rows, writer_of_copies
from schuss._saved import busy, checked, own_hyperparameters, restore, saved
from schuss._state import Arrays
from schuss._tensor_reader import File
from schuss._tensor_writer import AnyPart
from schuss.batches import MiniBatches, State, parse_state, set_state
from schuss.optimizers import Optimizer

__all__ = ["load", "save"]

__dir__ = public_names(__name__)

_T = TypeVar("_T")
Path: TypeAlias = str | os.PathLike[str]

_FORMAT, _VERSION = "schuss", "1"
_SERIES = tuple(
    f"training/{name}" for name in ("steps", "batches", "epoch_ends", "epoch_cost", "validation")
)
_SECTIONS = ("params", "optimizer", "training", _json.SECTION)  # the names of tensors start so
_SETTINGS = record(
    optimizer=optional(mapping),
    batches=optional(mapping),
    training=optional(mapping),
    extra=mapping,
)


def save(
    path: Path,
    params: ArrayTree,
    optimizer: Optimizer | None = None,
    *,
    batches: MiniBatches[Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save parameters, and everything that training needs to resume.

    A learning rate that is a function of your own, or a schedule that contains one, is not saved:
    the optimizer that the checkpoint is loaded into must have one, and keeps it.

    The file is written under a temporary name next to `path`, synced to the disk, and renamed.
    Until then nobody else can read it. If saving fails at any time, `path` holds the old checkpoint
    or the new one, complete. The arrays are written without a copy in memory. The new file gets the
    mode, the owner and the POSIX ACL of the file that it replaces, or the default mode. If the
    system refuses some of this, fewer users can access the file. If `path` is a symbolic link, its
    target is replaced. Other hard links keep the old file.

    Signal handlers, that of Ctrl-C included, run between pieces of 4 MiB, or after saving. While a
    rank waits for others, a second Ctrl-C ends the wait; the ranks cannot communicate then.

    With a sharded optimizer (`schuss.mpi`), all ranks call this. The file has the same bytes as
    that of one process; each rank writes its own part of it. An error of one rank is raised by all.
    Any number of ranks can load it, and so can an optimizer of one process.

    Parameters
    ----------
    path : str or os.PathLike
        The file, which is replaced if it exists. Folders, devices, FIFOs and sockets are refused.
        The usual extension is ".safetensors". All ranks need to see the same folder, on a disk that
        keeps what several machines write to one file at the same time, such as Lustre, GPFS or a
        disk of one machine; NFS does not. If the path ends in ".safetensors.index.json", each rank
        writes a file of its own to the folder of the path, and the path becomes an index of these
        files. Use that on NFS. It also works without a shared folder, but nothing can be loaded, by
        `fit` neither, until every machine has all files. The files of the previous save are
        deleted.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in any boolean, integer, floating point or
        complex dtype. They must not change while they are saved.
    optimizer : Optimizer, optional
        An optimizer of schuss of all or some of these parameters. Its state, counts,
        hyperparameters, groups, schedules, averages, masters and accumulated gradients are saved.
        Its `copies` are not: they are rewritten when it is loaded. The gradients that the ranks of
        a sharded optimizer have accumulated are saved as what a step would take of them: their mean
        or sum. All ranks must have accumulated the same number.
    batches : MiniBatches, optional
        The state of the generator, and the number of batches of the current epoch that were handed
        out. So save after the step with the last one of them. Of several ranks, that of rank 0 is
        saved, and so are its `extra` and those of its `params` that the optimizer does not have.
    extra : mapping, optional
        Other values to save: those that JSON can represent, with str as keys, and arrays of any
        shape in the dtypes of NumPy that parameters can have, such as
        ``{"epoch": 3, "scale": scaler.state_dict(), "dropout": rng.bit_generator.state}``. Lists
        and mappings can be nested 100 deep, and integers can have 4,300 digits. `load` returns the
        values from the file unchecked. If the file is not your own, check them before you use them:
        NumPy accepts any state.

    Raises
    ------
    TypeError
        If an argument has a wrong type, an array has a dtype that the format lacks, or `lr`
        combines a `schedules.ReduceOnPlateau`, which changes, and a function of your own.
    ValueError
        If the optimizer has other parameters, two arrays have the same name, everything except the
        arrays takes more than 100 MB, or `path` is not the name of a regular file; if the ranks
        save under other names, or have accumulated other numbers of gradients; if the optimizer has
        accumulated gradients of rows, and its `rows` is "lazy" (call its `step` or `zero_grad`
        first).
    RuntimeError
        If a step of the optimizer is under way, or in a child process that was forked meanwhile.
    OSError
        If the file cannot be written, for example because the disk is full, or `path` is a folder.

    If anything is raised, also by a signal handler, `path` holds what it held before. The only
    exception is an error after the rename, for example when the folder is synced: then `path` holds
    the new checkpoint, complete. New files that an index does not name can stay in its folder; the
    next save deletes them.

    References
    ----------
    The safetensors format: huggingface/safetensors, README.md, "Format". The checksum in the
    metadata is a SHA-256 of the header and of the CRC-32 of each 4 MiB of each tensor. Complex
    arrays are stored as their real and imaginary parts along a last axis of 2, since most readers
    have no complex dtype; the metadata have their names. State in 8 bits is stored as rows of 132
    bytes, one for each block: its scale in float32, then 128 codes, which are int8, or uint8 for
    second moments; see `schuss.optimizers.Options`. The entry ``blocks`` of the optimizer's
    settings has the order of the elements, as `Optimizer.state_dict` describes it. The tensors
    ``optimizer/master/...`` have the missing bits of the parameters.

    An index has the keys ``metadata`` and ``weight_map``, as those of model hubs. A tensor of which
    several ranks have elements is in their files as ``name[begin:end]``: these elements, in C
    order, on one axis.

    Examples
    --------
    >>> import numpy as np, schuss, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = folder.name + "/weights.safetensors"
    >>> w, gradient = np.ones(2), np.array([0.5, -0.5])
    >>> opt = schuss.Adam(w, lr=0.1)
    >>> opt.step(gradient)
    >>> schuss.save(path, w, opt, extra={"epoch": 1})
    >>> opt.step(gradient)
    >>> once_more = w.copy()
    >>> schuss.load(path, w, opt), opt.steps
    ({'epoch': 1}, 1)
    >>> opt.step(gradient)
    >>> (w == once_more).all()
    np.True_
    >>> folder.cleanup()
    """
    call = "save"
    with Collective(call, ranks_of(optimizer)) as together:
        path = _files.check_path(call, "path", path)
        _check_batches(call, batches)
        extra = {} if extra is None else mapping(call, "extra", extra)
        state = None if batches is None else batches.state_dict()
        write(call, path, params, optimizer, together, batches=state, extra=extra)


def load(
    path: Path,
    params: ArrayTree,
    optimizer: Optimizer | None = None,
    *,
    batches: MiniBatches[Any] | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into existing parameters, an optimizer and mini-batches.

    The file is read once and verified, and then copied into the arrays. So loading temporarily
    needs as much memory as is loaded, and other processes that write to the file cannot change what
    is loaded.

    With a sharded optimizer (`schuss.mpi`), all ranks call this. They share the reading: each keeps
    the parameters and its part of the state. It does not matter how many ranks have saved it. An
    error of one rank is raised by all.

    Parameters
    ----------
    path : str or os.PathLike
        The file, or the index of several.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, in the structure, shapes and dtypes that were saved, in any memory layout.
        They are compared with the file before it is read in full. A read-only array must have the
        values that were saved.
    optimizer : Optimizer, optional
        An optimizer of the same class, of all or some of these parameters, with the same number of
        groups. Everything that was saved of the optimizer is loaded. State in 8 bits can be loaded
        into state in float32, and the other way round, then rounded to nearest. Without it, only
        the parameters are loaded: optimizers with low-precision `copies` of them rewrite these, and
        keep their state, masters and averages. Accumulated gradients become those of each rank if
        its optimizer takes the mean over the ranks, and those of rank 0 if it takes the sum.
    batches : MiniBatches, optional
        Mini-batches with the same number of examples and the same settings. The next iteration
        resumes the epoch that was under way, or starts the next epoch.

    Returns
    -------
    dict
        The values that were saved as `extra`; tuples become lists.

    Raises
    ------
    TypeError
        If an argument has a wrong type.
    ValueError
        If the file is cut short, was altered, is not a checkpoint or has another version, or holds
        other arrays, another optimizer or other mini-batches than those given; if the ranks read
        different files; if a read-only array
        differs from what was saved; if `params` returns new arrays at each access, so that nothing
        would be loaded; or if `path` is a device, a FIFO or a socket.
    RuntimeError
        If a step of the optimizer is under way.
    OSError
        If the file cannot be read, or `path` is a folder.
    MemoryError
        If there is not enough memory.

    Nothing is changed then, unless memory runs out after the file was read. Ctrl-C, and other
    exceptions of signal handlers, interrupt before anything is changed, or after all is loaded.

    References
    ----------
    As `save`.

    Examples
    --------
    See `save`.
    """
    call = "load"
    with Collective(call, ranks_of(optimizer)) as together:
        path = _files.check_path(call, "path", path)
        _check_batches(call, batches)
        checkpoint = opened(call, path, params, optimizer, together)
        checkpoint.restore(params, optimizer, batches, together)
        return checkpoint.extra


# For `fit` too, which saves more.


def write(
    call: str,
    path: str,
    params: ArrayTree,
    optimizer: Optimizer | None,
    together: Collective,
    *,
    batches: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None = None,
    extra_name: str = "extra",
    training: Mapping[str, Any] | None = None,
    series: Mapping[str, Array] | None = None,
) -> None:
    """Save as `save` does, with more values for JSON in `training`, and more arrays in `series`.

    extra_name: the argument that `extra` comes from.
    """
    if not together.vote(os.fsencode(os.path.basename(path))):
        raise ValueError(f"{call}: path is {path!r}, expected the same name on all ranks")
    arrays = _named_params(call, params)
    if optimizer is not None:
        _check_optimizer(call, params, optimizer)
    flush_rows(call, "params", params)
    with nullcontext() if optimizer is None else busy(optimizer, call):
        state = None if optimizer is None else saved_of_all(call, optimizer, together)
        encoder = _json.Encoder(call, known := {**arrays})
        settings = {
            "optimizer": state and state.settings,
            "batches": batches,
            "training": training,
        }
        values = encoder.extra(extra or {}, extra_name)
        text = f'{encoder.settings(settings)[:-1]}, "extra": {values}}}'
        of_settings = {name: known[name] for name in known if name not in arrays}
        of_all = names_of_all(arrays, optimizer)
        parts = shares(arrays, of_all, together) | of_first_rank(of_settings, together)
        if optimizer is not None and state is not None:
            for name, each in state.arrays.items():
                own = state_parts(optimizer, each)
                parts |= _named(call, f"optimizer/{name}", state.names, own)
        of_training = {f"training/{name}": array for name, array in (series or {}).items()}
        best = {name: of_training.pop(name) for name in [*of_training] if _is_best(name)}
        copies_of_all = set(best) if len(of_all) == len(arrays) else set()
        parts |= of_first_rank(of_training, together) | shares(best, copies_of_all, together)
        _check_dtypes(call, parts)
        metadata = {"format": _FORMAT, "version": _VERSION, "settings": text}
        _tensor_files.write(call, path, parts, metadata, together)


def _is_best(name: str) -> bool:
    """Return whether a tensor is a copy of a parameter that `fit` keeps."""
    return name.startswith("training/best/")


def _check_dtypes(call: str, parts: Mapping[str, AnyPart]) -> None:
    for name, (values, *_) in parts.items():
        if _safetensors.dtype_in_file(values) is None:
            raise TypeError(
                f"{call}: {name} has dtype {values.dtype}, expected booleans, integers, real "
                "numbers of up to 64 bits or complex numbers of up to 128 bits, in native byte "
                "order"
            )


def opened(
    call: str,
    path: str,
    params: ArrayTree,
    optimizer: Optimizer | None,
    together: Collective,
    *,
    with_training: bool = False,
) -> "Checkpoint":
    """Read and verify a checkpoint of these parameters, or raise."""
    targets = _named_params(call, params, writes=True)
    unused = [] if with_training else ["training"]
    if optimizer is None:
        unused.append("optimizer")
    else:
        _check_optimizer(call, params, optimizer)
    with _tensor_files.reading(call, path, together) as file:
        return Checkpoint(call, path, file, targets, unused, optimizer)


@contextmanager
def _type_errors_as_value_errors() -> Iterator[None]:
    """Turn TypeError into ValueError: a wrong type in a file is not that of an argument."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from None


class Checkpoint:
    """A checkpoint that was read."""

    extra: dict[str, Any]
    training: dict[str, Any] | None

    def __init__(
        self,
        call: str,
        path: str,
        file: File,
        params: dict[str, Array],
        unused: list[str],
        optimizer: Optimizer | None,
    ) -> None:
        self._call, self._file = call, file
        self._name = f"{call}: {os.fspath(path)!r}"
        form, version = (file.metadata.get(name) for name in ("format", "version"))
        if form != _FORMAT:
            file.refuse("is not a schuss checkpoint, expected a file that schuss.save wrote")
        if version != _VERSION:
            file.refuse(f"is a checkpoint of version {str(version)[:50]}, expected {_VERSION}")
        # Before all is read: the header alone shows whether the parameters match.
        self._check_sections(params)
        file.check_digests()
        call = f"{self._name} has settings that schuss.save does not write"
        with _type_errors_as_value_errors():
            settings = _SETTINGS(call, "settings", _json.parse(call, file.metadata.get("settings")))
            self._parts = PartsToRead(call, optimizer, settings["optimizer"])
            file.read_tensors(
                lambda name, tensor: (
                    None if _section(name) in unused else self._parts.wanted(name, tensor)
                )
            )
            arrays = _json.ArrayDecoder(call, file)
            self._optimizer, self.training = settings["optimizer"], settings["training"]
            self._batches = arrays.decode("batches", settings["batches"])
            self.extra = arrays.decode("extra", settings["extra"])
            arrays.check_all_used()

    def restore(
        self,
        params: ArrayTree,
        optimizer: Optimizer | None,
        batches: MiniBatches[Any] | None,
        together: Collective,
        lr: Rate | None = None,
        others: AbstractContextManager[None] | None = None,
    ) -> None:
        """Load into all arguments; see `load`.

        lr: replaces a function that was saved. others: a context that loads what else there is,
        and that undoes it after an error.
        """
        # All checks come before the first write.
        targets = self._matched(_named_params(self._call, params, writes=True), "params")
        for name in [name for name, array in targets.items() if not array.flags.writeable]:
            if self._file.differs(name, targets.pop(name)):
                raise ValueError(
                    f"{self._call}: {name} is read-only, expected a writeable array, or the one "
                    "that was saved"
                )
        flush_rows(self._call, "params", params)
        write_copies = writer_of_copies(self._call, targets.values(), besides=optimizer)
        fill_params: Callable[[], None] = partial(self._fill, targets)
        if optimizer is not None:
            fill_params = self._for_optimizer(params, optimizer, lr, fill_params, together.vote)
        actions = [fill_params, write_copies]
        if batches is not None:
            actions.append(partial(set_state, batches, self.batches_state(batches)))

        def run() -> None:
            with others or nullcontext():
                for action in actions:
                    action()

        run()

    def optimizer(self) -> dict[str, Any] | None:
        """Return the settings of the optimizer with new schedules, otherwise unchecked."""
        with _type_errors_as_value_errors():
            if self._optimizer is None:
                return None
            return _json.with_schedules(self._name, "optimizer", self._optimizer)

    def check_accumulated(self, expected: int, *, most: int) -> None:
        """Raise ValueError unless the optimizer has accumulated this many gradients."""
        accumulated = (self._optimizer or {}).get("accumulated")  # checked when it is loaded
        number = accumulated.get("count") if isinstance(accumulated, dict) else 0
        if number != expected or expected > most:
            self.refuse(
                f"holds {expected} mini-batches of a step and {shown(number)} accumulated "
                f"gradients, expected as many, and at most {most}"
            )

    def batches_state(self, batches: MiniBatches[Any]) -> State:
        """Return the state of the mini-batches, checked."""
        if self._batches is None:
            self.refuse("holds no mini-batches, expected to find them")
        with _type_errors_as_value_errors():
            return parse_state(self._name, "batches", self._batches, batches)

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with a problem of the file."""
        self._file.refuse(problem)

    def check(self, name: str, check: Check[_T], value: Any) -> _T:
        """Return the result of a check of a setting, or raise ValueError."""
        with _type_errors_as_value_errors():
            return check(self._name, name, value)

    def series(self, name: str, rows: int | None = None) -> Array:
        """Return an array of the training as a new array, with one axis or with `rows` rows."""
        tensor = self._file.tensors.get(f"training/{name}")
        if tensor is None:
            self.refuse(f"holds no training/{name}, expected to find it")
        *first, _ = tensor.shape or (-1, -1, -1)
        if tensor.dtype != "F64" or first != ([] if rows is None else [rows]):
            expected = "(n,)" if rows is None else f"({rows}, n)"
            self.refuse(
                f"holds training/{name} in {tensor.dtype} of shape {tensor.shape}, expected "
                f"F64 of shape {expected}"
            )
        return self._file.read(f"training/{name}")

    def fill(self, prefix: str, arrays: list[Array]) -> None:
        """Fill arrays with those of the training that have the prefix, if they match."""
        named = {f"training/{prefix}/{i}": array for i, array in enumerate(arrays)}
        self._fill(self._matched(named, f"training/{prefix}"))

    def _check_sections(self, params: dict[str, Array]) -> None:
        """Refuse tensors that a checkpoint of these parameters does not have."""
        self._matched(params, "params")
        shapes = {array.shape for array in params.values()}
        of_blocks = {*map(shape_in_bytes, shapes)}
        of_rows = {shape[:1] for shape in shapes}
        for name, tensor in self._file.tensors.items():
            section = _section(name)
            if section not in _SECTIONS:
                self.refuse(f"holds {name}, expected nothing of that name")
            is_state = section == "optimizer"
            like_param = is_state or _is_best(name)
            is_blocks = tensor.dtype == "U8" and tensor.shape in of_blocks
            has_rows = is_state and tensor.shape in of_rows
            if like_param and not (is_blocks or has_rows) and tensor.shape not in shapes:
                self.refuse(f"holds {name} of shape {tensor.shape}, expected that of a parameter")
            if section == "training" and not like_param and name not in _SERIES:
                self.refuse(f"holds {name}, expected nothing of that name")

    def _for_optimizer(
        self,
        params: ArrayTree,
        optimizer: Optimizer,
        lr: Rate | None,
        fill_params: Callable[[], None],
        ready: Callable[[], object],
    ) -> Callable[[], None]:
        """Check the settings of the optimizer; return what loads it, and the parameters.

        ready: is called when all checks have been made.
        """
        call = self._call
        _check_optimizer(call, params, optimizer)
        settings = self.optimizer()
        if settings is None:
            self.refuse("holds no optimizer, expected to find one")
        own, groups = own_hyperparameters(optimizer)
        lrs = [own["lr"] if lr is None else lr, *(group.get("lr") for group in groups)]
        with _type_errors_as_value_errors():
            given = _json.with_functions(call, settings, lrs)
            state = checked(optimizer, self._name, "optimizer", given)
        names = saved(optimizer).names

        def named(arrays: Arrays) -> dict[str, Array]:
            result: dict[str, Array] = {}
            for name, each in arrays.items():
                result |= _named(call, f"optimizer/{name}", names, each)
            return result

        def in_blocks(name: str) -> list[bool]:
            tensors = map(self._file.tensors.get, named({name: state.states[name]}))
            return [tensor is not None and tensor.dtype == "U8" for tensor in tensors]

        in_file = named({name: state.sources(name, in_blocks(name)) for name in state.states})
        others = named({name: state.likes(name) for name in state.others})
        self._matched(in_file | others, "optimizer")
        targets = named(state.states)
        conversions = dict(zip(targets, cycle(state.conversions)))
        converted = {
            name: self._parts.converted(self._file, name, array, targets[name], conversions[name])
            for name, array in in_file.items()
            if conversions[name].is_needed(array, targets[name])
        }

        def fill(arrays: Arrays) -> None:
            fill_params()
            targets = named(arrays)
            for name, values in converted.items():
                np.copyto(targets.pop(name), values)
            self._fill(targets)
            drop_sums(optimizer, arrays)

        return lambda: restore(optimizer, call, state, fill, prefix=self._name, ready=ready)

    def _matched(self, arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
        """Return the arrays, if the file has the same names, shapes and dtypes for the prefix."""
        in_file = {k for k in self._file.tensors if k == prefix or k.startswith(f"{prefix}/")}
        for name in sorted(in_file ^ arrays.keys()):
            if name in in_file:
                self.refuse(f"holds {name}, expected nothing of that name")
            self.refuse(f"holds no {name}, expected to find it")
        for name, array in arrays.items():
            array = as_bytes(array)
            tensor, dtype = self._file.tensors[name], _safetensors.dtype_in_file(array)
            if tensor.shape != array.shape:
                self.refuse(
                    f"holds {name} of shape {tensor.shape}, expected {array.shape} as it is here"
                )
            if tensor.dtype != dtype:
                self.refuse(
                    f"holds {name} in {tensor.dtype}, expected {dtype or array.dtype} as it is here"
                )
        return arrays

    def _fill(self, arrays: dict[str, Array]) -> None:
        self._file.read_into({name: as_bytes(array) for name, array in arrays.items()})


def _section(name: str) -> str:
    return name.partition("/")[0]


def _named_params(call: str, params: ArrayTree, *, writes: bool = False) -> dict[str, Array]:
    tree = _core.Tree(params, call, "params", writes)
    return _named(call, "params", tree.names, tree.arrays)


def _named(call: str, prefix: str, names: list[str], arrays: Sequence[_T | None]) -> dict[str, _T]:
    """Return the arrays by the names of their tensors, or raise ValueError if two are equal."""
    named: dict[str, _T] = {}
    for name, array in zip(names, arrays, strict=True):
        if array is None:
            continue
        tensor = f"{prefix}/{name}" if name else prefix
        if tensor in named:
            raise ValueError(
                f"{call}: {prefix} has two arrays with the name {name!r}, expected keys "
                "that, joined "
                "by '/', are different"
            )
        named[tensor] = array
    return named


def _check_optimizer(call: str, params: ArrayTree, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise wrong_type(call, "optimizer", optimizer, "an optimizer of schuss")
    if optimizer.params is not params:
        check_holds(call, params, arrays_of(call, "optimizer.params", optimizer.params))


def _check_batches(call: str, batches: object) -> None:
    if batches is not None and not isinstance(batches, MiniBatches):
        raise wrong_type(call, "batches", batches, "mini-batches, as minibatches makes")
