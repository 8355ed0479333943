"""What a reader and a linker may rely on: symbols, documentation, the shape of the tree."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import schuss

ROOT = Path(__file__).parent.parent
LEVEL_OBJECTS = sorted(ROOT.glob("build/**/level_*.dir/**/*.o"))


@pytest.mark.skipif(not LEVEL_OBJECTS, reason="needs the objects of a build in this checkout")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("path", LEVEL_OBJECTS, ids=lambda path: path.name)
def test_a_levels_objects_export_their_table_and_nothing_vague(path: Path) -> None:
    # A vague symbol (nm's W, V, u) may be the copy that the linker keeps for every processor.
    listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    level = path.name.removesuffix(".o").removesuffix(".cpp")
    exported = [
        (kind, name)
        for kind, name in re.findall(r"^[0-9a-f]* +([A-Zuvw]) (.+)$", listing, re.MULTILINE)
        if kind != "U"
    ]
    assert [name for _, name in exported] == [f"schuss::sweep::level_{level}"]
    assert exported[0][0] in "DR"


def modules() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(schuss.__path__, "schuss.")]
    return ["schuss", *(name for name in names if name.rpartition(".")[2] != "__main__")]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    np.set_printoptions(legacy=False)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "module",
    [schuss.kernels, schuss.landscapes, schuss.schedules, schuss],
    ids=lambda module: module.__name__,
)
def test_public_functions_and_classes_are_documented(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    for name in names:
        thing = getattr(module, name)
        # Nobody but `minibatches` and `fit` makes a MiniBatches or a History.
        if not callable(thing) or name in ("simd", "available_simd", "MiniBatches", "History"):
            continue
        text = thing.__doc__
        sections = ["Examples"]
        if inspect.signature(thing).parameters:
            sections += ["Parameters", "Raises"]
        if module is schuss.kernels or isinstance(thing, type):
            sections.append("References")
        for section in sections:
            assert f"\n    {section}\n    {'-' * len(section)}\n" in text, (name, section)


def test_the_readmes_python_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a training
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:  # each goes on where the one before ended
        exec(compile(block, "README.md", "exec"), names)
        *_, promised = block.strip().rpartition("  # ")
        assert capsys.readouterr().out.strip() == promised


def test_a_rule_says_nothing_of_loops_dtypes_or_instruction_sets() -> None:
    for path in (ROOT / "cpp" / "rules").glob("*.hpp"):
        if path.name in ("book.hpp", "arithmetic.hpp"):
            continue
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"\b(for|while|float|__m\d+|_mm\w*|pragma omp)\b", code), path.name
