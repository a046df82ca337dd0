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
from recsys_budget.rerank.routes.answers import BestSlates, Exchanges, Selection
from recsys_budget.rerank.routes.dual import Dual, Point, minimise
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.master import Choice, Limits, choose
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.routes.places import choose_places
from recsys_budget.rerank.routes.rows import PopulationRows

_SAMPLE = 4_000  # users of the first sample; each next one is eight times larger
_ROUNDS = 12
_PROOFS = 4
_WIDEST = 64.0


@dataclass(frozen=True, eq=False)
class Coupled:
    """What is proven about slates of everybody, wherever these are.

    Attributes:
        selection: The slates.
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
    """

    selection: Selection = field(repr=False)
    objective: float
    bound: float
    prices: NDArray[np.float64]
    loads: NDArray[np.float64]
    violations: NDArray[np.float64]
    satisfied: bool
    evaluations: float
    ray: NDArray[np.float64] | None

    @property
    def gap(self) -> float:
        """How far the objective is from the bound, relative to the bound."""
        return (self.bound - self.objective) / max(abs(self.bound), 1e-300)


@dataclass(frozen=True, eq=False)
class CoupledSlates(Coupled):
    """Slates of everybody, and what is proven about them.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows relative to the user's offset, ascending, or in the order of the
            places if these have weights; -1 for users without a slate.
        feasible: bool ``(n_users,)``, whether a user has a slate under the quotas alone.
        oracle: Where a solve that is given these slates as ``warm`` starts.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    oracle: Oracle = field(repr=False)

    @classmethod
    def of(cls, answer: Coupled, oracle: Oracle) -> CoupledSlates:
        """The slates that an answer selects."""
        return cls(
            **vars(answer), chosen=oracle.select(answer.selection), feasible=oracle.feasible, oracle=oracle
        )


def solve_coupled(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    rows: PopulationRows,
    *,
    fixed: NDArray[np.int8] | None = None,
    discount: NDArray[np.float64] | None = None,
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
        discount: ``(k,)``, weight of each place of a slate, at least 0 and not rising, in the objective and
            in the rows alike. Then a slate's order is chosen too, and ``chosen`` is in that order.
        gap: Relative distance from the bound at which to stop.
        time_limit: Seconds, after which the best slates so far are returned. Only then do answers depend on
            the speed of the machine.
        warm: Answer to a problem with the same candidates, quotas and fixed rows, but other bounds on the
            rows, in the same arrays. It changes the time taken, and which of about equally good slates are
            found. That answer keeps its slates; its ``oracle`` moves on.
        threads: Most threads at once. Answers do not depend on it.

    Raises:
        SpecificationError: The warm start belongs to other candidates or another discount, gains are below 0
            or not finite, or weights of places are no such weights.
    """
    deadline = np.inf if time_limit is None else perf_counter() + time_limit
    if warm is None:
        oracle = Oracle(offsets, gains, items, tree, fixed=fixed, discount=discount, threads=threads)
    else:
        oracle = warm.oracle
        weights = np.zeros(0) if discount is None else discount
        same = oracle.gains is gains and oracle.items is items and oracle.tree is tree
        if not same or not np.array_equal(oracle.discount, weights):
            raise SpecificationError(
                "a warm start needs the same candidates and quotas as the answer it starts from, in the same "
                "arrays; solve without it"
            )
    prices = None if warm is None else warm.prices
    return CoupledSlates.of(solve_from(oracle, rows, prices, gap, deadline), oracle)


def solve_from(
    oracle: BestSlates,
    rows: PopulationRows,
    prices: NDArray[np.float64] | None,
    gap: float,
    deadline: float,
) -> Coupled:
    """Slates of an oracle's users, from prices believed to be good, or from none."""
    dual = Dual(oracle, rows)
    point, reach = _price(dual, prices, gap, deadline)
    selection = Selection.best_at(point.prices_of_items, oracle.tree.k)
    if point.bound < 0.0:
        ray: NDArray[np.float64] | None = _ray(dual, point)
    else:
        selection, point, ray = _keep_to_rows(dual, point, reach, gap, deadline)
    total = oracle.total(selection)
    loads = rows.loads(total.counts, dual.weights)
    return Coupled(
        selection=selection,
        objective=total.gain,
        bound=point.bound,
        prices=point.prices,
        loads=loads,
        violations=rows.violations(loads),
        satisfied=rows.short(loads) == 0.0,
        evaluations=dual.evaluations,
        ray=ray,
    )


def _price(dual: Dual, warm: NDArray[np.float64] | None, gap: float, deadline: float) -> tuple[Point, float]:
    """Good prices: from ever larger samples, then from everybody."""
    served, spacing = dual.oracle.served, dual.oracle.spacing
    prices, radius = np.zeros(len(dual.rows.lower)), spacing
    if warm is not None:
        prices, radius = warm, 0.1 * spacing
    size = _SAMPLE if warm is None else served
    while size < served:
        every = dual.every(size)
        point, reach = minimise(dual, prices, every, radius=radius, tolerance=1e-6, deadline=deadline)
        if point.bound >= 0.0:  # else only the sample is too small for the rows
            prices, radius = point.prices, max(5.0 * reach, 1e-3 * spacing)
        size *= 8
    near = 1e-4 if warm is None else 5e-4  # when the first step is to mend what little changed
    return minimise(dual, prices, radius=radius, tolerance=0.02 * gap, near=near, deadline=deadline)


def _keep_to_rows(
    dual: Dual, point: Point, reach: float, gap: float, deadline: float
) -> tuple[Selection, Point, NDArray[np.float64] | None]:
    """Slates within the rows, if exchanges lead there, and the best bound; or proof that there are none.

    An exchange that costs more than the distance between bound and objective is in no better slates, so with
    few left to try the search ends by itself.
    """
    oracle, rows = dual.oracle, dual.rows
    best = Selection.best_at(point.prices_of_items, oracle.tree.k)
    objective, short = point.gain, rows.short(point.loads)
    hard = False
    wider = 4.0 * _needed(rows, point.loads)
    wanted = 64 + 8 * (int(rows.active(point.prices, point.loads).sum()) + int(short))
    for attempt in range(_ROUNDS):
        if short == 0.0 and point.bound - objective <= gap * abs(point.bound):
            break
        if perf_counter() > deadline:
            break
        free, all_of_them = _cheapest(dual, point, reach, wanted, wider)
        wanted *= 2
        penalty = 10.0 * ((oracle.largest or 1.0) + np.abs(point.prices).max(initial=0.0)) / rows.scale
        limits = Limits(
            penalty=None if hard else penalty,
            slack=0.5 * gap * abs(point.bound),
            seconds=deadline - perf_counter(),
            unit=oracle.spacing,
        )
        choice = _choose(dual, point, free, limits, everything=all_of_them)
        if choice is None:
            if hard:
                break
            continue
        new_objective, new_loads = point.gain + choice.gained, point.loads + choice.added
        new_short = rows.short(new_loads)
        if (new_short, -new_objective) < (short, -objective):
            best = Selection(point.prices_of_items, choice.users, choice.slates)
            short, objective = new_short, new_objective
        needed = _needed(rows, new_loads)
        wider = np.where(needed != 0.0, needed * np.clip(4.0 * np.abs(wider), 4.0, _WIDEST), wider)
        if new_short == 0.0 and point.bound - objective > gap * abs(point.bound):
            trial = dual.at(np.clip(choice.prices, *dual.limits))
            if trial.bound < point.bound:
                point = trial
                continue
        if new_short > 0.0 and (attempt != 1 or all_of_them):
            point_of_proof = _divergence(dual, point, deadline) if attempt == 0 else None
            if point_of_proof is None and (attempt > 1 or all_of_them):
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
    point: Point,
    reach: float,
    wanted: int,
    wider: NDArray[np.float64],
) -> tuple[Exchanges, bool]:
    """About as many exchanges as wanted, of those that cost least, and whether these are all there are.

    Those may cost more that help a row: times ``wider`` if it needs more of an item, and times minus that if
    it needs less. A sample tells how much exchanges cost. Where very many cost the same, some stand for all.
    """
    oracle = dual.oracle
    prices = point.prices_of_items
    most = 2.0 * (oracle.largest + float(np.abs(prices).max(initial=0.0)))
    every = dual.every(_SAMPLE)
    enough = max(1, wanted // every)
    within = min(max(reach, 1e-12 * most), most)
    while len((probe := oracle.exchanges(prices, within, every)).cost) < enough and within < most:
        within = min(4.0 * within, most)
    share = 1000
    if len(probe.cost) > enough:
        within = float(np.partition(probe.cost, enough)[enough])
        share = min(1000, max(1, 2000 * enough // int((probe.cost <= within).sum())))
    if not wider.any() or within == most or share < 1000:
        return oracle.exchanges(prices, within, share=share), within == most and share == 1000
    free = oracle.exchanges(prices, min(float(np.abs(wider).max()) * within, most))
    helps = dual.item_prices(wider / dual.rows.scale)
    times = helps[free.items[:, 1]] - helps[free.items[:, 0]]
    return free.those(free.cost <= within * np.maximum(times, 1.0)), False


def _choose(
    dual: Dual, point: Point, free: Exchanges, limits: Limits, *, everything: bool = False
) -> Choice | None:
    """The best slates that these exchanges lead to."""
    if not len(dual.oracle.discount):
        return choose(dual.oracle, dual.rows, point, free, limits)
    return choose_places(dual.oracle, dual.rows, point, free, limits, everywhere=everything)


def _divergence(dual: Dual, point: Point, deadline: float) -> Point | None:
    """A point where the bound is below 0, if prices that may be as high as all gains together lead to one."""
    wide = Dual(dual.oracle, dual.rows, times=10.0 * max(1.0, dual.shows))
    radius = dual.oracle.largest or 1.0
    found, _ = minimise(wide, point.prices, radius=radius, tolerance=0.0, near=0.0, deadline=deadline)
    dual.evaluations += wide.evaluations
    return found if found.bound < 0.0 else None


def _contradiction(dual: Dual, point: Point, free: Exchanges, deadline: float) -> Point | None:
    """A point where the bound is below 0, if exchanges show the way to one.

    A linear program without gains says how little the rows are missed by, and its duals which of them are in
    each other's way. Prices far along these multipliers leave gains no say. The oracle, then, is asked
    whether other exchanges could help; if none can, its bound is the proof.
    """
    oracle, rows = dual.oracle, dual.rows
    at = point
    far = 1e3 * (1.0 + oracle.largest * dual.shows)
    for _ in range(_PROOFS):
        seconds = deadline - perf_counter()
        choice = _choose(dual, at, free, Limits(1.0 / rows.scale, gainless=True, seconds=seconds))
        if choice is None or not choice.prices.any() or perf_counter() > deadline:
            break
        allowed = np.where(choice.prices > 0, np.isfinite(rows.upper), np.isfinite(rows.lower))
        at = dual.at(np.where(allowed, far * choice.prices, 0.0))
        if at.bound < 0.0:
            return at
        free, _ = _cheapest(dual, at, oracle.largest, 4 * len(free.cost), 0.0 * at.prices)
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
