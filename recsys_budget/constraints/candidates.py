"""One user's candidates: all that a constraint or an objective may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        relevance: Shape ``(n,)``, float64, finite, higher is better.
        membership: 0/1 matrix, shape ``(n, n_categories)``, float64, a row an item.
    """

    user: str
    catalogue: ItemCatalogue
    items: NDArray[np.intp]
    relevance: NDArray[np.float64]
    membership: NDArray[np.float64]

    @classmethod
    def of(
        cls, user: str, catalogue: ItemCatalogue, items: NDArray[np.intp], relevance: NDArray[np.float64]
    ) -> Candidates:
        """The candidates in the order given, with their categories read from the catalogue."""
        membership = catalogue.membership[items].toarray().astype(np.float64)
        for array in (items, relevance, membership):
            array.setflags(write=False)
        return cls(user, catalogue, items, relevance, membership)

    def __len__(self) -> int:
        return int(self.relevance.shape[0])

    def __repr__(self) -> str:
        return f"Candidates({len(self)} items for user {self.user!r})"

    def category(self, name: str) -> Any:
        """Membership in the named category, shape ``(n,)``.

        Raises:
            SpecificationError: The catalogue has no such category.
        """
        return self.membership[:, category_code(self.catalogue, name)]

    def alike(self) -> NDArray[np.intp]:
        """A label a candidate, shape ``(n,)``; equal where nothing but the id tells two candidates apart.

        The re-ranker swaps such candidates so that ties break by their order. Whatever a constraint can tell
        apart must be in here; if it is not, the check after the swap refuses the slate.
        """
        known = np.column_stack(
            [self.relevance, self.catalogue.provider_codes[self.items], self.membership.astype(bool)]
        )
        rows = np.ascontiguousarray(known + 0.0).view(f"V{known.shape[1] * 8}").ravel()  # -0.0 is 0.0
        return np.unique(rows, return_inverse=True)[1]


def category_code(catalogue: ItemCatalogue, name: str) -> int:
    """Position of the named category.

    Raises:
        SpecificationError: The catalogue has no such category; the message lists those it has.
    """
    if name not in catalogue.category_names:
        known = ", ".join(map(repr, catalogue.category_names)) or "none at all"
        raise SpecificationError(f"the catalogue has no category {name!r}; it has {known}")
    return catalogue.category_names.index(name)
