"""What every recommender does: score all items for users it is shown, and recommend the best unseen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.privacy import Receipt

# Rows scored at a time, so that memory is batch x items and not users x items.
_BATCH = 1024


class Recommender(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn ships no types
    """Base of all models, scikit-learn style: constructor arguments are public constants, data comes to fit.

    Models read a served user's own history when scoring, so users need not have been seen in training.

    Attributes:
        catalogue_: The item catalogue that the model was fitted on.
        receipt_: What it cost and what it guarantees; of a model that reads without spending, that it is not
            private. Written by ``fit``.
    """

    catalogue_: ItemCatalogue
    receipt_: Receipt

    @abstractmethod
    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        """Relevance of every item to each user of the batch, shape ``(n_users, n_items)``."""

    def score(self, interactions: Interactions) -> NDArray[np.float32]:
        """Relevance of every item to every user, from the users' own histories.

        Args:
            interactions: Histories, over the catalogue the model was fitted on.

        Returns:
            Shape ``(n_users, n_items)``, float32, higher is better; not masked for items already used.

        Raises:
            NotFittedError: ``fit`` was not called (scikit-learn's error).
            SpecificationError: The histories are over another catalogue.
            NumericalError: A score is not finite.
        """
        parts = [scores for _, scores in self._batches(interactions)]
        return np.concatenate(parts) if parts else np.empty((0, interactions.n_items), np.float32)

    def recommend(
        self, interactions: Interactions, k: int = 10, *, exclude_seen: bool = True
    ) -> pd.DataFrame:
        """The k best items for every user.

        Args:
            interactions: Histories, over the catalogue the model was fitted on.
            k: Items a user; fewer where fewer are left.
            exclude_seen: Leave out what is in the user's history.

        Returns:
            Long frame with columns user, item, rank (from 1) and relevance (float64), users in the order of
            ``interactions``, best item first; ties go to the earlier item of the catalogue.

        Raises:
            NotFittedError: ``fit`` was not called (scikit-learn's error).
            SpecificationError: k below 1, or histories over another catalogue.
            NumericalError: A score is not finite.
        """
        if k < 1:
            raise SpecificationError(f"k is {k}; recommend at least 1 item")
        parts = []
        for batch, scores in self._batches(interactions):
            if exclude_seen:
                scores = scores.copy()
                scores[batch.rows, batch.indices] = -np.inf
            positions, kept = _top(scores, min(k, batch.n_items))
            rows = np.repeat(np.arange(batch.n_users), kept.sum(1))
            parts.append(
                {
                    "user": batch.users.take(rows),
                    "item": batch.catalogue.ids.take(positions[kept]),
                    "rank": np.broadcast_to(np.arange(1, positions.shape[1] + 1), positions.shape)[kept],
                    "relevance": np.take_along_axis(scores, positions, 1)[kept].astype(np.float64),
                }
            )
        columns = ("user", "item", "rank", "relevance")
        if not parts:
            return pd.DataFrame({name: [] for name in columns})
        return pd.DataFrame(
            {name: pd.concat([pd.Series(p[name]) for p in parts], ignore_index=True) for name in columns}
        )

    def _batches(self, interactions: Interactions) -> Iterator[tuple[Interactions, NDArray[np.float32]]]:
        if not hasattr(self, "catalogue_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        if not interactions.catalogue.ids.equals(self.catalogue_.ids):
            raise SpecificationError(
                f"fitted on {self.catalogue_} but asked about {interactions.catalogue} with other ids or "
                "another order; build both tables with the same catalogue"
            )
        for start in range(0, interactions.n_users, _BATCH):
            batch = interactions.take_users(np.arange(start, min(start + _BATCH, interactions.n_users)))
            scores = self._scores(batch)
            if not np.isfinite(scores).all():
                raise NumericalError(
                    f"this {type(self).__name__} gives scores that are not finite; fit it again"
                )
            yield batch, scores


def _top(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Positions of the k largest a row, best first, ties by position; and which of them are not masked."""
    if k < scores.shape[1]:
        # argpartition breaks ties arbitrarily, so everything tied with the k-th best stays in the running.
        kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
        scores = np.where(scores >= kth, scores, -np.inf)
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return positions, np.isfinite(np.take_along_axis(scores, positions, 1))
