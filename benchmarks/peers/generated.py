"""Generated users, items and rules, the same for every row of the benchmark of the re-ranker.

Each user has 200 candidates in 18 categories and a slate of 10. An item has one to three categories, of
which the first is the primary one, and one provider; both are Zipf-like. Gains are gamma. Quotas
ask for at least 2, 1 and 1 items of three categories and at most 4, 3 and 3 of three others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import ItemCatalogue
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.rows import PopulationRows

N, K, N_CATEGORIES = 200, 10, 18
N_ITEMS = 20_011  # a prime, so that steps of any length visit every item
NAMES = [f"c{c:02d}" for c in range(N_CATEGORIES)]
MINIMUMS, MAXIMUMS = {3: 2, 7: 1, 12: 1}, {0: 4, 1: 3, 2: 3}
COST_CAP = 12.0


@dataclass(frozen=True, eq=False)
class Generated:
    """Users and items.

    Attributes:
        items: Candidates, distinct, shape ``(n_users, 200)``, int32.
        gains: Falling, same shape, float64 or float32.
        member: Categories of each item, 0 or 1, shape ``(N_ITEMS, 18)``.
        first: Primary category, shape ``(N_ITEMS,)``.
        provider: Shape ``(N_ITEMS,)``.
        cost: What each item costs, shape ``(N_ITEMS,)``.
        lower: Quotas by category, shape ``(18,)``.
        upper: Likewise; 10 where there is none.
    """

    items: NDArray[np.int32]
    gains: NDArray[np.floating]
    member: NDArray[np.float64]
    first: NDArray[np.intp]
    provider: NDArray[np.intp]
    cost: NDArray[np.float64]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    n_providers: int

    @property
    def n_users(self) -> int:
        """How many."""
        return len(self.items)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each user's rows start."""
        return np.arange(self.n_users + 1) * N

    @property
    def tree(self) -> LaminarTree:
        """Quotas on the primary category."""
        return LaminarTree.partition(self.first, self.lower, self.upper, K)

    @property
    def unit(self) -> NDArray[np.float64]:
        """Category rows of length 1."""
        return self.member / np.sqrt(self.member.sum(axis=1, keepdims=True))

    @property
    def fair(self) -> float:
        """An equal share of all places."""
        return K * self.n_users / self.n_providers

    @property
    def shares(self) -> PopulationRows:
        """At least 0.6 of a fair share for every provider, at most 2 (of fewer than 100) or 4."""
        floors = np.full(self.n_providers, np.ceil(0.6 * self.fair))
        ceiling = np.floor((2 if self.n_providers < 100 else 4) * self.fair)
        return PopulationRows.groups(self.provider, floors, ceiling)

    def catalogue(self, *, primary: bool) -> ItemCatalogue:
        """The items, with their primary category alone or all of them."""
        codes = [[c] for c in self.first] if primary else [np.flatnonzero(row) for row in self.member]
        named = [[NAMES[c] for c in row] for row in codes]
        frame = pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(N_ITEMS)],
                "categories": named,
                "provider": [f"p{p}" for p in self.provider],
            }
        )
        return ItemCatalogue.from_frame(frame, category_names=NAMES)

    def frame(self, catalogue: ItemCatalogue, users: NDArray[np.integer]) -> pd.DataFrame:
        """Long candidates of these users."""
        return pd.DataFrame(
            {
                "user": np.repeat([f"u{u:07d}" for u in users], N),
                "item": catalogue.ids[self.items[users].ravel()],
                "relevance": self.gains[users].ravel(),
            }
        )


def generate(n_users: int, n_providers: int = 40, *, seed: int = 0, dtype: type = np.float64) -> Generated:
    rng = np.random.default_rng(seed)
    popularity = _zipf(N_CATEGORIES, 0.8)
    sizes = rng.choice([1, 2, 3], N_ITEMS, p=[0.4, 0.35, 0.25])
    # The categories of an item are the first of a random order in which popular ones come early.
    order = np.argsort(rng.exponential(size=(N_ITEMS, N_CATEGORIES)) / popularity, axis=1)
    member = np.zeros((N_ITEMS, N_CATEGORIES))
    for place in range(3):
        has = sizes > place
        member[has, order[has, place]] = 1.0
    items, gains = np.empty((n_users, N), np.int32), np.empty((n_users, N), dtype)
    for start in range(0, n_users, 50_000):
        n = min(50_000, n_users - start)
        first, step = rng.integers(0, N_ITEMS, (n, 1)), rng.integers(1, N_ITEMS, (n, 1))
        items[start : start + n] = (first + step * np.arange(N)) % N_ITEMS
        gains[start : start + n] = np.sort(rng.gamma(2.0, size=(n, N)), axis=1)[:, ::-1]
    lower, upper = np.zeros(N_CATEGORIES, np.int64), np.full(N_CATEGORIES, K)
    lower[list(MINIMUMS)], upper[list(MAXIMUMS)] = list(MINIMUMS.values()), list(MAXIMUMS.values())
    provider = rng.choice(n_providers, N_ITEMS, p=_zipf(n_providers, 0.9))
    return Generated(
        items, gains, member, order[:, 0], provider, rng.gamma(2.0, size=N_ITEMS), lower, upper, n_providers
    )


def broken(chosen: NDArray[np.integer], of_item: NDArray[np.float64], data: Generated) -> NDArray[np.float64]:
    """By how much each slate breaks the quotas, counted from the slate: shape ``(n,)``.

    Args:
        chosen: Rows of candidates of the first users, shape ``(n, k)``; -1 throughout for no slate.
        of_item: What each item adds to each category, shape ``(N_ITEMS, 18)``.
        data: The users.
    """
    items = np.take_along_axis(data.items[: len(chosen)], np.maximum(chosen, 0), axis=1)
    counts = of_item[items].sum(axis=1)
    over = np.maximum(data.lower - counts, counts - data.upper).max(axis=1)
    return np.where(chosen[:, 0] >= 0, np.maximum(0.0, over), 0.0)


def gained(chosen: NDArray[np.integer], data: Generated) -> NDArray[np.float64]:
    """Total gain of each slate; nan for no slate."""
    total = np.take_along_axis(data.gains[: len(chosen)], np.maximum(chosen, 0), axis=1).sum(axis=1)
    return np.where(chosen[:, 0] >= 0, total, np.nan)


def primary(data: Generated) -> NDArray[np.float64]:
    """What each item adds to its primary category."""
    return np.asarray(np.eye(N_CATEGORIES)[data.first])


def block_quotas(data: Generated, users: NDArray[np.integer]) -> sparse.csc_array:
    """Rows over the candidates of these users: the size of each slate, then the quotas."""
    columns = primary(data)[:, bound_categories(data)]
    blocks = [np.vstack([np.ones(N), columns[data.items[u]].T]) for u in users]
    return sparse.csc_array(sparse.block_diag(blocks))


def bound_categories(data: Generated) -> NDArray[np.intp]:
    """Categories with a quota."""
    return np.flatnonzero((data.lower > 0) | (data.upper < K))


def _zipf(n: int, power: float) -> NDArray[np.float64]:
    weight = 1.0 / np.arange(1, n + 1) ** power
    return weight / weight.sum()
