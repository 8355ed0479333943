"""Programs in which several threads multiply, solve and step, with threads shared with BLAS."""

import pytest

from schuss import _core

can_share = any(not refusal for _, _, refusal, _ in _core.find_openblas())
needs_openblas = pytest.mark.skipif(
    not can_share, reason="no OpenBLAS here lets others do its work"
)

LOAD = """
    import os, sys, threading, time
    import numpy as np, schuss
    sys.setswitchinterval(1e-5)
    rng = np.random.default_rng(0)
    sizes = [(256, 512, 300), (64, 700, 65), (400, 400, 1), (33, 1000, 34)]
    pairs = [(rng.standard_normal((m, k)), rng.standard_normal((k, n))) for m, k, n in sizes]
    square = rng.standard_normal((300, 300)) + 300 * np.eye(300)
    grad = rng.standard_normal(300_000, dtype=np.float32)
    products = [(a @ b).tobytes() for a, b in pairs]
    solution = np.linalg.solve(square, square[:, 0]).tobytes()
    def stepped():
        optimizer = schuss.Adam(np.zeros_like(grad))
        for _ in range(4): optimizer.step(grad)
        return optimizer.params.tobytes()
    steps = stepped()
    def check(i):
        if i % 3 == 0: return np.linalg.solve(square, square[:, 0]).tobytes() == solution
        if i % 3 == 1: return stepped() == steps
        a, b = pairs[i % 4]
        return (a @ b).tobytes() == products[i % 4]
    bad, done = [], threading.Event()
    def work(i, times=60):
        try:
            for j in range(times):
                if not check(i + j): bad.append((i, j))
        except BaseException as error:
            bad.append(error)
    def all_at_once(count=5):
        threads = [threading.Thread(target=work, args=[i]) for i in range(count)]
        for thread in threads: thread.start()
        return threads
"""
