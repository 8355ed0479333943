"""Parameters that rest: without a gradient, frozen, or added later."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import contents, dtype_of, equal, laid_out, leaves
from support.execution import execution
from support.optimizers import (
    assert_same,
    assert_same_outcome,
    every_optimizer,
    make_optimizer,
    make_reference,
)
from support.refusals import refusal

SHAPES: dict[str, Any] = {"a": (3, 5000), "b": (7,), "c": (), "d": (70, 33)}


def arrays(rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, Any]:
    values = {key: rng.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}
    return {"a": laid_out(values["a"], "fortran"), "rest": [values["b"], values["c"], values["d"]]}


def with_gaps(rng: np.random.Generator, grads: Any) -> Any:
    """Replace some of the gradients, or a whole container of them, by None."""
    rest = [None if rng.random() < 0.4 else grad for grad in grads["rest"]]
    return {
        "a": None if rng.random() < 0.4 else grads["a"],
        "rest": None if rng.random() < 0.2 else rest,
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    with execution(threads=2, tile=512, threshold=0):
        yield


OPTIONS: list[dict[str, Any]] = [
    {},
    {"average": 0.5, "clip_norm": 1.0, "clip_value": 0.5, "nonfinite": "skip"},
    {"average": 0.9, "average_bias_correction": True, "clear_grads": True, "weight_decay": 0.1},
    {"copies": "float16", "average": 0.5, "groups": {"rest/1": {"lr": 0.5}}.get},
    {"state_dtype": "bfloat16", "clip_norm": 1.0},
    {"groups": {"a": {"frozen": True}, "rest/0": {"lr": 0.25}}.get, "average": 0.5},
]


@pytest.mark.usefixtures("two_threads")
@every_optimizer
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "defaults")
def test_steps_with_gaps_give_the_bits_of_the_reference(name: str, options: Any) -> None:
    dtype_of(options.get("state_dtype", "float32"))
    rng = np.random.default_rng(7)
    params = arrays(rng)
    optimizer = make_optimizer(name, params, lr=0.1, **options)
    expected = make_reference(name, copy.deepcopy(params), **{"lr": 0.1, **options})
    for t in range(12):
        if t == 6 and len(expected.groups) > 1:
            for group, frozen in ((0, False), (1, True)):
                optimizer.param_groups[group]["frozen"] = frozen
                expected.set(group=group, frozen=frozen)
        grads = with_gaps(rng, arrays(rng))
        if t == 4 and options.get("nonfinite"):
            grads["a"] = np.full(SHAPES["a"], np.nan, np.float32)
        ours, theirs = grads, copy.deepcopy(grads)
        if t % 3 == 2:  # accumulated, with other gaps
            for each, of_each in ((optimizer, ours), (expected, theirs)):
                again = np.random.default_rng(t)
                each.accumulate(of_each)
                each.accumulate(with_gaps(again, arrays(again)), scale=0.5)
            ours = theirs = None
        optimizer.step(ours, scale=0.5)
        expected.step(theirs, scale=0.5)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)
        if ours is not None:
            present = [grad for grad in leaves(ours) if grad is not None]
            assert equal(present, [grad for grad in leaves(theirs) if grad is not None])


@pytest.mark.parametrize("gap", [None, [None, None, None]])
def test_a_step_without_any_gradient_counts_and_moves_nothing(gap: Any) -> None:
    params = arrays(np.random.default_rng(1))
    optimizer = schuss.Adam(params, lr=lambda t: 0.1 / t, weight_decay=0.5, clip_norm=1.0)
    before = contents([params, optimizer.state["m"], optimizer.state["v"]])
    optimizer.step({"a": None, "rest": gap})
    assert contents([params, optimizer.state["m"], optimizer.state["v"]]) == before
    assert (optimizer.steps, optimizer.param_groups[0].steps, optimizer.lr_now) == (1, 0, 0.1)
    assert optimizer.last == schuss.optimizers.Last(grad_norm=0.0, clipped=False, skipped=False)


TORCH = [
    ("SGD", "SGD", {"weight_decay": 0.1}, {}),
    ("Momentum", "SGD", {"dampening": 0.0}, {"momentum": 0.9}),
    ("RMSprop", "RMSprop", {"beta": 0.99, "weight_decay": 0.1}, {"alpha": 0.99}),
    ("Adam", "Adam", {"amsgrad": True}, {}),
    ("AdamW", "AdamW", {"weight_decay": 0.5}, {}),
]


@pytest.mark.parametrize(("name", "rule", "shared", "theirs"), TORCH)
def test_gaps_give_the_steps_of_torch(
    name: str, rule: str, shared: dict[str, Any], theirs: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(4) for _ in range(3)]
    own = {key: shared[key] for key in shared.keys() & {"weight_decay", "amsgrad", "dampening"}}
    parameters = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    other = getattr(torch.optim, rule)(parameters, lr=0.1, **own, **theirs)
    # torch counts the steps of each parameter; here, a group counts.
    groups: list[Any] = [{"params": param} for param in params]
    optimizer = make_optimizer(name, groups, lr=0.1, clip_norm=1.0, **shared)
    for t in range(20):
        grads = [rng.standard_normal(4) if rng.random() < 0.6 or t == 7 else None for _ in params]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else torch.from_numpy(grad.copy())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        other.step()
        optimizer.step(grads)
        for param, parameter in zip(params, parameters, strict=True):
            np.testing.assert_allclose(param, parameter.detach().numpy(), rtol=1e-9, atol=1e-12)


# Frozen groups.


class Anything:
    """What a step cannot read."""


@every_optimizer
def test_a_frozen_group_continues_as_if_there_had_been_no_steps(name: str) -> None:
    a, b = np.ones(3), np.ones(5)
    optimizer = make_optimizer(name, [{"params": a}, {"params": b}], lr=0.1)
    expected = [make_reference(name, np.ones(n), lr=0.1) for n in (3, 5)]
    rng = np.random.default_rng(3)
    for t in range(9):
        optimizer.param_groups[1]["frozen"] = t in (0, 1, 4)
        grads: list[Any] = [rng.standard_normal(3), rng.standard_normal(5)]
        expected[0].step(grads[0])
        if t in (0, 1, 4):
            grads[1] = [None, np.full(5, np.nan), Anything()][t % 3]
        else:
            expected[1].step(grads[1])
        optimizer.step(grads)
    assert equal([a, b], [each.params for each in expected])
    assert [group.steps for group in optimizer.param_groups] == [9, 6]
    assert [group["frozen"] for group in optimizer.param_groups] == [False, False]


def saved(optimizer: Any, other: Any, path: Path) -> Any:
    schuss.save(path, optimizer.params, optimizer)
    schuss.load(path, other.params, other)
    return other


def loaded(optimizer: Any, other: Any, _: Path) -> Any:
    for to, array in zip(leaves(other.params), leaves(optimizer.params), strict=True):
        to[...] = array
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize(
    "how",
    [
        saved,
        loaded,
        lambda it, *_: pickle.loads(pickle.dumps(it)),
        lambda it, *_: copy.deepcopy(it),
    ],
)
def test_what_is_frozen_rested_and_accumulated_is_saved(
    how: Callable[..., Any], tmp_path: Path
) -> None:
    def make() -> Any:
        groups: list[Any] = [{"params": np.ones(3)}, {"params": [np.ones(2), np.ones(4)]}]
        return schuss.Adam(groups, lr=0.1, average=0.5, weight_decay=0.5)

    grads: list[Any] = [np.ones(3), [np.ones(2), np.full(4, 2.0)]]
    optimizer = make()
    optimizer.param_groups[1]["frozen"] = True
    for _ in range(3):
        optimizer.step(grads)
    optimizer.param_groups[1]["frozen"] = False
    optimizer.accumulate([np.ones(3), [None, np.ones(4)]])
    optimizer.param_groups[0]["frozen"] = True
    other = how(optimizer, make(), tmp_path / "checkpoint")
    assert [group["frozen"] for group in other.param_groups] == [True, False]
    for each in (optimizer, other):
        each.step()
        each.param_groups[0]["frozen"] = False
        each.step(grads)
    assert contents([other.params, other.average]) == contents(
        [optimizer.params, optimizer.average]
    )
    assert [group.steps for group in other.param_groups] == [4, 2]


def test_a_single_group_can_be_frozen() -> None:
    optimizer = schuss.SGD(np.ones(2), lr=1.0)
    optimizer.param_groups[0]["frozen"] = True
    optimizer.step(np.ones(2))
    assert optimizer.params.tolist() == [1, 1]
    assert copy.copy(optimizer).param_groups[0]["frozen"] is True
    optimizer.param_groups[0].update(frozen=False, lr=0.5)
    optimizer.step(np.ones(2))
    assert optimizer.params.tolist() == [0.5, 0.5]


# Groups that are added.

ADDED: list[dict[str, Any]] = [
    {"average": 0.5, "copies": "float16", "clip_norm": 1.0},
    {"average": 0.5, "average_bias_correction": True, "lr": lambda t: 0.1 / t},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "8bit", "average": 0.5},
    {"state_dtype": "8bit", "master": "float24", "average": 0.5},
    {"round_params": "random"},
]


@every_optimizer
@pytest.mark.parametrize("options", ADDED, ids=lambda options: " ".join(options))
def test_an_added_group_continues_as_one_that_was_frozen_until_then(
    name: str, options: dict[str, Any]
) -> None:
    is_8bit = options.get("state_dtype") == "8bit"
    dtype_of(options.get("state_dtype", "float32") if not is_8bit else "float32")
    is_rounded = options.keys() & {"master", "round_params"}
    dtype = dtype_of("bfloat16") if is_rounded else np.dtype(np.float32)
    rng, options = np.random.default_rng(3), {"lr": 0.1, **options}
    shapes = [(5000,), (70, 61)] if is_8bit else [(3,), (2, 5)]
    params: list[Any] = [np.ones(shape, dtype) for shape in shapes]
    frozen: Any = {"0": {}, "1": {"frozen": True, "weight_decay": 0.5}}
    expected = make_reference(name, copy.deepcopy(params), groups=frozen.get, **options)
    optimizer = make_optimizer(name, [{"params": params[0]}], **options)
    first = optimizer.param_groups[0]
    for t in range(8):
        grads: list[Any] = [rng.standard_normal(x.shape).astype(np.float32) for x in params]
        if t == 3:
            optimizer.accumulate(grads[:1])
            expected.accumulate([grads[0], None])
            optimizer.add_group({"params": params[1], "weight_decay": 0.5})
            expected.set(group=1, frozen=False)
            first["weight_decay"] = 0.25  # the user's group is still one of the optimizer
            expected.set(group=0, weight_decay=0.25)
        if t in (3, 4):  # the first step of the new group is the second one after it was added
            optimizer.accumulate([grads[0], grads[1] if t == 4 else None])
            expected.accumulate([grads[0], grads[1] if t == 4 else None])
            optimizer.step()
            expected.step()
        else:
            optimizer.step(grads[: 1 + (t > 3)])
            expected.step(grads)
        if t >= 3:
            assert_same(optimizer, expected)
    assert [group.steps for group in optimizer.param_groups] == [8, 4]
    assert optimizer.params[1] is params[1]
    assert copy.copy(optimizer).param_groups[1]["weight_decay"] == 0.5


def test_an_added_group_is_compared_before_each_step_as_the_others_are() -> None:
    first: dict[str, Any] = {"params": np.ones(2)}
    second: dict[str, Any] = {"params": [np.ones(2)], "lr": 0.5}
    optimizer = schuss.SGD((first,))
    optimizer.add_group(second)
    grads: list[Any] = [np.ones(2), [np.ones(2)]]
    optimizer.step(grads)
    second["params"][0] = np.ones(2)
    with refusal(ValueError, "SGD.step: params[1][0] was replaced", keeps=optimizer):
        optimizer.step(grads)


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    return [{**group, "params": len(group["params"])} for group in optimizer.param_groups]


def test_an_added_group_lacks_the_hyperparameters_of_the_only_group_before_it() -> None:
    own = {"lr": 0.5, "maximize": True, "bounds": (0.0, 2.0), "frozen": True}
    groups: list[Any] = [{"params": np.ones(2), **own}, {"params": np.ones(3)}]
    expected = settings_of(schuss.Adam(groups, lr=0.25))
    before = schuss.Adam(groups[:1], lr=0.25)
    loaded = schuss.Adam(groups[:1], lr=0.25)
    loaded.load_state_dict(before.state_dict())
    assigned = schuss.Adam([{"params": groups[0]["params"]}], lr=0.25)
    assigned.param_groups[0].update(own)
    for optimizer in (before, copy.copy(before), loaded, assigned):
        assert optimizer.lr == 0.5
        optimizer.add_group(groups[1])
        assert settings_of(optimizer) == expected
        assert optimizer.lr == 0.25


def test_a_hyperparameter_assigned_to_the_optimizer_holds_for_added_groups() -> None:
    optimizer = schuss.SGD([{"params": np.ones(2), "lr": 0.5}], lr=1.0)
    optimizer.lr = 0.25
    optimizer.add_group({"params": np.ones(2)})
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("how", [lambda it: it, copy.copy])
def test_what_the_user_replaces_after_a_group_was_added_is_found(how: Any) -> None:
    def arrays(dtype: Any = np.float32) -> list[Any]:
        return [np.zeros(2, dtype)]

    groups: list[Any] = [{"params": arrays()}]
    copies: list[Any] = [arrays(np.float16)]
    optimizer = schuss.SGD(groups, lr=1.0, copies=copies)
    for _ in range(3):
        optimizer.add_group({"params": arrays()})
    optimizer, grads = how(optimizer), [arrays()] * 4
    optimizer.step(grads)
    for held, new, name in (
        (groups, {"params": arrays()}, "params"),
        (copies, arrays(np.float16), "copies"),
    ):
        before, held[0] = held[0], new
        with refusal(ValueError, f"SGD.step: {name}[0][0] was replaced", keeps=optimizer):
            optimizer.step(grads)
        with refusal(ValueError, f"SGD.add_group: {name}[0][0] ", keeps=optimizer):
            optimizer.add_group({"params": arrays()})
        held[0] = before
        optimizer.step(grads)
    groups.append({"params": arrays()})
    words = "SGD.step: params[4] was added after the optimizer was made"
    with refusal(ValueError, words, "(add the group with add_group)", keeps=optimizer):
        optimizer.step(grads)
    del groups[:]
    with refusal(ValueError, "SGD.step: params[0][0] was replaced", keeps=optimizer):
        optimizer.step(grads)


@pytest.mark.parametrize("appended", ["before", "after", "never", "before, except for one"])
def test_an_added_group_may_be_appended_to_the_users_list(appended: str) -> None:
    groups: list[Any] = [{"params": np.zeros(2)}]
    optimizer = schuss.SGD(groups, lr=1.0)
    for count in (2, 3, 4):
        group = {"params": np.zeros(2)}
        if appended == "before" or (appended == "before, except for one" and count > 2):
            groups.append(group)
        optimizer.add_group(group)
        if appended == "after":
            groups.append(group)
        optimizer.step([np.ones(2)] * count)
    assert [param[0] for param in optimizer.params] == [-3, -3, -2, -1]
    groups[-1] = {"params": np.zeros(2)}
    with refusal(ValueError, "SGD.step: params[", "] was ", keeps=optimizer):
        optimizer.step([np.ones(2)] * 4)


def test_the_outcome_of_the_last_step_stays_when_a_group_is_added() -> None:
    optimizer = schuss.SGD([{"params": np.ones(2)}], clip_norm=1.0, track_norms=True)
    optimizer.step([np.array([3.0, 4.0])])
    last = optimizer.last
    optimizer.add_group({"params": np.ones(2)})
    assert optimizer.last == last is not None


def test_the_copies_of_an_added_group_are_new_beside_the_users_own() -> None:
    w, half = np.ones(2, np.float32), np.zeros(2, np.float16)
    optimizer = schuss.SGD([{"params": w}], lr=1.0, copies=[half])
    optimizer.add_group({"params": {"b": np.full(3, 2, np.float32)}})
    assert optimizer.copies[1]["b"].tolist() == [2, 2, 2]
    optimizer.step([np.ones(2, np.float32), {"b": np.ones(3, np.float32)}])
    assert optimizer.copies[0] is half
    assert (half.tolist(), optimizer.copies[1]["b"].tolist()) == ([0, 0], [1, 1, 1])
    w[...] = 4
    optimizer.write_copies()
    assert half.tolist() == [4, 4]


W = np.ones(2, np.float32)
BAD_GROUPS: list[tuple[Any, type[Exception], str]] = [
    (W, TypeError, "group is a ndarray, expected a mapping"),
    ({"lr": 0.1}, ValueError, "group has no key 'params', expected it"),
    ({"params": W}, ValueError, "params[1] is the same array as params[0]"),
    ({"params": [W[1:]]}, ValueError, "params[1][0] shares memory with params[0], expected"),
    ({"params": [0.5]}, TypeError, "params[1][0] is a float, expected"),
    ({"params": np.ones(2)}, ValueError, "state_dtype is 'bfloat16' where a parameter is float64"),
    ({"params": W.copy(), "lr": -1.0}, ValueError, "group['lr'] is -1.0, expected"),
    ({"params": W.copy(), "frozen": 1}, TypeError, "group['frozen'] is 1, expected True or False"),
    ({"params": W.copy(), "beta": 0.5}, ValueError, "group has 'beta', expected hyperparameters"),
    (
        {"params": W.copy(), "freeze": True},
        ValueError,
        "group has 'freeze', expected hyperparameters among lr, beta1, beta2, eps, eps_root, "
        "eps_hat, amsgrad, bias_correction, weight_decay, maximize, bounds, frozen",
    ),
    ({"params": W.copy(), "amsgrad": True}, ValueError, "param_groups[1] keeps m, v, v_max as"),
]


@pytest.mark.parametrize(("group", "error", "words"), BAD_GROUPS)
def test_a_group_that_cannot_be_added_changes_nothing(
    group: Any, error: type[Exception], words: str
) -> None:
    pytest.importorskip("ml_dtypes")
    optimizer = schuss.Adam([{"params": W}], state_dtype="bfloat16", average=0.5)
    optimizer.step([W.copy()])
    with refusal(error, f"Adam.add_group: {words}", keeps=[optimizer, W]):
        optimizer.add_group(group)
    assert len(optimizer.param_groups) == 1
    optimizer.step([W.copy()])
    without = schuss.Adam(W)
    words = "Adam.add_group: the optimizer has no list of groups, expected one that was made with "
    with refusal(ValueError, words, "Adam([{'params': params}])", keeps=without):
        without.add_group({"params": W.copy()})


# What makes steps.


def test_fit_with_l2_and_a_scaled_loss_take_gaps() -> None:
    w, b, scaler = np.ones((2, 2)), np.ones(2), schuss.DynamicLossScale(4.0)
    params, grads = {"w": w, "b": b}, {"w": None, "b": np.ones(2)}
    optimizer = schuss.SGD(params, lr=0.5)
    history = schuss.fit(
        lambda params, x: (1.0, grads), params, optimizer, np.ones((4, 1)), epochs=2, l2=0.5
    )
    assert (w.tolist(), b.tolist()) == ([[1, 1], [1, 1]], [0, 0])
    assert history.cost[0] == 1.0 + 0.5 / 4 / 2 * 4
    assert scaler.step(optimizer, {"w": None, "b": np.full(2, 4.0)})
    assert (w.tolist(), b.tolist()) == ([[1, 1], [1, 1]], [-0.5, -0.5])


# Numbers.


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "number", [0.5, 2, np.float64(0.1), np.float32(0.1), np.float16(0.1), np.int64(3), np.uint8(3)]
)
def test_numbers_are_gradients_of_parameters_without_axes(number: Any, dtype: str) -> None:
    param = np.array(1.5, dtype_of(dtype))
    computed: Any = np.float64 if dtype == "float64" else np.float32
    expected = (np.asarray(param, computed) - computed(0.5) * computed(number)).astype(param.dtype)
    optimizer = schuss.SGD({"s": param}, lr=0.5)
    optimizer.step({"s": number})
    assert param == expected
    optimizer.accumulate({"s": number})
    optimizer.step()
    assert optimizer.steps == 2


NO_NUMBERS = [True, np.bool_(True), 1j, np.complex64(1), "1", np.timedelta64(1, "s"), [1.0]]


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=repr)
def test_what_is_not_a_real_number_is_not_a_gradient(bad: Any) -> None:
    optimizer = schuss.SGD(np.array(1.5))
    with refusal((TypeError, ValueError), "SGD.step: grads ", "expected", keeps=optimizer):  # type: ignore[arg-type]
        optimizer.step(bad)
    of_axis: Any = schuss.SGD(np.ones(1))
    with refusal(TypeError, "SGD.step: grads is a float, expected a NumPy array", keeps=of_axis):
        of_axis.step(0.5)
    clears: Any = schuss.SGD(np.array(1.5), clear_grads=True)
    with refusal(ValueError, "SGD.step: grads is read-only", keeps=clears):
        clears.step(0.5)
    with refusal(ValueError, "SGD.step: grads is a number of too many digits", keeps=optimizer):
        optimizer.step(10**400)


def test_the_average_of_a_subnormal_parameter_that_rests_is_the_references() -> None:
    params = [np.array([1e-40], np.float32), np.ones(1, np.float32)]
    model = reference.Optimizer("sgd", [param.copy() for param in params], lr=0.1, average=0.9)
    optimizer = schuss.SGD(params, lr=0.1, average=0.9)
    for each in (optimizer, model):
        each.step([None, np.ones(1, np.float32)])
    assert equal(optimizer.average, model.average)
