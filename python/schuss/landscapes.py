"""Landscapes: cost surfaces over the plane, with gradients, to watch and test how optimizers move.

Examples
--------
>>> from functools import partial
>>> import schuss
>>> from schuss import landscapes
>>> bowl = landscapes.bowl(condition=100)
>>> for optimizer in partial(schuss.SGD, lr=0.0195), partial(schuss.Momentum, lr=0.068):
...     path = landscapes.descend(optimizer, bowl, start=(-10, 1), steps=500)
...     landscapes.steps_until(path, lambda points: bowl(points) < 0.01, for_good=True)
217
80
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array, as_any_array
from schuss._errors import wrong_type
from schuss._hyperparameters import AT_LEAST_ONE, NON_NEGATIVE, count, flag
from schuss._listing import public_names

__all__ = ["Landscape", "bowl", "descend", "plateau", "rosenbrock", "saddle", "steps_until"]

__dir__ = public_names(__name__)

Point: TypeAlias = tuple[float, float]
"""x and y, or the bounds of one of them."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """A cost over the plane: call it with points for their costs, `gradient` for the slopes.

    Points that are too far away for floating point cost infinity or NaN, without a warning.
    Optimizers whose steps are too long reach them.

    Parameters
    ----------
    name : str
        The name in messages and pictures.
    formula : str
        The cost in x and y, as TeX.
    value : callable
        ``value(x, y)``: the cost at each element of arrays x and y, or a single cost for all.
    slopes : callable
        ``slopes(x, y)``: the pair of the partial derivatives by x and by y.
    window : pair of pairs of float
        The part of the plane to draw: the bounds of x and of y.
    minimum, saddle : pair of float, optional
        Where the minimum or the saddle lies.

    Raises
    ------
    TypeError
        When called: if the points are not real numbers.
    ValueError
        When called: if the points are not an array, or its last axis is not of length 2.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, sections 4.3.1 and 8.2, on what the
    surfaces of costs are like.

    Examples
    --------
    >>> from schuss.landscapes import Landscape
    >>> window = (-2, 2), (-2, 2)
    >>> ramp = Landscape("ramp", "2x - y", lambda x, y: 2 * x - y, lambda x, y: (2, -1), window)
    >>> ramp([[0, 0], [3, 1]]), ramp.gradient([[0, 0], [3, 1]])
    (array([0., 5.]), array([[ 2., -1.],
           [ 2., -1.]]))
    """

    name: str
    formula: str
    value: Callable[[Array, Array], Array] = field(repr=False)
    slopes: Callable[[Array, Array], tuple[npt.ArrayLike, npt.ArrayLike]] = field(repr=False)
    window: tuple[Point, Point]
    minimum: Point | None = None
    saddle: Point | None = None

    def __call__(self, points: npt.ArrayLike) -> Any:
        """Return the cost at points.

        Parameters
        ----------
        points : array, shape (..., 2)
            Their x and y.

        Returns
        -------
        array of float, shape (...)
            The costs, in float32 for points in float32, else in float64.
        """
        x, y = self._coordinates(points)
        costs = np.empty(x.shape, x.dtype)
        with _no_warnings():
            costs[...] = self.value(x, y)
        return costs[()]

    def gradient(self, points: npt.ArrayLike) -> Array:
        """Return the gradient of the cost at points.

        Parameters
        ----------
        points : array, shape (..., 2)
            Their x and y.

        Returns
        -------
        array of float, shape (..., 2)
            The slopes along x and along y, in float32 for points in float32, else in float64.

        Raises
        ------
        TypeError
            If `points` are not real numbers.
        ValueError
            If their last axis is not of length 2.
        """
        x, y = self._coordinates(points)
        gradient = np.empty((*x.shape, 2), x.dtype)
        with _no_warnings():
            gradient[..., 0], gradient[..., 1] = self.slopes(x, y)
        return gradient

    def _coordinates(self, points: npt.ArrayLike) -> tuple[Array, Array]:
        array = _floats(self.name, "points", points)
        if array.shape[-1:] != (2,):
            raise ValueError(f"{self.name}: points has shape {array.shape}, expected (..., 2)")
        return array[..., 0], array[..., 1]


def _no_warnings() -> np.errstate:
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def _floats(call: str, name: str, value: npt.ArrayLike) -> Array:
    """Return real numbers as float32 if they are float32, or else as float64."""
    array = np.asarray(as_any_array(call, name, value))
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{call}: {name} has dtype {array.dtype}, expected real numbers")
    return array if array.dtype == np.float32 else array.astype(np.float64, copy=False)


def bowl(condition: float = 100.0) -> Landscape:
    """Return the bowl ``(x^2 + condition*y^2) / 2``: long along x, steep along y.

    With a rate above ``2/condition``, gradient descent climbs the steep sides. With a lower rate it
    is slow along the floor.

    Parameters
    ----------
    condition : float
        The steepness along y over that along x; at least 1.

    Returns
    -------
    Landscape
        With its minimum, 0, at (0, 0).

    Raises
    ------
    TypeError, ValueError
        If `condition` is not a finite number of at least 1.

    References
    ----------
    Boyd & Vandenberghe, "Convex optimization", 2004, section 9.3.2: the quadratic problem in the
    plane.

    Examples
    --------
    >>> from schuss.landscapes import bowl
    >>> bowl(condition=25)([1, 2]), bowl(condition=25).gradient([1, 2])
    (np.float64(50.5), array([ 1., 50.]))
    """
    condition = AT_LEAST_ONE("bowl", "condition", condition)
    return Landscape(
        "bowl",
        rf"\frac{{1}}{{2}} (x^2 + {condition:g}\, y^2)",
        lambda x, y: (x * x + condition * (y * y)) / 2,
        lambda x, y: (x, condition * y),
        window=((-11.0, 3.0), (-1.6, 1.6)),
        minimum=(0.0, 0.0),
    )


def saddle() -> Landscape:
    """Return the saddle ``x^2 - y^2``: it rises along x and falls along y.

    Returns
    -------
    Landscape
        With its saddle at (0, 0). On the line y = 0 the slope along y is exactly 0: gradient
        descent that starts there ends at the saddle.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, figure 4.5.

    Examples
    --------
    >>> from schuss.landscapes import saddle
    >>> saddle()([2, 1]), saddle().gradient([2, 1])
    (np.float64(3.0), array([ 4., -2.]))
    """
    return Landscape(
        "saddle",
        "x^2 - y^2",
        lambda x, y: x * x - y * y,
        lambda x, y: (2 * x, -2 * y),
        window=((-1.5, 1.5), (-1.5, 1.5)),
        saddle=(0.0, 0.0),
    )


def plateau() -> Landscape:
    """Return the plateau ``1 - exp(-(x^2 + y^2) / 2)``: almost flat, with a valley at the origin.

    At a distance r from the origin the slope is ``r exp(-r^2 / 2)``: at most 0.61, at r = 1, but
    0.0013 at r = 4 and 0.000019 at r = 5.

    Returns
    -------
    Landscape
        With its minimum, 0, at (0, 0); the plateau's cost is 1.

    References
    ----------
    Barron, "A general and adaptive robust loss function", 2019, eq. 8, case alpha = -infinity
    (Welsch's loss), of the distance from the origin.

    Examples
    --------
    >>> from schuss.landscapes import plateau
    >>> plateau()([-4, 0]).round(4), plateau().gradient([-4, 0]).round(4)
    (np.float64(0.9997), array([-0.0013,  0.    ]))
    """
    return Landscape(
        "plateau",
        "1 - e^{-(x^2 + y^2) / 2}",
        lambda x, y: -np.expm1(-(x * x + y * y) / 2),
        lambda x, y: (x * (e := np.exp(-(x * x + y * y) / 2)), y * e),
        window=((-5.0, 2.0), (-2.2, 2.5)),
        minimum=(0.0, 0.0),
    )


def rosenbrock(a: float = 1.0, b: float = 100.0) -> Landscape:
    """Return Rosenbrock's valley ``(a - x)^2 + b (y - x^2)^2``: steep sides, a flat, bent floor.

    Parameters
    ----------
    a : float
        The x of the minimum; at least 0.
    b : float
        The steepness of the sides; at least 0.

    Returns
    -------
    Landscape
        With its minimum, 0, at (a, a^2).

    Raises
    ------
    TypeError, ValueError
        If `a` or `b` is not a finite number of at least 0.

    References
    ----------
    Rosenbrock, "An automatic method for finding the greatest or least value of a function", 1960.

    Examples
    --------
    >>> from schuss.landscapes import rosenbrock
    >>> rosenbrock()([[1, 1], [-1.2, 1]]).round(2), rosenbrock().gradient([-1.2, 1]).round(2)
    (array([ 0. , 24.2]), array([-215.6,  -88. ]))
    """
    a, b = NON_NEGATIVE("rosenbrock", "a", a), NON_NEGATIVE("rosenbrock", "b", b)
    width = a or 1.0
    return Landscape(
        "rosenbrock",
        rf"({a:g} - x)^2 + {b:g}\, (y - x^2)^2",
        lambda x, y: (a - x) ** 2 + b * (y - x * x) ** 2,
        lambda x, y: (-2 * (a - x) - 4 * b * x * (y - x * x), 2 * b * (y - x * x)),
        window=((-2 * width, 2 * width), (-(width**2), 3 * width**2)),
        minimum=(a, a * a),
    )


class Stepper(Protocol):
    """An object that makes optimizer steps, such as an optimizer."""

    def step(self, grads: Any, /) -> None:
        """Update the parameters in place."""


def descend(
    optimizer: Callable[[Array], Stepper],
    landscape: Landscape,
    start: npt.ArrayLike,
    steps: int,
) -> npt.NDArray[np.float64]:
    """Descend a landscape with an optimizer, and return the path.

    Parameters
    ----------
    optimizer : callable
        A function that makes an optimizer of parameters: a class, or
        ``partial(schuss.Momentum, lr=0.1)``. It is called with the position, a float64 array of
        shape (2,).
    landscape : Landscape
        The landscape.
    start : array, shape (2,)
        The initial x and y; not modified.
    steps : int
        The number of steps; at least 0.

    Returns
    -------
    array of float64, shape (steps + 1, 2)
        The start, and the position after each step.

    Raises
    ------
    TypeError
        If `optimizer` does not make an optimizer, `landscape` is not a `Landscape`, or `steps` is
        not an integer.
    ValueError
        If `start` is not two finite numbers, or `steps` is below 0.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, algorithm 8.1, with the whole cost's
    gradient.

    Examples
    --------
    >>> from functools import partial
    >>> import schuss
    >>> from schuss.landscapes import bowl, descend
    >>> descend(partial(schuss.SGD, lr=0.5), bowl(condition=2), (-4, 1), 3)
    array([[-4. ,  1. ],
           [-2. ,  0. ],
           [-1. ,  0. ],
           [-0.5,  0. ]])
    """
    steps = count("descend", "steps", steps, least=0)
    if not isinstance(landscape, Landscape):
        raise wrong_type("descend", "landscape", landscape, "a Landscape like bowl()")
    position = _position(start)
    expected = (
        "a function that makes an optimizer, like schuss.Adam or partial(schuss.Adam, lr=0.1)"
    )
    if not callable(optimizer):
        was = type(optimizer).__name__
        raise TypeError(f"descend: optimizer is of type {was}, expected {expected}")
    stepper = optimizer(position)
    if not callable(getattr(stepper, "step", None)):
        was = type(stepper).__name__
        raise TypeError(f"descend: optimizer makes a {was}, expected {expected}")
    path = np.empty((steps + 1, 2))
    path[0] = position
    for step in range(1, steps + 1):
        stepper.step(landscape.gradient(position))
        path[step] = position
    return path


def _position(start: npt.ArrayLike) -> npt.NDArray[np.float64]:
    position = _floats("descend", "start", start)
    if position.shape != (2,):
        raise ValueError(f"descend: start has shape {position.shape}, expected (2,)")
    if not np.isfinite(position).all():
        raise ValueError(f"descend: start is {position.tolist()}, expected two finite numbers")
    return position.astype(np.float64)  # a copy, which the optimizer updates


def steps_until(
    path: npt.ArrayLike,
    condition: Callable[[npt.NDArray[np.float64]], npt.ArrayLike],
    *,
    for_good: bool = False,
) -> int | None:
    """Return the number of steps until a condition holds on a path.

    Parameters
    ----------
    path : array, shape (steps + 1, 2)
        The start and the position after each step, as `descend` returns it.
    condition : callable
        ``condition(points)``: whether the condition holds at each of the points, shape
        (steps + 1, 2), as an array of bool, shape (steps + 1,).
    for_good : bool
        Count the steps until the condition holds for the rest of the path. Without it, a path
        counts that only runs through such points.

    Returns
    -------
    int or None
        The number of steps, 0 if the condition holds at the start; None if it never does.

    Raises
    ------
    TypeError
        If `path` is not an array of real numbers, `condition` is not callable, or `for_good` is not
        a bool.
    ValueError
        If `path` or the result of `condition` has another shape.

    Examples
    --------
    >>> from schuss.landscapes import steps_until
    >>> path = [[4, 0], [1, 0], [-2, 0], [1, 0], [0, 0]]
    >>> steps_until(path, lambda points: abs(points[:, 0]) < 1.5)
    1
    >>> steps_until(path, lambda points: abs(points[:, 0]) < 1.5, for_good=True)
    3
    """
    if not callable(condition):
        raise wrong_type("steps_until", "condition", condition, "a function of points")
    points = _floats("steps_until", "path", path).astype(np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"steps_until: path has shape {points.shape}, expected (steps + 1, 2)")
    holds = np.asarray(condition(points))
    if holds.dtype != np.bool_ or holds.shape != points.shape[:1]:
        raise ValueError(
            f"steps_until: condition returns {holds.dtype} of shape {holds.shape}, expected bool "
            f"of shape {points.shape[:1]}"
        )
    if flag("steps_until", "for_good", for_good):
        holds = np.logical_and.accumulate(holds[::-1])[::-1]
    return int(holds.argmax()) if holds.any() else None
