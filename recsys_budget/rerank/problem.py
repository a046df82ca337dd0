"""The re-ranking problem in cvxpy, which defines what everything here means, and cvxpy's solvers.

No other module imports cvxpy.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy import Problem as Problem
from cvxpy.reductions.solvers.defines import MI_SOLVERS
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Candidates, Constraint, ExposureParity, LinearConstraint, Population
from recsys_budget.constraints.base import hard_part
from recsys_budget.constraints.form import log, positive
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.rerank.integer import Answer, Program, Solve, solve_highs
from recsys_budget.rerank.model import Evaluate
from recsys_budget.rerank.objective import Objective

# What constraints and objectives write for arrays, for expressions as well.
log.register(cp.Expression, cp.log)
positive.register(cp.Expression, cp.pos)

# The package behind a solver, where its name is not the solver's.
_PACKAGES = {
    "HIGHS": "highspy",
    "GLPK_MI": "cvxopt",
    "GLPK": "cvxopt",
    "GUROBI": "gurobipy",
    "SCIP": "pyscipopt",
}
# How a solver is told when to stop; others stop between programs only.
_TIME_LIMITS = {"CLARABEL": "time_limit", "OSQP": "time_limit", "SCS": "time_limit_secs"}


@dataclass(frozen=True, eq=False)
class Plain:
    """A problem as cvxpy knows it.

    Attributes:
        problem: The problem.
        x: Its selection, shape ``(n_rows,)``, or assignment ``(n_rows, k)``.
        rules: The inequalities of each hard constraint, in the order of the constraints; none for soft ones.
    """

    problem: Problem
    x: cp.Variable
    rules: tuple[tuple[cp.Constraint, ...], ...]


def build(
    objective: Objective, constraints: Sequence[Constraint], population: Population, *, integer: bool = True
) -> Plain:
    """The plain problem of one user or of many: maximise the sum of concave functions of a boolean ``x``.

    Args:
        objective: What to maximise, summed over users.
        constraints: The rules. Soft ones take their penalty from the objective.
        population: The candidates, whose rows are the rows of x.
        integer: Whether x is 0 or 1, rather than between.
    """
    k, n = population.k, len(population.items)
    positional = objective.positional or any(rule.positional for rule in constraints)
    limits: dict[str, Any] = {"boolean": True} if integer else {"bounds": [0.0, 1.0]}
    variable = cp.Variable((n, k) if positional else n, name="x", **limits)
    selection = variable @ np.ones(k) if positional else variable
    users = [population.of(u) for u in range(len(population))]
    starts = population.offsets

    def part(positional: bool, u: int) -> Any:
        whole = variable if positional else selection
        return whole if len(users) == 1 else whole[starts[u] : starts[u + 1]]

    value: Any = 0.0
    for u, user in enumerate(users):
        form = objective.form(user)
        value = value + form(part(form.positional, u))
    every: list[cp.Constraint] = []
    rules: list[tuple[cp.Constraint, ...]] = []
    for rule in constraints:
        if rule.scope == "population":
            sides = [(rule.lhs(variable if rule.positional else selection, population), rule.rhs(population))]
        elif len(users) > 1 and isinstance(hard_part(rule), LinearConstraint):
            sides = [_side_by_side(hard_part(rule), users, variable if rule.positional else selection)]
        else:
            sides = [
                (rule.lhs(part(rule.positional, u), user), rule.rhs(user)) for u, user in enumerate(users)
            ]
        for lhs, rhs in sides:
            _require_convex(rule, lhs, rhs)
            if not rule.hard:
                value = value - rule.penalty * cp.sum(cp.pos(lhs - rhs))
        rules.append(tuple(_inequality(lhs, rhs) for lhs, rhs in sides) if rule.hard else ())
        every += rules[-1]
    if positional:
        every.append(selection <= 1)
        for u in range(len(users)):
            every.append(cp.sum(part(True, u), axis=0) <= 1)
    return Plain(Problem(cp.Maximize(value), every), variable, tuple(rules))


def in_expectation(
    objective: Objective,
    constraints: Sequence[Constraint],
    parities: Sequence[ExposureParity],
    alone: Population,
) -> Problem:
    """The linear program over chances that each candidate of one user is at each place, shape ``(n, k)``."""
    user = alone.of(0)
    chances = cp.Variable((len(user), user.k), name="x", nonneg=True)
    selection = chances @ np.ones(user.k)
    form = objective.form(user)
    rules = [chances @ np.ones(user.k) <= 1, cp.sum(chances, axis=0) <= 1]
    rules += [
        rule.lhs(chances if rule.positional else selection, user) <= rule.rhs(user) for rule in constraints
    ]
    rules += [parity.lhs(chances, user) <= parity.rhs(user) for parity in parities]
    return Problem(cp.Maximize(form(chances if form.positional else selection)), rules)


def express(
    rule: Constraint, candidates: Any, places: int
) -> tuple[Any, NDArray[np.float64]] | tuple[Evaluate, NDArray[np.float64]]:
    """What solvers need of a rule that is only known as an expression.

    Args:
        rule: A hard rule.
        candidates: What it is about.
        places: Entries of z a candidate.

    Returns:
        Rows over z and their bounds, where the expression is affine; a function of z and bounds otherwise.

    Raises:
        SpecificationError: The left-hand side is not convex by the rules of cvxpy.
    """
    n = len(candidates.relevance)
    x = cp.Variable((n, places) if rule.positional and places > 1 else n)
    lhs = cp.Expression.cast_to_const(rule.lhs(x, candidates))
    upper = rule.rhs(candidates)
    _require_convex(rule, lhs, upper)
    bounds = np.broadcast_to(np.asarray(upper, np.float64), lhs.shape).ravel(order="F").astype(np.float64)

    def gradients() -> Any:
        if x not in lhs.variables():
            return sparse.csr_array((lhs.size, n * places))
        columns = lhs.grad[x]
        if columns is None:
            return None
        by_entry = sparse.csr_array(columns)  # entries of x in Fortran's order, which is cvxpy's
        if x.ndim == 2:
            by_entry = by_entry[np.arange(n * places).reshape(places, n).T.ravel()]
        elif places > 1:
            by_entry = by_entry[np.repeat(np.arange(n), places)]
        return by_entry.T.tocsr()

    def place(z: NDArray[np.float64]) -> None:
        grid = z.reshape(n, places)
        x.value = grid if x.ndim == 2 else grid.sum(axis=1)

    if lhs.is_affine():
        place(np.zeros(n * places))
        return gradients(), bounds - np.ravel(lhs.value, order="F")

    def evaluate(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        place(z)
        values = np.ravel(lhs.value, order="F").astype(np.float64)
        slopes = gradients()
        if slopes is None:
            # On the edge of the domain there is no gradient; just inside there is, and its tangent holds
            # here.
            inside = 0.999 * z + 0.001 * z.sum() / len(z)
            place(inside)
            slopes = gradients()
            if slopes is None or not np.isfinite(values).all():
                raise NumericalError(
                    f"constraint {rule.name!r} has no value or gradient at a slate; rewrite it"
                )
            held = np.ravel(lhs.value, order="F") + slopes @ (z - inside)
            values = np.where(values > bounds, values, held)
        return values, slopes.toarray()

    return evaluate, bounds


def require_solver(name: str) -> None:
    """Raise SpecificationError unless cvxpy knows the solver and it is installed."""
    if name not in (installed := cp.installed_solvers()):
        raise SpecificationError(
            f"solver={name!r}; use one that is installed: {', '.join(sorted(installed))}"
        )


def solves_integers(name: str) -> bool:
    """Whether a solver takes integer programs, rather than their continuous relaxation."""
    return name in MI_SOLVERS


def versions(name: str) -> str:
    """Versions of a solver's package and of cvxpy, of highspy alone where that is called without cvxpy."""
    package = _PACKAGES.get(name, name.lower())
    try:
        own = f"{package} {version(package)}"
    except PackageNotFoundError:
        own = f"{name} of unknown version"
    return own if name == "HIGHS" else f"{own}, cvxpy {cp.__version__}"


def integer_solver(name: str) -> Solve:
    """A solver of integer programs by its name in cvxpy. HiGHS is called without cvxpy between."""
    if name == "HIGHS":
        return solve_highs

    def solve(program: Program, gap: float, seconds: float) -> Answer:
        n = program.integers
        z, w = cp.Variable(n, boolean=True), cp.Variable(len(program.c) - n) if n < len(program.c) else None
        a = sparse.csc_array(program.a)
        value, lhs = program.c[:n] @ z, a[:, :n] @ z
        rules = []
        if w is not None:
            value, lhs = value + program.c[n:] @ w, lhs + a[:, n:] @ w
            for side, limit in ((1.0, program.most[n:]), (-1.0, -program.least[n:])):
                at = np.flatnonzero(np.isfinite(limit))
                if len(at):
                    rules.append(side * w[at] <= limit[at])
        for side, limit in ((1.0, program.upper), (-1.0, -program.lower)):
            at = np.flatnonzero(np.isfinite(limit))
            if len(at):
                rules.append(side * lhs[at] <= limit[at])
        options: dict[str, Any] = {}
        if name == "SCIPY":
            options = {"scipy_options": {"mip_rel_gap": gap, "presolve": False}}
            if np.isfinite(seconds):
                options["scipy_options"]["time_limit"] = seconds
        problem = Problem(cp.Maximize(value), rules)
        status = _solve(problem, name, options)
        stats = problem.solver_stats.extra_stats if problem.solver_stats is not None else None
        bound = (
            stats.get("mip_dual_bound") if isinstance(stats, dict) else getattr(stats, "mip_dual_bound", None)
        )
        # The bound is the solver's of the minimised negative, to which a constant would be added: there is
        # none.
        best = np.inf if bound is None or not np.isfinite(bound) else -float(bound)
        v = None if z.value is None else np.concatenate([z.value, [] if w is None else w.value])
        return Answer(v, best, status == cp.INFEASIBLE, status)

    return solve


def relax(
    objective: Objective,
    constraints: Sequence[Constraint],
    population: Population,
    solver: str,
    deadline: float,
) -> tuple[NDArray[np.float64] | None, list[NDArray[np.float64]], str]:
    """Solve the continuous relaxation with the named solver, whose answer is only a claim.

    Returns:
        The solution by rows of the population and then by places; the multipliers of each constraint, empty
        for soft ones; and the solver's status. The solution is None where there is no finite one.

    Raises:
        SpecificationError: The solver does not take such problems.
    """
    plain = build(objective, constraints, population, integer=False)
    options: dict[str, Any] = {}
    if np.isfinite(deadline) and solver in _TIME_LIMITS:
        options[_TIME_LIMITS[solver]] = max(1e-3, deadline - time.monotonic())
    status = _solve(plain.problem, solver, options)
    z = plain.x.value
    if z is None or not np.isfinite(z).all():
        return None, [np.zeros(0) for _ in plain.rules], status
    multipliers = []
    for rules in plain.rules:
        each = [
            np.ravel(np.zeros(rule.size) if rule.dual_value is None else rule.dual_value) for rule in rules
        ]
        found = np.concatenate(each) if each else np.zeros(0)
        multipliers.append(np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0))
    return np.clip(np.ravel(z), 0.0, 1.0), multipliers, status


def _solve(problem: Problem, solver: str, options: dict[str, Any]) -> str:
    """Solve, and return the status, which nobody trusts: so no warning of inaccuracy is shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A warm start would make the answer depend on the user solved before.
            problem.solve(solver=solver, warm_start=False, **options)
    except cp.SolverError as error:
        if "cannot solve" in str(error) or "not a" in str(error):
            raise SpecificationError(
                f"{solver} does not take such a problem ({error}); name another"
            ) from error
        return f"failed: {error}"
    return str(problem.status)


def _side_by_side(rule: Constraint, users: Sequence[Candidates], x: Any) -> tuple[Any, NDArray[np.float64]]:
    """A linear rule for all users as one inequality."""
    assert isinstance(rule, LinearConstraint)
    blocks = [rule.coefficients(user) for user in users]
    weights = rule.position_weights(users[0].k)
    lhs = sparse.csr_array(sparse.block_diag(blocks)) @ (x if weights is None else x @ weights)
    rhs = [np.broadcast_to(rule.rhs(user), len(block)) for user, block in zip(users, blocks, strict=True)]
    return lhs, np.concatenate(rhs).astype(np.float64)


def _inequality(lhs: Any, rhs: Any) -> cp.Constraint:
    return cp.Expression.cast_to_const(lhs) <= rhs


def _require_convex(rule: Constraint, lhs: Any, rhs: Any) -> None:
    """Raise SpecificationError unless the inequality is convex by the rules of cvxpy."""
    if not _inequality(lhs, rhs).is_dcp():
        raise SpecificationError(
            f"constraint {rule.name!r}: cvxpy cannot tell that its lhs is convex in x; rewrite it by the "
            "rules of disciplined convex programming"
        )
