"""The patch: which classes of scikit-learn have which step, and since when."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from threading import RLock
from typing import Any, Self
from weakref import WeakKeyDictionary

import sklearn

from schuss._arrays import Array
from schuss.sklearn._steps import AdamStep, FusedStep, SGDStep, UnsupportedError

# The versions whose optimizers compute what the steps compute.
_MAJOR, _FIRST_MINOR, _LAST_MINOR = 1, 4, 9


class SklearnPatch:
    """The result of `patch_sklearn`; a context manager that ends this patch.

    Examples
    --------
    >>> import schuss
    >>> with schuss.sklearn.patch_sklearn() as patch:
    ...     patch
    <SklearnPatch: active>
    >>> patch
    <SklearnPatch: ended>
    """

    def __enter__(self) -> Self:
        """Patch scikit-learn, again if this patch has ended; return itself."""
        with _changing() as blocks:
            blocks[self] = blocks.get(self, 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        """End this patch with its outermost block; other patches stay active."""
        with _changing() as blocks:
            blocks[self] = blocks.get(self, 0) - 1
            if blocks[self] <= 0:
                del blocks[self]

    def __repr__(self) -> str:
        """Return whether the patch is active."""
        return f"<SklearnPatch: {'active' if self in _active else 'ended'}>"


# The active patches, and in how many blocks each is.
_active: dict[SklearnPatch, int] = {}
_lock = RLock()
# By the optimizer of scikit-learn, whose attributes stay as scikit-learn and pickles know them.
_steps: WeakKeyDictionary[Any, FusedStep] = WeakKeyDictionary()


def patch_sklearn() -> SklearnPatch:
    """Let scikit-learn's `MLPClassifier` and `MLPRegressor` train with the steps of schuss.

    The patch holds for the whole process, for the solvers "adam" and "sgd", from the next step of
    each model on. Loss curves, predictions and what a model keeps are those of scikit-learn to
    rounding. What schuss does not support is left to scikit-learn.

    In a ``with`` statement the patch ends with the block. Blocks can be nested, and can overlap on
    several threads: scikit-learn is patched as long as one of them, or a call outside of ``with``,
    is active. A patch that has ended patches again when it is entered again. Worker processes that
    are not forked need their own call.

    Returns
    -------
    SklearnPatch
        The patch, for a ``with`` statement.

    Raises
    ------
    RuntimeError
        If scikit-learn is not of version 1.4 to 1.9; nothing is changed then.

    References
    ----------
    scikit-learn's user guide, "Neural network models (supervised)".

    Examples
    --------
    >>> import numpy as np, schuss
    >>> from sklearn.neural_network import MLPRegressor
    >>> x = np.linspace(-1, 1, 200, dtype=np.float32).reshape(-1, 1)
    >>> y = x[:, 0] ** 2
    >>> with schuss.sklearn.patch_sklearn():
    ...     model = MLPRegressor(max_iter=1000, random_state=0).fit(x, y)
    >>> model.score(x, y) > 0.9
    True
    """
    _check_version()
    patch = SklearnPatch()
    with _changing() as blocks:
        blocks[patch] = 0
    return patch


def unpatch_sklearn() -> None:
    """Give scikit-learn its own steps back, from the next step on: all patches end.

    Examples
    --------
    >>> import schuss
    >>> patch = schuss.sklearn.patch_sklearn()
    >>> schuss.sklearn.unpatch_sklearn()
    >>> patch
    <SklearnPatch: ended>
    """
    with _changing() as blocks:
        blocks.clear()


def _check_version() -> None:
    found = re.match(r"(\d+)\.(\d+)", sklearn.__version__)
    major, minor = map(int, found.groups()) if found else (0, 0)
    if major != _MAJOR or not _FIRST_MINOR <= minor <= _LAST_MINOR:
        minors = _FIRST_MINOR, _LAST_MINOR, _LAST_MINOR + 1
        first, last, beyond = (f"{_MAJOR}.{minor}" for minor in minors)
        raise RuntimeError(
            f"patch_sklearn: scikit-learn is of version {sklearn.__version__}, expected {first} to "
            f"{last} (pip install 'scikit-learn>={first},<{beyond}'); nothing is changed"
        )


@contextmanager
def _changing() -> Iterator[dict[SklearnPatch, int]]:
    """Return the active patches to be changed; at the end, patch the classes if there are any."""
    with _lock:
        yield _active
        own = _optimizers()
        for kind in (own.AdamOptimizer, own.SGDOptimizer):
            if _active:
                kind.update_params = _update_params
            elif "update_params" in vars(kind):
                del kind.update_params  # the method of the base class is scikit-learn's
        if not _active:
            _steps.clear()


@cache
def _optimizers() -> Any:
    """Return scikit-learn's module of optimizers, whose import takes long."""
    return import_module("sklearn.neural_network._stochastic_optimizers")


def _update_params(optimizer: Any, params: list[Array], grads: list[Array]) -> None:
    """Update parameters with gradients: `update_params` of scikit-learn, in one pass."""
    own = _optimizers()
    kind = {own.AdamOptimizer: AdamStep, own.SGDOptimizer: SGDStep}.get(type(optimizer))
    if kind is not None:  # a subclass may compute something else
        try:
            step = _steps.get(optimizer)
            if step is None or not step.fits(optimizer, params, grads):
                step = _steps[optimizer] = kind(optimizer, params, grads)
            step.make(optimizer, params, grads)
            return
        except UnsupportedError:
            pass  # and nothing has changed
    own.BaseOptimizer.update_params(optimizer, params, grads)
