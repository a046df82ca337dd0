"""A frontier: measured points of a trade-off, as a table and as a figure."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget import _html
from recsys_budget._style import BLUE, GREY, PLAIN, VERMILION, clip, printable
from recsys_budget.errors import SpecificationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows that a notebook shows of a frontier.
_SHOWN = 30


@dataclass(frozen=True, eq=False)
class Frontier:
    """Points of a trade-off between two quantities.

    Attributes:
        frame: A row a point, in the order of the sweep; not to be changed.
        x: Column on the horizontal axis.
        y: Column on the vertical axis, where more is better.
        x_better: Whether ``"more"`` or ``"less"`` of x is better.
        label: Column that names a point in the figure, or None.
        error: Column with the standard error of y, or None.
        note: What a reader must know about the figures, shown with them.
    """

    frame: pd.DataFrame
    x: str
    y: str
    x_better: str
    label: str | None = None
    error: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.x_better not in ("more", "less"):
            raise SpecificationError(f"x_better={self.x_better!r}; use 'more' or 'less'")

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        dominated = int(self.dominated().sum())
        note = f": {self.note}" if self.note else ""
        return f"Frontier({self.y} against {self.x}, {len(self)} points, {dominated} dominated{note})"

    def dominated(self) -> NDArray[np.bool_]:
        """Which points another point beats: at least as good on both axes, and better on one.

        Returns:
            Shape ``(n_points,)``, in the order of the frame.
        """
        x = self.frame[self.x].to_numpy(np.float64) * (1 if self.x_better == "more" else -1)
        y = self.frame[self.y].to_numpy(np.float64)
        as_good = (x[:, None] >= x) & (y[:, None] >= y)
        better = (x[:, None] > x) | (y[:, None] > y)
        return np.asarray((as_good & better).any(axis=0))

    def to_frame(self) -> pd.DataFrame:
        """A copy of the points with a column ``dominated``."""
        return self.frame.assign(dominated=self.dominated())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points: those not dominated joined by a line, dominated ones faint.

        Args:
            ax: Where to draw; None makes a new figure.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(6, 4), layout="constrained")[1]
        points = self.to_frame().sort_values(self.x)
        best = points[~points["dominated"]]
        rest = points[points["dominated"]]
        ax.plot(best[self.x], best[self.y], color=BLUE, marker="o", markerfacecolor=VERMILION, zorder=3)
        if len(rest):
            ax.plot(rest[self.x], rest[self.y], "o", color=GREY, label="dominated", zorder=2)
            ax.legend(frameon=False)
        if self.error is not None:
            ax.errorbar(points[self.x], points[self.y], points[self.error], fmt="none", ecolor=GREY, zorder=1)
        if self.label is not None:
            for x, y, name in zip(points[self.x], points[self.y], points[self.label], strict=True):
                said = clip(printable(name), 40)
                ax.annotate(said, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8, **PLAIN)
        ax.set_xlabel(clip(printable(self.x.replace("_", " ")), 60), **PLAIN)
        ax.set_ylabel(clip(printable(self.y.replace("_", " ")), 60), **PLAIN)
        ax.grid(alpha=0.3)
        ax.margins(x=0.08)
        if self.note:
            # matplotlib's own wrapping takes text between dollars for a formula whatever it is told.
            said = textwrap.fill(clip(printable(self.note), 250), 85)
            ax.set_title(said, fontsize=8, loc="left", **PLAIN)
        return ax

    def _repr_html_(self) -> str:
        """The figure and its points; everything that somebody wrote is escaped."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        self.plot(ax=figure.subplots())
        points = self.to_frame()
        best = "least" if self.x_better == "less" else "most"
        description = (
            f"{self.y} (most is best) against {self.x} ({best} is best): {len(self)} points, "
            f"{int(points['dominated'].sum())} of them dominated"
        )
        rows = [[_cell(value) for value in row] for row in points.head(_SHOWN).itertuples(index=False)]
        more = f" The first {_SHOWN} points; all are in to_frame()." if len(self) > _SHOWN else ""
        return _html.card(
            f"Frontier: {clip(self.y)} against {clip(self.x)}",
            _html.picture(figure, description),
            _html.details("points", _html.table(rows, list(points.columns))),
            note=f"{clip(self.note, 400)}{more}",
        )


def _cell(value: object) -> object:
    """Numbers to six decimals, which epsilon, rounded up to four, passes unchanged; words as they are."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if isinstance(value, float | np.floating):
        return round(float(value), 6)
    return int(value) if isinstance(value, int | np.integer) else clip(value)
