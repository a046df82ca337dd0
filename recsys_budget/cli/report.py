"""The demo's report: one HTML page with everything inline, readable without a network, light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recsys_budget import __version__
from recsys_budget._html import escape, picture
from recsys_budget._style import BLUE, GREY, PLAIN, SKY
from recsys_budget.constraints import Constraint
from recsys_budget.data import ItemCatalogue
from recsys_budget.frontiers import Frontier
from recsys_budget.privacy import Receipt, round_up
from recsys_budget.rerank import Slates

_SHOWN_USERS = 3

_ACCENTS = f"""
:root {{ color-scheme: light dark; --line: #8886; --soft: #8881; --accent: {BLUE}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --accent: {SKY}; }} }}
"""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 2px solid var(--accent); }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); }
.new { background: var(--soft); font-weight: 600; } .note { opacity: .8; font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: 6px; }
.pair { display: flex; gap: 2rem; flex-wrap: wrap; } .pair > div { flex: 1 1 24rem; }
code { background: var(--soft); padding: .1rem .3rem; }
"""


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found.

    Attributes:
        dataset: Its name.
        receipt: What the private model cost.
        accuracy: Recall@20 and NDCG@100 of each model, on held-out users; **not private**.
        slates: Re-ranked slates with their certificate.
        catalogue: The items, for their titles.
        rules: The hard rules.
        before: Slates of the same users without rules.
        diversity_before: Mean intra-list diversity of those.
        frontiers: Epsilon against accuracy, and diversity against engagement.
        ledger_history: Everything recorded in the ledger.
        counts: Sizes of what was read.
        seconds: Wall-clock time of the whole job.
        peak_mb: Peak resident memory of the process, in MB; None where the system does not tell (Windows).
    """

    dataset: str
    receipt: Receipt
    accuracy: pd.DataFrame
    slates: Slates
    catalogue: ItemCatalogue
    rules: tuple[Constraint, ...]
    before: pd.DataFrame
    diversity_before: float
    frontiers: tuple[Frontier, Frontier]
    ledger_history: pd.DataFrame
    counts: dict[str, int]
    seconds: float
    peak_mb: float | None

    def rows(self) -> list[tuple[str, str]]:
        """The closing table: what, and the figure as text."""
        certificate, receipt = self.slates.certificate, self.receipt
        accuracy = [
            (f"{metric} {model}", f"{value:.3f}")
            for metric in self.accuracy
            for model, value in self.accuracy[metric].items()
        ]
        return [
            ("epsilon cap", f"{receipt.cap:g}"),
            ("spent", receipt.guarantee),
            ("steps run", f"{receipt.steps} ({receipt.stop_reason})"),
            *accuracy,
            ("engagement before -> after", f"1.000 -> {certificate.engagement:.3f}"),
            ("diversity before -> after", f"{self.diversity_before:.3f} -> {certificate.diversity:.3f}"),
            ("hard-rule violations", f"{max(certificate.violations.values()):g} (largest, in items)"),
            ("certified gap", f"{certificate.gap:.3%}"),
            ("time", f"{self.seconds:.1f} s"),
            *([] if self.peak_mb is None else [("peak memory", f"{self.peak_mb:.0f} MB")]),
        ]

    def summary(self) -> str:
        """The closing table as text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        title = (
            f"{self.dataset}: {self.counts['training users']} training users, {self.counts['items']} items"
        )
        label = "Not private: all figures but epsilon's, which read data without paying."
        return "\n".join(
            [title, "-" * len(title), *(f"{name:<{width}}  {figure}" for name, figure in rows), label]
        )


def write_report(result: DemoResult, path: Path) -> None:
    """Write the page. Titles, ids and names come from data, so all of them are escaped."""
    epsilon_curve, diversity_curve = result.frontiers
    certificate, receipt = result.slates.certificate, result.receipt
    rules = pd.DataFrame(
        {
            "rule": [rule.name for rule in result.rules],
            "why": [rule.reason for rule in result.rules],
            "largest violation (items)": [certificate.violations[rule.name] for rule in result.rules],
        }
    )
    counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
    mechanisms = pd.DataFrame(list(receipt.mechanisms)).astype(object)
    reservations = result.ledger_history.query("event == 'reservation'")
    history = reservations[["purpose", "epsilon", "total", "settled"]].copy()
    for column in ("epsilon", "total"):
        history[column] = history[column].map(round_up)
    sections = [
        f"<h1>A recommender under a privacy cap: {escape(result.dataset)}</h1>",
        f'<p class="note">{escape(counts)}. recsys-budget {escape(__version__)}. This page is <strong>not '
        "private</strong>: exact counts, accuracy and the slates shown read data without paying. What the "
        "budget covers is the model.</p>",
        _pairs_table(result.rows()),
        "<h2>Privacy</h2>",
        f"<p>Spent: {escape(receipt.guarantee)}. In words: adding or removing everything that one user did "
        "changes the probability of anything this model could have become by a factor of at most "
        "e<sup>epsilon</sup>, but for a chance of delta. The cap on epsilon was "
        f"{receipt.cap:g}; training ended after {receipt.steps} steps ({escape(receipt.stop_reason)}).</p>",
        _table(history),
        "<p>What was released:</p>",
        _table(mechanisms),
        f'<p class="note">Taken as public: {escape("; ".join(receipt.declared_public))}. The held-out users '
        "are not in the training data; measuring accuracy on them spends nothing and is <strong>not "
        "private</strong>.</p>",
        _figure(
            epsilon_curve,
            "Recall@20 on held-out users against epsilon, along one private training run; dashed: without "
            "privacy",
            result.accuracy.drop(index="private")[epsilon_curve.y],
        ),
        _table(epsilon_curve.to_frame().round(4)),
        _table(result.accuracy.round(4).reset_index(names="model")),
        "<h2>Slates under hard rules</h2>",
        f"<p>{len(result.slates):,} users got slates. Each rule was counted again in every slate after "
        f"solving. The objective is within {certificate.gap:.3%} of a proven upper bound "
        f"({certificate.objective:.4f} of at most {certificate.bound:.4f}); route "
        f"{escape(certificate.route)}, {escape(certificate.solver)}. Each slate depends on the model, public "
        "data and the served user's own history alone, so showing it <em>to that user</em> costs no further "
        "privacy.</p>",
        _table(rules),
        _figure(diversity_curve, "Engagement against diversity of slates as the weight on diversity moves"),
        _table(diversity_curve.to_frame().round(4)),
        "<h2>Before and after</h2>",
        "<p>Shaded items came in through the rules or the weight on diversity.</p>",
        *(_before_after(result, user) for user in result.slates.frame["user"].unique()[:_SHOWN_USERS]),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>recsys-budget: {escape(result.dataset)}</title><style>{_ACCENTS}{_STYLE}</style></head>\n"
        "<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _table(frame: pd.DataFrame) -> str:
    return str(frame.to_html(index=False, escape=True, border=0, na_rep=""))


def _pairs_table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in rows)
    return f"<table>{body}</table>"


def _figure(frontier: Frontier, description: str, levels: pd.Series[float] | None = None) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = frontier.plot(ax=figure.subplots())
    for name, level in ({} if levels is None else levels).items():
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1)
        ax.annotate(
            str(name),
            (1, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            **PLAIN,
        )
    return picture(figure, description)


def _before_after(result: DemoResult, user: str) -> str:
    before = result.before.loc[result.before["user"] == user, "item"].tolist()
    after = result.slates.frame.loc[result.slates.frame["user"] == user, "item"].tolist()
    return (
        f"<h3>User {escape(user)}</h3>"
        f'<div class="pair"><div>{_slate("Before", before, after, result.catalogue)}</div>'
        f"<div>{_slate('After', after, before, result.catalogue)}</div></div>"
    )


def _slate(heading: str, items: list[str], other: list[str], catalogue: ItemCatalogue) -> str:
    shown = catalogue.take(catalogue.positions(items)).to_frame()
    rows = "".join(
        f"<tr{'' if item in other or heading == 'Before' else ' class=new'}><td>{rank}</td>"
        f"<td>{escape(title)}</td><td>{escape(', '.join(categories))}</td></tr>"
        for rank, item, title, categories in zip(
            range(1, len(items) + 1), items, shown["title"], shown["categories"], strict=True
        )
    )
    return f"<table><thead><tr><th>{heading}</th><th>title</th><th>categories</th></tr></thead>{rows}</table>"
