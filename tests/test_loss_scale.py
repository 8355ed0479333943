"""The dynamic scale of a loss: how it changes, what it does to a step, what it refuses."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss

FINITE, INFINITE = np.array([1.0, -2.0], np.float32), np.array([1.0, np.inf], np.float32)


def after(scaler: schuss.DynamicLossScale, pattern: str) -> list[float]:
    """Return the scale after each update: "." is a finite gradient, "x" one that overflows."""
    optimizer = schuss.SGD(np.zeros(2, np.float32), lr=0.0)
    scales = []
    for sign in pattern:
        assert scaler.step(optimizer, FINITE if sign == "." else INFINITE) == (sign == ".")
        scaler.update()
        scales.append(scaler.value)
    return scales


# How the scale changes.


def test_the_scale_falls_at_an_overflow_and_grows_after_enough_steps() -> None:
    scaler = schuss.DynamicLossScale(1024.0, growth_interval=3)
    for pattern, scales in [
        ("...", [1024, 1024, 2048]),
        ("..x", [2048, 2048, 1024]),
        ("..x", [1024, 1024, 512]),  # an overflow starts the count again
        ("xx", [256, 128]),
        ("......", [128, 128, 256, 256, 256, 512]),
    ]:
        assert after(scaler, pattern) == scales
    assert "DynamicLossScale(512.0" in repr(scaler)
    # A count that is loaded, and beyond the interval, does not stop growth.
    scaler.load_state_dict(scaler.state_dict() | {"good_steps": 7})
    assert after(scaler, "....") == [1024, 1024, 1024, 2048]
    options: Any = {"growth_factor": 1.5, "backoff_factor": 0.25, "growth_interval": 1}
    assert after(schuss.DynamicLossScale(100.0, **options), "..x.") == [150, 225, 56.25, 84.375]


def test_the_defaults_are_those_of_torch() -> None:
    scaler = schuss.DynamicLossScale()
    state = scaler.state_dict()
    assert scaler.value == 65536
    assert after(scaler, "." * 2000 + "x")[-3:] == [65536, 131072, 65536]
    torch = pytest.importorskip("torch")
    other = torch.amp.GradScaler("cpu")
    other.scale(torch.ones(()))
    assert other.get_scale() == state["scale"]
    for name in ("growth_factor", "backoff_factor", "growth_interval"):
        assert getattr(other, f"get_{name}")() == state[name]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings",
    [
        {"growth_interval": 1},
        {"growth_interval": 3, "init_scale": 1024.0},
        {"growth_interval": 4, "growth_factor": 4.0, "backoff_factor": 0.125},
    ],
)
def test_the_scale_changes_as_that_of_torch(settings: dict[str, Any], seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    value = rng.standard_normal(3).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(value.copy()))
    other, ours = torch.optim.SGD([theirs], lr=0.5), schuss.SGD(value, lr=0.5)
    scaler, its = torch.amp.GradScaler("cpu", **settings), schuss.DynamicLossScale(**settings)
    for _ in range(60):
        grad = rng.standard_normal(3).astype(np.float32)
        if rng.random() < 0.2:
            grad[rng.integers(3)] = rng.choice([np.inf, -np.inf, np.nan])
        loss = (theirs * torch.from_numpy(grad)).sum()
        theirs.grad = None
        scaler.scale(loss).backward()
        assert np.array_equal(theirs.grad.numpy(), its.scale(grad), equal_nan=True)
        scaler.step(other)
        scaler.update()
        its.step(ours, its.scale(grad))
        its.update()
        assert its.value == scaler.get_scale()
        np.testing.assert_allclose(value, theirs.detach().numpy(), rtol=1e-6)
    assert 0 < ours.skipped < 60


@pytest.mark.parametrize("pattern", ["..", ".x", "x.", "xx"])
def test_several_optimizers_between_updates_change_the_scale_once(pattern: str) -> None:
    scaler = schuss.DynamicLossScale(64.0, growth_interval=1)
    optimizers = [schuss.SGD(np.zeros(2, np.float32), lr=1.0) for _ in pattern]
    for optimizer, sign in zip(optimizers, pattern, strict=True):
        scaler.step(optimizer, FINITE if sign == "." else INFINITE)
        assert scaler.value == 64
    scaler.update()
    assert scaler.value == (32 if "x" in pattern else 128)
    # Each optimizer skips a step for its own gradients alone.
    assert [optimizer.steps for optimizer in optimizers] == [int(sign == ".") for sign in pattern]
    assert [optimizer.skipped for optimizer in optimizers] == [int(s == "x") for s in pattern]


def test_the_scale_stays_one_that_float32_can_hold_and_with_which_steps_can_be_made() -> None:
    assert after(schuss.DynamicLossScale(2.0**120, growth_interval=1), "." * 10)[-1] == 2.0**126
    scaler = schuss.DynamicLossScale(1.0, backoff_factor=2.0**-100)
    assert after(scaler, "x" * 20)[-1] > 0
    optimizer = schuss.SGD(np.zeros(1), lr=1.0)
    assert scaler.step(optimizer, scaler.scale(np.ones(1)))
    np.testing.assert_allclose(optimizer.params, -1.0)


# What it does to a step.


@pytest.mark.parametrize("scale", [1.0, 1024.0, 2.0**-10, 2.0**16])  # nothing is rounded
def test_a_step_undoes_the_scale(scale: float) -> None:
    scaler, optimizer = schuss.DynamicLossScale(scale), schuss.SGD(np.zeros(2), lr=0.5)
    assert scaler.scale(3.0) == 3 * scale
    grad = scaler.scale(np.array([1.0, -3.0]))
    assert scaler.step(optimizer, grad)
    assert optimizer.params.tolist() == [-0.5, 1.5]
    assert grad.tolist() == [scale, -3 * scale]


def test_clipping_sees_the_gradients_without_the_scale() -> None:
    optimizer = schuss.SGD(np.zeros(2), lr=1.0, clip_norm=2.5)
    scaler = schuss.DynamicLossScale(4096.0)
    scaler.step(optimizer, scaler.scale(np.array([3.0, 4.0])))
    assert optimizer.last == schuss.optimizers.Last(5.0, clipped=True, skipped=False)
    np.testing.assert_allclose(optimizer.params, [-1.5, -2.0], rtol=1e-6)


def test_the_scale_and_the_clip_factor_multiply_without_underflow() -> None:
    # The product of 1e-35 and 1.4e-6 is subnormal in float32.
    optimizer = schuss.SGD(np.zeros(2, np.float32), lr=1.0, clip_norm=0.005)
    scaler = schuss.DynamicLossScale(1e35)
    assert scaler.step(optimizer, np.array([3e38, -2e38], np.float32))
    expected = np.array([-3.0, 2.0]) / np.hypot(3, 2) * 0.005
    np.testing.assert_allclose(optimizer.params, expected, rtol=1e-5)


def test_small_gradients_in_float16_are_not_lost() -> None:
    # float16 cannot hold 1e-8, but it can hold 65536 times as much.
    optimizer, scaler = schuss.SGD(np.zeros(1, np.float32), lr=1.0), schuss.DynamicLossScale()
    assert np.float16(1e-8) == 0
    scaler.step(optimizer, scaler.scale(np.array([1e-8])).astype(np.float16))
    np.testing.assert_allclose(optimizer.params, -1e-8, rtol=1e-3)


def test_an_overflow_changes_only_the_number_of_skipped_steps() -> None:
    optimizer = schuss.Adam({"W": np.ones(2, np.float32)}, average=0.5, copies="float16")
    scaler = schuss.DynamicLossScale()
    scaler.step(optimizer, {"W": FINITE})

    def all_but_the_count() -> bytes:
        state = optimizer.state_dict() | {"skipped": 0}
        return pickle.dumps((optimizer.params, optimizer.copies, state))

    before = all_but_the_count()
    assert not scaler.step(optimizer, {"W": INFINITE})
    assert all_but_the_count() == before
    assert (optimizer.steps, optimizer.skipped) == (1, 1)
    assert optimizer.last is not None
    assert optimizer.last.skipped


@pytest.mark.parametrize("nonfinite", ["propagate", "raise", "skip"])
def test_the_scaler_overrides_the_optimizers_nonfinite_for_its_step_alone(nonfinite: Any) -> None:
    optimizer = schuss.SGD(np.zeros(2, np.float32), lr=1.0, nonfinite=nonfinite)
    scaler = schuss.DynamicLossScale(1.0)
    assert not scaler.step(optimizer, INFINITE)
    assert optimizer.params.tolist() == [0, 0]
    assert optimizer.nonfinite == nonfinite
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            optimizer.step(INFINITE)
    else:
        optimizer.step(INFINITE)
        assert optimizer.skipped == 1 + (nonfinite == "skip")
        assert np.isfinite(optimizer.params).all() == (nonfinite == "skip")


def test_accumulated_gradients_are_unscaled_together() -> None:
    optimizer, scaler = schuss.SGD(np.zeros(2), lr=1.0), schuss.DynamicLossScale(1024.0)
    for grad in ([1.0, 2.0], [4.0, 8.0]):
        optimizer.accumulate(scaler.scale(np.array(grad)))
    assert scaler.step(optimizer)
    assert optimizer.params.tolist() == [-5.0, -10.0]
    optimizer.accumulate(np.array([np.nan, 0.0]))
    optimizer.accumulate(np.ones(2))
    assert not scaler.step(optimizer)
    assert (optimizer.accumulated, optimizer.skipped) == (0, 1)
    assert optimizer.params.tolist() == [-5.0, -10.0]
    scaler.update()
    assert scaler.value == 512


# Saving.


def test_a_state_dict_has_everything_that_the_scale_depends_on() -> None:
    settings: dict[str, Any] = {"growth_factor": 4.0, "backoff_factor": 0.125, "growth_interval": 5}
    scaler, other = schuss.DynamicLossScale(256.0, **settings), schuss.DynamicLossScale()
    after(scaler, "..")
    saved = scaler.state_dict()
    assert saved == {"scale": 256.0, **settings, "good_steps": 2}
    other.load_state_dict(pickle.loads(pickle.dumps(saved)))
    pattern = "...x....."
    assert after(scaler, pattern) == after(other, pattern)
    assert other.value == 512
    assert saved["good_steps"] == 2


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda scaler: pickle.loads(pickle.dumps(scaler))]
)
def test_a_copy_continues_independently(how: Callable[[Any], Any]) -> None:
    scaler = schuss.DynamicLossScale(256.0, growth_interval=3)
    after(scaler, "..")
    other = how(scaler)
    assert after(other, ".") == [512]
    assert (scaler.value, other.value) == (256, 512)
    assert after(scaler, "x") == [128]


# Refusals.

BAD_SETTINGS: list[tuple[str, Any, type[Exception]]] = [
    *(("init_scale", bad, ValueError) for bad in (0.0, -1.0, math.inf, math.nan)),
    *(("init_scale", bad, TypeError) for bad in ("1", None)),
    *(("growth_factor", bad, ValueError) for bad in (1.0, 0.5, math.inf)),
    *(("backoff_factor", bad, ValueError) for bad in (1.0, 0.0, -0.5)),
    *(("growth_interval", bad, ValueError) for bad in (0, -3)),
    ("growth_factor", True, TypeError),
    ("backoff_factor", [0.5], TypeError),
    *(("growth_interval", bad, TypeError) for bad in (1.5, True)),
]


@pytest.mark.parametrize(("name", "bad", "error"), BAD_SETTINGS)
def test_settings_out_of_range_are_refused(name: str, bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^DynamicLossScale: {name} is .*, expected "):
        schuss.DynamicLossScale(**{name: bad})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        *(({name.removeprefix("init_"): bad}, error) for name, bad, error in BAD_SETTINGS),
        ({"good_steps": -1}, ValueError),
        ({"good_steps": 0.5}, TypeError),
        ({"more": 1}, ValueError),
        (None, TypeError),
        ([], TypeError),
    ],
)
def test_a_state_out_of_range_is_refused_and_changes_nothing(
    change: Any, error: type[Exception]
) -> None:
    scaler = schuss.DynamicLossScale(256.0, growth_interval=3)
    after(scaler, ".")
    before = scaler.state_dict()
    # The other values are valid; none of them may be loaded.
    state = {"scale": 8.0, "growth_factor": 4.0, "backoff_factor": 0.25}
    state |= {"growth_interval": 3, "good_steps": 2}
    with pytest.raises(error, match=r"^DynamicLossScale\.load_state_dict: .*, expected "):
        scaler.load_state_dict(state | change if isinstance(change, dict) else change)
    with pytest.raises(ValueError, match=r"^DynamicLossScale\.load_state_dict: state_dict has the"):
        scaler.load_state_dict({})
    assert scaler.state_dict() == before
    scaler.load_state_dict(state)
    assert scaler.state_dict() == state


def test_only_optimizers_are_stepped() -> None:
    scaler = schuss.DynamicLossScale()
    for bad in (None, np.ones(2), schuss.SGD, scaler):
        message = r"^DynamicLossScale\.step: optimizer is a \w+, expected an optimizer of schuss$"
        with pytest.raises(TypeError, match=message):
            scaler.step(bad, np.ones(2))  # type: ignore[arg-type]


def test_an_update_needs_a_step_that_was_not_refused() -> None:
    scaler = schuss.DynamicLossScale(64.0, growth_interval=1)
    optimizer = schuss.SGD(np.zeros(2), lr=1.0)

    def check_update_is_refused() -> None:
        message = (
            r"^DynamicLossScale\.update: there is no step since the last update, "
            r"expected at least one$"
        )
        with pytest.raises(RuntimeError, match=message):
            scaler.update()

    check_update_is_refused()
    for bad in (np.ones(3), None):
        with pytest.raises(ValueError, match=r"^SGD\.step: (grads has shape|there are no)"):
            scaler.step(optimizer, bad)
        check_update_is_refused()
    assert scaler.value == 64
    assert after(scaler, ".") == [128]
    check_update_is_refused()
    assert scaler.value == 128
