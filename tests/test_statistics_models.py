"""Models from private statistics: paid for first, right without noise, popularity where noise hides all."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from invented import payments, recall, some
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from recsys_budget.data import Interactions, ItemCatalogue, SyntheticSpec, hold_out_users, make_interactions
from recsys_budget.errors import BudgetExceededError, PopulationError, SpecificationError
from recsys_budget.models import (
    PrivateItemModel,
    PrivatePopularity,
    counts_share,
    head_size,
    item_model,
    recommend_model,
)
from recsys_budget.models._denoise import least_squares, leave_one_out, prior_weights, shrink
from recsys_budget.models._relations import centred, relations
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    PrivateQueries,
    SystemNoise,
    epsilon,
    smallest_noise,
)

BUDGET = PrivacyBudget(4.0, 1e-5)
MODELS = {
    "popularity": lambda **changes: PrivatePopularity(**{"declared_users": 700} | changes),
    "ease": lambda **changes: PrivateItemModel(**{"declared_users": 700} | changes),
    "pca": lambda **changes: PrivateItemModel(**{"declared_users": 700, "method": "pca"} | changes),
}
EACH_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module")
def split():
    return some()


class Quiet:
    """No noise at all, in place of the operating system's."""

    private = True

    def normal(self, size):
        return np.zeros(size)


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(SystemNoise, "normal", Quiet.normal)


# --- paying


@EACH_MODEL
def test_one_reservation_takes_what_is_left_and_the_receipt_says_so(split, make):
    ledger = PrivacyLedger(BUDGET)
    model = make().fit(split.train, ledger=ledger)
    assert 3.99 < ledger.spent <= 4.0
    history = ledger.history()
    assert history.loc[history["event"] == "reservation", "settled"].tolist() == [True]
    receipt = model.receipt_
    assert receipt.private
    assert 3.99 < receipt.epsilon <= 4.0001
    assert receipt.steps == 0
    assert receipt.constants["declared_users"] == 700
    receipt.verify(ledger)
    kinds = [m["kind"] for m in receipt.mechanisms]
    assert kinds == ["GaussianMechanism"] * (1 if isinstance(model, PrivatePopularity) else 2)


@EACH_MODEL
def test_each_read_follows_its_own_payment(split, monkeypatch, make):
    events = payments(monkeypatch)
    model = make().fit(split.train, ledger=PrivacyLedger(BUDGET))
    (mechanisms,) = (arguments[0] for label, arguments in events if label == "reserve")
    used = [arguments[0] for label, arguments in events if label == "use"]
    assert used == list(mechanisms)
    labels = [label for label, _ in events if label != "commit"]
    expected = ["reserve", "use", "noise"] + ["use", "read", "noise"] * (len(mechanisms) - 1)
    assert labels == expected
    # The noise that was drawn is what was paid for, and no more than once for each number.
    drawn = [arguments[0] for label, arguments in events if label == "noise"]
    sizes = [len(model.counts_)] + ([len(model.gram_) ** 2] if len(mechanisms) > 1 else [])
    assert drawn == sizes


@EACH_MODEL
def test_a_spent_ledger_refuses_before_any_read(split, monkeypatch, make):
    ledger = PrivacyLedger(BUDGET)
    make().fit(split.train, ledger=ledger)
    before = ledger.spent

    def read(*arguments, **keywords):
        raise AssertionError("private data was read")

    for name in ("item_counts", "unit_gram"):
        monkeypatch.setattr(PrivateQueries, name, read)
    with pytest.raises(BudgetExceededError, match="Nothing was spent"):
        make().fit(split.train, ledger=ledger)
    assert ledger.spent == before


@EACH_MODEL
def test_a_partly_spent_ledger_leaves_room_for_the_rest_only(split, make):
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(3.0)], purpose="something else")
    model = make().fit(split.train, ledger=ledger)
    assert ledger.spent <= 4.0
    assert model.receipt_.ledger_epsilon == 4.0


@EACH_MODEL
def test_tables_shaped_by_unpaid_reads_and_strangers_cost_nothing(split, make):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(SpecificationError, match="vocabulary was read"):
        make().fit(Interactions.from_frame(split.train.to_frame()), ledger=ledger)
    assert ledger.spent == 0
    assert "reservation" not in ledger.history()["event"].tolist()


def test_people_of_another_population_are_refused_before_anything_is_spent(split, tmp_path):
    one = PrivacyLedger(BUDGET, path=tmp_path / "l.db", population="one")
    two = PrivacyLedger(BUDGET, path=tmp_path / "l.db", population="two")
    MODELS["popularity"]().fit(split.train, ledger=one)
    before = two.history()
    with pytest.raises(PopulationError):
        MODELS["ease"]().fit(split.train, ledger=two)
    assert two.spent == 0
    pd.testing.assert_frame_equal(two.history(), before)


@EACH_MODEL
def test_a_crash_while_noise_is_drawn_stays_spent_and_is_settled(split, monkeypatch, make):
    def crash(self, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(SystemNoise, "normal", crash)
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(KeyboardInterrupt):
        make().fit(split.train, ledger=ledger)
    assert ledger.spent > 3.9
    history = ledger.history()
    assert history.loc[history["event"] == "reservation", "settled"].tolist() == [True]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("popularity", {"declared_users": 0}),
        ("ease", {"declared_users": 2.5}),
        ("ease", {"declared_users": True}),
        ("ease", {"method": "svd"}),
        ("ease", {"head_items": 0}),
        ("ease", {"head_items": 121}),
        ("ease", {"counts_share": 0.0}),
        ("ease", {"counts_share": 1.0}),
        ("ease", {"counts_share": np.nan}),
        ("ease", {"insecure_seed": -1}),
        ("popularity", {"insecure_seed": 1.5}),
    ],
)
def test_constants_out_of_range_cost_nothing(split, kind, change):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(SpecificationError):
        MODELS[kind](**change).fit(split.train, ledger=ledger)
    assert ledger.spent == 0


def test_shares_of_the_budget_compose_to_all_of_it(split):
    """Two Gaussians cost what one of 1 / noise**2 added up costs."""
    ledger = PrivacyLedger(BUDGET)
    model = PrivateItemModel(declared_users=700, counts_share=0.3).fit(split.train, ledger=ledger)
    counts, gram = (m["noise_multiplier"] for m in model.receipt_.mechanisms)
    assert counts**-2 / (counts**-2 + gram**-2) == pytest.approx(0.3)
    alone = smallest_noise(lambda s: (GaussianMechanism(s),), PrivacyLedger(BUDGET).fits)
    assert counts**-2 + gram**-2 == pytest.approx(alone**-2, rel=2e-3)
    assert epsilon([GaussianMechanism(counts), GaussianMechanism(gram)], 1e-5) <= 4.0


# --- what is private stays so


@EACH_MODEL
def test_noise_is_fresh_unless_asked_otherwise_and_then_the_receipt_says_not_private(split, make):
    def scores(**changes):
        model = make(**changes).fit(split.train, ledger=PrivacyLedger(BUDGET))
        return model, model.score(split.fold_in)

    assert not np.array_equal(scores()[1], scores()[1])
    (model, first), (_, second) = scores(insecure_seed=1), scores(insecure_seed=1)
    np.testing.assert_array_equal(first, second)
    assert not model.receipt_.private
    assert model.receipt_.guarantee.startswith("not private")


def test_a_model_is_a_function_of_what_was_released(split, monkeypatch):
    """With the two releases replaced by fixed values, the training table changes nothing."""
    model = MODELS["ease"](insecure_seed=0).fit(split.train, ledger=PrivacyLedger(BUDGET))
    monkeypatch.setattr(PrivateQueries, "item_counts", lambda self, *a, **k: model.counts_)
    monkeypatch.setattr(PrivateQueries, "unit_gram", lambda self, *a, **k: model.gram_)
    other = split.train.take_users(np.arange(3))
    again = MODELS["ease"](insecure_seed=0).fit(other, ledger=PrivacyLedger(BUDGET))
    np.testing.assert_array_equal(again.score(split.fold_in), model.score(split.fold_in))


@EACH_MODEL
def test_hostile_users_leave_finite_scores_and_no_table_is_kept(split, make):
    """Somebody with everything, somebody with one item, nobody with anything."""
    n = split.train.n_items
    hostile = Interactions(
        users=pd.Index(["a", "b", "c"], dtype="str"),
        catalogue=split.train.catalogue,
        indptr=np.array([0, n, n + 1, n + 1]),
        indices=np.append(np.arange(n), 5).astype(np.int32),
        ratings=np.full(n + 1, np.nan, np.float32),
    )
    nobody = hostile.take_users([])
    for table in (hostile, nobody):
        model = make().fit(table, ledger=PrivacyLedger(BUDGET))
        assert np.isfinite(model.score(split.fold_in)).all()
        assert not any(isinstance(v, Interactions) for v in vars(model).values())


# --- what is learnt


@pytest.mark.parametrize("method", ["ease", "pca"])
def test_with_budget_it_beats_popularity_by_far(split, method):
    model = PrivateItemModel(declared_users=700, method=method, insecure_seed=0)
    model.fit(split.train, ledger=PrivacyLedger(PrivacyBudget(8.0, 1e-5)))
    popular = PrivatePopularity(declared_users=700, insecure_seed=0)
    popular.fit(split.train, ledger=PrivacyLedger(PrivacyBudget(8.0, 1e-5)))
    assert model.personalised_
    assert model.rank_ > 0
    assert recall(model, split) > 1.15 * recall(popular, split)


def test_popularity_ranks_by_noisy_counts(split, quiet):
    model = PrivatePopularity(declared_users=700).fit(split.train, ledger=PrivacyLedger(BUDGET))
    expected = np.zeros(120)
    for row in split.train.matrix().toarray():
        expected += row / np.sqrt(max(row.sum(), 1))
    np.testing.assert_allclose(model.counts_.values, expected, atol=1e-2)
    np.testing.assert_array_equal(model.score(split.fold_in)[0], model.counts_.values.astype(np.float32))


def test_the_noiseless_model_by_hand(split, quiet):
    """Everything written out for one user, without relations of the catalogue."""
    model = PrivateItemModel(declared_users=700, head_items=40, use_catalogue=False)
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    counts = model.counts_.values
    head = np.sort(np.argsort(-counts, kind="stable")[:40])
    noise, s = model.counts_.standard_errors[0], model.gram_.standard_error
    shares = counts / counts[head].sum()
    known = np.maximum(counts, noise)[head]
    rows = split.train.matrix().toarray()[:, head].astype(float)
    y = known**-0.25 * (rows - rows.sum(1, keepdims=True) * shares[head])
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    y[rows.sum(1) == 0] = 0
    np.testing.assert_allclose(model.gram_.matrix, (1 - 2.0**-10) * y.T @ y, atol=1e-4)
    s = np.sqrt(s**2 + np.trace(model.gram_.matrix) / 40**2)  # chance, beside the noise of the release
    found, rank = shrink(model.gram_.matrix, s)
    assert model.rank_ == rank
    own = (np.trace(model.gram_.matrix) - np.trace(found)) / (known**0.5).sum()
    inverse = np.linalg.inv(found + np.diag(own * known**0.5 + s * np.sqrt(40)))
    linear = -inverse / np.diag(inverse)
    np.fill_diagonal(linear, 0)
    history = split.fold_in.matrix().toarray()[:50].astype(float)
    inside = history[:, head]
    length = inside.sum(1, keepdims=True)
    expected = np.maximum(length, 1) * shares
    moved = (known**-0.25 * (inside - length * shares[head])) @ linear / known**-0.25
    expected[:, head] += 1.5 * moved
    np.testing.assert_allclose(model.score(split.fold_in)[:50], expected, rtol=1e-3, atol=1e-4)


def test_where_noise_hides_everything_it_is_popularity_and_says_so(split):
    budget = PrivacyBudget(0.02, 1e-5)
    model = MODELS["ease"](insecure_seed=5).fit(split.train, ledger=PrivacyLedger(budget))
    assert not model.personalised_
    assert model.rank_ == 0
    assert not any(model.correlations_.values())
    assert "popularity alone" in model.receipt_.stop_reason
    order = np.argsort(-model.score(split.fold_in), axis=1, kind="stable")
    assert (order[:, :20] == order[0, :20]).all()
    best = np.argsort(-model.counts_.values, kind="stable")[:20]
    np.testing.assert_array_equal(order[0, :20], best)


def catalogue_of(n, provider=None, attributes=None):
    frame = pd.DataFrame({"item": [f"i{k:03d}" for k in range(n)]})
    frame["provider"] = [f"p{k}" for k in range(n)] if provider is None else provider
    for name, values in (attributes or {}).items():
        frame[name] = values
    return ItemCatalogue.from_frame(frame, attributes=tuple(attributes or {}))


@pytest.fixture(scope="module")
def fans():
    """Each user likes two providers, and half of what they use is theirs; a third of the items is rare."""
    rng = np.random.default_rng(0)
    n, users = 90, 1500
    provider = np.arange(n) // 3
    appeal = np.where(np.arange(n) % 3 == 2, 0.2, 1.0)
    rows = []
    for _ in range(users):
        chance = appeal * np.where(np.isin(provider, rng.choice(30, 2, replace=False)), 30, 1)
        rows.append(np.sort(rng.choice(n, 8, replace=False, p=chance / chance.sum())))
    table = Interactions(
        users=pd.Index([f"u{k:05d}" for k in range(users)], dtype="str"),
        catalogue=catalogue_of(n, [f"p{k}" for k in provider]),
        indptr=np.arange(users + 1) * 8,
        indices=np.concatenate(rows).astype(np.int32),
    )
    return hold_out_users(table, 300, rng=0)


def test_a_provider_is_found_and_reaches_items_outside_the_head(fans):
    budget = PrivacyBudget(2.0, 1e-5)

    def fitted(**changes):
        model = PrivateItemModel(declared_users=1200, head_items=60, insecure_seed=0, **changes)
        return model.fit(fans.train, ledger=PrivacyLedger(budget))

    model, plain = fitted(), fitted(use_catalogue=False)
    assert model.correlations_["provider"] > 0.02
    assert plain.correlations_ == {}
    assert recall(model, fans) > 1.1 * recall(plain, fans)
    tail = np.setdiff1d(np.arange(90), model._head)
    assert len(tail) == 30
    one = fans.fold_in.take_users([0])
    scores, popular = model.score(one)[0], plain.score(one)[0]
    for item in tail:
        assert (scores[item] > popular[item] + 1e-6) == (item // 3 in one.indices // 3)


def test_names_that_mean_nothing_are_given_no_weight():
    """The same interactions under providers drawn at random: shrunk to next to nothing."""
    rng = np.random.default_rng(2)
    table = make_interactions(SyntheticSpec(n_users=900, n_items=120), rng=3).interactions
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": table.catalogue.ids,
                "provider": [f"p{k}" for k in rng.integers(0, 40, 120)],
                "noise": rng.normal(size=120),
            }
        ),
        attributes=("noise",),
    )
    shuffled = Interactions(table.users, catalogue, table.indptr, table.indices)
    model = PrivateItemModel(declared_users=900, head_items=80, insecure_seed=0)
    model.fit(shuffled, ledger=PrivacyLedger(BUDGET))
    assert set(model.correlations_) == {"provider", "noise"}
    assert max(model.correlations_.values()) < 0.01


def test_seen_items_count_the_same_in_batches_and_alone(fans):
    model = PrivateItemModel(declared_users=1200, insecure_seed=0).fit(
        fans.train, ledger=PrivacyLedger(BUDGET)
    )
    together = model.score(fans.fold_in)
    alone = np.concatenate([model.score(fans.fold_in.take_users([k])) for k in range(20)])
    np.testing.assert_allclose(alone, together[:20], rtol=1e-4, atol=1e-5)


def test_one_user_moves_neither_release_by_more_than_its_sensitivity(split, monkeypatch):
    """The whole fit, with and without each of some users: the exact sums behind both releases."""
    from recsys_budget.privacy import queries as queries_module

    sums = []

    def exact(total, *, sensitivity, mechanism, noise):
        sums.append((total.copy(), sensitivity))
        return total + 1e-9

    monkeypatch.setattr(queries_module, "release_sum", exact)
    whole = split.train.take_users(np.arange(150))
    # What depends on the first release must be fixed, as composition fixes it: the head and its weights.
    fixed = MODELS["ease"](head_items=50).fit(whole, ledger=PrivacyLedger(BUDGET))
    first = PrivateQueries.item_counts

    def same(self, mechanism, *, max_items):
        first(self, mechanism, max_items=max_items)
        return fixed.counts_

    monkeypatch.setattr(PrivateQueries, "item_counts", same)
    sums.clear()
    MODELS["ease"](head_items=50).fit(whole, ledger=PrivacyLedger(BUDGET))
    before = list(sums)
    largest = [0.0, 0.0]
    for user in range(0, 150, 15):
        sums.clear()
        rest = whole.take_users(np.delete(np.arange(150), user))
        MODELS["ease"](head_items=50).fit(rest, ledger=PrivacyLedger(BUDGET))
        for k in range(2):
            moved = np.linalg.norm(before[k][0] - sums[k][0])
            assert moved <= before[k][1] == sums[k][1] == 1.0
            largest[k] = max(largest[k], moved)
    assert min(largest) > 0.99


@EACH_MODEL
def test_params_clone_and_not_fitted(split, make):
    model = make(insecure_seed=3)
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        model.score(split.fold_in)
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(again.score(split.fold_in), model.score(split.fold_in))
    ranked = model.recommend(split.fold_in, 3)
    assert ranked["rank"].tolist()[:3] == [1, 2, 3]


# --- parts


def wigner(rng, n):
    z = rng.standard_normal((n, n))
    return (z + z.T) / np.sqrt(2)


def test_shrinking_pure_noise_leaves_next_to_nothing():
    left = [shrink(0.7 * wigner(np.random.default_rng(k), 200), 0.7) for k in range(20)]
    assert np.mean([rank for _, rank in left]) <= 1
    assert max(np.linalg.norm(found) for found, _ in left) < 0.35 * 0.7 * 200


def test_shrinking_is_better_than_every_multiple_of_the_top_vectors():
    """Against the truth, no single rescaling of the observed rank-3 part does better."""
    rng, n = np.random.default_rng(0), 400
    basis = np.linalg.qr(rng.standard_normal((n, 3)))[0]
    truth = (basis * np.array([90.0, 60.0, 45.0])) @ basis.T
    observed = truth + wigner(rng, n)
    found, rank = shrink(observed, 1.0)
    assert rank == 3
    values, vectors = np.linalg.eigh(observed)
    top = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    best = min(np.linalg.norm(c * top - truth) for c in np.linspace(0, 1.2, 61))
    assert np.linalg.norm(found - truth) < 1.001 * best
    assert np.linalg.norm(found - truth) < 0.93 * np.linalg.norm(top - truth)


def test_without_noise_shrinking_changes_nothing():
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((30, 5))
    found, rank = shrink(factor @ factor.T, 0.0)
    assert rank == 5
    np.testing.assert_allclose(found, factor @ factor.T, atol=1e-9)


def test_prior_weights_are_unbiased_where_clear_and_nothing_where_not():
    rng, n = np.random.default_rng(3), 150
    scale = rng.uniform(0.5, 2, n)
    kin = (np.arange(n)[:, None] // 5 == np.arange(n) // 5).astype(float)
    near = np.exp(-np.abs(np.arange(n)[:, None] - np.arange(n)) / 30)
    other = np.abs(wigner(rng, n))
    truth = np.outer(scale, scale) * (0.1 + 0.6 * kin + 0.2 * near)
    found = np.mean(
        [
            prior_weights(truth + 0.5 * wigner(np.random.default_rng(k), n), [kin, near, other], scale, 0.5)
            for k in range(10)
        ],
        axis=0,
    )
    np.testing.assert_allclose(found[:2], [0.6, 0.2], atol=0.02)
    assert found[2] < 0.005
    # A relation that pushes items apart is no prior, and neither is one twice.
    assert prior_weights(-truth, [kin], scale, 0.5).tolist() == [0.0]
    twice = prior_weights(truth, [kin, kin, near], scale, 1e-6)
    np.testing.assert_allclose([twice[0] + twice[1], twice[2]], [0.6, 0.2], atol=1e-6)
    assert prior_weights(truth, [], scale, 0.5).shape == (0,)
    assert prior_weights(truth, [np.zeros((n, n))], scale, 0.5).tolist() == [0.0]


def test_linear_predictions_against_regressions():
    rng = np.random.default_rng(4)
    factor = rng.standard_normal((9, 3))
    signal, rest = factor @ factor.T, rng.uniform(0.5, 2, 9)
    covariance = signal + np.diag(rest)
    weights = leave_one_out(signal, rest)
    for item in range(9):
        others = np.delete(np.arange(9), item)
        expected = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, item])
        np.testing.assert_allclose(weights[others, item], expected)
        assert weights[item, item] == 0
    np.testing.assert_allclose(covariance @ least_squares(signal, rest), signal, atol=1e-12)


def test_relations_of_a_catalogue():
    frame = pd.DataFrame(
        {
            "item": list("abcd"),
            "provider": ["x", "x", None, "y"],
            "categories": ["s|t", "s", "", "t"],
            "year": [1990.0, 2000.0, np.nan, 2010.0],
            "empty": [np.nan] * 4,
        }
    )
    catalogue = ItemCatalogue.from_frame(frame, attributes=("year", "empty"))
    found = relations(catalogue, np.arange(4))
    assert list(found) == ["provider", "categories", "year"]
    assert found["provider"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        found["categories"], [[1, half, 0, half], [half, 1, 0, 0], [0, 0, 0, 0], [half, 0, 0, 1]], atol=1e-12
    )
    third = np.exp(-1 / 3 / 0.5)
    np.testing.assert_allclose(found["year"][0], [1, third, 0, third**2])
    assert not found["year"][2].any()
    assert list(relations(catalogue, np.array([2]))) == []
    for relation in found.values():
        assert np.linalg.eigvalsh(relation).min() > -1e-12
        shares = np.array([0.4, 0.3, 0.2, 0.1])
        rows = np.eye(4) - np.outer(np.ones(4), shares)
        np.testing.assert_allclose(centred(relation, shares), rows @ relation @ rows.T, atol=1e-12)


# --- the rule


def test_head_and_shares_follow_the_published_rule():
    assert head_size(10_000, 10**6, 1.0) == 800
    assert head_size(10_000, 500, 1.0) == 500
    assert head_size(40_000, 10**6, 4.0) == 800
    assert head_size(10**9, 10**6, 1.0) == 3000
    assert head_size(1, 50, 1e6) == 1
    assert counts_share(6400.0) == pytest.approx(0.1)
    assert counts_share(50.0) == 0.75


def test_the_model_uses_the_rule_and_not_the_data(split):
    """As many users as are declared, whoever is there."""
    for table in (split.train, split.train.take_users(np.arange(50))):
        model = PrivateItemModel(declared_users=64).fit(table, ledger=PrivacyLedger(BUDGET))
        noise = model.gram_.mechanism.noise_multiplier
        assert len(model.gram_) == head_size(64, 120, noise) < 120


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ((700, 120, 4.0, 1e-5), PrivateItemModel),
        ((5_000, 4_000, 0.5, 1e-5), PrivateItemModel),
        ((100, 500, 1.0, 1e-3), PrivatePopularity),
        ((10**6, 1, 1.0, 1e-7), PrivatePopularity),
        ((10**4, 100, 0.01, 1e-8), PrivatePopularity),
    ],
)
def test_recommended_models(question, kind):
    model = recommend_model(*question)
    assert type(model) is kind
    assert model.declared_users == question[0]
    assert model.get_params() == kind(declared_users=question[0]).get_params()


@pytest.mark.parametrize(
    "question",
    [(0, 10, 1.0, 1e-5), (10, 0, 1.0, 1e-5), (10.0, 10, 1.0, 1e-5), (10, 10, -1.0, 1e-5), (9, 9, 1, 2)],
)
def test_the_rule_refuses_what_is_no_question(question):
    with pytest.raises(SpecificationError):
        recommend_model(*question)


def test_constants_are_those_of_the_page():
    """docs/choosing_a_model.md states them."""
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "choosing_a_model.md").read_text(encoding="utf-8")
    assert item_model._HEAD_FACTOR == item_model._COUNTS_FACTOR == 8
    assert "head = 8 sqrt(n / noise of the matrix)" in page
    assert "share of counts = 8 sqrt(sigma / n), at most 3/4" in page
    assert "n / sigma < 100" in page
    assert item_model._EXPONENT == 0.25
    assert item_model._GAIN == 1.5
