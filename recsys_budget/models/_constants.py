"""What the constants of private models are checked for, and the steps that fit under a cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recsys_budget.errors import SpecificationError
from recsys_budget.privacy import Mechanism, PrivacyLedger, largest_steps, smallest_noise


def require_whole(name: str, value: object) -> None:
    """Raise SpecificationError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecificationError(f"{name} is {value!r}; it must be a whole number of at least 1")


def require_seed(seed: object) -> None:
    """Raise SpecificationError unless this is None, or a seed that torch and numpy both take."""
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise SpecificationError(f"insecure_seed is {seed!r}; give a whole number from 0, or None")


def require_epsilons(epsilons: object) -> None:
    """Raise SpecificationError unless this is a sequence of positive numbers, which may be empty."""
    if not isinstance(epsilons, Sequence) or not all(isinstance(e, int | float) and e > 0 for e in epsilons):
        raise SpecificationError(f"epsilons are {epsilons!r}; give a sequence of positive numbers, or ()")


def fitting(
    schedule: Callable[[float, int], Sequence[Mechanism]],
    ledger: PrivacyLedger,
    noise_multiplier: float | None,
    steps: int,
) -> tuple[Mechanism, ...]:
    """The schedule with the least noise at which all steps fit, or with as many of them as fit at this noise.

    Where nothing fits, the ledger refuses what this returns, and says so with its own figures.

    Args:
        schedule: From a noise multiplier and a number of steps to mechanisms.
        ledger: What is left there decides.
        noise_multiplier: Of each step; None takes the least.
        steps: Most steps.
    """
    if noise_multiplier is None:
        noise_multiplier = min(smallest_noise(lambda noise: schedule(noise, steps), ledger.fits), 1e4)
    else:
        given = noise_multiplier
        steps = max(1, largest_steps(lambda n: schedule(given, n), ledger.fits, steps))
    return tuple(schedule(noise_multiplier, steps))
