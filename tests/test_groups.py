"""Parameter groups: several sets of hyperparameters in one optimizer and one pass."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array, bits, equal, numbers, same_bits

Groups = list[dict[str, Any]]

SHAPES = [(4097,), (), (3, 5000), (17,), (0, 3), (9, 20, 31), (1,), (70, 33)]

# For each optimizer, what two groups have of their own, beside a third that has nothing.
GROUPS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("SGD", {"lr": 0.1}, [{"lr": 0.5, "weight_decay": 0.1}, {"weight_decay": 0.5}]),
    (
        "Momentum",
        {"lr": 0.1, "weight_decay": 0.1},
        [{"nesterov": True, "beta": 0.5}, {"bias_correction": True, "dampening": 0.25}],
    ),
    ("RMSprop", {"lr": 0.1}, [{"eps": 1e-3, "beta": 0.5}, {"lr": 0.0, "weight_decay": 0.1}]),
    (
        "RMSprop",
        {"lr": 0.1, "centered": True, "momentum": 0.5},
        [{"momentum": 0.75}, {"eps_root": 1e-3}],
    ),
    ("Adam", {"lr": 0.1}, [{"beta1": 0.5, "bias_correction": False}, {"weight_decay": 0.1}]),
    ("Adam", {"lr": 0.1, "amsgrad": True}, [{"beta2": 0.5}, {"lr": 0.25, "eps": 0.1}]),
    ("AdamW", {"lr": 0.1}, [{"weight_decay": 0.0}, {"weight_decay": 0.5, "lr": 0.25}]),
]
EVERY_OPTIMIZER = pytest.mark.parametrize(("name", "settings", "owns"), GROUPS)


def make(name: str, params: Any, **options: Any) -> Any:
    return getattr(schuss, name)(params, **options)


def arrays(rng: np.random.Generator, dtype: Any = np.float32) -> list[Array]:
    return [numbers(rng, shape, dtype, special=False) for shape in SHAPES]


def group_of(i: int) -> int:
    return i % 3


class Apart:
    """The same steps by an optimizer for each group, on copies of the parameters."""

    def __init__(
        self, name: str, params: list[Array], settings: dict[str, Any], owns: list[dict[str, Any]]
    ) -> None:
        self.params = [param.copy() for param in params]
        self.optimizers = [
            make(name, self.of_group(place, self.params), **settings | own)
            for place, own in enumerate([{}, *owns])
        ]

    @staticmethod
    def of_group(place: int, values: list[Array]) -> list[Array]:
        return [value for i, value in enumerate(values) if group_of(i) == place]

    def step(self, grads: list[Array], **options: Any) -> None:
        for place, optimizer in enumerate(self.optimizers):
            optimizer.step(self.of_group(place, grads), **options)

    def state(self, name: str) -> list[Array]:
        of_groups = [iter(optimizer.state[name]) for optimizer in self.optimizers]
        return [next(of_groups[group_of(i)]) for i in range(len(self.params))]


def by_name(owns: list[dict[str, Any]]) -> Callable[[str], dict[str, Any] | None]:
    return lambda name: (None, *owns)[group_of(int(name))]


# The same as separate optimizers.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY_OPTIMIZER
def test_groups_have_the_bits_of_an_optimizer_each(
    name: str, settings: dict[str, Any], owns: list[dict[str, Any]], dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    params = arrays(rng, dtype)
    apart = Apart(name, params, settings, owns)
    optimizer = make(name, params, **settings, groups=by_name(owns))
    alike = make(name, [param.copy() for param in params], **settings)
    for _ in range(4):
        grads = arrays(rng, dtype)
        optimizer.step(grads)
        apart.step(grads)
        alike.step(grads)
        assert equal(params, apart.params)
        for state, values in optimizer.state.items():
            assert equal(values, apart.state(state))
    # The groups matter: only the group that has nothing of its own is where it would be without.
    for i, (param, other) in enumerate(zip(params, alike.params, strict=True)):
        assert param.size == 0 or same_bits(param, other) == (group_of(i) == 0)
    assert optimizer.steps == 4


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("level", schuss.available_simd())
@pytest.mark.parametrize("threads", [1, 2, 8])
@EVERY_OPTIMIZER
def test_groups_have_the_same_bits_on_any_threads_and_level(
    name: str, settings: dict[str, Any], owns: list[dict[str, Any]], threads: int, level: str
) -> None:
    rng = np.random.default_rng(1)
    params = arrays(rng) * 2
    params = [param.copy() for param in params]
    apart = Apart(name, params, settings, owns)
    optimizer = make(name, params, **settings, groups=by_name(owns))
    grads, before = [grad.copy() for grad in arrays(rng) * 2], schuss.simd()
    try:
        schuss.set_simd(level)
        with schuss.threads(threads):
            for _ in range(2):
                optimizer.step(grads)
    finally:
        schuss.set_simd(before)
    for _ in range(2):
        apart.step(grads)
    assert equal(params, apart.params)


def test_a_thousand_arrays_may_have_any_groups() -> None:
    rng = np.random.default_rng(2)
    of_array = rng.integers(5, size=1000)
    rates = [0.5, 0.25, 0.125, 0.0625, 0.0]
    params = [np.zeros(1 + i % 7) for i in range(1000)]
    optimizer = schuss.SGD(params, groups=lambda name: {"lr": rates[of_array[int(name)]]})
    optimizer.step([np.ones_like(param) for param in params])
    assert len(optimizer.param_groups) == 5
    for param, place in zip(params, of_array, strict=True):
        assert (param == -rates[place]).all()


@EVERY_OPTIMIZER
def test_a_function_of_the_name_and_a_list_of_dicts_are_the_same(
    name: str, settings: dict[str, Any], owns: list[dict[str, Any]]
) -> None:
    rng = np.random.default_rng(3)
    params, grads = arrays(rng), arrays(rng)
    apart = Apart(name, params, settings, owns)
    groups = [
        {"params": Apart.of_group(place, params), **own} for place, own in enumerate([{}, *owns])
    ]
    optimizer = make(name, groups, **settings)
    optimizer.step([Apart.of_group(place, grads) for place in range(3)])
    apart.step(grads)
    assert equal(params, apart.params)


def test_the_clipped_norm_is_that_of_all_groups() -> None:
    # 3, 4 and 12: their norm is 13.
    params = [{"params": np.zeros(2), "lr": 1.0}, {"params": np.zeros((1, 1)), "lr": 2.0}]
    optimizer = schuss.SGD(params, clip_norm=6.5)
    optimizer.step([np.array([3.0, 4.0]), np.array([[12.0]])])
    assert optimizer.last == schuss.optimizers.Last(13.0, clipped=True, skipped=False)
    np.testing.assert_allclose(optimizer.params[0], [-1.5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(optimizer.params[1], [[-12.0]], rtol=1e-6)


@EVERY_OPTIMIZER
def test_groups_are_scaled_and_clipped_alike(
    name: str, settings: dict[str, Any], owns: list[dict[str, Any]]
) -> None:
    rng = np.random.default_rng(4)
    params = arrays(rng)
    apart = Apart(name, params, settings | {"clip_value": 0.02}, owns)
    optimizer = make(name, params, **settings, groups=by_name(owns), clip_norm=3.0, clip_value=0.02)
    for scale in (1.0, 0.25):
        grads = arrays(rng)
        norm = reference.grad_norm(params, grads, scale=scale)
        optimizer.step(grads, scale=scale)
        apart.step(grads, scale=scale * reference.clip_factor(norm, 3.0))
        assert optimizer.last == schuss.optimizers.Last(norm, clipped=True, skipped=False)
        assert equal(params, apart.params)


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
    values = [rng.standard_normal(shape) for shape in ((3, 4), (4,), (5,))]
    theirs = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
    other = getattr(torch.optim, name)(
        [{"params": theirs[:2]}, {"params": theirs[2], **own}], **settings
    )
    ours = {key: value for key, value in own.items() if key != "betas"}
    if "betas" in own:
        ours["beta1"], ours["beta2"] = own["betas"]
    optimizer = make(name, [{"params": values[:2]}, {"params": values[2], **ours}], **settings)
    for t in range(6):
        if t == 3:
            for each in (optimizer, other):
                each.param_groups[0]["lr"] *= 0.5
                each.param_groups[1]["weight_decay"] = 0.25
        grads = [rng.standard_normal(value.shape) for value in values]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = torch.from_numpy(grad)
        other.step()
        optimizer.step([grads[:2], grads[2]])
        for value, parameter in zip(values, theirs, strict=True):
            np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-10, atol=1e-12)


# How groups are given.


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
    zeros = {"layers": [{"W": np.zeros((2, 2)), "b": np.zeros(2)} for _ in range(2)]}
    optimizer.step(zeros)
    for layer in params["layers"]:
        assert (layer["W"] == 0.75).all()
        assert (layer["b"] == 1).all()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_parameters_with_the_same_hyperparameters_are_one_group() -> None:
    params = {key: np.zeros(1) for key in "abcdef"}
    own = {"a": None, "b": {"lr": 0.5}, "c": {}, "d": {"lr": 0.25}, "e": {"lr": 0.5}, "f": None}
    optimizer = schuss.SGD(params, groups=own.get)
    of_groups = [[params["a"], params["c"], params["f"]], [params["b"], params["e"]], [params["d"]]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5, 0.25]
    for group, members in zip(optimizer.param_groups, of_groups, strict=True):
        assert len(group["params"]) == len(members)
        assert all(a is b for a, b in zip(group["params"], members, strict=True))


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


def test_nesterov_in_one_group_leaves_the_others_without() -> None:
    # beta 1/2, dampening 0, one step from rest: v = 1, and with Nesterov 1 + v/2.
    params = [np.zeros(1), np.zeros(1)]
    groups: Groups = [{"params": params[0]}, {"params": params[1], "nesterov": True}]
    optimizer = schuss.Momentum(groups, lr=1.0, beta=0.5, dampening=0.0)
    optimizer.step([np.ones(1), np.ones(1)])
    assert [param.tolist() for param in params] == [[-1.0], [-1.5]]


# Reading and writing.


def test_a_group_is_a_mapping_of_its_hyperparameters() -> None:
    params = {"W": np.zeros(1), "b": np.zeros(1)}
    optimizer = schuss.Adam(params, lr=0.5, clip_norm=1.0, groups={"b": {"beta1": 0.5}}.get)
    keys = ["params", "lr", "beta1", "beta2", "eps", "eps_root", "amsgrad", "bias_correction"]
    for group, beta1 in zip(optimizer.param_groups, (0.9, 0.5), strict=True):
        assert list(group) == [*keys, "weight_decay"]
        assert len(group) == 9
        assert (group["lr"], group["beta1"], group["beta2"]) == (0.5, beta1, 0.999)
        assert "clip_norm" not in group
    assert optimizer.param_groups[1]["params"][0] is params["b"]
    assert "beta1': 0.5" in repr(optimizer.param_groups[1])
    assert "2 groups" in repr(optimizer)


def test_a_group_is_written_alone_and_from_the_next_step_on() -> None:
    params = {"W": np.zeros(1), "b": np.zeros(1)}
    own: dict[str, Any] = {"b": {"weight_decay": 0.0}, "W": {"lr": 1}}
    optimizer = schuss.SGD(params, lr=1.0, groups=own.get)
    grads = {"W": np.ones(1), "b": np.ones(1)}
    optimizer.step(grads)
    optimizer.param_groups[1]["lr"] = np.float32(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    assert optimizer.lr == 1.0
    optimizer.step(grads)
    assert [param.tolist() for param in params.values()] == [[-2.0], [-1.5]]


def test_the_optimizers_hyperparameters_are_those_of_groups_without_their_own() -> None:
    params = [np.zeros(1) for _ in range(3)]
    own: dict[str, Any] = {"1": {"lr": 0.5}, "2": {"weight_decay": 0.25}}
    optimizer = schuss.SGD(params, lr=1.0, groups=own.get)
    optimizer.lr = 2.0
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 0.5, 2.0]
    optimizer.step([np.ones(1)] * 3)
    assert [param.tolist() for param in params] == [[-2.0], [-0.5], [-2.0]]
    optimizer.param_groups[2]["lr"] = 4.0
    optimizer.lr = 8.0
    assert [group["lr"] for group in optimizer.param_groups] == [8.0, 0.5, 4.0]
    optimizer.weight_decay = 0.125
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.125, 0.25]
    before = [param.copy() for param in params]
    optimizer.step([np.zeros(1)] * 3)
    for param, old, shrinks in zip(params, before, (8 * 0.125, 0.5 * 0.125, 4 * 0.25), strict=True):
        assert param == old - shrinks * old


def test_of_one_group_the_optimizer_and_the_group_say_the_same() -> None:
    one: Groups = [{"params": np.zeros(1), "lr": 0.75}]
    for optimizer in (
        schuss.SGD(np.zeros(1), lr=0.75),
        schuss.SGD(one, lr=1.0),
        schuss.SGD([np.zeros(1), np.zeros(1)], lr=1.0, groups=lambda name: {"lr": 0.75}),
    ):
        (group,) = optimizer.param_groups
        assert (optimizer.lr, optimizer.lr_now, group["lr"]) == (0.75, 0.75, 0.75)
        assert "lr=0.75" in repr(optimizer)
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


# Schedules.


def test_each_groups_schedule_is_asked_once_a_step() -> None:
    asked: dict[str, list[int]] = {"all": [], "W": [], "b": []}

    def schedule(name: str, rate: float) -> Callable[[int], float]:
        return lambda t: asked[name].append(t) or rate / t  # type: ignore[func-returns-value]

    params = {"W": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1), "d": np.zeros(1)}
    own: dict[str, Any]
    own = {"W": {"lr": schedule("W", 0.5)}, "b": {"lr": schedule("b", 0.25)}, "d": {"lr": 2.0}}
    optimizer = schuss.SGD(params, lr=schedule("all", 1.0), groups=own.get)
    assert asked == {"all": [], "W": [], "b": []}
    for _ in range(2):
        optimizer.step({key: np.ones(1) for key in params})
    assert asked == {"all": [1, 2], "W": [1, 2], "b": [1, 2]}
    values = {key: param.tolist() for key, param in params.items()}
    assert values == {"W": [-0.75], "b": [-0.375], "c": [-1.5], "d": [-4.0]}
    assert optimizer.lr_now == 0.5
    assert optimizer.param_groups[0]["lr"] is own["W"]["lr"]


def test_lr_now_is_what_groups_use() -> None:
    def schedule(t: int) -> float:
        return 0.5 / t

    def never(t: int) -> float:
        raise AssertionError

    plateau = schuss.schedules.ReduceOnPlateau(0.25, 0.5, patience=0)
    params: Groups = [{"params": np.zeros(1), "lr": lr} for lr in (plateau, 2.0, schedule)]
    optimizer = schuss.SGD(params, lr=never)
    assert [group.lr_now for group in optimizer.param_groups] == [0.25, 2.0, 0.5]
    for _ in range(3):
        optimizer.step([np.ones(1)] * 3)
        before = [param.item() for param in optimizer.params]
        plateau.update(1.0)
    assert [group.lr_now for group in optimizer.param_groups] == [0.125, 2.0, 0.5 / 3]
    assert (plateau.lr, optimizer.lr_now) == (0.0625, 0.125)
    optimizer.param_groups[0]["weight_decay"] = 0.5  # no rate
    assert optimizer.lr_now == 0.125
    optimizer.param_groups[1]["lr"] = schedule  # in use at once, as that of an optimizer
    assert [group.lr_now for group in optimizer.param_groups] == [0.0625, 0.5 / 3, 0.5 / 3]
    assert [param.item() for param in optimizer.params] == before
    some = schuss.SGD([{"params": np.zeros(1), "lr": 1.0}, {"params": np.zeros(1)}], lr=3.0)
    assert (some.lr_now, [group.lr_now for group in some.param_groups]) == (3.0, [1.0, 3.0])


def test_what_each_group_has_of_its_own_cannot_be_set_for_all() -> None:
    params: Groups = [{"params": np.zeros(1), "lr": 1.0}, {"params": np.zeros(1), "lr": 2.0}]
    optimizer = schuss.SGD(params, lr=0.5)
    assert "lr=" not in repr(optimizer)
    with pytest.raises(
        ValueError,
        match=r"^SGD: lr is set where each of the 2 groups has its own, expected it set in the "
        r"groups \(param_groups\[0\]\['lr'\] = ...\)$",
    ):
        optimizer.lr = 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]
    optimizer.weight_decay = 0.25
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_a_schedule_of_two_groups_is_asked_once_a_step() -> None:
    rates = iter([0.5, 0.25])

    def schedule(t: int) -> float:
        return next(rates)

    params = [np.zeros(1) for _ in range(3)]
    own: dict[str, Any] = {"0": {"lr": schedule}, "1": {"lr": schedule, "weight_decay": 0.0}}
    optimizer = schuss.SGD(params, lr=schedule, groups=own.get)
    for _ in range(2):
        optimizer.step([np.ones(1)] * 3)
    assert [param.tolist() for param in params] == [[-0.75]] * 3


def test_a_groups_schedule_may_be_set_and_be_followed_by_a_number() -> None:
    optimizer = schuss.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1)}], lr=1.0)
    for lr in (lambda t: 0.5 * t, 0.25, schuss.schedules.Constant(0.125)):
        optimizer.param_groups[1]["lr"] = lr
        optimizer.step([np.ones(1), np.ones(1)])
    assert [param.tolist() for param in optimizer.params] == [[-3.0], [-0.875]]


def test_a_refused_step_asks_the_groups_schedules_again() -> None:
    asked: list[int] = []

    def schedule(t: int) -> float:
        asked.append(t)
        return 0.5

    groups: Groups = [{"params": np.zeros(1), "lr": schedule}, {"params": np.zeros(1)}]
    optimizer = schuss.SGD(groups)
    with pytest.raises(ValueError, match="has shape"):
        optimizer.step([np.ones(1), np.ones(2)])
    optimizer.step([np.ones(1), np.ones(1)])
    assert asked == [1, 1]
    assert optimizer.params[0].tolist() == [-0.5]


# Saving and copying.


def halve(t: int) -> float:
    return 0.5**t


def trained() -> tuple[Any, list[Any]]:
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


def leaves(optimizer: Any) -> list[Array]:
    trees = [optimizer.params, *optimizer.state.values()]
    return [leaf for tree in trees for leaf in (tree[0][0], *tree[1], tree[2])]


def settings(optimizer: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_its_groups(how: str) -> None:
    optimizer, grads = trained()
    other = COPIES[how](optimizer)
    assert settings(other) == settings(optimizer)
    for each in (other, optimizer):
        for tree in grads:
            each.step(tree)
    assert equal(leaves(other), leaves(optimizer))
    for group, array in zip(other.param_groups, (0, 1, 3), strict=True):
        assert group["params"][0] is leaves(other)[array]
    other.param_groups[1]["weight_decay"] = 0.5
    other.lr = 1.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.25, 0.01]
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, halve, 0.125]


def test_a_shallow_copy_has_groups_of_its_own() -> None:
    optimizer, grads = trained()
    other = copy.copy(optimizer)
    assert settings(other) == settings(optimizer)
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
    assert settings(resumed) == settings(optimizer)
    for tree in grads:
        optimizer.step(tree)
        resumed.step(tree)
    assert equal(leaves(resumed), leaves(optimizer))


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


def test_the_state_of_other_groups_is_refused() -> None:
    def make_with(*ends: int) -> Any:
        params = [np.ones(1) for _ in range(3)]
        cuts = [params[a:b] for a, b in zip((0, *ends), (*ends, 3), strict=True)]
        return schuss.Adam([{"params": cut} for cut in cuts])

    optimizer = make_with(1)
    optimizer.step([[np.ones(1)], [np.ones(1)] * 2])
    for saved in (
        make_with(2).state_dict(),
        make_with().state_dict(),
        make_with(1, 2).state_dict(),
    ):
        before, groups = bits([p for tree in optimizer.params for p in tree]), settings(optimizer)
        with pytest.raises(ValueError, match=r"^Adam\.load_state_dict: state_dict\['groups'\]"):
            optimizer.load_state_dict(saved)
        assert bits([p for tree in optimizer.params for p in tree]) == before
        assert (settings(optimizer), optimizer.steps) == (groups, 1)


def test_a_schedule_in_a_saved_group_does_not_change_with_training() -> None:
    schedule = schuss.schedules.Manual({1: 0.5, 3: 0.25})
    groups: Groups = [{"params": np.zeros(1), "lr": schedule}, {"params": np.zeros(1)}]
    optimizer = schuss.SGD(groups)
    saved = optimizer.state_dict()["groups"][0]["hyperparameters"]["lr"]
    copied = copy.copy(optimizer).param_groups[0]["lr"]
    loaded = schuss.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1)}])
    state = optimizer.state_dict()
    loaded.load_state_dict(state)
    given = state["groups"][0]["hyperparameters"]["lr"]
    schedules = [schedule, saved, copied, given, loaded.param_groups[0]["lr"]]
    assert len(set(map(id, schedules))) == 5
    assert [each(3) for each in schedules] == [0.25] * 5
