"""A process for each contender; one of them works while the others wait.

The parent writes a call as a line of JSON to a process's pipe and waits for the reply. A process
replies when all its threads are idle, so that they do not disturb the next contender.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import WrongResultError, settle

PARTING_SECONDS = 10.0


class Process:
    """A process that runs a module, which calls `serve` for a contender.

    A launcher, a command that starts Python with these arguments, may start it in several
    processes, of which one serves.
    """

    def __init__(
        self, module: str, contender: str, launcher: Sequence[str] = (sys.executable,)
    ) -> None:
        self.contender = contender
        self._process = subprocess.Popen(
            [*launcher, "-m", module, contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )

    def call(self, method: str, *arguments: object) -> Any:
        """Return what the method of the worker returns.

        Raises
        ------
        WrongResultError
            If the method raised it.
        RuntimeError
            If the process has ended; its traceback is on stderr.
        """
        with suppress(BrokenPipeError):  # if it has ended, it does not reply
            print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
        assert self._process.stdout is not None
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"{self.contender}: its process has ended")
        result, wrong = json.loads(reply)
        if wrong is not None:
            raise WrongResultError(wrong)
        return result

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=PARTING_SECONDS)  # closes its stdin, so that it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def team(module: str, contenders: Sequence[str]) -> Iterator[dict[str, Process]]:
    """Start a process per contender, and end them on exit."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Process(module, name)) for name in contenders}


def serve(make_worker: Callable[[str], object]) -> None:
    """Run as a contender's process: make its worker, and answer calls."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print; replies are separate
    worker = make_worker(sys.argv[1])
    for call in sys.stdin:
        method, *arguments = json.loads(call)
        result = wrong = None
        try:
            result = getattr(worker, method)(*arguments)
        except WrongResultError as error:
            wrong = str(error)
        settle()
        print(json.dumps([result, wrong]), file=replies, flush=True)
