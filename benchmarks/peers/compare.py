"""How the re-ranker's benchmark times a route and its peers, and counts how good peers are."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers.generated import Generated, K
from peers.heuristics import greedy_dpp, mmr, xquad

Row = dict[str, Any]
TRADES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def clock() -> float:
    """Seconds of the clock on the wall, or those that this process kept a processor busy."""
    return time.process_time() if os.environ.get("BENCHMARK_CLOCK") == "cpu" else time.perf_counter()


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def least(run: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least seconds of the repeats, and the answer."""
    best, answer = np.inf, None
    for _ in range(repeats):
        start = clock()
        answer = run()
        best = min(best, clock() - start)
    return best, answer


def gap_of(objective: Any, bound: Any) -> float:
    """Relative gap of the mean, over users with a slate."""
    return float((np.nanmean(bound) - np.nanmean(objective)) / abs(np.nanmean(bound)))


def peer(
    choose: Callable[[int], Any], n: int, value: Callable[[NDArray[Any]], NDArray[Any]],
    over: Callable[[NDArray[Any]], NDArray[Any]], bound: NDArray[Any],
) -> Row:  # fmt: skip
    """Run a peer on the first users.

    Args:
        choose: From a user to rows of candidates.
        n: Users.
        value: Objective of slates, shape ``(n,)``.
        over: By how much each breaks the quotas.
        bound: Our bound on each user's objective; nan for users who have no slate, who do not count.
    """
    choose(0)
    seconds, slates = least(lambda: [choose(u) for u in range(n)], 1)
    chosen = np.array(slates)
    there = np.isfinite(bound[:n])
    return {
        "us_per_user": 1e6 * seconds / n,
        "users": n,
        "share_of_bound": float(np.nanmean(value(chosen)[there]) / bound[:n][there].mean()),
        "users_broken": float((over(chosen)[there] > 1e-6).mean()),
    }


def best_of(settings: Mapping[float, Row]) -> Row:
    """The setting with the best objective, and its name."""
    setting = max(settings, key=lambda s: settings[s]["share_of_bound"])
    return settings[setting] | {"setting": setting}


def heuristics(
    data: Generated, relevance: NDArray[Any], n: int, value: Any, over: Any, bound: NDArray[Any]
) -> dict[str, Row]:
    """The heuristics, each at its best setting."""
    unit, member = data.unit, data.member
    scaled = relevance[:n] / relevance[:n].max(axis=1, keepdims=True)

    def run(method: Any, features: NDArray[np.float64], settings: tuple[float, ...]) -> Row:
        return best_of(
            {
                s: peer(lambda u: method(scaled[u], features[data.items[u]], K, s), n, value, over, bound)  # noqa: B023
                for s in settings
            }
        )

    return {
        "MMR": run(mmr, unit, TRADES),
        "greedy DPP": run(greedy_dpp, unit, SHARPNESS),
        "xQuAD": run(xquad, member, tuple(round(1.0 - t, 2) for t in TRADES)),
    }


def row(
    seconds: float, n: int, gap: float, violations: float, memory: float, peers: dict[str, Row], **more: Any
) -> Row:
    ours = 1e6 * seconds / n
    sound = {k: p for k, p in peers.items() if p["share_of_bound"] >= 0.999 and p["users_broken"] == 0.0}
    named = (
        min(sound, key=lambda k: sound[k]["us_per_user"])
        if sound
        else max(peers, key=lambda k: (-peers[k]["users_broken"], peers[k]["share_of_bound"]))
    )
    return {
        "us_per_user": ours,
        "users": n,
        "gap": gap,
        "violations": violations,
        "peer": named,
        "peer_over_ours": peers[named]["us_per_user"] / ours,
        "peak_mb": memory,
        **more,
        "peers": peers,
    }
