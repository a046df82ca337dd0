"""What is asked of users at prices, and what they answer, wherever they are.

:class:`BestSlates` is all that prices and the choice of slates ask, so that users may be here
(:mod:`oracle`) or spread over processes (:mod:`shards`). Every answer follows from the question alone, and
what is added up over users is added up in whole numbers: where users are, and in what order they answer,
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.routes.laminar import LaminarTree

_EPS = float(np.finfo(np.float64).eps)
_KEY = 31  # bits of a row's key that say which of its user's rows it is


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
