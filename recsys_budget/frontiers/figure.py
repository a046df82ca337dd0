"""How frontiers are drawn: achieved points under their certified bound."""

from __future__ import annotations

import base64
import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from recsys_budget import _html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recsys_budget.frontiers.frontier import Frontier

# Okabe and Ito (2008): told apart with any common colour vision, and in print.
_LINE, _POINT, _FAINT, _BOUND, _CHOSEN = "#0072B2", "#D55E00", "#999999", "#009E73", "#CC79A7"


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
    if frontier.error is not None:
        ax.errorbar(points[x], points[y], points[frontier.error], fmt="none", ecolor=_FAINT, zorder=1)
    if frontier.label is not None:
        for at, height, text in zip(points[x], points[y], points[frontier.label], strict=True):
            # parse_math off: a label may be somebody's title.
            ax.annotate(
                f"{text:.4g}" if isinstance(text, float) else f"{text}",
                (at, height),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=8,
                parse_math=False,
            )
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
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel(y.replace("_", " "))
    ax.grid(alpha=0.3)
    if frontier.note:
        # Wrapped here: matplotlib's own wrapping reads a dollar sign as the start of a formula.
        ax.set_title(textwrap.fill(frontier.note, 80), fontsize=8, loc="left", parse_math=False)
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
            "\n".join(conflict.names),
            ((low + high) / 2, 0.5),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="center",
            fontsize=7,
            rotation=90,
            parse_math=False,
        )


def picture(frontier: Frontier, description: str) -> _html.Html:
    """The figure as an image that stands in the page itself, described for those who do not see it."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    try:
        draw(frontier, ax, None)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    finally:
        plt.close(figure)
    source = base64.b64encode(file.getvalue()).decode("ascii")
    alt = _html.escape(description)
    return _html.Html(
        f'<img alt="{alt}" style="max-width:100%;background:#fff" src="data:image/svg+xml;base64,{source}">'
    )
