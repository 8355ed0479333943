"""The picture of learning-rate decay: five classical decays, and four plans for all epochs."""

import numpy as np
from matplotlib.figure import Figure

from schuss import schedules
from schuss.demo.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, styled

EPOCHS = 60
LR = 0.2

DECAYS: dict[str, schedules.Schedule] = {
    r"inverse time: $\alpha_0 / (1 + \mathrm{epoch})$": schedules.InverseTime(LR, rate=1.0),
    r"exponential: $0.95^{\mathrm{epoch}}\, \alpha_0$": schedules.Exponential(LR, base=0.95),
    r"inverse square root: $\alpha_0 / \sqrt{\mathrm{epoch}}$": schedules.InverseSqrt(LR, k=1.0),
    "staircase: halved every 10 epochs": schedules.Staircase(LR, every=10, factor=0.5),
    "manual: set at epochs 1, 20 and 40": schedules.Manual({1: 0.15, 20: 0.05, 40: 0.01}),
}
PLANS: dict[str, schedules.Schedule] = {
    "cosine": schedules.Cosine(LR, EPOCHS),
    "warm-up, then cosine": schedules.WarmUp(schedules.Cosine(LR, EPOCHS - 10), steps=10),
    "one cycle": schedules.OneCycle(LR, EPOCHS),
    "cosine with restarts": schedules.CosineRestarts(LR, 15, decay=0.7),
}
"""The schedules in the left and in the right panel, by their labels."""

COLORS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION)


@styled
def picture() -> Figure:
    """Draw the rate of each schedule over the epochs."""
    drawn = figure(5.0, "Learning rates that decay")
    left, right = drawn.subplots(1, 2, sharey=True)
    left.set(title="Five decays", ylabel=r"learning rate $\alpha$")
    right.set(title=f"Four plans for {EPOCHS} epochs")
    epochs = np.arange(1, EPOCHS + 1)
    for axes, panel in ((left, DECAYS), (right, PLANS)):
        for (label, schedule), color in zip(panel.items(), COLORS, strict=False):
            jumps = isinstance(schedule, schedules.Staircase | schedules.Manual)
            style = "steps-post" if jumps else "default"
            axes.plot(epochs, schedule(epochs), color=color, drawstyle=style, label=label)
        axes.set(xlabel="epoch", xlim=(1, EPOCHS), ylim=(0, 0.205))
        axes.set(xticks=[1, *range(10, EPOCHS + 1, 10)], yticks=np.linspace(0, LR, 5))
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17))
    return drawn
