"""Conflicts in populations too large for integer programs: prices of sums prove them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import (
    TOLERANCE,
    CatalogueCoverage,
    Constraint,
    ItemConstraint,
    Population,
    SlateSize,
)
from recsys_budget.constraints.base import item_rows
from recsys_budget.rerank.feasibility import Pool, Ray, Verdict
from recsys_budget.rerank.loosening import moved_by, number_of, one_step
from recsys_budget.rerank.routes.answers import BestSlates
from recsys_budget.rerank.routes.dual import Dual
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.structure import Sums
from recsys_budget.rerank.together import Together

_TRIALS = 20  # moves of a number that are tried before it is given up
_NUDGE = 1e-9  # how far beyond what prices ask for, in steps: rounding must not leave a bound just short


@dataclass(frozen=True, eq=False)
class Move:
    """The least that a number has to give.

    Attributes:
        relaxed: The rule with its number moved.
        exact: Whether prices prove that no smaller move does.
        shown: int64 ``(n_items,)``, how often each item is shown by slates that satisfy the moved rule.
    """

    relaxed: Constraint
    exact: bool
    shown: NDArray[np.int64]


class _Asked(Protocol):
    """Some rules, of which prices of the sums say whether they leave slates."""

    @property
    def sums(self) -> Sums:
        """What they ask of all slates together."""

    @property
    def crossed(self) -> tuple[str, ...]:
        """Names of the rules that bound a sum from below and above, with nothing between; empty without."""

    def verdict(self, deadline: float) -> Verdict:
        """Whether they leave slates; not where sums are crossed."""

    def weigh(self, price: NDArray[np.float64]) -> tuple[float, bool]:
        """How much less the bounds are worth than slates cost at these prices, and whether that is proof."""


@dataclass(frozen=True, eq=False)
class _Nested:
    """Nested quotas, asked of an oracle."""

    together: Together
    oracle: BestSlates

    @property
    def sums(self) -> Sums:
        return self.together.sums

    @property
    def crossed(self) -> tuple[str, ...]:
        return self.together.crossed

    def verdict(self, deadline: float) -> Verdict:
        left = None if math.isinf(deadline) else max(1e-3, deadline - time.monotonic())
        found = self.together.solve(self.oracle, None, 0.5, left)
        if found.ray is None:
            shown = self.oracle.total(found.selection).counts.sum(axis=0) if found.satisfied else None
            return Verdict(True if found.satisfied else None, None, shown)
        return Verdict(False, dict(zip(self.sums.keys, found.ray.tolist(), strict=False)))

    def weigh(self, price: NDArray[np.float64]) -> tuple[float, bool]:
        # Far along the prices gains have no say but among slates that cost the same.
        rows = self.together.rows
        price = np.where(np.isfinite(np.where(price > 0.0, rows.upper, rows.lower)), price, 0.0)
        if not price.any():
            return 0.0, False
        dual = Dual(self.oracle, rows)
        far = 1e9 * (1.0 + self.oracle.largest * dual.shows)
        point = dual.at(far * price)
        return (point.gain - point.bound) / far, point.bound < 0.0


@dataclass(frozen=True, eq=False)
class _Linear:
    """Any linear rules, asked of a pool of slates."""

    own: Sums
    sums: Sums
    crossed: tuple[str, ...]
    pool: Pool

    def verdict(self, deadline: float) -> Verdict:
        return self.pool.verdict(self.own, self.sums, deadline)

    def weigh(self, price: NDArray[np.float64]) -> tuple[float, bool]:
        return self.pool.weigh(self.own, self.sums, price)


class Prices:
    """Hard rules on sums over a slate and over everybody, of which any may be left out or moved.

    Where the rules conflict, prices of the sums exist at which even the cheapest slates that the quotas allow
    cost more than the bounds on the sums are worth. That is Farkas' lemma, with the exact choice of each
    user's slate for the rows of the other rules. Where they do not, slates are found.

    Args:
        rules: The rules; each user alone has slates under those about one slate.
        population: The users; without a pool nothing but their catalogue is looked at.
        ask: The users' slates under some nested quotas, none of them tighter than the rules'.
        deadline: When to stop, by ``time.monotonic``.
        pool: What knows of rules that are no nested quotas; None where there are no such.
    """

    def __init__(
        self,
        rules: Sequence[Constraint],
        population: Population,
        ask: Callable[[LaminarTree], BestSlates],
        deadline: float = math.inf,
        pool: Pool | None = None,
    ) -> None:
        self.rules, self.population, self.deadline = tuple(rules), population, deadline
        self._ask, self._pool = ask, pool
        self._asked: tuple[LaminarTree, BestSlates] | None = None

    @property
    def sizes(self) -> frozenset[int]:
        """Position of the slate size."""
        return frozenset(i for i, rule in enumerate(self.rules) if isinstance(rule, SlateSize))

    def verdict(self, rules: Sequence[Constraint]) -> Verdict:
        """Whether these rules, among them the slate size, leave slates."""
        asked = self._asking(rules)
        if asked is None or time.monotonic() >= self.deadline:
            return Verdict(True if all(rule.scope == "user" for rule in rules) else None)
        return Verdict(False, {}) if asked.crossed else asked.verdict(self.deadline)

    def smallest(self, begin: Set[int]) -> tuple[Set[int], bool, bool]:
        """A smallest conflict among these rules.

        Returns:
            Positions of its rules; whether prices prove that these conflict; whether without any of them
            slates were found.
        """
        kept = set(begin) | self.sizes
        last = self._of(kept)
        if last.feasible is not False:
            return kept, False, False
        proven = True
        pair = self._crossed(kept)
        if pair is not None:
            # A ceiling alone can be met by slates of some size; the floor must be shown to be.
            floor = self._of({pair[0]} | self.sizes)
            if floor.feasible is not False:
                return set(pair), True, bool(floor.feasible)
            kept, last = {pair[0]} | self.sizes, floor
        # Quotas seldom matter: all at once, then one by one, then the sums.
        alone = {i for i in kept if self.rules[i].scope == "population"} | self.sizes
        if self._still(alone, last.ray):
            kept = alone
        for i in sorted(kept - self.sizes, key=lambda i: (self.rules[i].scope == "population", i)):
            rest = kept - {i}
            if self._still(rest, last.ray):
                kept = rest
                continue
            verdict = self._of(rest)
            if verdict.feasible is False:
                kept, last = rest, verdict
            elif verdict.feasible is None:
                proven = False
        return kept, True, proven

    def least(self, others: Set[int], owner: int) -> Move | None:
        """The least move of a rule's number that leaves slates under it and these others.

        Each proof that a move is too small is linear in the bounds, and says how far to go at least: Newton's
        method on the distance from slates, which is convex in the move.

        Returns:
            None where none is known.
        """
        rule = self.rules[owner]
        field, sign = number_of(rule)
        if field is None or isinstance(rule, SlateSize):
            return None
        whole = isinstance(getattr(rule, field), int | np.integer)
        rest = [self.rules[i] for i in sorted(others - {owner})]
        move, exact, moved = 0.0, True, rule
        for _ in range(_TRIALS):
            verdict = self.verdict([*rest, moved])
            if verdict.feasible:
                if verdict.shown is None:
                    return None
                for digits in (6, 9, 12):
                    value = float(f"{getattr(moved, field):.{digits}g}")
                    tidy = moved_by(rule, field, value - getattr(rule, field))
                    if tidy is not None and self._meets(tidy, verdict.shown):
                        return Move(tidy, exact, verdict.shown)
                return Move(moved, exact, verdict.shown)
            exact = exact and verdict.feasible is False
            looser, step = one_step(moved, field, sign)
            if looser is None:
                return None
            steps = 1.0 if whole else _NUDGE
            if verdict.ray is not None:
                settles = self._settles(rest, moved, looser, verdict.ray)
                if settles == 0.0 and rule.scope == "population":
                    return None  # the others conflict by themselves
                steps = max(steps, math.ceil(settles - 1e-6) if whole else settles + _NUDGE)
            elif not whole:
                steps = max(steps, 0.25 * move / step)
            move += steps * step
            trial = moved_by(rule, field, -sign * move, tidy=False) if math.isfinite(move) else None
            if trial is None:
                return None
            moved = trial
        return None

    def _crossed(self, kept: Set[int]) -> tuple[int, int] | None:
        """The rules of these that bound some sum from below and above, with nothing between."""
        at = sorted(kept)
        asked = self._asking([self.rules[i] for i in at])
        if asked is None or not asked.crossed:
            return None
        owners = [self.rules[i].name for i in at]
        floor, ceiling = (at[owners.index(name)] for name in asked.crossed)
        return floor, ceiling

    def _of(self, kept: Set[int]) -> Verdict:
        return self.verdict([self.rules[i] for i in sorted(kept)])

    def _still(self, kept: Set[int], ray: Ray | None) -> bool:
        """Whether the same prices prove that these rules conflict."""
        asked = None if ray is None else self._asking([self.rules[i] for i in sorted(kept)])
        if ray is None or asked is None:
            return False
        return bool(asked.crossed) or asked.weigh(_priced(ray, asked.sums))[1]

    def _settles(self, rest: Sequence[Constraint], rule: Constraint, further: Constraint, ray: Ray) -> float:
        """How often the change from one rule to the next is made until these prices prove nothing.

        0.0 where no number of times is known. Bounds move evenly, and what slates cost does not move.
        """
        now, then = (self._asking([*rest, each]) for each in (rule, further))
        assert now is not None
        assert then is not None
        if now.sums.keys != then.sums.keys:
            return 0.0
        ends = [(each.sums.lower, each.sums.upper) for each in (now, then)]
        if now.crossed:
            price, cost = np.zeros(0), 0.0
        else:
            price = _priced(ray, now.sums)
            short, _ = now.weigh(price)
            cost = short + _worth(price, *now.sums.limits(*ends[0]))

        moves = []
        for a, b in zip(*ends, strict=True):
            moved = np.isfinite(a) & np.isfinite(b)
            moves.append(np.where(moved, np.where(moved, b, 0.0) - np.where(moved, a, 0.0), 0.0))

        def prove(times: float) -> bool:
            lower, upper = now.sums.limits(
                *(a + times * move for a, move in zip(ends[0], moves, strict=True))
            )
            return bool((lower > upper).any()) or (len(price) > 0 and _worth(price, lower, upper) < cost)

        most = 1e-6
        while prove(most):
            most *= 2.0
            if most > 1e9:
                return 0.0
        least = 0.0
        for _ in range(60):
            middle = 0.5 * (least + most)
            least, most = (middle, most) if prove(middle) else (least, middle)
        return most

    def _meets(self, rule: Constraint, shown: NDArray[np.int64]) -> bool:
        """Whether a rule on sums is satisfied where each item is shown so often."""
        if rule.scope == "user" or not isinstance(rule, ItemConstraint):
            return False
        over = item_rows(rule, self.population.catalogue).T @ shown - rule.rhs(self.population)
        return bool((over <= TOLERANCE).all())

    def _asking(self, rules: Sequence[Constraint]) -> _Asked | None:
        """What asks about these rules; None where they are of no known kind, or ask nothing of all slates."""
        together = Together.of(rules, self.population)
        if together is not None:
            return _Nested(together, self._oracle(together.quotas.tree))
        if self._pool is None or all(rule.scope == "user" for rule in rules):
            return None
        if any(isinstance(rule, CatalogueCoverage) for rule in rules):
            return None
        own, sums = Sums.of(rules, self.population, "user"), Sums.of(rules, self.population)
        if own is None or sums is None or len(own.crossed):
            return None
        names = [rule.name for rule in rules]
        return _Linear(own, sums, sums.crossing(names), self._pool)

    def _oracle(self, tree: LaminarTree) -> BestSlates:
        if self._asked is None or not self._asked[0].equals(tree):
            self._asked = tree, self._ask(tree)
        return self._asked[1]


def _worth(price: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64]) -> float:
    """What the bounds that prices lean on are worth."""
    at = price != 0.0
    return float((price[at] * np.where(price > 0.0, upper, lower)[at]).sum())


def _priced(ray: Ray, sums: Sums) -> NDArray[np.float64]:
    """The prices of these sums, none where there is no bound to lean on."""
    price = np.array([ray.get(key, 0.0) for key in sums.keys])
    lower, upper = sums.limits(sums.lower, sums.upper)
    return np.where(np.isfinite(np.where(price > 0.0, upper, lower)), price, 0.0)
