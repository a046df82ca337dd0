"""Candidates in, as long frames or matrices of scores; long frames of slates out, of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Population, SlateSize
from recsys_budget.constraints.engagement import category_shares
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.data._columns import finite_numbers, id_codes, in_shortlex, pick
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank.grouping import Grouping
from recsys_budget.rerank.scores import Scores


@dataclass(frozen=True, eq=False)
class CandidateTable(Population):
    """A population as read from a table, and written to one.

    Attributes:
        library: Whose tables the candidates came in, and slates are to leave in.
    """

    library: nw.Implementation = nw.Implementation.PANDAS

    @classmethod
    def read(
        cls, candidates: Any, catalogue: ItemCatalogue, k: int, history: Interactions | None = None
    ) -> CandidateTable:
        """Read candidates in any form: see :meth:`from_frame` and :class:`~recsys_budget.rerank.Scores`."""
        if not isinstance(candidates, Scores):
            return cls.from_frame(candidates, catalogue, k, history)
        users, offsets, items, relevance = candidates.rows(len(catalogue))
        mixes = None if history is None else _mixes(users, catalogue, history)
        return cls(catalogue, users, offsets, items, relevance, k, mixes)

    @classmethod
    def from_frame(
        cls, frame: Any, catalogue: ItemCatalogue, k: int, history: Interactions | None = None
    ) -> CandidateTable:
        """Read a long frame with columns user, item and relevance, rows in any order.

        Rows that stand user by user, best first, are not sorted again.

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
        users, ranks = in_shortlex(user_ids)
        rows = ranks[codes]
        groups = Grouping.of(rows, items, relevance, len(users))
        if groups is None:
            row = _repeated(rows, items)
            raise DataError(
                f"user {users[rows[row]]!r} and item {item_ids[item_codes[row]]!r} are paired twice; keep "
                "one row a pair",
                line=row + 1,
                column="item",
            )
        if groups.order is not None:
            items, relevance = items[groups.order], relevance[groups.order]
        return cls(
            catalogue=catalogue,
            users=users,
            offsets=groups.offsets,
            items=items,
            relevance=relevance,
            k=k,
            history=None if history is None else _mixes(users, catalogue, history),
            library=table.implementation,
        )

    def slates(self, chosen: NDArray[np.integer]) -> pd.DataFrame:
        """One row a user and chosen item: user, item, rank (from 1, int64), relevance.

        Args:
            chosen: As in :class:`~recsys_budget.constraints.Population`, empty places last.
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


def in_kind(frame: pd.DataFrame, library: Any) -> Any:
    """The frame as a table of this library, a ``narwhals.Implementation``."""
    if library.is_pandas():
        return frame
    return nw.from_arrow(pa.Table.from_pandas(frame, preserve_index=False), backend=library).to_native()


def top_k(candidates: Any, catalogue: ItemCatalogue, k: int) -> Any:
    """Each user's k most relevant candidates: the slates before any constraint or diversity.

    Args:
        candidates: As for ``Reranker.rerank``.
        catalogue: The catalogue that the items are from; ties break by its order.
        k: Items a slate, at least 1; a user with fewer candidates gets all of them.

    Returns:
        A frame like ``Slates.frame``.

    Raises:
        DataError: As for ``Reranker.rerank``.
        SpecificationError: k is not a whole number of at least 1.
    """
    size = SlateSize(k).k
    table = CandidateTable.read(candidates, catalogue, size)
    places = np.arange(size)
    slates = table.slates(np.where(places < np.diff(table.offsets)[:, None], places, -1))
    return in_kind(slates, table.library)


def _repeated(rows: NDArray[np.integer], items: NDArray[np.integer]) -> int:
    """The first row whose pair of user and item was there before."""
    return int(pd.DataFrame({"user": rows, "item": items}).duplicated().argmax())


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
