"""What the optimizers share: the step, the options of schuss and the state."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from schuss.torch._extras import Extras, checked, checked_formats, copies_for, write
from schuss.torch._formats import BITS, float32_value, memory_of
from schuss.torch._groups import RULES, nonnegative_states
from schuss.torch._loading import converting
from schuss.torch._step import AVERAGE, PRODUCT, Members, StepPlan
from schuss.torch._tensors import array_of, computed_dtype


class Fused(torch.optim.Optimizer):  # type: ignore[misc]  # Any, as mypy has no torch
    """The step that the optimizers share."""

    _rule: str  # the class of torch.optim
    _extras = Extras()
    _copies: dict[Any, Any] | None = None  # by parameter
    _plan: StepPlan | None = None  # that of the last step

    # GradScaler passes the scale only to the fused optimizers of torch itself.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_rule" not in vars(cls):  # a class of the user's
            return
        # For users: the signature of the class of torch.optim, and the options of schuss.
        theirs = inspect.signature(getattr(torch.optim, cls._rule))
        ours = inspect.signature(Fused.__init__).parameters
        added = [each for each in ours.values() if each.kind is each.KEYWORD_ONLY]
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *added])

    def __init__(
        self,
        params: Any,
        *args: Any,
        clip_norm: float | None = None,
        average: float | None = None,
        copies: Any = None,
        state_dtype: Any = None,
        master: Any = None,
        round_params: str = "nearest",
        **options: Any,
    ) -> None:
        call = type(self).__name__
        extras = Extras(**checked(call, {"clip_norm": clip_norm, "average": average}))
        super().__init__(params, *args, **options)
        formats = checked_formats(
            call,
            self._params(),
            state_dtype=state_dtype,
            master=master,
            round_params=round_params,
            copies=copies,
        )
        self._extras = replace(extras, formats=formats)
        self._copies = copies_for(call, copies, self._params())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Recomputes the loss and the gradients, and returns the loss.

        Returns
        -------
        float or torch.Tensor or None
            The value that `closure` returned.

        Raises
        ------
        TypeError
            If a parameter or a gradient is not float32, float64, float16 or bfloat16, or if a
            gradient has a dtype that does not go with that of its parameter.
        ValueError
            If one is not on the CPU or is sparse, if a gradient shares memory with a parameter, if
            a rate is not finite, if `capturable` or `differentiable` is set, or if dampening is
            used with Nesterov's momentum.

        Nothing is changed then. The exception is a gradient that is refused in a step that differs
        between parameters (`maximize` in one group only, or different numbers of steps): some may
        have been updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        call, groups = type(self).__name__, self.param_groups
        members, grads = self._members()
        if not grads:
            return loss
        arrays = [array_of(f"{call}.step", "gradient", grad) for grad in grads]
        plan, is_new = self._plan, False
        if plan is None or not plan.is_current(members, self.state) or not plan.sync_groups(groups):
            self._plan, is_new = None, True
            plan = StepPlan(call, self._rule, members, groups, self.state, self._extras)
            plan.sync_groups(groups)
        plan.step(grads, arrays, groups, self.state)
        # So that autograd refuses to use the old values.
        torch.autograd.graph.increment_version([*members.params, *(members.copies or ())])
        if is_new and plan.is_reusable:
            self._plan = plan
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters and of their copies.

        Parameters
        ----------
        set_to_none : bool
            False sets them to zero.
        """
        super().zero_grad(set_to_none)
        for copy in (self._copies or {}).values():
            if copy.grad is None:
                continue
            if set_to_none:
                copy.grad = None
            else:
                copy.grad.zero_()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            ``params`` and the options of the group.

        Raises
        ------
        TypeError, ValueError
            As `torch.optim.Optimizer.add_param_group`; if `state_dtype`, `master` or `round_params`
            does not go with a parameter; and if there are copies: they are those of the parameters
            that the optimizer was made with.
        """
        call = f"{type(self).__name__}.add_param_group"
        if self._copies is not None:
            raise ValueError(
                f"{call}: there are copies of the other parameters, "
                "expected none (make a new optimizer, and load the state of this one)"
            )
        super().add_param_group(param_group)
        try:
            checked_formats(call, self._params(), **vars(self._extras.formats))
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of that of `torch.optim`.

        Parameters
        ----------
        state_dict : dict
            The result of ``state_dict()``. States are converted to `state_dtype`, by rounding to
            nearest; 8 bits stay as they are. Averages are left out if this optimizer keeps none,
            and so are the bits that bfloat16 parameters miss of their masters.

        Raises
        ------
        ValueError
            If it is the state of other groups, or a state in 8 bits does not go with a parameter.
            Nothing is changed then.
        """
        hidden = {*RULES[self._rule].states.values(), AVERAGE, BITS}
        with converting(self, self._converted, hidden):
            super().load_state_dict(state_dict)

    def write_copies(self) -> None:
        """Write the parameters to `copies`, if there are any, after they were changed by hand."""
        write(self._copies or {})

    @property
    def clip_norm(self) -> float | None:
        """The largest norm of all gradients together; None if there is no limit."""
        return self._extras.clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._set("clip_norm", value)

    @property
    def average(self) -> Any:
        """The averages, in the order of the parameters; assign the decay rate.

        They are those in the state (a parameter that had no step yet is its own average), or None
        if there are none. None drops them; a rate after that begins new averages.
        """
        if self._extras.average is None:
            return None
        return [
            self.state.get(param, {}).get(AVERAGE, param.detach().to(computed_dtype(param)))
            for param in self._params()
        ]

    @average.setter
    def average(self, value: float | None) -> None:
        before = self._extras.average
        self._set("average", value)
        if before is None or value is None:
            self._drop_averages()

    @property
    def copies(self) -> list[Any] | None:
        """The low-precision copies, in the order of the parameters; None if there are none."""
        return None if self._copies is None else [self._copies[each] for each in self._params()]

    @property
    def state_dtype(self) -> Any:
        """The dtype of the state, or "8bit"; None if it is the dtype that is computed in."""
        return self._extras.formats.state_dtype

    @property
    def state_bytes(self) -> int:
        """The number of bytes of all states, and of the bits of masters, so far."""
        keys = (*RULES[self._rule].states.values(), BITS)
        given = (state.get(key) for state in self.state.values() for key in keys)
        return sum(memory_of(each).nbytes for each in given if each is not None)

    @property
    def master(self) -> list[Any] | None:
        """The float32 values of the parameters, in new tensors; None if there is no master."""
        if self._extras.formats.master is None:
            return None
        return [
            float32_value(param, self.state.get(param, {}).get(BITS)) for param in self._params()
        ]

    @property
    def round_params(self) -> str:
        """Whether bfloat16 parameters without a master are rounded to "nearest" or at "random"."""
        return self._extras.formats.round_params

    def _set(self, name: str, value: Any) -> None:
        self._extras = replace(self._extras, **checked(type(self).__name__, {name: value}))
        self._plan = None

    def _converted(self, param: Any, name: str, state: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of a state to load, in the formats of this optimizer."""
        formats, tensors = self._extras.formats, {}
        nonnegative = nonnegative_states(self._rule)
        given = {key: value for key, value in state.items() if value is not None}
        name = f"{type(self).__name__}.load_state_dict: {name}"
        for key in given.keys() & {*RULES[self._rule].states.values()}:
            is_nonnegative = key in nonnegative
            tensors[key] = formats.converted(
                f"{name}[{key!r}]", given[key], param, nonnegative=is_nonnegative, copy=True
            )
        others = {PRODUCT} if self._extras.average is None else {AVERAGE, PRODUCT}
        for key in given.keys() & others:
            tensors[key] = given[key].to(param.device, computed_dtype(param), copy=True)
        bits = formats.missing_bits(f"{name}[{BITS!r}]", given.get(BITS), param, copy=True)
        return tensors if bits is None else tensors | {BITS: bits}

    def _drop_averages(self) -> None:
        for state in self.state.values():
            state.pop(AVERAGE, None)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy needs."""
        own = {"_extras": self._extras, "_copies": self._copies}
        return {**super().__getstate__(), **own}

    def _members(self) -> tuple[Members, list[Any]]:
        """Return the parameters that have a gradient, or whose copy has one, and the gradients."""
        params, members, grads = [], [], []
        copies = self._copies
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                grad = param.grad
                if grad is None and copies is not None:
                    grad = copies[param].grad
                if grad is not None:
                    params.append(param)
                    members.append(index)
                    grads.append(grad)
        in_copies = None if copies is None else [copies[param] for param in params]
        return Members(params, members, in_copies), grads

    def _params(self) -> list[Any]:
        return [param for group in self.param_groups for param in group["params"]]
