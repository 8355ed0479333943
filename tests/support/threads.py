"""Work in several threads, and a step that takes as long as a test wants."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from support.arrays import Array


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Call `work(i)` in thread i of `count`; raise the first error that one of them raised."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[i]) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Slow:
    """A gradient whose memory is handed out only after `let_go`: a step waits for it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        self.reached.set()
        assert self.let_go.wait(600)
        return self.array.__dlpack__(**keywords)


@contextlib.contextmanager
def step_under_way(step: Callable[[Any], None], grad: Array) -> Iterator[None]:
    """Have another thread within `step(grad)` during the block."""
    slow = Slow(grad)
    thread = threading.Thread(target=step, args=[slow])
    thread.start()
    assert slow.reached.wait(600)
    try:
        yield
    finally:
        slow.let_go.set()
        thread.join()
