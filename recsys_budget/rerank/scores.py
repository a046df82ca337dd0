"""Scores as a matrix, a row a user and a column an item: another form of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data._columns import id_strings, in_shortlex
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank.grouping import Grouping

# Cells of a dense matrix looked at together, so that memory does not grow with the number of users.
_CELLS = 1 << 22


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of users and items, to be passed where a table of candidates could be.

    Attributes:
        matrix: Shape ``(n_users, n_items)``, columns in the order of the catalogue. Dense: every score is a
            candidate but for ``-inf``, which stands for "not this item". Sparse: every stored score is.
        users: User ids, strings or integers, one a row.
        n: Most candidates a user, the best ones, ties by the order of the catalogue; None for all.

    Raises:
        SpecificationError: The matrix has not two dimensions, holds no numbers or has another number of rows
            than there are users, or n is below 1.

    Examples:
        >>> from recsys_budget.constraints import SlateSize
        >>> from recsys_budget.data import ItemCatalogue
        >>> from recsys_budget.rerank import Reranker, Scores
        >>> catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a", "b", "c"]}))
        >>> scores = Scores(np.array([[0.1, 0.9, 0.3], [0.2, -np.inf, 0.1]]), users=["u", "v"])
        >>> Reranker(constraints=[SlateSize(2)]).rerank(scores, catalogue).frame["item"].tolist()
        ['b', 'c', 'a', 'c']
    """

    matrix: Any
    users: Sequence[str] | Sequence[int] | pd.Index[Any]
    n: int | None = None

    def __post_init__(self) -> None:
        if not sparse.issparse(self.matrix):
            object.__setattr__(self, "matrix", np.asarray(self.matrix))
        if self.matrix.ndim != 2 or self.matrix.shape[0] != len(self.users):
            raise SpecificationError(
                f"scores have shape {self.matrix.shape} for {len(self.users)} users; pass a row a user and a "
                "column an item"
            )
        if self.matrix.dtype.kind not in "biuf":
            raise SpecificationError(
                f"scores of dtype {self.matrix.dtype} are no numbers; convert them first"
            )
        if self.n is not None and self.n < 1:
            raise SpecificationError(f"n={self.n!r}; keep at least 1 candidate a user")

    def rows(
        self, n_items: int
    ) -> tuple[pd.Index[Any], NDArray[np.int64], NDArray[np.intp], NDArray[np.float64]]:
        """Users, offsets, items and relevance as in a :class:`~recsys_budget.constraints.Population`.

        Raises:
            DataError: A user id is missing, empty, repeated or neither a string nor an integer; there is no
                user; a user has no candidate; a score is not finite; or a sparse matrix stores one twice.
            SpecificationError: There are not as many columns as items.
        """
        if self.matrix.shape[1] != n_items:
            raise SpecificationError(
                f"scores have {self.matrix.shape[1]} columns for {n_items} items; pass a column for each "
                "item of the catalogue, in its order"
            )
        ids = id_strings(nw.from_native(pd.Series(self.users), series_only=True), "users")
        again = pd.Index(ids).duplicated()
        if not len(ids) or again.any():
            raise DataError(
                f"user {ids[again.argmax()]!r} is listed twice; pass one row a user"
                if len(ids)
                else "there is no user; pass at least one row of scores"
            )
        users, ranks = in_shortlex(ids)
        owners, items, relevance = self._triples(ids)
        groups = Grouping.of(ranks[owners], items, relevance, len(users))
        if groups is None:
            raise DataError("the sparse matrix stores some score twice; call its sum_duplicates() first")
        if groups.order is not None:
            items, relevance = items[groups.order], relevance[groups.order]
        sizes = np.diff(groups.offsets)
        if not sizes.all():
            raise DataError(
                f"user {users[int(sizes.argmin())]!r} has no candidate; drop the row or score an item"
            )
        if self.n is None or sizes.max() <= self.n:
            return users, groups.offsets, items, relevance
        best = np.arange(len(items)) - np.repeat(groups.offsets[:-1], sizes) < self.n
        offsets = np.append(0, np.cumsum(np.minimum(sizes, self.n))).astype(np.int64)
        return users, offsets, items[best], relevance[best]

    def _triples(
        self, ids: NDArray[np.object_]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Row, column and score of candidates; of dense scores only those that may be among the best n."""
        if sparse.issparse(self.matrix):
            stored = cast(Any, self.matrix).tocoo()
            parts = [(stored.row, stored.col, stored.data)]
        else:
            n_users, n_items = self.matrix.shape
            step = max(1, _CELLS // max(1, n_items))
            parts = [self._best(start, step) for start in range(0, n_users, step)]
        owners, items, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        scores = scores.astype(np.float64) + 0.0  # so that -0.0 ties with 0.0
        bad = ~np.isfinite(scores)
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"the score of user {ids[owners[at]]!r} and item {items[at]} of the catalogue is "
                f"{scores[at]}, which is not a finite number"
            )
        return owners.astype(np.intp), items.astype(np.intp), scores

    def _best(self, start: int, step: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        block = self.matrix[start : start + step].astype(np.float64)
        keep = ~(block == -np.inf)  # what is not a number stays, to be found out
        if self.n is not None and self.n < block.shape[1]:
            keep &= ~(block < -np.partition(-block, self.n - 1, axis=1)[:, self.n - 1 : self.n])
        owners, items = np.nonzero(keep)
        return owners + start, items, block[owners, items]
