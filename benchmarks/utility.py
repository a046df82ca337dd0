"""Accuracy of all models under a privacy budget, by one protocol.

    python benchmarks/utility.py --dataset ml-1m|ml-100k|goodbooks-10k|synthetic [--json] [--data-home FOLDER]
                                 [--models NAME ...] [--epsilons 1 2 4 8] [--seeds 5]

Positives are ratings of at least 4 (goodbooks-10k: every wish); users have at least 5; min(n / 5, 2000) test
users are drawn by one fixed permutation, and a fifth of each one's positives is held out, the rest folded in.
Recall@20 is over min(20, held-out positives). Delta is 1 / (10 x training users). Noise is seeded, so that
figures repeat; five seeds give the mean and its standard error.

Nothing is tuned here: models run with their defaults and are told the number of training users, the catalogue
and the budget. ``default`` says which of them `recommend_model` names. A row that says "not private" reads
private data without spending and stands at epsilon "inf" alone. Private models at "inf" run under a cap that
does not bind, with the least noise there is (multiplier 0.05), and once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_budget.data import Interactions, k_core, load_dataset
from recsys_budget.metrics import ranking_metrics
from recsys_budget.models import (
    EASE,
    ImplicitALS,
    Popularity,
    PrivateALS,
    PrivateAutoencoder,
    PrivateItemModel,
    PrivatePopularity,
    Recommender,
    recommend_model,
)
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 20.0, math.inf)
# Stands for no cap: more than the least noise costs.
UNBOUND = 1e4
METRICS = ("recall@20", "ndcg@100")


@dataclass(frozen=True)
class Public:
    """All that a model is told before it sees the training table."""

    declared_users: int
    n_items: int
    epsilon: float
    delta: float
    seed: int


# A row of the results each: to add a model, add a line.
PRIVATE: dict[str, Callable[[Public], Any]] = {
    "PrivatePopularity": lambda p: PrivatePopularity(declared_users=p.declared_users, insecure_seed=p.seed),
    "PrivateItemModel": lambda p: PrivateItemModel(declared_users=p.declared_users, insecure_seed=p.seed),
    "PrivateItemModel, pca": lambda p: PrivateItemModel(
        declared_users=p.declared_users, method="pca", insecure_seed=p.seed
    ),
    "PrivateItemModel, no catalogue": lambda p: PrivateItemModel(
        declared_users=p.declared_users, use_catalogue=False, insecure_seed=p.seed
    ),
    "PrivateALS": lambda p: PrivateALS(declared_users=p.declared_users, insecure_seed=p.seed),
    "PrivateALS, DPALS": lambda p: PrivateALS(
        declared_users=p.declared_users, unobserved_weight=0.3, insecure_seed=p.seed
    ),
    "PrivateAutoencoder": lambda p: PrivateAutoencoder(
        declared_users=p.declared_users, progress=False, insecure_seed=p.seed
    ),
    "PrivateAutoencoder, warm start": lambda p: PrivateAutoencoder(
        declared_users=p.declared_users, start="gram", progress=False, insecure_seed=p.seed
    ),
}
NOT_PRIVATE: dict[str, Callable[[], Any]] = {
    "Popularity (not private)": Popularity,
    "EASE (not private)": EASE,
    "ImplicitALS (not private)": ImplicitALS,
}


def positives(name: str, data_home: str | None) -> Interactions:
    table = load_dataset("bundled" if name == "synthetic" else name, data_home=data_home)
    if table.ratings is not None:
        table = table.positives(4)
    return k_core(table, per_user=5)


def split(table: Interactions) -> tuple[Interactions, Interactions, Interactions]:
    """Training users; fold-in and held-out positives of the test users, by fixed seeds."""
    n = table.n_users
    order = np.random.default_rng(98765).permutation(n)
    tested = order[: min(n // 5, 2000)]
    rng = np.random.default_rng(0)
    held = np.zeros(len(table), bool)
    ids = table.catalogue.ids
    number = np.array([int(i) for i in ids]) if all(i.isdigit() for i in ids) else np.arange(len(ids))
    for user in tested:
        rows = np.arange(table.indptr[user], table.indptr[user + 1])
        rows = rows[np.argsort(number[table.indices[rows]])]
        held[rng.choice(rows, max(1, round(0.2 * len(rows))), replace=False)] = True
    train = table.take_users(order[len(tested) :])
    return train, table.where(~held).take_users(tested), table.where(held).take_users(tested)


def scored(model: Recommender, fold_in: Interactions, held_out: Interactions) -> list[float]:
    return [float(m) for m in ranking_metrics(model.recommend(fold_in, 100), held_out, METRICS).mean()]


def run(
    name: str,
    data_home: str | None = None,
    models: list[str] | None = None,
    epsilons: tuple[float, ...] = EPSILONS,
    seeds: int = 5,
) -> dict[str, Any]:
    table = positives(name, data_home)
    train, fold_in, held_out = split(table)
    n, delta = train.n_users, 1 / (10 * train.n_users)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for model, make in PRIVATE.items():
        for epsilon in epsilons if models is None or model in models else ():
            cap = min(epsilon, UNBOUND)
            for seed in range(1 if math.isinf(epsilon) else seeds):
                fitted = make(Public(n, table.n_items, cap, delta, seed))
                fitted.fit(train, ledger=PrivacyLedger(PrivacyBudget(cap, delta)))
                result = scored(fitted, fold_in, held_out)
                found.setdefault(model, {}).setdefault(f"{epsilon:g}", []).append(result)
            print(name, model, f"{epsilon:g}", np.mean(found[model][f"{epsilon:g}"], 0), file=sys.stderr)
    for model, baseline in NOT_PRIVATE.items():
        if models is None or model in models:
            found[model] = {"inf": [scored(baseline().fit(train), fold_in, held_out)]}
            print(name, model, found[model], file=sys.stderr)

    def table_of(metric: int) -> dict[str, dict[str, list[float]]]:
        return {
            model: {
                epsilon: [
                    round(float(np.mean([r[metric] for r in runs])), 4),
                    round(float(np.std([r[metric] for r in runs], ddof=1) / math.sqrt(len(runs))), 4)
                    if len(runs) > 1
                    else 0.0,
                ]
                for epsilon, runs in rows.items()
            }
            for model, rows in found.items()
        }

    default = {
        f"{e:g}": type(recommend_model(n, table.n_items, min(e, UNBOUND), delta)).__name__ for e in epsilons
    }
    about = {"training_users": n, "items": table.n_items, "test_users": fold_in.n_users, "delta": delta}
    return {"dataset": name} | about | {"recall@20": table_of(0), "ndcg@100": table_of(1), "default": default}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", required=True, choices=("ml-1m", "ml-100k", "goodbooks-10k", "synthetic")
    )
    parser.add_argument("--data-home", help="folder of datasets; otherwise RECSYS_BUDGET_DATA")
    parser.add_argument("--models", nargs="+", choices=(*PRIVATE, *NOT_PRIVATE), help="all by default")
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    home = None if arguments.dataset == "synthetic" else arguments.data_home
    result = run(arguments.dataset, home, arguments.models, tuple(arguments.epsilons), arguments.seeds)
    if arguments.json:
        print(json.dumps(result))
        return
    for metric in METRICS:
        print(metric)
        for model, rows in result[metric].items():
            cells = (f"{e}: {mean:.3f} ±{error:.3f}" for e, (mean, error) in rows.items())
            print(f"  {model:32}", "  ".join(cells))
    print("recommended:", ", ".join(f"{e}: {model}" for e, model in result["default"].items()))


if __name__ == "__main__":
    main()
