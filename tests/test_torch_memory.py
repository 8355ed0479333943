"""Less memory with PyTorch: state in 8 bits, and bfloat16 parameters that train as float32 ones."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import bits, dtype_of, leaves, same_bits

torch = pytest.importorskip("torch")
schuss_torch = pytest.importorskip("schuss.torch")

# Parameters of fewer than 4,096 elements keep float32 state.
SHAPES = [(70, 90), (5000,), (3,), (8, 16, 9, 5)]
ALL = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}, partial(schuss.Momentum, lr=0.1, dampening=0.0)),
    ("RMSprop", {"lr": 0.1}, partial(schuss.RMSprop, lr=0.1, beta=0.99)),
    ("Adam", {"lr": 0.1, "amsgrad": True}, partial(schuss.Adam, lr=0.1, amsgrad=True)),
    *(
        (name, {"lr": 0.1}, partial(getattr(schuss, name), lr=0.1))
        for name in ("AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")
    ),
]


def parameters(dtype: Any = torch.float32) -> list[Any]:
    """Return parameters in several layouts, with the same values in each dtype."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=rng).bfloat16() for shape in SHAPES]
    made.append(torch.randn(90, 70, generator=rng).bfloat16().T)
    made.append(torch.randn(80, 100, generator=rng).bfloat16()[:, ::2][:, :49])
    made[3] = made[3].to(memory_format=torch.channels_last)
    return [each.to(dtype).requires_grad_() for each in made]


def gradients(t: int, params: list[Any], without: tuple[int, ...] = ()) -> list[Any]:
    """Return gradients in bfloat16."""
    rng = torch.Generator().manual_seed(t)
    made = [torch.randn(param.shape, generator=rng).bfloat16() for param in params]
    return [None if i in without else grad for i, grad in enumerate(made)]


def step(optimizer: Any, params: list[Any], t: int, without: tuple[int, ...] = ()) -> None:
    for param, grad in zip(params, gradients(t, params, without), strict=True):
        param.grad = None if grad is None else grad.to(param.dtype)
    optimizer.step()


def array_of(tensor: Any) -> Any:
    if tensor.dtype != torch.bfloat16:
        return tensor.detach().numpy()
    return tensor.detach().view(torch.int16).numpy().view(dtype_of("bfloat16"))


def assert_same(some: Any, others: Any) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def rounded(value: Any) -> Any:
    """Return float32 values in bfloat16, to nearest, ties away from zero."""
    bits = value.detach().view(torch.int32) + 0x8000 >> 16
    return bits.to(torch.int16).view(torch.bfloat16)


def state_of(optimizer: Any, params: list[Any], key: str = "exp_avg") -> list[Any]:
    return [optimizer.state[param][key] for param in params]


@pytest.mark.parametrize(("name", "options", "make"), ALL)
@pytest.mark.parametrize(
    ("dtype", "extras"),
    [
        ("float32", {"state_dtype": "8bit"}),
        ("float16", {"state_dtype": "8bit", "average": 0.9, "clip_norm": 3.0}),
        ("float32", {"state_dtype": "8bit", "copies": "bfloat16"}),
        ("bfloat16", {"state_dtype": "8bit", "master": "float32"}),
        ("bfloat16", {"state_dtype": "bfloat16", "master": "float24", "average": 0.9}),
        ("bfloat16", {"state_dtype": "8bit", "round_params": "random"}),
    ],
)
def test_the_bits_are_those_of_schuss(
    name: str, options: Any, make: Any, dtype: str, extras: dict[str, Any]
) -> None:
    dtype_of("bfloat16")
    params = parameters(getattr(torch, dtype))
    arrays = [array_of(param.detach().clone()) for param in params]
    optimizer = getattr(schuss_torch, name)(params, **options, **extras)
    expected = make(arrays, **extras)
    for t in range(1, 5):
        step(optimizer, params, t)
        expected.step([array_of(param.grad) for param in params])
    assert all(map(same_bits, map(array_of, params), arrays))
    for key in ("average", "copies", "master"):
        found, wanted = getattr(optimizer, key), getattr(expected, key)
        assert (found is None) == (wanted is None), key
        assert found is None or all(map(same_bits, map(array_of, found), wanted)), key
    assert optimizer.state_bytes == expected.state_bytes


@pytest.mark.parametrize(
    "extras",
    [{}, {"average": 0.9, "clip_norm": 2.0}, {"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}],
)
@pytest.mark.parametrize(("name", "options"), [row[:2] for row in ALL] + [("SGD", {"lr": 0.1})])
def test_bfloat16_parameters_with_masters_train_exactly_as_float32_ones(
    name: str, options: dict[str, Any], extras: dict[str, Any]
) -> None:
    kind = getattr(schuss_torch, name)
    pair = []
    for dtype, master in ((torch.float32, None), (torch.bfloat16, "float32")):
        params = parameters(dtype)
        groups = [{"params": params[:3]}, {"params": params[3:5], "lr": 0.01, "maximize": True}]
        pair.append((kind(groups, **options, **extras, master=master), params))
    (wide, values), (optimizer, params) = pair
    for t in range(1, 9):
        for each, own in pair:
            if t == 3:
                each.add_param_group({"params": own[5:], "weight_decay": 0.1})
            if t == 6:
                each.param_groups[0]["lr"] = 0.03
            step(each, own, t, without=(t % 6,))
        count = len(optimizer.master)
        assert_same(params[:count], map(rounded, values[:count]))
        assert_same(optimizer.master, values[:count])
        if "average" in extras:
            assert_same(optimizer.average, wide.average)
    assert all(param.dtype == torch.bfloat16 for param in params)


def test_a_model_with_masters_learns_what_bfloat16_alone_loses() -> None:
    params = [torch.ones(5000, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    made = [{"master": "float32"}, {"round_params": "random"}, {}]
    for param, options in zip(params, made, strict=True):
        optimizer = schuss_torch.SGD([param], lr=1e-3, **options)
        for _ in range(50):
            param.grad = torch.full_like(param, -1.0)
            optimizer.step()
    exact, random, nearest = (param.float().mean().item() for param in params)
    assert nearest == 1  # each change is less than half a unit in the last place
    assert exact == rounded(torch.tensor(1.05)).item()
    assert abs(random - 1.05) < 1e-3


def test_24_bits_are_close_to_float32_ones() -> None:
    wide, params = parameters(), parameters(torch.bfloat16)
    expected = schuss_torch.Adam(wide, lr=0.01)
    optimizer = schuss_torch.Adam(params, lr=0.01, master="float24")
    for t in range(1, 6):
        step(expected, wide, t)
        step(optimizer, params, t)
    for value, param, exact in zip(optimizer.master, params, wide, strict=True):
        assert not (value.view(torch.int32) & 0xFF).any()
        assert torch.equal(param, rounded(value))
        torch.testing.assert_close(value, exact.detach(), rtol=1e-4, atol=1e-4)
    assert {bits.dtype for bits in state_of(optimizer, params, "master_bits")} == {torch.int8}


def test_a_pickle_of_before_there_were_8_bits_still_loads() -> None:
    optimizer = schuss_torch.Adam(parameters(), state_dtype=torch.bfloat16)
    extras = optimizer.__getstate__()["_extras"]
    del extras.__dict__["formats"]
    extras.__setstate__({"clip_norm": 0.5, "average": None, "state_dtype": torch.bfloat16})
    assert (extras.clip_norm, extras.formats.state_dtype) == (0.5, torch.bfloat16)
    assert "state_dtype" not in vars(extras)


def test_a_parameter_that_was_set_to_zero_is_zero() -> None:
    params = parameters(torch.bfloat16)
    optimizer = schuss_torch.SGD(params, lr=0.1, master="float32")
    step(optimizer, params, 1)
    for param in params:
        param.data.zero_()
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for values in (params, optimizer.master):
        assert not any(value.any() for value in values)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_saved_8_bit_state_and_masters_go_on(how: str) -> None:
    make = partial(schuss_torch.AdamW, lr=0.1, state_dtype="8bit", master="float32", average=0.9)
    params = parameters(torch.bfloat16)
    optimizer = make(params)
    step(optimizer, params, 1)
    if how == "deepcopy":
        others, other = copy.deepcopy((params, optimizer))
    elif how == "pickle":
        others, other = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        saved = copy.deepcopy(optimizer.state_dict())
        if how == "torch.save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file)
        others = copy.deepcopy(params)
        other = make(others)
        other.load_state_dict(saved)
        first = saved["state"][0]
        assert all(
            each is not first[key] for key, each in other.state[others[0]].items() if key != "step"
        )
    for t in (2, 3):
        for each, own in ((optimizer, params), (other, others)):
            step(each, own, t)
        assert_same(others, params)
        assert_same(other.master, optimizer.master)
        assert_same(other.average, optimizer.average)


def saved_size(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def test_8_bit_state_takes_a_quarter_of_memory_and_of_files() -> None:
    w = torch.zeros(1000, 100, requires_grad=True)
    sizes, saved = [], []
    for state_dtype in (None, "8bit"):
        optimizer = schuss_torch.AdamW([w], state_dtype=state_dtype)
        w.grad = torch.ones_like(w)
        assert optimizer.state_bytes == 0
        optimizer.step()
        sizes.append(optimizer.state_bytes)
        saved.append(saved_size(optimizer.state_dict()))
    assert sizes == [800_000, 2 * 782 * 132]
    assert saved[1] < 0.27 * saved[0]
    assert type(optimizer.state[w]["exp_avg"]) is schuss_torch.State8bit
    assert optimizer.state_dtype == "8bit"


def test_small_parameters_keep_float32_state() -> None:
    params = [torch.ones(n, requires_grad=True) for n in (4095, 4096)]
    optimizer = schuss_torch.Adam(params, state_dtype="8bit")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    kinds = [type(state) for state in state_of(optimizer, params)]
    assert kinds == [torch.Tensor, schuss_torch.State8bit]
    assert optimizer.state_bytes == 2 * (4095 * 4 + 32 * 132)


def eight_bit(params: list[Any], name: str = "Adam", **options: Any) -> Any:
    """Return an optimizer with 8-bit state after a step."""
    optimizer = getattr(schuss_torch, name)(params, lr=0.1, state_dtype="8bit", **options)
    step(optimizer, params, 1)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_optim_loads_8_bit_state_as_its_values_and_gives_it_back(dtype: Any) -> None:
    params, others = parameters(dtype), parameters(dtype)
    ours = eight_bit(params)
    theirs = torch.optim.Adam(others)
    theirs.load_state_dict(ours.state_dict())
    for param, other in zip(params, others, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = theirs.state[other][key], ours.state[param][key]
            assert (type(found), found.dtype) == (torch.Tensor, dtype)
            assert torch.equal(found, expected.to(dtype))
    step(theirs, others, 2)
    if dtype == torch.float32:
        theirs.load_state_dict(ours.state_dict())
        back = schuss_torch.Adam(copy.deepcopy(params), state_dtype="8bit")
        back.load_state_dict(copy.deepcopy(theirs.state_dict()))
        (again,) = (group["params"] for group in back.param_groups)
        for key in ("exp_avg", "exp_avg_sq"):
            assert_same(state_of(back, again, key), state_of(ours, params, key))
        for t in (2, 3):
            step(ours, params, t)
            step(back, again, t)
        assert_same(again, params)


@pytest.mark.parametrize(("name", "options", "make"), ALL)
def test_the_numpy_optimizers_give_and_take_the_same_8_bits(
    name: str, options: dict[str, Any], make: Any
) -> None:
    def bits_of(optimizer: Any) -> list[bytes]:
        return bits(leaves(optimizer.state))

    params = parameters()
    arrays = [array_of(param.detach().clone()) for param in params]
    ours = make(arrays, state_dtype="8bit")
    ours.step([grad.float().numpy() for grad in gradients(1, params)])
    saved = schuss_torch.state_dict(ours)
    for state in saved["state"].values():
        assert {type(each) for each in state.values()} == {torch.Tensor}
        assert {each.dtype for each in state.values()} == {torch.float32}
    fused, there = (
        getattr(schuss_torch, name)(params, **options, state_dtype="8bit") for _ in range(2)
    )
    step(fused, params, 1)
    there.load_state_dict(saved)
    getattr(torch.optim, name)(parameters(), **options).load_state_dict(saved)
    for param in params:
        for key in saved["state"][0]:
            assert torch.equal(there.state[param][key], fused.state[param][key])
    for state_dict in (saved, fused.state_dict(), there.state_dict()):
        other = make([array.copy(order="K") for array in arrays], state_dtype="8bit")
        schuss_torch.load_state_dict(other, state_dict)
        assert bits_of(other) == bits_of(ours)


@pytest.mark.parametrize("master", ["float32", "float24"])
def test_the_bits_of_masters_go_to_the_numpy_optimizers_and_back(master: Any) -> None:
    dtype_of("bfloat16")
    params = parameters(torch.bfloat16)
    make = partial(schuss_torch.AdamW, lr=0.1, master=master)
    theirs = make(params)
    step(theirs, params, 1)
    ours = schuss.AdamW([array_of(param.detach().clone()) for param in params], master=master)
    schuss_torch.load_state_dict(ours, theirs.state_dict())
    assert all(map(same_bits, ours.master, map(array_of, theirs.master)))
    others = copy.deepcopy(params)
    back = make(others)
    back.load_state_dict(schuss_torch.state_dict(ours))
    assert_same(back.master, theirs.master)
    for t in (2, 3):
        step(theirs, params, t)
        step(back, others, t)
        ours.step([array_of(grad) for grad in gradients(t, params)])
    assert_same(back.master, theirs.master)
    assert all(map(same_bits, ours.master, map(array_of, theirs.master)))


def test_masters_are_what_an_optimizer_keeps() -> None:
    params = parameters(torch.bfloat16)
    optimizer = schuss_torch.SGD(params, lr=0.1, master="float32")
    assert_same(optimizer.master, [param.float() for param in params])
    step(optimizer, params, 1)
    saved = optimizer.state_dict()
    narrow, none = (schuss_torch.SGD(params, lr=0.1, master=master) for master in ("float24", None))
    narrow.load_state_dict(saved)
    for exact, value in zip(optimizer.master, narrow.master, strict=True):
        torch.testing.assert_close(value, exact, rtol=2**-15, atol=0)
    wide = schuss_torch.SGD(params, lr=0.1, master="float32")
    wide.load_state_dict(narrow.state_dict())
    assert_same(wide.master, narrow.master)
    none.load_state_dict(saved)
    assert none.master is None
    assert not any("master_bits" in state for state in none.state.values())
    theirs = torch.optim.SGD(params, lr=0.1)  # loads the bits as if they were numbers
    theirs.load_state_dict(saved)
    wide.load_state_dict(theirs.state_dict())
    assert_same(wide.master, [param.float() for param in params])


def test_float32_state_is_rounded_to_8_bits_and_to_float32_again() -> None:
    params = parameters()
    wide = schuss_torch.Adam(params, lr=0.1)
    step(wide, params, 1)
    narrow = schuss_torch.Adam(params, state_dtype="8bit")
    narrow.load_state_dict(wide.state_dict())
    for param in params:
        found, expected = narrow.state[param]["exp_avg"], wide.state[param]["exp_avg"]
        limit = expected.abs().max() / 63  # half the distance of the largest codes
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=limit.item())
        assert (narrow.state[param]["exp_avg_sq"][expected != 0] > 0).all()
    again = schuss_torch.Adam(params)
    again.load_state_dict(narrow.state_dict())
    assert {type(state) for state in state_of(again, params)} == {torch.Tensor}
    assert_same(state_of(again, params), state_of(narrow, params))
    again.step()


@pytest.mark.parametrize("how", ["load_state_dict", "data"])
def test_8_bit_state_follows_parameters_into_another_memory_order(how: str) -> None:
    params = parameters()[:1]
    optimizer = eight_bit(params)
    before = state_of(optimizer, params)[0].dequantize()
    others = [params[0].detach().T.contiguous().T.requires_grad_()]
    if how == "data":
        params[0].data = others[0].data
        step(optimizer, params, 2)
        assert optimizer.state[params[0]]["exp_avg"].stride() == (1, 70)
        return
    other = schuss_torch.Adam(others, state_dtype="8bit")
    other.load_state_dict(optimizer.state_dict())
    found = state_of(other, others)[0]
    assert found.stride() == (1, 70)
    torch.testing.assert_close(found.float(), before, rtol=0, atol=before.abs().max().item() / 63)
    step(other, others, 2)


READ: list[Callable[[Any], Any]] = [
    lambda m: m + 1,
    lambda m: m.norm(),
    lambda m: m[3, 4].item(),
    lambda m: m.view(-1)[7:9],
    lambda m: m.double(),
    lambda m: m.to(torch.bfloat16),
    lambda m: m.to(torch.float32),
    lambda m: m.to(torch.empty(0)),
    lambda m: m.float(),
    lambda m: torch.from_numpy(m.numpy()),
    lambda m: torch.from_numpy(np.asarray(m)),
    lambda m: torch.tensor(m.tolist()),
    lambda m: torch.stack([m, m]),
    lambda m: torch.zeros_like(m),
    lambda m: torch.zeros(70, 90).copy_(m),
    lambda m: torch.equal(m, m),
    lambda m: sum(m),
]


@pytest.mark.parametrize("read", READ)
def test_8_bit_state_is_read_as_a_float32_tensor(read: Any) -> None:
    params = parameters()[:1]
    (m,) = state_of(eight_bit(params), params)
    assert (m.dtype, m.shape, m.device.type) == (torch.float32, (70, 90), "cpu")
    found, expected = read(m), read(m.dequantize())
    assert type(found) is type(expected)
    assert str(found) == str(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert str(m) == f"State8bit({m.dequantize()})"


@pytest.mark.parametrize(
    "keep",
    [
        copy.copy,
        copy.deepcopy,
        lambda m: m.clone(),
        lambda m: m.detach(),
        lambda m: m.to("cpu"),
        lambda m: m.to("meta"),
        lambda m: m.cpu(),
        lambda m: m.share_memory_(),
        lambda m: pickle.loads(pickle.dumps(m)),
    ],
)
def test_copies_of_8_bit_state_have_8_bits(keep: Any) -> None:
    params = parameters()[:1]
    (m,) = state_of(eight_bit(params), params)
    found = keep(m)
    assert type(found) is schuss_torch.State8bit
    assert found.stride() == m.stride()
    assert found.device.type == "meta" or torch.equal(found.blocks, m.blocks)


def assign(m: Any) -> None:
    m[2:, 3] = 7.0


def assign_by_mask(m: Any) -> None:
    m[m > 0] = 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.zero_(),
        lambda m: m.mul_(0.5),
        lambda m: m.copy_(torch.ones(70, 90)),
        lambda m: torch.add(m, 1, out=m),
        lambda m: torch._foreach_mul_([m, m], 0.5),
        assign,
        assign_by_mask,
    ],
)
def test_8_bit_state_can_be_changed_in_place(change: Any) -> None:
    params = parameters()[:1]
    optimizer = eight_bit(params)
    (m,) = state_of(optimizer, params)
    expected = m.dequantize()
    change(m)
    change(expected)
    limit = expected.abs().max().item() / 63
    torch.testing.assert_close(m.dequantize(), expected, rtol=0, atol=limit)
    assert optimizer.state[params[0]]["exp_avg"] is m
    step(optimizer, params, 2)  # with the same blocks
    assert optimizer.state[params[0]]["exp_avg"] is m
    assert not torch.equal(m.dequantize(), expected)


def test_a_second_moment_cannot_become_negative() -> None:
    params = parameters()[:1]
    (v,) = state_of(eight_bit(params), params, "exp_avg_sq")
    before = v.dequantize()
    with pytest.raises(
        ValueError, match="has elements less than 0, expected none in a second moment"
    ):
        v.neg_()
    assert torch.equal(v, before)


def test_states_that_are_replaced_between_steps_are_used() -> None:
    pair = []
    for state in (torch.zeros(70, 90), torch.zeros(70, 90).double()):
        params = parameters()[:1]
        optimizer = eight_bit(params)
        optimizer.state[params[0]]["exp_avg"] = state
        step(optimizer, params, 2)
        pair.append(params)
    params = parameters()[:1]
    optimizer = eight_bit(params)
    optimizer.state[params[0]]["exp_avg"].zero_()
    step(optimizer, params, 2)
    assert_same(pair[0] + pair[1], params * 2)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"^Adam\.step: the state 'exp_avg' is torch\.float32 of"):
        optimizer.step()


def test_hooks_change_what_is_loaded_and_see_what_was() -> None:
    params = parameters()
    optimizer = eight_bit(params)
    other = schuss_torch.Adam(others := parameters(), state_dtype="8bit")
    seen = []

    def halve(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = {
            key: each | {"exp_avg": each["exp_avg"] * 0.5}
            for key, each in state_dict["state"].items()
        }
        return state_dict | {"state": state}

    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_post_hook(lambda each: seen.extend(state_of(each, others)))
    other.load_state_dict(optimizer.state_dict())
    assert_same(seen, [state * 0.5 for state in state_of(optimizer, params)])


def test_states_that_do_not_go_with_the_parameters_change_nothing() -> None:
    params = parameters(torch.bfloat16)
    optimizer = eight_bit(params, master="float32")
    before = str(optimizer.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    for key, value, words in (
        ("exp_avg", torch.zeros(3), "is torch.float32 of shape (3,), expected a floating point"),
        ("exp_avg_sq", -torch.ones(5000), "has elements less than 0, expected none"),
        ("master_bits", torch.zeros(3, dtype=torch.int16), "has shape (3,), expected (5000,)"),
    ):
        broken = copy.deepcopy(saved)
        broken["state"][1][key] = value
        words = f"Adam.load_state_dict: state_dict['state'][1][{key!r}] {words}"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
            optimizer.load_state_dict(broken)
    saved["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="match the size of optimizer's group"):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before


def test_a_grad_scaler_and_a_closure_step_8_bit_state_with_masters() -> None:
    models = [torch.nn.Linear(80, 90) for _ in range(2)]
    models[0].bfloat16()
    models[1].load_state_dict(models[0].state_dict())
    make = partial(schuss_torch.AdamW, lr=0.01, state_dtype="8bit")
    first = make(models[0].parameters(), master="float32")
    second = make(models[1].parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(4):
        first.zero_grad()
        loss = scaler.scale(models[0](torch.ones(3, 80).bfloat16()).float().square().mean())
        loss.backward()
        params = [*models[0].parameters()]
        if t == 1:
            params[0].grad[0] = torch.inf
        for param, value in zip(params, models[1].parameters(), strict=True):
            value.grad = param.grad.float() / 1024
        scaler.step(first)
        scaler.update(1024.0)
        if t != 1:
            second.step()
        assert_same(first.master, models[1].parameters())
    assert first.step(lambda: 3) == 3


MODULES = {"schuss_torch": schuss_torch, "torch": torch}


@pytest.mark.parametrize(
    ("params", "options", "words"),
    [
        ("b", "state_dtype='8 bit'", "state_dtype is '8 bit', expected torch.float32 or torch.bf"),
        ("d", "state_dtype='8bit'", "state_dtype is '8bit' where a parameter is torch.float64"),
        ("b", "master='bfloat16'", "master is 'bfloat16', expected 'float32' or 'float24'"),
        ("h", "master='float32'", "master is 'float32' where a parameter is float16, expected"),
        ("b + d", "master=torch.float32", "master is 'float32' where a parameter is float64"),
        ("f", "master='float24'", "master is 'float24' where no parameter is bfloat16"),
        ("f", "round_params='random'", "round_params is 'random' where no parameter is bfloat16"),
        ("b", "round_params='up'", "round_params is 'up', expected 'nearest' or 'random'"),
        ("b", "master='float32', round_params='random'", "round_params is 'random' where master"),
        ("b", "master='float32', copies='bfloat16'", "copies are given where master is 'float32'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(params: str, options: str, words: str) -> None:
    dtypes = {"b": "bfloat16", "f": "float32", "h": "float16", "d": "float64"}
    names = {key: [torch.ones(3, dtype=getattr(torch, name))] for key, name in dtypes.items()}
    with pytest.raises((TypeError, ValueError), match=f"^Adam: {re.escape(words)}"):
        eval(f"schuss_torch.Adam({params}, {options})", {**MODULES, **names})


def test_a_group_whose_parameters_cannot_have_masters_is_refused() -> None:
    optimizer = schuss_torch.Adam([torch.ones(3).bfloat16()], master="float32")
    with pytest.raises(ValueError, match=r"^Adam\.add_param_group: master is 'float32' where a"):
        optimizer.add_param_group({"params": [torch.ones(3).half()]})
    optimizer.add_param_group({"params": [torch.ones(3)]})
    assert len(optimizer.param_groups) == 2
