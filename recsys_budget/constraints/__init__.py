"""The language of hard rules about slates: what is asked, never how it is solved."""

from recsys_budget.constraints.base import TOLERANCE, Constraint
from recsys_budget.constraints.candidates import Candidates
from recsys_budget.constraints.slate import CategoryMaximum, CategoryMinimum, SlateSize

__all__ = ["TOLERANCE", "Candidates", "CategoryMaximum", "CategoryMinimum", "Constraint", "SlateSize"]
