"""The best slate of each user at given item prices, and the exchanges that would cost next to nothing.

Both work on *net gains*, ``gain - price``, under laminar quotas, and both rest on one fact about the bases of
a matroid: a slate is the best if and only if no exchange of one item for another improves it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import _exchange, _exchange_numpy
from recsys_budget.rerank.routes._compiled import COMPILED, by_blocks
from recsys_budget.rerank.routes.laminar import BLOCK, LaminarTree, solve_laminar

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Priced:
    """The best slates at some prices.

    Attributes:
        value: Sum of their net gains, rounded up so far that no other slates have a greater sum.
        counts: int64 ``(n_places, n_items)``, how often each item was chosen: in each place of the slate if
            places are discounted, else in any (``n_places`` is 1).
    """

    value: float
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Exchanges of one chosen row for another, ordered by user, row that enters, row that leaves.

    Attributes:
        user: int64 ``(n,)``.
        leaves: int64 ``(n,)``, absolute row.
        enters: int64 ``(n,)``, absolute row.
        cost: float64 ``(n,)``, net gain given up, at least 0 for the best slates.
        cheapest: bool ``(n,)``, whether no exchange that brings this row in costs less.
    """

    user: NDArray[np.int64]
    leaves: NDArray[np.int64]
    enters: NDArray[np.int64]
    cost: NDArray[np.float64]
    cheapest: NDArray[np.bool_]

    def those(self, which: NDArray[np.bool_]) -> Exchanges:
        """Some of them."""
        return Exchanges(
            self.user[which], self.leaves[which], self.enters[which], self.cost[which], self.cheapest[which]
        )


class Oracle:
    """Best slates of all users at changing prices.

    The slates of one call are where the next one starts, which changes its time and not its answer: ties
    between net gains go to the earlier row, so there is one best slate.

    Args:
        offsets: See :func:`solve_laminar`, likewise the others.
        gains: At least 0.
        items: Positions in the catalogue.
        tree: Quotas.
        fixed: Rows that must or must not be chosen.
        discount: Weights of the places, or None. With weights, a slate's items are ordered by net gain.
        threads: Most threads at once.

    Raises:
        SpecificationError: A user's first or last gain is below 0 or not finite.
    """

    def __init__(
        self,
        offsets: NDArray[np.int64],
        gains: NDArray[np.floating],
        items: NDArray[np.integer],
        tree: LaminarTree,
        *,
        fixed: NDArray[np.int8] | None = None,
        discount: NDArray[np.float64] | None = None,
        threads: int | None = None,
    ) -> None:
        self.offsets = np.ascontiguousarray(offsets, np.int64)
        self.gains, self.items, self.tree, self.threads = gains, items, tree, threads
        self.marks = np.zeros(0, np.int8) if fixed is None else np.ascontiguousarray(fixed, np.int8)
        self.discount = np.zeros(0) if discount is None else np.ascontiguousarray(discount, np.float64)
        some = np.flatnonzero(np.diff(self.offsets))
        ends = gains[self.offsets[some]], gains[self.offsets[some + 1] - 1]  # greatest and least of each user
        self.largest = float(ends[0].max(initial=0.0))
        if not (np.isfinite(self.largest) and float(ends[1].min(initial=0.0)) >= 0.0):
            raise SpecificationError(
                "gains must be finite, at least 0 and falling within each user: a bound below 0 proves that "
                "rows contradict each other; add a constant to all gains, which changes no choice"
            )
        plain = solve_laminar(offsets, gains, items, tree, fixed=fixed, threads=threads)
        self.feasible = plain.feasible
        self.users = np.flatnonzero(plain.feasible)
        self.chosen = plain.chosen
        self._items = np.zeros(plain.chosen.shape, np.int32)
        self._gain = np.zeros(len(plain.feasible))
        # No exchange of a user's costs less than the margin, and none at other prices as long as these have
        # moved apart by less: such users keep their slates unseen. Below 0: not known.
        self._margin = np.full(len(plain.feasible), -1.0)
        self._prices = np.zeros(len(tree.leaf_of_item))

    @property
    def gain(self) -> float:
        """Total gain, without prices, of everybody's slates as they were last set."""
        return float(self._gain[self.users].sum())

    @cached_property
    def spacing(self) -> float:
        """A usual difference between the gains of neighbours in a slate, above 0."""
        users = self.sample(1_000)
        slates = self.gains[self.offsets[users, None] + self.chosen[users]].astype(np.float64)
        spread = float((slates.max(axis=1) - slates.min(axis=1)).mean()) if len(users) else 0.0
        return (spread or self.largest or 1.0) / self.tree.k

    def state(self) -> tuple[NDArray[Any], ...]:
        """A copy of the slates and of what is known about them."""
        return tuple(array.copy() for array in self._slates)

    def restore(self, state: tuple[NDArray[Any], ...]) -> None:
        """Go back to a copy."""
        for array, kept in zip(self._slates, state, strict=True):
            array[:] = kept

    @property
    def _slates(self) -> tuple[NDArray[Any], ...]:
        return self.chosen, self._items, self._gain, self._margin, self._prices

    def sample(self, size: int) -> NDArray[np.int64]:
        """At most so many users, evenly spaced."""
        return self.users[:: max(1, -(-len(self.users) // size))]

    def best(self, prices: NDArray[np.float64], users: NDArray[np.int64] | None = None) -> Priced:
        """Set ``chosen`` to the best slates of these users (None: of all that have any) at these prices."""
        users = self.users if users is None else users
        moved = prices - self._prices
        apart = float(moved.max(initial=-np.inf) - moved.min(initial=np.inf)) if len(moved) else 0.0
        # The largest numbers that were rounded on the way.
        self._margin -= apart + 8.0 * _EPS * (np.abs(prices).max(initial=0.0) + self.largest)
        self._prices[:] = prices
        facts = self._facts(prices)
        kernels = _exchange if COMPILED else _exchange_numpy
        stale = users[self._margin[users] <= 0.0]
        value = np.zeros(len(users))
        counts = np.zeros((max(1, len(self.discount)), len(prices)), np.int64)
        lock = threading.Lock()

        def search(first: int, last: int) -> None:
            kernels.best(stale[first:last], *facts, self.chosen, self._items, self._gain, self._margin)

        def tally(first: int, last: int) -> None:
            part = np.zeros_like(counts)
            of_slates = (self._items, self._gain, self.discount, prices, value[first:last], part)
            kernels.tally(users[first:last], *of_slates)
            with lock:
                counts[:] += part  # whole numbers: in any order

        by_blocks(search, len(stale), block=BLOCK, threads=self.threads)
        by_blocks(tally, len(users), block=8 * BLOCK, threads=self.threads)
        total = float(value.sum())
        # Rounding: k additions a user, pairwise sums over users, each at most the magnitude of the terms.
        magnitude = abs(total) + 2.0 * float((counts.sum(axis=0) * np.abs(prices)).sum())
        return Priced(total + (self.tree.k + 128) * _EPS * magnitude, counts)

    def exchanges(self, within: float, users: NDArray[np.int64] | None = None) -> Exchanges:
        """All exchanges that cost at most ``within``, from the best slates at the last prices.

        The users must be among those that were last asked for.
        """
        users = self.users if users is None else users
        users = users[self._margin[users] <= within]
        parts: dict[int, tuple[NDArray[Any], ...]] = {}
        facts = self._facts(self._prices)
        kernels = _exchange if COMPILED else _exchange_numpy

        def work(first: int, last: int) -> None:
            parts[first] = kernels.exchanges(users[first:last], *facts, self.chosen, within)

        by_blocks(work, len(users), block=BLOCK, threads=self.threads)
        if not parts:
            none = np.zeros(0, np.int64)
            return Exchanges(none, none, none, np.zeros(0), np.zeros(0, np.bool_))
        columns = [np.concatenate(column) for column in zip(*(parts[f] for f in sorted(parts)), strict=True)]
        return Exchanges(*columns)

    def _facts(self, prices: NDArray[np.float64]) -> tuple[Any, ...]:
        """What both kernels read; with the lowest price at each node, which says when a scan may stop."""
        tree = self.tree
        lowest = np.full(len(tree.parent), np.inf)
        allowed = tree.leaf_of_item >= 0
        np.minimum.at(lowest, tree.leaf_of_item[allowed], prices[allowed])
        quotas = (tree.leaf_of_item, tree.parent, tree.lower, tree.upper)
        return (self.offsets, self.gains, self.items, *quotas, self.marks, self.discount, prices, lowest)
