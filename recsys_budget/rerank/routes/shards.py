"""Users spread over processes or machines, asked as if they were here.

Prices go out; sums, and the few exchanges that cost next to nothing, come back. Sums are of whole numbers and
exchanges are put into the order of users, so each answer is the one that :class:`Oracle` gives with all users
in one place, bit for bit, whatever the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.routes.answers import Exchanges, Priced, Rows, Selection, Sums, spacing, units
from recsys_budget.rerank.routes.laminar import LaminarTree


class Shards:
    """Best slates of users in parts; see :class:`~.answers.BestSlates`.

    Args:
        ask: Calls the method of this name of each part's :class:`~.oracle.Oracle` (made by
            :meth:`~.oracle.Oracle.among`) with these arguments, and returns the answers.
        tree: Quotas of each slate.
        largest: The greatest gain of all parts.
        served: Users of all parts, all of whom have slates.
    """

    def __init__(
        self, ask: Callable[..., Sequence[Any]], tree: LaminarTree, largest: float, served: int
    ) -> None:
        self._ask, self.tree, self.largest, self.served = ask, tree, largest, served
        self.discount = np.zeros(0)
        numbers, apart = zip(*ask("spread"), strict=True)
        self.spacing = spacing((np.concatenate(numbers), np.concatenate(apart)), largest, tree.k)

    def best(self, prices: NDArray[np.float64], every: int = 1) -> Priced:
        """See :class:`~.answers.BestSlates`, like all that follow."""
        in_units = self._units(prices)
        return self._add(self._ask("sums", prices, every, in_units)).priced(prices, self.tree.k, in_units)

    def exchanges(
        self, prices: NDArray[np.float64], within: float, every: int = 1, share: int = 1000
    ) -> Exchanges:
        """Exchanges that cost at most ``within``."""
        return Exchanges.of_all(self._ask("exchanges", prices, within, every, share))

    def slates(self, prices: NDArray[np.float64], users: NDArray[np.int64] | None) -> Rows:
        """The best slates of some users."""
        return Rows.of_all(self._ask("slates", prices, users))

    def total(self, selection: Selection) -> Priced:
        """Gain and counts of these slates."""
        nothing = np.zeros_like(selection.prices)
        in_units = self._units(nothing)
        return self._add(self._ask("total_sums", selection, in_units)).priced(nothing, self.tree.k, in_units)

    def under(self, prices: NDArray[np.float64], trees: Sequence[LaminarTree], every: int = 1) -> list[float]:
        """Sums of net gains under other quotas."""
        in_units = self._units(prices)
        parts = self._ask("under_sums", prices, trees, every, in_units)
        return [in_units[0] * sum(column) for column in zip(*parts, strict=True)]

    def _units(self, prices: NDArray[np.float64]) -> tuple[float, float]:
        return units(prices, self.largest, self.served, self.tree.k, self.discount)

    def _add(self, parts: Sequence[Sums]) -> Sums:
        return reduce(add, parts)
