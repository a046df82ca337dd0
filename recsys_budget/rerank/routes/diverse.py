"""Slates that trade gain for diversity under laminar quotas: a concave quadratic, solved to a proven gap."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes._compiled import by_blocks, over_users
from recsys_budget.rerank.routes._search import Quotas, Rows, search_users
from recsys_budget.rerank.routes.laminar import LaminarTree

BLOCK = 32  # users worked on at a time, whatever the number of threads
SUMS = 64  # listed of what slates can sum to in one factor
CLASSES = 8  # different values of a factor for which that is done
TRIES = 24  # points at which the whole of a user's slates is bounded; parts of them get a quarter


@dataclass(frozen=True, eq=False)
class DiverseSlates:
    """A good slate of each user, with a bound on all others.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows relative to the user's offset, ascending: by falling gain. -1
            throughout for a user without a slate.
        feasible: bool ``(n_users,)``, whether the user has a slate within the quotas.
        objective: float64 ``(n_users,)``, of the slate, summed from its definition; nan without one.
        bound: float64 ``(n_users,)``, at least the objective of every slate within the quotas, rounding
            included; nan without one.
        visited: int64 ``(n_users,)``, nodes of the search tree that were looked into.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    objective: NDArray[np.float64]
    bound: NDArray[np.float64]
    visited: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of items, with what slates of one size can sum to in them.

    Attributes:
        matrix: float64 ``(n_items, n_factors)``.
        norms: Length of each row, ``(n_items,)``.
        k: Size of the slates.
        attainable: See :func:`attainable`.
    """

    matrix: sparse.csr_array[np.float64]
    norms: NDArray[np.float64]
    k: int
    attainable: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]

    @classmethod
    def of(cls, factor_of_item: Any, k: int) -> Factors:
        """Of ``(n_items, n_factors)``, dense or sparse; a sparse one costs time for its non-zeros."""
        matrix: Any = sparse.csr_array(factor_of_item).astype(np.float64)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        matrix.sort_indices()
        return cls(matrix, np.sqrt(matrix.power(2).sum(axis=1)), k, attainable(matrix, k))


def solve_diverse(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    factor_of_item: NDArray[np.float64] | sparse.csr_array[np.float64] | Factors,
    curvature: float,
    linear_of_item: NDArray[np.float64] | None = None,
    *,
    fixed: NDArray[np.int8] | None = None,
    gap: float = 1e-3,
    nodes: int = 500,
    time_limit: float | None = None,
    threads: int | None = None,
) -> DiverseSlates:
    """The best slate of every user, up to a proven gap, for gain less a square of the sum of factors.

    A slate S is worth

        sum of gains + linear_of_item over S  -  curvature * |sum of factors over S|^2.

    With unit category rows as factors and ``linear_of_item = curvature * |factor|^2``, the quadratic is twice
    ``curvature`` times the sum of cosines over the pairs of the slate.

    The bound is that of the concave relaxation over the convex hull of the slates, ``min over y of max over S
    of linear(S) - curvature * (2 y.z(S) - |y|^2)``, approached from above: any y gives a valid one. Rows
    that it settles are fixed, slates that turn up are improved by exchanges, and where the two do not meet,
    branch and bound goes on below.

    Args:
        offsets: int64 ``(n_users + 1,)``, where each user's rows start and end.
        gains: ``(n_rows,)``, finite and falling within each user, which is not checked.
        items: ``(n_rows,)``, position of each candidate in the catalogue.
        tree: The quotas and the size of the slate.
        factor_of_item: ``(n_items, n_factors)``, dense or sparse; or :class:`Factors` of these for slates of
            this size, which many calls can share.
        curvature: Weight of the square, at least 0.
        linear_of_item: float64 ``(n_items,)``, added to the gain; None for nothing.
        fixed: int8 ``(n_rows,)``: 1 for a row that must be in its slate, -1 for one that must not, else 0.
        gap: Relative gap, ``(bound - objective) / |objective|``, at which a user is done with; 0 asks for
            the optimum, up to 3e-12 of the largest sum that a slate could have.
        nodes: Most nodes of the search tree a user, at least 1. Where it stops the search, the bound tells.
        time_limit: Seconds after which users not yet started get one node each, about a fiftieth of a
            millisecond where compiled; None for no limit. Only this can make two runs differ.
        threads: Most threads at once; None takes one a core. Answers do not depend on it.

    Raises:
        SpecificationError: Factors or curvature are not finite, the curvature or gap is negative, ``nodes``
            is below 1, or shapes do not agree.
    """
    known = factor_of_item if isinstance(factor_of_item, Factors) else Factors.of(factor_of_item, tree.k)
    factors: Any = known.matrix
    n_items = len(tree.leaf_of_item)
    linear = np.zeros(n_items) if linear_of_item is None else np.asarray(linear_of_item, np.float64)
    if factors.shape[0] != n_items or linear.shape != (n_items,) or known.k != tree.k:
        raise SpecificationError(
            f"factors of {factors.shape[0]} items for slates of {known.k} and linear_of_item of shape "
            f"{linear.shape} for a tree of {n_items} items and slates of {tree.k}; pass a row of each per "
            "item"
        )
    if not (np.isfinite(factors.data).all() and np.isfinite(linear).all() and 0.0 <= curvature < np.inf):
        raise SpecificationError(
            f"curvature={curvature!r}, or a factor or linear_of_item is not finite; the objective must be "
            "concave, with a finite curvature of at least 0"
        )
    if not gap >= 0.0 or nodes < 1:
        raise SpecificationError(f"gap={gap!r}, nodes={nodes!r}; use a gap of at least 0 and at least 1 node")
    of_items = Rows(
        linear,
        tree.leaf_of_item,
        factors.indptr.astype(np.int64),
        factors.indices.astype(np.int32),
        factors.data,
        known.norms,
        float(curvature),
        *known.attainable,
    )
    quotas = Quotas(tree.parent, tree.lower, tree.upper, tree.reserved)
    n_users = len(offsets) - 1
    chosen = np.full((n_users, tree.k), -1, np.int32)
    objective, bound = np.full(n_users, np.nan), np.full(n_users, np.nan)
    visited = np.zeros(n_users, np.int64)
    rows = np.ascontiguousarray(items, np.intp)
    gain = np.ascontiguousarray(gains, np.float64)
    marks = np.zeros(0, np.int8) if fixed is None else np.ascontiguousarray(fixed, np.int8)
    deadline = np.inf if time_limit is None else time.monotonic() + time_limit

    def work(first: int, last: int) -> None:
        allowed = nodes if time.monotonic() < deadline else 1
        over_users(
            search_users, first, last, len(rows), offsets, rows, gain, marks, of_items, quotas, float(gap),
            allowed, TRIES, factors.shape[1], chosen, objective, bound, visited,
        )  # fmt: skip

    if not tree.contradictory:
        by_blocks(work, n_users, block=BLOCK, threads=threads)
    return DiverseSlates(chosen, chosen[:, 0] >= 0, objective, bound, visited)


def attainable(
    factors: sparse.csr_array[np.float64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """What slates can sum to in each factor, from values below each bound.

    For a factor whose different values are ``v_0 < v_1 < ...``, list t holds the least sums of up to k of
    ``v_0 .. v_(t-1)``, rising, and counts where ``y > v_(t-1) / 2``. A factor with many different values, or
    with one below 0, has no list.

    Returns:
        Bars and starts of the lists, the first list of each factor, and the sums.
    """
    columns = sparse.csc_array(factors)
    bars, lists, first, listed = [], [0], [0], []
    for j in range(columns.shape[1]):
        values = np.unique(columns.data[columns.indptr[j] : columns.indptr[j + 1]])
        if len(values) <= CLASSES and (values > 0.0).all():
            for t in range(len(values) + 1):
                sums = np.zeros(1)
                for _ in range(k):
                    more = (sums[:, None] + np.append(0.0, values[:t])).ravel()
                    sums = np.unique(np.round(more, 14))[:SUMS]
                bars.append(values[t - 1] / 2.0 if t else -np.inf)
                listed.append(sums)
                lists.append(lists[-1] + len(sums))
        first.append(len(bars))
    together = np.concatenate(listed) if listed else np.zeros(0)
    return np.array(bars, np.float64), np.array(lists, np.int64), np.array(first, np.int64), together
