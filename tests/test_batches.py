"""Mini-batches: an epoch is every example once, in an order that a seed decides."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import schuss

M = 23
X = np.arange(3 * M).reshape(M, 3)
Y = X[:, 0] // 3
SIZES = [1, 4, 22, 23, 64, None]


def epoch(**options: Any) -> list[Any]:
    return list(schuss.minibatches(X, **options))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", SIZES)
def test_an_epoch_has_every_example_exactly_once(batch_size: int | None, shuffle: bool) -> None:
    batches = epoch(batch_size=batch_size, shuffle=shuffle, rng=0)
    rows = np.concatenate(batches)
    assert len(rows) == M
    np.testing.assert_array_equal(np.sort(rows, axis=0), X)
    assert np.array_equal(rows, X) is not shuffle


@pytest.mark.parametrize("batch_size", SIZES)
def test_only_the_last_batch_may_be_smaller_and_drop_last_leaves_it_out(
    batch_size: int | None,
) -> None:
    size = min(batch_size or M, M)
    sizes = [len(batch) for batch in epoch(batch_size=batch_size)]
    assert sizes == [size] * (M // size) + [M % size] * (M % size > 0)
    whole = [len(batch) for batch in epoch(batch_size=batch_size, drop_last=True)]
    assert whole == [size] * (M // (batch_size or M))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", SIZES)
def test_the_length_is_the_number_of_batches(batch_size: int | None, drop_last: bool) -> None:
    batches = schuss.minibatches(X, batch_size=batch_size, drop_last=drop_last)
    assert len(batches) == len(list(batches))


def test_five_million_examples_in_batches_of_a_thousand_make_five_thousand_batches() -> None:
    m = 5_000_000
    x = np.zeros(m, np.int8)
    assert len(schuss.minibatches(x, batch_size=1_000)) == 5_000
    assert len(schuss.minibatches(x[1:], batch_size=1_000)) == 5_000
    assert len(schuss.minibatches(x[1:], batch_size=1_000, drop_last=True)) == 4_999


def test_no_batch_size_is_batch_gradient_descent_and_one_is_stochastic() -> None:
    assert [batch.shape for batch in epoch(batch_size=None)] == [(M, 3)]
    assert [batch.shape for batch in epoch(batch_size=1)] == [(1, 3)] * M


@pytest.mark.parametrize("shuffle", [True, False])
def test_x_and_y_stay_paired(shuffle: bool) -> None:
    for x, y in schuss.minibatches(X, Y, batch_size=4, shuffle=shuffle, rng=0):
        np.testing.assert_array_equal(x[:, 0], 3 * y)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("y", [Y, Y[None, :], np.stack([Y, -Y])], ids=["(m,)", "(1, m)", "(2, m)"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_columns_give_the_batches_of_rows_transposed(
    y: npt.NDArray[Any], axis: int, shuffle: bool
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "shuffle": shuffle, "rng": 5}
    rows = list(schuss.minibatches(X, y.T, **options))
    columns = list(schuss.minibatches(X.T, y, axis=axis, **options))
    assert len(columns) == len(rows) == 6
    for (x, labels), (x_row, labels_row) in zip(columns, rows, strict=True):
        np.testing.assert_array_equal(x, x_row.T)
        np.testing.assert_array_equal(labels, labels_row.T)


def test_examples_may_be_arrays_of_any_shape() -> None:
    images = np.arange(5 * 2 * 2).reshape(5, 2, 2)
    batches = list(schuss.minibatches(images, batch_size=3, rng=0))
    assert [batch.shape for batch in batches] == [(3, 2, 2), (2, 2, 2)]
    # On the last axis, -1 counts from the end of x, whatever the shape of y.
    last = schuss.minibatches(np.moveaxis(images, 0, -1), np.arange(5), batch_size=3, axis=-1)
    for x, y in last:
        np.testing.assert_array_equal(x[0, 0], 4 * y)


def test_the_same_seed_gives_the_same_batches_and_another_gives_others() -> None:
    first, same, other = (np.concatenate(epoch(batch_size=4, rng=seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_generator_gives_the_batches_of_its_seed_and_moves_on() -> None:
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(np.concatenate(epoch(rng=rng)), np.concatenate(epoch(rng=7)))
    assert rng.bit_generator.state != np.random.default_rng(7).bit_generator.state


def test_each_epoch_has_a_new_order_and_the_seed_decides_them_all() -> None:
    batches, again = (schuss.minibatches(X, batch_size=4, rng=7) for _ in range(2))
    epochs = [np.concatenate(list(batches)) for _ in range(3)]
    assert len({epoch.tobytes() for epoch in epochs}) == 3
    for rows in epochs:
        np.testing.assert_array_equal(rows, np.concatenate(list(again)))


def test_batches_are_copies_when_shuffled_and_views_when_not() -> None:
    assert not any(np.shares_memory(batch, X) for batch in epoch(batch_size=4))
    assert all(np.shares_memory(batch, X) for batch in epoch(batch_size=4, shuffle=False))


def test_dtypes_are_kept_and_lists_become_arrays() -> None:
    x, y = next(iter(schuss.minibatches(X.astype(np.float32), Y.astype(np.int8))))
    assert (x.dtype, y.dtype) == (np.float32, np.int8)
    (batch,) = schuss.minibatches([[1.0, 2.0], [3.0, 4.0]], shuffle=False)
    np.testing.assert_array_equal(batch, [[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X, {"y": Y[1:]}, ValueError, r"y has 22 examples, expected 23 \(as x has\)"),
        (X.T, {"y": Y[1:], "axis": 1}, ValueError, r"y has 22 examples, expected 23"),
        (X[:0], {}, ValueError, "x has no examples, expected at least one"),
        (X, {"batch_size": 0}, ValueError, "batch_size is 0, expected an integer >= 1"),
        (X, {"batch_size": -4}, ValueError, "batch_size is -4, expected an integer >= 1"),
        (X, {"batch_size": 2.5}, TypeError, "batch_size is a float, expected an integer"),
        (X, {"batch_size": "4"}, TypeError, "batch_size is a str, expected an integer"),
        (X, {"axis": 2}, ValueError, "axis is 2, expected an axis of x, which has 2"),
        (X, {"axis": -3}, ValueError, "axis is -3, expected an axis of x, which has 2"),
        (X, {"axis": 1.0}, TypeError, "axis is a float, expected an integer"),
        (np.float64(1), {}, ValueError, "axis is 0, expected an axis of x, which has 0"),
        (X, {"y": np.float64(1)}, ValueError, "axis is 0, expected an axis of y, which has 0"),
        (X, {"shuffle": "no"}, TypeError, "shuffle is 'no', expected True or False"),
        (X, {"drop_last": 1}, TypeError, "drop_last is 1, expected True or False"),
    ],
)
def test_an_error_names_the_argument_what_it_was_and_what_was_expected(
    x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^minibatches: {message}"):
        schuss.minibatches(x, **options)
