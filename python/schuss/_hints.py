"""What arguments of other libraries are called here."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral
from re import findall
from typing import Any, ParamSpec, TypeAlias, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

Hints: TypeAlias = Mapping[str, tuple[str, ...]]
"""By the name of an argument, what to write: the first hint whose arguments the call has."""

_MOMENTUM = "schuss.Momentum(params, lr, beta=...)"

# ``name=`` is an argument of the same class, ``name=...`` one of another.
OF_OPTIMIZERS: Hints = {
    "alpha": ("lr=, or beta= of RMSprop", "lr="),
    "beta_1": ("beta1=",),
    "beta_2": ("beta2=",),
    "betas": ("beta1= and beta2=",),
    "decay": ("a schedule as lr=, or weight_decay=",),
    "epsilon": ("eps=",),
    "learning_rate": ("lr=",),
    "momentum": ("beta=", "beta1=", _MOMENTUM),
    "nesterov": ("schuss.NAdam, which has beta1= and beta2= too", _MOMENTUM),
    "rho": ("beta=",),
    "step_size": ("lr=",),
}
OF_BATCHES: Hints = dict.fromkeys(("generator", "random_state", "seed"), ("rng=",))


def plain(value: Any) -> Any:
    """Return an integer of NumPy as Python's, whose repr is what a user writes."""
    return int(value) if isinstance(value, Integral) else value


def unexpected(call: str, name: str, known: Collection[str], hints: Hints) -> TypeError:
    """Return the error for a keyword argument that a call does not have."""
    fitting = (
        f" (write {hint})"
        for hint in hints.get(name, ())
        if all(each in known for each in findall(r"(\w+)=(?!\.)", hint))
    )
    return TypeError(
        f"{call}: got an unexpected keyword argument {name!r}, expected one of "
        f"{', '.join(known)}{next(fitting, '')}"
    )


def comes_from(package: str, value: object) -> bool:
    """Return whether a class of an object is of a package, which is not imported for that."""
    return any(f"{kind.__module__}.".startswith(f"{package}.") for kind in type(value).__mro__)


def with_hints(hints: Hints, first_keyword: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Return a decorator whose functions explain arguments that they do not have.

    first_keyword: the argument for which a user may take the first positional one too many.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        call, parameters = function.__name__, signature(function).parameters
        positional = [
            name for name, each in parameters.items() if each.kind is not Parameter.KEYWORD_ONLY
        ]

        @wraps(function)
        def checked(*args: _P.args, **given: _P.kwargs) -> _T:
            if len(args) > len(positional):
                value: Any = args[len(positional)]
                is_size = isinstance(value, Integral | str)
                remedy = f" (or write {first_keyword}={plain(value)!r})" if is_size else ""
                raise TypeError(
                    f"{call}: got {len(args)} arguments by position, expected "
                    f"{', '.join(positional[:-1])} and {positional[-1]}{remedy}"
                )
            for name in given:
                if name not in parameters:
                    raise unexpected(call, name, parameters, hints)
            return function(*args, **given)

        return checked

    return decorate
