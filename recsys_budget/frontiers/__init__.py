"""Trade-offs, measured point by point."""

from recsys_budget.frontiers.archive import write_frontiers
from recsys_budget.frontiers.basis import Basis, StoredCandidates
from recsys_budget.frontiers.bundled import bundled_frontiers
from recsys_budget.frontiers.figures import figures
from recsys_budget.frontiers.frontier import Frontier, Point
from recsys_budget.frontiers.reader import read_frontiers
from recsys_budget.frontiers.sweep import frontier

__all__ = [
    "Basis",
    "Frontier",
    "Point",
    "StoredCandidates",
    "bundled_frontiers",
    "figures",
    "frontier",
    "read_frontiers",
    "write_frontiers",
]
