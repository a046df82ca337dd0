"""How long and how much memory a synthetic edition takes, beside a plain loop over users.

    python benchmarks/synthetic.py [--small] [--json]

The default is the large edition: 1,000,000 users x 100,000 items, promised in under 2 minutes and 8 GB on 2
cores. The peer is the obvious program: for each user a Dirichlet taste, the dense choice probabilities, and
``Generator.choice``. It runs for 200 users of the same edition, in the same process, once memory is read;
``naive_over_ours`` is the ratio of seconds a user.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time

import numpy as np

from recsys_budget.data.synthetic import LARGE, SyntheticData, make_interactions

NAIVE_USERS = 200


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def naive_seconds_per_user(data: SyntheticData, rng: np.random.Generator) -> float:
    phi = data.phi.toarray()
    base = np.full(len(phi), data.spec.concentration / len(phi))
    start = time.perf_counter()
    for draws in data.draws[:NAIVE_USERS]:
        chance = rng.dirichlet(base) @ phi
        items = np.unique(rng.choice(len(chance), size=draws, p=chance / chance.sum()))
        np.clip(np.rint(rng.normal(3.6, 1.1, len(items))), 1, 5)
    return (time.perf_counter() - start) / min(NAIVE_USERS, len(data.draws))


def measure(small: bool) -> dict[str, float]:
    spec = dataclasses.replace(LARGE, n_users=20_000, n_items=5_000) if small else LARGE
    start = time.perf_counter()
    data = make_interactions(spec, rng=0)
    seconds = time.perf_counter() - start
    peak = peak_mb()
    naive = naive_seconds_per_user(data, np.random.default_rng(0))
    return {
        "users": spec.n_users,
        "items": spec.n_items,
        "interactions": len(data.interactions),
        "seconds": round(seconds, 3),
        "peak_mb": round(peak, 1),
        "naive_over_ours": round(naive / (seconds / spec.n_users), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="20,000 users x 5,000 items")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments.small)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:>16} {value:,}")


if __name__ == "__main__":
    main()
