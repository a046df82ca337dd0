"""The re-ranking problem in cvxpy, which defines what everything here means, and its certified solution.

No other module imports cvxpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy import Problem as Problem
from numpy.typing import NDArray

from recsys_budget.constraints import TOLERANCE, Candidates, Constraint
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.rerank.objective import ConcaveForm, EngagementDiversity

# The package behind each solver that reports a dual bound through cvxpy; without one there is no certificate.
SOLVERS = {"HIGHS": "highspy", "SCIPY": "scipy"}

# First tangents, as shares of the slate that one category holds. Where they lie only affects speed.
_SHARES = np.array([0.0, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.3])


def build(
    objective: EngagementDiversity, constraints: Sequence[Constraint], candidates: Candidates, k: int
) -> Problem:
    """The plain problem of one user: maximise a concave function of a boolean ``x``, an entry a candidate."""
    x = cp.Variable(len(candidates), boolean=True, name="x")
    form = objective.form(candidates, k)
    value = form.linear @ x
    if not form.is_linear:
        value = value - form.curvature * cp.sum_squares(form.factor.T @ x)
    return Problem(cp.Maximize(value), _rules(constraints, x, candidates))


def feasible_slate(
    constraints: Sequence[Constraint], candidates: Candidates, solver: str
) -> NDArray[np.intp] | None:
    """Rows of some selection that satisfies these constraints, or None where the solver proves there is none.

    Raises:
        NumericalError: The solver stopped without an answer, or its selection violates a constraint.
    """
    x = cp.Variable(len(candidates), boolean=True, name="x")
    problem = Problem(cp.Maximize(0), _rules(constraints, x, candidates))
    if not _solve(problem, x, candidates.user, solver, gap=0.0):
        return None
    chosen = np.flatnonzero(x.value > 0.5)
    for constraint in constraints:
        if not constraint.measure(chosen, candidates) <= TOLERANCE:
            raise NumericalError(
                f"user {candidates.user!r}: {solver} offered a selection that violates {constraint.name!r}; "
                "try the other solver"
            )
    return chosen


def versions(solver: str) -> str:
    """Versions of the solver's package and of cvxpy."""
    return f"{SOLVERS[solver]} {version(SOLVERS[solver])}, cvxpy {cp.__version__}"


@dataclass(frozen=True, eq=False)
class Solution:
    """What one user's solve brought.

    Attributes:
        chosen: Rows of the best slate found, ascending; None where the solver reports that there is none.
        bound: Upper bound on the objective of any slate.
        solves: Integer programs solved.
    """

    chosen: NDArray[np.intp] | None
    bound: float
    solves: int


class CompiledProblem:
    """One problem for all users with the same number of candidates, compiled by cvxpy once.

    Relevance, membership and objective are cvxpy Parameters (disciplined parametrised programming: Agrawal
    et al. 2019, arXiv:1910.12430), so that a user costs a solve and no compilation.

    The concave term is maximised by outer approximation (Duran and Grossmann 1986, doi:10.1007/BF02592064):
    with ``y = factor.T @ x``, each ``y_j^2`` is replaced by a variable ``t_j`` above its tangents
    ``2 p y_j - p^2``, a term of its own for each j because that bounds far better than tangents to the sum
    (Hijazi, Bonami and Ouorou 2014, doi:10.1287/ijoc.1120.0545). A tangent at *any* p underestimates the
    square, so the dual bound of each integer program bounds the true optimum, and the selection it finds is
    a slate whose true objective is known. Tangents at that slate's y are added until the two meet.

    Args:
        constraints: The rules.
        like: Candidates of any of the users: only the shapes matter.
        form: The objective of any of the users: likewise.
        k: Items a slate.
        solver: Name of a solver in ``SOLVERS``.
        gap: Relative gap at which to stop.
        max_solves: Most integer programs a user.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        *,
        like: Candidates,
        form: ConcaveForm,
        k: int,
        solver: str,
        gap: float,
        max_solves: int,
    ) -> None:
        n, m = form.factor.shape
        self._k, self._solver, self._gap, self._max_solves = k, solver, gap, max_solves
        self._x = cp.Variable(n, boolean=True, name="x")
        self._linear = cp.Parameter(n)
        self._relevance, self._membership = cp.Parameter(n), cp.Parameter(like.membership.shape)
        # One user's constants must not stay behind in the problem of all: items never get a value, so a rule
        # that reads them fails.
        symbols = replace(
            like,
            user="",
            items=cp.Parameter(n, name="items"),
            relevance=self._relevance,
            membership=self._membership,
        )
        rules = _rules(constraints, self._x, symbols)
        value = self._linear @ self._x
        if not form.is_linear:
            slots = len(_SHARES) + max_solves - 1
            self._factor, self._curvature = cp.Parameter((n, m)), cp.Parameter(nonneg=True)
            self._points, self._squares = cp.Parameter(slots * m), cp.Parameter(slots * m)
            y, t = cp.Variable(m), cp.Variable(m)
            each_slot = np.tile(np.eye(m), (slots, 1))
            tangents = cp.multiply(2.0 * self._points, each_slot @ y) - self._squares
            rules = [*rules, y == self._factor.T @ self._x, each_slot @ t >= tangents]
            value = value - self._curvature * cp.sum(t)
        self._first = np.outer(_SHARES * k, np.ones(m))
        self._problem = Problem(cp.Maximize(value), rules)

    def solve(self, candidates: Candidates, form: ConcaveForm) -> Solution:
        """The best slate of one user and a bound on all slates.

        Raises:
            NumericalError: The solver stopped without an answer.
        """
        self._linear.value = form.linear
        self._relevance.value, self._membership.value = candidates.relevance, candidates.membership
        if not form.is_linear:
            self._factor.value, self._curvature.value = form.factor, form.curvature
        points = self._first
        best, best_value = None, -np.inf
        bound = float(np.sort(form.linear)[-self._k :].sum())  # holds whatever the solver says
        for solves in range(1, self._max_solves + 1):
            if form.is_linear:
                gap = 0.0
            else:
                self._place(points)
                gap = self._gap / 10.0  # leaves the rest to the tangents
            if not _solve(self._problem, self._x, candidates.user, self._solver, gap):
                return Solution(None, np.nan, solves)
            chosen = np.flatnonzero(self._x.value > 0.5)
            y = form.factor[chosen].sum(axis=0)
            value = form.linear[chosen].sum() - form.curvature * (y @ y)
            bound = min(bound, _dual_bound(self._problem))
            if value > best_value:
                best, best_value = chosen, value
            if form.is_linear or bound - best_value <= max(self._gap * bound, TOLERANCE):
                break
            points = np.vstack([points, y])
        return Solution(best, bound, solves)

    def _place(self, points: NDArray[np.float64]) -> None:
        """Put tangents at these points, shape ``(n_points, m)``; slots left over repeat the last."""
        slots = self._points.size // points.shape[1]
        filled = points[np.minimum(np.arange(slots), len(points) - 1)].ravel()
        self._points.value, self._squares.value = filled, np.square(filled)


def _rules(constraints: Sequence[Constraint], x: cp.Variable, candidates: Candidates) -> list[cp.Constraint]:
    """The constraints as cvxpy knows them.

    Raises:
        SpecificationError: A constraint's left-hand side is not convex by the rules of cvxpy.
    """
    rules = [constraint.lhs(x, candidates) <= constraint.rhs for constraint in constraints]
    for constraint, rule in zip(constraints, rules, strict=True):
        if not rule.is_dcp():
            raise SpecificationError(
                f"constraint {constraint.name!r}: cvxpy cannot tell that its lhs is convex in x; rewrite it "
                "by the rules of disciplined convex programming"
            )
    return rules


def _solve(problem: Problem, x: cp.Variable, user: str, solver: str, gap: float) -> bool:
    """Solve to a relative gap; whether there is a selection in x, rather than a proof that none exists."""
    # What is off costs more time than it saves on problems this small.
    options: dict[str, Any]
    if solver == "SCIPY":
        options = {"scipy_options": {"mip_rel_gap": gap, "presolve": False}}
    else:
        options = {"mip_rel_gap": gap, "presolve": "off", "mip_heuristic_run_feasibility_jump": False}
    try:
        # A warm start would make the answer depend on the user solved before.
        problem.solve(solver=solver, warm_start=False, **options)
    except cp.SolverError as error:
        raise NumericalError(
            f"user {user!r}: {solver} stopped without an answer ({error}); try the other solver"
        ) from error
    if problem.status == cp.INFEASIBLE:
        return False
    if x.value is None:
        raise NumericalError(
            f"user {user!r}: {solver} stopped without an answer ({problem.status}); try the other solver"
        )
    return True


def _dual_bound(problem: Problem) -> float:
    """Upper bound on a maximised problem without constant term, from the solver's branch and bound."""
    stats = problem.solver_stats.extra_stats
    return -float(stats["mip_dual_bound"] if isinstance(stats, dict) else stats.mip_dual_bound)
