"""Ranks agree: what happens on one of them, its errors first, happens on all."""

import errno
import gc
import signal
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from schuss.mpi import _ranks
from schuss.mpi._agreement import agree_on
from schuss.mpi._ranks import Ranks
from support.ranks import Comm, Network, run, run_in_threads

SIZES = [1, 2, 3, 4]


class Custom(Exception):
    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def with_function() -> Exception:
    error = ValueError("step: bad")
    error.function = lambda: None  # type: ignore[attr-defined]
    return error


# An error, and the type and the text of what the other ranks raise.
ERRORS: dict[str, tuple[Callable[[], BaseException], type[BaseException], str]] = {
    "plain": (lambda: ValueError("step: bad"), ValueError, "step: bad"),
    "key": (lambda: KeyError("w"), KeyError, "'w'"),
    "disk": (lambda: OSError(errno.ENOSPC, "full", "a"), OSError, "[Errno 28] full: 'a'"),
    "interrupt": (lambda: KeyboardInterrupt(), KeyboardInterrupt, ""),
    "exit": (lambda: SystemExit(3), SystemExit, "3"),
    "of two arguments": (lambda: Custom("bad", 3), RuntimeError, "Custom: bad"),
    "unpicklable": (with_function, RuntimeError, "ValueError: step: bad"),
    "unprintable": (lambda: Unprintable(), RuntimeError, "Unprintable"),
    "large": (lambda: ValueError("x" * 100_000), RuntimeError, "ValueError: " + "x" * 100_000),
}


@pytest.mark.parametrize("size", SIZES)
def test_ranks_know_whether_all_have_the_same_facts(size: int) -> None:
    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        assert (ranks.rank, ranks.size) == (comm.Get_rank(), size)
        assert ranks.agree("step", facts=b"lr=0.1")
        for other in range(size):
            facts = b"lr=0.2" if ranks.rank == other else b"lr=0.1"
            assert ranks.agree("step", facts=facts) == (size == 1)
        assert ranks.agree("step")

    run(program, size)


FACTS: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({"a": "1"}, {"a": "2"}, "Sharded: a is 1 on rank 0 and 2 on rank 1, expected the same"),
    ({"a": "1"}, {"b": "1"}, "Sharded: a is 1 on rank 0 and missing on rank 1"),
    ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, "of the ranks are in different orders"),
    ({"a": "x" * 300 + "1"}, {"a": "x" * 300 + "2"}, "Sharded: a is xxx"),
]


@pytest.mark.parametrize(("first", "second", "words"), FACTS)
def test_facts_that_differ_in_any_way_are_refused(first: Any, second: Any, words: str) -> None:
    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        with pytest.raises(ValueError, match=words):
            agree_on(ranks, "Sharded", second if ranks.rank == 1 else first)

    run(program, 2)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("size", SIZES)
def test_the_error_of_any_ranks_is_raised_on_all(size: int, kind: str) -> None:
    new, type_there, text = ERRORS[kind]

    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        for failing in range(1, 1 << size):  # every set of ranks
            first = (failing & -failing).bit_length() - 1
            own = new() if failing >> ranks.rank & 1 else None
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                ranks.agree(f"step {ranks.rank}", own)  # in different calls as well
            if ranks.rank == first:
                assert caught.value is own
                continue
            assert type(caught.value) is type_there
            assert str(caught.value) == text
            (note,) = caught.value.__notes__
            assert f"rank {first}" in note
            assert caught.value.__cause__ is own
        assert ranks.agree("step")

    run(program, size)


@pytest.mark.parametrize("size", SIZES[1:])
def test_ranks_in_different_calls_raise(size: int) -> None:
    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        for other in range(1, size):
            call = "Adam.step" if ranks.rank < other else "schuss.save"
            with pytest.raises(RuntimeError) as caught:
                ranks.agree(call)
            assert f"rank 0 calls Adam.step, rank {other} calls schuss.save" in str(caught.value)
        assert ranks.agree("step")

    run(program, size)


@pytest.mark.parametrize("size", SIZES)
def test_an_error_in_a_block_together_is_raised_on_all(size: int) -> None:
    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        done = []
        with ranks.together("loss"):
            done.append(1)
        with pytest.raises(ZeroDivisionError), ranks.together("loss"):
            done.append(1 // (ranks.rank != size - 1))
        assert len(done) == (1 if ranks.rank == size - 1 else 2)

    run(program, size)


@pytest.mark.parametrize("size", SIZES[1:])
def test_an_error_that_is_raised_again_is_voted_on_again(size: int) -> None:
    known = []

    def program(comm: Any) -> None:
        ranks, error = Ranks(comm, 600), Custom("cached", 1)

        def fail() -> None:
            with ranks.together("fit"):
                if ranks.rank == 0:  # where one vote answers that of the inner block
                    return
                with ranks.together("step"):
                    if ranks.rank == size - 1:
                        raise error

        for _ in range(2):
            with pytest.raises((Custom, RuntimeError)) as caught:
                fail()
            assert (caught.value is error) == (ranks.rank == size - 1)
        assert ranks.agree("step")
        known.append((ranks, weakref.ref(error)))

    run(program, size)
    gc.collect()
    assert all(error() is None for _, error in known)  # nor its traceback, with all arrays there


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_gathered_in_the_order_of_the_ranks(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ranks, "_MESSAGE", 7)

    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        for length in (0, 1, 6, 7, 8, 100):
            expected = [bytes([rank]) * (length * rank) for rank in range(size)]
            assert ranks.gather(expected[ranks.rank]) == expected

    run(program, size)


@pytest.mark.parametrize("size", SIZES)
def test_an_array_of_any_rank_is_broadcast(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ranks, "_PIECE", 16)

    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        for root in range(size):
            for shape in ((), (0,), (3,), (4,), (5, 7), (100,)):
                for dtype in (np.float16, np.int64, np.complex64):
                    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype) + 1
                    array = values if ranks.rank == root else np.zeros(shape, dtype)
                    ranks.broadcast(array, root)
                    assert np.array_equal(array, values)

    run(program, size)


def test_an_array_with_gaps_is_not_broadcast() -> None:
    def program(comm: Any) -> None:
        with pytest.raises(ValueError, match="has gaps, expected a contiguous one"):
            Ranks(comm, 600).broadcast(np.zeros(9)[::2])

    run(program, 2)


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_exact_and_the_same_on_all_ranks(size: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((size, 2, 3)) * 10.0 ** rng.integers(-9, 9, (size, 2, 3))
    integers = rng.integers(0, 1 << 62, (size, 5), np.uint64) * np.uint64(2)

    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        total, expected = values[ranks.rank].copy(), values[0]
        ranks.sum(total)
        for other in values[1:]:
            expected = expected + other
        assert np.array_equal(total, expected)
        for dtype in (np.uint64, np.int64):
            total = integers.astype(dtype)[ranks.rank]
            ranks.sum(total)
            assert np.array_equal(total, integers.astype(dtype).sum(axis=0, dtype=dtype))

    run(program, size)


@pytest.mark.parametrize("comm", [None, "alone"])
def test_one_process_needs_no_communication(comm: Any) -> None:
    class Alone:  # has no other method
        def Get_rank(self) -> int:
            return 0

        def Get_size(self) -> int:
            return 1

    ranks = Ranks(comm and Alone(), 600)
    array = np.arange(3.0)
    ranks.broadcast(array)
    ranks.sum(array)
    assert array.tolist() == [0, 1, 2]
    assert ranks.agree("step", facts=b"a")
    assert ranks.gather(b"a") == [b"a"]
    with pytest.raises(KeyError), ranks.together("step"):
        raise KeyError


def test_a_communicator_is_duplicated_once_and_the_duplicate_freed_with_it() -> None:
    def program(comm: Any) -> None:
        ranks = Ranks(comm, 600)
        duplicate = ranks.comm
        assert duplicate is not comm
        assert Ranks(comm, 300).comm is duplicate
        comm.Free()
        assert duplicate.freed
        with pytest.raises(RuntimeError, match="its communicator was freed"):
            ranks.agree("step")

    run_in_threads(program, 2)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_duplicate_of_a_real_communicator_is_made_once(size: int) -> None:
    def program(comm: Any) -> None:
        own = comm.Dup()
        ranks = Ranks(own, 600)
        assert Ranks(own, 600).comm is ranks.comm
        own.Free()
        with pytest.raises(RuntimeError, match="its communicator was freed"):
            ranks.agree("step")

    run(program, size)


def test_messages_of_the_user_are_never_taken_for_those_of_the_library() -> None:
    def program(comm: Any) -> None:
        other, received = 1 - comm.Get_rank(), np.zeros(3, np.uint8)
        receive = comm.Irecv(received, other)
        ranks = Ranks(comm, 600)
        ranks.broadcast(np.ones(3, np.uint8))
        send = comm.Isend(np.full(3, 7, np.uint8), other)
        ranks.wait([receive, send])
        assert received.tolist() == [7, 7, 7]

    run(program, 2)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stop the clock by which waits are timed; a million seconds pass when a test appends True."""
    clock: list[bool] = []
    calls = count()
    monkeypatch.setattr(_ranks, "monotonic", lambda: 1e6 * (next(calls) if clock else 0))
    return clock


@pytest.mark.parametrize("size", [2, 3])
def test_a_lost_message_ends_in_an_error(size: int, late: list[bool]) -> None:
    def program(comm: Comm) -> None:
        ranks = Ranks(comm, 1000)
        ranks.broadcast(np.zeros(5))
        ranks.agree("step")
        if ranks.rank < size - 1:
            comm.network.drop(0, size - 1)
            ranks.broadcast(np.zeros(5))
            late.append(True)
        else:
            with pytest.raises(TimeoutError, match="waited 1000 s for a broadcast of rank 0"):
                ranks.broadcast(np.zeros(5))
            for other in (ranks, Ranks(comm, 1000)):  # their messages might meet lost ones
                with pytest.raises(RuntimeError, match=r"failed before \(TimeoutError: rank"):
                    other.agree("step")
            with pytest.raises(ZeroDivisionError):  # which says more
                ranks.agree("step", ZeroDivisionError())

    run_in_threads(program, size)


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_never_comes_ends_in_an_error(size: int, late: list[bool]) -> None:
    def program(comm: Comm) -> None:
        ranks = Ranks(comm, 1000)
        if ranks.rank == 0:
            late.append(True)
        else:
            with pytest.raises(TimeoutError, match=r"the vote of Adam\.step.*python -m mpi4py"):
                ranks.agree("Adam.step")

    run_in_threads(program, size)


def test_a_slow_rank_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(_ranks, "monotonic", lambda: next(ticks))  # a second for each look

    def program(comm: Comm) -> None:
        ranks = Ranks(comm, 1e9)
        comm.network.delay(1, 0, 3000)
        array = np.full(5, ranks.rank)
        ranks.broadcast(array, root=1)
        assert array.tolist() == [1] * 5

    run_in_threads(program, 2)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    ranks, done = Ranks(None, 600), []

    def program() -> None:
        with ranks.uninterrupted(), ranks.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        program()
    assert done


def test_an_interrupt_ends_a_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ranks, "_PATIENCE", 0.0)
    ranks = Ranks(Comm(Network(2), 0), 600)  # the other never comes

    def program() -> None:
        with ranks.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            ranks.agree("step")

    with pytest.raises(KeyboardInterrupt):
        program()
    with pytest.raises(RuntimeError, match="failed before"):
        ranks.agree("step")
