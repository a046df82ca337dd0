"""Accounting against exact values and outside references; the ledger never passes its cap."""

from __future__ import annotations

import math

import pytest
from scipy import optimize, stats

from recsys_budget.errors import (
    PrivacyWarning,
    SpecificationError,
    UnsupportedMechanismError,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    epsilon,
    filter_epsilon,
    filter_order,
    largest_steps,
    smallest_noise,
)

BUDGET = PrivacyBudget(3.0, 1e-5)


def exact_gaussian_epsilon(noise_multiplier, delta):
    """Balle and Wang (2018), arXiv:1805.06530, theorem 8, solved for epsilon."""

    def excess(eps):
        a, b = 1 / (2 * noise_multiplier), eps * noise_multiplier
        return stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b) - delta

    return optimize.brentq(excess, 0, 100, xtol=1e-10)


@pytest.mark.parametrize(
    ("eps", "delta"), [(0, 1e-5), (-1, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1)]
)
def test_budget_is_validated(eps, delta):
    with pytest.raises(SpecificationError):
        PrivacyBudget(eps, delta)


def test_a_delta_that_allows_publishing_a_user_is_warned_about():
    with pytest.warns(PrivacyWarning, match="Take at most 1e-04"):
        PrivacyBudget(1.0, 1e-3, users=1_000)
    assert PrivacyBudget(1.0, 1e-5, users=1_000) == PrivacyBudget(1.0, 1e-5)
    for users in (0, True, 2.5):
        with pytest.raises(SpecificationError, match="users"):
            PrivacyBudget(1.0, 1e-5, users=users)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianMechanism(0.0),
        lambda: GaussianMechanism(1e-3),
        lambda: GaussianMechanism(math.inf),
        lambda: GaussianMechanism(math.nan),
        lambda: GaussianMechanism(1e101),
        lambda: SampledGaussianMechanism(1.0, 0.0, 5),
        lambda: SampledGaussianMechanism(1.0, 1.1, 5),
        lambda: SampledGaussianMechanism(1.0, 0.5, 0),
        lambda: SampledGaussianMechanism(1.0, 0.5, 2.0),
        lambda: SampledGaussianMechanism(1.0, 0.5, True),
    ],
)
def test_mechanisms_are_validated(make):
    with pytest.raises(SpecificationError):
        make()


def test_the_most_noise_is_accounted():
    for mechanism in (GaussianMechanism(1e100), SampledGaussianMechanism(1e100, 0.1, 10)):
        assert 0 <= epsilon([mechanism], 1e-5) < 1e-6
        PrivacyLedger(BUDGET).reserve([mechanism], purpose="nearly free")


def test_a_tiny_budget_has_an_order_of_its_own():
    tiny = PrivacyBudget(1e-9, 1e-12)
    assert filter_order(tiny) > 1e9
    ledger = PrivacyLedger(tiny)
    assert ledger.spent == 0.0


def test_one_gaussian_release_is_exact():
    # The closed form for sigma 1 and delta 1e-5 is 4.3772.
    assert epsilon([GaussianMechanism(1.0)], 1e-5) == pytest.approx(4.3772, abs=2e-4)


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-7, 1e-4])
def test_never_below_the_exact_value_and_close_above(noise, delta):
    exact = exact_gaussian_epsilon(noise, delta)
    for mechanism in (GaussianMechanism(noise), SampledGaussianMechanism(noise, 1.0, 1)):
        ours = epsilon([mechanism], delta)
        assert exact <= ours <= exact * 1.005 + 1e-3


def test_composition_of_gaussians_is_one_gaussian():
    parts = [GaussianMechanism(4.0), GaussianMechanism(2.0), SampledGaussianMechanism(6.0, 1.0, 9)]
    joint = 1 / math.sqrt(1 / 16 + 1 / 4 + 9 / 36)
    exact = exact_gaussian_epsilon(joint, 1e-6)
    assert exact <= epsilon(parts, 1e-6) <= exact * 1.005


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 500), (0.05, 2.0, 300), (0.3, 4.0, 50)])
def test_agrees_with_opacus_accountants(rate, noise, steps):
    from opacus.accountants import PRVAccountant, RDPAccountant

    ours = epsilon([SampledGaussianMechanism(noise, rate, steps)], 1e-5)
    renyi, upper = RDPAccountant(), PRVAccountant()
    renyi.history = upper.history = [(noise, rate, steps)]
    assert ours <= renyi.get_epsilon(1e-5)
    # Opacus returns the upper end of an interval that is at most two eps_error wide.
    assert (
        upper.get_epsilon(1e-5, eps_error=0.01) - 0.03
        <= ours
        <= upper.get_epsilon(1e-5, eps_error=0.01) + 0.005
    )


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 2663), (0.05, 1.0, 68), (0.05, 2.0, 683)])
def test_largest_steps_known_values(rate, noise, steps):
    def fits(mechanisms):
        return epsilon(mechanisms, BUDGET.delta) <= BUDGET.epsilon

    assert largest_steps(lambda n: [SampledGaussianMechanism(noise, rate, n)], fits, 5000) == steps
    assert fits([SampledGaussianMechanism(noise, rate, steps)])
    assert not fits([SampledGaussianMechanism(noise, rate, steps + 1)])


def test_largest_steps_edges():
    assert largest_steps(lambda n: [n], lambda m: m[0] <= 0, 10) == 0
    assert largest_steps(lambda n: [n], lambda m: True, 10) == 10
    with pytest.raises(SpecificationError):
        largest_steps(lambda n: [n], lambda m: True, 0)


@pytest.mark.parametrize("target", [0.2, 1.0, 8.0, 14.0])
def test_smallest_noise_is_on_the_safe_side_and_tight(target):
    def fits(mechanisms):
        return epsilon(mechanisms, 1e-6) <= target

    noise = smallest_noise(lambda s: [GaussianMechanism(s)], fits)
    assert fits([GaussianMechanism(noise)])
    assert not fits([GaussianMechanism(noise * 0.9997)])
    assert smallest_noise(lambda s: [GaussianMechanism(s)], lambda m: False) == math.inf


def test_filter_is_never_below_pld():
    mechanisms = [GaussianMechanism(5.0), SampledGaussianMechanism(2.0, 0.05, 200)]
    assert filter_epsilon(mechanisms, BUDGET) >= epsilon(mechanisms, BUDGET.delta)
    assert filter_epsilon([], BUDGET) == epsilon([], BUDGET.delta) == 0.0


def test_unknown_mechanisms_fail_closed():
    class Laplace:
        pass

    ledger = PrivacyLedger(BUDGET)
    for account in (lambda m: epsilon(m, 1e-5), lambda m: filter_epsilon(m, BUDGET), ledger.fits):
        with pytest.raises(UnsupportedMechanismError):
            account([Laplace()])
    with pytest.raises(UnsupportedMechanismError):
        ledger.reserve([Laplace()], purpose="test")
    assert ledger.spent == 0.0
    ledger.reserve([GaussianMechanism(20.0)], purpose="first")
    with pytest.raises(UnsupportedMechanismError):
        ledger.reserve([Laplace()], purpose="second")
    assert len(ledger.history()) == 1


def test_the_filter_is_the_closed_form_for_gaussians():
    """Mironov (2017): alpha / (2 sigma^2); converted as in Canonne, Kamath and Steinke (2020)."""
    alpha = filter_order(BUDGET)
    divergence = alpha / 2 * (1 / 9 + 1 / 16)
    expected = divergence + math.log1p(-1 / alpha) - math.log(BUDGET.delta * alpha) / (alpha - 1)
    assert filter_epsilon([GaussianMechanism(3.0), GaussianMechanism(4.0)], BUDGET) == pytest.approx(
        expected, rel=1e-8
    )
