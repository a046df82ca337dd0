"""Checks of lab 1: the budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from checks import Endless, Exercises, Hint, called, letter, letters, number, sealed
from recsys_budget import BudgetExceededError, Interactions, PrivacyBudget, PrivacyLedger, load_dataset
from recsys_budget.privacy import GaussianMechanism, Mechanism, epsilon, smallest_noise

_DELTA, _TARGET = 1e-5, "u85"
_exercises = Exercises()
exercise, progress = _exercises.exercise, _exercises.progress


@functools.cache
def _liked() -> Interactions:
    return load_dataset("bundled").positives(4)


def _cost(noise: float) -> float:
    return epsilon([GaussianMechanism(noise)], _DELTA)


@exercise
def revealed(answer: Any) -> str:
    """The films of one person, from two exact counts."""
    liked = _liked()
    row = int(np.flatnonzero(liked.users == _TARGET)[0])
    theirs = set(liked.catalogue.ids[liked.indices[liked.indptr[row] : liked.indptr[row + 1]]])
    if isinstance(answer, int | float | np.number):
        raise Hint("that is a number; the ids of the films are wanted, such as i17.")
    if isinstance(answer, str):
        raise Hint("that is text; give all ids, as catalogue.ids[...] does.")
    given = list(answer)
    if any(isinstance(item, bool | np.bool_) for item in given):
        raise Hint("these are true and false, one a film; put them into catalogue.ids[...] to get ids.")
    if any(isinstance(item, int | float | np.number) for item in given):
        if len(given) == liked.n_items:
            raise Hint("these are differences, one a film; which of them are above 0?")
        raise Hint("these are numbers; catalogue.ids[...] turns positions into ids.")
    ids = set(map(str, given))
    if not ids:
        raise Hint("nothing is revealed that way round: subtract the count without u85 from the count with.")
    if ids == theirs:
        return (
            f"two totals over thousands of people gave away all {len(theirs)} films that one person "
            "likes. Neither total does so alone: a release must be judged beside all others, which one "
            "cannot know beforehand."
        )
    if len(ids) == liked.n_items:
        raise Hint("these are all films; keep those of which the two counts differ.")
    if ids.isdisjoint(liked.catalogue.ids):
        raise Hint("these are no ids of the catalogue; give ids such as i17, not titles.")
    raise Hint(f"{len(ids & theirs)} of u85's {len(theirs)} films are among your {len(ids)}.")


@exercise
def guess(answer: Any) -> str:
    """How often the best bet against noise 4 is right."""
    # The two worlds are 1 apart and the line is drawn half-way.
    right = NormalDist().cdf(1 / (2 * 4))
    options = {"a": 0.55, "b": 0.75, "c": 0.95}
    chosen = letter(answer, options)
    if chosen == min(options, key=lambda option: abs(options[option] - right)):
        return (
            f"{right:.0%}, hardly better than a coin: one person moves the count by 1, and the noise "
            "moves it by about 4 all the time. A count of 1,000 is still known to within a percent."
        )
    raise Hint(
        f"{options[chosen]:.0%} would need noise of "
        f"{1 / (2 * NormalDist().inv_cdf(options[chosen])):.2g}. Compare the two histograms that the "
        "experiment draws: how far apart are they, and how wide?"
    )


@exercise
def noise(answer: Any) -> str:
    """The least noise at which one release costs epsilon 1."""
    if isinstance(answer, GaussianMechanism):
        raise Hint("give the noise alone, without GaussianMechanism(...).")
    value = number(answer)
    if value <= 0:
        raise Hint("noise is above 0: how widely it spreads, in units of what one person can change.")
    least = smallest_noise(lambda s: [GaussianMechanism(s)], lambda m: epsilon(m, _DELTA) <= 1)
    if value < 0.3:
        raise Hint("so little noise hides nobody; epsilon is far above 1.")
    cost = _cost(value)
    if value == 1:
        raise Hint(f"1 is the epsilon that is wanted. Noise of 1 costs epsilon {cost:.2f}.")
    if cost > 1:
        raise Hint(f"noise of {value:g} costs epsilon {cost:.4f}, more than 1: more noise is needed.")
    if value > 1.03 * least:
        raise Hint(f"that keeps the promise, but costs only {cost:.3f}: less noise would do.")
    return (
        f"epsilon {cost:.4f}. Noise nearly four times as wide as what one person can change, for an "
        "epsilon of 1 and so small a delta. Rounding it down would have broken the promise."
    )


@exercise
def single(answer: Any) -> str:
    """The noise of one release that says as much as the mean of sixteen."""
    value = number(answer)
    worth = 8 / math.sqrt(16)
    if math.isclose(value, worth, rel_tol=1e-6):
        return (
            f"the mean of 16 answers has noise 8 / sqrt(16) = {worth:g}, and the price is the same too: "
            f"epsilon {_cost(worth):.3f} for the one, "
            f"{epsilon([GaussianMechanism(8.0)] * 16, _DELTA):.3f} for the sixteen. The accountant has "
            "counted exactly what averaging finds out."
        )
    if value == 8:
        raise Hint("that would make the other fifteen answers free. What does averaging do to noise?")
    if value == 8 / 16:
        raise Hint("noise falls with the square root of how many answers are averaged, not with the number.")
    if value > 8:
        raise Hint("averaging makes noise smaller, not larger.")
    raise Hint("the standard deviation of a mean of n independent answers is theirs over sqrt(n).")


class _Watched(PrivacyLedger):
    """A ledger that does not let itself be asked for ever."""

    _asked = 0

    def fits(self, mechanisms: Any) -> bool:
        self._asked += 1
        if self._asked > 2_000:
            raise Endless(
                "your loop asked 2,000 times and was not stopped: fits() reserves nothing, and a "
                "reservation that is committed before its use is given back."
            )
        return super().fits(mechanisms)


def _granted(cap: PrivacyBudget, mechanism: Mechanism) -> int:
    ledger, count = PrivacyLedger(cap), 0
    while ledger.fits([mechanism]):
        ledger.reserve([mechanism], purpose="counting")
        count += 1
    return count


@exercise
def grants(answer: Callable[[PrivacyLedger, Mechanism], Any]) -> str:
    """How often a ledger grants a mechanism."""
    counted = []
    for cap, width in ((2.0, 8.0), (1.0, 6.0), (0.1, 1.0)):
        budget, mechanism = PrivacyBudget(cap, _DELTA), GaussianMechanism(width)
        ledger, true = _Watched(budget), _granted(budget, mechanism)
        try:
            count = number(called(answer, ledger, mechanism))
        except BudgetExceededError:
            raise Hint(
                "the ledger's refusal came out of your function: catch BudgetExceededError, it is the "
                "end of the count."
            ) from None
        if count == true + 1:
            raise Hint(
                f"{count:g} at a cap of {cap:g}, one too many: the request that was refused is no grant."
            )
        if true and ledger.spent == 0:
            raise Hint("nothing was reserved in the ledger that was passed in; do not use another one.")
        if count != true:
            raise Hint(f"{count:g} for noise {width:g} at a cap of {cap:g}, but it grants {true}.")
        counted.append(true)
    return (
        f"{counted[0]} releases with noise 8 fit under epsilon 2, and {counted[1]} with noise 6 under "
        "1. What the last one says is never so interesting that the next one is free: the ledger does "
        "not look at it."
    )


@exercise
def item_error(answer: Any) -> str:
    """What noise on item counts harms: entries times sensitivity squared."""
    value = number(answer)
    entries, bound = 600, 4
    if math.isclose(value, entries * bound):
        return (
            f"{entries} counts, each with the square of sqrt({bound}) times the noise. The planner now "
            "knows that noise there harms more, and gives those counts the larger share of the budget."
        )
    if math.isclose(value, entries):
        raise Hint("that is right for a sensitivity of 1; with max_items=4 it is sqrt(4).")
    if math.isclose(value, entries * math.sqrt(bound)):
        raise Hint("errors are squared, so the sensitivity is squared as well.")
    if math.isclose(value, entries * bound**2):
        raise Hint("max_items is 4, and the sensitivity is its square root: squared, that is 4 again.")
    if math.isclose(value, bound):
        raise Hint("that is the squared error of one count; how many counts are there?")
    raise Hint("number of entries, times the square of the sensitivity sqrt(max_items).")


_SENTENCES = {
    "a": "is the definition in plain words",
    "b": "is not so: names may never have been there, and what people did may be as good as a name",
    "c": "promises too much: that fans of A also like B is learnt from others, whether you are there or not",
    "d": "holds because the promises of people who act together add up",
    "e": "forgets that all ten were released to whoever chose: all ten are paid for",
    "f": "is about the computer; what was released stays known, so a ledger belongs in a file",
    "g": "says what a cap is",
}
_SEALS = frozenset({"0a4eb37e", "af13f278", "bb45e571"})


@exercise
def sentences(answer: Any) -> str:
    """Which sentences may be said."""
    given = letters(answer, _SENTENCES)
    true = {option for option in _SENTENCES if sealed("sentences", option) in _SEALS}
    for option in sorted(given - true):
        raise Hint(f"{option} {_SENTENCES[option]}.")
    if given < true:
        raise Hint(f"so far so good; {len(true - given)} more may be said.")
    return " ".join(f"{option} {_SENTENCES[option]}." for option in sorted(true))
