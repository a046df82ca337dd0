"""Checks of lab 2: the rules."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from checks import Exercises, Hint, called, letter, number, sealed
from recsys_budget import (
    EASE,
    CategoryMaximum,
    CategoryMinimum,
    Engagement,
    InfeasibleError,
    ItemCatalogue,
    Reranker,
    SlateSize,
    Soft,
    hold_out_users,
    load_dataset,
)
from recsys_budget.rerank import Slates

_exercises = Exercises()
exercise, progress = _exercises.exercise, _exercises.progress

_SIZE, _PEOPLE, _FEW = 10, 100, 5


def films() -> pd.DataFrame:
    """Six films, small enough to try every slate by hand."""
    return pd.DataFrame(
        {
            "item": ["Ash", "Bay", "Elm", "Cliff", "Dune", "Fern"],
            "categories": [
                ["Drama"],
                ["Drama", "Comedy"],
                ["Crime"],
                ["Documentary"],
                ["Documentary", "Comedy"],
                ["Comedy"],
            ],
            "relevance": [0.9, 0.8, 0.7, 0.6, 0.35, 0.3],
        }
    )


@functools.cache
def _candidates() -> tuple[pd.DataFrame, ItemCatalogue]:
    train, fold_in, _ = hold_out_users(load_dataset("bundled").positives(4), 800, rng=0)
    served = fold_in.take_users(range(_PEOPLE))
    return EASE().fit(train).recommend(served, 100), train.catalogue


def _rerank(*rules: Any) -> Slates:
    candidates, catalogue = _candidates()
    return Reranker(Engagement(), [SlateSize(_SIZE), *rules]).rerank(candidates, catalogue, progress=False)


def _broken(slate: tuple[str, ...]) -> list[str]:
    """Rules about the six films that a slate breaks."""
    has = films().set_index("item")["categories"]
    n = {name: sum(name in has[item] for item in slate) for name in ("Drama", "Documentary", "Comedy")}
    found = ["it has more than 1 Drama"] if n["Drama"] > 1 else []
    return found + [f"it has no {name}" for name in ("Documentary", "Comedy") if not n[name]]


@exercise
def best(answer: Any) -> str:
    """The best slate of three out of six films."""
    relevance = films().set_index("item")["relevance"]
    if isinstance(answer, str) or not isinstance(answer, list | tuple | set | frozenset):
        raise Hint("give three names in braces or brackets.")
    slate = tuple(sorted(set(map(str, answer))))
    if unknown := [name for name in slate if name not in relevance.index]:
        raise Hint(f"there is no film {unknown[0]!r}.")
    if len(slate) != 3:
        raise Hint(f"{len(slate)} different films; a slate has 3.")
    if broken := _broken(slate):
        raise Hint(f"{', '.join(broken)}.")
    kept = [other for other in itertools.combinations(sorted(relevance.index), 3) if not _broken(other)]
    most = max(relevance[list(other)].sum() for other in kept)
    total = relevance[list(slate)].sum()
    if total < most - 1e-9:
        raise Hint(f"it keeps every rule, with {total:.2f} in all. More is possible: what if Ash gives way?")
    return (
        f"{total:.2f} in all, the most of the {len(kept)} slates that keep every rule. It leaves out "
        "the most relevant film: no list that takes the best first and looks at the rules afterwards "
        "finds it."
    )


@exercise
def shortfall(answer: Callable[[Mapping[str, list[str]], set[str], int], Any]) -> str:
    """The largest number of items by which any slate falls short."""
    wanted = {"d1", "d2", "d3", "d4"}
    cases: list[tuple[dict[str, list[str]], int, int]] = [
        ({"x": ["d1", "a"], "y": ["a", "b"]}, 1, 1),
        ({"x": ["d1", "d2", "d3"], "y": ["d4", "d1", "a"]}, 1, 0),
        ({"x": ["a", "b", "c"], "y": ["a", "d1", "d2"], "z": ["d3", "d4", "c"]}, 2, 2),
        ({"x": ["d1", "d2", "a"], "y": ["d1", "a", "b"], "z": ["d2", "a", "b"]}, 2, 1),
    ]
    for slates, count, true in cases:
        given = {user: list(items) for user, items in slates.items()}
        value = number(called(answer, given, set(wanted), count))
        short = [count - sum(item in wanted for item in items) for items in slates.values()]
        if value == true:
            continue
        said = f"for {slates} and at least {count} of d1 to d4, it gives {value:g} instead of {true}"
        if value < 0:
            raise Hint(f"{said}: a slate that has more than it must is not short, so count 0 for it.")
        if value == sum(max(0, s) for s in short):
            raise Hint(f"{said}: that is the sum over all slates; the worst slate is wanted.")
        if value == np.mean([max(0, s) for s in short]):
            raise Hint(f"{said}: a mean hides the worst slate.")
        if value == min(max(0, s) for s in short):
            raise Hint(f"{said}: that is the best slate; the worst is wanted.")
        if value == sum(s > 0 for s in short):
            raise Hint(f"{said}: that is how many slates are short, not by how many items.")
        raise Hint(f"{said}.")
    return (
        "it counts in the slates themselves and knows nothing of how they were made, so it finds a "
        "fault of any solver. The re-ranker does likewise before a slate leaves it."
    )


_BOUND = {
    "a": "is too much trust: whoever says so has not proven it, and the certificate has",
    "b": "is what a bound says: it holds for all slates that keep the rules, whoever makes them and "
    "however long it takes. So count their violations before you look at their engagement",
    "c": "is not possible: the gap is 0, so the search was over. It says how much a longer one could add",
}
_SEALS = frozenset({"d45fb0ba"})


@exercise
def bound(answer: Any) -> str:
    """What follows when somebody claims more than the bound."""
    return _chosen("bound", answer, _BOUND)


def _chosen(name: str, answer: Any, options: Mapping[str, str]) -> str:
    chosen = letter(answer, options)
    said = f"{chosen} {options[chosen]}."
    if sealed(name, chosen) not in _SEALS:
        raise Hint(said)
    return said


@functools.cache
def _western(count: int) -> float | None:
    """Engagement when so many Westerns are asked for beside the other rules; None where that is "
    "impossible."""
    rules = [CategoryMinimum("Documentary", 4), CategoryMinimum("Animation", 3), CategoryMaximum("Drama", 3)]
    try:
        return _rerank(*rules, CategoryMinimum("Western", count)).certificate.engagement
    except InfeasibleError:
        return None


@exercise
def westerns(answer: Any) -> str:
    """The largest number of Westerns that everybody can be shown."""
    value = number(answer)
    if value != int(value) or not 0 <= value <= _SIZE:
        raise Hint(f"a whole number from 0 to {_SIZE} is wanted: films in a slate.")
    engagement = _western(int(value))
    if engagement is None:
        raise Hint(
            f"with {value:g}, somebody still has no slate. The message says how far the number must move."
        )
    if _western(int(value) + 1) is not None:
        raise Hint(f"{value:g} will do, but the partner loses more than necessary: one more is possible.")
    return (
        f"with {value:g} everybody has a slate, and with one more somebody has none. Engagement is "
        f"{engagement:.3f}. It could be done by asking other partners to move instead: the message "
        "names all who are in the conflict, and who moves is for people to decide."
    )


@exercise
def third(answer: Any) -> str:
    """What a third documentary does to engagement, judged by the price of the second."""
    first, second, more = (_rerank(CategoryMinimum("Documentary", n)).certificate for n in (1, 2, 3))
    price = second.shadow_prices["at least 2 Documentary"] or 0.0
    loss = second.engagement - more.engagement
    steps = {"a": loss < 0.8 * price, "b": abs(loss - price) <= 0.2 * price, "c": loss > 1.2 * price}
    chosen = letter(answer, steps)
    if steps[chosen]:
        return (
            f"the second costs {first.engagement - second.engagement:.4f}, as its price says, and the "
            f"third {loss:.4f}. Cheap documentaries are taken first, so each further one costs more: a "
            "price is a slope, not a promise about large steps."
        )
    if chosen == "a":
        raise Hint("why would the third be cheaper than the second? The re-ranker takes the cheapest first.")
    raise Hint(
        "a price is the slope here. Is the next documentary as good for each person as the one before?"
    )


@functools.cache
def _without_two(penalty: float) -> int:
    """How many people get fewer than two documentaries when each one missing costs so much."""
    slates = _rerank(Soft(CategoryMinimum("Documentary", 2), penalty))
    catalogue = _candidates()[1].to_frame().set_index("item")["categories"]
    are = slates.frame["item"].map(lambda item: "Documentary" in catalogue[item])
    return int((are.groupby(slates.frame["user"]).sum() < 2).sum())


@exercise
def penalty(answer: Any) -> str:
    """The least penalty, in hundredths, that leaves at most five people short."""
    value = number(answer)
    if value <= 0:
        raise Hint("a wish that costs nothing is no wish: the penalty is above 0.")
    if value >= 1:
        raise Hint("engagement is 1 at most, so such a penalty is a hard rule under another name.")
    short = _without_two(value)
    if short > _FEW:
        raise Hint(f"with {value:g}, {short} people get fewer than two; each one missing must cost more.")
    if value >= 0.02 and (less := _without_two(round(value - 0.01, 9))) <= _FEW:
        raise Hint(f"that will do, but so does {value - 0.01:.2f}, with {less} people short.")
    return (
        f"{short} people get fewer than two, namely those for whom a documentary costs more than "
        f"{value:g} of engagement. A soft rule names the price at which it gives way; a hard one says "
        "that there is none."
    )


@exercise
def floor(answer: Any) -> str:
    """Five places for each provider, as a share of all places."""
    value = number(answer)
    places = _SIZE * _PEOPLE
    if np.isclose(value, 5 / places):
        return (
            f"5 of {_PEOPLE} x {_SIZE} = {places} places are {value:.1%}. 60 providers can be promised that."
        )
    if value >= 1:
        raise Hint("a share lies between 0 and 1: of all places in all slates.")
    if np.isclose(value, 5 / _PEOPLE):
        raise Hint(f"that is 5 of {_PEOPLE} slates, but each has {_SIZE} places.")
    if np.isclose(value, 5 / _SIZE):
        raise Hint(f"that is 5 of {_SIZE} places in one slate; there are {_PEOPLE} slates.")
    if value > 1 / 60:
        raise Hint("60 providers with such a share each would need more places than there are.")
    raise Hint(f"5 places, divided by all places in the slates of {_PEOPLE} people.")
