"""What the explorer says beside the frontier: slates before and after, rules, budget, conflict."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from recsys_budget import _html
from recsys_budget.data import ItemCatalogue
from recsys_budget.frontiers.figures import provider_places
from recsys_budget.metrics import gini
from recsys_budget.privacy import PrivacyLedger, round_up
from recsys_budget.privacy.words import in_words
from recsys_budget.widgets.operating import Operation, Result


def slates(operation: Operation, result: Result, user: str) -> _html.Html:
    """One user's slate before and after, and why each new item came in."""
    first = operation.slate_before(result, user)
    if result.slates is None:
        return _html.card(
            f"User {user}",
            _html.text("No slates: the rules conflict."),
            _column("Before", _list(operation, first, {})),
        )
    now = operation.slate(result, user)
    reasons = operation.reasons(result, user)
    gone = dict.fromkeys((item for item in first if item not in now), "gave way")
    return _html.card(
        f"User {user}",
        _html.beside(
            _column("Before", _list(operation, first, gone)),
            _column("After", _list(operation, now, reasons)),
        ),
    )


def rules(operation: Operation, result: Result, user: str) -> _html.Html:
    """Each rule, whether it holds, how much room it leaves, and what it costs."""
    certificate = result.certificate
    if certificate is None:
        return _html.Html("")
    rows, slack = [], operation.slack(result, user)
    for rule in result.rules:
        price = certificate.shadow_prices.get(rule.name)
        violation = certificate.violations[rule.name]
        rows.append(
            [
                rule.name,
                "" if rule.hard else "soft",
                "holds" if violation <= 1e-6 else f"violated by {violation:.4g}",
                f"{slack[rule.name] + 0.0:.4g}" + (" (all slates)" if rule.scope == "population" else ""),
                "" if price is None else f"{100 * price:.3g}%",
                rule.reason,
            ]
        )
    reached = f"objective {certificate.objective:.4f} of at most {certificate.bound:.4f}"
    return _html.card(
        "Rules",
        _html.table(
            rows, ["rule", "", "in the slates", f"room for {user}", "one unit costs (engagement)", "why"]
        ),
        note=f"{reached} (gap {certificate.gap:.2%}); privacy: {certificate.privacy}",
    )


def providers(operation: Operation, result: Result) -> _html.Html:
    """How the places of all slates spread over providers, before and after; nothing where none are named."""
    catalogue: ItemCatalogue = operation.catalogue
    if not catalogue.provider_names or result.slates is None:
        return _html.Html("")
    before, after = (
        provider_places(lists, catalogue)
        for lists in (operation.before(result.choice.epsilon), result.slates.frame)
    )
    if not (before.any() and after.any()):
        return _html.Html("")
    half = len(before) // 2
    least = [f"{np.sort(places)[:half].sum() / places.sum():.1%}" for places in (before, after)]
    covered = [f"{np.count_nonzero(places)} of {len(places)}" for places in (before, after)]
    rows = [
        ["providers with a place", *covered],
        [f"share of places of the {half} providers shown least", *least],
        ["Gini of places (0: all alike; near 1: one has all)", *(f"{gini(p):.3f}" for p in (before, after))],
    ]
    return _html.card(
        "Providers",
        _html.table(rows, ["all slates together", "before", "after"]),
        note="Counted in everybody's slates (not private).",
    )


def budget(epsilon: float | None, ledger: PrivacyLedger | None, amount: float) -> _html.Html:
    """What is spent, what a plan to spend some more comes to, what would be left; and what the cap means."""
    if ledger is None:
        if epsilon is None:
            return _html.Html("")
        return _html.card("Privacy", _html.text(f"The model shown cost epsilon {round_up(epsilon):g}."))
    cap, spent = ledger.cap, ledger.spent
    plan = min(spent + amount, cap.epsilon)
    lines = []
    if amount > 0.0:
        lines = [_html.text(f"This plan: epsilon {amount:g} more, at most {round_up(plan):g} in all.")]
    left = math.floor(max(0.0, cap.epsilon - plan) * 1e4) / 1e4
    return _html.card(
        "Privacy budget",
        _html.gauge(spent, cap.epsilon),
        *lines,
        _html.text(f"Left {'afterwards' if lines else 'now'}: {left:g}. Moving sliders spends nothing."),
        note=f"What the cap of epsilon {cap.epsilon:g} promises: {in_words(cap.epsilon, cap.delta)}",
    )


def _column(heading: str, body: _html.Html) -> _html.Html:
    return _html.Html(f"<p><b>{_html.escape(heading)}</b></p>{body}")


def _list(operation: Operation, items: list[str], notes: dict[str, str]) -> _html.Html:
    catalogue: ItemCatalogue = operation.catalogue
    shown: pd.DataFrame = catalogue.take(catalogue.positions(items)).to_frame()
    titles = shown["title"] if "title" in shown else shown["item"]
    categories = shown["categories"] if "categories" in shown else [()] * len(shown)
    rows = [
        [place, title, ", ".join(kinds), notes.get(item, "")]
        for place, item, title, kinds in zip(range(1, len(items) + 1), items, titles, categories, strict=True)
    ]
    return _html.table(rows, ["", "title", "categories", "why"])
