"""Randomness for mechanisms: from the operating system, never from a seed, except where labelled."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri


class NoiseSource(Protocol):
    """Where a mechanism takes its randomness from."""

    @property
    def private(self) -> bool:
        """Whether what is released with this randomness is private at all."""
        ...

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Independent uniform numbers in [0, 1), shape ``(size,)``."""
        ...

    def normal(self, size: int) -> NDArray[np.float64]:
        """Independent standard normal numbers, shape ``(size,)``."""
        ...


class SystemNoise:
    """Randomness of the operating system's generator: no state, so nothing to repeat after fork or resume.

    52 random bits make a uniform number: a multiple of 2**-52, shifted by half of that, so never 0 or 1 (a
    53rd bit would round up to 1). A normal number takes 64: one for the sign and 63 for its distance from
    0, through the inverse of the normal distribution function, so that tails reach to 9.1.
    Floating-point rounding of the noisy sum is not hidden: see Mironov (2012), doi:10.1145/2382196.2382264,
    for what that could reveal to someone who sees all bits of a release.
    """

    private = True

    def uniform(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(12)
        return (bits.astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        lower = ndtri(((bits >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64)
        return np.asarray(np.where(bits & np.uint64(1), lower, -lower), np.float64)


class SeededNoise:
    """Repeatable randomness, **not private**: for tests and for comparing runs number by number.

    Whoever knows the seed can subtract the noise, so models made with it say "not private".
    """

    private = False

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        return self._rng.random(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        return self._rng.standard_normal(size)
