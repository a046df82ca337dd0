"""Scores as a matrix, a row a user and a column an item: another form of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data._columns import id_strings, in_shortlex
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank.grouping import Grouping, by_user

# Cells of a matrix looked at together, so that memory does not grow with the number of users.
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
        matrix = _by_rows(self.matrix)
        dense = isinstance(matrix, np.ndarray)
        sizes = _candidates(matrix) if dense else np.diff(matrix.indptr)
        if not sizes.all():
            raise DataError(
                f"user {ids[int(sizes.argmin())]!r} has no candidate; drop the row or score an item"
            )
        if self.n is not None:
            sizes = np.minimum(sizes, self.n)
        offsets = np.zeros(len(ids) + 1, np.int64)
        offsets[1 + ranks] = sizes
        np.cumsum(offsets, out=offsets)
        items, relevance = np.empty(offsets[-1], np.intp), np.empty(offsets[-1])
        cells = matrix.size if dense else matrix.nnz
        step = max(1, _CELLS * len(ids) // max(1, cells))
        for first in range(0, len(ids), step):
            here = slice(first, min(first + step, len(ids)))
            starts, columns, scores = self._best_first(matrix, here, ids[here])
            if self.n is not None:
                kept = np.arange(len(columns)) - np.repeat(starts[:-1], np.diff(starts)) < self.n
                columns, scores = columns[kept], scores[kept]
            each = sizes[here]
            inside = np.arange(len(columns)) - np.repeat(np.cumsum(each) - each, each)
            at = np.repeat(offsets[ranks[here]], each) + inside
            items[at], relevance[at] = columns, scores
        return users, offsets, items, relevance

    def _best_first(
        self, matrix: Any, here: slice, ids: NDArray[np.object_]
    ) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float64]]:
        """Row boundaries, columns and scores of some users, each user's best first, some of them past n."""
        if not isinstance(matrix, np.ndarray):
            starts = matrix.indptr[here.start : here.stop + 1]
            owners = np.repeat(np.arange(len(ids)), np.diff(starts))
            columns = matrix.indices[starts[0] : starts[-1]]
            scores = (
                matrix.data[starts[0] : starts[-1]].astype(np.float64) + 0.0
            )  # so that -0.0 ties with 0.0
        else:
            dense = matrix[here].astype(np.float64) + 0.0
            keep = ~(dense == -np.inf)  # what is not a number stays, to be found out
            if self.n is not None and self.n < dense.shape[1]:
                keep &= ~(dense < -np.partition(-dense, self.n - 1, axis=1)[:, self.n - 1 : self.n])
            owners, columns = np.nonzero(keep)
            scores = dense[owners, columns]
        bad = ~np.isfinite(scores)
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"the score of user {ids[owners[at]]!r} and item {columns[at]} of the catalogue is "
                f"{scores[at]}, which is not a finite number"
            )
        groups = Grouping.of(owners, columns, scores, len(ids))
        if groups is None:
            raise DataError("the sparse matrix stores some score twice; call its sum_duplicates() first")
        if groups.order is not None:
            columns, scores = columns[groups.order], scores[groups.order]
        return groups.offsets, columns, scores


def _by_rows(matrix: Any) -> Any:
    """A sparse matrix by rows, scores that are stored twice left as they are; a dense one as it is."""
    if isinstance(matrix, np.ndarray) or matrix.format == "csr":
        return matrix
    if matrix.format != "coo":
        return sparse.csr_array(matrix)
    stored: Any = matrix
    rows, columns = stored.coords
    order = by_user(rows, stored.shape[0])
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=stored.shape[0]))])
    return sparse.csr_array((stored.data[order], columns[order], starts), shape=stored.shape)


def _candidates(matrix: NDArray[Any]) -> NDArray[np.int64]:
    """How many candidates each row of a dense matrix holds."""
    if matrix.dtype.kind != "f":
        return np.full(len(matrix), matrix.shape[1])
    step = max(1, _CELLS // max(1, matrix.shape[1]))
    counts = [(matrix[first : first + step] != -np.inf).sum(axis=1) for first in range(0, len(matrix), step)]
    return np.concatenate(counts).astype(np.int64)
