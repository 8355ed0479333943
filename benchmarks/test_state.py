"""The experiments with the format of state: each runs, shows what it is meant to, and is drawn."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.peers import installed
from benchmarks.state import fall, tables
from benchmarks.state.command import PARTS
from benchmarks.state.courses import Course
from benchmarks.state.ways import EIGHT_BIT, FLOAT32, TO_NEAREST, WAYS, Way

FALLEN = 1 + 0.999**2_000 * (16 * (1 - 0.999**1_500) - 1)
"""The expected value of v at the end of `fall`, by the formula of the average."""


@pytest.fixture
def _few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, part in PARTS.items():
        monkeypatch.setitem(PARTS, name, replace(part, ways=[FLOAT32, EIGHT_BIT]))


@pytest.mark.usefixtures("_few_ways")
def test_every_part_reports_every_way_and_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    main(["state", "--seeds", "2", "--length", "1", "--processes", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    results = json.loads(path.read_text())["state"]
    assert results.keys() == {name for name in PARTS if installed(*PARTS[name].packages)}
    for name, ways in results.items():
        assert f"### {name}: {PARTS[name].title}\n\n| state | " in printed
        assert {way: len(courses) for way, courses in ways.items()} == {"float32": 2, "8-bit": 2}
        for course in (course for courses in ways.values() for course in courses):
            assert course["steps"]
            for values in course["values"].values():
                assert len(values) == len(course["steps"])
                assert all(map(isfinite, values))


@pytest.mark.parametrize(
    ("way", "low", "high"), [(FLOAT32, 0.98, 1.02), (EIGHT_BIT, 0.97, 1.03), (TO_NEAREST, 3, 5)]
)
def test_v_falls_with_8_bits_as_the_formula_says_but_not_if_rounded_to_nearest(
    way: Way, low: float, high: float
) -> None:
    assert low < fall.run(way, 0, fall.LENGTH).values["v"][-1] / FALLEN < high


@pytest.mark.filterwarnings("ignore")  # of other libraries about themselves
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_way_makes_the_steps_of_adam_and_shows_its_moments(way: Way) -> None:
    if not way.present():
        pytest.skip(f"{way.name} is not here")
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((3, 64, 128), np.float32)
    params, exact = (np.ones((64, 128), np.float32) for _ in range(2))
    stepper, expected = way.stepper([params], 0.1, 0), FLOAT32.stepper([exact], 0.1, 0)
    for grad in grads:
        stepper.step([grad])
        expected.step([grad])
    for mine, right in zip(stepper.moments(), expected.moments(), strict=True):
        np.testing.assert_allclose(mine[0], right[0], atol=0.05 * np.abs(right[0]).max())
    # The update is the ratio of two moments, of which a code may make one much smaller.
    assert np.median(np.abs(params - exact)) < 0.02


def test_the_tables_compare_losses_seed_by_seed() -> None:
    def course(loss: float) -> Course:
        return Course([1, 2], {"loss": [9.0, loss], "accuracy": [0.0, 0.5]})

    ways = {"float32": [course(1.0), course(2.0)], "8-bit": [course(1.5), course(2.5)]}
    assert tables.markdown(ways) == (
        "| state | loss | accuracy | loss, less float32's |\n| --- | ---: | ---: | ---: |\n"
        "| float32 | 1.5000 ± 0.7071 | 0.5000 ± 0.0000 | +0.0000 ± 0.0000 |\n"
        "| 8-bit | 2.0000 ± 0.7071 | 0.5000 ± 0.0000 | +0.5000 ± 0.0000 |"
    )
    others = {"float32": [Course([1], {"v": [1.0]})]}
    assert tables.summary({"fall": others, "words": ways}) == (
        "| state | words |\n| --- | ---: |\n"
        "| float32 | 1.5000 ± 0.7071 |\n| 8-bit | +0.5000 ± 0.0000 |"
    )


def test_figures_of_a_file_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    of_parts = {"fall": ["v"], "updates": ["error", "size"], "words": ["loss"], "mlp": ["loss"]}
    figures = {
        name: {
            way.name: [{"steps": [1, 2], "values": {each: [0.5, seed] for each in shown}}]
            for seed, way in enumerate(PARTS[name].ways, start=1)
        }
        for name, shown in of_parts.items()
    }
    source = tmp_path / "figures.json"
    source.write_text(json.dumps({"environment": {}, "state": figures}))
    main(["state", "--from", str(source), "--plot", str(tmp_path)])
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"state-{name}.png" for name in ("fall", "updates", "trainings", "losses")}
