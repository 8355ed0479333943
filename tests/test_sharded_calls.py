"""The calls of a sharded optimizer: together on all ranks, all or nothing, and its state dicts."""

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.mpi import Sharded
from schuss.mpi._internals import sharded_internals_of
from support.ranks import run
from support.sharded import assert_same, contents, new_grads, new_params, summed

untyped: Any = Sharded  # takes arguments that type checkers refuse
ADAM: dict[str, Any] = {"lr": 0.1, "clip_norm": 1.0, "average": 0.9}


def stepped(comm: Any, steps: int = 2, *, kind: Any = schuss.Adam, **options: Any) -> Any:
    """Return a sharded optimizer of parameters after some steps."""
    optimizer: Any = Sharded(kind, new_params(), comm, **{**ADAM, **options})
    for t in range(1, steps + 1):
        optimizer.step(new_grads(optimizer.params, comm.Get_rank(), t))
    return optimizer


def raised(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """Return the error that a call raises."""
    with pytest.raises(Exception) as info:  # noqa: PT011  # the caller checks it
        call()
    return info.type, str(info.value)


def refuse(comm: Any, optimizer: Any, call: Callable[[], Any], error: Any, *words: str) -> None:
    """Expect an error on each rank after which nothing has changed, and the next step works."""
    before = copy.deepcopy(contents(optimizer))
    kind, text = raised(call)
    assert (kind, [word in text for word in words]) == (error, [True] * len(words)), (kind, text)
    assert_same(contents(optimizer), before)
    optimizer.step(new_grads(optimizer.params, comm.Get_rank(), 9))
    assert optimizer.steps == before["steps"] + 1


def bad_shape(optimizer: Any, grads: Any) -> None:
    optimizer.step({**grads, "W": np.ones(3, np.float32)})


def bad_structure(optimizer: Any, grads: Any) -> None:
    optimizer.step({"W": grads["W"]})


def bad_weight(optimizer: Any, grads: Any) -> None:
    optimizer.step(grads, weight=-1.0)


def no_gradients(optimizer: Any, grads: Any) -> None:
    optimizer.step()


def user_code(optimizer: Any, grads: Any) -> None:
    class Grads(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise OSError("the disk of rank 1")

    optimizer.step(Grads(grads))


BAD: list[tuple[Callable[[Any, Any], None], Any, str]] = [
    (bad_shape, ValueError, "Adam.step: grads['W'] has shape (3,)"),
    (bad_structure, ValueError, "Adam.step: grads"),
    (bad_weight, ValueError, "Adam.step: weight is -1.0"),
    (no_gradients, ValueError, "Adam.step: there are no gradients"),
    (user_code, OSError, "the disk of rank 1"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
@pytest.mark.parametrize("failing", [0, 2])
def test_all_ranks_raise_what_one_raises(call: Any, error: Any, words: str, failing: int) -> None:
    def program(comm: Any) -> None:
        optimizer, rank = stepped(comm), comm.Get_rank()
        grads = new_grads(optimizer.params, rank, 3)
        own = call if rank == failing else lambda optimizer, grads: optimizer.step(grads)
        refuse(comm, optimizer, lambda: own(optimizer, grads), error, words)

    run(program, 3)


def test_a_schedule_that_raises_on_one_rank_raises_on_all() -> None:
    def program(comm: Any) -> None:
        calls: list[int] = []

        def schedule(t: int) -> float:
            calls.append(t)
            if comm.Get_rank() == 1 and len(calls) == 3:
                raise KeyError("no rate")
            return 0.1 / t

        optimizer = stepped(comm, lr=schedule)
        step = lambda: optimizer.step(new_grads(optimizer.params, 0, 3))  # noqa: E731
        refuse(comm, optimizer, step, KeyError, "no rate")

    run(program, 2)


def test_a_gradient_that_is_not_finite_on_one_rank_raises_on_all() -> None:
    def program(comm: Any) -> None:
        optimizer, rank = stepped(comm, nonfinite="raise"), comm.Get_rank()
        grads = new_grads(optimizer.params, rank, 3)
        if rank == 1:
            grads["V"][3, 4, 5] = np.nan
        text = "Adam.step: grads['V'] has a NaN or an infinity"
        refuse(comm, optimizer, lambda: optimizer.step(grads), FloatingPointError, text)

    run(program, 3)


def test_numpys_floating_point_errors_do_not_concern_a_step() -> None:
    grad = np.full(4096 * 8, 2.0**505.75)  # the squares of 8192 numbers overflow

    def program(comm: Any) -> None:
        param = np.zeros_like(grad)
        optimizer = Sharded(schuss.SGD, param, comm, lr=1.0, clip_norm=1.0, reduction="sum")
        with np.errstate(all="raise"):
            optimizer.step(grad / comm.Get_size())
        np.testing.assert_allclose(param, -1 / np.sqrt(grad.size), rtol=1e-12)

    run(program, 2)


def test_only_gradients_that_are_not_finite_leave_the_optimizer_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise FloatingPointError("of NumPy")

    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        monkeypatch.setattr("schuss.mpi._statistics.Statistics.of", fails)
        with pytest.raises(FloatingPointError, match="of NumPy"):
            optimizer.step(new_grads(optimizer.params, comm.Get_rank(), 3))
        with pytest.raises(RuntimeError, match="of NumPy"):
            optimizer.step(new_grads(optimizer.params, comm.Get_rank(), 3))

    run(program, 1)


def test_a_step_that_is_skipped_is_skipped_on_all() -> None:
    def program(comm: Any) -> None:
        optimizer, rank = stepped(comm, nonfinite="skip", clear_grads=True), comm.Get_rank()
        before = copy.deepcopy(contents(optimizer))
        grads = new_grads(optimizer.params, rank, 3)
        if rank == 0:
            grads["V"][3, 4, 5] = np.inf
        optimizer.step(grads)
        assert (optimizer.skipped, optimizer.steps, optimizer.last.skipped) == (1, 2, True)
        assert not grads["V"].any()
        after = contents(optimizer)
        for key in ("params", "state", "average"):
            assert_same(after[key], before[key])
        scaler = schuss.DynamicLossScale()
        made = scaler.step(optimizer, new_grads(optimizer.params, rank, 4))
        grads["W"][0, 0] = np.nan if rank == 1 else 1
        assert (made, scaler.step(optimizer, grads), optimizer.skipped) == (True, False, 2)

    run(program, 3)


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (lambda opt: setattr(opt, "lr", 0.5), "lr is 0.1 on rank 0 and 0.5 on rank 1"),
    (lambda opt: setattr(opt, "beta2", 0.5), "beta2 is 0.999 on rank 0 and 0.5 on rank 1"),
    (lambda opt: setattr(opt, "clip_norm", None), "clip_norm is 1.0 on rank 0 and None on rank 1"),
    (lambda opt: setattr(opt, "nonfinite", "raise"), "nonfinite is"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_settings_that_differ_are_refused(change: Any, words: str) -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        before = copy.deepcopy(contents(optimizer))
        if comm.Get_rank() == 1:
            change(optimizer)
        grads = new_grads(optimizer.params, 0, 3)
        kind, text = raised(lambda: optimizer.step(grads))
        assert kind is ValueError
        assert words in text
        assert_same(optimizer.params, before["params"])
        change(optimizer)
        optimizer.step(grads)

    run(program, 3)


def test_scales_that_differ_are_refused() -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        step = lambda: optimizer.step(  # noqa: E731
            new_grads(optimizer.params, 0, 3), scale=1.0 + comm.Get_rank()
        )
        refuse(comm, optimizer, step, ValueError, "scale is 1.0 on rank 0 and 2.0 on rank 1")

    run(program, 2)


def test_calls_that_differ_are_refused() -> None:
    def program(comm: Any) -> tuple[Any, str]:
        optimizer = stepped(comm)
        if comm.Get_rank() == 0:
            return raised(lambda: optimizer.step(new_grads(optimizer.params, 0, 3)))
        return raised(optimizer.state_dict)

    for kind, text in run(program, 2):
        assert kind is RuntimeError
        assert text.startswith("rank 0 calls Adam.step of optimizer ")
        assert ", rank 1 calls Adam.state_dict of optimizer " in text


def test_optimizers_in_another_order_are_refused() -> None:
    def program(comm: Any) -> None:
        params = [np.zeros(300), np.zeros(300)]
        optimizers: Any = [Sharded(schuss.SGD, param, comm, lr=1.0) for param in params]
        kind, text = raised(lambda: optimizers[comm.Get_rank()].step(np.ones(300)))
        assert kind is RuntimeError
        first, second = re.findall(r"calls SGD\.step of optimizer (\d+)", text)
        assert int(second) == int(first) + 1
        for optimizer in optimizers:
            optimizer.step(np.ones(300))
        assert np.array_equal(params, np.full((2, 300), -1.0))

    run(program, 2)


def test_parameters_begin_with_those_of_rank_0() -> None:
    def program(comm: Any) -> Any:
        params = new_params(layout="columns of more")
        for param in params.values():
            param[...] += comm.Get_rank()
        optimizer: Any = Sharded(schuss.SGD, params, comm, average=0.5, copies="float16")
        return params, optimizer.average, optimizer.copies

    expected = new_params()
    halves = {key: param.astype(np.float16) for key, param in expected.items()}
    for ours in run(program, 3):
        assert_same(ours, (expected, expected, halves))


def test_parameters_may_be_compared_instead() -> None:
    def program(comm: Any) -> Any:
        params = new_params()
        Sharded(schuss.SGD, params, comm, check_params=True)
        if comm.Get_rank() == 1:
            params["V"][0, 0, 0] += 1
        return [
            raised(partial(Sharded, schuss.SGD, given, comm, check_params=True))
            for given in (params, params["V"])
        ]

    for of_all, of_one in run(program, 2):
        assert (of_all[0], of_one[0]) == (ValueError, ValueError)
        assert "Sharded: parameter 'V' has other values on rank 1 than on rank 0" in of_all[1]
        assert "Sharded: params has other values on rank 1 than on rank 0" in of_one[1]


CONSTRUCTIONS: list[tuple[Callable[[Any, Any, int], Any], Any, str]] = [
    (
        lambda comm, params, rank: Sharded(schuss.Adam, {**params, "W": np.ones(2 + rank)}, comm),
        ValueError,
        "parameter 0 is 'W', float64[2] in the memory layout [0], on rank 0 and 'W', float64[3] in",
    ),
    (
        lambda comm, params, rank: Sharded(
            schuss.Adam, dict(sorted(params.items(), reverse=rank == 1)), comm
        ),
        ValueError,
        "parameter 0 is 'V', float32[9, 40, 31] in the memory layout [0, 1, 2], on rank 0 and 's'",
    ),
    (
        lambda comm, params, rank: Sharded(schuss.Adam, np.ones(2 + rank), comm),
        ValueError,
        "Sharded: params is float64[2] in the memory layout [0] on rank 0 and float64[3] in",
    ),
    (
        lambda comm, params, rank: Sharded(schuss.Adam, params, comm, beta1=0.5 + rank / 4),
        ValueError,
        "beta1 is 0.5 on rank 0 and 0.75 on rank 1",
    ),
    (
        lambda comm, params, rank: Sharded(schuss.Adam, params, comm, beta1=2.0 * rank),
        ValueError,
        "Adam: beta1 is 2.0",
    ),
    (
        lambda comm, params, rank: Sharded([schuss.Adam, schuss.SGD][rank], params, comm),
        ValueError,
        "the class is Adam on rank 0 and SGD on rank 1",
    ),
    (
        lambda comm, params, rank: untyped(schuss.Adam, params, comm, reduction="max"),
        ValueError,
        "Sharded: reduction is 'max'",
    ),
    (
        lambda comm, params, rank: Sharded(schuss.Adam, params, comm, wire_dtype="float32"),
        ValueError,
        "Sharded: wire_dtype is 'float32'",
    ),
    (
        lambda comm, params, rank: untyped(schuss.Adam(params), params, comm),
        TypeError,
        "Sharded: kind is a Adam, expected a class of optimizers such as schuss.Adam",
    ),
    (
        lambda comm, params, rank: untyped([schuss.Adam, int][rank], params, comm),
        TypeError,
        "Sharded: kind is",
    ),
    (
        lambda comm, params, rank: Sharded(schuss.Adam, params, comm, timeout=[9.0, -1.0][rank]),
        ValueError,
        "Sharded: timeout is -1.0",
    ),
]


@pytest.mark.parametrize(("make", "error", "words"), CONSTRUCTIONS)
def test_what_cannot_be_made_is_refused_on_all_ranks(make: Any, error: Any, words: str) -> None:
    def program(comm: Any) -> None:
        rank, params = comm.Get_rank(), new_params()
        params["b"] += rank
        kind, text = raised(lambda: make(comm, params, rank))
        assert (kind, words in text) == (error, True), (kind, text)
        assert_same(params["b"], new_params()["b"] + np.float32(rank))  # not even made the same

    run(program, 2)


SAVED: list[dict[str, Any]] = [
    {},
    {"state_dtype": "8bit", "average_bias_correction": True},
    {"state_dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", SAVED, ids=str)
@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4), (4, 1), (2, 2)])
def test_any_number_of_ranks_loads_a_state_dict(before: int, after: int, options: Any) -> None:
    (saved, *others) = run(lambda comm: contents(stepped(comm, **options)), before)
    assert_same(others, [saved] * (before - 1))

    def program(comm: Any) -> Any:
        optimizer: Any = Sharded(schuss.Adam, copy.deepcopy(saved["params"]), comm, **options)
        optimizer.load_state_dict(state)
        for t in (3, 4):
            optimizer.step(new_grads(optimizer.params, comm.Get_rank(), t))
        return contents(optimizer)

    one: Any = schuss.Adam(copy.deepcopy(saved["params"]), **options)
    state = {key: saved[key] for key in one.state_dict()}
    one.load_state_dict(state)
    for t in (3, 4):
        grads = [new_grads(one.params, rank, t) for rank in range(after)]
        one.step(summed(grads), scale=1 / after)
    assert_same(run(program, after), [contents(one)] * after)


def test_one_rank_alone_may_have_a_state_dict() -> None:
    def program(comm: Any) -> Any:
        optimizer, other = stepped(comm), stepped(comm, 0)
        saved = optimizer.state_dict(root=1)
        other.load_state_dict(saved, root=1)
        return saved, optimizer.state_dict(), other.state_dict()

    (none, whole, loaded), (ours, *_) = run(program, 2)
    assert none is None
    assert_same([ours, loaded], [whole, whole])


class OnlyHere:
    """An object that no rank can unpickle."""

    def __reduce__(self) -> Any:
        return _refused, ()


def _refused() -> None:
    raise ModuleNotFoundError("not here")


def no_memory(*_: Any) -> Any:
    raise MemoryError("no room")


STATE_DICTS: list[tuple[Callable[[Any, Any, int], Any], type[BaseException], str]] = [
    (lambda opt, saved, rank: opt.state_dict(root=9 * rank), ValueError, "root is 9"),
    (lambda opt, saved, rank: opt.load_state_dict(saved, root=9 * rank), ValueError, "root is 9"),
    (
        lambda opt, saved, rank: opt.load_state_dict({"extra": OnlyHere()}, root=0),
        ModuleNotFoundError,
        "not here",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), STATE_DICTS)
def test_a_state_dict_of_a_root_that_fails_on_one_rank_fails_on_all(
    call: Any, error: Any, words: str
) -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        saved = optimizer.state_dict()
        own = lambda: call(optimizer, saved, comm.Get_rank())  # noqa: E731
        refuse(comm, optimizer, own, error, words)

    run(program, 2)


def test_a_root_without_memory_for_whole_arrays_raises_on_all() -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        with pytest.MonkeyPatch.context() as patch:
            if comm.Get_rank() == 0:
                patch.setattr(sharded_internals_of(optimizer).shards, "_empty", no_memory)
            kind, text = raised(lambda: optimizer.state_dict(root=0))
        assert (kind, text) == (MemoryError, "no room")
        optimizer.state_dict()

    run(program, 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_state_dict_has_what_a_step_takes_of_accumulated_gradients(reduction: str) -> None:
    def program(comm: Any) -> Any:
        optimizer = stepped(comm, 0, reduction=reduction)
        optimizer.accumulate({**new_grads(optimizer.params, comm.Get_rank(), 1), "b": None})
        saved = optimizer.state_dict()
        optimizer.zero_grad()
        optimizer.load_state_dict(saved)
        optimizer.step()
        return saved["accumulated"], optimizer.params

    grads = [{**new_grads(new_params(), rank, 1), "b": None} for rank in range(2)]
    total = summed(grads)
    one: Any = schuss.Adam(new_params(), **ADAM)
    one.step(total, scale=0.5 if reduction == "mean" else 1.0)
    for sums, params in run(program, 2):
        assert (sums["count"], sums["without"]) == (1, [1])
        factor = np.float32(0.5 if reduction == "mean" else 1.0)
        taken = {key: np.asarray(total[key] * factor) for key in ("W", "s", "V", "e")}
        assert_same({key: sums["values"][key] for key in taken}, taken)
        assert_same(params, one.params)


def test_a_state_dict_that_one_rank_cannot_load_is_loaded_by_none() -> None:
    def program(comm: Any) -> None:
        optimizer = stepped(comm)
        saved = optimizer.state_dict()
        if comm.Get_rank() == 1:
            saved["state"]["m"]["W"] = np.zeros(2, np.float32)
        load = lambda: optimizer.load_state_dict(saved)  # noqa: E731
        refuse(comm, optimizer, load, ValueError, "load_state_dict: state_dict['state']['m']['W']")

    run(program, 2)


def test_a_group_that_one_rank_cannot_add_is_added_by_none() -> None:
    def program(comm: Any) -> None:
        params, rank = [{"params": new_params()}], comm.Get_rank()
        optimizer: Any = Sharded(schuss.Adam, params, comm)
        own = np.ones(3, "f8" if rank else "f2")
        kind, text = raised(lambda: optimizer.add_group({"params": own, "lr": 0.1}))
        assert kind is ValueError
        assert "parameter 5 is '1', float16[3] in the memory layout [0], on rank 0 and" in text
        optimizer.step([new_grads(params[0]["params"], rank, 1)])

    run(program, 2)


def test_pickles_and_copies_are_refused_with_the_remedy() -> None:
    optimizer: Any = Sharded(schuss.Adam, new_params())
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"ShardedAdam: .* state_dict\(\) .* schuss.save"):
            call(optimizer)


@pytest.mark.parametrize("layout", ["c", "sliced"])
def test_parameters_may_be_changed_between_steps_by_all_ranks_alike(layout: str) -> None:
    def train(optimizer: Any, grads: Callable[[int], Any], scale: float) -> Any:
        started = None
        for t in (1, 2, 3, 4):
            for param in optimizer.params.values():
                param[...] *= t
            if t == 3:
                optimizer.average = 0.5
                started = copy.deepcopy(optimizer.average)
            optimizer.step(grads(t), scale=scale)
        return [contents(optimizer), started]

    def program(comm: Any) -> Any:
        optimizer: Any = Sharded(schuss.Adam, new_params(layout=layout), comm)
        return train(optimizer, lambda t: new_grads(new_params(), comm.Get_rank(), t), 1.0)

    def total(t: int) -> Any:
        return summed([new_grads(new_params(), rank, t) for rank in range(2)])

    one: Any = schuss.Adam(new_params(layout=layout))
    expected = train(one, total, 0.5)
    assert_same(run(program, 2), [expected] * 2)


@pytest.mark.parametrize("weight", [None, 0.0])
def test_a_parameter_that_one_rank_replaced_is_refused_on_all(weight: float | None) -> None:
    def program(comm: Any) -> None:
        optimizer, rank = stepped(comm), comm.Get_rank()
        known = optimizer.params["V"]
        grads = new_grads(optimizer.params, rank, 3)
        if rank == 1:
            optimizer.params["V"] = known.copy()
        arguments: dict[str, Any] = {"grads": grads, "weight": None if weight is None else 1.0}
        if rank == 1 and weight == 0:
            arguments = {"weight": 0.0}
        kind, text = raised(lambda: optimizer.step(**arguments))
        assert (kind, "params['V']" in text) == (ValueError, True), text
        optimizer.params["V"] = known
        optimizer.step(grads)

    run(program, 2)


def test_the_state_of_a_rank_is_its_part() -> None:
    def program(comm: Any) -> Any:
        optimizer = stepped(comm)
        return optimizer.state["m"], optimizer.state_bytes

    parts = run(program, 4)
    total = sum(nbytes for _, nbytes in parts)
    assert total == schuss.Adam(new_params()).state_bytes
    assert max(nbytes for _, nbytes in parts) < 0.26 * total
    for name, param in new_params().items():
        assert sum(state[name].size for state, _ in parts) == param.size
