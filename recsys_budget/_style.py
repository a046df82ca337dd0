"""What notebooks and figures show things with: one palette, and text that is only ever text."""

from __future__ import annotations

import re
from typing import Any

# Okabe and Ito (2008), "Color universal design": told apart with any common colour vision, and in print.
# Blue and vermilion are at least 3.6 times as bright or as dark as white and as JupyterLab's dark ground.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#999999"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW, GREY)

# For every matplotlib text that is not a literal of this package: a title such as "$x_{$" is no formula.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}

# Control characters; embeddings, overrides and isolates of direction, which would turn what follows; halves
# of surrogate pairs, which no file can hold; and code points that are no characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")


def printable(value: object) -> str:
    r"""``str(value)``, characters that cannot be seen or would disturb their surroundings written as codes.

    >>> printable("left" + chr(0x202E) + "right")
    'left\\u202eright'
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", str(value))


def clip(value: object, most: int = 120) -> str:
    """``str(value)``, cut to at most this many characters, the last one then an ellipsis.

    >>> clip("abcdef", 4)
    'abc…'
    """
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
