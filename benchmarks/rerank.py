"""Time and quality of the re-ranker on generated candidates, beside cvxpy used the plain way, in one run.

    python benchmarks/rerank.py [--json] [--users 100] [--repeats 3]

Each user has 200 candidates in 18 overlapping categories, a slate of 10, three category minimums and three
maximums. Rows:

- ``linear``: engagement alone. The peer builds a fresh ``cvxpy.Problem`` a user and solves it with HiGHS.
- ``diverse``: weight 0.3 on diversity. No solver that comes with cvxpy takes the mixed-integer quadratic
  program, so the peer builds the continuous relaxation afresh, solves it with Clarabel and keeps the 10
  largest entries: no bound, and rules may break.

Figures: microseconds a user for the whole call, frames included (least of the repeats); relative gap and
largest violation from the certificate, recounted for the peer; mean objective of both.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import Candidates, CategoryMaximum, CategoryMinimum, Constraint, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.rerank import EngagementDiversity, Reranker
from recsys_budget.rerank.frames import CandidateTable

N_ITEMS, N_CANDIDATES, K, N_CATEGORIES = 2_000, 200, 10, 18
NAMES = [f"c{j:02d}" for j in range(N_CATEGORIES)]
MINIMUMS = {"c03": 2, "c07": 1, "c12": 1}
MAXIMUMS = {"c00": 4, "c01": 3, "c02": 3}
RULES: list[Constraint] = [
    SlateSize(K),
    *(CategoryMinimum(name, count) for name, count in MINIMUMS.items()),
    *(CategoryMaximum(name, count) for name, count in MAXIMUMS.items()),
]


def generate(n_users: int, rng: np.random.Generator) -> tuple[pd.DataFrame, ItemCatalogue]:
    popularity = 1.0 / np.arange(1, N_CATEGORIES + 1) ** 0.8
    popularity /= popularity.sum()
    sizes = rng.choice([1, 2, 3], N_ITEMS, p=[0.4, 0.35, 0.25])
    categories = [list(rng.choice(NAMES, size, replace=False, p=popularity)) for size in sizes]
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": [f"i{j}" for j in range(N_ITEMS)], "categories": categories}),
        category_names=NAMES,
    )
    items = np.concatenate([rng.choice(N_ITEMS, N_CANDIDATES, replace=False) for _ in range(n_users)])
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{j}" for j in range(n_users)], N_CANDIDATES),
            "item": catalogue.ids[items],
            "relevance": rng.gamma(2.0, size=len(items)),
        }
    )
    return frame, catalogue


def plain_rules(x: cp.Variable, user: Candidates) -> list[cp.Constraint]:
    column = {name: user.membership[:, j] for j, name in enumerate(NAMES)}
    return [
        cp.sum(x) == K,
        *(column[name] @ x >= count for name, count in MINIMUMS.items()),
        *(column[name] @ x <= count for name, count in MAXIMUMS.items()),
    ]


def fresh_milp(user: Candidates) -> NDArray[np.intp]:
    x = cp.Variable(N_CANDIDATES, boolean=True)
    cp.Problem(cp.Maximize(user.relevance @ x), plain_rules(x, user)).solve(solver=cp.HIGHS)
    return np.flatnonzero(x.value > 0.5)


def fresh_relaxation(user: Candidates, objective: EngagementDiversity) -> NDArray[np.intp]:
    x = cp.Variable(N_CANDIDATES)
    cp.Problem(cp.Maximize(objective.form(user)(x)), [x >= 0, x <= 1, *plain_rules(x, user)]).solve(
        solver=cp.CLARABEL
    )
    return np.sort(np.argsort(-x.value, kind="stable")[:K])


def least_seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def row(weight: float, frame: pd.DataFrame, catalogue: ItemCatalogue, repeats: int) -> dict[str, Any]:
    objective = EngagementDiversity(weight)
    reranker = Reranker(objective, RULES)
    ours, slates = least_seconds(lambda: reranker.rerank(frame, catalogue, progress=False), repeats)

    def peer() -> list[tuple[Candidates, NDArray[np.intp]]]:
        table = CandidateTable.from_frame(frame, catalogue, K)
        users = [table.of(position) for position in range(len(table))]
        return [(u, fresh_relaxation(u, objective) if weight else fresh_milp(u)) for u in users]

    theirs, answers = least_seconds(peer, repeats)
    certificate = slates.certificate
    broken = [max(rule.measure(chosen, user) for rule in RULES) for user, chosen in answers]
    return {
        "us_per_user": round(1e6 * ours / len(slates), 1),
        "gap": certificate.gap,
        "largest_gap": certificate.to_dict()["largest_gap"],
        "violations": max(certificate.violations.values()),
        "objective": certificate.objective,
        "peer": "cvxpy, fresh relaxation a user, Clarabel, rounded"
        if weight
        else "cvxpy, fresh MILP a user, HiGHS",
        "peer_us_per_user": round(1e6 * theirs / len(slates), 1),
        "peer_over_ours": round(theirs / ours, 2),
        "peer_objective": float(np.mean([objective.value(chosen, user) for user, chosen in answers])),
        "peer_violations": max(broken),
        "peer_users_with_violations": float(np.mean(np.array(broken) > 0.0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # HiGHS writes a banner to the process's standard output, past sys.stdout; standard error gets it instead.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        frame, catalogue = generate(arguments.users, np.random.default_rng(arguments.seed))
        rows = {
            name: row(weight, frame, catalogue, arguments.repeats)
            for name, weight in (("linear", 0.0), ("diverse", 0.3))
        }
        if arguments.json:
            print(json.dumps(rows), file=out)
        else:
            print(pd.DataFrame(rows).to_string(), file=out)


if __name__ == "__main__":
    main()
