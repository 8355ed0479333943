"""The rows of parameters that have missed steps, and are brought up to date where they are read."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from schuss import _core
from schuss._arrays import GradTree
from schuss._hyperparameters import choice
from schuss._settings import Configurable
from schuss.rows import is_of_rows


class PendingRows:
    """What the internals of an optimizer do with rows that have missed steps."""

    core: _core.Optimizer
    whole: _core.Optimizer
    kind: type[Configurable]
    row_mode: str
    sums_have_rows = False
    """Whether gradients of some rows are among those that were accumulated."""

    def note_rows(self, grads: GradTree) -> None:
        """Note whether gradients that were accumulated are of some rows."""
        if self.row_mode == "lazy":
            leaves = self.whole.tree.flatten(grads, self.kind.__name__, "grads")
            before = self.sums_have_rows and self.whole.accumulated > 1
            self.sums_have_rows = before or any(map(is_of_rows, leaves))

    @property
    def has_unsaved_rows(self) -> bool:
        """Whether sums wait of which only the values can be saved, not which rows they have."""
        return self.row_mode == "lazy" and self.sums_have_rows and self.whole.accumulated > 0

    def check_sums(self, call: str) -> None:
        """Raise ValueError if there are sums that cannot be saved or copied."""
        if self.has_unsaved_rows:
            raise ValueError(
                f"{self.kind.__name__}.{call}: {self.whole.accumulated} gradients of some rows are "
                "accumulated where rows is 'lazy', expected none (step() or zero_grad() first): "
                "only the values of sums are saved and copied, not which rows they have"
            )

    def busy(self, call: str, *, changes: bool = False) -> AbstractContextManager[None]:
        """Return a context in which no other call uses the optimizer.

        changes: whether the caller changes it, other than by a step.
        """
        return self.core.busy(f"{self.kind.__name__}.{call}", changes)

    @contextmanager
    def up_to_date(self, call: str, *, changes: bool = False) -> Iterator[list[int]]:
        """Return a context as `busy`, in which all rows of the parameters are up to date.

        Its value is the indices of the parameters that were not.
        """
        with self.busy(call, changes=changes or bool(self.core.pending)):
            behind = self.core.pending
            self.core.flush()
            yield behind

    @contextmanager
    def being_saved(self, call: str) -> Iterator[list[int]]:
        """Return a context as `up_to_date`, for a caller that saves or copies the optimizer."""
        with self.up_to_date(call) as behind:
            self.check_sums(call)
            yield behind

    def flush(self, call: str) -> None:
        """Bring all rows of the parameters, and of what belongs to them, up to date."""
        if self.core.pending:
            with self.up_to_date(call):
                pass

    def rows(self, indices: GradTree) -> Any:
        """Return copies of rows of the parameters, which are brought up to date."""
        return self.whole.rows(indices, f"{self.kind.__name__}.rows")


def row_mode(call: str, rows: Any, *, is_sharded: bool) -> str:
    """Return what steps do with rows without a gradient, or raise TypeError or ValueError."""
    mode = choice(call, "rows", rows, among=("exact", "lazy"))
    if is_sharded and mode == "lazy":
        raise ValueError(
            f"{call}: rows is 'lazy', expected 'exact', as a sharded optimizer takes no gradients "
            "of some rows (schuss.Rows.to_dense makes whole ones)"
        )
    return mode
