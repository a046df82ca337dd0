"""The evidence that comes with slates: how good they are, how good they could be, and what was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known about a set of slates, recomputed from the slates in float64.

    Attributes:
        objective: Objective, mean over users; higher is better.
        bound: Upper bound on that mean over all slates that satisfy the constraints. It is the dual bound of
            the solver's branch and bound, which solves its linear programs to a tolerance of 1e-7: read it
            as good to about 1e-6.
        gap: ``(bound - objective) / bound``: the largest share of the bound that any slates could add. 0.0
            where the two differ by 1e-6 or less, the solver's precision.
        violations: For each constraint by name, the largest violation over users, in items, counted from the
            emitted slates. Slates with a violation above 1e-6 are never emitted.
        engagement: Share kept of the best engagement that the candidates allow, mean over users, in [0, 1].
        diversity: Intra-list diversity over categories, mean over users, in [0, 1].
        route: How the slates were found. ``"cvxpy"``: by solving the problem that defines them.
        solver: Solver that cvxpy called.
        solver_version: Versions of that solver's package and of cvxpy.
        n_users: Number of slates.
        solves: Integer programs solved, in total.
        seconds: Wall-clock seconds from candidates to checked slates.
        privacy: ``"per_user"``: each slate depends on model outputs, public data and the served user's own
            candidates alone, which is post-processing and costs no privacy budget.
        per_user: A row a user, in the order of the slates: user, objective, bound, gap, engagement,
            diversity, solves, candidates.
    """

    objective: float
    bound: float
    gap: float
    violations: Mapping[str, float]
    engagement: float
    diversity: float
    route: str
    solver: str
    solver_version: str
    n_users: int
    solves: int
    seconds: float
    privacy: Literal["per_user"]
    per_user: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Every figure but the per-user table, and the largest per-user gap, as plain Python values."""
        fields = {name: value for name, value in vars(self).items() if name != "per_user"}
        return fields | {
            "violations": dict(self.violations),
            "largest_gap": float(self.per_user["gap"].max()),
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def __repr__(self) -> str:
        worst = max(self.violations.values())
        broken = "none violated" if worst == 0.0 else f"largest violation {worst:g}"
        return (
            f"Certificate({self.n_users} users: objective {self.objective:.4f}, at most {self.bound:.4f} "
            f"possible (gap {self.gap:.2%}); engagement {self.engagement:.4f}, "
            f"diversity {self.diversity:.4f}; {len(self.violations)} constraints, {broken}; "
            f"{self.route} with {self.solver}, {self.seconds:.2f} s, privacy {self.privacy})"
        )
