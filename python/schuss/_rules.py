"""How a class of optimizers maps its hyperparameters to a rule of the core."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schuss import _core
from schuss._settings import Configurable, declaration_of


@dataclass(frozen=True)
class RuleSpec:
    """The rule of a class of optimizers, as data.

    Parameters
    ----------
    name : str
        The name of the rule in ``cpp/rules/rules.def``.
    suffixes : dict
        For each hyperparameter that selects a form of the rule, what it adds to the name if it is
        set.
    fallbacks : dict
        For each hyperparameter that may be None, the name of the one whose value it has then.
    decoupled : bool or str
        Whether weight decay shrinks the parameters instead of being added to the gradients, or the
        name of the hyperparameter that decides.
    initial : dict
        For each state that does not begin with zeros, the hyperparameter that has its first value.
    row_rule : str
        The name of the rule of rows of several elements, if the states have one number for each
        row; `name` is the rule of rows of a single element then.
    """

    name: str
    suffixes: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    decoupled: bool | str = False
    initial: Mapping[str, str] = field(default_factory=dict)
    row_rule: str = ""

    def form(self, hyperparameters: Mapping[str, Any]) -> str:
        """Return the name of the rule in the form that the hyperparameters select."""
        suffixes = [suffix for name, suffix in self.suffixes.items() if hyperparameters[name]]
        return "".join([self.name, *suffixes])


def spec_of(kind: type[Configurable]) -> RuleSpec:
    """Return the rule of a class of optimizers, or raise TypeError."""
    spec = getattr(kind, "_rule_spec", None)
    if not isinstance(spec, RuleSpec):
        raise TypeError(f"{kind.__name__} is an abstract class, expected a class like Adam")
    return spec


def formula(kind: type[Configurable], hyperparameters: Mapping[str, Any]) -> _core.Formula:
    """Return the formula of a class for these hyperparameters; other entries are ignored.

    Those that are missing have their defaults. A schedule as `lr` stands for 0: each step sets its
    rate.
    """
    spec = spec_of(kind)
    known = declaration_of(kind)
    values = {
        name: hyperparameters.get(name, known.settings[name].default)
        for name in known.hyperparameters
    }
    for name, other in spec.fallbacks.items():
        if values[name] is None:
            values[name] = values[other]
    lr, by = values["lr"], spec.decoupled
    decoupled = values[by] if isinstance(by, str) else by
    return _core.Formula(
        spec.form(values),
        values,
        per_step=0.0 if callable(lr) else lr,
        decay="decoupled" if decoupled else "coupled",
        weight_decay=values["weight_decay"],
        maximize=values["maximize"],
        bounds=values["bounds"],
        row_rule=spec.row_rule,
    )


def initial_values(
    kind: type[Configurable], hyperparameters: Mapping[str, Any]
) -> dict[str, float]:
    """Return the first value of each state that does not begin with zeros."""
    return {state: hyperparameters[name] for state, name in spec_of(kind).initial.items()}


def states(kind: type[Configurable], hyperparameters: Mapping[str, Any]) -> list[str]:
    """Return the names of the states that a class keeps with these hyperparameters."""
    return _core.states(spec_of(kind).form(hyperparameters))


def has_state_by_row(kind: type[Configurable]) -> bool:
    """Return whether the states of a class have one number for each row of a parameter."""
    return spec_of(kind).row_rule != ""


def states_of_groups(
    kind: type[Configurable],
    call: str,
    settings: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return the names of the states that each group keeps, or raise ValueError if they differ.

    groups: the own hyperparameters of each.
    """
    first, *rest = (states(kind, {**settings, **own}) for own in groups)
    for group, names in enumerate(rest, start=1):
        if names != first:
            raise ValueError(
                f"{call}: param_groups[{group}] keeps {', '.join(names)} as state, expected "
                f"{', '.join(first)} as in param_groups[0]"
            )
    return first


def second_moments(kind: type[Configurable], hyperparameters: Mapping[str, Any]) -> list[str]:
    """Return the names of those states that are never less than 0."""
    return _core.nonnegative_states(spec_of(kind).form(hyperparameters))
