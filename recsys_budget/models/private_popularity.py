"""Noisy popularity: the least that personalisation has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys_budget.data import Interactions
from recsys_budget.models._pool import pool_counts
from recsys_budget.models._statistics import StatisticsModel
from recsys_budget.privacy import GaussianMechanism, NoisyValues, PrivateQueries


class PrivatePopularity(StatisticsModel[NoisyValues]):
    """The same list for everybody, differentially private for users: items by noisy count.

    One mechanism: counts to which each user adds a row of Euclidean norm 1
    (:meth:`~recsys_budget.privacy.PrivateQueries.item_counts` with ``max_items=1``), so that its noise is the
    least beside them.

    Args:
        declared_users: About how many users there are, as publicly known; written into the receipt, and of no
            other use here. It is never checked against the data.
        epsilons: At which to keep a model: see :meth:`epsilon_path`. Counts are then released once a stage,
            and averaged by the inverse of their variance: exactly as good as one release of that budget.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        counts_: What was released: :class:`~recsys_budget.privacy.NoisyValues`, one an item. With
            ``epsilons`` it is the mean of all releases.
        catalogue_: The item catalogue.
        receipt_: What it cost.
    """

    def __init__(
        self, *, declared_users: int, epsilons: Sequence[float] = (), insecure_seed: int | None = None
    ) -> None:
        self.declared_users = declared_users
        self.epsilons = epsilons
        self.insecure_seed = insecure_seed

    counts_: NoisyValues

    def _shares(self, users_per_noise: float) -> tuple[float, ...]:
        return (1.0,)

    def _release(
        self,
        queries: PrivateQueries,
        stages: Sequence[tuple[GaussianMechanism, ...]],
        released: Sequence[NoisyValues],
    ) -> NoisyValues:
        return queries.item_counts(*stages[len(released)], max_items=1)

    def _learn(self, released: Sequence[NoisyValues]) -> str:
        self.counts_ = pool_counts(released)
        return "counts released " + ("once" if len(released) == 1 else f"in {len(released)} parts")

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        return np.tile(self.counts_.values.astype(np.float32), (batch.n_users, 1))
