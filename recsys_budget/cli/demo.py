"""The main job from end to end: train under the cap, re-rank under hard rules, sweep both frontiers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from recsys_budget.cli.report import DemoResult, write_report
from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, Constraint, SlateSize
from recsys_budget.data import DATASETS, Interactions, ItemCatalogue, hold_out_users, k_core, load_dataset
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers import frontier
from recsys_budget.metrics import intra_list_diversity, ranking_metrics
from recsys_budget.models import EASE, Popularity, PrivateAutoencoder, Recommender
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.rerank import EngagementDiversity, Reranker, top_k

POSITIVE, FEWEST_POSITIVES = 4.0, 5
MOST_TEST_USERS, SPLIT_SEED = 2000, 2026
CANDIDATES, SLATE, DIVERSITY_WEIGHT = 200, 10, 0.3
RERANKED_USERS, SWEPT_USERS = 500, 100
METRICS = ("recall@20", "ndcg@100")


def run_demo(
    name: str = "bundled",
    *,
    data_home: Path | None = None,
    epsilon: float = 4.0,
    out: Path = Path("out/demo"),
    progress: bool = True,
) -> DemoResult:
    """Run the main job on a dataset and write report, slates, receipt and certificate to a folder.

    Users with at least 5 positives (rated 4 or more; every pair of implicit data) take part. A fifth of them,
    at most 2,000, is held out whole. Delta is a tenth of one over the declared number of training users.

    Args:
        name: A dataset that :func:`~recsys_budget.data.load_dataset` knows.
        data_home: Where published datasets lie.
        epsilon: The cap.
        out: Folder to write to; made if absent.
        progress: Show progress bars.

    Raises:
        DataError: The dataset is not there, or malformed.
        InfeasibleError: Some user's candidates cannot satisfy the rules.
    """
    started = time.perf_counter()
    declared = DATASETS[name].n_users
    declared -= min(declared // 5, MOST_TEST_USERS)
    budget = PrivacyBudget(epsilon, 1 / (10 * declared))
    with tqdm(total=5, desc="read", disable=not progress) as stages:

        def stage(text: str) -> None:
            stages.update()
            stages.set_description(text)

        interactions = load_dataset(name, data_home=data_home)
        if interactions.ratings is not None:
            interactions = interactions.positives(POSITIVE)
        interactions = k_core(interactions, per_user=FEWEST_POSITIVES)
        n_test = min(interactions.n_users // 5, MOST_TEST_USERS)
        train, fold_in, held_out = hold_out_users(interactions, n_test, rng=SPLIT_SEED)

        stage("train under the cap")
        ledger = PrivacyLedger(budget)
        path = [e for e in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0) if e < epsilon] + [epsilon]
        model = PrivateAutoencoder(declared_users=declared, epsilons=path, progress=progress)
        model.fit(train, ledger=ledger)

        stage("measure accuracy (not private)")
        accuracy = _accuracy(
            {
                "private": model,
                "popularity (not private)": Popularity().fit(train),
                "EASE (not private)": EASE().fit(train),
            },
            fold_in,
            held_out,
        )

        stage("re-rank under hard rules")
        served = fold_in.take_users(range(min(RERANKED_USERS, n_test)))
        candidates = model.recommend(served, CANDIDATES)
        rules = hard_rules(train.catalogue)
        slates = Reranker(EngagementDiversity(DIVERSITY_WEIGHT), rules).rerank(
            candidates, train.catalogue, progress=progress
        )
        before = top_k(candidates, train.catalogue, SLATE)

        stage("sweep the frontiers")
        few = candidates[candidates["user"].isin(served.users[:SWEPT_USERS])]
        frontiers = (
            frontier(model, fold_in, "epsilon", held_out=held_out, metric=METRICS[0], progress=progress),
            frontier(
                few, train.catalogue, "diversity", reranker=Reranker(constraints=rules), progress=progress
            ),
        )
        stage("done")

    result = DemoResult(
        dataset=name,
        receipt=model.receipt_,
        accuracy=accuracy,
        slates=slates,
        catalogue=train.catalogue,
        rules=rules,
        before=before,
        diversity_before=float(intra_list_diversity(before, train.catalogue).mean()),
        frontiers=frontiers,
        ledger_history=ledger.history(),
        counts={
            "training users": train.n_users,
            "training pairs": len(train),
            "held-out users": n_test,
            "items": train.n_items,
            "re-ranked users": len(slates),
        },
        seconds=time.perf_counter() - started,
        peak_mb=_peak_mb(),
    )
    out.mkdir(parents=True, exist_ok=True)
    slates.frame.to_parquet(out / "slates.parquet", index=False)
    model.receipt_.save(out / "receipt.json")
    (out / "certificate.json").write_text(slates.certificate.to_json() + "\n", encoding="utf-8")
    write_report(result, out / "report.html")
    return result


def hard_rules(catalogue: ItemCatalogue) -> tuple[Constraint, ...]:
    """Example rules from the public catalogue: cap the largest category, assure two of middling size.

    Raises:
        SpecificationError: The catalogue has fewer than seven categories.
    """
    if len(catalogue.category_names) < 7:
        raise SpecificationError(f"the demo's rules need 7 categories; there are {catalogue.category_names}")
    by_size = np.argsort(-catalogue.membership.sum(axis=0), kind="stable")
    largest, fourth, seventh = (catalogue.category_names[by_size[i]] for i in (0, 3, 6))
    return (
        SlateSize(SLATE),
        CategoryMaximum(largest, 4, reason="no category takes over"),
        CategoryMinimum(fourth, 2, reason="a promise to partners"),
        CategoryMinimum(seventh, 1, reason="a promise to partners"),
    )


def _accuracy(models: dict[str, Recommender], fold_in: Interactions, held_out: Interactions) -> pd.DataFrame:
    depth = max(int(metric.partition("@")[2]) for metric in METRICS)
    return pd.DataFrame(
        {
            name: ranking_metrics(model.recommend(fold_in, depth), held_out, METRICS).mean()
            for name, model in models.items()
        }
    ).T


def _peak_mb() -> float | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
