"""A step in each combination of number formats, and its memory limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np

from benchmarks.contenders import ADAM, ONE_THREAD, SCHUSS, WITH_PLAIN, in_float32
from benchmarks.harness import (
    EIGHT_BITS,
    Case,
    Contender,
    Problem,
    Record,
    Rule,
    Settings,
    compare_all,
    ordinary,
)
from benchmarks.peers import (
    BITSANDBYTES,
    BITSANDBYTES_NEAREST,
    BLOCK_OF_TORCHAO,
    DEEPSPEED_CAST,
    DEEPSPEED_HALF,
    DEEPSPEED_WHOLE,
    NUMEXPR,
    TORCH_CAST,
    TORCH_COMPILED,
    TORCH_FUSED,
    TORCH_HALF,
    TORCHAO,
    installed,
)

SIZES = (16_777_216,)
CHECK_SIZE, CHECK_SIZE_OF_BLOCKS = 100_003, 131_072
"""Adam with state of 8 bits needs many elements, and torchao a multiple of its block."""
FAST = replace(ADAM, hyperparameters={**ADAM.hyperparameters, "lr": 0.1})
"""Hyperparameters of the check: usual steps are too small for 16 bits."""
FAST_IN_8_BITS = replace(FAST, hyperparameters={**FAST.hyperparameters, "eps": 0.1})
"""For gradients that are not close to 1e-8, and few steps."""


@dataclass(frozen=True)
class Formats:
    """The dtypes of a problem's arrays, and the peers that support them."""

    param: str
    grad: str
    state: str
    copies: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    """How the bits of a parameter are kept or rounded that its dtype does not have."""
    peers: Sequence[Contender] = ()

    @property
    def labels(self) -> Mapping[str, str]:
        param = ", ".join([self.param, *(f"{name}={self.options[name]}" for name in self.options)])
        return {"param": param, "grad": self.grad, "state": self.state, "copies": self.copies}

    @property
    def needs_ml_dtypes(self) -> bool:
        return "bfloat16" in (self.param, self.grad, self.state, self.copies)

    def posed(self, size: int, rule: Rule = ADAM) -> Problem:
        options: dict[str, Any] = dict(self.options)
        if self.state in ("bfloat16", EIGHT_BITS):
            options["state_dtype"] = self.state
        if self.param == "complex64" and self.state == "float32":
            options["complex"] = "modulus"
        if self.copies:
            options["copies"] = self.copies
        param, grad = (ordinary(size).astype(dtype_of(name)) for name in (self.param, self.grad))
        return Problem(rule, [param], [grad], options=options)

    def posed_to_check(self, size: int) -> Problem:
        if self.state == EIGHT_BITS:
            return self.posed(size, FAST_IN_8_BITS)
        return self.posed(
            size, FAST if any("16" in name for name in self.labels.values()) else ADAM
        )

    def bytes_moved(self, size: int) -> float:
        """Return the bytes an element, to a tenth."""
        moved = round(self.posed(size).bytes_moved / size, 1)
        return int(moved) if moved == int(moved) else moved


DEEPSPEED_IN_FLOAT32 = in_float32(DEEPSPEED_WHOLE)
HALF, IN_8_BITS = ("bfloat16", "bfloat16", "float32"), ("bfloat16", "bfloat16", EIGHT_BITS)
EXACT, BY_24_BITS, AT_RANDOM = (
    {"master": "float32"},
    {"master": "float24"},
    {"round_params": "random"},
)
COMBINATIONS = (
    Formats("float32", "float32", "float32", peers=[TORCH_FUSED, TORCH_COMPILED, NUMEXPR]),
    Formats("float32", "bfloat16", "float32"),
    Formats("float32", "float16", "float32"),
    Formats(*HALF, peers=[DEEPSPEED_HALF]),
    Formats("float16", "float16", "float32"),
    Formats("float32", "float32", "bfloat16"),
    Formats("bfloat16", "bfloat16", "bfloat16", peers=[TORCH_HALF, DEEPSPEED_HALF]),
    Formats("float32", "float32", "float32", copies="bfloat16", peers=[TORCH_CAST, DEEPSPEED_CAST]),
    Formats(*HALF, options=EXACT, peers=[DEEPSPEED_IN_FLOAT32]),
    Formats("float32", "float32", EIGHT_BITS, peers=[BITSANDBYTES, TORCHAO]),
    Formats(*IN_8_BITS, options=EXACT, peers=[DEEPSPEED_IN_FLOAT32]),
    Formats(*IN_8_BITS, options=BY_24_BITS, peers=[DEEPSPEED_IN_FLOAT32]),
    Formats(*IN_8_BITS, options=AT_RANDOM, peers=[BITSANDBYTES_NEAREST, TORCHAO]),
    Formats("float64", "float64", "float64", peers=[TORCH_FUSED]),
    Formats("complex64", "complex64", "complex64"),
    Formats("complex64", "complex64", "float32"),
)


def case_of(formats: Formats, size: int) -> Case:
    in_blocks = formats.state == EIGHT_BITS
    peers = [c for c in formats.peers if c is not TORCHAO or size % BLOCK_OF_TORCHAO == 0]
    return Case(
        {**formats.labels, "bytes": formats.bytes_moved(min(size, CHECK_SIZE)), "size": size},
        ADAM,
        partial(formats.posed, size),
        partial(
            formats.posed_to_check, CHECK_SIZE_OF_BLOCKS if in_blocks else min(size, CHECK_SIZE)
        ),
        contenders=peers,
    )


def dtypes(settings: Settings) -> list[Record]:
    """One step of one array in each combination of formats: Adam; bytes are those an element."""
    present = [f for f in COMBINATIONS if not f.needs_ml_dtypes or installed("ml_dtypes")]
    cases = [case_of(formats, size) for size, formats in product(settings.sizes or SIZES, present)]
    return compare_all("dtypes", cases, settings, (SCHUSS, ONE_THREAD), WITH_PLAIN)


def dtype_of(name: str) -> np.dtype[Any]:
    # NumPy knows the name bfloat16 only after ml_dtypes has registered it.
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
