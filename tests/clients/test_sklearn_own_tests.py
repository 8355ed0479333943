"""scikit-learn's own tests of its MLPs and of their optimizers, under the patch."""

from pathlib import Path

import pytest

from support.processes import script

pytest.importorskip("sklearn.neural_network.tests.test_mlp")

# Some of the tests reach decay rates above 1 by rounding. They alone are left to scikit-learn.
CODE = """
import sys
import pytest, schuss
from sklearn.neural_network import _stochastic_optimizers as own

def watched(self, grads):
    assert getattr(self, "beta_2", 0) >= 1, "not fused"
    return formulas[type(self)](self, grads)

formulas = {{kind: kind._get_updates for kind in (own.AdamOptimizer, own.SGDOptimizer)}}
for kind in formulas:
    kind._get_updates = watched
patch = schuss.sklearn.patch_sklearn()
tests = "sklearn.neural_network.tests.{name}"
code = pytest.main(["-q", "-p", "no:cacheprovider", "-c", {ini!r}, "--pyargs", tests])
assert repr(patch) == "<SklearnPatch: active>"
sys.exit(code)
"""


@pytest.mark.parametrize("name", ["test_mlp", "test_stochastic_optimizers"])
def test_scikit_learns_own_tests_pass(name: str, tmp_path: Path) -> None:
    ini = tmp_path / "pytest.ini"  # instead of this project's
    ini.write_text("[pytest]\n")
    done = script(CODE.format(name=name, ini=str(ini)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
