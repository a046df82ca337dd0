"""One frontier on the page: the front where it has loaded, a picture elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from recsys_budget import _html
from recsys_budget._extras import extra
from recsys_budget.frontiers import Frontier
from recsys_budget.widgets.picture import Picture

with extra("notebook"):
    import ipywidgets as widgets

    from recsys_budget.widgets.front import FrontierFront, chart_of

Place = tuple[float, float]


class FrontierView(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """A frontier with the operating point marked.

    Args:
        frontier: What to show.
        clicked: Called with the place of a point that was chosen on the page.

    Attributes:
        frontier: What is shown.
        front: The SVG.
        picture: HTML of the picture; empty where the front has loaded.
    """

    def __init__(self, frontier: Frontier, clicked: Callable[[int], None]) -> None:
        self.frontier = frontier
        self.front = FrontierFront(chart=chart_of(frontier))
        self.picture = widgets.HTML()
        self._clicked, self._told = clicked, True
        self._now: Place | None = None
        super().__init__([self.front, self.picture])
        self.add_class("rb-view")
        self.front.observe(self._selected, "selected")
        self.front.observe(lambda _: self._draw(), "loaded")

    def show(self, now: Place | None, selected: int, said: str, *, shown: bool = True) -> None:
        """Mark the operating point.

        Args:
            now: Where it is; None for nowhere.
            selected: Which point that is; -1 for none of them.
            said: What a screen reader is to say, where the front has loaded.
            shown: Whether this frontier is to be seen at all.
        """
        self._now = now
        self.layout.display = "" if shown else "none"
        self._told = False
        try:
            with self.front.hold_sync():
                self.front.now = [] if now is None else list(now)
                self.front.selected = selected
                self.front.said = said
        finally:
            self._told = True
        self._draw()

    def png(self) -> bytes:
        """The picture, for pages that run no kernel."""
        return self._picture.png(self._now)

    def words(self) -> str:
        """The figure in words."""
        return self._picture.words(self._now)

    @cached_property
    def _picture(self) -> Picture:
        return Picture(self.frontier)

    def _selected(self, change: dict[str, int]) -> None:
        if self._told and change["new"] >= 0:
            self._clicked(change["new"])

    def _draw(self) -> None:
        if self.front.loaded or self.layout.display == "none":
            self.picture.value = _html.Html("")
        else:
            self.picture.value = self._picture.html(self._now)
