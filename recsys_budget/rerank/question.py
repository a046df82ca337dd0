"""What a route is asked, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import Constraint, Population, SlateSize
from recsys_budget.constraints.policy import require_unique_names
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.memory import Memory
from recsys_budget.rerank.objective import Objective


@dataclass(frozen=True, eq=False)
class Question:
    """Slates for a population.

    Attributes:
        objective: What to maximise, summed over users.
        constraints: The rules.
        population: The candidates.
        solver: Solver by its name in cvxpy; None leaves the choice to the route.
        gap: Relative gap at which to stop.
        max_solves: Most programs for one problem.
        deadline: When to stop, by ``time.monotonic``; inf for never.
        progress: Whether to show a progress bar.
        memory: What earlier answers about the same candidates left to start from.
    """

    objective: Objective
    constraints: tuple[Constraint, ...]
    population: Population
    solver: str | None = None
    gap: float = 1e-3
    max_solves: int = 8
    deadline: float = np.inf
    progress: bool = False
    memory: Memory = field(default_factory=Memory)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.deadline

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the deadline, at least a millisecond; None without one."""
        return None if np.isinf(self.deadline) else max(1e-3, self.deadline - time.monotonic())


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a route claims, all of which is checked before anybody sees it.

    Attributes:
        chosen: int32 ``(n_users, k)`` as in :class:`~recsys_budget.constraints.Population`; -1 throughout for
            users without a slate.
        infeasible: bool ``(n_users,)``, users who are said to have no slate.
        bound: float64 ``(n_users,)``, upper bounds on each user's objective; None where only their sum is
            known.
        total: Upper bound on the sum of objectives.
        iterations: Programs solved, or evaluations of prices, in total.
        prices: What a unit more would add to the objective, by the name of the constraint: mean over users
            for a rule about one slate, sum for a rule about all slates.
        solver: What solved.
        version: Its version.
        stopped: Whether the time limit ended the work.
        conflict: Names of rules that are said to contradict each other, for a population without slates.
    """

    chosen: NDArray[np.integer]
    infeasible: NDArray[np.bool_]
    bound: NDArray[np.float64] | None
    total: float
    iterations: int
    prices: Mapping[str, float]
    solver: str
    version: str
    stopped: bool = False
    conflict: tuple[str, ...] = field(default=())


def require_question(objective: object, rules: Sequence[Constraint]) -> None:
    """Raise SpecificationError unless there is an objective, one hard ``SlateSize``, and no name twice."""
    if not isinstance(objective, Objective):
        raise SpecificationError(f"objective={objective!r} is no objective; see recsys_budget.rerank")
    require_unique_names(rules)
    sizes = sum(isinstance(rule, SlateSize) for rule in rules)
    if sizes != 1:
        raise SpecificationError(f"constraints must hold exactly one SlateSize, not {sizes}, and a hard one")
