"""Mechanisms as frozen facts: what was released, not how it is accounted."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_budget.errors import SpecificationError

LEAST_NOISE = 0.05
# Accountants square the noise, and float64 ends at 1e308.
MOST_NOISE = 1e100


@dataclass(frozen=True)
class GaussianMechanism:
    """A sum over all users released once with Gaussian noise.

    Attributes:
        noise_multiplier: Standard deviation of the noise divided by the largest change, in Euclidean norm,
            that adding or removing one user can make to the sum.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)

    def __str__(self) -> str:
        return f"Gaussian, noise {self.noise_multiplier:.4g}"


@dataclass(frozen=True)
class SampledGaussianMechanism:
    """A sum over a fresh Poisson sample of the users, released with Gaussian noise, ``steps`` times.

    Poisson: each step includes each user independently with probability ``sample_rate``.

    Attributes:
        noise_multiplier: As for :class:`GaussianMechanism`, for the sum over one sample.
        sample_rate: In (0, 1].
        steps: Number of releases, at least 1.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0 < self.sample_rate <= 1:
            raise SpecificationError(f"sample_rate is {self.sample_rate}; it must lie in (0, 1]")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SpecificationError(f"steps is {self.steps!r}; it must be a whole number of at least 1")

    def __str__(self) -> str:
        return (
            f"Poisson-sampled Gaussian, noise {self.noise_multiplier:.4g}, rate {self.sample_rate:.4g}, "
            f"{self.steps} steps"
        )


Mechanism = GaussianMechanism | SampledGaussianMechanism


def releases(mechanism: Mechanism) -> int:
    """How many releases a reserved mechanism grants."""
    return getattr(mechanism, "steps", 1)


def _check_noise(noise_multiplier: float) -> None:
    if not LEAST_NOISE <= float(noise_multiplier) <= MOST_NOISE:
        raise SpecificationError(
            f"noise_multiplier is {noise_multiplier}; it must lie between {LEAST_NOISE}, below which one "
            f"release alone costs an epsilon of hundreds, and {MOST_NOISE:g}"
        )
