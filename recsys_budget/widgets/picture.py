"""The frontier as a picture with words, for pages that load no widget and notebooks that run no kernel."""

from __future__ import annotations

import base64
import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recsys_budget import _html
from recsys_budget._style import PURPLE
from recsys_budget.frontiers import Frontier


class Picture:
    """A figure that is drawn once; only the mark of the operating point moves."""

    def __init__(self, frontier: Frontier) -> None:
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        self._canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        frontier.plot(axes)
        (self._mark,) = axes.plot(
            [], [], "o", markersize=13, markerfacecolor="none", markeredgecolor=PURPLE, markeredgewidth=2.5
        )
        self._frontier = frontier

    def png(self, now: tuple[float, float] | None) -> bytes:
        """As PNG, with the operating point marked."""
        self._mark.set_data(*([], []) if now is None else ([now[0]], [now[1]]))
        file = io.BytesIO()
        self._canvas.print_png(file)  # type: ignore[no-untyped-call]
        return file.getvalue()

    def html(self, now: tuple[float, float] | None) -> _html.Html:
        """As an image with a description."""
        said = self._frontier.describe()
        if now is not None:
            said += f" Chosen: {self._frontier.x} {now[0]:.4g}, {self._frontier.y} {now[1]:.4g}."
        source = base64.b64encode(self.png(now)).decode("ascii")
        alt = _html.escape(said)
        return _html.Html(f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{source}">')
