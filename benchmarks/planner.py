"""One budget over four uses: the planner beside equal epsilons, in one run.

    python benchmarks/planner.py [--json] [--repeats 3]

Counts, a Gram matrix, private gradient descent (1,000 steps, rate 0.02) and held-out metrics share epsilon 3
at delta 1e-5. Their errors are weights times the variance of the noise. Rows:

- ``equal_epsilons``: each use gets a quarter of epsilon and delta, which add up by basic composition.
- ``equal_epsilons_by_pld``: each use the same epsilon again, as much as the four together may have by PLD.
- ``plan``: ``plan_budget`` for an empty ledger.
- ``plan_under_filter``: the same for a ledger that has granted a small request, so that its filter counts.

Figures: planned error; epsilon of the four together by PLD; seconds (least of the repeats, with nothing kept
from the run before); noise multiplier of each use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from recsys_budget.privacy import (
    GaussianMechanism,
    Mechanism,
    PrivacyBudget,
    PrivacyLedger,
    Use,
    accounting,
    epsilon,
    plan_budget,
    smallest_noise,
)

BUDGET = PrivacyBudget(3.0, 1e-5)
USES = (
    Use("counts", error=1.0),
    Use("gram", error=40.0),
    Use("sgd", error=60.0, sample_rate=0.02, steps=1000),
    Use("metrics", error=5.0),
)


def equal_epsilons() -> list[Mechanism]:
    part = len(USES)
    return [
        use.mechanism(
            smallest_noise(
                lambda s, use=use: [use.mechanism(s)],
                lambda m: epsilon(m, BUDGET.delta / part) <= BUDGET.epsilon / part,
            )
        )
        for use in USES
    ]


def equal_epsilons_by_pld() -> list[Mechanism]:
    alone = equal_epsilons()
    fits = PrivacyLedger(BUDGET).fits

    def release(factor: float) -> list[Mechanism]:
        return [use.mechanism(factor * m.noise_multiplier) for use, m in zip(USES, alone, strict=True)]

    return release(smallest_noise(release, fits))


def planned() -> list[Mechanism]:
    return list(plan_budget(BUDGET, USES).mechanisms)


def planned_under_filter() -> list[Mechanism]:
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(30.0)], purpose="before")
    return list(plan_budget(ledger, USES).mechanisms)


def row(split: Callable[[], list[Mechanism]], repeats: int) -> dict[str, Any]:
    seconds = []
    for _ in range(repeats):
        for cache in (accounting._epsilon, accounting._one_step, accounting._one_step_renyi):
            cache.cache_clear()
        start = time.perf_counter()
        mechanisms = split()
        seconds.append(time.perf_counter() - start)
    noise = {use.name: m.noise_multiplier for use, m in zip(USES, mechanisms, strict=True)}
    return {
        "error": sum(use.error * noise[use.name] ** 2 for use in USES),
        "epsilon": epsilon(mechanisms, BUDGET.delta),
        "seconds": min(seconds),
        "noise": noise,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = {
        "equal_epsilons": row(equal_epsilons, arguments.repeats),
        "equal_epsilons_by_pld": row(equal_epsilons_by_pld, arguments.repeats),
        "plan": row(planned, arguments.repeats),
        "plan_under_filter": row(planned_under_filter, arguments.repeats),
    }
    for figures in rows.values():
        figures["error_over_plan"] = figures["error"] / rows["plan"]["error"]
    if arguments.json:
        print(json.dumps(rows))
    else:
        print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
