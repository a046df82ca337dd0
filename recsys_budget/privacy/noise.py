"""Randomness for mechanisms, from the operating system, and the one function that adds it to a sum.

What floating point could give away, and what is done about it: a float64 sum plus a float64 normal number
lands on values that depend on the exact sum, and a generator that computes logarithms or inverse distribution
functions reaches some values and never others. Either can tell neighbouring tables apart (Mironov 2012,
doi:10.1145/2382196.2382264). Here both terms are multiples of one grid, so that nothing below the grid is
left to look at, and the noise is drawn by comparing integers, so that every point of the grid is reached.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.privacy.mechanism import GaussianMechanism

# The grid of a released sum, in standard deviations of its noise, and how many of its points make a cell.
_GRID_BITS, _POINT_BITS = 32, 25
_GRID = 2.0**-_GRID_BITS
# Cells of the half-line: 2048 of width 1/128, so that 11 random bits name one of them.
_CELL_BITS = 11
_WIDTH = 2.0 ** (_POINT_BITS - _GRID_BITS)
# A random word of 64 bits: sign, column, point, and what is left for two comparisons. Where these bits do not
# decide one, further bits are drawn; the weights that the first compares with have 63 bits.
_TOSS_BITS, _KEEP_BITS = 13, 14
_MORE_BITS = 63 - _CELL_BITS - _TOSS_BITS
# Numbers drawn at a time, so that the arrays between stay in the processor's cache.
_BLOCK = 2**14
# Share of the sensitivity set aside for float64 rounding of a quotient: enough for 2**31 users.
_ROUNDING = 2.0**-20


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
        """Independent standard normal numbers, shape ``(size,)``.

        A private source rounds them to the middle of the cell of width 2**-32 they fall in, which is what
        :func:`release_sum` relies on.
        """
        ...


def release_sum(
    total: NDArray[np.float64], *, sensitivity: float, mechanism: GaussianMechanism, noise: NoiseSource
) -> NDArray[np.float64]:
    """The Gaussian mechanism: a sum over users plus normal noise, on a grid.

    Pay first: this function spends nothing and checks no reservation.

    Args:
        total: The exact sum, float64 of any shape, finite; each user's part was bounded before it was added.
        sensitivity: Largest Euclidean distance, over all entries together, by which adding or removing one
            user moves ``total``; positive.
        mechanism: How much noise, in units of ``sensitivity``.
        noise: Where it comes from.

    Returns:
        The noisy sum, in the shape of ``total``.

    Guarantees:
        With :class:`SystemNoise` the result is a function of ``r + z`` alone, where ``z`` is standard normal
        and ``r`` moves by at most ``1 / mechanism.noise_multiplier`` with one user: it is exactly what the
        accountants charge for. In units of the noise, r is ``total`` rounded to multiples of g = 2**-32, and
        what is drawn is z rounded to the middle of its cell of width g. Since r is a multiple of g, the sum
        of the two is r + z rounded in the same way; and since IEEE 754 addition is correctly rounded, the
        float64 result depends on that sum and on nothing else about its terms.

        Rounding lets a sum of d entries move by g sqrt(d) more, and the quotient by a share of 2**-20 more
        (for up to 2**31 users). Both are paid for by more noise than was asked for: its standard deviation is
        ``noise_multiplier * sensitivity * (1 + 2**-20) / (1 - noise_multiplier * sqrt(d) * g)``. At a noise
        multiplier of 2 and half a million entries that is less than 0.0002% more.

        Not covered: how long the call takes, and what is left in memory. How far the drawn numbers are from
        normal ones is said at :class:`SystemNoise`.

    Raises:
        SpecificationError: ``sensitivity`` is not positive and finite, or the noise is so large beside the
            sensitivity that the grid would be too coarse.
        NumericalError: ``total`` is not finite.

    References:
        Mironov (2012), doi:10.1145/2382196.2382264. Canonne, Kamath and Steinke (2020), arXiv:2004.00010
        (sampling on a grid).

    Examples:
        >>> import numpy as np
        >>> from recsys_budget.privacy import GaussianMechanism, SystemNoise, release_sum
        >>> counts = np.array([40.0, 7.0])
        >>> noisy = release_sum(
        ...     counts, sensitivity=1.0, mechanism=GaussianMechanism(2.0), noise=SystemNoise()
        ... )
        >>> noisy.shape
        (2,)
    """
    if not (math.isfinite(sensitivity) and sensitivity > 0):
        raise SpecificationError(f"sensitivity is {sensitivity}; it must be positive and finite")
    if not np.isfinite(total).all():
        raise NumericalError("the sum is not finite; bound what each user adds before adding it")
    scale = noise_deviation(total.size, sensitivity=sensitivity, mechanism=mechanism)
    standard = np.asarray(total / scale, np.float64)
    standard *= 1 / _GRID  # powers of two: exact
    np.rint(standard, out=standard)
    standard *= _GRID
    standard += noise.normal(total.size).reshape(total.shape)
    standard *= scale
    return standard


def noise_deviation(size: int, *, sensitivity: float, mechanism: GaussianMechanism) -> float:
    """Standard deviation of the noise that :func:`release_sum` adds to each of so many numbers.

    Raises:
        SpecificationError: The noise is so large beside the sensitivity that the grid would be too coarse.
    """
    coarse = mechanism.noise_multiplier * math.sqrt(size) * _GRID
    if coarse > 0.5:
        raise SpecificationError(
            f"noise {mechanism.noise_multiplier:g} on {size} numbers is beyond what the grid of 2**-32 "
            f"allows; noise times the square root of the count must stay below {0.5 / _GRID:.0f}"
        )
    return mechanism.noise_multiplier * sensitivity * (1 + _ROUNDING) / (1 - coarse)


class SystemNoise:
    """Randomness of the operating system's generator: no state, so nothing to repeat after fork or resume.

    A uniform number takes 52 random bits: a multiple of 2**-52, shifted by half of that, so never 0 or 1 (a
    53rd bit would round up to 1).

    A normal number is drawn on a grid (Karney 2016, with cells of 1/128 in place of 1). The half-line is cut
    into cells. One is drawn with probability proportional to the density at its start, by the alias method
    (Walker 1977) on weights that are integers out of 2**63; then one of its 2**25 points, uniformly; and the
    point at x into the cell that starts at a is kept with probability exp(-x (a + x/2)), or the whole draw is
    made again. So every point has the probability with which a normal number falls in the cell of width
    2**-32 around it, up to two errors. Weights are rounded, so that nothing lies beyond 8.9 standard
    deviations: a total variation distance of less than 2e-17 a number. Exponentials are rounded to float64,
    and the density is taken at the middle: a factor within 1 +- 2**-51. So n numbers in all cost up to (1 +
    exp(epsilon)) n 2e-17 of delta and n 2**-50 of epsilon more than is accounted: for half a million
    parameters and 300 steps, 3e-9 (1 + exp(epsilon)) and 2e-7.

    Not covered: a weakness of the operating system's generator, and the time that drawing takes.

    References:
        Karney (2016), arXiv:1303.6257. Walker (1977), doi:10.1145/355744.355749.
    """

    private = True

    def uniform(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        return _uniform(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        drawn = np.empty(size)
        for start in range(0, size, _BLOCK):
            drawn[start : start + _BLOCK] = self._block(min(_BLOCK, size - start))
        return drawn

    def _block(self, size: int) -> NDArray[np.float64]:
        table = _cells()
        word = _words(size)
        column = ((word >> np.uint64(1)) & np.uint64(2**_CELL_BITS - 1)).astype(np.intp)
        point = (word >> np.uint64(1 + _CELL_BITS)) & np.uint64(2**_POINT_BITS - 1)
        toss = (word >> np.uint64(1 + _CELL_BITS + _POINT_BITS)) & np.uint64(2**_TOSS_BITS - 1)
        share = table.share.take(column)
        own = toss < share
        tied = np.flatnonzero(toss == share)
        own[tied] = _words(len(tied)) >> np.uint64(64 - _MORE_BITS) < table.rest.take(column[tied])
        cell = np.where(own, column, table.other.take(column))
        within = (point.astype(np.float64) + 0.5) * _GRID
        start = cell * _WIDTH
        # Most points are kept whatever they are: only the others need the exponential.
        toss = word >> np.uint64(64 - _KEEP_BITS)
        unsure = np.flatnonzero(toss >= table.sure.take(cell))
        x = within[unsure]
        kept = np.exp(-x * (start[unsure] + x / 2))
        again = unsure[(toss[unsure] + _uniform(len(unsure))) * 2.0**-_KEEP_BITS >= kept]
        drawn = np.where(word & np.uint64(1), -start - within, start + within)
        if len(again):
            drawn[again] = self._block(len(again))
        return drawn


@contextmanager
def drawn_ahead(noise: NoiseSource, size: int) -> Iterator[NoiseSource]:
    """Draw normal numbers on a thread of their own, while the sum that they are for is being computed.

    Noise depends on no user, so when it is drawn changes nothing of what a release promises. The thread ends
    with the block: none is alive where a process forks between two blocks, and nothing drawn is kept.

    Args:
        noise: The source to draw from; its uniform numbers stay to be had.
        size: How many numbers.

    Yields:
        A source that hands out these numbers, once and all together.
    """
    with ThreadPoolExecutor(1) as pool:
        yield _Drawn(noise, size, pool.submit(noise.normal, size))


class _Drawn:
    """See :func:`drawn_ahead`."""

    def __init__(self, noise: NoiseSource, size: int, numbers: Future[NDArray[np.float64]]) -> None:
        self._noise, self._size = noise, size
        self._numbers: Future[NDArray[np.float64]] | None = numbers

    @property
    def private(self) -> bool:
        """As the source they were drawn from."""
        return self._noise.private

    def uniform(self, size: int) -> NDArray[np.float64]:
        """See :class:`NoiseSource`."""
        return self._noise.uniform(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """The numbers drawn ahead; twice the same noise would cancel, so they are gone afterwards."""
        numbers, self._numbers = self._numbers, None
        if numbers is None or size != self._size:
            raise SpecificationError(
                f"{self._size} numbers were drawn ahead, to be used once; {size} were asked for"
                + (" after that" if numbers is None else "")
            )
        return numbers.result()


class _Cells(NamedTuple):
    """Alias table: column c stands for itself with ``share[c] + rest[c] / 2**39`` chances of 2**13.

    Otherwise it stands for ``other[c]``. A toss below ``sure`` keeps any point of the cell.
    """

    share: NDArray[np.uint64]
    rest: NDArray[np.uint64]
    other: NDArray[np.intp]
    sure: NDArray[np.uint64]


@cache
def _cells() -> _Cells:
    n = 2**_CELL_BITS
    starts = [c * _WIDTH for c in range(n)]
    with localcontext() as context:
        context.prec = 30  # float64 would round more than the weights do
        density = [(-(Decimal(a) ** 2) / 2).exp() for a in starts]
        whole = sum(density)
        weights = [round(d / whole * 2**63) for d in density]
    weights[0] += 2**63 - sum(weights)
    # Walker's method on integers: each column holds as much, from at most two cells.
    full = 2 ** (63 - _CELL_BITS)
    keep, other = [full] * n, list(range(n))
    small = [c for c in range(n) if weights[c] < full]
    large = [c for c in range(n) if weights[c] > full]
    while small:
        c, giver = small.pop(), large[-1]
        keep[c], other[c] = weights[c], giver
        weights[giver] -= full - weights[c]
        if weights[giver] <= full:
            large.pop()
            if weights[giver] < full:
                small.append(giver)
    parts = np.array([divmod(k, 2**_MORE_BITS) for k in keep], np.uint64)
    sure = [math.floor(math.exp(-_WIDTH * (a + _WIDTH / 2)) * 2**_KEEP_BITS) for a in starts]
    return _Cells(
        share=parts[:, 0].copy(),
        rest=parts[:, 1].copy(),
        other=np.array(other, np.intp),
        sure=np.array(sure, np.uint64),
    )


def _uniform(size: int) -> NDArray[np.float64]:
    return ((_words(size) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _words(size: int) -> NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * size), dtype=np.uint64)


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
