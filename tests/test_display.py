"""How results show themselves: what is said is true, and text of anybody's is shown and does no more."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from hostile import TEXTS, Seen
from matplotlib import pyplot as plt

from recsys_budget import _style
from recsys_budget._html import card, escape, flag, page, picture, section, table, text
from recsys_budget._style import PALETTE, clip, printable
from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    Custom,
    ExposureParity,
    Policy,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError
from recsys_budget.frontiers import Frontier
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, Receipt, Use, plan_budget
from recsys_budget.rerank import Diversity, Engagement, ParityReranker, Reranker

hostile = pytest.mark.parametrize("name", TEXTS)
# Tables cannot hold half a character: pandas refuses it.
hostile_in_tables = pytest.mark.parametrize("name", [name for name in TEXTS if name != "half a character"])


def shop(name: str, n_users: int = 2):
    """Candidates and catalogue in which every text is the same hostile one, told apart by a number."""
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}{name}" for j in range(8)],
                "title": [f"{name}{j}" for j in range(8)],
                "categories": [[f"c{name}"] if j % 2 else [f"c{name}", f"d{name}"] for j in range(8)],
                "provider": [f"p{j % 2}{name}" for j in range(8)],
            }
        )
    )
    candidates = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}{name}" for u in range(n_users)], 8),
            "item": np.tile(catalogue.ids, n_users),
            "relevance": np.concatenate([np.roll(np.arange(8.0, 0.0, -1.0), u) for u in range(n_users)]),
        }
    )
    return candidates, catalogue


def rules(name: str):
    return [
        SlateSize(3, reason=name),
        CategoryMinimum(f"d{name}", 1, name=f"rule {name}", reason=name),
        Soft(CategoryMaximum(f"c{name}", 2, name=f"wish {name}"), 0.01),
    ]


def small(n_users: int = 5, objective=None, extra=()):
    candidates, catalogue = shop("", n_users)
    reranker = Reranker(objective or Engagement(), [SlateSize(3), CategoryMinimum("d", 1), *extra])
    return reranker.rerank(candidates, catalogue, progress=False)


# --- one style --------------------------------------------------------------------------------------------


@hostile
def test_everything_the_style_makes_shows_text_as_text(name):
    given = TEXTS[name]
    shown = card(
        given,
        section(given, text(given, flag(given))),
        table([(given, given)], [given, given]),
        table([(given, 3)]),
        note=given,
    )
    # A parser gives a carriage return back as a line feed; nothing else may change.
    said = Seen(shown).text.replace("\r", "\n")
    assert said.count(printable(given).replace("\r", "\n")) == 10


def test_a_page_can_be_written_whatever_it_says(tmp_path):
    written = page("\ud800", card("\udfff\x00"))
    (tmp_path / "page.html").write_text(written, encoding="utf-8")
    assert "\\ud800" in written
    assert "\\u0000" in written


def test_directions_and_controls_are_seen_and_writing_is_left_alone():
    assert printable("a\u202eb\u2066c\x1b") == "a\\u202eb\\u2066c\\u001b"
    for kept in ("مدينة الضوء", "雨の港 👩‍👩‍👧‍👦", "Zwölf\nBrücken\t"):
        assert printable(kept) == kept


def test_clip_keeps_to_its_length():
    assert clip("x" * 120) == "x" * 120
    assert clip("x" * 121) == "x" * 119 + "…"
    assert clip(7) == "7"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#111111", "#131416"])
def test_accents_stand_out_from_light_and_dark_grounds(ground):
    for accent in (_style.BLUE, _style.VERMILION):
        high, low = sorted([luminance(accent), luminance(ground)], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3.0


def test_colours_are_of_the_one_palette():
    used = set(re.findall(r"#[0-9A-Fa-f]{6}\b", card("x")))
    assert used
    assert used <= set(PALETTE)
    assert len(set(PALETTE)) == 8


# --- slates -----------------------------------------------------------------------------------------------


def test_slates_show_the_first_users_with_titles_categories_and_price():
    slates = small(objective=0.7 * Engagement() + 0.3 * Diversity())
    shown = Seen(slates._repr_html_()).text
    row = slates.certificate.per_user.iloc[0]
    assert "Slates of 5 users" in shown
    assert f"keeps {row.engagement:.1%} of the best engagement among 8 candidates" in shown
    assert f"diversity {row.diversity:.3f}" in shown
    assert [f"User u{u}" in shown for u in range(5)] == [True, True, True, False, False]
    assert "2 more users in .frame" in shown
    catalogue = slates.catalogue.to_frame().set_index("item")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", slates._repr_html_())
    first = slates.frame[slates.frame["user"].isin(["u0", "u1", "u2"])]
    assert first["item"].nunique() > 3
    expected = [
        cell
        for rank, item, relevance in zip(first["rank"], first["item"], first["relevance"], strict=True)
        for cell in (
            str(rank),
            catalogue.loc[item, "title"],
            ", ".join(catalogue.loc[item, "categories"]),
            f"{relevance:g}",
        )
    ]
    assert cells[: len(expected)] == expected


def test_slates_without_a_catalogue_show_ids():
    slates = dataclasses.replace(small(1), catalogue=None)
    shown = Seen(slates._repr_html_()).text
    assert "Slates of 1 user" in shown
    assert "i0" in shown
    assert "more user" not in shown


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_slates_of_any_kind_of_table_show_the_same(library):
    candidates, catalogue = shop("")
    reranker = Reranker(Engagement(), [SlateSize(3)])
    plain = reranker.rerank(candidates, catalogue, progress=False)
    if library == "polars":
        import polars

        other = polars.from_pandas(candidates)
    else:
        import pyarrow

        other = pyarrow.Table.from_pandas(candidates)
    slates = reranker.rerank(other, catalogue, progress=False)
    first, second = (s._repr_html_().partition("certificate</summary>")[0] for s in (plain, slates))
    assert first == second


def test_a_user_whose_gap_is_not_known_gets_no_figure_for_it():
    slates = small()
    per_user = slates.certificate.per_user.assign(gap=np.nan)
    open_gap = dataclasses.replace(
        slates, certificate=dataclasses.replace(slates.certificate, per_user=per_user)
    )
    shown = Seen(open_gap._repr_html_()).text
    assert "better is possible" not in shown
    assert "no slate is better" not in shown
    assert "nan" not in shown


@hostile_in_tables
def test_slates_of_hostile_titles_and_names(name):
    candidates, catalogue = shop(TEXTS[name])
    reranker = Reranker(Engagement(), rules(TEXTS[name]))
    slates = reranker.rerank(candidates, catalogue, progress=False)
    for shown in (slates._repr_html_(), slates.certificate._repr_html_()):
        assert clip(printable(f"rule {TEXTS[name]}"))[:100].replace("\r", "\n") in text_of(shown)
    assert len(slates._repr_html_()) < 40_000


# --- certificates -----------------------------------------------------------------------------------------


def test_a_certificate_says_every_figure_of_every_rule():
    wish = Soft(CategoryMaximum("c", 1, name="a wish"), 0.01)
    certificate = small(extra=[wish]).certificate
    shown = certificate._repr_html_()
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", shown)
    for rule, violation in certificate.violations.items():
        at = cells.index(rule)
        price = certificate.shadow_prices[rule]
        assert cells[at + 1] == ("soft" if rule == "a wish" else "hard")
        assert cells[at + 2] == (f"{violation:.6g}" if violation else "none")
        assert cells[at + 3] == (f"{price:.4g}" if price else "0")
    assert certificate.violations["a wish"] == 2.0
    assert any(certificate.shadow_prices.values())
    text = text_of(shown)
    assert f"Objective {certificate.objective:.4f}" in text
    assert f"at most {certificate.bound:.4f} is possible" in text
    assert "2 hard rules held in every slate; 1 of 1 soft ones are violated somewhere." in text


@pytest.mark.parametrize(
    ("mode", "flagged", "words"),
    [
        ("per_user", False, "candidates and history alone"),
        ("population_private", False, "a ledger was charged"),
        ("population_not_private", True, "nobody paid for that"),
    ],
)
def test_a_certificate_says_in_words_what_privacy_costs(mode, flagged, words):
    certificate = dataclasses.replace(small().certificate, privacy=mode)
    shown = certificate._repr_html_()
    assert words in text_of(shown)
    assert ('<strong class="rb-flag">not private</strong>' in shown) == flagged


def test_a_coupled_rule_is_flagged_not_private_beside_the_slates():
    candidates, catalogue = shop("")
    coupled = Reranker(Engagement(), [SlateSize(3), ProviderMinimum(share=0.1)])
    slates = coupled.rerank(candidates, catalogue, progress=False)
    assert "rb-flag" in slates._repr_html_().partition("</style>")[2]


def test_a_gap_is_never_said_to_be_closed_when_it_is_open():
    certificate = small().certificate
    assert "cannot be improved" in text_of(certificate._repr_html_())
    open_gap = dataclasses.replace(certificate, gap=0.01, bound=certificate.objective * 1.01)
    assert "a gap of 1.00%" in text_of(open_gap._repr_html_())
    assert "cannot be improved" not in text_of(open_gap._repr_html_())


def test_the_end_of_time_is_said():
    late = dataclasses.replace(small().certificate, timed_out=True)
    assert "out of time" in text_of(late._repr_html_())


def test_a_price_that_was_not_measured_is_no_zero():
    certificate = small(objective=1.0 * Diversity()).certificate
    assert set(certificate.shadow_prices.values()) == {None}
    assert "not measured" in text_of(certificate._repr_html_())


@hostile_in_tables
def test_mixtures_of_hostile_names(name):
    candidates, catalogue = shop(TEXTS[name])
    parity = ExposureParity(f"d{TEXTS[name]}", name=TEXTS[name])
    mixtures = ParityReranker(parity, [SlateSize(3)]).rerank(candidates, catalogue)
    shown = text_of(mixtures._repr_html_())
    two = mixtures.frame.query("ranking == 2")["user"].nunique()
    assert f"{two} users with two rankings" in shown


# --- policies, conflicts, ledgers, receipts, plans ----------------------------------------------------------


def test_a_policy_shows_rules_reasons_and_its_hash():
    policy = Policy("spring", [SlateSize(10), Soft(CategoryMinimum("News", 2, reason="our remit"), 0.05)])
    shown = text_of(policy._repr_html_())
    for words in ("spring", "at least 2 News", "soft, 0.05 a unit", "our remit", f"sha256 {policy.sha256}"):
        assert words in shown
    assert "no rules" in text_of(Policy("empty")._repr_html_())
    own = Policy("own", [Custom(lambda x, candidates: x.sum(), 3, name="mine")])
    assert "cannot be written down" in text_of(own._repr_html_())


@hostile
def test_policy_of_hostile_names(name):
    policy = Policy(TEXTS[name], rules(TEXTS[name]))
    assert clip(printable(TEXTS[name]))[:40].replace("\r", "\n") in text_of(policy._repr_html_())
    assert f"sha256 {policy.sha256}" in text_of(policy._repr_html_())


@hostile_in_tables
def test_conflict_of_hostile_names(name):
    policy = Policy(TEXTS[name], rules(TEXTS[name]))
    candidates, catalogue = shop(TEXTS[name])
    impossible = CategoryMaximum(f"d{TEXTS[name]}", 0, name=f"never {TEXTS[name]}", reason=TEXTS[name])
    with pytest.raises(InfeasibleError) as refused:
        Reranker(Engagement(), [*policy, impossible]).rerank(candidates, catalogue, progress=False)
    assert "never " in text_of(refused.value.conflict._repr_html_())


@hostile_in_tables
def test_ledger_receipt_and_plan_of_hostile_names(name):
    given = TEXTS[name]
    ledger = PrivacyLedger(PrivacyBudget(4.0, 1e-6), population=given)
    reservation = ledger.reserve([GaussianMechanism(9.0)], purpose=given)
    assert "remaining" in text_of(ledger._repr_html_())
    receipt = Receipt.write(
        model=given,
        private=True,
        ledger=ledger,
        reservation=reservation,
        steps=1,
        stop_reason=given,
        constants={given: given},
        declared_public=(given,),
    )
    assert "Epsilons are rounded up" in text_of(receipt._repr_html_())
    plan = plan_budget(PrivacyBudget(1.0, 1e-6), [Use(given, error=1.0)])
    assert "epsilon of the plan" in text_of(plan._repr_html_())


# --- figures ----------------------------------------------------------------------------------------------

no_glyphs = pytest.mark.filterwarnings("ignore:Glyph", "ignore:Matplotlib currently does not support")


@no_glyphs
@hostile_in_tables
def test_frontier_of_hostile_labels_columns_and_note(name):
    given = TEXTS[name]
    frame = pd.DataFrame({f"x{given}": [1.0, 2.0, 1.5], f"y{given}": [2.0, 1.0, 1.0], "who": [given] * 3})
    frontier = Frontier(frame, f"x{given}", f"y{given}", "more", label="who", note=given)
    shown = text_of(frontier._repr_html_())
    assert "3 points from" in shown
    figure, axes = plt.subplots()
    assert frontier.plot(ax=axes) is axes
    figure.canvas.draw()
    plt.close(figure)


def test_without_plain_a_title_can_stop_a_figure():
    """The corpus has power: what figures are kept from does happen."""
    figure, axes = plt.subplots()
    axes.set_title(TEXTS["mathtext"])
    with pytest.raises(ValueError, match=r"Parse\w*Exception"):
        figure.canvas.draw()
    plt.close(figure)


def test_a_frontier_shows_its_points_and_never_rounds_epsilon_down():
    frame = pd.DataFrame({"epsilon": [0.5001, 123.4568], "recall": [0.1, 0.123456789], "steps": [1, 2]})
    shown = Frontier(frame, "epsilon", "recall", "less", note="not private")._repr_html_()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert cells == ["0.5001", "0.1", "1", "yes", "", "123.4568", "0.123457", "2", "yes", ""]
    assert "recall 0.1 at epsilon 0.5001 to recall 0.1235 at epsilon 123.4568" in text_of(shown)
    assert "not private" in text_of(shown)


def test_drawing_for_a_notebook_leaves_no_figure_open():
    before = plt.get_fignums()
    Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "more")._repr_html_()
    assert plt.get_fignums() == before


@hostile
def test_a_picture_is_described_in_words(name):
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    shown = picture(figure, TEXTS[name])
    plt.close(figure)
    assert f'alt="{escape(TEXTS[name])}"' in shown
    Seen(shown)


def text_of(shown: str) -> str:
    """What a reader of a card sees, after the checks of :class:`Seen`."""
    return Seen(shown).text
