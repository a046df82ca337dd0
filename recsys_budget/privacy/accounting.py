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

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError, UnsupportedMechanismError
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism

# Width of the privacy loss grid. Losses are rounded up to it (connect the dots), so coarser is only looser.
_GRID = 1e-3


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Epsilon of these mechanisms together, by PLD: an upper bound, for a schedule fixed in advance.

    Args:
        mechanisms: What is released; none costs nothing.
        delta: In (0, 1).

    Raises:
        UnsupportedMechanismError: A mechanism of another kind.
        MissingExtraError: dp-accounting is not installed.
    """
    if not mechanisms:
        return 0.0
    total = _distribution(mechanisms[0])
    for mechanism in mechanisms[1:]:
        total = total.compose(_distribution(mechanism))
    return float(total.get_epsilon_for_delta(delta))


def filter_epsilon(mechanisms: Sequence[Mechanism], budget: PrivacyBudget) -> float:
    """Epsilon of mechanisms chosen adaptively, by Renyi divergence at the one order fixed by ``budget``.

    As long as this stays at or under ``budget.epsilon``, the whole adaptive sequence is
    (epsilon, delta)-differentially private (Feldman and Zrnic 2021, theorem 3.1).

    Raises:
        UnsupportedMechanismError: A mechanism of another kind.
        MissingExtraError: dp-accounting is not installed.
    """
    if not mechanisms:
        return 0.0
    with extra("train"):
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    accountant = RdpAccountant([filter_order(budget)])
    for mechanism in mechanisms:
        match mechanism:
            case GaussianMechanism(noise):
                accountant.compose(dp_event.GaussianDpEvent(noise))
            case SampledGaussianMechanism(noise, rate, steps):
                step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
                accountant.compose(step, steps)
            case _:
                raise _unsupported(mechanism)
    return float(accountant.get_epsilon(budget.delta))


def filter_order(budget: PrivacyBudget) -> float:
    """The Renyi order of the filter: ``1 + 2 log(1/delta) / epsilon``, and at least 2.

    About where a Gaussian mechanism that just spends the budget converts best; below 2 the divergence is hard
    to compute.
    """
    return max(2.0, 1 + 2 * math.log(1 / budget.delta) / budget.epsilon)


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
    return math.ceil(value * scale) / scale


def _distribution(mechanism: Mechanism) -> Any:
    match mechanism:
        case GaussianMechanism(noise):
            return _one_step(noise, 1.0)
        case SampledGaussianMechanism(noise, rate, steps):
            return _one_step(noise, rate).self_compose(steps)
        case _:
            raise _unsupported(mechanism)


@lru_cache(maxsize=64)
def _one_step(noise_multiplier: float, sample_rate: float) -> Any:
    with extra("train"):
        from dp_accounting.pld import privacy_loss_distribution
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=_GRID
    )


def _unsupported(mechanism: object) -> UnsupportedMechanismError:
    return UnsupportedMechanismError(
        f"cannot account for {type(mechanism).__name__}; use GaussianMechanism or SampledGaussianMechanism"
    )
