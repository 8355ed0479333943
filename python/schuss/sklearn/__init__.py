"""scikit-learn's `MLPClassifier` and `MLPRegressor` with the steps of schuss.

scikit-learn updates weights by a class for each solver, `AdamOptimizer` and `SGDOptimizer`. The
patch replaces one method of these two classes, so it holds for all models, also for those that
exist already. Models keep what scikit-learn keeps, in the same classes: pickles load without
schuss, and training can go on after `unpatch_sklearn`. The solver "lbfgs" is not changed.
"""

try:
    import sklearn  # noqa: F401
except ImportError:
    raise ImportError(
        "schuss.sklearn: scikit-learn is not installed (pip install scikit-learn)"
    ) from None

from schuss._listing import public_names
from schuss.sklearn._patch import SklearnPatch, patch_sklearn, unpatch_sklearn

__all__ = ["SklearnPatch", "patch_sklearn", "unpatch_sklearn"]

__dir__ = public_names(__name__)
