"""Text that breaks code which trusts it: what a title, id, name, reason or label may be."""

from __future__ import annotations

from html.parser import HTMLParser

TEXTS = {
    "image": '<img src=x onerror="alert(1)">',
    "script": "<script>alert(1)</script>",
    "breakout": "\"'></td></table></div></style></script><svg onload=alert(1)>",
    "attribute": '" onmouseover="alert(1)" x="',
    "comment": "<!-- --><![CDATA[ ]]>",
    "link": "[press](javascript:alert(1)) https://example.org/<b>",
    "entity": "&lt;b&gt; &amp;amp; &#60;",
    "mathtext": "$x_{$",
    "latex": r"\frac{1}{ $\input{/etc/passwd}$",
    "percent": "100% %s %(x)d {0} {x!r} {{y}}",
    "formula": "=HYPERLINK(A1) +1 @SUM(A1:A9) -2",
    "right to left": "مدينة الضوء",
    "override": "safe \u202eexe.txt\u2066 end",
    "wide": "雨の港 👩‍👩‍👧‍👦",
    "stacked": "Z" + "\u0301\u0316\u0489" * 30,
    "controls": "a\x00b\x1b[31mc\x7fd\ufeff",
    "half a character": "half \ud83d of one",
    "very long": "word" * 3000,
    "lines": "first\nsecond\r\n\tthird",
    "missing": "NA",
    "space": " \u00a0 \u200b",
    "escapes": r"C:\new\table_1 \u202e",
}

# What the one style is made of. Nothing else may come out, whatever went in.
ATTRIBUTES = {"class", "scope", "role", "style", "alt", "src", "aria-label", "aria-valuemin", "aria-valuemax"}
ATTRIBUTES |= {"aria-valuenow"}
TAGS = {"style", "div", "h4", "h5", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
TAGS |= {"details", "summary", "figure", "figcaption", "img"}


class Seen(HTMLParser):
    """A card as a browser takes it: only known tags, closed in order; the text; the style apart."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.parts: list[str] = []
        source.encode()
        self.feed(source)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        given = dict(attrs)
        assert given.keys() <= ATTRIBUTES, given
        assert (given.get("src") or "data:image/").startswith("data:image/")
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.parts.append(data)
