"""Figures become tables, pictures and a history."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compact, history
from benchmarks.compact import compact_tables
from benchmarks.report import markdown_table
from benchmarks.suite import BENCHMARKS


def test_the_picture_has_a_line_for_each_contender(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    def point(name: str, size: int, us: float, dtype: str = "float32") -> dict[str, Any]:
        case = {"rule": "Adam", "dtype": dtype, "size": size}
        return {"case": case, "contender": name, "microseconds": us, "quartiles": [us / 2, us * 2]}

    step = [point("schuss", 1_024, 2.0), point("schuss", 64, 1.0), point("thinc", 64, 9.0)]
    step.append(point("schuss", 64, 7.0, "float64"))
    results = {"step": step, "loop": [point("numba", 64, 3.0)]}
    lines = [
        [(drawn.get_label(), np.asarray(drawn.get_xydata()).tolist()) for drawn in panel.lines]
        for panel in plot.picture(results).axes
    ]
    assert lines == [[("schuss", [[64, 1], [1_024, 2]])], [("numba", [[64, 3]])]]
    source, target = tmp_path / "figures.json", tmp_path / "picture.png"
    source.write_text(json.dumps({"benchmarks": results}))
    plot.main([str(source), str(target)])
    assert target.read_bytes().startswith(b"\x89PNG")


def test_markdown_names_a_case_once() -> None:
    records = [
        {"case": {"size": size}, "contender": name, "microseconds": 1234.5, "share_of_limit": 0.5}
        for size in (1_024, 7)
        for name in ("schuss", "NumPy")
    ]
    assert markdown_table("step", records) == (
        "### step\n\n"
        "| size | contender | µs | of limit |\n| ---: | --- | ---: | ---: |\n"
        "| 1,024 | schuss | 1,234 | 50.0% |\n|  | NumPy | 1,234 | 50.0% |\n"
        "| 7 | schuss | 1,234 | 50.0% |\n|  | NumPy | 1,234 | 50.0% |"
    )


def record(case: dict[str, Any], name: str, us: float, **more: Any) -> dict[str, Any]:
    spread = [0.99 * us, 1.01 * us]
    return {"case": case, "contender": name, "microseconds": us, "quartiles": spread, **more}


def test_compact_tables_have_a_line_a_contender_and_a_column_a_case() -> None:
    records = [
        record({"rule": "Adam", "size": size}, name, 0.5 * size)
        for name, size in (("schuss", 10), ("schuss", 2_000), ("limit", 2_000))
    ]
    assert compact_tables("step", records) == {
        "step, Adam": "| step, Adam (µs) | 10 | 2,000 |\n| --- | ---: | ---: |\n"
        "| schuss | 5.00 | 1,000 |\n| memory limit |  | 1,000 |"
    }


def test_compact_tables_of_trainings_say_how_many_times_as_fast_they_are() -> None:
    case = {"solver": "adam", "hidden": "9 + 9", "batch": 32, "dtype": "float32"}
    names = ("scikit-learn", "schuss")
    records = [record(case, name, 1.0, times={"schuss": 2.345}) for name in names]
    assert compact_tables("sklearn", records) == {
        "sklearn, adam": "| hidden layers, batch | float32 |\n| --- | ---: |\n| 9 + 9, 32 | 2.35 |"
    }


def test_compact_tables_replace_those_of_a_text(tmp_path: Path) -> None:
    figures, text = tmp_path / "figures.json", tmp_path / "text.md"
    results = {"step": [record({"size": 7}, "schuss", 1.0)], "loop": []}
    figures.write_text(json.dumps({"benchmarks": results}))
    old = "a\n<!-- table: step -->\nold\n<!-- end -->\n<!-- table: b -->\nold\n<!-- end -->\n"
    text.write_text(old)
    compact.main([str(figures), "--into", str(text)])
    new = "| step (µs) | 7 |\n| --- | ---: |\n| schuss | 1.00 |"
    assert text.read_text() == old.replace("old", new, 1)


def test_compact_tables_have_the_cases_of_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for size, path in enumerate(paths):
        results = {"step": [record({"size": size}, "schuss", 1.0)], "loop": []}
        path.write_text(json.dumps({"benchmarks": results}))
    compact.main([str(path) for path in paths])
    assert "| step (µs) | 0 | 1 |\n" in capsys.readouterr().out


def test_the_marked_tables_of_the_readme_are_of_benchmarks() -> None:
    text = (Path(compact.__file__).parent / "README.md").read_text()
    titles = [title for _, title, _ in compact.MARKED.findall(text)]
    assert len(titles) == text.count("<!-- table: ")
    assert {title.split(",")[0] for title in titles} <= BENCHMARKS.keys()


def runs_of(path: Path, *times: tuple[str, str, float]) -> None:
    """Record runs (processor, commit, time of schuss), where the yardstick takes 10 µs."""
    for processor, commit, us in times:
        machine = {"processor": processor, "cores": "2", "simd": "avx2", "commit": commit}
        case = {"size": 1_000}
        records = [record(case, "limit", 10.0), record(case, "schuss", us)]
        history.record_run(path, machine, {"step": records})


def test_the_history_shows_changes_beyond_the_noise_for_each_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    runs_of(path, ("A", "c1", 20.0), ("B", "c1", 90.0), ("A", "c2", 20.8), ("A", "c3", 23.0))
    runs_of(path, ("A", "c4", 18.0))
    history.main([str(path)])
    printed = capsys.readouterr().out
    assert "A, 2, avx2\n\n| benchmark | case | contender | c1 | c2 | c3 | c4 |\n" in printed
    assert "| step | 1,000 | schuss | 2 | 2.08 | 2.3 slower | 1.8 faster |\n" in printed
    assert "B, 2, avx2\n\n| benchmark | case | contender | c1 |\n" in printed
    history.main([str(path), "--changes"])
    assert "| 9 |" not in capsys.readouterr().out


def test_runs_of_one_commit_count_once_with_their_scatter_as_noise(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    runs_of(path, ("A", "c1", 20.0), ("A", "c1", 24.0), ("A", "c2", 24.0))
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert history.changes(runs) == {("step", "1,000", "schuss"): {"c1": "2.2", "c2": "2.4"}}
