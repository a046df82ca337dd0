"""The re-ranking problem as arrays: what general solvers are handed, and are checked against.

One model holds one user or many, side by side. Its variable z is 0 or 1: an entry a candidate, or, where
positions have a say, an entry a candidate and place, candidate by candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import (
    TOLERANCE,
    Candidates,
    Constraint,
    ConvexConstraint,
    LinearConstraint,
    Population,
)
from recsys_budget.constraints.base import hard_part
from recsys_budget.constraints.form import ConcaveForm, Separable
from recsys_budget.rerank.objective import Objective

# What an opaque rule tells: values of shape (m,) at z, and their gradients, shape (m, len(z)).
Evaluate = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True, eq=False)
class Curve:
    """A term ``function(factor.T @ z)``: taken from the objective, or part of the left-hand side of a row.

    Attributes:
        row: Row whose left-hand side it is part of; -1 for the objective.
        factor: Sparse, shape ``(len(z), m)``.
        function: Convex.
    """

    row: int
    factor: sparse.csc_array
    function: Separable


@dataclass(frozen=True, eq=False)
class Opaque:
    """A convex rule that only a function knows: ``evaluate(z[at])[0] <= upper``.

    Attributes:
        owner: Position of its constraint.
        at: Entries of z that it reads.
        evaluate: Values and gradients.
        upper: Shape ``(m,)``.
        penalty: What a unit of violation costs; infinite for a hard rule.
    """

    owner: int
    at: slice
    evaluate: Evaluate
    upper: NDArray[np.float64]
    penalty: float


@dataclass(frozen=True, eq=False)
class Model:
    """Maximise ``constant + linear @ z - curves of the objective - penalties of soft rules`` under rows.

    Attributes:
        linear: Shape ``(n_z,)``.
        constant: What is added whatever z is.
        rows: Sparse, shape ``(n_rows, n_z)``; row r asks ``rows[r] @ z + its curves <= upper[r]``.
        upper: Shape ``(n_rows,)``.
        penalty: What a unit of violation of each row costs, infinite for hard rows; shape ``(n_rows,)``.
        owner: Position of the constraint that each row belongs to; -1 for rows that make z an assignment.
        curves: Terms that are not linear.
        opaque: Rules that only a function knows.
        offsets: Where each user's candidates start, shape ``(n_users + 1,)``.
        k: Items a slate.
        places: Entries of z a candidate: 1, or k where positions have a say.
    """

    linear: NDArray[np.float64]
    constant: float
    rows: sparse.csr_array
    upper: NDArray[np.float64]
    penalty: NDArray[np.float64]
    owner: NDArray[np.intp]
    curves: tuple[Curve, ...]
    opaque: tuple[Opaque, ...]
    offsets: NDArray[np.int64]
    k: int
    places: int

    @property
    def is_linear(self) -> bool:
        """Whether one integer program is the whole problem."""
        return not self.curves and not self.opaque

    def value(self, z: NDArray[np.float64]) -> float:
        """Objective at z, penalties included."""
        total = self.constant + float(self.linear @ z)
        over = self.rows @ z - self.upper
        for curve in self.curves:
            term = float(curve.function(curve.factor.T @ z))
            if curve.row < 0:
                total -= term
            else:
                over[curve.row] += term
        soft = np.isfinite(self.penalty)
        total -= float(self.penalty[soft] @ np.maximum(0.0, over[soft]))
        for rule in self.opaque:
            if np.isfinite(rule.penalty):
                values, _ = rule.evaluate(z[rule.at])
                total -= rule.penalty * float(np.maximum(0.0, values - rule.upper).sum())
        return total

    def holds(self, z: NDArray[np.float64]) -> bool:
        """Whether every hard rule holds at z."""
        over = self.rows @ z - self.upper
        for curve in self.curves:
            if curve.row >= 0:
                over[curve.row] += float(curve.function(curve.factor.T @ z))
        if (over[np.isinf(self.penalty)] > TOLERANCE).any():
            return False
        hard = (rule for rule in self.opaque if np.isinf(rule.penalty))
        return all((rule.evaluate(z[rule.at])[0] <= rule.upper + TOLERANCE).all() for rule in hard)

    def by_rule(self, prices: NDArray[np.float64], n_rules: int) -> NDArray[np.float64]:
        """Prices of rows added up by constraint, shape ``(n_rules,)``."""
        own = self.owner >= 0
        return np.asarray(np.bincount(self.owner[own], prices[own], minlength=n_rules), np.float64)

    def plain_bound(self) -> float:
        """A bound that needs no solver: each user's k largest coefficients, since no term is negative."""
        return self.constant + self._largest(self.linear)

    def dual_bound(self, z: NDArray[np.float64], prices: NDArray[np.float64]) -> float:
        """A bound on the objective of every slate, whatever z and the prices are; good ones make it tight.

        The Lagrangian of rows at prices is concave, so its tangent at z is above it everywhere, and the
        greatest value of a linear function over slates of k items is the sum of each user's k largest
        coefficients.

        Args:
            z: Where to put the tangent, shape ``(n_z,)``, within [0, 1].
            prices: Of the rows and then of the entries of opaque rules, at least 0.
        """
        n_rows = len(self.upper)
        price = np.clip(prices[:n_rows], 0.0, self.penalty)  # a soft row's price is at most its penalty
        slope = self.linear - self.rows.T @ price
        total = self.constant + float(price @ self.upper)
        for curve in self.curves:
            y = curve.factor.T @ z
            values, slopes = curve.function.tangents(y)
            weight = 1.0 if curve.row < 0 else price[curve.row]
            slope = slope - weight * (curve.factor @ slopes)
            total -= weight * float((values - slopes * y).sum())
        at = n_rows
        for rule in self.opaque:
            values, gradients = rule.evaluate(z[rule.at])
            weights = np.clip(prices[at : at + len(values)], 0.0, rule.penalty)
            at += len(values)
            slope[rule.at] -= gradients.T @ weights
            total -= float(weights @ (values - gradients @ z[rule.at] - rule.upper))
        return total + self._largest(slope)

    def _largest(self, coefficients: NDArray[np.float64]) -> float:
        best = coefficients.reshape(-1, self.places).max(axis=1)
        each = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return float(sum(np.sort(best[first:last])[-self.k :].sum() for first, last in each))

    def slates(self, z: NDArray[np.float64]) -> NDArray[np.int32]:
        """Slates that a 0/1 vector holds, shape ``(n_users, k or more)``, rows as in ``Population``."""
        picked = z.reshape(-1, self.places) > 0.5
        slates = []
        for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            rows, place = np.nonzero(picked[first:last])
            slates.append(rows[np.argsort(place, kind="stable")])
        chosen = np.full((len(slates), max(self.k, *map(len, slates))), -1, np.int32)
        for user, slate in enumerate(slates):
            chosen[user, : len(slate)] = slate
        return chosen

    def vector(self, chosen: NDArray[np.integer]) -> NDArray[np.float64]:
        """The 0/1 vector of slates, the reverse of :meth:`slates`."""
        z = np.zeros((int(self.offsets[-1]), self.places))
        for user, slate in enumerate(chosen):
            for place, row in enumerate(slate[slate >= 0]):
                z[self.offsets[user] + row, place if self.places > 1 else 0] = 1.0
        return z.ravel()

    def first_of_alike(self, chosen: NDArray[np.integer]) -> NDArray[np.integer]:
        """The same slates with each candidate replaced by the first that nothing in the model tells apart.

        A rule that is only known as a function may tell anything apart: then slates stay as they are.
        """
        if self.opaque:
            return chosen
        parts: list[Any] = [self.linear[None, :], self.rows, *(curve.factor.T for curve in self.curves)]
        columns = sparse.csc_array(sparse.vstack([sparse.csr_array(part) for part in parts]))
        columns.sum_duplicates()
        columns.eliminate_zeros()
        indptr, rows, data = columns.indptr, columns.indices, columns.data
        first = np.array(chosen)
        for user, slate in enumerate(chosen):
            groups: dict[Any, list[int]] = {}
            keys = []
            for row in range(self.offsets[user + 1] - self.offsets[user]):
                at = (self.offsets[user] + row) * self.places
                span = slice(indptr[at], indptr[at + self.places])
                ends = indptr[at : at + self.places + 1] - indptr[at]
                keys.append((ends.tobytes(), rows[span].tobytes(), data[span].tobytes()))
                groups.setdefault(keys[-1], []).append(row)
            waiting = {key: iter(group) for key, group in groups.items()}
            swapped = [next(waiting[keys[row]]) for row in slate if row >= 0]
            first[user, : len(swapped)] = swapped if self.places > 1 else sorted(swapped)
        return first


@dataclass
class _Builder:
    """Rows and curves as they are collected."""

    n_z: int
    places: int
    rows: list[sparse.csr_array] = field(default_factory=list)
    upper: list[NDArray[np.float64]] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    opaque: list[Opaque] = field(default_factory=list)

    def add_rows(self, rows: Any, upper: Any, penalty: float, owner: int, first: int) -> None:
        """Rows over the entries of z from ``first`` on."""
        part = sparse.csr_array(rows)
        indices = part.indices.astype(np.int64) + first
        self.rows.append(sparse.csr_array((part.data, indices, part.indptr), shape=(part.shape[0], self.n_z)))
        self.upper.append(np.broadcast_to(np.asarray(upper, np.float64), part.shape[0]))
        self.penalty += [penalty] * part.shape[0]
        self.owner += [owner] * part.shape[0]

    def add_form(self, form: ConcaveForm, row: int, first: int) -> NDArray[np.float64]:
        """Curves of a form whose z starts at ``first``; returns its linear part over its own entries."""
        for factor, function in form.terms:
            part = sparse.coo_array(self.spread(factor.T)).T
            placed = sparse.csc_array(
                (part.data, (part.coords[0] + first, part.coords[1])), shape=(self.n_z, part.shape[1])
            )
            self.curves.append(Curve(row, placed, function))
        linear = form.linear
        if self.places > 1 and not form.positional:
            linear = np.broadcast_to(linear[:, None], (len(linear), self.places))
        return np.asarray(linear, np.float64).ravel()

    def spread(self, matrix: Any, weights: NDArray[np.float64] | None = None) -> sparse.csr_array:
        """Coefficients a candidate as coefficients of z: times the weight of each place, or alike at all."""
        if self.places == 1:
            return sparse.csr_array(matrix)
        worth = np.ones(self.places) if weights is None else weights
        return sparse.csr_array(sparse.kron(sparse.csr_array(matrix), worth[None, :], format="csr"))

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        return len(self.owner)


def assemble(
    objective: Objective | None,
    constraints: Sequence[Constraint],
    population: Population,
    express: Callable[
        [Constraint, Any, int], tuple[Any, NDArray[np.float64]] | tuple[Evaluate, NDArray[np.float64]]
    ],
) -> Model:
    """The arrays of a problem.

    Args:
        objective: What to maximise; None for any slate that satisfies the constraints.
        constraints: The rules.
        population: The candidates.
        express: Reads a rule that is only known as an expression: from the rule, its candidates and the
            entries of z a candidate to its rows and their bounds when it is affine, or to a function and
            bounds.
    """
    k = population.k
    positional = (objective is not None and objective.positional) or any(c.positional for c in constraints)
    places = k if positional else 1
    n = len(population.items)
    builder = _Builder(n * places, places)
    linear, constant = np.zeros(n * places), 0.0
    users = [population.of(u) for u in range(len(population))]
    starts = population.offsets * places
    if objective is not None:
        for u, user in enumerate(users):
            form = objective.form(user)
            linear[starts[u] : starts[u + 1]] = builder.add_form(form, -1, int(starts[u]))
            constant += form.constant
    for owner, rule in enumerate(constraints):
        for u, part in enumerate(users) if rule.scope == "user" else [(0, population)]:
            _add_rule(builder, rule, owner, part, int(starts[u]), express)
    if positional:
        for u, user in enumerate(users):
            each, place = sparse.eye_array(len(user)), sparse.eye_array(places)
            one_place = sparse.kron(each, np.ones((1, places)))
            one_item = sparse.kron(np.ones((1, len(user))), place)
            builder.add_rows(sparse.vstack([one_place, one_item]), 1.0, np.inf, -1, int(starts[u]))
    return Model(
        linear=linear,
        constant=constant,
        rows=sparse.csr_array(sparse.vstack(builder.rows))
        if builder.rows
        else sparse.csr_array((0, n * places)),
        upper=np.concatenate(builder.upper) if builder.upper else np.zeros(0),
        penalty=np.array(builder.penalty, np.float64),
        owner=np.array(builder.owner, np.intp),
        curves=tuple(builder.curves),
        opaque=tuple(builder.opaque),
        offsets=population.offsets,
        k=k,
        places=places,
    )


def _add_rule(
    builder: _Builder, rule: Constraint, owner: int, part: Candidates | Population, first: int, express: Any
) -> None:
    inner, upper = hard_part(rule), rule.rhs(part)
    if isinstance(inner, LinearConstraint):
        rows = builder.spread(inner.coefficients(part), inner.position_weights(part.k))
        builder.add_rows(rows, upper, rule.penalty, owner, first)
    elif isinstance(inner, ConvexConstraint):
        form = inner.form(part)
        linear = builder.add_form(form, builder.n_rows, first)
        builder.add_rows(-linear[None, :], np.asarray(upper) + form.constant, rule.penalty, owner, first)
    else:
        made, bounds = express(inner, part, builder.places)
        if callable(made):
            size = builder.places * (len(part) if isinstance(part, Candidates) else len(part.items))
            builder.opaque.append(Opaque(owner, slice(first, first + size), made, bounds, rule.penalty))
        else:
            builder.add_rows(made, bounds, rule.penalty, owner, first)
