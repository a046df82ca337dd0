"""What is counted from slates, whatever found them: violations, figures, and the certificate made of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import TOLERANCE, Constraint, Population
from recsys_budget.constraints.engagement import engagement
from recsys_budget.constraints.positions import Discount
from recsys_budget.errors import NumericalError
from recsys_budget.rerank.certificate import Certificate, PrivacyMode, relative_gap
from recsys_budget.rerank.objective import Diversity, Engagement, Objective
from recsys_budget.rerank.question import Outcome


@dataclass(frozen=True, eq=False)
class Counted:
    """Violations, counted from the slates.

    Attributes:
        violations: The largest of each rule, by name.
        penalties: Each user's, for soft rules about one slate, ``(n_users,)``.
        shared: For soft rules about all slates.
    """

    violations: dict[str, float]
    penalties: NDArray[np.float64]
    shared: float


def count_violations(
    rules: Sequence[Constraint], chosen: NDArray[np.integer], table: Population, solver: str
) -> Counted:
    """Measure slates by every rule.

    Raises:
        NumericalError: A hard rule is violated.
    """
    violations, penalties, shared = {}, np.zeros(len(table)), 0.0
    for rule in rules:
        if rule.scope == "population":
            measured = np.array([rule.measure(chosen, table)])
        else:
            measured = rule.measure_all(chosen, table)
        worst = float(np.max(measured, initial=0.0))
        if rule.hard and not worst <= TOLERANCE:
            whose = "" if rule.scope == "population" else f"user {table.users[int(measured.argmax())]!r}: "
            raise NumericalError(
                f"{whose}the slate that {solver} calls optimal violates {rule.name!r} by "
                f"{worst:g}, so it is not handed out; try another solver"
            )
        violations[rule.name] = worst
        if not rule.hard and rule.scope == "population":
            shared += rule.penalty * worst
        elif not rule.hard:
            penalties += rule.penalty * measured
    return Counted(violations, penalties, shared)


def figures(
    objective: Objective,
    chosen: NDArray[np.integer],
    table: Population,
    penalties: NDArray[np.float64],
    outcome: Outcome,
) -> pd.DataFrame:
    """The per-user table of a certificate.

    Raises:
        NumericalError: A user's objective is above the bound.
    """
    value = objective.value_all(chosen, table) - penalties
    if outcome.bound is None:
        bound = np.full(len(table), np.nan)
    else:
        wrong = ~(value <= outcome.bound + TOLERANCE)
        if wrong.any():
            u = int(wrong.argmax())
            _refuse_bound(f"user {table.users[u]!r}: ", value[u], outcome.bound[u], outcome.solver)
        bound = np.maximum(value, outcome.bound)
    discounts = [part.discount for _, part in objective.parts if isinstance(part, Engagement)]
    discount: Discount = discounts[0] if discounts else "none"
    return pd.DataFrame(
        {
            "user": table.users,
            "objective": value,
            "bound": bound,
            "gap": relative_gap(value, bound),
            "engagement": engagement(chosen, table, discount),
            "diversity": Diversity().value_all(chosen, table),
            "candidates": np.diff(table.offsets),
        }
    )


def certify(
    objective: Objective,
    rules: Sequence[Constraint],
    per_user: pd.DataFrame,
    counted: Counted,
    outcome: Outcome,
    *,
    route: str,
    privacy: PrivacyMode,
    seconds: float,
) -> Certificate:
    """The certificate of slates that were counted.

    Raises:
        NumericalError: The objective of all is above the bound.
    """
    n_users = len(per_user)
    total = float(per_user["objective"].to_numpy().sum()) - counted.shared
    if outcome.bound is not None:
        most = float(per_user["bound"].to_numpy().sum())
    else:
        most = max(total, outcome.total)
        if not total <= outcome.total + TOLERANCE * n_users:
            _refuse_bound("", total, outcome.total, outcome.solver)
    value, bound = total / n_users, most / n_users
    weight = sum(w for w, part in objective.parts if isinstance(part, Engagement))
    return Certificate(
        objective=value,
        bound=bound,
        gap=float(relative_gap(np.array(value), np.array(bound))),
        violations=counted.violations,
        soft=tuple(rule.name for rule in rules if not rule.hard),
        shadow_prices={n: p / weight if weight > 0.0 else None for n, p in outcome.prices.items()},
        engagement=float(per_user["engagement"].mean()),
        diversity=float(per_user["diversity"].mean()),
        route=route,
        solver=outcome.solver,
        solver_version=outcome.version,
        n_users=n_users,
        iterations=outcome.iterations,
        seconds=seconds,
        timed_out=outcome.stopped,
        privacy=privacy,
        per_user=per_user,
    )


def _refuse_bound(whose: str, objective: float, bound: float, solver: str) -> None:
    raise NumericalError(
        f"{whose}the objective {objective:.9f} of what was chosen is above {solver}'s bound {bound:.9f}, "
        "so that bound proves nothing; try another solver"
    )
