"""Candidates of one user and of many: all that a constraint or an objective may look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that one user's slate may be chosen from, best first.

    A slate is written as ``chosen``: rows of these arrays, in the order of the slate.

    Attributes:
        user: User id.
        catalogue: The catalogue that the items are from.
        items: Positions in the catalogue, shape ``(n,)``, distinct, intp.
        relevance: Shape ``(n,)``, float64, finite, higher is better, never rising.
        k: Items that the slate is to hold.
        history: Share of each category in what the user had used, shape ``(n_categories,)``, float64: sums to
            1, or to 0 for a user without a categorised item. None where no history was passed.
    """

    user: str
    catalogue: ItemCatalogue
    items: NDArray[np.intp]
    relevance: NDArray[np.float64]
    k: int
    history: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return int(self.relevance.shape[0])

    def __repr__(self) -> str:
        return f"Candidates({len(self)} items for user {self.user!r})"

    @cached_property
    def membership(self) -> NDArray[np.float64]:
        """0/1 matrix, shape ``(n, n_categories)``, float64, a row an item."""
        return np.asarray(self.catalogue.membership[self.items].toarray(), np.float64)

    def category(self, name: str) -> NDArray[np.float64]:
        """Membership in the named category, shape ``(n,)``, 0 or 1.

        Raises:
            SpecificationError: The catalogue has no such category.
        """
        return self.membership[:, category_code(self.catalogue, name)]

    def attribute(self, name: str) -> NDArray[np.float64]:
        """The catalogue's numbers of that name, shape ``(n,)``, NaN where unknown.

        Raises:
            SpecificationError: The catalogue has no such attribute.
        """
        return self.catalogue.attribute(name)[self.items]

    def to_frame(self) -> pd.DataFrame:
        """A row a candidate: item, relevance, and what else the catalogue knows of it."""
        known = self.catalogue.take(self.items).to_frame()
        known.insert(1, "relevance", self.relevance)
        return known


@dataclass(frozen=True, eq=False)
class Population:
    """The candidates of many users, user by user, each user's best first.

    Equally relevant candidates stand in the order of the catalogue: this order is the tie rule everywhere.
    Slates are written as ``chosen``, shape ``(n_users, k)``: rows of each user's own candidates in the order
    of the slate, -1 where there is none.

    Attributes:
        catalogue: The catalogue that the items are from.
        users: User ids, shape ``(n_users,)``, unique strings, shorter ids first and then alphabetically.
        offsets: Row boundaries, shape ``(n_users + 1,)``, int64.
        items: Positions in the catalogue, shape ``(n_rows,)``, intp.
        relevance: Shape ``(n_rows,)``, float64, finite.
        k: Items that each slate is to hold.
        history: Share of each category in what each user had used, sparse, shape
            ``(n_users, n_categories)``, float64: rows sum to 1, or to 0 for users without a categorised item.
            None where no history was passed.
    """

    catalogue: ItemCatalogue
    users: pd.Index[Any]
    offsets: NDArray[np.int64]
    items: NDArray[np.intp]
    relevance: NDArray[np.float64]
    k: int
    history: sparse.csr_array | None = None

    @classmethod
    def of_one(cls, user: Candidates) -> Population:
        """A population of one."""
        return Population(
            user.catalogue,
            pd.Index([user.user], dtype="str"),
            np.array([0, len(user)], np.int64),
            user.items,
            user.relevance,
            user.k,
            None if user.history is None else sparse.csr_array(user.history[None, :]),
        )

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def gains_by_worth(self) -> dict[bytes, NDArray[np.float64]]:
        """What was worked out for :func:`~.engagement.population_gains`, by what each place is worth."""
        return {}

    def of(self, position: int) -> Candidates:
        """The candidates of the user at this position."""
        rows = slice(self.offsets[position], self.offsets[position + 1])
        history = None if self.history is None else self.history[[position]].toarray()[0]
        return Candidates(
            self.users[position], self.catalogue, self.items[rows], self.relevance[rows], self.k, history
        )

    def find(self, user: str) -> int:
        """Position of the user with this id.

        Raises:
            SpecificationError: That user has no candidates.
        """
        position = int(self.users.get_indexer(pd.Index([str(user)], dtype="str"))[0])
        if position < 0:
            raise SpecificationError(f"user {user!r} has no candidates in this frame of {len(self)} users")
        return position

    def part(self, users: NDArray[np.integer]) -> Population:
        """The population of the users at these positions."""
        sizes = np.diff(self.offsets)[users]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], sizes)
        history = None if self.history is None else sparse.csr_array(self.history[users])
        return Population(
            self.catalogue,
            self.users[users],
            offsets,
            self.items[rows],
            self.relevance[rows],
            self.k,
            history,
        )

    def rows(self, chosen: NDArray[np.integer]) -> NDArray[np.int64]:
        """Rows of the whole table that slates hold, shape ``(n_users, k)``; -1 where a place is empty."""
        return np.where(chosen >= 0, chosen + self.offsets[:-1, None], -1)

    def chosen_items(self, chosen: NDArray[np.integer]) -> NDArray[np.intp]:
        """Catalogue positions of the items of slates, shape ``(n_users, k)``; -1 where a place is empty."""
        rows = self.rows(chosen)
        return np.where(rows >= 0, self.items[rows], -1)


def category_code(catalogue: ItemCatalogue, name: str) -> int:
    """Position of the named category.

    Raises:
        SpecificationError: The catalogue has no such category; the message lists those it has.
    """
    if name not in catalogue.category_names:
        known = ", ".join(map(repr, catalogue.category_names))
        known = known or "none at all; give its table a column 'categories', joined by |"
        raise SpecificationError(f"the catalogue has no category {name!r}; it has {known}")
    return catalogue.category_names.index(name)


def provider_code(catalogue: ItemCatalogue, name: str) -> int:
    """Position of the named provider.

    Raises:
        SpecificationError: The catalogue has no such provider.
    """
    if name not in catalogue.provider_names:
        some = ", ".join(map(repr, catalogue.provider_names[:10]))
        some = some or "none at all; give its table a column 'provider'"
        more = ", ..." if len(catalogue.provider_names) > 10 else ""
        raise SpecificationError(f"the catalogue has no provider {name!r}; it has {some}{more}")
    return catalogue.provider_names.index(name)


def item_code(catalogue: ItemCatalogue, item: str) -> int:
    """Position of the item.

    Raises:
        SpecificationError: The catalogue has no such item.
    """
    position = int(catalogue.positions([item])[0])
    if position < 0:
        raise SpecificationError(f"item {item!r} is not in the catalogue of {len(catalogue)} items")
    return position
