"""Invented names: of categories, of items (some of them hostile) and of providers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CATEGORY_NAMES = (
    *("Drama", "Comedy", "Action", "Thriller", "Romance", "Adventure", "Crime", "Science Fiction"),
    *("Fantasy", "Horror", "Family", "Mystery", "Animation", "History", "War", "Music"),
    *("Documentary", "Western", "Biography", "Sport", "Travel", "Nature", "Satire", "Musical"),
)
"""Names of the categories; an edition uses the first ``n_categories``, sorted."""

HOSTILE_TITLES = (
    "<b>Bold Harbour</b> (2011)",
    "The Price of $x_{$ (2003)",
    "Salt & Pepper (1999)",
    'The "Quoted" Garden (2008)',
    "<script>alert('Late Show')</script> (2016)",
    "NA",
    "Commas, Commas, Commas (1995)",
    "=SUM(A1:A9) (2010)",
    "Zwölf Brücken (2005)",
    "{{ title }} %s {0} (2012)",
    "雨の港 (2018)",
    r"C:\new\table_1 (1990)",
    "مدينة الضوء (2014)",
    "Either | Or (2002)",
)
"""Titles that break code which trusts them: markup, mathtext, templates, formulas, separators, scripts."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FORMS = ("The {} {}", "{} {}", "My {} {}", "Beyond the {} {}", "Return to the {} {}")
_ADJECTIVES = _words(
    "Quiet Crimson Hidden Golden Broken Distant Winter Silent Paper Burning Gentle Hollow Electric Last "
    "Borrowed Midnight Velvet Wandering Iron Forgotten Bright Salted Northern Secret Patient Wild Second "
    "Glass Restless Amber Early Crooked Blue Stolen Lonely Painted Tidal Scarlet Frozen Honest"
)
_NOUNS = _words(
    "Harbour Garden Lantern River Orchard Letter Mountain Carnival Kitchen Island Detective Promise Signal "
    "Bridge Summer Machine Sparrow Castle Highway Station Kingdom Melody Voyage Shadow Teacher Horizon "
    "Meadow Lighthouse Compass Village Theatre Comet Stranger Forest Captain Mirror Market Tower Dancer Ghost"
)
_YEARS = range(1970, 2020)
_STUDIOS = _words(
    "Alder Birch Cedar Dune Ember Falcon Granite Heron Indigo Juniper Kestrel Larch Marble Nimbus Osprey "
    "Pebble Quartz Raven Saffron Thistle"
)
_KINDS = _words("Films Pictures Productions Studio Media Entertainment House Collective Works Workshop")
_TITLE_STRIDE = 123_457  # shares no factor with the number of titles, so that none comes twice


def titles(by_appeal: NDArray[np.intp]) -> NDArray[np.object_]:
    """Titles for items, hostile ones at every fifth of the most appealing so that somebody meets them.

    Args:
        by_appeal: Positions of the items, most appealing first, shape ``(n_items,)``.

    Returns:
        Strings, shape ``(n_items,)``; the first 400,000 all differ.
    """
    made = np.empty(len(by_appeal), dtype=object)
    for k in range(len(made)):
        code, form = divmod(k * _TITLE_STRIDE, len(_FORMS))
        code, adjective = divmod(code, len(_ADJECTIVES))
        code, noun = divmod(code, len(_NOUNS))
        name = _FORMS[form].format(_ADJECTIVES[adjective], _NOUNS[noun])
        made[k] = f"{name} ({_YEARS[code % len(_YEARS)]})"
    for position, title in zip(by_appeal[::5], HOSTILE_TITLES, strict=False):
        made[position] = title
    return made


def provider_names(n: int) -> tuple[str, ...]:
    """Names of n providers, all different, sorted."""
    names = []
    for k in range(n):
        turn, studio = divmod(k, len(_STUDIOS))
        again, turn = divmod(turn, len(_KINDS))
        kind = _KINDS[(studio + turn) % len(_KINDS)]
        names.append(f"{_STUDIOS[studio]} {kind}" + (f" {again + 1}" if again else ""))
    return tuple(sorted(names))
