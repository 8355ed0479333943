"""A step in each combination of number formats, and its memory limit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np

from benchmarks.contenders import ADAM, ONE_THREAD, SCHUSS, WITH_PLAIN
from benchmarks.harness import (
    Case,
    Contender,
    Problem,
    Record,
    Rule,
    Settings,
    compare,
    ordinary,
    tracked,
)
from benchmarks.peers import TORCH_CAST, TORCH_FUSED, TORCH_HALF, installed

SIZES = (16_777_216,)
CHECK_SIZE = 100_003
FAST = replace(ADAM, hyperparameters={**ADAM.hyperparameters, "lr": 0.1})
"""Hyperparameters of the check: usual steps are too small for 16 bits."""


@dataclass(frozen=True)
class Formats:
    """The dtypes of a problem's arrays, and the peer that supports them."""

    param: str
    grad: str
    state: str
    copies: str = ""
    peer: Contender | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        names = {"param": self.param, "grad": self.grad, "state": self.state}
        return {**names, "copies": self.copies}

    def posed(self, size: int, rule: Rule = ADAM) -> Problem:
        options: dict[str, Any] = {}
        if self.state == "bfloat16":
            options["state_dtype"] = self.state
        if self.param == "complex64" and self.state == "float32":
            options["complex"] = "modulus"
        if self.copies:
            options["copies"] = self.copies
        param, grad = (ordinary(size).astype(_dtype(name)) for name in (self.param, self.grad))
        return Problem(rule, [param], [grad], options=options)


COMBINATIONS = (
    Formats("float32", "float32", "float32", peer=TORCH_FUSED),
    Formats("float32", "bfloat16", "float32"),
    Formats("float32", "float16", "float32"),
    Formats("bfloat16", "bfloat16", "float32"),
    Formats("float16", "float16", "float32"),
    Formats("float32", "float32", "bfloat16"),
    Formats("bfloat16", "bfloat16", "bfloat16", peer=TORCH_HALF),
    Formats("float32", "float32", "float32", copies="bfloat16", peer=TORCH_CAST),
    Formats("float64", "float64", "float64", peer=TORCH_FUSED),
    Formats("complex64", "complex64", "complex64"),
    Formats("complex64", "complex64", "float32"),
)


def dtypes(settings: Settings) -> list[Record]:
    """One step of one array in each combination of formats: Adam; bytes are those an element."""
    present = [
        formats
        for formats in COMBINATIONS
        if "bfloat16" not in formats.labels.values() or installed("ml_dtypes")
    ]
    records = []
    for size, formats in tracked("dtypes", list(product(settings.sizes or SIZES, present))):
        moved = formats.posed(1).bytes_moved
        case = Case(
            {**formats.labels, "bytes": moved, "size": size},
            ADAM,
            partial(formats.posed, size),
            partial(formats.posed, min(size, CHECK_SIZE), FAST),
        )
        contenders = [SCHUSS, ONE_THREAD, *filter(None, [formats.peer])]
        records += compare(case, contenders, WITH_PLAIN, settings.rounds)
    return records


def _dtype(name: str) -> np.dtype[Any]:
    # NumPy knows the name bfloat16 only after ml_dtypes has registered it.
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
