from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._arrays import ArrayLike, ArrayTree, GradTree

__version__: str
max_threads: int

def simd() -> str: ...
def set_simd(level: str) -> None: ...
def available_simd() -> list[str]: ...
def workers() -> int: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> int: ...
def find_openblas() -> list[tuple[str, str, str, bool]]: ...
def serve_openblas(path: str, serve: bool) -> bool: ...

class subnormals_are_zero:
    def __init__(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

class BusyGuard:
    """Within it, no other call uses the optimizer: RuntimeError for the second one."""

    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

class Tree:
    """The structure that holds arrays: one array, or sequences, mappings and fields, nested.

    `call` and `argument` are its names in messages. `kept`: the arrays will be written, so
    ValueError if the structure returns new ones at each access.
    """

    def __init__(
        self, structure: ArrayTree, call: str, argument: str, kept: bool = False
    ) -> None: ...
    @property
    def leaves(self) -> list[Any]:
        """The arrays as they were given, in order."""

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """New arrays of the leaves' memory."""

    @property
    def names(self) -> list[str]:
        """The keys on the way to each leaf, joined by "/": "layers/0/W"."""

    def flatten(self, other: GradTree, call: str, argument: str) -> list[Any]:
        """Return the leaves of another structure, or raise ValueError if its form differs.

        It may have None in place of arrays and containers.
        """

    def flatten_arrays(
        self,
        other: GradTree,
        call: str,
        argument: str,
        like: list[npt.NDArray[Any]] | None = None,
        like_name: str = "",
        gaps: bool = False,
    ) -> list[Any]:
        """Return new arrays of those leaves' memory.

        Each must have the dtype and shape of its array in `like`, called `like_name` in messages.
        `gaps`: whether leaves may be None.
        """

    def unflatten(self, leaves: list[Any]) -> Any:
        """Return the leaves in the form of the structure.

        It has dicts, lists and tuples, and shallow copies of objects with fields.
        """

class Rows:
    """A gradient that is zero but for some rows: ``values[i]`` is added to row ``indices[i]``.

    `indices` is an int32 or int64 array with one axis, and `values` an array with a row for each
    index. Both are kept, not copied, and each step reads them again. `length` is the number of rows
    of the whole gradient, which each step compares with the parameter's; None if it is not known.
    """

    def __init__(
        self, indices: ArrayLike, values: ArrayLike, length: int | None = None
    ) -> None: ...
    def __len__(self) -> int:
        """Return the number of indices."""

    @property
    def indices(self) -> npt.NDArray[Any]:
        """The array that was given, or that the object given exported."""

    @property
    def values(self) -> npt.NDArray[Any]:
        """The same for the values."""

    @property
    def length(self) -> int | None: ...

def set_sparse_reader(reader: Callable[[Any, str], Rows | None]) -> None:
    """Set the function that makes rows of sparse arrays of other libraries.

    It is called for gradients that are neither arrays nor export one, and for sums of gradients
    that are no NumPy arrays. It returns None for what it does not know.
    """

class Formula:
    """A rule with the values of its hyperparameters.

    `per_step` is the rule's first hyperparameter, which each step sets: lr, or the beta of an
    average. `values` has the others by name; other keys are ignored. `decay` is "coupled"
    or "decoupled"; a weight decay of 0 is always decoupled. `row_rule` is the rule of rows of
    several elements; "" if the rule keeps its states for each element.
    """

    def __init__(
        self,
        rule: str,
        values: Mapping[str, Any] = {},
        per_step: float = 0.0,
        decay: str = "decoupled",
        weight_decay: float = 0.0,
        maximize: bool = False,
        bounds: tuple[float | None, float | None] | None = None,
        row_rule: str = "",
    ) -> None: ...
    @property
    def per_step(self) -> float: ...

class StepOptions:
    """What a step does besides its rule: see `schuss.optimizers.Options`."""

    def __init__(
        self,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite: str = "propagate",
        clear_grads: bool = False,
        average: float | None = None,
        average_bias_correction: bool = False,
        seed: int = 0,
        track_norms: bool = False,
    ) -> None: ...

class AuxArrays:
    """The arrays that belong to parameters: each list has one array for each parameter.

    8-bit states are arrays of blocks: ``[("scale", "f4"), ("codes", "i1", (128,))]``, or "u1" for
    states that are never negative, one for each 128 elements in the order of the parameter's
    memory. All states of a parameter have the same number format. `masters` are the bits that
    bfloat16 parameters lack, int16 or int8 arrays; None for parameters that have none.
    """

    def __init__(
        self,
        states: Mapping[str, Sequence[Any]],
        averages: Sequence[Any] | None = None,
        copies: Sequence[Any] | None = None,
        masters: Sequence[Any] | None = None,
    ) -> None: ...

class Optimizer:
    """Parameters in the user's structure, the arrays that belong to them, and the steps made.

    `step`, `params` and `grads` are what messages call the method and its arguments.
    `round_at_random`: whether bfloat16 parameters without a master are rounded at random.
    `first` has the index of each parameter's first element among all elements, two for each complex
    number, of which these parameters may be a part: random rounding depends on it. Without `first`,
    the parameters follow each other. `rows`: whether gradients may be `Rows`, and what becomes of
    the rows that those do not have: "exact", they are stepped with a gradient of zero, if later;
    "lazy", they rest; "none", such gradients are refused.
    """

    def __init__(
        self,
        call: str,
        parameters: ArrayTree,
        step: str = "step",
        params: str = "params",
        grads: str = "grads",
        round_at_random: bool = False,
        first: Sequence[int] | None = None,
        rows: str = "none",
    ) -> None: ...
    @property
    def tree(self) -> Tree:
        """The structure of the parameters."""

    @property
    def users_arrays(self) -> list[npt.NDArray[Any]]:
        """The users' own parameters, or the arrays that other objects exported."""

    @property
    def users_copies(self) -> list[npt.NDArray[Any]]:
        """The same for the copies."""

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """New arrays of the parameters' memory; ValueError if a parameter has other memory now."""

    @property
    def copies(self) -> list[npt.NDArray[Any]]:
        """The same for the copies."""

    @property
    def values(self) -> list[npt.NDArray[Any]]:
        """New arrays of the parameters in their compute dtypes.

        Those of parameters with a master have all bits of float32.
        """

    def hold_groups(self, groups: Sequence[Any]) -> None:
        """Compare these groups before each step, in place of the structure of the parameters."""

    def hold_copies(self, copies: ArrayTree, call: str) -> list[ArrayLike]:
        """Return the leaves of the copies, whose structure each step compares from now on."""

    def configure(
        self,
        formulas: list[Formula],
        members: list[int],
        options: StepOptions,
        arrays: AuxArrays | None = None,
        frozen: Sequence[int] = (),
    ) -> None:
        """Set what the next steps do: all or nothing, also where memory runs out.

        `members` has the group of each parameter, by its index in `formulas`. `arrays` replace
        those that belong to the parameters; None keeps them. The averages are empty if they are
        others than before. The parameters of the groups `frozen` rest.
        """

    def busy(self, call: str, changes: bool = False) -> BusyGuard:
        """Return a context within which no other call uses the optimizer.

        `changes`: whether the caller changes it otherwise than by a step. A child that is forked
        meanwhile by another thread then refuses the optimizer.
        """

    def retire(self) -> None:
        """Refuse all further calls: another optimizer has taken over the arrays."""

    @property
    def steps(self) -> int: ...
    @steps.setter
    def steps(self, arg1: int, /) -> None: ...
    @property
    def rested(self) -> list[int]:
        """For each group, the number of steps in which all its parameters rested."""

    @rested.setter
    def rested(self, arg1: Sequence[int], /) -> None: ...
    @property
    def skipped(self) -> int: ...
    @skipped.setter
    def skipped(self, arg1: int, /) -> None: ...
    @property
    def last(self) -> tuple[float | None, bool, bool, float | None, float | None] | None:
        """The norm of the last step's gradients, whether they were clipped, whether it skipped.

        Then the norms of the update, and of the parameters before it.
        """

    @property
    def norm_parts(self) -> npt.NDArray[np.uint64]:
        """The exact norms of the last step's update and parameters, as integers.

        ValueError unless that step measured norms. The parts of optimizers with other parameters
        can be added, those of up to 2**20: the sum has the norms of all.
        """

    def set_norms(self, parts: npt.NDArray[np.uint64]) -> None:
        """Set both norms of `last` from the sum of such parts."""

    def keep_last_of(self, other: Optimizer) -> None:
        """Make `last` that of another optimizer."""

    @property
    def last_lrs(self) -> list[float] | None:
        """The learning rate of each group in the last step.

        None before any step, and after `forget_lrs` until the next step.
        """

    @property
    def lr_version(self) -> int:
        """Counts the calls of `forget_lrs`."""

    def forget_lrs(self) -> None:
        """Make `last_lrs` None: the learning rates have changed."""

    def check_lrs(self, lrs: float | tuple[float, ...]) -> None:
        """Raise ValueError unless a step can be made with these learning rates."""

    @property
    def pending(self) -> list[int]:
        """The parameters of which rows may have missed steps that they must still make."""

    def flush(self) -> None:
        """Bring all rows up to date. The caller has made the optimizer busy."""

    def rows(self, indices: Any, call: str) -> Any:
        """Bring rows up to date, and return them in new arrays: ``param[indices]``.

        `indices` are int32 or int64 arrays of any shape, in the structure of the parameters; None
        for parameters of which no rows are returned. `call` is what messages call the caller.
        """

    def check_source(self, grads: GradTree) -> None:
        """Raise ValueError unless there are either these gradients or accumulated ones."""

    def read(self, grads: GradTree, call: str) -> list[npt.NDArray[Any] | None]:
        """Check gradients as `step` does, or (None) the accumulated ones, and change nothing.

        Return new arrays of their memory, in their own dtypes and layouts; None for parameters
        without a gradient. `call` is what messages call the caller.
        """

    def check_params(self, call: str) -> None:
        """Raise ValueError if parameters or copies were replaced."""

    def step(
        self,
        grads: GradTree,
        lrs: float | tuple[float, ...],
        scale: float = 1.0,
        expected_step: int = 0,
        skip_nonfinite: bool = False,
        lr_version: int | None = None,
        statistics: tuple[float, int, int] | None = None,
        ends: Sequence[int] | None = None,
        begin: Callable[[int], Sequence[npt.NDArray[Any]] | None] | None = None,
        /,
    ) -> None:
        """Make a step with these gradients, or (None) with the accumulated ones.

        `lrs` has one learning rate, or one for each group. They were computed for `expected_step`
        (RuntimeError if another thread has made it; 0 if they are those of every step), when
        `lr_version` was that: if it has changed since, `last_lrs` stays None.

        `statistics` is ``(digits, power, first)``: the norm of all gradients, which are not scaled,
        is ``digits * 2**-power``, and `first` is the index of the first parameter whose gradient is
        not finite, or -1. They replace those of these gradients, which may be a part of all, where
        an option needs statistics.

        With `ends`, the step is made in pieces: piece k has the elements up to ``ends[k]``, counted
        over all parameters one after another (a complex number is one element). Each end is a
        multiple of 4,096 elements from the beginning of a parameter, or the end of one; the last is
        the number of elements. All arrays must be contiguous with one axis (ValueError).
        ``begin(k)`` is called before piece k is read or written, and ``begin(len(ends))`` at the
        end, before the step is counted. A step that is skipped or refused calls nothing. Where a
        piece lies within one parameter, `begin` may return its states: contiguous arrays in their
        order, with the items of the piece alone, used in place of the parameter's own until the
        next call. They must not share memory with other arrays of the step. If `begin` raises, the
        exception goes on: the pieces before are updated, and the step is not counted.
        """

    @property
    def has_sums(self) -> bool:
        """Whether the optimizer has arrays of its own for accumulated gradients."""

    def hold_sums(self, sums: list[npt.NDArray[Any]]) -> None:
        """Accumulate gradients in these arrays, one for each parameter, unless there are some."""

    def take_sums(self, sums: list[npt.NDArray[Any]], other: Optimizer) -> None:
        """Use the sums that another optimizer has accumulated, and further ones."""

    @property
    def sums(self) -> list[npt.NDArray[Any] | None]:
        """New arrays of the sums' memory; None for parameters without a sum.

        Those of sums of `Rows` have their values, zero elsewhere.
        """

    @property
    def without_sum(self) -> list[int]:
        """The parameters of which no gradient was accumulated, if some of others were."""

    @without_sum.setter
    def without_sum(self, arg1: Sequence[int], /) -> None: ...
    def accumulate(
        self,
        grads: GradTree,
        scale: float,
        overwrite_grads: bool,
        new_sums: Callable[[], list[npt.NDArray[Any]]],
    ) -> None:
        """Add gradients to the sums.

        `overwrite_grads`: whether first gradients become the sums; otherwise they are copied, as
        `Rows` always are.
        `new_sums` is called for arrays of the optimizer's own, where there are none yet.
        """

    @property
    def accumulated(self) -> int:
        """The number of gradients in the sums. Set it after values were written to `sums`."""

    @accumulated.setter
    def accumulated(self, arg1: int, /) -> None: ...
    def clear_accumulated(self) -> None: ...
    def average(self) -> Any:
        """Return the averages in the structure of the parameters, or None if there are none.

        They are views of the arrays, or new arrays if the bias is corrected.
        """

    @property
    def average_weights(self) -> tuple[float, float]:
        """The sum of the averages' weights, as float32 and as float64 round it."""

    @average_weights.setter
    def average_weights(self, arg1: tuple[float, float], /) -> None: ...
    def check_copies(self, call: str) -> None:
        """Raise ValueError unless the copies can be written."""

class MemoryOrder:
    """The elements of a parameter in the order of its memory, the fastest axis last.

    The methods take arrays of its shape, of any dtype with 1, 2, 4, 8 or 16 bytes.
    """

    def __init__(self, param: ArrayLike) -> None: ...
    def flat(self, array: ArrayLike) -> npt.NDArray[Any] | None:
        """Return a view, with one axis, of an array whose elements lie dense in this order.

        None if they do not, or if the array is not aligned.
        """

    def gather(self, array: ArrayLike, begin: int, out: npt.NDArray[Any]) -> None:
        """Copy elements of an array from `begin` on, in this order, to `out`."""

    def scatter(self, values: npt.NDArray[Any], begin: int, array: ArrayLike) -> None:
        """Copy values to the elements of an array from `begin` on."""

def convert(source: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Convert elements, rounded to nearest; both are contiguous with one axis.

    From 16 bits to 32 or 64, from 32 to 16 or 64, from 64 to 32. Subnormal numbers are kept.
    """

def add(
    arrays: Sequence[npt.NDArray[Any]],
    out: npt.NDArray[Any],
    weights: Sequence[float] | None = None,
) -> None:
    """Write the sum of arrays, ``((w0*a0) + w1*a1) + ...``, in one pass over memory.

    Each weight, product and sum is rounded to the dtype of `out`, which is float32, float64 or
    complex; subnormal numbers count as zero: the bits of ``accumulate(a0, scale=w0)`` and so on.
    All are contiguous with one axis. The arrays have the dtype of `out`, or float16 or bfloat16
    where that is real. `out` may be one of them.
    """

def square_sums(
    arrays: Sequence[npt.NDArray[Any]], power: int = 0
) -> tuple[npt.NDArray[np.float64], int]:
    """Return sums of squares, and the index of the first array that is not finite, or -1.

    Each sum is of 4,096 components of all arrays one after another, multiplied by ``2**power``;
    the last one may have fewer. Subnormal numbers count as zero. Summed in pairs, pairs of pairs
    and so on, they are the square of the norm that a step computes. It takes `power` 0, and with
    float64 arrays 600 if the sum is below ``2**-900``, or -600 if it overflows.
    """

def update(
    call: str,
    formula: Formula,
    t: int,
    scale: float,
    clip_value: float,
    param: ArrayLike,
    grad: ArrayLike,
    *states: ArrayLike,
) -> None: ...
def update_small(
    rule: str,
    values: dict[str, Any],
    decoupled: bool,
    step: int | None,
    scale: float,
    clip_value: float | None,
    arrays: tuple[ArrayLike, ...],
    /,
) -> bool:
    """Make a step of a small array if no argument needs a conversion, and return whether it did.

    Otherwise nothing is changed or raised. Hyperparameters are floats in [0, 1); `arrays` (the
    parameter, its gradient, the states) are contiguous, and all are float32 or all float64.
    """

def bfloat16_dtype(call: str, argument: str) -> np.dtype[Any]: ...
def held(array: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
def copy_bytes(targets: list[npt.NDArray[Any]], sources: list[npt.NDArray[Any]]) -> None: ...
def states(rule: str) -> list[str]: ...
def nonnegative_states(rule: str) -> list[str]: ...
def set_tile_elements(elements: int) -> int: ...
def set_parallel_threshold(nanoseconds: float) -> float: ...
def set_sharing_threshold(bytes: int) -> int: ...
def set_cache_size(bytes: int) -> int: ...
def multiply_for_roots(multiply: bool) -> bool: ...
def memory_floor(
    repeats: int,
    threads: int,
    param: npt.NDArray[np.float32 | np.float64],
    grad: npt.NDArray[np.float32 | np.float64],
    *states: npt.NDArray[np.float32 | np.float64],
) -> None: ...
def memory_floor_of_rows(
    threads: int,
    rows: npt.NDArray[np.int64],
    param: npt.NDArray[np.float32 | np.float64],
    grad: npt.NDArray[np.float32 | np.float64],
    *states: npt.NDArray[np.float32 | np.float64],
) -> None: ...
def ewma(
    values: npt.NDArray[Any],
    out: npt.NDArray[Any],
    axis: int,
    beta: float,
    bias_correction: bool,
) -> None: ...
def weight_of(gain: float, t: int) -> float: ...
def shuffled(count: int, seed: int) -> npt.NDArray[np.int64]: ...
def gather(
    array: npt.NDArray[Any], indices: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None: ...
