"""Slates for everybody at once, when rules bind their sums: provider floors and ceilings, inventories, costs.

Prices first (:mod:`dual`), which also bound what any slates can reach. Then slates that keep to the rows,
from exchanges that cost next to nothing at these prices (:mod:`master`); exchanges that cost more are tried
until every row is met and the objective is within the gap of the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes.dual import Dual, Point, minimise
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.master import Choice, choose
from recsys_budget.rerank.routes.oracle import Exchanges, Oracle
from recsys_budget.rerank.routes.rows import PopulationRows

_SAMPLE = 4_000  # users of the first sample; each next one is eight times larger
_ROUNDS = 12
_PROOFS = 4


@dataclass(frozen=True, eq=False)
class CoupledSlates:
    """Slates of everybody, and what is proven about them.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows relative to the user's offset, ascending; -1 for users without a
            slate.
        feasible: bool ``(n_users,)``, whether a user has a slate under the quotas alone.
        objective: Total gain of the slates.
        bound: No slates within the quotas and the rows have a greater total; negative if there are none.
        prices: float64 ``(n_rows,)``, shadow prices: objective gained per unit by which the upper bound of a
            row is raised (positive), or lost per unit by which the lower bound is (negative).
        loads: float64 ``(n_rows,)``, sum of each row.
        violations: float64 ``(n_rows,)``, how far each sum lies outside its bounds.
        satisfied: Whether every row is met, but for the rounding of sums.
        evaluations: Times that everybody was given the best slate at new prices.
        ray: float64 ``(n_rows,)`` if the rows are proven to contradict each other, else None: multipliers;
            the rows where they are not 0 cannot all be met.
        oracle: Where a solve that is given these slates as ``warm`` starts.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    objective: float
    bound: float
    prices: NDArray[np.float64]
    loads: NDArray[np.float64]
    violations: NDArray[np.float64]
    satisfied: bool
    evaluations: float
    ray: NDArray[np.float64] | None
    oracle: Oracle = field(repr=False)

    @property
    def gap(self) -> float:
        """How far the objective is from the bound, relative to the bound."""
        return (self.bound - self.objective) / max(abs(self.bound), 1e-300)


def solve_coupled(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    rows: PopulationRows,
    *,
    fixed: NDArray[np.int8] | None = None,
    gap: float = 1e-4,
    time_limit: float | None = None,
    warm: CoupledSlates | None = None,
    threads: int | None = None,
) -> CoupledSlates:
    """Slates with a total gain close to the greatest that quotas and rows allow, and proof of how close.

    Args:
        offsets: See :func:`~recsys_budget.rerank.routes.laminar.solve_laminar`, likewise the others.
        gains: Finite, at least 0, falling within each user.
        items: Positions in the catalogue.
        tree: Quotas of each slate.
        rows: Rules on sums over all slates. Users without a slate under the quotas add nothing.
        fixed: Rows of candidates that must, or must not, be chosen.
        gap: Relative distance from the bound at which to stop.
        time_limit: Seconds, after which the best slates so far are returned. Only then do answers depend on
            the speed of the machine.
        warm: Answer to a problem with the same candidates, quotas and fixed rows, but other bounds on the
            rows, in the same arrays. It changes the time taken, and which of about equally good slates are
            found. That answer keeps its slates; its ``oracle`` moves on.
        threads: Most threads at once. Answers do not depend on it.

    Raises:
        SpecificationError: The warm start belongs to other candidates.
    """
    deadline = np.inf if time_limit is None else perf_counter() + time_limit
    if warm is None:
        oracle = Oracle(offsets, gains, items, tree, fixed=fixed, threads=threads)
    else:
        oracle = warm.oracle
        if oracle.gains is not gains or oracle.items is not items or oracle.tree is not tree:
            raise SpecificationError(
                "a warm start needs the same candidates and quotas as the answer it starts from, in the same "
                "arrays; solve without it"
            )
    return solve_from(oracle, rows, None if warm is None else warm.prices, gap, deadline)


def solve_from(
    oracle: Oracle,
    rows: PopulationRows,
    prices: NDArray[np.float64] | None,
    gap: float,
    deadline: float,
) -> CoupledSlates:
    """Slates of an oracle's users, from prices believed to be good, or from none."""
    dual = Dual(oracle, rows)
    point, reach = _price(dual, prices, gap, deadline)
    if point.bound < 0.0:
        chosen = oracle.chosen.copy()
        ray: NDArray[np.float64] | None = _ray(dual, point)
    else:
        chosen, point, ray = _keep_to_rows(dual, point, reach, gap, deadline)
    objective, loads = dual.totals(chosen)
    return CoupledSlates(
        chosen=chosen,
        feasible=oracle.feasible,
        objective=objective,
        bound=point.bound,
        prices=point.prices,
        loads=loads,
        violations=rows.violations(loads),
        satisfied=rows.short(loads) == 0.0,
        evaluations=dual.evaluations,
        ray=ray,
        oracle=oracle,
    )


def _price(dual: Dual, warm: NDArray[np.float64] | None, gap: float, deadline: float) -> tuple[Point, float]:
    """Good prices: from ever larger samples, then from everybody."""
    everyone, spacing = dual.oracle.users, dual.oracle.spacing
    prices, radius = np.zeros(len(dual.rows.lower)), spacing
    if warm is not None:
        prices, radius = warm, 0.1 * spacing
    size = _SAMPLE if warm is None else len(everyone)
    while size < len(everyone):
        users = dual.oracle.sample(size)
        point, reach = minimise(dual, prices, users, radius=radius, tolerance=1e-6, deadline=deadline)
        if point.bound >= 0.0:  # else only the sample is too small for the rows
            prices, radius = point.prices, max(5.0 * reach, 1e-3 * spacing)
        size *= 8
    near = 1e-4 if warm is None else 5e-4  # when the first step is to mend what little changed
    return minimise(dual, prices, radius=radius, tolerance=0.02 * gap, near=near, deadline=deadline)


def _keep_to_rows(
    dual: Dual, point: Point, reach: float, gap: float, deadline: float
) -> tuple[NDArray[np.int32], Point, NDArray[np.float64] | None]:
    """Slates within the rows, if exchanges lead there, and the best bound; or proof that there are none.

    An exchange that costs more than the distance between bound and objective is in no better slates, so with
    few left to try the search ends by itself.
    """
    oracle, rows = dual.oracle, dual.rows
    best, objective, short = oracle.chosen.copy(), oracle.gain, rows.short(point.loads)
    hard, wider = False, 4.0
    needed = _needed(rows, point.loads)
    wanted = 64 + 8 * len(rows.lower) + 16 * int(short)
    for attempt in range(_ROUNDS):
        if short == 0.0 and point.bound - objective <= gap * abs(point.bound):
            break
        if perf_counter() > deadline:
            break
        free, all_of_them = _cheapest(dual, point.prices, reach, wanted, needed, wider)
        wanted, wider = 2 * wanted, 4.0 * wider
        penalty = 10.0 * (oracle.largest + np.abs(point.prices).max(initial=0.0)) / rows.scale
        choice = choose(
            oracle,
            rows,
            point.loads,
            free,
            penalty=None if hard else penalty,
            slack=0.1 * gap * abs(point.bound),
            seconds=deadline - perf_counter(),
        )
        if choice is None:
            if hard:
                break
            continue
        left = choice.rows[choice.before & ~choice.after]
        entered = choice.rows[choice.after & ~choice.before]
        new_loads = point.loads + (
            rows.coefficients[:, oracle.items[entered]].sum(axis=1)
            - rows.coefficients[:, oracle.items[left]].sum(axis=1)
        )
        new_objective = oracle.gain + float(
            oracle.gains[entered].sum(dtype=np.float64) - oracle.gains[left].sum(dtype=np.float64)
        )
        new_short = rows.short(new_loads)
        if (new_short, -new_objective) < (short, -objective):
            best, short, objective = _exchanged(oracle, choice), new_short, new_objective
        needed = np.where(needed == 0.0, _needed(rows, new_loads), needed)
        if new_short == 0.0 and point.bound - objective > gap * abs(point.bound):
            trial = dual.at(np.clip(choice.prices, *dual.limits))
            if trial.bound < point.bound:
                point = trial
                continue
            dual.at(point.prices)
        if new_short > 0.0 and (attempt > 1 or all_of_them):
            point_of_proof = _contradiction(dual, point, free, deadline)
            if point_of_proof is not None:
                return best, point_of_proof, _ray(dual, point_of_proof)
        if all_of_them:
            if new_short == 0.0 or hard:
                break
            hard = True  # a very small excess may have cost less than mending it
    return best, point, None


def _needed(rows: PopulationRows, loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for a row that more is needed of, -1 for one that less is, else 0."""
    return np.where(loads < rows.lower, 1.0, np.where(loads > rows.upper, -1.0, 0.0))


def _cheapest(
    dual: Dual,
    prices: NDArray[np.float64],
    reach: float,
    wanted: int,
    needed: NDArray[np.float64],
    wider: float,
) -> tuple[Exchanges, bool]:
    """About as many exchanges as wanted, of those that cost least, and whether these are all there are.

    Exchanges that help a row that is needed more of (1) or less of (-1) may cost so many times more. A sample
    tells how much exchanges cost. Where very many cost the same, some of the users stand for all.
    """
    oracle = dual.oracle
    of_items = dual.item_prices(prices)
    most = 2.0 * (oracle.largest + float(np.abs(of_items).max(initial=0.0)))
    some = oracle.sample(_SAMPLE)
    enough = max(1, wanted * len(some) // max(1, dual.everyone))
    within = min(max(reach, 1e-12 * most), most)
    while len((probe := oracle.exchanges(within, some)).cost) < enough and within < most:
        within = min(4.0 * within, most)
    stride = 1
    if len(probe.cost) > enough:
        within = float(np.partition(probe.cost, enough)[enough])
        stride = max(1, int((probe.cost <= within).sum()) // (4 * enough))
    if not needed.any() or within == most:
        return oracle.exchanges(within, oracle.users[::stride]), within == most and stride == 1
    free = oracle.exchanges(min(wider * within, most), oracle.users[::stride])
    helps = dual.item_prices(needed)
    more = helps[oracle.items[free.enters]] > helps[oracle.items[free.leaves]]
    return free.those((free.cost <= within) | more), False


def _exchanged(oracle: Oracle, choice: Choice) -> NDArray[np.int32]:
    """The oracle's slates with a choice made."""
    chosen = oracle.chosen.copy()
    who, owner = np.unique(choice.users, return_inverse=True)
    slates = oracle.offsets[who, None] + chosen[who]
    kept = ~np.isin(slates, choice.rows)
    users = np.concatenate([np.nonzero(kept)[0], owner[choice.after]])
    rows = np.concatenate([slates[kept], choice.rows[choice.after]])
    order = np.lexsort((rows, users))
    chosen[who] = rows[order].reshape(slates.shape) - oracle.offsets[who, None]
    return chosen


def _contradiction(dual: Dual, point: Point, free: Exchanges, deadline: float) -> Point | None:
    """A point where the bound is below 0, if exchanges show the way to one.

    A linear program without gains says how little the rows are missed by, and its duals which of them are in
    each other's way. Prices far along these multipliers leave gains no say. The oracle, then, is asked
    whether other exchanges could help; if none can, its bound is the proof.
    """
    oracle, rows = dual.oracle, dual.rows
    state, at = oracle.state(), point
    far = 1e3 * (1.0 + oracle.largest * dual.shows)
    for _ in range(_PROOFS):
        choice = choose(
            oracle, rows, at.loads, free, penalty=1.0 / rows.scale, gainless=True,
            seconds=deadline - perf_counter(),
        )  # fmt: skip
        if choice is None or not choice.prices.any() or perf_counter() > deadline:
            break
        allowed = np.where(choice.prices > 0, np.isfinite(rows.upper), np.isfinite(rows.lower))
        at = dual.at(np.where(allowed, far * choice.prices, 0.0))
        if at.bound < 0.0:
            return at
        free, _ = _cheapest(
            dual, at.prices, oracle.largest, 4 * len(free.cost), np.zeros(len(at.prices)), 1.0
        )
    oracle.restore(state)
    return None


def _ray(dual: Dual, point: Point) -> NDArray[np.float64]:
    """Multipliers of few rows, which prove that these cannot all be met, from a point with a bound below 0.

    As gains are at least 0, a bound below 0 is below what any slates have (Farkas' lemma, with the oracle for
    the slates). Prices that only steer gains are small beside those of the rows in conflict.
    """
    size = np.abs(point.prices) * dual.rows.scale
    ray: NDArray[np.float64] = point.prices
    for share in (0.5, 0.1, 0.01):
        few = np.where(size >= share * size.max(), 10.0 * point.prices, 0.0)
        if dual.at(few).bound < 0.0:
            ray = few
            break
    scaled: NDArray[np.float64] = ray / np.abs(ray).max()
    return scaled
