"""Time and quality of the diverse, exposure and direct routes beside cvxpy, on one thread, in one run.

    python benchmarks/routes_diverse.py [--json] [--users 1000] [--peer-users 20] [--repeats 3]

Each user has 200 candidates of 3,000 items in 18 overlapping categories, and a slate of 10. Rows:

- ``diverse``: weight 0.3 on diversity, quotas on the first category of an item. ``diverse_half`` puts 0.5,
  ``diverse_exact`` asks for no gap. The peer is the concave relaxation in cvxpy with Clarabel, rounded to the
  10 largest entries: no bound on slates of its own, and quotas may break.
- ``exposure``: parity of two groups. The peer is the linear program over doubly stochastic matrices in cvxpy.
- ``overlapping``: minimums and maximums on all categories of an item. ``knapsack`` caps a cost as well. The
  peer is the integer program in cvxpy with HiGHS.

Figures: microseconds a user (least of the repeats; users of the peer are the first few), mean and largest
relative gap, largest violation counted from the slates, ours and the peer's mean objective over its users.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.exposure import solve_exposure
from recsys_budget.rerank.routes.laminar import LaminarTree

N, K, M, N_ITEMS = 200, 10, 18, 3000
MINIMUMS, MAXIMUMS = {3: 2, 7: 1, 12: 1}, {0: 4, 1: 3, 2: 3}
COST = 12.0


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Instance:
    """Generated users and items."""

    def __init__(self, n_users: int, rng: np.random.Generator) -> None:
        popularity = 1.0 / np.arange(1, M + 1) ** 0.8
        popularity /= popularity.sum()
        self.member = np.zeros((N_ITEMS, M))
        self.first = np.empty(N_ITEMS, np.int32)
        for item, size in enumerate(rng.choice([1, 2, 3], N_ITEMS, p=[0.4, 0.35, 0.25])):
            categories = rng.choice(M, size, replace=False, p=popularity)
            self.member[item, categories], self.first[item] = 1.0, categories[0]
        self.cost = rng.gamma(2.0, size=N_ITEMS)
        self.group = (rng.random(N_ITEMS) < 0.7).astype(np.int64)  # group 0 is the smaller
        self.items = np.stack([rng.choice(N_ITEMS, N, replace=False) for _ in range(n_users)])
        self.gains = -np.sort(-rng.gamma(2.0, size=(n_users, N)), axis=1)
        self.offsets = np.arange(n_users + 1) * N
        self.lower, self.upper = np.zeros(M, np.int64), np.full(M, K)
        self.lower[list(MINIMUMS)], self.upper[list(MAXIMUMS)] = (
            list(MINIMUMS.values()),
            list(MAXIMUMS.values()),
        )
        self.tree = LaminarTree.partition(self.first, self.lower, self.upper, K)


def excess(sums: NDArray[np.float64], lower: NDArray[Any], upper: NDArray[Any]) -> float:
    return float(np.maximum(0.0, np.maximum(lower - sums, sums - upper)).max())


def quotas(counts: NDArray[np.float64], data: Instance) -> float:
    return excess(counts, data.lower, data.upper)


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def row(
    ours: float, theirs: float, n: int, n_peer: int, objective: NDArray[Any], bound: NDArray[Any],
    violations: float, peer: str, peer_objective: list[float], peer_violations: list[float], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    with np.errstate(invalid="ignore"):
        gap = (bound - objective) / np.abs(bound)
    mine, per_user, peer_per_user = objective[:n_peer], 1e6 * ours / n, 1e6 * theirs / n_peer
    return {
        "us_per_user": round(per_user, 1),
        "gap": float(np.nanmean(gap)),
        "largest_gap": float(np.nanmax(gap)),
        "users_without": int(np.isnan(objective).sum()),
        "violations": violations,
        "objective": float(np.nanmean(mine)),
        "peer": peer,
        "peer_us_per_user": round(peer_per_user, 1),
        "peer_over_ours": round(peer_per_user / per_user, 1),
        "peer_objective": float(np.nanmean(peer_objective)),
        "peer_violations": max(peer_violations),
        "peak_mb": round(peak_mb(), 1),
        **more,
    }


def diverse(data: Instance, weight: float, gap: float, n_peer: int, repeats: int) -> dict[str, Any]:
    pairs = K * (K - 1)
    unit = data.member / np.sqrt(data.member.sum(axis=1, keepdims=True))
    linear = np.full(N_ITEMS, weight / K + weight / pairs)
    gains = (1 - weight) * data.gains / data.gains[:, :K].sum(axis=1, keepdims=True)
    factors = sparse.csr_array(unit)

    def run() -> Any:
        return solve_diverse(
            data.offsets, gains.ravel(), data.items.ravel(), data.tree, factors, weight / pairs, linear,
            gap=gap, threads=1,
        )  # fmt: skip

    def relaxed(u: int) -> tuple[float, float]:
        x, items = cp.Variable(N), data.items[u]
        value = (gains[u] + linear[items]) @ x - weight / pairs * cp.sum_squares(unit[items].T @ x)
        counts = np.eye(M)[data.first[items]].T
        rules = [x >= 0, x <= 1, cp.sum(x) == K, counts @ x >= data.lower, counts @ x <= data.upper]
        cp.Problem(cp.Maximize(value), rules).solve(solver=cp.CLARABEL)
        if x.value is None:
            return np.nan, 0.0
        slate = np.argsort(-x.value, kind="stable")[:K]
        z = unit[items[slate]].sum(axis=0)
        gained = float((gains[u] + linear[items])[slate].sum() - weight / pairs * (z @ z))
        return gained, quotas(counts[:, slate].sum(axis=1), data)

    ours, found = timed(run, repeats)
    theirs, peers = timed(lambda: [relaxed(u) for u in range(n_peer)], 1)
    broken = [
        quotas(np.bincount(data.first[data.items[u, slate]], minlength=M), data)
        for u, slate in enumerate(found.chosen)
        if found.feasible[u]
    ]
    return row(
        ours, theirs, len(data.items), n_peer, found.objective, found.bound, max(broken),
        "cvxpy, fresh relaxation a user, Clarabel, rounded", [p[0] for p in peers], [p[1] for p in peers],
        nodes=float(found.visited.mean()),
    )  # fmt: skip


def exposure(data: Instance, n_peer: int, repeats: int) -> dict[str, Any]:
    discount = 1.0 / np.log2(np.arange(K) + 2.0)
    gains = data.gains * np.where(data.group[data.items] == 0, 0.6, 1.0)
    order = np.argsort(-gains, axis=1, kind="stable")
    gains, items = np.take_along_axis(gains, order, axis=1), np.take_along_axis(data.items, order, axis=1)
    free = LaminarTree(np.zeros(N_ITEMS), [-1], [K], [K])

    def run() -> Any:
        return solve_exposure(
            data.offsets, gains.ravel(), items.ravel(), free, data.group, discount, threads=1
        )

    def program(u: int) -> tuple[float, float]:
        matrix, group = cp.Variable((N, K), nonneg=True), data.group[items[u]]
        fair = (group == 0) / (group == 0).sum() - (group == 1) / (group == 1).sum()
        shown = matrix @ discount
        rules = [cp.sum(matrix, axis=0) == 1, cp.sum(matrix, axis=1) <= 1, fair @ shown == 0]
        problem = cp.Problem(cp.Maximize(gains[u] @ shown), rules)
        problem.solve(solver=cp.HIGHS)
        return float(problem.value), abs(float(fair @ shown.value))

    ours, found = timed(run, repeats)
    theirs, peers = timed(lambda: [program(u) for u in range(n_peer)], 1)
    return row(
        ours, theirs, len(data.items), n_peer, found.objective, found.bound,
        float(np.nanmax(found.violation)),
        "cvxpy, fresh doubly stochastic LP a user, HiGHS, not decomposed", [p[0] for p in peers],
        [p[1] for p in peers], rankings_tried=float(found.solves.mean()),
    )  # fmt: skip


def overlapping(data: Instance, knapsack: bool, n_peer: int, repeats: int) -> dict[str, Any]:
    rules = np.column_stack([data.member, data.cost]) if knapsack else data.member
    lower = np.append(data.lower, -np.inf) if knapsack else data.lower.astype(np.float64)
    upper = np.append(data.upper, COST) if knapsack else data.upper.astype(np.float64)
    lower, upper = np.where(lower > 0, lower, -np.inf), np.where(upper != K, upper, np.inf)
    low, high = np.isfinite(lower), np.isfinite(upper)
    of_items = sparse.csr_array(rules)

    def run() -> Any:
        return solve_direct(data.offsets, data.gains.ravel(), data.items.ravel(), K, of_items, lower, upper)

    def program(u: int) -> tuple[float, float]:
        x, of_rows = cp.Variable(N, boolean=True), rules[data.items[u]]
        sums = of_rows.T @ x
        problem = cp.Problem(
            cp.Maximize(data.gains[u] @ x),
            [cp.sum(x) == K, sums[low] >= lower[low], sums[high] <= upper[high]],
        )
        problem.solve(solver=cp.HIGHS, mip_rel_gap=0.0)
        if x.value is None:
            return np.nan, 0.0
        return float(problem.value), excess(of_rows[x.value > 0.5].sum(axis=0), lower, upper)

    ours, found = timed(run, repeats)
    theirs, peers = timed(lambda: [program(u) for u in range(n_peer)], 1)
    broken = [
        excess(rules[data.items[u, slate]].sum(axis=0), lower, upper)
        for u, slate in enumerate(found.chosen)
        if found.feasible[u]
    ]
    return row(
        ours, theirs, len(data.items), n_peer, found.objective, found.bound, max(broken),
        "cvxpy, fresh MILP a user, HiGHS", [p[0] for p in peers], [p[1] for p in peers],
        programs=float(found.solves.mean()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--peer-users", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    few, repeats = min(arguments.users, arguments.peer_users), arguments.repeats
    # HiGHS may write to the process's standard output, past sys.stdout; standard error gets it instead.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        data = Instance(arguments.users, np.random.default_rng(arguments.seed))
        rows = {
            "diverse": diverse(data, 0.3, 1e-3, few, repeats),
            "diverse_half": diverse(data, 0.5, 1e-3, few, repeats),
            "diverse_exact": diverse(data, 0.3, 0.0, few, repeats),
            "exposure": exposure(data, few, repeats),
            "overlapping": overlapping(data, False, few, repeats),
            "knapsack": overlapping(data, True, few, repeats),
        }
        if arguments.json:
            print(json.dumps(rows), file=out)
        else:
            for name, figures in rows.items():
                print(name, *(f"  {key}: {value}" for key, value in figures.items()), sep="\n", file=out)


if __name__ == "__main__":
    main()
