"""Make metrics.json: inputs, and what other libraries say about them. README.md tells how to run this."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd
from FairRankTune.Metrics.EXP import EXP
from inequality.gini import Gini
from ir_measures import AP, RR, R, nDCG
from rectools import Columns
from rectools.metrics import CatalogCoverage, IntraListDiversity, MeanInvUserFreq
from rectools.metrics.distances import PairwiseDistanceCalculator
from replay.metrics import CategoricalDiversity, PerUser
from scipy.stats import entropy
from sklearn.metrics.pairwise import cosine_distances

ALPHA = 0.01
CUTOFFS = (1, 3, 5, 10)
GENRES = ("comedy", "crime", "drama", "horror", "western")


def make_inputs(rng: np.random.Generator) -> dict[str, dict]:
    """A catalogue of 24 items and 9 users with a history, held-out items and a ranking of 2 to 12 items."""
    items = [f"i{j}" for j in range(24)]
    # Item i0 has no category.
    categories = {
        item: sorted(rng.choice(GENRES, size=rng.integers(1, 4), replace=False)) if item != "i0" else []
        for item in items
    }
    providers = {item: str(rng.choice(["north", "south", "west"], p=[0.6, 0.3, 0.1])) for item in items}
    history, held_out, ranking = {}, {}, {}
    for number in range(9):
        user, dealt = f"u{number}", items[number::9]  # so that every item is in some history
        rest = [str(item) for item in rng.permutation([item for item in items if item not in dealt])]
        cut = int(rng.integers(1, 6))
        history[user] = dealt + rest[:cut]
        held_out[user] = rest[cut : cut + int(rng.integers(1, 8))]
        ranking[user] = [str(item) for item in rng.permutation(rest[cut:])[: int(rng.integers(2, 13))]]
    return {
        "categories": categories,
        "providers": providers,
        "history": history,
        "held_out": held_out,
        "ranking": ranking,
    }


def long_frame(lists: dict[str, list[str]]) -> pd.DataFrame:
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Rank])


def ranking_metrics(inputs: dict[str, dict]) -> dict[str, dict[str, float]]:
    """trec_eval and its kin, through ir_measures; recall is rescaled from R to min(k, R) relevant items."""
    held_out = inputs["held_out"]
    qrels = [ir_measures.Qrel(u, i, 1) for u, items in held_out.items() for i in items]
    run = [
        ir_measures.ScoredDoc(u, i, -r) for u, i, r in long_frame(inputs["ranking"]).itertuples(index=False)
    ]
    names = {}
    for k in CUTOFFS:
        names |= {R @ k: f"recall@{k}", nDCG @ k: f"ndcg@{k}", AP @ k: f"map@{k}", RR @ k: f"mrr@{k}"}
    values: dict[str, dict[str, float]] = {name: {} for name in names.values()}
    for result in ir_measures.iter_calc(list(names), qrels, run):
        name, user = names[result.measure], result.query_id
        kind, _, k = name.partition("@")
        relevant = len(held_out[user])
        scale = relevant / min(int(k), relevant) if kind == "recall" else 1.0
        values[name][user] = result.value * scale
    return values


class CosineDistances(PairwiseDistanceCalculator):
    """Distances of scikit-learn between the category vectors of items."""

    def __init__(self, vectors: pd.DataFrame) -> None:
        self.distances = pd.DataFrame(cosine_distances(vectors), vectors.index, vectors.index)

    def _get_distances_for_item_pairs(self, items_0, items_1):
        return np.array([self.distances.at[a, b] for a, b in zip(items_0, items_1, strict=True)])


def intra_list_diversity(inputs: dict[str, dict]) -> dict[str, float]:
    vectors = pd.DataFrame(
        {g: {item: float(g in has) for item, has in inputs["categories"].items()} for g in GENRES}
    )
    metric = IntraListDiversity(k=99, distance_calculator=CosineDistances(vectors))
    return metric.calc_per_user(long_frame(inputs["ranking"])).to_dict()


def calibration_kl(inputs: dict[str, dict]) -> dict[str, float]:
    """Steck's two mixes by counting, and their divergence by scipy."""

    def mix(items: list[str]) -> np.ndarray:
        weight = dict.fromkeys(GENRES, 0.0)
        for item in items:
            for genre in inputs["categories"][item]:
                weight[genre] += 1 / len(inputs["categories"][item])
        values = np.array(list(weight.values()))
        return values / values.sum()

    values = {}
    for user, listed in inputs["ranking"].items():
        p, q = mix(inputs["history"][user]), mix(listed)
        values[user] = float(entropy(p, (1 - ALPHA) * q + ALPHA * p))
    return values


def category_coverage(inputs: dict[str, dict]) -> dict[str, float]:
    """RePlay divides the number of distinct categories by k, of which all rows fit in: rescaled here."""
    k = 99
    rows = {
        user: [(genre, -rank) for rank, item in enumerate(items) for genre in inputs["categories"][item]]
        for user, items in inputs["ranking"].items()
    }
    values = CategoricalDiversity(k, mode=PerUser())(rows)[f"CategoricalDiversity-PerUser@{k}"]
    return {user: value * k / len(GENRES) for user, value in values.items()}


def novelty(inputs: dict[str, dict]) -> dict[str, float]:
    metric = MeanInvUserFreq(k=99)
    return metric.calc_per_user(long_frame(inputs["ranking"]), long_frame(inputs["history"])).to_dict()


def catalogue_coverage(inputs: dict[str, dict]) -> float:
    metric = CatalogCoverage(k=99, normalize=True)
    return metric.calc(long_frame(inputs["ranking"]), list(inputs["categories"]))


def gini(inputs: dict[str, dict]) -> float:
    lists = long_frame(inputs["ranking"])[Columns.Item].value_counts()
    return float(Gini(lists.reindex(inputs["categories"], fill_value=0).to_numpy(float)).g)


def provider_exposure_disparity(inputs: dict[str, dict]) -> dict[str, float]:
    """FairRankTune's mean log-discounted exposure of an item, turned into shares less shares of items."""
    rankings = pd.DataFrame({user: pd.Series(items) for user, items in inputs["ranking"].items()})
    _, mean_exposure = EXP(rankings, inputs["providers"], "MaxMinDiff")
    owned = pd.Series(inputs["providers"]).value_counts()
    exposure = owned * pd.Series(mean_exposure)
    return (exposure / exposure.sum() - owned / owned.sum()).to_dict()


def main() -> None:
    inputs = make_inputs(np.random.default_rng(20180902))
    sources = {
        "ranking_metrics": (ranking_metrics, ["ir-measures", "pytrec-eval-terrier"]),
        "intra_list_diversity": (intra_list_diversity, ["RecTools", "scikit-learn"]),
        "calibration_kl": (calibration_kl, ["scipy"]),
        "category_coverage": (category_coverage, ["replay-rec"]),
        "novelty": (novelty, ["RecTools"]),
        "catalogue_coverage": (catalogue_coverage, ["RecTools"]),
        "gini": (gini, ["inequality"]),
        "provider_exposure_disparity": (provider_exposure_disparity, ["FairRankTune"]),
    }
    metrics = {
        name: {"made_with": {library: version(library) for library in libraries}, "values": compute(inputs)}
        for name, (compute, libraries) in sources.items()
    }
    path = Path(__file__).with_name("metrics.json")
    document = {"alpha": ALPHA, "inputs": inputs, "metrics": metrics}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
