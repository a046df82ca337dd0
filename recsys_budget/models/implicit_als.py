"""Implicit ALS without privacy, from the `implicit` package: **not private**, for comparison only."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import Receipt


class ImplicitALS(Recommender):
    """**Not private.** Implicit alternating least squares: what factorisation reaches without privacy.

    The `implicit` package fits it (``pip install "recsys-budget[compare]"``), on the processor and with exact
    solves. Users are scored by fold-in, as everywhere here: by least squares over their own history.

    Args:
        n_factors: Width of the factors.
        regularization: Ridge of each least-squares problem.
        alpha: Weight of a present pair beside an absent one, positive.
        sweeps: How often users and items take turns.
        seed: Of the start. Equal seeds give equal models, on any number of threads.

    References:
        Hu, Koren and Volinsky (2008), doi:10.1109/ICDM.2008.22.
    """

    def __init__(
        self,
        *,
        n_factors: int = 64,
        regularization: float = 30.0,
        alpha: float = 5.0,
        sweeps: int = 15,
        seed: int = 0,
    ) -> None:
        self.n_factors = n_factors
        self.regularization = regularization
        self.alpha = alpha
        self.sweeps = sweeps
        self.seed = seed

    def fit(self, interactions: Interactions) -> Self:
        """Factorise. **Not private**: reads private data without spending.

        Raises:
            SpecificationError: Constants out of range.
            MissingExtraError: `implicit` is not installed.
        """
        for name in ("n_factors", "sweeps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecificationError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("regularization", "alpha"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < 1e6):
                raise SpecificationError(f"{name} is {value!r}; it must lie strictly between 0 and 1e6")
        with extra("compare"):
            from implicit.cpu.als import AlternatingLeastSquares
            from threadpoolctl import threadpool_limits
        # The package runs a thread a core itself; threads of BLAS below them would fight over cores.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.n_factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.sweeps,
                use_cg=False,
                random_state=self.seed,
            )
            model.fit(_matrix(interactions), show_progress=False)
        self._model: Any = model
        self.catalogue_ = interactions.catalogue
        self.receipt_ = Receipt.not_private(
            model=type(self).__name__,
            reason="it reads private data without spending",
            constants=self.get_params(),
            declared_public=("constructor arguments",),
        )
        return self

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        users = self._model.recalculate_user(np.arange(batch.n_users), _matrix(batch))
        return cast("NDArray[np.float32]", users @ self._model.item_factors.T)


def _matrix(interactions: Interactions) -> sparse.csr_matrix:
    """The type that the package takes, with arrays of its own."""
    return sparse.csr_matrix(interactions.matrix(), copy=True)
