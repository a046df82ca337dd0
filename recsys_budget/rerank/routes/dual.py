"""Prices for the rules that couple users: the Lagrangian dual, minimised by Newton steps in a trust region.

With a price for each row, users part: each takes the best slate at gains less prices (the oracle). What all
of them get, plus the price of each row's bound, bounds the total gain of all slates within the rows from
above, whatever the prices (Geoffrion 1974, doi:10.1007/BFb0120690). The bound is convex in the prices, and
with many users nearly smooth: its gradient is bound less load, and its second derivative counts exchanges
that are about to happen. So a few Newton steps do what takes hundreds of subgradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.rerank.routes._compiled import COMPILED, njit, pick
from recsys_budget.rerank.routes.answers import BestSlates
from recsys_budget.rerank.routes.rows import PopulationRows

_EPS = float(np.finfo(np.float64).eps)
_STEPS = 60
_SWEEPS = 200
_SAMPLE = 12_000  # most users whose exchanges are counted


@dataclass(frozen=True, eq=False)
class Point:
    """The dual function at some prices of rows.

    Attributes:
        prices: float64 ``(n_rows,)``. Positive ones push loads down, away from the upper bound; negative ones
            pull them up to the lower.
        bound: Upper bound on the total gain of slates within the rows, rounded up.
        loads: float64 ``(n_rows,)``, what the best slates at these prices add up to.
        gain: Their total gain.
        prices_of_items: float64 ``(n_items,)``, what one show of each item costs.
    """

    prices: NDArray[np.float64]
    bound: float
    loads: NDArray[np.float64]
    gain: float
    prices_of_items: NDArray[np.float64]


class Dual:
    """The dual function of all users or of a sample.

    Args:
        oracle: Slates at prices.
        rows: The rules. Only their sums over all users count; a sample stands for all in proportion.
        times: How many times the greatest gain the price of a show may be. Past several it hardly steers any
            more, unless it is to prove something.
    """

    def __init__(self, oracle: BestSlates, rows: PopulationRows, times: float = 10.0) -> None:
        self.oracle, self.rows = oracle, rows
        self.weights = oracle.discount if len(oracle.discount) else np.ones(1)
        most = times * (oracle.largest or 1.0) / rows.scale
        self.limits = (
            np.where(np.isneginf(rows.lower), 0.0, -most),
            np.where(np.isposinf(rows.upper), 0.0, most),
        )
        self.shows = oracle.served * (float(oracle.discount.sum()) if len(oracle.discount) else oracle.tree.k)
        self.evaluations = 0.0

    def every(self, size: int) -> int:
        """Of how many users a sample of at most this size takes one."""
        return max(1, -(-self.oracle.served // size))

    def at(self, prices: NDArray[np.float64], every: int = 1) -> Point:
        """Evaluate, for all users or for each so-many-th, who then stand for all."""
        of_items = self.item_prices(prices)
        priced = self.oracle.best(of_items, every)
        scale = self.oracle.served / max(1, priced.users)
        self.evaluations += 1.0 / max(1.0, scale)
        bounds = price_of_bounds(prices, self.rows)
        # Rounding of the item prices and of the sum over rows.
        most = float((abs(self.rows.coefficients).T @ np.abs(prices)).max(initial=0.0))
        slack = _EPS * len(prices) * (self.shows * most + float(np.abs(bounds).sum()))
        loads = scale * self.rows.loads(priced.counts, self.weights)
        bound = scale * priced.value + float(bounds.sum()) + slack
        return Point(prices, bound, loads, scale * priced.gain, of_items)

    def item_prices(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """What one show of each item costs, ``(n_items,)``."""
        return self.rows.coefficients.T @ prices

    def curvature(self, point: Point, within: float, every: int = 1) -> sparse.csr_array:
        """How fast loads fall as prices rise, ``(n_rows, n_rows)``, from exchanges at these prices."""
        sampled = -(-self.oracle.served // every)
        enough = max(500, int(_SAMPLE * min(1.0, self.oracle.spacing / within)))
        every *= max(1, -(-sampled // enough))
        found = self.oracle.exchanges(point.prices_of_items, within, every)
        n_items = self.rows.coefficients.shape[1]
        leaves, enters = found.items[found.cheapest].T
        pairs, times = np.unique(leaves * n_items + enters, return_counts=True)
        change = self.rows.coefficients[:, pairs % n_items] - self.rows.coefficients[:, pairs // n_items]
        # Half of them on either side of the kinks that these prices stand between. Weights of places are left
        # out: the radius makes up for what the model lacks.
        users = max(1, -(-self.oracle.served // every))
        weight = times * (0.5 * self.oracle.served / (users * within))
        return sparse.csr_array((change * weight) @ change.T)


def price_of_bounds(prices: NDArray[np.float64], rows: PopulationRows) -> NDArray[np.float64]:
    """What the bound that a price leans on adds to the dual function, ``(n_rows,)``; at price 0, nothing."""
    return prices * np.where(prices > 0, rows.upper, np.where(prices < 0, rows.lower, 0.0))


def minimise(
    dual: Dual,
    prices: NDArray[np.float64],
    every: int = 1,
    *,
    radius: float,
    tolerance: float,
    near: float = 1e-4,
    deadline: float = np.inf,
) -> tuple[Point, float]:
    """Newton steps in a trust region, from some prices.

    Steps end when the next promises little and loads are near their bounds, or nearer fails; when the bound
    is below 0, which proves that no slates keep to the rows; and, for a sample, when its loads are as near
    their bounds as those of a sample can tell.

    Args:
        dual: The function.
        prices: Where to start.
        every: Ask each so-many-th user; 1 asks all.
        radius: How far the price of a show may move in the first step.
        tolerance: What counts as little, relative to the bound.
        near: How far loads may be from their bounds at the end, as a share of all shows. It is no promise.
        deadline: Value of ``time.perf_counter`` after which no further step is made.

    Returns:
        The best point, and how far the last step moved the prices of items apart.
    """
    rows = dual.rows
    point = dual.at(np.clip(prices, *dual.limits), every)
    fresh, reach, promised = True, radius, np.inf
    for _ in range(_STEPS if len(prices) else 0):
        if point.bound < 0.0 or perf_counter() > deadline:
            break
        if every > 1:  # a load of a sample varies like a count
            variance = every * float((point.loads * rows.scale).sum())
            if float(np.square(_residual(point, rows)).sum()) < 0.1 * variance:
                break
        size = max(abs(point.bound), 1e-9 * dual.shows * dual.oracle.spacing)
        settled = (
            rows.short(point.loads) <= max(near * dual.shows, rows.active(point.prices, point.loads).sum())
            and (rows.violations(point.loads) <= 4.0 * rows.scale + 1e-2 * np.abs(point.loads)).all()
        )
        if settled and promised <= 3.0 * tolerance * size:
            break  # the step before was small, and the next is smaller still
        if fresh:
            curvature = dual.curvature(point, reach, every)
        step, product = _step(curvature, point, rows, dual.limits, radius)
        target = point.prices + step
        promised = float(
            (point.loads * step).sum()
            - 0.5 * (step * product).sum()
            + price_of_bounds(point.prices, rows).sum()
            - price_of_bounds(target, rows).sum()
        )
        if promised <= tolerance * size and (settled or not fresh or promised <= 1e-10 * size):
            break
        trial = dual.at(target, every)
        kept = (point.bound - trial.bound) / promised
        length = float(np.abs(step * rows.scale).max())
        if kept < 0.3:
            radius = length / 3.0
        elif kept > 0.7 and length >= 0.99 * radius:
            radius *= 3.0
        # What exchanges feel is how far the prices of items move apart.
        moved = dual.item_prices(step)
        reach = max(float(moved.max() - moved.min()), 1e-12 * length)
        fresh = kept > 0.05
        if fresh:
            point = trial
    return point, reach


def _residual(point: Point, rows: PopulationRows) -> NDArray[np.float64]:
    """How far each load is from the bound its price leans on, or from its bounds where the price is 0."""
    return np.where(
        point.prices > 0,
        point.loads - rows.upper,
        np.where(point.prices < 0, rows.lower - point.loads, rows.violations(point.loads)),
    )


def _step(
    curvature: sparse.csr_array,
    point: Point,
    rows: PopulationRows,
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The step that minimises the model of the dual within the radius, and curvature times step."""
    diagonal, (low, high) = curvature.diagonal(), limits
    floor = 1e-6 * float(diagonal.max(initial=0.0)) + 1e-12
    step, product = np.zeros_like(diagonal), np.zeros_like(diagonal)
    # A sweep costs about as much for an entry as a slate does for a candidate.
    descend = pick(_descend, None, _SWEEPS * len(curvature.data))
    descend(
        curvature.indptr, curvature.indices, curvature.data, np.maximum(diagonal, floor), point.loads,
        point.prices, np.maximum(low, point.prices - radius / rows.scale),
        np.minimum(high, point.prices + radius / rows.scale), rows.lower, rows.upper, 1.0 / rows.scale,
        step, product, _SWEEPS,
    )  # fmt: skip
    return step, product


@njit
def _add_compiled(
    columns: NDArray[np.integer], data: NDArray[np.float64], times: float, into: NDArray[np.float64]
) -> None:
    for at in range(len(columns)):
        into[columns[at]] += data[at] * times


def _add_numpy(
    columns: NDArray[np.integer], data: NDArray[np.float64], times: float, into: NDArray[np.float64]
) -> None:
    into[columns] += data * times  # numba would compile this for two seconds


_add = _add_compiled if COMPILED else _add_numpy


@njit
def _descend(  # type: ignore[no-untyped-def]
    indptr, columns, data, diagonal, loads, prices, low, high, lower, upper, unit, step, product, sweeps
):
    """Coordinate descent on a quadratic with a kink at price 0, where a price leans on the other bound.

    As slates have a fixed size, loads hardly feel prices that rise together, and one price at a time would
    take for ever to move them; so each sweep ends with a move of all prices that are not 0.

    The same source runs compiled and not: sums run over scalars in order, arrays are added by entry.
    """
    together, bent = np.zeros_like(step), np.zeros_like(step)
    for _ in range(sweeps):
        moved = 0.0
        for c in range(len(prices)):
            now = prices[c] + step[c]
            slope = product[c] - loads[c] - diagonal[c] * now
            target = 0.0
            if -(slope + upper[c]) > 0.0:
                target = -(slope + upper[c]) / diagonal[c]
            elif -(slope + lower[c]) < 0.0:
                target = -(slope + lower[c]) / diagonal[c]
            target = min(max(target, low[c]), high[c])
            change = target - now
            if change != 0.0:
                step[c] += change
                first, last = indptr[c], indptr[c + 1]
                _add(columns[first:last], data[first:last], change, product)
                moved = max(moved, abs(change))
        bent[:] = 0.0
        slope, curve = 0.0, 0.0
        for c in range(len(prices)):
            now = prices[c] + step[c]
            together[c] = 0.0 if now == 0.0 else unit[c]
            if now != 0.0:
                slope += unit[c] * (product[c] - loads[c] + (upper[c] if now > 0.0 else lower[c]))
                first, last = indptr[c], indptr[c + 1]
                _add(columns[first:last], data[first:last], unit[c], bent)
        for c in range(len(prices)):
            curve += together[c] * bent[c]
        shift = -np.sign(slope) * np.inf if slope != 0.0 else 0.0
        if curve > 0.0:
            shift = -slope / curve
        for c in range(len(prices)):
            if together[c] != 0.0:  # not past 0, nor out of the box
                now = prices[c] + step[c]
                most = (high[c] if now > 0.0 else min(high[c], 0.0)) - now
                least = (low[c] if now < 0.0 else max(low[c], 0.0)) - now
                shift = min(max(shift, least / unit[c]), most / unit[c])
        if shift != 0.0:
            step += together * shift
            product += bent * shift
            moved = max(moved, np.abs(together * shift).max())
        if moved <= 1e-3 * np.abs(step).max():
            break
