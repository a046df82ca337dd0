"""How slates and their certificate show themselves in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import narwhals as nw
import pandas as pd

from recsys_budget import _html
from recsys_budget._style import clip
from recsys_budget.privacy import round_up

if TYPE_CHECKING:
    from recsys_budget.data import ItemCatalogue
    from recsys_budget.rerank.certificate import Certificate, PrivateCertificate
    from recsys_budget.rerank.mixture import Mixtures
    from recsys_budget.rerank.reranker import Slates

# Users whose slates a notebook shows, and rows of each.
_SHOWN_USERS, _SHOWN_ITEMS = 3, 50
# Bounds of a private certificate that a notebook shows.
_SHOWN_BOUNDS = 50

# Privacy mode: whether it is a warning, its name in words, and what it means.
_PRIVACY: dict[str, tuple[bool, str, str]] = {
    "per_user": (
        False,
        "each slate is its user's own",
        "it was made from scores, public data and that user's candidates and history alone. Showing it to "
        "that user costs no privacy beyond what the model behind the scores has cost.",
    ),
    "population_private": (
        False,
        "paid for in the ledger",
        "rules about all slates were kept through noisy prices, and a ledger was charged for those.",
    ),
    "population_not_private": (
        True,
        "not private",
        "a rule about all slates made each user's slate depend on the candidates of everybody else, and "
        "nobody paid for that.",
    ),
}


def slates_card(slates: Slates) -> str:
    """The first users' slates with titles and categories, and what each slate gives up."""
    certificate = slates.certificate
    kept = certificate.per_user.head(_SHOWN_USERS)
    frame = _rows_of(slates.frame, kept["user"].tolist())
    sections = []
    for user in kept.to_dict("records"):
        items = frame[frame["user"] == user["user"]]
        price = [
            f"keeps {user['engagement']:.1%} of the best engagement among {user['candidates']} candidates",
            f"diversity {user['diversity']:.3f}",
        ]
        gap = user["gap"]
        if not math.isnan(gap):
            price.append("no slate is better" if gap == 0.0 else f"at most {gap:.2%} better is possible")
        sections.append(
            _html.section(
                f"User {clip(user['user'])}",
                _html.text("; ".join(price)),
                _items(items, slates.catalogue),
            )
        )
    rest = len(slates) - len(kept)
    sections.append(_html.details("certificate", *_evidence(certificate)))
    return _html.card(
        f"Slates of {_counted(len(slates), 'user')}",
        _html.text(
            f"On average they keep {certificate.engagement:.1%} of the best engagement, with diversity "
            f"{certificate.diversity:.3f}. {_verdict(certificate)}"
        ),
        _privacy(certificate),
        *sections,
        note=f"{_counted(rest, 'more user')} in .frame; figures of each in .certificate.per_user."
        if rest
        else "",
    )


def mixtures_card(mixtures: Mixtures) -> str:
    """How many users have two rankings, and the certificate."""
    two = int(mixtures.frame.loc[mixtures.frame["ranking"] == 2, "user"].nunique())
    return _html.card(
        f"Mixtures of rankings for {_counted(len(mixtures), 'user')}",
        _html.text(
            f"{_counted(two, 'user')} with two rankings, and the rest with one; draw() takes one for each."
        ),
        *_evidence(mixtures.certificate),
        note="Figures are expectations over the mixture.",
    )


def certificate_card(certificate: Certificate) -> str:
    """Objective and bound, every rule with its violation and price, and privacy in words."""
    return _html.card(
        f"Certificate of {_counted(certificate.n_users, 'slate')}",
        *_evidence(certificate),
        note="Counted from the slates themselves, and not taken from a solver.",
    )


def private_card(certificate: PrivateCertificate) -> str:
    """What is claimed of slates at private prices, each bound with its noisy load and margin."""
    table = certificate.bounds
    rows = [
        (
            clip(f"{row['rule']}: {row['part']}" if row["part"] else row["rule"]),
            "hard" if row["hard"] else "soft",
            f"{row['side']} {row['bound']:.6g}",
            f"{row['load']:.6g}",
            f"{row['margin']:.3g}",
            "yes" if row["proven"] else "no",
            f"{row['price']:.3g}",
        )
        for row in table.head(_SHOWN_BOUNDS).to_dict("records")
    ]
    more = [_html.text(f"and {len(table) - len(rows)} more")] if len(table) > len(rows) else []
    return _html.card(
        f"Certificate of about {certificate.users:,.0f} slates",
        _html.text(
            f"Objective {certificate.objective:.4f} +- {certificate.standard_error:.4f}, and at most "
            f"{certificate.given_up:.4f} was given up. "
            f"{int((table['hard'] & table['proven']).sum())} of {int(table['hard'].sum())} hard bounds are "
            "proven."
        ),
        _privacy(certificate),
        _html.table(rows, ["bound", "kind", "asked", "noisy load", "margin", "proven", "price"]),
        *more,
        note=f"Figures are noisy. Epsilon {round_up(certificate.epsilon)}, delta {certificate.delta:g}, for "
        "this run alone. That some claim is false and slates are handed out has probability at most "
        f"{certificate.beta:g}.",
    )


def _evidence(certificate: Certificate) -> Iterable[_html.Html]:
    gap = "which cannot be improved" if certificate.gap == 0.0 else f"a gap of {certificate.gap:.2%}"
    yield _html.text(
        f"Objective {certificate.objective:.4f}, and at most {certificate.bound:.4f} is possible: {gap}. "
        f"{_verdict(certificate)}"
    )
    if certificate.timed_out:
        yield _html.text(
            _html.flag("out of time"), " the search was ended by the time limit; rules hold all the same."
        )
    yield _privacy(certificate)
    rows = [
        (
            clip(name),
            "soft" if name in certificate.soft else "hard",
            f"{violation:.6g}" if violation else "none",
            _price(certificate.shadow_prices.get(name)),
        )
        for name, violation in certificate.violations.items()
    ]
    yield _html.table(rows, ["rule", "kind", "largest violation", "shadow price"])
    figures = [
        ("engagement kept, mean", f"{certificate.engagement:.4f}"),
        ("diversity, mean", f"{certificate.diversity:.4f}"),
        ("route", certificate.route),
        ("solver", f"{certificate.solver} {certificate.solver_version}"),
        ("iterations", f"{certificate.iterations:,}"),
        ("seconds", f"{certificate.seconds:.2f}"),
    ]
    largest = float(certificate.per_user["gap"].max())
    if not math.isnan(largest):
        figures.insert(0, ("largest gap of a user", f"{largest:.2%}"))
    yield _html.details("figures and route", _html.table(figures))
    yield _html.details(
        "what the columns mean",
        _html.text(
            "Violation: by how much the worst slate breaks the rule, in the rule's own unit; no hard rule is "
            "ever broken. Shadow price: what engagement would gain if the rule were looser by one unit, as a "
            "share of each user's best, averaged over users (summed for rules about all slates)."
        ),
    )


def _verdict(certificate: Certificate) -> str:
    hard = len(certificate.violations) - len(certificate.soft)
    wishes = sum(certificate.violations[name] > 0.0 for name in certificate.soft)
    soft = (
        f"; {wishes} of {len(certificate.soft)} soft ones are violated somewhere" if certificate.soft else ""
    )
    return f"{_counted(hard, 'hard rule')} held in every slate{soft}."


def _privacy(certificate: Certificate | PrivateCertificate) -> _html.Html:
    warns, name, meaning = _PRIVACY[certificate.privacy]
    return _html.text("Privacy: ", _html.flag(name) if warns else name, f": {meaning}")


def _rows_of(frame: Any, users: list[str]) -> pd.DataFrame:
    """The slates of these users, from a table of any kind."""
    table = nw.from_native(frame, eager_only=True)
    shown = table.filter(nw.col("user").is_in(users)).sort("rank")
    return pd.DataFrame({name: shown[name].to_list() for name in ("user", "item", "rank", "relevance")})


def _items(slate: pd.DataFrame, catalogue: ItemCatalogue | None) -> _html.Html:
    some = slate.head(_SHOWN_ITEMS)
    ranks, relevance = some["rank"].tolist(), [f"{value:.4g}" for value in some["relevance"]]
    if catalogue is None:
        rows = list(zip(ranks, map(clip, some["item"]), relevance, strict=True))
        return _html.table(rows, ["rank", "item", "relevance"])
    known = catalogue.take(catalogue.positions(some["item"])).to_frame()
    categories = [clip(", ".join(names)) for names in known["categories"]]
    named = list(zip(ranks, map(clip, known["title"]), categories, relevance, strict=True))
    return _html.table(named, ["rank", "title", "categories", "relevance"])


def _price(price: float | None) -> str:
    if price is None:
        return "not measured"
    return f"{price:.4g}" if price else "0"


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
