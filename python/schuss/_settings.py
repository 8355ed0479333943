"""How classes of optimizers declare their settings, each once: its check, default and type."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, ClassVar, Generic, Self, TypeVar, dataclass_transform, overload

from schuss._hints import OF_OPTIMIZERS, unexpected
from schuss._hyperparameters import Check, flag

_T = TypeVar("_T")
_C = TypeVar("_C", bound="Configurable")


FROZEN = "frozen"
"""What only groups have: whether their parameters rest."""


class Configurable:
    """An object with declared settings.

    Its internals have `setting(name)`, the value of one, and `assign(name, value)` to change it.
    """

    __slots__ = ("__weakref__", "_internals")

    _declaration: ClassVar["Declaration"]
    _internals: Any

    def __dir__(self) -> list[str]:
        """Return the public names, for completion by TAB."""
        return [name for name in super().__dir__() if not name.startswith("_")]


def untyped_internals(configurable: Configurable) -> Any:
    """Return the object that keeps the values of the settings."""
    return configurable._internals


class Setting(Generic[_T]):
    """A setting of an optimizer: checked when it is assigned, used from the next step on."""

    name: str

    def __init__(self, check: Check[_T], default: _T, *, is_option: bool, by_group: bool) -> None:
        self.check, self.default = check, default
        self.is_option, self.by_group = is_option, by_group

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, optimizer: Configurable, owner: type) -> _T: ...
    def __get__(self, optimizer: Configurable | None, owner: type) -> Self | _T:
        if optimizer is None:
            return self
        value: _T = optimizer._internals.setting(self.name)
        return value

    def __set__(self, optimizer: Configurable, value: _T) -> None:
        optimizer._internals.assign(self.name, value)


@dataclass(frozen=True)
class Argument:
    """An argument of `__init__` that is not a setting: it cannot be changed later."""

    name: str
    default: Any


# The field specifiers of `declared`.


def hyperparameter(check: Check[_T], *, default: _T, kw_only: bool = True) -> Setting[_T]:
    """Declare a hyperparameter: each group of parameters may have its own value."""
    return Setting(check, default, is_option=False, by_group=True)


def option(
    check: Check[_T],
    *,
    default: _T,
    by_group: bool = False,
    form: "type[Setting[Any]]" = Setting,
) -> Any:
    """Declare an option, which all optimizers have.

    by_group: whether each group of parameters may have its own value, as of a hyperparameter.
    """
    return form(check, default, is_option=True, by_group=by_group)


def argument(*, alias: str, default: Any = Parameter.empty, kw_only: bool = True) -> Any:
    """Declare an argument of `__init__` that is not a setting."""
    return Argument(alias, default)


@dataclass(frozen=True)
class Declaration:
    """The settings and the other arguments that a class declares."""

    settings: Mapping[str, Setting[Any]]
    """The hyperparameters, then the options."""
    hyperparameters: tuple[str, ...]
    """What each group may have of its own: the rule's hyperparameters, and the options by group."""
    options: tuple[str, ...]
    """What has one value for all groups."""
    fixed: tuple[Argument, ...]
    """The arguments that cannot be changed later, except for `params`."""

    def with_defaults(
        self, call: str, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all settings and all fixed arguments: those given, and else the defaults."""
        settings = {name: each.default for name, each in self.settings.items()}
        fixed = {each.name: each.default for each in self.fixed}
        for name, value in given.items():
            if name not in settings and name not in fixed:
                raise unexpected(call, name, [*settings, *fixed], OF_OPTIMIZERS)
            (settings if name in settings else fixed)[name] = value
        return settings, fixed


@dataclass_transform(
    kw_only_default=True, eq_default=False, field_specifiers=(hyperparameter, option, argument)
)
def declared(kind: type[_C]) -> type[_C]:
    """Give a class an `__init__` whose arguments are its declared settings.

    Type checkers derive the same signature from the annotations. A subclass that is not decorated
    inherits this `__init__`, and its annotations are not arguments.
    """
    declaration = _declaration(kind)

    def init(self: Any, params: Any, lr: Any, **given: Any) -> None:
        super(kind, self).__init__(params, lr=lr, **given)

    init.__defaults__ = (declaration.settings["lr"].default,)
    init.__name__, init.__qualname__ = "__init__", f"{kind.__qualname__}.__init__"
    init.__module__ = kind.__module__
    init.__signature__ = _signature(declaration)  # type: ignore[attr-defined]
    kind.__init__ = init  # type: ignore[assignment]
    kind._declaration = declaration
    return kind


def declaration_of(kind: type[Configurable]) -> Declaration:
    """Return the declaration of a class, or that of its base class."""
    return kind._declaration


def checked_settings(
    kind: type[Configurable], call: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings of a class, checked."""
    return {name: getattr(kind, name).check(call, name, value) for name, value in settings.items()}


def checked_overrides(
    kind: type[Configurable], call: str, group: str, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the own hyperparameters of a group of parameters, checked."""
    known = declaration_of(kind).hyperparameters
    result: dict[str, Any] = {}
    for name, value in own.items():
        if name == FROZEN:
            result[name] = flag(call, f"{group}[{name!r}]", value)
            continue
        if name not in known:
            raise ValueError(
                f"{call}: {group} has {name!r}, expected hyperparameters among "
                f"{', '.join((*known, FROZEN))}"
            )
        try:
            result |= checked_settings(kind, call, {name: value})
        except (TypeError, ValueError) as error:
            text = str(error).replace(f"{call}: {name}", f"{call}: {group}[{name!r}]", 1)
            raise type(error)(text) from None
    return result


def _declaration(kind: type) -> Declaration:
    found = {
        name: value
        for base in reversed(kind.__mro__)
        for name, value in vars(base).items()
        if isinstance(value, Setting | Argument)
    }
    settings = {name: each for name, each in found.items() if isinstance(each, Setting)}
    ordered = sorted(settings, key=lambda name: settings[name].is_option)
    hyperparameters = tuple(name for name in ordered if settings[name].by_group)
    options = tuple(name for name in ordered if not settings[name].by_group)
    _params, *fixed = (each for each in found.values() if isinstance(each, Argument))
    return Declaration(
        settings={name: settings[name] for name in (*hyperparameters, *options)},
        hyperparameters=hyperparameters,
        options=options,
        fixed=tuple(fixed),
    )


def _signature(declaration: Declaration) -> Signature:
    # Without annotations: the aliases that type checkers see are long when they are printed.
    def parameter(name: str, default: Any = Parameter.empty) -> Parameter:
        positional = name in ("self", "params", "lr")
        form = Parameter.POSITIONAL_OR_KEYWORD if positional else Parameter.KEYWORD_ONLY
        return Parameter(name, form, default=default)

    defaults = {name: each.default for name, each in declaration.settings.items()}
    defaults |= {each.name: each.default for each in declaration.fixed}
    others = [parameter(name, default) for name, default in defaults.items()]
    return Signature([parameter("self"), parameter("params"), *others], return_annotation=None)
