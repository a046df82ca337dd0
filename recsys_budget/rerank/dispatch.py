"""Which route answers: the first that knows the problem's structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from recsys_budget.rerank.columns import solve_columns
from recsys_budget.rerank.fast import solve_diversity, solve_linear, solve_quotas
from recsys_budget.rerank.general import solve_general
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.together import solve_sums

# In the order in which they are asked; a route answers None to a problem of another structure.
ROUTES: Mapping[str, Callable[[Question], Outcome | None]] = {
    "laminar": solve_quotas,
    "coupled": solve_sums,
    "diverse": solve_diversity,
    "direct": solve_linear,
    "columns": solve_columns,
    "general": solve_general,
}


def answer(question: Question, route: str | None) -> tuple[str, Outcome | None]:
    """The name of the route that answers, and its answer.

    Args:
        question: The problem. A named solver is asked through the general route, since others need none.
        route: Route to ask alone; None asks one after the other.

    Returns:
        No answer only where the route asked for does not know such a structure.
    """
    if route is None and question.solver is not None:
        route = "general"
    names = ROUTES if route is None else (route,)
    for name in names:
        outcome = ROUTES[name](question)
        if outcome is not None:
            return name, outcome
    return name, None
