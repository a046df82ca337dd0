"""Models that read private data without spending: **not private**, for comparison only."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import Receipt


class Popularity(Recommender):
    """**Not private.** The same list for everybody: items by number of users."""

    def fit(self, interactions: Interactions) -> Self:
        """Count users an item. **Not private**: reads private data without spending."""
        self.counts_ = np.bincount(interactions.indices, minlength=interactions.n_items).astype(np.float32)
        self.catalogue_ = interactions.catalogue
        self.receipt_ = _receipt(self)
        return self

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        return np.tile(self.counts_, (batch.n_users, 1))


class EASE(Recommender):
    """**Not private.** Linear item-item model in closed form: the accuracy possible without privacy.

    With Gram matrix G of the binary table and P = (G + l2 I)^-1, the weights are
    B = I - P diag(1 / diag(P)), and scores are history @ B. Takes n_items^2 memory and n_items^3 time.

    Args:
        l2: Ridge penalty, positive, in units of interactions.

    References:
        Steck (2019), arXiv:1905.03375, equation 8.
    """

    def __init__(self, l2: float = 300.0) -> None:
        self.l2 = l2

    def fit(self, interactions: Interactions) -> Self:
        """Solve for the weights. **Not private**: reads private data without spending."""
        if not self.l2 > 0:
            raise SpecificationError(f"l2 is {self.l2}; it must be positive")
        table = interactions.matrix()
        gram = (table.T @ table).toarray()
        gram[np.diag_indices_from(gram)] += self.l2
        inverse = np.linalg.inv(gram)
        self.weights_ = -inverse / np.diag(inverse)
        np.fill_diagonal(self.weights_, 0.0)
        self.catalogue_ = interactions.catalogue
        self.receipt_ = _receipt(self)
        return self

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        return np.asarray(batch.matrix() @ self.weights_, np.float32)


def _receipt(model: Recommender) -> Receipt:
    return Receipt.not_private(
        model=type(model).__name__,
        reason="it reads private data without spending",
        constants=model.get_params(),
        declared_public=("constructor arguments",),
    )
