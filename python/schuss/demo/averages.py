"""The picture of averages: a year of daily temperatures, averaged over more or fewer days."""

import csv
from datetime import date, datetime
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import vega_datasets
from matplotlib.dates import DateFormatter, MonthLocator
from matplotlib.figure import Figure

import schuss
from schuss.demo.style import BLUE, GREEN, ORANGE, VERMILION, figure, note, styled

YEAR = 2012
COLORS = {0.5: ORANGE, 0.9: GREEN, 0.98: BLUE}
LONGEST = max(COLORS)


def temperatures() -> tuple[list[date], npt.NDArray[np.float64]]:
    """Return the days of 2012 and the highest temperature of each in Seattle, in degrees Celsius.

    The data are public domain: records of the United States' National Oceanic and Atmospheric
    Administration (NOAA), from the package vega_datasets.
    """
    record = files(vega_datasets) / "_data" / "seattle-weather.csv"
    with record.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["date"].startswith(f"{YEAR}/")]
    days = [datetime.strptime(row["date"], "%Y/%m/%d").date() for row in rows]
    return days, np.array([float(row["temp_max"]) for row in rows])


@styled
def picture() -> Figure:
    """Draw the averages with three values of beta, and one of them without bias correction."""
    days, measured = temperatures()
    drawn = figure(6.6, f"Exponentially weighted averages: a year of temperatures, Seattle {YEAR}")
    above, below = drawn.subplots(2, 1, sharex=True, sharey=True)
    for axes in (above, below):
        axes.plot(days, measured, ".", color="0.72", markersize=4, label="a day's highest")
        axes.set_ylabel("temperature (°C)")
    for beta, color in COLORS.items():
        label = rf"$\beta$ = {beta}: about {1 / (1 - beta):.0f} days"
        width = 1.0 if beta == min(COLORS) else 2.0
        above.plot(days, schuss.ewma(measured, beta), color=color, linewidth=width, label=label)
    above.set_title(r"The larger $\beta$, the smoother the average, and the later it follows")

    bare = schuss.ewma(measured, LONGEST, bias_correction=False)
    corrected = schuss.ewma(measured, LONGEST)
    below.plot(days, corrected, color=COLORS[LONGEST], linewidth=2.0, label="with bias correction")
    below.plot(days, bare, "--", color=VERMILION, linewidth=2.0, label="without it: from 0")
    below.set_title(rf"$\beta$ = {LONGEST} with and without bias correction")
    for axes in (above, below):
        axes.legend(loc="upper left")
    below.xaxis.set_major_locator(MonthLocator())
    below.xaxis.set_major_formatter(DateFormatter("%b"))
    below.set_xlim(days[0], days[-1])
    note(drawn, "Data: NOAA, public domain; seattle-weather of the package vega_datasets")
    return drawn
