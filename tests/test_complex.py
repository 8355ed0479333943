"""Complex parameters: their components are updated as in PyTorch, or their moduli as in optax."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import kernels, reference
from support.arrays import LAYOUTS, Array, equal, laid_out, numbers, same_bits
from support.cases import CASES, SECOND_MOMENTS, Case, run
from support.execution import execution
from support.optimizers import OPTIMIZERS, VARIANTS, every_variant, make_optimizer
from support.refusals import refusal

SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 511, 512, 513, 1541)

every_dtype = pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
# Each rule with both kinds of second moments.
every_case = pytest.mark.parametrize(
    ("case", "moduli"),
    [
        pytest.param(case, moduli, id=f"{case}{'-moduli' * moduli}")
        for case in CASES
        if case.options.keys().isdisjoint({"clip_value", "bounds"})  # which need an order
        for moduli in (False, True)[: 1 + bool(SECOND_MOMENTS.intersection(case.all_states))]
    ],
)


def parts(array: Array) -> Array:
    """Return the components of contiguous complex numbers as real ones."""
    return array.view(array.real.dtype)


# The bits of the reference.


@every_case
@every_dtype
@pytest.mark.usefixtures("level", "memory")
def test_every_size_and_offset_gives_the_references_bits(
    case: Case, moduli: bool, dtype: Any
) -> None:
    rng = np.random.default_rng(1)
    with execution(tile=512):
        for size in SIZES:
            for offset in (0, 1):
                param, *gradients = numbers(rng, (4, size + offset), dtype)[:, offset:]
                expected = run(case, reference, param.copy(), gradients, moduli=moduli)
                fused = run(case, kernels, param, gradients, moduli=moduli)
                assert equal(list(fused), list(expected)), (size, offset)


@every_case
@every_dtype
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("tile", [7, 512])
def test_every_layout_gives_the_references_bits(
    case: Case, moduli: bool, dtype: Any, tile: int
) -> None:
    rng = np.random.default_rng(2)
    values, *gradient_values = (numbers(rng, (21, 40), dtype) for _ in range(3))
    expected = list(run(case, reference, values.copy(), gradient_values, moduli=moduli))
    for i, layout in enumerate(LAYOUTS):
        for of_grads in {"c", layout, LAYOUTS[i - 1]}:
            state_layouts = iter(LAYOUTS[::-1])

            def make_state(like: Array, layouts: Iterator[str] = state_layouts) -> Array:
                return laid_out(np.zeros_like(like), next(layouts))

            grads = [laid_out(grad, of_grads) for grad in gradient_values]
            param = laid_out(values, layout)
            with execution(tile=tile):
                fused = run(case, kernels, param, grads, make_state, moduli=moduli)
                assert equal(list(fused), expected), (layout, of_grads)


@every_case
@every_dtype
def test_cutting_an_array_changes_no_bit(case: Case, moduli: bool, dtype: Any) -> None:
    size = 150
    param, *gradients = numbers(np.random.default_rng(3), (3, size), dtype)
    with execution(tile=37):
        whole = list(run(case, kernels, param.copy(), gradients, moduli=moduli))
        for cut in range(0, size + 1, 7):
            pieces = [
                run(case, kernels, param[part].copy(), [g[part] for g in gradients], moduli=moduli)
                for part in (slice(cut), slice(cut, None))
            ]
            assert equal(whole, [np.concatenate(each) for each in zip(*pieces, strict=True)]), cut


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_of_real_and_complex_gradients_has_the_references_bits(layout: str) -> None:
    rng = np.random.default_rng(13)
    kinds: list[tuple[Any, Any]] = [(3, "f4"), ((33, 270), "c8"), (5, "f8"), ((9, 41, 30), "c16")]
    params = [numbers(rng, shape, dtype, special=False) for shape, dtype in kinds]
    for threads in (1, 2):
        grads = [laid_out(param, layout) for param in params]
        optimizer = schuss.SGD([np.asfortranarray(param) for param in params], clip_norm=1.0)
        with execution(threads=threads, threshold=0):
            optimizer.step(grads)
        assert optimizer.last is not None
        assert optimizer.last.grad_norm == reference.grad_norm(optimizer.params, grads)


# What the numbers are.


@every_variant
@every_dtype
def test_components_are_updated_as_real_numbers(
    name: str, options: dict[str, Any], dtype: Any
) -> None:
    rng = np.random.default_rng(4)
    param, *grads = numbers(rng, (4, 97), dtype, special=False)
    real = parts(param).copy()
    extras = {"lr": 0.1, **options, "clip_norm": 5.0, "average": 0.5}
    ours, theirs = make_optimizer(name, param, **extras), make_optimizer(name, real, **extras)
    for grad in grads:
        ours.step(grad, scale=0.5)
        theirs.step(parts(grad), scale=0.5)
    assert same_bits(parts(param), real)
    assert same_bits(parts(ours.average), theirs.average)
    assert ours.last == theirs.last
    for state, values in theirs.state.items():
        assert ours.state[state].dtype == dtype
        assert same_bits(parts(ours.state[state]), values)


PEERS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("SGD", {"weight_decay": 0.1}, "SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "Momentum", {"dampening": 0.0, "nesterov": True}),
    ("RMSprop", {"alpha": 0.9}, "RMSprop", {}),
    (
        "RMSprop",
        {"alpha": 0.9, "centered": True, "momentum": 0.5},
        "RMSprop",
        {"centered": True, "momentum": 0.5},
    ),
    ("Adam", {}, "Adam", {}),
    (
        "Adam",
        {"amsgrad": True, "weight_decay": 0.1},
        "Adam",
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    ("AdamW", {"weight_decay": 0.5}, "AdamW", {"weight_decay": 0.5}),
    *(
        (name, options, name, options)
        for name, options in [
            ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
            ("Adadelta", {"rho": 0.8, "weight_decay": 0.1}),
            ("Adamax", {}),
            ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
            ("RAdam", {}),
        ]
    ),
]


@pytest.mark.parametrize(("peer", "peer_options", "name", "options"), PEERS)
def test_a_hundred_steps_of_components_agree_with_pytorch(
    peer: str, peer_options: dict[str, Any], name: str, options: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    param = numbers(rng, (7, 3), np.complex128, special=False)
    theirs = torch.tensor(param.copy(), requires_grad=True)
    their_optimizer = getattr(torch.optim, peer)([theirs], lr=0.01, **peer_options)
    optimizer = make_optimizer(name, param, lr=0.01, **options)
    for _ in range(100):
        grad = numbers(rng, (7, 3), np.complex128, special=False)
        theirs.grad = torch.tensor(grad)
        their_optimizer.step()
        optimizer.step(grad)
    # PyTorch keeps the product of NAdam's momenta in float32.
    tolerance = 1e-8 if name == "NAdam" else 1e-13
    np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("peer", "name", "options"),
    [
        ("adam(0.01)", "Adam", {}),
        ("adam(0.01, b1=0.5, b2=0.9, eps=1e-3, eps_root=1e-3)", "Adam",
         {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "eps_root": 1e-3}),
        ("adamw(0.01, weight_decay=0.1)", "AdamW", {"weight_decay": 0.1}),
        ("adagrad(0.01, initial_accumulator_value=0.5, eps=1e-30)", "Adagrad",
         {"initial_accumulator_value": 0.5, "eps": 1e-30}),
        ("adamax(0.01)", "Adamax", {}),
        ("radam(0.01)", "RAdam", {}),
        ("rmsprop(0.01, eps=1e-6)", "RMSprop", {"eps": 0.0, "eps_root": 1e-6}),
        ("rmsprop(0.01, eps=1e-6, momentum=0.5)", "RMSprop",
         {"eps": 0.0, "eps_root": 1e-6, "momentum": 0.5}),
        ("rmsprop(0.01, eps=1e-3, centered=True)", "RMSprop",
         {"eps": 0.0, "eps_root": 1e-3, "centered": True}),
    ],
)  # fmt: skip
def test_a_hundred_steps_of_moduli_agree_with_optax(
    peer: str, name: str, options: dict[str, Any]
) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    rng = np.random.default_rng(6)
    param = numbers(rng, (7, 3), np.complex64, special=False)
    theirs = jax.numpy.array(param.copy())
    transform = eval(peer, vars(optax).copy())
    state = transform.init(theirs)
    optimizer = make_optimizer(name, param, lr=0.01, complex="modulus", **options)
    for _ in range(100):
        grad = numbers(rng, (7, 3), np.complex64, special=False)
        updates, state = transform.update(grad, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        optimizer.step(grad)
    np.testing.assert_allclose(param, np.asarray(theirs), rtol=2e-5, atol=2e-5)


@every_dtype
def test_the_worked_numbers_of_a_step(dtype: Any) -> None:
    grad = np.array([3 + 4j, -5j, 0], dtype)
    components, moduli = np.zeros((2, 3), dtype)
    settings: dict[str, Any] = {"lr": 0.5, "eps": 1e-30}
    schuss.Adam(components, **settings).step(grad)
    np.testing.assert_allclose(components, [-0.5 - 0.5j, 0.5j, 0], rtol=1e-6)
    optimizer = schuss.Adam(moduli, **settings, complex="modulus", clip_norm=10.0)
    optimizer.step(grad)
    np.testing.assert_allclose(moduli, [-0.3 - 0.4j, 0.5j, 0], rtol=1e-6)
    np.testing.assert_allclose(optimizer.state["v"], [0.025, 0.025, 0.0], rtol=1e-6)
    assert [optimizer.state[name].dtype for name in "mv"] == [dtype, grad.real.dtype]
    assert optimizer.last == schuss.optimizers.Last(50**0.5, clipped=False, skipped=False)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in OPTIMIZERS
        if "square_average" in OPTIMIZERS[name].states or "v" in OPTIMIZERS[name].states
    ],
)
def test_a_step_of_moduli_turns_with_the_numbers(name: str) -> None:
    rng = np.random.default_rng(7)
    param, *grads = numbers(rng, (4, 65), np.complex64, special=False)
    turned = param * np.complex64(1j)
    first, second = (make_optimizer(name, p, lr=0.1, complex="modulus") for p in (param, turned))
    for grad in grads:
        first.step(grad)
        second.step(grad * np.complex64(1j))
    np.testing.assert_array_equal(turned, param * np.complex64(1j))


def test_real_parameters_ignore_the_option() -> None:
    rng = np.random.default_rng(8)
    params = [numbers(rng, 9, dtype, special=False) for dtype in (np.float32, np.float64, "c8")]
    others = copy.deepcopy(params)
    optimizers = schuss.Adam(params, complex="modulus"), schuss.Adam(others)
    for optimizer in optimizers:
        optimizer.step([np.ones_like(param) for param in params])
    assert equal(params[:2], others[:2])
    assert [v.dtype.name for v in optimizers[0].state["v"]] == ["float32", "float64", "float32"]
    assert [v.dtype.name for v in optimizers[1].state["v"]] == ["float32", "float64", "complex64"]
    assert (optimizers[0].complex, "complex='modulus'" in repr(optimizers[0])) == ("modulus", True)


@pytest.mark.parametrize("mode", ["components", "modulus"])
def test_gradients_of_complex64_are_widened_for_complex128(mode: str) -> None:
    rng = np.random.default_rng(9)
    param, other = np.tile(numbers(rng, 2100, np.complex128, special=False), (2, 1))
    optimizers = [schuss.Adam(p, complex=mode) for p in (param, other)]  # type: ignore[arg-type]
    for _ in range(3):
        grad = numbers(rng, 2100, np.complex64, special=False)
        optimizers[0].step(grad)
        optimizers[1].step(grad.astype(np.complex128))
    assert same_bits(param, other)


# Around the step.


def trained(mode: Any, **options: Any) -> tuple[dict[str, Array], Any, list[dict[str, Array]]]:
    """Return parameters, an optimizer of them after a step, and gradients."""
    rng = np.random.default_rng(10)
    trees = [
        {
            "z": laid_out(numbers(rng, (3, 4), np.complex64, special=False), "fortran"),
            "w": laid_out(numbers(rng, (5, 2), np.complex128, special=False), "sliced"),
            "b": numbers(rng, (), np.complex128, special=False),
            "r": numbers(rng, (3, 2), np.float32, special=False),
        }
        for _ in range(4)
    ]
    params, *grads = trees
    optimizer = schuss.Adam(params, lr=0.1, complex=mode, average=0.9, **options)
    optimizer.step(grads[0])
    return params, optimizer, grads[1:]


def all_bits(params: dict[str, Array], optimizer: Any) -> list[bytes]:
    trees = [params, *optimizer.state.values(), optimizer.average]
    return [array.tobytes() for tree in trees for array in tree.values()]


every_mode = pytest.mark.parametrize("mode", ["components", "modulus"])
every_average = pytest.mark.parametrize("corrected", [False, True])


@every_mode
@every_average
def test_a_checkpoint_resumes_with_the_same_bits(
    mode: str, corrected: bool, tmp_path: Path
) -> None:
    params, optimizer, grads = trained(mode, average_bias_correction=corrected)
    optimizer.accumulate(grads[0])
    schuss.save(tmp_path / "z", params, optimizer, extra={"z": np.array([1j, 2])})
    others, other, _ = trained(mode, average_bias_correction=corrected)
    for array in others.values():
        array[...] = 0
    extra = schuss.load(tmp_path / "z", others, other)
    np.testing.assert_array_equal(extra["z"], [1j, 2])
    for each in (optimizer, other):
        each.step()
        each.step(grads[1])
    assert all_bits(params, optimizer) == all_bits(others, other)


@every_mode
def test_pickles_copies_and_state_dicts_resume_with_the_same_bits(mode: str) -> None:
    params, optimizer, grads = trained(mode)
    others, other = pickle.loads(pickle.dumps((params, optimizer)))
    third, loaded, _ = trained(mode)
    loaded.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other, loaded):
        each.step(grads[0])
    assert all_bits(params, optimizer) == all_bits(others, other) == all_bits(third, loaded)
    with pytest.raises(TypeError, match=r"state\['v'\]"):
        trained("modulus" if mode == "components" else "components")[1].load_state_dict(
            optimizer.state_dict()
        )


def test_other_readers_see_the_components(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    z, w = np.array([1 + 2j, 3], np.complex64), np.array(1j)
    schuss.save(tmp_path / "z", {"z": z, "w": w, "r": np.ones(2)})
    tensors = numpy.load_file(tmp_path / "z")
    assert tensors["params/z"].tolist() == [[1, 2], [3, 0]]
    assert tensors["params/w"].tolist() == [0, 1]


def test_complex_and_real_parameters_do_not_load_each_other(tmp_path: Path) -> None:
    z, pairs = np.zeros(3, np.complex64), np.zeros((3, 2), np.float32)
    for saved, given in ((z, pairs), (pairs, z)):
        schuss.save(tmp_path / "z", saved)
        with refusal(ValueError, "load: ", "holds params", keeps=[given]):
            schuss.load(tmp_path / "z", given)


@every_mode
def test_accumulated_and_scaled_gradients_are_those_of_their_sum(mode: Any) -> None:
    z, other = np.zeros((2, 3), np.complex128)
    grads = np.array([[1 + 1j, 2j, 3], [1, 2, 4j]])
    optimizer, scaler = schuss.Adam(z, complex=mode), schuss.DynamicLossScale(1024.0)
    for grad in grads:
        optimizer.accumulate(scaler.scale(grad))
    assert scaler.step(optimizer)
    schuss.Adam(other, complex=mode).step(grads.sum(axis=0))
    np.testing.assert_allclose(z, other, rtol=1e-14)


@every_dtype
def test_averages_of_complex_numbers_are_those_of_their_components(dtype: Any) -> None:
    rng = np.random.default_rng(11)
    series = numbers(rng, (5, 30), dtype, special=False)
    for axis in (0, -1):
        averages = schuss.ewma(series, 0.9, axis=axis)
        assert same_bits(averages, reference.ewma(series, 0.9, axis=axis))
        for part in ("real", "imag"):
            expected = schuss.ewma(getattr(series, part), 0.9, axis=axis)
            assert same_bits(getattr(averages, part), expected)
    average, of_real, of_imag = (schuss.ExponentialAverage(0.9) for _ in range(3))
    for row in series:
        for each, values in ((average, row), (of_real, row.real), (of_imag, row.imag)):
            each.update(values)
    assert same_bits(average.value.real, of_real.value)
    assert same_bits(average.value.imag, of_imag.value)


@every_dtype
def test_the_l2_cost_has_its_gradient(dtype: Any) -> None:
    w = np.array([[1 + 2j, -3j]], dtype)
    with_l2 = schuss.with_l2(lambda params, x: (0.0, np.zeros_like(params)), 0.5)
    x = np.zeros((2, 1))
    cost, grad = with_l2(w, x)
    assert (cost, grad.dtype) == (0.5 / 4 * 14, dtype)
    for direction in (1, 1j):  # the cost is quadratic: central differences are exact
        ahead, behind = (with_l2(w + np.array(h, dtype), x)[0] for h in (direction, -direction))
        slope = (grad * np.conj(direction)).real.sum()
        np.testing.assert_allclose((ahead - behind) / 2, slope, rtol=1e-6)


@every_mode
def test_fit_finds_a_unitary_matrix(mode: Any) -> None:
    rng = np.random.default_rng(12)
    unitary, _ = np.linalg.qr(rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4)))
    x = rng.standard_normal((64, 4)) + 1j * rng.standard_normal((64, 4))

    def loss_and_grad(params: Any, x: Array, y: Array) -> tuple[float, Any]:
        error = x @ params["u"] - y
        return float((abs(error) ** 2).sum() / len(x)), {"u": 2 * x.conj().T @ error / len(x)}

    params = {"u": np.zeros((4, 4), complex)}
    optimizer = schuss.Adam(params, lr=schuss.schedules.Cosine(0.1, steps=400), complex=mode)
    history = schuss.fit(loss_and_grad, params, optimizer, x, x @ unitary, epochs=50, batch_size=8)
    np.testing.assert_allclose(params["u"], unitary, atol=1e-3)
    assert history.cost[-1] < 1e-5 < history.cost[0]


# Refusals.

Z, R = np.ones(3, np.complex64), np.ones(3, np.float32)
REFUSED: list[tuple[str, type[Exception], str]] = [
    ("SGD(z).step(r)", TypeError, "SGD.step: grads has dtype float32, expected complex64 (the dtype"
     " of params) (grads.astype(np.complex64) converts it)"),
    ("SGD(z).step(z.astype('c16'))", TypeError, "SGD.step: grads has dtype complex128, expected"
     " complex64 (the dtype of params) (grads.astype(np.complex64) converts it)"),
    ("SGD(z.astype('c16')).step(r)", TypeError, "SGD.step: grads has dtype float32, expected"
     " complex128 (the dtype of params) or complex64 (grads.astype(np.complex128) converts it)"),
    ("SGD(r).step(z)", TypeError, "SGD.step: grads has dtype complex64, expected float32 (the dtype"
     " of params), float16 or bfloat16; the gradient of a real parameter is real (.real takes"),
    ("SGD([r, z], clip_value=0.5)", ValueError, "SGD: clip_value is 0.5 where params[1] is complex"
     ", expected None: complex numbers have no order"),
    ("setattr(SGD(z), 'clip_value', 0.5)", ValueError, "SGD: clip_value is 0.5 where params is"),
    ("kernels.sgd(z, z.copy(), lr=0.1, clip_value=1.0)", ValueError, "kernels.sgd: clip_value is "
     "1.0 where param is complex, expected None"),
    ("SGD([r, z], bounds=(0.0, None))", ValueError, "SGD: bounds are given where params[1] is"),
    ("kernels.sgd(z, z.copy(), lr=0.1, bounds=(None, 1.0))", ValueError, "kernels.sgd: bounds are "
     "given where param is complex, expected None: complex numbers have no order"),
    ("setattr(SGD(z), 'bounds', (0.0, 1.0))", ValueError, "SGD: bounds are given where params is"),
    ("SGD(z, copies='float16')", ValueError, "SGD: copies are given but a parameter is complex64,"),
    ("Adam(z, state_dtype='bfloat16')", ValueError, "Adam: state_dtype is 'bfloat16' where a param"
     "eter is complex64, expected parameters in float32, float16 or bfloat16"),
    ("SGD(z, complex='modulus')", ValueError, "SGD: complex is 'modulus', expected 'components':"
     " SGD has no second moment"),
    ("Momentum(r, complex='modulus')", ValueError, "Momentum: complex is 'modulus', expected 'com"),
    ("Lion(z, complex='modulus')", ValueError, "Lion: complex is 'modulus', expected 'components'"),
    ("Adam(z, complex='polar')", ValueError, "Adam: complex is 'polar', expected 'components' or"),
    ("Adam(z, complex=True)", TypeError, "Adam: complex is True, expected 'components' or 'modul"),
    ("setattr(Adam(z), 'complex', 'modulus')", AttributeError, "property 'complex' of 'Adam'"),
    ("SGD(z.astype('G'))", TypeError, "SGD: params has dtype complex"),
    ("SGD(z.astype('>c8'))", TypeError, "SGD: params has dtype >c8, expected native byte order"),
    ("kernels.adam(z, z.copy(), z.copy(), r.astype('f8'), step=1)", TypeError, "kernels.adam: v has"
     " dtype float64, expected complex64 (the dtype of param) or float32"),
    ("kernels.adam(z, z.copy(), r, r.copy(), step=1)", TypeError, "kernels.adam: m has dtype float"
     "32, expected complex64 (the dtype of param)"),
    ("kernels.adam(z, z.copy(), z.copy(), r, v_max=z.copy(), step=1)", TypeError, "kernels.adam: v_"
     "max has dtype complex64, expected float32 (the dtype of v)"),
    ("ewma(z, 0.5, out=r)", TypeError, "ewma: out has dtype float32, expected complex64"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "error", "message"), REFUSED)
def test_what_complex_numbers_do_not_have_is_refused(
    expression: str, error: type[Exception], message: str
) -> None:
    classes = {name: getattr(schuss, name) for name in ("SGD", "Momentum", "Adam", "Lion")}
    z, r = Z.copy(), R.copy()
    with refusal(error, message, keeps=[z, r]):
        eval(expression, {**classes, "z": z, "r": r, "kernels": kernels, "ewma": schuss.ewma})


def test_real_parameters_beside_complex_ones_have_bounds_of_their_own() -> None:
    params = {"z": np.zeros(2, np.complex64), "r": np.zeros(2, np.float32)}
    optimizer = schuss.Adam(
        params, lr=1.0, maximize=True, groups={"r": {"bounds": (None, 0.5)}}.get, complex="modulus"
    )
    optimizer.step({name: np.ones_like(param) for name, param in params.items()})
    assert params["r"].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(params["z"], [1, 1], rtol=1e-6)


def test_every_optimizer_steps_complex_parameters_or_says_why_not() -> None:
    for name, options in VARIANTS:
        has_moment = SECOND_MOMENTS.intersection(OPTIMIZERS[name].states)
        for mode in ("components", "modulus") if has_moment else ("components",):
            z = np.zeros(3, np.complex64)
            make_optimizer(name, z, **options, complex=mode).step(np.ones(3, np.complex64))
            assert (z.real < 0).all()
            assert (z.imag == 0).all()
