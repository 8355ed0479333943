"""Memory: too little of it, none that is lost, more than 2**31 elements."""

import ctypes
import sys
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _core, reference
from support.arrays import Array, same_bits
from support.changes import after_one_more_step, changes
from support.processes import ends_well

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")

# Too little.

LIMITED = """
    import copy, resource
    import numpy as np, schuss
    from schuss import reference, training  # loaded while there is memory
    n = 2_000_000
    grad = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    param, another = np.ones(n, np.float32), np.ones(n, np.float32)
    optimizer = schuss.Adam(param)
    optimizer.step(grad)
    saved = optimizer.state_dict()
    loss_and_grad = lambda params, batch: (0.0, grad)
    def fit(**options):
        batches = schuss.minibatches(np.zeros(1), shuffle=False)
        schuss.fit(loss_and_grad, param, optimizer, batches, epochs=2, **options)
    def average():
        schuss.ExponentialAverage(0.5).update(another)
    def batches():
        next(iter(schuss.minibatches(another, batch_size=1_000)))
    def change():
        {change}
    expected, m, v = (np.ones(n, np.float32), *(np.zeros(n, np.float32) for _ in range(2)))
    for t in range(1, {steps} + 1): reference.adam(expected, grad, m, v, step=t)
    before, unlimited = repr(optimizer), resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as sizes:
        used = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + {more}, unlimited[1]))
    held = []
    try:  # or an allocator may have kept what was let go of
        while True: held.append(np.empty(1_000_000, np.uint8))
    except MemoryError:
        del held[-{more} // 1_000_000:]
    try:
        change()
    except MemoryError:
        print("no memory")
    print(repr(optimizer) == before, optimizer.accumulated)
    optimizer.step(grad)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    arrays = param, optimizer.state["m"], optimizer.state["v"]
    print(all(a.tobytes() == b.tobytes() for a, b in zip(arrays, (expected, m, v))))
    change()
"""


NEEDS_MEMORY = {
    "amsgrad": "optimizer.amsgrad = True",
    "average": "optimizer.average = 0.9",
    "accumulate": "optimizer.accumulate(grad)",
    "state_dict": "optimizer.state_dict()",
    "load_state_dict": "optimizer.load_state_dict(saved)",
    "copy": "copy.copy(optimizer)",
    "a new optimizer": "schuss.SGD(another, average=0.9)",
    "copies": "schuss.SGD(another, copies='float16')",
    "an average": "average()",
    "ewma": "schuss.ewma(another, 0.9)",
    "minibatches": "batches()",
    "fit": "fit(restore_best=True)",
}


APART = {"MALLOC_MMAP_THRESHOLD_": "100000", "SCHUSS_NUM_THREADS": "1"}


@linux
@pytest.mark.parametrize("what", NEEDS_MEMORY)
def test_what_finds_no_memory_says_so_and_changes_nothing(what: str) -> None:
    made = 1 if what == "fit" else 0  # the best is copied when an epoch is over
    code = LIMITED.format(change=NEEDS_MEMORY[what], steps=2 + made, more=3_000_000)
    assert ends_well(code, **APART) == f"no memory\n{not made} 0\nTrue\n"


@pytest.mark.parametrize("change", ["beta1", "clip_norm", "amsgrad", "average", "load_state_dict"])
def test_a_change_that_raised_was_not_made_though_a_second_time_memory_was_there(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grad = {"W": np.array([1.0, -2.0, 3.0]), "b": np.array([0.5])}
    optimizer, expected = (schuss.Adam({"W": np.ones(3), "b": np.ones(1)}) for _ in range(2))
    for each in (optimizer, expected):
        each.accumulate(grad)
    make = changes(optimizer, grad)[change]
    configure, calls = _core.Optimizer.configure, count(1)

    def flaky(*arguments: Any) -> None:
        if next(calls) == 1:
            raise MemoryError
        configure(*arguments)

    monkeypatch.setattr(_core.Optimizer, "configure", flaky)
    with pytest.raises(MemoryError):
        make()
    assert after_one_more_step(optimizer, grad) == after_one_more_step(expected, grad)
    make()  # now there is


@linux
def test_a_step_that_finds_no_memory_for_threads_does_without() -> None:
    code = LIMITED.replace("optimizer.step(grad)\n    saved", "saved").format(
        change="print(schuss._core.workers())",
        steps=1,
        more=1_000_000,
    )
    assert ends_well(code, SCHUSS_NUM_THREADS="2") == "0\nTrue 0\nTrue\n0\n"


# What is dropped is gone.

USES = {
    "step": "adam().step(grad)",
    "pickle": "pickle.loads(pickle.dumps(stepped())).step(grad)",
    "deepcopy": "copy.deepcopy(stepped()).step(grad)",
    "accumulate": "o = adam(); o.accumulate(grad); o.accumulate(grad); o.step()",
    "options": """o = adam(average=0.9, clip_norm=1.0, copies="float16", nonfinite="skip")
        o.step(grad); o.amsgrad = True; o.step(grad); o.average = None""",
    "refused": """o = adam()
        try: o.step(np.ones(999, np.float32))
        except ValueError: pass""",
    "mini-batches": """for batch in schuss.minibatches(x, batch_size=8, prefetch=2, rng=0): break
        for batch in schuss.minibatches(x, batch_size=8, prefetch=2, rng=0): pass""",
    "average": "a = schuss.ExponentialAverage(0.9); a.update(grad); a.update(grad); a.value",
    "fit": """o = adam()
        schuss.fit(lambda p, b: (0.0, grad), o.params, o, x, epochs=2, restore_best=True,
                   prefetch=1, rng=0, progress=False)""",
    "checkpoint": "o = stepped(); schuss.save(path, o.params, o); schuss.load(path, o.params, o)",
    "threads": "with schuss.threads(3): stepped()",
}


LEAKS = """
    import copy, ctypes, gc, os, pickle, sys, tempfile
    import numpy as np, schuss
    from schuss import _core
    class Info(ctypes.Structure):
        _fields_ = [(n, ctypes.c_size_t) for n in "a o s h blocks_mapped u f used free k".split()]
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Info
    _core.set_parallel_threshold(0)
    grad = np.ones(1000, np.float32)
    x = np.ones((50, 3))
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "checkpoint")
    os.fsync = lambda descriptor: None  # a thousand times it takes minutes on a slow disk
    def adam(**options): return schuss.Adam(np.zeros(1000, np.float32), **options)
    def stepped():
        optimizer = adam()
        optimizer.step(grad)
        return optimizer
    def use():
        {use}
    def held():
        gc.collect()
        counts = [len(os.listdir(f"/proc/self/{{kind}}")) for kind in ("task", "fd")]
        info = mallinfo()
        return [*counts, info.used + info.blocks_mapped]
    def growth(times):
        before = held()
        for _ in range(times): use()
        return [now - then for now, then in zip(held(), before)]
    growth(100)
    print(*map(min, zip(*(growth(334) for _ in range(3)))))
"""


@linux
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc tells it")
@pytest.mark.parametrize("use", USES)
def test_a_thousand_that_were_dropped_leave_no_memory_threads_or_descriptors(use: str) -> None:
    # Python's own allocator, and caches of each thread, would hide what is in use. Tables that grow
    # once in a while do so in one of the rounds; what leaks, in all.
    unhidden = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    printed = ends_well(LEAKS.format(use=USES[use]), **unhidden)
    threads, descriptors, memory = map(int, printed.split())
    # A few threads may still be about to end. What one use holds is more than 4,000 bytes.
    assert max(threads, descriptors) < 334 // 10
    assert memory < 334 * 1000


# More than 2**31 elements.

MANY = 2**31
PERIOD = 1_000_003  # a prime, so that no tile or power of two is a multiple of it


def repeated(values: Array, size: int) -> Array:
    """Return the values again and again."""
    array = np.empty(size, values.dtype)
    for start in range(0, size, len(values)):
        array[start : start + len(values)] = values[: size - start]
    return array


def is_repeated(array: Array, values: Array) -> bool:
    """Whether the array is these values again and again, bit for bit."""
    pieces = (array[start : start + len(values)] for start in range(0, len(array), len(values)))
    return all(same_bits(piece, values[: len(piece)]) for piece in pieces)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_element_of_more_than_two_to_the_31_is_stepped(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    values, steps = (rng.standard_normal(PERIOD).astype(dtype) for _ in range(2))
    size = MANY + 12_345
    param, grad = repeated(values, size), repeated(steps, size)
    schuss.SGD(param, lr=0.1).step(grad)
    reference.sgd(values, steps, lr=0.1)
    assert is_repeated(param, values)
    # As several arrays, one of which begins beyond the indices that 31 bits can count.
    bounds = [0, 5, MANY // 2 + 7, MANY + 11, size]
    params, grads = (
        [array[start:end] for start, end in pairwise(bounds)] for array in (param, grad)
    )
    schuss.SGD(params, lr=0.1).step(grads)
    reference.sgd(values, steps, lr=0.1)
    assert is_repeated(param, values)


@pytest.mark.slow
def test_a_matrix_of_more_than_two_to_the_31_elements_takes_a_transposed_gradient() -> None:
    rng = np.random.default_rng(0)
    rows, columns = 46_349, 46_337
    assert rows * columns > MANY
    row, step = (rng.standard_normal(columns).astype("float16") for _ in range(2))
    param = np.broadcast_to(row, (rows, columns)).copy()
    grad = np.broadcast_to(step[:, None], (columns, rows)).copy().T
    schuss.SGD(param, lr=0.1).step(grad)
    reference.sgd(row, step, lr=0.1)
    assert all(same_bits(stepped, row) for stepped in param)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_mini_batches_are_cut_of_more_than_two_to_the_31_elements(shuffle: bool) -> None:
    length = 4_099
    examples = MANY // length + 77
    x = np.empty((examples, length), np.uint8)
    x[...] = np.arange(examples)[:, None] % 251
    x[:, -1] = np.arange(examples) % 241  # the two remainders tell which row it is
    seen = np.zeros(examples, bool)
    batches = schuss.minibatches(x, batch_size=1_000, shuffle=shuffle, indices=True, rng=0)
    for batch, indices in batches:
        assert (batch[:, :-1] == (indices % 251)[:, None]).all()
        assert (batch[:, -1] == indices % 241).all()
        seen[indices] = True
    assert seen.all()
