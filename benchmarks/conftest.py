"""Tests run the commands without peers, which have tests of their own."""

from dataclasses import replace

import pytest

from benchmarks.dtypes import COMBINATIONS
from benchmarks.testing import WHOLE


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the commands to schuss and NumPy; peers have tests of their own."""
    monkeypatch.setattr("benchmarks.suite.PEERS", ())
    monkeypatch.setattr("benchmarks.overhead.PEERS", ())
    monkeypatch.setattr("benchmarks.whole.CONTENDERS", WHOLE)
    alone = [replace(formats, peer=None) for formats in COMBINATIONS]
    monkeypatch.setattr("benchmarks.dtypes.COMBINATIONS", alone)
