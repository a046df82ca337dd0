"""Checks of lab 3: the trade-offs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from checks import Exercises, Hint, called, letter, number, sealed
from recsys_budget import Explorer, Frontier, RecsysBudgetError, bundled_frontiers
from recsys_budget.rerank import Certificate

_exercises = Exercises()
exercise, progress = _exercises.exercise, _exercises.progress

# What the lab asks for: recall in the worst run, engagement, and the steps in which the weight is chosen.
_RECALL, _ENGAGEMENT, _STEP = 0.3, 0.92, 0.05
# How far a figure quoted in words may be from the figure.
_QUOTED = 0.005


@functools.cache
def _frontiers() -> tuple[Frontier, Frontier]:
    """Over epsilon, and over the weight on diversity."""
    found = {frontier.swept: frontier for frontier in bundled_frontiers()}
    return found["epsilon"], found["diversity"]


@functools.cache
def _explorer() -> Explorer:
    return Explorer(*_frontiers())


def _at(epsilon: float, diversity: float) -> Certificate:
    """What the explorer says of a choice."""
    explorer = _explorer()
    explorer.value = {"epsilon": epsilon, "diversity": diversity}
    certificate = explorer.result.certificate
    if certificate is None:
        raise Hint("the rules conflict there, so nobody has a slate.")
    return certificate


def _worst(epsilon: float) -> float:
    """Recall in the worst run at an epsilon of the path."""
    path, _ = _frontiers()
    at = path.frame["epsilon"].to_numpy(np.float64)
    if not np.isclose(at, epsilon, rtol=0.01).any():
        raise Hint(
            f"no model was trained within epsilon {epsilon:g}; there are {', '.join(f'{e:g}' for e in at)}."
        )
    return float(path.frame["low"].iloc[int(np.abs(at - epsilon).argmin())])


@exercise
def dominated(answer: Callable[[tuple[float, float], list[tuple[float, float]]], Any]) -> str:
    """Whether another point is as good on both axes and better on one."""
    cases: list[tuple[tuple[float, float], list[tuple[float, float]], bool, str]] = [
        ((1, 1), [(2, 2)], True, "the other is better on both axes"),
        ((2, 2), [(1, 1)], False, "the other is worse on both axes; more is better here"),
        ((1, 2), [(2, 1)], False, "the other is better on one axis and worse on the other"),
        ((1, 1), [(1, 1)], False, "a point that is just as good does not beat it"),
        ((1, 1), [(2, 1)], True, "the other is as good on one axis and better on the other"),
        ((1, 1), [], False, "there is no other point"),
        ((1, 1), [(0, 3), (2, 2)], True, "one of the others is enough"),
        ((2, 2), [(3, 0), (0, 3)], False, "the two others are each worse on one axis"),
    ]
    for point, others, true, why in cases:
        found = called(answer, point, list(others))
        if not isinstance(found, bool | np.bool_):
            raise Hint(f"it returns a {type(found).__name__}; return True or False.")
        if found != true:
            raise Hint(f"for {point} and {others} it says {bool(found)}: {why}.")
    return (
        "what is left is the frontier. Nobody who wants more of both axes should stand at a dominated "
        "point, however they weigh the two; among the others it is a matter of taste."
    )


@exercise
def enough(answer: Any) -> str:
    """The least epsilon at which even the worst run is good enough."""
    value = number(answer)
    path, _ = _frontiers()
    worst = _worst(value)
    place = int(np.abs(path.frame["epsilon"].to_numpy(np.float64) - value).argmin())
    mean = float(path.frame[path.y].iloc[place])
    if worst < _RECALL:
        if mean >= _RECALL:
            raise Hint(
                f"the mean of five runs is {mean:.3f} there, but the worst has {worst:.3f}. You train once."
            )
        raise Hint(f"even the mean is {mean:.3f} there, below {_RECALL:g}.")
    less = path.frame.loc[path.frame["low"] >= _RECALL, "epsilon"].min()
    if less < 0.99 * value:
        raise Hint(f"that will do, and so does {less:g}: everybody's privacy is spent for nothing.")
    return (
        f"the worst of five runs has {worst:.3f} there. A band over runs answers what a single curve "
        "cannot: what you get if the noise is against you. Five runs are few; the sixth may be worse."
    )


@exercise
def most(answer: Any) -> str:
    """The furthest diversity that the certified bound leaves room for."""
    value = number(answer)
    _, mix = _frontiers()
    assert mix.bound is not None
    line = mix.bound.sort_values(mix.x)
    furthest = float(line.loc[line[mix.y] >= _ENGAGEMENT, mix.x].max())
    reached = float(mix.frame.loc[mix.frame[mix.y] >= _ENGAGEMENT, mix.x].max())
    step = float(np.diff(line[mix.x]).max()) + 1e-9
    if abs(value - furthest) <= step:
        return (
            f"no slates of these candidates under these rules have diversity above {furthest:.3f} and "
            f"keep {_ENGAGEMENT:.0%} of engagement, by any algorithm; {reached:.3f} was reached. So "
            "whoever asks for more diversity asks for less engagement, and you can say how much."
        )
    if abs(value - reached) <= 0.002:
        raise Hint(
            "that is the best point that was measured. The dashed line says what no slates can be above."
        )
    if value > 1 or value < 0:
        raise Hint("diversity lies between 0 and 1.")
    if value > furthest:
        raise Hint(f"at diversity {value:g} the bound on engagement is below {_ENGAGEMENT:g}.")
    raise Hint(
        f"the bound leaves room for more than {value:g}; take the last row that it keeps {_ENGAGEMENT:g} in."
    )


def _choice(answer: Any, keys: tuple[str, ...]) -> tuple[float, float]:
    if not isinstance(answer, Mapping):
        raise Hint(f"this is a {type(answer).__name__}; a dict with the keys {', '.join(keys)} is wanted.")
    if missing := [key for key in keys if answer.get(key, ...) is ...]:
        raise Hint(f"there is no {missing[0]!r} in it yet.")
    return number(answer["epsilon"]), number(answer["diversity"])


def _chosen(epsilon: float, diversity: float) -> Certificate:
    _worst(epsilon)  # says which there are
    if not 0 <= diversity <= 1:
        raise Hint(f"the weight on diversity is {diversity:g}; it lies between 0 and 1.")
    path, _ = _frontiers()
    at = path.frame["epsilon"].to_numpy(np.float64)
    try:
        return _at(float(at[np.abs(at - epsilon).argmin()]), diversity)
    except RecsysBudgetError as error:
        raise Hint(str(error)) from None


@exercise
def choice(answer: Any) -> str:
    """An operating point that keeps three promises."""
    epsilon, diversity = _choice(answer, ("epsilon", "diversity"))
    if (worst := _worst(epsilon)) < _RECALL:
        raise Hint(f"the worst run at epsilon {epsilon:g} has a recall of {worst:.3f}: below {_RECALL:g}.")
    path, _ = _frontiers()
    if (less := path.frame.loc[path.frame["low"] >= _RECALL, "epsilon"].min()) < 0.99 * epsilon:
        raise Hint(f"epsilon {less:g} is enough for that recall.")
    made = _chosen(epsilon, diversity)
    if made.engagement < _ENGAGEMENT:
        raise Hint(
            f"engagement is {made.engagement:.4f} there, below {_ENGAGEMENT:g}: a smaller weight keeps more."
        )
    more = diversity + _STEP
    if more <= 1 and (further := _chosen(epsilon, round(more, 9))).engagement >= _ENGAGEMENT:
        raise Hint(
            f"engagement is {made.engagement:.4f} there, and still {further.engagement:.4f} with a "
            f"weight of {more:g}: there is room."
        )
    return (
        f"engagement {made.engagement:.4f}, diversity {made.diversity:.3f}, every hard rule kept, at "
        f"most {made.gap:.2%} from the best possible. Moving the sliders has cost nothing: each model "
        "was paid for when it was trained."
    )


@exercise
def limit(answer: Any) -> str:
    """The largest advantage that any test can have against epsilon 2."""
    value = number(answer)
    epsilon, delta = 2.0, 1e-5
    most_possible = (math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1)
    if math.isclose(value, most_possible, rel_tol=1e-3):
        return (
            f"{value:.3f}: reached by a test that calls 88 of 100 members members, and 12 of 100 "
            "others. It is a limit for the best test in the worst case; attacks find far less."
        )
    if math.isclose(value, (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1), rel_tol=1e-3):
        raise Hint("that is how often the best bet is right. Advantage is twice what that is above one half.")
    if math.isclose(value, math.exp(epsilon) - 1 + 2 * delta, rel_tol=1e-3):
        raise Hint("that is the upper part; divide by exp(epsilon) + 1.")
    if not 0 <= value <= 1:
        raise Hint("an advantage lies between 0 and 1. Are there brackets around both parts?")
    raise Hint("put epsilon = 2 and delta = 1e-5 into the formula; np.exp(2) is about 7.39.")


_ATTACK = {
    "a": "does not follow: another attack may do better. An attack gives a bound from below, never "
    "from above",
    "b": "is what the two lines say: the test can find a leak, for it finds one in the control, and "
    "found none worth the name here. That nobody finds more than epsilon allows is the ledger's word, "
    "by proof",
    "c": "is not so: it finds members of the control easily. A test without a control would be worth nothing",
}
_SEALS = frozenset({"a2b4f782"})


@exercise
def attack(answer: Any) -> str:
    """What follows from an attack that fails."""
    chosen = letter(answer, _ATTACK)
    said = f"{chosen} {_ATTACK[chosen]}."
    if sealed("attack", chosen) not in _SEALS:
        raise Hint(said)
    return said


def _quotes(text: str, figures: Sequence[float], others: Sequence[float]) -> bool:
    """Whether a text has one of these figures in it, as a share or in percent, rather than one of the "
    "others."""
    for whole, percent in re.findall(r"(\d*\.?\d+)\s*(%?)", text):
        said = float(whole) / (100 if percent else 1)
        near, far = (min(abs(said - figure) for figure in some) for some in (figures, others))
        if near <= _QUOTED and near < far:
            return True
    return False


@exercise
def defence(answer: Any) -> str:
    """A point, and an argument with figures for it and against another."""
    epsilon, diversity = _choice(answer, ("epsilon", "diversity", "because"))
    because = answer["because"]
    if not isinstance(because, str) or len(because.split()) < 12:
        raise Hint("'because' wants a sentence or two, for somebody who will have to answer for it.")
    if re.search(r"\b(anonym|nobody can learn)", because, flags=re.IGNORECASE):
        raise Hint("it promises what epsilon does not; see exercise 7 of lab 1.")
    path, mix = _frontiers()
    made = _chosen(epsilon, diversity)
    here = np.isclose(path.frame["epsilon"], epsilon, rtol=0.01)
    columns = [path.y, "low", "high"]
    own = [*path.frame.loc[here, columns].to_numpy().ravel(), made.engagement, made.diversity]
    rest = [*path.frame.loc[~here, columns].to_numpy().ravel(), *mix.frame[[mix.x, mix.y]].to_numpy().ravel()]
    rest = [figure for figure in rest if min(abs(figure - mine) for mine in own) > 1e-4]
    if not _quotes(because, own, rest):
        raise Hint(
            "it names no figure of your point: what recall, engagement or diversity does one get? "
            f"Yours has engagement {made.engagement:.3f} and diversity {made.diversity:.3f}."
        )
    if not _quotes(because, rest, own):
        raise Hint(
            "it names no figure of a point that you did not take: what would that have cost, or gained?"
        )
    return (
        "a point, what it gives, and what the alternative would have cost. Whether it convinces is for "
        "your neighbour to say: read it to each other."
    )
