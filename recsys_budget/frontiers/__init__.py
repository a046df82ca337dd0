"""Trade-offs, measured point by point."""

from recsys_budget.frontiers.basis import Basis
from recsys_budget.frontiers.figures import figures
from recsys_budget.frontiers.frontier import Frontier, Point
from recsys_budget.frontiers.sweep import frontier

__all__ = ["Basis", "Frontier", "Point", "figures", "frontier"]
