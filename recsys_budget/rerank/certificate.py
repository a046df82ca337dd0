"""The evidence that comes with slates: how good they are, how good they could be, and what was checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import TOLERANCE
from recsys_budget.privacy import round_up
from recsys_budget.rerank import display

# What slates cost in privacy; see Certificate.privacy.
PrivacyMode = Literal["per_user", "population_private", "population_not_private"]


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known about a set of slates, recomputed from the slates in float64.

    Attributes:
        objective: Objective, mean over users, penalties of soft constraints taken off; higher is better.
        bound: Upper bound on that mean over all slates that satisfy the hard constraints. From a solver's
            branch and bound it is good to about 1e-6, since that solves linear programs to a tolerance of
            1e-7; from other routes it is good to float64.
        gap: ``(bound - objective) / |bound|``: the largest share of the bound that any slates could add. 0.0
            where the two differ by 1e-6 or less, the solver's precision.
        violations: For each constraint by name, the largest violation over users, in the constraint's unit,
            counted from the emitted slates; for a constraint about all slates, their one violation. Slates
            that violate a hard constraint by more than 1e-6 are never emitted.
        soft: Names of the soft constraints, whose violations may be above 0.
        shadow_prices: For each constraint by name, what engagement would gain if each of its bounds were
            looser by one unit: the mean over users as a share of their best for a constraint about one slate,
            the sum over users for one about all slates. From the linear relaxation, or, for nested quotas,
            from exact optima over at most a thousand users; with diversity, from slates within the gap of at
            most a hundred. None where the objective has no engagement to measure it by.
        engagement: Share kept of the best engagement that the candidates allow, mean over users, in [0, 1];
            with the discount of the objective, if it has one.
        diversity: Intra-list diversity over categories, mean over users, in [0, 1].
        route: How the slates were found: ``"laminar"``, ``"general"`` and so on; see ``ARCHITECTURE.md``.
        solver: Solver, or ``"greedy"`` and the like for a route that needs none.
        solver_version: Versions of its package, and of cvxpy where that was called.
        n_users: Number of slates.
        iterations: Programs solved, slates chosen greedily, or evaluations of prices, in total.
        seconds: Wall-clock seconds from candidates to checked slates.
        timed_out: Whether the time limit ended the search; slates are checked all the same.
        privacy: ``"per_user"``: each slate depends on model outputs, public data and the served user's own
            candidates and history alone, which is post-processing and costs no privacy budget.
            ``"population_not_private"``: a constraint about all slates made each user's slate depend on the
            candidates of the others. ``"population_private"``: likewise, but through noisy prices that a
            ledger was charged for.
        per_user: A row a user, in the order of the slates: user, objective, bound, gap, engagement,
            diversity, candidates. The bound and gap are NaN where only the bound of all together is known.
    """

    objective: float
    bound: float
    gap: float
    violations: Mapping[str, float]
    soft: tuple[str, ...]
    shadow_prices: Mapping[str, float | None]
    engagement: float
    diversity: float
    route: str
    solver: str
    solver_version: str
    n_users: int
    iterations: int
    seconds: float
    timed_out: bool
    privacy: PrivacyMode
    per_user: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Every figure but the per-user table, and the largest per-user gap, as plain Python values.

        The largest gap is None where only the bound of all users together is known.
        """
        fields = {name: value for name, value in vars(self).items() if name != "per_user"}
        largest = float(self.per_user["gap"].max())
        return fields | {
            "violations": dict(self.violations),
            "shadow_prices": dict(self.shadow_prices),
            "soft": list(self.soft),
            "largest_gap": None if math.isnan(largest) else largest,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @property
    def largest_violation(self) -> float:
        """Of the hard constraints."""
        return max(violation for name, violation in self.violations.items() if name not in self.soft)

    def __repr__(self) -> str:
        worst = self.largest_violation
        broken = "none violated" if worst == 0.0 else f"largest violation {worst:g}"
        wishes = sum(self.violations[name] > 0.0 for name in self.soft)
        soft = f"; {len(self.soft)} soft, {wishes} of them violated" if self.soft else ""
        hard = len(self.violations) - len(self.soft)
        late = " (out of time)" if self.timed_out else ""
        return (
            f"Certificate({self.n_users} users: objective {self.objective:.4f}, at most {self.bound:.4f} "
            f"possible (gap {self.gap:.2%}); engagement {self.engagement:.4f}, "
            f"diversity {self.diversity:.4f}; {hard} constraints, {broken}{soft}; "
            f"{self.route} with {self.solver}, {self.seconds:.2f} s{late}, "
            f"privacy {self.privacy})"
        )

    def _repr_html_(self) -> str:
        return display.certificate_card(self)


def relative_gap(objective: NDArray[np.float64], bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(bound - objective) / |bound|``, 0.0 where the two differ by the solver's precision or less."""
    apart = bound - objective
    return np.where(apart <= TOLERANCE, 0.0, apart / np.maximum(np.abs(bound), TOLERANCE))


@dataclass(frozen=True, eq=False)
class PrivateCertificate:
    """What is known about slates made at private prices: noisy or public figures alone, free to publish.

    Nothing here was read off the slates without noise, so the loads are not counted again as in
    :class:`Certificate`. With probability at least ``1 - beta`` over the noise, all of the following hold
    together, or no slates are handed out: every hard bound that the table calls proven holds, and no slates
    within the hard rules have a mean objective more than ``given_up`` above these.

    Attributes:
        objective: Mean over users, penalties of soft constraints about all slates taken off; with noise.
        bound: Mean that no slates within the hard rules exceed; with noise.
        standard_error: Of the noise on ``objective`` and, separately, on ``bound``: the larger of the two.
        given_up: Upper limit of ``bound - objective``: what privacy, room for noise and the search together
            cost. inf where noise hides the number of users.
        bounds: A row a bound: rule, part (the provider or item it is about, where the rule is about several),
            side ("at least" or "at most"), bound (for a share, at the noisy number of users), load (with
            noise), margin (what the load must be inside the bound to prove it), price (in objective), hard,
            proven.
        users: Number of users with a slate; with noise.
        users_error: Standard error of its noise.
        beta: See above.
        noise_multiplier: All releases together cost what one with this noise costs.
        epsilon: Their cost alone, by PLD; what a ledger guarantees of everything together is in the ledger.
        delta: The delta of that figure: the cap's.
        rounds: Releases that set prices; one more measured the slates.
        record: Number of the reservation in the ledger.
        route: ``"prices"``.
        solver_version: What chose slates at prices.
        private: False when repeatable noise was used: then nothing is promised.
    """

    objective: float
    bound: float
    standard_error: float
    given_up: float
    bounds: pd.DataFrame
    users: float
    users_error: float
    beta: float
    noise_multiplier: float
    epsilon: float
    delta: float
    rounds: int
    record: int
    route: str
    solver_version: str
    private: bool

    @property
    def privacy(self) -> PrivacyMode:
        """``"population_private"``; with repeatable noise ``"population_not_private"``."""
        return "population_private" if self.private else "population_not_private"

    @property
    def proven(self) -> bool:
        """Whether every hard bound is proven."""
        return bool(self.bounds.loc[self.bounds["hard"], "proven"].all())

    @property
    def shadow_prices(self) -> dict[str, float]:
        """By rule, what the sum of objectives would gain if each of its bounds were one looser."""
        return {str(name): float(price) for name, price in self.bounds.groupby("rule")["price"].sum().items()}

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain Python values; None for what noise hides."""
        plain = {name: value for name, value in vars(self).items() if name != "bounds"}
        if not math.isfinite(self.given_up):
            plain["given_up"] = None
        return plain | {"privacy": self.privacy, "bounds": self.bounds.to_dict("records")}

    def to_json(self) -> str:
        """:meth:`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def _repr_html_(self) -> str:
        return display.private_card(self)

    def __repr__(self) -> str:
        hard = int(self.bounds["hard"].sum())
        proven = int((self.bounds["hard"] & self.bounds["proven"]).sum())
        not_private = "" if self.private else "not private: repeatable noise was used; "
        return (
            f"PrivateCertificate({not_private}about {self.users:.0f} users: objective {self.objective:.4f} "
            f"+- {self.standard_error:.4f}, at most {self.given_up:.4f} given up; {proven} of {hard} hard "
            f"bounds proven, each claim but with probability {self.beta:g}; epsilon "
            f"{round_up(self.epsilon)}, delta {self.delta:g}, privacy {self.privacy})"
        )
