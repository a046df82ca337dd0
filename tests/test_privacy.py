"""Accounting against exact values and outside references; the ledger never passes its cap."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pickle
import threading

import numpy as np
import pytest
from scipy import optimize, stats

from recsys_budget.errors import (
    BudgetError,
    BudgetExceededError,
    ReservationError,
    SpecificationError,
    UnsupportedMechanismError,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    Receipt,
    Reservation,
    SampledGaussianMechanism,
    epsilon,
    filter_epsilon,
    largest_steps,
    round_up,
    smallest_noise,
)
from recsys_budget.privacy import ledger as ledger_module

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


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianMechanism(0.0),
        lambda: GaussianMechanism(1e-3),
        lambda: GaussianMechanism(math.inf),
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


def test_ledger_refuses_and_records_nothing():
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(BudgetExceededError, match="Nothing was spent") as caught:
        ledger.reserve([GaussianMechanism(0.5)], purpose="too much")
    error = caught.value
    assert isinstance(error, BudgetError)
    assert error.cap == error.remaining == 3.0
    assert error.requested == pytest.approx(epsilon([GaussianMechanism(0.5)], 1e-5))
    assert ledger.history().empty
    with pytest.raises(SpecificationError, match="empty"):
        ledger.reserve([], purpose="nothing")


def test_ledger_never_passes_its_cap_however_it_is_asked():
    ledger = PrivacyLedger(BUDGET)
    rng = np.random.default_rng(0)
    granted = []
    for number in range(60):
        mechanism = (
            GaussianMechanism(float(rng.uniform(5, 40)))
            if rng.random() < 0.5
            else SampledGaussianMechanism(float(rng.uniform(1, 4)), 0.02, int(rng.integers(1, 50)))
        )
        fits = ledger.fits([mechanism])
        try:
            ledger.reserve([mechanism], purpose=str(number))
        except BudgetExceededError:
            assert not fits
        else:
            assert fits
            granted.append(mechanism)
        assert ledger.spent <= 3.0
    assert 1 < len(granted) < 60
    # The filter is conservative: by PLD the same mechanisms cost less still.
    assert epsilon(granted, 1e-5) <= ledger.spent
    assert ledger.history()["total"].iloc[-1] == pytest.approx(ledger.spent)


def test_a_schedule_alone_may_use_all_of_the_cap_by_pld_but_nothing_follows():
    steps = 68  # the largest number by PLD; the filter alone would grant fewer
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([SampledGaussianMechanism(1.0, 0.05, steps)], purpose="train")
    assert 2.9 < ledger.spent <= 3.0
    with pytest.raises(BudgetExceededError):
        ledger.reserve([GaussianMechanism(1000.0)], purpose="one more look")


def test_unsettled_stays_spent():
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([GaussianMechanism(2.0)], purpose="crashed")
    before = ledger.spent
    del reservation
    assert ledger.spent == before > 0
    assert ledger.history()["settled"].tolist() == [False]


def test_reservation_grants_each_release_once():
    ledger = PrivacyLedger(PrivacyBudget(8.0, 1e-5))
    counts, training = GaussianMechanism(5.0), SampledGaussianMechanism(2.0, 0.1, 3)
    reservation = ledger.reserve([counts, training], purpose="fit")
    reservation.use(counts)
    with pytest.raises(ReservationError, match="were used"):
        reservation.use(counts)
    for _ in range(3):
        reservation.use(training)
    with pytest.raises(ReservationError, match="were used"):
        reservation.use(training)
    with pytest.raises(ReservationError, match="was not reserved"):
        reservation.use(GaussianMechanism(4.0))
    assert reservation.used(training) == 3
    reservation.commit()
    with pytest.raises(ReservationError, match="settled"):
        reservation.use(training)


def test_permission_cannot_be_copied_or_widened():
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([GaussianMechanism(5.0)], purpose="once")
    for thing in (ledger, reservation):
        with pytest.raises(TypeError):
            copy.deepcopy(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    with pytest.raises(AttributeError):
        reservation.mechanisms = (GaussianMechanism(1.0),)
    with pytest.raises(AttributeError):
        ledger.cap = PrivacyBudget(100.0, 1e-5)
    with pytest.raises(ReservationError, match="made by PrivacyLedger"):
        Reservation((GaussianMechanism(0.1),), "self-service")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads is the test
def test_a_forked_process_gets_nothing():
    ledger = PrivacyLedger(BUDGET)
    mechanism = SampledGaussianMechanism(2.0, 0.05, 5)
    reservation = ledger.reserve([mechanism], purpose="parent")
    child = os.fork()
    if child == 0:
        refused = 0
        for attempt in (
            lambda: ledger.reserve([mechanism], purpose="child"),
            lambda: ledger.fits([mechanism]),
            lambda: reservation.use(mechanism),
        ):
            try:
                attempt()
            except ReservationError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    reservation.use(mechanism)


def test_threads_share_the_releases_of_a_reservation():
    mechanism = SampledGaussianMechanism(5.0, 0.01, 400)
    reservation = PrivacyLedger(BUDGET).reserve([mechanism], purpose="race")
    granted = []

    def take():
        for _ in range(100):
            with contextlib.suppress(ReservationError):
                reservation.use(mechanism)
                granted.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == reservation.used(mechanism) == 400


def test_what_cannot_be_computed_is_refused(monkeypatch):
    ledger = PrivacyLedger(PrivacyBudget(50.0, 1e-5))
    for _ in range(2):  # a large cap means a low order, where the divergence once failed to converge
        ledger.reserve([SampledGaussianMechanism(5.0, 0.5, 2)], purpose="low order")
    for cost in (math.nan, math.inf):
        monkeypatch.setattr(ledger_module, "filter_epsilon", lambda *a, cost=cost: cost)
        monkeypatch.setattr(PrivacyLedger, "spent", 1.0)
        assert not ledger.fits([GaussianMechanism(100.0)])
        with pytest.raises(BudgetExceededError):
            ledger.reserve([GaussianMechanism(100.0)], purpose="unknown cost")
    assert round_up(math.inf) == math.inf
    assert math.isnan(round_up(math.nan))


def test_remaining_is_nothing_when_nothing_fits():
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([SampledGaussianMechanism(1.0, 0.05, 60)], purpose="train")
    assert ledger.spent < 2.9
    assert not ledger.fits([GaussianMechanism(1e6)])
    assert ledger.remaining == 0
    with pytest.raises(BudgetExceededError, match="Nothing more fits") as caught:
        ledger.reserve([GaussianMechanism(100.0)], purpose="one more look")
    assert caught.value.remaining == 0


def test_the_filter_is_the_closed_form_for_gaussians():
    """Mironov (2017): alpha / (2 sigma^2); converted as in Canonne, Kamath and Steinke (2020)."""
    alpha = 1 + 2 * math.log(1 / BUDGET.delta) / BUDGET.epsilon
    divergence = alpha / 2 * (1 / 9 + 1 / 16)
    expected = divergence + math.log1p(-1 / alpha) - math.log(BUDGET.delta * alpha) / (alpha - 1)
    assert filter_epsilon([GaussianMechanism(3.0), GaussianMechanism(4.0)], BUDGET) == pytest.approx(
        expected, abs=1e-9
    )


def test_guaranteed_epsilon_is_the_cap_from_the_second_reservation_on():
    ledger = PrivacyLedger(BUDGET)
    assert ledger.guaranteed_epsilon == 0
    ledger.reserve([GaussianMechanism(10.0)], purpose="first")
    assert ledger.guaranteed_epsilon == ledger.spent
    ledger.reserve([GaussianMechanism(10.0)], purpose="second")
    assert ledger.guaranteed_epsilon == 3.0


def test_threads_cannot_overspend_together():
    ledger = PrivacyLedger(BUDGET)
    granted = []

    def spend():
        with contextlib.suppress(BudgetExceededError):
            granted.append(ledger.reserve([GaussianMechanism(3.0)], purpose="race"))

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(granted) < 16
    assert filter_epsilon([GaussianMechanism(3.0)] * len(granted), BUDGET) <= 3.0


def test_receipt_round_trip_and_rounding():
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([GaussianMechanism(2.0)], purpose="test")
    receipt = Receipt.write(
        model="Test",
        private=True,
        ledger=ledger,
        reservation=reservation,
        steps=0,
        stop_reason="test",
        constants={"k": 3},
        declared_public=["catalogue"],
    )
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert receipt.epsilon >= epsilon(reservation.mechanisms, 1e-5)
    assert receipt.epsilon == pytest.approx(ledger.spent, abs=1e-4)
    assert json.loads(receipt.to_json())["mechanisms"] == [
        {"kind": "GaussianMechanism", "noise_multiplier": 2.0}
    ]
    assert round_up(1.00001) == 1.0001
    assert round_up(2.0) == 2.0
