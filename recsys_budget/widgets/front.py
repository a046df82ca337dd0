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
        loaded: Set by the page once it has drawn.
    """

    _esm = _HERE / "front.js"
    _css = _HERE / "front.css"
    chart = traitlets.Dict().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)
    now = traitlets.List().tag(sync=True)
    loaded = traitlets.Bool(False).tag(sync=True)


def chart_of(frontier: Frontier) -> dict[str, Any]:
    """The frontier as plain values for the page, text as text."""
    frame = frontier.to_frame()
    x_label, y_label = (name.replace("_", " ") for name in (frontier.x, frontier.y))
    points = []
    for place, row in enumerate(frame.to_dict("records")):
        x, y = float(row[frontier.x]), float(row[frontier.y])
        error = float(row[frontier.error]) if frontier.error is not None else math.nan
        name = f"{frontier.label} {row[frontier.label]:.4g}: " if frontier.label is not None else ""
        said = f"{y_label} {y:.4g}" if row["feasible"] else "impossible"
        if row["feasible"] and not math.isnan(error):
            said += f" plus or minus {error:.2g}"
        # Without slates there is no place on a measured axis; the neighbour's does.
        if math.isnan(x):
            x = float(frame[frontier.x].ffill().bfill().iloc[place])
        points.append(
            {
                "x": x,
                "y": y if row["feasible"] else None,
                "low": None if math.isnan(error) else y - error,
                "high": None if math.isnan(error) else y + error,
                "dominated": bool(row["dominated"]),
                "text": f"{name}{x_label} {x:.4g}, {said}",
            }
        )
    bound = [] if frontier.bound is None else frontier.bound[[frontier.x, frontier.y]].to_numpy().tolist()
    return {"x_label": x_label, "y_label": y_label, "points": points, "bound": bound}
