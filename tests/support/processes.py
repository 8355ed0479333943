"""Code in a process of its own."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def script(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in another process, with more environment variables."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environment},
    )


def ends_well(code: str, **environment: str) -> str:
    """Run Python code as `script` does, and return what it printed; it must not fail or warn."""
    done = script(code, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Code after which no thread can be started: no system has memory for a stack of that size.
NO_THREADS = """
import ctypes, threading
import numpy as np, schuss
from schuss import _core
libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
assert libc.pthread_attr_init(attributes) == 0
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 60)) == 0
assert libc.pthread_setattr_default_np(attributes) == 0
try: threading.Thread(target=print).start()
except RuntimeError: pass
else: raise AssertionError("there are threads")
"""
needs_no_threads = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "pthread_setattr_default_np"),
    reason="threads can be had here, whatever is done",
)
