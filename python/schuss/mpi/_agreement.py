"""What must be the same on all ranks."""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from schuss.mpi._ranks import Ranks

_LONGEST = 200  # characters of a value in a message


def agree_on(
    ranks: Ranks, call: str, facts: Mapping[str, str], error: BaseException | None = None
) -> None:
    """Vote, and raise ValueError on all ranks if a fact, or their order, is not the same on all."""
    if not ranks.agree(call, error, repr(facts).encode()):
        check_same(call, [pickle.loads(each) for each in ranks.gather(pickle.dumps(facts))])
        raise ValueError(f"{call}: the arguments of the ranks are in different orders")


def check_same(call: str, facts: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError if a fact is not the same on all ranks; facts has those of each."""
    for name in dict.fromkeys(name for each in facts for name in each):
        first, *others = [each.get(name, "missing") for each in facts]
        for rank, text in enumerate(others, start=1):
            if text != first:
                raise ValueError(
                    f"{call}: {name} is {_shortened(first)} on rank 0 and {_shortened(text)} on "
                    f"rank {rank}, expected the same on all ranks"
                )


def settings_facts(
    settings: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the settings of an optimizer, and those that its groups have of their own.

    Schedules cannot be compared; the learning rates that they return can.
    """
    facts = {name: _text(value) for name, value in settings.items()}
    for index, own in enumerate(groups):
        facts |= {f"param_groups[{index}][{name!r}]": _text(own[name]) for name in sorted(own)}
    return facts


def _text(value: Any) -> str:
    return "a schedule" if callable(value) else repr(value)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
