"""The demo: its gradients are right, its optimizers learn, and its command says what it did."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import cli
from schuss.network import accuracy, cost_and_gradients, initial_parameters

Network = dict[str, Any]
NAMES = ["SGD", "Momentum", "RMSprop", "Adam"]
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
def results(demo: ModuleType) -> list[Any]:
    """Return what `schuss demo` trains when it is given no option."""
    options = cli._parser().parse_args(["demo"])
    found: list[Any] = demo.compare(epochs=options.epochs, seed=options.seed)
    return found


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


# The network.


def test_all_gradients_agree_with_central_differences(
    network: Network, batch: tuple[Any, Any]
) -> None:
    _, gradients = cost_and_gradients(network, *batch, l2=L2)
    assert set(gradients) == set(network) == {"W1", "b1", "W2", "b2", "W3", "b3"}
    h = 1e-5
    for name, p in network.items():
        differences = np.empty_like(p)
        for i in np.ndindex(p.shape):
            value = p[i]
            p[i] = value + h
            above, _ = cost_and_gradients(network, *batch, l2=L2)
            p[i] = value - h
            below, _ = cost_and_gradients(network, *batch, l2=L2)
            p[i] = value
            differences[i] = (above - below) / (2 * h)
        np.testing.assert_allclose(gradients[name], differences, rtol=1e-6, atol=1e-9)


def test_the_l2_cost_is_that_of_the_mission(network: Network, batch: tuple[Any, Any]) -> None:
    plain, plain_gradients = cost_and_gradients(network, *batch)
    cost, gradients = cost_and_gradients(network, *batch, l2=L2)
    squares = sum((network[name] ** 2).sum() for name in ("W1", "W2", "W3"))
    assert cost - plain == pytest.approx(L2 / (2 * BATCH) * squares, rel=1e-12)
    for name, p in network.items():
        extra = L2 / BATCH * p if name.startswith("W") else 0.0
        np.testing.assert_allclose(gradients[name], plain_gradients[name] + extra, rtol=1e-12)


def test_the_cost_is_the_mean_cross_entropy_in_nats(
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
    hits = [probabilities[i].argmax() == label for i, label in enumerate(labels)]
    assert 0 < sum(hits) < BATCH
    assert accuracy(network, x, labels) == sum(hits) / BATCH


def test_logits_of_any_size_overflow_nowhere(network: Network, batch: tuple[Any, Any]) -> None:
    network["W3"] *= 1e6
    cost, gradients = cost_and_gradients(network, *batch)
    assert 1e4 < cost < np.inf
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_gradients_have_the_dtype_and_shape_of_the_parameters(batch: tuple[Any, Any]) -> None:
    x, labels = batch
    params = initial_parameters((5, 7, 6, 4), np.random.default_rng(0))
    _, gradients = cost_and_gradients(params, x.astype(np.float32), labels, l2=L2)
    for name, p in params.items():
        assert p.dtype == gradients[name].dtype == np.float32
        assert p.shape == gradients[name].shape


def test_weights_start_with_hes_deviation_and_biases_with_zero() -> None:
    params = initial_parameters((400, 300, 10), np.random.default_rng(0))
    assert params["W1"].std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert not params["b1"].any()


# The training.


def test_adam_reaches_97_percent_on_the_test_images(results: list[Any]) -> None:
    (adam,) = (result for result in results if result.contender.name == "Adam")
    assert adam.test_accuracy >= 0.97


def test_every_optimizer_learns(results: list[Any]) -> None:
    assert [result.contender.name for result in results] == NAMES
    for result in results:
        assert result.test_accuracy > 0.95
        assert result.training_accuracy > 0.99
        assert result.epoch_costs[-1] < 0.1 < 2 < result.fused.costs[0]


def test_schuss_and_the_numpy_twin_end_with_the_same_bits(results: list[Any]) -> None:
    for result in results:
        assert result.same_bits
        assert result.fused.params is not result.twin.params
        assert result.fused.costs == result.twin.costs


def test_all_trainings_start_alike_and_each_ends_elsewhere(results: list[Any]) -> None:
    assert len({result.fused.costs[0] for result in results}) == 1
    assert len({result.fused.params["W1"].tobytes() for result in results}) == len(NAMES)


def test_the_digits_are_split_in_two_with_each_class_alike(demo: ModuleType) -> None:
    digits = demo.Digits.load(3)
    assert (len(digits.x), len(digits.x_test)) == (1408, 389)
    assert digits.x.dtype == np.float32
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    share, share_tested = (
        np.bincount(labels, minlength=10) / len(labels)
        for labels in (digits.labels, digits.labels_test)
    )
    np.testing.assert_allclose(share, share_tested, atol=0.003)
    np.testing.assert_array_equal(digits.x, demo.Digits.load(3).x)
    assert not np.array_equal(digits.x, demo.Digits.load(4).x)


def test_the_table_has_a_row_of_results_for_each_optimizer(
    demo: ModuleType, results: list[Any]
) -> None:
    console = pytest.importorskip("rich.console").Console(width=80)
    with console.capture() as capture:
        console.print(demo.table(results))
    lines = capture.get().splitlines()
    for result in results:
        (row,) = (line.split() for line in lines if line.split()[:1] == [result.contender.name])
        assert row[1:] == [
            f"{np.mean(result.fused.costs[-22:]):.3f}",
            f"{100 * result.training_accuracy:.1f}%",
            f"{100 * result.test_accuracy:.1f}%",
            f"{result.fused.gradient_seconds + result.fused.step_seconds:.2f}",
            *(
                f"{100 * run.step_seconds / (run.gradient_seconds + run.step_seconds):.1f}%"
                for run in (result.fused, result.twin)
            ),
        ]


def test_the_picture_has_the_four_cost_curves_and_says_what_they_are(
    demo: ModuleType, results: list[Any]
) -> None:
    (axes,) = demo.picture(results).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "cost J (nats per example)")
    curves = {
        line.get_color(): line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 30
    }
    labels = {text.get_color(): text for text in axes.texts}
    for result in results:
        color = result.contender.color
        np.testing.assert_array_equal(curves[color], result.epoch_costs)
        assert labels[color].get_text().startswith(result.contender.name)
    heights = sorted(labels[result.contender.color].xy[1] for result in results)
    assert all(high / low > 1.2 for low, high in pairwise(heights))


# The command.


def test_python_m_schuss_demo_prints_the_table_and_writes_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
    done = run_python("-m", "schuss", "demo", "--epochs", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in NAMES:
        assert f"\n {name} " in done.stdout
    assert "same parameters, to the last bit" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["schuss-demo.png"]
    assert (tmp_path / "schuss-demo.png").read_bytes().startswith(PNG)


def test_out_names_the_picture_and_its_format(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "[bold]costs.svg"
    assert cli.main(["demo", "--epochs", "1", "--out", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert b"<svg" in path.read_bytes()


def test_a_twin_that_differs_is_named_and_fails_the_demo(
    demo: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nearly(p: Any, *arrays: Any, **options: Any) -> None:
        adam.formula(p, *arrays, **options)
        if options["step"] == 22:
            p.flat[-1] = np.nextafter(p.flat[-1], np.float32(np.inf))

    *others, adam = demo.CONTENDERS
    monkeypatch.setattr(demo, "CONTENDERS", (*others, replace(adam, formula=nearly)))
    assert cli.main(["demo", "--epochs", "1", "--out", str(tmp_path / "costs.png")]) == 1
    assert "different parameters: Adam.\n" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "rich", "threadpoolctl", "tqdm"])
def test_a_missing_extra_is_one_clear_line(missing: str, tmp_path: Path) -> None:
    pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
    code = f"""
import sys
from schuss import cli

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing())
sys.exit(cli.main(["demo"]))
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"schuss demo needs {missing}, which is missing; from the checkout of schuss: "
        'pip install ".[demo]"\n'
    )


def test_importing_schuss_or_its_command_imports_nothing_of_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys, schuss, schuss.cli\n"
        "print({'sklearn', 'scipy', 'matplotlib', 'rich', 'tqdm'} & set(sys.modules))"
    )
    assert run_python("-c", code, cwd=tmp_path).stdout == "set()\n"


def test_version_is_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"schuss {schuss.__version__}\n"


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: schuss")
    assert "demo" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "argument --epochs: '0' is no integer from 1 to "),
        (["--epochs", "two"], "argument --epochs: 'two' is no integer from 1 to "),
        (["--seed", "-1"], "argument --seed: '-1' is no integer from 0 to 4294967295"),
        (["--seed", "4294967296"], "argument --seed: '4294967296' is no integer from 0 to "),
        (["--out", "costs.doc"], "argument --out: 'costs.doc' does not end in .pdf, .png, .svg"),
        (["--out", "nowhere/costs.png"], "argument --out: 'nowhere' is no directory to write to"),
    ],
)
def test_an_option_out_of_range_is_refused_before_any_training(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
