"""Gradients that are zero except in some rows, such as those of an embedding."""

import sys
from math import prod
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array, ArrayLike, as_any_array, computed_dtype, parse_dtype
from schuss._errors import wrong_type
from schuss._hyperparameters import count
from schuss._listing import public_names

__all__ = ["Rows"]

__dir__ = public_names(__name__)

_Parts: TypeAlias = tuple[Any, Any, int]
"""The indices and the values of rows, and the number of rows of the whole array."""


class Rows(_core.Rows):
    """A gradient that is zero except in some rows: ``g[indices[i]] += values[i]``, in order.

    It may stand wherever a gradient may, for a parameter with one axis or more, whose rows lie
    along the first axis. A step then takes the time of these rows, not of the whole parameter; see
    ``rows`` in `schuss.optimizers.Options`. Rows that occur several times are added up in the order
    of `indices`, in the dtype that the step computes in.

    The arrays are not copied. `indices` and `values` are attributes too, and ``len(rows)`` is the
    number of indices.

    Parameters
    ----------
    indices : array, shape (k,)
        The indices of the rows, at least 0, in int32 or int64, in any order. Each step checks
        their range.
    values : array, shape (k, ...)
        The rows, each in the shape of a row of the parameter, in any memory layout, and in the
        dtypes that gradients may have. The steps of an optimizer with `clear_grads` set them to
        zero.
    length : int, optional
        The number of rows of the whole gradient, which each step compares with the parameter. By
        default it may be any.

    Raises
    ------
    TypeError
        If an argument is not an array, or has another dtype.
    ValueError
        If the shapes do not go together.

    References
    ----------
    The sparse gradients of ``torch.nn.Embedding(sparse=True)`` in PyTorch, and
    ``tf.IndexedSlices`` in TensorFlow, are the same.

    Examples
    --------
    >>> import numpy as np, schuss
    >>> table = np.zeros((4, 2))
    >>> opt = schuss.SGD(table, lr=1.0)
    >>> grad = schuss.Rows(np.array([2, 0, 2]), np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.5]]))
    >>> grad
    <Rows: 3 of shape (2,), float64>
    >>> opt.step(grad)
    >>> table
    array([[-3. , -4. ],
           [ 0. ,  0. ],
           [-1.5, -2.5],
           [ 0. ,  0. ]])
    """

    __slots__ = ()

    def __init__(
        self, indices: npt.ArrayLike | ArrayLike, values: Any, length: int | None = None
    ) -> None:
        if length is not None:
            length = count("Rows", "length", length, least=0)
        given: Any = indices
        if isinstance(given, list | tuple):
            given = as_any_array("Rows", "indices", given) if given else np.empty(0, np.int64)
        if isinstance(values, list | tuple):
            values = as_any_array("Rows", "values", values)
        super().__init__(given, values, length)

    @classmethod
    def _of(cls, where: str, parts: _Parts) -> Self:
        """Return rows of these parts; where: what messages call the object that they come from."""
        try:
            return cls(*parts)
        except TypeError as error:  # the dtype of the values
            raise TypeError(str(error).replace("Rows: values", where, 1)) from None

    @classmethod
    def from_dense(cls, array: npt.ArrayLike) -> Self:
        """Return the rows of an array that have a nonzero element, in order.

        Parameters
        ----------
        array : array, shape (n, ...)
            The gradient, in a dtype that gradients may have. NaN is not zero; -0.0 is.

        Returns
        -------
        Rows
            Copies of these rows.

        Raises
        ------
        TypeError
            If it is not an array, or has another dtype.
        ValueError
            If it has no axes.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> rows = schuss.Rows.from_dense(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
        >>> rows.indices, rows.length
        (array([1, 2]), 3)
        """
        call = "Rows.from_dense"
        if _is_sparse_tensor(array) or _is_sparse_array(array):
            raise wrong_type(call, "array", array, "a dense array (Rows.from_sparse takes it)")
        dense = as_any_array(call, "array", array)
        if dense.ndim == 0:
            raise ValueError(f"{call}: array has no axes, expected one or more")
        axes = tuple(range(1, dense.ndim))
        indices = np.flatnonzero((dense != 0).any(axis=axes)).astype(np.int64, copy=False)
        return cls._of(f"{call}: array", (indices, dense[indices], len(dense)))

    @classmethod
    def from_sparse(cls, array: Any) -> Self:
        """Return the rows of a sparse tensor of PyTorch or a sparse array of SciPy.

        Gradients given to a step may be such tensors and arrays themselves.

        Parameters
        ----------
        array : torch.Tensor or scipy.sparse.sparray or scipy.sparse.spmatrix
            Of any shape with one axis or more, in a dtype that gradients may have, and in any
            sparse layout, such as COO or CSR; tensors on the CPU. Duplicates are added up in their
            order.

        Returns
        -------
        Rows
            The rows that have stored elements. A COO tensor with one sparse dimension, such as the
            gradient of ``torch.nn.Embedding(sparse=True)``, is not copied, and need not be
            coalesced. Of others, these rows become dense.

        Raises
        ------
        TypeError
            If it is not sparse, or has another dtype.
        ValueError
            If it is not on the CPU, or has no axes.

        Examples
        --------
        With SciPy::

            matrix = scipy.sparse.csr_array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
            schuss.Rows.from_sparse(matrix).indices  # array([1, 2], dtype=int32)
        """
        where = "Rows.from_sparse: array"
        parts = _parts_of(where, array)
        if parts is None:
            raise wrong_type(
                "Rows.from_sparse",
                "array",
                array,
                "a sparse tensor of PyTorch or a sparse array of SciPy "
                "(Rows.from_dense takes dense ones)",
            )
        return cls._of(where, parts)

    def to_dense(self, length: int | None = None, *, dtype: npt.DTypeLike | None = None) -> Array:
        """Return the whole gradient: zeros, to which the rows are added in order.

        Parameters
        ----------
        length : int, optional
            The number of rows. By default that of the array that the rows come from, if it is
            known, and otherwise one more than the largest index.
        dtype : dtype, optional
            In which to add up the rows: the dtype that a step of the parameter computes in, float32
            or float64 or a complex one. By default that of the values; float32 for float16 and
            bfloat16.

        Returns
        -------
        array, shape (length, ...)
            A new array.

        Raises
        ------
        TypeError, ValueError
            If `length` is not an integer, or not that of the array that the rows come from; if an
            index is not between 0 and `length`; if the values cannot be converted to `dtype`.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> schuss.Rows(np.array([1, 1]), np.array([0.5, 0.25])).to_dense(3)
        array([0.  , 0.75, 0.  ])
        """
        call, indices, values = f"{type(self).__name__}.to_dense", self.indices, self.values
        first, last = int(indices.min(initial=0)), int(indices.max(initial=-1))
        known = self.length
        if length is None:
            length = max(last + 1, 0) if known is None else known
        length = count(call, "length", length, least=0)
        if known is not None and length != known:
            raise ValueError(f"{call}: length is {length}, expected {known}, that of the rows")
        if first < 0:
            raise ValueError(f"{call}: indices have {first}, expected 0 or more")
        if last >= length:
            raise ValueError(f"{call}: indices have {last}, expected 0 <= index < {length}")
        kind = computed_dtype(values)
        if dtype is not None:
            kind = parse_dtype(call, "dtype", dtype, _COMPUTED)
            if not np.can_cast(computed_dtype(values), kind, "safe"):
                raise TypeError(
                    f"{call}: dtype is {kind} where the values are {values.dtype}, expected one "
                    "that has all their numbers"
                )
        return _summed(indices, values.astype(kind, copy=False), length)

    def __repr__(self) -> str:
        """Return the number of rows, their shape and their dtype."""
        values = self.values
        return f"<{type(self).__name__}: {len(self)} of shape {values.shape[1:]}, {values.dtype}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a pickle or a copy needs."""
        return type(self), (self.indices, self.values, self.length)


_COMPUTED = ("float32", "float64", "complex64", "complex128")


def _summed(places: Array, values: Array, length: int) -> Array:
    """Return zeros, to which values are added at these places along the first axis, in order."""
    size = prod(values.shape[1:])
    sums = np.zeros(length * size, values.dtype)
    # At single elements: NumPy is ten times as fast there as with rows.
    elements = places.astype(np.int64, copy=False)[:, None] * size + np.arange(size)
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        np.add.at(sums, elements.ravel(), values.ravel())
    return sums.reshape(length, *values.shape[1:])


def _parts_of(where: str, array: Any) -> _Parts | None:
    """Return the rows of a sparse tensor or array; None if it is neither.

    where: what messages call it.
    """
    if _is_sparse_tensor(array):
        return _parts_of_tensor(where, array)
    if _is_sparse_array(array):
        matrix = array.tocoo()
        coords = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)
        return _parts_of_elements(coords, matrix.data, matrix.shape)
    return None


# A user who has such an object has imported its library.


def _is_sparse_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return str(value.layout).startswith("torch.sparse_")  # not dense, MKL-DNN or nested ones


def _is_sparse_array(value: Any) -> bool:
    scipy = sys.modules.get("scipy.sparse")
    return scipy is not None and bool(scipy.issparse(value))


def _parts_of_tensor(where: str, tensor: Any) -> _Parts:
    """Return the rows of a sparse tensor of PyTorch."""
    where = f"{where} of shape {tuple(tensor.shape)}"
    if tensor.device.type != "cpu":
        raise ValueError(f"{where} is on {tensor.device}, expected one on the CPU (cpu())")
    tensor = tensor.detach()
    if not tensor.is_sparse:  # CSR and others
        tensor = tensor.to_sparse()
    if tensor.sparse_dim() == 0:
        raise ValueError(f"{where} has no sparse dimension, expected one or more")
    # The public methods need a coalesced tensor.
    coords, values = tensor._indices(), tensor._values()
    if len(coords) == 1:
        return coords[0], values, len(tensor)
    if values.element_size() == 2:
        values = values.float()  # exact; NumPy has no bfloat16
    return _parts_of_elements(coords.numpy(), values.numpy(), tuple(tensor.shape))


def _parts_of_elements(coords: Any, values: Array, shape: tuple[int, ...]) -> _Parts:
    """Return the rows of stored elements, or of stored arrays along the last axes."""
    rows, *others = coords
    steps = np.diff(rows, prepend=-1)
    if steps.min(initial=0) >= 0:  # in order, as in CSR: no need to sort
        indices, places = rows[steps > 0], np.cumsum(steps > 0) - 1
    else:
        indices, places = np.unique(rows, return_inverse=True)
    sizes = shape[1 : len(coords)]
    for size, other in zip(sizes, others, strict=True):
        places = places * size + other
    sums = _summed(places, values, len(indices) * prod(sizes))
    return indices, sums.reshape(len(indices), *shape[1:]), shape[0]


def is_of_rows(gradient: Any) -> bool:
    """Return whether a gradient is `Rows`, or sparse."""
    return isinstance(gradient, Rows) or _is_sparse_tensor(gradient) or _is_sparse_array(gradient)


def as_rows(gradient: Any, where: str = "Rows.from_sparse: array") -> Rows | None:
    """Return a gradient that is `Rows` or sparse as `Rows`, and None for others.

    where: what messages call it. Values that are copies are read-only: to clear them would not
    clear the gradient.
    """
    if isinstance(gradient, Rows):
        return gradient
    parts = _parts_of(where, gradient)
    if parts is None:
        return None
    if isinstance(parts[1], np.ndarray):
        parts[1].flags.writeable = False
    return Rows._of(where, parts)


_core.set_sparse_reader(as_rows)
