"""How objects show themselves in a notebook: one small style, all text escaped, nothing loaded from outside.

Colours are the notebook's own: text inherits, lines and bars are translucent, and the two accents stand out
from white and from black alike. So one style is readable in light and in dark themes, whoever chose them:
JupyterLab, an editor or the system.

    card("Title", gauge(1.5, 4.0), table([("counts", 0.4)], ["use", "epsilon"]), note="rounded up")
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from recsys_budget._style import BLUE, VERMILION, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "<style>"
    f".rb-card{{border:1px solid #8886;border-left:4px solid {BLUE};border-radius:6px;padding:.6em 1em;"
    "margin:.4em 0;max-width:60em;font:14px/1.45 system-ui,sans-serif;color:inherit}"
    ".rb-card h4,.rb-card h5{padding:0;background:none;color:inherit;font-weight:600;text-transform:none;"
    "overflow-wrap:anywhere}"
    ".rb-card h4{margin:0 0 .4em;font-size:1.05em}"
    ".rb-card h5{margin:1em 0 .2em;font-size:1em}"
    ".rb-card p{margin:.3em 0;overflow-wrap:anywhere}"
    ".rb-card .rb-note{opacity:.8;font-size:.9em}"
    f".rb-card .rb-flag{{border:2px solid {VERMILION};border-radius:.3em;padding:0 .4em;font-weight:700}}"
    ".rb-card .rb-table{overflow-x:auto}"
    ".rb-card table{border-collapse:collapse;margin:.4em 0;width:auto;table-layout:auto;font-size:inherit;"
    "font-variant-numeric:tabular-nums}"
    ".rb-card .rb-table th,.rb-card .rb-table td{padding:.2em .8em .2em 0;border:0;"
    "border-bottom:1px solid #8884;text-align:left;vertical-align:top;background:none;unicode-bidi:isolate;"
    "min-width:2em;max-width:30em;overflow-wrap:break-word;white-space:normal}"
    ".rb-card .rb-table .rb-number{text-align:right}"
    ".rb-card .rb-gauge{height:.7em;border-radius:.35em;background:#8884;overflow:hidden}"
    f".rb-card .rb-gauge>div{{height:100%;background:{BLUE}}}"
    f".rb-card .rb-gauge>.rb-full{{background:{VERMILION}}}"
    ".rb-card figure{margin:.6em 0}"
    ".rb-card figure img{max-width:100%;height:auto;background:#fff;border-radius:6px}"
    ".rb-card .rb-beside{display:flex;flex-wrap:wrap;gap:0 1.5em}"
    ".rb-card .rb-beside>div{flex:1 1 22em;min-width:0}"
    "</style>"
)


class Html(str):
    """Text that is HTML already, because a function of this module made it; all other text gets escaped."""

    __slots__ = ()


def escape(value: object) -> Html:
    """``str(value)``, its markup harmless and unseen characters shown; :class:`Html` passes unchanged."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value)))


def text(*parts: object) -> Html:
    """A paragraph."""
    return Html(f"<p>{''.join(map(escape, parts))}</p>")


def flag(words: object) -> Html:
    """Words that must not be overlooked, such as "not private"."""
    return Html(f'<strong class="rb-flag">{escape(words)}</strong>')


def section(heading: object, *body: object) -> Html:
    """A part of a card under a heading of its own."""
    return Html(f"<h5>{escape(heading)}</h5>{''.join(map(escape, body))}")


def picture(figure: Figure, description: str) -> Html:
    """A matplotlib figure as an image in the text, with a description for those who do not see it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    source = base64.b64encode(drawn.getvalue()).decode("ascii")
    return Html(
        f'<figure><img alt="{escape(description)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{escape(description)}</figcaption></figure>"
    )


def details(summary: object, *body: object) -> Html:
    """Something to open when it is wanted."""
    return Html(f"<details><summary>{escape(summary)}</summary>{''.join(map(escape, body))}</details>")


def beside(*parts: object) -> Html:
    """Parts side by side where the page is wide enough."""
    return Html(f'<div class="rb-beside">{"".join(f"<div>{escape(part)}</div>" for part in parts)}</div>')


def table(rows: Iterable[Sequence[object]], columns: Sequence[object] = ()) -> Html:
    """A table; numbers stand right-aligned as ``str`` shows them, so round privacy figures up before.

    Args:
        rows: Cells of each row.
        columns: Headings; without them the first cell of each row is its heading.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_cells(row, bool(columns)))}</tr>" for row in rows)
    return Html(
        f'<div class="rb-table"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}'
        f"<tbody>{body}</tbody></table></div>"
    )


def gauge(spent: float, cap: float, *, label: str = "epsilon spent") -> Html:
    """A bar that shows how much of a cap is spent, with the figures in words (rounded up).

    Args:
        spent: At least 0; infinite or above the cap fills the bar.
        cap: Positive.
        label: What the figures are.
    """
    share = min(spent / cap, 1.0) if math.isfinite(spent) else 1.0
    words = escape(f"{label}: {_up(spent)} of {cap:g}")
    full = ' class="rb-full"' if share >= 1.0 else ""
    return Html(
        f'<p>{words}</p><div class="rb-gauge" role="meter" aria-label="{words}" aria-valuemin="0" '
        f'aria-valuemax="{cap:g}" aria-valuenow="{share * cap:.6g}">'
        f'<div{full} style="width:{100 * share:.2f}%"></div></div>'
    )


def card(title: object, *body: object, note: object = "") -> Html:
    """A framed block: what an object's ``_repr_html_`` returns."""
    closing = f'<p class="rb-note">{escape(note)}</p>' if note else ""
    return Html(
        f'{_STYLE}<div class="rb-card"><h4>{escape(title)}</h4>{"".join(map(escape, body))}{closing}</div>'
    )


def page(title: object, *body: object) -> str:
    """A file of its own around cards, light or dark as the reader's system is."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title></head>\n<body>\n{''.join(map(escape, body))}\n</body></html>\n"
    )


def _cells(row: Sequence[object], headed: bool) -> Iterable[str]:
    for place, cell in enumerate(row):
        number = isinstance(cell, int | float) and not isinstance(cell, bool)
        kind = ' class="rb-number"' if number else ""
        if place == 0 and not headed:
            yield f'<th scope="row">{escape(cell)}</th>'
        else:
            yield f"<td{kind}>{escape(cell)}</td>"


def _up(value: float) -> str:
    """Four decimals, never below the value."""
    if not math.isfinite(value):
        return str(value)
    ticks = round(value * 1e4)
    return f"{(ticks if ticks / 1e4 >= value else ticks + 1) / 1e4:.4f}"
