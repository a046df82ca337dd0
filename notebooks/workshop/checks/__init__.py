"""Checks of the workshop's exercises: not done yet, a hint, or right and why.

A lab says ``from checks import lab_1 as check`` and then ``check.noise(noise)``. No check raises for a
mistake in an answer. Right answers are not written here: they are worked out, or compared by a digest.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_budget import _html


class Hint(Exception):
    """What is wrong with an answer, for the one who gave it."""


class NotDone(Exception):
    """There is no answer yet."""


class Endless(BaseException):
    """An answer that asks for ever. Not an ``Exception``, so that no answer catches it by accident."""


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        state: ``"not done yet"``, ``"not right yet"`` or ``"right"``.
        words: The hint, or the reason.
    """

    state: str
    words: str

    def __repr__(self) -> str:
        return f"{self.state}: {self.words}"

    def _repr_html_(self) -> str:
        sign = {"right": "✓", "not right yet": "✗"}.get(self.state, "…")
        return _html.card(f"{sign} {self.state}", _html.text(self.words[:1].upper() + self.words[1:]))


class Exercises:
    """The exercises of a lab, in order, and what was last said about each."""

    def __init__(self) -> None:
        self._said: dict[str, Verdict | None] = {}

    def exercise(self, body: Callable[[Any], str]) -> Callable[[Any], Verdict]:
        """A check from a function that returns why an answer is right, or raises :class:`Hint`."""
        self._said[body.__name__] = None

        @functools.wraps(body)
        def check(answer: Any) -> Verdict:
            self._said[body.__name__] = verdict = _judge(body, answer)
            return verdict

        return check

    def progress(self) -> Verdict:
        """Which exercises are right by now."""
        right = [name for name, said in self._said.items() if said is not None and said.state == "right"]
        rest = [name for name in self._said if name not in right]
        if not rest:
            return Verdict("right", f"all {len(right)} exercises of this lab.")
        state = "not right yet" if right else "not done yet"
        return Verdict(state, f"{len(right)} of {len(self._said)} are right; to do: {', '.join(rest)}.")


def _judge(body: Callable[[Any], str], answer: Any) -> Verdict:
    try:
        if answer is ...:
            raise NotDone("replace the three dots by your answer and run both cells again.")
        return Verdict("right", body(answer))
    except NotDone as missing:
        return Verdict("not done yet", str(missing))
    except Hint as hint:
        return Verdict("not right yet", str(hint))
    except Endless as endless:
        return Verdict("not right yet", str(endless))
    except (Exception, SystemExit) as error:
        words = f"your answer could not be used ({type(error).__name__}: {error}). Look at the hint above."
        return Verdict("not right yet", words)


def called(function: Any, *arguments: Any) -> Any:
    """What a function of the learner's returns; nothing at all is a mistake with a hint of its own."""
    if not callable(function):
        raise Hint("pass the function itself, by its name, without brackets after it.")
    found = function(*arguments)
    if found is ...:
        raise NotDone("the function still returns the three dots.")
    if found is None:
        raise Hint("the function returns nothing: does it end with return?")
    return found


def number(answer: Any) -> float:
    """A finite number; anything else is a mistake with a hint of its own."""
    if isinstance(answer, str):
        raise Hint(f"{answer!r} is text; write the number without quotes.")
    if isinstance(answer, bool | np.bool_) or not isinstance(answer, int | float | np.integer | np.floating):
        raise Hint(f"this is a {type(answer).__name__}; a single number is wanted.")
    if not math.isfinite(answer):
        raise Hint(f"{answer} is no finite number; look for where it comes from.")
    return float(answer)


def letters(answer: Any, options: Collection[str]) -> frozenset[str]:
    """Letters out of the options, written as text, a list or a set."""
    wanted = f"give letters out of {', '.join(sorted(options))}, such as {min(options)!r}."
    if not isinstance(answer, str | list | tuple | set | frozenset):
        raise Hint(f"this is a {type(answer).__name__}; {wanted}")
    given = {str(letter).strip().lower() for letter in answer} - {"", ","}
    if not given or given - set(options):
        raise Hint(wanted[0].upper() + wanted[1:])
    return frozenset(given)


def letter(answer: Any, options: Collection[str]) -> str:
    """One letter out of the options."""
    given = letters(answer, options)
    if len(given) > 1:
        raise Hint("choose one of them.")
    return min(given)


def sealed(exercise: str, option: str) -> str:
    """A digest that tells whether an option is the one, and not which one it is."""
    return hashlib.sha256(f"{exercise} {option}".encode()).hexdigest()[:8]
