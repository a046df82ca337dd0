"""Trade-offs, measured point by point."""

from recsys_budget.frontier.frontier import Frontier
from recsys_budget.frontier.sweep import diversity_frontier, epsilon_frontier

__all__ = ["Frontier", "diversity_frontier", "epsilon_frontier"]
