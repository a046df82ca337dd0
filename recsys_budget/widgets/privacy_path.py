"""From epsilon to utility and back, along the models that were paid for."""

from __future__ import annotations

import math
from typing import Any

from recsys_budget import _html
from recsys_budget._extras import extra
from recsys_budget.frontiers import Frontier
from recsys_budget.privacy import round_up
from recsys_budget.privacy.words import in_words

with extra("notebook"):
    import ipywidgets as widgets
    import traitlets

    from recsys_budget.widgets.sliders import LABELLED, WIDE, named


_DELTA = 1e-4


class PrivacyPath(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """An epsilon to choose, what it means and what it gives; or a utility to ask for, and what that takes.

    Args:
        frontier: Over epsilon.
        delta: The delta that its epsilons go with; None where it is not known, and then the words are for
            any delta up to one in ten thousand.

    Attributes:
        epsilon: The chosen one: that of a point of the frontier.
        slider, wanted: The two controls.
    """

    epsilon = traitlets.Float()

    def __init__(self, frontier: Frontier, delta: float | None) -> None:
        self._frontier, self._delta = frontier, delta
        y = frontier.frame[frontier.y].tolist()
        low, high = [frontier.frame[c].tolist() for c in frontier.band] if frontier.band else (y, y)
        error = frontier.frame[frontier.error].tolist() if frontier.error is not None else [None] * len(y)
        rows = zip([p.value for p in frontier.points], y, low, high, error, strict=True)
        self._rows: dict[float, tuple[float, ...]] = {e: row for e, *row in sorted(rows)}  # type: ignore[misc]
        options = [(f"{round_up(e):g}", e) for e in self._rows]
        last = max(self._rows)
        self.slider = widgets.SelectionSlider(
            options=options, value=last, description="epsilon (paid for)", readout=False, **LABELLED, **WIDE
        )
        # A list beside the slider, which a screen reader names.
        box = named(widgets.Dropdown(options=options, value=last), "epsilon (paid for)")
        widgets.link((self.slider, "value"), (box, "value"))
        self._means, self._takes = widgets.HTML(), widgets.HTML()
        self.wanted = widgets.BoundedFloatText(
            value=math.floor(1000 * max(y)) / 1000,  # what the last model does reach
            min=0.0,
            max=1.0,
            step=0.005,
            description=f"or wanted {frontier.y.replace('_', ' ')}",
            layout=widgets.Layout(width="22em"),
            **LABELLED,
        )
        super().__init__([widgets.HBox([self.slider, box]), self._means, self.wanted, self._takes])
        self.epsilon = last
        widgets.link((self, "epsilon"), (self.slider, "value"))
        self.observe(lambda _: self._tell(), "epsilon")
        self.wanted.observe(lambda change: self._want(change["new"]), "value")
        self._tell()

    def reaching(self, utility: float) -> tuple[float | None, float | None]:
        """The least epsilon that gives a utility on average over runs, and in the lowest of them.

        Where there was one run both are the same. None where no epsilon of the path does.
        """
        average = [e for e, (y, *_) in self._rows.items() if y >= utility - 1e-12]
        lowest = [e for e, (_, low, *_) in self._rows.items() if low >= utility - 1e-12]
        return min(average, default=None), min(lowest, default=None)

    def means(self, epsilon: float) -> str:
        """What an epsilon promises, and what it gives."""
        utility, low, high, error = self._rows[epsilon]
        gives = f"{self._name} is {utility:.3f}"
        if error is not None and error == error:
            gives += f", plus or minus {error:.2g} over users"
        if self._frontier.band:
            gives += f"; {low:.3f} to {high:.3f} over runs of the noise"
        # A bet can only get better with delta, so the words hold for any smaller one too.
        delta, any_up_to = (_DELTA, "any delta up to ") if self._delta is None else (self._delta, "delta ")
        promise = in_words(epsilon, delta)
        return f"Epsilon {round_up(epsilon):g} with {any_up_to}{delta:g}: {promise} {gives}."

    @property
    def _name(self) -> str:
        return self._frontier.y.replace("_", " ")

    def _tell(self) -> None:
        self._means.value = f'<p class="rb-said">{_html.escape(self.means(self.epsilon))}</p>'

    def _want(self, utility: float) -> None:
        average, lowest = self.reaching(utility)
        asked = f"{self._name} {utility:.3f}"
        if average is None:
            best = max(y for y, *_ in self._rows.values())
            said = f"No model on this path reaches {asked}; the best has {best:.3f}."
        elif not self._frontier.band:
            said = f"{asked} takes epsilon {round_up(average):g}, measured on one run of the noise."
        elif lowest is None:
            said = f"{asked} takes epsilon {round_up(average):g} on average; none gave it in every run."
        else:
            said = (
                f"{asked} takes epsilon {round_up(average):g} on average over runs of the noise, "
                f"{round_up(lowest):g} to have it in every run."
            )
        self._takes.value = f'<p class="rb-said" role="status">{_html.escape(said)}</p>'
        if average is not None:
            self.epsilon = average


def delta_of(frontier: Frontier, known: float | None) -> float | None:
    """The delta of a frontier over epsilon: of its model's receipt, or else what is known otherwise."""
    receipt: Any = getattr(frontier.points[0].model, "receipt_", None)
    return known if receipt is None or receipt.delta is None else float(receipt.delta)
