"""Threads shared with BLAS: products have the bits of OpenBLAS's own threads."""

import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_limits

import schuss
from schuss import _blas, _core
from support.arrays import Array, same_bits
from support.processes import NO_THREADS, ends_well, needs_no_threads
from support.sharing import LOAD, needs_openblas


@pytest.fixture(autouse=True)
def nothing_shared() -> Iterator[None]:
    yield
    schuss.share_threads_with_blas(False)


def served() -> set[str]:
    return {path for path, _, _, is_served in _core.find_openblas() if is_served}


# As exact as before.

Function = Callable[[Array, Array, Array], Any]
FUNCTIONS: dict[str, Function] = {
    "gemm": lambda a, b, s: a @ b,
    "gemm, transposed": lambda a, b, s: b.T @ a.T,
    "gemm, one transposed": lambda a, b, s: a.T @ np.asfortranarray(a),
    "gemm, strided": lambda a, b, s: a[::2] @ b[:, ::3],
    "gemv": lambda a, b, s: a @ b[:, 0],
    "gemv, transposed": lambda a, b, s: b[:, 0].copy() @ a.T,
    "syrk": lambda a, b, s: a @ a.T,
    "dot": lambda a, b, s: np.array(np.dot(a.ravel(), a.ravel())),
    "solve": lambda a, b, s: np.linalg.solve(s, s[:, :7]),
    "inv": lambda a, b, s: np.linalg.inv(s),
    "cholesky": lambda a, b, s: np.linalg.cholesky(s),
    "lu": lambda a, b, s: scipy.linalg.lu_factor(s)[0],
    "triangular": lambda a, b, s: scipy.linalg.solve_triangular(np.tril(s), s, lower=True),
    "scipy gemm": lambda a, b, s: scipy.linalg.blas.get_blas_funcs("gemm", (a, b))(1.0, a, b),
}


def real(values: Any) -> Array:
    """Return complex numbers as pairs of real ones."""
    array: Array = np.ascontiguousarray(values)
    return array.view(np.float64) if array.dtype == np.complex128 else array


SIZES = [(1, 1, 1), (5, 3, 7), (64, 64, 64), (101, 257, 33), (256, 512, 512), (401, 301, 399)]


@needs_openblas
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_have_the_bits_of_openblas_with_threads_of_its_own(
    function: str, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    for m, k, n in SIZES:
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
        if dtype == np.complex128:
            a, b = a * (1 + 0.5j), b * (0.3 - 1j)
        s = np.eye(m, dtype=dtype) * m + (a @ a.conj().T) / k
        compute = FUNCTIONS[function]
        for threads in (1, 2, 3):
            with threadpool_limits(threads, user_api="blas"):
                expected = compute(a, b, s)
                with schuss.share_threads_with_blas():
                    shared = compute(a, b, s)
            assert same_bits(real(shared), real(expected))


@needs_openblas
def test_the_crew_does_the_work_and_openblas_sleeps() -> None:
    printed = ends_well(
        """
        import os, time, numpy as np, schuss
        from pathlib import Path
        from schuss import _core
        def threads():
            found = {}
            for task in Path("/proc/self/task").iterdir():
                state, *fields = (task / "stat").read_text().rpartition(")")[2].split()
                found[task.name] = state, int(fields[10]) + int(fields[11])
            return found
        def awake(found):
            return [name for name, (state, _) in found.items() if state != "S"]
        a = np.ones((1000, 1000))
        with schuss.share_threads_with_blas():
            while awake(before := threads()) != [str(os.getpid())]: time.sleep(0.001)
            for _ in range(30): a @ a
            after = threads()
        new = [name for name in after if name not in before]
        old = [name for name in before if name != str(os.getpid())]
        print(_core.workers(), len(new), all(after[name] == before[name] for name in old))
        """,
        OPENBLAS_NUM_THREADS="2",
    )
    assert printed == "1 1 True\n"


# Under load.


def under_load(code: str, **environment: str) -> str:
    return ends_well(textwrap.dedent(LOAD) + textwrap.dedent(code), **environment)


@needs_openblas
@pytest.mark.parametrize(("blas", "ours"), [(2, 2), (4, 1), (8, 3)])
def test_products_solves_and_steps_of_many_threads_are_right(blas: int, ours: int) -> None:
    code = f"""
    schuss.set_num_threads({ours})
    schuss.share_threads_with_blas()
    for thread in all_at_once(): thread.join()
    print(bad)
    """
    assert under_load(code, OPENBLAS_NUM_THREADS=str(blas)) == "[]\n"


@needs_openblas
def test_it_may_be_switched_and_threads_changed_between_and_during_calls() -> None:
    code = """
    from threadpoolctl import ThreadpoolController
    blas = ThreadpoolController().select(user_api="blas").lib_controllers[0]
    threads = all_at_once(4)
    for i in range(200):
        schuss.share_threads_with_blas(i % 3 != 0)
        schuss.set_num_threads(1 + i % 3)
        time.sleep(0.001)
    for thread in threads: thread.join()
    schuss.share_threads_with_blas()
    for count in (1, 3, 2, 7, 1, 2):
        blas.set_num_threads(count)
        for pair in pairs: np.testing.assert_allclose(pair[0] @ pair[1], pair[0] @ pair[1], 0, 0)
    blas.set_num_threads(2)
    work(0, 12)
    print(bad)
    """
    assert under_load(code, OPENBLAS_NUM_THREADS="2") == "[]\n"


@needs_openblas
def test_more_threads_than_there_is_room_for_are_openblas_s_own() -> None:
    code = """
    from threadpoolctl import threadpool_limits
    from schuss import _core
    expected = {}
    with threadpool_limits(40, user_api="blas"):
        a = rng.standard_normal((1500, 1500))
        expected = a @ a
    with threadpool_limits(2, user_api="blas"), schuss.share_threads_with_blas():
        with threadpool_limits(40, user_api="blas"):
            print((a @ a).tobytes() == expected.tobytes())
        print((pairs[0][0] @ pairs[0][1]).tobytes() == products[0], _core.workers())
    """
    assert under_load(code, OPENBLAS_NUM_THREADS="2") == "True\nTrue 1\n"


@needs_openblas
@needs_no_threads
def test_where_the_system_has_no_more_threads_products_are_openblas_s_own() -> None:
    code = """
    schuss.set_num_threads(3)
    schuss.share_threads_with_blas()
    work(0, 12)
    print(bad, _core.workers())
    """
    code = NO_THREADS + textwrap.dedent(LOAD) + textwrap.dedent(code)
    assert ends_well(code, OPENBLAS_NUM_THREADS="2") == "[] 0\n"


# On and off.


@needs_openblas
def test_a_block_restores_what_was() -> None:
    assert served() == set()
    with schuss.share_threads_with_blas() as outer:
        assert served() == set(outer.libraries) != set()
        with schuss.share_threads_with_blas() as inner:
            assert served() == set(inner.libraries) == set(outer.libraries)
        assert served() == set(outer.libraries)
        with schuss.share_threads_with_blas(False):
            assert served() == set()
        assert served() == set(outer.libraries)
        with contextlib.suppress(ZeroDivisionError), schuss.share_threads_with_blas():
            raise ZeroDivisionError
    assert served() == set()
    assert schuss.share_threads_with_blas(False).libraries == ()
    shared = schuss.share_threads_with_blas()
    assert "OpenBLAS" in schuss.show_config("dicts")["shares with"]
    shared.restore()
    assert served() == set()
    assert schuss.show_config("dicts")["shares with"] == "nobody"


@needs_openblas
@pytest.mark.parametrize(("asked", "shared"), [("1", True), ("0", False), ("", False)])
def test_the_environment_switches_it_on(asked: str, shared: bool) -> None:
    code = "import schuss; print(schuss.show_config('dicts')['shares with'].split()[0])"
    expected = "OpenBLAS" if shared else "nobody"
    assert ends_well(code, SCHUSS_SHARE_BLAS=asked) == f"{expected}\n"


def test_what_is_no_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (None, 1, "yes"):
        with pytest.raises(TypeError, match=r"^share_threads_with_blas: share is .*expected True"):
            schuss.share_threads_with_blas(bad)  # type: ignore[arg-type]
    monkeypatch.setenv("SCHUSS_SHARE_BLAS", "yes")
    with pytest.raises(ValueError, match=r"^SCHUSS_SHARE_BLAS is 'yes', expected '0' or '1'$"):
        _blas.configure_from_environment()
    assert served() == set()


TOO_OLD = "does not let others run its jobs"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no OpenBLAS is loaded"),
        ([("/lib/openblas.so", "OpenBLAS 0.3.20", TOO_OLD, False)], f"openblas.so {TOO_OLD}"),
    ],
)
def test_a_blas_that_cannot_be_served_is_named(
    found: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "find_openblas", lambda: found)
    with pytest.raises(RuntimeError, match=rf"^share_threads_with_blas: {message}.*nothing is ch"):
        schuss.share_threads_with_blas()
    monkeypatch.setenv("SCHUSS_SHARE_BLAS", "1")
    with pytest.warns(RuntimeWarning, match=f"SCHUSS_SHARE_BLAS is '1', but .*{message}"):
        _blas.configure_from_environment()
    monkeypatch.undo()
    assert served() == set()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="libraries are listed in /proc")
def test_every_openblas_that_is_loaded_is_found() -> None:
    with open("/proc/self/maps") as maps:
        names = {line.split("/")[-1].strip() for line in maps if "openblas" in line}
    assert {path.split("/")[-1] for path, *_ in _core.find_openblas()} == names
