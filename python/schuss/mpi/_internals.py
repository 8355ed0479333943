"""The internals of a sharded optimizer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, Self

from schuss import _core
from schuss._arrays import Array, ArrayTree, GradTree, memory_order
from schuss._groups import Overrides
from schuss._internals import Internals, internals_of
from schuss._settings import Configurable
from schuss._state import Pieces, States
from schuss.mpi import _step
from schuss.mpi._agreement import agree_on, settings_facts
from schuss.mpi._shards import Shards


class ShardedInternals(Internals):
    """Internals that keep state for the pieces of one rank.

    divide: returns the division of the parameters, given the core of all.
    """

    shards: Shards

    def __init__(
        self,
        kind: type[Configurable],
        params: ArrayTree,
        settings: Mapping[str, Any],
        *,
        divide: Callable[[_core.Optimizer], Shards],
        **arguments: Any,
    ) -> None:
        def pieces(core: _core.Optimizer) -> Pieces:
            self.shards = divide(core)
            return self.shards.pieces

        super().__init__(kind, params, settings, pieces=pieces, **arguments)
        self._lock = Lock()
        self._known_facts: tuple[Any, Any, dict[str, str]] = None, None, {}
        self._failure: str | None = None

    def remade(self, params: ArrayTree, **arguments: Any) -> Self:
        """Return new internals with these settings and formats for more parameters."""
        return super().remade(params, divide=self.shards.extended, **arguments)

    def equalize(self, call: str, begin: int = 0) -> None:
        """Make the parameters from `begin` on those of rank 0, or check that they are."""
        if self.shards.sharing.check_params:
            self.shards.compare(call, self.whole.tree.names, begin)
        else:
            self.shards.broadcast(begin)

    @contextmanager
    def busy(self, call: str, *, changes: bool = False) -> Iterator[None]:
        """Return a context in which no other call uses the optimizer."""
        with self.alone(call), super().busy(call, changes=changes):
            yield

    @contextmanager
    def alone(self, call: str) -> Iterator[None]:
        """Return a context for a call in which the cores make calls of their own."""
        if self._failure is not None:
            raise RuntimeError(
                f"{self.call}.{call}: a step has failed half-way before ({self._failure}), "
                "expected a new optimizer that has loaded the last checkpoint"
            )
        lock = self._lock
        if not lock.acquire(blocking=False):
            raise RuntimeError(
                f"{self.call}.{call}: another call of the same {self.call} is under way, expected "
                "one at a time"
            )
        try:
            yield
        finally:
            lock.release()

    def step(
        self,
        grads: GradTree,
        scale: float,
        *,
        skip_nonfinite: bool = False,
        weight: float | None = None,
    ) -> None:
        """Make a step with the gradients of all ranks; `weight` is that of this rank's."""
        with self.alone("step"):
            _step.step(self, grads, scale, weight, skip_nonfinite=skip_nonfinite)

    def fail(self, error: BaseException) -> None:
        """Refuse all further calls: an error has ended a step half-way."""
        self._failure = f"{type(error).__name__}: {error}"
        self.shards.ranks.fail(self._failure)

    @property
    def needs_statistics(self) -> bool:
        """Whether a step has to know all gradients before it changes a parameter."""
        settings = self.settings
        return settings["clip_norm"] is not None or settings["nonfinite"] != "propagate"

    def average(self) -> Any:
        """Return the whole averages; all ranks call this."""
        return self._joined("average", self.core.average)

    def values(self) -> Any:
        """Return the whole parameters with their masters; all ranks call this."""

        def read() -> Any:
            self.shards.read_params()
            return self.core.tree.unflatten(self.core.values)

        return self._joined("master", read)

    def _joined(self, name: str, read: Callable[[], Any]) -> Any:
        """Return whole arrays in the structure of the parameters, given those of pieces."""
        call, pieces, error = f"{self.call}.{name}", None, None
        with self.alone(name), self.shards.ranks.uninterrupted():
            try:
                pieces = read()
            except BaseException as raised:
                error = raised
            agree_on(self.shards.ranks, call, {f"{name} is None": repr(pieces is None)}, error)
            if pieces is None:
                return None
            arrays = self.core.tree.flatten(pieces, call, name)
            return self.whole.tree.unflatten(self.shards.joined(arrays))

    def settings_facts(self) -> dict[str, str]:
        """Return the settings, which must be the same on all ranks."""
        # Neither the dict nor the list is ever changed in place.
        settings, groups, facts = self._known_facts
        if settings is not self.settings or groups is not self.groups:
            facts = settings_facts(self.settings, self.groups)
            self._known_facts = self.settings, self.groups, facts
        return facts

    def accumulate(self, grads: GradTree, scale: float, *, overwrite_grads: bool) -> None:
        """Add gradients of this rank to those of the next step."""
        with self.alone("accumulate"):  # a step sends the sums while it is under way
            super().accumulate(grads, scale, overwrite_grads=overwrite_grads)

    def rows(self, indices: GradTree) -> Any:
        """Return copies of rows of the whole parameters."""
        with self.alone("rows"):
            return super().rows(indices)

    def arrays_for(
        self, call: str, settings: Mapping[str, Any], groups: list[Overrides]
    ) -> tuple[States, list[Array] | None]:
        """Return the states and averages for settings: existing arrays, or new ones."""
        self.shards.read_params()  # averages begin with them
        return super().arrays_for(call, settings, groups)

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks."""
        facts = {"the class": self.call, "the division": repr(self.shards.sharing)}
        # Their order counts: gradients are exchanged without names.
        for i, (name, array) in enumerate(zip(self.whole.tree.names, self.arrays, strict=True)):
            text = f"{array.dtype}{[*array.shape]} in the memory layout {memory_order(array)}"
            facts[f"parameter {i}" if name else "params"] = f"{name!r}, {text}," if name else text
        formats = {name: repr(value) for name, value in self.formats.items()}
        return facts | formats | self.settings_facts()


def sharded_internals_of(optimizer: Configurable) -> ShardedInternals:
    """Return the internals of a sharded optimizer."""
    internals = internals_of(optimizer)
    assert isinstance(internals, ShardedInternals)
    return internals
