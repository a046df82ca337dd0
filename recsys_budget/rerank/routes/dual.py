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

from recsys_budget.rerank.routes._compiled import njit
from recsys_budget.rerank.routes.oracle import Oracle
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
    """

    prices: NDArray[np.float64]
    bound: float
    loads: NDArray[np.float64]


class Dual:
    """The dual function of all users or of a sample.

    Args:
        oracle: Slates at prices.
        rows: The rules. Only their sums over all users count; a sample stands for all in proportion.
    """

    def __init__(self, oracle: Oracle, rows: PopulationRows) -> None:
        self.oracle, self.rows = oracle, rows
        self.weights = oracle.discount if len(oracle.discount) else np.ones(1)
        # What a price of a show may be: past several times the greatest gain it hardly steers any more.
        most = 10.0 * max(oracle.largest, 1e-300) / rows.scale
        self.limits = (
            np.where(np.isneginf(rows.lower), 0.0, -most),
            np.where(np.isposinf(rows.upper), 0.0, most),
        )
        self.everyone = len(oracle.users)
        self.shows = self.everyone * (float(oracle.discount.sum()) if len(oracle.discount) else oracle.tree.k)
        self.evaluations = 0.0

    def at(self, prices: NDArray[np.float64], users: NDArray[np.int64] | None = None) -> Point:
        """Evaluate; the oracle then holds the best slates at these prices."""
        of_items = self.item_prices(prices)
        priced = self.oracle.best(of_items, users)
        scale = self.everyone / len(users) if users is not None and len(users) else 1.0
        self.evaluations += 1.0 / scale
        bounds = price_of_bounds(prices, self.rows)
        # Rounding of the item prices and of the sum over rows.
        most = float((abs(self.rows.coefficients).T @ np.abs(prices)).max(initial=0.0))
        slack = _EPS * len(prices) * (self.shows * most + float(np.abs(bounds).sum()))
        loads = scale * self.rows.loads(priced.counts, self.weights)
        return Point(prices, scale * priced.value + float(bounds.sum()) + slack, loads)

    def item_prices(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """What one show of each item costs, ``(n_items,)``."""
        return self.rows.coefficients.T @ prices

    def totals(self, chosen: NDArray[np.int32]) -> tuple[float, NDArray[np.float64]]:
        """Total gain of everybody's slates and their loads, added up from the slates alone."""
        oracle, value = self.oracle, 0.0
        counts = np.zeros((len(self.weights), self.rows.coefficients.shape[1]), np.int64)
        for first in range(0, self.everyone, 1 << 16):
            users = oracle.users[first : first + (1 << 16)]
            at = oracle.offsets[users, None] + chosen[users]
            value += float((oracle.gains[at].astype(np.float64) * self.weights).sum())
            items = oracle.items[at] if len(self.weights) > 1 else oracle.items[at].reshape(-1, 1)
            for place in range(len(self.weights)):
                counts[place] += np.bincount(items[:, place], minlength=counts.shape[1])
        return value, self.rows.loads(counts, self.weights)

    def curvature(self, within: float, users: NDArray[np.int64] | None) -> sparse.csr_array:
        """How fast loads fall as prices rise, ``(n_rows, n_rows)``, from exchanges at the last prices."""
        users = self.oracle.users if users is None else users
        enough = max(500, int(_SAMPLE * min(1.0, self.oracle.spacing / within)))
        users = users[:: max(1, -(-len(users) // enough))]
        found = self.oracle.exchanges(within, users)
        items, best = self.oracle.items, found.cheapest
        n_items = self.rows.coefficients.shape[1]
        pair = items[found.leaves[best]].astype(np.int64) * n_items + items[found.enters[best]]
        pairs, times = np.unique(pair, return_counts=True)
        change = self.rows.coefficients[:, pairs % n_items] - self.rows.coefficients[:, pairs // n_items]
        # Half of them on either side of the kinks that these prices stand between.
        weight = times * (0.5 * len(self.oracle.users) / (max(1, len(users)) * within))
        return sparse.csr_array((change * weight) @ change.T)


def price_of_bounds(prices: NDArray[np.float64], rows: PopulationRows) -> NDArray[np.float64]:
    """What the bound that a price leans on adds to the dual function, ``(n_rows,)``; at price 0, nothing."""
    return prices * np.where(prices > 0, rows.upper, np.where(prices < 0, rows.lower, 0.0))


def minimise(
    dual: Dual,
    prices: NDArray[np.float64],
    users: NDArray[np.int64] | None = None,
    *,
    radius: float,
    tolerance: float,
    near: float = 1e-4,
    deadline: float = np.inf,
) -> tuple[Point, float]:
    """Newton steps in a trust region, from some prices.

    Without a sample, the oracle then holds everybody's slates at the point found.

    They end when the next promises little and loads are near their bounds, or nearer fails; when the bound is
    below 0, which proves that no slates keep to the rows; and, for a sample, when its loads are as near their
    bounds as those of a sample can tell.

    Args:
        dual: The function.
        prices: Where to start.
        users: A sample, or None for all.
        radius: How far the price of a show may move in the first step.
        tolerance: What counts as little, relative to the bound.
        near: How far loads may be from their bounds at the end, as a share of all shows. It is no promise.
        deadline: Value of ``time.perf_counter`` after which no further step is made.

    Returns:
        The best point, and how far the last step moved the prices of items apart.
    """
    rows = dual.rows
    point = dual.at(np.clip(prices, *dual.limits), users)
    few = max(near * dual.shows, len(prices))
    fresh, reach = True, radius
    for _ in range(_STEPS if len(prices) else 0):
        if point.bound < 0.0 or perf_counter() > deadline:
            break
        if users is not None:  # a load of a sample varies like a count
            variance = dual.everyone / max(1, len(users)) * float((point.loads * rows.scale).sum())
            if float(np.square(_residual(point, rows)).sum()) < 0.1 * variance:
                break
        if fresh:
            curvature = dual.curvature(reach, users)
        step, product = _step(curvature, point, rows, dual.limits, radius)
        target = point.prices + step
        promised = float(
            (point.loads * step).sum()
            - 0.5 * (step * product).sum()
            + price_of_bounds(point.prices, rows).sum()
            - price_of_bounds(target, rows).sum()
        )
        if promised <= tolerance * abs(point.bound) and (
            not fresh
            or promised <= 1e-10 * abs(point.bound)
            or (
                rows.short(point.loads) <= few
                and (rows.violations(point.loads) <= 4.0 * rows.scale + 1e-2 * np.abs(point.loads)).all()
            )
        ):
            break
        before = dual.oracle.state() if users is None else ()
        trial = dual.at(target, users)
        kept = (point.bound - trial.bound) / promised
        size = float(np.abs(step * rows.scale).max())
        if kept < 0.3:
            radius = size / 3.0
        elif kept > 0.7 and size >= 0.99 * radius:
            radius *= 3.0
        # What exchanges feel is how far the prices of items move apart.
        moved = dual.item_prices(step)
        reach = max(float(moved.max() - moved.min()), 1e-12 * size)
        fresh = kept > 0.05
        if fresh:
            point = trial
        elif users is None:
            dual.oracle.restore(before)
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
    _descend(
        curvature.indptr, curvature.indices, curvature.data, np.maximum(diagonal, floor), point.loads,
        point.prices, np.maximum(low, point.prices - radius / rows.scale),
        np.minimum(high, point.prices + radius / rows.scale), rows.lower, rows.upper, 1.0 / rows.scale,
        step, product, _SWEEPS,
    )  # fmt: skip
    return step, product


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
                product[columns[first:last]] += data[first:last] * change
                moved = max(moved, abs(change))
        bent[:] = 0.0
        slope, curve = 0.0, 0.0
        for c in range(len(prices)):
            now = prices[c] + step[c]
            together[c] = 0.0 if now == 0.0 else unit[c]
            if now != 0.0:
                slope += unit[c] * (product[c] - loads[c] + (upper[c] if now > 0.0 else lower[c]))
                first, last = indptr[c], indptr[c + 1]
                bent[columns[first:last]] += data[first:last] * unit[c]
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
