"""Checkpoints: training that was stopped goes on with the same bits.

A checkpoint is one file in the safetensors format, which holds no code. Other programs can read it:
parameters are the tensors ``params/...``, an optimizer's state is ``optimizer/m/...`` and so on.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from schuss import _core, _safetensors
from schuss._arrays import Array, ArrayTree, arrays_of, check_holds, names_of_leaves
from schuss._hyperparameters import check_keys
from schuss._interrupts import whole
from schuss.batches import MiniBatches
from schuss.optimizers import Optimizer, writer_of_copies

if TYPE_CHECKING:
    from schuss._hyperparameters import Rate
    from schuss.schedules import Schedule

__all__ = ["load", "save"]

Path: TypeAlias = str | os.PathLike[str]

_FORMAT, _VERSION = "schuss", "1"
_SETTINGS_ARRAYS = "settings/"  # what the names of their tensors begin with
_SECTIONS = ("params", "optimizer", "training", "settings")  # or with these, or they are params
_SETTINGS = ("optimizer", "batches", "training", "extra")


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
        ``{"epoch": 3, "scale": scaler.state_dict(), "dropout": rng.bit_generator.state}``.

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

    Whatever is raised, by handlers of signals too, the path has what it had before, or all of this
    checkpoint: that where something is raised once the file has its name, as when the folder cannot
    be brought to the disk.

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
    path = _safetensors.check_path(call, "path", path)
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
        optimizers that have low-precision `copies` of them write these anew, and their state and
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
        is another than was saved; if `params` makes its arrays anew at each access, so that
        nothing would be loaded; or if `path` is a device, a FIFO or a socket.
    RuntimeError
        If a step of the optimizer is under way.
    OSError
        If the file cannot be read, or `path` is a folder.
    MemoryError
        If there is no memory for what is to be loaded.

    Nothing is changed then. Ctrl-C, and what else handlers of signals raise, interrupts before
    anything is changed, or once all is loaded.

    References
    ----------
    As `save`.

    Examples
    --------
    See `save`.
    """
    call = "load"
    path = _safetensors.check_path(call, "path", path)
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
    with nullcontext() if optimizer is None else optimizer._turn(call):
        settings: dict[str, Any] = {
            "optimizer": None if optimizer is None else optimizer._settings(),
            "batches": batches,
            "training": training,
        }
        encode = _Encoder(tensors)
        try:
            text = json.dumps(settings, default=encode)[:-1]
        except TypeError as error:
            raise TypeError(f"{call}: {error}") from None
        text += f', "extra": {_extra_as_json(call, extra, encode)}}}'
        if optimizer is not None:
            for name, arrays in optimizer._arrays().items():
                tensors |= _named(call, f"optimizer/{name}", optimizer._names(), arrays)
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
        return Checkpoint(call, file, targets, unused)


class Checkpoint:
    """A checkpoint that was read."""

    extra: dict[str, Any]
    training: dict[str, Any] | None

    def __init__(
        self,
        call: str,
        file: _safetensors.File,
        params: dict[str, Array],
        unused: list[str],
    ) -> None:
        self._call, self._file = call, file
        form, version = (file.metadata.get(name) for name in ("format", "version"))
        if form != _FORMAT:
            file.refuse("is no checkpoint of schuss, expected one that schuss.save wrote")
        if version != _VERSION:
            file.refuse(f"is a checkpoint of version {version}, expected {_VERSION}")
        # What the header shows to be another checkpoint need not be read.
        self._check_sections(params)
        file.read_tensors(lambda name: _section(name) not in unused)
        try:
            decode = _Decoder(file)
            settings = json.loads(file.metadata["settings"], object_hook=decode)
            check_keys(call, "the checkpoint", settings, _SETTINGS)
            self._optimizer, self._batches = settings["optimizer"], settings["batches"]
            self.training, self.extra = settings["training"], settings["extra"]
            if decode.left or not isinstance(self.extra, dict):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            self._refuse_settings()

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
            if self._batches is None:
                self.refuse("holds no mini-batches, expected to find them")
            resumed = batches._resumption(self._call, "the checkpoint's batches", self._batches)

        def run() -> None:
            work()
            write_copies()
            if batches is not None and resumed is not None:
                batches._resume(resumed)

        whole(run)

    def _check_sections(self, params: dict[str, Array]) -> None:
        """Refuse tensors that a checkpoint of these parameters does not have."""
        self._matched(params, "params")
        shapes = {array.shape for array in params.values()}
        for name, tensor in self._file.tensors.items():
            section = _section(name)
            if section not in _SECTIONS:
                self.refuse(f"holds {name}, expected nothing of that name")
            if section == "optimizer" and tensor.shape not in shapes:
                self.refuse(f"holds {name} of shape {tensor.shape}, expected that of a parameter")

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError: the file has that problem."""
        self._file.refuse(problem)

    def series(self, name: str) -> Array:
        """Return a new array with one of the training's."""
        tensor = self._file.tensors.get(f"training/{name}")
        if tensor is None or tensor.dtype != "F64":
            self._refuse_settings()
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
        if self._optimizer is None:
            self.refuse("holds no optimizer, expected to find one")
        name = "the checkpoint's optimizer"
        check_keys(call, name, self._optimizer, tuple(optimizer._settings()))
        given = _with_own_functions(call, self._optimizer, optimizer, lr)
        settings = optimizer._settings_in(call, name, given)

        def named(arrays: dict[str, list[Array]]) -> dict[str, Array]:
            return {
                name: array
                for kind, leaves in arrays.items()
                for name, array in _named(
                    call, f"optimizer/{kind}", optimizer._names(), leaves
                ).items()
            }

        self._matched(named(optimizer._arrays_for(call, settings)), "optimizer")

        def fill(arrays: dict[str, list[Array]]) -> None:
            fill_params()
            self._fill(named(arrays))

        return lambda: optimizer._take_over(call, settings, fill)

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

    def _refuse_settings(self) -> NoReturn:
        self.refuse("has settings that schuss.save does not write")


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


class _Decoder:
    """What stood for itself or for another value in JSON, from the innermost on."""

    def __init__(self, file: _safetensors.File) -> None:
        self._file = file
        self._made: dict[int, Any] = {}
        self.left = {name for name in file.tensors if name.startswith(_SETTINGS_ARRAYS)}

    def __call__(self, value: dict[str, Any]) -> Any:
        if _ARRAY in value:
            self.left.remove(value[_ARRAY])  # each is one, however often a file would name it
            return self._file.read(value[_ARRAY])
        if _FUNCTION in value:
            return _Function(value[_FUNCTION])
        if _SAME in value:
            return self._made[value[_SAME]]
        if _SCHEDULE in value:
            schedule = _schedule(value.pop(_SCHEDULE), value)
            self._made[value["number"]] = schedule
            return schedule
        return value


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


def _schedule(name: str, fields: dict[str, Any]) -> "Schedule":
    from schuss import schedules  # not with the library, which does without

    if name not in schedules.__all__:
        raise ValueError
    kind = getattr(schedules, name)
    known = dataclasses.fields(kind)
    schedule: Schedule = kind(**{field.name: fields[field.name] for field in known if field.init})
    for field in known:
        if not field.init:
            setattr(schedule, field.name, fields[field.name])
    return schedule


def _extra_as_json(call: str, extra: Mapping[str, Any] | None, encode: _Encoder) -> str:
    def encoded(value: Any) -> Any:
        if callable(value):
            raise TypeError(f"a {type(value).__name__}")
        return encode(value)

    extra = dict(extra or {})
    try:
        text = json.dumps(extra, default=encoded)
        _check_names(extra)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"{call}: extra holds {error}, expected what JSON can hold, and arrays of booleans, "
            "integers or floating point numbers of up to 64 bits in native byte order"
        ) from None
    return text


def _check_names(value: Any) -> None:
    """Raise TypeError for a key that would not come back, or as something else."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r}, which is no str")
            if key in (_SCHEDULE, _SAME, _FUNCTION, _ARRAY):
                raise TypeError(f"the key {key!r}, which schuss uses itself")
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            _check_names(each)


def _with_own_functions(
    call: str, settings: Any, optimizer: Optimizer, lr: "Rate | None"
) -> dict[str, Any]:
    """Return an optimizer's settings with its functions where such were saved."""

    def filled(saved: Any, own: "Rate | None") -> Any:
        if not isinstance(saved, dict) or not isinstance(saved.get("lr"), _Function):
            return saved
        if not callable(own):
            raise ValueError(
                f"{call}: lr is {own!r}, expected the function {saved['lr']!r} that it was when it "
                "was saved, as a file does not hold functions"
            )
        return saved | {"lr": own}

    groups = settings["groups"]
    if isinstance(groups, list) and len(groups) == len(optimizer._groups):
        groups = [
            group | {"hyperparameters": filled(group.get("hyperparameters"), own.get("lr"))}
            if isinstance(group, dict)
            else group
            for group, own in zip(groups, optimizer._groups, strict=True)
        ]
    own_of_all = optimizer._hyperparameters["lr"] if lr is None else lr
    hyperparameters = filled(settings["hyperparameters"], own_of_all)
    return {**settings, "hyperparameters": hyperparameters, "groups": groups}
