"""Sliders that a screen reader can name and a number can be typed into."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from recsys_budget._extras import extra
from recsys_budget.constraints import Constraint
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.loosening import with_number
from recsys_budget.widgets.operating import Choice, Operation

with extra("notebook"):
    import ipywidgets as widgets
    import traitlets

LABELLED: Mapping[str, Any] = {"style": {"description_width": "14em"}}
WIDE: Mapping[str, Any] = {"layout": widgets.Layout(width="30em", max_width="70vw")}

# Labels that are heard and not seen; long ones on two lines; sentences under a slider; and no alarm where a
# page cannot load the front, for there the picture is.
STYLE = (
    "<style>"
    ".rb-named{position:relative}"
    ".rb-named>.widget-label{position:absolute;width:1px!important;min-width:0;height:1px;margin:0;padding:0;"
    "overflow:hidden;clip-path:inset(50%);white-space:nowrap}"
    ".rb-explorer .widget-hslider>.widget-label{white-space:normal;line-height:1.15;height:auto;"
    "align-self:center}"
    ".rb-said{margin:0 0 .4em 1em;max-width:38em;font:13px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}"
    ".rb-view .jupyter-widgets-error-widget{display:none}"
    "</style>"
)


def named(box: Any, name: str) -> Any:
    """The box with a name that is heard, and not shown beside the label of its slider."""
    box.description = f"{name}, exactly"
    box.layout = widgets.Layout(width="6.5em")
    box.add_class("rb-named")
    return box


class Slider(widgets.HBox):  # type: ignore[misc]  # ipywidgets ships no types
    """A slider and a box with the same number; the box is what keyboards and screen readers use best.

    Args:
        name: What is moved.
        value: Where it starts; a whole number moves in steps of 1.
        most: The highest value.
        step: How far one key press moves.
    """

    value = traitlets.Union([traitlets.Int(), traitlets.Float()])

    def __init__(self, name: str, value: float, most: float, step: float) -> None:
        kind, box = (
            (widgets.IntSlider, widgets.BoundedIntText)
            if isinstance(value, int)
            else (widgets.FloatSlider, widgets.BoundedFloatText)
        )
        limits = {"value": value, "min": 0, "max": most, "step": step}
        self._slider = kind(**limits, description=name, readout=False, **LABELLED, **WIDE)
        self._box = named(box(**limits), name)
        super().__init__([self._slider, self._box])
        self.value = value
        widgets.link((self, "value"), (self._slider, "value"))
        widgets.link((self, "value"), (self._box, "value"))

    def move(self, value: float, name: str) -> None:
        """To a value, which may be beyond where it ended, under a name that says so."""
        for one in self.children:
            one.min, one.max = min(one.min, value), max(one.max, value)
        self._slider.description, self._box.description = name, f"{name}, exactly"
        self.value = value


class RuleSliders(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """One slider for the weight on diversity and one for each rule that has a number.

    Args:
        operation: What answers.
        choice: Where they start.
        moved: Called when one of them has moved.

    Attributes:
        weight: The slider of the weight; None where the objective has none.
        rules: The others, by the name each rule had at first.
    """

    def __init__(self, operation: Operation, choice: Choice, moved: Callable[[], None]) -> None:
        self.weight: Slider | None = None
        if choice.diversity is not None:
            self.weight = Slider("weight on diversity", float(choice.diversity), 1.0, 0.01)
        self.rules: dict[str, Slider] = {}
        self._rules = {r.name: r for r in operation.reranker.constraints if r.name in choice.numbers}
        for name, rule in self._rules.items():
            number = choice.numbers[name]
            whole = not isinstance(number, float | np.floating)
            least = operation.reranker.slate_size if rule.scope == "user" and whole else 1
            swept = [p.value for f in operation.frontiers if f.swept == rule.name for p in f.points]
            most = max(least, 2 * number, *swept)
            start, most = (int(number), math.ceil(most)) if whole else (float(number), float(most))
            self.rules[name] = Slider(name, start, most, 1 if whole else most / 100)
        super().__init__([*([self.weight] if self.weight is not None else []), *self.rules.values()])
        for slider in self.children:
            slider.observe(lambda _: moved(), "value")

    @property
    def numbers(self) -> dict[str, float]:
        """What each rule asks."""
        return {name: slider.value for name, slider in self.rules.items()}

    def move(self, choice: Choice) -> None:
        """All sliders to a choice, each under the name that its rule has there."""
        if self.weight is not None and choice.diversity is not None:
            self.weight.move(choice.diversity, "weight on diversity")
        for name, slider in self.rules.items():
            slider.move(choice.numbers[name], _name_at(self._rules[name], choice.numbers[name]))


def _name_at(rule: Constraint, number: float) -> str:
    """What a rule is called when it asks for this; as at first where it must not."""
    try:
        return with_number(rule, number)[0].name
    except SpecificationError:
        return rule.name
