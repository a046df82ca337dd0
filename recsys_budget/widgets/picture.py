"""The frontier as a picture with words, for pages that load no widget and notebooks that run no kernel."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

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
        self._mark.set_animated(True)  # left out of what is drawn once
        self._canvas.draw()  # type: ignore[no-untyped-call]
        self._drawn = self._canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]
        self._frontier = frontier

    def png(self, now: tuple[float, float] | None) -> bytes:
        """As PNG, with the operating point marked."""
        self._mark.set_data(*([], []) if now is None else ([now[0]], [now[1]]))
        self._canvas.restore_region(self._drawn)  # type: ignore[no-untyped-call]
        self._mark.draw(self._canvas.get_renderer())  # type: ignore[no-untyped-call]
        file = io.BytesIO()
        imsave(file, np.asarray(self._canvas.buffer_rgba()), format="png")  # type: ignore[no-untyped-call]
        return file.getvalue()

    def words(self, now: tuple[float, float] | None) -> str:
        """What it shows, for those who do not see it."""
        said = self._frontier.describe()
        if now is not None:
            said += f" Chosen: {self._frontier.x} {now[0]:.4g}, {self._frontier.y} {now[1]:.4g}."
        return said.replace("_", " ")

    def html(self, now: tuple[float, float] | None) -> _html.Html:
        """As an image with a description."""
        source = base64.b64encode(self.png(now)).decode("ascii")
        alt = _html.escape(self.words(now))
        return _html.Html(f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{source}">')
