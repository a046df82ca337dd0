"""Invented data that several test files train on, and what they ask of models in the same words."""

from __future__ import annotations

from recsys_budget.data import SyntheticSpec, hold_out_users, make_interactions
from recsys_budget.metrics import ranking_metrics
from recsys_budget.privacy import PrivacyLedger, PrivateQueries, Reservation, SystemNoise


def few():
    """A split of 240 users for training and 60 held out, over 80 items."""
    spec = SyntheticSpec(n_users=300, n_items=80, n_categories=6, n_providers=10)
    return hold_out_users(make_interactions(spec, rng=1).interactions.positives(4), 60, rng=0)


def fewer():
    """A split of 160 users for training and 40 held out, over 60 items."""
    spec = SyntheticSpec(n_users=200, n_items=60, n_categories=6, n_providers=8)
    return hold_out_users(make_interactions(spec, rng=1).interactions.positives(4), 40, rng=0)


def some():
    """A split of 700 users for training and 200 held out, over 120 items."""
    spec = SyntheticSpec(n_users=900, n_items=120, n_categories=6, n_providers=10)
    return hold_out_users(make_interactions(spec, rng=3).interactions.positives(4), 200, rng=0)


def recall(model, split):
    """Recall@20 on held-out users."""
    recommended = model.recommend(split.fold_in, 20)
    return ranking_metrics(recommended, split.held_out, ("recall@20",))["recall@20"].mean()


def payments(monkeypatch):
    """A list that fills from now on: what is reserved, used, read, drawn and committed, with arguments."""
    events = []

    def log(where, name, label):
        function = getattr(where, name)

        def logged(self, *arguments, **keywords):
            events.append((label, arguments))
            return function(self, *arguments, **keywords)

        monkeypatch.setattr(where, name, logged)

    log(PrivacyLedger, "reserve", "reserve")
    log(Reservation, "use", "use")
    log(PrivateQueries, "_users_by_items", "read")
    log(SystemNoise, "normal", "noise")
    log(Reservation, "commit", "commit")
    return events
