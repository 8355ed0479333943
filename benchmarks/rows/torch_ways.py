"""PyTorch's optimizers with sparse gradients, as `torch.nn.Embedding(sparse=True)` gives them."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.harness import Array, Rule
from benchmarks.rows.draws import Batch
from benchmarks.rows.ways import Training, Way


def _prepare(
    make: Callable[[list[Any], Rule], Any], rule: Rule, table: Array, batches: Sequence[Batch]
) -> Training:
    torch: Any = import_module("torch")
    torch.sparse.check_sparse_tensor_invariants.disable()  # PyTorch warns if neither is chosen
    param = torch.nn.Parameter(torch.from_numpy(table))
    optimizer = make([param], rule)

    def step(grad: Any) -> None:
        param.grad = grad
        optimizer.step()

    grads = [
        torch.sparse_coo_tensor(
            torch.from_numpy(batch.indices)[None], torch.from_numpy(batch.values), table.shape
        )
        for batch in batches
    ]
    return Training([partial(step, grad) for grad in grads])


def _sparse_adam(params: list[Any], rule: Rule) -> Any:
    h = rule.hyperparameters
    optim: Any = import_module("torch.optim")
    return optim.SparseAdam(params, h["lr"], (h["beta1"], h["beta2"]), h["eps_hat"])


def _sgd(params: list[Any], rule: Rule) -> Any:
    return import_module("torch.optim").SGD(params, **rule.hyperparameters)


def _adagrad(params: list[Any], rule: Rule) -> Any:
    return import_module("torch.optim").Adagrad(params, **rule.hyperparameters)


_OPTIMIZERS = {"Adam": _sparse_adam, "SGD": _sgd, "Adagrad": _adagrad}
TORCH = Way(
    "torch, sparse",
    {rule: partial(_prepare, make) for rule, make in _OPTIMIZERS.items()},
    package="torch",
)
