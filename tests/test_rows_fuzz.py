"""Random calls with rows: always the bits of the dense step, or of the reference's lazy one.

`SCHUSS_FUZZ=100 pytest tests/test_rows_fuzz.py` draws 100 times more examples, new ones each time.
"""

import copy
import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import schuss
from schuss import _core, schedules
from support.arrays import Array, dtype_of, equal, leaves, numbers
from support.execution import execution
from support.optimizers import KINDS, OTHER_VALUES, assert_same, make_optimizer, make_reference
from support.rows import dense_of, random_rows

TIMES = int(os.environ.get("SCHUSS_FUZZ", "1"))

SHAPES: list[tuple[int, ...]] = [
    *((7,), (1, 1), (12, 3), (5, 2, 3), (3, 0), (0, 4), (3, 4097)),
    *((40, 128), (70, 64), (33, 17), (9, 16)),
]
FORMATS: list[tuple[str, dict[str, Any]]] = [
    *(("float32", {}), ("float32", {}), ("float32", {}), ("float64", {}), ("float16", {})),
    *(("float32", {"state_dtype": "8bit"}), ("float32", {"state_dtype": "bfloat16"})),
    *(("bfloat16", {"master": "float32"}), ("bfloat16", {"master": "float24"})),
    *(("bfloat16", {"round_params": "random", "state_dtype": "8bit"}), ("complex64", {})),
]
GROUPS: list[dict[str, Any]] = [{}, {}, {"lr": 0.5}, {"weight_decay": 0.25, "maximize": True}]
RATES = [0.0, 0.1, 1e-42, schedules.Cosine(0.3, 20), schedules.Linear(0.0, 1.0, 9)]
OPTIONS: dict[str, list[Any]] = {
    "lr": RATES,
    "clip_norm": [None, 0.5],
    "clip_value": [None, 0.5, 0.0],
    "maximize": [False, True],
    "bounds": [None, (-0.5, 0.5)],
    "average": [None, 0.0, 0.9],
    "average_bias_correction": [False, True],
    "nonfinite": ["propagate", "skip", "raise"],
    "clear_grads": [False, True],
    "seed": [0, 1],
}
CALLS = ["step", "step", "steps", "accumulate", "set", "rows", "flush", "read", "copy", "keep"]
CALLS += ["back", "group", "write", "processor"]


class Training:
    """An optimizer that gets rows; and a model, to which the same is done, with its rows dense."""

    def __init__(self, name: str, mode: str, rng: np.random.Generator) -> None:
        self.name, self.is_lazy, self.rng = name, mode == "lazy", rng
        refuses = KINDS[name].refuses
        accepted = [each for each in FORMATS if refuses.isdisjoint((each[0], *each[1]))]
        dtype, formats = accepted[rng.integers(len(accepted))]
        self.dtype = dtype_of(dtype)
        shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=rng.integers(1, 4))]
        if self.is_lazy and "8bit" in formats.values():  # rows are whole blocks, or have no code
            shapes = [(40, 128), (9, 16)]
        params = {str(i): self.numbers(shape) for i, shape in enumerate(shapes)}
        of_groups = [GROUPS[i] for i in rng.integers(len(GROUPS), size=len(shapes))]
        if self.dtype.kind == "c":
            of_groups = [{}] * len(shapes)
        options = {**formats, "groups": lambda key: of_groups[int(key)]}
        for each in rng.choice(self.names(), 5).tolist():
            options[each] = self.value_of(each)
        copied = copy.deepcopy(params)
        self.optimizer = make_optimizer(name, params, rows=mode, **options)
        if self.is_lazy:
            self.model: Any = make_reference(name, copied, rows=mode, **options)
        else:
            self.model = make_optimizer(name, copied, **options)
        self.kept: list[Any] = []

    def numbers(self, shape: tuple[int, ...]) -> Array:
        special = bool(self.rng.random() < 0.2)
        return numbers(self.rng, shape, self.dtype, special=special)

    def names(self) -> list[str]:
        """Return what can change; complex numbers have no order."""
        own = [each for each in KINDS[self.name].defaults if each in OTHER_VALUES]
        ordered = {"clip_value", "bounds"} if self.dtype.kind == "c" else set()
        return sorted({*own, *OPTIONS} - ordered)

    def value_of(self, name: str) -> Any:
        values = OPTIONS.get(name)
        if values is None:
            values = [KINDS[self.name].defaults[name], OTHER_VALUES[name]]
        return values[self.rng.integers(len(values))]

    def grads(self) -> dict[str, Any]:
        """Return mostly rows; sometimes a dense gradient, or none."""
        grads: dict[str, Any] = {}
        dtype = np.complex64 if self.dtype.kind == "c" else np.float32
        for key, param in self.optimizer.params.items():
            special = bool(self.rng.random() < 0.05)
            index = [np.int32, np.int64][self.rng.integers(2)]
            count = int(self.rng.integers(0, 6))
            rows = random_rows(
                self.rng, param.shape, count, dtype=dtype, index=index, special=special
            )
            how = self.rng.random()
            grads[key] = None if how < 0.1 else dense_of(rows, param) if how < 0.2 else rows
        return grads

    def denser(self, grads: dict[str, Any]) -> dict[str, Any]:
        """Return copies for the model."""
        if self.is_lazy:
            return copy.deepcopy(grads)
        params = self.model.params
        return {key: copy.copy(dense_of(grad, params[key])) for key, grad in grads.items()}

    def step(self) -> None:
        """Make a step, from the sum if there is one."""
        grads: Any = None if self.optimizer.accumulated else self.grads()
        scale = float(self.rng.choice([1.0, 1.0, 0.3, -2.0, 0.0]))
        try:
            self.model.step(None if grads is None else self.denser(grads), scale=scale)
        except FloatingPointError:
            with pytest.raises(FloatingPointError, match="has a NaN or an infinity"):
                self.optimizer.step(grads, scale=scale)
            self.set_both("nonfinite", "propagate")
        else:
            self.optimizer.step(grads, scale=scale)
            ours, theirs = self.optimizer.last, self.model.last
            assert repr(ours.grad_norm) == repr(theirs.grad_norm)
            assert (ours.clipped, ours.skipped) == (theirs.clipped, theirs.skipped)

    def steps(self) -> None:
        for _ in range(self.rng.integers(40)):
            self.step()

    def accumulate(self) -> None:
        for _ in range(self.rng.integers(1, 4)):
            grads = self.grads()
            self.model.accumulate(self.denser(grads), scale=0.5)
            self.optimizer.accumulate(grads, scale=0.5)

    def set(self) -> None:
        name = str(self.rng.choice(self.names()))
        self.set_both(name, self.value_of(name))

    def set_both(self, name: str, value: Any) -> None:
        try:
            setattr(self.optimizer, name, value)
        except ValueError:  # each of the groups has its own, or they would need other states
            return
        if self.is_lazy:
            self.model.set(**{name: value})
        else:
            setattr(self.model, name, value)

    def group(self) -> None:
        number = int(self.rng.integers(len(self.optimizer.param_groups)))
        name = str(self.rng.choice(["lr", "weight_decay", "frozen"]))
        value = bool(self.rng.integers(2)) if name == "frozen" else 0.2
        self.optimizer.param_groups[number][name] = value
        if self.is_lazy:
            self.model.set(group=number, **{name: value})
        else:
            self.model.param_groups[number][name] = value

    def rows(self) -> None:
        """Read some rows; those of the others may stay behind."""
        indices: dict[str, Any] = {}
        for key, param in self.optimizer.params.items():
            size = self.rng.integers(0, 4, self.rng.integers(1, 3)) * bool(len(param))
            some = self.rng.integers(0, max(len(param), 1), size)
            indices[key] = None if self.rng.random() < 0.2 else some.astype(np.int32)
        got = self.optimizer.rows(indices)
        for key, param in self.model.params.items():
            expected = None if indices[key] is None else param[indices[key]]
            assert (got[key] is None) == (expected is None)
            assert expected is None or equal([got[key]], [expected])

    def flush(self) -> None:
        self.optimizer.flush()
        assert equal(leaves(self.optimizer.params), leaves(self.model.params))

    def drop_sums(self) -> None:
        """Lazy sums of rows are neither saved nor copied."""
        if self.is_lazy:
            self.optimizer.zero_grad()
            self.model.zero_grad()

    def read(self) -> None:
        self.drop_sums()
        self.optimizer.state_dict()
        assert equal(leaves(self.optimizer.params), leaves(self.model.params))

    def copy(self) -> None:
        self.drop_sums()
        how = self.rng.integers(3)
        if how == 0:
            self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        else:
            self.optimizer = (copy.copy, copy.deepcopy)[how - 1](self.optimizer)

    def keep(self) -> None:
        if not self.is_lazy:
            self.kept.append(
                [copy.deepcopy(it.state_dict()) for it in (self.optimizer, self.model)]
            )

    def back(self) -> None:
        if self.kept:
            for each, state in zip((self.optimizer, self.model), self.kept[-1], strict=True):
                each.load_state_dict(state)

    def write(self) -> None:
        """Users may write to the parameters when all rows are up to date."""
        self.optimizer.flush()
        for key, param in self.optimizer.params.items():
            param[...] = self.numbers(param.shape)
            self.model.params[key][...] = param
        for each in (self.optimizer, self.model):
            if each.copies is not None:
                each.write_copies()

    def processor(self) -> None:
        schuss.set_num_threads(int(self.rng.integers(1, 4)))
        schuss.set_simd(str(self.rng.choice(schuss.available_simd())))
        _core.set_tile_elements(int(self.rng.choice([16, 64, 16384])))


@pytest.mark.parametrize("mode", ["exact", "lazy"])
@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=12 * TIMES,
    derandomize=TIMES == 1,
    deadline=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32), calls=st.lists(st.sampled_from(CALLS), max_size=30))
def test_rows_have_the_bits_of_their_model_after_any_calls(
    name: str, mode: str, seed: int, calls: list[str]
) -> None:
    # Hypothesis draws the same seeds for each name and mode.
    rng = np.random.default_rng([seed, *f"{name} {mode}".encode()])
    with execution(threads=schuss.num_threads(), tile=64, threshold=0):
        training = Training(name, mode, rng)
        for call in calls:
            getattr(training, call)()
        training.flush()
        assert_same(training.optimizer, training.model)
