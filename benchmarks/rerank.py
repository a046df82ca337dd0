"""Time, gap and memory of the re-ranker on generated users, beside solvers and heuristics in the same run.

    python benchmarks/rerank.py [--json] [--rows laminar diverse ...] [--scale] [--cpu] [--small]

Each user has 200 candidates in 18 categories and a slate of 10; see ``peers/generated.py``. Rows:

- ``laminar``: quotas on the primary category; ``laminar_numpy`` does without numba.
- ``coupled_<users>_<providers>``: the same, with a floor and a ceiling on every provider's share of all
  places. ``--scale`` adds a million users with gains in float32, on all cores.
- ``warm_<users>_<providers>``: the same again after two bounds have moved a little.
- ``diverse``: weight 0.3 on intra-list diversity, with quotas; ``diverse_high`` puts 0.9.
- ``coupled_diverse``: ``diverse`` for 1,000 users with floors and ceilings of ``coupled``, timed as a whole;
  ``moved_us_per_user`` is the same again after every floor has moved by 2%, from prepared candidates.
- ``exposure``: parity of two groups in expectation; ``exposure_4_groups`` of four.
- ``overlapping``: quotas on all categories of an item; ``knapsack`` caps a cost as well, and
  ``diverse_overlapping`` adds weight 0.3 on diversity, and is timed as a whole.
- ``frame_boundary``: a long pandas frame in, a long frame of slates out, and nothing between.

Figures of a row: ``us_per_user``, microseconds of the route on one thread, least of the repeats;
``whole_us_per_user``, of a call of ``Reranker.rerank`` from frame to checked slates; ``gap``, of the mean to
the certified bound; ``violations``, the largest, counted again from the slates; ``peak_mb``, memory of the
process, which works on this row alone, before peers start. Each peer in ``peers`` runs on the first users,
``users`` of them, and has its time a user, the share of our bound that it reaches, and the share of users
whose quotas it breaks. Heuristics are shown at the setting, of seven, with the best objective on these very
users. ``peer`` names the fastest that reaches 99.9% of the bound and breaks nothing, or else the one that
breaks fewest quotas; ``peer_over_ours`` compares times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import solvers
from peers.compare import Row, clock, gap_of, heuristics, least, peak_mb, peer, row
from peers.generated import (
    COST_CAP,
    MAXIMUMS,
    MINIMUMS,
    NAMES,
    Generated,
    K,
    N,
    broken,
    gained,
    generate,
    primary,
)  # fmt: skip
from peers.heuristics import ProviderMaxMin
from scipy import sparse

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
)
from recsys_budget.rerank import EngagementDiversity, Reranker
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.exposure import solve_exposure
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar
from recsys_budget.rerank.routes.parities import solve_parities


def rules() -> list[Constraint]:
    return [
        SlateSize(K),
        *(CategoryMinimum(NAMES[c], count) for c, count in MINIMUMS.items()),
        *(CategoryMaximum(NAMES[c], count) for c, count in MAXIMUMS.items()),
    ]


def whole(data: Generated, weight: float, users: NDArray[np.intp], primary_only: bool) -> float:
    """Microseconds a user of the whole call, from frame to checked slates."""
    catalogue = data.catalogue(primary=primary_only)
    frame = data.frame(catalogue, users)
    reranker = Reranker(EngagementDiversity(weight), rules())
    seconds, slates = least(lambda: reranker.rerank(frame, catalogue, progress=False), 2)
    return 1e6 * seconds / len(slates)


def laminar(small: bool) -> Row:
    data = generate(2_000 if small else 100_000)
    call = (data.offsets, data.gains.ravel(), data.items.ravel(), data.tree)
    solve_laminar(*call, threads=1)  # compiles
    seconds, found = least(lambda: solve_laminar(*call, threads=1), 5)
    memory, over = peak_mb(), broken(found.chosen, primary(data), data)
    bound = np.where(found.feasible, found.objective, np.nan)
    low, high = data.lower.astype(float), np.where(data.upper < K, data.upper, np.inf)
    low[low == 0.0] = -np.inf
    asked = np.isfinite(low) | np.isfinite(high)
    program = (data, primary(data)[:, asked], low[asked], high[asked])

    def measured(choose: Any, n: int) -> Row:
        return peer(choose, n, partial(gained, data=data), partial(_over, data, primary(data)), bound)

    peers = {
        "HiGHS, one linear program a user": measured(solvers.with_highs(*program, whole=False), 200),
        "cvxpy with Parameters, HiGHS": measured(solvers.with_cvxpy(*program, whole=False), 50),
        "top k, no quotas": measured(lambda u: np.arange(K), 200),
    } | heuristics(
        data, data.gains, 200, partial(gained, data=data), partial(_over, data, primary(data)), bound
    )
    users = np.flatnonzero(found.feasible)[:20_000]
    return row(
        seconds, data.n_users, gap_of(gained(found.chosen, data), bound), float(over.max()), memory, peers,
        whole_us_per_user=whole(data, 0.0, users, True),
    )  # fmt: skip


def _over(data: Generated, of_item: NDArray[np.float64], chosen: NDArray[Any]) -> NDArray[np.float64]:
    return broken(chosen, of_item, data)


def coupled(n_users: int, n_providers: int, small: bool) -> Row:
    million = n_users >= 1_000_000
    if small:
        n_users = min(n_users, 1_000)
    dtype = np.float32 if million else np.float64
    threads = None if million else 1

    def call(data: Generated) -> Any:
        return solve_coupled(
            data.offsets, data.gains.ravel(), data.items.ravel(), data.tree, data.shares, threads=threads
        )

    call(generate(500, dtype=dtype))  # compiles
    data = generate(n_users, n_providers, dtype=dtype)
    seconds, found = least(lambda: call(data), 1 if million else 3)
    memory, slates = peak_mb(), found.chosen
    outside = float(found.violations.max())
    over = max(
        float(broken(slates[start : start + 50_000], primary(data), _part(data, start)).max())
        for start in range(0, n_users, 50_000)
    )
    peers: dict[str, Row] = {}
    if n_users <= 10_000:
        few = np.flatnonzero(found.feasible)
        if n_users > 1_000:
            peers["HiGHS, one integer program, stopped after 40 s"] = _together(data, few, found, 40.0)
        else:
            peers["HiGHS, one integer program"] = _together(data, few, found, 600.0)
            peers["cvxpy, HiGHS, one integer program"] = _together(data, few, found, 600.0, by_cvxpy=True)
    peers["P-MMF"] = _max_min(data, found, 20_000)
    return row(
        seconds, n_users, found.gap, max(outside, over), memory, peers,
        evaluations=found.evaluations,
    )  # fmt: skip


def warm(n_users: int, n_providers: int, small: bool) -> Row:
    """A floor and a ceiling move by 1 to 2%, and the answer before is the start; the peer starts afresh."""
    data = generate(min(n_users, 1_000) if small else n_users, n_providers)
    call = (data.offsets, data.gains.ravel(), data.items.ravel(), data.tree)
    rows = data.shares
    lower, upper = rows.lower.copy(), rows.upper.copy()
    lower[-1], upper[0] = np.ceil(1.02 * lower[-1]), np.floor(1.01 * upper[0])
    moved = replace(rows, lower=lower, upper=upper)
    cold, afresh = least(lambda: solve_coupled(*call, moved, threads=1))
    seconds, found = np.inf, afresh
    for _ in range(3):
        before = solve_coupled(*call, rows, threads=1)
        once, found = least(lambda: solve_coupled(*call, moved, warm=before, threads=1), 1)  # noqa: B023
        seconds = min(seconds, once)
    peers = {
        "ours, cold": {
            "us_per_user": 1e6 * cold / data.n_users,
            "users": data.n_users,
            "share_of_bound": afresh.objective / found.bound,
            "users_broken": 0.0,
        }
    }
    return row(seconds, data.n_users, found.gap, float(found.violations.max()), peak_mb(), peers)


def _part(data: Generated, start: int) -> Any:
    return Generated(data.items[start : start + 50_000], data.gains[start : start + 50_000], *_facts(data))


def _facts(data: Generated) -> tuple[Any, ...]:
    return data.member, data.first, data.provider, data.cost, data.lower, data.upper, data.n_providers


def _together(
    data: Generated, users: NDArray[np.intp], found: Any, seconds: float, by_cvxpy: bool = False
) -> Row:
    start = clock()
    if by_cvxpy:
        chosen = solvers.everybody_with_cvxpy(data, users, seconds)
    else:
        chosen, _ = solvers.everybody_with_highs(data, users, seconds)
    spent = clock() - start
    return {"us_per_user": 1e6 * spent / len(users), "users": len(users)} | _quality(
        data, users, chosen, found
    )


def _max_min(data: Generated, found: Any, most: int) -> Row:
    """P-MMF over the first users, at the setting that breaks the fewest rows."""
    n = min(data.n_users, most)
    alone = Generated(data.items[:n], data.gains[:n], *_facts(data))
    rows, users, settings = alone.shares, np.arange(n), {}
    relevance = data.gains[:n] / data.gains[:n].max(axis=1, keepdims=True)
    for trade, step in itertools.product((0.01, 0.1, 1.0), (1e-4, 1e-3)):
        method = ProviderMaxMin(rows.upper / n, rows.upper, trade, step)
        start = clock()
        chosen = np.array([method.choose(relevance[u], data.provider[data.items[u]], K) for u in users])
        spent = clock() - start
        quality = _quality(alone, users, chosen, found, scale=n / data.n_users)
        settings[trade, step] = {
            "us_per_user": 1e6 * spent / n,
            "users": n,
            "setting": [trade, step],
        } | quality
    return min(settings.values(), key=lambda s: (s["rows_broken"], -s["share_of_bound"]))


def _quality(
    data: Generated, users: NDArray[np.intp], chosen: NDArray[Any], found: Any, scale: float = 1.0
) -> Row:
    items = np.take_along_axis(data.items[users], np.maximum(chosen, 0), axis=1)
    total = float(np.take_along_axis(data.gains[users], np.maximum(chosen, 0), axis=1).sum())
    loads = np.bincount(data.provider[items.ravel()], minlength=data.n_providers)
    rows, counts = data.shares, primary(data)[items].sum(axis=1)
    over = np.maximum(data.lower - counts, counts - data.upper).max(axis=1)
    missed = chosen[:, 0] < 0
    if missed.all():
        return {"share_of_bound": 0.0, "users_broken": 1.0, "rows_broken": data.n_providers}
    return {
        "share_of_bound": total / (found.bound * scale),
        "users_broken": float((over > 0.0).mean()),
        "rows_broken": int(((loads < rows.lower) | (loads > rows.upper)).sum()),
    }


def diverse(weight: float, small: bool) -> Row:
    data = generate(200 if small else 500 if weight > 0.5 else 2_000)
    pairs, unit, factors = K * (K - 1), data.unit, sparse.csr_array(data.unit)
    gains = (1.0 - weight) * data.gains / data.gains[:, :K].sum(axis=1, keepdims=True)
    linear = np.full(len(data.member), weight / K + weight / pairs)
    call = (data.offsets, gains.ravel(), data.items.ravel(), data.tree, factors, weight / pairs, linear)
    solve_diverse(*call, threads=1)
    seconds, found = least(lambda: solve_diverse(*call, threads=1))
    memory, over = peak_mb(), broken(found.chosen, primary(data), data)

    def value(chosen: NDArray[Any]) -> NDArray[np.float64]:
        items = np.take_along_axis(data.items[: len(chosen)], np.maximum(chosen, 0), axis=1)
        own = np.take_along_axis(gains[: len(chosen)], np.maximum(chosen, 0), axis=1).sum(axis=1)
        z = unit[items].sum(axis=1)
        return own + linear[items].sum(axis=1) - weight / pairs * np.square(z).sum(axis=1)

    n, quotas = (20 if small else 100), partial(_over, data, primary(data))
    relaxed = solvers.diverse_with_cvxpy(data, gains, linear, weight / pairs)
    peers = {
        "cvxpy with Parameters, Clarabel, relaxation rounded": peer(relaxed, n, value, quotas, found.bound)
    }
    peers |= heuristics(data, data.gains, n, value, quotas, found.bound)
    # Heuristics know of no quotas, so that they are also compared with the best slates without any.
    free = LaminarTree(np.zeros(len(data.member)), [-1], [K], [K])
    loose = solve_diverse(
        data.offsets[: n + 1], gains[:n].ravel(), data.items[:n].ravel(), free, *call[4:], threads=1
    )
    for name in ("MMR", "greedy DPP", "xQuAD"):
        share = peers[name]["share_of_bound"] * found.bound[:n][found.feasible[:n]].mean()
        peers[name]["share_without_quotas"] = float(share / loose.bound[found.feasible[:n]].mean())
    users = np.flatnonzero(found.feasible)
    catalogue = data.catalogue(primary=True)
    reranker = Reranker(EngagementDiversity(weight), rules(), route="general")
    few = data.frame(catalogue, users[: 3 if small else 10])
    spent, slates = least(lambda: reranker.rerank(few, catalogue, progress=False), 1)
    certificate = slates.certificate
    peers["HiGHS, integer programs with tangents"] = {
        "us_per_user": 1e6 * spent / len(slates),
        "users": len(slates),
        "share_of_bound": certificate.objective / certificate.bound,
        "users_broken": 0.0,
    }
    return row(
        seconds, data.n_users, gap_of(found.objective, found.bound), float(over.max()), memory, peers,
        largest_gap=float(np.nanmax((found.bound - found.objective) / found.bound)),
        whole_us_per_user=whole(data, weight, users, True),
    )  # fmt: skip


def exposure(n_groups: int, small: bool) -> Row:
    """Groups by primary category, so that the first has about a quarter of the items."""
    n = (200 if small else 20_000) if n_groups == 2 else (100 if small else 1_000)
    data = generate(n)
    group = np.searchsorted([1, 4, 9][: n_groups - 1], data.first, side="left")
    discount = 1.0 / np.log2(np.arange(K) + 2.0)
    gains = data.gains * np.where(group[data.items] == 0, 0.6, 1.0)
    order = np.argsort(-gains, axis=1, kind="stable")
    gains, items = np.take_along_axis(gains, order, axis=1), np.take_along_axis(data.items, order, axis=1)
    free = LaminarTree(np.zeros(len(group)), [-1], [K], [K])
    asked = (data.offsets, gains.ravel(), items.ravel(), free)
    averages = np.stack(
        [(group[items] == g) / (group[items] == g).sum(axis=1, keepdims=True) for g in range(n_groups)]
    )
    columns = (averages[:-1] - averages[1:]).reshape(n_groups - 1, -1).T

    def call() -> Any:
        if n_groups == 2:
            return solve_exposure(*asked, group, discount, threads=1)
        return solve_parities(*asked, columns, np.ones(n_groups - 1, bool), discount)

    call()
    seconds, found = least(call, 2)
    memory = peak_mb()
    if n_groups == 2:
        apart = float(np.nanmax(found.violation))
    else:
        shown = np.zeros((n, N, 1))
        for c in range(found.chances.shape[1]):
            rows, chance = np.maximum(found.rankings[:, c], 0), found.chances[:, c, None]
            np.put_along_axis(
                shown[..., 0],
                rows,
                np.take_along_axis(shown[..., 0], rows, axis=1) + chance * discount,
                axis=1,
            )
        sums = (columns.reshape(n, N, -1) * shown).sum(axis=1)
        apart = float(np.abs(sums).max())

    def measured(solve: Callable[[int], tuple[float, float]], n_peer: int) -> Row:
        solve(0)
        spent, answers = least(lambda: [solve(u) for u in range(n_peer)], 1)
        values, differ = np.array(answers).T
        return {
            "us_per_user": 1e6 * spent / n_peer,
            "users": n_peer,
            "share_of_bound": float(values.mean() / found.bound[:n_peer].mean()),
            "users_broken": float((differ > 1e-6).mean()),
        }

    of_users = group[items[:50]]
    peers = {
        "cvxpy with Parameters, HiGHS, doubly stochastic": measured(
            solvers.parity_with_cvxpy(gains, of_users, discount), 20
        ),
        "HiGHS, doubly stochastic": measured(solvers.parity_with_highs(gains, of_users, discount), 20),
    }
    return row(seconds, n, gap_of(found.objective, found.bound), apart, memory, peers)


def diverse_overlapping(small: bool) -> Row:
    """The whole call of the re-ranker, beside integer programs with tangents: its general route."""
    weight, data = 0.3, generate(50 if small else 300)
    catalogue, users = data.catalogue(primary=False), np.arange(data.n_users)
    frame = data.frame(catalogue, users)
    objective = EngagementDiversity(weight)

    def call(part: Any, route: str | None) -> Any:
        return Reranker(objective, rules(), route=route).rerank(part, catalogue, progress=False)

    call(data.frame(catalogue, users[:2]), None)
    seconds, slates = least(lambda: call(frame, None), 2)
    memory, certificate = peak_mb(), slates.certificate
    few = data.frame(catalogue, users[:10])
    spent, general = least(lambda: call(few, "general"), 1)
    bound = certificate.per_user["bound"].to_numpy()
    table = CandidateTable.read(frame, catalogue, K)

    def value(chosen: NDArray[Any]) -> NDArray[np.float64]:
        return objective.value_all(chosen, table.part(np.arange(len(chosen))))

    peers = {
        "HiGHS, integer programs with tangents": {
            "us_per_user": 1e6 * spent / len(general),
            "users": len(general),
            "share_of_bound": general.certificate.objective / float(bound[:10].mean()),
            "users_broken": 0.0,
        }
    } | heuristics(data, data.gains, 50, value, partial(_over, data, data.member), bound)
    return row(
        seconds, data.n_users, certificate.gap, certificate.largest_violation, memory, peers,
        route=certificate.route,
    )  # fmt: skip


def coupled_diverse(small: bool) -> Row:
    """The whole call of the re-ranker, beside one integer program with tangents: its general route."""
    data = generate(120 if small else 1_020)
    able = solve_laminar(data.offsets, data.gains.ravel(), data.items.ravel(), data.tree).feasible
    users = np.flatnonzero(able)[: 100 if small else 1_000]
    catalogue, n_few = data.catalogue(primary=True), 20 if small else 100
    objective = EngagementDiversity(0.3)

    def asked(floor: float) -> list[Constraint]:
        share = 1.0 / data.n_providers
        return [*rules(), ProviderMinimum(share=floor * share), ProviderMaximum(share=2.0 * share)]

    def call(n: int, route: str | None = None) -> Any:
        part = data.frame(catalogue, users[:n])
        reranker = Reranker(objective, asked(0.6), route=route)
        return reranker.rerank(part, catalogue, time_limit=60.0, progress=False)

    call(n_few)  # compiles
    seconds, slates = least(lambda: call(len(users)), 2)
    memory, certificate = peak_mb(), slates.certificate
    moved = np.inf
    for _ in range(2):
        prepared = Reranker(objective, asked(0.6)).prepare(data.frame(catalogue, users), catalogue)
        prepared.rerank(progress=False)
        once, _ = least(lambda: prepared.rerank(constraints=asked(0.612), progress=False), 1)  # noqa: B023
        moved = min(moved, once)
    ours = call(n_few).certificate
    spent, general = least(lambda: call(n_few, "general"), 1)
    peers = {
        f"HiGHS, one integer program with tangents for {n_few} users": {
            "us_per_user": 1e6 * spent / n_few,
            "users": n_few,
            "share_of_bound": general.certificate.objective / ours.bound,
            "users_broken": 0.0,
        }
    }
    return row(
        seconds, len(users), certificate.gap, certificate.largest_violation, memory, peers,
        route=certificate.route, moved_us_per_user=1e6 * moved / len(users),
    )  # fmt: skip


def overlapping(knapsack: bool, small: bool) -> Row:
    data = generate(100 if small else 1_000)
    asked = np.flatnonzero((data.lower > 0) | (data.upper < K))
    of_items = data.member[:, asked]
    low = np.where(data.lower > 0, data.lower, -np.inf)[asked]
    high = np.where(data.upper < K, data.upper, np.inf)[asked]
    if knapsack:
        of_items = np.column_stack([of_items, data.cost])
        low, high = np.append(low, -np.inf), np.append(high, COST_CAP)
    call = (data.offsets, data.gains.ravel(), data.items.ravel(), K, of_items, low, high)
    solve_direct(*call)
    seconds, found = least(lambda: solve_direct(*call))
    memory = peak_mb()

    def over(chosen: NDArray[Any]) -> NDArray[np.float64]:
        items = np.take_along_axis(data.items[: len(chosen)], np.maximum(chosen, 0), axis=1)
        sums = of_items[items].sum(axis=1)
        return np.maximum(0.0, np.maximum(low - sums, sums - high)).max(axis=1) * (chosen[:, 0] >= 0)

    value, n = partial(gained, data=data), 10 if small else 50
    program = (data, of_items, low, high)
    peers = {
        "HiGHS, one integer program a user": peer(
            solvers.with_highs(*program, whole=True), n, value, over, found.bound
        ),
        "cvxpy with Parameters, HiGHS": peer(
            solvers.with_cvxpy(*program, whole=True), n, value, over, found.bound
        ),
    } | heuristics(data, data.gains, n, value, over, found.bound)
    more = {"linear_programs": float(found.solves.mean())}
    if not knapsack:
        more["whole_us_per_user"] = whole(data, 0.0, np.flatnonzero(found.feasible), False)
    return row(
        seconds, data.n_users, gap_of(found.objective, found.bound), float(over(found.chosen).max()), memory,
        peers, **more,
    )  # fmt: skip


def frame_boundary(small: bool) -> Row:
    n = 2_000 if small else 20_000
    data = generate(n)
    catalogue = data.catalogue(primary=True)
    frame = data.frame(catalogue, np.arange(n))
    chosen = np.tile(np.arange(K, dtype=np.int32), (n, 1))
    shuffled = frame.sample(frac=1.0, random_state=0, ignore_index=True)
    seconds, _ = least(lambda: CandidateTable.read(frame, catalogue, K).slates(chosen))
    memory = peak_mb()
    disordered, _ = least(lambda: CandidateTable.read(shuffled, catalogue, K).slates(chosen))

    def sort_head() -> Any:
        ordered = frame.sort_values(["user", "relevance"], ascending=[True, False], kind="stable")
        return ordered.groupby("user", sort=False).head(K)

    few = frame.head(500 * N)
    plain, _ = least(sort_head, 1)
    applied, _ = least(lambda: few.groupby("user").apply(lambda part: part.nlargest(K, "relevance")), 1)
    same = {"share_of_bound": 1.0, "users_broken": 0.0}
    peers = {
        "pandas, sort_values and groupby.head": {"us_per_user": 1e6 * plain / n, "users": n} | same,
        "pandas, groupby.apply": {"us_per_user": 1e6 * applied / 500, "users": 500} | same,
    }
    return row(seconds, n, 0.0, 0.0, memory, peers, shuffled_us_per_user=1e6 * disordered / n)


ROWS: dict[str, Callable[[bool], Row]] = {
    "laminar": laminar,
    "laminar_numpy": laminar,
    "coupled_1k_40": partial(coupled, 1_000, 40),
    "coupled_10k_40": partial(coupled, 10_000, 40),
    "coupled_100k_40": partial(coupled, 100_000, 40),
    "coupled_10k_400": partial(coupled, 10_000, 400),
    "warm_10k_40": partial(warm, 10_000, 40),
    "diverse": partial(diverse, 0.3),
    "diverse_high": partial(diverse, 0.9),
    "coupled_diverse": coupled_diverse,
    "exposure": partial(exposure, 2),
    "exposure_4_groups": partial(exposure, 4),
    "overlapping": partial(overlapping, False),
    "knapsack": partial(overlapping, True),
    "diverse_overlapping": diverse_overlapping,
    "frame_boundary": frame_boundary,
    "coupled_1m_400": partial(coupled, 1_000_000, 400),
}


def work(name: str, small: bool) -> Row:
    """One row, in a process of its own; whatever solvers write to standard output goes to standard error."""
    os.dup2(2, 1)
    return ROWS[name](small)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help="rows to run")
    parser.add_argument("--scale", action="store_true", help="a million users too")
    parser.add_argument("--cpu", action="store_true", help="processor seconds, for a machine that is busy")
    parser.add_argument("--small", action="store_true", help="fewer users, to see that it runs")
    options = parser.parse_args()
    names = options.rows or [name for name in ROWS if name != "coupled_1m_400" or options.scale]
    os.environ["BENCHMARK_CLOCK"] = "cpu" if options.cpu else "wall"
    report = {}
    for name in names:
        # A process a row, so that memory is the row's own, and so that numba can be left out.
        os.environ["NUMBA_DISABLE_JIT"] = "1" if name == "laminar_numpy" else "0"
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            report[name] = pool.submit(work, name, options.small).result()
        if not options.json:
            print(name, *(f"  {key}: {value}" for key, value in report[name].items()), sep="\n", flush=True)
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
