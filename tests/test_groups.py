"""Parameter groups: several sets of hyperparameters in one optimizer and one pass."""

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, contents, leaves
from support.optimizers import OPTIMIZERS, OPTIONS_BY_GROUP, make_optimizer

Groups = list[dict[str, Any]]
Options = Mapping[str, Any]

# What groups do.


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
        names = [*OPTIMIZERS["Adam"].defaults, *OPTIONS_BY_GROUP]
        assert list(group) == ["params", *names]
        assert len(group) == 1 + len(names)
        assert (group["lr"], group["beta1"], group["beta2"]) == (0.5, beta1, 0.999)
        assert "clip_norm" not in group
    assert optimizer.param_groups[1]["params"][0] is params["b"]
    assert "beta1': 0.5" in repr(optimizer.param_groups[1])
    assert "2 groups" in repr(optimizer)


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


def test_what_each_group_has_of_its_own_cannot_be_set_for_all() -> None:
    optimizer = sgd({"lr": 1.0}, {"lr": 2.0}, lr=0.5)
    assert "lr=" not in repr(optimizer)
    with pytest.raises(
        ValueError,
        match=r"^SGD: lr is set where each of the 2 groups has its own, expected it to be "
        r"set in the "
        r"groups \(param_groups\[0\]\['lr'\] = ...\)$",
    ):
        optimizer.lr = 0.25
    assert rates(optimizer) == [1.0, 2.0]


# Schedules.


def test_each_schedule_is_called_once_a_step_even_if_groups_share_it() -> None:
    calls: list[tuple[str, int]] = []

    def schedule(name: str, rate: float) -> Callable[[int], float]:
        return lambda t: calls.append((name, t)) or rate / t  # type: ignore[func-returns-value]

    shared = schedule("shared", 1.0)
    groups: Groups = [{"lr": schedule("own", 0.5)}, {"lr": shared, "weight_decay": 0.0}, {}]
    optimizer = sgd(*groups, {"lr": 2.0}, lr=shared)
    assert calls == []
    for _ in range(2):
        optimizer.step(ones(optimizer))
    assert sorted(calls) == [("own", 1), ("own", 2), ("shared", 1), ("shared", 2)]
    assert values(optimizer) == [-0.75, -1.5, -1.5, -4.0]
    assert optimizer.lr_now == 0.5
    assert optimizer.param_groups[0]["lr"] is groups[0]["lr"]


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
    optimizer.param_groups[1]["lr"] = schedule  # in use at once, as that of an optimizer
    assert [group.lr_now for group in optimizer.param_groups] == [0.0625, 0.5 / 3, 0.5 / 3]
    assert values(optimizer) == before


# Saving and copying.


def halve(t: int) -> float:
    return 0.5**t


def trained() -> Any:
    """Return an optimizer after a step, whose last group was changed then."""
    params = [np.ones(shape) for shape in ((3, 4), (4,), (5,), (2,))]
    groups: Groups = [
        {"params": params[:1]},
        {"params": params[1:3], "lr": halve, "weight_decay": 0.25},
        {"params": params[3], "beta1": 0.5},
    ]
    optimizer = schuss.AdamW(groups, lr=0.125)
    optimizer.step(copy.deepcopy(optimizer.params))
    optimizer.param_groups[2]["eps"] = 0.25
    return optimizer


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_copy_has_groups_of_its_own(how: Callable[[Any], Any]) -> None:
    optimizer = trained()
    other = how(optimizer)
    assert settings_of(other) == settings_of(optimizer)
    for group, index in zip(other.param_groups, (0, 1, 3), strict=True):
        assert group["params"][0] is leaves(other.params)[index]
    other.param_groups[1]["weight_decay"] = 0.5
    other.lr = 1.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.25, 0.01]
    assert rates(optimizer) == [0.125, halve, 0.125]
    other.step(copy.deepcopy(other.params))
    assert (other.steps, optimizer.steps) == (2, 1)


def test_a_state_dict_holds_what_each_group_has_of_its_own() -> None:
    optimizer = trained()
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
