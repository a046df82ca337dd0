"""What notebooks show: escaped, self-contained, never below a privacy figure."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from recsys_budget._html import Html, card, escape, gauge, page, table, text

HOSTILE = '<img src=x onerror="alert(1)">&\'"</td></table></style><script>'


class Seen(HTMLParser):
    """Tags, and whether each one opened is closed in order."""

    VOID = ("meta",)

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.data = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_whatever_is_shown_is_escaped_and_well_formed():
    shown = page(
        HOSTILE,
        card(
            HOSTILE,
            HOSTILE,
            text(HOSTILE),
            gauge(1.0, 2.0, label=HOSTILE),
            table([(HOSTILE, HOSTILE)], [HOSTILE, HOSTILE]),
            table([(HOSTILE, 3)]),
            note=HOSTILE,
        ),
    )
    seen = Seen(shown)
    assert not {"img", "script", "link"} & set(seen.tags)
    # The title of the page, and in the card: title, bare text, paragraph, gauge, five cells of tables, note.
    assert "".join(seen.data).count(HOSTILE) == 11
    assert "http" not in shown


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
