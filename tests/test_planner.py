"""Plans: never above the cap, and as good as brute force finds them."""

from __future__ import annotations

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from recsys_budget.errors import BudgetExceededError, NumericalError, SpecificationError
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    Use,
    epsilon,
    filter_order,
    plan_budget,
    renyi,
    renyi_cap,
    smallest_noise,
)

BUDGET = PrivacyBudget(3.0, 1e-5)
USES = (
    Use("counts", error=1.0),
    Use("gram", error=40.0),
    Use("sgd", error=60.0, sample_rate=0.02, steps=1000),
    Use("metrics", error=5.0),
)


def started(budget=BUDGET):
    """A ledger that goes by its filter, and the divergence that is left."""
    first = GaussianMechanism(20.0 / budget.epsilon)
    ledger = PrivacyLedger(budget)
    ledger.reserve([first], purpose="before")
    order = filter_order(budget)
    return ledger, order, renyi_cap(budget, order) - renyi(first, order)


def error(uses, mechanisms):
    return sum(use.error * m.noise_multiplier**2 for use, m in zip(uses, mechanisms, strict=True))


def scaled(uses, sigmas, fits):
    """Error of these proportions at the least noise that fits."""

    def release(factor):
        return [use.mechanism(float(factor * s)) for use, s in zip(uses, sigmas, strict=True)]

    return error(uses, release(smallest_noise(release, fits)))


def test_full_releases_have_a_closed_form():
    """Noise goes as the fourth root of the error, and the precisions add up to one Gaussian's."""
    uses = [Use(name, error=weight) for name, weight in (("a", 1.0), ("b", 16.0), ("c", 81.0))]
    alone = smallest_noise(lambda s: [GaussianMechanism(s)], lambda m: epsilon(m, 1e-6) <= 1.0)
    plan = plan_budget(PrivacyBudget(1.0, 1e-6), uses)
    sigma = np.array([m.noise_multiplier for m in plan.mechanisms])
    np.testing.assert_allclose(sigma / sigma[2], [3.0, 1.5, 1.0], rtol=2e-3)
    assert (sigma**-2).sum() == pytest.approx(alone**-2, rel=5e-4)
    assert plan.error == pytest.approx((1 + 4 + 9) ** 2 * alone**2, rel=1e-3)


def test_noise_may_shrink_to_a_small_part_of_what_the_filter_would_ask_for():
    """A delta that covers the sampling leaves almost nothing to hide."""
    budget, use = PrivacyBudget(0.05, 1e-4), Use("a", 1.0, 0.001)
    plan = plan_budget(budget, [use])
    fits = PrivacyLedger(budget).fits
    assert fits(plan.mechanisms)
    assert not fits([use.mechanism(plan["a"].noise_multiplier * 0.999)])


@pytest.mark.parametrize(
    "uses",
    [
        USES,
        USES[:1],
        (Use("a", 1.0, 0.001, 20_000), Use("b", 2.0, 0.1, 50), Use("c", 0.01)),
        (Use("a", 1.0, 1.0, 10), Use("b", 1e-3, 0.3, 3)),
    ],
)
@pytest.mark.parametrize("eps", [0.3, 3.0, 12.0])
def test_under_the_filter_it_is_the_optimum_that_scipy_finds(uses, eps):
    budget = PrivacyBudget(eps, 1e-6)
    ledger, order, left = started(budget)
    plan = plan_budget(ledger, uses)
    assert ledger.fits(plan.mechanisms)

    def spent(logs):
        return sum(renyi(use.mechanism(math.exp(log)), order) for use, log in zip(uses, logs, strict=True))

    best = math.inf
    for start in (0.5, 1.0, 3.0):
        found = optimize.minimize(
            lambda logs: math.log(
                sum(use.error * math.exp(2 * log) for use, log in zip(uses, logs, strict=True))
            ),
            np.log([start * m.noise_multiplier for m in plan.mechanisms]),
            constraints={"type": "ineq", "fun": lambda logs: math.log(left) - math.log(spent(logs))},
            bounds=[(math.log(0.05), math.log(1e6))] * len(uses),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-10},
        )
        if found.success and spent(found.x) <= left * (1 + 1e-6):
            best = min(best, math.exp(found.fun))
    assert plan.error == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("uses", [USES, (Use("a", 1.0, 0.01, 300), Use("b", 50.0, 0.2, 5))])
def test_conditions_of_karush_kuhn_and_tucker(uses):
    ledger, order, left = started()
    plan = plan_budget(ledger, uses)
    prices = []
    for use, mechanism in zip(uses, plan.mechanisms, strict=True):
        x = mechanism.noise_multiplier**-2
        above, below = (renyi(use.mechanism((x * (1 + h)) ** -0.5), order) for h in (1e-4, -1e-4))
        prices.append(use.error / x**2 / ((above - below) / (2e-4 * x)))
    np.testing.assert_allclose(prices, plan.shadow_price, rtol=5e-3)
    spent = sum(renyi(mechanism, order) for mechanism in plan.mechanisms)
    assert (1 - 1e-3) * left <= spent <= left


@pytest.mark.parametrize(
    ("budget", "uses"),
    [
        (BUDGET, (Use("counts", 1.0), Use("sgd", 60.0, 0.02, 1000))),
        (PrivacyBudget(0.5, 1e-6), (Use("counts", 1.0), Use("sgd", 60.0, 0.02, 1000))),
        (PrivacyBudget(1.0, 1e-6), (Use("counts", 1.0), Use("sgd", 60.0, 0.001, 20_000))),
        (PrivacyBudget(8.0, 1e-6), (Use("gram", 1.0), Use("sgd", 6.0, 0.1, 100))),
    ],
)
def test_for_one_schedule_no_other_proportions_are_much_better_by_pld(budget, uses):
    plan = plan_budget(budget, uses)
    fits = PrivacyLedger(budget).fits
    sigma = [m.noise_multiplier for m in plan.mechanisms]
    grid = [
        scaled(uses, [sigma[0], sigma[1] * ratio], fits) for ratio in (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0)
    ]
    assert plan.error <= 1.005 * min(grid)
    assert grid[0] > 1.05 * plan.error
    assert grid[-1] > 1.05 * plan.error


@pytest.mark.parametrize("budget", [BUDGET, PrivacyBudget(0.5, 1e-6)])
def test_the_shadow_price_is_the_slope(budget):
    plan = plan_budget(budget, USES)
    errors = [
        plan_budget(PrivacyBudget(budget.epsilon * (1 + h), budget.delta), USES).error for h in (-0.03, 0.03)
    ]
    slope = (errors[0] - errors[1]) / (0.06 * budget.epsilon)
    assert plan.shadow_price == pytest.approx(slope, rel=0.03)


def test_it_beats_equal_epsilons():
    plan = plan_budget(BUDGET, USES)
    fits = PrivacyLedger(BUDGET).fits
    equal = [
        smallest_noise(lambda s, use=use: [use.mechanism(s)], lambda m: epsilon(m, 1e-5) <= 0.75)
        for use in USES
    ]
    assert plan.error < 0.9 * scaled(USES, equal, fits)


USE = st.builds(
    lambda error, rate, steps: (10.0**error, rate, steps),
    st.floats(-4, 4),
    st.sampled_from([0.001, 0.02, 0.3, 1.0]),
    st.sampled_from([1, 10, 500]),
)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([0.05, 1.0, 6.0]),
    st.sampled_from([1e-4, 1e-8]),
    st.lists(USE, min_size=1, max_size=4),
    st.booleans(),
)
def test_a_plan_is_granted_and_less_noise_is_not(eps, delta, uses, under_filter):
    uses = [Use(f"use {i}", *use) for i, use in enumerate(uses)]
    budget = PrivacyBudget(eps, delta)
    ledger = started(budget)[0] if under_filter else PrivacyLedger(budget)
    before = ledger.head
    plan = plan_budget(ledger, uses)
    assert ledger.head == before
    assert plan.epsilon <= eps
    assert plan.epsilon >= min(epsilon(plan.mechanisms, delta), eps)
    assert plan.error == pytest.approx(error(uses, plan.mechanisms))
    assert plan.shadow_price > 0
    less = [use.mechanism(0.998 * m.noise_multiplier) for use, m in zip(uses, plan.mechanisms, strict=True)]
    assert not ledger.fits(less)
    reservation = ledger.reserve(plan.mechanisms, purpose="the plan")
    for mechanism in plan.mechanisms:
        reservation.use(mechanism)


def test_a_budget_without_limits_leaves_the_least_noise_there_is():
    plan = plan_budget(PrivacyBudget(700.0, 1e-5), [Use("a", 1.0), Use("b", 2.0)])
    assert [m.noise_multiplier for m in plan.mechanisms] == [0.05, 0.05]
    assert plan.shadow_price == 0.0


def test_what_is_left_when_the_cap_binds_only_some_uses():
    """The least noise that there is holds one use, and the rest of the budget goes to the other."""
    plan = plan_budget(PrivacyBudget(350.0, 1e-5), [Use("a", 1e6), Use("b", 1.0)])
    assert plan["a"].noise_multiplier == 0.05
    assert plan["b"].noise_multiplier > 0.06
    assert plan.epsilon <= 350.0


@pytest.mark.parametrize(
    "answer",
    [
        lambda share: np.full(share.shape, 0.5),
        lambda share: np.full(share.shape, 1e-9),
        lambda share: np.ones(share.shape),
        lambda share: np.full(share.shape, np.nan),
        lambda share: -np.ones(share.shape),
        lambda share: share.value * np.linspace(0.9, 1.1, share.size),
        lambda share: share.value * 1.01,
        lambda share: None,
    ],
)
@pytest.mark.parametrize("filtered", [False, True])
def test_the_solver_is_not_trusted(monkeypatch, answer, filtered):
    honest = cp.Problem.solve

    def solve(self, **options):
        honest(self, **options)
        for variable in self.variables():
            variable.save_value(answer(variable))

    monkeypatch.setattr(cp.Problem, "solve", solve)
    ledger = started()[0] if filtered else PrivacyLedger(BUDGET)
    with pytest.raises(NumericalError, match="withstood"):
        plan_budget(ledger, USES)


def test_a_solver_that_fails_is_a_typed_error(monkeypatch):
    def fail(self, **options):
        raise cp.SolverError("no licence")

    monkeypatch.setattr(cp.Problem, "solve", fail)
    with pytest.raises(NumericalError, match="counts, gram, sgd, metrics"):
        plan_budget(BUDGET, USES)


def test_nothing_left_is_a_typed_error_and_spends_nothing():
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([SampledGaussianMechanism(1.0, 0.05, 68)], purpose="all of it")
    before = ledger.head
    with pytest.raises(BudgetExceededError, match="nothing more fits") as caught:
        plan_budget(ledger, USES)
    assert caught.value.remaining == 0.0
    assert caught.value.cap == 3.0
    assert ledger.head == before


def test_users_registered_before_spend_nothing():
    ledger = PrivacyLedger(BUDGET)
    ledger.register(["a", "b"])
    assert plan_budget(ledger, USES).error == pytest.approx(plan_budget(BUDGET, USES).error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Use("", 1.0),
        lambda: Use(3, 1.0),
        lambda: Use("a", 0.0),
        lambda: Use("a", -1.0),
        lambda: Use("a", math.inf),
        lambda: Use("a", math.nan),
        lambda: Use("a", "much"),
        lambda: Use("a", 1.0, sample_rate=0.0),
        lambda: Use("a", 1.0, sample_rate=1.5),
        lambda: Use("a", 1.0, steps=0),
        lambda: Use("a", 1.0, steps=2.5),
        lambda: plan_budget(BUDGET, []),
        lambda: plan_budget(BUDGET, [Use("a", 1.0), Use("a", 2.0)]),
        lambda: plan_budget(BUDGET, [Use("a", 1.0)])["b"],
    ],
)
def test_bad_requests(make):
    with pytest.raises(SpecificationError):
        make()


def test_a_use_makes_the_mechanism_that_its_reads_are():
    assert Use("a", 1.0).mechanism(2.0) == GaussianMechanism(2.0)
    assert Use("a", 1.0, 0.5).mechanism(2.0) == SampledGaussianMechanism(2.0, 0.5, 1)
    assert Use("a", 1.0, 1.0, 7).mechanism(2.0) == SampledGaussianMechanism(2.0, 1.0, 7)


def test_what_a_plan_shows():
    hostile = "<script>alert(1)</script>"
    plan = plan_budget(BUDGET, [Use(hostile, 1.0), Use("sgd", 60.0, 0.02, 1000)])
    assert plan[hostile] == plan.mechanisms[0]
    frame = plan.to_frame()
    assert frame.columns.tolist() == ["use", "noise_multiplier", "sample_rate", "steps", "error", "epsilon"]
    assert frame["use"].tolist() == [hostile, "sgd"]
    assert frame["error"].sum() == pytest.approx(plan.error)
    for stated, mechanism in itertools.zip_longest(frame["epsilon"], plan.mechanisms):
        assert epsilon([mechanism], 1e-5) <= stated <= epsilon([mechanism], 1e-5) + 1e-4
    page = plan._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert f"{plan.epsilon:.4f} of 3" in page
    assert repr(plan).startswith(f"BudgetPlan(epsilon {plan.epsilon:.4f} of 3 at delta 1e-05, error ")
