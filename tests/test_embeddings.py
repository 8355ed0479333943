"""The word vectors of `schuss embeddings`: gradients, examples, trainings, and what it prints."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schuss import cli

pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
from schuss.demo import embeddings
from schuss.demo.skip_gram import REACH, Examples, initial_tables, loss_and_gradients, nearest
from schuss.demo.source_text import Text


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.load(["numpy"], 2_000)


@pytest.fixture(scope="module")
def trainings(text: Text) -> dict[str, embeddings.Training]:
    return {way: embeddings.train(way, text, steps=100, seed=1) for way in embeddings.COLORS}


def test_all_gradients_agree_with_central_differences() -> None:
    rng = np.random.default_rng(0)
    vectors = {"center": rng.standard_normal((3, 4)), "context": rng.standard_normal((3, 6, 4))}
    loss, gradients = loss_and_gradients(vectors)
    logits = (vectors["context"] * vectors["center"][:, np.newaxis]).sum(axis=2)
    logits[:, 1:] *= -1
    assert loss == pytest.approx(np.log1p(np.exp(-logits)).sum() / 3, rel=1e-12)
    h = 1e-5
    for name, values in vectors.items():
        for i in np.ndindex(values.shape):
            value, losses = values[i], []
            for values[i] in (value + h, value - h):
                losses.append(loss_and_gradients(vectors)[0])
            values[i] = value
            difference = (losses[0] - losses[1]) / (2 * h)
            assert gradients[name][i] == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_a_text_is_the_words_of_a_package_by_number_without_those_outside_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny_package").mkdir()
    (tmp_path / "tiny_package" / "__init__.py").write_text("x_1 = über + 2.0  # be: über, be über")
    (tmp_path / "tiny_package" / "last.py").write_text("be()")
    monkeypatch.syspath_prepend(tmp_path)
    text = Text.load(["tiny_package", "no_such_package"], vocabulary=2)
    assert text.words == ["über", "be"]
    assert (text.counts.tolist(), text.numbers.tolist()) == ([3, 3], [0, 1, 0, 1, 0, 1])


def test_a_context_is_near_its_center_and_negatives_are_drawn_by_the_power_of_their_counts() -> (
    None
):
    words = 20_000  # each once: none is so frequent that it is left out
    numbers = np.arange(words, dtype=np.int32)
    text = Text([*map(str, numbers)], np.ones(words, np.int64), numbers)
    drawn = Examples(text, np.random.default_rng(0)).draw()
    distances = drawn["context"][:, 0] - drawn["center"]
    assert set(distances) == {*range(-REACH, 0), *range(1, REACH + 1)}

    numbers = np.repeat(np.arange(2, dtype=np.int32), [16_000, 1_000])
    examples = Examples(Text(["a", "b"], np.bincount(numbers), numbers), np.random.default_rng(0))
    negatives = np.concatenate([examples.draw()["context"][:, 1:].ravel() for _ in range(20)])
    assert negatives.mean() == pytest.approx(1 / (1 + 16**0.75), rel=0.05)


def test_frequent_words_are_left_out_so_that_rare_ones_are_seen_more_often(text: Text) -> None:
    examples = Examples(text, np.random.default_rng(0))
    centers = np.concatenate([examples.draw()["center"] for _ in range(20)])
    frequency = text.counts / text.counts.sum()
    shares = np.bincount(centers, minlength=2_000) / len(centers)
    assert shares[0] < frequency[0] / 4
    assert shares[1_000:].sum() > 1.5 * frequency[1_000:].sum()


def test_exact_steps_of_rows_learn_what_dense_steps_learn_and_lazy_ones_nearly(
    trainings: dict[str, embeddings.Training],
) -> None:
    dense, exact, lazy = (trainings[way] for way in ("dense", "exact", "lazy"))
    np.testing.assert_array_equal(exact.losses, dense.losses)
    initial = initial_tables(2_000, np.random.default_rng(1))
    for name, learned in dense.tables.items():
        assert exact.tables[name].tobytes() == learned.tobytes()
        assert lazy.tables[name].tobytes() != learned.tobytes()
        assert (learned != initial[name]).any(axis=1).mean() > 0.9
    assert dense.losses[:10].mean() > 4 > 3.5 > dense.losses[-10:].mean()
    assert lazy.losses[-10:].mean() == pytest.approx(dense.losses[-10:].mean(), rel=0.05)


def test_the_nearest_words_have_the_largest_cosines() -> None:
    table = np.array([[1, 0], [100, 100], [3, 0.1], [-1, 0]])
    assert nearest(["a", "b", "c", "d"], table, "a", 2) == ["c", "b"]


def test_the_picture_shows_the_losses_by_time_and_the_cosines_of_words(
    text: Text, trainings: dict[str, embeddings.Training]
) -> None:
    left, right, _ = embeddings.picture(text, trainings).axes
    lines: dict[str, Any] = {str(line.get_label()): line for line in left.lines}
    assert [*lines] == ["dense", "exact", "lazy"]
    for way, training in trainings.items():
        np.testing.assert_allclose(lines[way].get_xdata(), np.cumsum(training.seconds))
        assert lines[way].get_ydata()[0] == pytest.approx(training.losses[0])
    words = [label.get_text() for label in right.get_yticklabels()]
    first, second = (words.index(word) for word in ("sin", "cos"))
    vectors = trainings["exact"].tables["center"]
    sin, cos = (vectors[text.words.index(word)] for word in ("sin", "cos"))
    expected = sin @ cos / np.linalg.norm(sin) / np.linalg.norm(cos)
    cosines: Any = right.images[0].get_array()
    assert cosines[first, second] == pytest.approx(expected, rel=1e-5)


def test_schuss_embeddings_prints_tables_and_draws_the_picture(
    text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Text, "load", lambda: text)
    folder = tmp_path / "new"
    assert cli.main(["embeddings", "--steps", "5", "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "the same vectors, to the last bit" in output
    assert re.search(r"float32 +exact +\w+, ", output)
    content = (folder / "embeddings.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">I", content[16:20]) == (1600,)

    train: Any = embeddings.train

    def nearly(way: str, *args: Any, **options: Any) -> Any:
        found = train(way, *args, **options)
        if way == "exact":
            found.tables["context"].flat[-1] += 1
        return found

    monkeypatch.setattr(embeddings, "train", nearly)
    assert cli.main(["embeddings", "--steps", "2", "--out", str(folder)]) == 1
    assert "different vectors" in capsys.readouterr().out
