"""Receipts: every fitted model has one, it says no less than was spent, and nothing else passes for one."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pandas as pd
import pytest
from torch import nn

from recsys_budget import models as models_package
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, LedgerCorruptError, SpecificationError
from recsys_budget.models import (
    EASE,
    ImplicitALS,
    Popularity,
    PrivateALS,
    PrivateAutoencoder,
    PrivateItemModel,
    PrivatePopularity,
    PrivateTrainer,
)
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import (
    GaussianMechanism,
    LedgerHead,
    PrivacyBudget,
    PrivacyLedger,
    Receipt,
    SampledGaussianMechanism,
    epsilon,
    filter_epsilon,
)

BUDGET = PrivacyBudget(3.0, 1e-5)
MECHANISMS = (GaussianMechanism(5.0), SampledGaussianMechanism(2.0, 0.05, 100))


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger(BUDGET, tmp_path / "budget.db", population="viewers")


def write(ledger, **changes):
    reservation = ledger.reserve(MECHANISMS, purpose="test")
    reservation.commit()
    fields = {
        "model": "Test",
        "private": True,
        "steps": 100,
        "stop_reason": "all steps ran",
        "constants": {"k": 3, "share": 0.1, "path": (1.0, 2.0), "seed": None},
        "declared_public": ["catalogue"],
    }
    return Receipt.write(ledger=ledger, reservation=reservation, **fields | changes)


def conforms(text):
    validator = jsonschema.Draft202012Validator(Receipt.schema())
    return validator.is_valid(json.loads(text))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(Receipt.schema())


def test_figures_are_never_below_what_they_stand_for(ledger):
    receipt = write(ledger)
    for stated, true in (
        (receipt.epsilon, epsilon(MECHANISMS, 1e-5)),
        (receipt.filter_epsilon, filter_epsilon(MECHANISMS, BUDGET)),
        (receipt.ledger_epsilon, ledger.guaranteed_epsilon),
    ):
        assert true <= stated <= true + 1e-4
    assert receipt.epsilon < receipt.filter_epsilon
    assert (receipt.cap, receipt.delta, receipt.unit) == (3.0, 1e-5, "user")
    assert receipt.mechanisms[1] == {
        "kind": "SampledGaussianMechanism",
        "noise_multiplier": 2.0,
        "sample_rate": 0.05,
        "steps": 100,
    }
    assert receipt.ledger_head == ledger.head
    assert receipt.versions["recsys-budget"]
    assert receipt.versions["dp-accounting"]


def test_json_goes_round_and_follows_the_schema(ledger):
    for receipt in (
        write(ledger),
        write(ledger, private=False),
        Receipt.not_private(model="M", reason="it reads", constants={}, declared_public=()),
    ):
        assert Receipt.from_json(receipt.to_json()) == receipt
        assert conforms(receipt.to_json())
        assert receipt.private == (receipt.reason is None)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array(2.0), 2.0),
        (math.inf, "inf"),
        ({1: (2, {"a": None})}, {"1": [2, {"a": None}]}),
        (np.array([1, 2]), "[1 2]"),
    ],
)
def test_no_constant_is_lost_or_stops_the_receipt_of_a_fitted_model(ledger, value, kept):
    receipt = write(ledger, constants={"value": value})
    assert receipt.constants == {"value": kept}
    assert Receipt.from_json(receipt.to_json()) == receipt


HEAD = {"ledger": "a", "population": "b", "seq": 3, "hash": "0" * 64}
CHANGES = [
    *(
        {name: None}
        for name in ("epsilon", "filter_epsilon", "ledger_epsilon", "cap", "delta", "ledger_head")
    ),
    *({name: ""} for name in ("model", "reason", "unit", "adjacency", "stop_reason")),
    *({"epsilon": value} for value in (-0.1, "1", True, [1])),
    *({"delta": value} for value in (0, 1, 2.0)),
    *({"cap": value} for value in (0, -1)),
    *({"steps": value} for value in (-1, 0.5, None, True, "3")),
    *({"private": value} for value in (False, None, 1)),
    *({"format": value} for value in (2, "1", None, True)),
    {"reason": "made up"},
    {"unit": "rating"},
    {"mechanisms": []},
    {"mechanisms": {}},
    *(
        {"mechanisms": [mechanism]}
        for mechanism in (
            {"kind": "Laplace", "noise_multiplier": 1.0},
            {"noise_multiplier": 1.0},
            {"kind": "GaussianMechanism"},
            {"kind": "GaussianMechanism", "noise_multiplier": 0.01},
            {"kind": "GaussianMechanism", "noise_multiplier": True},
            {"kind": "GaussianMechanism", "noise_multiplier": 1.0, "steps": 3},
            {"kind": "SampledGaussianMechanism", "noise_multiplier": 1.0, "sample_rate": 1.5, "steps": 3},
            {"kind": "SampledGaussianMechanism", "noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 0},
            "GaussianMechanism",
            None,
        )
    ),
    {"constants": []},
    {"declared_public": "catalogue"},
    {"declared_public": [3]},
    {"versions": {"numpy": 2}},
    *(
        {"ledger_head": head}
        for head in (
            {},
            "head",
            HEAD | {"seq": -1},
            HEAD | {"hash": "xyz"},
            HEAD | {"hash": "A" * 64},
            HEAD | {"more": 1},
            HEAD | {"population": 3},
        )
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: json.dumps(c)[:60])
def test_what_is_not_a_receipt_is_refused_and_breaks_the_schema(ledger, change):
    text = json.dumps(json.loads(write(ledger).to_json()) | change)
    assert not conforms(text)
    with pytest.raises(DataError, match="not a receipt"):
        Receipt.from_json(text)


@pytest.mark.parametrize(
    "change", [{"ledger_head": HEAD}, {"cap": 4}, {"epsilon": 0.5}, {"constants": {"a": 1}}]
)
def test_what_is_one_is_read(ledger, change):
    text = json.dumps(json.loads(write(ledger).to_json()) | change)
    assert conforms(text)
    read = Receipt.from_json(text)
    assert Receipt.from_json(read.to_json()) == read
    if "ledger_head" in change:
        assert read.ledger_head == LedgerHead(**HEAD)
    if "cap" in change:
        assert isinstance(read.cap, float)


def test_every_field_is_needed_and_no_other_is_taken(ledger):
    fields = json.loads(write(ledger).to_json())
    assert set(Receipt.schema()["required"]) == set(fields)
    for name in fields:
        text = json.dumps({n: value for n, value in fields.items() if n != name})
        assert not conforms(text)
        with pytest.raises(DataError, match=name):
            Receipt.from_json(text)
    text = json.dumps(fields | {"signature": "x"})
    assert not conforms(text)
    with pytest.raises(DataError, match="signature"):
        Receipt.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"model": NaN}',
        '{"model": -Infinity}',
        '{"model": "a", "model": "b"}',
        "[" * 100_000,
        '{"cap": ' + "1" * 5000 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_broken_text_is_a_typed_error(text):
    with pytest.raises(DataError, match="not a receipt"):
        Receipt.from_json(text)


def test_a_field_that_is_written_twice_is_refused(ledger):
    text = write(ledger).to_json()
    with pytest.raises(DataError, match=r"twice.*epsilon"):
        Receipt.from_json(text.replace('"cap": 3.0', '"epsilon": 0.1,\n "cap": 3.0'))


@pytest.mark.parametrize("figure", ["1e999", "1" + "0" * 400, "1e301"])
def test_figures_beyond_all_bounds_are_refused(ledger, figure):
    text = write(ledger).to_json().replace('"cap": 3.0', f'"cap": {figure}')
    with pytest.raises(DataError, match="cap is"):
        Receipt.from_json(text)


def test_a_receipt_is_held_against_its_ledger(ledger, tmp_path):
    receipt = write(ledger)
    receipt.verify(ledger)
    ledger.reserve([GaussianMechanism(50.0)], purpose="later")
    Receipt.from_json(receipt.to_json()).verify(
        PrivacyLedger(path=tmp_path / "budget.db", population="viewers")
    )
    with pytest.raises(LedgerCorruptError):
        receipt.verify(PrivacyLedger(BUDGET, population="viewers"))
    with pytest.raises(SpecificationError, match="viewers"):
        receipt.verify(PrivacyLedger(BUDGET, tmp_path / "budget.db", population="others"))
    fields = json.loads(receipt.to_json())
    with pytest.raises(DataError, match="edited"):
        Receipt.from_json(json.dumps(fields | {"epsilon": fields["epsilon"] * 0.99})).verify(ledger)
    forged = fields | {"ledger_head": fields["ledger_head"] | {"hash": "0" * 64}}
    with pytest.raises(LedgerCorruptError):
        Receipt.from_json(json.dumps(forged)).verify(ledger)
    with pytest.raises(SpecificationError, match="spent nothing"):
        Receipt.not_private(model="M", reason="it reads", constants={}, declared_public=()).verify(ledger)


def table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 30, 200), "item": rng.integers(0, 12, 200)})
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [str(n) for n in range(12)]}))
    return Interactions.from_frame(frame.astype(str).drop_duplicates(), catalogue=catalogue)


def squared(outputs, row):
    return ((outputs - row) ** 2).sum()


def test_every_fitted_model_carries_a_receipt(tmp_path):
    budget = PrivacyLedger(BUDGET)
    models = [
        Popularity().fit(table()),
        EASE(l2=20.0).fit(table()),
        PrivateAutoencoder(declared_users=30, n_factors=2, steps=3, progress=False, epsilons=(1.0,)).fit(
            table(), ledger=budget
        ),
        PrivateALS(declared_users=30).fit(table(), ledger=PrivacyLedger(BUDGET)),
        ImplicitALS(n_factors=2, sweeps=1).fit(table()),
        PrivatePopularity(declared_users=30).fit(table(), ledger=PrivacyLedger(BUDGET)),
        PrivateItemModel(declared_users=30).fit(table(), ledger=PrivacyLedger(BUDGET)),
        PrivateTrainer(
            nn.Sequential(nn.Linear(12, 12)), squared, declared_users=30, steps=3, progress=False
        ).fit(table(), ledger=PrivacyLedger(BUDGET)),
    ]
    public = [getattr(models_package, name) for name in models_package.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Recommender)}
    assert {type(model) for model in models} == kinds - {Recommender}
    for model in models:
        receipt = model.receipt_
        assert receipt.model == type(model).__name__
        assert conforms(receipt.to_json())
        receipt.save(tmp_path / "receipt.json")
        assert Receipt.from_json((tmp_path / "receipt.json").read_text(encoding="utf-8")) == receipt
        Seen(receipt.to_html())
    for model in models[:2]:
        assert model.receipt_.guarantee == "not private: it reads private data without spending"
        assert model.receipt_.epsilon is model.receipt_.ledger_epsilon is model.receipt_.delta is None
    assert models[1].receipt_.constants == {"l2": 20.0}
    assert models[2].receipt_.private
    models[2].receipt_.verify(budget)


class Seen(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("img", "script", "link")
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_everything_and_escapes_it(ledger, tmp_path):
    hostile = "<script>alert('1')</script>"
    receipt = write(
        ledger,
        model=hostile,
        stop_reason=hostile,
        constants={hostile: hostile},
        declared_public=[hostile],
    )
    receipt.save(tmp_path / "receipt.html")
    page = (tmp_path / "receipt.html").read_text(encoding="utf-8")
    seen = Seen(page)
    assert page.count("<script") == 0
    for shown in (
        receipt.guarantee,
        f"{receipt.epsilon:.4f}",
        f"{receipt.filter_epsilon:.4f}",
        "SampledGaussianMechanism",
        "sample_rate 0.05",
        receipt.ledger_head.hash,
        "viewers",
        receipt.versions["numpy"],
        hostile,
    ):
        assert shown in seen.text
    assert "http" not in page
    assert "Nothing here is a guarantee" not in seen.text
    weak = Seen(write(ledger, private=False).to_html()).text
    assert "not private: repeatable noise was used" in weak
    assert "Nothing here is a guarantee" in weak
    assert "epsilon of the ledger" not in weak


def test_a_file_of_another_kind_is_not_written(ledger, tmp_path):
    with pytest.raises(SpecificationError, match=r"\.pkl"):
        write(ledger).save(tmp_path / "receipt.pkl")
    assert not (tmp_path / "receipt.pkl").exists()
