"""What a noisy Gram matrix of known noise still says: its eigenvalues shrunk, and linear models on the rest."""

from __future__ import annotations

import math

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


def share_of_kin(matrix: _Floats, kin: NDArray[np.bool_], scale: _Floats, noise: float) -> float:
    """Common correlation of related items, estimated from a noisy covariance matrix.

    The model is ``matrix = a + b * kin`` off the diagonal, in units of ``outer(scale, scale)``: least squares
    for both, where the noise is the same on every entry. An estimate z standard errors above 0 is multiplied
    by ``1 - 1 / z**2``, one of less than a standard error is 0, and so is one below: no constant decides
    whether the relation matters (James and Stein 1961, in one dimension).

    Args:
        matrix: Symmetric, shape ``(n, n)``.
        kin: Which pairs are related, symmetric, same shape.
        scale: Standard deviation of each item, up to a common factor, shape ``(n,)``.
        noise: Standard deviation of the noise off the diagonal.

    Returns:
        b, at least 0.
    """
    above = np.triu_indices(len(matrix), 1)
    related = kin[above]
    if related.all() or not related.any():
        return 0.0
    unit = np.outer(scale, scale)[above]
    design = np.stack([unit, unit * related], axis=1)
    inner = design.T @ design
    estimate = float(np.linalg.solve(inner, design.T @ matrix[above])[1])
    error = noise * math.sqrt(np.linalg.inv(inner)[1, 1])
    if estimate <= error:
        return 0.0
    return estimate * (1 - (error / estimate) ** 2)


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
    """Weights of the best linear prediction of each item from the others: EASE (Steck 2019, arXiv:1905.03375).

    With ``P = (S + diag(R))^-1`` they are ``I - P / diag(P)``, and none for an item itself.

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
