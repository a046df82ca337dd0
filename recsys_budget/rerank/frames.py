"""Long frames of candidates in, long frames of slates out; sorted once, sliced by offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import Candidates, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.data._columns import finite_numbers, id_codes, pick, shortlex
from recsys_budget.errors import DataError, SpecificationError


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """The candidates of many users, user by user, each user's by falling relevance.

    Equally relevant candidates stand in the order of the catalogue: this order is the tie rule everywhere.

    Attributes:
        catalogue: The catalogue that the items are from.
        users: User ids, shape ``(n_users,)``, unique strings, shorter ids first and then alphabetically.
        offsets: Row boundaries, shape ``(n_users + 1,)``, int64.
        items: Positions in the catalogue, shape ``(n_rows,)``, intp.
        relevance: Shape ``(n_rows,)``, float64, finite.
    """

    catalogue: ItemCatalogue
    users: pd.Index[Any]
    offsets: NDArray[np.int64]
    items: NDArray[np.intp]
    relevance: NDArray[np.float64]

    @classmethod
    def from_frame(cls, frame: Any, catalogue: ItemCatalogue) -> CandidateTable:
        """Read a long frame with columns user, item and relevance, rows in any order.

        Raises:
            DataError: There is no row; a column is missing; an id is missing, empty or neither a string nor
                an integer; an item is not in the catalogue; a relevance is not finite; a pair is repeated.
        """
        table = nw.from_native(frame, eager_only=True)
        codes, user_ids = id_codes(pick(table, "user"), "user")
        item_codes, item_ids = id_codes(pick(table, "item"), "item")
        relevance = finite_numbers(pick(table, "relevance"), "relevance", np.float64)
        relevance = relevance + 0.0  # so that -0.0 ties with 0.0
        if not len(codes):
            raise DataError("there is no candidate; pass at least one row")
        items = catalogue.positions(item_ids)[item_codes]
        if (items < 0).any():
            row = int((items < 0).argmax())
            raise DataError(
                f"item {item_ids[item_codes[row]]!r} is not in the catalogue ({(items < 0).sum()} such "
                "rows); add it there or drop it here",
                line=row + 1,
                column="item",
            )
        users = pd.Index(shortlex(user_ids), dtype="str")
        rows = np.asarray(users.get_indexer(pd.Index(user_ids, dtype="str")), np.int64)[codes]

        pairs = np.lexsort((items, rows))
        again = (np.diff(rows[pairs]) == 0) & (np.diff(items[pairs]) == 0)
        if again.any():
            row = int(pairs[1:][again].min())
            raise DataError(
                f"user {users[rows[row]]!r} and item {item_ids[item_codes[row]]!r} are paired twice; keep "
                "one row a pair",
                line=row + 1,
                column="item",
            )
        order = np.lexsort((items, -relevance, rows))
        return cls(
            catalogue=catalogue,
            users=users,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64),
            items=items[order],
            relevance=relevance[order],
        )

    def __len__(self) -> int:
        return len(self.users)

    def of(self, position: int) -> Candidates:
        """The candidates of the user at this position."""
        rows = slice(self.offsets[position], self.offsets[position + 1])
        return Candidates.of(self.users[position], self.catalogue, self.items[rows], self.relevance[rows])

    def find(self, user: str) -> Candidates:
        """The candidates of the user with this id.

        Raises:
            SpecificationError: That user has no candidates.
        """
        position = int(self.users.get_indexer(pd.Index([str(user)], dtype="str"))[0])
        if position < 0:
            raise SpecificationError(f"user {user!r} has no candidates in this frame of {len(self)} users")
        return self.of(position)

    def slates(self, chosen: Sequence[NDArray[np.intp]]) -> pd.DataFrame:
        """One row a user and chosen item: user, item, rank (from 1, int64), relevance.

        Args:
            chosen: For each user, rows of that user's candidates in the order of the slate.
        """
        sizes = np.array([len(rows) for rows in chosen], np.int64)
        rows = np.concatenate(chosen) + np.repeat(self.offsets[:-1], sizes)
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        return pd.DataFrame(
            {
                "user": self.users.repeat(sizes),
                "item": self.catalogue.ids.take(self.items[rows]),
                "rank": np.arange(1, len(rows) + 1) - first,
                "relevance": self.relevance[rows],
            }
        )


def top_k(candidates: Any, catalogue: ItemCatalogue, k: int) -> pd.DataFrame:
    """Each user's k most relevant candidates: the slates before any constraint or diversity.

    Args:
        candidates: Long frame with columns user, item, relevance, as for ``Reranker.rerank``.
        catalogue: The catalogue that the items are from; ties break by its order.
        k: Items a slate, at least 1; a user with fewer candidates gets all of them.

    Returns:
        A frame like ``Slates.frame``.

    Raises:
        DataError: As for ``Reranker.rerank``.
        SpecificationError: k is not a whole number of at least 1.
    """
    size = SlateSize(k).k
    table = CandidateTable.from_frame(candidates, catalogue)
    return table.slates([np.arange(min(size, n)) for n in np.diff(table.offsets)])
