"""The picture of learning-rate decay: the five classical curves, and four that follow a plan."""

import numpy as np
from matplotlib.figure import Figure

from schuss import schedules
from schuss.demo.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, styled

__all__ = ["DECAYS", "EPOCHS", "PLANS", "picture"]

EPOCHS = 60
LR = 0.2

DECAYS: dict[str, tuple[schedules.Schedule, str]] = {
    "inverse time": (schedules.InverseTime(LR, rate=1.0), BLUE),
    "exponential": (schedules.Exponential(LR, base=0.95), ORANGE),
    "inverse square root": (schedules.InverseSqrt(LR, k=1.0), GREEN),
    "staircase": (schedules.Staircase(LR, every=10, factor=0.5), PURPLE),
    "manual": (schedules.Manual({1: 0.15, 20: 0.05, 40: 0.01}), VERMILION),
}
FORMULAS = {
    "inverse time": r"$\alpha_0 / (1 + \mathrm{epoch})$",
    "exponential": r"$0.95^{\mathrm{epoch}}\, \alpha_0$",
    "inverse square root": r"$\alpha_0 / \sqrt{\mathrm{epoch}}$",
    "staircase": "halved every 10 epochs",
    "manual": "set at epochs 1, 20 and 40",
}
PLANS: dict[str, tuple[schedules.Schedule, str]] = {
    "cosine": (schedules.Cosine(LR, EPOCHS), BLUE),
    "warm-up, then cosine": (
        schedules.WarmUp(schedules.Cosine(LR, EPOCHS - 10), steps=10),
        ORANGE,
    ),
    "one cycle": (schedules.OneCycle(LR, EPOCHS), GREEN),
    "cosine with restarts": (schedules.CosineRestarts(LR, 15, decay=0.7), PURPLE),
}


@styled
def picture() -> Figure:
    """Draw the rate of each schedule over the epochs."""
    drawn = figure(5.0, "Learning rates that decay")
    left, right = drawn.subplots(1, 2, sharey=True)
    epochs = np.arange(1, EPOCHS + 1)
    for name, (schedule, color) in DECAYS.items():
        jumps = isinstance(schedule, schedules.Staircase | schedules.Manual)
        left.plot(
            epochs,
            schedule(epochs),
            color=color,
            drawstyle="steps-post" if jumps else "default",
            label=f"{name}: {FORMULAS[name]}",
        )
    for name, (schedule, color) in PLANS.items():
        right.plot(epochs, schedule(epochs), color=color, label=name)
    left.set_title("Five decays")
    right.set_title(f"Four plans for {EPOCHS} epochs")
    left.set_ylabel(r"learning rate $\alpha$")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(1, EPOCHS)
        axes.set_ylim(0, 0.205)
        axes.set_yticks(np.linspace(0, LR, 5))
        axes.set_xticks([1, *range(10, EPOCHS + 1, 10)])
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17))
    return drawn
