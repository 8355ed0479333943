"""What an optimizer does with rows of its parameters."""

from typing import Any

from schuss._arrays import GradTree
from schuss._param_groups import Grouped


class ByRows(Grouped):
    """The methods of an optimizer for parameters whose gradients are `schuss.Rows`."""

    __slots__ = ()

    def rows(self, indices: GradTree) -> Any:
        """Bring rows of the parameters up to date, and return copies of them.

        Read the rows that the next forward pass uses with this: steps leave the other rows of a
        parameter for later, if its gradients are `schuss.Rows`; see ``rows`` in
        `schuss.optimizers.Options`. Before you change parameters yourself, call `flush`.

        Parameters
        ----------
        indices : array, or sequence, mapping or dataclass of arrays
            In the structure of `params`, the indices of rows of each parameter, in int32 or int64
            and in any shape; each from 0 to below the number of rows. None in place of an array, or
            of a container of some: no rows.

        Returns
        -------
        array, or sequence, mapping or dataclass of arrays
            ``params[indices]`` for each parameter, in new arrays, and None where `indices` have
            None.

        Raises
        ------
        TypeError
            If indices are not an array, or have another dtype.
        ValueError
            If an index is out of range, or the structure is not that of `params`; if a parameter
            has no axes, has become read-only, or was resized.
        RuntimeError
            If a step of this optimizer is under way.

        Nothing is changed by a call that raises.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> table = np.zeros((1000, 2))
        >>> opt = schuss.Adam(table, lr=0.1)
        >>> for words in (np.array([3, 7]), np.array([9, 3])):
        ...     vectors = opt.rows(words)
        ...     opt.step(schuss.Rows(words, vectors - 1))
        >>> opt.rows(np.array([3])).round(3)
        array([[0.2, 0.2]])
        """
        return self._internals.rows(indices)

    def flush(self) -> None:
        """Bring all rows of the parameters, and of their state, up to date.

        Call this before you read, save or change parameters yourself, if their gradients are
        `schuss.Rows`. `state`, `state_dict`, `average`, `master`, `copies`, pickles, `schuss.save`
        and the end of each epoch of `schuss.fit` do so themselves; `params`, `param_groups`,
        `schuss.kernels` and steps of other optimizers do not. A row makes each step that it has
        missed, until no further one can change it. If no row is behind, the call costs nothing.

        Raises
        ------
        ValueError
            If a parameter has become read-only, or was resized.
        RuntimeError
            If a step of this optimizer is under way.

        Examples
        --------
        >>> import numpy as np, schuss
        >>> table = np.ones((3, 1))
        >>> opt = schuss.Momentum(table, lr=1.0, beta=0.5)
        >>> for word in (0, 1):
        ...     opt.step(schuss.Rows(np.array([word]), np.array([[1.0]])))
        >>> table.T
        array([[0.5, 0.5, 1. ]])
        >>> opt.flush()  # the first row has moved in the second step too
        >>> table.T
        array([[0.25, 0.5 , 1.  ]])
        """
        self._internals.flush("flush")
