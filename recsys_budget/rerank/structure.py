"""What a problem is made of, found by looking at numbers: gains, nested quotas, sums over everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import (
    TOLERANCE,
    CatalogueCoverage,
    Constraint,
    ItemConstraint,
    Population,
    SlateSize,
)
from recsys_budget.constraints.base import item_rows
from recsys_budget.constraints.engagement import population_gains
from recsys_budget.constraints.positions import position_weights
from recsys_budget.rerank.objective import Diversity, Engagement, Novelty, Objective, unit_categories
from recsys_budget.rerank.routes.laminar import LaminarTree


@dataclass(frozen=True, eq=False)
class Gains:
    """The linear part of an objective over a whole population, by falling gain within each user.

    Attributes:
        gains: float64 ``(n_rows,)``, not negative.
        items: Catalogue position of each, ``(n_rows,)``.
        order: Row of the population that each is; None where rows are in order as they are.
        worth: What each place is worth, ``(k,)``; None where all are worth 1.
        diversity: Weight of intra-list diversity beside it.
    """

    gains: NDArray[np.float64]
    items: NDArray[np.intp]
    order: NDArray[np.intp] | None
    worth: NDArray[np.float64] | None
    diversity: float

    @classmethod
    def of(cls, objective: Objective, population: Population) -> Gains | None:
        """The gains, or None where the objective has other parts, or discounts that do not multiply out."""
        parts = [(weight, part) for weight, part in objective.parts if weight > 0.0]
        worth = None
        linear: list[NDArray[np.float64]] = []
        diversity = 0.0
        for weight, part in parts:
            if isinstance(part, Engagement):
                if part.positional:
                    if len(parts) > 1:
                        return None
                    worth = position_weights(part.discount, population.k)
                each = population_gains(population, part.discount)
                linear.append(each if weight == 1.0 else weight * each)
            elif isinstance(part, Novelty):
                linear.append(weight * part.each(population.catalogue, population.k)[population.items])
            elif isinstance(part, Diversity):
                diversity += weight
            else:
                return None
        total = linear[0] if len(linear) == 1 else sum(linear, np.zeros(len(population.items)))
        rising = total[1:] > total[:-1]
        rising[population.offsets[1:-1] - 1] = False  # from one user to the next
        if not rising.any():
            return cls(total, population.items, None, worth, diversity)
        users = np.repeat(np.arange(len(population)), np.diff(population.offsets))
        order = np.lexsort((np.arange(len(total)), -total, users))
        return cls(total[order], population.items[order], order, worth, diversity)

    def rows(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.int32]:
        """Slates in rows of the population, the most relevant first, from rows of these arrays."""
        if self.order is None:
            return np.asarray(chosen, np.int32)
        start = population.offsets[:-1, None]
        known = np.where(chosen >= 0, self.order[np.maximum(chosen, 0) + start] - start, -1)
        return np.sort(known, axis=1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Cosines:
    """Intra-list diversity as ``k each + linear over the slate - curvature |sum of factors|^2``.

    Attributes:
        each: What an item of any kind adds, so that objectives, and their gaps, are those of the language.
        factors: Unit category rows, ``(n_items, n_categories)``.
        linear: ``(n_items,)``.
        curvature: At least 0.
    """

    each: float
    factors: sparse.csr_array
    linear: NDArray[np.float64]
    curvature: float

    @classmethod
    def of(cls, gains: Gains, population: Population) -> Cosines:
        """The diversity that stands beside gains; see :class:`~recsys_budget.rerank.Diversity`."""
        k, units = population.k, unit_categories(population.catalogue)
        curvature = gains.diversity / (k * (k - 1)) if k > 1 else 0.0
        squares = np.asarray(units.power(2).sum(axis=1), np.float64).ravel()
        return cls(gains.diversity / k if k > 1 else 0.0, units, curvature * squares, curvature)


@dataclass(frozen=True, eq=False)
class Quotas:
    """Rules that together bound how many items a slate takes from sets that are nested or disjoint.

    Attributes:
        tree: The sets.
        bounds: For each bound that some rule sets: position of the rule, node, and 0 for lower or 1 for
            upper.
    """

    tree: LaminarTree
    bounds: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, constraints: Sequence[Constraint], population: Population) -> Quotas | None:
        """The quotas of the rules about one slate, or None where they are something else."""
        catalogue, k = population.catalogue, population.k
        columns: list[NDArray[np.integer]] = []
        limits, owners = [], []
        for owner, rule in enumerate(constraints):
            if isinstance(rule, SlateSize) or rule.scope == "population":
                continue
            if not isinstance(rule, ItemConstraint) or rule.positional:
                return None
            rows = sparse.csc_array(item_rows(rule, catalogue))
            rows.eliminate_zeros()
            upper = np.broadcast_to(np.asarray(rule.rhs(population), np.float64), rows.shape[1])
            for column in range(rows.shape[1]):
                span = slice(rows.indptr[column], rows.indptr[column + 1])
                values = rows.data[span]
                sign = float(values[0]) if len(values) else 1.0
                if abs(sign) != 1.0 or not (values == sign).all():
                    return None
                if not len(values) and upper[column] >= 0.0:
                    continue
                columns.append(np.sort(rows.indices[span]))
                limits.append(
                    (int(np.ceil(-upper[column] - 1e-9)), k)
                    if sign < 0
                    else (0, int(np.floor(upper[column] + 1e-9)))
                )
                owners.append((owner, 0 if sign < 0 else 1))
        sets, which = _distinct(columns)
        nested = _nested(sets, len(catalogue))
        if nested is None:
            return None
        order, parent = nested
        node = np.empty(len(sets), np.intp)
        node[order] = np.arange(1, len(sets) + 1)
        leaf = np.zeros(len(catalogue), np.int32)
        for at in order:
            leaf[sets[at]] = node[at]
        lower, upper_bound = np.zeros(len(sets) + 1, np.int64), np.full(len(sets) + 1, k, np.int64)
        lower[0] = k
        for (least, most), at in zip(limits, which, strict=True):
            lower[node[at]] = max(lower[node[at]], least)
            upper_bound[node[at]] = min(upper_bound[node[at]], most)
        parents = np.concatenate([[-1], [0 if parent[at] < 0 else node[parent[at]] for at in order]])
        bounds = tuple((owner, int(node[at]), side) for (owner, side), at in zip(owners, which, strict=True))
        return cls(LaminarTree(leaf, parents.astype(np.int32), lower, upper_bound), bounds)

    def by_rule(
        self, prices: tuple[NDArray[np.float64], NDArray[np.float64]], n_rules: int
    ) -> NDArray[np.float64]:
        """Prices of nodes as prices of rules; 0 for a bound that two set: loosening one does nothing."""
        total = np.zeros(n_rules)
        places = [(node, side) for _, node, side in self.bounds]
        for owner, node, side in self.bounds:
            if places.count((node, side)) == 1:
                total[owner] += prices[side][node]
        return total


@dataclass(frozen=True, eq=False)
class Sums:
    """Rules that bound sums over a slate, or over all slates, of numbers that items have.

    Attributes:
        coefficients: Sparse, shape ``(n_rows, n_items)``; each row is there once, whatever rules bound it.
        lower: Shape ``(n_rows,)``, -inf for none.
        upper: Shape ``(n_rows,)``, inf for none.
        owners: Shape ``(2, n_rows)``, position of the rule that sets each lower and each upper bound; -1 for
            none.
        keys: What tells each row's coefficients from all others.
    """

    coefficients: sparse.csr_array
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    owners: NDArray[np.intp]
    keys: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(
        cls,
        constraints: Sequence[Constraint],
        population: Population,
        scope: Literal["user", "population"] = "population",
    ) -> Sums | None:
        """The sums that rules of a scope bound; None where some rule is something else.

        The size of the slate is left out, and so is :class:`CatalogueCoverage`.
        """
        columns: list[tuple[NDArray[np.integer], NDArray[np.float64]]] = []
        limits = []
        for owner, rule in enumerate(constraints):
            if rule.scope != scope or isinstance(rule, SlateSize | CatalogueCoverage):
                continue
            if not isinstance(rule, ItemConstraint) or rule.positional:
                return None
            rows = sparse.csc_array(item_rows(rule, population.catalogue))
            rows.eliminate_zeros()
            rows.sort_indices()
            upper = np.broadcast_to(np.asarray(rule.rhs(population), np.float64), rows.shape[1])
            for column in range(rows.shape[1]):
                span = slice(rows.indptr[column], rows.indptr[column + 1])
                # Written with a first coefficient above 0, a floor and a ceiling on the same sum are one row.
                down = span.stop > span.start and rows.data[span.start] < 0.0
                columns.append((rows.indices[span], -rows.data[span] if down else rows.data[span]))
                limits.append((owner, -upper[column], 0) if down else (owner, upper[column], 1))
        known: dict[tuple[bytes, bytes], int] = {}
        which = [known.setdefault((i.tobytes(), d.tobytes()), len(known)) for i, d in columns]
        lower, upper_bound = np.full(len(known), -np.inf), np.full(len(known), np.inf)
        owners = np.full((2, len(known)), -1, np.intp)
        for (owner, bound, side), at in zip(limits, which, strict=True):
            if side == 0 and bound > lower[at]:
                lower[at], owners[0, at] = bound, owner
            elif side == 1 and bound < upper_bound[at]:
                upper_bound[at], owners[1, at] = bound, owner
        first = [which.index(at) for at in range(len(known))]
        indptr = np.concatenate([[0], np.cumsum([len(columns[at][0]) for at in first])]).astype(np.int64)
        indices = np.concatenate([np.zeros(0, np.int32), *(columns[at][0] for at in first)])
        data = np.concatenate([np.zeros(0), *(columns[at][1] for at in first)])
        shape = (len(known), len(population.catalogue))
        matrix = sparse.csr_array((data, indices, indptr), shape=shape)
        return cls(matrix, lower, upper_bound, owners, tuple(known))

    @property
    def crossed(self) -> NDArray[np.intp]:
        """Rows whose lower bound is above their upper."""
        return np.flatnonzero(self.lower > self.upper)

    @property
    def largest(self) -> NDArray[np.float64]:
        """Largest coefficient of each row, by magnitude; 0 for a row of zeros."""
        largest = np.zeros(len(self.lower))
        rows = np.repeat(np.arange(len(largest)), np.diff(self.coefficients.indptr))
        np.maximum.at(largest, rows, np.abs(self.coefficients.data))
        return largest

    def crossing(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of these rules, the two that bound a sum from both sides with nothing between; empty without."""
        lower, upper = self.limits(self.lower, self.upper)
        crossed = np.flatnonzero(lower > upper)
        return tuple(names[at] for at in self.owners[:, crossed[0]]) if len(crossed) else ()

    def leaned_on(self, prices: NDArray[np.float64]) -> set[int]:
        """Positions of the rules that set the bounds which these prices of rows lean on."""
        at = np.flatnonzero(prices)
        owners: list[int] = self.owners[np.where(prices[at] > 0.0, 1, 0), at].tolist()
        return set(owners) - {-1}

    def limits(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds on the sums as they can be met: a sum of whole numbers is one, to within the tolerance."""
        matrix = self.coefficients
        broken = np.zeros(len(lower))
        row = np.repeat(np.arange(len(self.lower)), np.diff(matrix.indptr))
        np.maximum.at(broken, row, np.abs(matrix.data - np.rint(matrix.data)))
        whole = broken == 0.0
        return (
            np.where(whole, np.ceil(lower - TOLERANCE), lower),
            np.where(whole, np.floor(upper + TOLERANCE), upper),
        )

    def by_rule(self, prices: NDArray[np.float64], n_rules: int) -> NDArray[np.float64]:
        """Prices of rows, negative where the lower bound binds, as prices of rules."""
        total = np.zeros(n_rules)
        for side, price in ((0, np.maximum(0.0, -prices)), (1, np.maximum(0.0, prices))):
            bound = self.owners[side] >= 0
            np.add.at(total, self.owners[side][bound], price[bound])
        return total


def _distinct(columns: list[NDArray[np.integer]]) -> tuple[list[NDArray[np.integer]], list[int]]:
    """The different sets, and which one each column is."""
    known: dict[bytes, int] = {}
    sets: list[NDArray[np.integer]] = []
    which = []
    for column in columns:
        # Of one width: SciPy numbers rows in 32 or 64 bits, and equal sets must be one.
        key = column.astype(np.int64).tobytes()
        if key not in known:
            known[key] = len(sets)
            sets.append(column)
        which.append(known[key])
    return sets, which


def _nested(sets: list[NDArray[np.integer]], n: int) -> tuple[list[int], list[int]] | None:
    """Larger sets first, and the smallest set around each (-1 for none); None where two sets cross."""
    if not sets:
        return [], []
    sizes = np.array([len(s) for s in sets])
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.concatenate(sets)
    members = sparse.csc_array((np.ones(len(indices)), indices, indptr), shape=(n, len(sets)))
    shared = sparse.coo_array(members.T @ members)
    a, b = shared.coords
    if (shared.data != np.minimum(sizes[a], sizes[b])).any():
        return None
    parent = [-1] * len(sets)
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        if sizes[j] > sizes[i] and (parent[i] < 0 or sizes[j] < sizes[parent[i]]):
            parent[i] = j
    return np.argsort(-sizes, kind="stable").tolist(), parent
