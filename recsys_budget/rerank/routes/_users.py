"""What the direct route knows of users: their rows as kernels take them, and as linear programs do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.rerank.routes._core import ROUNDING, At, Rows, Scratch


@dataclass(frozen=True, eq=False)
class User:
    """One user's rows, and what is looked at together with them.

    Attributes:
        rows: As kernels take them; rules are scaled.
        marks: 1 for a row that must be in the slate, -1 for one that must not, else 0.
        k: Items a slate.
        factors: Dense, ``(n, n_factors)``.
    """

    rows: Rows
    marks: NDArray[np.int8]
    k: int
    factors: NDArray[np.float64]

    def at(self, price: NDArray[np.float64], y: NDArray[np.float64] | None = None) -> At:
        """Somewhere to ask for a bound; y is 0 unless it is given."""
        n, m = self.factors.shape
        y = np.zeros(m) if y is None else y
        return At(price.copy(), y, np.zeros(m), np.zeros(n), np.zeros(self.k, np.intp), np.zeros(self.k))

    def scratch(self) -> Scratch:
        """Working arrays."""
        (n, m), k = self.factors.shape, self.k
        return Scratch(
            np.zeros(n, np.int8), np.zeros(n, np.intp), np.zeros(n, np.int64), np.zeros(n, np.bool_),
            np.zeros(len(self.rows.least)), np.zeros(m), np.zeros(n), np.zeros(k, np.intp),
            np.zeros(k, np.intp),
        )  # fmt: skip

    def tangent(self, slate: NDArray[np.integer]) -> User:
        """The same with the tangent at a slate in place of the square that is taken off; up to a constant."""
        along = self.factors @ self.factors[slate].sum(axis=0)
        gain = self.rows.gain - 2.0 * self.rows.curvature * along
        return replace(
            self, rows=self.rows._replace(gain=gain, curvature=0.0), factors=np.zeros((len(gain), 0))
        )


@dataclass(frozen=True, eq=False)
class Users:
    """Rows of everybody.

    Attributes:
        offsets: int64 ``(n_users + 1,)``.
        items: ``(n_rows,)``.
        gain: float64 ``(n_rows,)``, all that a row adds but for the square.
        marks: int8 ``(n_rows,)``.
        k: Items a slate.
        size: float64 ``(n_rules,)``, what rules were divided by: coefficients are at most 1, so that one
            tolerance serves them all.
        least: float64 ``(n_users, n_rules)``, scaled.
        most: Likewise.
        of_items: Facts of the whole catalogue.
        factors: ``(n_items, n_factors)``.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.intp]
    gain: NDArray[np.float64]
    marks: NDArray[np.int8]
    k: int
    size: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    of_items: Rows
    factors: sparse.csr_array

    @classmethod
    def of(
        cls,
        offsets: NDArray[np.int64],
        items: NDArray[np.intp],
        gain: NDArray[np.float64],
        marks: NDArray[np.int8],
        k: int,
        rules: sparse.csr_array,
        limits: tuple[NDArray[np.float64], NDArray[np.float64]],
        factors: sparse.csr_array,
        curvature: float,
        attainable: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    ) -> Users:
        """Users under these rules, not scaled yet; attainable sums as in the diverse route."""
        size = np.zeros(rules.shape[1])
        np.maximum.at(size, rules.indices, np.abs(rules.data))
        size[size == 0.0] = 1.0
        scaled = sparse.csr_array(rules / size)
        scaled.sum_duplicates()
        scaled.eliminate_zeros()
        scaled.sort_indices()
        norms = np.sqrt(np.asarray(factors.power(2).sum(axis=1), np.float64).ravel())
        nothing, (bars, lists, first, sums) = np.zeros(0), attainable
        of_items = Rows(
            nothing, kinds(scaled, factors), *_compressed(scaled), *_compressed(factors), norms, nothing,
            nothing, curvature, bars, lists, first, sums,
        )  # fmt: skip
        least, most = (np.ascontiguousarray(limit / size) for limit in limits)
        return cls(offsets, items, np.ascontiguousarray(gain), marks, k, size, least, most, of_items, factors)

    @property
    def rounding(self) -> float:
        """By how much the squares of a slate's sums may round; 0 where there are none."""
        longest = float(self.of_items.norms.max(initial=0.0))
        return ROUNDING * self.of_items.curvature * (self.k * longest) ** 2

    def of_user(self, u: int) -> User:
        """One user."""
        rows = slice(int(self.offsets[u]), int(self.offsets[u + 1]))
        items, facts = self.items[rows], self.of_items
        of_rules = _of_rows(facts.rule_starts, facts.rules, facts.amounts, items)
        of_factors = _of_rows(facts.starts, facts.columns, facts.values, items)
        mine = facts._replace(
            gain=self.gain[rows], kind=facts.kind[items], rule_starts=of_rules[0], rules=of_rules[1],
            amounts=of_rules[2], starts=of_factors[0], columns=of_factors[1], values=of_factors[2],
            norms=facts.norms[items], least=self.least[u], most=self.most[u],
        )  # fmt: skip
        dense = self.factors[items].toarray()
        return User(mine, self.marks[rows], self.k, dense)


def kinds(*tables: sparse.csr_array) -> NDArray[np.int64]:
    """A number for each row, equal only for rows that are the same in all of these tables.

    Rows that look the same by a sum with random weights are compared; one that differs from the first of its
    look gets a number of its own.
    """
    table = sparse.csr_array(sparse.hstack(tables, format="csr"))
    table.sort_indices()
    n, sizes = table.shape[0], np.diff(table.indptr)
    _, first, number = np.unique(table @ _weights(table.shape[1]), return_index=True, return_inverse=True)
    like = first[number]
    differs = sizes != sizes[like]
    entry = np.repeat(np.arange(n), np.where(differs, 0, sizes))
    within = np.arange(len(entry)) - np.repeat(np.cumsum(np.bincount(entry, minlength=n)), sizes * ~differs)
    own, other = table.indptr[entry + 1] + within, table.indptr[like[entry] + 1] + within
    differs[entry[(table.indices[own] != table.indices[other]) | (table.data[own] != table.data[other])]] = (
        True
    )
    return np.where(differs, len(first) + np.arange(n), number).astype(np.int64)


def _weights(n: int) -> NDArray[np.float64]:
    """Weights by which different rows look different."""
    return np.random.default_rng(0).random(n) + 0.5


def _compressed(table: sparse.csr_array) -> tuple[Any, Any, Any]:
    return (
        table.indptr.astype(np.int64),
        table.indices.astype(np.int32),
        np.ascontiguousarray(table.data, np.float64),
    )


def _of_rows(
    starts: NDArray[np.int64], columns: NDArray[np.int32], values: NDArray[np.float64], rows: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """Some rows of a table in compressed form."""
    sizes = starts[rows + 1] - starts[rows]
    own = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(own[-1]) + np.repeat(starts[rows] - own[:-1], sizes)
    return own, columns[at], values[at]
