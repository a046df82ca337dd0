"""Audits: their bounds hold where epsilon is known, and mistakes in training are found."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from recsys_budget.audit import (
    OneRunAudit,
    audit_one_run,
    epsilon_lower_bound,
    membership_test,
    one_item_users,
    own_likelihood,
)
from recsys_budget.audit.membership import _attack
from recsys_budget.data import Interactions, ItemCatalogue, SyntheticSpec, make_interactions
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.models import EASE, Popularity, PrivateAutoencoder, PrivateTrainer
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger
from recsys_budget.training import _opacus, graph_sum

DELTA = 1e-5
CANARIES, OTHERS = 500, 10
CATALOGUE = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{k}" for k in range(CANARIES + OTHERS)]}))
TABLE = Interactions.from_frame(
    pd.DataFrame(
        {"user": [f"u{k}" for k in range(OTHERS)], "item": [f"i{CANARIES + k}" for k in range(OTHERS)]}
    ),
    catalogue=CATALOGUE,
)
USERS = one_item_users(CATALOGUE, range(CANARIES))


# --- the bound ---


def direct(m, r, v, epsilon, delta):
    """The theorem written out, term by term."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    reached = math.fsum(math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(v, r + 1))
    between = [
        math.fsum(math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(v - i, v)) / i
        for i in range(1, v + 1)
    ]
    return reached + 2 * m * delta * max(between, default=0.0)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta"),
    [
        (60, 60, 45, 0.0),
        (60, 60, 45, 1e-4),
        (60, 40, 40, 1e-3),
        (60, 2, 2, 1e-5),
        (5, 4, 0, 0.0),
        (60, 60, 60, 1e-9),
    ],
)
def test_the_bound_is_where_the_theorem_stops_refuting(m, r, v, delta):
    bound = epsilon_lower_bound(m, r, v, delta=delta)
    if bound:
        assert direct(m, r, v, bound, delta) <= 0.05
    assert direct(m, r, v, bound + 2e-4, delta) > 0.05
    chances = [direct(m, r, v, e, delta) for e in np.linspace(0, 8, 200)]
    assert all(np.diff(chances) >= -1e-12)  # so that there is one such place


def test_without_delta_and_with_every_guess_right_the_bound_is_in_closed_form():
    for r in (2, 30, 500):
        expected = -math.log(0.05 ** (-1 / r) - 1)
        assert epsilon_lower_bound(1000, r, r, delta=0.0) == pytest.approx(max(expected, 0), abs=2e-4)
    assert epsilon_lower_bound(10, 0, 0, delta=0.0) == 0


def test_the_bound_moves_the_right_way():
    bounds = [epsilon_lower_bound(200, 100, v, delta=1e-6) for v in range(101)]
    assert bounds == sorted(bounds)
    assert bounds[55] == 0 < bounds[65]
    by_delta = [epsilon_lower_bound(200, 100, 95, delta=d) for d in (0.0, 1e-6, 1e-4, 1e-2)]
    assert by_delta == sorted(by_delta, reverse=True)
    assert by_delta[0] > by_delta[-1]
    by_confidence = [epsilon_lower_bound(200, 100, 95, delta=1e-6, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert by_confidence == sorted(by_confidence, reverse=True)


def simulated(correct, m, r, delta, epsilon):
    """How often the bound comes out above the epsilon that holds."""
    values, counts = np.unique(correct, return_counts=True)
    above = [epsilon_lower_bound(m, r, int(v), delta=delta) > epsilon for v in values]
    return float((counts * above).sum() / counts.sum())


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("r", [20, 200])
def test_it_holds_for_randomised_response_which_is_the_worst_case_and_is_tight_there(epsilon, r):
    """Each coin is told rightly with probability exp(e) / (1 + exp(e)), which is epsilon e exactly."""
    rng, runs = np.random.default_rng(0), 20_000
    correct = rng.binomial(r, 1 / (1 + math.exp(-epsilon)), runs)
    wrong = simulated(correct, 200, r, 0.0, epsilon)
    assert wrong <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert r < 200 or wrong > 0.005  # not by being far below


@pytest.mark.parametrize(("together", "delta"), [(1, 1e-3), (15, 2e-3), (60, 2e-3)])
def test_it_holds_where_delta_is_used_up_to_give_some_coins_away(together, delta):
    """Now and then a set of coins is told outright: each with probability delta, so that holds as well."""
    rng, runs, m, epsilon = np.random.default_rng(1), 20_000, 100, 1.0
    guessed = rng.random((runs, m)) < 1 / (1 + math.exp(-epsilon))
    given_away = rng.random(runs) < m * delta / together
    for run in np.flatnonzero(given_away):
        guessed[run, rng.permutation(m)[:together]] = True
    correct = guessed.sum(1)
    assert simulated(correct, m, m, delta, epsilon) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    if m * delta / together > 0.01:
        # The term with delta is needed: without it the bound would be wrong too often, or nearly.
        assert simulated(correct, m, m, 0.0, epsilon) > simulated(correct, m, m, delta, epsilon)


def test_arguments_of_the_bound():
    for m, r, v in [(10, 11, 5), (10, 5, 6), (10, 5, -1)]:
        with pytest.raises(SpecificationError, match="at most the next"):
            epsilon_lower_bound(m, r, v, delta=0.0)
    with pytest.raises(SpecificationError, match="delta"):
        epsilon_lower_bound(10, 5, 5, delta=1.0)
    with pytest.raises(SpecificationError, match="confidence"):
        epsilon_lower_bound(10, 5, 5, delta=0.0, confidence=1.0)


# --- the audit ---


def telling(accuracy):
    """A model that knows each coin, and is right about it so often; and what an auditor reads off it."""

    def fit(table):
        inside = USERS.users.isin(table.users)
        right = np.random.default_rng(5).random(CANARIES) < accuracy
        return np.where(right, inside, ~inside)

    return fit, lambda model, canaries: model.astype(float)


def test_coins_fall_evenly_and_the_table_has_who_they_say():
    tables = []
    fit, score = telling(1.0)
    audit = audit_one_run(
        lambda t: tables.append(t) or fit(t), TABLE, USERS, score, delta=DELTA, rng=0, guesses=200
    )
    (table,) = tables
    assert set(TABLE.users) < set(table.users) < set(TABLE.users) | set(USERS.users)
    assert 200 < table.n_users - OTHERS < 300
    assert (audit.canaries, audit.guesses, audit.correct) == (CANARIES, 200, 200)
    assert 3.5 < audit.epsilon < 4.3
    assert audit.refutes(3.0)
    assert not audit.refutes(5.0)
    again = audit_one_run(lambda t: tables.append(t) or fit(t), TABLE, USERS, score, delta=DELTA, rng=1)
    assert not tables[1].users.equals(table.users)
    assert again.guesses == 166


def test_chance_shows_nothing():
    fit, score = telling(0.5)
    bounds = [audit_one_run(fit, TABLE, USERS, score, delta=DELTA, rng=seed).epsilon for seed in range(40)]
    assert np.mean(np.array(bounds) > 0) <= 0.15


def test_it_abstains_in_the_middle():
    inside = []

    def fit(table):
        inside.append(USERS.users.isin(table.users))

    def score(model, canaries):  # sure of the first 100, and wrong on the others
        known = np.where(inside[-1], 10.0, -10.0)
        return np.where(np.arange(CANARIES) < 100, known, -known / 10)

    audit = audit_one_run(fit, TABLE, USERS, score, delta=DELTA, rng=3, guesses=60)
    assert audit == OneRunAudit(audit.epsilon, DELTA, 0.95, CANARIES, 60, 60)


def test_arguments_of_the_audit():
    def fit(table):
        pytest.fail("trained")

    def score(model, canaries):
        pytest.fail("scored")

    other = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a", "b"]}))
    for canaries, changes in [
        (USERS, {"guesses": 3}),
        (USERS, {"guesses": CANARIES + 2}),
        (USERS, {"guesses": 0}),
        (USERS, {"delta": -1.0}),
        (USERS, {"confidence": 2.0}),
        (one_item_users(other, [0, 1]), {}),
        (TABLE, {}),
    ]:
        with pytest.raises(SpecificationError):
            audit_one_run(fit, TABLE, canaries, score, **{"delta": DELTA} | changes)
    for wrong in (np.full(CANARIES, np.nan), np.zeros(3)):
        with pytest.raises(NumericalError):
            audit_one_run(lambda t: None, TABLE, USERS, lambda m, c, wrong=wrong: wrong, delta=DELTA)


def test_a_table_shaped_by_unpaid_reads_stays_one():
    frame = pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"]})
    table = Interactions.from_frame(frame)
    with pytest.raises(SpecificationError, match="no budget paid"):
        audit_one_run(
            lambda t: PrivateAutoencoder(declared_users=10).fit(
                t, ledger=PrivacyLedger(PrivacyBudget(1.0, DELTA))
            ),
            table,
            one_item_users(table.catalogue, [0, 1]),
            own_likelihood,
            delta=DELTA,
            guesses=2,
        )


# --- membership ---


@pytest.fixture(scope="module")
def two_sides():
    spec = SyntheticSpec(n_users=300, n_items=120, n_categories=6, n_providers=10)
    table = make_interactions(spec, rng=3).interactions.positives(4)
    order = np.random.default_rng(0).permutation(300)
    return table.take_users(order[:150]), table.take_users(order[150:])


def test_membership_is_seen_in_the_control_and_not_in_the_private_model(two_sides):
    members, others = two_sides
    model = PrivateAutoencoder(declared_users=150, steps=30, n_factors=8, progress=False)
    model.fit(members, ledger=PrivacyLedger(PrivacyBudget(4.0, DELTA)))
    found = membership_test(model, members, others, control=EASE(l2=1.0).fit(members))
    assert found.has_power
    assert found.control.auc > 0.85
    assert found.control.advantage > 0.6
    assert abs(found.model.auc - 0.5) < 4 * found.model.standard_error
    assert abs(found.model.advantage) < 0.35
    weak = membership_test(model, members, others, control=model)
    assert weak.model == weak.control
    assert not weak.has_power


def test_likelihood_and_ranks_against_outside_functions(two_sides):
    members, others = two_sides
    model = EASE(l2=10.0).fit(members)
    ours = own_likelihood(model, members)
    logs = torch.log_softmax(torch.from_numpy(model.score(members)).double(), 1).numpy()
    used = members.matrix().toarray() > 0
    expected = [logs[i, own].mean() if own.any() else 0 for i, own in enumerate(used)]
    np.testing.assert_allclose(ours, expected)
    found = membership_test(model, members, others, control=model).model
    theirs = stats.mannwhitneyu(ours, own_likelihood(model, others))
    assert found.auc == pytest.approx(theirs.statistic / (150 * 150))
    assert len(own_likelihood(model, members.take_users([]))) == 0
    empty = members.where(members.rows != 0)
    assert own_likelihood(model, empty)[0] == 0


def test_the_advantage_is_measured_where_the_threshold_was_not_chosen():
    """Else the best of many thresholds would look like an advantage where there is none."""
    rng = np.random.default_rng(0)
    advantages = [_attack(rng.random(20), rng.random(20)).advantage for _ in range(400)]
    assert abs(np.mean(advantages)) < 0.04  # a standard error of 0.01; by the same half it is above 0.3


def test_arguments_of_the_membership_test(two_sides):
    members, others = two_sides
    model = EASE().fit(members)
    with pytest.raises(SpecificationError, match="both a member"):
        membership_test(model, members, members, control=model)
    with pytest.raises(SpecificationError, match="at least two"):
        membership_test(model, members, others.take_users([0]), control=model)


# --- the slow lane: training itself is audited ---

EPSILON, GUESSES = 2.0, 400


def gradient(outputs, row):
    return -20.0 * outputs.sum()


def train(table):
    """One weight an item, and each made-up user pulls at its own: orthogonal gradients, above the bound."""
    module = nn.Sequential(nn.Linear(CANARIES + OTHERS, 1, bias=False))
    with torch.no_grad():
        module[0].weight.zero_()
    trainer = PrivateTrainer(
        module, gradient, declared_users=CANARIES // 2, steps=4, sample_rate=1.0, progress=False
    )
    return trainer.fit(table, ledger=PrivacyLedger(PrivacyBudget(EPSILON, DELTA)))


def audit(fit, seed, score=lambda model, canaries: model.predict(canaries)[:, 0]):
    return audit_one_run(fit, TABLE, USERS, score, delta=DELTA, guesses=GUESSES, rng=seed).epsilon


@pytest.mark.slow
def test_no_audit_of_30_finds_more_than_epsilon_and_most_find_something():
    bounds = [audit(train, seed) for seed in range(30)]
    assert max(bounds) <= EPSILON
    assert np.median(bounds) > 0.05  # a bound of 0 would be no audit


@pytest.mark.slow
def test_wrong_clipping_is_found_10_times_of_10(monkeypatch):
    # The second line would refuse it at once; here it is told to look away.
    monkeypatch.setattr("recsys_budget.models.trainer.check_sensitivity", lambda *a, **k: 1.0)
    monkeypatch.setattr(graph_sum, "_squares", lambda layer, values, flow: 0 * graph_sum._length(flow))
    assert min(audit(train, seed) for seed in range(10)) > EPSILON


@pytest.mark.slow
def test_noise_divided_by_the_root_of_the_batch_is_found_10_times_of_10(monkeypatch):
    batch = CANARIES // 2

    def too_little(noise_multiplier):
        return GaussianMechanism(noise_multiplier / math.sqrt(batch))

    monkeypatch.setattr(_opacus, "GaussianMechanism", too_little)
    assert min(audit(train, seed) for seed in range(10)) > EPSILON


@pytest.mark.slow
def test_any_recommender_is_audited_by_its_likelihood_alone():
    def private(table):
        model = PrivateAutoencoder(
            declared_users=CANARIES // 2, steps=10, n_factors=4, sample_rate=0.5, progress=False
        )
        return model.fit(table, ledger=PrivacyLedger(PrivacyBudget(EPSILON, DELTA)))

    assert max(audit(private, seed, own_likelihood) for seed in range(5)) <= EPSILON
    assert min(audit(Popularity().fit, seed, own_likelihood) for seed in range(5)) > 4.5
