"""Rows that do not fit are refused with a message, and change nothing."""

from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, contents
from support.refusals import refusal


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def made(**options: Any) -> Any:
    """Return an optimizer after a step, in which most rows have no gradient."""
    params = {"E": ones(5, 3), "b": ones(4)}
    optimizer = schuss.AdamW(params, lr=0.1, **options)
    optimizer.step({"E": schuss.Rows([1], ones(1, 3)), "b": schuss.Rows([0], ones(1))})
    return optimizer


# What a step refuses.
GIVEN: list[tuple[Any, Any, type[Exception], list[str]]] = [
    ([2, 5, 6], ones(3, 3), ValueError, ["index 5 at 1", "expected 0 to 4"]),
    ([2, -1], ones(2, 3), ValueError, ["index -1 at 1", "expected 0 to 4"]),
    ([2**40], ones(1, 3), ValueError, [f"index {2**40} at 0", "expected 0 to 4"]),
    (np.array([-(2**31)], np.int32), ones(1, 3), ValueError, [f"index {-(2**31)} at 0"]),
    ([2], ones(1, 4), ValueError, ["(1, 4)", "expected"]),
    ([2], ones(1), ValueError, ["(1,)", "expected"]),
    ([2], ones(1, 3, 1), ValueError, ["(1, 3, 1)", "expected"]),
    ([2], ones(1, 3, dtype=np.float64), TypeError, ["float64", "expected"]),
    ([2], ones(1, 3, dtype=np.complex64), TypeError, ["complex64", "expected"]),
]


@pytest.mark.parametrize("mode", ["exact", "lazy"])
@pytest.mark.parametrize("call", ["step", "accumulate"])
@pytest.mark.parametrize(("indices", "values", "error", "words"), GIVEN)
def test_rows_that_do_not_fit_the_parameter_change_nothing(
    indices: Any, values: Any, error: type[Exception], words: list[str], call: str, mode: str
) -> None:
    optimizer, before = made(rows=mode), made(rows=mode)
    grads = {"E": schuss.Rows(indices, values), "b": schuss.Rows([1], ones(1))}
    with refusal(error, f"AdamW.{call}: grads['E']", *words, keeps=[grads["E"].values]):
        getattr(optimizer, call)(grads)
    for each in (optimizer, before):
        each.step({"E": schuss.Rows([2, 1], ones(2, 3)), "b": None})
    assert optimizer.accumulated == 0
    for each in (optimizer, before):
        each.flush()
    assert contents(optimizer.params) == contents(before.params)
    assert contents(list(optimizer.state.values())) == contents(list(before.state.values()))


def test_indices_that_were_changed_after_they_were_checked_are_refused() -> None:
    optimizer = made()
    rows = schuss.Rows(np.array([1]), ones(1, 3))
    optimizer.step({"E": rows, "b": None})
    rows.indices[0] = 7
    with refusal(ValueError, "AdamW.step: grads['E']", "index 7 at 0", keeps=[optimizer]):
        optimizer.step({"E": rows, "b": None})


def test_parameters_without_axes_have_no_rows() -> None:
    optimizer = schuss.SGD(np.ones(()))
    with refusal(TypeError, "SGD.step: grads is a Rows", "no axes", "expected", keeps=[optimizer]):
        optimizer.step(schuss.Rows([0], np.ones(1)))


def test_values_may_not_be_memory_that_the_step_writes() -> None:
    optimizer = made()
    table = optimizer.params["E"]
    for values in (table[:2], table[::2]):
        optimizer.flush()
        grads = {"E": schuss.Rows(np.arange(len(values)), values), "b": None}
        with refusal(ValueError, "AdamW.step: grads['E']", "memory", keeps=[optimizer]):
            optimizer.step(grads)


def test_arrays_may_not_change_after_the_rows_were_made() -> None:
    optimizer = made()
    rows = schuss.Rows(np.array([1]), ones(1, 3))
    rows.values.flags.writeable = False
    words = ["grads['E'].values", "read-only after the Rows was made", "make another Rows"]
    with refusal(ValueError, "AdamW.step:", *words, keeps=[optimizer]):
        optimizer.step({"E": rows, "b": None})


def test_more_rows_than_can_be_counted_are_refused() -> None:
    optimizer = schuss.SGD({"E": np.zeros((2**32, 0))})
    rows = schuss.Rows([2**32 - 1], np.zeros((1, 0)))
    words = ["grads['E'] is a Rows where", f"{2**32} rows", f"at most {2**32 - 1}", "to_dense()"]
    with refusal(ValueError, "SGD.step:", *words, keeps=[optimizer]):
        optimizer.step({"E": rows})


@pytest.mark.parametrize(
    "use",
    [len, repr, lambda rows: rows.length, lambda rows: rows.indices, lambda rows: rows.values],
)
def test_rows_without_init_are_refused(use: Any) -> None:
    with pytest.raises(TypeError):
        use(schuss.Rows.__new__(schuss.Rows))


def test_values_that_are_cleared_must_be_writeable() -> None:
    optimizer = made(clear_grads=True)
    values = ones(1, 3)
    values.flags.writeable = False
    with refusal(ValueError, "AdamW.step: grads['E']", "read-only", keeps=[optimizer]):
        optimizer.step({"E": schuss.Rows([0], values), "b": None})


LAID_OUT: dict[str, tuple[Any, dict[str, Any]]] = {
    "columns of more": (lambda: np.ones((5, 8), np.float32)[:, 2:5], {}),
    "fortran": (lambda: np.ones((5, 3), np.float32, order="F"), {}),
    "8 bits": (lambda: np.ones((100, 100), np.float32), {"state_dtype": "8bit"}),
    "norms": (lambda: np.ones((5, 3), np.float32), {"track_norms": True}),
}


@pytest.mark.parametrize("what", LAID_OUT)
def test_lazy_rows_need_rows_that_lie_side_by_side(what: str) -> None:
    make, options = LAID_OUT[what]
    param = make()
    optimizer = schuss.Adam({"E": param}, rows="lazy", **options)
    grads = {"E": schuss.Rows([1], param[:1].copy())}
    with refusal(ValueError, "Adam.step: grads['E']", "lazy", keeps=[optimizer]):
        optimizer.step(grads)
    optimizer.step({"E": param.copy()})


@pytest.mark.parametrize("mode", ["sparse", None, True, "Exact"])
def test_the_mode_is_one_of_two(mode: Any) -> None:
    with refusal((TypeError, ValueError), "SGD: rows is", "'exact'", "'lazy'", keeps=[]):  # type: ignore[arg-type]
        schuss.SGD(np.ones(3), rows=mode)
