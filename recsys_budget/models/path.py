"""Models on the way to the budget: what one private run could have answered for less."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_budget.models.base import Recommender


@dataclass(frozen=True)
class PathPoint:
    """The model of all that was released up to one epsilon.

    Attributes:
        epsilon: Epsilon of the releases up to here, by PLD.
        steps: Training steps up to here; 0 for a model that is computed from statistics.
        model: The recommender of that moment.
    """

    epsilon: float
    steps: int
    model: Recommender
