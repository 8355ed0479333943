"""Faults: Ctrl-C, no memory, forks, a program's end; what was begun is made or was not."""

import copy
import ctypes
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import schuss
from cases import Array, bits, equal, same_bits
from schuss import _core, _interrupts, averages, cli, reference
from test_threads import ends_well, fork

Interrupt = Callable[[float], object]

posix = pytest.mark.skipif(os.name != "posix", reason="there is no such timer")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")

# Ctrl-C.

OPTIONS: dict[str, Any] = {"clip_norm": 500.0, "average": 0.9}


class Twin:
    """What an Adam with these options is after so many whole steps, by the reference."""

    def __init__(self, param: Array, **options: Any) -> None:
        self.options = dict(options)
        self.beta = self.options.pop("average", None)
        self.param, self.states = param.copy(), [np.zeros_like(param) for _ in range(2)]
        self.averages = None if self.beta is None else [self.param.copy()]
        self.steps = 0

    def step(self, grad: Array) -> None:
        self.steps += 1
        reference.step(
            [partial(reference.adam, step=self.steps)],
            [self.param],
            [grad],
            [self.states],
            step=self.steps,
            averages=self.averages,
            beta=(self.beta or 0.0) if self.steps > 1 else 0.0,
            **self.options,
        )

    def is_like(self, optimizer: Any) -> bool:
        arrays = [optimizer.params, *optimizer.state.values()]
        expected = [self.param, *self.states]
        if self.averages is not None:
            arrays.append(optimizer.average)
            expected += self.averages
        return optimizer.steps == self.steps and equal(arrays, expected)


@posix
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["step", "clip, step, average"])
def test_a_step_that_ctrl_c_meets_was_made_or_was_not(
    options: dict[str, Any], interrupt: Interrupt
) -> None:
    check_interrupted_steps(options, interrupt, seed=0)


def met(call: Callable[[], object], interrupt: Interrupt, seconds: float) -> bool:
    """Whether Ctrl-C, pressed in so many seconds, met the call."""
    interrupt(seconds)
    try:
        call()
    except KeyboardInterrupt:
        return True
    interrupt(0)
    return False


def check_interrupted_steps(options: dict[str, Any], interrupt: Interrupt, seed: int) -> None:
    grad = np.random.default_rng(0).standard_normal(500_000, dtype=np.float32)
    optimizer = schuss.Adam(np.zeros_like(grad), **options)
    twin, chance, interrupted = Twin(optimizer.params, **options), random.Random(seed), 0
    with schuss.threads(2):
        while interrupted < 25:
            interrupted += met(lambda: optimizer.step(grad), interrupt, chance.uniform(1e-6, 1e-3))
            if optimizer.steps == twin.steps + 1:
                twin.step(grad)
            assert twin.is_like(optimizer)


@posix
def test_a_gradient_whose_accumulation_ctrl_c_meets_was_added_or_was_not(
    interrupt: Interrupt,
) -> None:
    grad = np.random.default_rng(0).standard_normal(500_000, dtype=np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
    expected, chance, interrupted = np.zeros_like(grad), random.Random(0), 0
    while interrupted < 25:
        total, added = np.zeros_like(grad), 0
        for _ in range(4):
            add = partial(optimizer.accumulate, grad)
            interrupted += met(add, interrupt, chance.uniform(1e-6, 1e-3))
            if optimizer.accumulated == added + 1:
                total, added = total + grad, added + 1
            assert optimizer.accumulated == added
        steps = optimizer.steps
        while added and optimizer.steps == steps:
            interrupted += met(optimizer.step, interrupt, chance.uniform(1e-6, 1e-3))
            assert optimizer.accumulated == (added if optimizer.steps == steps else 0)
        expected -= total
        assert same_bits(optimizer.params, expected)


# Python drops what is raised while an object is deleted, as the memory of mini-batches is.
LOSES_CTRL_C = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _PooledBuffer:pytest.PytestUnraisableExceptionWarning"
)


@posix
@LOSES_CTRL_C
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_training_that_ctrl_c_meets_is_the_plain_loop_up_to_there(
    prefetch: int, interrupt: Interrupt
) -> None:
    check_interrupted_trainings(prefetch, interrupt, seed=0)


def check_interrupted_trainings(prefetch: int, interrupt: Interrupt, seed: int) -> None:
    x = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)

    def loss_and_grad(params: Array, batch: Array) -> tuple[float, Array]:
        return float(batch[0, 0]), params * batch.mean()

    # What the library imports late, it has: an import that Ctrl-C meets leaves its file open.
    one = np.ones(1)
    schuss.fit(loss_and_grad, one, schuss.SGD(one), x, prefetch=prefetch)
    chance, interrupted = random.Random(seed), 0
    while interrupted < 12:
        params = np.ones(300_000, np.float32)
        optimizer = schuss.Momentum(params, lr=0.1)
        begun: list[schuss.History] = []
        try:
            interrupt(chance.uniform(1e-3, 0.03))
            schuss.fit(
                loss_and_grad,
                params,
                optimizer,
                x,
                batch_size=8,
                epochs=3,
                rng=0,
                prefetch=prefetch,
                on_step=lambda history, begun=begun: begun.append(history),  # type: ignore[misc]
            )
            interrupt(0)
        except KeyboardInterrupt:  # before the training began, or when it was over
            pass
        if not begun:
            continue
        history = begun[0]
        interrupted += history.stopped == "interrupted"
        twin, velocity = np.ones_like(params), np.zeros_like(params)
        costs: list[float] = []
        batches = schuss.minibatches(x, batch_size=8, rng=0)
        for batch in (batch for _ in range(3) for batch in batches):
            if len(costs) == optimizer.steps:
                break
            cost, grad = loss_and_grad(twin, batch)
            reference.momentum(twin, grad, velocity, lr=0.1)
            costs.append(cost)
        assert optimizer.steps == history.steps
        assert history.cost.tolist() == costs
        assert equal([params, optimizer.state["velocity"]], [twin, velocity])


class Interruption:
    """Presses Ctrl-C at the n-th line of the library."""

    files = {
        module.__file__
        for name, module in sys.modules.items()
        if name.startswith("schuss._") or module is averages
    } - {_interrupts.__file__}

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename in self.files:
            if event in ("line", "return"):
                self.seen += 1
                if self.seen == self.n:
                    signal.raise_signal(signal.SIGINT)
            return self
        return None

    def meets(self, call: Callable[[], object]) -> bool:
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        was = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(was)
            signal.signal(signal.SIGINT, handler)
        return self.seen >= self.n


def changes(optimizer: Any, grad: Any) -> dict[str, Callable[[], object]]:
    """What may be done to an optimizer between two steps."""
    other = schuss.Adam(copy.deepcopy(optimizer.params), lr=0.3, amsgrad=True, average=0.3)
    other.step(grad)
    saved = other.state_dict()
    return {
        "lr": lambda: setattr(optimizer, "lr", 0.5),
        "beta1": lambda: setattr(optimizer, "beta1", 0.5),
        "clip_norm": lambda: setattr(optimizer, "clip_norm", 0.1),
        "amsgrad": lambda: setattr(optimizer, "amsgrad", True),
        "average": lambda: setattr(optimizer, "average", 0.5),
        "param_groups[0]['beta1']": lambda: optimizer.param_groups[0].update(beta1=0.5),
        "load_state_dict": lambda: optimizer.load_state_dict(saved),
        "accumulate": lambda: optimizer.accumulate(grad),
        "step": lambda: optimizer.step(grad),
        "copy": lambda: copy.copy(optimizer),
    }


def after_one_more_step(optimizer: Any, grad: Any) -> tuple[Any, ...]:
    """Return all that can be seen of an optimizer, and of its parameters, after another step."""
    said = repr(optimizer)
    if optimizer.accumulated:
        optimizer.step(scale=1 / optimizer.accumulated)
    optimizer.step(grad)
    trees = [optimizer.params, *optimizer.state.values()]
    trees += [] if optimizer.average is None else [optimizer.average]
    arrays = [array for tree in trees for array in tree.values()]
    return said, repr(optimizer), list(optimizer.state), bits(arrays)


@pytest.mark.parametrize("change", changes(schuss.Adam({"W": np.ones(3)}), {"W": np.ones(3)}))
def test_ctrl_c_at_any_line_of_a_change_finds_it_made_or_not(change: str) -> None:
    grad = {"W": np.array([1.0, -2.0, 3.0]), "b": np.array([0.5])}

    def fresh() -> Any:
        optimizer = schuss.Adam({"W": np.ones(3), "b": np.ones(1)}, lr=0.1)
        optimizer.step(grad)
        return optimizer

    as_before, changed = fresh(), fresh()
    changes(changed, grad)[change]()
    allowed = [after_one_more_step(optimizer, grad) for optimizer in (as_before, changed)]
    for n in count(1):
        optimizer = fresh()
        if not Interruption(n).meets(changes(optimizer, grad)[change]):
            break
        assert after_one_more_step(optimizer, grad) in allowed, n
    assert n > 2


def test_ctrl_c_at_any_line_of_an_update_finds_the_average_as_before_or_after() -> None:
    for n in count(1):
        average = schuss.ExponentialAverage(0.5)
        average.update(np.array([1.0, 2.0]))
        if not Interruption(n).meets(lambda a=average: a.update(np.array([3.0, 6.0]))):  # type: ignore[misc]
            break
        expected = [1, 2] if average.updates == 1 else [(1 + 2 * 3) / 3, (2 + 2 * 6) / 3]
        np.testing.assert_allclose(average.value, expected, rtol=1e-15)
    assert n > 2


@posix
def test_signals_that_come_again_and_again_do_not_cut_what_is_done_whole() -> None:
    ended: list[int] = []
    handled: list[int] = []

    def time_is_up(number: int, _: FrameType | None) -> None:
        handled.append(number)
        raise TimeoutError

    def work() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
        ended.append(len(handled))

    numbers = signal.SIGUSR1, signal.SIGUSR2
    before = [signal.signal(number, time_is_up) for number in numbers]
    with pytest.raises(TimeoutError):
        _interrupts.whole(work)
    assert ended == [0]
    assert handled == [signal.SIGUSR1, signal.SIGUSR2]
    for number, handler in zip(numbers, before, strict=True):
        assert signal.signal(number, handler) is time_is_up


class TooLong(TimeoutError, ValueError):
    """What a handler raises, of kinds that are caught where calls raise them."""


def pressed(result: Any) -> Any:
    """Return it; meanwhile a signal comes."""
    signal.raise_signal(signal.SIGUSR1)
    return result


class Pressing(UserDict[str, Array]):
    """Parameters, and a signal when they are looked at first."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        if self.looks == 1:
            pressed(None)

    def __iter__(self) -> Iterator[str]:
        self.look()
        return super().__iter__()

    def __getitem__(self, key: str) -> Array:
        self.look()
        return super().__getitem__(key)


class Stepper:
    """An optimizer that is not of schuss."""

    lr = 0.1

    def __init__(self) -> None:
        self.params = Pressing({"w": np.ones(3)})

    def step(self, grads: Any) -> None:
        raise AssertionError


def fit_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: pressed(False)))
    w = np.ones(3)
    schuss.fit(lambda p, x: (0.0, np.ones(3)), w, schuss.SGD(w), np.ones((4, 3)))


def fit_with_another_optimizer(_: pytest.MonkeyPatch) -> None:
    schuss.fit(lambda p, x: (0.0, p), {"w": np.ones(3)}, Stepper(), np.ones((4, 3)))


def l2_of_the_same_again(_: pytest.MonkeyPatch) -> None:
    plain = {"w": np.ones((3, 3))}
    loss = schuss.with_l2(lambda p, x: (0.0, plain), 0.1)
    loss(plain, np.ones((4, 3)))
    loss(Pressing(plain), np.ones((4, 3)))


def demo_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda *a, **options: pressed(mkdir(*a, **options)))
    monkeypatch.setattr("schuss.demo.run", lambda **_: 0)
    cli.main(["demo", "--out", tempfile.mkdtemp()])


@posix
@pytest.mark.parametrize(
    "call",
    [fit_on_a_terminal, fit_with_another_optimizer, l2_of_the_same_again, demo_elsewhere],
)
def test_what_a_handler_raises_is_not_taken_for_what_a_call_raises(
    call: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_is_up(*_: object) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGUSR1, time_is_up)
    try:
        with pytest.raises(TooLong):
            call(monkeypatch)
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, handler)


# No memory.

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
    twin, m, v = (np.ones(n, np.float32), *(np.zeros(n, np.float32) for _ in range(2)))
    for t in range(1, {steps} + 1): reference.adam(twin, grad, m, v, step=t)
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
    print(all(a.tobytes() == b.tobytes() for a, b in zip(arrays, (twin, m, v))))
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


# Each array in memory of its own, which goes back to the system: none is there to be used again.
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
    optimizer, twin = (schuss.Adam({"W": np.ones(3), "b": np.ones(1)}) for _ in range(2))
    for each in (optimizer, twin):
        each.accumulate(grad)
    make = changes(optimizer, grad)[change]
    configure, calls = _core.Plan.configure, count(1)

    def flaky(*arguments: Any) -> None:
        if next(calls) == 1:
            raise MemoryError
        configure(*arguments)

    monkeypatch.setattr(_core.Plan, "configure", flaky)
    with pytest.raises(MemoryError):
        make()
    assert after_one_more_step(optimizer, grad) == after_one_more_step(twin, grad)
    make()  # now there is


@linux
def test_a_step_that_finds_no_memory_for_threads_does_without() -> None:
    code = LIMITED.replace("optimizer.step(grad)\n    saved", "saved").format(
        change="print(schuss._core.workers())",
        steps=1,
        more=1_000_000,
    )
    assert ends_well(code, SCHUSS_NUM_THREADS="2") == "0\nTrue 0\nTrue\n0\n"


# Forks.


@fork
def test_a_thread_may_fork_while_another_steps() -> None:
    ends_well(forks(10))


def forks(times: int) -> str:
    return f"""
    import os, threading
    import numpy as np, schuss
    from schuss import reference
    schuss.set_num_threads(3)
    small = np.random.default_rng(0).standard_normal(300_000, dtype=np.float32)
    twin = [np.zeros_like(small) for _ in range(3)]
    for t in (1, 2, 3): reference.adam(twin[0], small, *twin[1:], step=t)
    grad = np.ones(2_000_000, np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
    def child(generations):
        own = schuss.Adam(np.zeros_like(small))
        for _ in range(3): own.step(small)
        arrays = own.params, own.state["m"], own.state["v"]
        good = all(a.tobytes() == b.tobytes() for a, b in zip(arrays, twin))
        optimizer.step(grad)
        good = good and (optimizer.params == -optimizer.steps).all()
        if generations and (grandchild := os.fork()):
            good = good and os.waitpid(grandchild, 0)[1] == 0
        elif generations:
            child(0)
        os._exit(0 if good else 1)
    statuses = []
    def fork():
        for _ in range({times}):
            process = os.fork()
            if process == 0: child(1)
            statuses.append(os.waitpid(process, 0)[1])
    thread = threading.Thread(target=fork)
    thread.start()
    while thread.is_alive(): optimizer.step(grad)
    assert statuses == [0] * {times}, statuses
    assert (optimizer.params == -optimizer.steps).all()
    """


# A checkpoint's pieces are hashed by threads, which a child does not have.

FORKS_WHILE_HASHING = """
    import os, sys, tempfile
    import numpy as np, schuss
    from schuss import _safetensors
    _safetensors._PIECE = 256
    folder = tempfile.TemporaryDirectory()
    path = folder.name + "/c"
    w, into = np.arange(1000.0), np.zeros(1000)
    schuss.save(path, w)
    def fork():
        global child
        child = os.fork()
        if child:  # which does all that it does before the parent goes on
            status = os.waitpid(child, 0)[1]
            assert status == 0, status
    def pieces(array, real=_safetensors._pieces):
        for place, piece in enumerate(real(array)):
            if place == 9: fork()
            yield piece
    def read_at(*arguments, reads=iter(range(99)), real=_safetensors._read_at):
        if next(reads) == 9: fork()
        return real(*arguments)
    def fsync(descriptor, calls=[], real=os.fsync):
        calls.append(None)
        if len(calls) == 1: fork()
        real(descriptor)
    _safetensors.{name} = {own}
    try:
        {call}
    except RuntimeError as error:
        assert child == 0
        print(error)
    if child == 0:
        folder._finalizer.detach()
        sys.exit(0 if not into.any() or (into == w).all() else 1)
    assert os.listdir(folder.name) == ["c"]
    schuss.load(path, into)
    assert (into == w).all()
"""


FORKED = "save: the process was forked while it saved, expected the parent alone to go on\n"


@fork
@pytest.mark.parametrize(
    ("name", "own", "call", "printed"),
    [
        ("_read_at", "read_at", "schuss.load(path, into)", ""),
        ("_pieces", "pieces", "schuss.save(path, w)", FORKED),
        ("os.fsync", "fsync", "schuss.save(path, w)", FORKED),
    ],
)
def test_a_fork_in_the_middle_of_a_checkpoint_leaves_parent_and_child_at_work(
    name: str, own: str, call: str, printed: str
) -> None:
    code = FORKS_WHILE_HASHING.format(name=name, own=own, call=call)
    assert ends_well(code) == printed


@fork
def test_children_forked_while_other_threads_save_and_load_do_so_too_and_end() -> None:
    ends_well(
        """
        import os, sys, tempfile, threading
        import numpy as np, schuss
        folder = tempfile.TemporaryDirectory()
        w = np.arange(500_000.0)
        schuss.save(folder.name + "/load", w)
        over = threading.Event()
        def save():
            while not over.is_set(): schuss.save(folder.name + "/save", w)
        def load():
            while not over.is_set(): schuss.load(folder.name + "/load", np.zeros_like(w))
        threads = [threading.Thread(target=work) for work in (save, load)]
        for thread in threads: thread.start()
        for n in range(20):
            child = os.fork()
            if child == 0:
                folder._finalizer.detach()
                into = np.zeros_like(w)
                schuss.save(f"{folder.name}/{n}", w)
                schuss.load(f"{folder.name}/{n}", into)
                sys.exit(0 if (into == w).all() else 1)
            assert os.waitpid(child, 0)[1] == 0
        over.set()
        for thread in threads: thread.join()
        """
    )


@posix
@fork
def test_a_child_forked_while_the_main_thread_saves_has_its_handlers() -> None:
    ends_well(
        """
        import os, signal, tempfile, threading
        import numpy as np, schuss
        folder = tempfile.TemporaryDirectory()
        handled, real, replaced = [], os.replace, threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: handled.append(os.getpid()))
        def child():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            os._exit(0 if handled == [os.getpid()] * 2 else 1)
        statuses = []
        def fork():
            process = os.fork()
            if process == 0: child()
            statuses.append(os.waitpid(process, 0)[1])
        def replace(*arguments):
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
            real(*arguments)
        os.replace = replace
        schuss.save(folder.name + "/c", np.ones(3))
        assert statuses == [0], statuses
        """
    )


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
    told = ctypes.CDLL(None).mallinfo2
    told.restype = Info
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
        info = told()
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


# A program's end.

ALL_AT_WORK = """
    import os, signal, sys, threading, time
    import numpy as np, schuss
    schuss.set_num_threads(3)
    grad = np.ones(1_000_000, np.float32)
    begun = []
    def step(optimizer):
        while True: begun.append(optimizer.step(grad))
    def accumulate(optimizer):
        while True: begun.append(optimizer.accumulate(grad))
    def read(optimizer):
        batches = schuss.minibatches(np.ones((100_000, 64)), batch_size=1000, prefetch=2)
        while True:
            for batch in batches: begun.append(None)
    def fit(optimizer):
        schuss.fit(lambda p, x: (0.0, grad), optimizer.params, optimizer, np.ones((10_000, 8)),
                   batch_size=4, epochs=10_000, prefetch=4, on_step=begun.append)
    for work in (step, accumulate, read, fit):
        arguments = [schuss.Adam(np.zeros_like(grad))]
        threading.Thread(target=work, args=arguments, daemon=True).start()
    while len(begun) < 20: time.sleep(0.001)
    optimizer = schuss.Adam(np.zeros_like(grad))
    optimizer.step(grad)
"""
ENDS = {
    "the last line": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "os._exit": ("os._exit(4)", 4, ""),
    "an exception": ("raise ValueError('this one')", 1, "ValueError: this one"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, ""),
    "Ctrl-C": (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the background has none
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while True: optimizer.step(grad)",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
}


@pytest.mark.skipif(os.name != "posix", reason="a signal that ends a program is no status there")
@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_it_wants_while_threads_step_add_up_read_and_fit(end: str) -> None:
    for _ in range(3):
        check_end(end)


def check_end(end: str) -> None:
    code, status, message = ENDS[end]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALL_AT_WORK + "    " + code)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    last = done.stderr.strip().rpartition("\n")[2]
    # After Ctrl-C, CPython seldom says 1 where many threads work on.
    assert done.returncode in ((status, 1) if end == "Ctrl-C" else (status,)), done.stderr
    assert last == message


def test_an_epoch_under_way_at_the_programs_end_does_not_end_before_its_last_batch() -> None:
    printed = ends_well(
        """
        import atexit, threading, time
        import numpy as np, schuss
        begun, ending = threading.Event(), threading.Event()
        def end():  # which comes after all that is registered later
            ending.set()
            time.sleep(0.3)  # for the thread, if it does not wait
        atexit.register(end)
        def read():
            batches = schuss.minibatches(np.ones((1000, 2)), batch_size=1, prefetch=1)
            for number, batch in enumerate(batches, start=1):
                begun.set()
                ending.wait()
            print(f"it ended after {number} batches")
        threading.Thread(target=read, daemon=True).start()
        begun.wait()
        """
    )
    assert printed in ("", "it ended after 1000 batches\n")


# Files as memory.


def mapped(path: Path, values: Array) -> "np.memmap[Any, Any]":
    array = np.memmap(path, values.dtype, "w+", shape=values.shape)
    array[...] = values
    return array


@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_of_mapped_parameters_and_state_is_what_the_files_hold(
    threads: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    param, grad = (rng.standard_normal((1000, 700), dtype=np.float32) for _ in range(2))
    twins = [param, np.zeros_like(param), np.zeros_like(param)]
    arrays = [mapped(tmp_path / name, twin) for name, twin in zip("pmv", twins, strict=True)]
    with schuss.threads(threads):
        for t in (1, 2, 3):
            schuss.kernels.adam(arrays[0], grad, arrays[1], arrays[2], step=t)
            reference.adam(param, grad, twins[1], twins[2], step=t)
    for array in arrays:
        array.flush()
    read = [np.fromfile(tmp_path / name, np.float32).reshape(param.shape) for name in "pmv"]
    assert equal(read, twins)


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
    # As several arrays, one of which begins behind all places that 31 bits can count.
    places = [0, 5, MANY // 2 + 7, MANY + 11, size]
    params, grads = (
        [array[start:end] for start, end in pairwise(places)] for array in (param, grad)
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
