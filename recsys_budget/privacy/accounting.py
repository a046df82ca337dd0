"""What mechanisms cost: epsilon from mechanisms, and the two inverses, always on the safe side.

Two accountants, each where it is valid:

* *Privacy loss distributions* (PLD) are the tightest, for a schedule fixed before it starts.
* *Renyi divergence at one fixed order* composes mechanisms chosen after seeing earlier outputs (a privacy
  filter); it is looser. The order is a function of the budget alone.

References:
    Koskela, Jalko and Honkela (2020), arXiv:1906.03049, and Doroshenko et al. (2022), arXiv:2207.04380 (PLD).
    Feldman and Zrnic (2021), arXiv:2008.11193 (filters). Mironov (2017), arXiv:1702.07476 (Renyi).
    Canonne, Kamath and Steinke (2020), arXiv:2004.00010, proposition 12 (Renyi to epsilon).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError, UnsupportedMechanismError
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism

# Relative error that the Renyi divergences are rounded up by; float64 is off by far less.
_SLACK = 1 + 1e-9
# Widths of the privacy loss grid. Losses are rounded up to it (connect the dots), so coarser is only looser;
# far below 1e-5 the probabilities of its cells drown in the rounding of float64.
_COARSEST, _FINEST = 1e-3, 1e-5
# What float64 may lose of a composed distribution a release: convolutions are powers of Fourier transforms,
# and rounding was measured at up to 0.7 units of 2.2e-16 a release.
_ROUNDING = 1e-15
# Orders tried where delta is too small for that.
_ORDERS = (*range(2, 64), *range(64, 256, 8), *range(256, 1025, 64))


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Epsilon of these mechanisms together, by PLD: an upper bound, for a schedule fixed in advance.

    Args:
        mechanisms: What is released; none costs nothing.
        delta: In (0, 1).

    Raises:
        UnsupportedMechanismError: A mechanism of another kind.
        MissingExtraError: dp-accounting is not installed.
    """
    return _epsilon(tuple(mechanisms), delta) if mechanisms else 0.0


# Whole orders that are compared, at most.
_MOST_ORDERS = 1_000_000


def filter_order(budget: PrivacyBudget) -> int:
    """The Renyi order at which a filter for this budget counts: a function of the budget alone.

    A Gaussian mechanism costs ``order / (2 sigma^2)``, so the cap admits the least noise where
    ``renyi_cap / order`` is largest. Taken is the lowest whole order, at least 2, within 5% of that:
    training with little noise is much cheaper at lower orders, and hardly ever at higher ones.
    """
    usual = 1 + 2 * math.log(1 / budget.delta) / budget.epsilon
    highest = max(8, math.ceil(4 * usual))
    orders = np.arange(2, min(highest, _MOST_ORDERS) + 1)
    if highest > _MOST_ORDERS:  # a tiny epsilon: as many orders, spread out
        orders = np.unique(np.geomspace(2.0, float(highest), _MOST_ORDERS).astype(np.int64))
    room = (budget.epsilon - _conversion(orders, budget.delta)) / orders
    return int(orders[np.argmax(room >= room.max() / 1.05 if room.max() > 0 else room)])


def renyi(mechanism: Mechanism, order: int) -> float:
    """Renyi divergence of a mechanism at a whole order, rounded up by more than it may be off.

    Raises:
        UnsupportedMechanismError: A mechanism of another kind.
        MissingExtraError: dp-accounting is not installed.

    References:
        Mironov, Talwar and Zhang (2019), arXiv:1908.10530, section 3.3 (sampled Gaussian).
    """
    match mechanism:
        case GaussianMechanism(noise):
            return order / (2 * noise**2) * _SLACK
        case SampledGaussianMechanism(noise, rate, steps):
            # A step too small for float64 must not be free.
            return steps * (max(_one_step_renyi(noise, rate, order), 0.0) * _SLACK + 1e-12)
        case _:
            raise _unsupported(mechanism)


def renyi_cap(budget: PrivacyBudget, order: int) -> float:
    """Largest Renyi divergence at this order that is within the budget; not positive where none is."""
    return budget.epsilon - float(_conversion(order, budget.delta))


def renyi_epsilon(divergence: float, delta: float, order: int) -> float:
    """Epsilon of a Renyi divergence at one order (Canonne, Kamath and Steinke 2020, proposition 12)."""
    if divergence == 0:
        return 0.0
    return max(0.0, divergence + float(_conversion(order, delta)))


def filter_epsilon(mechanisms: Sequence[Mechanism], budget: PrivacyBudget) -> float:
    """Epsilon of mechanisms chosen adaptively, by Renyi divergence at the one order fixed by ``budget``.

    As long as this stays at or under ``budget.epsilon``, the whole adaptive sequence is (epsilon,
    delta)-differentially private (Feldman and Zrnic 2021, theorem 3.1).

    Raises:
        UnsupportedMechanismError: A mechanism of another kind.
        MissingExtraError: dp-accounting is not installed.
    """
    order = filter_order(budget)
    return renyi_epsilon(math.fsum(renyi(m, order) for m in mechanisms), budget.delta, order)


def smallest_noise(
    mechanisms: Callable[[float], Sequence[Mechanism]], fits: Callable[[Sequence[Mechanism]], bool]
) -> float:
    """Smallest noise multiplier at which the mechanisms fit, at most 0.01% too large and never too small.

    Args:
        mechanisms: From a noise multiplier to what would be released with it.
        fits: Whether that may be released: monotone, true for enough noise (``ledger.fits``, say).

    Returns:
        The noise multiplier, at least 0.3; infinity when not even 8,192 would do.
    """
    high = 1.0
    while not fits(mechanisms(high)):
        high *= 2
        if high > 1e4:
            return math.inf
    low = high / 2
    # From above and not to the end: a distribution with very little noise is slow to compute, and useless.
    while low > 0.3 and fits(mechanisms(low)):
        low, high = low / 2, low
    low = max(low, 0.3)
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(mechanisms(middle)) else (middle, high)
    return high


def largest_steps(
    mechanisms: Callable[[int], Sequence[Mechanism]], fits: Callable[[Sequence[Mechanism]], bool], limit: int
) -> int:
    """Largest number of steps up to ``limit`` at which the mechanisms fit; 0 when not even one does.

    Args:
        mechanisms: From a number of steps (at least 1) to what would be released.
        fits: Whether that may be released: monotone, false for enough steps.
        limit: Largest answer wanted, at least 1.
    """
    if limit < 1:
        raise SpecificationError(f"limit is {limit}; it must be at least 1")
    if fits(mechanisms(limit)):
        return limit
    fitting, failing = 0, limit
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        fitting, failing = (middle, failing) if fits(mechanisms(middle)) else (fitting, middle)
    return fitting


def round_up(value: float, digits: int = 4) -> float:
    """A privacy figure for display: never below the value."""
    if not math.isfinite(value):
        return value
    scale = 10.0**digits
    ticks = round(value * scale)
    return ticks / scale if ticks / scale >= value else (ticks + 1) / scale


@lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    schedule = [_facts(mechanism) for mechanism in mechanisms]
    grid = _grid(schedule)
    schedule = _merged(schedule)
    total: Any = None
    for noise, rate, steps in schedule:
        one = _one_step(noise, rate, grid)
        part = one if steps == 1 else one.self_compose(steps)
        total = part if total is None else total.compose(part)
    certain = delta - _ROUNDING * sum(steps for _, _, steps in schedule)
    by_pld = float(total.get_epsilon_for_delta(certain)) if certain > 0 else math.inf
    if math.isfinite(by_pld):
        return by_pld
    # A delta too small for convolutions in float64: the best of many Renyi orders is looser, but exact.
    return min(
        renyi_epsilon(math.fsum(renyi(mechanism, order) for mechanism in mechanisms), delta, order)
        for order in _ORDERS
    )


def _facts(mechanism: Mechanism) -> tuple[float, float, int]:
    """Noise multiplier, sample rate and releases."""
    match mechanism:
        case GaussianMechanism(noise):
            return noise, 1.0, 1
        case SampledGaussianMechanism(noise, rate, steps):
            return noise, rate, steps
        case _:
            raise _unsupported(mechanism)


def _merged(schedule: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The same with all releases of full sums as one: 1 / noise^2 adds up, without any loss.

    The privacy loss of a Gaussian release is normal, and a sum of several is that of one with less noise.
    """
    full = math.fsum(steps / noise**2 for noise, rate, steps in schedule if rate == 1.0)
    sampled = [facts for facts in schedule if facts[1] < 1.0]
    # A little less noise than that, to be above what float64 rounds away.
    return sampled + ([((1 - 1e-12) / math.sqrt(full), 1.0, 1)] if full else [])


def _grid(schedule: Sequence[tuple[float, float, int]]) -> float:
    """Width at which rounding losses up adds about 1% to epsilon, or less.

    Rounding to a grid of width h adds about h^2 / 6 to the variance of the loss of one release, which is
    ``q^2 (exp(1 / sigma^2) - 1)`` to first order; epsilon grows with the standard deviation of the sum.
    """
    variance = sum(steps * rate**2 * math.expm1(noise**-2) for noise, rate, steps in schedule)
    mean = variance / sum(steps for _, _, steps in schedule)
    return min(_COARSEST, max(_FINEST, math.sqrt(0.03 * mean)))


def _conversion(order: Any, delta: float) -> Any:
    """What a divergence at this order gains on its way to epsilon."""
    return np.log1p(-1 / order) - np.log(delta * order) / (order - 1)


@lru_cache(maxsize=1024)
def _one_step_renyi(noise_multiplier: float, sample_rate: float, order: int) -> float:
    with extra("train"):
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    step = dp_event.PoissonSampledDpEvent(sample_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return float(RdpAccountant([order]).compose(step).rdp[0])


@lru_cache(maxsize=64)
def _one_step(noise_multiplier: float, sample_rate: float, grid: float) -> Any:
    with extra("train"):
        from dp_accounting.pld import privacy_loss_distribution
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=grid
    )


def _unsupported(mechanism: object) -> UnsupportedMechanismError:
    return UnsupportedMechanismError(
        f"cannot account for {type(mechanism).__name__}; use GaussianMechanism or SampledGaussianMechanism"
    )
