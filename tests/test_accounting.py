"""Golden values of the accounting: exact where there is a closed form, a finer grid and Opacus elsewhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import log_ndtr

from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    SampledGaussianMechanism,
    epsilon,
    filter_order,
    renyi,
    renyi_epsilon,
    round_up,
)
from recsys_budget.privacy.accounting import _facts, _grid

# Rate, noise, steps: from few noisy reads to a million tiny ones; the last ones cost a small epsilon.
SCHEDULES = [
    (0.01, 1.0, 2663),
    (0.05, 2.0, 683),
    (0.01, 0.6, 100),
    (0.1, 0.7, 50),
    (0.001, 0.5, 1000),
    (0.2, 2.0, 30),
    (0.5, 20.0, 10),
    (0.01, 5.0, 1000),
    (0.001, 1.0, 10_000),
    (0.001, 2.0, 50_000),
    (0.001, 10.0, 100_000),
    (0.01, 20.0, 10_000),
    (0.02, 50.0, 1000),
    (0.5, 100.0, 100),
]


def exact(noise, delta):
    """Balle and Wang (2018), arXiv:1805.06530, theorem 8, solved for epsilon in logarithms."""

    def excess(eps):
        first = log_ndtr(1 / (2 * noise) - eps * noise)
        second = eps + log_ndtr(-1 / (2 * noise) - eps * noise)
        return -delta if second >= first else math.exp(first) * -math.expm1(second - first) - delta

    return 0.0 if excess(0.0) <= 0 else optimize.brentq(excess, 0, 2000, xtol=1e-13)


@pytest.mark.parametrize(
    ("noise", "steps"),
    [
        (noise, steps)
        for noise in (0.7, 3.0, 20.0, 100.0, 1000.0, 5000.0)
        for steps in (1, 10, 300, 100_000)
        if noise >= 0.2 * math.sqrt(steps)  # below, epsilon is in the hundreds
    ],
)
def test_full_releases_are_exact_from_above(noise, steps):
    joint = noise / math.sqrt(steps)
    # Below 1e-8 float64 convolutions of 100,000 releases cannot resolve delta, and Renyi orders step in.
    deltas = {1e-3: 1.014, 1e-5: 1.005, 1e-8: 1.005} | ({1e-11: 1.02} if steps < 1e5 else {1e-11: 1.06})
    for delta, most in deltas.items():
        ours = epsilon([SampledGaussianMechanism(noise, 1.0, steps)], delta)
        assert exact(joint, delta) <= ours <= most * exact(joint, delta)
    for delta in (1e-13, 1e-14, 1e-16):
        assert exact(joint, delta) <= epsilon([SampledGaussianMechanism(noise, 1.0, steps)], delta) < math.inf


@pytest.mark.parametrize(("rate", "noise", "steps"), SCHEDULES)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_a_finer_grid_is_never_above_and_hardly_below(rate, noise, steps, delta):
    from dp_accounting.pld import privacy_loss_distribution

    mechanism = SampledGaussianMechanism(noise, rate, steps)
    finer = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=_grid([_facts(mechanism)]) / 10
    ).self_compose(steps)
    reference = finer.get_epsilon_for_delta(delta)
    assert reference <= epsilon([mechanism], delta) <= 1.005 * reference


@pytest.mark.parametrize(("rate", "noise", "steps"), SCHEDULES)
def test_never_above_opacus_renyi(rate, noise, steps):
    from opacus.accountants.analysis import rdp

    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64)) + list(range(64, 1025, 32))
    theirs, _ = rdp.get_privacy_spent(
        orders=orders,
        rdp=rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders),
        delta=1e-5,
    )
    assert epsilon([SampledGaussianMechanism(noise, rate, steps)], 1e-5) <= theirs


@pytest.mark.parametrize(("rate", "noise", "steps"), SCHEDULES)
def test_renyi_divergence_against_opacus(rate, noise, steps):
    from opacus.accountants.analysis import rdp

    orders = [2, 5, 20]
    theirs = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    for order, value in zip(orders, theirs, strict=True):
        ours = renyi(SampledGaussianMechanism(noise, rate, steps), order)
        assert value <= ours <= value * (1 + 1e-6) + 2e-12 * steps


@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0, 8.0])
def test_the_filter_of_a_schedule_is_never_below_its_distribution(eps):
    budget = PrivacyBudget(eps, 1e-6)
    order = filter_order(budget)
    for rate, noise, steps in SCHEDULES:
        mechanism = SampledGaussianMechanism(noise, rate, steps)
        assert epsilon([mechanism], 1e-6) <= renyi_epsilon(renyi(mechanism, order), 1e-6, order)


def test_mixtures_share_one_grid():
    counts, training = GaussianMechanism(5.0), SampledGaussianMechanism(2.0, 0.001, 10_000)
    together = epsilon([counts, training], 1e-6)
    assert max(epsilon([counts], 1e-6), epsilon([training], 1e-6)) < together
    assert together < epsilon([counts], 5e-7) + epsilon([training], 5e-7)
    assert together == pytest.approx(epsilon([training, counts], 1e-6), rel=1e-9)


@given(st.integers(0, 10**7), st.integers(-3, 3), st.integers(2, 8))
def test_rounding_up_is_never_below_and_changes_nothing_twice(ticks, ulps, digits):
    value = ticks / 10.0**digits
    for _ in range(abs(ulps)):
        value = math.nextafter(value, math.inf if ulps > 0 else 0.0)
    rounded = round_up(value, digits)
    assert value <= rounded <= value + 1.01 * 10.0**-digits
    assert round_up(rounded, digits) == rounded
