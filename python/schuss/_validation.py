"""The validation of `fit`: on examples, by a function, or on mini-batches."""

from typing import Any

import numpy as np

from schuss._arrays import ArrayTree
from schuss._batch_sources import examples_in
from schuss._fit_ranks import OneProcess
from schuss._hyperparameters import real
from schuss._loss import Loss, evaluate
from schuss.history import mean_cost


def validate(
    validation: Any, loss_and_grad: Loss, params: ArrayTree, ranks: OneProcess, axis: int
) -> float:
    """Return the validation, the same on all ranks, each of which does its share."""
    if callable(validation):
        return ranks.mean(real("fit", "validation(params)", validation(params)))
    if isinstance(validation, tuple):
        examples, share = ranks.share_of(validation, axis)
        cost = 0.0 if examples == 0 else evaluate("fit", loss_and_grad, params, share)[0]
        return ranks.mean(cost, examples)
    rows = [
        (evaluate("fit", loss_and_grad, params, batch)[0], size)
        for batch, size in ranks.dealt(
            validation, lambda batch: examples_in("validation", batch, axis) or 1
        )
    ]
    costs, sizes = ranks.collected(np.array(rows, np.float64).reshape(-1, 2)).T
    if not costs.size:
        raise ValueError("fit: validation yields no batches, expected at least one")
    return mean_cost(costs, sizes / max(sizes))
