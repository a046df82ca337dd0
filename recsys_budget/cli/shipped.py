"""Make the frontiers that come with the package, from the bundled data and repeatable noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_budget.cli.demo import FEWEST_POSITIVES, POSITIVE, SPLIT_SEED, hard_rules
from recsys_budget.constraints import ProviderMinimum
from recsys_budget.data import DATASETS, Interactions, hold_out_users, k_core, load_dataset
from recsys_budget.frontiers import Frontier, frontier, write_frontiers
from recsys_budget.models import PrivateItemModel
from recsys_budget.models.path import PathPoint
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.rerank import EngagementDiversity, Reranker

EPSILONS, RUNS = (0.5, 1.0, 2.0, 4.0, 8.0), 5
USERS, CANDIDATES, METRIC = 100, 150, "recall@10"
WEIGHTS, FLOORS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7), range(0, 17, 2)
GAP = 0.001
# Scores lie between 0 and about 1. With three decimals the file is small, and machines that differ in the
# last bits of a float make the same one.
_DECIMALS = 3
_NOTE = "Invented people, repeatable noise (not private). "


def shipped_frontiers(*, progress: bool = True) -> tuple[Frontier, ...]:
    """The frontiers, made anew; see :func:`~recsys_budget.frontiers.bundled_frontiers`.

    Args:
        progress: Show progress bars.
    """
    interactions = k_core(load_dataset("bundled").positives(POSITIVE), per_user=FEWEST_POSITIVES)
    train, served, held_out = hold_out_users(interactions, USERS, rng=SPLIT_SEED)
    declared = DATASETS["bundled"].n_users - USERS
    runs = [_run(train, declared, seed) for seed in range(RUNS)]
    floor = ProviderMinimum(exposure=FLOORS[0], reason="small providers are seen")
    reranker = Reranker(EngagementDiversity(0.0), (*hard_rules(train.catalogue), floor), gap=GAP)
    options: dict[str, Any] = {"reranker": reranker, "n_candidates": CANDIDATES, "progress": progress}
    made = (
        frontier(runs, served, "epsilon", held_out=held_out, metric=METRIC, **options),
        frontier(runs[0], served, "diversity", WEIGHTS, **options),
        frontier(runs[0], served, floor.name, FLOORS, **options),
    )
    return tuple(replace(swept, note=f"{_NOTE}{swept.note}") for swept in made)


def ship(path: Path, *, progress: bool = True) -> None:
    """Write :func:`shipped_frontiers` to a file; its folder is made if need be.

    Raises:
        DataError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frontiers(path, *shipped_frontiers(progress=progress))


def _run(train: Interactions, declared: int, seed: int) -> _Rounded:
    ledger = PrivacyLedger(PrivacyBudget(EPSILONS[-1], 1 / (10 * declared)))
    model = PrivateItemModel(declared_users=declared, epsilons=EPSILONS, insecure_seed=seed)
    return _Rounded(model.fit(train, ledger=ledger))


@dataclass(frozen=True)
class _Rounded:
    """A recommender whose scores have few decimals."""

    model: Any

    def epsilon_path(self) -> tuple[PathPoint, ...]:
        return tuple(replace(point, model=_Rounded(point.model)) for point in self.model.epsilon_path())

    def recommend(self, interactions: Interactions, k: int) -> pd.DataFrame:
        lists: pd.DataFrame = self.model.recommend(interactions, k)
        return lists.round({"relevance": _DECIMALS})
