"""Forks: parent and child both continue, also if other threads were at work."""

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import schuss
from support.processes import ends_well, fork
from support.sharing import LOAD, needs_openblas
from support.threads import step_under_way

pytestmark = fork

# Steps.


def test_the_child_of_a_fork_need_not_wait_for_a_step_that_it_does_not_have() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    optimizer.step(np.ones(3))
    with step_under_way(optimizer.step, np.ones(3)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX warn of a fork while there are threads
        child = os.fork()
        if child == 0:
            optimizer.step(np.ones(3))
            good = optimizer.params.tolist() == [-2, -2, -2] and optimizer.steps == 2
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert optimizer.params.tolist() == [-2, -2, -2]


def test_the_child_of_a_fork_need_not_wait_for_a_first_update_that_it_does_not_have() -> None:
    code = """
    import os, signal, threading
    import numpy as np, schuss
    class Slow(schuss.ExponentialAverage):
        @property
        def updates(self):
            calls.append(None)
            if len(calls) == 2:  # before the update is made, and before it counts
                reached.set()
                assert let_go.wait(600)
            return super().updates
    calls, reached, let_go = [], threading.Event(), threading.Event()
    slow = Slow(0.5)
    thread = threading.Thread(target=slow.update, args=[np.ones(3)])
    thread.start()
    assert reached.wait(600)
    child = os.fork()
    if child == 0:
        signal.alarm(500)
        averages = schuss.ExponentialAverage(0.5), slow
        for average in averages: average.update(np.ones(3))
        os._exit(0 if all(average.value.tolist() == [1, 1, 1] for average in averages) else 1)
    status = os.waitpid(child, 0)[1]
    let_go.set(); thread.join()
    print(status, slow.value)
    """
    assert ends_well(code) == "0 [1. 1. 1.]\n"


@pytest.mark.parametrize("size", [100, 20_000, 3_000_000])
def test_a_fork_finds_a_step_of_another_thread_whole(size: int) -> None:
    code = f"""
    import os, sys, threading, time
    import numpy as np, schuss
    schuss.set_num_threads(3)
    grad = np.random.default_rng(0).standard_normal({size}, dtype=np.float32)
    optimizer = schuss.Adam(np.zeros_like(grad))
    done = threading.Event()
    def step():
        while not done.is_set(): optimizer.step(grad)
    thread = threading.Thread(target=step)
    thread.start()
    def whole():
        other = schuss.Adam(np.zeros_like(grad))
        for _ in range(optimizer.steps): other.step(grad)
        pairs = [(optimizer.params, other.params)]
        pairs += [(optimizer.state[name], other.state[name]) for name in "mv"]
        return all(a.tobytes() == b.tobytes() for a, b in pairs)
    for _ in range({3 if size > 1_000_000 else 20}):
        steps = optimizer.steps
        while optimizer.steps == steps: time.sleep(0.0001)
        child = os.fork()
        if child == 0:
            good = whole()
            optimizer.step(grad)
            os._exit(0 if good and whole() else 1)
        assert os.waitpid(child, 0)[1] == 0
        if optimizer.steps * {size} > 10_000_000:  # so that no child has much to do
            done.set(); thread.join()
            optimizer = schuss.Adam(np.zeros_like(grad)); done.clear()
            thread = threading.Thread(target=step); thread.start()
    done.set(); thread.join()
    print("whole")
    """
    assert ends_well(code) == "whole\n"


@pytest.mark.parametrize("call", ["rows(indices)", "step(schuss.Rows(indices, values))"])
def test_a_fork_finds_no_rows_half_sorted(call: str) -> None:
    code = f"""
    import os, threading
    import numpy as np, schuss
    table = np.zeros((100_000, 1), np.float32)
    optimizer = schuss.Adam(table, lr=0.1)
    def step(count): optimizer.step(schuss.Rows(np.arange(count), np.ones((count, 1), np.float32)))
    step(1)  # so that rows are pending
    both = np.random.default_rng(0).integers(0, len(table), (2, 2_000_000))
    values = np.zeros((both.shape[1], 1), np.float32)
    done = threading.Event()
    def work():
        while not done.is_set():
            for indices in both: optimizer.{call}
    thread = threading.Thread(target=work)
    thread.start()
    statuses = []
    for _ in range(25):
        child = os.fork()
        if child == 0:
            step(0)
            optimizer.flush()
            os._exit(0 if not table[1:].any() else 1)
        statuses.append(os.waitpid(child, 0)[1])
    done.set(); thread.join()
    print(set(statuses))
    """
    assert ends_well(code) == "{0}\n"


def test_a_fork_finds_accumulated_gradients_used_up_by_the_step_that_took_them() -> None:
    code = """
    import os, threading
    import numpy as np, schuss
    grad = np.ones(3_000_000, np.float32)
    for _ in range(5):
        optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
        optimizer.accumulate(grad)
        begun = threading.Event()
        def step():
            begun.set(); optimizer.step()
        thread = threading.Thread(target=step)
        thread.start(); begun.wait()
        child = os.fork()
        if child == 0:
            good = (optimizer.steps, optimizer.accumulated) in [(0, 1), (1, 0)]
            if optimizer.accumulated: optimizer.step()
            os._exit(0 if good and (optimizer.params == -1).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        thread.join()
    print("used once")
    """
    assert ends_well(code) == "used once\n"


def test_a_thread_and_its_children_fork_while_another_steps(rounds: Iterator[int]) -> None:
    code = """
    import os, threading
    import numpy as np, schuss
    from schuss import reference
    schuss.set_num_threads(3)
    small = np.random.default_rng(0).standard_normal(300_000, dtype=np.float32)
    expected = [np.zeros_like(small) for _ in range(3)]
    for t in (1, 2, 3): reference.adam(expected[0], small, *expected[1:], step=t)
    grad = np.ones(2_000_000, np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
    def child(generations):
        own = schuss.Adam(np.zeros_like(small))
        for _ in range(3): own.step(small)
        arrays = own.params, own.state["m"], own.state["v"]
        good = all(a.tobytes() == b.tobytes() for a, b in zip(arrays, expected))
        optimizer.step(grad)
        good = good and (optimizer.params == -optimizer.steps).all()
        if generations and (grandchild := os.fork()):
            good = good and os.waitpid(grandchild, 0)[1] == 0
        elif generations:
            child(0)
        os._exit(0 if good else 1)
    statuses = []
    def fork():
        for _ in range(10):
            process = os.fork()
            if process == 0: child(1)
            statuses.append(os.waitpid(process, 0)[1])
    thread = threading.Thread(target=fork)
    thread.start()
    while thread.is_alive(): optimizer.step(grad)
    assert statuses == [0] * 10, statuses
    assert (optimizer.params == -optimizer.steps).all()
    """
    for _ in rounds:
        ends_well(code)


def test_new_threads_of_a_child_step_what_another_thread_stepped_in_the_parent() -> None:
    # Without other threads, a new one takes over the memory of the one that the child has not.
    code = """
    import os, threading, time
    import numpy as np, schuss
    schuss.set_num_threads(1)
    grad = np.ones(1_000_000, np.float32)
    optimizer = schuss.SGD(np.zeros(1_000_000, np.float32), lr=1.0)
    done = threading.Event()
    def step():
        while not done.is_set(): optimizer.step(grad)
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    for _ in range(10):
        steps = optimizer.steps
        while optimizer.steps == steps: time.sleep(0.0001)
        child = os.fork()
        if child == 0:
            made = optimizer.steps
            new = threading.Thread(target=optimizer.step, args=[grad])
            new.start(); new.join()
            os._exit(0 if optimizer.steps == made + 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
    done.set(); thread.join()
    """
    ends_well(code, OPENBLAS_NUM_THREADS="1")


@pytest.mark.parametrize(
    "shares", ["", pytest.param("schuss.share_threads_with_blas()", marks=needs_openblas)]
)
def test_the_child_of_a_fork_within_a_step_is_in_that_step(shares: str) -> None:
    code = f"""
    import collections.abc, os
    import numpy as np, schuss
    {shares}
    optimizer = schuss.SGD({{"w": np.zeros(2)}}, lr=1.0)
    class Grads(collections.abc.Mapping):
        def __len__(self): return 1
        def __iter__(self): return iter("w")
        def __getitem__(self, key):
            child = os.fork()
            if child == 0:
                try: optimizer.step({{"w": np.ones(2)}})
                except RuntimeError as error: os._exit("under way" not in str(error))
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            return np.ones(2)
    optimizer.step(Grads())
    """
    ends_well(code)


STEP = """
schuss.set_num_threads(3)
def work(seed):
    param = np.zeros(1_000_000, np.float32)
    optimizer = schuss.SGD(param, lr=1.0)
    for _ in range(3): optimizer.step(np.full_like(param, seed))
    return float(param.min()), float(param.max())
"""
MULTIPLY = """
schuss.share_threads_with_blas()
def work(seed):
    a = np.full((300, 300), float(seed))
    return float((a @ a)[0, 0])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize(
    ("work", "printed"),
    [
        (STEP, "[(-3.0, -3.0), (-6.0, -6.0)]"),
        pytest.param(MULTIPLY, "[300.0, 1200.0]", marks=needs_openblas),
    ],
    ids=["step", "multiply"],
)
def test_processes_of_multiprocessing_work_while_the_parent_does(
    work: str, printed: str, method: str, tmp_path: Path, rounds: Iterator[int]
) -> None:
    program = tmp_path / "program.py"
    main = f"""
    if __name__ == "__main__":
        work(1)
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            result = pool.map_async(work, [1, 2])
            work(1)
            print(result.get())
    """
    imports = "import multiprocessing\nimport numpy as np, schuss\n"
    program.write_text(imports + work + textwrap.dedent(main))
    for _ in rounds:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", printed + "\n")


# Products.


@needs_openblas
def test_a_fork_leaves_parent_and_child_multiplying() -> None:
    # Not while another thread multiplies: then a child hangs in OpenBLAS, with its own threads too.
    code = """
    schuss.share_threads_with_blas()
    work(0, 6)
    stepping = threading.Event()
    def step():
        while not done.is_set():
            stepping.set()
            stepped()
    for _ in range(8):
        done.clear(); stepping.clear()
        thread = threading.Thread(target=step)
        thread.start()
        stepping.wait()
        child = os.fork()
        if child == 0:
            for thread in all_at_once(3): thread.join()
            os._exit(len(bad))
        for other in all_at_once(2): other.join()
        done.set(); thread.join()
        assert os.waitpid(child, 0)[1] == 0
    print(bad)
    """
    assert ends_well(LOAD + code, OPENBLAS_NUM_THREADS="2") == "[]\n"


# Checkpoints, whose pieces are hashed by threads that a child does not have.

FORKS_WHILE_HASHING = """
    import os, sys, tempfile
    import numpy as np, schuss
    from schuss import _safetensors, _tensor_reader, _tensor_writer
    _safetensors.PIECE = 256
    folder = tempfile.TemporaryDirectory()
    path = folder.name + "/c"
    w, into = np.arange(1000.0), np.zeros(1000)
    schuss.save(path, w)
    def fork():
        global child
        child = os.fork()
        if child:  # the child finishes before the parent continues
            status = os.waitpid(child, 0)[1]
            assert status == 0, status
    def blocks(arrays, real=_tensor_writer._blocks):
        for i, block in enumerate(real(arrays)):
            if i == 9: fork()
            yield block
    def read_at(*arguments, reads=iter(range(99)), real=_tensor_reader._read_at):
        if next(reads) == 9: fork()
        return real(*arguments)
    def fsync(descriptor, calls=[], real=os.fsync):
        calls.append(None)
        if len(calls) == 1: fork()
        real(descriptor)
    {name} = {own}
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


FORKED = "save: the process was forked while it saved, expected only the parent to go on\n"


@pytest.mark.parametrize(
    ("name", "own", "call", "printed"),
    [
        ("_tensor_reader._read_at", "read_at", "schuss.load(path, into)", ""),
        ("_tensor_writer._blocks", "blocks", "schuss.save(path, w)", FORKED),
        ("os.fsync", "fsync", "schuss.save(path, w)", FORKED),
    ],
)
def test_a_fork_in_the_middle_of_a_checkpoint_leaves_parent_and_child_at_work(
    name: str, own: str, call: str, printed: str
) -> None:
    code = FORKS_WHILE_HASHING.format(name=name, own=own, call=call)
    assert ends_well(code) == printed


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


# Mini-batches. A child that hangs is ended by its alarm, and its parent says so.

FORKS = """
    import gc, multiprocessing, os, signal, sys, threading
    from itertools import islice
    import numpy as np, schuss

    x = np.arange(100)
    expected = schuss.minibatches(x, batch_size=7, rng=3)
    plain, later = ([batch.tolist() for batch in expected] for _ in range(2))

    def lists(batches): return [batch.tolist() for batch in batches]

    def child(work):
        def run():
            signal.alarm(500)
            sys.exit(not work())
        if how == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=run)
            process.start()
            process.join()
            return process.exitcode
        process = os.fork()
        if process == 0: run()
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
"""


def with_forks(code: str, how: str = "os.fork") -> str:
    return ends_well(textwrap.dedent(FORKS) + f"how = {how!r}\n" + textwrap.dedent(code))


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 100])
def test_the_child_of_a_fork_goes_on_with_the_epoch_or_leaves_it(prefetch: int, how: str) -> None:
    code = f"""
    for read in (0, 1, 2, 5, 14, 15, 16):
        batches = schuss.minibatches(x, batch_size=7, rng=3, prefetch={prefetch})
        epoch = iter(batches)
        given = [batch.tolist() for batch in islice(epoch, read)]
        over = read > len(plain)
        def goes_on():
            under_way = batches.state_dict()["epoch"]
            if under_way is None or under_way["position"] != read: return over
            return lists(epoch) == plain[read:] and lists(epoch) == [] and lists(batches) == later
        def lets_go():
            global epoch
            del epoch
            gc.collect()
            return batches.state_dict()["epoch"] is None and lists(batches) == later
        def closes():
            epoch.close()
            return batches.state_dict()["epoch"] is None and lists(epoch) == []
        def ends(): return True
        statuses = [child(work) for work in (goes_on, lets_go, closes, ends)]
        assert statuses == [0] * 4, (read, statuses)
        assert given + lists(epoch) == plain
        assert child(lambda: lists(epoch) == []) == 0
    """
    with_forks(code, how)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_children_of_children_that_fork_within_the_loop_have_every_batch(prefetch: int) -> None:
    code = f"""
    given, children = [], []
    for batch in schuss.minibatches(x, batch_size=7, rng=3, prefetch={prefetch}):
        given.append(batch.tolist())
        if len(given) in (1, 4, 9):
            process = os.fork()
            children = [*children, process] if process else []
            signal.alarm(0 if process else 60)
    assert given == plain
    assert [os.waitpid(process, 0)[1] for process in children] == [0] * len(children)
    """
    with_forks(code)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_training_that_forks_goes_on_in_both_processes(prefetch: int) -> None:
    code = f"""
    def fit(prefetch, forks=()):
        def loss_and_grad(params, batch):
            return 0.0, np.full(1, batch.sum() * 1e-3)
        def on_step(history):
            if history.steps in forks and os.fork() == 0: signal.alarm(500)
            elif history.steps in forks: assert os.wait()[1] == 0
        params = np.zeros(1)
        schuss.fit(loss_and_grad, params, schuss.Momentum(params, lr=0.1), x, batch_size=7, rng=3,
                   epochs=2, prefetch=prefetch, on_step=on_step, progress=False)
        return params.tobytes()
    assert fit({prefetch}, forks=(1, 14, 15, 20)) == fit(0)
    """
    with_forks(code)


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_fork_while_a_thread_waits_for_a_batch_leaves_the_child_that_batch(prefetch: int) -> None:
    code = f"""
    class Gated(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, np.ndarray) and not is_open:
                reached.set()
                let_go.wait()
            return super().__getitem__(key)
    for read in (0, 1, 4):
        is_open, reached, let_go = False, threading.Event(), threading.Event()
        batches = schuss.minibatches(x.view(Gated), batch_size=7, rng=3, prefetch={prefetch})
        is_open = True
        epoch, given = iter(batches), []
        given.extend(islice(epoch, read))
        is_open = False
        thread = threading.Thread(target=lambda: given.extend(epoch))
        thread.start()
        reached.wait()
        def goes_on():
            global is_open
            is_open = True
            position = batches.state_dict()["epoch"]["position"]
            return len(given) <= position and lists(epoch) == plain[position:]
        def lets_go():
            global epoch
            del epoch
            return True
        statuses = [child(goes_on), child(lets_go), child(lambda: True)]
        let_go.set()
        thread.join()
        assert statuses == [0] * 3, (read, statuses)
        assert lists(given) == plain
    """
    with_forks(code)


def test_a_fork_by_what_reads_the_examples_leaves_nobody_waiting() -> None:
    code = """
    class Forks(np.ndarray):
        def __getitem__(self, key):
            if isinstance(key, np.ndarray):
                process = os.fork()
                if process == 0:
                    signal.alarm(500)  # here the child has the thread that prepares, and no other
                else:
                    statuses.append(os.waitpid(process, 0)[1])
            return super().__getitem__(key)
    statuses = []
    assert lists(schuss.minibatches(x.view(Forks), batch_size=7, rng=3, prefetch=2)) == plain
    assert statuses == [0] * len(plain), statuses
    """
    with_forks(code)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_signal_s_handler_that_forks_while_a_batch_is_awaited_leaves_both_that_batch(
    prefetch: int,
) -> None:
    code = f"""
    class Gated(np.ndarray):
        def __getitem__(self, key):
            # A signal that arrives just before the main thread waits is handled after the wait.
            while isinstance(key, np.ndarray) and not is_open:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                forked.wait(0.01)
            return super().__getitem__(key)
    def handle(*_):
        global is_open, process
        if is_open: return
        is_open = True
        process = os.fork()
        if process == 0: signal.alarm(500)
        else: forked.set()
    signal.signal(signal.SIGUSR1, handle)
    is_open, forked = True, threading.Event()
    epoch = iter(schuss.minibatches(x.view(Gated), batch_size=7, rng=3, prefetch={prefetch}))
    given = [next(epoch)]
    is_open = False
    given += epoch
    assert lists(given) == plain, lists(given)
    assert process == 0 or os.waitpid(process, 0)[1] == 0
    """
    with_forks(code)


def test_forks_at_any_time_leave_children_the_rest_of_every_epoch(rounds: Iterator[int]) -> None:
    code = """
    sys.setswitchinterval(1e-5)
    done = threading.Event()
    reading = {}
    def read(i):
        while not done.is_set():
            batches = schuss.minibatches(x, batch_size=7, rng=3, prefetch=i % 3)
            epoch = iter(batches)
            reading[i] = batches, epoch
            if lists(epoch) != plain: os.abort()
    threads = [threading.Thread(target=read, args=[i]) for i in range(6)]
    for thread in threads: thread.start()
    def goes_on():
        for batches, epoch in reading.values():
            under_way = batches.state_dict()["epoch"]
            position = under_way["position"] if under_way else len(plain)
            if lists(epoch) != plain[position:]: return False
        return True
    statuses = [child(goes_on) for _ in range(10)]
    done.set()
    for thread in threads: thread.join()
    assert statuses == [0] * 10, statuses
    """
    for _ in rounds:
        with_forks(code)
