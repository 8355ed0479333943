"""The optimizer as users see it. `schuss.optimizers` declares the classes of optimizers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np

from schuss import _saved, _state_dict
from schuss._arrays import GradTree
from schuss._blocks import values_of
from schuss._by_rows import ByRows
from schuss._groups import Params, assign_groups, split_groups
from schuss._hyperparameters import FINITE
from schuss._internals import Internals
from schuss._registry import flush_rows, register
from schuss._settings import Configurable, checked_overrides, declaration_of
from schuss._state import StateDtype

_UNSCALED = 1.0
_Internals = TypeVar("_Internals", bound=Internals)


@dataclass(frozen=True, repr=False)
class Last:
    """The outcome of the last step."""

    grad_norm: float | None
    """The norm of all gradients together, scaled; None if no option needed it."""
    clipped: bool
    """Whether the norm was clipped."""
    skipped: bool
    """Whether the step was skipped, because a gradient was not finite."""
    update_norm: float | None = None
    """The norm of the change of all parameters together, 0 if it was skipped; see `track_norms`."""
    param_norm: float | None = None
    """The norm of all parameters together, before the step; see `track_norms`."""

    def __repr__(self) -> str:
        """Return the outcome without the norms that were not tracked."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.update_norm is None:
            del values["update_norm"], values["param_norm"]
        return f"Last({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def new_internals(
    kind: type[Configurable],
    params: Params,
    given: Mapping[str, Any],
    make: Callable[..., _Internals] = Internals,  # type: ignore[assignment]
) -> _Internals:
    """Return the internals of a new optimizer.

    given: the arguments besides the parameters, by name.
    """
    call = kind.__name__
    settings, fixed = declaration_of(kind).with_defaults(call, given)
    structure, items = split_groups(params)
    flush_rows(call, "params", structure)  # those that another optimizer has left behind
    return make(
        kind,
        structure,
        settings,
        grouping=partial(
            assign_groups,
            call=call,
            items=items,
            groups=fixed["groups"],
            check=partial(checked_overrides, kind),
        ),
        **{name: value for name, value in fixed.items() if name != "groups"},
        groups_given=None if items is None else params,
    )


class Optimizer(ByRows):
    """What all optimizers share. It is abstract: use a subclass, such as `Adam`.

    See `schuss.optimizers.Options` for the arguments that they share, and for the errors.
    """

    __slots__ = ()

    def __init__(self, params: Params, **given: Any) -> None:
        self._internals = new_internals(type(self), params, given)
        register(self._internals)

    @property
    def params(self) -> Any:
        """The parameters, in the structure in which they were given."""
        return self._internals.params

    @property
    def state(self) -> dict[str, Any]:
        """The state by name, each in the structure of `params`: views of the arrays in use.

        State in 8 bits is decoded into new arrays in float32, which are read-only.
        `load_state_dict` changes it. Steps with gradients of `schuss.Rows` leave rows behind in the
        views, until `state` is read again or `flush` is called.
        """
        internals = self._internals
        internals.flush("state")
        if self.state_dtype == "8bit":
            with internals.busy("state"):
                params = internals.arrays
                states = {
                    name: list(map(values_of, arrays, params))
                    for name, arrays in internals.states.items()
                }
        else:
            # Views: a user who resizes, freezes or reshapes them does not change the originals.
            states = {
                name: [array[...] for array in arrays] for name, arrays in internals.states.items()
            }
        return {name: internals.core.tree.unflatten(arrays) for name, arrays in states.items()}

    @property
    def state_bytes(self) -> int:
        """The memory of `state` and of what `master` keeps, in bytes."""
        internals = self._internals
        masters = [array for array in internals.masters or [] if array is not None]
        return sum(array.nbytes for array in chain(masters, *internals.states.values()))

    @property
    def master(self) -> Any:
        """The values of the parameters with their masters, in new arrays in float32.

        They are in the structure of `params`. None if there are no masters.
        """
        internals = self._internals
        return None if internals.masters is None else internals.values()

    @property
    def steps(self) -> int:
        """The number of steps made: t of the last one."""
        return self._internals.core.steps

    @property
    def copies(self) -> Any:
        """The low-precision copies, in the structure of `params`; None if there are none.

        The steps of this optimizer write them, and so do `load` and `fit`. If you change parameters
        in another way (in place, by `kernels`, by another optimizer), call `write_copies`.
        """
        self._internals.flush("copies")
        return self._internals.users_copies()

    @property
    def state_dtype(self) -> StateDtype:
        """The dtype of the state, or "8bit"; None if it is the dtype that is computed in."""
        return self._internals.format.dtype

    @property
    def round_params(self) -> str:
        """How parameters in bfloat16 are rounded; see `schuss.optimizers.Options`."""
        return self._internals.rounding.round_params

    @property
    def complex(self) -> str:
        """What the second moment of complex parameters is; see `schuss.optimizers.Options`."""
        return self._internals.format.complex

    @property
    def accumulated(self) -> int:
        """The number of gradients that wait for the next step."""
        return self._internals.whole.accumulated

    @property
    def lr_now(self) -> float:
        """The learning rate in use: that of the last step, or before any, that of the first step.

        It is the rate of the groups that have no `lr` of their own, or, if each has its own, that
        of the first group. Each group has an `lr_now` too: ``opt.param_groups[1].lr_now``. A new
        `lr` is in use as soon as it is set or loaded: `lr_now` of a schedule that has made no step
        is its value at `steps`.
        """
        return self._internals.lr_now()

    @property
    def last(self) -> Last | None:
        """The outcome of the last step; None before the first."""
        outcome = self._internals.core.last
        return None if outcome is None else Last(*outcome)

    @property
    def skipped(self) -> int:
        """The number of steps that were skipped, because a gradient was not finite.

        It is saved and loaded with the rest.
        """
        return self._internals.core.skipped

    def write_copies(self) -> None:
        """Write the parameters to `copies`, if there are any, after they were changed by hand.

        Raises
        ------
        ValueError
            If a copy has become read-only or was resized; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> w = np.zeros(2, np.float32)
        >>> opt = schuss.SGD(w, copies="float16")
        >>> w[:] = [1, 2]
        >>> opt.write_copies()
        >>> opt.copies
        array([1., 2.], dtype=float16)
        """
        with self._internals.up_to_date("write_copies", changes=True):
            self._internals.check_copies(f"{type(self).__name__}.write_copies")
            self._internals.write_copies()

    def accumulate(
        self, grads: GradTree, *, scale: float = 1.0, overwrite_grads: bool = False
    ) -> None:
        """Add gradients to those that the next step without gradients takes.

        Parameters
        ----------
        grads : array, or sequence, mapping or dataclass of arrays
            As for `step`; summed in the dtype that the step computes in. They are only read, unless
            `clear_grads` is set. None adds nothing: a parameter without any gradient rests in the
            step.
        scale : float
            The factor that they are multiplied by as they are read.
        overwrite_grads : bool
            Whether the first gradient of each parameter becomes the sum: it is not copied, and the
            later ones are added to it in place, as PyTorch does in ``param.grad``. So it must be a
            writeable array in the dtype of the sum (that of the parameter; float32 for float16 and
            bfloat16), in any memory layout. Until the step, its memory, shape and dtype must stay,
            and later gradients must be in other memory. It holds the sum then, or zeros if
            `clear_grads` is set. Gradients of parameters that have a sum already are only read, and
            those of some rows are copied.

        Raises
        ------
        TypeError, ValueError
            As `step`; if `overwrite_grads` is set and a first gradient cannot become the sum; if a
            gradient shares memory with a sum; if an array that became a sum was resized, reshaped
            or made read-only since (`zero_grad` drops the sums). Nothing is changed then.
        RuntimeError
            If a step from the sum, or another accumulation, is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> w = np.zeros(2)
        >>> opt = schuss.SGD(w, lr=1.0)
        >>> for grad in (np.array([1.0, 2.0]), np.array([3.0, 4.0])):
        ...     opt.accumulate(grad)
        >>> opt.step(scale=1 / opt.accumulated)
        >>> w
        array([-2., -3.])

        Without a copy, in the memory of the first gradient:

        >>> total = np.array([1.0, 2.0])
        >>> opt.accumulate(total, overwrite_grads=True)
        >>> opt.accumulate(np.array([3.0, 4.0]))
        >>> total
        array([4., 6.])
        >>> opt.step()
        >>> w
        array([-6., -9.])
        """
        self._internals.accumulate(grads, scale, overwrite_grads=overwrite_grads)

    def zero_grad(self) -> None:
        """Drop the gradients that were accumulated."""
        with self._internals.busy("zero_grad"):
            self._internals.whole.clear_accumulated()

    def step(self, grads: GradTree = None, *, scale: float = _UNSCALED) -> None:
        """Update all parameters in place, in one pass over memory.

        With `clip_norm` or `nonfinite`, a pass over the gradients comes first.

        Parameters
        ----------
        grads : array, or sequence, mapping or dataclass of arrays, optional
            The gradients in the structure of `params`, each with the shape of its parameter, in
            any memory layout. Each is float32, float16 or bfloat16, which are widened as they are
            read, or has the dtype of its parameter; those of complex parameters are complex. For
            parameters without axes, they may be Python and NumPy numbers. They are only read,
            unless `clear_grads` is set. None in place of a gradient, or of a container of some:
            those parameters rest. `schuss.Rows`, sparse tensors of PyTorch and sparse arrays of
            SciPy are gradients of some rows. By default, the gradients that `accumulate` has
            summed, which are used up by the step.
        scale : float
            The factor that the gradients are multiplied by as they are read, before anything else:
            one over the scale of the loss, the number of summed gradients, or that of workers.

        Raises
        ------
        TypeError
            If a gradient is not an array, its dtype does not go with that of its parameter, or the
            schedule does not return a number.
        ValueError
            If there are both `grads` and accumulated gradients, or neither; if the structure or a
            shape is not that of `params`; if a gradient shares memory with a parameter or with
            state; if a parameter has become read-only, was resized, or was replaced in the
            structure that holds it, or an array was added there; if the schedule returns an invalid
            rate.
        FloatingPointError
            If a gradient has a NaN or an infinity, and `nonfinite` is "raise".
        RuntimeError
            If a step of this optimizer is under way.

        Nothing is changed by a call that raises.

        Notes
        -----
        As in PyTorch, a step changes neither a parameter that rests nor its state, and does not
        decay it. Only its average follows it. The norm is that of the other gradients. The step
        counts in `steps` and for schedules, even if all parameters rest. The bias correction
        counts, for each group of parameters, the steps in which one of them moved; PyTorch counts
        for each parameter. So a group that is frozen for a while continues as if there had been no
        steps meanwhile. But where the first gradient of a parameter comes late, in a group that has
        moved without it, the first steps of `Adam` change that parameter more than those of
        PyTorch do: after 1,000 steps with ``lr=0.1``, by 0.25 where PyTorch changes it by 0.1. A
        group of its own gives the parameter its own bias correction.
        """
        internals = self._internals
        settings, lrs = internals.constant_lrs
        if settings is not internals.settings or grads is None:
            internals.step(grads, scale)
            return
        # The fast path: steps of few elements take little more than this call.
        if scale is not _UNSCALED:
            scale = FINITE(f"{type(self).__name__}.step", "scale", scale)
        internals.core.step(grads, lrs, scale)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what the optimizer knows, except for the parameters.

        Returns
        -------
        dict
            ``optimizer`` (the name of the class), ``steps``, ``hyperparameters`` (with a copy of a
            schedule), ``groups`` (the own hyperparameters of each, and the indices of its
            parameters), ``state`` (a copy of each array), ``average`` (the weights of the averages
            and a copy of each; or None), ``accumulated`` (the number of summed gradients and a copy
            of the sums; or None), ``skipped``, ``master`` (a copy of the missing bits of each
            parameter; or None) and ``blocks``. The `copies` are not in it.

            State in 8 bits is in structured arrays of ``scale`` and ``codes``, an item for each
            block. ``blocks`` has their code, the number of elements of one, and the order in which
            the elements of each parameter lie in memory: its axes from the slowest to the fastest,
            as ``~axis`` where it runs backwards.

        Raises
        ------
        ValueError
            If gradients of some rows are accumulated, and `rows` is "lazy".
        RuntimeError
            If a step of this optimizer is under way, on another thread.
        """
        return _state_dict.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned: counts, hyperparameters, and the values of arrays.

        The parameters stay, and the `copies` are rewritten from them.

        Parameters
        ----------
        state_dict : mapping
            With all keys that `state_dict` has: arrays in the shapes of the parameters, and in the
            dtypes of the state. State in 8 bits can be loaded into state in float32. The other way
            round, it is rounded to nearest: values that were state in 8 bits stay the same.
            Without ``master``, the parameters are taken for the exact values.

        Raises
        ------
        TypeError, ValueError
            If it is not the state of an optimizer of this class for parameters of this structure,
            these shapes and dtypes; nothing is changed then.
        RuntimeError
            If a step of this optimizer is under way.
        """
        _state_dict.load_state_dict(self, state_dict)

    def __repr__(self) -> str:
        """Return the settings in use, and a summary of the parameters."""
        internals, arrays = self._internals, self._internals.arrays
        known = declaration_of(type(self)).settings
        settings = [
            f"{name}={internals.setting(name)!r}"
            for name, setting in known.items()
            if internals.uses(name)
            and not (setting.is_option and internals.setting(name) == setting.default)
        ]
        for argument in declaration_of(type(self)).fixed:
            value = internals.formats.get(argument.name, argument.default)
            if value != argument.default:
                text = value.name if isinstance(value, np.dtype) else repr(value)
                settings.append(f"{argument.name}={text}")
        if len(internals.groups) > 1:
            settings.append(f"{len(internals.groups)} groups")
        dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
        return (
            f"<{type(self).__name__}({', '.join(settings)}): {len(arrays)} "
            f"array{'s' * (len(arrays) != 1)}, {sum(array.size for array in arrays):,} elements, "
            f"{dtypes}; {self.steps:,} step{'s' * (self.steps != 1)} made>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs, attributes of a subclass included.

        Raises
        ------
        ValueError
            If gradients of some rows are accumulated, and `rows` is "lazy".
        RuntimeError
            If a step of this optimizer is under way, on another thread.
        """
        with self._internals.being_saved("__getstate__") as behind:
            # Arrays are copied: a pickle may be written after further steps.
            return _saved.pickled(self, copy_arrays=True, behind=behind)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the optimizer around the parameters of the pickle or the copy."""
        self._internals = _saved.unpickled(type(self), state)
        _saved.restore_pickled(self, state)
        register(self._internals)
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    def __copy__(self) -> Self:
        """Return an optimizer of the same parameters, with its own copy of the state."""
        other = type(self).__new__(type(self))
        with self._internals.being_saved("__copy__"):
            other.__setstate__(_saved.pickled(self, copy_arrays=False))
        return other
