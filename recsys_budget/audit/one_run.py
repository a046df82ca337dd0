"""A lower bound on epsilon from one training run with made-up users.

Many made-up users ("canaries") are put into the training table or left out, each by a coin of its own. From
the trained model alone, the auditor says of some of them which way the coin fell. Under epsilon, there is a
limit to how often that can be right, so many right guesses refute a small epsilon.

References:
    Steinke, Nasr and Jagielski (2023), arXiv:2305.08846.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import NumericalError, SpecificationError

Model = TypeVar("Model")
# Beyond it, no number of guesses says more: the chance of a wrong one is below float64's step.
_LARGEST = 36.0


@dataclass(frozen=True)
class OneRunAudit:
    """What an audit found.

    Attributes:
        epsilon: Lower bound: with probability ``confidence`` over the coins and the training, the epsilon
            that holds is not below it. Rounded down. 0 means that nothing was found.
        delta: The delta that it goes with.
        confidence: See ``epsilon``.
        canaries: Number of made-up users.
        guesses: How many of them were guessed.
        correct: How many guesses were right.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int

    def refutes(self, epsilon: float) -> bool:
        """Whether the stated epsilon is below what was found."""
        return epsilon < self.epsilon


def one_item_users(catalogue: ItemCatalogue, positions: Sequence[int] | NDArray[np.integer]) -> Interactions:
    """Made-up users with one item each: strong canaries, as their gradients hardly meet.

    They are strongest on items that no real user has.

    Args:
        catalogue: The items.
        positions: Item of each user, in the catalogue.

    Returns:
        One user a position, in this order, named "canary 0" and so on.
    """
    items = np.asarray(positions, np.int32)
    return Interactions(
        users=pd.Index([f"canary {i}" for i in range(len(items))], dtype="str"),
        catalogue=catalogue,
        indptr=np.arange(len(items) + 1, dtype=np.int64),
        indices=items,
    )


def audit_one_run(
    fit: Callable[[Interactions], Model],
    table: Interactions,
    canaries: Interactions,
    score: Callable[[Model, Interactions], NDArray[np.floating]],
    *,
    delta: float,
    guesses: int | None = None,
    confidence: float = 0.95,
    rng: int | np.random.Generator | None = None,
) -> OneRunAudit:
    """Train once with made-up users in it, guess which ones, and bound epsilon from below.

    It looks at the model alone, so it costs nothing beyond the one fit, whose ledger ``fit`` brings along.
    The made-up users spend from it too: give the audit a population of its own, and real users' data only
    where that is paid for.

    Args:
        fit: From a training table to the model that is audited.
        table: Other users; may be empty of rows.
        canaries: Made-up users over the same catalogue, none of them in ``table``.
        score: From the model and the canaries to one number each, higher where the canary more likely was
            in the table: :func:`~recsys_budget.audit.own_likelihood`, or anything that knows the model
            better.
        delta: Of the claim that is audited.
        guesses: How many to guess: half of them, those of the highest scores, as in, and half, those of the
            lowest, as out. Choose it beforehand; None guesses a third of all.
        confidence: Of the lower bound, below 1.
        rng: Seed or generator of the coins.

    Raises:
        SpecificationError: Arguments out of range, another catalogue, or a canary that is a user of the
            table.
        NumericalError: A score is NaN, or there is not one for each canary.

    References:
        Steinke, Nasr and Jagielski (2023), arXiv:2305.08846, algorithm 1.
    """
    m = canaries.n_users
    guesses = 2 * (m // 6) if guesses is None else guesses
    if not (isinstance(guesses, int) and 2 <= guesses <= m and guesses % 2 == 0):
        raise SpecificationError(f"guesses is {guesses!r} of {m} canaries; give an even number from 2 to {m}")
    if not canaries.catalogue.ids.equals(table.catalogue.ids):
        raise SpecificationError("the canaries are over another catalogue than the table; build both on one")
    both = table.users.intersection(canaries.users)
    if len(both):
        raise SpecificationError(f"{both[0]!r} is both a canary and a user of the table; give it a new name")
    # Before training, since it checks what it is given.
    epsilon_lower_bound(m, guesses, guesses, delta=delta, confidence=confidence)
    included = np.random.default_rng(rng).random(m) < 0.5
    model = fit(_joined(table, canaries.take_users(np.flatnonzero(included))))
    scores = np.asarray(score(model, canaries), np.float64)
    if scores.shape != (m,) or np.isnan(scores).any():
        raise NumericalError(
            f"scores of shape {scores.shape}, or NaN; give a number for each of {m} canaries"
        )
    order = np.argsort(scores, kind="stable")
    correct = int(included[order[m - guesses // 2 :]].sum() + (~included[order[: guesses // 2]]).sum())
    bound = epsilon_lower_bound(m, guesses, correct, delta=delta, confidence=confidence)
    return OneRunAudit(bound, delta, confidence, m, guesses, correct)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, *, delta: float, confidence: float = 0.95
) -> float:
    """Largest epsilon that so many correct guesses refute.

    Under (epsilon, delta), the number of correct guesses among ``r`` reaches v with probability at most P[W
    >= v] + 2 m delta max over i = 1..v of P[v > W >= v - i] / i, where W is binomial with r trials and
    probability 1 / (1 + exp(-epsilon)), and m is the number of canaries. What is refuted are the values of
    epsilon where that is below 1 - ``confidence``.

    Args:
        canaries: How many there were, each in the table with probability one half.
        guesses: How many were guessed; fixed beforehand.
        correct: How many of these were right.
        delta: Of the claim.
        confidence: Probability that the bound holds.

    Returns:
        The bound, rounded down to four decimals; 0 where nothing is refuted, at most 36.

    Raises:
        SpecificationError: Arguments out of range.

    References:
        Steinke, Nasr and Jagielski (2023), arXiv:2305.08846, theorem 5.2.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise SpecificationError(
            f"{correct} correct of {guesses} guesses on {canaries} canaries: each must be at most the next"
        )
    if not 0 <= delta < 1:
        raise SpecificationError(f"delta is {delta}; it must be at least 0 and below 1")
    if not 0 < confidence < 1:
        raise SpecificationError(f"confidence is {confidence}; it must lie strictly between 0 and 1")

    def chance(epsilon: float) -> float:
        right = 1 / (1 + math.exp(-epsilon))
        below = np.arange(correct - 1, -1, -1)
        missing = np.cumsum(stats.binom.pmf(below, guesses, right)) / np.arange(1, correct + 1)
        reached = float(stats.binom.sf(correct - 1, guesses, right))
        return reached + 2 * canaries * delta * float(missing.max(initial=0.0))

    low, high = 0.0, _LARGEST
    if chance(low) > 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) <= 1 - confidence else (low, middle)
    return math.floor(low * 1e4) / 1e4


def _joined(table: Interactions, canaries: Interactions) -> Interactions:
    frame = pd.concat([part.to_frame()[["user", "item"]] for part in (table, canaries)], ignore_index=True)
    joined = Interactions.from_frame(frame, catalogue=table.catalogue)
    return replace(joined, unaccounted=table.unaccounted + canaries.unaccounted)
