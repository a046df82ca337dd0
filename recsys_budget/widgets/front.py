"""The frontier as a small SVG that answers to mouse and keyboard, where the page can load it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from recsys_budget._extras import extra
from recsys_budget.frontiers import Frontier

with extra("notebook"):
    import anywidget
    import traitlets

_HERE = Path(__file__).parent


class FrontierFront(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget ships no types
    """Draws what it is told and says which point was chosen; it knows nothing of slates.

    Attributes:
        chart: What to draw; see :func:`chart_of`.
        selected: Place of the chosen point; -1 for none.
        now: Where the operating point is, ``[x, y]``; empty for nowhere.
        said: What a screen reader is to say when it changes.
        loaded: Set by the page once it has drawn.
    """

    _esm = _HERE / "front.js"
    _css = _HERE / "front.css"
    chart = traitlets.Dict().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    now = traitlets.List().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)
    loaded = traitlets.Bool(False).tag(sync=True)


def chart_of(frontier: Frontier) -> dict[str, Any]:
    """The frontier as plain values for the page, text as text."""
    frame = frontier.to_frame()
    x_label, y_label = (name.replace("_", " ") for name in (frontier.x, frontier.y))
    # Without slates there is no place on a measured axis; the neighbour's does.
    across = frame[frontier.x].ffill().bfill().tolist()
    points = []
    for place, row in enumerate(frame.to_dict("records")):
        y = float(row[frontier.y])
        error = float(row[frontier.error]) if frontier.error is not None else math.nan
        band = [] if frontier.band is None else [float(row[column]) for column in frontier.band]
        points.append(
            {
                "x": float(across[place]),
                "y": y if row["feasible"] else None,
                "low": None if math.isnan(error) else y - error,
                "high": None if math.isnan(error) else y + error,
                "band": band if band and row["feasible"] else None,
                "dominated": bool(row["dominated"]),
                "text": _words(frontier, place, row, error, band),
            }
        )
    bound = [] if frontier.bound is None else frontier.bound[[frontier.x, frontier.y]].to_numpy().tolist()
    return {
        "x_label": x_label,
        "y_label": y_label,
        "x_axis": f"{x_label} ({frontier.x_better} is better)",
        "y_axis": f"{y_label} (more is better)",
        "points": points,
        "bound": bound,
    }


def _words(frontier: Frontier, place: int, row: dict[Any, Any], error: float, band: list[float]) -> str:
    """A point in words: what was swept, both figures, how sure they are, and what is to be said of it."""
    x_label, y_label = (name.replace("_", " ") for name in (frontier.x, frontier.y))
    name = f"{frontier.label} {row[frontier.label]:.4g}: ".replace("_", " ") if frontier.label else ""
    if not row["feasible"]:
        x = float(row[frontier.x])
        where = f"{name}impossible" if math.isnan(x) else f"{name}{x_label} {x:.4g}, impossible"
        conflict = frontier.points[place].conflict if frontier.points else None
        return where if conflict is None else f"{where}: {' and '.join(conflict.names)} conflict"
    said = f"{name}{x_label} {row[frontier.x]:.4g}, {y_label} {row[frontier.y]:.4g}"
    if not math.isnan(error):
        said += f" plus or minus {error:.2g}"
    if band:
        said += f", {band[0]:.4g} to {band[1]:.4g} over runs"
    return said + (", beaten by another point" if row["dominated"] else "")
