"""The demo: its gradients are right, its optimizers learn, its pictures show the numbers."""

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import cli, landscapes, reference

pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
from schuss.demo.network import accuracy, cost_and_gradients, initial_parameters

Network = dict[str, Any]
RATES = {"SGD": 0.2, "Momentum": 0.5, "RMSprop": 0.001, "Adam": 0.002}
NAMES = [*RATES]
PICTURES = ["averages.png", "batch-size.png", "decay.png", "landscapes.png", "optimizers.png"]
PNG = b"\x89PNG\r\n\x1a\n"
BATCH = 9
L2 = 0.7


@pytest.fixture
def network() -> Network:
    """Return a small network in float64, with two hidden layers and biases that are not 0."""
    rng = np.random.default_rng(0)
    params = initial_parameters((5, 7, 6, 4), rng, np.float64)
    for layer in (1, 2, 3):
        params[f"b{layer}"][:] = rng.standard_normal(params[f"b{layer}"].size)
    return params


@pytest.fixture
def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((BATCH, 5)), rng.integers(4, size=BATCH)


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    module: ModuleType = pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
    return module


@pytest.fixture(scope="module")
def digits(demo: ModuleType) -> Iterator[Any]:
    """Return the digits. BLAS has one thread, as in the demo: on busy cores, more would wait."""
    with demo.threadpool_limits(1, user_api="blas"):
        yield demo.Digits.load(0)


@pytest.fixture(scope="module")
def results(demo: ModuleType, digits: Any) -> list[Any]:
    """Return what `schuss demo` trains without options."""
    options = cli._parser().parse_args(["demo"])
    assert options.seed == 0
    found: list[Any] = demo.optimizers.compare(digits, epochs=options.epochs, seed=0)
    return found


@pytest.fixture(scope="module")
def courses(demo: ModuleType, digits: Any) -> dict[str, Any]:
    """Return the courses of the three batch sizes, in fewer epochs than in the picture."""
    found: dict[str, Any] = demo.batch_size.compare(digits, epochs=2, seed=0)
    return found


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


# The network.


def test_all_gradients_agree_with_central_differences(
    network: Network, batch: tuple[Any, Any]
) -> None:
    cost, gradients = cost_and_gradients(network, *batch, l2=L2)
    by_with_l2 = schuss.with_l2(cost_and_gradients, L2)(network, *batch)
    assert by_with_l2[0] == pytest.approx(cost, rel=1e-14)
    assert set(gradients) == set(network) == {"W1", "b1", "W2", "b2", "W3", "b3"}
    h = 1e-5
    for name, p in network.items():
        differences = np.empty_like(p)
        for i in np.ndindex(p.shape):
            value, costs = p[i], []
            for p[i] in (value + h, value - h):
                costs.append(cost_and_gradients(network, *batch, l2=L2)[0])
            p[i] = value
            differences[i] = (costs[0] - costs[1]) / (2 * h)
        np.testing.assert_allclose(gradients[name], differences, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(by_with_l2[1][name], gradients[name], rtol=1e-12)


def test_the_cost_is_the_mean_cross_entropy_in_nats_and_that_of_the_weights(
    network: Network, batch: tuple[Any, Any]
) -> None:
    x, labels = batch
    hidden = np.maximum(x @ network["W1"] + network["b1"], 0)
    hidden = np.maximum(hidden @ network["W2"] + network["b2"], 0)
    odds = np.exp(hidden @ network["W3"] + network["b3"])
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    expected = np.mean([-np.log(probabilities[i, label]) for i, label in enumerate(labels)])
    cost, _ = cost_and_gradients(network, x, labels)
    assert cost == pytest.approx(expected, rel=1e-12)
    with_l2, _ = cost_and_gradients(network, x, labels, l2=L2)
    squares = sum((network[name] ** 2).sum() for name in ("W1", "W2", "W3"))
    assert with_l2 - cost == pytest.approx(L2 / (2 * BATCH) * squares, rel=1e-12)
    hits = [probabilities[i].argmax() == label for i, label in enumerate(labels)]
    assert 0 < sum(hits) < BATCH
    assert accuracy(network, x, labels) == sum(hits) / BATCH


def test_weights_start_with_hes_deviation_and_biases_with_zero_and_no_cost_overflows() -> None:
    rng = np.random.default_rng(0)
    params = initial_parameters((400, 300, 10), rng)
    assert params["W1"].std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert not params["b1"].any()
    params["W2"] *= 1e6
    x = rng.standard_normal((BATCH, 400)).astype(np.float32)
    cost, gradients = cost_and_gradients(params, x, rng.integers(10, size=BATCH), l2=L2)
    assert 1e4 < cost < np.inf
    for name, p in params.items():
        assert p.dtype == gradients[name].dtype == np.float32
        assert p.shape == gradients[name].shape
        assert np.isfinite(gradients[name]).all()


# The training.


def test_every_optimizer_learns_and_adam_reaches_97_percent(results: list[Any]) -> None:
    assert [result.contender.name for result in results] == NAMES
    for result in results:
        fused, plain = result.fused, result.reference
        assert min(result.test_accuracies) > 0.95
        assert result.training_accuracy > 0.99
        assert result.epoch_costs[-1] < 0.1 < 2 < fused.history.cost[0]
        assert result.same_bits
        assert fused.params is not plain.params
        np.testing.assert_array_equal(fused.history.cost, plain.history.cost)
    assert np.mean(results[-1].test_accuracies) >= 0.97
    assert len({result.fused.history.cost[0] for result in results}) == 1
    assert len({result.fused.params["W1"].tobytes() for result in results}) == len(NAMES)


def test_the_table_and_the_test_accuracy_are_those_of_the_results(
    demo: ModuleType, digits: Any, results: list[Any]
) -> None:
    console = pytest.importorskip("rich.console").Console(width=80)
    with console.capture() as capture:
        console.print(demo.optimizers.table(results))
    rows = [line.split() for line in capture.get().splitlines()]
    for result in results:
        first, *others = result.test_accuracies
        assert first == accuracy(result.fused.params, digits.x_test, digits.labels_test)
        assert len(others) == demo.optimizers.SPLITS - 1 >= 4
        assert len({first, *others}) > 1
        mean = (first + sum(others)) / 5
        variance = sum((each - mean) ** 2 for each in (first, *others)) / 4
        assert result.accuracy_text == f"{100 * mean:.1f} ± {100 * variance**0.5:.1f}%"
        name, seconds, shares = result.contender.name, [], []
        for run in (result.fused, result.reference):
            of_step = run.history.step_seconds.sum()
            seconds.append(run.history.loss_seconds.sum() + of_step)
            shares.append(f"{100 * of_step / seconds[-1]:.1f}%")
        cost = f"{np.mean(result.fused.history.cost[-22:]):.3f}"
        share = f"{100 * result.training_accuracy:.1f}%"
        numbers = [cost, share, *result.accuracy_text.split(), f"{seconds[0]:.2f}", *shares]
        assert [name, f"{RATES[name]:g}", *numbers] in rows


def test_the_digits_are_split_in_two_with_each_class_alike(demo: ModuleType) -> None:
    digits = demo.Digits.load(3)
    assert (len(digits.x), len(digits.x_test)) == (1408, 389)
    assert digits.x.dtype == np.float32
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    shares = [np.bincount(each) / len(each) for each in (digits.labels, digits.labels_test)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.003)
    np.testing.assert_array_equal(digits.x, demo.Digits.load(3).x)
    assert not np.array_equal(digits.x, demo.Digits.load(4).x)


# The pictures.


def curves(axes: Any) -> dict[str, Any]:
    """Return the lines in a panel by the first words of their labels."""
    return {line.get_label().split(":")[0]: line for line in axes.lines}


def test_the_picture_of_optimizers_has_the_four_cost_curves_and_labels_that_do_not_overlap(
    demo: ModuleType, results: list[Any]
) -> None:
    (axes,) = demo.optimizers.picture(results).axes
    means = {
        line.get_color(): line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 30
    }
    labels = {text.get_color(): text for text in axes.texts}
    for result in results:
        color = demo.style.COLORS[result.contender.name]
        expected = result.fused.history.cost.reshape(30, 22).mean(axis=1)
        np.testing.assert_allclose(means[color], expected, rtol=1e-12)
        assert labels[color].get_text().startswith(f"{result.contender.name} ")
        assert labels[color].get_text().endswith(f"\n{result.accuracy_text}")
    heights = sorted(label.xy[1] for label in labels.values())
    assert all(high / low > 1.2 for low, high in pairwise(heights))


def test_batch_descent_falls_at_every_update_and_mini_batches_are_noisy_and_trend_down(
    courses: dict[str, Any],
) -> None:
    updates = {"batch": 2 * 22, "mini-batch": 2 * 22 * 22, "stochastic": 2 * 1408}
    assert {name: len(course.batch_costs) for name, course in courses.items()} == updates
    for name, course in courses.items():
        falls = np.diff(course.batch_costs) < 0
        quarters = [quarter.mean() for quarter in np.split(course.batch_costs, 4)]
        assert falls.all() if name == "batch" else 0.3 < falls.mean() < 0.8
        assert quarters == sorted(quarters, reverse=True)


def test_all_batch_sizes_are_judged_by_the_cost_of_all_digits(
    demo: ModuleType, digits: Any, courses: dict[str, Any]
) -> None:
    for size in demo.batch_size.SIZES:
        params = initial_parameters(demo.LAYERS, np.random.default_rng(0))
        batches = schuss.minibatches(digits.x, digits.labels, batch_size=size.batch_size, rng=0)
        measured = dict(zip(courses[size.name].measured, courses[size.name].costs, strict=True))
        assert list(measured)[-1] == len(courses[size.name].batch_costs)
        for step, batch in enumerate(islice(batches, 20), start=1):
            _, gradients = cost_and_gradients(params, *batch)
            for name, p in params.items():
                reference.sgd(p, gradients[name], lr=size.lr)
            cost, _ = cost_and_gradients(params, digits.x, digits.labels)
            assert measured.pop(step, cost) == pytest.approx(cost, rel=1e-4)
            if len(batches) == 1:
                assert courses["batch"].batch_costs[1] == pytest.approx(cost, rel=1e-4)


def test_the_picture_of_batch_sizes_shows_those_costs_by_update_epoch_and_time(
    demo: ModuleType, courses: dict[str, Any]
) -> None:
    drawn = demo.batch_size.picture(courses)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["update", "epoch", "seconds"]
    assert drawn.legends
    for size in demo.batch_size.SIZES:
        course = courses[size.name]
        at = course.measured
        scales = at, at * size.batch_size / 1408, course.seconds[at - 1]
        for axes, x in zip(drawn.axes, scales, strict=True):
            pale, strong = (line for line in axes.lines if line.get_color() == size.color)
            assert strong.get_label().startswith(f"{size.name}: ")
            np.testing.assert_array_equal(strong.get_ydata(), course.costs)
            np.testing.assert_allclose(strong.get_xdata(), x, rtol=1e-12)
            np.testing.assert_array_equal(pale.get_ydata(), course.batch_costs[1:])
        assert (np.diff(course.seconds) >= 0).all()


def test_the_temperatures_are_those_of_every_day_of_a_year(demo: ModuleType) -> None:
    days, highest = demo.averages.temperatures()
    assert days == sorted(set(days))
    assert (len(days), len(highest), days[0], days[-1]) == (
        *(366, 366, date(2012, 1, 1), date(2012, 12, 31)),
    )
    assert highest[:3].tolist() == [12.8, 10.6, 11.7]


def test_the_picture_of_averages_shows_three_betas_and_what_bias_correction_does(
    demo: ModuleType,
) -> None:
    def averages(beta: float, corrected: bool) -> list[float]:
        v, found = 0.0, []
        for t, value in enumerate(demo.averages.temperatures()[1], start=1):
            v = beta * v + (1 - beta) * value
            found.append(v / (1 - beta**t) if corrected else v)
        return found

    above, below = demo.averages.picture().axes
    drawn = [line.get_ydata() for axes in (above, below) for line in axes.lines[1:]]
    forms = [(0.5, True), (0.9, True), (0.98, True), (0.98, True), (0.98, False)]
    for values, (beta, corrected) in zip(drawn, forms, strict=True):
        np.testing.assert_allclose(values, averages(beta, corrected), rtol=1e-12)
    assert drawn[-1][0] == pytest.approx(0.02 * 12.8)
    assert drawn[-2][0] == pytest.approx(12.8)


def test_the_picture_of_decay_shows_the_five_formulas(demo: ModuleType) -> None:
    left, right = demo.decay.picture().axes
    epochs = np.arange(1, 61)
    expected = {
        "inverse time": 0.2 / (1 + epochs),
        "exponential": 0.95**epochs * 0.2,
        "inverse square root": 0.2 / np.sqrt(epochs),
        "staircase": 0.2 / 2 ** ((epochs - 1) // 10),
        "manual": np.select([epochs < 20, epochs < 40], [0.15, 0.05], 0.01),
    }
    assert set(curves(left)) == set(expected)
    for name, line in curves(left).items():
        np.testing.assert_array_equal(line.get_xdata(), epochs)
        np.testing.assert_allclose(line.get_ydata(), expected[name], rtol=1e-12)
    for name, line in curves(right).items():
        rates = line.get_ydata()
        assert rates.max() == pytest.approx(0.2, rel=0.01), name
        assert rates[-1] < 0.002, name
        assert bool(rates[0] < 0.02) is (name in ("warm-up, then cosine", "one cycle")), name


def test_the_picture_of_landscapes_shows_four_paths_each_with_its_number_of_steps(
    demo: ModuleType,
) -> None:
    starts = [(-10, 1), (-1.2, 0.001), (-4, 1.5)]
    arrived: list[Callable[[Any], Any]] = [
        lambda points: landscapes.bowl(100)(points) < 0.01,
        lambda points: abs(points[:, 1]) > 1,
        lambda points: landscapes.plateau()(points) < 0.5,
    ]
    found: list[dict[str, int]] = []
    for axes, start, ends in zip(demo.landscapes.picture().axes, starts, arrived, strict=True):
        lines = curves(axes)
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [text.partition(":")[0] for text in texts] == NAMES
        for name in NAMES:
            path = np.stack(lines[name].get_data(), axis=1)
            assert path[0].tolist() == list(start)
            assert ends(path)[-2:].tolist() == [False, True]
            assert lines[name].get_color() == demo.style.COLORS[name]
        found.append({name: len(lines[name].get_xdata()) - 1 for name in NAMES})
        shown = [int(text.partition(": ")[2].split(" steps")[0]) for text in texts]
        assert shown == [*found[-1].values()]
    bowl, saddle, plateau = found
    assert bowl["Momentum"] < bowl["SGD"] / 2
    assert max(saddle.values()) < 200
    assert max(plateau["RMSprop"], plateau["Adam"]) < min(plateau["SGD"], plateau["Momentum"]) / 5


# The command.


def test_python_m_schuss_demo_prints_the_table_and_draws_the_pictures(tmp_path: Path) -> None:
    done = run_python("-W", "error", "-m", "schuss", "demo", "--epochs", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in NAMES:
        assert f"\n {name} " in done.stdout
    assert "same parameters, to the last bit" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("The pictures are in schuss-demo: ")
    assert [path.name for path in tmp_path.iterdir()] == ["schuss-demo"]
    assert sorted(path.name for path in (tmp_path / "schuss-demo").iterdir()) == PICTURES
    for name in PICTURES:
        assert name in last
        content = (tmp_path / "schuss-demo" / name).read_bytes()
        assert content.startswith(PNG)
        width, height = struct.unpack(">II", content[16:24])
        assert (width, 700 < height < 1600) == (1600, True)


def test_out_names_the_folder_and_a_reference_that_differs_fails_the_demo(
    demo: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Nearly(schuss.reference.Optimizer):
        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            super().step(grads, scale=scale)
            if self.steps == 22:
                last = self.params["W1"]
                last.flat[-1] = np.nextafter(last.flat[-1], np.float32(np.inf))

    *others, adam = demo.optimizers.CONTENDERS
    contenders = (*others, replace(adam, reference=partial(Nearly, "adam")))
    monkeypatch.setattr(demo.optimizers, "CONTENDERS", contenders)
    folder = tmp_path / "new" / "[bold]pictures"
    assert cli.main(["demo", "--epochs", "1", "--out", str(folder)]) == 1
    output = capsys.readouterr().out
    assert "different parameters: Adam.\n" in output
    assert f"The pictures are in {folder}: " in output
    assert sorted(path.name for path in folder.iterdir()) == PICTURES


def test_a_folder_that_cannot_be_made_is_refused_before_any_training(
    demo: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "run", lambda **options: pytest.fail("it trains"))
    file = tmp_path / "file"
    file.touch()
    for out, reason in (file, "File exists"), (file / "below", "Not a directory"):
        assert cli.main(["demo", "--out", str(out)]) == 2
        assert capsys.readouterr().err == (
            f"schuss demo: --out is {str(out)!r}, expected a folder to write to: {reason}\n"
        )
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "missing", ["matplotlib", "rich", "sklearn", "threadpoolctl", "tqdm", "vega_datasets"]
)
def test_a_missing_extra_is_one_clear_line(missing: str, tmp_path: Path) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}: raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Missing())
from schuss import cli
sys.exit(cli.main(["demo"]))
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"schuss demo needs {missing}, which is missing; from the checkout of schuss: "
        'pip install ".[demo]"\n'
    )
    assert not list(tmp_path.iterdir())


EXTRA = {"sklearn", "scipy", "pandas", "matplotlib", "rich", "tqdm"}
LATE = {"numpy.random", "queue", "schuss.landscapes", "schuss.schedules", "schuss.training"}


@pytest.mark.parametrize(("imported", "left_out"), [("schuss.cli", EXTRA), ("numpy, schuss", LATE)])
def test_importing_schuss_imports_only_what_every_program_needs(
    imported: str, left_out: set[str], tmp_path: Path
) -> None:
    code = f"import sys, {imported}; print({left_out} & set(sys.modules))"
    assert run_python("-c", code, cwd=tmp_path).stdout == "set()\n"


def test_the_command_says_its_version_and_without_a_word_how_it_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"schuss {schuss.__version__}\n"
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: schuss")


@pytest.mark.parametrize(
    ("option", "value", "range_"),
    [
        ("--epochs", "0", "1 to "),
        ("--epochs", "two", "1 to "),
        ("--seed", "-1", "0 to 4294967295"),
        ("--seed", "4294967296", "0 to "),
    ],
)
def test_an_option_out_of_range_is_refused_before_any_training(
    option: str, value: str, range_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", option, value])
    assert stop.value.code == 2
    message = f"argument {option}: {value!r} is not an integer from {range_}"
    assert message in capsys.readouterr().err
