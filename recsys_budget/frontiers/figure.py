"""How frontiers are drawn: achieved points under their certified bound."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from recsys_budget import _html
from recsys_budget._style import BLUE, GREEN, GREY, PLAIN, PURPLE, VERMILION, clip, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recsys_budget.frontiers.frontier import Frontier

_LINE, _POINT, _FAINT, _BOUND, _CHOSEN = BLUE, VERMILION, GREY, GREEN, PURPLE


def draw(frontier: Frontier, ax: Axes | None, selected: int | None) -> Axes:
    """See :meth:`Frontier.plot`."""
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    x, y = frontier.x, frontier.y
    frame = frontier.to_frame()
    points = frame[frame["feasible"]].sort_values(x)
    best, rest = points[~points["dominated"]], points[points["dominated"]]
    ax.plot(best[x], best[y], color=_LINE, marker="o", markerfacecolor=_POINT, zorder=3, label="achieved")
    named = frontier.bound is not None
    if frontier.bound is not None:
        ax.plot(
            frontier.bound[x],
            frontier.bound[y],
            color=_BOUND,
            linestyle="--",
            linewidth=1,
            zorder=2,
            label="certified: nothing is above",
        )
    if len(rest):
        named = True
        ax.plot(rest[x], rest[y], "o", color=_FAINT, label="dominated", zorder=2)
    if frontier.band is not None:
        named = True
        low, high = frontier.band
        ax.fill_between(
            points[x],
            points[low],
            points[high],
            color=_LINE,
            alpha=0.15,
            linewidth=0,
            label="lowest to highest run",
        )
    if frontier.error is not None:
        ax.errorbar(points[x], points[y], points[frontier.error], fmt="none", ecolor=_FAINT, zorder=1)
    if frontier.label is not None:
        for at, height, text in zip(points[x], points[y], points[frontier.label], strict=True):
            said = f"{text:.4g}" if isinstance(text, float) else _plain(text, 40)
            ax.annotate(said, (at, height), xytext=(4, 5), textcoords="offset points", fontsize=8, **PLAIN)
    ax.margins(x=0.08)
    if len(points) < len(frame):
        named = True
        _shade(frontier, ax)
    if selected is not None and frame["feasible"].iloc[selected]:
        named = True
        chosen = frame.iloc[selected]
        ax.plot(
            chosen[x],
            chosen[y],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=_CHOSEN,
            markeredgewidth=2.5,
            zorder=4,
            label="chosen",
        )
    if named:
        ax.legend(frameon=False, fontsize=8)
    ax.set_xlabel(_plain(x.replace("_", " "), 60), **PLAIN)
    ax.set_ylabel(_plain(y.replace("_", " "), 60), **PLAIN)
    ax.grid(alpha=0.3)
    if frontier.note:
        # Wrapped here: matplotlib's own wrapping reads a dollar sign as the start of a formula.
        ax.set_title(textwrap.fill(_plain(frontier.note, 300), 80), fontsize=8, loc="left", **PLAIN)
    return ax


def _shade(frontier: Frontier, ax: Axes) -> None:
    """Shade the values that no slates reach, and name the rules that stand in the way."""
    frame = frontier.frame
    there = frontier.feasible()
    values = frame[frontier.x].to_numpy(np.float64)
    beyond = values[~there]
    if not np.isfinite(beyond).all():
        return
    reached = values[there]
    low, high = beyond.min(), beyond.max()
    # As far as the last value that is reached, since nothing is known in between.
    if len(reached) and reached.max() < low:
        low = (reached.max() + low) / 2
    elif len(reached) and reached.min() > high:
        high = (reached.min() + high) / 2
    ax.axvspan(low, high, color=_FAINT, alpha=0.25, hatch="//", linewidth=0, label="impossible", zorder=0)
    conflict = next((point.conflict for point in frontier.points if point.conflict is not None), None)
    if conflict is not None:
        ax.annotate(
            "\n".join(_plain(name, 60) for name in conflict.names),
            ((low + high) / 2, 0.5),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="center",
            fontsize=7,
            rotation=90,
            **PLAIN,
        )


def picture(frontier: Frontier, description: str) -> _html.Html:
    """The figure as an image that stands in the page itself, described for those who do not see it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(frontier, figure.subplots(), None)
    return _html.picture(figure, description)


def _plain(text: object, most: int) -> str:
    return clip(printable(text), most)
