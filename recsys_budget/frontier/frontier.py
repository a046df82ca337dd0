"""A frontier: measured points of a trade-off, as a table and as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008): told apart with any common colour vision, and in print.
_LINE, _POINT, _FAINT = "#0072B2", "#D55E00", "#999999"


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
        ax.plot(best[self.x], best[self.y], color=_LINE, marker="o", markerfacecolor=_POINT, zorder=3)
        if len(rest):
            ax.plot(rest[self.x], rest[self.y], "o", color=_FAINT, label="dominated", zorder=2)
            ax.legend(frameon=False)
        if self.error is not None:
            ax.errorbar(
                points[self.x], points[self.y], points[self.error], fmt="none", ecolor=_FAINT, zorder=1
            )
        if self.label is not None:
            for x, y, text in zip(points[self.x], points[self.y], points[self.label], strict=True):
                # parse_math off: a label may be somebody's title.
                ax.annotate(
                    f"{text}", (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8, parse_math=False
                )
        ax.set_xlabel(self.x.replace("_", " "))
        ax.set_ylabel(self.y.replace("_", " "))
        ax.grid(alpha=0.3)
        ax.margins(x=0.08)
        if self.note:
            ax.set_title(self.note, fontsize=8, loc="left", wrap=True, parse_math=False)
        return ax
