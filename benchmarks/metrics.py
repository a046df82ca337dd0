"""Time every metric on 10,000 lists of 100 items, next to the plain way of computing the same numbers.

    python benchmarks/metrics.py --json

The peer of each metric runs in the same process on the same input, and its values must agree. Compilation and
imports are left out: the first call of each metric is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import ranx
from scipy.stats import entropy

from recsys_budget import metrics
from recsys_budget.data import Interactions, ItemCatalogue

N_ITEMS, N_CATEGORIES, N_PROVIDERS = 3_000, 18, 40
ALPHA = 0.01
NAMES = ("recall@20", "ndcg@100", "map@100", "mrr@100")


class Problem:
    """A random catalogue, and for each user a list, 20 held-out items and a history of 50."""

    def __init__(self, n_users: int, length: int) -> None:
        rng = np.random.default_rng(0)
        names = np.array([f"category {c}" for c in range(N_CATEGORIES)])
        self.categories = [list(rng.choice(names, rng.integers(1, 4), replace=False)) for _ in range(N_ITEMS)]
        self.providers = [f"provider {p}" for p in rng.integers(0, N_PROVIDERS, N_ITEMS)]
        ids = [f"item {i}" for i in range(N_ITEMS)]
        frame = pd.DataFrame({"item": ids, "categories": self.categories, "provider": self.providers})
        self.catalogue = ItemCatalogue.from_frame(frame)
        self.users = [f"user {u}" for u in range(n_users)]
        lists = np.stack([rng.choice(N_ITEMS, length, replace=False) for _ in range(n_users)])
        self.ranking = self.long_frame(lists).assign(rank=np.tile(np.arange(1, length + 1), n_users))
        self.held_out, self.history = (
            Interactions.from_frame(
                self.long_frame(rng.integers(0, N_ITEMS, (n_users, size))), catalogue=self.catalogue
            )
            for size in (20, 50)
        )
        self.popularity = (np.bincount(self.history.indices, minlength=N_ITEMS) + 1) / (n_users + 1)

    def long_frame(self, items: np.ndarray) -> pd.DataFrame:
        """One row a user and item."""
        users = np.repeat(np.array(self.users, object), items.shape[1])
        return pd.DataFrame({"user": users, "item": self.catalogue.ids.take(items.ravel())})

    def lists(self) -> dict[str, list[int]]:
        """What the loops below start from: each user's items, in order, as positions in the catalogue."""
        position = {item: i for i, item in enumerate(self.catalogue.ids)}
        groups = self.ranking.sort_values("rank", kind="stable").groupby("user", sort=False)["item"]
        return {user: [position[item] for item in items] for user, items in groups}


def ranx_frames(p: Problem) -> pd.DataFrame:
    truth = p.held_out.to_frame().astype(object).assign(score=1)
    run = p.ranking[["user", "item"]].astype(object).assign(score=-p.ranking["rank"].astype(float))
    columns = {"q_id_col": "user", "doc_id_col": "item", "score_col": "score"}
    ranx_run = ranx.Run.from_df(run, **columns)
    asked = [name.replace("recall", "hits") for name in NAMES]
    ranx.evaluate(ranx.Qrels.from_df(truth, **columns), ranx_run, asked)
    values = (
        pd.DataFrame(dict(ranx_run.scores)).rename(columns={"hits@20": "recall@20"}).loc[p.held_out.users]
    )
    values["recall@20"] /= np.minimum(20, np.diff(p.held_out.indptr))
    return values


def loop_diversity(p: Problem) -> list[float]:
    dense = p.catalogue.membership.toarray().astype(float)
    units = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    lists = p.lists()
    above = np.triu_indices(len(lists[p.users[0]]), 1)
    return [1 - (units[items] @ units[items].T)[above].mean() for items in lists.values()]


def loop_calibration(p: Problem) -> list[float]:
    dense = p.catalogue.membership.toarray().astype(float)
    shares = dense / dense.sum(axis=1, keepdims=True)
    position = {user: u for u, user in enumerate(p.history.users)}
    values = []
    for user, items in p.lists().items():
        u = position[user]
        history = p.history.indices[p.history.indptr[u] : p.history.indptr[u + 1]]
        mixed, listed = shares[history].mean(axis=0), shares[items].mean(axis=0)
        values.append(entropy(mixed, (1 - ALPHA) * listed + ALPHA * mixed))
    return values


def loop_category_coverage(p: Problem) -> list[float]:
    return [len({c for i in items for c in p.categories[i]}) / N_CATEGORIES for items in p.lists().values()]


def loop_novelty(p: Problem) -> list[float]:
    return [float(np.mean(-np.log2(p.popularity[items]))) for items in p.lists().values()]


def loop_coverage(p: Problem) -> float:
    return len({i for items in p.lists().values() for i in items}) / N_ITEMS


def loop_exposure(p: Problem) -> np.ndarray:
    exposure = np.zeros(N_ITEMS)
    for items in p.lists().values():
        for rank, item in enumerate(items, 1):
            exposure[item] += 1 / np.log2(1 + rank)
    return exposure


def pairwise_gini(p: Problem) -> float:
    exposure = p.ranking["item"].value_counts().reindex(p.catalogue.ids, fill_value=0)
    differences = sum(abs(int(a) - int(b)) for a, b in combinations(exposure, 2))
    return differences / (N_ITEMS * exposure.sum())


def loop_disparity(p: Problem) -> list[float]:
    exposure = dict.fromkeys(p.catalogue.provider_names, 0)
    for items in p.lists().values():
        for item in items:
            exposure[p.providers[item]] += 1
    return [seen / len(p.ranking) - p.providers.count(name) / N_ITEMS for name, seen in exposure.items()]


def cases(p: Problem) -> dict[str, tuple[Callable[[], Any], str, Callable[[Problem], Any]]]:
    """For each metric: ours, the name of its peer, the peer."""
    r, c = p.ranking, p.catalogue
    return {
        "ranking_metrics": (
            lambda: metrics.ranking_metrics(r, p.held_out, NAMES),
            "ranx from_df and evaluate",
            ranx_frames,
        ),
        "intra_list_diversity": (
            lambda: metrics.intra_list_diversity(r, c),
            "loop over users, all pairs",
            loop_diversity,
        ),
        "calibration_kl": (
            lambda: metrics.calibration_kl(r, p.history, alpha=ALPHA),
            "loop over users, scipy entropy",
            loop_calibration,
        ),
        "category_coverage": (
            lambda: metrics.category_coverage(r, c),
            "loop over users, sets",
            loop_category_coverage,
        ),
        "novelty": (lambda: metrics.novelty(r, c, p.popularity), "loop over users", loop_novelty),
        "catalogue_coverage": (
            lambda: metrics.catalogue_coverage(r, c),
            "loop over users, a set",
            loop_coverage,
        ),
        "item_exposure": (
            lambda: metrics.item_exposure(r, c, discount="log"),
            "loop over rows",
            loop_exposure,
        ),
        "gini": (lambda: metrics.gini(metrics.item_exposure(r, c)), "all pairs of items", pairwise_gini),
        "provider_exposure_disparity": (
            lambda: metrics.provider_exposure_disparity(r, c),
            "loop over rows",
            loop_disparity,
        ),
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def measure(problem: Problem, repeats: int) -> dict[str, dict[str, Any]]:
    """Best of several calls of each metric, and one call of its peer after a call on a small problem."""
    small = Problem(20, 5)
    results = {}
    for name, (ours, peer_name, peer) in cases(problem).items():
        value = ours()
        seconds = min(timed(ours)[0] for _ in range(repeats))
        peer(small)
        peer_seconds, expected = timed(lambda peer=peer: peer(problem))
        np.testing.assert_allclose(np.asarray(value), np.asarray(expected), atol=1e-9, err_msg=name)
        results[name] = {
            "seconds": round(seconds, 4),
            "peer": peer_name,
            "peer_seconds": round(peer_seconds, 4),
            "times_faster": round(peer_seconds / seconds, 2),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=100, help="items in each list")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # Compiling ranx's own entry points warns about their casts; the peer is not ours to mend.
    warnings.filterwarnings("ignore", message="unsafe cast from uint64 to int64")
    results = measure(Problem(options.users, options.length), options.repeats)
    if options.json:
        setting = {"users": options.users, "items_a_list": options.length, "items": N_ITEMS}
        print(json.dumps({**setting, "python": platform.python_version(), "metrics": results}))
    else:
        print(pd.DataFrame(results).T.to_string())


if __name__ == "__main__":
    main()
