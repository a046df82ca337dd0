"""What rules about all slates cost in engagement within a privacy budget, beside the optimum without one.

    python benchmarks/private_prices.py [--json] [--scale] [--repeats 10] [--epsilons 0.5 1 2 4 8]

Each generated user has 100 candidates in 8 categories and a slate of 10: at least 1 item of one category,
at most 4 of another. There are 40 providers, Zipf-like in size; each must get at least 60% of a fair share of
all places and at most twice one. Relevance is gamma. delta is 1e-6, beta 0.05. Rows:

- ``10k_40``: 10,000 users; ``--scale`` adds ``100k_40``.
- ``10k_40_capped``: the same with at most 2 items of a provider in a slate in place of the category rules,
  which halves the noise.
- ``10k_40_floors_30%``: floors at 30% of a fair share instead.

Figures, for each epsilon of the private prices alone: mean engagement of handed-out slates over that of the
optimum without privacy (``kept``); what their certificates say at most was given up (``given_up``); the share
of runs that ended without proof (``unproven``); the share that handed out slates which break a bound
(``broken``), to be at most beta; the largest ``margin`` over the floor; seconds over those of the optimum.
``naive_broken`` is the share of broken runs where the same noisy prices aim at the bounds themselves and
nothing is proven, and ``naive_worst`` the largest violation as a share of the floor. "inf" is the optimum.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    GroupMaximum,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError, UnprovenBoundsError
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, epsilon, smallest_noise
from recsys_budget.rerank import PrivateCertificate, PrivateReranker, Reranker
from recsys_budget.rerank.proof import Proof

K, N_ITEMS, N_CANDIDATES, N_PROVIDERS, N_CATEGORIES = 10, 2_000, 100, 40, 8
DELTA, BETA = 1e-6, 0.05


def zipf(n: int, power: float) -> NDArray[np.float64]:
    weight = 1.0 / np.arange(1, n + 1) ** power
    return weight / weight.sum()


def generate(n_users: int) -> tuple[pd.DataFrame, ItemCatalogue]:
    rng = np.random.default_rng(0)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": np.arange(N_ITEMS),
                "provider": [f"p{p}" for p in rng.choice(N_PROVIDERS, N_ITEMS, p=zipf(N_PROVIDERS, 0.9))],
                "categories": [f"c{c}" for c in rng.choice(N_CATEGORIES, N_ITEMS, p=zipf(N_CATEGORIES, 0.8))],
            }
        )
    )
    # Each user's candidates are a random stretch of a random order, so that none comes twice.
    start, stride = rng.integers(0, N_ITEMS, n_users), 1 + 2 * rng.integers(0, N_ITEMS // 2, n_users)
    stride[stride % 5 == 0] += 2
    places = (start[:, None] + stride[:, None] * np.arange(N_CANDIDATES)) % N_ITEMS
    items = rng.permutation(N_ITEMS)[places]
    frame = pd.DataFrame(
        {
            "user": np.repeat(np.arange(n_users), N_CANDIDATES),
            "item": items.ravel(),
            "relevance": rng.gamma(2.0, size=items.size),
        }
    )
    return frame, catalogue


def rules(kind: str) -> list[Constraint]:
    own = (
        [GroupMaximum(2)] if kind.endswith("capped") else [CategoryMinimum("c3", 1), CategoryMaximum("c0", 4)]
    )
    floor = 0.3 if kind.endswith("30%") else 0.6
    fair = 1.0 / N_PROVIDERS
    return [SlateSize(K), *own, ProviderMinimum(share=floor * fair), ProviderMaximum(share=2.0 * fair)]


class Truth:
    """What only somebody who may read everything can say of slates."""

    def __init__(self, frame: pd.DataFrame, catalogue: ItemCatalogue, asked: Sequence[Constraint]) -> None:
        best = frame["relevance"].to_numpy().reshape(-1, N_CANDIDATES)
        self.best = np.sort(best, axis=1)[:, -K:].sum(axis=1)
        floor = next(rule for rule in asked if isinstance(rule, ProviderMinimum))
        self.low = float(floor.share or 0.0) * K * len(self.best)
        self.high = 2.0 * K * len(self.best) / N_PROVIDERS
        self.codes = catalogue.provider_codes

    def engagement(self, slates: pd.DataFrame) -> float:
        """Mean share of each user's best."""
        total = slates["relevance"].to_numpy().reshape(-1, K).sum(axis=1)
        return float((total / self.best[slates["user"].to_numpy(np.int64)[::K]]).mean())

    def violation(self, slates: pd.DataFrame) -> float:
        """Places that the worst bound is broken by."""
        shows = np.bincount(self.codes[slates["item"].to_numpy(np.int64)], minlength=N_PROVIDERS)
        return float(max(0.0, (self.low - shows).max(), (shows - self.high).max()))


def noise_for(target: float) -> float:
    return smallest_noise(lambda s: [GaussianMechanism(s)], lambda m: epsilon(m, DELTA) <= 0.998 * target)


def run(frame: pd.DataFrame, catalogue: ItemCatalogue, asked: list[Constraint], target: float) -> Any:
    reranker = PrivateReranker(
        constraints=asked,
        declared_users=frame["user"].nunique(),
        noise_multiplier=noise_for(target),
        beta=BETA,
    )
    ledger = PrivacyLedger(PrivacyBudget(target, DELTA))
    return reranker.rerank(frame, catalogue, ledger=ledger)


def row(kind: str, epsilons: Sequence[float], repeats: int) -> dict[str, Any]:
    n_users = 100_000 if kind.startswith("100k") else 10_000
    frame, catalogue = generate(n_users)
    asked = rules(kind)
    truth = Truth(frame, catalogue, asked)
    start = time.perf_counter()
    optimum = Reranker(constraints=asked).rerank(frame, catalogue)
    reference = time.perf_counter() - start
    most = truth.engagement(optimum.frame)
    answer: dict[str, Any] = {
        "inf": {"kept": 1.0, "engagement": most, "broken": truth.violation(optimum.frame) > 0}
    }
    for target in epsilons:
        answer[f"{target:g}"] = at(target, frame, catalogue, asked, truth, most, reference, repeats)
    return answer


def at(
    target: float,
    frame: pd.DataFrame,
    catalogue: ItemCatalogue,
    asked: list[Constraint],
    truth: Truth,
    most: float,
    reference: float,
    repeats: int,
) -> dict[str, Any]:
    kept, given_up, broken, unproven, seconds, margins = [], [], 0, 0, [], []
    for _ in range(repeats):
        start = time.perf_counter()
        try:
            slates = run(frame, catalogue, asked, target)
        except SpecificationError as refusal:
            return {"refused": str(refusal)}
        except UnprovenBoundsError:
            unproven += 1
            continue
        seconds.append(time.perf_counter() - start)
        kept.append(truth.engagement(slates.frame) / most)
        given_up.append(slates.certificate.given_up)
        margins.append(slates.certificate.bounds["margin"].max())
        broken += truth.violation(slates.frame) > 0.0
    naive = []
    with mock.patch.object(Proof, "quantile", 0.0), mock.patch.object(PrivateCertificate, "proven", True):
        for _ in range(repeats):
            naive.append(truth.violation(run(frame, catalogue, asked, target).frame))
    return {
        "kept": float(np.mean(kept)) if kept else None,
        "given_up": float(np.median(given_up)) if kept else None,
        "unproven": unproven / repeats,
        "broken": broken / repeats,
        "beta": BETA,
        "margin": float(np.mean(margins)) / truth.low if kept else None,
        "seconds_over": min(seconds) / reference if seconds else None,
        "naive_broken": float(np.mean(np.array(naive) > 0.0)),
        "naive_worst": float(np.max(naive)) / truth.low,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--scale", action="store_true", help="100,000 users as well")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0])
    options = parser.parse_args()
    kinds = ["10k_40", "10k_40_capped", "10k_40_floors_30%", *(["100k_40"] if options.scale else [])]
    answer = {kind: row(kind, options.epsilons, options.repeats) for kind in kinds}
    if options.json:
        print(json.dumps(answer))
        return
    for kind, figures in answer.items():
        print(kind)
        print(pd.DataFrame(figures).T.to_string())


if __name__ == "__main__":
    main()
