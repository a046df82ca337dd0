"""Finding out why users have no slate: which rules conflict, whom that hits, and what would settle it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import (
    TOLERANCE,
    Constraint,
    ItemConstraint,
    Population,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    StockMaximum,
)
from recsys_budget.constraints.base import item_rows
from recsys_budget.constraints.engagement import population_gains
from recsys_budget.errors import NumericalError
from recsys_budget.rerank.conflict import Conflict, Relaxation, Shortage
from recsys_budget.rerank.divergence import Prices
from recsys_budget.rerank.feasibility import Pool
from recsys_budget.rerank.loosening import moved_by, number_of
from recsys_budget.rerank.routes.answers import BestSlates
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.structure import Quotas
from recsys_budget.rerank.subsets import Loosening, OutOfTime, Subsets

# Users asked one by one, where others are not alike; users for whom relaxations are worked out; slate sizes
# tried on either side; shortages told.
_TRIED, _RELAXED, _SIZES, _SHOWN = 200, 8, 3, 20
# Candidates above which integer programs over everybody take too long.
_LARGE = 5_000


def find_conflict(
    rules: Sequence[Constraint],
    population: Population,
    users: NDArray[np.intp],
    *,
    solver: str | None = None,
    deadline: float = math.inf,
    named: Sequence[str] = (),
    pool: Pool | None = None,
) -> Conflict:
    """Why these users have no slates.

    Rules of one user are tried first. What conflicts for the first user without a slate is found by
    deletion: of the rules that a linear relaxation finds in conflict, each is left out in turn, for good
    where the rest stays infeasible (Chinneck and Dravnieks 1991, doi:10.1287/ijoc.3.2.157). The slate size
    is tried last, so that too few candidates are reported as that alone; it is kept beside rules that may
    mean something for slates of k items only.

    Args:
        rules: Every rule asked for; soft ones never conflict.
        population: The candidates of everybody.
        users: Positions of users who are said to have no slate, at least one.
        solver: Solver for the integer programs; None takes HiGHS.
        deadline: When to stop and tell what is known, by ``time.monotonic``.
        named: Rules about all slates that prices found in conflict. In a population too large for integer
            programs, and beside rules that are no nested quotas, that is where the search starts, and prices
            are what proves.
        pool: Slates of everybody that are known already.

    Raises:
        NumericalError: The rules can be satisfied together after all, or a solver's answer fails a check.
    """
    hard = [rule for rule in rules if rule.hard]
    own = [rule for rule in hard if rule.scope == "user"]
    if named and (len(population.items) > _LARGE or Quotas.of(hard, population) is None):
        gains = population_gains(population, "none")

        def ask(tree: LaminarTree) -> Oracle:
            return Oracle(population.offsets, gains, population.items, tree)

        found = by_prices(rules, population, named, ask, deadline, pool or Pool(population))
        if found.certified or time.monotonic() >= deadline:
            return found
    # Rules about all slates, soft ones too, are asked together, and then everybody is said to have no slate.
    certain = all(rule.scope == "user" for rule in rules)
    first = _first_alone(own, population, users, solver, deadline, certain=certain)
    if first is not None:
        return _Search(rules, own, population, users, first, solver, deadline).conflict()
    return _Search(rules, hard, population, users, None, solver, deadline).conflict()


def by_prices(
    rules: Sequence[Constraint],
    population: Population,
    named: Sequence[str],
    ask: Callable[[LaminarTree], BestSlates],
    deadline: float = math.inf,
    pool: Pool | None = None,
) -> Conflict:
    """The conflict that prices prove; each user alone has a slate.

    Args:
        rules: Every rule asked for.
        population: The users; without a pool nothing but their catalogue is looked at.
        named: Rules about all slates that prices found in conflict.
        ask: The users' slates under some nested quotas, none of them tighter than the rules'.
        deadline: When to stop and tell what is known, by ``time.monotonic``.
        pool: What knows of rules that are no nested quotas; None where there are no such.
    """
    hard = [rule for rule in rules if rule.hard]
    prices = Prices(hard, population, ask, deadline, pool)
    begin = {i for i, rule in enumerate(hard) if rule.scope == "user" or rule.name in named}
    kept, certified, proven = prices.smallest(begin)
    relaxations, shortages = [], []
    for i in sorted(kept):
        move, complete = prices.least(set(range(len(hard))), i), True
        if move is None:
            move, complete = prices.least(kept | prices.sizes, i), False
        if move is None:
            relaxations.append(Relaxation(hard[i], None, None, None, False, False, len(population)))
            continue
        field = str(number_of(hard[i])[0])
        amount = abs(getattr(move.relaxed, field) - getattr(hard[i], field))
        relaxations.append(
            Relaxation(hard[i], move.relaxed, field, amount, move.exact, complete, len(population))
        )
        shortages += _short(hard[i], population, move.shown)
    return Conflict(
        constraints=tuple(hard[i] for i in sorted(kept)),
        rules=tuple(rules),
        offers=tuple(
            hard[i].explain(population)
            if hard[i].scope == "population"
            else f"asked of each of {len(population)} users"
            for i in sorted(kept)
        ),
        proven=proven,
        certified=certified,
        relaxations=tuple(relaxations),
        shortages=tuple(sorted(shortages, key=lambda shortage: -shortage.amount)[:_SHOWN]),
        users=tuple(map(str, population.users[:10])),
        n_users=len(population),
        n_without=len(population),
        n_unchecked=0,
        n_asked=len(population),
    )


def _short(rule: Constraint, population: Population, shown: NDArray[np.int64]) -> list[Shortage]:
    """Whom a rule about sums leaves short, or with too much, where each item is shown so often."""
    labelled = _labels(rule, population)
    if labelled is None or not isinstance(rule, ItemConstraint):
        return []
    kind, names = labelled
    over = item_rows(rule, population.catalogue).T @ shown - np.asarray(rule.rhs(population), np.float64)
    below = isinstance(rule, ProviderMinimum)
    return [
        Shortage(rule.name, kind, str(names[row]), float(over[row]), below)
        for row in np.flatnonzero(over > TOLERANCE)
    ]


def _first_alone(
    own: Sequence[Constraint],
    population: Population,
    users: NDArray[np.intp],
    solver: str | None,
    deadline: float,
    *,
    certain: bool,
) -> int | None:
    """The first user whose own rules leave no slate, of up to 200; the first of all where that is certain."""
    if certain:
        return int(users[0])
    for group in alike(own, population, users)[:_TRIED]:
        try:
            if _alone(own, population, group[0], solver, deadline).satisfying(set(range(len(own)))) is None:
                return group[0]
        except OutOfTime:
            return None
    return None


def _alone(
    rules: Sequence[Constraint], population: Population, user: int, solver: str | None, deadline: float
) -> Subsets:
    return Subsets(rules, Population.of_one(population.of(user)), solver, deadline)


@dataclass(frozen=True, eq=False)
class _Search:
    """One search for a conflict: of the rules of one user, or of all rules where ``user`` is None."""

    rules: Sequence[Constraint]
    hard: Sequence[Constraint]
    population: Population
    users: NDArray[np.intp]
    user: int | None
    solver: str | None
    deadline: float

    def conflict(self) -> Conflict:
        """What was found by the deadline."""
        if self.user is None:
            subsets = Subsets(self.hard, self.population, self.solver, self.deadline)
        else:
            subsets = _alone(self.hard, self.population, self.user, self.solver, self.deadline)
        kept, certified, proven = self._smallest(subsets)
        members = sorted(kept)
        asked = [self.hard[i] for i in members]
        hit, unchecked = self._hit(asked)
        if self.user is None:
            parts = [(subsets, len(self.population))]
        else:
            groups = alike(self.hard, self.population, np.array(hit, np.intp))[:_RELAXED]
            parts = [
                (subsets if group[0] == self.user else self._of(group[0]), len(group)) for group in groups
            ]
        ids = tuple(str(self.population.users[u]) for u in hit[:10])
        return Conflict(
            constraints=tuple(asked),
            rules=tuple(self.rules),
            offers=tuple(self._offer(rule, subsets.population) for rule in asked),
            proven=proven,
            certified=certified,
            relaxations=tuple(self._relaxation(i, kept, parts) for i in members),
            shortages=self._shortages(subsets, kept),
            users=ids,
            n_users=len(hit),
            n_without=len(self.users),
            n_unchecked=unchecked,
            n_asked=len(self.population),
        )

    @property
    def _sizes(self) -> frozenset[int]:
        """Position of the slate size, which relaxations of the others keep."""
        return frozenset(i for i, rule in enumerate(self.hard) if isinstance(rule, SlateSize))

    def _of(self, user: int) -> Subsets:
        return _alone(self.hard, self.population, user, self.solver, self.deadline)

    def _smallest(self, subsets: Subsets) -> tuple[Set[int], bool, bool]:
        """A minimal conflict, whether weights prove it, and whether all was decided in time."""
        kept: Set[int] = subsets.everything
        try:
            fewer, certified = subsets.weigh(kept)
            if not certified and subsets.satisfying(kept) is not None:
                whose = "all users together" if self.user is None else repr(subsets.population.users[0])
                raise NumericalError(f"{whose}: the solver found no slate, and then one; name another solver")
            if fewer:
                fewer = fewer | self._sizes
                if subsets.weigh(fewer)[1] or subsets.satisfying(fewer) is None:
                    kept = fewer
            # Rules that read positions first: without them there are no places, and programs are smaller.
            order = sorted(kept, key=lambda i: (i in self._sizes, not self.hard[i].positional))
            for i in order:
                rest = kept - {i}
                if not rest or (i in self._sizes and not subsets.may_lose_size(rest)):
                    continue
                if subsets.satisfying(rest) is None:
                    kept = rest
            return kept, subsets.weigh(kept)[1], True
        except OutOfTime:
            return kept, False, False

    def _hit(self, asked: Sequence[Constraint]) -> tuple[list[int], int]:
        """Users whom these rules leave without a slate, and how many were not looked at."""
        if self.user is None:
            return self.users.tolist(), 0
        groups = alike(asked, self.population, self.users)
        hit, seen = [], 0
        try:
            for group in groups[:_TRIED]:
                known = self.user in group
                some = None if known else _alone(
                    asked, self.population, group[0], self.solver, self.deadline
                ).satisfying(set(range(len(asked))))  # fmt: skip
                seen += len(group)
                if some is None:
                    hit += group
        except OutOfTime:
            hit = hit or [self.user]
        return sorted(hit), len(self.users) - seen

    def _offer(self, rule: Constraint, population: Population) -> str:
        if rule.scope == "population":
            return rule.explain(population)
        if len(population) == 1:
            return rule.explain(population.of(0))
        return f"asked of each of {len(population)} users"

    def _relaxation(self, i: int, kept: Set[int], parts: Sequence[tuple[Subsets, int]]) -> Relaxation:
        """The least that rule i has to give for all these users."""
        rule = self.hard[i]
        field, sign = number_of(rule)
        n_users = sum(size for _, size in parts)
        nothing = Relaxation(rule, None, None, None, exact=False, complete=False, n_users=n_users)
        try:
            if isinstance(rule, SlateSize):
                return self._other_size(rule, kept, [part for part, _ in parts], n_users) or nothing
            complete, found = True, []
            for part, _ in parts:
                loosened = part.loosen(part.everything, i)
                if loosened is None:
                    complete, loosened = False, part.loosen(kept | self._sizes, i)
                if loosened is None:
                    return nothing
                found.append(loosened)
        except OutOfTime:
            return nothing
        worst: Loosening = max(found, key=lambda loosened: loosened.amount)
        exact = all(loosened.exact for loosened in found)
        relaxed = None if field is None else moved_by(rule, field, -sign * worst.amount)
        return Relaxation(rule, relaxed, field, worst.amount, exact, complete, n_users)

    def _other_size(
        self, rule: SlateSize, kept: Set[int], parts: Sequence[Subsets], n_users: int
    ) -> Relaxation | None:
        """The nearest slate size that the other rules allow.

        Rules may mean something else for slates of another size, so that sizes are tried, nearest first;
        where none of the rules does, the search starts from the size that an integer program finds.
        """
        most = min(int(np.diff(part.population.offsets).min()) for part in parts)
        owner = next(i for i, other in enumerate(self.hard) if other is rule)
        for complete in (True, False):
            at = frozenset(range(len(self.hard))) if complete else frozenset(kept)
            steps = [part.steps_to_fit(at, owner) for part in parts]
            if None in steps:
                continue
            first = max(step for step in steps if step is not None)
            for distance in range(max(first, rule.k - most), first + _SIZES):
                for k in (rule.k - distance, rule.k + distance):
                    if 1 <= k <= most and all(part.fits(at, k) for part in parts):
                        relaxed = moved_by(rule, "k", k - rule.k)
                        return Relaxation(rule, relaxed, "k", distance, True, complete, n_users)
        return None

    def _shortages(self, subsets: Subsets, kept: Set[int]) -> tuple[Shortage, ...]:
        """Providers and items that rules about all slates leave short, or with too much."""
        found = []
        for i in sorted(kept):
            labelled = _labels(self.hard[i], self.population)
            if labelled is None:
                continue
            try:
                amounts = subsets.violations(kept | self._sizes, i)
            except OutOfTime:
                break
            if amounts is not None:
                kind, names = labelled
                below = isinstance(self.hard[i], ProviderMinimum)
                found += [
                    Shortage(self.hard[i].name, kind, str(names[row]), float(amounts[row]), below)
                    for row in np.flatnonzero(amounts > 1e-6)
                ]
        return tuple(sorted(found, key=lambda shortage: -shortage.amount)[:_SHOWN])


def _labels(rule: Constraint, population: Population) -> tuple[Literal["provider", "item"], Any] | None:
    """Whom each row of a rule is about."""
    if isinstance(rule, ProviderMinimum | ProviderMaximum):
        named = rule.provider is not None
        return "provider", [rule.provider] if named else population.catalogue.provider_names
    return ("item", population.catalogue.ids) if isinstance(rule, StockMaximum) else None


def alike(rules: Sequence[Constraint], population: Population, users: NDArray[np.intp]) -> list[list[int]]:
    """Users in groups whose candidates these rules cannot tell apart: all or none of a group have a slate.

    Where rules read facts about items alone, what counts is how many candidates of each kind a user has, and
    no more than k of a kind can be chosen. Each other user is a group.

    Returns:
        Groups in the order of their first user.
    """
    if not all(isinstance(rule, ItemConstraint) and rule.scope == "user" for rule in rules):
        return [[int(user)] for user in users]
    rows = [item_rows(rule, population.catalogue) for rule in rules if isinstance(rule, ItemConstraint)]
    columns = (
        sparse.csr_array(sparse.hstack(rows)) if rows else sparse.csr_array((len(population.catalogue), 0))
    )
    columns.eliminate_zeros()
    columns.sort_indices()
    kinds: dict[tuple[bytes, bytes], int] = {}
    kind_of: dict[int, int] = {}
    limit = population.k if any(isinstance(rule, SlateSize) for rule in rules) else None
    groups: dict[bytes, list[int]] = {}
    for user in users.tolist():
        mine = []
        for item in population.items[population.offsets[user] : population.offsets[user + 1]].tolist():
            if item not in kind_of:
                span = slice(columns.indptr[item], columns.indptr[item + 1])
                key = columns.indices[span].tobytes(), columns.data[span].tobytes()
                kind_of[item] = kinds.setdefault(key, len(kinds))
            mine.append(kind_of[item])
        found, counts = np.unique(np.array(mine, np.int64), return_counts=True)
        counts = counts if limit is None else np.minimum(counts, limit)
        groups.setdefault(np.concatenate([found, counts]).tobytes(), []).append(user)
    return list(groups.values())
