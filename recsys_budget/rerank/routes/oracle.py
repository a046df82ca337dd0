"""The best slate of each user at given item prices, and the exchanges that would cost next to nothing.

Both work on *net gains*, ``gain - price``, under laminar quotas, and both rest on one fact about the bases of
a matroid: a slate is the best if and only if no exchange of one item for another improves it.

:class:`BestSlates` is all that prices and the choice of slates ask of users, so that these may be here
(:class:`Oracle`) or spread over processes (:mod:`shards`). Every answer follows from its arguments alone, and
what is added up over users is added up in whole numbers: where users are, and in what order they answer,
changes nothing.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import _exchange, _exchange_numpy
from recsys_budget.rerank.routes._compiled import COMPILED, by_blocks
from recsys_budget.rerank.routes.laminar import BLOCK, LaminarTree, place_weights, solve_laminar

_EPS = float(np.finfo(np.float64).eps)
_KEY = 31  # bits of a row's key that say which of its user's rows it is
_SPACING = 1_000  # users who tell the usual spacing of gains


@dataclass(frozen=True, eq=False)
class Priced:
    """The best slates at some prices, or of a sample of users.

    Attributes:
        value: Sum of their net gains, rounded up so far that no other slates have a greater sum.
        gain: Sum of their gains, without prices.
        counts: int64 ``(n_places, n_items)``, how often each item was chosen: in each place of the slate if
            places are discounted, else in any (``n_places`` is 1).
        users: How many users these are.
    """

    value: float
    gain: float
    counts: NDArray[np.int64]
    users: int


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over users in whole units, which add up exactly in any order.

    Attributes:
        value: Sum of net gains, each rounded up.
        gain: Sum of gains, each rounded to the nearest.
        counts: As in :class:`Priced`.
        users: How many users these are.
    """

    value: int
    gain: int
    counts: NDArray[np.int64]
    users: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.value + other.value,
            self.gain + other.gain,
            self.counts + other.counts,
            self.users + other.users,
        )

    def priced(self, prices: NDArray[np.float64], k: int, units: tuple[float, float]) -> Priced:
        """The same as floats, the value rounded up.

        Each user's net gain took k additions of terms whose sum of magnitudes is at most that of the
        gains and the prices paid.
        """
        total = self.value * units[0]
        magnitude = abs(total) + 2.0 * float((self.counts.sum(axis=0) * np.abs(prices)).sum())
        return Priced(total + (k + 128) * _EPS * magnitude, self.gain * units[1], self.counts, self.users)


@dataclass(frozen=True, eq=False)
class Rows:
    """Slates of some users.

    Attributes:
        users: int64 ``(n,)``, their numbers, ascending.
        keys: int64 ``(n, k)``, keys of the rows in their slates, in the order of a slate; see
            :func:`row_keys`.
        items: int64 ``(n, k)``.
        gains: float64 ``(n, k)``.
        pinned: bool ``(n, k)``, whether a row must be in its slate.
    """

    users: NDArray[np.int64]
    keys: NDArray[np.int64]
    items: NDArray[np.int64]
    gains: NDArray[np.float64]
    pinned: NDArray[np.bool_]

    @classmethod
    def of_all(cls, parts: Sequence[Rows]) -> Rows:
        """Those of several groups of users."""
        names = cls.__dataclass_fields__
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        order = np.argsort(columns["users"])
        return cls(**{name: column[order] for name, column in columns.items()})


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Exchanges of one chosen row for another, ordered by user, row that enters, row that leaves.

    Attributes:
        user: int64 ``(n,)``, number of the user.
        leaves: int64 ``(n,)``, key of the row; see :func:`row_keys`.
        enters: int64 ``(n,)``, key of the row.
        cost: float64 ``(n,)``, net gain given up, at least 0 for the best slates.
        cheapest: bool ``(n,)``, whether no exchange that brings this row in costs less.
        items: int64 ``(n, 2)``, items of the row that leaves and of the one that enters.
        gains: float64 ``(n, 2)``, their gains.
    """

    user: NDArray[np.int64]
    leaves: NDArray[np.int64]
    enters: NDArray[np.int64]
    cost: NDArray[np.float64]
    cheapest: NDArray[np.bool_]
    items: NDArray[np.int64]
    gains: NDArray[np.float64]

    def those(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Exchanges:
        """Some of them."""
        return Exchanges(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    @classmethod
    def of_all(cls, parts: Sequence[Exchanges]) -> Exchanges:
        """Those of several groups of users, in order."""
        names = cls.__dataclass_fields__
        whole = cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        if (np.diff(whole.user) >= 0).all():
            return whole
        return whole.those(np.argsort(whole.user, kind="stable"))


@dataclass(frozen=True, eq=False)
class Selection:
    """Everybody's slates: the best ones at some prices, but for those of a few users.

    Attributes:
        prices: float64 ``(n_items,)``.
        users: int64 ``(n,)``, numbers of the users who have other slates.
        slates: int32 ``(n, k)``, these slates: rows relative to the user's first.
    """

    prices: NDArray[np.float64]
    users: NDArray[np.int64]
    slates: NDArray[np.int32]

    @classmethod
    def best_at(cls, prices: NDArray[np.float64], k: int) -> Selection:
        """The best slates of all."""
        return cls(prices, np.zeros(0, np.int64), np.zeros((0, k), np.int32))


class BestSlates(Protocol):
    """What is asked of users who have slates: the best ones at prices, and exchanges from these.

    Users go by their number, from 0. A sample is each ``every``-th of those who have a slate.

    Attributes:
        tree: Quotas of each slate.
        discount: Weights of the places; empty where all are alike.
        largest: The greatest gain.
        spacing: A usual difference between the gains of neighbours in a slate, above 0.
        served: How many users have a slate.
    """

    @property
    def tree(self) -> LaminarTree: ...  # noqa: D102

    @property
    def discount(self) -> NDArray[np.float64]: ...  # noqa: D102

    @property
    def largest(self) -> float: ...  # noqa: D102

    @property
    def spacing(self) -> float: ...  # noqa: D102

    @property
    def served(self) -> int: ...  # noqa: D102

    def best(self, prices: NDArray[np.float64], every: int = 1) -> Priced:
        """The best slates at these prices."""

    def exchanges(
        self, prices: NDArray[np.float64], within: float, every: int = 1, share: int = 1000
    ) -> Exchanges:
        """Exchanges from the best slates at these prices that cost at most ``within``.

        Args:
            prices: ``(n_items,)``.
            within: Net gain.
            every: Of each so-many-th user.
            share: How many of a thousand to list, as if drawn at random.
        """

    def slates(self, prices: NDArray[np.float64], users: NDArray[np.int64] | None) -> Rows:
        """The best slates of these users, by ascending number; None takes all who have one."""

    def total(self, selection: Selection) -> Priced:
        """Gain and counts of these slates, from the slates alone; their value is the gain."""

    def under(self, prices: NDArray[np.float64], trees: Sequence[LaminarTree], every: int = 1) -> list[float]:
        """Sum of net gains of the best slates under other quotas, none of them tighter than the own."""


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
        """See :class:`BestSlates`."""
        self._refresh(prices, every)
        users = self.sample(every)
        users = users[self._margin[users] <= within]
        parts: dict[int, tuple[NDArray[Any], ...]] = {}
        facts = self._facts(self.tree, self._prices)
        kernels = _exchange if COMPILED else _exchange_numpy

        def work(first: int, last: int) -> None:
            parts[first] = kernels.exchanges(
                users[first:last], *facts, self.chosen, self.numbers, within, share
            )

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
        """See :class:`BestSlates`; of the users asked for, those who are here."""
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
        """See :class:`BestSlates`."""
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
        """See :class:`BestSlates`."""
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
        kernels = _exchange if COMPILED else _exchange_numpy
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
            kernels.best(here, *facts, chosen, items, gain, np.zeros(len(some)))
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
        cells = np.arange(n_users)[:, None] * (beyond + 1) + paths.reshape(n_users, items.shape[1] * paths.shape[2])
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
        kernels = _exchange if COMPILED else _exchange_numpy

        def work(first: int, last: int) -> None:
            kernels.best(stale[first:last], *facts, self.chosen, self._items, self._gain, self._margin)

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
        kernels = _exchange if COMPILED else _exchange_numpy

        def work(first: int, last: int) -> None:
            some = users[first:last]
            part, value = np.zeros_like(counts), np.zeros(len(some))
            kernels.tally(some, items, gain, self.discount, prices, value, part)
            up = int(np.ceil(value / units[0]).astype(np.int64).sum())
            near = int(np.rint(gain[some] / units[1]).astype(np.int64).sum())
            with lock:
                counts[:] += part  # whole numbers: in any order
                sums[0] += up
                sums[1] += near

        by_blocks(work, len(users), block=8 * BLOCK, threads=self.threads)
        return Sums(sums[0], sums[1], counts, len(users))

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


def row_keys(users: NDArray[np.int64], rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each user's row, in the order of users and of their rows."""
    return (users << _KEY) | rows.astype(np.int64)


def row_of(keys: NDArray[np.int64]) -> NDArray[np.int32]:
    """Which of its user's rows each is."""
    return (keys & ((1 << _KEY) - 1)).astype(np.int32)


def units(
    prices: NDArray[np.float64], largest: float, served: int, k: int, discount: NDArray[np.float64]
) -> tuple[float, float]:
    """Units for sums of net gains and of gains: powers of two, so large that sums stay below 2^62.

    A user's rounding is then below 2^-59 of the largest possible sum.
    """
    shows = max(1, served) * max(float(k), float(discount.sum()))

    def unit(most: float) -> float:
        return math.ldexp(1.0, max(-1000, math.frexp(most * shows)[1] - 60))

    return unit(largest + float(np.abs(prices).max(initial=0.0))), unit(largest)


def spacing(spread: tuple[NDArray[np.int64], NDArray[np.float64]], largest: float, k: int) -> float:
    """The usual difference between neighbours in a slate, from how far apart slates' gains lie."""
    numbers, apart = spread
    usual = float(apart[np.argsort(numbers, kind="stable")].mean()) if len(apart) else 0.0
    return (usual or largest or 1.0) / k
