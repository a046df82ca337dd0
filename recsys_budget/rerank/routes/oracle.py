"""The best slate of each user at given item prices, and the exchanges that would cost next to nothing.

Both work on *net gains*, ``gain - price``, under laminar quotas, and both rest on one fact about the bases of
a matroid: a slate is the best if and only if no exchange of one item for another improves it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import _exchange, _exchange_numpy
from recsys_budget.rerank.routes._compiled import COMPILED, by_blocks, pick
from recsys_budget.rerank.routes.answers import (
    Exchanges,
    Priced,
    Rows,
    Selection,
    Sums,
    row_keys,
    spacing,
    units,
)
from recsys_budget.rerank.routes.laminar import BLOCK, LaminarTree, place_weights, solve_laminar

_EPS = float(np.finfo(np.float64).eps)
_SPACING = 1_000  # users who tell the usual spacing of gains


class Oracle:
    """Best slates of users whose candidates are here, at changing prices.

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
        start: Slates of the same candidates, shaped like ``chosen``, that may be near the best ones; those
            outside the quotas are passed over. They change the time taken alone.

    Attributes:
        feasible: bool ``(n_users,)``, whether a user has a slate.
        users: Positions of those who have.
        chosen: int32 ``(n_users, k)``, the slates found last: rows relative to the user's first, -1 without a
            slate.

    Raises:
        SpecificationError: A user's first or last gain is below 0 or not finite, or weights that are none.
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
        start: NDArray[np.int32] | None = None,
    ) -> None:
        self.offsets = np.ascontiguousarray(offsets, np.int64)
        self.gains, self.items, self.tree, self.threads = gains, items, tree, threads
        self.marks = np.zeros(0, np.int8) if fixed is None else np.ascontiguousarray(fixed, np.int8)
        self.discount = np.zeros(0) if discount is None else place_weights(discount, tree.k)
        some = np.flatnonzero(np.diff(self.offsets))
        ends = gains[self.offsets[some]], gains[self.offsets[some + 1] - 1]  # greatest and least of each user
        self.largest = float(ends[0].max(initial=0.0))
        total = self.largest * len(some) * tree.k * 1e6
        if not (np.isfinite(total) and float(ends[1].min(initial=0.0)) >= 0.0):
            raise SpecificationError(
                "gains must be finite with room for their sum, at least 0 and falling within each user: a "
                "bound below 0 proves that rows contradict each other; add a constant to all gains, which "
                "changes no choice"
            )
        plain = solve_laminar(offsets, gains, items, tree, fixed=fixed, threads=threads)
        self.feasible = plain.feasible
        self.users = np.flatnonzero(plain.feasible)
        self.chosen = plain.chosen
        self.numbers = np.arange(len(plain.feasible))
        self.served = len(self.users)
        self._whole = True  # numbers are positions: all users are here
        self._items = np.zeros(plain.chosen.shape, np.int32)
        self._gain = np.zeros(len(plain.feasible))
        # No exchange of a user's costs less than the margin, and none at other prices as long as these have
        # moved apart by less: such users keep their slates unseen. Below 0: not known.
        self._margin = np.full(len(plain.feasible), -1.0)
        self._prices = np.zeros(len(tree.leaf_of_item))
        self._known = 0  # each so-many-th user's slate is the best at these prices; 0: nobody's need be
        self.spacing = spacing(self.spread(), self.largest, tree.k)
        if start is not None and fixed is None and start.shape == plain.chosen.shape:
            able = self.users[(start[self.users] >= 0).all(axis=1)]
            count = self._count(self.items[self.offsets[able, None] + start[able]])
            able = able[((tree.lower <= count) & (count <= tree.upper)).all(axis=1)]
            self.chosen[able] = start[able]

    def spread(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Numbers of a sample of users, and how far apart the gains of their best slates lie."""
        users = self.sample(self.every(_SPACING))
        slates = self.gains[self.offsets[users, None] + self.chosen[users]].astype(np.float64)
        return self.numbers[users], slates.max(axis=1) - slates.min(axis=1)

    def every(self, size: int) -> int:
        """Of how many users a sample of at most this size takes one."""
        return max(1, -(-self.served // size))

    def sample(self, every: int) -> NDArray[np.int64]:
        """Positions of each so-many-th user who has a slate."""
        return self.users[::every] if self._whole else self.users[self.numbers[self.users] % every == 0]

    def best(self, prices: NDArray[np.float64], every: int = 1) -> Priced:
        """The best slates at these prices, which ``chosen`` then holds."""
        units = self.units(prices)
        return self.sums(prices, every, units).priced(prices, self.tree.k, units)

    def units(self, prices: NDArray[np.float64]) -> tuple[float, float]:
        """Units in which to add up net gains at these prices, and gains."""
        return units(prices, self.largest, self.served, self.tree.k, self.discount)

    def sums(self, prices: NDArray[np.float64], every: int, units: tuple[float, float]) -> Sums:
        """The best slates' sums, in these units."""
        self._refresh(prices, every)
        return self._tally(self.sample(every), self._items, self._gain, prices, units)

    def exchanges(
        self, prices: NDArray[np.float64], within: float, every: int = 1, share: int = 1000
    ) -> Exchanges:
        """See :class:`~.answers.BestSlates`."""
        self._refresh(prices, every)
        users = self.sample(every)
        users = users[self._margin[users] <= within]
        parts: dict[int, tuple[NDArray[Any], ...]] = {}
        facts = self._facts(self.tree, self._prices)
        exchanges = self._kernel("exchanges")

        def work(first: int, last: int) -> None:
            parts[first] = exchanges(users[first:last], *facts, self.chosen, self.numbers, within, share)

        by_blocks(work, len(users), block=BLOCK, threads=self.threads)
        none = np.zeros(0, np.int64)
        nothing = (none, none, none, np.zeros(0), np.zeros(0, np.bool_))
        ordered = [nothing, *(parts[first] for first in sorted(parts))]
        user, leaves, enters, cost, cheapest = (
            np.concatenate(column) for column in zip(*ordered, strict=True)
        )
        at = self.offsets[user, None] + np.stack([leaves, enters], axis=1)
        number = self.numbers[user]
        return Exchanges(
            number,
            row_keys(number, leaves),
            row_keys(number, enters),
            cost,
            cheapest,
            self.items[at].astype(np.int64),
            self.gains[at].astype(np.float64),
        )

    def slates(self, prices: NDArray[np.float64], users: NDArray[np.int64] | None) -> Rows:
        """See :class:`~.answers.BestSlates`; of the users asked for, those who are here."""
        at = self.users if users is None else self._here(users)
        self._move(prices)
        if self._known != 1:
            self._search(at)
        rows = self.offsets[at, None] + self.chosen[at]
        numbers = self.numbers[at]
        pinned = self.marks[rows] > 0 if len(self.marks) else np.zeros(rows.shape, np.bool_)
        return Rows(
            numbers,
            row_keys(numbers[:, None], self.chosen[at]),
            self.items[rows].astype(np.int64),
            self.gains[rows].astype(np.float64),
            pinned,
        )

    def select(self, selection: Selection) -> NDArray[np.int32]:
        """These slates, ``(n_users, k)``; -1 for users without one."""
        self._refresh(selection.prices, 1)
        chosen = self.chosen.copy()
        here = np.isin(selection.users, self.numbers)
        chosen[self._here(selection.users)] = selection.slates[here]
        return chosen

    def total(self, selection: Selection) -> Priced:
        """See :class:`~.answers.BestSlates`."""
        nothing = np.zeros(len(self._prices))
        units = self.units(nothing)
        return self.total_sums(selection, units).priced(nothing, self.tree.k, units)

    def total_sums(self, selection: Selection, units: tuple[float, float]) -> Sums:
        """The same sums, in these units."""
        chosen = self.select(selection)
        weights = self.discount if len(self.discount) else np.ones(self.tree.k)
        items, gain = np.zeros_like(self._items), np.zeros(len(chosen))

        def look(first: int, last: int) -> None:
            users = self.users[first:last]
            rows = self.offsets[users, None] + chosen[users]
            items[users] = self.items[rows]
            for place, weight in enumerate(weights):  # one by one, so that no user's sum depends on others
                gain[users] += weight * self.gains[rows[:, place]].astype(np.float64)

        by_blocks(look, len(self.users), block=8 * BLOCK, threads=self.threads)
        return self._tally(self.users, items, gain, np.zeros(len(self._prices)), units)

    def under(self, prices: NDArray[np.float64], trees: Sequence[LaminarTree], every: int = 1) -> list[float]:
        """See :class:`~.answers.BestSlates`."""
        units = self.units(prices)
        return [units[0] * whole for whole in self.under_sums(prices, trees, every, units)]

    def under_sums(
        self,
        prices: NDArray[np.float64],
        trees: Sequence[LaminarTree],
        every: int,
        units: tuple[float, float],
    ) -> list[int]:
        """The same sums, in these units.

        The own slates are where the search starts. Where they do not touch a bound that is looser now, they
        stay the best: no exchange has become possible.
        """
        self._refresh(prices, every)
        users = self.sample(every)
        tree = self.tree
        count = self._count(self._items[users])
        best = self._kernel("best")
        whole = self._tally(users, self._items, self._gain, prices, units).value
        found = []
        for other in trees:
            fewer, more = other.lower < tree.lower, other.upper > tree.upper
            touched = (fewer & (count == tree.lower)) | (more & (count == tree.upper))
            some = users[touched.any(axis=1)]
            value = whole - self._tally(some, self._items, self._gain, prices, units).value
            sizes = np.diff(self.offsets)[some]
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            rows = np.arange(offsets[-1]) + np.repeat(self.offsets[some] - offsets[:-1], sizes)
            marks = self.marks[rows] if len(self.marks) else self.marks
            table = offsets, self.gains[rows], self.items[rows]
            facts = (*table, *self._facts(other, prices, marks)[3:])
            chosen, items = self.chosen[some], np.zeros((len(some), tree.k), np.int32)
            gain, here = np.zeros(len(some)), np.arange(len(some))
            best(here, *facts, chosen, items, gain, np.zeros(len(some)))
            found.append(value + self._tally(here, items, gain, prices, units).value)
        return found

    def among(self, numbers: NDArray[np.int64], largest: float, served: int) -> Oracle:
        """The same users as part of more, of whom all have slates.

        Args:
            numbers: ``(n_users,)``, ascending, the numbers of these users among all.
            largest: The greatest gain of all.
            served: How many there are in all.
        """
        part = copy.copy(self)
        part.numbers, part.largest, part.served, part._whole = numbers, largest, served, False
        return part

    def _count(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many items of each slate are in each node, ``(n_users, n_nodes)``; none in an item without."""
        n_users, beyond = len(items), len(self.tree.parent)
        leaf = self.tree.leaf_of_item[items]
        paths = np.where((leaf >= 0)[..., None], self.tree.paths[leaf], beyond)
        cells = np.arange(n_users)[:, None] * (beyond + 1) + paths.reshape(
            n_users, items.shape[1] * paths.shape[2]
        )
        tally = np.bincount(cells.ravel(), minlength=n_users * (beyond + 1))
        return tally.reshape(n_users, beyond + 1)[:, :beyond]

    def _here(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the users with these ascending numbers who are here."""
        if self._whole:
            return users
        at = np.minimum(np.searchsorted(self.numbers, users), max(0, len(self.numbers) - 1))
        return at[self.numbers[at] == users] if len(self.numbers) else at[:0]

    def _refresh(self, prices: NDArray[np.float64], every: int) -> None:
        """See to it that the slates of a sample are the best at these prices."""
        self._move(prices)
        if self._known == 0 or every % self._known:
            self._search(self.sample(every))
            self._known = every

    def _move(self, prices: NDArray[np.float64]) -> None:
        moved = prices - self._prices
        if moved.any():
            apart = float(moved.max(initial=-np.inf) - moved.min(initial=np.inf))
            # The largest numbers that were rounded on the way.
            self._margin -= apart + 8.0 * _EPS * (np.abs(prices).max(initial=0.0) + self.largest)
            self._prices = prices.copy()
            self._known = 0

    def _search(self, users: NDArray[np.int64]) -> None:
        """Make the slates of these users the best at the present prices."""
        stale = users[self._margin[users] <= 0.0]
        facts = self._facts(self.tree, self._prices)
        best = self._kernel("best")

        def work(first: int, last: int) -> None:
            best(stale[first:last], *facts, self.chosen, self._items, self._gain, self._margin)

        by_blocks(work, len(stale), block=BLOCK, threads=self.threads)

    def _tally(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int32],
        gain: NDArray[np.float64],
        prices: NDArray[np.float64],
        units: tuple[float, float],
    ) -> Sums:
        counts = np.zeros((max(1, len(self.discount)), len(prices)), np.int64)
        sums = [0, 0]
        lock = threading.Lock()
        tally = self._kernel("tally")

        def work(first: int, last: int) -> None:
            some = users[first:last]
            part, value = np.zeros_like(counts), np.zeros(len(some))
            tally(some, items, gain, self.discount, prices, value, part)
            up = int(np.ceil(value / units[0]).astype(np.int64).sum())
            near = int(np.rint(gain[some] / units[1]).astype(np.int64).sum())
            with lock:
                counts[:] += part  # whole numbers: in any order
                sums[0] += up
                sums[1] += near

        by_blocks(work, len(users), block=8 * BLOCK, threads=self.threads)
        return Sums(sums[0], sums[1], counts, len(users))

    def _kernel(self, name: str) -> Callable[..., Any]:
        twin: Callable[..., Any] = getattr(_exchange_numpy, name)
        return pick(getattr(_exchange, name), twin, len(self.items)) if COMPILED else twin

    def _facts(
        self, tree: LaminarTree, prices: NDArray[np.float64], marks: NDArray[np.int8] | None = None
    ) -> tuple[Any, ...]:
        """What both kernels read; with the lowest price at each node, which says when a scan may stop."""
        lowest = np.full(len(tree.parent), np.inf)
        allowed = tree.leaf_of_item >= 0
        np.minimum.at(lowest, tree.leaf_of_item[allowed], prices[allowed])
        quotas = (tree.leaf_of_item, tree.parent, tree.lower, tree.upper)
        marks = self.marks if marks is None else marks
        return (self.offsets, self.gains, self.items, *quotas, marks, self.discount, prices, lowest)
