"""The arithmetic of private alternating least squares: what users add up to, and what becomes of a noisy sum.

Everything here is a function of arrays: nothing is paid for and no noise is drawn. What a user adds is the
outer product of that user's row (over items) and that user's features (of the user's own vector), both of
Euclidean norm at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]

# Rows and features are whole multiples of these, rounded toward zero. Their products are multiples of 2**-27,
# which float64 adds without error up to 2**26 users, in any order: a bound on each user holds for the sum.
_ROW_GRID, _FEATURE_GRID = 2.0**15, 2.0**12
# Shrinks by more than float64 may be off, before rounding toward zero.
_MARGIN = 1 - 1e-9
# A user vector shorter than this counts as none: squares of its entries would lose their digits.
_SHORTEST = 1e-100
# Users at a time, so that memory does not grow with their number times the square of the factors.
_BATCH = 4096

# Share that the sketch of one sweep keeps in the next, where all pairs weigh alike.
_MEMORY = 0.8
# Signal, in units of what stands out from noise, that a direction is given the benefit of.
_DOUBT = 0.3
# Rounds of power iteration towards public groups, and what of random directions stays beside them.
_GROUP_ROUNDS, _ASIDE = 3, 1e-6
# What a user without any of the counted items has in common with everybody.
_STRANGER = 1e-3
# Ridge of a user's own least squares, as a share of the mean eigenvalue of the items' matrix.
_USER_RIDGE = 0.05
# Weight in every user's row of the place where the matrix of all users is summed.
_EVERYBODY = 0.3


def unit_rows(
    table: sparse.csr_array, items: NDArray[np.integer], weights: Floats, *, everybody: float = 0.0
) -> sparse.csr_array:
    """Each user's items, weighted, and scaled so that the row has norm at most 1.

    Args:
        table: Users x items, 1 where a pair is present.
        items: Columns wanted, distinct.
        weights: One for each of them, positive and finite; public or released.
        everybody: Value of one more column that every user has; 0 adds none.

    Returns:
        Users x items (one more with ``everybody``), float64, multiples of 2**-15. Whoever has none of the
        items has zeros there.

    Guarantees:
        The squares of a row's entries add up to at most 1, exactly: entries are rounded toward zero from
        values a share of 1e-9 below those of a unit row, and a sum of a million squares is off by a tenth of
        that.
    """
    chosen = sparse.csr_array(table[:, items])
    lengths = np.diff(chosen.indptr)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    values = weights[chosen.indices]
    norms = np.sqrt(np.bincount(owners, values**2, minlength=len(lengths)))
    values *= math.sqrt(1 - everybody**2) * _MARGIN / norms[owners]
    rows = sparse.csr_array((_toward_zero(values, _ROW_GRID), chosen.indices, chosen.indptr), chosen.shape)
    if not everybody:
        return rows
    constant = np.full((len(lengths), 1), _toward_zero(np.array(_MARGIN * everybody), _ROW_GRID))
    return sparse.csr_array(sparse.hstack([rows, sparse.csr_array(constant)], format="csr"))


def users_sum(rows: sparse.csr_array, step: Alternation) -> Floats:
    """Sum over users of row times features, shape ``(rows.shape[1], n_features)``.

    Sensitivity: 1. What a user adds has the Frobenius norm |row| |features| <= 1, and depends on nothing but
    that user's row and released values. The sum is exact, so this holds for it to the last bit.
    """
    total = np.zeros((rows.shape[1], step.n_features))
    for start in range(0, rows.shape[0], _BATCH):
        batch = rows[start : start + _BATCH]
        total += batch.T @ _toward_zero(_MARGIN * step.features(batch), _FEATURE_GRID)
    return total


class Alternation(Protocol):
    """Item factors as released so far, and the two half-steps of a sweep."""

    @property
    def everybody(self) -> float:
        """Value of a column that every user has, beside the items'; 0 for none."""
        ...

    @property
    def n_features(self) -> int:
        """Numbers that a user contributes for each item."""
        ...

    @property
    def rank(self) -> int:
        """Directions in which scores differ between users."""
        ...

    def features(self, rows: sparse.csr_array) -> Floats:
        """Of each user's own vector, given the item factors; of norm 1 but for rounding, or 0."""
        ...

    def next(self, noisy: Floats, noise: float) -> Self:
        """Item factors after a release of the users' sum; ``noise`` is the standard deviation of an entry."""
        ...

    def scores(self, rows: sparse.csr_array) -> Floats:
        """Relevance of the items to users with these rows, shape ``(n_users, n_items)``."""
        ...


@dataclass(frozen=True)
class EqualPairs:
    """All pairs of a user and an item weigh alike, present or not.

    The items' least squares are then ``V = B G^-1``, with B the sum of row times user vector and G the users'
    matrix. V and B span the same space, whatever G is, so that G need not be released: alternating least
    squares is subspace iteration. The space is read off the sketches B of all sweeps side by side, older ones
    fading, by singular values that stand out from the noise. User vectors take each direction by its
    strength^-1/2, which makes their parts alike in size, as the user half-step of a balanced factorisation
    does; the direction of popularity, known from the counts, is left out of them, so that a user's norm is
    spent on taste.

    Attributes:
        weights: Item weights, shape ``(n_items,)``.
        popular: Unit vector of popularity among weighted items.
        basis: What user vectors are read from, shape ``(n_items, n_factors)``.
        sketches: Sketches side by side, in units of their noise, faded; shape ``(n_items, n_columns)``.
        fading: Of each column of ``sketches``, the standard deviation of its noise.
        directions: Orthonormal, shape ``(n_items, rank)``: what stands out from the noise.
        reliability: Expected squared cosine between each of these and what it estimates.

    References:
        Benaych-Georges and Nadakuditi (2012), arXiv:1103.2221, section 3.1 (cosines). Gavish and Donoho
        (2017), arXiv:1405.7511, equation 7 (shrinkage). Krichene et al. (2023), arXiv:2302.07975 (weights).
    """

    weights: Floats
    popular: Floats
    basis: Floats
    sketches: Floats
    fading: Floats
    directions: Floats
    reliability: Floats
    everybody: float = 0.0

    @classmethod
    def start(
        cls,
        counts: Floats,
        weights: Floats,
        n_factors: int,
        rng: np.random.Generator,
        groups: sparse.csr_array | None = None,
    ) -> Self:
        """Directions in which public groups of items differ, larger groups first, and random ones.

        Args:
            counts: Noisy counts, positive.
            weights: See the attribute.
            n_factors: Width of the basis, at most the number of items.
            rng: Of the random directions.
            groups: Items x groups, 1 where an item belongs to one; public.
        """
        popular = counts * weights
        popular /= np.linalg.norm(popular)
        basis = _without(popular, rng.standard_normal((len(weights), n_factors)))
        if groups is not None and groups.nnz:
            sizes = groups.sum(axis=0)
            lengths = np.sqrt((popular[:, None] ** 2 * groups).sum(axis=0))
            scale = np.sqrt(sizes) / np.maximum(lengths, _SHORTEST)
            columns = sparse.diags_array(popular) @ groups @ sparse.diags_array(scale)
            for _ in range(_GROUP_ROUNDS):
                basis = _without(popular, columns @ (columns.T @ basis) + _ASIDE * basis)
                basis = np.linalg.qr(basis)[0]
        nothing = np.zeros((len(weights), 0))
        basis = _without(popular, np.linalg.qr(basis)[0])
        return cls(weights, popular, basis, nothing, np.zeros(0), nothing, np.zeros(0))

    @property
    def n_features(self) -> int:
        """See :class:`Alternation`."""
        return int(self.basis.shape[1])

    @property
    def rank(self) -> int:
        """See :class:`Alternation`."""
        return int(self.directions.shape[1])

    def features(self, rows: sparse.csr_array) -> Floats:
        """See :class:`Alternation`."""
        return unit(np.asarray(rows @ self.basis))

    def next(self, noisy: Floats, noise: float) -> Self:
        """See :class:`Alternation`."""
        sketch = _without(self.popular, noisy) / noise
        sketches = np.hstack([_MEMORY * self.sketches, sketch])
        fading = np.append(_MEMORY * self.fading, np.ones(sketch.shape[1]))
        left, singular, _ = np.linalg.svd(sketches, full_matrices=False)
        n = len(self.weights)
        # The largest singular value of the noise is at most sqrt(n) + |fading| in expectation (Chevet).
        signal, reliability = spiked(singular / math.sqrt(n), float(fading @ fading) / n)
        rank = int(np.count_nonzero(signal))
        basis = left / np.sqrt(np.maximum(signal, _DOUBT))
        return type(self)(
            self.weights, self.popular, basis[:, : self.n_features],
            sketches, fading, left[:, :rank], reliability[:rank],
        )  # fmt: skip

    def scores(self, rows: sparse.csr_array) -> Floats:
        """See :class:`Alternation`."""
        common = np.maximum(rows @ self.popular, _STRANGER)
        taste = (rows @ self.directions) * self.reliability
        weighted = np.outer(common, self.popular) + taste @ self.directions.T
        # Dividing by the weights would undo them; half of it, as their noise is undone as well.
        return np.asarray(weighted / np.sqrt(self.weights))


@dataclass(frozen=True)
class WeightedPairs:
    """Pairs that are present weigh more than those that are not: implicit ALS, with a matrix for each item.

    Item i minimises the sum over users of ``y_ui (1 - u . v_i)^2`` over those who have it and of
    ``unobserved_weight (u . v_i)^2`` over all, so that ``(A_i + unobserved_weight G) v_i = b_i`` with
    ``A_i = sum_u y_ui u u^T``, ``b_i = sum_u y_ui u`` and ``G = sum_u u u^T``, the row y of a user having
    norm at most 1. For all of them at once a user contributes the outer product of the row, with one more
    constant entry for G, and of ``(u, svec(u)) / sqrt(2)``.

    svec lists the upper triangle of ``u u^T``, entries off the diagonal times sqrt(2). As each of them stands
    twice in the matrix, the norm of svec is the Frobenius norm of ``u u^T``, which is |u|^2. The norm of the
    plain triangle can be as large, at a unit vector, so that it would gain nothing and have more noise off
    the diagonal.

    Attributes:
        factors: Shape ``(n_items, n_factors)``.
        unobserved_weight: Positive.

    References:
        Chien et al. (2021), arXiv:2107.09802, algorithm 1. Hu, Koren and Volinsky (2008),
        doi:10.1109/ICDM.2008.22. Krichene et al. (2023), arXiv:2302.07975 (row weights).
    """

    factors: Floats
    unobserved_weight: float
    everybody: float = _EVERYBODY

    @classmethod
    def start(cls, n_items: int, n_factors: int, unobserved_weight: float, rng: np.random.Generator) -> Self:
        """Random factors."""
        return cls(rng.standard_normal((n_items, n_factors)), unobserved_weight)

    @property
    def n_features(self) -> int:
        """See :class:`Alternation`."""
        d = int(self.factors.shape[1])
        return d + d * (d + 1) // 2

    @property
    def rank(self) -> int:
        """See :class:`Alternation`."""
        return int(self.factors.shape[1])

    def features(self, rows: sparse.csr_array) -> Floats:
        """See :class:`Alternation`."""
        vectors = unit(self._solve(rows))
        return np.hstack([vectors, svec(vectors)]) / math.sqrt(2)

    def next(self, noisy: Floats, noise: float) -> Self:
        """See :class:`Alternation`. The edge of the noise's spectrum is added as a ridge."""
        d = int(self.factors.shape[1])
        right = math.sqrt(2) * noisy[:-1, :d]
        matrices = math.sqrt(2) * smat(noisy[:, d:])
        everybody = _positive(matrices[-1:] / self.everybody)
        # Noise sqrt(2) on the diagonal and 1 off it: eigenvalues up to 2 sqrt(d) for large d.
        ridge = 2 * noise * math.sqrt(d) * np.eye(d)
        left = _positive(matrices[:-1] + self.unobserved_weight * everybody) + ridge
        factors = np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0], np.float64)
        return type(self)(factors, self.unobserved_weight)

    def scores(self, rows: sparse.csr_array) -> Floats:
        """See :class:`Alternation`."""
        return self._solve(rows) @ self.factors.T

    def _solve(self, rows: sparse.csr_array) -> Floats:
        """Each user's own least squares."""
        d = int(self.factors.shape[1])
        rows = rows[:, : len(self.factors)]
        everything = self.unobserved_weight * self.factors.T @ self.factors
        ridge = max(_USER_RIDGE * float(np.trace(everything)) / d, 1e-12)
        own = smat(np.asarray(rows @ svec(self.factors)))
        right = np.asarray(rows @ self.factors)
        left = own + everything + ridge * np.eye(d)
        return np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0])


def unit(vectors: Floats) -> Floats:
    """Each row divided by its norm; 0 where it has none to speak of, or none that is finite."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    clear = (norms > _SHORTEST) & np.isfinite(norms)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=clear), np.float64)


def _without(direction: Floats, columns: Floats) -> Floats:
    """Columns less their part along a unit vector."""
    return columns - np.outer(direction, direction @ columns)


def svec(vectors: Floats) -> Floats:
    """Upper triangle of each row's outer product with itself, off the diagonal times sqrt(2)."""
    first, second, scale = _triangle(vectors.shape[1])
    return vectors[:, first] * vectors[:, second] * scale


def smat(triangles: Floats) -> Floats:
    """The symmetric matrices of which each row is the upper triangle, off the diagonal times sqrt(2)."""
    d = (math.isqrt(8 * triangles.shape[1] + 1) - 1) // 2
    first, second, scale = _triangle(d)
    matrices = np.empty((len(triangles), d, d))
    matrices[:, first, second] = matrices[:, second, first] = triangles / scale
    return matrices


def spiked(singular: Floats, aspect: float) -> tuple[Floats, Floats]:
    """Signal behind singular values of a matrix plus noise, and how far left singular vectors can be trusted.

    Args:
        singular: Of an n x m matrix whose noise has variance 1 / n an entry.
        aspect: m / n.

    Returns:
        The singular value that minimises the squared error (0 where nothing stands out from the noise), and
        the expected squared cosine between the vector and what it estimates (0 there as well).
    """
    clear = singular > 1 + math.sqrt(aspect)
    y = np.where(clear, singular, 2 + aspect)  # of no effect, but with a square root
    root = np.sqrt((y**2 - aspect - 1) ** 2 - 4 * aspect)
    theta = (y**2 - aspect - 1 + root) / 2  # squared
    cosine = (theta**2 - aspect) / (theta**2 + theta)
    return np.where(clear, root / y, 0.0), np.where(clear, cosine, 0.0)


def _triangle(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    first, second = np.triu_indices(d)
    return first, second, np.where(first == second, 1.0, math.sqrt(2))


def _positive(matrices: Floats) -> Floats:
    """The nearest positive semidefinite matrices in Frobenius norm."""
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray((vectors * np.maximum(values, 0.0)[:, None, :]) @ np.swapaxes(vectors, 1, 2))


def _toward_zero(values: Floats, grid: float) -> Floats:
    return np.trunc(grid * values) / grid
