"""A program ends with its own status; its threads do not prevent or change that."""

import os
import signal
import textwrap
from collections.abc import Iterator

import pytest

from support.processes import ends_well, script
from support.sharing import LOAD, needs_openblas

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
def test_a_program_ends_as_it_wants_while_threads_step_add_up_read_and_fit(
    end: str, rounds: Iterator[int]
) -> None:
    code, status, message = ENDS[end]
    for _ in rounds:
        done = script(ALL_AT_WORK + "    " + code)
        last = done.stderr.strip().rpartition("\n")[2]
        # After Ctrl-C, CPython seldom says 1 where many threads work on.
        assert done.returncode in ((status, 1) if end == "Ctrl-C" else (status,)), done.stderr
        assert last == message


# Each begins something that does not end by itself, and ends with the line after it.
DAEMONS = {
    "nothing": "optimizer.step(grad)",
    "steps": """
        def step():
            while True: optimizer.step(grad)
        threading.Thread(target=step, daemon=True).start()
        while optimizer.steps < 2: time.sleep(0.0001)""",
    "one large step": """
        grad = np.ones(30_000_000, np.float32)
        optimizer = schuss.Adam(np.zeros_like(grad))
        def step():
            while True: optimizer.step(grad)
        threading.Thread(target=step, daemon=True).start()
        while optimizer.steps == 0: time.sleep(0.001)""",
    "averages, without the GIL": """
        def average():
            while True:
                schuss.ewma(param, 0.9, out=param)
                begun.set()
        threading.Thread(target=average, daemon=True).start()
        begun.wait()""",
    "an epoch, prepared ahead": """
        epoch = iter(schuss.minibatches(np.zeros((64, 9000)), axis=1, batch_size=100, prefetch=8))
        next(epoch)""",
}


DAEMONS_SETUP = """
    import threading, time
    import numpy as np, schuss
    schuss.set_num_threads(3)
    begun = threading.Event()
    param, grad = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    optimizer = schuss.SGD(param, lr=1.0)
"""
PRODUCTS = """
    schuss.share_threads_with_blas()
    multiplied = threading.Semaphore(0)
    def multiply():
        while True:
            pairs[0][0] @ pairs[0][1]
            multiplied.release()
    for _ in range(2): threading.Thread(target=multiply, daemon=True).start()
    for _ in range(20): multiplied.acquire()
"""


@pytest.mark.parametrize("what", [*DAEMONS, pytest.param("products", marks=needs_openblas)])
def test_the_interpreter_ends_while_a_daemon_does_it(what: str, rounds: Iterator[int]) -> None:
    for _ in rounds:
        if what == "products":
            ends_well(LOAD + PRODUCTS, OPENBLAS_NUM_THREADS="2")
        else:
            ends_well(textwrap.dedent(DAEMONS_SETUP) + textwrap.dedent(DAEMONS[what]).strip())


def test_an_epoch_goes_on_while_the_program_ends() -> None:
    code = """
    import atexit
    import numpy as np, schuss
    def length(batches): return sum(1 for _ in batches)
    class Last:
        def __init__(self, epoch): self.epoch = epoch
        def __del__(self): print(length(self.epoch), length(batches))
    batches = schuss.minibatches(np.arange(100), batch_size=10, prefetch=2)
    first, second = iter(batches), iter(batches)
    next(first), next(second)
    last = Last(second)
    atexit.register(lambda: print(length(first), length(batches)))
    third = iter(batches)
    next(third)
    """
    assert ends_well(code) == "9 10\n9 10\n"


def test_an_epoch_under_way_at_the_programs_end_does_not_end_before_its_last_batch() -> None:
    printed = ends_well(
        """
        import atexit, threading, time
        import numpy as np, schuss
        begun, ending = threading.Event(), threading.Event()
        def end():  # runs after the functions that are registered later
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
