"""The one button that spends budget: it names the amount and asks again."""

from __future__ import annotations

from collections.abc import Callable

from recsys_budget._extras import extra
from recsys_budget._style import BLUE
from recsys_budget.privacy import PrivacyLedger

with extra("notebook"):
    import ipywidgets as widgets

# White on it is 6.6 to 1.
_FOR_GOOD = "#A63F00"


class Spending(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """An amount, a button that asks, and a button that spends.

    Args:
        ledger: What there is to spend.
        spend: Called with the amount once it has been confirmed.
        planned: Called with the amount whenever it changes, so that it can be shown before it is spent.

    Attributes:
        amount, ask, confirm, cancel: The four controls.
    """

    def __init__(
        self, ledger: PrivacyLedger, spend: Callable[[float], None], planned: Callable[[float], None]
    ) -> None:
        self._ledger, self._spend, self._planned = ledger, spend, planned
        left = ledger.remaining
        self.amount = widgets.BoundedFloatText(
            value=round(left / 2, 2),
            min=0.0,
            max=left,
            step=0.1,
            description="epsilon to spend",
            style={"description_width": "14em"},
        )
        wide = widgets.Layout(width="auto")
        self.ask = widgets.Button(layout=wide, style={"button_color": BLUE, "text_color": "white"})
        self.confirm = widgets.Button(layout=wide, style={"button_color": _FOR_GOOD, "text_color": "white"})
        self.cancel = widgets.Button(description="Cancel")
        self._sure = widgets.HBox([self.confirm, self.cancel])
        self.amount.observe(lambda _: self.reset(), "value")
        self.ask.on_click(self._asked)
        self.cancel.on_click(lambda _: self.reset())
        self.confirm.on_click(self._confirmed)
        super().__init__([widgets.HBox([self.amount, self.ask]), self._sure])
        self.reset()

    def reset(self) -> None:
        """Nothing is asked; the amount is what is left at most."""
        self._sure.layout.display = "none"
        left = self._ledger.remaining
        if self.amount.value > left:
            self.amount.value = left  # comes back here
            return
        self.amount.max = left
        self.ask.description = f"Train with epsilon {self.amount.value:g}..."
        self.confirm.description = f"Spend epsilon {self.amount.value:g} for good"
        self.ask.disabled = self.amount.value <= 0.0
        self._planned(float(self.amount.value))

    def _asked(self, _: object) -> None:
        self._sure.layout.display = ""

    def _confirmed(self, _: object) -> None:
        self._sure.layout.display = "none"
        self._spend(float(self.amount.value))
        self.reset()
