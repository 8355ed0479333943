"""torch.optim's optimizers, made by schuss: the same semantics, the same numbers."""

import copy
import io
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import same_bits

torch = pytest.importorskip("torch")
schuss_torch = pytest.importorskip("schuss.torch")

SHAPES = [(4, 3), (3,), (), (2, 3, 2), (0, 2)]

# The class and its options.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "alpha": 0.9}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "maximize": True}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True, "foreach": True}),
]


def parameters(dtype: Any = torch.float64) -> list[Any]:
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in SHAPES]
    made.append(torch.randn(3, 4, generator=rng, dtype=torch.float64).to(dtype).T)
    made.append(torch.randn(4, 8, generator=rng, dtype=torch.float64).to(dtype)[:, ::2])
    return [each.requires_grad_() for each in made]


def give_gradients(params: list[Any], t: int, without: tuple[int, ...] = ()) -> None:
    rng = torch.Generator().manual_seed(t)
    for place, param in enumerate(params):
        grad = torch.randn(param.shape, generator=rng, dtype=torch.float64).to(param.dtype)
        param.grad = None if place in without else grad


def both(name: str, options: dict[str, Any], groups: Any = list) -> list[Any]:
    """Return PyTorch's optimizer and ours, each with its parameters."""
    made = []
    for module in (torch.optim, schuss_torch):
        params = parameters()
        made.append((getattr(module, name)(groups(params), **copy.deepcopy(options)), params))
    return made


def assert_alike(theirs: Any, ours: Any, *, tolerance: float = 1e-12) -> None:
    (their_optimizer, their_params), (our_optimizer, our_params) = theirs, ours
    for expected, param in zip(their_params, our_params, strict=True):
        torch.testing.assert_close(param, expected, rtol=tolerance, atol=tolerance)
    expected, told = their_optimizer.state_dict(), our_optimizer.state_dict()
    assert told["param_groups"] == expected["param_groups"]
    assert told["state"].keys() == expected["state"].keys()
    for key, state in expected["state"].items():
        assert told["state"][key].keys() == state.keys()
        for name, value in state.items():
            found = told["state"][key][name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("without", [(), (1, 3)], ids=["all", "some without gradients"])
def test_steps_and_state_are_those_of_torch(
    name: str, options: dict[str, Any], without: tuple[int, ...]
) -> None:
    pair = both(name, options)
    for t in range(1, 8):
        for optimizer, params in pair:
            give_gradients(params, t, without if t % 3 else ())
            assert optimizer.step() is None
        assert_alike(*pair)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dicts_go_from_torch_to_schuss_and_back_in_the_middle(
    name: str, options: dict[str, Any]
) -> None:
    (theirs, their_params), (ours, our_params) = both(name, options)
    for t in range(1, 10):
        if t in (4, 7):
            saved, other = theirs.state_dict(), ours.state_dict()
            theirs, ours = (
                kind([p.detach() for p in params], lr=0.5)
                for kind, params in ((type(theirs), their_params), (type(ours), our_params))
            )
            theirs = type(theirs)(their_params, lr=0.5)
            ours = type(ours)(our_params, lr=0.5)
            theirs.load_state_dict(copy.deepcopy(other))
            ours.load_state_dict(copy.deepcopy(saved))
        for optimizer, params in ((theirs, their_params), (ours, our_params)):
            give_gradients(params, t)
            optimizer.step()
        assert_alike((theirs, their_params), (ours, our_params))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_as_the_original(how: str) -> None:
    model = torch.nn.Linear(3, 2).double()
    optimizer = schuss_torch.Adam(model.parameters(), lr=0.1, amsgrad=True)

    def train(model: Any, optimizer: Any, t: int) -> None:
        optimizer.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()

    train(model, optimizer, 1)
    if how == "deepcopy":
        other, other_optimizer = copy.deepcopy((model, optimizer))
    elif how == "pickle":
        other, other_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file)
        other = torch.nn.Linear(3, 2).double()
        other.load_state_dict(saved["model"])
        other_optimizer = schuss_torch.Adam(other.parameters())
        other_optimizer.load_state_dict(saved["optimizer"])
    for t in (2, 3):
        train(model, optimizer, t)
        train(other, other_optimizer, t)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("name", "options"), [CASES[3], CASES[9], ("Adam", {"lr": torch.tensor(0.1)})]
)
def test_schedulers_of_torch_set_the_rate(
    scheduler: str, name: str, options: dict[str, Any]
) -> None:
    pair = both(name, options)
    schedules = [SCHEDULERS[scheduler](optimizer) for optimizer, _ in pair]
    for t in range(1, 9):
        for (optimizer, params), schedule in zip(pair, schedules, strict=True):
            give_gradients(params, t)
            optimizer.step()
            schedule.step(*[3.0] * (scheduler == "ReduceLROnPlateau"))
        assert_alike(*pair, tolerance=1e-7 if "tensor" in str(options) else 1e-12)


def test_groups_have_what_is_theirs() -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "lr": 0.3},
            {"params": params[2:4], "amsgrad": True},
            {"params": params[4:6], "maximize": True, "betas": (0.5, 0.5)},
        ]

    pair = both("Adam", {"lr": 0.1}, groups)
    for t in range(1, 10):
        for optimizer, params in pair:
            if t == 3:
                optimizer.add_param_group({"params": params[6], "weight_decay": 0.1})
            if t == 5:
                optimizer.param_groups[0]["eps"] = 1e-3
                optimizer.param_groups[2]["weight_decay"] = 0.2
            if t == 7:
                optimizer.param_groups[0]["maximize"] = True
            give_gradients(params, t, (t % 4,))
            optimizer.step()
        assert_alike(*pair)


def states_of(optimizer: Any) -> list[Any]:
    return [optimizer.state[param] for param in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer, params: setattr(params[0], "data", params[0].data.clone()),
        lambda optimizer, params: setattr(params[0], "data", params[0].data.T.contiguous().T),
        lambda optimizer, params: setattr(params[0], "data", params[0].data[:2]),
        lambda optimizer, params: optimizer.state.clear(),
        lambda optimizer, params: optimizer.state.pop(params[1]),
        lambda optimizer, params: optimizer.state[params[1]].clear(),
        lambda optimizer, params: optimizer.state[params[0]]["exp_avg"].zero_(),
        lambda optimizer, params: optimizer.state[params[1]].update(
            exp_avg=torch.ones(3, dtype=torch.float64)
        ),
        lambda optimizer, params: [state["step"].fill_(1) for state in optimizer.state.values()],
        lambda optimizer, params: optimizer.state[params[1]].update(step=torch.tensor(9.0)),
        lambda optimizer, params: optimizer.param_groups[0]["params"].reverse(),
        lambda optimizer, params: optimizer.param_groups[0].update(betas=[0.5, 0.5]),
        lambda optimizer, params: [
            state["exp_avg"].share_memory_() for state in states_of(optimizer)
        ],
        lambda optimizer, params: [state["step"].share_memory_() for state in states_of(optimizer)],
        lambda optimizer, params: [
            state["exp_avg_sq"].__setattr__("data", torch.zeros_like(state["exp_avg_sq"]))
            for state in states_of(optimizer)
        ],
        lambda optimizer, params: [
            state["exp_avg"].set_(torch.ones_like(state["exp_avg"]))
            for state in states_of(optimizer)
        ],
    ],
)
def test_what_is_replaced_between_steps_is_noticed(change: Callable[[Any, Any], object]) -> None:
    pair = both("Adam", {"lr": 0.1})
    for t in range(1, 5):
        for optimizer, params in pair:
            give_gradients(params, t)
            if t == 3:
                change(optimizer, params)
                if params[0].shape == (2, 3):
                    params[0].grad = torch.ones(2, 3, dtype=torch.float64)
                    optimizer.state.pop(params[0])
            elif params[0].shape == (2, 3):
                params[0].grad = torch.ones(2, 3, dtype=torch.float64)
            optimizer.step()
        assert_alike(*pair)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"momentum": 0.5}),
        ("Adam", {}),
        ("AdamW", {}),
    ],
)
def test_what_a_group_has_beside_the_options_of_its_class_makes_no_difference(
    name: str, options: dict[str, Any]
) -> None:
    own = {"alpha": None, "betas": None, "amsgrad": "-", "eps": torch.ones(3), "nesterov": True}
    own |= {"dampening": 0.5, "centered": "-", "decoupled_weight_decay": True, "name": "mine"}

    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [{"params": params}]

    pair = both(name, {"lr": 0.1, **options}, groups)
    for optimizer, _ in pair:
        group = optimizer.param_groups[0]
        group.update({key: value for key, value in own.items() if key not in group})
    for t in range(1, 4):
        for optimizer, params in pair:
            optimizer.param_groups[0]["lr"] = 0.1 * t
            if name == "SGD":
                optimizer.param_groups[0]["eps"] = torch.ones(3)
            give_gradients(params, t)
            optimizer.step()
    for theirs, ours in zip(pair[0][1], pair[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("SGD", "weight_decay", (0.1, 0.5)),
        ("SGD", "momentum", (0.5, 0.9)),
        ("RMSprop", "alpha", (0.5, 0.9)),
        ("RMSprop", "eps", (0.1, 1.0)),
        ("Adam", "eps", (0.1, 1.0)),
    ],
)
def test_an_option_that_is_a_tensor_may_be_filled_between_steps(
    name: str, option: str, values: tuple[float, float]
) -> None:
    pair = both(name, {"lr": 0.1, option: 0.3})
    for optimizer, params in pair:
        tensor = torch.tensor(0.3, dtype=torch.float64)
        optimizer.param_groups[0][option] = tensor
        for t, value in enumerate(values):
            tensor.fill_(value)
            give_gradients(params, t)
            optimizer.step()
    for theirs, ours in zip(pair[0][1], pair[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_closure_and_hooks_are_called() -> None:
    calls: list[str] = []
    w = torch.ones(2, requires_grad=True)
    optimizer = schuss_torch.SGD([w], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Any:
        calls.append("closure")
        optimizer.zero_grad()
        loss = w.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert calls == ["before", "closure", "after"]
    assert w.tolist() == [0.5, 0.5]
    optimizer.zero_grad()
    optimizer.step()
    assert w.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9}, partial(schuss.Momentum, lr=0.1, dampening=0.0)),
        ("RMSprop", {"lr": 0.1}, partial(schuss.RMSprop, lr=0.1, beta=0.99)),
        ("Adam", {"lr": 0.1}, partial(schuss.Adam, lr=0.1)),
        ("AdamW", {"lr": 0.1}, partial(schuss.AdamW, lr=0.1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_those_of_schuss(name: str, options: Any, make: Any, dtype: Any) -> None:
    params = parameters(dtype)
    arrays = [param.detach().clone().numpy() for param in params]
    optimizer, expected = getattr(schuss_torch, name)(params, **options), make(arrays)
    for t in range(1, 6):
        give_gradients(params, t)
        optimizer.step()
        expected.step([param.grad.numpy() for param in params])
    assert all(same_bits(p.detach().numpy(), a) for p, a in zip(params, arrays, strict=True))


def test_grad_scaler_unscales_before_the_step() -> None:
    pair = both("Adam", {"lr": 0.1})
    # (PyTorch's own fused step goes wrong where a gradient lies otherwise than its parameter.)
    pair[1] = schuss_torch.Adam(pair[1][1], lr=0.1, fused=True), pair[1][1]
    for optimizer, params in pair:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.ones(1))
        for t in range(1, 4):
            give_gradients(params, t)
            for param in params:
                param.grad *= 1024.0 if t != 2 else np.inf
            scaler.step(optimizer)
            scaler.update(1024.0)
    torch.testing.assert_close(pair[1][1], pair[0][1])


@pytest.mark.parametrize(
    ("param", "grad", "options", "error", "words"),
    [
        (torch.ones(2, dtype=torch.bfloat16), None, {}, TypeError, "has dtype torch.bfloat16"),
        (torch.ones(2, dtype=torch.complex64), None, {}, TypeError, "has dtype torch.complex64"),
        (
            torch.ones(2, device="meta"),
            None,
            {},
            ValueError,
            "is torch.strided on meta, expected plain",
        ),
        (torch.ones(2), torch.ones(2).to_sparse(), {}, ValueError, "a gradient of shape (2,) is"),
        (torch.ones(2), None, {"differentiable": True}, ValueError, "differentiable is True"),
        (torch.ones(1).expand(2), None, {}, ValueError, "overlap"),
    ],
)
def test_what_cannot_be_stepped_is_refused_and_nothing_is_changed(
    param: Any, grad: Any, options: Any, error: Any, words: str
) -> None:
    first = torch.ones(3, requires_grad=True)
    first.grad = torch.ones(3)
    param = param.detach().requires_grad_()
    param.grad = torch.ones_like(param) if grad is None else grad
    optimizer = schuss_torch.Adam([first, param], **options)
    with pytest.raises(error, match=r"^Adam") as caught:
        optimizer.step()
    assert words in str(caught.value)
    assert first.tolist() == [1, 1, 1]
    assert not optimizer.state


# State dicts between torch.optim and the optimizers of schuss.

TRANSLATED: list[tuple[str, dict[str, Any], type[schuss.optimizers.Optimizer]]] = [
    (
        name,
        options,
        getattr(schuss, "Momentum" if "momentum" in options and name == "SGD" else name),
    )
    for name, options in CASES
    if not options.get("maximize")
]


@pytest.mark.parametrize(("name", "options", "kind"), TRANSLATED)
@pytest.mark.parametrize("at", [0, 3])
def test_training_goes_on_from_a_state_dict_of_torch_and_back(
    name: str, options: dict[str, Any], kind: Any, at: int
) -> None:
    if at == 0 and options.get("dampening"):
        pytest.skip("torch.optim does not dampen its first step, and schuss does")
    expected = parameters()
    theirs = getattr(torch.optim, name)(expected, **options)
    params = [param.detach().clone().requires_grad_() for param in expected]
    for t in range(1, at + 1):
        give_gradients(expected, t)
        theirs.step()
    arrays = [param.detach().clone().numpy() for param in expected]
    ours = kind(arrays, clip_norm=1e9)
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    for t in range(at + 1, 10):
        give_gradients(expected, t)
        theirs.step()
        if t <= 6:
            ours.step([param.grad.numpy() for param in expected])
        if t == 6:
            for param, array in zip(params, arrays, strict=True):
                param.data = torch.from_numpy(array)
            back = getattr(torch.optim, name)(params, lr=7.0)
            back.load_state_dict(schuss_torch.state_dict(ours))
        if t > 6:
            give_gradients(params, t)
            back.step()
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)
    assert ours.clip_norm == 1e9


def two_groups(kind: Any, params: list[Any], *options: dict[str, Any]) -> Any:
    parts = (params[:3], params[3:])
    groups = [{"params": part, **own} for part, own in zip(parts, options, strict=True)]
    return kind(groups, lr=0.1)


def assert_goes_on_alike(theirs: Any, ours: Any, steps: range) -> None:
    params = [param for group in theirs.param_groups for param in group["params"]]
    for t in steps:
        give_gradients(params, t)
        theirs.step()
        grads = [param.grad.numpy() for param in params]
        ours.step([grads[:3], grads[3:]])
    arrays = [array for group in ours.params for array in group]
    for param, array in zip(params, arrays, strict=True):
        np.testing.assert_allclose(array, param.detach().numpy(), rtol=1e-12)


def test_a_state_dict_tells_the_rate_that_each_group_used() -> None:
    told = {0: iter([0.5, 0.25]), 1: iter([0.125, 0.0625])}
    groups: list[dict[str, Any]] = [
        {"params": np.ones(1), "lr": lambda t, rates=rates: next(rates)} for rates in told.values()
    ]
    optimizer = schuss.SGD(groups)
    for _ in range(2):
        optimizer.step([np.ones(1)] * 2)
    saved = schuss_torch.state_dict(optimizer)
    assert [group["lr"] for group in saved["param_groups"]] == [0.25, 0.0625]


def test_groups_go_there_and_back() -> None:
    theirs = two_groups(torch.optim.AdamW, parameters(), {}, {"lr": 0.5, "weight_decay": 0.1})
    arrays = [param.detach().numpy() for param in parameters()]
    ours = two_groups(schuss.AdamW, arrays, {}, {"lr": 0.9})
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert [group["lr"] for group in ours.param_groups] == [0.1, 0.5]
    assert_goes_on_alike(theirs, ours, range(1, 3))
    told = schuss_torch.state_dict(ours)
    assert told["param_groups"] == theirs.state_dict()["param_groups"]


def test_low_precision_parameters_take_over_state() -> None:
    param = torch.ones(4, dtype=torch.float16, requires_grad=True)
    theirs = torch.optim.Adam([param], lr=0.1)
    param.grad = torch.full((4,), 0.5, dtype=torch.float16)
    theirs.step()
    ours = schuss.Adam(np.ones(4, np.float16))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    expected = theirs.state_dict()["state"][0]["exp_avg"].numpy()
    assert (ours.state["m"] == expected).all()
    assert ours.state["m"].dtype == np.float32


def test_what_torch_cannot_say_or_schuss_cannot_do_is_refused() -> None:
    w = np.ones(3)

    def stepped(optimizer: Any) -> Any:
        optimizer.step(np.ones(3))
        return optimizer

    waiting = schuss.SGD(w)
    waiting.accumulate(np.ones(3))
    for optimizer, words in [
        (schuss.Adam(w, eps_root=0.1), "eps_root is 0.1, expected 0.0, as torch.optim has it"),
        (schuss.Adam(w, bias_correction=False), "bias_correction is False, expected True"),
        (schuss.Momentum(w, bias_correction=True), "bias_correction is True, expected False"),
        (schuss.Momentum(w, nesterov=True), "dampening is 0.9 with nesterov, expected 0"),
        (schuss.Momentum(w, beta=0, dampening=0.5), "dampening is 0.5 where beta is 0, expected 0"),
        (waiting, "1 gradients are accumulated, expected none"),
    ]:
        with pytest.raises(ValueError, match=r"^state_dict: ") as caught:
            schuss_torch.state_dict(optimizer)
        assert words in str(caught.value)
    with pytest.raises(TypeError, match=r"^state_dict: optimizer is a int, expected one of SGD"):
        schuss_torch.state_dict(3)
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    param.grad = torch.ones_like(param)
    adam = torch.optim.Adam([param])
    adam.step()
    uneven = torch.optim.Adam([param, other])
    uneven.step()
    other.grad = torch.ones_like(other)
    uneven.step()
    one = schuss.Adam(w)
    two = schuss.Adam([w, np.ones(3)])
    maximizing = torch.optim.Adam([param], maximize=True)
    dampened = torch.optim.SGD([param], momentum=0.9, dampening=0.5)
    cases: list[tuple[Any, Any, str]] = [
        (one, {}, "state_dict has the keys []"),
        (
            one,
            {"state": {}, "param_groups": [{"params": [0]}]},
            "expected those of torch.optim.Adam",
        ),
        (schuss.AdamW(w), adam.state_dict(), "is of Adam, expected AdamW"),
        (one, maximizing.state_dict(), "['maximize'] is True, expected False"),
        (two, adam.state_dict(), "state_dict has 1 parameters, expected 2"),
        (two, uneven.state_dict(), "counts [1, 2] steps, expected the same for all"),
        (schuss.Momentum(w), dampened.state_dict(), "no 'momentum_buffer' where dampening is set"),
        (schuss.Adam(np.ones(4)), adam.state_dict(), "has shape (3,), expected (4,)"),
    ]
    for optimizer, state, words in cases:
        before = repr(optimizer), optimizer.state_dict()["steps"]
        with pytest.raises((TypeError, ValueError)) as refused:
            schuss_torch.load_state_dict(optimizer, state)
        assert "load_state_dict: " in str(refused.value)
        assert words in str(refused.value)
        assert (repr(optimizer), optimizer.steps) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(state=[]), "state_dict['state'] is a list, expected a mapping"),
        (lambda s: s.update(param_groups=[]), "state_dict['param_groups'] is [], expected a list"),
        (lambda s: s.update(param_groups=[3]), "['param_groups'][0] is a int, expected a mapping"),
        (lambda s: s["param_groups"][0].pop("params"), "expected those of torch.optim.Adam"),
        (lambda s: s["state"].update({0: [1]}), "['state'][0] is a list, expected a mapping"),
        (lambda s: s["state"].pop(1), "['state'][1] has no 'step', expected all parameters or"),
        (lambda s: s["state"][1].pop("step"), "['state'][1] has no 'step'"),
        (lambda s: s["state"][0].update(step=1.5), "['step'] is 1.5, expected a whole number"),
        (lambda s: s["state"][0].update(step=np.nan), "['step'] is nan, expected a whole number"),
        (lambda s: s["state"][0].update(step="1"), "['step'] is a str, expected a number"),
        (lambda s: s["state"][0].pop("exp_avg"), "['state'][0] has no 'exp_avg', expected it"),
        (lambda s: s["state"][0].update(exp_avg=[1.0]), "['exp_avg'] is of list, expected a ten"),
        (
            lambda s: s["state"][0].update(exp_avg=torch.ones(3, dtype=torch.complex64)),
            "['exp_avg'] is of torch.complex64, expected a tensor of floating point",
        ),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "has no 'max_exp_avg_sq'"),
        (lambda s: s["param_groups"][0].update(params=[0, 0]), "[0, 0], expected keys, each once"),
        (lambda s: s["param_groups"][0].update(params=[[0], 1]), "expected keys, each once"),
        (lambda s: s["param_groups"][0].update(params=2), "['params'] is a int, expected a list"),
        (
            lambda s: s["param_groups"][0].update(betas=0.9),
            "['betas'] is 0.9, expected two numbers",
        ),
        (lambda s: s["param_groups"][0].update(lr="fast"), "['lr'] is a str, expected a number"),
        (lambda s: s["param_groups"][0].update(lr=torch.ones(2)), "['lr'] is a Tensor, expected a"),
        (
            lambda s: s["param_groups"][0].update(eps=torch.ones((), device="meta")),
            "['eps'] is ten",
        ),
        (
            lambda s: s["state"][0].update(exp_avg=torch.ones(3, device="meta")),
            "['exp_avg'] is torch.strided on meta, expected plain numbers",
        ),
    ],
)
def test_a_damaged_state_dict_is_refused_and_nothing_is_changed(
    change: Callable[[Any], object], words: str
) -> None:
    params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    theirs = torch.optim.Adam(params, lr=0.5)
    for param in params:
        param.grad = torch.ones_like(param)
    theirs.step()
    ours = schuss.Adam([np.ones(3), np.ones(2)], lr=0.1)
    saved = theirs.state_dict()
    schuss_torch.load_state_dict(ours, saved)  # which is in order
    ours.step([np.ones(3), np.ones(2)])
    before = ours.state_dict()
    damaged = copy.deepcopy(saved)
    change(damaged)
    with pytest.raises((TypeError, ValueError), match=r"^load_state_dict: ") as refused:
        schuss_torch.load_state_dict(ours, damaged)
    assert words in str(refused.value)
    assert str(ours.state_dict()) == str(before)


def test_momentum_in_one_group_and_none_in_another_goes_there() -> None:
    params = parameters()
    nesterov = {"momentum": 0.9, "nesterov": True}
    theirs = two_groups(torch.optim.SGD, params, nesterov, {"dampening": 0.5})
    give_gradients(params, 1)
    theirs.step()
    arrays = [param.detach().clone().numpy() for param in params]
    ours = two_groups(schuss.Momentum, arrays, {}, {})
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert_goes_on_alike(theirs, ours, range(2, 4))


def test_what_a_group_without_momentum_still_has_of_it_is_left() -> None:
    param = torch.ones(2, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([param], lr=0.1, momentum=0.5)
    param.grad = torch.full_like(param, torch.inf)
    theirs.step()
    theirs.param_groups[0]["momentum"] = 0
    ours = schuss.Momentum(np.ones(2))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    ours.step(np.ones(2))
    assert (ours.params == 0.9).all()


def test_no_step_is_lost_where_float32_cannot_count_it() -> None:
    steps = (1 << 24) + 1
    ours = schuss.Adam(np.ones(3))
    ours.load_state_dict(ours.state_dict() | {"steps": steps})
    theirs = torch.optim.Adam([torch.ones(3, dtype=torch.float64)])
    theirs.load_state_dict(schuss_torch.state_dict(ours))
    other = schuss.Adam(np.ones(3))
    schuss_torch.load_state_dict(other, theirs.state_dict())
    assert other.steps == steps
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    fused = schuss_torch.Adam([param])
    fused.load_state_dict(theirs.state_dict())
    param.grad = torch.ones_like(param)
    fused.step()
    assert fused.state[param]["step"].item() == steps + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dampening": 0.5}, "SGD.step: dampening is 0.5 with nesterov, expected 0"),
        ({"differentiable": True}, "SGD.step: differentiable is True, expected False"),
        ({"lr": "fast"}, r"SGD.step: param_groups\[0\]\['lr'\] is a str, expected a number"),
        ({"momentum": None}, r"SGD.step: param_groups\[0\]\['momentum'\] is a NoneType, exp"),
        ({"momentum": torch.ones(2)}, r"SGD.step: param_groups\[0\]\['momentum'\] is a Tensor"),
    ],
)
def test_what_is_set_between_steps_is_refused_as_at_the_first(
    change: dict[str, Any], words: str
) -> None:
    w = torch.ones(3, requires_grad=True)
    optimizer = schuss_torch.SGD([w], lr=0.5, momentum=0.5, nesterov=True)
    w.grad = torch.ones(3)
    optimizer.step()
    before = w.tolist()
    optimizer.param_groups[0].update(change)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=words):
            optimizer.step()
        assert w.tolist() == before
    good = {"dampening": 0, "differentiable": False, "lr": 0.5, "momentum": 0.5}
    optimizer.param_groups[0].update(good)
    optimizer.step()
    assert w.tolist() != before


def test_going_back_through_what_a_parameter_was_is_refused() -> None:
    for module in (torch.optim, schuss_torch):
        w = torch.tensor([2.0], requires_grad=True)
        optimizer = module.SGD([w], lr=0.5)
        loss = (w**3).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_each_group_tells_its_own_rate() -> None:
    group = {"lr": schuss.schedules.Constant(0.5)}
    lr = schuss.schedules.Linear(0.1, 0.3, steps=3)
    params = {"a": np.ones(1), "b": np.ones(1)}
    optimizer = schuss.Adam(params, lr, groups=lambda name: group if name == "b" else None)
    for _ in range(2):
        optimizer.step({"a": np.ones(1), "b": np.ones(1)})
    told = schuss_torch.state_dict(optimizer)["param_groups"]
    np.testing.assert_allclose([group["lr"] for group in told], [lr(2), 0.5])


def test_a_velocity_goes_there_and_back_without_a_count_of_steps() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    w.grad = torch.ones_like(w)
    theirs.step()
    ours = schuss.Momentum(np.ones(3))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    back = schuss_torch.state_dict(ours)["state"][0]["momentum_buffer"]
    assert back.tolist() == [1, 1, 1]
    plain = torch.optim.SGD([w], lr=0.1)
    plain.step()
    counted = schuss.SGD(np.ones(3))
    counted.step(np.ones(3))
    schuss_torch.load_state_dict(counted, plain.state_dict())
    assert (counted.steps, counted.lr) == (1, 0.1)
    with pytest.raises(ValueError, match=r"^state_dict: dampening is set before the first step"):
        schuss_torch.state_dict(schuss.Momentum(np.ones(3), dampening=0.5))


@pytest.mark.skipif(os.name != "posix", reason="there is no such timer")
def test_a_step_that_ctrl_c_meets_was_made_or_was_not(interrupt: Any) -> None:
    param = torch.zeros(500_000, requires_grad=True)
    param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(0))
    optimizer = schuss_torch.Adam([param], lr=0.1)
    grad, twin = param.grad.numpy(), schuss.Adam(np.zeros(500_000, np.float32), lr=0.1)
    chance, interrupted = random.Random(0), 0
    optimizer.step()
    twin.step(grad)
    while interrupted < 25:
        interrupt(chance.uniform(1e-6, 1e-3))
        try:
            optimizer.step()
        except KeyboardInterrupt:
            interrupted += 1
        interrupt(0)
        if optimizer.state[param]["step"].item() == twin.steps + 1:
            twin.step(grad)
        assert same_bits(param.detach().numpy(), twin.params)
        assert same_bits(optimizer.state[param]["exp_avg"].numpy(), twin.state["m"])


def test_parameters_stepped_before_another_was_refused_keep_their_state() -> None:
    def made(module: Any) -> tuple[Any, list[Any]]:
        params = [torch.ones(2, requires_grad=True) for _ in range(2)]
        groups = [{"params": params[:1]}, {"params": params[1:], "maximize": True}]
        return module.Adam(groups, lr=0.1), params

    optimizer, params = made(schuss_torch)
    expected, twins = made(torch.optim)
    for each in (*params, twins[0]):
        each.grad = torch.ones(2)
    params[1].grad = params[1].detach()  # which a step may not write while it reads it
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step()
    expected.step()
    for each in (*params, *twins):
        each.grad = torch.full((2,), 3.0)
    optimizer.step()
    expected.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin)


def test_a_first_step_that_was_refused_is_still_the_first() -> None:
    results = []
    for module in (torch.optim, schuss_torch):
        w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        optimizer = module.SGD([w], lr=0.1, momentum=0.9, dampening=0.5)
        if module is schuss_torch:
            w.grad = w.detach()
            with pytest.raises(ValueError, match="share"):
                optimizer.step()
            assert not optimizer.state
        w.grad = torch.ones_like(w)
        optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(*results)


def test_betas_and_state_can_be_changed_where_they_are() -> None:
    results = []
    for module in (torch.optim, schuss_torch):
        pair = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimizer = module.Adam(pair, lr=0.1)
        optimizer.param_groups[0]["betas"] = betas = [0.9, 0.999]
        held: dict[str, Any] = {}
        for t in range(4):
            for place, w in enumerate(pair):
                w.grad = torch.full_like(w, t + 1.0) if t != 1 or place == 0 else None
            if t == 2:
                betas[0] = 0.1
                held["exp_avg"] = torch.zeros(2, dtype=torch.float64)
            optimizer.step()
            if t == 0:
                held = optimizer.state[pair[0]]
        results.append(torch.cat([w.detach() for w in pair]))
    torch.testing.assert_close(*results)
