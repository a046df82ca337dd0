"""Prices from noisy loads: dual ascent that sees nothing but what was released, so it costs nothing.

Each round a price is set on every bound, users would choose at these prices, and their loads come back with
noise. The loads of a good price lie a little inside the bounds (the targets), so each price moves by how far
its load is from there (Hsu, Huang, Roth and Wu 2016, arXiv:1411.0998, who take the same steps). Everything
here is a function of public facts and noisy numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from recsys_budget.privacy import GaussianMechanism, NoiseSource, noise_deviation, release_sum
from recsys_budget.rerank.loads import Loads

# What users add to statistics is rounded down to a multiple of this: float64 sums are exact in any order.
ROUNDED_DOWN = 2.0**-20
# How far a first step moves a price, in units of what the next k candidates are worth less than the best k.
_FIRST_STEP = 4.0
# Share of a load that is taken to change hands between rounds, for the room that drawn rounds need.
_CHANGING = 0.1


@dataclass(frozen=True, eq=False)
class Release:
    """Loads and a few statistics of slates, added up over users and released together.

    Attributes:
        loads: What the loads are.
        statistics: How many statistics there are: numbers within [0, 1] of each user. Adding or removing a
            user moves each sum by at most 1.
        mechanism: The noise.
    """

    loads: Loads
    statistics: int
    mechanism: GaussianMechanism

    @property
    def unit(self) -> float:
        """What statistics are multiplied by: a power of two near a quarter of what loads may move by."""
        return 2.0 ** round(math.log2(self.loads.sensitivity / 4.0))

    @property
    def sensitivity(self) -> float:
        """Largest Euclidean change by one user: that of the loads, and one unit for each statistic."""
        return math.hypot(self.loads.sensitivity, self.unit * math.sqrt(self.statistics))

    @property
    def _deviation(self) -> float:
        size = len(self.loads) + self.statistics
        return noise_deviation(size, sensitivity=self.sensitivity, mechanism=self.mechanism)

    @property
    def load_errors(self) -> NDArray[np.float64]:
        """Standard deviation of the noise on each load, in the unit of its rule."""
        return self._deviation / self.loads.units

    @property
    def statistic_error(self) -> float:
        """Standard deviation of the noise on each sum of a statistic."""
        return self._deviation / self.unit

    def noisy(
        self, counts: NDArray[np.integer], statistics: NDArray[np.float64], noise: NoiseSource
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Loads and sums of statistics with noise; pay first.

        Args:
            counts: How often each item is shown, ``(n_items,)``.
            statistics: Shape ``(statistics, n_users)``; cut to [0, 1] and rounded down to multiples of
                2**-20.
            noise: Where the noise comes from.
        """
        each = np.floor(np.clip(statistics, 0.0, 1.0) / ROUNDED_DOWN)
        exact = np.concatenate(
            [self.loads.of_counts(counts) * self.loads.units, each.sum(axis=1) * ROUNDED_DOWN * self.unit]
        )
        out = release_sum(exact, sensitivity=self.sensitivity, mechanism=self.mechanism, noise=noise)
        return out[: len(self.loads)] / self.loads.units, out[len(self.loads) :] / self.unit


class DualAscent:
    """Prices on bounds, moved by noisy loads.

    Args:
        release: What each round releases: loads, the number of users, and by how much of ``largest_gain / k``
            a user's candidates at ranks k and 2 k differ.
        inside: How far inside each bound to aim, ``(n_bounds,)``; 0 for soft ones.
        users: How many users to expect until noisy numbers say it.
        gain: What a place is worth: the greatest objective of a slate over its size.
    """

    def __init__(self, release: Release, inside: NDArray[np.float64], users: int, gain: float) -> None:
        self._release, self._inside, self._gain = release, inside, gain
        loads = release.loads
        self.prices = np.zeros(len(loads.bounds))
        self._usual = usual_loads(loads, users)
        self._scale = _largest_coefficients(loads)
        self._totals = np.zeros(2)
        self.history: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    @property
    def users(self) -> float:
        """How many there are, by the mean of what was released; at least 1."""
        return max(1.0, float(self._totals[0]) / max(1, len(self.history)))

    def shares(self) -> NDArray[np.float64]:
        """Share of users to send to each round, ``(rounds,)``, so that mean loads meet their targets.

        Where many users are alike, the loads of no single round do, since all of them switch at once. Rounds
        of the first half, whose prices were on their way, get none. Equal shares average the noise best; they
        give way where the noisy loads of the rounds, so mixed, would miss a target by more than the noise.
        """
        rounds = len(self.history)
        last = self.history[rounds // 2 :]
        bounds = self._release.loads.bounds
        target = targets(self._release.loads, self.users, self._inside)
        error = self._release.load_errors[bounds.row] / math.sqrt(len(last))
        beyond = np.stack([bounds.sign * (loads[bounds.row] - target) / error for _, loads in last])

        def cost(share: NDArray[np.float64]) -> float:
            return len(last) * float(share @ share) + float(np.square(np.maximum(0.0, share @ beyond)).sum())

        even = np.full(len(last), 1.0 / len(last))
        scale = cost(even)

        def relative(share: NDArray[np.float64]) -> float:
            return cost(share) / scale

        def slope(share: NDArray[np.float64]) -> NDArray[np.float64]:
            return 2.0 / scale * (len(last) * share + beyond @ np.maximum(0.0, share @ beyond))

        found = optimize.minimize(
            relative,
            even,
            jac=slope,
            method="SLSQP",
            bounds=optimize.Bounds(0.0, 1.0),
            constraints=optimize.LinearConstraint(np.ones((1, len(last))), 1.0, 1.0),
            options={"ftol": 1e-9, "maxiter": 300},
        ).x
        kept = np.where(found > 1e-6, found, 0.0)
        if not (np.isfinite(found).all() and cost(kept / max(kept.sum(), 1e-6)) <= scale):
            kept = even  # the solver is not believed
        return np.concatenate([np.zeros(rounds - len(last)), kept / kept.sum()])

    def learn(self, loads: NDArray[np.float64], statistics: NDArray[np.float64]) -> None:
        """Move the prices: up where a load is beyond its target, by less each round.

        A step is relative: how far a load is from its target, as a share of the larger of the two. Where
        choices between alike items are logit, this is Newton's step for one price alone.
        """
        self.history.append((self.prices, loads))
        self._totals += statistics
        rounds, users = len(self.history), self.users
        error = self._release.statistic_error / math.sqrt(rounds)
        spread = max(float(self._totals[1]) / rounds, error) / users
        bounds = self._release.loads.bounds
        target = targets(self._release.loads, users, self._inside)
        noisy, row = loads[bounds.row], bounds.row
        size = np.maximum.reduce(
            [np.abs(target), np.abs(noisy), self._usual[row], 2.0 * self._release.load_errors[row]]
        )
        beyond = np.clip(bounds.sign * (noisy - target) / np.where(size > 0.0, size, 1.0), -1.0, 1.0)
        step = _FIRST_STEP * min(1.0, spread) * self._gain / math.sqrt(rounds)
        # A wish is worth no more than its weight.
        self.prices = np.clip(self.prices + step / self._scale[row] * beyond, 0.0, bounds.weight)


def targets(loads: Loads, users: float, inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where to aim: so far inside each bound, but never past the middle between two bounds of a row."""
    bounds = loads.bounds
    at = bounds.at(users)
    ends = np.full((2, len(loads)), np.inf)
    for side, sign in enumerate((-1.0, 1.0)):
        those = bounds.sign == sign
        np.minimum.at(ends[side], bounds.row[those], sign * at[those])
    middle = ((ends[1] - ends[0]) / 2.0)[bounds.row]
    aim = at - bounds.sign * inside
    aim = np.where(np.isfinite(middle) & (bounds.sign * (aim - middle) < 0.0), middle, aim)
    return np.where(bounds.hard, aim, at)


def drawing_errors(loads: Loads, users: int) -> NDArray[np.float64]:
    """About how far loads of slates from drawn rounds stray from their mean, ``(n_bounds,)``; no promise."""
    bounds = loads.bounds
    size = np.maximum(np.abs(bounds.at(users)), usual_loads(loads, users)[bounds.row])
    return np.asarray(np.sqrt(_CHANGING * size * _largest_coefficients(loads)[bounds.row]))


def usual_loads(loads: Loads, users: int) -> NDArray[np.float64]:
    """For rows whose coefficients have both signs, the load of either sign that random slates would have.

    Such a load is a difference of large numbers, so its own size says nothing about how it moves; 0 for other
    rows, where it does.
    """
    absolute = np.asarray(abs(loads.rows).sum(axis=1), np.float64).ravel() / max(1, loads.rows.shape[1])
    both = (loads.most > 0.0) & (loads.least < 0.0)
    return np.where(both, users * loads.size * absolute, 0.0)


def _largest_coefficients(loads: Loads) -> NDArray[np.float64]:
    return np.asarray(abs(loads.rows).max(axis=1).toarray(), np.float64).ravel()
