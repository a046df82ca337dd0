"""Time, gap and memory of the laminar and the coupled route on generated users, beside HiGHS, in one run.

    python benchmarks/routes_coupled.py [--json] [--scale] [--peer-10k] [--repeats 3] [--threads 1]

Each user has 200 candidates in 18 categories and a slate of 10: at least 2, 1, 1 items from three categories,
at most 4, 3, 3 from three others. Providers are Zipf-like; each must get at least 60% of a fair share of all
places and at most 2 (of 40 providers) or 4 (of 400) times one. Gains are gamma. Rows:

- ``laminar``: no rule couples users. The peer is one HiGHS linear program a user.
- ``coupled_<users>_<providers>``: cold. The peer of the first is HiGHS on the whole integer program; with
  ``--peer-10k`` also of the second (a minute).
- ``warm_<users>_<providers>``: the bounds of two providers move by 1 to 2%, starting from the answer before;
  the peer is a cold solve of the same problem.
- ``--scale`` adds a million users and 400 providers, with gains in float32.

Figures: microseconds a user (least of the repeats), relative gap to the certified bound, the largest
violation counted again from the slates, the peer's time over ours, and the largest memory of the process so
far.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from recsys_budget.rerank.routes.coupled import CoupledSlates, solve_coupled
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows

N, K, N_CATEGORIES, N_ITEMS = 200, 10, 18, 20_000
Problem = tuple[NDArray[Any], NDArray[Any], NDArray[Any], LaminarTree, PopulationRows]


def zipf(n: int, power: float) -> NDArray[np.float64]:
    weight = 1.0 / np.arange(1, n + 1) ** power
    return weight / weight.sum()


def generate(n_users: int, n_providers: int, dtype: type = np.float64) -> Problem:
    rng = np.random.default_rng(0)
    category = rng.choice(N_CATEGORIES, N_ITEMS, p=zipf(N_CATEGORIES, 0.8))
    provider = rng.choice(n_providers, N_ITEMS, p=zipf(n_providers, 0.9))
    items, gains = np.empty(n_users * N, np.int32), np.empty(n_users * N, dtype)
    for first in range(0, n_users, 50_000):
        n = min(50_000, n_users - first)
        rows = slice(first * N, (first + n) * N)
        items[rows] = rng.integers(0, N_ITEMS, n * N)
        gains[rows] = np.sort(rng.gamma(2.0, size=(n, N)), axis=1)[:, ::-1].ravel()
    lower, upper = np.zeros(N_CATEGORIES, int), np.full(N_CATEGORIES, K)
    lower[[3, 7, 12]], upper[[0, 1, 2]] = [2, 1, 1], [4, 3, 3]
    tree = LaminarTree.partition(category, lower, upper, K)
    fair = K * n_users / n_providers
    ceiling = (2 if n_providers < 100 else 4) * fair
    rows = PopulationRows.groups(provider, np.full(n_providers, np.ceil(0.6 * fair)), np.floor(ceiling))
    return np.arange(n_users + 1) * N, gains, items, tree, rows


def least(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least seconds of the repeats, and the answer."""
    best, answer = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        answer = run()
        best = min(best, time.perf_counter() - start)
    return best, answer


def of_quotas(items: NDArray[Any], tree: LaminarTree) -> sparse.csc_array:
    """One user's quotas as rows over the candidates: the slate, then each category."""
    leaf = tree.leaf_of_item[items]
    own = sparse.csc_array((np.ones(len(leaf)), (leaf, np.arange(len(leaf)))), (len(tree.parent), len(leaf)))
    return sparse.csc_array(sparse.vstack([np.ones((1, len(leaf))), own.tocsr()[1:]]))


def one_program_a_user(problem: Problem, n_users: int) -> float:
    """Seconds a user of HiGHS on the quotas alone."""
    offsets, gains, items, tree, _ = problem
    start = time.perf_counter()
    for user in range(n_users):
        rows = slice(offsets[user], offsets[user + 1])
        quotas = of_quotas(items[rows], tree).toarray()
        linprog(
            -gains[rows],
            A_ub=np.vstack([quotas[1:], -quotas[1:]]),
            b_ub=np.concatenate([tree.upper[1:], -tree.lower[1:]]),
            A_eq=quotas[:1],
            b_eq=[K],
            bounds=(0, 1),
        )
    return (time.perf_counter() - start) / n_users


def whole_program(problem: Problem, feasible: NDArray[np.bool_]) -> tuple[float, float]:
    """Seconds and objective of HiGHS on everybody's integer program."""
    offsets, gains, items, tree, rows = problem
    start = time.perf_counter()
    users = np.flatnonzero(feasible)
    at = (offsets[users, None] + np.arange(N)).ravel()
    blocks = [of_quotas(items[offsets[user] : offsets[user + 1]], tree) for user in users]
    matrix = sparse.vstack([sparse.block_diag(blocks), rows.coefficients[:, items[at]]])
    answer = milp(
        -gains[at],
        constraints=LinearConstraint(
            sparse.csc_array(matrix),
            np.concatenate([np.tile(tree.lower, len(users)), rows.lower]),
            np.concatenate([np.tile(tree.upper, len(users)), rows.upper]),
        ),
        integrality=np.ones(len(at)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6},
    )
    return time.perf_counter() - start, -answer.fun


def figures(
    seconds: float, n_users: int, answer: CoupledSlates | None, peer: str, peer_seconds: float
) -> Any:
    return {
        "us_per_user": 1e6 * seconds / n_users,
        "seconds": seconds,
        "gap": answer.gap if answer else 0.0,
        "violations": float(answer.violations.max()) if answer else 0.0,
        "peer": peer,
        "peer_over_ours": peer_seconds / seconds if peer_seconds else None,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--scale", action="store_true", help="also a million users")
    parser.add_argument("--peer-10k", action="store_true", help="HiGHS on 10,000 users too")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    report: dict[str, Any] = {}

    problem = generate(100_000, 40)
    solve_laminar(*problem[:4], threads=options.threads)  # compiles
    seconds, _ = least(lambda: solve_laminar(*problem[:4], threads=options.threads), options.repeats)
    peer = one_program_a_user(problem, 50) * 100_000
    report["laminar"] = figures(seconds, 100_000, None, "HiGHS, one linear program a user", peer)

    sizes = [(1_000, 40), (10_000, 40), (10_000, 400), (100_000, 40), (100_000, 400)]
    solve_coupled(*generate(500, 40), threads=options.threads)  # compiles
    for n_users, n_providers in sizes + ([(1_000_000, 400)] if options.scale else []):
        million = n_users == 1_000_000
        name = f"{'1m' if million else f'{n_users // 1000}k'}_{n_providers}"
        repeats, threads = (1, None) if million else (options.repeats, options.threads)
        problem = generate(n_users, n_providers, np.float32 if million else np.float64)
        if million:  # compiles for float32
            solve_coupled(*generate(500, 40, np.float32), threads=threads)
        seconds, answer = least(lambda: solve_coupled(*problem, threads=threads), repeats)  # noqa: B023
        peer, peer_seconds = "none", 0.0
        if (n_users, n_providers) == (1_000, 40) or (options.peer_10k and name == "10k_40"):
            peer_seconds, objective = whole_program(problem, answer.feasible)
            peer = f"HiGHS, one integer program; its objective over ours {objective / answer.objective:.9f}"
        report[f"coupled_{name}"] = figures(seconds, n_users, answer, peer, peer_seconds)

        rows = problem[4]
        lower, upper = rows.lower.copy(), rows.upper.copy()
        lower[-1], upper[0] = np.ceil(1.02 * lower[-1]), np.floor(1.01 * upper[0])
        moved = replace(rows, lower=lower, upper=upper)
        cold, _ = least(lambda: solve_coupled(*problem[:4], moved, threads=threads), repeats)  # noqa: B023
        seconds = np.inf
        for _ in range(repeats):
            before = solve_coupled(*problem, threads=threads)
            once, warm = least(
                lambda: solve_coupled(*problem[:4], moved, warm=before, threads=threads),  # noqa: B023
                1,
            )
            seconds = min(seconds, once)
        report[f"warm_{name}"] = figures(seconds, n_users, warm, "ours, cold", cold)

    if options.json:
        print(json.dumps(report))
    else:
        for name, row in report.items():
            print(f"{name:18} " + "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
