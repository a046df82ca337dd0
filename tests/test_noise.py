"""Normal numbers from the operating system: their distribution, their grid, and that nothing repeats."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.privacy import GaussianMechanism, SeededNoise, SystemNoise, release_sum
from recsys_budget.privacy import noise as noise_module

GRID = 2.0**-32
MILLION = 1_000_000


class Fixed:
    """Hands out the numbers it was given."""

    private = False

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers, np.float64)

    def normal(self, size):
        assert size == len(self.numbers)
        return self.numbers


def released(total, noise=None, *, sensitivity=1.0, multiplier=2.0):
    total = np.asarray(total, np.float64)
    noise = Fixed(np.zeros(total.size)) if noise is None else noise
    return release_sum(total, sensitivity=sensitivity, mechanism=GaussianMechanism(multiplier), noise=noise)


def normal_is_accepted(draws):
    """Kolmogorov-Smirnov, chi-square over 200 equally likely bins, and the variance, sharpest for scale."""
    bins = np.bincount(np.floor(stats.norm.cdf(draws) * 200).astype(int).clip(0, 199), minlength=200)
    variance = (draws.var() - 1) / math.sqrt(2 / len(draws))
    return (
        stats.kstest(draws, "norm").pvalue > 1e-6
        and stats.chisquare(bins).pvalue > 1e-6
        and abs(variance) < 5
    )


def test_a_million_numbers_are_standard_normal_and_a_scale_wrong_by_two_percent_is_caught():
    draws = SystemNoise().normal(MILLION)
    assert normal_is_accepted(draws)
    assert not normal_is_accepted(draws * 0.98)
    assert not normal_is_accepted(draws * 1.02)
    assert not normal_is_accepted(draws + 0.02)
    assert abs(stats.skew(draws)) < 5 * math.sqrt(6 / MILLION)
    assert abs(stats.kurtosis(draws)) < 5 * math.sqrt(24 / MILLION)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5e-3


def test_tails_are_there():
    draws = abs(SystemNoise().normal(4 * MILLION))
    for beyond in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(beyond) * 4 * MILLION
        assert abs((draws > beyond).sum() - expected) < 6 * math.sqrt(expected)


def test_cells_have_the_probability_of_the_density_at_their_start():
    """From the table itself, against exponentials with 40 digits."""
    getcontext().prec = 40
    table = noise_module._cells()
    n, full = len(table.share), 2**52
    weights = [0] * n
    for column in range(n):
        own = (int(table.share[column]) << 39) + int(table.rest[column])
        weights[column] += own
        weights[int(table.other[column])] += full - own
    assert sum(weights) == 2**63
    density = [(-((Decimal(c) / 128) ** 2) / 2).exp() for c in range(n)]
    whole = sum(density)
    distance = sum(abs(Decimal(w) / 2**63 - d / whole) for w, d in zip(weights, density, strict=True)) / 2
    assert distance < Decimal("2e-17")


def test_points_of_a_cell_have_the_density_of_their_place():
    """Within a cell the density falls by up to 2%, which the mean place, weighted by the cell's, shows."""
    n, total = 16 * MILLION, 0.0
    for _ in range(16):
        cell, place = np.divmod(abs(SystemNoise().normal(n // 16)) * 128, 1)
        total += float(((place - 0.5) * cell / 128).sum())
    expected, error = -1 / (12 * 128), math.sqrt(1 / 12 / n)
    assert abs(total / n - expected) < 5 * error
    assert abs(expected) > 8 * error  # uniform places would be caught


def words(monkeypatch, *batches):
    """Hands out these random words, whatever is asked for."""
    left = iter(batches)

    def given(size):
        batch = next(left)
        assert len(batch) == size
        return np.array(batch, np.uint64)

    monkeypatch.setattr(noise_module, "_words", given)


def word(sign=0, column=0, point=0, toss=0, keep=0):
    return sign | column << 1 | point << 12 | toss << 37 | keep << 50


def test_a_point_is_kept_exactly_as_often_as_its_density_asks(monkeypatch):
    """Words chosen so that the second comparison falls on either side of exp(-x (a + x/2)), by 2**-50."""
    column, point = 384, 2**25 - 1  # a = 3, x = 1/128 less half a point
    x = (point + 0.5) * GRID
    edge = math.exp(-x * (3 + x / 2)) * 2**14
    assert noise_module._cells().share[column] > 0  # so that a toss of 0 names the cell itself
    first = word(1, column, point, 0, keep=math.floor(edge))
    further = int((edge - math.floor(edge)) * 2**52) << 12  # 52 more bits
    for shift, expected in ((-(2**28), -(3 + x)), (2**28, GRID / 2)):
        # Where the point is refused the draw is made again: here it is the first point of all.
        words(monkeypatch, [first], [], [further + shift], [word()], [], [])
        assert SystemNoise().normal(1)[0] == expected


def test_a_column_stands_for_the_cell_that_its_bits_say(monkeypatch):
    """The first comparison, with 13 bits and, where they tie, 39 more."""
    table = noise_module._cells()
    column = next(c for c in range(2048) if table.other[c] != c and table.share[c] > 0 and table.rest[c])
    share, rest, other = int(table.share[column]), int(table.rest[column]), int(table.other[column])
    for toss, further, cell in [
        (share - 1, [], column),
        (share + 1, [], other),
        (share, [rest - 1], column),
        (share, [rest], other),
    ]:
        words(monkeypatch, [word(column=column, toss=toss)], [more << 25 for more in further], [])
        assert SystemNoise().normal(1)[0] == cell / 128 + GRID / 2


def test_every_number_is_the_middle_of_a_cell_of_the_grid():
    draws = SystemNoise().normal(MILLION)
    assert (np.mod(draws / GRID, 1) == 0.5).all()
    # and the lowest bits of the place are uniform
    low = np.floor(abs(draws) / GRID).astype(np.int64) & 255
    assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("size", [0, 1, 2**14 - 1, 2**14, 2**14 + 1])
def test_sizes(size):
    draws = SystemNoise().normal(size)
    assert draws.shape == (size,)
    assert draws.dtype == np.float64
    assert len(np.unique(draws)) == size
    assert SystemNoise().uniform(size).shape == (size,)


def test_uniform_numbers_are_uniform_and_never_0_or_1(monkeypatch):
    draws = SystemNoise().uniform(MILLION)
    assert stats.kstest(draws, "uniform").pvalue > 1e-6
    for byte, extreme in ((b"\x00", 2.0**-53), (b"\xff", 1 - 2.0**-53)):
        monkeypatch.setattr(os, "urandom", lambda size, byte=byte: byte * size)
        assert SystemNoise().uniform(1)[0] == extreme


def draw(source=None):
    source = source or SystemNoise()
    return np.concatenate([source.uniform(20_000), source.normal(20_000)])


def in_a_fork(source):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with open(writing, "wb") as pipe:
            pipe.write(draw(source).tobytes())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        theirs = np.frombuffer(pipe.read())
    os.waitpid(child, 0)
    return theirs


def in_a_new_process():
    code = (
        "import random, sys, numpy as np\n"
        "from recsys_budget.privacy import SystemNoise\n"
        "np.random.seed(0); random.seed(0)\n"
        "s = SystemNoise()\n"
        "sys.stdout.buffer.write(np.concatenate([s.uniform(20_000), s.normal(20_000)]).tobytes())"
    )
    return np.frombuffer(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads is the test
def test_nothing_repeats_after_a_fork_a_restart_or_a_seed():
    import torch

    def seeded():
        np.random.seed(0)  # noqa: NPY002  the point is that seeding changes nothing
        random.seed(0)
        torch.manual_seed(0)
        return draw()

    source = SystemNoise()
    before = draw(source)
    parts = [before, in_a_fork(source), in_a_fork(source), draw(source), seeded(), seeded()]
    parts += [in_a_new_process(), in_a_new_process()]
    assert all(len(part) == 40_000 for part in parts)
    uniform, normal = (np.concatenate([p[k] for p in parts]) for k in (slice(20_000), slice(20_000, None)))
    assert len(np.unique(uniform)) == len(uniform)  # 52 bits: 160,000 numbers collide once in 300,000 runs
    # The grid of normal numbers has 36 bits or so, where a few of 160,000 meet by chance; a repeat is 20,000.
    assert len(np.unique(normal)) > len(normal) - 20
    # The check has power: what is seeded does repeat.
    assert np.array_equal(draw(SeededNoise(0)), draw(SeededNoise(0)))


def test_seeded_noise_repeats_and_says_that_it_is_not_private():
    assert np.array_equal(SeededNoise(1).normal(5), SeededNoise(1).normal(5))
    assert not SeededNoise(1).private
    assert SystemNoise().private


@pytest.mark.parametrize("sensitivity", [0.3, 1.0, 41.0])
@pytest.mark.parametrize("multiplier", [0.5, 2.0, 80.0])
def test_a_released_sum_carries_the_noise_that_was_paid_for(sensitivity, multiplier):
    total = np.linspace(-1e4, 1e4, 200_000)
    drawn = released(total, SystemNoise(), sensitivity=sensitivity, multiplier=multiplier) - total
    scale = multiplier * sensitivity
    assert normal_is_accepted(drawn / scale)
    assert not normal_is_accepted(drawn / scale * 0.98)
    assert not normal_is_accepted(drawn / scale * 1.02)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 4), (2, 0)])
def test_shapes(shape):
    total = np.full(shape, 3.0)
    kept = total.copy()
    noisy = released(total, SystemNoise())
    assert noisy.shape == shape
    assert noisy.dtype == np.float64
    np.testing.assert_array_equal(total, kept)


MULTIPLIERS = st.floats(0.05, 1e4)
SUMS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6)


@given(SUMS, MULTIPLIERS, st.floats(1e-6, 1e6), st.data())
def test_a_release_is_a_function_of_the_sum_of_total_and_noise_alone(numbers, multiplier, sensitivity, data):
    """What was added by the users and what by the noise cannot be told apart from any bit of the result."""
    size = len(numbers)
    cells = data.draw(st.lists(st.integers(-(2**35), 2**35), min_size=size, max_size=size))
    shift = np.array(data.draw(st.lists(st.integers(-(2**20), 2**20), min_size=size, max_size=size)), float)
    inflation = 1 + 2.0**-20
    scale = multiplier * sensitivity * inflation / (1 - multiplier * math.sqrt(size) * GRID)
    # Totals that are exactly on the grid after the division, since the division is not what is tested here.
    whole = np.rint(np.clip(np.array(numbers) / scale, -(2**18), 2**18) / GRID)
    drawn = np.array(cells) + 0.5

    def result(total_cells, noise_cells):
        total = total_cells * GRID * scale
        assert (np.rint(total / scale / GRID) == total_cells).all()
        return released(total, Fixed(noise_cells * GRID), sensitivity=sensitivity, multiplier=multiplier)

    np.testing.assert_array_equal(result(whole, drawn), result(whole + shift, drawn - shift))


@given(SUMS, MULTIPLIERS, st.floats(1e-6, 1e6), st.data())
def test_neighbouring_sums_stay_within_what_the_noise_was_scaled_to(numbers, multiplier, sensitivity, data):
    """With rounding, in units of the noise: never more than 1 / noise_multiplier, which is accounted."""
    size = len(numbers)
    total = np.array(numbers) * sensitivity
    towards = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=size, max_size=size)))
    length = np.linalg.norm(towards)
    added = towards / length * sensitivity * (1 - 1e-12) if length > 0 else towards
    # The neighbour as floating point has it, which may lie a little further off than the bound.
    neighbour = total + added
    moved = np.linalg.norm(neighbour - total)
    bound = max(sensitivity, moved)
    arguments = {"sensitivity": bound, "multiplier": multiplier}
    scale = released(np.zeros(size), Fixed(np.ones(size)), **arguments)[0]
    apart = (released(neighbour, **arguments) - released(total, **arguments)) / scale
    slack = 2.0**-50 * np.linalg.norm(neighbour) / scale  # of computing this difference
    assert np.linalg.norm(apart) <= (1 + 1e-12) / multiplier + slack
    assert scale >= multiplier * bound * (1 + 2.0**-21)


def test_low_bits_do_not_tell_the_total_as_they_do_without_a_grid():
    """Mironov's observation: small results of a sum with total 1 have fewer bits than those with total 0."""
    n = 50_000

    def finer_than(results, grid):
        near = results[abs(results) < 0.25]
        return float((np.mod(near / grid, 1) != 0).mean())

    plain = np.random.default_rng(0)
    assert finer_than(0.0 + plain.normal(size=n), 2.0**-53) > 0.5
    assert finer_than(1.0 + plain.normal(size=n), 2.0**-53) == 0.0
    scale = released(np.zeros(n), Fixed(np.ones(n)))[0]
    for total in (0.0, 1.0, 1 / 3):
        standard = released(np.full(n, total), SystemNoise()) / scale / GRID
        np.testing.assert_allclose(np.mod(standard, 1), 0.5, atol=1e-3)  # the division by the scale rounds


def test_noise_grows_with_the_rounding_that_it_pays_for():
    def scale(size, multiplier):
        return released(np.zeros(size), Fixed(np.ones(size)), multiplier=multiplier)[0] / multiplier

    assert 1 < scale(1, 2.0) < 1 + 2e-6
    assert 1 < scale(500_000, 2.0) < 1 + 2e-6
    assert 1 + 1e-3 < scale(500_000, 1e4) < 1 + 2e-3


def test_what_cannot_be_released_soundly_is_refused():
    for sensitivity in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SpecificationError, match="positive and finite"):
            released([1.0], sensitivity=sensitivity)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(NumericalError, match="not finite"):
            released([1.0, value])
    with pytest.raises(SpecificationError, match="beyond what the grid"):
        released([1.0, 2.0, 3.0, 4.0], multiplier=2e9)
