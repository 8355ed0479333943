"""A text to learn word vectors from: the source of packages that come with the `demo` extra.

Code, comments and docstrings have 7.7 million words.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "matplotlib")
VOCABULARY = 50_000


@dataclass(frozen=True)
class Text:
    """A text whose words are numbered from the most frequent one to the rarest."""

    words: list[str]
    """The different words, by number."""

    counts: npt.NDArray[np.int64]
    """How often each of them occurs."""

    numbers: npt.NDArray[np.int32]
    """The text: the number of each of its words."""

    @classmethod
    def load(cls, packages: Sequence[str] = PACKAGES, vocabulary: int = VOCABULARY) -> "Text":
        """Read the Python files of packages; words outside the vocabulary are left out."""
        text = [word for name in packages for word in _read(name)]
        frequent = Counter(text).most_common(vocabulary)
        number = {word: i for i, (word, _) in enumerate(frequent)}
        numbers = np.array([number[word] for word in text if word in number], np.int32)
        return cls([*number], np.array([count for _, count in frequent]), numbers)


def _read(package: str) -> list[str]:
    """Return the words of a package's Python files: names, and words of English."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    files = sorted(Path(spec.origin).parent.rglob("*.py"))
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return [word for text in texts for word in re.findall(r"[^\W\d]\w*", text)]
