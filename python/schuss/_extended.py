"""A sequence of the user with further items, which follows what the user changes in it."""

from collections.abc import Iterator, Sequence
from typing import Any


class Extended(Sequence[Any]):
    """The first items of a user's sequence, then added items, then what else the user added.

    Reads the user's sequence at each access: an item that is replaced there is replaced here.
    """

    def __init__(self, given: Sequence[Any], length: int, added: list[Any]) -> None:
        self.given, self.length, self.added = given, length, added

    def items(self) -> list[Any]:
        """Return the items as they are now; those that the user appended too come once."""
        given = list(self.given)
        if len(given) <= self.length:
            return given + self.added
        known = set(map(id, self.added))
        later = [item for item in given[self.length :] if id(item) not in known]
        return [*given[: self.length], *self.added, *later]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items())

    def __len__(self) -> int:
        return len(self.items())

    def __getitem__(self, index: Any) -> Any:
        return self.items()[index]


def extended(given: Sequence[Any], length: int, item: Any) -> Sequence[Any]:
    """Return a sequence of `length` items with one more, which the user may have appended."""
    if len(given) == length + 1 and given[length] is item:
        return given
    if isinstance(given, Extended) and given.length + len(given.added) == length:
        return Extended(given.given, given.length, [*given.added, item])
    return Extended(given, length, [item])
