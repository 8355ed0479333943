"""Parameter groups: several sets of hyperparameters in one optimizer and one pass."""

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, contents, leaves, random_arrays, same_bits
from support.optimizers import (
    OPTIMIZERS,
    assert_same,
    assert_same_outcome,
    make_optimizer,
    make_reference,
)

Groups = list[dict[str, Any]]
Options = Mapping[str, Any]

GROUPS = [(name, *groups) for name, kind in OPTIMIZERS.items() for groups in kind.groups]
every_optimizer = pytest.mark.parametrize(("name", "settings", "first", "second"), GROUPS)


def by_index(*groups: Options) -> Callable[[str], Options]:
    """Return the groups of parameters in a list: the i-th is in group i modulo their number."""
    return lambda name: groups[int(name) % len(groups)]


# What groups do.


@pytest.mark.parametrize("clipping", [{}, {"clip_norm": 3.0, "clip_value": 0.02}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_optimizer
def test_groups_have_the_references_bits(
    name: str, settings: Options, first: Options, second: Options, dtype: Any, clipping: Options
) -> None:
    rng = np.random.default_rng(0)
    params, settings = random_arrays(rng, dtype), {**settings, **clipping}
    groups = by_index({}, first, second)
    expected = make_reference(name, [p.copy() for p in params], **settings, groups=groups)
    alike = make_optimizer(name, [param.copy() for param in params], **settings)
    optimizer = make_optimizer(name, params, **settings, groups=groups)
    for scale in (1.0, 0.25, 1.0, 1.0):
        grads = random_arrays(rng, dtype)
        for each in (optimizer, expected, alike):
            each.step(grads, scale=scale)
        assert_same(optimizer, expected)
        assert_same_outcome(optimizer, expected)
        assert not clipping or optimizer.last.clipped
    # The groups matter: only the group without overrides is as it would be without groups.
    for i, (param, other) in enumerate(zip(params, alike.params, strict=True)):
        assert param.size == 0 or same_bits(param, other) == (i % 3 == 0)


def test_a_thousand_arrays_may_have_any_groups() -> None:
    rng = np.random.default_rng(2)
    group_of = rng.integers(5, size=1000)
    all_rates = [0.5, 0.25, 0.125, 0.0625, 0.0]
    params = [np.zeros(1 + i % 7) for i in range(1000)]
    optimizer = schuss.SGD(params, groups=lambda name: {"lr": all_rates[group_of[int(name)]]})
    optimizer.step([np.ones_like(param) for param in params])
    assert len(optimizer.param_groups) == 5
    for param, group in zip(params, group_of, strict=True):
        assert (param == -all_rates[group]).all()


@every_optimizer
def test_a_function_of_the_name_and_a_list_of_dicts_are_the_same(
    name: str, settings: Options, first: Options, second: Options
) -> None:
    rng = np.random.default_rng(3)
    params, grads = random_arrays(rng), random_arrays(rng)
    by_name = make_optimizer(
        name, [p.copy() for p in params], **settings, groups=by_index({}, first, second)
    )
    listed = [{"params": params[i::3], **own} for i, own in enumerate(({}, first, second))]
    optimizer = make_optimizer(name, listed, **settings)
    by_name.step(grads)
    optimizer.step([grads[i::3] for i in range(3)])
    assert contents(params) == contents(by_name.params)


def test_a_group_with_an_infinity_stops_all_groups() -> None:
    optimizer = schuss.SGD([{"params": np.zeros(2)}, {"params": np.zeros(1)}], nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"^SGD\.step: grads\[1\] has a NaN"):
        optimizer.step([np.ones(2), np.array([np.inf])])
    assert [param.any() for param in optimizer.params] == [False, False]
    optimizer.nonfinite = "skip"
    optimizer.step([np.ones(2), np.array([np.inf])])
    assert [param.any() for param in optimizer.params] == [False, False]
    assert optimizer.skipped == 1


TORCH: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.5, "weight_decay": 0.0}),
    ("Adam", {"lr": 0.1}, {"betas": (0.5, 0.75), "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}, {"lr": 0.5, "eps": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.5}, {"weight_decay": 0.0}),
]


@pytest.mark.parametrize(("name", "settings", "own"), TORCH)
def test_a_list_of_dicts_gives_the_steps_of_torch(
    name: str, settings: dict[str, Any], own: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(shape) for shape in ((3, 4), (4,), (5,))]
    theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    other = getattr(torch.optim, name)(
        [{"params": theirs[:2]}, {"params": theirs[2], **own}], **settings
    )
    ours = {key: value for key, value in own.items() if key != "betas"}
    if "betas" in own:
        ours["beta1"], ours["beta2"] = own["betas"]
    optimizer = make_optimizer(
        name, [{"params": params[:2]}, {"params": params[2], **ours}], **settings
    )
    for t in range(6):
        if t == 3:
            for each in (optimizer, other):
                each.param_groups[0]["lr"] *= 0.5
                each.param_groups[1]["weight_decay"] = 0.25
        grads = [rng.standard_normal(param.shape) for param in params]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad)
        other.step()
        optimizer.step([grads[:2], grads[2]])
        for param, parameter in zip(params, theirs, strict=True):
            np.testing.assert_allclose(param, parameter.detach().numpy(), rtol=1e-10, atol=1e-12)


# How groups are given.


def sgd(*groups: Options, **settings: Any) -> Any:
    """Return an SGD of groups with these hyperparameters, each of one parameter that is zero."""
    return schuss.SGD([{"params": np.zeros(1), **group} for group in groups], **settings)


def ones(optimizer: Any) -> list[Array]:
    return [np.ones(1) for _ in leaves(optimizer.params)]


def values(optimizer: Any) -> list[float]:
    return [param.item() for param in leaves(optimizer.params)]


def rates(optimizer: Any) -> list[Any]:
    return [group["lr"] for group in optimizer.param_groups]


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def test_a_name_is_the_keys_on_the_way_to_the_parameter() -> None:
    names: list[str] = []
    params: dict[Any, Any] = {
        "W": np.zeros(1),
        "layers": [{"W": np.zeros(1), "b": np.zeros(1)}, (np.zeros(1),)],
        3: np.zeros(1),
    }
    schuss.SGD(params, groups=lambda name: names.append(name))
    assert names == ["W", "layers/0/W", "layers/0/b", "layers/1/0", "3"]


def test_no_decay_on_biases_is_one_line() -> None:
    params = {"layers": [{"W": np.ones((2, 2)), "b": np.ones(2)} for _ in range(2)]}
    optimizer = schuss.AdamW(
        params,
        lr=0.5,
        weight_decay=0.5,
        groups=lambda name: {"weight_decay": 0.0} if name.endswith("/b") else None,
    )
    optimizer.step({"layers": [{"W": np.zeros((2, 2)), "b": np.zeros(2)} for _ in range(2)]})
    for layer in params["layers"]:
        assert (layer["W"] == 0.75).all()
        assert (layer["b"] == 1).all()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_parameters_with_the_same_hyperparameters_are_one_group() -> None:
    params = {key: np.zeros(1) for key in "abcdef"}
    own = {"a": None, "b": {"lr": 0.5}, "c": {}, "d": {"lr": 0.25}, "e": {"lr": 0.5}, "f": None}
    optimizer = schuss.SGD(params, groups=own.get)
    assert rates(optimizer) == [0.01, 0.5, 0.25]
    for group, keys in zip(optimizer.param_groups, ("acf", "be", "d"), strict=True):
        assert [id(param) for param in group["params"]] == [id(params[key]) for key in keys]


def test_params_and_gradients_of_a_list_of_dicts_are_lists() -> None:
    w, b = np.zeros(2), np.zeros(1)
    groups: Groups = [{"params": {"w": w}}, {"params": [b], "lr": 0.5}]
    optimizer = schuss.Momentum(groups, lr=1.0)
    assert optimizer.params == [{"w": w}, [b]]
    assert optimizer.params[0]["w"] is w
    assert [type(tree) for tree in optimizer.state["velocity"]] == [dict, list]
    optimizer.step([{"w": np.ones(2)}, [np.ones(1)]])
    np.testing.assert_allclose(w, -0.1)
    np.testing.assert_allclose(b, -0.05)
    with pytest.raises(ValueError, match=r"^Momentum\.step: grads is a dict, expected a sequence"):
        optimizer.step({"w": np.ones(2)})
    with pytest.raises(ValueError, match=r"^Momentum\.step: grads has length 1, expected 2"):
        optimizer.step([{"w": np.ones(2)}])


def test_a_tuple_of_groups_and_a_group_without_parameters_are_fine() -> None:
    w = np.zeros(1)
    optimizer = schuss.SGD(({"params": [], "lr": 0.25}, {"params": w, "lr": 0.5}))
    optimizer.step(([], np.ones(1)))
    assert w.tolist() == [-0.5]
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 1]


def test_the_dicts_of_the_user_are_left_alone() -> None:
    own = {"lr": 0.5}
    listed: Groups = [{"params": np.zeros(1), "lr": 0.5}, {"params": np.zeros(1)}]
    for optimizer in (
        schuss.SGD({"W": np.zeros(1), "b": np.zeros(1)}, groups={"b": own}.get),
        schuss.SGD(listed),
    ):
        optimizer.param_groups[0]["lr"] = 0.125
        optimizer.param_groups[1]["lr"] = 0.125
    assert own == {"lr": 0.5}
    assert [sorted(group) for group in listed] == [["lr", "params"], ["params"]]
    assert listed[0]["lr"] == 0.5


# Reading and writing.


def test_a_group_is_a_mapping_of_its_hyperparameters() -> None:
    params = {"W": np.zeros(1), "b": np.zeros(1)}
    optimizer = schuss.Adam(params, lr=0.5, clip_norm=1.0, groups={"b": {"beta1": 0.5}}.get)
    for group, beta1 in zip(optimizer.param_groups, (0.9, 0.5), strict=True):
        assert list(group) == ["params", *OPTIMIZERS["Adam"].defaults]
        assert len(group) == 9
        assert (group["lr"], group["beta1"], group["beta2"]) == (0.5, beta1, 0.999)
        assert "clip_norm" not in group
    assert optimizer.param_groups[1]["params"][0] is params["b"]
    assert "beta1': 0.5" in repr(optimizer.param_groups[1])
    assert "2 groups" in repr(optimizer)


def test_a_group_is_written_alone_and_from_the_next_step_on() -> None:
    optimizer = sgd({"lr": 1}, {"weight_decay": 0.0}, lr=1.0)
    optimizer.step(ones(optimizer))
    optimizer.param_groups[1]["lr"] = np.float32(0.5)
    assert (rates(optimizer), optimizer.lr) == ([1.0, 0.5], 1.0)
    optimizer.step(ones(optimizer))
    assert values(optimizer) == [-2.0, -1.5]


def test_the_optimizers_hyperparameters_are_those_of_groups_without_their_own() -> None:
    optimizer = sgd({}, {"lr": 0.5}, {"weight_decay": 0.25}, lr=1.0)
    optimizer.lr = 2.0
    assert rates(optimizer) == [2.0, 0.5, 2.0]
    optimizer.step(ones(optimizer))
    assert values(optimizer) == [-2.0, -0.5, -2.0]
    optimizer.param_groups[2]["lr"] = 4.0
    optimizer.lr = 8.0
    assert rates(optimizer) == [8.0, 0.5, 4.0]
    optimizer.weight_decay = 0.125
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.125, 0.25]
    optimizer.step([np.zeros(1)] * 3)
    shrinks = (8 * 0.125, 0.5 * 0.125, 4 * 0.25)
    assert values(optimizer) == [
        before - shrink * before for before, shrink in zip((-2, -0.5, -2), shrinks, strict=True)
    ]


def test_of_one_group_the_optimizer_and_the_group_say_the_same() -> None:
    for optimizer in (
        schuss.SGD(np.zeros(1), lr=0.75),
        sgd({"lr": 0.75}, lr=1.0),
        schuss.SGD([np.zeros(1), np.zeros(1)], lr=1.0, groups=lambda name: {"lr": 0.75}),
    ):
        (group,) = optimizer.param_groups
        assert "lr=0.75" in repr(optimizer)
        assert (optimizer.lr, optimizer.lr_now, group["lr"]) == (0.75, 0.75, 0.75)
        group["lr"] = 0.5
        assert (optimizer.lr, optimizer.lr_now, group["lr"]) == (0.5, 0.5, 0.5)
        optimizer.lr = 0.25
        assert (optimizer.lr, optimizer.lr_now, group["lr"]) == (0.25, 0.25, 0.25)
        group["weight_decay"] = 0.125
        assert optimizer.weight_decay == 0.125


def test_one_group_may_change_the_state_that_is_kept() -> None:
    optimizer = schuss.Adam(np.zeros(3))
    optimizer.param_groups[0]["amsgrad"] = True
    assert list(optimizer.state) == ["m", "v", "v_max"]


def test_what_each_group_has_of_its_own_cannot_be_set_for_all() -> None:
    optimizer = sgd({"lr": 1.0}, {"lr": 2.0}, lr=0.5)
    assert "lr=" not in repr(optimizer)
    with pytest.raises(
        ValueError,
        match=r"^SGD: lr is set where each of the 2 groups has its own, expected it set in the "
        r"groups \(param_groups\[0\]\['lr'\] = ...\)$",
    ):
        optimizer.lr = 0.25
    assert rates(optimizer) == [1.0, 2.0]
    optimizer.weight_decay = 0.25
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]


# Schedules.


def test_each_groups_schedule_is_asked_once_a_step() -> None:
    calls: dict[str, list[int]] = {"all": [], "W": [], "b": []}

    def schedule(name: str, rate: float) -> Callable[[int], float]:
        return lambda t: calls[name].append(t) or rate / t  # type: ignore[func-returns-value]

    params = {key: np.zeros(1) for key in "Wbcd"}
    own: dict[str, Any]
    own = {"W": {"lr": schedule("W", 0.5)}, "b": {"lr": schedule("b", 0.25)}, "d": {"lr": 2.0}}
    optimizer = schuss.SGD(params, lr=schedule("all", 1.0), groups=own.get)
    assert calls == {"all": [], "W": [], "b": []}
    for _ in range(2):
        optimizer.step({key: np.ones(1) for key in params})
    assert calls == {"all": [1, 2], "W": [1, 2], "b": [1, 2]}
    assert values(optimizer) == [-0.75, -0.375, -1.5, -4.0]
    assert optimizer.lr_now == 0.5
    assert optimizer.param_groups[0]["lr"] is own["W"]["lr"]


def test_lr_now_is_what_groups_use() -> None:
    def schedule(t: int) -> float:
        return 0.5 / t

    def never(t: int) -> float:
        raise AssertionError

    plateau = schuss.schedules.ReduceOnPlateau(0.25, 0.5, patience=0)
    optimizer = sgd({"lr": plateau}, {"lr": 2.0}, {"lr": schedule}, lr=never)
    assert [group.lr_now for group in optimizer.param_groups] == [0.25, 2.0, 0.5]
    for _ in range(3):
        optimizer.step(ones(optimizer))
        before = values(optimizer)
        plateau.update(1.0)
    assert [group.lr_now for group in optimizer.param_groups] == [0.125, 2.0, 0.5 / 3]
    assert (plateau.lr, optimizer.lr_now) == (0.0625, 0.125)
    optimizer.param_groups[0]["weight_decay"] = 0.5  # no rate
    assert optimizer.lr_now == 0.125
    optimizer.param_groups[1]["lr"] = schedule  # in use at once, as that of an optimizer
    assert [group.lr_now for group in optimizer.param_groups] == [0.0625, 0.5 / 3, 0.5 / 3]
    assert values(optimizer) == before
    some = sgd({"lr": 1.0}, {}, lr=3.0)
    assert (some.lr_now, [group.lr_now for group in some.param_groups]) == (3.0, [1.0, 3.0])


def test_a_schedule_of_two_groups_is_asked_once_a_step() -> None:
    remaining = iter([0.5, 0.25])

    def schedule(t: int) -> float:
        return next(remaining)

    own: Groups = [{"lr": schedule}, {"lr": schedule, "weight_decay": 0.0}, {}]
    optimizer = sgd(*own, lr=schedule)
    for _ in range(2):
        optimizer.step(ones(optimizer))
    assert values(optimizer) == [-0.75] * 3


def test_a_groups_schedule_may_be_set_and_be_followed_by_a_number() -> None:
    optimizer = sgd({}, {}, lr=1.0)
    for lr in (lambda t: 0.5 * t, 0.25, schuss.schedules.Constant(0.125)):
        optimizer.param_groups[1]["lr"] = lr
        optimizer.step(ones(optimizer))
    assert values(optimizer) == [-3.0, -0.875]


def test_a_refused_step_asks_the_groups_schedules_again() -> None:
    calls: list[int] = []

    def schedule(t: int) -> float:
        calls.append(t)
        return 0.5

    optimizer = sgd({"lr": schedule}, {})
    with pytest.raises(ValueError, match="has shape"):
        optimizer.step([np.ones(1), np.ones(2)])
    optimizer.step(ones(optimizer))
    assert calls == [1, 1]
    assert values(optimizer)[0] == -0.5


# Saving and copying.


def halve(t: int) -> float:
    return 0.5**t


def trained() -> tuple[Any, list[Any]]:
    """Return an optimizer after two steps, and the gradients of two more."""
    rng = np.random.default_rng(6)
    params = [rng.standard_normal(shape) for shape in ((3, 4), (4,), (5,), (2,))]
    groups: Groups = [
        {"params": params[:1]},
        {"params": params[1:3], "lr": halve, "weight_decay": 0.25},
        {"params": params[3], "beta1": 0.5},
    ]
    optimizer = schuss.AdamW(groups, lr=0.125)
    grads: list[Any] = [[[np.ones((3, 4))], [np.ones(4), np.ones(5)], np.ones(2)]] * 4
    optimizer.step(grads[0])
    optimizer.param_groups[2]["eps"] = 0.25
    optimizer.step(grads[1])
    return optimizer, grads[2:]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_keeps_its_groups(how: str) -> None:
    optimizer, grads = trained()
    other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert settings_of(other) == settings_of(optimizer)
    for each in (other, optimizer):
        for tree in grads:
            each.step(tree)
    assert_same(other, optimizer)
    for group, index in zip(other.param_groups, (0, 1, 3), strict=True):
        assert group["params"][0] is leaves(other.params)[index]
    other.param_groups[1]["weight_decay"] = 0.5
    other.lr = 1.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.25, 0.01]
    assert rates(optimizer) == [0.125, halve, 0.125]


def test_a_shallow_copy_has_groups_of_its_own() -> None:
    optimizer, grads = trained()
    other = copy.copy(optimizer)
    assert settings_of(other) == settings_of(optimizer)
    other.param_groups[1]["lr"] = 0.0
    assert optimizer.param_groups[1]["lr"] is halve
    assert other.params is optimizer.params
    other.step(grads[0])
    assert (other.steps, optimizer.steps) == (3, 2)


def test_training_with_groups_that_is_resumed_is_training_that_went_on() -> None:
    optimizer, grads = trained()
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    [w], bs, c = copy.deepcopy(optimizer.params)
    resumed = schuss.AdamW(
        [{"params": [w]}, {"params": bs, "lr": 9.0}, {"params": c, "amsgrad": False}], lr=9.0
    )
    resumed.load_state_dict(saved)
    assert settings_of(resumed) == settings_of(optimizer)
    for tree in grads:
        optimizer.step(tree)
        resumed.step(tree)
    assert_same(resumed, optimizer)


def test_a_state_dict_holds_what_each_group_has_of_its_own() -> None:
    optimizer, _ = trained()
    expected = [
        {"hyperparameters": {}, "members": [0]},
        {"hyperparameters": {"lr": halve, "weight_decay": 0.25}, "members": [1, 2]},
        {"hyperparameters": {"beta1": 0.5, "eps": 0.25}, "members": [3]},
    ]
    saved = optimizer.state_dict()
    assert saved["groups"] == expected
    optimizer.param_groups[2]["eps"] = 0.5
    assert saved["groups"] == expected
    saved["groups"][1]["hyperparameters"]["lr"] = 7.0
    assert optimizer.param_groups[1]["lr"] is halve


@pytest.mark.parametrize("ends", [(2,), (), (1, 2)])
def test_the_state_of_other_groups_is_refused(ends: tuple[int, ...]) -> None:
    def make_with(*ends: int) -> Any:
        params = [np.ones(1) for _ in range(3)]
        cuts = [params[a:b] for a, b in zip((0, *ends), (*ends, 3), strict=True)]
        return schuss.Adam([{"params": cut} for cut in cuts])

    optimizer, saved = make_with(1), make_with(*ends).state_dict()
    optimizer.step([[np.ones(1)], [np.ones(1)] * 2])
    before, groups = contents(optimizer.params), settings_of(optimizer)
    with pytest.raises(ValueError, match=r"^Adam\.load_state_dict: state_dict\['groups'\]"):
        optimizer.load_state_dict(saved)
    assert contents(optimizer.params) == before
    assert (settings_of(optimizer), optimizer.steps) == (groups, 1)


def test_a_schedule_in_a_saved_group_does_not_change_with_training() -> None:
    schedule = schuss.schedules.Manual({1: 0.5, 3: 0.25})
    optimizer = sgd({"lr": schedule}, {})
    saved = optimizer.state_dict()["groups"][0]["hyperparameters"]["lr"]
    copied, loaded = copy.copy(optimizer), sgd({}, {})
    state = optimizer.state_dict()
    loaded.load_state_dict(state)
    given = state["groups"][0]["hyperparameters"]["lr"]
    schedules = [schedule, saved, rates(copied)[0], given, rates(loaded)[0]]
    assert len(set(map(id, schedules))) == 5
    assert [each(3) for each in schedules] == [0.25] * 5
