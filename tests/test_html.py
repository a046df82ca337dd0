"""What notebooks show: escaped, self-contained, never below a privacy figure."""

from __future__ import annotations

import math
import re

import pytest
from hostile import TEXTS

from recsys_budget._html import Html, card, escape, gauge, page, table, text

HOSTILE = TEXTS["breakout"]


def test_a_page_loads_nothing():
    shown = page(HOSTILE, card(HOSTILE, text(HOSTILE)))
    assert not re.search("src|href|http|url\\(", shown.replace(escape(HOSTILE), ""))
    assert shown.count(escape(HOSTILE)) == 3


def test_html_is_not_escaped_twice():
    assert escape(escape("<")) == "&lt;"
    assert isinstance(escape("<"), Html)
    assert table([("a", text("<"))]).count("&lt;") == 1


@pytest.mark.parametrize(
    ("spent", "width", "words"),
    [
        (0.0, "width:0.00%", "0.0000 of 4"),
        (1.00001, "width:25.00%", "1.0001 of 4"),
        (4.0, "width:100.00%", "4.0000 of 4"),
        (5.0, "width:100.00%", "5.0000 of 4"),
        (math.inf, "width:100.00%", "inf of 4"),
    ],
)
def test_gauge(spent, width, words):
    shown = gauge(spent, 4.0)
    assert width in shown
    assert words in shown
    assert ("rb-full" in shown) == (spent >= 4.0)


def test_gauge_never_shows_less_than_was_spent():
    just_above = math.nextafter(0.0003, 1.0)
    assert "0.0004 of" in gauge(just_above, 4.0)


def test_numbers_stand_right():
    assert table([("a", 1.5, True)]).count("rb-number") == 1
