"""Why no slate exists: a smallest set of named constraints that cannot hold together."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_budget.constraints import Constraint, LinearConstraint, Population, SlateSize
from recsys_budget.errors import InfeasibleError, NumericalError
from recsys_budget.rerank.general import feasible_slates


def minimal_conflict(
    constraints: Sequence[Constraint], population: Population, solver: str | None
) -> tuple[Constraint, ...]:
    """A set of constraints that no selection satisfies, of which every proper subset can be satisfied.

    A deletion filter: drop each constraint in turn, for good where the rest stays infeasible. The slate size
    is tried last, so that too few candidates are reported as that alone; beside a constraint that is not
    linear it is kept, since such a one may mean something for slates of k items only.

    Args:
        constraints: Hard constraints that were found infeasible together.
        population: The candidates of one user, or of all where some constraint is about all.
        solver: Solver for the feasibility problems, one a constraint; None takes HiGHS.

    Returns:
        The conflicting constraints, in the order given.

    Raises:
        NumericalError: The constraints can be satisfied together after all.

    References:
        Chinneck and Dravnieks (1991), doi:10.1287/ijoc.3.2.157
    """
    kept = list(constraints)
    if feasible_slates(kept, population, solver) is not None:
        raise NumericalError(
            f"{whose(population)}: the solver found no slate, and then one; name another solver"
        )
    for constraint in sorted(constraints, key=lambda c: isinstance(c, SlateSize)):
        rest = [other for other in kept if other is not constraint]
        if isinstance(constraint, SlateSize) and not all(isinstance(c, LinearConstraint) for c in rest):
            continue
        if rest and feasible_slates(rest, population, solver) is None:
            kept = rest
    return tuple(kept)


def infeasible(conflict: Sequence[Constraint], population: Population) -> InfeasibleError:
    """The error that names the conflicting constraints and what the candidates offer for each."""
    named = "; ".join(repr(c.name) + (f" (asked because: {c.reason})" if c.reason else "") for c in conflict)
    alone = population.of(0) if len(population) == 1 else None
    offers = [
        c.explain(population if c.scope == "population" else alone)
        for c in conflict
        if c.scope == "population" or alone is not None
    ]
    offered = "; ".join(dict.fromkeys(offers))
    what = "no slate satisfies" if len(conflict) == 1 else "no slate satisfies together"
    return InfeasibleError(
        f"{whose(population)}: {what} {named}. Of what there is: {offered}. Relax one of these "
        "constraints, or pass candidates that offer more",
        user=None if alone is None else alone.user,
        conflict=[c.name for c in conflict],
    )


def whose(population: Population) -> str:
    """How errors call the user or users."""
    if len(population) == 1:
        return f"user {population.users[0]!r}"
    return f"all {len(population)} users together"
