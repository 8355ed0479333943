"""A training loop in PyTorch, with different optimizers."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import repeat
from typing import Any

import schuss
from benchmarks.harness import (
    Record,
    Settings,
    Stopwatch,
    check_values,
    interleave,
    line,
    tracked,
)
from benchmarks.loop import TURN_SECONDS
from benchmarks.peers import installed
from benchmarks.processes import serve, team

WIDTHS = (64, 512, 2_048)
EXAMPLES, FEATURES, CLASSES = 128, 256, 10
CHECK_STEPS = 5
NO_STEP = "gradients alone"
OF_SCHUSS = "schuss.torch"


def _torch_adam(**options: Any) -> Callable[[Any], Any]:
    return lambda params: import_module("torch").optim.Adam(params, **options)


def _schuss_adam(params: Any) -> Any:
    return import_module("schuss.torch").Adam(params)


def _schuss_adam_of_one_thread(params: Any) -> Any:
    schuss.set_num_threads(1)
    return _schuss_adam(params)


OPTIMIZERS: dict[str, Callable[[Any], Any] | None] = {
    NO_STEP: None,
    OF_SCHUSS: _schuss_adam,
    "schuss.torch, 1 thread": _schuss_adam_of_one_thread,
    "torch.optim": _torch_adam(),
    "torch.optim, fused": _torch_adam(fused=True),
}


class Loop:
    """Runs in the process of a contender."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._torch: Any = import_module("torch")

    def pose(self, width: int) -> None:
        """Prepare iterations with a network of three layers of this width."""
        make = OPTIMIZERS[self._name]
        if make is not None:
            model, iterate = self._training(min(width, 65), make)
            expected, iterate_as_torch = self._training(min(width, 65), _torch_adam())
            for _ in range(CHECK_STEPS):
                iterate()
                iterate_as_torch()
            for a, b in zip(model.parameters(), expected.parameters(), strict=True):
                what = f"{self._name}: a parameter"
                check_values(what, a.detach().numpy(), b.detach().numpy(), exact=False)
        _, iterate = self._training(width, make)

        def iterations(count: int) -> None:
            for _ in repeat(None, count):
                iterate()

        self._stopwatch = Stopwatch(iterations, seconds=TURN_SECONDS)

    def measure(self) -> float:
        """Return the seconds of an iteration."""
        return self._stopwatch()

    def _training(self, width: int, make: Callable[[Any], Any] | None) -> Any:
        torch = self._torch
        torch.manual_seed(0)
        layers = [torch.nn.Linear(FEATURES, width), torch.nn.ReLU()]
        layers += [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, CLASSES)]
        model = torch.nn.Sequential(*layers)
        x, y = torch.randn(EXAMPLES, FEATURES), torch.randint(CLASSES, (EXAMPLES,))
        optimizer = None if make is None else make(model.parameters())

        def iterate() -> None:
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            if optimizer is not None:
                optimizer.step()

        return model, iterate


def torch_loop(settings: Settings) -> list[Record]:
    """A network of three layers in PyTorch, 128 examples: gradients, then an Adam step, float32."""
    if not installed("torch"):
        return []
    records = []
    with team("benchmarks.torch_loop", list(OPTIMIZERS)) as processes:
        for width in tracked("torch_loop", settings.sizes or WIDTHS):
            for process in processes.values():
                process.call("pose", width)
            measures = {name: partial(processes[name].call, "measure") for name in OPTIMIZERS}
            times = interleave(measures, settings.rounds)
            elements = (FEATURES + 1 + width + 1 + CLASSES) * width + CLASSES
            labels = {"width": width, "size": elements}
            records += [
                line(labels, name, times, "microseconds", [OF_SCHUSS]) for name in OPTIMIZERS
            ]
    return records


if __name__ == "__main__":
    serve(Loop)
