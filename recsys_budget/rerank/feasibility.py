"""Whether slates under any linear rules can keep to sums over everybody: such slates, or prices against it.

A linear program mixes the slates known of each user so that sums are missed by as little as can be, and
prices what is missed; at these prices each user's cheapest slate joins them (Dantzig and Wolfe 1960,
doi:10.1287/opre.8.1.101). Where even the cheapest slates cost more than the bounds on the sums are worth, no
slates keep to them: that is Farkas' lemma, with the best slate of each user under all rules about one slate.
Where mixtures keep to the sums, swaps from the slates that weigh most in one make it whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE, Population
from recsys_budget.rerank.integer import Program, solve_highs
from recsys_budget.rerank.repair import swap_together
from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.structure import Sums

_ROUNDS = 100
# What is proven, as a share of what is missed, at which prices are good enough.
_ENOUGH = 0.9
# How near to the best prices so far the next ones are.
_CLOSE = 0.3
# Gain that is too small to count beside what a sum may be missed by.
_NOTHING = 1e-6

# Prices of sums, by the key of the sum; see structure.Sums.
Ray = Mapping[tuple[bytes, bytes], float]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether some rules leave slates.

    Attributes:
        feasible: True where slates were found, False where prices prove that there are none, None where
            neither was.
        ray: The prices that prove it; empty where two bounds of one sum do by themselves.
        shown: int64 ``(n_items,)``, how often each item is shown by the slates.
        slates: int32 ``(n_users, k)``, rows of each user's slate, where these were kept.
    """

    feasible: bool | None
    ray: Ray | None = None
    shown: NDArray[np.int64] | None = None
    slates: NDArray[np.int32] | None = None


class Pool:
    """Slates of everybody that were found under some rules, to be asked about others.

    Args:
        population: The candidates; each user alone has slates under all rules about one slate.
    """

    def __init__(self, population: Population) -> None:
        self.population = population
        self._seen: set[tuple[int, bytes]] = set()
        self._users = np.zeros(0, np.intp)
        self._slates = np.zeros((0, population.k), np.int32)
        self._shows = sparse.csr_array((0, len(population.catalogue)))

    def verdict(self, own: Sums, sums: Sums, deadline: float = math.inf) -> Verdict:
        """Whether there are slates within these sums.

        Args:
            own: What rules ask of each slate, but for its size.
            sums: What rules ask of all slates; no lower bound above its upper.
            deadline: When to stop, by ``time.monotonic``.
        """
        if (sums.lower > -np.inf).sum() + (sums.upper < np.inf).sum() == 0:
            return Verdict(True)
        if (counted := self.counted(own, sums)) is not None:
            return counted
        best, best_price = -np.inf, np.zeros(len(sums.lower))
        for _ in range(_ROUNDS):
            if time.monotonic() >= deadline:
                break
            mixing = _Mixing(self, own, sums)
            missed, price = mixing.least()
            if missed <= _NOTHING:
                return mixing.whole(deadline)
            for trial in (_CLOSE * best_price + (1.0 - _CLOSE) * price, price):
                proven, new = self._cheapest(own, sums, trial)
                if proven > best:
                    best, best_price = proven, trial
                if new:
                    break
            # What is proven of the best prices can be no more than what is missed.
            if best >= _ENOUGH * missed or not new:
                break
        return self._disproven(own, sums, best_price) or Verdict(None)

    def counted(self, own: Sums, sums: Sums) -> Verdict | None:
        """Whether all floors together, or all ceilings, ask for more places than there are; None if not."""
        for side in (-1.0, 1.0):
            # At prices that are all alike, slates cost what they cost whatever is in them.
            price = side / np.maximum(sums.largest, 1e-300)
            if verdict := self._disproven(own, sums, price):
                return verdict
        return None

    def _disproven(self, own: Sums, sums: Sums, price: NDArray[np.float64]) -> Verdict | None:
        """That no slates keep to the sums, if these prices prove it."""
        price, *_ = _bounds(sums, price)
        if not self.weigh(own, sums, price)[1]:
            return None
        return Verdict(False, dict(zip(sums.keys, price.tolist(), strict=True)))

    def weigh(self, own: Sums, sums: Sums, price: NDArray[np.float64]) -> tuple[float, bool]:
        """How much less the bounds are worth than slates cost at these prices, and whether that is proof."""
        if not price.any():
            return 0.0, False
        short, _ = self._cheapest(own, sums, price)
        _, worth, size = _bounds(sums, price)
        return short, short > TOLERANCE * (size + abs(worth))

    def _cheapest(self, own: Sums, sums: Sums, price: NDArray[np.float64]) -> tuple[float, bool]:
        """By how much the cheapest slates cost more than the bounds are worth, and whether one is new."""
        population = self.population
        price, worth, _ = _bounds(sums, price)
        found = solve_direct(
            population.offsets,
            np.zeros(len(population.items)),
            population.items,
            population.k,
            sparse.csr_array(own.coefficients.T),
            own.lower,
            own.upper,
            linear_of_item=-np.asarray(sums.coefficients.T @ price, np.float64),
        )
        there = np.flatnonzero(found.feasible)
        fresh = [u for u in there.tolist() if (u, found.chosen[u].tobytes()) not in self._seen]
        self._seen |= {(u, found.chosen[u].tobytes()) for u in fresh}
        if fresh:
            chosen = found.chosen[fresh]
            self._users = np.concatenate([self._users, np.array(fresh, np.intp)])
            self._slates = np.concatenate([self._slates, chosen])
            rows = np.repeat(np.arange(len(fresh)), population.k)
            items = population.items[(population.offsets[fresh][:, None] + chosen).ravel()]
            shape = (len(fresh), self._shows.shape[1])
            shows = sparse.csr_array((np.ones(len(items)), (rows, items)), shape=shape)
            self._shows = sparse.csr_array(sparse.vstack([self._shows, shows]))
        # A user without a slate under these rules costs any amount; callers see to it that there is none.
        return float(-found.bound.sum()) - worth, bool(fresh)

    def within(self, own: Sums) -> NDArray[np.intp]:
        """Which of the slates keep what rules ask of each."""
        sums = np.asarray((self._shows @ own.coefficients.T).toarray())
        slack = TOLERANCE * np.maximum(1.0, own.largest)
        kept = (sums >= own.lower - slack) & (sums <= own.upper + slack)
        return np.flatnonzero(kept.all(axis=1))


class _Mixing:
    """A program that mixes known slates to keep to sums."""

    def __init__(self, pool: Pool, own: Sums, sums: Sums) -> None:
        self._pool, self._own, self._sums, self._here = pool, own, sums, pool.within(own)
        self._weights = np.zeros(len(self._here))
        self._users = pool._users[self._here]
        self._loads = sparse.csr_array(pool._shows[self._here] @ sums.coefficients.T)
        self._limits = sums.limits(sums.lower, sums.upper)
        n, m, u = len(self._here), len(sums.lower), len(pool.population)
        one = sparse.csr_array((np.ones(n), (self._users, np.arange(n))), shape=(u, n))
        beyond = sparse.hstack([sparse.eye_array(m), -sparse.eye_array(m)])
        blocks: list[list[Any]] = [[one, None], [self._loads.T, beyond]]
        # In units of the largest coefficient, so that sums of any size count alike.
        unit = np.maximum(sums.largest, 1e-300)
        self._program = Program(
            np.concatenate([np.zeros(n), np.tile(-1.0 / unit, 2)]),
            sparse.csr_array(sparse.block_array(blocks)),
            np.concatenate([np.ones(u), self._limits[0]]),
            np.concatenate([np.ones(u), self._limits[1]]),
            np.zeros(n + 2 * m),
            np.concatenate([np.ones(n), np.full(2 * m, np.inf)]),
            0,
        )

    def least(self) -> tuple[float, NDArray[np.float64]]:
        """The least by which mixtures miss the sums, and prices of these."""
        answer = solve_highs(self._program, 0.0, math.inf)
        n, users = len(self._here), len(self._pool.population)
        if answer.v is None or answer.duals is None:
            return math.inf, np.zeros(len(self._limits[0]))
        self._weights = answer.v[:n]
        return float(-(self._program.c[n:] @ answer.v[n:])), np.asarray(answer.duals[users:], np.float64)

    def whole(self, deadline: float) -> Verdict:
        """Slates that keep to the sums, from the last mixture; no verdict where none were found."""
        pool = self._pool
        at = np.lexsort((self._weights, self._users))
        last = np.searchsorted(self._users[at], np.arange(len(pool.population)), side="right") - 1
        chosen = swap_together(
            pool.population, self._own, self._sums, pool._slates[self._here[at[last]]], deadline
        )
        if chosen is None:
            return Verdict(None)
        items = pool.population.items[pool.population.offsets[:-1, None] + chosen]
        shown = np.bincount(items.ravel(), minlength=len(pool.population.catalogue))
        return Verdict(True, None, shown.astype(np.int64), np.sort(chosen, axis=1).astype(np.int32))


def _bounds(sums: Sums, price: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Prices, none where there is no bound to lean on; what the bounds are worth; and how large that is."""
    lower, upper = sums.limits(sums.lower, sums.upper)
    bound = np.where(price > 0.0, upper, lower)
    price = np.where(np.isfinite(bound), price, 0.0)
    each = price * np.where(price != 0.0, bound, 0.0)
    return price, float(each.sum()), float(np.abs(each).sum())
