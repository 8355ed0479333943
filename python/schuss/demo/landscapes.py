"""The picture of landscapes: the paths of four optimizers down a bowl, a saddle and a plateau."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import schuss
from schuss.demo.style import COLORS, figure, note, styled
from schuss.landscapes import Landscape, Stepper, bowl, descend, plateau, saddle, steps_until

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A landscape, where to start, at which rates, and when the path ends."""

    landscape: Landscape
    start: tuple[float, float]
    rates: dict[str, float]
    title: str
    levels: npt.NDArray[np.float64]
    done: Callable[[Points], npt.NDArray[np.bool_]]
    legend: str  # its location

    def paths(self) -> dict[str, tuple[Points, int]]:
        """Return each optimizer's path until the scene is done, and its number of steps."""
        return {
            name: self.path(partial(getattr(schuss, name), lr=lr))
            for name, lr in self.rates.items()
        }

    def path(self, optimizer: Callable[..., Stepper]) -> tuple[Points, int]:
        """Return an optimizer's path until the scene is done, and its number of steps."""
        path = descend(optimizer, self.landscape, self.start, 2000)
        steps = steps_until(path, self.done, for_good=True)
        assert steps is not None
        return path[: steps + 1], steps


SCENES = (
    Scene(
        bowl(condition=100),
        start=(-10, 1),
        # About the rates with the fewest steps; higher ones overshoot or climb out.
        rates={"SGD": 0.0195, "Momentum": 0.068, "RMSprop": 0.0256, "Adam": 0.53},
        title="steps until the cost stays below 0.01",
        levels=np.geomspace(0.1, 400, 12),
        done=lambda points: bowl(condition=100)(points) < 0.01,
        legend="upper right",
    ),
    Scene(
        saddle(),
        start=(-1.2, 0.001),
        rates=dict.fromkeys(COLORS, 0.05),
        title="steps to leave: until |y| > 1",
        levels=np.linspace(-2.25, 2.25, 13),
        done=lambda points: np.abs(points[:, 1]) > 1,
        legend="lower left",
    ),
    Scene(
        plateau(),
        start=(-4, 1.5),
        rates={"SGD": 1.0, "Momentum": 1.0, "RMSprop": 0.05, "Adam": 0.05},
        title="steps to leave: until the cost is below 0.5",
        levels=np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 0.999]),
        done=lambda points: plateau()(points) < 0.5,
        legend="lower left",
    ),
)
# Where two paths coincide, the first is visible on both sides of the second.
WIDTHS = {"SGD": 2.4, "Momentum": 1.0, "RMSprop": 1.2, "Adam": 1.2}


@styled
def picture() -> Figure:
    """Draw the paths over the contours, with the number of steps of each."""
    drawn = figure(7.6, "Ways down: the same start, four optimizers")
    panels: dict[str, Axes] = drawn.subplot_mosaic(
        [["bowl", "bowl"], ["saddle", "plateau"]], height_ratios=[3, 4], width_ratios=[2, 3]
    )
    for scene in SCENES:
        _draw(panels[scene.landscape.name], scene)
    note(
        drawn,
        "dots: steps; white circle: start; cross: the minimum or the saddle\n"
        f"{_why_momentum_is_slower()}",
    )
    return drawn


def _why_momentum_is_slower() -> str:
    """Explain the averaging form on landscapes where Momentum has the rate of SGD."""
    same_rate = [scene for scene in SCENES if scene.rates["Momentum"] == scene.rates["SGD"]]
    names = " and ".join(scene.landscape.name for scene in same_rate)
    steps = [
        scene.path(partial(schuss.Momentum, lr=scene.rates["SGD"], dampening=0.0))[1]
        for scene in same_rate
    ]
    return (
        r"Momentum averages the gradients, $v = 0.9\,v + 0.1\,g$: at the rate of SGD its steps are "
        f"no larger, and it starts slowly,\nso it is slower on {names}. "
        r"Summing them, $v = 0.9\,v + g$ (or ten times the rate), it takes "
        f"{' and '.join(map(str, steps))} steps there."
    )


def _draw(axes: Axes, scene: Scene) -> None:
    landscape = scene.landscape
    x, y = (np.linspace(low, high, 201) for low, high in landscape.window)
    cost = landscape(np.stack(np.meshgrid(x, y), axis=-1))
    axes.contourf(x, y, cost, scene.levels, cmap="Greys", alpha=0.12, extend="both")
    axes.contour(x, y, cost, scene.levels, colors="0.75", linewidths=0.5, linestyles="solid")
    for name, (path, steps) in scene.paths().items():
        axes.plot(
            *path.T,
            color=COLORS[name],
            linewidth=WIDTHS[name],
            marker="o",
            markersize=WIDTHS[name] + 2,
            markeredgewidth=0,
            label=rf"{name}: {steps} steps ($\alpha$ = {scene.rates[name]:g})",
        )
    axes.plot(*scene.start, "o", color="white", markeredgecolor="black", markersize=7)
    axes.plot(*(landscape.minimum or landscape.saddle or ()), "+", color="black", markersize=9)
    axes.set_title(f"{landscape.name.capitalize()}: $f = {landscape.formula}$")
    axes.set(xlim=landscape.window[0], ylim=landscape.window[1], xlabel="x", ylabel="y")
    axes.grid(visible=False)
    axes.legend(
        loc=scene.legend,
        title=scene.title,
        title_fontsize="small",
        alignment="left",
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
    )
