"""Equal exposure of groups within each user's rankings: a mixture of few rankings a user."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import TOLERANCE, Constraint, ExposureParity, Policy, Population, SlateSize
from recsys_budget.constraints.engagement import engagement
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError, NumericalError, SpecificationError
from recsys_budget.rerank import display, problem
from recsys_budget.rerank.certificate import Certificate, relative_gap
from recsys_budget.rerank.conflict import infeasible
from recsys_budget.rerank.fast import library
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.infeasibility import find_conflict
from recsys_budget.rerank.objective import Diversity, Engagement
from recsys_budget.rerank.routes.exposure import solve_exposure
from recsys_budget.rerank.routes.parities import solve_parities
from recsys_budget.rerank.structure import Gains, Quotas


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Few rankings a user with the chance of each, and the evidence for them.

    Attributes:
        frame: A row a user, ranking and item: user, ranking (from 1; at most one more than there are rules of
            parity, and as few as are needed), probability (of that ranking), item, rank (from 1), relevance.
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
        firsts = self.frame.drop_duplicates(["user", "ranking"])
        user, numbers = pd.factorize(firsts["user"])
        # The first ranking whose chance, with those before it, exceeds the draw.
        upto = firsts["probability"].groupby(user).cumsum().to_numpy()
        draws = np.random.default_rng(rng).random(len(numbers))
        passed = np.bincount(user, upto <= draws[user], minlength=len(numbers)).astype(np.int64)
        last = firsts["ranking"].groupby(user).max().to_numpy()
        drawn = pd.Series(np.minimum(passed + 1, last), index=numbers)
        kept = self.frame["ranking"].to_numpy() == drawn.loc[self.frame["user"]].to_numpy()
        ranking: pd.DataFrame = self.frame.loc[kept, ["user", "item", "rank", "relevance"]]
        return ranking.reset_index(drop=True)


@dataclass(frozen=True)
class ParityReranker:
    """Choose a mixture of few rankings for each user, in which categories are exposed alike.

    The expected (discounted) engagement is maximised among all mixtures of rankings that keep the quotas.

    Attributes:
        parity: What is asked of the mixture: one rule on two categories, or several with the same discount.
        constraints: Hard rules that each ranking keeps: exactly one ``SlateSize``, and quotas on sets of
            items that are nested or disjoint.

    Raises:
        SpecificationError: The above does not hold.

    References:
        Singh and Joachims (2018), arXiv:1802.07281. One ranking more than there are rules is enough: as a
        linear program over rankings there is a row for each, and one in which chances sum to 1, so that a
        basic solution has as many entries.
    """

    parity: ExposureParity | Sequence[ExposureParity]
    constraints: Sequence[Constraint] | Policy

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", tuple(self.constraints))
        if not isinstance(self.parity, ExposureParity):
            object.__setattr__(self, "parity", tuple(self.parity))
        if not self._parities or any(not isinstance(rule, ExposureParity) for rule in self._parities):
            raise SpecificationError("parity must be one ExposureParity or several")
        if len({rule.discount for rule in self._parities}) > 1:
            raise SpecificationError("rules of parity must agree on what each place is worth: one discount")
        names = [rule.name for rule in self._rules] + [rule.name for rule in self._parities]
        if len(set(names)) < len(names):
            raise SpecificationError("two rules of a mixture have the same name; name one of them otherwise")
        if sum(isinstance(rule, SlateSize) for rule in self._rules) != 1:
            raise SpecificationError("constraints must hold exactly one SlateSize")
        if any(not rule.hard or rule.scope == "population" for rule in self._rules):
            raise SpecificationError("a mixture takes hard constraints about one slate alone; see Reranker")

    @property
    def _rules(self) -> tuple[Constraint, ...]:
        return tuple(self.constraints)

    @property
    def _parities(self) -> tuple[ExposureParity, ...]:
        return (self.parity,) if isinstance(self.parity, ExposureParity) else tuple(self.parity)

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
            Every quota holds in every ranking, and parity holds in expectation to 1e-6, both counted from the
            rankings. Answers repeat bit for bit, and every user's is what a call with that user alone gives.

        Raises:
            DataError: The candidates cannot be read.
            SpecificationError: A name is not in the catalogue, or the constraints are not nested quotas.
            InfeasibleError: No mixture of some user's rankings keeps parity and constraints.
            NumericalError: An answer failed the check.
        """
        started = time.perf_counter()
        self._check(catalogue)
        table = CandidateTable.read(candidates, catalogue, self.slate_size)
        quotas = Quotas.of(self._rules, table)
        discount = self._parities[0].discount
        objective = Engagement(discount)
        gains = Gains.of(objective, table)
        if quotas is None or gains is None:
            raise SpecificationError(
                "a mixture takes quotas on nested or disjoint sets of items alone; drop the other constraints"
            )
        found = self._solve(table, gains, quotas)
        if found.impossible.any():
            raise self._impossible(Population.of_one(table.of(int(found.impossible.argmax()))))
        if not found.feasible.all():
            raise NumericalError(
                f"user {table.users[int((~found.feasible).argmax())]!r}: no mixture was found, and no proof "
                "that there is none; drop a rule, or widen low and high"
            )
        violations = self._verify(found, table)
        kept = _expected(found, lambda side: engagement(side, table, discount))
        diverse = _expected(found, lambda side: Diversity().value_all(side, table))
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
        prices = np.abs(found.prices).mean(axis=0).tolist()
        mean, most = float(kept.mean()), float(bound.mean())
        certificate = Certificate(
            objective=mean,
            bound=most,
            gap=float(relative_gap(np.array(mean), np.array(most))),
            violations=violations,
            soft=(),
            shadow_prices={rule.name: None for rule in self._rules}
            | dict(zip((rule.name for rule in self._parities), prices, strict=True)),
            engagement=mean,
            diversity=float(diverse.mean()),
            route="exposure",
            solver=found.solver,
            solver_version=library() if found.solver == "price search" else problem.versions("HIGHS"),
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
        return problem.in_expectation(
            Engagement(self._parities[0].discount), self._rules, self._parities, alone
        )

    def _check(self, catalogue: ItemCatalogue) -> None:
        for rule in self._rules:
            rule.check(catalogue, self.slate_size)
        for parity in self._parities:
            parity.groups(catalogue)

    def _solve(self, table: Population, gains: Gains, quotas: Quotas) -> _Mixed:
        worth = np.ones(table.k) if gains.worth is None else gains.worth
        asked = (table.offsets, gains.gains, table.items, quotas.tree)
        if len(self._parities) == 1:
            (parity,) = self._parities
            groups = parity.groups(table.catalogue)
            one = solve_exposure(*asked, groups, worth, ratio=(parity.low, parity.high))
            same = (one.rankings[:, 0] == one.rankings[:, 1]).all(axis=1)
            chance = np.where(same, 1.0, one.probability)
            rankings = one.rankings.copy()
            rankings[same, 1] = -1
            return _Mixed(
                rankings, np.column_stack([chance, 1.0 - chance]), one.feasible, ~one.feasible, one.bound,
                one.price[:, None], one.solves, "price search",
            )  # fmt: skip
        columns, equal, owner = [], [], []
        for at, parity in enumerate(self._parities):
            for column, exactly in _columns(parity, table):
                columns.append(column)
                equal.append(exactly)
                owner.append(at)
        several = solve_parities(*asked, np.column_stack(columns), np.array(equal), worth)
        prices = np.zeros((len(table), len(self._parities)))
        for row, owned in enumerate(owner):
            prices[:, owned] += np.abs(several.prices[:, row])
        return _Mixed(
            several.rankings, several.chances, several.feasible, several.impossible, several.bound, prices,
            several.solves, "HIGHS",
        )  # fmt: skip

    def _verify(self, found: _Mixed, table: Population) -> dict[str, float]:
        violations = {}
        shown = found.chances > 0.0
        for rule in self._rules:
            each = [rule.measure_all(found.rankings[:, c], table)[shown[:, c]] for c in range(shown.shape[1])]
            violations[rule.name] = float(max(measured.max(initial=0.0) for measured in each))
        for parity in self._parities:
            violations[parity.name] = max(
                parity.measure(found.rankings[u], found.chances[u], table.of(u)) for u in range(len(table))
            )
        for name, worst in violations.items():
            if not worst <= TOLERANCE:
                raise NumericalError(f"a mixture violates {name!r} by {worst:g}, so it is not handed out")
        return violations

    def _impossible(self, alone: Population) -> InfeasibleError:
        rules = list(self._rules)
        # Where the rules can be satisfied without parity, no conflict is found among them.
        with suppress(NumericalError):
            return infeasible(find_conflict(rules, alone, np.zeros(1, np.intp)))
        asked = [rule.name for rule in self._parities]
        names = [*asked, *(rule.name for rule in rules)]
        return InfeasibleError(
            f"user {alone.users[0]!r}: no mixture of rankings keeps "
            f"{', '.join(map(repr, asked))} together with {', '.join(repr(rule.name) for rule in rules)}; "
            "widen low and high, or relax a constraint",
            user=str(alone.users[0]),
            conflict=names,
        )


@dataclass(frozen=True, eq=False)
class _Mixed:
    """What either route answers: rankings ``(n_users, m, k)``, their chances, and what is known of them."""

    rankings: NDArray[np.int32]
    chances: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    impossible: NDArray[np.bool_]
    bound: NDArray[np.float64]
    prices: NDArray[np.float64]
    solves: NDArray[np.int64]
    solver: str


def _columns(parity: ExposureParity, table: Population) -> list[tuple[NDArray[np.float64], bool]]:
    """A rule as columns over all candidates whose expected sums are at most 0, or 0 exactly."""
    group = parity.groups(table.catalogue)[table.items]
    averages, starts, sizes = [], table.offsets[:-1], np.diff(table.offsets)
    members = [np.add.reduceat(group == g, starts) for g in (0, 1)]
    applies = np.repeat((members[0] > 0) & (members[1] > 0), sizes)
    for g in (0, 1):
        inside = applies & (group == g)
        averages.append(np.where(inside, 1.0 / np.repeat(np.maximum(members[g], 1), sizes), 0.0))
    first, second = averages
    if parity.low == parity.high:
        return [(parity.low * second - first, True)]
    columns = [(parity.low * second - first, False)] if parity.low > 0.0 else []
    if math.isfinite(parity.high):
        columns.append((first - parity.high * second, False))
    return columns


def _expected(
    found: _Mixed, measure: Callable[[NDArray[np.int32]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Mean over each user's rankings."""
    total = np.zeros(len(found.chances))
    for c in range(found.chances.shape[1]):
        shown = np.flatnonzero(found.chances[:, c] > 0.0)
        total[shown] += found.chances[shown, c] * measure(found.rankings[:, c])[shown]
    return total


def _frame(table: CandidateTable, found: _Mixed) -> pd.DataFrame:
    parts = []
    for c in range(found.chances.shape[1]):
        shown = np.where(found.chances[:, c, None] > 0.0, found.rankings[:, c], -1)
        part = table.slates(shown)
        part.insert(1, "ranking", c + 1)
        part.insert(2, "probability", np.repeat(found.chances[:, c], (shown >= 0).sum(axis=1)))
        parts.append(part)
    both = pd.concat(parts)
    order = np.lexsort((both["rank"], both["ranking"], table.users.get_indexer(pd.Index(both["user"]))))
    return both.iloc[order].reset_index(drop=True)
