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
from support.arrays import dtype_of, equal, same_bits
from support.processes import ends_well

torch = pytest.importorskip("torch")
schuss_torch = pytest.importorskip("schuss.torch")


def test_it_is_found_after_import_schuss_alone() -> None:
    ends_well(
        """
        import schuss, sys
        assert "torch" in dir(schuss) and "torch" not in sys.modules
        assert schuss.torch.Adam is sys.modules["schuss.torch"].Adam
        """
    )
    ends_well(
        """
        import schuss, sys
        sys.modules["torch"] = None  # as if it were not installed
        assert "torch" not in dir(schuss)
        try:
            schuss.torch
        except ImportError as error:
            assert str(error) == "schuss.torch: torch is not installed (pip install torch)"
        else:
            raise AssertionError("imported without torch")
        """
    )


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
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1}),
    ("Adadelta", {"maximize": True}),
    ("Adadelta", {"lr": 3.0, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.1}),
    ("Adamax", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"lr": 0.1, "maximize": True}),
    ("NAdam", {"betas": (0.5, 0.9), "momentum_decay": 0.1, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.1}),
    ("RAdam", {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1}),
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


def array_of(tensor: Any) -> Any:
    """Return an array of the tensor's memory."""
    if tensor.dtype != torch.bfloat16:
        return tensor.detach().numpy()
    return tensor.detach().view(torch.int16).numpy().view(dtype_of("bfloat16"))


def arrays_of(params: list[Any]) -> list[Any]:
    return [array_of(param.detach().clone()) for param in params]


def step_both(pair: list[Any], t: int, without: tuple[int, ...] = ()) -> None:
    for optimizer, params in pair:
        give_gradients(params, t, without)
        assert optimizer.step() is None


# torch.optim multiplies the momenta of NAdam in float32.
TOLERANCE = {"NAdam": 1e-6}


def assert_close(some: list[Any], others: list[Any], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(some, others, rtol=tolerance, atol=tolerance)


def assert_both_train_alike(train: Callable[[Any], Any]) -> None:
    """Assert that `train` returns the same numbers for both modules."""
    ours, theirs = ([each.detach() for each in train(m)] for m in (schuss_torch, torch.optim))
    assert_close(ours, theirs)


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
        assert_alike(*pair, tolerance=TOLERANCE.get(name, 1e-12))


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


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_hundred_steps_are_those_of_torch(name: str, options: dict[str, Any]) -> None:
    pair = both(name, options)
    for t in range(100):
        step_both(pair, t, (t % 7,) if t % 5 == 0 else ())
    assert_alike(*pair, tolerance=TOLERANCE.get(name, 1e-9))


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


def test_a_negative_rate_ascends() -> None:
    pair = both("Adam", {})
    for optimizer, _ in pair:
        optimizer.param_groups[0]["lr"] = -0.1
    step_both(pair, 1)
    assert_alike(*pair)


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


BITS = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}, partial(schuss.Momentum, lr=0.1, dampening=0.0)),
    ("RMSprop", {"lr": 0.1}, partial(schuss.RMSprop, lr=0.1, beta=0.99)),
    ("Adam", {"lr": 0.1}, partial(schuss.Adam, lr=0.1)),
    ("AdamW", {"lr": 0.1}, partial(schuss.AdamW, lr=0.1)),
    *((name, {}, getattr(schuss, name)) for name in ("Adagrad", "Adadelta", "Adamax")),
    *((name, {}, getattr(schuss, name)) for name in ("NAdam", "RAdam")),
]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"clip_norm": 0.5, "average": 0.9},
    {"state_dtype": "bfloat16"},
    {"copies": "float16"},
    {"copies": "bfloat16", "clip_norm": 3.0},
]


@pytest.mark.parametrize(("name", "options", "make"), BITS)
@pytest.mark.parametrize(
    ("dtype", "extras"),
    [
        (dtype, extras)
        for dtype in ("float32", "float64", "float16", "bfloat16")
        for extras in EXTRAS
        if (dtype == "float32" or "copies" not in extras)
        and (dtype != "float64" or "state_dtype" not in extras)
    ],
)
def test_the_bits_are_those_of_schuss(
    name: str, options: Any, make: Any, dtype: str, extras: dict[str, Any]
) -> None:
    dtype_of(dtype)
    params = parameters(getattr(torch, dtype))
    arrays = arrays_of(params)
    optimizer = getattr(schuss_torch, name)(params, **options, **extras)
    expected = make(arrays, **extras)
    for t in range(1, 6):
        step_both([(optimizer, params)], t)
        expected.step([array_of(param.grad) for param in params])
        assert equal(arrays_of(params), arrays)
    for key in ("average", "copies"):
        found, wanted = getattr(optimizer, key), getattr(expected, key)
        assert (found is None) == (wanted is None)
        assert found is None or equal(arrays_of(found), wanted)


def test_nadam_forms_the_product_of_its_momenta_with_the_current_beta() -> None:
    params = parameters()
    arrays = arrays_of(params)
    optimizer, expected = schuss_torch.NAdam(params, lr=0.1), schuss.NAdam(arrays, lr=0.1)
    for t, beta in enumerate((0.95, 0.85, 0.9), start=1):  # as OneCycleLR changes it
        optimizer.param_groups[0]["betas"] = (beta, 0.999)
        expected.beta1 = beta
        step_both([(optimizer, params)], t)
        expected.step([array_of(param.grad) for param in params])
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
        ("ones(2, dtype=complex64)", "", {}, TypeError, "has dtype torch.complex64"),
        (
            "ones(2, device='meta')",
            "",
            {},
            ValueError,
            "is torch.strided on meta, expected a dense",
        ),
        ("ones(2)", "ones(2).to_sparse()", {}, ValueError, "on the CPU (tensor.to_dense())"),
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


# Low precision, and the options of schuss.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_low_precision_parameters_step_as_float32_ones_and_are_rounded(
    name: str, options: dict[str, Any], dtype: Any
) -> None:
    params = parameters(dtype)
    wide = [param.detach().float().requires_grad_() for param in params]
    optimizer = getattr(schuss_torch, name)(params, **options)
    theirs = getattr(torch.optim, name)(wide, **options)
    give_gradients(params, 1)
    for param, other in zip(params, wide, strict=True):
        other.grad = param.grad.float()
    optimizer.step()
    theirs.step()
    eps = torch.finfo(dtype).eps  # where float32 rounds otherwise, a rounding to half precision may
    torch.testing.assert_close([p.detach().float() for p in params], wide, rtol=eps, atol=eps)
    for param in params:
        states = [v for key, v in optimizer.state[param].items() if key != "step"]
        assert all(state.dtype == torch.float32 for state in states)


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_low_precision_state_and_averages_go_on(name: str, how: str, state_dtype: Any) -> None:
    def make(params: list[Any]) -> Any:
        kind = getattr(schuss_torch, name)
        return kind(params, lr=0.1, average=0.5, clip_norm=1, state_dtype=state_dtype)

    params = parameters(torch.bfloat16)
    optimizer = make(params)
    step_both([(optimizer, params)], 1)
    if how == "state_dict":
        others = [param.detach().clone().requires_grad_() for param in params]
        other = make(others)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif how == "deepcopy":
        others, other = copy.deepcopy((params, optimizer))
    else:
        others, other = pickle.loads(pickle.dumps((params, optimizer)))
    for t in (2, 3):
        step_both([(optimizer, params), (other, others)], t, without=(1,) if t == 2 else ())
        for found, wanted in ((others, params), (other.average, optimizer.average)):
            assert all(map(torch.equal, found, wanted))
    assert str(other.state_dict()) == str(optimizer.state_dict())
    theirs = getattr(torch.optim, name)(others)
    theirs.load_state_dict(optimizer.state_dict())
    other.load_state_dict(theirs.state_dict())
    step_both([(other, others), (theirs, params)], 4)
    assert (other.clip_norm, other.state_dtype) == (1, state_dtype and torch.bfloat16)


@pytest.mark.parametrize("clip_norm", [1e-3, 2.0, 1e9])
def test_the_norm_is_that_of_all_gradients_also_where_they_are_not_stepped_together(
    clip_norm: float,
) -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [{"params": params[:3]}, {"params": params[3:], "maximize": True}]

    theirs, (ours, params) = both("Adam", {"lr": 0.1}, groups)
    for t in range(6):
        without = (t % 3, 4) if t > 1 else ()
        give_gradients(theirs[1], t, without)
        if t > 0:
            torch.nn.utils.clip_grad_norm_(theirs[1], clip_norm)
            ours.clip_norm = clip_norm
        theirs[0].step()
        step_both([(ours, params)], t, without)
        before = [None if param.grad is None else param.grad.clone() for param in params]
        give_gradients(params, t, without)
        assert str(before) == str([param.grad for param in params])  # unchanged by the step
        assert_alike(theirs, (ours, params))


def test_averages_are_those_of_torch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    params = [*model.parameters()]
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = schuss_torch.SGD(params, lr=0.1, average=0.9)
    assert all(map(torch.equal, optimizer.average, params))
    for t in range(1, 8):
        step_both([(optimizer, params)], t)
        optimizer.clip_norm = 1e9  # the next step checks everything again
        averaged.update_parameters(model)
        torch.testing.assert_close(optimizer.average, [*averaged.module.parameters()])
    optimizer.average = None
    step_both([(optimizer, params)], 8)
    assert optimizer.average is None
    assert not any("average" in state for state in optimizer.state.values())


def test_averages_that_are_turned_on_again_begin_anew() -> None:
    saved = schuss_torch.SGD([w := of_ones()], average=0.5)
    saved.step()
    optimizer = schuss_torch.SGD([w], lr=0.5)
    optimizer.load_state_dict(saved.state_dict())
    assert "average" not in optimizer.state[w]  # it would not follow the parameter
    optimizer.step()
    optimizer.state[w]["average"] = torch.zeros(3, dtype=torch.float64)
    optimizer.average = 0.9
    optimizer.step()
    assert optimizer.average[0].tolist() == w.tolist()
    optimizer.average = 0.5  # another rate goes on with the same averages
    before = w.tolist()
    optimizer.step()
    assert optimizer.average[0].tolist() == [(a + b) / 2 for a, b in zip(before, w, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_trains_in_low_precision_with_its_weights_in_float32(dtype: Any) -> None:
    models = [torch.nn.Linear(3, 2).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    lists = [[*model.parameters()] for model in models]
    theirs, ours = ([param.detach().float() for param in params] for params in lists)
    expected = torch.optim.AdamW(theirs, lr=0.1)
    optimizer = schuss_torch.AdamW(ours, lr=0.1, copies=models[1].parameters())
    for t in range(1, 5):
        for params in lists:
            give_gradients(params, t)
        for weights, param in zip(theirs, lists[0], strict=True):
            weights.grad = param.grad.float()
        if t == 3:  # the model may be given other memory
            for param in lists[1]:
                param.data = param.data.clone()
        expected.step()
        optimizer.step()
        torch.testing.assert_close(ours, theirs)
        assert all(map(torch.equal, lists[1], (weights.to(dtype) for weights in ours)))
    optimizer.zero_grad(set_to_none=False)
    assert not any(param.grad.any() for param in lists[1])
    optimizer.zero_grad()
    assert {param.grad for param in lists[1]} == {None}
    ours[0].zero_()
    optimizer.write_copies()
    assert not lists[1][0].any()
    assert all(map(torch.equal, optimizer.copies, lists[1]))


def test_bfloat16_needs_no_ml_dtypes() -> None:
    ends_well(
        """
        import sys
        sys.modules["ml_dtypes"] = None  # as if it were not installed
        import schuss, torch
        w = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        optimizer = schuss.torch.SGD([w], lr=0.5, momentum=0.9, state_dtype="bfloat16")
        w.sum().backward()
        optimizer.step()
        assert w.tolist() == [0.5] * 3
        """
    )


def test_gradients_in_bfloat16_step_float32_parameters() -> None:
    w = torch.ones(3, requires_grad=True)
    if not hasattr(w, "grad_dtype"):
        pytest.skip("this version of torch has no such gradients")
    w.grad_dtype = torch.bfloat16
    w.grad = torch.full((3,), 0.5, dtype=torch.bfloat16)
    schuss_torch.SGD([w], lr=0.5).step()
    assert w.tolist() == [0.75] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("clip_norm=-1", "clip_norm is -1, expected a finite number >= 0"),
        ("average=1.0", "average is 1.0, expected a number in [0, 1)"),
        ("state_dtype='int8'", "state_dtype is 'int8', expected torch.float32 or torch.bfloat16"),
        ("copies='float32'", "copies is 'float32', expected torch.float16 or torch.bfloat16"),
        ("copies=3", "copies is a int, expected a list of tensors, or a dtype"),
        ("copies=half", "copies is a Tensor, expected a list of tensors, or a dtype"),
        ("copies=[]", "copies has 0 tensors, expected 1, one for each parameter"),
        ("copies=[3]", "copies[0] is a int, expected a tensor"),
        ("copies=[torch.ones(3)]", "copies[0] has dtype torch.float32, expected torch.float16"),
        ("copies=[half[:2]]", "copies[0] has shape (2,), expected (3,)"),
        ("copies=[half.to('meta')]", "copies[0] is on meta, expected a tensor on the CPU"),
    ],
)
def test_wrong_options_are_refused(options: str, words: str) -> None:
    w, half = of_ones(dtype=torch.float32), torch.zeros(3, dtype=torch.bfloat16)
    with pytest.raises((TypeError, ValueError), match=f"^Adam: {re.escape(words)}"):
        eval(
            f"schuss_torch.Adam([w], {options})",
            {"schuss_torch": schuss_torch, "torch": torch, "w": w, "half": half},
        )
    assert not half.any()


def test_options_that_do_not_go_with_the_parameters_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^SGD: copies are given but a parameter is torch\.bfloat"
    ):
        schuss_torch.SGD([of_ones(dtype=torch.bfloat16)], copies="bfloat16")
    optimizer = schuss_torch.SGD([of_ones(dtype=torch.float32)], copies="bfloat16")
    with pytest.raises(ValueError, match=r"^SGD\.add_param_group: there are copies of the other"):
        optimizer.add_param_group({"params": [of_ones(dtype=torch.float32)]})


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_dtype_of_the_state_that_does_not_go_with_the_parameters_is_refused(name: str) -> None:
    wide, w = of_ones(), of_ones(dtype=torch.float16)
    words = rf": state_dtype is '{name}' where a parameter is torch\.float64, expected"
    with pytest.raises(ValueError, match=f"^Adam{words}"):
        schuss_torch.Adam([w, wide], state_dtype=name)
    optimizer = schuss_torch.Adam([w], state_dtype=getattr(torch, name))
    with pytest.raises(ValueError, match=rf"^Adam\.add_param_group{words}"):
        optimizer.add_param_group({"params": [wide]})
    assert [group["params"] for group in optimizer.param_groups] == [[w]]
    optimizer.step()


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
    assert_close(params, expected, TOLERANCE.get(name, 1e-12))
    assert ours.clip_norm == 1e9


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Adam"])
def test_a_state_before_the_first_step_goes_to_torch(name: str) -> None:
    expected, params = both(name, {})[0], parameters()
    other = {"initial_accumulator_value": 0.5} if name == "Adagrad" else {}
    theirs = getattr(torch.optim, name)(params, **other)
    ours = getattr(schuss, name)(arrays_of(params))
    theirs.load_state_dict(schuss_torch.state_dict(ours))
    step_both([expected, (theirs, params)], 1)
    assert_close(params, expected[1], TOLERANCE.get(name, 1e-12))


def test_a_group_added_to_adagrad_begins_with_the_initial_value() -> None:
    pair = both("Adagrad", {"initial_accumulator_value": 0.5})
    params = parameters()
    added = schuss_torch.Adagrad(params[:2], initial_accumulator_value=0.5)
    added.add_param_group({"params": params[2:]})
    for t in range(2):
        step_both([*pair, (added, params)], t)
    assert_close(params, pair[0][1])


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


def test_a_group_that_is_added_lacks_what_was_loaded_for_the_only_group() -> None:
    ours = schuss.Adam([{"params": np.ones(2)}], lr=0.25)
    theirs = torch.optim.Adam([of_ones(2, torch.float64)], lr=0.5, maximize=True)
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    ours.add_group({"params": np.ones(2)})
    groups = [(group["lr"], group["maximize"]) for group in ours.param_groups]
    assert groups == [(0.5, True), (0.25, False)]


@pytest.mark.parametrize("name", ["Adagrad", "Adamax", "NAdam", "RAdam", "Adam"])
@pytest.mark.parametrize("rests", [1, 2], ids=["has rested", "had no step yet"])
def test_a_group_that_rested_goes_there_and_back(name: str, rests: int) -> None:
    expected, params, second = parameters(), parameters(), tuple(range(3, 8))
    theirs = two_groups(getattr(torch.optim, name), expected, {}, {})
    for t in (1, 2):
        step_both([(theirs, expected)], t, second if t <= rests else ())
    arrays = arrays_of(expected)
    ours = two_groups(getattr(schuss, name), arrays, {}, {})
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert [group.steps for group in ours.param_groups] == [2, 2 - rests]
    for t in (3, 4):
        step_both([(theirs, expected)], t, second if t == 3 else ())
        grads = [None if param.grad is None else param.grad.numpy() for param in expected]
        ours.step([grads[:3], grads[3:]])
    for param, array in zip(params, arrays, strict=True):
        param.data = torch.from_numpy(array)
    back = two_groups(getattr(torch.optim, name), params, {}, {})
    back.load_state_dict(schuss_torch.state_dict(ours))
    for t in (5, 6):
        step_both([(theirs, expected), (back, params)], t)
    assert_close(params, expected, TOLERANCE.get(name, 1e-12))


COMPLEX = [
    ("SGD", "Momentum", {"momentum": 0.9}),
    *((name, name, {}) for name in ("RMSprop", "Adagrad", "Adam", "AdamW")),
    ("Adam", "Adam", {"amsgrad": True}),
]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(("name", "kind", "options"), COMPLEX)
def test_state_of_complex_parameters_goes_there_and_back(
    name: str, kind: str, options: dict[str, Any], dtype: str
) -> None:
    def step(t: int) -> None:
        rng = torch.Generator().manual_seed(t)
        expected.grad = torch.randn(3, dtype=expected.dtype, generator=rng)
        theirs.step()

    expected = torch.full((3,), 1 + 2j, dtype=getattr(torch, dtype), requires_grad=True)
    theirs = getattr(torch.optim, name)([expected], **options)
    step(1)
    ours = getattr(schuss, kind)(expected.detach().numpy().copy())
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    step(2)
    ours.step(expected.grad.numpy())
    param = torch.from_numpy(ours.params).requires_grad_()
    back = getattr(torch.optim, name)([param], **options)
    saved = schuss_torch.state_dict(ours)
    schuss_torch.load_state_dict(ours, saved)  # our own
    assert str(schuss_torch.state_dict(ours)) == str(saved)
    back.load_state_dict(saved)
    step(3)
    param.grad = expected.grad
    back.step()
    assert_close([param], [expected], 1e-6 if dtype == "complex64" else 1e-12)


def test_one_second_moment_of_complex_numbers_is_refused() -> None:
    theirs = torch.optim.Adam([torch.ones(3, dtype=torch.complex128)])
    ours = schuss.Adam([np.ones(2), np.ones(3, np.complex128)], complex="modulus")
    words = ": complex is 'modulus' where a parameter is complex128, expected 'components'"
    with pytest.raises(ValueError, match=f"^state_dict{words}"):
        schuss_torch.state_dict(ours)
    with pytest.raises(ValueError, match=f"^load_state_dict{words}"):
        schuss_torch.load_state_dict(ours, theirs.state_dict())
    schuss_torch.state_dict(schuss.Adam(np.ones(2), complex="modulus"))


def test_a_real_state_of_a_complex_parameter_is_refused() -> None:
    theirs = torch.optim.Adam([of_ones()])
    theirs.step()
    ours = schuss.Adam(np.ones(3, np.complex64))
    with pytest.raises(TypeError, match=r"is of torch\.float64, expected a complex tensor"):
        schuss_torch.load_state_dict(ours, theirs.state_dict())


def test_a_group_of_adagrad_without_state_gets_the_initial_value() -> None:
    theirs = schuss_torch.Adagrad([of_ones()], initial_accumulator_value=0.5)
    theirs.add_param_group({"params": of_ones()})
    ours = schuss.Adagrad([{"params": np.ones(3)}, {"params": np.ones(3)}])
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert [each.tolist() for each in ours.state["square_sum"]] == [[0.5] * 3] * 2


def test_the_steps_of_a_momentum_group_that_rested_are_unchanged() -> None:
    ours = schuss.Momentum([{"params": np.ones(3)}, {"params": np.ones(3)}])
    ours.step([np.ones(3), None])
    schuss_torch.load_state_dict(ours, schuss_torch.state_dict(ours))
    assert [group.steps for group in ours.param_groups] == [1, 0]


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
        (two, uneven.state_dict(), "counts [1, 2] steps, expected the same for all parameters"),
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
        ({"lr": np.nan}, r"SGD.step: param_groups\[0\]\['lr'\] is nan, expected a finite number"),
        ({"lr": torch.tensor(-torch.inf)}, r"SGD.step: param_groups\[0\]\['lr'\] is -inf, exp"),
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


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [np.nan, 1e300], ids=["not finite", "out of float32"])
def test_a_number_is_refused_before_any_parameter_is_stepped(key: str, value: float) -> None:
    params = [of_ones(dtype=torch.float32) for _ in range(4)]
    groups = [{"params": param, "maximize": i == 1} for i, param in enumerate(params)]
    optimizer = schuss_torch.Adam(groups, lr=0.1)
    optimizer.param_groups[3][key] = value
    words = re.escape(f"Adam.step: param_groups[3]['{key}'] is {value!r}, ")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{words}"):
            optimizer.step()
    assert [param.tolist() for param in params] == [[1] * 3] * 4
    assert not optimizer.state


def test_parameters_stepped_before_another_was_refused_keep_their_state() -> None:
    def train(module: Any) -> list[Any]:
        params = [of_ones(2), of_ones(2)]
        groups = [{"params": params[:1]}, {"params": params[1:], "maximize": True}]
        optimizer = module.Adam(groups, lr=0.1)
        if module is schuss_torch:
            params[1].grad = params[1].detach()  # a step may not write what it reads
            with pytest.raises(ValueError, match=r"grads\[1\] shares memory .* params\[1\]"):
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


def test_parameters_that_require_grad_are_refused_with_the_remedy() -> None:
    params = list(torch.nn.Linear(2, 1).parameters())
    with pytest.raises(TypeError, match=r"\(tensor\.detach\(\) is one, or use schuss\.torch\)$"):
        schuss.Adam(params)
    schuss.Adam([param.detach() for param in params])
