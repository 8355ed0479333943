"""scikit-learn's MLPs under the patch: the same training, and models that stay scikit-learn's."""

import copy
import gc
import os
import pickle
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import equal
from support.interruption import Interruption
from support.processes import ends_well

pytest.importorskip("sklearn")
joblib = pytest.importorskip("joblib")
patch_sklearn, unpatch_sklearn = schuss.sklearn.patch_sklearn, schuss.sklearn.unpatch_sklearn

from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.neural_network import _stochastic_optimizers as own  # noqa: E402

KINDS = {"adam": own.AdamOptimizer, "sgd": own.SGDOptimizer}
PLAIN = {
    name: type("Plain", (kind,), {"_get_updates": kind._get_updates})
    for name, kind in KINDS.items()
}
STATES = {"adam": ("ms", "vs"), "sgd": ("velocities",)}


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    """Do not warn of trainings that are too short, and leave scikit-learn as it was."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Stochastic Optimizer")
        yield
    unpatch_sklearn()


@contextmanager
def fused() -> Iterator[None]:
    """Patch scikit-learn, and let its own steps fail."""
    with pytest.MonkeyPatch.context() as context, patch_sklearn():
        for kind in KINDS.values():
            context.setattr(kind, "_get_updates", lambda *_: pytest.fail("not fused"))
        yield


def data(dtype: str = "float64", examples: int = 90) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, 12)).astype(dtype)
    return x, ((x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int) + (x[:, 2] > 0)).astype(dtype)


def model(solver: str, kind: Any = MLPClassifier, **options: Any) -> Any:
    defaults = {"max_iter": 8, "batch_size": 15, "random_state": 0, "learning_rate_init": 0.02}
    return kind(hidden_layer_sizes=(9, 7), solver=solver, **{**defaults, **options})


def arrays_of(fitted: Any) -> list[Any]:
    """Return the parameters of a model and the state of its optimizer."""
    optimizer = fitted._optimizer
    names = STATES[fitted.solver]
    state = [array for name in names for array in getattr(optimizer, name)]
    return [*fitted.coefs_, *fitted.intercepts_, *state]


def assert_alike(fitted: Any, expected: Any, x: Any) -> None:
    """Assert that two models are equal to rounding, and have optimizers of the same class."""
    tolerance = 1e-11 if fitted.coefs_[0].dtype == np.float64 else 2e-5
    close = partial(np.testing.assert_allclose, **dict.fromkeys(("rtol", "atol"), tolerance))
    close(fitted.loss_curve_, expected.loss_curve_)
    close(fitted.predict(x), expected.predict(x))
    assert fitted.n_iter_ == expected.n_iter_
    for a, b in zip(arrays_of(fitted), arrays_of(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        close(a, b)
    mine, theirs = fitted._optimizer, expected._optimizer
    assert type(mine) is type(theirs)
    assert mine.__dict__.keys() == theirs.__dict__.keys()
    numbers = [name for name, value in vars(theirs).items() if not isinstance(value, list)]
    for name in numbers:
        assert type(getattr(mine, name)) is type(getattr(theirs, name))
        assert getattr(mine, name) == getattr(theirs, name)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("adam", {}),
    ("adam", {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1, "alpha": 0.1}),
    ("adam", {"beta_1": 0.0, "beta_2": 0.0, "shuffle": False}),
    ("adam", {"early_stopping": True, "n_iter_no_change": 2, "tol": 0.05}),
    ("sgd", {}),
    ("sgd", {"learning_rate": "invscaling", "power_t": 0.3}),
    ("sgd", {"learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1}),
    ("sgd", {"nesterovs_momentum": False, "momentum": 0.5}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 1.0, "learning_rate_init": 1e-3}),
    ("sgd", {"early_stopping": True, "learning_rate": "adaptive", "nesterovs_momentum": False}),
]


@pytest.mark.parametrize(("solver", "options"), OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_training_is_scikit_learns(
    kind: Any, dtype: str, solver: str, options: dict[str, Any]
) -> None:
    x, y = data(dtype)
    expected = model(solver, kind, **options).fit(x, y)
    with fused():
        fitted = model(solver, kind, **options).fit(x, y)
    assert_alike(fitted, expected, x)


@pytest.mark.parametrize("solver", KINDS)
def test_fitting_again_goes_on_from_the_weights_if_the_start_is_warm(solver: str) -> None:
    x, y = data()
    for warm in (True, False):
        with patch_sklearn():
            fitted = model(solver, warm_start=warm).fit(x, y).fit(x[:60], y[:60])
        expected = model(solver, warm_start=warm).fit(x, y).fit(x[:60], y[:60])
        assert_alike(fitted, expected, x)


# How a model comes from one process, or one week, to the next.
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "as it is": lambda fitted, _: fitted,
    "pickle": lambda fitted, _: pickle.loads(pickle.dumps(fitted)),
    "deepcopy": lambda fitted, _: copy.deepcopy(fitted),
    "joblib": lambda fitted, path: joblib.load(joblib.dump(fitted, path)[0]),
}


@pytest.mark.parametrize("solver", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_with_the_patch_and_without(
    way: str, dtype: str, solver: str, tmp_path: Any
) -> None:
    x, y = data(dtype)
    classes = np.unique(y)
    trained, expected = model(solver), model(solver)
    for part in range(6):
        batch = slice(15 * part, 15 * part + 15)
        if part % 3 == 2:
            trained.partial_fit(x[batch], y[batch], classes=classes)
        else:
            with fused():
                trained.partial_fit(x[batch], y[batch], classes=classes)
        expected.partial_fit(x[batch], y[batch], classes=classes)
        trained = WAYS[way](trained, tmp_path / "model")
    assert_alike(trained, expected, x)


@pytest.mark.parametrize("solver", KINDS)
def test_a_pickle_loads_and_trains_on_without_schuss(solver: str, tmp_path: Any) -> None:
    x, y = data()
    with fused():
        fitted = model(solver).fit(x, y)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(fitted))
    expected = fitted.partial_fit(x, y).predict_proba(x).tolist()
    code = f"""
    import pickle, sys
    sys.modules["schuss"] = None
    import numpy as np
    x, y = pickle.loads({pickle.dumps((x, y))!r})
    fitted = pickle.load(open({str(path)!r}, "rb"))
    print(fitted.partial_fit(x, y).predict_proba(x).tolist())
    """
    assert ends_well(code).strip() == str(expected)


def test_a_clone_is_not_fitted() -> None:
    from sklearn.base import clone

    x, y = data()
    with fused():
        fitted = model("adam").fit(x, y)
        again = clone(fitted)
        assert not hasattr(again, "coefs_")
        assert_alike(again.fit(x, y), fitted, x)


def test_several_models_can_train_at_once_on_threads() -> None:
    x, y = data()
    trained: dict[int, Any] = {}

    def train(seed: int) -> None:
        with patch_sklearn():
            trained[seed] = model("adam", random_state=seed).fit(x, y)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, fitted in trained.items():
        assert_alike(fitted, model("adam", random_state=seed).fit(x, y), x)
    assert not is_patched()


# Optimizers as their users call and change them.


class Both:
    """Two equal optimizers with equal parameters; a subclass is always stepped by scikit-learn."""

    def __init__(self, solver: str, dtype: Any = "float64", **options: Any) -> None:
        self.rng, self.solver = np.random.default_rng(0), solver
        start = [self.rng.standard_normal(shape).astype(dtype) for shape in ((5, 4), (4,))]
        self.params = [[array.copy() for array in start] for _ in range(2)]
        kinds = KINDS[solver], PLAIN[solver]
        pairs = zip(kinds, self.params, strict=True)
        self.optimizers = [kind(params, **options) for kind, params in pairs]

    def step(self) -> None:
        grads = [self.rng.standard_normal(p.shape).astype(p.dtype) for p in self.params[0]]
        for optimizer, params in zip(self.optimizers, self.params, strict=True):
            optimizer.update_params(params, grads)

    def assert_equal(self) -> None:
        mine, theirs = (
            [*params, *(a for name in STATES[self.solver] for a in getattr(optimizer, name))]
            for params, optimizer in zip(self.params, self.optimizers, strict=True)
        )
        assert equal(mine, theirs)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a rate": lambda o: setattr(o, "learning_rate_init", 0.3),
    "the rate in use": lambda o: setattr(o, "learning_rate", 0.3),
    "the first decay rate": lambda o: setattr(o, "beta_1", 0.5),
    "the momentum": lambda o: setattr(o, "momentum", np.float64(0.5)),
    "its form": lambda o: setattr(o, "nesterov", False),
    "the number of steps": lambda o: setattr(o, "t", 7),
    "an array": lambda o: first_state(o).__setitem__(1, np.ones(4)),
    "the numbers in an array": lambda o: first_state(o)[0].fill(2.0),
}


def first_state(optimizer: Any) -> list[Any]:
    states: list[Any] = getattr(optimizer, "ms", None) or optimizer.velocities
    return states


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("solver", KINDS)
def test_what_is_changed_between_steps_holds_from_the_next_one_on(solver: str, change: str) -> None:
    both = Both(solver)
    with fused():
        for _ in range(3):
            both.step()
            for optimizer in both.optimizers:
                CHANGES[change](optimizer)
        both.step()
    both.assert_equal()


@pytest.mark.parametrize("solver", KINDS)
def test_other_parameters_are_stepped_from_the_same_state(solver: str) -> None:
    both = Both(solver)
    with fused():
        both.step()
        before = both.params[0]
        both.params = [[array.copy() for array in params] for params in both.params]
        both.step()
    both.assert_equal()
    assert not equal(both.params[0], before)


UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("float16", {}),
    ("float32", {"learning_rate_init": 1e45}),
]


@pytest.mark.parametrize(("dtype", "options"), UNSUPPORTED)
@pytest.mark.parametrize("solver", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_schuss_does_not_support_is_left_to_scikit_learn(
    solver: str, dtype: str, options: dict[str, Any]
) -> None:
    both = Both(solver, dtype, **options)
    with patch_sklearn():
        both.step()
        both.step()
    both.assert_equal()


def test_the_steps_of_a_subclass_are_its_own() -> None:
    class Sign(own.AdamOptimizer):  # type: ignore[misc]
        def _get_updates(self, grads: list[Any]) -> list[Any]:
            return [-np.sign(grad) for grad in grads]

    param = np.zeros(3)
    with patch_sklearn():
        Sign([param]).update_params([param], [np.array([1.0, -2.0, 3.0])])
    assert param.tolist() == [-1, 1, -1]


def test_an_error_is_scikit_learns_and_nothing_is_changed() -> None:
    param, grad = np.zeros(3), np.ones(3)
    optimizer = own.AdamOptimizer([param])
    param.flags.writeable = False
    with patch_sklearn(), pytest.raises(ValueError, match="output array is read-only"):
        optimizer.update_params([param], [grad])


@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
def test_errors_of_signal_handlers_are_not_taken_for_those_of_a_step() -> None:
    class TimeIsUp(ValueError):
        """What a handler may raise."""

    def handler(*_: object) -> None:
        raise TimeIsUp

    both, n, sent = Both("adam"), 0, True
    before = signal.signal(signal.SIGUSR1, handler)
    with patch_sklearn():
        while sent:
            n += 1
            with suppress(TimeIsUp), Interruption(n, signal.SIGUSR1) as interruption:
                both.optimizers[0].update_params(both.params[0], both.params[1])
                assert not interruption.sent
            sent = interruption.sent
    signal.signal(signal.SIGUSR1, before)
    assert n > 20


@pytest.mark.parametrize("solver", KINDS)
def test_float64_targets_of_a_float32_model_are_used_as_by_scikit_learn(solver: str) -> None:
    x, y = data("float32")
    trained, expected = model(solver, MLPRegressor), model(solver, MLPRegressor)
    dtypes = "float32", "float64", "float32"
    with fused():
        for dtype in dtypes:
            trained.partial_fit(x, y.astype(dtype))
    for dtype in dtypes:
        expected.partial_fit(x, y.astype(dtype))
    assert {array.dtype.name for array in arrays_of(trained)} == {"float32", "float64"}
    assert_alike(trained, expected, x)


@pytest.mark.parametrize("solver", KINDS)
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float64")])
def test_examples_can_have_weights(dtypes: tuple[str, str], solver: str) -> None:
    if "sample_weight" not in signature(MLPClassifier.fit).parameters:
        pytest.skip("scikit-learn has them from 1.7 on")
    x, y = data(dtypes[0])
    weights = np.linspace(0.5, 1.5, len(x), dtype=dtypes[1])
    expected = model(solver).fit(x, y, sample_weight=weights)
    with fused():
        fitted = model(solver).fit(x, y, sample_weight=weights)
    assert_alike(fitted, expected, x)


# The patch.


def is_patched() -> bool:
    (answer,) = {"update_params" in vars(kind) for kind in KINDS.values()}
    return answer


def test_scikit_learn_is_patched_until_the_last_block_ends() -> None:
    with patch_sklearn() as outer:
        with patch_sklearn() as inner:
            assert repr(inner) == "<SklearnPatch: active>"
        assert repr(inner) == "<SklearnPatch: ended>"
        assert is_patched()
        assert repr(outer) == "<SklearnPatch: active>"
    assert not is_patched()
    first, second = patch_sklearn(), patch_sklearn()
    with first:  # blocks on two threads need not be nested
        pass
    assert is_patched()
    with second:
        unpatch_sklearn()
        assert not is_patched()
    assert not is_patched()


def test_a_patch_can_be_entered_again() -> None:
    patch = patch_sklearn()
    for _ in range(2):
        with patch:
            with patch:
                assert is_patched()
            assert is_patched()
        assert not is_patched()
    with patch:
        unpatch_sklearn()
        with patch:
            assert is_patched()
        assert not is_patched()


def test_a_call_holds_after_blocks_and_until_it_is_undone() -> None:
    for _ in range(2):
        patch_sklearn()
        with patch_sklearn(), pytest.raises(KeyError):
            raise KeyError
        assert is_patched()
    unpatch_sklearn()
    assert not is_patched()
    unpatch_sklearn()


@pytest.mark.parametrize("version", ["1.4.0", "1.4.2", "1.8.dev0", "1.9.1", "1.9rc1"])
def test_known_versions_are_patched(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.__version__", version)
    with patch_sklearn():
        assert is_patched()


@pytest.mark.parametrize("version", ["1.3.2", "0.24.2", "1.10.0", "1.10.dev0", "2.4", "unknown"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.__version__", version)
    message = (
        f"patch_sklearn: scikit-learn is of version {version}, expected 1.4 to 1.9 "
        "(pip install 'scikit-learn>=1.4,<1.10'); nothing is changed"
    )
    with pytest.raises(RuntimeError) as caught:
        patch_sklearn()
    assert str(caught.value) == message
    assert not is_patched()


def test_a_model_that_is_gone_leaves_nothing_behind() -> None:
    x, y = data()
    with fused():
        fitted = model("adam").fit(x, y)
        kept = [weakref.ref(array) for array in arrays_of(fitted)]
        del fitted
        gc.collect()
        assert not [ref for ref in kept if ref() is not None]
        fitted = model("adam").fit(x, y)
    weights = weakref.ref(fitted.coefs_[0])
    fitted.coefs_ = []
    gc.collect()
    assert weights() is None  # not even while its optimizer lives, if the patch has ended


def test_scikit_learn_is_imported_by_those_who_use_it() -> None:
    code = """
    import sys, schuss
    dir(schuss)
    assert not any(name.partition(".")[0] == "sklearn" for name in sys.modules)
    schuss.sklearn.patch_sklearn()
    print("sklearn.neural_network" in sys.modules)
    """
    assert ends_well(code) == "True\n"


def test_without_scikit_learn_the_error_says_how_to_install_it() -> None:
    code = """
    import sys
    sys.modules["sklearn"] = None
    import schuss
    try: schuss.sklearn
    except ImportError as error: print(error)
    """
    expected = "schuss.sklearn: scikit-learn is not installed (pip install scikit-learn)\n"
    assert ends_well(code) == expected
