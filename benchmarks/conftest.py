"""Tests run the commands without peers, which have tests of their own."""

from dataclasses import replace

import pytest

from benchmarks.contenders import IN_PLACE_WHOLE
from benchmarks.dtypes import COMBINATIONS
from benchmarks.whole import CONTENDERS_OF


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the commands to schuss and NumPy; peers have tests of their own."""
    monkeypatch.setattr("benchmarks.suite.PEERS", ())
    monkeypatch.setattr("benchmarks.overhead.PEERS", ())
    monkeypatch.setattr("benchmarks.whole.CONTENDERS", (IN_PLACE_WHOLE,))
    nobody: dict[str, tuple[()]] = dict.fromkeys(CONTENDERS_OF, ())
    monkeypatch.setattr("benchmarks.whole.CONTENDERS_OF", nobody)
    alone = [replace(formats, peers=()) for formats in COMBINATIONS]
    monkeypatch.setattr("benchmarks.dtypes.COMBINATIONS", alone)
