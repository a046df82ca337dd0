"""Sweeps that make frontiers: over the epsilon of one training run, and over the weight on diversity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from recsys_budget.constraints import Constraint
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.frontier.frontier import Frontier
from recsys_budget.metrics import ranking_metrics
from recsys_budget.privacy import round_up
from recsys_budget.rerank import EngagementDiversity, Reranker

if TYPE_CHECKING:
    from recsys_budget.models import PrivateAutoencoder


def epsilon_frontier(
    model: PrivateAutoencoder,
    fold_in: Interactions,
    held_out: Interactions,
    *,
    metric: str = "recall@20",
) -> Frontier:
    """Accuracy against epsilon along the path of one private training run.

    The points are copies of the model kept while it trained (``epsilons``), so the whole frontier costs
    what the run cost. The accuracy is **not private**: it reads the held-out users' data without spending.

    Args:
        model: Fitted with an ``epsilons``.
        fold_in: Histories of users held out from training.
        held_out: What the same users used besides, to be predicted.
        metric: A name that :func:`~recsys_budget.metrics.ranking_metrics` knows, such as "recall@20".

    Returns:
        A frontier with columns epsilon (rounded up), steps, the metric (mean over users) and its standard
        error over users.

    Raises:
        SpecificationError: The model has no path, or the metric is not known.
    """
    if not model.epsilon_path():
        raise SpecificationError(
            "this model kept no path; fit it with epsilons=(...), each value within the cap"
        )
    depth = int(metric.partition("@")[2] or 0)
    rows = []
    for point in model.epsilon_path():
        ranking = point.model.recommend(fold_in, max(depth, 1))
        values = ranking_metrics(ranking, held_out, (metric,))[metric]
        rows.append(
            {
                "epsilon": round_up(point.epsilon),
                "steps": point.steps,
                metric: values.mean(),
                "standard_error": values.std(ddof=1) / np.sqrt(len(values)),
            }
        )
    return Frontier(
        pd.DataFrame(rows),
        x="epsilon",
        y=metric,
        x_better="less",
        error="standard_error",
        note="One private run; accuracy measured on held-out users (not private)",
    )


def diversity_frontier(
    candidates: Any,
    catalogue: ItemCatalogue,
    constraints: Sequence[Constraint],
    weights: Iterable[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    *,
    progress: bool = True,
) -> Frontier:
    """Engagement against diversity as the weight between them moves, every point under the hard rules.

    Args:
        candidates: Scored candidates, as for :meth:`~recsys_budget.rerank.Reranker.rerank`.
        catalogue: The catalogue they are from.
        constraints: Hard rules that hold at every point.
        weights: Weights on diversity, each in [0, 1].
        progress: Show a progress bar.

    Returns:
        A frontier with columns weight, engagement, diversity, objective, bound, gap, largest_violation, all
        from the certificates.

    Raises:
        InfeasibleError: The rules leave some user without a slate.
    """
    rows = []
    for weight in tqdm(list(weights), desc="diversity weights", disable=not progress):
        reranker = Reranker(EngagementDiversity(weight), constraints)
        certificate = reranker.rerank(candidates, catalogue, progress=False).certificate
        rows.append(
            {
                "weight": weight,
                "engagement": certificate.engagement,
                "diversity": certificate.diversity,
                "objective": certificate.objective,
                "bound": certificate.bound,
                "gap": certificate.gap,
                "largest_violation": max(certificate.violations.values()),
            }
        )
    return Frontier(
        pd.DataFrame(rows),
        x="diversity",
        y="engagement",
        x_better="more",
        label="weight",
        note="Points are labelled with the weight on diversity; hard rules hold at each",
    )
