"""The averages of the parameters of an optimizer, from their first step on."""

from collections.abc import Sequence

import numpy as np

from schuss._arrays import Array, components


class ParameterAverages:
    """Averages of parameters, and the sum of the weights of the values in them."""

    __slots__ = ("_weights", "arrays", "from_zero")

    def __init__(self, values: Sequence[Array], *, from_zero: bool) -> None:
        """Begin at zero, or with the values of the parameters before the first step."""
        self.from_zero = from_zero
        self.arrays = [np.zeros_like(each) if from_zero else each.copy() for each in values]
        self._weights = [0.0, 0.0]  # in float32 and in float64

    def beta(self, decay: float) -> float:
        """Return the weight of the past in the next step."""
        is_first = self._weights[1] == 0 and not self.from_zero
        return 0.0 if is_first else decay

    def count_step(self, beta: float) -> None:
        """Count a step in which the past had this weight."""
        gains = float(np.float32(1 - beta)), 1 - beta
        self._weights = [w + gain * (1 - w) for w, gain in zip(self._weights, gains, strict=True)]

    def corrected(self, values: Sequence[Array]) -> list[Array]:
        """Return the averages as they are read; `values` are those of the parameters."""
        if not self.from_zero:
            return self.arrays
        return [self._corrected(*pair) for pair in zip(self.arrays, values, strict=True)]

    def _corrected(self, average: Array, values: Array) -> Array:
        corrected = (values if self._weights[1] == 0 else average).copy()
        parts = components(corrected)
        weight = self._weights[parts.dtype == np.float64]
        if weight != 0:
            with np.errstate(all="ignore"):
                parts[...] = parts / weight
        return corrected
