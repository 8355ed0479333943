"""The L2 cost of weights, added to a loss and its gradients."""

from collections.abc import Callable
from functools import partial
from math import frexp, inf, isfinite
from typing import Any

import numpy as np

from schuss import _core
from schuss._arrays import Array, ArrayTree, components, computed_dtype
from schuss._errors import wrong_type
from schuss._hyperparameters import NON_NEGATIVE, POSITIVE, axis_of, flag
from schuss._interrupts import raised_within
from schuss._listing import public_names
from schuss._loss import Loss, check_function, evaluate
from schuss._registry import flush_rows
from schuss.loss_scale import DynamicLossScale, with_l2_of_fit
from schuss.rows import as_rows

__all__ = ["with_l2"]

__dir__ = public_names(__name__)


class L2:
    """The L2 cost of weights, added to the loss and to its gradients."""

    def __init__(
        self,
        call: str,
        strength: float,
        weights: Callable[[str], bool] | None = None,
        loss_scale: DynamicLossScale | float | None = None,
    ) -> None:
        self._call, self._strength, self._weights = call, strength, weights
        self._loss_scale = loss_scale  # None if it is unknown
        # The latest structure of parameters, and which of its arrays are weights.
        self._known: tuple[_core.Tree, list[bool]] | None = None
        self._to_clear: list[Array] = []

    def add(
        self,
        params: ArrayTree,
        loss: float,
        grads: ArrayTree,
        examples: int | None,
        *,
        clear: bool = False,
    ) -> tuple[float, Any]:
        """Return the loss and the gradients of a batch, including those of the L2 cost.

        clear: whether the caller calls `clear` after the step.
        """
        if examples is None:
            raise TypeError(
                f"{self._call}: a batch has no array, expected one, as l2 is divided by its "
                "number of examples"
            )
        tree, is_weight, arrays = self._flattened(params)
        leaves = self._flattened_grads(tree, is_weight, arrays, grads)
        factor, scale = self._strength / examples, self._loss_scale
        scaled = factor * (scale.value if isinstance(scale, DynamicLossScale) else scale or 1.0)
        weights = [index for index, chosen in enumerate(is_weight) if chosen]
        flush_rows(self._call, "params", [arrays[index] for index in weights])
        moving = [index for index in weights if leaves[index] is not None]
        self._to_clear = [leaves[index] for index in moving] if clear else []
        if not all(leaf.flags.writeable for leaf in self._to_clear):
            raise ValueError(
                f"{self._call}: a gradient is read-only, expected writeable arrays, as "
                "clear_grads is set"
            )
        with np.errstate(all="ignore"):  # as in a step
            for index in moving:
                leaf = leaves[index] = _with_decay(arrays[index], scaled, leaves[index])
                if scale is None:
                    with_l2_of_fit[id(leaf)] = leaf
            cost = _half_squares(factor, [components(arrays[index]) for index in weights])
        return loss + cost, tree.unflatten(leaves)

    def clear(self) -> None:
        """Set the weights' gradients to zero; the step, which did not see them, has not."""
        for leaf in self._to_clear:
            leaf[...] = 0
        self._to_clear = []

    def _flattened_grads(
        self, tree: _core.Tree, is_weight: list[bool], arrays: list[Array], grads: ArrayTree
    ) -> list[Any]:
        """Return the gradients, in the dtypes and shapes that a step takes, or raise.

        None stays None: the parameter rests. So do the rows of parameters that are no weights.
        """
        leaves = tree.flatten(grads, self._call, "grads")
        found = {index: as_rows(leaf) for index, leaf in enumerate(leaves)}
        rows = {index: each for index, each in found.items() if each is not None}
        for index in rows:
            if is_weight[index]:
                where = f"grads[{tree.names[index]!r}]" if tree.names[index] else "grads"
                raise TypeError(
                    f"{self._call}: {where} is a gradient of some rows, expected an array, as that "
                    "of an L2 cost is in all rows (the weight_decay of an optimizer takes "
                    "schuss.Rows)"
                )
        others = [None if index in rows else leaf for index, leaf in enumerate(leaves)]
        if rows and not any(leaf is not None for leaf in others):
            return leaves
        dense = self._flattened_arrays(tree, arrays, tree.unflatten(others) if rows else grads)
        return [rows.get(index, leaf) for index, leaf in enumerate(dense)]

    def _flattened_arrays(
        self, tree: _core.Tree, arrays: list[Array], grads: ArrayTree
    ) -> list[Any]:
        """Return the gradients that are not of some rows."""
        flatten = partial(tree.flatten_arrays, grads, self._call, "grads", gaps=True)
        try:
            return flatten(arrays, "params")
        except TypeError as error:  # perhaps a gradient has another dtype than its parameter
            if raised_within(error):
                raise
        like = [
            np.broadcast_to(np.zeros((), leaf.dtype), array.shape)
            if leaf is not None and _widens(computed_dtype(leaf), computed_dtype(array))
            else array
            for array, leaf in zip(arrays, flatten(), strict=True)
        ]
        return flatten(like, "params")

    def _flattened(self, params: ArrayTree) -> tuple[_core.Tree, list[bool], list[Array]]:
        """Return the structure of parameters, which of them are weights, and their arrays."""
        call, weights = self._call, self._weights
        if self._known is not None:
            tree, is_weight = self._known
            try:
                arrays = tree.flatten_arrays(params, call, "params", tree.arrays, "params")
                return tree, is_weight, arrays
            except (TypeError, ValueError) as error:  # the structure changed
                if raised_within(error):
                    raise
        tree = _core.Tree(params, call, "params")
        # The checks of an optimizer, which takes no read-only arrays; here they may be read-only.
        _core.Optimizer(call, tree.unflatten([*map(_writeable, tree.arrays)]))
        if weights is None:
            is_weight = [array.ndim >= 2 for array in tree.arrays]
        else:
            is_weight = [flag(call, f"weights({name!r})", weights(name)) for name in tree.names]
        self._known = tree, is_weight
        return tree, is_weight, tree.arrays


def _widens(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    same_kind = dtype.kind == other.kind and dtype.isnative
    return same_kind and dtype.itemsize <= other.itemsize


def _writeable(array: Array) -> Array:
    return array if array.flags.writeable else np.empty_like(array, subok=False)


def _with_decay(weights: Array, factor: float, grad: Array) -> Array:
    """Return ``factor * weights + grad``, in the dtype that a step computes in."""
    decay = np.empty_like(weights, computed_dtype(weights), subok=False)
    sums, weights = components(decay), components(weights)
    limits = np.finfo(sums.dtype)
    # The dtype may hold the products even if it does not hold the factor.
    exact = sums.dtype if limits.tiny <= factor <= limits.max else np.dtype(np.float64)
    np.multiply(weights, factor, out=sums, dtype=exact, casting="same_kind")
    sums += components(grad)
    return decay


def _half_squares(factor: float, arrays: list[Array]) -> float:
    """Return half the sum of squares times the factor, even if float64 cannot hold the sum."""
    squares = sum(map(_squares, arrays))
    if 1e-280 < squares < inf:
        return factor / 2 * squares
    parts = []
    for array in arrays:
        largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))
        if largest == 0:
            continue
        shift = frexp(largest)[1] if isfinite(largest) else 0
        part = _squares(np.ldexp(array.astype(np.float64), -shift))
        # In two steps: the square of the power of two may overflow by itself.
        parts.append(float(np.ldexp(np.ldexp(factor / 2 * part, shift), shift)))
    return sum(parts)


def _squares(array: Array) -> float:
    axes = list(range(array.ndim))
    return float(np.einsum(array, axes, array, axes, [], dtype=np.float64))


def with_l2(
    loss_and_grad: Loss,
    strength: float,
    *,
    weights: Callable[[str], bool] | None = None,
    axis: int = 0,
    loss_scale: DynamicLossScale | float = 1.0,
) -> Loss:
    """Add the L2 cost of the weights to a loss: ``J = (1/b) sum(loss) + (l2/2b) sum(||W||^2)``.

    The gradient of each weight W gains ``(l2/b) W``, where b is the number of examples of the batch
    and `loss_and_grad` returns the mean over them. If all batches have one size and all parameters
    are weights, this is the same as an optimizer's ``weight_decay = l2/b``.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, x, ...) -> (loss, gradients)``: a number, and arrays in the
        structure of `params`, as a step takes them. They are not modified, so an optimizer's
        `clear_grads` does not reach the gradients of weights (`fit` with `l2` sets them to zero
        itself).
    strength : float
        l2, also known as lambda; at least 0.
    weights : callable, optional
        Whether the parameter with a name is a weight: ``weights(name) -> bool``. The name is the
        parameter's key in `params`. In nested structures it is the path of keys, joined by "/", as
        in ``"layers/0/W"``; for a single array it is empty. The function is called once for each
        name. By default, parameters with two axes or more are weights, so biases are not.
    axis : int
        The axis of x along which the examples lie; its length is b. `fit` does not pass its own
        `axis` on: if examples do not lie along axis 0, give `axis` to both.
    loss_scale : DynamicLossScale or float
        The factor of the gradients (but not of the loss) that `loss_and_grad` returns, by which a
        step divides them. The gradients of the L2 cost are multiplied by it too.

    Returns
    -------
    callable
        A function like `loss_and_grad`, with the L2 cost. Gradients of weights are computed, and
        returned, in float32 for weights in float16, bfloat16 and float32, and otherwise in the
        dtype of the weights. Those of complex weights are ``(l2/b) W`` too, in PyTorch's convention
        of gradients.

    Raises
    ------
    TypeError
        If `loss_and_grad` or `weights` is not callable, `strength` is not a number, or `loss_scale`
        is neither a number nor a `DynamicLossScale`. When called: if x is missing or not an array,
        the loss is not a number, `axis` not an integer, `weights` does not return a bool, or
        parameters and gradients are not as an optimizer takes them; but parameters may be
        read-only.
    ValueError
        If `strength` is negative or not finite, or `loss_scale` is not a finite number above 0.
        When called: if `axis` is out of range, x has no examples, or parameters and gradients are
        not as an optimizer takes them.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, eq. 7.2 and 7.3, with alpha = l2/b.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> def loss_and_grad(params, x):
    ...     return 0.0, {"W": np.zeros((1, 2)), "b": np.zeros(2)}
    >>> params = {"W": np.array([[3.0, 4.0]]), "b": np.array([5.0, 6.0])}
    >>> schuss.with_l2(loss_and_grad, 0.5)(params, np.zeros((10, 1)))
    (0.625, {'W': array([[0.15, 0.2 ]]), 'b': array([0., 0.])})
    """
    call = "with_l2"
    check_function(call, "loss_and_grad", loss_and_grad)
    if weights is not None:
        check_function(call, "weights", weights)
    strength = NON_NEGATIVE(call, "strength", strength)
    if not isinstance(loss_scale, DynamicLossScale):
        loss_scale = POSITIVE(call, "loss_scale", loss_scale)
    l2 = L2(call, strength, weights, loss_scale)

    def loss_and_grad_with_l2(params: ArrayTree, *batch: Any) -> tuple[float, Any]:
        examples = _examples(call, axis, batch)
        return l2.add(params, *evaluate(call, loss_and_grad, params, batch), examples)

    return loss_and_grad_with_l2


def _examples(call: str, axis: int, batch: tuple[Any, ...]) -> int:
    if not batch:
        raise TypeError(f"{call}: x is missing, expected an array of examples after params")
    if not hasattr(batch[0], "shape"):
        raise wrong_type(call, "x", batch[0], "an array")
    examples: int = batch[0].shape[axis_of(call, axis, batch[0], "x")]
    if examples == 0:
        raise ValueError(f"{call}: x has no examples along axis {axis}, expected at least one")
    return examples
