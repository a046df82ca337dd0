"""Metrics of rankings: accuracy, diversity, exposure. None of them spends a privacy budget.

A *ranking* is a table with columns user, item and rank (integer, 1 is the top): what recommenders and
re-rankers emit. A metric of rankings that depend on private data, or one that takes histories or held-out
interactions, reads private data: its value is *not private* and must not leave as if it were. Budgeted
statistics and metrics are in :class:`recsys_budget.privacy.PrivateQueries`.
"""

from recsys_budget.metrics.diversity import (
    calibration_kl,
    category_coverage,
    intra_list_diversity,
    novelty,
)
from recsys_budget.metrics.exposure import (
    catalogue_coverage,
    gini,
    item_exposure,
    provider_exposure_disparity,
)
from recsys_budget.metrics.ranking import ranking_metrics

__all__ = [
    "calibration_kl",
    "catalogue_coverage",
    "category_coverage",
    "gini",
    "intra_list_diversity",
    "item_exposure",
    "novelty",
    "provider_exposure_disparity",
    "ranking_metrics",
]
