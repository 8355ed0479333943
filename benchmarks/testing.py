"""What the tests of the benchmarks share."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    contenders,
    harness,
)
from benchmarks.__main__ import main
from benchmarks.contenders import (
    ADAM,
    ONE_THREAD,
    SCHUSS,
)
from benchmarks.harness import Case, Contender, Problem, Step
from benchmarks.report import PEERS as PACKAGES
from benchmarks.tasks import Peer

OF_SCHUSS = (SCHUSS, ONE_THREAD, contenders.SHARED_THREADS, *contenders.LEVELS)
QUICK = harness.Rounds(least=1, most=1)


def pose(
    rule: harness.Rule, size: int = 37, dtype: harness.DType = "float32", arrays: int = 1
) -> Problem:
    params, grads = ([harness.ordinary(size, dtype=dtype) for _ in range(arrays)] for _ in range(2))
    return Problem(rule, params, grads)


def name_of(value: Any) -> Any:
    return getattr(value, "name", None)


def adam_case() -> Case:
    return Case({"size": 64}, ADAM, partial(pose, ADAM, 64), partial(pose, ADAM))


def records_of(name: str, tmp_path: Path, *sizes: int, only: str = "") -> list[dict[str, Any]]:
    """Run the benchmark, briefly if no sizes are given, and return what it measured."""
    path = tmp_path / "figures.json"
    how = ["--sizes", *map(str, sizes)] if sizes else ["--quick"]
    main([name, *how, "--rounds", "1", "--only", only, "--json", str(path)])
    figures = json.loads(path.read_text())
    basics = {
        "date",
        "commit",
        "processor",
        "cores",
        "threads",
        "blas",
        "simd",
        "schuss",
        "numpy",
        "python",
    }
    assert basics | {name for name in PACKAGES if find_spec(name)} == set(figures["environment"])
    records: list[dict[str, Any]] = figures["benchmarks"][name]
    return records


def installed(*peers: Peer[Any]) -> list[str]:
    return [peer.name for peer in peers if find_spec(peer.package)]


def needs(contender: Contender, *dtypes: str) -> None:
    if not contender.present():
        pytest.skip(f"{contender.name} is not here")
    if "bfloat16" in dtypes:
        pytest.importorskip("ml_dtypes")


def nothing(problem: Problem, **hyperparameters: float) -> Step:
    return lambda: None
