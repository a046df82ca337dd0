"""The start from a noisy Gram matrix: what one user can change, what stands out, and the model around it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from invented import recall, some
from scipy import sparse
from sklearn.exceptions import NotFittedError

from recsys_budget.data import Interactions
from recsys_budget.errors import BudgetExceededError, CheckpointError, SpecificationError
from recsys_budget.models import Popularity, PrivateAutoencoder
from recsys_budget.models import autoencoder as autoencoder_module
from recsys_budget.models.warm_start import head_of, log_popularity, release_gram, warm_factors, weights_of
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    Reservation,
    SampledGaussianMechanism,
    SystemNoise,
    epsilon,
)

BUDGET = PrivacyBudget(6.0, 1e-5)


class NoNoise(SystemNoise):
    """Shows the sum itself, but for the grid of the release."""

    private = False

    def normal(self, size):
        return np.zeros(size)


@pytest.fixture(scope="module")
def split():
    return some()


def model(**changes):
    constants = {"declared_users": 700, "start": "gram", "steps": 3, "progress": False}
    return PrivateAutoencoder(**constants | changes)


def rows_of(n=60, items=30, rng=0):
    """Histories of all lengths: one item, all of them, none."""
    generator = np.random.default_rng(rng)
    table = generator.random((n, items)) < generator.random((n, 1)) ** 2
    table[0], table[1], table[2] = True, False, np.arange(items) == 5
    return sparse.csr_array(table.astype(np.float32))


def gram_of(rows, weights, head=None):
    head = np.arange(rows.shape[1])[::-1] if head is None else head
    return release_gram(rows, head, weights, GaussianMechanism(1.0), NoNoise())


@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_a_user_moves_the_gram_matrix_by_at_most_one(spread):
    rows, weights = rows_of(), np.exp(spread * np.random.default_rng(1).normal(size=30))
    whole = gram_of(rows, weights)
    moves = []
    for user in range(60):
        moves.append(np.linalg.norm(whole - gram_of(rows[np.arange(60) != user], weights)))
    assert max(moves) <= 1
    assert max(moves) > 0.99
    assert moves[1] == 0


def test_rows_that_are_not_divided_by_their_length_would_be_caught(monkeypatch):
    monkeypatch.setattr(np, "sqrt", lambda x: np.minimum(x, 1.0))
    rows = rows_of()
    assert np.linalg.norm(gram_of(rows, np.ones(30)) - gram_of(rows[1:], np.ones(30))) > 2


def test_the_gram_matrix_against_its_definition_and_in_any_order():
    rows, weights = rows_of(), np.linspace(0.2, 3, 9)
    head = np.array([5, 3, 29, 0, 7, 11, 13, 2, 1])
    dense = rows.toarray()[:, head] * weights
    units = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-300)
    ours = gram_of(rows, weights, head)
    np.testing.assert_allclose(ours, units.T @ units, atol=60 * 2.0**-12)
    shuffled = rows[np.random.default_rng(2).permutation(60)]
    np.testing.assert_array_equal(gram_of(shuffled, weights, head), ours)  # sums are exact
    assert gram_of(rows[:0], weights, head).max() < 1e-8


def test_the_gram_matrix_carries_the_noise_that_was_paid_for():
    rows = sparse.csr_array((4, 300), dtype=np.float32)
    noisy = release_gram(rows, np.arange(300), np.ones(300), GaussianMechanism(2.5), SystemNoise())
    np.testing.assert_array_equal(noisy, noisy.T)
    off = noisy[np.triu_indices(300, 1)]  # 44,850 numbers: a standard error of 0.0033
    assert abs(off.std() / (2.5 / np.sqrt(2)) - 1) < 0.017
    assert abs(np.diag(noisy).std() / 2.5 - 1) < 0.2


def test_the_head_grows_with_users_and_shrinks_with_noise():
    bias = np.array([0.0, 2.0, 1.0, 2.0] + [0.0] * 3000)
    assert head_of(bias, 700, 1.0).tolist()[:5] == [1, 3, 2, 0, 4]
    sizes = [
        len(head_of(bias, users, noise))
        for users, noise in ((1, 9.0), (4000, 2.0), (4000, 1.0), (10**7, 1.0))
    ]
    assert sizes == [50, 358, 506, 2000]
    assert len(head_of(bias[:20], 4000, 1.0)) == 20


def test_counts_below_the_noise_start_level():
    np.testing.assert_allclose(log_popularity(np.array([-3.0, 2.0, 4.0, 40.0]), 4.0), [0, 0, 0, np.log(10)])
    np.testing.assert_allclose(log_popularity(np.array([0.5, 2.0]), 0.1), [0, np.log(2)])


def planted(n=80, users=4000, groups=4, noise=2.0, rng=0):
    """Users of some groups of items, each item in one; the Gram matrix of their unit rows, with noise."""
    generator = np.random.default_rng(rng)
    own = np.arange(n) % groups
    rows = generator.random((users, n)) < np.where(
        generator.integers(0, groups, (users, 1)) == own, 0.3, 0.05
    )
    bias = np.log(np.maximum(rows.sum(0), 1.0))
    head = np.arange(n)
    weights = weights_of(bias, head)
    table = sparse.csr_array(rows.astype(np.float32))
    gram = release_gram(table, head, weights, GaussianMechanism(noise), SystemNoise())
    return rows, own, warm_factors(gram, head, bias, noise=noise, declared_users=users, n_factors=3)


def test_factors_find_the_groups_and_move_logits_by_about_one():
    rows, own, factors = planted()
    assert factors.shape == (80, 3)  # of four directions the first is popularity
    units = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    same = own[:, None] == own
    assert (units @ units.T)[same].min() > 0.7
    assert (units @ units.T)[~same].max() < 0.3
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
    logits = (rows / lengths) @ factors @ factors.T
    assert 0.5 < np.sqrt((logits**2).mean()) < 2


def test_noise_alone_leaves_no_factors():
    found = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        noisy = 3.0 * generator.normal(size=(60, 60))
        factors = warm_factors(
            (noisy + noisy.T) / 2, np.arange(60), np.zeros(90), noise=3.0, declared_users=100, n_factors=8
        )
        assert factors.shape[0] == 90
        found += factors.shape[1]
    assert found == 0


@pytest.mark.parametrize(("second", "kept"), [(10.9, 0), (11.5, 0), (13.0, 1)])
def test_what_noise_may_reach_by_chance_does_not_stand_out(second, kept):
    """The largest eigenvalue of noise alone in 60 dimensions: about 10.95, and 12.38 once in thousands."""
    gram = np.diag([100.0, second] + [0.0] * 58)
    factors = warm_factors(gram, np.arange(60), np.zeros(60), noise=1.0, declared_users=100, n_factors=8)
    assert factors.shape == (60, kept)


def test_the_largest_factors_are_kept_and_items_outside_of_the_head_have_none():
    gram = np.diag([50.0, 40.0, 30.0, 20.0, 0.0])
    factors = warm_factors(
        gram, np.array([4, 6, 1, 0, 2]), np.zeros(8), noise=0.1, declared_users=100, n_factors=2
    )
    assert factors.shape == (8, 2)
    assert np.flatnonzero(np.abs(factors).sum(1) > 1e-9).tolist() == [1, 6]  # those of 40 and 30


def test_order_is_reserve_pay_read_for_each_release(split, monkeypatch):
    events = []

    def log(owner, name, label):
        function = getattr(owner, name)

        def logged(*arguments, **keywords):
            events.append((label, *(a for a in arguments if "Mechanism" in type(a).__name__)))
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, logged)

    log(PrivacyLedger, "reserve", "reserve")
    log(Reservation, "use", "use")
    log(Interactions, "matrix", "read")
    log(autoencoder_module, "release_gram", "gram")
    log(autoencoder_module, "train_private", "train")
    fitted = model().fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert [name for name, *_ in events] == ["reserve", "use", "read", "use", "gram", "train", *["use"] * 3]
    counts, gram, training = (dict(m) for m in fitted.receipt_.mechanisms)
    assert events[1][1] == GaussianMechanism(counts["noise_multiplier"])
    assert events[3][1] == events[4][1] == GaussianMechanism(gram["noise_multiplier"])
    assert events[6][1] == SampledGaussianMechanism(training["noise_multiplier"], 0.5, 3)
    assert fitted.receipt_.constants["steps"] == 3
    assert fitted.receipt_.constants["sample_rate"] == 0.5  # what None stands for


def test_the_planner_gives_most_to_the_gram_matrix_and_all_of_the_budget(split):
    ledger = PrivacyLedger(BUDGET)
    fitted = model().fit(split.train, ledger=ledger)
    counts, gram, training = (dict(m)["noise_multiplier"] for m in fitted.receipt_.mechanisms)
    assert counts / gram == pytest.approx(3.0, rel=0.02)
    assert 5.9 < fitted.receipt_.epsilon <= 6.0
    alone = epsilon([GaussianMechanism(gram)], 1e-5)
    assert alone > epsilon([SampledGaussianMechanism(training, 0.5, 3)], 1e-5)
    with pytest.raises(BudgetExceededError):
        model().fit(split.train, ledger=ledger)


def test_a_spent_ledger_is_refused_before_any_read(split, monkeypatch):
    ledger = PrivacyLedger(BUDGET)
    model().fit(split.train, ledger=ledger)
    monkeypatch.setattr(Interactions, "matrix", lambda self: pytest.fail("private data was read"))
    before = ledger.spent
    with pytest.raises(BudgetExceededError):
        model().fit(split.train, ledger=ledger)
    assert ledger.spent == before


def test_a_filtered_ledger_grants_what_is_left(split):
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(5.0)], purpose="something else")
    assert model().fit(split.train, ledger=ledger).receipt_.steps == 3
    assert ledger.spent <= 6.0


def test_a_warm_start_personalises_where_there_is_taste_and_little_budget(split):
    fitted = model(steps=None).fit(split.train, ledger=PrivacyLedger(PrivacyBudget(2.0, 1e-5)))
    popularity = recall(Popularity().fit(split.train), split)
    # 0.46 to 0.49 in four runs, against 0.40 for popularity and 0.46 to 0.48 from a random start.
    assert recall(fitted, split) > 1.05 * popularity


def test_where_nothing_stands_out_the_start_is_random(split):
    fitted = model(n_factors=5).fit(split.train, ledger=PrivacyLedger(PrivacyBudget(0.05, 1e-5)))
    assert fitted.module_[1].weight.shape == (5, 120)
    assert float(fitted.module_[1].weight.detach().abs().min(1).values.max()) > 0
    assert np.isfinite(fitted.score(split.fold_in)).all()


def test_epsilon_path_costs_what_the_run_cost(split):
    fitted = model(steps=6, epsilons=(5.6, 5.8, 6.0, 0.1)).fit(split.train, ledger=PrivacyLedger(BUDGET))
    path = fitted.epsilon_path()
    counts, gram, training = (dict(m)["noise_multiplier"] for m in fitted.receipt_.mechanisms)
    assert [point.steps for point in path] == sorted({point.steps for point in path})
    assert path[-1].steps == 6
    first = (GaussianMechanism(counts), GaussianMechanism(gram))
    for point in path:
        released = (*first, SampledGaussianMechanism(training, 0.5, point.steps))
        assert point.epsilon == epsilon(released, 1e-5) <= 6.0
    np.testing.assert_array_equal(path[-1].model.score(split.fold_in), fitted.score(split.fold_in))
    assert path[0].model.epsilon_path() == ()
    with pytest.raises(NotFittedError):
        model().epsilon_path()


def test_a_run_that_broke_off_goes_on_from_its_factors(split, tmp_path, monkeypatch):
    ledger = PrivacyLedger(BUDGET, tmp_path / "budget.db")
    save = autoencoder_module.save_checkpoint

    def failing(where, checkpoint):
        if checkpoint.state.steps >= 4:
            raise CheckpointError("the disk is full")
        save(where, checkpoint)

    constants = {"checkpoint": tmp_path / "run", "checkpoint_every": 2, "steps": 6}
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder_module, "save_checkpoint", failing)
        with pytest.raises(CheckpointError, match="disk is full"):
            model(**constants).fit(split.train, ledger=ledger)
    monkeypatch.setattr(autoencoder_module, "release_gram", lambda *a, **k: pytest.fail("released again"))
    fitted = model(**constants).fit(split.train, ledger=ledger, resume=True)
    assert fitted.receipt_.steps == 4  # two were paid for and lost
    assert fitted.module_[1].out_features > 1
    assert len(fitted.receipt_.mechanisms) == 3


def test_seeds_repeat_and_say_so(split):
    scores = [
        model(insecure_seed=seed).fit(split.train, ledger=PrivacyLedger(BUDGET)).score(split.fold_in)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"start": "pca"}, "start"),
        ({"noise_multiplier": 2.0}, "planner"),
        ({"negatives": 1}, "negatives"),
        ({"steps": 0}, "steps"),
        ({"n_factors": -1}, "n_factors"),
        ({"sample_rate": 1.5}, "sample_rate"),
    ],
)
def test_constants_out_of_range_cost_nothing(split, change, match):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(SpecificationError, match=match):
        model(**change).fit(split.train, ledger=ledger)
    assert ledger.spent == 0


def test_the_rule_depends_on_public_quantities_alone():
    cold, warm = model(start=None, steps=None), model(steps=None)
    assert cold._rule(1000) == {
        "n_factors": 32,
        "steps": 300,
        "sample_rate": 0.1,
        "max_grad_norm": 0.3,
        "learning_rate": 0.01,
        "negatives": None,
    }
    assert warm._rule(16_385)["negatives"] == cold._rule(10**6)["negatives"] == 4096
    assert warm._rule(1000)["n_factors"] == 64
    assert model(steps=7)._rule(1000)["steps"] == 7


def test_negatives_train_as_well(split):
    fitted = model(start=None, negatives=40, n_factors=8, steps=200, sample_rate=0.3).fit(
        split.train, ledger=PrivacyLedger(PrivacyBudget(20.0, 1e-5))
    )
    popular = split.train.matrix().sum(0)
    ranked = pd.Series(popular).rank(ascending=False)
    assert len(ranked) == 120
    # 0.56 to 0.60 in five runs; popularity reaches 0.40.
    assert recall(fitted, split) > 0.48
    assert torch.isfinite(fitted.module_[1].weight).all()
