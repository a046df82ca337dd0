"""A start for the autoencoder from two noisy statistics, so that its steps refine what is known already.

Item counts give the output bias. A Gram matrix of the most popular items, released once, gives the factors:
what of its spectrum stands out from the noise, beyond popularity, is read as the logarithm of how much more
than popularity a user's items speak for an item.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from recsys_budget.privacy import GaussianMechanism, NoiseSource, release_sum

# Items of a Gram matrix count as their popularity to the power of minus this: between counting users, where a
# few items are everything, and counting shares, where the noise of rare items is (Krichene et al. 2023).
_WEIGHT = 0.25
# Items of the head for each unit of the root of users over noise; least and most of them.
_HEAD, _FEWEST, _MOST = 8.0, 50, 2000
# Unit rows are rounded down to multiples of this. Products of two are then multiples of 2**-26, which float64
# adds without error up to 2**27 users.
_GRID = 2.0**-13


def log_popularity(counts: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Output bias from noisy counts; those below the noise say nothing, so all of them start level."""
    floor = max(noise, 1.0)
    return np.asarray(np.log(np.maximum(counts, floor) / floor))


def head_of(bias: NDArray[np.float64], declared_users: int, noise: float) -> NDArray[np.intp]:
    """The most popular items, as many as the noise of their Gram matrix allows; ties by the catalogue.

    With u declared users and noise multiplier s there are 8 sqrt(u / s) of them, but 50 to 2,000: the largest
    eigenvalue of the noise grows as the root of s**2 times their number, and a rarer item adds less and less.
    """
    size = max(_FEWEST, min(_MOST, round(_HEAD * math.sqrt(declared_users / noise))))
    return np.argsort(-bias, kind="stable")[:size]


def release_gram(
    table: sparse.csr_array,
    head: NDArray[np.intp],
    weights: NDArray[np.float64],
    mechanism: GaussianMechanism,
    noise: NoiseSource,
) -> NDArray[np.float64]:
    """Noisy sum over users of ``y y'``, y being the user's weighted items of the head at length 1.

    Pay first. Sensitivity: 1. A user adds ``y y'``, of Frobenius norm ``|y|**2``, and y has length at most 1:
    its entries are rounded toward zero after the division.

    Args:
        table: Users x items, ones.
        head: Items to count, distinct.
        weights: Of each of them, positive: public or released.
        mechanism: Its noise multiplier s is the standard deviation of the noise on the diagonal. The matrix
            is averaged with its transpose, which leaves s / sqrt(2) elsewhere.
        noise: Where the noise comes from.

    Returns:
        Shape ``(len(head), len(head))``, symmetric.
    """
    rows = table[:, head]
    lengths = np.diff(rows.indptr)
    values = weights[rows.indices]
    users = np.repeat(np.arange(len(lengths)), lengths)
    norms = np.sqrt(np.bincount(users, values**2, minlength=len(lengths)))
    # A little less, so that no rounding of the quotient passes a multiple of the grid.
    units = np.floor(values / norms[users] * (1 - 2.0**-40) / _GRID) * _GRID
    rows = sparse.csr_array((units, rows.indices, rows.indptr), rows.shape)
    noisy = release_sum((rows.T @ rows).toarray(), sensitivity=1.0, mechanism=mechanism, noise=noise)
    return np.asarray((noisy + noisy.T) / 2)


def weights_of(bias: NDArray[np.float64], head: NDArray[np.intp]) -> NDArray[np.float64]:
    """Weights of the head's items in their Gram matrix, from released values."""
    return np.asarray(np.exp(-_WEIGHT * bias[head]))


def warm_factors(
    gram: NDArray[np.float64],
    head: NDArray[np.intp],
    bias: NDArray[np.float64],
    *,
    noise: float,
    declared_users: int,
    n_factors: int,
) -> NDArray[np.float64]:
    """Factors from a noisy Gram matrix.

    Symmetric noise of standard deviation s off the diagonal has eigenvalues up to about e = 2 s sqrt(n), and
    less than once in a thousand times one above e (1 + 2 n**(-2/3)) (Tracy and Widom 1996). An eigenvalue y
    above that is shrunk to sqrt(y**2 - e**2), which has the least squared error (Gavish and Donoho 2017); the
    rest is dropped. The first eigenvector is popularity, which the bias has. The others are scaled
    together so that, over users and items of the head, logits move by 1 in root mean square: a factor of e is
    what popularity and taste differ by when neither rules.

    Args:
        gram: As released, shape ``(len(head), len(head))``.
        head: Which items.
        bias: Log popularity of all items.
        noise: The noise multiplier of the release.
        declared_users: About how many users there are.
        n_factors: Most factors.

    Returns:
        Where both layers start, shape ``(n_items, k)``: rows of items outside of the head are 0, and there
        are no columns where nothing stands out.

    References:
        Gavish and Donoho (2017), arXiv:1405.7511. Tracy and Widom (1996), arXiv:solv-int/9509007.
    """
    n = len(head)
    edge = noise * math.sqrt(2 * n)
    values, vectors = linalg.eigh(gram, check_finite=False)
    stands_out = values > edge * (1 + 2 * n ** (-2 / 3))
    shrunk = np.sqrt(np.maximum(values**2 - edge**2, 0.0)) * stands_out
    taste = np.flatnonzero(shrunk[:-1])[-n_factors:]
    factors = np.zeros((len(bias), len(taste)))
    if len(taste):
        weights, kept = weights_of(bias, head), shrunk[taste] / values[taste]
        some = vectors[:, taste] * weights[:, None] * np.sqrt(kept)
        # Mean square of a logit: a user's row has coordinates of variance kept * shrunk / users along the
        # factors.
        spread = (some**2).sum(0) @ (kept * shrunk[taste]) * (weights**2).mean() / (n * declared_users)
        factors[head] = some / spread**0.25
    return factors
