"""A frontier: measured points of a trade-off, under what is certified to be out of reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget import _html
from recsys_budget._style import clip
from recsys_budget.constraints.base import hard_part
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers.basis import Basis
from recsys_budget.frontiers.figures import better
from recsys_budget.rerank import Certificate, Conflict, Slates
from recsys_budget.rerank.loosening import number_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recsys_budget.widgets import Explorer


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a sweep.

    Attributes:
        value: What the swept quantity was.
        slates: The slates there; None where there are none, or where lists and not slates were measured.
        conflict: Why there are no slates; None where there are some. Beyond the first value that a rule
            cannot be kept at, each is impossible for the reason of that first one.
        model: The recommender at this epsilon; None in other sweeps.
    """

    value: float
    slates: Slates | None = None
    conflict: Conflict | None = None
    model: Any = None

    @property
    def certificate(self) -> Certificate | None:
        """That of the slates."""
        return None if self.slates is None else self.slates.certificate


@dataclass(frozen=True, eq=False)
class Frontier:
    """Points of a trade-off between two quantities.

    Attributes:
        frame: A row a point, in the order of the sweep; not to be changed. Figures of points without slates
            are NaN.
        x: Column on the horizontal axis.
        y: Column on the vertical axis, where more is better.
        x_better: Whether ``"more"`` or ``"less"`` of x is better.
        label: Column that names a point in the figure, or None.
        error: Column with the standard error of y, or None.
        band: Columns with the y of the lowest and of the highest run, where there were several runs whose
            mean is y; None otherwise.
        note: What a reader must know about the figures, shown with them.
        bound: Corners of a line that no slates can be above, with columns x and y; None where nothing is
            certified about it.
        points: What is behind each row, in the same order; empty where nothing is.
        swept: What was swept: ``"epsilon"``, ``"diversity"`` or the name of a rule.
        basis: What it was made from; None where it was put together by hand.
    """

    frame: pd.DataFrame
    x: str
    y: str
    x_better: str
    label: str | None = None
    error: str | None = None
    band: tuple[str, str] | None = None
    note: str = ""
    bound: pd.DataFrame | None = None
    points: tuple[Point, ...] = ()
    swept: str = ""
    basis: Basis | None = None

    def __post_init__(self) -> None:
        if self.x_better not in ("more", "less"):
            raise SpecificationError(f"x_better={self.x_better!r}; use 'more' or 'less'")
        for column in (self.x, self.y, self.label, self.error, *(self.band or ())):
            if column is not None and column not in self.frame:
                raise SpecificationError(f"the frame has no column {column!r}")
        if self.points and len(self.points) != len(self.frame):
            raise SpecificationError(f"{len(self.points)} points for {len(self.frame)} rows; give one a row")

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        said = [f"{len(self)} points", f"{int(self.dominated().sum())} dominated"]
        if impossible := int((~self.feasible()).sum()):
            said.append(f"{impossible} impossible")
        note = f": {self.note}" if self.note else ""
        return f"Frontier({self.y} against {self.x}, {', '.join(said)}{note})"

    def feasible(self) -> NDArray[np.bool_]:
        """Which points have slates, or another measured y; shape ``(n_points,)``."""
        return self.frame[self.y].notna().to_numpy(np.bool_)

    def dominated(self) -> NDArray[np.bool_]:
        """Which points another point beats: at least as good on both axes, and better on one.

        Returns:
            Shape ``(n_points,)``, in the order of the frame; false where there is nothing to compare.
        """
        x = self.frame[self.x].to_numpy(np.float64) * (1 if self.x_better == "more" else -1)
        y = self.frame[self.y].to_numpy(np.float64)
        as_good = (x[:, None] >= x) & (y[:, None] >= y)
        better = (x[:, None] > x) | (y[:, None] > y)
        return np.asarray((as_good & better).any(axis=0))

    def knee(self) -> int:
        """Where the curve bends most: the row beyond which more of the one costs much of the other.

        Of the points that no other beats, the one furthest above the line between the two ends, both axes
        scaled to [0, 1]. With fewer than three of them, or where none is above the line, the one with the
        highest y.

        Returns:
            Position of the row in the frame.

        Raises:
            SpecificationError: No point has slates.

        References:
            Satopaa, Albrecht, Irwin and Raghavan (2011), doi:10.1109/ICDCSW.2011.20.
        """
        placed = self.frame[self.x].notna().to_numpy(np.bool_)
        rows = np.flatnonzero(self.feasible() & placed & ~self.dominated())
        if not len(rows):
            raise SpecificationError("no point of this frontier has slates, so none is the knee")
        x = self.frame[self.x].to_numpy(np.float64)[rows] * (1 if self.x_better == "more" else -1)
        y = self.frame[self.y].to_numpy(np.float64)[rows]
        wide, high = np.ptp(x), np.ptp(y)
        above = (x - x.min()) / (wide or 1.0) + (y - y.min()) / (high or 1.0) - 1.0
        best = int(above.argmax())
        return int(rows[best] if len(rows) > 2 and above[best] > 1e-12 else rows[y.argmax()])

    def against(self, x: str, y: str | None = None) -> Frontier:
        """The same points on other axes: what else a choice changes, such as how providers fare.

        The bound stays only where the axes do: nothing is certified about others.

        Args:
            x: Column of the frame for the horizontal axis: a figure of
                :func:`~recsys_budget.frontiers.figures`, epsilon, or the number of the rule that was swept.
            y: Column for the vertical axis, of which more must be better; None keeps the present one.

        Returns:
            A frontier with the same frame and points, each labelled with what was swept unless that is x.

        Raises:
            SpecificationError: There is no such column, or it is nothing of which more or less is better.

        Examples:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"diversity": [0.6, 0.8], "engagement": [1.0, 0.9]})
            >>> swept = Frontier(frame, "diversity", "engagement", "more")
            >>> swept.against("engagement", "diversity")
            Frontier(diversity against engagement, 2 points, 0 dominated)
        """
        y = self.y if y is None else y
        if self._better(y) != "more":
            raise SpecificationError(f"less of {y!r} is better; put it on the horizontal axis, as x")
        x_better, swept = self._better(x), self.label or self.x
        same = y == self.y
        error = self.error if same else f"{y}_error"
        return replace(
            self,
            x=x,
            y=y,
            x_better=x_better,
            label=None if swept == x else swept,
            error=error if error in self.frame else None,
            band=self.band if same else None,
            bound=self.bound if same and x == self.x else None,
        )

    def _better(self, column: str) -> str:
        """Whether more or less of a column is better."""
        found = {self.x: self.x_better, self.y: "more"}.get(column) or better(column)
        if found is None and self.basis is not None and self.basis.reranker is not None:
            # The number of the rule that was swept, where the axes are others by now.
            rules = self.basis.reranker.constraints
            moved = [number_of(hard_part(rule)) for rule in rules if rule.name == self.swept]
            found = next((("more" if sign > 0 else "less") for name, sign in moved if name == column), None)
        if found is None or column not in self.frame:
            raise SpecificationError(
                f"{column!r} is no axis of this frontier: it must be a column of its frame, "
                f"{', '.join(map(repr, self.frame))}, of which more or less is better"
            )
        return found

    def to_frame(self) -> pd.DataFrame:
        """A copy of the points with columns ``feasible`` and ``dominated``."""
        return self.frame.assign(feasible=self.feasible(), dominated=self.dominated())

    def plot(self, ax: Axes | None = None, *, selected: int | None = None) -> Axes:
        """Draw the points under their bound; dominated ones faint, impossible values shaded.

        Args:
            ax: Where to draw; None makes a new figure.
            selected: Row of a point to mark, as the operating point.

        Returns:
            The axes.
        """
        from recsys_budget.frontiers.figure import draw

        return draw(self, ax, selected)

    def explore(self, *others: Frontier, **options: Any) -> Explorer:
        """A widget to move along this frontier, and see what each point does to the slates.

        Args:
            others: Further frontiers of the same users and rules, such as one over epsilon.
            options: See :class:`~recsys_budget.widgets.Explorer`.

        Raises:
            MissingExtraError: ipywidgets is not installed.
            SpecificationError: The frontier has no re-ranker behind it.
        """
        from recsys_budget.widgets import Explorer

        return Explorer(self, *others, **options)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a page of its own: figure, table and what stands in the way, with nothing to load."""
        title = f"{self.y} against {self.x}".replace("_", " ")
        Path(path).write_text(_html.page(title, self._repr_html_()), encoding="utf-8")

    def _repr_html_(self) -> str:
        from recsys_budget.frontiers.figure import picture

        frame = self.to_frame()
        rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        blocked = next((point.conflict for point in self.points if point.conflict is not None), None)
        return _html.card(
            f"{clip(self.y)} against {clip(self.x)}".replace("_", " "),
            picture(self, clip(self.describe(), 600)),
            *([] if blocked is None else [_html.details("What makes the rest impossible", blocked)]),
            _html.details("Points", _html.table(rows, [str(name).replace("_", " ") for name in frame])),
            note=clip(self.note, 600),
        )

    def describe(self) -> str:
        """The figure in a sentence or two, for those who do not see it."""
        there = self.frame[self.feasible() & self.frame[self.x].notna().to_numpy(np.bool_)]
        if not len(there):
            return f"{len(self)} points, none with slates."
        ends = there.sort_values(self.x).iloc[[0, -1]]
        said = " to ".join(
            f"{self.y} {_four(y)} at {self.x} {_four(x)}"
            for x, y in zip(ends[self.x], ends[self.y], strict=True)
        )
        knee = self.frame.iloc[self.knee()]
        gone = len(self) - len(there)
        return (
            f"{len(there)} points from {said}; the curve bends at {self.x} {_four(knee[self.x])}, "
            f"{self.y} {_four(knee[self.y])}." + (f" {gone} more values are impossible." if gone else "")
        ).replace("_", " ")


def _cell(value: object) -> object:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else round(float(value), 6)
    return value


def _four(value: float | np.floating) -> float:
    """Four decimals: epsilon was rounded up to those, and must not get smaller."""
    return round(float(value), 4)
