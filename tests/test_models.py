"""Recommenders: the private one spends first and never too much; the others say that they are not private."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from invented import recall, some
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import BudgetExceededError, NumericalError, SpecificationError
from recsys_budget.models import EASE, Popularity, PrivateAutoencoder
from recsys_budget.models import autoencoder as autoencoder_module
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    Reservation,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
    epsilon,
)
from recsys_budget.training import TrainingRun
from recsys_budget.training._opacus import PrivateStep

BUDGET = PrivacyBudget(4.0, 1e-5)


@pytest.fixture(scope="module")
def split():
    return some()


def autoencoder(**changes):
    constants = {"declared_users": 700, "steps": 30, "n_factors": 8, "progress": False} | changes
    return PrivateAutoencoder(**constants)


def settled(ledger):
    history = ledger.history()
    return history.loc[history["event"] == "reservation", "settled"].tolist()


def test_private_fit_spends_once_under_the_cap_and_says_so(split):
    ledger = PrivacyLedger(BUDGET)
    model = autoencoder(epsilons=(4.0, 0.01, 3.0)).fit(split.train, ledger=ledger)
    assert 3.99 < ledger.spent <= 4.0
    assert settled(ledger) == [True]
    receipt = model.receipt_
    assert receipt.private
    assert receipt.epsilon >= ledger.spent
    assert receipt.epsilon <= 4.0001
    assert receipt.steps == 30
    assert [m["kind"] for m in receipt.mechanisms] == ["GaussianMechanism", "SampledGaussianMechanism"]
    assert receipt.constants["declared_users"] == 700
    assert f"epsilon {receipt.ledger_epsilon:.4f} at delta 1.0e-05" in receipt.guarantee
    json.loads(receipt.to_json())
    # 0.01 is out of reach, since the counts alone cost more.
    assert [p.epsilon <= target for p, target in zip(model.epsilon_path(), (3.0, 4.0), strict=True)] == [
        True,
        True,
    ]
    assert 0 < model.epsilon_path()[0].steps < model.epsilon_path()[1].steps == 30
    np.testing.assert_array_equal(
        model.epsilon_path()[-1].model.score(split.fold_in), model.score(split.fold_in)
    )
    assert not np.array_equal(model.epsilon_path()[0].model.score(split.fold_in), model.score(split.fold_in))


def test_nothing_un_noised_is_left_on_a_fitted_model(split):
    model = autoencoder(steps=5, epsilons=(3.9, 4.0)).fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert len(model.epsilon_path()) == 2
    for fitted in (model, *(point.model for point in model.epsilon_path())):
        for p in fitted.module_.parameters():
            assert vars(p) == {}
            assert p.grad is None
        for part in fitted.module_.modules():
            assert not any(value for name, value in vars(part).items() if "hooks" in name)
        saved = pickle.dumps(fitted)
        assert b"summed_grad" not in saved
        assert b"norm" not in saved.replace(b"max_grad_norm", b"")


def test_order_is_reserve_counts_steps_and_nothing_is_changed_on_the_way(split, monkeypatch):
    events = []
    reserve, use, matrix = PrivacyLedger.reserve, Reservation.use, Interactions.matrix
    train = autoencoder_module.train_private

    def log(name, function):
        def logged(*arguments, **keywords):
            events.append((name, arguments, keywords))
            return function(*arguments, **keywords)

        return logged

    monkeypatch.setattr(PrivacyLedger, "reserve", log("reserve", reserve))
    monkeypatch.setattr(Reservation, "use", log("use", use))
    monkeypatch.setattr(Interactions, "matrix", log("read", matrix))
    monkeypatch.setattr(autoencoder_module, "train_private", log("train", train))
    model = autoencoder(steps=4, max_grad_norm=0.7, learning_rate=0.03, sample_rate=0.2)
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert [name for name, *_ in events] == ["reserve", "use", "read", "train", "use", "use", "use", "use"]
    counts, training = events[0][1][1]
    assert isinstance(counts, GaussianMechanism)
    assert events[1][1][1] == counts
    assert all(event[1][1] == training for event in events[4:])
    assert training.steps == 4
    assert training.sample_rate == 0.2
    passed = events[3][2]
    assert passed["mechanism"] == training
    assert passed["max_grad_norm"] == 0.7
    assert passed["learning_rate"] == 0.03
    assert passed["expected_batch_size"] == 0.2 * 700
    assert isinstance(passed["noise"], SystemNoise)


def test_a_user_moves_the_counts_by_at_most_one(split):
    table = split.train.matrix()
    whole = autoencoder_module._unit_row_sum(table)
    keep = np.ones(table.shape[0], bool)
    moves = []
    for user in range(60):
        keep[user] = False
        moves.append(np.linalg.norm(whole - autoencoder_module._unit_row_sum(sparse.csr_array(table[keep]))))
        keep[user] = True
    assert max(moves) <= 1
    assert max(moves) > 1 - 1e-6


def test_counts_carry_the_noise_they_were_paid_for(monkeypatch):
    """Everybody used everything, so the exact counts are known, and the start of the bias shows the rest."""
    n, items = 400, 3000
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{k}" for k in range(items)]}))
    table = Interactions(
        users=pd.Index([f"u{i}" for i in range(n)], dtype="str"),
        catalogue=catalogue,
        indptr=np.arange(n + 1, dtype=np.int64) * items,
        indices=np.tile(np.arange(items, dtype=np.int32), n),
    )
    monkeypatch.setattr(
        autoencoder_module,
        "train_private",
        lambda *a, **k: TrainingRun(k["mechanism"].steps, "all steps ran", {}),
    )
    # A large share gives little noise, so that no count falls to the floor.
    model = autoencoder(counts_share=0.9).fit(table, ledger=PrivacyLedger(PrivacyBudget(30.0, 1e-5)))
    noise = model.receipt_.mechanisms[0]["noise_multiplier"]
    assert noise < 1
    counts = np.exp(model.module_[-1].bias.detach().numpy().astype(np.float64))  # the floor is 1
    assert counts.min() > 1
    assert counts.mean() == pytest.approx(n / np.sqrt(items), abs=0.1)
    assert counts.std() / noise == pytest.approx(1, abs=0.07)  # 3,000 draws: a standard error of 0.013


def test_the_path_stops_as_late_as_each_epsilon_allows(split):
    model = autoencoder(steps=40, epsilons=(2.0, 3.0)).fit(split.train, ledger=PrivacyLedger(BUDGET))
    counts = GaussianMechanism(model.receipt_.mechanisms[0]["noise_multiplier"])
    noise = model.receipt_.mechanisms[1]["noise_multiplier"]
    for point, target in zip(model.epsilon_path(), (2.0, 3.0), strict=True):
        cost, more = (
            epsilon((counts, SampledGaussianMechanism(noise, 0.1, n)), BUDGET.delta)
            for n in (point.steps, point.steps + 1)
        )
        assert point.epsilon == cost <= target < more


def test_private_beats_popularity_where_there_is_taste_and_budget(split):
    model = autoencoder(steps=200, sample_rate=0.3).fit(
        split.train, ledger=PrivacyLedger(PrivacyBudget(20.0, 1e-5))
    )
    ease, popularity = EASE(50.0).fit(split.train), Popularity().fit(split.train)
    # 0.58 to 0.62 in eight runs, against 0.40 for popularity and 0.59 for EASE.
    assert recall(model, split) > 1.2 * recall(popularity, split)
    assert recall(ease, split) > 1.2 * recall(popularity, split)


def test_with_given_noise_training_stops_before_the_step_that_would_pass_the_cap(split):
    ledger = PrivacyLedger(BUDGET)
    model = autoencoder(noise_multiplier=1.0, steps=10_000).fit(split.train, ledger=ledger)
    receipt = model.receipt_
    assert 0 < receipt.steps < 10_000
    assert receipt.stop_reason == "the next step would pass the cap"
    counts = GaussianMechanism(receipt.mechanisms[0]["noise_multiplier"])
    training = dict(receipt.mechanisms[1])
    assert training.pop("kind") == "SampledGaussianMechanism"
    assert training["steps"] == receipt.steps
    assert epsilon([counts, SampledGaussianMechanism(**training)], BUDGET.delta) <= 4.0
    one_more = SampledGaussianMechanism(**training | {"steps": receipt.steps + 1})
    assert epsilon([counts, one_more], BUDGET.delta) > 4.0


def test_a_second_fit_on_a_spent_ledger_is_refused_before_any_read(split, monkeypatch):
    ledger = PrivacyLedger(BUDGET)
    model = autoencoder().fit(split.train, ledger=ledger)
    before = ledger.spent

    def read(self):
        raise AssertionError("private data was read")

    monkeypatch.setattr(Interactions, "matrix", read)
    for again in (model, autoencoder(noise_multiplier=1.0), autoencoder(noise_multiplier=0.3)):
        with pytest.raises(BudgetExceededError, match="Nothing was spent"):
            again.fit(split.train, ledger=ledger)
    assert ledger.spent == before


def test_a_partly_spent_ledger_leaves_room_for_the_rest_only(split):
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(3.0)], purpose="something else")
    model = autoencoder(steps=10).fit(split.train, ledger=ledger)
    assert ledger.spent <= 4.0
    assert model.receipt_.epsilon < ledger.spent
    # A filter guarantees its cap, not the running figure below it.
    assert model.receipt_.ledger_epsilon == 4.0


def test_a_crash_before_training_stays_spent_and_is_settled(split, monkeypatch):
    ledger = PrivacyLedger(BUDGET)

    def crash(self, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(SystemNoise, "normal", crash)
    with pytest.raises(KeyboardInterrupt):
        autoencoder().fit(split.train, ledger=ledger)
    assert ledger.spent > 3.9
    assert settled(ledger) == [True]


def test_an_interrupt_keeps_the_model_and_returns_what_was_not_run(split, monkeypatch):
    """The stop button: with a filtered reservation, steps that did not run can be spent again."""
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(20.0)], purpose="so that the filter applies")
    step, calls = PrivateStep.__call__, []

    def stopped(self, rows, loss):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        step(self, rows, loss)

    monkeypatch.setattr(PrivateStep, "__call__", stopped)
    model = autoencoder(noise_multiplier=2.0, steps=40).fit(split.train, ledger=ledger)
    assert model.receipt_.steps == 3
    assert model.receipt_.stop_reason == "interrupted"
    assert np.isfinite(model.score(split.fold_in)).all()
    assert ledger.history()["used"].tolist()[-1] == "1 of 1; 4 of 40"
    assert settled(ledger)[-1]
    assert ledger.fits([SampledGaussianMechanism(2.0, 0.1, 30)])


def test_diverged_training_is_settled(split, monkeypatch):
    monkeypatch.setattr(SystemNoise, "normal", lambda self, size: np.full(size, 1e300))
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(NumericalError, match="learning rate"):
        autoencoder().fit(split.train, ledger=ledger)
    assert settled(ledger) == [True]
    assert ledger.spent > 0


def test_tables_shaped_by_unpaid_reads_are_refused(split):
    ledger = PrivacyLedger(BUDGET)
    undeclared = Interactions.from_frame(split.train.to_frame())
    with pytest.raises(SpecificationError, match="vocabulary was read"):
        autoencoder().fit(undeclared, ledger=ledger)
    assert ledger.spent == 0


@pytest.mark.parametrize(
    "change",
    [
        {"declared_users": 0},
        {"n_factors": 0},
        {"steps": 0},
        {"counts_share": 0.0},
        {"counts_share": 1.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"noise_multiplier": -1.0},
        {"max_grad_norm": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": np.inf},
        {"max_grad_norm": np.nan},
        {"declared_users": np.nan},
        {"declared_users": 1e300},
        {"n_factors": 4.0},
        {"steps": True},
        {"checkpoint_every": 0},
        {"epsilons": 2.0},
        {"epsilons": None},
        {"epsilons": ("2",)},
        {"epsilons": (np.nan,)},
        {"insecure_seed": -1},
        {"noise_multiplier": 1e-3},
    ],
)
def test_constants_out_of_range_cost_nothing(split, change):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(SpecificationError):
        autoencoder(**change).fit(split.train, ledger=ledger)
    assert ledger.spent == 0


def test_noise_is_fresh_unless_asked_otherwise_and_then_the_receipt_says_not_private(split):
    def scores(**changes):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  seeding must change nothing
        model = autoencoder(steps=5, **changes).fit(split.train, ledger=PrivacyLedger(BUDGET))
        return model, model.score(split.fold_in)

    assert not np.array_equal(scores()[1], scores()[1])
    (model, first), (_, second) = scores(insecure_seed=1), scores(insecure_seed=1)
    np.testing.assert_array_equal(first, second)
    assert not model.receipt_.private
    assert model.receipt_.guarantee.startswith("not private")


def test_the_true_number_of_users_scales_nothing(monkeypatch):
    """Where nobody is sampled, a step is noise over a constant: the same model with 100 users as with 101."""
    monkeypatch.setattr(SeededNoise, "uniform", lambda self, size: np.ones(size))
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(50)]}))
    scores = []
    for n in (100, 101):
        nothing = Interactions(
            users=pd.Index([f"u{i}" for i in range(n)], dtype="str"),
            catalogue=catalogue,
            indptr=np.zeros(n + 1, np.int64),
            indices=np.zeros(0, np.int32),
        )
        model = autoencoder(steps=3, insecure_seed=4).fit(nothing, ledger=PrivacyLedger(BUDGET))
        scores.append(model.score(nothing)[:100])
    np.testing.assert_array_equal(*scores)
    assert scores[0].std() > 0


def test_params_and_clone():
    model = autoencoder(learning_rate=0.5)
    assert model.get_params()["learning_rate"] == 0.5
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copied.score(Interactions.from_frame(pd.DataFrame({"user": ["a"], "item": ["b"]})))


TOY = pd.DataFrame({"user": list("aaabbc"), "item": ["x", "y", "z", "x", "y", "x"]})


def test_popularity_by_hand():
    table = Interactions.from_frame(TOY)
    model = Popularity().fit(table)
    np.testing.assert_array_equal(model.score(table), [[3, 2, 1]] * 3)
    ranked = model.recommend(table, 2, exclude_seen=False)
    assert ranked.to_dict("list") == {
        "user": ["a", "a", "b", "b", "c", "c"],
        "item": ["x", "y"] * 3,
        "rank": [1, 2] * 3,
        "relevance": [3.0, 2.0] * 3,
    }
    # What a user has seen is left out, and who has seen everything gets nothing.
    assert model.recommend(table, 5)[["user", "item", "rank"]].values.tolist() == [
        ["b", "z", 1],
        ["c", "y", 1],
        ["c", "z", 2],
    ]


def test_ease_against_its_definition():
    """Each column of the weights is a ridge regression of one item on the others."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 30, 150), "item": rng.integers(0, 8, 150)})
    table = Interactions.from_frame(frame)
    model = EASE(l2=2.0).fit(table)
    x = table.matrix().toarray().astype(np.float64)
    for item in range(8):
        others = np.delete(np.arange(8), item)
        gram = x[:, others].T @ x[:, others] + 2.0 * np.eye(7)
        expected = np.linalg.solve(gram, x[:, others].T @ x[:, item])
        np.testing.assert_allclose(model.weights_[others, item], expected, rtol=1e-3, atol=1e-5)
        assert model.weights_[item, item] == 0
    with pytest.raises(SpecificationError):
        EASE(l2=0.0).fit(table)


def test_ties_go_to_the_earlier_item_whatever_k():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(40)]}))
    table = Interactions.from_frame(pd.DataFrame({"user": ["a"], "item": ["i39"]}), catalogue=catalogue)
    model = Popularity().fit(table)
    for k in (1, 3, 10, 39, 40, 100):
        ranked = model.recommend(table, k, exclude_seen=False)["item"].tolist()
        assert ranked == ["i39", *(f"i{n}" for n in range(39))][:k]


def test_batches_equal_single_users(split):
    model = EASE().fit(split.train)
    together = model.recommend(split.fold_in, 7)
    alone = pd.concat(
        [model.recommend(split.fold_in.take_users(np.array([u])), 7) for u in range(split.fold_in.n_users)],
        ignore_index=True,
    )
    pd.testing.assert_frame_equal(together.drop(columns="relevance"), alone.drop(columns="relevance"))


def test_recommend_refuses(split):
    model = Popularity().fit(split.train)
    with pytest.raises(SpecificationError, match="at least 1"):
        model.recommend(split.fold_in, 0)
    with pytest.raises(SpecificationError, match="catalogue"):
        model.recommend(Interactions.from_frame(TOY))
    other_order = split.train.catalogue.take(np.arange(120)[::-1])
    with pytest.raises(SpecificationError, match="another order"):
        model.recommend(Interactions.from_frame(split.fold_in.to_frame(), catalogue=other_order))
    model.counts_ = np.full_like(model.counts_, np.nan)
    with pytest.raises(NumericalError, match="not finite"):
        model.recommend(split.fold_in)
    nobody = split.fold_in.take_users(np.array([], np.intp))
    assert list(model.recommend(nobody).columns) == ["user", "item", "rank", "relevance"]
    assert model.score(nobody).shape == (0, 120)
