"""The code itself: symbols, documentation, the README, the version, the shape of a rule."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import schuss
from support.mpi import mpiexec, needs_mpi

ROOT = Path(__file__).parent.parent
LEVEL_OBJECTS = sorted(ROOT.glob("build/**/level_*.dir/**/*.o"))


@pytest.mark.skipif(not LEVEL_OBJECTS, reason="needs the objects of a build in this checkout")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("path", LEVEL_OBJECTS, ids=lambda path: path.name)
def test_a_levels_objects_export_their_table_and_nothing_vague(path: Path) -> None:
    # The linker may keep the copy of a vague symbol (nm's W, V, u) for every processor.
    listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    level = path.name.removesuffix(".o").removesuffix(".cpp")
    ((kind, name),) = re.findall(r"^[0-9a-f]* +([A-TV-Zuvw]) (.+)$", listing, re.MULTILINE)
    assert name == f"schuss::sweep::level_{level}"
    assert kind in "DR"


ABSENT = tuple(f"schuss.{name}" for name in ("sklearn", "torch") if not find_spec(name))


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(schuss.__path__, "schuss.")]
    left_out = ("schuss.__main__", *ABSENT)
    return ["schuss", *(name for name in names if not name.startswith(left_out))]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    np.set_printoptions(legacy=False)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


PUBLIC = ["checkpoints", "kernels", "landscapes", "mpi", "optimizers", "reference", "schedules"]
PUBLIC += ["sklearn", "torch"]
# The library alone makes these; their attributes have docstrings.
MADE_FOR_USERS = ("History", "Last", "MiniBatches", "SklearnPatch", "State8bit")
SECTION = re.compile(r"^(\w[\w ]*)\n-+\n", re.MULTILINE)
OF_FORMULAS = "averages|checkpoints|kernels|optimizers|reference|schedules|torch"


def sections(thing: Any) -> dict[str, str]:
    head, *rest = SECTION.split(inspect.cleandoc(thing.__doc__ or ""))
    return {"": head, **dict(zip(rest[::2], rest[1::2], strict=True))}


def documented(text: str) -> list[tuple[set[str], str, str]]:
    """Return the names, the type and the description of each entry of a section."""
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    found = []
    for entry in filter(None, entries):
        head, _, description = entry.partition("\n")
        names, _, kind = head.partition(" : ")
        found.append(({name.strip("* ") for name in names.split(",")}, kind, description))
    return found


def public() -> Iterator[Any]:
    """Yield all public functions, classes and their members, as parameters with a name."""
    seen = set()
    for name in ("schuss", *(f"schuss.{name}" for name in PUBLIC)):
        if name in ABSENT:
            continue
        module = importlib.import_module(name)
        for entry in module.__all__:
            thing = getattr(module, entry)
            if not callable(thing) or thing in seen:
                continue
            seen.add(thing)
            if entry not in MADE_FOR_USERS:
                yield pytest.param(thing, id=f"{name}.{entry}")
            for key, member in vars(thing).items() if isinstance(thing, type) else ():
                if not key.startswith("_") and isinstance(member, FunctionType | property):
                    yield pytest.param(member, id=f"{name}.{entry}.{key}")


@pytest.mark.parametrize("thing", [*public()])
def test_public_docstrings_are_complete(thing: Any, request: pytest.FixtureRequest) -> None:
    parts, name = sections(thing), request.node.callspec.id
    assert parts[""]
    if isinstance(thing, property):
        return
    is_class, is_method = isinstance(thing, type), "." in thing.__qualname__
    signature = inspect.signature(thing)
    expected = set(signature.parameters) - {"self"}
    # Some only point to the documentation of what they stand for.
    points_elsewhere = "see `schuss." in parts[""].lower() and "Parameters" not in parts
    is_override = thing.__name__ == "formula" and not thing.__qualname__.startswith("Schedule.")
    if points_elsewhere or is_override:
        return
    if is_class and issubclass(thing, schuss.optimizers.Optimizer):
        shared = inspect.signature(schuss.optimizers.Options).parameters
        expected = expected - set(shared) | {"params", "lr", "options"}
    if name == "schuss.schedules.Schedule":  # documents its call
        expected = {"t"}
    entries = documented(parts.get("Parameters", ""))
    assert set().union(*(names for names, _, _ in entries)) == expected
    for names, kind, description in entries:
        if "array" in kind and names != {"copies"}:
            assert re.search("shape|float|dtype|structure of", kind + description), names
    returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if not is_class and returns and inspect.unwrap(thing) is thing:  # not `threads`, a context
        assert "Returns" in parts
    # Functions of numbers in the reference check nothing; the caller of a formula checks `t`.
    by_numbers = not any("array" in kind for _, kind, _ in entries) and not is_class
    unchecked = thing.__module__.startswith("schuss.reference.") and by_numbers
    assert "Raises" in parts or not expected or unchecked or thing.__name__ == "formula"
    if is_method:
        return
    assert "Examples" in parts
    assert "References" in parts or not (is_class or re.search(OF_FORMULAS, thing.__module__))


VERSION = schuss.__version__


def test_the_version_stands_in_one_place() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
    assert schuss._core.__version__ == metadata.version("schuss") == VERSION
    for path in [ROOT / "CMakeLists.txt", *ROOT.glob("python/**/*.py"), *ROOT.glob("cpp/**/*.?pp")]:
        assert VERSION not in path.read_text(encoding="utf-8"), path


README = ROOT / "README.md"
DOCS = ROOT / "python" / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("guide/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page that are marked with that language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def promised(block: str) -> str:
    """Return the last comment of a block, which is what it prints."""
    return block.strip().rpartition("  # ")[2]


# README and docs: ```python blocks follow each other, and each prints its last comment.
WITH_OUTPUT = [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, "python")]
# ```py blocks stand alone and need another library; those without imports are no programs.
PROGRAMS = [
    pytest.param(block, id=f"{page.stem} {i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "py"))
    if block.startswith("import ")
]
OF_RANKS = [program for program in PROGRAMS if "MPI.COMM_WORLD" in str(program.values[0])]
OF_PEERS = [program for program in PROGRAMS if program not in OF_RANKS]


@pytest.mark.parametrize("page", WITH_OUTPUT)
def test_the_python_of_the_documentation_prints_what_it_says(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "bfloat16" in "".join(blocks(page, "python")):
        pytest.importorskip("ml_dtypes")
    monkeypatch.chdir(tmp_path)  # some save a training
    names: dict[str, object] = {}
    for block in blocks(page, "python"):  # each uses the names before it
        exec(compile(block, page.name, "exec"), names)
        assert capsys.readouterr().out.strip() == promised(block)


@pytest.mark.parametrize("block", OF_PEERS)
def test_the_documentations_code_for_other_libraries_runs(
    block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(library)
    try:
        exec(compile(block, "documentation", "exec"), {})
    finally:
        if "patch_sklearn" in block:
            schuss.sklearn.unpatch_sklearn()  # the tests that follow need its own steps
    assert capsys.readouterr().out.strip() in ("", promised(block))


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("block", OF_RANKS)
def test_the_documentations_code_for_several_processes_runs(block: str, ranks: int) -> None:
    status, printed, stderr = mpiexec(ranks, block)
    assert (status, printed.strip()) == (0, promised(block)), stderr


def test_there_is_code_to_run_in_the_readme_and_in_the_docs() -> None:
    assert {"README", "index", "start", "groups"} <= {page.id for page in WITH_OUTPUT}
    assert "many-machines 0" in {block.id for block in OF_RANKS}
    of_peers = {"README 0", "README 1", "torch 0", "jax 0", "autograd 0", "flax 1", "quantum 1"}
    assert of_peers <= {block.id for block in OF_PEERS}


def test_the_readmes_python_can_be_pasted_into_the_prompt(tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONSTARTUP"}
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input="".join(blocks(README, "python")),
        capture_output=True,
        cwd=tmp_path,
        env={**environment, "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
        check=True,
    )
    assert done.stderr.replace(">>> ", "").replace("... ", "").strip() == ""
    expected = [promised(block) for block in blocks(README, "python")]
    assert [line for line in done.stdout.splitlines() if line in expected] == expected


def test_the_readmes_error_message_is_the_librarys() -> None:
    (message,) = re.findall(r"`TypeError: (.*)`", README.read_text(encoding="utf-8"))
    optimizer = schuss.Adam({"W1": np.ones(3, np.float32)})
    with pytest.raises(TypeError) as caught:
        optimizer.step({"W1": np.ones(3)})
    assert str(caught.value) == message


def test_a_rule_says_nothing_of_loops_dtypes_or_instruction_sets() -> None:
    rules = {*(ROOT / "cpp" / "rules").glob("*.hpp")}
    others = {path for path in rules if path.name in ("registry.hpp", "arithmetic.hpp")}
    assert len(others) == 2
    for path in rules - others:
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"\b(for|while|float|__m\d+|_mm\w*|pragma omp)\b", code), path.name
