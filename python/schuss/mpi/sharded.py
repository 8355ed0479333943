"""The sharded optimizer as users see it."""

import inspect
import os
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal, NoReturn, Self

from schuss._added_group import replace, with_group
from schuss._arrays import GradTree, parse_dtype
from schuss._errors import wrong_type
from schuss._groups import Params
from schuss._hyperparameters import POSITIVE, choice, count, flag
from schuss._optimizer import Optimizer, new_internals
from schuss._registry import register
from schuss._rules import has_state_by_row
from schuss.mpi import _state_dict
from schuss.mpi._agreement import agree_on
from schuss.mpi._exchange import BUCKET_BYTES
from schuss.mpi._internals import ShardedInternals
from schuss.mpi._ranks import Comm, Ranks
from schuss.mpi._shards import Shards, Sharing
from schuss.mpi._state_files import StateFiles

_CALL = "Sharded"
_TIMEOUT = 1800.0  # seconds


class Sharded(Optimizer):
    """One optimizer for many processes, which communicate by MPI.

    Each process, or rank, computes gradients of its own, as of its share of a mini-batch. A step
    takes their mean over the ranks. Each rank sums a part of the gradients, keeps the state of this
    part alone and steps it, and sends the stepped parameters to the others. So the state, and the
    time of a step without its communication, are divided by the number of ranks. The bytes
    that are sent are those of an all-reduce of the gradients.

    The object is an instance of `kind` too, with all its attributes and methods, and works with
    `schuss.fit`, `schuss.save` and `schuss.load`. All ranks make it, and make the same calls in the
    same order; see the notes.

    Parameters
    ----------
    kind : class
        The class of the optimizer, such as `schuss.AdamW`.
    params
        The parameters, in the same structure, shapes, dtypes and memory layouts on all ranks; see
        `schuss.optimizers.Options`. All ranks get the values of rank 0.
    lr
        The learning rate, or a schedule; the same on all ranks. See `schuss.optimizers.Options`.
    comm : communicator, optional
        A communicator of mpi4py, such as ``MPI.COMM_WORLD``, or another object with these of its
        methods: ``Get_rank``, ``Get_size``, ``Isend``, ``Irecv``, ``Iallreduce``, ``Iallgather``
        and ``Ireduce_scatter_block``. If it has ``Dup``, a duplicate is used, which all optimizers
        of a communicator of mpi4py share. Free the communicator after the last call of these. By
        default, there is one process, and no need for MPI.
    reduction : {"mean", "sum"}
        Whether a step takes the mean of the gradients of the ranks, or their sum.
    deterministic : bool
        Sum the gradients in the order of the ranks, so that the bits are the same with each MPI. Up
        to 8 ranks do so in any case; more are faster without.
    wire_dtype : {"float16", "bfloat16"}, optional
        Round gradients in float32 to this dtype before they are sent: half the bytes. They are
        summed in float32. By default, gradients are sent in the dtype of the parameters, or in 16
        bits if those of all ranks are.
    bucket_bytes : int
        The bytes of a rank's parameters that are exchanged, and stepped, at one time, while others
        are on their way. With more than 8 ranks, arrays pass through buffers. Then a rank takes
        fewer: all ranks together ``8 * bucket_bytes``, or 1/32 of the parameters if that is more,
        but each at least 64 KiB.
    check_params : bool
        Compare the parameters of the ranks, and raise ValueError if they differ, instead of copying
        those of rank 0.
    state_in : str or path, optional
        A folder in which this rank keeps its state, in place of memory; see the notes.
    timeout : float
        The seconds after which a rank that waits for others raises TimeoutError.
    **options
        The hyperparameters of `kind`, and the options that all optimizers share; see
        `schuss.optimizers.Options`. Schedules are called on each rank.

    Raises
    ------
    TypeError, ValueError
        As by `kind`; if an argument is out of range; if the ranks differ in the parameters or the
        arguments. All ranks raise the error of one, and no parameter has changed then. On the
        others, an error that cannot be pickled is a RuntimeError with its type and text.
    OSError
        If there is no space for the state in the folder `state_in`. If its disk fails in a step,
        the optimizer cannot be used any more, and the other ranks wait until they raise
        TimeoutError.
    TimeoutError
        If a rank waits too long for others, as where one has died. The optimizer cannot be used any
        more.

    Notes
    -----
    A step changes the parameters, bit for bit, as a step of one process with the summed gradients
    does, for each number of ranks. These calls are collective, which means that all ranks make
    them: the class itself, `step`, `add_group`, `state_dict`, `load_state_dict`, and reading
    `average` and `master`. If a rank fails in one of them, as by a gradient with a wrong shape or
    by a schedule that raises, all ranks raise the same error, and none has changed anything. If the
    ranks make different calls, all raise RuntimeError. All others, such as `accumulate` and
    ``optimizer.lr = 0.1``, concern one rank. A step raises ValueError on all ranks if their
    settings differ.

    `params` are the whole parameters. `state` has this rank's part: arrays with one axis, which may
    be empty. `average`, `master`, `copies` and `state_dict` are whole on each rank.

    What a rank changes in its parameters itself, the others do not learn: change them on all ranks
    alike. A parameter whose gradients are None on all ranks rests; otherwise, None stands for
    zeros.

    With `state_in`, a step reads the state from files once and writes it back once, in pieces: one
    thread reads ahead, another one writes behind. They use direct I/O where the file system has it,
    which leaves the page cache to others. A step takes about as long as the disk needs for that,
    and Ctrl-C waits for its end. It needs memory for 4 pieces, each of about 4 MiB of each state.
    States of less than 1 MiB stay in memory, and so do averages and masters. The space of the files
    is reserved, so that a step never finds the disk full. They have no name, and are gone when the
    optimizer or the process ends: `schuss.save` keeps the state. The folder should be on a local
    disk, and may differ from rank to rank. A forked child cannot step the optimizer.

    If a rank fails outside of these calls, the others would wait for it. Programs under
    ``python -m mpi4py`` end all ranks when one raises: ``mpiexec -n 4 python -m mpi4py train.py``.

    References
    ----------
    Rajbhandari, Rasley, Ruwase & He, "ZeRO: memory optimizations toward training trillion parameter
    models", 2020, section 5, for the division of the state.

    Examples
    --------
    Without MPI there is one process:

    >>> import numpy as np, schuss
    >>> from schuss.mpi import Sharded
    >>> params = {"W": np.ones((3, 2)), "b": np.zeros(2)}
    >>> opt = Sharded(schuss.Adam, params, lr=0.1)
    >>> opt.step({"W": np.ones((3, 2)), "b": np.ones(2)})
    >>> params["b"].round(6)
    array([-0.1, -0.1])
    >>> isinstance(opt, schuss.Adam), opt.state["m"]["W"].shape
    (True, (6,))

    A program for several: ``mpiexec -n 4 python -m mpi4py train.py`` ::

        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        opt = Sharded(schuss.Adam, params, comm, lr=0.1)
        rng = np.random.default_rng(comm.Get_rank())
        for _ in range(100):
            opt.step(gradients(params, rng))  # of examples of this rank
    """

    __slots__ = ()

    _internals: ShardedInternals

    def __new__(cls, kind: type[Optimizer], *_: Any, **__: Any) -> Self:
        """Return an object of a class that is both sharded and of that kind."""
        if not _is_kind(kind):  # `__init__` raises, on all ranks
            return super().__new__(cls)
        bases: Any = cls, kind
        made: type[Self] = _class_of(*bases)
        return super().__new__(made)

    def __init__(
        self,
        kind: type[Optimizer],
        params: Params,
        comm: Comm | None = None,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        deterministic: bool = False,
        wire_dtype: Any = None,
        bucket_bytes: int = BUCKET_BYTES,
        check_params: bool = False,
        state_in: str | os.PathLike[str] | None = None,
        timeout: float = _TIMEOUT,
        **options: Any,
    ) -> None:
        ranks = Ranks(comm, _TIMEOUT)
        internals, facts, error = None, {}, None
        try:
            if not _is_kind(kind):
                raise wrong_type(_CALL, "kind", kind, "a class of optimizers such as schuss.Adam")
            if has_state_by_row(kind):
                raise ValueError(
                    f"{_CALL}: kind is schuss.{kind.__name__}, expected one that keeps its state "
                    "for each element, such as schuss.Adagrad"
                )
            ranks.timeout = POSITIVE(_CALL, "timeout", timeout)
            sharing = Sharing(
                choice(_CALL, "reduction", reduction, among=("mean", "sum")),
                flag(_CALL, "deterministic", deterministic),
                _checked_wire_dtype(wire_dtype),
                count(_CALL, "bucket_bytes", bucket_bytes, least=1),
                flag(_CALL, "check_params", check_params),
            )
            files = None if state_in is None else StateFiles(_CALL, state_in)
            make = partial(ShardedInternals, divide=partial(Shards, ranks, sharing, files))
            internals = new_internals(kind, params, options, make=make)
            facts = internals.facts()
        except BaseException as raised:
            error = raised
        agree_on(ranks, _CALL, facts, error)
        assert internals is not None
        ranks.number()
        internals.equalize(_CALL)
        internals.shards.read_params()
        internals.restart()
        self._internals = internals
        register(internals)

    def step(
        self, grads: GradTree = None, *, scale: float = 1.0, weight: float | None = None
    ) -> None:
        """Update all parameters in place, with the gradients of all ranks. All ranks call this.

        Parameters
        ----------
        grads : array, or sequence, mapping or dataclass of arrays, optional
            This rank's gradients, as for `Optimizer.step`: in the structure of `params`, each with
            the shape of its parameter. They must not change during the call. None where this rank
            has none; a parameter rests if no rank has one. By default, those that `accumulate` has
            summed.
        scale : float
            The factor that the gradients are multiplied by; the same on all ranks.
        weight : float, optional
            The weight of this rank's gradients in the mean, such as the number of its examples; at
            least 0. Given by all ranks or by none. A rank with 0 contributes nothing: its gradients
            may be None, or not finite.

        Raises
        ------
        TypeError, ValueError, FloatingPointError, RuntimeError
            As `Optimizer.step`, on all ranks if on one; ValueError also if the ranks differ in the
            settings or in `scale`, or if all weights are 0. Nothing has changed then.
        TimeoutError
            If this rank waits too long for others. The optimizer cannot be used any more.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> from schuss.mpi import Sharded
        >>> w = np.array([1.0, 2.0])
        >>> opt = Sharded(schuss.SGD, w, lr=0.1)
        >>> opt.step(np.array([0.5, -0.5]), weight=64)
        >>> w
        array([0.95, 2.05])
        """
        self._internals.step(grads, scale, weight=weight)

    def add_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters. All ranks call this; see `Optimizer.add_group`.

        The parameters of the group are divided among all ranks.

        Parameters
        ----------
        group : dict
            ``params``, which become those of rank 0, and hyperparameters of the group.

        Raises
        ------
        TypeError, ValueError
            As `Optimizer.add_group`, on all ranks if on one; if the ranks differ. Nothing has
            changed then.
        """
        internals, call = self._internals, f"{self._internals.call}.add_group"
        ranks = internals.shards.ranks
        with internals.busy("add_group", changes=True), ranks.uninterrupted():
            grown, facts, error = None, {}, None
            try:
                grown = with_group(internals, call, group)
                facts = grown.facts()
            except BaseException as raised:
                error = raised
            agree_on(ranks, call, facts, error)
            assert grown is not None
            grown.equalize(call, len(internals.group_of))
            with ranks.together(call):  # once more: averages begin with the parameters of rank 0
                grown = with_group(internals, call, group)
            replace(internals, grown)

    def state_dict(self, *, root: int | None = None) -> Any:
        """Return a copy of what the optimizer knows but the parameters. All ranks call this.

        Parameters
        ----------
        root : int, optional
            The only rank that needs it. By default, all get it.

        Returns
        -------
        dict
            That of one process, with whole arrays; see `Optimizer.state_dict`. None on the ranks
            that do not need it. Gradients that wait for a step are what it would take: their mean
            over the ranks, or their sum.

        Raises
        ------
        ValueError
            If the ranks differ in the settings, or in the number of gradients that wait for a step.
        RuntimeError
            If another call of this optimizer is under way, on another thread.
        """
        return _state_dict.state_dict(self, root)

    def load_state_dict(
        self, state_dict: Mapping[str, Any] | None, *, root: int | None = None
    ) -> None:
        """Load what `state_dict` returned, on any number of ranks. All ranks call this.

        Parameters
        ----------
        state_dict : mapping
            That of a sharded optimizer, or of one that is not; see `Optimizer.load_state_dict`.
        root : int, optional
            The only rank whose `state_dict` counts. By default, each rank has it.

        Raises
        ------
        TypeError, ValueError
            As `Optimizer.load_state_dict`, on all ranks if on one; if the ranks differ. Nothing has
            changed then.
        """
        _state_dict.load_state_dict(self, state_dict, root)

    def __repr__(self) -> str:
        """Return the settings, a summary of the parameters, and which of the ranks this is."""
        ranks = self._internals.shards.ranks
        return f"{super().__repr__()[:-1]}; rank {ranks.rank} of {ranks.size}>"

    def __getstate__(self) -> NoReturn:
        """Raise TypeError: a part of an optimizer cannot be copied alone."""
        raise TypeError(
            f"{type(self).__name__}: it cannot be pickled or copied, as each rank has a part of "
            "it, expected state_dict() on all ranks, or schuss.save"
        )

    __copy__ = __getstate__


def _signature() -> inspect.Signature:
    """Return the signature of the class: that of `__new__` says less."""
    signature = inspect.signature(Sharded.__init__)
    _self, *parameters = signature.parameters.values()
    return signature.replace(parameters=parameters)


Sharded.__signature__ = _signature()  # type: ignore[attr-defined]


def _is_kind(kind: Any) -> bool:
    is_optimizer = isinstance(kind, type) and issubclass(kind, Optimizer)
    return is_optimizer and not issubclass(kind, Sharded)


def _checked_wire_dtype(wire_dtype: Any) -> Any:
    if wire_dtype is None:
        return None
    return parse_dtype(_CALL, "wire_dtype", wire_dtype, ("float16", "bfloat16"))


@cache
def _class_of(*bases: Any) -> Any:
    """Return the class that has these base classes."""
    return type("".join(base.__name__ for base in bases), bases, {"__slots__": ()})
