"""What the explorer says beside the frontier: slates before and after, rules, budget, conflict."""

from __future__ import annotations

import math

import pandas as pd

from recsys_budget import _html
from recsys_budget.data import ItemCatalogue
from recsys_budget.privacy import PrivacyLedger, round_up
from recsys_budget.privacy.words import in_words
from recsys_budget.widgets.operating import Operation, Result


def slates(operation: Operation, result: Result, user: str) -> _html.Html:
    """One user's slate before and after, and why each new item came in."""
    before = operation.before(result.choice.epsilon)
    first = before.loc[before["user"] == user, "item"].tolist()
    if result.slates is None:
        return _html.card(
            f"User {user}",
            _html.text("No slates: the rules conflict."),
            _column("Before", _list(operation, first, {})),
        )
    after = result.slates.frame
    now = after.loc[after["user"] == user, "item"].tolist()
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
                f"{slack[rule.name]:.4g}" + (" (all slates)" if rule.scope == "population" else ""),
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


def budget(epsilon: float | None, ledger: PrivacyLedger | None, plan: float) -> _html.Html:
    """What is spent, what a plan would spend, what would be left; and what the epsilon means."""
    if ledger is None:
        if epsilon is None:
            return _html.Html("")
        return _html.card("Privacy", _html.text(f"The model shown cost epsilon {round_up(epsilon)}."))
    cap, spent = ledger.cap, ledger.spent
    said = in_words(cap.epsilon, cap.delta)
    left = max(0.0, cap.epsilon - max(spent, plan))
    lines = [] if plan <= spent else [_html.text(f"This plan: up to epsilon {round_up(plan)} in all.")]
    return _html.card(
        "Privacy budget",
        _html.gauge(spent, cap.epsilon),
        *lines,
        _html.text(f"Left afterwards: {math.floor(left * 1e4) / 1e4:g}. Moving sliders spends nothing."),
        note=f"What the cap of epsilon {cap.epsilon:g} promises: {said}",
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
