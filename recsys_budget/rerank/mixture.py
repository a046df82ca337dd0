"""Equal exposure of two groups within each user's rankings: a mixture of two rankings a user."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import TOLERANCE, Constraint, ExposureParity, Policy, Population, SlateSize
from recsys_budget.constraints.engagement import engagement
from recsys_budget.constraints.policy import require_unique_names
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError, NumericalError, SpecificationError
from recsys_budget.rerank import display, problem
from recsys_budget.rerank.certificate import Certificate, relative_gap
from recsys_budget.rerank.conflict import infeasible
from recsys_budget.rerank.fast import library
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.infeasibility import find_conflict
from recsys_budget.rerank.objective import Diversity, Engagement
from recsys_budget.rerank.routes.exposure import ExposureRankings, solve_exposure
from recsys_budget.rerank.structure import Gains, Quotas


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Two rankings a user with the chance of each, and the evidence for them.

    Attributes:
        frame: A row a user, ranking and item: user, ranking (1 or 2; users with one ranking have no 2),
            probability (of that ranking), item, rank (from 1), relevance.
        certificate: What is known about them; figures are expectations over the mixture.
    """

    frame: pd.DataFrame
    certificate: Certificate

    def __len__(self) -> int:
        return self.certificate.n_users

    def __repr__(self) -> str:
        return f"Mixtures({len(self)} users; {self.certificate!r})"

    def _repr_html_(self) -> str:
        return display.mixtures_card(self)

    def draw(self, rng: np.random.Generator | int | None = None) -> pd.DataFrame:
        """One ranking for each user, drawn with its probability: a frame like that of ``Slates``.

        Args:
            rng: Generator, or seed for one.
        """
        chance = self.frame.loc[self.frame["ranking"] == 1].groupby("user", sort=False)["probability"].first()
        generator = np.random.default_rng(rng)
        drawn = pd.Series(
            np.where(generator.random(len(chance)) < chance.to_numpy(), 1, 2), index=chance.index
        )
        kept = self.frame["ranking"].to_numpy() == drawn.loc[self.frame["user"]].to_numpy()
        ranking: pd.DataFrame = self.frame.loc[kept, ["user", "item", "rank", "relevance"]]
        return ranking.reset_index(drop=True)


@dataclass(frozen=True)
class ParityReranker:
    """Choose a mixture of two rankings for each user, in which two categories are exposed alike.

    The expected (discounted) engagement is maximised among all mixtures of rankings that keep the quotas.

    Attributes:
        parity: What is asked of the mixture.
        constraints: Hard rules that each ranking keeps: exactly one ``SlateSize``, and quotas on sets of
            items that are nested or disjoint.

    Raises:
        SpecificationError: The above does not hold.

    References:
        Singh and Joachims (2018), arXiv:1802.07281. Two rankings are enough: as a linear program over
        rankings there are two rows that bind, parity and that chances sum to 1, so a basic solution has two
        entries.
    """

    parity: ExposureParity
    constraints: Sequence[Constraint] | Policy

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", tuple(self.constraints))
        require_unique_names(self._rules)
        if sum(isinstance(rule, SlateSize) for rule in self._rules) != 1:
            raise SpecificationError("constraints must hold exactly one SlateSize")
        if any(not rule.hard or rule.scope == "population" for rule in self._rules):
            raise SpecificationError("a mixture takes hard constraints about one slate alone; see Reranker")

    @property
    def _rules(self) -> tuple[Constraint, ...]:
        return tuple(self.constraints)

    @property
    def slate_size(self) -> int:
        """Items a ranking."""
        return next(rule.k for rule in self._rules if isinstance(rule, SlateSize))

    def rerank(self, candidates: Any, catalogue: ItemCatalogue) -> Mixtures:
        """The best mixture of every user.

        Args:
            candidates: As for :meth:`~recsys_budget.rerank.Reranker.rerank`.
            catalogue: The catalogue that the items are from.

        Guarantees:
            Every quota holds in both rankings, and parity holds in expectation to 1e-6, both counted from the
            rankings. Answers repeat bit for bit, and every user's is what a call with that user alone gives.

        Raises:
            DataError: The candidates cannot be read.
            SpecificationError: A name is not in the catalogue, or the constraints are not nested quotas.
            InfeasibleError: No mixture of some user's rankings keeps parity and constraints.
            NumericalError: An answer failed the check.
        """
        started = time.perf_counter()
        groups = self._check(catalogue)
        table = CandidateTable.read(candidates, catalogue, self.slate_size)
        quotas = Quotas.of(self._rules, table)
        objective = Engagement(self.parity.discount)
        gains = Gains.of(objective, table)
        if quotas is None or gains is None:
            raise SpecificationError(
                "a mixture takes quotas on nested or disjoint sets of items alone; drop the other constraints"
            )
        worth = np.ones(table.k) if gains.worth is None else gains.worth
        ratio = (self.parity.low, self.parity.high)
        found = solve_exposure(
            table.offsets, gains.gains, table.items, quotas.tree, groups, worth, ratio=ratio
        )
        if not found.feasible.all():
            raise self._impossible(Population.of_one(table.of(int((~found.feasible).argmax()))))
        violations = self._verify(found, table)
        chance = found.probability
        sides = [found.rankings[:, 0], found.rankings[:, 1]]
        kept = _expected([engagement(side, table, self.parity.discount) for side in sides], chance)
        diverse = _expected([Diversity().value_all(side, table) for side in sides], chance)
        if not (kept <= found.bound + TOLERANCE).all():
            raise NumericalError("a mixture's objective is above its bound, so that bound proves nothing")
        bound = np.maximum(kept, found.bound)
        per_user = pd.DataFrame(
            {
                "user": table.users,
                "objective": kept,
                "bound": bound,
                "gap": relative_gap(kept, bound),
                "engagement": kept,
                "diversity": diverse,
                "candidates": np.diff(table.offsets),
            }
        )
        price = float(np.abs(found.price).mean())
        mean, most = float(kept.mean()), float(bound.mean())
        certificate = Certificate(
            objective=mean,
            bound=most,
            gap=float(relative_gap(np.array(mean), np.array(most))),
            violations=violations,
            soft=(),
            shadow_prices={rule.name: None for rule in self._rules} | {self.parity.name: price},
            engagement=mean,
            diversity=float(diverse.mean()),
            route="exposure",
            solver="price search",
            solver_version=library(),
            n_users=len(table),
            iterations=int(found.solves.sum()),
            seconds=time.perf_counter() - started,
            timed_out=False,
            privacy="per_user",
            per_user=per_user,
        )
        return Mixtures(_frame(table, found), certificate)

    def to_cvxpy(self, candidates: Any, catalogue: ItemCatalogue, user: str) -> problem.Problem:
        """The linear program of one user: chances that each candidate is at each place, shape ``(n, k)``.

        Its value is the user's ``objective`` in the certificate. Under nested quotas its corners are
        rankings, so that it is the best over mixtures.
        """
        self._check(catalogue)
        table = CandidateTable.read(candidates, catalogue, self.slate_size)
        alone = Population.of_one(table.of(table.find(user)))
        return problem.in_expectation(Engagement(self.parity.discount), self._rules, self.parity, alone)

    def _check(self, catalogue: ItemCatalogue) -> NDArray[np.int64]:
        for rule in self._rules:
            rule.check(catalogue, self.slate_size)
        return self.parity.groups(catalogue)

    def _verify(self, found: ExposureRankings, table: Population) -> dict[str, float]:
        violations = {}
        for rule in self._rules:
            both = [rule.measure_all(found.rankings[:, side], table).max() for side in (0, 1)]
            violations[rule.name] = float(max(both))
        each = zip(found.rankings, found.probability.tolist(), strict=True)
        measured = [self.parity.measure(pair, chance, table.of(u)) for u, (pair, chance) in enumerate(each)]
        violations[self.parity.name] = max(measured)
        for name, worst in violations.items():
            if not worst <= TOLERANCE:
                raise NumericalError(f"a mixture violates {name!r} by {worst:g}, so it is not handed out")
        return violations

    def _impossible(self, alone: Population) -> InfeasibleError:
        rules = list(self._rules)
        # Where the rules can be satisfied without parity, no conflict is found among them.
        with suppress(NumericalError):
            return infeasible(find_conflict(rules, alone, np.zeros(1, np.intp)))
        names = [self.parity.name, *(rule.name for rule in rules)]
        return InfeasibleError(
            f"user {alone.users[0]!r}: no mixture of rankings keeps {self.parity.name!r} together with "
            f"{', '.join(map(repr, names[1:]))}; widen low and high, or relax a constraint",
            user=str(alone.users[0]),
            conflict=names,
        )


def _expected(values: list[NDArray[np.float64]], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = values
    return second + chance * (first - second)


def _frame(table: CandidateTable, found: ExposureRankings) -> pd.DataFrame:
    same = (found.rankings[:, 0] == found.rankings[:, 1]).all(axis=1)
    parts = []
    for side in (0, 1):
        shown = found.rankings[:, side].copy()
        chance = np.where(same, 1.0, found.probability if side == 0 else 1.0 - found.probability)
        if side == 1:
            shown[same] = -1
        part = table.slates(shown)
        part.insert(1, "ranking", side + 1)
        part.insert(2, "probability", np.repeat(chance, (shown >= 0).sum(axis=1)))
        parts.append(part)
    both = pd.concat(parts)
    order = np.lexsort((both["rank"], both["ranking"], table.users.get_indexer(pd.Index(both["user"]))))
    return both.iloc[order].reset_index(drop=True)
