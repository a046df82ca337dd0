"""Long frames of candidates in, long frames of slates out; sorted once, sliced by offsets."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Population, SlateSize
from recsys_budget.constraints.engagement import category_shares
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.data._columns import finite_numbers, id_codes, pick, shortlex
from recsys_budget.errors import DataError, SpecificationError


class CandidateTable(Population):
    """A population as read from a table, and written to one."""

    @classmethod
    def from_frame(
        cls, frame: Any, catalogue: ItemCatalogue, k: int, history: Interactions | None = None
    ) -> CandidateTable:
        """Read a long frame with columns user, item and relevance, rows in any order.

        Args:
            frame: pandas, polars or pyarrow table.
            catalogue: The catalogue that the items are from.
            k: Items a slate.
            history: What users had used, for rules and objectives that compare with it; users may be missing.

        Raises:
            DataError: There is no row; a column is missing; an id is missing, empty or neither a string nor
                an integer; an item is not in the catalogue; a relevance is not finite; a pair is repeated.
            SpecificationError: The history's catalogue has other categories.
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

        pairs = rows * len(catalogue) + items
        if (np.diff(np.sort(pairs)) == 0).any():
            row = int(pd.Series(pairs).duplicated().argmax())
            raise DataError(
                f"user {users[rows[row]]!r} and item {item_ids[item_codes[row]]!r} are paired twice; keep "
                "one row a pair",
                line=row + 1,
                column="item",
            )
        order = _order(rows, relevance, items)
        return cls(
            catalogue=catalogue,
            users=users,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64),
            items=items[order],
            relevance=relevance[order],
            k=k,
            history=None if history is None else _mixes(users, catalogue, history),
        )

    def slates(self, chosen: NDArray[np.integer]) -> pd.DataFrame:
        """One row a user and chosen item: user, item, rank (from 1, int64), relevance.

        Args:
            chosen: As in :class:`~recsys_budget.constraints.Population`, each slate's empty places at its
                end.
        """
        filled = chosen >= 0
        rows = self.rows(chosen)[filled]
        return pd.DataFrame(
            {
                "user": self.users.repeat(filled.sum(axis=1)),
                "item": self.catalogue.ids.take(self.items[rows]),
                "rank": np.cumsum(filled, axis=1, dtype=np.int64)[filled],
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
    table = CandidateTable.from_frame(candidates, catalogue, size)
    places = np.arange(size)
    return table.slates(np.where(places < np.diff(table.offsets)[:, None], places, -1))


def _order(
    rows: NDArray[np.int64], relevance: NDArray[np.float64], items: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Rows by user, falling relevance and catalogue: as ``np.lexsort((items, -relevance, rows))`` does."""
    in_blocks = bool((np.diff(rows) >= 0).all())
    grouped = np.arange(len(rows)) if in_blocks else np.argsort(rows, kind="stable")
    sizes = np.bincount(rows)
    width = int(sizes.max())
    if width * len(sizes) > 4 * len(rows):
        return np.lexsort((items, -relevance, rows))
    # A line a user, filled up at the end, sorted side by side.
    there = np.arange(width) < sizes[:, None]
    lines = np.full(there.shape, np.inf)
    lines[there] = -relevance[grouped]
    best = np.argsort(lines, axis=1, kind="stable")
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = grouped[first + best[there]]  # what fills up a line stays at its end
    falling = relevance[order]  # compared, since a difference may be beyond float64
    tied = (falling[1:] == falling[:-1]) & (np.diff(rows[order]) == 0)
    if (tied & (np.diff(items[order]) < 0)).any():
        return np.lexsort((items, -relevance, rows))
    return order


def _mixes(users: pd.Index[Any], catalogue: ItemCatalogue, history: Interactions) -> sparse.csr_array:
    """Share of each category in each user's history, rows summing to 1 or 0.

    Raises:
        SpecificationError: The history's catalogue has other categories.
    """
    if history.catalogue.category_names != catalogue.category_names:
        raise SpecificationError(
            "the history's catalogue has other categories than the candidates'; build both with the same ones"
        )
    n = len(history.catalogue)
    used = sparse.csr_array(
        (np.ones(len(history.indices)), history.indices, history.indptr), shape=(len(history.users), n)
    )
    totals = used @ category_shares(history.catalogue)
    position = np.asarray(history.users.get_indexer(users), np.intp)
    mixes = sparse.csr_array((totals.tocsr())[np.maximum(position, 0)])
    weight = np.asarray(mixes.sum(axis=1)).ravel()
    scale = np.where((position >= 0) & (weight > 0.0), 1.0 / np.where(weight > 0.0, weight, 1.0), 0.0)
    return sparse.csr_array(mixes.multiply(scale[:, None]))
