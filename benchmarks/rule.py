"""Where the constants of the published rule come from: training users and invented data, no test user.

    python benchmarks/rule.py [--json] [--data-home FOLDER] [--repeats 2]

Two tables are used. One is ml-100k after the test users of `utility.py` have been taken away: its 751
training users are divided in five, and each fifth is predicted from the other four. The other is the bundled
data, all of it invented, divided in the same way. One constant varies at a time, the rest stay as published.
Figures are mean Recall@20 over folds and noise seeds, at budgets from hardly any to plenty, beside
`users_per_noise`: training users over the noise multiplier of one Gaussian release, the one quantity on which
the rule rests. These readings of training users are not private, as no development on data is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
from utility import positives, scored, split

from recsys_budget.data import Interactions, hold_out_users
from recsys_budget.models import PrivateItemModel, PrivatePopularity, item_model
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, smallest_noise

EPSILONS = (0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 4.0, 8.0, 20.0)
PUBLISHED = {"_HEAD_FACTOR": 8.0, "_COUNTS_FACTOR": 8.0, "_EXPONENT": 0.25, "_GAIN": 1.5}
OTHERS = {
    "_HEAD_FACTOR": (4.0, 6.0, 8.0, 11.0, 16.0),
    "_EXPONENT": (0.0, 0.25, 0.5),
    "_GAIN": (1.0, 1.5, 2.0),
    "_COUNTS_FACTOR": (2.0, 4.0, 8.0, 16.0),
}


def folds(name: str, data_home: str | None) -> Iterator[tuple[Interactions, Interactions, Interactions]]:
    train, _, _ = split(positives(name, data_home))
    order = np.random.default_rng(1).permutation(train.n_users)
    for k in range(5):
        inner = train.take_users(np.setdiff1d(order, order[k::5]))
        others = train.take_users(order[k::5])
        # Everybody but one placeholder is held out: the rows of these users are divided in two.
        yield inner, *hold_out_users(others, others.n_users - 1, rng=k)[1:]


def sweep(name: str, data_home: str | None, repeats: int) -> dict[str, Any]:
    tables = list(folds(name, data_home))
    result: dict[str, Any] = {}
    for epsilon in EPSILONS:
        row: dict[str, list[float]] = {}
        for train, fold_in, held_out in tables:
            n = train.n_users
            budget = PrivacyBudget(epsilon, 1 / (10 * n))
            ledger = PrivacyLedger(budget)
            sigma = smallest_noise(lambda s: (GaussianMechanism(s / 6),), ledger.fits) / 6
            row.setdefault("users_per_noise", []).append(n / sigma)
            for seed in range(repeats):
                popular = PrivatePopularity(declared_users=n, insecure_seed=seed)
                popular.fit(train, ledger=PrivacyLedger(budget))
                row.setdefault("popularity", []).append(scored(popular, fold_in, held_out)[0])
                for constant, values in OTHERS.items():
                    for value in values:
                        model = PrivateItemModel(declared_users=n, insecure_seed=seed)
                        with patch.object(item_model, constant, value):
                            model.fit(train, ledger=PrivacyLedger(budget))
                        found = scored(model, fold_in, held_out)[0]
                        row.setdefault(f"{constant.strip('_').lower()}={value:g}", []).append(found)
        result[f"{epsilon:g}"] = {key: round(float(np.mean(values)), 4) for key, values in row.items()}
        print(name, epsilon, result[f"{epsilon:g}"], file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-home", help="folder of datasets; otherwise RECSYS_BUDGET_DATA")
    parser.add_argument("--repeats", type=int, default=2, help="noise seeds a fold")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    result = {
        "synthetic": sweep("synthetic", None, arguments.repeats),
        "ml-100k": sweep("ml-100k", arguments.data_home, arguments.repeats),
    }
    if arguments.json:
        print(json.dumps({"published": PUBLISHED, "recall@20": result}))
        return
    for name, rows in result.items():
        for epsilon, row in rows.items():
            print(name, epsilon, "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
