"""Why no slate exists: a smallest set of named constraints that cannot hold together."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_budget.constraints import Candidates, Constraint, SlateSize
from recsys_budget.errors import InfeasibleError, NumericalError
from recsys_budget.rerank.problem import feasible_slate


def minimal_conflict(
    constraints: Sequence[Constraint], candidates: Candidates, solver: str
) -> tuple[Constraint, ...]:
    """A set of constraints that no selection satisfies, of which every proper subset can be satisfied.

    A deletion filter: drop each constraint in turn, for good where the rest stays infeasible. The slate size
    is tried last, so that too few candidates are reported as that alone.

    Args:
        constraints: Constraints that the solver found infeasible.
        candidates: The user's candidates.
        solver: Solver for the feasibility problems, one a constraint.

    Returns:
        The conflicting constraints, in the order given.

    Raises:
        NumericalError: The constraints can be satisfied together after all.

    References:
        Chinneck and Dravnieks (1991), doi:10.1287/ijoc.3.2.157
    """
    kept = list(constraints)
    if feasible_slate(kept, candidates, solver) is not None:
        raise NumericalError(
            f"user {candidates.user!r}: {solver} found no slate, and then one; try the other solver"
        )
    for constraint in sorted(constraints, key=lambda c: isinstance(c, SlateSize)):
        rest = [other for other in kept if other is not constraint]
        if rest and feasible_slate(rest, candidates, solver) is None:
            kept = rest
    return tuple(kept)


def infeasible(conflict: Sequence[Constraint], candidates: Candidates) -> InfeasibleError:
    """The error that names the conflicting constraints and what the candidates offer for each."""
    named = "; ".join(repr(c.name) + (f" (asked because: {c.reason})" if c.reason else "") for c in conflict)
    offered = "; ".join(dict.fromkeys(c.explain(candidates) for c in conflict))
    what = "no slate satisfies" if len(conflict) == 1 else "no slate satisfies together"
    return InfeasibleError(
        f"user {candidates.user!r}: {what} {named}. Of what there is: {offered}. Relax one of these "
        "constraints, or pass candidates that offer more",
        user=candidates.user,
        conflict=[c.name for c in conflict],
    )
