"""Several releases of a statistic as one: means by the inverse of the variance of their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recsys_budget.privacy import GaussianMechanism, NoisyGram, NoisyValues

# Heads that differ by less than this factor are as good: one question serves them, and its answers add up.
_SAME_HEAD = 1.25
# A question is asked anew when counts have become this much clearer than those it was made from.
_CLEARER = 0.5
# A newer question is believed once this share of 1 / noise**2 was spent since it was first asked.
_BELIEVED = 0.4


def known(counts: NoisyValues) -> NDArray[np.float64]:
    """Counts that can be divided by: positive, the largest at most 10**8 times the smallest."""
    # A count below its noise says no more than that. Weights may differ by a factor of 100.
    values = counts.values
    return np.maximum(values, max(counts.mechanism.noise_multiplier, values.max() * 1e-8))


def shares(counts: NoisyValues, head: NDArray[np.intp]) -> NDArray[np.float64]:
    """Every item's share of the head's interactions; below zero in the tail, they still put it in order."""
    values = counts.values
    of_head = float(np.maximum(values[head], 0.0).sum())
    return values / max(of_head, counts.mechanism.noise_multiplier)


def combined(mechanisms: Sequence[GaussianMechanism]) -> GaussianMechanism:
    """The one release that costs what these cost together: 1 / noise**2 adds up."""
    if len(mechanisms) == 1:
        return mechanisms[0]
    return GaussianMechanism(math.fsum(m.noise_multiplier**-2 for m in mechanisms) ** -0.5)


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a Gram matrix: made from released counts alone.

    Attributes:
        counts: Noisy counts of all items.
        size: How many items the matrix covers.
        exponent: Items are divided by their count to this power.
    """

    counts: NoisyValues
    size: int
    exponent: float

    @cached_property
    def head(self) -> NDArray[np.intp]:
        """Positions of the most popular items, ascending."""
        return np.sort(np.argsort(-self.counts.values, kind="stable")[: self.size])

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Of all items in a user's row."""
        return known(self.counts) ** -self.exponent

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """Expected share of each item of the head in a history."""
        return np.maximum(shares(self.counts, self.head)[self.head], 0.0)


@dataclass(frozen=True, eq=False)
class Answer:
    """One stage of a path: counts, and what was asked of a Gram matrix and answered."""

    counts: NoisyValues
    question: Question
    gram: NoisyGram


def sizes_asked(wanted: Sequence[int]) -> tuple[int, ...]:
    """Heads of the stages of a path: what each wants, or what a near one wants, so that fewer are asked.

    Args:
        wanted: Head that would be best for a model of each stage, never descending.
    """
    asked: list[int] = []
    for stage, size in enumerate(wanted):
        if asked and size <= _SAME_HEAD * asked[-1]:
            asked.append(asked[-1])
        else:
            asked.append(max(later for later in wanted[stage:] if later <= _SAME_HEAD * size))
    return tuple(asked)


def outgrown(question: Question, counts: NoisyValues, size: int) -> bool:
    """Whether another question is due: for a larger head, or because counts are much clearer by now."""
    before, now = question.counts.mechanism.noise_multiplier, counts.mechanism.noise_multiplier
    return size != question.size or now < _CLEARER * before


def believed(answers: Sequence[Answer]) -> Question:
    """The question to answer from all these answers.

    The newest has the best head, but few releases may have been asked it yet. Its turn comes with two fifths
    of the matrix's budget: a public fact.
    """
    precision = np.array([answer.gram.mechanism.noise_multiplier**-2 for answer in answers])
    since = np.cumsum(precision[::-1])[::-1]
    first = answers[0].question
    for stage in range(1, len(answers)):
        changed = answers[stage].question is not answers[stage - 1].question
        if changed and since[stage] >= _BELIEVED * since[0]:
            first = answers[stage].question
    return first


def pool_counts(parts: Sequence[NoisyValues]) -> NoisyValues:
    """One statistic released several times, as one release of all their budget.

    The mean of independent normal noise, weighted by 1 / variance, is normal, and its 1 / variance is the sum
    of theirs: the values are distributed as those of a single release with that noise, which would have cost
    what the parts cost together.
    """
    if len(parts) == 1:
        return parts[0]
    mechanism = combined([part.mechanism for part in parts])
    precision = np.array([part.mechanism.noise_multiplier**-2 for part in parts])
    return replace(
        parts[0],
        values=np.tensordot(precision / precision.sum(), [part.values for part in parts], axes=1),
        standard_errors=np.full(len(parts[0]), mechanism.noise_multiplier * parts[0].sensitivity),
        mechanism=mechanism,
        private=all(part.private for part in parts),
    )


def pool_grams(question: Question, answers: Sequence[Answer], spread: NDArray[np.float64]) -> NoisyGram:
    """Answers to this question and to others like it, as one answer to this one.

    Answers to one question are averaged as counts are. An answer to another is put on this one's scale
    first. An item adds ``(weight * spread)**2`` to a matrix without correlations, over the sum of that over
    the head, since rows have norm 1: two heads so differ by a factor an item, taken from released counts.
    Each entry is then the mean of what spoke of it, by the inverse of the variance of the noise.

    Args:
        question: The one to answer.
        answers: All answers so far, some to ``question`` itself.
        spread: Standard deviation of each item of the catalogue before weights, up to a factor.

    Returns:
        The matrix; its standard error is the root of the mean variance of an entry, and its mechanism what
        all releases together cost.
    """
    if len(answers) == 1:
        return answers[0].gram

    def lengths(asked: Question) -> NDArray[np.float64]:
        weights = asked.weights[asked.head]
        return weights / np.linalg.norm(weights * spread[asked.head])

    n = len(question.head)
    precision, total = np.zeros((n, n)), np.zeros((n, n))
    factors = []
    for answer in answers:
        asked, gram = answer.question, answer.gram
        _, here, there = np.intersect1d(question.head, asked.head, return_indices=True)
        factor = lengths(question)[here] / lengths(asked)[there]
        scale = np.outer(factor, factor)
        weight = (scale * gram.mechanism.noise_multiplier) ** -2.0
        place = np.ix_(here, here)
        precision[place] += weight
        total[place] += weight * scale * gram.matrix[np.ix_(there, there)]
        factors.append((place, factor))
    # A user moves each matrix by at most 1, and what is made of it by at most its largest multiple.
    moved = 0.0
    for answer, (place, factor) in zip(answers, factors, strict=True):
        multiple = answer.gram.mechanism.noise_multiplier**-2 / (np.outer(factor, factor) * precision[place])
        moved += answer.gram.sensitivity * float(multiple.max(initial=0.0))
    same = next(answer.gram for answer in answers if answer.question is question)
    return replace(
        same,
        matrix=total / precision,
        standard_error=math.sqrt(float(np.mean(1 / precision)) / 2),
        mechanism=combined([answer.gram.mechanism for answer in answers]),
        sensitivity=moved,
        private=all(answer.gram.private for answer in answers),
    )
