"""Trade-offs to touch: sliders, a frontier to click, and what each choice does to the slates."""

from recsys_budget.widgets.explorer import Explorer
from recsys_budget.widgets.operating import Choice, Result

__all__ = ["Choice", "Explorer", "Result"]
