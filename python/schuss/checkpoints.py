"""Checkpoints: training that was stopped goes on with the same bits.

A checkpoint is one file in the safetensors format, which holds no code. Other programs can read it:
parameters are the tensors ``params/...``, an optimizer's state is ``optimizer/m/...`` and so on.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import numpy as np

from schuss import _core, _files, _safetensors
from schuss._arrays import Array, ArrayTree, arrays_of, check_holds, names_of_leaves
from schuss._copies import writer_of_copies
from schuss._hyperparameters import Check, check_keys, count, mapping, optional, record, shown
from schuss._interrupts import whole
from schuss._saved import busy, checked, restore, saved
from schuss.batches import MiniBatches, Resumption
from schuss.optimizers import Optimizer

if TYPE_CHECKING:
    from schuss._hyperparameters import Rate
    from schuss.schedules import Schedule

__all__ = ["load", "save"]

_T = TypeVar("_T")
Path: TypeAlias = str | os.PathLike[str]

_FORMAT, _VERSION = "schuss", "1"
_SETTINGS_ARRAYS = "settings/"  # what the names of their tensors begin with
_SERIES = ("training/steps", "training/epoch_cost", "training/validation")
_SECTIONS = ("params", "optimizer", "training", "settings")  # or with these, or they are params
_SETTINGS = record(
    optimizer=optional(mapping),
    batches=optional(mapping),
    training=optional(mapping),
    extra=mapping,
)
# Of lists and mappings in each other, of the digits of an integer (as Python itself has it), of
# values in all: what JSON takes long for, or no end.
_DEEPEST, _MOST_DIGITS, _MOST_VALUES = 100, 4300, 50_000_000
_LARGEST = 10**_MOST_DIGITS - 1


def save(
    path: Path,
    params: ArrayTree,
    optimizer: Optimizer | None = None,
    *,
    batches: MiniBatches[Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save parameters, and all that training needs to go on from them.

    A learning rate that is a function of your own, or a schedule made of one, is not in it: there
    must be one where the checkpoint is loaded, which stays.

    The file is written beside `path`, brought to the disk, and only then takes its name: whatever
    happens meanwhile, there is a whole checkpoint, the one before or this one. Arrays are written
    from where they are, without a copy of them in memory. Until then nobody else can read it. In
    the end it has the mode, the owner and the POSIX ACL of the file whose place it takes, or the
    mode of a new file; where the system does not let it have them, it is open to fewer. Where
    `path` is a symbolic link, the file that it leads to is replaced; other hard links keep theirs.

    Handlers of signals, Ctrl-C's too, run between two pieces of 4 MiB, or when all is done.

    Parameters
    ----------
    path : str or os.PathLike
        The file, replaced if it is there; folders, devices, FIFOs and sockets are refused. Its name
        usually ends in ".safetensors".
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, of any shape and memory layout, in any dtype of booleans, integers or
        floating point numbers. No step of another thread may change them meanwhile.
    optimizer : Optimizer, optional
        One of schuss, of these parameters or some of them: its state, counts, hyperparameters,
        groups, schedules, averages, and the gradients that it has accumulated. Its `copies` are
        made anew when it is loaded.
    batches : MiniBatches, optional
        The generator's state, and how many batches of the epoch under way were handed out. So save
        after the step with the last one of them.
    extra : mapping, optional
        What else to keep: anything of JSON, with str as keys, and arrays of any shape in the dtypes
        of NumPy that parameters may have, such as
        ``{"epoch": 3, "scale": scaler.state_dict(), "dropout": rng.bit_generator.state}``. Lists
        and mappings may be 100 deep, integers have 4,300 digits. `load` gives it back as it is in
        the file, so check what you hand on from a file of others: NumPy takes any state.

    Raises
    ------
    TypeError
        If an argument has a wrong type, an array a dtype that the format does not have, or `lr`
        is made of `schedules.ReduceOnPlateau`, which changes, and of a function of your own.
    ValueError
        If the optimizer was made for other parameters, two arrays have one name, all beside
        arrays takes more than 100 MB, or `path` names no file or what is no regular file.
    RuntimeError
        If a step of the optimizer is under way, or in a child that was forked while it saved.
    OSError
        If the file cannot be written, as when the disk is full, or `path` is a folder.

    If anything is raised, also by the handler of a signal, the path holds what it held before. Only
    where it is raised after the file got its name, as when the folder cannot be synced, does the
    path hold this checkpoint, all of it.

    References
    ----------
    The safetensors format: huggingface/safetensors, README.md, "Format". The checksum in its
    metadata is a SHA-256 over the header and over the CRC-32 of each 4 MiB of each tensor.

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
    path = _files.check_path(call, "path", path)
    if batches is not None:
        _check_type(call, "batches", batches, MiniBatches, "mini-batches, as minibatches makes")
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"{call}: extra is a {type(extra).__name__}, expected a mapping")
    write(
        call,
        path,
        params,
        optimizer,
        batches=None if batches is None else batches.state_dict(),
        extra=extra,
    )


def load(
    path: Path,
    params: ArrayTree,
    optimizer: Optimizer | None = None,
    *,
    batches: MiniBatches[Any] | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into parameters, an optimizer and mini-batches that are there.

    The file is read once, into memory of its own; when it is whole and unchanged, it is copied into
    the arrays. So meanwhile this needs as much memory as is to be loaded, and nobody who writes to
    the file can change what is loaded.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    params : array, or sequence or mapping of arrays, nested as you like
        The parameters, in the structure, shapes and dtypes of those that were saved, which are
        compared before all is read; their memory layout may be another. One that is read-only must
        be what was saved.
    optimizer : Optimizer, optional
        An optimizer of the same class, of these parameters or some of them, with as many groups. It
        takes over all that was saved of the other. Without it, parameters alone are loaded: the
        optimizers that have low-precision `copies` of them rewrite these, and their state and
        averages stay as they are.
    batches : MiniBatches, optional
        Mini-batches of as many examples, cut alike. The next iteration over them goes on where the
        epoch was that was under way, or begins the next one.

    Returns
    -------
    dict
        What was saved as `extra`; tuples have become lists.

    Raises
    ------
    TypeError
        If an argument has a wrong type.
    ValueError
        If the file is cut short, was altered, is no checkpoint or one of another version, or holds
        other arrays, another optimizer or other mini-batches than asked for; if a read-only array
        is another than was saved; if `params` returns new arrays at each access, so that
        nothing would be loaded; or if `path` is a device, a FIFO or a socket.
    RuntimeError
        If a step of the optimizer is under way.
    OSError
        If the file cannot be read, or `path` is a folder.
    MemoryError
        If there is no memory for what is to be loaded.

    Nothing is changed then, unless memory runs out after the file was read. Ctrl-C, and what else
    handlers of signals raise, interrupts before anything is changed, or once all is loaded.

    References
    ----------
    As `save`.

    Examples
    --------
    See `save`.
    """
    call = "load"
    path = _files.check_path(call, "path", path)
    if batches is not None:
        _check_type(call, "batches", batches, MiniBatches, "mini-batches, as minibatches makes")
    checkpoint = opened(call, path, params, optimizer)
    checkpoint.restore(params, optimizer, batches)
    return checkpoint.extra


# For the training loop too, which keeps more.


def write(
    call: str,
    path: str,
    params: ArrayTree,
    optimizer: Optimizer | None,
    *,
    batches: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    series: Mapping[str, Array] | None = None,
) -> None:
    """Save as `save` does; `training` is what else JSON can hold, and `series` are its arrays."""
    tensors = _named(call, "params", *_taken_apart(call, params))
    if optimizer is not None:
        _check_optimizer(call, params, optimizer)
    with nullcontext() if optimizer is None else busy(optimizer, call):
        known = None if optimizer is None else saved(optimizer)
        settings: dict[str, Any] = {
            "optimizer": None if known is None else known.settings,
            "batches": batches,
            "training": training,
        }
        encode = _Encoder(tensors)
        try:
            text = json.dumps(settings, default=encode)[:-1]
        except TypeError as error:
            raise TypeError(f"{call}: {error}") from None
        text += f', "extra": {_extra_as_json(call, extra, encode)}}}'
        if known is not None:
            for name, arrays in known.arrays.items():
                tensors |= _named(call, f"optimizer/{name}", known.names, arrays)
        for name, array in (series or {}).items():
            tensors[f"training/{name}"] = array
        tensors = {name: _core.held(array) for name, array in tensors.items()}
        for name, array in tensors.items():
            if _safetensors.dtype_in_file(array) is None:
                raise TypeError(
                    f"{call}: {name} has dtype {array.dtype}, expected booleans, integers or "
                    "floating point numbers of up to 64 bits in native byte order"
                )
        metadata = {"format": _FORMAT, "version": _VERSION, "settings": text}
        _safetensors.write(call, path, tensors, metadata)


def opened(
    call: str,
    path: str,
    params: ArrayTree,
    optimizer: Optimizer | None,
    *,
    with_training: bool = False,
) -> "Checkpoint":
    """Read a checkpoint that is whole, unchanged and of such arrays, or raise."""
    targets, unused = _named(call, "params", *_taken_apart(call, params, written=True)), []
    if optimizer is None:
        unused.append("optimizer")
    else:
        _check_optimizer(call, params, optimizer)
    if not with_training:
        unused.append("training")
    with _safetensors.reading(call, path) as file:
        return Checkpoint(call, path, file, targets, unused)


@contextmanager
def _type_errors_are_value_errors() -> Iterator[None]:
    """For checks of what is in a file: nobody passed an argument of a wrong type."""
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
        file: _safetensors.File,
        params: dict[str, Array],
        unused: list[str],
    ) -> None:
        self._call, self._file = call, file
        self._said = f"{call}: {os.fspath(path)!r}"
        form, version = (file.metadata.get(name) for name in ("format", "version"))
        if form != _FORMAT:
            file.refuse("is no checkpoint of schuss, expected one that schuss.save wrote")
        if version != _VERSION:
            file.refuse(f"is a checkpoint of version {str(version)[:50]}, expected {_VERSION}")
        # What the header shows to be another checkpoint need not be read.
        self._check_sections(params)
        file.read_tensors(lambda name: _section(name) not in unused)
        said = f"{self._said} has settings that schuss.save does not write"
        with _type_errors_are_value_errors():
            settings = _SETTINGS(said, "settings", _parsed(said, file.metadata.get("settings")))
            arrays = _Arrays(said, file)
            self._optimizer, self.training = settings["optimizer"], settings["training"]
            self._batches = arrays.put_in("batches", settings["batches"])
            self.extra = arrays.put_in("extra", settings["extra"])
            arrays.check_all_named()

    def restore(
        self,
        params: ArrayTree,
        optimizer: Optimizer | None,
        batches: MiniBatches[Any] | None,
        lr: "Rate | None" = None,
    ) -> None:
        """Load all that is given; see `load`. A function `lr` stands in for one that was saved."""
        # What can be refused is refused before the first write.
        names, arrays = _taken_apart(self._call, params, written=True)
        targets = self._matched(_named(self._call, "params", names, arrays), "params")
        for name in [name for name, array in targets.items() if not array.flags.writeable]:
            if self._file.differs(name, targets.pop(name)):
                raise ValueError(
                    f"{self._call}: {name} is read-only, expected a writeable array, or the one "
                    "that was saved"
                )

        def fill_params() -> None:
            self._fill(targets)

        write_copies = writer_of_copies(self._call, targets.values(), besides=optimizer)
        work = fill_params
        if optimizer is not None:
            work = self._for_optimizer(params, optimizer, lr, fill_params)
        resumed = None
        if batches is not None:
            resumed = self.resumption(batches)

        def run() -> None:
            work()
            write_copies()
            if batches is not None and resumed is not None:
                batches._resume(resumed)

        whole(run)

    def optimizer(self) -> dict[str, Any] | None:
        """Return what is there of an optimizer, with new schedules; its fields are not checked."""
        with _type_errors_are_value_errors():
            return self._optimizer and _Rates(self._said).put_in("optimizer", self._optimizer)

    def resumption(self, batches: MiniBatches[Any]) -> Resumption:
        """Return where mini-batches are to go on, checked."""
        if self._batches is None:
            self.refuse("holds no mini-batches, expected to find them")
        with _type_errors_are_value_errors():
            return batches._resumption(self._said, "batches", self._batches)

    def _check_sections(self, params: dict[str, Array]) -> None:
        """Refuse tensors that a checkpoint of these parameters does not have."""
        self._matched(params, "params")
        shapes = {array.shape for array in params.values()}
        for name, tensor in self._file.tensors.items():
            section = _section(name)
            if section not in _SECTIONS:
                self.refuse(f"holds {name}, expected nothing of that name")
            along = section == "optimizer" or name.startswith("training/best/")
            if along and tensor.shape not in shapes:
                self.refuse(f"holds {name} of shape {tensor.shape}, expected that of a parameter")
            if section == "training" and not along and name not in _SERIES:
                self.refuse(f"holds {name}, expected nothing of that name")

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError: the file has that problem."""
        self._file.refuse(problem)

    def check(self, name: str, check: Check[_T], value: Any) -> _T:
        """Return what a check makes of a setting; what it raises is a ValueError of the file."""
        with _type_errors_are_value_errors():
            return check(self._said, name, value)

    def series(self, name: str, rows: int | None = None) -> Array:
        """Return a new array with one of the training's, of one axis or of `rows` rows."""
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
        """Fill arrays with as many of the training's, of their shapes and dtypes."""
        named = {f"training/{prefix}/{place}": array for place, array in enumerate(arrays)}
        self._fill(self._matched(named, f"training/{prefix}"))

    def _for_optimizer(
        self,
        params: ArrayTree,
        optimizer: Optimizer,
        lr: "Rate | None",
        fill_params: Callable[[], None],
    ) -> Callable[[], None]:
        """Check what is there for an optimizer; return what loads it, and the parameters."""
        call = self._call
        _check_optimizer(call, params, optimizer)
        found = self.optimizer()
        if found is None:
            self.refuse("holds no optimizer, expected to find one")
        with _type_errors_are_value_errors():
            given = _with_own_functions(call, found, optimizer, lr)
            known = checked(optimizer, self._said, "optimizer", given)
        names = saved(optimizer).names

        def named(arrays: dict[str, list[Array]]) -> dict[str, Array]:
            return {
                name: array
                for kind, leaves in arrays.items()
                for name, array in _named(call, f"optimizer/{kind}", names, leaves).items()
            }

        self._matched(named(known.arrays), "optimizer")

        def fill(arrays: dict[str, list[Array]]) -> None:
            fill_params()
            self._fill(named(arrays))

        return lambda: restore(optimizer, call, known, fill)

    def _matched(self, arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
        """Return the arrays, if those of the prefix in the file are of their names and kinds."""
        inside = f"{prefix}/"
        held = {k for k in self._file.tensors if k == prefix or k.startswith(inside)}
        for name in sorted(held ^ arrays.keys()):
            if name in held:
                self.refuse(f"holds {name}, expected nothing of that name")
            self.refuse(f"holds no {name}, expected to find it")
        for name, array in arrays.items():
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
        for name, array in arrays.items():
            self._file.read_into(name, array)


def _section(name: str) -> str:
    return name.partition("/")[0]


def _taken_apart(
    call: str, params: ArrayTree, *, written: bool = False
) -> tuple[list[str], list[Array]]:
    arrays: list[Array] = []
    places = _core.map_arrays(arrays.append, params, call, "params", written)
    return list(names_of_leaves(places)), arrays


def _named(call: str, prefix: str, names: list[str], arrays: list[Array]) -> dict[str, Array]:
    named: dict[str, Array] = {}
    for name, array in zip(names, arrays, strict=True):
        whole_name = f"{prefix}/{name}" if name else prefix
        if whole_name in named:
            raise ValueError(
                f"{call}: {prefix} has two arrays of the name {name!r}, expected keys that, joined "
                "by '/', give each another"
            )
        named[whole_name] = array
    return named


def _check_optimizer(call: str, params: ArrayTree, optimizer: Any) -> None:
    _check_type(call, "optimizer", optimizer, Optimizer, "an optimizer of schuss")
    if optimizer.params is not params:
        check_holds(call, params, arrays_of(call, "optimizer.params", optimizer.params))


def _check_type(call: str, name: str, value: object, kinds: Any, expected: str) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected {expected}")


# What JSON does not know: schedules, functions, arrays.

_SCHEDULE, _SAME, _FUNCTION, _ARRAY = (
    f"schuss.{word}" for word in ("schedule", "same", "function", "array")
)
_RESERVED = (_SCHEDULE, _SAME, _FUNCTION)


class _Function(str):
    """The name of a function that was saved, and of which there is nothing else."""

    __slots__ = ()


class _Encoder:
    """What stands for a value in JSON; of a schedule that comes again, its number.

    Arrays go among the tensors of the file.
    """

    def __init__(self, tensors: dict[str, Array]) -> None:
        self._tensors = tensors
        self._met: dict[int, int] = {}  # schedules by id, whose number is how many came before

    def __call__(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if type(value) not in (np.ndarray, np.memmap):
                raise TypeError(f"a {type(value).__name__}")
            # bfloat16 would come back only where ml_dtypes is.
            if value.dtype.kind not in "biuf" or _safetensors.dtype_in_file(value) is None:
                raise TypeError(f"an array of {value.dtype}")
            name = f"{_SETTINGS_ARRAYS}{len(self._tensors)}"
            self._tensors[name] = value
            return {_ARRAY: name}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.itemsize <= 8:
            return value.item()
        if not callable(value):
            raise TypeError(f"a {type(value).__name__}")
        functions = list(_functions_in(value))
        if all(map(_is_ours, functions)):
            if id(value) in self._met:
                return {_SAME: self._met[id(value)]}
            number = self._met[id(value)] = len(self._met)
            return {_SCHEDULE: type(value).__name__, "number": number, **_fields(value)}
        for each in functions:
            if type(each).__name__ == "ReduceOnPlateau":  # the only one that changes
                raise TypeError(
                    f"lr is a {type(value).__name__} of a {type(each).__name__} and of a function "
                    "of your own, expected schedules of schuss alone"
                )
        return {_FUNCTION: getattr(value, "__qualname__", type(value).__qualname__)}


def _parsed(call: str, text: str | None) -> Any:
    try:
        return json.loads(text or "", parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{call}: they are no valid JSON ({error})") from None


def _integer(digits: str) -> int:
    many = len(digits.removeprefix("-"))
    if many > _MOST_DIGITS:
        raise ValueError(f"an integer of {many} digits")
    return int(digits)


class _Arrays:
    """The arrays of the settings, each of which is named there once."""

    def __init__(self, call: str, file: _safetensors.File) -> None:
        self._call, self._file = call, file
        self._left = {name for name in file.tensors if name.startswith(_SETTINGS_ARRAYS)}

    def put_in(self, field: str, value: Any, depth: int = 0) -> Any:
        """Return the value of a field, with arrays where it names them."""
        if not isinstance(value, dict | list):
            return value
        if depth > _DEEPEST:
            raise ValueError(
                f"{self._call}: {field} is nested more than {_DEEPEST} deep, expected at most that"
            )
        if isinstance(value, list):
            return [self.put_in(field, each, depth + 1) for each in value]
        if _ARRAY in value:
            return self._array(field, value)
        for key in _RESERVED:
            if key in value:
                raise ValueError(f"{self._call}: {field} has the reserved key {key!r}")
        return {key: self.put_in(field, each, depth + 1) for key, each in value.items()}

    def check_all_named(self) -> None:
        """Raise ValueError unless every array was asked for."""
        for name in self._left:
            raise ValueError(f"{self._call}: there is {shown(name)}, which no field names")

    def _array(self, field: str, value: dict[str, Any]) -> Array:
        name = value[_ARRAY]
        if len(value) > 1 or not isinstance(name, str) or name not in self._left:
            raise ValueError(
                f"{self._call}: {field} names an array as {shown(value)}, expected one that is "
                "there, once"
            )
        if self._file.tensors[name].dtype == "BF16":
            raise ValueError(
                f"{self._call}: {field} names an array in BF16, expected another dtype"
            )
        self._left.remove(name)
        return self._file.read(name)


class _Rates:
    """The learning rates of an optimizer's settings: schedules, and the names of functions."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._made: dict[int, Any] = {}

    def put_in(self, name: str, settings: Any) -> dict[str, Any]:
        """Return the settings with schedules where they are described."""
        result = dict(settings)
        result["hyperparameters"] = self._of_hyperparameters(name, settings)
        if isinstance(groups := settings.get("groups"), list):
            result["groups"] = [
                {
                    **group,
                    "hyperparameters": self._of_hyperparameters(f"{name}['groups'][{i}]", group),
                }
                if isinstance(group, dict)
                else group
                for i, group in enumerate(groups)
            ]
        return result

    def _of_hyperparameters(self, name: str, holder: Any) -> Any:
        values = holder.get("hyperparameters")
        if not isinstance(values, dict) or not isinstance(lr := values.get("lr"), dict):
            return values
        name = f"{name}['hyperparameters']['lr']"
        if lr.keys() == {_FUNCTION} and isinstance(lr[_FUNCTION], str):
            return values | {"lr": _Function(lr[_FUNCTION])}
        return values | {"lr": self._rate(name, lr)}

    def _rate(self, name: str, value: Any, depth: int = 0) -> Any:
        """Return a schedule that a mapping describes, or anything else as it is."""
        if isinstance(value, list):
            return [self._rate(name, each, depth + 1) for each in value]
        if not isinstance(value, dict):
            return value
        if depth > _DEEPEST:
            raise ValueError(
                f"{self._call}: {name} is nested more than {_DEEPEST} deep, expected at most that"
            )
        if value.keys() == {_SAME}:
            number = count(self._call, f"{name}[{_SAME!r}]", value[_SAME], least=0)
            if number not in self._made:
                raise ValueError(f"{self._call}: {name} is schedule {number}, expected one before")
            return self._made[number]
        fields = {
            field: self._rate(name, each, depth + 1)
            for field, each in value.items()
            if field not in (_SCHEDULE, "number")
        }
        number = count(self._call, f"{name}['number']", value.get("number"), least=0)
        try:
            schedule = self._made[number] = _schedule(value.get(_SCHEDULE), fields)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self._call}: {name} is no schedule ({error}), expected one"
            ) from None
        return schedule


def _fields(schedule: Any) -> dict[str, Any]:
    return {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}


def _functions_in(schedule: Any) -> Iterator[Any]:
    """Yield a schedule, and all that it is made of."""
    yield schedule
    for held in _fields(schedule).values() if _is_ours(schedule) else ():
        for each in held if isinstance(held, tuple) else (held,):
            if callable(each):
                yield from _functions_in(each)


def _is_ours(function: object) -> bool:
    return type(function).__module__ == "schuss.schedules"


def _schedule(name: Any, fields: dict[str, Any]) -> "Schedule":
    from schuss import schedules  # not with the library, which does without

    kind: Any = getattr(schedules, name) if name in schedules.__all__ else None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"there is no {shown(name)}")
    known = dataclasses.fields(kind)
    check_keys(str(name), "it", fields, tuple(field.name for field in known))
    schedule: Any = kind(**{field.name: fields[field.name] for field in known if field.init})
    for field in known:
        if not field.init:
            setattr(schedule, field.name, fields[field.name])
    return schedule  # type: ignore[no-any-return]


def _extra_as_json(call: str, extra: Mapping[str, Any] | None, encode: _Encoder) -> str:
    def encoded(value: Any) -> Any:
        if callable(value):
            raise TypeError(f"a {type(value).__name__}")
        return encode(value)

    extra = dict(extra or {})
    try:
        _Size().of(extra)
        text = json.dumps(extra, default=encoded)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"{call}: extra holds {error}, expected what JSON can hold, and arrays of booleans, "
            "integers or floating point numbers of up to 64 bits in native byte order"
        ) from None
    return text


class _Size:
    """How many values there are in a structure for JSON, which writes what is shared each time."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[int, int]] = {}  # of lists and mappings by id: see `of`

    def of(self, value: Any, depth: int = 0) -> tuple[int, int]:
        """Return how many values there are, and how deep.

        Raises TypeError for what would not come back, or as something else.
        """
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise TypeError(f"an integer of more than {_MOST_DIGITS} digits")
        if not isinstance(value, dict | list | tuple):
            return 1, 0
        size, height = self._met.get(id(value), (1, 0))
        if depth + height > _DEEPEST:
            raise TypeError(f"lists and mappings nested more than {_DEEPEST} deep")
        if height:
            return size, height
        if isinstance(value, dict):
            _check_keys_come_back(value)
        values = value.values() if isinstance(value, dict) else value
        inner = [self.of(each, depth + 1) for each in values if type(each) not in (float, str)]
        size = 1 + len(value) - len(inner) + sum(size for size, _ in inner)
        if size > _MOST_VALUES:
            raise TypeError(f"more than {_MOST_VALUES:,} values")
        self._met[id(value)] = size, 1 + max((height for _, height in inner), default=0)
        return self._met[id(value)]


def _check_keys_come_back(value: dict[Any, Any]) -> None:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"the key {shown(key)}, which is no str")
        if key in (*_RESERVED, _ARRAY):
            raise TypeError(f"the key {key!r}, which schuss uses itself")


def _with_own_functions(
    call: str, settings: Any, optimizer: Optimizer, lr: "Rate | None"
) -> dict[str, Any]:
    """Return an optimizer's settings with its functions where such were saved."""

    def filled(saved: Any, own: "Rate | None") -> Any:
        if not isinstance(saved, dict) or not isinstance(saved.get("lr"), _Function):
            return saved
        if not callable(own):
            raise ValueError(
                f"{call}: lr is {shown(own)}, expected the function {shown(saved['lr'])} that it "
                "was when it was saved, as a file does not hold functions"
            )
        return saved | {"lr": own}

    groups, own_settings = settings.get("groups"), saved(optimizer).settings
    own_groups = [group["hyperparameters"] for group in own_settings["groups"]]
    if isinstance(groups, list) and len(groups) == len(own_groups):
        groups = [
            group | {"hyperparameters": filled(group.get("hyperparameters"), own.get("lr"))}
            if isinstance(group, dict)
            else group
            for group, own in zip(groups, own_groups, strict=True)
        ]
    own_of_all = own_settings["hyperparameters"]["lr"] if lr is None else lr
    hyperparameters = filled(settings.get("hyperparameters"), own_of_all)
    return {**settings, "hyperparameters": hyperparameters, "groups": groups}
