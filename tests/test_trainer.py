"""PrivateTrainer: refuses before it reserves, reserves before it reads, and says what it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from recsys_budget.data import Interactions, SyntheticSpec, hold_out_users, make_interactions
from recsys_budget.errors import BudgetExceededError, SensitivityError, SpecificationError
from recsys_budget.metrics import ranking_metrics
from recsys_budget.models import Popularity, PrivateAutoencoder, PrivateTrainer
from recsys_budget.models import trainer as trainer_module
from recsys_budget.privacy import (
    PrivacyBudget,
    PrivacyLedger,
    Receipt,
    Reservation,
    SampledGaussianMechanism,
    SystemNoise,
)
from recsys_budget.training import UnitRows, graph_sum, sensitivity

BUDGET = PrivacyBudget(8.0, 1e-5)
ITEMS = 40


def multinomial(outputs, row):
    return -(row / row.sum().clamp(min=1) * torch.log_softmax(outputs, 0)).sum()


class Gated(nn.Module):
    def __init__(self, n=ITEMS, width=8):
        super().__init__()
        self.encode, self.gate = nn.Linear(n, width), nn.Linear(width, width)
        self.decode, self.unit = nn.Linear(width, n), UnitRows()

    def forward(self, rows):
        hidden = self.encode(self.unit(rows))
        return self.decode(hidden + torch.tanh(self.gate(hidden)))


@pytest.fixture(scope="module")
def split():
    spec = SyntheticSpec(n_users=900, n_items=ITEMS, n_categories=4, n_providers=4)
    return hold_out_users(make_interactions(spec, rng=3).interactions.positives(4), 200, rng=0)


def trainer(module=None, loss=multinomial, **changes):
    torch.manual_seed(0)
    constants = {"declared_users": 700, "steps": 40, "progress": False} | changes
    return PrivateTrainer(Gated() if module is None else module, loss, **constants)


def test_trains_under_the_cap_and_says_what_it_did(split):
    ledger = PrivacyLedger(BUDGET)
    model = trainer(check_sensitivity=True, sample_rate=0.3).fit(split.train, ledger=ledger)
    assert 7.99 < ledger.spent <= 8.0
    history = ledger.history()
    assert history.loc[history["event"] == "reservation", "settled"].tolist() == [True]
    receipt = model.receipt_
    assert receipt.private
    assert (receipt.model, receipt.steps, receipt.stop_reason) == ("PrivateTrainer", 40, "all steps ran")
    assert receipt.constants["module"]["type"] == "Gated"
    assert receipt.constants["loss"] == "multinomial"
    assert "the module started from" in receipt.declared_public[-1]
    receipt.verify(ledger)
    assert Receipt.from_json(receipt.to_json()) == receipt
    json.loads(receipt.to_json())
    outputs = model.predict(split.fold_in)
    assert outputs.shape == (200, ITEMS)
    np.testing.assert_array_equal(outputs, model.score(split.fold_in))
    with torch.no_grad():
        rows = torch.from_numpy(split.fold_in.matrix().toarray())
        np.testing.assert_allclose(model.module_(rows).numpy(), outputs, rtol=1e-5, atol=1e-6)


def test_it_learns(split):
    model = trainer(steps=60, sample_rate=0.5, learning_rate=0.05)
    model.fit(split.train, ledger=PrivacyLedger(PrivacyBudget(60.0, 1e-5)))
    recall = [
        ranking_metrics(m.recommend(split.fold_in, 10), split.held_out, ("recall@10",))["recall@10"].mean()
        for m in (model, Popularity().fit(split.train))
    ]
    assert recall[0] > 0.9 * recall[1]  # from nothing, without counts


def test_the_module_given_stays_as_it_is_and_nothing_un_noised_is_left(split):
    model = trainer(steps=3)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    for p in (*model.module.parameters(), *model.module_.parameters()):
        assert vars(p) == {}
        assert p.grad is None
    assert not torch.equal(model.module_.encode.weight, before["encode.weight"])


def test_order_is_check_reserve_read(split, monkeypatch):
    events = []

    def log(name, function):
        def logged(*arguments, **keywords):
            events.append(name)
            return function(*arguments, **keywords)

        return logged

    monkeypatch.setattr(PrivacyLedger, "reserve", log("reserve", PrivacyLedger.reserve))
    monkeypatch.setattr(PrivacyLedger, "register", log("register", PrivacyLedger.register))
    monkeypatch.setattr(Reservation, "use", log("use", Reservation.use))
    monkeypatch.setattr(Interactions, "matrix", log("matrix", Interactions.matrix))
    monkeypatch.setattr(trainer_module, "check_sensitivity", log("check", trainer_module.check_sensitivity))
    monkeypatch.setattr(sensitivity, "check_sensitivity", log("again", sensitivity.check_sensitivity))
    trainer(steps=3, check_sensitivity=True).fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert events == ["check", "register", "reserve", "matrix", "again", "use", "use", "use", "again"]
    events.clear()
    trainer(steps=1).fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert events == ["check", "register", "reserve", "matrix", "use"]


def test_training_gets_the_constants_and_never_the_true_number_of_users(split, monkeypatch):
    passed = {}
    train = trainer_module.train_private

    def spy(*arguments, **keywords):
        passed.update(keywords)
        return train(*arguments, **keywords)

    monkeypatch.setattr(trainer_module, "train_private", spy)
    model = trainer(steps=2, declared_users=1000, sample_rate=0.2, max_grad_norm=0.7, learning_rate=0.03)
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert passed["expected_batch_size"] == 0.2 * 1000
    assert (passed["max_grad_norm"], passed["learning_rate"]) == (0.7, 0.03)
    assert passed["mechanism"].steps == 2
    assert passed["mechanism"].sample_rate == 0.2
    assert isinstance(passed["noise"], SystemNoise)


def refused(model, split, error):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(error):
        model.fit(split.train, ledger=ledger)
    assert ledger.spent == 0
    assert not hasattr(model, "module_")


def test_what_is_not_allowed_is_refused_and_costs_nothing(split, monkeypatch):
    monkeypatch.setattr(Interactions, "matrix", lambda self: pytest.fail("read"))
    for module in (
        nn.Sequential(nn.EmbeddingBag(ITEMS, 3)),
        nn.Sequential(nn.Linear(ITEMS, 4), nn.BatchNorm1d(4), nn.Linear(4, ITEMS)),
        nn.Sequential(nn.Linear(ITEMS + 1, 4), nn.Linear(4, ITEMS)),
        nn.Linear(ITEMS, ITEMS),
    ):
        refused(trainer(module), split, SpecificationError)
    refused(trainer(loss=lambda outputs, row: outputs), split, SpecificationError)
    for changes in (
        {"declared_users": 0},
        {"declared_users": 1.5},
        {"steps": True},
        {"sample_rate": 1.5},
        {"max_grad_norm": 0.0},
        {"learning_rate": np.nan},
        {"insecure_seed": -1},
        {"noise_multiplier": -1.0},
    ):
        refused(trainer(**changes), split, SpecificationError)


def test_a_failing_test_on_made_up_users_refuses_what_the_list_admits(split, monkeypatch):
    monkeypatch.setattr(graph_sum, "_squares", lambda layer, values, flow: 0 * graph_sum._length(flow))
    refused(trainer(), split, SensitivityError)


def test_a_failure_after_training_hands_out_nothing_and_stays_spent(split, monkeypatch):
    calls = []

    def second_fails(module, *arguments, **keywords):
        calls.append(module.encode.weight.detach().clone())
        if len(calls) == 2:
            raise SensitivityError("no", sensitivity=2.0)
        return 1.0

    monkeypatch.setattr(sensitivity, "check_sensitivity", second_fails)
    ledger, model = PrivacyLedger(BUDGET), trainer(steps=3, check_sensitivity=True)
    with pytest.raises(SensitivityError):
        model.fit(split.train, ledger=ledger)
    assert ledger.spent > 7
    assert not hasattr(model, "module_")
    # The one that was trained was tested, not the one it started from.
    assert not torch.equal(*calls)


def test_the_autoencoder_has_the_same_debug_mode(split, monkeypatch):
    tested = []
    check = sensitivity.check_sensitivity

    def log(module, *arguments, **keywords):
        tested.append([p.detach().clone() for p in module.parameters()])
        return check(module, *arguments, **keywords)

    monkeypatch.setattr(sensitivity, "check_sensitivity", log)
    for on in (False, True):
        model = PrivateAutoencoder(
            declared_users=700, steps=3, n_factors=4, progress=False, check_sensitivity=on
        )
        model.fit(split.train, ledger=PrivacyLedger(BUDGET))
        assert len(tested) == 2 * on
        assert "check_sensitivity" not in model.receipt_.constants
    assert all(torch.equal(a, b) for a, b in zip(tested[1], model.module_.parameters(), strict=True))
    assert not torch.equal(tested[0][0], tested[1][0])


def test_a_spent_ledger_is_not_read_for(split, monkeypatch):
    ledger = PrivacyLedger(BUDGET)
    trainer(steps=3).fit(split.train, ledger=ledger)
    monkeypatch.setattr(Interactions, "matrix", lambda self: pytest.fail("read"))
    with pytest.raises(BudgetExceededError):
        trainer(steps=3, noise_multiplier=0.5).fit(split.train, ledger=ledger)


def test_a_table_shaped_by_unpaid_reads_is_refused(split):
    frame = split.train.to_frame()
    refused_table = Interactions.from_frame(frame)
    with pytest.raises(SpecificationError, match="vocabulary"):
        trainer().fit(refused_table, ledger=PrivacyLedger(BUDGET))


def test_given_noise_runs_as_many_steps_as_fit(split):
    ledger = PrivacyLedger(PrivacyBudget(2.0, 1e-5))
    model = trainer(steps=500, noise_multiplier=1.0).fit(split.train, ledger=ledger)
    assert 0 < model.receipt_.steps < 500
    assert model.receipt_.stop_reason == "the next step would pass the cap"
    assert ledger.spent <= 2.0
    one_more = SampledGaussianMechanism(1.0, 0.1, model.receipt_.steps + 1)
    assert not PrivacyLedger(PrivacyBudget(2.0, 1e-5)).fits([one_more])


def test_parameters_are_scikit_learns(split):
    model = trainer(steps=2, insecure_seed=5)
    copied = clone(model)
    assert copied.get_params().keys() == model.get_params().keys()
    assert copied.module is not model.module
    fitted = [m.fit(split.train, ledger=PrivacyLedger(BUDGET)) for m in (model, copied)]
    np.testing.assert_array_equal(*(m.score(split.fold_in) for m in fitted))
    assert not model.receipt_.private


def test_outputs_that_are_no_relevance_are_predictions_only(split):
    narrow = nn.Sequential(nn.Linear(ITEMS, 3))
    model = trainer(narrow, loss=lambda outputs, row: (outputs**2).sum(), steps=2)
    with pytest.raises(NotFittedError):
        model.predict(split.fold_in)
    model.fit(split.train, ledger=PrivacyLedger(BUDGET))
    assert model.predict(split.fold_in).shape == (200, 3)
    assert model.predict(split.fold_in.take_users([])).shape == (0, 3)
    for ask in (model.score, model.recommend):
        with pytest.raises(SpecificationError, match="Use predict"):
            ask(split.fold_in)
