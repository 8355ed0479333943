"""What the contenders are, and those of schuss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

import schuss
from benchmarks.contenders import FURTHER_RULES, MOMENTUM
from benchmarks.harness import Array, Rule, Step
from benchmarks.rows.draws import Batch

Semantics = Literal["exact", "lazy"]

ROWS_ADAM = Rule(
    "Adam",
    schuss.Adam,
    schuss.reference.adam,
    # torch.optim.SparseAdam adds its eps to the uncorrected root.
    hyperparameters={"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 0.0, "eps_hat": 1e-8},
    counts_steps=True,
)
SGD = Rule("SGD", schuss.SGD, schuss.reference.sgd, hyperparameters={"lr": 0.01})
SGD_WITH_DECAY = Rule(
    "SGD, decay",
    schuss.SGD,
    schuss.reference.sgd,
    hyperparameters={"lr": 0.01, "weight_decay": 1e-4},
)
(ADAGRAD,) = (rule for rule in FURTHER_RULES if rule.name == "Adagrad")
ROWWISE_ADAGRAD = Rule(
    "row-wise Adagrad",
    schuss.RowwiseAdagrad,
    schuss.reference.rowwise_adagrad,
    hyperparameters={"lr": 0.01, "eps": 1e-10},
    counts_steps=True,
)
RULES = (ROWS_ADAM, SGD, SGD_WITH_DECAY, MOMENTUM, ADAGRAD, ROWWISE_ADAGRAD)


class Training(NamedTuple):
    """The steps of a table's training, one for each mini-batch."""

    steps: Sequence[Step]
    finish: Step = lambda: None
    """Brings all rows up to date."""


Prepare = Callable[[Rule, Array, Sequence[Batch]], Training]


@dataclass(frozen=True)
class Way:
    """A contender: how it prepares the training of a table, for each rule that it knows."""

    name: str
    prepare: Mapping[str, Prepare]
    semantics: Semantics = "lazy"
    """Whether rows without a gradient make the steps that a gradient of zero makes, or rest."""
    package: str = "schuss"
    steps_alike: bool = False
    """Whether a step costs the same for any mini-batch: then those of a single one are timed."""


def kind_of(rule: Rule) -> str:
    """Return the name of the rule in the extension and in the reference."""
    return rule.optimizer.__name__.lower()


def states_of(rule: Rule) -> int:
    """Return how many states it has that are as large as the table."""
    table = np.ones((2, 2), np.float32)
    states = rule.optimizer(table).state.values()
    return sum(np.shape(state) == table.shape for state in states)


def optimizer_of(rule: Rule, table: Array, rows: Semantics) -> schuss.optimizers.Optimizer:
    return rule.optimizer(table, rows=rows, **rule.hyperparameters)


def _dense(rule: Rule, table: Array, batches: Sequence[Batch]) -> Training:
    step = optimizer_of(rule, table, "exact").step
    return Training([partial(step, batch.rows.to_dense(len(table))) for batch in batches])


def _exact(rule: Rule, table: Array, batches: Sequence[Batch]) -> Training:
    optimizer = optimizer_of(rule, table, "exact")

    def step(batch: Batch) -> None:
        optimizer.rows(batch.indices)  # which the forward pass reads
        optimizer.step(batch.rows)

    return Training([partial(step, batch) for batch in batches], optimizer.flush)


def _lazy(rule: Rule, table: Array, batches: Sequence[Batch]) -> Training:
    optimizer = optimizer_of(rule, table, "lazy")

    def step(batch: Batch) -> None:
        optimizer.step(batch.rows)

    return Training([partial(step, batch) for batch in batches])


def _by_any_rule(prepare: Prepare) -> Mapping[str, Prepare]:
    return dict.fromkeys((rule.name for rule in RULES), prepare)


DENSE = Way("schuss, dense", _by_any_rule(_dense), "exact", steps_alike=True)
EXACT = Way("schuss, exact", _by_any_rule(_exact), "exact")
LAZY = Way("schuss, lazy", _by_any_rule(_lazy))
OF_SCHUSS = (DENSE, EXACT, LAZY)
