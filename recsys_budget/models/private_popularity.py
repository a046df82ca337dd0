"""Noisy popularity: the least that personalisation has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys_budget.data import Interactions
from recsys_budget.models._statistics import StatisticsModel
from recsys_budget.privacy import GaussianMechanism, NoisyValues, PrivateQueries


class PrivatePopularity(StatisticsModel):
    """The same list for everybody, differentially private for users: items by noisy count.

    One mechanism: counts to which each user adds a row of Euclidean norm 1
    (:meth:`~recsys_budget.privacy.PrivateQueries.item_counts` with ``max_items=1``), so that its noise is the
    least beside them.

    Args:
        declared_users: About how many users there are, as publicly known; written into the receipt, and of no
            other use here. It is never checked against the data.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        counts_: What was released: :class:`~recsys_budget.privacy.NoisyValues`, one an item.
        catalogue_: The item catalogue.
        receipt_: What it cost.
    """

    def __init__(self, *, declared_users: int, insecure_seed: int | None = None) -> None:
        self.declared_users = declared_users
        self.insecure_seed = insecure_seed

    counts_: NoisyValues

    def _shares(self, users_per_noise: float) -> tuple[float, ...]:
        return (1.0,)

    def _learn(self, queries: PrivateQueries, mechanisms: tuple[GaussianMechanism, ...]) -> str:
        self.counts_ = queries.item_counts(mechanisms[0], max_items=1)
        return "counts released once"

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        return np.tile(self.counts_.values.astype(np.float32), (batch.n_users, 1))
