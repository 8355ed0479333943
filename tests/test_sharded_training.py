"""`fit` with a sharded optimizer: one training on all ranks, with the bits of its shares' sums."""

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import schuss
from schuss import schedules
from schuss.mpi import Sharded
from support.ranks import Comm, Network, run, shared, world_size

M, BATCH, EPOCHS = 23, 8, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((M, 3))
Y = X @ np.array([[2.0], [-1.0], [0.5]]) + 3 + 0.1 * RNG.standard_normal((M, 1))
SIZES = [1, 2, 3, 4]
SEVERAL = [2, 3]

Array = npt.NDArray[Any]
Params = dict[str, Array]
Program = Callable[[Any], Any]


def line_start(dtype: Any = np.float64) -> Params:
    return {"W": np.zeros((3, 1), dtype), "b": np.zeros(1, dtype)}


def line(params: Params, x: Array, y: Array) -> tuple[float, Params]:
    """Linear regression: half the mean square of the error."""
    error = x @ params["W"] + params["b"] - y
    grads = {"W": x.T @ error / len(x), "b": error.mean(axis=0)}
    dtype = params["W"].dtype
    return float((error**2).mean()) / 2, {name: g.astype(dtype) for name, g in grads.items()}


def fit_line(comm: Any, *batches: Any, loss: Any = line, **options: Any) -> Any:
    """Return the parameters, the history and the optimizer of a training of this rank."""
    params = line_start(options.pop("dtype", np.float64))
    optimizer = Sharded(schuss.Adam, params, comm, lr=0.1, deterministic=True)
    data = batches or (X, Y)
    own = {} if batches else {"batch_size": BATCH, "rng": 0}
    options = {"epochs": EPOCHS, **own, **options}
    history = schuss.fit(loss, params, optimizer, *data, **options)
    return params, history


def fitted(size: int, *batches: Any, **options: Any) -> list[tuple[Params, schuss.History]]:
    """Train on ranks; check that all have the same outcome, and return it."""
    results = run(lambda comm: fit_line(comm, *batches, **copy.deepcopy(options)), size)
    assert_same(results)
    return results


def assert_same(results: Sequence[tuple[Params, schuss.History]]) -> None:
    """Check that all ranks have the same parameters and histories, times included."""
    params, history = results[0]
    for others, other in results[1:]:
        np.testing.assert_equal(others, params)
        np.testing.assert_equal(other.to_dict(), history.to_dict())
        assert (other.stopped, other.best_epoch) == (history.stopped, history.best_epoch)


def by_hand(
    size: int,
    params: Any,
    optimizer: Any,
    batches: Sequence[Any],
    loss: Any = line,
    accumulate: int = 1,
) -> list[float]:
    """Train with gradients of shares, summed in the order of the ranks; return the costs.

    batches: of one epoch; the last step of an epoch may have fewer.
    """
    costs = []
    for first in range(0, len(batches), accumulate):
        group, of_group = batches[first : first + accumulate], []
        sums: dict[int, Params] = {}
        weights = np.ones(size)
        for batch in group:
            shares = [*zip(*(np.array_split(part, size) for part in batch), strict=True)]
            weights = np.array([len(share[0]) for share in shares], np.float64)
            outcomes = {r: loss(params, *share) for r, share in enumerate(shares) if weights[r]}
            of_group.append(
                sum(weights[r] * cost for r, (cost, _) in outcomes.items()) / weights.sum()
            )
            for rank, (_, grads) in outcomes.items():
                if accumulate > 1:  # each mini-batch has its own weights
                    scale = weights[rank] * size / weights.sum()
                    grads = {name: g * g.dtype.type(scale) for name, g in grads.items()}
                before = sums.get(rank)
                sums[rank] = grads if before is None else {n: before[n] + grads[n] for n in grads}
        if accumulate == 1 and len(set(weights)) > 1:
            of_ranks = [
                {name: g * g.dtype.type(weights[rank]) for name, g in grads.items()}
                for rank, grads in sorted(sums.items())
            ]
            scale = 1 / weights.sum()
        else:
            of_ranks, scale = [sums[rank] for rank in sorted(sums)], 1 / len(group) / size
        total = of_ranks[0]
        for grads in of_ranks[1:]:
            total = {name: total[name] + grads[name] for name in total}
        optimizer.step(total, scale=scale)
        costs.append(float(np.mean(of_group)) if len(of_group) > 1 else of_group[0])
    return costs


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [12, 8, 3])  # the last: ranks without an example
@pytest.mark.parametrize("size", SIZES)
def test_the_steps_and_costs_are_those_of_the_shares_summed_in_the_order_of_the_ranks(
    size: int, batch_size: int, dtype: Any, accumulate: int
) -> None:
    params = line_start(dtype)
    optimizer = schuss.Adam(params, lr=0.1)
    batches = schuss.minibatches(X, Y, batch_size=batch_size, rng=0)
    costs = []
    for _ in range(EPOCHS):
        costs += by_hand(size, params, optimizer, list(batches), accumulate=accumulate)
    results = fitted(size, batch_size=batch_size, dtype=dtype, accumulate=accumulate)
    np.testing.assert_equal(results[0][0], params)
    np.testing.assert_equal(results[0][1].cost.tolist(), costs)
    assert results[0][1].stopped == "finished"


@pytest.mark.parametrize("size", [2, 4, *(pytest.param(n, marks=pytest.mark.soak) for n in (1, 3))])
def test_the_digits_network_of_several_ranks_is_that_of_one_process(size: int) -> None:
    pytest.importorskip("sklearn")
    from schuss.demo.digits import LAYERS, Digits, train
    from schuss.demo.network import cost_and_gradients, initial_parameters

    digits = Digits.load(seed=0)

    def program(comm: Any) -> Any:
        return train(
            lambda params: Sharded(schuss.Adam, params, comm, lr=0.001, deterministic=True),
            digits,
            epochs=1,
            seed=0,
        )

    results = run(program, size)
    assert_same(results)
    params = initial_parameters(LAYERS, np.random.default_rng(0))
    batches = schuss.minibatches(digits.x, digits.labels, batch_size=64, rng=0)
    optimizer = schuss.Adam(params, lr=0.001)
    costs = by_hand(size, params, optimizer, list(batches), cost_and_gradients)
    np.testing.assert_equal(results[0][0], params)
    np.testing.assert_equal(results[0][1].cost.tolist(), costs)
    _, history = train(lambda params: schuss.Adam(params, lr=0.001), digits, epochs=1, seed=0)
    np.testing.assert_allclose(results[0][1].cost, history.cost, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"accumulate": 4}], ids=str)
def test_a_rank_without_examples_does_not_call_the_loss(options: dict[str, Any]) -> None:
    def program(comm: Any) -> tuple[list[int], Any]:
        lengths = []

        def loss(params: Params, x: Array, y: Array) -> tuple[float, Params]:
            lengths.append(len(x))
            return line(params, x, y)

        return lengths, fit_line(comm, loss=loss, batch_size=10, epochs=1, **options)

    lengths, results = zip(*run(program, 4), strict=True)
    assert lengths == ([3, 3, 1], [3, 3, 1], [2, 2, 1], [2, 2])
    assert_same(results)
    assert results[0][1].steps == -(-3 // options.get("accumulate", 1))


def one_process(**options: Any) -> tuple[Params, schuss.History]:
    params = line_start()
    optimizer = schuss.Adam(params, lr=0.1)
    options = {"batch_size": BATCH, "rng": 0, "epochs": EPOCHS} | options
    return params, schuss.fit(line, params, optimizer, X, Y, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"l2": 0.3},
        {"l2": 0.3, "accumulate": 2},
        {"l2": 0.3, "loss_scale": 4.0, "batch_size": 3},
        {"schedule": schedules.Exponential(0.1, 0.9), "schedule_by": "epoch"},
        {"drop_last": True, "prefetch": 2},
        {"validation": (X[:10], Y[:10]), "patience": 1, "min_delta": 10.0},
        {"validation": (X[:3], Y[:3]), "start_from_epoch": 1, "restore_best": True},
        {"validation": [(X[:9], Y[:9]), (X[9:], Y[9:]), (X[:4], Y[:4])]},
        {"validation": lambda params: float(params["b"][0]), "mode": "max"},
        {"shuffle": False, "batch_size": None, "rng": None},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_option_does_what_it_does_in_one_process(size: int, options: dict[str, Any]) -> None:
    scale = options.get("loss_scale", 1.0)

    def scaled(params: Params, x: Array, y: Array) -> tuple[float, Params]:
        cost, grads = line(params, x, y)
        return cost, {name: g * scale for name, g in grads.items()}

    params, history = one_process(**{**options, "loss_scale": None})
    options = {**options, "loss": scaled}
    for here, there in fitted(size, **options):
        for name in params:
            np.testing.assert_allclose(here[name], params[name], rtol=1e-9, atol=1e-12)
        for name in ("cost", "epoch_cost", "validation", "lr", "skipped"):
            np.testing.assert_allclose(getattr(there, name), getattr(history, name), rtol=1e-9)
        assert (there.stopped, there.best_epoch) == (history.stopped, history.best_epoch)
        assert repr(there).split("cost")[0] == repr(history).split("cost")[0]


@pytest.mark.parametrize("kind", ["a list", "mini-batches", "parts"])
@pytest.mark.parametrize("size", SEVERAL)
def test_mini_batches_of_a_validation_are_dealt_and_their_mean_is_that_of_one_process(
    size: int, kind: str
) -> None:
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, M, 4)]

    def program(comm: Any) -> Any:
        part = (comm.Get_rank(), size) if kind == "parts" else (0, 1)
        cut = schuss.minibatches(X, Y, batch_size=4, shuffle=False, part=part)
        validation = batches if kind == "a list" else cut
        calls = []

        def loss(params: Params, x: Array, y: Array) -> tuple[float, Params]:
            calls.append(len(x))
            return float(x.sum()), line(params, x, y)[1]

        history = fit_line(comm, loss=loss, epochs=1, batch_size=None, validation=validation)[1]
        return len(calls) - 1, history.validation.tolist()

    results = run(program, size)
    assert [calls for calls, _ in results] == [len(batches[r::size]) for r in range(size)]
    weights = [len(x) for x, _ in batches]
    expected = np.average([float(x.sum()) for x, _ in batches], weights=np.array(weights) / 4)
    assert all(values == [expected] for _, values in results)


# The order of the examples.


@pytest.mark.parametrize("kind", ["no seed", "a seed", "generators", "mini-batches", "parts"])
@pytest.mark.parametrize("size", SEVERAL)
def test_the_order_is_that_of_the_first_rank_whatever_the_others_have(size: int, kind: str) -> None:
    x = np.arange(40.0)[:, None]

    def program(comm: Any) -> list[list[float]]:
        rank = comm.Get_rank()
        seen: list[list[float]] = []

        def loss(params: Array, x: Array) -> tuple[float, Array]:
            seen.append(x[:, 0].tolist())
            return 0.0, np.zeros(1)

        params, rng = np.zeros(1), np.random.default_rng(rank)
        optimizer = Sharded(schuss.SGD, params, comm)
        if kind in ("mini-batches", "parts"):
            part = (rank, size) if kind == "parts" else (0, 1)
            batches = schuss.minibatches(x, batch_size=8, rng=rng, part=part)
            schuss.fit(loss, params, optimizer, batches, epochs=2)
        else:
            seed: Any = {"no seed": None, "a seed": 0, "generators": rng}[kind]
            schuss.fit(loss, params, optimizer, x, batch_size=8, epochs=2, rng=seed)
        return seen

    of_ranks = run(program, size)
    batches = [[*chain(*shares)] for shares in zip(*of_ranks, strict=True)]
    for epoch in (batches[:5], batches[5:]):
        assert sorted(chain(*epoch)) == x[:, 0].tolist()
    if kind != "no seed":
        whole = schuss.minibatches(x, batch_size=8, rng=np.random.default_rng(0))
        assert batches == [batch[:, 0].tolist() for _ in range(2) for batch in whole]


# Mini-batches of the ranks' own.


def own_batches(rank: int) -> list[tuple[Array, Array]]:
    """Return mini-batches of a rank, whose sizes differ."""
    return [(X[i + rank : i + 2 * rank + 3], Y[i + rank : i + 2 * rank + 3]) for i in (0, 5, 10)]


@pytest.mark.parametrize("kind", ["a list", "a function"])
@pytest.mark.parametrize("size", SIZES)
def test_each_rank_gives_its_own_mini_batches_which_weigh_as_many_examples_as_they_have(
    size: int, kind: str
) -> None:
    def program(comm: Any) -> Any:
        batches = own_batches(comm.Get_rank())
        return fit_line(comm, batches if kind == "a list" else lambda: iter(batches), epochs=2)

    results = run(program, size)
    assert_same(results)
    params = line_start()
    optimizer = schuss.Adam(params, lr=0.1)
    for batches in [*zip(*map(own_batches, range(size)), strict=True)] * 2:
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        optimizer.step(line(params, x, y)[1])
    for name in params:
        np.testing.assert_allclose(results[0][0][name], params[name], rtol=1e-9)


@pytest.mark.parametrize("has_len", [True, False])
@pytest.mark.parametrize("size", SEVERAL)
def test_other_numbers_of_mini_batches_are_refused_on_all_ranks(size: int, has_len: bool) -> None:
    def program(comm: Any) -> str:
        batches = own_batches(0)[: 3 - (comm.Get_rank() == 1)]
        with pytest.raises(ValueError, match="expected the same on all ranks") as caught:
            fit_line(comm, batches if has_len else lambda: iter(batches))
        return str(caught.value)

    (message,) = set(run(program, size))
    other = "2 on rank 1" if has_len else "False on rank 1"
    assert message.startswith("fit: ")
    assert other in message


@pytest.mark.parametrize("name", ["x", "validation"])
def test_mini_batches_in_other_parts_are_refused(name: str) -> None:
    def program(comm: Any) -> None:
        batches = schuss.minibatches(X, Y, part=(comm.Get_rank(), 3))
        own, options = ([batches], {}) if name == "x" else ([], {name: batches})
        message = rf"fit: {name} is part \d of 3 of its mini-batches, expected part \d of 2"
        with pytest.raises(ValueError, match=message):
            fit_line(comm, *own, **options)

    run(program, 2)


@pytest.mark.parametrize("kind", ["examples", "batches", "sizes"])
def test_a_validation_on_each_ranks_own_share_is_refused(kind: str) -> None:
    def program(comm: Any) -> None:
        share = schuss.minibatches(X, Y, shuffle=False, part=(comm.Get_rank(), 2), batch_size=4)
        batches = list(share)  # of 6 batches, the last has 3 examples: 2 and 1
        x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        own: Any = {"examples": (x, y), "sizes": batches, "batches": batches[comm.Get_rank() :]}
        what = "batches" if kind == "batches" else "examples"
        message = f"fit: the number of {what} of validation is .* expected the same on all ranks"
        with pytest.raises(ValueError, match=message):
            fit_line(comm, validation=own[kind])

    run(program, 2)


def test_in_one_process_a_part_is_a_mini_batch_unless_it_can_be_empty() -> None:
    params = line_start()
    optimizer = schuss.SGD(params)
    batches = schuss.minibatches(X, Y, batch_size=10, part=(2, 4))
    history = schuss.fit(line, params, optimizer, batches, l2=0.1)
    assert history.steps == 3
    with pytest.raises(ValueError, match=r"fit: x is part 3 of 4 of its mini-batches.*no example"):
        schuss.fit(line, params, optimizer, schuss.minibatches(X, Y, batch_size=10, part=(3, 4)))


# One rank fails, stops or is interrupted: all do.


class At:
    """A function that acts at its n-th call on one rank, and otherwise returns its result."""

    def __init__(self, comm: Any, rank: int, n: int, act: Callable[[], Any]) -> None:
        self.is_here, self.n, self.act = comm.Get_rank() == rank, n, act
        self.calls = 0

    def __call__(self, result: Any = None) -> Any:
        self.calls += 1
        return self.act() if self.is_here and self.calls == self.n else result


def options_with(where: str, at: At) -> dict[str, Any]:
    """Return the arguments of `fit_line` that call `at` in this place."""
    if where == "loss":
        return {"loss": lambda *arguments: (at(), line(*arguments))[1]}
    if where == "validation":
        return {"validation": lambda params: at(0.0)}
    if where == "validation batches":
        return {
            "validation": [(X, Y)] * 4,
            "loss": lambda *a: (len(a[1]) == M and at(), line(*a))[1],
        }
    return {where: lambda history: at()}


PLACES = ["loss", "on_step", "callbacks", "validation", "validation batches"]


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("place", [*PLACES, "batches", "first batches"])
@pytest.mark.parametrize(("size", "failing"), [(2, 0), (2, 1), (3, 1), (4, 3)])
def test_what_one_rank_raises_all_raise(
    size: int, failing: int, place: str, options: dict[str, Any], n: int
) -> None:
    def program(comm: Any) -> tuple[str, int]:
        at = At(comm, failing, n, lambda: fail(OSError(5, "the disk is gone")))

        def batches() -> Iterator[Any]:
            for batch in own_batches(0):
                at()
                yield batch

        def first_batches() -> Iterator[Any]:
            at()
            return iter(own_batches(0))

        functions = {"batches": batches, "first batches": first_batches}
        own = [functions[place]] if place in functions else []
        given = {} if own else options_with(place, at)
        with pytest.raises(OSError, match="the disk is gone") as caught:
            fit_line(comm, *own, **given, **options)
        return repr(caught.value), len(getattr(caught.value, "__notes__", ()))

    results = run(program, size)
    assert {text for text, _ in results} == {repr(OSError(5, "the disk is gone"))}
    assert [notes for _, notes in results] == [int(rank != failing) for rank in range(size)]


@pytest.mark.parametrize("size", SEVERAL)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "fit: epochs is 0, expected an integer >= 1"),
        ({"epochs": 9}, ValueError, "fit: epochs is 3 on rank 0 and 9 on rank 1, expected the"),
        ({"batch_size": 4}, ValueError, "fit: batch_size is 8 on rank 0 and 4 on rank 1"),
        ({"accumulate": 2}, ValueError, "fit: accumulate is 1 on rank 0 and 2 on rank 1"),
        ({"validation": lambda params: 0.0}, ValueError, "fit: validation is a NoneType on rank 0"),
        ({"patience": 4}, ValueError, "fit: patience is None on rank 0 and 4 on rank 1"),
        ({"prefetch": -1}, ValueError, "minibatches: prefetch is -1"),
        ({"loss": None}, TypeError, "fit: loss_and_grad is a NoneType, expected a function"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_arguments_that_differ_or_are_wrong_on_one_rank_are_refused_on_all(
    size: int, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def program(comm: Any) -> None:
        with pytest.raises(error, match=f"^{message}"):
            fit_line(comm, **options if comm.Get_rank() == 1 else {})

    run(program, size)


def test_sums_of_gradients_are_refused() -> None:
    def program(comm: Any) -> None:
        optimizer = Sharded(schuss.SGD, params := line_start(), comm, reduction="sum")
        with pytest.raises(ValueError, match="fit: optimizer has reduction 'sum', expected 'mean'"):
            schuss.fit(line, params, optimizer, X, Y)

    run(program, 2)


@pytest.mark.parametrize("answer", [True, np.True_, 1])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("place", ["on_step", "callbacks"])
@pytest.mark.parametrize(("size", "stopping"), [(2, 0), (2, 1), (3, 1)])
def test_true_on_one_rank_stops_all(
    size: int, stopping: int, place: str, everywhere: bool, answer: Any
) -> None:
    def program(comm: Any) -> Any:
        at = At(comm, stopping, 2, lambda: answer)
        is_given = everywhere or comm.Get_rank() == stopping
        return fit_line(comm, **options_with(place, at) if is_given else {})

    results = run(program, size)
    assert_same(results)
    history = results[0][1]
    stops = not isinstance(answer, int) or isinstance(answer, bool)
    assert history.stopped == ("callback" if stops else "finished")
    assert history.steps == (9 if not stops else 2 if place == "on_step" else 6)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", SEVERAL)
def test_ctrl_c_on_one_rank_or_on_all_ends_all_at_the_same_step(
    size: int, place: str, n: int, accumulate: int, everywhere: bool
) -> None:
    def program(comm: Any) -> Any:
        rank = comm.Get_rank() if everywhere else size - 1
        at = At(comm, rank, n, lambda: fail(KeyboardInterrupt()))
        return fit_line(comm, **options_with(place, at), accumulate=accumulate)

    results = run(program, size)
    assert_same(results)
    history = results[0][1]
    assert history.stopped == "interrupted"
    calls = {"validation batches": -(-4 // size) if everywhere else 4 // size}  # in an epoch
    steps_in_epochs = -(-n // calls.get(place, 1)) * -(-3 // accumulate)
    steps = {"loss": (n - 1) // accumulate, "on_step": n}
    assert history.steps == steps.get(place, steps_in_epochs)
    params = line_start()
    options: Any = {"epochs": EPOCHS, "accumulate": accumulate}
    one = schuss.Adam(params, lr=0.1)
    stop = lambda history: history.steps == results[0][1].steps  # noqa: E731
    if history.steps:
        schuss.fit(line, params, one, X, Y, batch_size=BATCH, rng=0, on_step=stop, **options)
    for name in params:
        np.testing.assert_allclose(results[0][0][name], params[name], rtol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_dynamic_loss_scale_skips_the_step_of_all_if_one_rank_overflows(
    failing: int, accumulate: int
) -> None:
    def program(comm: Any) -> Any:
        scaler = schuss.DynamicLossScale(8.0, growth_interval=2)
        at = At(comm, failing, 4, lambda: np.inf)

        def loss(params: Params, x: Array, y: Array) -> tuple[float, Params]:
            cost, grads = line(params, x, y)
            factor = scaler.value * at(1.0)
            return cost, {name: g * factor for name, g in grads.items()}

        return *fit_line(comm, loss=loss, loss_scale=scaler, accumulate=accumulate), scaler.value

    results = run(program, 2)
    assert_same([(params, history) for params, history, _ in results])
    history = results[0][1]
    skipped = [3] if accumulate == 1 else [2]  # the fourth mini-batch begins the second epoch
    assert np.flatnonzero(history.skipped).tolist() == skipped
    assert {scale for *_, scale in results} == {32.0 if accumulate == 1 else 16.0}


def test_one_rank_shows_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm")
    bars = []

    class Bar(tqdm.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, **options: Any) -> None:
            super().__init__(file=StringIO(), **options)
            bars.append(threading.get_ident())

    def program(comm: Any) -> int:
        fit_line(comm, progress=True)
        return bars.count(threading.get_ident())

    monkeypatch.setattr("tqdm.tqdm", Bar)
    assert run(program, 2) == [1, 0]


# Checkpoints.


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"batch_size": 3}], ids=str)
@pytest.mark.parametrize(("size", "then"), [(1, 2), (2, 1), (2, 3), (3, 2), (2, 2)])
def test_any_number_of_ranks_goes_on_from_a_checkpoint(
    tmp_path: Path, size: int, then: int, options: dict[str, Any]
) -> None:
    path = str(shared(tmp_path) / "training.safetensors")
    options = {"checkpoint": path, "checkpoint_every": 2, **options}

    def stopped(comm: Any) -> Any:
        at = At(comm, 0, 5, lambda: fail(KeyboardInterrupt()))
        return fit_line(comm, on_step=lambda history: at(), **options)

    before = run(stopped, size)
    assert_same(before)
    assert before[0][1].stopped == "interrupted"
    results = fitted(then, **options)
    history = results[0][1]
    assert history.stopped == "finished"
    assert history.resumed_steps == 5
    del options["checkpoint"], options["checkpoint_every"]
    params, whole = one_process(**options)
    for name in params:
        np.testing.assert_allclose(results[0][0][name], params[name], rtol=1e-9)
    np.testing.assert_allclose(history.cost, whole.cost, rtol=1e-9)
    np.testing.assert_equal(history.cost[:5], before[0][1].cost)


def test_own_mini_batches_of_each_rank_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    path = str(shared(tmp_path) / "training.safetensors")

    def program(comm: Any) -> Any:
        batches, at = own_batches(comm.Get_rank()), At(comm, 1, 4, lambda: True)
        whole = fit_line(comm, batches)
        fit_line(comm, batches, checkpoint=path, on_step=lambda history: at())
        return whole[0], fit_line(comm, batches, checkpoint=path)

    for params, (resumed, history) in run(program, 2):
        assert (history.steps, history.resumed_steps) == (9, 4)
        np.testing.assert_equal(resumed, params)


def test_the_masters_of_the_best_epoch_are_kept_and_restored(tmp_path: Path) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    path = str(shared(tmp_path) / "training.safetensors")

    def start() -> Params:
        return {"W": np.zeros((40, 8), bfloat16), "b": np.ones(3, bfloat16)}

    def loss(params: Params, x: Array) -> tuple[float, Params]:
        return 0.0, {name: np.full(p.shape, 0.01, np.float32) for name, p in params.items()}

    def train(params: Params, optimizer: Any, **options: Any) -> schuss.History:
        values = iter(options.pop("values"))
        return schuss.fit(
            loss, params, optimizer, np.zeros((6, 1)), batch_size=6, restore_best=True,
            validation=lambda params: next(values), **options,
        )  # fmt: skip

    def program(comm: Any) -> Any:
        for epochs, values in ((2, [2.0, 1.0]), (4, [3.0, 4.0])):
            params = start()
            optimizer = Sharded(schuss.Adam, params, comm, lr=0.003, master="float32")
            history = train(params, optimizer, epochs=epochs, values=values, checkpoint=path)
        return {n: p.astype(np.float32) for n, p in params.items()}, optimizer.master, history

    params = start()
    optimizer = schuss.Adam(params, lr=0.003, master="float32")
    train(params, optimizer, epochs=4, values=[2.0, 1.0, 3.0, 4.0])
    for here, masters, history in run(program, 2):
        assert history.best_epoch == 2
        for name in params:
            np.testing.assert_array_equal(here[name], params[name].astype(np.float32))
            np.testing.assert_array_equal(masters[name], optimizer.master[name])


# Signals.


needs_signals = pytest.mark.skipif(
    os.name != "posix" or world_size() is not None, reason="no signals, or no ranks in threads"
)


def fit_on_two(options: Callable[[Comm], dict[str, Any]]) -> Any:
    """Return the history of rank 0, to which Ctrl-C is pressed, after checking that of rank 1."""
    # Signals reach the main thread alone: it is rank 0, and another thread is rank 1.
    network = Network(2)
    results: dict[int, Any] = {}

    def program(rank: int) -> None:
        comm = Comm(network, rank)
        results[rank] = fit_line(comm, **options(comm))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        other = threading.Thread(target=program, args=[1], daemon=True)
        other.start()
        program(0)
        other.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert_same([results[0], results[1]])
    return results[0][1]


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@needs_signals
@pytest.mark.parametrize("place", ["loss", "on_step", "validation"])
def test_a_signal_waits_for_the_vote_of_its_rank(place: str) -> None:
    def options(comm: Comm) -> dict[str, Any]:
        at = At(comm, 0, 2, press_ctrl_c)
        if place == "validation":
            return {"validation": lambda params: (at(), 0.0)[1]}
        return options_with(place, at)

    history = fit_on_two(options)
    assert history.stopped == "interrupted"
    assert history.steps == {"loss": 1, "on_step": 2, "validation": 6}[place]


@needs_signals
@pytest.mark.parametrize("place", ["loss", "on_step"])
def test_a_second_signal_does_not_wait(place: str) -> None:
    went_on = []

    def press_twice() -> None:
        press_ctrl_c()
        went_on.append("after the first")
        press_ctrl_c()
        went_on.append("after the second")

    history = fit_on_two(lambda comm: options_with(place, At(comm, 0, 2, press_twice)))
    assert history.stopped == "interrupted"
    assert history.steps == {"loss": 1, "on_step": 2}[place]
    assert went_on == ["after the first"]
