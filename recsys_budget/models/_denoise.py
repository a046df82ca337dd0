"""What a noisy Gram matrix still says: eigenvalues shrunk by the known noise, and linear models on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

_Floats = NDArray[np.float64]


def shrink(matrix: _Floats, noise: float) -> tuple[_Floats, int]:
    """The part of a symmetric matrix that stands out from its noise, and the rank of that part.

    Symmetric noise of standard deviation s in n dimensions has eigenvalues up to 2 s sqrt(n). An observed
    eigenvalue y above that comes from a true one t with y = t + n s**2 / t, and its eigenvector has squared
    cosine 1 - n s**2 / t**2 with the true one. The factor with the least squared error is their product,
    sqrt(y**2 - 4 n s**2). Everything else is dropped, as are negative eigenvalues: what is estimated has
    none.

    Args:
        matrix: Symmetric, shape ``(n, n)``.
        noise: Standard deviation s of the noise off the diagonal.

    Returns:
        The shrunken matrix, positive semi-definite, and its rank.

    References:
        Gavish and Donoho (2017), arXiv:1405.7511 (optimal shrinkage under Frobenius loss). Benaych-Georges
        and Nadakuditi (2011), arXiv:0910.2120 (eigenvalues and eigenvectors of a matrix plus noise).
    """
    edge = 2 * noise * math.sqrt(len(matrix))
    values, vectors = linalg.eigh(matrix, driver="evd", check_finite=False)
    kept = values > max(edge, 1e-12 * max(values[-1], 0.0))
    shrunken = np.sqrt(values[kept] ** 2 - edge**2)
    vectors = vectors[:, kept]
    return np.asarray((vectors * shrunken) @ vectors.T), int(kept.sum())


def prior_weights(
    matrix: _Floats, relations: Sequence[_Floats], scale: _Floats, noise: float
) -> NDArray[np.float64]:
    """How much each public relation between items says about a noisy covariance matrix.

    The model is ``matrix = a + sum of b_k * relations[k]`` off the diagonal, in units of
    ``outer(scale, scale)``: least squares for all coefficients, since the noise is the same on every entry.
    An estimate z standard errors above 0 is then multiplied by ``1 - 1 / z**2``; one of less than a standard
    error is 0, and so is one below 0. No constant decides whether a relation matters.

    Args:
        matrix: Symmetric, shape ``(n, n)``.
        relations: Symmetric matrices of the same shape; their diagonals are not looked at.
        scale: Standard deviation of each item, up to a common factor, shape ``(n,)``.
        noise: Standard deviation of the noise off the diagonal.

    Returns:
        The coefficients b, at least 0, shape ``(len(relations),)``.
    """
    unit = np.outer(scale, scale)
    np.fill_diagonal(unit, 0.0)
    columns = [unit, *(unit * relation for relation in relations)]
    # Entries come in equal pairs, so the sums below count everything twice.
    inner = np.array([[np.vdot(one, other) for other in columns] for one in columns]) / 2
    inverse = np.linalg.pinv(inner, rcond=1e-10, hermitian=True)
    estimates = inverse @ np.array([np.vdot(column, matrix) / 2 for column in columns])
    errors = noise * np.sqrt(np.diag(inverse))
    clear = estimates > np.maximum(errors, 1e-12 * np.abs(estimates).max(initial=0.0))
    shrunken = np.zeros(len(columns))
    shrunken[clear] = estimates[clear] * (1 - (errors[clear] / estimates[clear]) ** 2)
    return shrunken[1:]


def least_squares(signal: _Floats, rest: _Floats) -> _Floats:
    """Weights of the best linear prediction of each row's noiseless part from the row: ``(S + R)^-1 S``.

    With a signal of low rank this projects onto its principal components, each shrunk by how far it stands
    out from the rest (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196).

    Args:
        signal: Covariance S between items, positive semi-definite, shape ``(n, n)``.
        rest: Variance R of each item alone, positive, shape ``(n,)``.

    Returns:
        Shape ``(n, n)``: predictions are ``row @ weights``.
    """
    return np.asarray(linalg.solve(signal + np.diag(rest), signal, assume_a="pos", check_finite=False))


def leave_one_out(signal: _Floats, rest: _Floats) -> _Floats:
    """Weights of the best linear prediction of each item from the others.

    EASE (Steck 2019, arXiv:1905.03375): with ``P = (S + diag(R))^-1`` they are ``I - P / diag(P)``, and none
    for an item itself.

    Args:
        signal: As for :func:`least_squares`.
        rest: As for :func:`least_squares`.

    Returns:
        Shape ``(n, n)``: predictions are ``row @ weights``.
    """
    inverse = linalg.inv(signal + np.diag(rest), check_finite=False)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights)
