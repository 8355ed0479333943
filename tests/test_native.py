"""What `.ci/sanitize` and `.ci/processors` replay without Python has every rule there is."""

import re
from pathlib import Path

import pytest

pytest.importorskip("ml_dtypes")
from native import vectors

RULES = Path(__file__).parent.parent / "cpp" / "rules" / "rules.def"


def test_the_vectors_have_every_rule() -> None:
    book = re.findall(r"^SCHUSS_RULE\((\w+),", RULES.read_text(), re.MULTILINE)
    assert list(vectors.RULES) == book
