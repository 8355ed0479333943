"""torch.optim's optimizers, made by schuss: the same semantics, the same numbers."""

import copy
import io
import os
import pickle
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import equal, same_bits

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
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=rng, dtype=torch.float64).to(param.dtype)
        param.grad = None if i in without else grad


def of_ones(n: int = 3, dtype: Any = torch.float64, grad: float = 1.0) -> Any:
    """Return a parameter of ones whose gradient is filled with a number."""
    param = torch.ones(n, dtype=dtype, requires_grad=True)
    param.grad = torch.full_like(param, grad)
    return param


def arrays_of(params: list[Any]) -> list[Any]:
    return [param.detach().clone().numpy() for param in params]


def step_both(pair: list[Any], t: int, without: tuple[int, ...] = ()) -> None:
    for optimizer, params in pair:
        give_gradients(params, t, without)
        assert optimizer.step() is None


def assert_close(some: list[Any], others: list[Any]) -> None:
    torch.testing.assert_close(some, others, rtol=1e-12, atol=1e-12)


def assert_both_train_alike(train: Callable[[Any], Any]) -> None:
    """Assert that `train` returns the same numbers for both modules."""
    assert_close(*([each.detach() for each in train(m)] for m in (schuss_torch, torch.optim)))


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
    expected, saved = their_optimizer.state_dict(), our_optimizer.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for key, state in expected["state"].items():
        assert saved["state"][key].keys() == state.keys()
        for name, value in state.items():
            found = saved["state"][key][name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("without", [(), (1, 3)], ids=["all", "some without gradients"])
def test_steps_and_state_are_those_of_torch_also_after_each_loaded_that_of_the_other(
    name: str, options: dict[str, Any], without: tuple[int, ...]
) -> None:
    pair = both(name, options)
    for t in range(1, 10):
        if t in (4, 7):
            saved = [copy.deepcopy(optimizer.state_dict()) for optimizer, _ in pair]
            pair = [(type(optimizer)(params, lr=0.5), params) for optimizer, params in pair]
            for (optimizer, _), of_the_other in zip(pair, reversed(saved), strict=True):
                optimizer.load_state_dict(of_the_other)
        step_both(pair, t, without if t % 3 else ())
        assert_alike(*pair)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_as_the_original(how: str) -> None:
    model = torch.nn.Linear(3, 2).double()
    optimizer = schuss_torch.Adam(model.parameters(), lr=0.1, amsgrad=True)
    step_both([(optimizer, [*model.parameters()])], 1)
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
        step_both([(optimizer, [*model.parameters()]), (other_optimizer, [*other.parameters()])], t)
        assert all(map(torch.equal, model.parameters(), other.parameters()))


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
        step_both(pair, t, (t % 4,))
        assert_alike(*pair)


@pytest.mark.parametrize(
    "change",
    [
        "params[0].data = params[0].data.clone()",
        "params[0].data = params[0].data.T.contiguous().T",
        "params[0].data = params[0].data[:2]; state.pop(params[0])",
        "state.clear()",
        "state.pop(params[1])",
        "state[params[1]].clear()",
        "state[params[0]]['exp_avg'].zero_()",
        "state[params[1]]['exp_avg'] = torch.ones(3, dtype=torch.float64)",
        "for each in states: each['step'].fill_(1)",
        "state[params[1]]['step'] = torch.tensor(9.0)",
        "group['params'].reverse()",
        "group['betas'] = [0.5, 0.5]",
        "for each in states: each['exp_avg'].share_memory_()",
        "for each in states: each['step'].share_memory_()",
        "for each in states: each['exp_avg_sq'].data = torch.zeros_like(each['exp_avg_sq'])",
        "for each in states: each['exp_avg'].set_(torch.ones_like(each['exp_avg']))",
    ],
)
def test_what_is_replaced_between_steps_is_noticed(change: str) -> None:
    pair = both("Adam", {"lr": 0.1})
    for t in range(1, 5):
        for optimizer, params in pair:
            if t == 3:
                state, group = optimizer.state, optimizer.param_groups[0]
                names = {"params": params, "state": state, "group": group, "torch": torch}
                exec(change, {"states": [state[p] for p in group["params"]], **names})
        step_both(pair, t)
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
def test_keys_of_a_group_that_its_class_does_not_know_make_no_difference(
    name: str, options: dict[str, Any]
) -> None:
    own = {"alpha": None, "betas": None, "amsgrad": "-", "eps": torch.ones(3), "nesterov": True}
    own |= {"dampening": 0.5, "centered": "-", "decoupled_weight_decay": True, "name": "mine"}
    pair = both(name, {"lr": 0.1, **options})
    for t in range(1, 4):
        for optimizer, _ in pair:
            group = optimizer.param_groups[0]
            group.update({key: value for key, value in own.items() if key not in group})
            group["lr"] = 0.1 * t
            if name == "SGD":
                group["eps"] = torch.ones(3)
        step_both(pair, t)
    assert_close(pair[0][1], pair[1][1])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(("SGD", option) for option in ("weight_decay", "momentum")),
        *(("RMSprop", option) for option in ("alpha", "eps")),
        ("Adam", "eps"),
    ],
)
def test_an_option_that_is_a_tensor_may_be_filled_between_steps(name: str, option: str) -> None:
    pair = both(name, {"lr": 0.1, option: 0.3})
    tensor = torch.tensor(0.3, dtype=torch.float64)
    for optimizer, _ in pair:
        optimizer.param_groups[0][option] = tensor
    for t, value in enumerate((0.5, 0.9)):
        tensor.fill_(value)
        step_both(pair, t)
    assert_close(pair[0][1], pair[1][1])


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
    arrays = arrays_of(params)
    optimizer, expected = getattr(schuss_torch, name)(params, **options), make(arrays)
    for t in range(1, 6):
        step_both([(optimizer, params)], t)
        expected.step([param.grad.numpy() for param in params])
    assert equal(arrays_of(params), arrays)


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
        ("ones(2, dtype=bfloat16)", "", {}, TypeError, "has dtype torch.bfloat16"),
        ("ones(2, dtype=complex64)", "", {}, TypeError, "has dtype torch.complex64"),
        (
            "ones(2, device='meta')",
            "",
            {},
            ValueError,
            "is torch.strided on meta, expected a dense",
        ),
        ("ones(2)", "ones(2).to_sparse()", {}, ValueError, "a gradient of shape (2,) is"),
        ("ones(2)", "", {"differentiable": True}, ValueError, "differentiable is True"),
        ("ones(1).expand(2)", "", {}, ValueError, "overlap"),
    ],
)
def test_what_cannot_be_stepped_is_refused_and_nothing_is_changed(
    param: str, grad: str, options: Any, error: Any, words: str
) -> None:
    first, other = of_ones(), eval(param, vars(torch).copy()).detach().requires_grad_()
    other.grad = eval(grad, vars(torch).copy()) if grad else torch.ones_like(other)
    optimizer = schuss_torch.Adam([first, other], **options)
    with pytest.raises(error, match=r"^Adam") as caught:
        optimizer.step()
    assert words in str(caught.value)
    assert first.tolist() == [1, 1, 1]
    assert not optimizer.state


# State dicts between torch.optim and the optimizers of schuss.


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("at", [0, 3])
def test_training_goes_on_from_a_state_dict_of_torch_and_back(
    name: str, options: dict[str, Any], at: int
) -> None:
    if at == 0 and options.get("dampening"):
        pytest.skip("torch.optim does not dampen its first step, and schuss does")
    expected, params = parameters(), parameters()
    theirs = getattr(torch.optim, name)(expected, **options)
    for t in range(1, at + 1):
        step_both([(theirs, expected)], t)
    arrays = arrays_of(expected)
    kind = "Momentum" if "momentum" in options and name == "SGD" else name
    ours = getattr(schuss, kind)(arrays, clip_norm=1e9)
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    for t in range(at + 1, 7):
        step_both([(theirs, expected)], t)
        ours.step([param.grad.numpy() for param in expected])
    for param, array in zip(params, arrays, strict=True):
        param.data = torch.from_numpy(array)
    back = getattr(torch.optim, name)(params, lr=7.0)
    back.load_state_dict(schuss_torch.state_dict(ours))
    for t in range(7, 10):
        step_both([(theirs, expected), (back, params)], t)
    assert_close(params, expected)
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
    found = {0: iter([0.5, 0.25]), 1: iter([0.125, 0.0625])}
    groups: list[dict[str, Any]] = [
        {"params": np.ones(1), "lr": lambda t, rates=rates: next(rates)} for rates in found.values()
    ]
    optimizer = schuss.SGD(groups)
    for _ in range(2):
        optimizer.step([np.ones(1)] * 2)
    saved = schuss_torch.state_dict(optimizer)
    assert [group["lr"] for group in saved["param_groups"]] == [0.25, 0.0625]


def test_groups_go_there_and_back() -> None:
    theirs = two_groups(torch.optim.AdamW, parameters(), {}, {"lr": 0.5, "weight_decay": 0.1})
    ours = two_groups(schuss.AdamW, arrays_of(parameters()), {}, {"lr": 0.9})
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert [group["lr"] for group in ours.param_groups] == [0.1, 0.5]
    assert_goes_on_alike(theirs, ours, range(1, 3))
    found = schuss_torch.state_dict(ours)
    assert found["param_groups"] == theirs.state_dict()["param_groups"]


def test_low_precision_parameters_take_over_state() -> None:
    theirs = torch.optim.Adam([of_ones(4, torch.float16, grad=0.5)], lr=0.1)
    theirs.step()
    ours = schuss.Adam(np.ones(4, np.float16))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    expected = theirs.state_dict()["state"][0]["exp_avg"].numpy()
    assert (ours.state["m"] == expected).all()
    assert ours.state["m"].dtype == np.float32


WAITING = schuss.SGD(np.ones(3))
WAITING.accumulate(np.ones(3))


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("Adam(w, eps_root=0.1)", "eps_root is 0.1, expected 0.0, as torch.optim has it"),
        ("Adam(w, bias_correction=False)", "bias_correction is False, expected True"),
        ("Momentum(w, bias_correction=True)", "bias_correction is True, expected False"),
        ("Momentum(w, nesterov=True)", "dampening is 0.9 with nesterov, expected 0"),
        ("Momentum(w, beta=0, dampening=0.5)", "dampening is 0.5 where beta is 0, expected 0"),
        ("Momentum(w, dampening=0.5)", "dampening is set before the first step"),
        ("WAITING", "1 gradients are accumulated, expected none"),
        ("3", "optimizer is a int, expected one of SGD"),
    ],
)
def test_what_torch_cannot_say_is_refused(optimizer: str, words: str) -> None:
    given = eval(optimizer, {**vars(schuss), "w": np.ones(3), "WAITING": WAITING})
    with pytest.raises((TypeError, ValueError), match=f"^state_dict: {re.escape(words)}"):
        schuss_torch.state_dict(given)


def test_what_schuss_cannot_do_is_refused() -> None:
    param, other, w = of_ones(), of_ones(), np.ones(3)
    adam, uneven = torch.optim.Adam([param]), torch.optim.Adam([param, other])
    adam.step()
    other.grad = None
    uneven.step()
    other.grad = torch.ones_like(other)
    uneven.step()
    one = schuss.Adam(w)
    two = schuss.Adam([w, np.ones(3)])
    plain: Any = {"state": {}, "param_groups": [{"params": [0]}]}
    dampened = torch.optim.SGD([param], momentum=0.9, dampening=0.5)
    cases: list[tuple[Any, Any, str]] = [
        (one, {}, "state_dict has the keys []"),
        (one, plain, "expected those of torch.optim.Adam"),
        (schuss.AdamW(w), adam.state_dict(), "is of Adam, expected AdamW"),
        (two, adam.state_dict(), "state_dict has 1 parameters, expected 2"),
        (two, uneven.state_dict(), "counts [1, 2] steps, expected the same for all"),
        (schuss.Momentum(w), dampened.state_dict(), "no 'momentum_buffer' where dampening is set"),
        (schuss.Adam(np.ones(4)), adam.state_dict(), "has shape (3,), expected (4,)"),
    ]
    for optimizer, state, words in cases:
        before = repr(optimizer), optimizer.steps
        with pytest.raises((TypeError, ValueError)) as refused:
            schuss_torch.load_state_dict(optimizer, state)
        assert "load_state_dict: " in str(refused.value)
        assert words in str(refused.value)
        assert (repr(optimizer), optimizer.steps) == before


# What damages a state dict `s`, of which `g` is the group and `p` the state of the first
# parameter, and what the message says.
DAMAGES = [
    ("s['state'] = []", "state_dict['state'] is a list, expected a mapping"),
    ("s['param_groups'] = []", "state_dict['param_groups'] is [], expected a non"),
    ("s['param_groups'] = [3]", "['param_groups'][0] is a int, expected a mapping"),
    ("del g['params']", "expected those of torch.optim.Adam"),
    ("s['state'][0] = [1]", "['state'][0] is a list, expected a mapping"),
    ("del s['state'][1]", "['state'][1] has no 'step', expected it for all param"),
    ("del s['state'][1]['step']", "['state'][1] has no 'step'"),
    ("p['step'] = 1.5", "['step'] is 1.5, expected a whole number"),
    ("p['step'] = inf - inf", "['step'] is nan, expected a whole number"),
    ("p['step'] = '1'", "['step'] is a str, expected a number"),
    ("del p['exp_avg']", "['state'][0] has no 'exp_avg', expected it"),
    ("p['exp_avg'] = [1.0]", "['exp_avg'] is of list, expected a flo"),
    (
        "p['exp_avg'] = ones(3, dtype=complex64)",
        "['exp_avg'] is of torch.complex64, expected a flo",
    ),
    ("p['exp_avg'] = ones(3, device='meta')", "is torch.strided on meta, expected a dense tensor"),
    ("g['amsgrad'] = True", "has no 'max_exp_avg_sq'"),
    ("g['params'] = [0, 0]", "[0, 0], expected unique keys"),
    ("g['params'] = [[0], 1]", "expected unique keys"),
    ("g['params'] = 2", "['params'] is a int, expected a list"),
    ("g['betas'] = 0.9", "['betas'] is 0.9, expected two numbers"),
    ("g['lr'] = 'fast'", "['lr'] is a str, expected a number"),
    ("g['lr'] = ones(2)", "['lr'] is a Tensor, expected a"),
    ("g['eps'] = ones((), device='meta')", "['eps'] is ten"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_state_dict_is_refused_and_nothing_is_changed(damage: str, words: str) -> None:
    theirs = torch.optim.Adam([of_ones(3), of_ones(2)], lr=0.5)
    theirs.step()
    ours = schuss.Adam([np.ones(3), np.ones(2)], lr=0.1)
    saved = theirs.state_dict()
    schuss_torch.load_state_dict(ours, saved)  # which is in order
    ours.step([np.ones(3), np.ones(2)])
    before, s = ours.state_dict(), copy.deepcopy(saved)
    exec(damage, {"s": s, "g": s["param_groups"][0], "p": s["state"][0], **vars(torch)})
    with pytest.raises((TypeError, ValueError), match=r"^load_state_dict: ") as refused:
        schuss_torch.load_state_dict(ours, s)
    assert words in str(refused.value)
    assert str(ours.state_dict()) == str(before)


def test_momentum_in_one_group_and_none_in_another_goes_there() -> None:
    params = parameters()
    nesterov = {"momentum": 0.9, "nesterov": True}
    theirs = two_groups(torch.optim.SGD, params, nesterov, {"dampening": 0.5})
    step_both([(theirs, params)], 1)
    ours = two_groups(schuss.Momentum, arrays_of(params), {}, {})
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert_goes_on_alike(theirs, ours, range(2, 4))


def test_what_a_group_without_momentum_still_has_of_it_is_left() -> None:
    theirs = torch.optim.SGD([of_ones(2, grad=torch.inf)], lr=0.1, momentum=0.5)
    theirs.step()
    theirs.param_groups[0]["momentum"] = 0
    ours = schuss.Momentum(np.ones(2))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    ours.step(np.ones(2))
    assert (ours.params == 0.9).all()


def test_no_step_is_lost_where_float32_cannot_count_it() -> None:
    steps, param = (1 << 24) + 1, of_ones()
    ours, other = schuss.Adam(np.ones(3)), schuss.Adam(np.ones(3))
    ours.load_state_dict(ours.state_dict() | {"steps": steps})
    theirs, fused = torch.optim.Adam([of_ones()]), schuss_torch.Adam([param])
    theirs.load_state_dict(schuss_torch.state_dict(ours))
    schuss_torch.load_state_dict(other, theirs.state_dict())
    assert other.steps == steps
    fused.load_state_dict(theirs.state_dict())
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
    w = of_ones()
    optimizer = schuss_torch.SGD([w], lr=0.5, momentum=0.5, nesterov=True)
    optimizer.step()
    before, good = w.tolist(), copy.copy(optimizer.param_groups[0])
    optimizer.param_groups[0].update(change)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=words):
            optimizer.step()
        assert w.tolist() == before
    optimizer.param_groups[0].update(good)
    optimizer.step()
    assert w.tolist() != before


@pytest.mark.parametrize("module", [torch.optim, schuss_torch])
def test_going_back_through_what_a_parameter_was_is_refused(module: Any) -> None:
    w = torch.tensor([2.0], requires_grad=True)
    loss = (w**3).sum()
    loss.backward(retain_graph=True)
    module.SGD([w], lr=0.5).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_velocity_goes_there_and_back_without_a_count_of_steps() -> None:
    w = of_ones()
    theirs = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    theirs.step()
    ours = schuss.Momentum(np.ones(3))
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    back = schuss_torch.state_dict(ours)["state"][0]["momentum_buffer"]
    assert back.tolist() == [1, 1, 1]
    counted = schuss.SGD(np.ones(3))
    counted.step(np.ones(3))
    schuss_torch.load_state_dict(counted, torch.optim.SGD([w], lr=0.1).state_dict())
    assert (counted.steps, counted.lr) == (1, 0.1)


@pytest.mark.skipif(os.name != "posix", reason="there is no such timer")
def test_a_step_that_ctrl_c_meets_was_made_or_was_not(interrupt: Any) -> None:
    param = torch.zeros(500_000, requires_grad=True)
    param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(0))
    optimizer = schuss_torch.Adam([param], lr=0.1)
    grad, expected = param.grad.numpy(), schuss.Adam(np.zeros(500_000, np.float32), lr=0.1)
    chance, interrupted = random.Random(0), 0
    optimizer.step()
    expected.step(grad)
    while interrupted < 25:
        interrupt(chance.uniform(1e-6, 1e-3))
        try:
            optimizer.step()
        except KeyboardInterrupt:
            interrupted += 1
        interrupt(0)
        if optimizer.state[param]["step"].item() == expected.steps + 1:
            expected.step(grad)
        assert same_bits(param.detach().numpy(), expected.params)
        assert same_bits(optimizer.state[param]["exp_avg"].numpy(), expected.state["m"])


def test_parameters_stepped_before_another_was_refused_keep_their_state() -> None:
    def train(module: Any) -> list[Any]:
        params = [of_ones(2), of_ones(2)]
        groups = [{"params": params[:1]}, {"params": params[1:], "maximize": True}]
        optimizer = module.Adam(groups, lr=0.1)
        if module is schuss_torch:
            params[1].grad = params[1].detach()  # a step may not write what it reads
            with pytest.raises(ValueError, match="shares memory"):
                optimizer.step()
        else:
            params[1].grad = None
            optimizer.step()
        for param in params:
            param.grad = torch.full_like(param, 3.0)
        optimizer.step()
        return params

    assert_both_train_alike(train)


def test_a_first_step_that_was_refused_is_still_the_first() -> None:
    def train(module: Any) -> list[Any]:
        w = of_ones(2)
        optimizer = module.SGD([w], lr=0.1, momentum=0.9, dampening=0.5)
        if module is schuss_torch:
            w.grad = w.detach()
            with pytest.raises(ValueError, match="share"):
                optimizer.step()
            assert not optimizer.state
        w.grad = torch.ones_like(w)
        optimizer.step()
        return [w]

    assert_both_train_alike(train)


def test_betas_and_state_can_be_changed_where_they_are() -> None:
    def train(module: Any) -> list[Any]:
        params = [of_ones(2), of_ones(2)]
        optimizer = module.Adam(params, lr=0.1)
        optimizer.param_groups[0]["betas"] = betas = [0.9, 0.999]
        state: dict[str, Any] = {}
        for t in range(4):
            for i, w in enumerate(params):
                w.grad = torch.full_like(w, t + 1.0) if t != 1 or i == 0 else None
            if t == 2:
                betas[0] = 0.1
                state["exp_avg"] = torch.zeros(2, dtype=torch.float64)
            optimizer.step()
            if t == 0:
                state = optimizer.state[params[0]]
        return params

    assert_both_train_alike(train)
